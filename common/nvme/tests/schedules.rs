//! Random schedules of resets, removals, failures, time-outs and controllers that answer nonsense, each with verified content.
//!
//! A schedule is drawn from its seed alone. It checks that every command has exactly one outcome, that reads return what was written, that
//! memory which was handed back is not written any more, and that nothing is left in the end: no queue, no mapping, no access that missed.
//!
//! `HOMI_SCHEDULES` says how many are run (10 000 by default), `HOMI_SCHEDULE_SEED` runs one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "tests fail by panics, and draw small numbers from large ones"
)]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use homi_nvme::{Clock, Interrupts, IoQueue, Mapped, QueueOptions, SglUse, State};
use homi_queue::{Command, CommandId, Completed, Data, Queue, QueueLost, Region, Slot};
use homi_soft_controller::{
    CommandMatch, Deletion, Fault, FaultRule, NamespaceConfig, SglSupport, SoftConfig, Trigger,
};
use homi_spec::event::AsyncEvent;
use homi_spec::identify::{Identify, IdentifyController};
use homi_spec::status::Status;
use support::{Random, Rig, bytes, check_left, options, pattern, region};

/// Bytes of a cell: what the content is checked by.
const CELL: usize = 4096;
const BLOCKS: u32 = 8;
const CELLS: usize = 32;
/// What returned memory is filled with.
const SENTINEL: u8 = 0xa5;

/// What a cell may hold, by generation; 0 is what it had from the start.
#[derive(Clone)]
struct Cell {
    possible: Vec<u64>,
    busy: bool,
}

struct Outstanding {
    write: bool,
    first: usize,
    count: usize,
    generation: u64,
}

struct Lane {
    queue: IoQueue,
    outstanding: BTreeMap<CommandId, Outstanding>,
    held: Vec<Slot>,
}

struct World {
    rig: Rig,
    random: Random,
    lanes: Vec<Lane>,
    cells: Vec<Cell>,
    generation: u64,
    pool: Vec<Region>,
    pinned: Vec<Mapped>,
    /// Memory that was handed back without an outcome, filled with the sentinel.
    returned: Vec<Data>,
    outcomes: u64,
    submitted: u64,
    /// The controller may be impossible to stop.
    stubborn: bool,
}

fn content(cell: usize, generation: u64) -> Vec<u8> {
    if generation == 0 {
        return vec![0; CELL];
    }
    pattern(cell as u64 * u64::from(BLOCKS), generation, CELL)
}

fn random_fault(random: &mut Random) -> Fault {
    match random.below(16) {
        0 | 1 => Fault::Lose,
        2 => Fault::Ignore,
        3 => Fault::Late(1 + random.below(60) as u32),
        4 => Fault::Slow(1 + random.below(60) as u32),
        5 => Fault::Duplicate(random.below(20) as u32),
        6 => Fault::WrongPhase,
        7 => Fault::WrongCid(random.next() as u16),
        8 => Fault::WrongSqHead(random.next() as u16),
        9 => Fault::WrongSqId(random.below(4) as u16),
        10 => Fault::Refuse(Status::INTERNAL_ERROR),
        11 => Fault::NoInterrupt,
        12 => Fault::Fatal,
        13 => Fault::Remove,
        14 => Fault::SubsystemReset,
        _ => Fault::Unsolicited {
            queue: random.below(3) as u16,
            cid: random.next() as u16,
        },
    }
}

fn random_rule(random: &mut Random) -> FaultRule {
    let skip = random.below(30);
    match random.below(10) {
        0..=5 => FaultRule::nth(CommandMatch::io(), skip, random_fault(random)),
        6 => {
            // Whatever the admin queue carries, bring-up included.
            let matches = CommandMatch {
                queue: Some(0),
                ..CommandMatch::default()
            };
            FaultRule::nth(matches, skip, random_fault(random))
        }
        7 => {
            let fault = match random.below(3) {
                0 => Fault::Fatal,
                1 => Fault::SubsystemReset,
                _ => Fault::Event(AsyncEvent::NAMESPACE_ATTRIBUTE),
            };
            FaultRule::on(Trigger::Step(10 + random.below(400)), fault)
        }
        8 => {
            let fault = if random.chance(50) {
                Fault::Ignore
            } else {
                Fault::Slow(20)
            };
            let trigger = if random.chance(70) {
                Trigger::Disable
            } else {
                Trigger::Shutdown
            };
            FaultRule::on(trigger, fault)
        }
        _ => {
            let fault = match random.below(3) {
                0 => Fault::Slow(50),
                1 => Fault::Ignore,
                _ => Fault::Fatal,
            };
            FaultRule {
                // The first time is the opening.
                skip: 1,
                ..FaultRule::on(Trigger::Enable, fault)
            }
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let config = SoftConfig {
            namespaces: vec![NamespaceConfig::new(CELLS as u64 * u64::from(BLOCKS), 9)],
            mdts: [0, 1, 2, 7][random.below(4) as usize],
            sgl: [SglSupport::None, SglSupport::Bytes, SglSupport::Dwords][random.below(3) as usize],
            shuffle: random.chance(70).then(|| random.next()),
            deletion: if random.chance(50) {
                Deletion::Aborts
            } else {
                Deletion::Silent
            },
            doorbell_buffer: random.chance(40),
            function_reset: random.chance(80),
            ready_steps: random.below(4) as u32,
            disable_steps: random.below(6) as u32,
            fetches: 1 + random.below(16) as u32,
            burst: 1 + random.below(4) as u32,
            ..SoftConfig::default()
        };
        let options = options()
            .recover(random.chance(90))
            .sgls([SglUse::Never, SglUse::WhenNeeded, SglUse::WhereShorter][random.below(3) as usize])
            .kept_mappings(random.below(6) as usize, 1 << 20)
            .vectors(if random.chance(70) { 9 } else { 0 });
        let resets = config.function_reset;
        let rig = Rig::with(config, options);
        let mut stubborn = false;
        for _ in 0..random.below(4) {
            let rule = random_rule(&mut random);
            stubborn |= !resets && rule.trigger == Trigger::Disable && rule.fault == Fault::Ignore;
            rig.model.add_fault(rule);
        }
        Self {
            rig,
            random,
            lanes: Vec::new(),
            cells: vec![
                Cell {
                    possible: vec![0],
                    busy: false
                };
                CELLS
            ],
            generation: 0,
            pool: (0..4).map(|_| region(&[0; 4 * CELL])).collect(),
            pinned: Vec::new(),
            returned: Vec::new(),
            outcomes: 0,
            submitted: 0,
            stubborn,
        }
    }

    fn open(&mut self) {
        if self.lanes.len() >= 4 {
            return;
        }
        let depth = 1 + self.random.below(12) as u16;
        let interrupts = if self.random.chance(40) {
            Interrupts::On
        } else {
            Interrupts::Off
        };
        let options = QueueOptions::new(depth).interrupts(interrupts);
        // It fails when the controller does, or has no vectors: both are outcomes.
        if let Ok(queue) = self.rig.controller.open_queue(options) {
            self.lanes.push(Lane {
                queue,
                outstanding: BTreeMap::new(),
                held: Vec::new(),
            });
        }
    }

    /// Memory for a transfer, filled with `fill`.
    fn memory(&mut self, fill: &[u8], read: bool) -> Data {
        let len = fill.len();
        let data = match self.random.below(6) {
            0 if read => return Data::Anywhere { len },
            1 => {
                let offset = self.random.below(64) as usize;
                let region = Region::allocate(offset + len, 4096).unwrap();
                Data::One(region.segment(offset..offset + len).unwrap())
            }
            2 => {
                let cut = 1 + self.random.below(len as u64 - 1) as usize;
                let part = |len: usize| {
                    let region = Region::allocate(len, 4096).unwrap();
                    region.segment(0..len).unwrap()
                };
                Data::List(vec![part(cut), part(len - cut)])
            }
            3 => Data::whole(Region::allocate(len, 4096).unwrap()),
            _ => {
                // Memory that is used again and again, by one command at a time: kept mappings are what this is about.
                let pick = self.random.below(self.pool.len() as u64) as usize;
                if len <= self.pool[pick].len() {
                    let region = self.pool.swap_remove(pick);
                    self.pool.push(Region::allocate(4 * CELL, 4096).unwrap());
                    Data::One(region.segment(0..len).unwrap())
                } else {
                    Data::whole(Region::allocate(len, 4096).unwrap())
                }
            }
        };
        data.write(0, fill).unwrap();
        data
    }

    fn submit(&mut self, lane: usize) {
        let batch = 1 + self.random.below(6);
        for _ in 0..batch {
            let first = self.random.below(CELLS as u64) as usize;
            let most = if self.random.chance(20) { 12 } else { 2 };
            let count = (1 + self.random.below(most) as usize).min(CELLS - first);
            let write = self.random.chance(50);
            if self.cells[first..first + count].iter().any(|cell| cell.busy) {
                continue;
            }
            let slot = match self.lanes[lane].held.pop() {
                Some(slot) => slot,
                None => match self.lanes[lane].queue.reserve() {
                    Ok(slot) => slot,
                    Err(_) => return,
                },
            };
            if self.random.chance(5) {
                self.lanes[lane].held.push(slot);
                continue;
            }
            if self.random.chance(5) {
                self.lanes[lane].queue.release(slot);
                continue;
            }
            self.generation += 1;
            let generation = self.generation;
            let fill: Vec<u8> = if write {
                (first..first + count)
                    .map(|cell| content(cell, generation))
                    .collect::<Vec<_>>()
                    .concat()
            } else {
                vec![SENTINEL; count * CELL]
            };
            let data = self.memory(&fill, !write);
            let lba = first as u64 * u64::from(BLOCKS);
            let blocks = count as u32 * BLOCKS;
            let command = if write {
                Command::write(1, lba, blocks)
            } else {
                Command::read(1, lba, blocks)
            };
            let id = self.lanes[lane].queue.submit(slot, command, data);
            for cell in &mut self.cells[first..first + count] {
                cell.busy = true;
                if write {
                    cell.possible.push(generation);
                }
            }
            let before = self.lanes[lane].outstanding.insert(
                id,
                Outstanding {
                    write,
                    first,
                    count,
                    generation,
                },
            );
            assert!(before.is_none(), "{id} is in flight twice");
            self.submitted += 1;
        }
        if self.random.chance(85) {
            let done = self.lanes[lane].queue.commit();
            if let Err(lost) = done {
                self.lost(lane, lost);
            }
        }
    }

    fn completed(&mut self, lane: usize, done: Completed) {
        let id = done.id;
        let was = self.lanes[lane].outstanding.remove(&id);
        let Some(was) = was else {
            panic!("{id} completed and was not in flight")
        };
        self.outcomes += 1;
        let success = done.completion.is_success();
        assert_eq!(done.data.len(), was.count * CELL);
        let found = if success && !was.write {
            bytes(&done.data)
        } else {
            Vec::new()
        };
        for (n, cell) in (was.first..was.first + was.count).enumerate() {
            let state = &mut self.cells[cell];
            state.busy = false;
            if was.write && success {
                state.possible = vec![was.generation];
            } else if success {
                let part = &found[n * CELL..(n + 1) * CELL];
                let held = state
                    .possible
                    .iter()
                    .find(|generation| part == content(cell, **generation));
                let Some(held) = held else {
                    panic!(
                        "cell {cell} holds none of the generations {:?}: {:02x?}",
                        state.possible,
                        &part[..32]
                    );
                };
                state.possible = vec![*held];
            }
        }
        self.recycle(done.data);
    }

    /// Memory that came back is written by its owner at once, and by nobody else from then on.
    fn recycle(&mut self, data: Data) {
        if matches!(data, Data::Anywhere { .. }) {
            // It was refused before the queue chose a place.
            return;
        }
        let filled = vec![SENTINEL; data.len()];
        data.write(0, &filled).unwrap();
        match &data {
            Data::One(segment) if segment.region().len() == 4 * CELL && self.random.chance(70) => {
                // A transfer may have used part of it.
                let last = self.pool.len() - 1;
                self.pool[last] = segment.region().clone();
            }
            _ => self.returned.push(data),
        }
        if self.returned.len() > 64 {
            let oldest = self.returned.remove(0);
            check_sentinel(&oldest);
        }
    }

    fn lost(&mut self, lane: usize, lost: QueueLost) {
        let mut lane = self.lanes.swap_remove(lane);
        let (reason, undelivered) = lost.into_parts();
        for undelivered in undelivered {
            let id = undelivered.id;
            let was = lane.outstanding.remove(&id);
            let was = was.unwrap_or_else(|| panic!("{id} has no outcome ({reason}) and was not in flight"));
            assert_eq!(undelivered.command.lba(), was.first as u64 * u64::from(BLOCKS));
            assert_eq!(undelivered.data.len(), was.count * CELL);
            self.outcomes += 1;
            for cell in &mut self.cells[was.first..was.first + was.count] {
                cell.busy = false;
            }
            self.recycle(undelivered.data);
        }
        // Refused commands have outcomes of their own, which come before anything else.
        assert!(
            lane.outstanding.is_empty(),
            "{} commands have no outcome ({reason})",
            lane.outstanding.len()
        );
        assert!(
            lane.queue
                .poll(&mut Vec::new())
                .unwrap_err()
                .undelivered()
                .is_empty()
        );
    }

    fn poll(&mut self, lane: usize) {
        let mut done = Vec::new();
        let result = self.lanes[lane].queue.poll(&mut done);
        for completed in done {
            self.completed(lane, completed);
        }
        match result {
            Ok(_) => {
                if self.random.chance(30) {
                    use homi_queue::Wait;
                    let _ = self.lanes[lane].queue.wait_descriptor();
                }
            }
            Err(lost) => self.lost(lane, lost),
        }
    }

    fn act(&mut self) {
        let lanes = self.lanes.len();
        let lane = self.random.below(lanes as u64) as usize;
        match self.random.below(100) {
            0..=34 if lanes > 0 => self.submit(lane),
            35..=59 if lanes > 0 => self.poll(lane),
            60..=79 => {
                for _ in 0..self.random.below(6) {
                    self.rig.model.step();
                }
            }
            80..=87 => {
                let wait = Duration::from_millis(self.random.below(30));
                self.rig.clock.pause(wait, &[]);
                self.rig.controller.service();
            }
            88..=92 => self.open(),
            93 if lanes > 0 => self.drop_lane(lane),
            94 => {
                let _ = self
                    .rig
                    .controller
                    .identify::<IdentifyController>(Identify::controller());
            }
            95 => {
                let region = self.pool[self.random.below(4) as usize].clone();
                self.pinned.extend(self.rig.controller.map(&region).ok());
            }
            96 => self.pinned.truncate(self.random.below(3) as usize),
            97 if self.random.chance(40) => {
                let _ = self.rig.controller.reset();
            }
            98 if self.random.chance(30) => self.rig.model.fail(0),
            99 if self.random.chance(8) => self.rig.model.remove(0),
            99 if self.random.chance(10) => self.rig.model.reset_subsystem(),
            _ => {}
        }
    }

    /// A queue that is dropped with commands in flight takes them along.
    fn drop_lane(&mut self, lane: usize) {
        let lane = self.lanes.swap_remove(lane);
        for was in lane.outstanding.values() {
            self.outcomes += 1;
            for cell in &mut self.cells[was.first..was.first + was.count] {
                cell.busy = false;
            }
        }
        drop(lane);
    }

    /// Works until every command has its outcome.
    fn settle(&mut self) {
        for turn in 0.. {
            let mut lane = 0;
            while lane < self.lanes.len() {
                let before = self.lanes.len();
                if let Err(lost) = self.lanes[lane].queue.commit() {
                    self.lost(lane, lost);
                    continue;
                }
                self.poll(lane);
                lane += usize::from(self.lanes.len() == before);
            }
            if self.lanes.iter().all(|lane| lane.outstanding.is_empty()) {
                return;
            }
            self.rig.clock.pause(Duration::from_millis(5), &[]);
            self.rig.controller.service();
            assert!(turn < 2_000, "stuck: {:?}", self.rig.controller.state());
        }
    }

    /// Reads everything that is left, if the controller still works.
    fn verify(&mut self) {
        if self.rig.controller.state() != State::Ready {
            return;
        }
        let Ok(queue) = self.rig.controller.open_queue(QueueOptions::new(4)) else {
            return;
        };
        self.lanes.push(Lane {
            queue,
            outstanding: BTreeMap::new(),
            held: Vec::new(),
        });
        for cell in 0..CELLS {
            let Some(lane) = self.lanes.len().checked_sub(1) else {
                return;
            };
            let Ok(slot) = self.lanes[lane].queue.reserve() else {
                return;
            };
            let data = Data::whole(Region::allocate(CELL, 4096).unwrap());
            let command = Command::read(1, cell as u64 * u64::from(BLOCKS), BLOCKS);
            let id = self.lanes[lane].queue.submit(slot, command, data);
            let was = Outstanding {
                write: false,
                first: cell,
                count: 1,
                generation: 0,
            };
            self.lanes[lane].outstanding.insert(id, was);
            self.submitted += 1;
            self.settle();
        }
    }
}

fn check_sentinel(data: &Data) {
    assert!(
        bytes(data).iter().all(|byte| *byte == SENTINEL),
        "memory that was handed back was written afterwards"
    );
}

/// Runs one schedule; returns commands and resets.
fn schedule(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    for _ in 0..1 + world.random.below(2) {
        world.open();
    }
    for _ in 0..60 + world.random.below(80) {
        world.act();
    }
    if world.random.chance(70) {
        world.settle();
        world.verify();
    }
    let resets = world.rig.controller.resets();
    while !world.lanes.is_empty() {
        world.drop_lane(0);
    }
    assert_eq!(world.submitted, world.outcomes, "each command has one outcome");
    let World {
        rig,
        pinned,
        returned,
        pool,
        submitted,
        stubborn,
        ..
    } = world;
    drop(pinned);
    let Rig {
        model, controller, ..
    } = rig;
    drop(controller);
    for _ in 0..10 {
        model.step();
    }
    returned.iter().for_each(check_sentinel);
    drop(pool);
    check_left(&model, stubborn);
    (submitted, resets)
}

#[test]
fn every_command_has_one_outcome_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("HOMI_SCHEDULE_SEED") {
        let (commands, resets) = schedule(seed);
        println!("seed {seed}: {commands} commands, {resets} resets");
        return;
    }
    let count = number("HOMI_SCHEDULES").unwrap_or(10_000);
    let (next, commands, resets, failed) = (
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(u64::MAX),
    );
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) == u64::MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| schedule(seed))) {
                        Ok((some, more)) => {
                            commands.fetch_add(some, Ordering::Relaxed);
                            resets.fetch_add(more, Ordering::Relaxed);
                        }
                        Err(_) => {
                            failed.fetch_min(seed, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, u64::MAX, "run again with HOMI_SCHEDULE_SEED={failed}");
    let (commands, resets) = (commands.into_inner(), resets.into_inner());
    println!("{count} schedules: {commands} commands, {resets} resets");
    assert!(
        commands > count && resets > count / 20,
        "{commands} commands, {resets} resets"
    );
}
