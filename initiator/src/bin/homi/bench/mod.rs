//! `homi bench`: measures what a queue does, with the options that users of fio know.

mod progress;
mod report;
mod summary;
mod svg;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use homi_initiator::bench::{Hooks, Limit, Workload};
use homi_initiator::{Device, QueueOptions, Uri};

use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::workload::{Accesses, WorkloadOptions};
use crate::{allocations, arguments, output};
use progress::Progress;
use summary::Summary;

/// The most points over time that are kept.
const MOST_SAMPLES: u32 = 600;

/// Measure I/Os per second, throughput and latency
///
/// Without --time, --ios and --size it runs for ten seconds over the whole namespace. With --size alone it transfers that many bytes, once;
/// with --size and --time it stays within that range for that time.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Namespace, file or memory
    #[arg(value_parser = arguments::uri)]
    uri: Uri,

    #[command(flatten)]
    options: WorkloadOptions,

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
        let accesses = self.options.access()?;
        WorkloadOptions::refuse_if_in_use(uri, accesses)?;
        let device = self.connection.initiator()?.open(uri)?;
        let workload = self.workload(&device, accesses)?;
        let mut interrupt = Interrupt::new(workload.interval.is_some());
        let mut progress = Progress::new(!self.quiet && io::stderr().is_terminal(), &workload);
        let outcome = homi_initiator::bench::run(
            &workload,
            |_| device.queue(QueueOptions::depth(self.options.depth())),
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

    fn workload(&self, device: &Device, accesses: Accesses) -> Result<Workload, Failure> {
        let mut workload = self.options.workload(&self.uri, device, accesses, None)?;
        let usual = match workload.limit {
            Limit::Time(time) => (time / MOST_SAMPLES).max(Duration::from_millis(100)),
            Limit::Ios(_) => Duration::from_millis(100),
        };
        workload.interval = match self.interval {
            None => Some(usual),
            Some(Duration::ZERO) => None,
            Some(interval) => Some(interval.max(Duration::from_millis(10))),
        };
        Ok(workload)
    }
}

fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}
