//! A controller's life: failures and their recovery, one at a time; namespaces, memory buffer, virtual functions.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "tests fail by panics, and draw small numbers from large ones"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use homi_nvme::{
    AdminData, Arbitration, Clock, Controller, Interrupts, NewNamespace, NvmeError, Options, Placement,
    Priority, QueueOptions, State, SystemClock,
};
use homi_queue::{Command, Data, LostReason, Queue, Region, Wait};
use homi_soft_controller::{
    CmbConfig, CommandMatch, Fault, FaultRule, NamespaceConfig, SoftConfig, SoftController, SriovConfig,
    Trigger,
};
use homi_spec::Sqe;
use homi_spec::command::AdminOpcode;
use homi_spec::event::AsyncEvent;
use homi_spec::feature::{FeatureId, NumberOfQueues, SetFeatures};
use homi_spec::manage::{FormatNvm, ResourceType};
use homi_spec::status::Status;
use support::{Rig, SoftClock, bytes, options, pattern, region, submit};

fn page() -> Data {
    Data::whole(Region::allocate(4096, 4096).unwrap())
}

#[test]
fn a_command_that_takes_too_long_is_aborted() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    // Slow enough to be aborted, and found by the Abort.
    rig.model.add_fault(FaultRule::once(
        CommandMatch::io_opcode(2),
        Fault::Slow(1_000_000),
    ));
    submit(&mut queue, Command::read(1, 0, 8), page());
    submit(&mut queue, Command::write(1, 8, 8), page());
    queue.commit().unwrap();
    let mut done = Vec::new();
    for _ in 0..2000 {
        queue.poll(&mut done).unwrap();
        rig.clock.pause(Duration::from_millis(1), &[]);
        rig.controller.service();
    }
    assert_eq!(done.len(), 2);
    assert!(done[0].completion.is_success());
    assert!(
        done[1].completion.status.is(Status::ABORT_REQUESTED),
        "{:?}",
        done[1].completion
    );
    assert_eq!(
        (rig.controller.resets(), rig.controller.state()),
        (0, State::Ready)
    );
    drop((done, queue));
    rig.close();
}

#[test]
fn a_lost_completion_ends_in_a_reset_that_accounts_for_every_command() {
    let rig = Rig::new(SoftConfig::default());
    let (mut queue, mut other) = (rig.queue(8), rig.queue(8));
    rig.model
        .add_fault(FaultRule::once(CommandMatch::io_opcode(2), Fault::Lose));
    let lost = submit(&mut queue, Command::read(1, 0, 8), page());
    queue.commit().unwrap();
    let mut done = Vec::new();
    let why = rig.until_lost(&mut queue, &mut done);
    assert!(done.is_empty());
    assert!(matches!(why.reason(), LostReason::Timeout(_)), "{why}");
    assert_eq!(
        why.undelivered().iter().map(|lost| lost.id).collect::<Vec<_>>(),
        [lost]
    );
    let why = other.commit().unwrap_err();
    assert!(matches!(why.reason(), LostReason::Association(_)), "{why}");
    assert_eq!(
        (rig.controller.resets(), rig.controller.state()),
        (1, State::Ready)
    );
    // What was submitted to a lost queue comes back as well.
    let id = submit(&mut other, Command::flush(1), Data::None);
    let why = other.commit().unwrap_err();
    assert_eq!(why.undelivered()[0].id, id);
    let mut new = rig.queue(8);
    assert!(
        rig.run(&mut new, Command::read(1, 0, 8), page())
            .completion
            .is_success()
    );
    drop((queue, other, new));
    rig.close();
}

#[test]
fn a_sleeper_is_woken_when_its_queue_is_lost() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let rig = Rig::new(SoftConfig::default());
    let options = QueueOptions::new(4).interrupts(Interrupts::On);
    let mut queue = rig.controller.open_queue(options).unwrap();
    submit(&mut queue, Command::flush(1), Data::None);
    queue.commit().unwrap();
    rig.model.fail(0);
    rig.controller.service();
    let mut fds = [PollFd::new(queue.wait_descriptor().unwrap(), PollFlags::POLLIN)];
    assert!(poll(&mut fds, PollTimeout::ZERO).unwrap() > 0);
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered().len(), 1);
    assert!(lost.to_string().contains("CSTS.CFS"), "{lost}");
    drop((lost, queue));
    rig.close();
}

#[test]
fn nonsense_on_a_queue_resets_the_controller() {
    for (fault, text) in [
        (Fault::Duplicate(0), "names no command in flight"),
        (Fault::WrongCid(0xffff), "names no command in flight"),
        (Fault::WrongSqHead(9000), "submission queue head 9000"),
        (Fault::WrongSqId(77), "of queue 77"),
    ] {
        let rig = Rig::with(
            SoftConfig::default(),
            options().command_timeout(None, Duration::from_secs(9)),
        );
        let mut queue = rig.queue(4);
        rig.model
            .add_fault(FaultRule::once(CommandMatch::io(), fault.clone()));
        submit(&mut queue, Command::read(1, 0, 8), page());
        submit(&mut queue, Command::read(1, 8, 8), page());
        queue.commit().unwrap();
        let mut done = Vec::new();
        let lost = rig.until_lost(&mut queue, &mut done);
        assert!(lost.to_string().contains(text), "{fault:?}: {lost}");
        assert!(matches!(lost.reason(), LostReason::Protocol(_)));
        assert_eq!(done.len() + lost.undelivered().len(), 2, "{fault:?}");
        drop((done, lost, queue));
        rig.close();
    }
}

#[test]
fn a_head_that_stays_behind_resets_the_controller() {
    let rig = Rig::with(
        SoftConfig::default(),
        options().command_timeout(None, Duration::from_secs(9)),
    );
    let mut queue = rig.queue(1);
    rig.model
        .add_fault(FaultRule::always(CommandMatch::io(), Fault::WrongSqHead(0)));
    let done = rig.run(&mut queue, Command::read(1, 0, 8), page());
    assert!(done.completion.is_success());
    // Its queue has room for one entry, which the controller does not say it fetched.
    submit(&mut queue, Command::read(1, 8, 8), page());
    let lost = rig.until_lost(&mut queue, &mut Vec::new());
    assert!(lost.to_string().contains("stays behind"), "{lost}");
    assert_eq!(lost.undelivered().len(), 1);
    drop((done, lost, queue));
    rig.close();
}

#[test]
fn a_removed_controller_is_gone_for_good() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    submit(&mut queue, Command::read(1, 0, 8), page());
    queue.commit().unwrap();
    rig.model.remove(0);
    rig.controller.service();
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered().len(), 1);
    assert!(lost.to_string().contains("removed"), "{lost}");
    assert_eq!(rig.controller.state(), State::Removed);
    assert!(matches!(rig.controller.reset(), Err(NvmeError::Removed)));
    assert!(matches!(
        rig.controller.open_queue(QueueOptions::new(1)),
        Err(NvmeError::Removed)
    ));
    drop((lost, queue));
    rig.close();
}

#[test]
fn a_controller_that_does_not_stop_is_reset_by_its_function() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    submit(&mut queue, Command::read(1, 0, 8), page());
    queue.commit().unwrap();
    rig.model
        .add_fault(FaultRule::on(Trigger::Disable, Fault::Ignore));
    rig.controller.reset().unwrap();
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered().len(), 1);
    // Interrupts are on again.
    let options = QueueOptions::new(4).interrupts(Interrupts::On);
    drop((lost, queue));
    let mut queue = rig.controller.open_queue(options).unwrap();
    assert!(
        rig.run(&mut queue, Command::flush(1), Data::None)
            .completion
            .is_success()
    );
    drop(queue);
    rig.close();
}

#[test]
fn what_nothing_keeps_the_controller_from_is_never_used_again() {
    let config = SoftConfig {
        function_reset: false,
        ..SoftConfig::default()
    };
    let rig = Rig::new(config);
    let mut queue = rig.queue(4);
    let memory = Region::allocate(4096, 4096).unwrap();
    submit(&mut queue, Command::read(1, 0, 8), Data::whole(memory.clone()));
    queue.commit().unwrap();
    rig.model
        .add_fault(FaultRule::on(Trigger::Disable, Fault::Ignore));
    // Bus mastering is what is left.
    assert!(matches!(rig.controller.reset(), Err(NvmeError::Failed { .. })));
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered()[0].data.len(), 4096);
    assert!(matches!(rig.controller.state(), State::Failed(_)));
    drop((lost, queue));
    drop(rig);
    assert!(memory.is_unique());
}

#[test]
fn a_lost_admin_command_resets_the_controller() {
    let rig = Rig::new(SoftConfig::default());
    let matches = CommandMatch::admin_opcode(AdminOpcode::IDENTIFY.0);
    rig.model.add_fault(FaultRule::once(matches, Fault::Lose));
    let error = rig.controller.rescan().unwrap_err();
    assert!(matches!(error, NvmeError::Timeout { .. }), "{error}");
    assert_eq!(
        (rig.controller.resets(), rig.controller.state()),
        (1, State::Ready)
    );
    rig.controller.rescan().unwrap();
    rig.close();
}

#[test]
fn events_are_taken_and_armed_again() {
    let rig = Rig::new(SoftConfig::default());
    rig.controller.service();
    for round in 0..6 {
        assert!(rig.model.change_namespace(1, Some(1000 + round)));
        rig.model.run_until_idle();
        rig.controller.service();
        assert_eq!(
            rig.controller.take_event(),
            Some(AsyncEvent::NAMESPACE_ATTRIBUTE),
            "{round}"
        );
        assert_eq!(rig.controller.changed_namespaces().unwrap(), Some(vec![1]));
        rig.controller.rescan().unwrap();
        assert_eq!(rig.controller.namespace(1).unwrap().blocks(), 1000 + round);
    }
    assert_eq!(rig.controller.take_event(), None);
    rig.close();
}

#[test]
fn one_thread_looks_after_a_controller() {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let runner = model.spawn().unwrap();
    let clock = Arc::new(SystemClock::new());
    let times = Options::new().command_timeout(Some(Duration::from_millis(20)), Duration::from_millis(20));
    let controller = Controller::open(model.physical(), clock.clone(), times).unwrap();
    let watch = controller.watch().unwrap();
    let mut queue = controller
        .open_queue(QueueOptions::new(8).interrupts(Interrupts::On))
        .unwrap();
    model.add_fault(FaultRule::nth(CommandMatch::io(), 100, Fault::Lose));
    let mut done = Vec::new();
    let mut lost = None;
    let mut submitted = 0;
    let start = clock.now();
    while lost.is_none() {
        assert!(
            clock.now() - start < Duration::from_secs(60),
            "{:?}",
            controller.state()
        );
        while let Ok(slot) = queue.reserve() {
            queue.submit(slot, Command::flush(1), Data::None);
            submitted += 1;
        }
        lost = queue.commit().err();
        if lost.is_none() {
            match queue.poll(&mut done) {
                Ok(0) => clock.pause(Duration::from_millis(5), &[queue.wait_descriptor().unwrap()]),
                Ok(_) => {}
                Err(error) => lost = Some(error),
            }
        }
    }
    assert_eq!(done.len() + lost.unwrap().undelivered().len(), submitted);
    drop((queue, watch, controller));
    drop(runner);
    support::check_left_by_threads(&model);
}

#[test]
fn the_driver_keeps_what_is_its_own_and_what_destroys() {
    let rig = Rig::new(SoftConfig::default());
    let queues = NumberOfQueues::pairs(3).unwrap().to_dword();
    for sqe in [
        Sqe::new(AdminOpcode::CREATE_IO_SQ.0, 0),
        Sqe::new(AdminOpcode::ASYNC_EVENT_REQUEST.0, 0),
        SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, queues).to_sqe(0),
    ] {
        let error = rig.controller.admin(Command(sqe), AdminData::None).unwrap_err();
        assert!(matches!(error, NvmeError::Reserved { .. }), "{error}");
    }
    let format = FormatNvm {
        nsid: 1,
        ..FormatNvm::default()
    };
    for error in [
        rig.controller.format(format).unwrap_err(),
        rig.controller.delete_namespace(1).unwrap_err(),
        rig.controller
            .admin(Command(Sqe::new(AdminOpcode::SANITIZE.0, 0)), AdminData::None)
            .unwrap_err(),
    ] {
        assert!(matches!(error, NvmeError::Destructive { .. }), "{error}");
    }
    let get = Command(Sqe::new(AdminOpcode::GET_FEATURES.0, 0));
    assert!(!rig.controller.admin(get, AdminData::None).unwrap().is_success());
    rig.close();
}

#[test]
fn namespaces_are_created_attached_formatted_and_deleted() {
    let rig = Rig::with(SoftConfig::default(), options().destructive(true));
    let cntlid = rig.controller.controllers().unwrap();
    let new = NewNamespace {
        blocks: 2048,
        capacity: 2048,
        format: 0,
        shared: false,
    };
    let nsid = rig.controller.create_namespace(&new).unwrap();
    assert!(rig.controller.namespace(nsid).is_none());
    rig.controller.attach_namespace(nsid, &cntlid).unwrap();
    let block = rig.controller.namespace(nsid).unwrap().block_size();
    let mut queue = rig.queue(4);
    let written = pattern(0, 1, block as usize);
    let done = rig.run(
        &mut queue,
        Command::write(nsid, 3, 1),
        Data::whole(region(&written)),
    );
    assert!(done.completion.is_success());
    let format = FormatNvm {
        nsid,
        ..FormatNvm::default()
    };
    rig.controller.format(format).unwrap();
    let done = rig.run(
        &mut queue,
        Command::read(nsid, 3, 1),
        Data::Anywhere { len: block as usize },
    );
    assert_eq!(bytes(&done.data), vec![0; block as usize]);
    rig.controller.detach_namespace(nsid, &cntlid).unwrap();
    queue.commit().unwrap();
    let done = rig.run(
        &mut queue,
        Command::read(nsid, 3, 1),
        Data::Anywhere { len: block as usize },
    );
    assert!(done.completion.status.is(Status::INVALID_NAMESPACE));
    rig.controller.delete_namespace(nsid).unwrap();
    drop((done, queue));
    rig.close();
}

#[test]
fn queues_and_data_lie_in_the_controllers_memory() {
    let config = SoftConfig {
        cmb: Some(CmbConfig::new(1 << 20)),
        ..SoftConfig::default()
    };
    let rig = Rig::new(config);
    let cmb = rig.controller.cmb().unwrap();
    let free = cmb.free_bytes();
    let options = QueueOptions::new(16).placement(Placement::ControllerMemory);
    let mut queue = rig.controller.open_queue(options).unwrap();
    assert!(cmb.free_bytes() < free);
    let written = pattern(4, 1, 64 << 10);
    assert!(rig.model.write_media(1, 4 * 512, &written));
    let memory = cmb.allocate(64 << 10).unwrap();
    let before = rig.model.traffic(0);
    let data = Data::One(memory.region().segment(0..64 << 10).unwrap());
    let done = rig.run(&mut queue, Command::read(1, 4, 128), data);
    assert!(done.completion.is_success(), "{:?}", done.completion);
    assert!(bytes(&done.data) == written);
    assert_eq!(queue.counters().mapped, 0);
    let after = rig.model.traffic(0);
    assert_ne!(format!("{before:?}"), format!("{after:?}"));
    drop(done);
    // It is where it was after a reset.
    rig.controller.reset().unwrap();
    drop(queue);
    let mut queue = rig.controller.open_queue(options).unwrap();
    let data = Data::One(memory.region().segment(0..64 << 10).unwrap());
    let done = rig.run(&mut queue, Command::write(1, 500, 128), data);
    assert!(done.completion.is_success(), "{:?}", done.completion);
    let mut media = vec![0; 64 << 10];
    assert!(rig.model.read_media(1, 500 * 512, &mut media) && media == written);
    drop((done, queue, memory));
    let all = cmb.allocate(usize::try_from(free).unwrap()).unwrap();
    assert!(cmb.allocate(1).is_err());
    drop((all, cmb));
    rig.close();
    let rig = Rig::new(SoftConfig::default());
    assert!(matches!(rig.controller.cmb(), Err(NvmeError::Unsupported(_))));
    assert!(rig.controller.open_queue(options).is_err());
    rig.close();
}

#[test]
fn priorities_need_arbitration() {
    let rig = Rig::new(SoftConfig::default());
    let urgent = QueueOptions::new(4).priority(Priority::Urgent);
    assert!(matches!(
        rig.controller.open_queue(urgent),
        Err(NvmeError::Unsupported(_))
    ));
    rig.close();
    let weights = Arbitration {
        high: 8,
        medium: 4,
        low: 1,
        burst: 3,
    };
    let rig = Rig::with(SoftConfig::default(), options().arbitration(weights));
    let mut queue = rig.controller.open_queue(urgent).unwrap();
    assert!(
        rig.run(&mut queue, Command::flush(1), Data::None)
            .completion
            .is_success()
    );
    drop(queue);
    rig.close();
    let model = SoftController::new(SoftConfig {
        weighted_arbitration: false,
        ..SoftConfig::default()
    })
    .unwrap();
    let clock = SoftClock::new(&model);
    let opened = Controller::open(model.physical(), clock, options().arbitration(weights));
    assert!(matches!(opened, Err(NvmeError::Unsupported(_))));
    support::check_left(&model, false);
}

#[test]
fn virtual_functions_are_given_resources_driven_and_returned() {
    let config = SoftConfig {
        sriov: Some(SriovConfig {
            functions: 2,
            flexible_queues: 8,
            flexible_vectors: 8,
            queues_each: 4,
            vectors_each: 4,
        }),
        namespaces: vec![NamespaceConfig::default()],
        ..SoftConfig::default()
    };
    let rig = Rig::with(config, options().destructive(true));
    let capabilities = rig.controller.primary_capabilities().unwrap();
    assert_eq!(capabilities.vqfrt.get(), 8);
    assert_eq!(rig.model.enable_vfs(2), 2);
    let secondaries = rig.controller.secondary_controllers().unwrap();
    assert_eq!(secondaries.len(), 2);
    let mut driven = Vec::new();
    for (index, secondary) in secondaries.iter().enumerate() {
        let id = secondary.scid.get();
        assert!(rig.controller.bring_online(id).is_err(), "it has no resources");
        assert_eq!(
            rig.controller
                .assign_resources(id, ResourceType::QUEUES, 3)
                .unwrap(),
            3
        );
        assert_eq!(
            rig.controller
                .assign_resources(id, ResourceType::INTERRUPTS, 3)
                .unwrap(),
            3
        );
        rig.controller.bring_online(id).unwrap();
        rig.controller.attach_namespace(1, &[id]).unwrap();
        let function = rig.model.function(u16::try_from(index).unwrap() + 1).unwrap();
        let clock = rig.clock.clone();
        let controller = Controller::open(function, clock, options()).unwrap();
        assert_eq!(controller.info().unwrap().queues(), 2);
        let queue = controller
            .open_queue(QueueOptions::new(8).interrupts(Interrupts::On))
            .unwrap();
        driven.push((controller, queue));
    }
    // Both at once.
    for (n, (_, queue)) in driven.iter_mut().enumerate() {
        for lba in 0..8 {
            let lba = n as u64 * 1000 + lba * 8;
            submit(
                queue,
                Command::write(1, lba, 8),
                Data::whole(region(&pattern(lba, 1, 4096))),
            );
        }
        queue.commit().unwrap();
    }
    for (n, (_, queue)) in driven.iter_mut().enumerate() {
        assert_eq!(rig.finish(queue, 8).unwrap().len(), 8);
        let done = rig.run(queue, Command::read(1, n as u64 * 1000 + 8, 8), page());
        assert_eq!(bytes(&done.data), pattern(n as u64 * 1000 + 8, 1, 4096));
    }
    drop(driven);
    for secondary in secondaries {
        let id = secondary.scid.get();
        rig.controller.take_offline(id).unwrap();
        rig.controller
            .assign_resources(id, ResourceType::QUEUES, 0)
            .unwrap();
        rig.controller
            .assign_resources(id, ResourceType::INTERRUPTS, 0)
            .unwrap();
    }
    assert_eq!(rig.controller.primary_capabilities().unwrap().vqrfa.get(), 0);
    assert_eq!(rig.model.enable_vfs(0), 0);
    for index in [1, 2] {
        assert_eq!(rig.model.space(index).map_or(0, |space| space.mappings()), 0);
    }
    rig.close();
}
