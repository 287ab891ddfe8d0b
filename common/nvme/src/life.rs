//! [`Inner`] and [`Life`]: what a controller's handles, queues and watchers share. One lock guards the controller's life: its state, the
//! admin queue and the register of queues. It is held while the controller is reset, so that nobody acts on half of one; no queue's
//! submission or completion ever takes it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use homi_pci::{DmaSpace, PciFunction, Vector};
use homi_queue::{LostReason, PageSize};
use homi_spec::controller::Cap;

use crate::admin::AdminQueue;
use crate::bar::Bar;
use crate::clock::Clock;
use crate::cmb::CmbState;
use crate::error::NvmeError;
use crate::flights::Late;
use crate::info::{ControllerInfo, Namespace};
use crate::options::Options;
use crate::pins::Pins;
use crate::shadow::Shadow;
use crate::shared::QueueShared;

/// What a controller is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It is being brought up.
    Starting,
    /// It executes commands.
    Ready,
    /// It failed, for this reason, and was not or could not be brought back: [`Controller::reset`](crate::Controller::reset) tries again.
    Failed(String),
    /// It is no longer there.
    Removed,
    /// It was shut down.
    ShutDown,
}

/// Why a controller is stopped: what its queues are told.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    /// Somebody asked.
    Asked,
    /// CSTS.CFS.
    Fatal,
    /// CSTS.RDY went by itself.
    NotReady,
    /// Nonsense on a queue.
    Protocol { qid: u16, what: String },
    /// A command of a queue, and its Abort, took too long.
    Timeout { qid: u16, after: Duration },
    /// An admin command took too long.
    Admin { after: Duration },
    /// The function is gone.
    Removed,
    /// A shutdown.
    ShutDown,
    /// A queue could not be deleted.
    Deletion { qid: u16, why: String },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => write!(f, "a reset was asked for"),
            Self::Fatal => write!(f, "it reported a fatal status (CSTS.CFS)"),
            Self::NotReady => write!(f, "it became not ready by itself (CSTS.RDY)"),
            Self::Protocol { qid, what } => write!(f, "on queue {qid}, {what}"),
            Self::Timeout { qid, after } => {
                write!(
                    f,
                    "a command of queue {qid} was not answered within {after:?}, nor was its abort"
                )
            }
            Self::Admin { after } => write!(f, "an admin command was not answered within {after:?}"),
            Self::Removed => write!(f, "it was removed"),
            Self::ShutDown => write!(f, "it was shut down"),
            Self::Deletion { qid, why } => write!(f, "queue {qid} could not be deleted: {why}"),
        }
    }
}

impl Cause {
    /// What a queue is told.
    pub(crate) fn reason(&self, queue: u16) -> LostReason {
        match self {
            Self::Protocol { qid, what } if *qid == queue => LostReason::Protocol(what.clone()),
            Self::Timeout { qid, after } if *qid == queue => LostReason::Timeout(*after),
            Self::Removed => LostReason::Io("the controller was removed".to_owned()),
            Self::ShutDown => LostReason::Local,
            other => LostReason::Association(format!("the controller was reset because {other}")),
        }
    }
}

/// What keeps a controller from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// CSTS.RDY is clear.
    Disabled,
    /// The function was reset.
    Reset,
    /// Bus mastering is off; the controller did not stop.
    Cut,
    /// It is gone.
    Gone,
    /// Nothing does.
    No,
}

impl Quiet {
    pub(crate) const fn is_safe(self) -> bool {
        !matches!(self, Self::No)
    }
}

/// A queue in the register.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) shared: Arc<QueueShared>,
    pub(crate) vector: Option<u16>,
    /// Commands that were aborted, as their queue reported them, and when.
    pub(crate) aborted: Vec<(Late, Duration)>,
}

/// What is under the lock.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) state: State,
    /// Changes with every stop, so that who waited for the controller before knows.
    pub(crate) epoch: u64,
    /// Why it was stopped last.
    pub(crate) stopped_by: String,
    pub(crate) admin: AdminQueue,
    pub(crate) info: Option<Arc<ControllerInfo>>,
    /// By identifier. A queue stays here until it is dropped, so that its number is not given to another while its thread may still ring.
    pub(crate) queues: BTreeMap<u16, Registered>,
    pub(crate) vectors: Vec<Arc<Vector>>,
    pub(crate) looked: Duration,
    pub(crate) resets: u64,
    /// What keeps the controller from memory now; `No` while it works.
    pub(crate) quiet: Quiet,
    pub(crate) cmb: Option<CmbState>,
    /// Doorbells in memory, if they are used.
    pub(crate) shadow: Option<Shadow>,
}

/// What handles, queues and watchers share.
pub(crate) struct Inner {
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) bar: Bar,
    pub(crate) cap: Cap,
    pub(crate) stride: u32,
    pub(crate) page: PageSize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: Options,
    pub(crate) space: DmaSpace,
    pub(crate) pins: Arc<Pins>,
    pub(crate) namespaces: Mutex<Arc<Vec<Namespace>>>,
    /// Wakes watchers.
    pub(crate) bell: Arc<Vector>,
    life: Mutex<Life>,
}

impl Inner {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, by the controller's constructor"
    )]
    pub(crate) fn new(
        function: Arc<dyn PciFunction>,
        bar: Bar,
        cap: Cap,
        page: PageSize,
        clock: Arc<dyn Clock>,
        options: Options,
        bell: Vector,
        admin: AdminQueue,
    ) -> Self {
        let space = function.dma().clone();
        Self {
            bar,
            cap,
            stride: cap.doorbell_stride(),
            page,
            clock,
            options,
            space,
            pins: Arc::default(),
            namespaces: Mutex::default(),
            bell: Arc::new(bell),
            function,
            life: Mutex::new(Life {
                state: State::Starting,
                epoch: 0,
                stopped_by: String::new(),
                admin,
                info: None,
                queues: BTreeMap::new(),
                vectors: Vec::new(),
                looked: Duration::ZERO,
                resets: 0,
                quiet: Quiet::No,
                cmb: None,
                shadow: None,
            }),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Life> {
        // A panic in a clock or a function below leaves a state that the next look at the controller's registers corrects.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless somebody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Life>> {
        match self.life.try_lock() {
            Ok(life) => Some(life),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits a little for the controller: for its admin interrupt, if it has one.
    pub(crate) fn pause(&self, at_most: Duration, vector: Option<&Vector>) {
        match vector {
            Some(vector) => self.clock.pause(at_most, &[vector.as_fd()]),
            None => self.clock.pause(at_most, &[]),
        }
    }

    /// Whether the function's provider says that it goes.
    pub(crate) fn is_leaving(&self) -> bool {
        let Some(fd) = self.function.removal() else {
            return false;
        };
        readable(fd)
    }

    pub(crate) fn namespaces(&self) -> Arc<Vec<Namespace>> {
        let list = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&list)
    }

    pub(crate) fn set_namespaces(&self, namespaces: Vec<Namespace>) {
        *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(namespaces);
        // Queues look at both when this changes.
        self.pins.touch();
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0)
}

impl Life {
    /// The state as an error, unless the controller is ready.
    pub(crate) fn ready(&self) -> Result<(), NvmeError> {
        match &self.state {
            State::Ready => Ok(()),
            State::Starting => Err(NvmeError::Failed {
                reason: "it is not brought up".to_owned(),
            }),
            State::Failed(reason) => Err(NvmeError::Failed {
                reason: reason.clone(),
            }),
            State::Removed => Err(NvmeError::Removed),
            State::ShutDown => Err(NvmeError::ShutDown),
        }
    }

    /// What somebody is told whose command was under way in an earlier epoch.
    pub(crate) fn interrupted(&self) -> NvmeError {
        match &self.state {
            State::Removed => NvmeError::Removed,
            State::ShutDown => NvmeError::ShutDown,
            _ => NvmeError::Reset {
                reason: self.stopped_by.clone(),
            },
        }
    }

    pub(crate) fn info(&self) -> Result<Arc<ControllerInfo>, NvmeError> {
        self.info.clone().ok_or(NvmeError::Failed {
            reason: "it was never identified".to_owned(),
        })
    }

    /// The admin queue's interrupt.
    pub(crate) fn admin_vector(&self) -> Option<Arc<Vector>> {
        self.vectors.first().cloned()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("function", &self.function.name())
            .finish_non_exhaustive()
    }
}
