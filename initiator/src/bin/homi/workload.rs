//! What a benchmark does: the options that `homi bench` and `homi compare` share, and the [`Workload`] that they become on a device.

use std::time::Duration;

use clap::{Args, ValueEnum};
use homi_initiator::bench::{Limit, Order, Range, Workload};
use homi_initiator::{Device, Uri};

use crate::arguments::{self, Cores};
use crate::failure::Failure;
use crate::mounted;

/// How long a benchmark runs unless something else is said.
const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// The order of the blocks, and whether they are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Access {
    /// One after the other
    Read,
    /// One after the other
    Write,
    /// At random
    Randread,
    /// At random
    Randwrite,
    /// Reads and writes, one after the other
    #[value(alias = "readwrite")]
    Rw,
    /// Reads and writes at random
    Randrw,
}

/// Options of what is done.
#[derive(Debug, Args)]
pub(crate) struct WorkloadOptions {
    /// Reads, writes or both, in which order; writing destroys what is there [default: randread, or randrw with --mix]
    #[arg(long, value_name = "HOW", value_enum, help_heading = "Workload")]
    rw: Option<Access>,
    /// How many of a hundred I/Os are reads, for rw and randrw [default: 50]
    #[arg(long, value_name = "PERCENT", alias = "rwmixread", help_heading = "Workload",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    mix: Option<u8>,
    /// Bytes of an I/O
    #[arg(long, value_name = "SIZE", visible_alias = "bs", value_parser = arguments::some_size,
          default_value = "4k", help_heading = "Workload")]
    block_size: u64,
    /// I/Os in flight on each queue
    #[arg(long, value_name = "N", visible_alias = "iodepth", default_value = "32", help_heading = "Workload",
          value_parser = clap::value_parser!(u16).range(1..=4095))]
    depth: u16,
    /// Queues, each with a thread of its own and a part of the range of its own
    #[arg(long, value_name = "N", visible_alias = "jobs", alias = "numjobs", default_value = "1", help_heading = "Workload",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    queues: u16,
    /// Bytes of the range to use [default: up to the end]
    #[arg(long, value_name = "SIZE", value_parser = arguments::some_size, help_heading = "Workload")]
    size: Option<u64>,
    /// First byte of the range
    #[arg(long, value_name = "SIZE", value_parser = arguments::size, default_value = "0", help_heading = "Workload")]
    offset: u64,
    /// Write with Force Unit Access: an I/O ends when it is durable
    #[arg(long, help_heading = "Workload")]
    fua: bool,
    /// Start of the random sequence
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Workload")]
    seed: u64,
    /// Stamp every block that is written with its address and a CRC, check every stamped block that is read, and read back at
    /// the end what was written; with reads alone, check the stamps of an earlier run with the same seed
    #[arg(long, help_heading = "Workload")]
    verify: bool,

    /// How long to measure
    #[arg(long, value_name = "TIME", visible_alias = "runtime", value_parser = arguments::time, help_heading = "Limits")]
    time: Option<Duration>,
    /// Exactly how many I/Os to do
    #[arg(long, value_name = "N", conflicts_with = "time", help_heading = "Limits",
          value_parser = clap::value_parser!(u64).range(1..))]
    ios: Option<u64>,
    /// How long to run before anything is counted
    #[arg(long, value_name = "TIME", alias = "ramp-time", value_parser = arguments::time, default_value = "0",
          help_heading = "Limits")]
    warmup: Duration,
    /// I/Os per second that all queues together do not exceed
    #[arg(long, value_name = "IOPS", alias = "rate-iops", help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,

    /// Cores to pin the threads to, in turn, as in 0,2 or 0-3
    #[arg(long, value_name = "CORES", value_parser = arguments::cores, help_heading = "Threads")]
    pin: Option<Cores>,
    /// How long a thread polls in vain before it sleeps
    #[arg(long, value_name = "TIME", value_parser = arguments::time, default_value = "100us", help_heading = "Threads")]
    spin: Duration,
    /// Hand over at least so many I/Os at a time, while others are in flight [default: an eighth of the depth]
    #[arg(long, value_name = "N", help_heading = "Threads")]
    batch: Option<u16>,
}

/// How a device is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accesses {
    /// The order of the blocks.
    pub(crate) order: Order,
    /// How many of a hundred are reads.
    pub(crate) read_percent: u8,
}

impl Accesses {
    /// Whether there are writes.
    pub(crate) fn writes(self) -> bool {
        self.read_percent < 100
    }
}

impl WorkloadOptions {
    /// How devices are accessed.
    pub(crate) fn access(&self) -> Result<Accesses, Failure> {
        let access = self.rw.unwrap_or(if self.mix.is_some() {
            Access::Randrw
        } else {
            Access::Randread
        });
        let (order, fixed) = match access {
            Access::Read => (Order::Sequential, Some(100)),
            Access::Write => (Order::Sequential, Some(0)),
            Access::Randread => (Order::Random, Some(100)),
            Access::Randwrite => (Order::Random, Some(0)),
            Access::Rw => (Order::Sequential, None),
            Access::Randrw => (Order::Random, None),
        };
        let read_percent = match (fixed, self.mix) {
            (Some(_), Some(_)) => {
                return Err(Failure::Usage(
                    "--mix is for both reads and writes: use --rw rw or --rw randrw, or leave --mix out"
                        .to_owned(),
                ));
            }
            (Some(percent), None) => percent,
            (None, mix) => mix.unwrap_or(50),
        };
        Ok(Accesses { order, read_percent })
    }

    /// Refuses to write to what the system itself uses.
    pub(crate) fn refuse_if_in_use(uri: &Uri, accesses: Accesses) -> Result<(), Failure> {
        if accesses.writes()
            && let Some(path) = arguments::uri_device(uri)
        {
            mounted::refuse_if_in_use(&path)?;
        }
        Ok(())
    }

    /// Bytes of the range, if they were chosen.
    pub(crate) fn size(&self) -> Option<u64> {
        self.size
    }

    /// First byte of the range.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// I/Os in flight on each queue.
    pub(crate) fn depth(&self) -> u16 {
        self.depth
    }

    /// The workload on a device. Without --size it uses `size` bytes, or everything. No samples are taken.
    pub(crate) fn workload(
        &self,
        uri: &Uri,
        device: &Device,
        accesses: Accesses,
        size: Option<u64>,
    ) -> Result<Workload, Failure> {
        let Accesses { order, read_percent } = accesses;
        let block = u64::from(device.block_size().max(1));
        let whole_blocks = |name: &str, value: u64| {
            if value.is_multiple_of(block) {
                return Ok(value / block);
            }
            Err(Failure::Usage(format!(
                "--{name} {value} is not a multiple of the {block}-byte blocks of {}: use {}",
                uri,
                value.div_ceil(block) * block
            )))
        };
        let blocks_per_io = u32::try_from(whole_blocks("block-size", self.block_size)?).unwrap_or(u32::MAX);
        if self.block_size > u64::from(device.max_transfer()) {
            return Err(Failure::Usage(format!(
                "--block-size {} is more than {} transfers at once: use {} at most",
                self.block_size,
                uri,
                device.max_transfer()
            )));
        }
        if read_percent < 100 && device.read_only() {
            return Err(Failure::Failed(format!(
                "{} is read-only: use --rw read or randread",
                uri
            )));
        }
        let first = whole_blocks("offset", self.offset)?;
        let rest = device
            .blocks()
            .checked_sub(first)
            .filter(|rest| *rest > 0)
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "--offset {} is behind the end of {}, which has {} bytes: use a smaller one",
                    self.offset,
                    uri,
                    device.bytes()
                ))
            })?;
        let blocks = match self.size.or(size) {
            None => rest,
            Some(size) => {
                let blocks = whole_blocks("size", size)?;
                if blocks > rest {
                    return Err(Failure::Usage(format!(
                        "--size {size} from --offset {} on ends behind {}, which has {} bytes: use {} at most",
                        self.offset,
                        uri,
                        device.bytes(),
                        rest * block
                    )));
                }
                blocks
            }
        };
        let limit = match (self.ios, self.time, self.size) {
            (Some(ios), _, _) => Limit::Ios(ios),
            (None, Some(time), _) => Limit::Time(time),
            (None, None, Some(size)) => Limit::Ios((size / self.block_size).max(1)),
            (None, None, None) => Limit::Time(DEFAULT_TIME),
        };
        let mut workload = Workload::new(Range {
            nsid: device.nsid(),
            block_size: device.block_size(),
            first,
            blocks,
        });
        workload.blocks_per_io = blocks_per_io;
        workload.depth = self.depth;
        workload.jobs = usize::from(self.queues);
        workload.read_percent = read_percent;
        workload.order = order;
        workload.limit = limit;
        workload.warmup = self.warmup;
        workload.rate = self.rate;
        workload.verify = self.verify;
        workload.fua = self.fua;
        workload.seed = self.seed;
        workload.pin = self.pin.clone().map_or(Vec::new(), |cores| cores.0);
        workload.interval = None;
        workload.spin = self.spin;
        // Small batches cost a system call and a wakeup each at both ends; this many keeps the other end busy meanwhile.
        workload.batch = self.batch.unwrap_or_else(|| (workload.depth / 8).max(1));
        workload.validate()?;
        Ok(workload)
    }
}
