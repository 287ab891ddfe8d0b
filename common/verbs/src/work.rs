//! What is posted: [`WorkId`], and the rings and tables that hold on to memory until the device is done with it.
//!
//! A work request is known to the device by 64 bits that this crate chooses: whether it is a receive, a number of the queue that no other
//! queue of the process has, and its place there. A completion is matched by all of them, so that one which is late (its queue is gone, and
//! perhaps another has the same queue pair number) releases nothing.
//!
//! Nothing here touches the device or allocates after construction.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::types::Released;

/// The 64 bits of a work request: receive (1), owner (31), place (32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WorkId(pub(crate) u64);

/// The number of a queue; 31 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    const MASK: u32 = u32::MAX >> 1;

    /// A number that comes again after two thousand million queues.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed) & Self::MASK)
    }
}

impl WorkId {
    fn new(receive: bool, owner: Owner, place: u32) -> Self {
        Self(u64::from(receive) << 63 | u64::from(owner.0) << 32 | u64::from(place))
    }

    /// Whether it was posted to a receive queue.
    pub(crate) fn is_receive(self) -> bool {
        self.0 >> 63 == 1
    }

    /// Its place, if it is of this queue.
    fn place_in(self, receive: bool, owner: Owner) -> Option<u32> {
        let place = u32::try_from(self.0 & u64::from(u32::MAX)).ok()?;
        (Self::new(receive, owner, place) == self).then_some(place)
    }
}

struct Entry {
    token: u64,
}

/// Pieces of memory of every place, as one allocation.
struct Held<H> {
    all: Box<[Option<H>]>,
    per_place: usize,
}

impl<H> Held<H> {
    fn new(places: usize, per_place: usize) -> Self {
        Self {
            all: (0..places.saturating_mul(per_place)).map(|_| None).collect(),
            per_place,
        }
    }

    fn at(&mut self, place: usize) -> &mut [Option<H>] {
        let start = place.saturating_mul(self.per_place);
        self.all
            .get_mut(start..start.saturating_add(self.per_place))
            .unwrap_or(&mut [])
    }

    fn clear(&mut self, place: usize) {
        self.at(place).fill_with(|| None);
    }
}

/// What is posted to a send queue, in order. Completions come in that order too, so one releases everything before it.
pub(crate) struct SendRing<H> {
    owner: Owner,
    entries: Box<[Entry]>,
    held: Held<H>,
    /// The oldest one posted, the next to be posted, and the end of what the batch has so far. They only grow.
    head: u64,
    posted: u64,
    tail: u64,
    /// Work requests without a completion since the last one with.
    silent: u32,
}

impl<H> SendRing<H> {
    pub(crate) fn new(depth: u32, pieces: u32) -> Self {
        Self {
            owner: Owner::next(),
            entries: (0..depth).map(|_| Entry { token: 0 }).collect(),
            held: Held::new(depth as usize, pieces as usize),
            head: 0,
            posted: 0,
            tail: 0,
            silent: 0,
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Work requests for which there is room.
    pub(crate) fn room(&self) -> u32 {
        self.depth() - u32::try_from(self.tail - self.head).unwrap_or(u32::MAX)
    }

    /// Whether anything is posted.
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.posted
    }

    /// The place in the arrays of a position.
    pub(crate) fn place(&self, position: u64) -> usize {
        usize::try_from(position % (self.entries.len() as u64).max(1)).unwrap_or(0)
    }

    /// Positions that the batch has and the device has not.
    pub(crate) fn batch(&self) -> std::ops::Range<u64> {
        self.posted..self.tail
    }

    /// The place of the next one, and what it will hold: to be filled before `push`, or emptied again with `abandon`. `None` if the ring is
    /// full.
    pub(crate) fn next(&mut self) -> Option<(usize, &mut [Option<H>])> {
        if self.room() == 0 {
            return None;
        }
        let place = self.place(self.tail);
        Some((place, self.held.at(place)))
    }

    /// The next one will not come.
    pub(crate) fn abandon(&mut self) {
        let place = self.place(self.tail);
        if self.room() > 0 {
            self.held.clear(place);
        }
    }

    /// Adds the next one to the batch: its place, its id and whether it must have a completion. `None` if the ring is full.
    ///
    /// One in every half ring has a completion whether it was asked for or not: without any, the ring would never have room again.
    pub(crate) fn push(&mut self, token: u64, signalled: bool) -> Option<(usize, WorkId, bool)> {
        if self.room() == 0 {
            return None;
        }
        let place = self.place(self.tail);
        let signalled = signalled || self.silent + 1 >= self.depth().div_ceil(2);
        self.silent = if signalled { 0 } else { self.silent + 1 };
        self.entries.get_mut(place)?.token = token;
        let low = u32::try_from(self.tail & u64::from(u32::MAX)).unwrap_or(0);
        self.tail += 1;
        Some((place, WorkId::new(false, self.owner, low), signalled))
    }

    /// The device took the first `count` of the batch; the others are withdrawn.
    pub(crate) fn commit(&mut self, count: u64) {
        let taken = self.posted.saturating_add(count).min(self.tail);
        for position in taken..self.tail {
            let place = self.place(position);
            self.held.clear(place);
        }
        if taken < self.tail {
            // What was withdrawn may have been the one with a completion: ask for one with the next.
            self.silent = self.depth();
        }
        (self.posted, self.tail) = (taken, taken);
    }

    /// A completion came: everything up to it is released. `false` if it is not of this ring.
    pub(crate) fn complete(&mut self, id: WorkId, released: &mut impl FnMut(Released)) -> bool {
        let Some(low) = id.place_in(false, self.owner) else {
            return false;
        };
        let head = u32::try_from(self.head & u64::from(u32::MAX)).unwrap_or(0);
        let ahead = u64::from(low.wrapping_sub(head));
        if ahead >= self.posted - self.head {
            return false;
        }
        let upto = self.head + ahead;
        while self.head <= upto {
            self.release_head(self.head == upto, released);
        }
        true
    }

    /// Releases all that is left, after the device has forgotten it.
    pub(crate) fn drain(&mut self, released: &mut impl FnMut(Released)) {
        self.commit(0);
        while self.head < self.posted {
            self.release_head(false, released);
        }
    }

    fn release_head(&mut self, completed: bool, released: &mut impl FnMut(Released)) {
        let place = self.place(self.head);
        self.held.clear(place);
        self.head += 1;
        if let Some(entry) = self.entries.get(place) {
            released(Released {
                token: entry.token,
                completed,
            });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Batch,
    Posted,
}

struct Place {
    token: u64,
    bytes: u64,
    sequence: u16,
    state: State,
}

/// What is posted to a receive queue. With a shared one, completions come in any order.
pub(crate) struct ReceiveTable<H> {
    owner: Owner,
    places: Box<[Place]>,
    held: Held<H>,
    free: Vec<u16>,
    /// Places of the batch, in order.
    batch: Vec<u16>,
}

/// The most work requests of a receive queue: places are 16 bits.
pub(crate) const MAX_RECEIVES: u32 = 1 << 16;

impl<H> ReceiveTable<H> {
    /// A table of at most [`MAX_RECEIVES`].
    pub(crate) fn new(depth: u32, pieces: u32) -> Self {
        let depth = depth.min(MAX_RECEIVES);
        Self {
            owner: Owner::next(),
            places: (0..depth)
                .map(|_| Place {
                    token: 0,
                    bytes: 0,
                    sequence: 0,
                    state: State::Free,
                })
                .collect(),
            held: Held::new(depth as usize, pieces as usize),
            free: (0..depth)
                .rev()
                .filter_map(|place| u16::try_from(place).ok())
                .collect(),
            batch: Vec::with_capacity(depth as usize),
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn room(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(u32::MAX)
    }

    /// Places that the batch has and the device has not, in order.
    pub(crate) fn batch(&self) -> &[u16] {
        &self.batch
    }

    /// Whether the device has any.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() + self.batch.len() == self.places.len()
    }

    /// The place of the next one, and what it will hold: to be filled before `push`, or emptied again with `abandon`. `None` if the table is
    /// full.
    pub(crate) fn next(&mut self) -> Option<(usize, &mut [Option<H>])> {
        let place = usize::from(*self.free.last()?);
        Some((place, self.held.at(place)))
    }

    /// The next one will not come.
    pub(crate) fn abandon(&mut self) {
        if let Some(index) = self.free.last() {
            self.held.clear(usize::from(*index));
        }
    }

    /// Adds the next one, of `bytes` bytes, to the batch: its place and id. `None` if the table is full.
    pub(crate) fn push(&mut self, token: u64, bytes: u64) -> Option<(usize, WorkId)> {
        let index = self.free.pop()?;
        let place = self.places.get_mut(usize::from(index))?;
        place.token = token;
        place.bytes = bytes;
        place.sequence = place.sequence.wrapping_add(1);
        place.state = State::Batch;
        let id = u32::from(place.sequence) << 16 | u32::from(index);
        self.batch.push(index);
        Some((usize::from(index), WorkId::new(true, self.owner, id)))
    }

    /// The device took the first `count` of the batch; the others are withdrawn.
    pub(crate) fn commit(&mut self, count: usize) {
        for (number, index) in self.batch.drain(..).enumerate() {
            let Some(place) = self.places.get_mut(usize::from(index)) else {
                continue;
            };
            if number < count {
                place.state = State::Posted;
            } else {
                place.state = State::Free;
                self.held.clear(usize::from(index));
                self.free.push(index);
            }
        }
    }

    /// A completion came: its token and the length of its memory. `None` if it is not of this table.
    pub(crate) fn complete(&mut self, id: WorkId) -> Option<(u64, u64)> {
        let low = id.place_in(true, self.owner)?;
        let index = u16::try_from(low & 0xffff).ok()?;
        let place = self.places.get_mut(usize::from(index))?;
        if place.state != State::Posted || u32::from(place.sequence) != low >> 16 {
            return None;
        }
        place.state = State::Free;
        self.held.clear(usize::from(index));
        self.free.push(index);
        Some((place.token, place.bytes))
    }

    /// Releases all that is left, after the device has forgotten it.
    pub(crate) fn drain(&mut self, released: &mut impl FnMut(u64)) {
        self.commit(0);
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.state == State::Posted {
                place.state = State::Free;
                self.held.clear(index);
                self.free.extend(u16::try_from(index));
                released(place.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Fills the next place with clones of `memory` and pushes it.
    fn send(ring: &mut SendRing<Arc<()>>, token: u64, signalled: bool, memory: &Arc<()>) -> WorkId {
        let (place, held) = ring.next().unwrap();
        held.fill_with(|| Some(memory.clone()));
        let (taken, id, _) = ring.push(token, signalled).unwrap();
        assert_eq!(place, taken);
        id
    }

    fn tokens(ring: &mut SendRing<Arc<()>>, id: WorkId) -> Option<Vec<u64>> {
        let mut tokens = Vec::new();
        ring.complete(id, &mut |one| tokens.push(one.token))
            .then_some(tokens)
    }

    #[test]
    fn a_completion_releases_everything_before_it_and_nothing_after() {
        let mut ring = SendRing::new(4, 2);
        let memory = Arc::new(());
        let ids: Vec<_> = (0..4)
            .map(|token| send(&mut ring, token, token == 1, &memory))
            .collect();
        assert!(ring.next().is_none() && ring.push(9, true).is_none());
        ring.abandon();
        assert_eq!(tokens(&mut ring, ids[0]), None, "not posted yet");
        ring.commit(4);
        assert_eq!(Arc::strong_count(&memory), 9);
        assert_eq!(tokens(&mut ring, ids[1]), Some(vec![0, 1]));
        assert_eq!(Arc::strong_count(&memory), 5);
        assert_eq!(tokens(&mut ring, ids[1]), None, "doubled");
        assert_eq!(tokens(&mut ring, ids[3]), Some(vec![2, 3]));
        assert_eq!((ring.room(), ring.is_empty()), (4, true));
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn a_queue_without_signals_gets_some() {
        let mut ring = SendRing::<()>::new(8, 1);
        assert_eq!((ring.depth(), ring.batch()), (8, 0..0));
        let signals: Vec<bool> = (0..8).map(|_| ring.push(0, false).unwrap().2).collect();
        assert_eq!(signals, [false, false, false, true, false, false, false, true]);
        let mut one = SendRing::<()>::new(1, 1);
        assert!(one.push(0, false).unwrap().2);
    }

    #[test]
    fn what_the_device_refuses_is_withdrawn() {
        let mut ring = SendRing::new(4, 1);
        let memory = Arc::new(());
        let first = send(&mut ring, 1, false, &memory);
        let second = send(&mut ring, 2, true, &memory);
        ring.next().unwrap().1.fill_with(|| Some(memory.clone()));
        assert_eq!(Arc::strong_count(&memory), 4);
        ring.abandon();
        ring.commit(1);
        assert_eq!(Arc::strong_count(&memory), 2);
        assert_eq!(tokens(&mut ring, second), None);
        let (_, third, signalled) = ring.push(3, false).unwrap();
        assert!(signalled, "the signal that was withdrawn is made up for");
        ring.commit(1);
        assert_eq!(first.0 + 1, third.0, "the place is used again");
        assert_eq!(tokens(&mut ring, third), Some(vec![1, 3]));
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn positions_wrap_past_32_bits() {
        let mut ring = SendRing::<()>::new(4, 0);
        let start = u64::from(u32::MAX) - 1;
        (ring.head, ring.posted, ring.tail) = (start, start, start);
        let mut ids = Vec::new();
        for token in 0..4 {
            ids.push(ring.push(token, true).unwrap().1);
        }
        ring.commit(4);
        let mut seen = Vec::new();
        assert!(ring.complete(ids[3], &mut |one| seen.push((one.token, one.completed))));
        assert_eq!(seen, [(0, false), (1, false), (2, false), (3, true)]);
    }

    #[test]
    fn completions_of_other_queues_release_nothing() {
        let (mut one, mut other) = (SendRing::<()>::new(4, 0), SendRing::<()>::new(4, 0));
        let (_, id, _) = one.push(1, true).unwrap();
        let _ = other.push(2, true).unwrap();
        one.commit(1);
        other.commit(1);
        assert!(!other.complete(id, &mut |_| panic!("released")));
        assert!(!other.complete(WorkId(id.0 | 1 << 63), &mut |_| panic!("released")));
        let mut table = ReceiveTable::<()>::new(4, 1);
        assert_eq!(table.complete(id), None);
        assert!(!id.is_receive());
    }

    #[test]
    fn what_is_left_is_drained_in_order() {
        let mut ring = SendRing::<()>::new(4, 0);
        for token in 0..3 {
            let _ = ring.push(token, false).unwrap();
        }
        ring.commit(3);
        let _ = ring.push(3, false).unwrap();
        let mut seen = Vec::new();
        ring.drain(&mut |one| seen.push(one.token));
        assert_eq!(seen, [0, 1, 2], "what was never posted is not reported");
        assert!(ring.is_empty());
    }

    #[test]
    fn receives_complete_in_any_order_and_once() {
        let mut table = ReceiveTable::new(3, 1);
        let memory = Arc::new(());
        let ids: Vec<_> = (0..3)
            .map(|token| {
                table.next().unwrap().1.fill_with(|| Some(memory.clone()));
                table.abandon();
                table.next().unwrap().1.fill_with(|| Some(memory.clone()));
                table.push(token, 10 * token).unwrap().1
            })
            .collect();
        assert!(table.next().is_none() && table.push(9, 0).is_none());
        table.abandon();
        assert_eq!(table.complete(ids[0]), None, "not posted yet");
        table.commit(2);
        assert_eq!(Arc::strong_count(&memory), 3);
        assert_eq!(table.complete(ids[2]), None, "withdrawn");
        assert_eq!(table.complete(ids[1]), Some((1, 10)));
        assert_eq!(table.complete(ids[1]), None, "doubled");
        let (_, again) = table.push(5, 0).unwrap();
        table.commit(1);
        assert!(again.is_receive() && !ids.contains(&again));
        let mut left = Vec::new();
        table.drain(&mut |token| left.push(token));
        left.sort_unstable();
        assert_eq!(left, [0, 5]);
        assert_eq!(Arc::strong_count(&memory), 1);
        assert_eq!((table.room(), table.is_empty()), (3, true));
    }

    #[test]
    fn the_largest_table_uses_every_place() {
        let mut table = ReceiveTable::<()>::new(MAX_RECEIVES, 0);
        assert_eq!((table.room(), table.depth()), (MAX_RECEIVES, MAX_RECEIVES));
        let (place, id) = table.push(7, 1).unwrap();
        assert_eq!((place, table.batch()), (0, &[0][..]));
        table.commit(1);
        assert_eq!(table.complete(id), Some((7, 1)));
    }
}
