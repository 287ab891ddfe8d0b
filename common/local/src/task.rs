//! One command on a file, as a sequence of file operations.
//!
//! A [`Task`] has at most one operation in the ring. [`Task::begin`] gives the first, [`Task::resume`] takes what came of one
//! and gives the next, until the command is over. There is no I/O here.

use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use homi_queue::{Command, Data, MemoryError, Segment};
use homi_reactor::file_ring::Operation;
use homi_spec::status::Status;

use crate::bounce::Bounce;
use crate::content;
use crate::file::Inner;
use crate::geometry::{RANGE_SIZE, Span, Work};

/// The most bytes that go through a queue's own memory at a time.
const CHUNK: usize = 256 << 10;

/// Why a command on a file failed: what the system said, which a status cannot carry.
#[derive(Debug)]
pub struct Failure {
    /// The file operation.
    pub operation: Operation,
    /// What came of it.
    pub error: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} failed: {}", self.operation, self.error)
    }
}

/// What a task does next.
pub(crate) enum Next {
    /// Another operation.
    Push(Operation, Data),
    /// The command is over.
    Over(Status),
}

/// What a task needs of its queue.
pub(crate) struct Means<'a> {
    pub(crate) file: &'a Inner,
    pub(crate) bounce: &'a mut Bounce,
    pub(crate) failure: &'a mut Option<Failure>,
}

/// What the operation in the ring is for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing is left but to say so.
    Settled(Status),
    /// What was written before is made durable, because a read has to come from the medium.
    SyncBefore,
    /// The issuer's memory is read or written.
    Transfer,
    /// The queue's memory is read, and will be the issuer's.
    Lend,
    /// The queue's memory is read or written, and what is in it belongs to the transfer's bytes from `done` on.
    Chunk,
    /// The command's blocks are zeroed, by the operation in the ring.
    Zero,
    /// A range of the command's data is deallocated.
    Range,
    /// What the command did is made durable.
    SyncAfter,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) command: Command,
    /// The issuer's memory, unless it is in the ring.
    pub(crate) data: Data,
    work: Work,
    phase: Phase,
    operation: Operation,
    /// Bytes of the command's span that are done, or ranges of its data.
    done: u64,
}

impl Task {
    pub(crate) fn new(command: Command, data: Data) -> Self {
        let (work, phase) = (Work::Nothing, Phase::Settled(Status::SUCCESS));
        Self {
            command,
            data,
            work,
            phase,
            operation: Operation::Nop,
            done: 0,
        }
    }

    /// Whether the issuer's memory is what the ring holds.
    pub(crate) fn is_transfer(&self) -> bool {
        matches!(self.phase, Phase::Transfer)
    }

    /// The first operation. Every command has one, so that its completion wakes whoever sleeps.
    pub(crate) fn begin(&mut self, means: &mut Means<'_>) -> (Operation, Data) {
        let next = match means.file.geometry.check(&self.command, &self.data) {
            Ok(work) => {
                self.work = work;
                self.enter(means)
            }
            Err(status) => Next::Over(status),
        };
        match next {
            Next::Push(operation, memory) => {
                self.operation = operation;
                (operation, memory)
            }
            Next::Over(status) => self.settle(status),
        }
    }

    /// The operation that ends the command with this status.
    pub(crate) fn settle(&mut self, status: Status) -> (Operation, Data) {
        self.phase = Phase::Settled(status);
        self.operation = Operation::Nop;
        (Operation::Nop, Data::None)
    }

    /// What follows an operation that is over.
    pub(crate) fn resume(&mut self, means: &mut Means<'_>, outcome: io::Result<u32>, memory: Data) -> Next {
        let next = self.follow(means, outcome, memory);
        if let Next::Push(operation, _) = &next {
            self.operation = *operation;
        }
        next
    }

    fn enter(&mut self, means: &mut Means<'_>) -> Next {
        match self.work {
            Work::Read { fua: true, .. }
            | Work::Compare { fua: true, .. }
            | Work::Verify { fua: true, .. } => {
                self.phase = Phase::SyncBefore;
                Next::Push(Operation::SyncData, Data::None)
            }
            Work::Flush => {
                self.phase = Phase::SyncAfter;
                Next::Push(Operation::SyncData, Data::None)
            }
            _ => self.perform(means),
        }
    }

    fn perform(&mut self, means: &mut Means<'_>) -> Next {
        let performed = match self.work {
            Work::Nothing => Ok(Next::Over(Status::SUCCESS)),
            Work::Read { span, .. } => {
                if matches!(self.data, Data::Anywhere { .. }) {
                    self.phase = Phase::Lend;
                    means.bounce.take(self.data.len()).map(|segment| {
                        Next::Push(Operation::Read { offset: span.offset }, Data::One(segment))
                    })
                } else if means.file.takes(&self.data) {
                    self.phase = Phase::Transfer;
                    Ok(Next::Push(
                        Operation::Read { offset: span.offset },
                        mem::take(&mut self.data),
                    ))
                } else {
                    self.chunk(means, span, None)
                }
            }
            Work::Write { span, fua } if means.file.takes(&self.data) => {
                self.phase = Phase::Transfer;
                let operation = Operation::Write {
                    offset: span.offset,
                    durable: fua,
                };
                Ok(Next::Push(operation, mem::take(&mut self.data)))
            }
            Work::Write { span, .. } | Work::Compare { span, .. } | Work::Verify { span, .. } => {
                self.chunk(means, span, None)
            }
            Work::WriteZeroes { span, deallocate, .. } => self.zero(means, span, deallocate),
            Work::Deallocate { ranges } => {
                self.check_ranges(means, ranges)
                    .and_then(|checked| match checked {
                        Ok(()) => self.next_range(means, ranges),
                        Err(status) => Ok(Next::Over(status)),
                    })
            }
            Work::Flush => Ok(self.sync_after()),
        };
        performed.unwrap_or(Next::Over(Status::INTERNAL_ERROR))
    }

    fn follow(&mut self, means: &mut Means<'_>, outcome: io::Result<u32>, memory: Data) -> Next {
        match self.phase {
            Phase::Settled(status) => Next::Over(status),
            Phase::SyncBefore => match outcome {
                Ok(_) => self.perform(means),
                Err(error) => self.fail(means, error),
            },
            Phase::SyncAfter => match outcome {
                Ok(_) => Next::Over(Status::SUCCESS),
                Err(error) => self.fail(means, error),
            },
            Phase::Transfer => {
                self.data = memory;
                match whole(outcome, self.data.len()) {
                    Ok(()) => Next::Over(Status::SUCCESS),
                    Err(error) => self.fail(means, error),
                }
            }
            Phase::Lend => match whole(outcome, memory.len()) {
                Ok(()) => {
                    self.data = memory;
                    Next::Over(Status::SUCCESS)
                }
                Err(error) => self.fail(means, error),
            },
            Phase::Chunk => match whole(outcome, memory.len()) {
                Ok(()) => self
                    .chunk_over(means, memory)
                    .unwrap_or(Next::Over(Status::INTERNAL_ERROR)),
                Err(error) => self.fail(means, error),
            },
            Phase::Zero => self.zeroed(means, outcome, &memory),
            Phase::Range => self.range_over(means, outcome),
        }
    }

    /// The next part of a transfer through the queue's own memory; `memory` is that of the part before.
    fn chunk(
        &mut self,
        means: &mut Means<'_>,
        span: Span,
        memory: Option<Segment>,
    ) -> Result<Next, MemoryError> {
        self.phase = Phase::Chunk;
        let len = usize::try_from(span.len - self.done).map_or(CHUNK, |left| left.min(CHUNK));
        let at = usize::try_from(self.done).unwrap_or(usize::MAX);
        let segment = match memory {
            Some(segment) if segment.len() >= len => segment.part(0, len)?,
            _ => means.bounce.take(len)?,
        };
        let offset = span.offset + self.done;
        let operation = if let Work::Write { fua, .. } = self.work {
            content::copy_out(&self.data, at, segment.region(), segment.start(), len)?;
            Operation::Write { offset, durable: fua }
        } else {
            Operation::Read { offset }
        };
        Ok(Next::Push(operation, Data::One(segment)))
    }

    fn chunk_over(&mut self, means: &mut Means<'_>, memory: Data) -> Result<Next, MemoryError> {
        let (Data::One(segment), Some(span)) = (memory, self.span()) else {
            return Ok(Next::Over(Status::INTERNAL_ERROR));
        };
        let at = usize::try_from(self.done).unwrap_or(usize::MAX);
        match self.work {
            Work::Read { .. } => {
                content::copy_in(&self.data, at, segment.region(), segment.start(), segment.len())?;
            }
            Work::Compare { .. }
                if !content::equal(&self.data, at, segment.region(), segment.start(), segment.len())? =>
            {
                return Ok(Next::Over(Status::COMPARE_FAILURE.with_dnr()));
            }
            _ => {}
        }
        self.done += segment.len() as u64;
        if self.done >= span.len {
            return Ok(Next::Over(Status::SUCCESS));
        }
        self.chunk(means, span, Some(segment))
    }

    /// Zeroes what is left of the span in the best way that the file is not known to lack.
    fn zero(&mut self, means: &mut Means<'_>, span: Span, deallocate: bool) -> Result<Next, MemoryError> {
        self.phase = Phase::Zero;
        let lacks = &means.file.lacks;
        let Span { offset, len } = span;
        let operation = if deallocate && !known(&lacks.punch_hole) {
            Operation::PunchHole { offset, len }
        } else if !known(&lacks.zero_range) {
            Operation::ZeroRange { offset, len }
        } else if means.file.is_block_device && !known(&lacks.zero_out) {
            Operation::ZeroOut { offset, len }
        } else {
            let part = usize::try_from(len - self.done).map_or(CHUNK, |left| left.min(CHUNK));
            let zeroes = means.bounce.zeroes(part, CHUNK)?;
            let operation = Operation::Write {
                offset: offset + self.done,
                durable: false,
            };
            return Ok(Next::Push(operation, Data::One(zeroes)));
        };
        Ok(Next::Push(operation, Data::None))
    }

    fn zeroed(&mut self, means: &mut Means<'_>, outcome: io::Result<u32>, memory: &Data) -> Next {
        let Work::WriteZeroes {
            span,
            deallocate,
            fua,
        } = self.work
        else {
            return Next::Over(Status::INTERNAL_ERROR);
        };
        match outcome {
            Err(error) if self.is_lack(means, &error) => {}
            Err(error) => return self.fail(means, error),
            Ok(_) if !matches!(self.operation, Operation::Write { .. }) => self.done = span.len,
            Ok(written) => match whole(Ok(written), memory.len()) {
                Ok(()) => self.done += u64::from(written),
                Err(error) => return self.fail(means, error),
            },
        }
        if self.done < span.len {
            return self
                .zero(means, span, deallocate)
                .unwrap_or(Next::Over(Status::INTERNAL_ERROR));
        }
        if fua {
            self.sync_after()
        } else {
            Next::Over(Status::SUCCESS)
        }
    }

    /// Whether every range lies in the namespace, before anything is done.
    fn check_ranges(&self, means: &Means<'_>, ranges: u32) -> Result<Result<(), Status>, MemoryError> {
        for index in 0..u64::from(ranges) {
            if let Err(status) = self.range(means, index)? {
                return Ok(Err(status));
            }
        }
        Ok(Ok(()))
    }

    /// A range of the command's data, checked each time it is read: the issuer's memory may change meanwhile.
    fn range(&self, means: &Means<'_>, index: u64) -> Result<Result<Span, Status>, MemoryError> {
        let mut bytes = [0; RANGE_SIZE];
        let at = usize::try_from(index)
            .unwrap_or(usize::MAX)
            .saturating_mul(RANGE_SIZE);
        self.data.read(at, &mut bytes)?;
        Ok(means.file.geometry.range(bytes))
    }

    /// Deallocates the next range that is not empty. Deallocation is advice: where the file has no way to do it, the
    /// blocks keep their bytes.
    fn next_range(&mut self, means: &mut Means<'_>, ranges: u32) -> Result<Next, MemoryError> {
        self.phase = Phase::Range;
        let lacks = &means.file.lacks;
        while self.done < u64::from(ranges) {
            let Span { offset, len } = match self.range(means, self.done)? {
                Ok(span) => span,
                Err(status) => return Ok(Next::Over(status)),
            };
            if len == 0 {
                self.done += 1;
                continue;
            }
            let operation = if !known(&lacks.punch_hole) {
                Operation::PunchHole { offset, len }
            } else if means.file.is_block_device && !known(&lacks.discard) {
                Operation::Discard { offset, len }
            } else {
                break;
            };
            return Ok(Next::Push(operation, Data::None));
        }
        Ok(Next::Over(Status::SUCCESS))
    }

    fn range_over(&mut self, means: &mut Means<'_>, outcome: io::Result<u32>) -> Next {
        match outcome {
            Ok(_) => self.done += 1,
            Err(error) if self.is_lack(means, &error) => {}
            Err(error) => return self.fail(means, error),
        }
        let Work::Deallocate { ranges } = self.work else {
            return Next::Over(Status::INTERNAL_ERROR);
        };
        self.next_range(means, ranges)
            .unwrap_or(Next::Over(Status::INTERNAL_ERROR))
    }

    fn sync_after(&mut self) -> Next {
        self.phase = Phase::SyncAfter;
        Next::Push(Operation::SyncData, Data::None)
    }

    /// Notes that the file lacks the operation that just failed, if that is what the error says.
    fn is_lack(&self, means: &Means<'_>, error: &io::Error) -> bool {
        if !matches!(
            error.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
        ) {
            return false;
        }
        let lacks = &means.file.lacks;
        let lack = match self.operation {
            Operation::PunchHole { .. } => &lacks.punch_hole,
            Operation::ZeroRange { .. } => &lacks.zero_range,
            Operation::ZeroOut { .. } => &lacks.zero_out,
            Operation::Discard { .. } => &lacks.discard,
            _ => return false,
        };
        lack.store(true, Ordering::Relaxed);
        true
    }

    fn fail(&self, means: &mut Means<'_>, error: io::Error) -> Next {
        let status = status_of(self.operation, &error);
        *means.failure = Some(Failure {
            operation: self.operation,
            error,
        });
        Next::Over(status)
    }

    fn span(&self) -> Option<Span> {
        match self.work {
            Work::Read { span, .. }
            | Work::Write { span, .. }
            | Work::Compare { span, .. }
            | Work::Verify { span, .. }
            | Work::WriteZeroes { span, .. } => Some(span),
            Work::Deallocate { .. } | Work::Flush | Work::Nothing => None,
        }
    }
}

fn known(lack: &AtomicBool) -> bool {
    lack.load(Ordering::Relaxed)
}

/// Whether all bytes were transferred; a file that ends early was cut short behind our back.
fn whole(outcome: io::Result<u32>, len: usize) -> io::Result<()> {
    match outcome {
        Ok(moved) if moved as usize == len => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error),
    }
}

/// What the system said, as a status of the command.
pub(crate) fn status_of(operation: Operation, error: &io::Error) -> Status {
    let reading = matches!(operation, Operation::Read { .. });
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Status::CAPACITY_EXCEEDED.with_dnr(),
        Some(libc::EROFS | libc::EBADF | libc::EPERM) if !reading => {
            Status::NAMESPACE_WRITE_PROTECTED.with_dnr()
        }
        Some(libc::EIO | libc::ENODATA | libc::EBADMSG | libc::EILSEQ | libc::EREMOTEIO) if reading => {
            Status::UNRECOVERED_READ_ERROR
        }
        Some(libc::EIO | libc::ENODATA | libc::EBADMSG | libc::EILSEQ | libc::EREMOTEIO) => {
            Status::WRITE_FAULT
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof && reading => Status::UNRECOVERED_READ_ERROR,
        None if error.kind() == io::ErrorKind::UnexpectedEof => Status::WRITE_FAULT,
        _ => Status::INTERNAL_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_statuses_of_their_kind() {
        let read = Operation::Read { offset: 0 };
        let write = Operation::Write {
            offset: 0,
            durable: true,
        };
        let of = |operation, number| status_of(operation, &io::Error::from_raw_os_error(number));
        assert!(of(write, libc::ENOSPC).is(Status::CAPACITY_EXCEEDED));
        assert!(of(Operation::ZeroRange { offset: 0, len: 1 }, libc::EDQUOT).is(Status::CAPACITY_EXCEEDED));
        assert!(of(read, libc::EIO).is(Status::UNRECOVERED_READ_ERROR));
        assert!(of(write, libc::EIO).is(Status::WRITE_FAULT));
        assert!(of(Operation::SyncData, libc::EIO).is(Status::WRITE_FAULT));
        assert!(of(write, libc::EROFS).is(Status::NAMESPACE_WRITE_PROTECTED));
        assert!(of(read, libc::EINVAL).is(Status::INTERNAL_ERROR));
        assert!(status_of(read, &io::ErrorKind::UnexpectedEof.into()).is(Status::UNRECOVERED_READ_ERROR));
    }
}
