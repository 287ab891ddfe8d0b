//! Asynchronous events: requests that wait, events that wait, and which of them are masked. Base 2.0 §5.2.
//!
//! An event that was reported is masked until its log page is read without Retain Asynchronous Event. What happens
//! meanwhile is not lost: the log page shows it, and where the reading did not cover it, the event is
//! raised again.

use homi_spec::event::AsyncEvent;
use homi_spec::feature::async_event;
use std::collections::VecDeque;

/// Requests that a controller holds at once: AERL + 1.
pub(super) const REQUEST_LIMIT: usize = 4;

/// The events that this controller raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A namespace appeared, went or changed.
    NamespaceAttribute,
    /// The discovery log changed.
    DiscoveryLog,
    /// The controller failed.
    InternalError,
}

const EVENTS: [Event; 3] = [
    Event::InternalError,
    Event::NamespaceAttribute,
    Event::DiscoveryLog,
];

impl Event {
    fn wire(self) -> AsyncEvent {
        match self {
            Self::NamespaceAttribute => AsyncEvent::NAMESPACE_ATTRIBUTE,
            Self::DiscoveryLog => AsyncEvent::DISCOVERY_LOG,
            Self::InternalError => AsyncEvent::PERSISTENT_INTERNAL_ERROR,
        }
    }

    /// Whether feature 0Bh lets the event through.
    fn enabled(self, configuration: u32) -> bool {
        match self {
            Self::NamespaceAttribute => configuration & async_event::NAMESPACE_ATTRIBUTE != 0,
            Self::DiscoveryLog => configuration & async_event::DISCOVERY_LOG != 0,
            Self::InternalError => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    pending: bool,
    masked: bool,
    /// It happened again while it was masked.
    again: bool,
}

/// A request that waits for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// How the runtime knows the command.
    pub(super) key: u16,
    /// How the host knows it.
    pub(super) cid: u16,
}

#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<Request>,
    states: [State; EVENTS.len()],
}

impl Events {
    fn state(&mut self, event: Event) -> Option<&mut State> {
        let index = EVENTS.iter().position(|known| *known == event)?;
        self.states.get_mut(index)
    }

    /// Takes a request in; `false` if the limit is reached.
    pub(super) fn request(&mut self, request: Request) -> bool {
        let room = self.requests.len() < REQUEST_LIMIT;
        if room {
            self.requests.push_back(request);
        }
        room
    }

    /// Something happened. Events that the host did not ask for are dropped.
    pub(super) fn raise(&mut self, event: Event, configuration: u32) {
        if let Some(state) = self.state(event).filter(|_| event.enabled(configuration)) {
            if state.masked {
                state.again = true;
            } else {
                state.pending = true;
            }
        }
    }

    /// The event's log page was read without Retain Asynchronous Event. `complete` says that the reading showed
    /// everything up to now.
    pub(super) fn clear(&mut self, event: Event, complete: bool) {
        if let Some(state) = self.state(event) {
            state.pending = (state.pending || state.again) && !complete;
            state.masked = false;
            state.again = false;
        }
    }

    /// The next request to answer, with dword 0 of its completion.
    pub(super) fn next(&mut self) -> Option<(Request, u32)> {
        if self.requests.is_empty() {
            return None;
        }
        let (event, state) = EVENTS
            .iter()
            .zip(&mut self.states)
            .find(|(_, state)| state.pending)?;
        state.pending = false;
        state.masked = true;
        self.requests
            .pop_front()
            .map(|request| (request, event.wire().to_dword()))
    }

    /// Takes the request with this command identifier back.
    pub(super) fn abort(&mut self, cid: u16) -> Option<Request> {
        let index = self.requests.iter().position(|request| request.cid == cid)?;
        self.requests.remove(index)
    }

    /// Forgets every event and hands the requests back: the controller is reset.
    pub(super) fn reset(&mut self) -> VecDeque<Request> {
        self.states = Default::default();
        std::mem::take(&mut self.requests)
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.requests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = async_event::NAMESPACE_ATTRIBUTE | async_event::DISCOVERY_LOG;

    fn request(cid: u16) -> Request {
        Request { key: cid + 100, cid }
    }

    #[test]
    fn an_event_is_reported_once_until_its_log_is_read() {
        let mut events = Events::default();
        events.raise(Event::NamespaceAttribute, ALL);
        assert_eq!(events.next(), None);
        assert!(events.request(request(1)));
        assert!(events.request(request(2)));
        assert_eq!(events.next(), Some((request(1), 0x0004_0002)));
        events.raise(Event::NamespaceAttribute, ALL);
        assert_eq!(events.next(), None);
        // Another kind is not masked.
        events.raise(Event::DiscoveryLog, ALL);
        assert_eq!(events.next(), Some((request(2), 0x0070_f002)));
        assert!(events.request(request(3)));
        events.clear(Event::NamespaceAttribute, true);
        assert_eq!(events.next(), None);
        events.raise(Event::NamespaceAttribute, ALL);
        assert_eq!(events.next(), Some((request(3), 0x0004_0002)));
    }

    #[test]
    fn what_a_reading_missed_is_reported_again() {
        let mut events = Events::default();
        for cid in 0..4 {
            assert!(events.request(request(cid)));
        }
        assert!(!events.request(request(4)));
        events.raise(Event::DiscoveryLog, ALL);
        assert!(events.next().is_some());
        events.raise(Event::DiscoveryLog, ALL);
        events.clear(Event::DiscoveryLog, false);
        assert!(events.next().is_some());
        events.clear(Event::DiscoveryLog, false);
        assert_eq!(events.next(), None);
    }

    #[test]
    fn configuration_abort_and_reset() {
        let mut events = Events::default();
        assert!(events.request(request(1)));
        assert!(events.request(request(2)));
        events.raise(Event::NamespaceAttribute, 0);
        events.raise(Event::DiscoveryLog, async_event::NAMESPACE_ATTRIBUTE);
        assert_eq!(events.next(), None);
        assert_eq!(events.abort(9), None);
        assert_eq!(events.abort(1), Some(request(1)));
        events.raise(Event::InternalError, 0);
        assert_eq!(events.next(), Some((request(2), 0x0001_0300)));
        assert!(events.request(request(3)));
        assert_eq!(events.reset(), [request(3)]);
        assert_eq!(events.waiting(), 0);
    }
}
