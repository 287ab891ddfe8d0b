//! The user-space NVMe driver: a controller's life and its queues, over any [`PciFunction`](homi_pci::PciFunction).
//!
//! - [`Controller`] — opened, identified, looked after, reset and shut down; admin commands, namespaces, virtual functions.
//! - [`IoQueue`] — a queue pair of the drive as a [`Queue`](homi_queue::Queue): one per thread, polled or with an interrupt.
//! - [`Mapped`], [`Cmb`] — memory that stays reachable for all queues, and the controller's own.
//! - [`Clock`] — time and sleep as arguments: with [`SystemClock`] on a machine, in virtual time in tests.
//!
//! # How the parts fit
//!
//! ```text
//!  issuer's thread                     whoever looks after the controller
//!  ┌─────────────┐  state, reports      ┌──────────────────────────────────┐
//!  │   IoQueue   │◄────────────────────►│ Controller: service(), admin()   │  one lock: state, admin queue,
//!  └──────┬──────┘   (loads and stores) └────────────────┬─────────────────┘  register of queues
//!         │ entries, doorbells                           │ registers, admin queue
//!         ▼                                              ▼
//!  ┌─────────────────────────── PciFunction ───────────────────────────────┐
//!  │      BAR registers        interrupts         DMA address space        │
//!  └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A queue owns its rings, its commands and a table of mappings, and shares a few words with its controller. Now and then the controller's
//! service asks it which commands have been in flight for too long; the queue's thread looks at its next poll, and says so. The service
//! aborts them, and resets the controller if that does not help; a queue that nobody polls is not judged. A reset tells all queues to ring no more, keeps the controller from memory, and only then has queues hand back what they had in flight: each command
//! has exactly one outcome, and no memory is used again that the controller may still write.
//!
//! # Limits
//!
//! Metadata travels as part of the data or not at all. Host memory buffers, persistent memory regions, boot partitions and multiple command
//! sets are not used. A command whose length is not known here (anything but reads, writes, compares and dataset management) transfers what
//! the controller makes of it: an IOMMU bounds that to mapped memory.
#![forbid(unsafe_code)]

mod admin;
mod bar;
mod bring_up;
mod clock;
mod cmb;
mod controller;
mod error;
mod flights;
mod info;
mod life;
mod lists;
mod manage;
mod options;
mod pins;
mod pool;
mod queue;
mod reach;
mod recovery;
mod shadow;
mod shared;
mod table;
mod transact;
mod watch;

pub use clock::{Clock, SystemClock};
pub use cmb::{Cmb, CmbMemory};
pub use controller::{Controller, QueueStatus};
pub use error::{NvmeError, Refusal};
pub use info::{ControllerInfo, Namespace};
pub use life::State;
pub use manage::NewNamespace;
pub use options::{Arbitration, Interrupts, Options, Placement, Priority, QueueOptions, SglUse};
pub use pins::Mapped;
pub use queue::IoQueue;
pub use shared::QueueCounters;
pub use transact::AdminData;
pub use watch::Watch;
