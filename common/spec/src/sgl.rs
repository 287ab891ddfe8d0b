//! Scatter gather list descriptors: where a command's data is. Base 2.0 §4.1.2.
//!
//! [`Sgl`] is any sixteen bytes; [`SglDescriptor`] is what they mean. Over fabrics a command carries exactly
//! one descriptor in its data pointer unless the controller reports more (MSDBD).
//!
//! Not implemented: offset subtypes of the segment descriptors (21h, 31h), which parse as
//! [`SglDescriptor::Unknown`], and the interpretation of segments that lie in memory.

use core::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A descriptor as it stands on the wire: 16 bytes whose last holds type (b7:4) and subtype (b3:0). Base 2.0
/// §4.1.2.1.
#[derive(
    Copy, Clone, Eq, PartialEq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Sgl(pub [u8; 16]);
const _: () = assert!(size_of::<Sgl>() == 16);

/// The layout of every unkeyed descriptor.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Unkeyed {
    address: U64,
    length: U32,
    reserved: [u8; 3],
    id: u8,
}
const _: () = assert!(size_of::<Unkeyed>() == 16);

/// The layout of keyed descriptors: the length has 24 bits.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct KeyedLayout {
    address: U64,
    length: [u8; 3],
    key: U32,
    id: u8,
}
const _: () = assert!(size_of::<KeyedLayout>() == 16);

/// The identifier byte: type in bits 7:4, subtype in bits 3:0. Base 2.0 §4.1.2.1.
mod id {
    pub(super) const DATA_BLOCK: u8 = 0x00;
    pub(super) const DATA_BLOCK_OFFSET: u8 = 0x01;
    pub(super) const BIT_BUCKET: u8 = 0x10;
    pub(super) const SEGMENT: u8 = 0x20;
    pub(super) const LAST_SEGMENT: u8 = 0x30;
    pub(super) const KEYED: u8 = 0x40;
    pub(super) const KEYED_INVALIDATE: u8 = 0x4f;
    pub(super) const TRANSPORT: u8 = 0x5a;
}

/// A descriptor's meaning.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum SglDescriptor {
    /// Data block at a memory address (00h): PCIe.
    DataBlock {
        /// Bus address of the first byte.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// Data inside the command capsule (01h).
    InCapsule {
        /// Bytes from the start of the capsule's data area, which begins ICDOFF × 16 bytes after the entry.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Bytes to be discarded from a read (10h).
    BitBucket {
        /// Bytes.
        length: u32,
    },
    /// A further segment of descriptors, not the last (20h).
    Segment {
        /// Bus address of the segment.
        address: u64,
        /// Bytes of descriptors: a multiple of 16.
        length: u32,
    },
    /// The last segment of descriptors (30h).
    LastSegment {
        /// Bus address of the segment.
        address: u64,
        /// Bytes of descriptors: a multiple of 16.
        length: u32,
    },
    /// Memory of the host behind a remote key (40h, 4Fh): RDMA.
    Keyed {
        /// Remote virtual address.
        address: u64,
        /// Bytes: at most 2²⁴ − 1.
        length: u32,
        /// Remote key.
        key: u32,
        /// The controller may invalidate the key with the response (subtype Fh).
        invalidate: bool,
    },
    /// Data that the transport carries by itself (5Ah): TCP outside the capsule.
    Transport {
        /// Bytes.
        length: u32,
    },
    /// A type and subtype that this crate does not know, kept whole.
    Unknown {
        /// Descriptor type, 4 bits.
        type_: u8,
        /// Descriptor subtype, 4 bits.
        subtype: u8,
        /// The bytes received.
        raw: Sgl,
    },
}

/// A keyed descriptor was asked to carry more than its 24-bit length can say.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a keyed sgl descriptor carries at most {max} bytes, {length} were given; split the transfer",
    max = SglDescriptor::MAX_KEYED_LENGTH
)]
pub struct KeyedLengthError {
    /// The length that did not fit, in bytes.
    pub length: u32,
}

impl SglDescriptor {
    /// The longest transfer of one keyed descriptor, in bytes.
    pub const MAX_KEYED_LENGTH: u32 = 0x00ff_ffff;

    /// The meaning of sixteen bytes. Never fails: what is not known stays in [`SglDescriptor::Unknown`].
    /// Reserved bits are not checked.
    #[inline]
    pub fn parse(raw: &Sgl) -> Self {
        let plain: Unkeyed = zerocopy::transmute!(*raw);
        let (address, length) = (plain.address.get(), plain.length.get());
        match plain.id {
            id::DATA_BLOCK => Self::DataBlock { address, length },
            id::DATA_BLOCK_OFFSET => Self::InCapsule {
                offset: address,
                length,
            },
            id::BIT_BUCKET => Self::BitBucket { length },
            id::SEGMENT => Self::Segment { address, length },
            id::LAST_SEGMENT => Self::LastSegment { address, length },
            id::TRANSPORT => Self::Transport { length },
            id::KEYED | id::KEYED_INVALIDATE => {
                let keyed: KeyedLayout = zerocopy::transmute!(*raw);
                let [low, middle, high] = keyed.length;
                Self::Keyed {
                    address,
                    length: u32::from_le_bytes([low, middle, high, 0]),
                    key: keyed.key.get(),
                    invalidate: keyed.id == id::KEYED_INVALIDATE,
                }
            }
            other => Self::Unknown {
                type_: other >> 4,
                subtype: other & 0xf,
                raw: *raw,
            },
        }
    }

    /// The sixteen bytes of this descriptor.
    ///
    /// # Errors
    /// A keyed length above [`SglDescriptor::MAX_KEYED_LENGTH`]; every other descriptor can be encoded.
    #[inline]
    pub fn encode(self) -> Result<Sgl, KeyedLengthError> {
        Ok(match self {
            Self::DataBlock { address, length } => Sgl::data_block(address, length),
            Self::InCapsule { offset, length } => Sgl::in_capsule(offset, length),
            Self::BitBucket { length } => Sgl::unkeyed(0, length, id::BIT_BUCKET),
            Self::Segment { address, length } => Sgl::unkeyed(address, length, id::SEGMENT),
            Self::LastSegment { address, length } => Sgl::unkeyed(address, length, id::LAST_SEGMENT),
            Self::Keyed {
                address,
                length,
                key,
                invalidate,
            } => Sgl::keyed(address, length, key, invalidate)?,
            Self::Transport { length } => Sgl::transport(length),
            Self::Unknown { raw, .. } => raw,
        })
    }

    /// Bytes of data described: 0 for segments and unknown descriptors, which describe none themselves.
    pub const fn data_length(&self) -> u32 {
        match *self {
            Self::DataBlock { length, .. }
            | Self::InCapsule { length, .. }
            | Self::BitBucket { length }
            | Self::Keyed { length, .. }
            | Self::Transport { length } => length,
            Self::Segment { .. } | Self::LastSegment { .. } | Self::Unknown { .. } => 0,
        }
    }
}

impl Sgl {
    #[inline]
    fn unkeyed(address: u64, length: u32, id: u8) -> Self {
        let plain = Unkeyed {
            address: U64::new(address),
            length: U32::new(length),
            reserved: [0; 3],
            id,
        };
        zerocopy::transmute!(plain)
    }

    /// A data block at a bus address (00h).
    #[inline]
    pub fn data_block(address: u64, length: u32) -> Self {
        Self::unkeyed(address, length, id::DATA_BLOCK)
    }

    /// Data in the capsule (01h), `offset` bytes into its data area.
    #[inline]
    pub fn in_capsule(offset: u64, length: u32) -> Self {
        Self::unkeyed(offset, length, id::DATA_BLOCK_OFFSET)
    }

    /// Data that the transport moves by itself (5Ah).
    #[inline]
    pub fn transport(length: u32) -> Self {
        Self::unkeyed(0, length, id::TRANSPORT)
    }

    /// Host memory behind a remote key (40h, or 4Fh when the controller may invalidate the key).
    ///
    /// # Errors
    /// `length` above [`SglDescriptor::MAX_KEYED_LENGTH`].
    #[inline]
    pub fn keyed(address: u64, length: u32, key: u32, invalidate: bool) -> Result<Self, KeyedLengthError> {
        if length > SglDescriptor::MAX_KEYED_LENGTH {
            return Err(KeyedLengthError { length });
        }
        let [low, middle, high, _] = length.to_le_bytes();
        let keyed = KeyedLayout {
            address: U64::new(address),
            length: [low, middle, high],
            key: U32::new(key),
            id: if invalidate {
                id::KEYED_INVALIDATE
            } else {
                id::KEYED
            },
        };
        Ok(zerocopy::transmute!(keyed))
    }

    /// What these bytes mean.
    #[inline]
    pub fn parse(&self) -> SglDescriptor {
        SglDescriptor::parse(self)
    }
}

impl fmt::Debug for Sgl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sgl")
            .field(&format_args!("{:02x?}", self.0))
            .finish()
    }
}
