//! Both ends in every state against peers that are right for a while, then nearly right, or make noise: nothing panics,
//! output stays bounded, and each command ends once.

use crate::pair::drain_into;
use crate::wire::{DIGESTS, PLAIN, Wire, ic_req, ic_resp};
use homi_fabric::tcp::{
    CommandKey, ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent,
    HostParams,
};
use homi_queue::{Command, CommandId, Data, Region};
use homi_spec::sgl::Sgl;
use homi_spec::tcp::flags;
use homi_spec::{Cqe, Sqe, Status};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const DEPTH: u16 = 8;
const LIMIT: u32 = 4096;
const LEN: usize = 8192;

/// What is wrong with a unit.
#[derive(Debug, Clone)]
enum Wrong {
    Nothing,
    /// A byte of the header, under a digest that is right for it.
    Header(usize, u8),
    /// A byte anywhere.
    Anywhere(usize, u8),
    /// No digests, or digests where there should be none.
    Digests,
}

fn wrongs() -> impl Strategy<Value = Wrong> {
    prop_oneof![
        40 => Just(Wrong::Nothing),
        2 => (0_usize..72, 1..=255_u8).prop_map(|(at, value)| Wrong::Header(at, value)),
        1 => (0_usize..5000, 1..=255_u8).prop_map(|(at, value)| Wrong::Anywhere(at, value)),
        1 => Just(Wrong::Digests),
    ]
}

impl Wrong {
    /// A unit written by `write` with this wrong in it.
    fn make(&self, wire: Wire, write: impl FnOnce(Wire) -> Vec<u8>) -> Vec<u8> {
        match *self {
            Self::Nothing => write(wire),
            Self::Digests => write(if wire.header_digest { PLAIN } else { DIGESTS }),
            Self::Header(at, value) => wire.altered(write(wire), |unit| {
                let hlen = usize::from(unit[2]);
                unit[at % hlen] ^= value;
            }),
            Self::Anywhere(at, value) => {
                let mut unit = write(wire);
                let at = at % unit.len();
                unit[at] ^= value;
                unit
            }
        }
    }
}

/// One step of a peer and of the end's own user. Indexes pick among what is there.
#[derive(Debug, Clone)]
enum Step {
    /// The end's user answers or cancels (controller), or submits (host).
    Own(usize, u8),
    /// The peer sends a command (to a controller) or a response (to a host).
    Capsule(usize, u8),
    /// The peer sends data.
    Data(usize, usize, bool),
    /// The peer asks for data.
    Ask(usize, usize),
    /// What is queued is sent.
    Send,
    /// The peer initialises again, or makes noise.
    Noise(Vec<u8>),
}

type Sequence = Vec<(Step, Wrong, usize)>;

fn sequences() -> impl Strategy<Value = Sequence> {
    let step = prop_oneof![
        20 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Step::Own(which, how)),
        20 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Step::Capsule(which, how)),
        30 => (any::<usize>(), 1_usize..18, any::<bool>()).prop_map(|(which, blocks, flag)| Step::Data(which, blocks, flag)),
        10 => (any::<usize>(), 1_usize..18).prop_map(|(which, blocks)| Step::Ask(which, blocks)),
        15 => Just(Step::Send),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Step::Noise),
    ];
    let cut = prop_oneof![Just(usize::MAX), Just(1), 2_usize..700];
    proptest::collection::vec((step, wrongs(), cut), 1..120)
}

fn memory(len: usize) -> Data {
    Data::whole(Region::allocate(len, 8).unwrap())
}

fn small(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}

/// How often something happened, to show that the attacks reach what they are for.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    transfers: usize,
    failures: usize,
    errors: usize,
}

struct Attack<E> {
    end: E,
    wire: Wire,
    reached: Reached,
}

// ---- against the controller end ----

#[derive(Default)]
struct Transfers {
    /// Commands in flight: their ids.
    live: BTreeMap<CommandKey, u16>,
    /// Commands whose data was accepted and has not ended.
    coming: BTreeSet<CommandKey>,
    /// R2Ts seen in the output: id, tag, next offset, end.
    asked: Vec<(u16, u16, usize, usize)>,
}

impl Attack<ControllerConnection> {
    fn controller(wire: Wire, initialised: bool, connected: bool) -> Self {
        let params = ControllerParams {
            max_in_capsule_io: LIMIT,
            max_h2c_data: LIMIT,
            max_depth: DEPTH,
            ..ControllerParams::default()
        };
        let mut end = ControllerConnection::new(params).unwrap();
        if initialised {
            let bytes = ic_req(0, wire.dgst(), 0);
            assert!(matches!(
                end.advance(&mut &bytes[..]),
                Ok(Some(ControllerEvent::Ready))
            ));
            end.output().clear();
        }
        if connected {
            end.set_queue(DEPTH, true);
        }
        Self {
            end,
            wire,
            reached: Reached::default(),
        }
    }

    fn run(mut self, sequence: &Sequence, limit: usize) -> Reached {
        let mut transfers = Transfers::default();
        for (step, wrong, cut) in sequence {
            match self.unit(step, wrong, &mut transfers) {
                Some(bytes) => self.feed(&bytes, *cut, &mut transfers),
                None => self.own(step, &mut transfers),
            }
            assert!(usize::from(self.end.in_flight()) <= limit);
            assert_eq!(usize::from(self.end.in_flight()), transfers.live.len());
            // Each step adds at most one response with data, one terminate request and one ICResp.
            assert!(self.end.output().remaining() <= sequence.len() * (LEN + 400));
        }
        self.reached
    }

    /// What the peer sends in a step, if it sends.
    fn unit(&self, step: &Step, wrong: &Wrong, transfers: &mut Transfers) -> Option<Vec<u8>> {
        match step {
            // A full queue is overrun now and then.
            Step::Capsule(which, _) if transfers.live.len() >= usize::from(DEPTH) && which % 60 != 0 => None,
            Step::Capsule(which, how) => {
                let len = 512 * (1 + which % 16);
                let data = if how % 4 == 1 {
                    vec![*how; len.min(4096)]
                } else {
                    Vec::new()
                };
                let mut sqe = Sqe::new(if how % 4 == 0 { 2 } else { 1 }, 1);
                sqe.cid = u16::from(how / 16).into();
                sqe.set_sgl(if data.is_empty() {
                    Sgl::transport(small(len))
                } else {
                    Sgl::in_capsule(0, small(data.len()))
                });
                Some(wrong.make(self.wire, |wire| wire.capsule(sqe, &data)))
            }
            Step::Data(which, blocks, _) if !transfers.asked.is_empty() => {
                let index = which % transfers.asked.len();
                let (cid, tag, at, end) = transfers.asked[index];
                let len = (blocks * 512).min(4096).min(end - at);
                let last = at + len == end;
                if last {
                    transfers.asked.swap_remove(index);
                } else {
                    transfers.asked[index].2 += len;
                }
                Some(wrong.make(self.wire, |wire| {
                    wire.h2c(cid, tag, small(at), &vec![7; len], last)
                }))
            }
            Step::Data(which, blocks, last) => {
                let (cid, tag) = (small(which % 16), small(which / 16 % 64));
                let (cid, tag) = (u16::try_from(cid).unwrap(), u16::try_from(tag).unwrap());
                // Nothing was asked for: now and then, data comes all the same.
                (which % 150 == 0).then(|| self.wire.h2c(cid, tag, 0, &vec![7; blocks * 100], *last))
            }
            Step::Noise(bytes) if bytes.len() % 4 == 0 => Some(ic_req(bytes.len().to_le_bytes()[0], 3, 0)),
            Step::Noise(bytes) => Some(bytes.clone()),
            Step::Own(..) | Step::Ask(..) | Step::Send => None,
        }
    }

    fn own(&mut self, step: &Step, transfers: &mut Transfers) {
        match step {
            Step::Own(which, how) if !transfers.live.is_empty() => {
                let key = *transfers.live.keys().nth(which % transfers.live.len()).unwrap();
                let ended = match how % 8 {
                    0 | 1 => self.end.respond(key, Cqe::default()).is_ok(),
                    2 | 3 => self
                        .end
                        .respond_with_data(key, memory(LEN), LEN, Cqe::default(), *how > 128)
                        .is_ok(),
                    4 => self.end.cancel(key).is_err(),
                    _ => {
                        for blocks in (1..17).rev() {
                            if self.end.accept(key, memory(blocks * 512)).is_ok() {
                                assert!(transfers.coming.insert(key));
                                break;
                            }
                        }
                        false
                    }
                };
                if ended {
                    assert!(!transfers.coming.contains(&key), "no answer while data is coming");
                    transfers.live.remove(&key).unwrap();
                }
            }
            Step::Send => {
                let mut bytes = Vec::new();
                drain_into(self.end.output(), &mut bytes);
                let mut rest = &bytes[..];
                while rest.len() >= 24 {
                    let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
                    if rest[0] == 9 {
                        let half = |at: usize| u16::from_le_bytes(rest[at..at + 2].try_into().unwrap());
                        let end = usize::try_from(word(16)).unwrap();
                        transfers.asked.push((half(8), half(10), 0, end));
                    }
                    rest = &rest[usize::try_from(word(4)).unwrap()..];
                }
                assert!(rest.is_empty(), "the output is whole units");
            }
            _ => {}
        }
    }

    fn feed(&mut self, bytes: &[u8], cut: usize, transfers: &mut Transfers) {
        for part in bytes.chunks(cut.clamp(1, bytes.len().max(1))) {
            let mut input = part;
            loop {
                let event = match self.end.landing(1 + cut % 600) {
                    Some(segment) if cut.is_multiple_of(2) => {
                        let len = segment.len().min(input.len());
                        segment.region().write(segment.start(), &input[..len]).unwrap();
                        input = &input[len..];
                        self.end.landed(len)
                    }
                    _ => self.end.advance(&mut input),
                };
                match event {
                    Ok(Some(ControllerEvent::Command {
                        key, sqe, in_capsule, ..
                    })) => {
                        assert!(in_capsule <= 8192);
                        let known = transfers.live.insert(key, sqe.cid.get());
                        assert_eq!(known, None, "a key is given once");
                        let len = usize::try_from(in_capsule).unwrap();
                        if !cut.is_multiple_of(5) && self.end.accept(key, memory(len)).is_ok() {
                            transfers.coming.insert(key);
                        }
                    }
                    Ok(Some(ControllerEvent::DataReceived { key })) => {
                        assert!(
                            transfers.coming.remove(&key),
                            "data ends once, and only where it was accepted"
                        );
                        assert!(!self.end.take_data(key).is_empty());
                        self.reached.transfers += 1;
                    }
                    Ok(Some(ControllerEvent::DataFailed { key, .. })) => {
                        assert!(
                            transfers.coming.remove(&key),
                            "data ends once, and only where it was accepted"
                        );
                        self.reached.failures += 1;
                    }
                    Ok(None) if input.is_empty() => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert!(!error.to_string().is_empty() && self.end.failed());
                        self.reached.errors += 1;
                        assert_eq!(self.reached.errors, 1, "an error is reported once");
                    }
                }
            }
        }
    }
}

// ---- against the host end ----

#[derive(Debug, Clone, Copy)]
struct Issued {
    read: bool,
    len: usize,
    moved: usize,
}

impl Attack<HostConnection> {
    fn host(wire: Wire, started: bool, initialised: bool) -> Self {
        let params = HostParams {
            header_digest: wire.header_digest,
            data_digest: wire.data_digest,
            depth: DEPTH,
            in_capsule: 512,
            max_r2t: 2,
            ..HostParams::default()
        };
        let mut end = HostConnection::new(params).unwrap();
        if started || initialised {
            end.start();
        }
        if initialised {
            let bytes = ic_resp(0, wire.dgst(), LIMIT);
            assert!(matches!(end.advance(&mut &bytes[..]), Ok(Some(HostEvent::Ready))));
        }
        Self {
            end,
            wire,
            reached: Reached::default(),
        }
    }

    fn run(mut self, sequence: &Sequence) -> Reached {
        let mut live = BTreeMap::new();
        for (step, wrong, cut) in sequence {
            match self.unit(step, wrong, &mut live) {
                Some(bytes) => self.feed(&bytes, *cut, &mut live),
                None => self.own(step, &mut live),
            }
            assert_eq!(self.end.in_flight(), live.len());
            // A command's data is queued at most once.
            assert!(self.end.output().remaining() <= sequence.len() * (LEN + 400));
        }
        assert_eq!(self.end.drain().len(), live.len());
        self.reached
    }

    fn unit(&self, step: &Step, wrong: &Wrong, live: &mut BTreeMap<CommandId, Issued>) -> Option<Vec<u8>> {
        let pick = |which: usize, wanted: &dyn Fn(&Issued) -> bool, live: &BTreeMap<CommandId, Issued>| {
            let all: Vec<_> = live
                .iter()
                .filter(|(_, issued)| wanted(issued))
                .map(|(id, _)| *id)
                .collect();
            (!all.is_empty()).then(|| all[which % all.len()])
        };
        match step {
            Step::Capsule(which, how) => {
                let whole = |issued: &Issued| *how < 100 || issued.moved == issued.len;
                let id = pick(*which, &whole, live)?;
                let done = live[&id].moved == live[&id].len;
                let status = if done && how % 3 > 0 {
                    Status::SUCCESS
                } else {
                    Status::from_raw(u16::from(*how / 8))
                };
                Some(wrong.make(self.wire, |wire| wire.response(id.0, status)))
            }
            Step::Data(which, blocks, success) => {
                let id = pick(*which, &|issued| issued.read && issued.moved < issued.len, live)?;
                let issued = live.get_mut(&id)?;
                let (at, len) = (issued.moved, (blocks * 512).min(issued.len - issued.moved));
                issued.moved += len;
                let last = issued.moved == issued.len;
                let flag = if *success && last { flags::SUCCESS } else { 0 }
                    | if last { flags::LAST_PDU } else { 0 };
                Some(wrong.make(self.wire, |wire| wire.c2h(id.0, small(at), &vec![9; len], flag)))
            }
            Step::Ask(which, blocks) => {
                let id = pick(*which, &|issued| !issued.read && issued.moved < issued.len, live)?;
                let issued = live.get_mut(&id)?;
                let (at, len) = (issued.moved, (blocks * 512).min(issued.len - issued.moved));
                issued.moved += len;
                Some(wrong.make(self.wire, |wire| wire.r2t(id.0, 3, small(at), small(len))))
            }
            Step::Noise(bytes) if bytes.len() % 4 == 0 => {
                Some(ic_resp(bytes.len().to_le_bytes()[0], 3, 8192))
            }
            Step::Noise(bytes) => Some(bytes.clone()),
            Step::Own(..) | Step::Send => None,
        }
    }

    fn own(&mut self, step: &Step, live: &mut BTreeMap<CommandId, Issued>) {
        match step {
            Step::Own(_, how) => {
                let Some(slot) = self.end.reserve() else { return };
                let (command, len, moved) = match how % 5 {
                    0 => (Command::read(1, 0, 1), 512, 0),
                    1 => (Command::read(1, 0, 16), LEN, 0),
                    2 => (Command::write(1, 0, 16), LEN, 0),
                    // Its data goes in the capsule.
                    3 => (Command::write(1, 0, 1), 512, 512),
                    _ => (Command::flush(1), 0, 0),
                };
                let data = if len == 0 { Data::None } else { memory(len) };
                let read = command.opcode() == homi_spec::command::NvmOpcode::READ;
                let known = live.insert(self.end.submit(slot, command, data), Issued { read, len, moved });
                assert!(known.is_none());
            }
            Step::Send => self.end.output().clear(),
            _ => {}
        }
    }

    fn feed(&mut self, bytes: &[u8], cut: usize, live: &mut BTreeMap<CommandId, Issued>) {
        for part in bytes.chunks(cut.clamp(1, bytes.len().max(1))) {
            let mut input = part;
            loop {
                let event = match self.end.landing(1 + cut % 600) {
                    Some(segment) if cut.is_multiple_of(2) => {
                        let len = segment.len().min(input.len());
                        segment.region().write(segment.start(), &input[..len]).unwrap();
                        input = &input[len..];
                        self.end.landed(len)
                    }
                    _ => self.end.advance(&mut input),
                };
                match event {
                    Ok(Some(HostEvent::Completed {
                        id,
                        cqe,
                        data,
                        received,
                    })) => {
                        let issued = live.remove(&id).expect("a command completes once");
                        assert_eq!(data.len(), issued.len);
                        let received = usize::try_from(received).unwrap();
                        assert!(received <= data.len());
                        if cqe.status().is_success() {
                            assert_eq!(received, if issued.read { issued.len } else { 0 });
                            self.reached.transfers += 1;
                        } else {
                            self.reached.failures += 1;
                        }
                    }
                    Ok(None) if input.is_empty() => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert!(!error.to_string().is_empty() && self.end.failed());
                        self.reached.errors += 1;
                        assert_eq!(self.reached.errors, 1, "an error is reported once");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_controller_survives_any_host(digests: bool, connected in prop_oneof![1 => Just(false), 6 => Just(true)], sequence in sequences()) {
        let wire = if digests { DIGESTS } else { PLAIN };
        let limit = if connected { usize::from(DEPTH) } else { 1 };
        Attack::controller(wire, true, connected).run(&sequence, limit);
    }

    #[test]
    fn a_host_survives_any_controller(digests: bool, sequence in sequences()) {
        Attack::host(if digests { DIGESTS } else { PLAIN }, true, true).run(&sequence);
    }

    #[test]
    fn nothing_works_before_the_connection_is_initialised(started: bool, sequence in sequences()) {
        let reached = Attack::controller(PLAIN, false, false).run(&sequence, 1);
        prop_assert_eq!((reached.transfers, reached.failures), (0, 0));
        let reached = Attack::host(PLAIN, started, false).run(&sequence);
        prop_assert_eq!((reached.transfers, reached.failures), (0, 0));
    }

    #[test]
    fn noise_is_survived(digests: bool, initialised: bool, noise in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..400) {
        let wire = if digests { DIGESTS } else { PLAIN };
        let sequence = vec![
            (Step::Own(0, 1), Wrong::Nothing, 1),
            (Step::Noise(noise), Wrong::Nothing, cut),
        ];
        Attack::controller(wire, initialised, initialised).run(&sequence, usize::from(DEPTH));
        Attack::host(wire, true, initialised).run(&sequence);
    }
}

/// The attacks above are worth something only if they get past the first unit: over many sequences that are not minimised, each
/// end must have moved data, failed commands and ended connections.
#[test]
fn the_attacks_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut controller, mut host) = (Reached::default(), Reached::default());
    let add = |sum: &mut Reached, one: Reached| {
        sum.transfers += one.transfers;
        sum.failures += one.failures;
        sum.errors += one.errors;
    };
    for round in 0..200 {
        let sequence = sequences().new_tree(&mut runner).unwrap().current();
        let wire = if round % 2 == 0 { PLAIN } else { DIGESTS };
        add(
            &mut controller,
            Attack::controller(wire, true, true).run(&sequence, usize::from(DEPTH)),
        );
        add(&mut host, Attack::host(wire, true, true).run(&sequence));
    }
    for reached in [controller, host] {
        assert!(reached.transfers > 150, "{reached:?}");
        assert!(reached.failures > 5, "{reached:?}");
        assert!((50..200).contains(&reached.errors), "{reached:?}");
    }
}
