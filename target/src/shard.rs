//! A shard: one thread with a reactor and an engine, and a driver for RDMA. Nothing it uses on the data path is shared.
//!
//! It polls while there is work and, where that pays, for a little longer, then sleeps in the kernel until a socket, an executor or
//! another thread has something for it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homi_fabric::controller::PortId;
use homi_fabric::time::Instant;
use homi_queue::GatherList;
use homi_reactor::{Event, Options, Reactor, ReactorError, Receive, SocketKey, Wait, Waker};

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{Engine, EngineOptions, Request, Shared};
use crate::rdma::{Driver, Letter};
use crate::session::Closing;
use crate::slab::Key;

/// Payload with at least this much still to come is received where it belongs instead of through a staging buffer: from
/// here on the copy costs more than the additional system calls.
const DIRECT: usize = 32 << 10;
/// Bytes taken along after a direct receive: the next headers.
const LOOKAHEAD: usize = 256;
/// How long a connection that is being closed may take to accept what is still to be sent.
const LINGER: Duration = Duration::from_secs(2);
/// Most bytes that one receive takes from the stream: everything that a reactor's staging buffer holds.
pub(crate) const STAGING: usize = 128 << 10;
/// Lists kept for reuse.
const SPARE_LISTS: usize = 64;
/// Bytes that may wait behind a send that is under way before no more is received from the connection: a host that sends
/// commands and never takes the answers is stopped by its own send buffer, not by this node's memory.
const BACKLOG: usize = 1 << 20;

/// A connection on its way to a shard.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: OwnedFd,
    pub(crate) peer: Arc<str>,
    pub(crate) port: PortId,
    /// The address of this node that the host came to.
    pub(crate) local: IpAddr,
    pub(crate) in_capsule: u32,
}

/// What other threads ask of a shard.
#[derive(Debug)]
pub(crate) enum Message {
    Arrival(Arrival),
    #[cfg_attr(
        not(feature = "rdma"),
        expect(dead_code, reason = "there are no such letters")
    )]
    Rdma(Letter),
    Request(Request),
    /// Close every connection and end.
    Stop,
}

/// What one shard has done since it was started: for benchmarks, and to see that the fast path is the fast path. Each number grows
/// on its own: one reading of several is not of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardCounters {
    /// System calls of its event loop; those of executors in the background (files) are not among them.
    pub syscalls: u64,
    /// Turns of its event loop.
    pub turns: u64,
    /// Turns that slept.
    pub sleeps: u64,
    /// Receives that brought bytes.
    pub receives: u64,
    /// Receives that found nothing, while it polled.
    pub empty_receives: u64,
    /// Batches of answers that were sent.
    pub sends: u64,
    /// Commands whose payload was copied in user space on its way from the socket to its buffer, wholly or in part.
    pub copies: u64,
    /// Bytes that were.
    pub bytes_copied: u64,
    /// Payload bytes that the kernel put into their buffer.
    pub bytes_landed: u64,
    /// Namespaces that were flushed because a host shut its controller down.
    pub flushed: u64,
    /// Work requests posted to RDMA queue pairs, receives included.
    pub work_requests: u64,
    /// Lists in which they were posted: doorbells.
    pub doorbells: u64,
    /// Completions of work requests.
    pub completions: u64,
    /// Registrations of memory with RDMA devices.
    pub registrations: u64,
    /// Remote queues that have a queue pair of a drive for themselves now, counted for each drive.
    pub drive_queues: u64,
    /// Remote queues that went to the shard's shared queue pair of a drive because it had none left, counted for each drive.
    pub drive_queues_shared: u64,
    /// Bytes of commands' data that were placed in memory buffers of drives.
    pub bytes_cmb: u64,
}

/// The part of [`ShardCounters`] that is about RDMA.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RdmaCounters {
    pub(crate) work_requests: u64,
    pub(crate) doorbells: u64,
    pub(crate) completions: u64,
    pub(crate) registrations: u64,
}

/// [`ShardCounters`] as the shard publishes them: by plain stores, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Published([AtomicU64; 17]);

impl Published {
    fn store(&self, counters: &ShardCounters) {
        let values = [
            counters.syscalls,
            counters.turns,
            counters.sleeps,
            counters.receives,
            counters.empty_receives,
            counters.sends,
            counters.copies,
            counters.bytes_copied,
            counters.bytes_landed,
            counters.flushed,
            counters.work_requests,
            counters.doorbells,
            counters.completions,
            counters.registrations,
            counters.drive_queues,
            counters.drive_queues_shared,
            counters.bytes_cmb,
        ];
        for (to, from) in self.0.iter().zip(values) {
            to.store(from, Ordering::Relaxed);
        }
    }

    fn load(&self) -> ShardCounters {
        let [
            syscalls,
            turns,
            sleeps,
            receives,
            empty_receives,
            sends,
            copies,
            bytes_copied,
            bytes_landed,
            flushed,
            work_requests,
            doorbells,
            completions,
            registrations,
            drive_queues,
            drive_queues_shared,
            bytes_cmb,
        ] = self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        ShardCounters {
            syscalls,
            turns,
            sleeps,
            receives,
            empty_receives,
            sends,
            copies,
            bytes_copied,
            bytes_landed,
            flushed,
            work_requests,
            doorbells,
            completions,
            registrations,
            drive_queues,
            drive_queues_shared,
            bytes_cmb,
        }
    }
}

/// The mailboxes of all shards.
#[derive(Debug, Clone)]
pub(crate) struct Mailboxes(Vec<Arc<Mailbox>>);

/// Connections accepted beyond `limits.connections`, so that their hosts are told that the node is busy instead of finding the
/// connection closed. Beyond these too they are closed.
const TURNED_AWAY: u64 = 64;

impl Mailboxes {
    /// Mailboxes of so many shards.
    pub(crate) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Arc::new(Mailbox::new())).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.0.iter()
    }

    /// Sends a message to a shard.
    pub(crate) fn post(&self, shard: usize, message: Message) {
        if let Some(mailbox) = self.0.get(shard) {
            mailbox.post(message);
        }
    }

    /// Number of connections of all shards.
    pub(crate) fn connections(&self) -> u64 {
        let counts = self.iter().map(|mailbox| &mailbox.connections);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The shard for another connection: the one that has the fewest; `None` if there are as many connections as there may be. It counts
    /// at once, so that connections that arrive together spread out; the shard then keeps the count itself.
    pub(crate) fn choose(&self, most: u32) -> Option<usize> {
        if self.connections() >= u64::from(most) + TURNED_AWAY {
            return None;
        }
        let counts = self.iter().map(|mailbox| &mailbox.connections);
        let (shard, count) = counts
            .enumerate()
            .min_by_key(|(_, count)| count.load(Ordering::Relaxed))?;
        count.fetch_add(1, Ordering::Relaxed);
        Some(shard)
    }
}

/// A shard's letter box.
#[derive(Debug)]
pub(crate) struct Mailbox {
    messages: Mutex<VecDeque<Message>>,
    waker: Mutex<Option<Waker>>,
    /// Connections that the shard has, for balancing.
    pub(crate) connections: AtomicU64,
    counters: Published,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        Self {
            messages: Mutex::new(VecDeque::new()),
            waker: Mutex::new(None),
            connections: AtomicU64::new(0),
            counters: Published::default(),
        }
    }

    /// What the shard has done, as of its last turn with events.
    pub(crate) fn counters(&self) -> ShardCounters {
        self.counters.load()
    }

    pub(crate) fn post(&self, message: Message) {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(message);
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }

    fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Drops what nobody will read.
    pub(crate) fn clear(&self) {
        while self.take().is_some() {}
    }

    fn take(&self) -> Option<Message> {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// How a shard runs.
#[derive(Debug, Clone)]
pub(crate) struct ShardOptions {
    pub(crate) engine: EngineOptions,
    pub(crate) config: Arc<Config>,
    pub(crate) reactor: Options,
    pub(crate) poll: Duration,
    pub(crate) handshake: Duration,
}

/// A connection's socket, found by the key of its session.
#[derive(Debug)]
struct Socket {
    key: SocketKey,
    session: Key,
    /// It is closed as soon as its output is sent; nothing is received any more.
    lingering: bool,
    /// Nothing is received until the host has taken more of its output, or a command that waits for a buffer has one.
    paused: bool,
}

/// Tokens of the reactor: sessions carry their key's bits, executors this flag and their place.
const EXECUTOR: u64 = 1 << 63;
/// RDMA's completion queues carry this flag and their number.
const COMPLETIONS: u64 = 1 << 62;

pub(crate) struct Shard {
    reactor: Reactor,
    engine: Engine,
    rdma: Driver,
    clock: Clock,
    mailbox: Arc<Mailbox>,
    options: ShardOptions,
    /// By the index of the session's key.
    sockets: Vec<Option<Socket>>,
    /// Descriptors of executors, by place.
    watched: Vec<Option<SocketKey>>,
    /// When a connection must be connected by, or be closed.
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    spare: Vec<GatherList>,
    heard: Heard,
    patience: Patience,
    /// Set when the shard is to end: when whatever is left is closed by force.
    stopping: Option<Instant>,
}

/// What the events of one turn leave to be done after it.
#[derive(Debug, Default)]
struct Heard {
    /// Sessions whose receive ended with bytes.
    received: Vec<Key>,
    /// Sessions whose send ended.
    sent: Vec<Key>,
    /// Sessions whose connection ended, and how if not by the peer closing it.
    ended: Vec<(Key, Option<io::Error>)>,
    /// RDMA's completion queues with something in them.
    completions: Vec<usize>,
    mail: bool,
}

/// How long a shard polls before it sleeps: not at all while what comes next keeps coming later than it would be polled for. Polling then
/// only takes processor time from whoever is to send it.
#[derive(Debug, Clone, Copy)]
struct Patience {
    most: Duration,
    last_event: Instant,
    /// Waits in a row that were longer.
    in_vain: u32,
}

impl Patience {
    /// Such waits after which no more is polled, until one is shorter.
    const LESSONS: u32 = 4;

    fn new(most: Duration, now: Instant) -> Self {
        Self {
            most,
            last_event: now,
            in_vain: 0,
        }
    }

    fn polls(&self, now: Instant) -> bool {
        self.in_vain < Self::LESSONS && now.saturating_since(self.last_event) < self.most
    }

    /// A sleep was ended by an event.
    fn woken(&mut self, now: Instant) {
        self.in_vain = if now.saturating_since(self.last_event) < self.most {
            0
        } else {
            (self.in_vain + 1).min(Self::LESSONS)
        };
    }
}

impl Shard {
    /// Sets a shard up on the calling thread, which has to be the one that runs it.
    pub(crate) fn new(
        shared: Shared,
        options: ShardOptions,
        mailbox: Arc<Mailbox>,
        clock: Clock,
    ) -> Result<Self, ReactorError> {
        let reactor = Reactor::new(options.reactor.clone())?;
        mailbox.set_waker(reactor.waker());
        let engine = Engine::new(shared, options.engine.clone());
        let rdma = Driver::new(&options.config, options.engine.shard);
        let patience = Patience::new(options.poll, clock.now());
        Ok(Self {
            reactor,
            engine,
            rdma,
            clock,
            mailbox,
            options,
            sockets: Vec::new(),
            watched: Vec::new(),
            deadlines: BinaryHeap::new(),
            spare: Vec::new(),
            heard: Heard::default(),
            patience,
            stopping: None,
        })
    }

    pub(crate) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Runs until told to stop and every connection is closed.
    pub(crate) fn run(mut self) -> Result<(), ReactorError> {
        self.patience.last_event = self.clock.now();
        loop {
            let wait = self.wait();
            if self.turn(wait)? {
                self.patience.last_event = self.clock.now();
            }
            if self.stopping.is_some() && (self.close_idle() || self.is_overdue()) {
                return Ok(());
            }
        }
    }

    /// How the next turn waits: not at all while there was something lately, else until the next deadline.
    fn wait(&mut self) -> Wait {
        let now = self.clock.now();
        if self.patience.polls(now) {
            return Wait::Poll;
        }
        self.end_watches();
        let Self {
            engine,
            reactor,
            watched,
            ..
        } = self;
        if engine.is_pressing() {
            return Wait::Poll;
        }
        let mut all_watched = true;
        engine.watch_executors(|handle, descriptor| {
            let done = watch(reactor, watched, handle, descriptor);
            all_watched &= done;
            done
        });
        if !all_watched {
            return Wait::Poll;
        }
        if !self
            .rdma
            .may_sleep(&mut self.reactor, &mut self.engine, &self.clock, COMPLETIONS)
        {
            return Wait::Poll;
        }
        let deadline = self.deadlines.peek().map(|Reverse((due, _))| *due);
        let deadline = match (deadline, self.rdma.next_deadline(now)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let deadline = deadline.map(|due| due.saturating_since(now));
        Wait::Sleep(if self.stopping.is_some() {
            Some(Duration::from_millis(10))
        } else {
            deadline
        })
    }

    /// One turn: events, the batch they make, and what it leaves to be sent. Says whether anything happened.
    fn turn(&mut self, wait: Wait) -> Result<bool, ReactorError> {
        let Self {
            reactor,
            engine,
            clock,
            heard,
            spare,
            ..
        } = self;
        let mut now = None;
        let events = reactor.turn(wait, &mut |event| match event {
            Event::Received { token, direct, bytes } => {
                let now = *now.get_or_insert_with(|| clock.now());
                let key = Key::from_bits(token);
                if direct > 0 {
                    engine.landed(key, direct, now);
                }
                if !bytes.is_empty() {
                    engine.receive(key, bytes, now);
                }
                heard.received.push(key);
            }
            Event::Sent { token, list } => {
                if spare.len() < SPARE_LISTS {
                    spare.push(list);
                }
                heard.sent.push(Key::from_bits(token));
            }
            Event::Closed { token } => heard.ended.push((Key::from_bits(token), None)),
            Event::Failed { token, error, .. } if token & (EXECUTOR | COMPLETIONS) == 0 => {
                heard.ended.push((Key::from_bits(token), Some(error)));
            }
            Event::Readable { token } | Event::Failed { token, .. } if token & COMPLETIONS != 0 => {
                let number = usize::try_from(token & !COMPLETIONS);
                heard.completions.push(number.unwrap_or(usize::MAX));
            }
            Event::Readable { token } | Event::Failed { token, .. } => {
                engine.unwatched(usize::try_from(token & !EXECUTOR).unwrap_or(usize::MAX));
            }
            Event::Woken => heard.mail = true,
            Event::Accepted { .. } | Event::AcceptFailed { .. } => {}
        })?;
        if events > 0 && matches!(wait, Wait::Sleep(_)) {
            self.patience.woken(self.clock.now());
        }
        let executing = self.engine.is_executing();
        if events == 0 && !executing && self.deadlines.is_empty() && self.rdma.is_idle() {
            return Ok(false);
        }
        for number in self.heard.completions.drain(..) {
            self.rdma.woken(number);
        }
        if std::mem::take(&mut self.heard.mail) {
            self.read_mail();
        }
        let completed = self.rdma.poll(&mut self.engine, &self.clock);
        let progress = self.engine.run();
        self.end_watches();
        self.end_sessions();
        self.check_deadlines();
        self.flush();
        self.rearm();
        if !self.rdma.is_idle() {
            let now = self.clock.now();
            if self.rdma.tick(&mut self.reactor, &mut self.engine, now) {
                self.count_connections();
            }
        }
        if events > 0 || completed {
            self.publish();
        }
        Ok(events > 0 || completed || progress)
    }

    /// Ends watching executors that are gone.
    #[inline]
    fn end_watches(&mut self) {
        while let Some(place) = self.engine.take_gone_executor() {
            if let Some(key) = self.watched.get_mut(place).and_then(Option::take) {
                self.reactor.close(key);
            }
        }
    }

    fn publish(&self) {
        let (reactor, payload) = (self.reactor.counters(), self.engine.payload());
        let rdma = self.rdma.counters();
        let queues = self.engine.drive_queues();
        self.mailbox.counters.store(&ShardCounters {
            syscalls: reactor.syscalls,
            turns: reactor.turns,
            sleeps: reactor.sleeps,
            receives: reactor.receives,
            empty_receives: reactor.empty_receives,
            sends: reactor.sends,
            copies: payload.copies,
            bytes_copied: payload.bytes_copied,
            bytes_landed: payload.bytes_landed,
            flushed: self.engine.flushed(),
            work_requests: rdma.work_requests,
            doorbells: rdma.doorbells,
            completions: rdma.completions,
            registrations: rdma.registrations,
            drive_queues: queues.own,
            drive_queues_shared: queues.sharing,
            bytes_cmb: payload.bytes_cmb,
        });
    }

    fn read_mail(&mut self) {
        while let Some(message) = self.mailbox.take() {
            match message {
                Message::Arrival(arrival) => self.arrive(arrival),
                Message::Rdma(letter) => self.read_letter(letter),
                Message::Request(request) => self.engine.request(request),
                Message::Stop => self.stopping = Some(self.clock.now() + LINGER),
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        if self.stopping.is_some() {
            return;
        }
        let Arrival {
            stream,
            peer,
            port,
            local,
            in_capsule,
        } = arrival;
        let Some(session) = self.engine.open(port, local, peer, in_capsule) else {
            return;
        };
        let key = self.reactor.add_stream(stream, session.to_bits());
        self.reactor.receive(key, Receive::Staging { limit: STAGING });
        if self.sockets.len() <= session.index() {
            self.sockets.resize_with(session.index() + 1, || None);
        }
        if let Some(place) = self.sockets.get_mut(session.index()) {
            *place = Some(Socket {
                key,
                session,
                lingering: false,
                paused: false,
            });
        }
        self.expect_handshake(session);
        self.count_connections();
    }

    /// Closes a connection that is not a queue in time.
    fn expect_handshake(&mut self, session: Key) {
        self.deadlines.push(Reverse((
            self.clock.now() + self.options.handshake,
            session.to_bits(),
        )));
    }

    fn read_letter(&mut self, letter: Letter) {
        if self.stopping.is_some() {
            return;
        }
        if let Some(session) = self.rdma.read(letter, &mut self.engine, &self.clock) {
            self.expect_handshake(session);
        }
        self.count_connections();
    }

    fn count_connections(&self) {
        self.mailbox
            .connections
            .store(self.engine.connections() as u64, Ordering::Relaxed);
    }

    /// Drops what the peers closed or what failed.
    fn end_sessions(&mut self) {
        let mut ended = std::mem::take(&mut self.heard.ended);
        for (key, error) in ended.drain(..) {
            if let Some(error) = error {
                self.engine.close(
                    key,
                    Closing {
                        reason: format!("the connection failed: {error}"),
                        ordinary: true,
                    },
                );
            }
            self.drop_session(key);
        }
        self.heard.ended = ended;
    }

    fn drop_session(&mut self, session: Key) {
        if self.rdma.has(session) {
            return self.rdma.end(session, &mut self.engine, self.clock.now());
        }
        let place = self.sockets.get_mut(session.index());
        if let Some(place) = place
            && place.as_ref().is_some_and(|socket| socket.session == session)
            && let Some(socket) = place.take()
        {
            self.reactor.close(socket.key);
            self.engine.forget(session, self.clock.now());
            self.count_connections();
        }
    }

    fn check_deadlines(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = self.clock.now();
        while let Some(&Reverse((due, bits))) = self.deadlines.peek() {
            if due > now {
                return;
            }
            self.deadlines.pop();
            let key = Key::from_bits(bits);
            let Some(session) = self.engine.session(key) else {
                continue;
            };
            if session.closing().is_some() {
                self.drop_session(key);
            } else if !session.is_connected() {
                let seconds = self.options.handshake.as_secs();
                let reason = format!("the host did not connect to a subsystem within {seconds} s");
                self.engine.close(
                    key,
                    Closing {
                        reason,
                        ordinary: false,
                    },
                );
            }
        }
    }

    /// Sends what the sessions left, one list per connection at a time, and closes what is done.
    fn flush(&mut self) {
        let mut sent = std::mem::take(&mut self.heard.sent);
        for key in sent.drain(..) {
            self.flush_session(key);
        }
        self.heard.sent = sent;
        while let Some(key) = self.engine.next_listed() {
            if self.rdma.has(key) {
                self.rdma.list(key);
            } else {
                self.flush_session(key);
            }
        }
        self.rdma.flush(&mut self.engine, &self.clock);
    }

    fn flush_session(&mut self, session: Key) {
        let Some(socket) = find(&mut self.sockets, session) else {
            return;
        };
        if self.reactor.send_in_flight(socket.key) {
            return;
        }
        let spare = &mut self.spare;
        if let Some(list) = self
            .engine
            .take_output(session, || spare.pop().unwrap_or_default())
        {
            self.reactor.send(socket.key, list);
        }
        if std::mem::take(&mut socket.paused) {
            self.heard.received.push(session);
        }
        let closing = self
            .engine
            .session(session)
            .is_some_and(|session| session.closing().is_some());
        if !closing {
            return;
        }
        if self.reactor.send_in_flight(socket.key) {
            if !socket.lingering {
                socket.lingering = true;
                self.deadlines
                    .push(Reverse((self.clock.now() + LINGER, session.to_bits())));
            }
        } else {
            self.drop_session(session);
        }
    }

    /// Arms the next receive of every connection that received something.
    fn rearm(&mut self) {
        let mut received = std::mem::take(&mut self.heard.received);
        for key in received.drain(..) {
            let Some(socket) = find(&mut self.sockets, key) else {
                continue;
            };
            if socket.lingering {
                continue;
            }
            socket.paused = self.engine.backlog(key) > BACKLOG || self.engine.is_stalled(key);
            if socket.paused {
                continue;
            }
            let receive = match self.engine.landing(key, DIRECT) {
                Some(segment) => Receive::Into {
                    segment,
                    lookahead: LOOKAHEAD,
                },
                // No more than the next headers: what follows them goes where it belongs.
                None if self.engine.expects(key, DIRECT) => Receive::Staging { limit: LOOKAHEAD },
                None => Receive::Staging { limit: STAGING },
            };
            self.reactor.receive(socket.key, receive);
        }
        self.heard.received = received;
    }

    /// While stopping: whether not even force has closed everything, because executors do not give back what they have.
    fn is_overdue(&self) -> bool {
        self.stopping
            .is_some_and(|limit| self.clock.now() > limit + LINGER)
    }

    /// While stopping: closes connections that have nothing executing, by force when time is up; true when none is left.
    fn close_idle(&mut self) -> bool {
        let force = self.stopping.is_some_and(|limit| self.clock.now() > limit);
        for key in self.engine.sessions() {
            if force {
                self.drop_session(key);
            } else if self
                .engine
                .session(key)
                .is_some_and(|session| session.executing() == 0)
            {
                let reason = "the target is stopping".to_owned();
                self.engine.close(
                    key,
                    Closing {
                        reason,
                        ordinary: true,
                    },
                );
            }
        }
        self.flush();
        self.engine.connections() == 0
    }
}

fn find(sockets: &mut [Option<Socket>], session: Key) -> Option<&mut Socket> {
    sockets
        .get_mut(session.index())?
        .as_mut()
        .filter(|socket| socket.session == session)
}

/// Asks to be woken when an executor's descriptor is readable; false if that cannot be had.
fn watch(
    reactor: &mut Reactor,
    watched: &mut Vec<Option<SocketKey>>,
    index: usize,
    descriptor: BorrowedFd<'_>,
) -> bool {
    if watched.len() <= index {
        watched.resize(index + 1, None);
    }
    let Some(place) = watched.get_mut(index) else {
        return false;
    };
    let key = match *place {
        Some(key) => key,
        None => match reactor.add_watched(descriptor, EXECUTOR | index as u64) {
            Ok(key) => *place.insert(key),
            Err(error) => {
                tracing::warn!("cannot sleep on an executor, polling it instead: {error}");
                return false;
            }
        },
    };
    reactor.watch(key);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_ends_where_it_finds_nothing_and_comes_back_where_it_would() {
        let at = |micros: u64| Instant::from_nanoseconds(micros * 1000);
        let mut patience = Patience::new(Duration::from_micros(50), at(0));
        for turn in 0..Patience::LESSONS {
            assert!(patience.polls(at(40)), "after {turn} waits");
            assert!(!patience.polls(at(60)));
            patience.woken(at(300));
        }
        assert!(!patience.polls(at(1)));
        // One long wait more changes nothing, one short one does.
        patience.woken(at(300));
        assert!(!patience.polls(at(1)));
        patience.woken(at(30));
        assert!(patience.polls(at(1)));
    }
}
