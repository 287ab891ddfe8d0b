//! Faults as data: what becomes of the bytes of one direction of a connection.
//!
//! A plan says how the stream is cut into pieces, how long pieces are on their way, and what breaks at which byte. A stream
//! keeps its order, so nothing is reordered; what TCP delivers late it delivers late as a whole.

use std::time::Duration;

use crate::random::Random;

/// How a stream is cut into the pieces that one receive brings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fragments {
    /// Whatever is there.
    #[default]
    Whole,
    /// Pieces of so many bytes.
    Fixed(usize),
    /// Pieces of 1 to so many bytes, from this seed.
    Random {
        /// Where the sequence of sizes begins.
        seed: u64,
        /// Largest piece.
        most: usize,
    },
}

/// What happens to the stream at one byte of it, counted from its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// These bits of the byte are flipped.
    Flip(u8),
    /// So many bytes from here on are left out: what follows is in their place.
    Remove(u64),
    /// These bytes come before it.
    Insert(Vec<u8>),
    /// The connection breaks in both directions before it.
    Cut,
    /// Neither it nor anything later is delivered, and nobody is told.
    Stall,
}

/// What becomes of the bytes of one direction.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// How they are cut into pieces.
    pub fragments: Fragments,
    /// How long they are on their way.
    pub delay: Duration,
    /// Faults by byte, ascending.
    pub faults: Vec<(u64, Fault)>,
    /// Most bytes that one send of a host takes, if there is a limit; the host keeps the rest.
    pub room: Option<usize>,
    /// Bytes on their way to a host, or there and not received, from which on nothing more is taken from the target.
    pub window: Option<usize>,
}

impl Plan {
    /// One fault and nothing else.
    #[must_use]
    pub fn fault(at: u64, fault: Fault) -> Self {
        Self {
            faults: vec![(at, fault)],
            ..Self::default()
        }
    }

    /// Pieces of so many bytes.
    #[must_use]
    pub fn pieces(len: usize) -> Self {
        Self {
            fragments: Fragments::Fixed(len),
            ..Self::default()
        }
    }
}

/// The plans of both directions.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// From the host to the target.
    pub to_target: Plan,
    /// From the target to the host.
    pub to_host: Plan,
}

/// A plan under way.
#[derive(Debug)]
pub(crate) struct Running {
    plan: Plan,
    /// Bytes of the original stream so far.
    at: u64,
    /// Bytes still to be left out.
    removing: u64,
    next: usize,
    random: Random,
    pub(crate) stalled: bool,
}

/// What is left of bytes after the plan was applied.
pub(crate) struct Outcome {
    pub(crate) bytes: Vec<u8>,
    /// The connection breaks after them.
    pub(crate) cut: bool,
}

impl Running {
    pub(crate) fn new(plan: Plan) -> Self {
        let seed = match plan.fragments {
            Fragments::Random { seed, .. } => seed,
            Fragments::Whole | Fragments::Fixed(_) => 0,
        };
        Self {
            plan,
            at: 0,
            removing: 0,
            next: 0,
            random: Random::new(seed),
            stalled: false,
        }
    }

    /// How many of `len` bytes a send takes.
    pub(crate) fn room(&self, len: usize) -> usize {
        self.plan.room.map_or(len, |room| len.min(room.max(1)))
    }

    /// Whether more may be sent while so many bytes wait.
    pub(crate) fn is_open(&self, waiting: usize) -> bool {
        self.plan.window.is_none_or(|window| waiting < window)
    }

    pub(crate) fn delay(&self) -> Duration {
        self.plan.delay
    }

    /// Size of the next piece, of `len` bytes that are there.
    pub(crate) fn piece(&mut self, len: usize) -> usize {
        match self.plan.fragments {
            Fragments::Whole => len,
            Fragments::Fixed(most) => len.min(most.max(1)),
            Fragments::Random { most, .. } => len.min(1 + self.random.below(most.max(1))),
        }
    }

    /// Applies the faults to the next bytes of the stream.
    pub(crate) fn apply(&mut self, input: &[u8]) -> Outcome {
        if self.next == self.plan.faults.len() && self.removing == 0 && !self.stalled {
            self.at += u64::try_from(input.len()).unwrap();
            return Outcome {
                bytes: input.to_vec(),
                cut: false,
            };
        }
        let mut bytes = Vec::with_capacity(input.len());
        for byte in input {
            let mut byte = *byte;
            while let Some((_, fault)) = self.plan.faults.get(self.next).filter(|(at, _)| *at == self.at) {
                match fault {
                    Fault::Flip(bits) => byte ^= bits,
                    Fault::Remove(count) => self.removing = *count,
                    Fault::Insert(more) => bytes.extend_from_slice(more),
                    Fault::Cut => return Outcome { bytes, cut: true },
                    Fault::Stall => self.stalled = true,
                }
                self.next += 1;
            }
            self.at += 1;
            if self.stalled {
                break;
            }
            if self.removing > 0 {
                self.removing -= 1;
            } else {
                bytes.push(byte);
            }
        }
        Outcome { bytes, cut: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(faults: Vec<(u64, Fault)>, parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut running = Running::new(Plan {
            faults,
            ..Plan::default()
        });
        let mut all = Vec::new();
        for part in parts {
            let outcome = running.apply(part);
            all.extend(outcome.bytes);
            if outcome.cut {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn faults_happen_at_their_byte_however_the_stream_comes() {
        for parts in [&[&[0_u8, 1, 2, 3, 4, 5][..]][..], &[&[0, 1], &[2], &[3, 4, 5]]] {
            assert_eq!(apply(vec![], parts), (vec![0, 1, 2, 3, 4, 5], false));
            assert_eq!(
                apply(vec![(2, Fault::Flip(0x80))], parts),
                (vec![0, 1, 0x82, 3, 4, 5], false)
            );
            assert_eq!(apply(vec![(1, Fault::Remove(3))], parts), (vec![0, 4, 5], false));
            assert_eq!(
                apply(vec![(4, Fault::Insert(vec![9, 9])), (5, Fault::Flip(1))], parts),
                (vec![0, 1, 2, 3, 9, 9, 4, 4], false)
            );
            assert_eq!(apply(vec![(3, Fault::Cut)], parts), (vec![0, 1, 2], true));
            assert_eq!(apply(vec![(3, Fault::Stall)], parts), (vec![0, 1, 2], false));
        }
    }

    #[test]
    fn pieces_are_as_small_as_asked_for() {
        let mut running = Running::new(Plan::pieces(3));
        assert_eq!((running.piece(10), running.piece(2)), (3, 2));
        let mut running = Running::new(Plan {
            fragments: Fragments::Random { seed: 7, most: 5 },
            ..Plan::default()
        });
        for _ in 0..100 {
            assert!((1..=5).contains(&running.piece(100)));
        }
    }
}
