//! Work for a queue: blocks that are written, read back and compared, with every outcome accounted for.

use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::Failure;
use homi_nvme::{IoQueue, Namespace};
use homi_queue::{Command, Completed, Data, Queue, QueueLost, Region, Wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a batch may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Transfers in bytes, whose blocks are taken one after the other. The longest needs a list of PRPs.
const SIZES: [usize; 5] = [4096, 12288, 65536, 8192, 131_072];

/// The bytes that belong at an offset of a namespace: no two places and no two seeds look alike.
pub(crate) fn pattern(seed: u64, offset: u64, to: &mut [u8]) {
    for (index, word) in to.chunks_mut(8).enumerate() {
        let mut value = seed ^ (offset + 8 * index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bytes = (value ^ (value >> 27)).to_le_bytes();
        word.copy_from_slice(bytes.get(..word.len()).unwrap_or_default());
    }
}

/// Outcomes of commands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) submitted: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) undelivered: u64,
}

/// A part of a namespace that is worked on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) nsid: u32,
    pub(crate) block: usize,
    /// First byte.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Place {
    pub(crate) fn of(namespace: &Namespace, start: u64, len: u64) -> Self {
        Self {
            nsid: namespace.nsid(),
            block: namespace.block_size() as usize,
            start,
            len: len.min(namespace.bytes() - start),
        }
    }

    /// Offsets and lengths of the transfers that cover it.
    pub(crate) fn parts(self) -> impl Iterator<Item = (u64, usize)> {
        let mut at = self.start;
        let end = self.start + self.len;
        let mut sizes = SIZES.iter().cycle();
        std::iter::from_fn(move || {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let size = (*sizes.next()?).max(self.block).min(left);
            (left > 0).then(|| {
                let part = (at, size);
                at += size as u64;
                part
            })
        })
    }

    fn command(self, write: bool, offset: u64, len: usize) -> Result<Command, Failure> {
        let lba = offset / self.block as u64;
        let blocks = u32::try_from(len / self.block)?;
        Ok(if write {
            Command::write(self.nsid, lba, blocks)
        } else {
            Command::read(self.nsid, lba, blocks)
        })
    }
}

/// Waits until a queue has something.
fn sleep(queue: &IoQueue) -> Result<(), Failure> {
    match queue.wait_descriptor() {
        Some(descriptor) => {
            let mut wait = [PollFd::new(descriptor, PollFlags::POLLIN)];
            poll(&mut wait, PollTimeout::from(1000_u16))?;
        }
        None => std::thread::yield_now(),
    }
    Ok(())
}

/// Collects until nothing is in flight. The data of each success goes to `seen`.
fn drain(
    queue: &mut IoQueue,
    outcomes: &mut Outcomes,
    mut left: usize,
    mut seen: impl FnMut(Completed) -> Result<(), Failure>,
) -> Result<Option<QueueLost>, Failure> {
    let start = Instant::now();
    let mut completed = Vec::new();
    while left > 0 {
        match queue.poll(&mut completed) {
            Ok(0) => sleep(queue)?,
            Ok(_) => {}
            Err(lost) => {
                // What was collected before the loss counts too.
                for done in completed.drain(..) {
                    left -= 1;
                    count(outcomes, &done);
                    seen(done)?;
                }
                let undelivered = lost.undelivered().len();
                outcomes.undelivered += undelivered as u64;
                ensure!(
                    undelivered == left,
                    "{undelivered} commands are undelivered, {left} have no outcome"
                );
                return Ok(Some(lost));
            }
        }
        for done in completed.drain(..) {
            left -= 1;
            count(outcomes, &done);
            seen(done)?;
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "after {PATIENCE:?} {left} commands have no outcome"
        );
    }
    Ok(None)
}

fn count(outcomes: &mut Outcomes, done: &Completed) {
    if done.completion.status.is_success() {
        outcomes.succeeded += 1;
    } else {
        outcomes.failed += 1;
    }
}

/// Writes or reads a place once, as deep as the queue and the memory allow. A place that fits into the memory lies in it as on the drive; of
/// others each batch begins at its start. `each` gets the offset, length and place in memory of each
/// transfer: before a write, after a read.
pub(crate) fn pass(
    queue: &mut IoQueue,
    place: Place,
    write: bool,
    memory: &Region,
    outcomes: &mut Outcomes,
    mut each: impl FnMut(u64, usize, usize) -> Result<(), Failure>,
) -> Result<Option<QueueLost>, Failure> {
    let parts: Vec<(u64, usize)> = place.parts().collect();
    let mut rest = parts.as_slice();
    let fits = place.len <= memory.len() as u64;
    while !rest.is_empty() {
        let mut used = 0;
        let mut batch = Vec::new();
        while let Some((offset, len)) = rest.first().copied() {
            if used + len > memory.len() {
                break;
            }
            let Ok(slot) = queue.reserve() else { break };
            let at = if fits {
                usize::try_from(offset - place.start)?
            } else {
                used
            };
            if write {
                each(offset, len, at)?;
            }
            let data = Data::One(memory.segment(at..at + len)?);
            queue.submit(slot, place.command(write, offset, len)?, data);
            outcomes.submitted += 1;
            batch.push((offset, len, at));
            used += len;
            rest = rest.get(1..).unwrap_or_default();
        }
        ensure!(!batch.is_empty(), "no transfer fits into the memory");
        if let Err(lost) = queue.commit() {
            let undelivered = lost.undelivered().len();
            outcomes.undelivered += undelivered as u64;
            ensure!(
                undelivered == batch.len(),
                "{undelivered} of {} commands are undelivered",
                batch.len()
            );
            return Ok(Some(lost));
        }
        let failed = outcomes.failed;
        if let Some(lost) = drain(queue, outcomes, batch.len(), |_| Ok(()))? {
            return Ok(Some(lost));
        }
        ensure!(outcomes.failed == failed, "commands fail: {outcomes:?}");
        if !write {
            for (offset, len, at) in batch {
                each(offset, len, at)?;
            }
        }
    }
    Ok(None)
}

/// Writes a place and reads it back, and compares every byte.
pub(crate) fn verify(
    queue: &mut IoQueue,
    place: Place,
    memory: &Region,
    seed: u64,
) -> Result<Outcomes, Failure> {
    let mut outcomes = Outcomes::default();
    let mut bytes = vec![0; 256 << 10];
    let lost = pass(queue, place, true, memory, &mut outcomes, |offset, len, at| {
        let bytes = bytes
            .get_mut(..len)
            .ok_or_else(|| Failure::new("a transfer is too long"))?;
        pattern(seed, offset, bytes);
        Ok(memory.write(at, bytes)?)
    })?;
    if let Some(lost) = lost {
        return Err(lost.into());
    }
    // What was written must not be what is seen.
    memory.fill(0, memory.len(), 0xee)?;
    let (mut expected, mut found) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let lost = pass(queue, place, false, memory, &mut outcomes, |offset, len, at| {
        let (Some(expected), Some(found)) = (expected.get_mut(..len), found.get_mut(..len)) else {
            return Err(Failure::new("a transfer is too long"));
        };
        pattern(seed, offset, expected);
        memory.read(at, found)?;
        ensure!(
            expected == found,
            "namespace {}: {len} bytes at {offset} are not what was written",
            place.nsid
        );
        Ok(())
    })?;
    match lost {
        None => Ok(outcomes),
        Some(lost) => Err(lost.into()),
    }
}
