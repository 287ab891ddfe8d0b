//! [`Pool`]: memory for reads whose issuer does not care where the bytes land.
//!
//! Regions are lent and come back by themselves: the pool keeps a reference to each, and one that nobody else refers to
//! is free. They are tried oldest first, since what was lent longest ago is most likely back.

use std::collections::VecDeque;

use homi_queue::{Data, MemoryError, Region};

/// Smallest region, in bytes: sizes are rounded up to powers of two from here.
const SMALLEST: usize = 4096;
/// How many lent regions to look at before another one is made.
const TRIES: usize = 4;
/// Bytes that a pool keeps at most; what is lent beyond is freed when it comes back.
const KEEP: usize = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By power of two from `SMALLEST` on.
    classes: Vec<VecDeque<Region>>,
    kept: usize,
}

impl Pool {
    /// Memory for `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<Data, MemoryError> {
        let size = len.max(SMALLEST).checked_next_power_of_two().unwrap_or(len);
        let class = (size / SMALLEST).trailing_zeros() as usize;
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, VecDeque::new);
        }
        let Some(regions) = self.classes.get_mut(class) else {
            return Ok(Data::whole(Region::allocate(len, SMALLEST)?));
        };
        for _ in 0..regions.len().min(TRIES) {
            let Some(region) = regions.pop_front() else { break };
            if region.is_unique() {
                let data = region.segment(0..len).map(Data::One);
                regions.push_back(region);
                return data;
            }
            regions.push_back(region);
        }
        let region = Region::allocate(size, SMALLEST)?;
        let data = region.segment(0..len).map(Data::One);
        if self.kept.saturating_add(size) <= KEEP {
            self.kept += size;
            regions.push_back(region);
        }
        data
    }

    /// Gives the memory back to the system; what is lent stays valid.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(data: &Data) -> *mut u8 {
        data.segments()[0].host_address()
    }

    #[test]
    fn what_comes_back_is_lent_again() {
        let mut pool = Pool::default();
        let first = pool.take(4096).unwrap();
        let second = pool.take(4096).unwrap();
        assert_ne!(address(&first), address(&second));
        let was = address(&first);
        drop(first);
        let third = pool.take(100).unwrap();
        assert_eq!((address(&third), third.len()), (was, 100));
        let fourth = pool.take(4096).unwrap();
        assert!(address(&fourth) != was && address(&fourth) != address(&second));
    }

    #[test]
    fn sizes_do_not_mix_and_the_total_is_bounded() {
        let mut pool = Pool::default();
        let large = pool.take(5000).unwrap();
        assert_eq!((large.len(), pool.kept), (5000, 8192));
        let lent: Vec<Data> = (0..100).map(|_| pool.take(1 << 20).unwrap()).collect();
        assert!(pool.kept <= KEEP);
        assert!(lent.iter().all(|data| data.len() == 1 << 20));
        pool.clear();
        assert!(pool.is_empty());
        lent[0].write(0, &[1; 16]).unwrap();
        assert_eq!(pool.take(0).unwrap().len(), 0);
    }
}
