//! [`Backing`] and [`LocalQueue`]: either of the executors, where the choice is made at run time.

use std::io;
use std::os::fd::BorrowedFd;

use homi_queue::{Command, CommandId, Completed, Data, Queue, QueueFull, QueueLost, Slot, Wait};
use homi_reactor::file_ring::FileBackend;

use crate::file::File;
use crate::file_queue::FileQueue;
use crate::geometry::NamespaceGeometry;
use crate::ram::{Ram, RamQueue};

/// What a namespace is kept in. Cloning shares it; each shard opens its own queue on it.
#[derive(Debug, Clone)]
pub enum Backing {
    /// This process's memory.
    Ram(Ram),
    /// A regular file or block device.
    File(File),
}

impl Backing {
    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        match self {
            Self::Ram(ram) => ram.geometry(),
            Self::File(file) => file.geometry(),
        }
    }

    /// A queue on it for up to `depth` commands in flight; `backend` matters to files only.
    ///
    /// # Errors
    /// What the system said when there are no descriptors or memory for it, or when io_uring was demanded and is refused.
    pub fn open_queue(&self, depth: u16, backend: FileBackend) -> io::Result<LocalQueue> {
        match self {
            Self::Ram(ram) => Ok(LocalQueue::Ram(ram.open_queue(depth))),
            Self::File(file) => file
                .open_queue(depth, backend)
                .map(|queue| LocalQueue::File(Box::new(queue))),
        }
    }
}

impl From<Ram> for Backing {
    fn from(ram: Ram) -> Self {
        Self::Ram(ram)
    }
}

impl From<File> for Backing {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

/// A queue on a [`Backing`].
#[derive(Debug)]
pub enum LocalQueue {
    /// On memory.
    Ram(RamQueue),
    /// On a file.
    File(Box<FileQueue>),
}

macro_rules! either {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            Self::Ram($queue) => $call,
            Self::File($queue) => $call,
        }
    };
}

impl LocalQueue {
    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        either!(self, queue => queue.geometry())
    }
}

impl Queue for LocalQueue {
    fn depth(&self) -> u16 {
        either!(self, queue => queue.depth())
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        either!(self, queue => queue.reserve())
    }

    fn release(&mut self, slot: Slot) {
        either!(self, queue => queue.release(slot));
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        either!(self, queue => queue.submit(slot, command, data))
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        either!(self, queue => queue.commit())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        either!(self, queue => queue.poll(completed))
    }
}

impl Wait for LocalQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        either!(self, queue => queue.wait_descriptor())
    }
}
