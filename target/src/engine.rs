//! A shard without sockets: sessions, executors and buffers, driven by received bytes and messages.
//!
//! One pass of an engine is: bytes go to sessions, sessions start commands, [`Engine::run`] starts the batch at the
//! executors and takes completions back to the sessions, and what they have to send is left in their outputs. The
//! shard drives an engine with a reactor; tests drive it with byte vectors and a clock of their own. A connection over RDMA brings
//! no bytes: whoever has its queue pair tells its state machine what happened there ([`Engine::rdma`]), and posts what that wants.

mod core;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use homi_fabric::controller::{
    CloseReason, ConfigError as NodeConfigError, ConnectionId, Effect, Node, NodeIdentity, PortId,
};
use homi_fabric::rdma;
use homi_fabric::tcp::{ControllerConnection, ControllerParams};
use homi_fabric::time::Instant;
use homi_local::{Backing, DriveQueue, Drives, FileBackend, QueueError};
#[cfg(feature = "rdma")]
use homi_queue::Region;
use homi_queue::{Completion, GatherList, Segment};

#[cfg(feature = "rdma")]
use crate::arena::Arena;
use crate::cmb::CmbParts;
use crate::config::{Config, Events, Size};
use crate::executors::Finished;
use crate::session::{Closing, Link, Session};
use crate::slab::{Key, Slab};

/// What backs a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Backed {
    pub(crate) backing: Backing,
    /// The drive's memory buffer, where data is to pass through that.
    pub(crate) cmb: Option<Arc<CmbParts>>,
}

/// What backs each namespace, by the handle that namespace tables carry. Handles are small and never reused.
#[derive(Debug, Default)]
pub(crate) struct Backings {
    entries: RwLock<Vec<Option<Backed>>>,
    /// There is or was one whose data passes through a memory buffer.
    any_cmb: AtomicBool,
}

impl Backings {
    /// Adds a backing and returns its handle.
    pub(crate) fn add(&self, backing: Backed) -> u64 {
        if backing.cmb.is_some() {
            self.any_cmb.store(true, Ordering::Relaxed);
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.push(Some(backing));
        entries.len() as u64 - 1
    }

    /// Forgets a backing. Executors that are open on it go when they are idle.
    pub(crate) fn remove(&self, handle: u64) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = usize::try_from(handle)
            .ok()
            .and_then(|index| entries.get_mut(index))
        {
            *entry = None;
        }
    }

    fn get(&self, index: usize) -> Option<Backed> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(index).cloned().flatten()
    }
}

/// What somebody asks of an engine: another shard, the control thread, the node.
#[derive(Debug)]
pub(crate) enum Request {
    /// Something that the node wants done on one of this engine's connections.
    Effect(Effect),
    /// The backing with this handle is gone.
    Retire(u64),
    /// What became of a drive's queue that an executor waits for.
    Opened {
        /// Which executor.
        executor: Key,
        /// The queue.
        outcome: Result<Box<DriveQueue>, QueueError>,
    },
}

/// Delivers what the node wants done to the shard that has the connection.
pub(crate) trait Deliver: Send + Sync {
    /// Hands a request to a shard.
    fn deliver(&self, shard: u16, request: Request);
}

/// What all engines of a target share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) node: Arc<Mutex<Node>>,
    pub(crate) backings: Arc<Backings>,
    /// Drives that the target drives itself: they reach the memory of all shards.
    pub(crate) drives: Drives,
    pub(crate) deliver: Arc<dyn Deliver>,
}

impl Shared {
    pub(crate) fn new(
        config: &Config,
        drives: Drives,
        deliver: Arc<dyn Deliver>,
    ) -> Result<Self, NodeConfigError> {
        let node = Node::new(NodeIdentity {
            max_queue_entries: u32::from(config.limits.queue_entries),
            // Checked to be at most 16 MiB.
            max_transfer: u32::try_from(config.node.max_transfer.0).unwrap_or(1 << 20),
            ..NodeIdentity::default()
        })?;
        Ok(Self {
            node: Arc::new(Mutex::new(node)),
            backings: Arc::default(),
            drives,
            deliver,
        })
    }

    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        // The node changes state only as its last step, so a panic elsewhere leaves it usable.
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends everything that the node wants done on its way.
    pub(crate) fn route_effects(&self) {
        loop {
            let Some(effect) = self.node().poll_effect() else {
                return;
            };
            let connection = match &effect {
                Effect::Close { connection, .. }
                | Effect::Respond { connection, .. }
                | Effect::Abort { connection, .. } => *connection,
            };
            self.deliver
                .deliver(shard_of(connection), Request::Effect(effect));
        }
    }
}

pub(crate) use self::core::{Core, Diverted, DriveQueues, Payload};

/// How engines are set up.
#[derive(Debug, Clone)]
pub(crate) struct EngineOptions {
    pub(crate) shard: u16,
    pub(crate) params: ControllerParams,
    /// Bytes of buffers for data in transit.
    pub(crate) buffers: usize,
    /// Largest transfer in bytes.
    pub(crate) max_transfer: usize,
    /// Commands that one executor may have in flight.
    pub(crate) executor_depth: u16,
    pub(crate) file_backend: FileBackend,
}

impl EngineOptions {
    pub(crate) fn new(config: &Config, shard: u16) -> Self {
        let bytes = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
        Self {
            shard,
            params: ControllerParams {
                max_h2c_data: u32::try_from(config.node.max_transfer.0).unwrap_or(1 << 20),
                header_digest: config.node.header_digest,
                data_digest: config.node.data_digest,
                max_depth: config.limits.queue_entries,
                ..ControllerParams::default()
            },
            buffers: bytes(config.node.buffers),
            max_transfer: bytes(config.node.max_transfer),
            executor_depth: EXECUTOR_DEPTH,
            file_backend: match config.node.events {
                Events::Auto => FileBackend::Auto,
                Events::IoUring => FileBackend::IoUring,
                Events::Readiness => FileBackend::Threads,
            },
        }
    }
}

/// Commands that one shard may have in flight at one namespace's executor.
const EXECUTOR_DEPTH: u16 = 1024;
const SHARD_SHIFT: u32 = 48;

fn connection_id(shard: u16, key: Key) -> ConnectionId {
    ConnectionId(u64::from(shard) << SHARD_SHIFT | key.to_bits())
}

fn shard_of(connection: ConnectionId) -> u16 {
    u16::try_from(connection.0 >> SHARD_SHIFT).unwrap_or(u16::MAX)
}

fn key_of(connection: ConnectionId) -> Key {
    Key::from_bits(connection.0 & ((1 << SHARD_SHIFT) - 1))
}

/// A shard without sockets.
pub(crate) struct Engine {
    core: Core,
    sessions: Slab<Box<Session>>,
    scratch: Vec<Finished>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.core.options)
            .field("sessions", &self.sessions.len())
            .finish()
    }
}

impl Engine {
    pub(crate) fn new(shared: Shared, options: EngineOptions) -> Self {
        Self {
            core: Core::new(shared, options),
            sessions: Slab::new(),
            scratch: Vec::new(),
        }
    }

    /// A new connection that came in through `port`, to the address `local`.
    pub(crate) fn open(
        &mut self,
        port: PortId,
        local: IpAddr,
        peer: Arc<str>,
        in_capsule: u32,
    ) -> Option<Key> {
        let params = ControllerParams {
            max_in_capsule_io: in_capsule,
            ..self.core.options.params
        };
        match ControllerConnection::new(params) {
            Ok(link) => self.add(port, local, peer, Link::Tcp(link)),
            Err(error) => {
                tracing::error!("a connection's parameters are wrong: {error}");
                None
            }
        }
    }

    /// A new connection over RDMA, likewise.
    pub(crate) fn open_rdma(
        &mut self,
        port: PortId,
        local: IpAddr,
        peer: Arc<str>,
        params: rdma::ControllerParams,
    ) -> Option<Key> {
        match rdma::ControllerConnection::new(params) {
            Ok(link) => self.add(port, local, peer, Link::Rdma(Box::new(link))),
            Err(error) => {
                tracing::error!("a connection's parameters are wrong: {error}");
                None
            }
        }
    }

    fn add(&mut self, port: PortId, local: IpAddr, peer: Arc<str>, link: Link) -> Option<Key> {
        let shard = self.core.options.shard;
        let key = self.sessions.reserve()?;
        let session = Session::new(key, connection_id(shard, key), (port, local), peer, link);
        self.sessions.fill(key, Box::new(session));
        Some(key)
    }

    /// Tells the state machine of a connection over RDMA what happened on its queue pair, and does what comes of it. The session is
    /// listed: there may be work to post and buffers to [`collect`](Self::collect).
    pub(crate) fn rdma<R>(
        &mut self,
        key: Key,
        now: Instant,
        f: impl FnOnce(&mut rdma::ControllerConnection) -> R,
    ) -> Option<R> {
        let session = self.sessions.get_mut(key)?;
        let outcome = f(session.rdma()?);
        session.poll_rdma(&mut self.core, now);
        self.core.list(key, &mut session.listed);
        Some(outcome)
    }

    /// The state machine of a connection over RDMA, to post its work, and where its buffers are.
    #[cfg(feature = "rdma")]
    pub(crate) fn rdma_parts(&mut self, key: Key) -> Option<(&mut rdma::ControllerConnection, &Arena)> {
        let link = self.sessions.get_mut(key)?.rdma()?;
        Some((link, &self.core.arena))
    }

    /// Takes back what a connection over RDMA is done with; receives go to `receive`.
    pub(crate) fn collect(&mut self, key: Key, receive: impl FnMut(rdma::ReceiveBuffer)) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.collect(&mut self.core, receive);
        }
    }

    /// The connection of a session over RDMA is over, whatever becomes of its queue pair. The session stays until that is still and
    /// executors are done with its commands: see [`bury`](Self::bury).
    pub(crate) fn part(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.close(Closing {
            reason: "the connection ended".to_owned(),
            ordinary: true,
        });
        log_end(session);
        if let Some(link) = session.rdma() {
            link.lost();
        }
        self.core
            .node()
            .closed(connection_id(self.core.options.shard, key), now);
        self.core.route_effects();
    }

    /// Forgets a session whose connection is over and whose queue pair is gone, if nothing of it is in use any more. Says whether it
    /// is forgotten.
    pub(crate) fn bury(&mut self, key: Key, mut receive: impl FnMut(rdma::ReceiveBuffer)) -> bool {
        let Some(session) = self.sessions.get_mut(key) else {
            return true;
        };
        session.release_held();
        session.collect(&mut self.core, &mut receive);
        if !session.is_still() {
            return false;
        }
        if let Some(mut session) = self.sessions.remove(key) {
            session.settle_all(&mut self.core);
            self.core.leave(session.lanes());
        }
        self.feed_waiting();
        true
    }

    /// Bytes that a connection received, in order.
    #[inline]
    pub(crate) fn receive(&mut self, key: Key, bytes: &[u8], now: Instant) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.receive(&mut self.core, bytes, now);
            Self::list_closing(&mut self.core, key, session);
        }
    }

    /// Bytes that were received straight into [`Engine::landing`].
    pub(crate) fn landed(&mut self, key: Key, count: usize, now: Instant) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.landed(&mut self.core, count, now);
            Self::list_closing(&mut self.core, key, session);
        }
    }

    /// Where the next bytes of a connection should be received directly, if that is worth it.
    pub(crate) fn landing(&mut self, key: Key, minimum: usize) -> Option<Segment> {
        self.sessions.get_mut(key)?.landing(minimum)
    }

    fn list_closing(core: &mut Core, key: Key, session: &mut Session) {
        if session.closing().is_some() || session.has_output() {
            core.list(key, &mut session.listed);
        }
    }

    /// Starts everything that was submitted and takes what is done back to the sessions, until nothing more is done. Says
    /// whether anything was.
    pub(crate) fn run(&mut self) -> bool {
        let mut progress = false;
        self.core.freed = false;
        loop {
            self.core.run_executors();
            if self.core.finished.is_empty() {
                // Buffers also become free by being sent.
                if self.core.waiting_for_buffers.is_empty() || !self.feed_waiting() {
                    return progress;
                }
                progress = true;
                continue;
            }
            progress = true;
            let mut finished = std::mem::replace(&mut self.core.finished, std::mem::take(&mut self.scratch));
            for done in finished.drain(..) {
                match self.sessions.get_mut(done.route.session) {
                    Some(session) => session.finish(&mut self.core, done),
                    // The connection closed meanwhile: its buffer is free again. Sessions over RDMA wait for theirs.
                    None => {
                        drop(done);
                        self.core.pool.suspect();
                    }
                }
            }
            self.scratch = finished;
        }
    }

    /// Gives free buffers to commands that wait for them, connection by connection: one that holds much already must not keep
    /// the others waiting. Says whether there were any.
    fn feed_waiting(&mut self) -> bool {
        let mut progress = false;
        for _ in 0..self.core.waiting_for_buffers.len() {
            let Some(key) = self.core.waiting_for_buffers.pop_front() else {
                break;
            };
            let Some(session) = self.sessions.get_mut(key) else {
                continue;
            };
            progress |= session.retry_buffers(&mut self.core);
            session.queued = session.waits_for_buffers();
            if session.queued {
                self.core.waiting_for_buffers.push_back(key);
            }
            Self::list_closing(&mut self.core, key, session);
        }
        progress
    }

    /// Drives reach this memory from now on.
    #[cfg(feature = "rdma")]
    pub(crate) fn reach(&mut self, region: &Region) {
        self.core.reach(region);
    }

    /// Drives need not reach this memory any more, which is about to go.
    #[cfg(feature = "rdma")]
    pub(crate) fn unreach(&mut self, region: &Region) {
        self.core.unreach(region);
    }

    /// Carries out a request.
    pub(crate) fn request(&mut self, request: Request) {
        match request {
            Request::Retire(handle) => self.core.retire(handle),
            Request::Opened { executor, outcome } => self.opened(executor, outcome),
            Request::Effect(Effect::Close { connection, reason }) => {
                let key = key_of(connection);
                let lost = matches!(
                    reason,
                    CloseReason::KeepAliveExpired | CloseReason::ControllerFailed
                );
                // Once for an association is enough: its I/O queues end with its admin queue.
                let is_io = self.sessions.get_mut(key).is_some_and(|session| session.is_io());
                let closing = Closing {
                    reason: reason.to_string(),
                    ordinary: is_io || !lost,
                };
                match self.sessions.get_mut(key) {
                    Some(session) if is_io && reason == CloseReason::Shutdown => {
                        session.flush_and_close(&mut self.core, closing);
                        Self::list_closing(&mut self.core, key, session);
                    }
                    _ => self.close(key, closing),
                }
            }
            Request::Effect(Effect::Respond {
                connection,
                key,
                status,
                dw0,
                dw1,
            }) => {
                if let Some(session) = self.sessions.get_mut(key_of(connection)) {
                    let result = u64::from(dw1) << 32 | u64::from(dw0);
                    session.answer(&mut self.core, key, Completion { status, result });
                }
            }
            Request::Effect(Effect::Abort {
                connection,
                cid,
                admin,
                key,
            }) => {
                let session = self.sessions.get_mut(key_of(connection));
                let aborted = session.is_some_and(|session| session.abort(&mut self.core, cid));
                self.core.node().abort_finished(admin, key, aborted);
                self.core.route_effects();
            }
        }
    }

    fn opened(&mut self, executor: Key, outcome: Result<Box<DriveQueue>, QueueError>) {
        let error = match outcome {
            Ok(queue) => return self.core.opened(executor, *queue),
            Err(error) => error,
        };
        // A session that is gone has taken the executor with it.
        if let Some(diverted) = self.core.not_opened(executor, &error)
            && let Some(session) = self.sessions.get_mut(diverted.owner)
        {
            session.share(&mut self.core, diverted);
        }
    }

    /// Ends a connection once its output is sent.
    pub(crate) fn close(&mut self, key: Key, closing: Closing) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.close(closing);
            Self::list_closing(&mut self.core, key, session);
        }
    }

    /// Forgets a connection whose socket is closed.
    pub(crate) fn forget(&mut self, key: Key, now: Instant) {
        if let Some(mut session) = self.sessions.remove(key) {
            log_end(&session);
            self.core.leave(session.lanes());
            self.core
                .node()
                .closed(connection_id(self.core.options.shard, key), now);
            self.core.route_effects();
            // Its buffers are free for others now.
            self.core.pool.suspect();
            session.settle_all(&mut self.core);
            drop(session);
            self.feed_waiting();
        }
    }

    /// The next session with something for the shard to do.
    pub(crate) fn next_listed(&mut self) -> Option<Key> {
        loop {
            let key = self.core.listed.pop()?;
            if let Some(session) = self.sessions.get_mut(key) {
                session.listed = false;
                return Some(key);
            }
        }
    }

    pub(crate) fn session(&mut self, key: Key) -> Option<&mut Session> {
        self.sessions.get_mut(key).map(Box::as_mut)
    }

    /// What a session has to send, in exchange for an empty list; `None` if it has nothing.
    pub(crate) fn take_output(&mut self, key: Key, spare: impl FnOnce() -> GatherList) -> Option<GatherList> {
        let session = self.sessions.get_mut(key)?;
        session.has_output().then(|| session.take_output(spare()))
    }

    /// Whether a session cannot take more bytes now.
    pub(crate) fn is_stalled(&mut self, key: Key) -> bool {
        self.sessions
            .get_mut(key)
            .is_some_and(|session| session.is_stalled())
    }

    /// Bytes that a session has to send and that were not taken.
    pub(crate) fn backlog(&mut self, key: Key) -> usize {
        self.sessions.get_mut(key).map_or(0, |session| session.backlog())
    }

    /// Whether a connection's next bytes are most likely data of transfers of at least `size` bytes.
    pub(crate) fn expects(&mut self, key: Key, size: usize) -> bool {
        self.sessions
            .get_mut(key)
            .is_some_and(|session| session.expects(size))
    }

    /// How payload came so far.
    pub(crate) fn payload(&self) -> Payload {
        self.core.payload
    }

    /// Namespaces that were flushed because a host shut its controller down.
    pub(crate) fn flushed(&self) -> u64 {
        self.core.flushed
    }

    /// Number of connections.
    pub(crate) fn connections(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn sessions(&self) -> Vec<Key> {
        self.sessions.keys()
    }

    /// Whether executors have commands.
    pub(crate) fn is_executing(&self) -> bool {
        !self.core.busy.is_empty() || self.core.opening > 0
    }

    /// How remote queues came by queue pairs of drives.
    pub(crate) fn drive_queues(&self) -> DriveQueues {
        self.core.drive_queues
    }

    /// Whether commands wait for buffers.
    #[cfg(feature = "rdma")]
    pub(crate) fn wants_buffers(&self) -> bool {
        !self.core.waiting_for_buffers.is_empty()
    }

    /// Whether there is something to do at once, though nothing will say so: a command that waits for a buffer may have one, or
    /// an executor has commands that it executes only when it is run.
    pub(crate) fn is_pressing(&self) -> bool {
        let waits = |key: &Key| matches!(self.core.executors.get(*key), Some(executor) if executor.wait_descriptor().is_none());
        (self.core.freed && !self.core.waiting_for_buffers.is_empty()) || self.core.busy.iter().any(waits)
    }

    /// Calls `f` with every busy executor that the shard does not watch yet and that has a descriptor to sleep on.
    pub(crate) fn watch_executors(&mut self, mut f: impl FnMut(usize, BorrowedFd<'_>) -> bool) {
        for &key in &self.core.busy {
            if let Some(executor) = self.core.executors.get_mut(key)
                && !executor.watched
                && let Some(descriptor) = executor.wait_descriptor()
            {
                executor.watched = f(key.index(), descriptor);
            }
        }
    }

    /// Places of executors that are gone since this was asked last. To be asked before executors are watched: others may have their places.
    #[inline]
    pub(crate) fn take_gone_executor(&mut self) -> Option<usize> {
        self.core.gone.pop()
    }

    /// The shard was woken for an executor and no longer watches it.
    pub(crate) fn unwatched(&mut self, place: usize) {
        if let Some(executor) = self.core.executors.at_mut(place) {
            executor.watched = false;
        }
    }
}

fn log_end(session: &Session) {
    if let Some(closing) = session.closing() {
        let peer = session.peer();
        if closing.ordinary {
            tracing::debug!(%peer, "connection closed: {}", closing.reason);
        } else {
            tracing::warn!(%peer, "connection closed: {}", closing.reason);
        }
    }
}
