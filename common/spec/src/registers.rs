//! Offsets of the controller's registers on PCIe, and those registers that fabrics do not have. Base 2.0 §3.1.3.
//!
//! Not implemented: boot partition and persistent memory region registers beyond their offsets.

use core::fmt;

/// Register offsets in bytes from the start of BAR 0. Base 2.0 §3.1.3, figure "Property Definition".
pub mod offset {
    /// Controller Capabilities, 8 bytes: [`crate::controller::Cap`].
    pub const CAP: usize = 0x00;
    /// Version: [`crate::controller::Version`].
    pub const VS: usize = 0x08;
    /// Interrupt Mask Set.
    pub const INTMS: usize = 0x0c;
    /// Interrupt Mask Clear.
    pub const INTMC: usize = 0x10;
    /// Controller Configuration: [`crate::controller::Cc`].
    pub const CC: usize = 0x14;
    /// Controller Status: [`crate::controller::Csts`].
    pub const CSTS: usize = 0x1c;
    /// NVM Subsystem Reset: writing [`super::SUBSYSTEM_RESET`] resets.
    pub const NSSR: usize = 0x20;
    /// Admin Queue Attributes: [`super::Aqa`].
    pub const AQA: usize = 0x24;
    /// Admin submission queue base address, 8 bytes.
    pub const ASQ: usize = 0x28;
    /// Admin completion queue base address, 8 bytes.
    pub const ACQ: usize = 0x30;
    /// Controller memory buffer location: [`super::CmbLoc`].
    pub const CMBLOC: usize = 0x38;
    /// Controller memory buffer size: [`super::CmbSz`].
    pub const CMBSZ: usize = 0x3c;
    /// Boot partition information.
    pub const BPINFO: usize = 0x40;
    /// Boot partition read select.
    pub const BPRSEL: usize = 0x44;
    /// Boot partition memory buffer location, 8 bytes.
    pub const BPMBL: usize = 0x48;
    /// Controller memory buffer memory space control, 8 bytes: [`super::CmbMsc`].
    pub const CMBMSC: usize = 0x50;
    /// Controller memory buffer status: b0 the base address is invalid.
    pub const CMBSTS: usize = 0x58;
    /// Controller memory buffer elasticity buffer size.
    pub const CMBEBS: usize = 0x5c;
    /// Controller memory buffer sustained write throughput.
    pub const CMBSWTP: usize = 0x60;
    /// NVM Subsystem Shutdown.
    pub const NSSD: usize = 0x64;
    /// Controller Ready Timeouts: [`super::Crto`].
    pub const CRTO: usize = 0x68;
    /// Persistent memory region capabilities.
    pub const PMRCAP: usize = 0xe00;
    /// Persistent memory region control.
    pub const PMRCTL: usize = 0xe04;
    /// Persistent memory region status.
    pub const PMRSTS: usize = 0xe08;
    /// Persistent memory region memory space control, lower half.
    pub const PMRMSCL: usize = 0xe14;
    /// Persistent memory region memory space control, upper half.
    pub const PMRMSCU: usize = 0xe18;
    /// First doorbell: the admin submission queue's tail.
    pub const DOORBELLS: usize = 0x1000;
}

/// What NSSR takes to reset the NVM subsystem: "NVMe". Base 2.0 §3.1.3.7.
pub const SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

/// Offset of a submission queue's tail doorbell in bytes, for a stride of CAP in bytes. PCIe Transport 1.0 §3.1.2.
pub const fn submission_doorbell(qid: u16, stride: u32) -> usize {
    offset::DOORBELLS + 2 * qid as usize * stride as usize
}

/// Offset of a completion queue's head doorbell in bytes, for a stride of CAP in bytes. PCIe Transport 1.0 §3.1.2.
pub const fn completion_doorbell(qid: u16, stride: u32) -> usize {
    offset::DOORBELLS + (2 * qid as usize + 1) * stride as usize
}

/// Admin Queue Attributes (AQA, 4 bytes). Base 2.0 §3.1.3.8.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Default)]
pub struct Aqa(pub u32);

impl Aqa {
    /// Queues of these sizes, zero-based; 12 bits each exist.
    pub const fn new(asqs_z: u16, acqs_z: u16) -> Self {
        Self((asqs_z as u32 & 0xfff) | ((acqs_z as u32 & 0xfff) << 16))
    }

    /// Admin submission queue size, zero-based.
    pub const fn asqs_z(self) -> u16 {
        (self.0 & 0xfff) as u16
    }

    /// Admin completion queue size, zero-based.
    pub const fn acqs_z(self) -> u16 {
        ((self.0 >> 16) & 0xfff) as u16
    }
}

/// Controller memory buffer location (CMBLOC, 4 bytes). Base 2.0 §3.1.3.11.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Default)]
pub struct CmbLoc(pub u32);

impl CmbLoc {
    /// Which BAR holds the buffer (BIR): 0, or 2 to 5.
    pub const fn bar(self) -> u8 {
        (self.0 & 0x7) as u8
    }

    /// Offset of the buffer in the BAR (OFST), in units of [`CmbSz::unit`].
    pub const fn offset_units(self) -> u32 {
        self.0 >> 12
    }

    /// Offset of the buffer in the BAR in bytes, or `None` for a reserved unit.
    pub fn offset(self, size: CmbSz) -> Option<u64> {
        size.unit()?.checked_mul(u64::from(self.offset_units()))
    }
}

/// Controller memory buffer size (CMBSZ, 4 bytes). Base 2.0 §3.1.3.12.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct CmbSz(pub u32);

impl CmbSz {
    /// Submission queues may be placed in the buffer (SQS).
    pub const fn submission_queues(self) -> bool {
        self.0 & (1 << 0) != 0
    }

    /// Completion queues may be placed in the buffer (CQS).
    pub const fn completion_queues(self) -> bool {
        self.0 & (1 << 1) != 0
    }

    /// PRP lists and SGL segments may be placed in the buffer (LISTS).
    pub const fn lists(self) -> bool {
        self.0 & (1 << 2) != 0
    }

    /// Data of commands that move data to the host may be placed in the buffer (RDS).
    pub const fn read_data(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// Data of commands that move data to the controller may be placed in the buffer (WDS).
    pub const fn write_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Bytes of a unit (SZU): 4 KiB to 64 GiB, or `None` for a reserved value.
    pub const fn unit(self) -> Option<u64> {
        match (self.0 >> 8) & 0xf {
            szu @ 0..=6 => Some(4096 << (4 * szu)),
            _ => None,
        }
    }

    /// Bytes of the buffer, or `None` for a reserved unit. 0 means that there is none.
    pub fn size(self) -> Option<u64> {
        self.unit()?.checked_mul(u64::from(self.0 >> 12))
    }
}

impl fmt::Debug for CmbSz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmbSz")
            .field("size", &self.size())
            .field("submission_queues", &self.submission_queues())
            .field("completion_queues", &self.completion_queues())
            .field("lists", &self.lists())
            .field("read_data", &self.read_data())
            .field("write_data", &self.write_data())
            .finish()
    }
}

/// Controller memory buffer memory space control (CMBMSC, 8 bytes). Base 2.0 §3.1.3.16.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Default)]
pub struct CmbMsc(pub u64);

impl CmbMsc {
    /// Capability registers enabled (CRE): CMBLOC and CMBSZ are readable.
    pub const CRE: u64 = 1 << 0;
    /// Controller memory space enable (CMSE): the controller decodes the base address.
    pub const CMSE: u64 = 1 << 1;

    /// The buffer's base address as the controller sees it, with both enables; the low 12 bits of `base` are dropped.
    pub const fn enabled_at(base: u64) -> Self {
        Self((base & !0xfff) | Self::CRE | Self::CMSE)
    }
}

/// Controller Ready Timeouts (CRTO, 4 bytes). Base 2.0 §3.1.3.21.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Default)]
pub struct Crto(pub u32);

impl Crto {
    /// Longest time to become ready with media (CRWMT), in units of 500 ms.
    pub const fn with_media_500ms(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// Longest time to become ready independent of media (CRIMT), in units of 500 ms.
    pub const fn independent_of_media_500ms(self) -> u16 {
        (self.0 >> 16) as u16
    }
}
