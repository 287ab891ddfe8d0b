//! Private data of the RDMA connection manager. RDMA Transport 1.0, figures 5 to 7.
//!
//! A host's connection request, and the controller's acceptance or rejection, carry these structures;
//! everything after that is capsules. A connection manager may pad what it carries, so read a prefix rather
//! than the exact length.
//!
//! Not implemented: verbs, and the capsule exchange.

use crate::macros::open_enum;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Port assigned to NVMe/RDMA.
pub const PORT: u16 = 4420;
/// The only record format defined.
pub const RECFMT: u16 = 0;

/// Connection request: 32 bytes. RDMA Transport 1.0, figure 5.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CmRequest {
    /// Record format.
    pub recfmt: U16,
    /// Queue to create: 0 is the admin queue.
    pub qid: U16,
    /// Host receive queue size, in entries: responses that the host can take.
    pub hrqsize: U16,
    /// Host send queue size, zero-based: the submission queue's entries.
    pub hsqsize_z: U16,
    /// Controller, for I/O queues; 0 from hosts that do not send it.
    pub cntlid: U16,
    /// Reserved.
    pub reserved10: [u8; 22],
}
const _: () = assert!(size_of::<CmRequest>() == 32);

impl CmRequest {
    /// A request for a queue; sizes as the fields have them.
    pub fn new(qid: u16, hrqsize: u16, hsqsize_z: u16, cntlid: u16) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            qid: U16::new(qid),
            hrqsize: U16::new(hrqsize),
            hsqsize_z: U16::new(hsqsize_z),
            cntlid: U16::new(cntlid),
            reserved10: [0; 22],
        }
    }
}

/// Acceptance: 32 bytes. RDMA Transport 1.0, figure 6.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CmAccept {
    /// Record format.
    pub recfmt: U16,
    /// Controller receive queue size, in entries: commands that the controller can take.
    pub crqsize: U16,
    /// Reserved.
    pub reserved4: [u8; 28],
}
const _: () = assert!(size_of::<CmAccept>() == 32);

impl CmAccept {
    /// An acceptance with this receive queue.
    pub fn new(crqsize: u16) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            crqsize: U16::new(crqsize),
            reserved4: [0; 28],
        }
    }
}

open_enum! {
    /// Why a connection was rejected (STS). RDMA Transport 1.0, figure 11; INVALID_CNTLID came later.
    pub struct RejectStatus(u16) {
        /// The private data has the wrong length.
        INVALID_LENGTH = 0x01;
        /// The record format is not supported.
        INVALID_RECFMT = 0x02;
        /// The queue identifier is invalid.
        INVALID_QID = 0x03;
        /// The host send queue size is invalid.
        INVALID_HSQSIZE = 0x04;
        /// The host receive queue size is invalid.
        INVALID_HRQSIZE = 0x05;
        /// The controller is out of resources.
        NO_RESOURCES = 0x06;
        /// The inbound read depth is invalid.
        INVALID_IRD = 0x07;
        /// The outbound read depth is invalid.
        INVALID_ORD = 0x08;
        /// The controller identifier is invalid.
        INVALID_CNTLID = 0x09;
    }
}

/// Rejection: 4 bytes. RDMA Transport 1.0, figure 7.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CmReject {
    /// Record format.
    pub recfmt: U16,
    /// Why: see [`CmReject::status`].
    pub sts: U16,
}
const _: () = assert!(size_of::<CmReject>() == 4);

impl CmReject {
    /// A rejection for this reason.
    pub fn new(status: RejectStatus) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            sts: U16::new(status.0),
        }
    }

    /// Why.
    pub fn status(&self) -> RejectStatus {
        RejectStatus(self.sts.get())
    }
}
