//! [`QueueShared`]: what a queue and its controller tell each other. The queue's thread only stores and loads here, and never waits.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use homi_pci::Vector;
use homi_queue::LostReason;

use crate::flights::Late;

/// Commands are executed.
pub(crate) const RUNNING: u32 = 0;
/// The controller is being stopped: nothing is rung, nothing is collected, and nothing may be handed back yet.
pub(crate) const STOPPED: u32 = 1;
/// The controller does not reach the queue's memory any more.
pub(crate) const LOST: u32 = 2;
/// The queue is over, but nothing kept the controller from its memory, which must never be used again.
pub(crate) const LEAKED: u32 = 3;
/// Commands are executed, and the queue's thread is asked which have been in flight for too long.
const ASKED: u32 = 4;

/// What a queue's thread says about commands that take too long.
#[derive(Debug)]
pub(crate) struct Report {
    /// When it looked: these commands were in flight then.
    pub(crate) now: Duration,
    pub(crate) late: Vec<Late>,
}

macro_rules! counters {
    ($( $(#[$meta:meta])* $name:ident, )*) => {
        /// What a queue has done so far.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct QueueCounters {
            $( $(#[$meta])* pub $name: u64, )*
        }

        /// [`QueueCounters`] that one thread writes and others read.
        #[derive(Debug, Default)]
        pub(crate) struct Cells {
            $( pub(crate) $name: AtomicU64, )*
        }

        impl Cells {
            pub(crate) fn read(&self) -> QueueCounters {
                QueueCounters { $( $name: self.$name.load(Ordering::Relaxed), )* }
            }
        }
    };
}

counters! {
    /// Device commands placed in the submission queue, each part of a split command among them.
    placed,
    /// Device commands completed.
    completed,
    /// Writes of the submission queue's doorbell register.
    submission_doorbells,
    /// Writes of the completion queue's doorbell register.
    completion_doorbells,
    /// Doorbell values that went to shadow doorbells in memory without a register write.
    shadowed,
    /// Interrupts taken.
    interrupts,
    /// Transfers through memory of the queue, because theirs could not be described or mapped.
    bounced,
    /// Bytes copied for that.
    bounced_bytes,
    /// Reads whose memory the queue chose (`Data::Anywhere`).
    lent,
    /// Mappings made for an operation's sake.
    mapped,
    /// Commands that were split because they were longer than one device command may be.
    split,
    /// Commands that needed a PRP list or an SGL segment.
    lists,
    /// Commands whose data was described by SGLs.
    sgls,
    /// Commands refused before the controller saw them.
    refused,
}

/// Adds to a counter that only this thread writes.
#[inline]
pub(crate) fn add(cell: &AtomicU64, more: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Shared between a queue and its controller.
#[derive(Debug)]
pub(crate) struct QueueShared {
    pub(crate) qid: u16,
    pub(crate) depth: u16,
    state: AtomicU32,
    reason: Mutex<Option<LostReason>>,
    report: Mutex<Option<Report>>,
    /// The controller answered nonsense on this queue, and has to be reset.
    broken: AtomicBool,
    broken_by: Mutex<Option<String>>,
    pub(crate) counters: Cells,
    pub(crate) vector: Option<Arc<Vector>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl QueueShared {
    pub(crate) fn new(qid: u16, depth: u16, vector: Option<Arc<Vector>>) -> Self {
        Self {
            qid,
            depth,
            state: AtomicU32::new(RUNNING),
            reason: Mutex::new(None),
            report: Mutex::new(None),
            broken: AtomicBool::new(false),
            broken_by: Mutex::new(None),
            counters: Cells::default(),
            vector,
        }
    }

    #[inline]
    pub(crate) fn state(&self) -> u32 {
        // What the controller did before it changed the state is seen after it is read.
        self.state.load(Ordering::Acquire)
    }

    /// Whether commands are executed.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.state() & !ASKED == RUNNING
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.state() == ASKED
    }

    /// Asks the queue's thread which commands have been in flight for too long, and wakes it if it may be asleep.
    pub(crate) fn ask(&self) {
        let counters = &self.counters;
        // Both are read without order, so this may be wrong once, and is right the next time.
        if counters.placed.load(Ordering::Relaxed) == counters.completed.load(Ordering::Relaxed) {
            return;
        }
        // A queue that is being stopped is not asked.
        let asked = self
            .state
            .compare_exchange(RUNNING, ASKED, Ordering::AcqRel, Ordering::Acquire);
        if asked.is_ok() {
            self.wake();
        }
    }

    /// The queue's thread answers.
    pub(crate) fn answer(&self, report: Report) {
        *lock(&self.report) = Some(report);
        // Unless it was stopped meanwhile.
        let _ = self
            .state
            .compare_exchange(ASKED, RUNNING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The answer, once.
    pub(crate) fn take_report(&self) -> Option<Report> {
        lock(&self.report).take()
    }

    /// Nothing may be rung from here on.
    pub(crate) fn stop(&self) {
        self.state.store(STOPPED, Ordering::Release);
    }

    /// The queue is over. `safe` says that the controller cannot reach its memory any more.
    pub(crate) fn lose(&self, reason: LostReason, safe: bool) {
        lock(&self.reason).get_or_insert(reason);
        self.state
            .store(if safe { LOST } else { LEAKED }, Ordering::Release);
        self.wake();
    }

    pub(crate) fn reason(&self) -> LostReason {
        lock(&self.reason).clone().unwrap_or(LostReason::Local)
    }

    /// Has the queue's thread look.
    pub(crate) fn wake(&self) {
        if let Some(vector) = &self.vector
            && let Err(error) = vector.raise()
        {
            tracing::warn!(qid = self.qid, %error, "a queue that sleeps could not be woken");
        }
    }

    pub(crate) fn report_broken(&self, what: String) {
        lock(&self.broken_by).get_or_insert(what);
        self.broken.store(true, Ordering::Release);
    }

    pub(crate) fn broken(&self) -> Option<String> {
        if !self.broken.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.broken_by).clone()
    }
}
