//! Opening queues over RDMA: finding the device that reaches a controller, asking the controller for a queue, and saying what went wrong.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use homi_fabric::rdma::cm::{Accepted, ConnectRequest, Rejected};
use homi_fabric::rdma::{HostConnection, HostParams};
use homi_fabric::time::Instant;
use homi_queue::Region;
use homi_reactor::socket::{self, Interest};
use homi_verbs::{
    Access, CmEventKind, ConnectOptions, Connecting, Device, EventChannel, Limits, MemoryRegion, Outgoing,
    Pd, PeerOptions, QpOptions, Refused, VerbsError,
};
use zerocopy::IntoBytes;

use super::Shape;
use super::memory::{Memory, Pinned};
use super::queue::{Parts, RdmaQueue, Responses, Staging};
use super::sleep::{BATCH, Sleeper};
use super::windows::WINDOWS;
use crate::clock;
use crate::dial::{Peer, resolve};
use crate::error::Error;
use crate::options::Options;

/// Bytes of a command and of a completion.
const COMMAND: usize = 64;
pub(super) const RESPONSE: usize = 16;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// Pieces of memory of one send: the command, and its data's.
const PIECES: u16 = 4;

/// Commands in the send queue: some more than are in flight, since only some of them complete visibly, and at most so many; more wait for
/// their turn.
const MIN_SENDS: u16 = 64;
const MAX_SENDS: u16 = 1024;

/// Receives beyond the depth, so that they need not be posted one by one: that many at a time.
const SPARE_RECEIVES: u16 = 16;

/// What the connection manager's reason is where nobody listens, and where the peer itself said no (InfiniBand 1.4, table 108).
const INVALID_SERVICE: i32 = 8;
const CONSUMER: i32 = 28;

/// The way to a controller, and the memory that it reaches over it.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    address: SocketAddr,
    memories: Memories,
}

/// What is registered, by device.
#[derive(Debug, Clone, Default)]
pub(super) struct Memories(Arc<Mutex<Vec<Arc<Memory>>>>);

impl Memories {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Memory>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device is gone, and everything on it must be given back.
    pub(super) fn remove(&self, gone: &Arc<Memory>) {
        self.all().retain(|memory| !Arc::ptr_eq(memory, gone));
    }
}

impl Route {
    /// Registers a region with every device that is in use.
    pub(crate) fn pin(&self, region: &Region) -> Result<Pinned, Error> {
        let memories = self.memories.all();
        let pins: Result<Vec<_>, VerbsError> = memories.iter().map(|memory| memory.pin(region)).collect();
        pins.map(Pinned).map_err(|error| match error {
            VerbsError::Unsupported(missing) => Error::Unsupported(missing.to_string()),
            error => Error::Registration {
                bytes: region.len(),
                source: super::sleep::as_io(error),
            },
        })
    }

    /// What is registered with the device of a connection.
    fn memory(&self, outgoing: &Outgoing, device: &Device, windows: bool) -> Result<Arc<Memory>, VerbsError> {
        let mut memories = self.memories.all();
        if let Some(memory) = memories
            .iter()
            .find(|memory| outgoing.is_on(memory.pd().device()))
        {
            return Ok(Arc::clone(memory));
        }
        let memory = Arc::new(Memory::new(device, windows)?);
        memories.push(Arc::clone(&memory));
        Ok(memory)
    }
}

/// Connects a first queue, to the first address that accepts.
pub(crate) fn connect(
    peer: &Peer,
    port: u16,
    options: &Options,
    shape: Shape,
) -> Result<(RdmaQueue, Route), Error> {
    let mut failure = None;
    for address in resolve(peer, port)? {
        let route = Route {
            address,
            memories: Memories::default(),
        };
        match connect_again(peer, &route, options, shape) {
            Ok(queue) => return Ok((queue, route)),
            Err(error) => {
                tracing::debug!(%error, "connecting");
                failure = Some(error);
            }
        }
    }
    Err(failure.unwrap_or_else(|| Error::Resolve {
        host: peer.host.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "it has no address"),
    }))
}

/// Connects one more queue, the way that one went before.
pub(crate) fn connect_again(
    peer: &Peer,
    route: &Route,
    options: &Options,
    shape: Shape,
) -> Result<RdmaQueue, Error> {
    if options.header_digest || options.data_digest {
        return Err(Error::Unsupported(
            "nvme/rdma has no digests: leave them out, the network's own checksums protect the data"
                .to_owned(),
        ));
    }
    let dialing = Dialing {
        peer,
        route,
        options,
        shape,
        until: clock::now() + options.connect_timeout,
    };
    dialing.run()
}

struct Dialing<'a> {
    peer: &'a Peer,
    route: &'a Route,
    options: &'a Options,
    shape: Shape,
    until: Instant,
}

impl Dialing<'_> {
    fn run(&self) -> Result<RdmaQueue, Error> {
        let limit = self.options.connect_timeout;
        let mut channel = EventChannel::new().map_err(|error| self.error(error))?;
        let mut outgoing = channel
            .resolve(self.route.address, None, limit)
            .map_err(|error| self.error(error))?;
        self.wait(&mut channel, |kind| matches!(kind, CmEventKind::AddressResolved))?;
        let device = outgoing.device().map_err(|error| self.error(error))?;
        let memory = self
            .route
            .memory(&outgoing, &device, self.options.memory_windows)
            .map_err(|error| self.error(error))?;
        outgoing.resolve_route(limit).map_err(|error| self.error(error))?;
        self.wait(&mut channel, |kind| matches!(kind, CmEventKind::RouteResolved))?;

        let sizes = Sizes::new(self.shape, device.limits(), memory.windows());
        let vector = u32::from(self.shape.qid);
        let mut sleeper =
            Sleeper::new(&device, sizes.completions(), vector, channel).map_err(|error| self.error(error))?;
        let mut connecting = self.queue_pair(outgoing, memory.pd(), &mut sleeper, &sizes)?;
        let mut responses = Responses::new(memory.pd(), sizes.receives).map_err(|error| self.error(error))?;
        responses.post(connecting.receives()).map_err(|reason| {
            Error::io(
                format!("cannot post receives for {}", self.peer.address),
                io::Error::other(reason.to_string()),
            )
        })?;
        let staging =
            Staging::new(memory.pd(), sizes.sends, sizes.capsule).map_err(|error| self.error(error))?;

        let request = ConnectRequest::new(self.shape.qid, sizes.entries, self.shape.controller_id);
        let qp = connecting
            .connect(&ConnectOptions {
                private_data: request.to_private_data().as_bytes(),
                // The controller reads this host's memory; this host never reads the controller's.
                responder_resources: device.limits().responder_resources,
                initiator_depth: 0,
                ..ConnectOptions::default()
            })
            .map_err(|Refused { error, .. }| self.error(error))?;
        let answer = self.wait(sleeper.channel(), |kind| {
            matches!(kind, CmEventKind::Established(_))
        })?;
        let CmEventKind::Established(answer) = answer else {
            return Err(self.not_nvme("the connection was established without an answer".to_owned()));
        };
        let (connection, entries) = self.agree(&answer, &sizes)?;
        Ok(RdmaQueue::new(Parts {
            connection,
            entries,
            qp,
            sleeper,
            memory,
            memories: self.route.memories.clone(),
            responses,
            staging,
            repost: usize::from(SPARE_RECEIVES),
        }))
    }

    fn queue_pair(
        &self,
        outgoing: Outgoing,
        pd: &Pd,
        sleeper: &mut Sleeper,
        sizes: &Sizes,
    ) -> Result<Connecting, Error> {
        let mut options = QpOptions {
            sends: sizes.work_requests,
            send_pieces: u32::from(sizes.pieces),
            inline: u32::try_from(COMMAND).unwrap_or(0),
            receives: u32::from(sizes.receives),
            receive_pieces: 1,
        };
        let cq = sleeper
            .cq()
            .ok_or_else(|| self.not_nvme("the completion queue is closed".to_owned()))?;
        match outgoing.create_qp(pd, cq, None, &options) {
            Ok(connecting) => Ok(connecting),
            // A device that sends nothing inline.
            Err(Refused { object, error }) => {
                tracing::debug!(%error, "a queue pair with inline sends");
                options.inline = 0;
                object
                    .create_qp(pd, cq, None, &options)
                    .map_err(|_| self.error(error))
            }
        }
    }

    /// What both ends agreed on, and the entries of the queue.
    fn agree(&self, answer: &PeerOptions, sizes: &Sizes) -> Result<(HostConnection, u16), Error> {
        let accepted = Accepted::parse(&answer.private_data, sizes.entries)
            .map_err(|error| self.not_nvme(error.to_string()))?;
        let params = HostParams {
            depth: self.shape.depth.min(accepted.entries - 1),
            in_capsule: self.shape.in_capsule,
            max_descriptors: sizes.descriptors,
            send_queue: sizes.sends,
            max_pieces: sizes.pieces,
        };
        let mut connection = HostConnection::new(params).map_err(|error| Error::Option(error.to_string()))?;
        if self.options.sq_flow_control {
            connection.set_flow_control(Some(u32::from(accepted.entries)));
        }
        connection.established();
        Ok((connection, accepted.entries))
    }

    /// Waits for an event of the connection manager; all others that come meanwhile end the attempt.
    fn wait(
        &self,
        channel: &mut EventChannel,
        wanted: impl Fn(&CmEventKind) -> bool,
    ) -> Result<CmEventKind, Error> {
        loop {
            if let Some(event) = channel.next_event().map_err(|error| self.error(error))? {
                if wanted(&event.kind) {
                    return Ok(event.kind);
                }
                if let Some(error) = self.refusal(event.kind) {
                    return Err(error);
                }
                continue;
            }
            let left = self.until.saturating_since(clock::now());
            if left.is_zero() {
                return Err(self.timeout());
            }
            let interest = Interest {
                descriptor: channel.descriptor(),
                readable: true,
                writable: false,
            };
            socket::wait_any(&[interest], Some(left))
                .map_err(|error| Error::io(format!("cannot wait for {}", self.peer.address), error))?;
        }
    }

    /// What an event means that ends an attempt.
    fn refusal(&self, kind: CmEventKind) -> Option<Error> {
        let address = || self.peer.address.clone();
        Some(match kind {
            CmEventKind::AddressError { status } | CmEventKind::RouteError { status } => {
                self.system(io::Error::from_raw_os_error(status.saturating_neg()))
            }
            CmEventKind::ConnectError { status } => {
                self.system(io::Error::from_raw_os_error(status.saturating_neg()))
            }
            CmEventKind::Rejected {
                reason: CONSUMER,
                private_data,
            } => match Rejected::parse(&private_data) {
                Rejected::Unexplained => Error::Refused { address: address() },
                source => Error::Rejected {
                    address: address(),
                    source,
                },
            },
            CmEventKind::Rejected {
                reason: INVALID_SERVICE,
                ..
            } => Error::Refused { address: address() },
            // iWARP has errnos.
            CmEventKind::Rejected { reason, .. } if reason < 0 => {
                self.system(io::Error::from_raw_os_error(reason.saturating_neg()))
            }
            CmEventKind::Rejected { reason, .. } => self.not_nvme(format!(
                "the connection manager there rejected the request with reason {reason}"
            )),
            CmEventKind::Disconnected => {
                self.not_nvme("it closed the connection before it was established".to_owned())
            }
            CmEventKind::DeviceRemoval => Error::Unsupported(format!(
                "the RDMA device on the way to {} was removed",
                self.peer.address
            )),
            _ => return None,
        })
    }

    fn timeout(&self) -> Error {
        self.timed_out(self.options.connect_timeout)
    }

    fn timed_out(&self, after: Duration) -> Error {
        Error::Timeout {
            what: format!("connecting to {}", self.peer.address),
            after,
        }
    }

    fn not_nvme(&self, detail: String) -> Error {
        Error::NotNvme {
            address: self.peer.address.clone(),
            transport: "nvme/rdma",
            detail,
        }
    }

    fn error(&self, error: VerbsError) -> Error {
        match error {
            VerbsError::Unsupported(missing) => Error::Unsupported(missing.to_string()),
            VerbsError::System { action, source } => match source.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::TimedOut
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::AddrNotAvailable => self.system(source),
                _ if is_no_device(&source) => self.system(source),
                _ => Error::io(format!("cannot {action} for {}", self.peer.address), source),
            },
            other => Error::io(
                format!("cannot connect to {}", self.peer.address),
                io::Error::other(other.to_string()),
            ),
        }
    }

    /// What an error of the system means that was about the way to the peer.
    fn system(&self, source: io::Error) -> Error {
        let address = self.peer.address.clone();
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Error::Refused { address },
            io::ErrorKind::TimedOut => self.timed_out(self.options.connect_timeout),
            _ if is_no_device(&source) => Error::Unsupported(format!(
                "no RDMA device of this machine reaches {address}: use an address of a network that one is on"
            )),
            _ => Error::Unreachable { address, source },
        }
    }
}

/// `ENODEV`.
fn is_no_device(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

/// Sizes of a queue, from what is asked for and what the device has.
struct Sizes {
    /// Entries to ask for.
    entries: u16,
    /// Receives.
    receives: u16,
    /// Commands in the send queue.
    sends: u16,
    /// Work requests in the send queue: windows need some too.
    work_requests: u32,
    pieces: u16,
    descriptors: u16,
    /// Bytes of a capsule without its data.
    capsule: usize,
}

impl Sizes {
    fn new(shape: Shape, limits: &Limits, windows: bool) -> Self {
        let descriptors = shape.max_descriptors.clamp(1, 256);
        let descriptors = if windows {
            descriptors.min(WINDOWS)
        } else {
            descriptors
        };
        let sends = shape.depth.clamp(MIN_SENDS, MAX_SENDS);
        let (commands, each) = (u32::from(sends), u32::from(descriptors));
        let work_requests = if windows {
            // Each command binds windows, and each that is answered may have to close them.
            commands * (1 + each) + u32::from(shape.depth) * each
        } else {
            commands
        };
        Self {
            entries: shape.entries,
            receives: shape.depth.saturating_add(SPARE_RECEIVES),
            sends,
            work_requests,
            pieces: PIECES.min(u16::try_from(limits.pieces).unwrap_or(PIECES)).max(2),
            descriptors,
            capsule: COMMAND
                + if descriptors > 1 {
                    usize::from(descriptors) * DESCRIPTOR
                } else {
                    0
                },
        }
    }

    fn completions(&self) -> u32 {
        let batch = u32::try_from(BATCH).unwrap_or(0);
        (self.work_requests + u32::from(self.receives)).max(batch)
    }
}

/// Memory of this end's own, which no peer reaches.
pub(super) fn own_memory(pd: &Pd, bytes: usize, access: Access) -> Result<MemoryRegion, VerbsError> {
    let region = Region::allocate(bytes.max(1), 4096).map_err(|error| VerbsError::System {
        action: "allocate memory",
        source: io::Error::other(error.to_string()),
    })?;
    pd.register(&region, access)
}
