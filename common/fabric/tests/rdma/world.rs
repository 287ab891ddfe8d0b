//! [`World`]: both ends on a [`Channel`], an application at one and a session at the other, moved step by step in any order.

use crate::channel::{Channel, Completion, Numbers, Right};
use homi_fabric::rdma::{
    Cancel, CommandKey, ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent,
    HostParams, ReceiveBuffer, Returned,
};
use homi_queue::{Command, CommandId, Data, Region, RemoteKey, Segment};
use homi_spec::command::NvmOpcode;
use homi_spec::{Cqe, Sqe, Status};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const BLOCK: usize = 512;

/// How a world is made.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) host: HostParams,
    pub(crate) controller: ControllerParams,
    /// Keys are windows that end with the command.
    pub(crate) windows: bool,
    pub(crate) seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            host: HostParams {
                depth: 16,
                in_capsule: 4096,
                max_descriptors: 4,
                send_queue: 16,
                max_pieces: 3,
            },
            controller: ControllerParams {
                max_in_capsule: 4096,
                max_descriptors: 4,
                max_depth: 16,
                send_queue: 32,
                read_depth: 4,
                max_pieces: 2,
                max_read_pieces: 1,
                invalidate: true,
                signal_data: false,
            },
            windows: false,
            seed: 1,
        }
    }
}

/// What the application expects of a command.
#[derive(Debug)]
struct Expected {
    lba: u64,
    read: bool,
    keys: Vec<RemoteKey>,
    too_many_parts: bool,
}

/// How commands ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) submitted: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    pub(crate) refused: usize,
    pub(crate) undelivered: usize,
    /// Keys that responses invalidated.
    pub(crate) invalidated: usize,
    /// Writes whose data was in the capsule.
    pub(crate) in_capsule: usize,
    /// Reads that were cancelled while outstanding.
    pub(crate) cancelled: usize,
    /// The most RDMA READs outstanding at a time.
    pub(crate) most_reads: usize,
}

pub(crate) struct World {
    pub(crate) host: HostConnection,
    pub(crate) controller: ControllerConnection,
    pub(crate) channel: Channel,
    pub(crate) tally: Tally,
    pub(crate) numbers: Numbers,
    setup: Setup,
    expected: BTreeMap<CommandId, Expected>,
    /// Commands that the session executes, and their memory.
    executing: Vec<(CommandKey, Sqe, Data)>,
    fetching: Vec<(CommandKey, Sqe)>,
    /// The session's memory that the connection has.
    lent: Vec<Region>,
    /// Receive buffers that the connection has.
    held: BTreeSet<u32>,
    spare: Vec<ReceiveBuffer>,
    next_lba: u64,
    host_saw_end: bool,
    controller_saw_end: bool,
}

/// The byte of a transfer that starts at `lba`.
fn pattern(lba: u64, at: usize) -> u8 {
    let mixed =
        (lba ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at as u64).wrapping_mul(0xff51_afd7_ed55);
    mixed.to_le_bytes()[3]
}

fn patterned(lba: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| pattern(lba, at)).collect()
}

pub(crate) fn contents(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}

fn len_of(sqe: &Sqe) -> usize {
    usize::try_from(sqe.blocks()).unwrap() * BLOCK
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let mut host = HostConnection::new(setup.host).unwrap();
        let controller = ControllerConnection::new(setup.controller).unwrap();
        let mut channel = Channel::new(setup.host.send_queue, setup.controller.send_queue);
        channel.host_receives += usize::from(host.take_receives());
        for id in 0..u32::from(setup.host.depth) {
            let capsule = Region::allocate(64 + setup.controller.max_in_capsule as usize, 64).unwrap();
            channel.controller_receives.push_back(ReceiveBuffer {
                id,
                entry: capsule.segment(0..64).unwrap(),
                data: Some(capsule.segment(64..capsule.len()).unwrap()),
            });
        }
        Self {
            host,
            controller,
            channel,
            tally: Tally::default(),
            numbers: Numbers::new(setup.seed),
            setup,
            expected: BTreeMap::new(),
            executing: Vec::new(),
            fetching: Vec::new(),
            lent: Vec::new(),
            held: BTreeSet::new(),
            spare: Vec::new(),
            next_lba: 0,
            host_saw_end: false,
            controller_saw_end: false,
        }
    }

    /// A world past Connect: the controller takes the whole queue.
    pub(crate) fn connected(setup: Setup) -> Self {
        let depth = setup.host.depth;
        let mut world = Self::new(setup);
        world.controller.set_queue(depth);
        world.host.established();
        world.controller.established().unwrap();
        world
    }

    // ---- the application ----

    /// Submits a command on memory in `pieces` pieces, if the queue has room.
    pub(crate) fn submit(&mut self, opcode: NvmOpcode, blocks: u32, pieces: usize) -> bool {
        let Some(slot) = self.host.reserve() else {
            return false;
        };
        let lba = self.next_lba;
        self.next_lba += 1;
        let len = usize::try_from(blocks).unwrap() * BLOCK;
        let read = opcode == NvmOpcode::READ;
        let (command, data) = match opcode {
            NvmOpcode::READ => (
                Command::read(1, lba, blocks),
                self.scattered(&vec![0xee; len], pieces),
            ),
            NvmOpcode::WRITE => (
                Command::write(1, lba, blocks),
                self.scattered(&patterned(lba, len), pieces),
            ),
            _ => (Command::flush(1), Data::None),
        };
        let right = if read { Right::Write } else { Right::Read };
        let mut keys = Vec::new();
        for segment in data.segments() {
            self.channel
                .registrations
                .add(segment.region(), right, self.setup.windows);
            keys.push(self.channel.registrations.0.last().unwrap().memory.key);
        }
        let too_many_parts =
            data.segments().iter().filter(|part| !part.is_empty()).count() > self.most_descriptors();
        let registrations = &self.channel.registrations;
        let id = self.host.submit(slot, command, data, &|segment: &Segment| {
            registrations.remote(segment)
        });
        self.tally.submitted += 1;
        let expected = Expected {
            lba,
            read,
            keys,
            too_many_parts,
        };
        assert!(
            self.expected.insert(id, expected).is_none(),
            "an id names one command"
        );
        true
    }

    /// The most parts that memory may have that is not in the capsule.
    fn most_descriptors(&self) -> usize {
        let host = self.setup.host;
        usize::from(host.max_descriptors)
            .min(host.in_capsule as usize / 16)
            .max(1)
    }

    /// Memory with these bytes, each piece in the middle of a region of its own.
    fn scattered(&mut self, bytes: &[u8], pieces: usize) -> Data {
        let mut segments = Vec::new();
        let mut at = 0;
        for piece in 0..pieces {
            let left = bytes.len() - at;
            let len = if piece + 1 == pieces {
                left
            } else {
                self.numbers.below(left + 1)
            };
            let region = Region::allocate(len + 32, 8).unwrap();
            region.write(16, &bytes[at..at + len]).unwrap();
            segments.push(region.segment(16..16 + len).unwrap());
            at += len;
        }
        Data::List(segments)
    }

    pub(crate) fn host_events(&mut self) {
        while let Some(event) = self.host.poll_event() {
            match event {
                HostEvent::Completed {
                    id,
                    cqe,
                    data,
                    invalidated,
                } => {
                    let expected = self.expected.remove(&id).expect("a command ends once");
                    assert!(
                        !self.channel.host.uses_any(&data),
                        "memory that a send still names"
                    );
                    if let Some(key) = invalidated {
                        assert!(expected.keys.contains(&key));
                        self.tally.invalidated += 1;
                    }
                    if cqe.status().is_success() {
                        self.tally.succeeded += 1;
                        if expected.read {
                            assert_eq!(contents(&data), patterned(expected.lba, data.len()));
                        }
                    } else {
                        self.tally.failed += 1;
                    }
                    self.revoke(&expected.keys);
                }
                HostEvent::Refused { id, reason, .. } => {
                    let expected = self.expected.remove(&id).expect("a command ends once");
                    assert!(expected.too_many_parts, "{reason}");
                    self.tally.refused += 1;
                }
            }
        }
    }

    /// The application takes its memory back: no access may come after it.
    fn revoke(&mut self, keys: &[RemoteKey]) {
        for registered in &mut self.channel.registrations.0 {
            if keys.contains(&registered.memory.key) {
                registered.valid = false;
            }
        }
    }

    // ---- the session ----

    pub(crate) fn session_events(&mut self) {
        while let Some(event) = self.controller.poll_event() {
            match event {
                ControllerEvent::Command {
                    key,
                    sqe,
                    in_capsule,
                    fault,
                } => {
                    assert_eq!(fault, None);
                    self.command(key, sqe, in_capsule);
                }
                ControllerEvent::DataReceived { key } => {
                    let sqe = self.take_fetching(key);
                    let data = self.take_lent(key);
                    assert_eq!(contents(&data), patterned(sqe.lba(), len_of(&sqe)));
                    self.executing.push((key, sqe, data));
                }
                ControllerEvent::DataFailed { key, status } => {
                    self.take_fetching(key);
                    self.take_lent(key);
                    self.controller
                        .respond(key, Cqe::default().with_status(status))
                        .unwrap();
                }
            }
        }
    }

    fn command(&mut self, key: CommandKey, sqe: Sqe, in_capsule: u32) {
        match sqe.nvm_opcode() {
            NvmOpcode::WRITE if in_capsule > 0 => {
                let data = self.controller.take_data(key);
                assert_eq!(contents(&data), patterned(sqe.lba(), len_of(&sqe)));
                self.tally.in_capsule += 1;
                self.executing.push((key, sqe, data));
            }
            NvmOpcode::WRITE => {
                assert_eq!(sqe.sgl().parse().data_length() as usize, len_of(&sqe));
                let pieces = 1 + self.numbers.below(3);
                let data = self.scattered(&vec![0; len_of(&sqe)], pieces);
                self.lend(&data);
                self.controller.accept(key, data).unwrap();
                self.fetching.push((key, sqe));
            }
            _ => self.executing.push((key, sqe, Data::None)),
        }
    }

    fn take_fetching(&mut self, key: CommandKey) -> Sqe {
        let position = self.fetching.iter().position(|(other, _)| *other == key);
        self.fetching.swap_remove(position.expect("data was wanted")).1
    }

    fn lend(&mut self, data: &Data) {
        for segment in data.segments() {
            self.lent.push(segment.region().clone());
        }
    }

    fn take_lent(&mut self, key: CommandKey) -> Data {
        let data = self.controller.take_data(key);
        self.give_back(&data);
        data
    }

    fn give_back(&mut self, data: &Data) {
        for segment in data.segments() {
            let address = segment.region().host_address();
            let position = self
                .lent
                .iter()
                .position(|region| region.host_address() == address);
            self.lent.swap_remove(position.expect("memory comes back once"));
            assert!(
                !self.channel.controller.uses(segment.region()),
                "memory came back that posted work names"
            );
        }
    }

    /// Finishes one command, any of those executing.
    pub(crate) fn execute(&mut self) -> bool {
        if self.executing.is_empty() {
            return false;
        }
        let pick = self.numbers.below(self.executing.len());
        let (key, sqe, data) = self.executing.swap_remove(pick);
        drop(data);
        let fails = self.numbers.chance(20);
        if fails {
            let cqe = Cqe::default().with_status(Status::INTERNAL_ERROR);
            self.controller.respond(key, cqe).unwrap();
        } else if sqe.nvm_opcode() == NvmOpcode::READ {
            let len = len_of(&sqe);
            let pieces = 1 + self.numbers.below(4);
            let data = self.scattered(&patterned(sqe.lba(), len), pieces);
            self.lend(&data);
            self.controller
                .respond_with_data(key, data, len, Cqe::default())
                .unwrap();
        } else {
            self.controller.respond(key, Cqe::default()).unwrap();
        }
        true
    }

    /// Cancels one transfer that is under way.
    pub(crate) fn cancel(&mut self) {
        if self.fetching.is_empty() || self.controller.failed() {
            return;
        }
        let pick = self.numbers.below(self.fetching.len());
        let (key, _) = self.fetching[pick];
        match self.controller.cancel(key).unwrap() {
            Cancel::Later => self.tally.cancelled += 1,
            Cancel::Now => {
                let data = self.controller.take_data(key);
                assert!(!data.is_empty());
                self.give_back(&data);
                self.fetching.swap_remove(pick);
                self.controller
                    .respond(key, Cqe::default().with_status(Status::ABORT_REQUESTED))
                    .unwrap();
            }
        }
    }

    pub(crate) fn collect_returned(&mut self) {
        while let Some(returned) = self.controller.poll_returned() {
            match returned {
                Returned::Receive(buffer) => {
                    assert!(self.held.remove(&buffer.id), "a receive buffer comes back once");
                    if self.channel.is_dead() {
                        self.spare.push(buffer);
                    } else {
                        self.channel.controller_receives.push_back(buffer);
                    }
                }
                Returned::Data(data) => self.give_back(&data),
            }
        }
    }

    // ---- both runtimes ----

    pub(crate) fn post_host(&mut self, most: usize) {
        self.channel.host_receives += usize::from(self.host.take_receives());
        for _ in 0..most {
            let Some(work) = self.host.poll_work() else { break };
            if !self.channel.is_dead() {
                self.channel.host.post(&work, self.setup.host.max_pieces, 0);
            }
        }
    }

    pub(crate) fn post_controller(&mut self, most: usize) {
        self.collect_returned();
        let params = self.setup.controller;
        for _ in 0..most {
            let Some(work) = self.controller.poll_work() else {
                break;
            };
            if !self.channel.is_dead() {
                self.channel
                    .controller
                    .post(&work, params.max_pieces, params.max_read_pieces);
            }
        }
        let reads = self.channel.controller.reads();
        assert!(reads <= usize::from(params.read_depth), "{reads} reads");
        self.tally.most_reads = self.tally.most_reads.max(reads);
    }

    pub(crate) fn complete_host(&mut self) -> bool {
        let Some(completion) = self.channel.host.completions.pop_front() else {
            return false;
        };
        match completion {
            Completion::Done(id) => {
                self.channel.host.seen(id);
                self.host.completed(id).unwrap();
            }
            Completion::Failed(id) => {
                self.host_saw_end = true;
                self.host.work_failed(id);
            }
            Completion::Response(bytes, invalidated) => self.host.received(&bytes, invalidated).unwrap(),
            Completion::Command(..) => panic!("a host takes no commands"),
        }
        true
    }

    pub(crate) fn complete_controller(&mut self) -> bool {
        let Some(completion) = self.channel.controller.completions.pop_front() else {
            return false;
        };
        match completion {
            Completion::Done(id) => {
                self.channel.controller.seen(id);
                self.controller.completed(id).unwrap();
            }
            Completion::Failed(id) => {
                self.controller_saw_end = true;
                self.controller.work_failed(id);
            }
            Completion::Command(buffer, len) => {
                assert!(self.held.insert(buffer.id));
                self.controller.received(buffer, len).unwrap();
            }
            Completion::Response(..) => panic!("a controller takes no responses"),
        }
        true
    }

    /// One step of anything.
    pub(crate) fn step(&mut self) {
        let most = 1 + self.numbers.below(8);
        match self.numbers.below(20) {
            0..=2 => {
                let opcode = [
                    NvmOpcode::READ,
                    NvmOpcode::WRITE,
                    NvmOpcode::WRITE,
                    NvmOpcode::FLUSH,
                ][self.numbers.below(4)];
                let blocks = [1, 2, 8, 9, 64][self.numbers.below(5)];
                let pieces = [1, 1, 2, 3, 6][self.numbers.below(5)];
                self.submit(opcode, blocks, pieces);
            }
            3 | 4 => self.post_host(most),
            5 | 6 => {
                self.channel.move_host();
            }
            7 | 8 => {
                self.complete_controller();
            }
            9 => self.session_events(),
            10 | 11 => {
                self.execute();
            }
            12 | 13 => self.post_controller(most),
            14 | 15 => {
                self.channel.move_controller();
            }
            16 | 17 => {
                self.complete_host();
            }
            18 => self.host_events(),
            _ => {
                if self.numbers.chance(4) {
                    self.cancel();
                }
            }
        }
    }

    /// Runs until nothing moves any more.
    pub(crate) fn run_down(&mut self) {
        loop {
            self.post_host(usize::MAX);
            let mut moved = self.channel.move_host();
            moved |= self.complete_controller();
            self.session_events();
            moved |= self.execute();
            self.post_controller(usize::MAX);
            moved |= self.channel.move_controller();
            moved |= self.complete_host();
            self.host_events();
            self.collect_returned();
            if !moved && self.channel.host.is_idle() && self.channel.controller.is_idle() {
                return;
            }
            assert!(moved, "both ends wait for each other: {:?}", self.tally);
        }
    }

    /// Everything ended well.
    pub(crate) fn check_idle(&self) {
        let tally = self.tally;
        assert_eq!(tally.submitted, tally.succeeded + tally.failed + tally.refused);
        assert!(self.expected.is_empty());
        assert_eq!((self.host.in_flight(), self.controller.in_flight()), (0, 0));
        assert!(self.held.is_empty() && self.fetching.is_empty() && self.executing.is_empty());
        assert!(!self.host.has_work() && !self.controller.has_work());
        // A completion that was left unsignaled cannot have had memory.
        assert!(self.lent.is_empty(), "{:?}", self.lent);
    }

    /// The connection dies; what each end sees of it comes in any order. Everything must come back once.
    pub(crate) fn kill(&mut self) {
        // One end may have had enough before, while the adapters still work through what was posted.
        match self.numbers.below(3) {
            0 => {
                self.controller.lost();
                self.fetching.clear();
            }
            1 => self.host.lost(),
            _ => {}
        }
        for _ in 0..60 {
            self.step();
        }
        let mut numbers = self.numbers.clone();
        self.channel.kill(&mut numbers);
        self.numbers = numbers;
        for _ in 0..200 {
            self.step();
            if self.numbers.chance(30) {
                self.host.lost();
            }
            if self.numbers.chance(30) {
                self.controller.lost();
                self.fetching.clear();
            }
        }
        while self.complete_host() || self.complete_controller() {}
        self.session_events();
        self.host.lost();
        assert!(self.host.drain().is_err(), "not before the queue pair is still");
        self.controller.lost();
        self.fetching.clear();
        while self.execute() {}
        self.host.stopped();
        self.controller.stopped();
        self.collect_returned();
        self.host_events();
        let undelivered = self.host.drain().unwrap();
        for lost in undelivered {
            assert!(self.expected.remove(&lost.id).is_some(), "a command ends once");
            self.tally.undelivered += 1;
        }
        assert!(self.host.drain().unwrap().is_empty());
        assert!(self.expected.is_empty());
        let tally = self.tally;
        assert_eq!(
            tally.submitted,
            tally.succeeded + tally.failed + tally.refused + tally.undelivered
        );
        assert!(self.held.is_empty(), "{:?}", self.held);
        assert!(self.lent.is_empty(), "{:?}", self.lent);
        assert!(self.controller.is_finished());
    }
}
