//! [`Command`] and [`Completion`]: NVMe's own 64- and 16-byte entries without the fields that belong to a queue.

use homi_spec::command::{Cqe, FabricsOpcode, NvmOpcode, Sqe, TransferDirection};
use homi_spec::status::Status;
use std::fmt;

pub use homi_spec::command::TransferDirection as DataDirection;

/// A command to execute: a submission queue entry whose command id and data pointer are left to the queue that
/// executes it. Any command can be expressed, known here or not.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Command(pub Sqe);

/// Dword 12 bit 30 of Read, Write, Compare, Write Zeroes and Verify (NVM Command Set 1.0 §3.2).
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Dword 12 bit 25 of Write Zeroes (NVM Command Set 1.0 §3.2.8).
const DEALLOCATE: u32 = 1 << 25;
/// Dword 11 bit 2 of Dataset Management: attribute "deallocate" (NVM Command Set 1.0 §3.2.3).
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

impl Command {
    /// Reads `blocks` (1 to 65536) logical blocks from `lba` on.
    #[must_use]
    pub fn read(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::on_blocks(NvmOpcode::READ, nsid, lba, blocks)
    }

    /// Writes `blocks` (1 to 65536) logical blocks from `lba` on.
    #[must_use]
    pub fn write(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::on_blocks(NvmOpcode::WRITE, nsid, lba, blocks)
    }

    /// Compares `blocks` (1 to 65536) logical blocks with the command's data.
    #[must_use]
    pub fn compare(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::on_blocks(NvmOpcode::COMPARE, nsid, lba, blocks)
    }

    /// Reads `blocks` (1 to 65536) logical blocks at the drive without transferring them.
    #[must_use]
    pub fn verify(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::on_blocks(NvmOpcode::VERIFY, nsid, lba, blocks)
    }

    /// Makes `blocks` (1 to 65536) logical blocks read as zeroes; with `deallocate` their storage may be given back.
    #[must_use]
    pub fn write_zeroes(nsid: u32, lba: u64, blocks: u32, deallocate: bool) -> Self {
        let mut command = Self::on_blocks(NvmOpcode::WRITE_ZEROES, nsid, lba, blocks);
        if deallocate {
            command.0.cdw12 |= DEALLOCATE;
        }
        command
    }

    /// Makes everything written before it durable.
    #[must_use]
    pub fn flush(nsid: u32) -> Self {
        Self(Sqe::new(NvmOpcode::FLUSH.raw(), nsid))
    }

    /// Gives the storage of `ranges` (1 to 256) ranges back; the command's data holds 16 bytes per range.
    #[must_use]
    pub fn deallocate(nsid: u32, ranges: u32) -> Self {
        let mut sqe = Sqe::new(NvmOpcode::DATASET_MANAGEMENT.raw(), nsid);
        sqe.cdw10 = (ranges.saturating_sub(1) & 0xff).into();
        sqe.cdw11 = ATTRIBUTE_DEALLOCATE.into();
        Self(sqe)
    }

    /// The same command with Force Unit Access: a write completes when it is durable, a read comes from the medium.
    #[must_use]
    pub fn with_fua(mut self) -> Self {
        self.0.cdw12 |= FORCE_UNIT_ACCESS;
        self
    }

    fn on_blocks(opcode: NvmOpcode, nsid: u32, lba: u64, blocks: u32) -> Self {
        debug_assert!(
            (1..=65536).contains(&blocks),
            "a command covers 1 to 65536 blocks, not {blocks}"
        );
        let mut sqe = Sqe::new(opcode.raw(), nsid);
        sqe.set_lba(lba);
        sqe.cdw12 = (blocks.wrapping_sub(1) & 0xffff).into();
        Self(sqe)
    }

    /// The opcode, read as one of an I/O queue.
    #[must_use]
    pub fn opcode(&self) -> NvmOpcode {
        self.0.nvm_opcode()
    }

    /// The namespace that the command addresses.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.0.nsid.get()
    }

    /// The first logical block.
    #[must_use]
    pub fn lba(&self) -> u64 {
        self.0.lba()
    }

    /// Number of logical blocks, 1 to 65536.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.0.blocks()
    }

    /// Whether Force Unit Access is asked for.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.0.fua()
    }

    /// Whether a Write Zeroes may deallocate.
    #[must_use]
    pub fn may_deallocate(&self) -> bool {
        self.0.cdw12.get() & DEALLOCATE != 0
    }

    /// Number of ranges (1 to 256) in a Dataset Management command's data.
    #[must_use]
    pub fn ranges(&self) -> u32 {
        (self.0.cdw10.get() & 0xff) + 1
    }

    /// Whether a Dataset Management command asks to deallocate (the other attributes are hints).
    #[must_use]
    pub fn is_deallocate(&self) -> bool {
        self.0.cdw11.get() & ATTRIBUTE_DEALLOCATE != 0
    }

    /// Which way the command moves data, from its opcode (for fabrics commands, from the command type).
    #[must_use]
    pub fn direction(&self) -> DataDirection {
        if self.0.opcode == FabricsOpcode::FABRICS {
            let [fabrics_type, ..] = self.0.nsid.get().to_le_bytes();
            TransferDirection::of(fabrics_type)
        } else {
            TransferDirection::of(self.0.opcode)
        }
    }
}

impl From<Sqe> for Command {
    fn from(sqe: Sqe) -> Self {
        Self(sqe)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What came of a command: a completion queue entry without the fields that belong to a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The status, as the executor gave it.
    pub status: Status,
    /// Dwords 0 and 1: command specific.
    pub result: u64,
}

impl Completion {
    /// Success without a result.
    pub const SUCCESS: Self = Self {
        status: Status::SUCCESS,
        result: 0,
    };

    /// A failure without a result.
    #[must_use]
    pub const fn failed(status: Status) -> Self {
        Self { status, result: 0 }
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// Dword 0.
    #[must_use]
    pub fn dw0(&self) -> u32 {
        let [a, b, c, d, ..] = self.result.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Dword 1.
    #[must_use]
    pub fn dw1(&self) -> u32 {
        let [.., a, b, c, d] = self.result.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl From<&Cqe> for Completion {
    fn from(cqe: &Cqe) -> Self {
        Self {
            status: cqe.status(),
            result: cqe.result64(),
        }
    }
}

impl From<Status> for Completion {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_carry_what_they_were_built_with() {
        let read = Command::read(3, 0x1_2345_6789, 65536).with_fua();
        assert_eq!(
            (read.nsid(), read.lba(), read.blocks(), read.fua()),
            (3, 0x1_2345_6789, 65536, true)
        );
        assert_eq!(read.direction(), DataDirection::ControllerToHost);
        assert_eq!(
            Command::write(1, 0, 1).direction(),
            DataDirection::HostToController
        );
        assert_eq!(
            Command::compare(1, 0, 1).direction(),
            DataDirection::HostToController
        );
        let zeroes = Command::write_zeroes(1, 7, 9, true);
        assert!(zeroes.may_deallocate() && !zeroes.fua());
        assert_eq!(zeroes.direction(), DataDirection::None);
        let deallocate = Command::deallocate(1, 256);
        assert_eq!((deallocate.ranges(), deallocate.is_deallocate()), (256, true));
        assert_eq!(deallocate.direction(), DataDirection::HostToController);
        let mut connect = Sqe::new(FabricsOpcode::FABRICS, 1);
        assert_eq!(Command(connect).direction(), DataDirection::HostToController);
        connect.nsid = 4.into();
        assert_eq!(Command(connect).direction(), DataDirection::None);
    }

    #[test]
    fn results_split_into_dwords() {
        let completion = Completion {
            status: Status::SUCCESS,
            result: 0x1122_3344_5566_7788,
        };
        assert_eq!((completion.dw0(), completion.dw1()), (0x5566_7788, 0x1122_3344));
    }
}
