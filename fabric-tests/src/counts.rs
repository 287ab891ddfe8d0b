//! What an I/O costs at both ends: heap allocations, copies, system calls, instructions, and I/Os per second as a fraction of what a
//! loopback connection carries without any protocol ([`raw`](crate::raw)).
//!
//! The program `counts` (`scripts/counts`) measures all of it and prints one table; a test holds the first to zero.
//!
//! - [`allocations`] — an allocator that counts by thread.
//! - [`steady`] — both ends in this process, in steady state: their own counters, before and after many I/Os.
//! - [`instructions`] — each end under callgrind, with few and with many I/Os: the slope is what one costs.
//! - [`fraction`] — a target process, an initiator and raw pairs in turn.
//! - [`table`] — the numbers as text and as JSON.
//!
//! Nothing here is an assertion about time, and nothing holds off other load: run it on a quiet machine, or believe the ratios alone.

pub mod allocations;
pub mod fraction;
pub mod instructions;
pub mod steady;
pub mod table;

use std::error::Error;
use std::fmt;

/// Bytes of a small and of a large I/O.
pub const SMALL: usize = 4 << 10;
/// Bytes of a large I/O.
pub const LARGE: usize = 128 << 10;

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The end that executes commands.
    Target,
    /// The end that submits them.
    Initiator,
}

impl End {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Target, Self::Initiator];

    /// The name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Initiator => "initiator",
        }
    }
}

/// What is done: reads or writes of one size at one depth, random over the whole namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Writes, or else reads.
    pub write: bool,
    /// Bytes of an I/O.
    pub io_bytes: usize,
    /// I/Os in flight.
    pub depth: u16,
}

impl Case {
    /// Reads.
    #[must_use]
    pub const fn read(io_bytes: usize, depth: u16) -> Self {
        Self {
            write: false,
            io_bytes,
            depth,
        }
    }

    /// Writes.
    #[must_use]
    pub const fn write(io_bytes: usize, depth: u16) -> Self {
        Self {
            write: true,
            io_bytes,
            depth,
        }
    }

    /// The direction and size, as in `read_4096`.
    #[must_use]
    pub fn size(&self) -> String {
        format!("{}_{}", if self.write { "write" } else { "read" }, self.io_bytes)
    }
}

/// As in `read_4096_depth_32`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_depth_{}", self.size(), self.depth)
    }
}

/// Why something could not be measured.
pub type Failure = Box<dyn Error + Send + Sync>;

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of.max(1) as f64
}
