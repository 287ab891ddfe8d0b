//! [`Table`]: where a queue's memory is for the controller, by address. It belongs to one queue, so nothing in it is shared or atomic.

use homi_pci::Mapping;
use homi_queue::CommandId;

use crate::flights::Flights;

/// How many neighbours with a lower address are tried, for ranges that overlap.
const NEIGHBOURS: usize = 8;
/// No entry.
const NONE: u32 = u32::MAX;

/// Why an entry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Somebody asked for it: the pin's number.
    Pinned(u64),
    /// It may be used again.
    Cached,
    /// The queue's thread gave it, and takes it back.
    Given,
}

struct Entry {
    base: usize,
    len: usize,
    /// What to add to an address, wrapping.
    delta: u64,
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
    /// From how many addresses on a whole page follows.
    pages: usize,
    delta: u64,
    entry: u32,
}

const NO_LAST: Last = Last {
    base: 0,
    len: 0,
    pages: 0,
    delta: 0,
    entry: NONE,
};

/// Mappings by address.
///
/// Commands in flight are not counted: what goes while there may be some that use it is kept until all are over that were in flight then. So a
/// command costs nothing here but being looked up.
pub(crate) struct Table {
    last: Last,
    page: usize,
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
    gone: Vec<Gone>,
}

/// A mapping that went.
struct Gone {
    mapping: Mapping,
    /// The commands that may use it; `None` until [`Table::let_go`] was told which are in flight.
    users: Option<Vec<CommandId>>,
}

impl Table {
    /// A table for pages of `page` bytes, that keeps `most` mappings of `most_bytes` together.
    pub(crate) fn new(page: usize, most: usize, most_bytes: usize) -> Self {
        Self {
            page,
            last: NO_LAST,
            entries: Vec::new(),
            order: Vec::new(),
            free: Vec::new(),
            clock: 0,
            cached: 0,
            bytes: 0,
            most,
            most_bytes,
            gone: Vec::new(),
        }
    }

    /// The controller's address of bytes, if they lie in the entry that was found last.
    #[inline]
    pub(crate) fn quick(&self, start: usize, len: usize) -> Option<u64> {
        let at = start.wrapping_sub(self.last.base);
        let room = self.last.len.checked_sub(at)?;
        if len > room {
            return None;
        }
        Some((start as u64).wrapping_add(self.last.delta))
    }

    /// The controller's address of a memory page, if it lies in the entry that was found last.
    #[inline]
    pub(crate) fn page(&self, start: usize) -> Option<u64> {
        let at = start.wrapping_sub(self.last.base);
        (at < self.last.pages).then(|| (start as u64).wrapping_add(self.last.delta))
    }

    /// The controller's address of bytes, if they are mapped.
    pub(crate) fn find(&mut self, start: usize, len: usize) -> Option<u64> {
        if let Some(found) = self.quick(start, len) {
            return Some(found);
        }
        let after = self.order.partition_point(|(base, _)| *base <= start);
        let near = self.order.get(after.saturating_sub(NEIGHBOURS)..after)?;
        let entries = &self.entries;
        let index = near.iter().rev().map(|(_, index)| *index).find(|index| {
            entry(entries, *index).is_some_and(|entry| {
                let at = start - entry.base;
                at < entry.len && len <= entry.len - at
            })
        })?;
        self.clock += 1;
        let (clock, before, page) = (self.clock, self.last.entry, self.page);
        if let Some(entry) = self.entry(before) {
            entry.used = clock;
        }
        let entry = self.entry(index)?;
        entry.used = clock;
        let delta = entry.delta;
        self.last = Last {
            base: entry.base,
            len: entry.len,
            pages: (entry.len + 1).saturating_sub(page),
            delta,
            entry: index,
        };
        Some((start as u64).wrapping_add(delta))
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    /// Whether mappings wait for commands to be over.
    #[inline]
    pub(crate) fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Lets go of what no command in flight can use. To be called before the next completion is taken after something went.
    pub(crate) fn let_go(&mut self, flights: &Flights) {
        self.gone.retain_mut(|gone| {
            let users = gone.users.get_or_insert_with(|| flights.iter().collect());
            // One that is in flight is enough to know.
            while users.last().is_some_and(|id| !flights.has(*id)) {
                users.pop();
            }
            !users.is_empty()
        });
    }

    /// Keeps a mapping. A cached one takes the place of those that were not used for the longest time; one that is larger than all that may
    /// be cached goes with the command that it was made for.
    pub(crate) fn insert(&mut self, mapping: Mapping, kept: Kept) {
        let (base, len) = (mapping.memory().host_address() as usize, mapping.memory().len());
        if kept == Kept::Cached {
            if len > self.most_bytes || self.most == 0 {
                self.gone_with(mapping);
                return;
            }
            self.make_room(len);
            self.cached += 1;
            self.bytes += len;
        }
        self.clock += 1;
        let new = Entry {
            base,
            len,
            delta: mapping.range().start().0.wrapping_sub(base as u64),
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
    }

    fn make_room(&mut self, len: usize) {
        while self.cached > 0
            && (self.cached >= self.most || self.bytes.saturating_add(len) > self.most_bytes)
        {
            let cached = self.order.iter().filter_map(|(_, index)| {
                let entry = entry(&self.entries, *index)?;
                (entry.kept == Kept::Cached).then_some((entry.used, *index))
            });
            let Some((_, oldest)) = cached.min() else { break };
            self.doom(oldest);
        }
    }

    /// Has an entry go: it is not found any more, and unmapped as soon as no command may use it.
    fn doom(&mut self, index: u32) {
        if self.last.entry == index {
            self.last = NO_LAST;
        }
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        if entry.kept == Kept::Cached {
            self.cached -= 1;
            self.bytes -= entry.len;
        }
        self.order.retain(|(_, other)| *other != index);
        self.free.push(index);
        self.gone_with(entry.mapping);
    }

    fn gone_with(&mut self, mapping: Mapping) {
        self.gone.push(Gone { mapping, users: None });
    }

    /// Forgets mappings, but pinned ones, that the bytes lie in.
    pub(crate) fn forget(&mut self, start: usize, len: usize) {
        let entries = &self.entries;
        let holding: Vec<u32> = self
            .order
            .iter()
            .map(|(_, index)| *index)
            .filter(|index| {
                entry(entries, *index).is_some_and(|entry| {
                    !matches!(entry.kept, Kept::Pinned(_))
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
        for gone in self.gone.drain(..) {
            std::mem::forget(gone.mapping);
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
        let mut table = Table::new(4096, 2, 1 << 20);
        let (base, first) = mapping(&space, 8192);
        let mut flights = Flights::new(4);
        let mut begin = || {
            let slot = flights.reserve().unwrap();
            let id = slot.id();
            flights.get_mut(slot.index()).unwrap().occupy_rarely(id);
            id
        };
        let (one, two) = (begin(), begin());
        table.insert(first, Kept::Cached);
        assert_eq!(
            table.find(base + 4096, 4096).map(|address| address % 4096),
            Some(0)
        );
        assert_eq!(table.find(base + 4096, 4097), None);
        assert!(table.quick(base, 8192).is_some());
        assert_eq!(table.page(base + 4096), table.quick(base + 4096, 4096));
        assert!(table.page(base + 4097).is_none() && table.page(base - 1).is_none());
        // Both commands use it; it goes while a third is being made.
        let three = begin();
        table.forget(base, 10);
        assert_eq!(table.find(base, 1), None, "nobody uses it from here on");
        assert!(table.has_gone());
        table.let_go(&flights);
        assert!(flights.free(one));
        let slot = flights.reserve().unwrap();
        let id = slot.id();
        flights.get_mut(slot.index()).unwrap().occupy_rarely(id);
        assert!(flights.free(two));
        table.let_go(&flights);
        assert_eq!(
            space.usage().unmapped,
            0,
            "the command that was being made may use it"
        );
        assert!(flights.free(three));
        table.let_go(&flights);
        assert_eq!(space.usage().unmapped, 1, "a later command does not");
        assert!(!table.has_gone());
    }

    #[test]
    fn the_cache_is_bounded_and_pins_are_not() {
        let space = DmaSpace::new(Box::new(Anything));
        let mut table = Table::new(4096, 2, 1 << 20);
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
        table.insert(huge, Kept::Cached);
        assert_eq!(table.find(large, 1), None, "too large to be kept");
        table.let_go(&Flights::new(1));
        table.forget(bases[1], 1);
        drop(table);
        let usage = space.usage();
        assert_eq!(usage.mapped, usage.unmapped);
    }
}
