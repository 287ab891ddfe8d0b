//! [`Bar`]: the controller's registers by name. A function that is gone reads as all ones, which is an error here and nowhere else.

use std::fmt;
use std::sync::Arc;

use homi_pci::Registers;
use homi_spec::controller::{Cap, Cc, Csts, Version};
use homi_spec::registers::{
    Aqa, CmbLoc, CmbMsc, CmbSz, Crto, completion_doorbell, offset, submission_doorbell,
};

use crate::error::NvmeError;

/// The registers of BAR 0.
#[derive(Clone)]
pub(crate) struct Bar(Arc<dyn Registers>);

impl Bar {
    pub(crate) fn new(registers: Arc<dyn Registers>) -> Result<Self, NvmeError> {
        if registers.len() < (offset::DOORBELLS + 8) as u64 {
            return Err(NvmeError::Incompatible {
                what: "the length of bar 0",
                found: registers.len().to_string(),
                needed: "at least 4104 bytes",
            });
        }
        Ok(Self(registers))
    }

    fn read32(&self, at: usize) -> u32 {
        self.0.read32(at as u64)
    }

    fn write32(&self, at: usize, value: u32) {
        self.0.write32(at as u64, value);
    }

    /// The registers themselves, for doorbells.
    pub(crate) fn registers(&self) -> Arc<dyn Registers> {
        Arc::clone(&self.0)
    }

    pub(crate) fn cap(&self) -> Result<Cap, NvmeError> {
        match self.0.read64(offset::CAP as u64) {
            u64::MAX => Err(NvmeError::Removed),
            cap => Ok(Cap(cap)),
        }
    }

    pub(crate) fn version(&self) -> Version {
        Version(self.read32(offset::VS))
    }

    pub(crate) fn cc(&self) -> Cc {
        Cc(self.read32(offset::CC))
    }

    pub(crate) fn set_cc(&self, cc: Cc) {
        self.write32(offset::CC, cc.0);
    }

    /// The status, or that the function is gone: no controller has all bits set, reserved ones included.
    pub(crate) fn csts(&self) -> Result<Csts, NvmeError> {
        match self.read32(offset::CSTS) {
            u32::MAX => Err(NvmeError::Removed),
            csts => Ok(Csts(csts)),
        }
    }

    pub(crate) fn crto(&self) -> Crto {
        Crto(self.read32(offset::CRTO))
    }

    pub(crate) fn set_admin_queues(&self, aqa: Aqa, submission: u64, completion: u64) {
        self.write32(offset::AQA, aqa.0);
        self.0.write64(offset::ASQ as u64, submission);
        self.0.write64(offset::ACQ as u64, completion);
    }

    pub(crate) fn cmb(&self) -> (CmbLoc, CmbSz) {
        (
            CmbLoc(self.read32(offset::CMBLOC)),
            CmbSz(self.read32(offset::CMBSZ)),
        )
    }

    pub(crate) fn set_cmb(&self, control: CmbMsc) {
        self.0.write64(offset::CMBMSC as u64, control.0);
    }

    /// Whether the controller refused the address that it was given for its memory (CMBSTS.CBAI).
    pub(crate) fn cmb_address_invalid(&self) -> bool {
        self.read32(offset::CMBSTS) & 1 != 0
    }

    pub(crate) fn ring_submission(&self, qid: u16, stride: u32, tail: u16) {
        self.write32(submission_doorbell(qid, stride), tail.into());
    }

    pub(crate) fn ring_completion(&self, qid: u16, stride: u32, head: u16) {
        self.write32(completion_doorbell(qid, stride), head.into());
    }

    /// The largest queue identifier whose doorbells lie in the registers.
    pub(crate) fn last_queue(&self, stride: u32) -> u16 {
        let doorbells = self.0.len().saturating_sub(offset::DOORBELLS as u64);
        let queues = (doorbells / (2 * u64::from(stride))).saturating_sub(1);
        u16::try_from(queues).unwrap_or(u16::MAX)
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
