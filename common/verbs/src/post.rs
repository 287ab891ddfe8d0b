//! [`SendBatch`]: what is sent, read and written, as one list with one doorbell.
#![expect(unsafe_code, reason = "hands lists of work requests to the device")]

use std::ptr;

use homi_queue::{RemoteAddress, RemoteKey};
use rdma_sys::{
    bind_mw_t, ibv_mw_bind_info, ibv_post_send, ibv_qp, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
    imm_data_invalidated_rkey_union_t, rdma_t,
};
use std::sync::Arc;

use crate::completion::Completion;
use crate::device::errno;
use crate::error::{CommitError, NotOurs, PostError};
use crate::memory::{MemoryRegion, Pd, Piece};
use crate::receive::{Filled, Right, WRITE, fill};
use crate::types::Released;
use crate::types::{Access, Counters};
use crate::window::{MemoryWindow, WindowInner};
use crate::work::SendRing;

/// What a work request holds until it is done.
pub(crate) enum Hold {
    Memory(#[expect(dead_code, reason = "held only to keep the memory registered")] MemoryRegion),
    Window(#[expect(dead_code, reason = "held only to keep the window")] Arc<WindowInner>),
}

/// Whether a work request has a completion of its own when it ends well. Failures always have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It has one.
    Completion,
    /// It is released with the next one that has one. One in half a send queue gets one nevertheless.
    Silent,
}

/// Memory of the peer: where, and the key that it gave for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Address of the first byte.
    pub address: RemoteAddress,
    /// Key.
    pub key: RemoteKey,
}

/// Work requests of a send queue, and what holds their memory.
pub(crate) struct Sends {
    ring: SendRing<Hold>,
    requests: Box<[ibv_send_wr]>,
    pieces: Box<[ibv_sge]>,
    per_request: usize,
    inline: Box<[u8]>,
    inline_each: usize,
    pd: Pd,
    counters: Counters,
}

// SAFETY: the pointers in the work requests are written before each use and point into this value's own allocations, or to windows that the
// ring holds.
unsafe impl Send for Sends {}

/// What a work request is, besides its memory.
struct Operation {
    opcode: u32,
    key: u32,
    remote: Option<Remote>,
    right: Option<Right>,
}

impl Operation {
    fn send(invalidate: Option<RemoteKey>) -> Self {
        Self {
            opcode: match invalidate {
                Some(_) => ibv_wr_opcode::IBV_WR_SEND_WITH_INV,
                None => ibv_wr_opcode::IBV_WR_SEND,
            },
            key: invalidate.unwrap_or_default().0,
            remote: None,
            right: None,
        }
    }
}

impl Sends {
    pub(crate) fn new(depth: u32, per_request: u32, inline_each: u32, pd: &Pd) -> Self {
        let places = depth as usize;
        let none = ibv_sge {
            addr: 0,
            length: 0,
            lkey: 0,
        };
        Self {
            // A binding holds two things.
            ring: SendRing::new(depth, per_request.max(2)),
            requests: (0..places).map(|_| empty()).collect(),
            pieces: vec![none; places.saturating_mul(per_request as usize)].into_boxed_slice(),
            per_request: per_request as usize,
            inline: vec![0; places.saturating_mul(inline_each as usize)].into_boxed_slice(),
            inline_each: inline_each as usize,
            pd: pd.clone(),
            counters: Counters::default(),
        }
    }

    /// A batch for a queue pair.
    ///
    /// # Safety
    /// The queue pair must be alive as long as the batch, and be destroyed before these sends.
    pub(crate) unsafe fn for_qp(&mut self, qp: *mut ibv_qp) -> SendBatch<'_> {
        SendBatch { sends: self, qp }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn room(&self) -> u32 {
        self.ring.room()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    pub(crate) fn complete(
        &mut self,
        completion: &Completion,
        released: &mut impl FnMut(Released),
    ) -> Result<(), NotOurs> {
        if !self.ring.complete(completion.work(), released) {
            return Err(NotOurs);
        }
        self.counters.completions += 1;
        Ok(())
    }

    pub(crate) fn drain(&mut self, released: &mut impl FnMut(Released)) {
        self.ring.drain(released);
    }

    fn full(&self) -> PostError {
        PostError::Full {
            depth: self.ring.depth(),
        }
    }

    /// Adds a work request with registered memory.
    fn push(
        &mut self,
        operation: &Operation,
        pieces: impl IntoIterator<Item = Piece>,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        let full = self.full();
        let Some((place, held)) = self.ring.next() else {
            return Err(full);
        };
        let start = place.saturating_mul(self.per_request);
        let list = self
            .pieces
            .get_mut(start..start.saturating_add(self.per_request))
            .unwrap_or(&mut []);
        match fill(pieces, &self.pd, operation.right, list, held, Hold::Memory) {
            Ok(Filled { count, .. }) => self.describe(operation, count, 0, signal, token),
            Err(error) => {
                self.ring.abandon();
                Err(error)
            }
        }
    }

    /// Adds a SEND of bytes that the device takes from the work request itself.
    fn push_inline(
        &mut self,
        operation: &Operation,
        bytes: &[u8],
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        let too_long = PostError::InlineTooLong {
            len: bytes.len(),
            max: self.inline_each,
        };
        if bytes.len() > self.inline_each || self.per_request == 0 {
            return Err(too_long);
        }
        let full = self.full();
        let Some((place, _)) = self.ring.next() else {
            return Err(full);
        };
        let start = place.saturating_mul(self.inline_each);
        let (Some(to), Some(sge)) = (
            self.inline.get_mut(start..start.saturating_add(bytes.len())),
            self.pieces.get_mut(place.saturating_mul(self.per_request)),
        ) else {
            return Err(too_long);
        };
        to.copy_from_slice(bytes);
        *sge = ibv_sge {
            addr: to.as_ptr().expose_provenance() as u64,
            length: u32::try_from(bytes.len()).map_err(|_| too_long)?,
            lkey: 0,
        };
        self.describe(operation, 1, ibv_send_flags::IBV_SEND_INLINE.0, signal, token)
    }

    /// Takes the next place, whose memory is in place.
    fn describe(
        &mut self,
        operation: &Operation,
        count: i32,
        flags: u32,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        let full = self.full();
        let signalled = signal == Signal::Completion;
        let (place, id, signalled) = self.ring.push(token, signalled).ok_or(full)?;
        let request = self.requests.get_mut(place).ok_or(full)?;
        *request = empty();
        request.wr_id = id.0;
        request.num_sge = count;
        request.opcode = operation.opcode;
        request.send_flags = flags;
        if signalled {
            request.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        request.imm_data_invalidated_rkey_union = imm_data_invalidated_rkey_union_t {
            invalidated_rkey: operation.key,
        };
        if let Some(remote) = operation.remote {
            request.wr.rdma = rdma_t {
                remote_addr: remote.address.0,
                rkey: remote.key.0,
            };
        }
        Ok(())
    }

    fn bind(
        &mut self,
        window: &mut MemoryWindow,
        piece: &Piece,
        access: Access,
        signal: Signal,
        token: u64,
    ) -> Result<RemoteKey, PostError> {
        let memory = piece.memory();
        if !memory.pd().is(&self.pd) || !window.pd().is(&self.pd) {
            return Err(PostError::WrongDomain);
        }
        if !memory.access().contains(Access::BIND) {
            return Err(PostError::AccessDenied { right: "bind" });
        }
        if access.contains(Access::REMOTE_WRITE) && !memory.access().contains(Access::WRITE) {
            return Err(PostError::AccessDenied { right: "write" });
        }
        let full = self.full();
        let Some((place, held)) = self.ring.next() else {
            return Err(full);
        };
        let holds = [
            Hold::Window(Arc::clone(window.inner())),
            Hold::Memory(memory.clone()),
        ];
        for (slot, hold) in held.iter_mut().zip(holds) {
            *slot = Some(hold);
        }
        let operation = Operation {
            opcode: ibv_wr_opcode::IBV_WR_BIND_MW,
            key: 0,
            remote: None,
            right: None,
        };
        self.describe(&operation, 0, 0, signal, token)?;
        let key = window.next_key();
        if let Some(request) = self.requests.get_mut(place) {
            request.bind_mw_tso_union.bind_mw = bind_mw_t {
                mw: window.raw(),
                rkey: key,
                bind_info: ibv_mw_bind_info {
                    mr: memory.raw(),
                    addr: piece.address().0,
                    length: piece.len(),
                    // Windows know of access by peers alone.
                    mw_access_flags: access.bits() & (Access::REMOTE_READ | Access::REMOTE_WRITE).bits() & !1,
                },
            };
        }
        window.binds(memory.clone());
        Ok(RemoteKey(key))
    }

    fn commit(&mut self, qp: *mut ibv_qp) -> Result<u32, CommitError> {
        let batch = self.ring.batch();
        let wanted = batch.end - batch.start;
        if wanted == 0 {
            return Ok(0);
        }
        // One pointer for each array, from which all others are derived.
        let requests = self.requests.as_mut_ptr();
        let pieces = self.pieces.as_mut_ptr();
        let mut next = ptr::null_mut();
        for position in batch.clone().rev() {
            let place = self.ring.place(position);
            let request = requests.wrapping_add(place);
            // SAFETY: places are indices of the array, which nothing else uses meanwhile.
            unsafe { (*request).next = next };
            let list = pieces.wrapping_add(place.saturating_mul(self.per_request));
            // SAFETY: as above.
            unsafe { (*request).sg_list = list };
            next = request;
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive (promised when the batch was made). The list is complete and ends. Its pieces lie in registered memory
        // of this domain, or its windows are alive: the ring holds both until their completions. Inline bytes are read during the call.
        let code = unsafe { ibv_post_send(qp, next, &raw mut bad) };
        let posted = if code == 0 {
            wanted
        } else {
            let refused = batch
                .clone()
                .position(|position| ptr::eq(requests.wrapping_add(self.ring.place(position)), bad));
            // A driver that names none has taken none.
            refused.map_or(0, |count| count as u64)
        };
        self.keys_are_new(batch.start..batch.start + posted);
        self.ring.commit(posted);
        let posted_count = u32::try_from(posted).unwrap_or(u32::MAX);
        self.counters.work_requests += posted;
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

    /// Drivers take the key that a window has now from the library's structure, which a binding by work request leaves as it is.
    fn keys_are_new(&self, posted: std::ops::Range<u64>) {
        for position in posted {
            let Some(request) = self.requests.get(self.ring.place(position)) else {
                continue;
            };
            if request.opcode != ibv_wr_opcode::IBV_WR_BIND_MW {
                continue;
            }
            // SAFETY: the opcode says that this variant was written.
            let bind = unsafe { request.bind_mw_tso_union.bind_mw };
            // SAFETY: the ring holds the window, and only the thread that has its handle posts bindings of it.
            unsafe { (*bind.mw).rkey = bind.rkey };
        }
    }
}

fn empty() -> ibv_send_wr {
    // SAFETY: a work request is plain data with pointers, for which zeros are a value.
    unsafe { std::mem::zeroed() }
}

/// Work requests that go to the device as one list, in this order. What is not committed is withdrawn.
///
/// A batch borrows its queue pair, so that there is one at a time, and is used up by [`SendBatch::commit`]:
///
/// ```compile_fail,E0382
/// fn after_commit(qp: &mut homi_verbs::Qp) {
///     let mut batch = qp.sends();
///     batch.commit();
///     batch.send_inline(&[0], None, homi_verbs::Signal::Completion, 1);
/// }
/// ```
///
/// ```compile_fail,E0499
/// fn two_at_once(qp: &mut homi_verbs::Qp) {
///     let first = qp.sends();
///     let second = qp.sends();
///     first.commit();
///     second.commit();
/// }
/// ```
///
/// Memory that is not registered cannot be posted:
///
/// ```compile_fail,E0271
/// fn unregistered(batch: &mut homi_verbs::SendBatch<'_>, bytes: &[u8]) {
///     batch.send([bytes], None, homi_verbs::Signal::Completion, 1);
/// }
/// ```
#[must_use = "nothing is posted before `commit`"]
pub struct SendBatch<'a> {
    sends: &'a mut Sends,
    qp: *mut ibv_qp,
}

impl SendBatch<'_> {
    /// Adds a SEND: the peer needs a RECV that is long enough. With `invalidate`, a key of the peer becomes invalid as the message arrives.
    /// `token` comes back when the memory is free.
    ///
    /// # Errors
    /// [`PostError`]: the queue is full, or the memory cannot be used so. The batch stays as it was; so it is for all others here.
    pub fn send(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        invalidate: Option<RemoteKey>,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        self.sends
            .push(&Operation::send(invalidate), pieces, signal, token)
    }

    /// Adds a SEND of bytes that are copied now and need no registration: at most [`Qp::inline`](crate::Qp::inline).
    ///
    /// # Errors
    /// [`PostError`].
    pub fn send_inline(
        &mut self,
        bytes: &[u8],
        invalidate: Option<RemoteKey>,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        self.sends
            .push_inline(&Operation::send(invalidate), bytes, signal, token)
    }

    /// Adds an RDMA READ: the peer's memory from `remote` on fills the pieces in order. They need [`Access::WRITE`], and over iWARP
    /// [`Access::REMOTE_WRITE`].
    ///
    /// More than the connection's initiator depth wait in the send queue, with everything behind them.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn read(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        remote: Remote,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        let operation = Operation {
            opcode: ibv_wr_opcode::IBV_WR_RDMA_READ,
            key: 0,
            remote: Some(remote),
            right: Some(WRITE),
        };
        self.sends.push(&operation, pieces, signal, token)
    }

    /// Adds an RDMA WRITE: the pieces go to the peer's memory from `remote` on, before whatever is sent after it.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn write(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        remote: Remote,
        signal: Signal,
        token: u64,
    ) -> Result<(), PostError> {
        let operation = Operation {
            opcode: ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            key: 0,
            remote: Some(remote),
            right: None,
        };
        self.sends.push(&operation, pieces, signal, token)
    }

    /// Binds a window to a piece of memory registered with [`Access::BIND`] and returns the key that a peer reaches it with, once the batch is
    /// committed. A message later in the queue may carry the key. The window must not be bound: invalidate its last key first, or the queue
    /// pair fails.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn bind(
        &mut self,
        window: &mut MemoryWindow,
        piece: &Piece,
        access: Access,
        signal: Signal,
        token: u64,
    ) -> Result<RemoteKey, PostError> {
        self.sends.bind(window, piece, access, signal, token)
    }

    /// Makes a key of this host invalid: the peer reaches nothing with it once this has completed.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn invalidate(&mut self, key: RemoteKey, signal: Signal, token: u64) -> Result<(), PostError> {
        let operation = Operation {
            opcode: ibv_wr_opcode::IBV_WR_LOCAL_INV,
            key: key.0,
            remote: None,
            right: None,
        };
        self.sends.push(&operation, [], signal, token)
    }

    /// Work requests for which there is room.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.sends.ring.room()
    }

    /// Posts all of them with one doorbell, and returns how many. Posting before the connection is established is refused by devices.
    ///
    /// # Errors
    /// [`CommitError`] if the driver refuses one of them.
    pub fn commit(self) -> Result<u32, CommitError> {
        self.sends.commit(self.qp)
    }
}

impl Drop for SendBatch<'_> {
    fn drop(&mut self) {
        self.sends.ring.commit(0);
    }
}
