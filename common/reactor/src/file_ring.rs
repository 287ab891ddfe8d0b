//! [`FileRing`]: asynchronous positional I/O on a fixed set of files.
//!
//! One ring belongs to one shard. Operations are pushed with the memory they use, started in a batch by
//! [`FileRing::submit`], and come back from [`FileRing::poll`] with that memory. The back end is io_uring where the
//! system allows it, and a small pool of threads otherwise (containers often refuse io_uring); both keep the
//! same promises:
//!
//! - the memory of an operation belongs to the ring until the operation is over. Dropping the ring waits for what the
//!   kernel holds, for a bounded time; memory that the kernel may still write after that is leaked, never freed;
//! - short reads and writes are continued inside the ring. A read ends short only at the end of the file;
//! - nothing is allocated per operation once the ring is warm;
//! - polling an empty ring makes no system call.
//!
//! Not here: opening and probing files (`homi-local`), buffered stream I/O, registered buffers, NVMe passthrough.

mod threads;
mod uring;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use homi_queue::Data;

use threads::Pool;
use uring::Uring;

/// How long dropping a ring waits for operations that the kernel holds.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The most ranges that one vectored call takes (`IOV_MAX` of Linux).
const MAX_RANGES: usize = 1024;
/// Ranges that there is room for from the start; longer lists make room once.
const FEW_RANGES: usize = 8;
/// The most bytes that one call transfers: a multiple of every block size below Linux's own limit.
const MAX_CALL: usize = 0x4000_0000;
/// How often an operation that the kernel asks to repeat (`EAGAIN`, `EINTR`) is repeated before it fails.
const MAX_REPEATS: u8 = 64;
/// Threads of the fallback back end: enough to keep a disk busy, few enough to be bounded.
const MAX_THREADS: u16 = 8;

/// Which back end a ring uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileBackend {
    /// io_uring where the system allows it, threads otherwise.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// A pool of threads.
    Threads,
}

/// One of the files that a ring was made with, by its position in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIndex(pub u16);

/// What to do with a file. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Nothing: it completes at once. This is how an outcome that is known already wakes a sleeping poller.
    Nop,
    /// Reads into the operation's memory.
    Read {
        /// Offset of the first byte.
        offset: u64,
    },
    /// Writes the operation's memory.
    Write {
        /// Offset of the first byte.
        offset: u64,
        /// Whether the operation is over only when the bytes and what it takes to find them are durable.
        durable: bool,
    },
    /// Makes the file's data, and the metadata it takes to find them, durable (`fdatasync`).
    SyncData,
    /// Makes the file's data and all its metadata durable (`fsync`).
    Sync,
    /// Gives the storage of a range back; it reads as zeroes afterwards. The file's size stays.
    PunchHole {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Makes a range read as zeroes without giving its storage back. The file's size stays.
    ZeroRange {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Reserves the storage of a range. The file's size stays.
    Allocate {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Block devices only: tells the device that a range is not needed (`BLKDISCARD`). What it reads as is up to the device.
    Discard {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Block devices only: makes a range read as zeroes (`BLKZEROOUT`), which the kernel writes where the device cannot.
    ZeroOut {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

impl Operation {
    fn is_transfer(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }

    /// The arguments of `fallocate`, for the operations that are one.
    fn fallocate(self) -> Option<(i32, u64, u64)> {
        match self {
            Self::PunchHole { offset, len } => Some((
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len,
            )),
            Self::ZeroRange { offset, len } => Some((
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len,
            )),
            Self::Allocate { offset, len } => Some((libc::FALLOC_FL_KEEP_SIZE, offset, len)),
            _ => None,
        }
    }
}

/// Why an operation was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `depth` operations are in flight.
    #[error("the file ring is full: poll for completions before pushing more")]
    Full,
    /// The file index names no file of the ring.
    #[error("the ring was made without a file of that index")]
    UnknownFile,
    /// The data is not memory (`Data::Anywhere`), or a transfer has 4 GiB or more.
    #[error(
        "a file operation takes memory below 4 GiB: choose memory for `Data::Anywhere`, or split the transfer"
    )]
    Memory,
}

/// An operation that was not taken, with its memory.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// The operation's memory, handed back.
    pub data: Data,
}

/// What a ring has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileRingCounters {
    /// Operations pushed.
    pub operations: u64,
    /// System calls made for them, on every thread, waking and sleeping included.
    pub system_calls: u64,
}

enum Engine {
    Uring(Box<Uring>),
    Threads(Pool),
}

/// Asynchronous positional I/O on a fixed set of files; see the [module](self).
pub struct FileRing {
    engine: Engine,
    fallback: Option<String>,
}

type Files = Arc<[Arc<OwnedFd>]>;

impl FileRing {
    /// A ring for up to `depth` (at least 1, at most 4096) operations in flight on these files.
    ///
    /// # Errors
    /// What the system said, when the back end asked for is not available; with [`FileBackend::Auto`], when there
    /// are no descriptors or memory left even for the pool.
    pub fn new(depth: u16, files: Vec<Arc<OwnedFd>>, backend: FileBackend) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        let files: Files = files.into();
        let refused = match backend {
            FileBackend::Threads => None,
            FileBackend::Auto | FileBackend::IoUring => match Uring::new(depth, files.clone()) {
                Ok(uring) => {
                    return Ok(Self {
                        engine: Engine::Uring(Box::new(uring)),
                        fallback: None,
                    });
                }
                Err(error) if backend == FileBackend::IoUring => return Err(error),
                Err(error) => Some(format!("io_uring is not available ({error}); using threads")),
            },
        };
        let pool = Pool::new(depth, MAX_THREADS.min(depth), files)?;
        Ok(Self {
            engine: Engine::Threads(pool),
            fallback: refused,
        })
    }

    /// The back end in use: never [`FileBackend::Auto`].
    #[must_use]
    pub fn backend(&self) -> FileBackend {
        match self.engine {
            Engine::Uring(_) => FileBackend::IoUring,
            Engine::Threads(_) => FileBackend::Threads,
        }
    }

    /// Why [`FileBackend::Auto`] did not choose io_uring, in words.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Operations pushed and not yet handed back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match &self.engine {
            Engine::Uring(uring) => uring.in_flight(),
            Engine::Threads(pool) => pool.in_flight(),
        }
    }

    /// Takes an operation and its memory; it starts with the next [`FileRing::submit`]. The token comes back from
    /// [`FileRing::poll`] and may be anything.
    ///
    /// # Errors
    /// [`Refused`], with the memory, if the operation cannot be taken.
    pub fn push(
        &mut self,
        token: u64,
        file: FileIndex,
        operation: Operation,
        data: Data,
    ) -> Result<(), Refused> {
        let total: usize = data.segments().iter().map(homi_queue::Segment::len).sum();
        if matches!(data, Data::Anywhere { .. }) || u32::try_from(total).is_err() {
            return Err(Refused {
                reason: Refusal::Memory,
                data,
            });
        }
        let job = Job {
            token,
            file,
            operation,
            data,
        };
        match &mut self.engine {
            Engine::Uring(uring) => uring.push(job, total),
            Engine::Threads(pool) => pool.push(job),
        }
    }

    /// Starts everything pushed since the last call: one system call for the batch.
    ///
    /// # Errors
    /// What the system said; the operations stay pushed, and the next call tries again.
    pub fn submit(&mut self) -> io::Result<()> {
        match &mut self.engine {
            Engine::Uring(uring) => uring.submit(),
            Engine::Threads(pool) => pool.submit(),
        }
    }

    /// Hands over every operation that is over: its token, the bytes transferred or the error, and its memory.
    /// Returns how many there were. Makes no system call when there are none.
    ///
    /// # Errors
    /// What the system said when an operation that must be continued could not be; it stays pushed.
    pub fn poll(&mut self, f: &mut impl FnMut(u64, io::Result<u32>, Data)) -> io::Result<usize> {
        match &mut self.engine {
            Engine::Uring(uring) => uring.poll(f),
            Engine::Threads(pool) => Ok(pool.poll(f)),
        }
    }

    /// Gives up: waits, for a bounded time, until the kernel is done with the operations in flight, then hands over
    /// every token with its memory. Operations that the kernel would not let go of by then are not handed over, and
    /// their memory is never reused. Operations that were not submitted are not executed. The ring takes no more.
    pub fn close(&mut self, f: &mut impl FnMut(u64, Data)) {
        match &mut self.engine {
            Engine::Uring(uring) => uring.close(DRAIN_LIMIT, f),
            Engine::Threads(pool) => pool.close(DRAIN_LIMIT, f),
        }
    }

    /// A descriptor that is readable while [`FileRing::poll`] may find something.
    #[must_use]
    pub fn wait_descriptor(&self) -> BorrowedFd<'_> {
        match &self.engine {
            Engine::Uring(uring) => uring.wait_descriptor(),
            Engine::Threads(pool) => pool.wait_descriptor(),
        }
    }

    /// What the ring has done so far.
    #[must_use]
    pub fn counters(&self) -> FileRingCounters {
        match &self.engine {
            Engine::Uring(uring) => uring.counters(),
            Engine::Threads(pool) => pool.counters(),
        }
    }
}

impl fmt::Debug for FileRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRing")
            .field("backend", &self.backend())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// One operation as pushed.
struct Job {
    token: u64,
    file: FileIndex,
    operation: Operation,
    data: Data,
}

fn descriptor(files: &Files, file: FileIndex) -> Option<RawFd> {
    files.get(usize::from(file.0)).map(|file| file.as_raw_fd())
}

/// What to do after the kernel returned `result` for an operation of which `done` of `total` bytes were transferred.
enum Step {
    Over(io::Result<u32>),
    Continue { done: usize },
    Repeat,
}

/// `result` is a byte count, or a negated error number.
fn step(operation: Operation, done: usize, total: usize, result: i64) -> Step {
    let over = |done: usize| Step::Over(Ok(u32::try_from(done).unwrap_or(u32::MAX)));
    let Ok(moved) = usize::try_from(result) else {
        let number = i32::try_from(-result).unwrap_or(libc::EIO);
        return match number {
            libc::EAGAIN | libc::EINTR => Step::Repeat,
            // With O_DIRECT, the end of a file that is not a whole number of blocks long ends a read at an offset
            // from which the kernel refuses to continue: that is the end of the file.
            libc::EINVAL if done > 0 && matches!(operation, Operation::Read { .. }) => over(done),
            _ => Step::Over(Err(io::Error::from_raw_os_error(number))),
        };
    };
    if !operation.is_transfer() {
        return over(0);
    }
    let done = done.saturating_add(moved).min(total);
    match operation {
        _ if done >= total => over(done),
        Operation::Read { .. } if moved == 0 => over(done),
        // A file that accepts no more bytes and says nothing else is out of room.
        _ if moved == 0 => Step::Over(Err(io::Error::from_raw_os_error(libc::ENOSPC))),
        _ => Step::Continue { done },
    }
}

/// I/O vectors for a call: capacity kept from call to call.
struct Ranges(Vec<libc::iovec>);

// SAFETY: the addresses are plain numbers until a system call uses them; the operation that owns this value owns the
// memory as well, wherever it goes.
#[expect(unsafe_code, reason = "I/O vectors hold raw addresses")]
unsafe impl Send for Ranges {}

impl Ranges {
    fn new() -> Self {
        Self(Vec::with_capacity(FEW_RANGES))
    }

    /// The part of `data` after its first `done` bytes, as far as one call takes it.
    fn fill(&mut self, data: &Data, done: usize) {
        self.0.clear();
        let (mut skip, mut room) = (done, MAX_CALL);
        for segment in data.segments() {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            if room == 0 || self.0.len() == MAX_RANGES {
                break;
            }
            let len = (segment.len() - skip).min(room);
            let base = segment.host_address().wrapping_add(skip);
            self.0.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            });
            skip = 0;
            room -= len;
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
