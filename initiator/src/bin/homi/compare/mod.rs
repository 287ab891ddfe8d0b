//! `homi compare`: one workload over several paths, in turn, and one table.
//!
//! The paths are opened like any other URI, so whatever `homi bench` measures can be compared. Each is measured in several short rounds, and
//! every round visits all of them, beginning with another one each time: what disturbs the machine meanwhile disturbs all alike. A path that
//! cannot be used is a line of the table with the reason.

mod paths;
mod table;

use std::time::Duration;

use clap::Args;
use homi_initiator::bench::{Hooks, Limit, Outcome, Workload};
use homi_initiator::{QueueOptions, Uri};

use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::workload::{Accesses, WorkloadOptions};
use crate::{allocations, arguments, output};
use paths::Path;

/// Ranges that every path has end at a multiple of this many bytes: the largest block.
const LARGEST_BLOCK: u64 = 4096;
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Run one workload over several paths in turn, and print one table
///
/// All paths get the same workload: the same range, too, as large as the smallest of them unless --size says otherwise. --time and --ios are
/// for each path, all rounds together. The ratio is that of I/Os per second to the first path that can be used: the median of the rounds.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Paths to compare: namespaces, devices, files, memory
    #[arg(value_name = "URI", value_parser = arguments::uri, required = true)]
    uris: Vec<Uri>,
    /// Add the other paths of this machine's kernel to the same namespaces: block devices, and command passthrough
    #[arg(long)]
    find: bool,
    /// In how many rounds to measure
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    #[command(flatten)]
    options: WorkloadOptions,

    /// Print no progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Compare {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let accesses = self.options.access()?;
        for uri in &self.uris {
            connection::blocks(uri)?;
        }
        let initiator = self.connection.initiator()?;
        let mut paths: Vec<Path> = self
            .uris
            .iter()
            .map(|uri| Path::open(&initiator, uri, accesses, false))
            .collect();
        if self.find {
            let found = paths::others(&paths);
            paths.extend(
                found
                    .iter()
                    .map(|uri| Path::open(&initiator, uri, accesses, true)),
            );
        }
        self.plan(&mut paths, accesses)?;
        let stopped = self.measure(&mut paths)?;
        let table = table::Table {
            workload: self.describe(&paths, accesses),
            rounds: self.rounds,
            stopped,
            paths: &paths,
        };
        if self.json {
            output::json(&table.json())?;
        } else {
            output::text(&table.text())?;
        }
        // The table has said all; the exit code says it to scripts.
        match paths.iter().find(|path| path.failed) {
            None => Ok(()),
            Some(path) => Err(Failure::Failed(format!(
                "{} failed while it was measured: {}",
                path.uri,
                path.reason.as_deref().unwrap_or("no reason is known")
            ))),
        }
    }

    /// Makes each path's workload: the same one on all.
    fn plan(&self, paths: &mut [Path], accesses: Accesses) -> Result<(), Failure> {
        let smallest = paths
            .iter()
            .filter_map(|path| Some(path.device.as_ref()?.bytes()))
            .min();
        let Some(smallest) = smallest else {
            return Err(none_usable(paths));
        };
        let size = smallest
            .checked_sub(self.options.offset())
            .map(|rest| rest / LARGEST_BLOCK * LARGEST_BLOCK)
            .filter(|rest| *rest > 0 && self.options.size().is_none());
        for path in paths.iter_mut() {
            let Some(device) = &path.device else { continue };
            match self.options.workload(&path.uri, device, accesses, size) {
                Ok(workload) => path.workload = Some(self.round_of(workload)),
                Err(Failure::Usage(reason) | Failure::Failed(reason)) => path.give_up(reason),
                Err(other) => return Err(other),
            }
        }
        if paths.iter().all(|path| path.workload.is_none()) {
            return Err(none_usable(paths));
        }
        Ok(())
    }

    /// One round's share.
    fn round_of(&self, mut workload: Workload) -> Workload {
        workload.limit = match workload.limit {
            Limit::Time(time) => Limit::Time((time / self.rounds).max(Duration::from_millis(1))),
            Limit::Ios(ios) => Limit::Ios(ios.div_ceil(self.rounds.into())),
        };
        workload.interval = Some(LOOK);
        workload
    }

    /// Measures everything, and returns whether somebody had enough of it.
    fn measure(&self, paths: &mut [Path]) -> Result<bool, Failure> {
        let mut interrupt = Interrupt::new(true);
        let mut progress = table::Progress::new(self.quiet, self.rounds);
        for round in 0..self.rounds {
            let count = paths.len();
            for turn in 0..count {
                let at = (turn + round as usize) % count;
                let Some(path) = paths.get_mut(at) else { continue };
                let (Some(workload), Some(device)) = (&path.workload, &path.device) else {
                    path.rates.push(None);
                    continue;
                };
                progress.show(round, &path.uri);
                let outcome = homi_initiator::bench::run(
                    workload,
                    |_| device.queue(QueueOptions::depth(self.options.depth())),
                    Hooks {
                        allocations: Some(allocations::count),
                        observe: Some(&mut |_| interrupt.answer()),
                    },
                );
                match outcome {
                    Ok(outcome) => {
                        let stopped = outcome.stopped_early;
                        path.rates.push((!stopped).then(|| outcome.iops()));
                        path.add(outcome);
                        if stopped {
                            progress.clear();
                            return Ok(true);
                        }
                    }
                    Err(error) => {
                        path.rates.push(None);
                        path.failed = true;
                        path.give_up(match Failure::from(error) {
                            Failure::Usage(text) | Failure::Failed(text) | Failure::Wrong(text, _) => text,
                            Failure::BrokenPipe => return Err(Failure::BrokenPipe),
                        });
                    }
                }
            }
        }
        progress.clear();
        Ok(false)
    }

    /// What is done, in words and as numbers.
    fn describe(&self, paths: &[Path], accesses: Accesses) -> table::Described {
        let workload = paths.iter().find_map(|path| path.workload.as_ref());
        table::Described {
            accesses,
            io_bytes: workload.map_or(0, Workload::io_bytes),
            bytes: workload.map_or(0, |workload| {
                workload.range.blocks * u64::from(workload.range.block_size)
            }),
            depth: self.options.depth(),
            queues: workload.map_or(0, |workload| workload.jobs),
            verify: workload.is_some_and(|workload| workload.verify),
        }
    }
}

impl Path {
    /// Takes a path out, with the reason.
    fn give_up(&mut self, reason: String) {
        self.reason = Some(reason);
        self.workload = None;
        // Others may need what it holds.
        self.device = None;
    }

    fn add(&mut self, outcome: Outcome) {
        match &mut self.outcome {
            Some(total) => total.add(&outcome),
            none => *none = Some(outcome),
        }
    }
}

fn none_usable(paths: &[Path]) -> Failure {
    let reasons: Vec<String> = paths
        .iter()
        .map(|path| {
            let reason = path.reason.as_deref().unwrap_or("no reason is known");
            format!("{}: {reason}", path.uri)
        })
        .collect();
    Failure::Failed(format!("no path can be used: {}", reasons.join("; ")))
}
