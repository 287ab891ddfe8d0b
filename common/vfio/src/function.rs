//! [`VfioFunction`]: an open device as a [`PciFunction`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use homi_pci::{BarMemory, DmaSpace, PciError, PciFunction, PciIdentity, Registers, Unsupported, Vector};

use crate::bar::{BarMap, BarRegisters};
use crate::container::VfToken;
use crate::device::{BarPlace, Device};
use crate::mmio;
use crate::uapi::IrqSet;

/// A PCI function that this process owns by VFIO, made by [`Container::open`](crate::Container::open). Registers and BAR memory that come from
/// it keep it open.
#[derive(Debug)]
pub struct VfioFunction {
    device: Arc<Device>,
    identity: PciIdentity,
    space: DmaSpace,
    /// Raised by the kernel when the function is to be given up or has failed.
    removal: Option<Vector>,
    vectors: Mutex<Enabled>,
    /// The kind of interrupts it has (MSI-X, or MSI without it), and how many.
    kind: u32,
    available: u16,
}

/// Vectors that are on: the kernel refers to their descriptors, the function's user holds them.
#[derive(Debug, Default)]
struct Enabled(u16);

impl VfioFunction {
    pub(crate) fn new(device: Device, space: DmaSpace) -> Result<Self, PciError> {
        if !mmio::ORDERED {
            return Err(Unsupported {
                what: "registers of devices",
                missing: "this processor's barriers between memory and devices are not known to this program"
                    .to_owned(),
            }
            .into());
        }
        let kinds = [IrqSet::MSIX, IrqSet::MSI].map(|kind| (kind, device.interrupts(kind)));
        let (kind, available) = kinds
            .into_iter()
            .find(|(_, count)| *count > 0)
            .unwrap_or((IrqSet::MSIX, 0));
        let identity = device.identity()?;
        Ok(Self {
            removal: watch(&device)?,
            device: Arc::new(device),
            identity,
            space,
            vectors: Mutex::default(),
            kind,
            available,
        })
    }

    /// Sets the token that whoever opens a virtual function of this (physical) function has to know.
    ///
    /// # Errors
    /// [`PciError::Unsupported`] if VFIO does not look after its virtual functions, [`PciError::System`].
    pub fn set_vf_token(&self, token: VfToken) -> Result<(), PciError> {
        self.device.set_vf_token(token.0)
    }

    fn place(&self, bar: u8, start: u64, len: u64) -> Result<BarPlace, PciError> {
        let missing = || PciError::Bar {
            function: self.device.name().to_owned(),
            bar,
            start,
            end: start.saturating_add(len),
        };
        let place = self.device.bar(bar)?.ok_or_else(missing)?;
        match start.checked_add(len) {
            Some(end) if end <= place.len => Ok(place),
            _ => Err(missing()),
        }
    }
}

/// Has the kernel raise an event when the function is to go or has failed. `None` if it tells neither.
fn watch(device: &Device) -> Result<Option<Vector>, PciError> {
    let event = Vector::new().map_err(|error| device.error("making an event descriptor", error))?;
    let mut watched = false;
    for index in [IrqSet::REQUEST, IrqSet::ERROR] {
        if device.interrupts(index) == 0 {
            continue;
        }
        match device.tie(index, &[event.as_fd().as_raw_fd()]) {
            Ok(()) => watched = true,
            Err(error) => tracing::debug!(%error, index, function = device.name(), "removal is not told"),
        }
    }
    Ok(watched.then_some(event))
}

impl PciFunction for VfioFunction {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn identity(&self) -> PciIdentity {
        self.identity
    }

    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError> {
        let place = self.place(bar, 0, 0)?;
        let registers = BarRegisters::new(&self.device, &place)
            .map_err(|error| self.device.error("mapping a bar", error))?;
        Ok(Arc::new(registers))
    }

    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError> {
        let place = self.place(bar, offset, len)?;
        let unsupported = |missing: String| {
            PciError::Unsupported(Unsupported {
                what: "part of a bar as memory",
                missing,
            })
        };
        let page = self.space.page();
        if len == 0 || !offset.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(unsupported(format!(
                "{len} bytes at {offset} are no whole pages of {page} bytes"
            )));
        }
        let map = BarMap::new(&self.device, &place, offset, len).map_err(|error| {
            unsupported(format!(
                "{len} bytes at {offset} of bar {bar} of {} cannot be mapped ({error}); parts that can be are {:?}",
                self.name(),
                place.windows
            ))
        })?;
        let map = Arc::new(map);
        self.device.member().domain().remember(&map);
        Ok(BarMemory {
            region: map.into_region(),
            bar,
            offset,
        })
    }

    fn export_bar(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, PciError> {
        self.place(bar, offset, len)?;
        Ok(self.device.export(bar, offset, len)?)
    }

    fn dma(&self) -> &DmaSpace {
        &self.space
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        self.device.set_bus_master(enabled)
    }

    fn vectors(&self) -> u16 {
        self.available
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError> {
        if count > self.available {
            return Err(PciError::Vectors {
                function: self.name().to_owned(),
                wanted: count,
                available: self.available,
            });
        }
        let failed = |error| self.device.error("enabling interrupts", error);
        let mut enabled = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        if enabled.0 > 0 {
            self.device.tie(self.kind, &[]).map_err(failed)?;
            enabled.0 = 0;
        }
        let vectors: Vec<Vector> = (0..count)
            .map(|_| Vector::new())
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        if count > 0 {
            let raw: Vec<RawFd> = vectors.iter().map(|vector| vector.as_fd().as_raw_fd()).collect();
            self.device.tie(self.kind, &raw).map_err(failed)?;
            enabled.0 = count;
        }
        Ok(vectors)
    }

    fn reset(&self) -> Result<(), PciError> {
        // The kernel puts configuration space back as it was, which must not let the function start anything.
        self.enable_vectors(0)?;
        self.device.set_bus_master(false)?;
        self.device.reset()
    }

    fn removal(&self) -> Option<BorrowedFd<'_>> {
        self.removal.as_ref().map(AsFd::as_fd)
    }

    fn give_up(&self) {
        if let Err(error) = self.device.give_up() {
            tracing::error!(%error, function = self.name(), "the function cannot go before this program lets go of it");
        }
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // Others may still hold registers: the function does nothing of its own for them any more.
        if let Err(error) = self.device.set_bus_master(false)
            && !matches!(error, PciError::Removed { .. })
        {
            tracing::warn!(%error, "bus mastering was not ended");
        }
        if let Err(error) = self.enable_vectors(0)
            && !matches!(error, PciError::Removed { .. })
        {
            tracing::warn!(%error, "interrupts were not turned off");
        }
    }
}
