//! [`Core`]: what sessions use of their engine: buffers, and the executors that carry commands out.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use homi_fabric::controller::Node;
use homi_local::{Backing, Drive, DriveQueue, Drives, QueueError, QueueUse, Reachable};
use homi_nvme::Cmb;
use homi_queue::{Command, Completion, Data, Region};
use homi_spec::status::Status;

use super::{Backed, EngineOptions, Request, Shared};
use crate::arena::Arena;
use crate::cmb::{CmbParts, CmbPool};
use crate::executors::{Executor, ExecutorRoute, Finished, NO_EPOCH, Waiting};
use crate::lanes::{Lane, Lanes};
use crate::pool::{Change, Pool};
use crate::session::Memory;
use crate::slab::{Key, Slab};

/// How payload reached the memory of commands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Payload {
    /// Commands whose payload was copied from a staging buffer, wholly or in part.
    pub(crate) copies: u64,
    /// Bytes that were.
    pub(crate) bytes_copied: u64,
    /// Bytes that the kernel put where they belong.
    pub(crate) bytes_landed: u64,
    /// Bytes that were placed in memory buffers of drives.
    pub(crate) bytes_cmb: u64,
}

/// What has to go to a shared queue, since there is none of one's own left.
pub(crate) struct Diverted {
    /// Whose it is.
    pub(super) owner: Key,
    /// Commands that waited, each with its backing's handle.
    pub(crate) waiting: Vec<(u64, Waiting)>,
    /// Handles of all namespaces concerned.
    pub(crate) handles: Vec<u64>,
}

/// How remote queues came by queue pairs of drives.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DriveQueues {
    /// Remote queues that have one of their own now, counted for each drive.
    pub(crate) own: u64,
    /// Remote queues that share the shard's since none was left, likewise, since the start.
    pub(crate) sharing: u64,
}

/// What sessions use of their engine.
pub(crate) struct Core {
    pub(super) shared: Shared,
    pub(super) options: EngineOptions,
    pub(crate) pool: Pool,
    /// The buffers of connections over RDMA.
    pub(crate) arena: Arena,
    /// The shard's parts of memory buffers of drives.
    pub(super) cmb: Vec<Option<CmbPool>>,
    /// Such buffers came back since commands that wait for them were looked at.
    pub(crate) freed: bool,
    pub(crate) payload: Payload,
    /// Namespaces that were flushed because a host shut its controller down.
    pub(crate) flushed: u64,
    pub(super) executors: Slab<Box<Executor>>,
    /// By the backing's handle, which is a small number: the executor that all connections share. Those of drives are not here.
    pub(super) shared_executors: Vec<Option<Key>>,
    /// Executors of drives that connections share.
    pub(super) shared_drives: Vec<Key>,
    /// Places of executors that are gone, whose descriptors the shard need not watch any more.
    pub(super) gone: Vec<usize>,
    /// Executors with commands.
    pub(super) busy: Vec<Key>,
    /// Executors whose queue is being opened.
    pub(super) opening: usize,
    /// What drives reach of the memory above.
    pub(super) reachable: Vec<Reachable>,
    pub(crate) drive_queues: DriveQueues,
    /// What was last said about queues that could not be opened.
    pub(super) complaint: Option<String>,
    pub(super) finished: Vec<Finished>,
    /// Sessions with commands that wait for buffers, the one that waits longest first.
    pub(super) waiting_for_buffers: VecDeque<Key>,
    /// Sessions with something to send, or that want to be closed.
    pub(super) listed: Vec<Key>,
}

impl Core {
    pub(super) fn new(shared: Shared, options: EngineOptions) -> Self {
        let pool = Pool::new(options.buffers, options.max_transfer);
        let arena = Arena::new(options.buffers, options.max_transfer);
        Self {
            shared,
            options,
            pool,
            arena,
            cmb: Vec::new(),
            freed: false,
            payload: Payload::default(),
            flushed: 0,
            executors: Slab::new(),
            shared_executors: Vec::new(),
            shared_drives: Vec::new(),
            opening: 0,
            reachable: Vec::new(),
            drive_queues: DriveQueues::default(),
            complaint: None,
            gone: Vec::new(),
            busy: Vec::new(),
            finished: Vec::new(),
            waiting_for_buffers: VecDeque::new(),
            listed: Vec::new(),
        }
    }

    /// Drives reach this memory from now on.
    #[cfg(feature = "rdma")]
    pub(super) fn reach(&mut self, region: &Region) {
        reach(
            &self.shared.drives,
            &mut self.reachable,
            &mut self.executors,
            region,
        );
    }

    /// Drives need not reach this memory any more.
    #[cfg(feature = "rdma")]
    pub(super) fn unreach(&mut self, region: &Region) {
        unreach(&mut self.reachable, &mut self.executors, region);
    }

    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        self.shared.node()
    }

    pub(crate) fn route_effects(&self) {
        self.shared.route_effects();
    }

    /// Remembers that a session has something for the shard to do.
    #[inline]
    pub(crate) fn list(&mut self, key: Key, listed: &mut bool) {
        if !*listed {
            *listed = true;
            self.listed.push(key);
        }
    }

    /// Remembers that a session has commands that wait for buffers.
    pub(crate) fn wait_for_buffer(&mut self, key: Key, queued: &mut bool) {
        if !*queued {
            *queued = true;
            self.waiting_for_buffers.push_back(key);
        }
    }

    /// A buffer of `len` bytes, or `None` when there is none now.
    #[inline]
    pub(crate) fn take(&mut self, memory: Memory, len: usize) -> Option<Data> {
        match memory {
            Memory::Ordinary => {
                let Self {
                    pool,
                    executors,
                    reachable,
                    shared,
                    ..
                } = self;
                pool.take(len, |change| match change {
                    Change::New(region) => reach(&shared.drives, reachable, executors, region),
                    Change::Going(region) => unreach(reachable, executors, region),
                })
            }
            Memory::Registered => {
                let data = self.arena.take(len);
                while let Some(region) = self.arena.next_new() {
                    let executors = &mut self.executors;
                    reach(&self.shared.drives, &mut self.reachable, executors, region);
                }
                data
            }
            Memory::Cmb(number) => {
                let data = self.cmb_pool(number)?.take(len)?;
                self.payload.bytes_cmb += len as u64;
                Some(data)
            }
        }
    }

    fn cmb_pool(&mut self, number: u16) -> Option<&mut CmbPool> {
        self.cmb.get_mut(usize::from(number))?.as_mut()
    }

    /// The memory buffer that data lies in, if it is in one.
    fn cmb_of(&mut self, data: &Data) -> Option<&mut CmbPool> {
        self.cmb.iter_mut().flatten().find(|pool| pool.owns(data))
    }

    /// Where data of commands on the backing with this handle passes through, if `usual` is what the connection uses.
    #[inline]
    pub(crate) fn memory_for(
        &mut self,
        usual: Memory,
        lanes: &mut Lanes,
        session: Key,
        handle: u64,
    ) -> Memory {
        if !self.shared.backings.any_cmb.load(Ordering::Relaxed) {
            return usual;
        }
        let lane = lanes.get(handle).or_else(|| self.lane(lanes, session, handle));
        lane.and_then(|lane| lane.cmb).map_or(usual, Memory::Cmb)
    }

    /// Whether what is in the data's memory may be something else by now, because that is a buffer of a controller that was reset.
    #[inline]
    pub(crate) fn is_stale(&mut self, data: &Data) -> bool {
        !self.cmb.is_empty() && self.cmb_of(data).is_some_and(|pool| pool.is_stale(data))
    }

    /// Takes back a buffer that a command is done with. Other memory is dropped.
    #[inline]
    pub(crate) fn put(&mut self, memory: Memory, data: Data) {
        if !self.cmb.is_empty()
            && let Some(pool) = self.cmb_of(&data)
        {
            return pool.put(data);
        }
        match memory {
            // Its buffer's drive is gone.
            Memory::Cmb(_) => drop(data),
            Memory::Ordinary => self.pool.put(data),
            Memory::Registered => {
                self.arena.put(&data);
            }
        }
    }

    /// See [`Pool::may_lend`].
    #[inline]
    pub(crate) fn may_lend(&mut self, memory: Memory, held: usize, len: usize) -> bool {
        match memory {
            Memory::Ordinary => self.pool.may_lend(held, len),
            Memory::Registered => self.arena.may_lend(held, len),
            Memory::Cmb(number) => self.cmb_pool(number).is_some_and(|pool| pool.may_lend(held, len)),
        }
    }

    /// See [`Pool::lend`].
    #[inline]
    pub(crate) fn lend(&mut self, memory: Memory, len: usize) -> usize {
        match memory {
            Memory::Ordinary => self.pool.lend(len),
            Memory::Registered => self.arena.lend(len),
            Memory::Cmb(number) => self.cmb_pool(number).map_or(0, |pool| pool.lend(len)),
        }
    }

    /// See [`Pool::settle`].
    #[inline]
    pub(crate) fn settle(&mut self, memory: Memory, size: usize) {
        match memory {
            Memory::Ordinary => self.pool.settle(size),
            Memory::Registered => self.arena.settle(size),
            Memory::Cmb(number) => {
                if let Some(pool) = self.cmb_pool(number) {
                    pool.settle(size);
                }
            }
        }
    }

    /// Whether the executor of the backing with this handle lends reads its own memory. Where not, they need buffers of the pool, or what
    /// hosts ask for and do not take would have no bound.
    #[inline]
    pub(crate) fn lends_memory(
        &mut self,
        memory: Memory,
        lanes: &mut Lanes,
        session: Key,
        handle: u64,
    ) -> bool {
        if memory == Memory::Registered {
            // No device has registered it.
            return false;
        }
        if let Some(lane) = lanes.get(handle)
            && let Some(executor) = self.executors.get_mut(lane.executor)
        {
            return executor.lends_memory;
        }
        match self.lane(lanes, session, handle) {
            Some(lane) => self
                .executors
                .get_mut(lane.executor)
                .is_some_and(|executor| executor.lends_memory),
            // What is started there fails before it has any memory.
            None => true,
        }
    }

    /// Starts a command at the executor that a session has for the backing with this handle.
    #[inline]
    pub(crate) fn start(
        &mut self,
        lanes: &mut Lanes,
        route: ExecutorRoute,
        handle: u64,
        command: Command,
        data: Data,
    ) {
        if let Some(Lane {
            executor: key,
            member,
            ..
        }) = lanes.get(handle)
            && let Some(executor) = self.executors.get_mut(key)
        {
            let pool = self.cmb.iter().flatten().find(|pool| pool.owns(&data));
            let epoch = pool.and_then(|pool| pool.epoch_of(&data)).unwrap_or(NO_EPOCH);
            if !executor.is_busy() && executor.is_open() {
                self.busy.push(key);
            }
            return executor.start(Waiting {
                route,
                member,
                command,
                data,
                epoch,
            });
        }
        match self.lane(lanes, route.session, handle) {
            // It is found there now.
            Some(_) => self.start(lanes, route, handle, command, data),
            None => self.finished.push(Finished {
                route,
                completion: Completion::failed(Status::NAMESPACE_NOT_READY),
                data,
            }),
        }
    }

    /// Where a session's commands go for the backing with this handle; a queue is opened if there is none.
    #[cold]
    fn lane(&mut self, lanes: &mut Lanes, session: Key, handle: u64) -> Option<Lane> {
        let index = usize::try_from(handle).ok()?;
        let Backed { backing, cmb } = self.shared.backings.get(index)?;
        let number = match &cmb {
            Some(parts) => Some(self.use_cmb(parts, handle)?),
            None => None,
        };
        let cmb = number.and_then(|number| Some(self.cmb_pool(number)?.cmb().clone()));
        let mut lane = match &backing {
            Backing::Drive(drive) => self.drive_lane(lanes, session, handle, drive, cmb),
            other => self.shared_lane(index, other),
        }?;
        lane.cmb = number;
        lanes.set(handle, lane);
        Some(lane)
    }

    /// The shard's number for its part of a drive's memory buffer.
    fn use_cmb(&mut self, parts: &Arc<CmbParts>, handle: u64) -> Option<u16> {
        let known = self.cmb.iter().position(|pool| match pool {
            Some(pool) => pool.is_of(parts),
            None => false,
        });
        let index = match known {
            Some(index) => index,
            None => {
                let pool = CmbPool::new(parts, self.options.shard)?;
                // Numbers are not used again: commands under way may have them.
                self.cmb.push(Some(pool));
                self.cmb.len() - 1
            }
        };
        self.cmb.get_mut(index)?.as_mut()?.serve(handle);
        u16::try_from(index).ok()
    }

    fn shared_lane(&mut self, index: usize, backing: &Backing) -> Option<Lane> {
        let known = self.shared_executors.get(index).copied().flatten();
        if let Some(executor) = known
            && self.executors.get_mut(executor).is_some()
        {
            return Some(Lane {
                executor,
                member: 0,
                cmb: None,
            });
        }
        match Executor::open(backing, self.options.executor_depth, self.options.file_backend) {
            Ok(opened) => {
                let executor = self.executors.insert(Box::new(opened))?;
                if self.shared_executors.len() <= index {
                    self.shared_executors.resize(index + 1, None);
                }
                if let Some(place) = self.shared_executors.get_mut(index) {
                    *place = Some(executor);
                }
                Some(Lane {
                    executor,
                    member: 0,
                    cmb: None,
                })
            }
            Err(error) => {
                self.complain(&error.to_string());
                None
            }
        }
    }

    /// A session's own queue of the drive, or the one that is shared.
    fn drive_lane(
        &mut self,
        lanes: &mut Lanes,
        session: Key,
        handle: u64,
        drive: &Drive,
        cmb: Option<Cmb>,
    ) -> Option<Lane> {
        let own = lanes.depth().filter(|_| !lanes.shares(handle));
        let candidates = match own {
            Some(_) => lanes.own_mut(),
            None => &mut self.shared_drives,
        };
        let executors = &mut self.executors;
        candidates.retain(|key| executors.get_mut(*key).is_some());
        for key in candidates.iter().copied() {
            if let Some(executor) = executors.get_mut(key)
                && !executor.retired
                && executor.is_on(drive)
                && let Some(member) = executor.member(handle, drive, cmb.as_ref())
            {
                return Some(Lane {
                    executor: key,
                    member,
                    cmb: None,
                });
            }
        }
        let mut opening = Executor::opening(own.map(|_| session));
        let member = opening.member(handle, drive, cmb.as_ref())?;
        let executor = executors.insert(Box::new(opening))?;
        candidates.push(executor);
        self.opening += 1;
        let (depth, whose) = match own {
            Some(depth) => (depth, QueueUse::Own),
            None => (self.options.executor_depth, QueueUse::Shared),
        };
        let (deliver, shard) = (Arc::clone(&self.shared.deliver), self.options.shard);
        drive.request_queue(depth, whose, move |outcome| {
            let outcome = outcome.map(Box::new);
            deliver.deliver(shard, Request::Opened { executor, outcome });
        });
        Some(Lane {
            executor,
            member,
            cmb: None,
        })
    }

    /// The same complaint is made once.
    fn complain(&mut self, error: &str) {
        if self.complaint.as_deref() == Some(error) {
            tracing::debug!(
                shard = self.options.shard,
                "again cannot open a queue on a namespace's backing: {error}"
            );
            return;
        }
        tracing::error!(
            shard = self.options.shard,
            "cannot open a queue on a namespace's backing: {error}"
        );
        self.complaint = Some(error.to_owned());
    }

    /// A drive's queue is there, for commands that wait for it.
    pub(super) fn opened(&mut self, key: Key, queue: DriveQueue) {
        let Some(executor) = self.executors.get_mut(key) else {
            // Whoever wanted it is gone.
            return queue.delete_elsewhere();
        };
        self.opening -= 1;
        self.complaint = None;
        self.drive_queues.own += u64::from(executor.owner.is_some());
        executor.opened(queue, &self.reachable);
        if executor.is_busy() {
            self.busy.push(key);
        }
    }

    /// There is no queue for an executor. If only queues of one's own have run out, returns what waited for it.
    pub(super) fn not_opened(&mut self, key: Key, error: &QueueError) -> Option<Diverted> {
        let executor = self.executors.get_mut(key)?;
        let owner = executor
            .owner
            .filter(|_| matches!(error, QueueError::NoneLeft { .. }));
        let Some(owner) = owner else {
            self.complain(&error.to_string());
            self.remove(key);
            return None;
        };
        let waiting = executor.take_waiting();
        let handles = executor.handles();
        let waiting = waiting
            .into_iter()
            .filter_map(|waiting| Some((*handles.get(waiting.member as usize)?, waiting)))
            .collect();
        self.drive_queues.sharing += 1;
        if self.drive_queues.sharing == 1 {
            tracing::warn!(
                shard = self.options.shard,
                "a remote queue shares a queue pair of a drive with others, from now on this is only counted: {error}"
            );
        }
        self.remove(key);
        Some(Diverted {
            owner,
            waiting,
            handles,
        })
    }

    /// Forgets an executor. What waited for its queue fails; a drive's queue is deleted where that may take time.
    pub(super) fn remove(&mut self, key: Key) {
        let Some(mut executor) = self.executors.remove(key) else {
            return;
        };
        let waiting = executor.take_waiting().into_iter();
        self.finished
            .extend(waiting.map(|command| command.failed(Status::NAMESPACE_NOT_READY)));
        self.gone.push(key.index());
        if !executor.is_open() {
            self.opening -= 1;
        } else if executor.owner.is_some() {
            self.drive_queues.own -= 1;
        }
        let queue = executor.take_drive_queue();
        // Its last holder shuts a drive down: that is the queue.
        drop(executor);
        if let Some(queue) = queue {
            queue.delete_elsewhere();
        }
    }

    /// Nobody wants an executor any more: it goes, with the last of its commands.
    pub(super) fn give_up(&mut self, key: Key) {
        match self.executors.get_mut(key) {
            Some(executor) if executor.is_busy() => executor.retired = true,
            _ => self.remove(key),
        }
    }

    /// A session is gone, and with it the queues that it had for itself.
    pub(super) fn leave(&mut self, lanes: &mut Lanes) {
        for key in lanes.own_mut().drain(..) {
            self.give_up(key);
        }
    }

    pub(super) fn retire(&mut self, handle: u64) {
        let shared = usize::try_from(handle).ok();
        let shared = shared.and_then(|index| self.shared_executors.get_mut(index)?.take());
        if let Some(key) = shared {
            self.give_up(key);
        }
        for place in &mut self.cmb {
            // Pieces that somebody has go with their last reference.
            if place.as_mut().is_some_and(|pool| pool.without(handle)) {
                *place = None;
            }
        }
        for key in self.executors.keys() {
            if let Some(executor) = self.executors.get_mut(key)
                && executor.without(handle, &mut self.finished)
            {
                self.give_up(key);
            }
        }
    }

    /// Starts what was submitted and moves what is done to `finished`.
    pub(super) fn run_executors(&mut self) {
        let mut index = 0;
        while let Some(&key) = self.busy.get(index) {
            let Some(executor) = self.executors.get_mut(key) else {
                self.busy.swap_remove(index);
                continue;
            };
            executor.run(&mut self.finished);
            if executor.is_busy() {
                index += 1;
                continue;
            }
            let over = executor.retired || executor.lost;
            self.busy.swap_remove(index);
            if over {
                self.remove(key);
            }
        }
    }
}

/// Maps memory for all drives, and tells queues of it.
#[cold]
fn reach(
    drives: &Drives,
    reachable: &mut Vec<Reachable>,
    executors: &mut Slab<Box<Executor>>,
    region: &Region,
) {
    let known = drives.reach(region);
    executors.iter_mut().for_each(|executor| executor.keep(&known));
    reachable.push(known);
}

#[cold]
fn unreach(reachable: &mut Vec<Reachable>, executors: &mut Slab<Box<Executor>>, region: &Region) {
    reachable.retain(|known| known.region().host_address() != region.host_address());
    executors.iter_mut().for_each(|executor| executor.forget(region));
}
