//! Asynchronous events: requests that wait, events that wait, and which types are masked until their log is read. Base 2.0 §5.2.

use std::collections::{BTreeSet, VecDeque};

use homi_spec::Status;
use homi_spec::event::{AsyncEvent, EventType};
use homi_spec::log::LogId;

use crate::controller::Controller;
use crate::queues::Post;

/// Events that wait for a request, at most.
const WAITING: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Command identifiers of requests.
    pub(crate) requests: VecDeque<u16>,
    waiting: VecDeque<AsyncEvent>,
    /// Types that were told and whose log was not read since.
    masked: BTreeSet<u8>,
}

impl Events {
    pub(crate) fn add(&mut self, event: AsyncEvent) {
        if self.waiting.len() < WAITING && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// A log was read without being retained: its events may be told again.
    pub(crate) fn clear(&mut self, log: LogId) {
        for event_type in [
            EventType::ERROR,
            EventType::SMART,
            EventType::NOTICE,
            EventType::IO_COMMAND_SET,
        ] {
            let belongs = match event_type {
                EventType::ERROR => log == LogId::ERROR,
                EventType::SMART => log == LogId::SMART,
                EventType::NOTICE => matches!(
                    log,
                    LogId::CHANGED_NAMESPACES
                        | LogId::FIRMWARE_SLOT
                        | LogId::TELEMETRY_CONTROLLER
                        | LogId::ANA
                ),
                _ => matches!(log, LogId::RESERVATION | LogId::SANITIZE),
            };
            if belongs {
                self.masked.remove(&event_type.0);
            }
        }
        self.waiting.retain(|event| event.log != log);
    }

    /// The request and event that go together next.
    fn next(&mut self) -> Option<(u16, AsyncEvent)> {
        let place = self
            .waiting
            .iter()
            .position(|event| !self.masked.contains(&event.event_type.0))?;
        let cid = self.requests.pop_front()?;
        let event = self.waiting.remove(place)?;
        self.masked.insert(event.event_type.0);
        Some((cid, event))
    }
}

impl Controller {
    /// Completes requests with events that wait.
    pub(crate) fn tell_events(&mut self) -> bool {
        let mut busy = false;
        if self.is_shut() {
            return false;
        }
        while let Some((cid, event)) = self.events.next() {
            let post = Post::new(0, cid, Status::SUCCESS, u64::from(event.to_dword()));
            if let Some(cq) = self.cqs.get_mut(&0) {
                cq.posts.push_back(post);
            }
            busy = true;
        }
        busy
    }
}
