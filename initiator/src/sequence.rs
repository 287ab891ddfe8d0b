//! Running the fixed sequences of `homi_fabric::host` (bring-up, connecting a queue, discovery, shutdown) on a queue, by a thread
//! that waits for each answer.
//!
//! What "waiting" is comes as an argument: sleeping on a socket, or, for a connection in memory, letting the other end do its part.

use std::time::Duration;

use homi_fabric::host::{
    Answer, ConnectError, Discovery, DiscoveryError, DiscoveryRecord, DiscoveryStep, Step, StepData,
};
use homi_fabric::time::Instant;
use homi_queue::{Command, Completed, Completion, Data, LostReason, Queue, QueueLost, Region};

use crate::clock;

/// Why a sequence did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// The connection ended.
    #[error(transparent)]
    Lost(#[from] LostReason),
    /// An answer did not come in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The controller refused, or answered what cannot be meant.
    #[error(transparent)]
    Refused(#[from] ConnectError),
    /// The discovery log could not be read.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
}

impl From<QueueLost> for SequenceError {
    fn from(lost: QueueLost) -> Self {
        Self::Lost(lost.into_parts().0)
    }
}

/// A queue that is a connection to a controller.
pub trait Connection: Queue {
    /// Whether the connection is initialised, so that commands can be submitted.
    fn is_ready(&self) -> bool;
    /// Commands submitted and not completed.
    fn in_flight(&self) -> usize;
}

/// Runs sequences on a queue that nobody else uses meanwhile.
pub struct Runner<'a, Q, W> {
    queue: &'a mut Q,
    limit: Duration,
    wait: W,
    completed: Vec<Completed>,
}

impl<'a, Q: Connection, W: FnMut(&Q, Duration)> Runner<'a, Q, W> {
    /// Each answer may take `limit`. `wait` is called when there is nothing to receive; it returns when there may be
    /// something, at the latest after the time that it is given.
    pub fn new(queue: &'a mut Q, limit: Duration, wait: W) -> Self {
        Self {
            queue,
            limit,
            wait,
            completed: Vec::new(),
        }
    }

    /// Initialises the connection, unless it is already.
    ///
    /// # Errors
    /// [`SequenceError::Lost`] or [`SequenceError::Timeout`].
    pub fn initialize(&mut self) -> Result<(), SequenceError> {
        let until = clock::now() + self.limit;
        self.queue.commit()?;
        while !self.queue.is_ready() {
            self.poll(until)?;
        }
        Ok(())
    }

    /// Runs a sequence whose `next` this is.
    ///
    /// # Errors
    /// [`SequenceError`].
    pub fn run<T>(
        &mut self,
        mut next: impl FnMut(Option<&Answer<'_>>, Instant) -> Step<T>,
    ) -> Result<T, SequenceError> {
        let mut step = next(None, clock::now());
        loop {
            step = match step {
                Step::Submit { command, data } => {
                    let (completion, data) = self.execute(command, data)?;
                    next(
                        Some(&Answer {
                            completion,
                            data: &data,
                        }),
                        clock::now(),
                    )
                }
                Step::WaitUntil(time) => {
                    self.wait_until(time)?;
                    next(None, clock::now())
                }
                Step::Ready(result) => return Ok(result),
                Step::Failed(error) => return Err(error.into()),
            };
        }
    }

    /// Reads the discovery log; also says why entries were left out.
    ///
    /// # Errors
    /// [`SequenceError`].
    pub fn discover(
        &mut self,
        max_transfer: Option<u32>,
    ) -> Result<(Vec<DiscoveryRecord>, Vec<String>), SequenceError> {
        let mut discovery = Discovery::new(max_transfer);
        let mut step = discovery.next(None);
        loop {
            step = match step {
                DiscoveryStep::Submit { command, data } => {
                    let (completion, data) = self.execute(command, data)?;
                    discovery.next(Some(&Answer {
                        completion,
                        data: &data,
                    }))
                }
                DiscoveryStep::Ready { records, skipped } => return Ok((records, skipped)),
                DiscoveryStep::Failed(error) => return Err(error.into()),
            };
        }
    }

    /// Executes one command and waits for its answer; returns what it brought.
    ///
    /// # Errors
    /// [`SequenceError::Lost`] or [`SequenceError::Timeout`].
    pub fn execute(
        &mut self,
        command: Command,
        data: StepData,
    ) -> Result<(Completion, Vec<u8>), SequenceError> {
        let until = clock::now() + self.limit;
        let incoming = matches!(data, StepData::In(_));
        let data = step_memory(data);
        let slot = loop {
            match self.queue.reserve() {
                Ok(slot) => break slot,
                Err(_) => self.poll(until)?,
            }
        };
        let id = self.queue.submit(slot, command, data);
        self.queue.commit()?;
        loop {
            if let Some(at) = self.completed.iter().position(|completed| completed.id == id) {
                let Completed { completion, data, .. } = self.completed.swap_remove(at);
                let bytes = if incoming { bytes_of(data) } else { Vec::new() };
                return Ok((completion, bytes));
            }
            self.poll(until)?;
        }
    }

    fn poll(&mut self, until: Instant) -> Result<(), SequenceError> {
        if self.queue.poll(&mut self.completed)? > 0 || self.queue.is_ready() && self.queue.in_flight() == 0 {
            return Ok(());
        }
        let left = until.saturating_since(clock::now());
        if left.is_zero() {
            return Err(SequenceError::Timeout(self.limit));
        }
        (self.wait)(self.queue, left);
        Ok(())
    }

    fn wait_until(&mut self, time: Instant) -> Result<(), SequenceError> {
        loop {
            self.queue.poll(&mut self.completed)?;
            let left = time.saturating_since(clock::now());
            if left.is_zero() {
                return Ok(());
            }
            (self.wait)(self.queue, left);
        }
    }
}

/// The memory for a step's data.
pub(crate) fn step_memory(data: StepData) -> Data {
    match data {
        StepData::None => Data::None,
        StepData::Out(bytes) => Data::whole(Region::from_vec(bytes)),
        StepData::In(len) => Data::whole(Region::from_vec(vec![0; len])),
    }
}

/// The bytes that a command brought.
pub(crate) fn bytes_of(data: Data) -> Vec<u8> {
    match data {
        Data::One(segment) if segment.start() == 0 && segment.len() == segment.region().len() => {
            let region = segment.region().clone();
            drop(segment);
            region.into_vec()
        }
        data => {
            let mut bytes = vec![0; data.len()];
            // In bounds by the data's own length.
            if let Err(error) = data.read(0, &mut bytes) {
                tracing::error!(%error, "memory shorter than it says");
            }
            bytes
        }
    }
}
