//! [`Pair`]: a host connection and a controller connection joined by two byte vectors, and a RAM store behind the controller.

use homi_fabric::tcp::{
    CommandKey, ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent,
    HostParams,
};
use homi_queue::{Command, CommandId, Data, GatherList, Region, Segment};
use homi_spec::command::NvmOpcode;
use homi_spec::{Cqe, Sqe, Status};

pub(crate) const BLOCK: usize = 512;

/// A small generator of numbers, so that a failing case repeats.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}

/// How the stream between the ends is cut.
#[derive(Debug, Clone)]
pub(crate) enum Cut {
    Whole,
    EveryByte,
    Random(Numbers),
}

impl Cut {
    fn next(&mut self, left: usize) -> usize {
        match self {
            Self::Whole => left,
            Self::EveryByte => 1,
            Self::Random(numbers) => {
                let scale = [2, 30, 200, 5000, 100_000][numbers.below(5)];
                (1 + numbers.below(scale)).min(left)
            }
        }
    }
}

/// How a pair is made.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) host: HostParams,
    pub(crate) controller: ControllerParams,
    pub(crate) success_flag: bool,
    pub(crate) cut: Cut,
    /// Payload of at least so many bytes is received straight into its memory.
    pub(crate) direct: Option<usize>,
    pub(crate) store_len: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            host: HostParams {
                depth: 32,
                ..HostParams::default()
            },
            controller: ControllerParams::default(),
            success_flag: false,
            cut: Cut::Whole,
            direct: None,
            store_len: 1 << 20,
        }
    }
}

/// A completed command as the host saw it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: CommandId,
    pub(crate) status: Status,
    pub(crate) data: Data,
    pub(crate) received: u32,
}

pub(crate) struct Pair {
    pub(crate) host: HostConnection,
    pub(crate) controller: ControllerConnection,
    pub(crate) store: Region,
    /// The commands that the controller end is executing, by key.
    commands: Vec<Option<Sqe>>,
    setup: Setup,
    to_controller: Vec<u8>,
    to_host: Vec<u8>,
    pub(crate) done: Vec<Done>,
    /// Bytes that went through `landing`, both ends together.
    pub(crate) landed: usize,
}

/// Feeds a cut of `bytes` to one end: `$end.landing` where it applies, else `$end.advance`.
macro_rules! feed {
    ($self:ident, $end:ident, $bytes:expr, $event:ident => $handle:expr) => {{
        let mut bytes: &[u8] = $bytes;
        while !bytes.is_empty() {
            let cut = $self.setup.cut.next(bytes.len());
            let target = $self.setup.direct.and_then(|minimum| $self.$end.landing(minimum));
            if let Some(segment) = target {
                let len = cut.min(segment.len());
                let (now, rest) = bytes.split_at(len);
                segment.region().write(segment.start(), now).unwrap();
                bytes = rest;
                $self.landed += len;
                if let Some($event) = $self.$end.landed(len).unwrap() {
                    $handle
                }
                continue;
            }
            let (mut now, rest) = bytes.split_at(cut);
            bytes = rest;
            while let Some($event) = $self.$end.advance(&mut now).unwrap() {
                $handle
            }
            assert!(now.is_empty(), "input is consumed when there is no event");
        }
    }};
}

impl Pair {
    /// An initialised pair.
    pub(crate) fn new(setup: Setup) -> Self {
        let mut pair = Self {
            host: HostConnection::new(setup.host).unwrap(),
            controller: ControllerConnection::new(setup.controller).unwrap(),
            store: Region::allocate(setup.store_len, 4096).unwrap(),
            commands: vec![None; usize::from(setup.controller.max_depth)],
            setup,
            to_controller: Vec::new(),
            to_host: Vec::new(),
            done: Vec::new(),
            landed: 0,
        };
        pair.host.start();
        pair.pump();
        assert!(pair.host.is_ready() && pair.controller.is_ready());
        pair
    }

    pub(crate) fn submit(&mut self, command: Command, data: Data) -> CommandId {
        let slot = self.host.reserve().expect("a free slot");
        self.host.submit(slot, command, data)
    }

    /// Moves bytes until neither end has any to send.
    pub(crate) fn pump(&mut self) {
        loop {
            drain_into(self.host.output(), &mut self.to_controller);
            drain_into(self.controller.output(), &mut self.to_host);
            if self.to_controller.is_empty() && self.to_host.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut self.to_controller);
            feed!(self, controller, &bytes, event => self.serve(event));
            self.to_controller = bytes;
            self.to_controller.clear();
            let bytes = std::mem::take(&mut self.to_host);
            feed!(self, host, &bytes, event => self.complete(event));
            self.to_host = bytes;
            self.to_host.clear();
        }
    }

    fn complete(&mut self, event: HostEvent) {
        match event {
            HostEvent::Ready => {}
            HostEvent::Completed {
                id,
                cqe,
                data,
                received,
            } => {
                assert_eq!(cqe.cid.get(), id.0);
                self.done.push(Done {
                    id,
                    status: cqe.status(),
                    data,
                    received,
                });
            }
            HostEvent::PeerTerminated(reason) => panic!("{reason}"),
        }
    }

    fn serve(&mut self, event: ControllerEvent) {
        match event {
            ControllerEvent::Ready => self.controller.set_queue(self.setup.host.depth, true),
            ControllerEvent::Command { key, sqe, fault, .. } => {
                assert_eq!(fault, None);
                self.execute(key, sqe);
            }
            ControllerEvent::DataReceived { key } => {
                let sqe = self.commands[key.index()].take().unwrap();
                let data = self.controller.take_data(key);
                let mut bytes = vec![0; data.len()];
                data.read(0, &mut bytes).unwrap();
                self.store.write(range_of(&sqe).start, &bytes).unwrap();
                self.controller.respond(key, Cqe::default()).unwrap();
            }
            ControllerEvent::DataFailed { key, status } => {
                self.commands[key.index()] = None;
                self.controller
                    .respond(key, Cqe::default().with_status(status))
                    .unwrap();
            }
            ControllerEvent::PeerTerminated(reason) => panic!("{reason}"),
        }
    }

    fn execute(&mut self, key: CommandKey, sqe: Sqe) {
        let range = range_of(&sqe);
        match sqe.nvm_opcode() {
            NvmOpcode::READ => {
                let segment = self.store.segment(range).unwrap();
                let len = segment.len();
                let flag = self.setup.success_flag;
                self.controller
                    .respond_with_data(key, Data::One(segment), len, Cqe::default(), flag)
                    .unwrap();
            }
            NvmOpcode::WRITE => {
                self.commands[key.index()] = Some(sqe);
                let region = Region::allocate(range.len(), 512).unwrap();
                self.controller.accept(key, Data::whole(region)).unwrap();
            }
            NvmOpcode::FLUSH => self.controller.respond(key, Cqe::default()).unwrap(),
            other => panic!("{other}"),
        }
    }
}

/// The bytes of the store that a command addresses.
fn range_of(sqe: &Sqe) -> std::ops::Range<usize> {
    if sqe.nvm_opcode() == NvmOpcode::FLUSH {
        return 0..0;
    }
    let start = usize::try_from(sqe.lba()).unwrap() * BLOCK;
    start..start + usize::try_from(sqe.blocks()).unwrap() * BLOCK
}

/// Moves what a list has to send to the end of a vector, as a socket would.
pub(crate) fn drain_into(list: &mut GatherList, bytes: &mut Vec<u8>) {
    if !list.is_empty() {
        bytes.extend_from_slice(&list.to_vec());
        list.advance(list.remaining());
    }
}

/// Memory of `len` bytes in pieces of the lengths that `cuts` makes.
pub(crate) fn scattered(bytes: &[u8], pieces: usize, numbers: &mut Numbers) -> Data {
    if pieces <= 1 {
        return Data::whole(Region::from_vec(bytes.to_vec()));
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    for piece in 0..pieces {
        let left = bytes.len() - at;
        let len = if piece + 1 == pieces {
            left
        } else {
            numbers.below(left + 1)
        };
        // Each piece lies in the middle of a region of its own.
        let region = Region::allocate(len + 32, 8).unwrap();
        region.write(16, &bytes[at..at + len]).unwrap();
        segments.push(region.segment(16..16 + len).unwrap());
        at += len;
    }
    Data::List(segments)
}

pub(crate) fn contents(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}
