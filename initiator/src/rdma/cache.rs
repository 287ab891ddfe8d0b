//! [`Cache`]: registrations by address, bounded, without knowing what a registration is.

/// Registrations of one protection domain.
#[derive(Debug)]
pub(super) struct Cache<M> {
    /// By first address. Ranges may overlap: the same memory under several names.
    entries: Vec<Entry<M>>,
    /// Of entries that are not pinned.
    count: usize,
    bytes: usize,
    limits: CacheLimits,
    clock: u64,
}

/// How much is kept that nobody asked to keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheLimits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entry<M> {
    base: usize,
    len: usize,
    memory: M,
    pins: u32,
    used: u64,
}

impl<M> Entry<M> {
    fn holds(&self, start: usize, len: usize) -> bool {
        start
            .checked_sub(self.base)
            .is_some_and(|at| at <= self.len && self.len - at >= len)
    }
}

/// How many neighbours with a lower address are tried, for ranges that overlap.
const NEIGHBOURS: usize = 8;

impl<M: Clone> Cache<M> {
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            entries: Vec::new(),
            count: 0,
            bytes: 0,
            limits,
            clock: 0,
        }
    }

    fn position(&self, start: usize, len: usize) -> Option<usize> {
        let after = self.entries.partition_point(|entry| entry.base <= start);
        (after.saturating_sub(NEIGHBOURS)..after).rev().find(|index| {
            self.entries
                .get(*index)
                .is_some_and(|entry| entry.holds(start, len))
        })
    }

    /// The registration that these bytes lie in.
    pub(super) fn find(&mut self, start: usize, len: usize) -> Option<M> {
        let index = self.position(start, len)?;
        self.clock += 1;
        let entry = self.entries.get_mut(index)?;
        entry.used = self.clock;
        Some(entry.memory.clone())
    }

    /// Keeps a registration; `pinned` ones until they are unpinned. Makes room for it first, and returns whether something had to go for it.
    pub(super) fn insert(&mut self, base: usize, len: usize, memory: M, pinned: bool) -> bool {
        self.clock += 1;
        let mut removed = false;
        if !pinned {
            removed = self.make_room(len);
            self.count += 1;
            self.bytes = self.bytes.saturating_add(len);
        }
        let at = self.entries.partition_point(|entry| entry.base <= base);
        self.entries.insert(
            at,
            Entry {
                base,
                len,
                memory,
                pins: u32::from(pinned),
                used: self.clock,
            },
        );
        removed
    }

    /// Removes what was not used for the longest time until there is room for one more of `len` bytes.
    fn make_room(&mut self, len: usize) -> bool {
        let mut removed = false;
        while self.count > 0
            && (self.count >= self.limits.entries || self.bytes.saturating_add(len) > self.limits.bytes)
        {
            let oldest = self
                .entries
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.pins == 0);
            let Some((index, _)) = oldest.min_by_key(|(_, entry)| entry.used) else {
                break;
            };
            self.remove(index);
            removed = true;
        }
        removed
    }

    fn remove(&mut self, index: usize) {
        let entry = self.entries.remove(index);
        if entry.pins == 0 {
            self.count -= 1;
            self.bytes -= entry.len;
        }
    }

    /// Pins the registration of exactly this range, if there is one.
    pub(super) fn pin(&mut self, base: usize, len: usize) -> bool {
        let Some(entry) = self.exactly(base, len) else {
            return false;
        };
        entry.pins += 1;
        if entry.pins == 1 {
            self.count -= 1;
            self.bytes -= len;
        }
        true
    }

    /// Takes a pin back; returns whether the registration went with the last one.
    pub(super) fn unpin(&mut self, base: usize, len: usize) -> bool {
        let Some(index) = self
            .entries
            .iter()
            .position(|entry| entry.base == base && entry.len == len && entry.pins > 0)
        else {
            return false;
        };
        let Some(entry) = self.entries.get_mut(index) else {
            return false;
        };
        entry.pins -= 1;
        if entry.pins > 0 {
            return false;
        }
        // Counted from here on, as `remove` expects.
        self.count += 1;
        self.bytes = self.bytes.saturating_add(len);
        self.remove(index);
        true
    }

    fn exactly(&mut self, base: usize, len: usize) -> Option<&mut Entry<M>> {
        self.entries
            .iter_mut()
            .find(|entry| entry.base == base && entry.len == len)
    }

    /// Forgets the registrations that these bytes lie in, unless they are pinned; returns whether there were any.
    pub(super) fn forget(&mut self, start: usize, len: usize) -> bool {
        self.retain(|entry| entry.pins > 0 || !entry.holds(start, len))
    }

    /// Forgets what is not pinned and idle; returns whether there was any.
    pub(super) fn sweep(&mut self, idle: impl Fn(&M) -> bool) -> bool {
        self.retain(|entry| entry.pins > 0 || !idle(&entry.memory))
    }

    fn retain(&mut self, keep: impl Fn(&Entry<M>) -> bool) -> bool {
        let before = self.entries.len();
        let (mut count, mut bytes) = (0, 0_usize);
        self.entries.retain(|entry| {
            let kept = keep(entry);
            if kept && entry.pins == 0 {
                count += 1;
                bytes += entry.len;
            }
            kept
        });
        (self.count, self.bytes) = (count, bytes);
        self.entries.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LIMITS: CacheLimits = CacheLimits {
        entries: 3,
        bytes: 1000,
    };

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let mut cache = Cache::new(LIMITS);
        for (name, base) in [(1, 1000), (2, 2000), (3, 3000)] {
            assert!(!cache.insert(base, 100, name, false));
        }
        assert_eq!(cache.find(1000, 100), Some(1));
        assert!(cache.insert(4000, 100, 4, false), "a fourth is too many");
        assert_eq!(cache.find(2000, 1), None);
        assert_eq!((cache.find(1050, 50), cache.find(3099, 1)), (Some(1), Some(3)));
        assert!(cache.insert(5000, 900, 5, false), "too many bytes");
        assert_eq!((cache.count, cache.bytes), (1 + 1, 1000));
        assert_eq!((cache.find(3000, 1), cache.find(5899, 1)), (Some(3), Some(5)));
    }

    #[test]
    fn a_range_must_lie_inside_whole() {
        let mut cache = Cache::new(LIMITS);
        cache.insert(1000, 100, (), false);
        for (start, len, inside) in [
            (1000, 100, true),
            (1099, 1, true),
            (1100, 0, true),
            (999, 2, false),
            (1099, 2, false),
            (1000, 101, false),
            (usize::MAX, 1, false),
            (1001, usize::MAX, false),
        ] {
            assert_eq!(cache.find(start, len).is_some(), inside, "{start} {len}");
        }
    }

    #[test]
    fn overlapping_ranges_are_all_found() {
        let mut cache = Cache::new(LIMITS);
        cache.insert(1000, 500, "outer", false);
        cache.insert(1100, 100, "inner", false);
        assert_eq!(cache.find(1100, 100), Some("inner"));
        assert_eq!(cache.find(1150, 100), Some("outer"));
        assert!(cache.forget(1120, 10), "both hold these bytes");
        assert_eq!(cache.find(1000, 1), None);
        assert_eq!((cache.count, cache.bytes), (0, 0));
    }

    #[test]
    fn pins_outlive_everything_but_their_owners() {
        let mut cache = Cache::new(LIMITS);
        cache.insert(1000, 5000, (), true);
        assert_eq!((cache.count, cache.bytes), (0, 0), "not counted");
        cache.insert(8000, 100, (), false);
        assert!(cache.pin(8000, 100) && cache.pin(8000, 100) && !cache.pin(8000, 99));
        assert!(!cache.forget(8000, 100) && !cache.sweep(|()| true));
        assert!(!cache.unpin(8000, 100));
        assert!(cache.unpin(8000, 100) && !cache.unpin(8000, 100));
        assert_eq!(cache.find(8000, 1), None);
        assert!(cache.unpin(1000, 5000));
        assert_eq!((cache.count, cache.bytes, cache.entries.len()), (0, 0, 0));
    }

    #[test]
    fn what_nobody_else_has_is_swept() {
        let mut cache = Cache::new(LIMITS);
        let (kept, gone) = (Arc::new(1), Arc::new(2));
        cache.insert(1000, 100, Arc::clone(&kept), false);
        cache.insert(2000, 100, gone, false);
        assert!(cache.sweep(|memory| Arc::strong_count(memory) == 1));
        assert_eq!(cache.find(1000, 1).as_deref(), Some(&1));
        assert_eq!(cache.find(2000, 1), None);
        assert!(!cache.sweep(|memory| Arc::strong_count(memory) == 1));
        assert_eq!((cache.count, cache.bytes, Arc::strong_count(&kept)), (1, 100, 2));
    }
}
