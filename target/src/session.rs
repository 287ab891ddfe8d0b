//! One connection of a host: its transport state, the queue it became at Connect, and its commands in flight.
//!
//! A session turns capsules into commands for executors and their completions back into capsules. It touches no
//! socket: the engine feeds it received bytes, and the shard sends what it leaves in its output.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use homi_fabric::controller::io::{self, Scope, Transfer};
use homi_fabric::controller::{
    AdminOutcome, Cached, ConnectionId, NamespaceTable, Node, PortId, QueueState, QueueView, Route,
};
use homi_fabric::tcp::{
    Cancel, CommandKey, ControllerConnection, ControllerEvent, ControllerParams, ParameterError,
};
use homi_fabric::time::Instant;
use homi_queue::{Command, Completion, Data, GatherList, Region, Segment};
use homi_spec::SglDescriptor;
use homi_spec::command::{Cqe, NvmOpcode, Sqe};
use homi_spec::status::Status;

use crate::engine::Core;
use crate::executors::{ExecutorRoute, Finished};
use crate::slab::Key;

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
    /// A success returns this many bytes to the host, from a buffer that counts so much.
    Read { to_host: u32, lent: usize },
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
    transport: ControllerConnection,
    queue: QueueState,
    attached: Option<Attached>,
    stages: Vec<Stage>,
    /// Bytes landed that no finished transfer has counted yet.
    landed: usize,
    /// Commands that wait for a buffer for data that the host has still to send, or to take; oldest first.
    waiting: VecDeque<u16>,
    /// The command that waits for a buffer for the data in its capsule.
    stalled: Option<Stalled>,
    /// Whether the engine has this session on its list of those that wait for buffers.
    pub(crate) queued: bool,
    /// What its buffers count of those that wait for hosts.
    lent: usize,
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
        params: &ControllerParams,
    ) -> Result<Self, ParameterError> {
        Ok(Self {
            key,
            id,
            port,
            local,
            peer,
            transport: ControllerConnection::new(*params)?,
            queue: QueueState::new(),
            attached: None,
            stages: Vec::new(),
            landed: 0,
            waiting: VecDeque::new(),
            stalled: None,
            queued: false,
            lent: 0,
            sends_buffers: false,
            closing: None,
            parting: None,
            listed: false,
        })
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
            core.start(route, handle, Command::flush(nsid), Data::None);
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

    pub(crate) fn has_output(&mut self) -> bool {
        !self.transport.output().is_empty()
    }

    /// Bytes to be sent.
    pub(crate) fn backlog(&mut self) -> usize {
        self.transport.output().remaining()
    }

    pub(crate) fn take_output(&mut self, spare: GatherList) -> GatherList {
        self.transport.take_output(spare)
    }

    /// Where the next bytes may be received directly, when that is worth it.
    pub(crate) fn landing(&self, minimum: usize) -> Option<Segment> {
        if self.closing.is_some() {
            None
        } else {
            self.transport.landing(minimum)
        }
    }

    /// Commands that executors have and whose completions are still to come.
    pub(crate) fn executing(&self) -> usize {
        self.stages
            .iter()
            .filter(|stage| matches!(stage, Stage::Executing { .. }))
            .count()
    }

    /// Whether a command waits for a buffer for the data in its capsule: nothing more can be received before.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Whether what comes next is most likely data of transfers of at least `size` bytes: as many bytes are asked for.
    pub(crate) fn expects(&self, size: usize) -> bool {
        self.lent > 0 && self.lent >= size * usize::from(self.transport.in_flight())
    }

    /// What its buffers count of those that wait for hosts.
    pub(crate) fn lent(&self) -> usize {
        self.lent
    }

    /// Takes bytes that were received in order.
    pub(crate) fn receive(&mut self, core: &mut Core, mut input: &[u8], now: Instant) {
        if let Some(stalled) = &mut self.stalled {
            return stalled.bytes.extend_from_slice(input);
        }
        if let Some(attached) = &mut self.attached {
            attached.namespaces.refresh();
        }
        while self.closing.is_none() {
            match self.transport.advance(&mut input) {
                Ok(Some(event)) => {
                    self.handle(core, event, now);
                    if let Some(stalled) = &mut self.stalled {
                        stalled.now = now;
                        return stalled.bytes.extend_from_slice(input);
                    }
                }
                Ok(None) => return,
                Err(error) => self.close(Closing {
                    reason: error.to_string(),
                    ordinary: false,
                }),
            }
        }
    }

    /// Takes the count of bytes that were received into [`Session::landing`].
    pub(crate) fn landed(&mut self, core: &mut Core, count: usize, now: Instant) {
        self.landed += count;
        match self.transport.landed(count) {
            Ok(Some(event)) => self.handle(core, event, now),
            Ok(None) => {}
            Err(error) => self.close(Closing {
                reason: error.to_string(),
                ordinary: false,
            }),
        }
    }

    fn handle(&mut self, core: &mut Core, event: ControllerEvent, now: Instant) {
        match event {
            ControllerEvent::Ready => {}
            ControllerEvent::Command {
                key,
                sqe,
                fault: None,
                ..
            } => self.command(core, key, &sqe, now),
            ControllerEvent::Command {
                key,
                sqe,
                fault: Some(status),
                ..
            } => {
                if status.is(Status::CID_CONFLICT) && self.is_held(sqe.cid.get()) {
                    self.command(core, key, &sqe, now);
                } else {
                    self.refuse(core, key, &sqe, status);
                }
            }
            ControllerEvent::DataReceived { key } => self.data_received(core, key, now),
            ControllerEvent::DataFailed { key, status } => self.data_failed(core, key, status),
            ControllerEvent::PeerTerminated(why) => {
                self.close(Closing {
                    reason: format!("the host ended the connection: {why}"),
                    ordinary: false,
                });
            }
        }
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
            Ok(Route::Connect) => self.want_data(core, key, CONNECT_DATA, Stage::ConnectData(*sqe), sqe),
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
                self.transport.set_queue(depth, grant.qid != 0);
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
            Ok(len) => self.want_data(core, key, len, Stage::AdminData(*sqe), sqe),
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
    fn want_data(&mut self, core: &mut Core, key: CommandKey, len: u32, stage: Stage, sqe: &Sqe) {
        if sqe.sgl().parse().data_length() != len {
            let completion = Completion::failed(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
            return self.respond(core, key, sqe.cid.get(), completion);
        }
        let data = Data::whole(Region::from_vec(vec![0; len as usize]));
        self.set_stage(key, stage);
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
            Transfer::ToHost(len) if !self.transport.data_digest() && core.lends_memory(handle) => {
                let data = Data::Anywhere { len: len as usize };
                let kind = Kind::Read {
                    to_host: len,
                    lent: 0,
                };
                self.start(core, key, cid, kind, handle, command, data);
            }
            transfer => {
                let in_capsule = matches!(sqe.sgl().parse(), SglDescriptor::InCapsule { .. });
                let command = Buffered {
                    cid,
                    handle,
                    command,
                    transfer,
                    in_capsule,
                    lent: 0,
                };
                if !self.take_buffer(core, key, command) {
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
            core.start(self.executor_route(key), handle, command, Data::None);
        }
    }

    fn executor_route(&self, key: CommandKey) -> ExecutorRoute {
        ExecutorRoute {
            session: self.key,
            command: key.0,
        }
    }

    /// Gets a buffer for a command and goes on with it; false if there is none yet.
    fn take_buffer(&mut self, core: &mut Core, key: CommandKey, mut command: Buffered) -> bool {
        let len = command.transfer.len() as usize;
        let unsent = if self.sends_buffers {
            self.transport.output().remaining()
        } else {
            0
        };
        let held = self.lent + unsent;
        let data = if command.in_capsule || core.pool.may_lend(held, len) {
            core.pool.take(len)
        } else {
            None
        };
        let Some(data) = data else {
            self.set_stage(key, Stage::Buffer(command));
            return false;
        };
        if !command.in_capsule {
            command.lent = core.pool.lend(len);
            self.lent += command.lent;
        }
        let cid = command.cid;
        if let Transfer::ToHost(to_host) = command.transfer {
            let kind = Kind::Read {
                to_host,
                lent: command.lent,
            };
            self.start(core, key, cid, kind, command.handle, command.command, data);
        } else {
            self.set_stage(key, Stage::Data(command));
            self.accept(core, key, cid, data);
        }
        true
    }

    #[cold]
    fn wait_for_buffer(&mut self, core: &mut Core, key: CommandKey, in_capsule: bool) {
        if in_capsule {
            self.stalled = Some(Stalled {
                command: key.0,
                bytes: Vec::new(),
                now: Instant::ZERO,
            });
        } else {
            self.waiting.push_back(key.0);
        }
        core.wait_for_buffer(self.key, &mut self.queued);
    }

    /// Tries again to get the buffers that its commands wait for; says whether it got any.
    pub(crate) fn retry_buffers(&mut self, core: &mut Core) -> bool {
        let mut progress = false;
        // What comes after it may be the data that other buffers wait for.
        while let Some(command) = self.stalled.as_ref().map(|stalled| stalled.command) {
            if !self.retry_buffer(core, command) {
                return progress;
            }
            progress = true;
            self.resume(core);
        }
        while let Some(command) = self.waiting.front().copied() {
            if !self.retry_buffer(core, command) {
                return progress;
            }
            progress = true;
            self.waiting.pop_front();
        }
        progress
    }

    /// Whether commands wait for buffers.
    pub(crate) fn waits_for_buffers(&self) -> bool {
        self.stalled.is_some() || !self.waiting.is_empty()
    }

    /// False if the command still waits.
    fn retry_buffer(&mut self, core: &mut Core, command: u16) -> bool {
        let key = CommandKey(command);
        match self.take_stage(key) {
            Stage::Buffer(command) => self.take_buffer(core, key, command),
            // It was aborted.
            other => {
                self.set_stage(key, other);
                true
            }
        }
    }

    /// Goes on with what came after a command that waited for a buffer.
    fn resume(&mut self, core: &mut Core) {
        if let Some(stalled) = self.stalled.take() {
            self.receive(core, &stalled.bytes, stalled.now);
            // The shard may receive again.
            core.list(self.key, &mut self.listed);
        }
    }

    fn settle(&mut self, core: &mut Core, lent: usize) {
        self.lent -= lent.min(self.lent);
        core.pool.settle(lent);
    }

    fn accept(&mut self, core: &mut Core, key: CommandKey, cid: u16, data: Data) {
        if let Err(error) = self.transport.accept(key, data) {
            tracing::debug!(peer = %self.peer, "command {cid:#06x}: {error}");
            if let Stage::Data(write) = self.take_stage(key) {
                self.settle(core, write.lent);
            }
            self.respond(core, key, cid, error.status().into());
        }
    }

    fn data_received(&mut self, core: &mut Core, key: CommandKey, now: Instant) {
        let data = self.transport.take_data(key);
        let landed = self.landed.min(data.len());
        self.landed -= landed;
        let copied = data.len() - landed;
        core.payload.copies += u64::from(copied > 0);
        core.payload.bytes_copied += copied as u64;
        core.payload.bytes_landed += landed as u64;
        match self.take_stage(key) {
            Stage::ConnectData(sqe) => self.connect(core, key, &sqe, &to_bytes(data), now),
            Stage::AdminData(sqe) => self.run_admin(core, key, &sqe, &to_bytes(data), now),
            Stage::Data(write) => {
                self.settle(core, write.lent);
                let kind = match write.command.opcode() {
                    NvmOpcode::WRITE => Kind::Write {
                        from_host: write.transfer.len(),
                    },
                    _ => Kind::Other,
                };
                self.start(core, key, write.cid, kind, write.handle, write.command, data);
            }
            other => self.set_stage(key, other),
        }
    }

    fn data_failed(&mut self, core: &mut Core, key: CommandKey, status: Status) {
        core.pool.put(self.transport.take_data(key));
        let cid = match self.take_stage(key) {
            Stage::ConnectData(sqe) | Stage::AdminData(sqe) => sqe.cid.get(),
            Stage::Data(write) => {
                self.settle(core, write.lent);
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
        core.start(self.executor_route(key), handle, command, data);
    }

    /// Answers the command that an executor finished.
    #[inline]
    pub(crate) fn finish(&mut self, core: &mut Core, finished: Finished) {
        let key = CommandKey(finished.route.command);
        let completion = finished.completion;
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
        if let Kind::Read { lent, .. } = kind
            && lent > 0
        {
            // From here on it counts as output.
            self.settle(core, lent);
        }
        let Some(attached) = &self.attached else { return };
        let counters = attached.view.counters();
        if !completion.is_success() {
            counters.other();
            attached.view.record_error(cid, completion.status, 0, 0);
        }
        match kind {
            Kind::Read { to_host, lent } if completion.is_success() => {
                counters.read(u64::from(to_host));
                if lent > 0 {
                    core.pool.sending(&finished.data);
                    self.sends_buffers = true;
                }
                let len = to_host as usize;
                return self.respond_with_data(core, key, cid, completion, finished.data, len);
            }
            Kind::Read { lent, .. } => {
                if lent > 0 {
                    core.pool.put(finished.data);
                }
            }
            Kind::Write { from_host } => {
                if completion.is_success() {
                    counters.write(u64::from(from_host));
                }
                core.pool.put(finished.data);
            }
            Kind::Other => {
                if completion.is_success() {
                    counters.other();
                }
                core.pool.put(finished.data);
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
        if coming && self.transport.cancel(key) == Ok(Cancel::Later) {
            // The rest of the data is on its way; `data_failed` answers when it has passed.
            return true;
        }
        if let Stage::Data(write) = self.take_stage(key) {
            self.settle(core, write.lent);
            core.pool.put(self.transport.take_data(key));
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
        if let Err(error) = self.transport.respond(key, cqe) {
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
        if let Err(error) = self
            .transport
            .respond_with_data(key, data, len, cqe, success_flag)
        {
            tracing::error!(peer = %self.peer, "cannot answer command {cid:#06x}: {error}");
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
