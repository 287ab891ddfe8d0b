//! [`MemoryWindow`]: access of a peer to a part of a registration, given and taken back by work requests.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use homi_queue::RemoteKey;
use rdma_sys::{ibv_alloc_mw, ibv_dealloc_mw, ibv_mw, ibv_mw_type};

use crate::device::is_unsupported;
use crate::error::{Capability, VerbsError};
use crate::memory::{MemoryRegion, Pd};

pub(crate) struct WindowInner {
    raw: NonNull<ibv_mw>,
    pd: Pd,
}

// SAFETY: libibverbs' windows may be used by any thread; the key in it is changed only through the one handle.
unsafe impl Send for WindowInner {}
// SAFETY: as above.
unsafe impl Sync for WindowInner {}

impl Drop for WindowInner {
    fn drop(&mut self) {
        // SAFETY: no work request refers to the window; it is given back only here.
        let code = unsafe { ibv_dealloc_mw(self.raw.as_ptr()) };
        if code != 0 {
            tracing::warn!(
                device = self.pd.device().name(),
                code,
                "a memory window was not given back"
            );
        }
    }
}

/// A memory window of type 2. [`SendBatch::bind`](crate::SendBatch::bind) gives a peer access to a piece of memory under a new key, until the
/// key is invalidated: by the peer, with a SEND that says so, or by [`SendBatch::invalidate`](crate::SendBatch::invalidate). Then it can be
/// bound again.
pub struct MemoryWindow {
    // Before the memory: the window goes first.
    inner: Arc<WindowInner>,
    key: u32,
    bound: Option<MemoryRegion>,
}

impl MemoryWindow {
    /// A window of a protection domain, not bound to anything.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] with [`Capability::MemoryWindows`] if the device has none of this type, [`VerbsError::System`] if it has
    /// no more.
    pub fn new(pd: &Pd) -> Result<Self, VerbsError> {
        // SAFETY: the domain is alive as long as the window, which keeps it.
        let raw = unsafe { ibv_alloc_mw(pd.raw(), ibv_mw_type::IBV_MW_TYPE_2) };
        let Some(raw) = NonNull::new(raw) else {
            let source = io::Error::last_os_error();
            if is_unsupported(&source) || source.raw_os_error() == Some(libc::EINVAL) {
                return Err(pd.lacks(Capability::MemoryWindows).into());
            }
            return Err(VerbsError::System {
                action: "allocate a memory window",
                source,
            });
        };
        // SAFETY: the window is alive.
        let key = unsafe { (*raw.as_ptr()).rkey };
        Ok(Self {
            inner: Arc::new(WindowInner { raw, pd: pd.clone() }),
            key,
            bound: None,
        })
    }

    /// The key of the last binding. Peers reach nothing with it once it was invalidated.
    #[must_use]
    pub fn remote_key(&self) -> RemoteKey {
        RemoteKey(self.key)
    }

    pub(crate) fn pd(&self) -> &Pd {
        &self.inner.pd
    }

    pub(crate) fn inner(&self) -> &Arc<WindowInner> {
        &self.inner
    }

    pub(crate) fn raw(&self) -> *mut ibv_mw {
        self.inner.raw.as_ptr()
    }

    /// The key that the next binding will have, for whoever writes a message before the window is bound.
    #[must_use]
    pub fn next_remote_key(&self) -> RemoteKey {
        RemoteKey(self.next_key())
    }

    pub(crate) fn next_key(&self) -> u32 {
        // The lowest byte is the owner's to choose. (The bindings' own function for this overflows at the largest key.)
        self.key & !0xff | self.key.wrapping_add(1) & 0xff
    }

    /// A binding was put into a batch.
    pub(crate) fn binds(&mut self, memory: MemoryRegion) {
        self.key = self.next_key();
        self.bound = Some(memory);
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWindow")
            .field("key", &self.remote_key())
            .field("bound", &self.bound)
            .finish()
    }
}
