//! [`Keeper`]: the thread that opens and deletes a drive's queues for threads that must not wait for its controller.
//!
//! Creating and deleting queues are admin commands, which take as long as the controller likes, and behind a reset as long as that. A thread
//! that serves others sends such an order here, one thread for each drive, and gets the queue by a call. A queue that is to be deleted while the
//! controller is being reset waits for the end of that without keeping others waiting.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use homi_nvme::NvmeError;

use crate::drive::Drive;
use crate::drive_queue::DriveQueue;
use crate::drives::Home;

/// How often queues that wait for the end of a reset are looked at.
const LATER: Duration = Duration::from_millis(5);

/// Whose a queue pair is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueUse {
    /// One issuer's: refused where only those are left that are kept for sharing.
    Own,
    /// Shared by many issuers.
    Shared,
}

/// Why there is no queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The controller has no queue pair left for this use.
    #[error(
        "{name} has no queue pair left: it granted {granted}, {open} are open and {kept} are kept for queues that are shared"
    )]
    NoneLeft {
        /// The drive.
        name: String,
        /// Queue pairs that it granted.
        granted: u16,
        /// Queue pairs that are open.
        open: usize,
        /// Queue pairs that are kept for sharing, and not open yet.
        kept: u16,
    },
    /// The controller is being reset, or failed.
    #[error("{name} is being reset, or failed")]
    NotReady {
        /// The drive.
        name: String,
    },
    /// The controller did not create it.
    #[error("{name}: {reason}")]
    Failed {
        /// The drive.
        name: String,
        /// Why not.
        reason: String,
    },
}

type Answer = Box<dyn FnOnce(Result<DriveQueue, QueueError>) + Send>;

enum Order {
    Open {
        drive: Drive,
        depth: u16,
        for_use: QueueUse,
        answer: Answer,
    },
    Delete(Box<DriveQueue>),
}

/// Counts a shared queue for as long as it exists.
pub(crate) struct Counted(Arc<AtomicU16>);

impl Counted {
    fn new(count: &Arc<AtomicU16>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The way to a drive's thread, which is started by the first order and ends with the drive.
pub(crate) struct Keeper {
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    name: String,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    shared_open: Arc<AtomicU16>,
    shared_most: u16,
}

impl Keeper {
    pub(crate) fn new(name: &str, home: &Home) -> Self {
        Self {
            orders: Mutex::new(None),
            name: name.to_owned(),
            threads: Arc::clone(&home.threads),
            shared_open: Arc::default(),
            shared_most: home.shared_queues,
        }
    }

    fn sender(&self) -> Option<mpsc::Sender<Order>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        match &*orders {
            Some(sender) => Some(sender.clone()),
            None => {
                let (sender, inbox) = mpsc::channel();
                let name = format!("queues-{}", self.name);
                let thread = thread::Builder::new().name(name).spawn(move || run(&inbox));
                match thread {
                    Ok(thread) => {
                        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                        threads.push(thread);
                    }
                    Err(error) => {
                        tracing::error!("no thread for the queues of {}: {error}", self.name);
                        return None;
                    }
                }
                Some(orders.insert(sender).clone())
            }
        }
    }
}

fn run(inbox: &Receiver<Order>) {
    let mut leaving: Vec<Box<DriveQueue>> = Vec::new();
    loop {
        let order = if leaving.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(LATER)
        };
        match order {
            Ok(Order::Open {
                drive,
                depth,
                for_use,
                answer,
            }) => answer(open(&drive, depth, for_use)),
            Ok(Order::Delete(queue)) => leaving.push(queue),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // A controller that is being reset would be waited for.
        leaving.retain(|queue| queue.drive().controller().try_state().is_none());
    }
}

fn open(drive: &Drive, depth: u16, for_use: QueueUse) -> Result<DriveQueue, QueueError> {
    let (keeper, controller) = (&drive.attached().keeper, drive.controller());
    let name = || drive.name().to_owned();
    let failed = |error: NvmeError| QueueError::Failed {
        name: name(),
        reason: error.to_string(),
    };
    if !drive.is_ready() {
        return Err(QueueError::NotReady { name: name() });
    }
    let granted = controller.info().map_err(failed)?.queues();
    let (open, kept) = match for_use {
        QueueUse::Shared => (controller.queues().len(), 0),
        QueueUse::Own => {
            let shared = keeper.shared_open.load(Ordering::Relaxed);
            (
                controller.queues().len(),
                keeper.shared_most.saturating_sub(shared),
            )
        }
    };
    let none_left = QueueError::NoneLeft {
        name: name(),
        granted,
        open,
        kept,
    };
    if open + usize::from(kept) >= usize::from(granted) {
        return Err(none_left);
    }
    match drive.open_pair(depth) {
        Ok(queue) if for_use == QueueUse::Shared => Ok(queue.counted(Counted::new(&keeper.shared_open))),
        Ok(queue) => Ok(queue),
        Err(NvmeError::NoQueues { .. }) => Err(none_left),
        Err(error) => Err(failed(error)),
    }
}

impl Drive {
    /// Has a queue pair for up to `depth` commands in flight opened by the drive's own thread, where `answer` is called; the caller never waits
    /// for the controller. As with [`Drive::open_queue`], it has an interrupt where one is left.
    pub fn request_queue(
        &self,
        depth: u16,
        for_use: QueueUse,
        answer: impl FnOnce(Result<DriveQueue, QueueError>) + Send + 'static,
    ) {
        let Some(sender) = self.attached().keeper.sender() else {
            return answer(Err(QueueError::Failed {
                name: self.name().to_owned(),
                reason: "its thread cannot be started".to_owned(),
            }));
        };
        let order = Order::Open {
            drive: self.clone(),
            depth,
            for_use,
            answer: Box::new(answer),
        };
        // The thread is there as long as this drive is.
        drop(sender.send(order));
    }
}

impl DriveQueue {
    /// Drops the queue on the drive's own thread, where its deletion may wait for the controller. The queue goes before its memory does.
    pub fn delete_elsewhere(self) {
        // Nothing else of the drive is held here: its last holder shuts it down, which is to happen there.
        if let Some(sender) = self.drive().attached().keeper.sender() {
            // Without a thread it is dropped here.
            drop(sender.send(Order::Delete(Box::new(self))));
        }
    }
}
