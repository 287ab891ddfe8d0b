//! In steady state neither end allocates.

use homi_fabric::tcp::{
    CommandKey, ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent,
    HostParams,
};
use homi_queue::{Command, Data, GatherList, Piece, Region};
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

const DEPTH: usize = 32;
const LEN: usize = 4096;

/// A host and a controller whose memory is all there from the start.
struct Bench {
    host: HostConnection,
    controller: ControllerConnection,
    store: Region,
    wire: Vec<u8>,
    idle: Vec<Data>,
    /// Memory for writes at the controller end, by key.
    staging: Vec<Region>,
    spare: GatherList,
}

fn move_bytes(list: &mut GatherList, wire: &mut Vec<u8>) {
    wire.clear();
    for piece in list.pieces() {
        match piece {
            Piece::Bytes(bytes) => wire.extend_from_slice(bytes),
            Piece::Memory { segment, skip } => {
                let at = wire.len();
                wire.resize(at + segment.len() - skip, 0);
                segment
                    .region()
                    .read(segment.start() + skip, &mut wire[at..])
                    .unwrap();
            }
        }
    }
    list.advance(list.remaining());
}

impl Bench {
    fn new(digests: bool) -> Self {
        let host = HostParams {
            header_digest: digests,
            data_digest: digests,
            in_capsule: 0,
            ..HostParams::default()
        };
        let mut bench = Self {
            host: HostConnection::new(host).unwrap(),
            controller: ControllerConnection::new(ControllerParams::default()).unwrap(),
            store: Region::allocate(LEN * DEPTH, 4096).unwrap(),
            wire: Vec::new(),
            idle: (0..DEPTH)
                .map(|_| Data::whole(Region::allocate(LEN, 4096).unwrap()))
                .collect(),
            staging: (0..DEPTH).map(|_| Region::allocate(LEN, 4096).unwrap()).collect(),
            spare: GatherList::new(),
        };
        bench.host.start();
        bench.exchange();
        bench.exchange();
        assert!(bench.host.is_ready());
        bench
    }

    /// One batch each way.
    fn exchange(&mut self) {
        let mut list = self.host.take_output(std::mem::take(&mut self.spare));
        move_bytes(&mut list, &mut self.wire);
        self.spare = list;
        let mut input = &self.wire[..];
        while let Some(event) = self.controller.advance(&mut input).unwrap() {
            match event {
                ControllerEvent::Ready => self.controller.set_queue(128, true),
                ControllerEvent::Command { key, sqe, .. } if sqe.nvm_opcode() == NvmOpcode::READ => {
                    let at = usize::try_from(sqe.lba()).unwrap() * LEN;
                    let data = Data::One(self.store.segment(at..at + LEN).unwrap());
                    self.controller
                        .respond_with_data(key, data, LEN, Cqe::default(), key.0 % 2 == 0)
                        .unwrap();
                }
                ControllerEvent::Command { key, .. } => {
                    let data = Data::whole(self.staging[key.index()].clone());
                    self.controller.accept(key, data).unwrap();
                }
                ControllerEvent::DataReceived { key: CommandKey(key) } => {
                    self.controller.respond(CommandKey(key), Cqe::default()).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        let mut list = self.controller.take_output(std::mem::take(&mut self.spare));
        move_bytes(&mut list, &mut self.wire);
        self.spare = list;
        let mut input = &self.wire[..];
        while let Some(event) = self.host.advance(&mut input).unwrap() {
            if let HostEvent::Completed { data, cqe, .. } = event {
                assert!(cqe.status().is_success());
                self.idle.push(data);
            }
        }
    }

    fn round(&mut self, write: bool) {
        for index in 0..DEPTH {
            let (lba, data) = (u64::try_from(index).unwrap(), self.idle.pop().unwrap());
            let command = if write {
                Command::write(1, lba, 8)
            } else {
                Command::read(1, lba, 8)
            };
            let slot = self.host.reserve().unwrap();
            self.host.submit(slot, command, data);
        }
        self.exchange();
        if write {
            self.exchange();
        }
        assert_eq!(self.idle.len(), DEPTH);
    }
}

#[test]
fn reads_and_writes_allocate_nothing_in_steady_state() {
    for digests in [false, true] {
        let mut bench = Bench::new(digests);
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
