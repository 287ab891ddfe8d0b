//! [`Disk`]: bytes by offset, for callers that do not think in blocks.
//!
//! Transfers are split at the device's largest and kept in flight several at a time. What does not begin or end at a block's edge is
//! read, changed and written back; that is not atomic against other writers of the same block. Slices are copied once between the
//! caller's memory and the operations' (an operation must own its memory); [`Disk::read_buffer`] and
//! [`Disk::write_buffer`] take the memory itself and copy nothing.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use homi_queue::{Buffer, Command, Completed, Data, Queue, Region, Segment, Wait};

use crate::blocking::{check, take_back, wait_for_completions};
use crate::device::{AnyQueue, Device};
use crate::error::Error;
use crate::initiator::Initiator;
use crate::options::QueueOptions;
use crate::slices;
use crate::uri::Uri;

/// Bytes per command at most: large enough that the cost of a command does not show, small enough that several in
/// flight keep both directions busy.
const CHUNK: usize = 256 << 10;

/// Alignment of memory for writes, as drives and direct I/O like it.
const ALIGNMENT: usize = 4096;

/// Commands in flight unless the caller chooses.
const DEPTH: u16 = 16;

/// A device as bytes. One thread at a time uses it; several disks on one device are fine.
#[derive(Debug)]
pub struct Disk<Q = AnyQueue> {
    queue: Q,
    nsid: u32,
    block_size: usize,
    len: u64,
    /// Bytes per command: a whole number of blocks.
    chunk: usize,
    completed: Vec<Completed>,
    /// What the command in each slot is for.
    tags: Vec<Option<Tag>>,
    /// Memory of `chunk` bytes for writes, kept for the next one.
    spare: Vec<Region>,
}

/// Where a command's bytes belong: offset on the device, length.
#[derive(Debug, Clone, Copy)]
struct Tag {
    at: u64,
    len: usize,
    sequence: u64,
}

/// A series of commands.
trait Job {
    /// The next command with its memory, or `None` if there is none at present (or ever).
    fn next(&mut self, spare: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error>;
    /// A command succeeded.
    fn done(&mut self, tag: Tag, data: Data, spare: &mut Vec<Region>) -> Result<(), Error>;
    /// For error messages.
    fn name(&self) -> &'static str;
}

impl Disk<AnyQueue> {
    /// Opens what a URI names, with a queue of its own.
    ///
    /// # Errors
    /// As [`Initiator::open`].
    pub fn open(initiator: &Initiator, uri: &Uri) -> Result<Self, Error> {
        Self::on(&initiator.open(uri)?, DEPTH)
    }

    /// A queue of its own to a device, with up to `depth` commands in flight.
    ///
    /// # Errors
    /// [`Error`], as for a connection.
    pub fn on(device: &Device, depth: u16) -> Result<Self, Error> {
        let queue = device.queue(QueueOptions::depth(depth))?;
        Ok(Self::new(
            queue,
            device.nsid(),
            device.block_size(),
            device.blocks(),
            device.max_transfer(),
        ))
    }
}

impl<Q: Queue + Wait> Disk<Q> {
    /// Uses a queue for a namespace of `blocks` blocks of `block_size` bytes, with commands of at most `max_transfer` bytes.
    /// No command may be in flight.
    #[must_use]
    pub fn new(queue: Q, nsid: u32, block_size: u32, blocks: u64, max_transfer: u32) -> Self {
        let block = (block_size as usize).max(1);
        let most = CHUNK.min(max_transfer as usize).min(block.saturating_mul(65536));
        let chunk = (most / block).max(1) * block;
        let depth = usize::from(queue.depth());
        Self {
            queue,
            nsid,
            block_size: block,
            len: blocks.saturating_mul(block as u64),
            chunk,
            completed: Vec::with_capacity(depth),
            tags: vec![None; depth.next_power_of_two()],
            spare: Vec::new(),
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a block: offsets and lengths that are multiples of it cost no extra reads.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The queue, to look at its counters.
    #[must_use]
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Reads `to.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Range`] past the end, [`Error::Command`] if the device says no, or a lost queue.
    pub fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        self.check_range(offset, to.len() as u64)?;
        if to.is_empty() {
            return Ok(());
        }
        let block = self.block_size as u64;
        let end = offset + to.len() as u64;
        let mut job = ReadSlice {
            plan: self.plan(offset / block * block, end.div_ceil(block) * block),
            offset,
            to,
        };
        self.run(&mut job)
    }

    /// Writes `from` at `offset`. Not durable before [`Disk::flush`].
    ///
    /// # Errors
    /// [`Error::Range`] past the end, [`Error::Command`] if the device says no, or a lost queue.
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.check_range(offset, from.len() as u64)?;
        if from.is_empty() {
            return Ok(());
        }
        let block = self.block_size as u64;
        let end = offset + from.len() as u64;
        let (first_whole, last_whole) = (offset.div_ceil(block) * block, end / block * block);
        if first_whole > last_whole {
            // Inside one block.
            return self.change_block(last_whole, offset, from);
        }
        let (head, rest) = from.split_at(split(first_whole - offset));
        let (middle, tail) = rest.split_at(split(last_whole - first_whole));
        if !head.is_empty() {
            self.change_block(first_whole - block, offset, head)?;
        }
        if !middle.is_empty() {
            let mut job = WriteSlice {
                plan: self.plan(first_whole, last_whole),
                offset: first_whole,
                from: middle,
            };
            self.run(&mut job)?;
        }
        if !tail.is_empty() {
            self.change_block(last_whole, last_whole, tail)?;
        }
        Ok(())
    }

    /// Reads whole blocks from `offset` on straight into the buffer's memory. Both must be multiples of the block size.
    ///
    /// # Errors
    /// [`Error::Range`] for an odd offset or length or past the end; otherwise as [`Disk::read_at`].
    pub fn read_buffer(&mut self, offset: u64, buffer: Buffer) -> Result<Buffer, Error> {
        self.move_buffer(offset, buffer, false)
    }

    /// Writes whole blocks at `offset` straight from the buffer's memory. Both must be multiples of the block size.
    ///
    /// # Errors
    /// As [`Disk::read_buffer`].
    pub fn write_buffer(&mut self, offset: u64, buffer: Buffer) -> Result<Buffer, Error> {
        self.move_buffer(offset, buffer, true)
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// [`Error::Command`] if the device says no, or a lost queue.
    pub fn flush(&mut self) -> Result<(), Error> {
        let mut job = Once(Some(Command::flush(self.nsid)));
        self.run(&mut job)
    }

    /// Copies from a reader to `offset` (a multiple of the block size) until the reader ends, and returns how many bytes that were.
    /// Reading goes on while writes are in flight. A last part of a block is read, changed and written back.
    ///
    /// # Errors
    /// [`Error::Io`] from the reader, [`Error::Range`] if it has more than fits, [`Error::Command`] or a lost queue.
    pub fn copy_in(&mut self, from: &mut impl Read, offset: u64) -> Result<u64, Error> {
        let block = self.block_size;
        self.check_aligned(offset)?;
        self.check_range(offset, 0)?;
        let mut job = CopyIn {
            nsid: self.nsid,
            block,
            chunk: self.chunk,
            from,
            at: offset,
            end: self.len,
            tail: Vec::new(),
            scratch: Vec::new(),
            ended: false,
            left_to_make: usize::from(self.queue.depth()),
        };
        let result = self.run(&mut job);
        let CopyIn { at, tail, .. } = job;
        result?;
        if !tail.is_empty() {
            self.change_block(at, at, &tail)?;
        }
        Ok(at - offset + tail.len() as u64)
    }

    /// Copies `len` bytes from `offset` (a multiple of the block size) on to a writer, in order. Reads ahead while it writes.
    ///
    /// # Errors
    /// [`Error::Io`] from the writer, [`Error::Range`] past the end, [`Error::Command`] or a lost queue.
    pub fn copy_out(&mut self, offset: u64, len: u64, to: &mut impl Write) -> Result<(), Error> {
        self.check_aligned(offset)?;
        self.check_range(offset, len)?;
        let block = self.block_size as u64;
        let mut job = CopyOut {
            plan: self.plan(offset, (offset + len).div_ceil(block) * block),
            to,
            end: offset + len,
            arrived: VecDeque::new(),
            written: 0,
            window: u64::from(self.queue.depth()),
            scratch: vec![0; 64 << 10],
        };
        self.run(&mut job)
    }

    /// Changes part of one block: `bytes` at `offset`, inside the block that begins at `start`.
    fn change_block(&mut self, start: u64, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut block = vec![0; self.block_size];
        self.read_at(start, &mut block)?;
        let at = split(offset - start);
        if let Some(part) = block.get_mut(at..at + bytes.len()) {
            part.copy_from_slice(bytes);
        }
        let end = start + self.block_size as u64;
        let mut job = WriteSlice {
            plan: self.plan(start, end),
            offset: start,
            from: &block,
        };
        self.run(&mut job)
    }

    fn move_buffer(&mut self, offset: u64, buffer: Buffer, write: bool) -> Result<Buffer, Error> {
        self.check_aligned(offset)?;
        self.check_aligned(buffer.len() as u64)?;
        self.check_range(offset, buffer.len() as u64)?;
        let memory = match buffer.into_data() {
            Data::One(segment) => segment,
            _ => return Err(Error::Range("a buffer that is not one range".to_owned())),
        };
        let plan = self.plan(offset, offset + memory.len() as u64);
        let mut job = MoveSegment {
            plan,
            offset,
            memory,
            write,
        };
        let result = self.run(&mut job);
        let MoveSegment { memory, .. } = job;
        result?;
        take_back(&mut self.queue, Data::One(memory))
    }

    /// Runs a job until it has no more commands and none is in flight. After a failure nothing new is started, what is in flight
    /// is waited for (it uses memory), and the first failure is returned.
    fn run(&mut self, job: &mut impl Job) -> Result<(), Error> {
        let mut in_flight = 0_usize;
        let mut failure = None;
        loop {
            let (mut started, mut exhausted) = (false, false);
            while failure.is_none() {
                let Ok(slot) = self.queue.reserve() else { break };
                match job.next(&mut self.spare) {
                    Ok(Some((command, data, tag))) => {
                        let id = self.queue.submit(slot, command, data);
                        if let Some(entry) = self.tags.get_mut(id.slot_index(self.queue.depth())) {
                            *entry = Some(tag);
                        }
                        in_flight += 1;
                        started = true;
                    }
                    Ok(None) => {
                        self.queue.release(slot);
                        exhausted = true;
                        break;
                    }
                    Err(error) => {
                        self.queue.release(slot);
                        failure = Some(error);
                    }
                }
            }
            if started {
                self.queue.commit()?;
            }
            if in_flight == 0 {
                if let Some(failure) = failure {
                    return Err(failure);
                }
                if exhausted {
                    return Ok(());
                }
                // No slot, though none of this disk's commands is in flight.
                self.queue.poll(&mut self.completed)?;
                return Err(Error::Unsupported(
                    "every slot of the queue is reserved elsewhere: give the disk a queue of its own"
                        .to_owned(),
                ));
            }
            wait_for_completions(&mut self.queue, &mut self.completed, None)?;
            for Completed { id, completion, data } in self.completed.drain(..) {
                in_flight -= 1;
                let tag = self
                    .tags
                    .get_mut(id.slot_index(self.queue.depth()))
                    .and_then(Option::take);
                let outcome = check(job.name(), &completion).and_then(|()| match tag {
                    Some(tag) => job.done(tag, data, &mut self.spare),
                    None => Ok(()),
                });
                if let Err(error) = outcome {
                    failure.get_or_insert(error);
                }
            }
        }
    }

    fn plan(&self, start: u64, end: u64) -> Plan {
        Plan {
            nsid: self.nsid,
            block: self.block_size as u64,
            chunk: self.chunk,
            at: start,
            end,
            sequence: 0,
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::Range(format!(
                "{len} bytes at offset {offset} do not lie in a device of {} bytes",
                self.len
            ))),
        }
    }

    fn check_aligned(&self, value: u64) -> Result<(), Error> {
        if value.is_multiple_of(self.block_size as u64) {
            Ok(())
        } else {
            Err(Error::Range(format!(
                "{value} is not a multiple of the block size {}",
                self.block_size
            )))
        }
    }
}

/// A length that was checked to lie in a slice.
fn split(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Cuts a range of whole blocks into commands.
struct Plan {
    nsid: u32,
    block: u64,
    chunk: usize,
    at: u64,
    end: u64,
    sequence: u64,
}

impl Plan {
    fn next(&mut self, write: bool) -> Option<(Command, Tag)> {
        let left = self.end - self.at;
        if left == 0 {
            return None;
        }
        let len = split(left).min(self.chunk);
        let tag = Tag {
            at: self.at,
            len,
            sequence: self.sequence,
        };
        let blocks = u32::try_from(len as u64 / self.block).unwrap_or(u32::MAX);
        let lba = self.at / self.block;
        let command = if write {
            Command::write(self.nsid, lba, blocks)
        } else {
            Command::read(self.nsid, lba, blocks)
        };
        self.at += len as u64;
        self.sequence += 1;
        Some((command, tag))
    }
}

/// Memory of `chunk` bytes.
fn take_spare(spare: &mut Vec<Region>, chunk: usize) -> Result<Region, Error> {
    match spare.pop() {
        Some(region) => Ok(region),
        None => Ok(Region::allocate(chunk, ALIGNMENT)?),
    }
}

/// Takes a write's memory back for the next one. Whoever else refers to it (a queue that has it registered) does not change it.
fn keep_spare(data: Data, spare: &mut Vec<Region>) {
    if let Data::One(segment) = data {
        spare.push(segment.region().clone());
    }
}

struct ReadSlice<'a> {
    plan: Plan,
    offset: u64,
    to: &'a mut [u8],
}

impl Job for ReadSlice<'_> {
    fn next(&mut self, _: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        Ok(self
            .plan
            .next(false)
            .map(|(command, tag)| (command, Data::Anywhere { len: tag.len }, tag)))
    }

    fn done(&mut self, tag: Tag, data: Data, _: &mut Vec<Region>) -> Result<(), Error> {
        // The part of the blocks that was asked for.
        let start = tag.at.max(self.offset);
        let end = (tag.at + tag.len as u64).min(self.offset + self.to.len() as u64);
        let to = split(start - self.offset)..split(end - self.offset);
        if let Some(to) = self.to.get_mut(to) {
            data.read(split(start - tag.at), to)?;
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        "read"
    }
}

struct WriteSlice<'a> {
    plan: Plan,
    offset: u64,
    from: &'a [u8],
}

impl Job for WriteSlice<'_> {
    fn next(&mut self, spare: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        let Some((command, tag)) = self.plan.next(true) else {
            return Ok(None);
        };
        let region = take_spare(spare, self.plan.chunk)?;
        let at = split(tag.at - self.offset);
        if let Some(from) = self.from.get(at..at + tag.len) {
            region.write(0, from)?;
        }
        Ok(Some((command, Data::One(region.segment(0..tag.len)?), tag)))
    }

    fn done(&mut self, _: Tag, data: Data, spare: &mut Vec<Region>) -> Result<(), Error> {
        keep_spare(data, spare);
        Ok(())
    }

    fn name(&self) -> &'static str {
        "write"
    }
}

struct MoveSegment {
    plan: Plan,
    offset: u64,
    memory: Segment,
    write: bool,
}

impl Job for MoveSegment {
    fn next(&mut self, _: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        let Some((command, tag)) = self.plan.next(self.write) else {
            return Ok(None);
        };
        let part = self.memory.part(split(tag.at - self.offset), tag.len)?;
        Ok(Some((command, Data::One(part), tag)))
    }

    fn done(&mut self, _: Tag, _: Data, _: &mut Vec<Region>) -> Result<(), Error> {
        Ok(())
    }

    fn name(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }
}

struct Once(Option<Command>);

impl Job for Once {
    fn next(&mut self, _: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        Ok(self.0.take().map(|command| {
            (
                command,
                Data::None,
                Tag {
                    at: 0,
                    len: 0,
                    sequence: 0,
                },
            )
        }))
    }

    fn done(&mut self, _: Tag, _: Data, _: &mut Vec<Region>) -> Result<(), Error> {
        Ok(())
    }

    fn name(&self) -> &'static str {
        "flush"
    }
}

struct CopyIn<'a, R> {
    nsid: u32,
    block: usize,
    chunk: usize,
    from: &'a mut R,
    at: u64,
    end: u64,
    /// The bytes after the last whole block.
    tail: Vec<u8>,
    scratch: Vec<u8>,
    ended: bool,
    left_to_make: usize,
}

impl<R: Read> Job for CopyIn<'_, R> {
    fn next(&mut self, spare: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        if self.ended {
            return Ok(None);
        }
        let region = match spare.pop() {
            Some(region) => region,
            None if self.left_to_make > 0 => {
                self.left_to_make -= 1;
                Region::allocate(self.chunk, ALIGNMENT)?
            }
            None => return Ok(None),
        };
        let (from, ended) = (&mut *self.from, &mut self.ended);
        let (region, filled) = slices::fill(region, self.chunk, &mut self.scratch, |buffer| {
            let mut filled = 0;
            while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
                match from.read(room) {
                    Ok(0) => {
                        *ended = true;
                        break;
                    }
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::io("reading the source", error)),
                }
            }
            Ok(filled)
        })?;
        let filled = filled?;
        if self.at + filled as u64 > self.end {
            return Err(Error::Range(format!(
                "the source has more than the {} bytes that the device has room for",
                self.end
            )));
        }
        let whole = filled / self.block * self.block;
        if whole < filled {
            self.tail.resize(filled - whole, 0);
            region.read(whole, &mut self.tail)?;
        }
        if whole == 0 {
            spare.push(region);
            return Ok(None);
        }
        let tag = Tag {
            at: self.at,
            len: whole,
            sequence: 0,
        };
        let blocks = u32::try_from(whole / self.block).unwrap_or(u32::MAX);
        let command = Command::write(self.nsid, self.at / self.block as u64, blocks);
        self.at += whole as u64;
        Ok(Some((command, Data::One(region.segment(0..whole)?), tag)))
    }

    fn done(&mut self, _: Tag, data: Data, spare: &mut Vec<Region>) -> Result<(), Error> {
        let before = spare.len();
        keep_spare(data, spare);
        if spare.len() == before {
            self.left_to_make += 1;
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        "write"
    }
}

struct CopyOut<'a, W> {
    plan: Plan,
    to: &'a mut W,
    end: u64,
    /// Reads that came before an earlier one, by sequence from `written` on.
    arrived: VecDeque<Option<(Tag, Data)>>,
    written: u64,
    /// How far reads may run ahead of what is written.
    window: u64,
    scratch: Vec<u8>,
}

impl<W: Write> Job for CopyOut<'_, W> {
    fn next(&mut self, _: &mut Vec<Region>) -> Result<Option<(Command, Data, Tag)>, Error> {
        if self.plan.sequence - self.written >= self.window {
            return Ok(None);
        }
        Ok(self
            .plan
            .next(false)
            .map(|(command, tag)| (command, Data::Anywhere { len: tag.len }, tag)))
    }

    fn done(&mut self, tag: Tag, data: Data, _: &mut Vec<Region>) -> Result<(), Error> {
        let place = split(tag.sequence - self.written);
        if self.arrived.len() <= place {
            self.arrived.resize_with(place + 1, || None);
        }
        if let Some(entry) = self.arrived.get_mut(place) {
            *entry = Some((tag, data));
        }
        while let Some(Some((tag, data))) = self.arrived.front() {
            let len = split((self.end - tag.at).min(tag.len as u64));
            let mut done = 0;
            while done < len {
                let part = (len - done).min(self.scratch.len());
                let Some(scratch) = self.scratch.get_mut(..part) else {
                    break;
                };
                data.read(done, scratch)?;
                self.to
                    .write_all(scratch)
                    .map_err(|error| Error::io("writing the copy", error))?;
                done += part;
            }
            self.arrived.pop_front();
            self.written += 1;
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        "read"
    }
}

#[cfg(test)]
mod tests;
