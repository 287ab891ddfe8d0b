//! [`PciFunction`]: the seam below drivers.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use homi_queue::Region;

use crate::dma::{DmaError, DmaSpace};
use crate::vector::Vector;

/// Something that cannot be had here, and what is missing for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be had here: {missing}")]
pub struct Unsupported {
    /// What was asked for.
    pub what: &'static str,
    /// What is missing: a kernel, a device capability, a permission.
    pub missing: String,
}

/// Why a function could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// The function is no longer there.
    #[error("there is no pci function {function}, or not any more: `scripts/bind-vfio --show` lists drives")]
    Removed {
        /// Which.
        function: String,
    },
    /// The BAR does not exist, is no memory, or is shorter.
    #[error("bar {bar} of {function} has no bytes {start}..{end}")]
    Bar {
        /// Which function.
        function: String,
        /// Which BAR.
        bar: u8,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
    },
    /// More interrupt vectors than there are.
    #[error("{function} has {available} interrupt vectors, {wanted} were asked for")]
    Vectors {
        /// Which function.
        function: String,
        /// What was asked for.
        wanted: u16,
        /// What it has.
        available: u16,
    },
    /// The system refused.
    #[error("{doing} failed for {function}: {source}")]
    System {
        /// Which function.
        function: String,
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Memory could not be mapped.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// It cannot be had here.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// A memory BAR's registers. All accesses are little-endian, naturally aligned, and happen exactly once, in program order.
///
/// Before a write reaches the function, everything that this thread wrote to memory earlier is visible to the function's DMA; and what this
/// thread reads from memory after a read of a register was there when the register was read.
///
/// Accesses past the end, misaligned ones and those of a function that was removed behave as the bus does: reads give all ones, writes vanish.
pub trait Registers: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no registers.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads 4 bytes.
    fn read32(&self, at: u64) -> u32;

    /// Writes 4 bytes.
    fn write32(&self, at: u64, value: u32);

    /// Reads 8 bytes as two accesses, the lower half first: every controller allows that (PCIe Transport 1.0 §3.1).
    fn read64(&self, at: u64) -> u64 {
        let low = self.read32(at);
        let high = self.read32(at.saturating_add(4));
        u64::from(low) | (u64::from(high) << 32)
    }

    /// Writes 8 bytes as two accesses, the lower half first.
    fn write64(&self, at: u64, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.write32(at, u32::from_le_bytes([a, b, c, d]));
        self.write32(at.saturating_add(4), u32::from_le_bytes([e, f, g, h]));
    }
}

/// Who made a function and what it is, from its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class code: base class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

impl PciIdentity {
    /// Class code of an NVM Express I/O controller (PCIe Transport 1.0 §3.8).
    pub const NVME_CLASS: u32 = 0x01_08_02;
}

/// Memory of a device: part of a BAR that behaves as memory, such as a controller memory buffer.
#[derive(Debug, Clone)]
pub struct BarMemory {
    /// The bytes as this process sees them. They are uncached: copy in bulk, and write more than you read.
    pub region: Region,
    /// Which BAR.
    pub bar: u8,
    /// Offset in the BAR in bytes.
    pub offset: u64,
}

/// One PCI function (physical or virtual), owned by this process.
///
/// Dropping the last handle gives the function back: bus mastering ends, then its interrupts, mappings and registers go.
pub trait PciFunction: Send + Sync + fmt::Debug {
    /// What to call it in messages: its address for a device.
    fn name(&self) -> &str;

    /// What it says it is.
    fn identity(&self) -> PciIdentity;

    /// The registers of a memory BAR (0 to 5).
    ///
    /// # Errors
    /// [`PciError`] if there is none, or the function is gone.
    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError>;

    /// Part of a memory BAR as memory, page-aligned.
    ///
    /// # Errors
    /// [`PciError::Bar`] if it is not there; [`PciError::Unsupported`] if it cannot be mapped here.
    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError>;

    /// The same part of a BAR as a dma-buf, for other drivers to import.
    ///
    /// # Errors
    /// [`PciError::Unsupported`] naming what is missing.
    fn export_bar(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, PciError>;

    /// The address space that its DMA goes through.
    fn dma(&self) -> &DmaSpace;

    /// Lets the function start DMA and interrupts of its own, or ends that.
    ///
    /// # Errors
    /// [`PciError::System`].
    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError>;

    /// How many interrupt vectors it has.
    fn vectors(&self) -> u16;

    /// Turns its first `count` vectors on; 0 turns all off. Descriptors from an earlier call are raised no more.
    ///
    /// # Errors
    /// [`PciError::Vectors`] if there are fewer, [`PciError::System`].
    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError>;

    /// Function-level reset. All DMA ends before this returns; registers are as after power-on, vectors and bus mastering are off.
    ///
    /// # Errors
    /// [`PciError::Unsupported`] if the function cannot be reset alone, [`PciError::System`].
    fn reset(&self) -> Result<(), PciError>;

    /// A descriptor that becomes readable when the function is about to go or is gone: stop using it and drop it. `None` if nobody tells.
    fn removal(&self) -> Option<BorrowedFd<'_>>;

    /// Lets go of the function itself, although handles of it and of its registers exist: it is about to go, and whoever took it away waits
    /// for that. Its driver has stopped using it. From then on it behaves as one that was removed; memory of its BARs loses its
    /// contents. Where nobody waits, there is nothing to do.
    fn give_up(&self) {}
}
