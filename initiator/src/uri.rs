//! [`Uri`]: where blocks are, in one line.
//!
//! | form | what it is |
//! |---|---|
//! | `nvme+tcp://host[:4420]/NQN[?nsid=N]` | a subsystem, or one of its namespaces, over NVMe/TCP |
//! | `nvme+tcp://host[:8009]` | the discovery service of a host |
//! | `nvme+rdma://host[:4420]/NQN[?nsid=N]`, `nvme+rdma://host[:4420]` | the same over NVMe/RDMA |
//! | `nvme+kernel:///dev/ng0n1` | a namespace behind this machine's NVMe driver, commands passed as they are (its generic character device) |
//! | `nvme+pci://0000:01:00.0[/NSID]` | a drive of this machine, or one of its namespaces, driven by this process (`scripts/bind-vfio` binds it) |
//! | `file:///path[?block=4096]` | a file or block device of this machine |
//! | `ram://SIZE[?block=4096]` | memory of this process, `SIZE` as in `64M` |
//!
//! IPv6 addresses stand in brackets (`[::1]:4420`). In an NQN the characters `%`, `?` and `#` are written `%25`, `%3F` and
//! `%23`.

pub use homi_local::parse_size;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use homi_fabric::host::TransportKind;
pub use homi_pci::{PciAddress, PciAddressError};
use homi_spec::nqn::{DISCOVERY_NQN, Nqn};

/// Port of I/O controllers over either transport, and of discovery controllers over NVMe/RDMA.
pub const PORT_IO: u16 = 4420;
/// Port of NVMe/TCP discovery controllers.
pub const PORT_DISCOVERY: u16 = 8009;
/// Block size of local executors that name none, in bytes.
pub const LOCAL_BLOCK: u32 = 4096;

/// Where blocks, or the directory of them, can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "there are few of them, and names are stored in place"
)]
pub enum Uri {
    /// A controller behind a fabric.
    Fabric(FabricUri),
    /// A namespace behind the kernel's own NVMe driver, which passes commands on as they are.
    Kernel {
        /// Absolute path of its generic character device, as in `/dev/ng0n1`.
        path: PathBuf,
    },
    /// A namespace of a drive of this machine that this process drives itself.
    Pci {
        /// Where the drive is.
        address: PciAddress,
        /// Namespace; `None` means the only one.
        nsid: Option<u32>,
    },
    /// A file or a block device of this machine.
    File {
        /// Absolute path.
        path: PathBuf,
        /// Logical block size in bytes.
        block_size: u32,
    },
    /// Memory of this process, zeroed at first and gone when it is closed.
    Ram {
        /// Size in bytes, a multiple of the block size.
        size: u64,
        /// Logical block size in bytes.
        block_size: u32,
    },
}

/// What carries the commands to a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA: `RoCE`, `InfiniBand` or `iWARP`.
    Rdma,
}

impl Transport {
    /// The scheme of its URIs.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "nvme+tcp",
            Self::Rdma => "nvme+rdma",
        }
    }

    /// The port that discovery controllers have if nobody says otherwise.
    #[must_use]
    pub const fn discovery_port(self) -> u16 {
        match self {
            Self::Tcp => PORT_DISCOVERY,
            Self::Rdma => PORT_IO,
        }
    }

    /// The transport of a discovery record, if controllers can be reached over it from here.
    #[must_use]
    pub const fn of_record(kind: TransportKind) -> Option<Self> {
        match kind {
            TransportKind::Tcp => Some(Self::Tcp),
            TransportKind::Rdma => Some(Self::Rdma),
            _ => None,
        }
    }
}

/// A controller behind a fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricUri {
    /// What carries the commands.
    pub transport: Transport,
    /// Name or address of the host, without brackets.
    pub host: String,
    /// TCP port, or the same number in RDMA's port space.
    pub port: u16,
    /// Subsystem; `None` means the host's discovery service.
    pub nqn: Option<Nqn>,
    /// Namespace; `None` means the only one.
    pub nsid: Option<u32>,
}

/// Why a line is not a [`Uri`]. Each message says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// No scheme at all.
    #[error("\"{0}\" has no scheme: write nvme+tcp://HOST:PORT/NQN, file:///PATH or ram://SIZE")]
    NoScheme(String),
    /// A scheme that nobody knows.
    #[error("unknown scheme \"{0}\": use nvme+tcp, nvme+rdma, nvme+kernel, nvme+pci, file or ram")]
    UnknownScheme(String),
    /// No host between the slashes.
    #[error("no host in \"{0}\": write nvme+tcp://HOST[:PORT]/NQN")]
    NoHost(String),
    /// An IPv6 address without brackets, or brackets that do not close.
    #[error("\"{0}\" is not a host: put an IPv6 address in brackets, as in nvme+tcp://[::1]:4420/NQN")]
    BadHost(String),
    /// The port is not a number from 1 to 65535.
    #[error("\"{0}\" is not a port: use a number from 1 to 65535")]
    BadPort(String),
    /// The subsystem name is not an NQN.
    #[error("the path of \"{uri}\" is not a subsystem name: {reason}")]
    BadNqn {
        /// The line.
        uri: String,
        /// What about the name is wrong.
        reason: String,
    },
    /// A parameter after `?` that this scheme does not have.
    #[error("unknown parameter \"{name}\": {scheme} takes {known}")]
    UnknownParameter {
        /// The parameter.
        name: String,
        /// The scheme.
        scheme: &'static str,
        /// Parameters that it has.
        known: &'static str,
    },
    /// The namespace id is not a number from 1 to FFFFFFFEh.
    #[error("\"{0}\" is not a namespace id: use a number from 1, as in ?nsid=1")]
    BadNsid(String),
    /// A namespace was asked for without a subsystem.
    #[error("\"{0}\" names a namespace but no subsystem: write nvme+tcp://HOST:PORT/NQN?nsid=N")]
    NsidWithoutSubsystem(String),
    /// The block size is not one that local executors have.
    #[error("\"{0}\" is not a block size: use 512 or 4096")]
    BadBlock(String),
    /// A file path that is not absolute.
    #[error("\"{0}\" is not an absolute path: write file:///PATH with three slashes")]
    RelativePath(String),
    /// A device's path that is not absolute.
    #[error("\"{0}\" is not the path of a device: write nvme+kernel:///dev/ng0n1 with three slashes")]
    RelativeDevice(String),
    /// The address of a drive is none.
    #[error("nvme+pci: {0}")]
    BadAddress(#[from] PciAddressError),
    /// A size that is not a number with an optional suffix.
    #[error("\"{0}\" is not a size: write a number of bytes, or one with K, M, G or T, as in ram://64M")]
    BadSize(String),
    /// A size that is not a whole number of blocks.
    #[error("{size} bytes are not a whole number of {block_size}-byte blocks: round the size up")]
    UnevenSize {
        /// Bytes asked for.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
    },
}

impl Uri {
    /// The discovery service of a host over NVMe/TCP, at its usual port.
    #[must_use]
    pub fn discovery(host: &str) -> Self {
        Self::Fabric(FabricUri {
            transport: Transport::Tcp,
            host: host.to_owned(),
            port: PORT_DISCOVERY,
            nqn: None,
            nsid: None,
        })
    }

    /// A subsystem behind NVMe/TCP.
    #[must_use]
    pub fn subsystem(host: &str, port: u16, nqn: Nqn) -> Self {
        Self::subsystem_over(Transport::Tcp, host, port, nqn)
    }

    /// A subsystem behind a fabric.
    #[must_use]
    pub fn subsystem_over(transport: Transport, host: &str, port: u16, nqn: Nqn) -> Self {
        Self::Fabric(FabricUri {
            transport,
            host: host.to_owned(),
            port,
            nqn: Some(nqn),
            nsid: None,
        })
    }

    /// The same controller with this namespace chosen; URIs without a controller stay as they are.
    #[must_use]
    pub fn with_nsid(mut self, nsid: u32) -> Self {
        match &mut self {
            Self::Fabric(fabric) => fabric.nsid = Some(nsid),
            Self::Pci { nsid: chosen, .. } => *chosen = Some(nsid),
            Self::Kernel { .. } | Self::File { .. } | Self::Ram { .. } => {}
        }
        self
    }

    /// Whether this names a discovery service rather than blocks.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        match self {
            Self::Fabric(fabric) => fabric.nqn.as_ref().is_none_or(Nqn::is_discovery),
            Self::Kernel { .. } | Self::Pci { .. } | Self::File { .. } | Self::Ram { .. } => false,
        }
    }

    /// Whether the blocks are on this machine, reached without a fabric.
    #[must_use]
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::Fabric(_))
    }
}

impl FabricUri {
    /// `host:port`, with brackets where the host is an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The subsystem to connect to: the discovery subsystem if none is named.
    #[must_use]
    pub fn subsystem(&self) -> Nqn {
        self.nqn.clone().unwrap_or_else(Nqn::discovery)
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(line: &str) -> Result<Self, UriError> {
        let line = line.trim();
        let (scheme, rest) = line
            .split_once("://")
            .ok_or_else(|| UriError::NoScheme(line.to_owned()))?;
        match scheme {
            "nvme+tcp" => parse_fabric(Transport::Tcp, line, rest).map(Self::Fabric),
            "nvme+rdma" => parse_fabric(Transport::Rdma, line, rest).map(Self::Fabric),
            "nvme+kernel" => parse_kernel(rest),
            "file" => parse_file(rest),
            "ram" => parse_ram(rest),
            "nvme+pci" => parse_pci(rest),
            other => Err(UriError::UnknownScheme(other.to_owned())),
        }
    }
}

fn parse_fabric(transport: Transport, line: &str, rest: &str) -> Result<FabricUri, UriError> {
    let (rest, query) = split_query(rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = split_authority(line, authority)?;
    let nqn = match path {
        "" => None,
        path => {
            let bad = |reason: String| UriError::BadNqn {
                uri: line.to_owned(),
                reason,
            };
            let name = percent_decode(path).map_err(|reason| bad(reason.to_owned()))?;
            Some(Nqn::lenient(&name).map_err(|error| bad(error.to_string()))?)
        }
    };
    let mut nsid = None;
    for (name, value) in parameters(query) {
        match name {
            "nsid" => nsid = Some(parse_nsid(value)?),
            _ => return Err(unknown_parameter(name, transport.scheme(), "nsid")),
        }
    }
    if nsid.is_some() && nqn.is_none() {
        return Err(UriError::NsidWithoutSubsystem(line.to_owned()));
    }
    let discovery = nqn.as_ref().is_none_or(|nqn| nqn.as_str() == DISCOVERY_NQN);
    let port = port.unwrap_or(if discovery {
        transport.discovery_port()
    } else {
        PORT_IO
    });
    Ok(FabricUri {
        transport,
        host,
        port,
        nqn,
        nsid,
    })
}

fn split_authority(line: &str, authority: &str) -> Result<(String, Option<u16>), UriError> {
    let bad_host = || UriError::BadHost(authority.to_owned());
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(bad_host)?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(bad_host()),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(bad_host()),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(UriError::NoHost(line.to_owned()));
    }
    if host
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '@' | '[' | ']'))
    {
        return Err(bad_host());
    }
    let port = match port {
        None => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(UriError::BadPort(text.to_owned())),
        },
    };
    Ok((host.to_owned(), port))
}

fn parse_kernel(rest: &str) -> Result<Uri, UriError> {
    let (path, query) = split_query(rest);
    let wrong = || UriError::RelativeDevice(path.to_owned());
    if !Path::new(path).is_absolute() {
        return Err(wrong());
    }
    if let Some((name, _)) = parameters(query).next() {
        return Err(unknown_parameter(name, "nvme+kernel", "none"));
    }
    Ok(Uri::Kernel {
        path: PathBuf::from(percent_decode(path).map_err(|_| wrong())?),
    })
}

fn parse_pci(rest: &str) -> Result<Uri, UriError> {
    let (path, query) = split_query(rest);
    if let Some((name, _)) = parameters(query).next() {
        return Err(unknown_parameter(name, "nvme+pci", "none"));
    }
    let (address, nsid) = match path.split_once('/') {
        Some((address, nsid)) if !nsid.is_empty() => (address, Some(nsid)),
        Some((address, _)) => (address, None),
        None => (path, None),
    };
    Ok(Uri::Pci {
        address: address.parse()?,
        nsid: nsid.map(parse_nsid).transpose()?,
    })
}

fn parse_file(rest: &str) -> Result<Uri, UriError> {
    let (path, query) = split_query(rest);
    if !Path::new(path).is_absolute() {
        return Err(UriError::RelativePath(path.to_owned()));
    }
    let block_size = local_parameters(query, "file")?;
    let path = percent_decode(path).map_err(|_| UriError::RelativePath(path.to_owned()))?;
    Ok(Uri::File {
        path: PathBuf::from(path),
        block_size,
    })
}

fn parse_ram(rest: &str) -> Result<Uri, UriError> {
    let (size, query) = split_query(rest);
    let block_size = local_parameters(query, "ram")?;
    let size = parse_size(size).ok_or_else(|| UriError::BadSize(size.to_owned()))?;
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        return Err(UriError::UnevenSize { size, block_size });
    }
    Ok(Uri::Ram { size, block_size })
}

fn local_parameters(query: &str, scheme: &'static str) -> Result<u32, UriError> {
    let mut block_size = LOCAL_BLOCK;
    for (name, value) in parameters(query) {
        match name {
            "block" => {
                block_size = parse_size(value)
                    .and_then(|size| u32::try_from(size).ok())
                    .filter(|size| matches!(size, 512 | 4096))
                    .ok_or_else(|| UriError::BadBlock(value.to_owned()))?;
            }
            _ => return Err(unknown_parameter(name, scheme, "block")),
        }
    }
    Ok(block_size)
}

fn unknown_parameter(name: &str, scheme: &'static str, known: &'static str) -> UriError {
    UriError::UnknownParameter {
        name: name.to_owned(),
        scheme,
        known,
    }
}

fn parse_nsid(text: &str) -> Result<u32, UriError> {
    match text.parse::<u32>() {
        // FFFFFFFFh addresses every namespace and 0 none (Base 2.0 §3.2.1).
        Ok(nsid) if nsid > 0 && nsid < u32::MAX => Ok(nsid),
        _ => Err(UriError::BadNsid(text.to_owned())),
    }
}

fn split_query(rest: &str) -> (&str, &str) {
    rest.split_once('?').unwrap_or((rest, ""))
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
}

fn percent_decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| {
            char::from(byte?)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return Err("a % is not followed by two hexadecimal digits: write it as %25"),
        }
    }
    String::from_utf8(bytes).map_err(|_| "the decoded text is not utf-8")
}

/// Writes text so that [`percent_decode`] gives it back.
fn percent_encode(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_ascii() && (matches!(c, '%' | '?' | '#') || c.is_ascii_whitespace() || c.is_ascii_control()) {
            write!(f, "%{:02X}", u32::from(c))?;
        } else {
            f.write_char(c)?;
        }
    }
    Ok(())
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fabric(fabric) => write!(f, "{fabric}"),
            Self::File { path, block_size } => {
                f.write_str("file://")?;
                percent_encode(f, &path.to_string_lossy())?;
                write_block(f, *block_size)
            }
            Self::Kernel { path } => {
                f.write_str("nvme+kernel://")?;
                percent_encode(f, &path.to_string_lossy())
            }
            Self::Pci { address, nsid } => {
                write!(f, "nvme+pci://{address}")?;
                match nsid {
                    Some(nsid) => write!(f, "/{nsid}"),
                    None => Ok(()),
                }
            }
            Self::Ram { size, block_size } => {
                write!(f, "ram://{size}")?;
                write_block(f, *block_size)
            }
        }
    }
}

fn write_block(f: &mut fmt::Formatter<'_>, block_size: u32) -> fmt::Result {
    if block_size == LOCAL_BLOCK {
        Ok(())
    } else {
        write!(f, "?block={block_size}")
    }
}

impl fmt::Display for FabricUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.scheme(), self.address())?;
        if let Some(nqn) = &self.nqn {
            f.write_char('/')?;
            percent_encode(f, nqn.as_str())?;
        }
        match self.nsid {
            Some(nsid) => write!(f, "?nsid={nsid}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fabric(line: &str) -> FabricUri {
        match line.parse() {
            Ok(Uri::Fabric(fabric)) => fabric,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_form_is_read_and_written_back() {
        for line in [
            "nvme+tcp://host:4420/nqn.2024-01.org.example:disk1",
            "nvme+tcp://10.0.0.1:4421/nqn.2024-01.org.example:disk1?nsid=7",
            "nvme+tcp://[fe80::1%eth0]:4420/nqn.2024-01.org.example:disk1",
            "nvme+tcp://[::1]:8009",
            "nvme+tcp://host:4420/any name at all?nsid=1",
            "nvme+tcp://host:4420/odd%3Fname%25",
            "nvme+rdma://10.0.0.1:4420/nqn.2024-01.org.example:disk1?nsid=7",
            "nvme+rdma://[fe80::1%eth0]:4420/nqn.2024-01.org.example:disk1",
            "nvme+rdma://[::1]:4420",
            "nvme+kernel:///dev/ng0n1",
            "nvme+kernel:///dev/odd%3F name",
            "nvme+pci://0000:01:00.0",
            "nvme+pci://10000:e1:00.7/12",
            "file:///tmp/disk image.raw",
            "file:///tmp/disk?block=512",
            "ram://67108864",
            "ram://1048576?block=512",
        ] {
            let uri: Uri = line.parse().unwrap();
            assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri, "{line}");
        }
    }

    #[test]
    fn ports_default_to_what_is_asked_for() {
        assert_eq!(fabric("nvme+tcp://host").port, PORT_DISCOVERY);
        assert_eq!(fabric("nvme+tcp://host/").port, PORT_DISCOVERY);
        assert_eq!(
            fabric("nvme+tcp://host/nqn.2014-08.org.nvmexpress.discovery").port,
            PORT_DISCOVERY
        );
        assert_eq!(fabric("nvme+tcp://host/nqn.2024-01.org.example:a").port, PORT_IO);
        assert!("nvme+tcp://host".parse::<Uri>().unwrap().is_discovery());
        assert_eq!(fabric("nvme+tcp://[::1]").address(), "[::1]:8009");
        assert_eq!(fabric("nvme+rdma://host").port, PORT_IO);
        assert_eq!(fabric("nvme+rdma://host/nqn.2024-01.org.example:a").port, PORT_IO);
        assert_eq!(fabric("nvme+rdma://[::1]").address(), "[::1]:4420");
        assert!("nvme+rdma://host".parse::<Uri>().unwrap().is_discovery());
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(
            "ram://64M".parse(),
            Ok(Uri::Ram {
                size: 64 << 20,
                block_size: 4096
            })
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, says) in [
            ("host:4420", "no scheme"),
            ("nvme://host", "unknown scheme \"nvme\""),
            ("nvme+rdma://host?nsid=1", "no subsystem"),
            ("nvme+rdma://host/nqn?depth=1", "nvme+rdma takes nsid"),
            ("nvme+pci://nvme0", "0000:01:00.0"),
            ("nvme+pci://01:00.0/x", "namespace id"),
            ("nvme+pci://01:00.0?nsid=1", "nvme+pci takes none"),
            ("nvme+tcp:///nqn.2024-01.org.example:a", "no host"),
            ("nvme+tcp://::1/nqn.2024-01.org.example:a", "brackets"),
            ("nvme+tcp://[::1", "brackets"),
            ("nvme+tcp://[::1]x", "brackets"),
            ("nvme+tcp://host:0/nqn", "not a port"),
            ("nvme+tcp://host:70000/nqn", "not a port"),
            ("nvme+tcp://host:/nqn", "not a port"),
            ("nvme+tcp://host/a%zz", "%25"),
            ("nvme+tcp://host/nqn?nsid=0", "not a namespace id"),
            ("nvme+tcp://host/nqn?nsid=4294967295", "not a namespace id"),
            ("nvme+tcp://host?nsid=1", "no subsystem"),
            ("nvme+tcp://host/nqn?depth=1", "takes nsid"),
            ("nvme+kernel://ng0n1", "nvme+kernel:///dev/ng0n1 with three"),
            ("nvme+kernel:///dev/ng0n1?nsid=1", "nvme+kernel takes none"),
            ("file://tmp/x", "three slashes"),
            ("file:///x?block=1000", "not a block size"),
            ("file:///x?size=1", "takes block"),
            ("ram://lots", "not a size"),
            ("ram://1000", "whole number"),
            ("ram://0", "whole number"),
        ] {
            let error = line.parse::<Uri>().unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
            assert!(!error.contains('\n'));
        }
        let long = format!("nvme+tcp://host/{}", "n".repeat(300));
        assert!(long.parse::<Uri>().unwrap_err().to_string().contains("223"));
    }
}
