//! What the reactor's tests share: a reactor per backend, connected pairs, and a loop with a deadline.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use homi_queue::GatherList;
use homi_reactor::{BackendChoice, Event, Options, Reactor, ReactorError, Receive, SocketKey, Wait};

/// After this long, something that must happen has not.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A reactor on the given backend, or `None` with the reason printed where the system has no io_uring.
pub(crate) fn reactor_with(backend: BackendChoice, options: Options) -> Option<Reactor> {
    match Reactor::new(Options { backend, ..options }) {
        Ok(reactor) => Some(reactor),
        Err(error @ ReactorError::IoUringRefused { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
}

/// A stream for a reactor and the other end of it, over TCP.
pub(crate) fn pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_nodelay(true).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    near.set_nodelay(true).unwrap();
    (near.into(), far)
}

/// Turns the reactor until `done` says so; `handle` sees each event and may put follow-ups into the state.
pub(crate) fn turn_until<S>(
    reactor: &mut Reactor,
    state: &mut S,
    mut handle: impl FnMut(&mut S, Event<'_>),
    mut between: impl FnMut(&mut S, &mut Reactor) -> bool,
) {
    let started = Instant::now();
    while !between(state, reactor) {
        assert!(
            started.elapsed() < DEADLINE,
            "it did not happen in time: {:?}",
            reactor.counters()
        );
        let wait = Wait::Sleep(Some(Duration::from_millis(200)));
        reactor.turn(wait, &mut |event| handle(state, event)).unwrap();
    }
}

/// Turns the reactor for a while and asserts that nothing happens.
pub(crate) fn expect_silence(reactor: &mut Reactor, time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        reactor
            .turn(Wait::Sleep(Some(Duration::from_millis(10))), &mut |event| {
                panic!("unexpected: {event:?}")
            })
            .unwrap();
    }
}

/// Bytes in which every position differs from those around it.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    let low = |number: usize| number.to_le_bytes()[0];
    (0..len)
        .map(|at| low((at + seed) % 251) ^ low(at / 251))
        .collect()
}

/// A list of nothing but bytes.
pub(crate) fn list_of(bytes: &[u8]) -> GatherList {
    let mut list = GatherList::new();
    list.push_bytes(bytes);
    list
}

/// Receives bytes into staging until there are `len`.
pub(crate) fn receive_all(reactor: &mut Reactor, key: SocketKey, len: usize) -> Vec<u8> {
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
