//! I/Os per second of a target process and an initiator, and of raw pairs, in turn: what fraction of the bound is reached.
//!
//! The machine's speed changes from second to second more than what is to be seen. So a round measures the bound and the pair right after
//! each other, and what counts is the medians of several rounds.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use homi_initiator::bench::{Hooks, Limit, Range, Workload, run};
use homi_initiator::{Device, Initiator, QueueOptions, Uri};
use homi_reactor::socket;

use super::{Case, Failure, LARGE, SMALL};
use crate::raw::{self, Shape};

/// How long a target may take until it serves, under valgrind too.
const START: Duration = Duration::from_secs(60);

/// What is compared by default.
pub const CASES: [Case; 8] = [
    Case::read(SMALL, 1),
    Case::read(SMALL, 32),
    Case::read(SMALL, 128),
    Case::read(LARGE, 8),
    Case::write(SMALL, 1),
    Case::write(SMALL, 32),
    Case::write(SMALL, 128),
    Case::write(LARGE, 8),
];

/// The cores of the target and of the initiator: two different ones, or none if there is but one.
///
/// # Errors
/// The system's error.
pub fn cores() -> io::Result<Option<(usize, usize)>> {
    let allowed = socket::allowed_cores()?;
    Ok(match allowed.as_slice() {
        [first, second, ..] => Some((*first, *second)),
        _ => None,
    })
}

/// A program of this project, built beside this one.
///
/// # Errors
/// Says how to build it.
pub fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    // Benchmarks and tests lie one folder further down.
    for folder in own.ancestors().skip(1).take(2) {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let folder = own.parent().unwrap_or(Path::new("."));
    Err(format!(
        "{name} is not in {}: build it first, as scripts/counts does",
        folder.display()
    )
    .into())
}

/// A target process that serves memory, and where. Dropping it ends it.
#[derive(Debug)]
pub struct TargetProcess {
    child: Child,
    /// Its only namespace.
    pub uri: Uri,
}

impl TargetProcess {
    /// Starts `command serve` with further arguments on a core. The command may be a tool that runs the target.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub fn start(mut command: Command, core: Option<usize>, arguments: &[&str]) -> Result<Self, Failure> {
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--ram",
            "64M",
            "--shards",
            "1",
        ]);
        command.args(arguments);
        command
            .env("HOMI_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // A child inherits the core of the thread that starts it.
        let started = thread::spawn(move || -> io::Result<Child> {
            if let Some(core) = core {
                socket::pin_current_thread(core)?;
            }
            command.spawn()
        });
        let mut child = started.join().map_err(|_| "starting the target panicked")??;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            let (said, heard) = mpsc::channel();
            // It ends with the child's output, at the latest when the child is killed.
            thread::spawn(move || {
                let mut line = String::new();
                let read = BufReader::new(output).read_line(&mut line);
                // Nobody listens after the time is up.
                let _ = said.send(read.map(|_| line));
            });
            if let Ok(first) = heard.recv_timeout(START) {
                line = first?;
            }
        }
        // "serving URI (1 namespace) to any host"
        let uri = line
            .strip_prefix("serving ")
            .and_then(|rest| rest.split(' ').next());
        match uri.map(str::parse::<Uri>) {
            Some(Ok(uri)) => Ok(Self { child, uri }),
            _ => {
                // It is of no use; whether it ended by itself does not matter.
                let _ = child.kill();
                let status = child.wait()?;
                Err(format!("the target did not start ({status}): {line:?}").into())
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// The system's error.
    pub fn stop(mut self) -> Result<(), Failure> {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for TargetProcess {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing is left to do if this fails.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a case reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Fraction {
    /// What was done.
    pub case: Case,
    /// I/Os per second of the raw pair: the median of its rounds, with the batch that made it the fastest.
    pub raw: f64,
    /// The client's batch of that.
    pub batch: usize,
    /// I/Os per second of target and initiator: the median of their rounds.
    pub pair: f64,
}

impl Fraction {
    /// The part of the bound that is reached.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.pair / self.raw.max(1.0)
    }
}

/// Measures one case, in rounds of raw pairs and our pair.
///
/// # Errors
/// Whatever keeps either from running.
pub fn measure(
    target: &TargetProcess,
    case: Case,
    cores: Option<(usize, usize)>,
    rounds: usize,
    time: Duration,
) -> Result<Fraction, Failure> {
    let device = Initiator::new()?.open(&target.uri)?;
    let shape = Shape {
        write: case.write,
        io_bytes: case.io_bytes,
        depth: case.depth.into(),
    };
    let depth = usize::from(case.depth);
    // All that there are of these at small depths.
    let mut batches: Vec<usize> = raw::BATCHES.iter().map(|part| (depth / part).max(1)).collect();
    batches.dedup();
    let mut raws = vec![Vec::new(); batches.len()];
    let mut pairs = Vec::new();
    let warm_up = time / 5;
    for _ in 0..rounds.max(1) {
        for (batch, rates) in batches.iter().zip(&mut raws) {
            rates.push(raw::exchange(shape, *batch, cores, warm_up, time)?.per_second());
        }
        pairs.push(rate(&device, case, cores, warm_up, time)?);
    }
    let mut best = (0.0, 1);
    for (batch, rates) in batches.iter().zip(raws) {
        let rate = median(rates);
        if rate > best.0 {
            best = (rate, *batch);
        }
    }
    Ok(Fraction {
        case,
        raw: best.0,
        batch: best.1,
        pair: median(pairs),
    })
}

/// I/Os per second of an initiator.
fn rate(
    device: &Device,
    case: Case,
    cores: Option<(usize, usize)>,
    warm_up: Duration,
    time: Duration,
) -> Result<f64, Failure> {
    let mut workload = Workload::new(Range {
        nsid: device.nsid(),
        block_size: device.block_size(),
        first: 0,
        blocks: device.blocks(),
    });
    workload.blocks_per_io = u32::try_from(case.io_bytes)? / device.block_size();
    workload.depth = case.depth;
    workload.read_percent = if case.write { 0 } else { 100 };
    workload.limit = Limit::Time(time);
    workload.warmup = warm_up;
    workload.interval = None;
    workload.pin = cores.map(|(_, core)| core).into_iter().collect();
    let hooks = Hooks {
        allocations: None,
        observe: None,
    };
    let outcome = run(
        &workload,
        |_| device.queue(QueueOptions::depth(case.depth)),
        hooks,
    )?;
    Ok(outcome.iops())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_what_is_far_off() {
        assert!((median(vec![3.0, 1.0, 1000.0, 2.0, 2.5]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
