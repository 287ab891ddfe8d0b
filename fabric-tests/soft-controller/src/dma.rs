//! How a controller reaches memory: through the IOMMU, or in its own memory buffer; and the transfers of commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use homi_queue::{Iova, IovaRange, PageSize, Prp, PrpRules, Region, SglPart, SglRules, Unmapped};
use homi_spec::command::{Psdt, TransferDirection};
use homi_spec::{Sqe, Status};

use crate::config::CmbConfig;
use crate::iommu::{DmaFault, FaultReason, Hold, Iommu};

/// Most bytes that one command moves, whatever MDTS says: what bounds the model's memory.
const MAX_TRANSFER: u64 = 64 << 20;

/// Bytes that a controller moved over the bus, and in its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Read from memory: entries, lists and data.
    pub read: u64,
    /// Written to memory: entries and data.
    pub written: u64,
    /// Read from the controller memory buffer by the controller itself.
    pub cmb_read: u64,
    /// Written to the controller memory buffer by the controller itself.
    pub cmb_written: u64,
}

/// The controller memory buffer as its controller sees it.
#[derive(Debug, Clone)]
pub(crate) struct Cmb {
    pub(crate) config: CmbConfig,
    pub(crate) memory: Region,
    /// Where the controller answers, when CMBMSC says so.
    pub(crate) base: Option<u64>,
}

impl Cmb {
    /// How a range lies to the buffer.
    fn place(&self, at: Iova, len: u64) -> Place {
        let size = self.memory.len() as u64;
        let Some(range) = self.base.and_then(|base| IovaRange::new(Iova(base), size).ok()) else {
            return Place::Outside;
        };
        if let Some(offset) = range.locate(at, len)
            && let Ok(offset) = usize::try_from(offset)
        {
            return Place::Inside(offset);
        }
        let starts_before_end = at.0 < range.start().0.saturating_add(size);
        let ends_after_start = at.0.saturating_add(len) > range.start().0;
        if starts_before_end && ends_after_start {
            Place::Across
        } else {
            Place::Outside
        }
    }
}

enum Place {
    Outside,
    Inside(usize),
    Across,
}

/// What a controller may place in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CmbUse {
    SubmissionQueue,
    CompletionQueue,
    Lists,
    /// Data to the host.
    ReadData,
    /// Data from the host.
    WriteData,
}

/// Stores an entry as two words; false if the place is not aligned for that.
fn store_entry(memory: &Region, offset: usize, [first, second]: [u64; 2]) -> bool {
    let words = memory.words().filter(|_| offset.is_multiple_of(8));
    match words.and_then(|words| words.get(offset / 8..)) {
        Some([low, high, ..]) => {
            low.store(first.to_le(), Ordering::Relaxed);
            high.store(second.to_le(), Ordering::Release);
            true
        }
        _ => false,
    }
}

/// A transfer could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotTransferred;

/// A controller's way to memory.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) function: u16,
    pub(crate) iommu: Iommu,
    /// Shared with the holds, which mean nothing while it is off.
    pub(crate) master: Arc<AtomicBool>,
    pub(crate) cmb: Option<Cmb>,
    pub(crate) traffic: Traffic,
}

impl Bus {
    fn fault(&self, at: Iova, len: u64, write: bool, reason: FaultReason) -> Unmapped {
        self.iommu.fault(DmaFault {
            function: self.function,
            at,
            len,
            write,
            reason,
        });
        Unmapped { start: at, len }
    }

    pub(crate) fn is_master(&self) -> bool {
        self.master.load(Ordering::Acquire)
    }

    pub(crate) fn set_master(&self, on: bool) {
        self.master.store(on, Ordering::Release);
    }

    fn place(&self, at: Iova, len: u64) -> Place {
        self.cmb.as_ref().map_or(Place::Outside, |cmb| cmb.place(at, len))
    }

    /// Reads bytes.
    pub(crate) fn read(&mut self, at: Iova, to: &mut [u8]) -> Result<(), Unmapped> {
        let len = to.len() as u64;
        match self.place(at, len) {
            Place::Inside(offset) => {
                if let Some(cmb) = &self.cmb {
                    // Inside, as was just found.
                    let _ = cmb.memory.read(offset, to);
                }
                self.traffic.cmb_read += len;
                Ok(())
            }
            Place::Across => Err(self.fault(at, len, false, FaultReason::Unmapped)),
            Place::Outside if !self.is_master() => Err(self.fault(at, len, false, FaultReason::BusMasterOff)),
            Place::Outside => {
                let mut rest = to;
                let outcome = self.iommu.each(at, len, false, |memory, offset, bytes| {
                    let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes);
                    // Inside the mapping, as was just found.
                    let _ = memory.read(offset, now);
                    rest = later;
                });
                self.traffic.read += len;
                outcome.map_err(|(reason, _)| self.fault(at, len, false, reason))
            }
        }
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, at: Iova, from: &[u8]) -> Result<(), Unmapped> {
        let len = from.len() as u64;
        match self.place(at, len) {
            Place::Inside(offset) => {
                if let Some(cmb) = &self.cmb {
                    // Inside, as was just found.
                    let _ = cmb.memory.write(offset, from);
                }
                self.traffic.cmb_written += len;
                Ok(())
            }
            Place::Across => Err(self.fault(at, len, true, FaultReason::Unmapped)),
            Place::Outside if !self.is_master() => Err(self.fault(at, len, true, FaultReason::BusMasterOff)),
            Place::Outside => {
                let mut rest = from;
                let outcome = self.iommu.each(at, len, true, |memory, offset, bytes| {
                    let (now, later) = rest.split_at(bytes);
                    // Inside the mapping, as was just found.
                    let _ = memory.write(offset, now);
                    rest = later;
                });
                self.traffic.written += len;
                outcome.map_err(|(reason, _)| self.fault(at, len, true, reason))
            }
        }
    }

    /// Writes a completion queue entry so that whoever sees its second half sees its first too.
    pub(crate) fn write_entry(&mut self, at: Iova, entry: [u64; 2]) -> Result<(), Unmapped> {
        let written = match self.place(at, 16) {
            Place::Inside(offset) => {
                self.traffic.cmb_written += 16;
                self.cmb
                    .as_ref()
                    .is_some_and(|cmb| store_entry(&cmb.memory, offset, entry))
            }
            Place::Outside if self.is_master() => {
                let mut written = false;
                // Stored while the memory is known to be mapped.
                let outcome = self.iommu.each(at, 16, true, |memory, offset, bytes| {
                    written = bytes == 16 && store_entry(memory, offset, entry);
                });
                outcome.map_err(|(reason, _)| self.fault(at, 16, true, reason))?;
                self.traffic.written += 16;
                written
            }
            Place::Outside => return Err(self.fault(at, 16, true, FaultReason::BusMasterOff)),
            Place::Across => false,
        };
        if written {
            return Ok(());
        }
        let [first, second] = entry;
        self.write(at, &first.to_le_bytes())?;
        fence(Ordering::Release);
        self.write(Iova(at.0.wrapping_add(8)), &second.to_le_bytes())
    }

    /// Whether a range lies in the controller's buffer, whole or in part.
    pub(crate) fn touches_cmb(&self, at: Iova, len: u64) -> bool {
        !matches!(self.place(at, len), Place::Outside)
    }

    /// Checks that what lies in the buffer may lie there, and does so whole.
    pub(crate) fn check_cmb(&self, range: IovaRange, usage: CmbUse) -> Result<(), Status> {
        let allowed = match self.place(range.start(), range.len()) {
            Place::Outside => return Ok(()),
            Place::Across => false,
            Place::Inside(_) => self.cmb.as_ref().is_some_and(|cmb| cmb.config.allows(usage)),
        };
        if allowed {
            Ok(())
        } else {
            Err(Status::INVALID_CMB_USE)
        }
    }

    /// Notes that a queue lies there, so that unmapping it is noticed.
    pub(crate) fn hold(&self, range: IovaRange) -> Option<Hold> {
        (!self.touches_cmb(range.start(), range.len()))
            .then(|| self.iommu.hold(self.function, range, self.master.clone()))
    }

    /// Where the data of a command is, as its data pointer says.
    pub(crate) fn parts(
        &mut self,
        sqe: &Sqe,
        len: u64,
        direction: TransferDirection,
        rules: &TransferRules,
    ) -> Result<Vec<SglPart>, Status> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let max_len = rules.max_len.min(MAX_TRANSFER);
        let mut lists_in_cmb = false;
        let mut bad_lists = false;
        let mut read = |bus: &mut Self, at: Iova, to: &mut [u8]| {
            let place = IovaRange::new(at, to.len() as u64);
            lists_in_cmb |= bus.touches_cmb(at, to.len() as u64);
            bad_lists |= place.is_ok_and(|range| bus.check_cmb(range, CmbUse::Lists).is_err());
            bus.read(at, to)
        };
        let parts = match sqe.psdt() {
            Psdt::PRP => {
                let prps = PrpRules {
                    page: rules.page,
                    max_len,
                };
                let mut parts = Vec::new();
                prps.walk(
                    Prp::of(sqe),
                    len,
                    |at, to| read(self, at, to),
                    |range| SglPart::Data(range).append_to(&mut parts),
                )
                .map_err(|error| error.status())?;
                parts
            }
            Psdt::SGL | Psdt::SGL_METADATA_SEGMENT => {
                let sgls = rules.sgls.ok_or(Status::INVALID_FIELD.with_dnr())?;
                let sgls = SglRules { max_len, ..sgls };
                sgls.decode(sqe.sgl(), len, direction, |at, to| read(self, at, to))
                    .map_err(|error| error.status())?
            }
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        if bad_lists {
            return Err(Status::INVALID_CMB_USE.with_dnr());
        }
        let usage = match direction {
            TransferDirection::ControllerToHost => CmbUse::ReadData,
            _ => CmbUse::WriteData,
        };
        for part in &parts {
            if let SglPart::Data(range) = part {
                self.check_cmb(*range, usage).map_err(Status::with_dnr)?;
            }
        }
        Ok(parts)
    }

    /// Moves data from the host.
    pub(crate) fn gather(&mut self, parts: &[SglPart], to: &mut [u8]) -> Result<(), NotTransferred> {
        let mut rest = to;
        for part in parts {
            let len = usize::try_from(part.len()).map_or(rest.len(), |len| len.min(rest.len()));
            let (now, later) = rest.split_at_mut(len);
            if let SglPart::Data(range) = part {
                self.read(range.start(), now).map_err(|_| NotTransferred)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Moves data to the host.
    pub(crate) fn scatter(&mut self, parts: &[SglPart], from: &[u8]) -> Result<(), NotTransferred> {
        let mut rest = from;
        for part in parts {
            let len = usize::try_from(part.len()).map_or(rest.len(), |len| len.min(rest.len()));
            let (now, later) = rest.split_at(len);
            if let SglPart::Data(range) = part {
                self.write(range.start(), now).map_err(|_| NotTransferred)?;
            }
            rest = later;
        }
        Ok(())
    }
}

/// What holds for the data pointers of a queue's commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferRules {
    pub(crate) page: PageSize,
    pub(crate) max_len: u64,
    /// `None` where only PRPs are taken.
    pub(crate) sgls: Option<SglRules>,
}
