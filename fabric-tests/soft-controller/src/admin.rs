//! Admin commands: dispatch, queues, Abort, event requests and Doorbell Buffer Config. Base 2.0 §5.

use std::collections::VecDeque;

use homi_queue::Iova;
use homi_spec::admin::{Abort, CreateIoCq, CreateIoSq, DeleteIoQueue, QueueKind};
use homi_spec::command::{AdminOpcode, CQE_SIZE, Psdt, SQE_SIZE, Sqe, TransferDirection};
use homi_spec::{Status, command};

use crate::config::{Deletion, SoftConfig};
use crate::controller::{Controller, Outcome, Running};
use crate::dma::CmbUse;
use crate::faults::Fault;
use crate::misuse::MisuseKind;
use crate::queues::{Cq, Post, Sq, queue_range};
use crate::shadow::ShadowBuffers;
use crate::shared::Shared;

/// Admin commands that the physical function's controller has.
pub(crate) fn supported(config: &SoftConfig) -> Vec<AdminOpcode> {
    let mut opcodes = vec![
        AdminOpcode::DELETE_IO_SQ,
        AdminOpcode::CREATE_IO_SQ,
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::DELETE_IO_CQ,
        AdminOpcode::CREATE_IO_CQ,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::NAMESPACE_MANAGEMENT,
        AdminOpcode::NAMESPACE_ATTACHMENT,
        AdminOpcode::FORMAT_NVM,
    ];
    if config.doorbell_buffer {
        opcodes.push(AdminOpcode::DOORBELL_BUFFER_CONFIG);
    }
    if config.sriov.is_some() {
        opcodes.push(AdminOpcode::VIRTUALIZATION_MANAGEMENT);
    }
    opcodes
}

impl Controller {
    /// Moves an admin command's data to the host.
    pub(crate) fn give(&mut self, shared: &Shared, sqe: &Sqe, data: &[u8]) -> Result<(), Status> {
        let rules = self.rules(&shared.config, false);
        let parts = self.bus.parts(
            sqe,
            data.len() as u64,
            TransferDirection::ControllerToHost,
            &rules,
        )?;
        if self.data_fault.none {
            return Ok(());
        }
        let mut data = data.to_vec();
        self.data_fault.spoil(&mut data);
        let moved = self.bus.scatter(&parts, &data);
        moved.map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    /// Moves an admin command's data from the host.
    pub(crate) fn take(&mut self, shared: &Shared, sqe: &Sqe, data: &mut [u8]) -> Result<(), Status> {
        let rules = self.rules(&shared.config, false);
        let parts = self.bus.parts(
            sqe,
            data.len() as u64,
            TransferDirection::HostToController,
            &rules,
        )?;
        let moved = self.bus.gather(&parts, data);
        moved.map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    /// Carries out an admin command. `due` are the commands that are carried out after it in the same step.
    pub(crate) fn admin(&mut self, shared: &mut Shared, sqe: &Sqe, due: &mut VecDeque<Running>) -> Outcome {
        if sqe.psdt() != Psdt::PRP {
            self.misuse(shared, MisuseKind::AdminSgl { opcode: sqe.opcode });
            return Outcome::Done(Status::INVALID_FIELD.with_dnr(), 0);
        }
        if sqe.fuse() != command::Fuse::NORMAL {
            return Outcome::Done(Status::INVALID_FIELD.with_dnr(), 0);
        }
        let primary = self.function == 0;
        match sqe.admin_opcode() {
            AdminOpcode::IDENTIFY => self.identify(shared, sqe),
            AdminOpcode::GET_FEATURES => self.get_features(shared, sqe),
            AdminOpcode::SET_FEATURES => self.set_features(shared, sqe),
            AdminOpcode::GET_LOG_PAGE => self.get_log(shared, sqe),
            AdminOpcode::CREATE_IO_CQ => self.create_cq(shared, sqe),
            AdminOpcode::CREATE_IO_SQ => self.create_sq(shared, sqe),
            AdminOpcode::DELETE_IO_CQ | AdminOpcode::DELETE_IO_SQ => self.delete_queue(shared, sqe, due),
            AdminOpcode::ABORT => self.abort(shared, sqe, due),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if self.events.requests.len() > usize::from(shared.config.aerl_z) {
                    self.misuse(shared, MisuseKind::TooManyEventRequests);
                    return Outcome::Done(Status::AER_LIMIT_EXCEEDED.with_dnr(), 0);
                }
                self.events.requests.push_back(sqe.cid.get());
                return Outcome::Held;
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG if shared.config.doorbell_buffer => {
                self.configure_doorbells(shared, sqe)
            }
            AdminOpcode::NAMESPACE_MANAGEMENT if primary => self.manage_namespace(shared, sqe),
            AdminOpcode::NAMESPACE_ATTACHMENT if primary => self.attach_namespace(shared, sqe),
            AdminOpcode::FORMAT_NVM if primary => self.format(shared, sqe),
            AdminOpcode::VIRTUALIZATION_MANAGEMENT if primary && shared.config.sriov.is_some() => {
                self.virtualize(shared, sqe)
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
        .into()
    }

    fn check_queue(&self, shared: &Shared, size_z: u16, contiguous: bool, base: u64) -> Result<u32, Status> {
        let size = u32::from(size_z) + 1;
        if size < 2 || size > shared.config.max_queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        if !contiguous {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if !base.is_multiple_of(self.page().bytes()) {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        Ok(size)
    }

    fn create_cq(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let create = CreateIoCq::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        if self.kept.cc.iocqes() != 4 {
            // The entry size has to be set before.
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        if create.qid == 0 || u32::from(create.qid) > self.granted.1 || self.cqs.contains_key(&create.qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        let size = self.check_queue(shared, create.size_z, create.contiguous, create.address)?;
        let (_, vectors) = self.resources(shared);
        if create.interrupts {
            if create.vector >= vectors {
                return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
            }
            if usize::from(create.vector) >= self.vectors.len() {
                let vector = create.vector;
                self.misuse(shared, MisuseKind::VectorOff { vector });
            }
        }
        let range = queue_range(create.address, size, CQE_SIZE).map_err(Status::with_dnr)?;
        self.bus
            .check_cmb(range, CmbUse::CompletionQueue)
            .map_err(Status::with_dnr)?;
        let stride = Self::stride(&shared.config);
        let cq = Cq {
            base: range.start(),
            size,
            head: 0,
            tail: 0,
            phase: true,
            vector: create.interrupts.then_some(create.vector),
            posts: VecDeque::new(),
            shadow: self
                .shadows
                .map(|shadows| shadows.queue(create.qid, true, stride)),
            hold: self.bus.hold(range),
        };
        self.cqs.insert(create.qid, cq);
        Ok(0)
    }

    fn create_sq(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let create = CreateIoSq::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        if self.kept.cc.iosqes() != 6 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        if create.qid == 0 || u32::from(create.qid) > self.granted.0 || self.sqs.contains_key(&create.qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if create.cqid == 0 || u32::from(create.cqid) > self.granted.1 {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if !self.cqs.contains_key(&create.cqid) {
            return Err(Status::CQ_INVALID.with_dnr());
        }
        let size = self.check_queue(shared, create.size_z, create.contiguous, create.address)?;
        let range = queue_range(create.address, size, SQE_SIZE).map_err(Status::with_dnr)?;
        self.bus
            .check_cmb(range, CmbUse::SubmissionQueue)
            .map_err(Status::with_dnr)?;
        let stride = Self::stride(&shared.config);
        self.created += 1;
        let sq = Sq {
            id: self.created,
            base: range.start(),
            size,
            head: 0,
            tail: 0,
            cqid: create.cqid,
            priority: create.priority,
            shadow: self
                .shadows
                .map(|shadows| shadows.queue(create.qid, false, stride)),
            hold: self.bus.hold(range),
        };
        self.sqs.insert(create.qid, sq);
        Ok(0)
    }

    fn delete_queue(
        &mut self,
        shared: &mut Shared,
        sqe: &Sqe,
        due: &mut VecDeque<Running>,
    ) -> Result<u64, Status> {
        let delete = DeleteIoQueue::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let qid = delete.qid;
        match delete.kind {
            QueueKind::Completion => {
                if qid == 0 || !self.cqs.contains_key(&qid) {
                    return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
                }
                if self.sqs.values().any(|sq| sq.cqid == qid) {
                    return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
                }
                self.cqs.remove(&qid);
                self.late.retain(|(_, cqid, _)| *cqid != qid);
            }
            QueueKind::Submission => {
                if qid == 0 || self.sqs.remove(&qid).is_none() {
                    return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
                }
                let mut gone: Vec<_> = self
                    .running
                    .extract_if(.., |running| running.sqid == qid)
                    .collect();
                let (of_queue, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(due)
                    .into_iter()
                    .partition(|running| running.sqid == qid);
                *due = others;
                gone.extend(of_queue);
                // What was carried out already completes now, not later; what the plan adds comes all the same.
                let held: Vec<_> = self
                    .late
                    .extract_if(.., |(_, _, post)| post.sqid == qid && !post.twist.extra)
                    .collect();
                if shared.config.deletion == Deletion::Aborts {
                    for (at, cqid, post) in held {
                        if at != u64::MAX
                            && let Some(cq) = self.cqs.get_mut(&cqid)
                        {
                            cq.posts.push_back(post);
                        }
                    }
                    for running in gone {
                        // What the plan loses stays lost.
                        if running.faults.contains(&Fault::Lose) || running.faults.contains(&Fault::Ignore) {
                            continue;
                        }
                        let cid = running.sqe.cid.get();
                        let post = Post::new(qid, cid, Status::ABORTED_SQ_DELETION, 0);
                        if let Some(cq) = self.cqs.get_mut(&running.cqid) {
                            cq.posts.push_back(post);
                        }
                    }
                    // They are there before the deletion completes.
                    self.post(shared);
                }
            }
        }
        Ok(0)
    }

    fn abort(&mut self, shared: &mut Shared, sqe: &Sqe, due: &mut VecDeque<Running>) -> Result<u64, Status> {
        let abort = Abort::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let aborts = due
            .iter()
            .filter(|running| running.sqid == 0 && running.sqe.admin_opcode() == AdminOpcode::ABORT)
            .count();
        if aborts > usize::from(shared.config.acl_z) {
            return Err(Status::ABORT_LIMIT_EXCEEDED.with_dnr());
        }
        let wanted = |running: &Running| running.sqid == abort.sqid && running.sqe.cid.get() == abort.cid;
        if let Some(place) = self.running.iter().position(wanted) {
            let mut running = self.running.swap_remove(place);
            // It completes as an aborted command does, whatever was to happen to it.
            running.faults.clear();
            self.complete(shared.now, &running, Status::ABORT_REQUESTED, 0);
        } else if abort.sqid == 0
            && let Some(place) = self.events.requests.iter().position(|cid| *cid == abort.cid)
        {
            self.events.requests.remove(place);
            if let Some(cq) = self.cqs.get_mut(&0) {
                cq.posts
                    .push_back(Post::new(0, abort.cid, Status::ABORT_REQUESTED, 0));
            }
        } else {
            return Ok(u64::from(Abort::NOT_ABORTED));
        }
        // It is posted before this command.
        self.post(shared);
        Ok(0)
    }

    fn configure_doorbells(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let page = self.page().bytes();
        let (doorbells, events) = (sqe.prp1(), sqe.prp2());
        if !doorbells.is_multiple_of(page) || !events.is_multiple_of(page) {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        let shadows = ShadowBuffers {
            doorbells: Iova(doorbells),
            events: Iova(events),
        };
        let mut probe = [0; 8];
        let reachable = self.bus.read(shadows.doorbells, &mut probe).is_ok()
            && self.bus.read(shadows.events, &mut probe).is_ok();
        if doorbells == 0 || events == 0 || doorbells == events || !reachable {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let stride = Self::stride(&shared.config);
        for (qid, sq) in self.sqs.iter_mut().filter(|(qid, _)| **qid != 0) {
            sq.shadow = Some(shadows.queue(*qid, false, stride));
        }
        for (qid, cq) in self.cqs.iter_mut().filter(|(qid, _)| **qid != 0) {
            cq.shadow = Some(shadows.queue(*qid, true, stride));
        }
        self.shadows = Some(shadows);
        Ok(0)
    }
}
