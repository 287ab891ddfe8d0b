//! Admin commands that somebody waits for.

use std::time::Duration;

use homi_queue::{CommandId, Completion};
use homi_spec::Sqe;
use homi_spec::command::AdminOpcode;

use crate::admin::{Memory, Purpose};
use crate::error::NvmeError;
use crate::life::{Cause, Inner, Life};

/// The data of an admin command.
#[derive(Debug, Default)]
pub enum AdminData<'a> {
    /// None.
    #[default]
    None,
    /// Sent with the command.
    ToController(&'a [u8]),
    /// Filled by the command. Bytes that the controller does not write are zero.
    FromController(&'a mut [u8]),
}

impl AdminData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::ToController(bytes) => bytes.len(),
            Self::FromController(bytes) => bytes.len(),
        }
    }
}

/// Who executes: somebody who holds the controller's lock and keeps it, or somebody who takes it as needed.
pub(crate) enum Via<'a> {
    Locked(&'a mut Life),
    Unlocked,
}

/// How long to wait at first, and at most, between two looks at a controller that does not interrupt.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// The same with an interrupt, which several may wait for: who takes it leaves the others to their time.
const LONGEST_SLEEP: Duration = Duration::from_millis(10);

/// Pauses that grow.
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) const fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST_PAUSE);
        now
    }
}

impl Inner {
    /// Executes an admin command and returns its completion, whatever its status.
    pub(crate) fn transact(
        &self,
        via: &mut Via<'_>,
        mut sqe: Sqe,
        mut data: AdminData<'_>,
    ) -> Result<Completion, NvmeError> {
        let len = data.len();
        let memory = if len > 0 {
            let memory = Memory::allocate(&self.space, self.page, len)?;
            if let AdminData::ToController(bytes) = data {
                memory.region.write(0, bytes)?;
            }
            memory.point(&mut sqe, len)?;
            Some(memory)
        } else {
            None
        };
        let (completion, memory) = self.execute(via, sqe, memory)?;
        if let (AdminData::FromController(bytes), Some(memory)) = (&mut data, &memory) {
            memory.region.read(0, bytes)?;
        }
        Ok(completion)
    }

    /// The same; an error status is an error.
    pub(crate) fn command(
        &self,
        via: &mut Via<'_>,
        sqe: Sqe,
        data: AdminData<'_>,
    ) -> Result<Completion, NvmeError> {
        let completion = self.transact(via, sqe, data)?;
        if completion.is_success() {
            return Ok(completion);
        }
        Err(NvmeError::Status {
            command: AdminOpcode(sqe.opcode),
            status: completion.status,
        })
    }

    /// Executes a command whose data pointer is set.
    pub(crate) fn execute(
        &self,
        via: &mut Via<'_>,
        sqe: Sqe,
        memory: Option<Memory>,
    ) -> Result<(Completion, Option<Memory>), NvmeError> {
        match via {
            Via::Locked(life) => self.execute_locked(life, sqe, memory),
            Via::Unlocked => self.execute_unlocked(sqe, memory),
        }
    }

    /// While the controller is brought up: nobody else is in the way, and who calls deals with failures.
    fn execute_locked(
        &self,
        life: &mut Life,
        sqe: Sqe,
        memory: Option<Memory>,
    ) -> Result<(Completion, Option<Memory>), NvmeError> {
        let start = self.clock.now();
        let id = life
            .admin
            .submit(&self.bar, start, Purpose::Call, sqe, memory)
            .map_err(|_| NvmeError::Protocol("the admin queue of a new controller is full".to_owned()))?;
        let mut pauses = Pauses::new();
        loop {
            let csts = self.bar.csts()?;
            if csts.fatal() {
                return Err(NvmeError::Fatal);
            }
            life.admin.process(&self.bar)?;
            if let Some(done) = life.admin.finished(id) {
                return Ok(done);
            }
            if self.clock.now().saturating_sub(start) >= self.options.admin_timeout {
                return Err(NvmeError::Timeout {
                    what: "answer an admin command",
                    after: self.options.admin_timeout,
                });
            }
            self.pause(pauses.next(), None);
        }
    }

    fn execute_unlocked(
        &self,
        sqe: Sqe,
        mut memory: Option<Memory>,
    ) -> Result<(Completion, Option<Memory>), NvmeError> {
        let start = self.clock.now();
        let mut submitted: Option<(CommandId, u64)> = None;
        let mut pauses = Pauses::new();
        loop {
            let mut life = self.lock();
            match submitted {
                Some((id, epoch)) => {
                    if life.epoch == epoch {
                        self.attend(&mut life);
                    }
                    if life.epoch != epoch {
                        return Err(life.interrupted());
                    }
                    if let Some(done) = life.admin.finished(id) {
                        return Ok(done);
                    }
                    if self.clock.now().saturating_sub(start) >= self.options.admin_timeout {
                        let after = self.options.admin_timeout;
                        self.recover(&mut life, &Cause::Admin { after });
                        return Err(NvmeError::Timeout {
                            what: "answer an admin command",
                            after,
                        });
                    }
                }
                None => {
                    life.ready()?;
                    let now = self.clock.now();
                    match life
                        .admin
                        .submit(&self.bar, now, Purpose::Call, sqe, memory.take())
                    {
                        Ok(id) => {
                            submitted = Some((id, life.epoch));
                            // A controller that answers within the doorbell's write is not waited for.
                            continue;
                        }
                        Err(back) => memory = back,
                    }
                    self.attend(&mut life);
                    if now.saturating_sub(start) >= self.options.admin_timeout {
                        return Err(NvmeError::Timeout {
                            what: "make room in its admin queue",
                            after: self.options.admin_timeout,
                        });
                    }
                }
            }
            let vector = life.admin_vector();
            drop(life);
            match vector {
                Some(vector) => self.pause(LONGEST_SLEEP, Some(&vector)),
                None => self.pause(pauses.next(), None),
            }
        }
    }
}
