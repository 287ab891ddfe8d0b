//! A whole target in memory and hosts that are connected to it: what each host knows, and what the target may send it.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use homi_queue::GatherList;
use homi_spec::command::AdminOpcode;
use homi_spec::controller::Cc;
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, Property, PropertySet, PropertySize};
use homi_spec::tcp::{C2HData, CapsuleResp, H2CData, IcReq, IcResp, PduType, R2t, dgst, flags};
use homi_spec::{Cqe, Nqn, Sgl, Sqe};
use homi_target::Config;
use homi_target::memory::{Connection, MemoryTarget};
use zerocopy::IntoBytes;

use super::wire::{self, Layout};

/// In-capsule data of I/O queues, as configured.
pub(super) const IN_CAPSULE: usize = 4096;
/// The largest transfer, as configured.
pub(super) const MAX_TRANSFER: usize = 16 << 10;
pub(super) const HOST_ID: [u8; 16] = *b"fuzzing host id!";

/// Configurations that a target changes between; the first is the one that it starts with. Buffers are so scarce that commands
/// wait for them.
const CONFIGS: [&str; 4] = [
    r#"
    [[subsystem]]
    nqn = "nqn.2026-01.org.example:a"
    allow_any_host = true
    namespace = [{ nsid = 1, ram = "64K", block_size = 512 },
                 { nsid = 2, ram = "64K", block_size = 4096, read_only = true },
                 { nsid = 7, ram = "32K", block_size = 4096 }]
    [[subsystem]]
    nqn = "nqn.2026-01.org.example:b"
    allow = ["nqn.2026-01.org.example:host-1"]
    namespace = [{ nsid = 1, ram = "32K" }]
    "#,
    r#"
    [[subsystem]]
    nqn = "nqn.2026-01.org.example:a"
    allow_any_host = true
    namespace = [{ nsid = 1, ram = "32K", block_size = 512 }, { nsid = 3, ram = "32K" }]
    [[subsystem]]
    nqn = "nqn.2026-01.org.example:b"
    allow = ["nqn.2026-01.org.example:host-0", "nqn.2026-01.org.example:host-1"]
    "#,
    r#"
    [[discovery.referral]]
    address = "127.0.0.2:8009"
    [[subsystem]]
    nqn = "nqn.2026-01.org.example:a"
    allow = ["nqn.2026-01.org.example:host-0"]
    namespace = [{ nsid = 1, ram = "64K", block_size = 512, read_only = true }]
    "#,
    "",
];

const COMMON: &str = r#"
    [node]
    buffers = "32K"
    max_transfer = "16K"
    in_capsule = "4K"
    [limits]
    controllers_per_host = 3
    io_queues = 3
    queue_entries = 64
    [[listener]]
    address = "127.0.0.1:4420"
"#;

/// The configurations, parsed once.
pub(super) static PARSED: LazyLock<Vec<Config>> = LazyLock::new(|| {
    CONFIGS
        .iter()
        .map(|text| {
            let config: Config =
                toml::from_str(&format!("{COMMON}{text}")).expect("the configuration is right");
            config.check().expect("the configuration is consistent");
            config
        })
        .collect()
});

/// A configuration as a file holds it.
pub(super) fn source(index: usize) -> Option<String> {
    CONFIGS.get(index).map(|text| format!("{COMMON}{text}"))
}

/// A target with the first configuration.
pub(super) fn target() -> MemoryTarget {
    let config = PARSED.first().expect("there are configurations");
    MemoryTarget::new(config).expect("memory can be had")
}

pub(super) fn subsystem(which: usize) -> Nqn {
    let name = match which % 4 {
        0 => "nqn.2026-01.org.example:a",
        1 => "nqn.2026-01.org.example:b",
        2 => return Nqn::discovery(),
        _ => "nqn.2026-01.org.example:none",
    };
    Nqn::new(name).expect("a valid name")
}

pub(super) fn host(which: usize) -> Nqn {
    Nqn::new(&format!("nqn.2026-01.org.example:host-{}", which % 2)).expect("a valid name")
}

/// A command that the target has not answered.
#[derive(Debug)]
struct Outstanding {
    /// Bytes that its descriptor offers.
    declared: usize,
    /// It may be held for as long as the controller lives.
    held: bool,
}

/// An R2T that was not followed by its data yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) cid: u16,
    pub(super) ttag: u16,
    pub(super) at: usize,
    pub(super) len: usize,
}

/// How bytes go to the target.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivery {
    /// Bytes at a time; zero for all at once.
    pub(super) piece: usize,
    /// Through [`MemoryTarget::landing`] where it offers memory.
    pub(super) landing: bool,
}

/// One connection, from the host's side.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) connection: Connection,
    /// Of what this host sends.
    send: Layout,
    /// Of what the target sends.
    receive: Layout,
    pub(super) initialised: bool,
    /// It said something that no host says, so only the form of what the target sends is judged.
    pub(super) wild: bool,
    outstanding: BTreeMap<u16, Vec<Outstanding>>,
    pub(super) asks: Vec<Ask>,
    /// Commands in flight that the queue takes.
    limit: usize,
    next_cid: u16,
    connecting: Option<u16>,
    /// Entries that the last Connect asked for.
    entries: usize,
    pub(super) controller: Option<u16>,
    pub(super) io: bool,
    /// The last answers, by command id.
    pub(super) answers: BTreeMap<u16, (Cqe, usize)>,
    moved: BTreeMap<u16, usize>,
    pub(super) answered: usize,
    pub(super) bytes_in: usize,
    /// All data that came, if it is to be kept.
    pub(super) kept: Option<Vec<u8>>,
}

impl Remote {
    pub(super) fn open(target: &mut MemoryTarget) -> Self {
        Self {
            connection: target.connect().expect("a connection is taken"),
            send: Layout::PLAIN,
            receive: Layout::PLAIN,
            initialised: false,
            wild: false,
            outstanding: BTreeMap::new(),
            asks: Vec::new(),
            limit: 1,
            next_cid: 1,
            connecting: None,
            entries: 0,
            controller: None,
            io: false,
            answers: BTreeMap::new(),
            moved: BTreeMap::new(),
            answered: 0,
            bytes_in: 0,
            kept: None,
        }
    }

    /// Commands that were not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.outstanding.values().map(Vec::len).sum()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.limit
    }

    /// Whether a command that must be answered was not.
    pub(super) fn waits(&self) -> bool {
        self.outstanding.values().flatten().any(|command| !command.held)
    }

    pub(super) fn a_cid_in_flight(&self, which: usize) -> Option<u16> {
        self.outstanding
            .keys()
            .nth(which % self.outstanding.len().max(1))
            .copied()
    }

    pub(super) fn fresh_cid(&mut self) -> u16 {
        while self.outstanding.contains_key(&self.next_cid) {
            self.next_cid = self.next_cid.wrapping_add(1);
        }
        let cid = self.next_cid;
        self.next_cid = cid.wrapping_add(1);
        cid
    }

    /// Any bytes.
    pub(super) fn send_bytes(&mut self, target: &mut MemoryTarget, bytes: &[u8], delivery: Delivery) {
        let piece = if delivery.piece == 0 {
            bytes.len()
        } else {
            delivery.piece
        };
        for part in bytes.chunks(piece.max(1)) {
            let mut rest = part;
            while delivery.landing && !rest.is_empty() {
                let Some(segment) = target.landing(self.connection, 1) else {
                    break;
                };
                let (bytes, after) = rest.split_at(segment.len().min(rest.len()));
                segment
                    .region()
                    .write(segment.start(), bytes)
                    .expect("within the segment");
                drop(segment);
                target.landed(self.connection, bytes.len());
                rest = after;
            }
            if !rest.is_empty() {
                target.receive(self.connection, rest);
            }
        }
    }

    /// Initialises the connection.
    pub(super) fn initialise(
        &mut self,
        target: &mut MemoryTarget,
        digests: u8,
        hpda_z: u8,
        delivery: Delivery,
    ) {
        let request = IcReq::new(hpda_z, digests & (dgst::HEADER | dgst::DATA), 0);
        self.receive = Layout::new(false, false, hpda_z);
        self.send_bytes(target, request.as_bytes(), delivery);
        self.collect(target);
    }

    /// A command, with data in its capsule. Its id is set by the caller; its descriptor is judged as it is.
    pub(super) fn send_command(
        &mut self,
        target: &mut MemoryTarget,
        sqe: &Sqe,
        data: &[u8],
        delivery: Delivery,
    ) {
        let cid = sqe.cid.get();
        let declared = usize::try_from(sqe.sgl().parse().data_length()).unwrap_or(usize::MAX);
        let held = sqe.admin_opcode() == AdminOpcode::ASYNC_EVENT_REQUEST && !self.io;
        let command = Outstanding { declared, held };
        self.outstanding.entry(cid).or_default().push(command);
        self.answers.remove(&cid);
        self.moved.remove(&cid);
        let bytes = wire::capsule(self.send, sqe, data);
        self.send_bytes(target, &bytes, delivery);
    }

    /// Connect, as a host would or not.
    pub(super) fn connect(
        &mut self,
        target: &mut MemoryTarget,
        command: ConnectCommand,
        data: &ConnectData,
        delivery: Delivery,
    ) {
        let cid = self.fresh_cid();
        let mut sqe = command.to_sqe(cid, Sgl::in_capsule(0, 1024));
        sqe.cid = cid.into();
        self.connecting = Some(cid);
        self.entries = usize::from(command.sqsize_z) + 1;
        self.io = command.qid != 0;
        self.send_command(target, &sqe, data.as_bytes(), delivery);
        self.collect(target);
    }

    /// The data that an R2T asks for, or any part of it with any flag.
    pub(super) fn send_data(
        &mut self,
        target: &mut MemoryTarget,
        header: H2CData,
        last: bool,
        payload: &[u8],
        delivery: Delivery,
    ) {
        let flag = if last { flags::LAST_PDU } else { 0 };
        let bytes = wire::unit(self.send, PduType::H2C_DATA, flag, header, payload);
        self.send_bytes(target, &bytes, delivery);
    }

    /// Everything that one R2T asks for, in units of at most `most` bytes.
    pub(super) fn follow(&mut self, target: &mut MemoryTarget, ask: Ask, most: usize, delivery: Delivery) {
        let most = most.clamp(1, MAX_TRANSFER);
        let mut at = 0;
        while at < ask.len {
            let len = most.min(ask.len - at);
            let header = data_header(ask.cid, ask.ttag, ask.at + at, len);
            at += len;
            self.send_data(target, header, at == ask.len, &vec![0x5a; len], delivery);
        }
    }

    /// Takes what the target sent and judges it.
    pub(super) fn collect(&mut self, target: &mut MemoryTarget) {
        while let Some(list) = target.output(self.connection, GatherList::new()) {
            let bytes = list.to_vec();
            let layout = (!self.wild).then_some(self.receive);
            for unit in wire::split(&bytes, layout) {
                self.unit(&unit);
            }
        }
    }

    fn unit(&mut self, unit: &wire::Unit<'_>) {
        match unit.kind() {
            PduType::IC_RESP => {
                let response: IcResp = unit.read();
                assert!(response.maxh2cdata.get() >= 4096);
                assert_eq!(response.reserved16, [0; 112]);
                let has = |bit| response.dgst & bit != 0;
                let (header, data) = (has(dgst::HEADER), has(dgst::DATA));
                self.send = Layout::new(header, data, response.cpda_z);
                self.receive = Layout {
                    header_digest: header,
                    data_digest: data,
                    ..self.receive
                };
                assert!(!self.initialised || self.wild, "a connection is initialised once");
                self.initialised = true;
            }
            PduType::C2H_TERM_REQ => {
                assert!(self.wild, "a host that keeps to the protocol is not thrown out");
            }
            PduType::CAPSULE_RESP => self.response(unit.read::<CapsuleResp>().cqe),
            PduType::C2H_DATA => {
                let data: C2HData = unit.read();
                let cid = data.cccid.get();
                let [at, len] =
                    [data.datao, data.datal].map(|field| usize::try_from(field.get()).unwrap_or(0));
                assert_eq!(len, unit.payload.len());
                assert_eq!((data.reserved10, data.reserved20), ([0; 2], [0; 4]));
                self.bytes_in += len;
                if let Some(kept) = &mut self.kept {
                    kept.extend_from_slice(unit.payload);
                }
                let moved = self.moved.entry(cid).or_default();
                if !self.wild {
                    assert_eq!(at, *moved, "data comes in order");
                    let room = self.outstanding.get(&cid).into_iter().flatten();
                    let room = room.map(|command| command.declared).max();
                    assert!(
                        room.is_some_and(|room| at + len <= room),
                        "data fits what was offered"
                    );
                }
                *moved += len;
                if unit.has(flags::SUCCESS) {
                    assert!(unit.has(flags::LAST_PDU));
                    self.response(Cqe::new(cid));
                }
            }
            PduType::R2T => {
                let ask: R2t = unit.read();
                let [at, len] = [ask.r2to, ask.r2tl].map(|field| usize::try_from(field.get()).unwrap_or(0));
                let cid = ask.cccid.get();
                assert!(len > 0);
                assert_eq!(ask.reserved20, [0; 4]);
                if !self.wild {
                    let room = self.outstanding.get(&cid).into_iter().flatten();
                    let room = room.map(|command| command.declared).max();
                    assert!(
                        room.is_some_and(|room| at + len <= room),
                        "nothing is asked for that was not offered"
                    );
                }
                let ttag = ask.ttag.get();
                self.asks.push(Ask { cid, ttag, at, len });
            }
            other => unreachable!("a controller does not send {other}"),
        }
    }

    fn response(&mut self, cqe: Cqe) {
        let cid = cqe.cid.get();
        self.answered += 1;
        let moved = self.moved.remove(&cid).unwrap_or(0);
        self.answers.insert(cid, (cqe, moved));
        if let Some(commands) = self.outstanding.get_mut(&cid) {
            commands.pop();
            if commands.is_empty() {
                self.outstanding.remove(&cid);
            }
        } else {
            assert!(self.wild, "command {cid} was answered twice, or never sent");
        }
        self.asks.retain(|ask| ask.cid != cid);
        if self.connecting == Some(cid) {
            self.connecting = None;
            if cqe.status().is_success() {
                self.controller = u16::try_from(cqe.dw0.get() & 0xffff).ok();
                self.limit = self.entries;
            }
        }
    }
}

/// The header of a unit with data.
pub(super) fn data_header(cid: u16, ttag: u16, at: usize, len: usize) -> H2CData {
    let field = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).into();
    H2CData {
        cccid: cid.into(),
        ttag: ttag.into(),
        datao: field(at),
        datal: field(len),
        ..H2CData::default()
    }
}

/// CC for an enabled controller, as hosts write it.
pub(super) fn enabled() -> Cc {
    Cc::default().with_enabled(true).with_standard_entry_sizes()
}

/// Sets CC.
pub(super) fn configure(value: u32) -> Sqe {
    PropertySet {
        size: PropertySize::Four,
        property: Property::CC,
        value: value.into(),
    }
    .to_sqe(0)
}

/// An admin connection with an enabled controller of the first subsystem, and `queues` I/O queues of `entries` entries.
pub(super) fn association(
    target: &mut MemoryTarget,
    queues: u16,
    entries: u16,
    cattr: u8,
    digests: u8,
) -> Vec<Remote> {
    let mut remotes: Vec<Remote> = Vec::new();
    for qid in 0..=queues {
        let delivery = Delivery::default();
        let mut remote = Remote::open(target);
        remote.initialise(target, digests, 0, delivery);
        let controller = remotes.first().and_then(|admin| admin.controller);
        let command = ConnectCommand {
            recfmt: 0,
            qid,
            sqsize_z: if qid == 0 { 31 } else { entries.max(2) - 1 },
            cattr,
            kato_ms: if qid == 0 { 60_000 } else { 0 },
        };
        let data = ConnectData::new(
            HOST_ID,
            controller.unwrap_or(CNTLID_DYNAMIC),
            &subsystem(0),
            &host(0),
        );
        remote.connect(target, command, &data, delivery);
        assert!(remote.controller.is_some(), "{:?}", remote.answers);
        if qid == 0 {
            let mut sqe = configure(enabled().0);
            sqe.cid = remote.fresh_cid().into();
            remote.send_command(target, &sqe, &[], delivery);
            remote.collect(target);
            assert_eq!(remote.in_flight(), 0);
        }
        remotes.push(remote);
    }
    remotes
}

/// Ends every connection, hostile ones first, and checks that whoever kept to the protocol got all answers.
pub(super) fn finish(target: &mut MemoryTarget, mut remotes: Vec<Remote>) {
    remotes.retain(|remote| {
        let keep = !remote.wild && target.is_open(remote.connection);
        if !keep {
            target.close(remote.connection);
        }
        keep
    });
    let mut turns = 0;
    loop {
        let executing = target.poll();
        let mut followed = false;
        for remote in &mut remotes {
            remote.collect(target);
            for ask in std::mem::take(&mut remote.asks) {
                followed = true;
                remote.follow(target, ask, 4096, Delivery::default());
            }
        }
        if !executing && !followed {
            break;
        }
        turns += 1;
        assert!(turns < 10_000, "commands end");
    }
    for remote in &mut remotes {
        remote.collect(target);
        if target.is_open(remote.connection) {
            assert!(!remote.waits(), "not answered: {:?}", remote.outstanding);
        }
        target.close(remote.connection);
    }
    assert_eq!(target.connections(), 0);
    target.pass(Duration::from_secs(600));
}
