//! A shard's buffers for data on its way between the wire and an executor.
//!
//! Buffers come in powers of two from 4 KiB up, aligned to 4 KiB so that direct I/O can use them, and are kept for reuse, the
//! one used last first. Those of one size are parts of larger regions, so that drives, which map regions, map few. The pool is bounded in bytes: when it is empty, commands wait (see `Engine`), nothing fails.
//!
//! A buffer for data that a host has still to send, or to take, is held for as long as that host likes. So a connection gets such
//! a buffer only while as much as it holds is left for others ([`Pool::may_lend`]), and none of them ever comes from the
//! [`RESERVE`] for data that has arrived in a capsule, which only executors hold.

use std::collections::{HashMap, VecDeque};

use homi_queue::{Budget, Data, Region};

const SMALLEST: usize = 4096;
const ALIGNMENT: usize = 4096;
/// How many buffers that are being sent are looked at when one is wanted: those sent first are free first, but for hosts that do
/// not take theirs.
const LOOKED_AT: usize = 16;
/// How often buffers are looked for in vain that a connection may have dropped when it ended: what the kernel has of it comes later.
const LOOKS: u32 = 64;
/// Bytes beyond the configured ones for data that came in a capsule: as much as a capsule can carry.
const RESERVE: usize = 64 << 10;

/// Of how many regions a full pool consists at most, where buffers are shorter than that makes them.
const REGIONS: usize = 64;
/// Bytes of a region that is cut into several buffers, at most.
const LARGEST_REGION: usize = 1 << 20;

/// A region and the class of the buffers that it is cut into.
#[derive(Debug)]
struct Base {
    handle: Region,
    class: usize,
}

/// What becomes of the regions that buffers are parts of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// It is new.
    New(&'a Region),
    /// It goes: whoever keeps it keeps its bytes from being used.
    Going(&'a Region),
}

/// Buffers by size class, with a budget in bytes.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<Vec<Region>>,
    /// How often buffers that were dropped are still looked for, when one is missed.
    suspect: u32,
    /// The regions that buffers are parts of. Each is a handle that only its parts refer to, whoever else keeps the region.
    bases: Vec<Base>,
    /// Bytes of a region that is cut into buffers.
    region: usize,
    budget: Budget,
    /// Bytes of the budget.
    capacity: usize,
    /// Bytes in `free`.
    idle: usize,
    /// Bytes of buffers that wait for hosts.
    lent: usize,
    /// Buffers that are being sent: free as soon as nobody else refers to them.
    sending: VecDeque<Region>,
}

impl Pool {
    /// A pool of at most `budget` bytes, in buffers of up to `largest` bytes (at least one of these fits).
    pub(crate) fn new(budget: usize, largest: usize) -> Self {
        let classes = class_of(largest) + 1;
        let capacity = budget.max(size_of_class(classes - 1)) + RESERVE;
        let region = (capacity / REGIONS + 1).next_power_of_two() / 2;
        Self {
            free: vec![Vec::new(); classes],
            bases: Vec::new(),
            suspect: 0,
            region: region.clamp(SMALLEST, LARGEST_REGION),
            budget: Budget::new(capacity),
            capacity,
            idle: 0,
            lent: 0,
            sending: VecDeque::new(),
        }
    }

    /// Whether a connection that holds `held` bytes of buffers for as long as its host likes may have another one for `len` bytes:
    /// if as much as it holds then is left for others, or if nobody holds any.
    pub(crate) fn may_lend(&mut self, held: usize, len: usize) -> bool {
        self.reclaim(LOOKED_AT);
        self.lends(held, len) || (self.recover() && self.lends(held, len))
    }

    fn lends(&self, held: usize, len: usize) -> bool {
        let size = size_of_class(class_of(len));
        let available = self.capacity.saturating_sub(self.budget.used()) + self.idle;
        match available.checked_sub(size + RESERVE) {
            Some(left) => (self.lent == 0 && self.sending.is_empty()) || left >= held + size,
            None => false,
        }
    }

    /// A buffer for `len` bytes waits for a host from now on. Returns what it counts.
    pub(crate) fn lend(&mut self, len: usize) -> usize {
        let size = size_of_class(class_of(len));
        self.lent += size;
        size
    }

    /// Buffers that count `size` no longer wait.
    pub(crate) fn settle(&mut self, size: usize) {
        self.lent = self.lent.saturating_sub(size);
    }

    /// A buffer of `len` bytes, or `None` when the budget is used up (or `len` is beyond the largest class). Regions that come or have to
    /// go for it are shown to `changed`.
    pub(crate) fn take(&mut self, len: usize, changed: impl FnMut(Change<'_>)) -> Option<Data> {
        let class = class_of(len);
        if self.free.get(class)?.is_empty() {
            self.reclaim(LOOKED_AT);
        }
        let region = match self.free.get_mut(class)?.pop() {
            Some(region) => {
                self.idle -= region.len();
                region
            }
            None => self.allocate(class, changed)?,
        };
        region.segment(0..len).ok().map(Data::One)
    }

    /// Takes back a buffer that an operation is done with.
    pub(crate) fn put(&mut self, data: Data) {
        let Data::One(segment) = data else { return };
        let region = segment.region().clone();
        drop(segment);
        let class = class_of(region.len());
        if region.len() == size_of_class(class)
            && region.is_only_clone()
            && let Some(free) = self.free.get_mut(class)
        {
            self.idle += region.len();
            free.push(region);
        } else {
            // It comes back when whoever has it as well drops it.
            self.suspect = LOOKS;
        }
    }

    /// Remembers a buffer that is about to be sent, to use it again afterwards.
    pub(crate) fn sending(&mut self, data: &Data) {
        if let Data::One(segment) = data {
            self.sending.push_back(segment.region().clone());
        }
    }

    /// Takes back buffers that were sent, after a look at so many.
    fn reclaim(&mut self, most: usize) {
        for _ in 0..self.sending.len().min(most) {
            let Some(region) = self.sending.pop_front() else {
                return;
            };
            if !region.is_only_clone() {
                self.sending.push_back(region);
                continue;
            }
            if let Some(free) = self.free.get_mut(class_of(region.len())) {
                self.idle += region.len();
                free.push(region);
            }
        }
    }

    fn allocate(&mut self, class: usize, mut changed: impl FnMut(Change<'_>)) -> Option<Region> {
        if self.recover()
            && let Some(region) = self.free.get_mut(class)?.pop()
        {
            self.idle -= region.len();
            return Some(region);
        }
        if let Some(region) = self.cut(class, &mut changed) {
            return Some(region);
        }
        // Regions of other sizes all of whose buffers are idle make room.
        self.reclaim(usize::MAX);
        for other in (0..self.free.len()).rev().filter(|other| *other != class) {
            while let Some(region) = self.give_up(other) {
                if region.len().is_multiple_of(size_of_class(class)) {
                    // Where it is registered, it stays so.
                    return self.divide(&region, class);
                }
                changed(Change::Going(&region));
                drop(region);
                if let Some(region) = self.cut(class, &mut changed) {
                    return Some(region);
                }
            }
        }
        None
    }

    /// Makes buffers of one size of a new region, if the budget allows, and returns one of them.
    fn cut(&mut self, class: usize, changed: &mut impl FnMut(Change<'_>)) -> Option<Region> {
        let size = size_of_class(class);
        // Near the budget's end, a single one.
        let whole = [self.region.max(size), size]
            .into_iter()
            .find_map(|len| self.budget.allocate(len, ALIGNMENT).ok().flatten())?;
        changed(Change::New(&whole));
        self.divide(&whole, class)
    }

    /// Makes buffers of one size of a region and returns one of them.
    fn divide(&mut self, whole: &Region, class: usize) -> Option<Region> {
        let size = size_of_class(class);
        let handle = whole.handle();
        let mut parts = cut_up(&handle, size);
        let first = parts.pop()?;
        self.idle += parts.len() * size;
        self.free.get_mut(class)?.append(&mut parts);
        self.bases.push(Base { handle, class });
        Some(first)
    }

    /// Finds buffers again that were dropped instead of given back: those of connections that broke. A region is whole again when nobody
    /// has any part of it but the pool. Says whether there were any.
    fn recover(&mut self) -> bool {
        if self.suspect == 0 {
            return false;
        }
        let start = |region: &Region| region.root().host_address() as usize;
        let mut idle: HashMap<usize, usize> = HashMap::new();
        for region in self.free.iter().flatten() {
            *idle.entry(start(region)).or_default() += 1;
        }
        let mut found = false;
        for Base { handle, class } in &self.bases {
            let (size, at) = (size_of_class(*class), start(handle));
            let had = idle.get(&at).copied().unwrap_or(0);
            let Some(free) = self.free.get_mut(*class) else {
                continue;
            };
            if had == handle.len() / size {
                continue;
            }
            let mut kept: Vec<usize> = Vec::new();
            if had > 0 {
                free.retain(|region| {
                    let own = start(region) == at;
                    if own {
                        kept.push(region.host_address() as usize - at);
                    }
                    !own
                });
            }
            if handle.is_only_clone() {
                let parts = cut_up(handle, size);
                self.idle += (parts.len() - had) * size;
                free.extend(parts);
                found = true;
            } else {
                // As they were.
                let parts = kept.into_iter().map(|at| handle.part(at..at + size));
                free.extend(parts.filter_map(Result::ok));
            }
        }
        if !found {
            self.suspect -= 1;
        }
        found
    }

    /// A connection ended, whose buffers may be dropped instead of given back, now or a little later.
    pub(crate) fn suspect(&mut self) {
        self.suspect = LOOKS;
    }

    /// Takes a region of one size out of which every buffer is idle.
    fn give_up(&mut self, class: usize) -> Option<Region> {
        let size = size_of_class(class);
        let free = self.free.get_mut(class)?;
        let start = |region: &Region| region.root().host_address() as usize;
        free.sort_unstable_by_key(start);
        let idle = free
            .chunk_by(|one, other| start(one) == start(other))
            .map(|chunk| (start(&chunk[0]), chunk.len(), chunk[0].root().len()))
            .find(|(_, buffers, len)| buffers * size == *len);
        let (address, buffers, _) = idle?;
        let whole = free
            .iter()
            .find(|region| start(region) == address)?
            .root()
            .clone();
        free.retain(|region| start(region) != address);
        self.bases.retain(|base| start(&base.handle) != address);
        self.idle -= buffers * size;
        Some(whole)
    }
}

fn cut_up(whole: &Region, size: usize) -> Vec<Region> {
    let parts = (0..whole.len() / size).map(|number| whole.part(number * size..(number + 1) * size));
    parts.filter_map(Result::ok).collect()
}

fn class_of(len: usize) -> usize {
    let size = len.max(SMALLEST).next_power_of_two();
    (size / SMALLEST).trailing_zeros() as usize
}

fn size_of_class(class: usize) -> usize {
    SMALLEST << class
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_bounded() {
        let mut pool = Pool::new(3 * 8192, 8192);
        let held: Vec<Data> = (0..3 + RESERVE / 8192)
            .map(|_| pool.take(5000, |_| {}).unwrap())
            .collect();
        assert!(pool.take(1, |_| {}).is_none());
        let address = held[held.len() - 1].segments()[0].host_address();
        for data in held {
            pool.put(data);
        }
        assert_eq!(
            pool.take(8192, |_| {}).unwrap().segments()[0].host_address(),
            address
        );
        assert!(pool.take(8193, |_| {}).is_none());
    }

    #[test]
    fn idle_buffers_of_one_size_make_room_for_another() {
        let mut pool = Pool::new(16384, 16384);
        let small: Vec<Data> = (0..4 + RESERVE / 4096)
            .map(|_| pool.take(4096, |_| {}).unwrap())
            .collect();
        assert!(pool.take(16384, |_| {}).is_none());
        for data in small {
            pool.put(data);
        }
        assert!(pool.take(16384, |_| {}).is_some());
    }

    #[test]
    fn buffers_that_are_dropped_come_back_though_somebody_keeps_their_regions() {
        let mut pool = Pool::new(4 << 20, 1 << 20);
        let mut kept = Vec::new();
        let mut going = 0;
        let mut change = |change: Change<'_>| match change {
            Change::New(region) => kept.push(region.clone()),
            Change::Going(region) => {
                going += 1;
                kept.retain(|known| known.host_address() != region.host_address());
            }
        };
        let mut held: Vec<Data> = std::iter::from_fn(|| pool.take(4096, &mut change)).collect();
        assert_eq!(held.len(), ((4 << 20) + RESERVE) / 4096);
        // Some go back, one stays, the others are dropped with their connections.
        let stays = held.pop().unwrap();
        for data in held.drain(..10) {
            pool.put(data);
        }
        drop(held);
        assert!(!pool.may_lend(0, 1 << 20));
        pool.suspect();
        assert!(pool.may_lend(0, 1 << 20));
        let large = pool.take(1 << 20, &mut change).unwrap();
        let small: Vec<Data> = std::iter::from_fn(|| pool.take(4096, &mut change)).collect();
        // The region of the one that stayed is whole again when that goes.
        let used = ((4 << 20) + RESERVE - (1 << 20) - pool.region) / 4096;
        assert_eq!(
            small.len(),
            used,
            "all of it is used again, and no more than there is"
        );
        let mut addresses: Vec<usize> = small
            .iter()
            .chain([&stays, &large])
            .map(|data| data.segments()[0].host_address() as usize)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), used + 2, "nobody has what another has");
        assert!(going > 0);
    }

    #[test]
    fn a_buffer_still_in_use_is_not_handed_out_again() {
        let mut pool = Pool::new(8192, 4096);
        let _reserve: Vec<Data> = (0..RESERVE / 4096)
            .map(|_| pool.take(4096, |_| {}).unwrap())
            .collect();
        let data = pool.take(4096, |_| {}).unwrap();
        let still_sending = data.segments()[0].clone();
        let address = still_sending.host_address();
        pool.put(data);
        let next = pool.take(4096, |_| {}).unwrap();
        assert_ne!(next.segments()[0].host_address(), address);
        assert!(pool.take(4096, |_| {}).is_none());
        drop(still_sending);
        assert!(pool.take(4096, |_| {}).is_some());
    }

    #[test]
    fn nobody_gets_everything_for_as_long_as_it_likes() {
        let mut pool = Pool::new(64 * 8192, 8192);
        let mut held = Vec::new();
        // One connection gets half, the next half of the rest, and so on: something is left for every other one.
        let mut before = usize::MAX;
        for _ in 0..5 {
            let mut own = 0;
            while pool.may_lend(own, 8192) {
                held.push(pool.take(8192, |_| {}).unwrap());
                own += pool.lend(8192);
            }
            assert!(own > 0 && own <= before, "{own} of {before}");
            before = own;
        }
        assert!(pool.may_lend(0, 4096));
        // Data that has come is not concerned.
        for _ in 0..RESERVE / 8192 {
            held.push(pool.take(8192, |_| {}).unwrap());
        }
        // A lone connection gets what a single command needs.
        let mut small = Pool::new(8192, 8192);
        assert!(small.may_lend(0, 8192));
        let data = small.take(8192, |_| {}).unwrap();
        small.lend(8192);
        assert!(!small.may_lend(0, 4096));
        drop((held, data));
    }
}
