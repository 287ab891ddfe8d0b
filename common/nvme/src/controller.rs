//! [`Controller`]: a handle of a controller that is driven here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use homi_pci::{Access, Mapping, PciFunction, Unsupported, Vector};
use homi_queue::{CompletionRing, PageSize, Region, RingSizeError, Slots, SubmissionRing, Words};
use homi_spec::admin::{CreateIoCq, CreateIoSq, DeleteIoQueue, QueueKind};
use homi_spec::event::AsyncEvent;
use homi_spec::registers::{completion_doorbell, submission_doorbell};

use crate::admin::AdminQueue;
use crate::bar::Bar;
use crate::clock::Clock;
use crate::cmb::Cmb;
use crate::error::NvmeError;
use crate::info::{ControllerInfo, Namespace};
use crate::life::{Cause, Inner, Life, Registered, State};
use crate::options::{Interrupts, Options, Placement, Priority, QueueOptions};
use crate::pins::Mapped;
use crate::queue::{Created, IoQueue, Parts, Rings};
use crate::reach::{Reach, ReachRules};
use crate::shadow::ShadowDoorbells;
use crate::shared::{LOST, QueueCounters, QueueShared};
use crate::transact::{AdminData, Via};
use crate::watch::Watch;

/// A queue of a controller, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its identifier.
    pub qid: u16,
    /// Commands that may be in flight.
    pub depth: u16,
    /// It executes commands; otherwise it is over and was not dropped yet.
    pub running: bool,
    /// What it has done so far.
    pub counters: QueueCounters,
}

/// A controller. Cloning gives another handle of it; it is shut down when the last handle and the last queue are dropped.
///
/// There are no hidden threads: somebody calls [`service`](Self::service) now and then, or has [`watch`](Self::watch) do it. Without that,
/// time-outs, failures and events go unnoticed, and queues that their controller let down wait for ever.
#[derive(Clone)]
pub struct Controller(Arc<Inner>);

impl Controller {
    /// Takes over the controller of a function: whatever it was doing ends, then it is brought up and identified.
    ///
    /// # Errors
    /// [`NvmeError`] with what the controller, its function or the system did not do. The controller is stopped then.
    pub fn open(
        function: Arc<dyn PciFunction>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Self, NvmeError> {
        let bar = Bar::new(function.registers(0)?)?;
        let cap = bar.cap()?;
        let page = PageSize::from_mps(cap.mpsmin()).map_err(|error| NvmeError::Incompatible {
            what: "the smallest memory page (CAP.MPSMIN)",
            found: error.to_string(),
            needed: "at most 2 MiB",
        })?;
        if cap.max_queue_entries() < 2 {
            return Err(NvmeError::Incompatible {
                what: "the largest queue (CAP.MQES)",
                found: format!("{} entry", cap.max_queue_entries()),
                needed: "at least 2 entries",
            });
        }
        if bar.last_queue(cap.doorbell_stride()) == 0 {
            tracing::warn!(
                function = function.name(),
                "bar 0 holds no doorbells of i/o queues"
            );
        }
        let bell = Vector::new().map_err(|source| homi_pci::PciError::System {
            function: function.name().to_owned(),
            doing: "making an event descriptor",
            source,
        })?;
        let admin = AdminQueue::new(function.dma(), page, options.admin_depth, cap.doorbell_stride())?;
        let inner = Inner::new(function, bar, cap, page, clock, options, bell, admin);
        let mut life = inner.lock();
        inner.bring_up(&mut life)?;
        drop(life);
        Ok(Self(Arc::new(inner)))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// The function that it drives.
    #[must_use]
    pub fn function(&self) -> &Arc<dyn PciFunction> {
        &self.0.function
    }

    /// What the controller is at the moment.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.lock().state.clone()
    }

    /// The same without waiting: `None` while somebody brings the controller up, resets it or looks after it.
    #[must_use]
    pub fn try_state(&self) -> Option<State> {
        self.0.try_lock().map(|life| life.state.clone())
    }

    /// What the controller said about itself when it was brought up last.
    ///
    /// # Errors
    /// [`NvmeError::Failed`] if it never was.
    pub fn info(&self) -> Result<Arc<ControllerInfo>, NvmeError> {
        self.0.lock().info()
    }

    /// The namespaces that are attached, as of the last [`rescan`](Self::rescan), by identifier.
    #[must_use]
    pub fn namespaces(&self) -> Arc<Vec<Namespace>> {
        self.0.namespaces()
    }

    /// A namespace that is attached.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Namespace> {
        let namespaces = self.namespaces();
        namespaces
            .iter()
            .find(|namespace| namespace.nsid() == nsid)
            .cloned()
    }

    /// The queues that exist, those that are over and not dropped yet among them.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueStatus> {
        let life = self.0.lock();
        let status = |queue: &Registered| QueueStatus {
            qid: queue.shared.qid,
            depth: queue.shared.depth,
            running: queue.shared.is_running(),
            counters: queue.shared.counters.read(),
        };
        life.queues.values().map(status).collect()
    }

    /// How often the controller was reset, on request or by itself.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.0.lock().resets
    }

    /// The oldest event that nobody took yet. Events come in [`service`](Self::service). Most are announced once, until the log page that
    /// they name is read: see [`log_page`](Self::log_page) and [`changed_namespaces`](Self::changed_namespaces).
    #[must_use]
    pub fn take_event(&self) -> Option<AsyncEvent> {
        self.0.lock().admin.take_event()
    }

    /// Events that were dropped because nobody took them.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.0.lock().admin.events_lost
    }

    /// Does all periodic work: admin completions, events, time-outs, failures, removal, and recovery, for which it may wait for the
    /// controller. Returns how long it may be left alone.
    pub fn service(&self) -> Duration {
        self.0.service(&mut self.0.lock())
    }

    /// Starts the thread that calls [`service`](Self::service), asleep while there is nothing to do.
    ///
    /// # Errors
    /// [`NvmeError::Thread`].
    pub fn watch(&self) -> Result<Watch, NvmeError> {
        Watch::start(self)
    }

    /// Resets the controller and brings it up again. Every queue is over afterwards: its next call returns the commands without an outcome.
    /// A controller that failed is tried again.
    ///
    /// # Errors
    /// Why it did not come back, or cannot: it was removed or shut down.
    pub fn reset(&self) -> Result<(), NvmeError> {
        let mut life = self.0.lock();
        match life.state {
            State::Removed => return Err(NvmeError::Removed),
            State::ShutDown => return Err(NvmeError::ShutDown),
            State::Ready | State::Starting | State::Failed(_) => {}
        }
        self.0.stop(&mut life, &Cause::Asked);
        self.0.restart(&mut life);
        life.ready()
    }

    /// Shuts the controller down in order (CC.SHN). Every queue is over afterwards. Dropping the last handle does the same.
    pub fn shutdown(&self) {
        self.0.shut_down(&mut self.0.lock());
    }

    /// Makes a region reachable for the controller and all its queues, until the result is dropped. Memory that nobody mapped like this is
    /// mapped by the queues that use it, and kept for a while.
    ///
    /// # Errors
    /// [`NvmeError::Dma`].
    pub fn map(&self, region: &Region) -> Result<Mapped, NvmeError> {
        let mapping = self.0.space.map(region, Access::ReadWrite)?;
        Ok(self.0.pins.add(mapping))
    }

    /// The same with a mapping that exists, made by another function of the same address space.
    ///
    /// # Errors
    /// [`NvmeError::Unsupported`] if it is a mapping of another space.
    pub fn adopt(&self, mapping: Mapping) -> Result<Mapped, NvmeError> {
        if !mapping.space().is(&self.0.space) {
            return Err(Unsupported {
                what: "a mapping of another address space",
                missing: "functions that share one: map the region here as well".to_owned(),
            }
            .into());
        }
        Ok(self.0.pins.add(mapping))
    }

    /// The controller's memory buffer, which is turned on by the first call.
    ///
    /// # Errors
    /// [`NvmeError::Unsupported`] if it has none, [`NvmeError::Incompatible`] if what it says about it makes no sense.
    pub fn cmb(&self) -> Result<Cmb, NvmeError> {
        self.0.cmb(&mut self.0.lock())
    }

    /// Opens an I/O queue, while others run. Waits for the controller.
    ///
    /// # Errors
    /// [`NvmeError::NoQueues`], [`NvmeError::NoVectors`], and whatever the controller refuses.
    pub fn open_queue(&self, options: QueueOptions) -> Result<IoQueue, NvmeError> {
        let inner = &self.0;
        let mut life = inner.lock();
        life.ready()?;
        let info = life.info()?;
        if options.priority != Priority::Medium && !info.weighted {
            return Err(Unsupported {
                what: "a priority other than medium",
                missing: "weighted round robin: open the controller with Options::arbitration".to_owned(),
            }
            .into());
        }
        let cmb = match options.placement {
            Placement::Host => None,
            Placement::ControllerMemory => Some(self.cmb_for_queues(&mut life)?),
        };
        let most =
            Slots::<()>::MAX_DEPTH.min(u16::try_from(info.cap.max_queue_entries() - 1).unwrap_or(u16::MAX));
        let depth = options.depth.clamp(1, most);
        let shared = register(&mut life, &info, depth, options.interrupts)?;
        let shadow = life
            .shadow
            .as_ref()
            .and_then(|shadow| shadow.doorbells(shared.qid));
        drop(life);
        let built = self.build_queue(&info, shared.clone(), cmb.as_ref(), shadow);
        let mut queue = match built {
            Ok(queue) => queue,
            Err(error) => {
                inner.lock().queues.remove(&shared.qid);
                return Err(error);
            }
        };
        // From here on, dropping the queue undoes what was done.
        self.create(&mut queue, &options)?;
        Ok(queue)
    }

    fn cmb_for_queues(&self, life: &mut Life) -> Result<Cmb, NvmeError> {
        let cmb = self.0.cmb(life)?;
        if !cmb.support().submission_queues() {
            return Err(Unsupported {
                what: "a submission queue in the controller's memory",
                missing: "the controller does not take one there (CMBSZ.SQS)".to_owned(),
            }
            .into());
        }
        Ok(cmb)
    }

    fn build_queue(
        &self,
        info: &ControllerInfo,
        shared: Arc<QueueShared>,
        cmb: Option<&Cmb>,
        shadow: Option<ShadowDoorbells>,
    ) -> Result<IoQueue, NvmeError> {
        let inner = &self.0;
        let entries = u32::from(shared.depth) + 1;
        let (page, count) = (info.page_size(), u64::from(entries));
        let bytes = |len: u64| usize::try_from(len.next_multiple_of(page)).unwrap_or(usize::MAX);
        let submissions = cmb.map(|cmb| cmb.allocate(bytes(count * 64))).transpose()?;
        if let Some(memory) = &submissions {
            memory.region().fill(0, memory.region().len(), 0)?;
        }
        let before = if submissions.is_some() {
            0
        } else {
            bytes(count * 64)
        };
        let align = usize::try_from(page.max(inner.space.page())).unwrap_or(4096);
        let memory = Region::allocate(before + bytes(count * 16), align)?;
        let mapping = inner.space.map(&memory, Access::ReadWrite)?;
        let size = |error: RingSizeError| NvmeError::Protocol(error.to_string());
        let host = submissions
            .as_ref()
            .map_or_else(|| memory.clone(), |memory| memory.region().clone());
        // Both begin at pages.
        let misplaced = || NvmeError::Protocol("memory for a queue's entries is misaligned".to_owned());
        let rings = Rings {
            entries: Words::new(host, 0, entries as usize).ok_or_else(misplaced)?,
            completions: Words::new(memory, before / 16, entries as usize).ok_or_else(misplaced)?,
            mapping,
            completions_at: before,
            submissions,
            submission: SubmissionRing::new(entries).map_err(size)?,
            completion: CompletionRing::new(entries).map_err(size)?,
        };
        let rules = ReachRules {
            page: info.page,
            max_len: info.max_transfer,
            sgl: info.sgl,
            sgl_use: inner.options.sgls,
            depth: shared.depth,
            kept_mappings: inner.options.kept_mappings,
            kept_bytes: inner.options.kept_bytes,
        };
        let qid = shared.qid;
        Ok(IoQueue::new(Parts {
            controller: self.clone(),
            registers: inner.bar.registers(),
            submission_doorbell: submission_doorbell(qid, inner.stride) as u64,
            completion_doorbell: completion_doorbell(qid, inner.stride) as u64,
            rings,
            reach: Reach::new(inner.space.clone(), Arc::clone(&inner.pins), &rules),
            shadow,
            namespaces: inner.namespaces(),
            shared,
        }))
    }

    fn create(&self, queue: &mut IoQueue, options: &QueueOptions) -> Result<(), NvmeError> {
        let (qid, depth) = (queue.qid(), homi_queue::Queue::depth(queue));
        let vector = self
            .0
            .lock()
            .queues
            .get(&qid)
            .and_then(|registered| registered.vector);
        let (submission, completion) = queue.addresses();
        let create = CreateIoCq {
            qid,
            size_z: depth,
            contiguous: true,
            interrupts: vector.is_some(),
            vector: vector.unwrap_or(0),
            address: completion,
        };
        self.0
            .command(&mut Via::Unlocked, create.to_sqe(0), AdminData::None)?;
        queue.created = Created::Completion;
        let create = CreateIoSq {
            qid,
            size_z: depth,
            contiguous: true,
            priority: options.priority.qprio(),
            cqid: qid,
            address: submission,
        };
        self.0
            .command(&mut Via::Unlocked, create.to_sqe(0), AdminData::None)?;
        queue.created = Created::Both;
        Ok(())
    }
}

/// Takes a number, and a vector if one is wanted, for a new queue.
fn register(
    life: &mut Life,
    info: &ControllerInfo,
    depth: u16,
    interrupts: Interrupts,
) -> Result<Arc<QueueShared>, NvmeError> {
    let granted = info.queues;
    let qid = (1..=granted)
        .find(|qid| !life.queues.contains_key(qid))
        .ok_or(NvmeError::NoQueues { granted })?;
    let vectors = u16::try_from(life.vectors.len()).unwrap_or(u16::MAX);
    let vector = match interrupts {
        Interrupts::Off => None,
        Interrupts::On => {
            let taken = |vector: &u16| life.queues.values().any(|queue| queue.vector == Some(*vector));
            let free = (1..vectors).find(|vector| !taken(vector));
            Some(free.ok_or(NvmeError::NoVectors { vectors })?)
        }
    };
    let raised = vector.and_then(|vector| life.vectors.get(usize::from(vector)).cloned());
    let shared = Arc::new(QueueShared::new(qid, depth, raised));
    life.queues.insert(
        qid,
        Registered {
            shared: Arc::clone(&shared),
            vector,
            aborted: Vec::new(),
        },
    );
    Ok(shared)
}

impl Inner {
    /// Deletes a queue; returns whether its memory is out of the controller's reach.
    pub(crate) fn delete_queue(&self, shared: &QueueShared, created: Created) -> bool {
        // Whoever resets the controller holds the lock, so the state that is seen under it is a final one.
        let running = {
            let _life = self.lock();
            shared.is_running()
        };
        if running && created != Created::Nothing {
            let delete = |kind| {
                let command = DeleteIoQueue {
                    kind,
                    qid: shared.qid,
                };
                self.command(&mut Via::Unlocked, command.to_sqe(0), AdminData::None)
            };
            let deleted = match created {
                Created::Both => delete(QueueKind::Submission).and_then(|_| delete(QueueKind::Completion)),
                Created::Completion | Created::Nothing => delete(QueueKind::Completion),
            };
            if let Err(error) = deleted {
                let mut life = self.lock();
                if shared.is_running() {
                    let cause = Cause::Deletion {
                        qid: shared.qid,
                        why: error.to_string(),
                    };
                    self.recover(&mut life, &cause);
                }
            }
        }
        let mut life = self.lock();
        life.queues.remove(&shared.qid);
        shared.is_running() || shared.state() == LOST
    }

    pub(crate) fn ring_bell(&self) {
        if let Err(error) = self.bell.raise() {
            tracing::warn!(%error, "a thread that watches the controller could not be woken");
        }
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = self.0.lock();
        f.debug_struct("Controller")
            .field("function", &self.0.function.name())
            .field("state", &life.state)
            .field("queues", &life.queues.len())
            .finish_non_exhaustive()
    }
}
