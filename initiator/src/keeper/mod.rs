//! The keeper: the one background thread of an [`Initiator`](crate::Initiator), on which the admin connections of its associations
//! live.
//!
//! It sleeps in `ppoll` on its inbox's eventfd and on every admin socket, until the earliest deadline. It never
//! touches I/O queues' data, so I/O goes on while it works, and keep-alives are answered while I/O is busy. It ends
//! when the initiator and its last association are gone.

mod association;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use homi_fabric::time::Instant;
use homi_queue::{Command, Data, LostReason, Wait};
use homi_reactor::socket::{self, Interest};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock;
use crate::controller::AdminReply;

pub(crate) use association::{Association, AssociationShared};

/// What handles ask of the keeper.
pub(crate) enum Message {
    /// Take over an association that was brought up.
    Adopt(Box<Association>),
    /// Execute an admin command.
    Admin {
        association: u64,
        command: Command,
        data: Data,
        reply: Sender<Result<AdminReply, LostReason>>,
    },
    /// Abort a command of an I/O queue.
    Abort { association: u64, qid: u16, cid: u16 },
    /// Shut down and disconnect, waiting so long at most; the answer says whether the controller confirmed.
    Disconnect {
        association: u64,
        limit: Duration,
        reply: Sender<bool>,
    },
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Message>,
    /// The thread runs.
    running: bool,
    /// The initiator is gone: end with the last association.
    closing: bool,
    next_association: u64,
}

/// The keeper, as its thread and all handles share it.
pub(crate) struct Keeper {
    inbox: Mutex<Inbox>,
    wake: EventFd,
}

impl Keeper {
    /// A keeper whose thread starts with the first association.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self {
            inbox: Mutex::new(Inbox::default()),
            wake,
        }))
    }

    /// A number for a new association.
    pub(crate) fn next_association(&self) -> u64 {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.next_association += 1;
        inbox.next_association
    }

    /// Hands an association over, starting the thread if it does not run.
    pub(crate) fn adopt(self: &Arc<Self>, association: Box<Association>) -> io::Result<()> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if !inbox.running {
            let keeper = Arc::clone(self);
            thread::Builder::new()
                .name("homi-keeper".to_owned())
                .spawn(move || keeper.run())?;
            inbox.running = true;
        }
        inbox.messages.push_back(Message::Adopt(association));
        drop(inbox);
        self.wake();
        Ok(())
    }

    /// Sends a message. To an association that is gone already it is dropped, and with it the way to answer, which the sender
    /// sees.
    pub(crate) fn send(&self, message: Message) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.running {
            inbox.messages.push_back(message);
            drop(inbox);
            self.wake();
        }
    }

    /// Lets the thread end with its last association.
    pub(crate) fn close(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            // A full counter is the only cause, and then the descriptor is readable already.
            tracing::trace!(%error, "waking the keeper");
        }
    }

    fn run(self: Arc<Self>) {
        let mut associations: Vec<Association> = Vec::new();
        loop {
            if !self.take_messages(&mut associations) {
                return;
            }
            let now = clock::now();
            let mut deadline = Instant::FAR_FUTURE;
            associations.retain_mut(|association| match association.turn(now) {
                Some(next) => {
                    deadline = deadline.min(next);
                    true
                }
                None => false,
            });
            self.sleep(&associations, deadline);
        }
    }

    /// Deals with the inbox; `false` ends the thread.
    fn take_messages(&self, associations: &mut Vec<Association>) -> bool {
        // Cleared before the inbox is looked at, so that what is put in later wakes the sleep that follows.
        while self.wake.read().is_ok() {}
        loop {
            let message = {
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                match inbox.messages.pop_front() {
                    Some(message) => message,
                    None => {
                        // Without associations a stopped thread costs nothing and is started again by the next one.
                        if inbox.closing && associations.is_empty() {
                            inbox.running = false;
                            return false;
                        }
                        return true;
                    }
                }
            };
            let (Message::Admin { association: id, .. }
            | Message::Abort { association: id, .. }
            | Message::Disconnect { association: id, .. }) = &message
            else {
                if let Message::Adopt(association) = message {
                    associations.push(*association);
                }
                continue;
            };
            // For one that is gone, dropping the message drops its reply channel.
            if let Some(association) = associations.iter_mut().find(|candidate| candidate.id() == *id) {
                association.take(message);
            }
        }
    }

    fn sleep(&self, associations: &[Association], deadline: Instant) {
        let limit = (deadline != Instant::FAR_FUTURE).then(|| deadline.saturating_since(clock::now()));
        let mut interests = Vec::with_capacity(associations.len() + 1);
        interests.push(Interest {
            descriptor: self.wake.as_fd(),
            readable: true,
            writable: false,
        });
        for association in associations {
            let queue = association.queue();
            if let Some(descriptor) = queue.wait_descriptor() {
                interests.push(Interest {
                    descriptor,
                    readable: true,
                    writable: queue.waits_for_room(),
                });
            }
        }
        if let Err(error) = socket::wait_any(&interests, limit) {
            // Only a lack of kernel memory is possible here. The associations' timers go on at this pace.
            tracing::warn!(%error, "the keeper cannot sleep");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}
