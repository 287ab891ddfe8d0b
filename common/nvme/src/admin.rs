//! [`AdminQueue`]: the controller's first queue. Whoever holds the controller's lock submits and processes; nobody waits here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use homi_pci::{Access, DmaSpace, Mapping};
use homi_queue::{CommandId, Completion, CompletionRing, PageSize, Region, Slots, SubmissionRing};
use homi_spec::admin::Abort;
use homi_spec::event::AsyncEvent;
use homi_spec::registers::Aqa;
use homi_spec::{Sqe, Status};

use crate::bar::Bar;
use crate::error::NvmeError;

/// Events kept until somebody takes them.
const EVENTS: usize = 64;

/// Memory of an admin command, which the controller reaches.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) region: Region,
    mapping: Mapping,
    page: PageSize,
}

impl Memory {
    /// Zeroed whole pages for `len` bytes.
    pub(crate) fn allocate(space: &DmaSpace, page: PageSize, len: usize) -> Result<Self, NvmeError> {
        let bytes = usize::try_from(page.bytes()).unwrap_or(4096);
        let len = len.max(1).next_multiple_of(bytes);
        let align = usize::try_from(space.page()).unwrap_or(bytes).max(bytes);
        // The last page of the region holds the list, if one is needed.
        let lists = usize::try_from(page.lists_for(len as u64)).unwrap_or(0);
        let region = Region::allocate(len + lists * bytes, align)?;
        let mapping = space.map(&region, Access::ReadWrite)?;
        Ok(Self {
            region,
            mapping,
            page,
        })
    }

    /// Points a command at the first `len` bytes.
    pub(crate) fn point(&self, sqe: &mut Sqe, len: usize) -> Result<(), NvmeError> {
        let bytes = usize::try_from(self.page.bytes()).unwrap_or(4096);
        let whole = len.max(1).next_multiple_of(bytes);
        let range = self.mapping.range();
        let data = range.part(0, len as u64);
        let lists = self
            .region
            .segment(whole.min(self.region.len())..self.region.len())?;
        let start = range.start().checked_add(whole as u64);
        let (Some(data), Some(start)) = (data, start) else {
            return Err(NvmeError::TooLong {
                len: len as u64,
                max: range.len(),
            });
        };
        let rules = homi_queue::PrpRules {
            page: self.page,
            max_len: u64::MAX,
        };
        let mut lists = homi_queue::SegmentLists::new(&lists, start, bytes)
            .map_err(|error| NvmeError::Protocol(error.to_string()))?;
        let prp = rules
            .build([data], &mut lists)
            .map_err(|error| NvmeError::Protocol(error.to_string()))?;
        prp.apply(sqe);
        Ok(())
    }

    fn leak(self) {
        std::mem::forget(self);
    }
}

/// What an admin command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody waits for it.
    Call,
    /// An Asynchronous Event Request.
    Event,
    /// An Abort of a command of an I/O queue.
    Abort,
}

#[derive(Debug)]
struct Pending {
    purpose: Purpose,
    memory: Option<Memory>,
    since: Duration,
    outcome: Option<Completion>,
}

/// The admin queue's rings and commands.
#[derive(Debug)]
pub(crate) struct AdminQueue {
    memory: Region,
    mapping: Mapping,
    entries: u16,
    /// Entries of the region before the completion queue, in bytes.
    completions_at: usize,
    submission: SubmissionRing,
    completion: CompletionRing,
    slots: Slots<Pending>,
    stride: u32,
    events: VecDeque<AsyncEvent>,
    pub(crate) events_lost: u64,
    pub(crate) event_requests: u16,
    pub(crate) aborts: u16,
    /// The controller refuses event requests.
    pub(crate) no_events: bool,
}

impl AdminQueue {
    pub(crate) fn new(space: &DmaSpace, page: PageSize, depth: u16, stride: u32) -> Result<Self, NvmeError> {
        let entries = depth.clamp(4, 4095) + 1;
        let bytes = usize::try_from(page.bytes()).unwrap_or(4096);
        let align = usize::try_from(space.page()).unwrap_or(bytes).max(bytes);
        let completions_at = (usize::from(entries) * 64).next_multiple_of(bytes);
        let len = completions_at + (usize::from(entries) * 16).next_multiple_of(bytes);
        let memory = Region::allocate(len, align)?;
        let mapping = space.map(&memory, Access::ReadWrite)?;
        let (submission, completion) = rings(entries)?;
        Ok(Self {
            memory,
            mapping,
            entries,
            completions_at,
            submission,
            completion,
            slots: Slots::new(entries - 1),
            stride,
            events: VecDeque::new(),
            events_lost: 0,
            event_requests: 0,
            aborts: 0,
            no_events: false,
        })
    }

    /// Empty rings, for a controller that is disabled. Commands have to be gone.
    pub(crate) fn restart(&mut self) -> Result<(), NvmeError> {
        self.memory.fill(0, self.memory.len(), 0)?;
        (self.submission, self.completion) = rings(self.entries)?;
        self.event_requests = 0;
        self.aborts = 0;
        self.no_events = false;
        Ok(())
    }

    /// What the registers are told.
    pub(crate) fn attributes(&self) -> (Aqa, u64, u64) {
        let start = self.mapping.range().start().0;
        (
            Aqa::new(self.entries - 1, self.entries - 1),
            start,
            start + self.completions_at as u64,
        )
    }

    /// Starts a command, or gives its memory back if there is no room.
    pub(crate) fn submit(
        &mut self,
        bar: &Bar,
        now: Duration,
        purpose: Purpose,
        mut sqe: Sqe,
        memory: Option<Memory>,
    ) -> Result<CommandId, Option<Memory>> {
        // One slot stays free, so that an Abort or a deletion goes through while event requests and callers take the others.
        let Some(slot) = self.slots.reserve() else {
            return Err(memory);
        };
        let Ok(at) = self.submission.push() else {
            self.slots.release(slot);
            return Err(memory);
        };
        let id = self.slots.occupy(
            slot,
            Pending {
                purpose,
                memory,
                since: now,
                outcome: None,
            },
        );
        sqe.cid = id.0.into();
        let words: [u64; 8] = zerocopy::transmute!(sqe);
        let entries = self.memory.words().unwrap_or(&[]);
        for (place, word) in entries.iter().skip(usize::from(at) * 8).zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        match purpose {
            Purpose::Event => self.event_requests += 1,
            Purpose::Abort => self.aborts += 1,
            Purpose::Call => {}
        }
        if let Some(tail) = self.submission.doorbell() {
            bar.ring_submission(0, self.stride, tail);
        }
        Ok(id)
    }

    /// Processes completions.
    pub(crate) fn process(&mut self, bar: &Bar) -> Result<(), NvmeError> {
        let result = self.collect();
        if let Some(head) = self.completion.doorbell() {
            bar.ring_completion(0, self.stride, head);
        }
        result
    }

    fn collect(&mut self) -> Result<(), NvmeError> {
        // A controller that never stops completing does not keep its caller here.
        for _ in 0..self.entries {
            let at = self.completions_at / 8 + usize::from(self.completion.head()) * 2;
            let entries = self.memory.words().unwrap_or(&[]);
            let (Some(low), Some(high)) = (entries.get(at), entries.get(at + 1)) else {
                return Ok(());
            };
            let rest = u64::from_le(high.load(Ordering::Acquire));
            let (head, qid, id, status) = fields(rest);
            if !self.completion.is_new(status & 1 != 0) {
                return Ok(());
            }
            let result = u64::from_le(low.load(Ordering::Relaxed));
            self.completion.advance();
            if qid != 0 {
                return Err(NvmeError::Protocol(format!(
                    "a completion on the admin queue says that it is of queue {qid}"
                )));
            }
            self.submission
                .advance_head(head)
                .map_err(|error| NvmeError::Protocol(error.to_string()))?;
            let completion = Completion {
                status: Status::from_wire(status),
                result,
            };
            self.completed(CommandId(id), completion)?;
        }
        Ok(())
    }

    fn completed(&mut self, id: CommandId, completion: Completion) -> Result<(), NvmeError> {
        let stale =
            |error: homi_queue::StaleCommand| NvmeError::Protocol(format!("on the admin queue, {error}"));
        let pending = self.slots.get_mut(id).map_err(stale)?;
        match pending.purpose {
            Purpose::Call if pending.outcome.is_some() => {
                return Err(stale(homi_queue::StaleCommand { id }));
            }
            Purpose::Call => {
                pending.outcome = Some(completion);
                return Ok(());
            }
            Purpose::Event => {
                self.event_requests -= 1;
                if completion.is_success() {
                    if self.events.len() == EVENTS {
                        self.events.pop_front();
                        self.events_lost += 1;
                    }
                    self.events.push_back(AsyncEvent::from_dword(completion.dw0()));
                } else {
                    tracing::debug!(status = %completion.status, "the controller refuses event requests");
                    self.no_events = true;
                }
            }
            Purpose::Abort => {
                self.aborts -= 1;
                let aborted = completion.is_success() && completion.dw0() & Abort::NOT_ABORTED == 0;
                tracing::info!(aborted, status = %completion.status, "an abort completed");
            }
        }
        self.slots.take(id).map_err(stale)?;
        Ok(())
    }

    /// A call's outcome, once there is one.
    pub(crate) fn finished(&mut self, id: CommandId) -> Option<(Completion, Option<Memory>)> {
        let outcome = self.slots.get(id).ok()?.outcome?;
        let pending = self.slots.take(id).ok()?;
        Some((outcome, pending.memory))
    }

    /// How long the oldest command that must end by itself has taken; not event requests, nor what is over.
    pub(crate) fn oldest(&self, now: Duration) -> Option<Duration> {
        self.slots
            .iter()
            .filter(|(_, pending)| pending.purpose != Purpose::Event && pending.outcome.is_none())
            .map(|(_, pending)| now.saturating_sub(pending.since))
            .max()
    }

    /// Forgets all commands. Without `safe`, their memory is kept for ever.
    pub(crate) fn drain(&mut self, safe: bool) {
        for (_, pending) in self.slots.drain() {
            if let Some(memory) = pending.memory
                && !safe
            {
                memory.leak();
            }
        }
        self.event_requests = 0;
        self.aborts = 0;
    }

    pub(crate) fn take_event(&mut self) -> Option<AsyncEvent> {
        self.events.pop_front()
    }

    /// Free slots.
    pub(crate) fn room(&self) -> usize {
        usize::from(self.slots.depth()) - self.slots.in_flight()
    }

    /// Keeps the rings mapped for ever: the controller may still use them.
    pub(crate) fn leak(&self) {
        std::mem::forget(self.mapping.clone());
    }
}

fn rings(entries: u16) -> Result<(SubmissionRing, CompletionRing), NvmeError> {
    let size = |error: homi_queue::RingSizeError| NvmeError::Protocol(error.to_string());
    Ok((
        SubmissionRing::new(entries.into()).map_err(size)?,
        CompletionRing::new(entries.into()).map_err(size)?,
    ))
}

/// The upper half of a completion queue entry: submission queue head, submission queue, command, status with phase tag.
#[inline]
pub(crate) const fn fields(rest: u64) -> (u16, u16, u16, u16) {
    let [a, b, c, d, e, f, g, h] = rest.to_le_bytes();
    (
        u16::from_le_bytes([a, b]),
        u16::from_le_bytes([c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h]),
    )
}
