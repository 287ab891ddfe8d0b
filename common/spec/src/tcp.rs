//! Protocol data units of the NVMe/TCP transport. TCP Transport 1.0 §3.6.2.
//!
//! Every unit begins with the same eight bytes ([`PduHeader`]); the structs here are whole headers, so their size
//! is the unit's HLEN. A unit is: header, header digest if enabled, padding up to PDO, data, data digest if enabled.
//!
//! Not implemented: digest arithmetic, TLS, and any judgement of a unit; see the transport's state machine.

use crate::command::{Cqe, Sqe};
use crate::macros::open_enum;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Port assigned to NVMe-oF I/O controllers. TCP Transport §3.1.
pub const PORT_IO: u16 = 4420;
/// Port assigned to NVMe/TCP discovery controllers. TCP Transport §3.1.
pub const PORT_DISCOVERY: u16 = 8009;
/// In-capsule data that every controller accepts with admin and fabrics commands, in bytes. TCP Transport §3.3.1.
pub const ADMIN_IN_CAPSULE: u32 = 8192;
/// Smallest MAXH2CDATA that a controller may announce, in bytes. TCP Transport §3.6.2.3.
pub const MAXH2CDATA_MIN: u32 = 4096;
/// Largest HPDA or CPDA, zero-based dwords.
pub const PDA_MAX_Z: u8 = 31;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;
/// The only protocol format version (PFV) defined.
pub const PFV_1_0: u16 = 0;
/// Shortest terminate request, in bytes: its header alone.
pub const TERM_REQ_MIN: u32 = 24;
/// Longest terminate request, in bytes: its header and 128 bytes of the offending unit's header.
pub const TERM_REQ_MAX: u32 = 152;

/// Alignment of a unit's data offset (PDO) in bytes for a zero-based HPDA or CPDA in dwords.
pub const fn alignment(pda_z: u8) -> usize {
    4 * (pda_z as usize + 1)
}

open_enum! {
    /// PDU type: byte 0 of every unit; b0 is clear from host to controller and set the other way.
    /// TCP Transport §3.3, figure 10.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct PduType(u8) {
        /// Initialize connection request: host to controller.
        IC_REQ = 0x00;
        /// Initialize connection response: controller to host.
        IC_RESP = 0x01;
        /// Terminate connection request of the host.
        H2C_TERM_REQ = 0x02;
        /// Terminate connection request of the controller.
        C2H_TERM_REQ = 0x03;
        /// Command capsule.
        CAPSULE_CMD = 0x04;
        /// Response capsule.
        CAPSULE_RESP = 0x05;
        /// Data from the host.
        H2C_DATA = 0x06;
        /// Data from the controller.
        C2H_DATA = 0x07;
        /// Ready to transfer: the controller asks for data.
        R2T = 0x09;
    }
}
const _: () = assert!(size_of::<PduType>() == 1);

impl PduType {
    /// The HLEN that a unit of this type must carry, or `None` for an unknown type.
    pub const fn hlen(self) -> Option<u8> {
        match self {
            Self::IC_REQ | Self::IC_RESP => Some(128),
            Self::H2C_TERM_REQ
            | Self::C2H_TERM_REQ
            | Self::CAPSULE_RESP
            | Self::H2C_DATA
            | Self::C2H_DATA
            | Self::R2T => Some(24),
            Self::CAPSULE_CMD => Some(72),
            _ => None,
        }
    }
}

/// Flags: byte 1 of every unit. TCP Transport §3.6.2.
pub mod flags {
    /// A header digest follows the header.
    pub const HDGST: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGST: u8 = 1 << 1;
    /// The last data unit of this transfer (H2CData, C2HData).
    pub const LAST_PDU: u8 = 1 << 2;
    /// The command succeeded and no response capsule follows (C2HData, with LAST_PDU).
    pub const SUCCESS: u8 = 1 << 3;
}

/// Digests in ICReq and ICResp (DGST). TCP Transport §3.6.2.2.
pub mod dgst {
    /// Header digest.
    pub const HEADER: u8 = 1 << 0;
    /// Data digest.
    pub const DATA: u8 = 1 << 1;
}

/// The common header: 8 bytes. TCP Transport §3.6.2.1.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PduHeader {
    /// PDU type.
    pub pdu_type: PduType,
    /// The constants of [`flags`].
    pub flags: u8,
    /// Bytes of the header, without its digest.
    pub hlen: u8,
    /// Offset of the data from the unit's start in bytes, or 0 without data.
    pub pdo: u8,
    /// Bytes of the whole unit: header, digests, padding and data.
    pub plen: U32,
}
const _: () = assert!(size_of::<PduHeader>() == 8);

impl PduHeader {
    /// A header; the type fixes HLEN (0 for an unknown type).
    pub fn new(pdu_type: PduType, flags: u8, pdo: u8, plen: u32) -> Self {
        Self {
            pdu_type,
            flags,
            hlen: pdu_type.hlen().unwrap_or(0),
            pdo,
            plen: U32::new(plen),
        }
    }

    /// Whether this flag is set.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Initialize connection request: 128 bytes. TCP Transport §3.6.2.2.
#[derive(Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub header: PduHeader,
    /// Protocol format version.
    pub pfv: U16,
    /// Alignment that the host wants of data sent to it (HPDA): dwords, zero-based, at most 31.
    pub hpda_z: u8,
    /// Digests wanted: the constants of [`dgst`].
    pub dgst: u8,
    /// Outstanding R2Ts per command that the host accepts (MAXR2T), zero-based.
    pub maxr2t_z: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}
const _: () = assert!(size_of::<IcReq>() == 128);

impl IcReq {
    /// A request with these parameters.
    pub fn new(hpda_z: u8, dgst: u8, maxr2t_z: u32) -> Self {
        Self {
            header: PduHeader::new(PduType::IC_REQ, 0, 0, 128),
            pfv: U16::new(PFV_1_0),
            hpda_z,
            dgst,
            maxr2t_z: U32::new(maxr2t_z),
            reserved16: [0; 112],
        }
    }
}

/// Initialize connection response: 128 bytes. TCP Transport §3.6.2.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub header: PduHeader,
    /// Protocol format version.
    pub pfv: U16,
    /// Alignment that the controller wants of data sent to it (CPDA): dwords, zero-based, at most 31.
    pub cpda_z: u8,
    /// Digests in use: the constants of [`dgst`].
    pub dgst: u8,
    /// Most data in one H2CData unit, in bytes: at least 4096 and a multiple of 4.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}
const _: () = assert!(size_of::<IcResp>() == 128);

impl IcResp {
    /// A response with these parameters.
    pub fn new(cpda_z: u8, dgst: u8, maxh2cdata: u32) -> Self {
        Self {
            header: PduHeader::new(PduType::IC_RESP, 0, 0, 128),
            pfv: U16::new(PFV_1_0),
            cpda_z,
            dgst,
            maxh2cdata: U32::new(maxh2cdata),
            reserved16: [0; 112],
        }
    }
}

open_enum! {
    /// Fatal error status (FES) of a terminate request. TCP Transport §3.6.2.4.
    pub struct FatalError(u16) {
        /// A header field is invalid; FEI is its byte offset.
        INVALID_HEADER_FIELD = 0x01;
        /// A unit came out of sequence.
        SEQUENCE_ERROR = 0x02;
        /// The header digest does not match; FEI is the digest received.
        HEADER_DIGEST_ERROR = 0x03;
        /// Data is outside the command's buffer, or outside the range of its R2T.
        DATA_TRANSFER_OUT_OF_RANGE = 0x04;
        /// From a host: more R2Ts than MAXR2T. From a controller: more data in a unit than MAXH2CDATA.
        LIMIT_EXCEEDED = 0x05;
        /// A parameter is not supported; FEI is its byte offset.
        UNSUPPORTED_PARAMETER = 0x06;
    }
}

/// Terminate request of either side: a 24-byte header, then at most 128 bytes of the offending unit's header.
/// TCP Transport §3.6.2.4 and §3.6.2.5. Never carries digests.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub header: PduHeader,
    /// Fatal error status: see [`TermReq::fatal_error`].
    pub fes: U16,
    /// Fatal error information, which lies at offset 10, unaligned.
    pub fei: U32,
    /// Reserved.
    pub reserved14: [u8; 10],
}
const _: () = assert!(size_of::<TermReq>() == 24);
const _: () = assert!(core::mem::offset_of!(TermReq, fei) == 10);

impl TermReq {
    /// A terminate request followed by `echo_len` bytes (at most 128) of the offending header.
    pub fn new(pdu_type: PduType, fatal_error: FatalError, fei: u32, echo_len: u8) -> Self {
        Self {
            header: PduHeader::new(pdu_type, 0, 0, TERM_REQ_MIN + u32::from(echo_len.min(128))),
            fes: U16::new(fatal_error.0),
            fei: U32::new(fei),
            reserved14: [0; 10],
        }
    }

    /// Why the sender gave up.
    pub fn fatal_error(&self) -> FatalError {
        FatalError(self.fes.get())
    }
}

/// Command capsule: 72 bytes, then in-capsule data at PDO. TCP Transport §3.6.2.6.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub header: PduHeader,
    /// The command.
    pub sqe: Sqe,
}
const _: () = assert!(size_of::<CapsuleCmd>() == 72);

/// Response capsule: 24 bytes. TCP Transport §3.6.2.7.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub header: PduHeader,
    /// The completion.
    pub cqe: Cqe,
}
const _: () = assert!(size_of::<CapsuleResp>() == 24);

/// Data from the host: 24 bytes, then data at PDO. TCP Transport §3.6.2.8.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct H2CData {
    /// Common header.
    pub header: PduHeader,
    /// Identifier of the command.
    pub cccid: U16,
    /// Transfer tag of the R2T that asked for the data.
    pub ttag: U16,
    /// Offset within the command's data, in bytes.
    pub datao: U32,
    /// Bytes of data in this unit.
    pub datal: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}
const _: () = assert!(size_of::<H2CData>() == 24);

/// Data from the controller: 24 bytes, then data at PDO. TCP Transport §3.6.2.9.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct C2HData {
    /// Common header.
    pub header: PduHeader,
    /// Identifier of the command.
    pub cccid: U16,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// Offset within the command's data, in bytes.
    pub datao: U32,
    /// Bytes of data in this unit.
    pub datal: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}
const _: () = assert!(size_of::<C2HData>() == 24);

/// Ready to transfer: 24 bytes. TCP Transport §3.6.2.10.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct R2t {
    /// Common header.
    pub header: PduHeader,
    /// Identifier of the command.
    pub cccid: U16,
    /// Transfer tag that the data must carry.
    pub ttag: U16,
    /// Offset asked for within the command's data, in bytes.
    pub r2to: U32,
    /// Bytes asked for.
    pub r2tl: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}
const _: () = assert!(size_of::<R2t>() == 24);
