//! The executors of one shard: a [`Queue`] per namespace, and which session waits for which of its commands.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use homi_local::{Backing, FileBackend, LocalQueue};
use homi_queue::{Command, Completed, Completion, Data, Queue, QueueLost, Region, Wait};
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

#[derive(Debug)]
struct Waiting {
    route: ExecutorRoute,
    command: Command,
    data: Data,
}

/// One executor and its clients on this shard.
pub(crate) struct Executor {
    queue: LocalQueue,
    depth: u16,
    /// By slot index: whose command is in it.
    routes: Vec<Option<ExecutorRoute>>,
    /// Commands that came while the queue was full, oldest first.
    waiting: VecDeque<Waiting>,
    in_flight: usize,
    uncommitted: bool,
    completed: Vec<Completed>,
    /// A read may be answered with the executor's own memory, which costs none.
    pub(crate) lends_memory: bool,
    /// The namespace is gone; the executor goes when nothing is in flight.
    pub(crate) retired: bool,
    /// Its queue is lost; it goes, and another one is opened when a command comes.
    pub(crate) lost: bool,
    /// The shard has asked to be woken for this executor.
    pub(crate) watched: bool,
}

impl Executor {
    pub(crate) fn open(backing: &Backing, depth: u16, backend: FileBackend) -> io::Result<Self> {
        let queue = backing.open_queue(depth, backend)?;
        let depth = queue.depth();
        Ok(Self {
            queue,
            depth,
            routes: vec![None; usize::from(depth)],
            waiting: VecDeque::new(),
            in_flight: 0,
            uncommitted: false,
            completed: Vec::with_capacity(usize::from(depth)),
            lends_memory: matches!(backing, Backing::Ram(_)),
            retired: false,
            lost: false,
            watched: false,
        })
    }

    /// Starts a command, or keeps it until a slot is free: a full queue delays, it never fails.
    #[inline]
    pub(crate) fn start(&mut self, route: ExecutorRoute, command: Command, data: Data) {
        let command = Waiting { route, command, data };
        if !self.waiting.is_empty() {
            self.waiting.push_back(command);
        } else if let Err(command) = self.submit(command) {
            self.waiting.push_back(command);
        }
    }

    #[inline]
    fn submit(&mut self, command: Waiting) -> Result<(), Waiting> {
        let Ok(slot) = self.queue.reserve() else {
            return Err(command);
        };
        if let Some(entry) = self.routes.get_mut(slot.index()) {
            *entry = Some(command.route);
        }
        self.in_flight += 1;
        self.uncommitted = true;
        self.queue.submit(slot, command.command, command.data);
        Ok(())
    }

    /// Whether it can be dropped without waiting for somebody: a drive's queue waits for a controller that is being reset.
    pub(crate) fn may_go(&self) -> bool {
        match &self.queue {
            LocalQueue::Drive(queue) => queue.drive().controller().try_state().is_some(),
            LocalQueue::Ram(_) | LocalQueue::File(_) | LocalQueue::Passthrough(_) => true,
        }
    }

    /// Memory is about to go: whatever the executor keeps registered of it goes too.
    #[cold]
    pub(crate) fn forget(&mut self, region: &Region) {
        if let LocalQueue::Drive(queue) = &mut self.queue {
            queue.forget(region);
        }
    }

    /// Whether commands are executing or waiting.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    /// Starts what was submitted, collects what is done into `finished`, and fills freed slots with what waits.
    pub(crate) fn run(&mut self, finished: &mut Vec<Finished>) {
        while self.in_flight > 0 {
            let mut completed = std::mem::take(&mut self.completed);
            let outcome = if std::mem::take(&mut self.uncommitted) {
                self.queue.commit()
            } else {
                Ok(())
            };
            let outcome = outcome.and_then(|()| self.queue.poll(&mut completed));
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
            let mut refilled = false;
            while let Some(command) = self.waiting.pop_front() {
                match self.submit(command) {
                    Ok(()) => refilled = true,
                    Err(command) => {
                        self.waiting.push_front(command);
                        break;
                    }
                }
            }
            if !refilled {
                return;
            }
        }
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
        for command in self.waiting.drain(..) {
            finished.push(Finished {
                route: command.route,
                completion,
                data: command.data,
            });
        }
        self.in_flight = 0;
        self.lost = true;
    }

    /// A descriptor to sleep on while commands are executing.
    pub(crate) fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wait_descriptor()
    }
}
