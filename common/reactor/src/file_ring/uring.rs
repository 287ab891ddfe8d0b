//! The io_uring back end of [`FileRing`](super::FileRing).
//!
//! Every operation in flight has an entry that owns its memory, and at most one submission in the kernel; the entry's
//! index is the submission's user data. What io_uring cannot do (the block device ioctls) goes to one helper thread,
//! started on first use, whose event descriptor is polled through the ring, so that one descriptor wakes for both.
#![expect(unsafe_code, reason = "hands addresses of owned memory to the kernel")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::Data;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::threads::Pool;
use super::{
    FileIndex, FileRingCounters, Files, Job, MAX_REPEATS, Operation, Ranges, Refusal, Refused, Step,
    descriptor, step,
};

/// User data of the submission that polls the helper's event descriptor.
const HELPER: u64 = u64::MAX;

/// One operation in flight.
struct Entry {
    token: u64,
    file: FileIndex,
    operation: Operation,
    data: Data,
    total: usize,
    done: usize,
    repeats: u8,
    busy: bool,
    ranges: Ranges,
}

pub(super) struct Uring {
    ring: IoUring,
    files: Files,
    /// Whether the files are registered, so that an operation takes no reference on them.
    registered: bool,
    entries: Vec<Entry>,
    free: Vec<u32>,
    depth: usize,
    in_flight: usize,
    helper: Option<Pool>,
    helper_polled: bool,
    counters: FileRingCounters,
}

impl Uring {
    pub(super) fn new(depth: u16, files: Files) -> io::Result<Self> {
        // One more than the depth, for the poll of the helper.
        let size = u32::from(depth) + 1;
        // Completion work waits until this thread enters the kernel anyway, instead of interrupting it.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(size)
            .or_else(|error| match error.raw_os_error() {
                // Linux before 5.19 does not know these flags.
                Some(libc::EINVAL) => IoUring::builder().build(size),
                _ => Err(error),
            })?;
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring is too old, 5.6 is needed",
            ));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Nop::CODE,
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
        ];
        if let Some(missing) = needed.into_iter().find(|code| !probe.is_supported(*code)) {
            let text = format!("this system's io_uring lacks operation {missing}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let descriptors: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        // Registration only saves time; where a limit forbids it, the descriptors are used as they are.
        let registered = !descriptors.is_empty() && ring.submitter().register_files(&descriptors).is_ok();
        Ok(Self {
            ring,
            files,
            registered,
            entries: Vec::new(),
            free: Vec::new(),
            depth: usize::from(depth),
            in_flight: 0,
            helper: None,
            helper_polled: false,
            counters: FileRingCounters::default(),
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight + self.helper.as_ref().map_or(0, Pool::in_flight)
    }

    pub(super) fn push(&mut self, job: Job, total: usize) -> Result<(), Refused> {
        if self.in_flight() >= self.depth {
            return Err(Refused {
                reason: Refusal::Full,
                data: job.data,
            });
        }
        if descriptor(&self.files, job.file).is_none() {
            return Err(Refused {
                reason: Refusal::UnknownFile,
                data: job.data,
            });
        }
        self.counters.operations += 1;
        if matches!(
            job.operation,
            Operation::Discard { .. } | Operation::ZeroOut { .. }
        ) {
            return self.push_to_helper(job);
        }
        let Job {
            token,
            file,
            operation,
            data,
        } = job;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
                self.entries.push(Entry {
                    token: 0,
                    file,
                    operation,
                    data: Data::None,
                    total: 0,
                    done: 0,
                    repeats: 0,
                    busy: false,
                    ranges: Ranges::new(),
                });
                index
            }
        };
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.token = token;
            entry.file = file;
            entry.operation = operation;
            entry.data = data;
            entry.total = total;
            entry.done = 0;
            entry.repeats = 0;
            entry.busy = true;
            self.in_flight += 1;
            self.stage(index);
        }
        Ok(())
    }

    fn push_to_helper(&mut self, job: Job) -> Result<(), Refused> {
        if self.helper.is_none() {
            let depth = u16::try_from(self.depth).unwrap_or(u16::MAX);
            match Pool::new(depth, 1, self.files.clone()) {
                Ok(pool) => self.helper = Some(pool),
                Err(_) => {
                    return Err(Refused {
                        reason: Refusal::Full,
                        data: job.data,
                    });
                }
            }
        }
        match &mut self.helper {
            Some(helper) => helper.push(job),
            None => Err(Refused {
                reason: Refusal::Full,
                data: job.data,
            }),
        }
    }

    /// Puts the entry's next submission into the ring, to be started by the next enter.
    fn stage(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        let submission = match descriptor(&self.files, entry.file) {
            Some(_) if self.registered => {
                submission(entry, RawFd::from(entry.file.0)).flags(squeue::Flags::FIXED_FILE)
            }
            Some(fd) => submission(entry, fd),
            // Checked when the operation was pushed; the files never change.
            None => opcode::Nop::new().build(),
        };
        // SAFETY: the memory and the I/O vectors that the submission refers to are owned by the entry, which keeps them
        // until the submission's completion was seen (or leaks them); the files live as long as the ring.
        let pushed = unsafe {
            self.ring
                .submission()
                .push(&submission.user_data(u64::from(index)))
        };
        debug_assert!(pushed.is_ok(), "the ring has a place for every entry");
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        if let Some(helper) = &mut self.helper {
            helper.submit()?;
            if helper.in_flight() > 0 && !self.helper_polled {
                let poll = opcode::PollAdd::new(
                    types::Fd(helper.wait_descriptor().as_raw_fd()),
                    libc::POLLIN as u32,
                )
                .build()
                .user_data(HELPER);
                // SAFETY: the submission refers to no memory.
                self.helper_polled = unsafe { self.ring.submission().push(&poll) }.is_ok();
            }
        }
        self.enter()
    }

    fn enter(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            self.counters.system_calls += 1;
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, f: &mut impl FnMut(u64, io::Result<u32>, Data)) -> io::Result<usize> {
        let mut over = 0;
        let mut staged = false;
        if self.in_flight() > 0 && self.ring.completion().is_empty() && self.ring.submission().taskrun() {
            // Completions wait for this thread to enter the kernel.
            self.counters.system_calls += 1;
            self.ring.submit_and_wait(0)?;
        }
        while let Some(completion) = next(&mut self.ring) {
            let (user_data, result) = completion;
            if user_data == HELPER {
                self.helper_polled = false;
                if let Some(helper) = &mut self.helper {
                    over += helper.poll(f);
                    staged |= helper.in_flight() > 0;
                }
                continue;
            }
            let index = u32::try_from(user_data).unwrap_or(u32::MAX);
            let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| entry.busy) else {
                continue;
            };
            // The end of the thread that submitted an operation cancels it, and another thread owns the ring now.
            let result = if result == -libc::ECANCELED {
                -libc::EAGAIN
            } else {
                result
            };
            let outcome = match step(entry.operation, entry.done, entry.total, i64::from(result)) {
                Step::Over(outcome) => outcome,
                Step::Continue { done } => {
                    entry.done = done;
                    self.stage(index);
                    staged = true;
                    continue;
                }
                Step::Repeat if entry.repeats < MAX_REPEATS => {
                    entry.repeats += 1;
                    self.stage(index);
                    staged = true;
                    continue;
                }
                Step::Repeat => Err(io::Error::from_raw_os_error(libc::EIO)),
            };
            let (token, data) = (entry.token, mem::take(&mut entry.data));
            entry.busy = false;
            self.free.push(index);
            self.in_flight -= 1;
            over += 1;
            f(token, outcome, data);
        }
        if staged {
            self.submit()?;
        }
        Ok(over)
    }

    pub(super) fn close(&mut self, limit: Duration, f: &mut impl FnMut(u64, Data)) {
        let deadline = Instant::now() + limit;
        if let Some(helper) = &mut self.helper {
            helper.close(limit, f);
        }
        loop {
            while let Some((user_data, _)) = next(&mut self.ring) {
                let index = u32::try_from(user_data).unwrap_or(u32::MAX);
                if let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| entry.busy) {
                    entry.busy = false;
                    self.in_flight -= 1;
                    f(entry.token, mem::take(&mut entry.data));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.in_kernel() == 0 || left.is_zero() {
                break;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut wait = [PollFd::new(self.wait_descriptor(), PollFlags::POLLIN)];
            if nix::poll::poll(&mut wait, timeout).is_err() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let in_kernel = self.in_kernel() > 0;
        for entry in self.entries.iter_mut().filter(|entry| entry.busy) {
            entry.busy = false;
            let data = mem::take(&mut entry.data);
            if in_kernel {
                // The kernel may still write it, and which entries it holds is not known.
                mem::forget(data);
                mem::forget(mem::take(&mut entry.ranges.0));
            } else {
                f(entry.token, data);
            }
        }
        self.in_flight = 0;
        self.depth = 0;
    }

    /// How many entries the kernel may hold: never too few, but one too many while the helper's poll is there too.
    fn in_kernel(&mut self) -> usize {
        let unsent = self
            .ring
            .submission()
            .len()
            .saturating_sub(usize::from(self.helper_polled));
        self.in_flight.saturating_sub(unsent)
    }

    pub(super) fn wait_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    pub(super) fn counters(&self) -> FileRingCounters {
        let helper = self
            .helper
            .as_ref()
            .map_or(0, |helper| helper.counters().system_calls);
        FileRingCounters {
            system_calls: self.counters.system_calls + helper,
            ..self.counters
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_flight() > 0 {
            self.close(super::DRAIN_LIMIT, &mut |_, _| {});
        }
        if self.registered {
            // The kernel takes a ring apart later; this way it lets go of the files now. Nothing depends on it.
            let _ = self.ring.submitter().unregister_files();
        }
    }
}

fn next(ring: &mut IoUring) -> Option<(u64, i32)> {
    ring.completion()
        .next()
        .map(|entry| (entry.user_data(), entry.result()))
}

/// What the entry still has to do, as a submission.
fn submission(entry: &mut Entry, file: RawFd) -> squeue::Entry {
    let file = types::Fd(file);
    let done = entry.done as u64;
    match entry.operation {
        Operation::Nop | Operation::Discard { .. } | Operation::ZeroOut { .. } => opcode::Nop::new().build(),
        Operation::Read { offset } => {
            entry.ranges.fill(&entry.data, entry.done);
            match entry.ranges.0.as_slice() {
                [range] => {
                    let len = u32::try_from(range.iov_len).unwrap_or(0);
                    opcode::Read::new(file, range.iov_base.cast(), len)
                        .offset(offset + done)
                        .build()
                }
                ranges => opcode::Readv::new(file, ranges.as_ptr(), entry.ranges.count())
                    .offset(offset + done)
                    .build(),
            }
        }
        Operation::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            entry.ranges.fill(&entry.data, entry.done);
            match entry.ranges.0.as_slice() {
                [range] => {
                    let len = u32::try_from(range.iov_len).unwrap_or(0);
                    opcode::Write::new(file, range.iov_base.cast(), len)
                        .offset(offset + done)
                        .rw_flags(flags)
                        .build()
                }
                ranges => opcode::Writev::new(file, ranges.as_ptr(), entry.ranges.count())
                    .offset(offset + done)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::SyncData => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Operation::Sync => opcode::Fsync::new(file).build(),
        Operation::PunchHole { .. } | Operation::ZeroRange { .. } | Operation::Allocate { .. } => {
            let (mode, offset, len) = entry.operation.fallocate().unwrap_or((0, 0, 0));
            opcode::Fallocate::new(file, len)
                .offset(offset)
                .mode(mode)
                .build()
        }
    }
}
