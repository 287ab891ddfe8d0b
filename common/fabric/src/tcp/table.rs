//! [`CommandTable`]: the commands that a controller connection has in flight, by key and by command id.

use homi_queue::Data;

/// A command in flight at the controller end: an index below the queue's depth, and the name under which events and answers
/// speak of it. Keys are reused, the one freed last first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandKey(pub u16);

impl CommandKey {
    /// The key as an index into a table of the queue's commands.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// No slot.
const NONE: u16 = u16::MAX;

/// What a slot's command is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No command.
    Free,
    /// The session decides: nothing was asked from the host, or everything it sent has come.
    Deciding,
    /// As `Deciding`, and the capsule's data has come and was discarded because the session had not accepted it.
    Missed,
    /// Data is coming to the session's memory.
    Receiving,
    /// Data is coming and is discarded.
    Cancelled,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) data: Data,
    /// Bytes that the host offers: in the capsule, or by its transport SGL.
    pub(crate) offered: u32,
    /// Bytes that were accepted.
    pub(crate) wanted: u32,
    /// Bytes of those that came or whose unit's header came.
    pub(crate) announced: u32,
    pub(crate) cid: u16,
    /// Transfer tag of the R2T in effect: the key in the low bits, a count above.
    pub(crate) transfer: u16,
    /// Next slot of the free list or of the command id's bucket.
    next: u16,
    pub(crate) state: State,
    /// The offered bytes are in the capsule.
    pub(crate) in_capsule: bool,
    /// The data is solicited by an R2T.
    pub(crate) solicited: bool,
    /// A data digest did not match.
    pub(crate) corrupt: bool,
}

/// Slots that grow with use up to a limit, and a chained index by command id that grows with them.
#[derive(Debug)]
pub(crate) struct CommandTable {
    slots: Vec<Slot>,
    /// First slot of each bucket; the length is a power of two and at least that of `slots`.
    buckets: Vec<u16>,
    free: u16,
    limit: u16,
    in_flight: u16,
    key_bits: u32,
}

impl CommandTable {
    /// A table whose limit may later be raised up to `max`; it starts at one.
    pub(crate) fn new(max: u16) -> Self {
        let key_bits = u32::from(max).next_power_of_two().trailing_zeros();
        Self {
            slots: Vec::new(),
            buckets: Vec::new(),
            free: NONE,
            limit: 1,
            in_flight: 0,
            key_bits,
        }
    }

    pub(crate) fn set_limit(&mut self, limit: u16) {
        self.limit = limit;
    }

    pub(crate) fn limit(&self) -> u16 {
        self.limit
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    #[inline]
    fn bucket(&self, cid: u16) -> usize {
        usize::from(cid) & self.buckets.len().wrapping_sub(1)
    }

    /// Puts a command in a slot. Tells the key, whether another command in flight has the same id, and the slot; `None`
    /// if the table is full.
    #[inline]
    pub(crate) fn insert(&mut self, cid: u16) -> Option<(CommandKey, bool, &mut Slot)> {
        if self.in_flight >= self.limit {
            return None;
        }
        if self.free == NONE {
            self.grow()?;
        }
        let conflict = self.find(cid).is_some();
        let key = self.free;
        let bucket = self.bucket(cid);
        let first = self.buckets.get_mut(bucket)?;
        let slot = self.slots.get_mut(usize::from(key))?;
        self.free = slot.next;
        slot.next = std::mem::replace(first, key);
        slot.cid = cid;
        slot.state = State::Deciding;
        self.in_flight += 1;
        Some((CommandKey(key), conflict, slot))
    }

    /// The newest command in flight with this id.
    #[inline]
    pub(crate) fn find(&self, cid: u16) -> Option<CommandKey> {
        let mut key = *self.buckets.get(self.bucket(cid))?;
        while let Some(slot) = self.slots.get(usize::from(key)) {
            if slot.cid == cid {
                return Some(CommandKey(key));
            }
            key = slot.next;
        }
        None
    }

    /// The slot of a command in flight.
    #[inline]
    pub(crate) fn get(&self, key: CommandKey) -> Option<&Slot> {
        self.slots
            .get(key.index())
            .filter(|slot| slot.state != State::Free)
    }

    /// The slot of a command in flight, to change.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: CommandKey) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index())
            .filter(|slot| slot.state != State::Free)
    }

    /// Ends a command, and tells its id.
    #[inline]
    pub(crate) fn remove(&mut self, key: CommandKey) -> Option<u16> {
        let cid = self.get(key)?.cid;
        let bucket = self.bucket(cid);
        let after = self.get(key)?.next;
        let first = self.buckets.get_mut(bucket)?;
        if *first == key.0 {
            *first = after;
        } else {
            let mut before = *first;
            loop {
                let slot = self.slots.get_mut(usize::from(before))?;
                if slot.next == key.0 {
                    slot.next = after;
                    break;
                }
                before = slot.next;
            }
        }
        let free = self.free;
        let slot = self.slots.get_mut(key.index())?;
        slot.data = Data::None;
        slot.state = State::Free;
        slot.next = free;
        self.free = key.0;
        self.in_flight -= 1;
        Some(cid)
    }

    /// A new transfer tag for a command: no tag is used again before its count comes round.
    pub(crate) fn next_transfer(&mut self, key: CommandKey) -> Option<u16> {
        let step = 1_u16.checked_shl(self.key_bits).unwrap_or(0);
        let slot = self.get_mut(key)?;
        slot.transfer = slot.transfer.wrapping_add(step);
        Some(slot.transfer)
    }

    /// The command that waits for data under this transfer tag.
    #[inline]
    pub(crate) fn find_transfer(&mut self, transfer: u16) -> Option<(CommandKey, &mut Slot)> {
        let mask = u16::MAX.checked_shl(self.key_bits).unwrap_or(0);
        let key = CommandKey(transfer & !mask);
        let slot = self.get_mut(key)?;
        let waits = slot.solicited
            && matches!(slot.state, State::Receiving | State::Cancelled)
            && slot.transfer == transfer;
        waits.then_some((key, slot))
    }

    #[cold]
    fn grow(&mut self) -> Option<()> {
        let key = u16::try_from(self.slots.len())
            .ok()
            .filter(|key| *key < self.limit)?;
        self.slots.push(Slot {
            data: Data::None,
            offered: 0,
            wanted: 0,
            announced: 0,
            cid: 0,
            transfer: key,
            next: self.free,
            state: State::Free,
            in_capsule: false,
            solicited: false,
            corrupt: false,
        });
        self.free = key;
        if self.slots.len() > self.buckets.len() {
            self.buckets.clear();
            self.buckets.resize(self.slots.len().next_power_of_two(), NONE);
            let mask = self.buckets.len() - 1;
            for (key, slot) in (0_u16..).zip(self.slots.iter_mut()) {
                if slot.state == State::Free {
                    continue;
                }
                if let Some(first) = self.buckets.get_mut(usize::from(slot.cid) & mask) {
                    slot.next = std::mem::replace(first, key);
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slot_is_small() {
        assert!(size_of::<Slot>() <= 64, "{}", size_of::<Slot>());
    }

    proptest! {
        #[test]
        fn every_command_is_found_by_key_and_by_id(
            depth in 1_u16..70,
            steps in proptest::collection::vec((any::<bool>(), 0_u16..400), 0..500),
        ) {
            let mut table = CommandTable::new(depth);
            table.set_limit(depth);
            let mut live: Vec<(CommandKey, u16)> = Vec::new();
            for (insert, pick) in steps {
                if insert {
                    let known = live.iter().any(|(_, cid)| *cid == pick);
                    match table.insert(pick) {
                        Some((key, conflict, _)) => {
                            prop_assert_eq!(conflict, known);
                            prop_assert!(live.iter().all(|(other, _)| *other != key));
                            live.push((key, pick));
                        }
                        None => prop_assert_eq!(live.len(), usize::from(depth)),
                    }
                } else if !live.is_empty() {
                    let (key, _) = live.swap_remove(usize::from(pick) % live.len());
                    prop_assert!(table.remove(key).is_some());
                    prop_assert!(table.remove(key).is_none());
                }
                prop_assert_eq!(usize::from(table.in_flight()), live.len());
                prop_assert_eq!(table.find(pick).is_some(), live.iter().any(|(_, cid)| *cid == pick));
                for (key, cid) in &live {
                    prop_assert_eq!(table.get(*key).unwrap().cid, *cid);
                    prop_assert!(table.find(*cid).is_some());
                }
            }
        }
    }
}
