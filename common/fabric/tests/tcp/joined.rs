//! Both ends together: data arrives whatever was negotiated and however the stream is cut.

use crate::pair::{BLOCK, Cut, Numbers, Pair, Setup, contents, scattered};
use homi_fabric::tcp::{ControllerParams, HostParams};
use homi_queue::{Command, Data, Region};
use homi_spec::Status;
use proptest::prelude::*;

fn blocks(count: usize) -> u32 {
    u32::try_from(count).unwrap()
}

/// Writes `count` blocks at `lba`, checks the store, reads them back, checks the memory.
fn write_and_read(pair: &mut Pair, numbers: &mut Numbers, lba: u64, count: usize, pieces: usize) {
    let bytes = numbers.bytes(count * BLOCK);
    let written = pair.submit(
        Command::write(1, lba, blocks(count)),
        scattered(&bytes, pieces, numbers),
    );
    pair.pump();
    let done = pair.done.pop().expect("the write completes");
    assert_eq!(
        (done.id, done.status, done.received),
        (written, Status::SUCCESS, 0)
    );
    let mut stored = vec![0; bytes.len()];
    pair.store
        .read(usize::try_from(lba).unwrap() * BLOCK, &mut stored)
        .unwrap();
    assert_eq!(stored, bytes);

    let empty = vec![0xee; bytes.len()];
    let read = pair.submit(
        Command::read(1, lba, blocks(count)),
        scattered(&empty, pieces, numbers),
    );
    pair.pump();
    let done = pair.done.pop().expect("the read completes");
    assert_eq!((done.id, done.status), (read, Status::SUCCESS));
    assert_eq!(usize::try_from(done.received).unwrap(), bytes.len());
    assert_eq!(contents(&done.data), bytes);
    assert!(pair.done.is_empty());
    assert_eq!((pair.host.in_flight(), pair.controller.in_flight()), (0, 0));
}

#[test]
fn every_alignment_with_every_digest() {
    let mut numbers = Numbers::new(7);
    for hpda_z in 0..32 {
        for cpda_z in 0..32 {
            for digests in 0..4 {
                let mut pair = Pair::new(Setup {
                    host: HostParams {
                        hpda_z,
                        header_digest: digests & 1 != 0,
                        data_digest: digests & 2 != 0,
                        depth: 4,
                        in_capsule: 512,
                        ..HostParams::default()
                    },
                    controller: ControllerParams {
                        cpda_z,
                        ..ControllerParams::default()
                    },
                    store_len: 8192,
                    ..Setup::default()
                });
                write_and_read(&mut pair, &mut numbers, 1, 1, 1);
                write_and_read(&mut pair, &mut numbers, 2, 3, 1);
            }
        }
    }
}

#[test]
fn one_byte_at_a_time() {
    let mut numbers = Numbers::new(8);
    for digests in 0..4 {
        for success_flag in [false, true] {
            let mut pair = Pair::new(Setup {
                host: HostParams {
                    header_digest: digests & 1 != 0,
                    data_digest: digests & 2 != 0,
                    hpda_z: 9,
                    depth: 4,
                    in_capsule: 1024,
                    ..HostParams::default()
                },
                controller: ControllerParams {
                    cpda_z: 20,
                    max_h2c_data: 4096,
                    ..ControllerParams::default()
                },
                success_flag,
                cut: Cut::EveryByte,
                ..Setup::default()
            });
            write_and_read(&mut pair, &mut numbers, 0, 1, 1);
            write_and_read(&mut pair, &mut numbers, 5, 19, 3);
        }
    }
}

#[test]
fn payload_lands_where_it_belongs_without_staging() {
    let mut numbers = Numbers::new(9);
    for digests in [false, true] {
        let mut pair = Pair::new(Setup {
            host: HostParams {
                data_digest: digests,
                depth: 4,
                ..HostParams::default()
            },
            direct: Some(4096),
            cut: Cut::Random(Numbers::new(3)),
            ..Setup::default()
        });
        write_and_read(&mut pair, &mut numbers, 0, 1024, 1);
        assert!(
            pair.landed > 900_000,
            "only {} bytes of 1 MiB landed directly",
            pair.landed
        );
        write_and_read(&mut pair, &mut numbers, 3, 500, 40);
    }
}

#[test]
fn commands_overlap_up_to_the_depth_and_complete_each() {
    let mut numbers = Numbers::new(10);
    let mut pair = Pair::new(Setup {
        cut: Cut::Random(Numbers::new(4)),
        ..Setup::default()
    });
    for _ in 0..20 {
        let mut expected = Vec::new();
        for index in 0..32_u64 {
            let count = 1 + numbers.below(40);
            let bytes = numbers.bytes(BLOCK * count);
            let lba = index * 50;
            pair.store
                .write(usize::try_from(lba).unwrap() * BLOCK, &bytes)
                .unwrap();
            let data = Data::whole(Region::allocate(bytes.len(), 8).unwrap());
            expected.push((
                pair.submit(Command::read(1, lba, blocks(bytes.len() / BLOCK)), data),
                bytes,
            ));
        }
        assert!(pair.host.reserve().is_none());
        pair.pump();
        assert_eq!(pair.done.len(), 32);
        for (done, (id, bytes)) in pair.done.drain(..).zip(expected) {
            assert_eq!((done.id, contents(&done.data)), (id, bytes));
        }
    }
}

#[test]
fn a_command_without_data_is_answered() {
    let mut pair = Pair::new(Setup::default());
    let id = pair.submit(Command::flush(1), Data::None);
    pair.pump();
    let done = pair.done.pop().unwrap();
    assert_eq!((done.id, done.status, done.received), (id, Status::SUCCESS, 0));
}

#[test]
fn a_read_to_anywhere_gets_memory() {
    let mut pair = Pair::new(Setup::default());
    pair.store.write(1024, &[5; 4096]).unwrap();
    pair.submit(Command::read(1, 2, 8), Data::Anywhere { len: 4096 });
    pair.pump();
    let done = pair.done.pop().unwrap();
    assert_eq!(contents(&done.data), [5; 4096]);
}

#[derive(Debug, Clone)]
struct Operation {
    write: bool,
    lba: u64,
    count: usize,
    pieces: usize,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let one = (
        any::<bool>(),
        0_u64..4,
        prop_oneof![3 => 1_usize..17, 1 => 1_usize..200],
        1_usize..6,
    )
        .prop_map(|(write, lba, count, pieces)| Operation {
            write,
            lba: lba * 200,
            count,
            pieces,
        });
    proptest::collection::vec(one, 1..24)
}

prop_compose! {
    fn setups()(
        digests in 0_u8..4,
        hpda_z in 0_u8..32,
        cpda_z in 0_u8..32,
        max_r2t in 1_u16..5,
        depth in 1_u16..17,
        h2c_dwords in prop_oneof![Just(1024_u32), 1024_u32..3000, Just(1 << 18)],
        in_capsule in prop_oneof![Just(0_u32), Just(512), Just(4096), Just(8192)],
        success_flag: bool,
        cut in prop_oneof![2 => any::<u64>().prop_map(|seed| Cut::Random(Numbers::new(seed))), 1 => Just(Cut::Whole)],
        direct in proptest::option::of(prop_oneof![Just(0_usize), 1_usize..9000]),
    ) -> Setup {
        Setup {
            host: HostParams {
                header_digest: digests & 1 != 0,
                data_digest: digests & 2 != 0,
                hpda_z,
                max_r2t,
                depth,
                in_capsule,
            },
            controller: ControllerParams {
                cpda_z,
                max_h2c_data: h2c_dwords * 4,
                max_in_capsule_io: in_capsule,
                ..ControllerParams::default()
            },
            success_flag,
            cut,
            direct,
            store_len: 64 * 256 * BLOCK,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// The staged and the direct path, any negotiation and any cut give the same bytes: each operation's LBAs are its own, so
    /// that the outcome does not depend on the order of execution.
    #[test]
    fn data_arrives_whatever_was_negotiated(setup in setups(), operations in operations(), seed: u64) {
        let mut numbers = Numbers::new(seed);
        let depth = usize::from(setup.host.depth);
        let mut pair = Pair::new(setup);
        for batch in operations.chunks(depth) {
            let mut expected = Vec::new();
            for (index, operation) in batch.iter().enumerate() {
                let lba = operation.lba + u64::try_from(index).unwrap() * 1024;
                let at = usize::try_from(lba).unwrap() * BLOCK;
                let bytes = numbers.bytes(operation.count * BLOCK);
                let count = blocks(operation.count);
                let id = if operation.write {
                    pair.submit(Command::write(1, lba, count), scattered(&bytes, operation.pieces, &mut numbers))
                } else {
                    pair.store.write(at, &bytes).unwrap();
                    let empty = vec![0; bytes.len()];
                    pair.submit(Command::read(1, lba, count), scattered(&empty, operation.pieces, &mut numbers))
                };
                expected.push((id, operation.write, at, bytes));
            }
            pair.pump();
            prop_assert_eq!(pair.done.len(), expected.len());
            for (id, write, at, bytes) in expected {
                let position = pair.done.iter().position(|done| done.id == id).expect("it completes");
                let done = pair.done.swap_remove(position);
                prop_assert!(done.status.is_success());
                if write {
                    let mut stored = vec![0; bytes.len()];
                    pair.store.read(at, &mut stored).unwrap();
                    prop_assert!(stored == bytes, "the store differs");
                } else {
                    prop_assert!(contents(&done.data) == bytes, "the memory differs");
                }
            }
            prop_assert_eq!(pair.host.in_flight(), 0);
            prop_assert_eq!(pair.controller.in_flight(), 0);
        }
    }
}
