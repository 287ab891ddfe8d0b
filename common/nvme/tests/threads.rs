//! Races between those who use queues, those who look after the controller and those who reset it, each on a thread of its own; and what
//! happens when nothing keeps a controller from memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests fail by panics"
)]

mod support;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use homi_nvme::{Controller, Interrupts, IoQueue, NvmeError, Options, QueueOptions, State, SystemClock};
use homi_pci::{BarMemory, DmaSpace, PciError, PciFunction, PciIdentity, Registers, Unsupported, Vector};
use homi_queue::{Command, CommandId, Data, Queue, QueueLost, Region, Wait};
use homi_soft_controller::{Fault, FaultRule, SoftConfig, SoftController, Trigger};
use support::{Random, SoftClock, options, submit};

/// How long a test may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
const RESETS: u32 = 40;
const SENTINEL: u8 = 0xa5;

/// One issuer: opens queues, uses them until they are lost or it has enough of them, and counts outcomes.
struct Issuer<'a> {
    controller: &'a Controller,
    random: Random,
    end: &'a AtomicBool,
    started: Instant,
    submitted: u64,
    completed: u64,
    undelivered: u64,
    dropped: u64,
    lost: u64,
    /// Memory that came back without an outcome.
    returned: Vec<Data>,
}

impl Issuer<'_> {
    fn run(mut self) -> Self {
        while !self.end.load(Ordering::Relaxed) {
            assert!(
                self.started.elapsed() < PATIENCE,
                "{:?}",
                self.controller.try_state()
            );
            let interrupts = if self.random.chance(50) {
                Interrupts::On
            } else {
                Interrupts::Off
            };
            let options = QueueOptions::new(8).interrupts(interrupts);
            // It fails when the controller is reset meanwhile.
            let Ok(mut queue) = self.controller.open_queue(options) else {
                std::thread::yield_now();
                continue;
            };
            let rounds = 1 + self.random.below(400);
            if let Err(lost) = self.use_queue(&mut queue, rounds) {
                self.take(lost);
                self.lost += 1;
            }
        }
        self
    }

    fn use_queue(&mut self, queue: &mut IoQueue, rounds: u64) -> Result<(), QueueLost> {
        let mut live: Vec<CommandId> = Vec::new();
        let mut done = Vec::new();
        let result: Result<(), QueueLost> = (|| {
            for _ in 0..rounds {
                assert!(self.started.elapsed() < PATIENCE);
                for _ in 0..1 + self.random.below(8) {
                    let Ok(slot) = queue.reserve() else { break };
                    let memory = Region::allocate(4096, 4096).unwrap();
                    memory.fill(0, 4096, SENTINEL).unwrap();
                    let command = if self.random.chance(30) {
                        Command::write(1, self.random.below(1000), 8)
                    } else {
                        Command::read(1, self.random.below(1000), 8)
                    };
                    let id = queue.submit(slot, command, Data::whole(memory));
                    assert!(!live.contains(&id), "{id} is in flight twice");
                    live.push(id);
                    self.submitted += 1;
                }
                queue.commit()?;
                if queue.poll(&mut done)? == 0
                    && let Some(descriptor) = queue.wait_descriptor()
                {
                    use homi_nvme::Clock;
                    SystemClock::new().pause(Duration::from_millis(1), &[descriptor]);
                }
                for done in done.drain(..) {
                    let at = live.iter().position(|id| *id == done.id);
                    live.swap_remove(at.expect("what completes was in flight"));
                    assert!(done.completion.is_success(), "{:?}", done.completion);
                    self.completed += 1;
                }
            }
            Ok(())
        })();
        match &result {
            // Dropped with what is in flight.
            Ok(()) => self.dropped += live.len() as u64,
            Err(lost) => {
                // What a poll collected before it failed counts.
                for done in done.drain(..) {
                    live.retain(|id| *id != done.id);
                    self.completed += 1;
                }
                for undelivered in lost.undelivered() {
                    let at = live.iter().position(|id| *id == undelivered.id);
                    live.swap_remove(at.expect("what is handed back was in flight"));
                }
                assert!(live.is_empty(), "{} commands have no outcome", live.len());
            }
        }
        result
    }

    fn take(&mut self, lost: QueueLost) {
        let (_, undelivered) = lost.into_parts();
        for undelivered in undelivered {
            undelivered.data.write(0, &[SENTINEL; 4096]).unwrap();
            self.returned.push(undelivered.data);
            self.undelivered += 1;
        }
    }
}

#[test]
fn queues_of_two_threads_are_used_and_dropped_while_a_third_resets() {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let runner = model.spawn().unwrap();
    let controller =
        Controller::open(model.physical(), Arc::new(SystemClock::new()), Options::new()).unwrap();
    let watch = controller.watch().unwrap();
    let end = AtomicBool::new(false);
    let started = Instant::now();
    let issuers: Vec<Issuer<'_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|seed| {
                let issuer = Issuer {
                    controller: &controller,
                    random: Random::new(seed),
                    end: &end,
                    started,
                    submitted: 0,
                    completed: 0,
                    undelivered: 0,
                    dropped: 0,
                    lost: 0,
                    returned: Vec::new(),
                };
                scope.spawn(|| issuer.run())
            })
            .collect();
        let mut random = Random::new(99);
        for _ in 0..RESETS {
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            if random.chance(20) {
                // The watcher finds out by itself.
                model.fail(0);
            } else {
                controller.reset().unwrap();
            }
        }
        end.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for issuer in &issuers {
        assert_eq!(
            issuer.submitted,
            issuer.completed + issuer.undelivered + issuer.dropped,
            "each command has one outcome"
        );
        assert!(issuer.completed > 0 && issuer.lost > 0, "nothing raced");
    }
    let returned: Vec<Data> = issuers.into_iter().flat_map(|issuer| issuer.returned).collect();
    assert!(controller.resets() > u64::from(RESETS) / 2);
    drop((watch, controller));
    drop(runner);
    for data in returned {
        assert_eq!(
            support::bytes(&data),
            [SENTINEL; 4096],
            "written after it came back"
        );
    }
    support::check_left_by_threads(&model);
}

#[test]
fn a_queue_is_dropped_while_the_controller_goes() {
    for round in 0..20 {
        let model = SoftController::new(SoftConfig::default()).unwrap();
        let runner = model.spawn().unwrap();
        let controller =
            Controller::open(model.physical(), Arc::new(SystemClock::new()), Options::new()).unwrap();
        let watch = controller.watch().unwrap();
        let mut queue = controller.open_queue(QueueOptions::new(8)).unwrap();
        let memory = Region::allocate(4096, 4096).unwrap();
        submit(&mut queue, Command::read(1, 0, 8), Data::whole(memory));
        queue.commit().unwrap();
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round * 20));
                if round % 2 == 0 {
                    model.remove(0);
                } else {
                    controller.shutdown();
                }
            });
            scope.spawn(|| drop(queue));
        });
        assert!(started.elapsed() < PATIENCE);
        drop((watch, controller));
        drop(runner);
        assert_eq!(model.space(0).unwrap().mappings(), 0, "round {round}");
        assert_eq!(model.space(0).unwrap().faults(), []);
    }
}

/// A function that nothing keeps from memory once `stubborn` is set.
#[derive(Debug)]
struct Stubborn {
    below: Arc<dyn PciFunction>,
    stubborn: AtomicBool,
    refused: AtomicU64,
}

impl Stubborn {
    fn allowed(&self, what: &'static str) -> Result<(), PciError> {
        if !self.stubborn.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Unsupported {
            what,
            missing: "a device that listens".to_owned(),
        }
        .into())
    }
}

impl PciFunction for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }
    fn identity(&self) -> PciIdentity {
        self.below.identity()
    }
    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError> {
        self.below.registers(bar)
    }
    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError> {
        self.below.bar_memory(bar, offset, len)
    }
    fn export_bar(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, PciError> {
        self.below.export_bar(bar, offset, len)
    }
    fn dma(&self) -> &DmaSpace {
        self.below.dma()
    }
    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        self.allowed("the end of bus mastering")?;
        self.below.set_bus_master(enabled)
    }
    fn vectors(&self) -> u16 {
        self.below.vectors()
    }
    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError> {
        self.below.enable_vectors(count)
    }
    fn reset(&self) -> Result<(), PciError> {
        self.allowed("a function-level reset")?;
        self.below.reset()
    }
    fn removal(&self) -> Option<BorrowedFd<'_>> {
        self.below.removal()
    }
}

#[test]
fn memory_that_a_controller_cannot_be_kept_from_is_kept_for_ever() {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let clock = SoftClock::new(&model);
    let function = Arc::new(Stubborn {
        below: model.physical(),
        stubborn: AtomicBool::new(false),
        refused: AtomicU64::new(0),
    });
    let controller = Controller::open(function.clone(), clock, options()).unwrap();
    let mut queue = controller.open_queue(QueueOptions::new(4)).unwrap();
    let mut other = controller.open_queue(QueueOptions::new(4)).unwrap();
    let own = |len: usize| Region::allocate(len, 4096).unwrap();
    // Plain, split in ranges, where the queue likes, and copied; the second queue is dropped without being asked again.
    let (plain, list, dropped) = (own(4096), [own(512), own(4096)], own(4096));
    submit(&mut queue, Command::read(1, 0, 8), Data::whole(plain.clone()));
    let ranges = list.iter().map(|region| region.segment(0..region.len()).unwrap());
    submit(&mut queue, Command::read(1, 8, 9), Data::List(ranges.collect()));
    submit(&mut queue, Command::read(1, 0, 8), Data::Anywhere { len: 4096 });
    queue.commit().unwrap();
    submit(&mut other, Command::read(1, 0, 8), Data::whole(dropped.clone()));
    other.commit().unwrap();
    let mapped = model.space(0).unwrap().mappings();
    model.add_fault(FaultRule::on(Trigger::Disable, Fault::Ignore));
    function.stubborn.store(true, Ordering::Relaxed);
    assert!(matches!(controller.reset(), Err(NvmeError::Failed { .. })));
    assert!(function.refused.load(Ordering::Relaxed) >= 2);
    assert!(matches!(controller.state(), State::Failed(_)));

    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered().len(), 3);
    assert!(
        lost.undelivered().iter().all(|command| command.data.is_empty()),
        "what the controller may write is handed back to nobody"
    );
    drop((lost, queue, other, controller));
    for region in [&plain, &list[0], &list[1], &dropped] {
        assert!(!region.is_unique(), "the memory would be used again");
    }
    let space = model.space(0).unwrap();
    assert!(space.mappings() >= mapped, "{} of {mapped}", space.mappings());
    assert_eq!(space.early_unmaps(), []);
    // It goes on as if nothing had happened, and finds everything in its place.
    model.run_until_idle();
    assert_eq!(space.faults(), []);
}
