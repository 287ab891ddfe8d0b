//! Ending a reactor's sleep from another thread.
//!
//! One atomic word says whether the reactor is awake, asleep (or about to be), or notified. Only a notification that
//! finds it asleep writes to the eventfd. All changes are read-modify-write operations on that one word, so they have
//! one order: either the notification comes first, then going to sleep fails and sees it, or going to sleep comes
//! first, then the notification sees it and writes. Nobody ever reads the eventfd: both backends watch it for
//! *further* writes, and its counter cannot reach its limit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

struct Shared {
    state: AtomicU32,
    event: EventFd,
}

/// Wakes one reactor; cheap to clone, and usable from any thread for as long as it is kept.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            state: AtomicU32::new(AWAKE),
            event,
        })))
    }

    /// Makes the reactor report [`Event::Woken`](crate::Event::Woken) in its current or next turn, and ends its sleep.
    ///
    /// Whatever was written before this call is visible to the reactor's thread when it sees the event. Several calls
    /// can be reported as one event. The system is called only if the reactor sleeps.
    pub fn wake(&self) {
        if self.0.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
            && let Err(error) = self.0.event.write(1)
        {
            // The only possible cause is a full counter, and then the descriptor is readable already.
            tracing::debug!(%error, "writing to the reactor's eventfd");
        }
    }

    /// Whether there was a notification since the last question. The reactor stays awake.
    pub(crate) fn take_notified(&self) -> bool {
        // The load keeps polling from claiming the cache line for writing.
        self.0.state.load(Ordering::Relaxed) == NOTIFIED && self.end_sleep()
    }

    /// Announces that the reactor goes to sleep; `false` if it must not, because of a notification.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.0
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Announces that the reactor is awake; returns whether there was a notification.
    pub(crate) fn end_sleep(&self) -> bool {
        self.0.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the eventfd was written to since the last question.
    fn written(waker: &Waker) -> bool {
        waker.0.event.read().is_ok()
    }

    #[test]
    fn a_notification_before_sleep_keeps_the_reactor_awake() {
        let waker = Waker::new().unwrap();
        assert!(!waker.take_notified());
        waker.wake();
        assert!(!waker.begin_sleep());
        assert!(!written(&waker), "nobody slept");
        assert!(waker.take_notified());
        assert!(!waker.take_notified());
    }

    #[test]
    fn only_the_first_notification_of_a_sleep_writes() {
        let waker = Waker::new().unwrap();
        assert!(waker.begin_sleep());
        waker.wake();
        assert!(written(&waker));
        waker.clone().wake();
        assert!(!written(&waker));
        assert!(waker.end_sleep());
        assert!(waker.begin_sleep());
        assert!(!waker.end_sleep());
    }
}
