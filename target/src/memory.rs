//! A whole target without sockets, threads or a clock: for tests, fuzzers and simulations.
//!
//! It runs the same engine, sessions, node and executors as [`Service`](crate::Service). Bytes go in and out by hand, and
//! time passes when the caller says so. Over RDMA the caller is the queue pair: it tells the connection's state machine what
//! completed, and carries out the work that this wants.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homi_fabric::controller::PortId;
use homi_fabric::rdma;
use homi_fabric::time::Instant;
use homi_local::Drives;
use homi_queue::{GatherList, Segment};

use crate::catalogue::{Address, Catalogue, in_capsule};
use crate::config::{Config, Transport};
use crate::engine::{Deliver, Engine, EngineOptions, Request, Shared};
use crate::service::ServiceError;
use crate::session::Closing;
use crate::slab::Key;

/// A connection to a [`MemoryTarget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection(Key);

#[derive(Debug, Default)]
struct Letters(Mutex<VecDeque<Request>>);

impl Deliver for Letters {
    fn deliver(&self, _shard: u16, request: Request) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(request);
    }
}

/// A target in memory. Every listener of its configuration exists as a port; [`MemoryTarget::connect`] comes in
/// through the first.
pub struct MemoryTarget {
    engine: Engine,
    shared: Shared,
    letters: Arc<Letters>,
    catalogue: Catalogue,
    config: Config,
    now: Instant,
}

impl fmt::Debug for MemoryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTarget")
            .field("engine", &self.engine)
            .field("now", &self.now)
            .finish()
    }
}

impl MemoryTarget {
    /// A target that serves what `config` says.
    ///
    /// # Errors
    /// [`ServiceError`] if anything that is configured cannot be had.
    pub fn new(config: &Config) -> Result<Self, ServiceError> {
        Self::with_drives(config, Drives::default())
    }

    /// The same with drives that the caller may have provided. Their queues are opened by threads of theirs.
    ///
    /// # Errors
    /// As for [`MemoryTarget::new`].
    pub fn with_drives(config: &Config, drives: Drives) -> Result<Self, ServiceError> {
        config.check()?;
        let letters = Arc::new(Letters::default());
        let shared = Shared::new(config, drives.clone(), Arc::clone(&letters) as Arc<dyn Deliver>)?;
        let engine = Engine::new(shared.clone(), EngineOptions::new(config, 0));
        let (catalogue, now) = (Catalogue::new(drives, 1), Instant::ZERO);
        let mut target = Self {
            engine,
            shared,
            letters,
            catalogue,
            config: config.clone(),
            now,
        };
        target.apply(config)?;
        Ok(target)
    }

    /// Serves what `config` says from now on.
    ///
    /// # Errors
    /// [`ServiceError`] if anything that is configured cannot be had; nothing changes then.
    pub fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        config.check()?;
        let prepared = self.catalogue.prepare(config, &self.shared.backings)?;
        let listeners = config.listener.iter().zip(1..);
        let listening: Vec<Address> = listeners
            .map(|(wanted, port)| Address {
                wanted: wanted.clone(),
                local: wanted.address,
                port: PortId(port),
            })
            .collect();
        self.shared
            .node()
            .apply(prepared.node_config(config, &listening), self.now)?;
        for handle in self.catalogue.commit(prepared) {
            self.engine.request(Request::Retire(handle));
        }
        self.config = config.clone();
        self.settle();
        Ok(())
    }

    /// A new connection through the first listener.
    pub fn connect(&mut self) -> Option<Connection> {
        let address = self.config.listener.first().map(|listener| listener.address);
        let local = address.map_or(IpAddr::from([127, 0, 0, 1]), |address: SocketAddr| address.ip());
        self.engine
            .open(
                PortId(1),
                local,
                "memory".into(),
                in_capsule(&self.config, Transport::Tcp),
            )
            .map(Connection)
    }

    /// A new connection over RDMA through the first listener. The caller gives receives as they are wanted.
    pub fn connect_rdma(&mut self, params: rdma::ControllerParams) -> Option<Connection> {
        let address = self.config.listener.first().map(|listener| listener.address);
        let local = address.map_or(IpAddr::from([127, 0, 0, 1]), |address: SocketAddr| address.ip());
        self.engine
            .open_rdma(PortId(1), local, "memory".into(), params)
            .map(Connection)
    }

    /// Tells the state machine of a connection over RDMA what happened on its queue pair, or takes work to carry out from it; then does
    /// what comes of it. `None` if there is no such connection. What it returns is for [`MemoryTarget::returned_receives`].
    pub fn queue_pair<R>(
        &mut self,
        connection: Connection,
        f: impl FnOnce(&mut rdma::ControllerConnection) -> R,
    ) -> Option<R> {
        let outcome = self.engine.rdma(connection.0, self.now, f);
        self.settle();
        outcome
    }

    /// Receives of a connection over RDMA that are to be posted again. Its other buffers go back to the target.
    pub fn returned_receives(&mut self, connection: Connection) -> Vec<rdma::ReceiveBuffer> {
        let mut receives = Vec::new();
        self.engine
            .collect(connection.0, |receive| receives.push(receive));
        self.settle();
        receives
    }

    /// The queue pair of a connection over RDMA is gone. Returns the receives that the connection had, or `None` as long as commands
    /// of it are executed: let them, and ask again.
    pub fn close_rdma(&mut self, connection: Connection) -> Option<Vec<rdma::ReceiveBuffer>> {
        self.engine.part(connection.0, self.now);
        self.engine.session(connection.0)?.rdma()?.stopped();
        self.settle();
        let mut receives = Vec::new();
        let gone = self.engine.bury(connection.0, |receive| receives.push(receive));
        self.settle();
        gone.then_some(receives)
    }

    /// Bytes from the host.
    pub fn receive(&mut self, connection: Connection, bytes: &[u8]) {
        self.engine.receive(connection.0, bytes, self.now);
        self.settle();
    }

    /// Where the host's next bytes belong, if at least `minimum` of them go to one place: see
    /// [`MemoryTarget::landed`].
    pub fn landing(&mut self, connection: Connection, minimum: usize) -> Option<Segment> {
        self.engine.landing(connection.0, minimum)
    }

    /// The host's next `count` bytes were put where [`MemoryTarget::landing`] said.
    pub fn landed(&mut self, connection: Connection, count: usize) {
        self.engine.landed(connection.0, count, self.now);
        self.settle();
    }

    /// What the target has for the host, in exchange for an empty list; `None` if nothing.
    pub fn output(&mut self, connection: Connection, spare: GatherList) -> Option<GatherList> {
        self.engine.take_output(connection.0, || spare)
    }

    /// Whether the target still wants the connection: false once it would close it, when its output is sent.
    pub fn is_open(&mut self, connection: Connection) -> bool {
        self.engine
            .session(connection.0)
            .is_some_and(|session| session.closing().is_none())
    }

    /// Why the target wants to close the connection.
    pub fn closing_reason(&mut self, connection: Connection) -> Option<String> {
        self.engine
            .session(connection.0)?
            .closing()
            .map(|closing| closing.reason.clone())
    }

    /// The connection broke, or was closed by either end.
    pub fn close(&mut self, connection: Connection) {
        self.engine.close(
            connection.0,
            Closing {
                reason: "closed".to_owned(),
                ordinary: true,
            },
        );
        self.engine.forget(connection.0, self.now);
        self.settle();
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.engine.connections()
    }

    /// The target's time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets time pass, deadline by deadline.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.shared.node().next_deadline().filter(|due| *due <= end);
            let Some(due) = due else { break };
            // A deadline in the past is served now; one that does not move is not served twice.
            self.now = due.max(self.now);
            self.shared.node().handle_timeout(self.now);
            self.settle();
            if self.shared.node().next_deadline() == Some(due) {
                break;
            }
        }
        self.now = end;
        self.settle();
    }

    /// Lets executors that work in the background (files) get on; true while they have commands.
    pub fn poll(&mut self) -> bool {
        self.settle();
        self.engine.is_executing()
    }

    fn settle(&mut self) {
        loop {
            self.engine.run();
            while self.engine.take_gone_executor().is_some() {}
            self.shared.route_effects();
            let letter = self
                .letters
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(request) = letter else { return };
            self.engine.request(request);
        }
    }
}
