//! One connection of a host: its transport state, the queue it became at Connect, and its commands in flight.
//!
//! A session turns capsules into commands for executors and their completions back into capsules. It touches no socket
//! and no queue pair: over TCP the engine feeds it received bytes, and the shard sends what it leaves in its output; over RDMA
//! the shard tells its [`Link`] what the queue pair did, and posts what that wants.

mod buffers;
mod link;
mod receive;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use homi_fabric::controller::io::{self, Scope, Transfer};
use homi_fabric::controller::{
    AdminOutcome, Cached, ConnectionId, NamespaceTable, Node, PortId, QueueState, QueueView, Route,
};
use homi_fabric::tcp::CommandKey;
use homi_fabric::time::Instant;
use homi_queue::{Command, Completion, Data, Region};
use homi_spec::SglDescriptor;
use homi_spec::command::{Cqe, NvmOpcode, Sqe};
use homi_spec::status::Status;

use crate::engine::{Core, Diverted};
use crate::executors::{ExecutorRoute, Finished, Waiting};
use crate::lanes::Lanes;
use crate::slab::Key;

pub(crate) use link::{Link, Memory};

/// What a command in flight is waiting for, by its key.
#[derive(Debug, Default)]
enum Stage {
    /// The key is free.
    #[default]
    Idle,
    /// Data of a Connect.
    ConnectData(Sqe),
    /// Data of an admin command.
    AdminData(Sqe),
    /// An answer that the node gives later: an asynchronous event, an Abort under way.
    Held(u16),
    /// A buffer for its data.
    Buffer(Buffered),
    /// Data of an I/O command.
    Data(Buffered),
    /// Its executor.
    Executing { cid: u16, kind: Kind },
    /// Several executors: a Flush of every namespace. `status` is the first failure so far.
    Joining { cid: u16, left: usize, status: Status },
}

/// How a command's completion is counted and answered.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A success returns this many bytes to the host, from a buffer of this memory that counts so much.
    Read {
        to_host: u32,
        lent: usize,
        memory: Memory,
    },
    /// A success has written this many bytes.
    Write { from_host: u32 },
    /// Neither.
    Other,
}

/// An I/O command that uses a buffer of the shard's.
#[derive(Debug)]
struct Buffered {
    cid: u16,
    handle: u64,
    command: Command,
    transfer: Transfer,
    /// The data comes in the capsule, so it is there as soon as it is received.
    in_capsule: bool,
    /// What the buffer counts of those that wait for hosts.
    lent: usize,
    /// Where the buffer comes from.
    memory: Memory,
}

/// What came after the header of a command whose data is in its capsule and has no buffer yet: nothing of it can be
/// understood before.
#[derive(Debug)]
struct Stalled {
    command: u16,
    bytes: Vec<u8>,
    now: Instant,
}

/// What a connection has since it became an I/O queue or an admin queue.
struct Attached {
    view: Arc<QueueView>,
    namespaces: Cached<NamespaceTable>,
}

/// Why a session ends.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    pub(crate) reason: String,
    /// Whether this is the ordinary end of a connection rather than something that an operator should hear of.
    pub(crate) ordinary: bool,
}

/// One connection of a host.
pub(crate) struct Session {
    key: Key,
    id: ConnectionId,
    port: PortId,
    /// The address of this node that the host came to.
    local: IpAddr,
    peer: Arc<str>,
    link: Link,
    queue: QueueState,
    attached: Option<Attached>,
    lanes: Lanes,
    stages: Vec<Stage>,
    /// Bytes landed that no finished transfer has counted yet.
    landed: usize,
    /// Commands that wait for a buffer for data that the host has still to send, or to take; oldest first.
    waiting: VecDeque<u16>,
    /// The command that waits for a buffer for the data in its capsule.
    stalled: Option<Stalled>,
    /// Whether the engine has this session on its list of those that wait for buffers.
    pub(crate) queued: bool,
    /// What its buffers count of those that wait for hosts. Over RDMA those that are being sent are among them.
    lent: usize,
    /// How much of that is in memory buffers of drives, by the shard's numbers for them.
    lent_cmb: Vec<usize>,
    /// Whether any of its answers came out of the pool's buffers.
    sends_buffers: bool,
    closing: Option<Closing>,
    /// Flushes that are still to end before the session does, and how it ends then.
    parting: Option<(usize, Closing)>,
    /// Whether the shard has this session on its list of those with something to send.
    pub(crate) listed: bool,
}

/// The command of an executor's route that is no command of the host: a flush before the end. No queue has so many.
const PARTING: u16 = u16::MAX;

impl Session {
    pub(crate) fn new(
        key: Key,
        id: ConnectionId,
        (port, local): (PortId, IpAddr),
        peer: Arc<str>,
        link: Link,
    ) -> Self {
        Self {
            key,
            id,
            port,
            local,
            peer,
            link,
            queue: QueueState::new(),
            attached: None,
            lanes: Lanes::default(),
            stages: Vec::new(),
            landed: 0,
            waiting: VecDeque::new(),
            stalled: None,
            queued: false,
            lent: 0,
            lent_cmb: Vec::new(),
            sends_buffers: false,
            closing: None,
            parting: None,
            listed: false,
        }
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.queue.is_connected()
    }

    /// Whether it carries an I/O queue.
    pub(crate) fn is_io(&self) -> bool {
        self.queue.is_io()
    }

    pub(crate) fn closing(&self) -> Option<&Closing> {
        self.closing.as_ref()
    }

    /// Ends the session once its output is sent. Nothing more is read from the host.
    pub(crate) fn close(&mut self, closing: Closing) {
        self.closing.get_or_insert(closing);
    }

    /// Ends the session as [`close`](Self::close) does, but makes durable first what its namespaces have in volatile caches:
    /// a normal shutdown is complete when the power may go (Base 2.1 §3.6.1), and it is complete when its queues are gone.
    pub(crate) fn flush_and_close(&mut self, core: &mut Core, closing: Closing) {
        let namespaces: Vec<(u32, u64)> = match &self.attached {
            Some(attached) => attached
                .namespaces
                .entries()
                .iter()
                .map(|entry| (entry.nsid, entry.handle))
                .collect(),
            None => Vec::new(),
        };
        if namespaces.is_empty() {
            return self.close(closing);
        }
        if self.parting.is_some() {
            return;
        }
        self.parting = Some((namespaces.len(), closing));
        let route = self.executor_route(CommandKey(PARTING));
        for (nsid, handle) in namespaces {
            core.start(&mut self.lanes, route, handle, Command::flush(nsid), Data::None);
        }
    }

    /// One of the flushes before the end has ended.
    fn part(&mut self, core: &mut Core, status: Status) {
        let Some((left, closing)) = self.parting.take() else {
            return;
        };
        if status.is_success() {
            core.flushed += 1;
        } else {
            tracing::warn!(peer = %self.peer, "a flush at the shutdown of a controller failed: {status:?}");
        }
        if left > 1 {
            self.parting = Some((left - 1, closing));
        } else {
            self.close(closing);
            core.list(self.key, &mut self.listed);
        }
    }

    pub(crate) fn lanes(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    /// There is no queue pair left for namespaces with these handles: commands that wait for one go where those of others go, and so do
    /// those that come.
    pub(crate) fn share(&mut self, core: &mut Core, diverted: Diverted) {
        for handle in diverted.handles {
            self.lanes.share(handle);
        }
        for (handle, waiting) in diverted.waiting {
            let Waiting {
                route, command, data, ..
            } = waiting;
            core.start(&mut self.lanes, route, handle, command, data);
        }
    }

    /// The state machine of a connection over RDMA.
    pub(crate) fn rdma(&mut self) -> Option<&mut homi_fabric::rdma::ControllerConnection> {
        self.link.rdma()
    }

    /// After the end of the connection: commands that wait for something that will not come are over.
    pub(crate) fn release_held(&mut self) {
        for (stage, key) in self.stages.iter_mut().zip(0..) {
            if let Stage::Held(cid) = *stage {
                *stage = Stage::Idle;
                // It has no response any more, so nothing can be wrong with it.
                drop(self.link.respond(CommandKey(key), Cqe::new(cid)));
            }
        }
    }

    /// Whether executors have none of its commands and its connection has nothing of this node's.
    pub(crate) fn is_still(&mut self) -> bool {
        let executing = self
            .stages
            .iter()
            .any(|stage| matches!(stage, Stage::Executing { .. } | Stage::Joining { .. }));
        !executing && self.link.rdma().is_none_or(|link| link.is_finished())
    }

    /// Commands that executors have and whose completions are still to come.
    pub(crate) fn executing(&self) -> usize {
        self.stages
            .iter()
            .filter(|stage| matches!(stage, Stage::Executing { .. }))
            .count()
    }

    /// Whether the command with this id waits for an event. Hosts that detach forget their event requests first and reuse
    /// the ids at once (SPDK does); the requests are never answered then, so nothing is confused by it.
    fn is_held(&self, cid: u16) -> bool {
        self.stages
            .iter()
            .any(|stage| matches!(stage, Stage::Held(held) if *held == cid))
    }

    #[inline]
    fn command(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, now: Instant) {
        match self.queue.route(sqe) {
            Ok(Route::Io) => self.io(core, key, sqe),
            Ok(Route::Node) => self.admin(core, key, sqe, now),
            Ok(Route::Connect) => self.want_data(core, key, CONNECT_DATA, Stage::ConnectData(*sqe), sqe, now),
            Err(status) => self.respond(core, key, sqe.cid.get(), status.into()),
        }
    }

    fn connect(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, data: &[u8], now: Instant) {
        let outcome = {
            let mut node = core.node();
            let outcome = node.connect(self.id, self.port, sqe, data, now);
            if outcome.is_ok() {
                node.reached_at(self.id, self.local);
            }
            outcome
        };
        core.route_effects();
        let cid = sqe.cid.get();
        let cqe = match outcome {
            Ok(grant) => {
                tracing::debug!(peer = %self.peer, controller = grant.controller_id, qid = grant.qid, "connected");
                // SQSIZE counts entries, of which one stays free; a host without flow control may fill them all.
                let depth = u16::try_from(grant.depth).unwrap_or(u16::MAX);
                self.link.set_queue(depth, grant.qid != 0);
                if grant.qid != 0 {
                    self.lanes.set_depth(depth);
                }
                let cqe = self.queue.accept(&grant, cid);
                let namespaces = Cached::new(Arc::clone(grant.view.namespaces()));
                self.attached = Some(Attached {
                    view: grant.view,
                    namespaces,
                });
                cqe
            }
            Err(rejected) => {
                tracing::warn!(peer = %self.peer, "connect refused: {rejected}");
                self.queue.reject(&rejected, cid)
            }
        };
        self.send_completion(core, key, cqe);
    }

    fn admin(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, now: Instant) {
        match Node::admin_data_from_host(sqe) {
            Ok(0) => self.run_admin(core, key, sqe, &[], now),
            Ok(len) => self.want_data(core, key, len, Stage::AdminData(*sqe), sqe, now),
            Err(status) => self.respond(core, key, sqe.cid.get(), Completion::failed(status)),
        }
    }

    fn run_admin(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, data: &[u8], now: Instant) {
        let cid = sqe.cid.get();
        self.set_stage(key, Stage::Held(cid));
        let outcome = core.node().admin(self.id, key.0, sqe, data, now);
        core.route_effects();
        match outcome {
            AdminOutcome::Complete {
                status,
                dw0,
                dw1,
                payload,
            } => {
                let completion = Completion {
                    status,
                    result: u64::from(dw1) << 32 | u64::from(dw0),
                };
                if payload.is_empty() || !status.is_success() {
                    return self.respond(core, key, cid, completion);
                }
                let wanted = sqe.sgl().parse().data_length() as usize;
                let len = payload.len().min(wanted);
                let data = Data::whole(Region::from_vec(payload));
                self.respond_with_data(core, key, cid, completion, data, len);
            }
            AdminOutcome::Held => {}
            AdminOutcome::Disconnect { status } => {
                self.respond(core, key, cid, Completion::failed(status));
                self.close(Closing {
                    reason: "the host disconnected".to_owned(),
                    ordinary: true,
                });
            }
        }
    }

    /// Asks the host for the data of a Connect or an admin command.
    fn want_data(
        &mut self,
        core: &mut Core,
        key: CommandKey,
        len: u32,
        stage: Stage,
        sqe: &Sqe,
        now: Instant,
    ) {
        if sqe.sgl().parse().data_length() != len {
            let completion = Completion::failed(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
            return self.respond(core, key, sqe.cid.get(), completion);
        }
        self.set_stage(key, stage);
        if let Some(data) = self.link.data_with_command(key) {
            return self.data_came(core, key, data, now);
        }
        let data = Data::whole(Region::from_vec(vec![0; len as usize]));
        self.accept(core, key, sqe.cid.get(), data);
    }

    #[inline]
    fn io(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let cid = sqe.cid.get();
        if !attached.view.enabled() {
            return self.refuse(core, key, sqe, Status::COMMAND_SEQUENCE_ERROR);
        }
        let request = match io::parse(sqe, &attached.namespaces, &attached.view.limits()) {
            Ok(request) => request,
            Err(status) => return self.refuse(core, key, sqe, status),
        };
        let namespace = match request.scope {
            Scope::Namespace(index) => attached.namespaces.get(index),
            Scope::All => return self.flush_all(core, key, cid, request.command),
        };
        let Some(handle) = namespace.map(|entry| entry.handle) else {
            return;
        };
        let command = request.command;
        match request.transfer {
            Transfer::None => self.start(core, key, cid, Kind::Other, handle, command, Data::None),
            // With a digest, the bytes must stay what they were when it was computed: an executor may lend memory that
            // later commands write to.
            Transfer::ToHost(len)
                if !self.link.data_digest()
                    && core.lends_memory(self.link.memory(), &mut self.lanes, self.key, handle) =>
            {
                let data = Data::Anywhere { len: len as usize };
                let kind = Kind::Read {
                    to_host: len,
                    lent: 0,
                    memory: self.link.memory(),
                };
                self.start(core, key, cid, kind, handle, command, data);
            }
            transfer => {
                let in_capsule = matches!(sqe.sgl().parse(), SglDescriptor::InCapsule { .. });
                if in_capsule && let Some(data) = self.link.data_with_command(key) {
                    // Used where it was received.
                    core.payload.bytes_landed += data.len() as u64;
                    let kind = kind_of(&command, transfer);
                    return self.start(core, key, cid, kind, handle, command, data);
                }
                let command = Buffered {
                    cid,
                    handle,
                    command,
                    transfer,
                    in_capsule,
                    lent: 0,
                    memory: core.memory_for(self.link.memory(), &mut self.lanes, self.key, handle),
                };
                if !self.is_next(in_capsule) {
                    self.set_stage(key, Stage::Buffer(command));
                    self.wait_for_buffer(core, key, in_capsule);
                } else if !self.take_buffer(core, key, command) {
                    self.wait_for_buffer(core, key, in_capsule);
                }
            }
        }
    }

    /// A Flush with the broadcast identifier goes to every namespace and is done when all are.
    fn flush_all(&mut self, core: &mut Core, key: CommandKey, cid: u16, command: Command) {
        let Some(attached) = &self.attached else { return };
        let handles: Vec<u64> = attached
            .namespaces
            .entries()
            .iter()
            .map(|entry| entry.handle)
            .collect();
        if handles.is_empty() {
            return self.respond(core, key, cid, Completion::SUCCESS);
        }
        self.set_stage(
            key,
            Stage::Joining {
                cid,
                left: handles.len(),
                status: Status::SUCCESS,
            },
        );
        for handle in handles {
            let route = self.executor_route(key);
            core.start(&mut self.lanes, route, handle, command, Data::None);
        }
    }

    fn executor_route(&self, key: CommandKey) -> ExecutorRoute {
        ExecutorRoute {
            session: self.key,
            command: key.0,
        }
    }

    fn settle(&mut self, core: &mut Core, memory: Memory, lent: usize) {
        self.lent -= lent.min(self.lent);
        if let Memory::Cmb(number) = memory
            && let Some(count) = self.lent_cmb.get_mut(usize::from(number))
        {
            *count -= lent.min(*count);
        }
        core.settle(memory, lent);
    }

    /// A buffer of this memory for `len` bytes waits for the host from now on. Returns what it counts.
    fn lend(&mut self, core: &mut Core, memory: Memory, len: usize) -> usize {
        let lent = core.lend(memory, len);
        self.lent += lent;
        if let Memory::Cmb(number) = memory {
            let number = usize::from(number);
            if self.lent_cmb.len() <= number {
                self.lent_cmb.resize(number + 1, 0);
            }
            if let Some(count) = self.lent_cmb.get_mut(number) {
                *count += lent;
            }
        }
        lent
    }

    /// The session is gone: no buffer of it waits for the host any more.
    pub(crate) fn settle_all(&mut self, core: &mut Core) {
        let in_cmb: usize = self.lent_cmb.iter().sum();
        core.settle(self.link.memory(), self.lent.saturating_sub(in_cmb));
        for (number, lent) in (0..).zip(self.lent_cmb.drain(..)) {
            core.settle(Memory::Cmb(number), lent);
        }
        self.lent = 0;
    }

    fn accept(&mut self, core: &mut Core, key: CommandKey, cid: u16, data: Data) {
        if self.link.memory() == Memory::Registered {
            // There is data to be fetched, also where nothing of the host's brought this about.
            core.list(self.key, &mut self.listed);
        }
        if let Err(refused) = self.link.accept(key, data) {
            tracing::debug!(peer = %self.peer, "command {cid:#06x}: {}", refused.text);
            if let Stage::Data(write) = self.take_stage(key) {
                self.settle(core, write.memory, write.lent);
            }
            core.put(self.link.memory(), refused.data);
            self.respond(core, key, cid, refused.status.into());
        }
    }

    fn data_received(&mut self, core: &mut Core, key: CommandKey, now: Instant) {
        let data = self.link.take_data(key);
        let landed = match self.link.memory() {
            Memory::Ordinary => self.landed.min(data.len()),
            // RDMA READs put it where it belongs.
            Memory::Registered | Memory::Cmb(_) => data.len(),
        };
        self.landed -= landed.min(self.landed);
        let copied = data.len() - landed;
        core.payload.copies += u64::from(copied > 0);
        core.payload.bytes_copied += copied as u64;
        core.payload.bytes_landed += landed as u64;
        self.data_came(core, key, data, now);
    }

    /// Goes on with a command whose data is there.
    fn data_came(&mut self, core: &mut Core, key: CommandKey, data: Data, now: Instant) {
        match self.take_stage(key) {
            Stage::ConnectData(sqe) => self.connect(core, key, &sqe, &to_bytes(data), now),
            Stage::AdminData(sqe) => self.run_admin(core, key, &sqe, &to_bytes(data), now),
            Stage::Data(write) => {
                self.settle(core, write.memory, write.lent);
                let kind = kind_of(&write.command, write.transfer);
                self.start(core, key, write.cid, kind, write.handle, write.command, data);
            }
            other => self.set_stage(key, other),
        }
    }

    fn data_failed(&mut self, core: &mut Core, key: CommandKey, status: Status) {
        core.put(self.link.memory(), self.link.take_data(key));
        let cid = match self.take_stage(key) {
            Stage::ConnectData(sqe) | Stage::AdminData(sqe) => sqe.cid.get(),
            Stage::Data(write) => {
                self.settle(core, write.memory, write.lent);
                write.cid
            }
            other => return self.set_stage(key, other),
        };
        self.respond(core, key, cid, Completion::failed(status));
    }

    #[inline]
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one command, passed in registers on the hot path"
    )]
    fn start(
        &mut self,
        core: &mut Core,
        key: CommandKey,
        cid: u16,
        kind: Kind,
        handle: u64,
        command: Command,
        data: Data,
    ) {
        self.set_stage(key, Stage::Executing { cid, kind });
        let route = self.executor_route(key);
        core.start(&mut self.lanes, route, handle, command, data);
    }

    /// Answers the command that an executor finished.
    #[inline]
    pub(crate) fn finish(&mut self, core: &mut Core, finished: Finished) {
        let key = CommandKey(finished.route.command);
        let mut completion = finished.completion;
        if completion.is_success() && core.is_stale(&finished.data) {
            completion = Completion::failed(Status::INTERNAL_PATH_ERROR);
        }
        if key.0 == PARTING {
            return self.part(core, completion.status);
        }
        let (cid, kind) = match self.take_stage(key) {
            Stage::Executing { cid, kind } => (cid, kind),
            Stage::Joining { cid, left, status } => {
                let status = if status.is_success() {
                    completion.status
                } else {
                    status
                };
                if left > 1 {
                    return self.set_stage(
                        key,
                        Stage::Joining {
                            cid,
                            left: left - 1,
                            status,
                        },
                    );
                }
                return self.respond(core, key, cid, status.into());
            }
            other => return self.set_stage(key, other),
        };
        let memory = self.link.memory();
        if let Kind::Read {
            lent, memory: from, ..
        } = kind
            && lent > 0
            && (memory == Memory::Ordinary || !completion.is_success())
        {
            // From here on it counts as output. Over RDMA it counts as it did until it is sent.
            self.settle(core, from, lent);
        }
        let Some(attached) = &self.attached else { return };
        let counters = attached.view.counters();
        if !completion.is_success() {
            counters.other();
            attached.view.record_error(cid, completion.status, 0, 0);
        }
        match kind {
            Kind::Read {
                to_host,
                lent,
                memory: from,
            } if completion.is_success() => {
                counters.read(u64::from(to_host));
                if lent > 0 && memory == Memory::Ordinary {
                    if from == Memory::Ordinary {
                        core.pool.sending(&finished.data);
                    }
                    self.sends_buffers = true;
                }
                let len = to_host as usize;
                return self.respond_with_data(core, key, cid, completion, finished.data, len);
            }
            Kind::Read { lent, .. } => {
                if lent > 0 {
                    core.put(memory, finished.data);
                }
            }
            Kind::Write { from_host } => {
                if completion.is_success() {
                    counters.write(u64::from(from_host));
                }
                core.put(memory, finished.data);
            }
            Kind::Other => {
                if completion.is_success() {
                    counters.other();
                }
                core.put(memory, finished.data);
            }
        }
        self.respond(core, key, cid, completion);
    }

    /// Answers a command that the node held.
    pub(crate) fn answer(&mut self, core: &mut Core, key: u16, completion: Completion) {
        let key = CommandKey(key);
        match self.take_stage(key) {
            Stage::Held(cid) => self.respond(core, key, cid, completion),
            other => self.set_stage(key, other),
        }
    }

    /// Aborts the command with this id if it still waits for a buffer or for data; says whether it did.
    pub(crate) fn abort(&mut self, core: &mut Core, cid: u16) -> bool {
        let found = self.stages.iter().position(|stage| match stage {
            Stage::Buffer(write) | Stage::Data(write) => write.cid == cid,
            _ => false,
        });
        let Some(key) = found.and_then(|index| u16::try_from(index).ok()).map(CommandKey) else {
            return false;
        };
        let coming = matches!(self.stages.get(key.index()), Some(Stage::Data(_)));
        if coming && self.link.cancel(key) {
            // The rest of the data is on its way; `data_failed` answers when it has passed.
            return true;
        }
        if let Stage::Data(write) = self.take_stage(key) {
            self.settle(core, write.memory, write.lent);
            core.put(self.link.memory(), self.link.take_data(key));
        }
        self.respond(core, key, cid, Completion::failed(Status::ABORT_REQUESTED));
        if self
            .stalled
            .as_ref()
            .is_some_and(|stalled| stalled.command == key.0)
        {
            self.resume(core);
        }
        true
    }

    fn refuse(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, status: Status) {
        let cid = sqe.cid.get();
        if let Some(attached) = &self.attached {
            attached.view.counters().other();
            attached.view.record_error(cid, status, sqe.nsid.get(), sqe.lba());
        }
        self.respond(core, key, cid, status.into());
    }

    #[inline]
    fn respond(&mut self, core: &mut Core, key: CommandKey, cid: u16, completion: Completion) {
        let cqe = self
            .queue
            .complete(completion.status, completion.dw0(), completion.dw1(), cid);
        self.send_completion(core, key, cqe);
    }

    #[inline]
    fn send_completion(&mut self, core: &mut Core, key: CommandKey, cqe: Cqe) {
        self.set_stage(key, Stage::Idle);
        if let Err(error) = self.link.respond(key, cqe) {
            tracing::error!(peer = %self.peer, "cannot answer command {:#06x}: {error}", cqe.cid.get());
        }
        core.list(self.key, &mut self.listed);
    }

    #[inline]
    fn respond_with_data(
        &mut self,
        core: &mut Core,
        key: CommandKey,
        cid: u16,
        completion: Completion,
        data: Data,
        len: usize,
    ) {
        let cqe = self
            .queue
            .complete(completion.status, completion.dw0(), completion.dw1(), cid);
        // Without flow control the host needs nothing of the completion that the flag does not say.
        let success_flag = !self.queue.flow_control();
        self.set_stage(key, Stage::Idle);
        if let Err((error, data)) = self.link.respond_with_data(key, data, len, cqe, success_flag) {
            tracing::error!(peer = %self.peer, "cannot answer command {cid:#06x}: {error}");
            if self.link.memory() == Memory::Registered {
                self.give_back(core, &data);
                // The head of the queue moved with the completion that was not sent.
                return self.send_completion(core, key, cqe.with_status(Status::INTERNAL_ERROR));
            }
        }
        core.list(self.key, &mut self.listed);
    }

    #[inline]
    fn set_stage(&mut self, key: CommandKey, stage: Stage) {
        let index = key.index();
        if index >= self.stages.len() {
            // Bounded by the transport, whose keys are below the queue's depth.
            self.stages.resize_with(index + 1, Stage::default);
        }
        if let Some(entry) = self.stages.get_mut(index) {
            *entry = stage;
        }
    }

    #[inline]
    fn take_stage(&mut self, key: CommandKey) -> Stage {
        self.stages
            .get_mut(key.index())
            .map(std::mem::take)
            .unwrap_or_default()
    }
}

/// How a command that brings data is counted.
fn kind_of(command: &Command, transfer: Transfer) -> Kind {
    match command.opcode() {
        NvmOpcode::WRITE => Kind::Write {
            from_host: transfer.len(),
        },
        _ => Kind::Other,
    }
}

/// Length of a Connect command's data (Base 2.0 section 6.3).
const CONNECT_DATA: u32 = 1024;

fn to_bytes(data: Data) -> Vec<u8> {
    match data {
        Data::One(segment) if segment.start() == 0 && segment.len() == segment.region().len() => {
            let region = segment.region().clone();
            drop(segment);
            region.into_vec()
        }
        other => {
            let mut bytes = vec![0; other.len()];
            // The length is the data's own.
            let _ = other.read(0, &mut bytes);
            bytes
        }
    }
}
