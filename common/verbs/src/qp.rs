//! [`Qp`]: a reliable connection, with what is posted to it.
#![expect(unsafe_code, reason = "calls libibverbs and librdmacm")]

use std::fmt;
use std::net::SocketAddr;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_destroy_qp, ibv_modify_qp, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, rdma_create_qp,
};

use crate::channel::{CmId, EventChannel, IdKey};
use crate::completion::{Completion, CompletionQueue, Promise};
use crate::device::{Device, check, system};
use crate::error::{NotOurs, Refused, VerbsError};
use crate::memory::Pd;
use crate::post::{SendBatch, Sends};
use crate::receive::{ReceiveBatch, Received, Receives, SharedReceives, SrqInner, in_range};
use crate::types::Released;
use crate::types::{Counters, QpNumber, QpOptions};

struct Inner {
    raw: NonNull<ibv_qp>,
    id: CmId,
    sends: Sends,
    receives: Option<Receives>,
    inline: u32,
    number: QpNumber,
    destroyed: bool,
    pd: Pd,
    _shared: Option<Arc<SrqInner>>,
    _promise: Promise,
}

// SAFETY: libibverbs' queue pairs may be used by any thread; everything else in it can move.
unsafe impl Send for Inner {}

impl Inner {
    /// Destroys the queue pair. When this is done the device uses none of the memory that was posted.
    fn destroy(&mut self) {
        if self.destroyed {
            return;
        }
        self.destroyed = true;
        // SAFETY: the queue pair is alive, and given back only here.
        let code = unsafe { ibv_destroy_qp(self.raw.as_ptr()) };
        if code == 0 {
            self.id.forget_qp();
            return;
        }
        tracing::error!(
            device = self.pd.device().name(),
            code,
            "a queue pair was not given back: the memory posted to it is leaked"
        );
        std::mem::forget(std::mem::replace(&mut self.sends, Sends::new(0, 0, 0, &self.pd)));
        std::mem::forget(self.receives.take());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// A queue pair of a reliable connection, and its end of the connection. It is polled and posted to by one thread.
///
/// Dropping it ends the connection at once and releases what is posted; [`Qp::close`] says what that was. To let the peer know and have every
/// completion first: [`Qp::disconnect`], or [`Qp::kill`], then poll until [`Qp::is_idle`].
///
/// What it posted last cannot be used without it:
///
/// ```compile_fail,E0382
/// fn closed(qp: homi_verbs::Qp) {
///     qp.close(|_| {}, |_| {});
///     qp.disconnect();
/// }
/// ```
pub struct Qp(Box<Inner>);

impl Qp {
    pub(crate) fn create(
        id: CmId,
        pd: &Pd,
        cq: &CompletionQueue,
        shared: Option<&SharedReceives>,
        options: &QpOptions,
    ) -> Result<Self, Refused<CmId>> {
        match Self::try_create(&id, pd, cq, shared, options) {
            Ok(parts) => Ok(Self(Box::new(Inner {
                raw: parts.raw,
                sends: Sends::new(options.sends, options.send_pieces, parts.inline, pd),
                receives: shared
                    .is_none()
                    .then(|| Receives::new(options.receives, options.receive_pieces, pd)),
                inline: parts.inline,
                number: parts.number,
                destroyed: false,
                pd: pd.clone(),
                _shared: shared.map(|shared| Arc::clone(shared.inner())),
                _promise: parts.promise,
                id,
            }))),
            Err(error) => Err(Refused { object: id, error }),
        }
    }

    fn try_create(
        id: &CmId,
        pd: &Pd,
        cq: &CompletionQueue,
        shared: Option<&SharedReceives>,
        options: &QpOptions,
    ) -> Result<Parts, VerbsError> {
        let device = pd.device();
        let limits = device.limits();
        if !id.is_on(device) {
            let theirs = id.device()?;
            return Err(VerbsError::DeviceMismatch {
                what: "connection",
                theirs: theirs.name().to_owned(),
                ours: device.name().to_owned(),
            });
        }
        device.expect("completion queue", cq.device())?;
        in_range("the length of a send queue", options.sends, limits.work_requests)?;
        in_range("the pieces of a work request", options.send_pieces, limits.pieces)?;
        let mut promised = options.sends;
        let mut receive_cq = cq.inner().raw();
        if let Some(shared) = shared {
            device.expect("shared receive queue", shared.inner().cq().device())?;
            if !shared.inner().pd().is(pd) {
                return Err(VerbsError::DeviceMismatch {
                    what: "shared receive queue",
                    theirs: "another protection domain".to_owned(),
                    ours: "the queue pair's".to_owned(),
                });
            }
            receive_cq = shared.inner().cq().raw();
        } else {
            let most = limits.work_requests.min(crate::work::MAX_RECEIVES);
            in_range("the length of a receive queue", options.receives, most)?;
            in_range("the pieces of a receive", options.receive_pieces, limits.pieces)?;
            promised = promised.saturating_add(options.receives);
        }
        let promise = Promise::new(cq.inner(), promised)?;
        let own = |value: u32| if shared.is_some() { 0 } else { value };
        let mut attributes = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: cq.inner().raw(),
            recv_cq: receive_cq,
            srq: shared.map_or(ptr::null_mut(), |shared| shared.inner().raw()),
            cap: ibv_qp_cap {
                max_send_wr: options.sends,
                max_recv_wr: own(options.receives),
                max_send_sge: options.send_pieces,
                max_recv_sge: own(options.receive_pieces),
                max_inline_data: options.inline,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: the id is alive and bound to the domain's device; every object in the attributes is alive and of that device, and is kept
        // as long as the queue pair.
        let code = unsafe { rdma_create_qp(id.raw(), pd.raw(), &raw mut attributes) };
        check(code, "create a queue pair")?;
        let raw = NonNull::new(id.qp()).ok_or_else(|| system("create a queue pair"))?;
        // SAFETY: the queue pair is alive.
        let number = unsafe { (*raw.as_ptr()).qp_num };
        Ok(Parts {
            raw,
            number: QpNumber(number),
            // Some drivers leave what was asked for, some say what they have.
            inline: attributes.cap.max_inline_data,
            promise,
        })
    }

    /// Its number, which its completions carry.
    #[must_use]
    pub fn number(&self) -> QpNumber {
        self.0.number
    }

    /// The key of its end of the connection, which events carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.0.id.key()
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.0.pd.device()
    }

    /// Its protection domain.
    #[must_use]
    pub fn pd(&self) -> &Pd {
        &self.0.pd
    }

    /// Bytes that can be sent inline.
    #[must_use]
    pub fn inline(&self) -> u32 {
        self.0.inline
    }

    /// This host's address.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.0.id.local_address()
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.0.id.peer_address()
    }

    /// A batch of work requests for the send queue.
    pub fn sends(&mut self) -> SendBatch<'_> {
        let raw = self.0.raw.as_ptr();
        // SAFETY: the batch borrows this value, which destroys the queue pair before it drops the sends.
        unsafe { self.0.sends.for_qp(raw) }
    }

    /// A batch of receives for the own receive queue. With a shared one, nothing has room in it.
    pub fn receives(&mut self) -> ReceiveBatch<'_> {
        let inner = &mut *self.0;
        let own = inner
            .receives
            .get_or_insert_with(|| Receives::new(0, 0, &inner.pd));
        // SAFETY: as above.
        unsafe { own.for_qp(inner.raw.as_ptr()) }
    }

    /// Work requests that the send queue has room for.
    #[must_use]
    pub fn send_room(&self) -> u32 {
        self.0.sends.room()
    }

    /// Takes the completion of something sent. `released` is called for everything whose memory is free by that, in the order of posting; the
    /// last one is the work request that the completion is about. Of the others it says that they ended well, unless the status is an error:
    /// then one of them may be what failed.
    ///
    /// # Errors
    /// [`NotOurs`] if it was not sent here: nothing was released then.
    #[expect(clippy::needless_pass_by_value, reason = "a completion is used up")]
    pub fn complete(
        &mut self,
        completion: Completion,
        mut released: impl FnMut(Released),
    ) -> Result<(), NotOurs> {
        self.0.sends.complete(&completion, &mut released)
    }

    /// Takes a receive of the own receive queue that is over.
    ///
    /// # Errors
    /// [`NotOurs`] if it was not posted here.
    #[expect(clippy::needless_pass_by_value, reason = "a completion is used up")]
    pub fn received(&mut self, completion: Completion) -> Result<Received, NotOurs> {
        match &mut self.0.receives {
            Some(receives) => receives.received(&completion),
            None => Err(NotOurs),
        }
    }

    /// Whether nothing is posted to the send queue.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.sends.is_empty()
    }

    /// Tells the peer that the connection ends, and moves the queue pair to the error state: everything posted completes as
    /// [`Flushed`](crate::WorkStatus::Flushed). Both ends get an event.
    ///
    /// # Errors
    /// [`VerbsError::System`] if it is not connected.
    pub fn disconnect(&self) -> Result<(), VerbsError> {
        self.0.id.disconnect()
    }

    /// Moves the queue pair to the error state: everything posted completes as [`Flushed`](crate::WorkStatus::Flushed), nothing of the peer
    /// reaches memory through it any more, and the peer's next work fails. No other queue pair is touched.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the device refuses.
    pub fn kill(&self) -> Result<(), VerbsError> {
        // SAFETY: the attributes are plain data, for which zeros are a value.
        let mut attributes: ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = ibv_qp_state::IBV_QPS_ERR;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        // SAFETY: the queue pair is alive, and the mask names the one attribute that is set.
        let code = unsafe { ibv_modify_qp(self.0.raw.as_ptr(), &raw mut attributes, mask) };
        check(code, "move a queue pair to the error state")
    }

    /// Has the events of this connection come through another channel from now on.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the kernel refuses.
    pub fn migrate(&mut self, channel: &EventChannel) -> Result<(), VerbsError> {
        self.0.id.migrate(channel)
    }

    /// What it has done, its own receive queue included.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let sent = self.0.sends.counters();
        let received = self
            .0
            .receives
            .as_ref()
            .map(Receives::counters)
            .unwrap_or_default();
        Counters {
            work_requests: sent.work_requests + received.work_requests,
            doorbells: sent.doorbells + received.doorbells,
            completions: sent.completions + received.completions,
        }
    }

    /// Ends it, and gives back the tokens of everything that was still posted: sent ones in order, receives in any. Each token that was posted is
    /// given back once, by a completion or here.
    pub fn close(mut self, mut sent: impl FnMut(Released), mut received: impl FnMut(u64)) {
        self.0.destroy();
        self.0.sends.drain(&mut sent);
        if let Some(receives) = &mut self.0.receives {
            receives.drain(&mut received);
        }
    }

    pub(crate) fn id(&self) -> &CmId {
        &self.0.id
    }
}

struct Parts {
    raw: NonNull<ibv_qp>,
    number: QpNumber,
    inline: u32,
    promise: Promise,
}

impl fmt::Debug for Qp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qp")
            .field("number", &self.number())
            .field("device", self.device())
            .field("counters", &self.counters())
            .finish()
    }
}
