//! [`Issuer`]: a queue and the completions that nobody has asked for yet, so that a body can submit and wait in any order.

use std::collections::VecDeque;
use std::time::Instant;

use homi_initiator::wait_for_completions;
use homi_queue::{Command, CommandId, Completed, Completion, Data, Queue, QueueLost, Region, Wait};
use homi_spec::Status;

use crate::harness::DEADLINE;

/// A queue, used by a test.
#[derive(Debug)]
pub struct Issuer<Q> {
    queue: Q,
    done: VecDeque<Completed>,
    new: Vec<Completed>,
}

/// Memory with these bytes.
#[must_use]
pub fn memory(bytes: &[u8]) -> Data {
    Data::whole(Region::from_vec(bytes.to_vec()))
}

/// Memory of so many bytes, none of which is zero: what a read does not bring is seen.
#[must_use]
pub fn blank(len: usize) -> Data {
    Data::whole(Region::from_vec(vec![0xee; len]))
}

/// The bytes of an operation's memory.
#[must_use]
pub fn bytes_of(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}

impl<Q: Queue + Wait> Issuer<Q> {
    /// Uses a queue with nothing in flight.
    pub fn new(queue: Q) -> Self {
        Self {
            queue,
            done: VecDeque::new(),
            new: Vec::new(),
        }
    }

    /// The queue.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// The queue, to use it in another way.
    pub fn queue_mut(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// Submits a command if a slot is free, else hands its data back.
    ///
    /// # Errors
    /// The data, if the queue is full.
    pub fn try_submit(&mut self, command: Command, data: Data) -> Result<CommandId, Data> {
        match self.queue.reserve() {
            Ok(slot) => Ok(self.queue.submit(slot, command, data)),
            Err(_) => Err(data),
        }
    }

    /// Submits a command where a slot is known to be free.
    pub fn submit(&mut self, command: Command, data: Data) -> CommandId {
        self.try_submit(command, data)
            .unwrap_or_else(|_| panic!("the queue is full"))
    }

    /// Sends what was submitted.
    ///
    /// # Errors
    /// As the queue.
    pub fn commit(&mut self) -> Result<(), QueueLost> {
        self.queue.commit()
    }

    /// Takes the completions that are there; returns how many wait to be asked for.
    ///
    /// # Errors
    /// As the queue.
    pub fn poll(&mut self) -> Result<usize, QueueLost> {
        self.queue.poll(&mut self.new)?;
        self.done.extend(self.new.drain(..));
        Ok(self.done.len())
    }

    /// Waits for any completion.
    ///
    /// # Errors
    /// As the queue.
    pub fn any(&mut self) -> Result<Completed, QueueLost> {
        self.first(|_| true)
    }

    /// Waits for the completion of this command.
    ///
    /// # Errors
    /// As the queue.
    pub fn completion_of(&mut self, id: CommandId) -> Result<Completed, QueueLost> {
        self.first(|completed| completed.id == id)
    }

    fn first(&mut self, wanted: impl Fn(&Completed) -> bool) -> Result<Completed, QueueLost> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.done.iter().position(&wanted)
                && let Some(completed) = self.done.remove(at)
            {
                return Ok(completed);
            }
            assert!(
                start.elapsed() < DEADLINE,
                "no completion within {DEADLINE:?} of {} in flight",
                self.queue.depth()
            );
            let step = DEADLINE / 60;
            wait_for_completions(&mut self.queue, &mut self.new, Some(step))?;
            self.done.extend(self.new.drain(..));
        }
    }

    /// Takes the completion of this command if it is there already.
    pub fn take(&mut self, id: CommandId) -> Option<Completed> {
        let at = self.done.iter().position(|completed| completed.id == id)?;
        self.done.remove(at)
    }

    /// Executes one command.
    ///
    /// # Errors
    /// As the queue.
    pub fn try_execute(&mut self, command: Command, data: Data) -> Result<(Completion, Data), QueueLost> {
        let id = self.submit(command, data);
        self.queue.commit()?;
        let completed = self.completion_of(id)?;
        Ok((completed.completion, completed.data))
    }

    /// Executes one command on a queue that must not be lost.
    pub fn execute(&mut self, command: Command, data: Data) -> (Completion, Data) {
        self.try_execute(command, data)
            .unwrap_or_else(|lost| panic!("the queue was lost: {}", lost.reason()))
    }

    /// Executes one command and tells its status.
    pub fn status(&mut self, command: Command, data: Data) -> Status {
        self.execute(command, data).0.status
    }

    /// Executes a command that must succeed, and returns its bytes.
    pub fn bytes(&mut self, command: Command, data: Data) -> Vec<u8> {
        let (completion, data) = self.execute(command, data);
        assert!(completion.is_success(), "{command:?}: {}", completion.status);
        bytes_of(&data)
    }

    /// Waits until the queue is lost, and says why.
    pub fn wait_for_the_end(&mut self) -> QueueLost {
        let start = Instant::now();
        loop {
            let step = DEADLINE / 60;
            match wait_for_completions(&mut self.queue, &mut self.new, Some(step)) {
                Ok(_) => self.done.extend(self.new.drain(..)),
                Err(lost) => return lost,
            }
            assert!(start.elapsed() < DEADLINE, "the queue is not lost");
        }
    }
}
