//! [`Table`]: where a queue's memory is for the controller, by address. It belongs to one queue, so nothing in it is shared or atomic.

use homi_pci::Mapping;

/// Set in an entry's uses when it goes with the last of them.
const DOOMED: u32 = 1 << 31;
/// How many neighbours with a lower address are tried, for ranges that overlap.
const NEIGHBOURS: usize = 8;
/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// Why an entry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Somebody asked for it: the pin's number.
    Pinned(u64),
    /// It may be used again.
    Cached,
}

struct Entry {
    base: usize,
    len: usize,
    /// What to add to an address, wrapping.
    delta: u64,
    /// Commands in flight that use it, and [`DOOMED`].
    uses: u32,
    kept: Kept,
    /// When it was looked for last.
    used: u64,
    mapping: Mapping,
}

/// The entry that was found last, for which nothing has to be looked up.
#[derive(Clone, Copy)]
struct Last {
    base: usize,
    len: usize,
    delta: u64,
    entry: u32,
}

const NO_LAST: Last = Last {
    base: 0,
    len: 0,
    delta: 0,
    entry: NONE,
};

/// Mappings by address.
pub(crate) struct Table {
    last: Last,
    entries: Vec<Option<Entry>>,
    /// First addresses with their entries, ascending.
    order: Vec<(usize, u32)>,
    free: Vec<u32>,
    clock: u64,
    /// Of entries that are cached.
    cached: usize,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl Table {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Self {
            last: NO_LAST,
            entries: Vec::new(),
            order: Vec::new(),
            free: Vec::new(),
            clock: 0,
            cached: 0,
            bytes: 0,
            most,
            most_bytes,
        }
    }

    /// The entry that was found last and the controller's address, if the bytes lie in it.
    #[inline]
    pub(crate) fn quick(&self, start: usize, len: usize) -> Option<(u32, u64)> {
        let at = start.wrapping_sub(self.last.base);
        (at < self.last.len && len <= self.last.len - at)
            .then(|| (self.last.entry, (start as u64).wrapping_add(self.last.delta)))
    }

    /// The entry that the bytes lie in, and their address for the controller.
    pub(crate) fn find(&mut self, start: usize, len: usize) -> Option<(u32, u64)> {
        if let Some(found) = self.quick(start, len) {
            return Some(found);
        }
        let after = self.order.partition_point(|(base, _)| *base <= start);
        let near = self.order.get(after.saturating_sub(NEIGHBOURS)..after)?;
        let entries = &self.entries;
        let index = near.iter().rev().map(|(_, index)| *index).find(|index| {
            entry(entries, *index).is_some_and(|entry| {
                let at = start - entry.base;
                entry.uses & DOOMED == 0 && at < entry.len && len <= entry.len - at
            })
        })?;
        self.clock += 1;
        let (clock, before) = (self.clock, self.last.entry);
        if let Some(entry) = self.entry(before) {
            entry.used = clock;
        }
        let entry = self.entry(index)?;
        entry.used = clock;
        let delta = entry.delta;
        self.last = Last {
            base: entry.base,
            len: entry.len,
            delta,
            entry: index,
        };
        Some((index, (start as u64).wrapping_add(delta)))
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    /// Counts a command that uses an entry.
    #[inline]
    pub(crate) fn hold(&mut self, index: u32) {
        if let Some(entry) = self.entry(index) {
            entry.uses += 1;
        }
    }

    /// A command that used an entry is over.
    #[inline]
    pub(crate) fn release(&mut self, index: u32) {
        if let Some(entry) = self.entry(index) {
            entry.uses -= 1;
            if entry.uses == DOOMED {
                self.remove(index);
            }
        }
    }

    /// Keeps a mapping. A cached one takes the place of those that were not used for the longest time; one that is larger than all that may
    /// be cached goes with the command that it was made for.
    pub(crate) fn insert(&mut self, mapping: Mapping, kept: Kept) -> u32 {
        let (base, len) = (mapping.memory().host_address() as usize, mapping.memory().len());
        let mut uses = 0;
        if kept == Kept::Cached {
            if len > self.most_bytes || self.most == 0 {
                uses = DOOMED;
            } else {
                self.make_room(len);
                self.cached += 1;
                self.bytes += len;
            }
        }
        self.clock += 1;
        let new = Entry {
            base,
            len,
            delta: mapping.range().start().0.wrapping_sub(base as u64),
            uses,
            kept,
            used: self.clock,
            mapping,
        };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(None);
                u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
            }
        };
        if let Some(place) = self.entries.get_mut(index as usize) {
            *place = Some(new);
        }
        let at = self.order.partition_point(|(other, _)| *other <= base);
        self.order.insert(at, (base, index));
        index
    }

    /// The controller's address of bytes in an entry.
    pub(crate) fn address(&self, index: u32, start: usize) -> u64 {
        entry(&self.entries, index).map_or(0, |entry| (start as u64).wrapping_add(entry.delta))
    }

    fn make_room(&mut self, len: usize) {
        while self.cached > 0
            && (self.cached >= self.most || self.bytes.saturating_add(len) > self.most_bytes)
        {
            let idle = self.order.iter().filter_map(|(_, index)| {
                let entry = entry(&self.entries, *index)?;
                (entry.kept == Kept::Cached && entry.uses == 0).then_some((entry.used, *index))
            });
            let Some((_, oldest)) = idle.min() else { break };
            self.doom(oldest);
        }
    }

    /// Has an entry go as soon as no command uses it.
    fn doom(&mut self, index: u32) {
        if self.last.entry == index {
            self.last = NO_LAST;
        }
        let Some(entry) = self.entry(index) else { return };
        if entry.uses & DOOMED != 0 {
            return;
        }
        let (kept, len) = (entry.kept, entry.len);
        entry.uses |= DOOMED;
        let idle = entry.uses == DOOMED;
        if kept == Kept::Cached {
            self.cached -= 1;
            self.bytes -= len;
        }
        if idle {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: u32) {
        if self.last.entry == index {
            self.last = NO_LAST;
        }
        if let Some(place) = self.entries.get_mut(index as usize)
            && place.take().is_some()
        {
            self.order.retain(|(_, other)| *other != index);
            self.free.push(index);
        }
    }

    /// Forgets cached mappings that the bytes lie in.
    pub(crate) fn forget(&mut self, start: usize, len: usize) {
        let entries = &self.entries;
        let holding: Vec<u32> = self
            .order
            .iter()
            .map(|(_, index)| *index)
            .filter(|index| {
                entry(entries, *index).is_some_and(|entry| {
                    entry.kept == Kept::Cached
                        && start
                            .checked_sub(entry.base)
                            .is_some_and(|at| at <= entry.len && len <= entry.len - at)
                })
            })
            .collect();
        for index in holding {
            self.doom(index);
        }
    }

    /// Takes over what is pinned now, and lets go of what is not any more.
    pub(crate) fn sync(&mut self, pinned: &[(u64, Mapping)]) {
        let mut known = Vec::new();
        let mut gone = Vec::new();
        for (_, index) in &self.order {
            if let Some(Entry {
                kept: Kept::Pinned(id),
                ..
            }) = entry(&self.entries, *index)
            {
                if pinned.iter().any(|(pin, _)| pin == id) {
                    known.push(*id);
                } else {
                    gone.push(*index);
                }
            }
        }
        for index in gone {
            self.doom(index);
        }
        for (id, mapping) in pinned {
            if !known.contains(id) {
                self.insert(mapping.clone(), Kept::Pinned(*id));
            }
        }
    }

    /// Keeps everything mapped for ever: the controller may still use it.
    pub(crate) fn leak(&mut self) {
        for entry in self.entries.drain(..).flatten() {
            std::mem::forget(entry.mapping);
        }
        self.order.clear();
        self.free.clear();
        self.last = NO_LAST;
    }
}

fn entry(entries: &[Option<Entry>], index: u32) -> Option<&Entry> {
    entries.get(index as usize)?.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_pci::{Access, DmaBackend, DmaError, DmaSpace};
    use homi_queue::{Iova, IovaRange, Region};

    #[derive(Debug)]
    struct Anything;

    impl DmaBackend for Anything {
        fn map(&self, _: IovaRange, _: &Region, _: Access) -> Result<(), DmaError> {
            Ok(())
        }
        fn unmap(&self, _: IovaRange) -> Result<(), DmaError> {
            Ok(())
        }
        fn usable(&self) -> Vec<IovaRange> {
            vec![IovaRange::new(Iova(0), 1 << 40).unwrap()]
        }
        fn page(&self) -> u64 {
            4096
        }
    }

    fn mapping(space: &DmaSpace, len: usize) -> (usize, Mapping) {
        let region = Region::allocate(len, 4096).unwrap();
        let mapping = space.map(&region, Access::ReadWrite).unwrap();
        (region.host_address() as usize, mapping)
    }

    #[test]
    fn memory_in_use_is_kept_until_its_last_command_is_over() {
        let space = DmaSpace::new(Box::new(Anything));
        let mut table = Table::new(2, 1 << 20);
        let (base, first) = mapping(&space, 8192);
        let index = table.insert(first, Kept::Cached);
        let (found, address) = table.find(base + 4096, 4096).unwrap();
        assert_eq!((found, address % 4096), (index, 0));
        assert_eq!(table.find(base + 4096, 4097), None);
        assert_eq!(table.quick(base, 8192).map(|(entry, _)| entry), Some(index));
        table.hold(index);
        table.hold(index);
        table.forget(base, 10);
        assert_eq!(table.find(base, 1), None, "nobody uses it from here on");
        table.release(index);
        assert_eq!(space.usage().unmapped, 0);
        table.release(index);
        assert_eq!(space.usage().unmapped, 1);
    }

    #[test]
    fn the_cache_is_bounded_and_pins_are_not() {
        let space = DmaSpace::new(Box::new(Anything));
        let mut table = Table::new(2, 1 << 20);
        let (bases, mappings): (Vec<_>, Vec<_>) = (0..3).map(|_| mapping(&space, 4096)).unzip();
        let pinned: Vec<_> = mappings
            .iter()
            .cloned()
            .enumerate()
            .map(|(n, m)| (n as u64, m))
            .collect();
        for mapping in mappings {
            table.insert(mapping, Kept::Cached);
        }
        assert!(table.find(bases[0], 1).is_none() && table.find(bases[2], 1).is_some());
        table.sync(&pinned);
        assert!(bases.iter().all(|base| table.find(*base, 4096).is_some()));
        drop(pinned);
        table.sync(&[]);
        assert!(table.find(bases[0], 1).is_none() && table.find(bases[1], 1).is_some());
        let (large, huge) = mapping(&space, 2 << 20);
        let index = table.insert(huge, Kept::Cached);
        assert_eq!(table.find(large, 1), None, "too large to be kept");
        table.hold(index);
        table.release(index);
        drop(table);
        let usage = space.usage();
        assert_eq!(usage.mapped, usage.unmapped);
    }
}
