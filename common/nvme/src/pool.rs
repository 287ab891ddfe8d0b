//! [`Pool`]: a queue's own memory, for data that cannot be described or mapped where it is and for reads that leave the place to the queue.

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::{IovaRange, Region};

use crate::error::NvmeError;

/// Pieces that are kept for the next use.
const KEPT: usize = 64;
/// Bytes of pieces that are kept.
const KEPT_BYTES: usize = 64 << 20;
/// The shortest piece.
const SHORTEST: usize = 4096;

/// Memory that the controller reaches. Operations get clones of `memory`; while there are any, the piece is not used again.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) memory: Region,
    mapping: Mapping,
}

impl Piece {
    /// The controller's addresses of the first `len` bytes.
    pub(crate) fn range(&self, len: usize) -> Option<IovaRange> {
        self.mapping.range().part(0, len as u64)
    }

    /// Keeps the memory for ever: the controller may still use it.
    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

/// Pieces by length.
#[derive(Debug)]
pub(crate) struct Pool {
    space: DmaSpace,
    align: usize,
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Pool {
    pub(crate) fn new(space: DmaSpace, align: usize) -> Self {
        Self {
            space,
            align,
            pieces: Vec::new(),
            bytes: 0,
        }
    }

    /// At least `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<Piece, NvmeError> {
        let fitting = self
            .pieces
            .iter()
            .enumerate()
            .filter(|(_, piece)| piece.memory.len() >= len && piece.memory.is_only_clone());
        if let Some((index, _)) = fitting.min_by_key(|(_, piece)| piece.memory.len()) {
            let piece = self.pieces.swap_remove(index);
            self.bytes -= piece.memory.len();
            return Ok(piece);
        }
        let size = len.max(SHORTEST).checked_next_power_of_two().unwrap_or(len);
        let owner = Region::allocate(size, self.align)?;
        let mapping = self.space.map(&owner, Access::ReadWrite)?;
        Ok(Piece {
            // A count of its own: the mapping's clone does not keep it from being the only one.
            memory: owner.handle(),
            mapping,
        })
    }

    /// Keeps a piece for the next use, if there is room. Operations may still have clones.
    pub(crate) fn give_back(&mut self, piece: Piece) {
        if self.pieces.len() < KEPT && self.bytes + piece.memory.len() <= KEPT_BYTES {
            self.bytes += piece.memory.len();
            self.pieces.push(piece);
        }
    }

    pub(crate) fn leak(&mut self) {
        for piece in self.pieces.drain(..) {
            piece.leak();
        }
    }
}
