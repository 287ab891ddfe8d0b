//! A whole target against hosts that say anything: commands ([`capsules`]), Connects ([`connect_data`]), and everything at once, with time,
//! closed connections and changes of configuration ([`controller_events`]).

use std::time::Duration;

use homi_queue::Command;
use homi_spec::command::{AdminOpcode, NvmOpcode};
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectResponse};
use homi_spec::identify::{Cns, Identify};
use homi_spec::tcp::{PduType, TermReq};
use homi_spec::{Sgl, Sqe, Status, admin};
use homi_target::memory::MemoryTarget;
use zerocopy::FromBytes;

use super::Reached;
use super::choices::Choices;
use super::target_end::{
    self, Delivery, HOST_ID, IN_CAPSULE, MAX_TRANSFER, PARSED, Remote, association, configure, data_header,
    enabled, finish, host, subsystem,
};
use super::wire::{self, Layout};

/// Bits of the first byte of a record of [`capsules`].
pub(super) mod record {
    /// On an I/O queue rather than the admin queue.
    pub(in super::super) const IO: u8 = 1;
    /// The descriptor is replaced by a transport descriptor of the length that the command asks for.
    pub(in super::super) const FIT: u8 = 2;
    /// Data follows, in the capsule.
    pub(in super::super) const DATA: u8 = 4;
    /// The flags are what every command over fabrics has.
    pub(in super::super) const FLAGS: u8 = 8;
    /// Not collected before the next.
    pub(in super::super) const PIPELINE: u8 = 16;
}

/// Bits of the first byte of [`capsules`].
pub(super) mod session {
    pub(in super::super) const NO_FLOW_CONTROL: u8 = 1;
    pub(in super::super) const HEADER_DIGEST: u8 = 2;
    pub(in super::super) const DATA_DIGEST: u8 = 4;
}

/// See [`capsules`](super::capsules).
pub(super) fn run_capsules(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let mut target = target_end::target();
    let mode = choices.byte();
    let cattr = if mode & session::NO_FLOW_CONTROL != 0 {
        ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL
    } else {
        0
    };
    let mut remotes = association(&mut target, 1, 8, cattr, mode >> 1);
    let mut reached = Reached::default();
    let piece = usize::from(choices.byte());
    let delivery = Delivery {
        piece,
        landing: piece % 2 == 1,
    };
    while !choices.is_empty() {
        let flags = choices.byte();
        let mut sqe = Sqe::read_from_bytes(&choices.array::<64>()).expect("64 bytes are an entry");
        let Some(remote) = remotes.get_mut(usize::from(flags & record::IO)) else {
            break;
        };
        if flags & record::FLAGS != 0 {
            sqe.flags = 0x40;
        }
        let mut data: &[u8] = &[];
        if flags & record::FIT != 0 {
            sqe.set_sgl(Sgl::transport(fitting(&sqe, remote.io)));
        }
        if flags & record::DATA != 0 {
            let len = usize::from(choices.word());
            data = choices.take(len % (IN_CAPSULE + 1));
            if flags & record::FIT != 0 {
                sqe.set_sgl(Sgl::in_capsule(0, u32::try_from(data.len()).unwrap_or(0)));
            }
        }
        if !remote.has_room() || !target.is_open(remote.connection) {
            continue;
        }
        sqe.cid = remote.fresh_cid().into();
        remote.send_command(&mut target, &sqe, data, delivery);
        reached.commands += 1;
        if flags & record::PIPELINE == 0 {
            for remote in &mut remotes {
                remote.collect(&mut target);
                for ask in std::mem::take(&mut remote.asks) {
                    remote.follow(&mut target, ask, 4096, delivery);
                }
                remote.collect(&mut target);
            }
        }
        if let Some(remote) = remotes.first()
            && let Some((cqe, moved)) = remote.answers.get(&sqe.cid.get())
            && flags & record::IO == 0
        {
            assert!(
                cqe.status().is_success() || *moved == 0,
                "a failed command moves nothing"
            );
        }
    }
    reached.count(&remotes);
    finish(&mut target, remotes);
    reached
}

/// How many bytes a command moves, if it moves what it says.
fn fitting(sqe: &Sqe, io: bool) -> u32 {
    if !io {
        return match sqe.admin_opcode() {
            AdminOpcode::GET_LOG_PAGE => ((sqe.cdw10.get() >> 16) + 1).saturating_mul(4),
            AdminOpcode::GET_FEATURES | AdminOpcode::SET_FEATURES => 0,
            _ => 4096,
        };
    }
    let block = if sqe.nsid.get() == 1 { 512 } else { 4096 };
    match sqe.nvm_opcode() {
        NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => sqe.blocks().saturating_mul(block),
        NvmOpcode::DATASET_MANAGEMENT => ((sqe.cdw10.get() & 0xff) + 1) * 16,
        _ => 0,
    }
}

/// See [`connect_data`](super::connect_data).
pub(super) fn run_connect_data(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let mut target = target_end::target();
    let mut remotes = Vec::new();
    let mut reached = Reached::default();
    while !choices.is_empty() && remotes.len() < 8 {
        let mode = choices.byte();
        let command = ConnectCommand {
            recfmt: choices.word(),
            qid: choices.word(),
            sqsize_z: choices.word(),
            cattr: choices.byte(),
            kato_ms: choices.dword(),
        };
        let mut bytes = choices.array::<1024>();
        // The names are found by what they mean rather than by chance.
        let data = ConnectData::mut_from_bytes(&mut bytes)
            .map_err(|_| ())
            .expect("1024 bytes are the data of Connect");
        if mode & 1 != 0 {
            let known = ConnectData::new(HOST_ID, CNTLID_DYNAMIC, &subsystem((mode >> 4).into()), &host(0));
            data.subnqn = known.subnqn;
            data.hostnqn = known.hostnqn;
        }
        if mode & 2 != 0 {
            data.hostid = HOST_ID;
        }
        let controller = remotes.first().and_then(|admin: &Remote| admin.controller);
        if mode & 4 != 0
            && let Some(controller) = controller
        {
            data.cntlid = controller.into();
        }
        let data = *data;
        let mut remote = Remote::open(&mut target);
        remote.initialise(&mut target, 0, 0, Delivery::default());
        remote.connect(&mut target, command, &data, Delivery::default());
        assert!(
            target.is_open(remote.connection),
            "a refused Connect is answered, no more"
        );
        let (_, (cqe, moved)) = remote.answers.pop_last().expect("Connect is answered");
        assert_eq!(moved, 0);
        reached.commands += 1;
        match ConnectResponse::from_cqe(&cqe) {
            ConnectResponse::Success { cntlid, .. } => {
                reached.transfers += 1;
                assert_eq!(command.recfmt, 0);
                assert!(command.qid == 0 || cntlid == data.cntlid.get());
                let [name, by] = [&data.subnqn, &data.hostnqn].map(|field| c_string(field));
                let open_to_all = [subsystem(0), subsystem(2)]
                    .iter()
                    .any(|open| open.as_bytes() == name);
                let allowed = (name, by) == (subsystem(1).as_bytes(), host(1).as_bytes());
                assert!(
                    open_to_all || allowed,
                    "a queue only of what exists, for whom it is"
                );
                if command.qid == 0 {
                    let mut sqe = configure(enabled().0);
                    sqe.cid = remote.fresh_cid().into();
                    remote.send_command(&mut target, &sqe, &[], Delivery::default());
                    remote.collect(&mut target);
                    assert_eq!(remote.in_flight(), 0);
                }
            }
            ConnectResponse::InvalidParameter { offset, in_data } => {
                reached.failures += 1;
                assert!(usize::from(offset) < if in_data { 1024 } else { 64 });
            }
            ConnectResponse::Failed(status) => {
                reached.failures += 1;
                assert!(!status.is_success());
            }
        }
        remotes.push(remote);
    }
    finish(&mut target, remotes);
    reached
}

/// A name without its NUL and what follows that.
fn c_string(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// What [`controller_events`] can do next, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    Open,
    Initialise,
    Connect,
    Enable,
    Io,
    Admin,
    Follow,
    Stray,
    Bytes,
    Close,
    Pass,
    Apply,
    Collect,
    Delivery,
    Raw,
    Association,
    Abort,
    Doubled,
}

impl Event {
    pub(super) const ALL: [Self; 18] = [
        Self::Open,
        Self::Initialise,
        Self::Connect,
        Self::Enable,
        Self::Io,
        Self::Admin,
        Self::Follow,
        Self::Stray,
        Self::Bytes,
        Self::Close,
        Self::Pass,
        Self::Apply,
        Self::Collect,
        Self::Delivery,
        Self::Raw,
        Self::Association,
        Self::Abort,
        Self::Doubled,
    ];
}

/// Connections at a time.
const MOST: usize = 8;
/// Events of one run: what comes later is cut off.
const MOST_EVENTS: usize = 400;

struct World {
    target: MemoryTarget,
    remotes: Vec<Remote>,
    delivery: Delivery,
    reached: Reached,
}

/// See [`controller_events`](super::controller_events).
pub(super) fn run_controller_events(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let mut world = World {
        target: target_end::target(),
        remotes: Vec::new(),
        delivery: Delivery::default(),
        reached: Reached::default(),
    };
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        let Some(event) = choices.of(&Event::ALL) else {
            break;
        };
        world.event(event, &mut choices);
        assert_eq!(world.target.connections(), world.remotes.len());
    }
    world.reached.count(&world.remotes);
    finish(&mut world.target, world.remotes);
    world.reached
}

impl World {
    fn event(&mut self, event: Event, choices: &mut Choices<'_>) {
        match event {
            Event::Open => {
                if self.remotes.len() < MOST {
                    let remote = Remote::open(&mut self.target);
                    self.remotes.push(remote);
                }
            }
            Event::Pass => {
                let time = Duration::from_millis(u64::from(choices.word()) * 4);
                self.target.pass(time);
            }
            Event::Apply => {
                if let Some(config) = PARSED.get(choices.below(PARSED.len())) {
                    self.target.apply(config).expect("the configuration is right");
                }
            }
            Event::Delivery => {
                let piece = choices.byte();
                self.delivery = Delivery {
                    piece: usize::from(piece / 2),
                    landing: piece % 2 == 1,
                };
            }
            Event::Association => self.associate(choices),
            Event::Close => {
                if !self.remotes.is_empty() {
                    let which = choices.below(self.remotes.len());
                    let mut remote = self.remotes.swap_remove(which);
                    remote.collect(&mut self.target);
                    self.reached.completions += remote.answered;
                    self.target.close(remote.connection);
                }
            }
            other => self.on_connection(other, choices),
        }
    }

    /// An association in one step, unless the configuration has none for it.
    fn associate(&mut self, choices: &mut Choices<'_>) {
        let (queues, entries, cattr, digests) =
            (choices.below(3), choices.byte(), choices.byte(), choices.byte());
        if self.remotes.len() + queues >= MOST {
            return;
        }
        for qid in 0..=u16::try_from(queues).unwrap_or(0) {
            let mut remote = Remote::open(&mut self.target);
            remote.initialise(&mut self.target, digests, 0, self.delivery);
            let controller = match qid {
                0 => None,
                _ => self
                    .remotes
                    .iter()
                    .rev()
                    .find_map(|other| other.controller.filter(|_| !other.io)),
            };
            let command = ConnectCommand {
                recfmt: 0,
                qid,
                sqsize_z: if qid == 0 { 31 } else { u16::from(entries % 62) + 1 },
                cattr: cattr & ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL,
                kato_ms: if qid == 0 { 30_000 } else { 0 },
            };
            let data = ConnectData::new(
                HOST_ID,
                controller.unwrap_or(CNTLID_DYNAMIC),
                &subsystem(0),
                &host(0),
            );
            remote.connect(&mut self.target, command, &data, self.delivery);
            self.remotes.push(remote);
            if qid == 0
                && let Some(which) = self.remotes.len().checked_sub(1)
            {
                self.send(which, configure(enabled().0), &[]);
                self.collect(which);
            }
        }
    }

    fn on_connection(&mut self, event: Event, choices: &mut Choices<'_>) {
        if self.remotes.is_empty() {
            return;
        }
        let which = choices.below(self.remotes.len());
        match event {
            Event::Initialise => {
                let (digests, hpda_z) = (choices.byte(), choices.byte() % 32);
                if let Some(remote) = self.remotes.get_mut(which) {
                    remote.wild |= remote.initialised;
                    remote.initialise(&mut self.target, digests, hpda_z, self.delivery);
                }
            }
            Event::Connect => self.connect(which, choices),
            Event::Enable => {
                let value = match choices.below(6) {
                    0 => 0,
                    1 => enabled().0 | 1 << 14,
                    2 => enabled().0 | 2 << 14,
                    3 => choices.dword(),
                    _ => enabled().0,
                };
                self.send(which, configure(value), &[]);
            }
            Event::Io => {
                let (sqe, data) = io_command(choices);
                self.send(which, sqe, &data);
            }
            Event::Admin => {
                let (sqe, data) = admin_command(choices);
                self.send(which, sqe, &data);
            }
            Event::Raw => {
                let sqe = Sqe::read_from_bytes(&choices.array::<64>()).expect("64 bytes are an entry");
                let len = choices.below(256);
                let data = choices.take(len).to_vec();
                self.send(which, sqe, &data);
            }
            Event::Abort => {
                let target = choices.below(self.remotes.len());
                let cid = self
                    .remotes
                    .get(target)
                    .and_then(|remote| remote.a_cid_in_flight(choices.below(64)));
                let qid = choices.word() % 4;
                let abort = admin::Abort {
                    sqid: qid,
                    cid: cid.unwrap_or(0),
                };
                self.send(which, abort.to_sqe(0), &[]);
            }
            Event::Doubled => {
                let (mut sqe, data) = io_command(choices);
                let Some(remote) = self.remotes.get_mut(which) else {
                    return;
                };
                if let Some(cid) = remote.a_cid_in_flight(choices.below(64))
                    && remote.has_room()
                    && remote.initialised
                {
                    sqe.cid = cid.into();
                    // Which of the two an answer is for cannot be told.
                    remote.wild = true;
                    remote.send_command(&mut self.target, &sqe, &data, self.delivery);
                }
            }
            Event::Follow => {
                let most = usize::from(choices.byte()) * 64;
                let Some(remote) = self.remotes.get_mut(which) else {
                    return;
                };
                if !remote.asks.is_empty() {
                    let ask = remote.asks.remove(choices.below(remote.asks.len()));
                    remote.follow(
                        &mut self.target,
                        ask,
                        if most == 0 { MAX_TRANSFER } else { most },
                        self.delivery,
                    );
                }
            }
            Event::Stray => self.stray(which, choices),
            Event::Bytes => {
                let len = usize::from(choices.word()) % 2048;
                let bytes = choices.take(len);
                if let Some(remote) = self.remotes.get_mut(which) {
                    remote.wild = true;
                    remote.send_bytes(&mut self.target, bytes, self.delivery);
                }
            }
            Event::Collect => self.collect(which),
            Event::Open
            | Event::Close
            | Event::Pass
            | Event::Apply
            | Event::Delivery
            | Event::Association => {}
        }
    }

    fn connect(&mut self, which: usize, choices: &mut Choices<'_>) {
        let admins: Vec<u16> = self
            .remotes
            .iter()
            .filter_map(|remote| remote.controller.filter(|_| !remote.io))
            .collect();
        let (name, host_name) = (choices.below(8) / 2, choices.below(4) / 3);
        let command = ConnectCommand {
            recfmt: u16::from(choices.byte() == 255),
            qid: u16::from(choices.byte() % 5),
            sqsize_z: choices.of(&[31, 63, 1, 7, 0, 1023]).unwrap_or(31),
            cattr: choices.byte(),
            kato_ms: u32::from(choices.word()),
        };
        let controller = if command.qid == 0 {
            CNTLID_DYNAMIC
        } else {
            choices.of(&admins).unwrap_or(CNTLID_DYNAMIC)
        };
        let data = ConnectData::new(HOST_ID, controller, &subsystem(name), &host(host_name));
        let Some(remote) = self.remotes.get_mut(which) else {
            return;
        };
        if remote.initialised && remote.has_room() {
            // A second Connect on a queue is answered, and changes what the host may assume.
            remote.wild |= remote.controller.is_some();
            remote.connect(&mut self.target, command, &data, self.delivery);
        }
    }

    /// A command with an id of its own, if the queue has room.
    fn send(&mut self, which: usize, mut sqe: Sqe, data: &[u8]) {
        let Some(remote) = self.remotes.get_mut(which) else {
            return;
        };
        if !remote.initialised || !remote.has_room() {
            return;
        }
        sqe.cid = remote.fresh_cid().into();
        remote.send_command(&mut self.target, &sqe, data, self.delivery);
        self.reached.commands += 1;
    }

    fn collect(&mut self, which: usize) {
        if let Some(remote) = self.remotes.get_mut(which) {
            remote.collect(&mut self.target);
        }
    }

    /// Data that was not asked for, or not so; or the end.
    fn stray(&mut self, which: usize, choices: &mut Choices<'_>) {
        let kind = choices.below(4);
        let [at, len] = [choices.word(), choices.word() % 5000].map(usize::from);
        let (cid, ttag, last) = (choices.word(), choices.word(), choices.byte().is_multiple_of(2));
        let Some(remote) = self.remotes.get_mut(which) else {
            return;
        };
        remote.wild = true;
        let header = match (kind, remote.asks.first()) {
            (0, _) => {
                let request = TermReq {
                    fes: (cid % 8).into(),
                    ..TermReq::default()
                };
                let bytes = wire::unit(Layout::PLAIN, PduType::H2C_TERM_REQ, 0, request, &[]);
                return remote.send_bytes(&mut self.target, &bytes, self.delivery);
            }
            (1, Some(ask)) => data_header(ask.cid, ask.ttag, at, len),
            (2, Some(ask)) => data_header(ask.cid, ask.ttag, ask.at, len.min(ask.len)),
            _ => data_header(cid, ttag, at, len),
        };
        remote.send_data(&mut self.target, header, last, &vec![0; len], self.delivery);
    }
}

/// A command of an I/O queue that is mostly right, and its data if that goes in the capsule.
fn io_command(choices: &mut Choices<'_>) -> (Sqe, Vec<u8>) {
    let kind = choices.below(10);
    let nsid = choices.of(&[1, 2, 1, 7, 3, 0, u32::MAX, 9]).unwrap_or(1);
    let block = if nsid == 1 { 512 } else { 4096 };
    let lba = u64::from(choices.byte()) % 160;
    let blocks = u32::try_from(choices.below(40)).unwrap_or(0) + 1;
    let how = choices.byte();
    let command = match kind {
        0 | 1 => Command::read(nsid, lba, blocks),
        2 | 3 => Command::write(nsid, lba, blocks),
        4 => Command::compare(nsid, lba, blocks),
        5 => Command::flush(nsid),
        6 => Command::write_zeroes(nsid, lba, blocks, how & 1 != 0),
        7 => Command::deallocate(nsid, blocks),
        8 => Command::verify(nsid, lba, blocks),
        _ => Command(Sqe::new(how, nsid)),
    };
    let command = if how & 2 != 0 { command.with_fua() } else { command };
    let mut sqe = command.0;
    let len = match kind {
        0..=4 => blocks * block,
        7 => blocks * 16,
        _ => 0,
    };
    let mut data = Vec::new();
    // Now and then, a length that the command does not ask for.
    let len = if how >= 250 { len / 2 + 4 } else { len };
    let in_capsule =
        matches!(kind, 2..=4 | 7) && usize::try_from(len).is_ok_and(|len| len <= IN_CAPSULE) && how & 4 == 0;
    if in_capsule {
        data = vec![how; usize::try_from(len).unwrap_or(0)];
        sqe.set_sgl(Sgl::in_capsule(0, len));
    } else {
        sqe.set_sgl(Sgl::transport(len));
    }
    (sqe, data)
}

/// A command of an admin queue that is mostly right.
fn admin_command(choices: &mut Choices<'_>) -> (Sqe, Vec<u8>) {
    let kind = choices.below(9);
    let (one, two, three) = (choices.byte(), choices.byte(), choices.dword());
    let mut sqe = match kind {
        0 => {
            let mut identify = Identify::controller();
            identify.cns = Cns(one % 0x20);
            identify.nsid = u32::from(two % 10);
            identify.to_sqe(0)
        }
        1 => {
            let mut sqe = Sqe::new(AdminOpcode::GET_LOG_PAGE.0, 0);
            sqe.cdw10 = (u32::from(one % 8) | u32::from(two) << 16).into();
            sqe.cdw12 = (three % 4096).into();
            sqe
        }
        2 | 3 => {
            let opcode = if kind == 2 {
                AdminOpcode::GET_FEATURES
            } else {
                AdminOpcode::SET_FEATURES
            };
            let mut sqe = Sqe::new(opcode.0, u32::from(two % 4));
            sqe.cdw10 = (u32::from(one) % 0x84).into();
            sqe.cdw11 = three.into();
            sqe
        }
        4 => admin::async_event_request(0),
        5 => admin::keep_alive(0),
        6 => configure(three),
        7 => {
            let mut sqe = configure(three);
            // Get and Set of any property, Disconnect, Connect without data, authentication.
            sqe.nsid = u32::from(one % 9).into();
            sqe.cdw10 = u32::from(two % 2).into();
            sqe.cdw11 = (u32::from(two) & 0x3c).into();
            sqe
        }
        _ => Sqe::new(one, u32::from(two)),
    };
    let len = match kind {
        0 => 4096,
        1 => (u32::from(two) + 1) * 4,
        3 if sqe.cdw10.get() == 0x81 => 8,
        _ => 0,
    };
    if kind == 3 && len > 0 {
        sqe.set_sgl(Sgl::in_capsule(0, len));
        return (sqe, vec![two; 8]);
    }
    if kind < 6 || kind == 8 {
        sqe.set_sgl(Sgl::transport(len));
    }
    (sqe, Vec::new())
}

impl Reached {
    /// Adds what connections that are still open came to.
    fn count(&mut self, remotes: &[Remote]) {
        for remote in remotes {
            self.completions += remote.answered;
            self.transfers += remote.bytes_in;
            let failed = remote
                .answers
                .values()
                .filter(|(cqe, _)| cqe.status() != Status::SUCCESS);
            self.failures += failed.count();
        }
    }
}
