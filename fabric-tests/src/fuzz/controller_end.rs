//! A [`ControllerConnection`] that is fed any bytes, with a session in front of it that does what commands ask for, or anything else.

use std::collections::{BTreeMap, VecDeque};

use homi_fabric::tcp::{
    Cancel, CommandKey, ControllerConnection, ControllerEvent, ControllerParams, RespondError,
};
use homi_queue::{Data, Region};
use homi_spec::command::{FabricsOpcode, TransferDirection};
use homi_spec::tcp::{C2HData, CapsuleResp, IcReq, IcResp, MAXH2CDATA_MIN, PduType, R2t, dgst, flags};
use homi_spec::{Cqe, Sqe, Status};
use zerocopy::IntoBytes;

use super::Reached;
use super::choices::{Choices, Dice};
use super::wire::{self, Layout};

/// In-capsule data of I/O queues.
pub(super) const IN_CAPSULE: u32 = 4096;
/// The most that the session takes or gives at once: it bounds what a host says before it allocates.
const MOST: usize = 16 << 10;
const DEPTH: u16 = 8;
/// What memory that goes to the host is filled with.
const FILLING: u8 = 0xa5;

/// How the connection is set up, by the bits of one byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup(pub(super) u8);

impl Setup {
    pub(super) const HEADER_DIGEST: u8 = 1;
    pub(super) const DATA_DIGEST: u8 = 2;
    pub(super) const INITIALISED: u8 = 4;
    pub(super) const CONNECTED: u8 = 8;
    pub(super) const ADMIN: u8 = 16;
    pub(super) const REPAIR: u8 = 32;
    pub(super) const LANDING: u8 = 64;
    pub(super) const DICE: u8 = 128;

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
}

#[derive(Debug)]
struct Live {
    sqe: Sqe,
    /// Bytes in the capsule.
    in_capsule: usize,
    /// Bytes of the data that was accepted and is to come.
    coming: Option<usize>,
}

/// What the end must send next.
#[derive(Debug, PartialEq, Eq)]
enum Promise {
    Initialised,
    Ask { cid: u16, len: usize },
    Data { cid: u16, len: usize, success: bool },
    Answer(Cqe),
}

/// The end and what is known about it.
#[derive(Debug)]
pub(super) struct Controller {
    end: ControllerConnection,
    live: BTreeMap<CommandKey, Live>,
    promised: VecDeque<Promise>,
    /// Decides instead of the commands.
    dice: Option<Dice>,
    depth: usize,
    admin: bool,
    pub(super) reached: Reached,
}

impl Controller {
    pub(super) fn new(setup: Setup, seed: u64) -> Self {
        let params = ControllerParams {
            max_in_capsule_io: IN_CAPSULE,
            max_h2c_data: MAXH2CDATA_MIN,
            header_digest: setup.has(Setup::HEADER_DIGEST),
            data_digest: setup.has(Setup::DATA_DIGEST),
            max_depth: DEPTH,
            ..ControllerParams::default()
        };
        let end = ControllerConnection::new(params).expect("the parameters are in range");
        let mut controller = Self {
            end,
            live: BTreeMap::new(),
            promised: VecDeque::new(),
            dice: setup.has(Setup::DICE).then(|| Dice::new(seed)),
            depth: 1,
            admin: true,
            reached: Reached::default(),
        };
        if setup.has(Setup::INITIALISED) {
            let request = IcReq::new(0, setup.digests(), 0);
            controller.feed(request.as_bytes(), 128, false);
            assert_eq!(controller.reached.ready, 1);
            controller.drain();
        }
        if setup.has(Setup::CONNECTED) {
            controller.admin = setup.has(Setup::ADMIN);
            controller.end.set_queue(DEPTH, !controller.admin);
            controller.depth = usize::from(DEPTH);
        }
        controller
    }

    /// Bytes from the host, in pieces, through memory where the end offers it if `landing`.
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
            self.change_mind();
            assert_eq!(usize::from(self.end.in_flight()), self.live.len());
        }
    }

    fn event(&mut self, event: ControllerEvent) {
        assert_eq!(
            self.reached.errors + self.reached.terminations,
            0,
            "nothing comes after the end"
        );
        match event {
            ControllerEvent::Ready => {
                self.reached.ready += 1;
                assert_eq!(self.reached.ready, 1);
                self.promised.push_back(Promise::Initialised);
            }
            ControllerEvent::Command {
                key,
                sqe,
                in_capsule,
                fault,
            } => {
                let fabrics = sqe.opcode == FabricsOpcode::FABRICS;
                let limit = if self.admin || fabrics { 8192 } else { IN_CAPSULE };
                assert!(in_capsule <= limit, "{in_capsule} bytes in a capsule");
                let doubled = self.live.values().any(|live| live.sqe.cid == sqe.cid);
                assert_eq!(doubled, fault == Some(Status::CID_CONFLICT));
                let live = Live {
                    sqe,
                    in_capsule: usize::try_from(in_capsule).unwrap_or(usize::MAX),
                    coming: None,
                };
                let known = self.live.insert(key, live);
                assert!(known.is_none(), "a key names one command");
                assert!(
                    self.live.len() <= self.depth,
                    "no more commands than the queue has room for"
                );
                self.reached.commands += 1;
                match fault {
                    Some(status) => self.respond(key, status),
                    None => self.execute(key),
                }
            }
            ControllerEvent::DataReceived { key } => {
                let coming = self.live.get_mut(&key).and_then(|live| live.coming.take());
                let data = self.end.take_data(key);
                assert_eq!(
                    coming,
                    Some(data.len()),
                    "data ends once, and where it was accepted"
                );
                self.reached.transfers += 1;
                self.respond(key, Status::SUCCESS);
            }
            ControllerEvent::DataFailed { key, status } => {
                let coming = self.live.get_mut(&key).and_then(|live| live.coming.take());
                assert!(coming.is_some(), "data fails once, and where it was accepted");
                assert!(!status.is_success());
                self.reached.failures += 1;
                self.respond(key, status);
            }
            ControllerEvent::PeerTerminated(why) => {
                assert!(!why.to_string().is_empty());
                assert!(self.end.failed());
                self.reached.terminations += 1;
            }
        }
    }

    /// Does what a new command asks for, or something else.
    fn execute(&mut self, key: CommandKey) {
        let Some(live) = self.live.get(&key) else { return };
        let (sqe, in_capsule) = (live.sqe, live.in_capsule);
        let described = usize::try_from(sqe.sgl().parse().data_length()).unwrap_or(usize::MAX);
        let direction = match sqe.fabrics_type() {
            Some(kind) => TransferDirection::of(kind.raw()),
            None => TransferDirection::of(sqe.opcode),
        };
        if let Some(dice) = &mut self.dice {
            let wanted = dice.below(2 * MOST);
            match dice.below(8) {
                0 => self.respond(key, Status::SUCCESS),
                1 => self.give(key, wanted),
                2 => self.accept(key, wanted),
                3 | 4 => {}
                _ => self.accept(key, described.min(MOST)),
            }
            return;
        }
        match direction {
            TransferDirection::HostToController if in_capsule > 0 => self.accept(key, in_capsule),
            TransferDirection::HostToController if described > 0 => self.accept(key, described.min(MOST)),
            TransferDirection::ControllerToHost if described > 0 => self.give(key, described.min(MOST)),
            _ => self.respond(key, Status::SUCCESS),
        }
    }

    /// Now and then, something happens to a command that nobody sent anything for.
    fn change_mind(&mut self) {
        let Some(dice) = &mut self.dice else { return };
        let (which, what) = (dice.below(64), dice.below(8));
        let Some(key) = self.live.keys().nth(which).copied() else {
            return;
        };
        match what {
            0 => self.respond(key, Status::INTERNAL_ERROR),
            1 => self.give(key, 512),
            2 => match self.end.cancel(key) {
                Ok(Cancel::Later) => assert!(self.live.get(&key).is_some_and(|live| live.coming.is_some())),
                Ok(Cancel::Now) => assert!(self.live.get(&key).is_some_and(|live| live.coming.is_none())),
                Err(error) => assert!(!self.live.contains_key(&key), "{error}"),
            },
            3 => self.accept(key, 4096),
            _ => {}
        }
    }

    fn accept(&mut self, key: CommandKey, len: usize) {
        if self.end.failed() {
            return;
        }
        let region = Region::from_vec(vec![0; len]);
        let accepted = self.end.accept(key, Data::whole(region));
        let Some(live) = self.live.get_mut(&key) else {
            assert!(accepted.is_err());
            return;
        };
        match accepted {
            Ok(()) => {
                assert!(live.coming.is_none(), "data is accepted once");
                live.coming = Some(len);
                if live.in_capsule == 0 {
                    let cid = live.sqe.cid.get();
                    self.promised.push_back(Promise::Ask { cid, len });
                }
            }
            Err(error) => {
                let status = error.status();
                assert!(!status.is_success());
                if self.dice.is_none() {
                    self.respond(key, status);
                }
            }
        }
    }

    fn give(&mut self, key: CommandKey, len: usize) {
        if self.end.failed() {
            return;
        }
        let region = Region::from_vec(vec![FILLING; len.max(1)]);
        let success = len.is_multiple_of(1024);
        let cqe = Cqe::default();
        let given = self
            .end
            .respond_with_data(key, Data::whole(region), len, cqe, success);
        self.answered(key, given, |cid| {
            if len > 0 {
                let data = Promise::Data { cid, len, success };
                let answer = (!success).then(|| Promise::Answer(Cqe::new(cid)));
                [Some(data), answer]
            } else {
                [Some(Promise::Answer(Cqe::new(cid))), None]
            }
        });
    }

    fn respond(&mut self, key: CommandKey, status: Status) {
        if self.end.failed() {
            return;
        }
        let responded = self.end.respond(key, Cqe::default().with_status(status));
        self.answered(key, responded, |cid| {
            [Some(Promise::Answer(Cqe::new(cid).with_status(status))), None]
        });
    }

    fn answered(
        &mut self,
        key: CommandKey,
        result: Result<(), RespondError>,
        promises: impl FnOnce(u16) -> [Option<Promise>; 2],
    ) {
        let live = self.live.get(&key);
        match result {
            Ok(()) => {
                let live = live.expect("only a command in flight can be answered");
                assert!(live.coming.is_none(), "no answer while data is coming");
                self.promised
                    .extend(promises(live.sqe.cid.get()).into_iter().flatten());
                self.live.remove(&key);
                self.reached.completions += 1;
            }
            Err(RespondError::DataComing) => {
                assert!(live.is_some_and(|live| live.coming.is_some()));
            }
            Err(error) => assert!(live.is_none(), "{error}"),
        }
    }

    /// Takes what the end has to send: exactly what was promised, in valid units.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        let output = self.end.output();
        let bytes = output.to_vec();
        output.clear();
        // The alignment that the host asked for is its own business; every unit is aligned to a dword.
        let layout = Layout::new(self.end.header_digest(), self.end.data_digest(), 0);
        for unit in wire::split(&bytes, Some(layout)) {
            if unit.kind() == PduType::C2H_TERM_REQ {
                assert_eq!(self.reached.errors, 1, "a terminate request tells of an error");
                assert!(self.promised.is_empty(), "it is the last unit");
                continue;
            }
            let promise = self.promised.pop_front().expect("nothing is sent unasked");
            let sent = match unit.kind() {
                PduType::IC_RESP => {
                    let response: IcResp = unit.read();
                    assert_eq!(response.reserved16, [0; 112]);
                    assert!(response.maxh2cdata.get() >= MAXH2CDATA_MIN);
                    Promise::Initialised
                }
                PduType::R2T => {
                    let ask: R2t = unit.read();
                    assert_eq!((ask.r2to.get(), ask.reserved20), (0, [0; 4]));
                    Promise::Ask {
                        cid: ask.cccid.get(),
                        len: usize::try_from(ask.r2tl.get()).unwrap_or(0),
                    }
                }
                PduType::C2H_DATA => {
                    let data: C2HData = unit.read();
                    assert_eq!(
                        (data.datao.get(), data.reserved10, data.reserved20),
                        (0, [0; 2], [0; 4])
                    );
                    assert!(unit.has(flags::LAST_PDU));
                    let len = usize::try_from(data.datal.get()).unwrap_or(0);
                    assert_eq!(unit.payload.len(), len);
                    assert!(unit.payload.iter().all(|byte| *byte == FILLING));
                    Promise::Data {
                        cid: data.cccid.get(),
                        len,
                        success: unit.has(flags::SUCCESS),
                    }
                }
                PduType::CAPSULE_RESP => Promise::Answer(unit.read::<CapsuleResp>().cqe),
                other => unreachable!("a controller does not send {other}"),
            };
            assert_eq!(sent, promise);
        }
        assert!(self.promised.is_empty(), "not sent: {:?}", self.promised);
        bytes
    }

    /// Ends whatever can be ended.
    fn finish(&mut self) {
        for key in self.live.keys().copied().collect::<Vec<_>>() {
            self.respond(key, Status::ABORT_REQUESTED);
        }
        assert!(self.end.failed() || self.live.values().all(|live| live.coming.is_some()));
        assert_eq!(usize::from(self.end.in_flight()), self.live.len());
        self.drain();
    }
}

/// See [`pdus_to_controller`](super::pdus_to_controller).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let setup = Setup(choices.byte());
    let (piece, seed) = (choices.byte(), choices.byte());
    let mut stream = choices.rest().to_vec();
    if setup.has(Setup::REPAIR) {
        wire::repair(&mut stream);
    }
    let mut controller = Controller::new(setup, seed.into());
    let piece = if piece == 0 {
        stream.len()
    } else {
        usize::from(piece)
    };
    // Whatever is promised must be sent before much more comes, as a socket would.
    for part in stream.chunks(4096) {
        controller.feed(part, piece, setup.has(Setup::LANDING));
        controller.drain();
    }
    controller.finish();
    controller.reached
}
