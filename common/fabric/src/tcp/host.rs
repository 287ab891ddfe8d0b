//! [`HostConnection`]: the host end of one NVMe/TCP connection.

use std::collections::VecDeque;

use homi_queue::{
    Command, CommandId, Data, DataDirection, GatherList, Region, Segment, Slot, Slots, StaleCommand,
    Undelivered,
};
use homi_spec::command::FabricsOpcode;
use homi_spec::sgl::Sgl;
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

/// The most bytes put into one H2CData unit, whatever the controller takes: keeps PLEN far from overflowing.
const MAX_H2C_DATA: u32 = 1 << 30;
/// Alignment of memory chosen for reads whose issuer does not care where they land.
const ANYWHERE_ALIGNMENT: usize = 4096;

/// What a host asks for on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostParams {
    /// Require header digests.
    pub header_digest: bool,
    /// Require data digests.
    pub data_digest: bool,
    /// Alignment wanted of received data (HPDA): dwords, zero-based, at most 31.
    pub hpda_z: u8,
    /// R2Ts of one command that may be outstanding: at least 1.
    pub max_r2t: u16,
    /// Commands in flight: 1 to 4096.
    pub depth: u16,
    /// In-capsule data in bytes: 8192 on an admin queue, what IOCCSZ leaves beyond the 64 bytes of the command on an I/O queue.
    /// Fabrics commands always use up to 8192.
    pub in_capsule: u32,
}

impl Default for HostParams {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            hpda_z: 0,
            max_r2t: 1,
            depth: 128,
            in_capsule: ADMIN_IN_CAPSULE,
        }
    }
}

impl HostParams {
    fn check(&self) -> Result<(), ParameterError> {
        if self.hpda_z > PDA_MAX_Z {
            return Err(ParameterError::Alignment(self.hpda_z));
        }
        if self.max_r2t == 0 {
            return Err(ParameterError::MaxR2t);
        }
        let max = Slots::<Flight>::MAX_DEPTH;
        if !(1..=max).contains(&self.depth) {
            return Err(ParameterError::Depth {
                depth: self.depth,
                max,
            });
        }
        Ok(())
    }

    const fn digests(&self) -> u8 {
        (if self.header_digest { dgst::HEADER } else { 0 }) | (if self.data_digest { dgst::DATA } else { 0 })
    }
}

/// What the controller sent, or became of a command.
#[derive(Debug)]
pub enum HostEvent {
    /// The connection is initialised: commands may be submitted.
    Ready,
    /// A command was answered.
    Completed {
        /// The id that [`HostConnection::submit`] returned.
        id: CommandId,
        /// The answer. The status is [`Status::TRANSIENT_TRANSPORT_ERROR`] if the command succeeded but a digest of its data did not
        /// match. Where the data's success flag replaced the response, only the command id and success are known.
        cqe: Cqe,
        /// The command's memory.
        data: Data,
        /// Bytes that the controller sent into it: all of them if a read succeeded.
        received: u32,
    },
    /// The controller ended the connection. Nothing more comes; [`HostConnection::drain`] gives the commands back.
    PeerTerminated(Termination),
}

/// How a command's data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// Not at all, or in the capsule that was sent.
    None,
    /// With C2HData.
    FromController,
    /// With H2CData, when R2Ts ask for it.
    Solicited,
}

/// A command in flight.
#[derive(Debug)]
struct Flight {
    command: Command,
    data: Data,
    /// Bytes of data.
    expected: u32,
    /// Bytes that came or were asked for, up to which everything is accounted for.
    moved: u32,
    /// R2Ts whose data is not sent yet.
    outstanding: u16,
    transfer: Transfer,
    /// A data digest did not match.
    corrupt: bool,
}

/// The data of one R2T in the output.
#[derive(Debug, Clone, Copy)]
struct Answered {
    id: CommandId,
    /// Position of its end in all bytes ever queued.
    end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    AwaitsResponse,
    Ready,
}

/// The host end of one connection, which is one queue: see the [module](super) for how it is driven.
#[derive(Debug)]
pub struct HostConnection {
    inbound: Inbound,
    state: State,
    framing: Framing,
    params: HostParams,
    /// MAXH2CDATA.
    max_h2c_data: u32,
    slots: Slots<Flight>,
    output: GatherList,
    /// Bytes ever put into the output.
    queued: u64,
    /// Answers to R2Ts that may not be sent yet, oldest first.
    answered: VecDeque<Answered>,
    /// Commands that could not be sent, and why.
    refused: VecDeque<(CommandId, Status)>,
}

impl HostConnection {
    /// A connection that has sent nothing yet.
    ///
    /// # Errors
    /// [`ParameterError`] if a parameter is out of its range.
    pub fn new(params: HostParams) -> Result<Self, ParameterError> {
        params.check()?;
        Ok(Self {
            inbound: Inbound::new(),
            state: State::New,
            framing: Framing::initial(),
            params,
            max_h2c_data: MAXH2CDATA_MIN,
            slots: Slots::new(params.depth),
            output: GatherList::new(),
            queued: 0,
            answered: VecDeque::new(),
            refused: VecDeque::new(),
        })
    }

    /// Queues the request that initialises the connection. Does nothing the second time.
    pub fn start(&mut self) {
        if self.state == State::New && !self.failed() {
            let max_r2t_z = u32::from(self.params.max_r2t) - 1;
            let request = IcReq::new(self.params.hpda_z, self.params.digests(), max_r2t_z);
            self.output.push_bytes(request.as_bytes());
            self.queued += u64::from(request.header.plen.get());
            self.state = State::AwaitsResponse;
        }
    }

    /// Whether commands can be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready && !self.failed()
    }

    /// Whether the connection is over, by an error here or by the peer's terminate request: send what is queued, then close.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inbound.phase == Phase::Closed
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

    /// What is to be sent.
    pub fn output(&mut self) -> &mut GatherList {
        &mut self.output
    }

    /// What is to be sent, in exchange for an empty list to append to.
    pub fn take_output(&mut self, spare: GatherList) -> GatherList {
        std::mem::replace(&mut self.output, spare)
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

    /// Puts a command into the output: with its data in the capsule if it sends data that fits there, else with a transport SGL.
    /// Its command id and data pointer are set here. [`Data::Anywhere`] gets memory of its own.
    ///
    /// A command whose memory does not go with the direction of its opcode is not sent:
    /// [`poll_refused`](Self::poll_refused) completes it. On a connection that is not ready the command is only taken into account:
    /// [`drain`](Self::drain) gives it back.
    pub fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let (data, transfer, len) = match self.plan(&command, data) {
            Ok(plan) => plan,
            Err((data, status)) => {
                let id = self.occupy(slot, command, data, 0, Transfer::None);
                self.refused.push_back((id, status));
                return id;
            }
        };
        if !self.is_ready() {
            return self.occupy(slot, command, data, len, transfer);
        }
        let id = self.slots.id_of(&slot);
        let in_capsule = transfer == Transfer::None && len > 0;
        let sgl = if in_capsule {
            Sgl::in_capsule(0, len)
        } else {
            Sgl::transport(len)
        };
        let header = if in_capsule {
            self.framing
                .carrying(PduType::CAPSULE_CMD, CAPSULE_HEADER, len, 0)
        } else {
            self.framing.plain(PduType::CAPSULE_CMD, CAPSULE_HEADER)
        };
        let mut unit = CapsuleCmd {
            header,
            sqe: Sqe {
                cid: id.0.into(),
                ..command.0
            },
        };
        unit.sqe.set_sgl(sgl);
        if in_capsule {
            self.framing
                .push_header_before_data(&mut self.output, unit.as_bytes(), header.pdo);
            // In bounds: `len` is the data's own length.
            let pushed = self.framing.push_data(&mut self.output, &data, 0, data.len());
            debug_assert!(pushed.is_ok(), "memory has the length that it says");
        } else {
            self.framing.push_header(&mut self.output, unit.as_bytes());
        }
        self.queued += u64::from(header.plen.get());
        self.occupy(slot, command, data, len, transfer)
    }

    #[inline]
    fn occupy(
        &mut self,
        slot: Slot,
        command: Command,
        data: Data,
        expected: u32,
        transfer: Transfer,
    ) -> CommandId {
        let flight = Flight {
            command,
            data,
            expected,
            moved: 0,
            outstanding: 0,
            transfer,
            corrupt: false,
        };
        self.slots.occupy(slot, flight)
    }

    /// How a command's data is to move, and how much there is.
    #[inline]
    fn plan(&self, command: &Command, data: Data) -> Result<(Data, Transfer, u32), (Data, Status)> {
        let data = match data {
            Data::Anywhere { len } if command.direction() == DataDirection::ControllerToHost => {
                match Region::allocate(len, ANYWHERE_ALIGNMENT) {
                    Ok(region) => Data::whole(region),
                    Err(_) => return Err((data, Status::HOST_PATH_ERROR)),
                }
            }
            Data::Anywhere { .. } => return Err((data, Status::INVALID_FIELD)),
            data => data,
        };
        let len = match u32::try_from(data.len()) {
            Ok(len) if len <= MAX_TRANSFER => len,
            _ => return Err((data, Status::SGL_DATA_LENGTH_INVALID)),
        };
        if len == 0 {
            return Ok((data, Transfer::None, 0));
        }
        let transfer = match command.direction() {
            DataDirection::ControllerToHost => Transfer::FromController,
            DataDirection::HostToController => {
                let fabrics = command.0.opcode == FabricsOpcode::FABRICS;
                let limit = if fabrics {
                    ADMIN_IN_CAPSULE
                } else {
                    self.params.in_capsule
                };
                if len <= limit {
                    Transfer::None
                } else {
                    Transfer::Solicited
                }
            }
            DataDirection::None | DataDirection::Bidirectional => return Err((data, Status::INVALID_FIELD)),
        };
        Ok((data, transfer, len))
    }

    /// The next command that could not be sent, as a completion: see [`submit`](Self::submit). Ask after submitting.
    pub fn poll_refused(&mut self) -> Option<HostEvent> {
        while let Some((id, status)) = self.refused.pop_front() {
            if let Ok(flight) = self.slots.take(id) {
                let cqe = Cqe::new(id.0).with_status(status);
                return Some(HostEvent::Completed {
                    id,
                    cqe,
                    data: flight.data,
                    received: 0,
                });
            }
        }
        None
    }

    /// Ends the connection at this end and gives back every command that has no completion. Nothing may be landing any more.
    pub fn drain(&mut self) -> Vec<Undelivered> {
        self.inbound.phase = Phase::Closed;
        self.refused.clear();
        self.answered.clear();
        let drained = self.slots.drain();
        drained
            .into_iter()
            .map(|(id, Flight { command, data, .. })| Undelivered { id, command, data })
            .collect()
    }

    // ---- receiving ----

    /// Consumes received bytes from the front of `input` up to the next event, or all of them. Call it again while it returns
    /// events. After the connection has failed, bytes are discarded.
    ///
    /// # Errors
    /// [`TransportError`] if the controller broke the protocol, once: the terminate request is queued, and the connection has
    /// failed.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<HostEvent>, TransportError> {
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
                    if let Ok(flight) = self.slots.get(CommandId(self.inbound.target)) {
                        let placed = self.inbound.place(&flight.data, bytes, self.framing.data_digest);
                        let cid = self.inbound.target;
                        placed.map_err(|source| self.fail(TransportError::Memory { cid, source }, &[]))?;
                    }
                    let event = self.payload_counted(bytes.len());
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
        let flight = self.slots.get(CommandId(self.inbound.target)).ok()?;
        self.inbound.landing(&flight.data, minimum)
    }

    /// Takes note that the next `len` bytes of the stream were received where [`landing`](Self::landing) said.
    ///
    /// # Errors
    /// [`TransportError`] if the memory cannot be read back for its digest.
    pub fn landed(&mut self, len: usize) -> Result<Option<HostEvent>, TransportError> {
        if self.inbound.phase != Phase::Payload {
            return Ok(None);
        }
        let cid = self.inbound.target;
        if let Ok(flight) = self.slots.get(CommandId(cid)) {
            let placed = self.inbound.placed(&flight.data, len, self.framing.data_digest);
            placed.map_err(|source| self.fail(TransportError::Memory { cid, source }, &[]))?;
        }
        Ok(self.payload_counted(len))
    }

    #[cold]
    fn gathered_header(&mut self, input: &mut &[u8]) -> Result<Option<Option<HostEvent>>, TransportError> {
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
            PduType::H2C_TERM_REQ,
            error.fatal_error(),
            offender,
        );
        self.inbound.phase = Phase::Closed;
        error
    }

    /// A whole header, with its digest if there is one.
    #[inline]
    fn header(&mut self, bytes: &[u8]) -> Result<Option<HostEvent>, TransportError> {
        match PduType(bytes.first().copied().unwrap_or_default()) {
            PduType::C2H_DATA => {
                self.framing.check_header(bytes)?;
                self.data(view(bytes)?)?;
                Ok(None)
            }
            PduType::CAPSULE_RESP => {
                self.framing.check_header(bytes)?;
                self.response(view(bytes)?).map(Some)
            }
            PduType::R2T => {
                self.framing.check_header(bytes)?;
                self.ready_to_transfer(view(bytes)?)?;
                Ok(None)
            }
            PduType::IC_RESP => self.initialized(view(bytes)?).map(Some),
            // `judge` let nothing else through.
            _ => {
                self.inbound.phase = Phase::Closed;
                Ok(Termination::parse(End::Controller, bytes).map(HostEvent::PeerTerminated))
            }
        }
    }

    fn initialized(&mut self, response: &IcResp) -> Result<HostEvent, TransportError> {
        if response.pfv.get() != PFV_1_0 {
            return Err(TransportError::Version(response.pfv.get()));
        }
        if response.cpda_z > PDA_MAX_Z {
            return Err(TransportError::PeerAlignment(response.cpda_z));
        }
        let (wanted, granted) = (self.params.digests(), response.dgst);
        if granted != wanted {
            return Err(TransportError::DigestNegotiation { wanted, granted });
        }
        let limit = response.maxh2cdata.get();
        if limit < MAXH2CDATA_MIN || !limit.is_multiple_of(4) {
            return Err(TransportError::PeerMaxH2cData(limit));
        }
        self.max_h2c_data = limit.min(MAX_H2C_DATA);
        self.framing = Framing::negotiated(granted, self.params.hpda_z, response.cpda_z);
        self.state = State::Ready;
        Ok(HostEvent::Ready)
    }

    #[inline]
    fn data(&mut self, unit: &C2HData) -> Result<(), TransportError> {
        let pdu = PduType::C2H_DATA;
        let payload = self.framing.with_data(&unit.header)?;
        let id = CommandId(unit.cccid.get());
        let (offset, len) = (unit.datao.get(), unit.datal.get());
        let Ok(flight) = self.slots.get_mut(id) else {
            return Err(TransportError::UnknownCommand { pdu, id });
        };
        if flight.transfer != Transfer::FromController {
            return Err(TransportError::WrongDirection { pdu, id });
        }
        if payload.len != len {
            let around = u64::from(unit.header.plen.get()) - u64::from(payload.len);
            return Err(TransportError::PduLength {
                pdu,
                found: unit.header.plen.get(),
                expected: around + u64::from(len),
            });
        }
        let (expected, remaining) = (flight.moved, flight.expected - flight.moved);
        if offset != expected || len > remaining {
            return Err(TransportError::DataRange {
                pdu,
                cid: id.0,
                offset,
                len,
                expected,
                remaining,
            });
        }
        let (last, success) = (unit.header.has(flags::LAST_PDU), unit.header.has(flags::SUCCESS));
        if success && !last {
            return Err(TransportError::SuccessWithoutLast { cid: id.0 });
        }
        flight.moved = offset + len;
        if success && flight.moved != flight.expected {
            let (expected, moved) = (flight.expected, flight.moved);
            return Err(TransportError::ShortTransfer { id, expected, moved });
        }
        self.inbound.begin(payload, id.0, offset, unit.header.flags);
        Ok(())
    }

    #[inline]
    fn payload_counted(&mut self, len: usize) -> Option<HostEvent> {
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
    fn data_ended(&mut self, verdict: Verdict) -> Option<HostEvent> {
        self.inbound.phase = Phase::Header;
        let id = CommandId(self.inbound.target);
        if verdict == Verdict::Mismatch {
            self.slots.get_mut(id).ok()?.corrupt = true;
        }
        if self.inbound.flags & flags::SUCCESS == 0 {
            return None;
        }
        let flight = self.slots.take(id).ok()?;
        Some(Self::completed(id, Cqe::new(id.0), flight))
    }

    #[inline]
    fn completed(id: CommandId, cqe: Cqe, flight: Flight) -> HostEvent {
        let received = if flight.transfer == Transfer::FromController {
            flight.moved
        } else {
            0
        };
        let cqe = if flight.corrupt && cqe.status().is_success() {
            cqe.with_status(Status::TRANSIENT_TRANSPORT_ERROR)
        } else {
            cqe
        };
        HostEvent::Completed {
            id,
            cqe,
            data: flight.data,
            received,
        }
    }

    #[inline]
    fn response(&mut self, unit: &CapsuleResp) -> Result<HostEvent, TransportError> {
        self.framing.without_data(&unit.header)?;
        let id = CommandId(unit.cqe.cid.get());
        let Ok(flight) = self.slots.get(id) else {
            return Err(TransportError::UnknownCommand {
                pdu: PduType::CAPSULE_RESP,
                id,
            });
        };
        let (expected, moved) = (flight.expected, flight.moved);
        if moved != expected && flight.transfer != Transfer::None && unit.cqe.status().is_success() {
            // Stale memory would pass for data, or data that was never fetched for written.
            return Err(TransportError::ShortTransfer { id, expected, moved });
        }
        match self.slots.take(id) {
            Ok(flight) => Ok(Self::completed(id, unit.cqe, flight)),
            Err(_) => Err(TransportError::UnknownCommand {
                pdu: PduType::CAPSULE_RESP,
                id,
            }),
        }
    }

    fn ready_to_transfer(&mut self, unit: &R2t) -> Result<(), TransportError> {
        let pdu = PduType::R2T;
        self.framing.without_data(&unit.header)?;
        let id = CommandId(unit.cccid.get());
        let (offset, len) = (unit.r2to.get(), unit.r2tl.get());
        self.forget_sent();
        let limit = self.params.max_r2t;
        let Ok(flight) = self.slots.get_mut(id) else {
            return Err(TransportError::UnknownCommand { pdu, id });
        };
        if flight.transfer != Transfer::Solicited {
            return Err(TransportError::WrongDirection { pdu, id });
        }
        let (expected, remaining) = (flight.moved, flight.expected - flight.moved);
        if offset != expected || len == 0 || len > remaining {
            return Err(TransportError::DataRange {
                pdu,
                cid: id.0,
                offset,
                len,
                expected,
                remaining,
            });
        }
        if flight.outstanding >= limit {
            return Err(TransportError::R2tLimit { id, limit });
        }
        flight.outstanding += 1;
        flight.moved = offset + len;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let chunk = (end - at).min(self.max_h2c_data);
            let last = if at + chunk == end { flags::LAST_PDU } else { 0 };
            let header = self
                .framing
                .carrying(PduType::H2C_DATA, SHORT_HEADER, chunk, last);
            let data = H2CData {
                header,
                cccid: unit.cccid,
                ttag: unit.ttag,
                datao: at.into(),
                datal: chunk.into(),
                reserved20: [0; 4],
            };
            self.framing
                .push_header_before_data(&mut self.output, data.as_bytes(), header.pdo);
            let (from, bytes) = (usize::try_from(at), usize::try_from(chunk));
            let (from, bytes) = (from.unwrap_or(usize::MAX), bytes.unwrap_or(usize::MAX));
            self.framing
                .push_data(&mut self.output, &flight.data, from, bytes)
                .map_err(|source| TransportError::Memory { cid: id.0, source })?;
            self.queued += u64::from(header.plen.get());
            at += chunk;
        }
        self.answered.push_back(Answered { id, end: self.queued });
        Ok(())
    }

    /// Settles the answers to R2Ts that have left the output since the last time. Only when an R2T's data is sent may
    /// the controller have replaced it by another.
    fn forget_sent(&mut self) {
        let waiting = u64::try_from(self.output.remaining()).unwrap_or(u64::MAX);
        let sent = self.queued.saturating_sub(waiting);
        while let Some(answered) = self.answered.front().copied()
            && answered.end <= sent
        {
            self.answered.pop_front();
            if let Ok(flight) = self.slots.get_mut(answered.id) {
                flight.outstanding = flight.outstanding.saturating_sub(1);
            }
        }
    }
}

/// Judges a unit's first eight bytes by the connection's state, and tells how long its header is with its digest.
#[inline]
fn judge(state: State, framing: &Framing, header: &PduHeader) -> Result<usize, TransportError> {
    match (header.pdu_type, state) {
        (PduType::C2H_DATA | PduType::CAPSULE_RESP | PduType::R2T, State::Ready) => {
            framing.judge(header, SHORT_HEADER)
        }
        (PduType::IC_RESP, State::AwaitsResponse) => Framing::judge_initialize(header),
        (PduType::C2H_TERM_REQ, _) => Framing::judge_terminate(header),
        (other, State::Ready) => Err(Framing::unexpected(other, End::Host, "takes data and responses")),
        (other, State::New | State::AwaitsResponse) => Err(Framing::unexpected(
            other,
            End::Host,
            "waits for the connection to be initialised",
        )),
    }
}
