//! [`Mapping`]: anonymous memory that costs nothing until it is used and can be given back piece by piece.
#![expect(unsafe_code, reason = "maps memory, and hands it out as a region")]

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use homi_queue::Region;

/// Memory of the process that the system provides page by page on first use, zeroed. It goes away with the last
/// reference to its region.
#[derive(Debug, Clone)]
pub struct Mapping {
    region: Region,
    page: usize,
}

/// Unmaps when the region's last reference is gone.
struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapped {}
// SAFETY: as above; nothing is read or written through a shared reference.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range is one mapping made by `Mapping::new`, and the region that refers to it is gone.
        let unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, 0, "a whole mapping can be unmapped");
    }
}

impl Mapping {
    /// Maps `len` (more than 0) bytes. No memory is reserved: when the machine has none left at first use, the
    /// system ends a process, as it does with all overcommitted memory.
    ///
    /// # Errors
    /// What the system said: the length is 0, or there is no room in the address space.
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the system's choice touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let owner = Box::new(Mapped { base, len });
        // SAFETY: the mapping is readable and writable for `len` bytes until `owner` is dropped, and nothing else
        // refers to it.
        let region = unsafe { Region::from_foreign(base, len, owner) };
        // SAFETY: takes a number only.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(Self {
            region,
            page: usize::try_from(page).unwrap_or(4096),
        })
    }

    /// The memory.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Bytes per page: what can be given back separately.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page
    }

    /// Asks for huge pages: fewer address translations, but memory is used in steps of 2 MiB.
    ///
    /// # Errors
    /// What the system said: it may be built without them.
    pub fn prefer_huge_pages(&self) -> io::Result<()> {
        self.advise(0..self.region.len(), libc::MADV_HUGEPAGE)
    }

    /// Gives the pages that lie wholly in `range` back to the system, and returns which they were: they read as zeroes
    /// from then on. The bytes of `range` outside them are not touched.
    ///
    /// # Errors
    /// What the system said; locked memory cannot be given back.
    pub fn release(&self, range: Range<usize>) -> io::Result<Range<usize>> {
        let end = range.end.min(self.region.len());
        let start = range.start.next_multiple_of(self.page);
        let end = if end == self.region.len() {
            end
        } else {
            end - end % self.page
        };
        if start >= end {
            return Ok(range.start..range.start);
        }
        self.advise(start..end, libc::MADV_DONTNEED)?;
        Ok(start..end)
    }

    fn advise(&self, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        let address = self.region.host_address().wrapping_add(range.start);
        // SAFETY: the range lies in the mapping, which is alive and stays mapped; its bytes may change at any time.
        let advised = unsafe { libc::madvise(address.cast(), range.len(), advice) };
        if advised == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(mapping: &Mapping, at: usize) -> [u8; 4] {
        let mut bytes = [0xee; 4];
        mapping.region().read(at, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn released_pages_read_as_zeroes_and_their_neighbours_stay() {
        let mapping = Mapping::new(1 << 20).unwrap();
        let page = mapping.page_size();
        assert_eq!(bytes(&mapping, (1 << 20) - 4), [0; 4]);
        mapping.region().fill(0, 1 << 20, 7).unwrap();
        assert_eq!(mapping.release(page / 2..page * 3 + 1).unwrap(), page..page * 3);
        assert_eq!(bytes(&mapping, page - 4), [7; 4]);
        assert_eq!(bytes(&mapping, page), [0; 4]);
        assert_eq!(bytes(&mapping, page * 3 - 4), [0; 4]);
        assert_eq!(bytes(&mapping, page * 3), [7; 4]);
        assert!(mapping.release(1..page).unwrap().is_empty());
    }

    #[test]
    fn the_last_pages_can_be_released_when_the_length_is_no_multiple_of_a_page() {
        let mapping = Mapping::new(10_000).unwrap();
        mapping.region().fill(0, 10_000, 7).unwrap();
        assert_eq!(mapping.release(0..usize::MAX).unwrap(), 0..10_000);
        assert_eq!(bytes(&mapping, 9_996), [0; 4]);
    }

    #[test]
    fn a_terabyte_costs_nothing_until_it_is_used() {
        let mapping = Mapping::new(1 << 40).unwrap();
        mapping.region().write(1 << 39, &[1, 2, 3, 4]).unwrap();
        assert_eq!(bytes(&mapping, 1 << 39), [1, 2, 3, 4]);
    }

    #[test]
    fn the_memory_outlives_the_mapping_handle() {
        let segment = {
            let mapping = Mapping::new(8192).unwrap();
            mapping.region().fill(0, 8192, 9).unwrap();
            mapping.region().handle().segment(4096..8192).unwrap()
        };
        let mut bytes = [0; 1];
        segment.region().read(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [9]);
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        assert!(Mapping::new(0).is_err());
    }
}
