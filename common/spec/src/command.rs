//! Submission and completion queue entries, and the opcodes. Base 2.0 §3.3.3.
//!
//! An entry holds any 64 or 16 bytes; accessors name its fields. What a command's dwords 10 to 15 mean is told
//! by the modules of the command sets: [`crate::admin`], [`crate::fabrics`], [`crate::feature`], [`crate::identify`],
//! [`crate::log`] and [`crate::nvm`].

use crate::macros::open_enum;
use crate::sgl::Sgl;
use crate::status::Status;
use core::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Opcodes of the admin queue: Base 2.0 §5, figure "Opcodes for Admin Commands".
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct AdminOpcode(u8) {
        /// Delete I/O Submission Queue (PCIe only).
        DELETE_IO_SQ = 0x00;
        /// Create I/O Submission Queue (PCIe only).
        CREATE_IO_SQ = 0x01;
        /// Get Log Page.
        GET_LOG_PAGE = 0x02;
        /// Delete I/O Completion Queue (PCIe only).
        DELETE_IO_CQ = 0x04;
        /// Create I/O Completion Queue (PCIe only).
        CREATE_IO_CQ = 0x05;
        /// Identify.
        IDENTIFY = 0x06;
        /// Abort.
        ABORT = 0x08;
        /// Set Features.
        SET_FEATURES = 0x09;
        /// Get Features.
        GET_FEATURES = 0x0a;
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c;
        /// Namespace Management.
        NAMESPACE_MANAGEMENT = 0x0d;
        /// Firmware Commit.
        FIRMWARE_COMMIT = 0x10;
        /// Firmware Image Download.
        FIRMWARE_IMAGE_DOWNLOAD = 0x11;
        /// Device Self-test.
        DEVICE_SELF_TEST = 0x14;
        /// Namespace Attachment.
        NAMESPACE_ATTACHMENT = 0x15;
        /// Keep Alive.
        KEEP_ALIVE = 0x18;
        /// Directive Send.
        DIRECTIVE_SEND = 0x19;
        /// Directive Receive.
        DIRECTIVE_RECEIVE = 0x1a;
        /// Virtualization Management.
        VIRTUALIZATION_MANAGEMENT = 0x1c;
        /// NVMe-MI Send.
        NVME_MI_SEND = 0x1d;
        /// NVMe-MI Receive.
        NVME_MI_RECEIVE = 0x1e;
        /// Capacity Management.
        CAPACITY_MANAGEMENT = 0x20;
        /// Lockdown.
        LOCKDOWN = 0x24;
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER_CONFIG = 0x7c;
        /// Fabrics commands: byte 4 says which ([`FabricsType`]).
        FABRICS = 0x7f;
        /// Format NVM.
        FORMAT_NVM = 0x80;
        /// Security Send.
        SECURITY_SEND = 0x81;
        /// Security Receive.
        SECURITY_RECEIVE = 0x82;
        /// Sanitize.
        SANITIZE = 0x84;
        /// Get LBA Status.
        GET_LBA_STATUS = 0x86;
    }
}
const _: () = assert!(size_of::<AdminOpcode>() == 1);

open_enum! {
    /// Opcodes of an I/O queue of the NVM command set: NVM Command Set 1.0 §3.2 and Base 2.0 §7.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct NvmOpcode(u8) {
        /// Flush.
        FLUSH = 0x00;
        /// Write.
        WRITE = 0x01;
        /// Read.
        READ = 0x02;
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04;
        /// Compare.
        COMPARE = 0x05;
        /// Write Zeroes.
        WRITE_ZEROES = 0x08;
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09;
        /// Verify.
        VERIFY = 0x0c;
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d;
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e;
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11;
        /// I/O Management Receive.
        IO_MANAGEMENT_RECEIVE = 0x12;
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15;
        /// Cancel.
        CANCEL = 0x18;
        /// Copy.
        COPY = 0x19;
        /// I/O Management Send.
        IO_MANAGEMENT_SEND = 0x1d;
        /// Zone Management Send (zoned command set).
        ZONE_MANAGEMENT_SEND = 0x79;
        /// Zone Management Receive (zoned command set).
        ZONE_MANAGEMENT_RECEIVE = 0x7a;
        /// Zone Append (zoned command set).
        ZONE_APPEND = 0x7d;
        /// Fabrics commands, which I/O queues carry too (Connect, Disconnect, authentication).
        FABRICS = 0x7f;
    }
}
const _: () = assert!(size_of::<NvmOpcode>() == 1);

open_enum! {
    /// Fabrics command types, byte 4 of a command with opcode 7Fh: Base 2.0 §6.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct FabricsType(u8) {
        /// Property Set (§6.6).
        PROPERTY_SET = 0x00;
        /// Connect (§6.3).
        CONNECT = 0x01;
        /// Property Get (§6.5).
        PROPERTY_GET = 0x04;
        /// Authentication Send (§6.2).
        AUTHENTICATION_SEND = 0x05;
        /// Authentication Receive (§6.1).
        AUTHENTICATION_RECEIVE = 0x06;
        /// Disconnect (§6.4).
        DISCONNECT = 0x08;
    }
}
const _: () = assert!(size_of::<FabricsType>() == 1);

/// The opcode that every fabrics command carries: Base 2.0 §6.
pub struct FabricsOpcode;

impl FabricsOpcode {
    /// 7Fh.
    pub const FABRICS: u8 = 0x7f;
}

open_enum! {
    /// How a command's data pointer is to be read: bits 7:6 of byte 1. Base 2.0 §3.3.3.1.
    pub struct Psdt(u8) {
        /// Physical region pages.
        PRP = 0x0;
        /// An SGL descriptor; the metadata pointer addresses one contiguous buffer.
        SGL = 0x1;
        /// An SGL descriptor; the metadata pointer addresses an SGL segment.
        SGL_METADATA_SEGMENT = 0x2;
    }
}

open_enum! {
    /// Whether a command is half of a fused pair: bits 1:0 of byte 1. Base 2.0 §3.3.3.1.
    pub struct Fuse(u8) {
        /// A command by itself.
        NORMAL = 0x0;
        /// The first of a pair.
        FIRST = 0x1;
        /// The second of a pair.
        SECOND = 0x2;
    }
}

/// Which way a command moves data: bits 1:0 of its opcode. Base 2.0 §5 and §7.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum TransferDirection {
    /// 00b: no data.
    None,
    /// 01b: as in Write.
    HostToController,
    /// 10b: as in Read.
    ControllerToHost,
    /// 11b: both ways; no command of the NVM command set uses it.
    Bidirectional,
}

impl TransferDirection {
    /// The direction that an opcode's low bits state. For fabrics commands pass the command type, which follows
    /// the same rule. A command may still transfer nothing, as a feature without a data structure.
    pub const fn of(opcode: u8) -> Self {
        match opcode & 0x3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

/// Namespace identifier that addresses every namespace of a controller: Base 2.0 §3.2.1.
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// A submission queue entry: 64 bytes. Base 2.0 §3.3.3.1, figure "Common Command Format".
#[derive(Copy, Clone, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// Opcode: [`AdminOpcode`] or [`NvmOpcode`], by queue.
    pub opcode: u8,
    /// Fused operation (b1:0) and PSDT (b7:6).
    pub flags: u8,
    /// Command identifier, unique among the queue's outstanding commands.
    pub cid: U16,
    /// Namespace identifier; for fabrics commands its first byte is the command type.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer: two PRP entries or one SGL descriptor, as PSDT says.
    pub dptr: [u8; 16],
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}
const _: () = assert!(size_of::<Sqe>() == 64);

/// Bytes of a submission queue entry.
pub const SQE_SIZE: usize = size_of::<Sqe>();

impl Sqe {
    /// An entry of zeroes with this opcode and namespace.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            nsid: U32::new(nsid),
            ..Self::default()
        }
    }

    /// The opcode as one of the admin queue.
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.opcode)
    }

    /// The opcode as one of an I/O queue of the NVM command set.
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode(self.opcode)
    }

    /// The fabrics command type (byte 4), or `None` when the opcode is not 7Fh.
    pub fn fabrics_type(&self) -> Option<FabricsType> {
        (self.opcode == FabricsOpcode::FABRICS).then(|| FabricsType((self.nsid.get() & 0xff) as u8))
    }

    /// Whether the entry is half of a fused pair.
    pub const fn fuse(&self) -> Fuse {
        Fuse(self.flags & 0x3)
    }

    /// Marks the entry as half of a fused pair.
    pub const fn set_fuse(&mut self, fuse: Fuse) {
        self.flags = (self.flags & !0x3) | (fuse.0 & 0x3);
    }

    /// How the data pointer is to be read.
    pub const fn psdt(&self) -> Psdt {
        Psdt(self.flags >> 6)
    }

    /// Sets how the data pointer is to be read, without touching it.
    pub const fn set_psdt(&mut self, psdt: Psdt) {
        self.flags = (self.flags & 0x3f) | (psdt.0 << 6);
    }

    /// The data pointer as an SGL descriptor, whatever PSDT says: check [`Sqe::psdt`] on PCIe.
    pub const fn sgl(&self) -> Sgl {
        Sgl(self.dptr)
    }

    /// Points the data pointer at this descriptor and sets PSDT to [`Psdt::SGL`], which fabrics require.
    pub const fn set_sgl(&mut self, sgl: Sgl) {
        self.dptr = sgl.0;
        self.set_psdt(Psdt::SGL);
    }

    /// The first PRP entry.
    pub const fn prp1(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.dptr;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// The second PRP entry.
    pub const fn prp2(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.dptr;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Sets both PRP entries and PSDT to [`Psdt::PRP`].
    pub fn set_prp(&mut self, prp1: u64, prp2: u64) {
        let entries = [U64::new(prp1), U64::new(prp2)];
        self.dptr = zerocopy::transmute!(entries);
        self.set_psdt(Psdt::PRP);
    }

    /// Dwords 10 and 11 as a starting LBA.
    pub fn lba(&self) -> u64 {
        u64::from(self.cdw10.get()) | (u64::from(self.cdw11.get()) << 32)
    }

    /// Sets dwords 10 and 11 to a starting LBA.
    pub fn set_lba(&mut self, lba: u64) {
        self.cdw10 = U32::new((lba & 0xffff_ffff) as u32);
        self.cdw11 = U32::new((lba >> 32) as u32);
    }

    /// Sets the number of logical blocks, keeping the rest of dword 12.
    ///
    /// # Errors
    /// A number outside 1 to 65536.
    pub fn set_blocks(&mut self, blocks: u32) -> Result<(), crate::nvm::BlockCountError> {
        let nlb_z = blocks
            .checked_sub(1)
            .filter(|nlb_z| *nlb_z <= 0xffff)
            .ok_or(crate::nvm::BlockCountError { blocks })?;
        self.cdw12 = U32::new((self.cdw12.get() & !0xffff) | nlb_z);
        Ok(())
    }

    /// Number of logical blocks (1 to 65536): dword 12 bits 15:0, which are zero-based.
    pub fn blocks(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    /// Force Unit Access: dword 12 bit 30.
    pub fn fua(&self) -> bool {
        self.cdw12.get() & (1 << 30) != 0
    }

    /// Limited Retry: dword 12 bit 31.
    pub fn limited_retry(&self) -> bool {
        self.cdw12.get() & (1 << 31) != 0
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:#04x}", self.opcode))
            .field("flags", &format_args!("{:#04x}", self.flags))
            .field("cid", &format_args!("{:#06x}", self.cid.get()))
            .field("nsid", &format_args!("{:#x}", self.nsid.get()))
            .field("dptr", &format_args!("{:02x?}", self.dptr))
            .field("cdw10", &format_args!("{:#x}", self.cdw10.get()))
            .field("cdw11", &format_args!("{:#x}", self.cdw11.get()))
            .field("cdw12", &format_args!("{:#x}", self.cdw12.get()))
            .field("cdw13", &format_args!("{:#x}", self.cdw13.get()))
            .field("cdw14", &format_args!("{:#x}", self.cdw14.get()))
            .field("cdw15", &format_args!("{:#x}", self.cdw15.get()))
            .finish_non_exhaustive()
    }
}

/// A completion queue entry: 16 bytes. Base 2.0 §3.3.3.2.
#[derive(Copy, Clone, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// Command specific result.
    pub dw0: U32,
    /// Command specific result, upper half where it has 64 bits.
    pub dw1: U32,
    /// Head of the submission queue: how far the controller has consumed it.
    pub sq_head: U16,
    /// Submission queue that the command came from; reserved over fabrics.
    pub sq_id: U16,
    /// Identifier of the completed command.
    pub cid: U16,
    /// Phase tag (b0) and status (b15:1).
    pub status: U16,
}
const _: () = assert!(size_of::<Cqe>() == 16);

/// Bytes of a completion queue entry.
pub const CQE_SIZE: usize = size_of::<Cqe>();

impl Cqe {
    /// A successful completion of this command; the phase tag is clear, as over fabrics.
    pub fn new(cid: u16) -> Self {
        Self {
            cid: U16::new(cid),
            ..Self::default()
        }
    }

    /// The status without the phase tag.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// Sets the status, keeping the phase tag.
    pub fn set_status(&mut self, status: Status) {
        self.status = U16::new(status.to_wire(self.phase()));
    }

    /// The same entry with this status; the phase tag stays.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.set_status(status);
        self
    }

    /// The phase tag: which pass over the ring wrote this entry. Base 2.0 §3.3.3.2.2.
    pub fn phase(&self) -> bool {
        self.status.get() & 1 != 0
    }

    /// The same entry with this phase tag.
    #[must_use]
    pub fn with_phase(mut self, phase: bool) -> Self {
        self.status = U16::new(self.status().to_wire(phase));
        self
    }

    /// Dwords 0 and 1 as one value.
    pub fn result64(&self) -> u64 {
        u64::from(self.dw0.get()) | (u64::from(self.dw1.get()) << 32)
    }

    /// The same entry with this 64-bit result.
    #[must_use]
    pub fn with_result64(mut self, result: u64) -> Self {
        self.dw0 = U32::new((result & 0xffff_ffff) as u32);
        self.dw1 = U32::new((result >> 32) as u32);
        self
    }
}

impl fmt::Debug for Cqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cqe")
            .field("cid", &format_args!("{:#06x}", self.cid.get()))
            .field("status", &self.status())
            .field("phase", &self.phase())
            .field("result", &format_args!("{:#x}", self.result64()))
            .field("sq_head", &self.sq_head.get())
            .field("sq_id", &self.sq_id.get())
            .finish()
    }
}
