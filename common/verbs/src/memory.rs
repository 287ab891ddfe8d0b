//! [`Pd`], [`MemoryRegion`] and [`Piece`]: memory that a device may reach.
#![expect(
    unsafe_code,
    reason = "gives memory to the device for as long as a registration exists"
)]

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use homi_queue::{Region, RemoteAddress, RemoteKey, Segment};
use rdma_sys::{
    ibv_alloc_pd, ibv_dealloc_pd, ibv_dereg_mr, ibv_mr, ibv_pd, ibv_reg_dmabuf_mr, ibv_reg_mr_iova2,
};

use crate::device::{Device, is_unsupported, system};
use crate::error::{Capability, Unsupported, VerbsError};
use crate::types::Access;

struct PdInner {
    pd: NonNull<ibv_pd>,
    device: Device,
}

// SAFETY: libibverbs' protection domains may be used by any thread, several at once.
unsafe impl Send for PdInner {}
// SAFETY: as above.
unsafe impl Sync for PdInner {}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so everything made in the domain is gone; it is given back only here.
        let code = unsafe { ibv_dealloc_pd(self.pd.as_ptr()) };
        if code != 0 {
            tracing::warn!(
                device = self.device.name(),
                code,
                "a protection domain was not given back"
            );
        }
    }
}

/// A protection domain: memory, windows and queue pairs of one domain can be used together, and no others. Cloning shares it.
#[derive(Clone)]
pub struct Pd(Arc<PdInner>);

impl Pd {
    /// A new domain of a device.
    ///
    /// # Errors
    /// [`VerbsError::System`] if the device has no more.
    pub fn new(device: &Device) -> Result<Self, VerbsError> {
        // SAFETY: the context is open as long as the device, which the domain keeps.
        let pd = unsafe { ibv_alloc_pd(device.context()) };
        let pd = NonNull::new(pd).ok_or_else(|| system("allocate a protection domain"))?;
        Ok(Self(Arc::new(PdInner {
            pd,
            device: device.clone(),
        })))
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether both are one domain.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn raw(&self) -> *mut ibv_pd {
        self.0.pd.as_ptr()
    }

    /// Registers the whole of a region. It stays shared, and so cannot be borrowed as a slice, until the registration and everything that
    /// refers to it are gone.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`] if the region is empty, [`VerbsError::System`] if the system refuses: mostly because the memory may not be
    /// locked (`ulimit -l`) or the device has no more registrations.
    pub fn register(&self, region: &Region, access: Access) -> Result<MemoryRegion, VerbsError> {
        if region.is_empty() {
            return Err(VerbsError::OutOfRange {
                what: "the length of a registration in bytes",
                value: 0,
                min: 1,
                max: self.device().limits().registration_bytes,
            });
        }
        let base = region.host_address();
        let register = |access: Access| {
            // SAFETY: the region's bytes are one allocation, which lives as long as the registration because that holds the region. The
            // device may change them at any time; regions allow that and lend no references while they are shared. The domain is alive.
            NonNull::new(unsafe {
                ibv_reg_mr_iova2(self.raw(), base.cast(), region.len(), base as u64, access.bits())
            })
        };
        let mut mr = register(access);
        if mr.is_none()
            && access != access.required()
            && matches!(
                io::Error::last_os_error().raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EINVAL)
            )
        {
            mr = register(access.required());
        }
        let mr = mr.ok_or_else(|| system("register memory"))?;
        Ok(self.registered(mr, base as u64, region.len() as u64, access, Some(region.clone())))
    }

    /// Registers `len` bytes from `offset` on of the memory behind a dma-buf descriptor, which may be closed afterwards. In the registration
    /// the first byte has offset 0.
    ///
    /// # Errors
    /// [`Unsupported::Capability`] with [`Capability::DmaBuf`] if the device, its driver or the library cannot, [`VerbsError::System`]
    /// if the exporter refuses.
    pub fn register_dma_buf(
        &self,
        descriptor: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<MemoryRegion, VerbsError> {
        // Its bytes need no address in this process. The device wants the same offset within a page as in the buffer.
        let base = offset;
        let access = access.required();
        // SAFETY: the domain and the descriptor are alive; the registration holds the buffer itself, which is no memory of Rust's.
        let mr = unsafe {
            ibv_reg_dmabuf_mr(
                self.raw(),
                offset,
                len,
                base,
                descriptor.as_raw_fd(),
                access.bits().cast_signed(),
            )
        };
        let Some(mr) = NonNull::new(mr) else {
            let source = io::Error::last_os_error();
            if is_unsupported(&source) {
                return Err(self.lacks(Capability::DmaBuf).into());
            }
            return Err(VerbsError::System {
                action: "register a dma-buf",
                source,
            });
        };
        Ok(self.registered(mr, base, len as u64, access, None))
    }

    fn registered(
        &self,
        mr: NonNull<ibv_mr>,
        base: u64,
        len: u64,
        access: Access,
        region: Option<Region>,
    ) -> MemoryRegion {
        // SAFETY: the library returned the registration, which is alive.
        let lkey = unsafe { (*mr.as_ptr()).lkey };
        // SAFETY: as above.
        let rkey = unsafe { (*mr.as_ptr()).rkey };
        MemoryRegion {
            base,
            len,
            lkey,
            rkey,
            access,
            hold: Arc::new(Hold(Arc::new(Registration {
                mr,
                pd: self.clone(),
                region,
            }))),
        }
    }

    pub(crate) fn lacks(&self, what: Capability) -> Unsupported {
        Unsupported::Capability {
            device: self.device().name().to_owned(),
            what,
        }
    }
}

impl fmt::Debug for Pd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pd({})", self.device().name())
    }
}

struct Registration {
    mr: NonNull<ibv_mr>,
    pd: Pd,
    region: Option<Region>,
}

// SAFETY: libibverbs' registrations may be used by any thread, several at once.
unsafe impl Send for Registration {}
// SAFETY: as above; nothing here is changed after its construction.
unsafe impl Sync for Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: this is the last reference: no work request refers to the registration; it is given back only here.
        let code = unsafe { ibv_dereg_mr(self.mr.as_ptr()) };
        if code != 0 {
            // The device may still reach the memory: better lost than given to somebody else.
            tracing::error!(
                device = self.pd.device().name(),
                code,
                "a registration was not given back: its memory is leaked"
            );
            std::mem::forget(self.region.take());
        }
    }
}

/// A reference count of its own for one more handle of a registration.
struct Hold(Arc<Registration>);

/// Memory that a device may reach. Cloning shares the registration.
#[derive(Clone)]
pub struct MemoryRegion {
    base: u64,
    len: u64,
    lkey: u32,
    rkey: u32,
    access: Access,
    hold: Arc<Hold>,
}

impl MemoryRegion {
    /// The same registration with a reference count of its own, so that shards which use it all day do not bounce one counter's cache line
    /// between them.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            hold: Arc::new(Hold(Arc::clone(&self.hold.0))),
            ..*self
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes; never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may be done with it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its protection domain.
    #[must_use]
    pub fn pd(&self) -> &Pd {
        &self.hold.0.pd
    }

    /// The memory; absent for a dma-buf.
    #[must_use]
    pub fn region(&self) -> Option<&Region> {
        self.hold.0.region.as_ref()
    }

    /// The key that lets a peer reach all of it, as far as its rights go. It is valid until the registration is gone.
    ///
    /// # Errors
    /// [`VerbsError::AccessDenied`] if it was registered without rights for peers.
    pub fn remote_key(&self) -> Result<RemoteKey, VerbsError> {
        let any = self.access.contains(Access::REMOTE_READ) || self.access.contains(Access::REMOTE_WRITE);
        any.then_some(RemoteKey(self.rkey))
            .ok_or(VerbsError::AccessDenied {
                right: "remote read or remote write",
            })
    }

    /// Where a peer finds the byte at `at`.
    ///
    /// # Errors
    /// [`VerbsError::OutOfBounds`] if it is past the end.
    pub fn remote_address(&self, at: u64) -> Result<RemoteAddress, VerbsError> {
        self.check(at, at)?;
        Ok(RemoteAddress(self.base + at))
    }

    /// A range of it, for work requests.
    ///
    /// # Errors
    /// [`VerbsError::OutOfBounds`] if it is not inside.
    pub fn piece(&self, range: Range<u64>) -> Result<Piece, VerbsError> {
        self.check(range.start, range.end)?;
        Ok(Piece {
            address: self.base + range.start,
            len: range.end - range.start,
            memory: self.clone(),
        })
    }

    /// The piece that a segment of the registered memory is.
    ///
    /// # Errors
    /// [`VerbsError::OutOfBounds`] if the segment is of other memory.
    pub fn cover(&self, segment: &Segment) -> Result<Piece, VerbsError> {
        let address = segment.host_address() as u64;
        let len = segment.len() as u64;
        match (self.region(), address.checked_sub(self.base)) {
            (Some(_), Some(at)) => self.piece(at..at.saturating_add(len)),
            _ => Err(VerbsError::OutOfBounds {
                start: address,
                end: address.saturating_add(len),
                len: self.len,
            }),
        }
    }

    fn check(&self, start: u64, end: u64) -> Result<(), VerbsError> {
        if start <= end && end <= self.len {
            return Ok(());
        }
        Err(VerbsError::OutOfBounds {
            start,
            end,
            len: self.len,
        })
    }

    pub(crate) fn raw(&self) -> *mut ibv_mr {
        self.hold.0.mr.as_ptr()
    }

    pub(crate) fn lkey(&self) -> u32 {
        self.lkey
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("base", &format_args!("{:#x}", self.base))
            .field("len", &self.len)
            .field("access", &self.access)
            .finish()
    }
}

/// A range of registered memory, known to lie in it. It holds the registration.
#[derive(Clone)]
pub struct Piece {
    address: u64,
    len: u64,
    memory: MemoryRegion,
}

impl Piece {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The registration that it is part of.
    #[must_use]
    pub fn memory(&self) -> &MemoryRegion {
        &self.memory
    }

    /// Address of the first byte, for the device and for peers.
    #[must_use]
    pub fn address(&self) -> RemoteAddress {
        RemoteAddress(self.address)
    }

    pub(crate) fn into_memory(self) -> MemoryRegion {
        self.memory
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} bytes at {:#x})", self.len, self.address)
    }
}
