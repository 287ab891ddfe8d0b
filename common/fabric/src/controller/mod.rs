//! What a controller *is*, whatever transport leads to it: subsystems, associations, the admin and fabrics commands,
//! and the checks that every I/O command passes.
//!
//! - [`Node`] — the controller end of every association of one storage node: Connect, properties, Identify,
//!   features, log pages, events, Keep Alive, Abort. One per process, behind a lock, never on the data path.
//! - [`NodeConfig`] — the whole desired state; [`Node::apply`] finds out itself what changed and who is concerned.
//! - [`QueueState`] — what a connection is as a queue: routes its commands, builds its completions.
//! - [`QueueView`], [`NamespaceTable`], [`io`] — what an I/O queue needs for its commands, without asking the node.
//!
//! The node is passive: the runtime reports what arrived and what time it is, and carries out the [`Effect`]s that
//! [`Node::poll_effect`] hands out.
//!
//! Not implemented: authentication, the static controller model, asymmetric namespace access, reservations,
//! namespace management, firmware update, subsystem reset and sanitize.

pub mod config;
pub mod io;

mod admin;
mod apply;
mod association;
mod connect;
mod discovery;
mod events;
mod features;
mod identify;
mod ids;
mod keep_alive;
mod logs;
mod node;
mod properties;
mod queue;
mod refusal;
mod report;
mod view;

use homi_spec::Status;
use std::fmt;
use std::sync::Arc;

pub use config::{
    AllowList, ConfigError, Exposure, IoHints, NamespaceConfig, NodeConfig, NodeIdentity, NodeLimits,
    PortConfig, PortId, RdmaProvider, ReferralConfig, SecureChannel, SubsystemConfig, TransportAddress,
    TransportKind,
};
pub use node::Node;
pub use queue::{QueueState, Route};
pub use report::{AssociationReport, NodeReport, QueueReport, SubsystemReport};
pub use view::{
    Cached, ErrorRecord, NamespaceEntry, NamespaceTable, Published, QueueCounters, QueueView, Totals,
};

/// A connection, as the runtime names it: opaque here, and never used for two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Connect that succeeded: the connection is a queue now.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The controller's identifier.
    pub controller_id: u16,
    /// The queue's identifier: 0 is the admin queue.
    pub qid: u16,
    /// Entries of the queue (SQSIZE + 1): the most commands that may be in flight.
    pub depth: u32,
    /// Whether the host minds the submission queue head.
    pub sq_flow_control: bool,
    /// Dword 0 of the completion.
    pub dw0: u32,
    /// What the queue needs of its controller.
    pub view: Arc<QueueView>,
}

/// A Connect that failed. The connection stays open and may try again until the runtime's handshake timeout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Status of the completion.
    pub status: Status,
    /// Dword 0 of the completion: which parameter is invalid (IATTR and IPO), or 0.
    pub dw0: u32,
    /// One sentence for the node's log.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// What becomes of an admin or fabrics command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminOutcome {
    /// It is done.
    Complete {
        /// Status of the completion.
        status: Status,
        /// Dword 0 of the completion.
        dw0: u32,
        /// Dword 1 of the completion.
        dw1: u32,
        /// The data for the host: exactly as long as the command asked for, or empty.
        payload: Vec<u8>,
    },
    /// It is answered later, by an [`Effect::Respond`] (or never, if its connection closes first): an asynchronous
    /// event request, or an Abort under way.
    Held,
    /// It was a Disconnect: complete it with this status, then close its connection.
    Disconnect {
        /// Status of the completion.
        status: Status,
    },
}

/// Something that the runtime has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Close a connection, then report it with [`Node::closed`]. Its commands in flight are dropped unanswered.
    Close {
        /// The connection.
        connection: ConnectionId,
        /// Why.
        reason: CloseReason,
    },
    /// Complete a command that was [`AdminOutcome::Held`].
    Respond {
        /// The admin connection.
        connection: ConnectionId,
        /// The command's key.
        key: u16,
        /// Status of the completion.
        status: Status,
        /// Dword 0 of the completion.
        dw0: u32,
        /// Dword 1 of the completion.
        dw1: u32,
    },
    /// Try to abort a command of an I/O queue, then report with [`Node::abort_finished`]. A command that is aborted
    /// completes with [`Status::ABORT_REQUESTED`].
    Abort {
        /// The I/O queue's connection.
        connection: ConnectionId,
        /// Identifier of the command to abort.
        cid: u16,
        /// The admin connection that the Abort came from.
        admin: ConnectionId,
        /// The Abort's key there.
        key: u16,
    },
}

/// Why a connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The host was silent for longer than its keep-alive timeout.
    #[error("the host was silent for longer than its keep-alive timeout")]
    KeepAliveExpired,
    /// The association's admin connection closed.
    #[error("the admin connection of the association closed")]
    AdminQueueClosed,
    /// The host reset the controller, which deletes its I/O queues.
    #[error("the host reset the controller")]
    Reset,
    /// The host shut the controller down.
    #[error("the host shut the controller down")]
    Shutdown,
    /// The subsystem is gone from the configuration.
    #[error("the subsystem was removed")]
    SubsystemRemoved,
    /// The port is gone from the configuration, or no longer leads to the subsystem.
    #[error("the subsystem can no longer be reached through this port")]
    PortRemoved,
    /// The host may no longer connect to the subsystem.
    #[error("the host is no longer allowed")]
    HostDisallowed,
    /// The controller failed.
    #[error("the controller failed")]
    ControllerFailed,
    /// The node is going down.
    #[error("the node is going down")]
    NodeShutdown,
}

#[cfg(test)]
mod tests;
