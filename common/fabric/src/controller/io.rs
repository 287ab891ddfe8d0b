//! Commands of the NVM command set, checked once before anything is allocated, solicited or executed.
//!
//! [`parse`] runs for every I/O command: it allocates nothing and looks up one namespace. What it lets through can
//! be executed as it stands, but for the ranges of a Dataset Management command: they come later, with its data, and
//! the executor checks them.
//!
//! Not implemented, and refused as invalid opcodes: Write Uncorrectable, Copy, reservations, zones. Metadata and
//! protection information do not exist, so their fields are ignored, as the specification says for
//! namespaces that are not formatted with them.

use super::view::{NamespaceEntry, NamespaceTable};
use homi_queue::Command;
use homi_spec::command::{Fuse, NSID_BROADCAST, NvmOpcode, Psdt};
use homi_spec::sgl::SglDescriptor;
use homi_spec::{Sqe, Status};

/// Bytes of a range of Dataset Management, and how many a command names at most. NVM Command Set 1.0 §3.2.3.
const RANGE_SIZE: u32 = 16;
const MAX_RANGES: u32 = 256;

/// What commands of a queue are held to. See [`super::QueueView::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Largest transfer of one command in bytes (MDTS).
    pub max_transfer: u32,
    /// Whether the host switched the volatile write cache off: writes then get Force Unit Access.
    pub write_through: bool,
}

/// Which namespaces a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The namespace at this index of the table that the command was parsed with.
    Namespace(usize),
    /// Every namespace of the table: Flush with the broadcast identifier.
    All,
}

/// The data that a command moves over the fabric, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// The host sends this many.
    FromHost(u32),
    /// The host gets this many if the command succeeds.
    ToHost(u32),
}

impl Transfer {
    /// Bytes in either direction.
    #[must_use]
    pub fn len(self) -> u32 {
        match self {
            Self::None => 0,
            Self::FromHost(len) | Self::ToHost(len) => len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A command that can be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoRequest {
    /// What it is for.
    pub scope: Scope,
    /// The command, with Force Unit Access where the controller adds it.
    pub command: Command,
    /// The data it moves.
    pub transfer: Transfer,
}

/// Checks a command: opcode, flags, namespace, block range, transfer limit, write protection, and that its SGL
/// descriptor says what the command itself says about its data.
///
/// # Errors
/// The status to complete the command with.
pub fn parse(sqe: &Sqe, table: &NamespaceTable, limits: &IoLimits) -> Result<IoRequest, Status> {
    let opcode = sqe.nvm_opcode();
    let known = matches!(
        opcode,
        NvmOpcode::READ
            | NvmOpcode::WRITE
            | NvmOpcode::FLUSH
            | NvmOpcode::COMPARE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::DATASET_MANAGEMENT
            | NvmOpcode::VERIFY
    );
    if !known {
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    // Base 2.0 §3.3.3.1: over fabrics every command uses SGLs; fused commands are not supported (FUSES is 0).
    if sqe.fuse() != Fuse::NORMAL || sqe.psdt() != Psdt::SGL {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let mut command = Command(*sqe);
    let nsid = sqe.nsid.get();
    if opcode == NvmOpcode::FLUSH && nsid == NSID_BROADCAST {
        return Ok(IoRequest {
            scope: Scope::All,
            command,
            transfer: Transfer::None,
        });
    }
    let index = table.find(nsid).ok_or(Status::INVALID_NAMESPACE.with_dnr())?;
    let namespace = table.get(index).ok_or(Status::INVALID_NAMESPACE.with_dnr())?;
    let changes = matches!(
        opcode,
        NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::DATASET_MANAGEMENT
    );
    if changes && namespace.read_only {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let transfer = match opcode {
        NvmOpcode::READ => Transfer::ToHost(block_transfer(sqe, namespace, limits)?),
        NvmOpcode::WRITE | NvmOpcode::COMPARE => {
            // Directive type (bits 23:20): directives are not supported (OACS bit 5 is 0).
            if opcode == NvmOpcode::WRITE && sqe.cdw12.get() & (0xf << 20) != 0 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            Transfer::FromHost(block_transfer(sqe, namespace, limits)?)
        }
        NvmOpcode::WRITE_ZEROES | NvmOpcode::VERIFY => {
            in_range(sqe.lba(), sqe.blocks(), namespace)?;
            Transfer::None
        }
        NvmOpcode::DATASET_MANAGEMENT => Transfer::FromHost(ranges_transfer(sqe, command.ranges())?),
        _ => Transfer::None,
    };
    check_sgl(sqe, transfer)?;
    if limits.write_through && matches!(opcode, NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES) {
        command = command.with_fua();
    }
    Ok(IoRequest {
        scope: Scope::Namespace(index),
        command,
        transfer,
    })
}

fn in_range(lba: u64, blocks: u32, namespace: &NamespaceEntry) -> Result<(), Status> {
    match lba.checked_add(u64::from(blocks)) {
        Some(end) if end <= namespace.blocks => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
    }
}

fn block_transfer(sqe: &Sqe, namespace: &NamespaceEntry, limits: &IoLimits) -> Result<u32, Status> {
    // At most 65536 blocks of 65536 bytes, which is one more than 32 bits hold.
    let bytes = u64::from(sqe.blocks()) * u64::from(namespace.block_size);
    let bytes = u32::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= limits.max_transfer);
    let bytes = bytes.ok_or(Status::INVALID_FIELD.with_dnr())?;
    in_range(sqe.lba(), sqe.blocks(), namespace)?;
    Ok(bytes)
}

/// Hosts may describe a buffer for 256 ranges whatever the number of ranges they name, and Linux does: any length that
/// holds the named ones is taken as it is, up to that of 256.
fn ranges_transfer(sqe: &Sqe, ranges: u32) -> Result<u32, Status> {
    let named = ranges * RANGE_SIZE;
    let given = match sqe.sgl().parse() {
        SglDescriptor::Unknown { .. } => named,
        descriptor => descriptor.data_length(),
    };
    if given < named || given > MAX_RANGES * RANGE_SIZE {
        return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    }
    Ok(given)
}

/// Base 2.0 §4.1.2: the one descriptor must cover exactly what the command moves (SGLS bit 18 is 0, so a longer one
/// is as wrong as a shorter one), and only data to the controller can be in the capsule. Whether a descriptor
/// suits the transport, and an offset the capsule, is the transport's to say.
pub(super) fn check_sgl(sqe: &Sqe, transfer: Transfer) -> Result<(), Status> {
    let (len, from_host) = match transfer {
        Transfer::None => return Ok(()),
        Transfer::FromHost(len) => (len, true),
        Transfer::ToHost(len) => (len, false),
    };
    let given = match sqe.sgl().parse() {
        SglDescriptor::Transport { length } | SglDescriptor::Keyed { length, .. } => length,
        SglDescriptor::InCapsule { length, .. } if from_host => length,
        _ => return Err(Status::SGL_TYPE_INVALID.with_dnr()),
    };
    if given != len {
        return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    }
    Ok(())
}
