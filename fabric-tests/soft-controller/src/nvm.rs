//! I/O commands of the NVM command set. NVM Command Set 1.0 §3.2.

use homi_queue::SglPart;
use homi_spec::Status;
use homi_spec::command::{Fuse, NSID_BROADCAST, NvmOpcode, Psdt, Sqe, TransferDirection};
use homi_spec::nvm::{BlockCommand, DatasetManagement, DsmRange, control};
use zerocopy::FromBytes;

use crate::controller::Controller;
use crate::iommu::Hold;
use crate::media::Namespace;
use crate::shared::Shared;

/// Commands that the model has.
pub(crate) const SUPPORTED: [NvmOpcode; 8] = [
    NvmOpcode::FLUSH,
    NvmOpcode::WRITE,
    NvmOpcode::READ,
    NvmOpcode::WRITE_UNCORRECTABLE,
    NvmOpcode::COMPARE,
    NvmOpcode::WRITE_ZEROES,
    NvmOpcode::DATASET_MANAGEMENT,
    NvmOpcode::VERIFY,
];

/// I/O of one controller, for its SMART log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

impl Shared {
    /// Checks that an identifier is one that a namespace may have.
    pub(crate) fn check_nsid(&self, nsid: u32) -> Result<(), Status> {
        if nsid == 0 || nsid > self.config.max_namespaces {
            return Err(Status::INVALID_NAMESPACE.with_dnr());
        }
        Ok(())
    }

    /// A namespace that is attached to a function's controller.
    pub(crate) fn attached(&self, function: u16, nsid: u32) -> Result<&Namespace, Status> {
        self.check_nsid(nsid)?;
        self.namespaces
            .get(&nsid)
            .filter(|namespace| namespace.attached.contains(&function))
            .ok_or(Status::INVALID_FIELD.with_dnr())
    }

    /// The same, to be changed.
    pub(crate) fn attached_mut(&mut self, function: u16, nsid: u32) -> Result<&mut Namespace, Status> {
        self.check_nsid(nsid)?;
        self.namespaces
            .get_mut(&nsid)
            .filter(|namespace| namespace.attached.contains(&function))
            .ok_or(Status::INVALID_FIELD.with_dnr())
    }
}

/// The bytes of a command's blocks: offset and length.
fn extent(namespace: &Namespace, slba: u64, blocks: u64) -> Result<(u64, u64), Status> {
    let end = slba.checked_add(blocks).filter(|end| *end <= namespace.blocks);
    if end.is_none() {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    Ok((slba << namespace.lbads, blocks << namespace.lbads))
}

fn check_bad(namespace: &Namespace, slba: u64, blocks: u64) -> Result<(), Status> {
    match namespace.bad.range(slba..slba.saturating_add(blocks)).next() {
        Some(_) => Err(Status::UNRECOVERED_READ_ERROR.with_dnr()),
        None => Ok(()),
    }
}

fn check_writable(namespace: &Namespace) -> Result<(), Status> {
    if namespace.write_protected {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    Ok(())
}

fn forgive(namespace: &mut Namespace, slba: u64, blocks: u64) {
    if !namespace.bad.is_empty() {
        let after = namespace.bad.split_off(&slba);
        let end = slba.saturating_add(blocks);
        namespace
            .bad
            .extend(after.into_iter().filter(|block| *block >= end));
    }
}

impl Controller {
    /// Carries out an I/O command.
    pub(crate) fn io(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        if sqe.fuse() != Fuse::NORMAL || sqe.psdt().0 > Psdt::SGL_METADATA_SEGMENT.0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        match sqe.nvm_opcode() {
            NvmOpcode::FLUSH => self.flush(shared, sqe),
            NvmOpcode::READ => self.read_blocks(shared, sqe),
            NvmOpcode::WRITE => self.write_blocks(shared, sqe),
            NvmOpcode::COMPARE => self.compare(shared, sqe),
            NvmOpcode::DATASET_MANAGEMENT => self.dataset(shared, sqe),
            NvmOpcode::VERIFY | NvmOpcode::WRITE_ZEROES | NvmOpcode::WRITE_UNCORRECTABLE => {
                self.without_data(shared, sqe)
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// Notes where the data of a read or write is, so that unmapping it is noticed.
    pub(crate) fn hold_data(&mut self, shared: &Shared, sqe: &Sqe) -> Vec<Hold> {
        let direction = match sqe.nvm_opcode() {
            NvmOpcode::READ => TransferDirection::ControllerToHost,
            NvmOpcode::WRITE | NvmOpcode::COMPARE => TransferDirection::HostToController,
            _ => return Vec::new(),
        };
        let Some(command) = BlockCommand::from_sqe(sqe) else {
            return Vec::new();
        };
        let Ok(namespace) = shared.attached(self.function, command.nsid) else {
            return Vec::new();
        };
        let len = u64::from(command.blocks()) << namespace.lbads;
        let rules = self.rules(&shared.config, true);
        // One that cannot be carried out holds nothing, and is refused when it is its turn.
        let parts = self.bus.parts(sqe, len, direction, &rules).unwrap_or_default();
        let ranges = parts.into_iter().filter_map(|part| match part {
            SglPart::Data(range) => Some(range),
            _ => None,
        });
        ranges.filter_map(|range| self.bus.hold(range)).collect()
    }

    fn flush(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let nsid = sqe.nsid.get();
        if nsid == NSID_BROADCAST {
            for namespace in shared.namespaces.values_mut() {
                if namespace.attached.contains(&self.function) {
                    namespace.flushes += 1;
                }
            }
        } else {
            shared.attached_mut(self.function, nsid)?.flushes += 1;
        }
        Ok(0)
    }

    fn read_blocks(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = BlockCommand::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let rules = self.rules(&shared.config, true);
        let namespace = shared.attached(self.function, command.nsid)?;
        let blocks = u64::from(command.blocks());
        let (at, len) = extent(namespace, command.slba, blocks)?;
        let parts = self
            .bus
            .parts(sqe, len, TransferDirection::ControllerToHost, &rules)?;
        check_bad(namespace, command.slba, blocks)?;
        let mut data = vec![0; usize::try_from(len).map_err(|_| Status::INTERNAL_ERROR)?];
        namespace.media.read(at, &mut data);
        self.data_fault.spoil(&mut data);
        if !self.data_fault.none {
            let moved = self.bus.scatter(&parts, &data);
            moved.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        }
        self.counts.reads += 1;
        self.counts.bytes_read += len;
        Ok(0)
    }

    /// Fetches a command's data from the host, and says where on the media its blocks are.
    fn fetch_data(
        &mut self,
        shared: &Shared,
        sqe: &Sqe,
        command: &BlockCommand,
    ) -> Result<(u64, Vec<u8>), Status> {
        let rules = self.rules(&shared.config, true);
        let namespace = shared.attached(self.function, command.nsid)?;
        let (at, len) = extent(namespace, command.slba, u64::from(command.blocks()))?;
        let parts = self
            .bus
            .parts(sqe, len, TransferDirection::HostToController, &rules)?;
        let mut data = vec![0; usize::try_from(len).map_err(|_| Status::INTERNAL_ERROR)?];
        let moved = self.bus.gather(&parts, &mut data);
        moved.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        Ok((at, data))
    }

    fn write_blocks(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = BlockCommand::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        check_writable(shared.attached(self.function, command.nsid)?)?;
        let (at, mut data) = self.fetch_data(shared, sqe, &command)?;
        if self.data_fault.corrupt
            && let Some(byte) = data.last_mut()
        {
            *byte ^= 1;
        }
        if !self.data_fault.not_written && !self.data_fault.none {
            let namespace = shared.attached_mut(self.function, command.nsid)?;
            namespace.media.write(at, &data);
            forgive(namespace, command.slba, u64::from(command.blocks()));
        }
        self.counts.writes += 1;
        self.counts.bytes_written += data.len() as u64;
        Ok(0)
    }

    fn compare(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = BlockCommand::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let (at, data) = self.fetch_data(shared, sqe, &command)?;
        let namespace = shared.attached(self.function, command.nsid)?;
        check_bad(namespace, command.slba, u64::from(command.blocks()))?;
        let mut stored = vec![0; data.len()];
        namespace.media.read(at, &mut stored);
        if stored != data {
            return Err(Status::COMPARE_FAILURE.with_dnr());
        }
        self.counts.reads += 1;
        Ok(0)
    }

    fn without_data(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = BlockCommand::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let not_written = self.data_fault.not_written;
        let namespace = shared.attached_mut(self.function, command.nsid)?;
        let blocks = u64::from(command.blocks());
        let (at, len) = extent(namespace, command.slba, blocks)?;
        match command.opcode {
            NvmOpcode::VERIFY => check_bad(namespace, command.slba, blocks)?,
            opcode => {
                check_writable(namespace)?;
                if command.has(control::DEALLOCATE) && opcode == NvmOpcode::WRITE_UNCORRECTABLE {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                if not_written {
                    return Ok(0);
                }
                if opcode == NvmOpcode::WRITE_ZEROES {
                    namespace.media.zero(at, len);
                    forgive(namespace, command.slba, blocks);
                } else {
                    // At most 65536 at a time, and a driver may mark all it likes: what is kept is bounded.
                    if namespace.bad.len() < 1 << 20 {
                        namespace.bad.extend(command.slba..command.slba + blocks);
                    }
                }
            }
        }
        Ok(0)
    }

    fn dataset(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = DatasetManagement::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let rules = self.rules(&shared.config, true);
        let not_written = self.data_fault.not_written;
        if command.deallocates() {
            check_writable(shared.attached(self.function, command.nsid)?)?;
        }
        shared.attached(self.function, command.nsid)?;
        let mut data = vec![0; command.data_length()];
        let parts = self.bus.parts(
            sqe,
            data.len() as u64,
            TransferDirection::HostToController,
            &rules,
        )?;
        let moved = self.bus.gather(&parts, &mut data);
        moved.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let namespace = shared.attached_mut(self.function, command.nsid)?;
        let mut extents = Vec::new();
        for bytes in data.chunks_exact(size_of::<DsmRange>()) {
            let range = DsmRange::read_from_bytes(bytes).map_err(|_| Status::INTERNAL_ERROR)?;
            let (slba, blocks) = (range.slba.get(), u64::from(range.blocks.get()));
            extents.push((slba, blocks, extent(namespace, slba, blocks)?));
        }
        if command.deallocates() && !not_written {
            for (slba, blocks, (at, len)) in extents {
                namespace.media.zero(at, len);
                forgive(namespace, slba, blocks);
            }
        }
        Ok(0)
    }
}
