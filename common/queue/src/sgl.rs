//! Scatter gather lists: a transfer as descriptors. Base 2.0 §4.1.2.
//!
//! A command holds one descriptor. It is the data block itself, or names a segment: descriptors side by side in memory, of
//! which the last may name the next segment. Only the last segment, which is named as such, names no other.
//! [`SglRules::build`] writes that, and [`SglRules::walk`] reads it back as a controller does.
//!
//! Not here: segments inside a capsule (offset subtypes), in-capsule and transport data blocks, which are no memory and
//! have constructors of their own on [`Sgl`], and metadata.

use std::num::NonZeroU32;

use homi_spec::command::TransferDirection;
use homi_spec::identify::{IdentifyController, sgls};
use homi_spec::status::Status;
use homi_spec::{Sgl, SglDescriptor};

use crate::address::{AddressOverflow, Iova, IovaRange, RemoteAddress, RemoteKey, Unmapped};
use crate::list::ListMemory;
use crate::memory::MemoryError;

use build::Writer;
use walk::Walker;

mod build;
#[cfg(test)]
mod tests;
mod walk;

/// Bytes of one descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors written or read at a time.
const BATCH: usize = 32;

/// One part of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SglPart {
    /// Memory that the controller addresses.
    Data(IovaRange),
    /// Memory of a remote host.
    Keyed {
        /// First byte.
        address: RemoteAddress,
        /// Bytes: at most [`SglDescriptor::MAX_KEYED_LENGTH`].
        len: u32,
        /// The key of the memory.
        key: RemoteKey,
        /// The controller may invalidate the key with the response.
        invalidate: bool,
    },
    /// Bytes of a read that go nowhere (a bit bucket).
    Discard {
        /// Bytes.
        len: u64,
    },
}

impl SglPart {
    /// Bytes of the part.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match *self {
            Self::Data(range) => range.len(),
            Self::Keyed { len, .. } => len as u64,
            Self::Discard { len } => len,
        }
    }

    /// Whether the part has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This part and the next as one, if they continue each other. Keyed parts stay as they are: each is a registration.
    fn joined(&self, next: &Self) -> Option<Self> {
        match (self, next) {
            (Self::Data(range), Self::Data(next)) => range.joined(next).map(Self::Data),
            (Self::Discard { len }, Self::Discard { len: next }) => {
                len.checked_add(*next).map(|len| Self::Discard { len })
            }
            _ => None,
        }
    }

    /// Appends this part to a list, as part of the list's last one if it continues that. Empty parts vanish.
    pub fn append_to(self, list: &mut Vec<Self>) {
        if self.is_empty() {
            return;
        }
        if let Some(last) = list.last_mut()
            && let Some(joined) = last.joined(&self)
        {
            *last = joined;
        } else {
            list.push(self);
        }
    }

    /// The first `len` bytes of the part.
    fn first(self, len: u64) -> Self {
        match self {
            Self::Data(range) => Self::Data(range.part(0, len).unwrap_or(range)),
            Self::Keyed {
                address,
                len: whole,
                key,
                invalidate,
            } => Self::Keyed {
                address,
                len: u32::try_from(len).map_or(whole, |len| len.min(whole)),
                key,
                invalidate,
            },
            Self::Discard { len: whole } => Self::Discard { len: len.min(whole) },
        }
    }
}

impl From<IovaRange> for SglPart {
    fn from(range: IovaRange) -> Self {
        Self::Data(range)
    }
}

/// Why a transfer cannot be written as SGL descriptors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SglBuildError {
    /// There are no bytes to transfer.
    #[error("a transfer of no bytes has no descriptors: leave the data pointer zero")]
    Empty,
    /// The controller wants dwords.
    #[error(
        "{len} bytes at {address:#x} are not whole dwords, which this controller requires: copy the data"
    )]
    NotDwords {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// The controller does not know bit buckets.
    #[error("this controller does not support bit buckets: read into memory instead")]
    NoBitBuckets,
    /// The controller does not know keyed descriptors.
    #[error("this controller does not support keyed descriptors: address memory that it can reach itself")]
    NoKeys,
    /// A keyed part is longer than a descriptor can say.
    #[error("a keyed descriptor carries at most {max} bytes, not {len}: split the part", max = SglDescriptor::MAX_KEYED_LENGTH)]
    KeyedTooLong {
        /// Bytes of the part.
        len: u32,
    },
    /// The transfer is longer than allowed.
    #[error("the transfer has at least {len} bytes, at most {max} are allowed: split it")]
    TooLong {
        /// Bytes counted until the limit was passed.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The transfer has more parts than the controller takes.
    #[error("the transfer needs more than {max} data block descriptors: split it")]
    TooManyBlocks {
        /// The limit.
        max: u32,
    },
    /// The list has more descriptors than allowed.
    #[error("the transfer needs more than {max} descriptors: split it")]
    TooManyDescriptors {
        /// The limit.
        max: u32,
    },
    /// There is no memory for another segment.
    #[error("the transfer needs more than {segments} segments: split it or provide more")]
    OutOfSegments {
        /// Segments that there are.
        segments: usize,
    },
    /// A block of list memory cannot be a segment.
    #[error("list memory of {block} is not 8-byte aligned or holds fewer than 2 descriptors")]
    BadSegment {
        /// The block.
        block: IovaRange,
    },
    /// A segment could not be written.
    #[error("an sgl segment could not be written")]
    Memory(#[from] MemoryError),
}

/// Why descriptors cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SglWalkError {
    /// A segment's length is no number of descriptors.
    #[error("an sgl segment has {length} bytes, which is not a multiple of 16 above 0")]
    SegmentLength {
        /// Its length in bytes.
        length: u32,
    },
    /// A segment is not aligned.
    #[error("an sgl segment lies at {address}, which is not a multiple of 8")]
    SegmentMisaligned {
        /// Its first byte.
        address: Iova,
    },
    /// A last segment names another segment.
    #[error("the last sgl segment names a further segment")]
    BeyondLast,
    /// A descriptor before a segment's end names another segment.
    #[error("an sgl segment names a further segment before its last descriptor")]
    Misplaced,
    /// A segment that is not the last ends without naming the next.
    #[error("an sgl segment that is not the last names no further segment: {descriptor:?}")]
    MissingSegment {
        /// Its last descriptor.
        descriptor: SglDescriptor,
    },
    /// The list has too many descriptors.
    #[error("the sgl has more than {max} descriptors")]
    TooManyDescriptors {
        /// The limit.
        max: u32,
    },
    /// The list has too many data blocks.
    #[error("the sgl has more than {max} data block descriptors")]
    TooManyBlocks {
        /// The limit.
        max: u32,
    },
    /// The list describes less than the command transfers.
    #[error("the sgl describes {described} bytes, the command transfers {len}")]
    TooShort {
        /// Bytes described.
        described: u64,
        /// Bytes of the transfer.
        len: u64,
    },
    /// The list describes more than the command transfers, which is not allowed here.
    #[error("the sgl describes at least {described} bytes, the command transfers {len}")]
    TooLong {
        /// Bytes described when the transfer's length was passed.
        described: u64,
        /// Bytes of the transfer.
        len: u64,
    },
    /// The command transfers more than is allowed.
    #[error("the command transfers {len} bytes, at most {max} are allowed")]
    TransferTooLong {
        /// Bytes of the transfer.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A descriptor of a type that is not supported here.
    #[error("descriptor type not supported here: {descriptor:?}")]
    Unsupported {
        /// The descriptor.
        descriptor: SglDescriptor,
    },
    /// A data block is not made of dwords.
    #[error("{length} bytes at {address:#x} are not whole dwords")]
    NotDwords {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A block or segment goes past the end of the address space.
    #[error(transparent)]
    Overflow(#[from] AddressOverflow),
    /// Remote memory goes past the end of the address space.
    #[error("{length} bytes at remote address {address} go past the end of the address space")]
    RemoteOverflow {
        /// First byte.
        address: RemoteAddress,
        /// Bytes.
        length: u32,
    },
    /// A segment is not there.
    #[error("an sgl segment cannot be read")]
    Unmapped(#[from] Unmapped),
}

impl SglWalkError {
    /// The status with which a controller refuses the command.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::SegmentLength { .. } | Self::SegmentMisaligned { .. } | Self::BeyondLast => {
                Status::SGL_INVALID_SEGMENT
            }
            Self::Misplaced
            | Self::MissingSegment { .. }
            | Self::TooManyDescriptors { .. }
            | Self::TooManyBlocks { .. } => Status::SGL_INVALID_COUNT,
            Self::TooShort { .. } | Self::TooLong { .. } => Status::SGL_DATA_LENGTH_INVALID,
            Self::TransferTooLong { .. } => Status::INVALID_FIELD,
            Self::Unsupported { .. } => Status::SGL_TYPE_INVALID,
            Self::NotDwords { .. } => Status::SGL_GRANULARITY_INVALID,
            Self::Overflow(_) | Self::RemoteOverflow { .. } | Self::Unmapped(_) => {
                Status::DATA_TRANSFER_ERROR
            }
        }
    }
}

/// The controller does not support SGLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the controller does not support sgls for its i/o queues (sgls {sgls:#x}): use prps")]
pub struct NoSgls {
    /// The controller's SGLS field.
    pub sgls: u32,
}

/// What holds for the SGLs of one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SglRules {
    /// The longest transfer in bytes (MDTS).
    pub max_len: u64,
    /// The most data block descriptors, keyed ones included (MSDBD); `None` for no such limit.
    pub max_blocks: Option<NonZeroU32>,
    /// The most descriptors of any kind, with the command's own: what bounds a walk, since descriptors may be empty.
    pub max_descriptors: u32,
    /// Data blocks have the alignment and granularity of dwords.
    pub dwords: bool,
    /// Bit bucket descriptors are supported.
    pub bit_buckets: bool,
    /// Keyed data block descriptors are supported.
    pub keyed: bool,
    /// A list may describe more than the command transfers.
    pub oversized: bool,
}

impl Default for SglRules {
    /// Bytes in any place, with bit buckets, without keys, in lists of up to 65536 descriptors that fit exactly.
    fn default() -> Self {
        Self {
            max_len: u64::MAX,
            max_blocks: None,
            max_descriptors: 65536,
            dwords: false,
            bit_buckets: true,
            keyed: false,
            oversized: false,
        }
    }
}

impl SglRules {
    /// The rules that a controller states in SGLS and MSDBD, for transfers of up to `max_len` bytes.
    ///
    /// # Errors
    /// [`NoSgls`] if it supports none.
    pub fn of(controller: &IdentifyController, max_len: u64) -> Result<Self, NoSgls> {
        let stated = controller.sgls.get();
        let dwords = match stated & sgls::SUPPORT_MASK {
            sgls::SUPPORTED => false,
            sgls::SUPPORTED_DWORD => true,
            _ => return Err(NoSgls { sgls: stated }),
        };
        Ok(Self {
            max_len,
            max_blocks: NonZeroU32::new(controller.msdbd.into()),
            dwords,
            bit_buckets: stated & sgls::BIT_BUCKET != 0,
            keyed: stated & sgls::KEYED != 0,
            oversized: stated & sgls::OVERSIZED != 0,
            ..Self::default()
        })
    }

    /// Writes a transfer as descriptors: one that goes into the command, and segments in `lists` as needed, each as
    /// long as its block. Ranges that touch are one; empty parts vanish. Nothing is allocated. After an error, `lists` may
    /// hold descriptors of a part of the transfer.
    ///
    /// # Errors
    /// [`SglBuildError`] says which rule the parts break, or that `lists` is too small.
    pub fn build(
        &self,
        parts: impl IntoIterator<Item = impl Into<SglPart>>,
        lists: &mut impl ListMemory,
    ) -> Result<Sgl, SglBuildError> {
        let mut writer = Writer::new(self, lists);
        let mut len = 0_u64;
        let mut current: Option<SglPart> = None;
        for part in parts {
            let part: SglPart = part.into();
            if part.is_empty() {
                continue;
            }
            len = len.saturating_add(part.len());
            if len > self.max_len {
                return Err(SglBuildError::TooLong {
                    len,
                    max: self.max_len,
                });
            }
            current = match current {
                None => Some(part),
                Some(previous) => match previous.joined(&part) {
                    Some(joined) => Some(joined),
                    None => {
                        writer.part(previous)?;
                        Some(part)
                    }
                },
            };
        }
        writer.part(current.ok_or(SglBuildError::Empty)?)?;
        writer.finish()
    }

    /// Follows the descriptors of a command that transfers `len` bytes in `direction`, and calls `visit` with each part in
    /// the order of the transfer. Empty descriptors are not visited, nor what a list has beyond `len`.
    ///
    /// Bit buckets count as empty when the host sends. Each segment is read once. Whatever the memory holds (segments
    /// that name each other included), at most `max_descriptors` are read. `visit` may have been called before an error.
    ///
    /// # Errors
    /// [`SglWalkError`] says what is wrong, and the status for it.
    pub fn walk(
        &self,
        descriptor: Sgl,
        len: u64,
        direction: TransferDirection,
        read: impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped>,
        visit: impl FnMut(SglPart),
    ) -> Result<(), SglWalkError> {
        if len > self.max_len {
            return Err(SglWalkError::TransferTooLong {
                len,
                max: self.max_len,
            });
        }
        Walker::new(self, len, direction, read, visit).run(descriptor)
    }

    /// The parts that [`walk`](Self::walk) visits, those that touch as one.
    ///
    /// # Errors
    /// [`SglWalkError`] says what is wrong, and the status for it.
    pub fn decode(
        &self,
        descriptor: Sgl,
        len: u64,
        direction: TransferDirection,
        read: impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped>,
    ) -> Result<Vec<SglPart>, SglWalkError> {
        let mut parts = Vec::new();
        self.walk(descriptor, len, direction, read, |part| {
            part.append_to(&mut parts);
        })?;
        Ok(parts)
    }
}

const fn are_dwords(address: u64, len: u64) -> bool {
    address.is_multiple_of(4) && len.is_multiple_of(4)
}

impl SglRules {
    /// Checks a number of data blocks; the error is the limit.
    fn check_blocks(&self, blocks: u32) -> Result<(), u32> {
        match self.max_blocks {
            Some(max) if blocks > max.get() => Err(max.get()),
            _ => Ok(()),
        }
    }
}
