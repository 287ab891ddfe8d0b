//! Identify structures about a namespace, and the NVM command set's about a controller. NVM Command Set 1.0
//! §4.1.5, Base 2.0 §5.17.2.

use super::Csi;
use crate::macros::open_enum;
use core::fmt;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Namespace features (NSFEAT), byte 24 of [`IdentifyNamespace`].
pub mod nsfeat {
    /// Thin provisioning: capacity may be below size.
    pub const THIN: u8 = 1 << 0;
    /// NAWUN, NAWUPF and NACWU are the namespace's own.
    pub const ATOMICS: u8 = 1 << 1;
    /// Reads of deallocated blocks may fail with the status for it.
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    /// NGUID and EUI64 are never reused.
    pub const UID_NOT_REUSED: u8 = 1 << 3;
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const OPTIMAL_IO: u8 = 1 << 4;
}

/// Namespace sharing capabilities (NMIC), byte 30 of [`IdentifyNamespace`].
pub mod nmic {
    /// Two or more controllers may attach the namespace at the same time.
    pub const SHARED: u8 = 1 << 0;
    /// The namespace is dispersed over subsystems.
    pub const DISPERSED: u8 = 1 << 1;
}

/// Deallocate logical block features (DLFEAT), byte 33 of [`IdentifyNamespace`].
pub mod dlfeat {
    /// b2:0: what a deallocated block reads as, mask.
    pub const READ_MASK: u8 = 0b111;
    /// b2:0 = 001b: zeroes.
    pub const READ_ZEROES: u8 = 0b001;
    /// b2:0 = 010b: FFh.
    pub const READ_ONES: u8 = 0b010;
    /// Write Zeroes takes the Deallocate bit.
    pub const WRITE_ZEROES_DEALLOCATES: u8 = 1 << 3;
    /// Guard of a deallocated block is the CRC of what it reads as, rather than FFFFh.
    pub const GUARD_CRC: u8 = 1 << 4;
}

/// An LBA format: 4 bytes. NVM Command Set 1.0 §4.1.5.1, figure "LBA Format Data Structure".
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata per block, in bytes.
    pub ms: U16,
    /// Block size as a power of two (LBADS); 0 for a format that is not available.
    pub lbads: u8,
    /// Relative performance, b1:0: 0 best to 3 degraded.
    pub rp: u8,
}
const _: () = assert!(size_of::<LbaFormat>() == 4);

impl LbaFormat {
    /// A format of blocks of 2^`lbads` bytes without metadata.
    pub fn plain(lbads: u8) -> Self {
        Self {
            lbads,
            ..Self::default()
        }
    }

    /// Bytes of a block without metadata, or `None` unless it is a power of two from 512 bytes to 2 GiB.
    pub fn block_size(&self) -> Option<u32> {
        (9..=31).contains(&self.lbads).then(|| 1 << self.lbads)
    }
}

/// Identify Namespace of the NVM command set (CNS 00h): 4096 bytes. NVM Command Set 1.0 §4.1.5.1.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in logical blocks.
    pub nsze: U64,
    /// Capacity in logical blocks.
    pub ncap: U64,
    /// Utilization in logical blocks.
    pub nuse: U64,
    /// Features: [`nsfeat`].
    pub nsfeat: u8,
    /// Number of LBA formats, zero-based.
    pub nlbaf_z: u8,
    /// Formatted LBA size: b3:0 and b6:5 the format's index, b4 metadata is part of the data.
    pub flbas: u8,
    /// Metadata capabilities: b0 as part of the data, b1 by the metadata pointer.
    pub mc: u8,
    /// End-to-end protection capabilities.
    pub dpc: u8,
    /// End-to-end protection settings: b2:0 type, b3 at the start of metadata.
    pub dps: u8,
    /// Sharing capabilities: [`nmic`].
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress: b7 supported, b6:0 percentage remaining.
    pub fpi: u8,
    /// Deallocation features: [`dlfeat`].
    pub dlfeat: u8,
    /// Atomic write unit normal, zero-based logical blocks.
    pub nawun_z: U16,
    /// Atomic write unit power fail, zero-based logical blocks.
    pub nawupf_z: U16,
    /// Atomic compare and write unit, zero-based logical blocks.
    pub nacwu_z: U16,
    /// Atomic boundary size normal, zero-based logical blocks.
    pub nabsn_z: U16,
    /// Atomic boundary offset in logical blocks.
    pub nabo: U16,
    /// Atomic boundary size power fail, zero-based logical blocks.
    pub nabspf_z: U16,
    /// Optimal I/O boundary in logical blocks, or 0.
    pub noiob: U16,
    /// Capacity in bytes.
    pub nvmcap: U128,
    /// Preferred write granularity, zero-based logical blocks.
    pub npwg_z: U16,
    /// Preferred write alignment, zero-based logical blocks.
    pub npwa_z: U16,
    /// Preferred deallocate granularity, zero-based logical blocks.
    pub npdg_z: U16,
    /// Preferred deallocate alignment, zero-based logical blocks.
    pub npda_z: U16,
    /// Optimal write size, zero-based logical blocks.
    pub nows_z: U16,
    /// Copy: longest source range, in logical blocks.
    pub mssrl: U16,
    /// Copy: most blocks in a command.
    pub mcl: U32,
    /// Copy: most source ranges, zero-based.
    pub msrc_z: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA group.
    pub anagrpid: U32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Attributes: b0 write protected.
    pub nsattr: u8,
    /// NVM set.
    pub nvmsetid: U16,
    /// Endurance group.
    pub endgid: U16,
    /// Globally unique identifier, big-endian, or zeroes.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier, big-endian, or zeroes.
    pub eui64: [u8; 8],
    /// LBA formats, of which `nlbaf_z` + 1 are valid.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);
const _: () = {
    assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
    assert!(offset_of!(IdentifyNamespace, nmic) == 30);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, noiob) == 46);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, nows_z) == 72);
    assert!(offset_of!(IdentifyNamespace, mcl) == 76);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, eui64) == 120);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
    assert!(offset_of!(IdentifyNamespace, vs) == 384);
};

impl Default for IdentifyNamespace {
    /// Zeroes: what a controller returns for an inactive namespace.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyNamespace {
    /// Index of the format in use. Bits 6:5 count only when more than 16 formats exist.
    pub const fn format_index(&self) -> u8 {
        let low = self.flbas & 0xf;
        if self.nlbaf_z < 16 {
            low
        } else {
            low | ((self.flbas & 0x60) >> 1)
        }
    }

    /// The format in use, or `None` when the index points beyond the formats that the page says are valid.
    pub fn format(&self) -> Option<&LbaFormat> {
        let index = self.format_index();
        if index > self.nlbaf_z {
            return None;
        }
        self.lbaf.get(usize::from(index))
    }

    /// Whether metadata travels as part of the data rather than by the metadata pointer.
    pub const fn metadata_extended(&self) -> bool {
        self.flbas & (1 << 4) != 0
    }

    /// Whether the page describes an active namespace: an inactive one is all zeroes.
    pub fn is_active(&self) -> bool {
        self.nsze.get() != 0
    }
}

impl fmt::Debug for IdentifyNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentifyNamespace")
            .field("nsze", &self.nsze.get())
            .field("ncap", &self.ncap.get())
            .field("nuse", &self.nuse.get())
            .field("format", &self.format())
            .field("nmic", &self.nmic)
            .field("anagrpid", &self.anagrpid.get())
            .field("nguid", &format_args!("{:02x?}", self.nguid))
            .field("eui64", &format_args!("{:02x?}", self.eui64))
            .finish_non_exhaustive()
    }
}

/// NVM command set specific Identify Namespace (CNS 05h, CSI 00h): 4096 bytes. NVM Command Set 1.0 §4.1.5.3.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyNamespace {
    /// Logical block storage tag mask.
    pub lbstm: U64,
    /// Protection information capabilities.
    pub pic: u8,
    /// Reserved.
    pub reserved9: [u8; 3],
    /// Extended LBA formats: b6:0 storage tag size, b8:7 protection information format.
    pub elbaf: [U32; 64],
    /// Reserved.
    pub reserved268: [u8; 3828],
}
const _: () = assert!(size_of::<NvmIdentifyNamespace>() == 4096);
const _: () = assert!(offset_of!(NvmIdentifyNamespace, elbaf) == 12);

impl Default for NvmIdentifyNamespace {
    /// Zeroes: no storage tags, 16-bit guards.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for NvmIdentifyNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmIdentifyNamespace")
            .field("lbstm", &self.lbstm.get())
            .field("pic", &self.pic)
            .finish_non_exhaustive()
    }
}

/// NVM command set specific Identify Controller (CNS 06h, CSI 00h): 4096 bytes. NVM Command Set 1.0 §4.1.5.4.
/// Limits of 0 are none.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyController {
    /// Verify size limit: 2^this units of the smallest memory page.
    pub vsl: u8,
    /// Write Zeroes size limit: 2^this units of the smallest memory page.
    pub wzsl: u8,
    /// Write Uncorrectable size limit: 2^this units of the smallest memory page.
    pub wusl: u8,
    /// Dataset Management: most ranges.
    pub dmrl: u8,
    /// Dataset Management: most blocks in one range.
    pub dmrsl: U32,
    /// Dataset Management: most blocks in one command.
    pub dmsl: U64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}
const _: () = assert!(size_of::<NvmIdentifyController>() == 4096);

impl Default for NvmIdentifyController {
    /// Zeroes: no limits.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for NvmIdentifyController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmIdentifyController")
            .field("vsl", &self.vsl)
            .field("wzsl", &self.wzsl)
            .field("wusl", &self.wusl)
            .field("dmrl", &self.dmrl)
            .field("dmrsl", &self.dmrsl.get())
            .field("dmsl", &self.dmsl.get())
            .finish_non_exhaustive()
    }
}

/// I/O command set independent Identify Namespace (CNS 08h): 4096 bytes. Base 2.0 §5.17.2.8.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndependentNamespace {
    /// Common features: b3 identifiers not reused, b4 rotational media, b5 no volatile write cache.
    pub nsfeat: u8,
    /// Sharing capabilities: [`nmic`].
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress: b7 supported, b6:0 percentage remaining.
    pub fpi: u8,
    /// ANA group.
    pub anagrpid: U32,
    /// Attributes: b0 write protected.
    pub nsattr: u8,
    /// Reserved.
    pub reserved9: u8,
    /// NVM set.
    pub nvmsetid: U16,
    /// Endurance group.
    pub endgid: U16,
    /// Status: b0 ready.
    pub nstat: u8,
    /// Reserved.
    pub reserved15: [u8; 4081],
}
const _: () = assert!(size_of::<IndependentNamespace>() == 4096);
const _: () = assert!(offset_of!(IndependentNamespace, nstat) == 14);

impl IndependentNamespace {
    /// NSTAT b0: the namespace is ready.
    pub const READY: u8 = 1 << 0;
    /// NSFEAT b4: rotational media.
    pub const ROTATIONAL: u8 = 1 << 4;
    /// NSFEAT b5: no volatile write cache.
    pub const NO_VOLATILE_CACHE: u8 = 1 << 5;
}

impl Default for IndependentNamespace {
    /// Zeroes.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for IndependentNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndependentNamespace")
            .field("nsfeat", &format_args!("{:#x}", self.nsfeat))
            .field("nmic", &self.nmic)
            .field("anagrpid", &self.anagrpid.get())
            .field("nstat", &self.nstat)
            .finish_non_exhaustive()
    }
}

open_enum! {
    /// Namespace identifier type (NIDT). Base 2.0 §5.17.2.3.
    pub struct Nidt(u8) {
        /// IEEE extended unique identifier, 8 bytes.
        EUI64 = 0x01;
        /// Globally unique identifier, 16 bytes.
        NGUID = 0x02;
        /// UUID, 16 bytes.
        UUID = 0x03;
        /// Command set identifier, 1 byte.
        CSI = 0x04;
    }
}

/// The header of a descriptor: 4 bytes. Base 2.0 §5.17.2.3.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DescriptorHeader {
    nidt: u8,
    nidl: u8,
    reserved2: U16,
}
const _: () = assert!(size_of::<DescriptorHeader>() == 4);

/// One namespace identification descriptor (CNS 03h). Base 2.0 §5.17.2.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum NamespaceId<'a> {
    /// IEEE extended unique identifier, big-endian.
    Eui64([u8; 8]),
    /// Globally unique identifier, big-endian.
    Nguid([u8; 16]),
    /// UUID, in network order.
    Uuid([u8; 16]),
    /// I/O command set.
    Csi(Csi),
    /// A type that this crate does not know.
    Unknown {
        /// Identifier type.
        nidt: u8,
        /// The identifier: at most 255 bytes.
        bytes: &'a [u8],
    },
}

/// A descriptor list that cannot be read on.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// A descriptor runs past the end of the list.
    #[error(
        "the namespace descriptor at offset {offset} of type {nidt:#04x} has {nidl} bytes and runs past the end of the list"
    )]
    Truncated {
        /// Offset of the descriptor.
        offset: usize,
        /// Its type.
        nidt: u8,
        /// Its length.
        nidl: u8,
    },
    /// A known type with another length than it has.
    #[error(
        "the namespace descriptor at offset {offset} of type {nidt:#04x} has {nidl} bytes, expected {expected}"
    )]
    Length {
        /// Offset of the descriptor.
        offset: usize,
        /// Its type.
        nidt: u8,
        /// Its length.
        nidl: u8,
        /// The length that its type has.
        expected: u8,
    },
}

impl NamespaceId<'_> {
    /// Writes this descriptor at the start of `to`; the bytes written, or `None` where it does not fit
    /// (nothing is written).
    pub fn write(&self, to: &mut [u8]) -> Option<usize> {
        let (nidt, bytes) = match self {
            Self::Eui64(bytes) => (Nidt::EUI64.0, bytes.as_slice()),
            Self::Nguid(bytes) => (Nidt::NGUID.0, bytes.as_slice()),
            Self::Uuid(bytes) => (Nidt::UUID.0, bytes.as_slice()),
            Self::Csi(csi) => (Nidt::CSI.0, csi.as_bytes()),
            Self::Unknown { nidt, bytes } => (*nidt, *bytes),
        };
        let header = DescriptorHeader {
            nidt,
            nidl: u8::try_from(bytes.len()).ok()?,
            reserved2: U16::ZERO,
        };
        let total = size_of::<DescriptorHeader>() + bytes.len();
        let (head, body) = to.get_mut(..total)?.split_at_mut(size_of::<DescriptorHeader>());
        head.copy_from_slice(header.as_bytes());
        body.copy_from_slice(bytes);
        Some(total)
    }
}

/// Reads a list of namespace identification descriptors; a descriptor of type 0 or of length 0 ends it, and
/// so does the first error.
#[derive(Clone, Debug)]
pub struct NamespaceDescriptors<'a> {
    list: &'a [u8],
    offset: usize,
}

impl<'a> NamespaceDescriptors<'a> {
    /// Reads the data of an Identify with CNS 03h.
    pub const fn new(list: &'a [u8]) -> Self {
        Self { list, offset: 0 }
    }

    fn read(&mut self) -> Option<Result<NamespaceId<'a>, DescriptorError>> {
        let offset = self.offset;
        let rest = self.list.get(offset..)?;
        let (header, rest) = DescriptorHeader::read_from_prefix(rest).ok()?;
        let DescriptorHeader { nidt, nidl, .. } = header;
        if nidt == 0 || nidl == 0 {
            return None;
        }
        let Some(bytes) = rest.get(..usize::from(nidl)) else {
            return Some(Err(DescriptorError::Truncated { offset, nidt, nidl }));
        };
        let wrong = |expected| {
            Err(DescriptorError::Length {
                offset,
                nidt,
                nidl,
                expected,
            })
        };
        let id = match Nidt(nidt) {
            Nidt::EUI64 => bytes.try_into().map(NamespaceId::Eui64).or_else(|_| wrong(8)),
            Nidt::NGUID => bytes.try_into().map(NamespaceId::Nguid).or_else(|_| wrong(16)),
            Nidt::UUID => bytes.try_into().map(NamespaceId::Uuid).or_else(|_| wrong(16)),
            Nidt::CSI => match bytes {
                &[csi] => Ok(NamespaceId::Csi(Csi(csi))),
                _ => wrong(1),
            },
            _ => Ok(NamespaceId::Unknown { nidt, bytes }),
        };
        self.offset = offset + size_of::<DescriptorHeader>() + usize::from(nidl);
        Some(id)
    }
}

impl<'a> Iterator for NamespaceDescriptors<'a> {
    type Item = Result<NamespaceId<'a>, DescriptorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read();
        if !matches!(item, Some(Ok(_))) {
            self.offset = self.list.len();
        }
        item
    }
}
