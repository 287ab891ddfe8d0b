//! [`Counters`]: what a queue has done.

/// What a queue has done so far: for benchmarks, and to see that the fast path is the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Commands submitted.
    pub commands: u64,
    /// System calls that sent.
    pub sends: u64,
    /// System calls that received, those that found nothing included.
    pub receives: u64,
    /// Receives that found nothing.
    pub empty_receives: u64,
    /// Payload copies in user space.
    pub copies: u64,
    /// Bytes copied by them.
    pub bytes_copied: u64,
    /// Payload bytes that the kernel put where the command wanted them.
    pub bytes_landed: u64,
    /// Commands that were aborted because they took too long.
    pub aborts: u64,
    /// Over RDMA: work requests given to the device.
    pub work_requests: u64,
    /// Over RDMA: lists of them, each with one doorbell.
    pub doorbells: u64,
    /// Over RDMA: completions taken from the device.
    pub completions: u64,
    /// Over RDMA: regions that this queue had to register because nobody had; none once all are known.
    pub registrations: u64,
    /// Over RDMA: times that the device was asked to wake a thread that is about to sleep.
    pub arms: u64,
}

impl Counters {
    /// System calls of both kinds.
    #[must_use]
    pub const fn system_calls(&self) -> u64 {
        self.sends + self.receives
    }

    /// What was counted since an earlier state.
    #[must_use]
    pub const fn since(&self, then: &Self) -> Self {
        Self {
            commands: self.commands - then.commands,
            sends: self.sends - then.sends,
            receives: self.receives - then.receives,
            empty_receives: self.empty_receives - then.empty_receives,
            copies: self.copies - then.copies,
            bytes_copied: self.bytes_copied - then.bytes_copied,
            bytes_landed: self.bytes_landed - then.bytes_landed,
            aborts: self.aborts - then.aborts,
            work_requests: self.work_requests - then.work_requests,
            doorbells: self.doorbells - then.doorbells,
            completions: self.completions - then.completions,
            registrations: self.registrations - then.registrations,
            arms: self.arms - then.arms,
        }
    }

    /// Two queues' counts together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            commands: self.commands + other.commands,
            sends: self.sends + other.sends,
            receives: self.receives + other.receives,
            empty_receives: self.empty_receives + other.empty_receives,
            copies: self.copies + other.copies,
            bytes_copied: self.bytes_copied + other.bytes_copied,
            bytes_landed: self.bytes_landed + other.bytes_landed,
            aborts: self.aborts + other.aborts,
            work_requests: self.work_requests + other.work_requests,
            doorbells: self.doorbells + other.doorbells,
            completions: self.completions + other.completions,
            registrations: self.registrations + other.registrations,
            arms: self.arms + other.arms,
        }
    }
}
