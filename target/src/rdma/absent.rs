//! What is left of RDMA in a target built without the feature `rdma`: it says so to whoever wants to listen.

use std::net::SocketAddr;

use homi_fabric::controller::PortId;
use homi_fabric::time::Instant;
use homi_reactor::Reactor;
use homi_verbs::{Unsupported, VerbsError};

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::shard::{Mailboxes, RdmaCounters};
use crate::slab::Key;

/// There are none.
#[derive(Debug)]
pub(crate) enum Letter {}

/// There are none.
#[derive(Debug)]
pub(crate) enum Listener {}

impl Listener {
    pub(crate) fn close(self) {
        match self {}
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) struct Listeners;

impl Listeners {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn listen(
        &mut self,
        _reactor: &mut Reactor,
        _address: SocketAddr,
        _port: PortId,
    ) -> Result<Listener, VerbsError> {
        Err(Unsupported::NotBuilt.into())
    }

    pub(crate) fn turn(
        &mut self,
        _reactor: &mut Reactor,
        _config: &Config,
        _mailboxes: &Mailboxes,
    ) -> Vec<PortId> {
        Vec::new()
    }
}

#[derive(Debug)]
pub(crate) struct Driver;

impl Driver {
    pub(crate) fn new(_config: &Config, _shard: u16) -> Self {
        Self
    }

    pub(crate) fn read(&mut self, letter: Letter, _engine: &mut Engine, _clock: &Clock) -> Option<Key> {
        match letter {}
    }

    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        true
    }

    #[inline]
    pub(crate) fn poll(&mut self, _engine: &mut Engine, _clock: &Clock) -> bool {
        false
    }

    #[inline]
    pub(crate) fn has(&self, _session: Key) -> bool {
        false
    }

    pub(crate) fn list(&mut self, _session: Key) {}

    pub(crate) fn flush(&mut self, _engine: &mut Engine, _clock: &Clock) {}

    pub(crate) fn end(&mut self, _session: Key, _engine: &mut Engine, _now: Instant) {}

    pub(crate) fn next_deadline(&self, _now: Instant) -> Option<Instant> {
        None
    }

    pub(crate) fn may_sleep(
        &mut self,
        _reactor: &mut Reactor,
        _engine: &mut Engine,
        _clock: &Clock,
        _token: u64,
    ) -> bool {
        true
    }

    pub(crate) fn woken(&mut self, _adapter: usize) {}

    pub(crate) fn tick(&mut self, _reactor: &mut Reactor, _engine: &mut Engine, _now: Instant) -> bool {
        false
    }

    pub(crate) fn counters(&self) -> RdmaCounters {
        RdmaCounters::default()
    }
}
