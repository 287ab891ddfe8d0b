//! Hosts that say anything in any order: nothing panics, every command gets one answer, nothing is left behind.

use super::*;
use crate::controller::io::{self, IoLimits, Transfer};
use proptest::prelude::*;
use std::collections::BTreeMap;
use zerocopy::FromBytes;

fn any_sqe() -> impl Strategy<Value = Sqe> {
    let opcode = prop_oneof![
        4 => proptest::sample::select(vec![0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f]),
        1 => any::<u8>(),
    ];
    let nsid = prop_oneof![4 => 0_u32..10, 1 => any::<u32>()];
    let small = || prop_oneof![4 => 0_u32..0x20, 1 => 0x70_u32..0x90, 1 => 0_u32..0x400, 1 => any::<u32>()];
    let sgl = prop_oneof![
        2 => Just(Sgl::transport(4096)),
        1 => small().prop_map(|dwords| Sgl::transport(dwords.wrapping_mul(4))),
        1 => any::<[u8; 16]>().prop_map(Sgl),
    ];
    (
        opcode,
        nsid,
        sgl,
        any::<u16>(),
        [small(), small(), small(), small(), small()],
        any::<u8>(),
    )
        .prop_map(
            |(opcode, nsid, sgl, cid, [cdw10, cdw11, cdw12, cdw13, cdw14], flags)| {
                let mut sqe = Sqe::new(opcode, nsid);
                sqe.cid = cid.into();
                sqe.set_sgl(sgl);
                if flags < 8 {
                    sqe.flags = flags << 5 | flags;
                }
                sqe.cdw10 = cdw10.into();
                sqe.cdw11 = cdw11.into();
                sqe.cdw12 = cdw12.into();
                sqe.cdw13 = cdw13.into();
                sqe.cdw14 = cdw14.into();
                sqe
            },
        )
}

#[derive(Debug, Clone)]
enum Step {
    /// A Connect that mostly succeeds: an admin queue of one of the subsystems.
    Admin {
        port: u16,
        subsystem: u8,
        host: u32,
        kato_ms: u32,
        enable: bool,
    },
    /// A Connect that mostly succeeds: an I/O queue of an association that exists.
    Io {
        of: usize,
        qid: u16,
    },
    Connect {
        port: u16,
        command: ConnectCommand,
        subsystem: u8,
        host: u32,
        controller: u16,
        noise: Option<(u16, u8)>,
    },
    Cc {
        on: usize,
        value: u32,
    },
    Send {
        on: usize,
        sqe: Box<Sqe>,
        len: usize,
    },
    Closed {
        on: usize,
    },
    AbortFinished {
        on: usize,
        key: u16,
        aborted: bool,
    },
    Traffic {
        on: usize,
    },
    Apply {
        subsystems: u8,
        allow: u8,
        blocks: u64,
        ports: usize,
    },
    Fail {
        on: usize,
    },
    Wait {
        ms: u64,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let on = || 0_usize..8;
    let command = (
        0_u16..6,
        prop_oneof![4 => Just(63_u16), 1 => any::<u16>()],
        any::<u8>(),
        0_u32..500,
    )
        .prop_map(|(qid, sqsize_z, cattr, kato_ms)| ConnectCommand {
            recfmt: 0,
            qid,
            sqsize_z,
            cattr,
            kato_ms,
        });
    let controller = prop_oneof![2 => Just(DYNAMIC), 3 => 0_u16..6];
    let noise = proptest::option::weighted(0.1, (0_u16..1024, any::<u8>()));
    let cc = prop_oneof![
        4 => Just(ENABLE.0),
        1 => Just(0),
        1 => Just(ENABLE.0 | 1 << 14),
        1 => any::<u32>(),
    ];
    prop_oneof![
        4 => (1_u16..3, 0_u8..4, 1_u32..3, 0_u32..500, proptest::bool::weighted(0.8))
            .prop_map(|(port, subsystem, host, kato_ms, enable)| Step::Admin { port, subsystem, host, kato_ms, enable }),
        4 => (0_usize..8, 1_u16..5).prop_map(|(of, qid)| Step::Io { of, qid }),
        2 => (0_u16..4, command, 0_u8..4, 0_u32..4, controller, noise).prop_map(
            |(port, command, subsystem, host, controller, noise)|
                Step::Connect { port, command, subsystem, host, controller, noise }
        ),
        5 => (on(), cc).prop_map(|(on, value)| Step::Cc { on, value }),
        6 => (on(), any_sqe(), 0_usize..600).prop_map(|(on, sqe, len)| Step::Send { on, sqe: Box::new(sqe), len }),
        1 => on().prop_map(|on| Step::Closed { on }),
        1 => (on(), any::<u16>(), any::<bool>())
            .prop_map(|(on, key, aborted)| Step::AbortFinished { on, key, aborted }),
        1 => on().prop_map(|on| Step::Traffic { on }),
        1 => (1_u8..4, 0_u8..3, 1_u64..5, 1_usize..=2)
            .prop_map(|(subsystems, allow, blocks, ports)| Step::Apply { subsystems, allow, blocks, ports }),
        1 => on().prop_map(|on| Step::Fail { on }),
        1 => (0_u64..400).prop_map(|ms| Step::Wait { ms }),
    ]
}

fn subsystem_name(number: u8) -> Nqn {
    match number {
        0 => nqn("a"),
        1 => nqn("b"),
        2 => nqn("c"),
        _ => Nqn::discovery(),
    }
}

/// The runtime's side: what is connected, what waits for an answer, what has to be closed.
struct Runtime {
    bench: Bench,
    open: BTreeMap<ConnectionId, Grant>,
    held: BTreeSet<(ConnectionId, u16)>,
    aborts: Vec<(ConnectionId, u16)>,
    keys: u16,
}

impl Runtime {
    fn connection(&self, on: usize) -> Option<ConnectionId> {
        self.open.keys().nth(on % self.open.len().max(1)).copied()
    }

    fn connect(
        &mut self,
        port: u16,
        command: ConnectCommand,
        data: &ConnectData,
    ) -> Option<(ConnectionId, u16)> {
        let (id, result) = self.bench.try_connect(PortId(port), command, data);
        let grant = result.ok()?;
        assert!((2..=65536).contains(&grant.depth));
        let controller = grant.controller_id;
        self.open.insert(id, grant);
        Some((id, controller))
    }

    fn step(&mut self, step: Step) {
        let now = self.bench.now;
        match step {
            Step::Admin {
                port,
                subsystem,
                host: number,
                kato_ms,
                enable,
            } => {
                let command = ConnectCommand {
                    sqsize_z: 31,
                    kato_ms,
                    ..ConnectCommand::default()
                };
                let data = ConnectData::new(HOST_ID, DYNAMIC, &subsystem_name(subsystem), &host(number));
                if let Some((id, controller)) = self.connect(port, command, &data).filter(|_| enable) {
                    self.bench.set_cc(Admin { id, controller }, ENABLE).unwrap();
                }
            }
            Step::Io { of, qid } => {
                let report = self.bench.node.report();
                let Some(association) = report.associations.get(of % report.associations.len().max(1)) else {
                    return;
                };
                let command = ConnectCommand {
                    qid,
                    sqsize_z: 63,
                    ..ConnectCommand::default()
                };
                let AssociationReport {
                    controller_id,
                    subsystem,
                    host,
                    port,
                    ..
                } = association;
                self.connect(
                    port.0,
                    command,
                    &ConnectData::new(HOST_ID, *controller_id, subsystem, host),
                );
            }
            Step::Connect {
                port,
                command,
                subsystem,
                host: number,
                controller,
                noise,
            } => {
                let subsystem = subsystem_name(subsystem);
                let mut data = ConnectData::new(HOST_ID, controller, &subsystem, &host(number));
                if let Some((at, value)) = noise {
                    data.as_mut_bytes()[usize::from(at)] = value;
                }
                self.connect(port, command, &data);
            }
            Step::Cc { on, value } => {
                let Some(id) = self.connection(on) else { return };
                let set = PropertySet {
                    size: PropertySize::Four,
                    property: Property::CC,
                    value: value.into(),
                };
                self.bench.node.admin(id, 0, &set.to_sqe(0), &[], now);
            }
            Step::Send { on, sqe, len } => {
                let Some(id) = self.connection(on) else { return };
                // Connect goes elsewhere, and its data was asked for.
                let data = match Node::admin_data_from_host(&sqe) {
                    Ok(wanted) => vec![1; usize::try_from(wanted).unwrap()],
                    Err(_) => vec![1; len],
                };
                self.keys = self.keys.wrapping_add(1);
                let key = self.keys;
                match self.bench.node.admin(id, key, &sqe, &data, now) {
                    AdminOutcome::Complete { status, payload, .. } => {
                        assert!(status.is_success() || payload.is_empty());
                        let described = sqe.sgl().parse().data_length();
                        assert!(payload.is_empty() || u32::try_from(payload.len()) == Ok(described));
                    }
                    AdminOutcome::Held => assert!(self.held.insert((id, key))),
                    AdminOutcome::Disconnect { status } => {
                        assert!(status.is_success());
                        self.close(id);
                    }
                }
            }
            Step::Closed { on } => {
                if let Some(id) = self.connection(on) {
                    self.close(id);
                }
            }
            Step::AbortFinished { on, key, aborted } => {
                if let Some((admin, key)) = self.aborts.pop() {
                    self.bench.node.abort_finished(admin, key, aborted);
                } else if let Some(id) = self.connection(on) {
                    self.bench.node.abort_finished(id, key, aborted);
                }
            }
            Step::Traffic { on } => {
                let id = self.connection(on);
                if let Some(grant) = id.and_then(|id| self.open.get(&id)) {
                    grant.view.counters().read(512);
                    grant.view.record_error(1, Status::LBA_OUT_OF_RANGE, 1, 2);
                }
            }
            Step::Apply {
                subsystems,
                allow,
                blocks,
                ports,
            } => {
                let mut config = standard();
                config.subsystems[0].namespaces[1].blocks = blocks;
                config.subsystems[0].allow = if allow == 0 {
                    AllowList::Any
                } else {
                    hosts(&[allow.into()])
                };
                config.subsystems[1].exposure = Exposure::Everywhere;
                config.subsystems.truncate(subsystems.into());
                config.ports.truncate(ports);
                self.bench.apply(config);
            }
            Step::Fail { on } => {
                if let Some(id) = self.connection(on) {
                    self.bench.node.fail_controller(id);
                }
            }
            Step::Wait { ms } => self.bench.wait(ms),
        }
        self.drain();
    }

    fn close(&mut self, id: ConnectionId) {
        self.open.remove(&id);
        self.held.retain(|(connection, _)| *connection != id);
        self.aborts.retain(|(connection, _)| *connection != id);
        self.bench.node.closed(id, self.bench.now);
    }

    fn drain(&mut self) {
        while let Some(effect) = self.bench.node.poll_effect() {
            match effect {
                Effect::Close { connection, .. } => self.close(connection),
                Effect::Respond { connection, key, .. } => {
                    // Exactly one answer, unless the connection is gone.
                    if self.open.contains_key(&connection) {
                        assert!(
                            self.held.remove(&(connection, key)),
                            "{connection} {key} was answered twice"
                        );
                        self.aborts.retain(|abort| *abort != (connection, key));
                    }
                }
                Effect::Abort { admin, key, .. } => self.aborts.push((admin, key)),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_sequence_of_events(steps in proptest::collection::vec(any_step(), 0..120)) {
        let mut runtime = Runtime {
            bench: Bench::standard(),
            open: BTreeMap::new(),
            held: BTreeSet::new(),
            aborts: Vec::new(),
            keys: 0,
        };
        for step in steps {
            runtime.step(step);
            let (connections, associations) = runtime.bench.node.counts();
            prop_assert_eq!(connections, runtime.open.len());
            let report = runtime.bench.node.report();
            prop_assert_eq!(report.associations.len(), associations);
            // No association outlives its connections.
            let queues: usize = report.associations.iter().map(|association| association.queues.len()).sum();
            prop_assert_eq!(queues, connections);
        }
        while let Some(id) = runtime.connection(0) {
            runtime.close(id);
            runtime.drain();
        }
        prop_assert_eq!(runtime.bench.node.counts(), (0, 0));
        prop_assert!(runtime.held.is_empty());
        prop_assert_eq!(runtime.bench.node.next_deadline(), None);
    }

    #[test]
    fn any_connect(entry in any::<[u8; 64]>(), data in proptest::collection::vec(any::<u8>(), 1000..1048)) {
        let mut bench = Bench::standard();
        let mut sqe = Sqe::read_from_bytes(&entry).unwrap();
        let result = bench.node.connect(ConnectionId(1), PORT_1, &sqe, &data, bench.now);
        prop_assert!(result.is_err());
        sqe.opcode = 0x7f;
        sqe.nsid = 1.into();
        sqe.set_sgl(sqe.sgl());
        let result = bench.node.connect(ConnectionId(1), PORT_1, &sqe, &data, bench.now);
        prop_assert!(result.is_err());
        prop_assert_eq!(bench.node.counts(), (0, 0));
        let _ = Node::admin_data_from_host(&sqe);
    }

    #[test]
    fn any_io_command(entry in any::<[u8; 64]>(), opcode in 0_u8..16, nsid in 0_u32..4, bytes in 0_u32..9000) {
        let table = NamespaceTable::new(vec![
            NamespaceEntry { nsid: 1, block_size: 512, blocks: 100, read_only: false, handle: 1 },
            NamespaceEntry { nsid: 2, block_size: 4096, blocks: u64::MAX >> 12, read_only: true, handle: 2 },
        ]);
        let limits = IoLimits { max_transfer: 1 << 17, write_through: true };
        let mut sqe = Sqe::read_from_bytes(&entry).unwrap();
        for round in 0..4 {
            if let Ok(request) = io::parse(&sqe, &table, &limits) {
                let len = request.transfer.len();
                prop_assert!(len <= limits.max_transfer);
                prop_assert!(request.transfer == Transfer::None || sqe.sgl().parse().data_length() == len);
                if let io::Scope::Namespace(index) = request.scope {
                    let namespace = table.get(index).unwrap();
                    prop_assert_eq!(namespace.nsid, sqe.nsid.get());
                    if homi_spec::nvm::BlockCommand::covers(sqe.nvm_opcode()) {
                        let end = u128::from(sqe.lba()) + u128::from(sqe.blocks());
                        prop_assert!(end <= u128::from(namespace.blocks));
                    }
                }
            }
            match round {
                0 => {
                    sqe.opcode = opcode;
                    sqe.nsid = nsid.into();
                    sqe.flags = 0x40;
                }
                1 => {
                    sqe.set_lba(sqe.lba() % 200);
                    sqe.cdw12 = (sqe.cdw12.get() & 0x4000_001f).into();
                }
                _ => sqe.set_sgl(Sgl::transport(bytes & !511)),
            }
        }
    }
}
