//! What an adapter knows, for both RDMA bodies: the send queue ([`Line`]), memory that was lent ([`Memory`]) and what descriptors name
//! ([`Named`]). Read from bytes here, independently of the code under test.

use std::collections::VecDeque;

use homi_fabric::rdma::{Piece, Remote, WorkId};
use homi_queue::{Data, Region};

/// A work request that was posted and is not known to be over.
#[derive(Debug)]
pub(super) struct Posted<T> {
    pub(super) id: WorkId,
    ring: u16,
    pub(super) signaled: bool,
    /// The region that it names, by its address.
    region: Option<usize>,
    /// Later work is over already.
    overtaken: bool,
    pub(super) what: T,
}

/// A send queue.
#[derive(Debug)]
pub(super) struct Line<T> {
    depth: u16,
    posted: VecDeque<Posted<T>>,
}

impl<T> Line<T> {
    pub(super) fn new(depth: u16) -> Self {
        Self {
            depth,
            posted: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.posted.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.posted.len() == usize::from(self.depth)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Posted<T>> {
        self.posted.iter()
    }

    pub(super) fn post(&mut self, id: WorkId, ring: u16, signaled: bool, region: Option<usize>, what: T) {
        assert!(!self.is_full(), "the send queue overflows");
        assert!(
            ring < self.depth
                && self
                    .posted
                    .iter()
                    .all(|other| (other.ring != ring || other.overtaken) && other.id != id),
            "two outstanding work requests share an id or an index"
        );
        self.posted.push_back(Posted {
            id,
            ring,
            signaled,
            region,
            overtaken: false,
            what,
        });
        assert!(
            !self.is_full() || self.posted.iter().any(|one| one.signaled),
            "a full queue that nothing will empty"
        );
    }

    /// An outstanding work request is over, and all before it: those, oldest first. Nothing if it is not outstanding.
    pub(super) fn retire(&mut self, id: WorkId) -> Vec<Posted<T>> {
        match self.posted.iter().position(|one| one.id == id) {
            Some(last) => self.posted.drain(..=last).collect(),
            None => Vec::new(),
        }
    }

    /// The same, but that those before it for which `stays` says so are not over.
    pub(super) fn retire_but(&mut self, id: WorkId, stays: impl Fn(&T) -> bool) -> Vec<Posted<T>> {
        let Some(last) = self.posted.iter().position(|one| one.id == id) else {
            return Vec::new();
        };
        // One that was overtaken has nothing before it that is not over.
        let first = if self.posted.get(last).is_some_and(|one| one.overtaken) {
            last
        } else {
            0
        };
        let mut over = Vec::new();
        let mut later = self.posted.split_off(last + 1);
        for mut one in self.posted.split_off(first) {
            if one.id != id && stays(&one.what) {
                one.overtaken = true;
                self.posted.push_back(one);
            } else {
                over.push(one);
            }
        }
        self.posted.append(&mut later);
        over
    }

    pub(super) fn retire_all(&mut self) -> Vec<Posted<T>> {
        self.posted.drain(..).collect()
    }

    pub(super) fn names(&self, region: usize) -> bool {
        self.posted.iter().any(|one| one.region == Some(region))
    }
}

/// Memory of one operation: parts of a region of its own.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) region: Region,
    /// Start and length of each.
    pub(super) parts: Vec<(usize, usize)>,
}

impl Memory {
    /// Memory of `len` bytes in so many parts with gaps between them; the second is empty if there are more than two.
    pub(super) fn new(len: usize, parts: usize) -> Self {
        let parts = parts.max(1);
        let share = len / parts;
        let mut list = Vec::new();
        let (mut at, mut left) = (8, len);
        for number in 0..parts {
            let part = match number {
                1 if parts > 2 => 0,
                _ if number + 1 == parts => left,
                _ => share,
            };
            list.push((at, part));
            left -= part;
            at += part + 8;
        }
        Self {
            region: Region::from_vec(vec![0; at]),
            parts: list,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    pub(super) fn address(&self) -> usize {
        address(&self.region)
    }

    pub(super) fn data(&self) -> Data {
        let part = |&(start, len): &(usize, usize)| {
            let segment = self.region.segment(start..start + len);
            segment.expect("the parts are inside")
        };
        match self.parts.as_slice() {
            [one] => Data::One(part(one)),
            parts => Data::List(parts.iter().map(part).collect()),
        }
    }

    /// Where the bytes `at..at + len` are: start and length of each stretch.
    pub(super) fn cut(&self, at: usize, len: usize) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut before = 0;
        for &(start, part) in &self.parts {
            let from = at.max(before);
            let to = (at + len).min(before + part);
            if from < to {
                found.push((start + from - before, to - from));
            }
            before += part;
        }
        found
    }

    /// Whether this is the whole of what was lent, in its order.
    pub(super) fn is(&self, data: &Data) -> bool {
        let same = data
            .segments()
            .iter()
            .map(|segment| (segment.start(), segment.len()));
        data.segments()
            .iter()
            .all(|segment| address(segment.region()) == self.address())
            && same.eq(self.parts.iter().copied())
    }

    /// Bytes are written as an adapter does.
    pub(super) fn fill(&self, at: usize, len: usize, byte: impl Fn(usize) -> u8) {
        let bytes: Vec<u8> = (at..at + len).map(byte).collect();
        let data = self.data();
        data.write(at, &bytes).expect("within the memory");
    }

    pub(super) fn holds(&self, len: usize, byte: impl Fn(usize) -> u8) -> bool {
        let mut bytes = vec![0; len];
        let data = self.data();
        data.read(0, &mut bytes).expect("within the memory");
        bytes.into_iter().enumerate().all(|(at, found)| found == byte(at))
    }
}

/// A region's name.
pub(super) fn address(region: &Region) -> usize {
    region.host_address().addr()
}

/// The pieces of a work request: the region that all are of, and where they are in it.
pub(super) fn pieces<'a>(all: impl Iterator<Item = Piece<'a>>) -> (Option<usize>, Vec<(usize, usize)>) {
    let mut region = None;
    let mut found = Vec::new();
    for piece in all {
        let here = address(piece.segment.region());
        assert_eq!(*region.get_or_insert(here), here, "memory of two operations");
        assert!(piece.len > 0, "a piece without bytes");
        let segment = piece.segment;
        assert!(
            piece.start >= segment.start() && piece.start + piece.len <= segment.start() + segment.len(),
            "a piece outside of its segment"
        );
        found.push((piece.start, piece.len));
    }
    (region, found)
}

/// Memory of a host as a descriptor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) address: u64,
    pub(super) key: u32,
    pub(super) len: u64,
    pub(super) invalidate: bool,
}

impl Named {
    /// How a command without data is sent: an empty keyed block.
    pub(super) const NOTHING: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40];

    /// A keyed data block (Base 2.0, figure 101), with or without invalidation.
    pub(super) fn read(sgl: [u8; 16]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, k0, k1, k2, k3, id] = sgl;
        matches!(id, 0x40 | 0x4f).then(|| Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            key: u32::from_le_bytes([k0, k1, k2, k3]),
            len: u32::from_le_bytes([l0, l1, l2, 0]).into(),
            invalidate: id == 0x4f,
        })
    }

    pub(super) fn write(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        let [l0, l1, l2, ..] = self.len.to_le_bytes();
        let [k0, k1, k2, k3] = self.key.to_le_bytes();
        let id = if self.invalidate { 0x4f } else { 0x40 };
        [a, b, c, d, e, f, g, h, l0, l1, l2, k0, k1, k2, k3, id]
    }
}

/// A descriptor with a 64-bit address or offset and a 32-bit length, which the others are.
pub(super) fn plain(sgl: [u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, ..] = sgl;
    (
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u32::from_le_bytes([l0, l1, l2, l3]).into(),
    )
}

pub(super) fn plain_bytes(at: u64, len: u32, id: u8) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = at.to_le_bytes();
    let [l0, l1, l2, l3] = len.to_le_bytes();
    [a, b, c, d, e, f, g, h, l0, l1, l2, l3, 0, 0, 0, id]
}

/// Whether a work request names exactly the bytes `at..at + len` of these ranges, one after another, which must lie in one of them.
pub(super) fn is_named(ranges: &[Named], at: usize, remote: Remote) -> bool {
    let (at, len) = (at as u64, u64::from(remote.len));
    let mut before = 0;
    for range in ranges {
        if at >= before && at < before + range.len {
            let within = at - before;
            return len > 0
                && within + len <= range.len
                && remote.key.0 == range.key
                && remote.address.0 == range.address + within;
        }
        before += range.len;
    }
    false
}
