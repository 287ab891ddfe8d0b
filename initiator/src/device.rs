//! [`Device`]: blocks on any path, and [`AnyQueue`]: a queue to them.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use homi_queue::queue::Wait;
use homi_queue::{Command, CommandId, Completed, Data, Queue, QueueFull, QueueLost, Slot};

use crate::controller::Controller;
use crate::error::Error;
use crate::options::QueueOptions;
use crate::queue::{Counters, FabricQueue};
use crate::uri::Uri;

/// Blocks on any path: a namespace behind a fabric, a file, a device of this machine, or memory. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device {
    uri: Uri,
    controller: Option<Controller>,
}

impl Device {
    /// Where it is.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Namespace id to put into commands; 1 on local executors.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        1
    }

    /// Bytes of a logical block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        512
    }

    /// Number of logical blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        0
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks() * u64::from(self.block_size())
    }

    /// Largest transfer of one command in bytes: a whole number of blocks, at most 65536 of them.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        0
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        true
    }

    /// The association behind it; `None` for local executors.
    #[must_use]
    pub fn controller(&self) -> Option<&Controller> {
        self.controller.as_ref()
    }

    /// A queue to it, for the calling thread or one that it is given to.
    ///
    /// # Errors
    /// [`Error`], as for a connection.
    pub fn queue(&self, options: QueueOptions) -> Result<AnyQueue, Error> {
        match &self.controller {
            Some(controller) => controller.queue(options).map(AnyQueue::Fabric),
            None => Err(Error::Unsupported(
                "local executors are not part of this build".to_owned(),
            )),
        }
    }
}

/// A queue of any executor.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyQueue {
    /// A connection to a controller.
    Fabric(FabricQueue),
}

impl AnyQueue {
    /// What the queue has done so far, where it counts (fabric queues do).
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        match self {
            Self::Fabric(queue) => Some(queue.counters()),
        }
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        match self {
            Self::Fabric(queue) => queue.wait_limit(),
        }
    }
}

impl Queue for AnyQueue {
    fn depth(&self) -> u16 {
        match self {
            Self::Fabric(queue) => queue.depth(),
        }
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        match self {
            Self::Fabric(queue) => queue.reserve(),
        }
    }

    fn release(&mut self, slot: Slot) {
        match self {
            Self::Fabric(queue) => queue.release(slot),
        }
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        match self {
            Self::Fabric(queue) => queue.submit(slot, command, data),
        }
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        match self {
            Self::Fabric(queue) => queue.commit(),
        }
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        match self {
            Self::Fabric(queue) => queue.poll(completed),
        }
    }
}

impl Wait for AnyQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Fabric(queue) => queue.wait_descriptor(),
        }
    }
}
