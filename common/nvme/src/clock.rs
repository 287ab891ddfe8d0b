//! [`Clock`]: time and sleep, as arguments, so that whole lives of a controller run in virtual time.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Tells the time and waits. The driver reads no other clock, and sleeps nowhere else.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since some moment in the past that stays the same. It never goes back.
    fn now(&self) -> Duration;

    /// Waits until one of the descriptors is readable, or for `at_most`. It may return earlier; whoever calls it looks again.
    fn pause(&self, at_most: Duration, wake: &[BorrowedFd<'_>]);
}

/// The machine's monotonic clock, and `poll`.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&self, at_most: Duration, wake: &[BorrowedFd<'_>]) {
        let mut fds: Vec<PollFd<'_>> = wake
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        // A signal or any other error ends the pause early, which callers expect.
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(at_most)), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_pci::Vector;
    use std::os::fd::AsFd;

    #[test]
    fn a_pause_ends_with_an_interrupt_or_its_time() {
        let clock = SystemClock::new();
        let vector = Vector::new().unwrap();
        let start = clock.now();
        clock.pause(Duration::from_millis(2), &[vector.as_fd()]);
        let waited = clock.now() - start;
        assert!(waited >= Duration::from_millis(2), "{waited:?}");
        vector.raise().unwrap();
        let start = clock.now();
        clock.pause(Duration::from_secs(60), &[vector.as_fd()]);
        assert!(clock.now() - start < Duration::from_secs(30));
    }
}
