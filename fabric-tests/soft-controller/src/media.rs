//! Namespaces: their blocks in memory, as far as they were written.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a piece of media. Pieces that were never written read as zeroes and take no memory.
const PIECE: u64 = PIECE_LEN as u64;
const PIECE_LEN: usize = 4096;

/// Bytes that are stored sparsely.
#[derive(Debug, Default)]
pub(crate) struct Media {
    pieces: BTreeMap<u64, Box<[u8]>>,
}

impl Media {
    /// Reads bytes. The caller has checked the range.
    pub(crate) fn read(&self, at: u64, to: &mut [u8]) {
        let mut at = at;
        let mut rest = to;
        while !rest.is_empty() {
            let (offset, len) = part(at, rest.len());
            let (now, later) = rest.split_at_mut(len);
            match self
                .pieces
                .get(&(at / PIECE))
                .and_then(|piece| piece.get(offset..offset + len))
            {
                Some(bytes) => now.copy_from_slice(bytes),
                None => now.fill(0),
            }
            at = at.saturating_add(len as u64);
            rest = later;
        }
    }

    /// Writes bytes. The caller has checked the range.
    pub(crate) fn write(&mut self, at: u64, from: &[u8]) {
        let mut at = at;
        let mut rest = from;
        while !rest.is_empty() {
            let (offset, len) = part(at, rest.len());
            let (now, later) = rest.split_at(len);
            let piece = self
                .pieces
                .entry(at / PIECE)
                .or_insert_with(|| vec![0; PIECE_LEN].into_boxed_slice());
            if let Some(bytes) = piece.get_mut(offset..offset + len) {
                bytes.copy_from_slice(now);
            }
            at = at.saturating_add(len as u64);
            rest = later;
        }
    }

    /// Makes bytes zero; whole pieces give their memory back.
    pub(crate) fn zero(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len);
        let (first_whole, end_whole) = (at.div_ceil(PIECE), end / PIECE);
        if first_whole < end_whole {
            let keep = self.pieces.split_off(&first_whole);
            let mut after = keep;
            let mut after = after.split_off(&end_whole);
            self.pieces.append(&mut after);
        }
        let mut edge = |from: u64, to: u64| {
            let start = usize::try_from(from % PIECE).unwrap_or(0);
            let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
            if let Some(piece) = self.pieces.get_mut(&(from / PIECE))
                && let Some(bytes) = piece.get_mut(start..start.saturating_add(len))
            {
                bytes.fill(0);
            }
        };
        if at / PIECE == end / PIECE {
            edge(at, end);
        } else {
            if !at.is_multiple_of(PIECE) {
                edge(at, first_whole * PIECE);
            }
            if !end.is_multiple_of(PIECE) {
                edge(end_whole * PIECE, end);
            }
        }
    }

    /// Bytes of memory in use.
    pub(crate) fn used(&self) -> u64 {
        self.pieces.len() as u64 * PIECE
    }
}

/// Offset in the piece and bytes of it, for the first part of a range.
fn part(at: u64, len: usize) -> (usize, usize) {
    // Below a piece's length, so it fits.
    let offset = usize::try_from(at % PIECE).unwrap_or(0);
    (offset, len.min(PIECE_LEN - offset))
}

/// One namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) blocks: u64,
    pub(crate) lbads: u8,
    pub(crate) shared: bool,
    pub(crate) write_protected: bool,
    /// Functions whose controllers it is attached to.
    pub(crate) attached: BTreeSet<u16>,
    /// Which namespace it is, over the life of the subsystem: a later one with the same identifier has another.
    pub(crate) generation: u64,
    pub(crate) media: Media,
    /// Blocks that were marked by Write Uncorrectable.
    pub(crate) bad: BTreeSet<u64>,
    /// Flushes so far.
    pub(crate) flushes: u64,
}

impl Namespace {
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.lbads
    }

    pub(crate) fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn media_is_memory(steps in proptest::collection::vec((any::<bool>(), 0_u64..20_000, 0_usize..9_000, 1_u8..), 0..40)) {
            let mut model = vec![0_u8; 30_000];
            let mut media = Media::default();
            for (write, at, len, value) in steps {
                let range = usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + len;
                if write {
                    model[range].fill(value);
                    media.write(at, &vec![value; len]);
                } else {
                    model[range].fill(0);
                    media.zero(at, len as u64);
                }
            }
            let mut all = vec![1; 30_000];
            media.read(0, &mut all);
            prop_assert!(all == model);
            media.zero(0, 32_768);
            prop_assert_eq!(media.used(), 0);
        }
    }
}
