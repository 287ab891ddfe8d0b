//! Executors that need no fabric: RAM, and files or block devices of this machine, behind the
//! [`Queue`](homi_queue::Queue) trait.
//!
//! - [`NamespaceGeometry`] — what a namespace looks like, and the one place where commands are checked against it.
//! - [`Ram`] and [`RamQueue`] — memory; reads may be lent instead of copied.
//! - [`File`] and [`FileQueue`] — a regular file or block device, through io_uring or threads, direct where possible.
//! - [`Backing`] and [`LocalQueue`] — either of the two: shards share a backing, and each opens its own queue on it.
//!
//! An executor never trusts its issuer: every command is checked for range, data length and write protection
//! here, whatever was checked before. The namespace identifier is the issuer's matter: a backing is one namespace,
//! and whoever holds it has already looked the identifier up.
//!
//! Executed are Read, Write, Flush, Compare, Write Zeroes, Dataset Management (deallocate) and Verify of the NVM
//! command set; others complete with Invalid Command Opcode. Not here: protection information and metadata, fused
//! operations, Copy, Write Uncorrectable, reservations (they belong to a subsystem), and atomic writes beyond one
//! logical block.

mod backing;
mod bounce;
mod content;
mod file;
mod file_queue;
mod geometry;
mod ram;
mod size;
mod task;

pub use backing::{Backing, LocalQueue};
pub use file::{DirectIo, File, FileOptions, OpenError};
pub use file_queue::{FileQueue, FileQueueCounters};
pub use geometry::{GeometryError, NamespaceGeometry, Span};
pub use homi_reactor::file_ring::FileBackend;
pub use ram::{Ram, RamError, RamQueue};
pub use size::parse_size;
pub use task::Failure;
