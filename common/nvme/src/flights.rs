//! [`Flights`]: the commands in flight of a queue, each in one cache line.
//!
//! A slot's first word says all that a completion is checked by: which command is there (slot and sequence, as in
//! [`Slots`](homi_queue::Slots)), and whether it is a plain one. What else is known about commands that are no plain ones is kept elsewhere.

use std::mem;
use std::time::Duration;

use homi_queue::{Command, CommandId, Segment, Slot};
use homi_spec::command::Sqe;

/// The bits of an entry's first word that the queue writes: PSDT and the command identifier.
pub(crate) const OWN_BITS: u64 = 0xffff_c000;

/// Where the command identifier is.
const ID: u32 = 16;
/// A slot with a command that the queue knows more about than its line says.
const RARE: u64 = 1 << 14;
/// A slot without a command. The identifier is that of the next one.
const FREE: u64 = 2 << 14;
const STATE: u64 = 3 << 14;
/// [`Flights::look`] saw the command. Of a plain command, the bits between opcode and state are otherwise clear.
const SEEN: u64 = 1 << 13;

/// A slot.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Flight {
    /// As in the entry: opcode, identifier and namespace; the state where an entry has PSDT. Namespace and opcode of plain commands only.
    word: u64,
    /// Dwords 2 and 3.
    second: u64,
    /// Dwords 10 and 11. Of a free slot, the slot that is free after it.
    first: u64,
    /// Dwords 12 and 13.
    range: u64,
    /// Dwords 14 and 15.
    tags: u64,
    /// The data of a plain command.
    segment: Option<Segment>,
}

impl Flight {
    /// The slot that is free after this one.
    #[inline]
    const fn next(&self) -> u16 {
        let [low, high, ..] = self.first.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    #[inline]
    const fn is_free(&self) -> bool {
        self.word & STATE == FREE
    }

    #[inline]
    pub(crate) const fn is_rare(&self) -> bool {
        self.word & STATE == RARE
    }

    /// The command that is here, or comes here next.
    #[inline]
    pub(crate) const fn id(&self) -> CommandId {
        let [_, _, low, high, ..] = self.word.to_le_bytes();
        CommandId(u16::from_le_bytes([low, high]))
    }

    /// The command, if it is a plain one: without what the queue chooses.
    pub(crate) fn command(&self) -> Command {
        let first = self.word & !OWN_BITS & !SEEN;
        let words = [first, self.second, 0, 0, 0, self.first, self.range, self.tags];
        let sqe: Sqe = zerocopy::transmute!(words.map(u64::to_le));
        Command(sqe)
    }

    /// Puts a plain command here; returns the entry's first word.
    #[inline]
    pub(crate) fn occupy(&mut self, id: CommandId, words: [u64; 5], segment: Segment) -> u64 {
        let [word, second, first, range, tags] = words;
        let word = word & !OWN_BITS | u64::from(id.0) << ID;
        self.word = word;
        self.second = second;
        self.first = first;
        self.range = range;
        self.tags = tags;
        // A slot that is free has no data, so there is nothing to be dropped.
        mem::forget(self.segment.replace(segment));
        word
    }

    /// The data of a plain command.
    pub(crate) fn take_segment(&mut self) -> Option<Segment> {
        self.segment.take()
    }

    /// Puts a command here that is no plain one.
    pub(crate) fn occupy_rarely(&mut self, id: CommandId) {
        self.word = u64::from(id.0) << ID | RARE;
    }
}

/// A command that has been in flight for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) id: u16,
    /// When it was seen first.
    pub(crate) since: Duration,
}

/// The slots of a queue. The slot used last is reused first, while it is in the cache.
#[derive(Debug)]
pub(crate) struct Flights {
    flights: Box<[Flight]>,
    /// The slot that is taken next, or one past the last.
    free: u16,
    /// The bits of an identifier that name the slot.
    mask: u16,
    /// What the next sequence adds to an identifier; sequences wrap with it.
    step: u16,
    depth: u16,
    /// When [`look`](Self::look) saw the commands first that it marked.
    since: Box<[Duration]>,
}

impl Flights {
    /// Slots for `depth` commands, 1 to [`Slots::MAX_DEPTH`](homi_queue::Slots::MAX_DEPTH).
    pub(crate) fn new(depth: u16) -> Self {
        let flight = |index: u16| Flight {
            word: u64::from(index) << ID | FREE,
            second: 0,
            first: u64::from(index) + 1,
            range: 0,
            tags: 0,
            segment: None,
        };
        let step = depth.next_power_of_two();
        Self {
            flights: (0..depth).map(flight).collect(),
            free: 0,
            mask: step - 1,
            step,
            depth,
            since: vec![Duration::ZERO; depth.into()].into(),
        }
    }

    #[inline]
    pub(crate) const fn depth(&self) -> u16 {
        self.depth
    }

    pub(crate) fn in_flight(&self) -> usize {
        // Reserved slots are free without being in the list, so they are not counted by it.
        self.flights.iter().filter(|flight| !flight.is_free()).count()
    }

    #[inline]
    pub(crate) fn reserve(&mut self) -> Option<Slot> {
        let index = self.free;
        let flight = self.flights.get(usize::from(index))?;
        self.free = flight.next();
        Some(Slot::new(index, flight.id()))
    }

    /// Gives a slot back that was not used.
    pub(crate) fn release(&mut self, slot: Slot) {
        if let Some(flight) = self.flights.get_mut(slot.index())
            && flight.is_free()
        {
            flight.first = self.free.into();
            self.free = flight.id().0 & self.mask;
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Flight> {
        self.flights.get_mut(index)
    }

    #[cfg(test)]
    fn get(&self, index: usize) -> Option<&Flight> {
        self.flights.get(index)
    }

    #[inline]
    fn index(&self, id: u16) -> usize {
        usize::from(id & self.mask)
    }

    /// Whether a command in flight has this identifier.
    pub(crate) fn has(&self, id: CommandId) -> bool {
        let flight = self.flights.get(self.index(id.0));
        flight.is_some_and(|flight| !flight.is_free() && flight.id() == id)
    }

    /// Takes out the data of a plain command, and frees its slot: the identifier is stale from here on. `None` if no plain command has it.
    #[inline]
    pub(crate) fn take_plain(&mut self, id: CommandId) -> Option<Segment> {
        let index = self.index(id.0);
        let flight = self.flights.get_mut(index)?;
        // The identifier, and a state of 0.
        if (flight.word >> 14) & 0x3_ffff != u64::from(id.0) << 2 {
            return None;
        }
        let segment = flight.segment.take()?;
        flight.word = u64::from(id.0.wrapping_add(self.step)) << ID | FREE;
        flight.first = self.free.into();
        self.free = id.0 & self.mask;
        Some(segment)
    }

    /// Whether a command that is no plain one has this identifier.
    pub(crate) fn is_rare(&self, id: CommandId) -> bool {
        let flight = self.flights.get(self.index(id.0));
        flight.is_some_and(|flight| flight.is_rare() && flight.id() == id)
    }

    /// Frees the slot of any command; `false` if none in flight has this identifier.
    pub(crate) fn free(&mut self, id: CommandId) -> bool {
        let index = self.index(id.0);
        let (step, free) = (self.step, self.free);
        match self.flights.get_mut(index) {
            Some(flight) if !flight.is_free() && flight.id() == id => {
                flight.word = u64::from(id.0.wrapping_add(step)) << ID | FREE;
                flight.first = free.into();
                self.free = id.0 & self.mask;
                true
            }
            _ => false,
        }
    }

    /// Every command in flight, in slot order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = CommandId> {
        let flights = self.flights.iter().filter(|flight| !flight.is_free());
        flights.map(Flight::id)
    }

    /// Looks at all commands in flight, and says which have been there for at least `after`. A command's time begins with the first look.
    pub(crate) fn look(&mut self, now: Duration, after: Duration) -> Vec<Late> {
        let mut late = Vec::new();
        for (flight, since) in self.flights.iter_mut().zip(&mut self.since) {
            if flight.is_free() {
                continue;
            }
            if flight.word & SEEN == 0 {
                flight.word |= SEEN;
                *since = now;
            }
            if now.saturating_sub(*since) >= after {
                let (CommandId(id), since) = (flight.id(), *since);
                late.push(Late { id, since });
            }
        }
        late
    }

    /// The data of plain commands, which nobody may use any more.
    pub(crate) fn into_segments(self) -> impl Iterator<Item = Segment> {
        self.flights.into_iter().filter_map(|flight| flight.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_queue::Region;

    fn data(len: usize) -> Segment {
        Region::allocate(len, 8).unwrap().segment(0..len).unwrap()
    }

    fn occupy(flights: &mut Flights, command: Command, data: Segment) -> CommandId {
        let slot = flights.reserve().unwrap();
        let words: [u64; 8] = zerocopy::transmute!(command.0);
        let [a, b, _, _, _, c, d, e] = words.map(u64::from_le);
        let id = slot.id();
        flights
            .get_mut(slot.index())
            .unwrap()
            .occupy(id, [a, b, c, d, e], data);
        id
    }

    #[test]
    fn a_flight_is_a_cache_line() {
        assert_eq!(size_of::<Flight>(), 64);
    }

    #[test]
    fn a_command_is_found_once() {
        let mut flights = Flights::new(3);
        let mut read = Command::read(7, 0x1_2345_6789, 8).with_fua();
        (read.0.cdw2, read.0.cdw15) = (3.into(), 4.into());
        let id = occupy(&mut flights, read, data(24));
        assert_eq!(flights.get(id.slot_index(3)).unwrap().command(), read);
        assert_eq!((flights.in_flight(), flights.has(id)), (1, true));
        assert_eq!(flights.take_plain(id).map(|data| data.len()), Some(24));
        assert!(flights.take_plain(id).is_none() && !flights.has(id) && !flights.free(id));
        let next = occupy(&mut flights, read, data(8));
        assert_eq!(
            next.slot_index(3),
            id.slot_index(3),
            "what was used last is used first"
        );
        assert_ne!(next, id);
        assert!(flights.take_plain(id).is_none() && flights.has(next));
    }

    #[test]
    fn the_depth_is_the_limit_and_sequences_wrap() {
        let mut flights = Flights::new(5);
        for round in 0..20_000_usize {
            let held: Vec<_> = (0..5).map(|_| flights.reserve().unwrap()).collect();
            assert!(flights.reserve().is_none());
            let mut ids = Vec::new();
            for slot in held {
                if round % 3 == 0 && slot.index() == 2 {
                    flights.release(slot);
                    continue;
                }
                let (index, id) = (slot.index(), slot.id());
                assert_eq!(id.slot_index(5), index);
                let flight = flights.get_mut(index).unwrap();
                if round % 2 == 0 {
                    flight.occupy_rarely(id);
                } else {
                    flight.occupy(id, [0x0001_0000_0002, 0, 0, 0, 0], data(8));
                }
                ids.push(id);
            }
            assert_eq!(flights.iter().count(), ids.len());
            for id in ids {
                if round % 2 == 0 {
                    assert!(flights.take_plain(id).is_none() && flights.is_rare(id));
                    assert!(flights.free(id));
                } else {
                    assert!(!flights.is_rare(id) && flights.take_plain(id).is_some());
                }
            }
            assert_eq!(flights.in_flight(), 0);
        }
    }

    #[test]
    fn identifiers_outside_the_table_are_stale() {
        let mut flights = Flights::new(5);
        for id in 0..=u16::MAX {
            assert!(flights.take_plain(CommandId(id)).is_none() && !flights.is_rare(CommandId(id)));
            assert!(!flights.free(CommandId(id)) && !flights.has(CommandId(id)));
        }
    }

    #[test]
    fn a_look_tells_old_commands_from_new_ones_in_the_same_slot() {
        let seconds = Duration::from_secs;
        let mut flights = Flights::new(2);
        let old = occupy(&mut flights, Command::read(1, 0, 1), data(8));
        let quick = occupy(&mut flights, Command::write(1, 0, 1), data(8));
        assert_eq!(flights.look(seconds(10), seconds(5)), []);
        assert!(flights.take_plain(quick).is_some());
        let young = occupy(&mut flights, Command::write(1, 0, 1), data(8));
        assert_eq!(flights.look(seconds(14), seconds(5)), []);
        let since = seconds(10);
        assert_eq!(flights.look(seconds(15), seconds(5)), [Late { id: old.0, since }]);
        assert_eq!(flights.get(0).unwrap().command(), Command::read(1, 0, 1));
        assert!(flights.take_plain(old).is_some());
        let since = seconds(14);
        assert_eq!(
            flights.look(seconds(19), seconds(5)),
            [Late { id: young.0, since }]
        );
    }
}
