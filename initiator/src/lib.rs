//! `homi-initiator`: NVMe over Fabrics from the host's side, as a library without global state, without a daemon and without root.
//!
//! ```text
//! Uri ──► Initiator ──► Controller ──► FabricQueue ─┐
//!             │                                     ├─ AnyQueue: Queue ──► Blocking ──► Disk
//!             └───────► Device ─────────────────────┘                └───► AsyncQueue (feature `tokio`)
//! ```
//!
//! - [`uri`] — where blocks are, in one line: `nvme+tcp://host:4420/NQN`, `nvme+rdma://host:4420/NQN`, `file:///path`, `ram://64M`.
//! - [`Initiator`] — a host: discovers, connects, opens.
//! - [`Controller`] — an association: identify pages, logs, admin commands, events, queues.
//! - [`Device`] — blocks on any path, with the same queue whatever the path.
//! - [`FabricQueue`] — a connection to a controller: [`StreamQueue`] over a byte stream, [`RdmaQueue`] over RDMA; run by the thread that
//!   calls it.
//! - [`sequence`] — bring-up and discovery on any queue, also one in memory.
//! - [`Blocking`], [`Disk`] — layers for callers that want to wait.
//!
//! Not here yet: multipath and reconnecting, accelerator memory, authentication, TLS, and PCIe paths.

mod clock;
mod counters;
mod dial;
mod fabric;
mod identity;
mod keeper;
mod link;
mod pool;
mod watch;

#[cfg(feature = "tokio")]
pub mod asynchronous;
#[cfg(feature = "bench")]
pub mod bench;
pub mod blocking;
pub mod controller;
pub mod device;
pub mod disk;
pub mod error;
pub mod initiator;
pub mod options;
pub mod queue;
pub mod rdma;
pub mod sequence;
pub mod slices;
pub mod stream;
pub mod tcp;
pub mod uri;

#[cfg(feature = "tokio")]
pub use asynchronous::{AsyncQueue, OperationLost};
pub use blocking::{Blocking, wait_for_completions};
pub use controller::{AdminReply, Controller, ControllerEvent, ControllerStatus};
pub use counters::Counters;
pub use device::{AnyQueue, Device};
pub use disk::Disk;
pub use error::Error;
pub use fabric::FabricQueue;
pub use homi_fabric::host::{
    AddressFamily, ConnectError, ControllerInfo, ControllerKind, DiscoveryRecord, InfoError, NamespaceInfo,
    SubsystemKind, TransportKind,
};
/// What is known of namespaces of this machine.
pub use homi_local::{
    CopyRange, CopyReport, DmaBufUnsupported, Drive, Holder, KernelNamespace, NamespaceIds, Passthrough,
    PeerBuffer, Unusable, kernel_namespaces, namespace_at,
};
/// What goes through a queue, so that a program needs this one crate only.
pub use homi_queue::{
    Buffer, Command, CommandId, Completed, Completion, Data, LostReason, Queue, QueueFull, QueueLost, Region,
    Segment, Undelivered, Wait,
};
pub use homi_reactor::socket::Congestion;
pub use initiator::Initiator;
pub use options::{InitiatorBuilder, QueueOptions};
pub use queue::{StreamParams, StreamQueue};
pub use rdma::{RdmaQueue, Registration};
pub use stream::ByteStream;
pub use uri::{FabricUri, Transport, Uri, UriError};
