//! What a node shows to people: a snapshot as plain values.

use super::association::Association;
use super::config::PortId;
use super::node::Node;
use super::view::Totals;
use super::{CloseReason, ConnectionId, NamespaceEntry};
use crate::time::Instant;
use homi_spec::Nqn;
use homi_spec::controller::Csts;

/// A snapshot of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The subsystems, by name.
    pub subsystems: Vec<SubsystemReport>,
    /// The associations, oldest first.
    pub associations: Vec<AssociationReport>,
    /// Generation of the discovery log.
    pub discovery_generation: u64,
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemReport {
    /// Its name.
    pub nqn: Nqn,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceEntry>,
    /// Its associations.
    pub associations: usize,
    /// What all queues that ever were did.
    pub totals: Totals,
}

/// An association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationReport {
    /// Name of its subsystem: the discovery subsystem has its well-known one.
    pub subsystem: Nqn,
    /// The controller's identifier.
    pub controller_id: u16,
    /// The host.
    pub host: Nqn,
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// The port that the admin queue came through.
    pub port: PortId,
    /// When it began.
    pub since: Instant,
    /// Keep-alive timeout in milliseconds; 0 if it is off.
    pub keep_alive_ms: u32,
    /// The controller's status.
    pub status: Csts,
    /// Whether it executes commands.
    pub ready: bool,
    /// Asynchronous event requests that wait.
    pub event_requests: usize,
    /// Errors in its error log, ever.
    pub errors: u64,
    /// Its queues; the admin queue is first.
    pub queues: Vec<QueueReport>,
    /// Why it is ending, if it is.
    pub ending: Option<CloseReason>,
}

/// A connected queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueReport {
    /// Its identifier.
    pub qid: u16,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its entries.
    pub depth: u32,
    /// What it did; the admin queue does not count.
    pub totals: Totals,
}

impl Node {
    /// A snapshot for status output.
    #[must_use]
    pub fn report(&self) -> NodeReport {
        let subsystems = self.directory.subsystems.values().map(|subsystem| {
            let nqn = &subsystem.config.nqn;
            let associations = self.associations.values();
            let own = || {
                associations
                    .clone()
                    .filter(|association| association.subsystem.as_ref() == Some(nqn))
            };
            let mut totals = subsystem.retired;
            own().for_each(|association| totals.add(&association.totals()));
            SubsystemReport {
                nqn: nqn.clone(),
                namespaces: subsystem.namespaces.load().entries().to_vec(),
                associations: own().count(),
                totals,
            }
        });
        NodeReport {
            subsystems: subsystems.collect(),
            associations: self.associations.values().map(association).collect(),
            discovery_generation: self.generation,
        }
    }

    /// How many queues are connected, and how many associations there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.connections.len(), self.associations.len())
    }
}

fn association(association: &Association) -> AssociationReport {
    let admin = QueueReport {
        qid: 0,
        connection: association.admin,
        depth: association.admin_depth,
        totals: Totals::default(),
    };
    let io = association.queues.iter().map(|(qid, queue)| QueueReport {
        qid: *qid,
        connection: queue.connection,
        depth: queue.depth,
        totals: queue.view.counters().totals(),
    });
    AssociationReport {
        subsystem: association.subsystem.clone().unwrap_or_else(Nqn::discovery),
        controller_id: association.controller_id,
        host: association.host.clone(),
        host_id: association.host_id,
        port: association.port,
        since: association.since,
        keep_alive_ms: association.keep_alive.timeout_ms(),
        status: association.properties.csts(),
        ready: association.properties.is_ready() && association.ending().is_none(),
        event_requests: association.events.waiting(),
        errors: association.shared.errors().count(),
        queues: std::iter::once(admin).chain(io).collect(),
        ending: association.ending(),
    }
}
