//! Values of verbs as types of their own: [`Access`], [`Limits`], [`WorkStatus`], [`PrivateData`], options and parameters.

use std::fmt;
use std::ops::{BitOr, Deref};

/// What may be done with registered memory (InfiniBand 1.4, section 10.6.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u32);

impl Access {
    /// The device may read it for this host's own SENDs and RDMA WRITEs. Always allowed.
    pub const READ: Self = Self(0);
    /// The device may write it for this host's own RECVs and RDMA READs.
    pub const WRITE: Self = Self(1);
    /// A peer that has the key may write it. Includes [`Access::WRITE`], without which devices refuse it.
    pub const REMOTE_WRITE: Self = Self(1 | 1 << 1);
    /// A peer that has the key may read it.
    pub const REMOTE_READ: Self = Self(1 << 2);
    /// Memory windows may be bound to it.
    pub const BIND: Self = Self(1 << 4);
    /// The device may write its bytes in any order, which is faster on some systems. A completion still comes after all of them. Devices and
    /// libraries without it ignore the wish.
    pub const RELAXED: Self = Self(1 << 20);

    const NAMES: [(Self, &'static str); 5] = [
        (Self(1), "write"),
        (Self(1 << 1), "remote write"),
        (Self(1 << 2), "remote read"),
        (Self(1 << 4), "bind"),
        (Self(1 << 20), "relaxed"),
    ];

    /// Whether every right of `other` is among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As verbs take it (`ibv_access_flags`).
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The same without the wishes that old libraries refuse.
    #[cfg_attr(
        not(any(feature = "rdma", test)),
        expect(dead_code, reason = "for registrations")
    )]
    pub(crate) const fn required(self) -> Self {
        Self(self.0 & !Self::RELAXED.0)
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("read")?;
        Self::NAMES
            .iter()
            .filter(|(right, _)| self.contains(*right))
            .try_for_each(|(_, name)| write!(f, " | {name}"))
    }
}

/// What kind of memory windows a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Windows {
    /// None that work requests can bind.
    None,
    /// Type 2A: bound to a queue pair by its number.
    Type2A,
    /// Type 2B: bound to a queue pair and its protection domain.
    Type2B,
}

/// What a device can do. Every count is a maximum.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Work requests in one queue.
    pub work_requests: u32,
    /// Pieces of memory in one work request.
    pub pieces: u32,
    /// Pieces of memory in one RDMA READ.
    pub read_pieces: u32,
    /// Entries of a completion queue.
    pub completions: u32,
    /// Length of one memory registration in bytes.
    pub registration_bytes: u64,
    /// Memory registrations.
    pub registrations: u32,
    /// Shared receive queues; 0 if there are none.
    pub shared_receive_queues: u32,
    /// Work requests in a shared receive queue.
    pub shared_receive_work_requests: u32,
    /// Pieces of memory in a work request of a shared receive queue.
    pub shared_receive_pieces: u32,
    /// RDMA READs that a queue pair may have in flight to its peer.
    pub initiator_depth: u8,
    /// RDMA READs of the peer that a queue pair serves at once.
    pub responder_resources: u8,
    /// Memory windows that can be bound by work requests.
    pub windows: Windows,
    /// Whether keys can be invalidated by work requests. Devices in software do it without saying so, or say so and do not.
    pub invalidate: bool,
    /// Whether a completion says that the memory of silent work requests before it may be used again, as it should. iWARP in software sends
    /// such memory without a copy, and may send it again later.
    pub silent_is_done: bool,
    /// Completion vectors: interrupts among which completion queues can be spread.
    pub completion_vectors: u32,
}

/// How a work request ended (InfiniBand 1.4, section 11.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkStatus {
    /// Well.
    Success,
    /// A message is longer than the memory for it, or than the device can send.
    LocalLength,
    /// The work request is not consistent, or the device failed.
    LocalOperation,
    /// Memory is not registered, or not for this.
    LocalProtection,
    /// The queue pair was in the error state before the work request was executed.
    Flushed,
    /// A memory window could not be bound.
    WindowBind,
    /// The peer answered with an opcode that does not fit.
    BadResponse,
    /// Memory of this host was not accessible for an incoming RDMA WRITE with immediate data.
    LocalAccess,
    /// The peer found the request invalid: too long for its RECV, or an operation that it does not allow.
    RemoteInvalidRequest,
    /// The peer does not allow access to that memory: a wrong key, or bytes outside of it.
    RemoteAccess,
    /// The peer could not finish the operation.
    RemoteOperation,
    /// The peer does not acknowledge.
    RetriesExceeded,
    /// The peer has no RECV posted, and that after all retries.
    ReceiverNotReady,
    /// The peer aborted the operation.
    RemoteAbort,
    /// The device failed.
    Fatal,
    /// The peer did not answer in time.
    ResponseTimeout,
    /// Anything else that the device reports.
    General,
    /// A status that this crate does not know.
    Unknown(u32),
}

impl WorkStatus {
    /// From `ibv_wc_status`.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Success,
            1 => Self::LocalLength,
            2 => Self::LocalOperation,
            4 => Self::LocalProtection,
            5 => Self::Flushed,
            6 => Self::WindowBind,
            7 => Self::BadResponse,
            8 => Self::LocalAccess,
            9 => Self::RemoteInvalidRequest,
            10 => Self::RemoteAccess,
            11 => Self::RemoteOperation,
            12 => Self::RetriesExceeded,
            13 => Self::ReceiverNotReady,
            16 => Self::RemoteAbort,
            19 => Self::Fatal,
            20 => Self::ResponseTimeout,
            21 => Self::General,
            other => Self::Unknown(other),
        }
    }

    /// Whether the work was done. After anything else the queue pair is in the error state.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Success)
    }
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Success => "success",
            Self::LocalLength => "local length error",
            Self::LocalOperation => "local operation error",
            Self::LocalProtection => "local protection error",
            Self::Flushed => "flushed: the queue pair was in the error state",
            Self::WindowBind => "the memory window could not be bound",
            Self::BadResponse => "bad response of the peer",
            Self::LocalAccess => "local access error",
            Self::RemoteInvalidRequest => "the peer found the request invalid",
            Self::RemoteAccess => "the peer does not allow access to that memory",
            Self::RemoteOperation => "the peer could not do the operation",
            Self::RetriesExceeded => "the peer does not acknowledge",
            Self::ReceiverNotReady => "the peer has no receive posted",
            Self::RemoteAbort => "the peer aborted",
            Self::Fatal => "the device failed",
            Self::ResponseTimeout => "the peer did not answer in time",
            Self::General => "transport error",
            Self::Unknown(raw) => return write!(f, "status {raw}"),
        };
        f.pad(text)
    }
}

/// Number of a queue pair, as its device counts. It can be used again once the queue pair is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpNumber(pub u32);

impl fmt::Display for QpNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bytes that came with a message of the connection manager. Requests and replies arrive padded with zeros to the length of their field
/// (56 and 196 bytes over InfiniBand and RoCE), so a format must know its own length.
#[derive(Clone)]
pub struct PrivateData {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl PrivateData {
    /// The most that any message has.
    pub const MAX: usize = 255;
    /// The most that goes with a request to connect over InfiniBand and RoCE.
    pub const CONNECT: usize = 56;
    /// The most that goes with an accept over InfiniBand and RoCE.
    pub const ACCEPT: usize = 196;
    /// The most that goes with a rejection over InfiniBand and RoCE.
    pub const REJECT: usize = 148;

    /// A copy of these bytes, or `None` if there are more than [`PrivateData::MAX`].
    #[must_use]
    pub fn new(from: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        let len = u8::try_from(from.len()).ok()?;
        Some(Self { bytes, len })
    }
}

impl Default for PrivateData {
    fn default() -> Self {
        Self {
            bytes: [0; Self::MAX],
            len: 0,
        }
    }
}

impl Deref for PrivateData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The length never exceeds the array's.
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateData({:02x?})", &**self)
    }
}

/// What both ends tell each other when they connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions<'a> {
    /// Bytes for the peer; see [`PrivateData`] for how many.
    pub private_data: &'a [u8],
    /// RDMA READs of the peer that are served at once. An accept should not go above the request's initiator depth.
    pub responder_resources: u8,
    /// RDMA READs to the peer that may be in flight. An accept should not go above the request's responder resources.
    pub initiator_depth: u8,
    /// Times to send again what is not acknowledged, 0 to 7.
    pub retries: u8,
    /// Times to send again when the peer has no RECV posted, 0 to 7; 7 is without end.
    pub receiver_not_ready_retries: u8,
}

impl Default for ConnectOptions<'_> {
    fn default() -> Self {
        Self {
            private_data: &[],
            responder_resources: 1,
            initiator_depth: 1,
            retries: 7,
            receiver_not_ready_retries: 7,
        }
    }
}

/// What the peer said when it connected or accepted, from this host's point of view.
#[derive(Debug, Clone, Default)]
pub struct PeerOptions {
    /// The bytes that it sent.
    pub private_data: PrivateData,
    /// RDMA READs that the peer wants to have in flight to this host, or this host's responder resources once connected.
    pub responder_resources: u8,
    /// RDMA READs of this host that the peer serves at once.
    pub initiator_depth: u8,
}

/// Sizes of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpOptions {
    /// Work requests that the send queue holds.
    pub sends: u32,
    /// Pieces of memory in a work request of the send queue.
    pub send_pieces: u32,
    /// Bytes that can be sent inline; the device may offer more, never less.
    pub inline: u32,
    /// Work requests that the own receive queue holds; 0 with a shared one.
    pub receives: u32,
    /// Pieces of memory in a work request of the own receive queue.
    pub receive_pieces: u32,
}

impl Default for QpOptions {
    fn default() -> Self {
        Self {
            sends: 128,
            send_pieces: 2,
            inline: 0,
            receives: 128,
            receive_pieces: 1,
        }
    }
}

/// A work request of a send queue whose memory is free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Released {
    /// The caller's word for it.
    pub token: u64,
    /// Whether this is the work request that the completion is about. The others were posted before it without a completion of their own.
    pub completed: bool,
}

/// What a queue pair has done, for counts per operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Work requests posted.
    pub work_requests: u64,
    /// Lists of work requests given to the device, each with one doorbell.
    pub doorbells: u64,
    /// Completions taken.
    pub completions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_may_write_includes_the_local_right() {
        assert!(Access::REMOTE_WRITE.contains(Access::WRITE));
        assert!(!Access::REMOTE_READ.contains(Access::WRITE));
        let all = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::BIND | Access::RELAXED;
        assert_eq!(all.bits(), 0x10_0017);
        assert_eq!(all.required().bits(), 0x17);
        assert_eq!(
            format!("{all:?}"),
            "read | write | remote write | remote read | bind | relaxed"
        );
    }

    #[test]
    fn private_data_is_bounded() {
        assert_eq!(&*PrivateData::new(&[7; 255]).unwrap(), &[7; 255]);
        assert!(PrivateData::new(&[7; 256]).is_none());
        assert!(PrivateData::default().is_empty());
    }

    #[test]
    fn every_status_has_a_sentence() {
        for raw in 0..64 {
            let status = WorkStatus::from_raw(raw);
            assert_eq!(status.is_success(), raw == 0);
            assert!(!status.to_string().is_empty());
        }
        assert_eq!(WorkStatus::from_raw(99).to_string(), "status 99");
    }
}
