//! A connection on its way, one type for each state: [`Outgoing`] to [`Connecting`], and [`ConnectRequest`] to [`Accepting`].
//!
//! Every state has the methods that are legal in it. Dropping one gives the connection up; a request that is dropped is rejected without a
//! word.

use std::net::SocketAddr;
use std::time::Duration;

use crate::channel::{CmId, IdKey};
use crate::completion::CompletionQueue;
use crate::device::Device;
use crate::error::{Refused, VerbsError};
use crate::memory::Pd;
use crate::qp::Qp;
use crate::receive::{ReceiveBatch, SharedReceives};
use crate::types::{ConnectOptions, PeerOptions, PrivateData, QpNumber, QpOptions};

/// A connection to be made, from [`EventChannel::resolve`](crate::EventChannel::resolve). When
/// [`AddressResolved`](crate::CmEventKind::AddressResolved) comes it has a device; then the route is to be resolved, and when
/// [`RouteResolved`](crate::CmEventKind::RouteResolved) comes, it can have a queue pair.
#[derive(Debug)]
pub struct Outgoing {
    pub(crate) id: CmId,
}

impl Outgoing {
    /// The key that its events carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.id.key()
    }

    /// The device that reaches the peer.
    ///
    /// # Errors
    /// [`VerbsError::NoDeviceYet`] before the address is resolved.
    pub fn device(&self) -> Result<Device, VerbsError> {
        self.id.device()
    }

    /// Whether this device reaches the peer; cheaper than [`Outgoing::device`].
    #[must_use]
    pub fn is_on(&self, device: &Device) -> bool {
        self.id.is_on(device)
    }

    /// Looks for the way to the peer.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the address is not resolved yet.
    pub fn resolve_route(&mut self, timeout: Duration) -> Result<(), VerbsError> {
        self.id.resolve_route(timeout)
    }

    /// Makes the queue pair. What it sends and receives completes on `cq`, but receives from `shared` on the queue of that.
    ///
    /// # Errors
    /// [`Refused`] with this value, and why.
    pub fn create_qp(
        self,
        pd: &Pd,
        cq: &CompletionQueue,
        shared: Option<&SharedReceives>,
        options: &QpOptions,
    ) -> Result<Connecting, Refused<Self>> {
        match Qp::create(self.id, pd, cq, shared, options) {
            Ok(qp) => Ok(Connecting { qp }),
            Err(Refused { object: id, error }) => Err(Refused {
                object: Self { id },
                error,
            }),
        }
    }
}

/// A connection to be made that has its queue pair.
///
/// Nothing can be sent yet:
///
/// ```compile_fail,E0599
/// fn too_early(mut connecting: homi_verbs::Connecting) {
///     connecting.sends();
/// }
/// ```
#[derive(Debug)]
pub struct Connecting {
    qp: Qp,
}

impl Connecting {
    /// The key that its events carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.qp.key()
    }

    /// The number of its queue pair.
    #[must_use]
    pub fn number(&self) -> QpNumber {
        self.qp.number()
    }

    /// A batch of receives, to be posted before the peer may send.
    pub fn receives(&mut self) -> ReceiveBatch<'_> {
        self.qp.receives()
    }

    /// Asks the peer. [`Established`](crate::CmEventKind::Established) says that it accepted and that sending may begin;
    /// [`Rejected`](crate::CmEventKind::Rejected) and others say that it did not.
    ///
    /// # Errors
    /// [`Refused`] with this value: [`VerbsError::PrivateDataTooLong`], or [`VerbsError::System`] if the route is not resolved.
    pub fn connect(self, options: &ConnectOptions<'_>) -> Result<Qp, Refused<Self>> {
        match self.qp.id().connect(options, self.qp.number()) {
            Ok(()) => Ok(self.qp),
            Err(error) => Err(Refused { object: self, error }),
        }
    }
}

/// A peer wants to connect.
#[derive(Debug)]
pub struct ConnectRequest {
    pub(crate) id: CmId,
    pub(crate) peer: Box<PeerOptions>,
}

impl ConnectRequest {
    /// The key that its events will carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.id.key()
    }

    /// What the peer said.
    #[must_use]
    pub fn peer(&self) -> &PeerOptions {
        &self.peer
    }

    /// The address that the peer asked for.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.id.local_address()
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.id.peer_address()
    }

    /// The device that it came through.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] if the device is gone meanwhile.
    pub fn device(&self) -> Result<Device, VerbsError> {
        self.id.device()
    }

    /// Whether it came through this device; cheaper than [`ConnectRequest::device`].
    #[must_use]
    pub fn is_on(&self, device: &Device) -> bool {
        self.id.is_on(device)
    }

    /// Makes the queue pair; see [`Outgoing::create_qp`].
    ///
    /// # Errors
    /// [`Refused`] with this value, which can still be rejected, and why.
    pub fn create_qp(
        self,
        pd: &Pd,
        cq: &CompletionQueue,
        shared: Option<&SharedReceives>,
        options: &QpOptions,
    ) -> Result<Accepting, Refused<Self>> {
        match Qp::create(self.id, pd, cq, shared, options) {
            Ok(qp) => Ok(Accepting { qp, peer: self.peer }),
            Err(Refused { object: id, error }) => Err(Refused {
                object: Self { id, peer: self.peer },
                error,
            }),
        }
    }

    /// Says no, with at most [`PrivateData::REJECT`] bytes of reason.
    ///
    /// # Errors
    /// [`VerbsError::PrivateDataTooLong`], or [`VerbsError::System`] if the peer has given up. The request is over in any case.
    pub fn reject(self, private_data: &[u8]) -> Result<(), VerbsError> {
        self.id.reject(private_data)
    }
}

/// A peer wants to connect, and the queue pair for it is there.
#[derive(Debug)]
pub struct Accepting {
    qp: Qp,
    peer: Box<PeerOptions>,
}

impl Accepting {
    /// The key that its events will carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.qp.key()
    }

    /// The number of its queue pair.
    #[must_use]
    pub fn number(&self) -> QpNumber {
        self.qp.number()
    }

    /// What the peer said.
    #[must_use]
    pub fn peer(&self) -> &PeerOptions {
        &self.peer
    }

    /// A batch of receives, to be posted before the peer may send.
    pub fn receives(&mut self) -> ReceiveBatch<'_> {
        self.qp.receives()
    }

    /// Says yes. What the peer sends may arrive before [`Established`](crate::CmEventKind::Established) does, and may be answered.
    ///
    /// # Errors
    /// [`Refused`] with this value: [`VerbsError::PrivateDataTooLong`], or [`VerbsError::System`] if the peer has given up.
    pub fn accept(self, options: &ConnectOptions<'_>) -> Result<Qp, Refused<Self>> {
        match self.qp.id().accept(options, self.qp.number()) {
            Ok(()) => Ok(self.qp),
            Err(error) => Err(Refused { object: self, error }),
        }
    }

    /// Says no, with at most [`PrivateData::REJECT`] bytes of reason.
    ///
    /// # Errors
    /// As for [`ConnectRequest::reject`].
    pub fn reject(self, private_data: &[u8]) -> Result<(), VerbsError> {
        self.qp.id().reject(private_data)
    }
}

/// Checks how much private data there is.
pub(crate) fn check_private_data(len: usize, max: usize, message: &'static str) -> Result<(), VerbsError> {
    if len <= max.min(PrivateData::MAX) {
        return Ok(());
    }
    Err(VerbsError::PrivateDataTooLong { len, max, message })
}
