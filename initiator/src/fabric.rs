//! [`FabricQueue`]: a connection to a controller, whatever carries it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use homi_queue::{
    Buffer, Command, CommandId, Completed, Data, LostReason, Queue, QueueFull, QueueLost, Slot, Wait,
};

use crate::counters::Counters;
use crate::link::{HangUp, QueueLink};
use crate::queue::StreamQueue;
use crate::rdma::RdmaQueue;
use crate::sequence::Connection;
use crate::tcp::TcpStream;

/// A queue whose executor is a controller behind a fabric, run by the thread that calls it.
#[derive(Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "the common one is in place, and there is one per thread"
)]
pub enum FabricQueue {
    /// Over NVMe/TCP.
    Tcp(StreamQueue<TcpStream>),
    /// Over NVMe/RDMA.
    Rdma(Box<RdmaQueue>),
}

macro_rules! either {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            Self::Tcp($queue) => $call,
            Self::Rdma($queue) => $call,
        }
    };
}

impl FabricQueue {
    /// Whether the connection is initialised.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        either!(self, queue => queue.is_ready())
    }

    /// Commands submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        either!(self, queue => queue.in_flight())
    }

    /// Why the queue was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<&LostReason> {
        either!(self, queue => queue.lost())
    }

    /// What the queue has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        either!(self, queue => queue.counters())
    }

    /// Largest transfer of one command in bytes, or `None` if there is no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u32> {
        either!(self, queue => queue.max_transfer())
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again, so that a command that takes too
    /// long is noticed: `None` while nothing is in flight or commands may take forever.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        either!(self, queue => queue.wait_limit())
    }

    /// Entries of the submission queue, as Connect has to say them: more than the depth.
    pub(crate) fn entries(&self) -> u16 {
        match self {
            Self::Tcp(queue) => queue.depth() + 1,
            Self::Rdma(queue) => queue.entries(),
        }
    }

    pub(crate) fn set_link(&mut self, link: QueueLink) {
        either!(self, queue => queue.set_link(link));
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        either!(self, queue => queue.set_timeout(timeout));
    }

    pub(crate) fn set_max_transfer(&mut self, max_transfer: Option<u32>) {
        either!(self, queue => queue.set_max_transfer(max_transfer));
    }

    pub(crate) fn submit_untimed(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        either!(self, queue => queue.submit_untimed(slot, command, data))
    }

    /// How another thread wakes whoever sleeps on it.
    pub(crate) fn hang_up(&self) -> HangUp {
        match self {
            Self::Tcp(queue) => HangUp::Socket(queue.stream().share()),
            Self::Rdma(queue) => queue.hang_up(),
        }
    }
}

impl Queue for FabricQueue {
    fn depth(&self) -> u16 {
        either!(self, queue => queue.depth())
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        either!(self, queue => queue.reserve())
    }

    fn release(&mut self, slot: Slot) {
        either!(self, queue => queue.release(slot));
    }

    #[inline]
    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        either!(self, queue => queue.submit(slot, command, data))
    }

    #[inline]
    fn commit(&mut self) -> Result<(), QueueLost> {
        either!(self, queue => queue.commit())
    }

    #[inline]
    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        either!(self, queue => queue.poll(completed))
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        either!(self, queue => queue.take_back(data))
    }
}

impl Connection for FabricQueue {
    fn is_ready(&self) -> bool {
        FabricQueue::is_ready(self)
    }

    fn in_flight(&self) -> usize {
        FabricQueue::in_flight(self)
    }
}

impl Wait for FabricQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        either!(self, queue => queue.wait_descriptor())
    }

    fn waits_for_room(&self) -> bool {
        either!(self, queue => queue.waits_for_room())
    }
}
