//! [`KeepAlive`]: when to send the next Keep Alive, and when its silence means that the controller is lost (Base 2.0 §3.9).

use std::time::Duration;

use crate::time::Instant;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAliveStep {
    /// Nothing before this time.
    WaitUntil(Instant),
    /// Send a Keep Alive command and call [`KeepAlive::sent`].
    Send,
    /// No answer for the whole timeout: the association is lost.
    Lost,
}

/// The keep-alive timer of one association. The host sends at half the timeout, so that one delayed command does not
/// cost the association, and holds the controller to the whole of it.
#[derive(Debug)]
pub struct KeepAlive {
    timeout: Duration,
    next: Instant,
    unanswered: Option<Instant>,
}

impl KeepAlive {
    /// A timer for this timeout (zero: never send), restarted now.
    #[must_use]
    pub fn new(timeout: Duration, now: Instant) -> Self {
        Self {
            timeout,
            next: now + timeout / 2,
            unanswered: None,
        }
    }

    /// Says what to do at this time.
    #[must_use]
    pub fn poll(&self, now: Instant) -> KeepAliveStep {
        if self.timeout.is_zero() {
            return KeepAliveStep::WaitUntil(Instant::FAR_FUTURE);
        }
        match self.unanswered {
            Some(sent) if now >= sent + self.timeout => KeepAliveStep::Lost,
            Some(sent) => KeepAliveStep::WaitUntil(sent + self.timeout),
            None if now >= self.next => KeepAliveStep::Send,
            None => KeepAliveStep::WaitUntil(self.next),
        }
    }

    /// A Keep Alive was sent.
    pub fn sent(&mut self, now: Instant) {
        self.unanswered = Some(now);
    }

    /// It was answered. The next one is due half a timeout after this one was *sent*, when the controller restarted its timer.
    pub fn answered(&mut self) {
        if let Some(sent) = self.unanswered.take() {
            self.next = sent + self.timeout / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sends_at_half_the_timeout_and_loses_a_silent_controller() {
        let start = Instant::ZERO;
        let mut timer = KeepAlive::new(10 * SECOND, start);
        assert_eq!(timer.poll(start), KeepAliveStep::WaitUntil(start + 5 * SECOND));
        let now = start + 5 * SECOND;
        assert_eq!(timer.poll(now), KeepAliveStep::Send);
        timer.sent(now);
        assert_eq!(timer.poll(now), KeepAliveStep::WaitUntil(start + 15 * SECOND));
        timer.answered();
        assert_eq!(timer.poll(now), KeepAliveStep::WaitUntil(start + 10 * SECOND));
        let now = start + 11 * SECOND;
        timer.sent(now);
        assert_eq!(
            timer.poll(start + 20 * SECOND),
            KeepAliveStep::WaitUntil(start + 21 * SECOND)
        );
        assert_eq!(timer.poll(start + 21 * SECOND), KeepAliveStep::Lost);
    }

    #[test]
    fn a_late_answer_does_not_delay_the_next_one() {
        let mut timer = KeepAlive::new(10 * SECOND, Instant::ZERO);
        timer.sent(Instant::ZERO + 5 * SECOND);
        timer.answered();
        // The answer came at 14 s; the controller's timer has run since about 5 s.
        assert_eq!(timer.poll(Instant::ZERO + 14 * SECOND), KeepAliveStep::Send);
        // A second answer to the same command changes nothing.
        timer.answered();
        assert_eq!(timer.poll(Instant::ZERO + 14 * SECOND), KeepAliveStep::Send);
    }

    #[test]
    fn zero_is_off() {
        let timer = KeepAlive::new(Duration::ZERO, Instant::ZERO);
        assert_eq!(
            timer.poll(Instant::ZERO + 1000 * SECOND),
            KeepAliveStep::WaitUntil(Instant::FAR_FUTURE)
        );
    }
}
