//! [`Registry`]: which memory a device has registered, for the shard that posts it.

use homi_fabric::rdma::Piece as Span;
use homi_queue::Region;
use homi_verbs::{Access, MemoryRegion, Pd, Piece, VerbsError};

use crate::arena::Arena;

/// One registration.
struct Entry {
    start: usize,
    end: usize,
    memory: MemoryRegion,
}

/// The registrations of one device, by address. What is registered holds its memory, so an address means the same as long as it is here.
pub(super) struct Registry {
    pd: Pd,
    /// By address, apart from each other.
    entries: Vec<Entry>,
    /// The entry found last.
    last: usize,
    /// Registrations made so far.
    pub(super) registrations: u64,
}

impl Registry {
    pub(super) fn new(pd: &Pd) -> Self {
        Self {
            pd: pd.clone(),
            entries: Vec::new(),
            last: 0,
            registrations: 0,
        }
    }

    /// Registers a region for as long as the device is used.
    pub(super) fn register(&mut self, region: &Region) -> Result<MemoryRegion, VerbsError> {
        let memory = self.pd.register(region, Access::WRITE | Access::RELAXED)?;
        self.registrations += 1;
        let start = region.host_address() as usize;
        let entry = Entry {
            start,
            end: start + region.len(),
            memory: memory.clone(),
        };
        let at = self.entries.partition_point(|other| other.start < start);
        self.entries.insert(at, entry);
        Ok(memory)
    }

    /// What a work request refers to for a stretch of memory. A region of the arena is registered when it is first used. Other memory
    /// (what a Connect or an admin command brings or takes) is registered for this one work request.
    #[inline]
    pub(super) fn piece(&mut self, span: &Span<'_>, arena: &Arena) -> Result<Piece, VerbsError> {
        let region = span.segment.region();
        let address = region.host_address() as usize + span.start;
        match self.find(address, span.len) {
            Some(piece) => piece,
            None => self.register_for(region, address, span, arena),
        }
    }

    #[inline]
    fn find(&mut self, address: usize, len: usize) -> Option<Result<Piece, VerbsError>> {
        let inside = |entry: &&Entry| entry.start <= address && address + len <= entry.end;
        let entry = match self.entries.get(self.last).filter(inside) {
            Some(entry) => entry,
            None => {
                let after = self.entries.partition_point(|entry| entry.start <= address);
                let index = after.checked_sub(1)?;
                let entry = self.entries.get(index).filter(inside)?;
                self.last = index;
                entry
            }
        };
        let at = (address - entry.start) as u64;
        Some(entry.memory.piece(at..at + len as u64))
    }

    #[cold]
    fn register_for(
        &mut self,
        region: &Region,
        address: usize,
        span: &Span<'_>,
        arena: &Arena,
    ) -> Result<Piece, VerbsError> {
        if let Some(whole) = arena.region_at(address) {
            self.register(&whole.clone())?;
            if let Some(piece) = self.find(address, span.len) {
                return piece;
            }
        }
        let memory = self.pd.register(region, Access::WRITE)?;
        self.registrations += 1;
        let at = span.start as u64;
        memory.piece(at..at + span.len as u64)
    }
}
