//! Admin commands without a module of their own: queues, Abort, Keep Alive and Asynchronous Event Request.
//! Base 2.0 §5.
//!
//! Not implemented: firmware, security, sanitize and directives commands; their opcodes are named. Those that manage
//! namespaces and virtual functions are in [`crate::manage`].

use crate::command::{AdminOpcode, Sqe};
use zerocopy::little_endian::{U16, U32};

fn admin_sqe(opcode: AdminOpcode, cid: u16) -> Sqe {
    let mut sqe = Sqe::new(opcode.0, 0);
    sqe.cid = U16::new(cid);
    sqe
}

/// Keep Alive. Base 2.0 §5.18.
pub fn keep_alive(cid: u16) -> Sqe {
    admin_sqe(AdminOpcode::KEEP_ALIVE, cid)
}

/// Asynchronous Event Request: completes when an event occurs. Base 2.0 §5.2.
pub fn async_event_request(cid: u16) -> Sqe {
    admin_sqe(AdminOpcode::ASYNC_EVENT_REQUEST, cid)
}

/// The Abort command. Base 2.0 §5.1.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct Abort {
    /// Submission queue of the command to abort.
    pub sqid: u16,
    /// Command to abort.
    pub cid: u16,
}

impl Abort {
    /// Dword 0 b0 of the completion: set where the command was not aborted.
    pub const NOT_ABORTED: u32 = 1 << 0;

    /// The fields of an Abort; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let cdw10 = sqe.cdw10.get();
        (sqe.admin_opcode() == AdminOpcode::ABORT).then_some(Self {
            sqid: (cdw10 & 0xffff) as u16,
            cid: (cdw10 >> 16) as u16,
        })
    }

    /// The entry of this Abort, itself identified by `cid`.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = admin_sqe(AdminOpcode::ABORT, cid);
        sqe.cdw10 = U32::new(u32::from(self.sqid) | (u32::from(self.cid) << 16));
        sqe
    }
}

/// Create I/O Completion Queue (PCIe only). Base 2.0 §5.4.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct CreateIoCq {
    /// Queue.
    pub qid: u16,
    /// Entries, zero-based.
    pub size_z: u16,
    /// The queue is physically contiguous (PC).
    pub contiguous: bool,
    /// Raise interrupts (IEN).
    pub interrupts: bool,
    /// Interrupt vector (IV).
    pub vector: u16,
    /// Bus address of the queue, or of its PRP list.
    pub address: u64,
}

impl CreateIoCq {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        (sqe.admin_opcode() == AdminOpcode::CREATE_IO_CQ).then(|| Self {
            qid: (cdw10 & 0xffff) as u16,
            size_z: (cdw10 >> 16) as u16,
            contiguous: cdw11 & 1 != 0,
            interrupts: cdw11 & 2 != 0,
            vector: (cdw11 >> 16) as u16,
            address: sqe.prp1(),
        })
    }

    /// The entry of this command.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = admin_sqe(AdminOpcode::CREATE_IO_CQ, cid);
        sqe.set_prp(self.address, 0);
        sqe.cdw10 = U32::new(u32::from(self.qid) | (u32::from(self.size_z) << 16));
        sqe.cdw11 = U32::new(
            u32::from(self.contiguous) | (u32::from(self.interrupts) << 1) | (u32::from(self.vector) << 16),
        );
        sqe
    }
}

/// Create I/O Submission Queue (PCIe only). Base 2.0 §5.5.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct CreateIoSq {
    /// Queue.
    pub qid: u16,
    /// Entries, zero-based.
    pub size_z: u16,
    /// The queue is physically contiguous (PC).
    pub contiguous: bool,
    /// Priority (QPRIO): 0 urgent to 3 low, under weighted round robin.
    pub priority: u8,
    /// Completion queue.
    pub cqid: u16,
    /// Bus address of the queue, or of its PRP list.
    pub address: u64,
}

impl CreateIoSq {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        (sqe.admin_opcode() == AdminOpcode::CREATE_IO_SQ).then(|| Self {
            qid: (cdw10 & 0xffff) as u16,
            size_z: (cdw10 >> 16) as u16,
            contiguous: cdw11 & 1 != 0,
            priority: ((cdw11 >> 1) & 0x3) as u8,
            cqid: (cdw11 >> 16) as u16,
            address: sqe.prp1(),
        })
    }

    /// The entry of this command.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = admin_sqe(AdminOpcode::CREATE_IO_SQ, cid);
        sqe.set_prp(self.address, 0);
        sqe.cdw10 = U32::new(u32::from(self.qid) | (u32::from(self.size_z) << 16));
        sqe.cdw11 = U32::new(
            u32::from(self.contiguous) | (u32::from(self.priority & 0x3) << 1) | (u32::from(self.cqid) << 16),
        );
        sqe
    }
}

/// Which of a pair's queues is deleted.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum QueueKind {
    /// Delete I/O Submission Queue: Base 2.0 §5.7.
    Submission,
    /// Delete I/O Completion Queue: Base 2.0 §5.6.
    Completion,
}

/// Delete I/O Submission or Completion Queue (PCIe only).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct DeleteIoQueue {
    /// Which kind.
    pub kind: QueueKind,
    /// Queue.
    pub qid: u16,
}

impl DeleteIoQueue {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let kind = match sqe.admin_opcode() {
            AdminOpcode::DELETE_IO_SQ => QueueKind::Submission,
            AdminOpcode::DELETE_IO_CQ => QueueKind::Completion,
            _ => return None,
        };
        Some(Self {
            kind,
            qid: (sqe.cdw10.get() & 0xffff) as u16,
        })
    }

    /// The entry of this command.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let opcode = match self.kind {
            QueueKind::Submission => AdminOpcode::DELETE_IO_SQ,
            QueueKind::Completion => AdminOpcode::DELETE_IO_CQ,
        };
        let mut sqe = admin_sqe(opcode, cid);
        sqe.cdw10 = U32::new(u32::from(self.qid));
        sqe
    }
}
