//! What an I/O queue and its association know of each other.
//!
//! ```text
//! FabricQueue ──owns──► QueueLink ──strong──► ControllerInner (keeps the association alive)
//!                           └─────strong──► LinkState ◄──strong── Association on the keeper's thread
//! ```
//! The keeper only ever holds [`LinkState`]s: it must not be the one that drops the last handle of an association, since that
//! waits for the keeper.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use homi_queue::{CommandId, LostReason};
use nix::sys::eventfd::EventFd;

use crate::controller::ControllerInner;
use crate::tcp;

/// What both ends see.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) qid: u16,
    lost: AtomicBool,
    reason: Mutex<Option<LostReason>>,
    hang_up: HangUp,
}

/// How whoever sleeps on a queue is woken, from another thread.
#[derive(Debug)]
pub(crate) enum HangUp {
    /// By the end of its connection.
    Socket(Arc<OwnedFd>),
    /// By an event that it waits for too.
    #[cfg_attr(not(feature = "rdma"), expect(dead_code, reason = "for queues over RDMA"))]
    Event(Arc<EventFd>),
}

impl HangUp {
    fn now(&self) {
        match self {
            Self::Socket(socket) => tcp::hang_up(socket),
            Self::Event(event) => {
                if let Err(error) = event.write(1) {
                    // A full counter is the only cause, and then the descriptor is readable already.
                    tracing::trace!(%error, "waking a queue");
                }
            }
        }
    }
}

impl LinkState {
    pub(crate) fn new(qid: u16, hang_up: HangUp) -> Self {
        Self {
            qid,
            lost: AtomicBool::new(false),
            reason: Mutex::new(None),
            hang_up,
        }
    }

    /// Tells the queue that its association ended, and wakes whoever sleeps on it.
    pub(crate) fn lose(&self, reason: LostReason) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.lost.store(true, Ordering::Release);
        self.hang_up.now();
    }
}

/// A queue's end.
#[derive(Debug)]
pub(crate) struct QueueLink {
    state: Arc<LinkState>,
    controller: Arc<ControllerInner>,
}

impl QueueLink {
    pub(crate) fn new(state: Arc<LinkState>, controller: Arc<ControllerInner>) -> Self {
        Self { state, controller }
    }

    /// Whether the association ended.
    #[inline]
    fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Why it ended.
    fn reason(&self) -> LostReason {
        // `lost` is read relaxed, so the lock orders the reason.
        let reason = self.state.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or(LostReason::Closed)
    }

    /// Why the association ended, if it did.
    #[inline]
    pub(crate) fn ended(&self) -> Option<LostReason> {
        self.is_lost().then(|| match self.reason() {
            LostReason::Local => LostReason::Local,
            other => LostReason::Association(other.to_string()),
        })
    }

    /// Asks for a command of this queue to be aborted.
    pub(crate) fn abort(&self, id: CommandId) {
        self.controller.abort(self.state.qid, id);
    }
}

impl Drop for QueueLink {
    fn drop(&mut self) {
        self.controller.forget_queue(&self.state);
    }
}
