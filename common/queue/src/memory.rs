//! Memory that operations may use: [`Region`], [`Segment`], [`Data`] and [`Buffer`].
//!
//! A [`Region`] is registered once and lives as long as anything refers to it. A [`Segment`] is a range of a
//! region. [`Data`] is what one operation owns from its submission to its completion. A [`Buffer`] is the only
//! form in which the bytes can be borrowed as a slice: it is the sole owner of its region, and the region's memory
//! belongs to it alone, so nothing else can be reading or writing the memory.
//!
//! While a region is shared, its bytes are treated as device memory: they are copied in and out through raw
//! pointers and never borrowed, because a peer, the kernel or a drive may change them at any time. Two
//! operations on the same bytes at the same time give unspecified bytes, as they do on a drive; keeping them
//! apart is the issuer's work. A copy made here does not change any more, whatever happens to the original.
//!
//! Code that gives an address in a region to the kernel or to a device holds a clone of the region for as long as they may
//! use it: that keeps the memory in place, and keeps it from being borrowed.
//!
//! Not here yet: dma-buf, CUDA and CMB backing, and the translation of offsets into IOVAs and remote keys; they
//! become further variants of the private `Backing` and per-domain tables beside it.
#![expect(
    unsafe_code,
    reason = "owns raw allocations and copies bytes through raw pointers"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crate::copy;

/// Why memory could not be had or addressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The range does not lie in the region.
    #[error("bytes {start}..{end} do not lie in a region of {len} bytes")]
    OutOfBounds {
        /// First byte asked for.
        start: usize,
        /// One past the last byte asked for.
        end: usize,
        /// Length of the region in bytes.
        len: usize,
    },
    /// The system has no memory for the region, or length and alignment are not allocatable.
    #[error("cannot allocate {len} bytes aligned to {align}: use less memory or a power-of-two alignment")]
    Allocation {
        /// Bytes asked for.
        len: usize,
        /// Alignment asked for, in bytes.
        align: usize,
    },
    /// The memory is still part of an operation or of another handle, so it cannot be borrowed as a slice.
    #[error("the region is still shared: wait for the operations that use it, and drop other handles")]
    Shared,
    /// The memory belongs to something else, which may use it at any time, so it cannot be borrowed as a slice.
    #[error("the region wraps memory that belongs to something else: copy bytes with `read` and `write`")]
    Foreign,
}

/// How many bytes of regions may exist at once, counted from each region's allocation until its memory is freed,
/// whoever held it last. Cloning shares the count.
#[derive(Clone, Debug)]
pub struct Budget(Arc<BudgetInner>);

#[derive(Debug)]
struct BudgetInner {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(BudgetInner {
            limit,
            used: AtomicUsize::new(0),
        }))
    }

    /// Bytes of regions that exist now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Allocates zeroed bytes aligned to `align`, or returns `None` when the budget has no room for them.
    ///
    /// # Errors
    /// [`MemoryError::Allocation`] as for [`Region::allocate`].
    pub fn allocate(&self, len: usize, align: usize) -> Result<Option<Region>, MemoryError> {
        // Never more than the limit, not even for a moment: a refused giant would make room for others by wrapping, or
        // have small ones refused beside it.
        let add = |used: usize| used.checked_add(len).filter(|sum| *sum <= self.0.limit);
        let counted = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if counted.is_err() {
            return Ok(None);
        }
        // Holding the ticket from here on gives the bytes back on every way out.
        let ticket = Ticket {
            budget: self.clone(),
            len,
        };
        Region::allocate_with(len, align, Some(ticket)).map(Some)
    }
}

/// Bytes taken out of a budget, given back when dropped.
struct Ticket {
    budget: Budget,
    len: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// What backs a region and how it is given back.
enum Backing {
    /// Allocated here, perhaps out of a budget.
    Allocated(
        Layout,
        #[expect(dead_code, reason = "held only for its drop")] Option<Ticket>,
    ),
    /// The allocation of a `Vec<u8>` of this capacity.
    Vector(usize),
    /// Memory that belongs to something else, kept alive by holding its owner.
    Foreign(#[expect(dead_code, reason = "held only to keep the memory alive")] Box<dyn Any + Send + Sync>),
    /// The same memory as another region, with a reference count of its own.
    Handle(Region),
}

struct Inner {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: the memory is owned by `backing` (all of whose variants are Send) and is reached only through the copies of
// `copy`, or through `Buffer`, which is the sole owner; nothing is tied to the creating thread.
unsafe impl Send for Inner {}
// SAFETY: `&Inner` gives out the address, and copies made outside of what the compiler sees, for which a race is no
// undefined behaviour (see `copy`); no reference into the memory is created while it is shared.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        match self.backing {
            Backing::Allocated(layout, _) if layout.size() > 0 => {
                // SAFETY: `base` came from `alloc_zeroed(layout)` and is freed only here.
                unsafe { dealloc(self.base.as_ptr(), layout) }
            }
            Backing::Vector(capacity) => {
                // SAFETY: `base`, `len` and `capacity` are the parts of one forgotten `Vec<u8>`.
                drop(unsafe { Vec::from_raw_parts(self.base.as_ptr(), self.len, capacity) });
            }
            Backing::Allocated(..) | Backing::Foreign(_) | Backing::Handle(_) => {}
        }
    }
}

/// Memory registered once and usable on every path. Cloning shares the memory, not the bytes.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

impl Region {
    /// Allocates `len` zeroed bytes aligned to `align` (a power of two).
    ///
    /// # Errors
    /// [`MemoryError::Allocation`] if the system has no memory or the alignment is not a power of two.
    pub fn allocate(len: usize, align: usize) -> Result<Self, MemoryError> {
        Self::allocate_with(len, align, None)
    }

    fn allocate_with(len: usize, align: usize, ticket: Option<Ticket>) -> Result<Self, MemoryError> {
        let layout =
            Layout::from_size_align(len, align).map_err(|_| MemoryError::Allocation { len, align })?;
        let base = if len == 0 {
            NonNull::dangling()
        } else {
            // SAFETY: the layout has a non-zero size.
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(MemoryError::Allocation { len, align })?
        };
        Ok(Self(Arc::new(Inner {
            base,
            len,
            backing: Backing::Allocated(layout, ticket),
        })))
    }

    /// Takes over a vector's allocation without copying; [`Region::into_vec`] gives it back.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let mut bytes = ManuallyDrop::new(bytes);
        let (len, capacity) = (bytes.len(), bytes.capacity());
        let base = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Self(Arc::new(Inner {
            base,
            len,
            backing: Backing::Vector(capacity),
        }))
    }

    /// Wraps memory that belongs to somebody else: a mapping, a pinned allocation, another runtime's tensor.
    ///
    /// # Safety
    /// `base..base + len` must be one range of at most `isize::MAX` initialised bytes, without side effects of access,
    /// which stays valid for reads and writes until `owner` is dropped, and nobody may use a Rust reference into it while
    /// a clone of the region exists. Others may change the bytes at any time through other means.
    #[must_use]
    pub unsafe fn from_foreign(base: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self(Arc::new(Inner {
            base,
            len,
            backing: Backing::Foreign(owner),
        }))
    }

    /// The same memory with a reference count of its own, so that shards which lend it out all day do not
    /// bounce one counter's cache line between them.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self(Arc::new(Inner {
            base: self.0.base,
            len: self.0.len,
            backing: Backing::Handle(self.clone()),
        }))
    }

    /// Part of the memory as a region of its own, with a reference count of its own.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the range does not lie in the region.
    pub fn part(&self, range: Range<usize>) -> Result<Self, MemoryError> {
        self.check(range.start, range.end)?;
        // Inside the allocation or at its end, so this neither wraps nor is null.
        let base = NonNull::new(self.0.base.as_ptr().wrapping_add(range.start)).unwrap_or(self.0.base);
        Ok(Self(Arc::new(Inner {
            base,
            len: range.end - range.start,
            backing: Backing::Handle(self.clone()),
        })))
    }

    /// The region that this one is a [handle](Self::handle) or [part](Self::part) of, or itself: what to register where the memory is to be
    /// registered once, whoever uses which part of it.
    #[must_use]
    pub fn root(&self) -> &Self {
        let mut region = self;
        while let Backing::Handle(whole) = &region.0.backing {
            region = whole;
        }
        region
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the region has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Address of the first byte in this process.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.0.base.as_ptr()
    }

    /// Whether this is the only reference to the memory. If so, everything that other threads did with the memory before
    /// they let go of it has happened before this returns.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        if Arc::strong_count(&self.0) != 1 || matches!(self.0.backing, Backing::Handle(_)) {
            return false;
        }
        // The count is read without ordering; this pairs with the release by which the last other reference went.
        fence(Ordering::Acquire);
        true
    }

    /// Whether there is no other clone of this very value. Others may refer to the memory all the same, through
    /// [handles](Region::handle); what those who had clones did with it has happened before this returns.
    #[must_use]
    pub fn is_only_clone(&self) -> bool {
        if Arc::strong_count(&self.0) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// Whether the bytes may be borrowed by whoever owns this region.
    fn borrowable(&self) -> Result<(), MemoryError> {
        match self.0.backing {
            Backing::Foreign(_) => Err(MemoryError::Foreign),
            _ if self.is_unique() => Ok(()),
            _ => Err(MemoryError::Shared),
        }
    }

    /// A range of the region.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the range does not lie in the region.
    pub fn segment(&self, range: Range<usize>) -> Result<Segment, MemoryError> {
        self.check(range.start, range.end)?;
        Ok(Segment {
            region: self.clone(),
            start: range.start,
            len: range.end - range.start,
        })
    }

    /// Copies bytes out of the region, starting at `at`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if `at + to.len()` is past the region's end.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<(), MemoryError> {
        self.check(at, at.saturating_add(to.len()))?;
        // SAFETY: `at` lies in the allocation (checked above).
        let from = unsafe { self.0.base.as_ptr().add(at) };
        // SAFETY: the source range was checked, and its bytes are initialised (zeroed, a vector's, or by the promise of
        // `from_foreign`); `to` is an exclusive borrow. No reference into the region exists: only `Buffer` makes them, and
        // it never lends its region.
        unsafe { copy::copy(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies bytes into the region, starting at `at`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if `at + from.len()` is past the region's end.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), MemoryError> {
        self.check(at, at.saturating_add(from.len()))?;
        // SAFETY: `at` lies in the allocation (checked above).
        let to = unsafe { self.0.base.as_ptr().add(at) };
        // SAFETY: the destination range was checked; `from` is a borrow. No reference into the region exists, as in `read`.
        unsafe { copy::copy(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Sets `len` bytes from `at` on to `value`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the range does not lie in the region.
    pub fn fill(&self, at: usize, len: usize, value: u8) -> Result<(), MemoryError> {
        self.check(at, at.saturating_add(len))?;
        // SAFETY: `at` lies in the allocation (checked above).
        let to = unsafe { self.0.base.as_ptr().add(at) };
        // SAFETY: the range was checked. No reference into the region exists, as in `read`.
        unsafe { copy::fill(to, value, len) };
        Ok(())
    }

    /// Copies `len` bytes from this region into another (or this one: the ranges may overlap).
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if either range does not lie in its region.
    pub fn copy_to(&self, at: usize, other: &Region, to: usize, len: usize) -> Result<(), MemoryError> {
        self.check(at, at.saturating_add(len))?;
        other.check(to, to.saturating_add(len))?;
        // SAFETY: `at` lies in this allocation (checked above).
        let source = unsafe { self.0.base.as_ptr().add(at) };
        // SAFETY: `to` lies in the other allocation (checked above).
        let destination = unsafe { other.0.base.as_ptr().add(to) };
        // SAFETY: both ranges were checked and are initialised, and overlap is allowed. No references into the regions
        // exist, as in `read`.
        unsafe { copy::copy(source, destination, len) };
        Ok(())
    }

    /// Gives the bytes back as a vector: without a copy for the sole owner of a region made by
    /// [`Region::from_vec`], as a copy otherwise.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        let mut region = self;
        if let Some(inner) = Arc::get_mut(&mut region.0)
            && let Backing::Vector(capacity) = inner.backing
        {
            let (base, len) = (inner.base, inner.len);
            inner.backing = Backing::Foreign(Box::new(()));
            // SAFETY: these are the parts of one forgotten `Vec<u8>`; the backing was replaced above, so the
            // region's drop leaves the memory alone, and there is no other reference.
            return unsafe { Vec::from_raw_parts(base.as_ptr(), len, capacity) };
        }
        let mut bytes = vec![0; region.len()];
        // The lengths are equal, so this cannot fail.
        let _ = region.read(0, &mut bytes);
        bytes
    }

    /// The bytes as words that devices and other threads may change at the same time, for queues and doorbells in memory: `None` if the
    /// region does not begin at a multiple of 8. Bytes after the last whole word are left out. The words have the machine's byte order;
    /// what NVMe defines is little-endian.
    #[must_use]
    #[inline]
    pub fn words(&self) -> Option<&[AtomicU64]> {
        let base: *mut AtomicU64 = self.0.base.as_ptr().cast();
        if !base.is_aligned() {
            return None;
        }
        // SAFETY: the words lie in the allocation, which is aligned for them (checked above), initialised, and lives as long as `self`.
        // Shared references to atomics allow that others change the bytes. No other reference exists meanwhile: only `Buffer` makes
        // them, as the owner of a region that nobody else refers to; other accesses are the copies of `copy`, made outside of what
        // the compiler sees.
        Some(unsafe { slice::from_raw_parts(base, self.0.len / size_of::<AtomicU64>()) })
    }

    fn check(&self, start: usize, end: usize) -> Result<(), MemoryError> {
        if start <= end && end <= self.0.len {
            Ok(())
        } else {
            Err(MemoryError::OutOfBounds {
                start,
                end,
                len: self.0.len,
            })
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("base", &self.0.base)
            .field("len", &self.0.len)
            .finish()
    }
}

/// A range of a region, known to lie in it.
#[derive(Clone, Debug)]
pub struct Segment {
    region: Region,
    start: usize,
    len: usize,
}

impl Segment {
    /// The region that the range is part of.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Offset of the first byte in the region.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte in this process.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.region.host_address().wrapping_add(self.start)
    }

    /// The part of this range that starts `at` bytes in and is `len` bytes long.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if that is not inside this range.
    pub fn part(&self, at: usize, len: usize) -> Result<Segment, MemoryError> {
        let end = at.saturating_add(len);
        if end > self.len {
            return Err(MemoryError::OutOfBounds {
                start: at,
                end,
                len: self.len,
            });
        }
        Ok(Segment {
            region: self.region.clone(),
            start: self.start + at,
            len,
        })
    }
}

/// The memory of one operation, owned by it from submission to completion and handed back with the completion.
#[derive(Debug, Default)]
pub enum Data {
    /// The command transfers nothing.
    #[default]
    None,
    /// The issuer does not care where the bytes land: the executor chooses, and the completion's `Data` says where.
    /// This is how a RAM executor lends its own memory to a read instead of copying it. Only for reads.
    Anywhere {
        /// Length of the transfer in bytes.
        len: usize,
    },
    /// One range: the common case.
    One(Segment),
    /// Several ranges, in the order of the transfer.
    List(Vec<Segment>),
}

impl Data {
    /// The whole of a region.
    #[must_use]
    pub fn whole(region: Region) -> Self {
        let len = region.len();
        Self::One(Segment {
            region,
            start: 0,
            len,
        })
    }

    /// Length of the transfer in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Anywhere { len } => *len,
            Self::One(segment) => segment.len,
            // Segments may repeat, so even in one address space the sum has no bound.
            Self::List(list) => list.iter().map(Segment::len).fold(0, usize::saturating_add),
        }
    }

    /// Whether no bytes are transferred.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ranges, in the order of the transfer. Empty for [`Data::None`] and [`Data::Anywhere`].
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        match self {
            Self::None | Self::Anywhere { .. } => &[],
            Self::One(segment) => slice::from_ref(segment),
            Self::List(list) => list,
        }
    }

    /// Copies bytes out, starting `at` bytes into the transfer.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the bytes asked for are past the end; nothing is copied then.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.for_each_part(at, to.len(), |segment, start, len| {
            let part = to.get_mut(done..done + len).unwrap_or(&mut []);
            done += len;
            segment.region.read(start, part)
        })
    }

    /// Copies bytes in, starting `at` bytes into the transfer.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the bytes would go past the end; nothing is copied then.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.for_each_part(at, from.len(), |segment, start, len| {
            let part = from.get(done..done + len).unwrap_or(&[]);
            done += len;
            segment.region.write(start, part)
        })
    }

    /// Calls `f` with every range that the transfer's bytes `at..at + len` lie in: the segment, the first byte's
    /// offset in the *region*, and the number of bytes.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] if the bytes are past the end (`f` was not called then), or whatever `f` returns.
    pub fn for_each_part(
        &self,
        at: usize,
        len: usize,
        mut f: impl FnMut(&Segment, usize, usize) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let end = at.saturating_add(len);
        let total = match self {
            Self::None | Self::Anywhere { .. } => 0,
            Self::One(_) | Self::List(_) => self.len(),
        };
        if end > total {
            return Err(MemoryError::OutOfBounds {
                start: at,
                end,
                len: total,
            });
        }
        let (mut skip, mut left) = (at, len);
        for segment in self.segments() {
            if left == 0 {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            let part = left.min(segment.len - skip);
            f(segment, segment.start + skip, part)?;
            skip = 0;
            left -= part;
        }
        Ok(())
    }
}

impl From<Segment> for Data {
    fn from(segment: Segment) -> Self {
        Self::One(segment)
    }
}

impl From<Buffer> for Data {
    fn from(buffer: Buffer) -> Self {
        buffer.into_data()
    }
}

/// Memory with one owner, allocated here: the form in which bytes can be borrowed as a slice. It is given to an operation with
/// [`Buffer::into_data`] and comes back from its completion with [`Buffer::try_from_data`]; neither copies nor allocates.
pub struct Buffer {
    region: Region,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Allocates `len` zeroed bytes aligned to 4096, as drives and direct I/O like them.
    ///
    /// # Errors
    /// [`MemoryError::Allocation`] if the system has no memory.
    pub fn allocate(len: usize) -> Result<Self, MemoryError> {
        Ok(Self {
            region: Region::allocate(len, 4096)?,
            start: 0,
            len,
        })
    }

    /// Takes over a vector's allocation without copying.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self {
            region: Region::from_vec(bytes),
            start: 0,
            len,
        }
    }

    /// Takes a region that nobody else refers to.
    ///
    /// # Errors
    /// [`MemoryError::Shared`] if there are other references, [`MemoryError::Foreign`] if the region wraps memory that
    /// belongs to something else.
    pub fn try_from_region(region: Region) -> Result<Self, MemoryError> {
        region.borrowable()?;
        let len = region.len();
        Ok(Self {
            region,
            start: 0,
            len,
        })
    }

    /// Gives the memory to an operation.
    #[must_use]
    pub fn into_data(self) -> Data {
        Data::One(Segment {
            region: self.region,
            start: self.start,
            len: self.len,
        })
    }

    /// Takes the memory back from an operation's completion.
    ///
    /// # Errors
    /// The data itself, if it is not one range, if its region has other references, or if its region wraps memory that
    /// belongs to something else.
    pub fn try_from_data(data: Data) -> Result<Self, Data> {
        match data {
            Data::One(segment) if segment.region.borrowable().is_ok() => Ok(Self {
                region: segment.region,
                start: segment.start,
                len: segment.len,
            }),
            other => Err(other),
        }
    }

    /// Gives up slice access and returns the region, to be shared.
    #[must_use]
    pub fn into_region(self) -> Region {
        self.region
    }

    /// Gives the bytes back as a vector, without a copy if they came from one.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        if self.start == 0 && self.len == self.region.len() {
            return self.region.into_vec();
        }
        self.to_vec()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies in the region, whose bytes are initialised (zeroed, or a vector's) and owned by
        // it; the region has no other reference while it is a `Buffer`, so nothing writes the bytes during the borrow, and
        // what was written before happened before the `Buffer` was made (see `is_unique`).
        unsafe { slice::from_raw_parts(self.region.host_address().wrapping_add(self.start), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow exclusive.
        unsafe { slice::from_raw_parts_mut(self.region.host_address().wrapping_add(self.start), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_comes_back_without_a_copy() {
        let bytes = vec![7_u8; 4096];
        let address = bytes.as_ptr();
        let buffer = Buffer::from_vec(bytes);
        let data = buffer.into_data();
        let back = Buffer::try_from_data(data).unwrap().into_vec();
        assert_eq!(back.as_ptr(), address);
        assert_eq!(back, vec![7; 4096]);
    }

    #[test]
    fn shared_memory_cannot_be_borrowed() {
        let region = Region::allocate(4096, 4096).unwrap();
        let segment = region.segment(0..512).unwrap();
        assert!(Buffer::try_from_data(Data::from(segment)).is_err());
        assert_eq!(
            Buffer::try_from_region(region.handle()).err(),
            Some(MemoryError::Shared)
        );
        assert!(Buffer::try_from_region(region).is_ok());
    }

    #[test]
    fn foreign_memory_cannot_be_borrowed_even_by_its_only_reference() {
        let mut memory = Box::new([5_u8; 64]);
        let base = NonNull::from(memory.as_mut_slice()).cast();
        // SAFETY: the array is valid and initialised until the owner (nothing) goes, and is not used until the region
        // and everything made of it is dropped.
        let region = unsafe { Region::from_foreign(base, 64, Box::new(())) };
        assert!(region.is_unique());
        let data = Buffer::try_from_data(Data::whole(region)).unwrap_err();
        let Data::One(segment) = data else {
            panic!("the data is handed back as it was: {data:?}")
        };
        let region = segment.region().clone();
        drop(segment);
        assert_eq!(
            Buffer::try_from_region(region.clone()).err(),
            Some(MemoryError::Foreign)
        );
        assert_eq!(region.into_vec(), [5; 64]);
        drop(memory);
    }

    #[test]
    fn what_another_thread_wrote_is_seen_by_the_sole_owner() {
        for round in 0..100 {
            let region = Region::allocate(4096, 8).unwrap();
            let other = region.clone();
            let writer = std::thread::spawn(move || other.fill(0, 4096, round).unwrap());
            while !region.is_unique() {
                std::thread::yield_now();
            }
            assert_eq!(*Buffer::try_from_region(region).unwrap(), [round; 4096]);
            writer.join().unwrap();
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "races on purpose; the copies are outside of what Miri models")]
    fn racing_copies_give_bytes_that_were_there() {
        let region = Region::allocate(4096, 4096).unwrap();
        std::thread::scope(|scope| {
            for value in [0x55, 0xaa] {
                let region = region.handle();
                scope.spawn(move || (0..2000).for_each(|_| region.write(0, &[value; 4096]).unwrap()));
            }
            for _ in 0..2000 {
                let mut seen = [1; 4096];
                region.read(0, &mut seen).unwrap();
                assert!(seen.iter().all(|byte| [0, 0x55, 0xaa].contains(byte)));
            }
        });
    }

    #[test]
    fn parts_know_what_they_are_parts_of() {
        let whole = Region::allocate(64, 8).unwrap();
        let part = whole.handle().part(16..32).unwrap().handle();
        assert_eq!(
            (part.root().host_address(), part.root().len()),
            (whole.host_address(), 64)
        );
        assert_eq!(whole.root().host_address(), whole.host_address());
    }

    #[test]
    fn words_are_the_bytes() {
        let region = Region::allocate(20, 8).unwrap();
        let words = region.words().unwrap();
        assert_eq!(words.len(), 2);
        words[1].store(u64::from_le_bytes(*b"abcdefgh").to_le(), Ordering::Release);
        let mut bytes = [0; 8];
        region.read(8, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcdefgh");
        let mut odd = vec![0_u64; 3];
        let base = NonNull::new(odd.as_mut_ptr().cast::<u8>().wrapping_add(1)).unwrap();
        // SAFETY: 16 initialised bytes of the vector, which outlives the region and is not used meanwhile.
        let odd_region = unsafe { Region::from_foreign(base, 16, Box::new(())) };
        assert!(odd_region.words().is_none());
        drop(odd_region);
        drop(odd);
    }

    #[test]
    fn overlapping_copies_move_the_bytes() {
        let region = Region::from_vec((0..100).collect());
        region.copy_to(0, &region.handle(), 10, 50).unwrap();
        region.copy_to(20, &region, 15, 50).unwrap();
        region.fill(98, 2, 255).unwrap();
        let mut model: Vec<u8> = (0..100).collect();
        model.copy_within(0..50, 10);
        model.copy_within(20..70, 15);
        model[98..].fill(255);
        assert_eq!(region.into_vec(), model);
    }

    #[test]
    fn the_length_of_many_segments_saturates() {
        // Stands for a segment of a huge mapping: only lengths are asked for.
        let segment = Segment {
            region: Region::from_vec(Vec::new()),
            start: 0,
            len: isize::MAX.unsigned_abs(),
        };
        let data = Data::List(vec![segment; 4]);
        assert_eq!(data.len(), usize::MAX);
        assert!(!data.is_empty());
    }

    #[test]
    fn lists_are_one_transfer() {
        let region = Region::allocate(1024, 8).unwrap();
        let data = Data::List(vec![
            region.segment(512..612).unwrap(),
            region.segment(0..100).unwrap(),
        ]);
        let bytes: Vec<u8> = (0..150).collect();
        data.write(25, &bytes).unwrap();
        let mut back = vec![0; 150];
        data.read(25, &mut back).unwrap();
        assert_eq!(back, bytes);
        let mut first = [0; 1];
        region.read(0, &mut first).unwrap();
        assert_eq!(first[0], 75);
        assert!(data.write(51, &bytes).is_err());
    }

    #[test]
    fn a_budget_counts_what_exists() {
        let budget = Budget::new(8192);
        let first = budget.allocate(4096, 4096).unwrap().unwrap();
        let second = budget.allocate(4096, 4096).unwrap().unwrap();
        assert!(budget.allocate(1, 1).unwrap().is_none());
        let part = second.segment(0..1).unwrap();
        drop(second);
        assert!(budget.allocate(1, 1).unwrap().is_none());
        assert!(budget.allocate(usize::MAX, 1).unwrap().is_none());
        drop(part);
        assert_eq!(budget.used(), 4096);
        assert!(budget.allocate(4096, 3).is_err());
        assert_eq!(budget.used(), 4096);
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn ranges_are_checked() {
        let region = Region::allocate(16, 1).unwrap();
        assert!(region.part(8..17).is_err());
        let part = region.part(8..16).unwrap();
        part.write(0, &[7; 8]).unwrap();
        assert!(part.write(1, &[7; 8]).is_err());
        assert!(!part.is_unique() && !region.is_unique());
        let mut bytes = [0; 2];
        region.read(7, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 7]);
        drop(part);
        assert!(region.segment(8..17).is_err());
        assert!(region.read(usize::MAX, &mut [0; 2]).is_err());
        assert!(region.write(15, &[0; 2]).is_err());
        assert!(region.fill(16, 1, 0).is_err());
        assert!(region.segment(4..8).unwrap().part(2, 3).is_err());
        assert!(Region::allocate(16, 3).is_err());
    }
}
