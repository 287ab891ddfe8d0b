//! Doorbells in memory: the buffers of Doorbell Buffer Config. Base 2.0 §5.8 and Annex B.5.
//!
//! Only I/O queues use them. While the controller is awake on a queue it looks at the shadow value itself; before it sleeps it writes
//! the value that it saw as the event index, and looks once more. A driver that does not ring then is never heard.

use std::sync::atomic::{Ordering, fence};

use homi_queue::Iova;

use crate::controller::Controller;
use crate::misuse::MisuseKind;
use crate::shared::Shared;

/// The two pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShadowBuffers {
    pub(crate) doorbells: Iova,
    pub(crate) events: Iova,
}

/// The places of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shadow {
    pub(crate) doorbell: Iova,
    pub(crate) event: Iova,
    /// The controller looks at the shadow value; otherwise it waits for the register.
    pub(crate) awake: bool,
}

impl ShadowBuffers {
    pub(crate) fn queue(self, qid: u16, completion: bool, stride: u64) -> Shadow {
        let at = (2 * u64::from(qid) + u64::from(completion)) * stride;
        Shadow {
            doorbell: Iova(self.doorbells.0.saturating_add(at)),
            event: Iova(self.events.0.saturating_add(at)),
            // Nobody looks at the doorbells of a new queue before the first write to its register.
            awake: false,
        }
    }
}

impl Controller {
    fn read_shadow(&mut self, at: Iova) -> Option<u32> {
        let mut bytes = [0; 4];
        let read = self.bus.read(at, &mut bytes);
        fence(Ordering::Acquire);
        read.ok().map(|()| u32::from_le_bytes(bytes) & 0xffff)
    }

    /// Says up to where a driver need not ring, and looks at the value once more.
    fn sleep_on(&mut self, shadow: Shadow, seen: u32) -> Option<u32> {
        self.bus.write(shadow.event, &seen.to_le_bytes()).ok()?;
        fence(Ordering::SeqCst);
        self.read_shadow(shadow.doorbell)
    }

    fn shadow_lost(&mut self, shared: &mut Shared, queue: u16, completion: bool) {
        self.misuse(shared, MisuseKind::QueueUnreachable { queue, completion });
        self.fail();
    }

    /// Takes new tails from the shadows of queues that are awake.
    pub(crate) fn look_at_shadows(&mut self, shared: &mut Shared) -> bool {
        if self.shadows.is_none() {
            return false;
        }
        let awake: Vec<_> = self
            .sqs
            .iter()
            .filter_map(|(qid, sq)| Some((*qid, sq.shadow.filter(|shadow| shadow.awake)?, sq.head, sq.tail)))
            .collect();
        let mut busy = false;
        for (qid, shadow, head, tail) in awake {
            let Some(mut seen) = self.read_shadow(shadow.doorbell) else {
                self.shadow_lost(shared, qid, false);
                return true;
            };
            if seen == tail && head == tail {
                let Some(again) = self.sleep_on(shadow, seen) else {
                    self.shadow_lost(shared, qid, false);
                    return true;
                };
                if again == seen {
                    if let Some(shadow) = self.sqs.get_mut(&qid).and_then(|sq| sq.shadow.as_mut()) {
                        shadow.awake = false;
                    }
                    continue;
                }
                seen = again;
            }
            busy = true;
            if self.take_tail(qid, seen, false).is_err() {
                let kind = MisuseKind::ShadowValue {
                    queue: qid,
                    completion: false,
                    value: seen,
                };
                self.misuse(shared, kind);
                self.fail();
            }
        }
        busy
    }

    /// Takes a new head from the shadow of a completion queue that has no room, or sleeps on it.
    pub(crate) fn refresh_head(&mut self, shared: &mut Shared, cqid: u16) {
        let Some(cq) = self.cqs.get(&cqid) else { return };
        let full = crate::queues::distance(cq.size, cq.head, cq.tail) == cq.size - 1;
        let Some(shadow) = cq.shadow.filter(|_| full) else {
            return;
        };
        let before = cq.head;
        let seen = match self.read_shadow(shadow.doorbell) {
            // Full and unchanged: the next head has to be rung.
            Some(seen) if seen == before => self.sleep_on(shadow, seen),
            seen => seen,
        };
        match seen {
            None => self.shadow_lost(shared, cqid, true),
            Some(head) if self.take_head(cqid, head, false).is_err() => {
                let kind = MisuseKind::ShadowValue {
                    queue: cqid,
                    completion: true,
                    value: head,
                };
                self.misuse(shared, kind);
                self.fail();
            }
            Some(_) => {}
        }
    }
}
