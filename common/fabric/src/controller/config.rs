//! What a storage node is asked to be: [`NodeIdentity`] for its lifetime, [`NodeConfig`] from reload to reload.
//!
//! A [`NodeConfig`] is the whole desired state. [`NodeConfig::validate`] holds every name, length and number to what
//! the wire can carry, so that nothing behind it has to check again. It describes no back end: a namespace
//! carries an opaque `handle` that means something to whoever executes its commands.

use homi_spec::Nqn;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Largest namespace identifier that a subsystem may be configured for.
pub const MAX_NSID: u32 = 0xffff_fffe;
/// Largest number of entries of an admin queue: Base 2.0 §3.1.3.9 gives its size 12 bits.
pub const MAX_ADMIN_QUEUE_ENTRIES: u32 = 4096;
/// Largest in-capsule data size that a port may offer, in bytes.
pub const MAX_IN_CAPSULE: u32 = 1 << 20;

/// What all controllers of the node say about it, for as long as the process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// PCI vendor id (VID) of the maker; 0 where there is none.
    pub vendor_id: u16,
    /// PCI subsystem vendor id (SSVID); 0 where there is none.
    pub subsystem_vendor_id: u16,
    /// IEEE OUI of the maker, least significant byte first; zeroes where there is none.
    pub ieee_oui: [u8; 3],
    /// Firmware revision (FR): 1 to 8 printable ASCII characters.
    pub firmware: String,
    /// Largest queue in entries, 2 to 65536: CAP.MQES and MAXCMD.
    pub max_queue_entries: u32,
    /// Largest transfer of one command in bytes, a power of two of 8 KiB or more: MDTS.
    pub max_transfer: u32,
}

impl Default for NodeIdentity {
    fn default() -> Self {
        Self {
            vendor_id: 0,
            subsystem_vendor_id: 0,
            ieee_oui: [0; 3],
            firmware: env!("CARGO_PKG_VERSION").chars().take(8).collect(),
            max_queue_entries: 1024,
            max_transfer: 1 << 20,
        }
    }
}

impl NodeIdentity {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that the wire cannot carry.
    pub fn validate(&self) -> Result<(), ConfigError> {
        text("the firmware revision", &self.firmware, 8)?;
        if !(2..=65536).contains(&self.max_queue_entries) {
            return Err(ConfigError::QueueEntries {
                given: self.max_queue_entries,
            });
        }
        // MDTS counts doublings of 4096 bytes, and 0 of them would mean no limit.
        if !self.max_transfer.is_power_of_two() || self.max_transfer < 8192 {
            return Err(ConfigError::MaxTransfer {
                given: self.max_transfer,
            });
        }
        Ok(())
    }
}

/// Identifies a listener; also PORTID of its discovery log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which hosts may connect. The default lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowList {
    /// Every host.
    Any,
    /// The hosts with these names.
    Hosts(BTreeSet<Nqn>),
}

impl Default for AllowList {
    fn default() -> Self {
        Self::Hosts(BTreeSet::new())
    }
}

impl AllowList {
    /// Whether the host may connect.
    #[must_use]
    pub fn allows(&self, host: &Nqn) -> bool {
        match self {
            Self::Any => true,
            Self::Hosts(hosts) => hosts.contains(host),
        }
    }
}

/// Through which ports a subsystem can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Exposure {
    /// Every port of the node.
    #[default]
    Everywhere,
    /// These ports.
    Ports(BTreeSet<PortId>),
}

impl Exposure {
    /// Whether the subsystem can be reached through the port.
    #[must_use]
    pub fn includes(&self, port: PortId) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Ports(ports) => ports.contains(&port),
        }
    }
}

/// What carries a connection, as the discovery log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// NVMe/TCP without TLS.
    Tcp,
    /// NVMe/RDMA.
    Rdma(RdmaProvider),
}

/// RDMA provider type of a port (TSAS, RDMA transport 1.0 §3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RdmaProvider {
    /// Nothing is said of it.
    Unspecified,
    /// InfiniBand.
    InfiniBand,
    /// RoCE v2.
    RoceV2,
    /// iWARP.
    Iwarp,
}

/// Where a transport can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransportAddress {
    /// What carries the connection.
    pub transport: TransportKind,
    /// IP address. For a port it may be unspecified (`0.0.0.0`, `::`): the discovery log then names the address
    /// that the asking host reached the node at.
    pub address: IpAddr,
    /// Port number of the transport service.
    pub service: u16,
}

impl fmt::Display for TransportAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            TransportKind::Tcp => "tcp",
            TransportKind::Rdma(_) => "rdma",
        };
        match self.address {
            IpAddr::V4(address) => write!(f, "{transport}://{address}:{}", self.service),
            IpAddr::V6(address) => write!(f, "{transport}://[{address}]:{}", self.service),
        }
    }
}

/// What a transport says about secure channels (TREQ bits 1:0 of a discovery log entry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecureChannel {
    /// Not specified: what a port says that has none. Earlier versions of libnvme ask for TLS where either of the others stands, and
    /// `nvme connect-all` fails.
    #[default]
    Unspecified,
    /// Required.
    Required,
    /// Not required, but to be had.
    NotRequired,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Its identifier, unique in the node.
    pub id: PortId,
    /// Where it listens.
    pub address: TransportAddress,
    /// Bytes of data that an I/O command capsule may carry, a multiple of 16: becomes IOCCSZ.
    pub in_capsule: u32,
    /// Whether a secure channel is required.
    pub secure_channel: SecureChannel,
}

impl PortConfig {
    /// A port that takes 8 KiB in a capsule and has no secure channel.
    #[must_use]
    pub fn new(id: PortId, address: TransportAddress) -> Self {
        Self {
            id,
            address,
            in_capsule: 8192,
            secure_channel: SecureChannel::default(),
        }
    }
}

/// Another discovery service that hosts should ask too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferralConfig {
    /// Name of the discovery subsystem: usually the well-known one.
    pub subsystem: Nqn,
    /// Where it can be reached; not an unspecified address.
    pub address: TransportAddress,
    /// Its port identifier.
    pub port: PortId,
    /// Whether a secure channel is required.
    pub secure_channel: SecureChannel,
}

impl ReferralConfig {
    /// A referral to the well-known discovery subsystem at an address.
    #[must_use]
    pub fn new(address: TransportAddress) -> Self {
        Self {
            subsystem: Nqn::discovery(),
            address,
            port: PortId(0),
            secure_channel: SecureChannel::default(),
        }
    }
}

/// How a namespace's back end likes to be used, in logical blocks; 0 says nothing. Becomes NOIOB, NPWG, NPWA, NPDG,
/// NPDA and NOWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoHints {
    /// Commands should not cross multiples of this.
    pub boundary: u16,
    /// Writes should be multiples of this.
    pub write_granularity: u32,
    /// Writes should begin at multiples of this.
    pub write_alignment: u32,
    /// Deallocations should be multiples of this.
    pub deallocate_granularity: u32,
    /// Deallocations should begin at multiples of this.
    pub deallocate_alignment: u32,
    /// Writes work best with this size.
    pub write_size: u32,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Its identifier, unique in the subsystem: 1 to the subsystem's `max_nsid`.
    pub nsid: u32,
    /// Bytes of a logical block: a power of two, 512 to 65536.
    pub block_size: u32,
    /// Number of logical blocks, at least 1.
    pub blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether deallocated blocks read as zeroes (DLFEAT); otherwise nothing is said of them.
    pub deallocated_reads_zeroes: bool,
    /// UUID; derived from the subsystem's name and the identifier where not given.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, most significant byte first; derived likewise.
    pub nguid: Option<[u8; 16]>,
    /// EUI64, most significant byte first; derived likewise.
    pub eui64: Option<[u8; 8]>,
    /// How the back end likes to be used.
    pub hints: IoHints,
    /// What executes its commands: opaque here, handed out with the namespace table.
    pub handle: u64,
}

impl NamespaceConfig {
    /// A writable namespace with derived identifiers, no hints, and deallocated blocks that read as zeroes.
    #[must_use]
    pub fn new(nsid: u32, block_size: u32, blocks: u64, handle: u64) -> Self {
        Self {
            nsid,
            block_size,
            blocks,
            read_only: false,
            deallocated_reads_zeroes: true,
            uuid: None,
            nguid: None,
            eui64: None,
            hints: IoHints::default(),
            handle,
        }
    }
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// Model number: 1 to 40 printable ASCII characters.
    pub model: String,
    /// Which hosts may connect.
    pub allow: AllowList,
    /// Through which ports it can be reached.
    pub exposure: Exposure,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceConfig>,
    /// Largest namespace identifier that it will ever have (NN).
    pub max_nsid: u32,
    /// I/O queues of one controller, 1 to 65534.
    pub max_io_queues: u16,
    /// Controllers that one host may have at once, at least 1.
    pub max_controllers_per_host: u16,
    /// Identifiers that its controllers get: within 1 to FFEFh.
    pub controller_ids: RangeInclusive<u16>,
    /// Whether completed writes may be volatile until a Flush (VWC). False only if every back end is durable at
    /// completion or durability has no meaning for it (RAM).
    pub volatile_write_cache: bool,
}

impl SubsystemConfig {
    /// A subsystem without namespaces that lets nobody in.
    #[must_use]
    pub fn new(nqn: Nqn) -> Self {
        let serial = derived_serial(&nqn);
        Self {
            nqn,
            serial,
            model: "Homi Fabrics".to_owned(),
            allow: AllowList::default(),
            exposure: Exposure::default(),
            namespaces: Vec::new(),
            max_nsid: 1024,
            max_io_queues: 128,
            max_controllers_per_host: 1024,
            controller_ids: 1..=homi_spec::fabrics::CNTLID_MAX,
            volatile_write_cache: true,
        }
    }
}

/// Limits of the whole node. A change applies to what connects from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLimits {
    /// Connected queues, admin and I/O together.
    pub max_connections: u32,
    /// Connected queues of one host, admin and I/O together.
    pub max_connections_per_host: u32,
    /// Associations (controllers), discovery included.
    pub max_associations: u32,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            max_connections: 16384,
            max_connections_per_host: 8192,
            max_associations: 4096,
        }
    }
}

/// The whole desired state of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its subsystems.
    pub subsystems: Vec<SubsystemConfig>,
    /// Its listeners.
    pub ports: Vec<PortConfig>,
    /// Discovery services elsewhere.
    pub referrals: Vec<ReferralConfig>,
    /// Who may ask the discovery service. The log shows a host only the subsystems that it may connect to, so the
    /// default is everyone.
    pub discovery_allow: AllowList,
    /// Limits.
    pub limits: NodeLimits,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            subsystems: Vec::new(),
            ports: Vec::new(),
            referrals: Vec::new(),
            discovery_allow: AllowList::Any,
            limits: NodeLimits::default(),
        }
    }
}

/// What about a configuration cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A text is empty, too long, or not printable ASCII.
    #[error("{what} must have 1 to {max} printable ascii characters, not {given:?}")]
    Text {
        /// Which text.
        what: &'static str,
        /// Characters allowed.
        max: usize,
        /// What was given.
        given: String,
    },
    /// A queue size out of range.
    #[error("queues must have 2 to 65536 entries, not {given}")]
    QueueEntries {
        /// What was given.
        given: u32,
    },
    /// A transfer limit that MDTS cannot express.
    #[error("the largest transfer must be a power of two of at least 8192 bytes, not {given}")]
    MaxTransfer {
        /// What was given.
        given: u32,
    },
    /// Two subsystems with one name.
    #[error("subsystem {nqn} is configured twice; give each subsystem its own nqn")]
    DuplicateSubsystem {
        /// The name.
        nqn: Box<Nqn>,
    },
    /// A subsystem with the discovery service's name.
    #[error("a subsystem cannot have the discovery service's nqn {nqn}; choose another")]
    ReservedSubsystem {
        /// The name.
        nqn: Box<Nqn>,
    },
    /// Two namespaces of a subsystem with one identifier.
    #[error("subsystem {nqn} has namespace {nsid} twice; give each namespace its own nsid")]
    DuplicateNamespace {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The identifier.
        nsid: u32,
    },
    /// A namespace identifier out of range.
    #[error(
        "namespace {nsid} of subsystem {nqn} is out of range: use 1 to {max}, or raise the subsystem's max_nsid"
    )]
    NamespaceId {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The identifier.
        nsid: u32,
        /// The largest allowed.
        max: u32,
    },
    /// Two namespaces of a subsystem with one UUID, NGUID or EUI64.
    #[error("namespaces {first} and {second} of subsystem {nqn} have the same {what}; give each its own")]
    DuplicateIdentifier {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// Which identifier.
        what: &'static str,
        /// A namespace.
        first: u32,
        /// Another one.
        second: u32,
    },
    /// A block size that is not a power of two in range.
    #[error(
        "namespace {nsid} of subsystem {nqn} has blocks of {given} bytes; use a power of two from 512 to 65536"
    )]
    BlockSize {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The namespace.
        nsid: u32,
        /// What was given.
        given: u32,
    },
    /// No blocks, or more bytes than 64 bits count.
    #[error(
        "namespace {nsid} of subsystem {nqn} has {blocks} blocks; it needs at least 1 and less than 2^64 bytes"
    )]
    Capacity {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The namespace.
        nsid: u32,
        /// What was given.
        blocks: u64,
    },
    /// A hint that does not fit its field.
    #[error("namespace {nsid} of subsystem {nqn}: {what} of {given} blocks is more than 65536")]
    Hint {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The namespace.
        nsid: u32,
        /// Which hint.
        what: &'static str,
        /// What was given.
        given: u32,
    },
    /// A number of a subsystem out of range.
    #[error("subsystem {nqn}: {what} must be {min} to {max}, not {given}")]
    SubsystemNumber {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// Which number.
        what: &'static str,
        /// Smallest allowed.
        min: u32,
        /// Largest allowed.
        max: u32,
        /// What was given.
        given: u32,
    },
    /// A range of controller identifiers that is empty or holds a reserved one.
    #[error("subsystem {nqn}: controller ids {first} to {last} must be a rising range within 1 to 65519")]
    ControllerIds {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// First identifier given.
        first: u16,
        /// Last identifier given.
        last: u16,
    },
    /// A subsystem is exposed on a port that does not exist.
    #[error(
        "subsystem {nqn} is exposed on port {port}, which is not configured; add the port or remove it there"
    )]
    UnknownPort {
        /// The subsystem.
        nqn: Box<Nqn>,
        /// The port.
        port: PortId,
    },
    /// Two ports with one identifier.
    #[error("port {port} is configured twice; give each port its own id")]
    DuplicatePort {
        /// The identifier.
        port: PortId,
    },
    /// Two ports with one address.
    #[error("ports {first} and {second} both listen at {address}; remove one")]
    DuplicateAddress {
        /// A port.
        first: PortId,
        /// Another one.
        second: PortId,
        /// The address.
        address: TransportAddress,
    },
    /// An in-capsule size that IOCCSZ cannot express.
    #[error(
        "port {port}: the in-capsule size must be a multiple of 16 of at most {MAX_IN_CAPSULE} bytes, not {given}"
    )]
    InCapsule {
        /// The port.
        port: PortId,
        /// What was given.
        given: u32,
    },
    /// A referral to no address in particular.
    #[error("the referral to {address} names no host; give the address of the other discovery service")]
    Referral {
        /// The address.
        address: TransportAddress,
    },
    /// A limit of zero.
    #[error("the limit {what} is 0, which would refuse everyone; use at least 1")]
    ZeroLimit {
        /// Which limit.
        what: &'static str,
    },
}

impl NodeConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that cannot be, in one sentence that says what to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ports = self.validate_ports()?;
        let mut names = BTreeSet::new();
        for subsystem in &self.subsystems {
            let nqn = || Box::new(subsystem.nqn.clone());
            if subsystem.nqn.is_discovery() {
                return Err(ConfigError::ReservedSubsystem { nqn: nqn() });
            }
            if !names.insert(&subsystem.nqn) {
                return Err(ConfigError::DuplicateSubsystem { nqn: nqn() });
            }
            if let Exposure::Ports(exposed) = &subsystem.exposure
                && let Some(port) = exposed.iter().find(|port| !ports.contains_key(port))
            {
                return Err(ConfigError::UnknownPort {
                    nqn: nqn(),
                    port: *port,
                });
            }
            subsystem.validate()?;
        }
        for (what, value) in [
            ("max_connections", self.limits.max_connections),
            ("max_connections_per_host", self.limits.max_connections_per_host),
            ("max_associations", self.limits.max_associations),
        ] {
            if value == 0 {
                return Err(ConfigError::ZeroLimit { what });
            }
        }
        Ok(())
    }

    fn validate_ports(&self) -> Result<BTreeMap<PortId, TransportAddress>, ConfigError> {
        let mut ports = BTreeMap::new();
        for port in &self.ports {
            if !port.in_capsule.is_multiple_of(16) || port.in_capsule > MAX_IN_CAPSULE {
                return Err(ConfigError::InCapsule {
                    port: port.id,
                    given: port.in_capsule,
                });
            }
            if let Some((first, _)) = ports.iter().find(|(_, address)| **address == port.address) {
                return Err(ConfigError::DuplicateAddress {
                    first: *first,
                    second: port.id,
                    address: port.address,
                });
            }
            if ports.insert(port.id, port.address).is_some() {
                return Err(ConfigError::DuplicatePort { port: port.id });
            }
        }
        for referral in &self.referrals {
            if referral.address.address.is_unspecified() {
                return Err(ConfigError::Referral {
                    address: referral.address,
                });
            }
        }
        Ok(ports)
    }
}

impl SubsystemConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let nqn = || Box::new(self.nqn.clone());
        text("the serial number", &self.serial, 20)?;
        text("the model number", &self.model, 40)?;
        let number = |what, given: u32, min, max| {
            if (min..=max).contains(&given) {
                Ok(())
            } else {
                Err(ConfigError::SubsystemNumber {
                    nqn: nqn(),
                    what,
                    min,
                    max,
                    given,
                })
            }
        };
        number("max_nsid", self.max_nsid, 1, MAX_NSID)?;
        number("max_io_queues", u32::from(self.max_io_queues), 1, 65534)?;
        number(
            "max_controllers_per_host",
            u32::from(self.max_controllers_per_host),
            1,
            65519,
        )?;
        let (first, last) = (*self.controller_ids.start(), *self.controller_ids.end());
        if first == 0 || first > last || last > homi_spec::fabrics::CNTLID_MAX {
            return Err(ConfigError::ControllerIds {
                nqn: nqn(),
                first,
                last,
            });
        }
        let mut nsids = BTreeSet::new();
        let (mut uuids, mut nguids, mut euis) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for namespace in &self.namespaces {
            let nsid = namespace.nsid;
            if !nsids.insert(nsid) {
                return Err(ConfigError::DuplicateNamespace { nqn: nqn(), nsid });
            }
            namespace.validate(self)?;
            let duplicate = |what, first: Option<u32>| match first {
                Some(first) => Err(ConfigError::DuplicateIdentifier {
                    nqn: nqn(),
                    what,
                    first,
                    second: nsid,
                }),
                None => Ok(()),
            };
            duplicate("uuid", namespace.uuid.and_then(|id| uuids.insert(id, nsid)))?;
            duplicate("nguid", namespace.nguid.and_then(|id| nguids.insert(id, nsid)))?;
            duplicate("eui64", namespace.eui64.and_then(|id| euis.insert(id, nsid)))?;
        }
        Ok(())
    }
}

impl NamespaceConfig {
    fn validate(&self, subsystem: &SubsystemConfig) -> Result<(), ConfigError> {
        let (nsid, nqn) = (self.nsid, || Box::new(subsystem.nqn.clone()));
        if !(1..=subsystem.max_nsid).contains(&nsid) {
            return Err(ConfigError::NamespaceId {
                nqn: nqn(),
                nsid,
                max: subsystem.max_nsid,
            });
        }
        if !self.block_size.is_power_of_two() || !(512..=65536).contains(&self.block_size) {
            return Err(ConfigError::BlockSize {
                nqn: nqn(),
                nsid,
                given: self.block_size,
            });
        }
        if self.blocks == 0 || self.blocks.checked_mul(u64::from(self.block_size)).is_none() {
            return Err(ConfigError::Capacity {
                nqn: nqn(),
                nsid,
                blocks: self.blocks,
            });
        }
        for (what, given) in [
            ("write_granularity", self.hints.write_granularity),
            ("write_alignment", self.hints.write_alignment),
            ("deallocate_granularity", self.hints.deallocate_granularity),
            ("deallocate_alignment", self.hints.deallocate_alignment),
            ("write_size", self.hints.write_size),
        ] {
            if given > 65536 {
                return Err(ConfigError::Hint {
                    nqn: nqn(),
                    nsid,
                    what,
                    given,
                });
            }
        }
        Ok(())
    }
}

fn text(what: &'static str, given: &str, max: usize) -> Result<(), ConfigError> {
    let printable = given.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    if given.is_empty() || given.len() > max || !printable {
        return Err(ConfigError::Text {
            what,
            max,
            given: given.to_owned(),
        });
    }
    Ok(())
}

/// A serial number for a subsystem that was given none: stable, and different for different names.
fn derived_serial(nqn: &Nqn) -> String {
    let [a, b, c, d, e, f, g, h, ..] = super::ids::derived(nqn, 0);
    format!("{:016x}", u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
