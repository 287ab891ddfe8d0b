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
    /// What all completions have in common: the queue identifier in bits 31:16, and the phase tag in bit 48.
    pub(crate) ours: u64,
    pub(crate) completed: u64,
}

/// A place for a queue.
#[derive(Debug, Default)]
struct Place {
    /// There is a queue: enough to know for the completion queue's doorbell.
    live: AtomicBool,
    queue: Mutex<Option<InstantQueue>>,
}

impl Place {
    /// Answers what a tail offers, if there is a queue. Not inlined, so that a head doorbell does not set up what this needs.
    #[inline(never)]
    fn submit(&self, tail: u32) -> bool {
        match self.lock().as_mut() {
            Some(queue) => {
                queue.answer(tail);
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<InstantQueue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    /// Replaces the queues.
    pub(crate) fn set(&self, mut queues: Vec<InstantQueue>) {
        for (qid, place) in (0_u16..).zip(&self.places) {
            let new = queues.iter().position(|queue| queue.qid == qid);
            let mut old = place.lock();
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
        let completed = |place: &Place| place.lock().as_ref().map_or(0, |queue| queue.completed);
        self.places.iter().map(completed).sum()
    }

    /// Takes a doorbell write, if it is of such a queue.
    #[inline]
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
        place.submit(value)
    }
}

impl InstantQueue {
    /// Completes every entry before `tail`. A tail out of range is not taken.
    #[inline]
    fn answer(&mut self, tail: u32) {
        if tail >= self.sq_size {
            return;
        }
        let (sq_at, cq_at) = (self.sq.1, self.cq.1);
        let sq = self.sq.0.words().and_then(|words| words.get(sq_at..));
        let cq = self.cq.0.words().and_then(|words| words.get(cq_at..));
        let (Some(sq), Some(cq)) = (sq, cq) else { return };
        // Entries of 8 and of 2 words.
        let (sq, _) = sq.as_chunks::<8>();
        let (cq, _) = cq.as_chunks::<2>();
        let (mut head, mut at) = (self.sq_head, self.cq_tail);
        while head != tail {
            let (Some([first, ..]), Some([low, high])) = (sq.get(head as usize), cq.get(at as usize)) else {
                break;
            };
            // The command identifier is in bits 31:16 of the first word, and goes to bits 47:32 of the last.
            let cid = u64::from_le(first.load(Ordering::Relaxed)) & 0xffff_0000;
            head += 1;
            if head == self.sq_size {
                head = 0;
            }
            low.store(0, Ordering::Relaxed);
            let value = u64::from(head) | self.ours | cid << 16;
            high.store(value.to_le(), Ordering::Release);
            at += 1;
            if at == self.cq_size {
                at = 0;
                // The phase tag.
                self.ours ^= 1 << 48;
            }
            self.completed += 1;
        }
        self.sq_head = head;
        self.cq_tail = at;
    }
}
