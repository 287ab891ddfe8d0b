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

/// A part of a region that is lent. Each has a handle of its own, so that its references can be counted.
#[derive(Debug)]
struct Piece {
    region: Region,
    start: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By power of two from `SMALLEST` on.
    classes: Vec<VecDeque<Piece>>,
    kept: usize,
}

impl Pool {
    /// Memory for `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<Data, MemoryError> {
        self.take_from(len, |size| Region::allocate(size, SMALLEST))
    }

    /// Memory for `len` bytes. Where there is none, `make` makes a region of at least so many bytes, which is lent in parts if it is larger.
    pub(crate) fn take_from(
        &mut self,
        len: usize,
        make: impl FnOnce(usize) -> Result<Region, MemoryError>,
    ) -> Result<Data, MemoryError> {
        let size = len.max(SMALLEST).checked_next_power_of_two().unwrap_or(len);
        let class = (size / SMALLEST).trailing_zeros() as usize;
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, VecDeque::new);
        }
        let Some(pieces) = self.classes.get_mut(class) else {
            return Ok(Data::whole(Region::allocate(len, SMALLEST)?));
        };
        for _ in 0..pieces.len().min(TRIES) {
            let Some(piece) = pieces.pop_front() else { break };
            if piece.region.is_only_clone() {
                let data = piece.region.segment(piece.start..piece.start + len);
                pieces.push_back(piece);
                return data.map(Data::One);
            }
            pieces.push_back(piece);
        }
        if self.kept.saturating_add(size) > KEEP {
            return Ok(Data::One(Region::allocate(size, SMALLEST)?.segment(0..len)?));
        }
        let region = make(size)?;
        let data = region.segment(0..len)?;
        let parts = (region.len() / size).max(1);
        for part in 1..parts {
            pieces.push_front(Piece {
                region: region.handle(),
                start: part * size,
            });
        }
        self.kept = self.kept.saturating_add(region.len());
        let (region, data) = if parts == 1 {
            (region, data)
        } else {
            let handle = region.handle();
            let data = handle.segment(0..len)?;
            (handle, data)
        };
        pieces.push_back(Piece { region, start: 0 });
        Ok(Data::One(data))
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
    fn a_region_is_lent_in_parts() {
        let mut pool = Pool::default();
        let mut made = 0;
        let mut take = |pool: &mut Pool| {
            pool.take_from(4096, |size| {
                made += 1;
                Region::allocate(4 * size, SMALLEST)
            })
            .unwrap()
        };
        let lent: Vec<Data> = (0..4).map(|_| take(&mut pool)).collect();
        let mut addresses: Vec<_> = lent.iter().map(address).collect();
        let first = addresses[0];
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!((addresses.len(), pool.kept), (4, 16384));
        drop(lent);
        let again = take(&mut pool);
        let fifth = take(&mut pool);
        assert!(addresses.contains(&address(&again)) && address(&again) != address(&fifth));
        assert_eq!(made, 1);
        assert!(addresses.contains(&first));
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
