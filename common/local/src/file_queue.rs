//! [`FileQueue`]: executes commands on a [`File`] through a file ring.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::thread;

use homi_queue::{
    Command, CommandId, Completed, Completion, Data, LostReason, Queue, QueueFull, QueueLost, Slot, Slots, Undelivered,
    Wait,
};
use homi_reactor::file_ring::{FileBackend, FileIndex, FileRing, FileRingCounters, Operation};
use homi_spec::status::Status;

use crate::bounce::Bounce;
use crate::file::File;
use crate::geometry::NamespaceGeometry;
use crate::task::{Failure, Means, Next, Task};

const FILE: FileIndex = FileIndex(0);
/// How often starting a batch is tried again when the system is short of memory for the moment.
const SUBMIT_TRIES: u32 = 100;

/// What a queue on a file has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileQueueCounters {
    /// File operations and system calls.
    pub ring: FileRingCounters,
    /// File operations that failed with a system's error.
    pub failures: u64,
}

/// Executes commands on a file: at most one file operation in flight per command.
///
/// A Flush covers every write that completed before it was submitted; a write with Force Unit Access is durable when it
/// completes. Memory that direct I/O takes goes to the kernel as it is; other memory is copied through aligned memory
/// of the queue, which [`Data::Anywhere`] is lent from.
pub struct FileQueue {
    file: File,
    ring: FileRing,
    slots: Slots<Task>,
    bounce: Bounce,
    outcomes: Vec<(u64, io::Result<u32>, Data)>,
    /// Commands whose last operation the ring did not take.
    ready: Vec<Completed>,
    failure: Option<Failure>,
    failures: u64,
    lost: Option<LostReason>,
}

impl FileQueue {
    pub(crate) fn new(file: File, depth: u16, backend: FileBackend) -> io::Result<Self> {
        let slots = Slots::new(depth);
        let ring = FileRing::new(slots.depth(), vec![file.0.descriptor.clone()], backend)?;
        Ok(Self {
            file,
            ring,
            slots,
            bounce: Bounce::new(),
            outcomes: Vec::new(),
            ready: Vec::new(),
            failure: None,
            failures: 0,
            lost: None,
        })
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        self.file.geometry()
    }

    /// The back end of its ring: io_uring or threads.
    #[must_use]
    pub fn backend(&self) -> FileBackend {
        self.ring.backend()
    }

    /// Why its ring does not use io_uring, in words, if it fell back to threads.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.ring.fallback_reason()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> FileQueueCounters {
        FileQueueCounters { ring: self.ring.counters(), failures: self.failures }
    }

    /// The last failure of a file operation, once: for logs, because a status does not carry the system's error.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Gives the ring a task's next operation. The ring has a place for every slot, so this fails only when the system
    /// has no resources for a helper thread; the command ends with an error then.
    fn push(&mut self, id: CommandId, operation: Operation, data: Data) {
        let token = u64::from(id.0);
        let Err(refused) = self.ring.push(token, FILE, operation, data) else { return };
        let Ok(task) = self.slots.get_mut(id) else { return };
        if task.is_transfer() {
            task.data = refused.data;
        }
        let (operation, data) = task.settle(Status::INTERNAL_ERROR);
        if self.ring.push(token, FILE, operation, data).is_err()
            && let Ok(task) = self.slots.take(id)
        {
            self.ready.push(Completed { id, completion: Status::INTERNAL_ERROR.into(), data: task.data });
        }
    }

    fn resume(&mut self, id: CommandId, outcome: io::Result<u32>, memory: Data) -> Option<Completed> {
        let Ok(task) = self.slots.get_mut(id) else {
            debug_assert!(false, "the ring hands an operation back once");
            return None;
        };
        let mut failure = None;
        let mut means = Means { file: &self.file.0, bounce: &mut self.bounce, failure: &mut failure };
        let next = task.resume(&mut means, outcome, memory);
        if failure.is_some() {
            self.failure = failure;
            self.failures += 1;
        }
        match next {
            Next::Push(operation, data) => {
                self.push(id, operation, data);
                None
            }
            Next::Over(status) => {
                let task = self.slots.take(id).ok()?;
                Some(Completed { id, completion: Completion::from(status), data: task.data })
            }
        }
    }

    /// Starts what was pushed. Being short of memory passes; anything else ends the queue.
    fn start(&mut self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.ring.submit() {
                Err(error)
                    if tries < SUBMIT_TRIES
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                        ) =>
                {
                    tries += 1;
                    thread::yield_now();
                }
                done => return done,
            }
        }
    }

    /// Ends the queue: every command without a completion is handed back, with its memory where the kernel let go of it.
    fn lose(&mut self, error: &io::Error) -> QueueLost {
        let reason = LostReason::Io(format!("the file ring of {} failed: {error}", self.file.path().display()));
        self.lost = Some(reason);
        let slots = &mut self.slots;
        self.ring.close(&mut |token, memory| {
            let task = u16::try_from(token).ok().and_then(|id| slots.get_mut(CommandId(id)).ok());
            if let Some(task) = task.filter(|task| task.is_transfer()) {
                task.data = memory;
            }
        });
        self.still_lost().err().unwrap_or_else(|| QueueLost::new(LostReason::Local, Vec::new()))
    }

    /// An error if the queue was lost, with the commands submitted since the last one.
    fn still_lost(&mut self) -> Result<(), QueueLost> {
        let Some(reason) = &self.lost else { return Ok(()) };
        let undelivered = self.slots.drain().into_iter();
        let undelivered =
            undelivered.map(|(id, task)| Undelivered { id, command: task.command, data: task.data }).collect();
        Err(QueueLost::new(reason.clone(), undelivered))
    }
}

impl Queue for FileQueue {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let mut task = Task::new(command, data);
        if self.lost.is_some() {
            return self.slots.occupy(slot, task);
        }
        let mut means = Means { file: &self.file.0, bounce: &mut self.bounce, failure: &mut self.failure };
        let (operation, memory) = task.begin(&mut means);
        let id = self.slots.occupy(slot, task);
        self.push(id, operation, memory);
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        self.still_lost()?;
        self.start().map_err(|error| self.lose(&error))
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.still_lost()?;
        let mut outcomes = mem::take(&mut self.outcomes);
        let polled = self.ring.poll(&mut |token, outcome, data| outcomes.push((token, outcome, data)));
        let mut count = self.ready.len();
        completed.extend(self.ready.drain(..));
        for (token, outcome, memory) in outcomes.drain(..) {
            let Ok(id) = u16::try_from(token) else { continue };
            if let Some(done) = self.resume(CommandId(id), outcome, memory) {
                completed.extend(Some(done));
                count += 1;
            }
        }
        self.outcomes = outcomes;
        // Whatever was started above is part of commands that the caller committed before.
        match polled.and_then(|_| self.start()) {
            Ok(()) => Ok(count),
            Err(error) => Err(self.lose(&error)),
        }
    }
}

impl Wait for FileQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wait_descriptor())
    }
}

impl fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileQueue")
            .field("file", &self.file.path())
            .field("ring", &self.ring)
            .field("in_flight", &self.slots.in_flight())
            .finish_non_exhaustive()
    }
}
