//! The discovery log as a host reads it (Base 2.0 §5.16.1.23).

use homi_spec::Nqn;

/// What a discovery record leads to (SUBTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubsystemKind {
    /// Another discovery service, whose log should be read too.
    Referral,
    /// A subsystem with namespaces.
    Nvm,
    /// The discovery subsystem that serves this log.
    CurrentDiscovery,
    /// A value that this crate does not know.
    Other(u8),
}

/// The transport of a discovery record (TRTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// RDMA.
    Rdma,
    /// Fibre Channel.
    FibreChannel,
    /// TCP.
    Tcp,
    /// Loopback inside a host.
    Loop,
    /// A value that this crate does not know.
    Other(u8),
}

/// The form of a discovery record's address (ADRFAM).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// InfiniBand.
    InfiniBand,
    /// Fibre Channel.
    FibreChannel,
    /// Loopback inside a host.
    Loop,
    /// A value that this crate does not know.
    Other(u8),
}

/// One entry of a discovery log: a way to a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// Over which transport.
    pub transport: TransportKind,
    /// Form of the address.
    pub family: AddressFamily,
    /// What it leads to.
    pub kind: SubsystemKind,
    /// The subsystem.
    pub subsystem: Nqn,
    /// Address of the host.
    pub address: String,
    /// Service at that address: the port.
    pub service: String,
    /// Port of the subsystem (PORTID), for telling paths apart.
    pub port_id: u16,
    /// Controller that a Connect would reach; FFFFh means a new one.
    pub controller_id: u16,
    /// Largest admin queue in entries (ASQSZ).
    pub admin_queue_entries: u16,
    /// Whether the transport must be secure (TREQ 01b).
    pub secure_required: bool,
    /// Whether the entry leads to the same information as the discovery service that returned it (EFLAGS b0).
    pub duplicate: bool,
}
