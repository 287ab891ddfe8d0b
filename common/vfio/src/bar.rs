//! BARs in this process: as registers, and as memory.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use homi_pci::{Registers, Unsupported};
use homi_queue::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;

use crate::device::{BarPlace, Device};
use crate::mmio;

/// Part of a BAR, mapped into this process until dropped.
pub(crate) struct BarMap {
    base: NonNull<c_void>,
    len: usize,
    bar: u8,
    /// Offset in the BAR.
    start: u64,
    device: Arc<Device>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `BarMap` gives out its address alone.
unsafe impl Send for BarMap {}
// SAFETY: as above; nothing is changed through `&BarMap`.
unsafe impl Sync for BarMap {}

impl BarMap {
    /// Maps `len` bytes from `start` on, which lie in one of the BAR's windows and are whole pages.
    pub(crate) fn new(device: &Arc<Device>, place: &BarPlace, start: u64, len: u64) -> io::Result<Self> {
        let inside = place.windows.iter().any(|(from, size)| {
            start >= *from && start.checked_add(len).is_some_and(|end| end - from <= *size)
        });
        if !inside {
            return Err(io::Error::other("this part of the bar cannot be mapped"));
        }
        let bytes = usize::try_from(len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| io::Error::other("there is nothing to map"))?;
        let at = place
            .offset
            .checked_add(start)
            .and_then(|at| i64::try_from(at).ok())
            .ok_or_else(|| io::Error::other("the bar is too far into the descriptor"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mut maps = device.maps.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a new mapping at an address that the kernel chooses: it replaces nothing.
        let base = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, device.fd(), at) }?;
        maps.insert(base.as_ptr() as usize, bytes.get());
        drop(maps);
        let map = Self {
            base,
            len: bytes.get(),
            bar: place.index,
            start,
            device: Arc::clone(device),
        };
        Ok(map)
    }

    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// A part of it as a dma-buf.
    pub(crate) fn export(&self, at: u64, len: u64) -> Result<OwnedFd, Unsupported> {
        self.device.export(self.bar, self.start.saturating_add(at), len)
    }

    /// It as memory.
    pub(crate) fn into_region(self: Arc<Self>) -> Region {
        let (base, len) = (self.base.cast(), self.len);
        // SAFETY: the mapping is readable and writable and stays until the owner, which is the last holder of it, is dropped; mapped
        // bytes are initialised as far as the language goes. No reference into it is ever made. Reading it has no side effect on
        // this process; what it does to the device is up to whoever takes a BAR for memory.
        unsafe { Region::from_foreign(base, len, Box::new(self)) }
    }

    /// A register's address, if all its 4 bytes are in the mapping. `at` is an offset in the BAR.
    #[inline]
    fn register(&self, at: u64) -> Option<*mut u32> {
        let inside = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let fits = inside.checked_add(4)? <= self.len;
        fits.then(|| self.base.as_ptr().cast::<u8>().wrapping_add(inside).cast())
    }
}

impl Drop for BarMap {
    fn drop(&mut self) {
        let mut maps = self.device.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.remove(&(self.base.as_ptr() as usize));
        // SAFETY: made in `new` with this length and unmapped only here; regions and registers on it hold this value.
        if let Err(error) = unsafe { munmap(self.base, self.len) } {
            tracing::error!(%error, "a bar stays mapped");
        }
    }
}

/// Registers are fewer bytes than this.
const MOST_REGISTERS: usize = 1 << 20;

/// Replaces a mapping of a BAR, which nobody unmaps meanwhile, by memory: accesses that come then or later hurt nobody.
pub(crate) fn replace(base: usize, len: usize) -> io::Result<()> {
    let file = memfd_create(c"bar", MFdFlags::MFD_CLOEXEC)?;
    let bytes = i64::try_from(len).map_err(io::Error::other)?;
    ftruncate(&file, bytes)?;
    if len <= MOST_REGISTERS {
        let ones = vec![0xff; len];
        let written = pwrite(&file, &ones, 0)?;
        if written != len {
            return Err(io::Error::other(format!("{written} of {len} bytes were written")));
        }
    }
    let (at, size) = (NonZeroUsize::new(base), NonZeroUsize::new(len));
    let (Some(at), Some(size)) = (at, size) else {
        return Ok(());
    };
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
    // SAFETY: exactly a mapping that this crate made and that is still there, by the caller's promise; the new one is as long, can be read and
    // written like it, and takes its place at once. Nothing refers to its bytes but registers and regions, which others may change any time.
    unsafe { mmap(Some(at), size, access, flags, &file, 0) }?;
    Ok(())
}

impl fmt::Debug for BarMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of bar {} at {:#x}", self.len, self.bar, self.start)
    }
}

/// A BAR's registers: mapped where the kernel allows it, by reading and writing the descriptor elsewhere (as around the table of MSI-X, which
/// belongs to the kernel).
#[derive(Debug)]
pub(crate) struct BarRegisters {
    len: u64,
    maps: Vec<BarMap>,
    offset: u64,
    device: Arc<Device>,
}

impl BarRegisters {
    pub(crate) fn new(device: &Arc<Device>, place: &BarPlace) -> io::Result<Self> {
        let maps = place
            .windows
            .iter()
            .map(|(start, len)| BarMap::new(device, place, *start, *len))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            len: place.len,
            maps,
            offset: place.offset,
            device: Arc::clone(device),
        })
    }

    #[inline]
    fn mapped(&self, at: u64) -> Option<*mut u32> {
        self.maps.iter().find_map(|map| map.register(at))
    }

    fn is_register(&self, at: u64) -> bool {
        at.is_multiple_of(4) && at.checked_add(4).is_some_and(|end| end <= self.len)
    }

    #[cold]
    fn read_slowly(&self, at: u64) -> u32 {
        let mut bytes = [0xff; 4];
        match self.device.read(self.offset.saturating_add(at), &mut bytes) {
            Ok(()) => u32::from_le_bytes(bytes),
            // As on the bus when nobody answers.
            Err(_) => u32::MAX,
        }
    }

    #[cold]
    fn write_slowly(&self, at: u64, value: u32) {
        // As on the bus when nobody listens; the kernel's access is ordered like ours.
        if let Err(error) = self
            .device
            .write(self.offset.saturating_add(at), &value.to_le_bytes())
        {
            tracing::debug!(%error, at, "a register was not written");
        }
    }
}

impl Registers for BarRegisters {
    fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    fn read32(&self, at: u64) -> u32 {
        if !self.is_register(at) {
            return u32::MAX;
        }
        match self.mapped(at) {
            // SAFETY: aligned (mappings begin with pages) and inside a mapping that is held by `self`.
            Some(register) => unsafe { mmio::read32(register) },
            None => self.read_slowly(at),
        }
    }

    #[inline]
    fn write32(&self, at: u64, value: u32) {
        if !self.is_register(at) {
            return;
        }
        match self.mapped(at) {
            // SAFETY: as for reading.
            Some(register) => unsafe { mmio::write32(register, value) },
            None => self.write_slowly(at, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_replaced_where_it_is() {
        let file = memfd_create(c"device", MFdFlags::MFD_CLOEXEC).unwrap();
        for (len, after) in [(8192, u32::MAX), (MOST_REGISTERS + 4096, 0)] {
            ftruncate(&file, i64::try_from(len).unwrap()).unwrap();
            let size = NonZeroUsize::new(len).unwrap();
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new mapping where the kernel likes.
            let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
            let last: *mut u32 = base.as_ptr().cast::<u8>().wrapping_add(len - 4).cast();
            // SAFETY: the last four bytes of the mapping.
            unsafe { last.write_volatile(7) };
            replace(base.as_ptr() as usize, len).unwrap();
            // SAFETY: as above; the mapping was replaced by one that is as long.
            assert_eq!(unsafe { last.read_volatile() }, after);
            // SAFETY: as above.
            unsafe { last.write_volatile(9) };
            let mut bytes = [0; 4];
            let at = i64::try_from(len - 4).unwrap();
            nix::sys::uio::pread(&file, &mut bytes, at).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), 7, "the device is reached no more");
            // SAFETY: the mapping is used no more.
            unsafe { munmap(base, len) }.unwrap();
        }
    }
}
