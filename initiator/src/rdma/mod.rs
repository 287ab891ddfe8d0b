//! NVMe/RDMA from the host's side: queues over verbs, and the memory that controllers reach.
//!
//! ```text
//! connect ──► Route ──────────────► Memory ◄── Controller::register
//!    │      (address, devices)     (one domain's registrations)
//!    ▼                                ▲ misses
//! RdmaQueue ── HostConnection      Local (registrations used lately, without a lock)
//!    ├ Qp, completion queue           ▲
//!    └ Sleeper: one descriptor        └── submit: where is this segment registered?
//! ```
//!
//! **What a controller can reach.** A command names its memory by an address and the key of a registration. Without memory windows that key
//! is the one of the whole region that the memory lies in, and it stays valid while the region is registered: a controller, and
//! whoever can speak in its name on that connection, may read and write all of the region at any time, not only the command's part and
//! not only while it runs. That costs nothing per command, and is what hosts usually do. With
//! [`InitiatorBuilder::memory_windows`](crate::InitiatorBuilder::memory_windows) regions are not reachable by themselves; each command
//! opens a window to exactly its memory, in its direction, which is closed again before the command completes.
//!
//! **Registrations.** A region is registered whole, once per device, by [`Controller::register`](crate::Controller::register) or by the
//! first command that uses it, and found again by address. Registrations that nobody asked for are kept up to a number and a size; the one
//! not used for the longest time goes first, and one whose region nobody else has any more goes the next time that something is
//! registered. A registration in use by a command stays until the command is over, whatever becomes of it here.
//!
//! Not here: registration of dma-bufs, several paths, shared receive queues (a host has few queues), completion vectors by choice.

#[cfg(not(feature = "rdma"))]
mod absent;
#[cfg(any(feature = "rdma", test))]
mod cache;
#[cfg(feature = "rdma")]
mod connect;
#[cfg(feature = "rdma")]
mod memory;
#[cfg(feature = "rdma")]
mod queue;
#[cfg(feature = "rdma")]
mod sleep;
#[cfg(feature = "rdma")]
mod windows;

#[cfg(not(feature = "rdma"))]
pub use absent::RdmaQueue;
#[cfg(not(feature = "rdma"))]
pub(crate) use absent::{Pinned, Route, connect, connect_again};
#[cfg(feature = "rdma")]
pub(crate) use connect::{Route, connect, connect_again};
#[cfg(feature = "rdma")]
pub(crate) use memory::Pinned;
#[cfg(feature = "rdma")]
pub use queue::RdmaQueue;

/// What a queue is to be.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "rdma"), expect(dead_code, reason = "nothing is connected"))]
pub(crate) struct Shape {
    /// 0 for the admin queue.
    pub(crate) qid: u16,
    /// The association, for I/O queues; 0 for the admin queue.
    pub(crate) controller_id: u16,
    /// Commands in flight at most.
    pub(crate) depth: u16,
    /// Entries of the queue: more than `depth`.
    pub(crate) entries: u16,
    /// Bytes that a capsule may have after the command.
    pub(crate) in_capsule: u32,
    /// Descriptors of one command.
    pub(crate) max_descriptors: u16,
}

/// Entries of an I/O queue for so many commands in flight, of which the controller takes `most` and one. Controllers measure what they post by
/// them, and there are some that never answer a command which takes more work requests than that: with few pieces in each, that is a long READ.
pub(crate) fn entries(depth: u16, most: u32) -> u16 {
    const FEWEST: u16 = 32;
    let most = u16::try_from(most).unwrap_or(u16::MAX);
    depth.max(FEWEST - 1).min(most).max(depth).saturating_add(1)
}

/// A region, registered with everything that its association reaches its controller through, until this is dropped (and the commands that
/// use it are over). Made by [`Controller::register`](crate::Controller::register).
#[derive(Debug)]
pub struct Registration {
    region: homi_queue::Region,
    /// Absent where the transport needs none.
    pinned: Option<Pinned>,
}

impl Registration {
    pub(crate) fn new(region: &homi_queue::Region, pinned: Option<Pinned>) -> Self {
        Self {
            region: region.clone(),
            pinned,
        }
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &homi_queue::Region {
        &self.region
    }

    /// Whether the transport needs registrations at all: over TCP there is nothing to do.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.pinned.is_some()
    }
}
