//! [`Node`]: every association of a storage node, and what the runtime tells it and asks of it.

use super::association::{Association, Effects};
use super::config::{
    AllowList, NodeIdentity, NodeLimits, PortConfig, PortId, ReferralConfig, SubsystemConfig,
};
use super::view::{NamespaceTable, Published, Totals};
use super::{CloseReason, ConfigError, ConnectionId, Effect};
use crate::time::Instant;
use homi_spec::admin::Abort;
use homi_spec::{Nqn, Status};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A subsystem as it is now.
#[derive(Debug)]
pub(super) struct Subsystem {
    /// Its configuration, the namespaces sorted.
    pub(super) config: SubsystemConfig,
    pub(super) namespaces: Arc<Published<NamespaceTable>>,
    /// What queues did that are closed.
    pub(super) retired: Totals,
    /// Where the search for a free controller identifier begins: the one used last is reused last.
    pub(super) next_controller_id: u16,
}

/// What hosts can find here.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) subsystems: BTreeMap<Nqn, Subsystem>,
    pub(super) ports: BTreeMap<PortId, PortConfig>,
    pub(super) referrals: Vec<ReferralConfig>,
}

/// Names an association inside the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AssociationId(pub(super) u64);

/// A connection that is a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connection {
    pub(super) association: AssociationId,
    pub(super) qid: u16,
}

/// The controller end of every association of one storage node.
///
/// It reads no clock and does no I/O: each call says what time it is, and what has to be done comes out of
/// [`Node::poll_effect`]. Call that until it returns `None` after every other call, and call
/// [`Node::handle_timeout`] when [`Node::next_deadline`] has come.
#[derive(Debug)]
pub struct Node {
    pub(super) identity: NodeIdentity,
    pub(super) directory: Directory,
    pub(super) discovery_allow: AllowList,
    pub(super) limits: NodeLimits,
    /// Changes whenever the discovery log may have (GENCTR).
    pub(super) generation: u64,
    pub(super) associations: BTreeMap<AssociationId, Association>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) next_association: u64,
    pub(super) next_discovery_id: u16,
    pub(super) effects: Effects,
    /// When the node was configured first.
    pub(super) started: Option<Instant>,
}

impl Node {
    /// A node without subsystems and ports: nobody can connect until [`Node::apply`].
    ///
    /// # Errors
    /// A value of the identity that the wire cannot carry.
    pub fn new(identity: NodeIdentity) -> Result<Self, ConfigError> {
        identity.validate()?;
        let config = super::NodeConfig::default();
        Ok(Self {
            identity,
            directory: Directory::default(),
            discovery_allow: config.discovery_allow,
            limits: config.limits,
            generation: 0,
            associations: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_association: 0,
            next_discovery_id: 1,
            effects: Effects::new(),
            started: None,
        })
    }

    /// The next thing to do, if there is any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Node::handle_timeout`] has something to do, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let running = self
            .associations
            .values()
            .filter(|association| association.ending().is_none());
        running
            .filter_map(|association| association.keep_alive.deadline())
            .min()
    }

    /// Ends the associations whose hosts were silent for longer than their keep-alive timeout.
    pub fn handle_timeout(&mut self, now: Instant) {
        for association in self.associations.values_mut() {
            if association.ending().is_some() {
                continue;
            }
            let traffic = association.totals().commands();
            if association.keep_alive.expired(traffic, now) {
                association.expire(&mut self.effects);
            }
        }
    }

    /// A connection closed, whoever closed it. Connections that never became queues need not be reported. With
    /// an admin connection its association ends.
    pub fn closed(&mut self, id: ConnectionId, _now: Instant) {
        let Some(Connection {
            association: association_id,
            qid,
        }) = self.connections.remove(&id)
        else {
            return;
        };
        let Some(association) = self.associations.get_mut(&association_id) else {
            return;
        };
        if qid == 0 {
            association.admin_closed(&mut self.effects);
        } else if let Some(totals) = association.queue_closed(qid, id, &mut self.effects)
            && let Some(nqn) = &association.subsystem
            && let Some(subsystem) = self.directory.subsystems.get_mut(nqn)
        {
            subsystem.retired.add(&totals);
        }
        if association.is_over() {
            self.associations.remove(&association_id);
        }
    }

    /// An [`Effect::Abort`] was carried out: `aborted` says whether the command was found and will complete as aborted.
    pub fn abort_finished(&mut self, admin: ConnectionId, key: u16, aborted: bool) {
        let Some(connection) = self.connections.get(&admin) else {
            return;
        };
        let Some(association) = self.associations.get_mut(&connection.association) else {
            return;
        };
        if let Some(index) = association.aborts.iter().position(|abort| abort.key == key) {
            association.aborts.remove(index);
            let dw0 = if aborted { 0 } else { Abort::NOT_ABORTED };
            let effect = association.respond(key, Status::SUCCESS, dw0);
            self.effects.push_back(effect);
        }
    }

    /// Which address of the node a host came to: what its discovery log shows for ports that listen at every
    /// address. Report it after a Connect to the admin queue succeeded.
    pub fn reached_at(&mut self, id: ConnectionId, address: IpAddr) {
        if let Some(association) = self.association_of(id) {
            association.local = Some(address.to_canonical());
        }
    }

    /// The controller of this connection cannot go on: CSTS.CFS is set, its I/O queues are closed, and the host learns
    /// it by an event. The host may reset it.
    pub fn fail_controller(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if let Some(association) = self.associations.get_mut(&connection.association) {
            association.fail(&mut self.effects);
        }
    }

    /// Ends every association: the node is going down. Connects are refused from here on.
    pub fn shut_down(&mut self) {
        for association in self.associations.values_mut() {
            association.end(CloseReason::NodeShutdown, &mut self.effects);
        }
        self.directory.ports.clear();
    }

    fn association_of(&mut self, id: ConnectionId) -> Option<&mut Association> {
        let connection = self.connections.get(&id)?;
        self.associations.get_mut(&connection.association)
    }

    /// Largest admin queue in entries.
    pub(super) fn max_admin_entries(&self) -> u32 {
        let least = u32::from(homi_spec::fabrics::ADMIN_SQSIZE_MIN);
        self.identity
            .max_queue_entries
            .clamp(least, super::config::MAX_ADMIN_QUEUE_ENTRIES)
    }
}
