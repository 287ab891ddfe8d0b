//! Memory for what a command's data pointer refers to when it cannot hold it: PRP lists and SGL segments.
//!
//! A driver keeps such memory per command slot, mapped for the device; [`PrpRules`](crate::PrpRules) and
//! [`SglRules`](crate::SglRules) write into it block by block through [`ListMemory`].

use crate::address::{AddressOverflow, Iova, IovaRange};
use crate::memory::{MemoryError, Segment};

/// Numbered blocks of memory that a device can read. Blocks are used from 0 on, each from its start.
pub trait ListMemory {
    /// Where the device finds a block, and its length; `None` if there are no more blocks.
    fn block(&self, index: usize) -> Option<IovaRange>;

    /// Writes bytes `at` bytes into a block. Ordering them before the doorbell is the caller's business.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the bytes do not lie in the block, or there is no such block.
    fn write(&mut self, index: usize, at: usize, bytes: &[u8]) -> Result<(), MemoryError>;
}

/// No list memory at all: for transfers that are known to fit into the data pointer.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLists;

impl ListMemory for NoLists {
    fn block(&self, _: usize) -> Option<IovaRange> {
        None
    }

    fn write(&mut self, _: usize, at: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError::OutOfBounds {
            start: at,
            end: at.saturating_add(bytes.len()),
            len: 0,
        })
    }
}

/// Part of a region as list memory, in blocks of one length. The device sees the whole part as one range.
#[derive(Debug)]
pub struct SegmentLists<'a> {
    memory: &'a Segment,
    mapped: IovaRange,
    block_len: usize,
}

impl<'a> SegmentLists<'a> {
    /// Blocks of `block_len` bytes in `memory`, which the device sees from `start` on. A rest shorter than a block is not
    /// used; a `block_len` of 0 gives no blocks.
    ///
    /// # Errors
    /// [`AddressOverflow`] if the memory would not fit into the device's address space at `start`.
    pub fn new(memory: &'a Segment, start: Iova, block_len: usize) -> Result<Self, AddressOverflow> {
        Ok(Self {
            memory,
            mapped: IovaRange::new(start, memory.len() as u64)?,
            block_len,
        })
    }

    /// Offset of a block in the segment, if all of it is there.
    fn offset(&self, index: usize) -> Option<usize> {
        let at = index.checked_mul(self.block_len)?;
        let end = at.checked_add(self.block_len)?;
        (self.block_len > 0 && end <= self.memory.len()).then_some(at)
    }
}

impl ListMemory for SegmentLists<'_> {
    fn block(&self, index: usize) -> Option<IovaRange> {
        self.mapped
            .part(self.offset(index)? as u64, self.block_len as u64)
    }

    fn write(&mut self, index: usize, at: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        let end = at.saturating_add(bytes.len());
        match self.offset(index) {
            Some(block) if end <= self.block_len => self
                .memory
                .region()
                .write(self.memory.start() + block + at, bytes),
            found => Err(MemoryError::OutOfBounds {
                start: at,
                end,
                len: found.map_or(0, |_| self.block_len),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;

    #[test]
    fn blocks_lie_side_by_side_and_are_written_inside_only() {
        let region = Region::allocate(100, 8).unwrap();
        let memory = region.segment(10..75).unwrap();
        let mut lists = SegmentLists::new(&memory, Iova(0x4000), 32).unwrap();
        assert_eq!(lists.block(1), IovaRange::new(Iova(0x4020), 32).ok());
        assert_eq!(lists.block(2), None, "a rest of one byte is no block");
        assert_eq!(lists.block(usize::MAX), None);
        lists.write(1, 30, &[1, 2]).unwrap();
        assert!(lists.write(1, 31, &[1, 2]).is_err());
        assert!(lists.write(2, 0, &[1]).is_err());
        let mut bytes = [0; 2];
        region.read(10 + 62, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2]);
        assert_eq!(SegmentLists::new(&memory, Iova(0), 0).unwrap().block(0), None);
        assert!(SegmentLists::new(&memory, Iova(u64::MAX), 32).is_err());
        assert!(NoLists.block(0).is_none() && NoLists.write(0, 0, &[1]).is_err());
    }
}
