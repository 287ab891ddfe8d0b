//! [`Words`]: memory as entries of a queue, for whoever looks at them with every operation.
#![expect(
    unsafe_code,
    reason = "refers to a region's words without asking the region for its address each time"
)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use crate::memory::Region;

/// A region (or its end) as entries of `N` words each, which devices and other threads may change at the same time. As
/// [`Region::words`], but what does not change is found out once.
pub struct Words<const N: usize> {
    first: NonNull<[AtomicU64; N]>,
    count: usize,
    /// Keeps the memory in place, and keeps it from being borrowed.
    region: Region,
}

// SAFETY: what is given out is a shared reference to atomics, in memory that the region keeps alive; a region may be sent.
unsafe impl<const N: usize> Send for Words<N> {}
// SAFETY: as above; a region may be shared.
unsafe impl<const N: usize> Sync for Words<N> {}

impl<const N: usize> Words<N> {
    /// `count` entries of a region, after the first `skip`; `None` if it does not begin at a multiple of 8 or has not so many.
    #[must_use]
    pub fn new(region: Region, skip: usize, count: usize) -> Option<Self> {
        let (entries, _) = region.words()?.as_chunks::<N>();
        let entries = entries.get(skip..)?.get(..count)?;
        let (first, count) = (NonNull::from(entries).cast(), entries.len());
        Some(Self { first, count, region })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// An entry.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<&[AtomicU64; N]> {
        if index >= self.count {
            return None;
        }
        // SAFETY: `first` is the first of `count` entries in one slice, and `index` is below that.
        let entry = unsafe { self.first.add(index) };
        // SAFETY: the entry lies in the region's words, which live as long as the region that `self` holds, wherever `self` is moved; that
        // shared references to them may exist is said in `Region::words`.
        Some(unsafe { entry.as_ref() })
    }
}

impl<const N: usize> fmt::Debug for Words<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words")
            .field("len", &self.count)
            .field("region", &self.region)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn entries_are_the_regions_words() {
        let region = Region::allocate(100, 8).unwrap();
        let words = Words::<2>::new(region.clone(), 1, 5).unwrap();
        assert_eq!((words.len(), words.is_empty()), (5, false));
        assert!(words.get(5).is_none() && words.get(usize::MAX).is_none());
        let [low, high] = words.get(4).unwrap();
        low.store(1, Ordering::Relaxed);
        high.store(2, Ordering::Relaxed);
        let all = region.words().unwrap();
        assert_eq!(all[10].load(Ordering::Relaxed), 1);
        assert_eq!(all[11].load(Ordering::Relaxed), 2);
        assert!(!words.region().is_unique());
    }

    #[test]
    fn what_is_not_there_is_none() {
        let region = Region::allocate(64, 8).unwrap();
        assert_eq!(Words::<8>::new(region.clone(), 1, 0).unwrap().len(), 0);
        assert!(Words::<8>::new(region.clone(), 2, 0).is_none());
        assert!(Words::<2>::new(region.clone(), 1, 4).is_none());
        assert!(Words::<1>::new(region.part(4..64).unwrap(), 0, 1).is_none());
    }
}
