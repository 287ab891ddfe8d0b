//! Copies between drives through the memory buffer of one of them ([`PeerBuffer`]): the data never is in the memory of this machine.
//!
//! Reads of the source land in the buffer, and writes of the destination take them from there. For its own drive the buffer is inside; the
//! other one reaches it as it reaches memory, through the IOMMU and the bus, where these allow that.

use std::fmt;
use std::os::fd::BorrowedFd;

use homi_nvme::{Cmb, CmbMemory, Mapped};
use homi_queue::{Command, Completed, Data, Queue, QueueLost, Wait};
use homi_spec::status::Status;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::drive::{Drive, DriveError};
use crate::drive_queue::DriveQueue;

/// Rounds that find nothing before the thread sleeps.
const PATIENCE: u32 = 200;
/// The longest sleep in milliseconds.
const LONGEST_SLEEP: u8 = 10;

/// Whose memory buffer data goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// That of the drive which is written.
    Destination,
    /// That of the drive which is read.
    Source,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Destination => "destination",
            Self::Source => "source",
        })
    }
}

/// Why a drive's memory buffer cannot be used for a copy.
#[derive(Debug, thiserror::Error)]
#[error("the memory buffer of the {holder} cannot be used: {reason}")]
pub struct Unusable {
    /// Whose it is.
    pub holder: Holder,
    /// What is missing.
    pub reason: String,
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A drive cannot be used.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// There is no queue.
    #[error("no queue pair: {0}")]
    Queue(#[from] std::io::Error),
    /// A range is not of whole blocks of both drives, or does not fit.
    #[error("{0}")]
    Range(String),
    /// A drive refused a command.
    #[error("{what} of {drive} at byte {at} failed: {status}")]
    Status {
        /// "a read" or "a write".
        what: &'static str,
        /// Which drive.
        drive: String,
        /// The first byte of the command.
        at: u64,
        /// What the drive said.
        status: Status,
    },
    /// A queue was lost: its drive was reset or removed.
    #[error("{drive}: {reason}")]
    Lost {
        /// Which drive.
        drive: String,
        /// Why.
        reason: String,
    },
}

/// What is copied.
#[derive(Debug, Clone, Copy)]
pub struct CopyRange {
    /// First byte on the source.
    pub from: u64,
    /// First byte on the destination.
    pub to: u64,
    /// Bytes.
    pub count: u64,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopyReport {
    /// Commands that read.
    pub reads: u64,
    /// Commands that wrote.
    pub writes: u64,
    /// Regions that were mapped for commands: of memory of this machine there is none.
    pub mapped: u64,
    /// Transfers that went through memory of this machine.
    pub bounced: u64,
}

/// Part of a drive's memory buffer that two drives reach.
pub struct PeerBuffer {
    holder: Holder,
    source: Drive,
    destination: Drive,
    memory: CmbMemory,
    cmb: Cmb,
    _mapped: Option<Mapped>,
    /// Bytes of a transfer.
    chunk: usize,
}

impl PeerBuffer {
    /// A part of the destination's buffer, or else of the source's, for up to `depth` transfers of `chunk` bytes (fewer and shorter ones if
    /// there is not as much). The second of the pair says why an earlier choice was not taken.
    ///
    /// # Errors
    /// Why neither can be used.
    pub fn choose(
        source: &Drive,
        destination: &Drive,
        chunk: u64,
        depth: u16,
    ) -> Result<(Self, Option<Unusable>), [Unusable; 2]> {
        match Self::of(Holder::Destination, source, destination, chunk, depth) {
            Ok(buffer) => Ok((buffer, None)),
            Err(first) => match Self::of(Holder::Source, source, destination, chunk, depth) {
                Ok(buffer) => Ok((buffer, Some(first))),
                Err(second) => Err([first, second]),
            },
        }
    }

    /// The same with the buffer of one of them.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn of(
        holder: Holder,
        source: &Drive,
        destination: &Drive,
        chunk: u64,
        depth: u16,
    ) -> Result<Self, Unusable> {
        let unusable = |reason: String| Unusable { holder, reason };
        let (own, other) = match holder {
            Holder::Destination => (destination, source),
            Holder::Source => (source, destination),
        };
        let alone = source.is_beside(destination);
        let cmb = own.cmb().map_err(|error| unusable(error.to_string()))?;
        let support = cmb.support();
        let (reads, writes) = (
            alone || holder == Holder::Source,
            alone || holder == Holder::Destination,
        );
        if reads && !support.read_data() {
            return Err(unusable(format!(
                "that of {} takes no data that it reads (CMBSZ.RDS)",
                own.name()
            )));
        }
        if writes && !support.write_data() {
            return Err(unusable(format!(
                "that of {} has no data that it writes (CMBSZ.WDS)",
                own.name()
            )));
        }
        let unit = block(source).max(block(destination));
        let free = cmb.free_bytes();
        let most = source.max_transfer().min(destination.max_transfer());
        // Whole blocks of both: sizes of blocks are powers of two.
        let chunk = chunk.min(free).min(most.into()) / unit * unit;
        let slots = free.checked_div(chunk).unwrap_or(0).min(u64::from(depth.max(1)));
        let len = usize::try_from(chunk * slots).unwrap_or(usize::MAX);
        if len == 0 {
            return Err(unusable(format!(
                "that of {} has {free} bytes free, a block has {unit}",
                own.name()
            )));
        }
        let memory = cmb
            .allocate(len)
            .map_err(|error| unusable(format!("{}: {error}", own.name())))?;
        let mapped = if alone {
            None
        } else {
            let mapped = other.map(cmb.memory());
            Some(mapped.map_err(|error| unusable(format!("the other drive cannot reach it: {error}")))?)
        };
        Ok(Self {
            holder,
            source: source.clone(),
            destination: destination.clone(),
            memory,
            cmb,
            _mapped: mapped,
            chunk: usize::try_from(chunk).unwrap_or(usize::MAX),
        })
    }

    /// Whose buffer it is.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.holder
    }

    /// The drive whose buffer it is.
    #[must_use]
    pub fn drive(&self) -> &Drive {
        match self.holder {
            Holder::Destination => &self.destination,
            Holder::Source => &self.source,
        }
    }

    /// Bytes of a transfer, and how many there are at a time.
    #[must_use]
    pub fn window(&self) -> (usize, usize) {
        (self.chunk, self.memory.region().len() / self.chunk.max(1))
    }

    /// Copies, and makes it durable if `flush` says so. `progress` is told how many bytes have been written.
    ///
    /// # Errors
    /// [`CopyError`]; some of the destination may be written then.
    pub fn copy(
        &self,
        range: CopyRange,
        flush: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<CopyReport, CopyError> {
        self.check(range)?;
        let (chunk, slots) = self.window();
        let depth = u16::try_from(slots).unwrap_or(u16::MAX);
        let mut reader = End::open(&self.source, depth, range.from)?;
        let mut writer = End::open(&self.destination, depth, range.to)?;
        let epoch = self.cmb.epoch();
        let region = self.memory.region();
        let part = |slot: usize, len: usize| {
            let at = slot * chunk;
            // A slot is within the part, and a transfer within a slot.
            region.segment(at..at + len).map(Data::One).unwrap_or(Data::None)
        };
        let mut free: Vec<usize> = (0..slots).collect();
        let (mut next, mut written, mut idle) = (0_u64, 0_u64, 0_u32);
        while written < range.count {
            while next < range.count
                && let Some(slot) = free.pop()
            {
                let len = usize::try_from(range.count - next)
                    .unwrap_or(usize::MAX)
                    .min(chunk);
                if !reader.start(false, slot, next, part(slot, len)) {
                    free.push(slot);
                    break;
                }
                next += len as u64;
            }
            let mut moved = false;
            for Step { slot, at, len } in reader.finish("a read")? {
                moved = true;
                // As many writes as reads fit their queues.
                if !writer.start(true, slot, at, part(slot, len)) {
                    return Err(CopyError::Range(
                        "a queue is full that has room: this is a fault of the program".to_owned(),
                    ));
                }
            }
            for Step { slot, len, .. } in writer.finish("a write")? {
                moved = true;
                free.push(slot);
                written += len as u64;
                progress(written);
            }
            if self.cmb.epoch() != epoch {
                return Err(CopyError::Lost {
                    drive: self.drive().name().to_owned(),
                    reason: "it was reset, which its memory buffer may not have survived".to_owned(),
                });
            }
            idle = if moved { 0 } else { idle + 1 };
            if idle > PATIENCE {
                sleep([reader.queue.wait_descriptor(), writer.queue.wait_descriptor()]);
            }
        }
        if flush {
            writer.flush()?;
        }
        let (reads, writes) = (reader.queue.counters(), writer.queue.counters());
        Ok(CopyReport {
            reads: reader.commands,
            writes: writer.commands,
            mapped: reads.mapped + writes.mapped,
            bounced: reads.bounced + writes.bounced,
        })
    }

    fn check(&self, range: CopyRange) -> Result<(), CopyError> {
        let ends = [
            (&self.source, range.from, "--from"),
            (&self.destination, range.to, "--to"),
        ];
        for (drive, at, what) in ends {
            let (size, block) = (drive.geometry().bytes(), block(drive));
            if !at.is_multiple_of(block) || !range.count.is_multiple_of(block) {
                return Err(CopyError::Range(format!(
                    "through a memory buffer go whole blocks: the first byte ({what}) and the count must be multiples of {block}"
                )));
            }
            if at.checked_add(range.count).is_none_or(|end| end > size) {
                return Err(CopyError::Range(format!(
                    "{} bytes from byte {at} on do not fit namespace {} of {}, which has {size}",
                    range.count,
                    drive.nsid(),
                    drive.name()
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PeerBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerBuffer")
            .field("holder", &self.holder)
            .field("chunk", &self.chunk)
            .finish_non_exhaustive()
    }
}

fn block(drive: &Drive) -> u64 {
    u64::from(drive.geometry().block_size())
}

#[derive(Debug, Clone, Copy, Default)]
struct Step {
    slot: usize,
    /// Offset in what is copied.
    at: u64,
    len: usize,
}

/// One drive's side of a copy.
struct End {
    queue: DriveQueue,
    block: u64,
    start: u64,
    /// By slot of the queue.
    steps: Vec<Step>,
    completed: Vec<Completed>,
    commands: u64,
    uncommitted: bool,
}

impl End {
    fn open(drive: &Drive, depth: u16, start: u64) -> Result<Self, CopyError> {
        let queue = drive.open_queue(depth)?;
        let depth = usize::from(queue.depth());
        Ok(Self {
            block: block(drive),
            start,
            steps: vec![Step::default(); depth],
            completed: Vec::with_capacity(depth),
            commands: 0,
            uncommitted: false,
            queue,
        })
    }

    /// Starts a transfer; false if the queue is full.
    fn start(&mut self, write: bool, slot: usize, at: u64, data: Data) -> bool {
        let Ok(place) = self.queue.reserve() else {
            return false;
        };
        let len = data.len();
        let (lba, blocks) = ((self.start + at) / self.block, len as u64 / self.block);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let command = if write {
            Command::write(1, lba, blocks)
        } else {
            Command::read(1, lba, blocks)
        };
        if let Some(step) = self.steps.get_mut(place.index()) {
            *step = Step { slot, at, len };
        }
        self.queue.submit(place, command, data);
        self.commands += 1;
        self.uncommitted = true;
        true
    }

    /// Transfers that are over.
    fn finish(&mut self, what: &'static str) -> Result<Vec<Step>, CopyError> {
        if std::mem::take(&mut self.uncommitted) {
            let committed = self.queue.commit();
            committed.map_err(|lost| self.lost(&lost))?;
        }
        let polled = self.queue.poll(&mut self.completed);
        polled.map_err(|lost| self.lost(&lost))?;
        let depth = self.queue.depth();
        let mut done = Vec::new();
        for completed in self.completed.drain(..) {
            let step = self.steps.get(completed.id.slot_index(depth)).copied();
            let step = step.unwrap_or_default();
            if !completed.completion.is_success() {
                return Err(CopyError::Status {
                    what,
                    drive: self.queue.drive().name().to_owned(),
                    at: self.start + step.at,
                    status: completed.completion.status,
                });
            }
            done.push(step);
        }
        Ok(done)
    }

    fn lost(&self, lost: &QueueLost) -> CopyError {
        CopyError::Lost {
            drive: self.queue.drive().name().to_owned(),
            reason: lost.reason().to_string(),
        }
    }

    fn flush(&mut self) -> Result<(), CopyError> {
        let Ok(place) = self.queue.reserve() else {
            return Ok(());
        };
        self.queue.submit(place, Command::flush(1), Data::None);
        self.uncommitted = true;
        while self.finish("a flush")?.is_empty() {
            sleep([self.queue.wait_descriptor(), None]);
        }
        Ok(())
    }
}

fn sleep(descriptors: [Option<BorrowedFd<'_>>; 2]) {
    if descriptors.iter().any(Option::is_none) && descriptors.iter().any(Option::is_some) {
        // One of the queues can only be polled.
        return std::thread::yield_now();
    }
    let mut wanted: Vec<PollFd<'_>> = descriptors
        .into_iter()
        .flatten()
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
        .collect();
    // A sleep that ends early costs a look.
    let _ = poll(&mut wanted, PollTimeout::from(LONGEST_SLEEP));
}
