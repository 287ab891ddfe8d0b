//! Physical region pages: a transfer as a list of memory pages. Base 2.0 §4.1.1.
//!
//! A command holds two entries. The first names the first page and may start inside it; the second names the second
//! page, or a list of pages if there are more. A list fills a memory page; if it does not hold all entries, its last one
//! names the next list. [`PrpRules::build`] writes that, and [`PrpRules::walk`] reads it back as a controller does.
//!
//! Not here: metadata pointers, and lists for Create I/O Queue commands, whose entries name queue pages.

use homi_spec::Sqe;
use homi_spec::status::Status;

use crate::address::{AddressOverflow, Iova, IovaRange, Unmapped};
use crate::list::ListMemory;
use crate::memory::MemoryError;

/// Bytes of one entry.
const ENTRY: usize = 8;
/// Entries written or read at a time.
const BATCH: usize = 64;

/// Length of a memory page: 4 KiB to 2 MiB, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageSize(u32);

/// A memory page size that is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("memory page size {mps} is not supported: give 0 (4 KiB) to {max} (2 MiB)", max = PageSize::MAX_MPS)]
pub struct PageSizeError {
    /// The value of CC.MPS asked for.
    pub mps: u8,
}

impl PageSize {
    /// 4 KiB, which every host and almost every controller supports.
    pub const SMALLEST: Self = Self(4096);
    /// The largest CC.MPS that is supported here: 2 MiB.
    pub const MAX_MPS: u8 = 9;

    /// The page size that CC.MPS says: 2^(12 + MPS) bytes. Base 2.0 §3.1.3.5.
    ///
    /// # Errors
    /// [`PageSizeError`] for an MPS above [`PageSize::MAX_MPS`].
    pub const fn from_mps(mps: u8) -> Result<Self, PageSizeError> {
        if mps > Self::MAX_MPS {
            return Err(PageSizeError { mps });
        }
        Ok(Self(4096 << mps))
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Entries of a list that fills a page.
    #[must_use]
    pub const fn entries(self) -> usize {
        self.0 as usize / ENTRY
    }

    /// List pages that a transfer of `len` bytes needs at most, wherever it starts.
    #[must_use]
    pub const fn lists_for(self, len: u64) -> u64 {
        // At worst the first page holds one dword only.
        let after_first = len.saturating_sub(4).div_ceil(self.bytes());
        if after_first <= 1 {
            return 0;
        }
        // Each list gives one entry to the next, except the last.
        (after_first - 1).div_ceil(self.entries() as u64 - 1)
    }
}

/// The two entries of a command's data pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prp {
    /// The first byte of the transfer.
    pub first: Iova,
    /// The second page, the first list, or 0 if the transfer ends in the first page.
    pub second: Iova,
}

impl Prp {
    /// The entries in a command's data pointer, whatever PSDT says.
    #[must_use]
    pub const fn of(sqe: &Sqe) -> Self {
        Self {
            first: Iova(sqe.prp1()),
            second: Iova(sqe.prp2()),
        }
    }

    /// Sets a command's data pointer, and PSDT to PRP.
    pub fn apply(self, sqe: &mut Sqe) {
        sqe.set_prp(self.first.0, self.second.0);
    }
}

/// Why a transfer cannot be written as PRP entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrpBuildError {
    /// There are no bytes to transfer.
    #[error("a transfer of no bytes has no prp entries: leave the data pointer zero")]
    Empty,
    /// The first byte is not dword aligned.
    #[error("the transfer starts at {start}, which is not a multiple of 4")]
    FirstMisaligned {
        /// Where it starts.
        start: Iova,
    },
    /// A range after the first starts inside a page.
    #[error(
        "a range starts at {start}, inside a memory page of {page} bytes: only the first may, copy the data or use sgls"
    )]
    StartsInsidePage {
        /// Where it starts.
        start: Iova,
        /// Bytes of a page.
        page: u64,
    },
    /// A range before the last ends inside a page.
    #[error("{range} end inside a memory page of {page} bytes: only the last may, copy the data or use sgls")]
    EndsInsidePage {
        /// The range.
        range: IovaRange,
        /// Bytes of a page.
        page: u64,
    },
    /// The transfer is longer than allowed.
    #[error("the transfer has at least {len} bytes, at most {max} are allowed: split it")]
    TooLong {
        /// Bytes counted until the limit was passed.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// There is no memory for another list.
    #[error("the transfer needs more than {lists} list pages: split it or provide more")]
    OutOfLists {
        /// List pages that there are.
        lists: usize,
    },
    /// A block of list memory is no whole page.
    #[error("list memory of {block} is not one aligned memory page of {page} bytes")]
    BadList {
        /// The block.
        block: IovaRange,
        /// Bytes of a page.
        page: u64,
    },
    /// A list could not be written.
    #[error("a prp list could not be written")]
    Memory(#[from] MemoryError),
}

/// Why PRP entries cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrpWalkError {
    /// An entry does not have the alignment of its place.
    #[error("prp entry {entry} is not a multiple of {align}")]
    Misaligned {
        /// The entry.
        entry: Iova,
        /// 4 for the first entry, 8 for the first list pointer, a page for all others.
        align: u64,
    },
    /// The command transfers more than is allowed.
    #[error("the command transfers {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes of the transfer.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A list is not there.
    #[error("a prp list cannot be read")]
    Unmapped(#[from] Unmapped),
    /// The first page goes past the end of the address space.
    #[error(transparent)]
    Overflow(#[from] AddressOverflow),
}

impl PrpWalkError {
    /// The status with which a controller refuses the command.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Misaligned { .. } => Status::PRP_OFFSET_INVALID,
            Self::TooLong { .. } => Status::INVALID_FIELD,
            Self::Unmapped(_) | Self::Overflow(_) => Status::DATA_TRANSFER_ERROR,
        }
    }
}

/// What holds for the PRP entries of one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrpRules {
    /// The memory page size that CC.MPS was set to.
    pub page: PageSize,
    /// The longest transfer in bytes: MDTS, or what the list memory was made for.
    pub max_len: u64,
}

impl PrpRules {
    /// Writes a transfer as PRP entries, with lists in `lists` as needed. Ranges that touch are one; empty ones vanish.
    ///
    /// The first byte must be dword aligned; between ranges there must be page boundaries on both sides. Nothing is
    /// allocated. After an error, `lists` may hold entries of a part of the transfer.
    ///
    /// # Errors
    /// [`PrpBuildError`] says which rule the ranges break, or that `lists` is too small.
    pub fn build(
        &self,
        ranges: impl IntoIterator<Item = IovaRange>,
        lists: &mut impl ListMemory,
    ) -> Result<Prp, PrpBuildError> {
        let mut writer = Writer::new(self.page, lists);
        let mut len = 0_u64;
        let mut current: Option<IovaRange> = None;
        for range in ranges {
            if range.is_empty() {
                continue;
            }
            len = len.saturating_add(range.len());
            if len > self.max_len {
                return Err(PrpBuildError::TooLong {
                    len,
                    max: self.max_len,
                });
            }
            current = match current {
                None => Some(range),
                Some(previous) => match previous.joined(&range) {
                    Some(joined) => Some(joined),
                    None => {
                        writer.range(previous, false)?;
                        Some(range)
                    }
                },
            };
        }
        let last = current.ok_or(PrpBuildError::Empty)?;
        writer.range(last, true)?;
        writer.finish()
    }

    /// Follows the entries of a command that transfers `len` bytes, and calls `visit` with the part of each page in the order
    /// of the transfer.
    ///
    /// Lists are read once, and not beyond the entries that the transfer needs. Every list (but a first one with a single
    /// place) names pages of the transfer, so whatever the memory holds, lists that name each other included, the
    /// work is bounded by `len`. `visit` may have been called before an error.
    ///
    /// # Errors
    /// [`PrpWalkError`] says what is wrong, and the status for it.
    pub fn walk(
        &self,
        prp: Prp,
        len: u64,
        mut read: impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped>,
        mut visit: impl FnMut(IovaRange),
    ) -> Result<(), PrpWalkError> {
        if len > self.max_len {
            return Err(PrpWalkError::TooLong {
                len,
                max: self.max_len,
            });
        }
        if len == 0 {
            return Ok(());
        }
        let page = self.page.bytes();
        check_aligned(prp.first, 4)?;
        let part = len.min(page - prp.first.offset_in(page));
        visit(IovaRange::new(prp.first, part)?);
        let mut left = len - part;
        if left == 0 {
            return Ok(());
        }
        if left <= page {
            check_aligned(prp.second, page)?;
            visit(IovaRange::new(prp.second, left)?);
            return Ok(());
        }

        check_aligned(prp.second, ENTRY as u64)?;
        let mut at = prp.second;
        // Each turn reads entries of one list, up to the list's end, the transfer's end, or a batch.
        while left > 0 {
            let room = (page - at.offset_in(page)) / ENTRY as u64;
            let needed = left.div_ceil(page);
            let count = room.min(needed).min(BATCH as u64);
            // With more pages to come than entries in this list, the list's last entry names the next list.
            let chained = needed > room && count == room;
            let mut bytes = [0; BATCH * ENTRY];
            // At most a batch, so the conversion keeps the value.
            let wanted = usize::try_from(count).unwrap_or(BATCH) * ENTRY;
            let bytes = bytes.get_mut(..wanted).unwrap_or(&mut []);
            read(at, bytes)?;
            let (entries, _) = bytes.as_chunks::<ENTRY>();
            let (data, next) = match entries.split_last() {
                Some((pointer, data)) if chained => (data, Some(pointer)),
                _ => (entries, None),
            };
            for entry in data {
                let entry = Iova(u64::from_le_bytes(*entry));
                check_aligned(entry, page)?;
                let part = left.min(page);
                visit(IovaRange::new(entry, part)?);
                left -= part;
            }
            at = match next {
                Some(pointer) => {
                    let pointer = Iova(u64::from_le_bytes(*pointer));
                    check_aligned(pointer, page)?;
                    pointer
                }
                None if left == 0 => break,
                // Inside a list, so inside a page.
                None => Iova(at.0.wrapping_add(wanted as u64)),
            };
        }
        Ok(())
    }

    /// The ranges that [`walk`](Self::walk) visits, those that touch as one.
    ///
    /// # Errors
    /// [`PrpWalkError`] says what is wrong, and the status for it.
    pub fn decode(
        &self,
        prp: Prp,
        len: u64,
        read: impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped>,
    ) -> Result<Vec<IovaRange>, PrpWalkError> {
        let mut ranges = Vec::new();
        self.walk(prp, len, read, |range| range.append_to(&mut ranges))?;
        Ok(ranges)
    }
}

fn check_aligned(entry: Iova, align: u64) -> Result<(), PrpWalkError> {
    if entry.is_aligned(align) {
        Ok(())
    } else {
        Err(PrpWalkError::Misaligned { entry, align })
    }
}

/// Places entries one behind. Only when the next entry is known to exist can it be said whether the last place of a
/// list holds an entry or names a further list; the command's second entry is such a last place, too.
struct Writer<'a, L> {
    page: PageSize,
    lists: &'a mut L,
    first: Option<Iova>,
    second: Option<Iova>,
    held: Option<Iova>,
    /// The list being written: its index.
    list: usize,
    /// Its next entry.
    slot: usize,
    /// Entries that were placed before `slot` and are not written yet.
    batch: [[u8; ENTRY]; BATCH],
    batched: usize,
}

impl<'a, L: ListMemory> Writer<'a, L> {
    fn new(page: PageSize, lists: &'a mut L) -> Self {
        Self {
            page,
            lists,
            first: None,
            second: None,
            held: None,
            list: 0,
            slot: 0,
            batch: [[0; ENTRY]; BATCH],
            batched: 0,
        }
    }

    /// Places every page of a range that is not empty.
    fn range(&mut self, range: IovaRange, is_last: bool) -> Result<(), PrpBuildError> {
        let page = self.page.bytes();
        let start = range.start();
        // Page sizes divide the address space, so an end at 2^64 (`None`) is a page's end.
        if !is_last && !range.end().is_none_or(|end| end.is_aligned(page)) {
            return Err(PrpBuildError::EndsInsidePage { range, page });
        }
        let mut done = 0;
        if self.first.is_none() {
            if !start.is_aligned(4) {
                return Err(PrpBuildError::FirstMisaligned { start });
            }
            self.first = Some(start);
            done = page - start.offset_in(page);
        } else if !start.is_aligned(page) {
            return Err(PrpBuildError::StartsInsidePage { start, page });
        }
        while done < range.len() {
            // Inside the range, so inside the address space.
            let entry = Iova(start.0.wrapping_add(done));
            if let Some(held) = self.held.replace(entry) {
                self.place(held, true)?;
            }
            done = done.saturating_add(page);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Prp, PrpBuildError> {
        if let Some(held) = self.held.take() {
            self.place(held, false)?;
        }
        self.flush()?;
        Ok(Prp {
            first: self.first.ok_or(PrpBuildError::Empty)?,
            second: self.second.unwrap_or_default(),
        })
    }

    fn place(&mut self, entry: Iova, more: bool) -> Result<(), PrpBuildError> {
        if self.second.is_none() {
            if !more {
                self.second = Some(entry);
                return Ok(());
            }
            self.second = Some(self.list_address(0)?);
        } else if more && self.slot + 1 == self.page.entries() {
            let next = self.list_address(self.list + 1)?;
            self.put(next)?;
            self.flush()?;
            self.list += 1;
            self.slot = 0;
        }
        self.put(entry)
    }

    fn put(&mut self, entry: Iova) -> Result<(), PrpBuildError> {
        if self.batched == BATCH {
            self.flush()?;
        }
        if let Some(to) = self.batch.get_mut(self.batched) {
            *to = entry.0.to_le_bytes();
            self.batched += 1;
            self.slot += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PrpBuildError> {
        let bytes = self.batch.as_flattened();
        let bytes = bytes.get(..self.batched * ENTRY).unwrap_or(bytes);
        if !bytes.is_empty() {
            self.lists
                .write(self.list, (self.slot - self.batched) * ENTRY, bytes)?;
        }
        self.batched = 0;
        Ok(())
    }

    fn list_address(&self, index: usize) -> Result<Iova, PrpBuildError> {
        let block = self
            .lists
            .block(index)
            .ok_or(PrpBuildError::OutOfLists { lists: index })?;
        let page = self.page.bytes();
        if !block.start().is_aligned(page) || block.len() < page {
            return Err(PrpBuildError::BadList { block, page });
        }
        Ok(block.start())
    }
}

#[cfg(test)]
mod tests;
