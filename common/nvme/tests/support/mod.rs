//! A controller of the model with a clock of virtual time, and what tests do with queues all the time.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part of this"
)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use homi_nvme::{Clock, Controller, IoQueue, Options, QueueOptions};
use homi_queue::{Command, CommandId, Completed, Data, Queue, QueueLost, Region};
use homi_soft_controller::{Misuse, MisuseKind, SoftConfig, SoftController};

/// Steps of the model per pause: what happens meanwhile.
const STEPS: u32 = 4;

/// Time that passes only when somebody waits; the model works meanwhile.
#[derive(Debug)]
pub(crate) struct SoftClock {
    model: SoftController,
    nanos: AtomicU64,
}

impl SoftClock {
    pub(crate) fn new(model: &SoftController) -> Arc<Self> {
        Arc::new(Self {
            model: model.clone(),
            nanos: AtomicU64::new(1),
        })
    }

    pub(crate) fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap();
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for SoftClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn pause(&self, at_most: Duration, _: &[BorrowedFd<'_>]) {
        for _ in 0..STEPS {
            if !self.model.step() {
                break;
            }
        }
        self.advance(at_most);
    }
}

/// A model, its clock and the driver on it.
pub(crate) struct Rig {
    pub(crate) model: SoftController,
    pub(crate) clock: Arc<SoftClock>,
    pub(crate) controller: Controller,
}

impl Rig {
    pub(crate) fn new(config: SoftConfig) -> Self {
        Self::with(config, options())
    }

    pub(crate) fn with(config: SoftConfig, options: Options) -> Self {
        let model = SoftController::new(config).unwrap();
        let clock = SoftClock::new(&model);
        let controller = Controller::open(model.physical(), clock.clone(), options).unwrap();
        Self {
            model,
            clock,
            controller,
        }
    }

    pub(crate) fn queue(&self, depth: u16) -> IoQueue {
        self.controller.open_queue(QueueOptions::new(depth)).unwrap()
    }

    /// Runs one command to its end.
    pub(crate) fn run(&self, queue: &mut IoQueue, command: Command, data: Data) -> Completed {
        let slot = queue.reserve().unwrap();
        let id = queue.submit(slot, command, data);
        queue.commit().unwrap();
        let mut done = self.finish(queue, 1).unwrap();
        let done = done.pop().unwrap();
        assert_eq!(done.id, id);
        done
    }

    /// Works until so many commands completed.
    pub(crate) fn finish(&self, queue: &mut IoQueue, count: usize) -> Result<Vec<Completed>, QueueLost> {
        let mut done = Vec::new();
        for _ in 0..100_000 {
            queue.poll(&mut done)?;
            if done.len() >= count {
                return Ok(done);
            }
            self.model.step();
        }
        panic!("{} of {count} commands completed", done.len());
    }

    /// Works and lets time pass until the queue is lost.
    pub(crate) fn until_lost(&self, queue: &mut IoQueue, done: &mut Vec<Completed>) -> QueueLost {
        for _ in 0..100_000 {
            if let Err(lost) = queue.poll(done) {
                return lost;
            }
            self.clock.pause(Duration::from_millis(1), &[]);
            self.controller.service();
        }
        panic!("the queue was not lost: {:?}", self.controller.state());
    }

    /// Drops the driver and checks that nothing is left of it.
    pub(crate) fn close(self) -> SoftController {
        let Self {
            model, controller, ..
        } = self;
        drop(controller);
        check_left(&model, false);
        model
    }
}

/// Checks that a driver that is gone left nothing and did nothing wrong. With `cut`, the controller could not be stopped but by taking bus
/// mastering from it: it still believes that it has queues then.
pub(crate) fn check_left(model: &SoftController, cut: bool) {
    let space = model.space(0).unwrap();
    assert_eq!(model.misuse(), []);
    assert_eq!(space.faults(), [], "accesses that did not reach memory");
    if !cut {
        assert_eq!(space.early_unmaps(), []);
        assert_eq!(model.io_queues(0), (0, 0));
    }
    assert_eq!(space.mappings(), 0, "mappings are left");
    let usage = space.dma().usage();
    assert_eq!((usage.mapped, usage.stuck), (usage.unmapped, 0), "{usage:?}");
}

/// The same where queues and resets have threads of their own. A thread that saw its queue run may ring a doorbell while the controller is
/// being stopped, which nobody waits for: that is the one thing that it may do wrong.
pub(crate) fn check_left_by_threads(model: &SoftController) {
    let late = |misuse: &Misuse| matches!(misuse.kind, MisuseKind::NoSuchQueue { .. });
    let misuse = model.misuse();
    assert!(misuse.iter().all(late), "{misuse:?}");
    model.forgive();
    check_left(model, false);
}

/// Time-outs that virtual time reaches soon.
pub(crate) fn options() -> Options {
    Options::new()
        .admin_timeout(Duration::from_millis(500))
        .command_timeout(Some(Duration::from_millis(100)), Duration::from_millis(50))
        .shutdown_timeout(Duration::from_millis(200))
}

/// Bytes that say where they belong.
pub(crate) fn pattern(lba: u64, generation: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (n, word) in words.iter_mut().enumerate() {
        let at = lba * 512 + n as u64 * 8;
        *word = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.rotate_left(32)).to_le_bytes();
    }
    bytes
}

pub(crate) fn region(bytes: &[u8]) -> Region {
    let region = Region::allocate(bytes.len(), 4096).unwrap();
    region.write(0, bytes).unwrap();
    region
}

pub(crate) fn bytes(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}

/// A small generator, so that a seed says everything.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Submits without committing.
pub(crate) fn submit(queue: &mut IoQueue, command: Command, data: Data) -> CommandId {
    let slot = queue.reserve().unwrap();
    queue.submit(slot, command, data)
}
