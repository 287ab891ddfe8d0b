//! A shard without sockets: sessions, executors and buffers, driven by received bytes and messages.
//!
//! One pass of an engine is: bytes go to sessions, sessions start commands, [`Engine::run`] starts the batch at the
//! executors and takes completions back to the sessions, and what they have to send is left in their outputs. The
//! shard drives an engine with a reactor; tests drive it with byte vectors and a clock of their own. A connection over RDMA brings
//! no bytes: whoever has its queue pair tells its state machine what happened there ([`Engine::rdma`]), and posts what that wants.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use homi_fabric::controller::{
    CloseReason, ConfigError as NodeConfigError, ConnectionId, Effect, Node, NodeIdentity, PortId,
};
use homi_fabric::rdma;
use homi_fabric::tcp::{ControllerConnection, ControllerParams};
use homi_fabric::time::Instant;
use homi_local::{Backing, FileBackend};
use homi_queue::{Command, Completion, Data, GatherList, Segment};
use homi_spec::status::Status;

use crate::arena::Arena;
use crate::config::{Config, Events, Size};
use crate::executors::{Executor, ExecutorRoute, Finished};
use crate::pool::Pool;
use crate::session::{Closing, Link, Memory, Session};
use crate::slab::{Key, Slab};

/// What backs each namespace, by the handle that namespace tables carry. Handles are small and never reused.
#[derive(Debug, Default)]
pub(crate) struct Backings {
    entries: RwLock<Vec<Option<Backing>>>,
}

impl Backings {
    /// Adds a backing and returns its handle.
    pub(crate) fn add(&self, backing: Backing) -> u64 {
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

    fn get(&self, index: usize) -> Option<Backing> {
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
    pub(crate) deliver: Arc<dyn Deliver>,
}

impl Shared {
    pub(crate) fn new(config: &Config, deliver: Arc<dyn Deliver>) -> Result<Self, NodeConfigError> {
        let node = Node::new(NodeIdentity {
            max_queue_entries: u32::from(config.limits.queue_entries),
            // Checked to be at most 16 MiB.
            max_transfer: u32::try_from(config.node.max_transfer.0).unwrap_or(1 << 20),
            ..NodeIdentity::default()
        })?;
        Ok(Self {
            node: Arc::new(Mutex::new(node)),
            backings: Arc::default(),
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

/// How payload reached the memory of commands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Payload {
    /// Commands whose payload was copied from a staging buffer, wholly or in part.
    pub(crate) copies: u64,
    /// Bytes that were.
    pub(crate) bytes_copied: u64,
    /// Bytes that the kernel put where they belong.
    pub(crate) bytes_landed: u64,
}

/// What sessions use of their engine.
pub(crate) struct Core {
    shared: Shared,
    options: EngineOptions,
    pub(crate) pool: Pool,
    /// The buffers of connections over RDMA.
    pub(crate) arena: Arena,
    /// Such buffers came back since commands that wait for them were looked at.
    pub(crate) freed: bool,
    pub(crate) payload: Payload,
    /// Namespaces that were flushed because a host shut its controller down.
    pub(crate) flushed: u64,
    /// By handle. Handles are small numbers.
    executors: Vec<Option<Box<Executor>>>,
    /// Handles of executors that are gone, whose descriptors the shard need not watch any more.
    gone: Vec<usize>,
    /// Executors with commands, by handle.
    busy: Vec<usize>,
    finished: Vec<Finished>,
    /// Sessions with commands that wait for buffers, the one that waits longest first.
    waiting_for_buffers: VecDeque<Key>,
    /// Sessions with something to send, or that want to be closed.
    listed: Vec<Key>,
}

impl Core {
    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        self.shared.node()
    }

    pub(crate) fn route_effects(&self) {
        self.shared.route_effects();
    }

    /// Remembers that a session has something for the shard to do.
    #[inline]
    pub(crate) fn list(&mut self, key: Key, listed: &mut bool) {
        if !*listed {
            *listed = true;
            self.listed.push(key);
        }
    }

    /// Remembers that a session has commands that wait for buffers.
    pub(crate) fn wait_for_buffer(&mut self, key: Key, queued: &mut bool) {
        if !*queued {
            *queued = true;
            self.waiting_for_buffers.push_back(key);
        }
    }

    /// A buffer of `len` bytes, or `None` when there is none now.
    #[inline]
    pub(crate) fn take(&mut self, memory: Memory, len: usize) -> Option<Data> {
        match memory {
            Memory::Ordinary => {
                let executors = &mut self.executors;
                self.pool.take(len, |region| {
                    for executor in executors.iter_mut().flatten() {
                        executor.forget(region);
                    }
                })
            }
            Memory::Registered => self.arena.take(len),
        }
    }

    /// Takes back a buffer that a command is done with. Other memory is dropped.
    #[inline]
    pub(crate) fn put(&mut self, memory: Memory, data: Data) {
        match memory {
            Memory::Ordinary => self.pool.put(data),
            Memory::Registered => {
                self.arena.put(&data);
            }
        }
    }

    /// See [`Pool::may_lend`].
    #[inline]
    pub(crate) fn may_lend(&mut self, memory: Memory, held: usize, len: usize) -> bool {
        match memory {
            Memory::Ordinary => self.pool.may_lend(held, len),
            Memory::Registered => self.arena.may_lend(held, len),
        }
    }

    /// See [`Pool::lend`].
    #[inline]
    pub(crate) fn lend(&mut self, memory: Memory, len: usize) -> usize {
        match memory {
            Memory::Ordinary => self.pool.lend(len),
            Memory::Registered => self.arena.lend(len),
        }
    }

    /// See [`Pool::settle`].
    #[inline]
    pub(crate) fn settle(&mut self, memory: Memory, size: usize) {
        match memory {
            Memory::Ordinary => self.pool.settle(size),
            Memory::Registered => self.arena.settle(size),
        }
    }

    /// Whether the executor with this handle lends reads its own memory. Where not, they need buffers of the pool, or what
    /// hosts ask for and do not take would have no bound.
    #[inline]
    pub(crate) fn lends_memory(&mut self, memory: Memory, handle: u64) -> bool {
        if memory == Memory::Registered {
            // No device has registered it.
            return false;
        }
        let index = usize::try_from(handle).unwrap_or(usize::MAX);
        if !matches!(self.executors.get(index), Some(Some(_))) && !self.open(index) {
            // What is started there fails before it has any memory.
            return true;
        }
        matches!(self.executors.get(index), Some(Some(executor)) if executor.lends_memory)
    }

    /// Starts a command at the executor with this handle.
    #[inline]
    pub(crate) fn start(&mut self, route: ExecutorRoute, handle: u64, command: Command, data: Data) {
        let index = usize::try_from(handle).unwrap_or(usize::MAX);
        if !matches!(self.executors.get(index), Some(Some(_))) && !self.open(index) {
            let completion = Completion::failed(Status::NAMESPACE_NOT_READY);
            return self.finished.push(Finished {
                route,
                completion,
                data,
            });
        }
        if let Some(Some(executor)) = self.executors.get_mut(index) {
            if executor.lost {
                return self.start_again(route, index, command, data);
            }
            if !executor.is_busy() {
                self.busy.push(index);
            }
            executor.start(route, command, data);
        }
    }

    /// Starts a command at an executor whose queue was lost: on another queue, unless that would wait for a drive that is being reset.
    #[cold]
    fn start_again(&mut self, route: ExecutorRoute, index: usize, command: Command, data: Data) {
        let place = self.executors.get_mut(index);
        if let Some(place) = place
            && place.as_ref().is_some_and(|executor| executor.may_go())
        {
            *place = None;
            self.gone.push(index);
            return self.start(route, index as u64, command, data);
        }
        self.finished.push(Finished {
            route,
            completion: Completion::failed(Status::NAMESPACE_NOT_READY),
            data,
        });
    }

    #[cold]
    fn open(&mut self, index: usize) -> bool {
        let Some(backing) = self.shared.backings.get(index) else {
            return false;
        };
        match Executor::open(&backing, self.options.executor_depth, self.options.file_backend) {
            Ok(executor) => {
                if self.executors.len() <= index {
                    self.executors.resize_with(index + 1, || None);
                }
                if let Some(place) = self.executors.get_mut(index) {
                    *place = Some(Box::new(executor));
                }
                true
            }
            Err(error) => {
                tracing::error!(
                    shard = self.options.shard,
                    "cannot open a queue on a namespace's backing: {error}"
                );
                false
            }
        }
    }

    fn retire(&mut self, handle: u64) {
        let Ok(index) = usize::try_from(handle) else {
            return;
        };
        if let Some(place) = self.executors.get_mut(index) {
            match place {
                Some(executor) if executor.is_busy() => executor.retired = true,
                _ => {
                    *place = None;
                    self.gone.push(index);
                }
            }
        }
    }

    /// Starts what was submitted and moves what is done to `finished`.
    fn run_executors(&mut self) {
        let mut index = 0;
        while let Some(&handle) = self.busy.get(index) {
            let Some(Some(executor)) = self.executors.get_mut(handle) else {
                self.busy.swap_remove(index);
                continue;
            };
            executor.run(&mut self.finished);
            if executor.is_busy() {
                index += 1;
                continue;
            }
            let retired = executor.retired;
            self.busy.swap_remove(index);
            if retired && let Some(place) = self.executors.get_mut(handle) {
                *place = None;
                self.gone.push(handle);
            }
        }
    }
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
        let pool = Pool::new(options.buffers, options.max_transfer);
        let arena = Arena::new(options.buffers, options.max_transfer);
        Self {
            core: Core {
                shared,
                options,
                pool,
                arena,
                freed: false,
                payload: Payload::default(),
                flushed: 0,
                executors: Vec::new(),
                gone: Vec::new(),
                busy: Vec::new(),
                finished: Vec::new(),
                waiting_for_buffers: VecDeque::new(),
                listed: Vec::new(),
            },
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
        if let Some(session) = self.sessions.remove(key) {
            self.core.settle(Memory::Registered, session.lent());
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
                    None => drop(done),
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

    /// Carries out a request.
    pub(crate) fn request(&mut self, request: Request) {
        match request {
            Request::Retire(handle) => self.core.retire(handle),
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

    /// Ends a connection once its output is sent.
    pub(crate) fn close(&mut self, key: Key, closing: Closing) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.close(closing);
            Self::list_closing(&mut self.core, key, session);
        }
    }

    /// Forgets a connection whose socket is closed.
    pub(crate) fn forget(&mut self, key: Key, now: Instant) {
        if let Some(session) = self.sessions.remove(key) {
            log_end(&session);
            self.core
                .node()
                .closed(connection_id(self.core.options.shard, key), now);
            self.core.route_effects();
            // Its buffers are free for others now.
            self.core.settle(Memory::Ordinary, session.lent());
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
        !self.core.busy.is_empty()
    }

    /// Whether commands wait for buffers.
    #[cfg(feature = "rdma")]
    pub(crate) fn wants_buffers(&self) -> bool {
        !self.core.waiting_for_buffers.is_empty()
    }

    /// Whether there is something to do at once, though nothing will say so: a command that waits for a buffer may have one, or
    /// an executor has commands that it executes only when it is run.
    pub(crate) fn is_pressing(&self) -> bool {
        let waits = |handle: &usize| matches!(self.core.executors.get(*handle), Some(Some(executor)) if executor.wait_descriptor().is_none());
        (self.core.freed && !self.core.waiting_for_buffers.is_empty()) || self.core.busy.iter().any(waits)
    }

    /// Calls `f` with every busy executor that the shard does not watch yet and that has a descriptor to sleep on.
    pub(crate) fn watch_executors(&mut self, mut f: impl FnMut(usize, BorrowedFd<'_>) -> bool) {
        for &handle in &self.core.busy {
            if let Some(Some(executor)) = self.core.executors.get_mut(handle)
                && !executor.watched
                && let Some(descriptor) = executor.wait_descriptor()
            {
                executor.watched = f(handle, descriptor);
            }
        }
    }

    /// Executors that are gone since this was asked last.
    #[inline]
    pub(crate) fn take_gone_executor(&mut self) -> Option<usize> {
        self.core.gone.pop()
    }

    /// The shard was woken for an executor and no longer watches it.
    pub(crate) fn unwatched(&mut self, handle: usize) {
        if let Some(Some(executor)) = self.core.executors.get_mut(handle) {
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
