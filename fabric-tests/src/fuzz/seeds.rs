//! The seed corpora: valid traffic, recorded from both ends working together, and short sequences of events.
//!
//! `cargo run -p fabric-tests --bin fuzz-seeds` writes them to `fuzz/corpus`; a test holds the files to what is made here.

use std::path::PathBuf;
use std::time::Duration;

use homi_fabric::host::{Answer, BringUp, BringUpParams, Discovery, DiscoveryStep, Step, StepData};
use homi_fabric::time::Instant;
use homi_queue::{Command, Completion};
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData};
use homi_spec::identify::{Cns, Identify};
use homi_spec::{Cqe, Nqn, Sgl, Sqe, Status, admin};
use homi_target::memory::MemoryTarget;
use zerocopy::IntoBytes;

use super::controller_end::{self, Controller};
use super::host_end::{self, Host};
use super::host_events;
use super::rdma_wire::{Named, plain_bytes};
use super::target_end::{self, Delivery, HOST_ID, Remote, host, subsystem};
use super::target_events::{Event, record, session};
use super::{rdma_controller, rdma_host};

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The body that it is for.
    pub body: &'static str,
    /// What it holds.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
}

/// Where the corpora lie.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// All seeds, the same each time.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |body, name, bytes| seeds.push(Seed { body, name, bytes });
    connections(&mut add);
    commands(&mut add);
    connects(&mut add);
    controller_sequences(&mut add);
    host_sequences(&mut add);
    answers(&mut add);
    rdma_controllers(&mut add);
    rdma_hosts(&mut add);
    for (name, bytes) in super::driver_seeds::all() {
        add("driver", name, bytes);
    }
    wire_types(&mut add);
    texts(&mut add);
    seeds
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &'static str, Vec<u8>);

/// Bytes of a sequence of events.
#[derive(Debug, Default)]
struct Script(Vec<u8>);

impl Script {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn word(self, word: u16) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    fn event(self, event: Event, details: &[u8]) -> Self {
        self.bytes(&[event as u8]).bytes(details)
    }

    fn host(self, event: host_events::Event, details: &[u8]) -> Self {
        self.bytes(&[event as u8]).bytes(details)
    }
}

// ---- both connections ----

/// What both ends say to each other until they have nothing left to say: the host's bytes and the controller's.
fn conversation(digests: u8, kinds: &[u8], budget: usize) -> (Vec<u8>, Vec<u8>) {
    let mut host = Host::new(host_end::Setup(digests), kinds, budget);
    let mut controller = Controller::new(controller_setup(digests), 0);
    let (mut said, mut heard) = (Vec::new(), Vec::new());
    loop {
        let out = host.drain();
        controller.feed(&out, 4096, false);
        let back = controller.drain();
        host.feed(&back, 4096, false);
        said.extend_from_slice(&out);
        heard.extend_from_slice(&back);
        if out.is_empty() && back.is_empty() {
            return (said, heard);
        }
    }
}

fn controller_setup(digests: u8) -> controller_end::Setup {
    controller_end::Setup(digests | controller_end::Setup::CONNECTED)
}

fn connections(add: Add<'_>) {
    let both = host_end::Setup::HEADER_DIGEST | host_end::Setup::DATA_DIGEST;
    for (to_controller, to_host, digests, kinds, budget) in [
        ("small", "small", 0, &[0, 2, 4][..], 6),
        ("large", "large", 0, &[1, 3], 2),
        (
            "header-digest",
            "header-digest",
            host_end::Setup::HEADER_DIGEST,
            &[0, 2],
            4,
        ),
        ("digests", "digests", both, &[0, 2, 7], 3),
        ("scattered", "scattered", 0, &[6, 7, 5], 3),
    ] {
        let (said, heard) = conversation(digests, kinds, budget);
        let setup = controller_setup(digests).0;
        for (name, bits, piece) in [(to_controller, 0, 0), ("", controller_end::Setup::LANDING, 100)] {
            let mut bytes = vec![setup | bits, piece, 0];
            bytes.extend_from_slice(&said);
            if !name.is_empty() {
                add("pdus_to_controller", name, bytes);
            } else if digests == both {
                bytes.splice(0..1, [setup | bits | controller_end::Setup::REPAIR]);
                add("pdus_to_controller", "landing", bytes);
            }
        }
        let count = u8::try_from(kinds.len()).unwrap_or(0);
        let mut bytes = vec![digests, 0, count];
        bytes.extend_from_slice(kinds);
        bytes.extend_from_slice(&heard);
        if digests == both {
            let mut landing = bytes.clone();
            landing.splice(
                0..2,
                [digests | host_end::Setup::LANDING | host_end::Setup::REPAIR, 100],
            );
            add("pdus_to_host", "landing", landing);
        }
        add("pdus_to_host", to_host, bytes);
    }
}

// ---- a whole target ----

fn commands(add: Add<'_>) {
    let io = [
        Command::write(1, 0, 1),
        Command::read(1, 0, 8),
        Command::write(1, 8, 20),
        Command::compare(1, 0, 1),
        Command::write_zeroes(1, 4, 2, true),
        Command::flush(1),
        Command::flush(u32::MAX),
        Command::deallocate(1, 1),
        Command::verify(2, 0, 4),
        Command::write(2, 0, 1),
        Command::read(7, 100, 1),
        Command::read(9, 0, 1),
    ];
    let mut script = Script::default().bytes(&[session::NO_FLOW_CONTROL, 0]);
    for command in io {
        let flags = record::IO | record::FIT | record::FLAGS;
        script = script.bytes(&[flags]).bytes(command.0.as_bytes());
    }
    add("capsules", "io", script.0);
    let mut script = Script::default().bytes(&[session::HEADER_DIGEST | session::DATA_DIGEST, 33]);
    for command in io.iter().take(4) {
        let data = if command.opcode() == homi_spec::command::NvmOpcode::WRITE {
            512_u16
        } else {
            0
        };
        let flags = record::IO | record::FIT | record::FLAGS | record::PIPELINE;
        let flags = if data > 0 { flags | record::DATA } else { flags };
        script = script.bytes(&[flags]).bytes(command.0.as_bytes());
        if data > 0 {
            script = script.word(data).bytes(&[1; 512]);
        }
    }
    add("capsules", "pipelined", script.0);
    let mut script = Script::default().bytes(&[0, 0]);
    for sqe in admin_commands() {
        script = script.bytes(&[record::FIT | record::FLAGS]).bytes(sqe.as_bytes());
    }
    add("capsules", "admin", script.0);
}

/// One of each admin command.
fn admin_commands() -> Vec<Sqe> {
    let mut commands = Vec::new();
    for cns in [0, 1, 2, 3, 5, 6, 7, 8, 0x1c] {
        commands.push(Identify::namespace(Cns(cns), u32::from(cns % 6 == 0)).to_sqe(0));
    }
    for log in [0, 1, 2, 3, 4, 5, 0x70] {
        let mut sqe = Sqe::new(homi_spec::command::AdminOpcode::GET_LOG_PAGE.0, 0);
        sqe.cdw10 = (log | 127 << 16).into();
        commands.push(sqe);
    }
    for feature in [1_u32, 2, 4, 5, 6, 7, 0xb, 0xf, 0x80] {
        for opcode in [0x0a, 0x09] {
            let mut sqe = Sqe::new(opcode, 0);
            sqe.cdw10 = feature.into();
            sqe.cdw11 = 0x0001_0001.into();
            commands.push(sqe);
        }
    }
    commands.push(admin::async_event_request(0));
    commands.push(admin::keep_alive(0));
    commands.push(admin::Abort { sqid: 1, cid: 1 }.to_sqe(0));
    commands
}

fn connects(add: Add<'_>) {
    let record = |mode: u8, command: ConnectCommand, data: &ConnectData| {
        Script::default()
            .bytes(&[mode])
            .word(command.recfmt)
            .word(command.qid)
            .word(command.sqsize_z)
            .bytes(&[command.cattr])
            .bytes(&command.kato_ms.to_le_bytes())
            .bytes(data.as_bytes())
            .0
    };
    let admin = ConnectCommand {
        sqsize_z: 31,
        kato_ms: 10_000,
        ..ConnectCommand::default()
    };
    let queue = ConnectCommand {
        qid: 1,
        sqsize_z: 63,
        cattr: ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL,
        ..ConnectCommand::default()
    };
    let data = |which| ConnectData::new(HOST_ID, CNTLID_DYNAMIC, &subsystem(which), &host(0));
    let mut both = record(0, admin, &data(0));
    both.extend(record(4, queue, &data(0)));
    add("connect_data", "association", both);
    add("connect_data", "discovery", record(0, admin, &data(2)));
    add("connect_data", "not-allowed", record(0, admin, &data(1)));
    add("connect_data", "unknown", record(0, admin, &data(3)));
    add("connect_data", "no-controller", record(0, queue, &data(0)));
}

fn controller_sequences(add: Add<'_>) {
    use Event as E;
    // An association with two queues of 8 entries; queue 1 is connection 1.
    let association = || Script::default().event(E::Association, &[2, 7, 0, 0]);
    let io = |script: Script, kind: u8, blocks: u8, how: u8| {
        script.event(E::Io, &[1, kind, 0, 3, blocks - 1, how])
    };
    let mut script = association();
    for kind in 0..9 {
        script = io(script, kind, 4, 0).event(E::Collect, &[1]);
    }
    add("controller_events", "io", script.0);
    // Writes that are larger than a capsule, more than there are buffers for, their data in pieces.
    let mut script = association().event(E::Delivery, &[101]);
    for _ in 0..4 {
        script = io(script, 2, 32, 4);
    }
    for _ in 0..6 {
        script = script.event(E::Collect, &[1]).event(E::Follow, &[1, 20, 0]);
    }
    add("controller_events", "solicited", script.0);
    // The connection with an unanswered R2T goes away, and another one waits for its buffer.
    let script = association();
    let script = io(io(script, 2, 32, 4), 2, 32, 4).event(E::Io, &[2, 2, 0, 3, 31, 4]);
    let script = script
        .event(E::Collect, &[1])
        .event(E::Close, &[1])
        .event(E::Collect, &[1]);
    add("controller_events", "buffers-come-back", script.0);
    let script = association().event(E::Admin, &[0, 4, 0, 0, 0, 0, 0, 0]);
    let script = io(script, 0, 8, 0).event(E::Apply, &[1]).event(E::Collect, &[0]);
    let script = io(script, 0, 8, 0)
        .event(E::Apply, &[3])
        .event(E::Collect, &[0])
        .event(E::Apply, &[0]);
    add("controller_events", "reconfigured", script.0);
    let script = association().event(E::Admin, &[0, 4, 0, 0, 0, 0, 0, 0]);
    let script = io(script, 2, 32, 4)
        .event(E::Abort, &[0, 1, 0, 1, 0])
        .event(E::Collect, &[0]);
    let script = script
        .event(E::Pass, &[0, 1])
        .event(E::Pass, &[255, 255])
        .event(E::Collect, &[0]);
    add("controller_events", "abort-and-expiry", script.0);
    let mut script = Script::default();
    for (name, qid) in [(0, 0), (0, 1), (2, 0), (4, 0)] {
        let which = u8::try_from(script.0.iter().filter(|byte| **byte == E::Open as u8).count()).unwrap_or(0);
        script = script.event(E::Open, &[]).event(E::Initialise, &[which, 0, 0]);
        script = script.event(E::Connect, &[which, name, 0, 0, qid, 0, 0, 0, 4, 0]);
    }
    let script = script
        .event(E::Enable, &[0, 5])
        .event(E::Enable, &[0, 1])
        .event(E::Enable, &[0, 0]);
    add("controller_events", "connects", script.0);
    let mut script = association();
    for kind in 0..9 {
        script = script
            .event(E::Admin, &[0, kind, 1, 3, 1, 0, 0, 0])
            .event(E::Collect, &[0]);
    }
    add("controller_events", "admin", script.0);
    // The read is answered, but not sent, when the write changes its blocks.
    let script = Script::default().event(E::Association, &[2, 7, 0, 3]);
    let script = io(io(script, 0, 4, 0), 2, 4, 8).event(E::Collect, &[1]);
    add("controller_events", "read-then-write", script.0);
    let (said, _) = conversation(0, &[0, 2, 4], 3);
    let len = u16::try_from(said.len()).unwrap_or(u16::MAX);
    let script = association()
        .event(E::Open, &[])
        .event(E::Bytes, &[3])
        .word(len)
        .bytes(&said);
    let script = script.event(E::Stray, &[1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    add(
        "controller_events",
        "hostile-beside-others",
        io(script, 0, 8, 0).0,
    );
}

fn host_sequences(add: Add<'_>) {
    use host_events::Event as E;
    let mut script = Script(vec![0]);
    for kind in [0, 1, 2, 3, 4] {
        script = script.host(E::Submit, &[kind]);
    }
    // The reads get their data in two parts, the write is asked for in three.
    let script = script
        .host(E::Drain, &[])
        .host(E::Give, &[0, 255, 1])
        .host(E::Give, &[1, 63])
        .host(E::Give, &[1, 255, 0])
        .host(E::Ask, &[0, 31])
        .host(E::Ask, &[0, 31])
        .host(E::Drain, &[])
        .host(E::Ask, &[0, 255])
        .host(E::Drain, &[]);
    let mut whole = script;
    for _ in 0..4 {
        whole = whole.host(E::Respond, &[0, 1]);
    }
    add("host_events", "every-command", whole.0);
    let both = host_end::Setup::HEADER_DIGEST | host_end::Setup::DATA_DIGEST;
    let script = Script(vec![both])
        .host(E::Submit, &[6])
        .host(E::Submit, &[7])
        .host(E::Submit, &[5])
        .host(E::Delivery, &[151])
        .host(E::Give, &[0, 255, 0])
        .host(E::Ask, &[0, 95])
        .host(E::Drain, &[])
        .host(E::Respond, &[0, 1])
        .host(E::Give, &[0, 255, 0]);
    add("host_events", "scattered-with-digests", script.0);
    for (name, event, details) in [
        ("wrong-response", E::WrongResponse, &[9, 9, 0, 0, 0][..]),
        ("wrong-data", E::WrongData, &[0, 0, 0, 0, 0, 0, 2, 4]),
        ("wrong-ask", E::WrongAsk, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
        ("second-response", E::Initialise, &[0, 0]),
        ("terminated", E::Terminate, &[2, 0, 1, 0, 0, 0]),
    ] {
        let script = Script(vec![0])
            .host(E::Submit, &[1])
            .host(E::Submit, &[3])
            .host(E::Drain, &[]);
        add("host_events", name, script.host(event, details).0);
    }
}

// ---- a host's sequences, answered by a target ----

/// Executes one command at a target and waits for its answer.
fn execute(
    target: &mut MemoryTarget,
    remote: &mut Remote,
    command: &Command,
    data: &StepData,
) -> (Completion, Vec<u8>) {
    let mut sqe = command.0;
    let cid = remote.fresh_cid();
    sqe.cid = cid.into();
    sqe.flags = 0x40;
    let field = |len: usize| u32::try_from(len).unwrap_or(0);
    let capsule: &[u8] = match data {
        StepData::Out(bytes) => bytes,
        StepData::None | StepData::In(_) => &[],
    };
    sqe.set_sgl(match data {
        StepData::Out(bytes) => Sgl::in_capsule(0, field(bytes.len())),
        StepData::None => Sgl::transport(0),
        StepData::In(len) => Sgl::transport(field(*len)),
    });
    remote.kept = Some(Vec::new());
    remote.send_command(target, &sqe, capsule, Delivery::default());
    remote.collect(target);
    let (cqe, _) = remote
        .answers
        .get(&cid)
        .copied()
        .expect("an admin command is answered at once");
    (Completion::from(&cqe), remote.kept.take().unwrap_or_default())
}

/// An answer as [`host_answers`](super::host_answers) reads it.
fn encode(script: Script, completion: &Completion, data: &StepData, page: &[u8]) -> Script {
    let flags = if completion.is_success() { 0 } else { 240 };
    let mut script = script.bytes(&[flags]);
    if !completion.is_success() {
        script = script.word(completion.status.raw());
    }
    let [a, b, c, d, e, ..] = completion.result.to_le_bytes();
    script = script.bytes(&[a, b, c, d, e]);
    if let StepData::In(len) = data {
        let mut whole = page.to_vec();
        whole.resize(*len, 0);
        script = script.bytes(&whole);
    }
    script
}

fn answers(add: Add<'_>) {
    for (name, which) in [("bring-up", 0_u8), ("bring-up-discovery", 2)] {
        let mut target = target_end::target();
        let mut remote = Remote::open(&mut target);
        remote.initialise(&mut target, 0, 0, Delivery::default());
        let mut sequence = BringUp::new(BringUpParams {
            host_nqn: host(0),
            host_id: HOST_ID,
            subsystem: subsystem(which.into()),
            keep_alive: Duration::from_secs(10),
            admin_entries: 32,
            sq_flow_control: true,
            io_queues: 2,
        });
        let mut script = Script::default().bytes(&[0, which]).word(10_000).word(2);
        let mut now = Instant::ZERO;
        let mut step = sequence.next(None, now);
        loop {
            step = match step {
                Step::Submit { command, data } => {
                    let (completion, page) = execute(&mut target, &mut remote, &command, &data);
                    script = encode(script, &completion, &data, &page);
                    let answer = Answer {
                        completion,
                        data: &page,
                    };
                    sequence.next(Some(&answer), now)
                }
                Step::WaitUntil(time) => {
                    now = time;
                    sequence.next(None, now)
                }
                Step::Ready(_) => break,
                Step::Failed(error) => unreachable!("{error}"),
            };
        }
        add("host_answers", name, script.0);
        if which == 2 {
            add(
                "host_answers",
                "discovery",
                discovery_answers(&mut target, &mut remote),
            );
        }
    }
    // Shutdown: notified, processing, complete.
    let script = Script::default().bytes(&[2]).word(5000).bytes(&[1, 0, 0x46, 0]);
    let shutdown = script
        .bytes(&[0; 6])
        .bytes(&[0, 5, 0, 0, 0, 0])
        .bytes(&[0, 9, 0, 0, 0, 0]);
    add("host_answers", "shutdown", shutdown.0);
    let connect = Script::default()
        .bytes(&[4, 1])
        .word(1)
        .word(64)
        .bytes(&[0, 1, 0, 0, 0, 0]);
    add("host_answers", "queue", connect.0);
    let mut events = Script::default().bytes(&[5]).word(4);
    for round in 0..40_u8 {
        events = events.bytes(&[0, 2, 0, 4, 0, round]);
    }
    add("host_answers", "events", events.0);
    let pages = [
        Identify::namespace(Cns(0), 1),
        Identify::namespace(Cns(3), 1),
        Identify::namespace(Cns(2), 0),
    ];
    for (name, identify) in ["namespace", "descriptors", "list"].into_iter().zip(pages) {
        let page = identify_page(identify);
        let mut bytes = vec![3];
        bytes.extend(u32::from(name == "namespace").to_le_bytes());
        bytes.extend(page);
        add("host_answers", name, bytes);
    }
}

fn discovery_answers(target: &mut MemoryTarget, remote: &mut Remote) -> Vec<u8> {
    let mut sequence = Discovery::new(None);
    let mut script = Script::default().bytes(&[1, 0]);
    let mut step = sequence.next(None);
    loop {
        step = match step {
            DiscoveryStep::Submit { command, data } => {
                let (completion, page) = execute(target, remote, &command, &data);
                script = encode(script, &completion, &data, &page);
                sequence.next(Some(&Answer {
                    completion,
                    data: &page,
                }))
            }
            DiscoveryStep::Ready { records, .. } => {
                assert!(!records.is_empty());
                return script.0;
            }
            DiscoveryStep::Failed(error) => unreachable!("{error}"),
        };
    }
}

/// An identify page of a target.
fn identify_page(identify: Identify) -> Vec<u8> {
    let mut target = target_end::target();
    let mut remotes = target_end::association(&mut target, 0, 32, 0, 0);
    let admin = remotes.first_mut().expect("there is an admin queue");
    let (completion, page) = execute(
        &mut target,
        admin,
        &Command(identify.to_sqe(0)),
        &StepData::In(4096),
    );
    assert!(completion.is_success(), "{:?}", completion.status);
    page
}

// ---- RDMA queue pairs ----

impl Script {
    fn rdma(self, event: rdma_controller::Event, details: &[u8]) -> Self {
        self.bytes(&[event as u8]).bytes(details)
    }

    fn rdma_host(self, event: rdma_host::Event, details: &[u8]) -> Self {
        self.bytes(&[event as u8]).bytes(details)
    }

    /// A command with one keyed descriptor.
    fn keyed(self, opcode: u8, cid: u8, len: u16, invalidate: bool) -> Self {
        let flags = if invalidate { 0x80 } else { 0 };
        self.rdma(rdma_controller::Event::Capsule, &[opcode, cid, 0, flags])
            .word(len)
            .bytes(&[1, cid])
    }

    /// A capsule as it is.
    fn capsule(self, opcode: u8, cid: u8, sgl: [u8; 16], after: &[u8]) -> Self {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2] = cid;
        entry[24..40].copy_from_slice(&sgl);
        let len = u16::try_from(entry.len() + after.len()).unwrap_or(0);
        self.rdma(rdma_controller::Event::Bytes, &[])
            .word(len)
            .bytes(&entry)
            .bytes(after)
            .bytes(&[2])
    }
}

fn rdma_controllers(add: Add<'_>) {
    use rdma_controller::Event as E;
    let mut add = |name, script: Script| add("rdma_controller", name, script.0);
    let (read, write, flush) = (0, 1, 3);
    // A write that is fetched, a read that is answered with data, and a flush, one after another and together.
    let script = Script(vec![0, 0, 0])
        .keyed(write, 1, 512, false)
        .keyed(read, 2, 4096, true)
        .keyed(flush, 3, 0, false)
        .rdma(E::Events, &[9])
        .rdma(E::Accept, &[0, 3, 1])
        .rdma(E::RespondData, &[1, 3, 2, 3])
        .rdma(E::Respond, &[2, 0, 0, 0, 0])
        .rdma(E::Work, &[9])
        .rdma(E::Returned, &[])
        .rdma(E::Complete, &[0])
        .rdma(E::Complete, &[0])
        .rdma(E::Complete, &[0])
        .rdma(E::Events, &[9])
        .rdma(E::Take, &[0])
        .rdma(E::Respond, &[0, 0, 0, 0, 0])
        .rdma(E::Work, &[9])
        .rdma(E::Returned, &[]);
    add("fetch-give-flush", script);
    let mut script = Script(vec![0, 0, 0]);
    for cid in 0..4 {
        script = script.keyed(write, cid, 9000 - 1, true);
    }
    // More READs than may be outstanding, to memory in several parts; one is cancelled.
    let script = script
        .rdma(E::Events, &[9])
        .rdma(E::Accept, &[0, 3, 4])
        .rdma(E::Accept, &[1, 3, 2])
        .rdma(E::Accept, &[2, 1, 0])
        .rdma(E::Work, &[9])
        .rdma(E::Cancel, &[0])
        .rdma(E::Complete, &[0])
        .rdma(E::Complete, &[0])
        .rdma(E::Work, &[9])
        .rdma(E::Events, &[9])
        .rdma(E::Take, &[0]);
    add("bounded-reads", script);
    let capsule = |name: &'static str, opcode, sgl, after: &[u8]| {
        let script = Script(vec![0, 0, 0]).capsule(opcode, 7, sgl, after);
        let script = script.rdma(E::Events, &[1]).rdma(E::Take, &[0]);
        let script = script.rdma(E::Accept, &[0, 3, 0]).rdma(E::Work, &[9]);
        (name, script.rdma(E::Complete, &[0]).rdma(E::Complete, &[0]))
    };
    let block = |address, len| {
        let named = Named {
            address,
            key: 0x1234,
            len,
            invalidate: true,
        };
        named.write()
    };
    let two = [block(0x1000, 512), block(0x9000, 100)].concat();
    for (name, script) in [
        capsule("in-capsule", 1, plain_bytes(0, 32, 1), &[7; 32]),
        capsule("in-capsule-behind-the-end", 1, plain_bytes(1, 32, 1), &[7; 32]),
        capsule("in-capsule-for-a-read", 2, plain_bytes(0, 32, 1), &[7; 32]),
        capsule("list", 1, plain_bytes(0, 32, 0x31), &two),
        capsule(
            "list-too-long",
            1,
            plain_bytes(0, 80, 0x31),
            &[two.as_slice(); 3].concat(),
        ),
        capsule("list-behind-the-end", 1, plain_bytes(16, 32, 0x31), &two),
        capsule(
            "list-of-lists",
            1,
            plain_bytes(0, 16, 0x31),
            &plain_bytes(0, 16, 0x31),
        ),
        capsule("address-wraps", 2, block(u64::MAX - 99, 512), &[]),
        capsule("segment", 2, plain_bytes(0x1000, 32, 0x20), &[]),
        capsule("too-long", 0, [0; 16], &[0; 600]),
    ] {
        add(name, script);
    }
    let short = Script(vec![0, 0, 0])
        .rdma(E::Bytes, &[63, 0])
        .bytes(&[0; 63])
        .bytes(&[2]);
    add("too-short", short);
    let mut script = Script(vec![0, 0, 0]);
    for cid in [1, 1, 2, 3, 4] {
        script = script.keyed(flush, cid, 0, false);
    }
    add("too-many", script.rdma(E::Events, &[9]));
    let script = Script(vec![0, 0, 0]).keyed(write, 1, 512, false);
    let script = script.keyed(read, 1, 512, false).rdma(E::Events, &[9]);
    add(
        "doubled-id",
        script.rdma(E::RespondData, &[1, 3, 0, 3]).rdma(E::Work, &[9]),
    );
    // The first commands come before the connection is established.
    let script = Script(vec![0x40, 0, 0])
        .keyed(flush, 1, 0, false)
        .rdma(E::Established, &[])
        .rdma(E::SetQueue, &[4, 0])
        .rdma(E::Events, &[9])
        .rdma(E::Respond, &[0, 0, 0, 0, 0])
        .rdma(E::Work, &[0]);
    add("early", script);
    // The end, with READs, WRITEs and a taken buffer outstanding.
    for (name, event, details) in [
        ("fails-with-data", E::Fail, &[0, 3, 0, 1, 0, 0, 0][..]),
        ("lost-with-data", E::Lost, &[]),
        ("stopped-with-data", E::Stopped, &[]),
        ("completion-of-nothing", E::WrongCompletion, &[0, 9, 9, 9, 9]),
    ] {
        let script = Script(vec![0, 0, 0])
            .keyed(write, 1, 8000, false)
            .keyed(read, 2, 8000, false)
            .capsule(1, 3, plain_bytes(0, 32, 1), &[7; 32])
            .rdma(E::Events, &[9])
            .rdma(E::Accept, &[0, 3, 3])
            .rdma(E::RespondData, &[1, 3, 3, 3])
            .rdma(E::Take, &[2])
            .rdma(E::Work, &[2])
            .rdma(event, details)
            .rdma(E::Returned, &[])
            .rdma(E::Respond, &[2, 0, 0, 0, 0]);
        add(name, script);
    }
    let private = |name, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).unwrap_or(0);
        let script = Script(vec![0, 0, 0]).rdma(E::Private, &[126, 16, 16, 128, 0, 8, len]);
        (name, script.bytes(bytes))
    };
    let mut request = [0; 56];
    request[..8].copy_from_slice(&[0, 0, 1, 0, 64, 0, 63, 0]);
    for (name, script) in [
        private("request", &request),
        private("request-too-short", &[0; 31]),
        private("accept", &[0, 0, 64, 0]),
        private("reject", &[0, 0, 6, 0]),
    ] {
        add(name, script);
    }
}

fn rdma_hosts(add: Add<'_>) {
    use rdma_host::Event as E;
    let mut add = |name, script: Script| add("rdma_host", name, script.0);
    let script = Script(vec![0, 0])
        .rdma_host(E::Submit, &[0, 7, 1])
        .rdma_host(E::Submit, &[2, 0, 0])
        .rdma_host(E::Submit, &[3, 15, 0x12])
        .rdma_host(E::Submit, &[7, 0, 0])
        .rdma_host(E::Work, &[9])
        .rdma_host(E::Respond, &[0, 1])
        .rdma_host(E::Respond, &[0, 0, 0])
        .rdma_host(E::Respond, &[0, 3])
        .rdma_host(E::Events, &[9])
        .rdma_host(E::Complete, &[0])
        .rdma_host(E::Events, &[9]);
    add("every-kind", script);
    // Parts, windows, a list of descriptors; the response invalidates one of its keys.
    let script = Script(vec![0, 0])
        .rdma_host(E::Submit, &[0, 20, 0x22])
        .rdma_host(E::Submit, &[2, 20, 0x23])
        .rdma_host(E::FlowControl, &[5])
        .rdma_host(E::Work, &[9])
        .rdma_host(E::Respond, &[0, 4, 1])
        .rdma_host(E::Respond, &[0, 4, 0])
        .rdma_host(E::Events, &[9]);
    add("windows", script);
    let script = Script(vec![0x30, 0])
        .rdma_host(E::Submit, &[0, 20, 0x07])
        .rdma_host(E::Submit, &[5, 1, 0])
        .rdma_host(E::Submit, &[0, 1, 0xf0])
        .rdma_host(E::Submit, &[0, 1, 0x8a, 0])
        .rdma_host(E::Submit, &[0, 15, 0x48])
        .rdma_host(E::Events, &[9]);
    add("refused", script);
    for (name, event, details) in [
        ("unknown-id", E::WrongResponse, &[0, 2, 0, 0, 0, 0][..]),
        ("late-id", E::WrongResponse, &[0, 1, 0, 0, 0, 0]),
        ("foreign-key", E::WrongResponse, &[0, 4, 0, 0, 0, 0, 77]),
        (
            "too-short",
            E::Bytes,
            &[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("completion-of-nothing", E::WrongCompletion, &[0, 9, 9, 9, 9]),
        ("fails", E::Fail, &[0, 1, 1]),
        ("stopped", E::Stopped, &[]),
    ] {
        let script = Script(vec![0, 0])
            .rdma_host(E::Submit, &[0, 7, 0x20])
            .rdma_host(E::Submit, &[2, 0, 0])
            .rdma_host(E::Work, &[9])
            .rdma_host(event, details)
            .rdma_host(E::Drain, &[])
            .rdma_host(E::Submit, &[0, 7, 1])
            .rdma_host(E::Drain, &[]);
        add(name, script);
    }
    let script = Script(vec![0, 0])
        .rdma_host(E::FlowControl, &[2])
        .rdma_host(E::Submit, &[7, 0, 0])
        .rdma_host(E::Work, &[9])
        .rdma_host(E::WrongResponse, &[0, 0, 2, 0, 0, 0]);
    add("head-behind-the-queue", script);
    let premature = Script(vec![0, 0])
        .rdma_host(E::Submit, &[7, 0, 0])
        .rdma_host(E::WrongResponse, &[0, 0, 0, 0, 0, 0]);
    add("premature", premature);
}

// ---- values ----

fn wire_types(add: Add<'_>) {
    let with = |kind: u8, bytes: &[u8]| Script::default().bytes(&[kind]).bytes(bytes).0;
    add("spec", "read", with(0, Command::read(1, 77, 8).0.as_bytes()));
    add(
        "spec",
        "deallocate",
        with(0, Command::deallocate(1, 3).0.as_bytes()),
    );
    add(
        "spec",
        "identify",
        with(0, Identify::controller().to_sqe(5).as_bytes()),
    );
    let connect = ConnectCommand::default().to_sqe(1, Sgl::in_capsule(0, 1024));
    add("spec", "connect", with(0, connect.as_bytes()));
    let keyed = Sgl::keyed(1 << 40, 4096, 77, true).expect("it is short enough");
    let mut sqe = Command::write(1, 0, 8).0;
    sqe.set_sgl(keyed);
    add("spec", "keyed", with(0, sqe.as_bytes()));
    let refused = Cqe::new(9).with_status(Status::LBA_OUT_OF_RANGE.with_dnr());
    add("spec", "completion", with(1, refused.as_bytes()));
    add(
        "spec",
        "controller-page",
        with(2, &identify_page(Identify::controller())),
    );
    let names = ConnectData::new(HOST_ID, 1, &subsystem(0), &host(0));
    add("spec", "connect-data", with(2, names.as_bytes()));
    add(
        "spec",
        "descriptors",
        with(3, &identify_page(Identify::namespace(Cns(3), 1))),
    );
    let negotiate = [0, 0, 0, 0, 1, 0, 0, 1];
    let mut message = negotiate.to_vec();
    message.extend([1, 0, 3, 6, 1, 2, 3]);
    message.resize(8 + 64, 0);
    add("spec", "negotiate", with(3, &message));
}

fn texts(add: Add<'_>) {
    let mut text = |name, text: &str| add("uri_and_config", name, text.as_bytes().to_vec());
    text(
        "tcp",
        "nvme+tcp://127.0.0.1:4420/nqn.2026-01.org.example:a?nsid=1",
    );
    text("tcp-v6", "nvme+tcp://[fe80::1]/nqn.2026-01.org.example:a%25b");
    text("discovery", "nvme+tcp://storage.example");
    text("file", "file:///srv/disk%20one.img?block=512");
    text("ram", "ram://64M?block=4096");
    text("size", "2GiB");
    text("name", Nqn::discovery().as_str());
    text(
        "uuid",
        "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef",
    );
    text("events", "io_uring");
    for (name, index) in [("config-namespaces", 0), ("config-referral", 2)] {
        if let Some(config) = target_end::source(index) {
            text(name, &config);
        }
    }
    text(
        "config-files",
        "[node]\nshards = 2\nevents = \"readiness\"\n[[subsystem]]\nnqn = \"nqn.2026-01.org.example:a\"\nserial = \"1\"\n\
         [[subsystem.namespace]]\nnsid = 1\npath = \"/dev/null\"\ncreate = \"1M\"\n\
         uuid = \"01234567-89ab-cdef-0123-456789abcdef\"\n",
    );
    text("config-wrong", "[node]\nshards = 0\n");
}
