//! What an I/O queue and its association know of each other.
//!
//! ```text
//! StreamQueue ──owns──► QueueLink ──strong──► ControllerInner (keeps the association alive)
//!                           └─────strong──► LinkState ◄──strong── Association on the keeper's thread
//! ```
//! The keeper only ever holds [`LinkState`]s: it must not be the one that drops the last handle of an association, since that
//! waits for the keeper.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use homi_queue::{CommandId, LostReason};

use crate::controller::ControllerInner;
use crate::tcp;

/// What both ends see.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) qid: u16,
    lost: AtomicBool,
    reason: Mutex<Option<LostReason>>,
    socket: Arc<OwnedFd>,
}

impl LinkState {
    pub(crate) fn new(qid: u16, socket: Arc<OwnedFd>) -> Self {
        Self {
            qid,
            lost: AtomicBool::new(false),
            reason: Mutex::new(None),
            socket,
        }
    }

    /// Tells the queue that its association ended, and wakes whoever sleeps on its socket.
    pub(crate) fn lose(&self, reason: LostReason) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.lost.store(true, Ordering::Release);
        tcp::hang_up(&self.socket);
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
    pub(crate) fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Why it ended.
    pub(crate) fn reason(&self) -> LostReason {
        // `lost` is read relaxed, so the lock orders the reason.
        let reason = self.state.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or(LostReason::Closed)
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
