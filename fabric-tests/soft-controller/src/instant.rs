//! The shortest way from a doorbell to a completion, for counting a driver's instructions.
//!
//! An I/O queue's doorbell write copies the command identifiers of the new entries into completions, and nothing else: no command is looked
//! at, no data is moved. What it costs is a lock, and a few loads and stores per command. Head doorbells are not looked at: a driver that has
//! no more commands under way than the completion queue has room for, as every driver does, never needs them here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use homi_queue::Region;
use homi_spec::registers::offset;

/// A queue pair that is answered at once.
#[derive(Debug)]
pub(crate) struct InstantQueue {
    pub(crate) qid: u16,
    /// Tells it from other queues in the same place.
    pub(crate) id: u64,
    pub(crate) sq: (Region, usize),
    pub(crate) sq_size: u32,
    pub(crate) sq_head: u32,
    pub(crate) cq: (Region, usize),
    pub(crate) cq_size: u32,
    pub(crate) cq_tail: u32,
    pub(crate) phase: bool,
    pub(crate) completed: u64,
}

/// A place for a queue.
#[derive(Debug, Default)]
struct Place {
    /// There is a queue: enough to know for the completion queue's doorbell.
    live: AtomicBool,
    queue: Mutex<Option<InstantQueue>>,
}

/// The queues of a function that are answered at once, by queue identifier.
#[derive(Debug, Default)]
pub(crate) struct Instant {
    stride_shift: u32,
    places: Vec<Place>,
}

impl Instant {
    pub(crate) fn new(queues: u16, stride: u64) -> Self {
        Self {
            stride_shift: stride.trailing_zeros(),
            places: (0..=queues).map(|_| Place::default()).collect(),
        }
    }

    fn lock(place: &Place) -> MutexGuard<'_, Option<InstantQueue>> {
        place.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the queues.
    pub(crate) fn set(&self, mut queues: Vec<InstantQueue>) {
        for (qid, place) in (0_u16..).zip(&self.places) {
            let new = queues.iter().position(|queue| queue.qid == qid);
            let mut old = Self::lock(place);
            match new.map(|at| queues.swap_remove(at)) {
                // A queue that goes on keeps its place.
                Some(new) if old.as_ref().is_some_and(|old| old.id == new.id) => {}
                new => *old = new,
            }
            place.live.store(old.is_some(), Ordering::Release);
        }
    }

    pub(crate) fn clear(&self) {
        self.set(Vec::new());
    }

    /// Commands completed this way, by the queues that exist.
    pub(crate) fn completed(&self) -> u64 {
        let completed = |place| Self::lock(place).as_ref().map_or(0, |queue| queue.completed);
        self.places.iter().map(completed).sum()
    }

    /// Takes a doorbell write, if it is of such a queue.
    pub(crate) fn doorbell(&self, at: u64, value: u32) -> bool {
        let Some(at) = at.checked_sub(offset::DOORBELLS as u64) else {
            return false;
        };
        let index = at >> self.stride_shift;
        let place = usize::try_from(index >> 1).ok();
        let Some(place) = place.and_then(|qid| self.places.get(qid)) else {
            return false;
        };
        if index & 1 == 1 {
            return place.live.load(Ordering::Acquire);
        }
        match Self::lock(place).as_mut() {
            Some(queue) => {
                queue.answer(value);
                true
            }
            None => false,
        }
    }
}

impl InstantQueue {
    /// Completes every entry before `tail`. A tail out of range is not taken.
    fn answer(&mut self, tail: u32) {
        let (Some(sq), Some(cq)) = (self.sq.0.words(), self.cq.0.words()) else {
            return;
        };
        if tail >= self.sq_size {
            return;
        }
        while self.sq_head != tail {
            // Entries of 8 and 2 words; the command identifier is in bits 31:16 of the first.
            let entry = self.sq.1 + self.sq_head as usize * 8;
            let Some(first) = sq.get(entry) else { break };
            let cid = u64::from_le(first.load(Ordering::Relaxed)) >> 16 & 0xffff;
            self.sq_head += 1;
            if self.sq_head == self.sq_size {
                self.sq_head = 0;
            }
            let place = self.cq.1 + self.cq_tail as usize * 2;
            let (Some(low), Some(high)) = (cq.get(place), cq.get(place + 1)) else {
                break;
            };
            low.store(0, Ordering::Relaxed);
            let value =
                u64::from(self.sq_head) | u64::from(self.qid) << 16 | cid << 32 | u64::from(self.phase) << 48;
            high.store(value.to_le(), Ordering::Release);
            self.cq_tail += 1;
            if self.cq_tail == self.cq_size {
                self.cq_tail = 0;
                self.phase = !self.phase;
            }
            self.completed += 1;
        }
    }
}
