//! What a driver did that the specification does not allow, kept for tests to assert on.

use homi_spec::Status;

/// A driver did what it may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misuse {
    /// On which function.
    pub function: u16,
    /// In which step.
    pub step: u64,
    /// What it did.
    pub kind: MisuseKind,
}

/// Which rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MisuseKind {
    /// An access that is not aligned to 4 bytes, or past the BAR's end.
    BadAccess {
        /// Offset.
        at: u64,
    },
    /// A write to a read-only or reserved register.
    ReadOnly {
        /// Offset.
        at: u64,
    },
    /// A doorbell was read, which gives nothing.
    DoorbellRead {
        /// Offset.
        at: u64,
    },
    /// A register that is fixed while CC.EN is set was written, or such a field of CC changed.
    FixedWhileEnabled {
        /// Offset.
        at: u64,
    },
    /// CC.EN was set before CSTS.RDY was clear.
    EnabledTooEarly,
    /// CC.EN was cleared before CSTS.RDY was set.
    DisabledTooEarly,
    /// CC.EN was set with values that the controller cannot work with.
    BadConfiguration {
        /// Which.
        what: &'static str,
    },
    /// CC.EN was set after a shutdown without a reset.
    EnabledAfterShutdown,
    /// INTMS or INTMC was accessed with MSI-X on.
    InterruptMask,
    /// A doorbell of a queue that does not exist, or while the controller is not ready.
    NoSuchQueue {
        /// Offset of the doorbell.
        at: u64,
        /// What was written.
        value: u32,
    },
    /// A value that the doorbell cannot take: out of range, the same as before, or more entries than there are.
    DoorbellValue {
        /// Queue.
        queue: u16,
        /// A completion queue's.
        completion: bool,
        /// The value before.
        before: u32,
        /// The value written.
        value: u32,
    },
    /// A shadow doorbell held a value that the doorbell cannot take.
    ShadowValue {
        /// Queue.
        queue: u16,
        /// A completion queue's.
        completion: bool,
        /// The value found.
        value: u32,
    },
    /// Commands were submitted after a shutdown was asked for.
    SubmittedAfterShutdown,
    /// A command identifier that is in use on its queue.
    CidInUse {
        /// Queue.
        queue: u16,
        /// Identifier.
        cid: u16,
    },
    /// A queue could not be read or written: not mapped, or bus mastering is off.
    QueueUnreachable {
        /// Queue.
        queue: u16,
        /// A completion queue.
        completion: bool,
    },
    /// An interrupt vector of a new completion queue is not turned on.
    VectorOff {
        /// Vector.
        vector: u16,
    },
    /// Registers of a secondary controller that is offline were written.
    Offline {
        /// Offset.
        at: u64,
    },
    /// The memory buffer's address is not usable.
    BadCmbBase {
        /// The address.
        base: u64,
    },
    /// An admin command that names data by SGLs.
    AdminSgl {
        /// Opcode.
        opcode: u8,
    },
    /// More Asynchronous Event Requests than the controller takes.
    TooManyEventRequests,
}

/// A command that was refused, not by a fault of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// On which function.
    pub function: u16,
    /// Submission queue.
    pub queue: u16,
    /// Opcode.
    pub opcode: u8,
    /// Dword 10, which tells most commands apart.
    pub cdw10: u32,
    /// Status of the completion.
    pub status: Status,
}
