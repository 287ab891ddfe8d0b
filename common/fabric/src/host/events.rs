//! [`Events`]: keeps Asynchronous Event Requests outstanding (Base 2.0 §5.2) and bounds what a controller can make of them.

use std::time::Duration;

use homi_queue::Completion;
use homi_spec::Status;
use homi_spec::event::AsyncEvent;

use crate::time::Instant;

/// Requests kept outstanding at most: one would do; a few let events of different types come together.
pub const MAX_OUTSTANDING: u16 = 4;

/// Events taken at once before they are slowed down, and the pace after that. A controller that completes requests as fast as they are
/// sent would otherwise keep the host busy with nothing.
const BURST: u32 = 32;
const PACE: Duration = Duration::from_millis(100);

/// The event requests of one association.
#[derive(Debug)]
pub struct Events {
    target: u16,
    outstanding: u16,
    /// Events that may come at once, now.
    credit: u32,
    refilled: Instant,
}

/// What became of an event request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventOutcome {
    /// An event.
    Event(AsyncEvent),
    /// The controller takes fewer requests, or none; the number was adapted.
    Refused(Status),
}

impl Events {
    /// For a controller that holds `limit` requests (AERL + 1).
    #[must_use]
    pub fn new(limit: u16, now: Instant) -> Self {
        Self {
            target: limit.min(MAX_OUTSTANDING),
            outstanding: 0,
            credit: BURST,
            refilled: now,
        }
    }

    /// How many requests to send now, and when to ask again if it is fewer than there could be.
    pub fn wanted(&mut self, now: Instant) -> (u16, Option<Instant>) {
        let missing = self.target.saturating_sub(self.outstanding);
        let earned = now.saturating_since(self.refilled).as_nanos() / PACE.as_nanos();
        if earned > 0 {
            self.credit = self
                .credit
                .saturating_add(u32::try_from(earned).unwrap_or(u32::MAX))
                .min(BURST);
            self.refilled = now;
        }
        let wanted = missing.min(u16::try_from(self.credit).unwrap_or(u16::MAX));
        (wanted, (wanted < missing).then(|| self.refilled + PACE))
    }

    /// A request was sent.
    pub fn sent(&mut self) {
        self.outstanding += 1;
        self.credit = self.credit.saturating_sub(1);
    }

    /// A request was completed.
    pub fn completed(&mut self, completion: &Completion) -> EventOutcome {
        self.outstanding = self.outstanding.saturating_sub(1);
        if completion.is_success() {
            return EventOutcome::Event(AsyncEvent::from_dword(completion.dw0()));
        }
        // Limit exceeded: what is still outstanding is what the controller holds. Anything else: do without.
        self.target = if completion.status.is(Status::AER_LIMIT_EXCEEDED) {
            self.outstanding
        } else {
            0
        };
        EventOutcome::Refused(completion.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: AsyncEvent) -> Completion {
        Completion {
            status: Status::SUCCESS,
            result: event.to_dword().into(),
        }
    }

    #[test]
    fn keeps_as_many_outstanding_as_the_controller_holds() {
        let mut events = Events::new(2, Instant::ZERO);
        assert_eq!(events.wanted(Instant::ZERO), (2, None));
        events.sent();
        events.sent();
        assert_eq!(events.wanted(Instant::ZERO), (0, None));
        let outcome = events.completed(&event(AsyncEvent::NAMESPACE_ATTRIBUTE));
        assert_eq!(outcome, EventOutcome::Event(AsyncEvent::NAMESPACE_ATTRIBUTE));
        assert_eq!(events.wanted(Instant::ZERO).0, 1);
    }

    #[test]
    fn a_storm_of_events_is_slowed_down() {
        let mut events = Events::new(1, Instant::ZERO);
        let mut now = Instant::ZERO;
        let mut taken = 0_u32;
        // Ten seconds of a controller that answers every request at once.
        for _ in 0..10_000 {
            if events.wanted(now).0 > 0 {
                events.sent();
                events.completed(&event(AsyncEvent::DISCOVERY_LOG));
                taken += 1;
            }
            now += Duration::from_millis(1);
        }
        assert!((100..=140).contains(&taken), "{taken}");
    }

    #[test]
    fn a_refused_request_is_not_repeated() {
        let mut events = Events::new(3, Instant::ZERO);
        for _ in 0..3 {
            events.sent();
        }
        let refused = Completion::failed(Status::AER_LIMIT_EXCEEDED);
        assert_eq!(
            events.completed(&refused),
            EventOutcome::Refused(Status::AER_LIMIT_EXCEEDED)
        );
        assert_eq!(events.wanted(Instant::ZERO), (0, None));
        events.completed(&Completion::failed(Status::INVALID_OPCODE));
        events.completed(&event(AsyncEvent::SPARE));
        assert_eq!(events.wanted(Instant::ZERO), (0, None));
    }
}
