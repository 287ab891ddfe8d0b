//! The controller's end of an RDMA queue pair, a host that sends anything, an adapter that reports anything, and a session that does
//! anything ([`rdma_controller`](super::rdma_controller)).

use std::collections::{BTreeMap, VecDeque};

use homi_fabric::rdma::{
    CommandKey, ControllerConnection, ControllerParams, Operation, ReceiveBuffer, Remote, Returned, WorkId,
};
use homi_queue::Region;
use homi_spec::{Cqe, Status};
use zerocopy::IntoBytes;

use super::Reached;
use super::choices::Choices;
use super::rdma_capsules::{Capsule, ENTRY, Way, capsule, private};
use super::rdma_wire::{Line, Memory, Posted, address, is_named, pieces};

/// What [`run`] can do next, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    /// A capsule as hosts build them, right or wrong.
    Capsule,
    /// Any bytes as a capsule.
    Bytes,
    Established,
    SetQueue,
    /// The session takes events.
    Events,
    Accept,
    Respond,
    RespondData,
    Cancel,
    Take,
    /// The runtime posts work.
    Work,
    /// A completion of something signaled.
    Complete,
    /// A completion of anything.
    WrongCompletion,
    /// A work request fails, and those behind it are flushed.
    Fail,
    Lost,
    Stopped,
    /// The runtime takes buffers back.
    Returned,
    /// Private data of the connection manager.
    Private,
}

impl Event {
    pub(super) const ALL: [Self; 18] = [
        Self::Capsule,
        Self::Bytes,
        Self::Established,
        Self::SetQueue,
        Self::Events,
        Self::Accept,
        Self::Respond,
        Self::RespondData,
        Self::Cancel,
        Self::Take,
        Self::Work,
        Self::Complete,
        Self::WrongCompletion,
        Self::Fail,
        Self::Lost,
        Self::Stopped,
        Self::Returned,
        Self::Private,
    ];
}

const MOST_EVENTS: usize = 600;
/// What receive buffers hold before: an earlier host's data.
const SECRET: u8 = 0x5e;
/// A key that no command has.
const NOBODY: CommandKey = CommandKey(50_000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Deciding,
    Reading,
    Cancelled,
    Responding,
}

/// A command that the session knows.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) serial: usize,
    pub(super) capsule: Capsule,
    pub(super) phase: Phase,
    /// Memory was accepted at some time.
    pub(super) accepted: bool,
    /// Data of the capsule is in its buffer, which is not returned.
    pub(super) holds_buffer: bool,
    /// The session took the data.
    pub(super) taken: bool,
    /// The session's, with the connection.
    pub(super) memory: Option<Memory>,
    pub(super) wanted: usize,
    pub(super) moved: usize,
    pub(super) reads: usize,
    pub(super) cqe: Cqe,
}

/// What was posted.
#[derive(Debug)]
pub(super) enum What {
    Read(CommandKey, usize),
    Write,
    /// A response, and the memory that comes back with it.
    Response(Option<usize>),
}

/// An event that has to come.
#[derive(Debug)]
pub(super) enum Due {
    Command(Box<Capsule>),
    Data(CommandKey),
    Failed(CommandKey),
}

impl Due {
    pub(super) fn is_about(&self, key: CommandKey) -> bool {
        match self {
            Self::Command(_) => false,
            Self::Data(other) | Self::Failed(other) => *other == key,
        }
    }
}

/// Memory that the connection has.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) memory: Memory,
    /// It is to come back at the next look.
    pub(super) back: bool,
}

#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) region: Region,
    pub(super) back: bool,
}

pub(super) struct World {
    pub(super) end: ControllerConnection,
    pub(super) params: ControllerParams,
    /// Bytes after the command that buffers have room for.
    pub(super) room: usize,
    pub(super) established: bool,
    pub(super) failed: bool,
    /// Nothing posted can touch memory any more.
    pub(super) still: bool,
    pub(super) limit: usize,
    pub(super) early: VecDeque<(u32, Vec<u8>, usize)>,
    pub(super) due: VecDeque<Due>,
    pub(super) live: BTreeMap<CommandKey, Live>,
    pub(super) reading: Vec<CommandKey>,
    pub(super) responding: VecDeque<CommandKey>,
    pub(super) line: Line<What>,
    /// Buffers of commands that nobody was told of before the end.
    pub(super) unseen: Vec<u32>,
    pub(super) buffers: BTreeMap<u32, Buffer>,
    pub(super) loans: BTreeMap<usize, Loan>,
    pub(super) next_buffer: u32,
    pub(super) serial: usize,
    pub(super) reached: Reached,
}

/// See [`rdma_controller`](super::rdma_controller).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let mut world = World::new(&mut choices);
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        let Some(event) = choices.of(&Event::ALL) else {
            break;
        };
        world.event(event, &mut choices);
        world.check();
    }
    world.finish();
    world.reached
}

/// The byte of a transfer: what the host's memory holds.
pub(super) fn content(serial: usize, at: usize) -> u8 {
    let [byte, ..] = (serial.wrapping_mul(37) ^ at.wrapping_mul(11)).to_le_bytes();
    byte
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (kind, queues, buffers) = (choices.byte(), choices.byte(), choices.byte());
        let pick = |from: [u16; 4], by: u8| from.get(usize::from(by & 3)).copied().unwrap_or(1);
        let in_capsule = pick([512, 0, 16, 4096], kind);
        let params = ControllerParams {
            max_in_capsule: in_capsule.into(),
            max_descriptors: pick([4, 1, 2, 16], kind >> 2),
            max_depth: pick([4, 1, 2, 8], kind >> 4),
            send_queue: pick([16, 2, 3, 32], queues),
            read_depth: u8::try_from(pick([2, 1, 4, 16], queues >> 2)).unwrap_or(1),
            max_pieces: pick([2, 3, 4, 8], queues >> 4),
            max_read_pieces: pick([1, 2, 3, 4], queues >> 6),
            invalidate: kind & 0x80 == 0,
            signal_data: false,
        };
        let room = match buffers & 3 {
            0 => usize::from(in_capsule),
            1 => 0,
            2 => usize::from(in_capsule) / 2 + 1,
            _ => usize::from(in_capsule) + 64,
        };
        let mut world = Self {
            end: ControllerConnection::new(params).expect("the parameters are in range"),
            params,
            room,
            established: false,
            failed: false,
            still: false,
            limit: 1,
            early: VecDeque::new(),
            due: VecDeque::new(),
            live: BTreeMap::new(),
            reading: Vec::new(),
            responding: VecDeque::new(),
            line: Line::new(params.send_queue),
            unseen: Vec::new(),
            buffers: BTreeMap::new(),
            loans: BTreeMap::new(),
            next_buffer: 0,
            serial: 0,
            reached: Reached::default(),
        };
        if kind & 0x40 == 0 {
            world.establish();
            world.set_queue(params.max_depth);
        }
        world
    }

    fn event(&mut self, event: Event, choices: &mut Choices<'_>) {
        match event {
            Event::Capsule => {
                let bytes = capsule(choices);
                self.receive(&bytes, bytes.len());
            }
            Event::Bytes => {
                let len = usize::from(choices.word()) % 700;
                let bytes = choices.take(len).to_vec();
                let claimed = match choices.byte() {
                    0 => usize::MAX,
                    1 => usize::from(choices.word()),
                    _ => bytes.len(),
                };
                self.receive(&bytes, claimed);
            }
            Event::Established => self.establish(),
            Event::SetQueue => self.set_queue(choices.word() % 300),
            Event::Events => {
                let most = choices.byte();
                self.events(most.into());
            }
            Event::Accept => {
                let key = self.pick(choices);
                let (len, parts) = self.size(key, choices);
                self.accept(key, Memory::new(len, parts));
            }
            Event::Respond => {
                let key = self.pick(choices);
                let status = choices.word() & 0x7fff;
                let cqe = Cqe::new(choices.word()).with_status(Status::from_raw(status));
                self.respond(key, None, 0, cqe);
            }
            Event::RespondData => {
                let key = self.pick(choices);
                let (len, parts) = self.size(key, choices);
                // Often all of the memory.
                let used = match choices.byte() {
                    0 => len / 2,
                    1 => len + 1,
                    2 => 0,
                    _ => len,
                };
                self.respond(key, Some(Memory::new(len, parts)), used, Cqe::default());
            }
            Event::Cancel => {
                let key = self.pick(choices);
                self.cancel(key);
            }
            Event::Take => {
                let key = self.pick(choices);
                self.take(key);
            }
            Event::Work => {
                let most = choices.byte();
                self.work(most.into());
            }
            Event::Complete => {
                let signaled: Vec<WorkId> = self
                    .line
                    .iter()
                    .filter(|one| one.signaled)
                    .map(|one| one.id)
                    .collect();
                if let Some(id) = signaled.get(choices.below(signaled.len())) {
                    self.complete(*id);
                }
            }
            Event::WrongCompletion => {
                let near = self.line.iter().last().map_or(0, |one| one.id.0);
                let id = match choices.byte() {
                    0 => choices.dword(),
                    far => near.wrapping_add(far.into()).wrapping_sub(128),
                };
                self.complete(WorkId(id));
            }
            Event::Fail => {
                let all: Vec<WorkId> = self.line.iter().map(|one| one.id).collect();
                let first = choices.below(all.len());
                let flushed = choices.byte() % 4;
                let failing = all.iter().skip(first).take(1 + usize::from(flushed));
                for id in failing {
                    self.fail(*id);
                }
                if choices.byte() == 0 {
                    self.fail(WorkId(choices.dword()));
                }
            }
            Event::Lost => {
                self.end.lost();
                self.lose();
            }
            Event::Stopped => self.stop(),
            Event::Returned => self.collect(),
            Event::Private => private(choices),
        }
    }

    /// A key of a command that the session knows, or of none.
    fn pick(&self, choices: &mut Choices<'_>) -> CommandKey {
        let which = choices.below(self.live.len() + 1);
        self.live.keys().nth(which).copied().unwrap_or(NOBODY)
    }

    /// How much memory goes with a command, and in how many parts: mostly all that is offered, never much.
    fn size(&self, key: CommandKey, choices: &mut Choices<'_>) -> (usize, usize) {
        let offered = self.live.get(&key).map_or(64, |live| live.capsule.offered);
        let len = match choices.byte() {
            0 => usize::from(choices.word()),
            1 => offered / 2,
            2 => offered.saturating_add(1),
            _ => offered,
        };
        (len.min(40_000), 1 + choices.below(5))
    }

    // ---- the host and the adapter ----

    fn receive(&mut self, bytes: &[u8], claimed: usize) {
        self.next_buffer += 1;
        let id = self.next_buffer;
        let region = Region::from_vec(vec![SECRET; ENTRY + self.room]);
        let put = bytes.len().min(region.len());
        let bytes = bytes.get(..put).unwrap_or(&[]);
        region.write(0, bytes).expect("no more than fits");
        let part = |from, to| region.segment(from..to).expect("inside");
        let buffer = ReceiveBuffer {
            id,
            entry: part(0, ENTRY),
            data: (self.room > 0).then(|| part(ENTRY, ENTRY + self.room)),
        };
        // As long as is claimed, with what was in the buffer before.
        let mut seen = vec![0; claimed.min(region.len())];
        region.read(0, &mut seen).expect("no more than there is");
        self.buffers.insert(id, Buffer { region, back: false });
        let broke = if self.failed {
            self.free_buffer(id);
            false
        } else if self.established {
            !self.judge(id, &seen, claimed)
        } else {
            self.early.push_back((id, seen, claimed));
            self.early.len() > self.limit
        };
        let received = self.end.received(buffer, claimed);
        assert_eq!(received.is_err(), broke, "{received:?}");
        if let Err(error) = received {
            self.broken(&error.to_string());
        }
    }

    fn broken(&mut self, sentence: &str) {
        assert!(!sentence.is_empty());
        self.reached.errors += 1;
        self.lose();
    }

    /// What must become of a capsule; false if it breaks the protocol.
    fn judge(&mut self, buffer: u32, seen: &[u8], claimed: usize) -> bool {
        let limit = ENTRY + self.room.min(self.params.max_in_capsule as usize);
        let told = self.due.iter().filter(|due| matches!(due, Due::Command(_)));
        let in_flight = self.live.len() + told.count();
        if claimed < ENTRY || claimed > limit || in_flight >= self.limit {
            self.free_buffer(buffer);
            return false;
        }
        let mut capsule = Capsule::parse(seen, &self.params, buffer);
        let waiting = self.due.iter().any(|due| match due {
            Due::Command(other) => other.cid == capsule.cid,
            Due::Data(_) | Due::Failed(_) => false,
        });
        capsule.conflict = waiting || self.live.values().any(|live| live.capsule.cid == capsule.cid);
        if capsule.inside.is_none() {
            self.free_buffer(buffer);
        }
        self.due.push_back(Due::Command(Box::new(capsule)));
        true
    }

    fn establish(&mut self) {
        self.established = true;
        self.reached.ready = 1;
        let mut broke = false;
        while let Some((buffer, seen, claimed)) = self.early.pop_front() {
            if broke || self.failed {
                self.free_buffer(buffer);
            } else {
                broke = !self.judge(buffer, &seen, claimed);
            }
        }
        let established = self.end.established();
        assert_eq!(established.is_err(), broke, "{established:?}");
        if let Err(error) = established {
            self.broken(&error.to_string());
        }
    }

    fn set_queue(&mut self, depth: u16) {
        self.end.set_queue(depth);
        self.limit = usize::from(depth.clamp(1, self.params.max_depth));
    }

    fn work(&mut self, most: usize) {
        for _ in 0..=most {
            let ready = self.established && !self.failed && !self.line.is_full();
            let reads: usize = self.live.values().map(|live| live.reads).sum();
            let may_read = !self.reading.is_empty() && reads < usize::from(self.params.read_depth);
            let has_work = !(self.failed || self.reading.is_empty() && self.responding.is_empty());
            assert_eq!(self.end.has_work(), has_work);
            let Some(work) = self.end.poll_work() else {
                assert!(
                    !(ready && (may_read || !self.responding.is_empty())),
                    "work that can be posted waits"
                );
                return;
            };
            assert!(ready, "work although nothing may be posted");
            let (id, ring, signaled) = (work.id, work.ring, work.signaled);
            match work.operation {
                Operation::Read { remote, local } => {
                    assert!(may_read, "more RDMA READs than the host answers");
                    assert!(signaled && local.len() == remote.len as usize);
                    let (region, found) = pieces(local.pieces());
                    assert!(found.len() <= usize::from(self.params.max_read_pieces));
                    self.read(id, ring, remote, region, &found);
                }
                Operation::Write { remote, local } => {
                    assert_eq!(local.len(), remote.len as usize);
                    let (region, found) = pieces(local.pieces());
                    assert!(found.len() <= usize::from(self.params.max_pieces));
                    let key = self.responding.front().copied();
                    let live = key.and_then(|key| self.live.get_mut(&key));
                    let live = live.expect("a WRITE belongs to a response");
                    assert_eq!(live.capsule.way, Way::ToHost, "only memory of a read is written");
                    live.moves(remote, region, &found);
                    self.line.post(id, ring, signaled, region, What::Write);
                    self.reached.transfers += 1;
                }
                Operation::Send(send) => {
                    assert!(send.list.is_empty() && send.payload.is_empty() && send.len() == 16);
                    let key = self.responding.pop_front().expect("a response was given");
                    let live = self.live.remove(&key).expect("a command is answered once");
                    assert_eq!(live.moved, live.wanted, "a response before its data");
                    assert_eq!(send.entry, live.cqe.as_bytes());
                    let invalidates = live.capsule.invalidates().filter(|_| self.params.invalidate);
                    assert_eq!(send.invalidate.map(|key| key.0), invalidates);
                    let region = live.memory.as_ref().map(Memory::address);
                    assert!(
                        signaled || region.is_none(),
                        "nobody will say when the memory is free"
                    );
                    self.line.post(id, ring, signaled, region, What::Response(region));
                    self.reached.completions += 1;
                }
            }
        }
    }

    fn read(
        &mut self,
        id: WorkId,
        ring: u16,
        remote: Remote,
        region: Option<usize>,
        found: &[(usize, usize)],
    ) {
        let owner = |live: &Live| live.memory.as_ref().map(Memory::address) == region;
        let (key, live) = self
            .live
            .iter_mut()
            .find(|(_, live)| owner(live))
            .expect("a READ brings data to memory that was accepted");
        assert_eq!(live.phase, Phase::Reading, "nobody wants the data");
        assert_eq!(
            live.capsule.way,
            Way::ToController,
            "only memory of a write is read"
        );
        let from = live.moved;
        live.moves(remote, region, found);
        live.reads += 1;
        if let Some(memory) = &live.memory {
            let serial = live.serial;
            memory.fill(from, live.moved - from, |at| content(serial, at));
        }
        if live.moved == live.wanted {
            self.reading.retain(|other| other != key);
        }
        let what = What::Read(*key, live.serial);
        self.line.post(id, ring, true, region, what);
    }

    fn complete(&mut self, id: WorkId) {
        let retired = self.line.retire_but(id, |what| matches!(what, What::Read(..)));
        let known = !retired.is_empty();
        self.over(retired);
        let completed = self.end.completed(id);
        assert_eq!(completed.is_ok(), known || self.failed, "{completed:?}");
        if let Err(error) = completed {
            self.broken(&error.to_string());
        }
    }

    fn fail(&mut self, id: WorkId) {
        self.end.work_failed(id);
        self.lose();
        let retired = self.line.retire_but(id, |what| matches!(what, What::Read(..)));
        self.over(retired);
    }

    fn stop(&mut self) {
        self.end.stopped();
        self.lose();
        let retired = self.line.retire_all();
        self.over(retired);
    }

    fn over(&mut self, retired: Vec<Posted<What>>) {
        for posted in retired {
            match posted.what {
                What::Write => {}
                What::Response(region) => {
                    let loan = region.and_then(|region| self.loans.get_mut(&region));
                    if let Some(loan) = loan {
                        loan.back = true;
                    }
                }
                What::Read(key, serial) => {
                    let live = self.live.get_mut(&key).expect("a READ's command waits for it");
                    assert_eq!(live.serial, serial, "its key was given to another");
                    live.reads -= 1;
                    if self.failed || live.reads > 0 {
                        continue;
                    }
                    match live.phase {
                        Phase::Reading if live.moved == live.wanted => {
                            live.phase = Phase::Deciding;
                            self.due.push_back(Due::Data(key));
                        }
                        Phase::Cancelled => {
                            live.phase = Phase::Deciding;
                            self.due.push_back(Due::Failed(key));
                        }
                        Phase::Reading | Phase::Deciding | Phase::Responding => {}
                    }
                }
            }
        }
        self.settle();
    }

    /// The connection is over.
    fn lose(&mut self) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.reached.terminations += 1;
        for due in std::mem::take(&mut self.due) {
            if let Due::Command(capsule) = due
                && capsule.inside.is_some()
            {
                self.unseen.push(capsule.buffer);
            }
        }
        for (buffer, ..) in std::mem::take(&mut self.early) {
            self.free_buffer(buffer);
        }
        self.reading.clear();
        self.responding.clear();
        self.settle();
    }

    fn settle(&mut self) {
        if !self.failed || self.still || self.line.len() > 0 {
            return;
        }
        self.still = true;
        for buffer in std::mem::take(&mut self.unseen) {
            self.free_buffer(buffer);
        }
        let keys: Vec<CommandKey> = self.live.keys().copied().collect();
        for key in keys {
            let used = |live: &Live| live.holds_buffer && live.taken;
            if !self.live.get(&key).is_some_and(used) {
                self.free(key);
            }
        }
    }

    /// A command is over, and what the connection has of it comes back.
    pub(super) fn free(&mut self, key: CommandKey) {
        let Some(live) = self.live.remove(&key) else {
            return;
        };
        if live.holds_buffer {
            self.free_buffer(live.capsule.buffer);
        }
        if let Some(memory) = live.memory {
            self.free_memory(&memory);
        }
    }

    pub(super) fn free_buffer(&mut self, id: u32) {
        let buffer = self.buffers.get_mut(&id).expect("the connection has it");
        buffer.back = true;
    }

    pub(super) fn free_memory(&mut self, memory: &Memory) {
        let loan = self.loans.get_mut(&memory.address());
        loan.expect("the connection has it").back = true;
    }

    /// Takes back what is free: exactly what must be.
    fn collect(&mut self) {
        while let Some(returned) = self.end.poll_returned() {
            match returned {
                Returned::Receive(buffer) => {
                    let known = self.buffers.remove(&buffer.id);
                    let known = known.expect("a buffer comes back once");
                    assert!(known.back, "a buffer came back that is in use");
                    assert_eq!(address(buffer.entry.region()), address(&known.region));
                    drop(buffer);
                    assert!(known.region.is_unique(), "something still refers to a buffer");
                }
                Returned::Data(data) => {
                    let region = data.segments().first().map(|segment| address(segment.region()));
                    let loan = region.and_then(|region| self.loans.remove(&region));
                    let loan = loan.expect("memory comes back once");
                    assert!(
                        loan.back && !self.line.names(loan.memory.address()),
                        "memory came back that is in use"
                    );
                    assert!(loan.memory.is(&data));
                }
            }
        }
        assert!(
            self.buffers.values().all(|buffer| !buffer.back),
            "a buffer is missing"
        );
        assert!(self.loans.values().all(|loan| !loan.back), "memory is missing");
    }

    fn check(&self) {
        assert_eq!(self.end.failed(), self.failed);
        assert_eq!(self.end.is_ready(), self.established && !self.failed);
        assert_eq!(usize::from(self.end.outstanding()), self.line.len());
        let room = usize::from(self.params.send_queue) - self.line.len();
        assert_eq!(usize::from(self.end.room()), room);
        if !self.failed {
            let told = self.due.iter().filter(|due| matches!(due, Due::Command(_)));
            assert_eq!(usize::from(self.end.in_flight()), self.live.len() + told.count());
        }
        for loan in self.loans.values() {
            // One is the model's. Nothing is let go of silently.
            assert!(!loan.memory.region.is_unique(), "memory was dropped");
        }
    }

    /// A session that finishes what there is, and the end.
    fn finish(&mut self) {
        self.establish();
        for _ in 0..4000 {
            self.events(usize::MAX - 1);
            let deciding = |(_, live): &(&CommandKey, &Live)| live.phase == Phase::Deciding;
            let keys: Vec<CommandKey> = self.live.iter().filter(deciding).map(|(key, _)| *key).collect();
            for key in keys {
                self.respond(key, None, 0, Cqe::default().with_status(Status::INTERNAL_ERROR));
            }
            self.work(usize::MAX - 1);
            self.check();
            let signaled = self.line.iter().find(|one| one.signaled).map(|one| one.id);
            match signaled {
                Some(id) => self.complete(id),
                None if self.due.is_empty() => break,
                None => {}
            }
        }
        self.collect();
        if !self.failed {
            assert!(self.live.is_empty(), "not answered: {:?}", self.live);
            assert_eq!((self.buffers.len(), self.loans.len()), (0, 0));
            assert!(!self.end.has_work());
        }
        self.end.lost();
        self.lose();
        self.collect();
        let left: Vec<WorkId> = self.line.iter().map(|one| one.id).collect();
        for (number, id) in left.into_iter().enumerate() {
            if number % 2 == 0 {
                self.fail(id);
            }
        }
        self.stop();
        let keys: Vec<CommandKey> = self.live.keys().copied().collect();
        for key in keys {
            self.respond(key, None, 0, Cqe::default());
        }
        self.check();
        self.collect();
        assert_eq!((self.buffers.len(), self.loans.len()), (0, 0), "all comes back");
        assert!(self.end.is_finished());
        assert!(self.end.poll_event().is_none() && self.end.poll_work().is_none());
    }
}

impl Live {
    /// Takes note of a part of its transfer, which must be the next one.
    fn moves(&mut self, remote: Remote, region: Option<usize>, found: &[(usize, usize)]) {
        let memory = self.memory.as_ref().expect("a transfer has memory");
        let len = remote.len as usize;
        assert_eq!(region, Some(memory.address()));
        assert!(
            len > 0 && self.moved + len <= self.wanted,
            "more than was asked for"
        );
        assert!(
            is_named(&self.capsule.ranges, self.moved, remote),
            "{remote:?} was not named"
        );
        assert_eq!(found, memory.cut(self.moved, len), "the wrong local bytes");
        self.moved += len;
    }
}
