//! The host's end of an RDMA queue pair, an application that submits anything, a controller that responds anything, and an adapter that
//! reports anything ([`rdma_host`](super::rdma_host)).

use std::collections::{BTreeMap, VecDeque};

use homi_fabric::rdma::{HostConnection, HostEvent, HostParams, Operation, RemoteMemory, WorkId};
use homi_queue::{Command, CommandId, Data, DataDirection, RemoteAddress, RemoteKey, Segment};
use homi_spec::{Cqe, Status};
use zerocopy::IntoBytes;

use super::Reached;
use super::choices::Choices;
use super::rdma_wire::{Line, Memory, Named, Posted, address, pieces, plain};

/// What [`run`] can do next, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    Submit,
    Established,
    FlowControl,
    /// The runtime posts receives and work.
    Work,
    /// The controller answers a command that it has.
    Respond,
    /// The controller answers as it should not.
    WrongResponse,
    /// Any bytes as a response.
    Bytes,
    /// The application takes events.
    Events,
    /// A completion of something signaled.
    Complete,
    /// A completion of anything.
    WrongCompletion,
    /// A work request fails, and those behind it are flushed.
    Fail,
    Lost,
    Stopped,
    /// The application asks for what has no completion.
    Drain,
}

impl Event {
    pub(super) const ALL: [Self; 14] = [
        Self::Submit,
        Self::Established,
        Self::FlowControl,
        Self::Work,
        Self::Respond,
        Self::WrongResponse,
        Self::Bytes,
        Self::Events,
        Self::Complete,
        Self::WrongCompletion,
        Self::Fail,
        Self::Lost,
        Self::Stopped,
        Self::Drain,
    ];
}

const MOST_EVENTS: usize = 600;
const BLOCK: usize = 512;

/// Where a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Its send refers to its memory and is not over.
    Sending,
    /// As before, and the response came.
    Answered,
    Sent,
}

/// A command in flight.
#[derive(Debug)]
struct Issued {
    command: Command,
    memory: Option<Memory>,
    len: usize,
    /// What the controller may be told of: ranges in order, each as the application registered it.
    registered: Vec<Named>,
    /// Its data is to be in the capsule.
    in_capsule: bool,
    stage: Stage,
    /// What the capsule named.
    named: Vec<Named>,
    answer: Option<(Cqe, Option<u32>)>,
}

/// An event that has to come.
#[derive(Debug)]
enum Due {
    Completed(CommandId, Cqe, Option<u32>),
    Refused(CommandId),
}

struct World {
    end: HostConnection,
    params: HostParams,
    established: bool,
    failed: bool,
    stopped: bool,
    entries: Option<u32>,
    live: BTreeMap<CommandId, Issued>,
    /// Answered or refused, until the application hears of it.
    ended: BTreeMap<CommandId, Issued>,
    due: VecDeque<Due>,
    sending: VecDeque<CommandId>,
    line: Line<Option<CommandId>>,
    /// Receives that the adapter has.
    receives: usize,
    next_key: u32,
    reached: Reached,
}

/// See [`rdma_host`](super::rdma_host).
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

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (kind, queues) = (choices.byte(), choices.byte());
        let pick = |from: [u16; 4], by: u8| from.get(usize::from(by & 3)).copied().unwrap_or(1);
        let params = HostParams {
            depth: pick([4, 1, 3, 8], kind),
            in_capsule: pick([1024, 0, 40, 8192], kind >> 2).into(),
            max_descriptors: pick([4, 1, 2, 16], kind >> 4),
            send_queue: pick([8, 2, 3, 16], queues),
            max_pieces: pick([4, 2, 3, 8], queues >> 2),
        };
        let mut world = Self {
            end: HostConnection::new(params).expect("the parameters are in range"),
            params,
            established: false,
            failed: false,
            stopped: false,
            entries: None,
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
            due: VecDeque::new(),
            sending: VecDeque::new(),
            line: Line::new(params.send_queue),
            receives: 0,
            next_key: 0x100,
            reached: Reached::default(),
        };
        if kind & 0x40 == 0 {
            world.establish();
        }
        world
    }

    fn event(&mut self, event: Event, choices: &mut Choices<'_>) {
        match event {
            Event::Submit => self.submit(choices),
            Event::Established => self.establish(),
            Event::FlowControl => {
                let entries = choices.byte();
                self.entries = (entries > 0).then_some(entries.into());
                self.end.set_flow_control(self.entries);
            }
            Event::Work => {
                let most = choices.byte();
                self.work(most.into());
            }
            Event::Respond => {
                let sent = |issued: &Issued| matches!(issued.stage, Stage::Sending | Stage::Sent);
                let Some(id) = self.pick(choices, sent) else {
                    return;
                };
                let how = choices.byte();
                let status = if how % 4 == 3 {
                    Status::LBA_OUT_OF_RANGE
                } else {
                    Status::SUCCESS
                };
                let mut cqe = Cqe::new(id.0).with_status(status);
                cqe.sq_head = match self.entries {
                    Some(entries) => u16::try_from(u32::from(how) % entries).unwrap_or(0),
                    None => u16::from(how) << 4,
                }
                .into();
                // Any of the keys that it may invalidate, or none.
                let keys: Vec<u32> = self.live.get(&id).map(Issued::given_away).unwrap_or_default();
                let key = (how & 1 == 0).then(|| keys.get(choices.below(keys.len())).copied());
                self.respond(cqe.as_bytes(), key.flatten());
            }
            Event::WrongResponse => {
                let id = self.pick(choices, |_| true).map_or(0, |id| id.0);
                let how = choices.byte();
                // Nearly a command's: another sequence number, another slot, or right.
                let mut cqe = Cqe::new(id ^ (u16::from(how & 1) << 8) ^ u16::from(how & 2));
                cqe.sq_head = choices.word().into();
                cqe.set_status(Status::from_raw(choices.word()));
                let key = (how & 4 > 0).then(|| u32::from(choices.byte()) + 0x100);
                self.respond(cqe.as_bytes(), key);
            }
            Event::Bytes => {
                let len = choices.below(40);
                let bytes = choices.take(len);
                self.respond(bytes, None);
            }
            Event::Events => {
                let most = choices.byte();
                self.events(most.into());
            }
            Event::Complete => {
                let signaled = self.line.iter().filter(|one| one.signaled);
                let all: Vec<WorkId> = signaled.map(|one| one.id).collect();
                if let Some(id) = all.get(choices.below(all.len())) {
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
                for id in all.iter().skip(first).take(1 + usize::from(flushed)) {
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
            Event::Drain => self.drain(),
        }
    }

    fn pick(&self, choices: &mut Choices<'_>, wanted: impl Fn(&Issued) -> bool) -> Option<CommandId> {
        let all = self.live.iter().filter(|(_, issued)| wanted(issued));
        let all: Vec<CommandId> = all.map(|(id, _)| *id).collect();
        all.get(choices.below(all.len())).copied()
    }

    // ---- the application ----

    fn submit(&mut self, choices: &mut Choices<'_>) {
        let (kind, size, how) = (choices.byte() % 8, choices.byte(), choices.byte());
        let Some(slot) = self.end.reserve() else {
            assert_eq!(self.live.len(), usize::from(self.params.depth));
            return;
        };
        if how == 255 {
            self.end.release(slot);
            return;
        }
        let blocks = u32::from(size % 24) + 1;
        let command = match kind {
            0 | 1 => Command::read(1, size.into(), blocks),
            2 | 3 => Command::write(1, size.into(), blocks),
            4 => Command::compare(1, 0, blocks),
            5 => Command::verify(1, 0, blocks),
            6 => Command::deallocate(1, 1),
            _ => Command::flush(1),
        };
        let len = match kind {
            6 => 16,
            7 => 0,
            _ => usize::try_from(blocks).unwrap_or(1) * BLOCK,
        };
        let parts = usize::from(how & 7);
        let memory = (len > 0).then(|| Memory::new(len, parts));
        // Some parts are not registered, some are right after the one before, and some are windows.
        let anywhere = how & 0xf0 == 0xf0;
        let forgotten = if how & 0x88 == 0x88 {
            Some(choices.below(8))
        } else {
            None
        };
        let side_by_side = how & 0x10 > 0;
        let invalidate = how & 0x20 > 0;
        let high = how & 0x48 == 0x48;
        let mut registered = Vec::new();
        let mut next = if high { u64::MAX - 4095 } else { 0x4000_0000 };
        let mut wraps = false;
        for (number, (_, len)) in memory.iter().flat_map(|memory| memory.parts.iter().enumerate()) {
            if *len == 0 {
                registered.push(None);
                continue;
            }
            let bytes = *len as u64;
            if !side_by_side {
                self.next_key += 1;
            }
            wraps |= next.checked_add(bytes - 1).is_none();
            let named = Named {
                address: next,
                key: self.next_key,
                len: bytes,
                invalidate,
            };
            registered.push((Some(number) != forgotten).then_some(named));
            next = if side_by_side {
                next.wrapping_add(bytes)
            } else {
                next.wrapping_add(bytes + 4096)
            };
        }
        let next_key = self.next_key;
        self.next_key += 1;
        assert!(next_key < self.next_key);
        let data = match &memory {
            _ if anywhere => Data::Anywhere { len },
            Some(memory) => memory.data(),
            None => Data::None,
        };
        let memory = memory.filter(|_| !anywhere);
        let lookup = |segment: &Segment| -> Option<RemoteMemory> {
            let memory = memory.as_ref()?;
            assert_eq!(address(segment.region()), memory.address());
            let part = (segment.start(), segment.len());
            let number = memory.parts.iter().position(|other| *other == part)?;
            let named = (*registered.get(number)?)?;
            Some(RemoteMemory {
                address: RemoteAddress(named.address),
                key: RemoteKey(named.key),
                invalidate: named.invalidate,
            })
        };
        let id = self.end.submit(slot, command, data, &lookup);
        assert!(!self.live.contains_key(&id), "an id names one command");
        let filled = memory
            .iter()
            .flat_map(|memory| &memory.parts)
            .filter(|(_, len)| *len > 0)
            .count();
        let direction = command.direction();
        let in_capsule = direction == DataDirection::HostToController
            && len <= self.params.in_capsule as usize
            && filled < usize::from(self.params.max_pieces);
        let complete = filled == registered.iter().flatten().count();
        let ranges: Vec<Named> = registered.into_iter().flatten().collect();
        let stretches = 1 + ranges
            .windows(2)
            .filter(|pair| match pair {
                [a, b] => a.key != b.key || a.address.checked_add(a.len) != Some(b.address),
                _ => false,
            })
            .count();
        let most = usize::from(self.params.max_descriptors)
            .min(self.params.in_capsule as usize / 16)
            .max(1);
        let moves = matches!(
            direction,
            DataDirection::HostToController | DataDirection::ControllerToHost
        );
        let described = complete && !wraps && stretches <= most;
        let sendable = !anywhere && (len == 0 || moves && (in_capsule || described));
        let issued = Issued {
            command,
            len,
            registered: ranges,
            in_capsule: in_capsule && len > 0,
            stage: Stage::Waiting,
            named: Vec::new(),
            answer: None,
            memory,
        };
        if self.failed {
            self.live.insert(id, issued);
        } else if sendable {
            self.live.insert(id, issued);
            self.sending.push_back(id);
        } else {
            self.ended.insert(id, issued);
            self.due.push_back(Due::Refused(id));
        }
    }

    fn events(&mut self, most: usize) {
        for _ in 0..=most {
            let (event, due) = (self.end.poll_event(), self.due.pop_front());
            match (event, due) {
                (None, None) => return,
                (
                    Some(HostEvent::Completed {
                        id,
                        cqe,
                        data,
                        invalidated,
                    }),
                    Some(Due::Completed(known, answer, key)),
                ) => {
                    assert_eq!((id, cqe, invalidated.map(|key| key.0)), (known, answer, key));
                    let issued = self.ended.remove(&id).expect("a command completes once");
                    self.comes_back(&issued, &data);
                    self.reached.completions += 1;
                    if cqe.status().is_success() {
                        self.reached.transfers += 1;
                    }
                }
                (Some(HostEvent::Refused { id, reason, data }), Some(Due::Refused(known))) => {
                    assert_eq!(id, known);
                    assert!(!reason.to_string().is_empty() && !reason.status().is_success());
                    let issued = self.ended.remove(&id).expect("a command is refused once");
                    self.comes_back(&issued, &data);
                    self.reached.failures += 1;
                }
                (event, due) => unreachable!("{event:?} instead of {due:?}"),
            }
        }
    }

    /// A command's memory, all of it and not in use.
    fn comes_back(&self, issued: &Issued, data: &Data) {
        match &issued.memory {
            Some(memory) => {
                assert!(memory.is(data), "other memory came back");
                assert!(
                    self.stopped || !self.line.names(memory.address()),
                    "memory came back that is in use"
                );
            }
            None => assert!(data.segments().is_empty()),
        }
    }

    fn drain(&mut self) {
        let drained = self.end.drain();
        assert_eq!(
            drained.is_err(),
            !self.stopped,
            "memory is given back when nothing can use it"
        );
        let Ok(drained) = drained else { return };
        for undelivered in drained {
            let issued = self
                .live
                .remove(&undelivered.id)
                .expect("a command comes back once");
            assert_eq!(undelivered.command, issued.command);
            self.comes_back(&issued, &undelivered.data);
        }
        assert!(self.live.is_empty(), "every command has an outcome");
    }

    // ---- the adapter ----

    fn establish(&mut self) {
        self.end.established();
        self.established = true;
        self.reached.ready = 1;
    }

    fn work(&mut self, most: usize) {
        self.receives += usize::from(self.end.take_receives());
        assert!(
            self.receives <= usize::from(self.params.depth),
            "more receives than were asked for"
        );
        for _ in 0..=most {
            assert_eq!(self.end.has_work(), !self.failed && !self.sending.is_empty());
            let ready = self.established && !self.failed && !self.line.is_full();
            let Some(work) = self.end.poll_work() else {
                assert!(!ready || self.sending.is_empty(), "work that can be posted waits");
                return;
            };
            assert!(ready, "work although nothing may be posted");
            let Operation::Send(send) = &work.operation else {
                unreachable!("a host only sends");
            };
            let id = self.sending.pop_front().expect("a command was submitted");
            let issued = self.live.get_mut(&id).expect("it is in flight");
            assert!(send.invalidate.is_none() && send.entry.len() == 64);
            assert!(send.len() <= 64 + self.params.in_capsule as usize);
            let (region, found) = pieces(send.payload.pieces());
            assert!(found.len() < usize::from(self.params.max_pieces));
            let mut sgl = [0; 16];
            sgl.copy_from_slice(send.entry.get(24..40).expect("there are 64 bytes"));
            // Everything but the id and the data pointer is the application's.
            let mut rest = issued.command.0;
            rest.cid = id.0.into();
            rest.dptr = sgl;
            // PSDT says that it is a descriptor (Base 2.0, figure 86).
            rest.flags |= 0x40;
            assert_eq!(send.entry, rest.as_bytes());
            issued.named = issued.describe(sgl, send.list);
            if issued.in_capsule {
                let memory = issued.memory.as_ref().expect("it has data");
                assert_eq!(region, Some(memory.address()));
                assert_eq!(found, memory.cut(0, issued.len), "the bytes in the capsule");
                assert!(work.signaled, "nobody will say when the memory is free");
                issued.stage = Stage::Sending;
            } else {
                assert!(send.payload.is_empty());
                issued.stage = Stage::Sent;
            }
            self.reached.commands += 1;
            let what = issued.in_capsule.then_some(id);
            self.line.post(work.id, work.ring, work.signaled, region, what);
        }
    }

    fn complete(&mut self, id: WorkId) {
        let retired = self.line.retire(id);
        let known = !retired.is_empty();
        self.over(retired);
        let completed = self.end.completed(id);
        assert_eq!(completed.is_ok(), known || self.failed, "{completed:?}");
        if let Err(error) = completed {
            self.broken(&error.to_string());
        }
    }

    fn over(&mut self, retired: Vec<Posted<Option<CommandId>>>) {
        if self.failed {
            return;
        }
        for id in retired.into_iter().filter_map(|posted| posted.what) {
            let Some(issued) = self.live.get_mut(&id) else {
                unreachable!("a command is in flight as long as its send");
            };
            issued.stage = Stage::Sent;
            if issued.answer.is_some() {
                self.answered(id);
            }
        }
    }

    /// The application is to hear of a command's answer.
    fn answered(&mut self, id: CommandId) {
        if let Some(issued) = self.live.remove(&id)
            && let Some((cqe, key)) = issued.answer
        {
            self.due.push_back(Due::Completed(id, cqe, key));
            self.ended.insert(id, issued);
        }
    }

    fn fail(&mut self, id: WorkId) {
        self.end.work_failed(id);
        self.lose();
        self.line.retire(id);
    }

    fn stop(&mut self) {
        self.end.stopped();
        self.lose();
        self.line.retire_all();
        self.stopped = true;
    }

    fn broken(&mut self, sentence: &str) {
        assert!(!sentence.is_empty());
        self.reached.errors += 1;
        self.lose();
    }

    fn lose(&mut self) {
        if !self.failed {
            self.failed = true;
            self.reached.terminations += 1;
            self.sending.clear();
        }
    }

    // ---- the controller ----

    fn respond(&mut self, bytes: &[u8], invalidated: Option<u32>) {
        self.receives += usize::from(self.end.take_receives());
        if self.receives == 0 {
            // The adapter keeps it back.
            return;
        }
        self.receives -= 1;
        let mut right = None;
        if let Ok(cqe) = <&[u8; 16]>::try_from(bytes) {
            let cqe: Cqe = zerocopy::transmute!(*cqe);
            let id = CommandId(cqe.cid.get());
            let head = u32::from(cqe.sq_head.get());
            let issued = self.live.get(&id);
            let issued = issued.filter(|issued| matches!(issued.stage, Stage::Sending | Stage::Sent));
            let known =
                issued.is_some_and(|issued| invalidated.is_none_or(|key| issued.given_away().contains(&key)));
            if known && self.entries.is_none_or(|entries| head < entries) {
                right = Some((id, cqe));
            }
        }
        let received = self.end.received(bytes, invalidated.map(RemoteKey));
        if self.failed {
            assert!(received.is_ok());
            return;
        }
        assert_eq!(received.is_ok(), right.is_some(), "{received:?}");
        match (received, right) {
            (Ok(()), Some((id, cqe))) => {
                let issued = self.live.get_mut(&id).expect("it was found");
                issued.answer = Some((cqe, invalidated));
                if issued.stage == Stage::Sending {
                    issued.stage = Stage::Answered;
                } else {
                    self.answered(id);
                }
            }
            (Err(error), None) => self.broken(&error.to_string()),
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.end.failed(), self.failed);
        assert_eq!(self.end.is_ready(), self.established && !self.failed);
        assert_eq!(self.end.in_flight(), self.live.len());
        assert_eq!(usize::from(self.end.outstanding()), self.line.len());
        let room = usize::from(self.params.send_queue) - self.line.len();
        assert_eq!(usize::from(self.end.room()), room);
        for issued in self.live.values().chain(self.ended.values()) {
            let dropped = |memory: &Memory| memory.region.is_unique();
            assert!(!issued.memory.as_ref().is_some_and(dropped), "memory was dropped");
        }
    }

    /// A controller that answers what there is, and the end.
    fn finish(&mut self) {
        self.establish();
        for _ in 0..4000 {
            self.work(usize::MAX - 1);
            let sent = |(_, issued): &(&CommandId, &Issued)| {
                matches!(issued.stage, Stage::Sending | Stage::Sent) && !self.failed
            };
            let ids: Vec<CommandId> = self.live.iter().filter(sent).map(|(id, _)| *id).collect();
            for id in ids {
                self.respond(Cqe::new(id.0).as_bytes(), None);
            }
            self.check();
            self.events(usize::MAX - 1);
            let signaled = self.line.iter().find(|one| one.signaled).map(|one| one.id);
            match signaled {
                Some(id) => self.complete(id),
                None if self.sending.is_empty() && self.due.is_empty() => break,
                None => {}
            }
        }
        if !self.failed {
            assert!(self.live.is_empty(), "not ended: {:?}", self.live);
        }
        self.end.lost();
        self.lose();
        let left: Vec<WorkId> = self.line.iter().map(|one| one.id).collect();
        for (number, id) in left.into_iter().enumerate() {
            if number % 2 == 0 {
                self.fail(id);
            }
        }
        if !self.stopped {
            self.drain();
        }
        self.stop();
        self.check();
        self.events(usize::MAX - 1);
        self.drain();
        assert!(self.ended.is_empty() && self.end.poll_work().is_none());
        assert_eq!(self.end.take_receives(), 0, "no receives after the end");
    }
}

impl Issued {
    /// Keys that the controller may invalidate.
    fn given_away(&self) -> Vec<u32> {
        let windows = self.named.iter().filter(|named| named.invalidate);
        windows.map(|named| named.key).collect()
    }

    /// Checks that the descriptors name the command's memory, all of it in its order and nothing else. Returns what they name.
    fn describe(&self, sgl: [u8; 16], list: &[u8]) -> Vec<Named> {
        if self.in_capsule {
            assert_eq!((sgl[15], list), (0x01, &[][..]));
            assert_eq!(plain(sgl), (0, self.len as u64));
            return Vec::new();
        }
        let named: Vec<Named> = match Named::read(sgl) {
            Some(one) => {
                assert!(list.is_empty());
                vec![one]
            }
            None => {
                assert_eq!((sgl[15], plain(sgl)), (0x31, (0, list.len() as u64)));
                let (descriptors, rest) = list.as_chunks::<16>();
                assert!(rest.is_empty() && descriptors.len() > 1);
                let read = |sgl: &[u8; 16]| Named::read(*sgl).expect("a keyed block");
                descriptors.iter().map(read).collect()
            }
        };
        if self.len == 0 {
            assert_eq!(sgl, Named::NOTHING);
            return Vec::new();
        }
        // Both as lists of bytes side by side.
        assert_eq!(
            joined(&named),
            joined(&self.registered),
            "what the controller may reach"
        );
        assert!(named.iter().all(|range| range.len > 0));
        named
    }
}

/// The same ranges with neighbours made one.
fn joined(ranges: &[Named]) -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last)
                if last.key == range.key
                    && last.invalidate == range.invalidate
                    && last.address.checked_add(last.len) == Some(range.address) =>
            {
                last.len += range.len;
            }
            _ => all.push(*range),
        }
    }
    all
}
