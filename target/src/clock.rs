//! The clock of a target: nanoseconds since it started, the same for all its threads.

use homi_fabric::time::Instant;

/// Reads the system's monotonic clock as the protocol's [`Instant`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(std::time::Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        Instant::from_nanoseconds(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
