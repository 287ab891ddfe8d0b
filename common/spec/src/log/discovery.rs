//! The discovery log (LID 70h). Base 2.0 §5.16.1.23.

use crate::macros::open_enum;
use crate::nqn::{Nqn, NqnError};
use crate::text::{self, TextError};
use core::fmt;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Transport type (TRTYPE).
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct TransportType(u8) {
        /// PCI Express; not in discovery logs.
        PCIE = 0x00;
        /// RDMA.
        RDMA = 0x01;
        /// Fibre Channel.
        FIBRE_CHANNEL = 0x02;
        /// TCP.
        TCP = 0x03;
        /// Within one host.
        LOOP = 0xfe;
    }
}
const _: () = assert!(size_of::<TransportType>() == 1);

open_enum! {
    /// Address family (ADRFAM).
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct AddressFamily(u8) {
        /// Not specified.
        NONE = 0x00;
        /// IPv4.
        IPV4 = 0x01;
        /// IPv6.
        IPV6 = 0x02;
        /// InfiniBand.
        INFINIBAND = 0x03;
        /// Fibre Channel.
        FIBRE_CHANNEL = 0x04;
        /// Within one host.
        LOOP = 0xfe;
    }
}
const _: () = assert!(size_of::<AddressFamily>() == 1);

open_enum! {
    /// Subsystem type (SUBTYPE).
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct SubsystemType(u8) {
        /// Referral to another discovery subsystem.
        DISCOVERY_REFERRAL = 0x01;
        /// An NVM subsystem.
        NVM = 0x02;
        /// The discovery subsystem that returns this log.
        CURRENT_DISCOVERY = 0x03;
    }
}
const _: () = assert!(size_of::<SubsystemType>() == 1);

open_enum! {
    /// Whether a secure channel is needed: TREQ b1:0.
    pub struct SecureChannel(u8) {
        /// Not specified.
        NOT_SPECIFIED = 0x00;
        /// Required.
        REQUIRED = 0x01;
        /// Not required.
        NOT_REQUIRED = 0x02;
    }
}

/// Transport requirements (TREQ).
pub mod treq {
    /// b1:0: secure channel, mask of [`super::SecureChannel`].
    pub const SECURE_CHANNEL_MASK: u8 = 0x3;
    /// b2: the controller can disable submission queue flow control.
    pub const DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
}

/// Entry flags (EFLAGS).
pub mod eflags {
    /// Another port returns the same information (DUPRETINFO).
    pub const DUPLICATE: u16 = 1 << 0;
    /// Explicit persistent connections to the discovery controller (EPCSD).
    pub const PERSISTENT: u16 = 1 << 1;
}

/// Log specific parameter of Get Log Page for the discovery log. Base 2.0 §5.16.1.23.
pub mod discovery_lsp {
    /// Extended entries.
    pub const EXTENDED: u8 = 1 << 0;
    /// Entries of this port only.
    pub const PORT_LOCAL: u8 = 1 << 1;
    /// Entries of every subsystem.
    pub const ALL_SUBSYSTEMS: u8 = 1 << 2;
}

open_enum! {
    /// TCP: security of the connection (TSAS byte 0). TCP Transport 1.0, figure 17.
    pub struct SecurityType(u8) {
        /// None.
        NONE = 0x00;
        /// TLS 1.2 or later (obsolete).
        TLS_1_2 = 0x01;
        /// TLS 1.3 or later.
        TLS_1_3 = 0x02;
    }
}

open_enum! {
    /// RDMA: queue pair service (TSAS byte 0). RDMA Transport 1.0, figure 3.
    pub struct RdmaQpType(u8) {
        /// Reliable connected.
        CONNECTED = 0x01;
        /// Reliable datagram.
        DATAGRAM = 0x02;
    }
}

open_enum! {
    /// RDMA: provider (TSAS byte 1). RDMA Transport 1.0, figure 3.
    pub struct RdmaProvider(u8) {
        /// Not specified.
        NONE = 0x01;
        /// InfiniBand.
        INFINIBAND = 0x02;
        /// RoCE.
        ROCE = 0x03;
        /// RoCE v2.
        ROCE_V2 = 0x04;
        /// iWARP.
        IWARP = 0x05;
    }
}

open_enum! {
    /// RDMA: connection management (TSAS byte 2). RDMA Transport 1.0, figure 3.
    pub struct RdmaCms(u8) {
        /// RDMA_CM.
        RDMA_CM = 0x01;
    }
}

/// The header: 1024 bytes, then [`DiscoveryEntry`] items. Base 2.0 §5.16.1.23.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation: changes whenever the log does (GENCTR). Read the header again after the entries and compare.
    pub generation: U64,
    /// Entries that follow (NUMREC).
    pub records: U64,
    /// Record format: 0 is the only one defined.
    pub recfmt: U16,
    /// Reserved.
    pub reserved18: [u8; 1006],
}
const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

impl DiscoveryHeader {
    /// A header for this many entries.
    pub fn new(generation: u64, records: u64) -> Self {
        Self {
            generation: U64::new(generation),
            records: U64::new(records),
            recfmt: U16::ZERO,
            reserved18: [0; 1006],
        }
    }
}

impl fmt::Debug for DiscoveryHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryHeader")
            .field("generation", &self.generation.get())
            .field("records", &self.records.get())
            .field("recfmt", &self.recfmt.get())
            .finish_non_exhaustive()
    }
}

/// An entry: 1024 bytes. Base 2.0 §5.16.1.23.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport type.
    pub trtype: TransportType,
    /// Address family.
    pub adrfam: AddressFamily,
    /// Subsystem type.
    pub subtype: SubsystemType,
    /// Transport requirements: [`treq`].
    pub treq: u8,
    /// Port of the subsystem.
    pub portid: U16,
    /// Controller: FFFFh under the dynamic model.
    pub cntlid: U16,
    /// Largest admin submission queue, in entries.
    pub asqsz: U16,
    /// Flags: [`eflags`].
    pub eflags: U16,
    /// Reserved.
    pub reserved12: [u8; 20],
    /// Transport service identifier, as a port number in decimal.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved64: [u8; 192],
    /// Subsystem NQN, NUL-padded.
    pub subnqn: [u8; 256],
    /// Transport address, as text.
    pub traddr: [u8; 256],
    /// Transport specific address subtype.
    pub tsas: [u8; 256],
}
const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);
const _: () = {
    assert!(offset_of!(DiscoveryEntry, trsvcid) == 32);
    assert!(offset_of!(DiscoveryEntry, subnqn) == 256);
    assert!(offset_of!(DiscoveryEntry, traddr) == 512);
    assert!(offset_of!(DiscoveryEntry, tsas) == 768);
};

impl Default for DiscoveryEntry {
    /// Zeroes.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// RDMA address subtype: what TSAS holds when the transport is RDMA. RDMA Transport 1.0, figure 3.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct RdmaTsas {
    /// Queue pair service.
    pub qp_type: RdmaQpType,
    /// Provider.
    pub provider: RdmaProvider,
    /// Connection management.
    pub cms: RdmaCms,
    /// Partition key, for the InfiniBand address family.
    pub pkey: u16,
}

impl DiscoveryEntry {
    /// Whether a secure channel is needed.
    pub const fn secure_channel(&self) -> SecureChannel {
        SecureChannel(self.treq & treq::SECURE_CHANNEL_MASK)
    }

    /// The subsystem's name, of any form.
    ///
    /// # Errors
    /// A field that holds no usable name.
    pub fn subsystem_nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field_lenient(&self.subnqn)
    }

    /// The transport address, or `None` when it is not text.
    pub fn address(&self) -> Option<&str> {
        text::nul_padded(&self.traddr)
    }

    /// The transport service identifier, or `None` when it is not text.
    pub fn service(&self) -> Option<&str> {
        text::nul_padded(&self.trsvcid)
    }

    /// Sets the transport address, at most 255 bytes.
    ///
    /// # Errors
    /// An address that is too long.
    pub fn set_address(&mut self, address: &str) -> Result<(), TextError> {
        text::set_nul_padded(&mut self.traddr, address)
    }

    /// Sets the transport service identifier, at most 31 bytes.
    ///
    /// # Errors
    /// An identifier that is too long.
    pub fn set_service(&mut self, service: &str) -> Result<(), TextError> {
        text::set_nul_padded(&mut self.trsvcid, service)
    }

    /// The security of a TCP port. Meaningful when `trtype` is [`TransportType::TCP`].
    pub const fn tcp_security(&self) -> SecurityType {
        let [security, ..] = self.tsas;
        SecurityType(security)
    }

    /// Fills TSAS for a TCP port.
    pub fn set_tcp(&mut self, security: SecurityType) {
        self.tsas = [0; 256];
        self.tsas[0] = security.0;
    }

    /// The RDMA address subtype. Meaningful when `trtype` is [`TransportType::RDMA`].
    pub const fn rdma(&self) -> RdmaTsas {
        let [qp_type, provider, cms, _, _, _, _, _, pkey0, pkey1, ..] = self.tsas;
        RdmaTsas {
            qp_type: RdmaQpType(qp_type),
            provider: RdmaProvider(provider),
            cms: RdmaCms(cms),
            pkey: u16::from_le_bytes([pkey0, pkey1]),
        }
    }

    /// Fills TSAS for an RDMA port.
    pub fn set_rdma(&mut self, rdma: RdmaTsas) {
        self.tsas = [0; 256];
        let [pkey0, pkey1] = rdma.pkey.to_le_bytes();
        let fields = [
            rdma.qp_type.0,
            rdma.provider.0,
            rdma.cms.0,
            0,
            0,
            0,
            0,
            0,
            pkey0,
            pkey1,
        ];
        for (to, from) in self.tsas.iter_mut().zip(fields) {
            *to = from;
        }
    }
}

impl fmt::Debug for DiscoveryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryEntry")
            .field("trtype", &self.trtype)
            .field("adrfam", &self.adrfam)
            .field("subtype", &self.subtype)
            .field("treq", &self.treq)
            .field("portid", &self.portid.get())
            .field("cntlid", &format_args!("{:#06x}", self.cntlid.get()))
            .field("asqsz", &self.asqsz.get())
            .field("eflags", &self.eflags.get())
            .field("trsvcid", &self.service())
            .field("subnqn", &self.subsystem_nqn())
            .field("traddr", &self.address())
            .finish_non_exhaustive()
    }
}
