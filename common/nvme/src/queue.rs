//! [`IoQueue`]: a submission and a completion queue of a drive, as a [`Queue`].
//!
//! # What an I/O costs
//! A read or write of up to two pages, in memory that was used before, is eight stores into the submission queue, a few into the slot, and a
//! completion of two loads. One doorbell per commit and one per poll that found something. No lock, no allocation, no system call, no clock,
//! no reference count; other threads are heard of by one load per commit and per poll. Everything else goes by [`Rare`](rare).
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
    QueueLost, Region, Slot, Slots, SubmissionRing, Wait,
};
use homi_spec::status::Status;

use crate::admin::fields;
use crate::cmb::CmbMemory;
use crate::controller::Controller;
use crate::error::Refusal;
use crate::info::{Namespace, Shape};
use crate::reach::{Extra, Pointer, Reach};
use crate::shadow::ShadowDoorbells;
use crate::shared::{LEAKED, LOST, QueueCounters, QueueShared, RUNNING, add};

mod rare;

/// Opcodes of Write, Read and Compare as bits: the commands whose data is their blocks.
const BLOCKS: u64 = (1 << 0x01) | (1 << 0x02) | (1 << 0x05);
/// The bits of an entry's first word that the queue writes: PSDT and the command identifier.
const OWN_BITS: u64 = 0xffff_c000;

/// A command in flight.
struct Flight {
    command: Command,
    data: Data,
    /// The id that `submit` returned, which parts of a split command do not have.
    user: CommandId,
    /// It is no plain command: see `extra`.
    rare: bool,
    extra: Extra,
}

/// A queue's rings in memory.
pub(crate) struct Rings {
    /// Entries of both queues, completions after submissions; or completions alone.
    pub(crate) memory: Region,
    pub(crate) mapping: Mapping,
    /// Where the first completion is, in units of 16 bytes.
    pub(crate) completions_at: usize,
    /// Where submissions are, if not at the start of `memory`.
    pub(crate) submissions: Option<CmbMemory>,
    /// The memory that starts with the first submission.
    pub(crate) entries: Region,
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
    shared: Arc<QueueShared>,
    registers: Arc<dyn Registers>,
    submission_doorbell: u64,
    completion_doorbell: u64,
    rings: Rings,
    slots: Slots<()>,
    flights: Box<[Flight]>,
    reach: Reach,
    /// The namespace that was addressed last.
    shape: Shape,
    /// Counts submissions, so that a slot used again looks different.
    serial: u64,
    shadow: Option<ShadowDoorbells>,
    /// The next poll has more to do than to look.
    attention: Cell<bool>,
    /// Somebody sleeps on the interrupt, which then has to be taken.
    armed: Cell<bool>,
    /// The controller answered nonsense.
    broken: bool,
    /// A part of a split command was placed since the doorbell was rung, which no caller knows of.
    parts: bool,
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

impl IoQueue {
    pub(crate) fn new(parts: Parts) -> Self {
        let depth = parts.shared.depth;
        let flights = (0..depth).map(|_| Flight {
            command: Command::default(),
            data: Data::None,
            user: CommandId(0),
            rare: false,
            extra: Extra::default(),
        });
        Self {
            shared: parts.shared,
            registers: parts.registers,
            submission_doorbell: parts.submission_doorbell,
            completion_doorbell: parts.completion_doorbell,
            rings: parts.rings,
            slots: Slots::new(depth),
            flights: flights.collect(),
            reach: parts.reach,
            shape: NO_SHAPE,
            serial: 0,
            shadow: parts.shadow,
            attention: Cell::new(false),
            armed: Cell::new(false),
            broken: false,
            parts: false,
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
        (submissions, start + self.rings.completions_at as u64 * 16)
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
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

    /// The device's view of a plain command: its data is all of its blocks, in memory known to the controller, in at most two pages.
    #[inline]
    fn plain(&self, words: &[u64; 8], data: &Data) -> Option<(u64, u64)> {
        let Data::One(segment) = data else { return None };
        let [first, .., range, _] = words;
        let opcode = first & 0xff;
        let blocks = (range & 0xffff) + 1;
        let len = segment.len();
        let exact = opcode < 64
            && BLOCKS & (1 << opcode) != 0
            && first >> 32 == u64::from(self.shape.nsid)
            && blocks * u64::from(self.shape.transfer) == len as u64;
        if !exact {
            return None;
        }
        self.reach.quick(segment.host_address() as usize, len)
    }

    /// Writes an entry into the submission queue.
    #[inline]
    fn place(&mut self, index: usize, id: CommandId, words: &[u64; 8], pointer: Pointer) {
        // As many entries as commands may be in flight, and one more: there is always room, until the queue is lost.
        let Ok(at) = self.rings.submission.push() else {
            return;
        };
        let (entries, _) = self.rings.entries.words().unwrap_or(&[]).as_chunks::<8>();
        let Some([a, b, c, d, e, f, g, h]) = entries.get(usize::from(at)) else {
            return;
        };
        let [first, second, _, _, _, sixth, seventh, eighth] = words;
        let own = (u64::from(id.0) << 16) | (pointer.psdt << 14);
        a.store(((first & !OWN_BITS) | own).to_le(), Ordering::Relaxed);
        b.store(second.to_le(), Ordering::Relaxed);
        // An issuer's metadata pointer would be an address of its own choice.
        c.store(0, Ordering::Relaxed);
        d.store(pointer.first.to_le(), Ordering::Relaxed);
        e.store(pointer.second.to_le(), Ordering::Relaxed);
        f.store(sixth.to_le(), Ordering::Relaxed);
        g.store(seventh.to_le(), Ordering::Relaxed);
        h.store(eighth.to_le(), Ordering::Relaxed);
        self.serial = self.serial.wrapping_add(1);
        if let Some(cell) = self.shared.watch.get(index) {
            // Never 0: the serial starts at 1.
            cell.store((self.serial << 16) | u64::from(id.0), Ordering::Relaxed);
        }
    }

    /// Tells the controller what was placed since the last time.
    #[inline]
    fn ring(&mut self) {
        let Some(tail) = self.rings.submission.doorbell() else {
            return;
        };
        let counters = &self.shared.counters;
        counters.placed.store(self.serial, Ordering::Relaxed);
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
            match self.collect_plain(completed, &mut tally) {
                End::Rare {
                    index,
                    id,
                    head,
                    completion,
                } => {
                    // Another part of a split command needs the room that this one gives back.
                    let sane = self.rings.submission.advance_head(head).is_ok();
                    if !sane || self.slots.take(id).is_err() {
                        break End::Nonsense {
                            id,
                            qid: self.shared.qid,
                            head,
                        };
                    }
                    self.rings.completion.advance();
                    tally.found += 1;
                    tally.head = None;
                    if let Some(cell) = self.shared.watch.get(index) {
                        cell.store(0, Ordering::Relaxed);
                    }
                    if let Some(done) = self.rare_completed(index, completion) {
                        completed.extend(Some(done));
                        tally.completed += 1;
                    }
                }
                end => break end,
            }
        };
        self.collected(&tally, end);
        tally.completed
    }

    /// Collects completions of plain commands, until there is something else.
    #[inline]
    fn collect_plain(&mut self, completed: &mut impl Extend<Completed>, tally: &mut Tally) -> End {
        let Self {
            rings,
            slots,
            flights,
            shared,
            ..
        } = self;
        let (entries, _) = rings.memory.words().unwrap_or(&[]).as_chunks::<2>();
        let entries = entries.get(rings.completions_at..).unwrap_or(&[]);
        let watch = &shared.watch;
        let (qid, depth) = (shared.qid, slots.depth());
        // A controller that never stops completing does not keep its caller here.
        while tally.found < usize::from(depth) {
            let Some([low, high]) = entries.get(usize::from(rings.completion.head())) else {
                break;
            };
            // The phase tag says that the rest is there.
            let rest = u64::from_le(high.load(Ordering::Acquire));
            let (head, queue, id, status) = fields(rest);
            if !rings.completion.is_new(status & 1 != 0) {
                break;
            }
            let id = CommandId(id);
            let index = id.slot_index(depth);
            let completion = Completion {
                status: Status::from_wire(status),
                result: u64::from_le(low.load(Ordering::Relaxed)),
            };
            let (Some(flight), Some(cell)) = (flights.get_mut(index), watch.get(index)) else {
                return End::Nonsense { id, qid: queue, head };
            };
            if queue != qid {
                return End::Nonsense { id, qid: queue, head };
            }
            if flight.rare {
                return End::Rare {
                    index,
                    id,
                    head,
                    completion,
                };
            }
            if slots.take(id).is_err() {
                return End::Nonsense { id, qid: queue, head };
            }
            rings.completion.advance();
            cell.store(0, Ordering::Relaxed);
            tally.found += 1;
            tally.completed += 1;
            tally.head = Some(head);
            completed.extend(Some(Completed {
                id: flight.user,
                completion,
                data: mem::take(&mut flight.data),
            }));
        }
        End::Empty
    }

    /// What is done once for all completions that a poll found.
    #[inline]
    fn collected(&mut self, tally: &Tally, mut end: End) {
        // The last one says how far the controller got. The others are not believed, so they are not checked.
        if let Some(head) = tally.head
            && self.rings.submission.advance_head(head).is_err()
        {
            let (id, qid) = (CommandId(0), self.shared.qid);
            end = End::Nonsense { id, qid, head };
        }
        if tally.found > 0 {
            self.release_completions(tally.found);
        }
        if let End::Nonsense { id, qid, head } = end {
            self.fail(id, qid, head);
        } else if mem::take(&mut self.parts) {
            self.ring();
        }
        if self.reach.table.has_gone() {
            self.let_go();
        }
    }
}

/// What a poll found.
#[derive(Debug, Default)]
struct Tally {
    /// Entries of the completion queue.
    found: usize,
    /// Commands that are over: a part of a split command is none.
    completed: usize,
    /// How far the controller got in the submission queue, as the last entry says.
    head: Option<u16>,
}

/// Why collecting stopped.
enum End {
    /// There is nothing more.
    Empty,
    /// The next entry is of no plain command.
    Rare {
        index: usize,
        id: CommandId,
        head: u16,
        completion: Completion,
    },
    /// The controller answered nonsense.
    Nonsense { id: CommandId, qid: u16, head: u16 },
}

impl Queue for IoQueue {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    #[inline]
    fn submit(&mut self, slot: Slot, command: Command, mut data: Data) -> CommandId {
        let index = slot.index();
        let id = self.slots.occupy(slot, ());
        let words: [u64; 8] = zerocopy::transmute!(command.0);
        let words = words.map(u64::from_le);
        let plain = self.plain(&words, &data);
        let Some(flight) = self.flights.get_mut(index) else {
            return id;
        };
        flight.command = command;
        flight.user = id;
        flight.rare = plain.is_none();
        // Nothing is dropped: a slot that is free has no data.
        mem::swap(&mut flight.data, &mut data);
        if let Some((first, second)) = plain {
            let pointer = Pointer {
                first,
                second,
                psdt: 0,
            };
            self.place(index, id, &words, pointer);
        } else {
            self.submit_rare(index, id);
        }
        id
    }

    #[inline]
    fn commit(&mut self) -> Result<(), QueueLost> {
        if self.shared.state() != RUNNING || self.broken {
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
        self.reach.table.set_next(self.serial + 1);
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
            .field("depth", &self.slots.depth())
            .field("in_flight", &self.slots.in_flight())
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
        let flights = mem::take(&mut self.flights).into_vec();
        let (data, extras): (Vec<_>, Vec<_>) = flights
            .into_iter()
            .map(|flight| (flight.data, flight.extra))
            .unzip();
        mem::forget(data);
        self.reach.leak(extras.into_iter());
        if let Some(shadow) = self.shadow.take() {
            shadow.leak();
        }
        if let Some(memory) = self.rings.submissions.take() {
            memory.leak();
        }
    }
}
