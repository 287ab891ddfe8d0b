//! The clocks that the state machines' instants come from. Both count from the same origin.

use homi_fabric::time::Instant;
use nix::time::{ClockId, clock_gettime};

/// The time, exactly.
pub(crate) fn now() -> Instant {
    read(ClockId::CLOCK_MONOTONIC)
}

/// The time as of the last tick of the system's timer, a few milliseconds behind at most: a fraction of the cost, and enough
/// for timeouts of commands.
pub(crate) fn coarse() -> Instant {
    read(ClockId::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: ClockId) -> Instant {
    // Both clocks exist on every Linux; one that failed would stand still, which stops timeouts and nothing else.
    clock_gettime(clock).map_or(Instant::ZERO, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
        Instant::from_nanoseconds(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    })
}
