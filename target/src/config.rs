//! What a target serves: one TOML file, with command-line flags over it.
//!
//! Every table refuses keys that it does not know, and every error names the key and says what to write instead. Nothing
//! here opens anything: [`Config::check`] finds contradictions, the service finds out what the system refuses.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use homi_pci::{PciAddress, PciAddressError};
use homi_spec::fabrics::Nqn;
use serde::{Deserialize, Deserializer, de};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not valid TOML or has a wrong key or value.
    #[error("the configuration {path} is wrong: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: Box<toml::de::Error>,
    },
    /// The parts do not fit together.
    #[error("the configuration is wrong: {0}")]
    Contradiction(String),
}

/// A number of bytes, written as a number or with a binary suffix: `4096`, `64K`, `1M`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = homi_local::parse_size(text).map(Self);
        size.ok_or_else(|| {
            format!("{text:?} is not a size: write a number of bytes, or one with K, M, G or T as in 64M")
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units
            .iter()
            .find(|(shift, _)| self.0 >= 1 << shift && self.0.trailing_zeros() >= *shift)
        {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// An NVMe qualified name in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub Nqn);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error| format!("{text:?} is not an NQN: {error}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Everything a target serves and how.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node itself. Changes need a restart.
    pub node: NodeSection,
    /// NVMe/RDMA, where a listener speaks it. Changes need a restart.
    pub rdma: RdmaSection,
    /// What one host and one connection may use.
    pub limits: Limits,
    /// Addresses to listen on.
    pub listener: Vec<Listener>,
    /// The discovery service.
    pub discovery: Discovery,
    /// The subsystems.
    pub subsystem: Vec<Subsystem>,
}

/// How the node runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// Shards (threads that carry I/O); one per core when absent.
    pub shards: Option<u16>,
    /// Whether each shard stays on a core of its own.
    pub pin: bool,
    /// `"auto"` (io_uring, or readiness events where the system refuses it), `"io_uring"` or `"readiness"`.
    pub events: Events,
    /// Memory that each shard may use for data in transit.
    pub buffers: Size,
    /// Largest transfer of one command: a power of two from 4 KiB to 16 MiB; hosts see it as MDTS.
    pub max_transfer: Size,
    /// Largest write that a host may send inside its capsule over TCP: 0, or 4 KiB to 64 KiB in steps of 16 B.
    pub in_capsule: Size,
    /// How long a busy shard keeps polling after its last event before it sleeps, in microseconds; 0 sleeps at once. A shard sleeps at once too
    /// while what comes next keeps coming later than that.
    pub poll_us: u64,
    /// Which TCP congestion control bounds what is sent: `"auto"` (the system's choice, but `cubic` where that is `bbr`),
    /// `"system"`, or the name of one that the kernel has, such as `"dctcp"`.
    pub congestion: String,
    /// Offer header digests to hosts that ask for them.
    pub header_digest: bool,
    /// Offer data digests to hosts that ask for them.
    pub data_digest: bool,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            shards: None,
            pin: false,
            events: Events::Auto,
            buffers: Size(64 << 20),
            max_transfer: Size(1 << 20),
            in_capsule: Size(16 << 10),
            poll_us: 50,
            congestion: "auto".to_owned(),
            header_digest: true,
            data_digest: true,
        }
    }
}

/// What NVMe/RDMA may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RdmaSection {
    /// Largest write that a host may send inside its capsule: 0, or 4 KiB to 64 KiB in steps of 16 B. Every receive has this much
    /// memory, used or not.
    pub in_capsule: Size,
    /// Commands that each shard can take at once over one device: the entries of all queues that it has there. What goes beyond is
    /// refused when it connects. Memory for them is used as they are promised.
    pub receives: u32,
}

impl Default for RdmaSection {
    fn default() -> Self {
        Self {
            in_capsule: Size(8 << 10),
            receives: 8192,
        }
    }
}

/// Which interface of the kernel the shards wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Events {
    /// io_uring, or readiness events where the system refuses it.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// Readiness events (epoll).
    Readiness,
}

impl FromStr for Events {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "readiness" => Ok(Self::Readiness),
            other => Err(format!(
                "{other:?} is not a way to wait: use auto, io_uring or readiness"
            )),
        }
    }
}

/// What one host and one connection may use. A host is told "controller busy" beyond these; nobody else notices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of the whole node.
    pub connections: u32,
    /// Connections of one host, admin and I/O together.
    pub connections_per_host: u32,
    /// Associations of one host with one subsystem.
    pub controllers_per_host: u32,
    /// I/O queues of one association.
    pub io_queues: u16,
    /// Entries of one queue (its depth plus one), 2 to 4096.
    pub queue_entries: u16,
    /// Seconds from accept to a finished Connect, after which a silent connection is closed.
    pub handshake_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_host: 2048,
            controllers_per_host: 1024,
            io_queues: 64,
            queue_entries: 1024,
            handshake_s: 10,
        }
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `"tcp"` or `"rdma"`.
    #[serde(default)]
    pub transport: Transport,
    /// IP address and port, as `"192.168.1.2:4420"` or `"[::]:4420"`. Over RDMA it is an address of an RDMA device, or `0.0.0.0` or `[::]`
    /// for those of all of them in that family.
    pub address: SocketAddr,
    /// The address that discovery tells hosts, when it is not `address` itself (a wildcard address is answered with the
    /// address that the asking host reached).
    #[serde(default)]
    pub advertise: Option<IpAddr>,
}

impl Listener {
    /// Where it listens.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            transport: self.transport,
            address: self.address,
        }
    }
}

/// The transports that a listener can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/TCP.
    #[default]
    Tcp,
    /// NVMe/RDMA.
    Rdma,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// An address to listen on, as the command line takes it: `192.168.1.2:4420`, `tcp://192.168.1.2:4420` or `rdma://192.168.1.2:4420`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// What is spoken there.
    pub transport: Transport,
    /// IP address and port.
    pub address: SocketAddr,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, address) = match text.split_once("://") {
            None | Some(("tcp", _)) => (Transport::Tcp, text.strip_prefix("tcp://").unwrap_or(text)),
            Some(("rdma", address)) => (Transport::Rdma, address),
            Some((other, _)) => {
                return Err(format!("{other:?} is not a transport: use tcp or rdma"));
            }
        };
        match address.parse() {
            Ok(address) => Ok(Self { transport, address }),
            Err(_) => Err(format!(
                "{address:?} is not an address: write IP:PORT, such as 192.168.1.2:4420 or [::]:4420"
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport, self.address)
    }
}

/// The discovery service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Other discovery services that hosts are pointed to.
    pub referral: Vec<Referral>,
}

/// Another discovery service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Referral {
    /// `"tcp"` or `"rdma"`.
    #[serde(default)]
    pub transport: Transport,
    /// IP address and port.
    pub address: SocketAddr,
}

/// A subsystem: what hosts connect to by its NQN.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subsystem {
    /// Its name.
    pub nqn: Name,
    /// Hosts that may connect. None may when the list is empty and `allow_any_host` is not set.
    #[serde(default)]
    pub allow: Vec<Name>,
    /// Lets every host connect.
    #[serde(default)]
    pub allow_any_host: bool,
    /// Serial number, up to 20 printable ASCII characters; derived from the NQN when absent.
    #[serde(default)]
    pub serial: Option<String>,
    /// Model name, up to 40 printable ASCII characters.
    #[serde(default)]
    pub model: Option<String>,
    /// Its namespaces.
    #[serde(default)]
    pub namespace: Vec<Namespace>,
}

/// A namespace of a drive: `0000:01:00.0/1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DrivePlace {
    /// Where the drive is.
    pub address: PciAddress,
    /// The namespace; `None` means the only one.
    pub nsid: Option<u32>,
}

impl FromStr for DrivePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, nsid) = match text.split_once('/') {
            Some((address, nsid)) => (address, Some(nsid)),
            None => (text, None),
        };
        let wrong = |nsid: &str| {
            format!("{nsid:?} is no namespace of a drive: use a number from 1, as in 0000:01:00.0/1")
        };
        let nsid = match nsid {
            None => None,
            // FFFFFFFFh addresses every namespace and 0 none (Base 2.0 §3.2.1).
            Some(text) => match text.parse() {
                Ok(nsid) if (1..u32::MAX).contains(&nsid) => Some(nsid),
                _ => return Err(wrong(text)),
            },
        };
        let address = address
            .parse()
            .map_err(|error: PciAddressError| error.to_string())?;
        Ok(Self { address, nsid })
    }
}

impl<'de> Deserialize<'de> for DrivePlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Where a drive's data passes through on its way between the wire and the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Staging {
    /// Memory of this machine.
    #[default]
    Dram,
    /// The drive's controller memory buffer.
    Cmb,
}

/// A namespace and what backs it: `path`, `drive` or `ram`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Namespace identifier, from 1.
    pub nsid: u32,
    /// A regular file, a block device, or a namespace behind the kernel's NVMe driver by its character device (`/dev/ng0n1`), to which commands
    /// are passed as they are.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// A drive that the target drives itself, by its PCI address and namespace: `0000:01:00.0/1`, or without the namespace if it has only
    /// one. It has to be bound to VFIO (`scripts/bind-vfio`).
    #[serde(default)]
    pub drive: Option<DrivePlace>,
    /// For a `drive`: where data passes through. `"dram"` is memory of this machine; with `"cmb"` hosts' data goes into the drive's own memory
    /// (its controller memory buffer) and to the medium from there, and the other way. A drive that cannot do that, or a listener that
    /// cannot reach the buffer, is refused when the target starts. When the buffer is full, commands wait.
    #[serde(default)]
    pub placement: Option<Staging>,
    /// Memory of this size, gone when the target stops.
    #[serde(default)]
    pub ram: Option<Size>,
    /// Create the file with this size if it does not exist.
    #[serde(default)]
    pub create: Option<Size>,
    /// Logical block size: 512 or 4096 bytes. When absent it is a block device's own, 512 for a file whose length is not a
    /// multiple of 4096, and 4096 for everything else.
    #[serde(default)]
    pub block_size: Option<Size>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// UUID that hosts see; derived from the NQN and the NSID when absent.
    #[serde(default)]
    pub uuid: Option<String>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, is not valid, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// How long a connection may take from accept to Connect.
    #[must_use]
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.handshake_s)
    }

    /// Finds contradictions and values out of range.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`] with the first one.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.find_contradiction()
            .map_or(Ok(()), |text| Err(ConfigError::Contradiction(text)))
    }

    fn find_contradiction(&self) -> Option<String> {
        let node = &self.node;
        if node.shards.is_some_and(|shards| shards == 0 || shards > 1024) {
            return Some("node.shards must be 1 to 1024; leave it out for one per core".to_owned());
        }
        let transfer = node.max_transfer.0;
        if !transfer.is_power_of_two() || !(4 << 10..=16 << 20).contains(&transfer) {
            return Some(format!(
                "node.max_transfer must be a power of two from 4K to 16M, not {transfer}"
            ));
        }
        for (key, Size(size)) in [
            ("node.in_capsule", node.in_capsule),
            ("rdma.in_capsule", self.rdma.in_capsule),
        ] {
            if size != 0 && (!(4096..=65536).contains(&size) || !size.is_multiple_of(16)) {
                return Some(format!(
                    "{key} must be 0, or 4K to 64K in steps of 16, not {size}"
                ));
            }
        }
        let receives = self.rdma.receives;
        if !(64..=32768).contains(&receives) {
            return Some(format!("rdma.receives must be 64 to 32768, not {receives}"));
        }
        if node.buffers.0 < transfer || node.buffers.0 > 1 << 40 {
            return Some(format!(
                "node.buffers must hold one transfer of {}, not {}",
                node.max_transfer, node.buffers
            ));
        }
        let limits = &self.limits;
        if limits.connections == 0
            || limits.connections_per_host == 0
            || limits.controllers_per_host == 0
            || limits.io_queues == 0
            || limits.handshake_s == 0
        {
            return Some("the values of [limits] must be at least 1".to_owned());
        }
        if !(32..=4096).contains(&limits.queue_entries) {
            return Some(format!(
                "limits.queue_entries must be 32 to 4096, not {}",
                limits.queue_entries
            ));
        }
        if let Some(place) = repeated(self.listener.iter().map(Listener::place)) {
            return Some(format!("two listeners have the address {place}: remove one"));
        }
        if let Some(nqn) = repeated(self.subsystem.iter().map(|subsystem| subsystem.nqn.0.to_string())) {
            return Some(format!("two subsystems have the NQN {nqn}: rename one"));
        }
        self.subsystem.iter().find_map(Subsystem::find_contradiction)
    }
}

impl Subsystem {
    fn find_contradiction(&self) -> Option<String> {
        let nqn = &self.nqn;
        for (name, text, most) in [("serial", &self.serial, 20), ("model", &self.model, 40)] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > most || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
            {
                return Some(format!(
                    "the {name} of {nqn} must be 1 to {most} printable ASCII characters"
                ));
            }
        }
        if self.allow_any_host && !self.allow.is_empty() {
            return Some(format!(
                "{nqn} has both allow_any_host and an allow list: remove one"
            ));
        }
        if let Some(nsid) = repeated(self.namespace.iter().map(|namespace| namespace.nsid)) {
            return Some(format!("{nqn} has two namespaces with nsid {nsid}: renumber one"));
        }
        self.namespace.iter().find_map(|namespace| {
            let problem = namespace.find_contradiction()?;
            Some(format!("namespace {} of {nqn}: {problem}", namespace.nsid))
        })
    }
}

impl Namespace {
    fn find_contradiction(&self) -> Option<String> {
        if self.nsid == 0 || self.nsid > 1024 {
            return Some("nsid must be 1 to 1024".to_owned());
        }
        let backings = [self.path.is_some(), self.drive.is_some(), self.ram.is_some()];
        match backings.into_iter().filter(|has| *has).count() {
            0 => return Some("give it a path, a drive or ram = \"SIZE\"".to_owned()),
            2.. => return Some("it has more than one of path, drive and ram: remove the others".to_owned()),
            _ => {}
        }
        if self.create.is_some() && self.path.is_none() {
            return Some("create needs a path".to_owned());
        }
        if self.placement.is_some() && self.drive.is_none() {
            return Some("placement needs a drive: other namespaces have no memory of their own".to_owned());
        }
        let block = self.block_size.map_or(4096, |size| size.0);
        if block != 512 && block != 4096 {
            return Some(format!("block_size must be 512 or 4096, not {block}"));
        }
        for (name, size) in [("ram", self.ram), ("create", self.create)] {
            if let Some(Size(size)) = size
                && (size == 0 || !size.is_multiple_of(block))
            {
                return Some(format!(
                    "{name} must be a multiple of the block size {block}, not {size}"
                ));
            }
        }
        if let Some(uuid) = &self.uuid
            && parse_uuid(uuid).is_none()
        {
            return Some(format!(
                "{uuid:?} is not a UUID: write 32 hexadecimal digits as 8-4-4-4-12"
            ));
        }
        None
    }
}

/// The 16 bytes of a UUID written as 8-4-4-4-12 hexadecimal digits.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.iter().map(|part| part.len()).ne([8, 4, 4, 4, 12]) {
        return None;
    }
    if !text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&parts.concat(), 16)
        .ok()
        .map(u128::to_be_bytes)
}

fn repeated<T: std::hash::Hash + Eq + Clone>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = HashSet::new();
    values.into_iter().find(|value| !seen.insert(value.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_whole_file() {
        let config = parse(
            r#"
            [node]
            shards = 2
            buffers = "128M"
            [rdma]
            in_capsule = "16K"
            receives = 4096
            [[listener]]
            address = "127.0.0.1:4420"
            [[listener]]
            transport = "rdma"
            address = "127.0.0.1:4420"
            [[discovery.referral]]
            transport = "rdma"
            address = "[::1]:8009"
            [[subsystem]]
            nqn = "nqn.2026-01.org.example:data"
            allow = ["nqn.2026-01.org.example:host"]
            [[subsystem.namespace]]
            nsid = 1
            ram = "64M"
            [[subsystem.namespace]]
            nsid = 2
            path = "/dev/null"
            block_size = 512
            uuid = "01234567-89ab-cdef-0123-456789abcdef"
            "#,
        )
        .unwrap();
        assert_eq!(config.subsystem[0].namespace[0].ram, Some(Size(64 << 20)));
        assert_eq!(config.node.buffers.to_string(), "128 MiB");
        assert_eq!(config.rdma.in_capsule, Size(16 << 10));
        let places: Vec<String> = config
            .listener
            .iter()
            .map(|one| one.place().to_string())
            .collect();
        assert_eq!(places, ["tcp://127.0.0.1:4420", "rdma://127.0.0.1:4420"]);
    }

    #[test]
    fn wrong_files_say_what_to_change() {
        let subsystem = "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:a\"\n";
        let namespace = format!("{subsystem}[[subsystem.namespace]]\nnsid = 1\n");
        for (text, expected) in [
            ("[node]\nshard = 2".to_owned(), "unknown field `shard`"),
            ("[node]\nshards = 0".to_owned(), "1 to 1024"),
            ("[node]\nmax_transfer = \"100K\"".to_owned(), "power of two"),
            ("[node]\nbuffers = \"12 parsecs\"".to_owned(), "12 parsecs"),
            (
                "[[listener]]\naddress = \"localhost\"".to_owned(),
                "socket address",
            ),
            (
                "[[listener]]\ntransport = \"fc\"\naddress = \"127.0.0.1:4420\"".to_owned(),
                "unknown variant `fc`",
            ),
            (
                "[[listener]]\ntransport = \"rdma\"\naddress = \"[::1]:4420\"\n".repeat(2),
                "two listeners have the address rdma://[::1]:4420",
            ),
            (
                "[rdma]\nreceives = 1".to_owned(),
                "rdma.receives must be 64 to 32768",
            ),
            (
                "[rdma]\nin_capsule = \"1K\"".to_owned(),
                "rdma.in_capsule must be 0, or 4K",
            ),
            ("[[subsystem]]\nnqn = \"disk\"".to_owned(), "NQN"),
            (format!("{subsystem}{subsystem}"), "two subsystems"),
            (format!("{subsystem}serial = \"\""), "1 to 20"),
            (namespace.clone(), "give it a path, a drive or ram"),
            (
                format!("{namespace}ram = \"1M\"\npath = \"/x\""),
                "more than one of path, drive and ram",
            ),
            (format!("{namespace}ram = 1000"), "multiple of the block size"),
            (
                format!("{namespace}ram = \"1M\"\nplacement = \"cmb\""),
                "placement needs a drive",
            ),
            (
                format!("{namespace}drive = \"0000:01:00.0\"\nplacement = \"bar\""),
                "unknown variant `bar`",
            ),
            (
                format!("{namespace}ram = \"1M\"\nblock_size = 1024"),
                "512 or 4096",
            ),
            (format!("{namespace}ram = \"1M\"\nuuid = \"x\""), "not a UUID"),
            (
                format!("{namespace}ram = \"1M\"\n[[subsystem.namespace]]\nnsid = 1\nram = \"1M\""),
                "two namespaces",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}\n-> {error}");
        }
    }

    #[test]
    fn places_are_written_with_or_without_a_transport() {
        for (text, written) in [
            ("127.0.0.1:1", "tcp://127.0.0.1:1"),
            ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
            ("rdma://[fd77::1]:4420", "rdma://[fd77::1]:4420"),
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), written);
        }
        for (text, expected) in [
            ("fc://127.0.0.1:1", "use tcp or rdma"),
            ("rdma://127.0.0.1", "write IP:PORT"),
            ("node7", "write IP:PORT"),
        ] {
            let error = text.parse::<Place>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
