//! The keep-alive timer. Base 2.0 §3.9.
//!
//! It is traffic based: every admin command restarts it, and when it is about to expire, commands that the I/O queues
//! executed since then count too. The queues only count; nobody touches a timer on the data path. The
//! price is that a host that dies right after some I/O is noticed up to one timeout later.

use crate::time::Instant;
use std::time::Duration;

/// Granularity of the timer in milliseconds: KAS is this over 100.
pub(super) const GRANULARITY_MS: u32 = 100;
/// How long a discovery controller without keep-alive may be idle (Base 2.0 §3.1.2.3: at least two minutes).
const DISCOVERY_IDLE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(super) struct KeepAlive {
    timeout_ms: u32,
    discovery: bool,
    heard: Instant,
    traffic: u64,
}

/// A timeout as the controller keeps it: rounded up to the granularity. `None` if that does not fit the field.
fn rounded(timeout_ms: u32) -> Option<u32> {
    timeout_ms.checked_next_multiple_of(GRANULARITY_MS)
}

impl KeepAlive {
    /// A timer that starts now; 0 is off. A timeout too long to round is kept as the longest possible.
    pub(super) fn new(timeout_ms: u32, discovery: bool, now: Instant) -> Self {
        let timeout_ms = rounded(timeout_ms).unwrap_or(u32::MAX);
        Self {
            timeout_ms,
            discovery,
            heard: now,
            traffic: 0,
        }
    }

    /// The timeout in force in milliseconds; 0 if it is off.
    pub(super) fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// Sets the timeout and restarts. `None` if it is too long to be rounded.
    pub(super) fn set(&mut self, timeout_ms: u32, now: Instant) -> Option<()> {
        self.timeout_ms = rounded(timeout_ms)?;
        self.heard(now);
        Some(())
    }

    /// The host sent something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// When the timer has to be looked at, if it runs.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timeout = match self.timeout_ms {
            0 if self.discovery => DISCOVERY_IDLE,
            0 => return None,
            timeout_ms => Duration::from_millis(timeout_ms.into()),
        };
        Some(self.heard + timeout)
    }

    /// Whether the host was silent for too long. `traffic` counts the commands that its I/O queues ever executed.
    pub(super) fn expired(&mut self, traffic: u64, now: Instant) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        if traffic != self.traffic {
            self.traffic = traffic;
            self.heard = now;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn silence_ends_it_and_commands_prolong_it() {
        let mut timer = KeepAlive::new(1001, false, at(0));
        assert_eq!(timer.timeout_ms(), 1100);
        assert!(!timer.expired(0, at(1099)));
        timer.heard(at(1000));
        assert!(!timer.expired(0, at(2099)));
        // Traffic counts once.
        assert!(!timer.expired(5, at(2100)));
        assert_eq!(timer.deadline(), Some(at(3200)));
        assert!(!timer.expired(5, at(3199)));
        assert!(timer.expired(5, at(3200)));
    }

    #[test]
    fn zero_is_off_but_for_idle_discovery() {
        let mut timer = KeepAlive::new(0, false, at(0));
        assert_eq!(timer.deadline(), None);
        assert!(!timer.expired(0, Instant::FAR_FUTURE));
        assert!(KeepAlive::new(0, true, at(0)).expired(0, at(120_000)));
        assert!(!KeepAlive::new(0, true, at(0)).expired(0, at(119_999)));
        assert_eq!(timer.set(u32::MAX, at(0)), None);
        assert_eq!(KeepAlive::new(u32::MAX, false, at(0)).timeout_ms(), u32::MAX);
    }
}
