//! [`AsyncQueue`]: any queue as futures on tokio.
//!
//! A task of the runtime owns the driving: it commits what other tasks submitted since its last turn as one batch, polls, and
//! sleeps on the queue's descriptor. An operation owns its memory until its completion: dropping its future abandons the
//! answer, not the memory, which stays with the queue until the command completed.
//!
//! Not implemented: cancelling a command at the controller when its future is dropped (it completes, unseen).

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use homi_queue::{
    Buffer, Command, CommandId, Completed, Completion, Data, LostReason, Queue, QueueLost, Undelivered, Wait,
};
use homi_reactor::socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};

use crate::blocking::{check, take_back};
use crate::device::{AnyQueue, Device};
use crate::error::Error;
use crate::options::QueueOptions;

/// Longest sleep of the driver while commands are in flight, so that a queue can notice those that take too long.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// An operation whose queue was lost before it completed. The command may or may not have been executed.
#[derive(Debug, thiserror::Error)]
#[error("the queue was lost: {reason}")]
pub struct OperationLost {
    /// Why the queue was lost.
    pub reason: LostReason,
    /// The operation's memory, handed back.
    pub data: Data,
}

impl From<OperationLost> for Error {
    /// Keeps the reason and drops the memory.
    fn from(lost: OperationLost) -> Self {
        Self::QueueLost(lost.reason)
    }
}

/// What a submitted operation is at.
#[derive(Debug)]
enum Entry {
    Free,
    /// In flight; the future waits.
    Waiting(Option<Waker>),
    /// In flight; the future was dropped.
    Abandoned,
    /// Finished; the future has not looked yet.
    Done(Result<(Completion, Data), OperationLost>),
}

struct State<Q> {
    queue: Q,
    entries: Vec<Entry>,
    free: Vec<usize>,
    /// The entry of the command in each slot: a slot is free again before its future has looked.
    by_slot: Vec<usize>,
    in_flight: usize,
    lost: Option<LostReason>,
    completed: Vec<Completed>,
    closed: bool,
}

struct Shared<Q> {
    state: Mutex<State<Q>>,
    /// As many as the queue has free slots.
    slots: Semaphore,
    /// There is something to commit, or nobody is left to do it for.
    work: Notify,
}

/// A queue for tasks. Clones are the same queue; it is closed when the last clone and the last operation are dropped.
#[derive(Debug)]
pub struct AsyncQueue<Q: Queue + Wait + Send + 'static = AnyQueue> {
    handle: Arc<Handle<Q>>,
}

impl<Q: Queue + Wait + Send + 'static> Clone for AsyncQueue<Q> {
    fn clone(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
        }
    }
}

/// What keeps the driver going.
struct Handle<Q: Queue + Wait + Send + 'static> {
    shared: Arc<Shared<Q>>,
}

impl<Q: Queue + Wait + Send + 'static> std::fmt::Debug for Handle<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("in_flight", &self.shared.state().in_flight)
            .finish()
    }
}

impl<Q: Queue + Wait + Send + 'static> Drop for Handle<Q> {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.work.notify_one();
    }
}

impl AsyncQueue<AnyQueue> {
    /// A queue of its own to a device. Connecting blocks the thread for as long as it takes: call it where that does no
    /// harm, or in `spawn_blocking` and give the queue to [`AsyncQueue::new`].
    ///
    /// # Errors
    /// [`Error`], as for a connection.
    pub fn open(device: &Device, options: QueueOptions) -> Result<Self, Error> {
        Self::new(device.queue(options)?)
    }
}

impl<Q: Queue + Wait + Send + 'static> AsyncQueue<Q> {
    /// Takes over a queue with no command in flight and drives it by a task of the current runtime.
    ///
    /// # Errors
    /// [`Error::Io`] if the descriptor cannot be watched.
    ///
    /// # Panics
    /// As [`tokio::spawn`]: outside of a runtime whose I/O and time are enabled.
    pub fn new(queue: Q) -> Result<Self, Error> {
        let descriptor = match queue.wait_descriptor() {
            None => None,
            Some(descriptor) => {
                let own = descriptor.try_clone_to_owned();
                let own = own.map_err(|error| Error::io("cannot duplicate a queue's descriptor", error))?;
                let watched = watch(own);
                Some(watched.map_err(|error| Error::io("cannot watch a queue's descriptor", error))?)
            }
        };
        let depth = usize::from(queue.depth());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue,
                entries: Vec::new(),
                free: Vec::new(),
                by_slot: vec![0; depth.next_power_of_two()],
                in_flight: 0,
                lost: None,
                completed: Vec::with_capacity(depth),
                closed: false,
            }),
            slots: Semaphore::new(depth),
            work: Notify::new(),
        });
        tokio::spawn(drive(Arc::clone(&shared), descriptor));
        Ok(Self {
            handle: Arc::new(Handle { shared }),
        })
    }

    /// Executes one command. A status other than success is not an error here.
    ///
    /// # Errors
    /// [`OperationLost`] with the memory if the path died before the answer.
    pub async fn execute(&self, command: Command, data: Data) -> Result<(Completion, Data), OperationLost> {
        // The semaphore is never closed: a lost queue answers by `submit`.
        if let Ok(permit) = self.handle.shared.slots.acquire().await {
            permit.forget();
        }
        self.submit(command, data).await
    }

    fn submit(&self, command: Command, data: Data) -> Operation<Q> {
        let shared = &self.handle.shared;
        let mut state = shared.state();
        let entry = state.enter();
        let queue = Arc::clone(&self.handle);
        if let Some(reason) = state.lost.clone() {
            state.set(entry, Entry::Done(Err(OperationLost { reason, data })));
            shared.slots.add_permits(1);
            return Operation { queue, entry };
        }
        match state.queue.reserve() {
            Ok(slot) => {
                let id = state.queue.submit(slot, command, data);
                state.bind(id, entry);
                state.in_flight += 1;
                drop(state);
                shared.work.notify_one();
            }
            Err(_) => {
                // A permit stands for a slot, so somebody reserved one behind this layer's back.
                let reason = LostReason::Io("a slot of the queue is reserved elsewhere".to_owned());
                state.set(entry, Entry::Done(Err(OperationLost { reason, data })));
                shared.slots.add_permits(1);
            }
        }
        Operation { queue, entry }
    }

    /// Reads whole blocks from `lba` on into the buffer: `blocks` of them, which is its length.
    ///
    /// # Errors
    /// [`Error::Command`] if the device says no, or a lost queue.
    pub async fn read(&self, nsid: u32, lba: u64, blocks: u32, buffer: Buffer) -> Result<Buffer, Error> {
        self.transfer("read", Command::read(nsid, lba, blocks), buffer)
            .await
    }

    /// Writes whole blocks from `lba` on from the buffer: `blocks` of them, which is its length.
    ///
    /// # Errors
    /// [`Error::Command`] if the device says no, or a lost queue.
    pub async fn write(&self, nsid: u32, lba: u64, blocks: u32, buffer: Buffer) -> Result<Buffer, Error> {
        self.transfer("write", Command::write(nsid, lba, blocks), buffer)
            .await
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// [`Error::Command`] if the device says no, or a lost queue.
    pub async fn flush(&self, nsid: u32) -> Result<(), Error> {
        let (completion, _) = self.execute(Command::flush(nsid), Data::None).await?;
        check("flush", &completion)
    }

    async fn transfer(&self, what: &str, command: Command, buffer: Buffer) -> Result<Buffer, Error> {
        let (completion, data) = self.execute(command, buffer.into_data()).await?;
        check(what, &completion)?;
        take_back(&mut self.handle.shared.state().queue, data)
    }
}

/// A submitted command.
struct Operation<Q: Queue + Wait + Send + 'static> {
    queue: Arc<Handle<Q>>,
    entry: usize,
}

impl<Q: Queue + Wait + Send + 'static> Future for Operation<Q> {
    type Output = Result<(Completion, Data), OperationLost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.queue.shared.state();
        match state.take(self.entry) {
            Entry::Done(result) => Poll::Ready(result),
            // A task that polls again after the end waits forever, as with any future.
            _ => {
                state.set(self.entry, Entry::Waiting(Some(context.waker().clone())));
                Poll::Pending
            }
        }
    }
}

impl<Q: Queue + Wait + Send + 'static> Drop for Operation<Q> {
    fn drop(&mut self) {
        let mut state = self.queue.shared.state();
        match state.take(self.entry) {
            Entry::Waiting(_) => state.set(self.entry, Entry::Abandoned),
            _ => state.leave(self.entry),
        }
    }
}

impl<Q> Shared<Q> {
    fn state(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: Queue + Wait> State<Q> {
    fn enter(&mut self) -> usize {
        match self.free.pop() {
            Some(entry) => {
                self.set(entry, Entry::Waiting(None));
                entry
            }
            None => {
                self.entries.push(Entry::Waiting(None));
                self.entries.len() - 1
            }
        }
    }

    fn leave(&mut self, entry: usize) {
        self.set(entry, Entry::Free);
        self.free.push(entry);
    }

    fn set(&mut self, entry: usize, to: Entry) {
        if let Some(place) = self.entries.get_mut(entry) {
            *place = to;
        }
    }

    fn take(&mut self, entry: usize) -> Entry {
        self.entries
            .get_mut(entry)
            .map_or(Entry::Free, |place| std::mem::replace(place, Entry::Free))
    }

    fn bind(&mut self, id: CommandId, entry: usize) {
        if let Some(place) = self.by_slot.get_mut(id.slot_index(self.queue.depth())) {
            *place = entry;
        }
    }

    fn finish(&mut self, id: CommandId, result: Result<(Completion, Data), OperationLost>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(&entry) = self.by_slot.get(id.slot_index(self.queue.depth())) else {
            return;
        };
        match self.take(entry) {
            Entry::Waiting(waker) => {
                self.set(entry, Entry::Done(result));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            // The memory goes with the result.
            _ => self.leave(entry),
        }
    }

    /// Commits and polls once; returns how many commands finished.
    fn turn(&mut self) -> usize {
        if self.lost.is_some() {
            return 0;
        }
        let mut completed = std::mem::take(&mut self.completed);
        let outcome = self.queue.commit().and_then(|()| self.queue.poll(&mut completed));
        let mut count = completed.len();
        for Completed { id, completion, data } in completed.drain(..) {
            self.finish(id, Ok((completion, data)));
        }
        self.completed = completed;
        if let Err(lost) = outcome {
            count += self.lose(lost);
        }
        count
    }

    fn lose(&mut self, lost: QueueLost) -> usize {
        let (reason, undelivered) = lost.into_parts();
        let count = undelivered.len();
        for Undelivered { id, data, .. } in undelivered {
            self.finish(
                id,
                Err(OperationLost {
                    reason: reason.clone(),
                    data,
                }),
            );
        }
        self.lost = Some(reason);
        count
    }
}

/// Registers a descriptor with the runtime.
#[expect(
    unsafe_code,
    reason = "the runtime must be promised that the descriptor stays open"
)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, keeps its number, and is closed only when the `AsyncFd` that owns it is dropped or gives
    // it back.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE | Interest::WRITABLE) }
        .map_err(|error| error.into_parts().1)
}

/// Runs a queue until its last handle is dropped.
async fn drive<Q: Queue + Wait + Send + 'static>(
    shared: Arc<Shared<Q>>,
    descriptor: Option<AsyncFd<OwnedFd>>,
) {
    loop {
        let (count, in_flight, blocked) = {
            let mut state = shared.state();
            if state.closed {
                return;
            }
            let count = state.turn();
            if count == 0 && descriptor.is_some() {
                // Asked for before each sleep, though it is always the same: see `Wait`.
                let _ = state.queue.wait_descriptor();
            }
            (count, state.in_flight, state.queue.waits_for_room())
        };
        if count > 0 {
            shared.slots.add_permits(count);
            // Tasks whose commands finished submit the next ones before they are committed together.
            tokio::task::yield_now().await;
            continue;
        }
        match &descriptor {
            // Completions come by polling alone.
            None if in_flight > 0 => tokio::task::yield_now().await,
            None => shared.work.notified().await,
            Some(descriptor) => sleep(&shared, descriptor, in_flight > 0, blocked).await,
        }
    }
}

/// Waits until there is something to submit, to receive, or to send what there was no room for.
async fn sleep<Q>(shared: &Shared<Q>, descriptor: &AsyncFd<OwnedFd>, in_flight: bool, blocked: bool) {
    let ready = async {
        let interest = if blocked {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        let Ok(mut guard) = descriptor.ready(interest).await else {
            // The runtime is shutting down, and this task with it.
            return std::future::pending().await;
        };
        // Readiness is told by edges, and what was there before may not all have been received: ask again after clearing, so that
        // nothing in between is missed.
        guard.clear_ready();
        drop(guard);
        let asked = socket::Interest {
            descriptor: descriptor.get_ref().as_fd(),
            readable: true,
            writable: blocked,
        };
        if let Ok(false) = socket::wait_any(&[asked], Some(Duration::ZERO)) {
            std::future::pending::<()>().await;
        }
    };
    let limit = async {
        if in_flight {
            tokio::time::sleep(LONGEST_SLEEP).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = shared.work.notified() => {}
        () = ready => {}
        () = limit => {}
    }
}
