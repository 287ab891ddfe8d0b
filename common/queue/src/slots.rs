//! Command ids that carry a slot and a sequence number.
//!
//! A command id has 16 bits. The low bits name a slot of the queue; the rest count how often the slot was used, so
//! that a completion that comes late or twice names a sequence that is no longer current and is refused
//! instead of finishing somebody else's command. The table grows with use up to its depth: an idle queue is small.

use std::fmt;

/// A command identifier on one queue (base specification 2.0, section 3.3.3.1, Command Dword 0).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u16);

impl CommandId {
    /// The index of the slot that this id of a queue of `depth` commands names: below `depth` for ids that the queue
    /// gave out. An issuer may keep what it knows about its commands in a table of its own by it.
    #[must_use]
    #[inline]
    pub fn slot_index(self, depth: u16) -> usize {
        usize::from(self.0) & (usize::from(depth.max(1)).next_power_of_two() - 1)
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandId({:#06x})", self.0)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A reserved place in a queue. It is used up by `submit`, or given back with `release`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reserved slot is used by `submit` or given back by `release`; dropped, it shortens the queue"]
pub struct Slot {
    index: u16,
    id: CommandId,
}

impl Slot {
    /// A place of a queue that keeps a table of its own: its index, and the id that its command will have.
    #[inline]
    pub const fn new(index: u16, id: CommandId) -> Self {
        Self { index, id }
    }

    /// The slot's index, below the queue's depth.
    #[must_use]
    #[inline]
    pub fn index(&self) -> usize {
        usize::from(self.index)
    }

    /// The id that the command submitted here will have.
    #[must_use]
    #[inline]
    pub const fn id(&self) -> CommandId {
        self.id
    }
}

/// The id names no command in flight: it is unknown, or its command completed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("command id {id} names no command in flight (unknown, late or doubled)")]
pub struct StaleCommand {
    /// The id that came.
    pub id: CommandId,
}

#[derive(Debug)]
struct Entry<T> {
    /// The id of the command that is here, or that comes here next: slot and sequence.
    id: u16,
    value: Option<T>,
}

/// The commands in flight of one queue, found by their ids.
#[derive(Debug)]
pub struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u16>,
    depth: u16,
    /// The bits of an id that name the slot.
    mask: u16,
    /// What the next sequence adds to an id; sequences wrap with the id.
    step: u16,
    in_flight: usize,
}

impl<T> Slots<T> {
    /// The most slots a table can have, leaving four bits of sequence.
    pub const MAX_DEPTH: u16 = 4096;

    /// A table for up to `depth` commands in flight, clamped to 1..=[`Slots::MAX_DEPTH`].
    #[must_use]
    pub fn new(depth: u16) -> Self {
        let depth = depth.clamp(1, Self::MAX_DEPTH);
        // At most 4096, so it fits.
        let step = depth.next_power_of_two();
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            depth,
            mask: step - 1,
            step,
            in_flight: 0,
        }
    }

    /// How many commands may be in flight.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// How many commands are in flight (reserved slots not counted).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Reserves a slot, or `None` if all are taken. The slot used last is reused first, while it is in the cache.
    #[inline]
    pub fn reserve(&mut self) -> Option<Slot> {
        if let Some(index) = self.free.pop() {
            let id = self
                .entries
                .get(usize::from(index))
                .map_or(index, |entry| entry.id);
            return Some(Slot::new(index, CommandId(id)));
        }
        let index = u16::try_from(self.entries.len())
            .ok()
            .filter(|index| *index < self.depth)?;
        self.entries.push(Entry {
            id: index,
            value: None,
        });
        Some(Slot::new(index, CommandId(index)))
    }

    /// Gives a reserved slot back unused.
    pub fn release(&mut self, slot: Slot) {
        self.free.push(slot.index);
    }

    /// The id that [`Slots::occupy`] will give this slot's command.
    #[must_use]
    pub fn id_of(&self, slot: &Slot) -> CommandId {
        slot.id
    }

    /// Puts a command into its slot and returns its id.
    #[inline]
    pub fn occupy(&mut self, slot: Slot, value: T) -> CommandId {
        let Some(entry) = self.entries.get_mut(slot.index()) else {
            return slot.id;
        };
        debug_assert!(entry.value.is_none(), "a slot is reserved once");
        entry.value = Some(value);
        self.in_flight += 1;
        CommandId(entry.id)
    }

    /// The command with this id.
    ///
    /// # Errors
    /// [`StaleCommand`] if the id names no command in flight.
    pub fn get(&self, id: CommandId) -> Result<&T, StaleCommand> {
        match self.entries.get(self.index(id)) {
            Some(Entry {
                id: current,
                value: Some(value),
            }) if *current == id.0 => Ok(value),
            _ => Err(StaleCommand { id }),
        }
    }

    /// The command with this id, to change.
    ///
    /// # Errors
    /// [`StaleCommand`] if the id names no command in flight.
    pub fn get_mut(&mut self, id: CommandId) -> Result<&mut T, StaleCommand> {
        let index = self.index(id);
        match self.entries.get_mut(index) {
            Some(Entry {
                id: current,
                value: Some(value),
            }) if *current == id.0 => Ok(value),
            _ => Err(StaleCommand { id }),
        }
    }

    /// Takes the command out and frees its slot; its id is stale from here on.
    ///
    /// # Errors
    /// [`StaleCommand`] if the id names no command in flight.
    #[inline]
    pub fn take(&mut self, id: CommandId) -> Result<T, StaleCommand> {
        let index = self.index(id);
        let Some(entry) = self.entries.get_mut(index).filter(|entry| entry.id == id.0) else {
            return Err(StaleCommand { id });
        };
        let Some(value) = entry.value.take() else {
            return Err(StaleCommand { id });
        };
        entry.id = id.0.wrapping_add(self.step);
        self.in_flight -= 1;
        self.free.push(id.0 & self.mask);
        Ok(value)
    }

    /// Every command in flight with its id, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (CommandId, &T)> {
        self.entries.iter().filter_map(|entry| {
            let value = entry.value.as_ref()?;
            Some((CommandId(entry.id), value))
        })
    }

    /// Takes every command in flight out, in slot order.
    pub fn drain(&mut self) -> Vec<(CommandId, T)> {
        let ids: Vec<CommandId> = self.iter().map(|(id, _)| id).collect();
        ids.into_iter()
            .filter_map(|id| self.take(id).ok().map(|value| (id, value)))
            .collect()
    }

    #[inline]
    fn index(&self, id: CommandId) -> usize {
        usize::from(id.0 & self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_doubled_completion_is_stale() {
        let mut slots = Slots::new(128);
        let slot = slots.reserve().unwrap();
        let id = slots.occupy(slot, "read");
        assert_eq!(slots.take(id), Ok("read"));
        assert_eq!(slots.take(id), Err(StaleCommand { id }));
        let slot = slots.reserve().unwrap();
        let index = slot.index();
        let next = slots.occupy(slot, "write");
        assert_eq!(next.slot_index(128), index);
        assert_ne!(id, next);
        assert_eq!(slots.take(id), Err(StaleCommand { id }));
        assert_eq!(slots.take(next), Ok("write"));
    }

    #[test]
    fn the_depth_is_the_limit() {
        let mut slots = Slots::<()>::new(3);
        let held: Vec<_> = (0..3).map(|_| slots.reserve().unwrap()).collect();
        assert!(slots.reserve().is_none());
        for slot in held {
            slots.release(slot);
        }
        assert!(slots.reserve().is_some());
    }

    proptest! {
        #[test]
        fn every_command_completes_once(depth in 1_u16..300, steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 0..600)) {
            let mut slots = Slots::new(depth);
            let mut live: Vec<(CommandId, u32)> = Vec::new();
            let mut count = 0;
            for (submit, pick) in steps {
                if submit {
                    match slots.reserve() {
                        Some(slot) => {
                            count += 1;
                            live.push((slots.occupy(slot, count), count));
                        }
                        None => prop_assert_eq!(live.len(), usize::from(depth)),
                    }
                } else if !live.is_empty() {
                    let (id, value) = live.swap_remove(usize::from(pick) % live.len());
                    prop_assert_eq!(slots.take(id), Ok(value));
                    prop_assert!(slots.take(id).is_err());
                }
                prop_assert_eq!(slots.in_flight(), live.len());
                let stranger = CommandId(pick);
                prop_assert_eq!(slots.get(stranger).is_ok(), live.iter().any(|(id, _)| *id == stranger));
            }
        }
    }
}
