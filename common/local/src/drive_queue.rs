//! [`DriveQueue`]: a drive's queue pair with a namespace.

use std::fmt;
use std::os::fd::BorrowedFd;

use homi_nvme::{IoQueue, QueueCounters, Refusal};
use homi_queue::{
    Buffer, Command, CommandId, Completed, Data, Queue, QueueFull, QueueLost, Region, Slot, Wait,
};

use homi_spec::status::Status;

use crate::check::check;
use crate::drive::Drive;
use crate::geometry::NamespaceGeometry;
use crate::keeper::Counted;
use crate::reachable::Reachable;

/// Executes commands by a queue pair of a drive, without the kernel.
///
/// Commands go to the drive with all their fields but the namespace, which is this one, and the data pointer. Checked here is what the drive
/// cannot: that the memory is as long as the transfer. Ranges of blocks are the drive's to refuse.
pub struct DriveQueue {
    queue: IoQueue,
    drive: Drive,
    /// Keep regions mapped.
    mapped: Vec<homi_nvme::Mapped>,
    _counted: Option<Counted>,
}

impl DriveQueue {
    pub(crate) fn new(drive: Drive, queue: IoQueue) -> Self {
        Self {
            queue,
            drive,
            mapped: Vec::new(),
            _counted: None,
        }
    }

    pub(crate) fn counted(mut self, counted: Counted) -> Self {
        self._counted = Some(counted);
        self
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        self.drive.geometry()
    }

    /// The namespace.
    #[must_use]
    pub fn drive(&self) -> &Drive {
        &self.drive
    }

    /// The queue's identifier on its controller.
    #[must_use]
    pub fn qid(&self) -> u16 {
        self.queue.qid()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.queue.counters()
    }

    /// Why the last command that the drive never saw was refused, once: for logs.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.queue.take_refusal()
    }

    /// Keeps a region mapped for the drive as long as this queue exists, so that commands on it cost less. Returns whether it is mapped.
    pub fn register(&mut self, region: &Region) -> bool {
        match self.drive.map(region) {
            Ok(mapped) => {
                self.mapped.push(mapped);
                true
            }
            Err(error) => {
                tracing::warn!("memory is mapped when it is used: {error}");
                false
            }
        }
    }
}

impl DriveQueue {
    /// Takes note of memory that the drive reaches, so that nothing is mapped for commands on it. Says whether it is mapped.
    pub fn keep(&mut self, memory: &Reachable) -> bool {
        let mapping = self.drive.attached().reached.mapping(memory);
        let Some(mapping) = mapping else { return false };
        self.queue.keep(mapping);
        true
    }

    /// The same as [`Queue::submit`] for any namespace of this queue's drive.
    #[inline]
    pub fn submit_for(&mut self, drive: &Drive, slot: Slot, mut command: Command, data: Data) -> CommandId {
        command.0.nsid = drive.nsid().into();
        let checked = if drive.is_beside(&self.drive) {
            check(drive.geometry(), false, &command, &data)
        } else {
            Err(Status::INTERNAL_ERROR)
        };
        match checked {
            Ok(()) => self.queue.submit(slot, command, data),
            Err(status) => self.queue.reject(slot, command, data, status),
        }
    }

    /// Takes a command that is not to be executed: it completes with `status`, and the drive never sees it.
    pub fn reject(&mut self, slot: Slot, command: Command, data: Data, status: Status) -> CommandId {
        self.queue.reject(slot, command, data, status)
    }

    /// Unmaps memory that is to go and that was kept or mapped for a command; what commands in flight still use goes with the last of them.
    pub fn forget(&mut self, region: &Region) {
        self.queue.forget(region);
    }
}

impl Queue for DriveQueue {
    fn depth(&self) -> u16 {
        self.queue.depth()
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.queue.reserve()
    }

    fn release(&mut self, slot: Slot) {
        self.queue.release(slot);
    }

    #[inline]
    fn submit(&mut self, slot: Slot, mut command: Command, data: Data) -> CommandId {
        command.0.nsid = self.drive.nsid().into();
        match check(self.drive.geometry(), false, &command, &data) {
            Ok(()) => self.queue.submit(slot, command, data),
            Err(status) => self.queue.reject(slot, command, data, status),
        }
    }

    #[inline]
    fn commit(&mut self) -> Result<(), QueueLost> {
        self.queue.commit()
    }

    #[inline]
    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.queue.poll(completed)
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        self.queue.take_back(data)
    }
}

impl Wait for DriveQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wait_descriptor()
    }
}

impl fmt::Debug for DriveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriveQueue")
            .field("drive", &self.drive)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}
