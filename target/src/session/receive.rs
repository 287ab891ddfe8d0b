//! What comes from the host, and what goes there: the transport's side of a session.

use homi_fabric::rdma::{self, ReceiveBuffer, Returned};
use homi_fabric::tcp::{CommandKey, ControllerEvent};
use homi_fabric::time::Instant;
use homi_queue::{GatherList, Segment};
use homi_spec::command::Sqe;
use homi_spec::status::Status;

use super::{Closing, Link, Session};
use crate::engine::Core;

impl Session {
    pub(crate) fn has_output(&mut self) -> bool {
        self.link.output_len() > 0
    }

    /// Bytes to be sent.
    pub(crate) fn backlog(&mut self) -> usize {
        self.link.output_len()
    }

    pub(crate) fn take_output(&mut self, spare: GatherList) -> GatherList {
        self.link.take_output(spare)
    }

    /// Where the next bytes may be received directly, when that is worth it.
    pub(crate) fn landing(&self, minimum: usize) -> Option<Segment> {
        if self.closing.is_some() {
            None
        } else {
            self.link.landing(minimum)
        }
    }

    /// Whether a command waits for a buffer for the data in its capsule: nothing more can be received before.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Whether what comes next is most likely data of transfers of at least `size` bytes: as many bytes are asked for.
    pub(crate) fn expects(&self, size: usize) -> bool {
        self.lent > 0 && self.lent >= size * usize::from(self.link.in_flight())
    }

    /// Takes bytes that were received in order.
    pub(crate) fn receive(&mut self, core: &mut Core, mut input: &[u8], now: Instant) {
        if let Some(stalled) = &mut self.stalled {
            return stalled.bytes.extend_from_slice(input);
        }
        if let Some(attached) = &mut self.attached {
            attached.namespaces.refresh();
        }
        while self.closing.is_none() {
            let Link::Tcp(link) = &mut self.link else { return };
            match link.advance(&mut input) {
                Ok(Some(event)) => {
                    self.handle(core, event, now);
                    if let Some(stalled) = &mut self.stalled {
                        stalled.now = now;
                        return stalled.bytes.extend_from_slice(input);
                    }
                }
                Ok(None) => return,
                Err(error) => self.close(Closing {
                    reason: error.to_string(),
                    ordinary: false,
                }),
            }
        }
    }

    /// Takes the count of bytes that were received into [`Session::landing`].
    pub(crate) fn landed(&mut self, core: &mut Core, count: usize, now: Instant) {
        self.landed += count;
        let Link::Tcp(link) = &mut self.link else { return };
        match link.landed(count) {
            Ok(Some(event)) => self.handle(core, event, now),
            Ok(None) => {}
            Err(error) => self.close(Closing {
                reason: error.to_string(),
                ordinary: false,
            }),
        }
    }

    fn handle(&mut self, core: &mut Core, event: ControllerEvent, now: Instant) {
        match event {
            ControllerEvent::Ready => {}
            ControllerEvent::Command {
                key,
                sqe,
                fault: None,
                ..
            } => self.command(core, key, &sqe, now),
            ControllerEvent::Command {
                key,
                sqe,
                fault: Some(status),
                ..
            } => self.faulty(core, key, &sqe, status, now),
            ControllerEvent::DataReceived { key } => self.data_received(core, key, now),
            ControllerEvent::DataFailed { key, status } => self.data_failed(core, key, status),
            ControllerEvent::PeerTerminated(why) => {
                self.close(Closing {
                    reason: format!("the host ended the connection: {why}"),
                    ordinary: false,
                });
            }
        }
    }

    /// A command that its transport found fault with.
    #[cold]
    fn faulty(&mut self, core: &mut Core, key: CommandKey, sqe: &Sqe, status: Status, now: Instant) {
        if status.is(Status::CID_CONFLICT) && self.is_held(sqe.cid.get()) {
            self.command(core, key, sqe, now);
        } else {
            self.refuse(core, key, sqe, status);
        }
    }

    /// Takes what the connection has to tell after it was told what its queue pair did.
    pub(crate) fn poll_rdma(&mut self, core: &mut Core, now: Instant) {
        if let Some(attached) = &mut self.attached {
            attached.namespaces.refresh();
        }
        while self.closing.is_none() {
            let Link::Rdma(link) = &mut self.link else { return };
            let Some(event) = link.poll_event() else { return };
            match event {
                rdma::ControllerEvent::Command {
                    key,
                    sqe,
                    fault: None,
                    ..
                } => self.command(core, key, &sqe, now),
                rdma::ControllerEvent::Command {
                    key,
                    sqe,
                    fault: Some(status),
                    ..
                } => self.faulty(core, key, &sqe, status, now),
                rdma::ControllerEvent::DataReceived { key } => self.data_received(core, key, now),
                rdma::ControllerEvent::DataFailed { key, status } => self.data_failed(core, key, status),
            }
        }
    }

    /// Takes back what the connection is done with: memory goes to the arena, receives to `receive`.
    pub(crate) fn collect(&mut self, core: &mut Core, mut receive: impl FnMut(ReceiveBuffer)) {
        loop {
            let Link::Rdma(link) = &mut self.link else { return };
            match link.poll_returned() {
                Some(Returned::Receive(buffer)) => receive(buffer),
                Some(Returned::Data(data)) => self.give_back(core, &data),
                None => return,
            }
        }
    }
}
