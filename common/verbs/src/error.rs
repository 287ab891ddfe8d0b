//! [`VerbsError`]: why something of RDMA failed, and [`Unsupported`]: what is not there at all.
//!
//! Both exist with and without the feature `rdma`, so that programs handle one set of errors.

use std::fmt;
use std::io;

/// Something that this build, this machine or this device does not have. The rest of the program works without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The program was built without RDMA.
    #[error(
        "this program was built without the feature `rdma`: build it with `--features rdma` (needs cmake and libclang)"
    )]
    NotBuilt,
    /// A library of rdma-core cannot be loaded.
    #[error("{library} cannot be loaded: install it (Debian and Ubuntu: {package})")]
    Library {
        /// File name of the library.
        library: &'static str,
        /// Package that has it.
        package: &'static str,
    },
    /// The connection manager of the kernel cannot be reached.
    #[error(
        "the kernel's connection manager does not answer ({reason}): load the module rdma_ucm and allow access to /dev/infiniband/rdma_cm"
    )]
    ConnectionManager {
        /// What the system said.
        reason: String,
    },
    /// There is no RDMA device.
    #[error(
        "this machine has no RDMA device: load its driver and ib_uverbs, or add one in software (`rdma link add rxe0 type rxe netdev DEVICE`)"
    )]
    NoDevice,
    /// There is no RDMA device of this name.
    #[error("there is no RDMA device {wanted}: there are {present}")]
    NoSuchDevice {
        /// Name asked for.
        wanted: String,
        /// Names of those that exist.
        present: String,
    },
    /// The device or its driver cannot do something.
    #[error("the RDMA device {device} has no {what}")]
    Capability {
        /// Name of the device.
        device: String,
        /// What was asked for.
        what: Capability,
    },
}

/// Abilities that some devices have and others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Registration of memory behind a dma-buf descriptor.
    DmaBuf,
    /// Memory windows of type 2, bound by work requests.
    MemoryWindows,
    /// Shared receive queues.
    SharedReceiveQueues,
    /// SEND with invalidate and local invalidate.
    Invalidate,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::DmaBuf => "registration of dma-bufs",
            Self::MemoryWindows => "memory windows of type 2",
            Self::SharedReceiveQueues => "shared receive queues",
            Self::Invalidate => "invalidation of keys by work requests",
        })
    }
}

/// Why an operation on an RDMA object failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// It does not exist here.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The library or the kernel refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An object of one device was used with one of another.
    #[error("the {what} belongs to {theirs}, but {ours} is needed: use objects of one device")]
    DeviceMismatch {
        /// The object that does not fit.
        what: &'static str,
        /// Its device.
        theirs: String,
        /// The device that was needed.
        ours: String,
    },
    /// The connection manager has not bound the id to a device yet.
    #[error("the id has no device yet: wait until its address is resolved")]
    NoDeviceYet,
    /// Private data does not fit in the message.
    #[error("{len} bytes of private data do not fit: at most {max} bytes go with {message}")]
    PrivateDataTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes that fit.
        max: usize,
        /// The message of the connection manager.
        message: &'static str,
    },
    /// Queues together could overrun their completion queue, which would lose completions.
    #[error(
        "the completion queue has room for {room} more completions, but the queue needs {wanted}: make it larger or the queue shorter"
    )]
    CompletionQueueFull {
        /// Entries not promised to other queues.
        room: u32,
        /// Entries that the new queue needs.
        wanted: u32,
    },
    /// A size is zero or above what the device or this crate can do.
    #[error("{what} is {value}: it must be from {min} to {max}")]
    OutOfRange {
        /// What was asked for.
        what: &'static str,
        /// The value given.
        value: u64,
        /// Smallest possible value.
        min: u64,
        /// Largest possible value.
        max: u64,
    },
    /// Bytes asked for are not inside a memory registration.
    #[error("bytes {start}..{end} do not lie in a registration of {len} bytes")]
    OutOfBounds {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Length of the registration in bytes.
        len: u64,
    },
    /// The registration does not allow what it was to be used for.
    #[error("the registration lacks the right {right}: register the memory with it")]
    AccessDenied {
        /// The missing right.
        right: &'static str,
    },
}

/// Why a work request was not taken into a batch. Nothing changed; the batch can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// Every entry of the queue is in use until completions come.
    #[error("the queue is full: all of its {depth} work requests are posted; poll completions first")]
    Full {
        /// Entries of the queue.
        depth: u32,
    },
    /// The work request has more pieces of memory than the queue was made for.
    #[error("the work request has more than {max} pieces of memory: ask for more when the queue is created")]
    TooManyPieces {
        /// Pieces that fit.
        max: u32,
    },
    /// The bytes do not fit into a work request.
    #[error("{len} bytes cannot be sent inline: at most {max} can")]
    InlineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// A piece of memory is longer than one piece can be, or the pieces together are longer than a message.
    #[error("{len} bytes are too long for one work request")]
    TooLong {
        /// Bytes given.
        len: u64,
    },
    /// The memory is not registered in the protection domain of the queue.
    #[error("the memory is registered in another protection domain than the queue's")]
    WrongDomain,
    /// The memory was registered without a right that the operation needs.
    #[error("the memory was registered without the right {right}, which the operation needs")]
    AccessDenied {
        /// The missing right.
        right: &'static str,
    },
}

/// A batch was not posted, or not all of it. Work requests are posted in order: what follows `posted` was withdrawn and its memory released.
#[derive(Debug, thiserror::Error)]
#[error("only {posted} of {wanted} work requests could be posted: {source}")]
pub struct CommitError {
    /// Work requests that were posted and will complete.
    pub posted: u32,
    /// Work requests in the batch.
    pub wanted: u32,
    /// What the driver said about the first one that it refused.
    pub source: io::Error,
}

/// A completion was given to a queue that it does not belong to, or that is not waiting for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the completion belongs to another queue, or to one that is gone")]
pub struct NotOurs;

/// Something could not be done to an object, which is handed back for another try or another end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused<T> {
    /// The object, as it was.
    pub object: T,
    /// Why.
    #[source]
    pub error: VerbsError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let text = VerbsError::from(Unsupported::NotBuilt).to_string();
        assert!(
            text.contains("--features rdma") && text.contains("cmake"),
            "{text}"
        );
        let text = Unsupported::Capability {
            device: "rxe0".into(),
            what: Capability::DmaBuf,
        };
        assert_eq!(
            text.to_string(),
            "the RDMA device rxe0 has no registration of dma-bufs"
        );
        let text = Unsupported::Library {
            library: "libibverbs.so.1",
            package: "libibverbs1",
        };
        assert!(
            text.to_string()
                .contains("install it (Debian and Ubuntu: libibverbs1)")
        );
    }
}
