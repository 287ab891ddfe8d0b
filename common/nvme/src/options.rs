//! What a controller and its queues are opened with.

use std::time::Duration;

/// How SGLs are used for data, where the controller has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SglUse {
    /// Never.
    Never,
    /// For data that PRPs cannot describe; it is copied otherwise.
    WhenNeeded,
    /// Also for long transfers of few ranges, which then need no list.
    #[default]
    WhereShorter,
}

/// The weights of weighted round robin with urgent priority (feature 01h, Base 2.0 §5.27.1.1): how many commands of a class are started
/// before the next class gets its turn. Urgent queues go before all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arbitration {
    /// High priority: 1 to 256 commands.
    pub high: u16,
    /// Medium priority: 1 to 256 commands.
    pub medium: u16,
    /// Low priority: 1 to 256 commands.
    pub low: u16,
    /// Commands taken from one queue at a time, as a power of two 0 to 6; 7 for no limit.
    pub burst: u8,
}

impl Arbitration {
    /// Dword 11 of the feature.
    pub(crate) fn dword(self) -> u32 {
        let weight = |commands: u16| u32::from(commands.clamp(1, 256) - 1);
        u32::from(self.burst & 0x7)
            | (weight(self.low) << 8)
            | (weight(self.medium) << 16)
            | (weight(self.high) << 24)
    }
}

/// How a controller is opened. Made by [`Options::new`] and changed by its methods.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    pub(crate) queues: u16,
    pub(crate) vectors: u16,
    pub(crate) admin_depth: u16,
    pub(crate) admin_timeout: Duration,
    pub(crate) command_timeout: Option<Duration>,
    pub(crate) abort_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) recover: bool,
    pub(crate) destructive: bool,
    pub(crate) shadow_doorbells: bool,
    pub(crate) sgls: SglUse,
    pub(crate) max_transfer: u32,
    pub(crate) arbitration: Option<Arbitration>,
    pub(crate) kept_mappings: usize,
    pub(crate) kept_bytes: usize,
}

impl Options {
    /// Up to 64 I/O queues and as many interrupts, commands that take 30 s at most, recovery on, nothing destructive.
    #[must_use]
    pub fn new() -> Self {
        Self {
            queues: 64,
            vectors: 65,
            admin_depth: 32,
            admin_timeout: Duration::from_secs(60),
            command_timeout: Some(Duration::from_secs(30)),
            abort_timeout: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
            recover: true,
            destructive: false,
            shadow_doorbells: true,
            sgls: SglUse::default(),
            max_transfer: 4 << 20,
            arbitration: None,
            kept_mappings: 64,
            kept_bytes: 256 << 20,
        }
    }

    /// How many I/O queues to ask the controller for, 1 to 65535. It may grant fewer.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues.max(1);
        self
    }

    /// How many interrupt vectors to turn on at most; the first is the admin queue's, each other serves one I/O queue. With 0, nothing
    /// interrupts: [`Controller::service`](crate::Controller::service) has to be called by itself.
    #[must_use]
    pub fn vectors(mut self, vectors: u16) -> Self {
        self.vectors = vectors;
        self
    }

    /// How long an admin command may take before the controller is reset.
    #[must_use]
    pub fn admin_timeout(mut self, after: Duration) -> Self {
        self.admin_timeout = after;
        self
    }

    /// How long a command of an I/O queue may take before it is aborted, and how long the Abort may take before the controller is reset.
    /// `None` for the first waits forever. The queue's own thread says what takes too long, when [`Controller::service`] asked it and it polls:
    /// what nobody collects is not late. A thread that sleeps on its queue's interrupt is woken for that.
    ///
    /// [`Controller::service`]: crate::Controller::service
    #[must_use]
    pub fn command_timeout(mut self, after: Option<Duration>, abort: Duration) -> Self {
        self.command_timeout = after;
        self.abort_timeout = abort;
        self
    }

    /// How long to wait for the controller's shutdown, unless it asks for more (RTD3E).
    #[must_use]
    pub fn shutdown_timeout(mut self, after: Duration) -> Self {
        self.shutdown_timeout = after;
        self
    }

    /// Whether a controller that failed is brought up again after its reset.
    #[must_use]
    pub fn recover(mut self, recover: bool) -> Self {
        self.recover = recover;
        self
    }

    /// Allows commands that destroy data or change what other hosts see: Format NVM, Sanitize, Namespace Management and Attachment,
    /// firmware and security commands.
    #[must_use]
    pub fn destructive(mut self, allowed: bool) -> Self {
        self.destructive = allowed;
        self
    }

    /// Whether doorbells in memory are used where the controller offers them (emulated ones do), which saves most register writes.
    #[must_use]
    pub fn shadow_doorbells(mut self, on: bool) -> Self {
        self.shadow_doorbells = on;
        self
    }

    /// How SGLs are used where the controller offers them.
    #[must_use]
    pub fn sgls(mut self, sgls: SglUse) -> Self {
        self.sgls = sgls;
        self
    }

    /// The longest transfer of one device command in bytes, where the controller allows more or names no limit (MDTS); longer reads,
    /// writes and compares are split. At least two memory pages.
    #[must_use]
    pub fn max_transfer(mut self, bytes: u32) -> Self {
        self.max_transfer = bytes;
        self
    }

    /// Asks for weighted round robin between queues of different [`Priority`]. Opening fails where the controller does not offer it.
    #[must_use]
    pub fn arbitration(mut self, weights: Arbitration) -> Self {
        self.arbitration = Some(weights);
        self
    }

    /// How many mappings, and of how many bytes, each queue keeps of memory that nobody mapped with
    /// [`Controller::map`](crate::Controller::map).
    #[must_use]
    pub fn kept_mappings(mut self, mappings: usize, bytes: usize) -> Self {
        self.kept_mappings = mappings;
        self.kept_bytes = bytes;
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a queue's completions raise interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interrupts {
    /// No: the queue is polled, and has no descriptor to sleep on.
    #[default]
    Off,
    /// Yes: each such queue has a vector of its own. It may be polled as well.
    On,
}

/// Where a queue's entries lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// In host memory.
    #[default]
    Host,
    /// The submission queue in the controller's memory buffer, which has to be on ([`Controller::cmb`](crate::Controller::cmb)):
    /// the controller fetches commands without crossing the bus. Completions stay in host memory, where polling is cheap.
    ControllerMemory,
}

/// A queue's class under weighted round robin (Base 2.0 §3.4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Before all others.
    Urgent,
    /// By [`Arbitration::high`].
    High,
    /// By [`Arbitration::medium`].
    #[default]
    Medium,
    /// By [`Arbitration::low`].
    Low,
}

impl Priority {
    pub(crate) const fn qprio(self) -> u8 {
        match self {
            Self::Urgent => 0,
            Self::High => 1,
            Self::Medium => 2,
            Self::Low => 3,
        }
    }
}

/// How an I/O queue is opened. Made by [`QueueOptions::new`] and changed by its methods.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct QueueOptions {
    pub(crate) depth: u16,
    pub(crate) interrupts: Interrupts,
    pub(crate) placement: Placement,
    pub(crate) priority: Priority,
}

impl QueueOptions {
    /// A polled queue in host memory for up to `depth` commands in flight. The controller's limit (CAP.MQES) and
    /// [`Slots::MAX_DEPTH`](homi_queue::Slots::MAX_DEPTH) may make it fewer: [`Queue::depth`](homi_queue::Queue::depth) tells.
    #[must_use]
    pub const fn new(depth: u16) -> Self {
        Self {
            depth,
            interrupts: Interrupts::Off,
            placement: Placement::Host,
            priority: Priority::Medium,
        }
    }

    /// Whether completions raise interrupts.
    #[must_use]
    pub const fn interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = interrupts;
        self
    }

    /// Where the entries lie.
    #[must_use]
    pub const fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// The queue's class. Any but [`Priority::Medium`] needs [`Options::arbitration`].
    #[must_use]
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_zero_based_on_the_wire() {
        let arbitration = Arbitration {
            high: 256,
            medium: 16,
            low: 0,
            burst: 7,
        };
        assert_eq!(arbitration.dword(), 0xff0f_0007);
    }
}
