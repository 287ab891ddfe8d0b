//! What a test body runs on: [`Harness`] is a target, [`Host`] a host that is connected to it. Bodies are written once, over
//! these two, and run over every path that implements them.

use std::time::Duration;

use homi_fabric::host::{ControllerInfo, DiscoveryRecord, StepData};
use homi_initiator::ControllerEvent;
use homi_queue::{Command, Completion, Queue, Wait};
use homi_spec::Status;
use homi_target::ServiceError;
use homi_target::config::Config;

use crate::issuer::Issuer;
use crate::peer::RawHost;
use crate::settings::{DATA, HOST};

/// Longest that anything may take on a machine that is busy with everything else. Nothing is ever found right by
/// reaching it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How a host connects.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Its name.
    pub host_nqn: String,
    /// The subsystem.
    pub subsystem: String,
    /// Header digests.
    pub header_digest: bool,
    /// Data digests.
    pub data_digest: bool,
    /// Submission queue flow control.
    pub sq_flow_control: bool,
    /// Keep-alive timeout; zero for none.
    pub keep_alive: Duration,
    /// I/O queues to ask for.
    pub io_queues: u16,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            host_nqn: HOST.to_owned(),
            subsystem: DATA.to_owned(),
            header_digest: false,
            data_digest: false,
            sq_flow_control: false,
            keep_alive: Duration::ZERO,
            io_queues: 64,
        }
    }
}

impl HostOptions {
    /// The default host under another name.
    #[must_use]
    pub fn named(host_nqn: &str) -> Self {
        Self {
            host_nqn: host_nqn.to_owned(),
            ..Self::default()
        }
    }

    /// The default host at another subsystem.
    #[must_use]
    pub fn at(subsystem: &str) -> Self {
        Self {
            subsystem: subsystem.to_owned(),
            ..Self::default()
        }
    }
}

/// A running target and the way to it.
pub trait Harness: Sized {
    /// A host connected over this path.
    type Host: Host;

    /// Starts a target that serves what `config` says.
    ///
    /// # Errors
    /// What the target cannot have.
    fn try_start(config: &Config) -> Result<Self, ServiceError>;

    /// Starts a target that serves what `config` says.
    #[must_use]
    fn start(config: &Config) -> Self {
        Self::try_start(config).unwrap_or_else(|error| panic!("the target does not start: {error}"))
    }

    /// Makes it serve something else.
    ///
    /// # Errors
    /// What the target cannot have; it serves what it did then.
    fn apply(&mut self, config: &Config) -> Result<(), ServiceError>;

    /// Connects a host and brings its controller up.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    fn try_host(&mut self, options: &HostOptions) -> Result<Self::Host, String>;

    /// Connects a host and brings its controller up.
    #[must_use]
    fn host(&mut self, options: &HostOptions) -> Self::Host {
        self.try_host(options)
            .unwrap_or_else(|error| panic!("the host is not let in: {error}"))
    }

    /// Reads the discovery log as the host with this name.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    fn discover(&mut self, host_nqn: &str) -> Result<Vec<DiscoveryRecord>, String>;

    /// A connection on which nothing has been said.
    #[must_use]
    fn raw(&mut self) -> RawHost;

    /// Number of connections that the target has.
    #[must_use]
    fn connections(&self) -> usize;

    /// Waits until the target has so many connections: it learns of a closed one a moment later.
    fn wait_for_connections(&self, count: usize);
}

/// A host whose controller is ready.
pub trait Host {
    /// Its I/O queues.
    type Queue: Queue + Wait;

    /// What the controller says about itself.
    fn info(&self) -> &ControllerInfo;

    /// Executes an admin command.
    ///
    /// # Errors
    /// Why the association ended instead.
    fn try_admin(&mut self, command: Command, data: StepData) -> Result<(Completion, Vec<u8>), String>;

    /// Executes an admin command.
    fn admin(&mut self, command: Command, data: StepData) -> (Completion, Vec<u8>) {
        self.try_admin(command, data)
            .unwrap_or_else(|reason| panic!("the association ended: {reason}"))
    }

    /// Executes an admin command that reads so many bytes.
    ///
    /// # Errors
    /// The status of a command that fails.
    fn read_page(&mut self, command: Command, len: usize) -> Result<Vec<u8>, Status> {
        let (completion, bytes) = self.admin(command, StepData::In(len));
        if completion.is_success() {
            Ok(bytes)
        } else {
            Err(completion.status)
        }
    }

    /// Opens an I/O queue.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    fn try_queue(&mut self, depth: u16) -> Result<Issuer<Self::Queue>, String>;

    /// Opens an I/O queue.
    fn queue(&mut self, depth: u16) -> Issuer<Self::Queue> {
        self.try_queue(depth)
            .unwrap_or_else(|error| panic!("no queue: {error}"))
    }

    /// The next event that the controller reports.
    fn event(&mut self) -> ControllerEvent;

    /// Waits for the association to end by itself, and says why it did.
    fn wait_for_the_end(&mut self) -> String;

    /// Shuts the controller down and disconnects; whether it confirmed.
    fn disconnect(self) -> bool;
}
