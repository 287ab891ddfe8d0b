use homi_spec::Status;
use homi_spec::command::NvmOpcode;
use homi_spec::nvm::{BlockCommand, flush};
use homi_spec::registers::offset;

use super::{Memory, Pair, Raw, enabled};
use crate::{
    CommandMatch, Deletion, Fault, FaultReason, FaultRule, Mode, NEVER, SoftConfig, SoftController, Trigger,
};

fn one(fault: Fault) -> (Raw, Pair) {
    let mut raw = Raw::new(SoftConfig {
        faults: vec![FaultRule::once(CommandMatch::io(), fault)],
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    pair.put(flush(1, 0));
    raw.ring(&pair);
    raw.model.run_until_idle();
    (raw, pair)
}

#[test]
fn completions_are_lost_late_or_doubled() {
    let (raw, mut pair) = one(Fault::Lose);
    assert!(pair.pop().is_none());
    assert_eq!(raw.model.flushes(1), 1);
    // The next is as it should be.
    raw.run(&mut pair, flush(1, 0));

    let (raw, pair) = one(Fault::Late(NEVER));
    assert!(pair.peek().is_none());
    assert_eq!((raw.model.flushes(1), raw.model.under_way(0)), (1, 1));

    let (raw, mut pair) = one(Fault::Duplicate(3));
    let (first, second) = (pair.pop().unwrap(), pair.pop().unwrap());
    assert_eq!(first.cid, second.cid);
    assert_eq!(raw.model.flushes(1), 1);

    let (raw, pair) = one(Fault::Ignore);
    assert!(pair.peek().is_none());
    assert_eq!(raw.model.flushes(1), 0);
}

#[test]
fn lateness_is_counted_in_steps() {
    for (fault, flushed) in [(Fault::Late(5), 1), (Fault::Slow(5), 0)] {
        let mut raw = Raw::new(SoftConfig {
            faults: vec![FaultRule::once(CommandMatch::io(), fault)],
            ..SoftConfig::default()
        });
        raw.set_queues(1);
        let mut pair = raw.pair(1, 8);
        pair.put(flush(1, 0));
        raw.ring(&pair);
        for _ in 0..5 {
            assert!(raw.model.step());
            assert!(pair.peek().is_none());
            assert_eq!(raw.model.flushes(1), flushed);
        }
        raw.model.step();
        assert!(pair.pop().is_some());
        raw.assert_clean();
    }
}

#[test]
fn completions_are_wrong_as_they_are_told_to_be() {
    let (_raw, pair) = one(Fault::WrongPhase);
    assert!(pair.peek().is_none());
    let (_raw, pair) = one(Fault::WrongCid(77));
    assert_eq!(pair.peek().unwrap().cid.get(), 77);
    let (_raw, pair) = one(Fault::WrongSqHead(99));
    assert_eq!(pair.peek().unwrap().sq_head.get(), 99);
    let (_raw, pair) = one(Fault::WrongSqId(9));
    assert_eq!(pair.peek().unwrap().sq_id.get(), 9);
    let (raw, pair) = one(Fault::Refuse(Status::INTERNAL_ERROR));
    assert_eq!(pair.peek().unwrap().status(), Status::INTERNAL_ERROR);
    assert_eq!(raw.model.flushes(1), 0);
    let (raw, pair) = one(Fault::Report(Status::INTERNAL_ERROR));
    assert_eq!(pair.peek().unwrap().status(), Status::INTERNAL_ERROR);
    assert_eq!(raw.model.flushes(1), 1);
    // What the plan does is none of the driver's doing.
    raw.assert_clean();
    let (raw, pair) = one(Fault::NoInterrupt);
    assert!(pair.peek().is_some());
    assert_eq!(raw.vectors[1].take().unwrap(), 0);
    let (raw, mut pair) = one(Fault::Unsolicited { queue: 1, cid: 500 });
    assert_eq!(pair.pop().unwrap().cid.get(), 500);
    assert_eq!(pair.pop().unwrap().cid.get(), 0);
    let (_raw2, _) = one(Fault::SpuriousInterrupt(3));
    raw.assert_clean();
}

#[test]
fn the_controller_fails_or_goes_under_a_command() {
    let (raw, pair) = one(Fault::Fatal);
    assert!(pair.peek().is_none() && raw.csts().fatal());
    raw.ring(&pair);
    raw.assert_clean();
    let (raw, pair) = one(Fault::Remove);
    assert!(pair.peek().is_none());
    assert_eq!(raw.csts().0, u32::MAX);
    let (raw, pair) = one(Fault::SubsystemReset);
    assert!(pair.peek().is_none());
    assert!(raw.csts().subsystem_reset_occurred());
    // The driver does not know yet.
    raw.ring(&pair);
    raw.assert_clean();
}

#[test]
fn faults_happen_at_steps_and_on_blocks() {
    let model = SoftController::new(SoftConfig {
        faults: vec![
            FaultRule::on(Trigger::Step(50), Fault::Fatal),
            FaultRule::always(
                CommandMatch {
                    blocks: Some(8..9),
                    ..CommandMatch::io_opcode(NvmOpcode::VERIFY.0)
                },
                Fault::Refuse(Status::UNRECOVERED_READ_ERROR),
            ),
        ],
        ..SoftConfig::default()
    })
    .unwrap();
    let mut raw = Raw::cold(&model, 0);
    raw.program();
    raw.write(offset::CC, enabled().0);
    while !raw.csts().ready() {
        assert!(model.step());
    }
    // Waits for the fault of step 50 otherwise.
    let step = |raw: &Raw, pair: &mut Pair, sqe| {
        pair.put(sqe);
        raw.ring(pair);
        model.step();
        let cqe = pair.pop().unwrap();
        raw.ring_head(pair);
        cqe
    };
    let mut admin = std::mem::replace(&mut raw.admin, Pair::new(&raw.function, 0, 2));
    let mut pair = Pair::new(&raw.function, 1, 8);
    let create = homi_spec::admin::CreateIoCq {
        qid: 1,
        size_z: 7,
        contiguous: true,
        address: pair.cq_at,
        ..Default::default()
    };
    assert!(step(&raw, &mut admin, create.to_sqe(0)).status().is_success());
    let create = homi_spec::admin::CreateIoSq {
        qid: 1,
        size_z: 7,
        contiguous: true,
        cqid: 1,
        address: pair.sq_at,
        priority: 0,
    };
    assert!(step(&raw, &mut admin, create.to_sqe(0)).status().is_success());
    for (slba, bad) in [(0, false), (1, true), (8, true), (9, false)] {
        let verify = BlockCommand::verify(1, slba, 8).unwrap().to_sqe(0);
        assert_eq!(step(&raw, &mut pair, verify).status().is_success(), !bad);
    }
    model.run_until_idle();
    assert!(raw.csts().fatal());
    assert!(model.now() >= 50);
}

#[test]
fn data_goes_astray() {
    for (fault, opcode, reads_zero) in [
        (Fault::NoData, NvmOpcode::READ, false),
        (Fault::NotWritten, NvmOpcode::WRITE, true),
        (Fault::Corrupt, NvmOpcode::WRITE, false),
    ] {
        let mut raw = Raw::new(SoftConfig {
            faults: vec![FaultRule::once(CommandMatch::io_opcode(opcode.0), fault.clone())],
            ..SoftConfig::default()
        });
        raw.set_queues(1);
        let mut pair = raw.pair(1, 8);
        let data = Memory::new(&raw.function, 4096);
        data.region.fill(0, 512, 7).unwrap();
        let mut write = BlockCommand::write(1, 3, 1).unwrap().to_sqe(0);
        write.set_prp(data.at(), 0);
        assert!(raw.run(&mut pair, write).status().is_success());
        data.region.fill(0, 512, 9).unwrap();
        let mut read = BlockCommand::read(1, 3, 1).unwrap().to_sqe(0);
        read.set_prp(data.at(), 0);
        assert!(raw.run(&mut pair, read).status().is_success());
        let expected = match fault {
            Fault::NoData => 9,
            _ if reads_zero => 0,
            _ => 7,
        };
        let bytes = data.bytes(0, 512);
        assert_eq!(bytes[0], expected);
        assert_eq!(bytes[511] == expected, fault != Fault::Corrupt);
    }
}

#[test]
fn a_disabled_controller_moves_data_until_it_says_that_it_is() {
    for unmap in [false, true] {
        let mut raw = Raw::new(SoftConfig {
            faults: vec![FaultRule::once(CommandMatch::io(), Fault::Slow(1000))],
            ..SoftConfig::default()
        });
        raw.set_queues(1);
        let mut pair = raw.pair(1, 8);
        assert!(raw.model.write_media(1, 0, &[5; 512]));
        let mut data = Some(Memory::new(&raw.function, 4096));
        let mut read = BlockCommand::read(1, 0, 1).unwrap().to_sqe(0);
        read.set_prp(data.as_ref().unwrap().at(), 0);
        pair.put(read);
        raw.ring(&pair);
        raw.model.step();
        raw.write(offset::CC, 0);
        raw.model.step();
        assert!(raw.csts().ready());
        if unmap {
            // A driver that gives memory back before the controller is done.
            data = None;
        }
        raw.model.run_until_idle();
        assert!(!raw.csts().ready());
        let space = raw.model.space(0).unwrap();
        assert_eq!(space.early_unmaps().len(), usize::from(unmap));
        let faults = space.faults();
        match data {
            Some(data) => assert_eq!((data.bytes(0, 1), faults.len()), (vec![5], 0)),
            None => assert_eq!((faults.len(), faults[0].reason), (1, FaultReason::Unmapped)),
        }
        assert!(pair.pop().is_none());
    }
}

#[test]
fn deleted_queues_may_be_silent_and_order_may_be_shuffled() {
    let mut raw = Raw::new(SoftConfig {
        deletion: Deletion::Silent,
        shuffle: Some(7),
        burst: 64,
        faults: vec![FaultRule::nth(CommandMatch::io(), 32, Fault::Slow(NEVER))],
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 64);
    let cids: Vec<_> = (0..32).map(|_| pair.put(flush(1, 0))).collect();
    raw.ring(&pair);
    raw.model.run_until_idle();
    let got: Vec<_> = std::iter::from_fn(|| pair.pop())
        .map(|cqe| cqe.cid.get())
        .collect();
    let mut sorted = got.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, cids);
    assert_ne!(got, cids);
    raw.ring_head(&pair);
    pair.put(flush(1, 0));
    raw.ring(&pair);
    raw.model.run_until_idle();
    let delete = homi_spec::admin::DeleteIoQueue {
        kind: homi_spec::admin::QueueKind::Submission,
        qid: 1,
    };
    assert!(raw.admin(delete.to_sqe(0)).status().is_success());
    assert!(pair.pop().is_none());
}

#[test]
fn weighted_queues_are_served_by_their_weights() {
    let mut raw = Raw::cold(
        &SoftController::new(SoftConfig {
            burst: 1,
            fetches: 8,
            ..SoftConfig::default()
        })
        .unwrap(),
        0,
    );
    raw.program();
    raw.write(offset::CC, enabled().0 | 1 << 11);
    raw.model.run_until_idle();
    raw.set_queues(4);
    // High 4, medium 2, low 1.
    let weights =
        homi_spec::feature::SetFeatures::new(homi_spec::feature::FeatureId::ARBITRATION, 0x0301_0007);
    assert!(raw.admin(weights.to_sqe(0)).status().is_success());
    let mut pairs = Vec::new();
    for (qid, priority) in [(1, 3), (2, 2), (3, 1), (4, 0)] {
        let pair = Pair::new(&raw.function, qid, 64);
        let cq = homi_spec::admin::CreateIoCq {
            qid,
            size_z: 63,
            contiguous: true,
            address: pair.cq_at,
            ..Default::default()
        };
        let sq = homi_spec::admin::CreateIoSq {
            qid,
            size_z: 63,
            contiguous: true,
            priority,
            cqid: qid,
            address: pair.sq_at,
        };
        assert!(raw.admin(cq.to_sqe(0)).status().is_success());
        assert!(raw.admin(sq.to_sqe(0)).status().is_success());
        pairs.push(pair);
    }
    for pair in &mut pairs {
        for _ in 0..63 {
            pair.put(flush(1, 0));
        }
        raw.ring(pair);
    }
    raw.model.step();
    let done: Vec<_> = pairs
        .iter_mut()
        .map(|pair| std::iter::from_fn(|| pair.pop()).count())
        .collect();
    assert_eq!(done, [1, 2, 4, 1]);
    raw.model.run_until_idle();
    raw.assert_clean();
}

#[test]
fn an_instant_controller_has_completed_when_the_doorbell_returns() {
    let model = SoftController::new(SoftConfig {
        mode: Mode::Instant,
        ..SoftConfig::default()
    })
    .unwrap();
    let mut raw = Raw::cold(&model, 0);
    raw.program();
    raw.write(offset::CC, enabled().0);
    assert!(raw.csts().ready());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    for round in 0..100_u64 {
        let cids = [pair.put(flush(1, 0)), pair.put(flush(1, 0))];
        raw.ring(&pair);
        for cid in cids {
            let cqe = pair.pop().unwrap();
            assert_eq!(cqe.cid.get(), cid);
            assert!(cqe.status().is_success());
            assert_eq!(cqe.sq_id.get(), 1);
        }
        assert_eq!(raw.model.instant_completions(0), 2 * (round + 1));
        raw.ring_head(&pair);
    }
    raw.write(0x1008, 8);
    raw.write(0x1008, u32::MAX);
    assert!(pair.peek().is_none());
    raw.write(offset::CC, 0);
    assert!(!raw.csts().ready());
    pair.put(flush(1, 0));
    raw.ring(&pair);
    assert!(pair.pop().is_none());
}

#[test]
fn a_thread_runs_the_model() {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let thread = model.spawn().unwrap();
    let mut raw = Raw::cold(&model, 0);
    raw.program();
    raw.write(offset::CC, enabled().0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let wait = |done: &mut dyn FnMut() -> bool| {
        while !done() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    };
    wait(&mut || raw.csts().ready());
    for _ in 0..100 {
        raw.admin
            .put(homi_spec::identify::Identify::controller().to_sqe(0));
        raw.ring(&raw.admin);
        let mut cqe = None;
        wait(&mut || {
            cqe = raw.admin.pop();
            cqe.is_some()
        });
        // No page: the first entry is 0, where nothing is mapped.
        assert!(!cqe.unwrap().status().is_success());
        raw.ring_head(&raw.admin);
    }
    drop(thread);
    assert_eq!(model.misuse(), []);
}

#[test]
fn anything_can_come_back() {
    let (_raw, pair) = one(Fault::Raw([1, 2, 3, 0x0001_abcd]));
    let cqe = pair.peek().unwrap();
    assert_eq!((cqe.dw0.get(), cqe.dw1.get(), cqe.sq_head.get()), (1, 2, 3));
    assert_eq!(cqe.cid.get(), 0xabcd);

    let mut raw = Raw::new(SoftConfig {
        faults: vec![
            FaultRule::on(Trigger::Read(offset::CSTS as u64), Fault::Value(u32::MAX)),
            FaultRule::once(CommandMatch::admin_opcode(6), Fault::Garbage(5)),
        ],
        ready_steps: 0,
        ..SoftConfig::default()
    });
    // Bring-up looked once.
    assert_eq!(raw.csts().0, 1);
    let identify = homi_spec::identify::Identify::controller().to_sqe(0);
    assert!(raw.admin_page(identify).status().is_success());
    let garbage = raw.page.bytes(0, 4096);
    assert!(garbage.iter().filter(|byte| **byte == 0).count() < 100);
    assert!(raw.admin_page(identify).status().is_success());
    assert_ne!(raw.page.bytes(0, 4096), garbage);
    raw.assert_clean();
}

#[test]
fn queues_may_be_unmapped_once_the_controller_cannot_reach_memory() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    raw.function.set_bus_master(false).unwrap();
    pair.maps.clear();
    raw.assert_clean();
    raw.function.set_bus_master(true).unwrap();
    raw.admin.maps.clear();
    assert_eq!(raw.model.space(0).unwrap().early_unmaps().len(), 2);
}
