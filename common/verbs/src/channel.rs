//! [`EventChannel`]: the connection manager's ids and what happens to them.
#![expect(unsafe_code, reason = "calls librdmacm and reads the events that it returns")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdma_sys::{
    ibv_qp, rdma_accept, rdma_ack_cm_event, rdma_bind_addr, rdma_cm_event, rdma_cm_event_type, rdma_cm_id,
    rdma_conn_param, rdma_connect, rdma_create_event_channel, rdma_create_id, rdma_destroy_event_channel,
    rdma_destroy_id, rdma_disconnect, rdma_event_channel, rdma_get_cm_event, rdma_listen, rdma_migrate_id,
    rdma_port_space, rdma_reject, rdma_resolve_addr, rdma_resolve_route, rdma_set_option,
};

use crate::address::{RawAddress, from_raw};
use crate::completion::set_nonblocking;
use crate::connection::{ConnectRequest, Outgoing, check_private_data};
use crate::device::{Device, check, count, libraries, system};
use crate::error::{Unsupported, VerbsError};
use crate::types::{ConnectOptions, PeerOptions, PrivateData, QpNumber};

/// `RDMA_OPTION_ID` and its options (rdma_cma.h).
const OPTION_ID: i32 = 0;
const OPTION_ID_REUSEADDR: i32 = 1;
const OPTION_ID_AFONLY: i32 = 2;

/// What stands for an end of a connection, or a listener, in events. No other one of the process ever has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdKey(usize);

impl IdKey {
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

struct ChannelInner(NonNull<rdma_event_channel>);

// SAFETY: librdmacm's channels may be used by any thread, several at once.
unsafe impl Send for ChannelInner {}
// SAFETY: as above.
unsafe impl Sync for ChannelInner {}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so its ids are gone; it is given back only here.
        unsafe { rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// One end of a connection, or a listener.
pub(crate) struct CmId {
    raw: NonNull<rdma_cm_id>,
    key: IdKey,
    channel: Arc<ChannelInner>,
}

// SAFETY: librdmacm's ids may be used by any thread.
unsafe impl Send for CmId {}

impl CmId {
    fn new(channel: &Arc<ChannelInner>) -> Result<Self, VerbsError> {
        let key = IdKey::next();
        let mut raw = ptr::null_mut();
        let context = ptr::without_provenance_mut(key.0);
        // SAFETY: the channel is alive as long as the id, which keeps it; the result has a place. The context is a number, never followed.
        let code = unsafe {
            rdma_create_id(
                channel.0.as_ptr(),
                &raw mut raw,
                context,
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        check(code, "create a connection manager id")?;
        let raw = NonNull::new(raw).ok_or_else(|| system("create a connection manager id"))?;
        Ok(Self {
            raw,
            key,
            channel: Arc::clone(channel),
        })
    }

    /// Takes over the id of a request to connect.
    fn of_request(raw: NonNull<rdma_cm_id>, channel: &Arc<ChannelInner>) -> Self {
        let key = IdKey::next();
        // SAFETY: the id is alive and nobody else has it yet.
        unsafe { (*raw.as_ptr()).context = ptr::without_provenance_mut(key.0) };
        Self {
            raw,
            key,
            channel: Arc::clone(channel),
        }
    }

    pub(crate) fn key(&self) -> IdKey {
        self.key
    }

    pub(crate) fn raw(&self) -> *mut rdma_cm_id {
        self.raw.as_ptr()
    }

    pub(crate) fn qp(&self) -> *mut ibv_qp {
        // SAFETY: the id is alive.
        unsafe { (*self.raw()).qp }
    }

    /// The queue pair is gone.
    pub(crate) fn forget_qp(&self) {
        // SAFETY: the id is alive; only the owner of its queue pair calls this.
        unsafe { (*self.raw()).qp = ptr::null_mut() };
    }

    pub(crate) fn is_on(&self, device: &Device) -> bool {
        // SAFETY: the id is alive.
        let context = unsafe { (*self.raw()).verbs };
        ptr::eq(context, device.context())
    }

    pub(crate) fn device(&self) -> Result<Device, VerbsError> {
        // SAFETY: the id is alive.
        let context = unsafe { (*self.raw()).verbs };
        if context.is_null() {
            return Err(VerbsError::NoDeviceYet);
        }
        Device::of_context(context)?.ok_or_else(|| Unsupported::NoDevice.into())
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        // SAFETY: the id is alive; the library changes the address only where it takes an event of the id, or with a call of its owner.
        let all = unsafe { &(*self.raw()).route.addr.src_addr_union };
        // SAFETY: this variant covers all of the union, which is plain data.
        from_raw(unsafe { &all.src_storage })
    }

    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        let all = unsafe { &(*self.raw()).route.addr.dst_addr_union };
        // SAFETY: as above.
        from_raw(unsafe { &all.dst_storage })
    }

    fn set_option(&self, option: i32, mut value: i32) -> Result<(), VerbsError> {
        let len = size_of_val(&value);
        // SAFETY: the id is alive, and the value is an int, which these options are.
        let code = unsafe { rdma_set_option(self.raw(), OPTION_ID, option, (&raw mut value).cast(), len) };
        check(code, "set an option of a connection manager id")
    }

    pub(crate) fn resolve_route(&self, timeout: Duration) -> Result<(), VerbsError> {
        // SAFETY: the id is alive.
        let code = unsafe { rdma_resolve_route(self.raw(), milliseconds(timeout)) };
        check(code, "resolve a route")
    }

    pub(crate) fn connect(&self, options: &ConnectOptions<'_>, qp: QpNumber) -> Result<(), VerbsError> {
        check_private_data(
            options.private_data.len(),
            PrivateData::CONNECT,
            "a request to connect",
        )?;
        let mut parameters = parameters(options, qp);
        // SAFETY: the id is alive, and the private data is as long as said.
        let code = unsafe { rdma_connect(self.raw(), &raw mut parameters) };
        check(code, "connect")
    }

    pub(crate) fn accept(&self, options: &ConnectOptions<'_>, qp: QpNumber) -> Result<(), VerbsError> {
        check_private_data(options.private_data.len(), PrivateData::ACCEPT, "an accept")?;
        let mut parameters = parameters(options, qp);
        // SAFETY: as above.
        let code = unsafe { rdma_accept(self.raw(), &raw mut parameters) };
        check(code, "accept a connection")
    }

    pub(crate) fn reject(&self, private_data: &[u8]) -> Result<(), VerbsError> {
        check_private_data(private_data.len(), PrivateData::REJECT, "a rejection")?;
        let len = u8::try_from(private_data.len()).unwrap_or(0);
        // SAFETY: as above.
        let code = unsafe { rdma_reject(self.raw(), private_data.as_ptr().cast(), len) };
        check(code, "reject a connection")
    }

    pub(crate) fn disconnect(&self) -> Result<(), VerbsError> {
        // SAFETY: the id is alive.
        let code = unsafe { rdma_disconnect(self.raw()) };
        check(code, "disconnect")
    }

    pub(crate) fn migrate(&mut self, channel: &EventChannel) -> Result<(), VerbsError> {
        // SAFETY: the id and both channels are alive; the id keeps the new one from here on.
        let code = unsafe { rdma_migrate_id(self.raw(), channel.inner.0.as_ptr()) };
        check(code, "move an id to another event channel")?;
        self.channel = Arc::clone(&channel.inner);
        Ok(())
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: its queue pair is gone, its events are acknowledged as they are taken, and it is given back only here. Its channel is
        // alive: fields are dropped after this.
        let code = unsafe { rdma_destroy_id(self.raw()) };
        if code != 0 {
            tracing::warn!(code, "a connection manager id was not given back");
        }
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmId")
            .field("key", &self.key)
            .field("local", &self.local_address())
            .field("peer", &self.peer_address())
            .finish()
    }
}

fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

fn parameters(options: &ConnectOptions<'_>, qp: QpNumber) -> rdma_conn_param {
    rdma_conn_param {
        private_data: options.private_data.as_ptr().cast(),
        // Checked before.
        private_data_len: u8::try_from(options.private_data.len()).unwrap_or(0),
        responder_resources: options.responder_resources,
        initiator_depth: options.initiator_depth,
        flow_control: 1,
        retry_count: options.retries.min(7),
        rnr_retry_count: options.receiver_not_ready_retries.min(7),
        srq: 0,
        qp_num: qp.0,
    }
}

/// Waits for connections at an address. Requests come as [`CmEventKind::ConnectRequest`].
#[derive(Debug)]
pub struct Listener {
    id: CmId,
}

impl Listener {
    /// The key that its events carry.
    #[must_use]
    pub fn key(&self) -> IdKey {
        self.id.key()
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.id.local_address()
    }
}

/// Something that happened to an id.
#[derive(Debug)]
pub struct CmEvent {
    /// The id: of a request to connect, the listener's.
    pub id: IdKey,
    /// What happened.
    pub kind: CmEventKind,
}

/// What can happen to an id. Codes of `status` are negative errnos, unless said otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum CmEventKind {
    /// The peer's address belongs to a device, which the id has now.
    AddressResolved,
    /// No device reaches the address.
    AddressError {
        /// Why.
        status: i32,
    },
    /// The way to the peer is known: a queue pair can be made.
    RouteResolved,
    /// There is no way to the peer.
    RouteError {
        /// Why.
        status: i32,
    },
    /// A peer wants to connect.
    ConnectRequest(ConnectRequest),
    /// The connection is there. At the end that accepted, a RECV may have completed before this.
    Established(Box<PeerOptions>),
    /// The peer said no.
    Rejected {
        /// The connection manager's reason: 28 is a peer's own, which its private data explains; 8 is that nobody listens there.
        reason: i32,
        /// What the peer said.
        private_data: Box<PrivateData>,
    },
    /// The peer does not answer, or the connection could not be made.
    ConnectError {
        /// Why.
        status: i32,
    },
    /// The connection is over, ended by either end. What is posted is flushed once the queue pair is in the error state:
    /// [`Qp::disconnect`](crate::Qp::disconnect) sees to that at this end.
    Disconnected,
    /// The device goes. Everything made on it must be dropped soon: its driver waits for that.
    DeviceRemoval,
    /// The address moved to other hardware; the connection will not survive that for long.
    AddressChange,
    /// A closed connection's numbers can be used again. There is nothing to be done.
    TimewaitExit,
    /// Something that this crate does not know.
    Other {
        /// The connection manager's number for it.
        event: u32,
    },
}

/// Where the connection manager's events come from, and where its ids are made.
pub struct EventChannel {
    inner: Arc<ChannelInner>,
}

impl EventChannel {
    /// A channel without ids.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] with what is missing.
    pub fn new() -> Result<Self, VerbsError> {
        libraries()?;
        if count() == 0 {
            return Err(Unsupported::NoDevice.into());
        }
        // SAFETY: takes nothing.
        let raw = unsafe { rdma_create_event_channel() };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Unsupported::ConnectionManager {
                reason: io::Error::last_os_error().to_string(),
            }
            .into());
        };
        let channel = Self {
            inner: Arc::new(ChannelInner(raw)),
        };
        set_nonblocking(channel.descriptor())?;
        Ok(channel)
    }

    /// What becomes readable when there are events.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is alive.
        let descriptor = unsafe { (*self.inner.0.as_ptr()).fd };
        // SAFETY: the channel owns an open descriptor as long as it lives, and the result borrows it.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }

    /// Listens at an address of one device, or at all of them with the unspecified address. Port 0 has one chosen. IPv6's unspecified address
    /// is for IPv6 alone.
    ///
    /// # Errors
    /// [`VerbsError::System`]: the address is of no RDMA device, or taken.
    pub fn listen(&self, address: SocketAddr, backlog: u32) -> Result<Listener, VerbsError> {
        let id = CmId::new(&self.inner)?;
        id.set_option(OPTION_ID_REUSEADDR, 1)?;
        if address.is_ipv6() {
            id.set_option(OPTION_ID_AFONLY, 1)?;
        }
        let mut raw = RawAddress::new(address);
        // SAFETY: the id and the address are alive.
        let code = unsafe { rdma_bind_addr(id.raw(), raw.as_mut_ptr()) };
        check(code, "bind to the address of an RDMA device")?;
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        // SAFETY: the id is alive.
        let code = unsafe { rdma_listen(id.raw(), backlog) };
        check(code, "listen")?;
        Ok(Listener { id })
    }

    /// Begins a connection: looks for the device that reaches `to`, from the address `from` if there is one.
    ///
    /// # Errors
    /// [`VerbsError::System`] if that cannot even be looked for; otherwise an event says how it went.
    pub fn resolve(
        &self,
        to: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Duration,
    ) -> Result<Outgoing, VerbsError> {
        let id = CmId::new(&self.inner)?;
        let mut from = from.map(RawAddress::new);
        let mut to = RawAddress::new(to);
        let source = from.as_mut().map_or(ptr::null_mut(), RawAddress::as_mut_ptr);
        // SAFETY: the id and both addresses are alive; no source is a null pointer.
        let code = unsafe { rdma_resolve_addr(id.raw(), source, to.as_mut_ptr(), milliseconds(timeout)) };
        check(code, "resolve an address")?;
        Ok(Outgoing { id })
    }

    /// The next event, without waiting; `None` if there is none.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the channel cannot be read.
    pub fn next_event(&mut self) -> Result<Option<CmEvent>, VerbsError> {
        loop {
            let mut event = ptr::null_mut();
            // SAFETY: the channel is alive and the result has a place. It is not blocking.
            let code = unsafe { rdma_get_cm_event(self.inner.0.as_ptr(), &raw mut event) };
            if code == 0 {
                break Ok(NonNull::new(event).and_then(|event| self.take(event)));
            }
            let source = io::Error::last_os_error();
            match source.kind() {
                io::ErrorKind::WouldBlock => break Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => {
                    break Err(VerbsError::System {
                        action: "read the events of the connection manager",
                        source,
                    });
                }
            }
        }
    }

    /// Copies an event and acknowledges it: nothing of it is used afterwards, so ids can be dropped at any time.
    fn take(&self, event: NonNull<rdma_cm_event>) -> Option<CmEvent> {
        // SAFETY: the library returned the event, which is alive until it is acknowledged.
        let raw = unsafe { event.as_ref() };
        let kind = raw.event;
        let status = raw.status;
        let id = NonNull::new(raw.id);
        let about = if kind == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST {
            NonNull::new(raw.listen_id)
        } else {
            id
        };
        let key = about.map(|id| {
            // SAFETY: an id is not destroyed before its events are acknowledged.
            let context = unsafe { (*id.as_ptr()).context };
            IdKey(context.addr())
        });
        let peer = peer_options(raw);
        let request = (kind == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST)
            .then_some(id)
            .flatten()
            .map(|id| CmId::of_request(id, &self.inner));
        // SAFETY: acknowledged once, and not used any more; what was needed is copied.
        let code = unsafe { rdma_ack_cm_event(event.as_ptr()) };
        if code != 0 {
            tracing::warn!(code, "an event of the connection manager was not acknowledged");
        }
        use rdma_cm_event_type as event_type;
        let kind = match kind {
            event_type::RDMA_CM_EVENT_ADDR_RESOLVED => CmEventKind::AddressResolved,
            event_type::RDMA_CM_EVENT_ADDR_ERROR => CmEventKind::AddressError { status },
            event_type::RDMA_CM_EVENT_ROUTE_RESOLVED => CmEventKind::RouteResolved,
            event_type::RDMA_CM_EVENT_ROUTE_ERROR => CmEventKind::RouteError { status },
            event_type::RDMA_CM_EVENT_CONNECT_REQUEST => CmEventKind::ConnectRequest(ConnectRequest {
                id: request?,
                peer: Box::new(peer),
            }),
            event_type::RDMA_CM_EVENT_ESTABLISHED => CmEventKind::Established(Box::new(peer)),
            event_type::RDMA_CM_EVENT_REJECTED => CmEventKind::Rejected {
                reason: status,
                private_data: Box::new(peer.private_data),
            },
            event_type::RDMA_CM_EVENT_CONNECT_ERROR | event_type::RDMA_CM_EVENT_UNREACHABLE => {
                CmEventKind::ConnectError { status }
            }
            event_type::RDMA_CM_EVENT_DISCONNECTED => CmEventKind::Disconnected,
            event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => CmEventKind::DeviceRemoval,
            event_type::RDMA_CM_EVENT_ADDR_CHANGE => CmEventKind::AddressChange,
            event_type::RDMA_CM_EVENT_TIMEWAIT_EXIT => CmEventKind::TimewaitExit,
            event => CmEventKind::Other { event },
        };
        Some(CmEvent { id: key?, kind })
    }
}

impl fmt::Debug for EventChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventChannel")
            .field("descriptor", &self.descriptor())
            .finish()
    }
}

/// What the peer said, of events that have it; nothing of others.
fn peer_options(event: &rdma_cm_event) -> PeerOptions {
    use rdma_cm_event_type as event_type;
    if !matches!(
        event.event,
        event_type::RDMA_CM_EVENT_CONNECT_REQUEST
            | event_type::RDMA_CM_EVENT_ESTABLISHED
            | event_type::RDMA_CM_EVENT_REJECTED
    ) {
        return PeerOptions::default();
    }
    // SAFETY: ids here are connected, for which this is the variant; it is plain data.
    let parameters = unsafe { event.param.conn };
    let from = parameters.private_data.cast::<u8>();
    let private_data = if from.is_null() {
        PrivateData::default()
    } else {
        // SAFETY: the event has this many bytes there, and is alive.
        let bytes = unsafe { slice::from_raw_parts(from, parameters.private_data_len.into()) };
        PrivateData::new(bytes).unwrap_or_default()
    };
    PeerOptions {
        private_data,
        responder_resources: parameters.responder_resources,
        initiator_depth: parameters.initiator_depth,
    }
}
