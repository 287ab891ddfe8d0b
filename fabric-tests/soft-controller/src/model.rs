//! The whole model: its functions, its steps, and what tests look at.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use homi_pci::{PciFunction, Vector};
use homi_queue::Region;
use homi_spec::event::AsyncEvent;

use crate::config::{ConfigError, Mode, SoftConfig};
use crate::controller::{Controller, ControllerStats};
use crate::dma::{Bus, Cmb, Traffic};
use crate::faults::{Fault, FaultRule};
use crate::function::{Parts, SoftFunction};
use crate::instant::{Instant, InstantQueue};
use crate::iommu::SoftSpace;
use crate::misuse::{Misuse, Refusal};
use crate::registers::bar_len;
use crate::shared::{Effect, Shared};

/// Why a model could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftError {
    /// No controller is like that.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no memory for the controller memory buffer.
    #[error(transparent)]
    Memory(#[from] homi_queue::MemoryError),
    /// The system has no descriptor left.
    #[error("the model cannot be made: {0}")]
    System(#[from] std::io::Error),
}

/// Steps that [`SoftController::run_until_idle`] takes at most.
pub const MAX_STEPS: u64 = 1_000_000;

#[derive(Debug)]
struct State {
    controllers: Vec<Controller>,
    shared: Shared,
}

#[derive(Debug)]
pub(crate) struct Model {
    state: Mutex<State>,
    parts: Vec<Arc<Parts>>,
    /// The first of them.
    physical: Arc<Parts>,
    spaces: Vec<SoftSpace>,
    handles: Mutex<Vec<Weak<SoftFunction>>>,
    /// A register was written since a thread that runs the model looked.
    written: AtomicBool,
    news: Condvar,
    /// Threads that run the model.
    threads: AtomicUsize,
}

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test's own thread must not hide what it found.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act` with one function's controller. Functions that do not exist are not handed out, so there always is one.
    pub(crate) fn with<T: Default>(
        &self,
        index: u16,
        act: impl FnOnce(&mut Controller, &mut Shared) -> T,
    ) -> T {
        let mut state = self.state();
        let State { controllers, shared } = &mut *state;
        match controllers.get_mut(usize::from(index)) {
            Some(controller) => act(controller, shared),
            None => T::default(),
        }
    }

    /// Does what one controller has to do to others.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        let removed = settle(&mut state);
        drop(state);
        self.tell_removed(&removed);
    }

    fn tell_removed(&self, removed: &[u16]) {
        for index in removed {
            if let Some(parts) = self.parts.get(usize::from(*index)) {
                parts.instant.clear();
                if let Some((memory, _)) = &parts.cmb {
                    // Inside, and what is left of the memory reads as ones.
                    let _ = memory.fill(0, memory.len(), 0xff);
                }
                // Only a full counter is refused, and that is readable.
                let _ = parts.removal.raise();
            }
        }
    }

    /// One step of every controller. True if anything was done or is due later.
    pub(crate) fn step(&self) -> bool {
        let mut state = self.state();
        state.shared.now += 1;
        let mut busy = false;
        let State { controllers, shared } = &mut *state;
        for controller in controllers {
            busy |= controller.step(shared);
        }
        busy |= !shared.effects.is_empty() || shared.plan.waits(shared.now);
        let removed = settle(&mut state);
        drop(state);
        self.tell_removed(&removed);
        busy
    }

    /// Tells a thread that runs the model that there may be work.
    pub(crate) fn wake(&self) {
        self.written.store(true, Ordering::Release);
        if self.threads.load(Ordering::Acquire) > 0 {
            // A thread that found nothing under the lock is asleep by now, and hears this.
            drop(self.state());
            self.news.notify_all();
        }
    }

    pub(crate) fn run_instantly(&self) {
        for _ in 0..MAX_STEPS {
            if !self.step() {
                break;
            }
        }
    }

    /// Has the I/O queues that exist now answered at once.
    pub(crate) fn refresh_instant(&self, index: u16, instant: &Instant) {
        let queues = self.with(index, |controller, _| instant_queues(controller));
        instant.set(queues);
    }
}

fn instant_queues(controller: &Controller) -> Vec<InstantQueue> {
    let mut queues = Vec::new();
    for (qid, sq) in controller.sqs.range(1..) {
        let Some(cq) = controller.cqs.get(&sq.cqid) else {
            continue;
        };
        // A completion queue of its own, with its number and no smaller, in mapped memory, with nothing under way.
        let shared = controller
            .sqs
            .values()
            .filter(|other| other.cqid == sq.cqid)
            .count();
        if shared != 1 || sq.cqid != *qid || cq.size < sq.size || sq.shadow.is_some() || !controller.works() {
            continue;
        }
        let place = |base: homi_queue::Iova, size: u32, entry: u64| {
            let (memory, offset) = controller.bus.iommu.memory(base, u64::from(size) * entry)?;
            (offset % 8 == 0 && memory.words().is_some()).then_some((memory, offset / 8))
        };
        if let Some((sq_memory, cq_memory)) = place(sq.base, sq.size, 64).zip(place(cq.base, cq.size, 16)) {
            queues.push(InstantQueue {
                qid: *qid,
                id: sq.id,
                sq: sq_memory,
                sq_size: sq.size,
                sq_head: sq.head,
                cq: cq_memory,
                cq_size: cq.size,
                cq_tail: cq.tail,
                ours: u64::from(*qid) << 16 | u64::from(cq.phase) << 48,
                completed: 0,
            });
        }
    }
    queues
}

/// Does what controllers have to do to others; the functions that were removed.
fn settle(state: &mut State) -> Vec<u16> {
    let mut removed = Vec::new();
    let State { controllers, shared } = state;
    for effect in std::mem::take(&mut shared.effects) {
        match effect {
            Effect::SubsystemReset => {
                shared.sriov.all_offline();
                for controller in controllers.iter_mut().filter(|controller| !controller.removed) {
                    controller.hard_reset(true);
                    controller.surprised = true;
                    // NSSRO.
                    controller.kept.csts.0 |= 1 << 4;
                }
            }
            Effect::Remove(index) => {
                // Virtual functions go with the physical one.
                for controller in controllers.iter_mut() {
                    if (controller.function == index || index == 0) && !controller.removed {
                        controller.remove();
                        removed.push(controller.function);
                    }
                }
            }
            Effect::NamespaceChanged { nsid, functions } => {
                for controller in controllers.iter_mut() {
                    if functions.contains(&controller.function) {
                        controller.namespace_changed(nsid);
                    }
                }
            }
            Effect::Secondary(index) => {
                if let Some(controller) = controllers.get_mut(usize::from(index)) {
                    controller.hard_reset(true);
                    controller.surprised = !shared.sriov.is_online(index);
                }
            }
        }
    }
    removed
}

/// An NVMe subsystem in memory: a physical function, perhaps virtual ones, and their namespaces. Cloning shares it.
///
/// It works only in [`step`](Self::step) and what calls that, unless [`spawn`](Self::spawn) or [`Mode::Instant`] has it work by itself.
#[derive(Clone)]
pub struct SoftController(Arc<Model>);

impl fmt::Debug for SoftController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftController").finish_non_exhaustive()
    }
}

impl SoftController {
    /// The model that `config` describes, powered on.
    ///
    /// # Errors
    /// [`SoftError`] if there is no such controller, or no memory or descriptors for it.
    pub fn new(config: SoftConfig) -> Result<Self, SoftError> {
        config.check()?;
        let functions = 1 + config.sriov.map_or(0, |sriov| sriov.functions);
        let stride = Controller::stride(&config);
        let mut controllers = Vec::new();
        let mut parts: Vec<Arc<Parts>> = Vec::new();
        let mut spaces = Vec::new();
        for function in 0..functions {
            let space = config.space.clone().unwrap_or_default();
            // The buffer is the physical function's.
            let cmb = match config.cmb.filter(|_| function == 0) {
                Some(cmb) => {
                    let size = usize::try_from(cmb.size).unwrap_or(usize::MAX);
                    Some(Cmb {
                        config: cmb,
                        memory: Region::allocate(size, 4096)?,
                        base: None,
                    })
                }
                None => None,
            };
            let queues = match config.sriov.filter(|_| function > 0) {
                Some(sriov) => sriov.queues_each,
                None => config.io_queues,
            };
            let instant = match config.mode {
                Mode::Instant => Instant::new(queues, stride),
                Mode::Stepped => Instant::default(),
            };
            parts.push(Arc::new(Parts {
                name: match function {
                    0 => config.name.clone(),
                    virtual_function => format!("{}/vf{virtual_function}", config.name),
                },
                identity: config.identity,
                space: space.dma().clone(),
                cmb: cmb.as_ref().map(|cmb| (cmb.memory.clone(), cmb.config.offset)),
                removal: Vector::new()?,
                bar_len: bar_len(queues, stride),
                instant,
            }));
            let bus = Bus {
                function,
                iommu: space.iommu.clone(),
                master: Arc::default(),
                cmb,
                traffic: Traffic::default(),
            };
            controllers.push(Controller::new(function, bus));
            spaces.push(space);
        }
        let handles = parts.iter().map(|_| Weak::new()).collect();
        let physical = parts.first().cloned().ok_or_else(|| ConfigError {
            what: "there is no function".into(),
        })?;
        Ok(Self(Arc::new(Model {
            state: Mutex::new(State {
                controllers,
                shared: Shared::new(config),
            }),
            parts,
            physical,
            spaces,
            handles: Mutex::new(handles),
            written: AtomicBool::new(false),
            news: Condvar::new(),
            threads: AtomicUsize::new(0),
        })))
    }

    fn handle(&self, index: u16, parts: &Arc<Parts>) -> Arc<SoftFunction> {
        let mut handles = self.0.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let place = handles.get_mut(usize::from(index));
        if let Some(function) = place.as_ref().and_then(|place| place.upgrade()) {
            return function;
        }
        let function = Arc::new(SoftFunction {
            model: self.0.clone(),
            index,
            parts: parts.clone(),
        });
        if let Some(place) = place {
            *place = Arc::downgrade(&function);
        }
        function
    }

    /// A function as drivers get it: 0 is the physical one, others are virtual and exist after [`enable_vfs`](Self::enable_vfs). `None` if
    /// there is none.
    #[must_use]
    pub fn function(&self, index: u16) -> Option<Arc<dyn PciFunction>> {
        let enabled = self.0.state().shared.sriov.enabled;
        let parts = self
            .0
            .parts
            .get(usize::from(index))
            .filter(|_| index <= enabled)?;
        Some(self.handle(index, parts))
    }

    /// The physical function.
    #[must_use]
    pub fn physical(&self) -> Arc<dyn PciFunction> {
        self.handle(0, &self.0.physical)
    }

    /// One step. True if anything was done, or is due in a later step; false once only a register write (or nothing) can bring more.
    #[expect(
        clippy::must_use_candidate,
        reason = "stepping for its effect is the usual case"
    )]
    pub fn step(&self) -> bool {
        self.0.step()
    }

    /// Steps until nothing is left to do; at most [`MAX_STEPS`] times. The number of steps. What the plan has for a later
    /// [step](crate::Trigger::Step) is something to do.
    #[expect(
        clippy::must_use_candidate,
        reason = "stepping for its effect is the usual case"
    )]
    pub fn run_until_idle(&self) -> u64 {
        for steps in 1..=MAX_STEPS {
            if !self.0.step() {
                return steps;
            }
        }
        MAX_STEPS
    }

    /// Steps so far.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.state().shared.now
    }

    /// Has a thread of its own step the model whenever there is something to do, until the result is dropped.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had.
    pub fn spawn(&self) -> Result<SoftThread, SoftError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (model, asked) = (self.0.clone(), stop.clone());
        // Before it runs, so that no register write is missed.
        self.0.threads.fetch_add(1, Ordering::AcqRel);
        let thread = std::thread::Builder::new()
            .name("soft-controller".into())
            .spawn(move || model.work(&asked))
            .inspect_err(|_| {
                self.0.threads.fetch_sub(1, Ordering::AcqRel);
            })?;
        Ok(SoftThread {
            model: self.0.clone(),
            stop,
            thread: Some(thread),
        })
    }

    /// What drivers did that they may not, the first 1024.
    #[must_use]
    pub fn misuse(&self) -> Vec<Misuse> {
        self.0.state().shared.misuse.clone()
    }

    /// Commands that were refused other than by faults of the plan, the first 1024.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        self.0.state().shared.refusals.clone()
    }

    /// Forgets misuse and refusals.
    pub fn forgive(&self) {
        let mut state = self.0.state();
        state.shared.misuse.clear();
        state.shared.refusals.clear();
    }

    /// Adds something that goes wrong.
    pub fn add_fault(&self, rule: FaultRule) {
        self.0.state().shared.plan.add(rule);
        self.0.wake();
    }

    /// Nothing goes wrong any more; what already did stays so.
    pub fn clear_faults(&self) {
        self.0.state().shared.plan.clear();
    }

    /// How many faults happened, of the rules that are there.
    #[must_use]
    pub fn faults_fired(&self) -> u64 {
        self.0.state().shared.plan.fired()
    }

    fn act(&self, index: u16, fault: &Fault) {
        self.0.with(index, |controller, shared| {
            controller.apply(shared, std::slice::from_ref(fault));
        });
        self.0.settle();
        self.0.wake();
    }

    /// Pulls a function out; with the physical one, all virtual ones go.
    pub fn remove(&self, index: u16) {
        self.act(index, &Fault::Remove);
    }

    /// Has a controller fail: CSTS.CFS.
    pub fn fail(&self, index: u16) {
        self.act(index, &Fault::Fatal);
    }

    /// Resets the whole subsystem, as a write of NSSR does.
    pub fn reset_subsystem(&self) {
        self.act(0, &Fault::SubsystemReset);
    }

    /// Has an asynchronous event occur.
    pub fn event(&self, index: u16, event: AsyncEvent) {
        self.act(index, &Fault::Event(event));
    }

    /// Makes the first `count` virtual functions exist (0 takes all away; they must not be in use then), as the operating system does. The
    /// number that exists then.
    pub fn enable_vfs(&self, count: u16) -> u16 {
        let mut state = self.0.state();
        let State { controllers, shared } = &mut *state;
        let most = shared.sriov.config.map_or(0, |config| config.functions);
        let count = count.min(most);
        shared.sriov.enabled = count;
        for function in count.saturating_add(1)..=most {
            if let Some(secondary) = shared.sriov.secondary_mut(function) {
                secondary.online = false;
            }
            if let Some(controller) = controllers.get_mut(usize::from(function)) {
                controller.hard_reset(true);
            }
        }
        count
    }

    /// What a function's controller did.
    #[must_use]
    pub fn stats(&self, index: u16) -> ControllerStats {
        self.0.with(index, |controller, _| controller.stats)
    }

    /// Bytes that a function's controller moved.
    #[must_use]
    pub fn traffic(&self, index: u16) -> Traffic {
        self.0.with(index, |controller, _| controller.bus.traffic)
    }

    /// Interrupts raised, by vector, since the vectors were turned on.
    #[must_use]
    pub fn interrupts(&self, index: u16) -> Vec<u64> {
        self.0.with(index, |controller, _| controller.raised.clone())
    }

    /// I/O submission and completion queues that exist.
    #[must_use]
    pub fn io_queues(&self, index: u16) -> (usize, usize) {
        self.0.with(index, |controller, _| {
            (
                controller.sqs.len().saturating_sub(1),
                controller.cqs.len().saturating_sub(1),
            )
        })
    }

    /// Commands that were fetched and are not completed, event requests left out.
    #[must_use]
    pub fn under_way(&self, index: u16) -> usize {
        self.0.with(index, |controller, _| {
            let posts: usize = controller.cqs.values().map(|cq| cq.posts.len()).sum();
            controller.running.len() + controller.late.len() + posts
        })
    }

    /// Commands that [`Mode::Instant`] completed by the shortest way.
    #[must_use]
    pub fn instant_completions(&self, index: u16) -> u64 {
        let parts = self.0.parts.get(usize::from(index));
        parts.map_or(0, |parts| parts.instant.completed())
    }

    /// The address space of a function's DMA, and what happened in it.
    #[must_use]
    pub fn space(&self, index: u16) -> Option<SoftSpace> {
        self.0.spaces.get(usize::from(index)).cloned()
    }

    /// Reads the media of a namespace behind the controllers' backs, from this byte on. False if there are no such bytes.
    #[must_use]
    pub fn read_media(&self, nsid: u32, at: u64, to: &mut [u8]) -> bool {
        let state = self.0.state();
        let end = at.checked_add(to.len() as u64);
        match state.shared.namespaces.get(&nsid) {
            Some(namespace) if end.is_some_and(|end| end <= namespace.size()) => {
                namespace.media.read(at, to);
                true
            }
            _ => false,
        }
    }

    /// Writes the media of a namespace behind the controllers' backs, from this byte on. False if there are no such bytes.
    #[must_use]
    pub fn write_media(&self, nsid: u32, at: u64, from: &[u8]) -> bool {
        let mut state = self.0.state();
        let end = at.checked_add(from.len() as u64);
        match state.shared.namespaces.get_mut(&nsid) {
            Some(namespace) if end.is_some_and(|end| end <= namespace.size()) => {
                namespace.media.write(at, from);
                true
            }
            _ => false,
        }
    }

    /// Flushes of a namespace so far; 0 if it does not exist.
    #[must_use]
    pub fn flushes(&self, nsid: u32) -> u64 {
        let state = self.0.state();
        state
            .shared
            .namespaces
            .get(&nsid)
            .map_or(0, |namespace| namespace.flushes)
    }

    /// Identifiers of the namespaces that exist, and the functions that each is attached to.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(u32, Vec<u16>)> {
        let state = self.0.state();
        let namespaces = state.shared.namespaces.iter();
        namespaces
            .map(|(nsid, namespace)| (*nsid, namespace.attached.iter().copied().collect()))
            .collect()
    }

    /// Changes a namespace from outside, as another host would: gives it `blocks` blocks, or with `None` detaches it from all controllers.
    /// They are told by an event. False if it does not exist.
    pub fn change_namespace(&self, nsid: u32, blocks: Option<u64>) -> bool {
        let mut state = self.0.state();
        let State { controllers, shared } = &mut *state;
        let Some(namespace) = shared.namespaces.get_mut(&nsid) else {
            return false;
        };
        let attached = namespace.attached.clone();
        match blocks {
            Some(blocks) => namespace.blocks = blocks.max(1),
            None => namespace.attached.clear(),
        }
        for controller in controllers {
            if attached.contains(&controller.function) {
                controller.namespace_changed(nsid);
            }
        }
        drop(state);
        self.0.wake();
        true
    }

    /// When the model works.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.state().shared.config.mode
    }
}

/// A thread that steps a model. Dropping it ends it.
#[derive(Debug)]
pub struct SoftThread {
    model: Arc<Model>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SoftThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.model.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did, the test's own failure says more.
            let _ = thread.join();
            self.model.threads.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Model {
    /// Steps while there is something to do, and sleeps otherwise.
    fn work(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            self.written.store(false, Ordering::Release);
            if self.step() {
                continue;
            }
            let idle = |_: &mut State| !self.written.load(Ordering::Acquire) && !stop.load(Ordering::Acquire);
            let woken = self.news.wait_while(self.state(), idle);
            drop(woken);
        }
    }
}
