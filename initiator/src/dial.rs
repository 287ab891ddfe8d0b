//! Opening connections: resolving, connecting, initialising, and saying what went wrong.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use homi_fabric::host::ConnectError;
use homi_fabric::tcp::HostParams;
use homi_queue::{LostReason, Wait};
use homi_reactor::socket::{self, SocketError};
use homi_spec::Nqn;
use homi_spec::tcp::ADMIN_IN_CAPSULE;

use crate::blocking::sleep_on;
use crate::error::Error;
use crate::fabric::FabricQueue;
use crate::options::Options;
use crate::queue::{StreamParams, StreamQueue};
use crate::rdma::{self, Shape};
use crate::sequence::{Connection, Runner, SequenceError};
use crate::tcp::TcpStream;
use crate::uri::{FabricUri, Transport, Uri};

/// Which controller a connection is for; the names appear in errors.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) transport: Transport,
    /// `host:port` as the user wrote it.
    pub(crate) address: String,
    pub(crate) host: String,
    pub(crate) subsystem: Nqn,
}

impl Peer {
    pub(crate) fn new(uri: &FabricUri) -> Self {
        Self {
            transport: uri.transport,
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
                discovery: Uri::Fabric(FabricUri {
                    transport: self.transport,
                    host: self.host.clone(),
                    port: self.transport.discovery_port(),
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
            transport: "nvme/tcp",
            detail,
        }
    }
}

/// How queues of an association are connected: the way that the first one went.
#[derive(Debug)]
pub(crate) enum Route {
    /// To the same address of a host that has several.
    Tcp(SocketAddr),
    /// The same, with what is registered there.
    Rdma(rdma::Route),
}

/// Connects the first queue of an association, to the first address that accepts.
pub(crate) fn connect_admin(
    peer: &Peer,
    port: u16,
    options: &Options,
    depth: u16,
) -> Result<(FabricQueue, Route), Error> {
    match peer.transport {
        Transport::Tcp => {
            let (socket, address) = connect(peer, port, options)?;
            let queue = initialize(peer, options, socket, depth, ADMIN_IN_CAPSULE)?;
            Ok((FabricQueue::Tcp(queue), Route::Tcp(address)))
        }
        Transport::Rdma => {
            let shape = Shape {
                qid: 0,
                controller_id: 0,
                depth,
                entries: depth + 1,
                in_capsule: 0,
                max_descriptors: 1,
            };
            let (queue, route) = rdma::connect(peer, port, options, shape)?;
            Ok((FabricQueue::Rdma(Box::new(queue)), Route::Rdma(route)))
        }
    }
}

/// Connects one more queue, before anything is sent on it. It may be less deep than asked for.
pub(crate) fn connect_io(
    peer: &Peer,
    route: &Route,
    options: &Options,
    shape: Shape,
) -> Result<FabricQueue, Error> {
    match route {
        Route::Tcp(address) => {
            let socket = connect_again(peer, *address, options)?;
            let queue = initialize(peer, options, socket, shape.depth, shape.in_capsule)?;
            Ok(FabricQueue::Tcp(queue))
        }
        Route::Rdma(route) => {
            let queue = rdma::connect_again(peer, route, options, shape)?;
            Ok(FabricQueue::Rdma(Box::new(queue)))
        }
    }
}

/// The addresses of a host.
pub(crate) fn resolve(peer: &Peer, port: u16) -> Result<Vec<SocketAddr>, Error> {
    socket::resolve(&peer.host, port).map_err(|error| socket_error(peer, error))
}

/// Connects to the first address that accepts.
fn connect(peer: &Peer, port: u16, options: &Options) -> Result<(OwnedFd, SocketAddr), Error> {
    let mut failure = None;
    for address in resolve(peer, port)? {
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
fn connect_again(peer: &Peer, address: SocketAddr, options: &Options) -> Result<OwnedFd, Error> {
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
fn initialize(
    peer: &Peer,
    options: &Options,
    socket: OwnedFd,
    depth: u16,
    in_capsule: u32,
) -> Result<StreamQueue<TcpStream>, Error> {
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

/// Runs sequences on a queue, sleeping while there is nothing to do.
pub(crate) fn runner<Q: Connection + Wait>(
    queue: &mut Q,
    limit: Duration,
) -> Runner<'_, Q, impl FnMut(&Q, Duration)> {
    Runner::new(queue, limit, |queue: &Q, left: Duration| sleep_on(queue, left))
}
