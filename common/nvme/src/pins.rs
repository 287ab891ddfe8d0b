//! [`Mapped`]: memory that stays reachable for a controller and all its queues.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homi_pci::Mapping;

/// The mappings that all queues of a controller share. Queues keep a copy and look here when the generation changed, or when they
/// miss something.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    generation: AtomicU64,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    mappings: Vec<(u64, Mapping)>,
}

impl Pins {
    fn list(&self) -> MutexGuard<'_, List> {
        // Nothing panics half way through a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with every mapping that comes or goes.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has every queue look again.
    pub(crate) fn touch(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn add(self: &Arc<Self>, mapping: Mapping) -> Mapped {
        let mut list = self.list();
        let id = list.next;
        list.next += 1;
        list.mappings.push((id, mapping.clone()));
        drop(list);
        self.touch();
        Mapped {
            pins: Arc::clone(self),
            id,
            mapping,
        }
    }

    /// Calls `f` with all mappings, each with a number that no other ever has.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&[(u64, Mapping)]) -> T) -> T {
        f(&self.list().mappings)
    }
}

/// A region that a controller's queues reach, until this is dropped. Commands in flight keep it reachable until they are over, and
/// queues notice with their next commit.
pub struct Mapped {
    pins: Arc<Pins>,
    id: u64,
    mapping: Mapping,
}

impl Mapped {
    /// The mapping.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mapped").field(&self.mapping).finish()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.pins.list().mappings.retain(|(id, _)| *id != self.id);
        self.pins.touch();
    }
}
