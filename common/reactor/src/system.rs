//! The two vectored system calls on sockets that take memory by address, and what both backends need besides.
//!
//! Regions are never borrowed as slices, so the safe wrappers of other crates cannot be used for them.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use homi_queue::{GatherList, Piece, Segment};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

/// Most elements that one vectored call takes: Linux's `UIO_MAXIOV`.
pub(crate) const MAX_PARTS: usize = 1024;

pub(crate) const NO_PART: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

/// The element that refers to a stretch of a list.
pub(crate) fn part_of(piece: Piece<'_>) -> libc::iovec {
    match piece {
        Piece::Bytes(bytes) => libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        },
        Piece::Memory { segment, skip } => {
            let skip = skip.min(segment.len());
            libc::iovec {
                iov_base: segment.host_address().wrapping_add(skip).cast(),
                iov_len: segment.len() - skip,
            }
        }
    }
}

/// A message header without an address, control data or elements.
pub(crate) fn empty_header() -> libc::msghdr {
    // SAFETY: the type consists of integers and raw pointers, for all of which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// One non-blocking send of the list's first up to 1024 stretches. Returns the bytes that the kernel took.
pub(crate) fn send(socket: BorrowedFd<'_>, list: &GatherList) -> io::Result<usize> {
    // Left uninitialised: zeroing 16 KiB costs more than a small send does.
    let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PARTS];
    let mut used = 0;
    for (piece, part) in list.pieces().zip(parts.iter_mut()) {
        part.write(part_of(piece));
        used += 1;
    }
    let mut header = empty_header();
    header.msg_iov = parts.as_mut_ptr().cast();
    header.msg_iovlen = used;
    retry(|| {
        // SAFETY: `header` describes `used` initialised elements of `parts`; each refers to bytes that `list` owns or
        // keeps alive, and `list` is borrowed during the call; the kernel only reads them. The descriptor is open
        // because it is borrowed.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const header,
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        }
    })
}

/// One non-blocking receive, first into `landing`, then into `staging`. Returns the bytes that came into each.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    landing: Option<&Segment>,
    staging: &mut [u8],
) -> io::Result<(usize, usize)> {
    let direct_len = landing.map_or(0, Segment::len);
    let mut parts = [NO_PART; 2];
    let mut used = 0;
    let landing = landing
        .filter(|segment| !segment.is_empty())
        .map(|segment| libc::iovec {
            iov_base: segment.host_address().cast(),
            iov_len: segment.len(),
        });
    let staged = (!staging.is_empty()).then(|| libc::iovec {
        iov_base: staging.as_mut_ptr().cast(),
        iov_len: staging.len(),
    });
    for (from, to) in landing.into_iter().chain(staged).zip(parts.iter_mut()) {
        *to = from;
        used += 1;
    }
    let mut header = empty_header();
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = used;
    let received = retry(|| {
        // SAFETY: `header` describes `used` initialised elements of `parts`. One refers to the segment, whose memory is
        // alive while it is borrowed and is never borrowed as a slice while a segment exists; the other to `staging`,
        // which is borrowed exclusively. The descriptor is open because it is borrowed.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) }
    })?;
    let direct = received.min(direct_len);
    Ok((direct, received - direct))
}

/// Repeats a call for as long as signals interrupt it, and turns its result into a count.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// One non-blocking accept. The new stream is non-blocking and close on exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: null pointers say that the address is not wanted; the descriptor is open because it is borrowed.
    let accepted = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            ptr::null_mut(),
            ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if accepted < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(own(accepted))
}

/// Takes a descriptor that a system call has just returned.
pub(crate) fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: both callers pass what accept returned in this process, which is open and nobody else's.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The address of a socket's other end.
pub(crate) fn peer_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    internet(&getpeername::<SockaddrStorage>(socket.as_raw_fd())?)
}

/// The address of a socket's own end.
pub(crate) fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    internet(&getsockname::<SockaddrStorage>(socket.as_raw_fd())?)
}

fn internet(address: &SockaddrStorage) -> io::Result<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Ok(SocketAddr::from(*v4));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Ok(SocketAddr::from(*v6));
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "the socket has no internet address",
    ))
}
