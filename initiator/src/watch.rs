//! [`Watches`]: noticing commands that take too long, without timing each of them.
//!
//! A few times per timeout a queue looks at what is in flight and counts how many looks each command has survived. One that survived too
//! many is aborted, if somebody can do that; one whose Abort takes as long ends its queue.

use std::time::Duration;

use homi_fabric::time::Instant;
use homi_queue::{CommandId, LostReason};

use crate::clock;
use crate::link::QueueLink;

/// Looks that a command survives before it has taken too long, and as many again for its Abort.
const LOOKS: u8 = 4;

/// What is known about the command in a slot.
#[derive(Debug, Clone, Copy)]
struct Watch {
    id: CommandId,
    state: WatchState,
    /// Looks survived.
    age: u8,
    /// The queue's own note.
    mark: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchState {
    /// No command in this slot, or one that may take forever.
    Untimed,
    /// In time.
    Timed,
    /// It took too long and is being aborted.
    Aborting,
}

const NO_WATCH: Watch = Watch {
    id: CommandId(0),
    state: WatchState::Untimed,
    age: 0,
    mark: false,
};

/// The commands in flight of one queue, and how long they have been.
#[derive(Debug)]
pub(crate) struct Watches {
    /// By slot.
    watches: Vec<Watch>,
    depth: u16,
    timeout: Duration,
    looked: Instant,
}

impl Watches {
    pub(crate) fn new(depth: u16, timeout: Duration) -> Self {
        Self {
            watches: vec![NO_WATCH; usize::from(depth)],
            depth,
            timeout,
            looked: clock::coarse(),
        }
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.looked = clock::coarse();
    }

    /// A command was submitted; `mark` comes back when it ends.
    #[inline]
    pub(crate) fn begin(&mut self, id: CommandId, mark: bool) {
        if let Some(watch) = self.watches.get_mut(id.slot_index(self.depth)) {
            *watch = Watch {
                id,
                state: WatchState::Timed,
                age: 0,
                mark,
            };
        }
    }

    /// A command that was submitted may take forever.
    pub(crate) fn leave_alone(&mut self, id: CommandId) {
        if let Some(watch) = self.watches.get_mut(id.slot_index(self.depth)) {
            watch.state = WatchState::Untimed;
        }
    }

    /// A command is over.
    #[inline]
    pub(crate) fn end(&mut self, id: CommandId) -> bool {
        match self.watches.get_mut(id.slot_index(self.depth)) {
            Some(watch) => std::mem::replace(watch, NO_WATCH).mark,
            None => false,
        }
    }

    /// All commands are over.
    pub(crate) fn clear(&mut self) {
        self.watches.fill(NO_WATCH);
    }

    /// How long a caller may sleep before it must poll again: `None` while nothing is in flight or commands may take forever.
    pub(crate) fn wait_limit(&self, in_flight: usize) -> Option<Duration> {
        (in_flight > 0 && !self.timeout.is_zero()).then(|| self.between_looks())
    }

    fn between_looks(&self) -> Duration {
        (self.timeout / u32::from(LOOKS)).max(Duration::from_millis(1))
    }

    /// Nothing is in flight at this time.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.looked = now;
    }

    /// Looks at what is in flight, if it is time to, and has what took too long aborted. Returns how many that were.
    pub(crate) fn look(&mut self, now: Instant, link: Option<&QueueLink>) -> Result<u64, LostReason> {
        if self.timeout.is_zero() || now.saturating_since(self.looked) < self.between_looks() {
            return Ok(0);
        }
        self.looked = now;
        let mut give_up = false;
        let mut aborts = 0;
        for watch in &mut self.watches {
            if watch.state == WatchState::Untimed {
                continue;
            }
            watch.age = watch.age.saturating_add(1);
            // One more than there are quarters, since the first look may follow the submission at once.
            if watch.age > LOOKS {
                match (watch.state, link) {
                    (WatchState::Timed, Some(link)) => {
                        link.abort(watch.id);
                        aborts += 1;
                        watch.state = WatchState::Aborting;
                        watch.age = 0;
                    }
                    _ => give_up = true,
                }
            }
        }
        if give_up {
            Err(LostReason::Timeout(self.timeout))
        } else {
            Ok(aborts)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_ends_a_queue_that_nobody_aborts_on() {
        let mut watches = Watches::new(4, Duration::from_millis(40));
        let start = clock::coarse();
        watches.begin(CommandId(1), true);
        watches.begin(CommandId(2), false);
        watches.leave_alone(CommandId(2));
        assert_eq!(watches.wait_limit(2), Some(Duration::from_millis(10)));
        assert_eq!(watches.wait_limit(0), None);
        let at = |looks: u32| start + Duration::from_millis(20) * looks;
        for looks in 1..=4 {
            assert_eq!(watches.look(at(looks), None), Ok(0), "look {looks}");
            assert_eq!(watches.look(at(looks), None), Ok(0), "not again so soon");
        }
        assert_eq!(
            watches.look(at(5), None),
            Err(LostReason::Timeout(Duration::from_millis(40)))
        );
        assert!(watches.end(CommandId(1)), "the mark comes back");
        assert_eq!(watches.look(at(6), None), Ok(0), "one that may take forever");
    }
}
