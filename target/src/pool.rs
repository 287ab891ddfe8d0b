//! A shard's buffers for data on its way between the wire and an executor.
//!
//! Buffers come in powers of two from 4 KiB up, aligned to 4 KiB so that direct I/O can use them, and are kept for reuse, the
//! one used last first. The pool is bounded in bytes: when it is empty, commands wait (see `Engine`), nothing fails.

use homi_queue::{Budget, Data, Region};

const SMALLEST: usize = 4096;
const ALIGNMENT: usize = 4096;

/// Buffers by size class, with a budget in bytes.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<Vec<Region>>,
    budget: Budget,
}

impl Pool {
    /// A pool of at most `budget` bytes, in buffers of up to `largest` bytes (at least one of these fits).
    pub(crate) fn new(budget: usize, largest: usize) -> Self {
        let classes = class_of(largest) + 1;
        let budget = Budget::new(budget.max(size_of_class(classes - 1)));
        Self {
            free: vec![Vec::new(); classes],
            budget,
        }
    }

    /// A buffer of `len` bytes, or `None` when the budget is used up (or `len` is beyond the largest class).
    pub(crate) fn take(&mut self, len: usize) -> Option<Data> {
        let class = class_of(len);
        let region = match self.free.get_mut(class)?.pop() {
            Some(region) => region,
            None => self.allocate(class)?,
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
            && region.is_unique()
            && let Some(free) = self.free.get_mut(class)
        {
            free.push(region);
        }
    }

    fn allocate(&mut self, class: usize) -> Option<Region> {
        let size = size_of_class(class);
        if let Ok(Some(region)) = self.budget.allocate(size, ALIGNMENT) {
            return Some(region);
        }
        // Idle buffers of other sizes make room.
        for free in self.free.iter_mut().rev() {
            while free.pop().is_some() {
                if let Ok(Some(region)) = self.budget.allocate(size, ALIGNMENT) {
                    return Some(region);
                }
            }
        }
        None
    }
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
        let held: Vec<Data> = (0..3).map(|_| pool.take(5000).unwrap()).collect();
        assert!(pool.take(1).is_none());
        let address = held[2].segments()[0].host_address();
        for data in held {
            pool.put(data);
        }
        assert_eq!(pool.take(8192).unwrap().segments()[0].host_address(), address);
        assert!(pool.take(8193).is_none());
    }

    #[test]
    fn idle_buffers_of_one_size_make_room_for_another() {
        let mut pool = Pool::new(16384, 16384);
        let small: Vec<Data> = (0..4).map(|_| pool.take(4096).unwrap()).collect();
        assert!(pool.take(16384).is_none());
        for data in small {
            pool.put(data);
        }
        assert!(pool.take(16384).is_some());
    }

    #[test]
    fn a_buffer_still_in_use_is_not_handed_out_again() {
        let mut pool = Pool::new(8192, 4096);
        let data = pool.take(4096).unwrap();
        let still_sending = data.segments()[0].clone();
        let address = still_sending.host_address();
        pool.put(data);
        let next = pool.take(4096).unwrap();
        assert_ne!(next.segments()[0].host_address(), address);
        assert!(pool.take(4096).is_none());
        drop(still_sending);
        assert!(pool.take(4096).is_some());
    }
}
