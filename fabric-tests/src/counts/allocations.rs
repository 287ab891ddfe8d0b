//! [`Counting`]: the system's allocator, with a count for each thread that other threads can read.
//!
//! Threads are told apart by the system's names for them, so that no code under test has to know that it is watched.
#![expect(
    unsafe_code,
    reason = "a global allocator is an unsafe trait; this one only counts and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize};

use nix::unistd::gettid;

use super::End;

/// Threads that can be told apart; those that come later are counted together.
const THREADS: usize = 256;

#[repr(align(128))]
struct Thread {
    /// The system's id, or zero.
    id: AtomicI32,
    count: AtomicU64,
}

static TABLE: [Thread; THREADS] = [const {
    Thread {
        id: AtomicI32::new(0),
        count: AtomicU64::new(0),
    }
}; THREADS];
static USED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The system's allocator, counted: make it the `#[global_allocator]` of a program.
#[derive(Debug)]
pub struct Counting;

fn add() {
    // A thread that is past its end is not counted any more.
    let place = PLACE.try_with(|place| {
        if place.get() == usize::MAX {
            place.set(USED.fetch_add(1, Relaxed).min(THREADS - 1));
            if let Some(thread) = TABLE.get(place.get()) {
                thread.id.store(gettid().as_raw(), Release);
            }
        }
        place.get()
    });
    if let Some(thread) = place.ok().and_then(|place| TABLE.get(place)) {
        thread.count.fetch_add(1, Relaxed);
    }
}

// SAFETY: every method passes its arguments on to the system's allocator unchanged and returns what that returns; counting
// touches statics and a thread-local integer without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add();
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add();
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add();
        // SAFETY: the caller's promises about all three are passed on; the pointer came from the same allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises about both are passed on; the pointer came from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The threads of an end, in a process that runs both: their counters, found by name once, so that reading them allocates
/// nothing and cannot disturb what is counted.
#[derive(Debug, Clone)]
pub struct Watch {
    places: Vec<usize>,
}

impl Watch {
    /// The threads of an end that have allocated anything so far.
    #[must_use]
    pub fn new(end: End) -> Self {
        let used = USED.load(Relaxed).min(THREADS);
        let mut places = Vec::new();
        for (place, thread) in TABLE.iter().take(used).enumerate() {
            let id = thread.id.load(Acquire);
            let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap_or_default();
            let wanted = match end {
                End::Target => name.starts_with("shard-") || name.trim_end() == "control",
                End::Initiator => name.trim_end() == super::steady::THREAD,
            };
            if wanted {
                places.push(place);
            }
        }
        Self { places }
    }

    /// How many threads these are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.places.len()
    }

    /// What they have allocated so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        let threads = self.places.iter().filter_map(|place| TABLE.get(*place));
        threads.map(|thread| thread.count.load(Relaxed)).sum()
    }
}
