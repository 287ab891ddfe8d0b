//! [`Association`]: the admin connection of one controller, on the keeper's thread.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homi_fabric::host::{
    Answer, ControllerInfo, EventOutcome, Events, KeepAlive, KeepAliveStep, Shutdown, Step,
};
use homi_fabric::time::Instant;
use homi_queue::{Command, Completed, Completion, Data, LostReason, Queue};
use homi_spec::admin::{self, Abort};
use homi_spec::command::{AdminOpcode, NSID_BROADCAST};
use homi_spec::event::AsyncEvent;
use homi_spec::log::{ChangedNamespaces, GetLogPage, LogId};
use homi_spec::{Status, U32};
use zerocopy::FromBytes;

use super::Message;
use crate::controller::{AdminReply, ControllerEvent};
use crate::fabric::FabricQueue;
use crate::link::LinkState;
use crate::sequence::{bytes_of, step_memory};

/// Admin commands that may wait for a free slot. Users wait for each of theirs, so only a swarm of threads gets here.
const MAX_BACKLOG: usize = 4096;

/// Bytes of the changed namespace list.
const CHANGED_LIST: usize = 4096;

/// Entry of the changed namespace list that says that more changed than it holds.
const CHANGED_OVERFLOW: u32 = u32::MAX;

/// What handles and queues see of an association.
#[derive(Debug, Default)]
pub(crate) struct AssociationShared {
    state: Mutex<SharedState>,
}

#[derive(Debug, Default)]
struct SharedState {
    lost: Option<LostReason>,
    subscribers: Vec<Sender<ControllerEvent>>,
    queues: Vec<Arc<LinkState>>,
}

impl AssociationShared {
    fn state(&self) -> std::sync::MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the association ended, if it did.
    pub(crate) fn lost(&self) -> Option<LostReason> {
        self.state().lost.clone()
    }

    /// Adds a subscriber. One that comes too late is told so at once.
    pub(crate) fn subscribe(&self, subscriber: Sender<ControllerEvent>) {
        let mut state = self.state();
        match state.lost.clone() {
            // A receiver that is gone already has no use for it.
            Some(reason) => drop(subscriber.send(ControllerEvent::Lost(reason))),
            None => state.subscribers.push(subscriber),
        }
    }

    /// Adds a queue, which must be told when the association ends; refused if it already has.
    pub(crate) fn add_queue(&self, queue: Arc<LinkState>) -> Result<(), LostReason> {
        let mut state = self.state();
        if let Some(reason) = state.lost.clone() {
            return Err(reason);
        }
        state.queues.push(queue);
        Ok(())
    }

    /// Forgets a queue.
    pub(crate) fn remove_queue(&self, queue: &Arc<LinkState>) {
        self.state().queues.retain(|other| !Arc::ptr_eq(other, queue));
    }

    fn publish(&self, event: &ControllerEvent) {
        self.state()
            .subscribers
            .retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }

    /// Marks the association as ended and tells everybody, once.
    fn lose(&self, reason: &LostReason) {
        let (queues, subscribers) = {
            let mut state = self.state();
            if state.lost.is_some() {
                return;
            }
            state.lost = Some(reason.clone());
            (
                std::mem::take(&mut state.queues),
                std::mem::take(&mut state.subscribers),
            )
        };
        for queue in queues {
            queue.lose(reason.clone());
        }
        for subscriber in subscribers {
            // A receiver that is gone has no use for it.
            drop(subscriber.send(ControllerEvent::Lost(reason.clone())));
        }
    }
}

/// What an admin command in flight is for.
enum Purpose {
    User(Sender<Result<AdminReply, LostReason>>),
    KeepAlive,
    Event,
    ChangedNamespaces,
    Abort { qid: u16, cid: u16 },
    Shutdown,
}

/// An admin command that waits for a slot.
struct Waiting {
    command: Command,
    data: Data,
    purpose: Purpose,
}

/// A disconnect under way.
struct Ending {
    shutdown: Shutdown,
    /// When to look again, if nothing is in flight for it.
    again: Option<Instant>,
    until: Instant,
    confirmed: bool,
    reply: Sender<bool>,
}

/// The admin connection of a controller that was brought up.
pub(crate) struct Association {
    id: u64,
    name: String,
    shared: Arc<AssociationShared>,
    queue: FabricQueue,
    info: ControllerInfo,
    keep_alive: KeepAlive,
    events: Events,
    events_again: Option<Instant>,
    /// By slot.
    purposes: Vec<Option<Purpose>>,
    backlog: VecDeque<Waiting>,
    aborts: VecDeque<(u16, u16)>,
    aborts_in_flight: u16,
    ending: Option<Ending>,
    completed: Vec<Completed>,
}

impl Association {
    pub(crate) fn new(
        id: u64,
        name: String,
        queue: FabricQueue,
        info: ControllerInfo,
        shared: Arc<AssociationShared>,
        now: Instant,
    ) -> Self {
        let timeout = Duration::from_millis(info.keep_alive_ms.into());
        // A controller that reports nothing need not be asked.
        let requests = if info.optional_events == 0 {
            0
        } else {
            info.event_requests
        };
        let mut purposes = Vec::new();
        purposes.resize_with(usize::from(queue.depth()), || None);
        Self {
            id,
            name,
            shared,
            queue,
            keep_alive: KeepAlive::new(timeout, now),
            events: Events::new(requests, now),
            events_again: None,
            purposes,
            backlog: VecDeque::new(),
            aborts: VecDeque::new(),
            aborts_in_flight: 0,
            ending: None,
            completed: Vec::new(),
            info,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn queue(&self) -> &FabricQueue {
        &self.queue
    }

    /// Takes a message for this association.
    pub(crate) fn take(&mut self, message: Message) {
        match message {
            Message::Adopt(_) => {}
            Message::Admin {
                command, data, reply, ..
            } => {
                if self.backlog.len() < MAX_BACKLOG {
                    self.backlog.push_back(Waiting {
                        command,
                        data,
                        purpose: Purpose::User(reply),
                    });
                } else {
                    let completion = Completion::failed(Status::INTERNAL_ERROR);
                    // A caller that is gone has no use for the answer.
                    drop(reply.send(Ok(AdminReply { completion, data })));
                }
            }
            Message::Abort { qid, cid, .. } => self.aborts.push_back((qid, cid)),
            Message::Disconnect { limit, reply, .. } => {
                let until = crate::clock::now() + limit;
                self.ending = Some(Ending {
                    shutdown: Shutdown::new(self.info.configuration, until),
                    again: Some(Instant::ZERO),
                    until,
                    confirmed: false,
                    reply,
                });
            }
        }
    }

    /// Does what is to be done now. Returns when there is something to do next without a descriptor becoming readable, or `None` when the
    /// association is over.
    pub(crate) fn turn(&mut self, now: Instant) -> Option<Instant> {
        match self.work(now) {
            Ok(next) => Some(next),
            Err(reason) => {
                self.end(reason);
                None
            }
        }
    }

    fn work(&mut self, now: Instant) -> Result<Instant, LostReason> {
        self.receive(now)?;
        self.end_gently(now)?;
        self.serve_keep_alive(now)?;
        self.serve_aborts();
        self.serve_events(now);
        self.serve_backlog();
        self.queue.commit().map_err(|lost| lost.into_parts().0)?;
        Ok(self.next_deadline(now))
    }

    fn receive(&mut self, now: Instant) -> Result<(), LostReason> {
        let polled = self.queue.poll(&mut self.completed);
        let mut completed = std::mem::take(&mut self.completed);
        for completed in completed.drain(..) {
            self.complete(completed, now)?;
        }
        self.completed = completed;
        match polled {
            Ok(_) => Ok(()),
            Err(lost) => Err(lost.into_parts().0),
        }
    }

    fn complete(&mut self, completed: Completed, now: Instant) -> Result<(), LostReason> {
        let Completed { id, completion, data } = completed;
        let slot = id.slot_index(self.queue.depth());
        let Some(purpose) = self.purposes.get_mut(slot).and_then(Option::take) else {
            return Ok(());
        };
        match purpose {
            // A caller that is gone has no use for the answer.
            Purpose::User(reply) => drop(reply.send(Ok(AdminReply { completion, data }))),
            Purpose::KeepAlive => {
                // Whatever the answer, it is a sign of life; a controller that is done with us closes the connection.
                if !completion.is_success() {
                    tracing::debug!(controller = %self.name, status = %completion.status, "keep alive failed");
                }
                self.keep_alive.answered();
            }
            Purpose::Event => self.event(&completion),
            Purpose::ChangedNamespaces => self.changed_namespaces(&completion, data),
            Purpose::Abort { qid, cid } => {
                self.aborts_in_flight = self.aborts_in_flight.saturating_sub(1);
                let aborted = completion.is_success() && completion.dw0() & Abort::NOT_ABORTED == 0;
                tracing::debug!(controller = %self.name, qid, cid, aborted, status = %completion.status, "abort answered");
            }
            Purpose::Shutdown => self.continue_ending(Some(completion), now)?,
        }
        Ok(())
    }

    /// Submits a command if a slot is free; otherwise it is handed back.
    fn submit(&mut self, waiting: Waiting) -> Result<(), Waiting> {
        let Ok(slot) = self.queue.reserve() else {
            return Err(waiting);
        };
        let Waiting {
            command,
            data,
            purpose,
        } = waiting;
        let id = if command.0.admin_opcode() == AdminOpcode::ASYNC_EVENT_REQUEST {
            self.queue.submit_untimed(slot, command, data)
        } else {
            self.queue.submit(slot, command, data)
        };
        if let Some(entry) = self.purposes.get_mut(id.slot_index(self.queue.depth())) {
            *entry = Some(purpose);
        }
        Ok(())
    }

    fn serve_keep_alive(&mut self, now: Instant) -> Result<(), LostReason> {
        match self.keep_alive.poll(now) {
            KeepAliveStep::WaitUntil(_) => Ok(()),
            KeepAliveStep::Lost => {
                let timeout = Duration::from_millis(self.info.keep_alive_ms.into());
                Err(LostReason::Association(format!(
                    "no answer to keep alive for {timeout:?}"
                )))
            }
            KeepAliveStep::Send => {
                let command = Command(admin::keep_alive(0));
                let waiting = Waiting {
                    command,
                    data: Data::None,
                    purpose: Purpose::KeepAlive,
                };
                // Without a free slot the answers in flight are signs of life, and the next turn tries again.
                if self.submit(waiting).is_ok() {
                    self.keep_alive.sent(now);
                }
                Ok(())
            }
        }
    }

    fn serve_aborts(&mut self) {
        while self.aborts_in_flight < self.info.abort_limit {
            let Some((qid, cid)) = self.aborts.pop_front() else {
                return;
            };
            let command = Command(Abort { sqid: qid, cid }.to_sqe(0));
            let waiting = Waiting {
                command,
                data: Data::None,
                purpose: Purpose::Abort { qid, cid },
            };
            if self.submit(waiting).is_err() {
                self.aborts.push_front((qid, cid));
                return;
            }
            self.aborts_in_flight += 1;
        }
    }

    fn serve_events(&mut self, now: Instant) {
        if self.ending.is_some() {
            self.events_again = None;
            return;
        }
        let (wanted, again) = self.events.wanted(now);
        self.events_again = again;
        for _ in 0..wanted {
            let command = Command(admin::async_event_request(0));
            if self
                .submit(Waiting {
                    command,
                    data: Data::None,
                    purpose: Purpose::Event,
                })
                .is_err()
            {
                return;
            }
            self.events.sent();
        }
    }

    fn serve_backlog(&mut self) {
        while let Some(waiting) = self.backlog.pop_front() {
            if let Err(waiting) = self.submit(waiting) {
                self.backlog.push_front(waiting);
                return;
            }
        }
    }

    fn event(&mut self, completion: &Completion) {
        match self.events.completed(completion) {
            EventOutcome::Refused(status) => {
                tracing::debug!(controller = %self.name, %status, "asynchronous event request refused");
            }
            // Reading the list says which changed, and lets the controller report the next change.
            EventOutcome::Event(AsyncEvent::NAMESPACE_ATTRIBUTE) => {
                let mut page =
                    GetLogPage::new(LogId::CHANGED_NAMESPACES, CHANGED_LIST as u64).unwrap_or_default();
                page.nsid = NSID_BROADCAST;
                self.backlog.push_back(Waiting {
                    command: Command(page.to_sqe(0)),
                    data: step_memory(homi_fabric::host::StepData::In(CHANGED_LIST)),
                    purpose: Purpose::ChangedNamespaces,
                });
            }
            EventOutcome::Event(AsyncEvent::DISCOVERY_LOG) => {
                self.shared.publish(&ControllerEvent::DiscoveryChanged);
            }
            EventOutcome::Event(event) => self.shared.publish(&ControllerEvent::Other {
                kind: event.event_type.raw(),
                information: event.info,
                log_page: event.log.raw(),
            }),
        }
    }

    fn changed_namespaces(&mut self, completion: &Completion, data: Data) {
        let bytes = bytes_of(data);
        let list = if completion.is_success() {
            ChangedNamespaces::read_from_bytes(&bytes).ok()
        } else {
            None
        };
        let nsids = match list {
            Some(list) if list.nsids.first().map(|nsid: &U32| nsid.get()) != Some(CHANGED_OVERFLOW) => {
                list.iter().collect()
            }
            // Which changed is not known: any may have.
            _ => Vec::new(),
        };
        self.shared.publish(&ControllerEvent::NamespacesChanged(nsids));
    }

    /// Goes on with a disconnect when its time has come.
    fn end_gently(&mut self, now: Instant) -> Result<(), LostReason> {
        let Some(ending) = &mut self.ending else {
            return Ok(());
        };
        if now >= ending.until && ending.again.is_none() {
            // The controller does not even answer.
            return Err(LostReason::Local);
        }
        if ending.again.is_some_and(|again| now >= again) {
            ending.again = None;
            self.continue_ending(None, now)?;
        }
        Ok(())
    }

    fn continue_ending(&mut self, completion: Option<Completion>, now: Instant) -> Result<(), LostReason> {
        let Some(ending) = &mut self.ending else {
            return Ok(());
        };
        let answer = completion.map(|completion| Answer {
            completion,
            data: &[],
        });
        match ending.shutdown.next(answer.as_ref(), now) {
            Step::Submit { command, data } => {
                self.backlog.push_front(Waiting {
                    command,
                    data: step_memory(data),
                    purpose: Purpose::Shutdown,
                });
                Ok(())
            }
            Step::WaitUntil(time) => {
                ending.again = Some(time);
                Ok(())
            }
            Step::Ready(confirmed) => {
                ending.confirmed = confirmed;
                Err(LostReason::Local)
            }
            Step::Failed(error) => {
                tracing::debug!(controller = %self.name, %error, "shutdown failed");
                Err(LostReason::Local)
            }
        }
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let mut next = match self.keep_alive.poll(now) {
            KeepAliveStep::WaitUntil(time) => time,
            // No slot was free: try again soon.
            KeepAliveStep::Send | KeepAliveStep::Lost => now + Duration::from_millis(10),
        };
        if let Some(limit) = self.queue.wait_limit() {
            next = next.min(now + limit);
        }
        if let Some(again) = self.events_again {
            next = next.min(again);
        }
        if let Some(ending) = &self.ending {
            next = next.min(ending.again.unwrap_or(ending.until));
        }
        next
    }

    /// Everything that waits for this association is told that it is over.
    fn end(&mut self, reason: LostReason) {
        if reason != LostReason::Local {
            tracing::warn!(controller = %self.name, %reason, "association lost");
        }
        self.shared.lose(&reason);
        let waiting = self.backlog.drain(..).map(|waiting| waiting.purpose);
        for purpose in self.purposes.drain(..).flatten().chain(waiting) {
            if let Purpose::User(reply) = purpose {
                // A caller that is gone has no use for the answer.
                drop(reply.send(Err(reason.clone())));
            }
        }
        // A connection that broke meanwhile is as disconnected as it can be.
        if let Some(Ending { confirmed, reply, .. }) = self.ending.take()
            && reply.send(confirmed || reason != LostReason::Local).is_err()
        {
            tracing::trace!(controller = %self.name, "nobody waits for the disconnect any more");
        }
    }
}
