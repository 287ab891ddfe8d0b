//! [`ByteStream`]: the two ways a connection's bytes go, without saying what carries them.

use std::io;
use std::os::fd::BorrowedFd;

use homi_queue::{GatherList, Segment};

/// An ordered stream of bytes in both directions that never blocks: a TCP socket, or a pipe in memory in tests.
pub trait ByteStream {
    /// Sends from the front of the list what can be sent now, marks it sent, and returns how many bytes that were.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing can be sent now; anything else ends the connection.
    fn send(&mut self, output: &mut GatherList) -> io::Result<usize>;

    /// Receives what is there now, first into `landing`, then into `staging`, and returns how many bytes went where.
    /// `Ok((0, 0))` means that the peer closed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there; anything else ends the connection.
    fn receive(&mut self, landing: Option<&Segment>, staging: &mut [u8]) -> io::Result<(usize, usize)>;

    /// A descriptor that is readable when [`receive`](ByteStream::receive) has something to say, if there is one.
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Ends the connection: the peer sees it closed, and so does this end, which may still ask.
    fn close(&mut self) {}
}
