//! Sockets without a reactor.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{GatherList, Region};
use homi_reactor::socket::{self, Families, Interest, SocketError};

const SOON: Duration = Duration::from_secs(10);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let near = socket::connect(listener.local_addr().unwrap(), SOON).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

#[test]
fn listening_twice_says_what_to_change() {
    let first = socket::listen(loopback(), 8).unwrap();
    let address = socket::local_address(first.as_fd()).unwrap();
    let error = socket::listen(address, 8).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("address {address} is in use: choose another port or stop the other service")
    );
    drop(first);
    socket::listen(address, 8).unwrap();
}

#[test]
fn listening_on_a_foreign_address_says_what_to_change() {
    // An address of the range reserved for documentation.
    let error = socket::listen("192.0.2.1:4420".parse().unwrap(), 8).unwrap_err();
    assert!(
        matches!(error, SocketError::AddressNotAvailable { .. }),
        "unexpected: {error}"
    );
}

#[test]
fn an_ipv6_listener_accepts_ipv4_unless_told_otherwise() {
    let any: SocketAddr = "[::]:0".parse().unwrap();
    for (families, accepts) in [(Families::Both, true), (Families::Own, false)] {
        let listener = match socket::listen_with(any, 8, families) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("skipped: there is no IPv6 here ({error})");
                return;
            }
        };
        let port = socket::local_address(listener.as_fd()).unwrap().port();
        let connected = socket::connect(SocketAddr::from(([127, 0, 0, 1], port)), SOON);
        assert_eq!(connected.is_ok(), accepts);
    }
}

#[test]
fn connecting_to_nobody_is_refused() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = socket::connect(address, SOON).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address} refused the connection: check that a service listens on that address and port")
    );
}

#[test]
fn connecting_to_a_silent_host_times_out() {
    // A listener whose queue is full ignores further attempts, as a firewall would.
    let listener = socket::listen(loopback(), 1).unwrap();
    let address = socket::local_address(listener.as_fd()).unwrap();
    let mut streams = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        match socket::connect(address, Duration::from_millis(200)) {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                assert!(
                    matches!(error, SocketError::TimedOut { .. }),
                    "unexpected: {error}"
                );
                assert!(started.elapsed() >= Duration::from_millis(200));
                assert!(started.elapsed() < Duration::from_secs(5));
                return;
            }
        }
    }
    panic!("a listener with a queue of one took {} streams", streams.len());
}

#[test]
fn gathered_bytes_arrive_in_order_through_a_small_window() {
    let (near, mut far) = pair();
    socket::set_send_buffer(near.as_fd(), 1).unwrap();
    let region = Region::from_vec((0..200_000_u32).flat_map(u32::to_le_bytes).collect());
    let mut list = GatherList::new();
    for piece in 0..2000 {
        list.push_bytes(b"<");
        list.push_memory(region.segment(piece * 400..piece * 400 + 400).unwrap());
        list.push_bytes(b">");
    }
    let expected = list.to_vec();
    let len = expected.len();
    let peer = thread::spawn(move || {
        let mut bytes = vec![0; len];
        far.read_exact(&mut bytes).unwrap();
        bytes
    });
    let mut waits = 0;
    while !list.is_empty() {
        match socket::send_gather(near.as_fd(), &mut list) {
            Ok(sent) => assert!(sent > 0),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                waits += 1;
                let room = Interest {
                    descriptor: near.as_fd(),
                    readable: false,
                    writable: true,
                };
                assert!(socket::wait_any(&[room], Some(SOON)).unwrap());
            }
        }
    }
    assert!(waits > 0);
    assert!(peer.join().unwrap() == expected);
    assert!(region.is_unique());
    assert_eq!(socket::send_gather(near.as_fd(), &mut list).unwrap(), 0);
}

#[test]
fn receives_fill_the_landing_place_first() {
    let (near, mut far) = pair();
    let near = near.as_fd();
    let region = Region::allocate(100, 1).unwrap();
    let landing = region.segment(10..60).unwrap();
    let mut staging = [0; 32];
    let nothing = socket::receive(near, Some(&landing), &mut staging).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    let sent: Vec<u8> = (1..=70).collect();
    far.write_all(&sent).unwrap();
    assert!(socket::wait_readable(&[near], Some(SOON)).unwrap());
    assert_eq!(
        socket::receive(near, Some(&landing), &mut staging).unwrap(),
        (50, 20)
    );
    assert_eq!(staging[..20], sent[50..]);
    assert_eq!(staging[20..], [0; 12]);
    far.write_all(&sent[..3]).unwrap();
    assert!(socket::wait_readable(&[near], Some(SOON)).unwrap());
    assert_eq!(socket::receive(near, None, &mut staging).unwrap(), (0, 3));
    drop(far);
    assert!(socket::wait_readable(&[near], Some(SOON)).unwrap());
    assert_eq!(socket::receive(near, None, &mut staging).unwrap(), (0, 0));
    drop(landing);
    let bytes = region.into_vec();
    assert_eq!(bytes[10..60], sent[..50]);
    assert_eq!(bytes[..10], [0; 10]);
    assert_eq!(bytes[60..], [0; 40]);
}

#[test]
fn waiting_ends_with_time_or_with_the_right_descriptor() {
    let mut pairs: Vec<_> = (0..100).map(|_| pair()).collect();
    for count in [1, 64, 65, 100] {
        let descriptors: Vec<_> = pairs.iter().take(count).map(|(near, _)| near.as_fd()).collect();
        let started = Instant::now();
        assert!(!socket::wait_readable(&descriptors, Some(Duration::from_millis(5))).unwrap());
        assert!(started.elapsed() >= Duration::from_millis(5));
    }
    let (_, far) = pairs.get_mut(99).unwrap();
    far.write_all(b"x").unwrap();
    let descriptors: Vec<_> = pairs.iter().map(|(near, _)| near.as_fd()).collect();
    assert!(socket::wait_readable(&descriptors, Some(SOON)).unwrap());
    assert!(!socket::wait_readable(&descriptors[..99], Some(Duration::ZERO)).unwrap());
}

#[test]
fn names_and_addresses_resolve() {
    assert_eq!(
        socket::resolve("127.0.0.1", 4420).unwrap(),
        ["127.0.0.1:4420".parse().unwrap()]
    );
    assert_eq!(
        socket::resolve("::1", 4420).unwrap(),
        ["[::1]:4420".parse().unwrap()]
    );
    assert_eq!(
        socket::resolve("[::1]", 4420).unwrap(),
        ["[::1]:4420".parse().unwrap()]
    );
    assert!(
        socket::resolve("localhost", 1)
            .unwrap()
            .iter()
            .all(|address| address.ip().is_loopback())
    );
    for name in ["", "no such host", "name.invalid"] {
        let error = socket::resolve(name, 1).unwrap_err();
        assert!(
            matches!(error, SocketError::Unresolved { .. }),
            "unexpected: {error}"
        );
        assert!(error.to_string().contains("cannot be resolved"));
    }
}

#[test]
fn socket_options_are_accepted() {
    let (near, _far) = pair();
    let near = near.as_fd();
    assert!(nix::sys::socket::getsockopt(&near, nix::sys::socket::sockopt::TcpNoDelay).unwrap());
    socket::set_no_delay(near, false).unwrap();
    assert!(!nix::sys::socket::getsockopt(&near, nix::sys::socket::sockopt::TcpNoDelay).unwrap());
    socket::set_quick_ack(near, true).unwrap();
    socket::set_receive_buffer(near, 65536).unwrap();
    // The kernel doubles what it is asked for.
    let len = nix::sys::socket::getsockopt(&near, nix::sys::socket::sockopt::RcvBuf).unwrap();
    assert_eq!(len, 2 * 65536);
    match socket::set_busy_poll(near, Duration::from_micros(50)) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
}

#[test]
fn the_file_limit_rises_to_the_hard_limit() {
    let limit = socket::raise_file_limit().unwrap();
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!((soft, hard), (limit, limit));
}

#[test]
fn threads_stay_on_the_core_they_are_pinned_to() {
    thread::spawn(|| {
        let allowed = socket::allowed_cores().unwrap();
        let core = *allowed.last().unwrap();
        socket::pin_current_thread(core).unwrap();
        assert_eq!(socket::allowed_cores().unwrap(), [core]);
        for absent in [1023, 1024, usize::MAX] {
            let error = socket::pin_current_thread(absent).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    })
    .join()
    .unwrap();
}

#[test]
fn congestion_control_is_chosen_by_name() {
    use homi_reactor::socket::Congestion;
    use nix::sys::socket::{getsockopt, sockopt};

    let name = |socket: &std::os::fd::OwnedFd| {
        let name = getsockopt(socket, sockopt::TcpCongestion).unwrap();
        name.to_string_lossy().trim_end_matches('\0').to_owned()
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = socket::listen(address, 1).unwrap();
    let system = name(&socket);
    socket::set_congestion(socket.as_fd(), &Congestion::System).unwrap();
    assert_eq!(name(&socket), system);
    socket::set_congestion(socket.as_fd(), &Congestion::Auto).unwrap();
    assert!(system == name(&socket) || system == "bbr", "{system}");
    // Every kernel has this one.
    socket::set_congestion(socket.as_fd(), &Congestion::from("reno")).unwrap();
    assert_eq!(name(&socket), "reno");
    let error = socket::set_congestion(socket.as_fd(), &Congestion::from("fantasy")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(
        error.to_string().contains("tcp_available_congestion_control"),
        "{error}"
    );
    assert_eq!(name(&socket), "reno");
}
