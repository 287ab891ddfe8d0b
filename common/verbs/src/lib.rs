//! RDMA for both ends: a thin, safe layer over libibverbs and librdmacm, which are loaded at run time.
//!
//! ```text
//! EventChannel ─► Listener ─► ConnectRequest ─► Accepting ─┐
//!      │                                                   ├─► Qp ── sends() ─► SendBatch ─► one list, one doorbell
//!      └───────► Outgoing ──────────────► Connecting ──────┘    └── receives() ─► ReceiveBatch
//! Device ─► Pd ─► MemoryRegion ─► Piece: what work requests refer to        CompletionQueue ─► Completions<N>
//!            └──► SharedReceives, MemoryWindow
//! ```
//!
//! Ownership is what makes it safe:
//!
//! - A child keeps its parents: a `Piece` its `MemoryRegion`, that its `Pd` and its [`Region`](homi_queue::Region), and so on up to the
//!   [`Device`]. They go in the right order whatever order they are dropped in.
//! - What is posted is held by the queue that it was posted to until its completion is handed back to that queue, or until the queue is
//!   destroyed. A peer's RDMA READ and WRITE reach registered memory at any time, and registered memory is never borrowed: its region is
//!   shared for as long as the registration exists.
//! - A `Completion` cannot be made, copied or used twice, and releases only what its own queue posted.
//! - Completion queues cannot be overrun: what queues may complete is promised to them when they are created.
//!
//! Nothing is allocated while posting and polling. Every object can move to another thread; posting and polling take `&mut`, so no lock of
//! this crate is on their way.
//!
//! **Without the feature `rdma`** (which needs cmake and libclang to build) this crate has the same values and errors, and [`EventChannel`] and
//! [`Device`], which cannot be opened: they say [`Unsupported::NotBuilt`]. With it, a program starts on machines without the libraries and
//! devices, and is told what is missing when it opens one.
//!
//! Not here: unreliable and extended transports, atomics, immediate data, multicast, asynchronous events of devices (a queue pair's failure
//! shows in its completions, a removed device in its ids' events), on-demand paging, and anything of one vendor.

pub mod error;
pub mod types;
#[cfg(any(feature = "rdma", test))]
mod work;

#[cfg(feature = "rdma")]
mod address;
#[cfg(feature = "rdma")]
mod channel;
#[cfg(feature = "rdma")]
mod completion;
#[cfg(feature = "rdma")]
mod connection;
#[cfg(feature = "rdma")]
mod device;
#[cfg(feature = "rdma")]
mod memory;
#[cfg(feature = "rdma")]
mod post;
#[cfg(feature = "rdma")]
mod qp;
#[cfg(feature = "rdma")]
mod receive;
#[cfg(feature = "rdma")]
mod window;

#[cfg(not(feature = "rdma"))]
mod absent;

pub use error::{Capability, CommitError, NotOurs, PostError, Refused, Unsupported, VerbsError};
pub use types::{
    Access, ConnectOptions, Counters, Limits, PeerOptions, PrivateData, QpNumber, QpOptions, Released,
    Windows, WorkStatus,
};

#[cfg(feature = "rdma")]
pub use {
    channel::{CmEvent, CmEventKind, EventChannel, IdKey, Listener},
    completion::{Completion, CompletionQueue, CompletionQueueOptions, Completions},
    connection::{Accepting, ConnectRequest, Connecting, Outgoing},
    device::Device,
    memory::{MemoryRegion, Pd, Piece},
    post::{Remote, SendBatch, Signal},
    qp::Qp,
    receive::{ReceiveBatch, Received, SharedReceives},
    window::MemoryWindow,
};

#[cfg(not(feature = "rdma"))]
pub use absent::{Device, EventChannel};
