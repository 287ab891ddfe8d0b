//! What every executor promises, over RAM and files: buffered and direct, io_uring and threads.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{Subject, assert_success, bytes, each_subject, pattern, ranges, run, wait};
use homi_local::{Backing, DirectIo, File, FileBackend, FileOptions, LocalQueue, NamespaceGeometry, Ram};
use homi_queue::{Command, Data, Queue, Region, Wait};
use homi_spec::status::Status;
use proptest::prelude::*;

fn geometry(block_size: u32, bytes: u64) -> NamespaceGeometry {
    NamespaceGeometry::from_bytes(block_size, bytes).unwrap()
}

/// Memory in every shape that an issuer may bring: aligned, misaligned, scattered.
fn shapes(content: &[u8]) -> Vec<(&'static str, Data)> {
    let len = content.len();
    let aligned = Region::allocate(len, 4096).unwrap();
    let odd = Region::allocate(len + 13, 4096)
        .unwrap()
        .segment(13..13 + len)
        .unwrap();
    let list = Region::allocate(len + 64, 4096).unwrap();
    let middle = len / 3;
    let scattered = Data::List(vec![
        list.segment(len + 64 - middle..len + 64).unwrap(),
        list.segment(0..0).unwrap(),
        list.segment(1..1 + len - middle).unwrap(),
    ]);
    let shapes = vec![
        ("aligned", Data::whole(aligned)),
        ("misaligned", Data::One(odd)),
        ("scattered", scattered),
    ];
    for (_, data) in &shapes {
        data.write(0, content).unwrap();
    }
    shapes
}

#[test]
fn memory_of_every_shape_carries_reads_and_writes() {
    for block_size in [512, 4096] {
        each_subject(geometry(block_size, 4 << 20), |mut subject| {
            // Longer than one part through the queue's own memory, and single blocks.
            for len in [block_size as usize, 64 << 10, (1 << 20) + 4096] {
                let content = pattern(len as u64, len);
                let blocks = subject.blocks(len);
                for (shape, data) in shapes(&content) {
                    let name = format!("{}, {len} bytes, {shape}", subject.name);
                    let lba = 3;
                    let (status, data) = subject.run(Command::write(1, lba, blocks), data);
                    assert_success(&name, status);
                    assert_eq!(bytes(&data), content, "{name}: a write leaves its memory alone");
                    assert_eq!(subject.read(lba, len), content, "{name}");
                    data.write(0, &vec![0; len]).unwrap();
                    let (status, data) = subject.run(Command::read(1, lba, blocks), data);
                    assert_success(&name, status);
                    assert!(bytes(&data) == content, "{name}");
                    let (status, _) = subject.run(
                        Command::write_zeroes(1, lba, blocks.min(65536), false),
                        Data::None,
                    );
                    assert_success(&name, status);
                }
            }
        });
    }
}

#[test]
fn unwritten_blocks_read_as_zeroes_also_where_the_issuer_does_not_care() {
    each_subject(geometry(512, 8 << 20), |mut subject| {
        // Three megabytes are more than a queue keeps in one piece.
        assert_eq!(subject.read(7, 3 << 20), vec![0; 3 << 20], "{}", subject.name);
    });
}

#[test]
fn ram_lends_its_own_memory() {
    let mut subject = Subject::ram(geometry(4096, 1 << 20));
    let (_, first) = subject.run(Command::read(1, 5, 2), Data::Anywhere { len: 8192 });
    let (_, second) = subject.run(Command::read(1, 6, 1), Data::Anywhere { len: 4096 });
    assert_eq!(
        first.segments()[0].host_address().wrapping_add(4096),
        second.segments()[0].host_address()
    );
    subject.write(6, &[7; 4096]);
    assert_eq!(bytes(&second), [7; 4096]);
    // What was lent outlives the queue and the namespace.
    drop(subject);
    assert_eq!(bytes(&second), [7; 4096]);
}

#[test]
fn compare_finds_the_one_different_byte() {
    each_subject(geometry(512, 4 << 20), |mut subject| {
        let content = pattern(1, 600 << 10);
        subject.write(9, &content);
        let blocks = subject.blocks(content.len());
        for at in [None, Some(0), Some(content.len() / 2), Some(content.len() - 1)] {
            let mut other = content.clone();
            if let Some(at) = at {
                other[at] ^= 1;
            }
            for (shape, data) in shapes(&other) {
                let (status, data) = subject.run(Command::compare(1, 9, blocks), data);
                let name = format!("{}, {shape}, {at:?}", subject.name);
                if at.is_some() {
                    assert!(status.is(Status::COMPARE_FAILURE), "{name}: {status}");
                } else {
                    assert_success(&name, status);
                }
                assert_eq!(data.len(), content.len());
            }
        }
    });
}

#[test]
fn zeroing_touches_its_blocks_only() {
    each_subject(geometry(512, 4 << 20), |mut subject| {
        for (lba, blocks, deallocate, fua) in [
            (1, 1, false, false),
            (1, 1, true, true),
            (5, 1000, false, true),
            (5, 1000, true, false),
            (0, 8192, false, false),
            (0, 8192, true, true),
        ] {
            let mut model = pattern(4, 4 << 20);
            subject.write(0, &model);
            let command = Command::write_zeroes(1, lba, blocks, deallocate);
            let command = if fua { command.with_fua() } else { command };
            let (status, _) = subject.run(command, Data::None);
            assert_success(&subject.name, status);
            model[lba as usize * 512..(lba as usize + blocks as usize) * 512].fill(0);
            assert!(subject.read(0, 4 << 20) == model, "{}: {command:?}", subject.name);
        }
    });
}

#[test]
fn deallocation_gives_storage_back_and_reads_as_zeroes() {
    each_subject(geometry(4096, 4 << 20), |mut subject| {
        let mut model = pattern(5, 4 << 20);
        subject.write(0, &model);
        let (status, _) = subject.run(Command::flush(1), Data::None);
        assert_success(&subject.name, status);
        let used = |subject: &Subject| {
            subject
                .scratch
                .as_ref()
                .map(|scratch| fs::metadata(scratch.path()).unwrap().blocks())
        };
        let before = used(&subject);
        let holes = [(0, 16), (100, 0), (300, 700), (1023, 1)];
        let (status, data) = subject.run(Command::deallocate(1, 4), ranges(&holes));
        assert_success(&subject.name, status);
        assert_eq!(data.len(), 64, "the ranges come back");
        for (lba, blocks) in holes {
            model[lba as usize * 4096..(lba as usize + blocks as usize) * 4096].fill(0);
        }
        assert!(subject.backing.geometry().deallocated_reads_zeroes());
        assert!(subject.read(0, 4 << 20) == model, "{}", subject.name);
        if let (Some(before), Some(after)) = (before, used(&subject)) {
            assert!(
                after + 700 * 8 <= before,
                "{}: {before} sectors, then {after}",
                subject.name
            );
        }
        // The file keeps its size.
        subject.write(1023, &[1; 4096]);
    });
}

#[test]
fn two_hundred_and_fifty_six_ranges_are_deallocated() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let mut model = pattern(6, 1 << 20);
        subject.write(0, &model);
        let holes: Vec<_> = (0..256).map(|n| (n * 8, 3)).collect();
        let (status, _) = subject.run(Command::deallocate(1, 256), ranges(&holes));
        assert_success(&subject.name, status);
        for (lba, blocks) in holes {
            model[lba as usize * 512..(lba as usize + blocks as usize) * 512].fill(0);
        }
        assert!(subject.read(0, 1 << 20) == model, "{}", subject.name);
    });
}

#[test]
fn one_range_past_the_end_and_nothing_is_deallocated() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        subject.write(0, &[9; 4096]);
        let (status, _) = subject.run(Command::deallocate(1, 2), ranges(&[(0, 8), (2047, 2)]));
        assert!(status.is(Status::LBA_OUT_OF_RANGE), "{}: {status}", subject.name);
        assert_eq!(subject.read(0, 4096), [9; 4096], "{}", subject.name);
    });
}

#[test]
fn hints_are_taken_and_change_nothing() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        subject.write(0, &[9; 4096]);
        let mut command = Command::deallocate(1, 1);
        command.0.cdw11 = 3.into();
        let (status, _) = subject.run(command, ranges(&[(0, 8)]));
        assert_success(&subject.name, status);
        assert_eq!(subject.read(0, 4096), [9; 4096]);
    });
}

#[test]
fn verify_flush_and_forced_access_succeed() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let content = pattern(8, 700 << 10);
        let blocks = subject.blocks(content.len());
        for (shape, data) in shapes(&content) {
            let (status, _) = subject.run(Command::write(1, 1, blocks).with_fua(), data);
            assert_success(shape, status);
        }
        for command in [
            Command::flush(1),
            Command::verify(1, 1, blocks),
            Command::verify(1, 1, blocks).with_fua(),
        ] {
            let (status, _) = subject.run(command, Data::None);
            assert_success(&subject.name, status);
        }
        for (shape, data) in shapes(&vec![0; content.len()]) {
            let (status, data) = subject.run(Command::read(1, 1, blocks).with_fua(), data);
            assert_success(shape, status);
            assert!(bytes(&data) == content, "{}, {shape}", subject.name);
            let (status, _) = subject.run(Command::compare(1, 1, blocks).with_fua(), data);
            assert_success(shape, status);
        }
    });
}

#[test]
fn what_lies_past_the_end_is_refused_and_the_memory_comes_back() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let data = || Data::whole(Region::allocate(1024, 4096).unwrap());
        for (command, data, expected) in [
            (Command::write(1, 2047, 2), data(), Status::LBA_OUT_OF_RANGE),
            (Command::read(1, 2048, 2), data(), Status::LBA_OUT_OF_RANGE),
            (Command::read(1, u64::MAX, 2), data(), Status::LBA_OUT_OF_RANGE),
            (Command::compare(1, 1 << 50, 2), data(), Status::LBA_OUT_OF_RANGE),
            (Command::verify(1, 2040, 9), Data::None, Status::LBA_OUT_OF_RANGE),
            (
                Command::write_zeroes(1, 0, 2049, true),
                Data::None,
                Status::LBA_OUT_OF_RANGE,
            ),
            (Command::read(1, 0, 1), data(), Status::SGL_DATA_LENGTH_INVALID),
            (
                Command::write(1, 0, 2),
                Data::Anywhere { len: 1024 },
                Status::SGL_DATA_LENGTH_INVALID,
            ),
            (
                Command::write(1, 0, 1),
                Data::None,
                Status::SGL_DATA_LENGTH_INVALID,
            ),
        ] {
            let len = data.len();
            let (status, data) = subject.run(command, data);
            assert!(
                status.is(expected) && status.dnr(),
                "{}: {command:?}: {status}",
                subject.name
            );
            assert_eq!(data.len(), len);
        }
        if let Some(scratch) = &subject.scratch {
            assert_eq!(
                fs::metadata(scratch.path()).unwrap().len(),
                1 << 20,
                "the file did not grow"
            );
        }
    });
}

#[test]
fn unknown_commands_are_refused() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        for opcode in [0x03, 0x04, 0x0d, 0x19, 0x7f, 0x80, 0xff] {
            let mut command = Command::read(1, 0, 1);
            command.0.opcode = opcode;
            let data = Data::whole(Region::allocate(512, 512).unwrap());
            let (status, data) = subject.run(command, data);
            assert!(
                status.is(Status::INVALID_OPCODE),
                "{}: {opcode:#x}: {status}",
                subject.name
            );
            assert_eq!(data.len(), 512);
        }
    });
}

#[test]
fn a_write_protected_file_is_only_read() {
    each_subject(geometry(512, 1 << 20).with_read_only(true), |mut subject| {
        let data = || Data::whole(Region::allocate(512, 4096).unwrap());
        for (command, data) in [
            (Command::write(1, 0, 1), data()),
            (Command::write_zeroes(1, 0, 1, true), Data::None),
            (Command::deallocate(1, 1), ranges(&[(0, 1)])),
        ] {
            let (status, _) = subject.run(command, data);
            assert!(
                status.is(Status::NAMESPACE_WRITE_PROTECTED),
                "{}: {status}",
                subject.name
            );
        }
        assert_eq!(subject.read(0, 512), [0; 512]);
        for (command, data) in [
            (Command::compare(1, 0, 1), data()),
            (Command::flush(1), Data::None),
        ] {
            let (status, _) = subject.run(command, data);
            assert_success(&subject.name, status);
        }
    });
}

#[test]
fn a_file_cut_short_behind_our_back_is_a_read_error_and_not_zeroes() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let Some(path) = subject.scratch.as_ref().map(|scratch| scratch.path().to_owned()) else {
            return;
        };
        subject.write(0, &pattern(3, 1 << 20));
        // In the middle of a block, which direct I/O does not like.
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len((512 << 10) + 100)
            .unwrap();
        for (shape, data) in shapes(&[0; 8192]) {
            for lba in [1020, 1024, 1500] {
                let (status, data) = subject.run(Command::read(1, lba, 16), clone(&data));
                assert!(
                    status.is(Status::UNRECOVERED_READ_ERROR),
                    "{}, {shape}: {status}",
                    subject.name
                );
                assert_eq!(data.len(), 8192);
                let (status, _) = subject.run(Command::compare(1, lba, 16), data);
                assert!(
                    status.is(Status::UNRECOVERED_READ_ERROR),
                    "{}, {shape}: {status}",
                    subject.name
                );
            }
        }
        let (status, data) = subject.run(Command::read(1, 1500, 16), Data::Anywhere { len: 8192 });
        assert!(
            status.is(Status::UNRECOVERED_READ_ERROR),
            "{}: {status}",
            subject.name
        );
        assert!(
            matches!(data, Data::Anywhere { len: 8192 }),
            "nothing is lent with an error"
        );
        let (status, _) = subject.run(Command::verify(1, 1500, 16), Data::None);
        assert!(
            status.is(Status::UNRECOVERED_READ_ERROR),
            "{}: {status}",
            subject.name
        );
        let LocalQueue::File(queue) = &mut subject.queue else {
            panic!("a file's queue")
        };
        assert!(queue.counters().failures >= 20);
        assert!(
            queue
                .take_failure()
                .unwrap()
                .to_string()
                .contains("unexpected end of file")
        );
        // What is still there is still served.
        assert_eq!(subject.read(0, 8192), pattern(3, 8192));
    });
}

fn clone(data: &Data) -> Data {
    match data {
        Data::One(segment) => Data::One(segment.clone()),
        Data::List(list) => Data::List(list.clone()),
        _ => Data::None,
    }
}

#[test]
fn every_slot_is_usable_and_every_command_completes_once() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        for round in 0..20_u64 {
            let mut expected = Vec::new();
            while let Ok(slot) = subject.queue.reserve() {
                let lba = expected.len() as u64 * 8;
                let data = shapes(&pattern(round + lba, 4096))
                    .swap_remove(expected.len() % 3)
                    .1;
                expected.push(subject.queue.submit(slot, Command::write(1, lba, 8), data));
            }
            assert_eq!(expected.len(), usize::from(subject.queue.depth()));
            subject.queue.commit().unwrap();
            let mut done = wait(&mut subject.queue, expected.len());
            assert!(done.iter().all(|done| done.completion.is_success()));
            if matches!(subject.queue, LocalQueue::Ram(_)) {
                let order: Vec<_> = done.iter().map(|done| done.id).collect();
                assert_eq!(order, expected, "RAM completes in the order of submission");
            }
            done.sort_by_key(|done| done.id);
            expected.sort();
            assert_eq!(done.iter().map(|done| done.id).collect::<Vec<_>>(), expected);
            for lba in 0..u64::from(subject.queue.depth()) {
                assert_eq!(subject.read(lba * 8, 4096), pattern(round + lba * 8, 4096));
            }
        }
    });
}

#[test]
fn a_slot_given_back_is_usable_again() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let slots: Vec<_> = std::iter::from_fn(|| subject.queue.reserve().ok()).collect();
        assert_eq!(slots.len(), usize::from(subject.queue.depth()));
        for slot in slots {
            subject.queue.release(slot);
        }
        assert_eq!(subject.read(0, 512), [0; 512]);
    });
}

#[test]
fn sleepers_have_something_to_sleep_on_where_completions_come_by_themselves() {
    each_subject(geometry(512, 1 << 20), |subject| {
        let is_file = matches!(subject.backing, Backing::File(_));
        assert_eq!(subject.queue.wait_descriptor().is_some(), is_file);
    });
}

#[test]
fn shards_see_each_others_writes() {
    each_subject(geometry(4096, 4 << 20), |mut subject| {
        let threads: Vec<_> = (0..4_u64)
            .map(|shard| {
                let mut queue = subject.another_queue();
                std::thread::spawn(move || {
                    for n in 0..32 {
                        let lba = shard * 256 + n;
                        let data = Data::whole(Region::from_vec(pattern(lba, 4096)));
                        let (status, _) = run(&mut queue, Command::write(1, lba, 1), data);
                        assert!(status.is_success());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        for lba in (0..4).flat_map(|shard| (0..32).map(move |n| shard * 256 + n)) {
            assert_eq!(subject.read(lba, 4096), pattern(lba, 4096), "{}", subject.name);
        }
    });
}

#[test]
fn dropping_a_queue_lets_go_of_all_memory() {
    each_subject(geometry(4096, 4 << 20), |mut subject| {
        let region = Region::allocate(1 << 20, 4096).unwrap();
        for lba in 0..8 {
            let slot = subject.queue.reserve().unwrap();
            subject
                .queue
                .submit(slot, Command::read(1, lba, 256), Data::whole(region.clone()));
        }
        subject.queue.commit().unwrap();
        drop(subject);
        assert!(region.is_unique());
    });
}

#[test]
fn bytes_in_the_file_are_the_bytes_of_the_namespace() {
    each_subject(geometry(512, 1 << 20), |mut subject| {
        let Some(path) = subject.scratch.as_ref().map(|scratch| scratch.path().to_owned()) else {
            return;
        };
        subject.write(3, &[5; 512]);
        let (status, _) = subject.run(Command::flush(1), Data::None);
        assert_success(&subject.name, status);
        let mut bytes = [0; 1024];
        fs::File::open(path)
            .unwrap()
            .read_exact_at(&mut bytes, 3 * 512 - 256)
            .unwrap();
        assert_eq!(bytes[..256], [0; 256]);
        assert_eq!(bytes[256..768], [5; 512]);
        assert_eq!(bytes[768..], [0; 256]);
    });
}

#[test]
fn a_gibibyte_of_ram_is_there_at_once() {
    let ram = Ram::new(geometry(4096, 1 << 30)).unwrap();
    let mut queue = Backing::from(ram).open_queue(4, FileBackend::Auto).unwrap();
    let (status, _) = run(&mut queue, Command::write_zeroes(1, 0, 65536, true), Data::None);
    assert!(status.is_success());
    let (status, data) = run(
        &mut queue,
        Command::read(1, (1 << 18) - 1, 1),
        Data::Anywhere { len: 4096 },
    );
    assert!(status.is_success());
    assert_eq!(bytes(&data), [0; 4096]);
}

/// A block device to write to, named by a person who can spare it: its content is lost.
#[test]
fn a_block_device_is_served() {
    let Some(path) = std::env::var_os("HOMI_TEST_BLOCK_DEVICE") else {
        eprintln!("skipped: HOMI_TEST_BLOCK_DEVICE names no block device whose content may be lost");
        return;
    };
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        for direct in [DirectIo::Never, DirectIo::Auto] {
            let file = File::open(&FileOptions::new(Path::new(&path)).direct(direct)).unwrap();
            assert!(file.is_block_device());
            assert!(!file.geometry().deallocated_reads_zeroes());
            assert!(
                direct == DirectIo::Never || file.is_direct(),
                "{:?}",
                file.buffered_reason()
            );
            let len = 1 << 20;
            let block = file.geometry().block_size() as usize;
            let mut queue = Backing::from(file).open_queue(8, backend).unwrap();
            let blocks = u32::try_from(len / block).unwrap();
            for deallocate in [false, true] {
                let content = pattern(1, len);
                let data = Data::whole(Region::from_vec(content.clone()));
                assert_success(
                    "write",
                    run(&mut queue, Command::write(1, 1, blocks).with_fua(), data).0,
                );
                let (status, data) = run(&mut queue, Command::read(1, 1, blocks), Data::Anywhere { len });
                assert_success("read", status);
                assert!(bytes(&data) == content);
                let zero = Command::write_zeroes(1, 1, blocks, deallocate).with_fua();
                assert_success("zero", run(&mut queue, zero, Data::None).0);
                let (status, data) = run(&mut queue, Command::read(1, 1, blocks), Data::Anywhere { len });
                assert_success("read", status);
                assert!(bytes(&data) == vec![0; len]);
                let deallocate = run(&mut queue, Command::deallocate(1, 1), ranges(&[(1, blocks)])).0;
                assert_success("deallocate", deallocate);
                assert_success("flush", run(&mut queue, Command::flush(1), Data::None).0);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Write {
        lba: u64,
        blocks: u32,
        seed: u64,
        shape: usize,
        fua: bool,
    },
    Read {
        lba: u64,
        blocks: u32,
        shape: Option<usize>,
    },
    Zero {
        lba: u64,
        blocks: u32,
        deallocate: bool,
    },
    Deallocate {
        ranges: Vec<(u64, u32)>,
    },
    Compare {
        lba: u64,
        blocks: u32,
        shape: usize,
        differing: Option<usize>,
    },
    Verify {
        lba: u64,
        blocks: u32,
    },
    Flush,
}

const MODEL_BLOCKS: u64 = 80;

fn action() -> impl Strategy<Value = Action> {
    // Some ranges end past the namespace.
    let lba = 0..MODEL_BLOCKS + 2;
    let blocks = 1..24_u32;
    prop_oneof![
        (
            lba.clone(),
            blocks.clone(),
            any::<u64>(),
            0..3_usize,
            any::<bool>()
        )
            .prop_map(|(lba, blocks, seed, shape, fua)| Action::Write {
                lba,
                blocks,
                seed,
                shape,
                fua
            }),
        (lba.clone(), blocks.clone(), proptest::option::of(0..3_usize))
            .prop_map(|(lba, blocks, shape)| Action::Read { lba, blocks, shape }),
        (lba.clone(), blocks.clone(), any::<bool>()).prop_map(|(lba, blocks, deallocate)| Action::Zero {
            lba,
            blocks,
            deallocate
        }),
        proptest::collection::vec((lba.clone(), 0..24_u32), 1..5)
            .prop_map(|ranges| Action::Deallocate { ranges }),
        (
            lba.clone(),
            blocks.clone(),
            0..3_usize,
            proptest::option::of(any::<usize>())
        )
            .prop_map(|(lba, blocks, shape, differing)| Action::Compare {
                lba,
                blocks,
                shape,
                differing
            }),
        (lba, blocks).prop_map(|(lba, blocks)| Action::Verify { lba, blocks }),
        Just(Action::Flush),
    ]
}

/// Executes the action on the model: the status, and the bytes that a read gives.
fn on_model(model: &mut [u8], action: &Action) -> (Status, Option<Vec<u8>>) {
    let part = |lba: u64, blocks: u32| {
        let fits = lba + u64::from(blocks) <= MODEL_BLOCKS;
        fits.then(|| lba as usize * 512..(lba as usize + blocks as usize) * 512)
    };
    let past_the_end = (Status::LBA_OUT_OF_RANGE, None);
    match *action {
        Action::Write {
            lba, blocks, seed, ..
        } => {
            let Some(range) = part(lba, blocks) else {
                return past_the_end;
            };
            model[range.clone()].copy_from_slice(&pattern(seed, range.len()));
        }
        Action::Read { lba, blocks, .. } => {
            let Some(range) = part(lba, blocks) else {
                return past_the_end;
            };
            return (Status::SUCCESS, Some(model[range].to_vec()));
        }
        Action::Zero { lba, blocks, .. } => {
            let Some(range) = part(lba, blocks) else {
                return past_the_end;
            };
            model[range].fill(0);
        }
        Action::Deallocate { ref ranges } => {
            let parts: Option<Vec<_>> = ranges.iter().map(|(lba, blocks)| part(*lba, *blocks)).collect();
            let Some(parts) = parts else { return past_the_end };
            parts.into_iter().for_each(|range| model[range].fill(0));
        }
        Action::Compare {
            lba,
            blocks,
            differing,
            ..
        } => {
            if part(lba, blocks).is_none() {
                return past_the_end;
            }
            if differing.is_some() {
                return (Status::COMPARE_FAILURE, None);
            }
        }
        Action::Verify { lba, blocks } => {
            if part(lba, blocks).is_none() {
                return past_the_end;
            }
        }
        Action::Flush => {}
    }
    (Status::SUCCESS, None)
}

fn on_subject(subject: &mut Subject, model: &[u8], action: &Action) -> (Status, Option<Vec<u8>>) {
    let shape = |number: usize, content: &[u8]| shapes(content).swap_remove(number).1;
    match *action {
        Action::Write {
            lba,
            blocks,
            seed,
            shape: number,
            fua,
        } => {
            let command = Command::write(1, lba, blocks);
            let command = if fua { command.with_fua() } else { command };
            (
                subject
                    .run(command, shape(number, &pattern(seed, blocks as usize * 512)))
                    .0,
                None,
            )
        }
        Action::Read {
            lba,
            blocks,
            shape: number,
        } => {
            let len = blocks as usize * 512;
            let data = number.map_or(Data::Anywhere { len }, |number| shape(number, &vec![0xee; len]));
            let (status, data) = subject.run(Command::read(1, lba, blocks), data);
            (status, status.is_success().then(|| bytes(&data)))
        }
        Action::Zero {
            lba,
            blocks,
            deallocate,
        } => (
            subject
                .run(Command::write_zeroes(1, lba, blocks, deallocate), Data::None)
                .0,
            None,
        ),
        Action::Deallocate { ranges: ref list } => {
            let count = u32::try_from(list.len()).unwrap();
            (subject.run(Command::deallocate(1, count), ranges(list)).0, None)
        }
        Action::Compare {
            lba,
            blocks,
            shape: number,
            differing,
        } => {
            let (at, len) = (lba as usize * 512, blocks as usize * 512);
            let mut content: Vec<u8> = model
                .iter()
                .skip(at)
                .copied()
                .chain(std::iter::repeat(0))
                .take(len)
                .collect();
            if let Some(at) = differing {
                content[at % len] ^= 0x80;
            }
            (
                subject
                    .run(Command::compare(1, lba, blocks), shape(number, &content))
                    .0,
                None,
            )
        }
        Action::Verify { lba, blocks } => (subject.run(Command::verify(1, lba, blocks), Data::None).0, None),
        Action::Flush => (subject.run(Command::flush(1), Data::None).0, None),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_do_what_a_vector_would(actions in proptest::collection::vec(action(), 1..60)) {
        each_subject(geometry(512, MODEL_BLOCKS * 512), |mut subject| {
            let mut model = vec![0; usize::try_from(MODEL_BLOCKS).unwrap() * 512];
            for action in &actions {
                let got = on_subject(&mut subject, &model, action);
                let expected = on_model(&mut model, action);
                assert!(got.0.is(expected.0), "{}: {action:?}: {} instead of {}", subject.name, got.0, expected.0);
                assert!(got.1 == expected.1, "{}: {action:?}: other bytes", subject.name);
            }
            assert!(subject.read(0, model.len()) == model, "{}", subject.name);
        });
    }
}
