//! Both back ends, same bodies.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use homi_queue::{Buffer, Region};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "homi-file-ring-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self) -> File {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.0)
            .unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

const FILE: FileIndex = FileIndex(0);

fn ring(depth: u16, file: &File, backend: FileBackend) -> Option<FileRing> {
    let files = vec![Arc::new(OwnedFd::from(file.try_clone().unwrap()))];
    match FileRing::new(depth, files, backend) {
        Ok(ring) => Some(ring),
        Err(error) => {
            assert_eq!(
                backend,
                FileBackend::IoUring,
                "threads are always available: {error}"
            );
            eprintln!("skipped: io_uring is not available: {error}");
            None
        }
    }
}

fn each_backend(body: impl Fn(&mut FileRing, &File)) {
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        let scratch = Scratch::new();
        let file = scratch.open();
        if let Some(mut ring) = ring(8, &file, backend) {
            assert_eq!(ring.backend(), backend);
            body(&mut ring, &file);
        }
    }
}

type Outcome = (u64, io::Result<u32>, Data);

fn wait(ring: &mut FileRing, count: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while outcomes.len() < count {
        ring.poll(&mut |token, outcome, data| outcomes.push((token, outcome, data)))
            .unwrap();
        assert!(
            Instant::now() < deadline,
            "{} of {count} operations are over",
            outcomes.len()
        );
        if outcomes.len() < count {
            let mut descriptor = [PollFd::new(ring.wait_descriptor(), PollFlags::POLLIN)];
            let _ = poll(&mut descriptor, PollTimeout::from(100_u8));
        }
    }
    outcomes
}

fn run(ring: &mut FileRing, operation: Operation, data: Data) -> (io::Result<u32>, Data) {
    ring.push(77, FILE, operation, data).unwrap();
    ring.submit().unwrap();
    let (token, outcome, data) = wait(ring, 1).remove(0);
    assert_eq!(token, 77);
    (outcome, data)
}

fn errno(outcome: &io::Result<u32>) -> i32 {
    outcome.as_ref().unwrap_err().raw_os_error().unwrap()
}

#[test]
fn bytes_written_come_back_in_the_same_memory() {
    each_backend(|ring, file| {
        let buffer = Buffer::from_vec((0..=255).cycle().take(10_000).collect());
        let address = buffer.as_ptr();
        let (outcome, data) = run(
            ring,
            Operation::Write {
                offset: 5,
                durable: true,
            },
            buffer.into_data(),
        );
        assert_eq!(outcome.unwrap(), 10_000);
        let mut buffer = Buffer::try_from_data(data).unwrap();
        assert_eq!(buffer.as_ptr(), address);
        let written = buffer.to_vec();
        buffer.fill(0);
        let (outcome, data) = run(ring, Operation::Read { offset: 5 }, buffer.into_data());
        assert_eq!(outcome.unwrap(), 10_000);
        assert_eq!(Buffer::try_from_data(data).unwrap().to_vec(), written);
        assert_eq!(file.metadata().unwrap().len(), 10_005);
        for operation in [Operation::Sync, Operation::SyncData, Operation::Nop] {
            assert_eq!(run(ring, operation, Data::None).0.unwrap(), 0);
        }
    });
}

#[test]
fn lists_longer_than_one_call_are_continued() {
    each_backend(|ring, file| {
        let region = Region::from_vec((0..3000_u16).flat_map(|n| n.to_le_bytes()).collect());
        // Backwards, so that every range is separate.
        let list = (0..3000)
            .rev()
            .map(|n| region.segment(n * 2..n * 2 + 2).unwrap())
            .collect();
        let (outcome, data) = run(
            ring,
            Operation::Write {
                offset: 0,
                durable: false,
            },
            Data::List(list),
        );
        assert_eq!(outcome.unwrap(), 6000);
        let mut bytes = vec![0; 6000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let expected: Vec<u8> = (0..3000_u16).rev().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(bytes, expected);
        region.fill(0, 6000, 0).unwrap();
        let (outcome, data) = run(ring, Operation::Read { offset: 0 }, data);
        assert_eq!(outcome.unwrap(), 6000);
        data.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, expected);
    });
}

#[test]
fn a_read_ends_short_at_the_end_of_the_file_only() {
    each_backend(|ring, file| {
        file.write_all_at(&[9; 1000], 0).unwrap();
        let (outcome, data) = run(
            ring,
            Operation::Read { offset: 900 },
            Buffer::allocate(4096).unwrap().into(),
        );
        assert_eq!(outcome.unwrap(), 100);
        let buffer = Buffer::try_from_data(data).unwrap();
        assert_eq!((&buffer[..100], buffer[100]), (&[9; 100][..], 0));
        let (outcome, _) = run(ring, Operation::Read { offset: 1 << 30 }, buffer.into_data());
        assert_eq!(outcome.unwrap(), 0);
    });
}

#[test]
fn holes_and_zero_ranges_read_as_zeroes_and_keep_the_size() {
    each_backend(|ring, file| {
        file.write_all_at(&[9; 65536], 0).unwrap();
        for (number, operation) in [
            Operation::PunchHole {
                offset: 4096,
                len: 4096,
            },
            Operation::ZeroRange {
                offset: 16384,
                len: 512,
            },
            Operation::Allocate {
                offset: 0,
                len: 1 << 20,
            },
        ]
        .into_iter()
        .enumerate()
        {
            match run(ring, operation, Data::None).0 {
                Ok(_) => {
                    let mut bytes = [1; 512];
                    file.read_exact_at(&mut bytes, [4096, 16384, 0][number]).unwrap();
                    assert_eq!(bytes, [[0; 512], [0; 512], [9; 512]][number]);
                }
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    eprintln!("skipped: this file system has no {operation:?}");
                }
                Err(error) => panic!("{operation:?}: {error}"),
            }
        }
        assert_eq!(file.metadata().unwrap().len(), 65536);
    });
}

#[test]
fn block_device_requests_on_a_file_are_refused_by_the_system() {
    each_backend(|ring, file| {
        file.write_all_at(&[9; 4096], 0).unwrap();
        for operation in [
            Operation::Discard { offset: 0, len: 4096 },
            Operation::ZeroOut { offset: 0, len: 4096 },
        ] {
            let outcome = run(ring, operation, Data::None).0;
            assert!(
                [libc::ENOTTY, libc::EINVAL].contains(&errno(&outcome)),
                "{outcome:?}"
            );
        }
        // The ring goes on, and both kinds go through it side by side.
        ring.push(1, FILE, Operation::Discard { offset: 0, len: 4096 }, Data::None)
            .unwrap();
        ring.push(
            2,
            FILE,
            Operation::Read { offset: 0 },
            Buffer::allocate(4096).unwrap().into(),
        )
        .unwrap();
        ring.push(3, FILE, Operation::ZeroOut { offset: 0, len: 4096 }, Data::None)
            .unwrap();
        ring.submit().unwrap();
        let mut tokens: Vec<_> = wait(ring, 3).into_iter().map(|(token, ..)| token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2, 3]);
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn errors_name_what_the_system_said_and_give_the_memory_back() {
    let scratch = Scratch::new();
    scratch.open();
    let read_only = File::open(&scratch.0).unwrap();
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        let Some(mut ring) = ring(2, &read_only, backend) else {
            continue;
        };
        let data = Buffer::allocate(512).unwrap().into();
        let (outcome, data) = run(
            &mut ring,
            Operation::Write {
                offset: 0,
                durable: false,
            },
            data,
        );
        assert_eq!(errno(&outcome), libc::EBADF);
        assert!(Buffer::try_from_data(data).is_ok());
    }
}

#[test]
fn what_cannot_be_taken_is_handed_back() {
    each_backend(|ring, _| {
        let read = Operation::Read { offset: 0 };
        for token in 0..8 {
            ring.push(token, FILE, Operation::Nop, Data::None).unwrap();
        }
        let refused = ring
            .push(8, FILE, read, Buffer::allocate(512).unwrap().into())
            .unwrap_err();
        assert_eq!((refused.reason, refused.data.len()), (Refusal::Full, 512));
        ring.submit().unwrap();
        assert_eq!(wait(ring, 8).len(), 8);
        let refused = ring.push(0, FileIndex(1), read, Data::None).unwrap_err();
        assert_eq!(refused.reason, Refusal::UnknownFile);
        let refused = ring.push(0, FILE, read, Data::Anywhere { len: 512 }).unwrap_err();
        assert_eq!(refused.reason, Refusal::Memory);
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn the_wait_descriptor_wakes_and_empty_polls_make_no_system_call() {
    each_backend(|ring, _| {
        let readable = |ring: &FileRing, timeout: u16| {
            let mut descriptor = [PollFd::new(ring.wait_descriptor(), PollFlags::POLLIN)];
            poll(&mut descriptor, PollTimeout::from(timeout)).unwrap() > 0
        };
        for round in 0..3 {
            assert!(!readable(ring, 0), "round {round}: nothing is in flight");
            ring.push(0, FILE, Operation::SyncData, Data::None).unwrap();
            ring.submit().unwrap();
            assert!(readable(ring, 20_000), "round {round}: the operation's end wakes");
            assert_eq!(wait(ring, 1).len(), 1);
        }
        let before = ring.counters();
        for _ in 0..1000 {
            assert_eq!(
                ring.poll(&mut |_, _, _| panic!("nothing is in flight")).unwrap(),
                0
            );
        }
        ring.submit().unwrap();
        let after = ring.counters();
        assert_eq!(after.operations, before.operations);
        // The bell of the last operation may ring after its completion was taken, and is answered once.
        let calls = after.system_calls - before.system_calls;
        assert!(calls <= 2, "{calls} system calls");
    });
}

#[test]
fn a_batch_is_one_system_call_on_io_uring() {
    let scratch = Scratch::new();
    let file = scratch.open();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let Some(mut ring) = ring(32, &file, FileBackend::IoUring) else {
        return;
    };
    let before = ring.counters();
    for token in 0..32 {
        ring.push(
            token,
            FILE,
            Operation::Read { offset: 0 },
            Buffer::allocate(4096).unwrap().into(),
        )
        .unwrap();
    }
    ring.submit().unwrap();
    let after = ring.counters();
    assert_eq!(
        (
            after.operations - before.operations,
            after.system_calls - before.system_calls
        ),
        (32, 1)
    );
    assert_eq!(wait(&mut ring, 32).len(), 32);
}

#[test]
fn closing_hands_every_memory_back_and_executes_nothing_unsubmitted() {
    each_backend(|ring, file| {
        let write = |offset| Operation::Write {
            offset,
            durable: true,
        };
        for token in 0..4 {
            let data = Buffer::from_vec(vec![5; 4096]).into_data();
            ring.push(token, FILE, write(token * 4096), data).unwrap();
        }
        ring.submit().unwrap();
        ring.push(
            4,
            FILE,
            write(1 << 20),
            Buffer::from_vec(vec![5; 4096]).into_data(),
        )
        .unwrap();
        let mut back = Vec::new();
        ring.close(&mut |token, data| back.push((token, Buffer::try_from_data(data).unwrap().len())));
        back.sort_unstable();
        assert_eq!(back, (0..5).map(|token| (token, 4096)).collect::<Vec<_>>());
        assert!(
            file.metadata().unwrap().len() <= 4 * 4096,
            "the unsubmitted write was not executed"
        );
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn dropping_a_ring_lets_go_of_memory_and_file() {
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        let scratch = Scratch::new();
        let file = scratch.open();
        let Some(mut ring) = ring(4, &file, backend) else {
            continue;
        };
        let region = Region::allocate(1 << 20, 4096).unwrap();
        for token in 0..4 {
            let data = Data::whole(region.clone());
            ring.push(
                token,
                FILE,
                Operation::Write {
                    offset: 0,
                    durable: false,
                },
                data,
            )
            .unwrap();
        }
        ring.submit().unwrap();
        drop(ring);
        assert!(region.is_unique(), "{backend:?}");
    }
}

#[test]
fn a_ring_may_move_to_another_thread_with_operations_in_flight() {
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        let scratch = Scratch::new();
        let file = scratch.open();
        file.write_all_at(&[3; 8192], 0).unwrap();
        let Some(mut ring) = ring(4, &file, backend) else {
            continue;
        };
        ring.push(
            1,
            FILE,
            Operation::Read { offset: 0 },
            Buffer::allocate(4096).unwrap().into(),
        )
        .unwrap();
        ring.submit().unwrap();
        let moved = std::thread::spawn(move || {
            ring.push(
                2,
                FILE,
                Operation::Read { offset: 4096 },
                Buffer::allocate(4096).unwrap().into(),
            )
            .unwrap();
            ring.submit().unwrap();
            wait(&mut ring, 2).len()
        });
        assert_eq!(moved.join().unwrap(), 2);
    }
}

#[test]
fn operations_outlive_the_thread_that_submitted_them() {
    for backend in [FileBackend::IoUring, FileBackend::Threads] {
        let scratch = Scratch::new();
        let file = scratch.open();
        let Some(mut ring) = ring(8, &file, backend) else {
            continue;
        };
        let submitter = std::thread::spawn(move || {
            for token in 0..8 {
                let operation = Operation::Write {
                    offset: token << 20,
                    durable: true,
                };
                ring.push(token, FILE, operation, Buffer::from_vec(vec![8; 1 << 20]).into())
                    .unwrap();
            }
            ring.submit().unwrap();
            ring
        });
        let mut ring = submitter.join().unwrap();
        for (_, outcome, _) in wait(&mut ring, 8) {
            assert_eq!(outcome.unwrap(), 1 << 20, "{backend:?}");
        }
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
    }
}

#[test]
fn a_reactor_asleep_is_woken_by_the_ring() {
    use crate::{BackendChoice, Event, Options, Reactor, Wait};
    for choice in [BackendChoice::IoUring, BackendChoice::Readiness] {
        each_backend(|ring, _| {
            let options = Options {
                backend: choice,
                ..Options::default()
            };
            let Ok(mut reactor) = Reactor::new(options) else {
                eprintln!("skipped: {choice:?} is not available");
                return;
            };
            let watched = reactor.add_watched(ring.wait_descriptor(), 9).unwrap();
            for round in 0..20 {
                ring.push(
                    1,
                    FILE,
                    Operation::Write {
                        offset: 0,
                        durable: true,
                    },
                    Buffer::allocate(4096).unwrap().into(),
                )
                .unwrap();
                ring.submit().unwrap();
                let deadline = Instant::now() + Duration::from_secs(20);
                let mut over = 0;
                while over == 0 {
                    reactor.watch(watched);
                    let mut woken = false;
                    while !woken {
                        assert!(Instant::now() < deadline, "{choice:?}, round {round}");
                        reactor
                            .turn(Wait::Sleep(Some(Duration::from_secs(5))), &mut |event| {
                                woken |= matches!(event, Event::Readable { token: 9 });
                            })
                            .unwrap();
                    }
                    // An operation in several steps, or one that has to be repeated, wakes before it is over.
                    over = ring
                        .poll(&mut |_, outcome, _| assert_eq!(outcome.unwrap(), 4096))
                        .unwrap();
                }
                assert_eq!(over, 1);
            }
        });
    }
}

#[test]
fn the_outcome_of_a_call_decides_what_is_next() {
    let read = Operation::Read { offset: 0 };
    let write = Operation::Write {
        offset: 0,
        durable: false,
    };
    assert!(matches!(step(read, 0, 10, 10), Step::Over(Ok(10))));
    assert!(matches!(step(read, 0, 10, 4), Step::Continue { done: 4 }));
    assert!(matches!(step(read, 4, 10, 0), Step::Over(Ok(4))));
    assert!(matches!(
        step(read, 4, 10, -i64::from(libc::EINVAL)),
        Step::Over(Ok(4))
    ));
    assert!(matches!(
        step(read, 0, 10, -i64::from(libc::EINVAL)),
        Step::Over(Err(_))
    ));
    assert!(matches!(
        step(read, 4, 10, -i64::from(libc::EIO)),
        Step::Over(Err(_))
    ));
    assert!(matches!(step(read, 4, 10, -i64::from(libc::EINTR)), Step::Repeat));
    assert!(matches!(step(write, 4, 10, 6), Step::Over(Ok(10))));
    match step(write, 4, 10, 0) {
        Step::Over(Err(error)) => assert_eq!(error.raw_os_error(), Some(libc::ENOSPC)),
        _ => panic!("a write that makes no progress is an error"),
    }
    assert!(matches!(step(Operation::SyncData, 0, 0, 0), Step::Over(Ok(0))));
}
