//! PCI functions through Linux VFIO, as [`PciFunction`](homi_pci::PciFunction)s.
//!
//! ```text
//! Container::new(Way) ── open(address) ─► VfioFunction ── registers(bar) ─► Registers: mapped BARs, doorbells
//!     │    several functions, one DmaSpace       │
//!     │                                          ├── enable_vectors(n) ─► eventfds
//!     └── import(dma-buf) ─► Imported            └── export_bar(..) ─► dma-buf
//! ```
//!
//! - A [`Container`] is an address space of the IOMMU. Functions opened into the same one share it: memory mapped once serves all of them,
//!   and the mapped BAR of one can be mapped for the others (peer-to-peer).
//! - Two ways lead to the same: groups with type-1 containers, which every kernel has, and character devices with iommufd ([`Way`]).
//! - What is missing (no VFIO, no IOMMU, a group that others use, no permission) is a typed
//!   [`Unsupported`](homi_pci::Unsupported) that says what to change; `scripts/bind-vfio` does most of it.
//!
//! Functions without an IOMMU in front of them (VFIO's "no-IOMMU" mode) are refused: a drive could then write anywhere in memory, and a
//! wrong address in a command would. Not here either: INTx interrupts, hot reset of whole buses, live migration, devices that are not PCI.
#![expect(
    unsafe_code,
    reason = "talks to the kernel by ioctl, maps registers and accesses them"
)]

mod bar;
mod container;
mod device;
mod domain;
mod function;
mod import;
mod mmio;
mod uapi;

pub use container::{Container, Options, VfToken, Way, WayError};
pub use function::VfioFunction;
pub use import::{ImportError, Imported, Rung, RungFailure};
