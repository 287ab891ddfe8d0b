//! In steady state neither end allocates: counted over the whole process, in which both run, on memory and on a file, on io_uring
//! and on readiness events.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use fabric_tests::harness::{Harness, HostOptions};
use fabric_tests::network::Network;
use fabric_tests::settings::everything;
use homi_initiator::FabricQueue;
use homi_queue::{Command, Completed, Data, Queue, Region, Wait};
use homi_target::config::Events;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches an atomic only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Commands in flight.
const DEPTH: u16 = 16;
/// Commands before anything is counted: every list and pool has its size then.
const WARM_UP: usize = 1000;
/// Commands that are counted, and how often at most until there are none twice in a row.
const COUNTED: usize = 1000;
const WINDOWS: usize = 12;

/// One queue and the memory of its commands.
struct Issuer {
    queue: FabricQueue,
    idle: Vec<Data>,
    completed: Vec<Completed>,
    next: u64,
}

impl Issuer {
    fn new(queue: FabricQueue, len: usize) -> Self {
        let memory = || Data::whole(Region::allocate(len, 4096).unwrap());
        Self {
            queue,
            idle: (0..DEPTH).map(|_| memory()).collect(),
            completed: Vec::with_capacity(DEPTH.into()),
            next: 0,
        }
    }

    /// Executes so many commands, half of them writes.
    fn run(&mut self, nsid: u32, blocks: u32, commands: usize) {
        let (mut submitted, mut done) = (0, 0);
        while done < commands {
            while submitted < commands
                && let Some(data) = self.idle.pop()
            {
                let slot = self.queue.reserve().unwrap();
                let lba = self.next % 64 * u64::from(blocks);
                let command = if self.next.is_multiple_of(2) {
                    Command::write(nsid, lba, blocks)
                } else {
                    Command::read(nsid, lba, blocks)
                };
                self.next += 1;
                submitted += 1;
                self.queue.submit(slot, command, data);
            }
            self.queue.commit().unwrap();
            if self.queue.poll(&mut self.completed).unwrap() == 0 {
                let descriptor = self.queue.wait_descriptor().unwrap();
                let interest = homi_reactor::socket::Interest {
                    descriptor,
                    readable: true,
                    writable: self.queue.waits_for_room(),
                };
                homi_reactor::socket::wait_any(&[interest], None).unwrap();
            }
            for completed in self.completed.drain(..) {
                assert!(completed.completion.is_success());
                self.idle.push(completed.data);
                done += 1;
            }
        }
    }
}

/// One test, since everything in the process is counted.
#[test]
fn nothing_is_allocated_in_steady_state() {
    let setups = [
        (Events::Auto, false),
        (Events::Auto, true),
        (Events::Readiness, false),
    ];
    for (events, digests) in setups {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = everything(scratch.path());
        config.node.shards = Some(1);
        config.node.events = events;
        let mut target = Network::start(&config);
        let host = target.host(&HostOptions {
            header_digest: digests,
            data_digest: digests,
            ..HostOptions::default()
        });
        for (nsid, what) in [(2, "memory"), (4, "a file")] {
            for (blocks, len) in [(1, 4096), (16, 64 << 10)] {
                let queue = host
                    .controller()
                    .queue(homi_initiator::QueueOptions::depth(DEPTH))
                    .unwrap();
                let mut issuer = Issuer::new(queue, len);
                issuer.run(nsid, blocks, WARM_UP);
                // Lists and pools grow to the most that was ever needed at once, which on a busy machine may come late.
                let mut windows = Vec::new();
                while !windows.ends_with(&[0, 0]) {
                    assert!(
                        windows.len() < WINDOWS,
                        "{events:?}, digests {digests}, {what}, {len} bytes: {windows:?} allocations"
                    );
                    let before = ALLOCATIONS.load(Ordering::Relaxed);
                    issuer.run(nsid, blocks, COUNTED);
                    windows.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
                }
                println!(
                    "{events:?}, digests {digests}, {what}, {len} bytes: {windows:?} allocations for {COUNTED} commands each"
                );
            }
        }
    }
}
