//! In steady state a queue allocates nothing: not per read, not per write, small or large, whoever owns the memory.
#![expect(unsafe_code, reason = "a counting allocator is unsafe to implement")]

mod fake;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fake::{BLOCK, Behaviour, Fake};
use homi_initiator::{Initiator, QueueOptions, wait_for_completions};
use homi_queue::{Command, Completed, Data, Queue, Region};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what the calling thread allocates; the target's threads have counts of their own.
struct Counting;

fn count() {
    // Not while the thread's storage is being torn down.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steady_state_allocates_nothing() {
    for success_flag in [true, false] {
        let fake = Fake::serve(Behaviour {
            success_flag,
            ..Behaviour::default()
        });
        let initiator = Initiator::new().unwrap();
        let controller = initiator.connect(&fake.uri().parse().unwrap()).unwrap();
        for (depth, blocks) in [(1, 8), (32, 8), (32, 256), (1, 256)] {
            let mut queue = controller.queue(QueueOptions::depth(depth)).unwrap();
            let len = blocks as usize * BLOCK;
            let region = Region::allocate(len, 4096).unwrap();
            let mut completed: Vec<Completed> = Vec::with_capacity(64);
            let mut round = |turn: u32| {
                while let Ok(slot) = queue.reserve() {
                    let own = || Data::One(region.segment(0..len).unwrap());
                    match turn % 3 {
                        0 => queue.submit(slot, Command::read(1, 0, blocks), Data::Anywhere { len }),
                        1 => queue.submit(slot, Command::read(1, 0, blocks), own()),
                        _ => queue.submit(slot, Command::write(1, 0, blocks), own()),
                    };
                }
                queue.commit().unwrap();
                let mut done = 0;
                while done < usize::from(depth) {
                    done += wait_for_completions(&mut queue, &mut completed, None).unwrap();
                    assert!(
                        completed
                            .drain(..)
                            .all(|completed| completed.completion.is_success())
                    );
                }
            };
            // Tables, buffers and the pool grow to what is needed.
            (0..12).for_each(&mut round);
            let before = ALLOCATIONS.get();
            (0..60).for_each(&mut round);
            assert_eq!(ALLOCATIONS.get() - before, 0, "depth {depth}, {blocks} blocks");
        }
    }
}
