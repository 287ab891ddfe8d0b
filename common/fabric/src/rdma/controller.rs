//! [`ControllerConnection`]: the controller end of one NVMe/RDMA queue pair.

use std::collections::VecDeque;

use homi_queue::{Data, Segment};
use homi_spec::command::{SQE_SIZE, TransferDirection};
use homi_spec::status::Status;
use homi_spec::{Cqe, Sqe};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{ParameterError, TransportError};
use super::sgl::{self, MAX_DESCRIPTORS, Offer};
use super::table::{CommandTable, State};
use super::work::{Capsule, Chunk, Operation, SendQueue, Span, Work, WorkId};
use crate::tcp::CommandKey;

/// The deepest queue that a connection can have.
const MAX_DEPTH: u16 = 4096;

/// What a controller's queue pair can do, and what the controller announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerParams {
    /// In-capsule bytes, a multiple of 16: what IOCCSZ announces beyond the 64 bytes of a command.
    pub max_in_capsule: u32,
    /// Descriptors of one command (MSDBD): 1 to 256. More than one lie in the capsule, whose limit they count against.
    pub max_descriptors: u16,
    /// The most commands that [`ControllerConnection::set_queue`] may allow in flight: 1 to 4096.
    pub max_depth: u16,
    /// Work requests that the send queue takes: at least 2. With `max_depth` times two, plain traffic never waits.
    pub send_queue: u16,
    /// RDMA READs that may be outstanding: what both ends agreed on ([`super::cm::Granted::read_depth`]), at least 1.
    pub read_depth: u8,
    /// Pieces of local memory of one send or RDMA WRITE: at least 2.
    pub max_pieces: u16,
    /// Pieces of local memory of one RDMA READ (1 over iWARP): at least 1.
    pub max_read_pieces: u16,
    /// The device can send with invalidate. Where not, hosts invalidate their keys themselves.
    pub invalidate: bool,
    /// Data is written with signaled work requests: for devices where a later completion does not say that its memory is free.
    pub signal_data: bool,
}

impl Default for ControllerParams {
    fn default() -> Self {
        Self {
            max_in_capsule: 8192,
            max_descriptors: 1,
            max_depth: 128,
            send_queue: 256,
            read_depth: 16,
            max_pieces: 4,
            max_read_pieces: 1,
            invalidate: true,
            signal_data: false,
        }
    }
}

impl ControllerParams {
    fn check(&self) -> Result<(), ParameterError> {
        if !self.max_in_capsule.is_multiple_of(16) {
            return Err(ParameterError::InCapsule(self.max_in_capsule));
        }
        if !(1..=MAX_DESCRIPTORS).contains(&self.max_descriptors) {
            return Err(ParameterError::Descriptors {
                found: self.max_descriptors,
                max: MAX_DESCRIPTORS,
            });
        }
        if !(1..=MAX_DEPTH).contains(&self.max_depth) {
            return Err(ParameterError::Depth {
                depth: self.max_depth,
                max: MAX_DEPTH,
            });
        }
        if self.send_queue < 2 {
            return Err(ParameterError::SendQueue(self.send_queue));
        }
        if self.read_depth == 0 {
            return Err(ParameterError::ReadDepth);
        }
        if self.max_pieces < 2 {
            return Err(ParameterError::Pieces(self.max_pieces));
        }
        if self.max_read_pieces == 0 {
            return Err(ParameterError::Pieces(self.max_read_pieces));
        }
        Ok(())
    }
}

/// Memory of one posted receive. The receive scatters into both parts in order, which lets data in capsules land aligned.
#[derive(Debug, Clone)]
pub struct ReceiveBuffer {
    /// What the runtime knows it by.
    pub id: u32,
    /// Where the command lands: at least 64 bytes.
    pub entry: Segment,
    /// Where what follows the command lands. It must start with the 65th byte of the capsule, so `entry` is exactly 64 bytes
    /// of the scatter list.
    pub data: Option<Segment>,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerEvent {
    /// A command came.
    Command {
        /// The name of the command until it is responded to.
        key: CommandKey,
        /// The command. Where its descriptors are a list in the capsule, its data pointer here is a transport data block of their
        /// whole length, so that checks of the length read all commands alike.
        sqe: Sqe,
        /// Bytes of data in the capsule that the command names: they are there, see [`ControllerConnection::take_data`].
        in_capsule: u32,
        /// The command must not be executed but be responded to with this: its id is in flight already, or its descriptors
        /// cannot be followed.
        fault: Option<Status>,
    },
    /// All data of an accepted transfer came: [`ControllerConnection::take_data`] gives it.
    DataReceived {
        /// The command.
        key: CommandKey,
    },
    /// A cancelled transfer has come to its end: [`ControllerConnection::take_data`] gives the memory back. The command must be
    /// responded to, with this status or another failure.
    DataFailed {
        /// The command.
        key: CommandKey,
        /// Why.
        status: Status,
    },
}

impl ControllerEvent {
    /// The command that it is about.
    #[must_use]
    pub fn key(&self) -> CommandKey {
        match self {
            Self::Command { key, .. } | Self::DataReceived { key } | Self::DataFailed { key, .. } => *key,
        }
    }
}

/// A buffer that nothing uses any more.
#[derive(Debug)]
pub enum Returned {
    /// To be posted again. Post it before the work that [`ControllerConnection::poll_work`] gives next: the host may send another
    /// command as soon as it has a response.
    Receive(ReceiveBuffer),
    /// Memory that was given with [`ControllerConnection::accept`] or [`ControllerConnection::respond_with_data`].
    Data(Data),
}

/// Data cannot be accepted for a command.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// No such command.
    #[error("no command with key {} is in flight", .0.0)]
    Unknown(CommandKey),
    /// The command's data was accepted before, or is in its capsule.
    #[error("the data of this command was accepted before or came with it")]
    Again,
    /// The command's opcode does not send data.
    #[error("the command sends no data by its opcode, so its memory may not be read")]
    Direction,
    /// The memory does not fit what the host offers.
    #[error("the memory has {wanted} bytes, the host offers {offered}")]
    Length {
        /// Bytes of the memory.
        wanted: usize,
        /// Bytes that the descriptors have.
        offered: u32,
    },
}

impl AcceptError {
    /// The status that tells the host, where it is to blame.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Length { .. } => Status::SGL_DATA_LENGTH_INVALID,
            Self::Direction => Status::INVALID_FIELD,
            Self::Unknown(_) | Self::Again => Status::INTERNAL_ERROR,
        }
    }
}

/// A command cannot be responded to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// No such command.
    #[error("no command with key {} is in flight", .0.0)]
    Unknown(CommandKey),
    /// Accepted data is still coming.
    #[error("data of this command is still coming: wait for it, or cancel it and wait for the rest to pass")]
    DataComing,
    /// The response was given before.
    #[error("this command was responded to before")]
    Again,
    /// The command's opcode takes no data.
    #[error("the command takes no data by its opcode, so its memory may not be written")]
    Direction,
    /// More bytes than the memory or the host's descriptors have.
    #[error("the response transfers {len} bytes, the memory has {found} and the host offers {offered}")]
    Length {
        /// Bytes to transfer.
        len: usize,
        /// Bytes of the memory.
        found: usize,
        /// Bytes that the descriptors have.
        offered: u32,
    },
}

/// What [`ControllerConnection::cancel`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// Nothing is coming: the command can be responded to now.
    Now,
    /// RDMA READs are outstanding. When they are over, a [`ControllerEvent::DataFailed`] says so.
    Later,
}

/// The controller end of one queue pair: see the [module](super) for how it is driven.
#[derive(Debug)]
pub struct ControllerConnection {
    params: ControllerParams,
    established: bool,
    failed: bool,
    /// Nothing that was posted can touch memory any more.
    still: bool,
    table: CommandTable,
    send_queue: SendQueue,
    /// RDMA READs outstanding, oldest first.
    open_reads: VecDeque<(WorkId, CommandKey)>,
    /// Commands whose READs are not all posted, oldest first.
    reading: VecDeque<CommandKey>,
    /// Commands whose responses are not posted, oldest first.
    responding: VecDeque<CommandKey>,
    /// Memory whose WRITEs went before responses that are not known to be sent.
    sent: VecDeque<(WorkId, Data)>,
    /// Receives that completed before the connection was established, and their lengths.
    early: VecDeque<(ReceiveBuffer, usize)>,
    events: VecDeque<ControllerEvent>,
    returned: VecDeque<Returned>,
    /// The completion last handed out.
    response: Cqe,
}

impl ControllerConnection {
    /// A connection that waits to be established, and then for one command: Connect.
    ///
    /// # Errors
    /// [`ParameterError`] if a parameter is out of its range.
    pub fn new(params: ControllerParams) -> Result<Self, ParameterError> {
        params.check()?;
        Ok(Self {
            params,
            established: false,
            failed: false,
            still: false,
            table: CommandTable::new(),
            send_queue: SendQueue::new(params.send_queue),
            open_reads: VecDeque::new(),
            reading: VecDeque::new(),
            responding: VecDeque::new(),
            sent: VecDeque::new(),
            early: VecDeque::new(),
            events: VecDeque::new(),
            returned: VecDeque::new(),
            response: Cqe::default(),
        })
    }

    /// Sets how many commands may be in flight once Connect was accepted (clamped to 1 ..= `max_depth`).
    pub fn set_queue(&mut self, depth: u16) {
        self.table.set_limit(depth.clamp(1, self.params.max_depth));
    }

    /// Whether the connection is established and not over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.established && !self.failed
    }

    /// Whether the connection is over: disconnect, and bring the queue pair into the error state.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whether the connection is over and holds nothing: every buffer was returned, no command is unanswered.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.still && self.table.in_flight() == 0 && self.returned.is_empty()
    }

    /// Number of commands whose responses were not posted yet.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.table.in_flight()
    }

    /// The command in flight with this command id (the newest, should a host use one twice).
    #[must_use]
    pub fn find(&self, cid: u16) -> Option<CommandKey> {
        self.table.find(cid)
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

    /// Whether something goes on only when work completes: data is being read, or work waits for room. Else completions only free memory,
    /// which can be done at any time.
    #[must_use]
    pub fn waits_for_work(&self) -> bool {
        !self.open_reads.is_empty() || self.has_work()
    }

    /// Whether work waits for room in the send queue, or for the end of other RDMA READs.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !(self.failed || self.reading.is_empty() && self.responding.is_empty())
    }

    // ---- what happened ----

    /// The connection is established. Commands that came before are reported now, in their order.
    ///
    /// # Errors
    /// [`TransportError`] if one of them breaks the protocol.
    pub fn established(&mut self) -> Result<(), TransportError> {
        self.established = true;
        while let Some((buffer, len)) = self.early.pop_front() {
            self.received(buffer, len)?;
        }
        Ok(())
    }

    /// A receive completed with `len` bytes in `buffer`. It may have before the connection is established.
    ///
    /// # Errors
    /// [`TransportError`] if the host broke the protocol: the connection has failed. The buffer is returned in any case.
    pub fn received(&mut self, buffer: ReceiveBuffer, len: usize) -> Result<(), TransportError> {
        if self.failed {
            self.returned.push_back(Returned::Receive(buffer));
            return Ok(());
        }
        if !self.established {
            self.early.push_back((buffer, len));
            let limit = self.table.limit();
            if self.early.len() > usize::from(limit) {
                return Err(self.fail(TransportError::CommandLimit { limit }));
            }
            return Ok(());
        }
        match self.capsule(&buffer, len) {
            Ok((key, Some(view))) => {
                if let Some(slot) = self.table.get_mut(key) {
                    slot.data = Data::One(view);
                    slot.receive = Some(buffer);
                }
                Ok(())
            }
            Ok((_, None)) => {
                self.returned.push_back(Returned::Receive(buffer));
                Ok(())
            }
            Err(error) => {
                self.returned.push_back(Returned::Receive(buffer));
                Err(self.fail(error))
            }
        }
    }

    /// Judges a capsule and reports its command. Tells the part of the buffer that the command's data is in.
    #[inline]
    fn capsule(
        &mut self,
        buffer: &ReceiveBuffer,
        len: usize,
    ) -> Result<(CommandKey, Option<Segment>), TransportError> {
        let Some(after) = len.checked_sub(SQE_SIZE) else {
            return Err(TransportError::CapsuleTooShort {
                found: len,
                minimum: SQE_SIZE,
            });
        };
        let room = buffer.data.as_ref().map_or(0, Segment::len);
        let limit = room.min(self.params.max_in_capsule as usize);
        let too_long = TransportError::CapsuleTooLong {
            found: len,
            limit: SQE_SIZE + limit,
        };
        let received = match u32::try_from(after) {
            Ok(received) if after <= limit => received,
            _ => return Err(too_long),
        };
        let mut bytes = [0; SQE_SIZE];
        let entry = buffer.entry.part(0, SQE_SIZE)?;
        entry.region().read(entry.start(), &mut bytes)?;
        // The sizes are equal, so this is no choice.
        let mut sqe = Sqe::read_from_bytes(&bytes).unwrap_or_default();

        let limit = self.table.limit();
        let Some((key, conflict, slot)) = self.table.insert(sqe.cid.get()) else {
            return Err(TransportError::CommandLimit { limit });
        };
        let followed = sgl::follow(
            &sqe,
            buffer.data.as_ref(),
            received,
            self.params.max_descriptors,
            &mut slot.remotes,
        );
        let (offer, mut fault) = match followed {
            Ok(offer) => (offer, None),
            Err(status) => {
                slot.remotes.clear();
                (Offer::nothing(&sqe), Some(status))
            }
        };
        if conflict {
            fault = Some(Status::CID_CONFLICT);
        }
        slot.direction = sgl::direction(&sqe);
        slot.offered = offer.bytes;
        slot.invalidate = offer.invalidate.filter(|_| self.params.invalidate);
        let (view, in_capsule) = match (&buffer.data, offer.in_capsule) {
            (Some(data), Some(at)) => (Some(data.part(at, offer.bytes as usize)?), offer.bytes),
            _ => (None, 0),
        };
        sqe.dptr = offer.summary.0;
        slot.unseen = 1;
        self.events.push_back(ControllerEvent::Command {
            key,
            sqe,
            in_capsule,
            fault,
        });
        Ok((key, view))
    }

    /// A signaled work request completed; those before it did too, but for RDMA READs: each has a completion of its own, which some devices
    /// tell after those of later work requests.
    ///
    /// # Errors
    /// [`TransportError::UnknownWork`] if it is not outstanding; the connection has failed then.
    pub fn completed(&mut self, id: WorkId) -> Result<(), TransportError> {
        if !self.retire(id) {
            if self.failed {
                return Ok(());
            }
            return Err(self.fail(TransportError::UnknownWork { id }));
        }
        self.settle();
        Ok(())
    }

    /// A work request completed in error or was flushed: the queue pair is dead, and so is the connection.
    pub fn work_failed(&mut self, id: WorkId) {
        // No event may come of the sweep.
        self.lost();
        if self.retire(id) {
            self.settle();
        }
    }

    /// The connection is over: the peer disconnected, the queue pair or the device failed, or this end has had enough. Nothing is
    /// posted any more and no event comes any more. Commands that the session still executes are to be responded to nevertheless,
    /// which returns their buffers.
    pub fn lost(&mut self) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.events.clear();
        self.reading.clear();
        self.responding.clear();
        let early = self.early.drain(..);
        self.returned
            .extend(early.map(|(buffer, _)| Returned::Receive(buffer)));
        self.settle();
    }

    /// The queue pair is in the error state and everything posted to its send queue was flushed, or it was destroyed: nothing can
    /// touch the connection's memory any more. Implies [`lost`](Self::lost). Needed where flushed work requests are not all reported.
    pub fn stopped(&mut self) {
        self.lost();
        self.send_queue.retire_all();
        while let Some((_, key)) = self.open_reads.pop_front() {
            self.read_ended(key);
        }
        self.sweep();
        self.settle();
    }

    #[cold]
    fn fail(&mut self, error: TransportError) -> TransportError {
        self.lost();
        error
    }

    /// A work request is over, with those before it; false if it is not outstanding.
    fn retire(&mut self, id: WorkId) -> bool {
        let mut known = self.send_queue.retire(id);
        if !self.open_reads.is_empty() {
            // There are no more of them than `read_depth`.
            let place = self.open_reads.iter().position(|(read, _)| *read == id);
            let ended = place.and_then(|place| self.open_reads.remove(place));
            let queue = &self.send_queue;
            let overtaken = self
                .open_reads
                .iter()
                .filter(|(read, _)| queue.is_over(*read))
                .count();
            self.send_queue.set_overtaken(overtaken);
            if let Some((_, key)) = ended {
                known = true;
                self.read_ended(key);
            }
        }
        if known {
            self.sweep();
        }
        known
    }

    /// Returns the memory of responses that were sent.
    fn sweep(&mut self) {
        while let Some((id, _)) = self.sent.front()
            && self.send_queue.is_over(*id)
        {
            let sent = self.sent.pop_front();
            self.returned.extend(sent.map(|(_, data)| Returned::Data(data)));
        }
    }

    fn read_ended(&mut self, key: CommandKey) {
        let Some(slot) = self.table.get_mut(key) else {
            return;
        };
        slot.reads = slot.reads.saturating_sub(1);
        if self.failed || slot.reads > 0 {
            return;
        }
        match slot.state {
            State::Reading if slot.cursor.done == slot.wanted => {
                slot.state = State::Deciding;
                slot.unseen += 1;
                self.events.push_back(ControllerEvent::DataReceived { key });
            }
            State::Cancelled => {
                slot.state = State::Deciding;
                slot.unseen += 1;
                self.events.push_back(ControllerEvent::DataFailed {
                    key,
                    status: Status::ABORT_REQUESTED,
                });
            }
            State::Free | State::Deciding | State::Reading | State::Responding => {}
        }
    }

    /// After the end: returns everything once nothing posted is outstanding, but for receive buffers whose data the
    /// session took. Those come back when it responds.
    fn settle(&mut self) {
        if !self.failed || self.still || self.send_queue.outstanding() > 0 {
            return;
        }
        self.still = true;
        for key in self.table.keys() {
            let Some(slot) = self.table.get(key) else {
                continue;
            };
            if slot.receive.is_some() && slot.data.is_empty() {
                continue;
            }
            self.free(key);
        }
    }

    /// Frees a slot and returns what it holds.
    fn free(&mut self, key: CommandKey) {
        let Some(slot) = self.table.get_mut(key) else {
            return;
        };
        let data = std::mem::take(&mut slot.data);
        match slot.receive.take() {
            // The data is a view of the buffer.
            Some(buffer) => self.returned.push_back(Returned::Receive(buffer)),
            None if !data.is_empty() => self.returned.push_back(Returned::Data(data)),
            None => {}
        }
        self.table.remove(key);
    }

    // ---- what is to be done ----

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ControllerEvent> {
        let event = self.events.pop_front()?;
        if let Some(slot) = self.table.get_mut(event.key()) {
            slot.unseen = slot.unseen.saturating_sub(1);
        }
        Some(event)
    }

    /// Drops the events of a command that are of no interest any more, lest its key's next command gets them.
    fn forget_events(&mut self, key: CommandKey) {
        if let Some(slot) = self.table.get_mut(key)
            && slot.unseen > 0
        {
            slot.unseen = 0;
            self.events.retain(|event| event.key() != key);
        }
    }

    /// The next buffer that is free again.
    pub fn poll_returned(&mut self) -> Option<Returned> {
        self.returned.pop_front()
    }

    /// The next work request to post, as long as there is work and room for it. Post all of them as one list, after the receives
    /// of [`poll_returned`](Self::poll_returned). If posting fails, report it with [`stopped`](Self::stopped) once the queue pair is
    /// destroyed.
    pub fn poll_work(&mut self) -> Option<Work<'_>> {
        if !self.is_ready() || self.send_queue.room() == 0 {
            return None;
        }
        if self.open_reads.len() < usize::from(self.params.read_depth)
            && let Some((key, chunk)) = self.next_read()
        {
            return self.post_read(key, chunk);
        }
        let key = *self.responding.front()?;
        let slot = self.table.get_mut(key)?;
        let pieces = self.params.max_pieces;
        let chunk = slot.cursor.next(&slot.remotes, &slot.data, slot.wanted, pieces);
        match chunk {
            Some(chunk) => self.post_write(key, chunk),
            None => Some(self.post_response(key)),
        }
    }

    fn post_write(&mut self, key: CommandKey, chunk: Chunk) -> Option<Work<'_>> {
        let slot = self.table.get(key)?;
        let ticket = self.send_queue.post(self.params.signal_data);
        Some(Work {
            id: ticket.id,
            ring: ticket.ring,
            signaled: ticket.signaled,
            operation: Operation::Write {
                remote: chunk.remote,
                local: Span::new(&slot.data, chunk.at, chunk.remote.len as usize),
            },
        })
    }

    fn next_read(&mut self) -> Option<(CommandKey, Chunk)> {
        let key = *self.reading.front()?;
        let slot = self.table.get_mut(key)?;
        let pieces = self.params.max_read_pieces;
        // `accept` saw to it that both memories are long enough, so there is always a chunk.
        let chunk = slot.cursor.next(&slot.remotes, &slot.data, slot.wanted, pieces)?;
        if slot.cursor.done >= slot.wanted {
            self.reading.pop_front();
        }
        Some((key, chunk))
    }

    fn post_read(&mut self, key: CommandKey, chunk: Chunk) -> Option<Work<'_>> {
        let ticket = self.send_queue.post(true);
        self.open_reads.push_back((ticket.id, key));
        let slot = self.table.get_mut(key)?;
        slot.reads += 1;
        Some(Work {
            id: ticket.id,
            ring: ticket.ring,
            signaled: ticket.signaled,
            operation: Operation::Read {
                remote: chunk.remote,
                local: Span::new(&slot.data, chunk.at, chunk.remote.len as usize),
            },
        })
    }

    /// Posts the response of the command that is first in the line. Its key and its id are free from here on: the host may use
    /// the id again before this end hears that the response was sent.
    fn post_response(&mut self, key: CommandKey) -> Work<'_> {
        self.responding.pop_front();
        let mut data = Data::None;
        let mut invalidate = None;
        if let Some(slot) = self.table.get_mut(key) {
            data = std::mem::take(&mut slot.data);
            invalidate = slot.invalidate;
            self.response = slot.cqe;
            self.table.remove(key);
        }
        // Unsignaled unless somebody waits for the memory.
        let ticket = self.send_queue.post(!data.is_empty());
        if !data.is_empty() {
            self.sent.push_back((ticket.id, data));
        }
        Work {
            id: ticket.id,
            ring: ticket.ring,
            signaled: ticket.signaled,
            operation: Operation::Send(Capsule {
                entry: self.response.as_bytes(),
                list: &[],
                payload: Span::empty(),
                invalidate,
            }),
        }
    }

    // ---- answering ----

    /// Fetches a command's data into `data`: as many bytes as that has, at most what the host offers. An event tells when they have
    /// come. Data in the capsule needs no fetching: see [`take_data`](Self::take_data).
    ///
    /// # Errors
    /// [`AcceptError`], and the memory; the command stays as it was and can be responded to with [`AcceptError::status`].
    pub fn accept(&mut self, key: CommandKey, data: Data) -> Result<(), (AcceptError, Data)> {
        if self.failed {
            // No event will come of it.
            if !data.is_empty() {
                self.returned.push_back(Returned::Data(data));
            }
            return Ok(());
        }
        let Some(slot) = self.table.get_mut(key) else {
            return Err((AcceptError::Unknown(key), data));
        };
        if slot.state != State::Deciding || slot.wanted > 0 || slot.receive.is_some() {
            return Err((AcceptError::Again, data));
        }
        if slot.direction != TransferDirection::HostToController {
            return Err((AcceptError::Direction, data));
        }
        let (wanted, offered) = (memory_len(&data), slot.offered);
        let Some(len) = u32::try_from(wanted)
            .ok()
            .filter(|len| (1..=offered).contains(len))
        else {
            return Err((AcceptError::Length { wanted, offered }, data));
        };
        slot.data = data;
        slot.wanted = len;
        slot.state = State::Reading;
        self.reading.push_back(key);
        Ok(())
    }

    /// The memory that [`accept`](Self::accept) was given, after the event that says it is complete or failed; or the data in the
    /// command's capsule, which is valid until the command is responded to. [`Data::None`] at any other time.
    pub fn take_data(&mut self, key: CommandKey) -> Data {
        match self.table.get_mut(key) {
            Some(slot) if slot.state == State::Deciding => std::mem::take(&mut slot.data),
            _ => Data::None,
        }
    }

    /// Gives up a command's data, as an Abort does. Memory that a READ may be writing to stays with the connection until the READ
    /// is over; [`take_data`](Self::take_data) gives it back then, or at once if nothing was coming. Events of the data that
    /// were not polled yet do not come any more.
    ///
    /// # Errors
    /// [`RespondError::Unknown`] if no such command is in flight, [`RespondError::Again`] if it was responded to.
    pub fn cancel(&mut self, key: CommandKey) -> Result<Cancel, RespondError> {
        let slot = self.table.get_mut(key).ok_or(RespondError::Unknown(key))?;
        let cancel = match slot.state {
            State::Reading | State::Cancelled if slot.reads > 0 => {
                slot.state = State::Cancelled;
                Cancel::Later
            }
            State::Responding => return Err(RespondError::Again),
            State::Free | State::Deciding | State::Reading | State::Cancelled => {
                slot.state = State::Deciding;
                Cancel::Now
            }
        };
        // A command that was accepted was reported; one that was not may still be executed, so that event stays.
        let accepted = slot.wanted > 0;
        self.reading.retain(|other| *other != key);
        if accepted {
            self.forget_events(key);
        }
        Ok(cancel)
    }

    /// Ends a command with a response. The completion's command id is set here. The response is sent after everything that was
    /// given before it, when the send queue has room; the command's key is free when it is handed out for posting.
    ///
    /// On a connection that has failed the command ends without a response.
    ///
    /// # Errors
    /// [`RespondError`] if the command is not in flight or if accepted data is still coming.
    pub fn respond(&mut self, key: CommandKey, cqe: Cqe) -> Result<(), RespondError> {
        self.end(key, cqe, Data::None, 0).map_err(|(error, _)| error)
    }

    /// Ends a command with the first `len` bytes of `data`, which are written to the host's memory, and a response after them.
    /// The memory comes back by [`poll_returned`](Self::poll_returned) when it was sent.
    ///
    /// On a connection that has failed the command ends without a response, and the memory comes back in the same way.
    ///
    /// # Errors
    /// [`RespondError`], and the memory, if the command is not in flight, if accepted data is still coming, or if `len` is more than
    /// the memory has or the host offers. The command is still in flight then.
    pub fn respond_with_data(
        &mut self,
        key: CommandKey,
        data: Data,
        len: usize,
        cqe: Cqe,
    ) -> Result<(), (RespondError, Data)> {
        self.end(key, cqe, data, len)
    }

    fn end(&mut self, key: CommandKey, cqe: Cqe, data: Data, len: usize) -> Result<(), (RespondError, Data)> {
        if self.failed {
            return self.end_unanswered(key, data);
        }
        let Some(slot) = self.table.get_mut(key) else {
            return Err((RespondError::Unknown(key), data));
        };
        match slot.state {
            State::Reading | State::Cancelled => return Err((RespondError::DataComing, data)),
            State::Responding => return Err((RespondError::Again, data)),
            State::Free | State::Deciding => {}
        }
        if len > 0 && slot.direction != TransferDirection::ControllerToHost {
            return Err((RespondError::Direction, data));
        }
        let (found, offered) = (memory_len(&data), slot.offered);
        let Some(wanted) = u32::try_from(len)
            .ok()
            .filter(|wanted| len <= found && *wanted <= offered)
        else {
            return Err((RespondError::Length { len, found, offered }, data));
        };
        self.responding.push_back(key);
        // Memory of `accept` that the session never took.
        let left = std::mem::replace(&mut slot.data, data);
        slot.wanted = wanted;
        slot.cursor = Default::default();
        slot.cqe = cqe;
        slot.cqe.cid = slot.cid.into();
        slot.state = State::Responding;
        match slot.receive.take() {
            Some(buffer) => self.returned.push_back(Returned::Receive(buffer)),
            None if !left.is_empty() => self.returned.push_back(Returned::Data(left)),
            None => {}
        }
        self.forget_events(key);
        Ok(())
    }

    /// After the end of the connection: the session's use of a command is over.
    fn end_unanswered(&mut self, key: CommandKey, data: Data) -> Result<(), (RespondError, Data)> {
        if !data.is_empty() {
            self.returned.push_back(Returned::Data(data));
        }
        // What work requests may still use stays until they are over.
        if self
            .table
            .get(key)
            .is_some_and(|slot| slot.state == State::Deciding)
        {
            self.free(key);
        }
        Ok(())
    }
}

/// Bytes of memory, which [`Data::Anywhere`] is not.
fn memory_len(data: &Data) -> usize {
    data.segments()
        .iter()
        .map(Segment::len)
        .fold(0, usize::saturating_add)
}
