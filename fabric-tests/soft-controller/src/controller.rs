//! One controller: its state, and what it does in a step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;

use homi_queue::{PageSize, SglRules};
use homi_spec::controller::{Cap, Cc, Csts, ShutdownStatus};
use homi_spec::event::AsyncEvent;
use homi_spec::registers::Aqa;
use homi_spec::{Sqe, Status};

use crate::config::{SglSupport, SoftConfig};
use crate::dma::{Bus, TransferRules};
use crate::events::Events;
use crate::faults::{DataFault, Fault, NEVER, Trigger};
use crate::features::Features;
use crate::iommu::Hold;
use crate::logs::ErrorLog;
use crate::misuse::MisuseKind;
use crate::nvm::Counts;
use crate::queues::{Cq, Post, Sq};
use crate::shadow::ShadowBuffers;
use crate::shared::{Effect, Shared};

/// What one controller did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControllerStats {
    /// Writes of doorbells.
    pub doorbells: u64,
    /// Reads and writes of other registers.
    pub registers: u64,
    /// Commands fetched.
    pub fetched: u64,
    /// Completions written.
    pub completed: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Times that the controller was enabled and became ready.
    pub enabled: u64,
    /// Resets of any kind.
    pub resets: u64,
}

/// Where a controller is between CC.EN and CSTS.RDY; with the steps that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Disabled,
    Enabling(u32),
    Ready,
    Disabling(u32),
}

/// Registers that keep what was written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kept {
    pub(crate) cc: Cc,
    pub(crate) csts: Csts,
    pub(crate) aqa: Aqa,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
    pub(crate) mask: u32,
    pub(crate) cmbmsc: u64,
    /// CMBSTS.CBAI.
    pub(crate) cmb_bad: bool,
}

/// A command that was fetched and is not carried out yet.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) sqid: u16,
    pub(crate) cqid: u16,
    pub(crate) sqe: Sqe,
    /// The step in which it is carried out.
    pub(crate) due: u64,
    pub(crate) faults: Vec<Fault>,
    /// Where its data is, for as long as it may still be moved.
    #[expect(dead_code, reason = "held for their drop")]
    pub(crate) holds: Vec<Hold>,
}

/// What became of a command that was carried out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It completes.
    Done(Status, u64),
    /// It completes later, by an event.
    Held,
}

impl From<Result<u64, Status>> for Outcome {
    fn from(result: Result<u64, Status>) -> Self {
        match result {
            Ok(value) => Self::Done(Status::SUCCESS, value),
            Err(status) => Self::Done(status, 0),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Controller {
    /// Which function: 0 is the physical one.
    pub(crate) function: u16,
    pub(crate) bus: Bus,
    pub(crate) kept: Kept,
    pub(crate) life: Life,
    pub(crate) shutdown: Option<u32>,
    pub(crate) removed: bool,
    /// It is about to be removed or reset.
    pub(crate) doomed: bool,
    /// It failed or was reset without its driver's doing: what the driver does before it enables it again is no misuse.
    pub(crate) surprised: bool,
    pub(crate) sqs: BTreeMap<u16, Sq>,
    pub(crate) cqs: BTreeMap<u16, Cq>,
    pub(crate) turn: u16,
    /// I/O submission queues created so far.
    pub(crate) created: u64,
    pub(crate) running: Vec<Running>,
    /// Completions that come late.
    pub(crate) late: Vec<(u64, u16, Post)>,
    pub(crate) events: Events,
    pub(crate) features: Features,
    /// I/O queues granted by Number of Queues.
    pub(crate) granted: (u32, u32),
    pub(crate) shadows: Option<ShadowBuffers>,
    pub(crate) errors: ErrorLog,
    /// Namespaces that changed since the log of them was read.
    pub(crate) changed: BTreeSet<u32>,
    pub(crate) counts: Counts,
    pub(crate) data_fault: DataFault,
    /// The other end of each vector that is turned on.
    pub(crate) vectors: Vec<File>,
    pub(crate) raised: Vec<u64>,
    pub(crate) stats: ControllerStats,
}

/// The steps that something takes, longer or for ever by faults.
fn prolonged(steps: u32, faults: &[Fault]) -> u32 {
    faults.iter().fold(steps, |steps, fault| match fault {
        Fault::Ignore => NEVER,
        Fault::Slow(more) => steps.saturating_add(*more),
        _ => steps,
    })
}

impl Controller {
    pub(crate) fn new(function: u16, bus: Bus) -> Self {
        Self {
            function,
            bus,
            kept: Kept::default(),
            life: Life::Disabled,
            shutdown: None,
            removed: false,
            doomed: false,
            surprised: false,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            turn: 0,
            created: 0,
            running: Vec::new(),
            late: Vec::new(),
            events: Events::default(),
            features: Features::default(),
            granted: (1, 1),
            shadows: None,
            errors: ErrorLog::default(),
            changed: BTreeSet::new(),
            counts: Counts::default(),
            data_fault: DataFault::default(),
            vectors: Vec::new(),
            raised: Vec::new(),
            stats: ControllerStats::default(),
        }
    }

    /// CAP of every controller of the model.
    pub(crate) fn cap(&self, config: &SoftConfig) -> Cap {
        // At most 65535, as was checked.
        let mqes_z = u16::try_from(config.max_queue_entries - 1).unwrap_or(u16::MAX);
        let cap = Cap::default()
            .with_mqes_z(mqes_z)
            .with_contiguous_queues(true)
            .with_timeout_500ms(config.timeout_500ms)
            .with_dstrd(config.dstrd)
            .with_subsystem_reset(config.subsystem_reset)
            .with_command_sets(config.command_sets)
            .with_page_sizes(config.mpsmin, config.mpsmax)
            .with_cmb(self.bus.cmb.is_some())
            .with_ready_with_media(true);
        // AMS bit 0: weighted round robin with urgent class.
        Cap(cap.0 | (u64::from(config.weighted_arbitration) << 17))
    }

    pub(crate) fn page(&self) -> PageSize {
        PageSize::from_mps(self.kept.cc.mps()).unwrap_or(PageSize::SMALLEST)
    }

    /// Distance of doorbells in bytes.
    pub(crate) fn stride(config: &SoftConfig) -> u64 {
        4 << config.dstrd
    }

    /// Whether commands are processed.
    pub(crate) fn works(&self) -> bool {
        self.life == Life::Ready && !self.kept.csts.fatal() && !self.removed && !self.doomed
    }

    pub(crate) fn misuse(&self, shared: &mut Shared, kind: MisuseKind) {
        if !self.surprised {
            shared.misuse(self.function, kind);
        }
    }

    /// CSTS.CFS: nothing more happens until a reset.
    pub(crate) fn fail(&mut self) {
        self.surprised = true;
        self.kept.csts = self.kept.csts.with_fatal(true);
    }

    /// The most I/O queues of each kind, and vectors, that this function has.
    pub(crate) fn resources(&self, shared: &Shared) -> (u16, u16) {
        if self.function == 0 {
            (shared.config.io_queues, shared.config.vectors)
        } else {
            shared.sriov.resources(self.function)
        }
    }

    /// What holds for the data pointers of a queue's commands.
    pub(crate) fn rules(&self, config: &SoftConfig, io: bool) -> TransferRules {
        let unit = 12 + u32::from(config.mpsmin);
        let max_len = match config.mdts {
            0 => u64::MAX,
            mdts => 1 << (unit + u32::from(mdts)),
        };
        let sgls = (io && config.sgl != SglSupport::None).then(|| SglRules {
            dwords: config.sgl == SglSupport::Dwords,
            bit_buckets: config.bit_buckets,
            ..SglRules::default()
        });
        TransferRules {
            page: self.page(),
            max_len,
            sgls,
        }
    }

    /// CC.EN was set: checks the configuration and begins to become ready.
    pub(crate) fn enable(&mut self, shared: &mut Shared) {
        let faults = shared.plan.event(self.function, &Trigger::Enable);
        self.apply(shared, &faults);
        let (cc, aqa) = (self.kept.cc, self.kept.aqa);
        let cap = self.cap(&shared.config);
        let page = 1_u64 << (12 + u32::from(cc.mps()));
        let set = match cc.css() {
            Cc::CSS_NVM => 0,
            Cc::CSS_ALL => 6,
            Cc::CSS_ADMIN_ONLY => 7,
            _ => 8,
        };
        let what = if cc.mps() < cap.mpsmin() || cc.mps() > cap.mpsmax() {
            Some("memory page size")
        } else if set == 8 || cap.command_sets() & (1 << set) == 0 {
            Some("command set")
        } else if cc.ams() > 1 || (cc.ams() == 1 && cap.arbitration() & 1 == 0) {
            Some("arbitration mechanism")
        } else if aqa.asqs_z() == 0 || aqa.acqs_z() == 0 {
            Some("admin queue size")
        } else if !self.kept.asq.is_multiple_of(page) || !self.kept.acq.is_multiple_of(page) {
            Some("admin queue address")
        } else {
            None
        };
        if let Some(what) = what {
            self.misuse(shared, MisuseKind::BadConfiguration { what });
            self.fail();
            return;
        }
        self.surprised = false;
        self.life = Life::Enabling(prolonged(shared.config.ready_steps, &faults));
        if self.life == Life::Enabling(0) {
            self.become_ready(shared);
        }
    }

    fn become_ready(&mut self, shared: &mut Shared) {
        self.granted = (1, 1);
        if self.create_admin_queues().is_err() {
            self.misuse(
                shared,
                MisuseKind::BadConfiguration {
                    what: "admin queue in the memory buffer",
                },
            );
            self.fail();
            return;
        }
        self.life = Life::Ready;
        self.kept.csts = self.kept.csts.with_ready(true);
        self.stats.enabled += 1;
    }

    /// CC.EN was cleared.
    pub(crate) fn disable(&mut self, shared: &mut Shared) {
        let faults = shared.plan.event(self.function, &Trigger::Disable);
        self.apply(shared, &faults);
        self.life = Life::Disabling(prolonged(shared.config.disable_steps, &faults));
        if self.life == Life::Disabling(0) {
            self.become_disabled(shared);
        }
    }

    fn become_disabled(&mut self, shared: &mut Shared) {
        if shared.config.late_dma {
            self.move_late_data(shared);
        }
        self.clear();
        shared.take_offline(self.function);
        self.surprised = false;
        self.life = Life::Disabled;
        self.kept.csts = Csts(self.kept.csts.0 & (1 << 4));
        self.stats.resets += 1;
    }

    /// What was fetched still moves its data, without completing: a driver may not reuse memory before CSTS.RDY is clear.
    fn move_late_data(&mut self, shared: &mut Shared) {
        for running in std::mem::take(&mut self.running) {
            if running.sqid != 0 && running.due != u64::MAX {
                self.data_fault = DataFault::of(&running.faults);
                let _ = self.io(shared, &running.sqe);
            }
        }
    }

    /// Forgets queues, commands and what else a controller level reset takes.
    fn clear(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.running.clear();
        self.late.clear();
        self.events = Events::default();
        self.features.reset();
        self.shadows = None;
        self.shutdown = None;
        self.granted = (1, 1);
        self.doomed = false;
    }

    /// A reset of the function or the subsystem: registers are as after power-on. `all` resets what a function-level reset leaves alone.
    pub(crate) fn hard_reset(&mut self, all: bool) {
        self.clear();
        let cmbmsc = if all { 0 } else { self.kept.cmbmsc };
        let cmb_bad = !all && self.kept.cmb_bad;
        self.kept = Kept {
            cmbmsc,
            cmb_bad,
            ..Kept::default()
        };
        if all && let Some(cmb) = &mut self.bus.cmb {
            cmb.base = None;
        }
        self.life = Life::Disabled;
        self.surprised = false;
        self.stats.resets += 1;
    }

    /// The function is pulled out.
    pub(crate) fn remove(&mut self) {
        self.clear();
        self.removed = true;
        self.bus.set_master(false);
        self.vectors.clear();
    }

    /// A shutdown was asked for.
    pub(crate) fn begin_shutdown(&mut self, shared: &mut Shared) {
        let faults = shared.plan.event(self.function, &Trigger::Shutdown);
        self.apply(shared, &faults);
        self.kept.csts = self.kept.csts.with_shutdown(ShutdownStatus::Occurring);
        let steps = prolonged(shared.config.shutdown_steps, &faults);
        self.shutdown = Some(steps);
        if steps == 0 {
            self.end_shutdown();
        }
    }

    fn end_shutdown(&mut self) {
        self.shutdown = None;
        self.kept.csts = self.kept.csts.with_shutdown(ShutdownStatus::Complete);
    }

    /// Whether commands are no longer taken because of a shutdown.
    pub(crate) fn is_shut(&self) -> bool {
        self.kept.csts.shutdown() != ShutdownStatus::Normal
    }

    /// What a fault does to the controller itself.
    pub(crate) fn apply(&mut self, shared: &mut Shared, faults: &[Fault]) {
        for fault in faults {
            match fault {
                Fault::Fatal => self.fail(),
                Fault::Remove => {
                    self.doomed = true;
                    shared.effects.push(Effect::Remove(self.function));
                }
                Fault::SubsystemReset => {
                    self.doomed = true;
                    shared.effects.push(Effect::SubsystemReset);
                }
                Fault::Event(event) => self.event(*event),
                Fault::SpuriousInterrupt(vector) => self.raise(*vector),
                Fault::Unsolicited { queue, cid } => {
                    let mut post = Post::new(*queue, *cid, Status::SUCCESS, 0);
                    post.twist.extra = true;
                    if let Some(cq) = self.cqs.get_mut(queue) {
                        cq.posts.push_back(post);
                    }
                }
                _ => {}
            }
        }
    }

    /// Raises a vector, if it is turned on and the function may.
    pub(crate) fn raise(&mut self, vector: u16) {
        if !self.bus.is_master() {
            return;
        }
        if let Some(mut file) = self.vectors.get(usize::from(vector)) {
            // A full counter is readable all the same.
            let _ = file.write(&1_u64.to_ne_bytes());
            self.stats.interrupts += 1;
            if let Some(count) = self.raised.get_mut(usize::from(vector)) {
                *count += 1;
            }
        }
    }

    /// An asynchronous event occurs.
    pub(crate) fn event(&mut self, event: AsyncEvent) {
        self.events.add(event);
    }

    /// Works for a step. True if it did something, or something is due in a later step.
    pub(crate) fn step(&mut self, shared: &mut Shared) -> bool {
        if self.removed {
            return false;
        }
        let faults = shared.plan.event(self.function, &Trigger::Step(shared.now));
        self.apply(shared, &faults);
        let mut busy = !faults.is_empty() || self.pass_time(shared);
        if self.works() {
            busy |= self.look_at_shadows(shared);
            busy |= self.fetch(shared);
            busy |= self.execute(shared);
            busy |= self.tell_events();
            busy |= self.post(shared);
        }
        busy
    }

    fn pass_time(&mut self, shared: &mut Shared) -> bool {
        let mut busy = false;
        if let Some(left) = self.shutdown
            && left != NEVER
        {
            busy = true;
            self.shutdown = Some(left.saturating_sub(1));
            if left <= 1 {
                self.end_shutdown();
            }
        }
        match self.life {
            Life::Enabling(left) if left != NEVER && !self.kept.csts.fatal() => {
                self.life = Life::Enabling(left.saturating_sub(1));
                if left <= 1 {
                    self.become_ready(shared);
                }
                true
            }
            Life::Disabling(left) if left != NEVER => {
                self.life = Life::Disabling(left.saturating_sub(1));
                if left <= 1 {
                    self.become_disabled(shared);
                }
                true
            }
            _ => busy,
        }
    }

    /// Carries out what is due.
    fn execute(&mut self, shared: &mut Shared) -> bool {
        let now = shared.now;
        let mut busy = self.running.iter().any(|running| running.due != u64::MAX);
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| running.due <= now);
        self.running = later;
        if shared.config.shuffle.is_some() {
            for index in (1..due.len()).rev() {
                due.swap(index, shared.random_below(index + 1));
            }
        }
        let mut due: VecDeque<_> = due.into();
        while let Some(running) = due.pop_front() {
            // A command may end the controller's work, or delete the queue of one that waits here.
            if !self.works() {
                break;
            }
            if running.sqid != 0 && !self.sqs.contains_key(&running.sqid) {
                continue;
            }
            self.data_fault = DataFault::of(&running.faults);
            let refused = running.faults.iter().find_map(|fault| match fault {
                Fault::Refuse(status) => Some(*status),
                _ => None,
            });
            let outcome = match refused {
                Some(status) => Outcome::Done(status, 0),
                None if running.sqid == 0 => self.admin(shared, &running.sqe, &mut due),
                None => self.io(shared, &running.sqe).into(),
            };
            if let Outcome::Done(status, value) = outcome {
                if refused.is_none() && !status.is_success() {
                    shared.refuse(self.function, running.sqid, &running.sqe, status);
                    self.errors.add(running.sqid, &running.sqe, status);
                }
                self.complete(now, &running, status, value);
            }
        }
        let ready: Vec<_> = self.late.extract_if(.., |(at, _, _)| *at <= now).collect();
        for (_, cqid, post) in ready {
            if let Some(cq) = self.cqs.get_mut(&cqid) {
                cq.posts.push_back(post);
            }
        }
        busy |= self.late.iter().any(|(at, _, _)| *at != u64::MAX);
        busy
    }

    /// Has a command's completion posted, as its faults say.
    pub(crate) fn complete(&mut self, now: u64, running: &Running, status: Status, value: u64) {
        let mut post = Post::new(running.sqid, running.sqe.cid.get(), status, value);
        let mut at = now;
        let mut twin = None;
        for fault in &running.faults {
            match fault {
                Fault::Lose => return,
                Fault::Late(steps) => at = later(now, *steps),
                Fault::Duplicate(steps) => twin = Some(*steps),
                Fault::Report(status) => post.status = *status,
                Fault::WrongPhase => post.twist.phase = true,
                Fault::WrongCid(cid) => post.twist.cid = Some(*cid),
                Fault::WrongSqHead(head) => post.twist.sq_head = Some(*head),
                Fault::WrongSqId(sqid) => post.twist.sq_id = Some(*sqid),
                Fault::NoInterrupt => post.silent = true,
                Fault::Raw(dwords) => post.twist.raw = Some(*dwords),
                _ => {}
            }
        }
        if let Some(steps) = twin {
            let mut twin = post.clone();
            twin.twist.extra = true;
            twin.twist.raw = None;
            self.late.push((later(at, steps), running.cqid, twin));
        }
        if at > now {
            self.late.push((at, running.cqid, post));
        } else if let Some(cq) = self.cqs.get_mut(&running.cqid) {
            cq.posts.push_back(post);
        }
    }
}

/// The step that is `steps` later.
pub(crate) fn later(now: u64, steps: u32) -> u64 {
    if steps == NEVER {
        u64::MAX
    } else {
        now.saturating_add(u64::from(steps))
    }
}
