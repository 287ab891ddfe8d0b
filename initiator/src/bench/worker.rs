//! One thread of a benchmark: keeps a queue full and counts what comes back.
//!
//! What happens per I/O is a few dozen instructions beside the queue's own: a random number, a command, a table entry, a
//! histogram count. Everything else happens per batch (the clock, the batch's start, the published totals), per
//! interval (folding histograms) or never (allocating).

use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{Command, CommandId, Completed, Data, QueueLost, Region, Slot};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::engine::{Control, Lane, Shared};
use super::pattern::Pattern;
use super::stats::{Phase, Tally};
use super::verify::{Expected, Stamp, check};
use super::workload::{Limit, Share, Workload};
use super::{BenchError, BenchQueue};
use crate::counters::Counters;

/// The longest sleep: so often the thread looks whether it should stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(10);
/// Sleeping takes about this much longer than asked for; the rest of a pause is polled.
const SLEEP_SLACK: u64 = 60_000;
/// Empty polls between two looks at the clock. On most queues an empty poll is a system call, which costs ten times as much.
const POLLS_PER_LOOK: u32 = 4;
/// Pauses between two polls that find nothing, a microsecond or less: a receive takes the lock of its socket, which those who
/// deliver to it need.
const PAUSES: u32 = 32;
/// How far a thread may fall behind its rate and still catch up, in picoseconds: 100 ms.
const CATCH_UP: u64 = 100_000_000_000;
/// Units tried before a thread waits for completions because other I/O on them is in flight.
const TRIES: u32 = 16;
/// Set in a unit's generation while I/O on it is in flight.
const BUSY: u32 = 1 << 31;

/// What a thread hands in at the end.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) depth: u16,
    pub(super) started: Option<Instant>,
    pub(super) ended: Option<Instant>,
    pub(super) reads: Tally,
    pub(super) writes: Tally,
    pub(super) allocations: Option<u64>,
    pub(super) counters: Option<Counters>,
    pub(super) system_calls: Option<u64>,
    pub(super) sleeps: u64,
    pub(super) blocks_verified: u64,
    pub(super) blocks_unchecked: u64,
}

impl Report {
    /// Adds another thread's report.
    pub(super) fn merge(&mut self, other: &Self) {
        self.depth = if self.depth == 0 {
            other.depth
        } else {
            self.depth.min(other.depth)
        };
        self.started = [self.started, other.started].into_iter().flatten().min();
        self.ended = [self.ended, other.ended].into_iter().flatten().max();
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.allocations = [self.allocations, other.allocations]
            .into_iter()
            .flatten()
            .reduce(|a, b| a + b);
        self.counters = [self.counters, other.counters]
            .into_iter()
            .flatten()
            .reduce(|a, b| a.plus(&b));
        self.system_calls = [self.system_calls, other.system_calls]
            .into_iter()
            .flatten()
            .reduce(|a, b| a + b);
        self.sleeps += other.sleeps;
        self.blocks_verified += other.blocks_verified;
        self.blocks_unchecked += other.blocks_unchecked;
    }
}

/// An I/O in flight.
#[derive(Debug, Clone, Copy)]
struct Operation {
    id: Option<CommandId>,
    write: bool,
    counted: bool,
    unit: u64,
    started: u64,
}

const NO_OPERATION: Operation = Operation {
    id: None,
    write: false,
    counted: false,
    unit: 0,
    started: 0,
};

/// Where the next I/O comes from.
#[derive(Debug)]
enum Work {
    /// The workload; with the number of I/Os left, if that is the limit.
    Pattern(Option<u64>),
    /// Everything that was written, from this unit on.
    ReadBack(usize),
    /// Nothing more.
    Done,
}

/// The next I/O.
enum Next {
    /// This unit, written or read.
    Io(u64, bool),
    /// None before something completes.
    Later,
    /// None.
    Done,
}

pub(super) struct Worker<'a, Q> {
    queue: Q,
    workload: &'a Workload,
    share: Share,
    shared: &'a Shared,
    lane: &'a Lane,
    allocations: Option<fn() -> u64>,
    control: Control,
    pattern: Pattern,
    work: Work,
    depth: usize,
    in_flight: usize,
    operations: Vec<Operation>,
    read_data: Vec<Data>,
    write_data: Vec<Data>,
    completed: Vec<Completed>,
    generations: Vec<u32>,
    scratch: Vec<u8>,
    epoch: Instant,
    now: u64,
    progress: u64,
    empty_polls: u32,
    /// Picoseconds between two I/Os and when the next one is due, if the rate is limited.
    pace: Option<(u64, u64)>,
    recording: bool,
    recent_reads: Tally,
    recent_writes: Tally,
    first: u64,
    allocations_before: u64,
    counters_before: Option<Counters>,
    system_calls_before: Option<u64>,
    sleeps: u64,
    report: Report,
}

impl<'a, Q: BenchQueue> Worker<'a, Q> {
    /// Makes everything that the loop needs, so that it allocates nothing.
    pub(super) fn new(
        queue: Q,
        workload: &'a Workload,
        job: usize,
        shared: &'a Shared,
        lane: &'a Lane,
        allocations: Option<fn() -> u64>,
    ) -> Result<Self, BenchError> {
        let share = workload.share(job);
        let depth = workload.depth.min(queue.depth());
        let io_bytes = to_usize(workload.io_bytes());
        let read_data = if workload.read_percent > 0 || workload.verify {
            buffers(io_bytes, depth)?
        } else {
            Vec::new()
        };
        let write_data = if workload.writes() {
            buffers(io_bytes, depth)?
        } else {
            Vec::new()
        };
        let mut generations = Vec::new();
        let mut scratch = Vec::new();
        if workload.verify {
            let units = to_usize(share.units);
            generations
                .try_reserve_exact(units)
                .map_err(|_| BenchError::Track(share.units))?;
            generations.resize(units, 0);
            scratch.resize(io_bytes, 0);
        } else {
            scramble(&write_data, workload.seed, job)?;
        }
        let table = usize::from(queue.depth()).next_power_of_two();
        let pace = workload.rate.map(|rate| {
            let gap = u128::from(1_000_000_000_000_u64) * workload.jobs as u128 / u128::from(rate);
            (u64::try_from(gap).unwrap_or(u64::MAX), 0)
        });
        Ok(Self {
            pattern: Pattern::new(
                workload.seed,
                job,
                workload.order,
                share.units,
                workload.read_percent,
            ),
            queue,
            workload,
            share,
            shared,
            lane,
            allocations,
            control: Control::SETUP,
            work: Work::Pattern(None),
            depth: usize::from(depth),
            in_flight: 0,
            operations: vec![NO_OPERATION; table],
            read_data,
            write_data,
            completed: Vec::with_capacity(table),
            generations,
            scratch,
            epoch: shared.epoch,
            now: 0,
            progress: 0,
            empty_polls: 0,
            pace,
            recording: false,
            recent_reads: Tally::default(),
            recent_writes: Tally::default(),
            first: 0,
            allocations_before: 0,
            counters_before: None,
            system_calls_before: None,
            sleeps: 0,
            report: Report {
                depth,
                ..Report::default()
            },
        })
    }

    /// Runs the workload to its end, tells the engine that the measurement is over, and reads back what was written
    /// if it is to be verified.
    pub(super) fn run(mut self) -> Result<Report, BenchError> {
        self.look();
        if let Some((_, due)) = &mut self.pace {
            *due = self.now.saturating_mul(1000);
        }
        self.pump()?;
        self.end_measurement();
        self.shared.measured();
        self.shared.await_stop();
        if self.workload.verify && self.workload.writes() {
            self.work = Work::ReadBack(0);
            self.pace = None;
            self.pump()?;
        }
        Ok(self.report)
    }

    /// Works until there is nothing left to do and nothing in flight.
    fn pump(&mut self) -> Result<(), BenchError> {
        loop {
            let control = self.shared.control();
            if control != self.control {
                self.obey(control);
            }
            let free = self.depth - self.in_flight;
            let mut starved = false;
            if free >= usize::from(self.workload.batch) || self.in_flight == 0 {
                starved = self.refill()?;
            }
            if self.in_flight == 0 {
                if matches!(self.work, Work::Done) {
                    return Ok(());
                }
                if starved {
                    self.pause();
                    continue;
                }
            }
            self.queue.poll(&mut self.completed).map_err(lost)?;
            if self.completed.is_empty() {
                self.idle()?;
            } else {
                self.look();
                self.progress = self.now;
                self.empty_polls = 0;
                self.settle()?;
            }
        }
    }

    /// Reads the clock.
    fn look(&mut self) {
        self.now = nanoseconds(self.epoch.elapsed());
    }

    /// Does what the engine asks for: another phase, or folding the histograms, or both.
    fn obey(&mut self, control: Control) {
        let before = mem::replace(&mut self.control, control);
        if control.aborted() || (control.stopped() && matches!(self.work, Work::Pattern(_))) {
            self.work = Work::Done;
        } else if control.phase() == Some(Phase::Measure) && before.phase() != Some(Phase::Measure) {
            self.begin_measurement();
        }
        if control.fold() != before.fold() {
            self.fold();
        }
    }

    fn begin_measurement(&mut self) {
        self.look();
        self.first = self.now;
        self.recording = true;
        self.work = Work::Pattern(self.share.ios);
        self.recent_reads.clear();
        self.recent_writes.clear();
        self.report.reads.clear();
        self.report.writes.clear();
        self.counters_before = self.queue.counters();
        self.system_calls_before = self.queue.system_calls();
        self.sleeps = 0;
        self.report.started = Some(self.epoch + Duration::from_nanos(self.now));
        // Last, because what is above may allocate.
        self.allocations_before = self.allocations.map_or(0, |count| count());
    }

    fn end_measurement(&mut self) {
        if !self.recording {
            return;
        }
        self.recording = false;
        self.report.allocations = self.allocations.map(|count| count() - self.allocations_before);
        self.report.counters = self
            .queue
            .counters()
            .zip(self.counters_before)
            .map(|(now, then)| now.since(&then));
        self.report.system_calls = self
            .queue
            .system_calls()
            .zip(self.system_calls_before)
            .map(|(now, then)| now - then);
        self.report.sleeps = self.sleeps;
        self.report.ended = Some(self.epoch + Duration::from_nanos(self.progress.max(self.first)));
        self.fold();
    }

    /// Moves what was counted lately to the totals and to the engine.
    fn fold(&mut self) {
        self.report.reads.add(&self.recent_reads);
        self.report.writes.add(&self.recent_writes);
        if self.workload.interval.is_some() {
            let mut latency = self.lane.latency();
            latency.add(&self.recent_reads.latency);
            latency.add(&self.recent_writes.latency);
        }
        self.recent_reads.clear();
        self.recent_writes.clear();
    }

    /// Submits as much as can be in flight, as one batch. Returns whether the rate forbids more at present.
    fn refill(&mut self) -> Result<bool, BenchError> {
        if matches!(self.work, Work::Done) {
            return Ok(false);
        }
        if self.workload.verify || self.pace.is_some() {
            self.look();
        }
        let (was_idle, mut submitted, mut starved) = (self.in_flight == 0, false, false);
        while self.in_flight < self.depth {
            if self
                .pace
                .is_some_and(|(_, due)| due > self.now.saturating_mul(1000))
            {
                starved = true;
                break;
            }
            let Ok(slot) = self.queue.reserve() else {
                if self.in_flight == 0 {
                    return Err(BenchError::Full);
                }
                break;
            };
            match self.next() {
                Next::Io(unit, write) => self.submit(slot, unit, write)?,
                Next::Later => {
                    self.queue.release(slot);
                    break;
                }
                Next::Done => {
                    self.queue.release(slot);
                    self.work = Work::Done;
                    break;
                }
            }
            submitted = true;
            if let Some((gap, due)) = &mut self.pace {
                let earliest = self.now.saturating_mul(1000).saturating_sub(CATCH_UP);
                *due = (*due).max(earliest).saturating_add(*gap);
            }
        }
        if submitted {
            if was_idle {
                self.progress = self.now;
            }
            self.queue.commit().map_err(lost)?;
        }
        Ok(starved)
    }

    #[inline]
    fn next(&mut self) -> Next {
        match &mut self.work {
            Work::Pattern(left) => {
                if *left == Some(0) {
                    return Next::Done;
                }
                let (mut unit, mut write) = self.pattern.next();
                if self.workload.verify {
                    let mut tries = 0;
                    while self
                        .generations
                        .get(to_usize(unit))
                        .is_none_or(|state| state & BUSY != 0)
                    {
                        tries += 1;
                        if tries == TRIES {
                            return Next::Later;
                        }
                        (unit, write) = self.pattern.next();
                    }
                }
                if let Some(left) = left {
                    *left -= 1;
                }
                Next::Io(unit, write)
            }
            Work::ReadBack(next) => {
                let written = self
                    .generations
                    .iter()
                    .skip(*next)
                    .position(|state| *state & !BUSY != 0);
                match written {
                    Some(ahead) => {
                        let unit = *next + ahead;
                        *next = unit + 1;
                        Next::Io(unit as u64, false)
                    }
                    None => Next::Done,
                }
            }
            Work::Done => Next::Done,
        }
    }

    #[inline]
    fn submit(&mut self, slot: Slot, unit: u64, write: bool) -> Result<(), BenchError> {
        let (nsid, blocks) = (self.workload.range.nsid, self.workload.blocks_per_io);
        let lba = self.share.first + unit * u64::from(blocks);
        if self.workload.verify {
            self.stamp(unit, lba, write)?;
        }
        let (command, data) = if write {
            let command = Command::write(nsid, lba, blocks);
            (
                if self.workload.fua {
                    command.with_fua()
                } else {
                    command
                },
                self.write_data.pop(),
            )
        } else {
            (Command::read(nsid, lba, blocks), self.read_data.pop())
        };
        let index = slot.index();
        let id = self.queue.submit(slot, command, data.unwrap_or_default());
        if let Some(operation) = self.operations.get_mut(index) {
            *operation = Operation {
                id: Some(id),
                write,
                counted: self.recording || matches!(self.workload.limit, Limit::Time(_)),
                unit,
                started: self.now,
            };
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Marks the unit, and stamps the buffer that a write is going to use.
    fn stamp(&mut self, unit: u64, lba: u64, write: bool) -> Result<(), BenchError> {
        let Some(state) = self.generations.get_mut(to_usize(unit)) else {
            return Ok(());
        };
        if !write {
            *state |= BUSY;
            return Ok(());
        }
        // 2^31 - 1 writes of one unit are followed by generation 1 again: 0 means never written.
        let generation = (*state % (BUSY - 1)) + 1;
        *state = generation | BUSY;
        let block = to_usize(u64::from(self.workload.range.block_size));
        for (number, block) in (0..).zip(self.scratch.chunks_exact_mut(block)) {
            let stamp = Stamp {
                lba: lba + number,
                seed: self.workload.seed,
                run: self.shared.run,
                generation,
            };
            stamp.fill(block);
        }
        match self.write_data.last() {
            Some(data) => Ok(data.write(0, &self.scratch)?),
            None => Ok(()),
        }
    }

    /// Counts everything that the last poll found, and takes the memory back.
    fn settle(&mut self) -> Result<(), BenchError> {
        let mut completed = mem::take(&mut self.completed);
        let io_bytes = self.workload.io_bytes();
        let queue_depth = self.queue.depth();
        for Completed { id, completion, data } in completed.drain(..) {
            let operation = match self.operations.get_mut(id.slot_index(queue_depth)) {
                Some(slot) if slot.id == Some(id) => mem::replace(slot, NO_OPERATION),
                _ => return Err(BenchError::Stray(id)),
            };
            self.in_flight -= 1;
            let Operation {
                write,
                unit,
                started,
                counted,
                ..
            } = operation;
            if !completion.is_success() {
                return Err(BenchError::Command {
                    write,
                    lba: self.share.first + unit * u64::from(self.workload.blocks_per_io),
                    blocks: self.workload.blocks_per_io,
                    status: completion.status,
                });
            }
            if self.workload.verify {
                self.verify(unit, write, &data)?;
            }
            let (tally, pool) = if write {
                (&mut self.recent_writes, &mut self.write_data)
            } else {
                (&mut self.recent_reads, &mut self.read_data)
            };
            pool.push(data);
            if self.recording && counted {
                tally.ios += 1;
                tally.bytes += io_bytes;
                tally.latency.record(self.now - started);
            }
            let total = if write {
                &self.lane.writes
            } else {
                &self.lane.reads
            };
            // Only this thread writes it, so no read-modify-write instruction is needed.
            total.store(total.load(Relaxed) + 1, Relaxed);
        }
        self.completed = completed;
        Ok(())
    }

    /// Frees the unit, and checks what was read from it.
    fn verify(&mut self, unit: u64, write: bool, data: &Data) -> Result<(), BenchError> {
        let Some(state) = self.generations.get_mut(to_usize(unit)) else {
            return Ok(());
        };
        *state &= !BUSY;
        let generation = *state;
        if write {
            return Ok(());
        }
        let blocks = self.workload.blocks_per_io;
        if generation == 0 && self.workload.writes() {
            self.report.blocks_unchecked += u64::from(blocks);
            return Ok(());
        }
        data.read(0, &mut self.scratch)?;
        let first = self.share.first + unit * u64::from(blocks);
        let seed = self.workload.seed;
        let block = to_usize(u64::from(self.workload.range.block_size));
        for (lba, block) in (first..).zip(self.scratch.chunks_exact(block)) {
            let expected = if generation == 0 {
                Expected::AnyRun { lba, seed }
            } else {
                Expected::Exactly(Stamp {
                    lba,
                    seed,
                    run: self.shared.run,
                    generation,
                })
            };
            check(block, expected)?;
        }
        self.report.blocks_verified += u64::from(blocks);
        Ok(())
    }

    /// After a poll that found nothing: polls on for a while, then sleeps until there may be something.
    fn idle(&mut self) -> Result<(), BenchError> {
        self.empty_polls = self.empty_polls.wrapping_add(1);
        if !self.workload.spin.is_zero() {
            if !self.empty_polls.is_multiple_of(POLLS_PER_LOOK) {
                for _ in 0..PAUSES {
                    std::hint::spin_loop();
                }
                return Ok(());
            }
            self.look();
            if self.now.saturating_sub(self.progress) < nanoseconds(self.workload.spin) {
                // Where there are fewer cores than busy threads, what is waited for may need this one.
                thread::yield_now();
                return Ok(());
            }
        }
        let mut limit = self
            .queue
            .wait_limit()
            .map_or(LONGEST_SLEEP, |limit| limit.min(LONGEST_SLEEP));
        if let Some((_, due)) = self.pace
            && self.in_flight < self.depth
        {
            limit = limit.min(Duration::from_nanos((due / 1000).saturating_sub(self.now)));
        }
        match self.queue.wait_descriptor() {
            // Completions are found by polling only: let others run.
            None => thread::yield_now(),
            Some(descriptor) => {
                wait(descriptor, limit)?;
                self.sleeps += 1;
            }
        }
        Ok(())
    }

    /// With nothing in flight: waits until the rate allows the next I/O.
    fn pause(&mut self) {
        self.look();
        if let Some((_, due)) = self.pace {
            let left = (due / 1000).saturating_sub(self.now);
            if left > SLEEP_SLACK {
                thread::sleep(Duration::from_nanos(left - SLEEP_SLACK).min(LONGEST_SLEEP));
                self.sleeps += 1;
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// One region for all of a thread's operations in one direction, so that there is one thing to register.
fn buffers(io_bytes: usize, depth: u16) -> Result<Vec<Data>, BenchError> {
    let region = Region::allocate(io_bytes * usize::from(depth), 4096)?;
    let mut buffers = Vec::with_capacity(usize::from(depth));
    for number in (0..usize::from(depth)).rev() {
        buffers.push(Data::One(
            region.segment(number * io_bytes..(number + 1) * io_bytes)?,
        ));
    }
    Ok(buffers)
}

/// Fills what is to be written with bytes that neither compress nor deduplicate.
fn scramble(buffers: &[Data], seed: u64, job: usize) -> Result<(), BenchError> {
    let mut random = super::pattern::Random::new(seed ^ 0x5eed, job as u64);
    let mut chunk = [0; 512];
    for data in buffers {
        let mut at = 0;
        while at < data.len() {
            for bytes in chunk.chunks_exact_mut(8) {
                bytes.copy_from_slice(&random.next().to_le_bytes());
            }
            let part = chunk.get(..(data.len() - at).min(chunk.len())).unwrap_or(&chunk);
            data.write(at, part)?;
            at += part.len();
        }
    }
    Ok(())
}

fn wait(descriptor: BorrowedFd<'_>, limit: Duration) -> Result<(), BenchError> {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
    match ppoll(&mut descriptors, Some(TimeSpec::from_duration(limit)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(BenchError::Wait(error)),
    }
}

fn lost(lost: QueueLost) -> BenchError {
    BenchError::Lost(lost.into_parts().0)
}

/// Whole nanoseconds; 584 years at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A size that was checked against the memory limits before, so it fits.
fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
