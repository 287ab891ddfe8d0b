//! The thread back end of [`FileRing`](super::FileRing), for systems that refuse io_uring, and the helper of the
//! io_uring back end for what io_uring lacks.
//!
//! A job owns its memory while it waits and while it runs, so a pool that is dropped never frees memory that a
//! call still uses: a thread that is stuck in the kernel keeps the job and frees it when the call returns. The threads
//! start with the first batch, and stay until the pool is dropped.
#![expect(unsafe_code, reason = "system calls on raw addresses of owned memory")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::Data;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    FileRingCounters, Files, Job, MAX_REPEATS, Operation, Ranges, Refusal, Refused, Step, descriptor, step,
};

struct Jobs {
    waiting: VecDeque<Job>,
    idle: usize,
    running: usize,
    threads: u16,
    closed: bool,
}

struct Finished {
    token: u64,
    outcome: io::Result<u32>,
    data: Data,
}

struct Shared {
    files: Files,
    jobs: Mutex<Jobs>,
    /// Signalled when there are jobs, and when the pool closes.
    work: Condvar,
    /// Signalled when a thread has finished a job of a closed pool.
    quiet: Condvar,
    finished: Mutex<VecDeque<Finished>>,
    /// How many are in `finished`, so that polling an empty pool takes no lock.
    finished_count: AtomicUsize,
    /// Readable while `finished` is not empty.
    event: EventFd,
    system_calls: AtomicU64,
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    staged: VecDeque<Job>,
    /// Taken from `shared.finished` and not handed over yet; kept for its capacity.
    taken: VecDeque<Finished>,
    depth: usize,
    max_threads: u16,
    in_flight: usize,
    operations: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds a lock, and the queues are consistent between statements in any case.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(depth: u16, max_threads: u16, files: Files) -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let depth = usize::from(depth);
        let shared = Shared {
            files,
            jobs: Mutex::new(Jobs {
                waiting: VecDeque::with_capacity(depth),
                idle: 0,
                running: 0,
                threads: 0,
                closed: false,
            }),
            work: Condvar::new(),
            quiet: Condvar::new(),
            finished: Mutex::new(VecDeque::with_capacity(depth)),
            finished_count: AtomicUsize::new(0),
            event,
            system_calls: AtomicU64::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            staged: VecDeque::with_capacity(depth),
            taken: VecDeque::with_capacity(depth),
            depth,
            max_threads,
            in_flight: 0,
            operations: 0,
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn push(&mut self, job: Job) -> Result<(), Refused> {
        if self.in_flight >= self.depth {
            return Err(Refused {
                reason: Refusal::Full,
                data: job.data,
            });
        }
        if descriptor(&self.shared.files, job.file).is_none() {
            return Err(Refused {
                reason: Refusal::UnknownFile,
                data: job.data,
            });
        }
        self.in_flight += 1;
        self.operations += 1;
        self.staged.push_back(job);
        Ok(())
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        let mut jobs = lock(&self.shared.jobs);
        while let Some(job) = self.staged.pop_front() {
            jobs.waiting.push_back(job);
        }
        // All at once, so that a ring that has done its first batch starts nothing later.
        while jobs.threads < self.max_threads {
            let shared = self.shared.clone();
            match thread::Builder::new()
                .name("homi-file".into())
                .spawn(move || work(&shared))
            {
                Ok(_) => jobs.threads += 1,
                // Fewer threads serve as well, only slower.
                Err(_) if jobs.threads > 0 => break,
                Err(error) => {
                    mem::swap(&mut jobs.waiting, &mut self.staged);
                    return Err(error);
                }
            }
        }
        let wake = jobs.waiting.len().min(jobs.idle);
        drop(jobs);
        if wake > 0 {
            self.shared.system_calls.fetch_add(1, Ordering::Relaxed);
            if wake == 1 {
                self.shared.work.notify_one();
            } else {
                self.shared.work.notify_all();
            }
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, f: &mut impl FnMut(u64, io::Result<u32>, Data)) -> usize {
        if self.shared.finished_count.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let mut finished = lock(&self.shared.finished);
        mem::swap(&mut *finished, &mut self.taken);
        self.shared.finished_count.store(0, Ordering::Release);
        // Under the lock, so that the event stays readable exactly while something is finished.
        self.shared.system_calls.fetch_add(1, Ordering::Relaxed);
        let drained = self.shared.event.read();
        debug_assert!(drained.is_ok(), "the event is set with every first finished job");
        drop(finished);
        let count = self.taken.len();
        self.in_flight -= count;
        for Finished { token, outcome, data } in self.taken.drain(..) {
            f(token, outcome, data);
        }
        count
    }

    pub(super) fn close(&mut self, limit: Duration, f: &mut impl FnMut(u64, Data)) {
        let deadline = Instant::now() + limit;
        let mut jobs = lock(&self.shared.jobs);
        jobs.closed = true;
        self.staged.append(&mut jobs.waiting);
        self.shared.work.notify_all();
        while jobs.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.quiet.wait_timeout(jobs, left);
            jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(jobs);
        self.poll(&mut |token, _, data| f(token, data));
        for job in self.staged.drain(..) {
            self.in_flight -= 1;
            f(job.token, job.data);
        }
        // What still runs keeps its memory; its tokens are lost with it.
        self.in_flight = 0;
        self.depth = 0;
    }

    pub(super) fn wait_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    pub(super) fn counters(&self) -> FileRingCounters {
        FileRingCounters {
            operations: self.operations,
            system_calls: self.shared.system_calls.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close(super::DRAIN_LIMIT, &mut |_, _| {});
    }
}

/// A pool thread: takes jobs until the pool closes.
fn work(shared: &Shared) {
    let mut ranges = Ranges::new();
    let mut jobs = lock(&shared.jobs);
    loop {
        if let Some(job) = jobs.waiting.pop_front() {
            jobs.running += 1;
            drop(jobs);
            finish(shared, &mut ranges, job);
            jobs = lock(&shared.jobs);
            jobs.running -= 1;
            if jobs.closed {
                shared.quiet.notify_all();
            }
        } else if jobs.closed {
            return;
        } else {
            jobs.idle += 1;
            jobs = shared.work.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
        }
    }
}

fn finish(shared: &Shared, ranges: &mut Ranges, job: Job) {
    let mut calls = 0;
    let outcome = match descriptor(&shared.files, job.file) {
        Some(fd) => execute(fd, &job, ranges, &mut calls),
        // Checked when the operation was pushed; the files never change.
        None => Err(io::Error::from_raw_os_error(libc::EBADF)),
    };
    ranges.0.clear();
    let mut finished = lock(&shared.finished);
    finished.push_back(Finished {
        token: job.token,
        outcome,
        data: job.data,
    });
    // Before the event, so that whoever it wakes finds something.
    shared.finished_count.store(finished.len(), Ordering::Release);
    if finished.len() == 1 {
        calls += 1;
        let set = shared.event.write(1);
        debug_assert!(set.is_ok(), "an event's counter cannot overflow by ones");
    }
    drop(finished);
    shared.system_calls.fetch_add(calls, Ordering::Relaxed);
}

fn execute(fd: RawFd, job: &Job, ranges: &mut Ranges, calls: &mut u64) -> io::Result<u32> {
    let total: usize = job.data.segments().iter().map(homi_queue::Segment::len).sum();
    let (mut done, mut repeats) = (0, 0);
    loop {
        *calls += 1;
        match step(job.operation, done, total, call(fd, job, done, ranges)) {
            Step::Over(outcome) => return outcome,
            Step::Continue { done: now } => done = now,
            Step::Repeat if repeats < MAX_REPEATS => repeats += 1,
            Step::Repeat => return Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

/// Makes one system call: its result, or a negated error number.
fn call(fd: RawFd, job: &Job, done: usize, ranges: &mut Ranges) -> i64 {
    let signed = |value: u64| libc::off64_t::try_from(value).unwrap_or(libc::off64_t::MAX);
    let at = |offset: u64| signed(offset.saturating_add(done as u64));
    match job.operation {
        Operation::Nop => 0,
        Operation::Read { offset } => {
            ranges.fill(&job.data, done);
            // SAFETY: the vectors describe memory that the job owns, and their number fits.
            result(unsafe { libc::preadv64(fd, ranges.0.as_ptr(), count(ranges), at(offset)) })
        }
        Operation::Write { offset, durable } => {
            ranges.fill(&job.data, done);
            write(fd, ranges, at(offset), durable)
        }
        // SAFETY: takes a descriptor only.
        Operation::SyncData => result(unsafe { libc::fdatasync(fd) } as isize),
        // SAFETY: takes a descriptor only.
        Operation::Sync => result(unsafe { libc::fsync(fd) } as isize),
        Operation::PunchHole { .. } | Operation::ZeroRange { .. } | Operation::Allocate { .. } => {
            let (mode, offset, len) = job.operation.fallocate().unwrap_or((0, 0, 0));
            // SAFETY: takes numbers only.
            result(unsafe { libc::fallocate64(fd, mode, signed(offset), signed(len)) } as isize)
        }
        Operation::Discard { offset, len } => {
            block_range(fd, nix::request_code_none!(0x12, 119), offset, len)
        }
        Operation::ZeroOut { offset, len } => {
            block_range(fd, nix::request_code_none!(0x12, 127), offset, len)
        }
    }
}

fn write(fd: RawFd, ranges: &Ranges, at: libc::off64_t, durable: bool) -> i64 {
    if durable {
        // SAFETY: the vectors describe memory that the job owns, and their number fits.
        let wrote =
            result(unsafe { libc::pwritev2(fd, ranges.0.as_ptr(), count(ranges), at, libc::RWF_DSYNC) });
        // Sandboxes that emulate Linux may lack the flag or the call; two calls then do the same.
        let lacking = [libc::EOPNOTSUPP, libc::ENOSYS]
            .iter()
            .any(|number| wrote == -i64::from(*number));
        if !lacking {
            return wrote;
        }
    }
    // SAFETY: the vectors describe memory that the job owns, and their number fits.
    let wrote = result(unsafe { libc::pwritev64(fd, ranges.0.as_ptr(), count(ranges), at) });
    if durable && wrote > 0 {
        // SAFETY: takes a descriptor only.
        let synced = result(unsafe { libc::fdatasync(fd) } as isize);
        if synced < 0 {
            return synced;
        }
    }
    wrote
}

/// The ioctls that take a range of a block device as two numbers.
fn block_range(fd: RawFd, request: libc::Ioctl, offset: u64, len: u64) -> i64 {
    let range = [offset, len];
    // SAFETY: both requests read two 64-bit numbers from the address; on anything but a block device they fail.
    result(unsafe { libc::ioctl(fd, request, range.as_ptr()) } as isize)
}

fn count(ranges: &Ranges) -> libc::c_int {
    libc::c_int::try_from(ranges.0.len()).unwrap_or(0)
}

fn result(value: isize) -> i64 {
    if value >= 0 {
        return value as i64;
    }
    -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}
