//! [`IovaAllocator`]: which device addresses are free.

use std::collections::BTreeMap;

use homi_queue::{Iova, IovaRange};

/// Free ranges of an address space. Neighbours are one range; the lowest place that fits is given out.
#[derive(Debug, Default)]
pub struct IovaAllocator {
    /// Length by first address.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// An allocator of these ranges. The page at address 0 is never given out, because 0 means "none" in too many places.
    #[must_use]
    pub fn new(ranges: &[IovaRange], page: u64) -> Self {
        let mut allocator = Self::default();
        for range in ranges {
            let start = range.start().0.max(page);
            let skipped = start - range.start().0;
            let Some(len) = range.len().checked_sub(skipped).filter(|len| *len > 0) else {
                continue;
            };
            allocator.insert(start, len);
        }
        allocator
    }

    /// Takes `len` bytes whose first address leaves `offset` when divided by `align`, or returns `None` when there is no such place.
    pub fn take(&mut self, len: u64, align: u64, offset: u64) -> Option<IovaRange> {
        let align = align.max(1);
        let offset = offset % align;
        let found = self.free.iter().find_map(|(start, free)| {
            let skip = (offset + align - start % align) % align;
            let needed = skip.checked_add(len)?;
            (needed <= *free).then_some((*start, *free, skip))
        });
        let (start, free, skip) = found?;
        let range = IovaRange::new(Iova(start + skip), len).ok()?;
        self.free.remove(&start);
        if skip > 0 {
            self.free.insert(start, skip);
        }
        if free - skip > len {
            self.free.insert(start + skip + len, free - skip - len);
        }
        Some(range)
    }

    /// Gives a range back that [`take`](Self::take) gave out.
    pub fn give_back(&mut self, range: IovaRange) {
        if !range.is_empty() {
            self.insert(range.start().0, range.len());
        }
    }

    /// Forgets free addresses that lie in none of these ranges; the page at address 0 stays out.
    pub fn keep_only(&mut self, ranges: &[IovaRange], page: u64) {
        let allowed = Self::new(ranges, page);
        let mut kept = Self::default();
        for (start, len) in &self.free {
            // Last bytes are compared: ends may be past the last address.
            let last = start + (len - 1);
            for (from, more) in &allowed.free {
                let (first, end) = (*start.max(from), last.min(from + (more - 1)));
                if first <= end {
                    kept.insert(first, end - first + 1);
                }
            }
        }
        *self = kept;
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.values().fold(0, |sum, len| sum.saturating_add(*len))
    }

    fn insert(&mut self, mut start: u64, mut len: u64) {
        if let Some((before, free)) = self.free.range(..start).next_back().map(|(s, l)| (*s, *l))
            && before.checked_add(free) == Some(start)
        {
            self.free.remove(&before);
            start = before;
            len += free;
        }
        if let Some(end) = start.checked_add(len)
            && let Some(after) = self.free.remove(&end)
        {
            len += after;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, len: u64) -> IovaRange {
        IovaRange::new(Iova(start), len).unwrap()
    }

    #[test]
    fn the_first_page_is_never_given_out() {
        let mut allocator = IovaAllocator::new(&[range(0, 0x3000), range(0x8000, 0x1000)], 0x1000);
        assert_eq!(allocator.free_bytes(), 0x3000);
        assert_eq!(allocator.take(0x1000, 0x1000, 0), Some(range(0x1000, 0x1000)));
        assert_eq!(allocator.take(0x2000, 0x1000, 0), None);
        assert_eq!(allocator.take(0x1000, 0x8000, 0), Some(range(0x8000, 0x1000)));
        allocator.give_back(range(0x1000, 0x1000));
        assert_eq!(allocator.take(0x2000, 0x1000, 0), Some(range(0x1000, 0x2000)));
        assert_eq!(allocator.take(u64::MAX, 1, 0), None);
    }

    #[test]
    fn a_range_at_the_end_of_the_address_space_can_be_used() {
        let mut allocator = IovaAllocator::new(&[range(u64::MAX - 0xfff, 0x1000)], 0x1000);
        let all = allocator.take(0x1000, 0x1000, 0).unwrap();
        assert_eq!(all.end(), None);
        allocator.give_back(all);
        assert_eq!(allocator.free_bytes(), 0x1000);
    }

    #[test]
    fn addresses_that_are_no_longer_usable_are_forgotten() {
        let mut allocator =
            IovaAllocator::new(&[range(0x1000, 0x9000), range(u64::MAX - 0xfff, 0x1000)], 0x1000);
        let out = allocator.take(0x2000, 1, 0).unwrap();
        allocator.keep_only(
            &[
                range(0, 0x5000),
                range(0x8000, 0x1000),
                range(u64::MAX - 0xfff, 0x1000),
            ],
            0x1000,
        );
        assert_eq!(allocator.free_bytes(), 0x2000 + 0x1000 + 0x1000);
        assert_eq!(allocator.take(0x2000, 1, 0), Some(range(0x3000, 0x2000)));
        assert_eq!(allocator.take(0x1000, 1, 0), Some(range(0x8000, 0x1000)));
        allocator.give_back(out);
        assert_eq!(allocator.take(0x2000, 1, 0), Some(out));
    }

    proptest! {
        #[test]
        fn what_is_out_never_overlaps(steps in proptest::collection::vec((any::<bool>(), 1_u64..40, 0_u32..6, any::<u16>()), 0..200)) {
            let whole = range(0x1000, 0x10_0000);
            let mut allocator = IovaAllocator::new(&[whole], 0x1000);
            let mut out: Vec<IovaRange> = Vec::new();
            for (take, pages, shift, pick) in steps {
                if take {
                    let align = 0x1000_u64 << shift;
                    let offset = u64::from(pick) * 0x1000 % align;
                    if let Some(got) = allocator.take(pages * 0x1000, align, offset) {
                        prop_assert_eq!(got.start().0 % align, offset);
                        prop_assert!(whole.locate(got.start(), got.len()).is_some());
                        for other in &out {
                            prop_assert!(got.start() >= other.end().unwrap() || other.start() >= got.end().unwrap());
                        }
                        out.push(got);
                    }
                } else if !out.is_empty() {
                    allocator.give_back(out.swap_remove(usize::from(pick) % out.len()));
                }
                let used: u64 = out.iter().map(IovaRange::len).sum();
                prop_assert_eq!(allocator.free_bytes() + used, whole.len());
            }
            for range in out {
                allocator.give_back(range);
            }
            prop_assert_eq!(allocator.take(whole.len(), 1, 0), Some(whole));
        }
    }
}
