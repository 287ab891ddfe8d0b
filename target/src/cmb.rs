//! Buffers in a drive's own memory (its controller memory buffer): data goes from the wire there and from there to the medium, or the other way,
//! and never through the memory of this machine.
//!
//! Each shard has a part of the buffer, in which [`CmbPool`] is what [`Pool`](crate::pool::Pool) is in memory: bounded, and commands wait
//! when it is empty. What is in the buffer is nobody's knowledge after the controller was reset, so each piece remembers in which epoch it
//! was taken: data from an earlier one is neither written nor given to a host. What was handed to the network before a reset is not followed:
//! it arrives as the buffer then is, which controllers do not change by a reset as far as is known, though they may.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use homi_local::Drive;
use homi_nvme::{Cmb, CmbMemory};
use homi_queue::{Data, Region};

use crate::arena::Arena;

/// How many pieces that were sent are looked at when one is wanted.
const LOOKED_AT: usize = 16;
/// Bytes that are kept for data that came in a capsule, as much as a capsule can carry.
const RESERVE: usize = 64 << 10;

/// The parts of one drive's buffer, one for each shard.
pub(crate) struct CmbParts {
    cmb: Cmb,
    parts: Vec<CmbMemory>,
    /// Bytes of the largest piece.
    largest: usize,
}

impl fmt::Debug for CmbParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmbParts")
            .field("memory", self.cmb.memory())
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}

impl CmbParts {
    /// Divides a drive's buffer between so many shards, each of which can carry transfers of `largest` bytes (a power of two) then.
    /// The error says what is missing.
    pub(crate) fn new(drive: &Drive, shards: u16, largest: usize) -> Result<Self, String> {
        let name = drive.name();
        let cmb = drive
            .cmb()
            .map_err(|error| format!("placement = \"cmb\" needs a controller memory buffer: {error}"))?;
        let support = cmb.support();
        for (has, what, bit) in [
            (support.read_data(), "data that it reads", "CMBSZ.RDS"),
            (support.write_data(), "data that it writes", "CMBSZ.WDS"),
        ] {
            if !has {
                return Err(format!(
                    "placement = \"cmb\": the memory buffer of {name} does not take {what} ({bit}): use placement = \"dram\""
                ));
            }
        }
        let bytes = usize::try_from(cmb.free_bytes()).unwrap_or(usize::MAX);
        let each = bytes / usize::from(shards.max(1)) / largest * largest;
        if each == 0 {
            return Err(format!(
                "placement = \"cmb\": the memory buffer of {name} has {bytes} bytes, {shards} shards need one transfer of {largest} each: \
                 lower node.max_transfer or node.shards"
            ));
        }
        let parts = (0..shards).map(|_| cmb.allocate(each));
        let parts = parts.collect::<Result<_, _>>().map_err(|error| {
            format!("placement = \"cmb\": the memory buffer of {name} is in use: {error}")
        })?;
        Ok(Self { cmb, parts, largest })
    }
}

struct Out {
    /// The clone that stays, to see whether others do.
    part: Region,
    block: Data,
    epoch: u64,
    serial: u64,
}

/// One shard's part of a drive's buffer.
pub(crate) struct CmbPool {
    parts: Arc<CmbParts>,
    arena: Arena,
    /// Pieces that somebody has, by address.
    out: HashMap<usize, Out>,
    /// The same by age, with numbers that tell the tenants of a place apart.
    order: VecDeque<(usize, u64)>,
    serial: u64,
    /// Bytes of pieces that wait for hosts.
    lent: usize,
    /// First address and bytes.
    range: (usize, usize),
    /// Namespaces that use it, by handle.
    handles: Vec<u64>,
}

impl CmbPool {
    pub(crate) fn new(parts: &Arc<CmbParts>, shard: u16) -> Option<Self> {
        let part = parts.parts.get(usize::from(shard))?.region();
        let largest = parts.largest;
        let regions =
            (0..part.len() / largest).map(|number| part.part(number * largest..(number + 1) * largest));
        let regions: Vec<Region> = regions.collect::<Result<_, _>>().ok()?;
        Some(Self {
            arena: Arena::over(regions, largest),
            out: HashMap::new(),
            order: VecDeque::new(),
            serial: 0,
            lent: 0,
            range: (part.host_address() as usize, part.len()),
            handles: Vec::new(),
            parts: Arc::clone(parts),
        })
    }

    pub(crate) fn is_of(&self, parts: &Arc<CmbParts>) -> bool {
        Arc::ptr_eq(&self.parts, parts)
    }

    pub(crate) fn serve(&mut self, handle: u64) {
        if !self.handles.contains(&handle) {
            self.handles.push(handle);
        }
    }

    /// A namespace is gone. Says whether it was the last one.
    pub(crate) fn without(&mut self, handle: u64) -> bool {
        let before = self.handles.len();
        self.handles.retain(|known| *known != handle);
        before > 0 && self.handles.is_empty()
    }

    pub(crate) fn cmb(&self) -> &Cmb {
        &self.parts.cmb
    }

    fn address(data: &Data) -> Option<usize> {
        let Data::One(segment) = data else { return None };
        Some(segment.host_address() as usize)
    }

    /// Whether data lies here.
    pub(crate) fn owns(&self, data: &Data) -> bool {
        let (first, len) = self.range;
        Self::address(data).is_some_and(|address| address.wrapping_sub(first) < len)
    }

    /// In which epoch of the buffer a piece was taken.
    pub(crate) fn epoch_of(&self, data: &Data) -> Option<u64> {
        self.out.get(&Self::address(data)?).map(|out| out.epoch)
    }

    /// Whether what is in a piece may be something else than what was put there, since the controller was reset.
    pub(crate) fn is_stale(&self, data: &Data) -> bool {
        self.epoch_of(data) != Some(self.parts.cmb.epoch())
    }

    /// See [`Pool::may_lend`](crate::pool::Pool::may_lend).
    pub(crate) fn may_lend(&mut self, held: usize, len: usize) -> bool {
        self.reclaim();
        let size = Arena::size_of(len);
        let alone = self.lent == 0 && self.out.is_empty();
        match self.arena.idle().checked_sub(size + RESERVE) {
            Some(left) => alone || left >= held + size,
            None => alone && self.arena.idle() >= size,
        }
    }

    pub(crate) fn lend(&mut self, len: usize) -> usize {
        let size = Arena::size_of(len);
        self.lent += size;
        size
    }

    pub(crate) fn settle(&mut self, size: usize) {
        self.lent = self.lent.saturating_sub(size);
    }

    /// A piece of `len` bytes, or `None` when there is none now.
    pub(crate) fn take(&mut self, len: usize) -> Option<Data> {
        self.reclaim();
        let block = self.arena.take(len)?;
        let Data::One(segment) = &block else { return None };
        let start = segment.start();
        let part = segment.region().part(start..start + len).ok()?;
        let data = part.segment(0..len).ok().map(Data::One)?;
        let address = segment.host_address() as usize;
        self.serial += 1;
        self.order.push_back((address, self.serial));
        let (epoch, serial) = (self.parts.cmb.epoch(), self.serial);
        self.out.insert(
            address,
            Out {
                part,
                block,
                epoch,
                serial,
            },
        );
        Some(data)
    }

    /// Takes back a piece that an operation is done with.
    pub(crate) fn put(&mut self, data: Data) {
        let Some(address) = Self::address(&data) else {
            return;
        };
        drop(data);
        self.free(address);
    }

    /// Frees a piece that nobody else has.
    fn free(&mut self, address: usize) -> bool {
        let only = self.out.get(&address).is_some_and(|out| out.part.is_only_clone());
        if only && let Some(out) = self.out.remove(&address) {
            self.arena.put(&out.block);
        }
        only
    }

    /// Takes back pieces that were sent, or whose command's connection is gone.
    fn reclaim(&mut self) {
        for _ in 0..self.order.len().min(LOOKED_AT) {
            let Some((address, serial)) = self.order.pop_front() else {
                return;
            };
            let known = self.out.get(&address).is_some_and(|out| out.serial == serial);
            if known && !self.free(address) {
                self.order.push_back((address, serial));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use homi_nvme::Options;
    use homi_soft_controller::{CmbConfig, SoftConfig, SoftController};

    use super::*;

    #[test]
    fn pieces_are_bounded_used_again_and_known_by_their_epoch() {
        let config = SoftConfig {
            cmb: Some(CmbConfig::new(512 << 10)),
            ..SoftConfig::default()
        };
        let soft = SoftController::new(config).unwrap();
        let _thread = soft.spawn().unwrap();
        let drive = Drive::take_over(soft.physical(), Some(1), Options::new()).unwrap();
        let parts = Arc::new(CmbParts::new(&drive, 2, 64 << 10).unwrap());
        let error = CmbParts::new(&drive, 1, 64 << 10).unwrap_err();
        assert!(
            error.contains("lower node.max_transfer"),
            "it is all taken: {error}"
        );
        let mut pools = [0, 1].map(|shard| CmbPool::new(&parts, shard).unwrap());
        assert!(CmbPool::new(&parts, 2).is_none());
        let [one, other] = &mut pools;
        let held: Vec<Data> = std::iter::from_fn(|| one.take(8192)).collect();
        assert_eq!(held.len(), (256 << 10) / 8192);
        assert!(one.take(1).is_none() && !one.may_lend(0, 4096));
        let theirs = other.take(64 << 10).unwrap();
        assert!(held.iter().all(|data| one.owns(data) && !other.owns(data)));
        // One that is being sent is not handed out again before that is over.
        let mut held = held.into_iter();
        let sending = held.next().unwrap();
        let still = sending.segments().to_vec();
        one.put(sending);
        assert!(one.take(8192).is_none());
        drop(still);
        let again = one.take(8192).unwrap();
        for data in held {
            one.put(data);
        }
        // Whoever drops one without a word gives it back as well.
        drop(again);
        assert!((0..8).all(|_| one.may_lend(0, 4096)));
        assert_eq!(one.arena.idle(), 256 << 10);
        assert!(!other.is_stale(&theirs));
        drive.controller().reset().unwrap();
        assert!(other.is_stale(&theirs), "nobody knows what is there now");
        other.put(theirs);
        let theirs = other.take(4096).unwrap();
        assert!(!other.is_stale(&theirs));
    }
}
