//! [`NvmeRing`]: NVMe commands through the kernel's own driver, on a namespace's generic character device (`/dev/ng0n1`).
//!
//! Each command goes as it is, but for the namespace and the data pointer: its fields travel in the submission entry
//! (`IORING_OP_URING_CMD` with `NVME_URING_CMD_IO`), and the controller's own status and result come back in the completion
//! entry. There is no block layer in between that splits, merges or retries. One ring belongs to one thread; operations are
//! pushed with the memory they use, started in a batch by [`NvmeRing::submit`] with one system call, and come back from
//! [`NvmeRing::poll`] with that memory. The promises are those of the [file ring](crate::file_ring): memory belongs to the
//! ring until the operation is over, dropping it waits for what the kernel holds (and leaks what the kernel does not let go
//! of), nothing is allocated per operation once the ring is warm, and polling an idle ring makes no system call.
//!
//! Memory that is used again and again can be kept registered ([`Registration`]), so that the kernel does not look up and
//! pin its pages for every command.
//!
//! This module trusts the lengths that it is given: the controller moves as many bytes as the *command* says, wherever the
//! kernel's list of pages ends. Checking one against the other is the work of whoever knows the namespace (`homi-local`).
//!
//! Not here: metadata, fused commands, polled queues (`IORING_SETUP_IOPOLL`), and admin commands in a ring
//! ([`admin`] does those one by one, blocking).
#![expect(unsafe_code, reason = "hands addresses of owned memory to the kernel")]

mod admin;
mod registered;
#[cfg(test)]
mod tests;
mod wire;

pub use admin::{AdminError, admin, namespace_id};

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use homi_queue::{Command, Data, Region};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use registered::Registered;

/// How long dropping a ring waits for commands that the kernel holds.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The most ranges of memory that one command takes (`IOV_MAX` of Linux).
pub const MAX_RANGES: usize = 1024;
/// Ranges that there is room for from the start; longer lists make room once.
const FEW_RANGES: usize = 8;
/// User data of a submission that only wakes.
const WAKE: u64 = u64::MAX;
/// How often a command that the kernel asks to repeat (`EAGAIN`) is repeated before it fails. It was not executed then.
const MAX_REPEATS: u8 = 64;

/// Whether memory is kept registered with the kernel between commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Registration {
    /// Only what [`NvmeRing::register`] is given.
    #[default]
    Explicit,
    /// A region that is used a second time is registered, up to a limit, and holds a reference to it until
    /// [`NvmeRing::forget`]. For issuers that do not look at how many references there are.
    Automatic,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeRingError {
    /// The system lets nobody use io_uring, or not this process.
    #[error(
        "io_uring is not available ({0}): allow it (sysctl kernel.io_uring_disabled=0, or the container's seccomp profile)"
    )]
    NoIoUring(io::Error),
    /// The kernel's io_uring has no entries large enough for an NVMe command.
    #[error(
        "this kernel's io_uring has no 128-byte submission entries, which Linux 5.19 has: use a newer kernel"
    )]
    NoLargeEntries,
    /// The kernel's io_uring passes no commands to drivers.
    #[error("this kernel's io_uring has no IORING_OP_URING_CMD, which Linux 5.19 has: use a newer kernel")]
    NoCommands,
    /// No memory or descriptors for it.
    #[error("cannot set up an io_uring for {depth} commands: {source}")]
    System {
        /// Commands asked for.
        depth: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NvmeRefusal {
    /// `depth` commands are in flight.
    #[error("the ring is full: poll for completions before pushing more")]
    Full,
    /// The part lies outside of the data, or the data is not memory (`Data::Anywhere`).
    #[error("the bytes asked for do not lie in the command's memory")]
    Memory,
    /// The part consists of more ranges than the kernel takes.
    #[error("the command's memory has more than {MAX_RANGES} ranges: copy it into fewer")]
    Ranges,
}

/// A command that was not taken, with its memory.
#[derive(Debug)]
pub struct NvmeRefused {
    /// Why.
    pub reason: NvmeRefusal,
    /// The command's memory, handed back.
    pub data: Data,
}

/// A command for a ring.
#[derive(Debug)]
pub struct NvmeOperation {
    /// Comes back with the outcome; may be anything.
    pub token: u64,
    /// The command. Its namespace and data pointer are set by the ring.
    pub command: Command,
    /// Memory that belongs to the operation until it is over.
    pub data: Data,
    /// The bytes of it that the command uses; an empty range for none.
    pub part: Range<usize>,
    /// Whether the memory may be kept registered ([`Registration::Automatic`]); not if it is looked at how many references there
    /// are to it.
    pub lasting: bool,
}

/// What the controller said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmeOutcome {
    /// The 15 bits of the status above the phase tag (Base 2.0 §3.3.3.2.1); 0 is success.
    pub status: u16,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
}

/// What a ring has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NvmeRingCounters {
    /// Commands pushed.
    pub operations: u64,
    /// System calls made for them.
    pub system_calls: u64,
    /// Commands whose memory was registered.
    pub fixed: u64,
    /// Regions registered.
    pub registrations: u64,
}

/// One command in flight.
struct Entry {
    token: u64,
    command: Command,
    data: Data,
    lasting: bool,
    repeats: u8,
    busy: bool,
    ranges: Ranges,
}

/// NVMe commands on one namespace; see the [module](self).
pub struct NvmeRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry32>,
    file: Arc<OwnedFd>,
    nsid: u32,
    /// Whether the device is registered, so that a command takes no reference on it.
    fixed_file: bool,
    registered: Registered,
    entries: Vec<Entry>,
    free: Vec<u32>,
    depth: usize,
    in_flight: usize,
    /// A submission is on its way that only wakes.
    waking: bool,
    counters: NvmeRingCounters,
}

impl NvmeRing {
    /// A ring for up to `depth` (1 to 4096) commands in flight on this device, all of which address namespace `nsid`.
    ///
    /// # Errors
    /// [`NvmeRingError`], which names what is missing.
    pub fn new(
        depth: u16,
        file: Arc<OwnedFd>,
        nsid: u32,
        registration: Registration,
    ) -> Result<Self, NvmeRingError> {
        let depth = depth.clamp(1, 4096);
        let ring = build(depth)?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(NvmeRingError::NoIoUring)?;
        if !probe.is_supported(opcode::UringCmd80::CODE) {
            return Err(NvmeRingError::NoCommands);
        }
        // Registration only saves time; where a limit forbids it, the descriptor is used as it is.
        let fixed_file = ring.submitter().register_files(&[file.as_raw_fd()]).is_ok();
        let registered = Registered::new(&ring.submitter(), registration);
        Ok(Self {
            ring,
            file,
            nsid,
            fixed_file,
            registered,
            entries: Vec::new(),
            free: Vec::new(),
            depth: usize::from(depth),
            in_flight: 0,
            waking: false,
            counters: NvmeRingCounters::default(),
        })
    }

    /// Commands pushed and not yet handed back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Keeps a region registered for as long as the ring lives, or until [`NvmeRing::forget`]: commands whose memory is one range
    /// of it cost the kernel less. Returns whether there was room for it and the system allowed it; everything works without.
    pub fn register(&mut self, region: &Region) -> bool {
        let done = self.registered.add(&self.ring.submitter(), region);
        self.counters.registrations += u64::from(done);
        done
    }

    /// Gives up the registration of the region that these bytes lie in, and the reference to it. No command on it may be in flight.
    pub fn forget(&mut self, address: *const u8) {
        self.registered.forget(&self.ring.submitter(), address);
    }

    /// Takes a command with its memory; it starts with the next [`NvmeRing::submit`].
    ///
    /// # Errors
    /// [`NvmeRefused`], with the memory, if the command cannot be taken.
    pub fn push(&mut self, operation: NvmeOperation) -> Result<(), NvmeRefused> {
        let NvmeOperation {
            token,
            command,
            data,
            part,
            lasting,
        } = operation;
        let refuse = |reason, data| Err(NvmeRefused { reason, data });
        if self.in_flight >= self.depth {
            return refuse(NvmeRefusal::Full, data);
        }
        let len = match &data {
            Data::Anywhere { .. } => return refuse(NvmeRefusal::Memory, data),
            data => data.len(),
        };
        if part.start > part.end || part.end > len || u32::try_from(part.len()).is_err() {
            return refuse(NvmeRefusal::Memory, data);
        }
        let index = self.take_entry();
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return refuse(NvmeRefusal::Full, data);
        };
        if !entry.ranges.fill(&data, part) {
            self.free.push(index);
            return refuse(NvmeRefusal::Ranges, data);
        }
        entry.token = token;
        entry.command = command;
        entry.data = data;
        entry.lasting = lasting;
        entry.repeats = 0;
        entry.busy = true;
        self.in_flight += 1;
        self.counters.operations += 1;
        self.stage(index);
        Ok(())
    }

    /// Has the next [`NvmeRing::submit`] make the descriptor readable, for an outcome that is known without the drive.
    pub fn wake(&mut self) {
        if !self.waking {
            self.waking = true;
            let nop = squeue::Entry128::from(opcode::Nop::new().build());
            self.put(&nop.user_data(WAKE));
        }
    }

    fn take_entry(&mut self) -> u32 {
        if let Some(index) = self.free.pop() {
            return index;
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry {
            token: 0,
            command: Command::default(),
            data: Data::None,
            lasting: false,
            repeats: 0,
            busy: false,
            ranges: Ranges::new(),
        });
        index
    }

    /// Puts the entry's submission into the ring, to be started by the next enter.
    fn stage(&mut self, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else {
            return;
        };
        let ranges = entry.ranges.0.as_slice();
        let mut buffer = None;
        let (operation, address, len) = match ranges {
            [] => (wire::URING_CMD_IO, 0, 0),
            [range] => {
                if let Data::One(segment) = &entry.data {
                    let found = self
                        .registered
                        .find(&self.ring.submitter(), segment.region(), entry.lasting);
                    self.counters.registrations += u64::from(found.is_new);
                    buffer = found.index;
                }
                let len = u32::try_from(range.iov_len).unwrap_or(0);
                (wire::URING_CMD_IO, range.iov_base.addr() as u64, len)
            }
            // The number of ranges, at the address of their list.
            ranges => {
                let count = u32::try_from(ranges.len()).unwrap_or(0);
                (wire::URING_CMD_IO_VEC, ranges.as_ptr().addr() as u64, count)
            }
        };
        self.counters.fixed += u64::from(buffer.is_some());
        let command = wire::command(&entry.command, self.nsid, address, len);
        let submission = if self.fixed_file {
            opcode::UringCmd80::new(types::Fixed(0), operation)
                .cmd(command)
                .buf_index(buffer)
                .build()
        } else {
            opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), operation)
                .cmd(command)
                .buf_index(buffer)
                .build()
        };
        self.put(&submission.user_data(u64::from(index)));
    }

    fn put(&mut self, submission: &squeue::Entry128) {
        // SAFETY: the memory and the ranges that the command refers to are owned by its entry, which keeps them until its
        // completion was seen (or leaks them); registered memory is kept by the table; the device lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(submission) };
        debug_assert!(pushed.is_ok(), "the ring has a place for every entry");
    }

    /// Starts everything pushed since the last call: one system call for the batch, which also collects what the kernel has
    /// finished meanwhile.
    ///
    /// # Errors
    /// What the system said; the commands stay pushed, and the next call tries again.
    pub fn submit(&mut self) -> io::Result<()> {
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

    /// Hands over every command that is over: its token, what the controller said or the kernel's error, and its memory.
    /// Returns how many there were. Makes no system call when there are none.
    ///
    /// # Errors
    /// What the system said when a command that must be repeated could not be; it stays pushed.
    pub fn poll(&mut self, f: &mut impl FnMut(u64, io::Result<NvmeOutcome>, Data)) -> io::Result<usize> {
        let mut over = 0;
        let mut staged = false;
        if (self.in_flight > 0 || self.waking)
            && self.ring.completion().is_empty()
            && self.ring.submission().taskrun()
        {
            // Completions wait for this thread to enter the kernel.
            self.counters.system_calls += 1;
            match self.ring.submit_and_wait(0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        while let Some((user_data, result, extra)) = next(&mut self.ring) {
            if user_data == WAKE {
                self.waking = false;
                continue;
            }
            let index = u32::try_from(user_data).unwrap_or(u32::MAX);
            let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| entry.busy) else {
                continue;
            };
            if result == -libc::EAGAIN && entry.repeats < MAX_REPEATS {
                entry.repeats += 1;
                self.stage(index);
                staged = true;
                continue;
            }
            let outcome = match u16::try_from(result) {
                Ok(status) => Ok(NvmeOutcome {
                    status,
                    result: extra,
                }),
                Err(_) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                Err(_) => Err(io::ErrorKind::InvalidData.into()),
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

    /// Gives up: waits, for a bounded time, until the kernel is done with the commands in flight, then hands over every token
    /// with its memory. Commands that the kernel would not let go of by then are not handed over, and their memory is never
    /// reused. Commands that were not submitted are not executed. The ring takes no more.
    pub fn close(&mut self, f: &mut impl FnMut(u64, Data)) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        loop {
            while let Some((user_data, ..)) = next(&mut self.ring) {
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
                // The controller may still write it, and which entries the kernel holds is not known.
                mem::forget(data);
                mem::forget(mem::take(&mut entry.ranges.0));
            } else {
                f(entry.token, data);
            }
        }
        self.in_flight = 0;
        self.depth = 0;
    }

    /// How many commands the kernel may hold: never too few, but one too many while a waking submission is there too.
    fn in_kernel(&mut self) -> usize {
        let unsent = self
            .ring
            .submission()
            .len()
            .saturating_sub(usize::from(self.waking));
        self.in_flight.saturating_sub(unsent)
    }

    /// A descriptor that is readable while [`NvmeRing::poll`] may find something.
    #[must_use]
    pub fn wait_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// What the ring has done so far.
    #[must_use]
    pub fn counters(&self) -> NvmeRingCounters {
        self.counters
    }
}

fn build(depth: u16) -> Result<IoUring<squeue::Entry128, cqueue::Entry32>, NvmeRingError> {
    // Completion work waits until this thread enters the kernel anyway, instead of interrupting it.
    IoUring::<squeue::Entry128, cqueue::Entry32>::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        // One more than the depth, for waking.
        .build(u32::from(depth) + 1)
        .map_err(|source| match source.raw_os_error() {
            // The flags are as old as the large entries.
            Some(libc::EINVAL) => NvmeRingError::NoLargeEntries,
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => NvmeRingError::NoIoUring(source),
            _ => NvmeRingError::System { depth, source },
        })
}

impl Drop for NvmeRing {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            self.close(&mut |_, _| {});
        }
        let submitter = self.ring.submitter();
        if self.fixed_file {
            // The kernel takes a ring apart later; this way it lets go of the device now. Nothing depends on it.
            let _ = submitter.unregister_files();
        }
        self.registered.clear(&submitter);
    }
}

impl fmt::Debug for NvmeRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeRing")
            .field("nsid", &self.nsid)
            .field("in_flight", &self.in_flight)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn next(ring: &mut IoUring<squeue::Entry128, cqueue::Entry32>) -> Option<(u64, i32, u64)> {
    ring.completion().next().map(|entry| {
        let [result, _] = entry.big_cqe();
        (entry.user_data(), entry.result(), *result)
    })
}

/// I/O vectors for a command: capacity kept from command to command.
struct Ranges(Vec<libc::iovec>);

// SAFETY: the addresses are plain numbers until a system call uses them; the entry that owns this value owns the memory as
// well, wherever it goes.
unsafe impl Send for Ranges {}

impl Ranges {
    fn new() -> Self {
        Self(Vec::with_capacity(FEW_RANGES))
    }

    /// The part of `data`; `false` if it has too many ranges.
    fn fill(&mut self, data: &Data, part: Range<usize>) -> bool {
        self.0.clear();
        let (mut skip, mut left) = (part.start, part.len());
        for segment in data.segments() {
            if left == 0 {
                break;
            }
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            if self.0.len() == MAX_RANGES {
                return false;
            }
            let len = (segment.len() - skip).min(left);
            self.0.push(libc::iovec {
                iov_base: segment.host_address().wrapping_add(skip).cast(),
                iov_len: len,
            });
            skip = 0;
            left -= len;
        }
        true
    }
}
