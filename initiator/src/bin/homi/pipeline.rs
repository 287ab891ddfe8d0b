//! Moves bytes from one place to another with many transfers in flight: reads run ahead of writes by a window of chunks, both
//! ends are driven by one thread, and each chunk's memory goes from the read straight into the write.
//!
//! A file is read and written in the calling thread, since the page cache answers at once; a `file://` URI goes through the
//! kernel's queue instead. What is at the end of the last block and not copied stays as it is.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use homi_initiator::{AnyQueue, Device, Disk, QueueOptions, slices};
use homi_queue::{Command, Completed, Data, Queue, Region, Wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::checksum::Hasher;
use crate::failure::Failure;

/// Rounds that find nothing before the thread sleeps.
const PATIENCE: u32 = 200;
/// The longest sleep in milliseconds.
const LONGEST_SLEEP: u8 = 10;

/// A place that bytes come from or go to.
pub(crate) enum End {
    /// Blocks behind a queue.
    Blocks(Box<Blocks>),
    /// A file.
    File(File, PathBuf),
}

/// Blocks behind a queue, and which chunk each command in flight is for.
pub(crate) struct Blocks {
    device: Device,
    queue: AnyQueue,
    chunks: Vec<usize>,
    completed: Vec<Completed>,
    in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Reading,
    Ready,
    Writing,
}

struct Chunk {
    state: State,
    len: usize,
    /// Absent while a command has it.
    memory: Option<Region>,
    scratch: Vec<u8>,
}

impl Chunk {
    /// Has `f` write the chunk's bytes.
    fn fill<R>(&mut self, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, Failure> {
        let region = self.memory.take().ok_or_else(in_use)?;
        let (region, result) = slices::fill(region, self.len, &mut self.scratch, f)?;
        self.memory = Some(region);
        Ok(result)
    }

    /// Has `f` look at the chunk's bytes from one on.
    fn look<R>(&mut self, from: usize, f: impl FnOnce(&[u8]) -> R) -> Result<R, Failure> {
        let region = self.memory.take().ok_or_else(in_use)?;
        let (region, result) = slices::look(region, from..self.len, &mut self.scratch, f)?;
        self.memory = Some(region);
        Ok(result)
    }
}

/// A chunk is looked at while a command has it: a fault of this program.
fn in_use() -> Failure {
    Failure::Failed("a chunk's memory is in use: this is a fault of the program, please report it".to_owned())
}

/// How much is moved at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Bytes of a chunk.
    pub(crate) chunk: usize,
    /// Chunks in flight.
    pub(crate) chunks: u16,
}

/// Where to write.
pub(crate) struct Sink<'a> {
    pub(crate) end: &'a mut End,
    /// First byte.
    pub(crate) at: u64,
}

/// Opens a file to read from, and says how long it is if that is known beforehand.
pub(crate) fn open_source(path: &Path) -> Result<(File, Option<u64>), Failure> {
    let fail = |error: io::Error| Failure::file("open", path, &error);
    let mut file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let len = length(&mut file, &metadata).map_err(fail)?;
    Ok((file, len))
}

/// Bytes of a regular file or a block device.
pub(crate) fn length(file: &mut File, metadata: &Metadata) -> io::Result<Option<u64>> {
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() {
        return Ok(Some(metadata.len()));
    }
    if metadata.file_type().is_block_device() {
        let len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        return Ok(Some(len));
    }
    Ok(None)
}

impl End {
    /// A queue to a device.
    pub(crate) fn blocks(device: Device, depth: u16) -> Result<Self, Failure> {
        let queue = device.queue(QueueOptions::depth(depth))?;
        let slots = usize::from(queue.depth()).next_power_of_two();
        Ok(Self::Blocks(Box::new(Blocks {
            device,
            chunks: vec![0; slots],
            completed: Vec::with_capacity(slots),
            in_flight: 0,
            queue,
        })))
    }

    /// Block size, and the largest transfer in bytes, if there are such.
    pub(crate) fn geometry(&self) -> Option<(u32, u32)> {
        match self {
            Self::Blocks(blocks) => Some((blocks.device.block_size(), blocks.device.max_transfer())),
            Self::File(..) => None,
        }
    }

    /// The device that the queue leads to, if there is one.
    pub(crate) fn device(&self) -> Option<Device> {
        match self {
            Self::Blocks(blocks) => Some(blocks.device.clone()),
            Self::File(..) => None,
        }
    }

    /// Starts reading a chunk, and returns whether that was possible now.
    fn start_read(&mut self, number: usize, chunk: &mut Chunk, at: u64) -> Result<bool, Failure> {
        match self {
            Self::File(file, path) => {
                chunk
                    .fill(|bytes| file.read_exact_at(bytes, at))?
                    .map_err(|error| Failure::file("read", path, &error))?;
                chunk.state = State::Ready;
                Ok(true)
            }
            Self::Blocks(blocks) => {
                let size = blocks.device.block_size() as usize;
                let len = chunk.len.div_ceil(size) * size;
                let nsid = blocks.device.nsid();
                let command = |lba, count| Command::read(nsid, lba, count);
                let started = blocks.start(number, chunk, at, len, command)?;
                if started {
                    chunk.state = State::Reading;
                }
                Ok(started)
            }
        }
    }

    /// Starts writing a chunk, and returns whether that was possible now. Bytes of a block that is not whole are appended to `tail`.
    fn start_write(
        &mut self,
        number: usize,
        chunk: &mut Chunk,
        at: u64,
        tail: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        match self {
            Self::File(file, path) => {
                chunk
                    .look(0, |bytes| file.write_all_at(bytes, at))?
                    .map_err(|error| Failure::file("write to", path, &error))?;
                chunk.state = State::Free;
                Ok(true)
            }
            Self::Blocks(blocks) => {
                let size = blocks.device.block_size() as usize;
                let whole = chunk.len / size * size;
                let rest = if whole < chunk.len {
                    chunk.look(whole, <[u8]>::to_vec)?
                } else {
                    Vec::new()
                };
                if whole == 0 {
                    chunk.state = State::Free;
                } else {
                    let nsid = blocks.device.nsid();
                    let command = |lba, count| Command::write(nsid, lba, count);
                    if !blocks.start(number, chunk, at, whole, command)? {
                        return Ok(false);
                    }
                    chunk.state = State::Writing;
                }
                tail.extend_from_slice(&rest);
                Ok(true)
            }
        }
    }

    fn commit(&mut self) -> Result<(), Failure> {
        match self {
            Self::Blocks(blocks) => Ok(blocks.queue.commit().map_err(homi_initiator::Error::from)?),
            Self::File(..) => Ok(()),
        }
    }

    /// Takes completions, and returns how many there were.
    fn poll(&mut self, chunks: &mut [Chunk], next: State, what: &str) -> Result<usize, Failure> {
        match self {
            Self::Blocks(blocks) => blocks.poll(chunks, next, what),
            Self::File(..) => Ok(0),
        }
    }

    fn busy(&self) -> Option<&AnyQueue> {
        match self {
            Self::Blocks(blocks) if blocks.in_flight > 0 => Some(&blocks.queue),
            _ => None,
        }
    }

    /// Writes what is left at the end, and makes everything durable if that is asked for.
    pub(crate) fn finish(self, at: u64, tail: &[u8], flush: bool) -> Result<(), Failure> {
        match self {
            Self::Blocks(blocks) => {
                let Blocks { device, queue, .. } = *blocks;
                let mut disk = Disk::new(
                    queue,
                    device.nsid(),
                    device.block_size(),
                    device.blocks(),
                    device.max_transfer(),
                );
                if !tail.is_empty() {
                    disk.write_at(at, tail)?;
                }
                if flush {
                    disk.flush()?;
                }
                Ok(())
            }
            Self::File(file, path) if flush => file
                .sync_all()
                .map_err(|error| Failure::file("make durable", &path, &error)),
            Self::File(..) => Ok(()),
        }
    }
}

impl Blocks {
    fn start(
        &mut self,
        number: usize,
        chunk: &mut Chunk,
        at: u64,
        len: usize,
        command: impl FnOnce(u64, u32) -> Command,
    ) -> Result<bool, Failure> {
        let Ok(slot) = self.queue.reserve() else {
            return Ok(false);
        };
        let size = u64::from(self.device.block_size());
        let blocks = u32::try_from(len as u64 / size).unwrap_or(u32::MAX);
        let data = match chunk.memory.take() {
            Some(region) => Data::One(region.segment(0..len)?),
            None => Data::None,
        };
        if let Some(place) = self.chunks.get_mut(slot.index()) {
            *place = number;
        }
        self.queue.submit(slot, command(at / size, blocks), data);
        self.in_flight += 1;
        Ok(true)
    }

    fn poll(&mut self, chunks: &mut [Chunk], next: State, what: &str) -> Result<usize, Failure> {
        self.queue
            .poll(&mut self.completed)
            .map_err(homi_initiator::Error::from)?;
        let count = self.completed.len();
        let depth = self.queue.depth();
        for Completed { id, completion, data } in self.completed.drain(..) {
            self.in_flight = self.in_flight.saturating_sub(1);
            if !completion.is_success() {
                return Err(Failure::Failed(format!(
                    "a {what} on {} failed: {}",
                    self.device.uri(),
                    completion.status
                )));
            }
            let number = self.chunks.get(id.slot_index(depth)).copied();
            let Some(chunk) = number.and_then(|number| chunks.get_mut(number)) else {
                return Err(Failure::Failed(format!(
                    "{} completed an unknown command {id}",
                    self.device.uri()
                )));
            };
            let Data::One(segment) = data else {
                return Err(Failure::Failed(format!(
                    "{} kept the memory of command {id}",
                    self.device.uri()
                )));
            };
            chunk.memory = Some(segment.region().clone());
            chunk.state = next;
        }
        Ok(count)
    }
}

/// Moves `count` bytes from byte `from` of the source to the sink, if there is one, and through the hasher. Returns the bytes of the
/// sink's last block if that is not whole, for [`End::finish`]. `moved` is told how many bytes have arrived.
pub(crate) fn run(
    source: &mut End,
    from: u64,
    mut sink: Option<Sink<'_>>,
    count: u64,
    window: Window,
    hasher: &mut Hasher,
    moved: &mut dyn FnMut(u64),
) -> Result<Vec<u8>, Failure> {
    let size = window.chunk as u64;
    let total = count.div_ceil(size);
    let mut chunks = Vec::new();
    for _ in 0..total.min(window.chunks.into()) {
        chunks.push(Chunk {
            state: State::Free,
            len: 0,
            memory: Some(Region::allocate(window.chunk, 4096)?),
            scratch: Vec::new(),
        });
    }
    let slots = chunks.len() as u64;
    let slot_of = |number: u64| usize::try_from(number % slots.max(1)).unwrap_or(0);
    let (mut next_read, mut next_write, mut hashed, mut empty_rounds) = (0_u64, 0_u64, 0_u64, 0_u32);
    let mut tail = Vec::new();
    loop {
        let before = (next_read, next_write);
        while next_read < total && next_read < next_write + slots {
            let number = slot_of(next_read);
            let Some(chunk) = chunks.get_mut(number).filter(|chunk| chunk.state == State::Free) else {
                break;
            };
            let at = next_read * size;
            chunk.len = usize::try_from((count - at).min(size)).unwrap_or(window.chunk);
            if !source.start_read(number, chunk, from + at)? {
                break;
            }
            next_read += 1;
        }
        source.commit()?;
        while next_write < next_read {
            let number = slot_of(next_write);
            let Some(chunk) = chunks.get_mut(number).filter(|chunk| chunk.state == State::Ready) else {
                break;
            };
            if hashed == next_write {
                chunk.look(0, |bytes| hasher.update(bytes))?;
                hashed += 1;
            }
            match &mut sink {
                Some(sink) => {
                    if !sink
                        .end
                        .start_write(number, chunk, sink.at + next_write * size, &mut tail)?
                    {
                        break;
                    }
                }
                None => chunk.state = State::Free,
            }
            next_write += 1;
            moved((next_write * size).min(count));
        }
        if let Some(sink) = &mut sink {
            sink.end.commit()?;
        }
        if next_write == total && chunks.iter().all(|chunk| chunk.state == State::Free) {
            return Ok(tail);
        }
        let mut found = source.poll(&mut chunks, State::Ready, "read")?;
        if let Some(sink) = &mut sink {
            found += sink.end.poll(&mut chunks, State::Free, "write")?;
        }
        if found > 0 || before != (next_read, next_write) {
            empty_rounds = 0;
            continue;
        }
        empty_rounds += 1;
        if empty_rounds < PATIENCE {
            thread::yield_now();
        } else {
            let sink = sink.as_ref().and_then(|sink| sink.end.busy());
            sleep([source.busy(), sink]);
        }
    }
}

/// Sleeps until one of the queues may have something, but not for long.
fn sleep(queues: [Option<&AnyQueue>; 2]) {
    let mut descriptors: Vec<PollFd<'_>> = queues
        .iter()
        .flatten()
        .filter_map(|queue| queue.wait_descriptor())
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
        .collect();
    // A failing wait is a shorter wait: the queues are polled after it in any case.
    if poll(&mut descriptors, PollTimeout::from(LONGEST_SLEEP)).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
}
