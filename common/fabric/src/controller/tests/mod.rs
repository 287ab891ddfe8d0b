//! A node with two subsystems, driven as a runtime would: in virtual time, with hosts that say anything.

mod apply;
mod arbitrary;
mod config;
mod connect;
mod events;
mod identify;
mod io;
mod life;
mod logs;
mod queue;

use super::*;
use crate::time::Instant;
use homi_spec::command::AdminOpcode;
use homi_spec::controller::{Cc, Csts};
use homi_spec::fabrics::{ConnectCommand, ConnectData, Property, PropertyGet, PropertySet, PropertySize};
use homi_spec::feature::{FeatureId, GetFeatures, SetFeatures};
use homi_spec::identify::Identify;
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::{Nqn, Sgl, Sqe};
use std::collections::BTreeSet;
use std::time::Duration;
use zerocopy::IntoBytes;

const PORT_1: PortId = PortId(1);
const PORT_2: PortId = PortId(2);
const HOST_ID: [u8; 16] = [0x11; 16];
const ENABLE: Cc = Cc(0x0046_0001);
const DYNAMIC: u16 = 0xffff;

fn nqn(name: &str) -> Nqn {
    Nqn::new(&format!("nqn.2024-01.org.example:{name}")).unwrap()
}

fn host(number: u32) -> Nqn {
    nqn(&format!("host{number}"))
}

fn hosts(numbers: &[u32]) -> AllowList {
    AllowList::Hosts(numbers.iter().map(|number| host(*number)).collect())
}

fn tcp(address: &str, service: u16) -> TransportAddress {
    TransportAddress {
        transport: TransportKind::Tcp,
        address: address.parse().unwrap(),
        service,
    }
}

/// Subsystem `a` for host 1 at both ports, `b` for everyone at port 2, which listens everywhere.
fn standard() -> NodeConfig {
    let a = SubsystemConfig {
        serial: "SERIAL-A".to_owned(),
        model: "Model A".to_owned(),
        allow: hosts(&[1]),
        namespaces: vec![
            NamespaceConfig {
                read_only: true,
                ..NamespaceConfig::new(3, 4096, 500, 30)
            },
            NamespaceConfig::new(1, 512, 1000, 10),
        ],
        max_io_queues: 4,
        ..SubsystemConfig::new(nqn("a"))
    };
    let b = SubsystemConfig {
        allow: AllowList::Any,
        exposure: Exposure::Ports(BTreeSet::from([PORT_2])),
        namespaces: vec![NamespaceConfig::new(1, 512, 2000, 20)],
        ..SubsystemConfig::new(nqn("b"))
    };
    NodeConfig {
        subsystems: vec![a, b],
        ports: vec![
            PortConfig::new(PORT_1, tcp("192.0.2.1", 4420)),
            PortConfig {
                in_capsule: 0,
                ..PortConfig::new(PORT_2, tcp("::", 4421))
            },
        ],
        ..NodeConfig::default()
    }
}

struct Bench {
    node: Node,
    now: Instant,
    connections: u64,
    cid: u16,
}

/// A host with an admin queue.
#[derive(Clone, Copy)]
struct Admin {
    id: ConnectionId,
    controller: u16,
}

impl Bench {
    fn new(config: NodeConfig) -> Self {
        let mut node = Node::new(NodeIdentity::default()).unwrap();
        node.apply(config, Instant::ZERO).unwrap();
        Self {
            node,
            now: Instant::ZERO,
            connections: 0,
            cid: 0,
        }
    }

    fn standard() -> Self {
        Self::new(standard())
    }

    fn connection(&mut self) -> ConnectionId {
        self.connections += 1;
        ConnectionId(self.connections)
    }

    fn cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.node.handle_timeout(self.now);
    }

    fn apply(&mut self, config: NodeConfig) {
        self.node.apply(config, self.now).unwrap();
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.node.poll_effect()).collect()
    }

    /// Carries closes out, as a runtime does, and returns what was closed.
    fn settle(&mut self) -> Vec<(ConnectionId, CloseReason)> {
        let mut closed = Vec::new();
        while let Some(effect) = self.node.poll_effect() {
            if let Effect::Close { connection, reason } = effect {
                self.node.closed(connection, self.now);
                closed.push((connection, reason));
            }
        }
        closed
    }

    fn try_connect(
        &mut self,
        port: PortId,
        command: ConnectCommand,
        data: &ConnectData,
    ) -> (ConnectionId, Result<Grant, Rejected>) {
        let id = self.connection();
        let sqe = command.to_sqe(1, Sgl::in_capsule(0, 1024));
        (id, self.node.connect(id, port, &sqe, data.as_bytes(), self.now))
    }

    fn admin_with_kato(&mut self, port: PortId, subsystem: &Nqn, host: &Nqn, kato_ms: u32) -> Admin {
        let command = ConnectCommand {
            sqsize_z: 31,
            kato_ms,
            ..ConnectCommand::default()
        };
        let data = ConnectData::new(HOST_ID, DYNAMIC, subsystem, host);
        let (id, grant) = self.try_connect(port, command, &data);
        let grant = grant.unwrap();
        assert_eq!((grant.qid, grant.dw0), (0, grant.controller_id.into()));
        Admin {
            id,
            controller: grant.controller_id,
        }
    }

    /// An admin queue of a controller that is not enabled.
    fn admin(&mut self, port: PortId, subsystem: &Nqn, host: &Nqn) -> Admin {
        self.admin_with_kato(port, subsystem, host, 0)
    }

    /// An admin queue of an enabled controller of subsystem `a`.
    fn enabled(&mut self) -> Admin {
        let admin = self.admin(PORT_1, &nqn("a"), &host(1));
        self.set_cc(admin, ENABLE).unwrap();
        admin
    }

    fn try_io(
        &mut self,
        port: PortId,
        subsystem: &Nqn,
        host: &Nqn,
        controller: u16,
        qid: u16,
    ) -> (ConnectionId, Result<Grant, Rejected>) {
        let command = ConnectCommand {
            qid,
            sqsize_z: 127,
            ..ConnectCommand::default()
        };
        self.try_connect(
            port,
            command,
            &ConnectData::new(HOST_ID, controller, subsystem, host),
        )
    }

    fn io(&mut self, admin: Admin, qid: u16) -> (ConnectionId, Grant) {
        let (id, grant) = self.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, qid);
        (id, grant.unwrap())
    }

    fn send(&mut self, id: ConnectionId, sqe: Sqe, data: &[u8]) -> AdminOutcome {
        let mut sqe = sqe;
        if sqe.psdt() != homi_spec::command::Psdt::SGL {
            sqe.set_sgl(sqe.sgl());
        }
        let key = sqe.cid.get();
        self.node.admin(id, key, &sqe, data, self.now)
    }

    /// A command that returns `len` bytes.
    fn read(&mut self, id: ConnectionId, sqe: Sqe, len: u32) -> Result<Vec<u8>, Status> {
        let mut sqe = sqe;
        sqe.set_sgl(Sgl::transport(len));
        match self.send(id, sqe, &[]) {
            AdminOutcome::Complete { status, payload, .. } if status.is_success() => Ok(payload),
            AdminOutcome::Complete { status, payload, .. } => {
                assert!(payload.is_empty());
                Err(status)
            }
            other => panic!("{other:?}"),
        }
    }

    /// A command without data: its two dwords.
    fn dwords(&mut self, id: ConnectionId, sqe: Sqe) -> Result<(u32, u32), Status> {
        match self.send(id, sqe, &[]) {
            AdminOutcome::Complete {
                status,
                dw0,
                dw1,
                payload,
            } => {
                assert!(payload.is_empty());
                if status.is_success() {
                    Ok((dw0, dw1))
                } else {
                    Err(status)
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn set_cc(&mut self, admin: Admin, cc: Cc) -> Result<(), Status> {
        let set = PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: cc.0.into(),
        };
        let sqe = set.to_sqe(self.cid());
        self.dwords(admin.id, sqe)
            .map(|dwords| assert_eq!(dwords, (0, 0)))
    }

    fn csts(&mut self, admin: Admin) -> Csts {
        let get = PropertyGet {
            size: PropertySize::Four,
            property: Property::CSTS,
        };
        let sqe = get.to_sqe(self.cid());
        Csts(self.dwords(admin.id, sqe).unwrap().0)
    }

    fn identify(&mut self, admin: Admin, identify: Identify) -> Result<Vec<u8>, Status> {
        let sqe = identify.to_sqe(self.cid());
        self.read(admin.id, sqe, 4096)
    }

    fn log(&mut self, admin: Admin, command: GetLogPage) -> Result<Vec<u8>, Status> {
        let sqe = command.to_sqe(self.cid());
        self.read(admin.id, sqe, u32::try_from(command.length()).unwrap())
    }

    fn log_page(&mut self, admin: Admin, lid: LogId, len: u64) -> Vec<u8> {
        self.log(admin, GetLogPage::new(lid, len).unwrap()).unwrap()
    }

    fn set_feature(&mut self, admin: Admin, fid: FeatureId, value: u32) -> Result<u32, Status> {
        let sqe = SetFeatures::new(fid, value).to_sqe(self.cid());
        self.dwords(admin.id, sqe).map(|(dw0, _)| dw0)
    }

    fn get_feature(&mut self, admin: Admin, fid: FeatureId) -> Result<u32, Status> {
        let sqe = GetFeatures::new(fid).to_sqe(self.cid());
        self.dwords(admin.id, sqe).map(|(dw0, _)| dw0)
    }

    /// Sends an event request; its key and command identifier are returned.
    fn await_event(&mut self, admin: Admin) -> u16 {
        let cid = self.cid();
        let outcome = self.send(admin.id, homi_spec::admin::async_event_request(cid), &[]);
        assert_eq!(outcome, AdminOutcome::Held);
        cid
    }

    fn keep_alive(&mut self, admin: Admin) -> Result<(), Status> {
        let sqe = homi_spec::admin::keep_alive(self.cid());
        self.dwords(admin.id, sqe).map(|_| ())
    }
}

/// The effect that answers an event request.
fn event(admin: Admin, key: u16, dw0: u32) -> Effect {
    Effect::Respond {
        connection: admin.id,
        key,
        status: Status::SUCCESS,
        dw0,
        dw1: 0,
    }
}

fn close(connection: ConnectionId, reason: CloseReason) -> Effect {
    Effect::Close { connection, reason }
}

const SEQUENCE: Status = Status::COMMAND_SEQUENCE_ERROR.with_dnr();
const INVALID: Status = Status::INVALID_FIELD.with_dnr();
const UNKNOWN_OPCODE: AdminOpcode = AdminOpcode(0xc5);
