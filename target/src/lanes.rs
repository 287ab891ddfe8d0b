//! [`Lanes`]: which executor carries out what one connection's commands ask of which namespace.

use crate::slab::Key;

/// An executor, and its number for the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) executor: Key,
    pub(crate) member: u32,
    /// Where data passes through, if not through memory of this machine: the shard's number for that.
    pub(crate) cmb: Option<u16>,
}

/// The executors that a connection's commands go to, by the handle of what backs their namespace. One that is gone is not found under its key
/// any more.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_handle: Vec<Option<Lane>>,
    /// Executors that nobody else uses: queue pairs of drives.
    own: Vec<Key>,
    /// Handles of namespaces for which there was no queue pair left.
    sharing: Vec<u64>,
    /// Commands of the remote queue that may be in flight, if it is one for I/O.
    depth: Option<u16>,
}

impl Lanes {
    /// The connection is an I/O queue from now on.
    pub(crate) fn set_depth(&mut self, depth: u16) {
        self.depth = Some(depth);
    }

    /// How many commands a queue pair of its own has to take, if it is to have one.
    pub(crate) fn depth(&self) -> Option<u16> {
        self.depth
    }

    #[inline]
    pub(crate) fn get(&self, handle: u64) -> Option<Lane> {
        let index = usize::try_from(handle).ok()?;
        self.by_handle.get(index).copied().flatten()
    }

    pub(crate) fn set(&mut self, handle: u64, lane: Lane) {
        let Ok(index) = usize::try_from(handle) else {
            return;
        };
        if self.by_handle.len() <= index {
            // Handles are small numbers, given by the catalogue.
            self.by_handle.resize(index + 1, None);
        }
        if let Some(place) = self.by_handle.get_mut(index) {
            *place = Some(lane);
        }
    }

    pub(crate) fn own_mut(&mut self) -> &mut Vec<Key> {
        &mut self.own
    }

    /// Whether commands for this namespace go where those of other connections go.
    pub(crate) fn shares(&self, handle: u64) -> bool {
        self.sharing.contains(&handle)
    }

    /// Commands for this namespace go where those of other connections go from now on.
    pub(crate) fn share(&mut self, handle: u64) {
        if !self.shares(handle) {
            self.sharing.push(handle);
        }
    }
}
