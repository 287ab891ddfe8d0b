//! Faults as data: what goes wrong, when, and how often.

use std::ops::Range;

use homi_spec::event::AsyncEvent;
use homi_spec::nvm::BlockCommand;
use homi_spec::{Sqe, Status};

/// A number of steps that never pass.
pub const NEVER: u32 = u32::MAX;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultRule {
    /// On which function (0 is the physical one); `None` for all.
    pub function: Option<u16>,
    /// What sets it off.
    pub trigger: Trigger,
    /// How often the trigger passes before.
    pub skip: u64,
    /// How often it goes wrong then.
    pub times: u64,
    /// What goes wrong.
    pub fault: Fault,
}

/// What sets a fault off.
#[derive(Debug, Clone, PartialEq)]
pub enum Trigger {
    /// A command is fetched.
    Command(CommandMatch),
    /// CC.EN is set.
    Enable,
    /// CC.EN is cleared.
    Disable,
    /// A shutdown is asked for.
    Shutdown,
    /// The model begins this step (the first is 1).
    Step(u64),
    /// 4 bytes of BAR 0 below the doorbells are read at this offset.
    Read(u64),
}

/// Which commands: those for which everything given here holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommandMatch {
    /// Their submission queue; 0 is the admin queue.
    pub queue: Option<u16>,
    /// Not on the admin queue.
    pub io: bool,
    /// Their opcode.
    pub opcode: Option<u8>,
    /// Their namespace.
    pub nsid: Option<u32>,
    /// One of these blocks is in their range; commands without a range do not match.
    pub blocks: Option<Range<u64>>,
}

impl CommandMatch {
    /// All commands of I/O queues.
    #[must_use]
    pub fn io() -> Self {
        Self {
            io: true,
            ..Self::default()
        }
    }

    /// Commands of this opcode on I/O queues.
    #[must_use]
    pub fn io_opcode(opcode: u8) -> Self {
        Self {
            io: true,
            opcode: Some(opcode),
            ..Self::default()
        }
    }

    /// Commands of this opcode on the admin queue.
    #[must_use]
    pub fn admin_opcode(opcode: u8) -> Self {
        Self {
            queue: Some(0),
            opcode: Some(opcode),
            ..Self::default()
        }
    }

    fn holds(&self, queue: u16, sqe: &Sqe) -> bool {
        let in_range = |wanted: &Range<u64>| {
            queue != 0
                && BlockCommand::from_sqe(sqe).is_some_and(|command| {
                    let end = command.end().unwrap_or(u64::MAX);
                    command.slba < wanted.end && wanted.start < end
                })
        };
        self.queue.is_none_or(|wanted| wanted == queue)
            && !(self.io && queue == 0)
            && self.opcode.is_none_or(|wanted| wanted == sqe.opcode)
            && self.nsid.is_none_or(|wanted| wanted == sqe.nsid.get())
            && self.blocks.as_ref().is_none_or(in_range)
    }
}

/// What goes wrong. Those about a command mean nothing for another trigger, and the other way round; they are then left out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The command is carried out, its completion never comes.
    Lose,
    /// The command is never carried out. For Enable, Disable and Shutdown: it never happens.
    Ignore,
    /// The command is carried out at once, its completion comes this many steps late ([`NEVER`] is [`Fault::Lose`]).
    Late(u32),
    /// The command is carried out this many steps late. For Enable, Disable and Shutdown: it takes that much longer.
    Slow(u32),
    /// A second completion with the same identifier follows after this many steps.
    Duplicate(u32),
    /// The completion carries the wrong phase tag.
    WrongPhase,
    /// The completion carries this command identifier.
    WrongCid(u16),
    /// The completion carries this submission queue head.
    WrongSqHead(u16),
    /// The completion carries this submission queue identifier.
    WrongSqId(u16),
    /// The command fails with this status without being carried out.
    Refuse(Status),
    /// The command is carried out and then reported with this status.
    Report(Status),
    /// No data is moved; the command succeeds.
    NoData,
    /// One bit of the data is wrong on its way; the command succeeds.
    Corrupt,
    /// The data to the host is replaced by bytes drawn from this seed; the command succeeds.
    Garbage(u64),
    /// The completion is these dwords, phase tag included.
    Raw([u32; 4]),
    /// A register is read as this. For [`Trigger::Read`].
    Value(u32),
    /// What is written does not reach the media; the command succeeds.
    NotWritten,
    /// The completion raises no interrupt.
    NoInterrupt,
    /// A vector is raised for nothing.
    SpuriousInterrupt(u16),
    /// CSTS.CFS: the controller stops.
    Fatal,
    /// The function is gone.
    Remove,
    /// The whole subsystem is reset, as if NSSR had been written.
    SubsystemReset,
    /// An asynchronous event occurs.
    Event(AsyncEvent),
    /// A completion that belongs to no command appears in a completion queue.
    Unsolicited {
        /// The completion queue.
        queue: u16,
        /// The command identifier that it carries.
        cid: u16,
    },
}

impl FaultRule {
    /// The first command that matches goes wrong.
    #[must_use]
    pub fn once(matches: CommandMatch, fault: Fault) -> Self {
        Self::nth(matches, 0, fault)
    }

    /// One command goes wrong, after `skip` that match.
    #[must_use]
    pub fn nth(matches: CommandMatch, skip: u64, fault: Fault) -> Self {
        Self {
            function: None,
            trigger: Trigger::Command(matches),
            skip,
            times: 1,
            fault,
        }
    }

    /// Every command that matches goes wrong.
    #[must_use]
    pub fn always(matches: CommandMatch, fault: Fault) -> Self {
        Self {
            times: u64::MAX,
            ..Self::once(matches, fault)
        }
    }

    /// The first time that something other than a command happens.
    #[must_use]
    pub fn on(trigger: Trigger, fault: Fault) -> Self {
        Self {
            function: None,
            trigger,
            skip: 0,
            times: 1,
            fault,
        }
    }
}

#[derive(Debug, Clone)]
struct Armed {
    rule: FaultRule,
    seen: u64,
    fired: u64,
}

impl Armed {
    /// Counts a match; true if it goes wrong this time.
    fn pass(&mut self) -> bool {
        self.seen += 1;
        if self.seen <= self.rule.skip || self.fired >= self.rule.times {
            return false;
        }
        self.fired += 1;
        true
    }
}

/// The rules and how far each has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    rules: Vec<Armed>,
}

impl Plan {
    pub(crate) fn add(&mut self, rule: FaultRule) {
        self.rules.push(Armed {
            rule,
            seen: 0,
            fired: 0,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn fired(&self) -> u64 {
        self.rules.iter().map(|armed| armed.fired).sum()
    }

    fn matching(&mut self, function: u16, holds: impl Fn(&Trigger) -> bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        for armed in &mut self.rules {
            if armed.rule.function.is_none_or(|wanted| wanted == function)
                && holds(&armed.rule.trigger)
                && armed.pass()
            {
                faults.push(armed.rule.fault.clone());
            }
        }
        faults
    }

    /// What goes wrong with a command that is fetched.
    pub(crate) fn command(&mut self, function: u16, queue: u16, sqe: &Sqe) -> Vec<Fault> {
        if self.rules.is_empty() {
            return Vec::new();
        }
        self.matching(
            function,
            |trigger| matches!(trigger, Trigger::Command(wanted) if wanted.holds(queue, sqe)),
        )
    }

    /// What goes wrong now.
    pub(crate) fn event(&mut self, function: u16, event: &Trigger) -> Vec<Fault> {
        if self.rules.is_empty() {
            return Vec::new();
        }
        self.matching(function, |trigger| trigger == event)
    }

    /// Whether something is to happen at a later step.
    pub(crate) fn waits(&self, now: u64) -> bool {
        self.rules
            .iter()
            .any(|armed| armed.fired == 0 && matches!(armed.rule.trigger, Trigger::Step(at) if at > now))
    }
}

/// What goes wrong with a command's data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DataFault {
    pub(crate) none: bool,
    pub(crate) corrupt: bool,
    pub(crate) not_written: bool,
    pub(crate) garbage: Option<u64>,
}

impl DataFault {
    pub(crate) fn of(faults: &[Fault]) -> Self {
        Self {
            none: faults.contains(&Fault::NoData),
            corrupt: faults.contains(&Fault::Corrupt),
            not_written: faults.contains(&Fault::NotWritten),
            garbage: faults.iter().find_map(|fault| match fault {
                Fault::Garbage(seed) => Some(*seed),
                _ => None,
            }),
        }
    }

    /// Does to data on its way to the host what is to go wrong with it.
    pub(crate) fn spoil(self, data: &mut [u8]) {
        if let Some(seed) = self.garbage {
            let mut random = seed | 1;
            for byte in data.iter_mut() {
                // Marsaglia's xorshift64.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let [.., high] = random.to_le_bytes();
                *byte = high;
            }
        }
        if self.corrupt
            && let Some(byte) = data.last_mut()
        {
            *byte ^= 1;
        }
    }
}
