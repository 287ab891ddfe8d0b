//! [`FileQueue`]: executes commands on a [`File`] through a file ring.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::thread;

use homi_queue::{
    Command, CommandId, Completed, Completion, Data, LostReason, Queue, QueueFull, QueueLost, Slot, Slots,
    Undelivered, Wait,
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
        FileQueueCounters {
            ring: self.ring.counters(),
            failures: self.failures,
        }
    }

    /// The last failure of a file operation, once: for logs, because a status does not carry the system's error.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Gives the ring a task's next operation. The ring has a place for every slot, so this fails only when the system
    /// has no resources for a helper thread; the command ends with an error then.
    fn push(&mut self, id: CommandId, operation: Operation, data: Data) {
        let token = u64::from(id.0);
        let Err(refused) = self.ring.push(token, FILE, operation, data) else {
            return;
        };
        let Ok(task) = self.slots.get_mut(id) else { return };
        if task.is_transfer() {
            task.data = refused.data;
        }
        let (operation, data) = task.settle(Status::INTERNAL_ERROR);
        if self.ring.push(token, FILE, operation, data).is_err()
            && let Ok(task) = self.slots.take(id)
        {
            self.ready.push(Completed {
                id,
                completion: Status::INTERNAL_ERROR.into(),
                data: task.data,
            });
        }
    }

    fn resume(&mut self, id: CommandId, outcome: io::Result<u32>, memory: Data) -> Option<Completed> {
        let Ok(task) = self.slots.get_mut(id) else {
            debug_assert!(false, "the ring hands an operation back once");
            return None;
        };
        let mut failure = None;
        let mut means = Means {
            file: &self.file.0,
            bounce: &mut self.bounce,
            failure: &mut failure,
        };
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
                Some(Completed {
                    id,
                    completion: Completion::from(status),
                    data: task.data,
                })
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
        let reason = LostReason::Io(format!(
            "the file ring of {} failed: {error}",
            self.file.path().display()
        ));
        self.lost = Some(reason);
        let slots = &mut self.slots;
        self.ring.close(&mut |token, memory| {
            let task = u16::try_from(token)
                .ok()
                .and_then(|id| slots.get_mut(CommandId(id)).ok());
            if let Some(task) = task.filter(|task| task.is_transfer()) {
                task.data = memory;
            }
        });
        self.still_lost()
            .err()
            .unwrap_or_else(|| QueueLost::new(LostReason::Local, Vec::new()))
    }

    /// An error if the queue was lost, with the commands submitted since the last one.
    fn still_lost(&mut self) -> Result<(), QueueLost> {
        let Some(reason) = &self.lost else { return Ok(()) };
        let undelivered = self.slots.drain().into_iter();
        let undelivered = undelivered
            .map(|(id, task)| Undelivered {
                id,
                command: task.command,
                data: task.data,
            })
            .collect();
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
        let mut means = Means {
            file: &self.file.0,
            bounce: &mut self.bounce,
            failure: &mut self.failure,
        };
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
        let polled = self
            .ring
            .poll(&mut |token, outcome, data| outcomes.push((token, outcome, data)));
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

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use homi_queue::Region;

    use super::*;
    use crate::file::FileOptions;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "homi-file-queue-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = env::temp_dir().join(name);
            fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn each_queue(body: impl Fn(FileQueue)) {
        for backend in [FileBackend::IoUring, FileBackend::Threads] {
            let scratch = Scratch::new();
            let file = File::open(&FileOptions::new(&scratch.0)).unwrap();
            match file.open_queue(8, backend) {
                Ok(queue) => body(queue),
                Err(error) => {
                    assert_eq!(backend, FileBackend::IoUring, "threads are always available");
                    eprintln!("skipped: io_uring is not available: {error}");
                }
            }
        }
    }

    fn run(queue: &mut FileQueue, command: Command, data: Data) -> Completed {
        let slot = queue.reserve().unwrap();
        queue.submit(slot, command, data);
        queue.commit().unwrap();
        let mut completed = Vec::new();
        while queue.poll(&mut completed).unwrap() == 0 {
            thread::yield_now();
        }
        completed.remove(0)
    }

    fn memory(value: u8) -> Data {
        Data::whole(Region::from_vec(vec![value; 4096]))
    }

    #[test]
    fn a_lost_queue_hands_every_command_back_once_with_its_memory() {
        each_queue(|mut queue| {
            let mut ids = Vec::new();
            for lba in 0..5 {
                let slot = queue.reserve().unwrap();
                ids.push(queue.submit(slot, Command::write(1, lba * 8, 8), memory(1)));
                if lba == 2 {
                    queue.commit().unwrap();
                }
            }
            let lost = queue.lose(&io::Error::from_raw_os_error(libc::EBADF));
            let (reason, undelivered) = lost.into_parts();
            assert!(reason.to_string().contains("Bad file descriptor"), "{reason}");
            assert_eq!(undelivered.iter().map(|lost| lost.id).collect::<Vec<_>>(), ids);
            for (n, lost) in undelivered.iter().enumerate() {
                assert_eq!((lost.command.lba(), lost.data.len()), (n as u64 * 8, 4096));
            }
            assert!(queue.poll(&mut Vec::new()).unwrap_err().undelivered().is_empty());
            let slot = queue.reserve().unwrap();
            let id = queue.submit(slot, Command::flush(1), Data::None);
            let lost = queue.commit().unwrap_err();
            assert_eq!(
                lost.undelivered().iter().map(|lost| lost.id).collect::<Vec<_>>(),
                [id]
            );
        });
    }

    #[test]
    fn a_file_without_holes_and_zero_ranges_is_zeroed_by_writing() {
        each_queue(|mut queue| {
            let whole = || Data::whole(Region::from_vec(vec![3; 1 << 20]));
            assert!(
                run(&mut queue, Command::write(1, 0, 2048), whole())
                    .completion
                    .is_success()
            );
            queue.file.0.lacks.punch_hole.store(true, Ordering::Relaxed);
            queue.file.0.lacks.zero_range.store(true, Ordering::Relaxed);
            for deallocate in [false, true] {
                let zeroes = Command::write_zeroes(1, 8, 2032, deallocate).with_fua();
                assert!(run(&mut queue, zeroes, Data::None).completion.is_success());
                let done = run(
                    &mut queue,
                    Command::read(1, 0, 2048),
                    Data::Anywhere { len: 1 << 20 },
                );
                let mut bytes = vec![1; 1 << 20];
                done.data.read(0, &mut bytes).unwrap();
                assert_eq!(bytes[..4096], [3; 4096]);
                assert!(bytes[4096..2040 * 512].iter().all(|byte| *byte == 0));
                assert_eq!(bytes[2040 * 512..], [3; 4096]);
            }
            // Deallocation is advice, so what cannot be deallocated keeps its bytes.
            let mut range = [0; 16];
            range[4] = 8;
            let range = Data::whole(Region::from_vec(range.to_vec()));
            assert!(
                run(&mut queue, Command::deallocate(1, 1), range)
                    .completion
                    .is_success()
            );
            assert!(
                run(&mut queue, Command::compare(1, 0, 8), memory(3))
                    .completion
                    .is_success()
            );
        });
    }

    #[test]
    fn what_the_file_refuses_is_a_status_and_a_failure_to_log() {
        each_queue(|mut queue| {
            // The queue believes that it may write; the descriptor says otherwise.
            let scratch = Scratch::new();
            let options = FileOptions::new(&scratch.0).read_only(true);
            let read_only = File::open(&options).unwrap();
            queue.ring = FileRing::new(8, vec![read_only.0.descriptor.clone()], queue.backend()).unwrap();
            let done = run(&mut queue, Command::write(1, 0, 8), memory(1));
            assert!(
                done.completion.status.is(Status::NAMESPACE_WRITE_PROTECTED),
                "{:?}",
                done.completion
            );
            assert_eq!(done.data.len(), 4096);
            assert_eq!(queue.counters().failures, 1);
            let failure = queue.take_failure().unwrap().to_string();
            assert!(
                failure.contains("Write") && failure.contains("Bad file descriptor"),
                "{failure}"
            );
            assert!(queue.take_failure().is_none());
        });
    }
}
