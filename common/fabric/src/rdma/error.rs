//! What can go wrong on a queue pair, as [`TransportError`]: fatal to its queue, and to no other.

use homi_queue::{CommandId, MemoryError, RemoteKey};

use super::work::WorkId;

/// A connection cannot be made with these parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// The queue depth is zero or too large.
    #[error("a depth of {depth} commands was asked for: use 1 to {max}")]
    Depth {
        /// Asked for.
        depth: u16,
        /// The most that there can be.
        max: u16,
    },
    /// The send queue has no entries.
    #[error("a send queue of {0} work requests was asked for: use at least 2")]
    SendQueue(u16),
    /// A work request needs at least two pieces of local memory: a capsule, and its data.
    #[error("{0} local pieces per work request were asked for: use at least 2")]
    Pieces(u16),
    /// No RDMA READ may be outstanding.
    #[error("a depth of no rdma reads was asked for: data of writes could not be fetched, use at least 1")]
    ReadDepth,
    /// Commands must be able to have one descriptor, and a list is bounded.
    #[error("{found} sgl descriptors per command were asked for: use 1 to {max}")]
    Descriptors {
        /// Asked for.
        found: u16,
        /// The most that there can be.
        max: u16,
    },
    /// The in-capsule limit is not a multiple of 16, the unit in which it is announced.
    #[error("{0} bytes of in-capsule data were asked for: use a multiple of 16")]
    InCapsule(u32),
}

/// The peer broke the protocol, or the runtime reported what cannot be. Fatal to the connection: disconnect, bring the queue
/// pair into the error state, and collect what it had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A command capsule is shorter than a command.
    #[error("a command capsule of {found} bytes came, a command has {minimum}")]
    CapsuleTooShort {
        /// Bytes that came.
        found: usize,
        /// Bytes of a command.
        minimum: usize,
    },
    /// A command capsule is longer than this queue takes.
    #[error("a command capsule of {found} bytes came, this queue takes at most {limit}")]
    CapsuleTooLong {
        /// Bytes that came.
        found: usize,
        /// Bytes that the queue takes.
        limit: usize,
    },
    /// A response capsule has another length than a completion.
    #[error("a response capsule of {found} bytes came instead of {expected}")]
    ResponseLength {
        /// Bytes that came.
        found: usize,
        /// Bytes of a completion.
        expected: usize,
    },
    /// More commands than the queue has entries.
    #[error("a command came while {limit} were in flight, all that the queue has entries for")]
    CommandLimit {
        /// The queue's depth.
        limit: u16,
    },
    /// The command id names nothing in flight: unknown, late or doubled.
    #[error("a response came for command {id}, which is not in flight (unknown, late or doubled)")]
    UnknownCommand {
        /// The id that came.
        id: CommandId,
    },
    /// A response to a command that was not sent yet.
    #[error("a response came for command {id}, which was not sent yet")]
    Premature {
        /// The id that came.
        id: CommandId,
    },
    /// The submission queue head is outside the queue.
    #[error("the response to command {id} has submission queue head {head}, the queue has {entries} entries")]
    QueueHead {
        /// The command.
        id: CommandId,
        /// SQHD.
        head: u16,
        /// Entries of the queue.
        entries: u32,
    },
    /// The response invalidated a key that its command did not offer for that.
    #[error("the response to command {id} invalidated key {key}, which that command did not give away")]
    ForeignKey {
        /// The command.
        id: CommandId,
        /// The key that was invalidated.
        key: RemoteKey,
    },
    /// The runtime reported work that is not outstanding.
    #[error("a completion came for {id}, which is not outstanding")]
    UnknownWork {
        /// What it named.
        id: WorkId,
    },
    /// A receive buffer cannot be read.
    #[error("a capsule's memory cannot be addressed: {0}")]
    Memory(#[from] MemoryError),
}
