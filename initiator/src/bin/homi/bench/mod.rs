//! `homi bench`: measures what a queue does, with the options that users of fio know.

mod interrupt;
mod progress;
mod report;
mod summary;
mod svg;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use homi_initiator::bench::{Hooks, Limit, Order, Range, Workload};
use homi_initiator::{Device, QueueOptions, Uri};

use crate::allocations;
use crate::arguments::{self, Cores};
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::{mounted, output};
use interrupt::Interrupt;
use progress::Progress;
use summary::Summary;

/// How long a benchmark runs unless something else is said.
const DEFAULT_TIME: Duration = Duration::from_secs(10);
/// The most points over time that are kept.
const MOST_SAMPLES: u32 = 600;

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

/// Measure I/Os per second, throughput and latency
///
/// Without --time, --ios and --size it runs for ten seconds over the whole namespace. With --size alone it transfers that many bytes, once;
/// with --size and --time it stays within that range for that time.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Namespace, file or memory
    #[arg(value_parser = arguments::uri)]
    uri: Uri,

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

    /// Write a report with plots to this file: one HTML page that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    report: Option<PathBuf>,
    /// How often to take a sample; 0 for never, so that nothing but I/O happens [default: 100ms, longer in long runs]
    #[arg(long, value_name = "TIME", value_parser = arguments::time, help_heading = "Output")]
    interval: Option<Duration>,
    /// Print no progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let uri = connection::blocks(&self.uri)?;
        if let Some(path) = &self.report {
            // Now rather than after an hour of measuring.
            fs::write(path, "").map_err(|error| Failure::file("write the report to", path, &error))?;
        }
        let (order, read_percent) = self.access()?;
        if read_percent < 100
            && let Some(path) = arguments::uri_path(uri)
        {
            mounted::refuse_if_in_use(path)?;
        }
        let device = self.connection.initiator()?.open(uri)?;
        let workload = self.workload(&device, order, read_percent)?;
        let mut interrupt = Interrupt::new(workload.interval.is_some());
        let mut progress = Progress::new(!self.quiet && io::stderr().is_terminal(), &workload);
        let outcome = homi_initiator::bench::run(
            &workload,
            |_| device.queue(QueueOptions::depth(self.depth)),
            Hooks {
                allocations: Some(allocations::count),
                observe: Some(&mut |interval| {
                    progress.observe(interval);
                    interrupt.answer()
                }),
            },
        );
        progress.clear();
        let outcome = outcome.inspect_err(|_| self.discard_report())?;
        let summary = Summary::new(uri, &device, &outcome, self.report.as_deref());
        if let Some(path) = &self.report {
            fs::write(path, report::page(&summary, &outcome))
                .map_err(|error| Failure::file("write the report to", path, &error))?;
        }
        if self.json {
            output::json(&summary.json())
        } else {
            output::text(&summary.text())
        }
    }

    /// Leaves no empty report behind.
    fn discard_report(&self) {
        if let Some(path) = &self.report
            && is_empty(path)
        {
            // The benchmark's own failure is what has to be told.
            let _ = fs::remove_file(path);
        }
    }

    fn access(&self) -> Result<(Order, u8), Failure> {
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
        match (fixed, self.mix) {
            (Some(_), Some(_)) => Err(Failure::Usage(
                "--mix is for both reads and writes: use --rw rw or --rw randrw, or leave --mix out"
                    .to_owned(),
            )),
            (Some(percent), None) => Ok((order, percent)),
            (None, mix) => Ok((order, mix.unwrap_or(50))),
        }
    }

    fn workload(&self, device: &Device, order: Order, read_percent: u8) -> Result<Workload, Failure> {
        let block = u64::from(device.block_size().max(1));
        let whole_blocks = |name: &str, value: u64| {
            if value.is_multiple_of(block) {
                return Ok(value / block);
            }
            Err(Failure::Usage(format!(
                "--{name} {value} is not a multiple of the {block}-byte blocks of {}: use {}",
                self.uri,
                value.div_ceil(block) * block
            )))
        };
        let blocks_per_io = u32::try_from(whole_blocks("block-size", self.block_size)?).unwrap_or(u32::MAX);
        if self.block_size > u64::from(device.max_transfer()) {
            return Err(Failure::Usage(format!(
                "--block-size {} is more than {} transfers at once: use {} at most",
                self.block_size,
                self.uri,
                device.max_transfer()
            )));
        }
        if read_percent < 100 && device.read_only() {
            return Err(Failure::Failed(format!(
                "{} is read-only: use --rw read or randread",
                self.uri
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
                    self.uri,
                    device.bytes()
                ))
            })?;
        let blocks = match self.size {
            None => rest,
            Some(size) => {
                let blocks = whole_blocks("size", size)?;
                if blocks > rest {
                    return Err(Failure::Usage(format!(
                        "--size {size} from --offset {} on ends behind {}, which has {} bytes: use {} at most",
                        self.offset,
                        self.uri,
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
        let usual = match limit {
            Limit::Time(time) => (time / MOST_SAMPLES).max(Duration::from_millis(100)),
            Limit::Ios(_) => Duration::from_millis(100),
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
        workload.interval = match self.interval {
            None => Some(usual),
            Some(Duration::ZERO) => None,
            Some(interval) => Some(interval.max(Duration::from_millis(10))),
        };
        workload.spin = self.spin;
        // Small batches cost a system call and a wakeup each at both ends; this many keeps the other end busy meanwhile.
        workload.batch = self.batch.unwrap_or_else(|| (workload.depth / 8).max(1));
        workload.validate()?;
        Ok(workload)
    }
}

fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}
