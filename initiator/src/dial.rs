//! Opening connections: resolving, connecting, initialising, and saying what went wrong.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use homi_fabric::host::ConnectError;
use homi_fabric::tcp::HostParams;
use homi_queue::LostReason;
use homi_reactor::socket::{self, SocketError};
use homi_spec::Nqn;

use crate::blocking::sleep_on;
use crate::error::Error;
use crate::options::Options;
use crate::queue::{FabricQueue, StreamParams, StreamQueue};
use crate::sequence::{Runner, SequenceError};
use crate::tcp::TcpStream;
use crate::uri::{PORT_DISCOVERY, TcpUri, Uri};

/// Which controller a connection is for; the names appear in errors.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// `host:port` as the user wrote it.
    pub(crate) address: String,
    pub(crate) host: String,
    pub(crate) subsystem: Nqn,
}

impl Peer {
    pub(crate) fn new(uri: &TcpUri) -> Self {
        Self {
            address: uri.address(),
            host: uri.host.clone(),
            subsystem: uri.subsystem(),
        }
    }

    /// For logs and errors.
    pub(crate) fn name(&self) -> String {
        format!("{} at {}", self.subsystem, self.address)
    }

    /// What a sequence's end means on a connection that was initialised.
    pub(crate) fn error(&self, options: &Options, what: &str, error: SequenceError) -> Error {
        match error {
            SequenceError::Lost(reason) => Error::Lost {
                controller: self.name(),
                reason,
            },
            SequenceError::Timeout(after) => Error::Timeout {
                what: format!("{what} of {}", self.name()),
                after,
            },
            SequenceError::Discovery(source) => Error::Discovery {
                address: self.address.clone(),
                source,
            },
            SequenceError::Refused(ConnectError::UnknownSubsystem { subsystem }) => Error::UnknownSubsystem {
                address: self.address.clone(),
                nqn: subsystem,
                discovery: Uri::Tcp(TcpUri {
                    host: self.host.clone(),
                    port: PORT_DISCOVERY,
                    nqn: None,
                    nsid: None,
                })
                .to_string(),
            },
            SequenceError::Refused(ConnectError::HostNotAllowed { subsystem, .. }) => Error::HostNotAllowed {
                address: self.address.clone(),
                nqn: subsystem,
                host_nqn: options.host_nqn.to_string(),
            },
            SequenceError::Refused(source) => Error::Connect {
                address: self.address.clone(),
                source,
            },
        }
    }

    /// What the end of a connection means that was not initialised: the peer speaks something else, or nothing.
    fn not_nvme(&self, error: SequenceError) -> Error {
        let detail = match error {
            SequenceError::Lost(LostReason::Closed) => {
                "it closed the connection instead of answering the initialisation request".to_owned()
            }
            SequenceError::Lost(reason) => reason.to_string(),
            SequenceError::Timeout(after) => {
                format!("no answer to the initialisation request within {after:?}")
            }
            other => other.to_string(),
        };
        Error::NotNvme {
            address: self.address.clone(),
            detail,
        }
    }
}

/// Connects to the first address that accepts.
pub(crate) fn connect(peer: &Peer, port: u16, options: &Options) -> Result<(OwnedFd, SocketAddr), Error> {
    let addresses = socket::resolve(&peer.host, port).map_err(|error| socket_error(peer, error))?;
    let mut failure = None;
    for address in addresses {
        match socket::connect_with(address, options.connect_timeout, &options.congestion) {
            Ok(socket) => return Ok((socket, address)),
            Err(error) => {
                tracing::debug!(%error, "connecting");
                failure = Some(error);
            }
        }
    }
    Err(match failure {
        Some(error) => socket_error(peer, error),
        None => Error::Resolve {
            host: peer.host.clone(),
            source: io::Error::new(io::ErrorKind::NotFound, "it has no address"),
        },
    })
}

/// Connects to an address that accepted before.
pub(crate) fn connect_again(peer: &Peer, address: SocketAddr, options: &Options) -> Result<OwnedFd, Error> {
    socket::connect_with(address, options.connect_timeout, &options.congestion)
        .map_err(|error| socket_error(peer, error))
}

fn socket_error(peer: &Peer, error: SocketError) -> Error {
    let address = peer.address.clone();
    match error {
        SocketError::Refused { .. } => Error::Refused { address },
        SocketError::Unreachable { source, .. } => Error::Unreachable { address, source },
        SocketError::TimedOut { after, .. } => Error::Timeout {
            what: format!("connecting to {address}"),
            after,
        },
        SocketError::Unresolved { host, reason } => Error::Resolve {
            host,
            source: io::Error::other(reason),
        },
        SocketError::System { action, source, .. } => {
            Error::io(format!("cannot {action} for {address}"), source)
        }
        other => Error::io(
            format!("cannot connect to {address}"),
            io::Error::other(other.to_string()),
        ),
    }
}

/// Initialises a connection; no command was sent on it yet.
pub(crate) fn initialize(
    peer: &Peer,
    options: &Options,
    socket: OwnedFd,
    depth: u16,
    in_capsule: u32,
) -> Result<FabricQueue, Error> {
    let params = HostParams {
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        depth,
        in_capsule,
        ..HostParams::default()
    };
    let mut queue = StreamQueue::new(TcpStream::new(socket), StreamParams::new(params))
        .map_err(|error| Error::Option(error.to_string()))?;
    runner(&mut queue, options.connect_timeout)
        .initialize()
        .map_err(|error| peer.not_nvme(error))?;
    Ok(queue)
}

/// Runs sequences on a queue over TCP, sleeping while there is nothing to do.
pub(crate) fn runner(
    queue: &mut FabricQueue,
    limit: Duration,
) -> Runner<'_, TcpStream, impl FnMut(&FabricQueue, Duration)> {
    Runner::new(queue, limit, |queue: &FabricQueue, left: Duration| {
        sleep_on(queue, left)
    })
}
