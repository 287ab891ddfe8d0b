//! What can go wrong between two ends, as [`TransportError`] here and as [`Termination`] when the peer says it.

use std::fmt;

use homi_queue::{CommandId, MemoryError};
use homi_spec::tcp::{FatalError, PduHeader, PduType, TermReq};
use zerocopy::FromBytes;

/// One of the two ends of an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The end that submits commands.
    Host,
    /// The end that executes them.
    Controller,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Controller => "controller",
        })
    }
}

/// A connection cannot be made with these parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// HPDA or CPDA is too large.
    #[error("a data alignment of {0} (zero-based dwords) was asked for: use 0 to 31")]
    Alignment(u8),
    /// MAXH2CDATA is too small or not a multiple of four.
    #[error("{0} bytes per H2CData unit were asked for: use a multiple of 4, at least 4096")]
    MaxH2cData(u32),
    /// The in-capsule limit is not a multiple of 16, the unit in which it is announced.
    #[error("{0} bytes of in-capsule data were asked for: use a multiple of 16")]
    InCapsule(u32),
    /// The queue depth is zero or too large.
    #[error("a depth of {depth} commands was asked for: use 1 to {max}")]
    Depth {
        /// Asked for.
        depth: u16,
        /// The most that there can be.
        max: u16,
    },
    /// The host must take at least one R2T at a time.
    #[error("no outstanding R2T was allowed: allow at least one, or no write beyond the capsule can work")]
    MaxR2t,
}

/// The peer broke the protocol. Fatal to the connection: the terminate request that says so is queued already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A unit of a type that does not exist.
    #[error("a pdu of type {0} came, which nvme/tcp does not define")]
    UnknownPdu(PduType),
    /// A unit that the connection's state does not allow.
    #[error("a pdu of type {pdu} came while the {end} {expected}")]
    UnexpectedPdu {
        /// The type that came.
        pdu: PduType,
        /// The end that received it.
        end: End,
        /// What that end was doing.
        expected: &'static str,
    },
    /// HLEN is not the type's.
    #[error("a pdu of type {pdu} came with a header of {found} bytes instead of {expected}")]
    HeaderLength {
        /// Its type.
        pdu: PduType,
        /// What the type requires.
        expected: u8,
        /// HLEN.
        found: u8,
    },
    /// The flags claim or deny a digest against what was negotiated.
    #[error("a pdu of type {pdu} came with flags {flags:#04x}, but the {digest} digest is {}", if *.negotiated { "on" } else { "off" })]
    DigestFlag {
        /// Its type.
        pdu: PduType,
        /// Its flags.
        flags: u8,
        /// "header" or "data".
        digest: &'static str,
        /// Whether the connection uses that digest.
        negotiated: bool,
    },
    /// PDO lies in the header or is not aligned as agreed.
    #[error(
        "a pdu of type {pdu} came with its data at byte {found}: at least byte {minimum} and a multiple of {alignment} was agreed"
    )]
    DataOffset {
        /// Its type.
        pdu: PduType,
        /// PDO.
        found: u8,
        /// End of the header and its digest.
        minimum: u8,
        /// The alignment that this end asked for, in bytes.
        alignment: u8,
    },
    /// PLEN disagrees with the rest of the header.
    #[error("a pdu of type {pdu} came with a length of {found} bytes where its header makes it {expected}")]
    PduLength {
        /// Its type.
        pdu: PduType,
        /// PLEN.
        found: u32,
        /// What the header's other fields make of it (the least, where data of any length may follow).
        expected: u64,
    },
    /// The header digest does not match.
    #[error("the header digest of a pdu of type {pdu} is {received:#010x}, computed was {computed:#010x}")]
    HeaderDigest {
        /// Its type.
        pdu: PduType,
        /// The digest that came.
        received: u32,
        /// The digest of the header that came.
        computed: u32,
    },
    /// ICReq or ICResp speaks another version.
    #[error("the peer speaks nvme/tcp format version {0}, only version 0 is supported")]
    Version(u16),
    /// HPDA or CPDA is out of range.
    #[error("the peer asks for a data alignment of {0} (zero-based dwords), at most 31 is defined")]
    PeerAlignment(u8),
    /// The controller turned a digest on or off against the host's request.
    #[error(
        "the controller answered digests {granted:#04x} to a request for {wanted:#04x}: ask for those that it supports"
    )]
    DigestNegotiation {
        /// DGST of the request.
        wanted: u8,
        /// DGST of the response.
        granted: u8,
    },
    /// MAXH2CDATA is not allowed.
    #[error("the controller takes {0} bytes per H2CData unit: a multiple of 4 and at least 4096 is required")]
    PeerMaxH2cData(u32),
    /// A capsule holds more data than this queue takes.
    #[error("a capsule with {found} bytes of data came, this queue takes {limit}")]
    InCapsuleLimit {
        /// Bytes that came.
        found: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// More commands than the queue has entries.
    #[error("a command came while {limit} were in flight, all that the queue has entries for")]
    CommandLimit {
        /// The queue's depth.
        limit: u16,
    },
    /// H2CData names no transfer that waits for data.
    #[error("data came for transfer tag {ttag:#06x}, which no command waits for")]
    UnknownTransfer {
        /// TTAG.
        ttag: u16,
    },
    /// H2CData names another command than its transfer's.
    #[error("data came for transfer tag {ttag:#06x} with command id {found:#06x} instead of {expected:#06x}")]
    WrongCommand {
        /// TTAG.
        ttag: u16,
        /// The command that the transfer belongs to.
        expected: u16,
        /// CCCID.
        found: u16,
    },
    /// Data or a request for data outside the command's, or not where the last one ended.
    #[error(
        "a pdu of type {pdu} names bytes {offset}+{len} of command {cid:#06x}, expected were at most {remaining} from {expected} on"
    )]
    DataRange {
        /// H2CData, C2HData or R2T.
        pdu: PduType,
        /// The command.
        cid: u16,
        /// Offset named.
        offset: u32,
        /// Bytes named.
        len: u32,
        /// Where the next byte was expected.
        expected: u32,
        /// How many bytes the command has left from there.
        remaining: u32,
    },
    /// More data in one H2CData unit than MAXH2CDATA.
    #[error("an H2CData unit with {found} bytes came, at most {limit} was announced")]
    H2cDataLimit {
        /// Bytes that came.
        found: u32,
        /// MAXH2CDATA.
        limit: u32,
    },
    /// LAST_PDU is set before the end of the transfer, or missing at it.
    #[error("a pdu of type {pdu} ends at byte {end} of command {cid:#06x}'s {total} with the last flag {}", if *.last { "set" } else { "clear" })]
    LastFlag {
        /// H2CData or C2HData.
        pdu: PduType,
        /// The command.
        cid: u16,
        /// Where the unit's data ends.
        end: u32,
        /// Where the transfer ends.
        total: u32,
        /// The flag that came.
        last: bool,
    },
    /// SUCCESS without LAST_PDU.
    #[error("a C2HData unit for command {cid:#06x} has the success flag but is not the last")]
    SuccessWithoutLast {
        /// The command.
        cid: u16,
    },
    /// The command id names nothing in flight: unknown, late or doubled.
    #[error("a pdu of type {pdu} came for command {id}, which is not in flight (unknown, late or doubled)")]
    UnknownCommand {
        /// CapsuleResp, C2HData or R2T.
        pdu: PduType,
        /// The id that came.
        id: CommandId,
    },
    /// Data for a command that reads nothing, or an R2T for one that sends nothing (more).
    #[error("a pdu of type {pdu} came for command {id}, which does not move data that way")]
    WrongDirection {
        /// C2HData or R2T.
        pdu: PduType,
        /// The command.
        id: CommandId,
    },
    /// More R2Ts at a time than MAXR2T.
    #[error("an R2T came for command {id} while {limit} were outstanding, all that were allowed")]
    R2tLimit {
        /// The command.
        id: CommandId,
        /// How many may be outstanding.
        limit: u16,
    },
    /// A command succeeded without its data.
    #[error("command {id} succeeded with {moved} of {expected} bytes transferred")]
    ShortTransfer {
        /// The command.
        id: CommandId,
        /// Bytes of its data.
        expected: u32,
        /// Bytes that moved.
        moved: u32,
    },
    /// The operation's memory is not what it was when it was handed over.
    #[error("the memory of command {cid:#06x} cannot be addressed: {source}")]
    Memory {
        /// The command.
        cid: u16,
        /// Why.
        source: MemoryError,
    },
}

impl TransportError {
    /// Fatal error status and information for the terminate request (TCP Transport 1.0 §3.6.2.4): the byte offset of the
    /// field at fault, the digest that came, or 0.
    #[must_use]
    pub fn fatal_error(&self) -> (FatalError, u32) {
        match *self {
            Self::UnknownPdu(_) => (FatalError::INVALID_HEADER_FIELD, 0),
            Self::UnexpectedPdu { .. } | Self::CommandLimit { .. } => (FatalError::SEQUENCE_ERROR, 0),
            Self::HeaderLength { .. } => (FatalError::INVALID_HEADER_FIELD, 2),
            Self::DigestFlag { .. } | Self::LastFlag { .. } | Self::SuccessWithoutLast { .. } => {
                (FatalError::INVALID_HEADER_FIELD, 1)
            }
            Self::DataOffset { .. } => (FatalError::INVALID_HEADER_FIELD, 3),
            Self::PduLength { .. } => (FatalError::INVALID_HEADER_FIELD, 4),
            Self::HeaderDigest { received, .. } => (FatalError::HEADER_DIGEST_ERROR, received),
            Self::Version(_) => (FatalError::UNSUPPORTED_PARAMETER, 8),
            Self::PeerAlignment(_) => (FatalError::INVALID_HEADER_FIELD, 10),
            Self::DigestNegotiation { .. } => (FatalError::INVALID_HEADER_FIELD, 11),
            Self::PeerMaxH2cData(_) => (FatalError::INVALID_HEADER_FIELD, 12),
            Self::UnknownTransfer { .. } => (FatalError::INVALID_HEADER_FIELD, 10),
            Self::WrongCommand { .. } | Self::WrongDirection { .. } => (FatalError::INVALID_HEADER_FIELD, 8),
            Self::UnknownCommand { pdu, .. } => (
                FatalError::INVALID_HEADER_FIELD,
                if pdu == PduType::CAPSULE_RESP { 20 } else { 8 },
            ),
            Self::DataRange { .. } | Self::ShortTransfer { .. } | Self::Memory { .. } => {
                (FatalError::DATA_TRANSFER_OUT_OF_RANGE, 0)
            }
            Self::InCapsuleLimit { .. } | Self::H2cDataLimit { .. } | Self::R2tLimit { .. } => {
                (FatalError::LIMIT_EXCEEDED, 0)
            }
        }
    }
}

/// The peer's terminate request: why it ended the connection, as a sentence when displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Termination {
    /// The end that gave up.
    pub by: End,
    /// Fatal error status.
    pub fatal_error: FatalError,
    /// Fatal error information: a byte offset or a digest, by status.
    pub information: u32,
    /// Type of the unit that it complains about, if it sent that unit's header along.
    pub about: Option<PduType>,
}

impl Termination {
    /// Reads a whole terminate request, whose length was checked to be 24 to 152 bytes.
    pub(crate) fn parse(by: End, unit: &[u8]) -> Option<Self> {
        let (request, echo) = TermReq::ref_from_prefix(unit).ok()?;
        let about = PduHeader::ref_from_prefix(echo)
            .ok()
            .map(|(header, _)| header.pdu_type);
        Some(Self {
            by,
            fatal_error: request.fatal_error(),
            information: request.fei.get(),
            about,
        })
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} ended the connection: ", self.by)?;
        let information = self.information;
        match self.fatal_error {
            FatalError::INVALID_HEADER_FIELD => write!(f, "byte {information} of a header is invalid")?,
            FatalError::SEQUENCE_ERROR => f.write_str("a pdu came out of sequence")?,
            FatalError::HEADER_DIGEST_ERROR => {
                write!(f, "a header does not match its digest {information:#010x}")?;
            }
            FatalError::DATA_TRANSFER_OUT_OF_RANGE => f.write_str("data outside the range asked for")?,
            FatalError::LIMIT_EXCEEDED => f.write_str("a limit on data or outstanding r2ts was exceeded")?,
            FatalError::UNSUPPORTED_PARAMETER => {
                write!(f, "the parameter at byte {information} is not supported")?;
            }
            other => write!(f, "fatal error status {other} with information {information:#x}")?,
        }
        match self.about {
            Some(pdu) => write!(f, " (in a pdu of type {pdu})"),
            None => Ok(()),
        }
    }
}
