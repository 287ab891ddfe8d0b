//! Executors that need no fabric: RAM, files, block devices and NVMe namespaces of this machine, behind the
//! [`Queue`](homi_queue::Queue) trait.
//!
//! - [`NamespaceGeometry`] — what a namespace looks like, and the one place where commands are checked against it.
//! - [`Ram`] and [`RamQueue`] — memory; reads may be lent instead of copied.
//! - [`File`] and [`FileQueue`] — a regular file or block device, through io_uring or threads, direct where possible.
//! - [`Passthrough`] and [`PassthroughQueue`] — a namespace behind the kernel's own NVMe driver, commands passed as they are.
//! - [`Drives`], [`Drive`] and [`DriveQueue`] — a namespace of a drive that this process drives itself, without the kernel.
//! - [`kernel_namespaces`] and [`namespace_at`] — the namespaces that the kernel's driver has, and the one behind a path.
//! - [`Backing`] and [`LocalQueue`] — any of the executors: shards share a backing, and each opens its own queue on it.
//!
//! An executor never trusts its issuer: every command is checked for range (by the drive itself, where commands are
//! passed to one), data length and write protection here, whatever was checked before. The namespace identifier is the
//! issuer's matter: a backing is one namespace, and whoever holds it has already looked the identifier up.
//!
//! Executed are Read, Write, Flush, Compare, Write Zeroes, Dataset Management (deallocate) and Verify of the NVM
//! command set; others complete with Invalid Command Opcode. A drive behind the kernel's driver also gets Copy, Write
//! Uncorrectable and reservations. Not here: protection information and metadata, fused operations, Copy, Write
//! Uncorrectable and reservations on files and memory (they belong to a subsystem), and atomic writes beyond one logical
//! block.

mod backing;
mod bounce;
mod check;
mod content;
mod describe;
mod drive;
mod drive_copy;
mod drive_queue;
mod drives;
mod file;
mod file_queue;
mod geometry;
mod keeper;
mod kernel;
mod passthrough;
mod passthrough_queue;
mod ram;
mod reachable;
mod size;
mod task;

pub use backing::{Backing, LocalCounters, LocalQueue};
pub use drive::{Drive, DriveError};
pub use drive_copy::{CopyError, CopyRange, CopyReport, Holder, PeerBuffer, Unusable};
pub use drive_queue::DriveQueue;
pub use drives::{DriveOptions, DriveStatus, Drives};
pub use file::{DirectIo, File, FileOptions, OpenError};
pub use file_queue::{FileQueue, FileQueueCounters};
pub use geometry::{GeometryError, NamespaceGeometry, Span};
pub use homi_reactor::dma_buf::DmaBufUnsupported;
pub use homi_reactor::file_ring::FileBackend;
pub use homi_reactor::nvme::{NvmeRingError, Registration};
pub use keeper::{QueueError, QueueUse};
pub use kernel::{KernelNamespace, NamespaceIds, TransferLimits, kernel_namespaces, namespace_at};
pub use passthrough::{Passthrough, PassthroughError, PassthroughOptions};
pub use passthrough_queue::{PassthroughCounters, PassthroughFailure, PassthroughQueue};
pub use ram::{Ram, RamError, RamQueue};
pub use reachable::Reachable;
pub use size::parse_size;
pub use task::Failure;
