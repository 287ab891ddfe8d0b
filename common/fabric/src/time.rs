//! [`Instant`]: a point on a clock that somebody else reads.

use std::fmt;
use std::ops::{Add, AddAssign};
use std::time::Duration;

/// Nanoseconds since an arbitrary origin that all instants of one process share. The runtime makes them from a
/// monotonic clock, a test from a counter; the state machines only compare them and add to them.
///
/// Sums saturate: a deadline that does not fit lies at [`Instant::FAR_FUTURE`] and never passes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// Later than every instant that a clock shows.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The instant `nanoseconds` after the origin.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanoseconds))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({:?})", Duration::from_nanos(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_saturate_and_differences_do_not_go_below_zero() {
        let now = Instant::from_nanoseconds(5);
        assert_eq!(now + Duration::from_nanos(7), Instant(12));
        assert_eq!(now + Duration::MAX, Instant::FAR_FUTURE);
        assert_eq!(
            (now + Duration::from_secs(1)).saturating_since(now),
            Duration::from_secs(1)
        );
        assert_eq!(now.saturating_since(now + Duration::from_secs(1)), Duration::ZERO);
    }
}
