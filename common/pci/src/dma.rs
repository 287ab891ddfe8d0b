//! [`DmaSpace`]: the addresses by which devices reach memory.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homi_queue::{IovaRange, Region};

use crate::function::Unsupported;
use crate::iova::IovaAllocator;

/// Mappings at least this long are laid so that an IOMMU can use large pages for them.
const LARGE_PAGE: u64 = 2 << 20;

/// What devices may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Devices read it: queues of commands, lists, data to be written.
    Read,
    /// Devices write it.
    Write,
    /// Devices read and write it.
    ReadWrite,
}

impl Access {
    /// Whether devices may read.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether devices may write.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// Why memory could not be mapped for devices.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// There is nothing to map.
    #[error("a region of no bytes cannot be mapped for a device")]
    Empty,
    /// No free addresses.
    #[error("no {len} bytes of device addresses are free: unmap regions that are no longer used")]
    NoAddresses {
        /// Bytes asked for.
        len: u64,
    },
    /// The provider refused, with the system's reason.
    #[error("cannot map {len} bytes for the device ({hint}): {source}")]
    Refused {
        /// Bytes asked for.
        len: u64,
        /// What to look at or change.
        hint: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The provider cannot do this.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// Installs translations from device addresses to memory: an IOMMU container, or a model of one.
pub trait DmaBackend: Send + Sync + fmt::Debug {
    /// Makes `memory` reachable for devices. `at` consists of whole pages and is free; the region's first byte is to be found as far into
    /// its page as it is into the host's. Bytes of the first and last page that do not belong to the region may become reachable too.
    ///
    /// # Errors
    /// [`DmaError::Refused`] or [`DmaError::Unsupported`]; nothing is installed then.
    fn map(&self, at: IovaRange, memory: &Region, access: Access) -> Result<(), DmaError>;

    /// Takes exactly one earlier mapping back. When it returns, devices no longer reach the memory.
    ///
    /// # Errors
    /// [`DmaError::Refused`] if the system did not do it: the memory is still reachable.
    fn unmap(&self, at: IovaRange) -> Result<(), DmaError>;

    /// The addresses that may be used.
    fn usable(&self) -> Vec<IovaRange>;

    /// Bytes of the smallest page that can be mapped, a power of two.
    fn page(&self) -> u64;
}

/// What a [`DmaSpace`] did so far, and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DmaUse {
    /// Mappings made since the space exists.
    pub mapped: u64,
    /// Mappings taken back.
    pub unmapped: u64,
    /// Mappings that could not be taken back: their addresses and memory are kept for ever.
    pub stuck: u64,
}

struct Inner {
    backend: Box<dyn DmaBackend>,
    page: u64,
    free: Mutex<IovaAllocator>,
    mapped: AtomicU64,
    unmapped: AtomicU64,
    stuck: AtomicU64,
}

/// An address space that the DMA of one or more functions goes through. Cloning shares it.
#[derive(Clone)]
pub struct DmaSpace(Arc<Inner>);

impl DmaSpace {
    /// The space that `backend` provides, all of it free.
    #[must_use]
    pub fn new(backend: Box<dyn DmaBackend>) -> Self {
        let page = backend.page();
        Self(Arc::new(Inner {
            free: Mutex::new(IovaAllocator::new(&backend.usable(), page)),
            backend,
            page,
            mapped: AtomicU64::new(0),
            unmapped: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
        }))
    }

    /// Bytes of the smallest page that can be mapped.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.0.page
    }

    /// Whether both are the same space, so that a mapping in one serves functions of the other.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the space did so far.
    #[must_use]
    pub fn usage(&self) -> DmaUse {
        DmaUse {
            mapped: self.0.mapped.load(Ordering::Relaxed),
            unmapped: self.0.unmapped.load(Ordering::Relaxed),
            stuck: self.0.stuck.load(Ordering::Relaxed),
        }
    }

    fn free(&self) -> MutexGuard<'_, IovaAllocator> {
        // The allocator is only ever left whole: its methods do not panic half way.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the backend again which addresses may be used, and stops giving out others: a function that joins the space may take some away.
    pub fn refresh_usable(&self) {
        let usable = self.0.backend.usable();
        self.free().keep_only(&usable, self.0.page);
    }

    /// Makes a region reachable for devices until the last clone of the result is dropped. Whole pages are mapped: what shares the
    /// region's first and last page is reachable too, so map page-aligned memory where that matters.
    ///
    /// # Errors
    /// [`DmaError`] with what to change.
    pub fn map(&self, memory: &Region, access: Access) -> Result<Mapping, DmaError> {
        if memory.is_empty() {
            return Err(DmaError::Empty);
        }
        let page = self.0.page;
        let bytes = memory.len() as u64;
        let host = memory.host_address() as u64;
        let into_page = host % page;
        let len = into_page
            .checked_add(bytes)
            .and_then(|len| len.checked_next_multiple_of(page))
            .ok_or(DmaError::NoAddresses { len: bytes })?;
        // As aligned as the memory itself, up to its length: devices with pages larger than the smallest have their queues so.
        let unit = if len >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            let aligned = 1
                << (host - into_page)
                    .trailing_zeros()
                    .min(LARGE_PAGE.trailing_zeros());
            page.max(len.next_power_of_two().min(aligned))
        };
        let pages = self
            .free()
            .take(len, unit, host - into_page)
            .ok_or(DmaError::NoAddresses { len })?;
        let Some(range) = pages.part(into_page, bytes) else {
            self.free().give_back(pages);
            return Err(DmaError::NoAddresses { len });
        };
        if let Err(error) = self.0.backend.map(pages, memory, access) {
            self.free().give_back(pages);
            return Err(error);
        }
        self.0.mapped.fetch_add(1, Ordering::Relaxed);
        Ok(Mapping(Arc::new(Mapped {
            space: self.clone(),
            range,
            memory: memory.clone(),
            place: Place::Mapped(pages),
            access,
        })))
    }

    /// Takes `len` bytes of addresses (rounded up to pages) that nothing answers to: for memory that a device decodes itself, as a
    /// controller memory buffer.
    ///
    /// # Errors
    /// [`DmaError::NoAddresses`].
    pub fn reserve(&self, len: u64) -> Result<Reservation, DmaError> {
        let len = len
            .checked_next_multiple_of(self.0.page)
            .filter(|len| *len > 0)
            .ok_or(DmaError::NoAddresses { len })?;
        let unit = if len >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            self.0.page
        };
        let range = self
            .free()
            .take(len, unit, 0)
            .ok_or(DmaError::NoAddresses { len })?;
        Ok(Reservation {
            space: self.clone(),
            range,
        })
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("backend", &self.0.backend)
            .field("usage", &self.usage())
            .finish()
    }
}

/// Addresses that are taken and lead nowhere, until dropped.
#[derive(Debug)]
pub struct Reservation {
    space: DmaSpace,
    range: IovaRange,
}

impl Reservation {
    /// The addresses.
    #[must_use]
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// Says that the device itself answers to these addresses with `memory`, from the first address on. The result translates addresses like
    /// any mapping. For that device only: others reach the memory by a mapping of their own.
    ///
    /// # Errors
    /// The reservation, if the region is longer than it.
    pub fn answered_by(self, memory: &Region) -> Result<Mapping, Self> {
        let Some(range) = self.range.part(0, memory.len() as u64) else {
            return Err(self);
        };
        Ok(Mapping(Arc::new(Mapped {
            space: self.space.clone(),
            range,
            memory: memory.clone(),
            access: Access::ReadWrite,
            place: Place::Reserved(self),
        })))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.free().give_back(self.range);
    }
}

enum Place {
    Mapped(IovaRange),
    Reserved(#[expect(dead_code, reason = "held for its drop")] Reservation),
}

struct Mapped {
    space: DmaSpace,
    /// The region's bytes.
    range: IovaRange,
    memory: Region,
    place: Place,
    access: Access,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Place::Mapped(pages) = self.place else {
            return;
        };
        let space = &self.space.0;
        match space.backend.unmap(pages) {
            Ok(()) => {
                self.space.free().give_back(pages);
                space.unmapped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                // Devices may still write there: neither the addresses nor the memory may ever serve anything else.
                tracing::error!(%error, %pages, "a dma mapping could not be taken back; its memory is kept");
                std::mem::forget(self.memory.clone());
                space.stuck.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Memory that devices reach, until the last clone is dropped. Whoever drops it makes sure that no device still uses it.
#[derive(Clone)]
pub struct Mapping(Arc<Mapped>);

impl Mapping {
    /// The addresses of the region's bytes.
    #[must_use]
    pub fn range(&self) -> IovaRange {
        self.0.range
    }

    /// What devices may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// The space that it is a mapping of.
    #[must_use]
    pub fn space(&self) -> &DmaSpace {
        &self.0.space
    }

    /// The region.
    #[must_use]
    pub fn memory(&self) -> &Region {
        &self.0.memory
    }

    /// The addresses of `len` bytes that this process sees at `host`, or `None` if they are not all in the region.
    #[must_use]
    #[inline]
    pub fn translate(&self, host: usize, len: usize) -> Option<IovaRange> {
        let at = host.checked_sub(self.0.memory.host_address() as usize)?;
        self.0.range.part(at as u64, len as u64)
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("range", &self.range())
            .field("access", &self.0.access)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_queue::Iova;
    use std::io;

    #[derive(Debug, Default)]
    struct Table {
        installed: Mutex<Vec<IovaRange>>,
        sticky: bool,
    }

    impl DmaBackend for Arc<Table> {
        fn map(&self, at: IovaRange, memory: &Region, _: Access) -> Result<(), DmaError> {
            if memory.len() == 13 {
                return Err(DmaError::Refused {
                    len: at.len(),
                    hint: "unlucky",
                    source: io::Error::other("no"),
                });
            }
            self.installed.lock().unwrap().push(at);
            Ok(())
        }

        fn unmap(&self, at: IovaRange) -> Result<(), DmaError> {
            if self.sticky {
                return Err(DmaError::Refused {
                    len: at.len(),
                    hint: "sticky",
                    source: io::Error::other("no"),
                });
            }
            self.installed.lock().unwrap().retain(|range| *range != at);
            Ok(())
        }

        fn usable(&self) -> Vec<IovaRange> {
            vec![IovaRange::new(Iova(0), 0x40_0000).unwrap()]
        }

        fn page(&self) -> u64 {
            4096
        }
    }

    #[test]
    fn mapped_memory_is_translated_and_given_back() {
        let table = Arc::new(Table::default());
        let space = DmaSpace::new(Box::new(table.clone()));
        let region = Region::allocate(10_000, 8).unwrap();
        let host = region.host_address() as usize;
        let mapping = space.map(&region, Access::ReadWrite).unwrap();
        let pages = table.installed.lock().unwrap()[0];
        assert_eq!(pages.start().offset_in(4096), 0);
        assert_eq!(pages.len() % 4096, 0);
        let all = mapping.range();
        assert_eq!((all.start().0 % 4096, all.len()), (host as u64 % 4096, 10_000));
        assert!(pages.locate(all.start(), all.len()).is_some());
        let part = mapping.translate(host + 100, 9_900).unwrap();
        assert_eq!(part.start().0, all.start().0 + 100);
        assert_eq!(mapping.translate(host + 100, 9_901), None);
        assert_eq!(mapping.translate(host - 1, 1), None);
        assert_eq!(mapping.translate(usize::MAX, 2), None);
        let other = mapping.clone();
        drop(mapping);
        assert_eq!(table.installed.lock().unwrap().len(), 1);
        drop(other);
        assert!(table.installed.lock().unwrap().is_empty());
        assert!(region.is_unique());
        let usage = space.usage();
        assert_eq!((usage.mapped, usage.unmapped, usage.stuck), (1, 1, 0));
    }

    #[test]
    fn refusals_leave_no_trace() {
        let space = DmaSpace::new(Box::new(Arc::new(Table::default())));
        let free = space.free().free_bytes();
        assert!(matches!(
            space.map(&Region::allocate(13, 1).unwrap(), Access::Read),
            Err(DmaError::Refused { .. })
        ));
        assert!(matches!(
            space.map(&Region::allocate(0, 1).unwrap(), Access::Read),
            Err(DmaError::Empty)
        ));
        assert!(matches!(
            space.map(&Region::allocate(8 << 20, 1).unwrap(), Access::Read),
            Err(DmaError::NoAddresses { .. })
        ));
        assert!(matches!(
            space.reserve(u64::MAX),
            Err(DmaError::NoAddresses { .. })
        ));
        assert_eq!(space.free().free_bytes(), free);
    }

    #[test]
    fn memory_that_devices_may_still_write_is_kept_for_ever() {
        let table = Arc::new(Table {
            sticky: true,
            ..Table::default()
        });
        let space = DmaSpace::new(Box::new(table));
        let region = Region::allocate(4096, 4096).unwrap();
        let free = space.free().free_bytes();
        drop(space.map(&region, Access::Write).unwrap());
        assert!(!region.is_unique());
        assert_eq!(space.usage().stuck, 1);
        assert_eq!(space.free().free_bytes() + 4096, free);
    }

    #[test]
    fn large_regions_can_use_large_pages() {
        let space = DmaSpace::new(Box::new(Arc::new(Table::default())));
        let region = Region::allocate(2 << 20, 4096).unwrap();
        let mapping = space.map(&region, Access::ReadWrite).unwrap();
        let offset = region.host_address() as u64 % LARGE_PAGE;
        assert_eq!(mapping.range().start().0 % LARGE_PAGE, offset);
    }

    #[test]
    fn aligned_memory_has_aligned_addresses() {
        let space = DmaSpace::new(Box::new(Arc::new(Table::default())));
        let small = Region::allocate(4096, 4096).unwrap();
        let _first = space.map(&small, Access::Read).unwrap();
        let region = Region::allocate(40_000, 16 << 10).unwrap();
        let mapping = space.map(&region, Access::Read).unwrap();
        assert!(mapping.range().start().is_aligned(16 << 10));
    }

    #[test]
    fn reserved_addresses_are_answered_by_the_device() {
        let table = Arc::new(Table::default());
        let space = DmaSpace::new(Box::new(table.clone()));
        let free = space.free().free_bytes();
        let buffer = Region::allocate(8192, 4096).unwrap();
        let reserved = space.reserve(5000).unwrap();
        assert_eq!(reserved.range().len(), 8192);
        let mapping = reserved.answered_by(&buffer).unwrap();
        assert!(table.installed.lock().unwrap().is_empty());
        let start = mapping.range().start();
        let found = mapping.translate(buffer.host_address() as usize + 4096, 4096);
        assert_eq!(found.map(|range| range.start().0), Some(start.0 + 4096));
        drop(mapping);
        assert_eq!(space.free().free_bytes(), free);
        assert!(space.reserve(4096).unwrap().answered_by(&buffer).is_err());
    }
}
