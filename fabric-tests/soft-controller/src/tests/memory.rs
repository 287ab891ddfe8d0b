use homi_spec::manage::doorbell_buffer_config;
use homi_spec::nvm::BlockCommand;
use homi_spec::registers::{CmbLoc, CmbMsc, CmbSz, offset};
use homi_spec::{Sgl, Status};

use super::{Memory, Pair, Raw};
use crate::{CmbConfig, MisuseKind, SglSupport, SoftConfig};

#[test]
fn data_is_described_by_sgls() {
    let mut raw = Raw::new(SoftConfig {
        sgl: SglSupport::Bytes,
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    let data = Memory::new(&raw.function, 8192);
    let list = Memory::new(&raw.function, 4096);
    let bytes: Vec<u8> = (0..1024_u32).map(|at| (at % 249) as u8).collect();
    assert!(raw.model.write_media(1, 0, &bytes));
    // 100 bytes to an odd address, 24 nowhere, the rest elsewhere.
    let descriptors = [
        Sgl::data_block(data.at() + 4097, 100).0,
        homi_spec::SglDescriptor::BitBucket { length: 24 }
            .encode()
            .unwrap()
            .0,
        Sgl::data_block(data.at(), 900).0,
    ];
    list.region.write(0, descriptors.as_flattened()).unwrap();
    let segment = homi_spec::SglDescriptor::LastSegment {
        address: list.at(),
        length: 48,
    };
    let mut read = BlockCommand::read(1, 0, 2).unwrap().to_sqe(0);
    read.set_sgl(segment.encode().unwrap());
    assert!(raw.run(&mut pair, read).status().is_success());
    assert!(data.bytes(4097, 100) == bytes[..100]);
    assert!(data.bytes(0, 900) == bytes[124..]);
    assert_eq!(data.bytes(900, 1), [0]);
    read.set_sgl(Sgl::data_block(data.at(), 512));
    assert!(
        raw.run(&mut pair, read)
            .status()
            .is(Status::SGL_DATA_LENGTH_INVALID)
    );
    read.set_sgl(Sgl::keyed(data.at(), 1024, 1, false).unwrap());
    assert!(raw.run(&mut pair, read).status().is(Status::SGL_TYPE_INVALID));
    assert_eq!(raw.model.misuse(), []);
}

/// A controller whose buffer answers at a reserved address.
fn with_cmb(cmb: CmbConfig) -> (Raw, u64, homi_pci::Reservation) {
    let raw = Raw::new(SoftConfig {
        cmb: Some(cmb),
        ..SoftConfig::default()
    });
    let place = raw.function.dma().reserve(cmb.size).unwrap();
    let base = place.range().start().0;
    assert_eq!(raw.read(offset::CMBSZ), 0, "not before it is enabled");
    raw.registers
        .write64(offset::CMBMSC as u64, CmbMsc::enabled_at(base).0);
    assert_eq!(raw.read(offset::CMBSTS), 0);
    (raw, base, place)
}

#[test]
fn queues_lists_and_data_lie_in_the_memory_buffer() {
    let cmb = CmbConfig {
        offset: 8192,
        ..CmbConfig::new(64 << 10)
    };
    let (mut raw, base, _place) = with_cmb(cmb);
    let size = CmbSz(raw.read(offset::CMBSZ));
    assert_eq!(size.size(), Some(64 << 10));
    let location = CmbLoc(raw.read(offset::CMBLOC));
    assert_eq!((location.bar(), location.offset(size)), (2, Some(8192)));
    let memory = raw.function.bar_memory(2, 8192, 64 << 10).unwrap().region;
    assert!(raw.function.bar_memory(2, 0, 4096).is_err());

    raw.set_queues(1);
    let mut pair = Pair::new(&raw.function, 1, 8);
    pair.sq = memory.part(0..4096).unwrap();
    pair.cq = memory.part(4096..8192).unwrap();
    assert_eq!(
        raw.create(&pair, base, base + 4096),
        (Status::SUCCESS, Status::SUCCESS)
    );
    let before = raw.model.traffic(0);
    memory.write(0x4000, &[0x5a; 4096]).unwrap();
    let mut write = BlockCommand::write(1, 0, 8).unwrap().to_sqe(0);
    write.set_prp(base + 0x4000, 0);
    assert!(raw.run(&mut pair, write).status().is_success());
    let mut read = BlockCommand::read(1, 0, 8).unwrap().to_sqe(0);
    read.set_prp(base + 0x6000, 0);
    assert!(raw.run(&mut pair, read).status().is_success());
    let mut bytes = [0; 4096];
    memory.read(0x6000, &mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 4096]);
    let after = raw.model.traffic(0);
    assert_eq!((after.read, after.written), (before.read, before.written));
    // Partly outside.
    let mut read = BlockCommand::read(1, 0, 8).unwrap().to_sqe(0);
    read.set_prp(base + 0xf800, base + 0x1_0000);
    assert!(!raw.run(&mut pair, read).status().is_success());
    // Another controller reaches it by a mapping, and it survives a reset of this one.
    raw.write(offset::CC, 0);
    raw.model.run_until_idle();
    assert_ne!(raw.read(offset::CMBSZ), 0);
}

#[test]
fn what_the_buffer_is_not_for_is_refused() {
    let cmb = CmbConfig {
        submission_queues: false,
        read_data: false,
        ..CmbConfig::new(16 << 10)
    };
    let (mut raw, base, _place) = with_cmb(cmb);
    raw.set_queues(1);
    let pair = Pair::new(&raw.function, 1, 8);
    assert_eq!(
        raw.create(&pair, base, base),
        (Status::SUCCESS, Status::INVALID_CMB_USE)
    );
    let mut pair = Pair::new(&raw.function, 1, 8);
    let (cq, sq) = raw.create(&pair, pair.sq_at, base + 4096);
    assert!(cq.is(Status::INVALID_QUEUE_IDENTIFIER) && sq.is_success());
    pair.cq = raw.function.bar_memory(2, 0, 16 << 10).unwrap().region;
    let mut read = BlockCommand::read(1, 0, 8).unwrap().to_sqe(0);
    read.set_prp(base + 8192, 0);
    assert!(raw.run(&mut pair, read).status().is(Status::INVALID_CMB_USE));
    raw.registers
        .write64(offset::CMBMSC as u64, CmbMsc::enabled_at(u64::MAX).0);
    assert_eq!(raw.read(offset::CMBSTS), 1);
    assert!(matches!(
        raw.model.misuse()[0].kind,
        MisuseKind::BadCmbBase { .. }
    ));
}

#[test]
fn shadow_doorbells_are_looked_at_while_the_controller_is_awake() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(2);
    let mut pair = raw.pair(1, 16);
    let shadows = Memory::new(&raw.function, 4096);
    let events = Memory::new(&raw.function, 4096);
    assert!(
        raw.admin(doorbell_buffer_config(shadows.at(), events.at(), 0))
            .status()
            .is_success()
    );
    let mut later = raw.pair(2, 16);
    raw.model.run_until_idle();
    let store = |at: usize, value: u16| shadows.region.write(at, &u32::from(value).to_le_bytes()).unwrap();
    let event = |at: usize| u32::from_le_bytes(events.bytes(at, 4).try_into().unwrap());
    for (pair, at) in [(&mut pair, 8), (&mut later, 16)] {
        // Asleep: the shadow alone is not seen.
        pair.put(homi_spec::nvm::flush(1, 0));
        store(at, pair.tail);
        assert!(!raw.model.step());
        assert_eq!(event(at), 0);
        // The driver's step from 0 to 1 passes the event index, so it rings. More commands follow before the controller looks.
        raw.ring(pair);
        pair.put(homi_spec::nvm::flush(1, 0));
        store(at, pair.tail);
        raw.model.run_until_idle();
        assert!(pair.pop().is_some() && pair.pop().is_some());
        assert_eq!(event(at), 2);
        store(at + 4, pair.head);
    }
    // A full completion queue takes its head from the shadow.
    for round in 0..3_u32 {
        for _ in 0..15 {
            later.put(homi_spec::nvm::flush(1, 0));
        }
        store(16, later.tail);
        raw.ring(&later);
        raw.model.run_until_idle();
        for _ in 0..15 {
            assert!(later.pop().is_some(), "{round}");
        }
        store(20, later.head);
    }
    raw.assert_clean();
    store(8, 999);
    raw.ring(&later);
    raw.write(0x1008, 1);
    raw.model.run_until_idle();
    assert!(raw.csts().fatal());
    let last = raw.model.misuse().pop().unwrap().kind;
    assert!(
        matches!(last, MisuseKind::ShadowValue { queue: 1, .. }),
        "{last:?}"
    );
}

#[test]
fn a_drive_reads_into_the_buffer_of_another() {
    let (mut one, base, _place) = with_cmb(CmbConfig::new(64 << 10));
    let mut other = Raw::new(SoftConfig::default());
    for raw in [&mut one, &mut other] {
        raw.set_queues(1);
    }
    let (mut ours, mut theirs) = (one.pair(1, 8), other.pair(1, 8));
    assert!(other.model.write_media(1, 0, &[0x77; 4096]));
    // The other reaches the buffer by a mapping of its own.
    let buffer = one.function.bar_memory(2, 0x8000, 4096).unwrap().region;
    let mapping = other
        .function
        .dma()
        .map(&buffer, homi_pci::Access::ReadWrite)
        .unwrap();
    let mut read = BlockCommand::read(1, 0, 8).unwrap().to_sqe(0);
    read.set_prp(mapping.range().start().0, 0);
    assert!(other.run(&mut theirs, read).status().is_success());
    let mut write = BlockCommand::write(1, 40, 8).unwrap().to_sqe(0);
    write.set_prp(base + 0x8000, 0);
    assert!(one.run(&mut ours, write).status().is_success());
    let mut media = [0; 4096];
    assert!(one.model.read_media(1, 40 * 512, &mut media));
    assert_eq!(media, [0x77; 4096]);
    // Only entries went over the bus.
    let traffic = one.model.traffic(0);
    assert_eq!(traffic.cmb_read, 4096);
    one.assert_clean();
    other.assert_clean();
    one.model.remove(0);
    let mut gone = [0; 8];
    buffer.read(0, &mut gone).unwrap();
    assert_eq!(gone, [0xff; 8]);
}
