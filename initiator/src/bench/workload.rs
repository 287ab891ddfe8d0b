//! [`Workload`]: what a benchmark does, and whether that is possible.

use std::time::Duration;

/// The most that one benchmark keeps in buffers, in bytes.
pub const MAX_BUFFERS: u64 = 16 << 30;
/// The most I/O-sized units that one verifying benchmark keeps track of (four bytes each).
pub const MAX_VERIFIED_UNITS: u64 = 1 << 28;

/// The order in which blocks are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One after the other, from the start again at the end of the range.
    Sequential,
    /// Uniformly at random, with repetitions.
    Random,
}

/// When a benchmark ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// After this time, warm-up not counted.
    Time(Duration),
    /// After exactly this many I/Os of all threads together, warm-up not counted.
    Ios(u64),
}

/// The blocks of a namespace that a benchmark uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The namespace.
    pub nsid: u32,
    /// Size of a logical block in bytes.
    pub block_size: u32,
    /// First logical block.
    pub first: u64,
    /// Number of logical blocks.
    pub blocks: u64,
}

/// What a benchmark does. [`Workload::new`] gives random 4 KiB reads at depth 32 by one thread for ten seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The blocks to use.
    pub range: Range,
    /// Logical blocks of one I/O.
    pub blocks_per_io: u32,
    /// Commands in flight on each queue.
    pub depth: u16,
    /// Threads, each with a queue of its own and a share of the range of its own.
    pub jobs: usize,
    /// How many of a hundred I/Os are reads.
    pub read_percent: u8,
    /// The order of the blocks.
    pub order: Order,
    /// When to stop.
    pub limit: Limit,
    /// How long to run before anything is counted.
    pub warmup: Duration,
    /// I/Os per second of all threads together that are not exceeded.
    pub rate: Option<u64>,
    /// Stamp every block that is written and check every block that is read. Blocks that this run has not written
    /// are not checked when read, unless there are no writes at all: then all of them must carry a stamp with
    /// the same seed from an earlier run. After writes, everything that was written is read back.
    pub verify: bool,
    /// Write with Force Unit Access.
    pub fua: bool,
    /// Start of the random sequence, and part of the stamps.
    pub seed: u64,
    /// Cores to pin the threads to, in turn; empty to leave them to the scheduler.
    pub pin: Vec<usize>,
    /// How often a sample is taken; `None` for never, so that nothing but the I/O itself happens.
    pub interval: Option<Duration>,
    /// How long a thread polls without finding a completion before it sleeps.
    pub spin: Duration,
    /// How many commands are handed over at least at a time (while that many can be).
    pub batch: u16,
}

/// A workload that cannot be run. Each message says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// The block size of the namespace is not usable.
    #[error("a block size of {0} bytes cannot be used: it must be from 64 to 65536 bytes")]
    BlockSize(u32),
    /// I/Os without blocks, or with more than a command can name.
    #[error("an I/O of {0} blocks is not possible: choose a block size from 1 to 65536 logical blocks")]
    IoSize(u32),
    /// The range is smaller than what the threads need.
    #[error(
        "{blocks} blocks of {block_size} bytes are too few for {jobs} threads of {io} bytes per I/O: use a larger range, \
         fewer threads or a smaller block size"
    )]
    TooSmall {
        /// Blocks in the range.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
        /// Threads.
        jobs: usize,
        /// Bytes of an I/O.
        io: u64,
    },
    /// The range ends beyond what an address can name.
    #[error("the range ends beyond the last block that can be addressed: use a smaller offset or size")]
    PastEnd,
    /// No commands in flight, or more than a queue can have.
    #[error("a depth of {0} is not possible: use 1 to 4096")]
    Depth(u16),
    /// No threads, or more than sensible.
    #[error("{0} threads are not possible: use 1 to 1024")]
    Jobs(usize),
    /// More than a hundred of a hundred.
    #[error("{0} % reads are not possible: use 0 to 100")]
    Mix(u8),
    /// Nothing to do.
    #[error("the benchmark would end before it starts: use a time or a number of I/Os above zero")]
    Nothing,
    /// A limit of no I/Os per second.
    #[error("a rate of 0 I/Os per second never starts: use 1 or more, or leave the rate out")]
    Rate,
    /// The batch is larger than the queue.
    #[error("a batch of {batch} does not fit a depth of {depth}: use 1 to {depth}")]
    Batch {
        /// Commands in a batch.
        batch: u16,
        /// Commands in flight.
        depth: u16,
    },
    /// The buffers would need too much memory.
    #[error(
        "{0} bytes of buffers are more than {MAX_BUFFERS}: use a smaller depth, block size or fewer threads"
    )]
    Buffers(u64),
    /// The range has too many I/O-sized units to keep track of.
    #[error(
        "verifying {0} I/O-sized units is more than {MAX_VERIFIED_UNITS}: use a smaller range or larger I/Os"
    )]
    VerifiedUnits(u64),
}

impl Workload {
    /// Random 4 KiB reads (one block if blocks are larger) at depth 32 by one thread for ten seconds.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self {
            range,
            blocks_per_io: (4096 / range.block_size.max(1)).max(1),
            depth: 32,
            jobs: 1,
            read_percent: 100,
            order: Order::Random,
            limit: Limit::Time(Duration::from_secs(10)),
            warmup: Duration::ZERO,
            rate: None,
            verify: false,
            fua: false,
            seed: 1,
            pin: Vec::new(),
            interval: Some(Duration::from_millis(100)),
            spin: Duration::from_micros(100),
            batch: 1,
        }
    }

    /// Bytes of one I/O.
    #[must_use]
    pub fn io_bytes(&self) -> u64 {
        u64::from(self.blocks_per_io) * u64::from(self.range.block_size)
    }

    /// Whether there are writes.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.read_percent < 100
    }

    /// Checks that the workload can be run.
    ///
    /// # Errors
    /// [`WorkloadError`], the first thing that is wrong.
    pub fn validate(&self) -> Result<(), WorkloadError> {
        let Range {
            block_size,
            first,
            blocks,
            ..
        } = self.range;
        if !(64..=65536).contains(&block_size) {
            return Err(WorkloadError::BlockSize(block_size));
        }
        if !(1..=65536).contains(&self.blocks_per_io) {
            return Err(WorkloadError::IoSize(self.blocks_per_io));
        }
        if !(1..=4096).contains(&self.depth) {
            return Err(WorkloadError::Depth(self.depth));
        }
        if !(1..=1024).contains(&self.jobs) {
            return Err(WorkloadError::Jobs(self.jobs));
        }
        if self.read_percent > 100 {
            return Err(WorkloadError::Mix(self.read_percent));
        }
        if !(1..=self.depth).contains(&self.batch) {
            return Err(WorkloadError::Batch {
                batch: self.batch,
                depth: self.depth,
            });
        }
        if matches!(self.limit, Limit::Time(Duration::ZERO) | Limit::Ios(0)) {
            return Err(WorkloadError::Nothing);
        }
        if self.rate == Some(0) {
            return Err(WorkloadError::Rate);
        }
        if first.checked_add(blocks).is_none() {
            return Err(WorkloadError::PastEnd);
        }
        let units = blocks / u64::from(self.blocks_per_io);
        if units / (self.jobs as u64) == 0 {
            return Err(WorkloadError::TooSmall {
                blocks,
                block_size,
                jobs: self.jobs,
                io: self.io_bytes(),
            });
        }
        if self.verify && units > MAX_VERIFIED_UNITS {
            return Err(WorkloadError::VerifiedUnits(units));
        }
        let directions = 1 + u64::from(self.writes() && self.read_percent > 0);
        let buffers = self.io_bytes() * u64::from(self.depth) * self.jobs as u64 * directions;
        if buffers > MAX_BUFFERS {
            return Err(WorkloadError::Buffers(buffers));
        }
        Ok(())
    }

    /// What thread number `job` does: its first I/O-sized unit's block, its number of units and its share of the I/Os.
    pub(super) fn share(&self, job: usize) -> Share {
        let (job, jobs) = (job as u64, self.jobs as u64);
        let per_io = u64::from(self.blocks_per_io);
        let units = self.range.blocks / per_io;
        let (each, rest) = (units / jobs, units % jobs);
        let before = each * job + rest.min(job);
        Share {
            first: self.range.first + before * per_io,
            units: each + u64::from(job < rest),
            ios: match self.limit {
                Limit::Time(_) => None,
                Limit::Ios(ios) => Some(ios / jobs + u64::from(job < ios % jobs)),
            },
        }
    }
}

/// One thread's part of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// First logical block.
    pub(super) first: u64,
    /// Number of I/O-sized units.
    pub(super) units: u64,
    /// I/Os to do, if that is the limit.
    pub(super) ios: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload::new(Range {
            nsid: 1,
            block_size: 512,
            first: 8,
            blocks: 100,
        })
    }

    #[test]
    fn shares_cover_the_range_and_the_ios_once() {
        let mut workload = workload();
        workload.jobs = 5;
        workload.limit = Limit::Ios(13);
        workload.validate().unwrap();
        let shares: Vec<Share> = (0..5).map(|job| workload.share(job)).collect();
        let mut next = 8;
        for share in &shares {
            assert_eq!(share.first, next);
            next += share.units * 8;
        }
        assert_eq!(shares.iter().map(|share| share.units).sum::<u64>(), 12);
        assert_eq!(shares.iter().filter_map(|share| share.ios).sum::<u64>(), 13);
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_a_reason() {
        type Change = fn(&mut Workload);
        let wrong: [(Change, &str); 12] = [
            (|w| w.range.block_size = 0, "block size of 0"),
            (|w| w.blocks_per_io = 0, "I/O of 0 blocks"),
            (|w| w.blocks_per_io = 65537, "65537"),
            (|w| w.depth = 0, "depth of 0"),
            (|w| w.jobs = 0, "0 threads"),
            (|w| w.jobs = 13, "too few"),
            (|w| w.read_percent = 101, "101 %"),
            (|w| w.limit = Limit::Ios(0), "before it starts"),
            (|w| w.rate = Some(0), "rate of 0"),
            (|w| w.batch = 33, "batch of 33"),
            (|w| w.range.first = u64::MAX, "beyond the last block"),
            (
                |w| {
                    w.range.blocks = 1 << 40;
                    w.verify = true;
                },
                "verifying",
            ),
        ];
        for (change, text) in wrong {
            let mut workload = workload();
            change(&mut workload);
            let error = workload.validate().unwrap_err().to_string();
            assert!(error.contains(text), "{error:?} should contain {text:?}");
        }
    }
}
