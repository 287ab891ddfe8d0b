//! [`ReceiveBatch`], [`Received`] and [`SharedReceives`]: memory for what peers send.
#![expect(unsafe_code, reason = "hands lists of work requests to the device")]

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use homi_queue::RemoteKey;
use rdma_sys::{
    ibv_create_srq, ibv_destroy_srq, ibv_post_recv, ibv_post_srq_recv, ibv_qp, ibv_recv_wr, ibv_sge, ibv_srq,
    ibv_srq_attr, ibv_srq_init_attr,
};

use crate::completion::{Completion, CompletionQueue, CqInner, Promise};
use crate::device::{errno, is_unsupported, system};
use crate::error::{Capability, CommitError, NotOurs, PostError, VerbsError};
use crate::memory::{MemoryRegion, Pd, Piece};
use crate::types::{Access, Counters, WorkStatus};
use crate::work::{MAX_RECEIVES, ReceiveTable};

/// A receive that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The caller's word for it.
    pub token: u64,
    /// How it ended. After anything but success the memory's contents are undefined.
    pub status: WorkStatus,
    /// Bytes that came; 0 unless it ended well.
    pub bytes: u64,
    /// The key of this host that the peer has invalidated with the message.
    pub invalidated: Option<RemoteKey>,
}

/// Where a list of receives goes.
#[derive(Clone, Copy)]
enum Sink {
    Qp(*mut ibv_qp),
    Shared(*mut ibv_srq),
}

/// Work requests of a receive queue, and what holds their memory.
pub(crate) struct Receives {
    table: ReceiveTable<MemoryRegion>,
    requests: Box<[ibv_recv_wr]>,
    pieces: Box<[ibv_sge]>,
    per_request: usize,
    pd: Pd,
    counters: Counters,
}

// SAFETY: the pointers in the work requests are written before each use and point into this value's own allocations.
unsafe impl Send for Receives {}

impl Receives {
    pub(crate) fn new(depth: u32, per_request: u32, pd: &Pd) -> Self {
        let depth = depth.min(MAX_RECEIVES);
        let empty = ibv_recv_wr {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 0,
        };
        let none = ibv_sge {
            addr: 0,
            length: 0,
            lkey: 0,
        };
        Self {
            table: ReceiveTable::new(depth, per_request),
            requests: vec![empty; depth as usize].into_boxed_slice(),
            pieces: vec![none; (depth as usize).saturating_mul(per_request as usize)].into_boxed_slice(),
            per_request: per_request as usize,
            pd: pd.clone(),
            counters: Counters::default(),
        }
    }

    /// A batch for a queue pair.
    ///
    /// # Safety
    /// The queue pair must be alive as long as the batch, and be destroyed before these receives.
    pub(crate) unsafe fn for_qp(&mut self, qp: *mut ibv_qp) -> ReceiveBatch<'_> {
        ReceiveBatch {
            receives: self,
            sink: Sink::Qp(qp),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn received(&mut self, completion: &Completion) -> Result<Received, NotOurs> {
        let (token, capacity) = self.table.complete(completion.work()).ok_or(NotOurs)?;
        self.counters.completions += 1;
        let status = completion.status();
        let well = status.is_success();
        Ok(Received {
            token,
            status,
            // Never more than there is memory for, whatever a driver says.
            bytes: if well { completion.bytes().min(capacity) } else { 0 },
            invalidated: completion
                .invalidated(self.pd.device().invalidated_flag())
                .filter(|_| well),
        })
    }

    pub(crate) fn drain(&mut self, released: &mut impl FnMut(u64)) {
        self.table.drain(released);
    }

    fn push(&mut self, pieces: impl IntoIterator<Item = Piece>, token: u64) -> Result<(), PostError> {
        let depth = self.table.depth();
        let Some((place, held)) = self.table.next() else {
            return Err(PostError::Full { depth });
        };
        let start = place.saturating_mul(self.per_request);
        let list = self
            .pieces
            .get_mut(start..start.saturating_add(self.per_request))
            .unwrap_or(&mut []);
        let filled = fill(pieces, &self.pd, Some(WRITE), list, held, |memory| memory);
        let Filled { count, bytes } = match filled {
            Ok(filled) => filled,
            Err(error) => {
                self.table.abandon();
                return Err(error);
            }
        };
        let (place, id) = self.table.push(token, bytes).ok_or(PostError::Full { depth })?;
        if let Some(request) = self.requests.get_mut(place) {
            request.wr_id = id.0;
            request.num_sge = count;
        }
        Ok(())
    }

    fn commit(&mut self, sink: Sink) -> Result<u32, CommitError> {
        let wanted = self.table.batch().len();
        let Some(first) = self.table.batch().first() else {
            return Ok(0);
        };
        let first = usize::from(*first);
        // One pointer for each array, from which all others are derived.
        let requests = self.requests.as_mut_ptr();
        let pieces = self.pieces.as_mut_ptr();
        let mut next = ptr::null_mut();
        for place in self.table.batch().iter().rev().map(|place| usize::from(*place)) {
            let request = requests.wrapping_add(place);
            // SAFETY: places are indices of the array, which nothing else uses meanwhile.
            unsafe { (*request).next = next };
            let list = pieces.wrapping_add(place.saturating_mul(self.per_request));
            // SAFETY: as above.
            unsafe { (*request).sg_list = list };
            next = request;
        }
        let head = requests.wrapping_add(first);
        let mut bad = ptr::null_mut();
        let code = match sink {
            // SAFETY: the queue pair is alive (promised when the batch was made). The list is complete and ends; its pieces lie in registered
            // memory of this domain that the table holds until their completions.
            Sink::Qp(qp) => unsafe { ibv_post_recv(qp, head, &raw mut bad) },
            // SAFETY: as above, for the shared queue.
            Sink::Shared(srq) => unsafe { ibv_post_srq_recv(srq, head, &raw mut bad) },
        };
        let posted = if code == 0 {
            wanted
        } else {
            let refused = self
                .table
                .batch()
                .iter()
                .position(|place| ptr::eq(requests.wrapping_add(usize::from(*place)), bad));
            // A driver that names none has taken none.
            refused.unwrap_or(0)
        };
        self.table.commit(posted);
        let posted_count = u32::try_from(posted).unwrap_or(u32::MAX);
        self.counters.work_requests += u64::from(posted_count);
        self.counters.doorbells += 1;
        if code == 0 {
            return Ok(posted_count);
        }
        Err(CommitError {
            posted: posted_count,
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
            source: errno(code),
        })
    }
}

/// A right that pieces need, and its name.
pub(crate) type Right = (Access, &'static str);

/// What everything needs into which the device writes.
pub(crate) const WRITE: Right = (Access::WRITE, "write");

/// Pieces that were put into a work request's list.
pub(crate) struct Filled {
    pub(crate) count: i32,
    pub(crate) bytes: u64,
}

/// Puts pieces into a work request's list, and what must be held for them beside it. After an error, `held` has some of them.
pub(crate) fn fill<H>(
    pieces: impl IntoIterator<Item = Piece>,
    pd: &Pd,
    needed: Option<Right>,
    list: &mut [ibv_sge],
    held: &mut [Option<H>],
    hold: impl Fn(MemoryRegion) -> H,
) -> Result<Filled, PostError> {
    let max = list.len().min(held.len());
    let mut places = list.iter_mut().zip(held);
    let (mut count, mut bytes) = (0_i32, 0_u64);
    for piece in pieces {
        let Some((sge, held)) = places.next() else {
            return Err(PostError::TooManyPieces {
                max: u32::try_from(max).unwrap_or(u32::MAX),
            });
        };
        *sge = describe(&piece, pd, needed)?;
        bytes = bytes.saturating_add(piece.len());
        *held = Some(hold(piece.into_memory()));
        count += 1;
    }
    if bytes > MAX_MESSAGE {
        return Err(PostError::TooLong { len: bytes });
    }
    Ok(Filled { count, bytes })
}

/// The longest message of any RDMA transport, in bytes (InfiniBand 1.4, section 9.7.7).
const MAX_MESSAGE: u64 = 1 << 31;

/// A piece as the device takes it, if it may be used so.
fn describe(piece: &Piece, pd: &Pd, needed: Option<Right>) -> Result<ibv_sge, PostError> {
    if !piece.memory().pd().is(pd) {
        return Err(PostError::WrongDomain);
    }
    if let Some((access, right)) = needed
        && !piece.memory().access().contains(access)
    {
        return Err(PostError::AccessDenied { right });
    }
    Ok(ibv_sge {
        addr: piece.address().0,
        length: u32::try_from(piece.len()).map_err(|_| PostError::TooLong { len: piece.len() })?,
        lkey: piece.memory().lkey(),
    })
}

/// Receives that go to the device as one list. What is not committed is withdrawn.
///
/// ```compile_fail,E0499
/// fn two_at_once(qp: &mut homi_verbs::Qp) {
///     let first = qp.receives();
///     let second = qp.receives();
///     first.commit();
///     second.commit();
/// }
/// ```
#[must_use = "nothing is posted before `commit`"]
pub struct ReceiveBatch<'a> {
    receives: &'a mut Receives,
    sink: Sink,
}

impl ReceiveBatch<'_> {
    /// Adds memory for one message: its bytes fill the pieces in order. `token` comes back with it.
    ///
    /// # Errors
    /// [`PostError`]: the queue is full, or the memory cannot be used so. The batch stays as it was.
    pub fn push(&mut self, pieces: impl IntoIterator<Item = Piece>, token: u64) -> Result<(), PostError> {
        self.receives.push(pieces, token)
    }

    /// Receives for which there is room.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.receives.table.room()
    }

    /// Posts all of them, and returns how many.
    ///
    /// # Errors
    /// [`CommitError`] if the driver refuses one of them.
    pub fn commit(self) -> Result<u32, CommitError> {
        self.receives.commit(self.sink)
    }
}

impl Drop for ReceiveBatch<'_> {
    fn drop(&mut self) {
        self.receives.table.commit(0);
    }
}

pub(crate) struct SrqInner {
    raw: NonNull<ibv_srq>,
    pd: Pd,
    promise: Promise,
    /// What was posted when the handle went: held until the queue is gone.
    left: Mutex<Option<Box<Receives>>>,
}

// SAFETY: libibverbs' shared receive queues may be used by any thread, several at once.
unsafe impl Send for SrqInner {}
// SAFETY: as above; the rest is behind a lock.
unsafe impl Sync for SrqInner {}

impl SrqInner {
    pub(crate) fn raw(&self) -> *mut ibv_srq {
        self.raw.as_ptr()
    }

    pub(crate) fn cq(&self) -> &Arc<CqInner> {
        self.promise.cq()
    }

    pub(crate) fn pd(&self) -> &Pd {
        &self.pd
    }
}

impl Drop for SrqInner {
    fn drop(&mut self) {
        // SAFETY: no queue pair uses it any more; it is given back only here.
        let code = unsafe { ibv_destroy_srq(self.raw.as_ptr()) };
        if code != 0 {
            tracing::error!(
                device = self.pd.device().name(),
                code,
                "a shared receive queue was not given back: the memory posted to it is leaked"
            );
            let left = self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(left.take());
        }
    }
}

/// A receive queue that many queue pairs take from. All of them complete their receives on the completion queue that it was made with.
///
/// A queue pair that is destroyed while it fills a receive takes that with it. [`Qp::kill`](crate::Qp::kill) it first, and destroy it when its
/// completions have come.
pub struct SharedReceives {
    inner: Arc<SrqInner>,
    receives: Option<Box<Receives>>,
}

impl SharedReceives {
    /// A queue of `depth` receives of up to `pieces` pieces of memory.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] if the device has none, [`VerbsError::OutOfRange`] if it has none of this size,
    /// [`VerbsError::CompletionQueueFull`] if the completion queue is too small, [`VerbsError::System`] if the device has no more.
    pub fn new(pd: &Pd, cq: &CompletionQueue, depth: u32, pieces: u32) -> Result<Self, VerbsError> {
        let device = pd.device();
        let limits = device.limits();
        device.expect("completion queue", cq.device())?;
        if limits.shared_receive_queues == 0 {
            return Err(pd.lacks(Capability::SharedReceiveQueues).into());
        }
        let most = limits.shared_receive_work_requests.min(MAX_RECEIVES);
        in_range("the depth of a shared receive queue", depth, most)?;
        in_range("the pieces of a receive", pieces, limits.shared_receive_pieces)?;
        let promise = Promise::new(cq.inner(), depth)?;
        let mut attributes = ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: ibv_srq_attr {
                max_wr: depth,
                max_sge: pieces,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain is alive as long as the queue, which keeps it; the attributes are complete.
        let raw = unsafe { ibv_create_srq(pd.raw(), &raw mut attributes) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(match system("create a shared receive queue") {
                VerbsError::System { source, .. } if is_unsupported(&source) => {
                    pd.lacks(Capability::SharedReceiveQueues).into()
                }
                other => other,
            });
        };
        Ok(Self {
            inner: Arc::new(SrqInner {
                raw,
                pd: pd.clone(),
                promise,
                left: Mutex::new(None),
            }),
            receives: Some(Box::new(Receives::new(depth, pieces, pd))),
        })
    }

    /// A batch of receives.
    pub fn receives(&mut self) -> ReceiveBatch<'_> {
        let sink = Sink::Shared(self.inner.raw());
        ReceiveBatch {
            receives: self.own(),
            sink,
        }
    }

    /// Takes a receive that is over, whichever queue pair it came through.
    ///
    /// # Errors
    /// [`NotOurs`] if it was not posted here.
    #[expect(clippy::needless_pass_by_value, reason = "a completion is used up")]
    pub fn received(&mut self, completion: Completion) -> Result<Received, NotOurs> {
        self.own().received(&completion)
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.receives
            .as_ref()
            .map_or(Counters::default(), |own| own.counters())
    }

    pub(crate) fn inner(&self) -> &Arc<SrqInner> {
        &self.inner
    }

    fn own(&mut self) -> &mut Receives {
        // Taken only when the value is dropped.
        self.receives
            .get_or_insert_with(|| Box::new(Receives::new(0, 0, &self.inner.pd)))
    }
}

impl Drop for SharedReceives {
    fn drop(&mut self) {
        // Queue pairs may still receive into what is posted.
        let mut left = self.inner.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = self.receives.take().filter(|own| !own.table.is_empty());
    }
}

impl fmt::Debug for SharedReceives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceives")
            .field("device", self.inner.pd.device())
            .finish_non_exhaustive()
    }
}

/// Checks a size that must be from 1 to `max`.
pub(crate) fn in_range(what: &'static str, value: u32, max: u32) -> Result<(), VerbsError> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(VerbsError::OutOfRange {
        what,
        value: value.into(),
        min: 1,
        max: max.into(),
    })
}
