//! What a driver needs of a PCI function, whoever provides it.
//!
//! - [`PciFunction`], [`Registers`] — BARs, interrupt vectors, reset: the seam that `homi-vfio` implements for devices and the soft
//!   controller of the tests implements for a model, so that one driver runs on both.
//! - [`DmaSpace`], [`Mapping`] — the address space that a function's DMA goes through: [`Region`](homi_queue::Region)s are mapped into it and
//!   get an [`Iova`](homi_queue::Iova). Finding free addresses and giving them back is done here; a [`DmaBackend`] installs them.
//! - [`PciAddress`] — where a function is.
//! - [`Vector`] — an interrupt as a descriptor to sleep on.
//! - [`topology`] — where functions are, what is between them and who uses them, from sysfs.
//!
//! No unsafe code and no device access here. Registers and DMA go by traits with virtual calls: one doorbell per batch costs a call of a
//! few instructions, and in return nothing above is generic over the device.
#![forbid(unsafe_code)]

mod address;
mod dma;
mod function;
mod iova;
pub mod topology;
mod vector;

pub use address::{PciAddress, PciAddressError};
pub use dma::{Access, DmaBackend, DmaError, DmaSpace, DmaUse, Mapping, Reservation};
pub use function::{BarMemory, PciError, PciFunction, PciIdentity, Registers, Unsupported};
pub use iova::IovaAllocator;
pub use vector::Vector;
