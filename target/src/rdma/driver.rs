//! [`Driver`]: a shard's connections over RDMA.
//!
//! One turn: completions go to the connections they are of; when the engine has run, buffers are collected and receives posted
//! before anything is sent, since a host may send its next command as soon as it has a response; then each connection's work is posted
//! as one list.
//!
//! The end of a connection takes a moment: its queue pair is moved to the error state, and destroyed when what was posted to it was
//! flushed. From then on no device uses its memory, and its session goes when executors are done with its commands too. Nothing else on
//! the device notices.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use homi_fabric::rdma::cm::{QueueLimits, Refusal};
use homi_fabric::rdma::{ControllerConnection, WorkId};
use homi_fabric::time::Instant;
use homi_reactor::Reactor;
use homi_spec::fabrics::ADMIN_SQSIZE_MIN;
use homi_verbs::{CmEventKind, Completion, Completions, ConnectRequest, Device, IdKey, Qp, VerbsError};

use super::accept::{make, refuse};
use super::adapter::{Adapter, AdapterOptions, Polled, close};
use super::post::push;
use super::{Arrival, Letter};
use crate::clock::Clock;
use crate::config::{Config, Transport};
use crate::engine::Engine;
use crate::session::Closing;
use crate::shard::RdmaCounters;
use crate::slab::Key;

/// Completions taken at a time.
const BATCH: usize = 64;
/// Completions taken in one turn, so that everything else has its turn too.
const PER_TURN: usize = 512;
/// RDMA READs in flight of one connection.
const READ_DEPTH: u8 = 16;
/// How long what was posted last may take to be sent before a connection is ended.
const LINGER: Duration = Duration::from_millis(100);
/// How long a queue pair is in the error state, at least and at most, before it is destroyed.
const DRAIN: Duration = Duration::from_millis(20);
const DRAIN_AT_MOST: Duration = Duration::from_secs(1);
/// How long a shard that is woken by nothing else sleeps at most while something that was sent is not known to be done.
const LOOK: Duration = Duration::from_millis(50);

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// It ends as soon as everything is sent.
    Lingering,
    /// Its queue pair is in the error state.
    Ending(Instant),
}

/// The queue pair of a session.
struct Connection {
    session: Key,
    adapter: usize,
    qp: Qp,
    /// Receives promised to it.
    entries: u32,
    /// Receives of its own queue that are not posted.
    free: Vec<u32>,
    state: State,
    /// Work that is posted and of which nothing was heard yet.
    outstanding: u16,
    /// Something waits for such work to be done.
    expecting: bool,
    /// As long as it is held, events are forwarded.
    _route: Arc<()>,
}

/// What all connections together have posted.
#[derive(Debug, Default)]
struct Posted {
    outstanding: u64,
    /// Connections that wait for some of it to be done.
    expecting: usize,
}

impl Posted {
    /// Takes over how a connection stands.
    fn note(&mut self, connection: &mut Connection, link: &ControllerConnection) {
        self.set(connection, link.outstanding(), link.waits_for_work());
    }

    fn set(&mut self, connection: &mut Connection, outstanding: u16, expecting: bool) {
        let expecting = expecting || connection.state != State::Open;
        self.outstanding =
            (self.outstanding + u64::from(outstanding)).saturating_sub(connection.outstanding.into());
        self.expecting =
            (self.expecting + usize::from(expecting)).saturating_sub(connection.expecting.into());
        (connection.outstanding, connection.expecting) = (outstanding, expecting);
    }

    /// A connection goes.
    fn forget(&mut self, connection: &Connection) {
        self.outstanding = self.outstanding.saturating_sub(connection.outstanding.into());
        self.expecting = self.expecting.saturating_sub(connection.expecting.into());
    }
}

/// A shard's connections over RDMA.
pub(crate) struct Driver {
    // Before the adapters, so that queue pairs go before what they use.
    connections: Vec<Option<Connection>>,
    adapters: Vec<Option<Adapter>>,
    ids: HashMap<IdKey, Key>,
    batch: Box<Completions<BATCH>>,
    listed: Vec<Key>,
    posted: Posted,
    /// Sessions without a queue pair whose commands executors still have.
    burying: Vec<(Key, usize)>,
    /// When connections are to be looked at.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    counters: RdmaCounters,
    /// Registrations of adapters that are gone.
    registrations: u64,
    admin_entries: u16,
    io_entries: u16,
    max_qid: u16,
    options: AdapterOptions,
}

impl Driver {
    pub(crate) fn new(config: &Config, shard: u16) -> Self {
        Self {
            connections: Vec::new(),
            adapters: Vec::new(),
            ids: HashMap::new(),
            batch: Box::default(),
            listed: Vec::new(),
            posted: Posted::default(),
            burying: Vec::new(),
            timers: BinaryHeap::new(),
            counters: RdmaCounters::default(),
            registrations: 0,
            admin_entries: config.limits.queue_entries.max(ADMIN_SQSIZE_MIN),
            io_entries: config.limits.queue_entries,
            max_qid: config.limits.io_queues,
            options: AdapterOptions {
                receives: config.rdma.receives,
                in_capsule: crate::catalogue::in_capsule(config, Transport::Rdma),
                vector: shard.into(),
            },
        }
    }

    /// Whether there is no device in use.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.adapters.is_empty()
    }

    #[inline]
    pub(crate) fn has(&self, session: Key) -> bool {
        self.find(session).is_some()
    }

    #[inline]
    fn find(&self, session: Key) -> Option<&Connection> {
        self.connections
            .get(session.index())?
            .as_ref()
            .filter(|connection| connection.session == session)
    }

    /// Takes a letter. A connection that arrived has a session then.
    pub(crate) fn read(&mut self, letter: Letter, engine: &mut Engine, clock: &Clock) -> Option<Key> {
        match letter {
            Letter::Arrival(arrival) => self.arrive(*arrival, engine, clock),
            Letter::Event(id, kind) => {
                self.event(id, kind, engine, clock.now());
                None
            }
        }
    }

    // ---- connections come ----

    fn arrive(&mut self, arrival: Arrival, engine: &mut Engine, clock: &Clock) -> Option<Key> {
        let peer = Arc::clone(&arrival.peer);
        match self.admit(arrival, engine, clock) {
            Ok(key) => Some(key),
            Err(reason) => {
                tracing::warn!(%peer, "connection refused: {reason}");
                None
            }
        }
    }

    fn admit(&mut self, arrival: Arrival, engine: &mut Engine, clock: &Clock) -> Result<Key, String> {
        let Arrival {
            request,
            asked,
            peer,
            port,
            local,
            route,
        } = arrival;
        let index = match self.adapter_of(&request) {
            Ok(index) => index,
            Err(error) => return refuse(request, &Refusal::Resources, &error),
        };
        // Queue pairs get the numbers of those that are gone: nothing of theirs may be left.
        while self.has_stale(index) && self.poll_adapter(index, usize::MAX, engine, clock) > 0 {}
        let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut) else {
            return refuse(request, &Refusal::Resources, &"its device is gone");
        };
        let device_limits = adapter.device.limits();
        let limits = QueueLimits {
            admin_entries: self.admin_entries,
            io_entries: self.io_entries,
            max_qid: self.max_qid,
            read_depth: device_limits.initiator_depth.min(READ_DEPTH),
        };
        let granted = match limits.grant(&asked, request.peer().initiator_depth) {
            Ok(granted) => granted,
            Err(refusal) => return refuse(request, &refusal, &refusal),
        };
        let entries = u32::from(granted.entries);
        let before = adapter.memory.len();
        let promised = adapter.promise(entries);
        for region in adapter.memory.iter().skip(before) {
            engine.reach(region);
        }
        match promised {
            Ok(true) => {}
            Ok(false) => {
                let text = format!(
                    "{entries} receives beyond the {} promised to others are more than rdma.receives allows",
                    adapter.promised
                );
                return refuse(request, &Refusal::Resources, &text);
            }
            Err(error) => return refuse(request, &Refusal::Resources, &error),
        }
        let made = make(adapter, request, &granted, self.options.in_capsule);
        let (qp, params, free) = match made {
            Ok(made) => made,
            Err(reason) => {
                adapter.promised -= entries;
                return Err(reason);
            }
        };
        let Some(session) = engine.open_rdma(port, local, peer, params) else {
            adapter.promised -= entries;
            return Err("there is no room for another connection".to_owned());
        };
        adapter.sessions.insert(qp.number(), session);
        adapter.stale.retain(|number| *number != qp.number());
        adapter.users += 1;
        adapter.idle_since = None;
        self.ids.insert(qp.key(), session);
        if self.connections.len() <= session.index() {
            self.connections.resize_with(session.index() + 1, || None);
        }
        if let Some(place) = self.connections.get_mut(session.index()) {
            *place = Some(Connection {
                session,
                adapter: index,
                qp,
                entries,
                free,
                state: State::Open,
                outstanding: 0,
                expecting: false,
                _route: route,
            });
        }
        Ok(session)
    }

    /// The device that a request came through, opened if no connection uses it yet.
    fn adapter_of(&mut self, request: &ConnectRequest) -> Result<usize, VerbsError> {
        let known = |adapter: &Option<Adapter>| {
            adapter
                .as_ref()
                .is_some_and(|adapter| adapter.is_usable() && request.is_on(&adapter.device))
        };
        if let Some(index) = self.adapters.iter().position(known) {
            return Ok(index);
        }
        let device: Device = request.device()?;
        let adapter = Adapter::new(device, self.options)?;
        tracing::debug!(device = adapter.device.name(), "opened");
        let index = match self.adapters.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.adapters.push(None);
                self.adapters.len() - 1
            }
        };
        if let Some(place) = self.adapters.get_mut(index) {
            *place = Some(adapter);
        }
        Ok(index)
    }

    fn has_stale(&self, index: usize) -> bool {
        let adapter = self.adapters.get(index).and_then(Option::as_ref);
        adapter.is_some_and(|adapter| !adapter.stale.is_empty())
    }

    /// Something happened to a connection.
    fn event(&mut self, id: IdKey, kind: CmEventKind, engine: &mut Engine, now: Instant) {
        let Some(&session) = self.ids.get(&id) else {
            return;
        };
        let reason = match kind {
            CmEventKind::Established(_) => {
                if let Some(Err(error)) = engine.rdma(session, now, |link| link.established()) {
                    engine.close(session, broken(&error));
                }
                return;
            }
            CmEventKind::Disconnected => "the host closed the connection".to_owned(),
            CmEventKind::ConnectError { status } | CmEventKind::Rejected { reason: status, .. } => {
                format!("the host did not finish connecting (status {status})")
            }
            CmEventKind::DeviceRemoval => {
                let index = self.find(session).map(|connection| connection.adapter);
                if let Some(adapter) = index.and_then(|index| self.adapters.get_mut(index)?.as_mut()) {
                    adapter.is_lost = true;
                }
                "the RDMA device was removed".to_owned()
            }
            CmEventKind::AddressChange => "the address moved to another device".to_owned(),
            _ => return,
        };
        engine.close(
            session,
            Closing {
                reason,
                ordinary: true,
            },
        );
        self.end(session, engine, now);
    }

    // ---- completions ----

    /// Takes completions; says whether there were any.
    #[inline]
    pub(crate) fn poll(&mut self, engine: &mut Engine, clock: &Clock) -> bool {
        let mut any = false;
        for index in 0..self.adapters.len() {
            any |= self.poll_adapter(index, PER_TURN, engine, clock) > 0;
        }
        any
    }

    fn poll_adapter(&mut self, index: usize, most: usize, engine: &mut Engine, clock: &Clock) -> usize {
        let mut taken = 0;
        for which in [Which::Sent, Which::Received] {
            taken += self.poll_queue(index, which, most, engine, clock);
        }
        // Both were empty.
        if taken == 0
            && let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut)
        {
            for number in adapter.stale.drain(..) {
                adapter.sessions.remove(&number);
            }
        }
        taken
    }

    fn poll_queue(
        &mut self,
        index: usize,
        which: Which,
        most: usize,
        engine: &mut Engine,
        clock: &Clock,
    ) -> usize {
        let mut taken = 0;
        while taken < most {
            let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut) else {
                return taken;
            };
            if adapter.is_broken {
                return taken;
            }
            let Some(queue) = which.of(adapter) else {
                return taken;
            };
            match queue.cq.poll(&mut self.batch) {
                Ok(0) => return taken,
                Ok(count) => {
                    taken += count;
                    self.counters.completions += count as u64;
                }
                Err(error) => {
                    self.lose_adapter(index, &error, engine, clock.now());
                    return taken;
                }
            }
            let now = clock.now();
            while let Some(completion) = self.batch.next() {
                self.take(index, completion, engine, now);
            }
        }
        taken
    }

    fn take(&mut self, index: usize, completion: Completion, engine: &mut Engine, now: Instant) {
        let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let session = adapter.sessions.get(&completion.qp()).copied();
        let place = session.and_then(|session| self.connections.get_mut(session.index()));
        let connection = place
            .and_then(Option::as_mut)
            .filter(|connection| Some(connection.session) == session);
        if completion.is_receive() {
            take_receive(adapter, connection, completion, engine, now);
        } else if let Some(connection) = connection {
            take_send(connection, completion, &mut self.posted, engine, now);
        }
    }

    /// A completion queue is broken: so is everything on it.
    #[cold]
    fn lose_adapter(&mut self, index: usize, error: &VerbsError, engine: &mut Engine, now: Instant) {
        if let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut) {
            (adapter.is_lost, adapter.is_broken) = (true, true);
        }
        let all = self.connections.iter().flatten();
        let sessions: Vec<Key> = all
            .filter(|connection| connection.adapter == index && !connection.is_ending())
            .map(|connection| connection.session)
            .collect();
        if !sessions.is_empty() {
            tracing::error!("an RDMA device failed: {error}");
        }
        for session in sessions {
            self.end(session, engine, now);
        }
    }

    // ---- posting ----

    /// Remembers that a session may have work to post, or buffers that are free.
    #[inline]
    pub(crate) fn list(&mut self, session: Key) {
        self.listed.push(session);
    }

    /// Posts what the sessions that were listed want: receives first, then one list for each.
    #[inline]
    pub(crate) fn flush(&mut self, engine: &mut Engine, clock: &Clock) {
        if self.listed.is_empty() {
            return;
        }
        let mut listed = std::mem::take(&mut self.listed);
        for session in &listed {
            self.collect(*session, engine);
        }
        for adapter in self.adapters.iter_mut().flatten() {
            let (requests, doorbells) = adapter.post_shared();
            self.counters.work_requests += requests;
            self.counters.doorbells += doorbells;
        }
        for session in listed.drain(..) {
            self.post(session, engine, clock);
        }
        self.listed = listed;
    }

    /// Takes back what a connection is done with.
    fn collect(&mut self, session: Key, engine: &mut Engine) {
        let Some(connection) = find(&mut self.connections, session) else {
            return;
        };
        let Some(adapter) = self.adapters.get_mut(connection.adapter).and_then(Option::as_mut) else {
            return;
        };
        engine.collect(session, |buffer| {
            let id = adapter.put(buffer);
            free_list(adapter, connection).push(id);
        });
        if adapter.shared.is_none() && !connection.is_ending() {
            let (requests, doorbells) = adapter.post_own(connection.qp.receives(), &mut connection.free);
            self.counters.work_requests += requests;
            self.counters.doorbells += doorbells;
        }
    }

    fn post(&mut self, session: Key, engine: &mut Engine, clock: &Clock) {
        let Some(connection) = find(&mut self.connections, session) else {
            return;
        };
        let adapter = self.adapters.get_mut(connection.adapter).and_then(Option::as_mut);
        let (Some(adapter), false) = (adapter, connection.is_ending()) else {
            return;
        };
        let Some((link, arena)) = engine.rdma_parts(session) else {
            return;
        };
        let mut batch = connection.qp.sends();
        let mut failure = None;
        while failure.is_none()
            && let Some(work) = link.poll_work()
        {
            failure = push(&mut batch, &work, &mut adapter.registry, arena).err();
        }
        match batch.commit() {
            Ok(0) => {}
            Ok(posted) => {
                self.counters.work_requests += u64::from(posted);
                self.counters.doorbells += 1;
            }
            Err(error) => failure = Some(error.to_string()),
        }
        let (over, has_work, is_sent) = (link.failed(), link.has_work(), link.outstanding() == 0);
        self.posted.note(connection, link);
        if let Some(reason) = failure {
            let closing = Closing {
                reason: format!("its work cannot be posted: {reason}"),
                ordinary: false,
            };
            engine.close(session, closing);
            return self.end(session, engine, clock.now());
        }
        let is_closing = engine
            .session(session)
            .is_some_and(|session| session.closing().is_some());
        if over || (is_closing && !has_work && is_sent) {
            self.end(session, engine, clock.now());
        } else if is_closing && connection.state == State::Open {
            connection.state = State::Lingering;
            let outstanding = connection.outstanding;
            self.posted.set(connection, outstanding, true);
            self.timers
                .push(Reverse((clock.now() + LINGER, session.to_bits())));
        }
    }

    // ---- connections go ----

    /// Ends a connection: it and its session are gone a little later.
    pub(crate) fn end(&mut self, session: Key, engine: &mut Engine, now: Instant) {
        let Some(connection) = find(&mut self.connections, session).filter(|found| !found.is_ending()) else {
            return;
        };
        connection.state = State::Ending(now);
        let outstanding = connection.outstanding;
        self.posted.set(connection, outstanding, true);
        if connection.qp.disconnect().is_err()
            && let Err(error) = connection.qp.kill()
        {
            tracing::debug!("a queue pair is not moved to the error state: {error}");
        }
        self.timers.push(Reverse((now + DRAIN, session.to_bits())));
        engine.part(session, now);
    }

    /// When something is to be done.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let look = (self.posted.outstanding > 0).then(|| now + LOOK);
        let adapters = self.adapters.iter().flatten();
        let idle = adapters.filter_map(Adapter::kept_until).min();
        [timer, idle, look].into_iter().flatten().min()
    }

    /// Does what is due. Says whether sessions are gone.
    #[inline]
    pub(crate) fn tick(&mut self, reactor: &mut Reactor, engine: &mut Engine, now: Instant) -> bool {
        if self.adapters.is_empty() {
            return false;
        }
        while let Some(&Reverse((due, bits))) = self.timers.peek() {
            if due > now {
                break;
            }
            self.timers.pop();
            let session = Key::from_bits(bits);
            match self.find(session).map(|connection| connection.state) {
                Some(State::Lingering) => self.end(session, engine, now),
                Some(State::Ending(since)) => self.destroy(session, since, engine, now),
                Some(State::Open) | None => {}
            }
        }
        let gone = self.bury(engine, now);
        self.close_adapters(reactor, engine, now);
        gone
    }

    /// Destroys the queue pair of a connection that has ended, once nothing is posted to it any more.
    fn destroy(&mut self, session: Key, since: Instant, engine: &mut Engine, now: Instant) {
        let waits =
            |connection: &Connection| !connection.qp.is_idle() && now.saturating_since(since) < DRAIN_AT_MOST;
        let place = self.connections.get_mut(session.index());
        let Some(place) = place.filter(|place| place.is_some()) else {
            return;
        };
        if place.as_ref().is_some_and(waits) {
            return self.timers.push(Reverse((now + DRAIN, session.to_bits())));
        }
        let Some(connection) = place.take() else { return };
        self.posted.forget(&connection);
        let Connection {
            qp,
            adapter: index,
            entries,
            mut free,
            ..
        } = connection;
        let (id, number) = (qp.key(), qp.number());
        self.ids.remove(&id);
        // Whatever happens to it, the device uses none of its memory after this.
        close(qp, &mut free);
        if let Some(adapter) = self.adapters.get_mut(index).and_then(Option::as_mut) {
            adapter.release(entries);
            adapter.stale.push(number);
            adapter.free.append(&mut free);
        }
        if let Some(link) = engine.session(session).and_then(|session| session.rdma()) {
            link.stopped();
        }
        self.burying.push((session, index));
    }

    fn bury(&mut self, engine: &mut Engine, now: Instant) -> bool {
        let adapters = &mut self.adapters;
        let before = self.burying.len();
        self.burying.retain(|(session, index)| {
            let mut adapter = adapters.get_mut(*index).and_then(Option::as_mut);
            let gone = engine.bury(*session, |buffer| {
                if let Some(adapter) = &mut adapter {
                    let id = adapter.put(buffer);
                    adapter.free.push(id);
                }
            });
            if gone && let Some(adapter) = adapter {
                adapter.users -= 1;
                adapter.idle_since = (adapter.users == 0).then_some(now);
            }
            !gone
        });
        if self.burying.len() == before {
            return false;
        }
        for adapter in self.adapters.iter_mut().flatten() {
            let (requests, doorbells) = adapter.post_shared();
            self.counters.work_requests += requests;
            self.counters.doorbells += doorbells;
        }
        true
    }

    /// Closes devices that no connection has used for a while.
    fn close_adapters(&mut self, reactor: &mut Reactor, engine: &mut Engine, now: Instant) {
        for place in &mut self.adapters {
            let until = place.as_ref().and_then(Adapter::kept_until);
            if until.is_none_or(|until| until > now) {
                continue;
            }
            if let Some(adapter) = place.take() {
                tracing::debug!(device = adapter.device.name(), "closed");
                self.registrations += adapter.registry.registrations;
                let mut adapter = adapter;
                for region in &adapter.memory {
                    engine.unreach(region);
                }
                for watched in adapter.queues().filter_map(|queue| queue.watched.take()) {
                    reactor.close(watched);
                }
                if adapter.is_lost {
                    drop(adapter);
                    // What the connection manager's library has open of it, it closes when it looks at what there is.
                    drop(Device::list());
                }
            }
        }
        while self.adapters.last().is_some_and(Option::is_none) {
            self.adapters.pop();
        }
    }

    // ---- sleep ----

    /// Sees to it that completions wake the shard; false if there are some already, or if it must go on polling. Events of queue `n`
    /// carry `token | n`.
    pub(crate) fn may_sleep(
        &mut self,
        reactor: &mut Reactor,
        engine: &mut Engine,
        clock: &Clock,
        token: u64,
    ) -> bool {
        // What was sent wakes nobody unless something waits for it: a turn that something else starts, or `LOOK`, takes it.
        let expecting = self.posted.expecting > 0 || engine.wants_buffers();
        let mut all = true;
        for (adapter, index) in self.adapters.iter_mut().zip(0..) {
            let Some(adapter) = adapter else { continue };
            if adapter.is_broken {
                // Nothing will come of it.
                continue;
            }
            let is_shared = adapter.received.is_some();
            let (sent, received) = (token | (2 * index), token | (2 * index + 1));
            if expecting || !is_shared || !adapter.stale.is_empty() {
                all &= arm(&mut adapter.sent, reactor, sent);
            }
            if let Some(queue) = &mut adapter.received {
                all &= arm(queue, reactor, received);
            }
        }
        // What came before they were armed is not announced.
        all & !self.poll(engine, clock)
    }

    /// A completion queue has something, and no longer watches.
    pub(crate) fn woken(&mut self, queue: usize) {
        let which = if queue.is_multiple_of(2) {
            Which::Sent
        } else {
            Which::Received
        };
        let adapter = self.adapters.get_mut(queue / 2).and_then(Option::as_mut);
        if let Some(queue) = adapter.and_then(|adapter| which.of(adapter)) {
            (queue.armed, queue.announced) = (false, true);
        }
    }

    pub(crate) fn counters(&self) -> RdmaCounters {
        let adapters = self.adapters.iter().flatten();
        let now: u64 = adapters.map(|adapter| adapter.registry.registrations).sum();
        RdmaCounters {
            registrations: self.registrations + now,
            ..self.counters
        }
    }
}

/// One of an adapter's completion queues.
#[derive(Debug, Clone, Copy)]
enum Which {
    Sent,
    Received,
}

impl Which {
    fn of(self, adapter: &mut Adapter) -> Option<&mut Polled> {
        match self {
            Self::Sent => Some(&mut adapter.sent),
            Self::Received => adapter.received.as_mut(),
        }
    }
}

impl Connection {
    fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending(_))
    }
}

#[inline]
fn find(connections: &mut [Option<Connection>], session: Key) -> Option<&mut Connection> {
    connections
        .get_mut(session.index())?
        .as_mut()
        .filter(|connection| connection.session == session)
}

/// Where receives of a connection go that are free.
fn free_list<'a>(adapter: &'a mut Adapter, connection: &'a mut Connection) -> &'a mut Vec<u32> {
    if adapter.shared.is_some() {
        &mut adapter.free
    } else {
        &mut connection.free
    }
}

fn broken(error: &dyn std::fmt::Display) -> Closing {
    Closing {
        reason: error.to_string(),
        ordinary: false,
    }
}

fn take_receive(
    adapter: &mut Adapter,
    mut connection: Option<&mut Connection>,
    completion: Completion,
    engine: &mut Engine,
    now: Instant,
) {
    let received = match (&mut adapter.shared, &mut connection) {
        (Some(shared), _) => shared.received(completion),
        (None, Some(connection)) => connection.qp.received(completion),
        // Its queue pair is gone, and gave back what was posted.
        (None, None) => return,
    };
    let Ok(received) = received else { return };
    let buffer = u32::try_from(received.token).ok().and_then(|id| adapter.take(id));
    let mut buffer = buffer;
    let live = connection.as_ref().filter(|connection| !connection.is_ending());
    let session = live.map(|connection| connection.session);
    if let Some(session) = session
        && received.status.is_success()
    {
        let len = usize::try_from(received.bytes).unwrap_or(usize::MAX);
        let taken = engine.rdma(session, now, |link| {
            buffer.take().map_or(Ok(()), |buffer| link.received(buffer, len))
        });
        if let Some(Err(error)) = taken {
            engine.close(session, broken(&error));
        }
    } else if let Some(session) = session {
        let reason = format!("a receive failed: {}", received.status);
        fail(session, reason, engine, now);
    }
    if let Some(buffer) = buffer {
        let id = adapter.put(buffer);
        match connection {
            Some(connection) => free_list(adapter, connection).push(id),
            None => adapter.free.push(id),
        }
    }
}

fn take_send(
    connection: &mut Connection,
    completion: Completion,
    posted: &mut Posted,
    engine: &mut Engine,
    now: Instant,
) {
    let status = completion.status();
    let mut completed = None;
    let ours = connection.qp.complete(completion, |released| {
        if released.completed {
            completed = u32::try_from(released.token).ok().map(WorkId);
        }
    });
    let (Ok(()), Some(id)) = (ours, completed) else {
        return;
    };
    let session = connection.session;
    if status.is_success() {
        let completed = engine.rdma(session, now, |link| {
            let completed = link.completed(id);
            posted.note(connection, link);
            completed
        });
        if let Some(Err(error)) = completed {
            engine.close(session, broken(&error));
        }
        return;
    }
    engine.rdma(session, now, |link| {
        link.work_failed(id);
        posted.note(connection, link);
    });
    if !connection.is_ending() {
        fail(session, format!("a work request failed: {status}"), engine, now);
    }
}

/// The queue pair of a connection failed.
fn fail(session: Key, reason: String, engine: &mut Engine, now: Instant) {
    engine.rdma(session, now, |link| link.lost());
    // Hosts that vanish look like this.
    engine.close(
        session,
        Closing {
            reason,
            ordinary: true,
        },
    );
}

fn arm(queue: &mut Polled, reactor: &mut Reactor, token: u64) -> bool {
    // Here and not where it woke the shard: commands are answered first.
    if std::mem::take(&mut queue.announced)
        && let Err(error) = queue.cq.disarm()
    {
        tracing::warn!("cannot read the events of a completion queue: {error}");
    }
    if !queue.armed {
        if let Err(error) = queue.cq.arm() {
            tracing::warn!("cannot sleep until a completion comes, polling instead: {error}");
            return false;
        }
        queue.armed = true;
    }
    let watched = match queue.watched {
        Some(watched) => watched,
        None => {
            let Some(descriptor) = queue.cq.descriptor() else {
                return false;
            };
            match reactor.add_watched(descriptor, token) {
                Ok(watched) => *queue.watched.insert(watched),
                Err(error) => {
                    tracing::warn!("cannot sleep on a completion queue, polling it instead: {error}");
                    return false;
                }
            }
        }
    };
    reactor.watch(watched);
    true
}
