//! [`CompletionQueue`], [`Completions`] and [`Completion`]: what the device has done.
#![expect(
    unsafe_code,
    reason = "calls libibverbs and reads the completions that it writes"
)]

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use homi_queue::RemoteKey;
use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq, ibv_wc,
};

use crate::device::{Device, check, errno, system};
use crate::error::VerbsError;
use crate::types::{QpNumber, WorkStatus};
use crate::work::WorkId;

/// Something that the device has done, for the queue that it was posted to: [`Qp::complete`](crate::Qp::complete) if it was sent,
/// [`Qp::received`](crate::Qp::received) or [`SharedReceives::received`](crate::SharedReceives::received) if it was received. Until then that
/// queue counts the work request as posted and holds its memory.
///
/// It cannot be made or copied:
///
/// ```compile_fail,E0382
/// fn twice(qp: &mut homi_verbs::Qp, completion: homi_verbs::Completion) {
///     qp.complete(completion, |_| {});
///     qp.complete(completion, |_| {});
/// }
/// ```
#[must_use = "memory is held until the completion is given to its queue"]
pub struct Completion {
    wc: ibv_wc,
}

impl Completion {
    /// The queue pair that did it. With an own table of queue pairs by number this is the way to the session.
    #[must_use]
    pub fn qp(&self) -> QpNumber {
        QpNumber(self.wc.qp_num)
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> WorkStatus {
        WorkStatus::from_raw(self.wc.status)
    }

    /// Whether it was posted to a receive queue. Known for failures too.
    #[must_use]
    pub fn is_receive(&self) -> bool {
        self.work().is_receive()
    }

    /// What the vendor adds to a failure.
    #[must_use]
    pub fn vendor_error(&self) -> u32 {
        self.wc.vendor_err
    }

    /// Bytes received or read; undefined for what was sent, and for failures.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.wc.byte_len)
    }

    /// The key of this host that the peer has invalidated with its SEND; `flag` is how the device says so.
    pub(crate) fn invalidated(&self, flag: u32) -> Option<RemoteKey> {
        // SAFETY: both variants of the union are 32 bits of plain data; the flag says whether it is this one.
        let key = unsafe { self.wc.imm_data_invalidated_rkey_union.invalidated_rkey };
        (self.wc.wc_flags & flag != 0).then_some(RemoteKey(key))
    }

    pub(crate) fn work(&self) -> WorkId {
        WorkId(self.wc.wr_id)
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("qp", &self.qp())
            .field("receive", &self.is_receive())
            .field("status", &self.status())
            .field("vendor_error", &self.vendor_error())
            .finish()
    }
}

/// Room for `N` completions, filled by [`CompletionQueue::poll`] and emptied by iterating. What is dropped in it leaves its memory with the
/// queues that posted it until they are destroyed.
pub struct Completions<const N: usize> {
    all: [ibv_wc; N],
    next: usize,
    len: usize,
}

impl<const N: usize> Completions<N> {
    /// Without any.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // SAFETY: completions are plain data, for which zeros are a value.
            all: unsafe { std::mem::zeroed() },
            next: 0,
            len: 0,
        }
    }
}

impl<const N: usize> Default for Completions<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Iterator for Completions<N> {
    type Item = Completion;

    fn next(&mut self) -> Option<Completion> {
        if self.next >= self.len {
            return None;
        }
        let wc = *self.all.get(self.next)?;
        self.next += 1;
        Some(Completion { wc })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len - self.next, Some(self.len - self.next))
    }
}

impl<const N: usize> ExactSizeIterator for Completions<N> {}

impl<const N: usize> fmt::Debug for Completions<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completions({} of {N})", self.len - self.next)
    }
}

/// How a completion queue is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionQueueOptions {
    /// Completions that it holds; queues that are created on it must fit together.
    pub entries: u32,
    /// Whether its user may sleep until a completion comes: makes a channel with a descriptor.
    pub sleep: bool,
    /// Which of the device's completion vectors interrupts for it.
    pub vector: u32,
}

struct Channel {
    raw: NonNull<ibv_comp_channel>,
    device: Device,
}

impl Channel {
    fn new(device: &Device) -> Result<Self, VerbsError> {
        // SAFETY: the context is open as long as the device, which the channel keeps.
        let raw = unsafe { ibv_create_comp_channel(device.context()) };
        let raw = NonNull::new(raw).ok_or_else(|| system("create a completion channel"))?;
        let channel = Self {
            raw,
            device: device.clone(),
        };
        set_nonblocking(channel.descriptor())?;
        Ok(channel)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is alive.
        let descriptor = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: the channel owns an open descriptor as long as it lives, and the result borrows it.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: its completion queue is gone; it is given back only here.
        let code = unsafe { ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if code != 0 {
            tracing::warn!(
                device = self.device.name(),
                code,
                "a completion channel was not given back"
            );
        }
    }
}

/// Makes reads of a descriptor return instead of waiting.
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> Result<(), VerbsError> {
    use std::os::fd::AsRawFd;

    // SAFETY: the descriptor is open; the call takes and returns flags.
    let flags = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(system("read a descriptor's flags"));
    }
    // SAFETY: as above.
    let code = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    check(code, "make a descriptor non-blocking")
}

/// The queue itself, kept by everything that completes on it.
pub(crate) struct CqInner {
    raw: NonNull<ibv_cq>,
    /// Entries that it has.
    entries: u32,
    /// Entries promised to queues.
    promised: AtomicU32,
    /// Entries promised to queues that are gone, but whose last completions may still be in it.
    retired: AtomicU32,
    // After the queue: it is destroyed first.
    channel: Option<Channel>,
    device: Device,
}

// SAFETY: libibverbs' completion queues may be used by any thread, several at once.
unsafe impl Send for CqInner {}
// SAFETY: as above; the counters are atomic.
unsafe impl Sync for CqInner {}

impl CqInner {
    pub(crate) fn raw(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for CqInner {
    fn drop(&mut self) {
        // SAFETY: nothing completes on it any more, and every event of it was acknowledged; it is given back only here. The channel is
        // still alive: fields are dropped after this.
        let code = unsafe { ibv_destroy_cq(self.raw.as_ptr()) };
        if code != 0 {
            tracing::warn!(
                device = self.device.name(),
                code,
                "a completion queue was not given back"
            );
        }
    }
}

/// Entries of a completion queue that one queue may fill.
pub(crate) struct Promise {
    cq: Arc<CqInner>,
    entries: u32,
}

impl Promise {
    pub(crate) fn new(cq: &Arc<CqInner>, wanted: u32) -> Result<Self, VerbsError> {
        let promise = |promised: u32| promised.checked_add(wanted).filter(|sum| *sum <= cq.entries);
        cq.promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, promise)
            .map_err(|promised| VerbsError::CompletionQueueFull {
                room: cq.entries - promised,
                wanted,
            })?;
        Ok(Self {
            cq: Arc::clone(cq),
            entries: wanted,
        })
    }

    pub(crate) fn cq(&self) -> &Arc<CqInner> {
        &self.cq
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.cq.retired.fetch_add(self.entries, Ordering::Relaxed);
    }
}

/// A completion queue, polled by one thread.
pub struct CompletionQueue {
    inner: Arc<CqInner>,
    /// Events read from the channel and not acknowledged yet.
    events: u32,
    /// How often it was armed since events were read.
    arms: u32,
}

impl CompletionQueue {
    /// A queue of a device.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`] if the device has no queues of that size, [`VerbsError::System`] if it has no more queues.
    pub fn new(device: &Device, options: CompletionQueueOptions) -> Result<Self, VerbsError> {
        let max = device.limits().completions.min(i32::MAX.unsigned_abs());
        let entries = i32::try_from(options.entries)
            .ok()
            .filter(|_| (1..=max).contains(&options.entries))
            .ok_or(VerbsError::OutOfRange {
                what: "the size of a completion queue",
                value: options.entries.into(),
                min: 1,
                max: max.into(),
            })?;
        let vectors = device.limits().completion_vectors;
        let vector = i32::try_from(options.vector % vectors.max(1)).unwrap_or(0);
        let channel = options.sleep.then(|| Channel::new(device)).transpose()?;
        let raw_channel = channel
            .as_ref()
            .map_or(ptr::null_mut(), |channel| channel.raw.as_ptr());
        // SAFETY: the context is open and the channel alive (or absent) as long as the queue, which keeps both.
        let raw = unsafe { ibv_create_cq(device.context(), entries, ptr::null_mut(), raw_channel, vector) };
        let raw = NonNull::new(raw).ok_or_else(|| system("create a completion queue"))?;
        // SAFETY: the queue is alive.
        let got = unsafe { (*raw.as_ptr()).cqe };
        Ok(Self {
            inner: Arc::new(CqInner {
                raw,
                entries: u32::try_from(got).unwrap_or(options.entries).max(options.entries),
                promised: AtomicU32::new(0),
                retired: AtomicU32::new(0),
                channel,
                device: device.clone(),
            }),
            events: 0,
            arms: 0,
        })
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Completions that it holds.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.inner.entries
    }

    /// Takes up to `N` completions, without waiting and without a system call, and returns how many are in `batch` now. What is still in
    /// `batch` from last time must be used first: with any left, nothing is taken.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the queue is broken: it was overrun, or its device is gone.
    pub fn poll<const N: usize>(&mut self, batch: &mut Completions<N>) -> Result<usize, VerbsError> {
        if batch.next < batch.len {
            return Ok(batch.len - batch.next);
        }
        (batch.next, batch.len) = (0, 0);
        // Before polling: what is retired later may complete after it.
        let retired = self.inner.retired.load(Ordering::Acquire);
        let room = i32::try_from(N).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive, and the array has this many elements of the type that the call writes.
        let taken = unsafe { ibv_poll_cq(self.inner.raw(), room, batch.all.as_mut_ptr()) };
        batch.len = usize::try_from(taken)
            .map_err(|_| VerbsError::System {
                action: "poll a completion queue",
                source: errno(if taken == -1 { -1 } else { taken.saturating_neg() }),
            })?
            .min(N);
        if retired > 0 && batch.len < N {
            // It was empty for a moment, so nothing of the queues that are gone is left.
            self.inner.retired.fetch_sub(retired, Ordering::Relaxed);
            self.inner.promised.fetch_sub(retired, Ordering::Relaxed);
        }
        Ok(batch.len)
    }

    /// Asks for one event at the descriptor when the next completion comes. One that came before this is not announced: poll once more
    /// after this and sleep only if that finds nothing.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the device refuses.
    pub fn arm(&mut self) -> Result<(), VerbsError> {
        // SAFETY: the queue is alive.
        let code = unsafe { ibv_req_notify_cq(self.inner.raw(), 0) };
        self.arms = self.arms.saturating_add(1);
        check(code, "arm a completion queue")
    }

    /// What becomes readable when an armed queue has a completion; absent without [`CompletionQueueOptions::sleep`].
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.channel.as_ref().map(Channel::descriptor)
    }

    /// Takes the events that made the descriptor readable, without waiting, and returns how many there were.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the channel cannot be read.
    pub fn disarm(&mut self) -> Result<u32, VerbsError> {
        let Some(channel) = &self.inner.channel else {
            return Ok(0);
        };
        // Each time that the queue was armed makes one event at the most: to look for more costs a system call. One that comes later
        // makes the descriptor readable again.
        let most = std::mem::take(&mut self.arms).max(1);
        let mut taken = 0;
        while taken < most {
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is alive and both results have a place. It is not blocking.
            let code = unsafe { ibv_get_cq_event(channel.raw.as_ptr(), &raw mut cq, &raw mut context) };
            if code != 0 {
                let source = io::Error::last_os_error();
                match source.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => continue,
                    _ => {
                        return Err(VerbsError::System {
                            action: "read a completion channel",
                            source,
                        });
                    }
                }
            }
            taken += 1;
            self.events += 1;
        }
        // Acknowledging takes a lock: many at once.
        if self.events >= 256 {
            self.acknowledge();
        }
        Ok(taken)
    }

    fn acknowledge(&mut self) {
        if self.events > 0 {
            // SAFETY: the queue is alive, its channel has no other queue, and exactly so many of its events were taken.
            unsafe { ibv_ack_cq_events(self.inner.raw(), self.events) };
            self.events = 0;
        }
    }

    pub(crate) fn inner(&self) -> &Arc<CqInner> {
        &self.inner
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Destroying it waits until every event is acknowledged.
        self.acknowledge();
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("device", self.device())
            .field("entries", &self.entries())
            .field("promised", &self.inner.promised.load(Ordering::Relaxed))
            .finish()
    }
}
