//! What a configuration becomes: open backings, and the node's own configuration.
//!
//! A change is prepared first, which opens whatever is new, and committed when everything else went well too; a
//! prepared change that is dropped leaves nothing behind. What did not change keeps its backing: memory keeps its bytes,
//! files stay open.

use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use homi_fabric::controller::{
    AllowList, NamespaceConfig, NodeConfig, NodeLimits, PortConfig, PortId, RdmaProvider, ReferralConfig,
    SubsystemConfig, TransportAddress, TransportKind,
};
use homi_local::{
    Backing, Drive, Drives, File, FileOptions, NamespaceGeometry, Passthrough, PassthroughOptions, Ram,
    namespace_at,
};

use crate::cmb::CmbParts;
use crate::config::{
    Config, DrivePlace, Listener, Namespace, Place, Size, Staging, Subsystem, Transport, parse_uuid,
};
use crate::engine::{Backed, Backings};
use crate::service::ServiceError;

/// Logical block size where the configuration names none.
const DEFAULT_BLOCK: u32 = 4096;

/// A listener and where it really listens.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) wanted: Listener,
    pub(crate) local: SocketAddr,
    pub(crate) port: PortId,
}

impl Address {
    /// Where it listens, as the system chose.
    pub(crate) fn place(&self) -> Place {
        Place {
            transport: self.wanted.transport,
            address: self.local,
        }
    }
}

/// What backs a namespace: two namespaces of two configurations are the same one if this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    nqn: String,
    nsid: u32,
    path: Option<PathBuf>,
    drive: Option<DrivePlace>,
    placement: Staging,
    ram: Option<Size>,
    block_size: Option<Size>,
    read_only: bool,
}

impl Identity {
    fn of(subsystem: &Subsystem, namespace: &Namespace) -> Self {
        Self {
            nqn: subsystem.nqn.to_string(),
            nsid: namespace.nsid,
            path: namespace.path.clone(),
            drive: namespace.drive,
            placement: namespace.placement.unwrap_or_default(),
            ram: namespace.ram,
            block_size: namespace.block_size,
            read_only: namespace.read_only,
        }
    }
}

/// A backing that is registered under a handle until it is dropped.
#[derive(Debug)]
struct Opened {
    backing: Backing,
    cmb: Option<Arc<CmbParts>>,
    handle: u64,
    backings: Arc<Backings>,
}

impl Opened {
    /// The parts of this drive's memory buffer, if it has that.
    fn parts_of(&self, drive: &Drive) -> Option<Arc<CmbParts>> {
        match &self.backing {
            Backing::Drive(own) if own.is_beside(drive) => self.cmb.clone(),
            _ => None,
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.backings.remove(self.handle);
    }
}

/// The namespaces that are served now.
#[derive(Debug)]
pub(crate) struct Catalogue {
    drives: Drives,
    /// Among so many a drive's memory buffer is divided.
    shards: u16,
    namespaces: HashMap<Identity, Arc<Opened>>,
}

/// The namespaces of a configuration that is about to be applied.
#[derive(Debug)]
pub(crate) struct Prepared {
    namespaces: HashMap<Identity, Arc<Opened>>,
}

impl Catalogue {
    /// Nothing is served yet.
    pub(crate) fn new(drives: Drives, shards: u16) -> Self {
        Self {
            drives,
            shards,
            namespaces: HashMap::new(),
        }
    }

    /// Opens what is new and finds what is open already.
    pub(crate) fn prepare(
        &self,
        config: &Config,
        backings: &Arc<Backings>,
    ) -> Result<Prepared, ServiceError> {
        let mut namespaces: HashMap<Identity, Arc<Opened>> = HashMap::new();
        for subsystem in &config.subsystem {
            for namespace in &subsystem.namespace {
                let identity = Identity::of(subsystem, namespace);
                let opened = match self.namespaces.get(&identity) {
                    Some(opened) => Arc::clone(opened),
                    None => {
                        let backing = open(&self.drives, subsystem, namespace)?;
                        let cmb = match (&backing, identity.placement) {
                            (Backing::Drive(drive), Staging::Cmb) => {
                                let known = self.namespaces.values().chain(namespaces.values());
                                let known = known.filter_map(|opened| opened.parts_of(drive)).next();
                                let parts = match known {
                                    Some(parts) => Ok(parts),
                                    None => self.divide(config, drive).map(Arc::new),
                                };
                                Some(parts.map_err(|problem| refused(subsystem, namespace, problem))?)
                            }
                            _ => None,
                        };
                        let handle = backings.add(Backed {
                            backing: backing.clone(),
                            cmb: cmb.clone(),
                        });
                        Arc::new(Opened {
                            backing,
                            cmb,
                            handle,
                            backings: Arc::clone(backings),
                        })
                    }
                };
                if let (Some(_), Backing::Drive(drive)) = (&opened.cmb, &opened.backing) {
                    reached_by_listeners(config, drive)
                        .map_err(|problem| refused(subsystem, namespace, problem))?;
                }
                namespaces.insert(identity, opened);
            }
        }
        Ok(Prepared { namespaces })
    }

    fn divide(&self, config: &Config, drive: &Drive) -> Result<CmbParts, String> {
        let largest = usize::try_from(config.node.max_transfer.0).unwrap_or(usize::MAX);
        CmbParts::new(drive, self.shards, largest)
    }

    /// Serves what was prepared from now on; returns the handles of what is gone.
    pub(crate) fn commit(&mut self, prepared: Prepared) -> Vec<u64> {
        let previous = std::mem::replace(&mut self.namespaces, prepared.namespaces);
        let gone = previous
            .iter()
            .filter(|(identity, _)| !self.namespaces.contains_key(identity));
        gone.map(|(_, opened)| opened.handle).collect()
    }
}

impl Prepared {
    /// What the node is told.
    pub(crate) fn node_config(&self, config: &Config, listening: &[Address]) -> NodeConfig {
        let ports = listening.iter().map(|listener| {
            let ip = listener.wanted.advertise.unwrap_or_else(|| listener.local.ip());
            let address = address(listener.wanted.transport, ip, listener.local.port());
            PortConfig {
                in_capsule: in_capsule(config, listener.wanted.transport),
                ..PortConfig::new(listener.port, address)
            }
        });
        let referrals = config.discovery.referral.iter().map(|referral| {
            ReferralConfig::new(address(
                referral.transport,
                referral.address.ip(),
                referral.address.port(),
            ))
        });
        NodeConfig {
            subsystems: config
                .subsystem
                .iter()
                .map(|subsystem| self.subsystem(config, subsystem))
                .collect(),
            ports: ports.collect(),
            referrals: referrals.collect(),
            limits: NodeLimits {
                max_connections: config.limits.connections,
                max_connections_per_host: config.limits.connections_per_host,
                ..NodeLimits::default()
            },
            ..NodeConfig::default()
        }
    }

    fn subsystem(&self, config: &Config, subsystem: &Subsystem) -> SubsystemConfig {
        let mut made = SubsystemConfig::new(subsystem.nqn.0.clone());
        if let Some(serial) = &subsystem.serial {
            made.serial.clone_from(serial);
        }
        if let Some(model) = &subsystem.model {
            made.model.clone_from(model);
        }
        made.allow = if subsystem.allow_any_host {
            AllowList::Any
        } else {
            AllowList::Hosts(
                subsystem
                    .allow
                    .iter()
                    .map(|name| name.0.clone())
                    .collect::<BTreeSet<_>>(),
            )
        };
        made.max_io_queues = config.limits.io_queues;
        made.max_controllers_per_host = u16::try_from(config.limits.controllers_per_host).unwrap_or(u16::MAX);
        // Memory is as durable as it will ever be once it is written; files are durable after a Flush, and so are drives that have a cache.
        let opened = |namespace| self.namespaces.get(&Identity::of(subsystem, namespace));
        made.volatile_write_cache = subsystem
            .namespace
            .iter()
            .filter_map(opened)
            .any(|opened| match &opened.backing {
                Backing::Ram(_) => false,
                Backing::File(_) | Backing::Passthrough(_) => true,
                Backing::Drive(drive) => drive.volatile_write_cache(),
            });
        for namespace in &subsystem.namespace {
            if let Some(opened) = self.namespaces.get(&Identity::of(subsystem, namespace)) {
                let geometry = opened.backing.geometry();
                let (block_size, blocks) = (geometry.block_size(), geometry.blocks());
                made.namespaces.push(NamespaceConfig {
                    read_only: geometry.read_only(),
                    deallocated_reads_zeroes: geometry.deallocated_reads_zeroes(),
                    uuid: namespace.uuid.as_deref().and_then(parse_uuid),
                    ..NamespaceConfig::new(namespace.nsid, block_size, blocks, opened.handle)
                });
            }
        }
        made
    }
}

/// Bytes that a capsule of an I/O queue may carry.
pub(crate) fn in_capsule(config: &Config, transport: Transport) -> u32 {
    let size = match transport {
        Transport::Tcp => config.node.in_capsule,
        Transport::Rdma => config.rdma.in_capsule,
    };
    u32::try_from(size.0).unwrap_or(0)
}

fn refused(subsystem: &Subsystem, namespace: &Namespace, problem: String) -> ServiceError {
    ServiceError::Namespace {
        nqn: subsystem.nqn.to_string(),
        nsid: namespace.nsid,
        problem,
    }
}

/// Whether every listener's transport can move data to and from a drive's memory buffer. Sockets can; an RDMA device needs it as a dma-buf.
fn reached_by_listeners(config: &Config, drive: &Drive) -> Result<(), String> {
    if config
        .listener
        .iter()
        .all(|listener| listener.transport == Transport::Tcp)
    {
        return Ok(());
    }
    let what = "placement = \"cmb\" behind an rdma listener";
    let exported = drive.export_cmb();
    let missing = match exported {
        Err(error) => format!("the drive's memory buffer as a dma-buf, which RDMA devices import: {error}"),
        Ok(_) => {
            "shards that register dma-bufs with RDMA devices, which this version does not have".to_owned()
        }
    };
    Err(format!(
        "{what} needs {missing}; listen over tcp only, or use placement = \"dram\""
    ))
}

fn open(drives: &Drives, subsystem: &Subsystem, namespace: &Namespace) -> Result<Backing, ServiceError> {
    let nqn = subsystem.nqn.to_string();
    let nsid = namespace.nsid;
    let problem = |problem: String| ServiceError::Namespace {
        nqn: nqn.clone(),
        nsid,
        problem,
    };
    let block_size = namespace.block_size.and_then(|size| u32::try_from(size.0).ok());
    if let Some(Size(bytes)) = namespace.ram {
        let geometry = NamespaceGeometry::from_bytes(block_size.unwrap_or(DEFAULT_BLOCK), bytes);
        let geometry = geometry
            .map_err(|error| problem(error.to_string()))?
            .with_read_only(namespace.read_only);
        return Ram::new(geometry)
            .map(Backing::Ram)
            .map_err(|error| problem(error.to_string()));
    }
    if let Some(DrivePlace { address, nsid }) = namespace.drive {
        let drive = drives
            .open(address, nsid)
            .map_err(|error| problem(error.to_string()))?;
        let own = drive.geometry().block_size();
        if block_size.is_some_and(|asked| asked != own) {
            return Err(problem(format!(
                "the blocks of drive {address} have {own} bytes: leave block_size out"
            )));
        }
        return Ok(Backing::Drive(drive.with_read_only(namespace.read_only)));
    }
    let Some(path) = &namespace.path else {
        return Err(problem("it has no path, drive or ram".to_owned()));
    };
    if let Some(Size(bytes)) = namespace.create {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => file.set_len(bytes).map_err(|error| {
                problem(format!(
                    "cannot make {} {bytes} bytes long: {error}",
                    path.display()
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(problem(format!("cannot create {}: {error}", path.display()))),
        }
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device()) {
        return open_passthrough(path, namespace, block_size).map_err(problem);
    }
    let mut options = FileOptions::new(path).read_only(namespace.read_only);
    if let Some(block_size) = block_size.or_else(|| usual_block_size(path)) {
        options = options.block_size(block_size);
    }
    let file = File::open(&options).map_err(|source| ServiceError::Open {
        nqn: nqn.clone(),
        nsid,
        source,
    })?;
    if let Some(reason) = file.buffered_reason() {
        tracing::info!("{} goes through the page cache: {reason}", path.display());
    }
    Ok(Backing::File(file))
}

/// A namespace behind the kernel's NVMe driver, which commands are passed to as they are. Its block device is claimed meanwhile, unless it is
/// served read-only, so that nobody mounts it.
fn open_passthrough(path: &Path, namespace: &Namespace, block_size: Option<u32>) -> Result<Backing, String> {
    let options = PassthroughOptions::new(path)
        .read_only(namespace.read_only)
        .exclusive(!namespace.read_only && namespace_at(path).is_some());
    let device = Passthrough::open(&options).map_err(|error| error.to_string())?;
    let own = device.geometry().block_size();
    if block_size.is_some_and(|asked| asked != own) {
        return Err(format!(
            "the blocks of {} have {own} bytes: leave block_size out",
            path.display()
        ));
    }
    Ok(Backing::Passthrough(device))
}

/// The block size of a regular file for which none was chosen: the default where the file's length allows it. Devices have
/// one of their own.
fn usual_block_size(path: &Path) -> Option<u32> {
    let metadata = std::fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.len().is_multiple_of(u64::from(DEFAULT_BLOCK))).then_some(DEFAULT_BLOCK)
}

fn address(transport: Transport, ip: IpAddr, service: u16) -> TransportAddress {
    let transport = match transport {
        Transport::Tcp => TransportKind::Tcp,
        // An address does not say which of them it is; hosts do not need it.
        Transport::Rdma => TransportKind::Rdma(RdmaProvider::Unspecified),
    };
    TransportAddress {
        transport,
        address: ip,
        service,
    }
}
