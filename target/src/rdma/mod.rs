//! NVMe/RDMA: the part of a target that touches verbs.
//!
//! ```text
//!  control thread: Listeners ── requests and events of connections ──► mailbox of a shard
//!  shard:          Driver ─┬─ Adapter per device: completion queue, shared receives, registrations
//!                          └─ queue pair per session: completions in, lists of work requests out
//! ```
//!
//! What a connection means is the session's matter and its state machine's ([`homi_fabric::rdma`]); here is who posts what they want,
//! and tells them what was done.

mod accept;
mod adapter;
mod driver;
mod listen;
mod post;
mod registry;

use std::net::IpAddr;
use std::sync::Arc;

use homi_fabric::controller::PortId;
use homi_fabric::rdma::cm;
use homi_verbs::{CmEventKind, ConnectRequest, IdKey};

pub(crate) use driver::Driver;
pub(crate) use listen::{Listener, Listeners};

/// What the control thread has for a shard.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A host wants a connection.
    Arrival(Box<Arrival>),
    /// Something happened to a connection.
    Event(IdKey, CmEventKind),
}

/// A request to connect on its way to a shard.
#[derive(Debug)]
pub(crate) struct Arrival {
    request: ConnectRequest,
    asked: cm::ConnectRequest,
    peer: Arc<str>,
    port: PortId,
    /// The address of this node that the host came to.
    local: IpAddr,
    /// Held as long as events are to be forwarded.
    route: Arc<()>,
}
