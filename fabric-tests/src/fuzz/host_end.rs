//! A [`HostConnection`] with commands in flight that is fed any bytes.

use std::collections::BTreeMap;

use homi_fabric::tcp::{HostConnection, HostEvent, HostParams};
use homi_queue::{Command, CommandId, Data, DataDirection, Region, Segment};
use homi_spec::Status;
use homi_spec::sgl::SglDescriptor;
use homi_spec::tcp::{CapsuleCmd, H2CData, IcReq, IcResp, PduType, dgst, flags};
use zerocopy::IntoBytes;

use super::Reached;
use super::choices::Choices;
use super::wire::{self, Layout};

const BLOCK: usize = 512;
/// Commands in flight.
pub(super) const DEPTH: u16 = 8;
/// Data that goes in capsules.
const IN_CAPSULE: u32 = 4096;
/// What the controller takes in one unit.
pub(super) const MAX_H2C: u32 = 4096;

/// How the connection is set up, by the bits of one byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup(pub(super) u8);

impl Setup {
    pub(super) const HEADER_DIGEST: u8 = 1;
    pub(super) const DATA_DIGEST: u8 = 2;
    pub(super) const INITIALISED: u8 = 4;
    /// Commands are submitted before the connection is ready.
    pub(super) const EARLY: u8 = 8;
    pub(super) const REPAIR: u8 = 32;
    pub(super) const LANDING: u8 = 64;

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    fn digests(self) -> u8 {
        (if self.has(Self::HEADER_DIGEST) {
            dgst::HEADER
        } else {
            0
        }) | (if self.has(Self::DATA_DIGEST) {
            dgst::DATA
        } else {
            0
        })
    }

    fn layout(self) -> Layout {
        Layout::new(self.has(Self::HEADER_DIGEST), self.has(Self::DATA_DIGEST), 0)
    }
}

/// A command that was submitted at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issued {
    /// How many were before it: what its data is filled by.
    number: usize,
    pub(super) direction: DataDirection,
    pub(super) len: usize,
    /// Bytes sent with H2CData so far.
    sent: usize,
    /// Its memory does not go with its opcode, so it is not sent.
    refused: bool,
}

impl Issued {
    fn byte(&self, at: usize) -> u8 {
        let [byte, ..] = (self.number.wrapping_mul(31).wrapping_add(at)).to_le_bytes();
        byte
    }
}

/// The end and what is known about it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) end: HostConnection,
    setup: Setup,
    /// The alignment that the controller asked for.
    layout: Layout,
    pub(super) live: BTreeMap<CommandId, Issued>,
    /// By command id; ids are not reused in the length of a run.
    issued: BTreeMap<u16, Issued>,
    kinds: Vec<u8>,
    submitted: usize,
    /// The most commands that are submitted in all.
    budget: usize,
    pub(super) reached: Reached,
}

impl Host {
    pub(super) fn new(setup: Setup, kinds: &[u8], budget: usize) -> Self {
        let params = HostParams {
            header_digest: setup.has(Setup::HEADER_DIGEST),
            data_digest: setup.has(Setup::DATA_DIGEST),
            depth: DEPTH,
            in_capsule: IN_CAPSULE,
            max_r2t: 2,
            ..HostParams::default()
        };
        let mut host = Self {
            end: HostConnection::new(params).expect("the parameters are in range"),
            setup,
            layout: setup.layout(),
            live: BTreeMap::new(),
            issued: BTreeMap::new(),
            kinds: kinds.to_vec(),
            submitted: 0,
            budget,
            reached: Reached::default(),
        };
        host.end.start();
        if setup.has(Setup::EARLY) {
            host.submit_all();
        }
        if setup.has(Setup::INITIALISED) {
            host.drain();
            let response = IcResp::new(0, setup.digests(), MAX_H2C);
            host.feed(response.as_bytes(), 128, false);
            assert_eq!(host.reached.ready, 1);
        }
        host
    }

    /// Submits commands until the queue is full or enough were.
    pub(super) fn submit_all(&mut self) {
        while !self.kinds.is_empty() && self.submitted < self.budget {
            let kind = self.kinds.get(self.submitted % self.kinds.len()).copied();
            if !self.submit(kind.unwrap_or(0)) {
                return;
            }
        }
    }

    /// Submits a command of one of nine kinds, if there is room.
    pub(super) fn submit(&mut self, kind: u8) -> bool {
        let Some(slot) = self.end.reserve() else {
            assert_eq!(self.live.len(), usize::from(DEPTH));
            return false;
        };
        let (command, len) = match kind % 9 {
            0 => (Command::read(1, 0, 1), BLOCK),
            1 | 6 => (Command::read(1, 0, 16), 16 * BLOCK),
            2 => (Command::write(1, 0, 1), BLOCK),
            3 => (Command::write(1, 0, 16), 16 * BLOCK),
            4 => (Command::flush(1), 0),
            5 => (Command::read(1, 0, 8), 8 * BLOCK),
            7 => (Command::compare(1, 0, 12), 12 * BLOCK),
            // Has no data, whatever memory comes with it.
            _ => (Command::verify(1, 0, 1), BLOCK),
        };
        let number = self.submitted;
        self.submitted += 1;
        let refused = kind % 9 == 8;
        let issued = Issued {
            number,
            direction: command.direction(),
            len,
            sent: 0,
            refused,
        };
        let data = match kind % 9 {
            4 => Data::None,
            5 => Data::Anywhere { len },
            6 | 7 => scattered(&issued),
            _ => Data::whole(Region::from_vec((0..len).map(|at| issued.byte(at)).collect())),
        };
        let id = self.end.submit(slot, command, data);
        assert!(self.live.insert(id, issued).is_none(), "an id names one command");
        self.issued.insert(id.0, issued);
        while let Some(event) = self.end.poll_refused() {
            self.event(event);
        }
        assert!(!refused || !self.live.contains_key(&id));
        true
    }

    /// Bytes from the controller, in pieces, through memory where the end offers it if `landing`.
    pub(super) fn feed(&mut self, bytes: &[u8], piece: usize, landing: bool) {
        for part in bytes.chunks(piece.max(1)) {
            let mut input = part;
            loop {
                let event = match self.end.landing(1) {
                    Some(segment) if landing && !input.is_empty() => {
                        let len = segment.len().min(input.len());
                        let (bytes, rest) = input.split_at(len);
                        segment
                            .region()
                            .write(segment.start(), bytes)
                            .expect("within the segment");
                        drop(segment);
                        input = rest;
                        self.end.landed(len)
                    }
                    _ => self.end.advance(&mut input),
                };
                match event {
                    Ok(Some(event)) => self.event(event),
                    Ok(None) if input.is_empty() => break,
                    Ok(None) => {}
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        assert!(self.end.failed());
                        self.reached.errors += 1;
                    }
                }
                assert!(
                    self.reached.errors + self.reached.terminations <= 1,
                    "the end comes once"
                );
            }
            assert_eq!(self.end.in_flight(), self.live.len());
        }
    }

    fn event(&mut self, event: HostEvent) {
        match event {
            HostEvent::Ready => {
                self.reached.ready += 1;
                assert_eq!(self.reached.ready, 1);
                self.submit_all();
            }
            HostEvent::Completed {
                id,
                cqe,
                data,
                received,
            } => {
                let issued = self.live.remove(&id).expect("a command completes once");
                assert_eq!(data.len(), issued.len, "its memory comes back");
                let received = usize::try_from(received).unwrap_or(usize::MAX);
                assert!(received <= issued.len);
                if cqe.status().is_success() {
                    let read = issued.direction == DataDirection::ControllerToHost;
                    assert!(!issued.refused, "what is not sent does not succeed");
                    assert_eq!(
                        received,
                        if read { issued.len } else { 0 },
                        "success means all of the data"
                    );
                    self.reached.transfers += 1;
                } else {
                    self.reached.failures += 1;
                }
                self.reached.completions += 1;
                if self.end.is_ready() {
                    self.submit_all();
                }
            }
            HostEvent::PeerTerminated(why) => {
                assert!(!why.to_string().is_empty());
                assert!(self.end.failed());
                self.reached.terminations += 1;
            }
        }
    }

    /// Takes what the end has to send, in valid units: commands that were submitted and data that is theirs.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        let output = self.end.output();
        let bytes = output.to_vec();
        output.clear();
        let layout = Layout {
            alignment: 4,
            ..self.layout
        };
        for unit in wire::split(&bytes, Some(layout)) {
            match unit.kind() {
                PduType::IC_REQ => {
                    let request: IcReq = unit.read();
                    assert_eq!(request.dgst, self.setup.digests());
                    assert_eq!(request.reserved16, [0; 112]);
                }
                PduType::H2C_TERM_REQ => assert_eq!(self.reached.errors, 1, "it tells of an error"),
                PduType::CAPSULE_CMD => {
                    let sqe = unit.read::<CapsuleCmd>().sqe;
                    let issued = self
                        .issued
                        .get(&sqe.cid.get())
                        .expect("a command that was submitted");
                    self.reached.commands += 1;
                    assert!(!issued.refused);
                    match sqe.sgl().parse() {
                        SglDescriptor::InCapsule { offset: 0, length } => {
                            assert_eq!(usize::try_from(length), Ok(issued.len));
                            assert_eq!(issued.direction, DataDirection::HostToController);
                            assert_eq!(unit.payload.len(), issued.len);
                            assert!(
                                unit.payload
                                    .iter()
                                    .zip(0..)
                                    .all(|(byte, at)| *byte == issued.byte(at))
                            );
                        }
                        SglDescriptor::Transport { length } => {
                            assert_eq!(usize::try_from(length), Ok(issued.len));
                            assert!(unit.payload.is_empty());
                        }
                        other => unreachable!("a host over TCP does not send {other:?}"),
                    }
                }
                PduType::H2C_DATA => {
                    let data: H2CData = unit.read();
                    let issued = self
                        .issued
                        .get_mut(&data.cccid.get())
                        .expect("a command that was submitted");
                    let at = usize::try_from(data.datao.get()).unwrap_or(usize::MAX);
                    assert_eq!(issued.direction, DataDirection::HostToController);
                    assert_eq!(at, issued.sent, "data goes in order, once");
                    assert_eq!(usize::try_from(data.datal.get()), Ok(unit.payload.len()));
                    assert!(
                        unit.payload
                            .iter()
                            .zip(at..)
                            .all(|(byte, at)| *byte == issued.byte(at))
                    );
                    issued.sent += unit.payload.len();
                    assert!(issued.sent <= issued.len);
                    assert!(unit.has(flags::LAST_PDU) || issued.sent < issued.len);
                }
                other => unreachable!("a host does not send {other}"),
            }
        }
        bytes
    }

    /// Ends the connection here: every command that has no completion comes back.
    pub(super) fn finish(&mut self) {
        self.drain();
        for undelivered in self.end.drain() {
            let issued = self
                .live
                .remove(&undelivered.id)
                .expect("a command comes back once");
            assert_eq!(undelivered.data.len(), issued.len);
        }
        assert!(self.live.is_empty(), "every command has an outcome");
        assert!(self.end.drain().is_empty());
    }
}

/// Memory in three pieces.
fn scattered(issued: &Issued) -> Data {
    let mut segments: Vec<Segment> = Vec::new();
    let third = issued.len / 3;
    for (start, end) in [(0, third), (third, 2 * third), (2 * third, issued.len)] {
        let region = Region::from_vec((start..end).map(|at| issued.byte(at)).collect());
        let len = region.len();
        segments.push(region.segment(0..len).expect("the whole region"));
    }
    Data::List(segments)
}

/// See [`pdus_to_host`](super::pdus_to_host).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let setup = Setup(choices.byte());
    let piece = choices.byte();
    let count = choices.below(16);
    let kinds = choices.take(count);
    let mut stream = choices.rest().to_vec();
    if setup.has(Setup::REPAIR) {
        wire::repair(&mut stream);
    }
    let mut host = Host::new(setup, kinds, 64);
    let piece = if piece == 0 {
        stream.len()
    } else {
        usize::from(piece)
    };
    for part in stream.chunks(4096) {
        host.feed(part, piece, setup.has(Setup::LANDING));
        host.drain();
    }
    host.finish();
    host.reached
}

/// Whether a status may complete a command that moved all of its data.
pub(super) fn completion(id: CommandId, status: Status) -> homi_spec::Cqe {
    homi_spec::Cqe::new(id.0).with_status(status)
}
