//! The backend on epoll: the same interface and the same events as on io_uring, for systems that refuse it.
//!
//! Streams are watched edge-triggered and registered once, so that a turn costs one `epoll_wait` and one call per
//! operation. A stream is tried as long as it may be ready, and set aside when a call took less than asked for or
//! would block. Listeners are level-triggered, so that a backlog longer than one turn's share is not forgotten.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use homi_queue::GatherList;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Shutdown, shutdown};

use crate::slab::{Slab, SocketKey};
use crate::system;
use crate::types::{
    ACCEPT_PAUSE, Counters, Deferred, Event, MAX_LOOKAHEAD, Options, ReactorError, Receive, Wait,
};
use crate::waker::Waker;

/// Events taken from the kernel per turn; what is left comes with the next one.
const EVENTS: usize = 256;

/// Streams accepted per listener and turn.
const ACCEPTS: usize = 64;

/// What the eventfd's events carry. No key looks like this: it would take 2³² slots.
const WAKER: u64 = u64::MAX;

#[derive(Debug)]
struct Stream {
    descriptor: OwnedFd,
    token: u64,
    receive: Option<Receive>,
    list: Option<GatherList>,
    /// A receive may find something.
    readable: bool,
    /// The peer's end of stream or an error was announced, after which there are no more edges.
    ended: bool,
    /// A send may find room.
    writable: bool,
    /// It is in the queue of streams to try.
    queued: bool,
}

#[derive(Debug)]
struct Listener {
    descriptor: OwnedFd,
    token: u64,
}

#[derive(Debug)]
struct Watched {
    descriptor: OwnedFd,
    token: u64,
}

#[derive(Debug)]
enum Slot {
    Stream(Stream),
    Listener(Listener),
    Watched(Watched),
}

pub(crate) struct Readiness {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    slots: Slab<Slot>,
    /// Streams with an operation that may succeed now.
    to_try: VecDeque<SocketKey>,
    deferred: VecDeque<(SocketKey, Deferred)>,
    paused: Vec<(Instant, SocketKey)>,
    staging: Vec<u8>,
    /// Most bytes of one receive into staging; the buffer is longer if a lookahead can be.
    staging_len: usize,
    waker: Waker,
    counters: Counters,
}

impl Readiness {
    pub(crate) fn new(options: &Options, waker: Waker) -> Result<Self, ReactorError> {
        let failed = |action| {
            move |errno: nix::Error| ReactorError::System {
                action,
                source: errno.into(),
            }
        };
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("create an epoll instance"))?;
        let wakes = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKER);
        epoll
            .add(waker.descriptor(), wakes)
            .map_err(failed("watch the waker"))?;
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); EVENTS],
            slots: Slab::new(),
            to_try: VecDeque::new(),
            deferred: VecDeque::new(),
            paused: Vec::new(),
            staging: vec![0; (options.staging_len as usize).max(MAX_LOOKAHEAD)],
            staging_len: options.staging_len as usize,
            waker,
            counters: Counters::default(),
        })
    }

    pub(crate) fn add_stream(&mut self, stream: OwnedFd, token: u64) -> SocketKey {
        let key = self.slots.insert(Slot::Stream(Stream {
            descriptor: stream,
            token,
            receive: None,
            list: None,
            readable: true,
            ended: false,
            writable: true,
            queued: false,
        }));
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.register(key, flags, token)
    }

    pub(crate) fn add_listener(&mut self, listener: OwnedFd, token: u64) -> SocketKey {
        // A blocking listener would stop the loop if its only peer went away between event and accept.
        let prepared = set_nonblocking(&listener);
        let key = self.slots.insert(Slot::Listener(Listener {
            descriptor: listener,
            token,
        }));
        if let Err(error) = prepared {
            self.deferred.push_back((
                key,
                Deferred::Failed {
                    token,
                    error,
                    list: None,
                },
            ));
        }
        self.register(key, EpollFlags::EPOLLIN, token)
    }

    pub(crate) fn add_watched(&mut self, descriptor: OwnedFd, token: u64) -> io::Result<SocketKey> {
        let key = self.slots.insert(Slot::Watched(Watched { descriptor, token }));
        match self.add_to_epoll(key, EpollFlags::EPOLLONESHOT) {
            Ok(()) => Ok(key),
            Err(error) => {
                self.slots.remove(key);
                Err(error)
            }
        }
    }

    fn register(&mut self, key: SocketKey, flags: EpollFlags, token: u64) -> SocketKey {
        if let Err(error) = self.add_to_epoll(key, flags) {
            self.deferred.push_back((
                key,
                Deferred::Failed {
                    token,
                    error,
                    list: None,
                },
            ));
        }
        key
    }

    fn add_to_epoll(&mut self, key: SocketKey, flags: EpollFlags) -> io::Result<()> {
        if let Some(slot) = self.slots.get(key) {
            self.epoll
                .add(slot.descriptor(), EpollEvent::new(flags, pack(key)))?;
        }
        Ok(())
    }

    pub(crate) fn watch(&mut self, watched: SocketKey) {
        if let Some(Slot::Watched(found)) = self.slots.get(watched) {
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, pack(watched));
            self.counters.syscalls += 1;
            if let Err(errno) = self.epoll.modify(&found.descriptor, &mut event) {
                let failed = Deferred::Failed {
                    token: found.token,
                    error: errno.into(),
                    list: None,
                };
                self.deferred.push_back((watched, failed));
            }
        }
    }

    pub(crate) fn receive(&mut self, key: SocketKey, receive: Receive) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return;
        };
        let objection = receive.objection().or(stream
            .receive
            .is_some()
            .then_some("a receive of this stream is in flight already"));
        if let Some(reason) = objection {
            self.deferred
                .push_back((key, Deferred::invalid(stream.token, reason, None)));
            return;
        }
        stream.receive = Some(receive);
        if stream.readable {
            enqueue(stream, key, &mut self.to_try);
        }
    }

    pub(crate) fn send(&mut self, key: SocketKey, list: GatherList) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return;
        };
        if stream.list.is_some() {
            let reason = "a send of this stream is in flight already";
            self.deferred
                .push_back((key, Deferred::invalid(stream.token, reason, Some(list))));
        } else if list.is_empty() {
            self.deferred.push_back((
                key,
                Deferred::Sent {
                    token: stream.token,
                    list,
                },
            ));
        } else {
            stream.list = Some(list);
            if stream.writable {
                enqueue(stream, key, &mut self.to_try);
            }
        }
    }

    pub(crate) fn send_in_flight(&self, key: SocketKey) -> bool {
        matches!(
            self.slots.get(key),
            Some(Slot::Stream(Stream { list: Some(_), .. }))
        )
    }

    pub(crate) fn close(&mut self, key: SocketKey) {
        let Some(slot) = self.slots.remove(key) else {
            return;
        };
        if let Slot::Stream(stream) = &slot {
            // It fails if the connection is gone already, which is what is wanted.
            let _ = shutdown(stream.descriptor.as_raw_fd(), Shutdown::Both);
        }
        // Closing the descriptor would not end its registration if somebody holds a duplicate.
        let _ = self.epoll.delete(slot.descriptor());
        self.paused.retain(|(_, paused)| *paused != key);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn turn(
        &mut self,
        wait: Wait,
        handler: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, ReactorError> {
        self.counters.turns += 1;
        let mut delivered = 0;
        if self.waker.take_notified() {
            handler(Event::Woken);
            delivered += 1;
        }
        delivered += self.deliver_deferred(handler);
        delivered += self.try_streams(handler);
        if !self.paused.is_empty() {
            self.resume_listeners();
        }
        delivered += self.wait_for_events(wait, delivered == 0 && self.to_try.is_empty(), handler)?;
        delivered += self.try_streams(handler);
        Ok(delivered)
    }

    fn deliver_deferred(&mut self, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let mut delivered = 0;
        while let Some((key, event)) = self.deferred.pop_front() {
            if self.slots.get(key).is_some() {
                handler(event.into_event());
                delivered += 1;
            }
        }
        delivered
    }

    /// Takes events from the kernel. They mark streams as ready; everything else is handled at once.
    fn wait_for_events(
        &mut self,
        wait: Wait,
        nothing_to_do: bool,
        handler: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, ReactorError> {
        let limit = match wait {
            Wait::Sleep(limit) if nothing_to_do => self.until_resumption(limit),
            Wait::Sleep(_) | Wait::Poll => Some(Duration::ZERO),
        };
        let mut delivered = 0;
        let asleep = limit != Some(Duration::ZERO) && self.waker.begin_sleep();
        self.counters.sleeps += u64::from(asleep);
        let timeout = if asleep {
            timeout_of(limit)
        } else {
            EpollTimeout::ZERO
        };
        let waited = self.epoll.wait(&mut self.events, timeout);
        self.counters.syscalls += 1;
        if (asleep && self.waker.end_sleep()) || (!asleep && self.waker.take_notified()) {
            handler(Event::Woken);
            delivered += 1;
        }
        let ready = match waited {
            Ok(ready) => ready,
            Err(nix::Error::EINTR) => 0,
            Err(errno) => {
                return Err(ReactorError::System {
                    action: "wait for events",
                    source: errno.into(),
                });
            }
        };
        for index in 0..ready {
            let Some(event) = self.events.get(index) else {
                break;
            };
            let (data, flags) = (event.data(), event.events());
            if data == WAKER {
                continue;
            }
            let key = unpack(data);
            match self.slots.get_mut(key) {
                Some(Slot::Stream(stream)) => {
                    let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                    stream.ended |= flags.intersects(ended);
                    stream.readable |= stream.ended || flags.contains(EpollFlags::EPOLLIN);
                    stream.writable |=
                        flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
                    if stream.is_worth_trying() {
                        enqueue(stream, key, &mut self.to_try);
                    }
                }
                Some(Slot::Listener(_)) => delivered += self.accept(key, handler),
                Some(Slot::Watched(watched)) => {
                    handler(Event::Readable { token: watched.token });
                    delivered += 1;
                }
                None => {}
            }
        }
        Ok(delivered)
    }

    /// Tries every stream in the queue once per operation.
    fn try_streams(&mut self, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let mut delivered = 0;
        for _ in 0..self.to_try.len() {
            let Some(key) = self.to_try.pop_front() else { break };
            let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
                continue;
            };
            stream.queued = false;
            if stream.writable && stream.list.is_some() {
                delivered += try_send(stream, &mut self.counters, handler);
            }
            if stream.readable && stream.receive.is_some() {
                let (staging, limit) = (&mut self.staging, self.staging_len);
                delivered += try_receive(stream, staging, limit, &mut self.counters, handler);
            }
            if stream.is_worth_trying() {
                enqueue(stream, key, &mut self.to_try);
            }
        }
        delivered
    }

    fn accept(&mut self, key: SocketKey, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let Some(Slot::Listener(listener)) = self.slots.get(key) else {
            return 0;
        };
        let listener_token = listener.token;
        let mut delivered = 0;
        for _ in 0..ACCEPTS {
            self.counters.syscalls += 1;
            let accepted = match system::accept(listener.descriptor.as_fd()) {
                Ok(stream) => {
                    self.counters.accepted += 1;
                    self.counters.syscalls += 1;
                    system::peer_address(stream.as_fd()).map(|peer| (stream, peer))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    handler(Event::AcceptFailed {
                        listener_token,
                        error,
                    });
                    delivered += 1;
                    let mut nothing = EpollEvent::new(EpollFlags::empty(), pack(key));
                    self.counters.syscalls += 1;
                    if let Err(errno) = self.epoll.modify(&listener.descriptor, &mut nothing) {
                        handler(Event::AcceptFailed {
                            listener_token,
                            error: errno.into(),
                        });
                    }
                    self.paused.push((Instant::now() + ACCEPT_PAUSE, key));
                    break;
                }
            };
            match accepted {
                Ok((stream, peer)) => handler(Event::Accepted {
                    listener_token,
                    stream,
                    peer,
                }),
                // The peer is gone already; its stream was closed just now.
                Err(error) => handler(Event::AcceptFailed {
                    listener_token,
                    error,
                }),
            }
            delivered += 1;
        }
        delivered
    }

    fn resume_listeners(&mut self) {
        let now = Instant::now();
        let (epoll, slots, deferred) = (&self.epoll, &self.slots, &mut self.deferred);
        self.paused.retain(|(until, key)| {
            if *until > now {
                return true;
            }
            if let Some(Slot::Listener(listener)) = slots.get(*key) {
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN, pack(*key));
                if let Err(errno) = epoll.modify(&listener.descriptor, &mut event) {
                    let error = errno.into();
                    deferred.push_back((
                        *key,
                        Deferred::Failed {
                            token: listener.token,
                            error,
                            list: None,
                        },
                    ));
                }
            }
            false
        });
    }

    /// The time to sleep, cut short if a listener is to resume earlier.
    fn until_resumption(&self, limit: Option<Duration>) -> Option<Duration> {
        let Some(first) = self.paused.iter().map(|(until, _)| *until).min() else {
            return limit;
        };
        let pause = first
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        Some(limit.map_or(pause, |limit| limit.min(pause)))
    }
}

impl Slot {
    fn descriptor(&self) -> &OwnedFd {
        match self {
            Self::Stream(stream) => &stream.descriptor,
            Self::Listener(listener) => &listener.descriptor,
            Self::Watched(watched) => &watched.descriptor,
        }
    }
}

impl Stream {
    fn is_worth_trying(&self) -> bool {
        (self.readable && self.receive.is_some()) || (self.writable && self.list.is_some())
    }
}

fn enqueue(stream: &mut Stream, key: SocketKey, to_try: &mut VecDeque<SocketKey>) {
    if !mem::replace(&mut stream.queued, true) {
        to_try.push_back(key);
    }
}

fn try_send(stream: &mut Stream, counters: &mut Counters, handler: &mut impl FnMut(Event<'_>)) -> usize {
    let Some(mut list) = stream.list.take() else {
        return 0;
    };
    counters.syscalls += 1;
    match system::send(stream.descriptor.as_fd(), &list) {
        Ok(sent) => list.advance(sent),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            stream.writable = false;
            stream.list = Some(list);
            return 0;
        }
        Err(error) => {
            handler(Event::Failed {
                token: stream.token,
                error,
                list: Some(list),
            });
            return 1;
        }
    }
    if list.is_empty() {
        counters.sends += 1;
        handler(Event::Sent {
            token: stream.token,
            list,
        });
        return 1;
    }
    counters.short_sends += 1;
    stream.list = Some(list);
    0
}

fn try_receive(
    stream: &mut Stream,
    staging: &mut [u8],
    most: usize,
    counters: &mut Counters,
    handler: &mut impl FnMut(Event<'_>),
) -> usize {
    let Some(receive) = stream.receive.take() else {
        return 0;
    };
    let staged_len = match &receive {
        Receive::Staging { limit } => (*limit).clamp(1, most),
        Receive::Into { lookahead, .. } => *lookahead,
    };
    let landing = match &receive {
        Receive::Staging { .. } => None,
        Receive::Into { segment, .. } => Some(segment),
    };
    let asked = landing.map_or(0, homi_queue::Segment::len) + staged_len;
    let room = staging.get_mut(..staged_len).unwrap_or(&mut []);
    counters.syscalls += 1;
    let received = system::receive(stream.descriptor.as_fd(), landing, room);
    let token = stream.token;
    match received {
        Ok((0, 0)) => handler(Event::Closed { token }),
        Ok((direct, staged)) => {
            // Less than asked for means that the socket is drained; the next bytes bring the next edge.
            stream.readable = stream.ended || direct + staged == asked;
            counters.receives += 1;
            drop(receive);
            handler(Event::Received {
                token,
                direct,
                bytes: staging.get(..staged).unwrap_or(&[]),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            stream.readable = false;
            stream.receive = Some(receive);
            return 0;
        }
        Err(error) => handler(Event::Failed {
            token,
            error,
            list: None,
        }),
    }
    1
}

fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Rounded up to the milliseconds that epoll takes, so that a timer is never early and never a busy loop.
fn timeout_of(limit: Option<Duration>) -> EpollTimeout {
    let Some(limit) = limit else {
        return EpollTimeout::NONE;
    };
    let milliseconds = limit.as_nanos().div_ceil(1_000_000);
    let milliseconds = i32::try_from(milliseconds).unwrap_or(i32::MAX);
    EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
}

fn pack(key: SocketKey) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

fn unpack(data: u64) -> SocketKey {
    let [a, b, c, d, e, f, g, h] = data.to_le_bytes();
    SocketKey {
        index: u32::from_le_bytes([a, b, c, d]),
        generation: u32::from_le_bytes([e, f, g, h]),
    }
}
