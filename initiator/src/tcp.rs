//! [`TcpStream`]: a [`ByteStream`] over a TCP socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use homi_queue::{GatherList, Segment};

use crate::stream::ByteStream;

/// A connected TCP socket that never blocks.
#[derive(Debug)]
pub struct TcpStream {
    socket: OwnedFd,
}

impl ByteStream for TcpStream {
    fn send(&mut self, _output: &mut GatherList) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive(&mut self, _landing: Option<&Segment>, _staging: &mut [u8]) -> io::Result<(usize, usize)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}
