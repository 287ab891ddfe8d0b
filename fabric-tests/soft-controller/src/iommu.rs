//! The address space of the model: a table of mappings that every DMA of a controller goes through.
//!
//! Stricter than most hardware: only a mapping's own bytes are reachable (not the rest of its pages), access rights are kept, and
//! every access that is refused is recorded. Ranges that live queues and the data of delayed commands lie in are held, so that
//! unmapping them is noticed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use homi_pci::{Access, DmaBackend, DmaError, DmaSpace};
use homi_queue::{Iova, IovaRange, Region, Unmapped};

/// Faults and misuse that are kept one by one; further ones are only counted.
pub(crate) const KEPT: usize = 1024;

const PAGE: u64 = 4096;
/// Where x86 machines keep interrupt addresses: a hole, as real address spaces have one.
const HOLE: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;
const END: u64 = 1 << 39;

/// Why a controller did not reach memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// Nothing is mapped there.
    Unmapped,
    /// The mapping does not allow the access.
    Denied,
    /// Bus mastering is off.
    BusMasterOff,
}

/// One access that did not reach memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmaFault {
    /// Which function of its subsystem tried: 0 is the physical one.
    pub function: u16,
    /// First byte.
    pub at: Iova,
    /// Bytes.
    pub len: u64,
    /// The controller wanted to write.
    pub write: bool,
    /// What stood in the way.
    pub reason: FaultReason,
}

/// Memory was unmapped although a controller still uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyUnmap {
    /// What was unmapped.
    pub unmapped: IovaRange,
    /// What it is used for.
    pub used: IovaRange,
    /// By which function.
    pub function: u16,
}

#[derive(Debug)]
struct Entry {
    pages: IovaRange,
    /// The region's bytes.
    bytes: IovaRange,
    memory: Region,
    access: Access,
}

#[derive(Debug, Default)]
struct Records {
    faults: VecDeque<DmaFault>,
    early: Vec<EarlyUnmap>,
    held: BTreeMap<u64, (IovaRange, u16, Arc<AtomicBool>)>,
    next_hold: u64,
    refuse_maps: u64,
    refuse_unmaps: u64,
}

#[derive(Debug, Default)]
struct Inner {
    table: RwLock<BTreeMap<u64, Entry>>,
    records: Mutex<Records>,
    faults: AtomicU64,
}

/// The table itself. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Iommu(Arc<Inner>);

/// A range that a queue or the data of a delayed command lies in, until dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    iommu: Iommu,
    id: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.iommu.records().held.remove(&self.id);
    }
}

impl Iommu {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something in use lies there.
    pub(crate) fn hold(&self, function: u16, range: IovaRange, master: Arc<AtomicBool>) -> Hold {
        let mut records = self.records();
        let id = records.next_hold;
        records.next_hold += 1;
        records.held.insert(id, (range, function, master));
        Hold {
            iommu: self.clone(),
            id,
        }
    }

    /// Records an access that was refused.
    pub(crate) fn fault(&self, fault: DmaFault) {
        self.0.faults.fetch_add(1, Ordering::Relaxed);
        let mut records = self.records();
        if records.faults.len() < KEPT {
            records.faults.push_back(fault);
        }
    }

    /// Calls `access` with the memory behind each piece of a range, in order. The memory stays mapped meanwhile: an `unmap` of another
    /// thread waits.
    pub(crate) fn each(
        &self,
        at: Iova,
        len: u64,
        write: bool,
        mut access: impl FnMut(&Region, usize, usize),
    ) -> Result<(), (FaultReason, Unmapped)> {
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let unmapped = Unmapped { start: at, len };
        let mut done = 0_u64;
        while done < len {
            let here = at.checked_add(done).ok_or((FaultReason::Unmapped, unmapped))?;
            let entry = table.range(..=here.0).next_back().map(|(_, entry)| entry);
            let Some((entry, offset)) =
                entry.and_then(|entry| entry.bytes.locate(here, 1).map(|offset| (entry, offset)))
            else {
                return Err((FaultReason::Unmapped, unmapped));
            };
            let allowed = if write {
                entry.access.writes()
            } else {
                entry.access.reads()
            };
            if !allowed {
                return Err((FaultReason::Denied, unmapped));
            }
            let part = (entry.bytes.len() - offset).min(len - done);
            let (Ok(offset), Ok(bytes)) = (usize::try_from(offset), usize::try_from(part)) else {
                return Err((FaultReason::Unmapped, unmapped));
            };
            access(&entry.memory, offset, bytes);
            done += part;
        }
        Ok(())
    }

    /// The memory behind a range that lies in one mapping.
    pub(crate) fn memory(&self, at: Iova, len: u64) -> Option<(Region, usize)> {
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let (_, entry) = table.range(..=at.0).next_back()?;
        let offset = entry.bytes.locate(at, len)?;
        Some((entry.memory.clone(), usize::try_from(offset).ok()?))
    }
}

impl DmaBackend for Iommu {
    fn map(&self, at: IovaRange, memory: &Region, access: Access) -> Result<(), DmaError> {
        let refused = |hint| DmaError::Refused {
            len: at.len(),
            hint,
            source: io::Error::from(io::ErrorKind::InvalidInput),
        };
        {
            let mut records = self.records();
            if records.refuse_maps > 0 {
                records.refuse_maps -= 1;
                return Err(refused("the model was told to refuse it"));
            }
        }
        let into_page = memory.host_address() as u64 % PAGE;
        let bytes = at
            .part(into_page, memory.len() as u64)
            .ok_or_else(|| refused("the range is shorter than the region"))?;
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        let overlaps = |entry: &Entry| {
            entry.pages.start().0 < at.start().0.saturating_add(at.len())
                && at.start().0 < entry.pages.start().0.saturating_add(entry.pages.len())
        };
        if !at.start().is_aligned(PAGE) || !at.len().is_multiple_of(PAGE) || table.values().any(overlaps) {
            return Err(refused("the range is not aligned or overlaps another"));
        }
        let entry = Entry {
            pages: at,
            bytes,
            memory: memory.clone(),
            access,
        };
        table.insert(at.start().0, entry);
        Ok(())
    }

    fn unmap(&self, at: IovaRange) -> Result<(), DmaError> {
        let refused = |hint| DmaError::Refused {
            len: at.len(),
            hint,
            source: io::Error::from(io::ErrorKind::InvalidInput),
        };
        {
            let mut records = self.records();
            if records.refuse_unmaps > 0 {
                records.refuse_unmaps -= 1;
                return Err(refused("the model was told to refuse it"));
            }
            let overlaps = |used: &IovaRange| {
                used.start().0 < at.start().0.saturating_add(at.len())
                    && at.start().0 < used.start().0.saturating_add(used.len())
            };
            let early: Vec<_> = records
                .held
                .values()
                .filter(|(used, _, master)| overlaps(used) && master.load(Ordering::Acquire))
                .map(|(used, function, _)| EarlyUnmap {
                    unmapped: at,
                    used: *used,
                    function: *function,
                })
                .collect();
            let room = KEPT.saturating_sub(records.early.len());
            records.early.extend(early.into_iter().take(room));
        }
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        match table.get(&at.start().0) {
            Some(entry) if entry.pages == at => {
                table.remove(&at.start().0);
                Ok(())
            }
            _ => Err(refused("there is no such mapping")),
        }
    }

    fn usable(&self) -> Vec<IovaRange> {
        [0..HOLE.start, HOLE.end..END]
            .into_iter()
            .filter_map(|range| IovaRange::new(Iova(range.start), range.end - range.start).ok())
            .collect()
    }

    fn page(&self) -> u64 {
        PAGE
    }
}

/// An address space of the model and what happened in it. Cloning shares it; give one to several controllers to have them share it.
#[derive(Debug, Clone)]
pub struct SoftSpace {
    pub(crate) iommu: Iommu,
    space: DmaSpace,
}

impl Default for SoftSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl SoftSpace {
    /// An empty address space of 512 GiB with a hole below 4 GiB.
    #[must_use]
    pub fn new() -> Self {
        let iommu = Iommu::default();
        let space = DmaSpace::new(Box::new(iommu.clone()));
        Self { iommu, space }
    }

    /// What drivers map with.
    #[must_use]
    pub fn dma(&self) -> &DmaSpace {
        &self.space
    }

    /// Accesses that did not reach memory, the first 1024 of them.
    #[must_use]
    pub fn faults(&self) -> Vec<DmaFault> {
        self.iommu.records().faults.iter().cloned().collect()
    }

    /// How many accesses did not reach memory.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.iommu.0.faults.load(Ordering::Relaxed)
    }

    /// Mappings that were taken back although a queue lay in them, or the data of a command that a fault delays, of a controller that may
    /// reach memory; the first 1024.
    #[must_use]
    pub fn early_unmaps(&self) -> Vec<EarlyUnmap> {
        self.iommu.records().early.clone()
    }

    /// How many mappings there are.
    #[must_use]
    pub fn mappings(&self) -> usize {
        let table = self.iommu.0.table.read().unwrap_or_else(PoisonError::into_inner);
        table.len()
    }

    /// Refuses this many of the mappings asked for from now on.
    pub fn refuse_maps(&self, count: u64) {
        self.iommu.records().refuse_maps = count;
    }

    /// Refuses to take back this many mappings from now on.
    pub fn refuse_unmaps(&self, count: u64) {
        self.iommu.records().refuse_unmaps = count;
    }
}
