//! [`Blocking`]: one command at a time, waiting for each; and [`wait_for_completions`], the wait itself.
//!
//! A wait polls for a moment, since an answer from nearby is there sooner than a sleeping thread could be woken, and then
//! sleeps in the kernel until the queue's descriptor is readable.

use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{Buffer, Command, Completed, Completion, Data, Queue, QueueLost, Region, Wait};
use homi_reactor::socket::{self, Interest};
use homi_spec::Status;

use crate::device::{AnyQueue, Device};
use crate::error::Error;
use crate::options::QueueOptions;

/// How long a wait polls before it sleeps: a few round trips on one machine, far below what a wake-up from a longer
/// sleep costs in comparison.
const SPIN: Duration = Duration::from_micros(60);

/// Longest sleep between two polls, so that a queue can notice commands that take too long.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// Bytes of one range of a Dataset Management command (NVM Command Set 1.0 §3.2.3).
const RANGE_BYTES: usize = 16;

/// Waits until [`Queue::poll`] finds at least one completion, or until `limit` has passed, and returns how many there were (0 only
/// after the limit). Everything submitted must have been committed.
///
/// # Errors
/// [`QueueLost`] from the queue; a failing `poll(2)` on its descriptor is one too.
pub fn wait_for_completions<Q: Queue + Wait>(
    queue: &mut Q,
    completed: &mut impl Extend<Completed>,
    limit: Option<Duration>,
) -> Result<usize, QueueLost> {
    let count = queue.poll(completed)?;
    if count > 0 {
        return Ok(count);
    }
    let start = Instant::now();
    let mut spinning = true;
    loop {
        let elapsed = start.elapsed();
        if limit.is_some_and(|limit| elapsed >= limit) {
            return Ok(0);
        }
        if spinning && elapsed >= SPIN {
            spinning = false;
        }
        if spinning {
            // With fewer cores than busy threads the peer may need this one.
            thread::yield_now();
        } else {
            let left = limit.map_or(LONGEST_SLEEP, |limit| (limit - elapsed).min(LONGEST_SLEEP));
            sleep_on(queue, left);
        }
        let count = queue.poll(completed)?;
        if count > 0 {
            return Ok(count);
        }
    }
}

/// Sleeps until the queue may have something to do, at most `limit`.
pub(crate) fn sleep_on<Q: Wait>(queue: &Q, limit: Duration) {
    let Some(descriptor) = queue.wait_descriptor() else {
        // Completions come inside `poll`, which has nothing only while something else holds the executor up.
        thread::yield_now();
        return;
    };
    let interest = Interest {
        descriptor,
        readable: true,
        writable: queue.waits_for_room(),
    };
    if let Err(error) = socket::wait_any(&[interest], Some(limit)) {
        // Only a lack of kernel memory is possible here; polling goes on at the pace of the limit.
        tracing::warn!(%error, "cannot sleep on a queue's descriptor");
        thread::sleep(limit.min(Duration::from_millis(10)));
    }
}

/// A queue used for one command at a time. Buffers go into an operation and come back from it; nothing is copied.
///
/// Over RDMA a buffer's memory is registered for the operation and given up again for the buffer to come back, which costs more than the
/// operation of a nearby target: [`Blocking::execute`] with [`Data`] of a [`Region`] registers once.
#[derive(Debug)]
pub struct Blocking<Q> {
    queue: Q,
    nsid: u32,
    block_size: u32,
    completed: Vec<Completed>,
}

impl Blocking<AnyQueue> {
    /// A queue of its own to a device.
    ///
    /// # Errors
    /// [`Error`], as for a connection.
    pub fn open(device: &Device) -> Result<Self, Error> {
        Ok(Self::new(
            device.queue(QueueOptions::depth(1))?,
            device.nsid(),
            device.block_size(),
        ))
    }
}

impl<Q: Queue + Wait> Blocking<Q> {
    /// Uses a queue for the namespace with this id and block size (in bytes). No command may be in flight.
    #[must_use]
    pub fn new(queue: Q, nsid: u32, block_size: u32) -> Self {
        Self {
            queue,
            nsid,
            block_size: block_size.max(1),
            completed: Vec::with_capacity(1),
        }
    }

    /// The queue, with no command in flight.
    #[must_use]
    pub fn into_inner(self) -> Q {
        self.queue
    }

    /// The queue, to look at its counters.
    #[must_use]
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Executes one command and waits for it. A status other than success is not an error here. The memory comes back in any
    /// case: with the completion, or with the undelivered commands of the [`QueueLost`].
    ///
    /// # Errors
    /// [`QueueLost`] if the path died before the answer.
    pub fn execute(&mut self, command: Command, data: Data) -> Result<(Completion, Data), QueueLost> {
        let slot = loop {
            match self.queue.reserve() {
                Ok(slot) => break slot,
                // A queue whose depth is used up by others' commands cannot be here; one that is lost says so in `poll`.
                Err(_) => {
                    wait_for_completions(&mut self.queue, &mut self.completed, None)?;
                    self.completed.clear();
                }
            }
        };
        let id = self.queue.submit(slot, command, data);
        self.queue.commit()?;
        loop {
            wait_for_completions(&mut self.queue, &mut self.completed, None)?;
            let found = self.completed.iter().position(|completed| completed.id == id);
            if let Some(at) = found {
                let Completed { completion, data, .. } = self.completed.swap_remove(at);
                self.completed.clear();
                return Ok((completion, data));
            }
            self.completed.clear();
        }
    }

    /// Reads whole blocks from `lba` on into the buffer, which must be a whole number of blocks.
    ///
    /// # Errors
    /// [`Error::Range`] for a length that is no number of blocks, [`Error::Command`] if the device says no, or a lost queue.
    pub fn read(&mut self, lba: u64, buffer: Buffer) -> Result<Buffer, Error> {
        let blocks = self.blocks_of(buffer.len())?;
        let command = Command::read(self.nsid, lba, blocks);
        self.transfer("read", command, buffer)
    }

    /// Writes whole blocks from `lba` on from the buffer, which must be a whole number of blocks.
    ///
    /// # Errors
    /// As [`Blocking::read`].
    pub fn write(&mut self, lba: u64, buffer: Buffer) -> Result<Buffer, Error> {
        let blocks = self.blocks_of(buffer.len())?;
        let command = Command::write(self.nsid, lba, blocks);
        self.transfer("write", command, buffer)
    }

    /// Compares whole blocks from `lba` on with the buffer.
    ///
    /// # Errors
    /// [`Error::Miscompare`] if they differ; otherwise as [`Blocking::read`].
    pub fn compare(&mut self, lba: u64, buffer: Buffer) -> Result<Buffer, Error> {
        let blocks = self.blocks_of(buffer.len())?;
        let command = Command::compare(self.nsid, lba, blocks);
        match self.transfer("compare", command, buffer) {
            Err(Error::Command { status, .. }) if status.is(Status::COMPARE_FAILURE) => {
                Err(Error::Miscompare { lba })
            }
            other => other,
        }
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// [`Error::Command`] if the device says no, or a lost queue.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.without_data("flush", Command::flush(self.nsid))
    }

    /// Makes `blocks` (1 to 65536) blocks from `lba` on read as zeroes; with `deallocate` their storage may be given back.
    ///
    /// # Errors
    /// [`Error::Range`] for another number of blocks; otherwise as [`Blocking::flush`].
    pub fn write_zeroes(&mut self, lba: u64, blocks: u32, deallocate: bool) -> Result<(), Error> {
        if !(1..=65536).contains(&blocks) {
            return Err(Error::Range(format!(
                "{blocks} blocks cannot be zeroed at once: use 1 to 65536"
            )));
        }
        self.without_data(
            "write zeroes",
            Command::write_zeroes(self.nsid, lba, blocks, deallocate),
        )
    }

    /// Gives the storage of up to 256 ranges (first block, number of blocks) back.
    ///
    /// # Errors
    /// [`Error::Range`] for no or too many ranges; otherwise as [`Blocking::flush`].
    pub fn deallocate(&mut self, ranges: &[(u64, u32)]) -> Result<(), Error> {
        let count = u32::try_from(ranges.len())
            .ok()
            .filter(|count| (1..=256).contains(count));
        let count = count.ok_or_else(|| {
            Error::Range(format!(
                "{} ranges cannot be deallocated at once: use 1 to 256",
                ranges.len()
            ))
        })?;
        let mut list = Vec::with_capacity(ranges.len() * RANGE_BYTES);
        for (lba, blocks) in ranges {
            // Context attributes, length in blocks, starting LBA (NVM Command Set 1.0 §3.2.3).
            list.extend_from_slice(&0_u32.to_le_bytes());
            list.extend_from_slice(&blocks.to_le_bytes());
            list.extend_from_slice(&lba.to_le_bytes());
        }
        let data = Data::whole(Region::from_vec(list));
        let (completion, _) = self.execute(Command::deallocate(self.nsid, count), data)?;
        check("deallocate", &completion)
    }

    fn transfer(&mut self, what: &str, command: Command, buffer: Buffer) -> Result<Buffer, Error> {
        let (completion, data) = self.execute(command, buffer.into_data())?;
        check(what, &completion)?;
        take_back(&mut self.queue, data)
    }

    fn without_data(&mut self, what: &str, command: Command) -> Result<(), Error> {
        let (completion, _) = self.execute(command, Data::None)?;
        check(what, &completion)
    }

    fn blocks_of(&self, len: usize) -> Result<u32, Error> {
        let size = self.block_size as usize;
        if len == 0 || !len.is_multiple_of(size) {
            return Err(Error::Range(format!(
                "a buffer of {len} bytes is not a whole number of {size}-byte blocks"
            )));
        }
        let blocks = u32::try_from(len / size).ok().filter(|blocks| *blocks <= 65536);
        blocks.ok_or_else(|| {
            Error::Range(format!(
                "a buffer of {len} bytes is more than the 65536 blocks of one command: split it"
            ))
        })
    }
}

/// An operation's memory as a buffer again: the same where the queue gives it up, a copy where it cannot.
pub(crate) fn take_back(queue: &mut impl Queue, data: Data) -> Result<Buffer, Error> {
    match queue.take_back(data) {
        Ok(buffer) => Ok(buffer),
        Err(data) => {
            let mut bytes = vec![0; data.len()];
            data.read(0, &mut bytes)?;
            Ok(Buffer::from_vec(bytes))
        }
    }
}

/// Success, or the command's failure as an error.
pub(crate) fn check(command: &str, completion: &Completion) -> Result<(), Error> {
    if completion.is_success() {
        Ok(())
    } else {
        Err(Error::Command {
            command: command.to_owned(),
            status: completion.status,
        })
    }
}
