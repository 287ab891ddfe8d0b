//! Steady state allocates nothing: neither requests and answers on open connections, nor connections that come and go.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(dead_code, reason = "other tests use the rest of the shared module")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};

use homi_queue::{GatherList, Region};
use homi_reactor::{BackendChoice, Event, Options, Reactor, Receive, SocketKey, Wait};
use support::{pair, reactor_with};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Threads that are just ending have no counter, and none of them is looked at.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is forwarded to the system's allocator; the counter is a plain thread-local value.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// One request of 16 bytes with 8192 bytes of data, and one answer with the data by reference.
fn exchange(
    reactor: &mut Reactor,
    key: SocketKey,
    far: &mut std::net::TcpStream,
    region: &Region,
    list: GatherList,
) -> GatherList {
    let request = [7; 16];
    let mut data = [9; 8192];
    far.write_all(&request).unwrap();
    far.write_all(&data).unwrap();
    let mut spare = Some(list);
    let (mut header, mut filled, mut receiving, mut sending) = (0, 0, false, false);
    let mut sent = None;
    while sent.is_none() {
        if !receiving && filled < 8192 {
            receiving = true;
            let receive = if header < 16 {
                Receive::Staging { limit: 16 - header }
            } else {
                Receive::Into {
                    segment: region.segment(filled..8192).unwrap(),
                    lookahead: 64,
                }
            };
            reactor.receive(key, receive);
        }
        if filled == 8192 && !sending {
            sending = true;
            let mut list = spare.take().unwrap();
            list.push_bytes(&request);
            list.push_memory(region.segment(0..8192).unwrap());
            list.push_bytes(&request);
            reactor.send(key, list);
        }
        reactor
            .turn(Wait::Sleep(None), &mut |event| match event {
                Event::Received { direct, bytes, .. } => {
                    receiving = false;
                    filled += direct;
                    if direct == 0 {
                        header += bytes.len();
                    }
                }
                Event::Sent { list, .. } => sent = Some(list),
                other => panic!("unexpected: {other:?}"),
            })
            .unwrap();
    }
    let mut answer = [0; 16];
    far.read_exact(&mut answer).unwrap();
    far.read_exact(&mut data).unwrap();
    far.read_exact(&mut answer).unwrap();
    sent.unwrap()
}

fn run(backend: BackendChoice) {
    let Some(mut reactor) = reactor_with(backend, Options::default()) else {
        return;
    };
    let region = Region::allocate(8192, 4096).unwrap();
    let (near, mut far) = pair();
    let key = reactor.add_stream(near, 1);
    let mut list = GatherList::new();
    for _ in 0..50 {
        list = exchange(&mut reactor, key, &mut far, &region, list);
    }
    let before = allocations();
    for _ in 0..1000 {
        list = exchange(&mut reactor, key, &mut far, &region, list);
    }
    assert_eq!(allocations() - before, 0, "requests and answers");
    reactor.close(key);

    let mut allocated = 0;
    for round in 0..60 {
        let (near, mut far) = pair();
        let before = allocations();
        let key = reactor.add_stream(near, round);
        list = exchange(&mut reactor, key, &mut far, &region, list);
        reactor.receive(key, Receive::Staging { limit: 1 });
        reactor
            .turn(Wait::Poll, &mut |event| panic!("unexpected: {event:?}"))
            .unwrap();
        reactor.close(key);
        for _ in 0..3 {
            reactor
                .turn(Wait::Poll, &mut |event| panic!("unexpected: {event:?}"))
                .unwrap();
        }
        if round >= 10 {
            allocated += allocations() - before;
        }
    }
    assert_eq!(allocated, 0, "connections that come and go");
}

#[test]
fn io_uring_allocates_nothing() {
    run(BackendChoice::IoUring);
}

#[test]
fn readiness_allocates_nothing() {
    run(BackendChoice::Readiness);
}
