//! [`ControllerConnection`]: the controller end of one NVMe/TCP connection.

use homi_queue::{Data, GatherList, MemoryError, Segment};
use homi_spec::command::{FabricsOpcode, TransferDirection};
use homi_spec::sgl::SglDescriptor;
use homi_spec::status::Status;
use homi_spec::tcp::{
    ADMIN_IN_CAPSULE, C2HData, CapsuleCmd, CapsuleResp, H2CData, IcReq, IcResp, MAXH2CDATA_MIN, PDA_MAX_Z,
    PFV_1_0, PduHeader, PduType, R2t, dgst, flags,
};
use homi_spec::{Cqe, Sqe};
use zerocopy::IntoBytes;

use super::error::{End, ParameterError, Termination, TransportError};
use super::framing::{CAPSULE_HEADER, Framing, MAX_TRANSFER, SHORT_HEADER, push_terminate, view};
use super::receive::{Inbound, Phase, Verdict};
use super::table::{CommandKey, CommandTable, State as SlotState};

/// The deepest queue that a connection can have: leaves four bits of every transfer tag to tell transfers apart.
const MAX_DEPTH: u16 = 4096;

/// What a controller offers on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerParams {
    /// In-capsule data on I/O queues in bytes, a multiple of 16: what IOCCSZ announces beyond 64 bytes. Fabrics commands
    /// may always carry 8192 bytes.
    pub max_in_capsule_io: u32,
    /// Most data that one H2CData unit may carry in bytes (MAXH2CDATA): a multiple of 4, at least 4096.
    pub max_h2c_data: u32,
    /// Alignment wanted of received data (CPDA): dwords, zero-based, at most 31.
    pub cpda_z: u8,
    /// Use header digests if the host asks for them.
    pub header_digest: bool,
    /// Use data digests if the host asks for them.
    pub data_digest: bool,
    /// The most commands that [`ControllerConnection::set_queue`] may allow in flight: 1 to 4096.
    pub max_depth: u16,
}

impl Default for ControllerParams {
    fn default() -> Self {
        Self {
            max_in_capsule_io: 8192,
            max_h2c_data: 1 << 20,
            cpda_z: 0,
            header_digest: true,
            data_digest: true,
            max_depth: 1024,
        }
    }
}

impl ControllerParams {
    fn check(&self) -> Result<(), ParameterError> {
        if self.cpda_z > PDA_MAX_Z {
            return Err(ParameterError::Alignment(self.cpda_z));
        }
        if self.max_h2c_data < MAXH2CDATA_MIN || !self.max_h2c_data.is_multiple_of(4) {
            return Err(ParameterError::MaxH2cData(self.max_h2c_data));
        }
        if !self.max_in_capsule_io.is_multiple_of(16) {
            return Err(ParameterError::InCapsule(self.max_in_capsule_io));
        }
        if !(1..=MAX_DEPTH).contains(&self.max_depth) {
            return Err(ParameterError::Depth {
                depth: self.max_depth,
                max: MAX_DEPTH,
            });
        }
        Ok(())
    }
}

/// What the host sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerEvent {
    /// The connection is initialised: commands may come.
    Ready,
    /// A command came. The data in its capsule may still be coming: it goes where [`ControllerConnection::accept`] says if that
    /// is called before the next `advance`, and is discarded otherwise.
    Command {
        /// The name of the command until it is responded to.
        key: CommandKey,
        /// The command.
        sqe: Sqe,
        /// Bytes of data in the capsule.
        in_capsule: u32,
        /// The command must not be executed but be responded to with this: its id is in flight already, or its SGL descriptor is
        /// not one that TCP can follow or does not agree with the capsule.
        fault: Option<Status>,
    },
    /// All data of an accepted transfer came: [`ControllerConnection::take_data`] gives it.
    DataReceived {
        /// The command.
        key: CommandKey,
    },
    /// The data of an accepted transfer came to its end but is not to be used: a digest did not match, or the transfer was
    /// cancelled. The command must be responded to, with this status or another failure.
    DataFailed {
        /// The command.
        key: CommandKey,
        /// Why.
        status: Status,
    },
    /// The host ended the connection. Nothing more comes and nothing need be sent.
    PeerTerminated(Termination),
}

/// Data cannot be accepted for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// No such command.
    #[error("no command with key {} is in flight", .0.0)]
    Unknown(CommandKey),
    /// The command's data was accepted before.
    #[error("the data of this command was accepted before")]
    Again,
    /// The capsule's data has passed.
    #[error("the capsule's data was discarded: accept it before the next bytes are received")]
    TooLate,
    /// The memory does not fit what the host offers.
    #[error("the memory has {wanted} bytes, the host offers {offered}")]
    Length {
        /// Bytes of the memory.
        wanted: usize,
        /// Bytes in the capsule (which must all be accepted), or as the transport SGL says.
        offered: u32,
    },
}

impl AcceptError {
    /// The status that tells the host, where it is to blame.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Length { .. } => Status::SGL_DATA_LENGTH_INVALID,
            Self::Unknown(_) | Self::Again | Self::TooLate => Status::INTERNAL_ERROR,
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
    /// The memory is shorter than the transfer, or does not say where it is.
    #[error("the memory of a response has {found} bytes, the response transfers {len}")]
    Length {
        /// Bytes to transfer.
        len: usize,
        /// Bytes of the memory.
        found: usize,
    },
    /// The memory cannot be addressed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What [`ControllerConnection::cancel`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// Nothing is coming: the command can be responded to now.
    Now,
    /// Data that was asked for is still coming and is discarded from now on. When all of it has passed, a
    /// [`ControllerEvent::DataFailed`] says so.
    Later,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitsInitialize,
    Ready,
}

/// The controller end of one connection, which is one queue: see the [module](super) for how it is driven.
#[derive(Debug)]
pub struct ControllerConnection {
    inbound: Inbound,
    state: State,
    /// The queue is an I/O queue.
    io: bool,
    framing: Framing,
    params: ControllerParams,
    table: CommandTable,
    output: GatherList,
}

impl ControllerConnection {
    /// A connection that waits for the host to initialise it, and then for one command: Connect.
    ///
    /// # Errors
    /// [`ParameterError`] if a parameter is out of its range.
    pub fn new(params: ControllerParams) -> Result<Self, ParameterError> {
        params.check()?;
        Ok(Self {
            inbound: Inbound::new(),
            state: State::AwaitsInitialize,
            io: false,
            framing: Framing::initial(),
            params,
            table: CommandTable::new(params.max_depth),
            output: GatherList::new(),
        })
    }

    /// Sets what the queue takes once Connect was accepted: commands in flight (clamped to 1 ..= `max_depth`), and the in-capsule
    /// limit of an I/O queue.
    pub fn set_queue(&mut self, depth: u16, io: bool) {
        self.table.set_limit(depth.clamp(1, self.params.max_depth));
        self.io = io;
    }

    /// Whether the host has initialised the connection and it is not over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready && !self.failed()
    }

    /// Whether the connection is over, by an error here or by the peer's terminate request: send what is queued, then close.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inbound.phase == Phase::Closed
    }

    /// Whether header digests are in use.
    #[must_use]
    pub fn header_digest(&self) -> bool {
        self.framing.header_digest
    }

    /// Whether data digests are in use.
    #[must_use]
    pub fn data_digest(&self) -> bool {
        self.framing.data_digest
    }

    /// Number of commands that were not responded to yet.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.table.in_flight()
    }

    /// The command in flight with this command id (the newest, should a host use one twice).
    #[must_use]
    pub fn find(&self, cid: u16) -> Option<CommandKey> {
        self.table.find(cid)
    }

    /// What is to be sent.
    pub fn output(&mut self) -> &mut GatherList {
        &mut self.output
    }

    /// What is to be sent, in exchange for an empty list to append to.
    pub fn take_output(&mut self, spare: GatherList) -> GatherList {
        std::mem::replace(&mut self.output, spare)
    }

    // ---- receiving ----

    /// Consumes received bytes from the front of `input` up to the next event, or all of them. Call it again while it returns
    /// events. After the connection has failed, bytes are discarded.
    ///
    /// # Errors
    /// [`TransportError`] if the host broke the protocol, once: the terminate request is queued, and the connection has failed.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<ControllerEvent>, TransportError> {
        loop {
            match self.inbound.phase {
                Phase::Header => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let start = *input;
                    let (state, framing) = (self.state, &self.framing);
                    let event = match self
                        .inbound
                        .header_in_place(input, |header| judge(state, framing, header))
                    {
                        Ok(Some(header)) => self.header(header).map_err(|error| self.fail(error, header))?,
                        Ok(None) => match self.gathered_header(input)? {
                            Some(event) => event,
                            None => return Ok(None),
                        },
                        Err(error) => {
                            *input = &[];
                            return Err(
                                self.fail(error, start.get(..size_of::<PduHeader>()).unwrap_or(start))
                            );
                        }
                    };
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Phase::Padding => {
                    if !self.inbound.skip_padding(input) {
                        return Ok(None);
                    }
                }
                Phase::Payload => {
                    let bytes = self.inbound.take_payload(input);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let event = self.payload(bytes)?;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Phase::DataDigest => {
                    let Some(verdict) = self.inbound.data_digest(input) else {
                        return Ok(None);
                    };
                    let event = self.data_ended(verdict);
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Phase::Closed => {
                    *input = &[];
                    return Ok(None);
                }
            }
        }
    }

    /// Where the next bytes of the stream belong, if they are at least `minimum` bytes of a payload that go side by side into one
    /// piece of memory: receive there, then call [`landed`](Self::landed). Until then, do not call `advance`.
    #[must_use]
    pub fn landing(&self, minimum: usize) -> Option<Segment> {
        if self.inbound.phase != Phase::Payload {
            return None;
        }
        let slot = self.table.get(CommandKey(self.inbound.target))?;
        if slot.state != SlotState::Receiving {
            return None;
        }
        self.inbound.landing(&slot.data, minimum)
    }

    /// Takes note that the next `len` bytes of the stream were received where [`landing`](Self::landing) said.
    ///
    /// # Errors
    /// [`TransportError`] if the memory cannot be read back for its digest.
    pub fn landed(&mut self, len: usize) -> Result<Option<ControllerEvent>, TransportError> {
        if self.inbound.phase != Phase::Payload {
            return Ok(None);
        }
        if let Some(slot) = self.table.get(CommandKey(self.inbound.target))
            && slot.state == SlotState::Receiving
        {
            let cid = slot.cid;
            let placed = self.inbound.placed(&slot.data, len, self.framing.data_digest);
            placed.map_err(|source| self.fail(TransportError::Memory { cid, source }, &[]))?;
        }
        Ok(self.payload_counted(len))
    }

    #[cold]
    fn gathered_header(
        &mut self,
        input: &mut &[u8],
    ) -> Result<Option<Option<ControllerEvent>>, TransportError> {
        let (state, framing) = (self.state, self.framing);
        match self
            .inbound
            .gather_header(input, |header| judge(state, &framing, header))
        {
            Ok(Some(held)) => {
                let event = self
                    .header(held.bytes())
                    .map_err(|error| self.fail(error, held.bytes()))?;
                Ok(Some(event))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                *input = &[];
                let held = self.inbound.held().to_vec();
                Err(self.fail(error, &held))
            }
        }
    }

    /// Ends the connection with a terminate request about the unit that starts with `offender`.
    #[cold]
    fn fail(&mut self, error: TransportError, offender: &[u8]) -> TransportError {
        push_terminate(
            &mut self.output,
            PduType::C2H_TERM_REQ,
            error.fatal_error(),
            offender,
        );
        self.inbound.phase = Phase::Closed;
        error
    }

    /// A whole header, with its digest if there is one.
    #[inline]
    fn header(&mut self, bytes: &[u8]) -> Result<Option<ControllerEvent>, TransportError> {
        match PduType(bytes.first().copied().unwrap_or_default()) {
            PduType::CAPSULE_CMD => {
                self.framing.check_header(bytes)?;
                self.command(view(bytes)?).map(Some)
            }
            PduType::H2C_DATA => {
                self.framing.check_header(bytes)?;
                self.data(view(bytes)?)?;
                Ok(None)
            }
            PduType::IC_REQ => self.initialize(view(bytes)?).map(Some),
            // `judge` let nothing else through.
            _ => {
                self.inbound.phase = Phase::Closed;
                Ok(Termination::parse(End::Host, bytes).map(ControllerEvent::PeerTerminated))
            }
        }
    }

    fn initialize(&mut self, request: &IcReq) -> Result<ControllerEvent, TransportError> {
        if request.pfv.get() != PFV_1_0 {
            return Err(TransportError::Version(request.pfv.get()));
        }
        if request.hpda_z > PDA_MAX_Z {
            return Err(TransportError::PeerAlignment(request.hpda_z));
        }
        let mut granted = 0;
        if self.params.header_digest {
            granted |= request.dgst & dgst::HEADER;
        }
        if self.params.data_digest {
            granted |= request.dgst & dgst::DATA;
        }
        let response = IcResp::new(self.params.cpda_z, granted, self.params.max_h2c_data);
        self.output.push_bytes(response.as_bytes());
        self.framing = Framing::negotiated(granted, self.params.cpda_z, request.hpda_z);
        self.state = State::Ready;
        Ok(ControllerEvent::Ready)
    }

    #[inline]
    fn command(&mut self, unit: &CapsuleCmd) -> Result<ControllerEvent, TransportError> {
        let plain = u32::from(CAPSULE_HEADER + self.framing.header_digest_len());
        let payload = if unit.header.plen.get() == plain {
            None
        } else {
            let payload = self.framing.with_data(&unit.header)?;
            let limit = self.in_capsule_limit(&unit.sqe);
            if payload.len > limit {
                return Err(TransportError::InCapsuleLimit {
                    found: payload.len,
                    limit,
                });
            }
            Some(payload)
        };
        let in_capsule = payload.map_or(0, |payload| payload.len);
        let limit = self.table.limit();
        let Some((key, conflict, slot)) = self.table.insert(unit.sqe.cid.get()) else {
            return Err(TransportError::CommandLimit { limit });
        };
        let (offered, fault) = offer(&unit.sqe, in_capsule);
        slot.offered = offered;
        slot.in_capsule = in_capsule > 0;
        slot.wanted = 0;
        slot.announced = 0;
        slot.solicited = false;
        slot.corrupt = false;
        if let Some(payload) = payload {
            self.inbound.begin(payload, key.0, 0, unit.header.flags);
        }
        let fault = if conflict {
            Some(Status::CID_CONFLICT)
        } else {
            fault
        };
        Ok(ControllerEvent::Command {
            key,
            sqe: unit.sqe,
            in_capsule,
            fault,
        })
    }

    fn in_capsule_limit(&self, sqe: &Sqe) -> u32 {
        // TCP Transport 1.0 §3.3: 8192 bytes on the admin queue, and hosts use them for fabrics commands on any queue.
        if !self.io {
            ADMIN_IN_CAPSULE
        } else if sqe.opcode == FabricsOpcode::FABRICS {
            self.params.max_in_capsule_io.max(ADMIN_IN_CAPSULE)
        } else {
            self.params.max_in_capsule_io
        }
    }

    #[inline]
    fn data(&mut self, unit: &H2CData) -> Result<(), TransportError> {
        let pdu = PduType::H2C_DATA;
        let payload = self.framing.with_data(&unit.header)?;
        let (ttag, cccid) = (unit.ttag.get(), unit.cccid.get());
        let (offset, len) = (unit.datao.get(), unit.datal.get());
        let Some((key, slot)) = self.table.find_transfer(ttag) else {
            return Err(TransportError::UnknownTransfer { ttag });
        };
        if slot.cid != cccid {
            return Err(TransportError::WrongCommand {
                ttag,
                expected: slot.cid,
                found: cccid,
            });
        }
        if payload.len != len {
            let around = u64::from(unit.header.plen.get()) - u64::from(payload.len);
            return Err(TransportError::PduLength {
                pdu,
                found: unit.header.plen.get(),
                expected: around + u64::from(len),
            });
        }
        if len > self.params.max_h2c_data {
            return Err(TransportError::H2cDataLimit {
                found: len,
                limit: self.params.max_h2c_data,
            });
        }
        let (expected, remaining) = (slot.announced, slot.wanted - slot.announced);
        if offset != expected || len > remaining {
            return Err(TransportError::DataRange {
                pdu,
                cid: cccid,
                offset,
                len,
                expected,
                remaining,
            });
        }
        let last = unit.header.has(flags::LAST_PDU);
        if last != (len == remaining) {
            let (end, total) = (offset + len, slot.wanted);
            return Err(TransportError::LastFlag {
                pdu,
                cid: cccid,
                end,
                total,
                last,
            });
        }
        slot.announced = offset + len;
        self.inbound.begin(payload, key.0, offset, unit.header.flags);
        Ok(())
    }

    /// Payload bytes from the input.
    #[inline]
    fn payload(&mut self, bytes: &[u8]) -> Result<Option<ControllerEvent>, TransportError> {
        // A command that was responded to is not found, and the rest of its capsule is discarded; its slot cannot have another
        // command yet, since commands only come between units.
        if let Some(slot) = self.table.get_mut(CommandKey(self.inbound.target)) {
            match slot.state {
                SlotState::Receiving => {
                    let cid = slot.cid;
                    let placed = self.inbound.place(&slot.data, bytes, self.framing.data_digest);
                    placed.map_err(|source| self.fail(TransportError::Memory { cid, source }, &[]))?;
                }
                SlotState::Deciding => slot.state = SlotState::Missed,
                SlotState::Free | SlotState::Missed | SlotState::Cancelled => {}
            }
        }
        Ok(self.payload_counted(bytes.len()))
    }

    #[inline]
    fn payload_counted(&mut self, len: usize) -> Option<ControllerEvent> {
        if !self.inbound.advance(len) {
            return None;
        }
        if self.framing.data_digest {
            self.inbound.phase = Phase::DataDigest;
            return None;
        }
        self.data_ended(Verdict::Match)
    }

    /// The end of a unit with data.
    #[inline]
    fn data_ended(&mut self, verdict: Verdict) -> Option<ControllerEvent> {
        self.inbound.phase = Phase::Header;
        let key = CommandKey(self.inbound.target);
        let slot = self.table.get_mut(key)?;
        match slot.state {
            SlotState::Receiving | SlotState::Cancelled => {}
            // Discarded: nobody waits for it, and its digest means nothing.
            SlotState::Free | SlotState::Deciding | SlotState::Missed => return None,
        }
        slot.corrupt |= verdict == Verdict::Mismatch;
        if slot.solicited && slot.announced < slot.wanted {
            // A corrupt unit that is not the last: the command fails once, when the rest has come.
            return None;
        }
        let cancelled = slot.state == SlotState::Cancelled;
        slot.state = SlotState::Deciding;
        Some(if cancelled {
            ControllerEvent::DataFailed {
                key,
                status: Status::ABORT_REQUESTED,
            }
        } else if slot.corrupt {
            ControllerEvent::DataFailed {
                key,
                status: Status::TRANSIENT_TRANSPORT_ERROR,
            }
        } else {
            ControllerEvent::DataReceived { key }
        })
    }

    // ---- answering ----

    /// Takes a command's data: from its capsule, or else asked from the host with one R2T for the whole. The bytes land in
    /// `data`, whose length is the capsule's, or at most what the transport SGL says. An event tells when they have come.
    ///
    /// # Errors
    /// [`AcceptError`]; the command stays as it was and can be responded to with [`AcceptError::status`].
    pub fn accept(&mut self, key: CommandKey, data: Data) -> Result<(), AcceptError> {
        let slot = self.table.get_mut(key).ok_or(AcceptError::Unknown(key))?;
        match slot.state {
            SlotState::Deciding if slot.wanted == 0 => {}
            SlotState::Missed => return Err(AcceptError::TooLate),
            _ => return Err(AcceptError::Again),
        }
        let offered = slot.offered;
        let wanted: usize = data.segments().iter().map(Segment::len).sum();
        let len = u32::try_from(wanted)
            .ok()
            .filter(|len| {
                *len > 0 && *len <= offered.min(MAX_TRANSFER) && !(slot.in_capsule && *len != offered)
            })
            .ok_or(AcceptError::Length { wanted, offered })?;
        slot.data = data;
        slot.wanted = len;
        slot.state = SlotState::Receiving;
        slot.solicited = !slot.in_capsule;
        if slot.solicited {
            let cid = slot.cid;
            let ttag = self.table.next_transfer(key).ok_or(AcceptError::Unknown(key))?;
            let unit = R2t {
                header: self.framing.plain(PduType::R2T, SHORT_HEADER),
                cccid: cid.into(),
                ttag: ttag.into(),
                r2to: 0.into(),
                r2tl: len.into(),
                reserved20: [0; 4],
            };
            self.framing.push_header(&mut self.output, unit.as_bytes());
        }
        Ok(())
    }

    /// The memory that [`accept`](Self::accept) was given, after the event that says it is complete or failed;
    /// [`Data::None`] at any other time.
    pub fn take_data(&mut self, key: CommandKey) -> Data {
        match self.table.get_mut(key) {
            Some(slot) if matches!(slot.state, SlotState::Deciding | SlotState::Missed) => {
                std::mem::take(&mut slot.data)
            }
            _ => Data::None,
        }
    }

    /// Gives up a command's data, as an Abort does. Memory that bytes may be landing in stays with the connection until they
    /// have passed.
    ///
    /// # Errors
    /// [`RespondError::Unknown`] if no such command is in flight.
    pub fn cancel(&mut self, key: CommandKey) -> Result<Cancel, RespondError> {
        let slot = self.table.get_mut(key).ok_or(RespondError::Unknown(key))?;
        match slot.state {
            SlotState::Receiving | SlotState::Cancelled => {
                slot.state = SlotState::Cancelled;
                Ok(Cancel::Later)
            }
            SlotState::Free | SlotState::Deciding | SlotState::Missed => Ok(Cancel::Now),
        }
    }

    /// Ends a command with a response; its key is free. The completion's command id is set here. Data in its capsule that was not
    /// accepted is discarded when it comes.
    ///
    /// # Errors
    /// [`RespondError`] if the command is not in flight or if accepted data is still coming.
    #[inline]
    pub fn respond(&mut self, key: CommandKey, cqe: Cqe) -> Result<(), RespondError> {
        let cid = self.end(key)?;
        self.push_response(cid, cqe);
        Ok(())
    }

    /// Ends a command with the first `len` bytes of `data`, which are referred to until they are sent, and a response; the
    /// command's key is free. With `success_flag` (only allowed where submission queue flow control is disabled) a completion that is
    /// plain success travels as a flag of the data instead.
    ///
    /// # Errors
    /// [`RespondError`] if the command is not in flight, if accepted data is still coming, or if `data` is shorter than `len` or
    /// not memory. Nothing was sent then, and the command is still in flight.
    #[inline]
    pub fn respond_with_data(
        &mut self,
        key: CommandKey,
        data: Data,
        len: usize,
        cqe: Cqe,
        success_flag: bool,
    ) -> Result<(), RespondError> {
        if len == 0 {
            return self.respond(key, cqe);
        }
        let found = match &data {
            Data::One(segment) => segment.len(),
            other => other.segments().iter().map(Segment::len).sum(),
        };
        let wire_len = u32::try_from(len)
            .ok()
            .filter(|wire| len <= found && *wire <= MAX_TRANSFER);
        let wire_len = wire_len.ok_or(RespondError::Length { len, found })?;
        let cid = self.end(key)?;
        let success = success_flag && cqe.status().raw() == 0 && cqe.dw0.get() == 0 && cqe.dw1.get() == 0;
        let flags = if success {
            flags::LAST_PDU | flags::SUCCESS
        } else {
            flags::LAST_PDU
        };
        let header = self
            .framing
            .carrying(PduType::C2H_DATA, SHORT_HEADER, wire_len, flags);
        let unit = C2HData {
            header,
            cccid: cid.into(),
            reserved10: [0; 2],
            datao: 0.into(),
            datal: wire_len.into(),
            reserved20: [0; 4],
        };
        self.framing
            .push_header_before_data(&mut self.output, unit.as_bytes(), header.pdo);
        match data {
            Data::One(segment) if segment.len() == len && !self.framing.data_digest => {
                self.output.push_memory(segment);
            }
            data => self.framing.push_data(&mut self.output, &data, 0, len)?,
        }
        if !success {
            self.push_response(cid, cqe);
        }
        Ok(())
    }

    #[inline]
    fn push_response(&mut self, cid: u16, cqe: Cqe) {
        let unit = CapsuleResp {
            header: self.framing.plain(PduType::CAPSULE_RESP, SHORT_HEADER),
            cqe: Cqe {
                cid: cid.into(),
                ..cqe
            },
        };
        self.framing.push_header(&mut self.output, unit.as_bytes());
    }

    /// Frees a command's slot and tells its id.
    #[inline]
    fn end(&mut self, key: CommandKey) -> Result<u16, RespondError> {
        match self.table.get(key) {
            Some(slot) if matches!(slot.state, SlotState::Receiving | SlotState::Cancelled) => {
                Err(RespondError::DataComing)
            }
            Some(_) => self.table.remove(key).ok_or(RespondError::Unknown(key)),
            None => Err(RespondError::Unknown(key)),
        }
    }
}

/// Judges a unit's first eight bytes by the connection's state, and tells how long its header is with its digest.
#[inline]
fn judge(state: State, framing: &Framing, header: &PduHeader) -> Result<usize, TransportError> {
    match (header.pdu_type, state) {
        (PduType::CAPSULE_CMD, State::Ready) => framing.judge(header, CAPSULE_HEADER),
        (PduType::H2C_DATA, State::Ready) => framing.judge(header, SHORT_HEADER),
        (PduType::IC_REQ, State::AwaitsInitialize) => Framing::judge_initialize(header),
        (PduType::H2C_TERM_REQ, _) => Framing::judge_terminate(header),
        (other, State::AwaitsInitialize) => Err(Framing::unexpected(
            other,
            End::Controller,
            "waits for the connection to be initialised",
        )),
        (other, State::Ready) => Err(Framing::unexpected(
            other,
            End::Controller,
            "takes commands and data",
        )),
    }
}

/// How many bytes a command offers, by its capsule or its transport SGL, and what is wrong with its descriptor
/// (TCP Transport 1.0 §3.4: in-capsule data from the host, or a transport data block).
#[inline]
fn offer(sqe: &Sqe, in_capsule: u32) -> (u32, Option<Status>) {
    let sgl = sqe.sgl().parse();
    match sgl {
        SglDescriptor::Transport { length } if in_capsule == 0 => (length, None),
        _ => offer_of_others(sqe, sgl, in_capsule),
    }
}

fn offer_of_others(sqe: &Sqe, sgl: SglDescriptor, in_capsule: u32) -> (u32, Option<Status>) {
    let direction = match sqe.fabrics_type() {
        Some(fabrics_type) => TransferDirection::of(fabrics_type.raw()),
        None => TransferDirection::of(sqe.opcode),
    };
    let fault = match sgl {
        SglDescriptor::InCapsule { length: 0, .. } if in_capsule == 0 => None,
        SglDescriptor::InCapsule { .. } if direction == TransferDirection::ControllerToHost => {
            Some(Status::SGL_TYPE_INVALID)
        }
        SglDescriptor::InCapsule { offset, .. } if offset != 0 => Some(Status::SGL_OFFSET_INVALID),
        SglDescriptor::InCapsule { length, .. } if length != in_capsule => {
            Some(Status::SGL_DATA_LENGTH_INVALID)
        }
        SglDescriptor::InCapsule { .. } => None,
        _ if in_capsule > 0 => Some(Status::SGL_TYPE_INVALID),
        SglDescriptor::DataBlock { length: 0, .. } => None,
        _ if direction == TransferDirection::None => None,
        _ => Some(Status::SGL_TYPE_INVALID),
    };
    (if fault.is_none() { in_capsule } else { 0 }, fault)
}
