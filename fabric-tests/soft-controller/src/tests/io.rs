use homi_spec::Status;
use homi_spec::nvm::BlockCommand;

use super::{Memory, Pair, Raw};
use crate::{MisuseKind, SoftConfig};

#[test]
fn what_is_written_is_read_back() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(2);
    let mut pair = raw.pair(1, 8);
    let data = Memory::new(&raw.function, 16384);
    let bytes: Vec<u8> = (0..8192_u32).map(|at| (at % 251) as u8).collect();
    data.region.write(100 * 4, &bytes).unwrap();
    // From inside a page over a second one into a third: needs a list.
    let list = Memory::new(&raw.function, 4096);
    list.region.write(0, &(data.at() + 4096).to_le_bytes()).unwrap();
    list.region.write(8, &(data.at() + 8192).to_le_bytes()).unwrap();
    let mut write = BlockCommand::write(1, 100, 16).unwrap().to_sqe(0);
    write.set_prp(data.at() + 400, list.at());
    assert_eq!(raw.run(&mut pair, write).status(), Status::SUCCESS);
    let mut media = vec![0; 8192];
    assert!(raw.model.read_media(1, 51_200, &mut media));
    assert!(media == bytes);
    let mut read = BlockCommand::read(1, 100, 16).unwrap().to_sqe(0);
    read.set_prp(list.at() + 4096 - 4096, 0);
    data.region.fill(0, 16384, 0xee).unwrap();
    read.set_prp(data.at(), data.at() + 4096);
    assert_eq!(raw.run(&mut pair, read).status(), Status::SUCCESS);
    assert!(data.bytes(0, 8192) == bytes);
    assert_eq!(data.bytes(8192, 1), [0xee]);
    assert!(raw.vectors[1].take().unwrap() >= 2);
    raw.assert_clean();
}

#[test]
fn queues_wrap_and_a_full_completion_queue_holds_the_controller_back() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 4);
    for _ in 0..50 {
        for _ in 0..3 {
            pair.put(homi_spec::nvm::flush(1, 0));
        }
        raw.ring(&pair);
        raw.model.run_until_idle();
        for _ in 0..3 {
            assert!(pair.pop().is_some());
        }
        assert!(pair.pop().is_none());
        // The host consumed them, and says so only after more were submitted.
        for _ in 0..2 {
            pair.put(homi_spec::nvm::flush(1, 0));
        }
        raw.ring(&pair);
        raw.model.run_until_idle();
        assert!(pair.peek().is_none(), "no room before the doorbell");
        raw.ring_head(&pair);
        raw.model.run_until_idle();
        assert!(pair.pop().is_some() && pair.pop().is_some() && pair.pop().is_none());
        raw.ring_head(&pair);
    }
    assert_eq!(raw.model.flushes(1), 250);
    raw.assert_clean();
}

#[test]
fn doorbells_take_only_what_they_may() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 4);
    let stored = raw.model.stats(0).fetched;
    for (at, value) in [
        (0x1008, 4),
        (0x1008, 0),
        (0x1008, 99),
        (0x100c, 1),
        (0x100c, 0),
        (0x1010, 1),
    ] {
        raw.write(at, value);
        raw.model.run_until_idle();
    }
    let kinds: Vec<_> = raw.model.misuse().into_iter().map(|misuse| misuse.kind).collect();
    let value = |completion, value| MisuseKind::DoorbellValue {
        queue: 1,
        completion,
        before: 0,
        value,
    };
    assert_eq!(
        kinds,
        [
            value(false, 4),
            value(false, 0),
            value(false, 99),
            value(true, 1),
            value(true, 0),
            MisuseKind::NoSuchQueue { at: 0x1010, value: 1 },
        ]
    );
    assert_eq!(raw.model.stats(0).fetched, stored);
    raw.model.forgive();
    // The queue works on.
    assert!(
        raw.run(&mut pair, homi_spec::nvm::flush(1, 0))
            .status()
            .is_success()
    );
    raw.assert_clean();
}

#[test]
fn what_is_not_mapped_is_not_reached() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 4);
    let data = Memory::with(&raw.function, 4096, homi_pci::Access::Read);
    let mut read = BlockCommand::read(1, 0, 8).unwrap().to_sqe(0);
    read.set_prp(data.at(), 0);
    let faulted = raw.run(&mut pair, read);
    assert_eq!(faulted.status(), Status::DATA_TRANSFER_ERROR);
    let mut write = BlockCommand::write(1, 0, 8).unwrap().to_sqe(0);
    write.set_prp(data.at(), 0);
    assert!(raw.run(&mut pair, write).status().is_success());
    let at = data.at();
    drop(data);
    write.set_prp(at, 0);
    assert_eq!(raw.run(&mut pair, write).status(), Status::DATA_TRANSFER_ERROR);
    let faults = raw.model.space(0).unwrap().faults();
    assert_eq!(faults.len(), 2);
    assert!(faults[0].write && !faults[1].write);
    // Memory of a live queue.
    pair.maps.clear();
    assert_eq!(raw.model.space(0).unwrap().early_unmaps().len(), 2);
    pair.put(homi_spec::nvm::flush(1, 0));
    raw.ring(&pair);
    raw.model.run_until_idle();
    assert!(raw.csts().fatal());
}

#[test]
fn commands_are_refused_as_the_specification_says() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair: Pair = raw.pair(1, 8);
    let data = Memory::new(&raw.function, 4096);
    let at = data.at();
    let read = |nsid, slba, blocks, prp1, prp2| {
        let mut sqe = BlockCommand::read(nsid, slba, blocks).unwrap().to_sqe(0);
        sqe.set_prp(prp1, prp2);
        sqe
    };
    let mut sgl = read(1, 0, 1, 0, 0);
    sgl.set_sgl(homi_spec::Sgl::data_block(at, 512));
    let mut fused = read(1, 0, 1, at, 0);
    fused.set_fuse(homi_spec::command::Fuse::FIRST);
    for (sqe, status) in [
        (read(1, 131_072, 1, at, 0), Status::LBA_OUT_OF_RANGE),
        (read(1, u64::MAX, 1, at, 0), Status::LBA_OUT_OF_RANGE),
        (read(2, 0, 1, at, 0), Status::INVALID_FIELD),
        (read(0, 0, 1, at, 0), Status::INVALID_NAMESPACE),
        (read(17, 0, 1, at, 0), Status::INVALID_NAMESPACE),
        (read(1, 0, 1, at + 2, 0), Status::PRP_OFFSET_INVALID),
        (read(1, 0, 16, at, at + 512), Status::PRP_OFFSET_INVALID),
        (read(1, 0, 2048, at, at), Status::INVALID_FIELD),
        (sgl, Status::INVALID_FIELD),
        (fused, Status::INVALID_FIELD),
        (homi_spec::Sqe::new(0x7e, 1), Status::INVALID_OPCODE),
    ] {
        let got = raw.run(&mut pair, sqe).status();
        assert!(got.is(status), "{sqe:?}: {got}");
    }
    assert_eq!(raw.model.refusals().len(), 11);
    assert_eq!(raw.model.misuse(), []);
}
