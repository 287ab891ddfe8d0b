//! Benchmarks of any [`Queue`]: what `homi bench` runs, as a library.
//!
//! A [`Workload`] says what to do; [`run()`] opens one queue per thread, does it and returns an [`Outcome`]:
//! how many reads and writes, in which time, with which latencies. The loop of a thread (`worker`) is generic over the queue, so that
//! nothing is dispatched per I/O; it allocates nothing, reads the clock once per batch and hands commands over in
//! batches. The thread that called [`run()`] only starts, samples and stops the others.
//!
//! With [`Workload::verify`] every block carries where and when it was written and a CRC ([`mod@verify`]).
//!
//! Latency is the time from the moment at which a batch was built to the moment at which its completion was seen: the time that the
//! issuer spends on the rest of the batch is part of it. With a rate limit it starts when a command was handed over, not when
//! the rate would have allowed it.
//!
//! Not here: mixed block sizes, traces, and commands other than Read and Write.

mod engine;
mod pattern;
mod stats;
#[cfg(test)]
mod tests;
pub mod verify;
mod worker;
mod workload;

use std::error::Error;
use std::io;
use std::time::Duration;

use homi_queue::{CommandId, LostReason, MemoryError, Queue, Wait};
use homi_spec::Status;
use nix::errno::Errno;

pub use engine::{Hooks, Observer, run};
pub use stats::{Interval, Latency, Outcome, Phase, Sample, Tally};
pub use workload::{Limit, MAX_BUFFERS, MAX_VERIFIED_UNITS, Order, Range, Workload, WorkloadError};

use crate::counters::Counters;
use crate::device::AnyQueue;
use crate::queue::StreamQueue;
use crate::stream::ByteStream;

/// A queue that can be measured.
pub trait BenchQueue: Queue + Wait {
    /// What the queue has done so far, if it counts.
    fn counters(&self) -> Option<Counters> {
        None
    }

    /// How many system calls the queue has made for I/O so far, if it counts.
    fn system_calls(&self) -> Option<u64> {
        self.counters().map(|counters| counters.system_calls())
    }

    /// How long the thread may sleep before it must poll again, if that is limited.
    fn wait_limit(&self) -> Option<Duration> {
        None
    }
}

impl<S: ByteStream> BenchQueue for StreamQueue<S> {
    fn counters(&self) -> Option<Counters> {
        Some(StreamQueue::counters(self))
    }

    fn wait_limit(&self) -> Option<Duration> {
        StreamQueue::wait_limit(self)
    }
}

impl BenchQueue for AnyQueue {
    fn counters(&self) -> Option<Counters> {
        AnyQueue::counters(self)
    }

    fn system_calls(&self) -> Option<u64> {
        Some(AnyQueue::system_calls(self))
    }

    fn wait_limit(&self) -> Option<Duration> {
        AnyQueue::wait_limit(self)
    }
}

/// Why a benchmark did not end as it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The workload cannot be run.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// A queue could not be opened.
    #[error("{0}")]
    Open(Box<dyn Error + Send + Sync>),
    /// There is no memory for the buffers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// There is no memory for keeping track of what was written.
    #[error("no memory to keep track of {0} i/o-sized units: use a smaller range or larger i/os")]
    Track(u64),
    /// A thread cannot run on the core that it should be pinned to.
    #[error("cannot pin a thread to core {core}: {}; choose cores that this process may use", source.desc().to_lowercase())]
    Pin {
        /// The core.
        core: usize,
        /// Why not.
        source: Errno,
    },
    /// The system did not start a thread.
    #[error("cannot start a thread: {0}; use fewer threads")]
    Thread(io::Error),
    /// A command failed.
    #[error("the {} of {blocks} blocks from lba {lba} on failed: {status}", if *write { "write" } else { "read" })]
    Command {
        /// Whether it was a write.
        write: bool,
        /// Its first block.
        lba: u64,
        /// Its number of blocks.
        blocks: u32,
        /// What the executor said.
        status: Status,
    },
    /// A block did not hold what was written to it.
    #[error(transparent)]
    Mismatch(#[from] verify::Mismatch),
    /// The queue completed something that was not submitted, or completed it twice.
    #[error("the queue completed command {0}, which is not in flight")]
    Stray(CommandId),
    /// The queue takes no command although none is in flight.
    #[error("the queue takes no command although none is in flight")]
    Full,
    /// The queue is gone.
    #[error("the queue was lost: {0}")]
    Lost(LostReason),
    /// The thread cannot sleep until there are completions.
    #[error("cannot wait for completions: {}", .0.desc().to_lowercase())]
    Wait(Errno),
    /// A thread panicked: a fault of this program.
    #[error("a benchmark thread panicked: this is a fault of the program, please report it")]
    Panicked,
}
