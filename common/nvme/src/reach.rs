//! [`Reach`]: how a queue says where a command's data is: PRPs, SGLs, or a copy in memory of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::{
    Data, DataDirection, Iova, IovaRange, MemoryError, PageSize, PrpBuildError, PrpRules, SegmentLists,
    SglRules,
};

use crate::error::{NvmeError, Refusal};
use crate::lists::Lists;
use crate::options::SglUse;
use crate::pins::Pins;
use crate::pool::{Piece, Pool};
use crate::shared::{Cells, add};
use crate::table::{Kept, Table};

/// Bytes per range from which SGLs are shorter than lists by much (with [`SglUse::WhereShorter`]).
const LONG_RANGE: u64 = 32 << 10;

/// A command's data pointer: the entry's words 3 and 4, and PSDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pointer {
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) psdt: u64,
}

/// What a command holds besides its slot, if it is not a plain one.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    list: Option<u32>,
    /// Memory that the part under way is copied through.
    bounce: Option<Piece>,
    /// Memory that was chosen for the whole transfer.
    lent: Option<Piece>,
    pub(crate) split: Option<Split>,
}

/// A command that goes to the controller in parts, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    /// Bytes before the part under way.
    pub(crate) at: usize,
    /// Bytes of the part under way.
    pub(crate) len: usize,
    /// Bytes of a block.
    pub(crate) block: usize,
    /// The most bytes of a part: whole blocks.
    pub(crate) most: usize,
}

/// What holds for data pointers of one queue.
pub(crate) struct ReachRules {
    pub(crate) page: PageSize,
    pub(crate) max_len: u64,
    pub(crate) sgl: Option<SglRules>,
    pub(crate) sgl_use: SglUse,
    pub(crate) depth: u16,
    pub(crate) kept_mappings: usize,
    pub(crate) kept_bytes: usize,
}

/// Finds memory for the controller and writes data pointers.
pub(crate) struct Reach {
    pub(crate) table: Table,
    pins: Arc<Pins>,
    generation: u64,
    space: DmaSpace,
    pool: Pool,
    lists: Lists,
    prp: PrpRules,
    sgl: Option<SglRules>,
    sgl_use: SglUse,
    page: u64,
    ranges: Vec<IovaRange>,
}

impl Reach {
    pub(crate) fn new(space: DmaSpace, pins: Arc<Pins>, rules: &ReachRules) -> Self {
        let page = rules.page.bytes();
        let align = usize::try_from(page.max(space.page())).unwrap_or(4096);
        Self {
            table: Table::new(
                usize::try_from(page).unwrap_or(4096),
                rules.kept_mappings,
                rules.kept_bytes,
            ),
            pins,
            // One that is none: the first look takes everything over.
            generation: u64::MAX,
            pool: Pool::new(space.clone(), align),
            lists: Lists::new(
                space.clone(),
                rules.page,
                rules.max_len.saturating_add(page),
                rules.depth.into(),
            ),
            space,
            prp: PrpRules {
                page: rules.page,
                max_len: rules.max_len,
            },
            sgl: rules.sgl.filter(|_| rules.sgl_use != SglUse::Never),
            sgl_use: rules.sgl_use,
            page,
            ranges: Vec::new(),
        }
    }

    /// Whether a mapping is of the controller's address space.
    pub(crate) fn is_of(&self, mapping: &Mapping) -> bool {
        mapping.space().is(&self.space)
    }

    /// The longest transfer of one device command.
    pub(crate) fn max_len(&self) -> u64 {
        self.prp.max_len
    }

    /// Changes with the mappings that all queues share, and with namespaces.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.pins.generation()
    }

    /// Takes over what is mapped for all queues.
    pub(crate) fn refresh(&mut self) {
        self.generation = self.pins.generation();
        let table = &mut self.table;
        self.pins.with(|pinned| table.sync(pinned));
    }

    /// The pointer for bytes that lie in the entry found last and in at most two pages: the common case, without a list.
    #[inline]
    pub(crate) fn quick(&self, start: usize, len: usize) -> Option<(u64, u64)> {
        if len as u64 <= self.page
            && let Some(first) = self.table.page(start)
            && first & (self.page - 1) == 0
        {
            return Some((first, 0));
        }
        let first = self.table.quick(start, len)?;
        let offset = first & (self.page - 1);
        let end = offset + len as u64;
        if first & 3 != 0 || end > 2 * self.page {
            return None;
        }
        let second = if end > self.page {
            first - offset + self.page
        } else {
            0
        };
        Some((first, second))
    }

    /// Where bytes are for the controller; maps their region if it is not mapped.
    fn locate(
        &mut self,
        region: &homi_queue::Region,
        start: usize,
        len: usize,
        cells: &Cells,
    ) -> Result<Iova, NvmeError> {
        if let Some(address) = self.table.find(start, len) {
            return Ok(Iova(address));
        }
        if self.generation() != self.generation {
            self.refresh();
            if let Some(address) = self.table.find(start, len) {
                return Ok(Iova(address));
            }
        }
        // All of what it is a part of: the other parts will be used, too.
        let mapping: Mapping = self.space.map(region.root(), Access::ReadWrite)?;
        add(&cells.mapped, 1);
        let address = mapping.translate(start, len);
        self.table.insert(mapping, Kept::Cached);
        address.map(|range| range.start()).ok_or(NvmeError::TooLong {
            len: len as u64,
            max: region.len() as u64,
        })
    }

    /// Chooses memory for a transfer that leaves the place to the queue.
    pub(crate) fn lend(&mut self, data: &mut Data, extra: &mut Extra, cells: &Cells) -> Result<(), Refusal> {
        let len = data.len();
        let piece = self.pool.take(len).map_err(unreachable)?;
        let segment = piece
            .memory
            .segment(0..len)
            .map_err(|error| unreachable(error.into()))?;
        add(&cells.lent, 1);
        *data = Data::One(segment);
        extra.lent = Some(piece);
        Ok(())
    }

    /// Says where `len` bytes of the data are, from byte `at` on. After an error, nothing is held.
    pub(crate) fn point(
        &mut self,
        data: &Data,
        at: usize,
        len: usize,
        direction: DataDirection,
        extra: &mut Extra,
        cells: &Cells,
    ) -> Result<Pointer, Refusal> {
        if len == 0 {
            return Ok(Pointer::default());
        }
        self.ranges.clear();
        let found = if let Some(piece) = &extra.lent {
            let range = piece
                .range(at + len)
                .and_then(|all| all.part(at as u64, len as u64));
            self.ranges.extend(range);
            Ok(())
        } else {
            self.gather(data, at, len, cells)
        };
        let pointer = match found {
            Ok(()) => self.describe(extra, cells),
            Err(error) => Err(error),
        };
        let why = match pointer {
            Ok(pointer) => return Ok(pointer),
            Err(error) => error,
        };
        self.let_go(extra);
        // Memory that cannot be mapped or described is copied.
        let copied = self.bounce(data, at, len, direction, extra, cells);
        copied.map_err(|error| {
            self.let_go(extra);
            Refusal::Unreachable(format!("{why}; and it cannot be copied: {error}"))
        })
    }

    fn gather(&mut self, data: &Data, at: usize, len: usize, cells: &Cells) -> Result<(), NvmeError> {
        let mut failed = None;
        let walked = data.for_each_part(at, len, |segment, start, part| {
            if part == 0 || failed.is_some() {
                return Ok(());
            }
            let region = segment.region();
            match self.locate(
                region,
                (region.host_address() as usize).wrapping_add(start),
                part,
                cells,
            ) {
                Ok(address) => {
                    if let Ok(range) = IovaRange::new(address, part as u64) {
                        range.append_to(&mut self.ranges);
                    }
                }
                Err(error) => failed = Some(error),
            }
            Ok(())
        });
        match (walked, failed) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(()),
        }
    }

    /// The pointer for the ranges gathered.
    fn describe(&mut self, extra: &mut Extra, cells: &Cells) -> Result<Pointer, NvmeError> {
        let total: u64 = self.ranges.iter().map(IovaRange::len).sum();
        let long = total / (self.ranges.len() as u64).max(1) >= LONG_RANGE;
        if long && self.sgl_use == SglUse::WhereShorter && self.sgl.is_some() {
            return self.describe_by_sgl(extra, cells);
        }
        let built = match self.ranges.as_slice() {
            [range] => self.describe_range(*range, extra, cells),
            _ => self.describe_by_prp(extra, cells),
        };
        match built {
            Err(_) if self.sgl.is_some() => {
                if let Some(list) = extra.list.take() {
                    self.lists.give_back(list);
                }
                self.describe_by_sgl(extra, cells)
            }
            built => built,
        }
    }

    /// One range: its pages follow each other, so the list is written without looking at ranges.
    fn describe_range(
        &mut self,
        range: IovaRange,
        extra: &mut Extra,
        cells: &Cells,
    ) -> Result<Pointer, NvmeError> {
        let (first, len) = (range.start().0, range.len());
        if first & 3 != 0 {
            return Err(misfit(PrpBuildError::FirstMisaligned { start: range.start() }));
        }
        let offset = first & (self.page - 1);
        let base = first - offset;
        let more = (offset + len).div_ceil(self.page) - 1;
        if more <= 1 {
            let second = if more == 1 { base + self.page } else { 0 };
            return Ok(Pointer {
                first,
                second,
                psdt: 0,
            });
        }
        if more > self.page / 8 {
            return self.describe_by_prp(extra, cells);
        }
        let list = self.lists.take()?;
        extra.list = Some(list);
        add(&cells.lists, 1);
        let (segment, start) = self.lists.block(list).ok_or(NvmeError::TooLong { len, max: 0 })?;
        let words = segment.region().words().unwrap_or(&[]);
        let words = words.get(segment.start() / 8..).unwrap_or(&[]);
        let count = usize::try_from(more).unwrap_or(0);
        let mut entry = base;
        for word in words.get(..count).unwrap_or(&[]) {
            entry += self.page;
            word.store(entry.to_le(), Ordering::Relaxed);
        }
        // A controller that transfers more than the command's data finds no page of an earlier command.
        if more < self.page / 8
            && let Some(word) = words.get(count)
        {
            word.store(0, Ordering::Relaxed);
        }
        Ok(Pointer {
            first,
            second: start.0,
            psdt: 0,
        })
    }

    fn describe_by_prp(&mut self, extra: &mut Extra, cells: &Cells) -> Result<Pointer, NvmeError> {
        let list = self.lists.take()?;
        extra.list = Some(list);
        let (segment, start) = self
            .lists
            .block(list)
            .ok_or(NvmeError::TooLong { len: 0, max: 0 })?;
        let mut lists = SegmentLists::new(segment, start, self.lists.page())
            .map_err(|error| NvmeError::Protocol(error.to_string()))?;
        let prp = self
            .prp
            .build(self.ranges.iter().copied(), &mut lists)
            .map_err(misfit)?;
        add(&cells.lists, 1);
        Ok(Pointer {
            first: prp.first.0,
            second: prp.second.0,
            psdt: 0,
        })
    }

    fn describe_by_sgl(&mut self, extra: &mut Extra, cells: &Cells) -> Result<Pointer, NvmeError> {
        let rules = self
            .sgl
            .ok_or_else(|| NvmeError::Protocol("sgls are not offered".to_owned()))?;
        let built = if self.ranges.len() <= 1 {
            rules.build(self.ranges.iter().copied(), &mut homi_queue::NoLists)
        } else {
            let list = self.lists.take()?;
            extra.list = Some(list);
            add(&cells.lists, 1);
            let (segment, start) = self
                .lists
                .block(list)
                .ok_or(NvmeError::TooLong { len: 0, max: 0 })?;
            let mut lists = SegmentLists::new(segment, start, self.lists.page())
                .map_err(|error| NvmeError::Protocol(error.to_string()))?;
            rules.build(self.ranges.iter().copied(), &mut lists)
        };
        let sgl = built.map_err(|error| NvmeError::Protocol(error.to_string()))?;
        add(&cells.sgls, 1);
        let [a, b, c, d, e, f, g, h, rest @ ..] = sgl.0;
        Ok(Pointer {
            first: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            second: u64::from_le_bytes(rest),
            psdt: 1,
        })
    }

    fn bounce(
        &mut self,
        data: &Data,
        at: usize,
        len: usize,
        direction: DataDirection,
        extra: &mut Extra,
        cells: &Cells,
    ) -> Result<Pointer, NvmeError> {
        let piece = self.pool.take(len)?;
        let range = piece.range(len);
        let inward = matches!(
            direction,
            DataDirection::HostToController | DataDirection::Bidirectional
        );
        let copied = if inward {
            copy(data, at, len, &piece, false)
        } else {
            Ok(())
        };
        extra.bounce = Some(piece);
        copied?;
        self.ranges.clear();
        self.ranges.extend(range);
        add(&cells.bounced, 1);
        if inward {
            add(&cells.bounced_bytes, len as u64);
        }
        self.describe(extra, cells)
    }

    /// Ends a part of a transfer: copies what was read through other memory to where it belongs, and gives back what the part held.
    pub(crate) fn settle(
        &mut self,
        data: &Data,
        at: usize,
        len: usize,
        read: bool,
        extra: &mut Extra,
        cells: &Cells,
    ) -> Result<(), MemoryError> {
        let copied = match &extra.bounce {
            Some(piece) if read => {
                add(&cells.bounced_bytes, len as u64);
                copy(data, at, len, piece, true)
            }
            _ => Ok(()),
        };
        self.let_go(extra);
        copied
    }

    /// Gives back what the whole transfer held.
    pub(crate) fn finish(&mut self, extra: &mut Extra) {
        if let Some(piece) = extra.lent.take() {
            self.pool.give_back(piece);
        }
        extra.split = None;
    }

    fn let_go(&mut self, extra: &mut Extra) {
        if let Some(list) = extra.list.take() {
            self.lists.give_back(list);
        }
        if let Some(piece) = extra.bounce.take() {
            self.pool.give_back(piece);
        }
    }

    /// Keeps all memory mapped and allocated for ever: the controller may still use it.
    pub(crate) fn leak(&mut self, extras: impl Iterator<Item = Extra>) {
        for extra in extras {
            for piece in [extra.bounce, extra.lent].into_iter().flatten() {
                piece.leak();
            }
        }
        self.table.leak();
        self.pool.leak();
        self.lists.leak();
    }
}

fn misfit(error: PrpBuildError) -> NvmeError {
    NvmeError::Protocol(error.to_string())
}

fn unreachable(error: NvmeError) -> Refusal {
    Refusal::Unreachable(error.to_string())
}

/// Copies a part of the data to (or from) a piece.
fn copy(data: &Data, at: usize, len: usize, piece: &Piece, from_piece: bool) -> Result<(), MemoryError> {
    let mut done = 0;
    data.for_each_part(at, len, |segment, start, part| {
        let region = segment.region();
        if from_piece {
            piece.memory.copy_to(done, region, start, part)?;
        } else {
            region.copy_to(start, &piece.memory, done, part)?;
        }
        done += part;
        Ok(())
    })
}
