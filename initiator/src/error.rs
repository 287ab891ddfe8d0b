//! [`Error`]: what can go wrong, each in one sentence that says what to change.

use std::io;
use std::time::Duration;

use homi_fabric::host::{ConnectError, DiscoveryError, InfoError};
use homi_fabric::rdma::cm::Rejected;
use homi_queue::{LostReason, MemoryError, QueueLost};
use homi_spec::Status;

use crate::uri::UriError;

/// What this crate's operations fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The line is not a URI.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Something that this build or this peer does not have.
    #[error("{0}")]
    Unsupported(String),
    /// An option that cannot be meant.
    #[error("{0}")]
    Option(String),
    /// The name of the host has no address.
    #[error("cannot resolve \"{host}\": {source}; check the name or use an address")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody listens at the port.
    #[error("{address} refused the connection: check that the target runs and listens on that port")]
    Refused {
        /// `host:port`.
        address: String,
    },
    /// The address cannot be reached.
    #[error("cannot reach {address}: {source}; check the address, the route and the firewall")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Something took longer than its limit.
    #[error("{what} did not finish within {after:?}: check the peer, or raise the timeout")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The peer answers, but not with NVMe over the transport that it was asked over.
    #[error(
        "{address} does not speak {transport}: {detail}; check the port (4420 is usual for i/o, 8009 for discovery over nvme/tcp)"
    )]
    NotNvme {
        /// `host:port`.
        address: String,
        /// What it should speak.
        transport: &'static str,
        /// What was expected and what came.
        detail: String,
    },
    /// The controller rejected the request for a queue over RDMA.
    #[error("{address}: {source}")]
    Rejected {
        /// `host:port`.
        address: String,
        /// Why.
        source: Rejected,
    },
    /// Memory could not be registered.
    #[error(
        "cannot register {bytes} bytes of memory: {source}; raise the limit of locked memory (`ulimit -l`), or register less"
    )]
    Registration {
        /// Bytes of the region.
        bytes: usize,
        /// Why not.
        source: io::Error,
    },
    /// The controller did not accept the connection, or its bring-up failed.
    #[error("{address}: {source}")]
    Connect {
        /// `host:port`.
        address: String,
        /// What it said.
        source: ConnectError,
    },
    /// The subsystem does not exist there.
    #[error("{address} has no subsystem {nqn}: `homi discover {discovery}` lists what it has")]
    UnknownSubsystem {
        /// `host:port`.
        address: String,
        /// The name asked for.
        nqn: String,
        /// URI of the discovery service to ask.
        discovery: String,
    },
    /// The subsystem exists (or pretends not to say) but not for this host.
    #[error(
        "{address} does not let this host use {nqn}: add the host nqn {host_nqn} to the subsystem's allow list"
    )]
    HostNotAllowed {
        /// `host:port`.
        address: String,
        /// The subsystem.
        nqn: String,
        /// The name that this host goes by.
        host_nqn: String,
    },
    /// A namespace that the controller does not have.
    #[error("namespace {nsid} does not exist on {controller}: {}", existing(.available))]
    NoNamespace {
        /// The namespace asked for.
        nsid: u32,
        /// Which controller.
        controller: String,
        /// Namespaces that it has.
        available: Vec<u32>,
    },
    /// Several namespaces, and none was chosen.
    #[error("{controller} has {} namespaces: choose one, as in ?nsid={}", available.len(), available.first().copied().unwrap_or(1))]
    AmbiguousNamespace {
        /// Which controller.
        controller: String,
        /// Namespaces that it has.
        available: Vec<u32>,
    },
    /// A page from the controller that cannot be meant.
    #[error("{controller} describes itself in a way that cannot be meant: {source}")]
    BadPage {
        /// Which controller.
        controller: String,
        /// What is wrong with the page.
        source: InfoError,
    },
    /// A command was executed and failed.
    #[error("{command} failed: {status}")]
    Command {
        /// Which command.
        command: String,
        /// What the executor said.
        status: Status,
    },
    /// Two ranges of blocks that should be equal are not.
    #[error("the blocks from lba {lba} on differ from the data given")]
    Miscompare {
        /// First block of the range compared.
        lba: u64,
    },
    /// The queue is gone.
    #[error("the queue was lost: {0}")]
    QueueLost(LostReason),
    /// The association is gone.
    #[error("the connection to {controller} is lost: {reason}")]
    Lost {
        /// Which controller.
        controller: String,
        /// Why.
        reason: LostReason,
    },
    /// An offset, length or block range that the device does not have.
    #[error("{0}")]
    Range(String),
    /// Memory could not be had or addressed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file or device of this machine.
    #[error(transparent)]
    File(#[from] homi_local::OpenError),
    /// A namespace behind the kernel's NVMe driver.
    #[error(transparent)]
    Passthrough(#[from] homi_local::PassthroughError),
    /// A drive that this process drives itself.
    #[error(transparent)]
    Drive(#[from] homi_local::DriveError),
    /// Data in memory of a device.
    #[error(transparent)]
    DmaBuf(#[from] homi_local::DmaBufUnsupported),
    /// Memory for a local executor.
    #[error(transparent)]
    Ram(#[from] homi_local::RamError),
    /// A size that a local executor cannot have.
    #[error(transparent)]
    Geometry(#[from] homi_local::GeometryError),
    /// The discovery log could not be read.
    #[error("{address}: {source}")]
    Discovery {
        /// `host:port`.
        address: String,
        /// Why not.
        source: DiscoveryError,
    },
    /// A local file or system call.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// An I/O error with what was done.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The status of the command that failed, if that is what this error is.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Command { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the path failed rather than the command: the same command may succeed on a new connection.
    #[must_use]
    pub fn is_path(&self) -> bool {
        match self {
            Self::QueueLost(_) | Self::Lost { .. } | Self::Timeout { .. } => true,
            Self::Command { status, .. } => status.is_path(),
            _ => false,
        }
    }
}

impl From<QueueLost> for Error {
    /// Keeps the reason; the undelivered commands give their memory back.
    fn from(lost: QueueLost) -> Self {
        Self::QueueLost(lost.into_parts().0)
    }
}

fn existing(available: &[u32]) -> String {
    match available {
        [] => "it has none that this host may see".to_owned(),
        [one] => format!("it has namespace {one}"),
        many => {
            let list: Vec<String> = many.iter().take(16).map(u32::to_string).collect();
            let more = if many.len() > 16 { ", …" } else { "" };
            format!("it has namespaces {}{more}", list.join(", "))
        }
    }
}
