//! A running target: shards, listeners and the control thread, started, reloaded and stopped as one.
//!
//! [`Service`] has no global state and installs no signal handlers, so a test or another program can run several.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use homi_fabric::controller::{ConfigError as NodeConfigError, PortId};
use homi_local::OpenError;
use homi_reactor::socket::{self, Congestion, SocketError};
use homi_reactor::{Backend, BackendChoice, Event, Options, Reactor, ReactorError, SocketKey, Wait, Waker};

use crate::catalogue::{Address, Catalogue, in_capsule};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Events, Listener};
use crate::engine::{Deliver, EngineOptions, Request, Shared};
use crate::shard::{Arrival, Mailbox, Message, STAGING, Shard, ShardCounters, ShardOptions};

/// Connections that the system queues for a listener.
const BACKLOG: i32 = 1024;
/// The longest that the control thread sleeps while there are associations, so that a new one's keep-alive is seen.
const CONTROL_PERIOD: Duration = Duration::from_millis(250);
/// Connections accepted beyond `limits.connections`, so that their hosts are told that the node is busy instead of finding the
/// connection closed. Beyond these too they are closed.
const TURNED_AWAY: u64 = 64;

/// Why a target cannot run as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration cannot be expressed on the wire.
    #[error("the configuration is wrong: {0}")]
    Node(#[from] NodeConfigError),
    /// A file or device cannot be served.
    #[error("namespace {nsid} of {nqn}: {source}")]
    Open {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        nsid: u32,
        /// Why.
        source: OpenError,
    },
    /// A namespace cannot be made.
    #[error("namespace {nsid} of {nqn}: {problem}")]
    Namespace {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        nsid: u32,
        /// Why, and what to change.
        problem: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen: {0}")]
    Listen(#[from] SocketError),
    /// The configuration's congestion control cannot be used.
    #[error("node.congestion: {0}")]
    Congestion(io::Error),
    /// An event loop cannot be had.
    #[error("cannot start an event loop: {0}")]
    Reactor(#[from] ReactorError),
    /// A thread cannot be had.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A value that cannot change while the target runs.
    #[error("{0} cannot change while the target runs: restart it")]
    NeedsRestart(&'static str),
    /// The control thread is gone.
    #[error("the control thread has ended")]
    Ended,
}

/// The mailboxes of all shards.
#[derive(Debug)]
struct Post {
    boxes: Vec<Arc<Mailbox>>,
}

impl Deliver for Post {
    fn deliver(&self, shard: u16, request: Request) {
        if let Some(mailbox) = self.boxes.get(usize::from(shard)) {
            mailbox.post(Message::Request(request));
        }
    }
}

enum Order {
    Apply(Box<Config>, SyncSender<Result<(), ServiceError>>),
    Stop,
}

/// A running target. Dropping it stops it.
pub struct Service {
    orders: mpsc::Sender<Order>,
    control_waker: Waker,
    control: Option<JoinHandle<()>>,
    shards: Vec<JoinHandle<()>>,
    mailboxes: Vec<Arc<Mailbox>>,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    backend: Backend,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("shards", &self.shards.len())
            .field("backend", &self.backend)
            .finish()
    }
}

impl Service {
    /// Opens what is configured, listens, and serves until stopped.
    ///
    /// # Errors
    /// [`ServiceError`] if anything that is configured cannot be had; nothing runs then.
    pub fn start(config: &Config) -> Result<Self, ServiceError> {
        config.check()?;
        let clock = Clock::start();
        let shard_count = config.node.shards.map_or_else(default_shards, usize::from);
        let mailboxes: Vec<Arc<Mailbox>> = (0..shard_count).map(|_| Arc::new(Mailbox::new())).collect();
        let shared = Shared::new(
            config,
            Arc::new(Post {
                boxes: mailboxes.clone(),
            }),
        )?;
        let mut service = Self::start_threads(config, &shared, mailboxes, clock)?;
        match service.reload(config) {
            Ok(()) => Ok(service),
            Err(error) => {
                service.stop();
                Err(error)
            }
        }
    }

    fn start_threads(
        config: &Config,
        shared: &Shared,
        mailboxes: Vec<Arc<Mailbox>>,
        clock: Clock,
    ) -> Result<Self, ServiceError> {
        let mut shards = Vec::new();
        let mut backend = Backend::IoUring;
        let cores = if config.node.pin {
            socket::allowed_cores().unwrap_or_default()
        } else {
            Vec::new()
        };
        for (mailbox, index) in mailboxes.iter().zip(0_u16..) {
            let options = shard_options(config, index);
            let (shared, mailbox) = (shared.clone(), Arc::clone(mailbox));
            let core = (!cores.is_empty())
                .then(|| cores.get(usize::from(index) % cores.len()).copied())
                .flatten();
            let (ready, started) = mpsc::sync_channel(1);
            let thread = thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || {
                    if let Some(core) = core
                        && let Err(error) = socket::pin_current_thread(core)
                    {
                        tracing::warn!("cannot stay on core {core}: {error}");
                    }
                    let shard = match Shard::new(shared, options, mailbox, clock) {
                        Ok(shard) => shard,
                        // The starter is waiting for this answer.
                        Err(error) => return drop(ready.send(Err(error))),
                    };
                    let reactor = shard.reactor();
                    let fallback = reactor.fallback_reason().map(str::to_owned);
                    drop(ready.send(Ok((reactor.backend(), fallback))));
                    if let Err(error) = shard.run() {
                        tracing::error!("shard {index} ended: {error}");
                    }
                });
            shards.push(thread.map_err(ServiceError::Thread)?);
            let (used, fallback) = started.recv().map_err(|_| ServiceError::Ended)??;
            backend = used;
            if let (0, Some(reason)) = (index, fallback) {
                tracing::warn!("running on readiness events: {reason}");
            }
        }
        let (orders, inbox) = mpsc::channel();
        let addresses = Arc::new(Mutex::new(Vec::new()));
        let (ready, started) = mpsc::sync_channel(1);
        let control = {
            let (shared, mailboxes, addresses) = (shared.clone(), mailboxes.clone(), Arc::clone(&addresses));
            let config = config.clone();
            thread::Builder::new().name("control".to_owned()).spawn(move || {
                let options = Options {
                    backend: backend_choice(&config),
                    staging_buffers: 1,
                    staging_len: 4096,
                    entries: 64,
                };
                let reactor = match Reactor::new(options) {
                    Ok(reactor) => reactor,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                drop(ready.send(Ok(reactor.waker())));
                Control::new(reactor, shared, mailboxes, addresses, clock, config).run(&inbox);
            })
        };
        let control = control.map_err(ServiceError::Thread)?;
        let control_waker = started.recv().map_err(|_| ServiceError::Ended)??;
        Ok(Self {
            orders,
            control_waker,
            control: Some(control),
            shards,
            mailboxes,
            addresses,
            backend,
        })
    }

    /// Makes the target serve what `config` says. Whoever is not concerned notices nothing.
    ///
    /// # Errors
    /// [`ServiceError`] if anything cannot be had, or cannot change without a restart; the target then serves what it
    /// served before.
    pub fn reload(&self, config: &Config) -> Result<(), ServiceError> {
        config.check()?;
        let (answer, answered) = mpsc::sync_channel(1);
        let order = Order::Apply(Box::new(config.clone()), answer);
        self.orders.send(order).map_err(|_| ServiceError::Ended)?;
        self.control_waker.wake();
        answered.recv().map_err(|_| ServiceError::Ended)?
    }

    /// The addresses that the target listens on now, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Which interface of the kernel the shards wait on.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Number of connections now.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.mailboxes
            .iter()
            .map(|mailbox| mailbox.connections.load(Ordering::Relaxed))
            .sum()
    }

    /// What each shard has done so far.
    #[must_use]
    pub fn counters(&self) -> Vec<ShardCounters> {
        self.mailboxes.iter().map(|mailbox| mailbox.counters()).collect()
    }

    /// Stops: no new connections, commands in flight end (two seconds at most), everything is closed.
    pub fn stop(&mut self) {
        if let Some(control) = self.control.take() {
            // A control thread that is gone already has nothing to stop.
            let _ = self.orders.send(Order::Stop);
            self.control_waker.wake();
            join(control, "control");
        }
        for mailbox in &self.mailboxes {
            mailbox.post(Message::Stop);
        }
        for (index, shard) in self.shards.drain(..).enumerate() {
            join(shard, &format!("shard-{index}"));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

fn join(thread: JoinHandle<()>, name: &str) {
    if thread.join().is_err() {
        tracing::error!("thread {name} panicked");
    }
}

fn default_shards() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn backend_choice(config: &Config) -> BackendChoice {
    match config.node.events {
        Events::Auto => BackendChoice::Auto,
        Events::IoUring => BackendChoice::IoUring,
        Events::Readiness => BackendChoice::Readiness,
    }
}

fn shard_options(config: &Config, shard: u16) -> ShardOptions {
    ShardOptions {
        engine: EngineOptions::new(config, shard),
        reactor: Options {
            backend: backend_choice(config),
            staging_len: u32::try_from(STAGING).unwrap_or(u32::MAX),
            ..Options::default()
        },
        poll: Duration::from_micros(config.node.poll_us),
        handshake: config.handshake_timeout(),
    }
}

/// A listening socket.
struct Listening {
    address: Address,
    key: SocketKey,
}

/// The control thread: accepts, applies configurations, keeps the node's time.
struct Control {
    reactor: Reactor,
    shared: Shared,
    mailboxes: Vec<Arc<Mailbox>>,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    clock: Clock,
    config: Config,
    listening: Vec<Listening>,
    next_port: u16,
    catalogue: Catalogue,
}

impl Control {
    fn new(
        reactor: Reactor,
        shared: Shared,
        mailboxes: Vec<Arc<Mailbox>>,
        addresses: Arc<Mutex<Vec<SocketAddr>>>,
        clock: Clock,
        config: Config,
    ) -> Self {
        let (listening, catalogue) = (Vec::new(), Catalogue::default());
        Self {
            reactor,
            shared,
            mailboxes,
            addresses,
            clock,
            config,
            listening,
            next_port: 1,
            catalogue,
        }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        let mut accepted = Vec::new();
        loop {
            let deadline = self.shared.node().next_deadline();
            let connected = self
                .mailboxes
                .iter()
                .any(|mailbox| mailbox.connections.load(Ordering::Relaxed) > 0);
            let until = deadline.map(|due| due.saturating_since(self.clock.now()));
            let sleep = match until {
                Some(until) => Some(until.min(CONTROL_PERIOD)),
                None => connected.then_some(CONTROL_PERIOD),
            };
            let turned = self.reactor.turn(Wait::Sleep(sleep), &mut |event| match event {
                Event::Accepted {
                    listener_token,
                    stream,
                    peer,
                } => accepted.push((listener_token, stream, peer)),
                Event::AcceptFailed { error, .. } => tracing::warn!("cannot accept a connection: {error}"),
                _ => {}
            });
            if let Err(error) = turned {
                tracing::error!("the control thread ended: {error}");
                return;
            }
            for (port, stream, peer) in accepted.drain(..) {
                self.accept(port, stream, peer);
            }
            let now = self.clock.now();
            if deadline.is_some_and(|due| due <= now) {
                self.shared.node().handle_timeout(now);
            }
            self.shared.route_effects();
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Stop => return,
                    Order::Apply(config, answer) => {
                        let outcome = self.apply(&config);
                        // Whoever asked may have gone.
                        let _ = answer.send(outcome);
                    }
                }
            }
        }
    }

    /// Gives a connection to the shard that has the fewest.
    fn accept(&mut self, token: u64, stream: OwnedFd, peer: SocketAddr) {
        let Some(listening) = self
            .listening
            .iter()
            .find(|listening| u64::from(listening.address.port.0) == token)
        else {
            return;
        };
        let counts = self
            .mailboxes
            .iter()
            .map(|mailbox| mailbox.connections.load(Ordering::Relaxed));
        let total: u64 = counts.sum();
        if total >= u64::from(self.config.limits.connections) + TURNED_AWAY {
            tracing::warn!(%peer, "connection refused: there are {total} connections already (limits.connections)");
            return;
        }
        let Some(mailbox) = self
            .mailboxes
            .iter()
            .min_by_key(|mailbox| mailbox.connections.load(Ordering::Relaxed))
        else {
            return;
        };
        // Without this, a batch's last completions wait for the host's delayed acknowledgement: 40 ms.
        if let Err(error) = socket::set_no_delay(stream.as_fd(), true) {
            tracing::warn!(%peer, "connection refused: its small sends cannot be made to go out at once: {error}");
            return;
        }
        // Counted at once, so that connections that arrive together spread out; the shard then keeps the count itself.
        mailbox.connections.fetch_add(1, Ordering::Relaxed);
        let local = socket::local_address(stream.as_fd())
            .unwrap_or(listening.address.local)
            .ip();
        mailbox.post(Message::Arrival(Arrival {
            stream,
            local,
            peer: peer.to_string().into(),
            port: listening.address.port,
            in_capsule: in_capsule(&self.config),
        }));
    }

    fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        self.check_restart(config)?;
        let prepared = self.catalogue.prepare(config, &self.shared.backings)?;
        // Nothing is changed up to here and until the node has checked its part: dropping what is prepared undoes it.
        let added = self.bind(config)?;
        let listening: Vec<Address> = config
            .listener
            .iter()
            .filter_map(|wanted| self.find(wanted, &added))
            .collect();
        let node_config = prepared.node_config(config, &listening);
        self.shared.node().apply(node_config, self.clock.now())?;
        for handle in self.catalogue.commit(prepared) {
            for mailbox in &self.mailboxes {
                mailbox.post(Message::Request(Request::Retire(handle)));
            }
        }
        for (address, socket) in added {
            let key = self.reactor.add_listener(socket, u64::from(address.port.0));
            tracing::info!("listening on {}", address.local);
            self.listening.push(Listening { address, key });
        }
        let (kept, gone): (Vec<_>, Vec<_>) = self
            .listening
            .drain(..)
            .partition(|listening| config.listener.contains(&listening.address.wanted));
        self.listening = kept;
        for listening in gone {
            tracing::info!("no longer listening on {}", listening.address.local);
            self.reactor.close(listening.key);
        }
        let addresses = listening.iter().map(|address| address.local).collect();
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        self.config = config.clone();
        self.shared.route_effects();
        Ok(())
    }

    /// The address of a listener that is open already or was just added.
    fn find(&self, wanted: &Listener, added: &[(Address, OwnedFd)]) -> Option<Address> {
        let known = self.listening.iter().map(|listening| &listening.address);
        known
            .chain(added.iter().map(|(address, _)| address))
            .find(|address| address.wanted == *wanted)
            .cloned()
    }

    /// What shards and the node were started with stays.
    fn check_restart(&self, config: &Config) -> Result<(), ServiceError> {
        let (old, new) = (&self.config, config);
        if format!("{:?}", old.node) != format!("{:?}", new.node) {
            return Err(ServiceError::NeedsRestart("[node]"));
        }
        if old.limits.queue_entries != new.limits.queue_entries
            || old.limits.handshake_s != new.limits.handshake_s
        {
            return Err(ServiceError::NeedsRestart(
                "limits.queue_entries and limits.handshake_s",
            ));
        }
        Ok(())
    }

    /// Binds the listeners that are new.
    fn bind(&mut self, config: &Config) -> Result<Vec<(Address, OwnedFd)>, ServiceError> {
        let mut added = Vec::new();
        for wanted in &config.listener {
            if self
                .listening
                .iter()
                .any(|listening| listening.address.wanted == *wanted)
            {
                continue;
            }
            let socket = socket::listen(wanted.address, BACKLOG)?;
            let congestion = Congestion::from(config.node.congestion.as_str());
            socket::set_congestion(socket.as_fd(), &congestion).map_err(ServiceError::Congestion)?;
            let local = socket::local_address(socket.as_fd()).unwrap_or(wanted.address);
            let port = PortId(self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(1);
            added.push((
                Address {
                    wanted: wanted.clone(),
                    local,
                    port,
                },
                socket,
            ));
        }
        Ok(added)
    }
}
