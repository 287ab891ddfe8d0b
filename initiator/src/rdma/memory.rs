//! [`Memory`]: the registrations of one protection domain, and [`Local`]: those that one queue used lately.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use homi_queue::{Region, Segment};
use homi_verbs::{Access, Capability, Device, MemoryRegion, Pd, Unsupported, VerbsError, Windows};

use super::cache::{Cache, CacheLimits};

/// Registrations kept that nobody asked for: few enough to look through, and far more than a program has regions.
const LIMITS: CacheLimits = CacheLimits {
    entries: 1024,
    bytes: 64 << 30,
};

/// Registrations that a queue finds without the lock.
const LOCAL: usize = 32;

/// What queues of one device share.
pub(super) struct Memory {
    pd: Pd,
    access: Access,
    windows: bool,
    cache: Mutex<Cache<MemoryRegion>>,
    /// Grows when registrations are forgotten, so that queues forget them too.
    generation: AtomicU64,
}

impl Memory {
    /// A domain of a device. With `windows`, memory is reachable for controllers through windows alone.
    pub(super) fn new(device: &Device, windows: bool) -> Result<Self, VerbsError> {
        if windows && device.limits().windows == Windows::None {
            return Err(Unsupported::Capability {
                device: device.name().to_owned(),
                what: Capability::MemoryWindows,
            }
            .into());
        }
        Ok(Self {
            pd: Pd::new(device)?,
            // A window may let a controller write only where this host's device may.
            access: if windows {
                Access::WRITE | Access::BIND | Access::RELAXED
            } else {
                Access::REMOTE_WRITE | Access::REMOTE_READ | Access::RELAXED
            },
            windows,
            cache: Mutex::new(Cache::new(LIMITS)),
            generation: AtomicU64::new(0),
        })
    }

    pub(super) fn pd(&self) -> &Pd {
        &self.pd
    }

    /// Whether controllers reach memory through windows alone.
    pub(super) fn windows(&self) -> bool {
        self.windows
    }

    fn cache(&self) -> MutexGuard<'_, Cache<MemoryRegion>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forgotten(&self, any: bool) {
        if any {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The registration that a segment lies in, which is made for all of its region if there is none; and whether it was.
    fn get(&self, segment: &Segment) -> Result<(MemoryRegion, bool), VerbsError> {
        let mut cache = self.cache();
        if let Some(memory) = cache.find(segment.host_address() as usize, segment.len()) {
            return Ok((memory, false));
        }
        let swept = cache.sweep(only_registered);
        self.forgotten(swept);
        let region = segment.region();
        let memory = self.pd.register(region, self.access)?;
        let full = cache.insert(
            region.host_address() as usize,
            region.len(),
            memory.clone(),
            false,
        );
        self.forgotten(full);
        tracing::trace!(bytes = region.len(), "memory registered");
        Ok((memory, true))
    }

    /// Registers a region until the result is dropped.
    pub(super) fn pin(self: &Arc<Self>, region: &Region) -> Result<Pin, VerbsError> {
        let (base, len) = (region.host_address() as usize, region.len());
        let mut cache = self.cache();
        if !cache.pin(base, len) {
            let memory = self.pd.register(region, self.access)?;
            cache.insert(base, len, memory, true);
        }
        Ok(Pin {
            memory: Arc::downgrade(self),
            base,
            len,
        })
    }

    /// Forgets the registrations of a segment's memory that nobody asked for.
    pub(super) fn forget(&self, segment: &Segment) {
        let any = self
            .cache()
            .forget(segment.host_address() as usize, segment.len());
        self.forgotten(any);
    }

    /// Forgets registrations of memory that nobody else has any more.
    pub(super) fn sweep(&self) {
        let any = self.cache().sweep(only_registered);
        self.forgotten(any);
    }
}

/// Whether nobody has the registered region any more but its registration.
fn only_registered(memory: &MemoryRegion) -> bool {
    memory.region().is_some_and(Region::is_only_clone)
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("device", self.pd.device())
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// A registration that stays until this is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    /// Gone if the device is.
    memory: Weak<Memory>,
    base: usize,
    len: usize,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.upgrade() {
            let any = memory.cache().unpin(self.base, self.len);
            memory.forgotten(any);
        }
    }
}

/// A region's registrations in every domain of an association.
#[derive(Debug)]
pub(crate) struct Pinned(#[expect(dead_code, reason = "held for its drop")] pub(super) Vec<Pin>);

struct LocalEntry {
    base: usize,
    len: usize,
    memory: MemoryRegion,
}

/// Registrations that one queue used lately: found without a lock, and counted without sharing a cache line.
pub(super) struct Local {
    shared: Arc<Memory>,
    entries: Vec<LocalEntry>,
    /// The one found last.
    last: usize,
    /// The one to be replaced next.
    next: usize,
    generation: u64,
    /// Registrations that this queue made.
    registrations: u64,
}

impl Local {
    pub(super) fn new(shared: &Arc<Memory>) -> Self {
        Self {
            shared: Arc::clone(shared),
            entries: Vec::with_capacity(LOCAL),
            last: 0,
            next: 0,
            generation: shared.generation.load(Ordering::Acquire),
            registrations: 0,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Memory> {
        &self.shared
    }

    pub(super) fn registrations(&self) -> u64 {
        self.registrations
    }

    /// The registration of a segment, and where in it the segment begins.
    #[inline]
    pub(super) fn find(&mut self, segment: &Segment) -> Result<(&MemoryRegion, u64), VerbsError> {
        let (start, len) = (segment.host_address() as usize, segment.len());
        if self.shared.generation.load(Ordering::Relaxed) != self.generation {
            self.forget_old();
        }
        if !self.holds(self.last, start, len) {
            self.last = match (0..self.entries.len()).find(|index| self.holds(*index, start, len)) {
                Some(index) => index,
                None => self.ask(segment)?,
            };
        }
        match self.entries.get(self.last) {
            Some(entry) => Ok((&entry.memory, (start - entry.base) as u64)),
            None => Err(VerbsError::OutOfBounds {
                start: start as u64,
                end: start.saturating_add(len) as u64,
                len: 0,
            }),
        }
    }

    #[inline]
    fn holds(&self, index: usize, start: usize, len: usize) -> bool {
        self.entries.get(index).is_some_and(|entry| {
            start
                .checked_sub(entry.base)
                .is_some_and(|at| at <= entry.len && entry.len - at >= len)
        })
    }

    #[cold]
    fn ask(&mut self, segment: &Segment) -> Result<usize, VerbsError> {
        let (memory, made) = self.shared.get(segment)?;
        self.registrations += u64::from(made);
        // Making it may have forgotten others.
        self.forget_old();
        let base = memory.region().map_or(0, |region| region.host_address() as usize);
        let entry = LocalEntry {
            base,
            len: usize::try_from(memory.len()).unwrap_or(0),
            memory: memory.handle(),
        };
        if self.entries.len() < LOCAL {
            self.entries.push(entry);
            return Ok(self.entries.len() - 1);
        }
        let index = self.next;
        self.next = (index + 1) % LOCAL;
        if let Some(place) = self.entries.get_mut(index) {
            *place = entry;
        }
        Ok(index)
    }

    /// Forgets everything if anything was forgotten elsewhere: what is still there is found again with the lock.
    #[cold]
    pub(super) fn forget_old(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        (self.last, self.next) = (0, 0);
    }
}
