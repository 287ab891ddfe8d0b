//! A listener in a process that is out of descriptors: it says so, does not spin, and goes on when there are some again.
//! It is alone in its file because the limit concerns the whole process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(dead_code, reason = "other tests use the rest of the shared module")]

mod support;

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use homi_reactor::{BackendChoice, Event, Options, Wait, socket};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{reactor_with, turn_until};

#[test]
fn a_listener_pauses_while_there_are_no_descriptors() {
    for backend in [BackendChoice::IoUring, BackendChoice::Readiness] {
        let Some(mut reactor) = reactor_with(backend, Options::default()) else {
            continue;
        };
        let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 8).unwrap();
        let address = socket::local_address(listener.as_fd()).unwrap();
        reactor.add_listener(listener, 1);
        let peer = TcpStream::connect(address).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64.min(hard), hard).unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }

        let (mut failures, started) = (0, Instant::now());
        let turns = reactor.counters().turns;
        while started.elapsed() < Duration::from_millis(350) {
            reactor
                .turn(
                    Wait::Sleep(Some(Duration::from_millis(350))),
                    &mut |event| match event {
                        Event::AcceptFailed {
                            listener_token: 1,
                            error,
                        } => {
                            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                            failures += 1;
                        }
                        other => panic!("unexpected: {other:?}"),
                    },
                )
                .unwrap();
        }
        assert!((2..=5).contains(&failures), "{failures} failures in 350 ms");
        assert!(reactor.counters().turns - turns < 20);

        drop(hoard);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let mut accepted: Option<OwnedFd> = None;
        turn_until(
            &mut reactor,
            &mut accepted,
            |accepted, event| match event {
                Event::Accepted {
                    stream, peer: from, ..
                } => {
                    assert_eq!(from, peer.local_addr().unwrap());
                    *accepted = Some(stream);
                }
                Event::AcceptFailed { .. } => {}
                other => panic!("unexpected: {other:?}"),
            },
            |accepted, _| accepted.is_some(),
        );
    }
}
