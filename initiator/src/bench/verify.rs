//! Block-stamped data: every logical block says where it belongs, and proves that it is whole.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `HOMISTMP` |
//! | 8..16 | logical block address |
//! | 16..24 | seed of the run, chosen by the user |
//! | 24..32 | run: different for every run |
//! | 32..36 | generation: how often the run has written this block |
//! | 36..n-4 | filler that depends on all of the above and on the offset |
//! | n-4..n | CRC-32C of everything before it |
//!
//! Numbers are little-endian. The filler differs between any two blocks and any two writes of one block, so that a transfer
//! of which a part went elsewhere, came late or was swapped with another does not pass; the CRC finds it without knowing the
//! filler. A damaged block whose CRC happens to match (one in four thousand million) is not found.

use std::fmt;

use crc_fast::{CrcAlgorithm, checksum};

/// First bytes of a stamped block.
const MAGIC: [u8; 8] = *b"HOMISTMP";
/// Bytes before the filler.
const HEADER: usize = 36;
/// Bytes of the CRC at the end.
const TRAILER: usize = 4;

/// The smallest block that can be stamped, in bytes.
pub const MIN_BLOCK: usize = 64;

/// What a stamped block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Logical block address that the block was written to.
    pub lba: u64,
    /// Seed that the user chose.
    pub seed: u64,
    /// The run that wrote it.
    pub run: u64,
    /// How often that run had written this block, this time included.
    pub generation: u32,
}

/// What a block should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this, written by this run.
    Exactly(Stamp),
    /// Any run's stamp with this address and seed.
    AnyRun {
        /// Logical block address.
        lba: u64,
        /// Seed.
        seed: u64,
    },
}

impl Expected {
    /// The address that the block was read from.
    #[must_use]
    pub fn lba(&self) -> u64 {
        match self {
            Self::Exactly(stamp) => stamp.lba,
            Self::AnyRun { lba, .. } => *lba,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(stamp) => stamp.fmt(f),
            Self::AnyRun { lba, seed } => write!(f, "a block stamped for LBA {lba} with seed {seed}"),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LBA {}, generation {}, seed {}, run {:016x}",
            self.lba, self.generation, self.seed, self.run
        )
    }
}

/// What a block held instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A whole block that belongs elsewhere or to another time.
    Stamp(Stamp),
    /// A block that was stamped and has been damaged since.
    Damaged {
        /// What its header says, if that can be trusted.
        header: Stamp,
        /// CRC-32C of the bytes.
        computed: u32,
        /// CRC-32C that the block carries.
        carried: u32,
    },
    /// Nothing but zeroes: never written, or lost.
    Zeroes,
    /// Something that was never stamped; the first eight bytes.
    Foreign([u8; 8]),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stamp(stamp) => stamp.fmt(f),
            Self::Damaged {
                header,
                computed,
                carried,
            } => write!(
                f,
                "a damaged block (CRC {computed:08x}, its stamp says {carried:08x}) whose header reads {header}"
            ),
            Self::Zeroes => f.write_str("only zeroes"),
            Self::Foreign(first) => {
                f.write_str("a block without a stamp, which starts with")?;
                first.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
        }
    }
}

/// A block that did not hold what was written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wrong data at LBA {}: expected {expected}; found {found}", expected.lba())]
pub struct Mismatch {
    /// What should have been there.
    pub expected: Expected,
    /// What was there.
    pub found: Found,
}

impl Stamp {
    /// Fills `block` with this stamp. Blocks below [`MIN_BLOCK`] bytes are left as they are, and do not pass
    /// [`check`].
    pub fn fill(&self, block: &mut [u8]) {
        let Some(body) = block.len().checked_sub(TRAILER).filter(|body| *body >= HEADER) else {
            return;
        };
        let (body, trailer) = block.split_at_mut(body);
        let (header, filler) = body.split_at_mut(HEADER);
        header.copy_from_slice(&self.header());
        let base = (self.lba ^ self.seed.rotate_left(17) ^ self.run.rotate_left(31))
            .wrapping_add(u64::from(self.generation) << 40)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut word = base;
        for chunk in filler.chunks_mut(8) {
            word = word.wrapping_add(0xd1b5_4a32_d192_ed03);
            let bytes = (word ^ (word >> 29)).to_le_bytes();
            if let Some(part) = bytes.get(..chunk.len()) {
                chunk.copy_from_slice(part);
            }
        }
        trailer.copy_from_slice(&crc(body).to_le_bytes());
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let fields = MAGIC
            .into_iter()
            .chain(self.lba.to_le_bytes())
            .chain(self.seed.to_le_bytes())
            .chain(self.run.to_le_bytes())
            .chain(self.generation.to_le_bytes());
        for (to, from) in header.iter_mut().zip(fields) {
            *to = from;
        }
        header
    }

    /// Reads the header; `None` if the block was never stamped.
    fn parse(block: &[u8]) -> Option<Self> {
        let rest = block.strip_prefix(&MAGIC)?;
        let (lba, rest) = rest.split_first_chunk()?;
        let (seed, rest) = rest.split_first_chunk()?;
        let (run, rest) = rest.split_first_chunk()?;
        let (generation, _) = rest.split_first_chunk()?;
        Some(Self {
            lba: u64::from_le_bytes(*lba),
            seed: u64::from_le_bytes(*seed),
            run: u64::from_le_bytes(*run),
            generation: u32::from_le_bytes(*generation),
        })
    }
}

/// Checks that a block holds what it should.
///
/// # Errors
/// [`Mismatch`], which says what is there instead.
pub fn check(block: &[u8], expected: Expected) -> Result<(), Mismatch> {
    match look(block) {
        Found::Stamp(stamp)
            if match expected {
                Expected::Exactly(exactly) => stamp == exactly,
                Expected::AnyRun { lba, seed } => (stamp.lba, stamp.seed) == (lba, seed),
            } =>
        {
            Ok(())
        }
        found => Err(Mismatch { expected, found }),
    }
}

/// Says what a block holds.
#[must_use]
pub fn look(block: &[u8]) -> Found {
    let carried = block.split_last_chunk().filter(|(body, _)| body.len() >= HEADER);
    match (carried, Stamp::parse(block)) {
        (Some((body, carried)), Some(header)) => {
            let (computed, carried) = (crc(body), u32::from_le_bytes(*carried));
            if computed == carried {
                Found::Stamp(header)
            } else {
                Found::Damaged {
                    header,
                    computed,
                    carried,
                }
            }
        }
        _ if block.iter().all(|byte| *byte == 0) => Found::Zeroes,
        _ => {
            let mut first = [0; 8];
            first.iter_mut().zip(block).for_each(|(to, from)| *to = *from);
            Found::Foreign(first)
        }
    }
}

/// CRC-32C (Castagnoli), which the CPU computes.
fn crc(bytes: &[u8]) -> u32 {
    // The algorithm has 32 bits; the crate returns every algorithm's result in 64.
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        lba: 77,
        seed: 5,
        run: 0xabcd,
        generation: 3,
    };

    #[test]
    fn a_stamped_block_passes_and_names_itself() {
        for size in [MIN_BLOCK, 512, 520, 4096] {
            let mut block = vec![0xff; size];
            STAMP.fill(&mut block);
            assert_eq!(look(&block), Found::Stamp(STAMP));
            check(&block, Expected::Exactly(STAMP)).unwrap();
            check(&block, Expected::AnyRun { lba: 77, seed: 5 }).unwrap();
        }
    }

    #[test]
    fn every_corrupted_byte_is_found() {
        let mut block = vec![0; 512];
        STAMP.fill(&mut block);
        for at in 0..block.len() {
            for bit in [1, 0x80] {
                block[at] ^= bit;
                let error = check(&block, Expected::Exactly(STAMP)).unwrap_err();
                assert!(
                    error
                        .to_string()
                        .starts_with("wrong data at LBA 77: expected LBA 77, generation 3"),
                    "{error}"
                );
                block[at] ^= bit;
            }
        }
        check(&block, Expected::Exactly(STAMP)).unwrap();
    }

    #[test]
    fn whole_blocks_from_elsewhere_or_before_are_found() {
        let mut block = vec![0; 4096];
        for other in [
            Stamp { lba: 78, ..STAMP },
            Stamp {
                generation: 2,
                ..STAMP
            },
            Stamp { run: 1, ..STAMP },
            Stamp { seed: 1, ..STAMP },
        ] {
            other.fill(&mut block);
            let error = check(&block, Expected::Exactly(STAMP)).unwrap_err();
            assert_eq!(error.found, Found::Stamp(other));
        }
    }

    #[test]
    fn a_swapped_half_is_found() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        STAMP.fill(&mut old);
        let next = Stamp {
            generation: 4,
            ..STAMP
        };
        next.fill(&mut new);
        new[1024..2048].copy_from_slice(&old[1024..2048]);
        let error = check(&new, Expected::Exactly(next)).unwrap_err();
        assert!(matches!(error.found, Found::Damaged { header, .. } if header == next));
    }

    #[test]
    fn blocks_without_a_stamp_are_named() {
        let expected = Expected::AnyRun { lba: 1, seed: 2 };
        assert_eq!(check(&[0; 512], expected).unwrap_err().found, Found::Zeroes);
        let error = check(&[0xa5; 512], expected).unwrap_err();
        assert_eq!(
            error.to_string(),
            "wrong data at LBA 1: expected a block stamped for LBA 1 with seed 2; found a block without a stamp, \
             which starts with a5 a5 a5 a5 a5 a5 a5 a5"
        );
        assert_eq!(look(&[]), Found::Zeroes);
        assert_eq!(look(b"HOMISTMP"), Found::Foreign(*b"HOMISTMP"));
    }
}
