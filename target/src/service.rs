//! A running target: shards, listeners and the control thread, started, reloaded and stopped as one.
//!
//! [`Service`] has no global state and installs no signal handlers, so a test or another program can run several.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use homi_fabric::controller::{ConfigError as NodeConfigError, PortId};
use homi_local::{DriveOptions, DriveStatus, Drives, OpenError};
use homi_reactor::socket::{self, Congestion, SocketError};
use homi_reactor::{Backend, BackendChoice, Event, Options, Reactor, ReactorError, SocketKey, Wait, Waker};
use homi_verbs::VerbsError;

use crate::catalogue::{Address, Catalogue, in_capsule};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Events, Listener, Place, Transport};
use crate::engine::{Deliver, EngineOptions, Request, Shared};
use crate::rdma;
use crate::shard::{Arrival, Mailboxes, Message, STAGING, Shard, ShardCounters, ShardOptions};

/// Connections that the system queues for a listener.
const BACKLOG: i32 = 1024;
/// The longest that the control thread sleeps while there are associations, so that a new one's keep-alive is seen.
const CONTROL_PERIOD: Duration = Duration::from_millis(250);

/// Queue pairs that a drive is asked for: remote queues have one each, as far as they go.
const DRIVE_QUEUES: u16 = 256;
/// How long the end waits for drives to be shut down.
const DRIVES_CLOSE: Duration = Duration::from_secs(15);

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
    /// An address cannot be listened on over RDMA.
    #[error("cannot listen on rdma://{address}: {source}")]
    ListenRdma {
        /// The address.
        address: SocketAddr,
        /// Why: what this machine, or this build, lacks.
        source: VerbsError,
    },
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
    boxes: Mailboxes,
}

impl Deliver for Post {
    fn deliver(&self, shard: u16, request: Request) {
        self.boxes.post(usize::from(shard), Message::Request(request));
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
    mailboxes: Mailboxes,
    places: Arc<Mutex<Vec<Place>>>,
    backend: Backend,
    drives: Drives,
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
        let drives = Drives::new(drive_options(config));
        Self::start_with(config, drives)
    }

    /// The same with drives that the caller may have provided; [`drive_options`] says how they should be driven.
    ///
    /// # Errors
    /// As for [`Service::start`].
    pub fn start_with(config: &Config, drives: Drives) -> Result<Self, ServiceError> {
        config.check()?;
        let clock = Clock::start();
        let shard_count = shard_count(config);
        let mailboxes = Mailboxes::new(shard_count);
        let shared = Shared::new(
            config,
            drives,
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
        mailboxes: Mailboxes,
        clock: Clock,
    ) -> Result<Self, ServiceError> {
        let mut shards = Vec::new();
        let whole = Arc::new(config.clone());
        let mut backend = Backend::IoUring;
        let cores = if config.node.pin {
            socket::allowed_cores().unwrap_or_default()
        } else {
            Vec::new()
        };
        for (mailbox, index) in mailboxes.iter().zip(0_u16..) {
            let options = shard_options(&whole, index);
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
        let places = Arc::new(Mutex::new(Vec::new()));
        let (ready, started) = mpsc::sync_channel(1);
        let control = {
            let (shared, mailboxes, places) = (shared.clone(), mailboxes.clone(), Arc::clone(&places));
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
                Control::new(reactor, shared, mailboxes, places, clock, config).run(&inbox);
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
            places,
            backend,
            drives: shared.drives.clone(),
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
        self.places().iter().map(|place| place.address).collect()
    }

    /// The same with the transport of each.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which interface of the kernel the shards wait on.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Number of connections now.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.mailboxes.connections()
    }

    /// What each shard has done so far.
    #[must_use]
    pub fn counters(&self) -> Vec<ShardCounters> {
        self.mailboxes.iter().map(|mailbox| mailbox.counters()).collect()
    }

    /// The drives that the target drives itself, with the queue pairs that they have open. Waits for those that are being reset.
    #[must_use]
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.drives.status()
    }

    /// Stops: no new connections, commands in flight end (two seconds at most), everything is closed.
    pub fn stop(&mut self) {
        if let Some(control) = self.control.take() {
            // A control thread that is gone already has nothing to stop.
            let _ = self.orders.send(Order::Stop);
            self.control_waker.wake();
            join(control, "control");
        }
        for mailbox in self.mailboxes.iter() {
            mailbox.post(Message::Stop);
        }
        for (index, shard) in self.shards.drain(..).enumerate() {
            join(shard, &format!("shard-{index}"));
        }
        let through: u64 = self.counters().iter().map(|shard| shard.bytes_cmb).sum();
        for mailbox in self.mailboxes.iter() {
            mailbox.clear();
        }
        if through > 0 {
            tracing::info!("{through} bytes of data went through memory buffers of drives");
        }
        if !self.drives.wait_closed(DRIVES_CLOSE) {
            tracing::warn!("drives are not shut down within {DRIVES_CLOSE:?}");
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

fn shard_count(config: &Config) -> usize {
    let every_core = || thread::available_parallelism().map_or(1, usize::from);
    config.node.shards.map_or_else(every_core, usize::from)
}

/// How a target with this configuration drives drives: one queue pair for each shard is kept for remote queues that find none left.
#[must_use]
pub fn drive_options(config: &Config) -> DriveOptions {
    let mut options = DriveOptions::default();
    options.shared_queues = u16::try_from(shard_count(config)).unwrap_or(u16::MAX);
    options.controller = options
        .controller
        .queues(DRIVE_QUEUES)
        .vectors(DRIVE_QUEUES.saturating_add(1));
    options
}

fn backend_choice(config: &Config) -> BackendChoice {
    match config.node.events {
        Events::Auto => BackendChoice::Auto,
        Events::IoUring => BackendChoice::IoUring,
        Events::Readiness => BackendChoice::Readiness,
    }
}

fn shard_options(config: &Arc<Config>, shard: u16) -> ShardOptions {
    ShardOptions {
        config: Arc::clone(config),
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

/// What connections come in through.
enum Door {
    Tcp(SocketKey),
    Rdma(rdma::Listener),
}

/// A door that was opened but is not in use yet. Dropping it closes it.
enum NewDoor {
    Tcp(OwnedFd),
    Rdma(rdma::Listener),
}

/// A listener.
struct Listening {
    address: Address,
    door: Door,
}

/// The control thread: accepts, applies configurations, keeps the node's time.
struct Control {
    reactor: Reactor,
    shared: Shared,
    mailboxes: Mailboxes,
    places: Arc<Mutex<Vec<Place>>>,
    clock: Clock,
    config: Config,
    rdma: rdma::Listeners,
    listening: Vec<Listening>,
    next_port: u16,
    catalogue: Catalogue,
}

impl Control {
    fn new(
        reactor: Reactor,
        shared: Shared,
        mailboxes: Mailboxes,
        places: Arc<Mutex<Vec<Place>>>,
        clock: Clock,
        config: Config,
    ) -> Self {
        let shards = u16::try_from(mailboxes.iter().count()).unwrap_or(u16::MAX);
        let (listening, catalogue) = (Vec::new(), Catalogue::new(shared.drives.clone(), shards));
        let rdma = rdma::Listeners::new();
        Self {
            reactor,
            shared,
            mailboxes,
            places,
            clock,
            config,
            rdma,
            listening,
            next_port: 1,
            catalogue,
        }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        let mut accepted = Vec::new();
        loop {
            let deadline = self.shared.node().next_deadline();
            let connected = self.mailboxes.connections() > 0;
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
            let gone = self.rdma.turn(&mut self.reactor, &self.config, &self.mailboxes);
            for port in gone {
                self.lose(port);
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
        // Without this, a batch's last completions wait for the host's delayed acknowledgement: 40 ms.
        if let Err(error) = socket::set_no_delay(stream.as_fd(), true) {
            tracing::warn!(%peer, "connection refused: its small sends cannot be made to go out at once: {error}");
            return;
        }
        let Some(shard) = self.mailboxes.choose(self.config.limits.connections) else {
            tracing::warn!(%peer, "connection refused: there are as many as there may be (limits.connections)");
            return;
        };
        let local = socket::local_address(stream.as_fd())
            .unwrap_or(listening.address.local)
            .ip();
        let arrival = Arrival {
            stream,
            local,
            peer: peer.to_string().into(),
            port: listening.address.port,
            in_capsule: in_capsule(&self.config, Transport::Tcp),
        };
        self.mailboxes.post(shard, Message::Arrival(arrival));
    }

    /// The device of a listener is gone.
    fn lose(&mut self, port: PortId) {
        self.listening.retain(|listening| {
            let lost = listening.address.port == port;
            if lost {
                tracing::warn!(
                    "no longer listening on {}: its RDMA device was removed; a reload listens again",
                    listening.address.place()
                );
            }
            !lost
        });
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
            for mailbox in self.mailboxes.iter() {
                mailbox.post(Message::Request(Request::Retire(handle)));
            }
        }
        for (address, door) in added {
            let door = match door {
                NewDoor::Tcp(socket) => {
                    Door::Tcp(self.reactor.add_listener(socket, u64::from(address.port.0)))
                }
                NewDoor::Rdma(listener) => Door::Rdma(listener),
            };
            tracing::info!("listening on {}", address.place());
            self.listening.push(Listening { address, door });
        }
        let (kept, gone): (Vec<_>, Vec<_>) = self
            .listening
            .drain(..)
            .partition(|listening| config.listener.contains(&listening.address.wanted));
        self.listening = kept;
        for listening in gone {
            tracing::info!("no longer listening on {}", listening.address.place());
            match listening.door {
                Door::Tcp(key) => self.reactor.close(key),
                Door::Rdma(listener) => listener.close(),
            }
        }
        let places = listening.iter().map(Address::place).collect();
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
        self.config = config.clone();
        self.shared.route_effects();
        Ok(())
    }

    /// The address of a listener that is open already or was just added.
    fn find(&self, wanted: &Listener, added: &[(Address, NewDoor)]) -> Option<Address> {
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
        if old.rdma != new.rdma {
            return Err(ServiceError::NeedsRestart("[rdma]"));
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
    fn bind(&mut self, config: &Config) -> Result<Vec<(Address, NewDoor)>, ServiceError> {
        let mut added = Vec::new();
        for wanted in &config.listener {
            if self
                .listening
                .iter()
                .any(|listening| listening.address.wanted == *wanted)
            {
                continue;
            }
            let port = PortId(self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(1);
            let (local, door) = match wanted.transport {
                Transport::Tcp => listen_tcp(wanted.address, config)?,
                Transport::Rdma => self.listen_rdma(wanted.address, port)?,
            };
            added.push((
                Address {
                    wanted: wanted.clone(),
                    local,
                    port,
                },
                door,
            ));
        }
        Ok(added)
    }

    fn listen_rdma(
        &mut self,
        address: SocketAddr,
        port: PortId,
    ) -> Result<(SocketAddr, NewDoor), ServiceError> {
        let listener = self
            .rdma
            .listen(&mut self.reactor, address, port)
            .map_err(|source| ServiceError::ListenRdma { address, source })?;
        let local = listener.local_address().unwrap_or(address);
        Ok((local, NewDoor::Rdma(listener)))
    }
}

fn listen_tcp(address: SocketAddr, config: &Config) -> Result<(SocketAddr, NewDoor), ServiceError> {
    let socket = socket::listen(address, BACKLOG)?;
    let congestion = Congestion::from(config.node.congestion.as_str());
    socket::set_congestion(socket.as_fd(), &congestion).map_err(ServiceError::Congestion)?;
    let local = socket::local_address(socket.as_fd()).unwrap_or(address);
    Ok((local, NewDoor::Tcp(socket)))
}
