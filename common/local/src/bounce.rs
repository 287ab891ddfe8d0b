//! [`Bounce`]: aligned memory of a queue, for what cannot go straight to the issuer's.
//!
//! Memory is taken by size and comes back by being dropped, wherever that happens: the pool keeps a reference to every
//! region, and a region is free again when that reference is the only one. A read's memory that was lent to the
//! issuer is therefore reused as soon as the issuer lets go of it, with no channel back.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use homi_queue::{Budget, MemoryError, Region, Segment};

/// Alignment of every region: what direct I/O needs on any drive in use.
pub(crate) const ALIGNMENT: usize = 4096;
/// Bytes of the smallest class; each next one doubles.
const SMALLEST: usize = 4096;
/// Number of classes: up to 1 MiB.
const CLASSES: usize = 9;
/// Bytes that a queue keeps; what is needed beyond that is allocated and freed.
const KEPT: usize = 64 << 20;
/// How many regions in use are passed over before another one is allocated.
const LOOKED_AT: usize = 64;

#[derive(Debug)]
pub(crate) struct Bounce {
    classes: [VecDeque<Region>; CLASSES],
    budget: Budget,
    zeroes: Option<Region>,
}

impl Bounce {
    pub(crate) fn new() -> Self {
        Self {
            classes: Default::default(),
            budget: Budget::new(KEPT),
            zeroes: None,
        }
    }

    /// `len` bytes, with whatever is in them.
    pub(crate) fn take(&mut self, len: usize) -> Result<Segment, MemoryError> {
        let size = len.max(SMALLEST).next_power_of_two();
        let class = (size / SMALLEST).trailing_zeros() as usize;
        let Some(class) = self.classes.get_mut(class) else {
            return Region::allocate(len, ALIGNMENT)?.segment(0..len);
        };
        for _ in 0..LOOKED_AT.min(class.len()) {
            let Some(region) = class.pop_front() else { break };
            let free = region.is_unique();
            let segment = if free { Some(region.segment(0..len)?) } else { None };
            class.push_back(region);
            if let Some(segment) = segment {
                // Whoever held the region before, perhaps on another thread, is done with the bytes.
                fence(Ordering::Acquire);
                return Ok(segment);
            }
        }
        match self.budget.allocate(size, ALIGNMENT)? {
            Some(region) => {
                let segment = region.segment(0..len)?;
                class.push_back(region);
                Ok(segment)
            }
            None => Region::allocate(len, ALIGNMENT)?.segment(0..len),
        }
    }

    /// `len` (up to `limit`) bytes of zeroes, which nobody may write; `limit` is the same in every call.
    pub(crate) fn zeroes(&mut self, len: usize, limit: usize) -> Result<Segment, MemoryError> {
        let region = match &self.zeroes {
            Some(region) => region,
            None => self.zeroes.insert(Region::allocate(limit, ALIGNMENT)?),
        };
        region.segment(0..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_memory_is_used_again_and_held_memory_is_not() {
        let mut bounce = Bounce::new();
        let first = bounce.take(4096).unwrap();
        let address = first.host_address();
        let second = bounce.take(100).unwrap();
        assert_ne!(second.host_address(), address);
        drop(first);
        assert_eq!(bounce.take(512).unwrap().host_address(), address);
        drop(second);
        assert_eq!(bounce.budget.used(), 8192);
    }

    #[test]
    fn memory_is_aligned_and_large_or_plentiful_memory_is_not_kept() {
        let mut bounce = Bounce::new();
        for len in [1, 4096, 4097, 1 << 20, (1 << 20) + 1, 5 << 20] {
            let segment = bounce.take(len).unwrap();
            assert_eq!(
                (segment.len(), segment.host_address() as usize % ALIGNMENT),
                (len, 0)
            );
        }
        let held: Vec<_> = (0..100).map(|_| bounce.take(1 << 20).unwrap()).collect();
        assert!(bounce.budget.used() <= KEPT);
        drop(held);
        assert!(bounce.take(1 << 20).is_ok());
    }
}
