//! Submission and completion queues from the controller's side: doorbells, fetching with arbitration, and posting.

use std::collections::VecDeque;

use homi_queue::{Iova, IovaRange};
use homi_spec::command::{CQE_SIZE, SQE_SIZE};
use homi_spec::event::AsyncEvent;
use homi_spec::registers::offset;
use homi_spec::{Cqe, Sqe, Status, U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use crate::controller::{Controller, Running, later};
use crate::dma::CmbUse;
use crate::faults::Fault;
use crate::iommu::Hold;
use crate::misuse::MisuseKind;
use crate::shadow::Shadow;
use crate::shared::Shared;

/// Completions that wait for room in a queue before no more commands are fetched for it.
const HELD_BACK: usize = 64;

/// A submission queue.
#[derive(Debug)]
pub(crate) struct Sq {
    pub(crate) base: Iova,
    pub(crate) size: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) cqid: u16,
    /// 0 urgent to 3 low.
    pub(crate) priority: u8,
    pub(crate) shadow: Option<Shadow>,
    /// Tells it from other queues in the same place.
    pub(crate) id: u64,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) hold: Option<Hold>,
}

/// A completion queue.
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) base: Iova,
    pub(crate) size: u32,
    /// How far the host is.
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) phase: bool,
    pub(crate) vector: Option<u16>,
    pub(crate) posts: VecDeque<Post>,
    pub(crate) shadow: Option<Shadow>,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) hold: Option<Hold>,
}

/// What is wrong about a completion.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Twist {
    pub(crate) phase: bool,
    pub(crate) cid: Option<u16>,
    pub(crate) sq_head: Option<u16>,
    pub(crate) sq_id: Option<u16>,
    pub(crate) raw: Option<[u32; 4]>,
    /// It belongs to no command, or is a command's second.
    pub(crate) extra: bool,
}

/// A completion that is to be written.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) value: u64,
    pub(crate) twist: Twist,
    pub(crate) silent: bool,
}

impl Post {
    pub(crate) fn new(sqid: u16, cid: u16, status: Status, value: u64) -> Self {
        Self {
            sqid,
            cid,
            status,
            value,
            twist: Twist::default(),
            silent: false,
        }
    }

    /// Whether it is what completes that command.
    fn answers(&self, sqid: u16, cid: u16) -> bool {
        self.sqid == sqid && self.cid == cid && !self.twist.extra
    }
}

/// Steps from one index of a ring to another.
pub(crate) const fn distance(size: u32, from: u32, to: u32) -> u32 {
    if to >= from { to - from } else { size - from + to }
}

const fn join(low: u32, high: u32) -> u64 {
    low as u64 | ((high as u64) << 32)
}

/// Where the bytes of a queue are.
pub(crate) fn queue_range(base: u64, size: u32, entry: usize) -> Result<IovaRange, Status> {
    IovaRange::new(Iova(base), u64::from(size) * entry as u64).map_err(|_| Status::INVALID_FIELD)
}

impl Controller {
    /// The admin queues, as AQA, ASQ and ACQ say.
    pub(crate) fn create_admin_queues(&mut self) -> Result<(), Status> {
        let (aqa, asq, acq) = (self.kept.aqa, self.kept.asq, self.kept.acq);
        let (sq_size, cq_size) = (u32::from(aqa.asqs_z()) + 1, u32::from(aqa.acqs_z()) + 1);
        let sq = queue_range(asq, sq_size, SQE_SIZE)?;
        let cq = queue_range(acq, cq_size, CQE_SIZE)?;
        self.bus.check_cmb(sq, CmbUse::SubmissionQueue)?;
        self.bus.check_cmb(cq, CmbUse::CompletionQueue)?;
        self.cqs.insert(
            0,
            Cq {
                base: cq.start(),
                size: cq_size,
                head: 0,
                tail: 0,
                phase: true,
                vector: Some(0),
                posts: VecDeque::new(),
                shadow: None,
                hold: self.bus.hold(cq),
            },
        );
        self.sqs.insert(
            0,
            Sq {
                base: sq.start(),
                size: sq_size,
                head: 0,
                tail: 0,
                cqid: 0,
                priority: 0,
                shadow: None,
                id: 0,
                hold: self.bus.hold(sq),
            },
        );
        Ok(())
    }

    /// A doorbell was written.
    pub(crate) fn doorbell(&mut self, shared: &mut Shared, at: u64, value: u32) {
        self.stats.doorbells += 1;
        let stride = Self::stride(&shared.config);
        let index = at.saturating_sub(offset::DOORBELLS as u64) / stride;
        let aligned = at.is_multiple_of(stride);
        let completion = index % 2 == 1;
        let qid = u16::try_from(index / 2).unwrap_or(u16::MAX);
        let exists = if completion {
            self.cqs.contains_key(&qid)
        } else {
            self.sqs.contains_key(&qid)
        };
        if !aligned || !exists || !self.works() {
            // After a failure that nobody asked for, a driver that does not know yet is not to blame.
            if !self.kept.csts.fatal() {
                self.misuse(shared, MisuseKind::NoSuchQueue { at, value });
            }
            if self.works() {
                self.event(AsyncEvent::INVALID_DOORBELL);
            }
            return;
        }
        if !completion && self.is_shut() {
            self.misuse(shared, MisuseKind::SubmittedAfterShutdown);
            return;
        }
        let outcome = if completion {
            self.take_head(qid, value & 0xffff, true)
        } else {
            self.take_tail(qid, value & 0xffff, true)
        };
        if let Err(before) = outcome {
            let kind = MisuseKind::DoorbellValue {
                queue: qid,
                completion,
                before,
                value,
            };
            self.misuse(shared, kind);
            self.event(AsyncEvent::INVALID_DOORBELL_VALUE);
        }
    }

    /// Takes a new tail; the error is the tail before. `strict` refuses one that is the same.
    pub(crate) fn take_tail(&mut self, qid: u16, tail: u32, strict: bool) -> Result<(), u32> {
        let Some(sq) = self.sqs.get_mut(&qid) else {
            return Err(0);
        };
        if let Some(shadow) = &mut sq.shadow
            && strict
        {
            // The shadow tells the value; this only wakes the controller, and may be older than what the shadow says by now.
            shadow.awake = true;
            return if tail < sq.size { Ok(()) } else { Err(sq.tail) };
        }
        let added = distance(sq.size, sq.tail, tail);
        let free = sq.size - 1 - distance(sq.size, sq.head, sq.tail);
        if tail >= sq.size || added > free || (strict && added == 0) {
            return Err(sq.tail);
        }
        sq.tail = tail;
        Ok(())
    }

    /// Takes a new head; the error is the head before. `strict` refuses one that is the same.
    pub(crate) fn take_head(&mut self, qid: u16, head: u32, strict: bool) -> Result<(), u32> {
        let Some(cq) = self.cqs.get_mut(&qid) else {
            return Err(0);
        };
        if let Some(shadow) = &mut cq.shadow
            && strict
        {
            shadow.awake = true;
            return if head < cq.size { Ok(()) } else { Err(cq.head) };
        }
        let consumed = distance(cq.size, cq.head, head);
        let posted = distance(cq.size, cq.head, cq.tail);
        if head >= cq.size || consumed > posted || (strict && consumed == 0) {
            return Err(cq.head);
        }
        cq.head = head;
        Ok(())
    }

    /// Fetches commands: the admin queue first, then as arbitration says.
    pub(crate) fn fetch(&mut self, shared: &mut Shared) -> bool {
        if self.is_shut() {
            return false;
        }
        let mut left = shared.config.fetches;
        let mut fetched = false;
        let weighted = self.kept.cc.ams() == 1;
        let burst = shared.config.burst;
        // The admin queue, then urgent queues, before all others.
        fetched |= self.fetch_from(shared, 0, burst, &mut left);
        if weighted {
            for qid in self.waiting(Some(0)) {
                fetched |= self.fetch_from(shared, qid, burst, &mut left);
            }
            let weights = self.features.weights();
            for (priority, weight) in (1..=3).zip(weights) {
                let mut credit = weight.min(left);
                while credit > 0 {
                    let before = credit;
                    for qid in self.waiting(Some(priority)) {
                        let want = burst.min(credit);
                        let mut room = want.min(left);
                        let given = room;
                        fetched |= self.fetch_from(shared, qid, want, &mut room);
                        let used = given - room;
                        credit -= used;
                        left -= used;
                    }
                    if credit == before {
                        break;
                    }
                }
            }
        } else {
            for qid in self.waiting(None) {
                fetched |= self.fetch_from(shared, qid, burst, &mut left);
            }
        }
        fetched
    }

    /// I/O queues with commands to fetch, beginning after the one that was served last.
    fn waiting(&self, priority: Option<u8>) -> Vec<u16> {
        let waits = |(qid, sq): (&u16, &Sq)| {
            (*qid != 0 && sq.head != sq.tail && priority.is_none_or(|wanted| sq.priority == wanted))
                .then_some(*qid)
        };
        let after = self.sqs.range(self.turn.saturating_add(1)..).filter_map(waits);
        let before = self.sqs.range(..=self.turn).filter_map(waits);
        after.chain(before).collect()
    }

    fn fetch_from(&mut self, shared: &mut Shared, qid: u16, burst: u32, left: &mut u32) -> bool {
        let mut fetched = false;
        for _ in 0..burst {
            let full = self.running.len() >= usize::try_from(shared.config.in_flight).unwrap_or(usize::MAX);
            // Admin commands always find room: aborts have to.
            if *left == 0 || (full && qid != 0) || !self.works() {
                break;
            }
            let Some(sq) = self.sqs.get_mut(&qid).filter(|sq| sq.head != sq.tail) else {
                break;
            };
            // A driver that takes no completions gets no further.
            if self
                .cqs
                .get(&sq.cqid)
                .is_none_or(|cq| cq.posts.len() >= HELD_BACK)
            {
                break;
            }
            let at = Iova(sq.base.0 + u64::from(sq.head) * SQE_SIZE as u64);
            let cqid = sq.cqid;
            let mut sqe = Sqe::new_zeroed();
            if self.bus.read(at, sqe.as_mut_bytes()).is_err() {
                let kind = MisuseKind::QueueUnreachable {
                    queue: qid,
                    completion: false,
                };
                self.misuse(shared, kind);
                self.fail();
                break;
            }
            sq.head = (sq.head + 1) % sq.size;
            if qid != 0 {
                self.turn = qid;
            }
            *left -= 1;
            fetched = true;
            self.stats.fetched += 1;
            self.accept(shared, qid, cqid, sqe);
        }
        fetched
    }

    /// A command was fetched.
    fn accept(&mut self, shared: &mut Shared, sqid: u16, cqid: u16, sqe: Sqe) {
        let cid = sqe.cid.get();
        let in_use = self
            .running
            .iter()
            .any(|running| running.sqid == sqid && running.sqe.cid.get() == cid)
            || (sqid == 0 && self.events.requests.contains(&cid))
            || self.late.iter().any(|(_, _, post)| post.answers(sqid, cid))
            || self
                .cqs
                .get(&cqid)
                .is_some_and(|cq| cq.posts.iter().any(|post| post.answers(sqid, cid)));
        if in_use {
            self.misuse(shared, MisuseKind::CidInUse { queue: sqid, cid });
            self.running.push(Running {
                sqid,
                cqid,
                sqe,
                due: shared.now,
                faults: vec![Fault::Refuse(Status::CID_CONFLICT.with_dnr())],
                holds: Vec::new(),
            });
            return;
        }
        let faults = shared.plan.command(self.function, sqid, &sqe);
        self.apply(shared, &faults);
        let mut due = shared.now;
        for fault in &faults {
            match fault {
                Fault::Ignore => due = u64::MAX,
                Fault::Slow(steps) => due = later(shared.now, *steps),
                _ => {}
            }
        }
        // What is carried out later needs its memory until then.
        let holds = if due > shared.now && sqid != 0 {
            self.hold_data(shared, &sqe)
        } else {
            Vec::new()
        };
        self.running.push(Running {
            sqid,
            cqid,
            sqe,
            due,
            faults,
            holds,
        });
    }

    /// Writes completions into their queues, as far as there is room, and raises interrupts.
    pub(crate) fn post(&mut self, shared: &mut Shared) -> bool {
        let mut busy = false;
        let cqids: Vec<_> = self
            .cqs
            .iter()
            .filter(|(_, cq)| !cq.posts.is_empty())
            .map(|(cqid, _)| *cqid)
            .collect();
        for cqid in cqids {
            let mut interrupt = None;
            loop {
                self.refresh_head(shared, cqid);
                let Some(cq) = self.cqs.get_mut(&cqid) else { break };
                let room = cq.size - 1 - distance(cq.size, cq.head, cq.tail);
                if room == 0 {
                    break;
                }
                let Some(post) = cq.posts.pop_front() else { break };
                let at = Iova(cq.base.0 + u64::from(cq.tail) * CQE_SIZE as u64);
                let phase = cq.phase ^ post.twist.phase;
                cq.tail += 1;
                if cq.tail == cq.size {
                    cq.tail = 0;
                    cq.phase = !cq.phase;
                }
                if !post.silent {
                    interrupt = cq.vector;
                }
                // Indices are below 65536.
                let head = self.sqs.get(&post.sqid).map_or(0, |sq| sq.head);
                let head = u16::try_from(head).unwrap_or(0);
                let cqe = Cqe {
                    dw0: U32::new((post.value & 0xffff_ffff) as u32),
                    dw1: U32::new((post.value >> 32) as u32),
                    sq_head: U16::new(post.twist.sq_head.unwrap_or(head)),
                    sq_id: U16::new(post.twist.sq_id.unwrap_or(post.sqid)),
                    cid: U16::new(post.twist.cid.unwrap_or(post.cid)),
                    status: U16::new(post.status.to_wire(phase)),
                };
                let dwords: [U32; 4] = zerocopy::transmute!(cqe);
                let [a, b, c, d] = post.twist.raw.unwrap_or(dwords.map(U32::get));
                let entry = [join(a, b), join(c, d)];
                busy = true;
                if self.bus.write_entry(at, entry).is_err() {
                    let kind = MisuseKind::QueueUnreachable {
                        queue: cqid,
                        completion: true,
                    };
                    self.misuse(shared, kind);
                    self.fail();
                    return true;
                }
                self.stats.completed += 1;
            }
            if let Some(vector) = interrupt {
                self.raise(vector);
            }
        }
        busy
    }
}
