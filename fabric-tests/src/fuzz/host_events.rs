//! A host connection whose controller says right and wrong things in any order ([`host_events`](super::host_events)), and the sequences of
//! a host that gets any answers ([`host_answers`](super::host_answers)).

use std::time::Duration;

use homi_fabric::host::{
    Answer, BringUp, BringUpParams, ConnectError, Discovery, DiscoveryStep, Events, IoConnect,
    IoConnectParams, NamespaceInfo, Shutdown, Step, StepData, discovery, parse_namespace_list,
};
use homi_fabric::time::Instant;
use homi_queue::{Completion, DataDirection};
use homi_spec::controller::Cc;
use homi_spec::tcp::{C2HData, FatalError, IcResp, PduType, R2t, TermReq, dgst, flags};
use homi_spec::{Cqe, Status};

use super::Reached;
use super::choices::Choices;
use super::host_end::{Host, MAX_H2C, Setup, completion};
use super::target_end::{HOST_ID, host, subsystem};
use super::wire::{self, Layout};

/// What [`run_events`] can do next, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    Submit,
    Respond,
    Give,
    Ask,
    Drain,
    Delivery,
    WrongResponse,
    WrongData,
    WrongAsk,
    Bytes,
    Initialise,
    Terminate,
}

impl Event {
    pub(super) const ALL: [Self; 12] = [
        Self::Submit,
        Self::Respond,
        Self::Give,
        Self::Ask,
        Self::Drain,
        Self::Delivery,
        Self::WrongResponse,
        Self::WrongData,
        Self::WrongAsk,
        Self::Bytes,
        Self::Initialise,
        Self::Terminate,
    ];
}

const MOST_EVENTS: usize = 600;

/// What the controller has done about a command: bytes given or asked for, and R2Ts since the host's answers were taken.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    moved: usize,
    asked: usize,
}

struct Peer {
    host: Host,
    layout: Layout,
    progress: std::collections::BTreeMap<u16, Progress>,
    piece: usize,
    landing: bool,
    /// It said something that no controller says.
    wild: bool,
    ttag: u16,
}

/// See [`host_events`](super::host_events).
pub(super) fn run_events(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let digests = choices.byte() & (Setup::HEADER_DIGEST | Setup::DATA_DIGEST);
    let setup = Setup(digests | Setup::INITIALISED);
    let has = |bit| digests & bit != 0;
    let mut peer = Peer {
        host: Host::new(setup, &[], 0),
        layout: Layout::new(has(Setup::HEADER_DIGEST), has(Setup::DATA_DIGEST), 0),
        progress: std::collections::BTreeMap::new(),
        piece: 0,
        landing: false,
        wild: false,
        ttag: 0,
    };
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        let Some(event) = choices.of(&Event::ALL) else {
            break;
        };
        peer.event(event, &mut choices);
        assert!(
            peer.wild || peer.host.reached.errors == 0,
            "a controller that keeps to the protocol is not thrown out"
        );
    }
    peer.host.finish();
    peer.host.reached
}

impl Peer {
    fn event(&mut self, event: Event, choices: &mut Choices<'_>) {
        match event {
            Event::Submit => {
                self.host.submit(choices.byte());
            }
            Event::Drain => {
                self.host.drain();
                for progress in self.progress.values_mut() {
                    progress.asked = 0;
                }
            }
            Event::Delivery => {
                let piece = choices.byte();
                self.piece = usize::from(piece / 2);
                self.landing = piece % 2 == 1;
            }
            Event::Respond => self.respond(choices),
            Event::Give => self.give(choices),
            Event::Ask => self.ask(choices),
            Event::WrongResponse => {
                let (cid, status) = (choices.word(), choices.word());
                self.wild = true;
                let cid = self
                    .pick(choices, |_| true)
                    .map_or(cid, |(cid, _)| cid ^ (cid & 0x100));
                let cqe = Cqe::new(cid).with_status(Status::from_raw(status));
                self.send(&wire::response(self.layout, cqe));
            }
            Event::WrongData => {
                self.wild = true;
                let cid = self
                    .pick(choices, |_| true)
                    .map_or(choices.word(), |(cid, _)| cid);
                let (at, len) = (choices.dword() % 10_000, usize::from(choices.word()) % 9000);
                let header = C2HData {
                    cccid: cid.into(),
                    datao: at.into(),
                    datal: field(len).into(),
                    ..C2HData::default()
                };
                let flag = choices.byte() & (flags::LAST_PDU | flags::SUCCESS);
                self.send(&wire::unit(
                    self.layout,
                    PduType::C2H_DATA,
                    flag,
                    header,
                    &vec![1; len],
                ));
            }
            Event::WrongAsk => {
                self.wild = true;
                let cid = self
                    .pick(choices, |_| true)
                    .map_or(choices.word(), |(cid, _)| cid);
                let header = R2t {
                    cccid: cid.into(),
                    ttag: choices.word().into(),
                    r2to: (choices.dword() % 10_000).into(),
                    r2tl: (choices.dword() % 10_000).into(),
                    ..R2t::default()
                };
                self.send(&wire::unit(self.layout, PduType::R2T, 0, header, &[]));
            }
            Event::Bytes => {
                self.wild = true;
                let len = usize::from(choices.word()) % 1024;
                self.send(choices.take(len));
            }
            Event::Initialise => {
                self.wild = true;
                let response = IcResp::new(choices.byte() % 32, choices.byte() & dgst::HEADER, MAX_H2C);
                self.send(zerocopy::IntoBytes::as_bytes(&response));
            }
            Event::Terminate => {
                self.wild = true;
                let request = TermReq::new(
                    PduType::C2H_TERM_REQ,
                    FatalError(choices.word()),
                    choices.dword(),
                    0,
                );
                self.send(&wire::unit(Layout::PLAIN, PduType::C2H_TERM_REQ, 0, request, &[]));
            }
        }
        let live = &self.host.live;
        self.progress.retain(|cid, _| live.keys().any(|id| id.0 == *cid));
    }

    fn send(&mut self, bytes: &[u8]) {
        let piece = if self.piece == 0 { bytes.len() } else { self.piece };
        self.host.feed(bytes, piece, self.landing);
    }

    /// A command in flight, by the next choice, among those that have something left to do.
    fn pick(
        &self,
        choices: &mut Choices<'_>,
        wanted: impl Fn(&super::host_end::Issued) -> bool,
    ) -> Option<(u16, super::host_end::Issued)> {
        let all: Vec<_> = self
            .host
            .live
            .iter()
            .filter(|(_, issued)| wanted(issued))
            .collect();
        let (id, issued) = *all.get(choices.below(all.len()))?;
        Some((id.0, *issued))
    }

    fn respond(&mut self, choices: &mut Choices<'_>) {
        let Some((cid, issued)) = self.pick(choices, |_| true) else {
            return;
        };
        let progress = self.progress.get(&cid).copied().unwrap_or_default();
        let how = choices.byte();
        let read = issued.direction == DataDirection::ControllerToHost;
        // A write in the capsule has nothing left to move.
        let done = if read {
            progress.moved == issued.len
        } else {
            issued.len <= 4096 || progress.moved == issued.len
        };
        let status = match how {
            0..=127 if done => Status::SUCCESS,
            _ if how.is_multiple_of(4) => Status::ABORT_REQUESTED,
            _ => Status::LBA_OUT_OF_RANGE.with_dnr(),
        };
        let cqe = completion(homi_queue::CommandId(cid), status);
        self.send(&wire::response(self.layout, cqe));
    }

    fn give(&mut self, choices: &mut Choices<'_>) {
        let reads = |issued: &super::host_end::Issued| issued.direction == DataDirection::ControllerToHost;
        let Some((cid, issued)) = self.pick(choices, reads) else {
            return;
        };
        let progress = self.progress.entry(cid).or_default();
        let at = progress.moved;
        let len = (usize::from(choices.byte()) * 64 + 64).min(issued.len - at);
        if len == 0 {
            return;
        }
        progress.moved += len;
        let last = progress.moved == issued.len;
        let mut flag = if last { flags::LAST_PDU } else { 0 };
        if last && choices.byte().is_multiple_of(2) {
            flag |= flags::SUCCESS;
        }
        let header = C2HData {
            cccid: cid.into(),
            datao: field(at).into(),
            datal: field(len).into(),
            ..C2HData::default()
        };
        self.send(&wire::unit(
            self.layout,
            PduType::C2H_DATA,
            flag,
            header,
            &vec![3; len],
        ));
    }

    fn ask(&mut self, choices: &mut Choices<'_>) {
        let writes = |issued: &super::host_end::Issued| {
            issued.direction == DataDirection::HostToController && issued.len > 4096
        };
        let Some((cid, issued)) = self.pick(choices, writes) else {
            return;
        };
        let progress = self.progress.entry(cid).or_default();
        let at = progress.moved;
        let len = (usize::from(choices.byte()) * 64 + 64).min(issued.len - at);
        // As many as the host said that it takes.
        if len == 0 || progress.asked == 2 {
            return;
        }
        progress.moved += len;
        progress.asked += 1;
        self.ttag = self.ttag.wrapping_add(1);
        let header = R2t {
            cccid: cid.into(),
            ttag: self.ttag.into(),
            r2to: field(at).into(),
            r2tl: field(len).into(),
            ..R2t::default()
        };
        self.send(&wire::unit(self.layout, PduType::R2T, 0, header, &[]));
    }
}

fn field(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The steps that a sequence may take before it must have come to an end: no controller keeps a host busy forever.
const MOST_STEPS: usize = 20_000;

/// See [`host_answers`](super::host_answers).
pub(super) fn run_answers(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    match choices.below(6) {
        0 => bring_up(&mut choices),
        1 => discover(&mut choices),
        2 => shut_down(&mut choices),
        3 => pages(&mut choices),
        4 => connect_queue(&mut choices),
        _ => events(&mut choices),
    }
}

/// An answer to a command that wants `room` bytes.
fn answer<'a>(choices: &mut Choices<'_>, page: &'a mut Vec<u8>, data: &StepData) -> Answer<'a> {
    let flags = choices.byte();
    // Most answers succeed: sequences end at the first that does not.
    let status = if flags < 240 {
        Status::SUCCESS
    } else {
        Status::from_raw(choices.word())
    };
    let result = u64::from(choices.dword()) | u64::from(choices.byte()) << 32;
    page.clear();
    if let StepData::In(len) = data {
        page.resize(*len, 0);
        let given = choices.take((*len).min(if flags.is_multiple_of(2) { *len } else { 64 }));
        for (to, from) in page.iter_mut().zip(given) {
            *to = *from;
        }
        assert!(*len <= 1 << 20, "a host does not ask for more than it can want");
    }
    Answer {
        completion: Completion { status, result },
        data: page,
    }
}

/// Runs a sequence to its end on answers of the fuzzer's.
fn run_sequence<T>(
    choices: &mut Choices<'_>,
    mut next: impl FnMut(Option<&Answer<'_>>, Instant) -> Step<T>,
) -> (Result<T, ConnectError>, usize) {
    let mut now = Instant::ZERO;
    let mut page = Vec::new();
    let mut step = next(None, now);
    for commands in 0..MOST_STEPS {
        now += Duration::from_millis(1);
        step = match step {
            Step::Submit { data, .. } => {
                let answer = answer(choices, &mut page, &data);
                next(Some(&answer), now)
            }
            Step::WaitUntil(time) => {
                assert!(
                    time + Duration::from_millis(1) > now,
                    "a wait ends after it begins"
                );
                now = now.max(time);
                next(None, now)
            }
            Step::Ready(value) => return (Ok(value), commands),
            Step::Failed(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains('\n'), "one sentence: {text:?}");
                return (Err(error), commands);
            }
        };
    }
    unreachable!("the sequence does not end")
}

fn bring_up(choices: &mut Choices<'_>) -> Reached {
    let name = choices.byte();
    let mut sequence = BringUp::new(BringUpParams {
        host_nqn: host(0),
        host_id: HOST_ID,
        subsystem: subsystem(name.into()),
        keep_alive: Duration::from_millis(choices.word().into()),
        admin_entries: 32,
        sq_flow_control: name.is_multiple_of(2),
        io_queues: choices.word().max(1),
    });
    let (result, commands) = run_sequence(choices, |answer, now| sequence.next(answer, now));
    if let Ok(info) = &result {
        assert!(info.max_queue_entries >= 2);
        assert!(info.max_transfer.is_none_or(|bytes| bytes >= 4096), "{info:?}");
    }
    outcome(result.is_ok(), commands)
}

fn connect_queue(choices: &mut Choices<'_>) -> Reached {
    let mut sequence = IoConnect::new(IoConnectParams {
        host_nqn: host(0),
        host_id: HOST_ID,
        subsystem: subsystem(0),
        controller_id: choices.byte().into(),
        qid: choices.word(),
        entries: choices.word(),
        sq_flow_control: true,
    });
    let (result, commands) = run_sequence(choices, |answer, _| sequence.next(answer));
    outcome(result.is_ok(), commands)
}

fn shut_down(choices: &mut Choices<'_>) -> Reached {
    let until = Instant::ZERO + Duration::from_millis(choices.word().into());
    let mut sequence = Shutdown::new(Cc(choices.dword()), until);
    let (result, commands) = run_sequence(choices, |answer, now| sequence.next(answer, now));
    outcome(result.is_ok(), commands)
}

fn discover(choices: &mut Choices<'_>) -> Reached {
    let most = choices.of(&[None, Some(4096), Some(1 << 16), Some(1)]).flatten();
    let mut sequence = Discovery::new(most);
    let mut page = Vec::new();
    let mut step = sequence.next(None);
    for commands in 0..MOST_STEPS {
        step = match step {
            DiscoveryStep::Submit { data, .. } => {
                let answer = answer(choices, &mut page, &data);
                sequence.next(Some(&answer))
            }
            DiscoveryStep::Ready { records, skipped } => {
                assert!(
                    u64::try_from(records.len() + skipped.len())
                        .is_ok_and(|all| all <= discovery::MAX_RECORDS)
                );
                assert!(
                    records
                        .iter()
                        .all(|record| !record.address.chars().any(char::is_control))
                );
                return outcome(true, commands);
            }
            DiscoveryStep::Failed(error) => {
                assert!(!error.to_string().is_empty());
                return outcome(false, commands);
            }
        };
    }
    unreachable!("reading the discovery log does not end")
}

/// Pages that controllers send, beside those of bring-up.
fn pages(choices: &mut Choices<'_>) -> Reached {
    let nsid = choices.dword();
    let bytes = choices.rest();
    let mut good = false;
    if let Ok(Some(mut info)) = NamespaceInfo::from_page(nsid, bytes) {
        good = true;
        assert!(info.block_size.is_power_of_two() && (512..=65536).contains(&info.block_size));
        assert_eq!(info.bytes() / u64::from(info.block_size), info.blocks);
        info.add_descriptors(bytes);
        assert_eq!(info.nsid, nsid);
    }
    if let Ok(ids) = parse_namespace_list(bytes, nsid) {
        assert!(ids.len() <= 1024);
        assert!(ids.windows(2).all(|pair| pair.first() < pair.last()));
        assert!(ids.iter().all(|id| *id > nsid));
    }
    outcome(good, 0)
}

/// Event requests whose completions say anything, as fast as they are sent.
fn events(choices: &mut Choices<'_>) -> Reached {
    let mut now = Instant::ZERO;
    let mut events = Events::new(choices.word(), now);
    let mut outstanding = 0_u16;
    let mut taken = 0;
    while !choices.is_empty() {
        let (wanted, again) = events.wanted(now);
        outstanding += wanted;
        assert!(outstanding <= 4, "few requests are outstanding");
        assert!(again.is_none_or(|time| time >= now));
        for _ in 0..wanted {
            events.sent();
        }
        let status = if choices.byte() < 200 {
            Status::SUCCESS
        } else {
            Status::from_raw(choices.word())
        };
        let result = choices.dword().into();
        if outstanding > 0 {
            outstanding -= 1;
            events.completed(&Completion { status, result });
            taken += 1;
        }
        now += Duration::from_millis(choices.byte().into());
    }
    outcome(true, taken)
}

fn outcome(good: bool, commands: usize) -> Reached {
    Reached {
        commands,
        transfers: usize::from(good),
        failures: usize::from(!good),
        ..Reached::default()
    }
}
