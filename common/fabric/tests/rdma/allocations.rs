//! In steady state neither end allocates, and what one command costs in work requests and completions.

use homi_fabric::rdma::{
    ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent, HostParams,
    Operation, ReceiveBuffer, RemoteMemory, Returned, WorkId,
};
use homi_queue::{Command, Data, Region, RemoteAddress, RemoteKey, Segment};
use homi_spec::Cqe;
use homi_spec::command::NvmOpcode;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local `Cell` only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: u16 = 32;
const LEN: usize = 4096;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Posts {
    host: usize,
    controller: usize,
    host_signaled: usize,
    controller_signaled: usize,
}

/// A host and a controller whose memory is all there from the start.
struct Bench {
    host: HostConnection,
    controller: ControllerConnection,
    capsules: Vec<Vec<u8>>,
    responses: Vec<Cqe>,
    receives: Vec<ReceiveBuffer>,
    idle: Vec<Data>,
    /// Memory of the controller.
    pool: Vec<Data>,
    done: Vec<WorkId>,
    posts: Posts,
}

impl Bench {
    fn new(in_capsule: u32) -> Self {
        let mut bench = Self {
            host: HostConnection::new(HostParams {
                depth: DEPTH,
                in_capsule,
                send_queue: DEPTH,
                ..HostParams::default()
            })
            .unwrap(),
            controller: ControllerConnection::new(ControllerParams {
                max_in_capsule: in_capsule,
                max_depth: DEPTH,
                send_queue: 2 * DEPTH,
                ..ControllerParams::default()
            })
            .unwrap(),
            capsules: (0..DEPTH).map(|_| Vec::with_capacity(64 + LEN)).collect(),
            responses: Vec::with_capacity(usize::from(DEPTH)),
            receives: (0..u32::from(DEPTH))
                .map(|id| {
                    let region = Region::allocate(64 + LEN, 64).unwrap();
                    ReceiveBuffer {
                        id,
                        entry: region.segment(0..64).unwrap(),
                        data: Some(region.segment(64..64 + LEN).unwrap()),
                    }
                })
                .collect(),
            idle: (0..DEPTH)
                .map(|_| Data::whole(Region::allocate(LEN, 4096).unwrap()))
                .collect(),
            pool: (0..DEPTH)
                .map(|_| Data::whole(Region::allocate(LEN, 4096).unwrap()))
                .collect(),
            done: Vec::with_capacity(usize::from(DEPTH)),
            posts: Posts::default(),
        };
        bench.host.established();
        bench.controller.established().unwrap();
        bench.controller.set_queue(DEPTH);
        bench
    }

    fn post_host(&mut self) {
        self.host.take_receives();
        let mut free = self.capsules.iter_mut();
        while let Some(work) = self.host.poll_work() {
            let Operation::Send(send) = &work.operation else {
                panic!("{work:?}")
            };
            let bytes = free.next().unwrap();
            bytes.clear();
            bytes.extend_from_slice(send.entry);
            bytes.resize(send.len(), 0);
            self.posts.host += 1;
            if work.signaled {
                self.posts.host_signaled += 1;
                self.done.push(work.id);
            }
        }
        for id in self.done.drain(..) {
            self.host.completed(id).unwrap();
        }
        for bytes in self.capsules.iter_mut().filter(|bytes| !bytes.is_empty()) {
            let buffer = self.receives.pop().unwrap();
            buffer.entry.region().write(buffer.entry.start(), bytes).unwrap();
            self.controller.received(buffer, bytes.len()).unwrap();
            bytes.clear();
        }
    }

    fn serve(&mut self) {
        while let Some(event) = self.controller.poll_event() {
            match event {
                ControllerEvent::Command { key, sqe, .. } if sqe.nvm_opcode() == NvmOpcode::READ => {
                    let data = self.pool.pop().unwrap();
                    self.controller
                        .respond_with_data(key, data, LEN, Cqe::default())
                        .unwrap();
                }
                ControllerEvent::Command { key, in_capsule, .. } if in_capsule > 0 => {
                    assert_eq!(self.controller.take_data(key).len(), LEN);
                    self.controller.respond(key, Cqe::default()).unwrap();
                }
                ControllerEvent::Command { key, .. } => {
                    let data = self.pool.pop().unwrap();
                    self.controller.accept(key, data).unwrap();
                }
                ControllerEvent::DataReceived { key } => {
                    self.pool.push(self.controller.take_data(key));
                    self.controller.respond(key, Cqe::default()).unwrap();
                }
                ControllerEvent::DataFailed { .. } => panic!("nothing fails"),
            }
        }
        self.collect();
        while let Some(work) = self.controller.poll_work() {
            if let Operation::Send(send) = &work.operation {
                let cqe = zerocopy::FromBytes::read_from_bytes(send.entry).unwrap();
                self.responses.push(cqe);
            }
            self.posts.controller += 1;
            if work.signaled {
                self.posts.controller_signaled += 1;
                self.done.push(work.id);
            }
        }
        for id in self.done.drain(..) {
            self.controller.completed(id).unwrap();
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(returned) = self.controller.poll_returned() {
            match returned {
                Returned::Receive(buffer) => self.receives.push(buffer),
                Returned::Data(data) => self.pool.push(data),
            }
        }
    }

    fn complete(&mut self) {
        for cqe in self.responses.drain(..) {
            self.host
                .received(zerocopy::IntoBytes::as_bytes(&cqe), None)
                .unwrap();
        }
        while let Some(event) = self.host.poll_event() {
            let HostEvent::Completed { data, cqe, .. } = event else {
                panic!("{event:?}")
            };
            assert!(cqe.status().is_success());
            self.idle.push(data);
        }
    }

    fn round(&mut self, write: bool) {
        for lba in 0..u64::from(DEPTH) {
            let command = if write {
                Command::write(1, lba, 8)
            } else {
                Command::read(1, lba, 8)
            };
            let data = self.idle.pop().unwrap();
            let slot = self.host.reserve().unwrap();
            self.host.submit(slot, command, data, &|_: &Segment| {
                Some(RemoteMemory {
                    address: RemoteAddress(0x1000),
                    key: RemoteKey(1),
                    invalidate: false,
                })
            });
        }
        self.post_host();
        while self.idle.len() < usize::from(DEPTH) {
            self.serve();
            self.complete();
        }
    }
}

#[test]
fn reads_and_writes_allocate_nothing_in_steady_state() {
    for in_capsule in [0, 4096] {
        let mut bench = Bench::new(in_capsule);
        for _ in 0..8 {
            bench.round(false);
            bench.round(true);
        }
        let before = COUNT.with(Cell::get);
        for _ in 0..50 {
            bench.round(false);
            bench.round(true);
        }
        let after = COUNT.with(Cell::get);
        assert_eq!(after - before, 0, "allocations in {} commands", 100 * DEPTH);
    }
}

#[test]
fn work_requests_and_completions_per_command() {
    let per_round = |in_capsule, write| {
        let mut bench = Bench::new(in_capsule);
        bench.round(write);
        bench.posts = Posts::default();
        bench.round(write);
        bench.posts
    };
    let depth = usize::from(DEPTH);
    // A read: one capsule; one data write and one response, of which the response completes.
    let read = per_round(0, false);
    assert_eq!((read.host, read.controller), (depth, 2 * depth));
    assert_eq!((read.host_signaled, read.controller_signaled), (4, depth));
    // A write: one capsule; one data read and one response.
    let write = per_round(0, true);
    assert_eq!((write.host, write.controller), (depth, 2 * depth));
    assert_eq!(write.host_signaled, 4);
    assert!(write.controller_signaled <= depth + 2);
    // A write in the capsule: one capsule and one response.
    let in_capsule = per_round(4096, true);
    assert_eq!((in_capsule.host, in_capsule.controller), (depth, depth));
    assert!(in_capsule.controller_signaled <= 2);
}
