//! [`Adapter`]: what one shard has of one RDMA device, shared by its connections over that device.

use std::collections::HashMap;
use std::time::Duration;

use homi_fabric::rdma::ReceiveBuffer;
use homi_fabric::time::Instant;
use homi_queue::Region;
use homi_reactor::SocketKey;
use homi_spec::command::SQE_SIZE;
use homi_verbs::{
    CommitError, CompletionQueue, CompletionQueueOptions, Device, MemoryRegion, Pd, Piece, PostError, Qp,
    QpNumber, ReceiveBatch, SharedReceives, VerbsError,
};

use super::registry::Registry;
use crate::slab::Key;

/// Receives whose memory is one registration.
const STEP: u32 = 256;
/// In-capsule data begins at multiples of this, so that direct I/O can use it where it is.
const ALIGNMENT: usize = 4096;
/// Completions that may wait beyond two for each receive: for the send queues.
const SENDS_PER_RECEIVE: u32 = 2;

/// How long a device is kept after its last connection: hosts connect again, and its memory is registered.
const KEEP: Duration = Duration::from_secs(5);

/// How an adapter is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdapterOptions {
    /// Receives that may be promised.
    pub(super) receives: u32,
    /// In-capsule bytes of each.
    pub(super) in_capsule: u32,
    /// Which of the device's completion vectors to use.
    pub(super) vector: u32,
}

/// Memory of one receive.
struct Slot {
    /// Taken while a connection has it.
    buffer: Option<ReceiveBuffer>,
    memory: MemoryRegion,
    /// Where its parts are in that.
    entry: u64,
    data: u64,
}

/// A completion queue, and how the shard sleeps on it.
pub(super) struct Polled {
    pub(super) cq: CompletionQueue,
    pub(super) watched: Option<SocketKey>,
    /// It says when a completion comes.
    pub(super) armed: bool,
    /// It did, and its event is not read yet.
    pub(super) announced: bool,
}

impl Polled {
    fn new(device: &Device, entries: u32, vector: u32) -> Result<Self, VerbsError> {
        let options = CompletionQueueOptions {
            entries,
            sleep: true,
            vector,
        };
        Ok(Self {
            cq: CompletionQueue::new(device, options)?,
            watched: None,
            armed: false,
            announced: false,
        })
    }
}

/// One device of one shard.
pub(super) struct Adapter {
    pub(super) registry: Registry,
    pub(super) shared: Option<SharedReceives>,
    /// Which session a queue pair is of. Numbers of queue pairs that are gone stay until nothing of theirs can be in the completion
    /// queue any more.
    pub(super) sessions: HashMap<QpNumber, Key>,
    pub(super) stale: Vec<QpNumber>,
    /// Receives that are not posted.
    pub(super) free: Vec<u32>,
    slots: Vec<Slot>,
    /// The memory of receives, which drives reach as well: what comes in capsules is written from there.
    pub(super) memory: Vec<Region>,
    pub(super) promised: u32,
    /// Connections that have ended. Some devices lose the receive that a queue pair was filling when it ended (rxe does), so for
    /// each there is one more.
    ended: u32,
    /// Sessions that use it, also those whose queue pair is gone.
    pub(super) users: usize,
    /// Since when it has none.
    pub(super) idle_since: Option<Instant>,
    /// Its device is gone, or of no use any more.
    pub(super) is_lost: bool,
    /// One of its completion queues cannot be polled.
    pub(super) is_broken: bool,
    options: AdapterOptions,
    /// Of shared receives. Apart from what is sent, so that a shard that sleeps is woken by commands and not once more by each response that
    /// was sent.
    pub(super) received: Option<Polled>,
    /// Of everything else.
    pub(super) sent: Polled,
    pub(super) pd: Pd,
    pub(super) device: Device,
}

impl Adapter {
    pub(super) fn new(device: Device, options: AdapterOptions) -> Result<Self, VerbsError> {
        let limits = device.limits();
        let pieces = pieces(options.in_capsule);
        let has_shared = limits.shared_receive_queues > 0
            && limits.shared_receive_pieces >= pieces
            && limits.shared_receive_work_requests >= 64;
        let mut receives = options.receives;
        if has_shared {
            receives = receives.min(limits.shared_receive_work_requests);
        }
        let completions = receives
            .saturating_mul(1 + SENDS_PER_RECEIVE)
            .min(limits.completions);
        // What the completion queue holds is for both.
        receives = receives.min(completions / 2).max(1);
        let options = AdapterOptions { receives, ..options };
        let pd = Pd::new(&device)?;
        let sent = Polled::new(&device, completions, options.vector)?;
        let (mut shared, mut received) = (None, None);
        if has_shared {
            let queue = Polled::new(&device, receives, options.vector)?;
            match SharedReceives::new(&pd, &queue.cq, receives, pieces) {
                Ok(receives) => (shared, received) = (Some(receives), Some(queue)),
                Err(VerbsError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            registry: Registry::new(&pd),
            shared,
            sessions: HashMap::new(),
            stale: Vec::new(),
            free: Vec::new(),
            slots: Vec::new(),
            memory: Vec::new(),
            promised: 0,
            ended: 0,
            users: 0,
            idle_since: None,
            is_lost: false,
            is_broken: false,
            options,
            received,
            sent,
            pd,
            device,
        })
    }

    /// Its completion queues: of what was sent first, since a command that comes may refer to a response that was sent.
    pub(super) fn queues(&mut self) -> impl Iterator<Item = &mut Polled> {
        std::iter::once(&mut self.sent).chain(self.received.as_mut())
    }

    /// Whether it may have more connections.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_lost && !self.is_worn()
    }

    /// When it is to be closed; `None` as long as it is used.
    pub(super) fn kept_until(&self) -> Option<Instant> {
        let keep = if self.is_lost { Duration::ZERO } else { KEEP };
        self.idle_since.map(|since| since + keep)
    }

    /// Pieces of memory of a receive.
    pub(super) fn pieces(&self) -> u32 {
        pieces(self.options.in_capsule)
    }

    /// Promises receives to a queue and sees to it that their memory is there; false if there are not so many.
    pub(super) fn promise(&mut self, entries: u32) -> Result<bool, VerbsError> {
        let promised = self.promised.saturating_add(entries);
        let needed = promised.saturating_add(self.ended);
        if needed > self.options.receives {
            return Ok(false);
        }
        while self.slots.len() < needed as usize {
            self.grow()?;
        }
        self.promised = promised;
        Ok(true)
    }

    /// Takes a promise back: its connection has ended.
    pub(super) fn release(&mut self, entries: u32) {
        self.promised = self.promised.saturating_sub(entries);
        self.ended = self.ended.saturating_add(1);
    }

    /// Whether so many receives may be lost that it should get no more connections: another one takes its place.
    fn is_worn(&self) -> bool {
        self.shared.is_some() && self.ended > self.options.receives / 8
    }

    /// Makes memory for more receives: the commands of all side by side, then their data.
    fn grow(&mut self) -> Result<(), VerbsError> {
        let first = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let count = STEP.min(self.options.receives.saturating_sub(first)).max(1) as usize;
        let size = self.options.in_capsule as usize;
        let stride = size.next_multiple_of(ALIGNMENT);
        let data = (count * SQE_SIZE).next_multiple_of(ALIGNMENT);
        let memory_error = |_| VerbsError::System {
            action: "allocate memory for receives",
            source: std::io::ErrorKind::OutOfMemory.into(),
        };
        let region = Region::allocate(data + count * stride, ALIGNMENT).map_err(memory_error)?;
        let memory = self.registry.register(&region)?;
        for (number, id) in (0..count).zip(first..) {
            let entry = number * SQE_SIZE;
            let data = data + number * stride;
            let segment = |at: usize, len: usize| region.segment(at..at + len).map_err(memory_error);
            self.slots.push(Slot {
                buffer: Some(ReceiveBuffer {
                    id,
                    entry: segment(entry, SQE_SIZE)?,
                    data: (size > 0).then(|| segment(data, size)).transpose()?,
                }),
                memory: memory.clone(),
                entry: entry as u64,
                data: data as u64,
            });
            self.free.push(id);
        }
        self.memory.push(region);
        Ok(())
    }

    /// The buffer of a receive that has completed.
    pub(super) fn take(&mut self, id: u32) -> Option<ReceiveBuffer> {
        self.slots.get_mut(id as usize)?.buffer.take()
    }

    /// A buffer comes back; it is not free before the caller says so.
    pub(super) fn put(&mut self, buffer: ReceiveBuffer) -> u32 {
        let id = buffer.id;
        if let Some(slot) = self.slots.get_mut(id as usize) {
            slot.buffer = Some(buffer);
        }
        id
    }

    /// Posts what is free to the shared queue, if there is one. Returns work requests and lists.
    pub(super) fn post_shared(&mut self) -> (u64, u64) {
        let Self {
            shared: Some(shared),
            free,
            slots,
            options,
            ..
        } = self
        else {
            return (0, 0);
        };
        post(shared.receives(), free, slots, options.in_capsule)
    }

    /// Posts receives to a queue pair's own queue.
    pub(super) fn post_own(&mut self, batch: ReceiveBatch<'_>, free: &mut Vec<u32>) -> (u64, u64) {
        post(batch, free, &self.slots, self.options.in_capsule)
    }
}

/// Posts as many of `free` as there is room for.
fn post(mut batch: ReceiveBatch<'_>, free: &mut Vec<u32>, slots: &[Slot], in_capsule: u32) -> (u64, u64) {
    if free.is_empty() {
        return (0, 0);
    }
    // From the end on, so that what was posted can be cut off.
    let mut pushed = 0;
    for id in free.iter().rev() {
        let Some(slot) = slots.get(*id as usize) else {
            break;
        };
        let pieces = slot_pieces(slot, in_capsule);
        match batch.push(pieces.into_iter().flatten(), u64::from(*id)) {
            Ok(()) => pushed += 1,
            Err(PostError::Full { .. }) => break,
            Err(error) => {
                tracing::error!("cannot post a receive: {error}");
                break;
            }
        }
    }
    if pushed == 0 {
        return (0, 0);
    }
    let posted = match batch.commit() {
        Ok(posted) => posted,
        Err(CommitError { posted, source, .. }) => {
            tracing::error!("cannot post receives: {source}");
            posted
        }
    };
    free.truncate(free.len().saturating_sub(posted as usize));
    (posted.into(), 1)
}

fn slot_pieces(slot: &Slot, in_capsule: u32) -> [Option<Piece>; 2] {
    let piece = |at: u64, len: u64| slot.memory.piece(at..at + len).ok();
    let data = (in_capsule > 0).then(|| piece(slot.data, in_capsule.into()));
    [piece(slot.entry, SQE_SIZE as u64), data.flatten()]
}

fn pieces(in_capsule: u32) -> u32 {
    if in_capsule > 0 { 2 } else { 1 }
}

/// Receives of a queue pair that is gone are free again.
pub(super) fn close(qp: Qp, free: &mut Vec<u32>) {
    qp.close(|_| {}, |token| free.extend(u32::try_from(token)));
}
