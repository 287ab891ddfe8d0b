//! [`Reachable`]: memory that every drive of a process reaches, mapped when a drive starts or when the memory comes, and never for a command.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::Region;

use crate::drives::Drives;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mappings of one address space. They go with the last drive there.
pub(crate) struct Reached {
    space: DmaSpace,
    mappings: Mutex<HashMap<u64, Mapping>>,
}

impl Reached {
    pub(crate) fn mapping(&self, memory: &Reachable) -> Option<Mapping> {
        lock(&self.mappings).get(&memory.id).cloned()
    }

    fn map(&self, id: u64, region: &Region) {
        match self.space.map(region, Access::ReadWrite) {
            Ok(mapping) => drop(lock(&self.mappings).insert(id, mapping)),
            Err(error) => tracing::warn!("buffers are mapped for drives when they are used: {error}"),
        }
    }
}

/// Memory that drives reach, and the address spaces that they are in.
#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    regions: Vec<(u64, Region)>,
    spaces: Vec<Weak<Reached>>,
}

impl State {
    fn spaces(&mut self) -> Vec<Arc<Reached>> {
        self.spaces.retain(|space| space.strong_count() > 0);
        self.spaces.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Shared {
    /// A drive comes: everything is mapped in its address space, unless another drive there had that done.
    pub(crate) fn enter(&self, space: DmaSpace) -> Arc<Reached> {
        let mut state = lock(&self.0);
        if let Some(reached) = state
            .spaces()
            .into_iter()
            .find(|reached| reached.space.is(&space))
        {
            return reached;
        }
        let reached = Arc::new(Reached {
            space,
            mappings: Mutex::default(),
        });
        for (id, region) in &state.regions {
            reached.map(*id, region);
        }
        state.spaces.push(Arc::downgrade(&reached));
        reached
    }
}

/// Memory that every drive of a [`Drives`] reaches, those that come later too, until this is dropped.
/// Queues are told of it by [`DriveQueue::keep`](crate::DriveQueue::keep).
pub struct Reachable {
    id: u64,
    region: Region,
    shared: Arc<Shared>,
}

impl Drives {
    /// Maps a region for all drives, those that come later too. Where that fails, commands that use it have it mapped.
    #[must_use]
    pub fn reach(&self, region: &Region) -> Reachable {
        let shared = Arc::clone(self.memory());
        let mut state = lock(&shared.0);
        let id = state.next;
        state.next += 1;
        state.regions.push((id, region.clone()));
        for space in state.spaces() {
            space.map(id, region);
        }
        drop(state);
        Reachable {
            id,
            region: region.clone(),
            shared,
        }
    }
}

impl Reachable {
    /// The memory.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.0);
        state.regions.retain(|(id, _)| *id != self.id);
        for space in state.spaces() {
            lock(&space.mappings).remove(&self.id);
        }
    }
}

impl fmt::Debug for Reachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reachable").field(&self.region).finish()
    }
}
