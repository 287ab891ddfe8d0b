//! Executors allocate nothing per command once they are warm. The allocator counts what every thread of this process
//! does, so this binary has one test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a global allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Subject, each_subject};
use homi_local::NamespaceGeometry;
use homi_queue::{Command, Completed, Data, Queue, Region, Wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands every request to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's rules.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the allocator's rules.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's rules.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the issuer keeps: its own memory, free pieces of it, and room for completions.
struct Issuer {
    region: Region,
    memory: Vec<Data>,
    completed: Vec<Completed>,
}

/// One batch as deep as the queue, of every kind of command.
fn batch(subject: &mut Subject, issuer: &mut Issuer) {
    let mut submitted = 0;
    while let Ok(slot) = subject.queue.reserve() {
        let lba = submitted * 8;
        let kind = submitted % 8;
        let mut memory = || issuer.memory.pop().expect("there is a piece for every slot");
        let (command, data) = match kind {
            0 => (Command::write(1, lba, 8), memory()),
            1 => (Command::read(1, lba, 8), memory()),
            2 => (Command::read(1, lba, 8), Data::Anywhere { len: 4096 }),
            3 => (Command::compare(1, lba, 8), memory()),
            4 => (Command::write_zeroes(1, lba, 8, false), Data::None),
            5 => (Command::write_zeroes(1, lba, 8, true), Data::None),
            6 => (Command::verify(1, lba, 8), Data::None),
            _ => (Command::read(1, 1 << 40, 8), memory()),
        };
        subject.queue.submit(slot, command, data);
        submitted += 1;
    }
    subject.queue.commit().unwrap();
    let mut done = 0;
    while done < submitted {
        subject.queue.poll(&mut issuer.completed).unwrap();
        for completed in issuer.completed.drain(..) {
            done += 1;
            let own = issuer.region.host_address();
            if completed
                .data
                .segments()
                .first()
                .is_some_and(|segment| segment.region().host_address() == own)
            {
                issuer.memory.push(completed.data);
            }
        }
        if done < submitted
            && let Some(descriptor) = subject.queue.wait_descriptor()
        {
            let _ = poll(
                &mut [PollFd::new(descriptor, PollFlags::POLLIN)],
                PollTimeout::from(1000_u16),
            );
        }
    }
}

#[test]
fn a_warm_executor_allocates_nothing() {
    each_subject(
        NamespaceGeometry::from_bytes(512, 1 << 20).unwrap(),
        |mut subject| {
            let region = Region::allocate(1 << 20, 4096).unwrap();
            let depth = usize::from(common::DEPTH);
            let (memory, completed) = (Vec::with_capacity(depth * 2), Vec::with_capacity(depth));
            let mut issuer = Issuer {
                region: region.clone(),
                memory,
                completed,
            };
            for n in 0..depth * 2 {
                // Aligned, misaligned and scattered in turn.
                let at = n * 8192;
                issuer.memory.push(match n % 3 {
                    0 => Data::One(region.segment(at..at + 4096).unwrap()),
                    1 => Data::One(region.segment(at + 3..at + 4099).unwrap()),
                    _ => Data::List(vec![
                        region.segment(at..at + 1000).unwrap(),
                        region.segment(at + 1000..at + 4096).unwrap(),
                    ]),
                });
            }
            // At once as much memory of the queue's own as it can ever need, then some time of everything.
            let all: Vec<_> = std::iter::from_fn(|| subject.queue.reserve().ok()).collect();
            for slot in all {
                subject.queue.submit(
                    slot,
                    Command::read(1, 0, 8),
                    Data::One(region.segment(3..4099).unwrap()),
                );
            }
            subject.queue.commit().unwrap();
            common::wait(&mut subject.queue, depth);
            for _ in 0..50 {
                batch(&mut subject, &mut issuer);
            }
            // The test harness's own thread allocates now and then; an executor that does, does so in every window.
            let windows: Vec<u64> = (0..3)
                .map(|_| {
                    let before = ALLOCATIONS.load(Ordering::Relaxed);
                    for _ in 0..100 {
                        batch(&mut subject, &mut issuer);
                    }
                    ALLOCATIONS.load(Ordering::Relaxed) - before
                })
                .collect();
            assert!(
                windows.contains(&0),
                "{}: {windows:?} allocations in windows of {} commands each",
                subject.name,
                100 * depth
            );
        },
    );
}
