//! The one abstraction of Homi Fabrics: everything that *executes* NVMe commands is a [`Queue`], everything
//! that *issues* them is a client of one.
//!
//! - [`Queue`], [`Command`], [`Completed`] — the trait and what goes through it.
//! - [`Slots`] — command ids that carry a slot and a sequence, so that a late or doubled completion is detected.
//! - [`Region`], [`Data`], [`Buffer`] — memory registered once, parts of it lent to operations, bring-your-own buffers.
//! - [`Iova`], [`BusAddress`], [`RemoteKey`] — the same memory as devices and peers address it.
//! - [`SubmissionRing`], [`CompletionRing`] — the arithmetic of queues in memory.
//! - [`PrpRules`], [`SglRules`] — a transfer as a command's data pointer, written and read back; [`ListMemory`] holds the lists.
//! - [`GatherList`] — bytes and memory to be sent as one batch.
//!
//! There is no I/O and no clock here. The only unsafe code is in [`memory`], which owns allocations and copies
//! bytes in and out of them, in the private `copy`, which makes these copies, and in [`words`].

pub mod address;
pub mod command;
mod copy;
pub mod gather;
pub mod list;
pub mod memory;
pub mod prp;
pub mod queue;
pub mod ring;
pub mod sgl;
pub mod slots;
pub mod words;

pub use address::{AddressOverflow, BusAddress, Iova, IovaRange, RemoteAddress, RemoteKey, Unmapped};
pub use command::{Command, Completion, DataDirection};
pub use gather::{GatherList, Piece};
pub use list::{ListMemory, NoLists, SegmentLists};
pub use memory::{Budget, Buffer, Data, MemoryError, Region, Segment};
pub use prp::{PageSize, Prp, PrpBuildError, PrpRules, PrpWalkError};
pub use queue::{Completed, LostReason, Queue, QueueFull, QueueLost, Undelivered, Wait};
pub use ring::{CompletionRing, HeadError, RingFull, RingSizeError, SubmissionRing};
pub use sgl::{NoSgls, SglBuildError, SglPart, SglRules, SglWalkError};
pub use slots::{CommandId, Slot, Slots, StaleCommand};
pub use words::Words;
