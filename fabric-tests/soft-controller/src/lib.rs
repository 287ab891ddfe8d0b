//! A register-level NVMe controller in memory, behind the seam that drivers use.
//!
//! [`SoftController`] is a whole NVM subsystem on PCIe: BAR 0 with its registers and doorbells, admin and I/O queues in memory that is
//! reached only through a model of an IOMMU, PRPs and SGLs, MSI-X vectors, a controller memory buffer, namespaces, asynchronous events,
//! shadow doorbells, and virtual functions with resources of their own. A driver gets it as
//! [`PciFunction`](homi_pci::PciFunction)s and cannot tell it from a device.
//!
//! It is strict, because a lenient model hides the faults of drivers: what a controller refuses is refused with the status or event
//! that the specification names, and what it leaves undefined is kept as [`Misuse`] to be asserted on, as are the accesses that did not
//! reach memory ([`SoftSpace::faults`]) and mappings that were taken back too early ([`SoftSpace::early_unmaps`]). Nothing that a
//! driver writes makes it panic, or do an unbounded amount of work.
//!
//! It is deterministic: it works only in [`SoftController::step`], and the same steps give the same outcome. Time is counted in steps.
//! What goes wrong is data: [`FaultRule`]s, matched on commands and on what happens to the controller.
//!
//! Not here: metadata and end-to-end protection, fused commands, reservations, Copy, firmware and security commands, sanitize, queues
//! that are not contiguous, pin-based interrupts and interrupt coalescing (both are registers and features that keep what was
//! written), persistent memory regions, and the resources of the primary controller being flexible.
#![forbid(unsafe_code)]

mod admin;
mod config;
mod controller;
mod dma;
mod events;
mod faults;
mod features;
mod function;
mod identify;
mod instant;
mod iommu;
mod logs;
mod media;
mod misuse;
mod model;
mod namespaces;
mod nvm;
mod queues;
mod registers;
mod shadow;
mod shared;
mod sriov;
#[cfg(test)]
mod tests;

pub use config::{
    CmbConfig, ConfigError, Deletion, Mode, NamespaceConfig, SglSupport, SoftConfig, SriovConfig,
};
pub use controller::ControllerStats;
pub use dma::Traffic;
pub use faults::{CommandMatch, Fault, FaultRule, NEVER, Trigger};
pub use iommu::{DmaFault, EarlyUnmap, FaultReason, SoftSpace};
pub use misuse::{Misuse, MisuseKind, Refusal};
pub use model::{MAX_STEPS, SoftController, SoftError, SoftThread};
