//! [`StreamQueue`]: a queue whose executor is a controller at the other end of a byte stream.
//!
//! # How bytes are received
//! While only small transfers are outstanding, one receive takes everything that is there into a staging buffer, and payload
//! is copied from it while it is hot: one system call serves many commands. Once a large read is outstanding, a
//! receive takes no more than the next header into the buffer and the payload straight into the command's memory, each with
//! the header that follows it: one system call and no copy per transfer.
//!
//! # How time is kept
//! Nothing is timed per command (see `watch`); the clock is read when there was nothing to receive, and every now and then
//! otherwise.

use std::fmt;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use homi_fabric::tcp::{HostConnection, HostEvent, HostParams, ParameterError};
use homi_fabric::time::Instant;
use homi_queue::{
    Command, CommandId, Completed, Completion, Data, DataDirection, LostReason, Queue, QueueFull, QueueLost,
    Segment, Slot, Wait,
};

use crate::clock;
use crate::counters::Counters;
use crate::link::QueueLink;
use crate::pool::Pool;
use crate::sequence::Connection;
use crate::stream::ByteStream;
use crate::watch::Watches;

/// Transfers of at least so many bytes are received where they belong. Below, a copy of hot bytes is cheaper than the system
/// calls that avoiding it costs.
const DIRECT: usize = 32 << 10;

/// Bytes of the staging buffer: what one receive may take. More would not be hot any more when it is copied.
const STAGING: usize = 128 << 10;

/// Bytes staged per receive while large and small transfers are outstanding together: some copying of the large ones buys
/// fewer system calls for the small ones.
const MIXED_WINDOW: usize = 8 << 10;

/// Bytes of a header of C2HData, R2T and CapsuleResp, and of a digest.
const HEADER: usize = 24;
const DIGEST: usize = 4;

/// Polls that found something between two readings of the clock.
const POLLS_PER_CLOCK: u32 = 64;

/// How long a queue is idle before it gives its staging buffer and pool back.
const IDLE: Duration = Duration::from_secs(10);

/// How a [`StreamQueue`] is made.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StreamParams {
    /// What to negotiate.
    pub connection: HostParams,
    /// How long a command may take before it is aborted (or, on a queue that nobody can abort on, before the queue is given up); zero
    /// waits forever.
    pub command_timeout: Duration,
    /// Largest transfer of one command in bytes, for callers to ask; not enforced.
    pub max_transfer: Option<u32>,
}

impl StreamParams {
    /// For a connection with these parameters, without timeouts.
    #[must_use]
    pub const fn new(connection: HostParams) -> Self {
        Self {
            connection,
            command_timeout: Duration::ZERO,
            max_transfer: None,
        }
    }
}

/// A queue over a byte stream, run by the thread that calls it: `commit` sends a batch with one system call, `poll`
/// receives with one. In steady state neither allocates.
///
/// A queue that was just made has sent nothing: [`commit`](Queue::commit) it and [`poll`](Queue::poll) it until
/// [`is_ready`](StreamQueue::is_ready) before commands are submitted, and connect it (`homi_fabric::host`). [`Controller::queue`](crate::Controller::queue)
/// does both.
pub struct StreamQueue<S: ByteStream> {
    stream: S,
    connection: HostConnection,
    /// Empty until it is needed.
    staging: Box<[u8]>,
    pool: Pool,
    /// Marked: reads of at least `DIRECT` bytes.
    watches: Watches,
    /// Large reads in flight.
    large: usize,
    /// Bytes landed since the last completion that counted them.
    landed: u64,
    header_window: usize,
    /// Bytes between a payload and the next header.
    trailer: usize,
    /// Not everything that is queued could be sent.
    blocked: bool,
    busy: Instant,
    polls: u32,
    max_transfer: Option<u32>,
    link: Option<QueueLink>,
    /// Why nothing can be sent any more, while it is not known yet what the peer had to say about it.
    send_failure: Option<String>,
    lost: Option<LostReason>,
    counters: Counters,
}

impl<S: ByteStream> StreamQueue<S> {
    /// A queue over a stream whose other end has not been talked to. The request that initialises the connection is sent by the first
    /// `commit` or `poll`.
    ///
    /// # Errors
    /// [`ParameterError`] if a connection parameter is out of its range.
    pub fn new(stream: S, params: StreamParams) -> Result<Self, ParameterError> {
        let mut connection = HostConnection::new(params.connection)?;
        connection.start();
        let depth = connection.depth();
        let digest = |on: bool| if on { DIGEST } else { 0 };
        let now = clock::coarse();
        Ok(Self {
            stream,
            connection,
            staging: Box::default(),
            pool: Pool::default(),
            watches: Watches::new(depth, params.command_timeout),
            large: 0,
            landed: 0,
            header_window: HEADER + digest(params.connection.header_digest),
            trailer: digest(params.connection.data_digest),
            blocked: true,
            busy: now,
            polls: 0,
            max_transfer: params.max_transfer,
            link: None,
            send_failure: None,
            lost: None,
            counters: Counters::default(),
        })
    }

    /// Makes the queue part of an association, which aborts its commands and tells it when it ends.
    pub(crate) fn set_link(&mut self, link: QueueLink) {
        self.link = Some(link);
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.watches.set_timeout(timeout);
    }

    pub(crate) fn set_max_transfer(&mut self, max_transfer: Option<u32>) {
        self.max_transfer = max_transfer;
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether the connection is initialised.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    /// Commands submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    /// Why the queue was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<&LostReason> {
        self.lost.as_ref()
    }

    /// What the queue has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Largest transfer of one command in bytes, or `None` if there is no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<u32> {
        self.max_transfer
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again, so that a command that takes too
    /// long is noticed: `None` while nothing is in flight or commands may take forever.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        self.watches.wait_limit(self.connection.in_flight())
    }

    /// Submits a command that may take forever.
    pub(crate) fn submit_untimed(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let id = self.submit(slot, command, data);
        self.watches.leave_alone(id);
        id
    }

    /// Sends what is queued, as far as there is room.
    fn flush(&mut self) {
        if self.connection.output().is_empty() || self.send_failure.is_some() {
            return;
        }
        self.counters.sends += 1;
        match self.stream.send(self.connection.output()) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The peer may have said why: that is known when everything that it sent is received.
            Err(error) => {
                self.connection.output().clear();
                self.send_failure = Some(error.to_string());
            }
        }
        self.blocked = !self.connection.output().is_empty();
    }

    /// One receive, and what it brings. `count` grows by the commands that completed, also before an error.
    fn receive(
        &mut self,
        completed: &mut impl Extend<Completed>,
        count: &mut usize,
    ) -> Result<(), LostReason> {
        // The buffer is moved out so that the connection can be used while it is read.
        let mut staging = mem::take(&mut self.staging);
        if staging.is_empty() {
            staging = vec![0; STAGING].into_boxed_slice();
        }
        let result = self.receive_into(&mut staging, completed, count);
        self.staging = staging;
        result
    }

    fn receive_into(
        &mut self,
        staging: &mut [u8],
        completed: &mut impl Extend<Completed>,
        count: &mut usize,
    ) -> Result<(), LostReason> {
        let (landing, window) = self.plan();
        let window = window.min(staging.len());
        let room = staging.get_mut(..window).unwrap_or(&mut []);
        self.counters.receives += 1;
        let (landed, staged) = match self.stream.receive(landing.as_ref(), room) {
            Ok((0, 0)) => {
                return Err(self
                    .send_failure
                    .take()
                    .map_or(LostReason::Closed, LostReason::Io));
            }
            Ok(received) => received,
            Err(error) => return self.nothing_received(&error),
        };
        // The operation must be its memory's only user when it is handed back.
        drop(landing);
        if landed > 0 {
            self.counters.bytes_landed += landed as u64;
            self.landed += landed as u64;
            if let Some(event) = self.connection.landed(landed).map_err(protocol)? {
                *count += self.event(event, completed)?;
            }
        }
        let mut input = staging.get(..staged).unwrap_or(&[]);
        while let Some(event) = self.connection.advance(&mut input).map_err(protocol)? {
            *count += self.event(event, completed)?;
        }
        Ok(())
    }

    /// Where the next bytes go: straight into memory (if a large payload is under way), then so many bytes of the staging buffer.
    fn plan(&self) -> (Option<Segment>, usize) {
        if self.large == 0 {
            return (None, STAGING);
        }
        let landing = self.connection.landing(1);
        let window = if self.large < self.connection.in_flight() {
            MIXED_WINDOW
        } else if landing.is_some() {
            self.header_window + self.trailer
        } else {
            self.header_window
        };
        (landing, window)
    }

    fn nothing_received(&mut self, error: &io::Error) -> Result<(), LostReason> {
        match (error.kind(), self.send_failure.take()) {
            (ErrorKind::WouldBlock | ErrorKind::Interrupted, None) => {
                self.counters.empty_receives += 1;
                Ok(())
            }
            (ErrorKind::WouldBlock | ErrorKind::Interrupted, Some(text)) => Err(LostReason::Io(text)),
            (ErrorKind::ConnectionReset, _) => {
                Err(LostReason::Io("the peer reset the connection".to_owned()))
            }
            _ => Err(LostReason::Io(error.to_string())),
        }
    }

    /// Takes what the connection reports; returns how many commands completed by it.
    fn event(
        &mut self,
        event: HostEvent,
        completed: &mut impl Extend<Completed>,
    ) -> Result<usize, LostReason> {
        match event {
            HostEvent::Ready => Ok(0),
            HostEvent::Completed {
                id,
                cqe,
                data,
                received,
            } => {
                self.large = self.large.saturating_sub(usize::from(self.watches.end(id)));
                if received > 0 {
                    let landed = self.landed.min(received.into());
                    self.landed -= landed;
                    let copied = u64::from(received) - landed;
                    self.counters.copies += u64::from(copied > 0);
                    self.counters.bytes_copied += copied;
                }
                completed.extend(Some(Completed {
                    id,
                    completion: Completion::from(&cqe),
                    data,
                }));
                Ok(1)
            }
            HostEvent::PeerTerminated(termination) => {
                let text = termination.to_string();
                // The reason says itself that the peer ended the connection.
                let why = text.split_once(": ").map_or(text.as_str(), |(_, why)| why);
                Err(LostReason::Terminated(why.to_owned()))
            }
        }
    }

    /// What `poll` does on a queue that is not lost.
    fn turn(&mut self, completed: &mut impl Extend<Completed>, count: &mut usize) -> Result<(), LostReason> {
        while let Some(event) = self.connection.poll_refused() {
            *count += self.event(event, completed)?;
        }
        let before = *count;
        self.receive(completed, count)?;
        // Data that was just asked for.
        self.flush();
        self.polls = self.polls.wrapping_add(1);
        if *count == before || self.polls.is_multiple_of(POLLS_PER_CLOCK) {
            self.keep_time()?;
        }
        Ok(())
    }

    /// What is done now and then: timeouts, and giving back memory that nobody needs.
    #[cold]
    fn keep_time(&mut self) -> Result<(), LostReason> {
        let now = clock::coarse();
        if self.connection.in_flight() > 0 {
            self.busy = now;
            self.counters.aborts += self.watches.look(now, self.link.as_ref())?;
            return Ok(());
        }
        self.watches.rest(now);
        if now.saturating_since(self.busy) >= IDLE && !(self.staging.is_empty() && self.pool.is_empty()) {
            self.staging = Box::default();
            self.pool.clear();
        }
        Ok(())
    }

    /// Ends the queue: what is queued (a request to terminate with the reason) is sent as far as there is room.
    #[cold]
    fn lose(&mut self, reason: LostReason) {
        if self.lost.is_some() {
            return;
        }
        tracing::debug!(%reason, in_flight = self.connection.in_flight(), "queue lost");
        self.flush();
        self.connection.output().clear();
        self.blocked = false;
        self.stream.close();
        self.staging = Box::default();
        self.pool.clear();
        self.lost = Some(reason);
    }

    /// What a lost queue answers: the reason, and every command that was not handed back before.
    #[cold]
    fn lost_queue(&mut self) -> QueueLost {
        let reason = self.lost.clone().unwrap_or(LostReason::Local);
        self.watches.clear();
        self.large = 0;
        QueueLost::new(reason, self.connection.drain())
    }

    /// Why the association ended, if it did.
    #[inline]
    fn association_ended(&self) -> Option<LostReason> {
        self.link.as_ref().and_then(QueueLink::ended)
    }

    /// The reason to stop before anything is done, if there is one.
    #[inline]
    fn check(&mut self) -> Result<(), QueueLost> {
        if let Some(reason) = self.association_ended() {
            self.lose(reason);
        }
        if self.lost.is_some() {
            Err(self.lost_queue())
        } else {
            Ok(())
        }
    }
}

fn protocol(error: homi_fabric::tcp::TransportError) -> LostReason {
    LostReason::Protocol(error.to_string())
}

impl<S: ByteStream> Queue for StreamQueue<S> {
    fn depth(&self) -> u16 {
        self.connection.depth()
    }

    #[inline]
    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.connection.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.connection.release(slot);
    }

    #[inline]
    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        self.counters.commands += 1;
        let read = command.direction() == DataDirection::ControllerToHost;
        let large = read && data.len() >= DIRECT;
        let data = match data {
            // Memory that cannot be had is left to the connection to refuse.
            Data::Anywhere { len } if read => self.pool.take(len).unwrap_or(Data::Anywhere { len }),
            data => data,
        };
        let id = self.connection.submit(slot, command, data);
        self.large += usize::from(large);
        self.watches.begin(id, large);
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        self.check()?;
        self.flush();
        Ok(())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.check()?;
        self.flush();
        let mut count = 0;
        let outcome = self.turn(completed, &mut count);
        if let Err(reason) = outcome {
            // An association that ends hangs up on its queues, which says less than why it ended.
            let ended = match reason {
                LostReason::Closed | LostReason::Io(_) => self.association_ended(),
                _ => None,
            };
            self.lose(ended.unwrap_or(reason));
            // What completed before is delivered first; the next call reports the loss.
            if count == 0 {
                return Err(self.lost_queue());
            }
        }
        Ok(count)
    }
}

impl<S: ByteStream> Connection for StreamQueue<S> {
    fn is_ready(&self) -> bool {
        StreamQueue::is_ready(self)
    }

    fn in_flight(&self) -> usize {
        StreamQueue::in_flight(self)
    }
}

impl<S: ByteStream> Wait for StreamQueue<S> {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.wait_descriptor()
    }

    fn waits_for_room(&self) -> bool {
        self.blocked
    }
}

impl<S: ByteStream> fmt::Debug for StreamQueue<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamQueue")
            .field("depth", &self.connection.depth())
            .field("in_flight", &self.connection.in_flight())
            .field("ready", &self.connection.is_ready())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
