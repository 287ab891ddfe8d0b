//! [`Refusal`]: a command that failed, and the byte of its entry that is to blame.

use homi_spec::Status;

/// Why an admin or fabrics command fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Status of the completion.
    pub(super) status: Status,
    /// Parameter error location of the error log: the byte, or FFFFh for none in particular. Base 2.0 §5.16.1.2.
    pub(super) location: u16,
}

impl Refusal {
    /// A failure that the same command would meet again, because of this byte of its entry.
    pub(super) fn at(status: Status, byte: u8) -> Self {
        Self {
            status: status.with_dnr(),
            location: byte.into(),
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self {
            status,
            location: 0xffff,
        }
    }
}
