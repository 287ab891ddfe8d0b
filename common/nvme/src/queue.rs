//! [`IoQueue`]: a submission and a completion queue of a drive, as a [`Queue`].
//!
//! # What an I/O costs
//! A read or write of up to two pages, in memory that was used before, is eight stores into the submission queue, a few into the slot's
//! cache line, and a completion of two loads. One doorbell per commit and one per poll that found something. No lock, no allocation, no system
//! call, no clock, no reference count; other threads are heard of by one load per commit and per poll. Everything else goes by [`rare`].
//!
//! # Whose word is taken
//! None of the controller's: identifiers, heads and queue numbers are checked before anything is done with them. A queue whose controller
//! answers nonsense collects nothing more, and [`Controller::service`](crate::Controller::service) resets the controller; until then nothing
//! is handed back, because the controller may still write where the commands' memory is.

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use homi_pci::{Mapping, Registers};
use homi_queue::{
    Buffer, Command, CommandId, Completed, Completion, CompletionRing, Data, LostReason, Queue, QueueFull,
    QueueLost, Segment, Slot, SubmissionRing, Wait, Words,
};
use homi_spec::status::Status;

use crate::admin::fields;
use crate::cmb::CmbMemory;
use crate::controller::Controller;
use crate::error::Refusal;
use crate::flights::{Flights, OWN_BITS};
use crate::info::{Namespace, Shape};
use crate::reach::{Extra, Reach};
use crate::shadow::ShadowDoorbells;
use crate::shared::{LEAKED, LOST, QueueCounters, QueueShared, RUNNING, add};

mod rare;

/// The opcode of Write; that of Read is the next.
const WRITE: u64 = 0x01;
/// The phase tag in a completion's last word.
const PHASE: u64 = 1 << 48;
/// The submission queue's identifier there.
const QUEUE: u64 = 0xffff << 16;

/// What is known about a command that is no plain one, beside its slot.
struct Unusual {
    command: Command,
    data: Data,
    /// The id that `submit` returned, which parts of a split command do not have.
    user: CommandId,
    extra: Extra,
}

/// A queue's rings in memory.
pub(crate) struct Rings {
    /// Keeps the memory in the controller's reach.
    pub(crate) mapping: Mapping,
    /// Where completions are in the mapped memory, in bytes.
    pub(crate) completions_at: usize,
    /// Where submissions are, if not at the start of the mapped memory.
    pub(crate) submissions: Option<CmbMemory>,
    pub(crate) entries: Words<8>,
    pub(crate) completions: Words<2>,
    pub(crate) submission: SubmissionRing,
    pub(crate) completion: CompletionRing,
}

/// What a queue is made of.
pub(crate) struct Parts {
    pub(crate) controller: Controller,
    pub(crate) shared: Arc<QueueShared>,
    pub(crate) registers: Arc<dyn Registers>,
    pub(crate) submission_doorbell: u64,
    pub(crate) completion_doorbell: u64,
    pub(crate) rings: Rings,
    pub(crate) reach: Reach,
    pub(crate) shadow: Option<ShadowDoorbells>,
    pub(crate) namespaces: Arc<Vec<Namespace>>,
}

/// A queue pair of a controller, run by the thread that has it. Opened by [`Controller::open_queue`](crate::Controller::open_queue).
///
/// Commands longer than the controller takes at once are split if they are reads, writes or compares: the parts go one after the other, the
/// first that fails ends the command, and there is one completion. Longer commands of other kinds are refused; a refused command completes
/// with the status of its [`Refusal`].
///
/// Dropping the queue deletes it, which waits for the controller; commands in flight are over then, without a completion.
pub struct IoQueue {
    flights: Flights,
    rings: Rings,
    /// The namespace that was addressed last.
    shape: Shape,
    /// The first word of a write to it, without what is the queue's, and bytes of a block.
    plain: (u64, u64),
    reach: Reach,
    shared: Arc<QueueShared>,
    registers: Arc<dyn Registers>,
    submission_doorbell: u64,
    completion_doorbell: u64,
    shadow: Option<ShadowDoorbells>,
    /// Entries rung for.
    placed: u64,
    /// The next poll has more to do than to look.
    attention: Cell<bool>,
    /// Somebody sleeps on the interrupt, which then has to be taken.
    armed: Cell<bool>,
    /// The controller answered nonsense.
    broken: bool,
    /// A part of a split command was placed since the doorbell was rung, which no caller knows of.
    parts: bool,
    /// By slot.
    unusual: Box<[Unusual]>,
    /// Commands that were refused, until a poll tells.
    ready: Vec<(Command, Completed)>,
    refusal: Option<Refusal>,
    namespaces: Arc<Vec<Namespace>>,
    /// Of mappings and namespaces, as taken over.
    generation: u64,
    controller: Controller,
    pub(crate) created: Created,
}

/// What the controller has of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    Nothing,
    Completion,
    Both,
}

const NO_SHAPE: Shape = Shape {
    nsid: 0,
    transfer: 0,
    metadata: 0,
    separate: true,
};
/// A first word that no command has, the queue's bits being left out: nothing is plain.
const NOT_PLAIN: (u64, u64) = (OWN_BITS, 0);

impl IoQueue {
    pub(crate) fn new(parts: Parts) -> Self {
        let depth = parts.shared.depth;
        let unusual = (0..depth).map(|_| Unusual {
            command: Command::default(),
            data: Data::None,
            user: CommandId(0),
            extra: Extra::default(),
        });
        Self {
            flights: Flights::new(depth),
            rings: parts.rings,
            shape: NO_SHAPE,
            plain: NOT_PLAIN,
            reach: parts.reach,
            shared: parts.shared,
            registers: parts.registers,
            submission_doorbell: parts.submission_doorbell,
            completion_doorbell: parts.completion_doorbell,
            shadow: parts.shadow,
            placed: 0,
            attention: Cell::new(false),
            armed: Cell::new(false),
            broken: false,
            parts: false,
            unusual: unusual.collect(),
            ready: Vec::new(),
            refusal: None,
            namespaces: parts.namespaces,
            // One that is none: the first look takes everything over.
            generation: u64::MAX,
            controller: parts.controller,
            created: Created::Nothing,
        }
    }

    /// The controller that it is a queue of.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Its identifier.
    #[must_use]
    pub fn qid(&self) -> u16 {
        self.shared.qid
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.shared.counters.read()
    }

    /// Where the controller finds submissions and completions.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        let start = self.rings.mapping.range().start().0;
        let submissions = match &self.rings.submissions {
            Some(memory) => memory.address().0,
            None => start,
        };
        (submissions, start + self.rings.completions_at as u64)
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.in_flight()
    }

    /// The longest transfer in bytes that goes to the controller as one command; longer ones are split.
    #[must_use]
    pub fn max_transfer(&self) -> u64 {
        self.reach.max_len()
    }

    /// Why the last refused command was refused, once.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// Why the queue was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<LostReason> {
        matches!(self.shared.state(), LOST | LEAKED).then(|| self.shared.reason())
    }

    /// The pointer for a command whose data is all of its blocks, in memory known to the controller, in at most two pages.
    #[inline]
    fn pointer(&self, first: u64, range: u64, segment: &Segment) -> Option<(u64, u64)> {
        let (write, transfer) = self.plain;
        // A write or a read, of the namespace addressed last, without flags.
        if (first & !OWN_BITS).wrapping_sub(write) > 1 {
            return None;
        }
        let len = segment.len();
        if ((range & 0xffff) + 1) * transfer != len as u64 {
            return None;
        }
        self.reach.quick(segment.host_address() as usize, len)
    }

    /// Writes an entry into the submission queue. The first word is complete.
    #[inline]
    fn place(&mut self, words: [u64; 5], pointer: (u64, u64)) {
        // As many entries as commands may be in flight, and one more: there is always room, if the controller says how far it got.
        let Ok(at) = self.rings.submission.push() else {
            self.stuck();
            return;
        };
        let Some([a, b, c, d, e, f, g, h]) = self.rings.entries.get(at.into()) else {
            return;
        };
        let [first, second, sixth, seventh, eighth] = words;
        a.store(first.to_le(), Ordering::Relaxed);
        b.store(second.to_le(), Ordering::Relaxed);
        // An issuer's metadata pointer would be an address of its own choice.
        c.store(0, Ordering::Relaxed);
        d.store(pointer.0.to_le(), Ordering::Relaxed);
        e.store(pointer.1.to_le(), Ordering::Relaxed);
        f.store(sixth.to_le(), Ordering::Relaxed);
        g.store(seventh.to_le(), Ordering::Relaxed);
        h.store(eighth.to_le(), Ordering::Relaxed);
    }

    /// Tells the controller what was placed since the last time.
    #[inline]
    fn ring(&mut self) {
        let placed = self.rings.submission.unoffered();
        let Some(tail) = self.rings.submission.doorbell() else {
            return;
        };
        self.placed += u64::from(placed);
        let counters = &self.shared.counters;
        counters.placed.store(self.placed, Ordering::Relaxed);
        if let Some(shadow) = &mut self.shadow
            && !shadow.submission(tail)
        {
            add(&counters.shadowed, 1);
            return;
        }
        self.registers.write32(self.submission_doorbell, tail.into());
        add(&counters.submission_doorbells, 1);
    }

    /// Tells the controller what was collected since the last time.
    #[inline]
    fn release_completions(&mut self, count: usize) {
        let counters = &self.shared.counters;
        add(&counters.completed, count as u64);
        let Some(head) = self.rings.completion.doorbell() else {
            return;
        };
        if let Some(shadow) = &mut self.shadow
            && !shadow.completion(head)
        {
            add(&counters.shadowed, 1);
            return;
        }
        self.registers.write32(self.completion_doorbell, head.into());
        add(&counters.completion_doorbells, 1);
    }

    /// Collects what is in the completion queue.
    #[inline]
    fn collect(&mut self, completed: &mut impl Extend<Completed>) -> usize {
        let mut tally = Tally::default();
        let end = loop {
            let IoQueue {
                rings,
                flights,
                shared,
                ..
            } = &mut *self;
            // A controller that never stops completing does not keep its caller here.
            let most = usize::from(flights.depth()).saturating_sub(tally.found);
            let mut plain = Plain {
                stop: usize::from(rings.completion.head()) + most,
                completions: &rings.completions,
                at: rings.completion.head().into(),
                expected: u64::from(shared.qid) << 16 | u64::from(rings.completion.phase()) << 48,
                flights,
                last: tally.last,
                end: End::Empty,
            };
            completed.extend(&mut plain);
            let found = most.saturating_sub(plain.stop.saturating_sub(plain.at));
            let end = plain.end;
            tally.last = plain.last;
            tally.found += found;
            tally.completed += found;
            // No more than there are slots, so no more than the queue has entries.
            rings.completion.advance_by(u32::try_from(found).unwrap_or(0));
            let End::Rare { id, rest, result } = end else {
                break end;
            };
            let (head, ..) = fields(rest);
            // Another part of a split command needs the room that this one gives back.
            let sane = self.rings.submission.advance_head(head).is_ok();
            if !sane || !self.flights.free(id) {
                break End::Nonsense { rest };
            }
            self.rings.completion.advance();
            tally.found += 1;
            tally.last = 0;
            if let Some(done) = self.rare_completed(id, completion(rest, result)) {
                completed.extend(Some(done));
                tally.completed += 1;
            }
        };
        self.collected(&tally, end);
        tally.completed
    }

    /// What is done once for all completions that a poll found.
    #[inline]
    fn collected(&mut self, tally: &Tally, mut end: End) {
        // The last one says how far the controller got. The others are not believed, so they are not checked.
        if tally.last != 0 {
            let (head, ..) = fields(tally.last);
            if self.rings.submission.advance_head(head).is_err() {
                end = End::Nonsense { rest: tally.last };
            }
        }
        if tally.found > 0 {
            self.release_completions(tally.found);
        }
        if let End::Nonsense { rest } = end {
            self.fail(rest);
        } else if mem::take(&mut self.parts) {
            self.ring();
        }
        if self.reach.table.has_gone() {
            self.let_go();
        }
    }
}

/// What came of a command, from the words of its completion.
#[inline]
fn completion(rest: u64, result: u64) -> Completion {
    let (.., status) = fields(rest);
    Completion {
        status: Status::from_wire(status),
        result,
    }
}

/// What a poll found.
#[derive(Debug, Default)]
struct Tally {
    /// Entries of the completion queue.
    found: usize,
    /// Commands that are over: a part of a split command is none.
    completed: usize,
    /// The last word of the last entry of a plain command, which says how far the controller got in the submission queue; or 0, which is none,
    /// because such a word names the queue.
    last: u64,
}

/// Why collecting stopped.
enum End {
    /// There is nothing more.
    Empty,
    /// The next entry is of no plain command.
    Rare { id: CommandId, rest: u64, result: u64 },
    /// The controller answered nonsense, with this last word of an entry.
    Nonsense { rest: u64 },
}

/// Completions of plain commands, until there is something else.
struct Plain<'a> {
    /// Where to stop: it may be past the last entry.
    stop: usize,
    completions: &'a Words<2>,
    /// The next entry.
    at: usize,
    /// Queue identifier and phase tag that it has if it is new.
    expected: u64,
    flights: &'a mut Flights,
    /// The last word of the last entry, or 0.
    last: u64,
    end: End,
}

/// What an entry is that is not of a plain command.
#[cold]
#[inline(never)]
fn other(flights: &Flights, rest: u64, result: u64) -> End {
    let (_, _, id, _) = fields(rest);
    let id = CommandId(id);
    if flights.is_rare(id) {
        End::Rare { id, rest, result }
    } else {
        End::Nonsense { rest }
    }
}

/// Says that what follows is seldom done.
#[cold]
const fn seldom() {}

impl Iterator for Plain<'_> {
    type Item = Completed;

    #[inline]
    fn next(&mut self) -> Option<Completed> {
        if self.at == self.stop {
            return None;
        }
        let [low, high] = match self.completions.get(self.at) {
            Some(entry) => entry,
            None => {
                seldom();
                // After the last entry comes the first, with the other phase tag.
                self.at = 0;
                self.stop = self.stop.saturating_sub(self.completions.len());
                self.expected ^= PHASE;
                self.completions.get(0)?
            }
        };
        // The phase tag says that the rest is there.
        let rest = u64::from_le(high.load(Ordering::Acquire));
        let different = rest ^ self.expected;
        if different & (PHASE | QUEUE) != 0 {
            if different & PHASE == 0 {
                self.end = End::Nonsense { rest };
            }
            return None;
        }
        let (_, _, id, _) = fields(rest);
        let id = CommandId(id);
        let result = u64::from_le(low.load(Ordering::Relaxed));
        let Some(segment) = self.flights.take_plain(id) else {
            self.end = other(self.flights, rest, result);
            return None;
        };
        self.at += 1;
        self.last = rest;
        Some(Completed {
            id,
            completion: completion(rest, result),
            data: Data::One(segment),
        })
    }
}

impl Queue for IoQueue {
    fn depth(&self) -> u16 {
        self.flights.depth()
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.flights.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.flights.release(slot);
    }

    #[inline]
    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let (index, id) = (slot.index(), slot.id());
        let words: [u64; 8] = zerocopy::transmute!(command.0);
        // The pointers are the queue's to choose.
        let [a, b, _, _, _, f, g, h] = words.map(u64::from_le);
        let segment = match data {
            Data::One(segment) => segment,
            other => {
                self.submit_rare(index, id, [a, b, f, g, h], other);
                return id;
            }
        };
        let (Some(pointer), Some(flight)) = (self.pointer(a, g, &segment), self.flights.get_mut(index))
        else {
            self.submit_rare(index, id, [a, b, f, g, h], Data::One(segment));
            return id;
        };
        let first = flight.occupy(id, [a, b, f, g, h], segment);
        self.place([first, b, f, g, h], pointer);
        id
    }

    #[inline]
    fn commit(&mut self) -> Result<(), QueueLost> {
        if !self.shared.is_running() || self.broken {
            return self.still_lost();
        }
        if self.reach.generation() != self.generation {
            self.refresh();
        }
        self.ring();
        Ok(())
    }

    #[inline]
    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        if self.shared.state() != RUNNING || self.attention.get() {
            return self.poll_rare(completed);
        }
        Ok(self.collect(completed))
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        for segment in data.segments() {
            self.reach
                .table
                .forget(segment.host_address() as usize, segment.len());
        }
        self.let_go();
        Buffer::try_from_data(data)
    }
}

impl Wait for IoQueue {
    /// The interrupt's descriptor, or `None` for a queue without interrupts: that has to be polled.
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        let vector = self.shared.vector.as_ref()?;
        self.armed.set(true);
        self.attention.set(true);
        Some(vector.as_fd())
    }
}

impl fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQueue")
            .field("qid", &self.shared.qid)
            .field("depth", &self.flights.depth())
            .field("in_flight", &self.flights.in_flight())
            .finish_non_exhaustive()
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        let inner = Arc::clone(self.controller.inner());
        let safe = inner.delete_queue(&self.shared, self.created);
        if safe {
            return;
        }
        // Nothing keeps the controller from any of this.
        mem::forget(self.rings.mapping.clone());
        let flights = mem::replace(&mut self.flights, Flights::new(1));
        flights.into_segments().for_each(mem::forget);
        let unusual = mem::take(&mut self.unusual).into_iter().map(|unusual| {
            mem::forget(unusual.data);
            unusual.extra
        });
        self.reach.leak(unusual);
        if let Some(shadow) = self.shadow.take() {
            shadow.leak();
        }
        if let Some(memory) = self.rings.submissions.take() {
            memory.leak();
        }
    }
}
