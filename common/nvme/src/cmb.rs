//! [`Cmb`]: the controller's memory buffer, for submission queues and for data that never touches host memory.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homi_pci::{IovaAllocator, Mapping, Unsupported};
use homi_queue::{Iova, IovaRange, Region};
use homi_spec::registers::{CmbMsc, CmbSz};

use crate::controller::Controller;
use crate::error::NvmeError;
use crate::life::{Inner, Life};
use crate::pins::Mapped;

/// Parts begin at multiples of this many bytes: what submission queues need.
const UNIT: u64 = 4096;

#[derive(Debug)]
struct Shared {
    mapping: Mapping,
    size: CmbSz,
    free: Mutex<Free>,
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Free {
    allocator: IovaAllocator,
    /// Parts that were given back while somebody still had clones of their region.
    lingering: Vec<(Region, IovaRange)>,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing panics half way through a change.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buffer as the controller's life knows it: what has to be told to the controller after a reset.
#[derive(Debug)]
pub(crate) struct CmbState {
    handle: Cmb,
    /// Makes data in the buffer reachable for all queues.
    _mapped: Mapped,
    registers: (u32, u32),
}

/// A controller's memory buffer, turned on. Cloning shares it.
///
/// Data that lies in it ([`CmbMemory::region`]) is transferred inside the controller: a read lands there without touching host memory, and
/// another device can fetch it from there.
#[derive(Debug, Clone)]
pub struct Cmb(Arc<Shared>);

impl Cmb {
    /// What the buffer may hold (CMBSZ).
    #[must_use]
    pub fn support(&self) -> CmbSz {
        self.0.size
    }

    /// Changes before the controller is stopped, after which nobody knows what is in the buffer: who put data there or had it put there
    /// looks whether this is what it was then.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn begin_epoch(&self) {
        self.0.epoch.fetch_add(1, Ordering::Release);
    }

    /// The whole buffer as memory, to be mapped for other devices.
    #[must_use]
    pub fn memory(&self) -> &Region {
        self.0.mapping.memory()
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.0.free().allocator.free_bytes()
    }

    /// Takes a part of `len` bytes, rounded up to 4 KiB.
    ///
    /// # Errors
    /// [`NvmeError::TooLong`] if there is no such part.
    pub fn allocate(&self, len: usize) -> Result<CmbMemory, NvmeError> {
        let mut free = self.0.free();
        let Free { allocator, lingering } = &mut *free;
        lingering.retain(|(region, range)| {
            let in_use = !region.is_only_clone();
            if !in_use {
                allocator.give_back(*range);
            }
            in_use
        });
        let max = allocator.free_bytes();
        let too_long = NvmeError::TooLong { len: len as u64, max };
        let Some(wanted) = (len as u64).checked_next_multiple_of(UNIT).filter(|len| *len > 0) else {
            return Err(too_long);
        };
        let Some(range) = allocator.take(wanted, UNIT, 0) else {
            return Err(too_long);
        };
        let whole = self.0.mapping.range();
        let at = range.start().offset_from(whole.start()).unwrap_or(0);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let region = self.memory().part(at..at.saturating_add(len));
        let region = match region {
            Ok(region) => region,
            Err(error) => {
                allocator.give_back(range);
                return Err(error.into());
            }
        };
        Ok(CmbMemory {
            cmb: self.clone(),
            region: Some(region.clone()),
            shown: region,
            range,
        })
    }
}

/// Part of a controller's memory buffer. It is given back when this and all clones of its region are dropped.
#[derive(Debug)]
pub struct CmbMemory {
    cmb: Cmb,
    /// The clone that stays, to see whether others do.
    region: Option<Region>,
    shown: Region,
    range: IovaRange,
}

impl CmbMemory {
    /// The memory. It is uncached: copy in bulk, and write more than you read.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.shown
    }

    /// Where the controller finds it.
    #[must_use]
    pub fn address(&self) -> Iova {
        self.range.start()
    }

    /// Keeps it for ever.
    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

impl Drop for CmbMemory {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            // The clone that was shown goes after this; the next allocation sees whether there are others.
            self.cmb.0.free().lingering.push((region, self.range));
        }
    }
}

impl Controller {
    /// The memory buffer as a dma-buf, for other drivers to import. The buffer is turned on if it is not.
    ///
    /// # Errors
    /// As [`Controller::cmb`]; [`NvmeError::Pci`] naming what is missing for a dma-buf.
    pub fn export_cmb(&self) -> Result<OwnedFd, NvmeError> {
        let cmb = self.cmb()?;
        let (location, size) = self.inner().bar.cmb();
        let Some(offset) = location.offset(size) else {
            return Err(NvmeError::Removed);
        };
        let len = cmb.memory().len() as u64;
        Ok(self.function().export_bar(location.bar(), offset, len)?)
    }
}

impl CmbState {
    /// The controller is about to be stopped.
    pub(crate) fn forget_contents(&self) {
        self.handle.begin_epoch();
    }
}

impl Inner {
    /// Turns the buffer on, or finds it on.
    pub(crate) fn cmb(&self, life: &mut Life) -> Result<Cmb, NvmeError> {
        life.ready()?;
        if let Some(state) = &life.cmb {
            return Ok(state.handle.clone());
        }
        let unsupported = |missing: &str| Unsupported {
            what: "a controller memory buffer",
            missing: missing.to_owned(),
        };
        if !self.cap.cmb() {
            return Err(unsupported("the controller has none that can be placed (CAP.CMBS)").into());
        }
        self.bar.set_cmb(CmbMsc(CmbMsc::CRE));
        let (location, size) = self.bar.cmb();
        let enabled = self.enable_cmb(location, size);
        match enabled {
            Ok(state) => {
                let handle = state.handle.clone();
                life.cmb = Some(state);
                Ok(handle)
            }
            Err(error) => {
                self.bar.set_cmb(CmbMsc(0));
                Err(error)
            }
        }
    }

    fn enable_cmb(&self, location: homi_spec::registers::CmbLoc, size: CmbSz) -> Result<CmbState, NvmeError> {
        let nonsense = || NvmeError::Incompatible {
            what: "the place of its memory buffer (CMBLOC, CMBSZ)",
            found: format!("{location:?}, {size:?}"),
            needed: "bytes in a memory bar",
        };
        let len = size.size().filter(|len| *len > 0).ok_or_else(nonsense)?;
        let offset = location.offset(size).ok_or_else(nonsense)?;
        if offset.checked_add(len).is_none() {
            return Err(nonsense());
        }
        let memory = self.function.bar_memory(location.bar(), offset, len)?;
        // At addresses that nothing else answers to, so that the controller can tell its own memory from the host's.
        let reservation = self.space.reserve(len)?;
        let mapping = reservation.answered_by(&memory.region).map_err(|_| nonsense())?;
        let range = mapping.range();
        self.bar.set_cmb(CmbMsc::enabled_at(range.start().0));
        if self.bar.cmb_address_invalid() {
            return Err(NvmeError::Incompatible {
                what: "the address for its memory buffer",
                found: format!("{range} is invalid (CMBSTS.CBAI)"),
                needed: "an address that it decodes",
            });
        }
        let mapped = self.pins.add(mapping.clone());
        let free = Free {
            allocator: IovaAllocator::new(&[range], UNIT),
            lingering: Vec::new(),
        };
        Ok(CmbState {
            handle: Cmb(Arc::new(Shared {
                mapping,
                size,
                free: Mutex::new(free),
                epoch: AtomicU64::new(0),
            })),
            _mapped: mapped,
            registers: (location.0, size.0),
        })
    }

    /// Turns the buffer on again where it was, after a reset.
    pub(crate) fn restore_cmb(&self, life: &Life) -> Result<(), NvmeError> {
        let Some(state) = &life.cmb else { return Ok(()) };
        let range = state.handle.0.mapping.range();
        self.bar.set_cmb(CmbMsc(CmbMsc::CRE));
        let (location, size) = self.bar.cmb();
        if (location.0, size.0) != state.registers {
            return Err(NvmeError::Incompatible {
                what: "the place of its memory buffer after a reset",
                found: format!("{location:?}, {size:?}"),
                needed: "the same as before",
            });
        }
        self.bar.set_cmb(CmbMsc::enabled_at(range.start().0));
        Ok(())
    }
}
