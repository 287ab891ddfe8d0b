//! A shard's buffers for RDMA: parts of few large regions, each of which a device registers once.
//!
//! A region is cut into halves, quarters and so on down to 4 KiB as buffers are wanted, and put together again as neighbours are free,
//! so that a large buffer can be had after any number of small ones. Regions are added as they are needed up to a bound in bytes, and stay.
//! When nothing is free, commands wait (see `Engine`), nothing fails.
//!
//! Who gives a buffer back says so ([`Arena::put`]), and may only do so when no work request names it any more: the connection
//! and the executors see to that. Who may have how many for as long as a host likes is decided as in [`Pool`](crate::pool::Pool).

use homi_queue::{Data, Region, Segment};

const SMALLEST: usize = 4096;
/// Bytes of a region, at least: few registrations, and no more memory than a small node needs.
const REGION: usize = 2 << 20;
/// No block.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the middle of a larger block.
    Inside,
    /// The beginning of a free block of this class.
    Free(u8),
    /// The beginning of a buffer of this class.
    Used(u8),
}

/// The smallest piece of a region; what is here describes the block that begins with it.
#[derive(Debug, Clone, Copy)]
struct Block {
    state: State,
    previous: u32,
    next: u32,
}

/// Buffers of powers of two, cut out of regions.
#[derive(Debug)]
pub(crate) struct Arena {
    regions: Vec<Region>,
    /// First address of each region and its index, by address.
    order: Vec<(usize, usize)>,
    /// Blocks of 4 KiB of all regions, region by region.
    blocks: Vec<Block>,
    /// The first free block of each class.
    free: Vec<u32>,
    /// Regions that [`Arena::next_new`] has told of.
    told: usize,
    /// Regions that there may be.
    most: usize,
    /// Bytes of each region.
    region: usize,
    /// Bytes of the largest buffer.
    largest: usize,
    /// Bytes in free blocks.
    idle: usize,
    /// Bytes of buffers that wait for hosts.
    lent: usize,
}

impl Arena {
    /// An arena of about `budget` bytes, in buffers of up to `largest` bytes (at least one of these fits). It has no memory yet.
    pub(crate) fn new(budget: usize, largest: usize) -> Self {
        let largest = size_of_class(class_of(largest));
        let region = largest.max(REGION);
        Self {
            regions: Vec::new(),
            order: Vec::new(),
            blocks: Vec::new(),
            free: vec![NONE; usize::from(class_of(region)) + 1],
            told: 0,
            most: budget.div_ceil(region).max(1),
            region,
            largest,
            idle: 0,
            lent: 0,
        }
    }

    /// An arena of these regions of `len` bytes each, a power of two of at least 4096, which are all that it will have.
    pub(crate) fn over(regions: Vec<Region>, len: usize) -> Self {
        let mut arena = Self::new(0, len);
        arena.region = len;
        arena.free = vec![NONE; usize::from(class_of(len)) + 1];
        arena.most = regions.len();
        for region in regions {
            // There are no more than this many.
            let _ = arena.add(region);
        }
        arena.told = arena.regions.len();
        arena
    }

    /// Bytes of the buffer for `len` bytes.
    pub(crate) fn size_of(len: usize) -> usize {
        size_of_class(class_of(len))
    }

    /// Bytes that are free.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// The next region that came since this was asked last.
    #[inline]
    pub(crate) fn next_new(&mut self) -> Option<&Region> {
        let region = self.regions.get(self.told)?;
        self.told += 1;
        Some(region)
    }

    fn region_len(&self) -> usize {
        self.region
    }

    fn blocks_per_region(&self) -> usize {
        self.region_len() / SMALLEST
    }

    /// The region that holds this address, whole, to be registered.
    #[cfg(any(feature = "rdma", test))]
    pub(crate) fn region_at(&self, address: usize) -> Option<&Region> {
        self.regions.get(self.find(address)?)
    }

    /// The index of the region that holds this address.
    fn find(&self, address: usize) -> Option<usize> {
        let after = self.order.partition_point(|(base, _)| *base <= address);
        let (base, index) = *self.order.get(after.checked_sub(1)?)?;
        (address - base < self.region_len()).then_some(index)
    }

    /// Whether a connection that holds `held` bytes of buffers for as long as its host likes may have another one for `len` bytes: if as
    /// much as it holds then is left for others, or if nobody holds any.
    pub(crate) fn may_lend(&self, held: usize, len: usize) -> bool {
        let size = size_of_class(class_of(len));
        let available = self.idle + (self.most - self.regions.len()) * self.region_len();
        match available.checked_sub(size) {
            Some(left) => self.lent == 0 || left >= held + size,
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

    /// A buffer of `len` bytes, or `None` when there is none (or `len` is beyond the largest class).
    pub(crate) fn take(&mut self, len: usize) -> Option<Data> {
        if len > self.largest {
            return None;
        }
        let class = class_of(len);
        let from = match self.smallest_free(class) {
            Some(from) => from,
            None => {
                self.grow()?;
                self.smallest_free(class)?
            }
        };
        let block = *self.free.get(usize::from(from))?;
        self.unlink(block, from);
        // The upper halves stay free.
        for half in (class..from).rev() {
            self.link(block + blocks_of(half), half);
        }
        self.set(block, State::Used(class));
        self.idle -= size_of_class(class);
        let index = block as usize / self.blocks_per_region();
        let start = (block as usize % self.blocks_per_region()) * SMALLEST;
        let region = self.regions.get(index)?;
        region.segment(start..start + len).ok().map(Data::One)
    }

    /// Takes back a buffer that nothing uses any more, and returns what it counts; `None` if it is none of these.
    pub(crate) fn put(&mut self, data: &Data) -> Option<usize> {
        let Data::One(segment) = data else { return None };
        let (mut block, mut class) = self.used(segment)?;
        let size = size_of_class(class);
        self.idle += size;
        self.set(block, State::Inside);
        let top = class_of(self.region_len());
        while class < top {
            // Blocks are aligned to their size within their region, whose number of blocks is a power of two.
            let neighbour = block ^ blocks_of(class);
            if self.state(neighbour) != State::Free(class) {
                break;
            }
            self.unlink(neighbour, class);
            self.set(neighbour, State::Inside);
            block = block.min(neighbour);
            class += 1;
        }
        self.link(block, class);
        Some(size)
    }

    /// The block and class of a buffer in use.
    fn used(&self, segment: &Segment) -> Option<(u32, u8)> {
        let address = segment.host_address() as usize;
        let index = self.find(address)?;
        let start = address - self.regions.get(index)?.host_address() as usize;
        if !start.is_multiple_of(SMALLEST) {
            return None;
        }
        let block = u32::try_from(index * self.blocks_per_region() + start / SMALLEST).ok()?;
        match self.state(block) {
            State::Used(class) => Some((block, class)),
            State::Inside | State::Free(_) => None,
        }
    }

    fn smallest_free(&self, class: u8) -> Option<u8> {
        let mut classes = (0..).zip(&self.free).skip(usize::from(class));
        classes.find(|(_, first)| **first != NONE).map(|(class, _)| class)
    }

    /// Adds a region.
    #[cold]
    fn grow(&mut self) -> Option<()> {
        if self.regions.len() >= self.most {
            return None;
        }
        let region = Region::allocate(self.region_len(), SMALLEST).ok()?;
        self.add(region)
    }

    fn add(&mut self, region: Region) -> Option<()> {
        let first = u32::try_from(self.blocks.len()).ok()?;
        u32::try_from(self.blocks.len() + self.blocks_per_region())
            .ok()
            .filter(|end| *end < NONE)?;
        let base = region.host_address() as usize;
        let at = self.order.partition_point(|(other, _)| *other < base);
        self.order.insert(at, (base, self.regions.len()));
        self.regions.push(region);
        let empty = Block {
            state: State::Inside,
            previous: NONE,
            next: NONE,
        };
        self.blocks
            .resize(self.blocks.len() + self.blocks_per_region(), empty);
        self.idle += self.region_len();
        self.link(first, class_of(self.region_len()));
        Some(())
    }

    fn state(&self, block: u32) -> State {
        self.blocks
            .get(block as usize)
            .map_or(State::Inside, |block| block.state)
    }

    fn set(&mut self, block: u32, state: State) {
        if let Some(block) = self.blocks.get_mut(block as usize) {
            block.state = state;
        }
    }

    /// Puts a block at the front of its class' list.
    fn link(&mut self, block: u32, class: u8) {
        let Some(first) = self.free.get_mut(usize::from(class)) else {
            return;
        };
        let next = std::mem::replace(first, block);
        if let Some(next) = self.blocks.get_mut(next as usize) {
            next.previous = block;
        }
        if let Some(block) = self.blocks.get_mut(block as usize) {
            *block = Block {
                state: State::Free(class),
                previous: NONE,
                next,
            };
        }
    }

    /// Takes a block out of its class' list.
    fn unlink(&mut self, block: u32, class: u8) {
        let Some(&Block { previous, next, .. }) = self.blocks.get(block as usize) else {
            return;
        };
        match self.blocks.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => {
                if let Some(first) = self.free.get_mut(usize::from(class)) {
                    *first = next;
                }
            }
        }
        if let Some(next) = self.blocks.get_mut(next as usize) {
            next.previous = previous;
        }
    }
}

fn class_of(len: usize) -> u8 {
    let size = len.max(SMALLEST).next_power_of_two();
    u8::try_from((size / SMALLEST).trailing_zeros()).unwrap_or(u8::MAX)
}

fn size_of_class(class: u8) -> usize {
    SMALLEST << class
}

fn blocks_of(class: u8) -> u32 {
    1 << class
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(data: &Data) -> usize {
        data.segments()[0].host_address() as usize
    }

    #[test]
    fn buffers_are_bounded_apart_and_used_again() {
        let mut arena = Arena::new(4 << 20, 1 << 20);
        let mut held: Vec<Data> = std::iter::from_fn(|| arena.take(5000)).collect();
        assert_eq!(held.len(), (4 << 20) / 8192);
        let mut addresses: Vec<usize> = held.iter().map(address).collect();
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 8192));
        assert!(addresses.iter().all(|address| address % 4096 == 0));
        assert!(arena.take(1).is_none());
        let last = held.pop().unwrap();
        let at = address(&last);
        assert_eq!(arena.put(&last), Some(8192));
        assert_eq!(arena.put(&last), None, "twice");
        assert_eq!(address(&arena.take(8192).unwrap()), at);
        assert!(arena.take((1 << 20) + 1).is_none());
    }

    #[test]
    fn small_buffers_become_large_ones_again() {
        let mut arena = Arena::new(2 << 20, 1 << 20);
        for round in 0..3 {
            let mut small: Vec<Data> = std::iter::from_fn(|| arena.take(4096)).collect();
            assert_eq!(small.len(), 512);
            // In another order than they were taken.
            let step = [1, 7, 129][round];
            small.sort_by_key(|data| (address(data) / 4096 * step) % 512);
            for data in &small {
                assert_eq!(arena.put(data), Some(4096));
            }
            let large = [arena.take(1 << 20).unwrap(), arena.take(1 << 20).unwrap()];
            assert!(arena.take(1).is_none());
            for data in &large {
                assert_eq!(arena.put(data), Some(1 << 20));
            }
        }
        assert_eq!(arena.idle, 2 << 20);
    }

    #[test]
    fn foreign_memory_is_not_taken() {
        let mut arena = Arena::new(2 << 20, 1 << 20);
        let data = arena.take(16384).unwrap();
        let part = Data::One(data.segments()[0].part(4096, 4096).unwrap());
        let odd = Data::One(data.segments()[0].part(64, 64).unwrap());
        let other = Data::whole(Region::allocate(4096, 4096).unwrap());
        for foreign in [&part, &odd, &other, &Data::None] {
            assert_eq!(arena.put(foreign), None);
        }
        assert!(arena.region_at(address(&part)).is_some());
        assert!(arena.region_at(address(&other)).is_none());
        assert_eq!(arena.put(&data), Some(16384));
    }

    #[test]
    fn nobody_gets_everything_for_as_long_as_it_likes() {
        let mut arena = Arena::new(8 << 20, 64 << 10);
        let mut before = usize::MAX;
        for _ in 0..5 {
            let mut own = 0;
            while arena.may_lend(own, 8192) {
                arena.take(8192).unwrap();
                own += arena.lend(8192);
            }
            assert!(own > 0 && own <= before, "{own} of {before}");
            before = own;
        }
        assert!(arena.may_lend(0, 4096));
        let mut small = Arena::new(4096, 2 << 20);
        assert!(
            small.may_lend(0, 2 << 20),
            "a lone connection gets what one command needs"
        );
        small.take(2 << 20).unwrap();
        small.lend(2 << 20);
        assert!(!small.may_lend(0, 4096));
    }
}
