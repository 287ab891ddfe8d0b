//! [`Lists`]: memory for PRP lists and SGL segments, in blocks that hold what the longest command needs.

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::{Iova, PageSize, Region, Segment};

use crate::error::NvmeError;

/// Blocks allocated at a time.
const CHUNK: usize = 16;

/// Blocks of list memory. It grows with use.
#[derive(Debug)]
pub(crate) struct Lists {
    space: DmaSpace,
    page: usize,
    block: usize,
    most: usize,
    mappings: Vec<Mapping>,
    blocks: Vec<(Segment, Iova)>,
    free: Vec<u32>,
}

impl Lists {
    /// Blocks for commands that transfer up to `max_len` bytes; at most `most` of them.
    pub(crate) fn new(space: DmaSpace, page: PageSize, max_len: u64, most: usize) -> Self {
        let bytes = usize::try_from(page.bytes()).unwrap_or(4096);
        let pages = usize::try_from(page.lists_for(max_len)).unwrap_or(1).max(1);
        Self {
            space,
            page: bytes,
            block: pages * bytes,
            most,
            mappings: Vec::new(),
            blocks: Vec::new(),
            free: Vec::new(),
        }
    }

    /// A block that no command uses.
    pub(crate) fn take(&mut self) -> Result<u32, NvmeError> {
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free.pop().ok_or(NvmeError::TooLong {
            len: self.blocks.len() as u64,
            max: self.most as u64,
        })
    }

    fn grow(&mut self) -> Result<(), NvmeError> {
        let count = CHUNK.min(self.most.saturating_sub(self.blocks.len()));
        if count == 0 {
            return Ok(());
        }
        let region = Region::allocate(count * self.block, self.page)?;
        let mapping = self.space.map(&region, Access::Read)?;
        for n in 0..count {
            let segment = region.segment(n * self.block..(n + 1) * self.block)?;
            let start = Iova(mapping.range().start().0 + (n * self.block) as u64);
            self.free
                .push(u32::try_from(self.blocks.len()).unwrap_or(u32::MAX));
            self.blocks.push((segment, start));
        }
        self.mappings.push(mapping);
        Ok(())
    }

    pub(crate) fn give_back(&mut self, block: u32) {
        self.free.push(block);
    }

    /// A block's memory and where the controller finds it.
    pub(crate) fn block(&self, block: u32) -> Option<(&Segment, Iova)> {
        let (segment, start) = self.blocks.get(block as usize)?;
        Some((segment, *start))
    }

    /// Bytes of a page of list memory.
    pub(crate) const fn page(&self) -> usize {
        self.page
    }

    pub(crate) fn leak(&mut self) {
        for mapping in self.mappings.drain(..) {
            std::mem::forget(mapping);
        }
    }
}
