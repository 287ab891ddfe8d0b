//! What is left of NVMe/RDMA in a build without it: the reason why nothing can be connected.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use homi_queue::{
    Command, CommandId, Completed, Data, LostReason, Queue, QueueFull, QueueLost, Region, Slot, Wait,
};

use super::Shape;
use crate::counters::Counters;
use crate::dial::Peer;
use crate::error::Error;
use crate::link::{HangUp, QueueLink};
use crate::options::Options;

#[derive(Debug, Clone)]
enum Never {}

/// A queue over NVMe/RDMA. In this build there is none.
#[derive(Debug)]
pub struct RdmaQueue(Never);

/// A way to a controller. In this build there is none.
#[derive(Debug, Clone)]
pub(crate) struct Route(Never);

/// Memory that is registered. In this build there is none.
#[derive(Debug)]
pub(crate) struct Pinned(Never);

fn missing() -> Error {
    match homi_verbs::EventChannel::new() {
        Err(error) => Error::Unsupported(error.to_string()),
        // There is no such value.
        Ok(_) => Error::Unsupported("this program was built without the feature `rdma`".to_owned()),
    }
}

pub(crate) fn connect(_: &Peer, _: u16, _: &Options, _: Shape) -> Result<(RdmaQueue, Route), Error> {
    Err(missing())
}

pub(crate) fn connect_again(_: &Peer, route: &Route, _: &Options, _: Shape) -> Result<RdmaQueue, Error> {
    match route.0 {}
}

impl Route {
    pub(crate) fn pin(&self, _: &Region) -> Result<Pinned, Error> {
        match self.0 {}
    }
}

impl RdmaQueue {
    pub(crate) fn entries(&self) -> u16 {
        match self.0 {}
    }

    /// Whether the connection is initialised.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.0 {}
    }

    /// Commands submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self.0 {}
    }

    /// Why the queue was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<&LostReason> {
        match self.0 {}
    }

    /// What the queue has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self.0 {}
    }

    /// Largest transfer of one command in bytes, or `None` if there is no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u32> {
        match self.0 {}
    }

    /// How long a caller may sleep before it must poll again.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        match self.0 {}
    }

    pub(crate) fn set_link(&mut self, _: QueueLink) {
        match self.0 {}
    }

    pub(crate) fn set_timeout(&mut self, _: Duration) {
        match self.0 {}
    }

    pub(crate) fn set_max_transfer(&mut self, _: Option<u32>) {
        match self.0 {}
    }

    pub(crate) fn submit_untimed(&mut self, _: Slot, _: Command, _: Data) -> CommandId {
        match self.0 {}
    }

    pub(crate) fn hang_up(&self) -> HangUp {
        match self.0 {}
    }
}

impl Queue for RdmaQueue {
    fn depth(&self) -> u16 {
        match self.0 {}
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        match self.0 {}
    }

    fn release(&mut self, _: Slot) {
        match self.0 {}
    }

    fn submit(&mut self, _: Slot, _: Command, _: Data) -> CommandId {
        match self.0 {}
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        match self.0 {}
    }

    fn poll(&mut self, _: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        match self.0 {}
    }
}

impl Wait for RdmaQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self.0 {}
    }
}
