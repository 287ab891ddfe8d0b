//! [`Initiator`]: one host, and everything that it is connected to.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homi_fabric::host::{
    BringUp, BringUpParams, ControllerInfo, ControllerKind, DiscoveryRecord, Shutdown, SubsystemKind,
};

use crate::clock;
use crate::controller::{Controller, ControllerInner, QueueIds};
use crate::device::{Device, Purpose};
use crate::dial::{self, Peer, Route};
use crate::error::Error;
use crate::fabric::FabricQueue;
use crate::keeper::{Association, AssociationShared, Keeper};
use crate::options::{InitiatorBuilder, Options};
use crate::uri::{FabricUri, Transport, Uri};
use homi_local::{Drive, DriveError, DriveOptions, Drives};
use homi_pci::PciAddress;

/// Entries of an admin queue: the smallest that fabrics allow, which nobody has needed more than.
const ADMIN_ENTRIES: u16 = 32;

/// Bytes of one keyed descriptor at most: 24 bits, in whole pages.
const MAX_DESCRIBED: u32 = (1 << 24) - 4096;

/// How far referrals are followed, and how many services are asked.
const REFERRAL_LEVELS: usize = 8;
const REFERRAL_SERVICES: usize = 64;

/// A host: a name, its options, and one background thread (started by the first connection, asleep while nothing
/// happens) that keeps its associations alive. Clones are the same host. Two initiators share nothing.
#[derive(Clone)]
pub struct Initiator {
    shared: Arc<Shared>,
}

struct Shared {
    options: Arc<Options>,
    keeper: Arc<Keeper>,
    /// Drives that this process drives itself.
    drives: Drives,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.close();
    }
}

impl Initiator {
    /// An initiator with the default options.
    ///
    /// # Errors
    /// As [`InitiatorBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Chooses options.
    pub fn builder() -> InitiatorBuilder {
        InitiatorBuilder::default()
    }

    pub(crate) fn with_options(options: Options) -> Result<Self, Error> {
        let keeper = Keeper::new().map_err(|error| Error::io("cannot make an eventfd", error))?;
        Ok(Self {
            shared: Arc::new(Shared {
                options: Arc::new(options),
                keeper,
                drives: Drives::new(DriveOptions::default()),
            }),
        })
    }

    /// The name this host goes by.
    #[must_use]
    pub fn host_nqn(&self) -> &str {
        self.shared.options.host_nqn.as_str()
    }

    /// The identifier that goes with the name.
    #[must_use]
    pub fn host_id(&self) -> [u8; 16] {
        self.shared.options.host_id
    }

    /// Reads the discovery log of a host and of everything that it refers to (each service once, eight levels and 64 services at
    /// most). A referral that cannot be reached is reported in the log (`tracing`) and skipped; the first service must answer.
    ///
    /// # Errors
    /// [`Error`], as for a connection; [`Error::Unsupported`] for a local URI or a subsystem that serves no discovery log.
    pub fn discover(&self, uri: &Uri) -> Result<Vec<DiscoveryRecord>, Error> {
        let first = fabric(uri, "discovery asks a target: write nvme+tcp://HOST:8009")?;
        let mut asked = HashSet::from([(first.transport, first.host.clone(), first.port)]);
        let mut records = self.discover_one(first)?;
        let mut level = referrals(&records, &mut asked);
        for _ in 0..REFERRAL_LEVELS {
            let mut next = Vec::new();
            for referral in level.drain(..) {
                match self.discover_one(&referral) {
                    Ok(more) => {
                        next.extend(referrals(&more, &mut asked));
                        records.extend(
                            more.into_iter()
                                .filter(|record| record.kind != SubsystemKind::CurrentDiscovery),
                        );
                    }
                    Err(error) => tracing::warn!(%error, %referral, "referral skipped"),
                }
            }
            if next.is_empty() {
                break;
            }
            level = next;
        }
        if !level.is_empty() {
            tracing::warn!(left = level.len(), "referrals too deep, skipped");
        }
        // Several services may know the same paths.
        let mut seen = HashSet::new();
        records.retain(|record| {
            seen.insert((
                record.transport,
                record.subsystem.clone(),
                record.address.clone(),
                record.service.clone(),
                record.port_id,
            ))
        });
        Ok(records)
    }

    fn discover_one(&self, uri: &FabricUri) -> Result<Vec<DiscoveryRecord>, Error> {
        let options = &self.shared.options;
        let peer = Peer::new(uri);
        // The connection is closed when the log is read: nobody has to keep it alive.
        let (mut queue, _, info) = self.bring_up(&peer, uri.port, Duration::ZERO)?;
        if info.kind != ControllerKind::Discovery {
            let service = FabricUri {
                nqn: None,
                nsid: None,
                ..uri.clone()
            };
            return Err(Error::Unsupported(format!(
                "{} has blocks but no discovery log: discover {service}, without a subsystem",
                peer.name()
            )));
        }
        let mut runner = dial::runner(&mut queue, options.connect_timeout);
        let (records, skipped) = runner
            .discover(info.max_transfer)
            .map_err(|error| peer.error(options, "reading the discovery log", error))?;
        for reason in skipped {
            tracing::warn!(controller = %peer.name(), %reason, "discovery entry skipped");
        }
        let mut shutdown = Shutdown::new(info.configuration, clock::now() + options.connect_timeout);
        if let Err(error) = runner.run(|answer, now| shutdown.next(answer, now)) {
            tracing::debug!(controller = %peer.name(), %error, "discovery controller not shut down");
        }
        Ok(records)
    }

    /// Connects to a controller and brings it up.
    ///
    /// # Errors
    /// [`Error`]: unreachable, refused, timed out, not NVMe, subsystem unknown, host not allowed, and what else the
    /// controller says; [`Error::Unsupported`] for a local URI, which [`Initiator::open`] takes, and for RDMA without what it needs.
    pub fn connect(&self, uri: &Uri) -> Result<Controller, Error> {
        let uri = fabric(
            uri,
            "only a target can be connected to: open a local device instead",
        )?;
        let options = &self.shared.options;
        let keeper = &self.shared.keeper;
        let peer = Peer::new(uri);
        let (mut queue, route, info) = self.bring_up(&peer, uri.port, options.keep_alive)?;
        queue.set_timeout(options.command_timeout);
        let shared = Arc::new(AssociationShared::default());
        let id = keeper.next_association();
        let association = Association::new(
            id,
            peer.name(),
            queue,
            info.clone(),
            Arc::clone(&shared),
            clock::now(),
        );
        keeper
            .adopt(Box::new(association))
            .map_err(|error| Error::io("cannot start the thread that keeps connections alive", error))?;
        Ok(Controller::new(ControllerInner {
            association: id,
            peer,
            route,
            info,
            options: Arc::clone(options),
            keeper: Arc::clone(keeper),
            shared,
            queue_ids: Mutex::new(QueueIds::default()),
        }))
    }

    fn bring_up(
        &self,
        peer: &Peer,
        port: u16,
        keep_alive: Duration,
    ) -> Result<(FabricQueue, Route, ControllerInfo), Error> {
        let options = &self.shared.options;
        let (mut queue, route) = dial::connect_admin(peer, port, options, ADMIN_ENTRIES - 1)?;
        let mut bring_up = BringUp::new(BringUpParams {
            host_nqn: options.host_nqn.clone(),
            host_id: options.host_id,
            subsystem: peer.subsystem.clone(),
            keep_alive,
            admin_entries: queue.entries(),
            sq_flow_control: options.sq_flow_control,
            io_queues: options.io_queues,
        });
        let mut info = dial::runner(&mut queue, options.connect_timeout)
            .run(|answer, now| bring_up.next(answer, now))
            .map_err(|error| peer.error(options, "bring-up", error))?;
        if peer.transport == Transport::Rdma {
            // One descriptor is enough for any transfer, then.
            let limit = info.max_transfer.unwrap_or(MAX_DESCRIBED);
            info.max_transfer = Some(limit.min(MAX_DESCRIBED));
        }
        tracing::debug!(controller = %peer.name(), id = info.controller_id, model = %info.model, "connected");
        Ok((queue, route, info))
    }

    /// Opens the blocks behind a URI, wherever they are: a namespace over a fabric, a file, a device, memory.
    ///
    /// # Errors
    /// As [`Initiator::connect`]; [`Error::NoNamespace`] and [`Error::AmbiguousNamespace`] where the URI's namespace does not exist,
    /// or names none of several; [`Error::File`], [`Error::Passthrough`] and [`Error::Drive`] for a file or device that cannot be opened.
    pub fn open(&self, uri: &Uri) -> Result<Device, Error> {
        self.open_for(uri, Purpose::Everything)
    }

    /// The same for reading only: what is on this machine is opened so that nothing is claimed and others may use it meanwhile (a
    /// mounted block device, say), and refuses writes itself.
    ///
    /// # Errors
    /// As [`Initiator::open`].
    pub fn open_to_read(&self, uri: &Uri) -> Result<Device, Error> {
        self.open_for(uri, Purpose::Reading)
    }

    /// All namespaces of a drive that this process drives itself, and why some of them cannot be used.
    ///
    /// # Errors
    /// [`Error::Drive`] if the drive cannot be had.
    pub fn open_drive(&self, address: PciAddress) -> Result<Vec<Result<Device, Error>>, Error> {
        let drives = &self.shared.drives;
        // They keep the drive while it is opened once more for each.
        let namespaces = drives.open_all(address)?;
        let open = |namespace: &Result<Drive, DriveError>| match namespace {
            Ok(drive) => {
                let nsid = Some(drive.nsid());
                Device::local(Uri::Pci { address, nsid }, Purpose::Everything, drives)
            }
            Err(error) => Err(Error::Unsupported(error.to_string())),
        };
        Ok(namespaces.iter().map(open).collect())
    }

    fn open_for(&self, uri: &Uri, purpose: Purpose) -> Result<Device, Error> {
        match uri {
            Uri::Fabric(fabric) if fabric.nqn.is_none() => Err(Error::Unsupported(format!(
                "{uri} names a discovery service, which has no blocks: add a subsystem, as in {uri}/NQN \
                 (`homi discover {uri}` lists them)"
            ))),
            Uri::Fabric(fabric) => Device::fabric(uri.clone(), self.connect(uri)?, fabric.nsid),
            Uri::Kernel { .. } | Uri::Pci { .. } | Uri::File { .. } | Uri::Ram { .. } => {
                Device::local(uri.clone(), purpose, &self.shared.drives)
            }
        }
    }
}

fn fabric<'a>(uri: &'a Uri, otherwise: &str) -> Result<&'a FabricUri, Error> {
    match uri {
        Uri::Fabric(fabric) => Ok(fabric),
        Uri::Kernel { .. } | Uri::Pci { .. } | Uri::File { .. } | Uri::Ram { .. } => {
            Err(Error::Unsupported(format!("{uri}: {otherwise}")))
        }
    }
}

/// The services that these records refer to and that were not asked yet.
fn referrals(records: &[DiscoveryRecord], asked: &mut HashSet<(Transport, String, u16)>) -> Vec<FabricUri> {
    let mut found = Vec::new();
    for record in records {
        if record.kind != SubsystemKind::Referral {
            continue;
        }
        let Some(transport) = Transport::of_record(record.transport) else {
            continue;
        };
        let Ok(port) = record.service.parse::<u16>() else {
            tracing::warn!(service = %record.service, "referral without a port, skipped");
            continue;
        };
        if asked.len() >= REFERRAL_SERVICES {
            tracing::warn!(address = %record.address, port, "too many referrals, skipped");
            continue;
        }
        if asked.insert((transport, record.address.clone(), port)) {
            found.push(FabricUri {
                transport,
                host: record.address.clone(),
                port,
                nqn: None,
                nsid: None,
            });
        }
    }
    found
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_fabric::host::{AddressFamily, TransportKind};
    use homi_spec::Nqn;

    #[test]
    fn referrals_of_both_transports_are_followed_once() {
        let record = |transport, kind, address: &str, service: &str| DiscoveryRecord {
            transport,
            family: AddressFamily::Ipv4,
            kind,
            subsystem: Nqn::discovery(),
            address: address.to_owned(),
            service: service.to_owned(),
            port_id: 1,
            controller_id: 0xffff,
            admin_queue_entries: 32,
            secure_required: false,
            duplicate: false,
        };
        let referral = SubsystemKind::Referral;
        let records = [
            record(TransportKind::Tcp, referral, "10.0.0.1", "8009"),
            record(TransportKind::Rdma, referral, "10.0.0.1", "4420"),
            record(TransportKind::Rdma, referral, "10.0.0.1", "4420"),
            record(TransportKind::Rdma, SubsystemKind::Nvm, "10.0.0.2", "4420"),
            record(TransportKind::FibreChannel, referral, "nn-1:pn-2", "none"),
            record(TransportKind::Rdma, referral, "10.0.0.3", "port"),
        ];
        let mut asked = HashSet::new();
        let found: Vec<String> = referrals(&records, &mut asked)
            .iter()
            .map(FabricUri::to_string)
            .collect();
        assert_eq!(found, ["nvme+tcp://10.0.0.1:8009", "nvme+rdma://10.0.0.1:4420"]);
        assert!(referrals(&records, &mut asked).is_empty());
    }
}
