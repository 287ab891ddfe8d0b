//! [`NvmeError`]: why a controller or one of its queues could not do something.

use std::time::Duration;

use homi_pci::{DmaError, PciError, Unsupported};
use homi_queue::MemoryError;
use homi_spec::command::AdminOpcode;
use homi_spec::status::Status;

/// Why a controller, a queue or an admin command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The function below failed.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Memory could not be made reachable for the controller.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// Memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The function is no longer there: its registers read all ones.
    #[error("the controller was removed")]
    Removed,
    /// The controller cannot be driven by this driver.
    #[error("the controller says {what} is {found}, this driver needs {needed}")]
    Incompatible {
        /// Which field or register.
        what: &'static str,
        /// What the controller says.
        found: String,
        /// What would do.
        needed: &'static str,
    },
    /// The controller did not do something in time.
    #[error("the controller did not {what} within {after:?}")]
    Timeout {
        /// What it had to do.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal status (CSTS.CFS)")]
    Fatal,
    /// An admin command completed with an error.
    #[error("{command:?} failed: {status}")]
    Status {
        /// Which command.
        command: AdminOpcode,
        /// What the controller answered.
        status: Status,
    },
    /// The controller broke the protocol.
    #[error("the controller broke the protocol: {0}")]
    Protocol(String),
    /// The controller was reset while the command was under way; whether it was executed is not known.
    #[error("the controller was reset before it answered: {reason}")]
    Reset {
        /// Why it was reset.
        reason: String,
    },
    /// The controller failed and could not be brought back.
    #[error("the controller failed and did not come back: {reason}")]
    Failed {
        /// What failed.
        reason: String,
    },
    /// [`Controller::shutdown`](crate::Controller::shutdown) was called.
    #[error("the controller was shut down")]
    ShutDown,
    /// It cannot be had from this controller.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Commands that destroy data or change what others see were not allowed.
    #[error("{command:?} may destroy data: open the controller with `destructive(true)` to allow it")]
    Destructive {
        /// Which command.
        command: AdminOpcode,
    },
    /// The driver itself issues this command, so it cannot be passed through.
    #[error("{command:?} is the driver's own business: use {instead}")]
    Reserved {
        /// Which command.
        command: AdminOpcode,
        /// What does the same.
        instead: &'static str,
    },
    /// All I/O queues that the controller granted are in use.
    #[error("the controller granted {granted} i/o queues, and all are in use: drop one first")]
    NoQueues {
        /// How many it granted.
        granted: u16,
    },
    /// There is no interrupt vector for another queue.
    #[error(
        "the function has {vectors} interrupt vectors, and none is free: open the queue with interrupts off"
    )]
    NoVectors {
        /// How many are on, the admin queue's among them.
        vectors: u16,
    },
    /// An admin command's data is too long for this controller.
    #[error("the command has {len} bytes of data, this controller takes {max} at once")]
    TooLong {
        /// Bytes asked for.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A worker thread could not be started.
    #[error("the thread that watches the controller could not be started: {0}")]
    Thread(std::io::Error),
}

/// Why a command was refused by its queue before the controller saw it. Its completion carries [`Refusal::status`];
/// [`IoQueue::take_refusal`](crate::IoQueue::take_refusal) tells the reason in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The data does not have the length that the command transfers.
    #[error("the command transfers {transfer} bytes, its data has {data}: they have to be the same")]
    Length {
        /// Bytes that the command transfers.
        transfer: u64,
        /// Bytes of its data.
        data: u64,
    },
    /// The namespace is not attached to this controller, or was not when it was last looked at.
    #[error("namespace {nsid} is not attached: rescan if it appeared since")]
    Namespace {
        /// Which.
        nsid: u32,
    },
    /// The namespace keeps metadata in separate buffers, which this driver does not have.
    #[error(
        "namespace {nsid} transfers metadata by the metadata pointer, which is not supported here: format it without metadata"
    )]
    Metadata {
        /// Which.
        nsid: u32,
    },
    /// The transfer is longer than the controller takes, and the command cannot be split.
    #[error(
        "the command transfers {len} bytes, at most {max} go at once, and it cannot be split: issue smaller ones"
    )]
    TooLong {
        /// Bytes of its data.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The memory cannot be reached by the controller.
    #[error("the command's memory cannot be made reachable for the controller: {0}")]
    Unreachable(String),
    /// Commands with data must say where it is.
    #[error(
        "the command's data is to be placed by the queue, which only reads from the controller may leave to it"
    )]
    Anywhere,
    /// Who issues on somebody's behalf rejected it: [`IoQueue::reject`](crate::IoQueue::reject).
    #[error("the command was rejected before it was issued: {0}")]
    Rejected(Status),
}

impl Refusal {
    /// The status of a refused command's completion.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Length { .. } | Self::TooLong { .. } | Self::Anywhere => Status::INVALID_FIELD.with_dnr(),
            Self::Namespace { .. } | Self::Metadata { .. } => Status::INVALID_NAMESPACE.with_dnr(),
            Self::Unreachable(_) => Status::DATA_TRANSFER_ERROR,
            Self::Rejected(status) => *status,
        }
    }
}
