//! [`Backing`] and [`LocalQueue`]: any of the executors, where the choice is made at run time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use homi_queue::{Buffer, Command, CommandId, Completed, Data, Queue, QueueFull, QueueLost, Slot, Wait};
use homi_reactor::dma_buf::{self, DmaBufUnsupported};
use homi_reactor::file_ring::FileBackend;
use homi_reactor::nvme::Registration;

use crate::drive::Drive;
use crate::drive_queue::DriveQueue;
use crate::file::File;
use crate::file_queue::FileQueue;
use crate::geometry::NamespaceGeometry;
use crate::passthrough::Passthrough;
use crate::passthrough_queue::PassthroughQueue;
use crate::ram::{Ram, RamQueue};

/// What a namespace is kept in. Cloning shares it; each shard opens its own queue on it.
#[derive(Debug, Clone)]
pub enum Backing {
    /// This process's memory.
    Ram(Ram),
    /// A regular file or block device.
    File(File),
    /// A namespace behind the kernel's NVMe driver.
    Passthrough(Passthrough),
    /// A namespace of a drive that this process drives itself.
    Drive(Drive),
}

/// What a queue has done so far, whatever its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocalCounters {
    /// Operations given to the system.
    pub operations: u64,
    /// System calls made for them.
    pub system_calls: u64,
    /// Regions registered with the system.
    pub registrations: u64,
}

impl Backing {
    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        match self {
            Self::Ram(ram) => ram.geometry(),
            Self::File(file) => file.geometry(),
            Self::Passthrough(device) => device.geometry(),
            Self::Drive(drive) => drive.geometry(),
        }
    }

    /// Asks for data in memory of a device: a dma-buf that reads land in and writes come from, without passing through host memory. It is
    /// never copied behind the caller's back; where the kernel cannot do it, the answer names what it lacks.
    ///
    /// # Errors
    /// [`DmaBufUnsupported`]: the descriptor is no dma-buf, this kind of executor cannot use one, or the kernel lacks the feature.
    pub fn request_dma_buf(&self, buffer: BorrowedFd<'_>) -> Result<(), DmaBufUnsupported> {
        let no = |executor, reason| Err(DmaBufUnsupported::Executor { executor, reason });
        match self {
            Self::Ram(_) => no(
                "memory of this process",
                "its blocks have addresses of this process",
            ),
            Self::File(file) if !file.is_block_device() => no(
                "a regular file",
                "the kernel maps a dma-buf for a block device only",
            ),
            Self::File(file) => dma_buf::probe(buffer, file.0.descriptor.as_fd()),
            Self::Passthrough(device) => dma_buf::probe(buffer, device.0.descriptor.as_fd()),
            Self::Drive(_) => no(
                "a drive of this process",
                "its IOMMU imports dma-bufs, its queues do not take them yet",
            ),
        }
    }

    /// A queue on it for up to `depth` commands in flight; `backend` matters to files only. No memory is kept registered with the kernel, and
    /// a drive that is being reset is not waited for.
    ///
    /// # Errors
    /// What the system said when there are no descriptors or memory for it, or when io_uring was demanded and is refused;
    /// [`io::ErrorKind::WouldBlock`] for a drive that is being reset.
    pub fn open_queue(&self, depth: u16, backend: FileBackend) -> io::Result<LocalQueue> {
        if let Self::Drive(drive) = self {
            let queue = drive.open_queue_now(depth)?;
            return Ok(LocalQueue::Drive(Box::new(queue)));
        }
        self.open_queue_with(depth, backend, Registration::Explicit)
    }

    /// The same with a choice of which memory is kept registered with the system between commands, where the executor can
    /// ([`Backing::Passthrough`]).
    ///
    /// # Errors
    /// As for [`Backing::open_queue`].
    pub fn open_queue_with(
        &self,
        depth: u16,
        backend: FileBackend,
        registration: Registration,
    ) -> io::Result<LocalQueue> {
        match self {
            Self::Ram(ram) => Ok(LocalQueue::Ram(ram.open_queue(depth))),
            Self::File(file) => file
                .open_queue(depth, backend)
                .map(|queue| LocalQueue::File(Box::new(queue))),
            Self::Passthrough(device) => device
                .open_queue(depth, registration)
                .map(|queue| LocalQueue::Passthrough(Box::new(queue))),
            Self::Drive(drive) => drive
                .open_queue(depth)
                .map(|queue| LocalQueue::Drive(Box::new(queue))),
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

impl From<Drive> for Backing {
    fn from(drive: Drive) -> Self {
        Self::Drive(drive)
    }
}

impl From<Passthrough> for Backing {
    fn from(device: Passthrough) -> Self {
        Self::Passthrough(device)
    }
}

/// A queue on a [`Backing`].
#[derive(Debug)]
pub enum LocalQueue {
    /// On memory.
    Ram(RamQueue),
    /// On a file.
    File(Box<FileQueue>),
    /// On a namespace behind the kernel's driver.
    Passthrough(Box<PassthroughQueue>),
    /// On a queue pair of a drive.
    Drive(Box<DriveQueue>),
}

macro_rules! either {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            Self::Ram($queue) => $call,
            Self::File($queue) => $call,
            Self::Passthrough($queue) => $call,
            Self::Drive($queue) => $call,
        }
    };
}

impl LocalQueue {
    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        either!(self, queue => queue.geometry())
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> LocalCounters {
        match self {
            Self::Ram(_) => LocalCounters::default(),
            Self::File(queue) => {
                let counters = queue.counters().ring;
                LocalCounters {
                    operations: counters.operations,
                    system_calls: counters.system_calls,
                    registrations: 0,
                }
            }
            Self::Passthrough(queue) => {
                let counters = queue.counters().ring;
                LocalCounters {
                    operations: counters.operations,
                    system_calls: counters.system_calls,
                    registrations: counters.registrations,
                }
            }
            Self::Drive(queue) => {
                let counters = queue.counters();
                LocalCounters {
                    operations: counters.placed,
                    system_calls: counters.interrupts,
                    registrations: counters.mapped,
                }
            }
        }
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

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        either!(self, queue => queue.take_back(data))
    }
}

impl Wait for LocalQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        either!(self, queue => queue.wait_descriptor())
    }
}
