//! The event loop of a shard: one [`Reactor`] per thread, sockets in, [`Event`]s out.
//!
//! The reactor runs on io_uring, and with the same interface and the same events on epoll where the system
//! refuses io_uring. It is, with [`socket`], the only place that touches sockets with unsafe code: `homi-target`
//! and `homi-initiator` build on it without any.
//!
//! How a shard uses it: it calls [`Reactor::turn`] in a loop. The handler sees every event of the turn, and
//! what the shard wants next is armed between turns with [`Reactor::receive`] and [`Reactor::send`]; everything
//! armed goes to the kernel in one system call with the next turn. While there is work the shard polls
//! ([`Wait::Poll`]), and when there is none it sleeps in the kernel ([`Wait::Sleep`]), from which other threads wake
//! it with a [`Waker`].
//!
//! Where payload lands is the caller's choice per receive: in a staging buffer of the reactor, when the next bytes
//! are not known yet, or straight in the [`Segment`](homi_queue::Segment) that they are meant for.
//!
//! In steady state nothing is allocated: slots, operation memory, queues and the vectors of a
//! [`GatherList`] are reused.
//!
//! Not here: TLS, zero-copy sends, registered files, NAPI busy polling through the ring, and datagrams.
#![expect(
    unsafe_code,
    reason = "hands memory to the kernel for as long as operations on sockets are in flight"
)]

pub mod dma_buf;
pub mod file_ring;
pub mod mapping;
pub mod nvme;
mod readiness;
mod slab;
pub mod socket;
pub mod storage;
mod system;
mod types;
mod uring;
mod waker;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};

use homi_queue::GatherList;

pub use slab::SocketKey;
pub use types::{
    Backend, BackendChoice, Counters, Event, MAX_LOOKAHEAD, Options, ReactorError, Receive, Wait,
};
pub use waker::Waker;

use readiness::Readiness;
use uring::Uring;

enum Inner {
    Uring(Box<Uring>),
    Readiness(Box<Readiness>),
}

/// Calls the same method of whichever backend is in use.
macro_rules! either {
    ($reactor:expr, $backend:ident => $call:expr) => {
        match $reactor {
            Inner::Uring($backend) => $call,
            Inner::Readiness($backend) => $call,
        }
    };
}

/// One event loop. It belongs to the thread that created it and cannot be sent to another one, because the kernel
/// ties a ring to its only submitter.
///
/// Dropping it cancels what is in flight and waits for that; memory that the kernel might still write to after
/// two seconds of waiting is leaked rather than freed.
pub struct Reactor {
    inner: Inner,
    fallback: Option<String>,
    waker: Waker,
    not_send: PhantomData<*mut ()>,
}

impl Reactor {
    /// Starts an event loop on this thread.
    ///
    /// # Errors
    /// [`ReactorError::InvalidOption`] if an option is out of its range, [`ReactorError::IoUringRefused`] if io_uring
    /// was demanded and the system refuses it, [`ReactorError::System`] if a descriptor or memory cannot be had.
    pub fn new(options: Options) -> Result<Self, ReactorError> {
        options.check()?;
        let waker = Waker::new().map_err(|source| ReactorError::System {
            action: "create an eventfd",
            source,
        })?;
        let (inner, fallback) = match options.backend {
            BackendChoice::IoUring => (Inner::Uring(Box::new(Uring::new(&options, waker.clone())?)), None),
            BackendChoice::Readiness => (
                Inner::Readiness(Box::new(Readiness::new(&options, waker.clone())?)),
                None,
            ),
            BackendChoice::Auto => match Uring::new(&options, waker.clone()) {
                Ok(uring) => (Inner::Uring(Box::new(uring)), None),
                Err(refused) => {
                    let readiness = Readiness::new(&options, waker.clone())?;
                    (Inner::Readiness(Box::new(readiness)), Some(refused.to_string()))
                }
            },
        };
        Ok(Self {
            inner,
            fallback,
            waker,
            not_send: PhantomData,
        })
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match &self.inner {
            Inner::Uring(_) => Backend::IoUring,
            Inner::Readiness(_) => Backend::Readiness,
        }
    }

    /// Why [`BackendChoice::Auto`] did not choose io_uring; `None` if it did or if the backend was demanded.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// A handle with which other threads end this reactor's sleep.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Adds a connected stream socket. Nothing is received before [`Reactor::receive`]. Events about it carry `token`.
    ///
    /// If the system cannot watch the descriptor, the next turn reports [`Event::Failed`].
    pub fn add_stream(&mut self, stream: OwnedFd, token: u64) -> SocketKey {
        either!(&mut self.inner, backend => backend.add_stream(stream, token))
    }

    /// Adds a listening socket, which accepts until it is closed. Accepted streams are non-blocking and close on exec.
    ///
    /// After an error, for example when the process is out of descriptors, it pauses for 100 milliseconds.
    pub fn add_listener(&mut self, listener: OwnedFd, token: u64) -> SocketKey {
        either!(&mut self.inner, backend => backend.add_listener(listener, token))
    }

    /// Adds a duplicate of any descriptor that can be polled, for example another ring's. Nothing is reported before
    /// [`Reactor::watch`].
    ///
    /// # Errors
    /// The system's error if the descriptor cannot be duplicated or watched.
    pub fn add_watched(&mut self, descriptor: BorrowedFd<'_>, token: u64) -> io::Result<SocketKey> {
        let duplicate = descriptor.try_clone_to_owned()?;
        either!(&mut self.inner, backend => backend.add_watched(duplicate, token))
    }

    /// Asks for one [`Event::Readable`] as soon as the descriptor is readable, or at once if it is. Asking again before
    /// the event came changes nothing.
    pub fn watch(&mut self, watched: SocketKey) {
        either!(&mut self.inner, backend => backend.watch(watched));
    }

    /// Starts the next receive of a stream; it ends with [`Event::Received`], [`Event::Closed`] or [`Event::Failed`].
    ///
    /// One receive can be in flight per stream: a second one fails with an event. Closed keys are ignored.
    pub fn receive(&mut self, stream: SocketKey, receive: Receive) {
        either!(&mut self.inner, backend => backend.receive(stream, receive));
    }

    /// Sends a list; it ends with [`Event::Sent`] once every byte is in the kernel's hands, or with [`Event::Failed`].
    /// Either hands the list back, so that its capacity is reused.
    ///
    /// One send can be in flight per stream: a second one fails with an event. With a closed key, the list is dropped.
    pub fn send(&mut self, stream: SocketKey, list: GatherList) {
        either!(&mut self.inner, backend => backend.send(stream, list));
    }

    /// Whether a send of this stream has not ended yet.
    #[must_use]
    pub fn send_in_flight(&self, stream: SocketKey) -> bool {
        either!(&self.inner, backend => backend.send_in_flight(stream))
    }

    /// Ends a stream, listener or watched descriptor: streams are shut down in both directions at once, operations in
    /// flight are cancelled, and the descriptor is closed when they have ended. There are no further events for it.
    ///
    /// Wait for [`Event::Sent`] first if what was sent last must still reach the peer.
    pub fn close(&mut self, socket: SocketKey) {
        either!(&mut self.inner, backend => backend.close(socket));
    }

    /// Submits everything armed since the last turn, waits as `wait` says, and gives every event to `handler`.
    /// Returns the number of events. A sleep can end without any event.
    ///
    /// On io_uring, [`Wait::Poll`] makes no system call unless there is something to submit or the kernel flagged
    /// work to be done: polling is a few loads from memory.
    ///
    /// # Errors
    /// [`ReactorError::System`] if the system call fails for a reason that concerns the whole loop. Operations that fail
    /// are events instead.
    pub fn turn(&mut self, wait: Wait, handler: &mut impl FnMut(Event<'_>)) -> Result<usize, ReactorError> {
        either!(&mut self.inner, backend => backend.turn(wait, handler))
    }

    /// What the loop has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        either!(&self.inner, backend => backend.counters())
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("backend", &self.backend())
            .field("counters", &self.counters())
            .finish()
    }
}
