//! The executors of one shard: a [`Queue`] on what backs namespaces, and which session waits for which of its commands.
//!
//! Memory, files and the kernel's drives have one for each namespace, which all sessions of the shard share. A drive that the target drives
//! itself has one for each remote queue, on a queue pair of its own, and one that is shared by those for which no pair was left. Each serves all
//! namespaces of its drive. A drive's queue is opened and deleted elsewhere: commands wait meanwhile, the shard does not.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use homi_local::{Backing, Drive, DriveQueue, FileBackend, LocalQueue, Reachable};
use homi_nvme::Cmb;
use homi_queue::{Command, CommandId, Completed, Completion, Data, Queue, QueueLost, Region, Slot, Wait};
use homi_spec::status::Status;

use crate::slab::Key;

/// Where a completion goes: a session of this shard and the command's key on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExecutorRoute {
    pub(crate) session: Key,
    pub(crate) command: u16,
}

/// A finished command on its way back to the session that issued it.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) route: ExecutorRoute,
    pub(crate) completion: Completion,
    pub(crate) data: Data,
}

/// A command, and for which of the executor's namespaces it is.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) route: ExecutorRoute,
    pub(crate) member: u32,
    pub(crate) command: Command,
    pub(crate) data: Data,
    /// In which epoch of the drive's memory buffer its data was placed there, or [`NO_EPOCH`].
    pub(crate) epoch: u64,
}

/// Data that is in no memory buffer.
pub(crate) const NO_EPOCH: u64 = u64::MAX;

impl Waiting {
    /// It is not executed.
    pub(crate) fn failed(self, status: Status) -> Finished {
        Finished {
            route: self.route,
            completion: Completion::failed(status),
            data: self.data,
        }
    }
}

/// A namespace of an executor on a drive.
struct Member {
    /// The backing's handle.
    handle: u64,
    /// `None` when the namespace is gone.
    drive: Option<Drive>,
    /// The drive's memory buffer, if data passes through that.
    cmb: Option<Cmb>,
}

/// One executor and its clients on this shard.
pub(crate) struct Executor {
    /// `None` while a drive's queue is being opened.
    queue: Option<LocalQueue>,
    depth: u16,
    /// By slot index: whose command is in it.
    routes: Vec<Option<ExecutorRoute>>,
    /// Commands that came while the queue was full or not there yet, oldest first.
    waiting: VecDeque<Waiting>,
    in_flight: usize,
    uncommitted: bool,
    completed: Vec<Completed>,
    /// The namespaces of a drive.
    members: Vec<Member>,
    /// The session that has it for itself.
    pub(crate) owner: Option<Key>,
    /// A read may be answered with the executor's own memory, which costs none.
    pub(crate) lends_memory: bool,
    /// Nobody wants it any more; it goes when nothing is in flight.
    pub(crate) retired: bool,
    /// Its queue is lost; it goes, and another one is opened when a command comes.
    pub(crate) lost: bool,
    /// The shard has asked to be woken for this executor.
    pub(crate) watched: bool,
}

impl Executor {
    fn without_queue(owner: Option<Key>) -> Self {
        Self {
            queue: None,
            depth: 0,
            routes: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            uncommitted: false,
            completed: Vec::new(),
            members: Vec::new(),
            owner,
            lends_memory: false,
            retired: false,
            lost: false,
            watched: false,
        }
    }

    /// An executor on anything but a drive, which is shared.
    pub(crate) fn open(backing: &Backing, depth: u16, backend: FileBackend) -> io::Result<Self> {
        let queue = backing.open_queue(depth, backend)?;
        let mut executor = Self::without_queue(None);
        executor.lends_memory = matches!(backing, Backing::Ram(_));
        executor.set_queue(queue);
        Ok(executor)
    }

    /// An executor on a drive whose queue comes later, for one session or for all. It has no namespaces yet.
    pub(crate) fn opening(owner: Option<Key>) -> Self {
        Self::without_queue(owner)
    }

    fn set_queue(&mut self, queue: LocalQueue) {
        self.depth = queue.depth();
        self.routes = vec![None; usize::from(self.depth)];
        self.completed = Vec::with_capacity(usize::from(self.depth));
        self.queue = Some(queue);
    }

    /// Its drive's queue is there: what waited for it starts.
    pub(crate) fn opened(&mut self, mut queue: DriveQueue, memory: &[Reachable]) {
        for region in memory {
            queue.keep(region);
        }
        self.set_queue(LocalQueue::Drive(Box::new(queue)));
        self.refill();
    }

    /// Which of the executor's namespaces has this handle, where it is on the drive's controller: added if it is new.
    pub(crate) fn member(&mut self, handle: u64, drive: &Drive, cmb: Option<&Cmb>) -> Option<u32> {
        let known = self.members.iter().position(|member| member.handle == handle);
        if let Some(known) = known {
            self.members.get(known)?.drive.as_ref()?;
            return u32::try_from(known).ok();
        }
        let drives = self.members.iter().filter_map(|member| member.drive.as_ref());
        for other in drives {
            if !other.is_beside(drive) {
                return None;
            }
        }
        self.members.push(Member {
            handle,
            drive: Some(drive.clone()),
            cmb: cmb.cloned(),
        });
        u32::try_from(self.members.len() - 1).ok()
    }

    /// Whether it serves namespaces of this drive.
    pub(crate) fn is_on(&self, drive: &Drive) -> bool {
        let mut drives = self.members.iter().filter_map(|member| member.drive.as_ref());
        drives.next().is_some_and(|other| other.is_beside(drive))
    }

    /// The namespace with this handle is gone. Says whether it was the last one.
    pub(crate) fn without(&mut self, handle: u64, finished: &mut Vec<Finished>) -> bool {
        let Some(gone) = self.members.iter().position(|member| member.handle == handle) else {
            return false;
        };
        if let Some(member) = self.members.get_mut(gone) {
            member.drive = None;
            member.cmb = None;
        }
        let (of_it, others) = self
            .waiting
            .drain(..)
            .partition::<VecDeque<_>, _>(|waiting| waiting.member as usize == gone);
        self.waiting = others;
        finished.extend(
            of_it
                .into_iter()
                .map(|waiting| waiting.failed(Status::NAMESPACE_NOT_READY)),
        );
        self.members.iter().all(|member| member.drive.is_none())
    }

    /// The handles of its namespaces, in the order of their numbers here.
    pub(crate) fn handles(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.handle).collect()
    }

    /// Commands that wait for the queue, which will not come.
    pub(crate) fn take_waiting(&mut self) -> VecDeque<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// A drive's queue, to be deleted where that may take time.
    pub(crate) fn take_drive_queue(&mut self) -> Option<DriveQueue> {
        match self.queue.take() {
            Some(LocalQueue::Drive(queue)) => Some(*queue),
            other => {
                self.queue = other;
                None
            }
        }
    }

    /// Starts a command, or keeps it until a slot is free: a full queue delays, it never fails.
    #[inline]
    pub(crate) fn start(&mut self, command: Waiting) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(command);
        } else if let Err(command) = self.submit(command) {
            self.waiting.push_back(command);
        }
    }

    #[inline]
    fn submit(&mut self, command: Waiting) -> Result<(), Waiting> {
        let Some(queue) = &mut self.queue else {
            return Err(command);
        };
        let Ok(slot) = queue.reserve() else {
            return Err(command);
        };
        if let Some(entry) = self.routes.get_mut(slot.index()) {
            *entry = Some(command.route);
        }
        self.in_flight += 1;
        self.uncommitted = true;
        match queue {
            LocalQueue::Drive(queue) => submit_to_drive(queue, &self.members, slot, command),
            queue => queue.submit(slot, command.command, command.data),
        };
        Ok(())
    }

    /// Memory came that drives reach.
    #[cold]
    pub(crate) fn keep(&mut self, memory: &Reachable) {
        if let Some(LocalQueue::Drive(queue)) = &mut self.queue {
            queue.keep(memory);
        }
    }

    /// Memory is about to go: whatever the executor keeps registered of it goes too.
    #[cold]
    pub(crate) fn forget(&mut self, region: &Region) {
        if let Some(LocalQueue::Drive(queue)) = &mut self.queue {
            queue.forget(region);
        }
    }

    /// Whether commands are executing.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    /// Whether its queue is there.
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// Starts what was submitted, collects what is done into `finished`, and fills freed slots with what waits.
    pub(crate) fn run(&mut self, finished: &mut Vec<Finished>) {
        while self.in_flight > 0 {
            let Some(queue) = &mut self.queue else { return };
            let mut completed = std::mem::take(&mut self.completed);
            let outcome = if std::mem::take(&mut self.uncommitted) {
                queue.commit()
            } else {
                Ok(())
            };
            let outcome = outcome.and_then(|()| queue.poll(&mut completed));
            for done in completed.drain(..) {
                let route = self
                    .routes
                    .get_mut(done.id.slot_index(self.depth))
                    .and_then(Option::take);
                self.in_flight -= 1;
                if let Some(route) = route {
                    finished.push(Finished {
                        route,
                        completion: done.completion,
                        data: done.data,
                    });
                }
            }
            self.completed = completed;
            if let Err(lost) = outcome {
                self.fail(lost, finished);
                return;
            }
            if !self.refill() {
                return;
            }
        }
    }

    /// Fills free slots with what waits; says whether anything was started.
    fn refill(&mut self) -> bool {
        let mut started = false;
        while let Some(command) = self.waiting.pop_front() {
            match self.submit(command) {
                Ok(()) => started = true,
                Err(command) => {
                    self.waiting.push_front(command);
                    break;
                }
            }
        }
        started
    }

    /// The executor is gone: everything it had, and everything that waited for it, fails with a path error.
    fn fail(&mut self, lost: QueueLost, finished: &mut Vec<Finished>) {
        let completion = Completion::failed(Status::INTERNAL_PATH_ERROR);
        let (reason, undelivered) = lost.into_parts();
        tracing::error!(%reason, commands = undelivered.len(), "an executor was lost");
        for command in undelivered {
            if let Some(route) = self
                .routes
                .get_mut(command.id.slot_index(self.depth))
                .and_then(Option::take)
            {
                finished.push(Finished {
                    route,
                    completion,
                    data: command.data,
                });
            }
        }
        let waiting = self.waiting.drain(..);
        finished.extend(waiting.map(|command| command.failed(Status::INTERNAL_PATH_ERROR)));
        self.in_flight = 0;
        self.lost = true;
    }

    /// A descriptor to sleep on while commands are executing.
    pub(crate) fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref()?.wait_descriptor()
    }
}

#[inline]
fn submit_to_drive(queue: &mut DriveQueue, members: &[Member], slot: Slot, command: Waiting) -> CommandId {
    match members.get(command.member as usize) {
        // What it was to write may not be there any more. One that is submitted before the controller is reset is lost with its queue.
        Some(Member { cmb: Some(cmb), .. }) if command.epoch != NO_EPOCH && command.epoch != cmb.epoch() => {
            queue.reject(slot, command.command, command.data, Status::INTERNAL_PATH_ERROR)
        }
        Some(Member {
            drive: Some(drive), ..
        }) => queue.submit_for(drive, slot, command.command, command.data),
        // Its namespace went, which took what waited with it.
        _ => queue.reject(slot, command.command, command.data, Status::NAMESPACE_NOT_READY),
    }
}
