//! [`RdmaQueue`]: a queue whose executor is a controller behind a reliable RDMA connection.
//!
//! A command is one SEND; its data lies in the capsule, or the controller fetches and brings it by RDMA, straight from and to the
//! command's memory: nothing is copied here. A batch is one list and one doorbell. Responses are found by polling the completion queue,
//! which takes no system call; a thread that is about to sleep asks for [`Wait::wait_descriptor`], which arms the queue.
//!
//! Receives are posted several at a time: there are a few more than commands in flight.

use std::cell::Cell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use homi_fabric::rdma::{HostConnection, HostEvent, Operation, RemoteMemory, TransportError, Work, WorkId};
use homi_fabric::time::Instant;
use homi_queue::{
    Buffer, Command, CommandId, Completed, Completion as Answer, Data, DataDirection, LostReason, Queue,
    QueueFull, QueueLost, Region, RemoteKey, Segment, Slot, Wait,
};
use homi_verbs::{
    Access, CmEventKind, CommitError, Completion, MemoryRegion, Pd, PostError, Qp, ReceiveBatch, SendBatch,
    Signal, VerbsError, WorkStatus,
};

use super::connect::{Memories, RESPONSE, own_memory};
use super::memory::{Local, Memory, Pin};
use super::sleep::{BATCH, Sleeper};
use super::windows::CommandWindows;
use crate::clock;
use crate::counters::Counters;
use crate::link::{HangUp, QueueLink};
use crate::pool::Pool;
use crate::sequence::Connection;
use crate::watch::Watches;

/// Polls that found something between two readings of the clock.
const POLLS_PER_CLOCK: u32 = 64;

/// How long nothing completes, with commands in flight, before the connection manager is asked.
const SILENCE: Duration = Duration::from_millis(20);

/// How long a device may take to flush what is posted to a queue pair that ends.
const FLUSH: Duration = Duration::from_secs(1);

/// How long a queue is idle before it gives its pool back.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes of a slab of the pool: registered at once, lent in parts.
const SLAB: usize = 1 << 20;

/// What a work request is, in the upper half of its token; the lower half is the number of a command's work request, or the slot whose
/// last window it closes.
const COMMAND: u64 = 0;
const WINDOW: u64 = 1 << 32;
const CLOSED: u64 = 2 << 32;

/// Memory for responses.
pub(super) struct Responses {
    memory: MemoryRegion,
    /// Places that no receive is posted for.
    free: Vec<u16>,
}

impl Responses {
    pub(super) fn new(pd: &Pd, receives: u16) -> Result<Self, VerbsError> {
        Ok(Self {
            memory: own_memory(pd, usize::from(receives) * RESPONSE, Access::WRITE)?,
            free: (0..receives).rev().collect(),
        })
    }

    /// Posts a receive for every free place.
    pub(super) fn post(&mut self, mut batch: ReceiveBatch<'_>) -> Result<(), LostReason> {
        while let Some(place) = self.free.pop() {
            let start = u64::from(place) * RESPONSE as u64;
            // In bounds by construction.
            if let Ok(piece) = self.memory.piece(start..start + RESPONSE as u64) {
                batch.push([piece], u64::from(place)).map_err(refused)?;
            }
        }
        batch.commit().map_err(not_posted)?;
        Ok(())
    }

    fn region(&self) -> Option<&Region> {
        self.memory.region()
    }
}

/// Memory for capsules that are not sent inline.
pub(super) struct Staging {
    memory: MemoryRegion,
    stride: usize,
}

impl Staging {
    pub(super) fn new(pd: &Pd, sends: u16, stride: usize) -> Result<Self, VerbsError> {
        Ok(Self {
            memory: own_memory(pd, usize::from(sends) * stride, Access::READ)?,
            stride,
        })
    }

    /// Puts the bytes of a capsule to their place.
    fn fill(&self, ring: u16, entry: &[u8], list: &[u8]) -> Result<homi_verbs::Piece, VerbsError> {
        let at = usize::from(ring) * self.stride;
        let len = entry.len() + list.len();
        let wrong = || VerbsError::OutOfBounds {
            start: at as u64,
            end: (at + len) as u64,
            len: self.memory.len(),
        };
        let region = self.memory.region().ok_or_else(wrong)?;
        region.write(at, entry).map_err(|_| wrong())?;
        region.write(at + entry.len(), list).map_err(|_| wrong())?;
        self.memory.piece(at as u64..(at + len) as u64)
    }
}

/// What a queue is made of.
pub(super) struct Parts {
    pub(super) connection: HostConnection,
    /// Of the queue, as both ends agreed.
    pub(super) entries: u16,
    pub(super) qp: Qp,
    pub(super) sleeper: Sleeper,
    pub(super) memory: Arc<Memory>,
    pub(super) memories: Memories,
    pub(super) responses: Responses,
    pub(super) staging: Staging,
    /// Receives that are posted together.
    pub(super) repost: usize,
}

/// A response that waits until its command's windows are closed.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    bytes: [u8; RESPONSE],
    len: usize,
    invalidated: Option<RemoteKey>,
}

/// Where a part of a command's memory is for the controller.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: usize,
    memory: RemoteMemory,
}

/// What is made on the device, all of which has to be given back when it goes.
struct OnDevice {
    qp: Qp,
    local: Local,
    responses: Responses,
    staging: Staging,
    windows: Option<CommandWindows>,
    /// Registrations of the pool's memory.
    pins: Vec<Pin>,
}

/// A queue over a reliable RDMA connection, run by the thread that calls it. In steady state it neither allocates nor copies nor registers,
/// and polling makes no system call.
///
/// Memory of commands is registered when it is first used, see [`Controller::register`](crate::Controller::register).
pub struct RdmaQueue {
    connection: HostConnection,
    entries: u16,
    /// Absent once the queue is lost.
    device: Option<OnDevice>,
    sleeper: Sleeper,
    memories: Memories,
    /// The device is gone.
    removed: bool,
    /// By slot: registrations that the command uses.
    held: Vec<Vec<MemoryRegion>>,
    /// Of the command that is being submitted.
    places: Vec<Place>,
    repost: usize,
    /// By slot.
    waiting: Vec<Option<Waiting>>,
    /// Slots whose windows are to be closed.
    to_close: Vec<usize>,
    /// Memory of commands that were refused before they could be described.
    parked: Vec<(CommandId, Data)>,
    pool: Pool,
    watches: Watches,
    busy: Instant,
    /// When the connection manager was asked, or something completed.
    heard: Instant,
    polls: u32,
    max_transfer: Option<u32>,
    link: Option<QueueLink>,
    lost: Option<LostReason>,
    counters: Counters,
    /// A command was refused, and nobody has been told yet.
    news: bool,
}

impl RdmaQueue {
    /// Entries of the queue, as both ends agreed.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            connection,
            entries,
            qp,
            sleeper,
            memory,
            memories,
            responses,
            staging,
            repost,
        } = parts;
        let depth = connection.depth();
        let slots = usize::from(depth);
        let now = clock::coarse();
        Self {
            entries,
            device: Some(OnDevice {
                qp,
                local: Local::new(&memory),
                responses,
                staging,
                windows: memory.windows().then(|| CommandWindows::new(memory.pd(), depth)),
                pins: Vec::new(),
            }),
            sleeper,
            memories,
            removed: false,
            held: (0..slots).map(|_| Vec::with_capacity(1)).collect(),
            places: Vec::with_capacity(4),
            repost,
            waiting: vec![None; slots],
            to_close: Vec::with_capacity(slots),
            parked: Vec::new(),
            pool: Pool::default(),
            watches: Watches::new(depth, Duration::ZERO),
            busy: now,
            heard: now,
            polls: 0,
            max_transfer: None,
            link: None,
            lost: None,
            counters: Counters::default(),
            news: false,
            connection,
        }
    }

    pub(crate) fn set_link(&mut self, link: QueueLink) {
        self.link = Some(link);
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.watches.set_timeout(timeout);
    }

    pub(crate) fn set_max_transfer(&mut self, max_transfer: Option<u32>) {
        self.max_transfer = max_transfer;
    }

    pub(crate) fn hang_up(&self) -> HangUp {
        HangUp::Event(Arc::clone(self.sleeper.wake()))
    }

    /// Whether the connection is established and has not failed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    /// Commands submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    /// Why the queue was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<&LostReason> {
        self.lost.as_ref()
    }

    /// What the queue has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        if let Some(OnDevice { qp, local, .. }) = &self.device {
            let device = qp.counters();
            counters.work_requests = device.work_requests;
            counters.doorbells = device.doorbells;
            counters.completions = device.completions;
            counters.registrations = local.registrations();
        }
        counters.arms = self.sleeper.arms();
        counters
    }

    /// Largest transfer of one command in bytes, or `None` if there is no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u32> {
        self.max_transfer
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again, so that a command that takes too
    /// long is noticed: `None` while nothing is in flight or commands may take forever.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        self.watches.wait_limit(self.connection.in_flight())
    }

    /// Submits a command that may take forever.
    pub(crate) fn submit_untimed(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let id = self.submit(slot, command, data);
        self.watches.leave_alone(id);
        id
    }

    // ---- submitting ----

    /// Memory for a read whose issuer does not care, registered with the pool; or what is left to be refused.
    fn pool_memory(&mut self, len: usize) -> Data {
        let Some(OnDevice { local, pins, .. }) = &mut self.device else {
            return Data::Anywhere { len };
        };
        let shared = local.shared();
        let taken = self.pool.take_from(len, |size| {
            let region = Region::allocate(size.max(SLAB), 4096)?;
            match shared.pin(&region) {
                Ok(pin) => pins.push(pin),
                // The command will say so when it is described.
                Err(error) => tracing::debug!(%error, "the pool's memory is not registered"),
            }
            Ok(region)
        });
        taken.unwrap_or(Data::Anywhere { len })
    }

    /// Finds or makes the registrations of a command's memory, and what the controller will see of it.
    fn describe(&mut self, slot: usize, data: &Data, controller_reads: bool) -> Result<(), VerbsError> {
        self.places.clear();
        // A lost queue only takes commands into account.
        let (Some(held), Some(OnDevice { local, windows, .. })) = (self.held.get_mut(slot), &mut self.device)
        else {
            return Ok(());
        };
        held.clear();
        if let Some(windows) = windows {
            windows.begin(slot, controller_reads);
        }
        for segment in data.segments().iter().filter(|segment| !segment.is_empty()) {
            let (memory, at) = local.find(segment)?;
            let address = memory.remote_address(at)?;
            let (key, invalidate) = match windows {
                Some(windows) => (windows.add(slot, memory, at, segment)?, true),
                None => (memory.remote_key()?, false),
            };
            held.push(memory.clone());
            self.places.push(Place {
                segment: segment.host_address() as usize,
                memory: RemoteMemory {
                    address,
                    key,
                    invalidate,
                },
            });
        }
        Ok(())
    }

    // ---- posting ----

    /// Posts everything that is to be posted: a list of receives if many are missing, and one of work requests.
    fn post(&mut self) -> Result<(), LostReason> {
        let Some(OnDevice {
            qp,
            responses,
            staging,
            windows,
            ..
        }) = &mut self.device
        else {
            return Ok(());
        };
        // There is always a receive for each command in flight: as many spare ones as may be missing.
        self.connection.take_receives();
        if responses.free.len() >= self.repost {
            responses.post(qp.receives())?;
        }
        if !self.connection.has_work() && self.to_close.is_empty() {
            return Ok(());
        }
        let inline = usize::try_from(qp.inline()).unwrap_or(0);
        let depth = self.connection.depth();
        let mut batch = qp.sends();
        if let Some(windows) = windows.as_ref() {
            for slot in self.to_close.drain(..) {
                let closed = self.waiting.get(slot).copied().flatten();
                let mut keys = windows
                    .open(slot, closed.and_then(|waiting| waiting.invalidated))
                    .peekable();
                while let Some(key) = keys.next() {
                    let (signal, token) = match keys.peek() {
                        Some(_) => (Signal::Silent, WINDOW),
                        None => (Signal::Completion, CLOSED | slot as u64),
                    };
                    batch.invalidate(key, signal, token).map_err(refused)?;
                }
            }
        }
        while let Some(work) = self.connection.poll_work() {
            let slot = slot_of(&work, depth);
            if let (Some(windows), Some(slot)) = (windows.as_mut(), slot) {
                windows.bind(slot, &mut batch, WINDOW).map_err(refused)?;
            }
            let held = slot
                .and_then(|slot| self.held.get(slot))
                .map_or(&[][..], Vec::as_slice);
            add(&mut batch, &work, inline, staging, held)?;
        }
        batch.commit().map_err(not_posted)?;
        Ok(())
    }

    // ---- what the device has done ----

    /// Takes what the device has done; returns how much that was.
    fn receive(&mut self) -> Result<usize, LostReason> {
        let mut handled = 0;
        loop {
            while let Some(completion) = self.sleeper.next() {
                handled += 1;
                self.completed(completion)?;
            }
            let count = self
                .sleeper
                .poll()
                .map_err(|error| LostReason::Io(error.to_string()))?;
            if count == 0 {
                return Ok(handled);
            }
            if count < BATCH {
                while let Some(completion) = self.sleeper.next() {
                    handled += 1;
                    self.completed(completion)?;
                }
                return Ok(handled);
            }
        }
    }

    fn completed(&mut self, completion: Completion) -> Result<(), LostReason> {
        if completion.is_receive() {
            self.response(completion)
        } else {
            self.sent(completion)
        }
    }

    fn sent(&mut self, completion: Completion) -> Result<(), LostReason> {
        let Some(OnDevice { qp, windows, .. }) = &mut self.device else {
            return Ok(());
        };
        let status = completion.status();
        let (mut command, mut closed) = (None, None);
        let ours = qp.complete(completion, |released| {
            let low = u32::try_from(released.token & u64::from(u32::MAX)).unwrap_or(0);
            match released.token & !u64::from(u32::MAX) {
                COMMAND => command = Some(WorkId(low)),
                CLOSED if released.completed => closed = Some(low as usize),
                _ => {}
            }
        });
        ours.map_err(|error| LostReason::Io(error.to_string()))?;
        if !status.is_success() {
            self.connection.lost();
            return Err(self.failure(status));
        }
        if let Some(id) = command {
            self.connection.completed(id).map_err(protocol)?;
        }
        if let Some(slot) = closed
            && let Some(waiting) = self.waiting.get_mut(slot).and_then(Option::take)
        {
            if let Some(windows) = windows {
                windows.end(slot);
            }
            let bytes = waiting.bytes.get(..waiting.len).unwrap_or(&[]);
            self.connection
                .received(bytes, waiting.invalidated)
                .map_err(protocol)?;
        }
        Ok(())
    }

    fn response(&mut self, completion: Completion) -> Result<(), LostReason> {
        let Some(OnDevice { qp, responses, .. }) = &mut self.device else {
            return Ok(());
        };
        let received = qp
            .received(completion)
            .map_err(|error| LostReason::Io(error.to_string()))?;
        let place = u16::try_from(received.token).unwrap_or(0);
        responses.free.push(place);
        if !received.status.is_success() {
            self.connection.lost();
            return Err(self.failure(received.status));
        }
        let mut bytes = [0; RESPONSE];
        let len = usize::try_from(received.bytes).unwrap_or(RESPONSE).min(RESPONSE);
        let to = bytes.get_mut(..len).unwrap_or(&mut []);
        if let Some(region) = responses.region() {
            region
                .read(usize::from(place) * RESPONSE, to)
                .map_err(|error| LostReason::Io(error.to_string()))?;
        }
        if self.keeps_windows_open(&bytes, len, received.invalidated)? {
            return Ok(());
        }
        self.connection
            .received(bytes.get(..len).unwrap_or(&[]), received.invalidated)
            .map_err(protocol)
    }

    /// Whether the command that a response is for has windows that the controller did not close; if so, they are closed first.
    fn keeps_windows_open(
        &mut self,
        bytes: &[u8; RESPONSE],
        len: usize,
        invalidated: Option<RemoteKey>,
    ) -> Result<bool, LostReason> {
        let Some(OnDevice {
            windows: Some(windows),
            ..
        }) = &mut self.device
        else {
            return Ok(false);
        };
        let id = CommandId(u16::from_le_bytes([bytes[12], bytes[13]]));
        // What is no answer to a command in flight is the connection's to judge.
        if len != RESPONSE || self.connection.command(id).is_err() {
            return Ok(false);
        }
        let slot = id.slot_index(self.connection.depth());
        let Some(waiting) = self.waiting.get_mut(slot) else {
            return Ok(false);
        };
        if waiting.is_some() {
            // A second one must not complete the command before its windows are closed.
            self.connection.lost();
            return Err(protocol(TransportError::UnknownCommand { id }));
        }
        if windows.open(slot, invalidated).next().is_none() {
            windows.end(slot);
            return Ok(false);
        }
        *waiting = Some(Waiting {
            bytes: *bytes,
            len,
            invalidated,
        });
        self.to_close.push(slot);
        Ok(true)
    }

    /// Hands out what the connection reports; returns how many commands completed.
    fn deliver(&mut self, completed: &mut impl Extend<Completed>) -> usize {
        let mut count = 0;
        self.news = false;
        while let Some(event) = self.connection.poll_event() {
            let (id, completion, data) = match event {
                HostEvent::Completed { id, cqe, data, .. } => (id, Answer::from(&cqe), data),
                HostEvent::Refused { id, reason, data } => {
                    let parked = self.parked.iter().position(|(other, _)| *other == id);
                    let data = parked.map_or(data, |index| self.parked.swap_remove(index).1);
                    tracing::debug!(%reason, "command refused");
                    (id, Answer::failed(reason.status()), data)
                }
            };
            self.watches.end(id);
            if let Some(held) = self.held.get_mut(id.slot_index(self.connection.depth())) {
                held.clear();
            }
            completed.extend(Some(Completed { id, completion, data }));
            count += 1;
        }
        count
    }

    // ---- time, and the connection itself ----

    /// What `poll` does on a queue that is not lost.
    fn turn(&mut self, completed: &mut impl Extend<Completed>, count: &mut usize) -> Result<(), LostReason> {
        let woken = self
            .sleeper
            .woken()
            .map_err(|error| LostReason::Io(error.to_string()));
        let handled = self.receive();
        *count += self.deliver(completed);
        let handled = handled?;
        if woken? {
            self.hear()?;
        }
        self.post()?;
        self.polls = self.polls.wrapping_add(1);
        if handled == 0 || self.polls.is_multiple_of(POLLS_PER_CLOCK) {
            self.keep_time(handled > 0)?;
        }
        Ok(())
    }

    /// What is done now and then: timeouts, looking after the connection, and giving back memory that nobody needs.
    fn keep_time(&mut self, handled: bool) -> Result<(), LostReason> {
        let now = clock::coarse();
        if handled {
            self.heard = now;
        } else if now.saturating_since(self.heard) >= SILENCE {
            self.heard = now;
            self.hear()?;
        }
        if self.connection.in_flight() > 0 {
            self.busy = now;
            self.counters.aborts += self.watches.look(now, self.link.as_ref())?;
            return Ok(());
        }
        self.watches.rest(now);
        if now.saturating_since(self.busy) >= IDLE {
            self.busy = now;
            self.pool.clear();
            if let Some(OnDevice { local, pins, .. }) = &mut self.device {
                pins.clear();
                local.shared().sweep();
                local.forget_old();
            }
        }
        Ok(())
    }

    /// Asks the connection manager.
    #[cold]
    fn hear(&mut self) -> Result<(), LostReason> {
        loop {
            let event = self
                .sleeper
                .connection_event()
                .map_err(|error| LostReason::Io(error.to_string()))?;
            match event {
                None => return Ok(()),
                Some(CmEventKind::Disconnected) => return Err(LostReason::Closed),
                Some(CmEventKind::DeviceRemoval) => {
                    self.removed = true;
                    return Err(LostReason::Io(match &self.device {
                        Some(OnDevice { qp, .. }) => {
                            format!("the RDMA device {} was removed", qp.device().name())
                        }
                        None => "the RDMA device was removed".to_owned(),
                    }));
                }
                Some(event) => tracing::debug!(?event, "connection manager"),
            }
        }
    }

    /// Why the connection failed: the connection manager may know better than a work request.
    #[cold]
    fn failure(&mut self, status: WorkStatus) -> LostReason {
        match self.hear() {
            Err(reason) => reason,
            Ok(()) => LostReason::Io(format!("the RDMA connection failed: {status}")),
        }
    }

    /// Ends the queue. When this is done neither the device nor the controller reaches the commands' memory through it.
    #[cold]
    fn lose(&mut self, reason: LostReason) {
        if self.lost.is_some() {
            return;
        }
        tracing::debug!(%reason, in_flight = self.connection.in_flight(), "queue lost");
        self.disconnect();
        self.connection.stopped();
        self.to_close.clear();
        self.waiting.fill(None);
        self.held.iter_mut().for_each(Vec::clear);
        self.pool.clear();
        self.sleeper.close();
        self.lost = Some(reason);
    }

    /// Tells the peer, and gives everything on the device back.
    fn disconnect(&mut self) {
        let counters = self.counters();
        let Some(OnDevice {
            mut qp,
            local,
            windows,
            ..
        }) = self.device.take()
        else {
            return;
        };
        self.counters = counters;
        if self.removed {
            self.memories.remove(local.shared());
        }
        if let Err(error) = qp.disconnect() {
            tracing::debug!(%error, "disconnecting");
            if let Err(error) = qp.kill() {
                tracing::debug!(%error, "stopping the queue pair");
            }
        }
        if windows.is_some() {
            self.flush(&mut qp);
        }
        // Windows that are bound belong to their queue pair, which some devices do not give up before them.
        drop(windows);
        qp.close(|_| {}, |_| {});
    }

    /// Takes what is left of a queue pair in the error state, so that nothing that is posted holds a window.
    fn flush(&mut self, qp: &mut Qp) {
        let start = clock::now();
        while !qp.is_idle() && clock::now().saturating_since(start) < FLUSH {
            while let Some(completion) = self.sleeper.next() {
                let taken = if completion.is_receive() {
                    qp.received(completion).map(drop)
                } else {
                    qp.complete(completion, |_| {})
                };
                if let Err(error) = taken {
                    tracing::debug!(%error, "flushing");
                }
            }
            match self.sleeper.poll() {
                Ok(0) => std::thread::yield_now(),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "flushing");
                    return;
                }
            }
        }
    }

    /// What a lost queue answers: the reason, and every command that was not handed back before.
    #[cold]
    fn lost_queue(&mut self) -> QueueLost {
        let reason = self.lost.clone().unwrap_or(LostReason::Local);
        self.watches.clear();
        let mut undelivered = self.connection.drain().unwrap_or_else(|error| {
            tracing::error!(%error, "commands of a queue that did not stop");
            Vec::new()
        });
        for one in &mut undelivered {
            if let Some(index) = self.parked.iter().position(|(id, _)| *id == one.id) {
                one.data = self.parked.swap_remove(index).1;
            }
        }
        QueueLost::new(reason, undelivered)
    }

    /// The reason to stop before anything is done, if there is one.
    #[inline]
    fn check(&mut self) -> Result<(), QueueLost> {
        if let Some(reason) = self.link.as_ref().and_then(QueueLink::ended) {
            self.lose(reason);
        }
        if self.lost.is_some() {
            Err(self.lost_queue())
        } else {
            Ok(())
        }
    }

    /// Ends the queue for a reason, or for the one for which its association ended.
    fn end(&mut self, reason: LostReason) {
        // An association that ends hangs up on its queues, which says less than why it ended.
        let ended = match reason {
            LostReason::Closed | LostReason::Io(_) => self.link.as_ref().and_then(QueueLink::ended),
            _ => None,
        };
        self.lose(ended.unwrap_or(reason));
    }
}

/// The slot of the command that a work request sends.
fn slot_of(work: &Work<'_>, depth: u16) -> Option<usize> {
    let Operation::Send(capsule) = &work.operation else {
        return None;
    };
    let id = capsule.entry.get(2..4)?.first_chunk::<2>()?;
    Some(CommandId(u16::from_le_bytes(*id)).slot_index(depth))
}

/// Adds a command to a list.
fn add(
    batch: &mut SendBatch<'_>,
    work: &Work<'_>,
    inline: usize,
    staging: &Staging,
    held: &[MemoryRegion],
) -> Result<(), LostReason> {
    let Operation::Send(capsule) = &work.operation else {
        return Err(LostReason::Io(
            "a host was to do what only controllers do".to_owned(),
        ));
    };
    let signal = if work.signaled {
        Signal::Completion
    } else {
        Signal::Silent
    };
    let token = COMMAND | u64::from(work.id.0);
    if capsule.payload.is_empty() && capsule.list.is_empty() && capsule.entry.len() <= inline {
        return batch
            .send_inline(capsule.entry, capsule.invalidate, signal, token)
            .map_err(refused);
    }
    let head = staging
        .fill(work.ring, capsule.entry, capsule.list)
        .map_err(|error| LostReason::Io(error.to_string()))?;
    let missing = Cell::new(false);
    let payload = capsule.payload.pieces().filter_map(|piece| {
        let found = held.iter().find_map(|memory| memory.cover(piece.segment).ok());
        missing.set(missing.get() || found.is_none());
        found
    });
    batch
        .send(
            std::iter::once(head).chain(payload),
            capsule.invalidate,
            signal,
            token,
        )
        .map_err(refused)?;
    if missing.get() {
        return Err(LostReason::Io("data of a capsule is not registered".to_owned()));
    }
    Ok(())
}

fn refused(error: PostError) -> LostReason {
    LostReason::Io(error.to_string())
}

fn not_posted(error: CommitError) -> LostReason {
    LostReason::Io(error.to_string())
}

fn protocol(error: TransportError) -> LostReason {
    LostReason::Protocol(error.to_string())
}

impl Queue for RdmaQueue {
    fn depth(&self) -> u16 {
        self.connection.depth()
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.connection.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.connection.release(slot);
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        self.counters.commands += 1;
        let index = slot.index();
        let direction = command.direction();
        let data = match data {
            Data::Anywhere { len } if direction == DataDirection::ControllerToHost => self.pool_memory(len),
            data => data,
        };
        let described = self.describe(index, &data, direction == DataDirection::HostToController);
        let id = match described {
            Ok(()) => {
                let (places, next, asked) = (&self.places, Cell::new(0), Cell::new(false));
                let keys = |segment: &Segment| {
                    asked.set(true);
                    // Asked for in the order of the segments.
                    let place = places.get(next.get())?;
                    next.set(next.get() + 1);
                    (place.segment == segment.host_address() as usize).then_some(place.memory)
                };
                let id = self.connection.submit(slot, command, data, &keys);
                if let (
                    Some(OnDevice {
                        windows: Some(windows),
                        ..
                    }),
                    false,
                ) = (&mut self.device, asked.get())
                {
                    windows.not_needed(index);
                }
                id
            }
            // Refused by the connection, as memory that is nowhere; the command's own is handed back with that.
            Err(error) => {
                tracing::warn!(%error, bytes = data.len(), "memory cannot be registered");
                let nowhere = |_: &Segment| None::<RemoteMemory>;
                let id = self
                    .connection
                    .submit(slot, command, Data::Anywhere { len: 0 }, &nowhere);
                self.parked.push((id, data));
                id
            }
        };
        self.news |= self.connection.command(id).is_err();
        self.watches.begin(id, false);
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        self.check()?;
        if let Err(reason) = self.post() {
            self.end(reason);
            return Err(self.lost_queue());
        }
        Ok(())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.check()?;
        let mut count = 0;
        if let Err(reason) = self.turn(completed, &mut count) {
            self.end(reason);
            // What completed before is delivered first; the next call reports the loss.
            if count == 0 {
                return Err(self.lost_queue());
            }
        }
        Ok(count)
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        if let (Data::One(segment), Some(OnDevice { local, .. })) = (&data, &mut self.device) {
            local.shared().forget(segment);
            local.forget_old();
        }
        Buffer::try_from_data(data)
    }
}

impl Connection for RdmaQueue {
    fn is_ready(&self) -> bool {
        RdmaQueue::is_ready(self)
    }

    fn in_flight(&self) -> usize {
        RdmaQueue::in_flight(self)
    }
}

impl Wait for RdmaQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sleeper.descriptor(self.lost.is_some() || self.news))
    }
}

impl Drop for RdmaQueue {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl fmt::Debug for RdmaQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaQueue")
            .field("depth", &self.connection.depth())
            .field("in_flight", &self.connection.in_flight())
            .field(
                "memory",
                &self.device.as_ref().map(|device| device.local.shared()),
            )
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
