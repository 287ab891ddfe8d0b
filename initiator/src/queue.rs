//! [`StreamQueue`]: a queue whose executor is a controller at the other end of a byte stream.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use homi_queue::queue::Wait;
use homi_queue::{Command, CommandId, Completed, Data, LostReason, Queue, QueueFull, QueueLost, Slot, Slots};

use crate::stream::ByteStream;

/// What a queue has done so far: for benchmarks, and to see that the fast path is the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Commands submitted.
    pub commands: u64,
    /// System calls that sent.
    pub sends: u64,
    /// System calls that received, those that found nothing included.
    pub receives: u64,
    /// Receives that found nothing.
    pub empty_receives: u64,
    /// Payload copies in user space.
    pub copies: u64,
    /// Bytes copied by them.
    pub bytes_copied: u64,
    /// Payload bytes that the kernel put where the command wanted them.
    pub bytes_landed: u64,
    /// Commands that were aborted because they took too long.
    pub aborts: u64,
}

impl Counters {
    /// System calls of both kinds.
    #[must_use]
    pub const fn system_calls(&self) -> u64 {
        self.sends + self.receives
    }
}

/// An I/O queue of a controller over a byte stream, run by the thread that calls it: `commit` sends a batch with one
/// system call, `poll` receives with one. In steady state neither allocates.
#[derive(Debug)]
pub struct StreamQueue<S: ByteStream> {
    stream: S,
    slots: Slots<()>,
}

/// An I/O queue over TCP.
pub type FabricQueue = StreamQueue<crate::tcp::TcpStream>;

impl<S: ByteStream> StreamQueue<S> {
    /// What the queue has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Largest transfer of one command in bytes, or `None` if there is no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u32> {
        None
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again, so that a command that takes too
    /// long is noticed: `None` while nothing is in flight or commands may take forever.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        None
    }
}

impl<S: ByteStream> Queue for StreamQueue<S> {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    fn submit(&mut self, slot: Slot, _command: Command, _data: Data) -> CommandId {
        self.slots.occupy(slot, ())
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        Err(QueueLost::new(LostReason::Local, Vec::new()))
    }

    fn poll(&mut self, _completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        Err(QueueLost::new(LostReason::Local, Vec::new()))
    }
}

impl<S: ByteStream> Wait for StreamQueue<S> {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.wait_descriptor()
    }
}
