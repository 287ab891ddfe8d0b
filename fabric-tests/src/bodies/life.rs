//! How associations and queues begin and end: keep-alive, reset, shutdown, Abort, Disconnect.

use std::time::Duration;

use homi_fabric::host::StepData;
use homi_queue::Command;
use homi_spec::Status;
use homi_spec::admin::{self, Abort};
use homi_spec::command::Fuse;
use homi_spec::controller::{Cc, Csts, ShutdownNotification, ShutdownStatus};
use homi_spec::fabrics::{Disconnect, Property, PropertyGet, PropertySet, PropertySize};
use homi_spec::feature::{FeatureId, GetFeatures};
use homi_spec::tcp::PduType;

use super::{NOTHING, ram_and_queue, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::blank;
use crate::peer::End;
use crate::random::contents;
use crate::settings::ram;
use crate::units::Units;

fn set_cc<T: Host>(host: &mut T, cc: Cc) -> Status {
    let set = PropertySet {
        size: PropertySize::Four,
        property: Property::CC,
        value: cc.0.into(),
    };
    host.admin(Command(set.to_sqe(0)), StepData::None).0.status
}

fn csts<T: Host>(host: &mut T) -> Csts {
    let get = PropertyGet {
        size: PropertySize::Four,
        property: Property::CSTS,
    };
    let (completion, _) = host.admin(Command(get.to_sqe(0)), StepData::None);
    assert_eq!(completion.status, Status::SUCCESS);
    Csts(completion.dw0())
}

/// Reads CSTS until it is as it should be: I/O queues are closed first.
fn wait_for_csts<T: Host>(host: &mut T, ready: impl Fn(Csts) -> bool) {
    let start = std::time::Instant::now();
    while !ready(csts(host)) {
        assert!(start.elapsed() < crate::harness::DEADLINE, "{:?}", csts(host));
    }
}

/// A host that says nothing for longer than its keep-alive timeout loses its association; another one stays.
pub fn a_silent_host_is_dropped<H: Harness>() {
    let (mut target, _host, mut queue) = ram_and_queue::<H>(2);
    let mut silent = target.raw();
    silent.initialize(Units::PLAIN);
    let controller = silent.connect_admin(500);
    silent.enable();
    assert_eq!(silent.keep_alive(), Status::SUCCESS);
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, 32);
    assert_eq!(silent.end(), End::Closed);
    assert_eq!(io.end(), End::Closed);
    target.wait_for_connections(2);
    write_and_read(&mut queue, (1, 512), 0, 1);
}

/// A timeout that no host could keep is rounded up to what the controller counts in.
pub fn keep_alive_timeouts_are_rounded_up<H: Harness>() {
    let mut target = H::start(&ram());
    let options = HostOptions {
        keep_alive: Duration::from_millis(120_001),
        ..HostOptions::default()
    };
    let mut host = target.host(&options);
    let get = GetFeatures::new(FeatureId::KEEP_ALIVE_TIMER);
    let (completion, _) = host.admin(Command(get.to_sqe(0)), StepData::None);
    assert_eq!((completion.status, completion.dw0()), (Status::SUCCESS, 120_100));
    assert_eq!(host.info().keep_alive_ms, 120_100);
}

/// CC.EN = 0 ends the I/O queues; the association goes on, and is enabled again.
pub fn a_reset_controller_is_enabled_again<H: Harness>() {
    let (target, mut host, mut queue) = ram_and_queue::<H>(2);
    write_and_read(&mut queue, (1, 512), 0, 1);
    let cc = host.info().configuration;
    assert_eq!(set_cc(&mut host, cc.with_enabled(false)), Status::SUCCESS);
    queue.wait_for_the_end();
    drop(queue);
    wait_for_csts(&mut host, |csts| !csts.ready());
    // A controller that is off answers nothing but fabrics commands.
    let get = GetFeatures::new(FeatureId::NUMBER_OF_QUEUES);
    let (completion, _) = host.admin(Command(get.to_sqe(0)), StepData::None);
    assert_eq!(completion.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    assert!(host.try_queue(2).is_err());
    assert_eq!(set_cc(&mut host, cc), Status::SUCCESS);
    wait_for_csts(&mut host, |csts| csts.ready());
    let mut queue = host.queue(2);
    write_and_read(&mut queue, (1, 512), 0, 2);
    target.wait_for_connections(2);
}

/// CC.SHN ends the I/O queues and is confirmed; only a reset brings the controller back.
pub fn a_controller_that_is_shut_down<H: Harness>() {
    for how in [ShutdownNotification::Normal, ShutdownNotification::Abrupt] {
        let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
        write_and_read(&mut queue, (1, 512), 0, 1);
        let cc = host.info().configuration;
        assert_eq!(set_cc(&mut host, cc.with_shutdown(how)), Status::SUCCESS);
        queue.wait_for_the_end();
        drop(queue);
        wait_for_csts(&mut host, |csts| csts.shutdown() == ShutdownStatus::Complete);
        assert!(host.try_queue(2).is_err());
        assert_eq!(set_cc(&mut host, cc.with_enabled(false)), Status::SUCCESS);
        wait_for_csts(&mut host, |csts| !csts.ready());
        assert_eq!(set_cc(&mut host, cc), Status::SUCCESS);
        wait_for_csts(&mut host, |csts| {
            csts.ready() && csts.shutdown() == ShutdownStatus::Normal
        });
        write_and_read(&mut host.queue(2), (1, 512), 0, 2);
    }
}

/// An association that ends in order leaves nothing behind.
pub fn a_host_that_disconnects<H: Harness>() {
    let mut target = H::start(&ram());
    for round in 0..5 {
        let mut host = target.host(&HostOptions::default());
        let mut queues: Vec<_> = (0..3).map(|_| host.queue(4)).collect();
        for queue in &mut queues {
            write_and_read(queue, (1, 512), 0, round);
        }
        target.wait_for_connections(4);
        assert!(host.disconnect());
        drop(queues);
        target.wait_for_connections(0);
    }
}

/// A queue that is given up is connected again under any id, while the others work.
pub fn queues_that_come_and_go<H: Harness>() {
    let (target, mut host, mut queue) = ram_and_queue::<H>(8);
    for round in 0..8 {
        let mut other = host.queue(2);
        write_and_read(&mut other, (2, 4096), 8, round);
        drop(other);
        target.wait_for_connections(2);
        write_and_read(&mut queue, (1, 512), 0, round);
    }
}

/// A write that waits for its data is aborted: it says so, and what comes for it later is dropped.
pub fn abort_of_a_write_that_waits_for_its_data<H: Harness>() {
    let (mut target, _host, mut queue) = ram_and_queue::<H>(2);
    let before = contents(1, 64 << 10);
    super::write(&mut queue, (2, 4096), 0, &before);
    let mut admin = target.raw();
    admin.initialize(Units::PLAIN);
    let controller = admin.connect_admin(0);
    admin.enable();
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, 32);
    let cid = io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    let (found, ttag, offset, len) = io.expect(PduType::R2T).r2t();
    assert_eq!((found, offset, len), (cid, 0, 64 << 10));
    // Half of it comes.
    let first = io.units().h2c(cid, ttag, 0, &vec![7; 32 << 10], false);
    io.send(&first);
    let abort = Abort { sqid: 1, cid };
    let cqe = admin.execute(abort.to_sqe(0), &[]);
    assert_eq!((cqe.status(), cqe.dw0.get()), (Status::SUCCESS, 0));
    // The rest was asked for, so it still comes, and then the command is answered.
    io.expect_silence();
    let rest = io.units().h2c(cid, ttag, 32 << 10, &vec![7; 32 << 10], true);
    io.send(&rest);
    assert_eq!(io.response(cid).status(), Status::ABORT_REQUESTED);
    // A second Abort finds nothing.
    let cqe = admin.execute(abort.to_sqe(0), &[]);
    assert_eq!(
        (cqe.status(), cqe.dw0.get()),
        (Status::SUCCESS, Abort::NOT_ABORTED)
    );
    let cqe = io.execute(Command::flush(2).0, &[]);
    assert_eq!(cqe.status(), Status::SUCCESS);
    assert_eq!(super::read(&mut queue, (2, 4096), 0, 16), before);
}

/// Abort of queues and commands that do not exist.
pub fn abort_of_what_does_not_exist<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
    for (sqid, cid) in [(1, 77), (0, 77), (9, 1), (u16::MAX, u16::MAX)] {
        let abort = Command(Abort { sqid, cid }.to_sqe(0));
        let (completion, _) = host.admin(abort, StepData::None);
        if completion.is_success() {
            assert_eq!(completion.dw0() & Abort::NOT_ABORTED, Abort::NOT_ABORTED);
        } else {
            assert!(completion.status.dnr(), "{}", completion.status);
        }
    }
    write_and_read(&mut queue, (1, 512), 0, 1);
}

/// Disconnect ends the queue that it comes through, after its answer; the admin queue refuses it.
pub fn disconnect_of_one_queue<H: Harness>() {
    let mut target = H::start(&ram());
    let mut admin = target.raw();
    admin.initialize(Units::PLAIN);
    let controller = admin.connect_admin(0);
    admin.enable();
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, 32);
    let disconnect = Disconnect { recfmt: 0 }.to_sqe(0);
    let cqe = admin.execute(disconnect, &[]);
    assert_eq!(cqe.status(), Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr());
    let cqe = io.execute(disconnect, &[]);
    assert_eq!(cqe.status(), Status::SUCCESS);
    assert_eq!(io.end(), End::Closed);
    target.wait_for_connections(1);
    // Its id is free at once.
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, 32);
    let cqe = io.execute(Command::flush(1).0, &[]);
    assert_eq!(cqe.status(), Status::SUCCESS);
}

/// A queue that fails commands of every kind still has all its slots.
pub fn failures_do_not_use_slots_up<H: Harness>() {
    let (_target, _host, mut queue) = ram_and_queue::<H>(3);
    let mut fused = Command::flush(1);
    fused.0.set_fuse(Fuse::FIRST);
    for round in 0..40 {
        for (command, data) in [
            (Command::read(1, u64::MAX, 1), blank(512)),
            (Command::write(9, 0, 128), blank(64 << 10)),
            (fused, NOTHING),
        ] {
            assert!(!queue.status(command, data).is_success());
        }
        write_and_read(&mut queue, (1, 512), 0, round);
    }
}

/// A reset ends the event requests that wait, in whatever order with its own answer; changes meanwhile confuse nobody, and the
/// controller that is enabled again reports the next one.
pub fn a_reset_with_event_requests_outstanding<H: Harness>() {
    let mut config = ram();
    let mut target = H::start(&config);
    let mut admin = target.raw();
    admin.initialize(Units::PLAIN);
    admin.connect_admin(0);
    let mut removed = config.clone();
    removed.subsystem[0].namespace.pop();
    let enabled = Cc::default().with_standard_entry_sizes().with_enabled(true);
    for round in 0..5 {
        admin.enable();
        let requests: Vec<u16> = (0..4)
            .map(|_| admin.submit(admin::async_event_request(0), &[]))
            .collect();
        if round % 2 == 1 {
            // One of them is answered by an event that happens before.
            target.apply(&removed).unwrap();
            let cqe = admin.expect(PduType::CAPSULE_RESP).cqe();
            assert_eq!((cqe.status(), cqe.dw0.get()), (Status::SUCCESS, 0x0004_0002));
            assert_eq!(cqe.cid.get(), requests[0]);
        }
        let set = PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: enabled.with_enabled(false).0.into(),
        };
        let reset = admin.submit(set.to_sqe(0), &[]);
        target.apply(&config).unwrap();
        let waiting = &requests[usize::from(round % 2 == 1)..];
        let mut answered = Vec::new();
        for _ in 0..=waiting.len() {
            let cqe = admin.expect(PduType::CAPSULE_RESP).cqe();
            let cid = cqe.cid.get();
            if cid == reset {
                assert_eq!(cqe.status(), Status::SUCCESS);
            } else {
                assert!(waiting.contains(&cid));
                assert!(
                    cqe.status().is(Status::ABORTED_SQ_DELETION) || cqe.status().is_success(),
                    "{}",
                    cqe.status()
                );
            }
            answered.push(cid);
        }
        answered.sort_unstable();
        answered.dedup();
        assert_eq!(answered.len(), waiting.len() + 1, "each is answered once");
        assert!(!Csts(admin.csts()).ready());
    }
    config.subsystem[0].namespace.clear();
    target.apply(&config).unwrap();
    admin.enable();
    assert_eq!(admin.keep_alive(), Status::SUCCESS);
}

/// Keep-alives before, with and after the shutdown notification in one batch are all answered; what ends an association late
/// ends it once.
pub fn keep_alives_around_a_shutdown<H: Harness>() {
    let (mut target, _host, mut queue) = ram_and_queue::<H>(2);
    for how in [ShutdownNotification::Normal, ShutdownNotification::Abrupt] {
        let mut admin = target.raw();
        admin.initialize(Units::PLAIN);
        let controller = admin.connect_admin(60_000);
        admin.enable();
        let mut io = target.raw();
        io.initialize(Units::PLAIN);
        io.connect_io(controller, 1, 32);
        let cc = Cc::default().with_standard_entry_sizes().with_enabled(true);
        let set = PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: cc.with_shutdown(how).0.into(),
        };
        let mut batch = Vec::new();
        let mut ids = Vec::new();
        for mut sqe in [
            admin::keep_alive(0),
            set.to_sqe(0),
            admin::keep_alive(0),
            set.to_sqe(0),
            admin::keep_alive(0),
        ] {
            let cid = admin.next_cid();
            sqe.cid = cid.into();
            sqe.set_psdt(homi_spec::command::Psdt::SGL);
            batch.extend(Units::PLAIN.capsule(sqe, &[]));
            ids.push(cid);
        }
        admin.send(&batch);
        for cid in ids {
            // A controller that is shut down takes fabrics commands only.
            let status = admin.response(cid).status();
            assert!(
                status.is_success() || status.is(Status::COMMAND_SEQUENCE_ERROR),
                "{status}"
            );
        }
        assert_eq!(io.end(), End::Closed);
        drop((admin, io));
        write_and_read(&mut queue, (1, 512), 0, 1);
        target.wait_for_connections(2);
    }
}
