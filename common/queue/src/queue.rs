//! The [`Queue`] trait: what executes NVMe commands.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::command::{Command, Completion};
use crate::memory::{Buffer, Data};
use crate::slots::{CommandId, Slot};

/// Something that executes NVMe commands: a connection, a drive's queue pair, the kernel, RAM.
///
/// Use: [`reserve`](Queue::reserve) a slot, [`submit`](Queue::submit) a command into it, repeat, then
/// [`commit`](Queue::commit) the batch (one doorbell, one post list, one send), and [`poll`](Queue::poll) for completions.
/// Nothing here blocks. Every submitted command has exactly one outcome: a [`Completed`] from `poll`, or an
/// [`Undelivered`] in the [`QueueLost`] that ends the queue.
pub trait Queue {
    /// How many commands may be in flight.
    fn depth(&self) -> u16;

    /// Reserves a place for one command.
    ///
    /// # Errors
    /// [`QueueFull`] if `depth` commands are in flight: poll, then try again.
    fn reserve(&mut self) -> Result<Slot, QueueFull>;

    /// Gives a reserved place back unused.
    fn release(&mut self, slot: Slot);

    /// Hands over a command and its memory. It may start at once or wait for [`commit`](Queue::commit). The command's own
    /// command id and data pointer fields are ignored: the queue sets both. The id's
    /// [`slot_index`](CommandId::slot_index) for this queue's depth is the slot's index, so an issuer may keep a table by it.
    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId;

    /// Starts everything submitted since the last call.
    ///
    /// # Errors
    /// [`QueueLost`] if the path died; it carries every command that has no completion.
    fn commit(&mut self) -> Result<(), QueueLost>;

    /// Collects completions, and returns how many there were. Never blocks.
    ///
    /// # Errors
    /// [`QueueLost`] if the path died; it carries every command that has no completion.
    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost>;

    /// Makes the memory of an operation that is over a [`Buffer`] again. A queue that keeps memory registered beyond the operation gives
    /// that up first, so this is for memory that is used now and then; what is used all the time stays [`Data`].
    ///
    /// # Errors
    /// The data itself, if it cannot be borrowed as a slice: somebody else refers to it.
    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        Buffer::try_from_data(data)
    }
}

/// A queue whose thread can sleep until there may be something to [`poll`](Queue::poll).
#[cfg(unix)]
pub trait Wait {
    /// A descriptor that becomes readable when `poll` may find completions, or `None` if completions never come by
    /// themselves (the executor finishes its work inside `commit` or `poll`).
    ///
    /// Ask for it after each `poll` that is followed by a sleep, not once: some executors announce completions only to those who asked since
    /// their last `poll`.
    fn wait_descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>>;

    /// Whether `poll` also has something to do when the descriptor becomes writable, because something could not be
    /// sent whole: then wait for both.
    fn waits_for_room(&self) -> bool {
        false
    }
}

/// A command that was executed, and the memory it used.
#[derive(Debug)]
pub struct Completed {
    /// The id that `submit` returned.
    pub id: CommandId,
    /// What came of it.
    pub completion: Completion,
    /// The operation's memory, handed back. For [`Data::Anywhere`] it says where the executor put the bytes.
    pub data: Data,
}

/// All slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: poll for completions before submitting more")]
pub struct QueueFull;

/// A command that has no completion because its queue was lost. It may or may not have been executed.
#[derive(Debug)]
pub struct Undelivered {
    /// The id that `submit` returned.
    pub id: CommandId,
    /// The command, as submitted.
    pub command: Command,
    /// The operation's memory, handed back.
    pub data: Data,
}

/// Why a queue was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection or device failed.
    #[error("{0}")]
    Io(String),
    /// The peer broke the protocol; the text says what was expected and what came.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer ended the connection with a reason.
    #[error("the peer ended the connection: {0}")]
    Terminated(String),
    /// A command was not answered in time, nor was its Abort.
    #[error("a command was not answered within {0:?}, nor was its Abort")]
    Timeout(Duration),
    /// The association that the queue belongs to ended.
    #[error("the association ended: {0}")]
    Association(String),
    /// This end closed the queue.
    #[error("the queue was closed at this end")]
    Local,
}

/// The queue is gone. Each command without a completion is handed back exactly once: the first `QueueLost` that a
/// queue returns carries them all, later ones carry none.
pub struct QueueLost(Box<Lost>);

struct Lost {
    reason: LostReason,
    undelivered: Vec<Undelivered>,
}

impl QueueLost {
    /// A lost queue with the commands that it still had.
    #[must_use]
    pub fn new(reason: LostReason, undelivered: Vec<Undelivered>) -> Self {
        Self(Box::new(Lost { reason, undelivered }))
    }

    /// Why it was lost.
    #[must_use]
    pub fn reason(&self) -> &LostReason {
        &self.0.reason
    }

    /// The commands without a completion.
    #[must_use]
    pub fn undelivered(&self) -> &[Undelivered] {
        &self.0.undelivered
    }

    /// The reason and the commands without a completion.
    #[must_use]
    pub fn into_parts(self) -> (LostReason, Vec<Undelivered>) {
        (self.0.reason, self.0.undelivered)
    }
}

impl fmt::Debug for QueueLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueLost")
            .field("reason", &self.0.reason)
            .field("undelivered", &self.0.undelivered.len())
            .finish()
    }
}

impl fmt::Display for QueueLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the queue was lost: {}", self.0.reason)?;
        match self.0.undelivered.len() {
            0 => Ok(()),
            1 => write!(f, " (1 command has no completion)"),
            count => write!(f, " ({count} commands have no completion)"),
        }
    }
}

impl Error for QueueLost {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.reason)
    }
}
