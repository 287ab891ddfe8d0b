//! What is checked of a command before a drive gets it: ranges of blocks are the drive's to refuse, but not whether the command's memory is as
//! long as what it transfers.

use homi_queue::{Command, Data, DataDirection};
use homi_spec::command::{Fuse, NvmOpcode};
use homi_spec::status::Status;

use crate::geometry::{NamespaceGeometry, RANGE_SIZE};

/// Whether a command may go to the drive with this memory: the drive moves as many bytes as the command says, wherever the memory ends.
pub(crate) fn check(
    geometry: &NamespaceGeometry,
    unchecked: bool,
    command: &Command,
    data: &Data,
) -> Result<(), Status> {
    const COPY_RANGES: [usize; 4] = [32, 40, 32, 40];
    if command.0.fuse() != Fuse::NORMAL {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let opcode = command.opcode();
    let reads = matches!(
        opcode,
        NvmOpcode::READ
            | NvmOpcode::COMPARE
            | NvmOpcode::VERIFY
            | NvmOpcode::FLUSH
            | NvmOpcode::RESERVATION_REPORT
    );
    if geometry.read_only() && !reads {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let (cdw10, cdw12) = (command.0.cdw10.get(), command.0.cdw12.get());
    let len = data.len() as u64;
    let fits = match opcode {
        NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
            len == u64::from(command.blocks()) * u64::from(geometry.block_size())
        }
        NvmOpcode::FLUSH | NvmOpcode::WRITE_ZEROES | NvmOpcode::VERIFY | NvmOpcode::WRITE_UNCORRECTABLE => {
            len == 0
        }
        // Hosts in the field, Linux among them, always describe 4096 bytes here, however many ranges there are.
        NvmOpcode::DATASET_MANAGEMENT => len >= u64::from(command.ranges()) * RANGE_SIZE as u64,
        NvmOpcode::RESERVATION_REGISTER | NvmOpcode::RESERVATION_ACQUIRE => len >= 16,
        NvmOpcode::RESERVATION_RELEASE => len >= 8,
        NvmOpcode::RESERVATION_REPORT => len >= (u64::from(cdw10) + 1) * 4,
        // NR in the low byte, zero-based; the descriptor format in bits 11:8 (NVM Command Set 1.0 §3.2.2).
        NvmOpcode::COPY => match COPY_RANGES.get((cdw12 >> 8 & 0xf) as usize) {
            Some(range) => len >= (u64::from(cdw12 & 0xff) + 1) * *range as u64,
            None => return Err(Status::INVALID_FIELD.with_dnr()),
        },
        _ if unchecked => true,
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    let anywhere = matches!(data, Data::Anywhere { .. }) && opcode != NvmOpcode::READ;
    let unwanted = len > 0 && command.direction() == DataDirection::None;
    if fits && !anywhere && !unwanted {
        Ok(())
    } else {
        Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
    }
}
