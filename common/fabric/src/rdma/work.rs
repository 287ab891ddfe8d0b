//! What is to be posted to a queue pair: [`Work`], and the send queue's accounting.

use std::fmt;

use homi_queue::{Data, RemoteAddress, RemoteKey, Segment};

/// Names a posted work request until it is completed: a count that wraps. The upper half of a verbs `wr_id` is left to
/// the runtime, which has to find the connection by it or by the queue pair's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkId(pub u32);

impl fmt::Display for WorkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "work request {:#x}", self.0)
    }
}

/// One work request of a post list. It borrows the connection: write it into the list, then ask for the next.
#[derive(Debug)]
pub struct Work<'a> {
    /// What to report its completion with.
    pub id: WorkId,
    /// An index below the send queue's depth that no other outstanding work request has: where a runtime keeps the bytes
    /// of a send that cannot be inlined.
    pub ring: u16,
    /// Whether it must complete visibly. The others are retired by the next one that does.
    pub signaled: bool,
    /// What it does.
    pub operation: Operation<'a>,
}

/// What a work request does.
#[derive(Debug)]
pub enum Operation<'a> {
    /// Sends a capsule.
    Send(Capsule<'a>),
    /// RDMA WRITE of local memory to the host's. Only controllers do that.
    Write {
        /// Where to.
        remote: Remote,
        /// Where from: as many bytes.
        local: Span<'a>,
    },
    /// RDMA READ of the host's memory into local memory. Only controllers do that.
    Read {
        /// Where from.
        remote: Remote,
        /// Where to: as many bytes.
        local: Span<'a>,
    },
}

/// A capsule to send: `entry`, then `list`, then `payload`.
#[derive(Debug)]
pub struct Capsule<'a> {
    /// The command (64 bytes) or the completion (16 bytes). It lives until the next call only: inline it or copy it.
    pub entry: &'a [u8],
    /// Descriptors that follow the command, mostly none. As short-lived as `entry`.
    pub list: &'a [u8],
    /// Data in the capsule, referred to until the work request is completed. Its work request is signaled.
    pub payload: Span<'a>,
    /// The peer's key to invalidate: a SEND_WITH_INVALIDATE.
    pub invalidate: Option<RemoteKey>,
}

impl Capsule<'_> {
    /// Bytes that have to be copied by inlining or staging: everything but the payload.
    #[must_use]
    pub fn copied_len(&self) -> usize {
        self.entry.len() + self.list.len()
    }

    /// Bytes of the capsule.
    #[must_use]
    pub fn len(&self) -> usize {
        self.copied_len() + self.payload.len()
    }

    /// Whether the capsule has no bytes, which none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory of the host, as a descriptor of a command named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// First byte.
    pub address: RemoteAddress,
    /// Its key.
    pub key: RemoteKey,
    /// Bytes.
    pub len: u32,
}

/// A stretch of an operation's memory.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    data: &'a Data,
    at: usize,
    len: usize,
}

/// One piece of a [`Span`]: bytes side by side in one region, never none.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The segment that it is part of.
    pub segment: &'a Segment,
    /// Offset of its first byte in the segment's *region*.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

static NOTHING: Data = Data::None;

impl<'a> Span<'a> {
    pub(super) fn new(data: &'a Data, at: usize, len: usize) -> Self {
        Self { data, at, len }
    }

    pub(super) fn empty() -> Self {
        Self::new(&NOTHING, 0, 0)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order, at most as many as the connection's parameters allow for a work request.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let (mut skip, mut left) = (self.at, self.len);
        self.data.segments().iter().filter_map(move |segment| {
            let inside = segment.len().saturating_sub(skip).min(left);
            let start = segment.start() + skip.min(segment.len());
            skip = skip.saturating_sub(segment.len());
            left -= inside;
            (inside > 0).then_some(Piece {
                segment,
                start,
                len: inside,
            })
        })
    }
}

/// How many bytes of `data` from `at` on lie in `pieces` pieces: at most `most`.
fn reach(data: &Data, at: usize, most: usize, pieces: u16) -> usize {
    Span::new(data, at, most)
        .pieces()
        .take(usize::from(pieces))
        .map(|piece| piece.len)
        .sum()
}

/// Number of pieces that a whole transfer has, counted up to `most`.
pub(super) fn pieces_up_to(data: &Data, most: u16) -> usize {
    Span::new(data, 0, data.len())
        .pieces()
        .take(usize::from(most))
        .count()
}

/// How far a transfer between local and remote memory has been cut into work requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cursor {
    /// Bytes cut off.
    pub(super) done: u32,
    remote: u16,
    within: u32,
}

/// A part of a transfer that one work request can move.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) remote: Remote,
    /// Offset of the first byte in the local memory; it has as many as `remote`.
    pub(super) at: usize,
}

impl Cursor {
    /// Cuts the next chunk off a transfer of `total` bytes, or returns `None` after the last: it lies in one remote
    /// range and in at most `pieces` local ones. Nothing outside either memory is ever named, whatever the lengths say.
    pub(super) fn next(&mut self, remotes: &[Remote], data: &Data, total: u32, pieces: u16) -> Option<Chunk> {
        let left = total.checked_sub(self.done).filter(|left| *left > 0)?;
        let at = self.done as usize;
        loop {
            let remote = remotes.get(usize::from(self.remote))?;
            let inside = remote.len.saturating_sub(self.within);
            if inside == 0 {
                self.remote += 1;
                self.within = 0;
                continue;
            }
            let most = inside.min(left);
            let len = u32::try_from(reach(data, at, most as usize, pieces)).ok()?;
            // Where the memory ends early nothing is left to cut.
            if len == 0 {
                return None;
            }
            let address = remote.address.checked_add(self.within.into())?;
            self.done += len;
            self.within += len;
            return Some(Chunk {
                remote: Remote {
                    address,
                    key: remote.key,
                    len,
                },
                at,
            });
        }
    }
}

/// The send queue of one queue pair: how much of it is in use, and who has to signal.
#[derive(Debug)]
pub(super) struct SendQueue {
    depth: u16,
    /// Work requests ever posted.
    posted: u32,
    /// Of those, the ones known to be over.
    retired: u32,
    /// Of those, the ones that are not: RDMA READs that work requests behind them were done before.
    overtaken: u16,
    ring: u16,
    /// Posted since the last signaled one.
    unsignaled: u16,
    signal_every: u16,
}

/// A place in the send queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) id: WorkId,
    pub(super) ring: u16,
    pub(super) signaled: bool,
}

impl SendQueue {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            depth,
            posted: 0,
            retired: 0,
            overtaken: 0,
            ring: 0,
            unsignaled: 0,
            // Some work request among those that fill the queue is always signaled, so a full queue empties by itself.
            // With little room, every other one: data is written silently, then its response sent.
            signal_every: (depth / 4).max(depth.min(4) / 2).clamp(1, 32),
        }
    }

    pub(super) fn outstanding(&self) -> u16 {
        // Never more than `depth`: `post` is only called when there is room.
        u16::try_from(self.ahead())
            .unwrap_or(u16::MAX)
            .saturating_add(self.overtaken)
    }

    fn ahead(&self) -> u32 {
        self.posted.wrapping_sub(self.retired)
    }

    pub(super) fn set_overtaken(&mut self, reads: usize) {
        self.overtaken = u16::try_from(reads).unwrap_or(u16::MAX);
    }

    pub(super) fn room(&self) -> u16 {
        self.depth.saturating_sub(self.outstanding())
    }

    pub(super) fn post(&mut self, must_signal: bool) -> Ticket {
        let signaled = must_signal || self.unsignaled + 1 >= self.signal_every;
        self.unsignaled = if signaled { 0 } else { self.unsignaled + 1 };
        let ticket = Ticket {
            id: WorkId(self.posted),
            ring: self.ring,
            signaled,
        };
        self.posted = self.posted.wrapping_add(1);
        self.ring = if self.ring + 1 >= self.depth {
            0
        } else {
            self.ring + 1
        };
        ticket
    }

    /// Takes note that a work request and all before it are over; false if it is not outstanding.
    pub(super) fn retire(&mut self, id: WorkId) -> bool {
        let ahead = id.0.wrapping_sub(self.retired);
        if ahead >= self.ahead() {
            return false;
        }
        self.retired = id.0.wrapping_add(1);
        true
    }

    pub(super) fn retire_all(&mut self) {
        self.retired = self.posted;
        self.overtaken = 0;
    }

    /// Whether a work request that was posted is over.
    pub(super) fn is_over(&self, id: WorkId) -> bool {
        // Outstanding ones are few, so everything else is behind.
        id.0.wrapping_sub(self.retired) >= self.ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_queue::Region;
    use proptest::prelude::*;

    #[test]
    fn a_full_queue_always_has_a_signaled_request() {
        for depth in 1..200_u16 {
            let mut queue = SendQueue::new(depth);
            // Ids that wrap in the middle.
            queue.posted = u32::MAX - 100;
            queue.retired = queue.posted;
            let mut signaled = Vec::new();
            for _ in 0..1000 {
                while queue.room() > 0 {
                    let ticket = queue.post(false);
                    assert!(ticket.ring < depth);
                    if ticket.signaled {
                        signaled.push(ticket.id);
                    }
                }
                assert!(!signaled.is_empty(), "depth {depth}");
                let first = signaled.remove(0);
                assert!(!queue.is_over(first));
                assert!(queue.retire(first));
                assert!(queue.is_over(first));
                assert!(!queue.retire(first), "twice");
            }
        }
    }

    proptest! {
        #[test]
        fn chunks_cover_both_memories_once(
            remotes in proptest::collection::vec(0_u32..50, 0..8),
            locals in proptest::collection::vec(0_usize..50, 0..8),
            total in 0_u32..250,
            pieces in 1_u16..4,
        ) {
            let remotes: Vec<Remote> = (0_u64..).zip(remotes)
                .map(|(index, len)| Remote { address: RemoteAddress(index * 1000), key: RemoteKey(7), len })
                .collect();
            let data = Data::List(locals.iter().map(|len| {
                Region::allocate(len + 8, 8).unwrap().segment(4..4 + len).unwrap()
            }).collect());
            let offered: u32 = remotes.iter().map(|remote| remote.len).sum();
            let here = u32::try_from(data.len()).unwrap();
            let mut cursor = Cursor::default();
            let mut moved = 0;
            while let Some(chunk) = cursor.next(&remotes, &data, total, pieces) {
                prop_assert_eq!(chunk.at, moved as usize);
                prop_assert!(chunk.remote.len > 0);
                let range = chunk.remote.address.0 % 1000 + u64::from(chunk.remote.len);
                let whole = remotes[usize::try_from(chunk.remote.address.0 / 1000).unwrap()].len;
                prop_assert!(range <= u64::from(whole));
                let span = Span::new(&data, chunk.at, chunk.remote.len as usize);
                prop_assert!(span.pieces().count() <= usize::from(pieces));
                prop_assert_eq!(span.pieces().map(|piece| piece.len).sum::<usize>(), span.len());
                for piece in span.pieces() {
                    prop_assert!(piece.start >= 4 && piece.start + piece.len <= 4 + piece.segment.len());
                }
                moved += chunk.remote.len;
            }
            prop_assert_eq!(moved, total.min(offered).min(here));
        }
    }
}
