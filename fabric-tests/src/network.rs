//! The real thing on one machine: the target's service with its shards, and the initiator with its background thread, over TCP
//! on the loopback interface.

use std::net::SocketAddr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use homi_fabric::host::{ControllerInfo, DiscoveryRecord, StepData};
use homi_initiator::{
    Controller, ControllerEvent, ControllerStatus, FabricQueue, Initiator, QueueOptions, Uri,
};
use homi_local::Drives;
use homi_queue::{Command, Completion, Data, Region};
use homi_target::config::{Config, Events};
use homi_target::{Service, ServiceError};

use crate::harness::{DEADLINE, Harness, Host, HostOptions};
use crate::issuer::{Issuer, bytes_of};
use crate::peer::{RawHost, socket_wire};

/// Threads of targets and initiators that panicked.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics of threads that are not the test's own: nobody sees them otherwise, since a target goes on without one
/// of its shards.
fn watch_for_panics() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            if name.starts_with("shard-") || name == "control" || name == "homi-keeper" {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
}

/// No thread of any target or initiator in this process may have panicked.
pub fn assert_nothing_panicked() {
    assert_eq!(
        PANICS.load(Ordering::Relaxed),
        0,
        "a thread of a target or initiator panicked"
    );
}

/// A running service.
#[derive(Debug)]
pub struct Network {
    service: Service,
}

impl Network {
    /// A service with drives of the caller's.
    ///
    /// # Errors
    /// Those of [`Service::start_with`].
    pub fn start_with(config: &Config, drives: Drives) -> Result<Self, ServiceError> {
        watch_for_panics();
        Service::start_with(config, drives).map(|service| Self { service })
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The service, to stop it.
    pub fn service_mut(&mut self) -> &mut Service {
        &mut self.service
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.service.addresses().first().unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.service.stop();
        if !thread::panicking() {
            assert_nothing_panicked();
        }
    }
}

/// An initiator with these options.
#[must_use]
pub fn initiator(options: &HostOptions) -> Initiator {
    Initiator::builder()
        .host_nqn(&options.host_nqn)
        .host_id(crate::pair::host_id(&options.host_nqn))
        .keep_alive(options.keep_alive)
        .connect_timeout(DEADLINE)
        .command_timeout(DEADLINE)
        .header_digest(options.header_digest)
        .data_digest(options.data_digest)
        .sq_flow_control(options.sq_flow_control)
        .io_queues(options.io_queues)
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The line that leads to a subsystem (or to the discovery service) at this address.
#[must_use]
pub fn uri(address: SocketAddr, subsystem: Option<&str>) -> Uri {
    let line = match subsystem {
        Some(nqn) => format!("nvme+tcp://{address}/{nqn}"),
        None => format!("nvme+tcp://{address}"),
    };
    line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))
}

impl Harness for Network {
    type Host = NetworkHost;

    fn try_start(config: &Config) -> Result<Self, ServiceError> {
        watch_for_panics();
        Service::start(config).map(|service| Self { service })
    }

    fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        self.service.reload(config)
    }

    fn try_host(&mut self, options: &HostOptions) -> Result<NetworkHost, String> {
        NetworkHost::connect(self.address(), options)
    }

    fn discover(&mut self, host_nqn: &str) -> Result<Vec<DiscoveryRecord>, String> {
        initiator(&HostOptions::named(host_nqn))
            .discover(&uri(self.address(), None))
            .map_err(|error| error.to_string())
    }

    fn raw(&mut self) -> RawHost {
        RawHost::new(socket_wire(self.address()))
    }

    fn connections(&self) -> usize {
        usize::try_from(self.service.connections()).unwrap()
    }

    fn wait_for_connections(&self, count: usize) {
        let start = Instant::now();
        while self.connections() != count {
            assert!(
                start.elapsed() < DEADLINE,
                "{} connections instead of {count}",
                self.connections()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The same over readiness events instead of io_uring.
#[derive(Debug)]
pub struct ReadinessNetwork(Network);

fn on_readiness(config: &Config) -> Config {
    let mut config = config.clone();
    config.node.events = Events::Readiness;
    config
}

impl Harness for ReadinessNetwork {
    type Host = NetworkHost;

    fn try_start(config: &Config) -> Result<Self, ServiceError> {
        Network::try_start(&on_readiness(config)).map(Self)
    }

    fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        self.0.apply(&on_readiness(config))
    }

    fn try_host(&mut self, options: &HostOptions) -> Result<NetworkHost, String> {
        self.0.try_host(options)
    }

    fn discover(&mut self, host_nqn: &str) -> Result<Vec<DiscoveryRecord>, String> {
        self.0.discover(host_nqn)
    }

    fn raw(&mut self) -> RawHost {
        self.0.raw()
    }

    fn connections(&self) -> usize {
        self.0.connections()
    }

    fn wait_for_connections(&self, count: usize) {
        self.0.wait_for_connections(count);
    }
}

/// A host over TCP.
#[derive(Debug)]
pub struct NetworkHost {
    controller: Controller,
    events: Receiver<ControllerEvent>,
}

impl NetworkHost {
    /// Connects to the target at this address.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    pub fn connect(address: SocketAddr, options: &HostOptions) -> Result<Self, String> {
        Self::of(&initiator(options), address, &options.subsystem)
    }

    /// Connects this initiator to a subsystem of the target at this address.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    pub fn of(initiator: &Initiator, address: SocketAddr, subsystem: &str) -> Result<Self, String> {
        let controller = initiator
            .connect(&uri(address, Some(subsystem)))
            .map_err(|error| error.to_string())?;
        let events = controller.events();
        Ok(Self { controller, events })
    }

    /// The initiator's handle.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
}

impl Host for NetworkHost {
    type Queue = FabricQueue;

    fn info(&self) -> &ControllerInfo {
        self.controller.info()
    }

    fn try_admin(&mut self, command: Command, data: StepData) -> Result<(Completion, Vec<u8>), String> {
        let incoming = matches!(data, StepData::In(_));
        let data = match data {
            StepData::None => Data::None,
            StepData::Out(bytes) => Data::whole(Region::from_vec(bytes)),
            StepData::In(len) => Data::whole(Region::from_vec(vec![0; len])),
        };
        let reply = self
            .controller
            .admin(command, data)
            .map_err(|error| error.to_string())?;
        let bytes = if incoming {
            bytes_of(&reply.data)
        } else {
            Vec::new()
        };
        Ok((reply.completion, bytes))
    }

    fn try_queue(&mut self, depth: u16) -> Result<Issuer<FabricQueue>, String> {
        self.controller
            .queue(QueueOptions::depth(depth))
            .map(Issuer::new)
            .map_err(|error| error.to_string())
    }

    fn event(&mut self) -> ControllerEvent {
        self.events
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|error| panic!("no event: {error}"))
    }

    fn wait_for_the_end(&mut self) -> String {
        loop {
            if let ControllerEvent::Lost(reason) = self.event() {
                assert_eq!(self.controller.status(), ControllerStatus::Lost(reason.clone()));
                return reason.to_string();
            }
        }
    }

    fn disconnect(self) -> bool {
        self.controller.disconnect(DEADLINE).is_ok()
    }
}
