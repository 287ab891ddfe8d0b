//! The commands that a controller connection has in flight, by key and by command id.

use homi_queue::{Data, RemoteKey};
use homi_spec::Cqe;
use homi_spec::command::TransferDirection;

use super::controller::ReceiveBuffer;
use super::work::{Cursor, Remote};
use crate::tcp::CommandKey;

/// No slot.
const NONE: u16 = u16::MAX;

/// What a slot's command is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No command.
    Free,
    /// The session decides.
    Deciding,
    /// RDMA READs bring its data, or wait for their turn.
    Reading,
    /// RDMA READs are still outstanding; what they bring is not wanted.
    Cancelled,
    /// The response waits for its turn, after the data.
    Responding,
}

/// One command.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) cid: u16,
    pub(super) direction: TransferDirection,
    /// Where the host's memory is. The allocation stays with the slot.
    pub(super) remotes: Vec<Remote>,
    /// Bytes that the host offers.
    pub(super) offered: u32,
    pub(super) invalidate: Option<RemoteKey>,
    /// The session's memory, or a view of the receive buffer.
    pub(super) data: Data,
    /// Bytes of the transfer.
    pub(super) wanted: u32,
    pub(super) cursor: Cursor,
    /// RDMA READs that are outstanding.
    pub(super) reads: u16,
    /// Events about it that the session has not polled.
    pub(super) unseen: u8,
    /// The buffer that holds the command's data.
    pub(super) receive: Option<ReceiveBuffer>,
    pub(super) cqe: Cqe,
    /// Next slot of the free list or of the command id's bucket.
    next: u16,
}

/// Slots that grow with use up to a limit, and a chained index by command id that grows with them.
#[derive(Debug)]
pub(super) struct CommandTable {
    slots: Vec<Slot>,
    /// First slot of each bucket; the length is a power of two and at least that of `slots`.
    buckets: Vec<u16>,
    free: u16,
    limit: u16,
    in_flight: u16,
}

impl CommandTable {
    /// A table for one command, until the limit is raised.
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            buckets: Vec::new(),
            free: NONE,
            limit: 1,
            in_flight: 0,
        }
    }

    pub(super) fn set_limit(&mut self, limit: u16) {
        self.limit = limit;
    }

    pub(super) fn limit(&self) -> u16 {
        self.limit
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    #[inline]
    fn bucket(&self, cid: u16) -> usize {
        usize::from(cid) & self.buckets.len().wrapping_sub(1)
    }

    /// Puts a command in a slot. Tells the key, whether another command in flight has the same id, and the slot; `None`
    /// if the table is full.
    #[inline]
    pub(super) fn insert(&mut self, cid: u16) -> Option<(CommandKey, bool, &mut Slot)> {
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
        slot.remotes.clear();
        slot.offered = 0;
        slot.invalidate = None;
        slot.wanted = 0;
        slot.cursor = Cursor::default();
        slot.reads = 0;
        self.in_flight += 1;
        Some((CommandKey(key), conflict, slot))
    }

    /// The newest command in flight with this id.
    #[inline]
    pub(super) fn find(&self, cid: u16) -> Option<CommandKey> {
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
    pub(super) fn get(&self, key: CommandKey) -> Option<&Slot> {
        self.slots
            .get(key.index())
            .filter(|slot| slot.state != State::Free)
    }

    /// The slot of a command in flight, to change.
    #[inline]
    pub(super) fn get_mut(&mut self, key: CommandKey) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index())
            .filter(|slot| slot.state != State::Free)
    }

    /// Ends a command. What its slot still holds is the caller's to take before.
    #[inline]
    pub(super) fn remove(&mut self, key: CommandKey) {
        let Some((cid, after)) = self.get(key).map(|slot| (slot.cid, slot.next)) else {
            return;
        };
        let bucket = self.bucket(cid);
        match self.buckets.get_mut(bucket) {
            Some(first) if *first == key.0 => *first = after,
            Some(first) => {
                let mut before = *first;
                while let Some(slot) = self.slots.get_mut(usize::from(before)) {
                    if slot.next == key.0 {
                        slot.next = after;
                        break;
                    }
                    before = slot.next;
                }
            }
            None => {}
        }
        let free = self.free;
        if let Some(slot) = self.slots.get_mut(key.index()) {
            slot.data = Data::None;
            slot.receive = None;
            slot.state = State::Free;
            slot.next = free;
            self.free = key.0;
            self.in_flight -= 1;
        }
    }

    /// The key of every slot there is, used or not.
    pub(super) fn keys(&self) -> impl Iterator<Item = CommandKey> + use<> {
        // The table grows by keys of 16 bits.
        (0..u16::try_from(self.slots.len()).unwrap_or(u16::MAX)).map(CommandKey)
    }

    #[cold]
    fn grow(&mut self) -> Option<()> {
        let key = u16::try_from(self.slots.len())
            .ok()
            .filter(|key| *key < self.limit)?;
        self.slots.push(Slot {
            state: State::Free,
            cid: 0,
            direction: TransferDirection::None,
            remotes: Vec::new(),
            offered: 0,
            invalidate: None,
            data: Data::None,
            wanted: 0,
            cursor: Cursor::default(),
            reads: 0,
            unseen: 0,
            receive: None,
            cqe: Cqe::default(),
            next: self.free,
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

    proptest! {
        #[test]
        fn every_command_is_found_by_key_and_by_id(
            depth in 1_u16..70,
            steps in proptest::collection::vec((any::<bool>(), 0_u16..400), 0..500),
        ) {
            let mut table = CommandTable::new();
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
                    prop_assert!(table.get(key).is_some());
                    table.remove(key);
                    prop_assert!(table.get(key).is_none());
                    table.remove(key);
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
