//! The engine on a queue in memory that can be told to misbehave.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homi_queue::{
    Command, CommandId, Completed, Completion, Data, DataDirection, LostReason, Queue, QueueFull, QueueLost,
    Region, Slot, Slots, Wait,
};
use homi_spec::Status;

use super::verify::Found;
use super::*;

const BLOCK: usize = 512;

/// What a memory queue does wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The n-th read has a flipped bit.
    FlipRead(u64),
    /// The n-th write says that it succeeded but does nothing.
    LoseWrite(u64),
    /// The n-th command fails.
    Fail(u64),
    /// The n-th command completes twice.
    Double(u64),
    /// The n-th command is never answered; the queue is lost instead.
    Die(u64),
}

/// The blocks that several queues share, with what was done to them.
#[derive(Debug)]
struct Memory {
    region: Region,
    reads: AtomicU64,
    writes: AtomicU64,
    commits: AtomicU64,
    deepest: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
}

impl Memory {
    fn new(blocks: usize) -> Arc<Self> {
        Arc::new(Self {
            region: Region::allocate(blocks * BLOCK, 4096).unwrap(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            deepest: AtomicU64::new(0),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
        })
    }

    fn range(&self) -> Range {
        Range {
            nsid: 1,
            block_size: 512,
            first: 0,
            blocks: (self.region.len() / BLOCK) as u64,
        }
    }
}

/// Executes commands in `poll`, one at a time and out of order.
#[derive(Debug)]
struct MemoryQueue {
    slots: Slots<(Command, Data)>,
    memory: Arc<Memory>,
    fault: Fault,
    waiting: Vec<CommandId>,
    seen: u64,
    doubled: Option<CommandId>,
}

impl MemoryQueue {
    fn new(memory: &Arc<Memory>, depth: u16, fault: Fault) -> Self {
        Self {
            slots: Slots::new(depth),
            memory: memory.clone(),
            fault,
            waiting: Vec::with_capacity(usize::from(depth)),
            seen: 0,
            doubled: None,
        }
    }

    fn execute(&mut self, command: Command, data: &Data) -> Completion {
        self.seen += 1;
        if self.fault == Fault::Fail(self.seen) {
            return Completion::failed(Status::LBA_OUT_OF_RANGE);
        }
        let at = usize::try_from(command.lba()).unwrap() * BLOCK;
        let len = command.blocks() as usize * BLOCK;
        assert_eq!(data.len(), len, "the data are as long as the command");
        self.memory.first.fetch_min(command.lba(), Relaxed);
        self.memory
            .last
            .fetch_max(command.lba() + u64::from(command.blocks()), Relaxed);
        let [segment] = data.segments() else {
            panic!("one segment")
        };
        if command.direction() == DataDirection::HostToController {
            let number = self.memory.writes.fetch_add(1, Relaxed) + 1;
            if self.fault != Fault::LoseWrite(number) {
                segment
                    .region()
                    .copy_to(segment.start(), &self.memory.region, at, len)
                    .unwrap();
            }
        } else {
            let number = self.memory.reads.fetch_add(1, Relaxed) + 1;
            self.memory
                .region
                .copy_to(at, segment.region(), segment.start(), len)
                .unwrap();
            if self.fault == Fault::FlipRead(number) {
                let mut byte = [0];
                data.read(len - 100, &mut byte).unwrap();
                data.write(len - 100, &[byte[0] ^ 4]).unwrap();
            }
        }
        Completion::SUCCESS
    }
}

impl Queue for MemoryQueue {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let id = self.slots.occupy(slot, (command, data));
        self.waiting.push(id);
        self.memory.deepest.fetch_max(self.waiting.len() as u64, Relaxed);
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        self.memory.commits.fetch_add(1, Relaxed);
        Ok(())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        if let Some(id) = self.doubled.take() {
            completed.extend(Some(Completed {
                id,
                completion: Completion::SUCCESS,
                data: Data::None,
            }));
            return Ok(1);
        }
        if self.waiting.is_empty() {
            return Ok(0);
        }
        let next = usize::try_from(self.seen * 7).unwrap() % self.waiting.len();
        let id = self.waiting.swap_remove(next);
        if self.fault == Fault::Die(self.seen + 1) {
            return Err(QueueLost::new(LostReason::Closed, Vec::new()));
        }
        let (command, data) = self.slots.take(id).unwrap();
        let completion = self.execute(command, &data);
        if self.fault == Fault::Double(self.seen) {
            self.doubled = Some(id);
        }
        completed.extend(Some(Completed { id, completion, data }));
        Ok(1)
    }
}

impl Wait for MemoryQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl BenchQueue for MemoryQueue {}

fn run_on(memory: &Arc<Memory>, workload: &Workload, fault: Fault) -> Result<Outcome, BenchError> {
    let open = |_| Ok::<_, Infallible>(MemoryQueue::new(memory, workload.depth, fault));
    run(workload, open, Hooks::default())
}

fn workload(memory: &Memory, ios: u64) -> Workload {
    let mut workload = Workload::new(memory.range());
    workload.limit = Limit::Ios(ios);
    workload.blocks_per_io = 2;
    workload.depth = 8;
    workload
}

#[test]
fn exactly_the_ios_asked_for_are_done_and_counted() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 1001);
    workload.jobs = 3;
    workload.read_percent = 70;
    let outcome = run_on(&memory, &workload, Fault::None).unwrap();
    assert_eq!(outcome.ios(), 1001);
    assert_eq!(outcome.bytes(), 1001 * 1024);
    assert_eq!(outcome.reads.ios, memory.reads.load(Relaxed));
    assert_eq!(outcome.writes.ios, memory.writes.load(Relaxed));
    assert_eq!(
        outcome.reads.latency.count() + outcome.writes.latency.count(),
        1001
    );
    assert!((600..800).contains(&outcome.reads.ios), "{}", outcome.reads.ios);
    assert_eq!(memory.deepest.load(Relaxed), 8);
    assert!(outcome.elapsed > Duration::ZERO && outcome.iops() > 0.0);
    assert_eq!((memory.first.load(Relaxed), memory.last.load(Relaxed)), (0, 100));
}

#[test]
fn warm_up_is_not_counted() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 50);
    workload.warmup = Duration::from_millis(20);
    let outcome = run_on(&memory, &workload, Fault::None).unwrap();
    assert_eq!(outcome.reads.ios, 50);
    assert!(memory.reads.load(Relaxed) > 50);
}

#[test]
fn a_time_limit_ends_the_run_and_samples_are_taken() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 1);
    workload.limit = Limit::Time(Duration::from_millis(120));
    workload.interval = Some(Duration::from_millis(20));
    let mut seen = 0;
    let open = |_| Ok::<_, Infallible>(MemoryQueue::new(&memory, 8, Fault::None));
    let mut observe = |interval: &Interval<'_>| {
        assert_eq!(interval.phase, Phase::Measure);
        assert_eq!(interval.latency.count() > 0, interval.sample.max > 0);
        seen += interval.sample.reads;
        ControlFlow::Continue(())
    };
    let outcome = run(
        &workload,
        open,
        Hooks {
            allocations: None,
            observe: Some(&mut observe),
        },
    )
    .unwrap();
    assert!(
        outcome.elapsed >= Duration::from_millis(100),
        "{:?}",
        outcome.elapsed
    );
    assert!(outcome.series.len() >= 2, "{}", outcome.series.len());
    assert_eq!(
        seen,
        outcome.series.iter().map(|sample| sample.reads).sum::<u64>()
    );
    assert!(seen <= outcome.reads.ios);
    assert_eq!(outcome.reads.latency.count(), outcome.reads.ios);
}

#[test]
fn the_rate_is_not_exceeded() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 50);
    workload.rate = Some(500);
    workload.jobs = 2;
    let outcome = run_on(&memory, &workload, Fault::None).unwrap();
    assert_eq!(outcome.reads.ios, 50);
    // 25 I/Os each, 4 ms apart, the first at once.
    assert!(
        outcome.elapsed >= Duration::from_millis(94),
        "{:?}",
        outcome.elapsed
    );
}

#[test]
fn batches_are_committed_once() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 800);
    workload.batch = 8;
    run_on(&memory, &workload, Fault::None).unwrap();
    assert_eq!(memory.commits.load(Relaxed), 100);
}

#[test]
fn written_blocks_are_verified_while_running_and_read_back() {
    for (order, percent) in [(Order::Random, 60), (Order::Sequential, 30), (Order::Random, 0)] {
        // Few units, so that reads and writes meet all the time.
        let memory = Memory::new(40);
        let mut workload = workload(&memory, 3000);
        workload.verify = true;
        workload.order = order;
        workload.read_percent = percent;
        workload.jobs = 2;
        let outcome = run_on(&memory, &workload, Fault::None).unwrap();
        assert_eq!(outcome.ios(), 3000);
        // All 40 blocks at the end, and most reads before.
        assert!(
            outcome.blocks_verified >= outcome.reads.ios,
            "{}",
            outcome.blocks_verified
        );
        assert_eq!(
            outcome.blocks_verified + outcome.blocks_unchecked,
            memory.reads.load(Relaxed) * 2
        );
        assert_eq!(memory.reads.load(Relaxed), outcome.reads.ios + 20);
    }
}

#[test]
fn stamps_of_an_earlier_run_are_verified_by_reads_alone() {
    let memory = Memory::new(40);
    let mut workload = workload(&memory, 20);
    workload.verify = true;
    workload.order = Order::Sequential;
    workload.read_percent = 100;
    let error = run_on(&memory, &workload, Fault::None).unwrap_err();
    assert!(
        matches!(&error, BenchError::Mismatch(mismatch) if mismatch.found == Found::Zeroes),
        "{error}"
    );

    workload.read_percent = 0;
    run_on(&memory, &workload, Fault::None).unwrap();
    workload.read_percent = 100;
    let outcome = run_on(&memory, &workload, Fault::None).unwrap();
    assert_eq!(outcome.blocks_verified, 40);

    memory.region.fill(17 * BLOCK + 300, 1, 0xee).unwrap();
    let error = run_on(&memory, &workload, Fault::None).unwrap_err();
    assert!(error.to_string().starts_with("wrong data at LBA 17: "), "{error}");
    workload.seed = 2;
    let error = run_on(&memory, &workload, Fault::None).unwrap_err();
    assert!(error.to_string().contains("with seed 2; found LBA"), "{error}");
}

#[test]
fn a_flipped_bit_is_found() {
    let memory = Memory::new(40);
    let mut workload = workload(&memory, 500);
    workload.verify = true;
    workload.read_percent = 50;
    let error = run_on(&memory, &workload, Fault::FlipRead(200)).unwrap_err();
    assert!(
        matches!(&error, BenchError::Mismatch(mismatch) if matches!(mismatch.found, Found::Damaged { .. }))
    );
}

#[test]
fn a_lost_write_is_found_even_if_it_is_the_last() {
    for number in [1, 20, 40] {
        let memory = Memory::new(80);
        let mut workload = workload(&memory, 40);
        workload.verify = true;
        workload.read_percent = 0;
        workload.order = Order::Sequential;
        let error = run_on(&memory, &workload, Fault::LoseWrite(number)).unwrap_err();
        assert!(
            matches!(&error, BenchError::Mismatch(mismatch) if mismatch.found == Found::Zeroes),
            "{error}"
        );
    }
}

#[test]
fn failures_end_the_run_and_are_named() {
    let memory = Memory::new(40);
    let mut workload = workload(&memory, 1000);
    workload.jobs = 2;
    let error = run_on(&memory, &workload, Fault::Fail(10)).unwrap_err();
    assert!(
        error.to_string().starts_with("the read of 2 blocks from lba "),
        "{error}"
    );
    let error = run_on(&memory, &workload, Fault::Double(10)).unwrap_err();
    assert!(matches!(error, BenchError::Stray(_)), "{error}");
    let error = run_on(&memory, &workload, Fault::Die(10)).unwrap_err();
    assert!(matches!(error, BenchError::Lost(LostReason::Closed)), "{error}");
    // Also without an I/O limit, by which the other threads would end by themselves.
    workload.limit = Limit::Time(Duration::from_secs(3600));
    let error = run_on(&memory, &workload, Fault::Fail(1000)).unwrap_err();
    assert!(matches!(error, BenchError::Command { .. }), "{error}");
}

#[test]
fn a_queue_that_cannot_be_opened_ends_the_run() {
    let memory = Memory::new(40);
    let mut workload = workload(&memory, 1000);
    workload.jobs = 4;
    let failed = Mutex::new(false);
    let open = |job| {
        if job == 2 {
            *failed.lock().unwrap() = true;
            return Err(std::io::Error::other("no such queue"));
        }
        Ok(MemoryQueue::new(&memory, 8, Fault::None))
    };
    let error = run(&workload, open, Hooks::default()).unwrap_err();
    assert_eq!(error.to_string(), "no such queue");
    assert!(*failed.lock().unwrap());
    assert_eq!(memory.reads.load(Relaxed), 0);
}

#[test]
fn the_same_seed_does_the_same() {
    let contents = |seed| {
        let memory = Memory::new(400);
        let mut workload = workload(&memory, 100);
        workload.read_percent = 50;
        workload.seed = seed;
        let outcome = run_on(&memory, &workload, Fault::None).unwrap();
        let mut bytes = vec![0; memory.region.len()];
        memory.region.read(0, &mut bytes).unwrap();
        (outcome.reads.ios, bytes)
    };
    assert_eq!(contents(7), contents(7));
    assert_ne!(contents(7).1, contents(8).1);
}

#[test]
fn an_observer_can_end_the_run_early() {
    let memory = Memory::new(100);
    let mut workload = workload(&memory, 1);
    workload.limit = Limit::Time(Duration::from_secs(3600));
    workload.interval = Some(Duration::from_millis(10));
    workload.verify = true;
    workload.read_percent = 0;
    let mut left = 3;
    let mut observe = |_: &Interval<'_>| {
        left -= 1;
        if left > 0 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let open = |_| Ok::<_, Infallible>(MemoryQueue::new(&memory, 8, Fault::None));
    let outcome = run(
        &workload,
        open,
        Hooks {
            allocations: None,
            observe: Some(&mut observe),
        },
    )
    .unwrap();
    assert!(outcome.stopped_early && outcome.writes.ios > 0);
    assert!(
        outcome.blocks_verified > 0,
        "what was written is verified all the same"
    );
}
