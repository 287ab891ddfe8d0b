//! [`Sleeper`]: a completion queue that is polled without system calls, and one descriptor to sleep on until it, the connection manager
//! or another thread has something.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use homi_verbs::{
    CmEventKind, Completion, CompletionQueue, CompletionQueueOptions, Completions, Device, EventChannel,
    VerbsError,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Completions taken at a time.
pub(super) const BATCH: usize = 32;

/// What the descriptors stand for.
const COMPLETIONS: u64 = 0;
const CONNECTION: u64 = 1;
const WAKE: u64 = 2;

/// Where completions come from. Asking for the descriptor arms the completion queue, which needs a look at it afterwards; what is found
/// then waits in the batch, and the descriptor is readable at once.
pub(super) struct Sleeper {
    /// Absent once the queue is lost.
    cq: RefCell<Option<CompletionQueue>>,
    batch: RefCell<Completions<BATCH>>,
    /// The descriptor was asked for since the last poll.
    armed: Cell<bool>,
    arms: Cell<u64>,
    channel: EventChannel,
    wake: Arc<EventFd>,
    epoll: Epoll,
}

impl Sleeper {
    /// A completion queue for `entries` completions, beside the channel of the connection's events.
    pub(super) fn new(
        device: &Device,
        entries: u32,
        vector: u32,
        channel: EventChannel,
    ) -> Result<Self, VerbsError> {
        let cq = CompletionQueue::new(
            device,
            CompletionQueueOptions {
                entries,
                sleep: true,
                vector,
            },
        )?;
        let system = |action: &'static str| {
            move |error: nix::errno::Errno| VerbsError::System {
                action,
                source: error.into(),
            }
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(system("make an eventfd"))?;
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("make an epoll descriptor"))?;
        {
            let watch = |descriptor: BorrowedFd<'_>, number| {
                epoll
                    .add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, number))
                    .map_err(system("watch a descriptor"))
            };
            if let Some(descriptor) = cq.descriptor() {
                watch(descriptor, COMPLETIONS)?;
            }
            watch(channel.descriptor(), CONNECTION)?;
            watch(wake.as_fd(), WAKE)?;
        }
        Ok(Self {
            cq: RefCell::new(Some(cq)),
            batch: RefCell::default(),
            armed: Cell::new(false),
            arms: Cell::new(0),
            channel,
            wake: Arc::new(wake),
            epoll,
        })
    }

    /// The completion queue, for queue pairs; before [`close`](Self::close).
    pub(super) fn cq(&mut self) -> Option<&CompletionQueue> {
        self.cq.get_mut().as_ref()
    }

    /// Gives the completion queue back; the descriptor stays readable from here on.
    pub(super) fn close(&mut self) {
        *self.batch.get_mut() = Completions::new();
        *self.cq.get_mut() = None;
        self.rouse();
    }

    /// What wakes a thread that sleeps on the descriptor.
    pub(super) fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    pub(super) fn arms(&self) -> u64 {
        self.arms.get()
    }

    /// The next completion. `None` is said once per poll at the most.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Completion> {
        self.batch.get_mut().next()
    }

    /// Takes completions into the batch, which must be empty; returns how many.
    #[inline]
    pub(super) fn poll(&mut self) -> Result<usize, VerbsError> {
        match self.cq.get_mut() {
            Some(cq) => cq.poll(self.batch.get_mut()),
            None => Ok(0),
        }
    }

    /// The descriptor, for a sleep that follows: the next completion will make it readable, and so does `now`.
    pub(super) fn descriptor(&self, now: bool) -> BorrowedFd<'_> {
        self.arms.set(self.arms.get() + 1);
        self.armed.set(true);
        if now || self.arm() {
            self.rouse();
        }
        self.epoll.0.as_fd()
    }

    /// Arms the completion queue; returns whether there is something already.
    fn arm(&self) -> bool {
        let mut cq = self.cq.borrow_mut();
        let Some(cq) = cq.as_mut() else { return true };
        // A queue that is broken says so when it is polled.
        cq.arm().is_err() || cq.poll(&mut self.batch.borrow_mut()).is_ok_and(|count| count > 0)
    }

    /// Makes the descriptor readable.
    pub(super) fn rouse(&self) {
        if let Err(error) = self.wake.write(1) {
            // A full counter is the only cause, and then the descriptor is readable already.
            tracing::trace!(%error, "waking a queue");
        }
    }

    /// Whether somebody may have slept since the last call; if so, what made the descriptor readable is taken away. Returns whether the
    /// connection manager has something to say.
    pub(super) fn woken(&mut self) -> Result<bool, VerbsError> {
        if !self.armed.replace(false) {
            return Ok(false);
        }
        let mut events = [EpollEvent::empty(); 3];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        let count = count.map_err(|error| VerbsError::System {
            action: "look at an epoll descriptor",
            source: error.into(),
        })?;
        let mut connection = false;
        for event in events.iter().take(count) {
            match event.data() {
                COMPLETIONS => {
                    if let Some(cq) = self.cq.get_mut() {
                        cq.disarm()?;
                    }
                }
                CONNECTION => connection = true,
                _ => {
                    // One read takes all of its count.
                    if let Err(error) = self.wake.read() {
                        tracing::trace!(%error, "a wake-up that is gone");
                    }
                }
            }
        }
        Ok(connection)
    }

    /// What the connection manager says about the connection, without waiting.
    pub(super) fn connection_event(&mut self) -> Result<Option<CmEventKind>, VerbsError> {
        Ok(self.channel.next_event()?.map(|event| event.kind))
    }

    /// Waits for the connection manager; `None` after `limit`.
    pub(super) fn channel(&mut self) -> &mut EventChannel {
        &mut self.channel
    }
}

/// An error of verbs as the system's.
pub(super) fn as_io(error: VerbsError) -> io::Error {
    match error {
        VerbsError::System { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}
