//! [`World`]: a target in memory, the connections to it, and the time that both live in; [`Pipe`]: the host's end of one of
//! them, which the initiator's queue takes for any other byte stream.
//!
//! There are no threads: bytes move when a host receives, on the thread that does. Time passes when a test says so, and
//! when everybody waits for bytes that are still on their way.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use homi_fabric::time::Instant;
use homi_initiator::ByteStream;
use homi_queue::{GatherList, Segment};
use homi_target::ServiceError;
use homi_target::config::Config;
use homi_target::memory::{Connection, MemoryTarget};

use crate::faults::{Faults, Plan, Running};
use crate::meddler::{Act, Meddler, Side};
use crate::units::Splitter;

/// Payload with at least this much to come is put where it belongs instead of being handed to the session, as shards do.
const DIRECT: usize = 32 << 10;

/// One direction of a connection.
struct Lane {
    plan: Running,
    /// On their way, with the time of their arrival.
    under_way: VecDeque<(Instant, Vec<u8>)>,
    /// Arrived, from `taken` on.
    arrived: Vec<u8>,
    taken: usize,
    /// The sender closed after the bytes above.
    ended: bool,
    /// Units for the meddler.
    units: Splitter,
}

impl Lane {
    fn new(plan: Plan) -> Self {
        Self {
            plan: Running::new(plan),
            under_way: VecDeque::new(),
            arrived: Vec::new(),
            taken: 0,
            ended: false,
            units: Splitter::default(),
        }
    }

    /// Sends bytes; true if that breaks the connection.
    fn send(&mut self, bytes: &[u8], now: Instant) -> bool {
        let outcome = self.plan.apply(bytes);
        if !outcome.bytes.is_empty() {
            self.under_way.push_back((now + self.plan.delay(), outcome.bytes));
        }
        outcome.cut
    }

    fn arrive(&mut self, now: Instant) {
        while let Some((due, _)) = self.under_way.front()
            && *due <= now
            && let Some((_, bytes)) = self.under_way.pop_front()
        {
            self.arrived.extend(bytes);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _)| *due)
    }

    /// The next piece of what has arrived.
    fn take(&mut self, most: usize) -> Vec<u8> {
        let there = self.arrived.len() - self.taken;
        if there == 0 {
            return Vec::new();
        }
        let len = self.plan.piece(there).min(most);
        let piece = self.arrived[self.taken..self.taken + len].to_vec();
        self.taken += len;
        if self.taken == self.arrived.len() {
            self.arrived.clear();
            self.taken = 0;
        }
        piece
    }

    fn forget(&mut self) {
        self.under_way = VecDeque::new();
        self.arrived = Vec::new();
        self.taken = 0;
        self.units = Splitter::default();
    }

    /// Bytes that were sent and not received.
    fn waiting(&self) -> usize {
        let under_way: usize = self.under_way.iter().map(|(_, bytes)| bytes.len()).sum();
        under_way + self.arrived.len() - self.taken
    }

    fn has_arrived(&self) -> bool {
        self.taken < self.arrived.len()
    }

    fn is_over(&self) -> bool {
        self.ended && !self.has_arrived() && self.under_way.is_empty()
    }
}

/// A connection.
struct Link {
    connection: Option<Connection>,
    to_target: Lane,
    to_host: Lane,
    meddler: Option<Meddler>,
    /// Why the target closed it.
    reason: Option<String>,
    /// The network broke it: no more bytes move.
    broken: bool,
}

struct Inner {
    target: MemoryTarget,
    links: Vec<Link>,
    spare: GatherList,
}

/// A target in memory and the connections to it. Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<RefCell<Inner>>);

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.0.borrow();
        f.debug_struct("World")
            .field("target", &inner.target)
            .field("links", &inner.links.len())
            .finish()
    }
}

impl World {
    /// A world whose target serves what `config` says.
    ///
    /// # Errors
    /// What the target cannot have.
    pub fn new(config: &Config) -> Result<Self, ServiceError> {
        Ok(Self(Rc::new(RefCell::new(Inner {
            target: MemoryTarget::new(config)?,
            links: Vec::new(),
            spare: GatherList::new(),
        }))))
    }

    /// A new connection to the target.
    #[must_use]
    pub fn connect(&self, faults: Faults) -> Pipe {
        self.connect_through(faults, None)
    }

    /// A new connection whose units a meddler sees first.
    #[must_use]
    pub fn connect_through(&self, faults: Faults, meddler: Option<Meddler>) -> Pipe {
        let mut inner = self.0.borrow_mut();
        let connection = inner.target.connect();
        inner.links.push(Link {
            connection,
            to_target: Lane::new(faults.to_target),
            to_host: Lane::new(faults.to_host),
            meddler,
            reason: None,
            broken: false,
        });
        let link = inner.links.len() - 1;
        drop(inner);
        Pipe {
            world: self.clone(),
            link,
        }
    }

    /// Makes the target serve what `config` says from now on.
    ///
    /// # Errors
    /// What the target cannot have; nothing changes then.
    pub fn apply(&self, config: &Config) -> Result<(), ServiceError> {
        self.0.borrow_mut().target.apply(config)
    }

    /// Number of connections that the target has.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.borrow().target.connections()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.borrow().target.now()
    }

    /// Lets time pass: what is under way arrives, and deadlines of the target come.
    pub fn pass(&self, time: Duration) {
        let mut inner = self.0.borrow_mut();
        let end = inner.target.now() + time;
        inner.pump();
        while let Some(due) = inner.next_arrival().filter(|due| *due <= end) {
            inner.advance_to(due);
        }
        inner.advance_to(end);
    }

    /// Whether nothing more happens unless a host or a test does something: nothing is under way, nothing waits to be
    /// received, and the target executes nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        inner.pump();
        !inner.target.poll()
            && inner.next_arrival().is_none()
            && !inner.links.iter().any(|link| link.to_host.has_arrived())
    }

    /// Moves everything that can move now.
    pub fn pump(&self) {
        self.0.borrow_mut().pump();
    }
}

impl Inner {
    fn next_arrival(&self) -> Option<Instant> {
        let lanes = self
            .links
            .iter()
            .flat_map(|link| [&link.to_target, &link.to_host]);
        lanes.filter_map(Lane::due).min()
    }

    fn advance_to(&mut self, time: Instant) {
        let now = self.target.now();
        self.target.pass(time.saturating_since(now));
        self.pump();
    }

    /// Moves everything that can move now.
    fn pump(&mut self) {
        loop {
            self.target.poll();
            let mut moved = false;
            for index in 0..self.links.len() {
                moved |= self.pump_link(index);
            }
            if !moved {
                return;
            }
        }
    }

    fn pump_link(&mut self, index: usize) -> bool {
        let now = self.target.now();
        let link = &mut self.links[index];
        link.to_target.arrive(now);
        link.to_host.arrive(now);
        let Some(connection) = link.connection else {
            return false;
        };
        if link.broken || link.to_target.is_over() {
            self.close(index);
            return true;
        }
        let mut moved = false;
        let segment = self.target.landing(connection, DIRECT);
        let most = segment.as_ref().map_or(usize::MAX, Segment::len);
        let bytes = link.to_target.take(most);
        if !bytes.is_empty() {
            moved = true;
            match segment {
                Some(segment) => {
                    segment.region().write(segment.start(), &bytes).unwrap();
                    self.target.landed(connection, bytes.len());
                }
                None => self.target.receive(connection, &bytes),
            }
        }
        let waiting = link.to_host.waiting();
        let open = link.to_host.plan.is_open(waiting);
        if open && let Some(mut list) = self.target.output(connection, std::mem::take(&mut self.spare)) {
            moved = true;
            let bytes = list.to_vec();
            list.clear();
            self.spare = list;
            self.target_sends(index, &bytes);
        }
        if !self.target.is_open(connection) {
            let link = &mut self.links[index];
            link.reason = self.target.closing_reason(connection);
            self.close(index);
            moved = true;
        }
        moved
    }

    /// The connection is over for the target.
    fn close(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.to_host.ended = true;
        if let Some(connection) = link.connection.take() {
            self.target.close(connection);
        }
    }

    /// Bytes that the target sends.
    fn target_sends(&mut self, index: usize, bytes: &[u8]) {
        let link = &mut self.links[index];
        if link.meddler.is_none() {
            self.send_to_host(index, bytes);
            return;
        }
        link.to_host.units.push(bytes);
        while let Some(unit) = self.links[index].to_host.units.next_unit() {
            self.meddle(index, Side::Target, unit);
        }
    }

    /// Bytes that a host sends.
    fn host_sends(&mut self, index: usize, bytes: &[u8]) {
        let link = &mut self.links[index];
        if link.meddler.is_none() {
            self.send_to_target(index, bytes);
            return;
        }
        link.to_target.units.push(bytes);
        while let Some(unit) = self.links[index].to_target.units.next_unit() {
            self.meddle(index, Side::Host, unit);
        }
    }

    fn meddle(&mut self, index: usize, from: Side, unit: Vec<u8>) {
        let Some(meddler) = &mut self.links[index].meddler else {
            return;
        };
        for act in meddler(from, &unit) {
            match act {
                Act::Forward => match from {
                    Side::Host => self.send_to_target(index, &unit),
                    Side::Target => self.send_to_host(index, &unit),
                },
                Act::ToHost(bytes) => self.send_to_host(index, &bytes),
                Act::ToTarget(bytes) => self.send_to_target(index, &bytes),
                Act::HangUp => {
                    self.links[index].to_target.ended = true;
                    self.links[index].to_host.ended = true;
                }
            }
        }
    }

    fn send_to_host(&mut self, index: usize, bytes: &[u8]) {
        let now = self.target.now();
        let link = &mut self.links[index];
        if !link.broken && !link.to_host.ended && link.to_host.send(bytes, now) {
            link.broken = true;
        }
    }

    fn send_to_target(&mut self, index: usize, bytes: &[u8]) {
        let now = self.target.now();
        let link = &mut self.links[index];
        if !link.broken && !link.to_target.ended && link.to_target.send(bytes, now) {
            link.broken = true;
        }
    }
}

/// The host's end of a connection.
#[derive(Debug)]
pub struct Pipe {
    world: World,
    link: usize,
}

impl Pipe {
    /// The world that it is in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Why the target closed the connection, if it did.
    #[must_use]
    pub fn closing_reason(&self) -> Option<String> {
        self.world.0.borrow().links[self.link].reason.clone()
    }

    /// Sends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut inner = self.world.0.borrow_mut();
        inner.host_sends(self.link, bytes);
        inner.pump();
    }

    /// Receives at most so many bytes: none if nothing is there and nothing is coming; `None` if the connection is over.
    pub fn read(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut inner = self.world.0.borrow_mut();
        inner.pump();
        // Bytes may come from other hosts' doings too, so time goes on as long as anything is under way.
        while !inner.links[self.link].to_host.has_arrived()
            && !inner.target.poll()
            && let Some(due) = inner.next_arrival()
        {
            inner.advance_to(due);
        }
        let link = &mut inner.links[self.link];
        let bytes = link.to_host.take(most);
        let over = bytes.is_empty() && (link.to_host.is_over() || link.broken);
        (!over).then_some(bytes)
    }

    /// Ends the connection after what was sent.
    pub fn hang_up(&mut self) {
        // A host may be dropped by a panic in the middle of anything.
        if let Ok(mut inner) = self.world.0.try_borrow_mut() {
            inner.links[self.link].to_target.ended = true;
            inner.pump();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.hang_up();
        // Nobody can ask for what came, and a test may make thousands of connections.
        if let Ok(mut inner) = self.world.0.try_borrow_mut() {
            let link = &mut inner.links[self.link];
            link.to_host.forget();
            if link.connection.is_none() {
                link.to_target.forget();
            }
        }
    }
}

impl ByteStream for Pipe {
    fn send(&mut self, output: &mut GatherList) -> io::Result<usize> {
        let mut inner = self.world.0.borrow_mut();
        let link = &inner.links[self.link];
        if link.broken || link.connection.is_none() && link.meddler.is_none() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut bytes = output.to_vec();
        bytes.truncate(link.to_target.plan.room(bytes.len()));
        inner.host_sends(self.link, &bytes);
        drop(inner);
        output.advance(bytes.len());
        Ok(bytes.len())
    }

    fn receive(&mut self, landing: Option<&Segment>, staging: &mut [u8]) -> io::Result<(usize, usize)> {
        let direct = landing.map_or(0, Segment::len);
        let bytes = match self.read(direct + staging.len()) {
            None => return Ok((0, 0)),
            Some(bytes) if bytes.is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
            Some(bytes) => bytes,
        };
        let (first, rest) = bytes.split_at(bytes.len().min(direct));
        if let Some(segment) = landing {
            segment.region().write(segment.start(), first).unwrap();
        }
        staging[..rest.len()].copy_from_slice(rest);
        Ok((first.len(), rest.len()))
    }

    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(&mut self) {
        self.hang_up();
    }
}
