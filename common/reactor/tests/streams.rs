//! Bytes through streams: every test runs over both backends with the same body.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "test patterns keep the low byte only"
)]

#[macro_use]
#[path = "support/both.rs"]
mod both;
mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use homi_queue::{GatherList, Region};
use homi_reactor::{BackendChoice, Event, MAX_LOOKAHEAD, Options, Reactor, Receive, SocketKey, Wait, socket};
use support::{expect_silence, list_of, pair, pattern, reactor_with, receive_all, turn_until};

on_both_backends!(
    echo_of_many_sizes_through_a_tiny_send_buffer,
    receives_land_in_segments_and_look_ahead,
    a_staging_limit_is_kept,
    lists_longer_than_one_call_arrive_whole,
    many_connections_share_few_staging_buffers,
    a_peer_reset_is_a_failure,
    sending_to_a_peer_that_reset_fails_and_returns_the_list,
    a_peer_that_stops_sending_can_still_be_sent_to,
    an_empty_list_is_sent_at_once,
    blocking_and_non_blocking_streams_behave_the_same,
    misuse_is_an_event_and_not_a_panic,
);

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

/// Closes a stream so that the peer sees a reset.
fn reset(stream: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
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
    // The receive asks for more than there is, so that the end of the stream must be noticed besides the bytes.
    for armed_early in [true, false] {
        let (near, mut far) = pair();
        let key = reactor.add_stream(near, 7);
        if armed_early {
            reactor.receive(key, Receive::Staging { limit: 100 });
            expect_silence(&mut reactor, Duration::from_millis(10));
        }
        far.write_all(b"last words").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        thread::sleep(Duration::from_millis(10));
        if !armed_early {
            reactor.receive(key, Receive::Staging { limit: 100 });
        }
        let mut received = false;
        turn_until(
            &mut reactor,
            &mut received,
            |received, event| match event {
                Event::Received {
                    token: 7,
                    direct: 0,
                    bytes: b"last words",
                } => *received = true,
                other => panic!("unexpected: {other:?}"),
            },
            |received, _| *received,
        );
        for _ in 0..2 {
            reactor.receive(key, Receive::Staging { limit: 100 });
            let mut closed = false;
            turn_until(
                &mut reactor,
                &mut closed,
                |closed, event| match event {
                    Event::Closed { token: 7 } => *closed = true,
                    other => panic!("unexpected: {other:?}"),
                },
                |closed, _| *closed,
            );
        }
        reactor.send(key, list_of(b"answer"));
        let mut sent = false;
        turn_until(
            &mut reactor,
            &mut sent,
            |sent, event| match event {
                Event::Sent { token: 7, .. } => *sent = true,
                other => panic!("unexpected: {other:?}"),
            },
            |sent, _| *sent,
        );
        reactor.close(key);
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }
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
