//! [`QueueState`]: the submission queue side of one connection, from before Connect on.

use super::{Grant, Rejected};
use homi_spec::command::FabricsType;
use homi_spec::{Cqe, Sqe, Status, U16, U32};

/// Where a command of a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It is a Connect: to [`super::Node::connect`].
    Connect,
    /// It is an admin or fabrics command: to [`super::Node::admin`].
    Node,
    /// It is an I/O command: to [`super::io::parse`].
    Io,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Unconnected,
    Admin,
    Io,
}

/// What a connection is as a queue: nothing until Connect, then the admin queue or an I/O queue. It decides where
/// commands go and builds their completions.
///
/// The submission queue head moves when a command completes, not when it arrives: a host that minds flow control
/// then never has more commands outstanding than the queue has entries.
#[derive(Debug)]
pub struct QueueState {
    role: Role,
    entries: u32,
    head: u16,
    flow_control: bool,
}

impl Default for QueueState {
    fn default() -> Self {
        Self::new()
    }
}

impl QueueState {
    /// A connection before Connect.
    #[must_use]
    pub fn new() -> Self {
        Self {
            role: Role::Unconnected,
            entries: 0,
            head: 0,
            flow_control: true,
        }
    }

    /// Whether Connect succeeded.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.role != Role::Unconnected
    }

    /// Whether this is an I/O queue.
    #[must_use]
    pub fn is_io(&self) -> bool {
        self.role == Role::Io
    }

    /// Whether the host minds the submission queue head. Where not, a transport may leave out the completion of a
    /// successful read (SUCCESS flag of NVMe/TCP).
    #[must_use]
    pub fn flow_control(&self) -> bool {
        self.flow_control
    }

    /// Where a command goes.
    ///
    /// # Errors
    /// The status of a command that has no business on this queue: anything but Connect before Connect, and Connect
    /// after it (Base 2.0 §3.3.2.2).
    #[inline]
    pub fn route(&self, sqe: &Sqe) -> Result<Route, Status> {
        let connect = sqe.fabrics_type() == Some(FabricsType::CONNECT);
        match self.role {
            Role::Unconnected if connect => Ok(Route::Connect),
            Role::Admin if !connect => Ok(Route::Node),
            Role::Io if !connect && sqe.fabrics_type().is_some() => Ok(Route::Node),
            Role::Io if !connect => Ok(Route::Io),
            Role::Unconnected | Role::Admin | Role::Io => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        }
    }

    /// The connection becomes the queue that Connect asked for. Returns the completion of that Connect.
    pub fn accept(&mut self, grant: &Grant, cid: u16) -> Cqe {
        self.role = if grant.qid == 0 { Role::Admin } else { Role::Io };
        self.entries = grant.depth;
        self.flow_control = grant.sq_flow_control;
        self.head = 0;
        let mut cqe = self.complete(Status::SUCCESS, grant.dw0, 0, cid);
        if !self.flow_control {
            // Base 2.0 §6.3: this value tells the host that flow control is off, as it asked.
            cqe.sq_head = U16::new(0xffff);
        }
        cqe
    }

    /// The completion of a Connect that failed; the connection stays what it was.
    #[must_use]
    pub fn reject(&self, rejected: &Rejected, cid: u16) -> Cqe {
        let mut cqe = Cqe::new(cid).with_status(rejected.status);
        cqe.dw0 = U32::new(rejected.dw0);
        cqe
    }

    /// The completion of a command. Every field that says nothing is zero.
    #[inline]
    pub fn complete(&mut self, status: Status, dw0: u32, dw1: u32, cid: u16) -> Cqe {
        let mut cqe = Cqe::new(cid).with_status(status);
        cqe.dw0 = U32::new(dw0);
        cqe.dw1 = U32::new(dw1);
        if self.flow_control && self.entries != 0 {
            let next = (u32::from(self.head) + 1) % self.entries;
            // Below 65536 since a queue has at most that many entries.
            self.head = u16::try_from(next).unwrap_or(0);
            cqe.sq_head = U16::new(self.head);
        }
        cqe
    }
}
