//! [`TcpStream`]: a [`ByteStream`] over a TCP socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use homi_queue::{GatherList, Segment};
use homi_reactor::socket;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;

use crate::stream::ByteStream;

/// A connected TCP socket that never blocks.
#[derive(Debug)]
pub struct TcpStream {
    socket: Arc<OwnedFd>,
}

impl TcpStream {
    /// Uses a connected socket that does not block.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
        }
    }

    /// The socket, for whoever may have to end the connection from another thread.
    pub(crate) fn share(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }
}

/// Ends a connection in both directions; the thread that uses it finds it closed.
pub(crate) fn hang_up(socket: &OwnedFd) {
    if let Err(error) = shutdown(socket.as_raw_fd(), Shutdown::Both) {
        // The peer was faster: nothing is left to end.
        tracing::trace!(%error, "shutting a connection down");
    }
}

impl ByteStream for TcpStream {
    fn send(&mut self, output: &mut GatherList) -> io::Result<usize> {
        socket::send_gather(self.socket.as_fd(), output)
    }

    fn receive(&mut self, landing: Option<&Segment>, staging: &mut [u8]) -> io::Result<(usize, usize)> {
        socket::receive(self.socket.as_fd(), landing, staging)
    }

    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn close(&mut self) {
        hang_up(&self.socket);
    }
}
