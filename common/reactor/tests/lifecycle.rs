//! Closing, dropping, waking, sleeping, accepting and watching: every test runs over both backends with the same body.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(dead_code, reason = "other tests use the rest of the shared module")]

#[macro_use]
#[path = "support/both.rs"]
mod both;
mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{GatherList, Region};
use homi_reactor::{Backend, BackendChoice, Event, Options, Reactor, ReactorError, Receive, Wait, socket};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use support::{DEADLINE, expect_silence, list_of, pair, reactor_with, receive_all, turn_until};

on_both_backends!(
    closing_ends_operations_in_flight_without_events,
    a_closed_key_reaches_nothing,
    dropping_the_reactor_ends_operations_in_flight,
    no_wake_up_is_lost_in_a_burst,
    no_wake_up_is_lost_in_a_ping_pong,
    a_sleeping_reactor_uses_no_processor,
    a_timed_sleep_is_not_early,
    listeners_accept_until_they_are_closed,
    watched_descriptors_report_once_per_request,
    another_ring_can_be_watched,
    polling_sees_everything_that_sleeping_sees,
);

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

    // With nothing to do for a while, io_uring needs no system call to find that out.
    reactor.receive(key, Receive::Staging { limit: 10 });
    for _ in 0..1000 {
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
