//! Every test runs over both backends with the same body.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "test patterns keep the low byte only"
)]

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{GatherList, Region};
use homi_reactor::{
    Backend, BackendChoice, Event, MAX_LOOKAHEAD, Options, Reactor, ReactorError, Receive, SocketKey, Wait,
    socket,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use support::{DEADLINE, expect_silence, pair, pattern, reactor_with, turn_until};

macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod on_io_uring {
            use super::*;
            $(#[test] fn $name() {
                if let Some(reactor) = reactor_with(BackendChoice::IoUring, Options::default()) {
                    super::$name(reactor);
                }
            })*
        }
        mod on_readiness {
            use super::*;
            $(#[test] fn $name() {
                if let Some(reactor) = reactor_with(BackendChoice::Readiness, Options::default()) {
                    super::$name(reactor);
                }
            })*
        }
    };
}

on_both_backends!(
    echo_of_many_sizes_through_a_tiny_send_buffer,
    receives_land_in_segments_and_look_ahead,
    a_staging_limit_is_kept,
    lists_longer_than_one_call_arrive_whole,
    many_connections_share_few_staging_buffers,
    closing_ends_operations_in_flight_without_events,
    a_closed_key_reaches_nothing,
    dropping_the_reactor_ends_operations_in_flight,
    no_wake_up_is_lost_in_a_burst,
    no_wake_up_is_lost_in_a_ping_pong,
    a_sleeping_reactor_uses_no_processor,
    a_timed_sleep_is_not_early,
    a_peer_reset_is_a_failure,
    sending_to_a_peer_that_reset_fails_and_returns_the_list,
    a_peer_that_stops_sending_can_still_be_sent_to,
    listeners_accept_until_they_are_closed,
    watched_descriptors_report_once_per_request,
    another_ring_can_be_watched,
    misuse_is_an_event_and_not_a_panic,
    an_empty_list_is_sent_at_once,
    blocking_and_non_blocking_streams_behave_the_same,
    polling_sees_everything_that_sleeping_sees,
);

fn list_of(bytes: &[u8]) -> GatherList {
    let mut list = GatherList::new();
    list.push_bytes(bytes);
    list
}

/// Receives bytes into staging until there are `len`.
fn receive_all(reactor: &mut Reactor, key: SocketKey, len: usize) -> Vec<u8> {
    struct State {
        bytes: Vec<u8>,
        armed: bool,
    }
    let mut state = State {
        bytes: Vec::new(),
        armed: false,
    };
    turn_until(
        reactor,
        &mut state,
        |state, event| match event {
            Event::Received { bytes, direct: 0, .. } => {
                state.bytes.extend_from_slice(bytes);
                state.armed = false;
            }
            Event::Sent { .. } => {}
            other => panic!("unexpected: {other:?}"),
        },
        |state, reactor| {
            if state.bytes.len() >= len {
                return true;
            }
            if !state.armed {
                state.armed = true;
                reactor.receive(
                    key,
                    Receive::Staging {
                        limit: len - state.bytes.len(),
                    },
                );
            }
            false
        },
    );
    state.bytes
}

/// Sends bytes back as they come, half of them by reference, until the peer closes. Returns how many there were.
fn echo(reactor: &mut Reactor, key: SocketKey) -> usize {
    #[derive(Default)]
    struct State {
        to_send: Option<GatherList>,
        spare: Option<GatherList>,
        receive: bool,
        bytes: usize,
        closed: bool,
    }
    let mut state = State {
        receive: true,
        ..State::default()
    };
    turn_until(
        reactor,
        &mut state,
        |state, event| match event {
            Event::Received { bytes, direct: 0, .. } => {
                assert!(!bytes.is_empty());
                state.bytes += bytes.len();
                let (front, back) = bytes.split_at(bytes.len() / 2);
                let mut list = state.spare.take().unwrap_or_default();
                list.push_bytes(front);
                if !back.is_empty() {
                    let region = Region::from_vec(back.to_vec());
                    list.push_memory(region.segment(0..back.len()).unwrap());
                }
                state.to_send = Some(list);
            }
            Event::Sent { list, .. } => {
                assert!(list.is_empty());
                state.spare = Some(list);
                state.receive = true;
            }
            Event::Closed { .. } => state.closed = true,
            other => panic!("unexpected: {other:?}"),
        },
        |state, reactor| {
            if let Some(list) = state.to_send.take() {
                reactor.send(key, list);
                assert!(reactor.send_in_flight(key));
            }
            if std::mem::take(&mut state.receive) {
                assert!(!reactor.send_in_flight(key));
                reactor.receive(key, Receive::Staging { limit: usize::MAX });
            }
            state.closed
        },
    );
    state.bytes
}

fn echo_of_many_sizes_through_a_tiny_send_buffer(mut reactor: Reactor) {
    let (near, mut far) = pair();
    socket::set_send_buffer(near.as_fd(), 1).unwrap();
    let sizes = [
        1, 2, 7, 255, 256, 1000, 4096, 5000, 65_536, 131_072, 131_073, 1_000_001,
    ];
    let total: usize = sizes.iter().sum();
    let peer = thread::spawn(move || {
        let mut sending = far.try_clone().unwrap();
        for (seed, size) in sizes.into_iter().enumerate() {
            let expected = pattern(size, seed);
            let to_send = expected.clone();
            let mut back = vec![0; size];
            thread::scope(|scope| {
                scope.spawn(|| sending.write_all(&to_send).unwrap());
                far.read_exact(&mut back).unwrap();
            });
            assert!(back == expected, "the echo of {size} bytes differs");
        }
    });
    let key = reactor.add_stream(near, 1);
    assert_eq!(echo(&mut reactor, key), total);
    peer.join().unwrap();
    assert!(reactor.counters().sends > 0);
}

fn receives_land_in_segments_and_look_ahead(mut reactor: Reactor) {
    const LEN: usize = 300_000;
    const AFTER: usize = 1000;
    let (near, mut far) = pair();
    let sent = pattern(LEN + AFTER, 3);
    let to_send = sent.clone();
    let peer = thread::spawn(move || {
        far.write_all(&to_send).unwrap();
        far.write_all(&to_send).unwrap();
        far
    });
    let key = reactor.add_stream(near, 9);
    for lookahead in [64, 0] {
        let region = Region::allocate(LEN + 20, 4096).unwrap();
        let mut state = (0_usize, Vec::new(), true);
        turn_until(
            &mut reactor,
            &mut state,
            |(filled, followed, arm), event| match event {
                Event::Received {
                    token: 9,
                    direct,
                    bytes,
                } => {
                    assert!(direct > 0);
                    *filled += direct;
                    assert!(
                        bytes.is_empty() || *filled == LEN,
                        "bytes follow a segment that is not full"
                    );
                    assert!(bytes.len() <= lookahead);
                    followed.extend_from_slice(bytes);
                    *arm = *filled < LEN;
                }
                other => panic!("unexpected: {other:?}"),
            },
            |(filled, _, arm), reactor| {
                if std::mem::take(arm) {
                    let segment = region.segment(10 + *filled..10 + LEN).unwrap();
                    reactor.receive(key, Receive::Into { segment, lookahead });
                }
                *filled == LEN
            },
        );
        let (_, mut followed, _) = state;
        assert!(
            region.is_unique(),
            "the segment is released when the receive ends"
        );
        let bytes = region.into_vec();
        assert!(bytes[10..10 + LEN] == sent[..LEN]);
        assert_eq!(bytes[..10], [0; 10]);
        assert_eq!(bytes[10 + LEN..], [0; 10]);
        let missing = AFTER - followed.len();
        followed.extend(receive_all(&mut reactor, key, missing));
        assert!(followed == sent[LEN..]);
    }
    drop(peer.join().unwrap());
}

fn a_staging_limit_is_kept(mut reactor: Reactor) {
    let (near, mut far) = pair();
    far.write_all(&pattern(100, 0)).unwrap();
    let key = reactor.add_stream(near, 1);
    let mut taken = 0;
    for limit in [1, 8, 16, 75] {
        reactor.receive(key, Receive::Staging { limit });
        let mut len = 0;
        turn_until(
            &mut reactor,
            &mut len,
            |len, event| match event {
                Event::Received { direct: 0, bytes, .. } => *len = bytes.len(),
                other => panic!("unexpected: {other:?}"),
            },
            |len, _| *len > 0,
        );
        assert_eq!(len, limit);
        taken += len;
    }
    assert_eq!(taken, 100);
}

fn lists_longer_than_one_call_arrive_whole(mut reactor: Reactor) {
    let (near, mut far) = pair();
    let region = Region::from_vec(pattern(7 * 3000, 5));
    let mut list = GatherList::new();
    for piece in 0..3000 {
        list.push_memory(region.segment(piece * 7..piece * 7 + 7).unwrap());
        list.push_bytes(&[piece as u8; 3]);
    }
    let expected = list.to_vec();
    let len = expected.len();
    let peer = thread::spawn(move || {
        let mut bytes = vec![0; len];
        far.read_exact(&mut bytes).unwrap();
        bytes
    });
    let key = reactor.add_stream(near, 4);
    reactor.send(key, list);
    let mut sent = false;
    turn_until(
        &mut reactor,
        &mut sent,
        |sent, event| match event {
            Event::Sent { token: 4, list } => {
                assert!(list.is_empty());
                *sent = true;
            }
            other => panic!("unexpected: {other:?}"),
        },
        |sent, _| *sent,
    );
    assert!(region.is_unique());
    assert!(peer.join().unwrap() == expected);
    assert!(reactor.counters().short_sends >= 5);
}

fn many_connections_share_few_staging_buffers(mut reactor: Reactor) {
    const CONNECTIONS: usize = 400;
    socket::raise_file_limit().unwrap();
    struct State {
        accepted: Vec<OwnedFd>,
        received: Vec<(u64, Vec<u8>)>,
        sent: usize,
    }
    let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1024).unwrap();
    let address = socket::local_address(listener.as_fd()).unwrap();
    let listening = reactor.add_listener(listener, u64::MAX);
    let mut peers: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let mut state = State {
        accepted: Vec::new(),
        received: Vec::new(),
        sent: 0,
    };
    let mut keys = Vec::new();
    let handle = |state: &mut State, event: Event<'_>| match event {
        Event::Accepted {
            listener_token: u64::MAX,
            stream,
            ..
        } => state.accepted.push(stream),
        Event::Received {
            token,
            direct: 0,
            bytes,
        } => state.received.push((token, bytes.to_vec())),
        Event::Sent { .. } => state.sent += 1,
        other => panic!("unexpected: {other:?}"),
    };
    turn_until(&mut reactor, &mut state, handle, |state, _| {
        state.accepted.len() == CONNECTIONS
    });
    reactor.close(listening);
    for (token, stream) in state.accepted.drain(..).enumerate() {
        let key = reactor.add_stream(stream, token as u64);
        reactor.receive(key, Receive::Staging { limit: 4096 });
        keys.push(key);
    }
    for round in 0..3 {
        state.sent = 0;
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&pattern(500, index + round)).unwrap();
        }
        turn_until(&mut reactor, &mut state, handle, |state, reactor| {
            for (token, bytes) in state.received.drain(..) {
                assert_eq!(bytes.len(), 500);
                let key = keys[token as usize];
                reactor.send(key, list_of(&bytes));
                reactor.receive(key, Receive::Staging { limit: 4096 });
            }
            state.sent == CONNECTIONS
        });
        for (index, peer) in peers.iter_mut().enumerate() {
            let mut back = [0; 500];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(back[..], pattern(500, index + round));
        }
    }
    assert_eq!(reactor.counters().accepted, CONNECTIONS as u64);
    assert_eq!(reactor.counters().receives, 3 * CONNECTIONS as u64);
    for key in keys {
        reactor.close(key);
    }
    expect_silence(&mut reactor, Duration::from_millis(50));
    for mut peer in peers {
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    }
}

fn closing_ends_operations_in_flight_without_events(mut reactor: Reactor) {
    let (near, mut far) = pair();
    let landing = Region::allocate(4096, 1).unwrap();
    let payload = Region::allocate(64 << 20, 4096).unwrap();
    let key = reactor.add_stream(near, 1);
    reactor.receive(
        key,
        Receive::Into {
            segment: landing.segment(0..4096).unwrap(),
            lookahead: 16,
        },
    );
    let mut list = GatherList::new();
    list.push_memory(payload.segment(0..payload.len()).unwrap());
    reactor.send(key, list);
    // The peer does not read, so neither can end.
    expect_silence(&mut reactor, Duration::from_millis(50));
    assert!(reactor.send_in_flight(key));
    assert!(!landing.is_unique());
    assert!(!payload.is_unique());
    reactor.close(key);
    assert!(!reactor.send_in_flight(key));
    expect_silence(&mut reactor, Duration::from_millis(50));
    assert!(landing.is_unique(), "the receive has ended");
    assert!(payload.is_unique(), "the send has ended");
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    let ended = io::copy(&mut far, &mut io::sink());
    assert!(
        ended.is_ok_and(|bytes| bytes < payload.len() as u64),
        "the peer sees the end of the stream"
    );

    // Closing before anything was submitted is the same.
    let (near, mut far) = pair();
    let key = reactor.add_stream(near, 2);
    reactor.receive(
        key,
        Receive::Into {
            segment: landing.segment(0..4096).unwrap(),
            lookahead: 0,
        },
    );
    reactor.send(key, list_of(b"never"));
    reactor.close(key);
    expect_silence(&mut reactor, Duration::from_millis(50));
    assert!(landing.is_unique());
    assert_eq!(far.read(&mut [0; 16]).unwrap(), 0);
}

fn a_closed_key_reaches_nothing(mut reactor: Reactor) {
    let (first, far_first) = pair();
    let stale = reactor.add_stream(first, 1);
    reactor.close(stale);
    drop(far_first);
    let (second, mut far) = pair();
    let key = reactor.add_stream(second, 2);
    assert_ne!(stale, key);
    reactor.send(stale, list_of(b"to nobody"));
    reactor.receive(stale, Receive::Staging { limit: 1 });
    reactor.watch(stale);
    reactor.close(stale);
    assert!(!reactor.send_in_flight(stale));
    far.write_all(b"hello").unwrap();
    assert_eq!(receive_all(&mut reactor, key, 5), b"hello");
    reactor.close(key);
    assert_eq!(far.read(&mut [0; 16]).unwrap(), 0);
}

fn dropping_the_reactor_ends_operations_in_flight(mut reactor: Reactor) {
    let landing = Region::allocate(4096, 1).unwrap();
    let payload = Region::allocate(64 << 20, 4096).unwrap();
    let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 8).unwrap();
    reactor.add_listener(listener, 0);
    let (watched, _writer) = nix::unistd::pipe().unwrap();
    let watched = reactor.add_watched(watched.as_fd(), 0).unwrap();
    reactor.watch(watched);
    let mut peers = Vec::new();
    for index in 0..20 {
        let (near, far) = pair();
        peers.push(far);
        let key = reactor.add_stream(near, index);
        match index % 3 {
            0 => reactor.receive(key, Receive::Staging { limit: 100 }),
            1 => reactor.receive(
                key,
                Receive::Into {
                    segment: landing.segment(0..10).unwrap(),
                    lookahead: 8,
                },
            ),
            _ => reactor.receive(
                key,
                Receive::Into {
                    segment: landing.segment(0..10).unwrap(),
                    lookahead: 0,
                },
            ),
        }
        let mut list = GatherList::new();
        list.push_memory(payload.segment(0..payload.len()).unwrap());
        reactor.send(key, list);
        if index == 10 {
            expect_silence(&mut reactor, Duration::from_millis(20));
        }
    }
    let started = Instant::now();
    drop(reactor);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "nothing is waited for in vain"
    );
    assert!(landing.is_unique());
    assert!(payload.is_unique());
}

fn no_wake_up_is_lost_in_a_burst(mut reactor: Reactor) {
    const WAKES: u64 = 200_000;
    let posted = Arc::new(AtomicU64::new(0));
    let waker = reactor.waker();
    let producer = thread::spawn({
        let posted = Arc::clone(&posted);
        move || {
            for message in 1..=WAKES {
                posted.store(message, Ordering::Relaxed);
                waker.wake();
            }
        }
    });
    let mut seen = 0;
    while seen < WAKES {
        let mut woken = false;
        let started = Instant::now();
        reactor
            .turn(Wait::Sleep(Some(DEADLINE)), &mut |event| {
                assert!(matches!(event, Event::Woken), "unexpected: {event:?}");
                woken = true;
            })
            .unwrap();
        assert!(started.elapsed() < DEADLINE, "a wake-up was lost at {seen}");
        if woken {
            seen = posted.load(Ordering::Relaxed);
        }
    }
    producer.join().unwrap();
}

fn no_wake_up_is_lost_in_a_ping_pong(mut reactor: Reactor) {
    const WAKES: u64 = 10_000;
    let posted = Arc::new(AtomicU64::new(0));
    let answered = Arc::new(AtomicU64::new(0));
    let waker = reactor.waker();
    let producer = thread::spawn({
        let (posted, answered) = (Arc::clone(&posted), Arc::clone(&answered));
        move || {
            for message in 1..=WAKES {
                posted.store(message, Ordering::Relaxed);
                waker.wake();
                while answered.load(Ordering::Acquire) < message {
                    // A varying delay makes the next wake meet every phase of going to sleep.
                    for _ in 0..message % 97 {
                        std::hint::spin_loop();
                    }
                    if message % 3 == 0 {
                        thread::yield_now();
                    }
                }
            }
        }
    });
    let mut seen = 0;
    while seen < WAKES {
        let started = Instant::now();
        let mut woken = false;
        reactor
            .turn(Wait::Sleep(Some(DEADLINE)), &mut |event| {
                woken |= matches!(event, Event::Woken)
            })
            .unwrap();
        assert!(started.elapsed() < DEADLINE, "a wake-up was lost at {seen}");
        if woken {
            seen = posted.load(Ordering::Relaxed);
            answered.store(seen, Ordering::Release);
        }
    }
    producer.join().unwrap();
    assert!(reactor.counters().sleeps > 0);
}

fn a_sleeping_reactor_uses_no_processor(mut reactor: Reactor) {
    let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 8).unwrap();
    reactor.add_listener(listener, 0);
    let (watched, _writer) = nix::unistd::pipe().unwrap();
    let watched = reactor.add_watched(watched.as_fd(), 0).unwrap();
    reactor.watch(watched);
    let mut peers = Vec::new();
    for token in 0..50 {
        let (near, mut far) = pair();
        let key = reactor.add_stream(near, token);
        far.write_all(b"x").unwrap();
        assert_eq!(receive_all(&mut reactor, key, 1), b"x");
        reactor.receive(key, Receive::Staging { limit: 4096 });
        peers.push(far);
    }
    // A wake that found the reactor awake must not shorten any later sleep either.
    reactor.waker().wake();
    reactor
        .turn(Wait::Poll, &mut |event| assert!(matches!(event, Event::Woken)))
        .unwrap();
    let processor_time = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds()
    };
    let (before, started, sleeps) = (processor_time(), Instant::now(), reactor.counters().sleeps);
    let time = Duration::from_millis(500);
    while started.elapsed() < time {
        let left = time.saturating_sub(started.elapsed());
        reactor
            .turn(Wait::Sleep(Some(left)), &mut |event| {
                panic!("unexpected: {event:?}")
            })
            .unwrap();
    }
    assert!(
        reactor.counters().sleeps - sleeps <= 4,
        "it slept {} times",
        reactor.counters().sleeps - sleeps
    );
    assert!(
        processor_time() - before < 50_000,
        "it used {} us",
        processor_time() - before
    );
}

fn a_timed_sleep_is_not_early(mut reactor: Reactor) {
    reactor
        .turn(Wait::Poll, &mut |event| panic!("unexpected: {event:?}"))
        .unwrap();
    for time in [
        Duration::from_micros(100),
        Duration::from_millis(3),
        Duration::from_millis(40),
    ] {
        let started = Instant::now();
        let events = reactor
            .turn(Wait::Sleep(Some(time)), &mut |event| {
                panic!("unexpected: {event:?}")
            })
            .unwrap();
        assert_eq!(events, 0);
        assert!(started.elapsed() >= time, "{:?} of {time:?}", started.elapsed());
    }
}

/// Closes a stream so that the peer sees a reset.
fn reset(stream: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

fn a_peer_reset_is_a_failure(mut reactor: Reactor) {
    let landing = Region::allocate(64, 1).unwrap();
    let receives = [
        Receive::Staging { limit: 100 },
        Receive::Into {
            segment: landing.segment(0..64).unwrap(),
            lookahead: 16,
        },
        Receive::Into {
            segment: landing.segment(0..64).unwrap(),
            lookahead: 0,
        },
    ];
    for receive in receives {
        let (near, far) = pair();
        let key = reactor.add_stream(near, 5);
        reactor.receive(key, receive);
        expect_silence(&mut reactor, Duration::from_millis(5));
        reset(far);
        let mut failed = None;
        turn_until(
            &mut reactor,
            &mut failed,
            |failed, event| match event {
                Event::Failed {
                    token: 5,
                    error,
                    list: None,
                } => *failed = Some(error),
                other => panic!("unexpected: {other:?}"),
            },
            |failed, _| failed.is_some(),
        );
        assert_eq!(
            failed.map(|error| error.kind()),
            Some(io::ErrorKind::ConnectionReset)
        );
        reactor.close(key);
    }
    assert!(landing.is_unique());
}

fn sending_to_a_peer_that_reset_fails_and_returns_the_list(mut reactor: Reactor) {
    let (near, far) = pair();
    let key = reactor.add_stream(near, 6);
    let payload = Region::allocate(64 << 20, 4096).unwrap();
    let mut list = GatherList::new();
    list.push_bytes(b"header");
    list.push_memory(payload.segment(0..payload.len()).unwrap());
    reactor.send(key, list);
    expect_silence(&mut reactor, Duration::from_millis(20));
    reset(far);
    let mut failed = None;
    turn_until(
        &mut reactor,
        &mut failed,
        |failed, event| match event {
            Event::Failed {
                token: 6,
                error,
                list: Some(list),
            } => *failed = Some((error, list)),
            other => panic!("unexpected: {other:?}"),
        },
        |failed, _| failed.is_some(),
    );
    let (error, list) = failed.unwrap();
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "unexpected: {error}"
    );
    assert!(!list.is_empty());
    assert!(!reactor.send_in_flight(key));
    drop(list);
    assert!(payload.is_unique());
}

fn a_peer_that_stops_sending_can_still_be_sent_to(mut reactor: Reactor) {
    let (near, mut far) = pair();
    let key = reactor.add_stream(near, 7);
    far.write_all(b"last words").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive_all(&mut reactor, key, 10), b"last words");
    reactor.receive(key, Receive::Staging { limit: 10 });
    reactor.send(key, list_of(b"answer"));
    let mut state = (false, false);
    turn_until(
        &mut reactor,
        &mut state,
        |(closed, sent), event| match event {
            Event::Closed { token: 7 } => *closed = true,
            Event::Sent { token: 7, .. } => *sent = true,
            other => panic!("unexpected: {other:?}"),
        },
        |state, _| *state == (true, true),
    );
    reactor.close(key);
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

fn listeners_accept_until_they_are_closed(mut reactor: Reactor) {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = match socket::listen(address.parse().unwrap(), 128) {
            Ok(listener) => listener,
            Err(error) if address.starts_with('[') => {
                eprintln!("without IPv6: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let address = socket::local_address(listener.as_fd()).unwrap();
        let key = reactor.add_listener(listener, 77);
        for _ in 0..3 {
            let peers: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
            let mut expected: Vec<SocketAddr> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
            let mut accepted = Vec::new();
            turn_until(
                &mut reactor,
                &mut accepted,
                |accepted, event| match event {
                    Event::Accepted {
                        listener_token: 77,
                        stream,
                        peer,
                    } => {
                        assert_eq!(socket::peer_address(stream.as_fd()).unwrap(), peer);
                        accepted.push(peer);
                    }
                    other => panic!("unexpected: {other:?}"),
                },
                |accepted, _| accepted.len() == 100,
            );
            expected.sort();
            accepted.sort();
            assert_eq!(accepted, expected);
        }
        reactor.close(key);
        expect_silence(&mut reactor, Duration::from_millis(20));
        let refused = socket::connect(address, DEADLINE).unwrap_err();
        assert!(
            matches!(refused, socket::SocketError::Refused { .. }),
            "unexpected: {refused}"
        );
    }
}

fn expect_readable(reactor: &mut Reactor, expected: u64) {
    let mut readable = false;
    turn_until(
        reactor,
        &mut readable,
        |readable, event| match event {
            Event::Readable { token } if token == expected => *readable = true,
            other => panic!("unexpected: {other:?}"),
        },
        |readable, _| *readable,
    );
}

fn watched_descriptors_report_once_per_request(mut reactor: Reactor) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let key = reactor.add_watched(reader.as_fd(), 3).unwrap();
    nix::unistd::write(&writer, b"early").unwrap();
    expect_silence(&mut reactor, Duration::from_millis(20));
    reactor.watch(key);
    reactor.watch(key);
    expect_readable(&mut reactor, 3);
    // It is still readable, but nobody asked.
    expect_silence(&mut reactor, Duration::from_millis(20));
    reactor.watch(key);
    expect_readable(&mut reactor, 3);
    nix::unistd::read(&reader, &mut [0; 16]).unwrap();
    reactor.watch(key);
    expect_silence(&mut reactor, Duration::from_millis(20));
    nix::unistd::write(&writer, b"late").unwrap();
    expect_readable(&mut reactor, 3);
    reactor.watch(key);
    reactor.close(key);
    expect_silence(&mut reactor, Duration::from_millis(20));
}

#[expect(unsafe_code, reason = "the ring's own interface is unsafe")]
fn another_ring_can_be_watched(mut reactor: Reactor) {
    let mut ring = match io_uring::IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(8)
        .or_else(|_| io_uring::IoUring::new(8))
    {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("skipped: there is no io_uring here ({error})");
            return;
        }
    };
    // SAFETY: the ring keeps its descriptor open during the call.
    let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    let key = reactor.add_watched(descriptor, 8).unwrap();
    for _ in 0..3 {
        reactor.watch(key);
        expect_silence(&mut reactor, Duration::from_millis(10));
        // SAFETY: the entry refers to no memory.
        unsafe { ring.submission().push(&io_uring::opcode::Nop::new().build()) }.unwrap();
        ring.submit().unwrap();
        expect_readable(&mut reactor, 8);
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().count(), 1);
    }
}

fn misuse_is_an_event_and_not_a_panic(mut reactor: Reactor) {
    let (near, _far) = pair();
    let region = Region::allocate(16, 1).unwrap();
    let key = reactor.add_stream(near, 2);
    let landing = || region.segment(0..16).unwrap();
    let expect_invalid = |reactor: &mut Reactor, with_list: bool| {
        let mut failed = None;
        turn_until(
            reactor,
            &mut failed,
            |failed, event| match event {
                Event::Failed {
                    token: 2,
                    error,
                    list,
                } => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                    *failed = Some(list.is_some());
                }
                other => panic!("unexpected: {other:?}"),
            },
            |failed, _| failed.is_some(),
        );
        assert_eq!(failed, Some(with_list));
    };
    reactor.receive(
        key,
        Receive::Into {
            segment: landing(),
            lookahead: MAX_LOOKAHEAD + 1,
        },
    );
    expect_invalid(&mut reactor, false);
    reactor.receive(
        key,
        Receive::Into {
            segment: region.segment(3..3).unwrap(),
            lookahead: 8,
        },
    );
    expect_invalid(&mut reactor, false);
    reactor.receive(key, Receive::Staging { limit: 0 });
    reactor.receive(key, Receive::Staging { limit: 10 });
    expect_invalid(&mut reactor, false);
    let payload = Region::allocate(64 << 20, 4096).unwrap();
    let mut list = GatherList::new();
    list.push_memory(payload.segment(0..payload.len()).unwrap());
    reactor.send(key, list);
    reactor.send(key, list_of(b"too early"));
    expect_invalid(&mut reactor, true);
    assert!(reactor.send_in_flight(key));
}

fn an_empty_list_is_sent_at_once(mut reactor: Reactor) {
    let (near, _far) = pair();
    let key = reactor.add_stream(near, 2);
    reactor.send(key, GatherList::new());
    let mut sent = false;
    reactor
        .turn(Wait::Sleep(None), &mut |event| {
            sent = matches!(event, Event::Sent { token: 2, .. })
        })
        .unwrap();
    assert!(sent);
}

fn blocking_and_non_blocking_streams_behave_the_same(mut reactor: Reactor) {
    for blocking in [true, false] {
        let (near, mut far) = pair();
        TcpStream::from(near.try_clone().unwrap())
            .set_nonblocking(!blocking)
            .unwrap();
        let key = reactor.add_stream(near, 1);
        reactor.receive(key, Receive::Staging { limit: 100 });
        expect_silence(&mut reactor, Duration::from_millis(10));
        far.write_all(b"first").unwrap();
        let mut bytes = Vec::new();
        turn_until(
            &mut reactor,
            &mut bytes,
            |all: &mut Vec<u8>, event| match event {
                Event::Received { bytes, .. } => all.extend_from_slice(bytes),
                other => panic!("unexpected: {other:?}"),
            },
            |all, _| !all.is_empty(),
        );
        assert_eq!(bytes, b"first");
        let payload = Region::allocate(16 << 20, 4096).unwrap();
        let mut list = GatherList::new();
        list.push_memory(payload.segment(0..payload.len()).unwrap());
        list.push_bytes(b"end");
        reactor.send(key, list);
        expect_silence(&mut reactor, Duration::from_millis(10));
        let reading = thread::spawn(move || {
            let mut bytes = vec![0; (16 << 20) + 3];
            far.read_exact(&mut bytes).unwrap();
            bytes.ends_with(b"end")
        });
        let mut sent = false;
        turn_until(
            &mut reactor,
            &mut sent,
            |sent, event| match event {
                Event::Sent { .. } => *sent = true,
                other => panic!("unexpected: {other:?}"),
            },
            |sent, _| *sent,
        );
        assert!(reading.join().unwrap());
    }
}

fn polling_sees_everything_that_sleeping_sees(mut reactor: Reactor) {
    let (near, mut far) = pair();
    let key = reactor.add_stream(near, 1);
    let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 8).unwrap();
    let address = socket::local_address(listener.as_fd()).unwrap();
    reactor.add_listener(listener, 2);
    for round in 0..100_u8 {
        reactor.receive(key, Receive::Staging { limit: 10 });
        let mut received = 0;
        let started = Instant::now();
        let mut polls = 0_u64;
        while received == 0 {
            if polls == 50 {
                far.write_all(&[round]).unwrap();
            }
            polls += 1;
            assert!(started.elapsed() < DEADLINE);
            reactor
                .turn(Wait::Poll, &mut |event| match event {
                    Event::Received { token: 1, bytes, .. } => {
                        assert_eq!(bytes, [round]);
                        received += bytes.len();
                    }
                    other => panic!("unexpected: {other:?}"),
                })
                .unwrap();
        }
    }
    let peer = TcpStream::connect(address).unwrap();
    let waker = reactor.waker();
    waker.wake();
    let (mut accepted, mut woken) = (false, false);
    let started = Instant::now();
    while !(accepted && woken) {
        assert!(started.elapsed() < DEADLINE);
        reactor
            .turn(Wait::Poll, &mut |event| match event {
                Event::Accepted {
                    listener_token: 2, ..
                } => accepted = true,
                Event::Woken => woken = true,
                other => panic!("unexpected: {other:?}"),
            })
            .unwrap();
    }
    drop(peer);

    // With nothing to do, io_uring needs no system call to find that out.
    reactor.receive(key, Receive::Staging { limit: 10 });
    for _ in 0..10 {
        reactor
            .turn(Wait::Poll, &mut |event| panic!("unexpected: {event:?}"))
            .unwrap();
    }
    let before = reactor.counters().syscalls;
    for _ in 0..10_000 {
        reactor
            .turn(Wait::Poll, &mut |event| panic!("unexpected: {event:?}"))
            .unwrap();
    }
    if reactor.backend() == Backend::IoUring {
        assert_eq!(reactor.counters().syscalls, before);
    }
}

#[test]
fn few_submission_entries_hold_many_operations() {
    let options = Options {
        entries: 8,
        ..Options::default()
    };
    let Some(mut reactor) = reactor_with(BackendChoice::IoUring, options) else {
        return;
    };
    let mut streams = Vec::new();
    for token in 0..200 {
        let (near, far) = pair();
        let key = reactor.add_stream(near, token);
        reactor.receive(key, Receive::Staging { limit: 10 });
        reactor.send(key, list_of(&[token as u8; 3]));
        streams.push((key, far));
    }
    for (_, far) in &mut streams {
        far.write_all(b"x").unwrap();
    }
    let mut state = (0, 0);
    turn_until(
        &mut reactor,
        &mut state,
        |(sent, received), event| match event {
            Event::Sent { .. } => *sent += 1,
            Event::Received { bytes: b"x", .. } => *received += 1,
            other => panic!("unexpected: {other:?}"),
        },
        |state, _| *state == (200, 200),
    );
    for (token, (_, far)) in streams.iter_mut().enumerate() {
        let mut bytes = [0; 3];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [token as u8; 3]);
    }
}

#[test]
fn one_staging_buffer_serves_all() {
    let options = Options {
        staging_buffers: 1,
        staging_len: 10,
        ..Options::default()
    };
    for backend in [BackendChoice::IoUring, BackendChoice::Readiness] {
        let Some(mut reactor) = reactor_with(backend, options.clone()) else {
            continue;
        };
        let mut streams = Vec::new();
        for token in 0..32 {
            let (near, mut far) = pair();
            far.write_all(&pattern(25, token)).unwrap();
            let key = reactor.add_stream(near, token as u64);
            reactor.receive(key, Receive::Staging { limit: 4096 });
            streams.push((key, Vec::new(), far));
        }
        let mut received: Vec<(usize, Vec<u8>)> = Vec::new();
        turn_until(
            &mut reactor,
            &mut received,
            |received, event| match event {
                Event::Received {
                    token,
                    direct: 0,
                    bytes,
                } => {
                    assert!(bytes.len() <= 10);
                    received.push((token as usize, bytes.to_vec()));
                }
                other => panic!("unexpected: {other:?}"),
            },
            |received, reactor| {
                for (token, bytes) in received.drain(..) {
                    let (key, all, _) = &mut streams[token];
                    all.extend(bytes);
                    if all.len() < 25 {
                        reactor.receive(*key, Receive::Staging { limit: 4096 });
                    }
                }
                streams.iter().all(|(_, all, _)| all.len() == 25)
            },
        );
        for (token, (_, all, _)) in streams.iter().enumerate() {
            assert_eq!(*all, pattern(25, token));
        }
    }
}

#[test]
fn options_out_of_range_are_refused() {
    for options in [
        Options {
            staging_buffers: 0,
            ..Options::default()
        },
        Options {
            staging_len: 0,
            ..Options::default()
        },
        Options {
            staging_len: u32::MAX,
            ..Options::default()
        },
        Options {
            entries: 1,
            ..Options::default()
        },
    ] {
        let error = Reactor::new(options).unwrap_err();
        assert!(
            matches!(error, ReactorError::InvalidOption { .. }),
            "unexpected: {error}"
        );
    }
}

#[test]
fn automatic_choice_says_why_it_fell_back() {
    let reactor = Reactor::new(Options::default()).unwrap();
    assert_eq!(
        reactor.fallback_reason().is_some(),
        reactor.backend() == Backend::Readiness
    );
}
