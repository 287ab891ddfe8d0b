//! [`HostConnection`]: the host end of one NVMe/RDMA queue pair.

use std::collections::VecDeque;

use homi_queue::{
    Command, CommandId, Data, DataDirection, RemoteAddress, RemoteKey, Segment, Slot, Slots, StaleCommand,
    Undelivered,
};
use homi_spec::command::{CQE_SIZE, SQE_SIZE};
use homi_spec::status::Status;
use homi_spec::{Cqe, Sgl, SglDescriptor, Sqe};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{ParameterError, TransportError};
use super::sgl::{DESCRIPTOR, MAX_DESCRIPTORS, capsule_list};
use super::work::{Capsule, Operation, SendQueue, Span, Work, WorkId, pieces_up_to};

/// The most bytes that one descriptor gets of a longer stretch: the largest multiple of 4096 that fits its 24 bits.
const LONGEST: u32 = SglDescriptor::MAX_KEYED_LENGTH & !4095;

/// What a host's queue pair can do, and what the controller announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostParams {
    /// Commands in flight, 1 to 4096: one less than the entries that both ends agreed on ([`super::cm::Accepted::entries`]), or
    /// as many without flow control of the submission queue.
    pub depth: u16,
    /// Bytes that a capsule may have after the command: what IOCCSZ leaves beyond 64 bytes on an I/O queue, 0 on an admin queue and
    /// where ICDOFF is not 0.
    pub in_capsule: u32,
    /// Descriptors of one command (MSDBD), 1 to 256. More than one lie in the capsule, so they take room there.
    pub max_descriptors: u16,
    /// Work requests that the send queue takes: at least 2. A host sends only capsules, so the depth is plenty.
    pub send_queue: u16,
    /// Pieces of local memory of one send, the command itself included: at least 2.
    pub max_pieces: u16,
}

impl Default for HostParams {
    fn default() -> Self {
        Self {
            depth: 127,
            in_capsule: 0,
            max_descriptors: 1,
            send_queue: 128,
            max_pieces: 4,
        }
    }
}

impl HostParams {
    fn check(&self) -> Result<(), ParameterError> {
        let max = Slots::<Flight>::MAX_DEPTH;
        if !(1..=max).contains(&self.depth) {
            return Err(ParameterError::Depth {
                depth: self.depth,
                max,
            });
        }
        if !(1..=MAX_DESCRIPTORS).contains(&self.max_descriptors) {
            return Err(ParameterError::Descriptors {
                found: self.max_descriptors,
                max: MAX_DESCRIPTORS,
            });
        }
        if self.send_queue < 2 {
            return Err(ParameterError::SendQueue(self.send_queue));
        }
        if self.max_pieces < 2 {
            return Err(ParameterError::Pieces(self.max_pieces));
        }
        Ok(())
    }
}

/// How the controller reaches a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMemory {
    /// The segment's first byte, as the key's registration counts.
    pub address: RemoteAddress,
    /// The key.
    pub key: RemoteKey,
    /// The controller may invalidate the key with its response: for memory windows that are bound for one command, never for a
    /// registration that outlives it.
    pub invalidate: bool,
}

/// What was registered for remote access. Implemented by functions too.
pub trait RemoteKeys {
    /// How the controller reaches this segment, or `None` if it lies in no registered memory.
    fn remote(&self, segment: &Segment) -> Option<RemoteMemory>;
}

impl<F: Fn(&Segment) -> Option<RemoteMemory>> RemoteKeys for F {
    fn remote(&self, segment: &Segment) -> Option<RemoteMemory> {
        self(segment)
    }
}

/// A command cannot be sent, and was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Where the data goes was left open.
    #[error("a read over rdma needs registered memory to land in: choose it before submitting")]
    NoMemory,
    /// The memory does not go with the direction of the opcode.
    #[error("the command has memory although its opcode moves no data, or moves it both ways")]
    Direction,
    /// The transfer is too long for any number of descriptors.
    #[error("a transfer of {0} bytes was asked for: split it")]
    TooLong(usize),
    /// A part of the memory is not registered.
    #[error(
        "{0} bytes of the transfer lie in memory that is not registered with this connection's device: register it"
    )]
    Unregistered(usize),
    /// The registration ends before the segment.
    #[error("{len} bytes at remote address {address} go past the end of the address space")]
    Address {
        /// First byte.
        address: RemoteAddress,
        /// Bytes.
        len: usize,
    },
    /// The memory is in too many parts.
    #[error(
        "the transfer is in more than {max} parts, all that the controller takes: copy it into one, or split it"
    )]
    TooManyDescriptors {
        /// The most that can be sent.
        max: u32,
    },
}

impl SubmitError {
    /// The status to complete the command with.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Direction => Status::INVALID_FIELD,
            Self::TooLong(_) => Status::SGL_DATA_LENGTH_INVALID,
            Self::TooManyDescriptors { .. } => Status::SGL_INVALID_COUNT,
            Self::NoMemory | Self::Unregistered(_) | Self::Address { .. } => Status::HOST_PATH_ERROR,
        }
    }
}

/// What became of a command.
#[derive(Debug)]
pub enum HostEvent {
    /// A command was answered.
    Completed {
        /// The id that [`HostConnection::submit`] returned.
        id: CommandId,
        /// The answer.
        cqe: Cqe,
        /// The command's memory. No send uses it any more; the controller still has every key that was not invalidated.
        data: Data,
        /// The key that the response invalidated: the command's own. Others are to be invalidated here.
        invalidated: Option<RemoteKey>,
    },
    /// A command could not be sent.
    Refused {
        /// The id that [`HostConnection::submit`] returned.
        id: CommandId,
        /// Why.
        reason: SubmitError,
        /// The command's memory.
        data: Data,
    },
}

/// The commands cannot be given back yet: the queue pair may still be using their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the queue pair may still use the commands' memory: bring it into the error state, let it flush, then say that it stopped"
)]
pub struct StillRunning;

/// Where a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits to be sent.
    Waiting,
    /// Its send was handed out, and its memory may be in use by it.
    Sending,
    /// The response came before the send was known to be over.
    Answered,
    /// Its send is over or uses none of its memory.
    Sent,
}

/// A command in flight.
#[derive(Debug)]
struct Flight {
    command: Command,
    data: Data,
    sgl: Sgl,
    stage: Stage,
    /// The data is in the capsule.
    in_capsule: bool,
    /// What was answered, in stage `Answered`.
    cqe: Cqe,
    invalidated: Option<RemoteKey>,
}

/// The host end of one queue pair: see the [module](super) for how it is driven.
#[derive(Debug)]
pub struct HostConnection {
    params: HostParams,
    established: bool,
    failed: bool,
    /// Nothing can touch the commands' memory any more.
    stopped: bool,
    /// Entries of the queue where the submission queue head is to be checked.
    entries: Option<u32>,
    slots: Slots<Flight>,
    /// The descriptors of each slot's command, by its index. The allocations stay.
    lists: Vec<Vec<Sgl>>,
    send_queue: SendQueue,
    sending: VecDeque<CommandId>,
    /// Sends with data of their commands, oldest first.
    posted: VecDeque<(WorkId, CommandId)>,
    /// Receives to post.
    receives: u16,
    events: VecDeque<HostEvent>,
    /// The command last handed out.
    capsule: Sqe,
}

impl HostConnection {
    /// A connection that is not established yet.
    ///
    /// # Errors
    /// [`ParameterError`] if a parameter is out of its range.
    pub fn new(params: HostParams) -> Result<Self, ParameterError> {
        params.check()?;
        Ok(Self {
            params,
            established: false,
            failed: false,
            stopped: false,
            entries: None,
            slots: Slots::new(params.depth),
            lists: Vec::new(),
            send_queue: SendQueue::new(params.send_queue),
            sending: VecDeque::new(),
            posted: VecDeque::new(),
            receives: params.depth,
            events: VecDeque::new(),
            capsule: Sqe::default(),
        })
    }

    /// Tells how many entries the submission queue has, once Connect was answered, so that the head in responses can be checked;
    /// `None` where flow control is off and the head means nothing, which is also how a connection begins.
    pub fn set_flow_control(&mut self, entries: Option<u32>) {
        self.entries = entries;
    }

    /// Whether commands are sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.established && !self.failed
    }

    /// Whether the connection is over: disconnect, and bring the queue pair into the error state.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// How many commands may be in flight.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.slots.depth()
    }

    /// Number of commands submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// The command in flight with this id.
    ///
    /// # Errors
    /// [`StaleCommand`] if there is none.
    pub fn command(&self, id: CommandId) -> Result<&Command, StaleCommand> {
        self.slots.get(id).map(|flight| &flight.command)
    }

    /// Work requests that the send queue has room for. Everything beyond waits here.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.send_queue.room()
    }

    /// Work requests that are posted and not known to be over.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.send_queue.outstanding()
    }

    /// Whether commands wait for room in the send queue.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.failed && !self.sending.is_empty()
    }

    // ---- submitting ----

    /// Reserves a place for a command, or `None` if the queue is full.
    #[inline]
    pub fn reserve(&mut self) -> Option<Slot> {
        self.slots.reserve()
    }

    /// Gives a reserved place back unused.
    pub fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    /// Puts a command in the line to be sent: with its data in the capsule if it sends data that fits there, else with keyed
    /// descriptors for its memory, whose keys `keys` knows. Its command id and data pointer are set here.
    ///
    /// A command that cannot be sent gets a [`HostEvent::Refused`]. Before the connection is established commands wait; after it has
    /// failed they are only taken into account: [`drain`](Self::drain) gives them back.
    pub fn submit(&mut self, slot: Slot, command: Command, data: Data, keys: &impl RemoteKeys) -> CommandId {
        let index = slot.index();
        if self.lists.len() <= index {
            self.lists.resize_with(index + 1, Vec::new);
        }
        let list = self.lists.get_mut(index);
        let plan = plan(
            &self.params,
            &command,
            &data,
            keys,
            list.unwrap_or(&mut Vec::new()),
        );
        let (sgl, in_capsule) = plan.unwrap_or_default();
        let id = self.slots.occupy(
            slot,
            Flight {
                command,
                data,
                sgl,
                stage: Stage::Waiting,
                in_capsule,
                cqe: Cqe::default(),
                invalidated: None,
            },
        );
        if self.failed {
            return id;
        }
        match plan {
            Ok(_) => self.sending.push_back(id),
            Err(reason) => {
                if let Ok(Flight { data, .. }) = self.slots.take(id) {
                    self.events.push_back(HostEvent::Refused { id, reason, data });
                }
            }
        }
        id
    }

    // ---- what is to be done ----

    /// The next event.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    /// How many receives of at least 16 bytes are to be posted now: the queue's depth at first, before the connection is
    /// requested, then one for each that completed. Post them before the work that [`poll_work`](Self::poll_work) gives next.
    pub fn take_receives(&mut self) -> u16 {
        if self.failed {
            return 0;
        }
        std::mem::take(&mut self.receives)
    }

    /// The next work request to post, as long as there is work and room for it. Post all of them as one list. If posting fails,
    /// report it with [`stopped`](Self::stopped) once the queue pair is destroyed.
    pub fn poll_work(&mut self) -> Option<Work<'_>> {
        if !self.is_ready() || self.send_queue.room() == 0 {
            return None;
        }
        let id = self.sending.pop_front()?;
        let index = id.slot_index(self.slots.depth());
        let flight = self.slots.get_mut(id).ok()?;
        let with_data = flight.in_capsule;
        flight.stage = if with_data { Stage::Sending } else { Stage::Sent };
        self.capsule = flight.command.0;
        self.capsule.cid = id.0.into();
        self.capsule.set_sgl(flight.sgl);
        let ticket = self.send_queue.post(with_data);
        if with_data {
            self.posted.push_back((ticket.id, id));
        }
        let payload = if with_data {
            Span::new(&flight.data, 0, flight.data.len())
        } else {
            Span::empty()
        };
        // A single descriptor is in the command.
        let list = match self.lists.get(index) {
            Some(list) if list.len() > 1 => list.as_slice(),
            _ => &[],
        };
        Some(Work {
            id: ticket.id,
            ring: ticket.ring,
            signaled: ticket.signaled,
            operation: Operation::Send(Capsule {
                entry: self.capsule.as_bytes(),
                list: list.as_bytes(),
                payload,
                invalidate: None,
            }),
        })
    }

    // ---- what happened ----

    /// The connection is established.
    pub fn established(&mut self) {
        self.established = true;
    }

    /// A receive completed with these bytes, and perhaps with a key that the peer invalidated by it.
    ///
    /// # Errors
    /// [`TransportError`] if the controller broke the protocol: the connection has failed.
    pub fn received(&mut self, bytes: &[u8], invalidated: Option<RemoteKey>) -> Result<(), TransportError> {
        if self.failed {
            return Ok(());
        }
        let answered = self.response(bytes, invalidated);
        answered.map_err(|error| self.fail(error))
    }

    fn response(&mut self, bytes: &[u8], invalidated: Option<RemoteKey>) -> Result<(), TransportError> {
        let cqe = Cqe::read_from_bytes(bytes).map_err(|_| TransportError::ResponseLength {
            found: bytes.len(),
            expected: CQE_SIZE,
        })?;
        self.receives = self.receives.saturating_add(1);
        let id = CommandId(cqe.cid.get());
        let flight = self
            .slots
            .get_mut(id)
            .map_err(|StaleCommand { id }| TransportError::UnknownCommand { id })?;
        match flight.stage {
            Stage::Sending | Stage::Sent => {}
            Stage::Waiting => return Err(TransportError::Premature { id }),
            Stage::Answered => return Err(TransportError::UnknownCommand { id }),
        }
        let head = cqe.sq_head.get();
        if let Some(entries) = self.entries
            && u32::from(head) >= entries
        {
            return Err(TransportError::QueueHead { id, head, entries });
        }
        if let Some(key) = invalidated {
            let list = self.lists.get(id.slot_index(self.params.depth));
            if !list.is_some_and(|list| gave_away(list, key)) {
                return Err(TransportError::ForeignKey { id, key });
            }
        }
        if flight.stage == Stage::Sending {
            // The response proves that the capsule came, not that the adapter will not send it again.
            flight.stage = Stage::Answered;
            flight.cqe = cqe;
            flight.invalidated = invalidated;
            return Ok(());
        }
        let Flight { data, .. } = self
            .slots
            .take(id)
            .map_err(|StaleCommand { id }| TransportError::UnknownCommand { id })?;
        self.events.push_back(HostEvent::Completed {
            id,
            cqe,
            data,
            invalidated,
        });
        Ok(())
    }

    /// A signaled work request completed; those before it did too.
    ///
    /// # Errors
    /// [`TransportError::UnknownWork`] if it is not outstanding; the connection has failed then.
    pub fn completed(&mut self, id: WorkId) -> Result<(), TransportError> {
        if !self.send_queue.retire(id) {
            if self.failed {
                return Ok(());
            }
            return Err(self.fail(TransportError::UnknownWork { id }));
        }
        if self.failed {
            return Ok(());
        }
        while let Some(&(work, command)) = self.posted.front()
            && self.send_queue.is_over(work)
        {
            self.posted.pop_front();
            let Ok(flight) = self.slots.get_mut(command) else {
                continue;
            };
            if flight.stage != Stage::Answered {
                flight.stage = Stage::Sent;
                continue;
            }
            if let Ok(flight) = self.slots.take(command) {
                self.events.push_back(HostEvent::Completed {
                    id: command,
                    cqe: flight.cqe,
                    data: flight.data,
                    invalidated: flight.invalidated,
                });
            }
        }
        Ok(())
    }

    /// A work request completed in error or was flushed: the queue pair is dead, and so is the connection.
    pub fn work_failed(&mut self, id: WorkId) {
        self.lost();
        // One that is not outstanding says the same.
        let _ = self.send_queue.retire(id);
    }

    /// The connection is over: the peer disconnected, the queue pair or the device failed, or this end has had enough. Nothing is
    /// posted any more. Completions that are already here still come by [`poll_event`](Self::poll_event).
    pub fn lost(&mut self) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.sending.clear();
        self.posted.clear();
    }

    /// The queue pair is in the error state, so the controller reaches nothing through it any more, and everything posted to it
    /// was flushed; or it was destroyed. Implies [`lost`](Self::lost).
    pub fn stopped(&mut self) {
        self.lost();
        self.send_queue.retire_all();
        self.stopped = true;
    }

    #[cold]
    fn fail(&mut self, error: TransportError) -> TransportError {
        self.lost();
        error
    }

    /// Gives back every command that has no completion, after [`stopped`](Self::stopped): nothing can touch their memory any more,
    /// but keys given away with it must be invalidated before anyone else gets it. A command whose response came is among them if its send
    /// was not known to be over.
    ///
    /// # Errors
    /// [`StillRunning`] before that.
    pub fn drain(&mut self) -> Result<Vec<Undelivered>, StillRunning> {
        if !self.stopped {
            return Err(StillRunning);
        }
        let drained = self.slots.drain();
        Ok(drained
            .into_iter()
            .map(|(id, Flight { command, data, .. })| Undelivered { id, command, data })
            .collect())
    }
}

/// Whether a command's descriptors let the controller invalidate this key.
fn gave_away(list: &[Sgl], key: RemoteKey) -> bool {
    list.iter().any(|sgl| {
        matches!(sgl.parse(), SglDescriptor::Keyed { key: given, invalidate: true, .. } if given == key.0)
    })
}

/// The descriptor of a command, and whether its data is in the capsule. The descriptors of its memory go to `list`.
fn plan(
    params: &HostParams,
    command: &Command,
    data: &Data,
    keys: &impl RemoteKeys,
    list: &mut Vec<Sgl>,
) -> Result<(Sgl, bool), SubmitError> {
    list.clear();
    if matches!(data, Data::Anywhere { .. }) {
        return Err(SubmitError::NoMemory);
    }
    let total = data.len();
    if total == 0 {
        // As every host sends it: an empty keyed block. All of its fields are zero, so this cannot fail.
        return Ok((Sgl::keyed(0, 0, 0, false).unwrap_or_default(), false));
    }
    let len = u32::try_from(total).map_err(|_| SubmitError::TooLong(total))?;
    match command.direction() {
        DataDirection::HostToController
            if len <= params.in_capsule
                && pieces_up_to(data, params.max_pieces) < usize::from(params.max_pieces) =>
        {
            return Ok((Sgl::in_capsule(0, len), true));
        }
        DataDirection::HostToController | DataDirection::ControllerToHost => {}
        DataDirection::None | DataDirection::Bidirectional => return Err(SubmitError::Direction),
    }
    describe(params, data, keys, list)?;
    match list.as_slice() {
        [only] => Ok((*only, false)),
        // Limited by what fits a capsule.
        several => {
            let bytes = u32::try_from(several.len()).unwrap_or(0) * DESCRIPTOR;
            Ok((capsule_list(0, bytes), false))
        }
    }
}

/// A stretch of remote memory that grows while segments continue it.
#[derive(Clone, Copy)]
struct Stretch {
    memory: RemoteMemory,
    len: u64,
}

impl Stretch {
    fn continues(&self, next: &RemoteMemory) -> bool {
        self.memory.key == next.key
            && self.memory.invalidate == next.invalidate
            && self.memory.address.checked_add(self.len) == Some(next.address)
    }
}

/// Writes the descriptors of memory: one for each stretch that lies side by side under one key.
fn describe(
    params: &HostParams,
    data: &Data,
    keys: &impl RemoteKeys,
    list: &mut Vec<Sgl>,
) -> Result<(), SubmitError> {
    // One is in the command; several are in the capsule.
    let max = u32::from(params.max_descriptors)
        .min(params.in_capsule / DESCRIPTOR)
        .max(1);
    let mut current: Option<Stretch> = None;
    for segment in data.segments().iter().filter(|segment| !segment.is_empty()) {
        let len = segment.len();
        let memory = keys.remote(segment).ok_or(SubmitError::Unregistered(len))?;
        let address = memory.address;
        // At most 32 bits in all.
        let bytes = u64::try_from(len).map_err(|_| SubmitError::TooLong(len))?;
        if address.checked_add(bytes.saturating_sub(1)).is_none() {
            return Err(SubmitError::Address { address, len });
        }
        match &mut current {
            Some(stretch) if stretch.continues(&memory) => stretch.len += bytes,
            Some(stretch) => {
                write(*stretch, max, list)?;
                *stretch = Stretch { memory, len: bytes };
            }
            None => current = Some(Stretch { memory, len: bytes }),
        }
    }
    match current {
        Some(stretch) => write(stretch, max, list),
        None => Ok(()),
    }
}

fn write(stretch: Stretch, max: u32, list: &mut Vec<Sgl>) -> Result<(), SubmitError> {
    let RemoteMemory {
        mut address,
        key,
        invalidate,
    } = stretch.memory;
    let mut left = stretch.len;
    while left > 0 {
        if list.len() >= max as usize {
            list.clear();
            return Err(SubmitError::TooManyDescriptors { max });
        }
        let len = u32::try_from(left).map_or(LONGEST, |left| match left {
            ..=SglDescriptor::MAX_KEYED_LENGTH => left,
            _ => LONGEST,
        });
        let wrong = SubmitError::Address {
            address,
            len: len as usize,
        };
        list.push(Sgl::keyed(address.0, len, key.0, invalidate).map_err(|_| wrong)?);
        left -= u64::from(len);
        // Only of interest if something is left, and then inside the address space.
        address = RemoteAddress(address.0.wrapping_add(len.into()));
    }
    Ok(())
}

const _: () = assert!(SQE_SIZE == 64 && CQE_SIZE == 16);
