//! [`Link`]: the transport's end of one connection, of either kind.
//!
//! A match on two variants instead of a trait object: what a session calls for each command is inlined.

use homi_fabric::rdma;
use homi_fabric::tcp::{Cancel, CommandKey, ControllerConnection};
use homi_queue::{Data, GatherList, Segment};
use homi_spec::command::Cqe;
use homi_spec::status::Status;

/// Where the buffers of a connection's data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Any memory will do.
    Ordinary,
    /// Memory that RDMA devices register.
    Registered,
    /// A drive's memory buffer, by the shard's number for it.
    Cmb(u16),
}

/// A connection's state machine.
#[expect(
    clippy::large_enum_variant,
    reason = "sessions are boxed, and the larger one is the usual one"
)]
pub(crate) enum Link {
    /// NVMe/TCP.
    Tcp(ControllerConnection),
    /// NVMe/RDMA.
    Rdma(Box<rdma::ControllerConnection>),
}

/// Data that cannot be asked for, with the memory where it is still to be had.
pub(super) struct Refused {
    pub(super) status: Status,
    pub(super) text: String,
    pub(super) data: Data,
}

impl Link {
    pub(crate) fn rdma(&mut self) -> Option<&mut rdma::ControllerConnection> {
        match self {
            Self::Tcp(_) => None,
            Self::Rdma(link) => Some(link),
        }
    }

    #[inline]
    pub(super) fn memory(&self) -> Memory {
        match self {
            Self::Tcp(_) => Memory::Ordinary,
            Self::Rdma(_) => Memory::Registered,
        }
    }

    pub(super) fn set_queue(&mut self, depth: u16, io: bool) {
        match self {
            Self::Tcp(link) => link.set_queue(depth, io),
            Self::Rdma(link) => link.set_queue(depth),
        }
    }

    /// Whether a data digest covers what is sent.
    #[inline]
    pub(super) fn data_digest(&self) -> bool {
        match self {
            Self::Tcp(link) => link.data_digest(),
            Self::Rdma(_) => false,
        }
    }

    pub(super) fn in_flight(&self) -> u16 {
        match self {
            Self::Tcp(link) => link.in_flight(),
            Self::Rdma(link) => link.in_flight(),
        }
    }

    /// Bytes to be sent. Over RDMA nothing is sent as bytes.
    #[inline]
    pub(super) fn output_len(&mut self) -> usize {
        match self {
            Self::Tcp(link) => link.output().remaining(),
            Self::Rdma(_) => 0,
        }
    }

    pub(super) fn take_output(&mut self, spare: GatherList) -> GatherList {
        match self {
            Self::Tcp(link) => link.take_output(spare),
            Self::Rdma(_) => spare,
        }
    }

    pub(super) fn landing(&self, minimum: usize) -> Option<Segment> {
        match self {
            Self::Tcp(link) => link.landing(minimum),
            Self::Rdma(_) => None,
        }
    }

    /// The data in a command's capsule, where it is there with the command.
    #[inline]
    pub(super) fn data_with_command(&mut self, key: CommandKey) -> Option<Data> {
        match self {
            Self::Tcp(_) => None,
            Self::Rdma(link) => Some(link.take_data(key)).filter(|data| !data.is_empty()),
        }
    }

    #[inline]
    pub(super) fn accept(&mut self, key: CommandKey, data: Data) -> Result<(), Refused> {
        match self {
            Self::Tcp(link) => link.accept(key, data).map_err(|error| Refused {
                status: error.status(),
                text: error.to_string(),
                data: Data::None,
            }),
            Self::Rdma(link) => link.accept(key, data).map_err(|(error, data)| Refused {
                status: error.status(),
                text: error.to_string(),
                data,
            }),
        }
    }

    #[inline]
    pub(super) fn take_data(&mut self, key: CommandKey) -> Data {
        match self {
            Self::Tcp(link) => link.take_data(key),
            Self::Rdma(link) => link.take_data(key),
        }
    }

    /// Gives up a command's data. Says whether it may be responded to only when a failure of its data is reported.
    pub(super) fn cancel(&mut self, key: CommandKey) -> bool {
        match self {
            Self::Tcp(link) => link.cancel(key) == Ok(Cancel::Later),
            Self::Rdma(link) => link.cancel(key) == Ok(rdma::Cancel::Later),
        }
    }

    #[inline]
    pub(super) fn respond(&mut self, key: CommandKey, cqe: Cqe) -> Result<(), String> {
        match self {
            Self::Tcp(link) => link.respond(key, cqe).map_err(|error| error.to_string()),
            Self::Rdma(link) => link.respond(key, cqe).map_err(|error| error.to_string()),
        }
    }

    /// On failure over RDMA the memory comes back, and the command is still to be answered.
    #[inline]
    pub(super) fn respond_with_data(
        &mut self,
        key: CommandKey,
        data: Data,
        len: usize,
        cqe: Cqe,
        success_flag: bool,
    ) -> Result<(), (String, Data)> {
        match self {
            Self::Tcp(link) => link
                .respond_with_data(key, data, len, cqe, success_flag)
                .map_err(|error| (error.to_string(), Data::None)),
            Self::Rdma(link) => link
                .respond_with_data(key, data, len, cqe)
                .map_err(|(error, data)| (error.to_string(), data)),
        }
    }
}
