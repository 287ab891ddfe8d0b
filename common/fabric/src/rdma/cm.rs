//! What the connection manager carries for a queue: request, acceptance and rejection, both ways
//! (RDMA Transport 1.0, figures 5 to 7 and 11), and what the two ends agree on with them.
//!
//! A host builds a [`ConnectRequest`], a controller reads it with [`ConnectRequest::parse`] and answers it by
//! [`QueueLimits::grant`]: a [`Granted`] queue, or a [`Refusal`] whose status travels back. The host reads the
//! acceptance with [`Accepted::parse`] or the rejection with [`Rejected::parse`].
//!
//! Connection managers pad private data, so more bytes than a structure has are no error; fewer are.

use homi_spec::rdma::{CmAccept, CmReject, CmRequest, RECFMT, RejectStatus};
use zerocopy::FromBytes;

/// Fewest entries of a queue (Base 2.0 §3.3.1: one stays empty).
const MIN_ENTRIES: u16 = 2;

/// What a host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The queue to create: 0 is the admin queue.
    pub qid: u16,
    /// Responses that the host can take at a time (HRQSIZE).
    pub response_entries: u16,
    /// Entries of the submission queue (HSQSIZE + 1), 1 to 65536.
    pub command_entries: u32,
    /// The controller that an I/O queue is for, 0 from hosts that do not say.
    pub controller_id: u16,
}

impl ConnectRequest {
    /// A request for a queue of `entries` entries whose host takes as many responses.
    #[must_use]
    pub fn new(qid: u16, entries: u16, controller_id: u16) -> Self {
        Self {
            qid,
            response_entries: entries,
            command_entries: u32::from(entries),
            controller_id,
        }
    }

    /// The private data of the connection request.
    #[must_use]
    pub fn to_private_data(&self) -> CmRequest {
        let hsqsize_z = u16::try_from(self.command_entries.saturating_sub(1)).unwrap_or(u16::MAX);
        CmRequest::new(self.qid, self.response_entries, hsqsize_z, self.controller_id)
    }

    /// Reads the private data of a connection request.
    ///
    /// # Errors
    /// [`Refusal`] if it is too short or of another format: reject with its status.
    pub fn parse(private_data: &[u8]) -> Result<Self, Refusal> {
        let (request, _) = CmRequest::ref_from_prefix(private_data).map_err(|_| Refusal::Length {
            found: private_data.len(),
        })?;
        if request.recfmt.get() != RECFMT {
            return Err(Refusal::Format(request.recfmt.get()));
        }
        Ok(Self {
            qid: request.qid.get(),
            response_entries: request.hrqsize.get(),
            command_entries: u32::from(request.hsqsize_z.get()) + 1,
            controller_id: request.cntlid.get(),
        })
    }
}

/// What a controller can give to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// The most entries of an admin queue: at least 32, which is what hosts ask for.
    pub admin_entries: u16,
    /// The most entries of an I/O queue: at least what CAP.MQES tells hosts, since some mind only that.
    pub io_entries: u16,
    /// The highest I/O queue identifier.
    pub max_qid: u16,
    /// The most RDMA READs that the device can have outstanding on a queue pair as their initiator.
    pub read_depth: u8,
}

/// A queue as both ends agreed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The queue.
    pub qid: u16,
    /// Entries (CRQSIZE): receives that the controller keeps posted for this queue, so commands that can be in flight.
    pub entries: u16,
    /// RDMA READs that the controller may have outstanding: `initiator_depth` of the acceptance.
    pub read_depth: u8,
}

impl Granted {
    /// The private data of the acceptance.
    #[must_use]
    pub fn to_private_data(&self) -> CmAccept {
        CmAccept::new(self.entries)
    }
}

impl QueueLimits {
    /// What becomes of a request. `peer_read_depth` is the `initiator_depth` of the connection manager's event: how many RDMA
    /// READs the host can answer at a time. The acceptance carries [`Granted::read_depth`] as its initiator depth, and no
    /// responder resources, since a host never reads from a controller.
    ///
    /// # Errors
    /// [`Refusal`]: reject with its private data.
    pub fn grant(&self, request: &ConnectRequest, peer_read_depth: u8) -> Result<Granted, Refusal> {
        if request.qid > self.max_qid {
            return Err(Refusal::Queue {
                qid: request.qid,
                max: self.max_qid,
            });
        }
        if request.command_entries < u32::from(MIN_ENTRIES) {
            return Err(Refusal::SendSize(request.command_entries));
        }
        if request.response_entries == 0 {
            return Err(Refusal::ReceiveSize(request.response_entries));
        }
        if peer_read_depth == 0 {
            return Err(Refusal::ReadDepth);
        }
        let limit = if request.qid == 0 {
            self.admin_entries
        } else {
            self.io_entries
        };
        let asked = u16::try_from(request.command_entries).unwrap_or(u16::MAX);
        let entries = asked.min(limit);
        if entries < MIN_ENTRIES || self.read_depth == 0 {
            return Err(Refusal::Resources);
        }
        // One entry of a queue stays empty, so that a host with one receive fewer than entries never lacks one. A host with
        // fewer has its responses retried by the network: slow, but its own choice.
        Ok(Granted {
            qid: request.qid,
            entries,
            read_depth: peer_read_depth.min(self.read_depth),
        })
    }
}

/// Why a controller rejects a connection request, for its log and for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The private data is too short.
    #[error(
        "the connection request carries {found} bytes of private data, {} are required",
        size_of::<CmRequest>()
    )]
    Length {
        /// Bytes that came.
        found: usize,
    },
    /// The private data has another format.
    #[error("the connection request has record format {0}, only 0 is supported")]
    Format(u16),
    /// There is no such queue.
    #[error("the connection request is for queue {qid}, the highest is {max}")]
    Queue {
        /// QID.
        qid: u16,
        /// The highest.
        max: u16,
    },
    /// The host's send queue is too small.
    #[error("the connection request is for a queue of {0} entries, at least 2 are required")]
    SendSize(u32),
    /// The host's receive queue is too small.
    #[error("the host can take {0} responses at a time, at least 1 is required")]
    ReceiveSize(u16),
    /// There is no room for another queue.
    #[error("there is no room for another queue: raise the limits of this node, or use fewer queues")]
    Resources,
    /// The host answers no RDMA READs, so no data could be fetched from it.
    #[error(
        "the host answers no rdma reads (initiator depth 0): at least 1 is required to fetch a write's data"
    )]
    ReadDepth,
    /// The controller does not exist or belongs to another host.
    #[error("the connection request is for controller {0:#06x}, which this host does not have")]
    Controller(u16),
}

impl Refusal {
    /// The status for the host.
    #[must_use]
    pub fn status(&self) -> RejectStatus {
        match self {
            Self::Length { .. } => RejectStatus::INVALID_LENGTH,
            Self::Format(_) => RejectStatus::INVALID_RECFMT,
            Self::Queue { .. } => RejectStatus::INVALID_QID,
            Self::SendSize(_) => RejectStatus::INVALID_HSQSIZE,
            Self::ReceiveSize(_) => RejectStatus::INVALID_HRQSIZE,
            Self::Resources => RejectStatus::NO_RESOURCES,
            Self::ReadDepth => RejectStatus::INVALID_IRD,
            Self::Controller(_) => RejectStatus::INVALID_CNTLID,
        }
    }

    /// The private data of the rejection.
    #[must_use]
    pub fn to_private_data(&self) -> CmReject {
        CmReject::new(self.status())
    }
}

/// A queue that a controller accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Entries that both ends have: give Connect no more, and have at most one fewer commands in flight.
    pub entries: u16,
}

/// An acceptance that cannot be worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptanceError {
    /// The private data is too short.
    #[error(
        "the acceptance carries {found} bytes of private data, at least 4 are required: is this an NVMe/RDMA port?"
    )]
    Length {
        /// Bytes that came.
        found: usize,
    },
    /// The private data has another format.
    #[error("the acceptance has record format {0}, only 0 is supported")]
    Format(u16),
    /// The controller takes too few commands.
    #[error("the controller takes {0} commands at a time, at least 2 are required")]
    ReceiveSize(u16),
}

impl Accepted {
    /// Reads the private data of the acceptance of a request for `asked` entries.
    ///
    /// # Errors
    /// [`AcceptanceError`]: disconnect.
    pub fn parse(private_data: &[u8], asked: u16) -> Result<Self, AcceptanceError> {
        // The two fields, whether or not the reserved bytes came with them.
        let Some(&[a, b, c, d]) = private_data.first_chunk::<4>() else {
            return Err(AcceptanceError::Length {
                found: private_data.len(),
            });
        };
        let format = u16::from_le_bytes([a, b]);
        if format != RECFMT {
            return Err(AcceptanceError::Format(format));
        }
        let receive_entries = u16::from_le_bytes([c, d]);
        if receive_entries < MIN_ENTRIES {
            return Err(AcceptanceError::ReceiveSize(receive_entries));
        }
        Ok(Self {
            entries: receive_entries.min(asked),
        })
    }
}

/// Why a controller rejected a connection, as a sentence that says what to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// [`RejectStatus::INVALID_LENGTH`].
    #[error(
        "the controller wants private data of another length: its implementation differs from NVMe/RDMA 1.0"
    )]
    Length,
    /// [`RejectStatus::INVALID_RECFMT`].
    #[error("the controller does not support record format 0: its implementation differs from NVMe/RDMA 1.0")]
    Format,
    /// [`RejectStatus::INVALID_QID`].
    #[error("the controller has no such queue: ask for as many i/o queues as Set Features granted")]
    Queue,
    /// [`RejectStatus::INVALID_HSQSIZE`].
    #[error(
        "the controller does not take so many commands: use a smaller queue size (an admin queue has 32)"
    )]
    SendSize,
    /// [`RejectStatus::INVALID_HRQSIZE`].
    #[error(
        "the controller does not agree with the number of responses that fit here: use another queue size"
    )]
    ReceiveSize,
    /// [`RejectStatus::NO_RESOURCES`].
    #[error("the controller is out of resources: use fewer or smaller queues, or try again later")]
    Resources,
    /// [`RejectStatus::INVALID_IRD`].
    #[error(
        "the controller does not agree with the rdma reads that this device answers: offer at least one responder resource"
    )]
    InboundReads,
    /// [`RejectStatus::INVALID_ORD`].
    #[error(
        "the controller does not agree with the rdma reads that this host issues: ask for an initiator depth of 0"
    )]
    OutboundReads,
    /// [`RejectStatus::INVALID_CNTLID`].
    #[error("the controller does not know the association of this i/o queue: connect the admin queue again")]
    Controller,
    /// A status that is not defined here.
    #[error("the controller rejected the connection with status {0}, which is not known here: see its log")]
    Unknown(RejectStatus),
    /// There is no reason in the rejection.
    #[error(
        "the connection was rejected without a reason: is an NVMe/RDMA controller listening at this address and port?"
    )]
    Unexplained,
}

impl Rejected {
    /// Reads the private data of a rejection, whatever it is.
    #[must_use]
    pub fn parse(private_data: &[u8]) -> Self {
        let Ok((reject, _)) = CmReject::ref_from_prefix(private_data) else {
            return Self::Unexplained;
        };
        if reject.recfmt.get() != RECFMT {
            return Self::Unexplained;
        }
        match reject.status() {
            // What is left of private data that nobody wrote.
            RejectStatus(0) => Self::Unexplained,
            RejectStatus::INVALID_LENGTH => Self::Length,
            RejectStatus::INVALID_RECFMT => Self::Format,
            RejectStatus::INVALID_QID => Self::Queue,
            RejectStatus::INVALID_HSQSIZE => Self::SendSize,
            RejectStatus::INVALID_HRQSIZE => Self::ReceiveSize,
            RejectStatus::NO_RESOURCES => Self::Resources,
            RejectStatus::INVALID_IRD => Self::InboundReads,
            RejectStatus::INVALID_ORD => Self::OutboundReads,
            RejectStatus::INVALID_CNTLID => Self::Controller,
            other => Self::Unknown(other),
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Resources | Self::Unexplained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use zerocopy::IntoBytes;

    const LIMITS: QueueLimits = QueueLimits {
        admin_entries: 32,
        io_entries: 128,
        max_qid: 16,
        read_depth: 16,
    };

    #[test]
    fn a_request_goes_there_and_back() {
        let request = ConnectRequest::new(3, 128, 7);
        let mut private = request.to_private_data().as_bytes().to_vec();
        assert_eq!(private[..10], [0, 0, 3, 0, 128, 0, 127, 0, 7, 0]);
        assert_eq!(ConnectRequest::parse(&private), Ok(request));
        // Connection managers pad: 56 bytes over InfiniBand and RoCE.
        private.resize(56, 0xaa);
        assert_eq!(ConnectRequest::parse(&private), Ok(request));
        let largest = ConnectRequest {
            command_entries: 65536,
            ..request
        };
        let private = largest.to_private_data();
        assert_eq!(ConnectRequest::parse(private.as_bytes()), Ok(largest));
    }

    #[test]
    fn sizes_and_read_depth_are_the_smaller_of_both() {
        let grant = |entries, reads| {
            LIMITS
                .grant(&ConnectRequest::new(1, entries, 0), reads)
                .map(|granted| (granted.entries, granted.read_depth))
        };
        assert_eq!(grant(64, 4), Ok((64, 4)));
        assert_eq!(grant(1024, 255), Ok((128, 16)));
        let admin = LIMITS.grant(&ConnectRequest::new(0, 64, 0), 1).unwrap();
        assert_eq!(admin.entries, 32);
        let accepted = Accepted::parse(admin.to_private_data().as_bytes(), 64).unwrap();
        assert_eq!(accepted.entries, 32);
        assert_eq!(
            Accepted::parse(admin.to_private_data().as_bytes(), 16)
                .unwrap()
                .entries,
            16
        );
    }

    #[test]
    fn every_refusal_reaches_the_host_as_the_same_reason() {
        let full = QueueLimits {
            io_entries: 0,
            ..LIMITS
        };
        let request = ConnectRequest::new(1, 8, 0);
        let mut other_format = request.to_private_data();
        other_format.recfmt = 1.into();
        let cases = [
            (ConnectRequest::parse(&[0; 31]).unwrap_err(), Rejected::Length),
            (
                ConnectRequest::parse(other_format.as_bytes()).unwrap_err(),
                Rejected::Format,
            ),
            (
                LIMITS
                    .grant(&ConnectRequest { qid: 17, ..request }, 1)
                    .unwrap_err(),
                Rejected::Queue,
            ),
            (
                LIMITS
                    .grant(
                        &ConnectRequest {
                            command_entries: 1,
                            ..request
                        },
                        1,
                    )
                    .unwrap_err(),
                Rejected::SendSize,
            ),
            (
                LIMITS
                    .grant(
                        &ConnectRequest {
                            response_entries: 0,
                            ..request
                        },
                        1,
                    )
                    .unwrap_err(),
                Rejected::ReceiveSize,
            ),
            (full.grant(&request, 1).unwrap_err(), Rejected::Resources),
            (LIMITS.grant(&request, 0).unwrap_err(), Rejected::InboundReads),
            (Refusal::Controller(5), Rejected::Controller),
        ];
        let mut sentences = BTreeSet::new();
        for (refusal, rejected) in cases {
            let private = refusal.to_private_data();
            assert_eq!(Rejected::parse(private.as_bytes()), rejected, "{refusal}");
            assert!(sentences.insert(rejected.to_string()));
        }
        assert_eq!(
            Rejected::parse(CmReject::new(RejectStatus::INVALID_ORD).as_bytes()),
            Rejected::OutboundReads
        );
        assert_eq!(
            Rejected::parse(CmReject::new(RejectStatus(77)).as_bytes()),
            Rejected::Unknown(RejectStatus(77))
        );
        for nothing in [&[][..], &[0; 3], &[0; 148], &[1, 0, 1, 0]] {
            assert_eq!(Rejected::parse(nothing), Rejected::Unexplained);
        }
    }

    #[test]
    fn an_acceptance_that_makes_no_sense_is_refused() {
        assert_eq!(
            Accepted::parse(&[0; 3], 8),
            Err(AcceptanceError::Length { found: 3 })
        );
        assert_eq!(Accepted::parse(&[1, 0, 8, 0], 8), Err(AcceptanceError::Format(1)));
        assert_eq!(
            Accepted::parse(CmAccept::new(1).as_bytes(), 8),
            Err(AcceptanceError::ReceiveSize(1))
        );
    }

    proptest! {
        #[test]
        fn private_data_of_a_stranger_is_bounded(private in proptest::collection::vec(any::<u8>(), 0..200), depth: u8) {
            if let Ok(request) = ConnectRequest::parse(&private)
                && let Ok(granted) = LIMITS.grant(&request, depth)
            {
                prop_assert!((2..=128).contains(&granted.entries));
                prop_assert!(u32::from(granted.entries) <= request.command_entries);
                prop_assert!((1..=16).contains(&granted.read_depth) && granted.read_depth <= depth);
            }
            let _ = Rejected::parse(&private).to_string();
            if let Ok(accepted) = Accepted::parse(&private, 64) {
                prop_assert!((2..=64).contains(&accepted.entries));
            }
        }
    }
}
