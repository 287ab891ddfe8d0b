//! Commands of the NVM command set. NVM Command Set 1.0 §3.2, Base 2.0 §7.
//!
//! [`BlockCommand`] covers every command that names a contiguous range: Read, Write, Compare, Verify, Write
//! Zeroes and Write Uncorrectable. Data pointers are left to the caller, since they depend on the transport.
//!
//! Not implemented: Copy, reservations, storage tags beyond their raw dwords, and the zoned and key value
//! command sets.

use crate::command::{NvmOpcode, Sqe};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most logical blocks in one command: NLB is a zero-based 16-bit field.
pub const MAX_BLOCKS: u32 = 65_536;

/// Most ranges in one Dataset Management.
pub const MAX_DSM_RANGES: usize = 256;

/// The upper half of dword 12 of a [`BlockCommand`]. NVM Command Set 1.0 §3.2.4 and §3.2.6.
pub mod control {
    /// b7:4: directive type (DTYPE), mask. Write only.
    pub const DTYPE_MASK: u16 = 0xf << 4;
    /// Storage tag check (STC).
    pub const STORAGE_TAG_CHECK: u16 = 1 << 8;
    /// Deallocate (DEAC). Write Zeroes only.
    pub const DEALLOCATE: u16 = 1 << 9;
    /// Protection information: check the reference tag.
    pub const CHECK_REFERENCE_TAG: u16 = 1 << 10;
    /// Protection information: check the application tag.
    pub const CHECK_APPLICATION_TAG: u16 = 1 << 11;
    /// Protection information: check the guard.
    pub const CHECK_GUARD: u16 = 1 << 12;
    /// Protection information action (PRACT): the controller inserts and strips it.
    pub const PRACT: u16 = 1 << 13;
    /// Force Unit Access (FUA).
    pub const FUA: u16 = 1 << 14;
    /// Limited Retry (LR).
    pub const LIMITED_RETRY: u16 = 1 << 15;
}

/// A number of blocks that no command can carry.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a command transfers 1 to 65536 logical blocks, {blocks} were asked for; split it")]
pub struct BlockCountError {
    /// The number asked for.
    pub blocks: u32,
}

/// A command on a contiguous range of logical blocks. NVM Command Set 1.0 §3.2.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct BlockCommand {
    /// Which command: one for which [`BlockCommand::covers`] holds.
    pub opcode: NvmOpcode,
    /// Namespace.
    pub nsid: u32,
    /// First logical block.
    pub slba: u64,
    /// Logical blocks, zero-based (NLB).
    pub nlb_z: u16,
    /// Attributes: [`control`].
    pub control: u16,
    /// Dataset management hints, dword 13 b7:0 (DSM). Read and Write only.
    pub dsm: u8,
    /// Directive specific value, dword 13 b31:16 (DSPEC). Write only.
    pub dspec: u16,
    /// Low 32 bits of the storage and reference tags, dword 14 (LBST, ILBRT).
    pub reference_tag: u32,
    /// Application tag, dword 15 b15:0 (LBAT).
    pub application_tag: u16,
    /// Application tag mask, dword 15 b31:16 (LBATM).
    pub application_tag_mask: u16,
    /// High bits of the storage and reference tags, dwords 2 and 3, as one value.
    pub reference_tag_high: u64,
}

impl BlockCommand {
    /// A command on `blocks` blocks from `slba`.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn new(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32) -> Result<Self, BlockCountError> {
        let nlb_z = blocks
            .checked_sub(1)
            .and_then(|nlb_z| u16::try_from(nlb_z).ok())
            .ok_or(BlockCountError { blocks })?;
        Ok(Self {
            opcode,
            nsid,
            slba,
            nlb_z,
            ..Self::default()
        })
    }

    /// A Read.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn read(nsid: u32, slba: u64, blocks: u32) -> Result<Self, BlockCountError> {
        Self::new(NvmOpcode::READ, nsid, slba, blocks)
    }

    /// A Write.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn write(nsid: u32, slba: u64, blocks: u32) -> Result<Self, BlockCountError> {
        Self::new(NvmOpcode::WRITE, nsid, slba, blocks)
    }

    /// A Compare.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn compare(nsid: u32, slba: u64, blocks: u32) -> Result<Self, BlockCountError> {
        Self::new(NvmOpcode::COMPARE, nsid, slba, blocks)
    }

    /// A Verify: reads without transfer.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn verify(nsid: u32, slba: u64, blocks: u32) -> Result<Self, BlockCountError> {
        Self::new(NvmOpcode::VERIFY, nsid, slba, blocks)
    }

    /// A Write Zeroes; `deallocate` sets DEAC.
    ///
    /// # Errors
    /// A number of blocks outside 1 to [`MAX_BLOCKS`].
    pub fn write_zeroes(
        nsid: u32,
        slba: u64,
        blocks: u32,
        deallocate: bool,
    ) -> Result<Self, BlockCountError> {
        let command = Self::new(NvmOpcode::WRITE_ZEROES, nsid, slba, blocks)?;
        Ok(if deallocate {
            command.with(control::DEALLOCATE)
        } else {
            command
        })
    }

    /// The same command with these bits of [`control`] set.
    #[must_use]
    pub const fn with(mut self, bits: u16) -> Self {
        self.control |= bits;
        self
    }

    /// Whether every one of these bits of [`control`] is set.
    pub const fn has(&self, bits: u16) -> bool {
        self.control & bits == bits
    }

    /// Logical blocks: 1 to 65536.
    pub const fn blocks(&self) -> u32 {
        self.nlb_z as u32 + 1
    }

    /// The block after the last one, or `None` where it does not fit 64 bits.
    pub const fn end(&self) -> Option<u64> {
        self.slba.checked_add(self.blocks() as u64)
    }

    /// Whether commands of this opcode have this layout.
    pub const fn covers(opcode: NvmOpcode) -> bool {
        matches!(
            opcode,
            NvmOpcode::READ
                | NvmOpcode::WRITE
                | NvmOpcode::COMPARE
                | NvmOpcode::VERIFY
                | NvmOpcode::WRITE_ZEROES
                | NvmOpcode::WRITE_UNCORRECTABLE
        )
    }

    /// The fields of such a command; `None` when the opcode is another. Do not use on the admin queue.
    #[inline]
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let opcode = sqe.nvm_opcode();
        if !Self::covers(opcode) {
            return None;
        }
        let (cdw12, cdw13, cdw15) = (sqe.cdw12.get(), sqe.cdw13.get(), sqe.cdw15.get());
        Some(Self {
            opcode,
            nsid: sqe.nsid.get(),
            slba: sqe.lba(),
            nlb_z: (cdw12 & 0xffff) as u16,
            control: (cdw12 >> 16) as u16,
            dsm: (cdw13 & 0xff) as u8,
            dspec: (cdw13 >> 16) as u16,
            reference_tag: sqe.cdw14.get(),
            application_tag: (cdw15 & 0xffff) as u16,
            application_tag_mask: (cdw15 >> 16) as u16,
            reference_tag_high: u64::from(sqe.cdw2.get()) | (u64::from(sqe.cdw3.get()) << 32),
        })
    }

    /// The entry of this command; its data pointer is left to the caller.
    #[inline]
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(self.opcode.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw2 = U32::new((self.reference_tag_high & 0xffff_ffff) as u32);
        sqe.cdw3 = U32::new((self.reference_tag_high >> 32) as u32);
        sqe.set_lba(self.slba);
        sqe.cdw12 = U32::new(u32::from(self.nlb_z) | (u32::from(self.control) << 16));
        sqe.cdw13 = U32::new(u32::from(self.dsm) | (u32::from(self.dspec) << 16));
        sqe.cdw14 = U32::new(self.reference_tag);
        sqe.cdw15 = U32::new(u32::from(self.application_tag) | (u32::from(self.application_tag_mask) << 16));
        sqe
    }
}

/// The Flush of a namespace, or of all with [`crate::command::NSID_BROADCAST`]. Base 2.0 §7.1.
pub fn flush(nsid: u32, cid: u16) -> Sqe {
    let mut sqe = Sqe::new(NvmOpcode::FLUSH.0, nsid);
    sqe.cid = U16::new(cid);
    sqe
}

/// The Dataset Management command; its ranges are data. NVM Command Set 1.0 §3.2.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct DatasetManagement {
    /// Namespace.
    pub nsid: u32,
    /// Number of ranges, zero-based (NR).
    pub ranges_z: u8,
    /// Attributes, dword 11: the `ATTRIBUTE_*` constants.
    pub attributes: u32,
}

impl DatasetManagement {
    /// Integral dataset for read (IDR).
    pub const ATTRIBUTE_INTEGRAL_READ: u32 = 1 << 0;
    /// Integral dataset for write (IDW).
    pub const ATTRIBUTE_INTEGRAL_WRITE: u32 = 1 << 1;
    /// Deallocate (AD).
    pub const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

    /// A deallocation of this many ranges, or `None` unless there are 1 to [`MAX_DSM_RANGES`].
    pub fn deallocate(nsid: u32, ranges: usize) -> Option<Self> {
        let ranges_z = ranges
            .checked_sub(1)
            .and_then(|ranges_z| u8::try_from(ranges_z).ok())?;
        Some(Self {
            nsid,
            ranges_z,
            attributes: Self::ATTRIBUTE_DEALLOCATE,
        })
    }

    /// Number of ranges: 1 to 256.
    pub const fn ranges(&self) -> usize {
        self.ranges_z as usize + 1
    }

    /// Bytes of range data: 16 to 4096.
    pub const fn data_length(&self) -> usize {
        self.ranges() * size_of::<DsmRange>()
    }

    /// Whether the ranges are to be deallocated.
    pub const fn deallocates(&self) -> bool {
        self.attributes & Self::ATTRIBUTE_DEALLOCATE != 0
    }

    /// The fields of a Dataset Management; `None` when the opcode is another. Do not use on the admin queue.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        (sqe.nvm_opcode() == NvmOpcode::DATASET_MANAGEMENT).then(|| Self {
            nsid: sqe.nsid.get(),
            ranges_z: (sqe.cdw10.get() & 0xff) as u8,
            attributes: sqe.cdw11.get(),
        })
    }

    /// The entry of this command; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(NvmOpcode::DATASET_MANAGEMENT.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw10 = U32::new(u32::from(self.ranges_z));
        sqe.cdw11 = U32::new(self.attributes);
        sqe
    }
}

/// A range of Dataset Management: 16 bytes. NVM Command Set 1.0 §3.2.3, figure "Range Definition".
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub context: U32,
    /// Logical blocks. Not zero-based: 0 is an empty range.
    pub blocks: U32,
    /// First logical block.
    pub slba: U64,
}
const _: () = assert!(size_of::<DsmRange>() == 16);

impl DsmRange {
    /// A range without hints.
    pub fn new(slba: u64, blocks: u32) -> Self {
        Self {
            context: U32::ZERO,
            blocks: U32::new(blocks),
            slba: U64::new(slba),
        }
    }
}
