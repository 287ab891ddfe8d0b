//! Memory that the kernel keeps pinned between commands, by address.

use homi_queue::Region;
use io_uring::Submitter;

use super::Registration;

/// Regions registered at once.
const SLOTS: u16 = 16;
/// The longest region that the kernel registers.
const LONGEST: usize = 1 << 30;
/// Regions seen once that are remembered.
const SEEN: usize = 16;

#[derive(Debug)]
struct Kept {
    /// Keeps the memory in place for as long as the kernel knows it by this address.
    region: Region,
    base: usize,
    len: usize,
}

/// What was found.
pub(super) struct Found {
    /// Index of the registered buffer.
    pub(super) index: Option<u16>,
    /// It was registered just now.
    pub(super) is_new: bool,
}

/// The table of a ring.
pub(super) struct Registered {
    slots: Vec<Option<Kept>>,
    /// Bases of regions that were used once lately.
    seen: [usize; SEEN],
    next_seen: usize,
    registration: Registration,
    /// The kernel has the table.
    available: bool,
}

impl Registered {
    pub(super) fn new(submitter: &Submitter<'_>, registration: Registration) -> Self {
        let available = submitter.register_buffers_sparse(SLOTS.into()).is_ok();
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            seen: [0; SEEN],
            next_seen: 0,
            registration,
            available,
        }
    }

    /// The buffer that this region is; one that is used a second time is registered if that is wanted.
    pub(super) fn find(&mut self, submitter: &Submitter<'_>, region: &Region, lasting: bool) -> Found {
        let none = Found {
            index: None,
            is_new: false,
        };
        if !self.available {
            return none;
        }
        let (base, len) = (region.host_address().addr(), region.len());
        if let Some(index) = self.position(base, len) {
            return Found {
                index: u16::try_from(index).ok(),
                is_new: false,
            };
        }
        if self.registration == Registration::Explicit || !lasting {
            return none;
        }
        if !self.seen.contains(&base) {
            if let Some(seen) = self.seen.get_mut(self.next_seen) {
                *seen = base;
            }
            self.next_seen = (self.next_seen + 1) % SEEN;
            return none;
        }
        let is_new = self.add(submitter, region);
        Found {
            index: is_new
                .then(|| self.position(base, len))
                .flatten()
                .and_then(|index| u16::try_from(index).ok()),
            is_new,
        }
    }

    fn position(&self, base: usize, len: usize) -> Option<usize> {
        self.slots.iter().position(|slot| {
            slot.as_ref()
                .is_some_and(|kept| base >= kept.base && base - kept.base + len <= kept.len)
        })
    }

    /// Registers a region if there is room; nothing is thrown out for it, because others may be in use.
    pub(super) fn add(&mut self, submitter: &Submitter<'_>, region: &Region) -> bool {
        let (base, len) = (region.host_address().addr(), region.len());
        if !self.available || len == 0 || len > LONGEST {
            return false;
        }
        if self.position(base, len).is_some() {
            return true;
        }
        let Some(index) = self.slots.iter().position(Option::is_none) else {
            return false;
        };
        let range = libc::iovec {
            iov_base: region.host_address().cast(),
            iov_len: len,
        };
        let at = u32::try_from(index).unwrap_or(u32::MAX);
        // SAFETY: the region is alive, and the slot keeps it so until the buffer is taken out of the kernel's table.
        let registered = unsafe { submitter.register_buffers_update(at, &[range], None) };
        if registered.is_err() {
            // A limit of locked memory, mostly: it will not go away, and asking costs more than it saves.
            self.available = self.slots.iter().any(Option::is_some);
            self.registration = Registration::Explicit;
            return false;
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Kept {
                region: region.clone(),
                base,
                len,
            });
        }
        true
    }

    /// Takes the region with this address out of the table.
    pub(super) fn forget(&mut self, submitter: &Submitter<'_>, address: *const u8) {
        let address = address.addr();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let holds = slot
                .as_ref()
                .is_some_and(|kept| address >= kept.base && address - kept.base < kept.len);
            if !holds {
                continue;
            }
            let none = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            let at = u32::try_from(index).unwrap_or(u32::MAX);
            // SAFETY: an empty range takes the buffer out of the table; nothing refers to memory.
            let removed = unsafe { submitter.register_buffers_update(at, &[none], None) };
            match (removed, slot.take()) {
                (Ok(()), kept) => drop(kept),
                // The kernel may keep the pages: they must never be anything else while it does.
                (Err(_), Some(kept)) => std::mem::forget(kept.region),
                (Err(_), None) => {}
            }
        }
    }

    /// Empties the table; the ring takes no more commands.
    pub(super) fn clear(&mut self, submitter: &Submitter<'_>) {
        if self.available {
            // The kernel takes a ring apart later; this way it lets go of the memory now. Pages stay its own until then.
            let _ = submitter.unregister_buffers();
        }
        self.slots.clear();
    }
}
