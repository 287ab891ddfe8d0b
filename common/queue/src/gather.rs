//! [`GatherList`]: what one batch sends, as bytes built here (headers) and memory referred to (payload).

use crate::memory::Segment;

/// One stretch of a [`GatherList`] that has not been sent yet.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Bytes that the list itself holds.
    Bytes(&'a [u8]),
    /// Memory that the list refers to and keeps alive, without the first `skip` bytes.
    Memory {
        /// The memory.
        segment: &'a Segment,
        /// Bytes at its start that were sent already.
        skip: usize,
    },
}

#[derive(Debug)]
enum Entry {
    Bytes { start: usize, end: usize },
    Memory(Segment),
}

impl Entry {
    fn len(&self) -> usize {
        match self {
            Self::Bytes { start, end } => end - start,
            Self::Memory(segment) => segment.len(),
        }
    }
}

/// Bytes and memory to be sent in order. It owns (a reference to) everything it sends, and keeps its capacity when
/// it is cleared, so a steady stream of batches allocates nothing.
#[derive(Debug, Default)]
pub struct GatherList {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Entries before this one are sent.
    first: usize,
    /// Bytes of the first unsent entry that are sent.
    skip: usize,
    remaining: usize,
}

impl GatherList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes, copied into the list.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        self.remaining += bytes.len();
        let unsent = self.first < self.entries.len();
        match self.entries.last_mut() {
            Some(Entry::Bytes { end: last, .. }) if unsent && *last == start => *last = end,
            _ => self.entries.push(Entry::Bytes { start, end }),
        }
    }

    /// Appends memory by reference; it is kept alive until the list is sent or cleared.
    pub fn push_memory(&mut self, segment: Segment) {
        if segment.is_empty() {
            return;
        }
        self.remaining += segment.len();
        self.entries.push(Entry::Memory(segment));
    }

    /// Bytes not sent yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// Whether everything is sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Number of stretches not sent yet: the number of I/O vector elements that a vectored send needs.
    #[must_use]
    pub fn pieces_left(&self) -> usize {
        self.entries.len() - self.first
    }

    /// The stretches not sent yet, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let unsent = self.entries.get(self.first..).unwrap_or(&[]);
        unsent.iter().enumerate().map(|(index, entry)| {
            let skip = if index == 0 { self.skip } else { 0 };
            match entry {
                Entry::Bytes { start, end } => {
                    Piece::Bytes(self.bytes.get(start + skip..*end).unwrap_or(&[]))
                }
                Entry::Memory(segment) => Piece::Memory { segment, skip },
            }
        })
    }

    /// Marks `sent` bytes as sent, and releases memory that is sent whole. When nothing is left, the list is cleared.
    pub fn advance(&mut self, sent: usize) {
        let mut sent = sent.min(self.remaining);
        self.remaining -= sent;
        if self.remaining == 0 {
            self.clear();
            return;
        }
        while let Some(entry) = self.entries.get_mut(self.first) {
            let left = entry.len() - self.skip;
            if sent < left {
                self.skip += sent;
                break;
            }
            // What is sent is released at once: its operation may complete while the rest of the list is still waiting, and its
            // issuer wants the memory to itself.
            if matches!(entry, Entry::Memory(_)) {
                *entry = Entry::Bytes { start: 0, end: 0 };
            }
            sent -= left;
            self.skip = 0;
            self.first += 1;
        }
    }

    /// Forgets everything and releases the memory, keeping the capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.first = 0;
        self.skip = 0;
        self.remaining = 0;
    }

    /// The unsent bytes in one vector: for tests, captures and transports without vectored sends.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.remaining);
        for piece in self.pieces() {
            match piece {
                Piece::Bytes(bytes) => all.extend_from_slice(bytes),
                Piece::Memory { segment, skip } => {
                    let at = all.len();
                    all.resize(at + segment.len() - skip, 0);
                    if let Some(to) = all.get_mut(at..) {
                        // In bounds by the segment's own invariant.
                        let _ = segment.region().read(segment.start() + skip, to);
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;

    #[test]
    fn partial_sends_continue_where_they_stopped() {
        let region = Region::from_vec((0..100).collect());
        let mut list = GatherList::new();
        list.push_bytes(&[200, 201]);
        list.push_bytes(&[202]);
        list.push_memory(region.segment(10..20).unwrap());
        list.push_bytes(&[203]);
        let whole = list.to_vec();
        assert_eq!(list.pieces_left(), 3);
        for step in 1..=14 {
            list.advance(1);
            assert_eq!(list.to_vec(), whole[step..]);
        }
        assert!(list.is_empty());
        assert!(region.is_unique());
    }

    #[test]
    fn memory_is_released_as_soon_as_it_is_sent() {
        let region = Region::allocate(16, 1).unwrap();
        let mut list = GatherList::new();
        list.push_bytes(b"ab");
        list.push_memory(region.segment(0..16).unwrap());
        list.push_bytes(b"cd");
        list.advance(17);
        assert!(!region.is_unique());
        list.advance(1);
        assert!(region.is_unique());
        assert_eq!(list.to_vec(), b"cd");
        list.push_bytes(b"ef");
        assert_eq!(list.to_vec(), b"cdef");
    }

    #[test]
    fn appending_to_a_partly_sent_list_keeps_the_order() {
        let mut list = GatherList::new();
        list.push_bytes(b"abc");
        list.advance(2);
        list.push_bytes(b"def");
        assert_eq!(list.to_vec(), b"cdef");
        list.advance(4);
        list.push_bytes(b"g");
        assert_eq!(list.to_vec(), b"g");
    }
}
