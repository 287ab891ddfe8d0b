//! [`Shadow`]: doorbells in memory (Doorbell Buffer Config, Base 2.0 §5.8), which emulated controllers read instead of being
//! interrupted by every register write.

use std::sync::atomic::{Ordering, fence};

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::{PageSize, Region};

use crate::error::NvmeError;

/// The two pages: doorbell values, and up to where the controller wants to be told by register.
#[derive(Debug, Clone)]
pub(crate) struct Shadow {
    values: Region,
    events: Region,
    values_at: Mapping,
    events_at: Mapping,
    stride: u32,
}

/// One queue's doorbells in the pages.
#[derive(Debug)]
pub(crate) struct ShadowDoorbells {
    values: Region,
    events: Region,
    /// The memory stays mapped as long as a queue uses it.
    _mappings: (Mapping, Mapping),
    submission: Place,
    completion: Place,
    /// What was rung last.
    tail: u16,
    head: u16,
}

/// A doorbell of 4 bytes in a page of words.
#[derive(Debug, Clone, Copy)]
struct Place {
    word: usize,
    upper: bool,
}

impl Place {
    const fn at(byte: usize) -> Self {
        Self {
            word: byte / 8,
            upper: byte % 8 == 4,
        }
    }
}

impl Shadow {
    pub(crate) fn new(space: &DmaSpace, page: PageSize, stride: u32) -> Result<Self, NvmeError> {
        let bytes = usize::try_from(page.bytes()).unwrap_or(4096);
        let values = Region::allocate(bytes, bytes)?;
        let events = Region::allocate(bytes, bytes)?;
        Ok(Self {
            values_at: space.map(&values, Access::ReadWrite)?,
            events_at: space.map(&events, Access::ReadWrite)?,
            values,
            events,
            stride,
        })
    }

    /// The pages' addresses: values, then events.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.values_at.range().start().0, self.events_at.range().start().0)
    }

    /// A queue's doorbells, or `None` if the pages are too short for it.
    pub(crate) fn doorbells(&self, qid: u16) -> Option<ShadowDoorbells> {
        let stride = self.stride as usize;
        let submission = 2 * usize::from(qid) * stride;
        let completion = submission + stride;
        if completion + 4 > self.values.len() {
            return None;
        }
        let doorbells = ShadowDoorbells {
            values: self.values.clone(),
            events: self.events.clone(),
            _mappings: (self.values_at.clone(), self.events_at.clone()),
            submission: Place::at(submission),
            completion: Place::at(completion),
            tail: 0,
            head: 0,
        };
        // What an earlier queue of this number left does not hold for the new one: neither its doorbells nor where the controller slept.
        for place in [doorbells.submission, doorbells.completion] {
            store(&doorbells.values, place, 0);
            store(&doorbells.events, place, 0);
        }
        Some(doorbells)
    }

    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

/// Stores one doorbell of a page.
fn store(page: &Region, place: Place, value: u16) {
    let Some(word) = page.words().and_then(|words| words.get(place.word)) else {
        return;
    };
    // Both halves of a word belong to one queue (or the other half to nothing), and only its thread writes here.
    let old = u64::from_le(word.load(Ordering::Relaxed));
    let new = if place.upper {
        (old & 0xffff_ffff) | (u64::from(value) << 32)
    } else {
        (old & !0xffff_ffff) | u64::from(value)
    };
    word.store(new.to_le(), Ordering::Release);
}

impl ShadowDoorbells {
    fn event(&self, place: Place) -> u16 {
        let words = self.events.words();
        let Some(word) = words.and_then(|words| words.get(place.word)) else {
            return 0;
        };
        let word = u64::from_le(word.load(Ordering::Relaxed));
        let half = if place.upper { word >> 32 } else { word };
        u16::try_from(half & 0xffff).unwrap_or(0)
    }

    /// Rings the submission queue's doorbell in memory, and says whether the register has to be written as well.
    pub(crate) fn submission(&mut self, tail: u16) -> bool {
        store(&self.values, self.submission, tail);
        // The controller writes its event index and then looks at the value: one of both sees the other's.
        fence(Ordering::SeqCst);
        let needed = passed(self.event(self.submission), tail, self.tail);
        self.tail = tail;
        needed
    }

    /// The same for the completion queue.
    pub(crate) fn completion(&mut self, head: u16) -> bool {
        store(&self.values, self.completion, head);
        fence(Ordering::SeqCst);
        let needed = passed(self.event(self.completion), head, self.head);
        self.head = head;
        needed
    }

    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

/// Whether the way from `old` to `new` passes the index at which the controller wants to be told.
const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_written_when_the_controller_sleeps() {
        assert!(passed(0, 1, 0), "it waits for the first entry");
        assert!(!passed(5, 3, 2), "it will look by itself");
        assert!(passed(2, 3, 2) && passed(2, 9, 1));
        assert!(passed(u16::MAX, 0, u16::MAX), "around the end");
    }
}
