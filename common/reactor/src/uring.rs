//! The backend on io_uring.
//!
//! Each stream has two blocks of memory at fixed addresses, one for its receive and one for its send; the kernel may
//! use a block from the moment its submission entry is written until its completion is taken, and in that time
//! nothing here touches the block. A slot is given up only when it has no operation in flight, so a completion always
//! finds the slot that it belongs to.
//!
//! Receives into staging let the kernel pick a buffer when bytes are there, so that idle streams hold none. When
//! there are more streams with bytes than buffers, the others queue up here and are started again in their order, as
//! many per turn as there are buffers.
//!
//! Submission entries are only written between turns; the turn submits them in one system call. What does not fit
//! waits in a queue of its own instead of costing a call of its own.
//!
//! A few busy streams are an exception while the loop polls: see [`direct`].

mod completion;
mod direct;
mod memory;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use homi_queue::GatherList;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use nix::sys::socket::{Shutdown, shutdown};

use crate::slab::{Slab, SocketKey};
use crate::types::{Counters, Deferred, Event, Options, ReactorError, Receive, Wait};
use crate::waker::Waker;
use direct::Direct;
use memory::{Outgoing, ReceiveOperation, STAGING_GROUP, SendOperation, Stable, Staging};

/// `IORING_RECVSEND_POLL_FIRST`: do not try before the socket is ready.
const POLL_FIRST: u16 = 1;

/// How long dropping a reactor waits for the kernel to let go of its memory.
const DRAIN: Duration = Duration::from_secs(2);

/// What an operation is, the upper byte of its user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Receive = 1,
    Send = 2,
    Accept = 3,
    Watch = 4,
    Waker = 5,
    Cancel = 6,
}

/// Which memory a stream's receive uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    /// None is armed.
    No,
    /// Whichever buffer the kernel picks.
    Staging { limit: u32 },
    /// It is armed, but waits here for a buffer.
    Starved { limit: u32 },
    /// What the operation's block holds.
    Landing,
    /// Into staging, by a call from here; nothing is armed.
    Direct { limit: u32 },
}

struct Stream {
    descriptor: OwnedFd,
    token: u64,
    receive: Stable<ReceiveOperation>,
    send: Stable<SendOperation>,
    receiving: Receiving,
    sending: bool,
    /// The socket was empty after the last receive, so that trying at once would be in vain.
    drained: bool,
    /// It received something lately, and not much at once.
    busy: bool,
    /// Receives from here that found nothing since the last that did.
    vain: u32,
    closing: bool,
}

impl Stream {
    fn is_idle(&self) -> bool {
        !self.sending
            && matches!(
                self.receiving,
                Receiving::No | Receiving::Starved { .. } | Receiving::Direct { .. }
            )
    }
}

/// A listener or watched descriptor: at most one operation, without memory.
struct Single {
    descriptor: OwnedFd,
    token: u64,
    kind: Kind,
    armed: bool,
    closing: bool,
}

enum Slot {
    Stream(Stream),
    Single(Single),
}

pub(crate) struct Uring {
    ring: IoUring,
    slots: Slab<Slot>,
    staging: Staging,
    /// Blocks of closed streams, for new ones.
    spare: Vec<(Stable<ReceiveOperation>, Stable<SendOperation>)>,
    /// Entries that did not fit the submission queue.
    backlog: VecDeque<squeue::Entry>,
    /// Streams that wait for a staging buffer.
    starved: VecDeque<SocketKey>,
    direct: Direct,
    deferred: VecDeque<(SocketKey, Deferred)>,
    paused: Vec<(Instant, SocketKey)>,
    waker: Waker,
    /// Completions that are still to come, or to be taken.
    in_flight: usize,
    /// `IORING_ENTER_NO_IOWAIT` where the kernel has it: sleeping is not waiting for a disk.
    sleep_flags: EnterFlags,
    counters: Counters,
}

impl Uring {
    pub(crate) fn new(options: &Options, waker: Waker) -> Result<Self, ReactorError> {
        let refused = |action| move |source| ReactorError::IoUringRefused { action, source };
        let ring = create(options.entries).map_err(refused("set up a ring"))?;
        let features = ring.params();
        if !features.is_feature_ext_arg() || !features.is_feature_nodrop() {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            return Err(refused("find timed waits and lossless completions")(source));
        }
        let sleep_flags = if features.is_feature_no_iowait() {
            EnterFlags::NO_IOWAIT
        } else {
            EnterFlags::empty()
        };
        let mut staging = Staging::new(options.staging_buffers, options.staging_len).map_err(|error| {
            ReactorError::System {
                action: "allocate staging buffers",
                source: io::Error::other(error),
            }
        })?;
        staging
            .register(&ring.submitter())
            .map_err(refused("register a ring of buffers"))?;
        let mut uring = Self {
            ring,
            slots: Slab::new(),
            staging,
            spare: Vec::new(),
            backlog: VecDeque::new(),
            starved: VecDeque::new(),
            direct: Direct::new(options.staging_len),
            deferred: VecDeque::new(),
            paused: Vec::new(),
            waker,
            in_flight: 0,
            sleep_flags,
            counters: Counters::default(),
        };
        uring.arm_waker();
        Ok(uring)
    }

    pub(crate) fn add_stream(&mut self, stream: OwnedFd, token: u64) -> SocketKey {
        let (receive, send) = self.spare.pop().unwrap_or_else(|| {
            (
                Stable::new(ReceiveOperation::new()),
                Stable::new(SendOperation::new()),
            )
        });
        self.slots.insert(Slot::Stream(Stream {
            descriptor: stream,
            token,
            receive,
            send,
            receiving: Receiving::No,
            sending: false,
            drained: true,
            busy: false,
            vain: 0,
            closing: false,
        }))
    }

    pub(crate) fn add_listener(&mut self, listener: OwnedFd, token: u64) -> SocketKey {
        let key = self.add_single(listener, token, Kind::Accept);
        self.arm_single(key);
        key
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the other backend's registration can fail"
    )]
    pub(crate) fn add_watched(&mut self, descriptor: OwnedFd, token: u64) -> io::Result<SocketKey> {
        Ok(self.add_single(descriptor, token, Kind::Watch))
    }

    fn add_single(&mut self, descriptor: OwnedFd, token: u64, kind: Kind) -> SocketKey {
        self.slots.insert(Slot::Single(Single {
            descriptor,
            token,
            kind,
            armed: false,
            closing: false,
        }))
    }

    pub(crate) fn watch(&mut self, watched: SocketKey) {
        if let Some(Slot::Single(Single {
            kind: Kind::Watch, ..
        })) = self.slots.get(watched)
        {
            self.arm_single(watched);
        }
    }

    pub(crate) fn receive(&mut self, key: SocketKey, receive: Receive) {
        let Some(stream) = self.open_stream(key) else {
            return;
        };
        let objection =
            receive.objection().or((stream.receiving != Receiving::No)
                .then_some("a receive of this stream is in flight already"));
        if let Some(reason) = objection {
            let event = Deferred::invalid(stream.token, reason, None);
            self.deferred.push_back((key, event));
            return;
        }
        match receive {
            Receive::Staging { limit } => {
                let limit = u32::try_from(limit).unwrap_or(u32::MAX);
                stream.receiving = Receiving::Staging { limit };
            }
            Receive::Into { segment, lookahead } => {
                // SAFETY: no receive of this stream is in flight, by the check above.
                unsafe { stream.receive.get() }.hold(segment, lookahead);
                stream.receiving = Receiving::Landing;
            }
        }
        if !self.receive_directly(key) {
            self.arm_receive(key);
        }
    }

    pub(crate) fn send(&mut self, key: SocketKey, list: GatherList) {
        let Some(stream) = self.open_stream(key) else {
            return;
        };
        if stream.sending {
            let reason = "a send of this stream is in flight already";
            let event = Deferred::invalid(stream.token, reason, Some(list));
            self.deferred.push_back((key, event));
        } else if list.is_empty() {
            let event = Deferred::Sent {
                token: stream.token,
                list,
            };
            self.deferred.push_back((key, event));
        } else {
            // SAFETY: no send of this stream is in flight, by the check above.
            unsafe { stream.send.get() }.hold(list);
            stream.sending = true;
            if !self.send_directly(key) {
                self.arm_send(key);
            }
        }
    }

    pub(crate) fn send_in_flight(&self, key: SocketKey) -> bool {
        matches!(
            self.slots.get(key),
            Some(Slot::Stream(Stream {
                sending: true,
                closing: false,
                ..
            }))
        )
    }

    pub(crate) fn close(&mut self, key: SocketKey) {
        match self.slots.get_mut(key) {
            Some(Slot::Stream(stream)) if !stream.closing => {
                stream.closing = true;
                // It fails if the connection is gone already, which is what is wanted.
                let _ = shutdown(stream.descriptor.as_raw_fd(), Shutdown::Both);
                let (receiving, sending) = (stream.receiving, stream.sending);
                if matches!(receiving, Receiving::Staging { .. } | Receiving::Landing) {
                    self.cancel(key, Kind::Receive);
                }
                if sending && !self.forget_direct_send(key) {
                    self.cancel(key, Kind::Send);
                }
                self.forget_direct_receive(key);
            }
            Some(Slot::Single(single)) if !single.closing => {
                single.closing = true;
                let (armed, kind) = (single.armed, single.kind);
                if armed {
                    self.cancel(key, kind);
                }
                self.paused.retain(|(_, paused)| *paused != key);
            }
            _ => return,
        }
        self.settle(key);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn turn(
        &mut self,
        wait: Wait,
        handler: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, ReactorError> {
        self.counters.turns += 1;
        let mut delivered = 0;
        if self.waker.take_notified() {
            handler(Event::Woken);
            delivered += 1;
        }
        if !self.deferred.is_empty() {
            delivered += self.deliver_deferred(handler);
        }
        if !self.paused.is_empty() {
            self.resume_listeners();
        }
        self.feed_starved();
        delivered += self.turn_direct(wait, handler);
        self.submit_backlog();

        let (queued, flagged) = {
            let submission = self.ring.submission();
            (submission.len(), submission.taskrun() || submission.cq_overflow())
        };
        let limit = match wait {
            Wait::Sleep(limit)
                if delivered == 0 && self.backlog.is_empty() && self.ring.completion().is_empty() =>
            {
                self.until_resumption(limit)
            }
            Wait::Sleep(_) | Wait::Poll => Some(Duration::ZERO),
        };
        let wanted = limit != Some(Duration::ZERO);
        let asleep = wanted && self.waker.begin_sleep();
        self.counters.sleeps += u64::from(asleep);
        let entered = if asleep || queued > 0 || flagged {
            self.enter(queued, asleep, limit)
        } else {
            Ok(())
        };
        let woken = if asleep {
            self.waker.end_sleep()
        } else {
            wanted && self.waker.take_notified()
        };
        if woken {
            handler(Event::Woken);
            delivered += 1;
        }
        entered.map_err(|source| ReactorError::System {
            action: "submit to the ring",
            source,
        })?;

        // No more than are there now: completions that handling these brings about belong to the next turn.
        let completed = self.ring.completion().len();
        for _ in 0..completed {
            let Some(completion) = self.ring.completion().next() else {
                break;
            };
            delivered += self.complete(&completion, handler);
        }
        if delivered == 0 && !wanted {
            self.direct.pause();
        }
        Ok(delivered)
    }

    /// One system call: submits, lets the kernel do what it put off, and sleeps if asked to.
    fn enter(&mut self, queued: usize, asleep: bool, limit: Option<Duration>) -> io::Result<()> {
        self.counters.syscalls += 1;
        let queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let (wanted, flags) = if asleep {
            (1, EnterFlags::GETEVENTS | EnterFlags::EXT_ARG | self.sleep_flags)
        } else {
            (0, EnterFlags::GETEVENTS | EnterFlags::EXT_ARG)
        };
        let timespec = limit.filter(|_| asleep).map(Timespec::from);
        let arguments = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        // SAFETY: `queued` entries were written whole, and the memory they refer to stays as it is until their
        // completions are taken: it lies in blocks that are not touched before, in registered staging buffers, or in
        // segments and lists that the blocks hold. `EXT_ARG` announces what `arguments` is, and it and the time it
        // refers to live until the call returns.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter(queued, wanted, flags.bits(), Some(&arguments))
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is up, a signal came, or the kernel first wants completions taken or memory freed. Entries
                // that were not taken stay in the queue for the next turn.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn deliver_deferred(&mut self, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let mut delivered = 0;
        while let Some((key, event)) = self.deferred.pop_front() {
            let open = match self.slots.get(key) {
                Some(Slot::Stream(stream)) => !stream.closing,
                Some(Slot::Single(single)) => !single.closing,
                None => false,
            };
            if open {
                handler(event.into_event());
                delivered += 1;
            }
        }
        delivered
    }

    /// Starts as many of the receives that found no buffer as there are buffers, in their order.
    fn feed_starved(&mut self) {
        for _ in 0..self.starved.len().min(self.staging.count()) {
            let Some(key) = self.starved.pop_front() else {
                break;
            };
            let Some(stream) = self.open_stream(key) else {
                continue;
            };
            if let Receiving::Starved { limit } = stream.receiving {
                stream.receiving = Receiving::Staging { limit };
                self.arm_receive(key);
            }
        }
    }

    fn resume_listeners(&mut self) {
        let now = Instant::now();
        while let Some(position) = self.paused.iter().position(|(until, _)| *until <= now) {
            let (_, key) = self.paused.swap_remove(position);
            self.arm_single(key);
        }
    }

    /// The time to sleep, cut short if a listener is to resume earlier.
    fn until_resumption(&self, limit: Option<Duration>) -> Option<Duration> {
        let Some(first) = self.paused.iter().map(|(until, _)| *until).min() else {
            return limit;
        };
        let pause = first
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        Some(limit.map_or(pause, |limit| limit.min(pause)))
    }

    fn open_stream(&mut self, key: SocketKey) -> Option<&mut Stream> {
        match self.slots.get_mut(key) {
            Some(Slot::Stream(stream)) if !stream.closing => Some(stream),
            _ => None,
        }
    }

    // Arming: writing submission entries.

    fn arm_waker(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.waker.descriptor().as_raw_fd()), POLL_IN)
            .multi(true)
            .build();
        self.push(
            poll,
            user_data(
                Kind::Waker,
                SocketKey {
                    index: 0,
                    generation: 0,
                },
            ),
        );
    }

    fn arm_single(&mut self, key: SocketKey) {
        let Some(Slot::Single(single)) = self.slots.get_mut(key) else {
            return;
        };
        if single.closing || mem::replace(&mut single.armed, true) {
            return;
        }
        let descriptor = Fd(single.descriptor.as_raw_fd());
        let (entry, kind) = if single.kind == Kind::Accept {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            (
                opcode::AcceptMulti::new(descriptor).flags(flags).build(),
                Kind::Accept,
            )
        } else {
            (opcode::PollAdd::new(descriptor, POLL_IN).build(), Kind::Watch)
        };
        self.push(entry, user_data(kind, key));
    }

    fn arm_receive(&mut self, key: SocketKey) {
        let most = self.staging.len();
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return;
        };
        let descriptor = Fd(stream.descriptor.as_raw_fd());
        let first = if stream.drained { POLL_FIRST } else { 0 };
        let entry = match stream.receiving {
            Receiving::No | Receiving::Starved { .. } | Receiving::Direct { .. } => return,
            Receiving::Staging { limit } => {
                opcode::Recv::new(descriptor, std::ptr::null_mut(), limit.clamp(1, most))
                    .buf_group(STAGING_GROUP)
                    .ioprio(first)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
            Receiving::Landing => {
                // SAFETY: this stream's receive is being armed, so it is not in flight.
                let operation = unsafe { stream.receive.get() };
                match operation.plain() {
                    Some((address, len)) => {
                        // A longer segment is received in several goes, as it would be from a socket anyway.
                        let len = u32::try_from(len).unwrap_or(1 << 30);
                        opcode::Recv::new(descriptor, address, len).ioprio(first).build()
                    }
                    None => opcode::RecvMsg::new(descriptor, operation.header())
                        .ioprio(first)
                        .build(),
                }
            }
        };
        self.push(entry, user_data(Kind::Receive, key));
    }

    fn arm_send(&mut self, key: SocketKey) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return;
        };
        let descriptor = Fd(stream.descriptor.as_raw_fd());
        // Waiting for all lets the kernel continue a short send by itself, without a round trip to here.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        // SAFETY: this stream's send is being armed, so it is not in flight.
        let entry = match unsafe { stream.send.get() }.describe() {
            Outgoing::Plain(address, len) => {
                let len = u32::try_from(len).unwrap_or(1 << 30);
                opcode::Send::new(descriptor, address, len).flags(flags).build()
            }
            Outgoing::Gathered(header) => opcode::SendMsg::new(descriptor, header)
                .flags(flags.cast_unsigned())
                .build(),
        };
        self.push(entry, user_data(Kind::Send, key));
    }

    fn cancel(&mut self, key: SocketKey, kind: Kind) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(user_data(kind, key))).build();
        self.push(entry, user_data(Kind::Cancel, key));
    }

    fn push(&mut self, entry: squeue::Entry, user_data: u64) {
        let entry = entry.user_data(user_data);
        self.in_flight += 1;
        if !self.backlog.is_empty() || !write_entry(&mut self.ring, &entry) {
            self.backlog.push_back(entry);
        }
    }

    fn submit_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            if !write_entry(&mut self.ring, entry) {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Gives a closing slot up once nothing of it is in flight.
    fn settle(&mut self, key: SocketKey) {
        let done = match self.slots.get(key) {
            Some(Slot::Stream(stream)) => stream.closing && stream.is_idle(),
            Some(Slot::Single(single)) => single.closing && !single.armed,
            None => false,
        };
        if done && let Some(Slot::Stream(stream)) = self.slots.remove(key) {
            self.spare.push((stream.receive, stream.send));
        }
    }

    /// Cancels everything and waits until the kernel has let go of all memory; `false` if it did not in time.
    fn drain(&mut self) -> bool {
        self.in_flight -= self.backlog.len();
        self.backlog.clear();
        let deadline = Instant::now() + DRAIN;
        while self.in_flight > 0 {
            // Again in every round: a cancellation misses requests that are just being retried.
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            let cancel = cancel.user_data(user_data(
                Kind::Cancel,
                SocketKey {
                    index: 0,
                    generation: 0,
                },
            ));
            self.in_flight += usize::from(write_entry(&mut self.ring, &cancel));
            let queued = self.ring.submission().len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.enter(queued, true, Some(left.min(DRAIN / 20))).is_err() {
                return false;
            }
            for completion in self.ring.completion() {
                self.in_flight -= usize::from(!cqueue::more(completion.flags()));
                if let Some((Kind::Accept, _)) = parse_user_data(completion.user_data()) {
                    drop(completion::accepted(completion.result()));
                }
            }
        }
        true
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if !self.drain() {
            tracing::warn!(
                operations = self.in_flight,
                "the kernel did not end all operations in time: their memory is leaked"
            );
            self.staging.leak();
            return;
        }
        if let Err(error) = self.ring.submitter().unregister_buf_ring(STAGING_GROUP) {
            tracing::warn!(%error, "the ring of staging buffers cannot be unregistered: its memory is leaked");
            self.staging.leak();
        }
        let streams = self.slots.drain().filter_map(|slot| match slot {
            Slot::Stream(stream) => Some((stream.receive, stream.send)),
            Slot::Single(_) => None,
        });
        for (receive, send) in streams.chain(self.spare.drain(..)) {
            // SAFETY: every completion was taken, so no operation is in flight.
            unsafe { receive.free() };
            // SAFETY: as above.
            unsafe { send.free() };
        }
    }
}

/// `POLLIN` as the ring takes it.
const POLL_IN: u32 = libc::POLLIN.unsigned_abs() as u32;

/// The best ring that the kernel offers: one that runs completions only when this thread asks for them (Linux 6.1),
/// else one that at least does not interrupt it (5.19).
fn create(entries: u32) -> io::Result<IoUring> {
    // A listener's or waker's operation completes many times, and every stream can have two in flight besides.
    let completions = entries.saturating_mul(8);
    let deferred = IoUring::builder()
        .setup_clamp()
        .setup_cqsize(completions)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .setup_clamp()
            .setup_cqsize(completions)
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries),
        other => other,
    }
}

fn write_entry(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: entries are made in this module only, from descriptors that slots keep open until the completion and
    // from memory that nothing touches until then: blocks, registered staging buffers, and the segments and lists
    // that blocks hold.
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// From the top: 8 bits of kind, the key's 24 bits of generation, its 32 bits of index.
fn user_data(kind: Kind, key: SocketKey) -> u64 {
    u64::from(kind as u8) << 56 | u64::from(key.generation) << 32 | u64::from(key.index)
}

fn parse_user_data(user_data: u64) -> Option<(Kind, SocketKey)> {
    let [a, b, c, d, e, f, g, kind] = user_data.to_le_bytes();
    let key = SocketKey {
        index: u32::from_le_bytes([a, b, c, d]),
        generation: u32::from_le_bytes([e, f, g, 0]),
    };
    let kinds = [
        Kind::Receive,
        Kind::Send,
        Kind::Accept,
        Kind::Watch,
        Kind::Waker,
        Kind::Cancel,
    ];
    kinds
        .into_iter()
        .find(|candidate| *candidate as u8 == kind)
        .map(|kind| (kind, key))
}
