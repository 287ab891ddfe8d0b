//! The arithmetic of NVMe queues in memory: [`SubmissionRing`] and [`CompletionRing`], from the host's side.
//!
//! Only indices: where the entries lie, how they are written and read, and which doorbells exist is the driver's
//! business. A driver writes an entry at the index that [`SubmissionRing::push`] gives, then writes the doorbell once
//! per batch; it looks at the entry at [`CompletionRing::head`], asks [`CompletionRing::is_new`] about its phase tag,
//! and after that reads the rest of the entry (with an acquire fence in between: the phase tag says that the other
//! bytes are there). Base 2.0 §3.3.1.
//!
//! Not here: the controller's side of the rings, and arbitration between queues.

/// A number of entries that a queue cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue has 2 to 65536 entries, not {size}")]
pub struct RingSizeError {
    /// The number asked for.
    pub size: u32,
}

/// The submission queue has no free entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full: process completions before submitting more")]
pub struct RingFull;

/// A completion carried a submission queue head that the controller cannot have reached: the controller is broken, or
/// the entry is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the controller reports submission queue head {head}, but of {size} entries it was at {known} and was offered those before {tail}"
)]
pub struct HeadError {
    /// The head that came.
    pub head: u16,
    /// The head before it.
    pub known: u16,
    /// The tail that the controller was last told.
    pub tail: u16,
    /// Entries of the ring.
    pub size: u32,
}

/// Entries of a queue, known to be 2 to 65536: the last index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RingSize(u16);

impl RingSize {
    const fn new(size: u32) -> Result<Self, RingSizeError> {
        if size < 2 || size > 65536 {
            return Err(RingSizeError { size });
        }
        let [low, high, ..] = (size - 1).to_le_bytes();
        Ok(Self(u16::from_le_bytes([low, high])))
    }

    #[inline]
    const fn entries(self) -> u32 {
        self.0 as u32 + 1
    }

    /// The index after this one, and whether it is the first again.
    #[inline]
    const fn next(self, index: u16) -> (u16, bool) {
        if index >= self.0 {
            (0, true)
        } else {
            (index + 1, false)
        }
    }

    /// How many steps lead from one index to another.
    #[inline]
    const fn distance(self, from: u16, to: u16) -> u32 {
        let steps = (to as u32).wrapping_sub(from as u32);
        if to >= from {
            steps
        } else {
            steps.wrapping_add(self.entries())
        }
    }
}

/// The index after the last: a branch that is seldom taken, and costs less than selecting an index each time.
#[cold]
const fn first_again() -> u16 {
    0
}

/// The indices of a submission queue: entries between `head` and `tail` belong to the controller, the others to the
/// host. One entry always stays empty, so that a full queue differs from an empty one. Base 2.0 §3.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionRing {
    size: RingSize,
    head: u16,
    tail: u16,
    /// The tail that the doorbell was last told.
    offered: u16,
}

impl SubmissionRing {
    /// An empty ring of `size` entries.
    ///
    /// # Errors
    /// [`RingSizeError`] if `size` is not 2 to 65536.
    pub const fn new(size: u32) -> Result<Self, RingSizeError> {
        match RingSize::new(size) {
            Ok(size) => Ok(Self {
                size,
                head: 0,
                tail: 0,
                offered: 0,
            }),
            Err(error) => Err(error),
        }
    }

    /// Entries of the ring, 2 to 65536.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size.entries()
    }

    /// The entry that the controller fetches next, as far as it said.
    #[inline]
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// The entry that [`push`](Self::push) fills next.
    #[must_use]
    pub const fn tail(&self) -> u16 {
        self.tail
    }

    /// Entries in use: filled and not known to be fetched.
    #[must_use]
    pub const fn used(&self) -> u32 {
        self.size.distance(self.head, self.tail)
    }

    /// Entries that can be filled now, at most `size - 1`.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.size.entries() - 1 - self.used()
    }

    /// Whether no entry is in use.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Whether no entry can be filled.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.free() == 0
    }

    /// Takes the next entry and returns its index. The controller does not know of it before the doorbell.
    ///
    /// # Errors
    /// [`RingFull`] if all entries but the one that stays empty are in use.
    #[inline]
    pub const fn push(&mut self) -> Result<u16, RingFull> {
        let index = self.tail;
        let next = if index >= self.size.0 {
            first_again()
        } else {
            index + 1
        };
        if next == self.head {
            return Err(RingFull);
        }
        self.tail = next;
        Ok(index)
    }

    /// The value to write to the tail doorbell, or `None` if it holds it already. Every entry pushed so far must be
    /// visible to the controller before the doorbell is written.
    #[inline]
    #[must_use = "the value has to be written to the doorbell"]
    pub const fn doorbell(&mut self) -> Option<u16> {
        if self.offered == self.tail {
            return None;
        }
        self.offered = self.tail;
        Some(self.tail)
    }

    /// Entries pushed that the doorbell was not told of.
    #[inline]
    #[must_use]
    pub const fn unoffered(&self) -> u32 {
        self.size.distance(self.offered, self.tail)
    }

    /// Takes over the head that a completion carries (SQHD, Base 2.0 §3.3.3.2) and returns how many entries it frees.
    ///
    /// # Errors
    /// [`HeadError`] if the controller cannot be there: it can have fetched only what a doorbell offered, and never goes back.
    /// The ring is unchanged then.
    #[inline]
    pub const fn advance_head(&mut self, head: u16) -> Result<u32, HeadError> {
        let step = self.size.distance(self.head, head);
        if head as u32 >= self.size.entries() || step > self.size.distance(self.head, self.offered) {
            return Err(HeadError {
                head,
                known: self.head,
                tail: self.offered,
                size: self.size.entries(),
            });
        }
        self.head = head;
        Ok(step)
    }
}

/// The indices of a completion queue: where the next entry appears, and the phase tag that tells it from the entry of
/// the pass before. Base 2.0 §3.3.1, §3.3.3.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionRing {
    size: RingSize,
    head: u16,
    phase: bool,
    /// The head that the doorbell was last told.
    released: u16,
}

impl CompletionRing {
    /// An empty ring of `size` entries, whose memory must be zeroed: in the first pass, the controller sets the phase tag.
    ///
    /// # Errors
    /// [`RingSizeError`] if `size` is not 2 to 65536.
    pub const fn new(size: u32) -> Result<Self, RingSizeError> {
        match RingSize::new(size) {
            Ok(size) => Ok(Self {
                size,
                head: 0,
                phase: true,
                released: 0,
            }),
            Err(error) => Err(error),
        }
    }

    /// Entries of the ring, 2 to 65536.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size.entries()
    }

    /// The entry to look at.
    #[inline]
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// The phase tag that a new entry at [`head`](Self::head) carries.
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.phase
    }

    /// Whether an entry at [`head`](Self::head) with this phase tag is new.
    #[inline]
    #[must_use]
    pub const fn is_new(&self, phase: bool) -> bool {
        phase == self.phase
    }

    /// Entries consumed that the controller was not told of. At `size - 1` it may be waiting for the doorbell.
    #[must_use]
    pub const fn unreleased(&self) -> u32 {
        self.size.distance(self.released, self.head)
    }

    /// Consumes the entry at [`head`](Self::head), after it was found new, and returns its index.
    ///
    /// Call [`doorbell`](Self::doorbell) at least once per `size - 1` entries. A controller that keeps to its queue has no room
    /// to write more, and one that does not is not noticed here.
    #[inline]
    pub const fn advance(&mut self) -> u16 {
        let index = self.head;
        let (next, wrapped) = self.size.next(index);
        self.head = next;
        self.phase ^= wrapped;
        index
    }

    /// Consumes so many entries at once, at most `size`, after all were found new.
    pub const fn advance_by(&mut self, count: u32) {
        let room = self.size.entries() - self.head as u32;
        let wrapped = count >= room;
        let head = if wrapped {
            count - room
        } else {
            self.head as u32 + count
        };
        // Below the size.
        let [low, high, ..] = head.to_le_bytes();
        self.head = u16::from_le_bytes([low, high]);
        self.phase ^= wrapped;
    }

    /// The value to write to the head doorbell, or `None` if it holds it already.
    #[inline]
    #[must_use = "the value has to be written to the doorbell"]
    pub const fn doorbell(&mut self) -> Option<u16> {
        if self.released == self.head {
            return None;
        }
        self.released = self.head;
        Some(self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn sizes_are_those_of_the_specification() {
        for size in [0, 1, 65537, u32::MAX] {
            assert_eq!(SubmissionRing::new(size), Err(RingSizeError { size }));
            assert_eq!(CompletionRing::new(size), Err(RingSizeError { size }));
        }
        assert_eq!(SubmissionRing::new(2).unwrap().free(), 1);
        assert_eq!(SubmissionRing::new(65536).unwrap().free(), 65535);
    }

    #[test]
    fn entries_are_consumed_together_as_one_by_one() {
        for size in [2, 3, 7, 64, 65536] {
            let mut one = CompletionRing::new(size).unwrap();
            let mut all = one;
            for count in [1, 0, size - 1, size, 1, size / 2, size, size - 1] {
                for _ in 0..count {
                    one.advance();
                }
                all.advance_by(count);
                assert_eq!(one, all, "{count} of {size}");
            }
        }
    }

    #[test]
    fn the_largest_ring_wraps() {
        let mut ring = SubmissionRing::new(65536).unwrap();
        for expected in 0..65535 {
            assert_eq!(ring.push(), Ok(expected));
        }
        assert_eq!(ring.push(), Err(RingFull));
        assert_eq!(ring.doorbell(), Some(65535));
        assert_eq!(ring.advance_head(65535), Ok(65535));
        assert!(ring.is_empty());
        assert_eq!(ring.push(), Ok(65535));
        assert_eq!((ring.doorbell(), ring.doorbell()), (Some(0), None));
        assert_eq!(ring.advance_head(0), Ok(1));

        let mut ring = CompletionRing::new(65536).unwrap();
        for expected in 0..=65535 {
            assert!(ring.phase());
            assert_eq!(ring.advance(), expected);
        }
        assert_eq!((ring.head(), ring.phase()), (0, false));
    }

    #[test]
    fn a_head_the_controller_was_never_offered_is_refused() {
        let mut ring = SubmissionRing::new(4).unwrap();
        ring.push().unwrap();
        ring.push().unwrap();
        // No doorbell yet: nothing can have been fetched.
        let refused = HeadError {
            head: 1,
            known: 0,
            tail: 0,
            size: 4,
        };
        assert_eq!(ring.advance_head(1), Err(refused));
        assert_eq!(ring.doorbell(), Some(2));
        assert!(ring.advance_head(3).is_err());
        assert!(ring.advance_head(4).is_err());
        assert!(ring.advance_head(u16::MAX).is_err());
        assert_eq!(ring.advance_head(1), Ok(1));
        assert!(ring.advance_head(0).is_err(), "a head never goes back");
        assert_eq!(ring.advance_head(1), Ok(0));
        assert_eq!(ring.advance_head(2), Ok(1));
        assert!(ring.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push,
        Ring,
        Fetch(u32),
        Claim(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Push),
            2 => Just(Step::Ring),
            2 => (0_u32..8).prop_map(Step::Fetch),
            1 => any::<u16>().prop_map(Step::Claim),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        /// The model counts without wrapping: entry `n` lies at `n % size`.
        #[test]
        fn submissions_follow_the_model(size in prop_oneof![2_u32..40, Just(65536)], steps in steps()) {
            let mut ring = SubmissionRing::new(size).unwrap();
            let (mut head, mut offered, mut tail) = (0_u32, 0_u32, 0_u32);
            let at = |count: u32| u16::try_from(count % size).unwrap();
            for step in steps {
                match step {
                    Step::Push if tail - head == size - 1 => prop_assert_eq!(ring.push(), Err(RingFull)),
                    Step::Push => {
                        prop_assert_eq!(ring.push(), Ok(at(tail)));
                        tail += 1;
                    }
                    Step::Ring => {
                        prop_assert_eq!(ring.doorbell(), (offered != tail).then(|| at(tail)));
                        offered = tail;
                    }
                    Step::Fetch(count) => {
                        let count = count.min(offered - head);
                        prop_assert_eq!(ring.advance_head(at(head + count)), Ok(count));
                        head += count;
                    }
                    Step::Claim(claim) => {
                        let reachable = (head..=offered).find(|count| at(*count) == claim);
                        prop_assert_eq!(ring.advance_head(claim).ok(), reachable.map(|count| count - head));
                        head = reachable.unwrap_or(head);
                    }
                }
                prop_assert_eq!((ring.head(), ring.tail()), (at(head), at(tail)));
                prop_assert_eq!((ring.used(), ring.free()), (tail - head, size - 1 - (tail - head)));
                prop_assert_eq!(ring.is_empty(), tail == head);
                prop_assert_eq!(ring.is_full(), tail - head == size - 1);
            }
        }

        /// The model controller writes entries with phase tags into zeroed memory and respects the head doorbell.
        #[test]
        fn completions_are_seen_once_and_in_order(
            size in 2_u32..20,
            steps in proptest::collection::vec((0_u32..24, 0_u32..24, any::<bool>()), 0..60),
        ) {
            let mut ring = CompletionRing::new(size).unwrap();
            let mut memory = vec![(0_u32, false); size as usize];
            let mut expected = VecDeque::new();
            let (mut written, mut consumed, mut released) = (0_u32, 0_u32, 0_u32);
            for (write, consume, doorbell) in steps {
                for _ in 0..write.min(size - 1 - (written - released)) {
                    memory[(written % size) as usize] = (written, (written / size).is_multiple_of(2));
                    expected.push_back(written);
                    written += 1;
                }
                for _ in 0..consume {
                    let (value, phase) = memory[usize::from(ring.head())];
                    if !ring.is_new(phase) {
                        prop_assert!(expected.is_empty());
                        break;
                    }
                    prop_assert_eq!(Some(value), expected.pop_front());
                    prop_assert_eq!(u32::from(ring.advance()), value % size);
                    consumed += 1;
                }
                prop_assert_eq!(ring.unreleased(), consumed - released);
                if doorbell {
                    let value = (released != consumed).then(|| u16::try_from(consumed % size).unwrap());
                    prop_assert_eq!(ring.doorbell(), value);
                    released = consumed;
                }
            }
        }
    }
}
