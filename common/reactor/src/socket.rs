//! Sockets without a reactor: making and connecting them, their options, and direct non-blocking calls.
//!
//! An initiator that polls its own connections uses these functions alone; a shard uses them to make the listeners and
//! streams that it gives to its [`Reactor`](crate::Reactor). Everything here is safe to call.
//!
//! Not here: asynchronous name resolution ([`resolve`] blocks, so it belongs to the control plane's threads).

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::time::{Duration, Instant};

use homi_queue::{GatherList, Segment};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    self as nix_socket, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt,
};
use nix::sys::time::TimeSpec;

use crate::system;

/// Descriptors that a wait takes without allocating.
const FEW_WAITS: usize = 64;

/// Why a socket could not be made, bound or connected.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("address {address} is in use: choose another port or stop the other service")]
    AddressInUse {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// The address belongs to another machine, or to an interface that is down.
    #[error(
        "address {address} is not one of this machine: choose one of its addresses, or 0.0.0.0 or [::] for all"
    )]
    AddressNotAvailable {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// The process may not use the port.
    #[error(
        "this user may not listen on {address}: choose a port above 1023 or grant the capability CAP_NET_BIND_SERVICE"
    )]
    PermissionDenied {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// Nothing listens there.
    #[error("{address} refused the connection: check that a service listens on that address and port")]
    Refused {
        /// The address to connect to.
        address: SocketAddr,
    },
    /// There is no way to the host or network.
    #[error(
        "{address} cannot be reached ({source}): check the address, the routes and the firewalls on the way"
    )]
    Unreachable {
        /// The address to connect to.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// No answer came.
    #[error("{address} did not answer for {} ms: check that the host is up and that no firewall drops the packets", after.as_millis())]
    TimedOut {
        /// The address to connect to.
        address: SocketAddr,
        /// The limit, or how long the system itself tried.
        after: Duration,
    },
    /// The name has no address.
    #[error(
        "{host} cannot be resolved ({reason}): check the spelling and the name service, or give an IP address"
    )]
    Unresolved {
        /// The name as it was given.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Another system call failed.
    #[error("to {action} for {address} failed ({source})")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The address to listen on or to connect to.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Whether an IPv6 listener also accepts IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// An IPv6 listener on `[::]` accepts IPv4 too.
    #[default]
    Both,
    /// Only the address's own family.
    Own,
}

/// A non-blocking listener on a TCP address (`SO_REUSEADDR`, so that a restart needs no pause). Port 0 lets the system
/// choose; [`local_address`] tells which port it is. An IPv6 listener also accepts IPv4.
///
/// # Errors
/// [`SocketError`] says what to change.
pub fn listen(address: SocketAddr, backlog: i32) -> Result<OwnedFd, SocketError> {
    listen_with(address, backlog, Families::Both)
}

/// As [`listen`], with a choice of families.
///
/// # Errors
/// [`SocketError`] says what to change.
pub fn listen_with(address: SocketAddr, backlog: i32, families: Families) -> Result<OwnedFd, SocketError> {
    let failed = |action| {
        move |errno: Errno| SocketError::System {
            action,
            address,
            source: errno.into(),
        }
    };
    let socket = new_socket(address)?;
    nix_socket::setsockopt(&socket, sockopt::ReuseAddr, &true)
        .map_err(failed("allow reuse of the address"))?;
    if address.is_ipv6() {
        let only = families == Families::Own;
        nix_socket::setsockopt(&socket, sockopt::Ipv6V6Only, &only).map_err(failed("choose the families"))?;
    }
    nix_socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .map_err(|errno| refused_listener(errno, address, "bind a socket"))?;
    let backlog = Backlog::new(backlog.max(1)).unwrap_or(Backlog::MAXCONN);
    // With SO_REUSEADDR, it can be only here that the address turns out to be in use.
    nix_socket::listen(&socket, backlog)
        .map_err(|errno| refused_listener(errno, address, "listen on a socket"))?;
    Ok(socket)
}

fn refused_listener(errno: Errno, address: SocketAddr, action: &'static str) -> SocketError {
    match errno {
        Errno::EADDRINUSE => SocketError::AddressInUse { address },
        Errno::EADDRNOTAVAIL => SocketError::AddressNotAvailable { address },
        Errno::EACCES | Errno::EPERM => SocketError::PermissionDenied { address },
        _ => SocketError::System {
            action,
            address,
            source: errno.into(),
        },
    }
}

/// A connected, non-blocking stream without Nagle's delay. Blocks for at most `timeout`.
///
/// # Errors
/// [`SocketError`] says what to check.
pub fn connect(address: SocketAddr, timeout: Duration) -> Result<OwnedFd, SocketError> {
    connect_with(address, timeout, &Congestion::default())
}

/// As [`connect`], with a choice of congestion control.
///
/// # Errors
/// [`SocketError`] says what to check.
pub fn connect_with(
    address: SocketAddr,
    timeout: Duration,
    congestion: &Congestion,
) -> Result<OwnedFd, SocketError> {
    let failed = |action| {
        move |source: io::Error| SocketError::System {
            action,
            address,
            source,
        }
    };
    let started = Instant::now();
    let socket = new_socket(address)?;
    set_no_delay(socket.as_fd(), true).map_err(failed("turn Nagle's delay off"))?;
    set_congestion(socket.as_fd(), congestion).map_err(failed("choose the congestion control"))?;
    match nix_socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => return Ok(socket),
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(refused_stream(errno, address, started)),
    }
    let established = Interest {
        descriptor: socket.as_fd(),
        readable: false,
        writable: true,
    };
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if wait_any(&[established], Some(left)).map_err(failed("wait for a connection"))? {
            break;
        }
        if started.elapsed() >= timeout {
            return Err(SocketError::TimedOut {
                address,
                after: timeout,
            });
        }
    }
    match nix_socket::getsockopt(&socket, sockopt::SocketError) {
        Ok(0) => Ok(socket),
        Ok(errno) => Err(refused_stream(Errno::from_raw(errno), address, started)),
        Err(errno) => Err(failed("read a connection's result")(errno.into())),
    }
}

fn refused_stream(errno: Errno, address: SocketAddr, started: Instant) -> SocketError {
    match errno {
        Errno::ECONNREFUSED => SocketError::Refused { address },
        Errno::ETIMEDOUT => SocketError::TimedOut {
            address,
            after: started.elapsed(),
        },
        Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::ENETDOWN => {
            SocketError::Unreachable {
                address,
                source: errno.into(),
            }
        }
        _ => SocketError::System {
            action: "connect a socket",
            address,
            source: errno.into(),
        },
    }
}

fn new_socket(address: SocketAddr) -> Result<OwnedFd, SocketError> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    nix_socket::socket(family, SockType::Stream, flags, None).map_err(|errno| SocketError::System {
        action: "open a socket",
        address,
        source: errno.into(),
    })
}

/// The addresses of a host, given by name or as an IP address (IPv6 with or without brackets). At least one. Blocks for
/// as long as the system's resolver does.
///
/// # Errors
/// [`SocketError::Unresolved`].
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, SocketError> {
    let unresolved = |reason: &dyn ToString| SocketError::Unresolved {
        host: host.to_owned(),
        reason: reason.to_string(),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    if bare.is_empty() {
        return Err(unresolved(&"the name is empty"));
    }
    let mut addresses: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|error| unresolved(&error))?
        .collect();
    // The resolver repeats addresses when the hosts file does.
    addresses.dedup();
    if addresses.is_empty() {
        return Err(unresolved(&"it has no address"));
    }
    Ok(addresses)
}

/// The socket's own address.
///
/// # Errors
/// The system's error, or `Unsupported` if the socket has no internet address.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    system::local_address(socket)
}

/// The address of the other end.
///
/// # Errors
/// The system's error, or `Unsupported` if the socket has no internet address.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    system::peer_address(socket)
}

/// Sends what the kernel takes of a list (at most 1024 stretches of it) without blocking, marks it as sent, and returns
/// the number of bytes. The list is empty when everything is sent.
///
/// # Errors
/// `WouldBlock` if there is no room now, otherwise what ended the connection. The list is as before then.
pub fn send_gather(socket: BorrowedFd<'_>, list: &mut GatherList) -> io::Result<usize> {
    if list.is_empty() {
        return Ok(0);
    }
    let sent = system::send(socket, list)?;
    list.advance(sent);
    Ok(sent)
}

/// Receives without blocking, first into `landing`, then into `staging`, and returns the bytes in each. No bytes at all
/// mean that the peer closed its sending side (or that there was no room to receive into).
///
/// # Errors
/// `WouldBlock` if nothing has arrived, otherwise what ended the connection.
pub fn receive(
    socket: BorrowedFd<'_>,
    landing: Option<&Segment>,
    staging: &mut [u8],
) -> io::Result<(usize, usize)> {
    system::receive(socket, landing, staging)
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'a> {
    /// On which descriptor.
    pub descriptor: BorrowedFd<'a>,
    /// Bytes, a connection, or the end of the stream.
    pub readable: bool,
    /// Room to send, or an established connection.
    pub writable: bool,
}

impl<'a> Interest<'a> {
    fn as_poll(&self) -> PollFd<'a> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.readable);
        flags.set(PollFlags::POLLOUT, self.writable);
        PollFd::new(self.descriptor, flags)
    }
}

/// Sleeps until one of the descriptors is as asked for, has failed or was hung up, or until the time is up. Returns
/// whether one is. A signal ends the wait early.
///
/// # Errors
/// The system's error.
pub fn wait_any(interests: &[Interest<'_>], limit: Option<Duration>) -> io::Result<bool> {
    wait_for(interests, Interest::as_poll, limit)
}

/// Sleeps until one of the descriptors is readable, has failed or was hung up, or until the time is up. Returns whether
/// one is. A signal ends the wait early.
///
/// # Errors
/// The system's error.
pub fn wait_readable(descriptors: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<bool> {
    wait_for(
        descriptors,
        |descriptor| PollFd::new(*descriptor, PollFlags::POLLIN),
        limit,
    )
}

fn wait_for<'a, T>(
    items: &[T],
    as_poll: impl Fn(&T) -> PollFd<'a>,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let limit = limit.map(TimeSpec::from_duration);
    let ready = match items {
        [first, ..] if items.len() <= FEW_WAITS => {
            let mut polls: [_; FEW_WAITS] =
                std::array::from_fn(|index| as_poll(items.get(index).unwrap_or(first)));
            ppoll(polls.get_mut(..items.len()).unwrap_or(&mut []), limit, None)
        }
        _ => {
            let mut polls: Vec<_> = items.iter().map(as_poll).collect();
            ppoll(&mut polls, limit, None)
        }
    };
    match ready {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether small sends go out at once (`TCP_NODELAY`).
///
/// # Errors
/// The system's error.
pub fn set_no_delay(socket: BorrowedFd<'_>, at_once: bool) -> io::Result<()> {
    Ok(nix_socket::setsockopt(&socket, sockopt::TcpNoDelay, &at_once)?)
}

/// Whether acknowledgements go out at once (`TCP_QUICKACK`). The kernel forgets it over time.
///
/// # Errors
/// The system's error.
pub fn set_quick_ack(socket: BorrowedFd<'_>, at_once: bool) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, i32::from(at_once))
}

/// What decides how much a connection may have on its way (`TCP_CONGESTION`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The system's choice, but `cubic` where that is `bbr`: BBR releases data by timers and drains the path for 200 ms every
    /// 10 s to measure it, which suits a wide-area link and stalls a rack's storage.
    #[default]
    Auto,
    /// The system's choice (`net.ipv4.tcp_congestion_control`), whatever it is.
    System,
    /// An algorithm of `net.ipv4.tcp_available_congestion_control`, such as `dctcp`.
    Named(String),
}

impl From<&str> for Congestion {
    fn from(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "system" => Self::System,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// Chooses a TCP socket's congestion control. Streams that a listener accepts have the listener's.
///
/// # Errors
/// `NotFound` if the kernel has no algorithm with the name, `PermissionDenied` if this user may not choose it.
pub fn set_congestion(socket: BorrowedFd<'_>, choice: &Congestion) -> io::Result<()> {
    match choice {
        Congestion::System => Ok(()),
        Congestion::Named(name) => set_algorithm(socket, name).map_err(|errno| {
            let error = io::Error::from(errno);
            let advice = "choose one of net.ipv4.tcp_available_congestion_control";
            io::Error::new(
                error.kind(),
                format!("congestion control \"{name}\": {errno}: {advice}"),
            )
        }),
        Congestion::Auto => {
            let current = nix_socket::getsockopt(&socket, sockopt::TcpCongestion)?;
            // The value comes with the zeros that fill the kernel's field.
            if !current.as_bytes().starts_with(b"bbr") {
                return Ok(());
            }
            match set_algorithm(socket, "cubic") {
                // A kernel without it goes on with what it has.
                Err(Errno::ENOENT | Errno::EPERM) => Ok(()),
                result => Ok(result?),
            }
        }
    }
}

fn set_algorithm(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    nix_socket::setsockopt(&socket, sockopt::TcpCongestion, &OsString::from(name))
}

/// How long a receive that finds nothing polls the network device before it gives up (`SO_BUSY_POLL`), in whole
/// microseconds. It trades processor time for latency.
///
/// # Errors
/// `PermissionDenied` without `CAP_NET_ADMIN` if it is longer than the system's default.
pub fn set_busy_poll(socket: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    let microseconds = i32::try_from(time.as_micros()).unwrap_or(i32::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, microseconds)
}

/// Asks for a send buffer of so many bytes (`SO_SNDBUF`); the kernel doubles and bounds it.
///
/// # Errors
/// The system's error.
pub fn set_send_buffer(socket: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    Ok(nix_socket::setsockopt(&socket, sockopt::SndBuf, &len)?)
}

/// Asks for a receive buffer of so many bytes (`SO_RCVBUF`); the kernel doubles and bounds it.
///
/// # Errors
/// The system's error.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    Ok(nix_socket::setsockopt(&socket, sockopt::RcvBuf, &len)?)
}

fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the address and length are those of `value`, which the kernel only reads during the call; the descriptor
    // is open because it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the number of descriptors that the process may have open to the most that it may ask for, and returns it.
///
/// # Errors
/// The system's error.
pub fn raise_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The processor cores that this thread may run on.
///
/// # Errors
/// The system's error.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let mut set = no_cores();
    // SAFETY: zero is this thread; the address and size are those of `set`, which the kernel writes during the call.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = 0..8 * size_of::<libc::cpu_set_t>();
    // SAFETY: every core that is asked about has a bit in the set.
    Ok(all
        .filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })
        .collect())
}

/// Keeps this thread on one processor core.
///
/// # Errors
/// `InvalidInput` if there is no such core or the process may not use it.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no core {core}"),
        ));
    }
    let mut set = no_cores();
    // SAFETY: the core has a bit in the set, by the check above.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: zero is this thread; the address and size are those of `set`, which the kernel only reads.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn no_cores() -> libc::cpu_set_t {
    // SAFETY: the type is an array of integers, for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}
