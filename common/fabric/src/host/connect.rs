//! [`ConnectError`]: why a controller could not be connected to or brought up, as one sentence that says what to
//! change, made from the status and the offset that the controller answered with (Base 2.0 §6.3).

use std::time::Duration;

use homi_spec::controller::Version;
use homi_spec::fabrics::ConnectResponse;
use homi_spec::{Cqe, Status, U32};

use super::info::InfoError;

/// Why a connection or a bring-up failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The controller knows no subsystem of that name.
    #[error("there is no subsystem {subsystem} here: check the name against the discovery log")]
    UnknownSubsystem {
        /// The name asked for.
        subsystem: String,
    },
    /// The subsystem does not allow this host.
    #[error("subsystem {subsystem} does not allow this host: add {host} to its allow list")]
    HostNotAllowed {
        /// The subsystem.
        subsystem: String,
        /// The name that this host gave.
        host: String,
    },
    /// No controller is free.
    #[error("the subsystem has no free controller or queue: close connections, or raise its limits")]
    Busy,
    /// The record format of Connect is not understood.
    #[error(
        "the controller does not understand this connect's record format: it needs another version of this host"
    )]
    IncompatibleFormat,
    /// The discovery log that led here is out of date.
    #[error("the discovery information is out of date: discover again, then connect")]
    RestartDiscovery,
    /// A parameter of Connect was refused.
    #[error("the controller refused {parameter} (byte {offset} of the connect {}): {hint}", if *in_data { "data" } else { "command" })]
    InvalidParameter {
        /// Which parameter, in words.
        parameter: &'static str,
        /// Its first byte.
        offset: u16,
        /// Whether the offset counts in the data rather than in the command.
        in_data: bool,
        /// What to change.
        hint: &'static str,
    },
    /// The controller wants authentication first.
    #[error(
        "the controller requires in-band authentication, which this host does not have yet: allow it without"
    )]
    AuthenticationRequired,
    /// The keep-alive timeout was refused.
    #[error("the controller refused the keep-alive timeout of {asked:?}: ask for a longer one")]
    KeepAlive {
        /// What was asked for.
        asked: Duration,
    },
    /// Another status.
    #[error("the controller refused to connect: {0}")]
    Refused(Status),
    /// A command of the bring-up failed.
    #[error("{step} failed: {status}")]
    Step {
        /// Which command.
        step: &'static str,
        /// What the controller said.
        status: Status,
    },
    /// The controller did not become ready in the time that it states itself.
    #[error("the controller was enabled but not ready after {waited:?}: look at the target")]
    NotReady {
        /// How long was waited: CAP.TO.
        waited: Duration,
    },
    /// The controller reports a fatal error.
    #[error("the controller reports a fatal error (CSTS.CFS): restart the target")]
    Fatal,
    /// The controller is of a version that cannot be used.
    #[error("the controller claims nvme {came}, expected {oldest} or later")]
    TooOld {
        /// Version claimed.
        came: Version,
        /// Oldest version understood.
        oldest: Version,
    },
    /// The controller cannot be used for what it was asked for.
    #[error("the controller {0}")]
    Unusable(String),
    /// A page that cannot be meant.
    #[error(transparent)]
    Page(#[from] InfoError),
    /// The association ended meanwhile.
    #[error("the connection ended: {0}")]
    Ended(String),
}

/// The parameters that a controller can complain about: whether in the data, first byte, one past the last, name, hint.
const PARAMETERS: [(bool, u16, u16, &str, &str); 9] = [
    (
        false,
        40,
        42,
        "the record format",
        "it needs another version of this host",
    ),
    (false, 42, 44, "the queue id", "use fewer i/o queues"),
    (false, 44, 46, "the queue size", "use a smaller depth"),
    (false, 46, 47, "the connect attributes", "turn sq flow control on"),
    (false, 48, 52, "the keep-alive timeout", "use another one"),
    (
        true,
        0,
        16,
        "the host id",
        "use the same host id with every connection of this host",
    ),
    (
        true,
        16,
        18,
        "the controller id",
        "the association may be gone: connect again",
    ),
    (
        true,
        256,
        512,
        "the subsystem nqn",
        "check the name against the discovery log",
    ),
    (
        true,
        512,
        768,
        "the host nqn",
        "add it to the subsystem's allow list",
    ),
];

/// What a completion of Connect with this status and dword 0 says.
pub(super) fn response(status: Status, dw0: u32) -> ConnectResponse {
    let mut cqe = Cqe::new(0);
    cqe.dw0 = U32::new(dw0);
    cqe.set_status(status);
    ConnectResponse::from_cqe(&cqe)
}

/// First byte of SUBNQN in the data of Connect.
const SUBNQN_OFFSET: u16 = 256;
/// First byte of HOSTNQN in the data of Connect.
const HOSTNQN_OFFSET: u16 = 512;

impl ConnectError {
    /// What a failed Connect means, for the names and the keep-alive timeout that it carried.
    #[must_use]
    pub fn from_response(
        status: Status,
        dw0: u32,
        subsystem: &str,
        host: &str,
        keep_alive: Duration,
    ) -> Self {
        let unknown = || Self::UnknownSubsystem {
            subsystem: subsystem.to_owned(),
        };
        let not_allowed = || Self::HostNotAllowed {
            subsystem: subsystem.to_owned(),
            host: host.to_owned(),
        };
        match status.code() {
            Status::CONNECT_INVALID_PARAMETERS => {
                let (offset, in_data) = match response(status, dw0) {
                    ConnectResponse::InvalidParameter { offset, in_data } => (offset, in_data),
                    _ => return Self::Refused(status),
                };
                match (in_data, offset) {
                    (true, SUBNQN_OFFSET) => unknown(),
                    (true, HOSTNQN_OFFSET) => not_allowed(),
                    _ => {
                        let (parameter, hint) = PARAMETERS
                            .iter()
                            .find(|(data, first, end, ..)| {
                                *data == in_data && (*first..*end).contains(&offset)
                            })
                            .map_or(("a parameter", "look at the target's log"), |(.., name, hint)| {
                                (*name, *hint)
                            });
                        Self::InvalidParameter {
                            parameter,
                            offset,
                            in_data,
                            hint,
                        }
                    }
                }
            }
            Status::CONNECT_INVALID_HOST => not_allowed(),
            Status::CONNECT_CONTROLLER_BUSY => Self::Busy,
            Status::CONNECT_INCOMPATIBLE_FORMAT => Self::IncompatibleFormat,
            Status::CONNECT_RESTART_DISCOVERY => Self::RestartDiscovery,
            Status::AUTHENTICATION_REQUIRED => Self::AuthenticationRequired,
            Status::KEEP_ALIVE_INVALID => Self::KeepAlive { asked: keep_alive },
            _ => Self::Refused(status),
        }
    }

    /// Whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Busy | Self::NotReady { .. } | Self::Ended(_) => true,
            Self::Refused(status) | Self::Step { status, .. } => !status.dnr(),
            _ => false,
        }
    }
}
