//! dma-bufs of others (of a GPU, of another device's BAR) as DMA memory: the rungs of a ladder, tried from the top.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use homi_pci::{Access, DmaBackend, DmaError, DmaSpace, Mapping, Reservation};
use homi_queue::{IovaRange, Region};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::container::Container;
use crate::domain::{Backend, Domain};

/// A way to make a dma-buf reachable for devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rung {
    /// iommufd maps the file itself (IOMMU_IOAS_MAP_FILE). Mainline takes memfds, and from 6.19 on dma-bufs of VFIO devices.
    MapFile,
    /// The out-of-tree module `dmabuf_import`.
    ImportModule,
    /// The dma-buf is mapped into this process, and what is mapped is pinned for devices.
    Pin,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MapFile => "iommufd's mapping of files",
            Self::ImportModule => "the module dmabuf_import",
            Self::Pin => "pinning its pages",
        })
    }
}

/// Why a rung did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rung}: {reason}")]
pub struct RungFailure {
    /// Which.
    pub rung: Rung,
    /// Why, with the system's error.
    pub reason: String,
}

/// A dma-buf could not be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// No function is in the address space yet.
    #[error("the container has no address space yet: open a function first")]
    NoSpace,
    /// No addresses for it.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// No rung held.
    #[error("the dma-buf cannot be had for devices here: {}", list(.0))]
    NoRung(Vec<RungFailure>),
}

fn list(failures: &[RungFailure]) -> String {
    let parts: Vec<String> = failures.iter().map(ToString::to_string).collect();
    parts.join("; ")
}

/// A dma-buf that devices of the container reach, until dropped. Whoever drops it makes sure that no device still uses it.
#[derive(Debug)]
pub struct Imported {
    range: IovaRange,
    rung: Rung,
    failed: Vec<RungFailure>,
    held: Held,
}

#[derive(Debug)]
enum Held {
    File {
        domain: Arc<Domain>,
        /// Taken at the end of the mapping, so that its addresses are free only then.
        reservation: Option<Reservation>,
    },
    Pinned(Mapping),
}

impl Imported {
    /// The addresses of its bytes.
    #[must_use]
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// The rung that holds.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Why the rungs above it did not.
    #[must_use]
    pub fn failed(&self) -> &[RungFailure] {
        &self.failed
    }

    /// The bytes as this process sees them, if the rung that holds makes it see them.
    #[must_use]
    pub fn memory(&self) -> Option<&Region> {
        match &self.held {
            Held::Pinned(mapping) => Some(mapping.memory()),
            Held::File { .. } => None,
        }
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        if let Held::File { domain, reservation } = &mut self.held
            && let Some(reservation) = reservation.take()
            && let Err(error) = Backend(Arc::clone(domain)).unmap(reservation.range())
        {
            tracing::error!(%error, range = %reservation.range(), "an imported dma-buf could not be taken back; its addresses are kept");
            std::mem::forget(reservation);
        }
    }
}

impl Container {
    /// Makes the first `len` bytes of a dma-buf (whole pages) reachable for the container's devices, by the first rung that holds.
    ///
    /// # Errors
    /// [`ImportError::NoRung`] with the reason of each, and others.
    pub fn import(&self, buffer: BorrowedFd<'_>, len: u64, access: Access) -> Result<Imported, ImportError> {
        let (domain, space) = self.domain().ok_or(ImportError::NoSpace)?;
        let mut failed = Vec::new();
        let mut fail = |rung, reason| failed.push(RungFailure { rung, reason });
        if domain.iommufd().is_some() {
            let reservation = space.reserve(len)?;
            match domain.map_file(reservation.range(), buffer, 0, access) {
                Ok(()) => {
                    let range = reservation.range();
                    return Ok(Imported {
                        range: range.part(0, len).unwrap_or(range),
                        rung: Rung::MapFile,
                        failed,
                        held: Held::File {
                            domain,
                            reservation: Some(reservation),
                        },
                    });
                }
                Err(error) => fail(Rung::MapFile, of_map_file(&error)),
            }
        } else {
            fail(
                Rung::MapFile,
                "the container has groups; it takes character devices with iommufd".to_owned(),
            );
        }
        fail(Rung::ImportModule, of_module());
        match pin(&space, buffer, len, access) {
            Ok(mapping) => Ok(Imported {
                range: mapping.range(),
                rung: Rung::Pin,
                failed,
                held: Held::Pinned(mapping),
            }),
            Err(reason) => {
                fail(Rung::Pin, reason);
                Err(ImportError::NoRung(failed))
            }
        }
    }
}

fn of_map_file(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => {
            format!("the kernel does not map files ({error}): 6.14 and later map memfds")
        }
        Some(libc::EINVAL | libc::EBADFD | libc::EBADF) => {
            format!(
                "the kernel does not take this exporter's buffers ({error}): 6.19 and later take those of vfio devices"
            )
        }
        _ => error.to_string(),
    }
}

/// The module hands out addresses on the bus, for drives that no IOMMU translates for. Here one always does, and it can be told to
/// translate to such addresses by no interface of the kernel.
fn of_module() -> String {
    if Path::new("/dev/dmabuf_import").exists() {
        "the module gives addresses on the bus, which devices behind an iommu cannot use".to_owned()
    } else {
        "/dev/dmabuf_import is not there: the module is not loaded".to_owned()
    }
}

/// A mapped dma-buf.
struct View {
    base: NonNull<std::ffi::c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; nothing is reached through this value.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped in `pin` with this length, unmapped only here; the region on it holds this value.
        if let Err(error) = unsafe { munmap(self.base, self.len) } {
            tracing::error!(%error, "a dma-buf stays mapped");
        }
    }
}

fn pin(space: &DmaSpace, buffer: BorrowedFd<'_>, len: u64, access: Access) -> Result<Mapping, String> {
    let len = usize::try_from(len)
        .ok()
        .and_then(NonZeroUsize::new)
        .ok_or("there is nothing to map")?;
    // Mapping the end of a file that is shorter would kill whoever touches it.
    let size = nix::unistd::lseek(buffer, 0, nix::unistd::Whence::SeekEnd)
        .map_err(|error| format!("its size cannot be had ({error})"))?;
    if u64::try_from(size).unwrap_or_default() < len.get() as u64 {
        return Err(format!("it has {size} bytes, {len} were asked for"));
    }
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses: it replaces nothing.
    let base = unsafe { mmap(None, len, both, MapFlags::MAP_SHARED, buffer.as_fd(), 0) }
        .map_err(|error| format!("its exporter does not let processes map it ({error})"))?;
    let view = View { base, len: len.get() };
    // SAFETY: mapped for reading and writing just now, and until the owner is dropped; nobody makes references into it. Its exporter may
    // change it at any time, which foreign memory allows.
    let region = unsafe { Region::from_foreign(base.cast(), len.get(), Box::new(view)) };
    space.map(&region, access).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Way;

    #[test]
    fn an_import_needs_an_address_space() {
        let file = tempfile::tempfile().unwrap();
        let container = Container::new(Way::Any);
        let error = container.import(file.as_fd(), 4096, Access::Read).unwrap_err();
        assert!(matches!(error, ImportError::NoSpace));
    }

    #[test]
    fn each_rung_says_why_it_did_not_hold() {
        let error = ImportError::NoRung(vec![
            RungFailure {
                rung: Rung::MapFile,
                reason: of_map_file(&io::Error::from_raw_os_error(libc::EINVAL)),
            },
            RungFailure {
                rung: Rung::ImportModule,
                reason: of_module(),
            },
        ]);
        let said = error.to_string();
        assert!(said.contains("6.19") && said.contains("dmabuf_import"), "{said}");
    }
}
