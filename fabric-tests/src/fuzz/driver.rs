//! The user-space driver between a controller that does anything and an issuer that does anything ([`driver`](super::driver)).

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use homi_nvme::{Clock, Controller, Interrupts, IoQueue, Mapped, Options, Placement, QueueOptions, SglUse};
use homi_queue::{Command, CommandId, Completed, Data, Queue, QueueLost, Region, Segment, Slot, Wait};
use homi_soft_controller::{
    CmbConfig, CommandMatch, Deletion, Fault, FaultRule, NamespaceConfig, SglSupport, SoftConfig,
    SoftController, Trigger,
};
use homi_spec::event::AsyncEvent;
use homi_spec::identify::{Identify, IdentifyController};
use homi_spec::{Sqe, Status};

use super::Reached;
use super::choices::Choices;

/// What [`run`] can do next, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    /// A command: kind, first block, blocks, memory.
    Submit,
    Commit,
    Poll,
    /// The model works.
    Step,
    /// Time passes, and somebody looks after the controller.
    Time,
    Open,
    Drop,
    Reset,
    /// Something is to go wrong.
    Fault,
    /// A slot is reserved and kept.
    Hold,
    /// A slot that was kept is given back.
    Release,
    Reject,
    Pin,
    Unpin,
    /// Memory that came back is borrowed as a slice.
    TakeBack,
    Admin,
    Sleep,
    Fail,
    Subsystem,
    Announce,
    RefuseMaps,
    Shutdown,
    Remove,
}

impl Event {
    pub(super) const ALL: [Self; 23] = [
        Self::Submit,
        Self::Commit,
        Self::Poll,
        Self::Step,
        Self::Time,
        Self::Open,
        Self::Drop,
        Self::Reset,
        Self::Fault,
        Self::Hold,
        Self::Release,
        Self::Reject,
        Self::Pin,
        Self::Unpin,
        Self::TakeBack,
        Self::Admin,
        Self::Sleep,
        Self::Fail,
        Self::Subsystem,
        Self::Announce,
        Self::RefuseMaps,
        Self::Shutdown,
        Self::Remove,
    ];
}

const MOST_EVENTS: usize = 250;
const MOST_QUEUES: usize = 3;
const BLOCKS: u64 = 256;
const BLOCK: usize = 512;
/// Bytes before and after a command's data, which nothing may touch.
const GUARD: usize = 64;
/// The least bytes of a region, so that most are long enough to be used again.
const SHORTEST: usize = 5 * 4096;
/// What guards and memory to be read to are filled with.
const EMPTY: u8 = 0xa5;
/// What memory that came back is filled with.
const RETURNED: u8 = 0x5a;
/// The most virtual time that one call may take: some waits for a controller, each of at most 300 s, and two attempts to bring it up.
const LONGEST: Duration = Duration::from_secs(3600);

/// Time that passes only when somebody waits; the model works meanwhile.
#[derive(Debug)]
struct SoftClock {
    model: SoftController,
    nanos: AtomicU64,
}

impl Clock for SoftClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn pause(&self, at_most: Duration, _: &[BorrowedFd<'_>]) {
        for _ in 0..4 {
            if !self.model.step() {
                break;
            }
        }
        // Longer than asked for, as pauses are: a controller that is waited for in vain costs less.
        let nanos = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX / 2);
        self.nanos.fetch_add(nanos.saturating_mul(4), Ordering::Relaxed);
    }
}

/// A command's memory: a region for each range, with guards.
struct Memory {
    regions: Vec<Region>,
    /// Bytes of each region between its guards.
    lens: Vec<usize>,
    /// Where the data begins in each region.
    start: usize,
}

struct Issued {
    sqe: Sqe,
    memory: Option<Memory>,
    len: usize,
    /// The executor chose the memory.
    lent: bool,
}

struct Lane {
    queue: IoQueue,
    live: BTreeMap<CommandId, Issued>,
    held: Vec<Slot>,
}

struct World {
    model: SoftController,
    clock: Arc<SoftClock>,
    controller: Option<Controller>,
    lanes: Vec<Lane>,
    pinned: Vec<Mapped>,
    returned: Vec<Region>,
    /// The controller says what is not so: that commands are over which are not, or that it stopped when it did not. What it does to
    /// memory that it was told of is its own doing then.
    liar: bool,
    /// Data may be lost or changed on its way.
    careless: bool,
    /// Commands that take too long are given up.
    timed: bool,
    /// The controller may be impossible to stop but by taking bus mastering from it.
    stubborn: bool,
    removed: bool,
    reached: Reached,
}

/// See [`driver`](super::driver).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let Some(mut world) = World::new(&mut choices) else {
        return Reached::default();
    };
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        let Some(event) = choices.of(&Event::ALL) else {
            break;
        };
        world.event(event, &mut choices);
    }
    world.settle();
    world.finish()
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Option<Self> {
        let [a, b, c] = choices.array();
        let bit = |byte: u8, n: u8| byte >> n & 1 == 1;
        let sgl = [SglSupport::None, SglSupport::Bytes, SglSupport::Dwords];
        let function_reset = !bit(a, 7);
        let config = SoftConfig {
            namespaces: vec![NamespaceConfig::new(BLOCKS, 9)],
            mdts: a & 3,
            sgl: sgl[usize::from(a >> 2 & 3) % 3],
            shuffle: bit(a, 4).then_some(7),
            deletion: if bit(a, 5) {
                Deletion::Silent
            } else {
                Deletion::Aborts
            },
            doorbell_buffer: bit(a, 6),
            function_reset,
            ready_steps: (b & 3).into(),
            disable_steps: (b >> 2 & 3).into(),
            late_dma: !bit(b, 4),
            cmb: bit(b, 5).then(|| CmbConfig::new(64 << 10)),
            fetches: if bit(b, 6) { 1 } else { 64 },
            io_queues: 4,
            ..SoftConfig::default()
        };
        let timed = !bit(c, 7);
        let timeout = timed.then_some(Duration::from_millis(100));
        let options = Options::new()
            .admin_timeout(Duration::from_millis(500))
            .command_timeout(timeout, Duration::from_millis(50))
            .shutdown_timeout(Duration::from_millis(200))
            .recover(!bit(b, 7))
            .sgls([SglUse::Never, SglUse::WhenNeeded, SglUse::WhereShorter][usize::from(c & 3) % 3])
            .kept_mappings(usize::from(((c >> 2) & 7) ^ 4), 256 << 10)
            .max_transfer(if bit(c, 5) { 8192 } else { 64 << 10 })
            .vectors(if bit(c, 6) { 0 } else { 5 });
        let model = SoftController::new(config).ok()?;
        let clock = Arc::new(SoftClock {
            model: model.clone(),
            nanos: AtomicU64::new(1),
        });
        let mut world = Self {
            model,
            clock,
            controller: None,
            lanes: Vec::new(),
            pinned: Vec::new(),
            returned: Vec::new(),
            liar: false,
            careless: false,
            timed,
            stubborn: false,
            removed: false,
            reached: Reached::default(),
        };
        for _ in 0..choices.below(4) {
            world.fault(choices, function_reset);
        }
        let opened =
            world.bounded(|world| Controller::open(world.model.physical(), world.clock.clone(), options));
        world.controller = opened.ok();
        world.reached.ready += usize::from(world.controller.is_some());
        world.open(choices);
        Some(world)
    }

    /// Runs something that may wait, and checks that it does not wait for ever.
    fn bounded<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.clock.now();
        let result = call(self);
        let took = self.clock.now().saturating_sub(before);
        assert!(took <= LONGEST, "a call took {took:?} of virtual time");
        result
    }

    fn fault(&mut self, choices: &mut Choices<'_>, function_reset: bool) {
        let rule = any_rule(choices);
        self.liar |= matches!(
            rule.fault,
            Fault::WrongCid(_)
                | Fault::Raw(_)
                | Fault::Unsolicited { .. }
                | Fault::Value(_)
                | Fault::Report(_)
        );
        let careless = matches!(
            rule.fault,
            Fault::Garbage(_) | Fault::NoData | Fault::Corrupt | Fault::NotWritten
        );
        self.careless |= careless;
        // How long blocks are is told by data of the admin queue.
        self.liar |= careless && !matches!(&rule.trigger, Trigger::Command(wanted) if wanted.io);
        self.removed |= rule.fault == Fault::Remove;
        self.stubborn |= !function_reset && matches!(rule.trigger, Trigger::Disable | Trigger::Enable);
        self.model.add_fault(rule);
    }

    fn lane(&self, choices: &mut Choices<'_>) -> Option<usize> {
        let index = choices.below(self.lanes.len());
        (index < self.lanes.len()).then_some(index)
    }

    fn event(&mut self, event: Event, choices: &mut Choices<'_>) {
        match event {
            Event::Submit => self.submit(choices),
            Event::Commit => {
                if let Some(lane) = self.lane(choices)
                    && let Some(held) = self.lanes.get_mut(lane)
                    && let Err(lost) = held.queue.commit()
                {
                    self.lost(lane, lost);
                }
            }
            Event::Poll => {
                if let Some(lane) = self.lane(choices) {
                    self.poll(lane);
                }
            }
            Event::Step => {
                for _ in 0..=choices.below(16) {
                    self.model.step();
                }
            }
            Event::Time => self.time(Duration::from_millis(choices.byte().into())),
            Event::Open => self.open(choices),
            Event::Drop => {
                if let Some(lane) = self.lane(choices) {
                    self.drop_lane(lane);
                }
            }
            Event::Reset => {
                let reset = self.bounded(|world| world.controller.as_ref().map(Controller::reset));
                self.reached.errors += usize::from(matches!(reset, Some(Err(_))));
            }
            Event::Fault => self.fault(choices, false),
            Event::Hold => {
                if let Some(lane) = self.lane(choices).and_then(|lane| self.lanes.get_mut(lane))
                    && let Ok(slot) = lane.queue.reserve()
                {
                    lane.held.push(slot);
                }
            }
            Event::Release => {
                if let Some(lane) = self.lane(choices).and_then(|lane| self.lanes.get_mut(lane))
                    && let Some(slot) = lane.held.pop()
                {
                    lane.queue.release(slot);
                }
            }
            Event::Reject => self.reject(choices),
            Event::Pin => {
                let region = self.returned.last().map(Region::handle);
                if let (Some(region), Some(controller)) = (region, &self.controller) {
                    self.pinned.extend(controller.map(&region).ok());
                }
            }
            Event::Unpin => {
                self.pinned.pop();
            }
            Event::TakeBack => self.take_back(choices),
            Event::Admin => self.admin(choices.byte()),
            Event::Sleep => {
                if let Some(lane) = self.lane(choices).and_then(|lane| self.lanes.get(lane)) {
                    let _ = lane.queue.wait_descriptor();
                }
            }
            Event::Fail => self.model.fail(0),
            Event::Subsystem => self.model.reset_subsystem(),
            Event::Announce => self.model.event(0, AsyncEvent::NAMESPACE_ATTRIBUTE),
            Event::RefuseMaps => {
                if let Some(space) = self.model.space(0) {
                    space.refuse_maps(choices.below(3) as u64);
                }
            }
            Event::Shutdown => {
                self.bounded(|world| world.controller.as_ref().map(Controller::shutdown));
            }
            Event::Remove => {
                self.removed = true;
                self.model.remove(0);
            }
        }
    }

    fn time(&mut self, wait: Duration) {
        self.clock.pause(wait, &[]);
        self.bounded(|world| world.controller.as_ref().map(Controller::service));
    }

    fn admin(&mut self, kind: u8) {
        self.bounded(|world| {
            let Some(controller) = &world.controller else {
                return;
            };
            // What they come to is the controller's business.
            match kind % 6 {
                0 => drop(controller.identify::<IdentifyController>(Identify::controller())),
                1 => drop(controller.rescan()),
                2 => drop(controller.changed_namespaces()),
                3 => drop(controller.take_event()),
                4 => drop(controller.cmb().and_then(|cmb| cmb.allocate(4096))),
                _ => drop((controller.state(), controller.queues(), controller.namespaces())),
            }
        });
    }

    fn open(&mut self, choices: &mut Choices<'_>) {
        let how = choices.byte();
        if self.lanes.len() >= MOST_QUEUES {
            return;
        }
        let mut options = QueueOptions::new((1 + how % 9).into());
        if how & 0x40 != 0 {
            options = options.interrupts(Interrupts::On);
        }
        if how & 0x80 != 0 {
            options = options.placement(Placement::ControllerMemory);
        }
        let queue = self.bounded(|world| world.controller.as_ref()?.open_queue(options).ok());
        self.lanes.extend(queue.map(|queue| Lane {
            queue,
            live: BTreeMap::new(),
            held: Vec::new(),
        }));
    }

    fn submit(&mut self, choices: &mut Choices<'_>) {
        let lane = self.lane(choices);
        let [kind, lba, blocks, how, detail] = choices.array();
        let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(lane)) else {
            return;
        };
        let slot = match lane.held.pop().map(Ok).unwrap_or_else(|| lane.queue.reserve()) {
            Ok(slot) => slot,
            Err(_) => {
                assert!(
                    lane.live.len() + lane.held.len() >= usize::from(lane.queue.depth()),
                    "a queue with room is full"
                );
                return;
            }
        };
        let command = any_command(kind, lba, blocks, detail);
        let len = match command.0.opcode {
            1 | 2 | 5 => usize::try_from(command.blocks()).unwrap_or(0) * BLOCK,
            9 => 16 * usize::from(1 + detail % 4),
            0 | 4 | 8 => 0,
            _ => usize::from(detail) * 16,
        };
        // Now and then another length than the command's.
        let len = if how & 0xe0 == 0xe0 {
            len / 2 + usize::from(detail)
        } else {
            len
        };
        let read = command.0.opcode & 3 == 2;
        let fill = if read { EMPTY } else { 1 + kind % 100 };
        // Memory that was used before is what the short way through the driver is for.
        let reuse = if how & 0xe0 == 0x20 {
            self.returned.pop()
        } else {
            None
        };
        let (data, memory) = any_memory(how & 0x1f, detail, len, fill, read, reuse);
        let lent = matches!(data, Data::Anywhere { .. });
        let issued = Issued {
            sqe: command.0,
            memory,
            len: data.len(),
            lent,
        };
        let id = lane.queue.submit(slot, command, data);
        let before = lane.live.insert(id, issued);
        assert!(before.is_none(), "{id} is in flight twice");
        self.reached.commands += 1;
    }

    fn reject(&mut self, choices: &mut Choices<'_>) {
        if let Some(lane) = self.lane(choices).and_then(|lane| self.lanes.get_mut(lane))
            && let Ok(slot) = lane.queue.reserve()
        {
            let command = Command::flush(1);
            let id = lane
                .queue
                .reject(slot, command, Data::None, Status::INVALID_FIELD);
            let issued = Issued {
                sqe: command.0,
                memory: None,
                len: 0,
                lent: false,
            };
            assert!(lane.live.insert(id, issued).is_none(), "{id} is in flight twice");
        }
    }

    fn poll(&mut self, lane: usize) {
        let mut done = Vec::new();
        let Some(held) = self.lanes.get_mut(lane) else {
            return;
        };
        let result = held.queue.poll(&mut done);
        if let Ok(count) = &result {
            assert_eq!(*count, done.len());
        }
        for completed in done {
            self.completed(lane, completed);
        }
        if let Err(lost) = result {
            self.lost(lane, lost);
        }
    }

    fn completed(&mut self, lane: usize, done: Completed) {
        let issued = self
            .lanes
            .get_mut(lane)
            .and_then(|lane| lane.live.remove(&done.id));
        let Some(issued) = issued else {
            panic!("{} completed and was not in flight", done.id)
        };
        let success = done.completion.is_success();
        self.reached.completions += 1;
        self.reached.failures += usize::from(!success);
        let read = issued.sqe.opcode == 2;
        if success && read && !self.liar && !self.careless {
            let mut found = vec![0; done.data.len()];
            let _ = done.data.read(0, &mut found);
            assert!(
                !found.contains(&EMPTY),
                "a read of {} bytes succeeded without all of them",
                issued.len
            );
            self.reached.transfers += 1;
        }
        self.take_over(issued, done.data);
    }

    fn lost(&mut self, lane: usize, lost: QueueLost) {
        let mut lane = self.lanes.swap_remove(lane);
        self.reached.terminations += 1;
        let (reason, undelivered) = lost.into_parts();
        for undelivered in undelivered {
            let id = undelivered.id;
            let Some(issued) = lane.live.remove(&id) else {
                panic!("{id} has no outcome ({reason}) and was not in flight")
            };
            let (known, back) = (issued.sqe, undelivered.command.0);
            assert_eq!(
                (known.opcode, known.nsid, known.cdw10, known.cdw11, known.cdw12),
                (back.opcode, back.nsid, back.cdw10, back.cdw11, back.cdw12),
                "{id} comes back as another command"
            );
            self.take_over(issued, undelivered.data);
        }
        assert!(
            lane.live.is_empty(),
            "{} commands have no outcome ({reason})",
            lane.live.len()
        );
        let again = lane.queue.poll(&mut Vec::new());
        assert!(
            again.is_err_and(|lost| lost.undelivered().is_empty()),
            "a lost queue is lost once"
        );
        self.bounded(|_| drop(lane));
    }

    /// Memory that came back is what was given, untouched around its data, and its owner's from here on.
    fn take_over(&mut self, issued: Issued, data: Data) {
        let Some(memory) = issued.memory else {
            assert!(
                issued.lent || data.is_empty(),
                "memory came back that was never given"
            );
            return;
        };
        // Who keeps memory for ever says so by giving nothing back.
        let kept = data.segments().is_empty() && issued.len > 0;
        assert!(!kept || self.liar || self.removed, "memory did not come back");
        if kept {
            return;
        }
        assert_eq!(data.len(), issued.len);
        for (region, len) in memory.regions.iter().zip(&memory.lens) {
            let mut bytes = vec![0; region.len()];
            let read = region.read(0, &mut bytes);
            assert!(read.is_ok());
            let (before, rest) = bytes.split_at(memory.start);
            let (_, after) = rest.split_at(*len);
            let touched = before.iter().chain(after).any(|byte| *byte != EMPTY);
            assert!(
                !touched || self.liar,
                "bytes beside a command's data were written"
            );
        }
        drop(data);
        for region in memory.regions {
            let filled = region.fill(0, region.len(), RETURNED);
            assert!(filled.is_ok());
            self.returned.push(region);
        }
        if self.returned.len() > 24 {
            let oldest = self.returned.remove(0);
            self.check_returned(&oldest);
        }
    }

    fn check_returned(&self, region: &Region) {
        let mut bytes = vec![0; region.len()];
        let read = region.read(0, &mut bytes);
        assert!(read.is_ok());
        assert!(
            self.liar || bytes.iter().all(|byte| *byte == RETURNED),
            "memory that was handed back was written afterwards"
        );
    }

    fn take_back(&mut self, choices: &mut Choices<'_>) {
        let lane = self.lane(choices);
        let (Some(region), Some(lane)) = (
            self.returned.pop(),
            lane.and_then(|lane| self.lanes.get_mut(lane)),
        ) else {
            return;
        };
        match lane.queue.take_back(Data::whole(region)) {
            Ok(buffer) => assert!(self.liar || buffer.iter().all(|byte| *byte == RETURNED)),
            Err(Data::One(segment)) => self.returned.push(segment.region().clone()),
            Err(other) => panic!("take_back made {other:?} of one range"),
        }
    }

    /// A queue that is dropped with commands in flight takes them along. Their memory is nobody's any more when that returns.
    fn drop_lane(&mut self, lane: usize) {
        let lane = self.lanes.swap_remove(lane);
        let live = lane.live;
        let held = lane.queue;
        self.bounded(|_| drop(held));
        for (_, issued) in live {
            for region in issued.memory.into_iter().flat_map(|memory| memory.regions) {
                let filled = region.fill(0, region.len(), RETURNED);
                assert!(filled.is_ok());
                self.returned.push(region);
            }
        }
    }

    /// Works until every command has its outcome.
    fn settle(&mut self) {
        if !self.timed || self.controller.is_none() {
            return;
        }
        for turn in 0.. {
            let mut lane = 0;
            loop {
                let before = self.lanes.len();
                let Some(held) = self.lanes.get_mut(lane) else {
                    break;
                };
                match held.queue.commit() {
                    Ok(()) => self.poll(lane),
                    Err(lost) => self.lost(lane, lost),
                }
                lane += usize::from(self.lanes.len() == before);
            }
            if self.lanes.iter().all(|lane| lane.live.is_empty()) {
                return;
            }
            self.time(Duration::from_millis(5));
            let state = self.controller.as_ref().map(Controller::state);
            assert!(turn < 400, "commands have no outcome for ever: {state:?}");
        }
    }

    /// Nothing is left in the end.
    fn finish(mut self) -> Reached {
        while !self.lanes.is_empty() {
            self.drop_lane(0);
        }
        self.pinned.clear();
        let state = self.controller.as_ref().map(Controller::state);
        self.bounded(|world| drop(world.controller.take()));
        for _ in 0..10 {
            self.model.step();
        }
        for region in std::mem::take(&mut self.returned) {
            self.check_returned(&region);
        }
        let Some(space) = self.model.space(0) else {
            return self.reached;
        };
        // One that lies about being there, and then is not, can be kept from nothing: what it may use is kept for ever.
        if !(self.liar && self.removed) {
            assert_eq!(space.mappings(), 0, "mappings are left ({state:?})");
            let usage = space.dma().usage();
            assert_eq!((usage.mapped, usage.stuck), (usage.unmapped, 0), "{usage:?}");
        }
        if !self.liar {
            assert_eq!(space.faults(), [], "accesses that did not reach memory");
            if !self.stubborn {
                assert_eq!(space.early_unmaps(), [], "memory in use was unmapped");
                assert_eq!(self.model.io_queues(0), (0, 0), "queues are left ({state:?})");
            }
        }
        self.reached
    }
}

/// Any command: mostly those that a driver knows.
fn any_command(kind: u8, lba: u8, blocks: u8, detail: u8) -> Command {
    let start = u64::from(lba);
    let count = if blocks & 0x80 == 0 {
        u32::from(blocks % 16) + 1
    } else {
        u32::from(blocks & 0x7f) + 1
    };
    let mut command = match kind % 16 {
        0..=4 => Command::read(1, start, count),
        5..=8 => Command::write(1, start, count),
        9 => Command::compare(1, start, count),
        10 => Command::flush(1),
        11 => Command::write_zeroes(1, start, count, false),
        12 => Command::deallocate(1, u32::from(1 + detail % 4)),
        13 => Command::read(u32::from(detail), start, count),
        14 => Command(Sqe::new(0x80 | detail, 1)),
        _ => Command(Sqe::new(detail, 1)),
    };
    match kind >> 4 {
        1 => command = command.with_fua(),
        2 => command.0.cdw2 = 7.into(),
        3 => command.0.cdw15 = u32::MAX.into(),
        4 => command.0.set_prp(0x1000, u64::MAX),
        // The queue's bits.
        5 => command.0.cid = u16::MAX.into(),
        // Fused operations, reserved bits and PSDT.
        6 => command.0.flags = detail,
        _ => {}
    }
    command
}

/// Memory for a command: in one or several ranges, aligned or not.
fn any_memory(
    how: u8,
    detail: u8,
    len: usize,
    fill: u8,
    read: bool,
    reuse: Option<Region>,
) -> (Data, Option<Memory>) {
    let misalign = [0, 0, 4, 1, 512, 100][usize::from(how >> 2) % 6];
    let start = if misalign == 0 { 4096 } else { GUARD + misalign };
    let lens = match how & 3 {
        0 if how & 4 != 0 && read => return (Data::Anywhere { len }, None),
        0 if len == 0 => return (Data::None, None),
        3 if len > 1 => {
            let cut = 1 + usize::from(detail) * 16 % (len - 1);
            vec![cut, len - cut]
        }
        2 if len > 2 * 4096 => vec![4096, len - 4096],
        _ => vec![len],
    };
    let mut segments: Vec<Segment> = Vec::new();
    let mut regions = Vec::new();
    for len in &lens {
        let least = start + len + GUARD;
        let fitting = reuse
            .clone()
            .filter(|region| region.len() >= least && lens.len() == 1);
        let Some(region) = fitting.or_else(|| Region::allocate(least.max(SHORTEST), 4096).ok()) else {
            return (Data::None, None);
        };
        let filled = region.fill(0, region.len(), EMPTY).is_ok() && region.fill(start, *len, fill).is_ok();
        assert!(filled);
        segments.extend(region.segment(start..start + len));
        regions.push(region);
    }
    let memory = Memory { regions, lens, start };
    let data = match segments.as_slice() {
        [one] if how & 16 == 0 => Data::One(one.clone()),
        _ => Data::List(segments),
    };
    (data, Some(memory))
}

fn any_rule(choices: &mut Choices<'_>) -> FaultRule {
    let [what, which, skip, number] = choices.array();
    let skip = u64::from(skip % 32);
    let value = choices.dword();
    let times = if which & 0x80 == 0 {
        1
    } else {
        1 + u64::from(number % 8)
    };
    let on = |trigger, fault| FaultRule {
        skip,
        times,
        ..FaultRule::on(trigger, fault)
    };
    let command = match which % 8 {
        0..=3 => CommandMatch::io(),
        4 => CommandMatch::default(),
        5 => CommandMatch::admin_opcode(number % 16),
        6 => CommandMatch {
            queue: Some(0),
            ..CommandMatch::default()
        },
        _ => CommandMatch::io_opcode(number % 10),
    };
    let [low, high, ..] = value.to_le_bytes();
    let word = u16::from_le_bytes([low, high]);
    let steps = u32::from(number % 64);
    let status = [
        Status::INTERNAL_ERROR,
        Status::INVALID_FIELD,
        Status::DATA_TRANSFER_ERROR,
        Status::INVALID_OPCODE,
    ][usize::from(number % 4)];
    let fault = match what % 32 {
        0 => Fault::Lose,
        1 => Fault::Ignore,
        2 => Fault::Late(steps),
        3 => Fault::Slow(steps),
        4 => Fault::Duplicate(steps),
        5 => Fault::WrongPhase,
        6 => Fault::WrongCid(word),
        7 => Fault::WrongSqHead(word),
        8 => Fault::WrongSqId(word),
        9 => Fault::Refuse(status),
        10 => Fault::Report(status),
        11 => Fault::NoData,
        12 => Fault::Corrupt,
        13 | 14 => Fault::Garbage(value.into()),
        15 | 16 => Fault::Raw([choices.dword(), 0, choices.dword(), value]),
        17 => Fault::NotWritten,
        18 => Fault::NoInterrupt,
        19 => Fault::SpuriousInterrupt(word % 6),
        20 => Fault::Fatal,
        21 => Fault::Remove,
        22 => Fault::SubsystemReset,
        23 => Fault::Unsolicited {
            queue: word % 4,
            cid: u16::from(number),
        },
        24 => {
            return on(
                Trigger::Enable,
                [Fault::Ignore, Fault::Slow(steps), Fault::Fatal][usize::from(number % 3)].clone(),
            );
        }
        25 => {
            return on(
                Trigger::Disable,
                [Fault::Ignore, Fault::Slow(steps)][usize::from(number % 2)].clone(),
            );
        }
        26 => {
            return on(
                Trigger::Shutdown,
                [Fault::Ignore, Fault::Slow(steps)][usize::from(number % 2)].clone(),
            );
        }
        27 => {
            let fault = [Fault::Fatal, Fault::Remove, Fault::SubsystemReset][usize::from(number % 3)].clone();
            return on(Trigger::Step(skip * 8 + 1), fault);
        }
        // Registers below the doorbells, those that exist first of all.
        _ => {
            let at = if number & 0x80 == 0 {
                u64::from(number % 28) * 4
            } else {
                u64::from(word & 0xffc)
            };
            return on(Trigger::Read(at), Fault::Value(value));
        }
    };
    FaultRule {
        times,
        ..FaultRule::nth(command, skip, fault)
    }
}
