//! [`NamespaceGeometry`]: what a namespace looks like, and the check of every command against it.

use std::num::NonZeroU32;

use homi_queue::{Command, Data};
use homi_spec::command::{Fuse, NvmOpcode};
use homi_spec::status::Status;

/// Bytes of one range of a Dataset Management command (NVM Command Set 1.0 §3.2.3).
pub(crate) const RANGE_SIZE: usize = 16;

/// Why a geometry is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size is not one of those served.
    #[error("a logical block has 512 or 4096 bytes, not {block_size}")]
    BlockSize {
        /// The block size asked for, in bytes.
        block_size: u32,
    },
    /// There is no block.
    #[error("a namespace needs at least one logical block of {block_size} bytes")]
    Empty {
        /// Bytes per logical block.
        block_size: u32,
    },
    /// There is a part of a block at the end.
    #[error("{bytes} bytes are not a whole number of logical blocks of {block_size} bytes")]
    NotWholeBlocks {
        /// Size asked for, in bytes.
        bytes: u64,
        /// Bytes per logical block.
        block_size: u32,
    },
    /// Offsets in the namespace would not fit the system's 63 bits.
    #[error("{blocks} logical blocks of {block_size} bytes are more than a file can hold")]
    TooLarge {
        /// Blocks asked for.
        blocks: u64,
        /// Bytes per logical block.
        block_size: u32,
    },
}

/// What a namespace looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceGeometry {
    block_size: u32,
    blocks: u64,
    read_only: bool,
    optimal_io_boundary: Option<NonZeroU32>,
    deallocated_reads_zeroes: bool,
}

/// A range of a namespace that lies in it. Both values are in bytes and whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl NamespaceGeometry {
    /// A namespace of `blocks` logical blocks of `block_size` (512 or 4096) bytes, writable, whose deallocated blocks
    /// read as zeroes.
    ///
    /// # Errors
    /// [`GeometryError`] if the block size is another one, or the number of blocks is 0 or too large.
    pub fn new(block_size: u32, blocks: u64) -> Result<Self, GeometryError> {
        if block_size != 512 && block_size != 4096 {
            return Err(GeometryError::BlockSize { block_size });
        }
        if blocks == 0 {
            return Err(GeometryError::Empty { block_size });
        }
        match blocks.checked_mul(u64::from(block_size)) {
            Some(bytes) if i64::try_from(bytes).is_ok() => {}
            _ => return Err(GeometryError::TooLarge { blocks, block_size }),
        }
        Ok(Self {
            block_size,
            blocks,
            read_only: false,
            optimal_io_boundary: None,
            deallocated_reads_zeroes: true,
        })
    }

    /// A namespace of `bytes` bytes, a whole number of logical blocks.
    ///
    /// # Errors
    /// [`GeometryError`], as for [`NamespaceGeometry::new`], and if there is a part of a block at the end.
    pub fn from_bytes(block_size: u32, bytes: u64) -> Result<Self, GeometryError> {
        let whole = Self::new(block_size, bytes / u64::from(block_size.max(1)))?;
        if !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(GeometryError::NotWholeBlocks { bytes, block_size });
        }
        Ok(whole)
    }

    /// The same namespace, write protected if `read_only`.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    pub(crate) fn with_optimal_io_boundary(mut self, blocks: Option<NonZeroU32>) -> Self {
        self.optimal_io_boundary = blocks;
        self
    }

    pub(crate) fn with_deallocated_reads_zeroes(mut self, zeroes: bool) -> Self {
        self.deallocated_reads_zeroes = zeroes;
        self
    }

    /// Bytes per logical block: 512 or 4096.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Number of logical blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Checked when it was made.
        self.blocks * u64::from(self.block_size)
    }

    /// Whether the namespace is write protected.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Blocks between the boundaries that I/O should not cross for speed (NOIOB of Identify Namespace, NVM Command Set 1.0
    /// §4.1.5.1), if there are any.
    #[must_use]
    pub fn optimal_io_boundary(&self) -> Option<NonZeroU32> {
        self.optimal_io_boundary
    }

    /// Whether a block that Dataset Management deallocated reads as zeroes (DLFEAT of Identify Namespace); otherwise
    /// it reads as anything.
    #[must_use]
    pub fn deallocated_reads_zeroes(&self) -> bool {
        self.deallocated_reads_zeroes
    }

    /// The bytes of `blocks` blocks from `lba` on.
    ///
    /// # Errors
    /// [`Status::LBA_OUT_OF_RANGE`] if they do not all lie in the namespace.
    pub fn span(&self, lba: u64, blocks: u64) -> Result<Span, Status> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.blocks => {
                let size = u64::from(self.block_size);
                Ok(Span {
                    offset: lba * size,
                    len: blocks * size,
                })
            }
            _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
        }
    }

    /// The bytes of one range of a Dataset Management command: NVM Command Set 1.0 §3.2.3, figure "Range Definition".
    pub(crate) fn range(&self, range: [u8; RANGE_SIZE]) -> Result<Span, Status> {
        let [_, _, _, _, a, b, c, d, lba @ ..] = range;
        self.span(
            u64::from_le_bytes(lba),
            u64::from(u32::from_le_bytes([a, b, c, d])),
        )
    }

    /// Reads a command: what is to be done, known to be possible, or the status that it ends with.
    pub(crate) fn check(&self, command: &Command, data: &Data) -> Result<Work, Status> {
        if command.0.fuse() != Fuse::NORMAL {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let opcode = command.opcode();
        let work = match opcode {
            NvmOpcode::FLUSH => Work::Flush,
            NvmOpcode::DATASET_MANAGEMENT if command.is_deallocate() => Work::Deallocate {
                ranges: command.ranges(),
            },
            NvmOpcode::DATASET_MANAGEMENT => Work::Nothing,
            NvmOpcode::READ
            | NvmOpcode::WRITE
            | NvmOpcode::COMPARE
            | NvmOpcode::VERIFY
            | NvmOpcode::WRITE_ZEROES => {
                let span = self.span(command.lba(), u64::from(command.blocks()))?;
                let fua = command.fua();
                match opcode {
                    NvmOpcode::READ => Work::Read { span, fua },
                    NvmOpcode::WRITE => Work::Write { span, fua },
                    NvmOpcode::COMPARE => Work::Compare { span, fua },
                    NvmOpcode::VERIFY => Work::Verify { span, fua },
                    _ => Work::WriteZeroes {
                        span,
                        fua,
                        deallocate: command.may_deallocate(),
                    },
                }
            }
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        };
        if self.read_only && work.modifies() {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
        }
        let fits = match work {
            Work::Read { span, .. } => data.len() as u64 == span.len,
            Work::Write { span, .. } | Work::Compare { span, .. } => {
                data.len() as u64 == span.len && !matches!(data, Data::Anywhere { .. })
            }
            // Hosts in the field, Linux among them, always describe 4096 bytes here, however many ranges there are.
            Work::Deallocate { .. } | Work::Nothing => {
                let needed = command.ranges() as usize * RANGE_SIZE;
                data.len() >= needed && !matches!(data, Data::Anywhere { .. })
            }
            Work::Flush | Work::Verify { .. } | Work::WriteZeroes { .. } => data.is_empty(),
        };
        if fits {
            Ok(work)
        } else {
            Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
        }
    }
}

/// A command that was found possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Read {
        span: Span,
        fua: bool,
    },
    Write {
        span: Span,
        fua: bool,
    },
    Compare {
        span: Span,
        fua: bool,
    },
    Verify {
        span: Span,
        fua: bool,
    },
    WriteZeroes {
        span: Span,
        fua: bool,
        deallocate: bool,
    },
    /// The ranges are checked when they are read from the command's data, which the issuer may change meanwhile.
    Deallocate {
        ranges: u32,
    },
    Flush,
    /// Hints that need no action.
    Nothing,
}

impl Work {
    fn modifies(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Deallocate { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use homi_queue::Region;

    use super::*;

    fn data(len: usize) -> Data {
        Data::whole(Region::allocate(len, 1).unwrap())
    }

    fn status(geometry: NamespaceGeometry, command: Command, data: &Data) -> Status {
        geometry.check(&command, data).unwrap_err()
    }

    #[test]
    fn impossible_geometries_are_refused_with_the_reason() {
        assert_eq!(
            NamespaceGeometry::new(1024, 1).unwrap_err().to_string(),
            "a logical block has 512 or 4096 bytes, not 1024"
        );
        assert_eq!(
            NamespaceGeometry::new(0, 1),
            Err(GeometryError::BlockSize { block_size: 0 })
        );
        assert_eq!(
            NamespaceGeometry::from_bytes(0, 1),
            Err(GeometryError::BlockSize { block_size: 0 })
        );
        assert_eq!(
            NamespaceGeometry::new(512, 0),
            Err(GeometryError::Empty { block_size: 512 })
        );
        assert!(matches!(
            NamespaceGeometry::new(512, u64::MAX),
            Err(GeometryError::TooLarge { .. })
        ));
        assert!(matches!(
            NamespaceGeometry::new(512, 1 << 54),
            Err(GeometryError::TooLarge { .. })
        ));
        assert!(matches!(
            NamespaceGeometry::from_bytes(512, 1000),
            Err(GeometryError::NotWholeBlocks {
                bytes: 1000,
                block_size: 512
            })
        ));
        let geometry = NamespaceGeometry::from_bytes(4096, 1 << 20).unwrap();
        assert_eq!((geometry.blocks(), geometry.bytes()), (256, 1 << 20));
    }

    #[test]
    fn ranges_end_with_the_namespace() {
        let geometry = NamespaceGeometry::new(512, 100).unwrap();
        assert_eq!(
            geometry.span(99, 1),
            Ok(Span {
                offset: 99 * 512,
                len: 512
            })
        );
        assert_eq!(
            geometry.span(100, 0),
            Ok(Span {
                offset: 51200,
                len: 0
            })
        );
        for (lba, blocks) in [(100, 1), (99, 2), (u64::MAX, 1), (0, 101), (u64::MAX, u64::MAX)] {
            assert!(
                geometry
                    .span(lba, blocks)
                    .unwrap_err()
                    .is(Status::LBA_OUT_OF_RANGE)
            );
        }
    }

    #[test]
    fn the_data_must_be_as_long_as_the_transfer() {
        let geometry = NamespaceGeometry::new(512, 100).unwrap();
        let length = Status::SGL_DATA_LENGTH_INVALID;
        assert!(status(geometry, Command::read(1, 0, 2), &data(512)).is(length));
        assert!(status(geometry, Command::read(1, 0, 2), &Data::None).is(length));
        assert!(status(geometry, Command::write(1, 0, 2), &data(1536)).is(length));
        assert!(status(geometry, Command::write(1, 0, 2), &Data::Anywhere { len: 1024 }).is(length));
        assert!(status(geometry, Command::compare(1, 0, 1), &Data::Anywhere { len: 512 }).is(length));
        assert!(status(geometry, Command::flush(1), &data(512)).is(length));
        assert!(status(geometry, Command::write_zeroes(1, 0, 1, false), &data(512)).is(length));
        assert!(status(geometry, Command::deallocate(1, 3), &data(32)).is(length));
        assert!(geometry.check(&Command::deallocate(1, 3), &data(4096)).is_ok());
        assert!(
            geometry
                .check(&Command::read(1, 0, 2), &Data::Anywhere { len: 1024 })
                .is_ok()
        );
    }

    #[test]
    fn a_write_protected_namespace_is_only_read() {
        let geometry = NamespaceGeometry::new(512, 100).unwrap().with_read_only(true);
        for (command, data) in [
            (Command::write(1, 0, 1), data(512)),
            (Command::write_zeroes(1, 0, 1, true), Data::None),
            (Command::deallocate(1, 1), data(16)),
        ] {
            assert!(status(geometry, command, &data).is(Status::NAMESPACE_WRITE_PROTECTED));
        }
        assert!(geometry.check(&Command::read(1, 0, 1), &data(512)).is_ok());
        assert!(geometry.check(&Command::compare(1, 0, 1), &data(512)).is_ok());
        assert!(geometry.check(&Command::flush(1), &Data::None).is_ok());
    }

    #[test]
    fn what_is_not_executed_is_refused() {
        let geometry = NamespaceGeometry::new(512, 100).unwrap();
        let mut command = Command::read(1, 0, 1);
        command.0.set_fuse(Fuse::FIRST);
        assert!(status(geometry, command, &data(512)).is(Status::INVALID_FIELD));
        for opcode in [
            NvmOpcode::WRITE_UNCORRECTABLE,
            NvmOpcode::COPY,
            NvmOpcode::FABRICS,
            NvmOpcode(0xc0),
        ] {
            let mut command = Command::read(1, 0, 1);
            command.0.opcode = opcode.raw();
            assert!(status(geometry, command, &data(512)).is(Status::INVALID_OPCODE));
        }
    }
}
