//! One association: a host, a controller that was made for it, and its queues. Base 2.0 §3.1 and §6.3.

use super::config::{PortId, TransportKind};
use super::events::{Event, Events};
use super::features::Features;
use super::keep_alive::KeepAlive;
use super::logs::Changed;
use super::properties::{Change, Properties};
use super::view::{ErrorRecord, NamespaceTable, Published, QueueView, Shared, Totals};
use super::{CloseReason, ConnectionId, Effect};
use crate::time::Instant;
use homi_spec::{Nqn, Status};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// Things for the runtime to do, in order.
pub(super) type Effects = VecDeque<Effect>;

/// A connected I/O queue.
#[derive(Debug)]
pub(super) struct IoQueue {
    pub(super) connection: ConnectionId,
    pub(super) port: PortId,
    pub(super) depth: u32,
    pub(super) view: Arc<QueueView>,
    /// The runtime was told to close it.
    closing: bool,
}

impl IoQueue {
    pub(super) fn new(connection: ConnectionId, port: PortId, depth: u32, view: Arc<QueueView>) -> Self {
        Self {
            connection,
            port,
            depth,
            view,
            closing: false,
        }
    }
}

/// An Abort that waits for the I/O queue to say what came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingAbort {
    pub(super) key: u16,
    pub(super) connection: ConnectionId,
}

/// A controller and the host that it serves.
#[derive(Debug)]
pub(super) struct Association {
    /// Name of the subsystem; `None` is the discovery subsystem.
    pub(super) subsystem: Option<Nqn>,
    pub(super) controller_id: u16,
    pub(super) host: Nqn,
    pub(super) host_id: [u8; 16],
    pub(super) admin: ConnectionId,
    pub(super) admin_depth: u32,
    pub(super) port: PortId,
    pub(super) transport: TransportKind,
    pub(super) in_capsule: u32,
    /// The address that the host reached the node at, where the runtime said.
    pub(super) local: Option<IpAddr>,
    pub(super) since: Instant,
    pub(super) keep_alive: KeepAlive,
    /// What Connect asked for, in milliseconds.
    pub(super) keep_alive_default_ms: u32,
    pub(super) properties: Properties,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) changed: Changed,
    pub(super) aborts: Vec<PendingAbort>,
    pub(super) queues: BTreeMap<u16, IoQueue>,
    pub(super) namespaces: Arc<Published<NamespaceTable>>,
    pub(super) shared: Arc<Shared>,
    admin_open: bool,
    ending: Option<CloseReason>,
}

/// What an association is made from.
pub(super) struct Founding {
    pub(super) subsystem: Option<Nqn>,
    pub(super) controller_id: u16,
    pub(super) host: Nqn,
    pub(super) host_id: [u8; 16],
    pub(super) admin: ConnectionId,
    pub(super) admin_depth: u32,
    pub(super) port: PortId,
    pub(super) transport: TransportKind,
    pub(super) in_capsule: u32,
    pub(super) keep_alive_ms: u32,
    pub(super) max_queue_entries: u32,
    pub(super) namespaces: Arc<Published<NamespaceTable>>,
    pub(super) now: Instant,
}

impl Association {
    pub(super) fn new(founding: Founding) -> Self {
        let Founding {
            subsystem,
            controller_id,
            host,
            host_id,
            admin,
            admin_depth,
            port,
            transport,
            ..
        } = founding;
        let discovery = subsystem.is_none();
        let keep_alive = KeepAlive::new(founding.keep_alive_ms, discovery, founding.now);
        Self {
            subsystem,
            controller_id,
            host,
            host_id,
            admin,
            admin_depth,
            port,
            transport,
            in_capsule: founding.in_capsule,
            local: None,
            since: founding.now,
            keep_alive_default_ms: keep_alive.timeout_ms(),
            features: Features::new(discovery, keep_alive.timeout_ms()),
            keep_alive,
            properties: Properties::new(founding.max_queue_entries, discovery),
            events: Events::default(),
            changed: Changed::default(),
            aborts: Vec::new(),
            queues: BTreeMap::new(),
            namespaces: founding.namespaces,
            shared: Arc::new(Shared::new()),
            admin_open: true,
            ending: None,
        }
    }

    pub(super) fn is_discovery(&self) -> bool {
        self.subsystem.is_none()
    }

    /// Why the association is ending, if it is.
    pub(super) fn ending(&self) -> Option<CloseReason> {
        self.ending
    }

    /// Whether nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.ending.is_some() && !self.admin_open && self.queues.is_empty()
    }

    /// What its connected I/O queues did.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for queue in self.queues.values() {
            totals.add(&queue.view.counters().totals());
        }
        totals
    }

    /// Connections that are open.
    pub(super) fn connections(&self) -> usize {
        self.queues.len() + usize::from(self.admin_open)
    }

    /// Closes every connection; the association is over when all are reported closed.
    pub(super) fn end(&mut self, reason: CloseReason, effects: &mut Effects) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(reason);
        self.shared.set_enabled(false);
        self.aborts.clear();
        self.events.reset();
        self.close_queues(reason, effects);
        if self.admin_open {
            effects.push_back(Effect::Close {
                connection: self.admin,
                reason,
            });
        }
    }

    /// The host was silent for too long. Base 2.0 §3.9: an error, a failed controller and the end.
    pub(super) fn expire(&mut self, effects: &mut Effects) {
        self.properties.fail();
        self.shared.record(ErrorRecord {
            qid: 0,
            cid: 0xffff,
            status: Status::KEEP_ALIVE_EXPIRED,
            location: 0xffff,
            lba: 0,
            nsid: 0,
        });
        self.end(CloseReason::KeepAliveExpired, effects);
    }

    /// The controller failed: CSTS says so, the host is told if it asks for events, and nothing but a reset helps.
    pub(super) fn fail(&mut self, effects: &mut Effects) {
        self.properties.fail();
        self.shared.set_enabled(false);
        self.raise(Event::InternalError, effects);
        self.close_queues(CloseReason::ControllerFailed, effects);
    }

    /// Carries out what a write to CC asks for.
    pub(super) fn change(&mut self, change: Change, effects: &mut Effects) {
        match change {
            Change::None => {}
            Change::Enabled => self.shared.set_enabled(true),
            Change::Drain { reason, reset } => {
                self.shared.set_enabled(false);
                if reset {
                    self.reset(effects);
                }
                self.close_queues(reason, effects);
                if self.queues.is_empty() {
                    self.properties.drained();
                }
            }
        }
    }

    /// Base 2.0 §3.7.2: a reset ends outstanding commands and forgets what the host configured. The keep-alive
    /// timeout belongs to the association and stays.
    fn reset(&mut self, effects: &mut Effects) {
        let status = Status::ABORTED_SQ_DELETION;
        for request in self.events.reset() {
            effects.push_back(self.respond(request.key, status, 0));
        }
        for abort in std::mem::take(&mut self.aborts) {
            effects.push_back(self.respond(abort.key, status, 0));
        }
        self.features = Features::new(self.is_discovery(), self.keep_alive.timeout_ms());
        self.shared.set_write_through(false);
        self.changed.clear();
    }

    pub(super) fn respond(&self, key: u16, status: Status, dw0: u32) -> Effect {
        Effect::Respond {
            connection: self.admin,
            key,
            status,
            dw0,
            dw1: 0,
        }
    }

    fn close_queues(&mut self, reason: CloseReason, effects: &mut Effects) {
        for queue in self.queues.values_mut() {
            close(queue, reason, effects);
        }
    }

    /// Closes the I/O queues that came through ports for which `gone` holds.
    pub(super) fn close_queues_through(&mut self, gone: impl Fn(PortId) -> bool, effects: &mut Effects) {
        for queue in self.queues.values_mut().filter(|queue| gone(queue.port)) {
            close(queue, CloseReason::PortRemoved, effects);
        }
    }

    /// The admin connection closed.
    pub(super) fn admin_closed(&mut self, effects: &mut Effects) {
        self.admin_open = false;
        self.end(CloseReason::AdminQueueClosed, effects);
    }

    /// An I/O connection closed. Returns what its queue did.
    pub(super) fn queue_closed(
        &mut self,
        qid: u16,
        connection: ConnectionId,
        effects: &mut Effects,
    ) -> Option<Totals> {
        let queue = self.queues.remove(&qid)?;
        let (gone, waiting): (Vec<_>, Vec<_>) = self
            .aborts
            .drain(..)
            .partition(|abort| abort.connection == connection);
        self.aborts = waiting;
        for abort in gone {
            effects.push_back(self.respond(abort.key, Status::SUCCESS, homi_spec::admin::Abort::NOT_ABORTED));
        }
        if self.queues.is_empty() {
            self.properties.drained();
        }
        Some(queue.view.counters().totals())
    }

    /// Something happened that the host may want to know.
    pub(super) fn raise(&mut self, event: Event, effects: &mut Effects) {
        if self.ending.is_some() {
            return;
        }
        self.events.raise(event, self.features.async_event());
        self.deliver(effects);
    }

    /// Answers waiting requests with waiting events.
    pub(super) fn deliver(&mut self, effects: &mut Effects) {
        while let Some((request, dword)) = self.events.next() {
            effects.push_back(self.respond(request.key, Status::SUCCESS, dword));
        }
    }
}

fn close(queue: &mut IoQueue, reason: CloseReason, effects: &mut Effects) {
    if !queue.closing {
        queue.closing = true;
        effects.push_back(Effect::Close {
            connection: queue.connection,
            reason,
        });
    }
}
