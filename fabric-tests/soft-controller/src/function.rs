//! A function of the model as drivers see it: [`PciFunction`] and [`Registers`].

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use homi_pci::{BarMemory, DmaSpace, PciError, PciFunction, PciIdentity, Registers, Unsupported, Vector};
use homi_queue::Region;
use homi_spec::registers::offset;

use crate::config::Mode;
use crate::instant::Instant;
use crate::misuse::MisuseKind;
use crate::model::Model;

/// What a function is made of besides its controller's state.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) identity: PciIdentity,
    pub(crate) space: DmaSpace,
    pub(crate) cmb: Option<(Region, u64)>,
    pub(crate) removal: Vector,
    pub(crate) bar_len: u64,
    pub(crate) instant: Instant,
}

/// A handle of a function; the last one gives it back.
pub(crate) struct SoftFunction {
    pub(crate) model: Arc<Model>,
    pub(crate) index: u16,
    pub(crate) parts: Arc<Parts>,
}

impl fmt::Debug for SoftFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftFunction")
            .field("name", &self.parts.name)
            .finish_non_exhaustive()
    }
}

impl Drop for SoftFunction {
    fn drop(&mut self) {
        self.model.with(self.index, |controller, _| {
            controller.bus.set_master(false);
            controller.vectors.clear();
            controller.raised.clear();
        });
    }
}

impl SoftFunction {
    fn removed(&self) -> PciError {
        PciError::Removed {
            function: self.parts.name.clone(),
        }
    }

    fn present(&self) -> Result<(), PciError> {
        let removed = self.model.with(self.index, |controller, _| controller.removed);
        if removed { Err(self.removed()) } else { Ok(()) }
    }

    fn no_bytes(&self, bar: u8, start: u64, end: u64) -> PciError {
        PciError::Bar {
            function: self.parts.name.clone(),
            bar,
            start,
            end,
        }
    }
}

impl PciFunction for SoftFunction {
    fn name(&self) -> &str {
        &self.parts.name
    }

    fn identity(&self) -> PciIdentity {
        self.parts.identity
    }

    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError> {
        self.present()?;
        match (bar, &self.parts.cmb) {
            (0, _) => Ok(Arc::new(SoftRegisters {
                model: self.model.clone(),
                index: self.index,
                parts: self.parts.clone(),
            })),
            (2, Some((memory, offset))) => Ok(Arc::new(MemoryRegisters {
                memory: memory.clone(),
                offset: *offset,
            })),
            _ => Err(self.no_bytes(bar, 0, 0)),
        }
    }

    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError> {
        self.present()?;
        let end = offset.saturating_add(len);
        let wrong = || self.no_bytes(bar, offset, end);
        let Some((memory, start)) = self.parts.cmb.as_ref().filter(|_| bar == 2) else {
            return Err(wrong());
        };
        let place = |at: u64| at.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
        let (from, to) = place(offset).zip(place(end)).ok_or_else(wrong)?;
        let region = memory.part(from..to).map_err(|_| wrong())?;
        Ok(BarMemory { region, bar, offset })
    }

    fn export_bar(&self, _: u8, _: u64, _: u64) -> Result<OwnedFd, PciError> {
        Err(Unsupported {
            what: "a bar as a dma-buf",
            missing: "a device: this is a model".into(),
        }
        .into())
    }

    fn dma(&self) -> &DmaSpace {
        &self.parts.space
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        self.present()?;
        self.model
            .with(self.index, |controller, _| controller.bus.set_master(enabled));
        Ok(())
    }

    fn vectors(&self) -> u16 {
        self.model
            .with(self.index, |controller, shared| controller.resources(shared).1)
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError> {
        self.present()?;
        let available = self.vectors();
        if count > available {
            return Err(PciError::Vectors {
                function: self.parts.name.clone(),
                wanted: count,
                available,
            });
        }
        let failed = |source: io::Error| PciError::System {
            function: self.parts.name.clone(),
            doing: "turning interrupt vectors on",
            source,
        };
        let mut vectors = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..count {
            let vector = Vector::new().map_err(failed)?;
            ends.push(File::from(vector.as_fd().try_clone_to_owned().map_err(failed)?));
            vectors.push(vector);
        }
        self.model.with(self.index, |controller, _| {
            controller.raised = vec![0; ends.len()];
            controller.vectors = ends;
        });
        Ok(vectors)
    }

    fn reset(&self) -> Result<(), PciError> {
        self.present()?;
        let done = self.model.with(self.index, |controller, shared| {
            if !shared.config.function_reset {
                return false;
            }
            shared.take_offline(controller.function);
            controller.hard_reset(false);
            controller.bus.set_master(false);
            controller.vectors.clear();
            true
        });
        if !done {
            return Err(Unsupported {
                what: "a function-level reset",
                missing: "the capability: the model was made without it".into(),
            }
            .into());
        }
        self.model.settle();
        self.parts.instant.clear();
        Ok(())
    }

    fn removal(&self) -> Option<BorrowedFd<'_>> {
        Some(self.parts.removal.as_fd())
    }
}

/// BAR 0.
struct SoftRegisters {
    model: Arc<Model>,
    index: u16,
    parts: Arc<Parts>,
}

impl fmt::Debug for SoftRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftRegisters")
            .field("function", &self.parts.name)
            .finish_non_exhaustive()
    }
}

impl SoftRegisters {
    fn is_valid(&self, at: u64) -> bool {
        let valid = at.is_multiple_of(4) && at.saturating_add(4) <= self.parts.bar_len;
        if !valid {
            self.model.with(self.index, |controller, shared| {
                controller.misuse(shared, MisuseKind::BadAccess { at });
            });
        }
        valid
    }
}

impl Registers for SoftRegisters {
    fn len(&self) -> u64 {
        self.parts.bar_len
    }

    fn read32(&self, at: u64) -> u32 {
        if !self.is_valid(at) {
            return u32::MAX;
        }
        let (value, effects) = self.model.with(self.index, |controller, shared| {
            if controller.removed {
                return (u32::MAX, false);
            }
            (controller.read(shared, at), !shared.effects.is_empty())
        });
        if effects {
            // A fault that a read set off.
            self.model.settle();
        }
        value
    }

    fn write32(&self, at: u64, value: u32) {
        // Apart, so that the short way does not set up what the long way needs.
        if !self.parts.instant.doorbell(at, value) {
            self.write(at, value);
        }
    }
}

impl SoftRegisters {
    #[cold]
    #[inline(never)]
    fn write(&self, at: u64, value: u32) {
        if !self.is_valid(at) {
            return;
        }
        let instant = self.model.with(self.index, |controller, shared| {
            if !controller.removed {
                controller.write(shared, at, value);
            }
            shared.config.mode == Mode::Instant
        });
        self.model.settle();
        if instant {
            self.model.run_instantly();
            // Admin commands create queues, and registers end them.
            if at <= offset::DOORBELLS as u64 {
                self.model.refresh_instant(self.index, &self.parts.instant);
            }
        }
        self.model.wake();
    }
}

/// BAR 2: memory.
struct MemoryRegisters {
    memory: Region,
    offset: u64,
}

impl fmt::Debug for MemoryRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegisters").finish_non_exhaustive()
    }
}

impl MemoryRegisters {
    fn place(&self, at: u64) -> Option<usize> {
        usize::try_from(at.checked_sub(self.offset)?).ok()
    }
}

impl Registers for MemoryRegisters {
    fn len(&self) -> u64 {
        self.offset + self.memory.len() as u64
    }

    fn read32(&self, at: u64) -> u32 {
        let mut bytes = [0xff; 4];
        if let Some(place) = self.place(at) {
            // Past the end, reads give all ones.
            let _ = self.memory.read(place, &mut bytes);
        }
        u32::from_le_bytes(bytes)
    }

    fn write32(&self, at: u64, value: u32) {
        if let Some(place) = self.place(at) {
            // Past the end, writes vanish.
            let _ = self.memory.write(place, &value.to_le_bytes());
        }
    }
}
