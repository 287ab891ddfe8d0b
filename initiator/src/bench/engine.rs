//! [`run`]: starts the threads of a benchmark, samples them, stops them and merges what they report.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use super::stats::{Interval, Latency, Outcome, Phase, Sample};
use super::worker::{Report, Worker};
use super::workload::{Limit, Workload};
use super::{BenchError, BenchQueue};

/// How long the threads have to hand in their histograms at the end of an interval.
const FOLD_TIME: Duration = Duration::from_millis(2);

/// What the caller of [`run`] is told at the end of every interval. Its answer says whether to go on; the run ends early, as if
/// its limit were reached, with [`ControlFlow::Break`].
pub type Observer<'a> = dyn FnMut(&Interval<'_>) -> ControlFlow<()> + 'a;

/// What the caller of [`run`] wants to know and can tell; nothing by default.
#[derive(Default)]
pub struct Hooks<'a> {
    /// How many heap allocations the calling thread has made so far, if the process counts them.
    pub allocations: Option<fn() -> u64>,
    /// Called at the end of every interval, if there are intervals.
    pub observe: Option<&'a mut Observer<'a>>,
}

/// What the engine tells the threads, in one word: the phase in the low three bits, and a count of folds above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control(u32);

impl Control {
    pub(super) const SETUP: Self = Self(0);
    const WARM_UP: u32 = 1;
    const MEASURE: u32 = 2;
    const STOP: u32 = 3;
    const ABORT: u32 = 4;
    const PHASE: u32 = 7;

    pub(super) fn phase(self) -> Option<Phase> {
        match self.0 & Self::PHASE {
            Self::WARM_UP => Some(Phase::WarmUp),
            Self::MEASURE => Some(Phase::Measure),
            _ => None,
        }
    }

    pub(super) fn stopped(self) -> bool {
        self.0 & Self::PHASE == Self::STOP
    }

    pub(super) fn aborted(self) -> bool {
        self.0 & Self::PHASE == Self::ABORT
    }

    pub(super) fn fold(self) -> u32 {
        self.0 >> 3
    }
}

/// How far the threads are.
#[derive(Debug, Default)]
struct Progress {
    /// Threads that are ready to start, or have failed.
    ready: usize,
    /// Threads that have finished the measurement, or have failed.
    measured: usize,
    /// Threads that have ended.
    ended: usize,
    /// Whether a thread has failed.
    failed: bool,
}

/// What engine and threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// What all times count from.
    pub(super) epoch: Instant,
    /// Number of this run, part of its stamps.
    pub(super) run: u64,
    control: AtomicU32,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            // Random per process and call: unique is all that it must be.
            run: RandomState::new().build_hasher().finish(),
            control: AtomicU32::new(Control::SETUP.0),
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        }
    }

    /// What the threads should do: one read of a line that is hardly ever written.
    #[inline]
    pub(super) fn control(&self) -> Control {
        Control(self.control.load(Relaxed))
    }

    /// A thread has finished the measurement.
    pub(super) fn measured(&self) {
        self.update(|progress| progress.measured += 1);
    }

    fn enter(&self, phase: u32) {
        // Under the lock, so that a thread that is about to wait for it does not miss it.
        let guard = self.lock();
        let fold = self.control.load(Relaxed) & !Control::PHASE;
        self.control.store(fold | phase, Release);
        drop(guard);
        self.changed.notify_all();
    }

    fn ask_for_fold(&self) {
        self.control.store(
            self.control.load(Relaxed).wrapping_add(Control::PHASE + 1),
            Release,
        );
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until the condition holds or the time has come, and returns whether it holds.
    fn wait_until(&self, deadline: Option<Instant>, mut condition: impl FnMut(&Progress) -> bool) -> bool {
        let mut progress = self.lock();
        loop {
            if condition(&progress) {
                return true;
            }
            progress = match deadline {
                None => self
                    .changed
                    .wait(progress)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed
                        .wait_timeout(progress, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Keeps a thread that is ready until all are.
    fn await_start(&self) {
        self.await_control(|control| control != Control::SETUP);
    }

    /// Keeps a thread that has finished its share until all have.
    pub(super) fn await_stop(&self) {
        self.await_control(|control| control.stopped() || control.aborted());
    }

    fn await_control(&self, reached: impl Fn(Control) -> bool) {
        let mut progress = self.lock();
        while !reached(Control(self.control.load(Acquire))) {
            progress = self
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What one thread publishes, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Lane {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    latency: Mutex<Latency>,
}

impl Lane {
    /// The latencies since the engine last took them.
    pub(super) fn latency(&self) -> MutexGuard<'_, Latency> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the engine how a thread ended, also if it panics.
struct Ending<'a> {
    shared: &'a Shared,
    ready: bool,
    failed: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.shared.update(|progress| {
            if !self.ready {
                progress.ready += 1;
            }
            progress.ended += 1;
            progress.failed |= self.failed;
        });
    }
}

/// Runs a workload. `open` is called in each thread, with the thread's number, for its queue; the queue never leaves the thread.
///
/// # Errors
/// [`BenchError`]: the first thing that went wrong in any thread. The others are stopped then.
pub fn run<Q, E, F>(workload: &Workload, open: F, hooks: Hooks<'_>) -> Result<Outcome, BenchError>
where
    Q: BenchQueue,
    E: Error + Send + Sync + 'static,
    F: Fn(usize) -> Result<Q, E> + Sync,
{
    workload.validate()?;
    let shared = Shared::new();
    let lanes: Vec<Lane> = (0..workload.jobs).map(|_| Lane::default()).collect();
    let allocations = hooks.allocations;
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(workload.jobs);
        for (job, lane) in lanes.iter().enumerate() {
            let (shared, open) = (&shared, &open);
            let body = move || {
                let mut ending = Ending {
                    shared,
                    ready: false,
                    failed: true,
                };
                let result = work(workload, job, open, &mut ending, lane, allocations);
                ending.failed = result.is_err();
                result
            };
            match thread::Builder::new()
                .name(format!("bench-{job}"))
                .spawn_scoped(scope, body)
            {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    shared.enter(Control::ABORT);
                    return Err(BenchError::Thread(error));
                }
            }
        }
        let mut engine = Engine {
            workload,
            shared: &shared,
            lanes: &lanes,
            observe: hooks.observe,
        };
        let measured = engine.conduct();
        let mut total = Report::default();
        let mut failure: Option<BenchError> = None;
        for thread in threads {
            match thread.join().unwrap_or(Err(BenchError::Panicked)) {
                Ok(report) => total.merge(&report),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(outcome(workload, total, measured)),
        }
    })
}

/// One thread, from its first line to its last.
fn work<Q, E, F>(
    workload: &Workload,
    job: usize,
    open: &F,
    ending: &mut Ending<'_>,
    lane: &Lane,
    allocations: Option<fn() -> u64>,
) -> Result<Report, BenchError>
where
    Q: BenchQueue,
    E: Error + Send + Sync + 'static,
    F: Fn(usize) -> Result<Q, E>,
{
    if let Some(core) = workload.pin.get(job % workload.pin.len().max(1)) {
        pin(*core)?;
    }
    let shared = ending.shared;
    let queue = open(job).map_err(|error| BenchError::Open(Box::new(error)))?;
    let worker = Worker::new(queue, workload, job, shared, lane, allocations)?;
    ending.ready = true;
    shared.update(|progress| progress.ready += 1);
    shared.await_start();
    worker.run()
}

/// Binds the calling thread to a core.
fn pin(core: usize) -> Result<(), BenchError> {
    let refuse = |source| BenchError::Pin { core, source };
    let mut cores = CpuSet::new();
    cores.set(core).map_err(refuse)?;
    sched_setaffinity(Pid::from_raw(0), &cores).map_err(refuse)
}

/// What the engine itself measured.
#[derive(Debug, Default)]
struct Measured {
    series: Vec<Sample>,
    user_time: Duration,
    system_time: Duration,
    stopped_early: bool,
}

struct Engine<'a, 'o> {
    workload: &'a Workload,
    shared: &'a Shared,
    lanes: &'a [Lane],
    observe: Option<&'o mut Observer<'o>>,
}

impl Engine<'_, '_> {
    /// Leads the threads through all phases.
    fn conduct(&mut self) -> Measured {
        let jobs = self.workload.jobs;
        let mut measured = Measured::default();
        if let Some(interval) = self.workload.interval
            && let Limit::Time(time) = self.workload.limit
        {
            let samples = time.as_nanos() / interval.as_nanos().max(1);
            measured
                .series
                .reserve(usize::try_from(samples).unwrap_or(0).min(1 << 16) + 4);
        }
        self.shared.wait_until(None, |progress| progress.ready == jobs);
        if self.shared.lock().failed {
            self.shared.enter(Control::ABORT);
            return measured;
        }
        if !self.workload.warmup.is_zero() {
            self.shared.enter(Control::WARM_UP);
            let deadline = Instant::now() + self.workload.warmup;
            self.watch(Phase::WarmUp, Some(deadline), &mut measured, |progress| {
                progress.ended > 0
            });
        }
        if measured.stopped_early {
            self.shared.enter(Control::ABORT);
            return measured;
        }
        let before = cpu_time();
        self.shared.enter(Control::MEASURE);
        let deadline = match self.workload.limit {
            Limit::Time(time) => Instant::now().checked_add(time),
            Limit::Ios(_) => None,
        };
        self.watch(Phase::Measure, deadline, &mut measured, |progress| {
            progress.failed || progress.measured == jobs
        });
        let failed = self.shared.lock().failed;
        self.shared
            .enter(if failed { Control::ABORT } else { Control::STOP });
        self.shared
            .wait_until(None, |progress| progress.failed || progress.measured == jobs);
        let after = cpu_time();
        measured.user_time = after.0.saturating_sub(before.0);
        measured.system_time = after.1.saturating_sub(before.1);
        self.watch(Phase::ReadBack, None, &mut measured, |progress| {
            progress.failed || progress.ended == jobs
        });
        if self.shared.lock().failed {
            self.shared.enter(Control::ABORT);
        }
        measured
    }

    /// Samples until the condition holds or the time has come.
    fn watch(
        &mut self,
        phase: Phase,
        deadline: Option<Instant>,
        measured: &mut Measured,
        done: impl Fn(&Progress) -> bool,
    ) {
        let Some(interval) = self.workload.interval else {
            self.shared.wait_until(deadline, done);
            return;
        };
        let start = Instant::now();
        let mut last = start;
        let mut before = self.totals();
        let mut latency = Latency::new();
        self.take_latency(&mut latency);
        loop {
            let next = last + interval;
            let until = deadline.map_or(next, |deadline| deadline.min(next));
            let over = self.shared.wait_until(Some(until), &done)
                || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let now = Instant::now();
            let totals = self.totals();
            // A stump at the end says little and would look like a dip.
            let whole = now - last >= interval / 2;
            if phase == Phase::Measure && whole {
                self.shared.ask_for_fold();
                thread::sleep(FOLD_TIME);
            }
            latency.clear();
            self.take_latency(&mut latency);
            let sample = Sample {
                at: now - start,
                length: now - last,
                reads: totals.0.saturating_sub(before.0),
                writes: totals.1.saturating_sub(before.1),
                p50: latency.quantile(0.5),
                p99: latency.quantile(0.99),
                max: latency.max(),
            };
            if whole {
                if phase == Phase::Measure {
                    measured.series.push(sample);
                }
                let seen = Interval {
                    phase,
                    sample,
                    latency: &latency,
                };
                let answer = self.observe.as_mut().map(|observe| observe(&seen));
                // What was written is read back to the end, or nothing could be said about it.
                if answer.is_some_and(|answer| answer.is_break()) && phase != Phase::ReadBack {
                    measured.stopped_early = true;
                    return;
                }
            }
            if over {
                return;
            }
            (last, before) = (now, totals);
        }
    }

    /// Reads and writes of all threads since their start.
    fn totals(&self) -> (u64, u64) {
        self.lanes.iter().fold((0, 0), |(reads, writes), lane| {
            (
                reads + lane.reads.load(Relaxed),
                writes + lane.writes.load(Relaxed),
            )
        })
    }

    fn take_latency(&self, into: &mut Latency) {
        for lane in self.lanes {
            let mut latency = lane.latency();
            into.add(&latency);
            latency.clear();
        }
    }
}

/// CPU time of this process so far, outside the kernel and in it.
fn cpu_time() -> (Duration, Duration) {
    let duration = |time: TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    // It fails for an unknown "who" only.
    getrusage(UsageWho::RUSAGE_SELF).map_or((Duration::ZERO, Duration::ZERO), |usage| {
        (duration(usage.user_time()), duration(usage.system_time()))
    })
}

fn outcome(workload: &Workload, total: Report, measured: Measured) -> Outcome {
    let elapsed = total
        .started
        .zip(total.ended)
        .map_or(Duration::ZERO, |(started, ended)| {
            ended.saturating_duration_since(started)
        });
    Outcome {
        workload: workload.clone(),
        depth: total.depth,
        elapsed,
        reads: total.reads,
        writes: total.writes,
        series: measured.series,
        user_time: measured.user_time,
        system_time: measured.system_time,
        allocations: total.allocations,
        counters: total.counters,
        queue_system_calls: total.system_calls,
        sleeps: total.sleeps,
        stopped_early: measured.stopped_early,
        blocks_verified: total.blocks_verified,
        blocks_unchecked: total.blocks_unchecked,
    }
}
