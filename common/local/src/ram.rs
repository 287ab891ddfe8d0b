//! [`Ram`] and [`RamQueue`]: a namespace in this process's memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use homi_queue::{
    Command, CommandId, Completed, Completion, Data, MemoryError, Queue, QueueFull, QueueLost, Region, Slot,
    Slots, Wait,
};
use homi_reactor::mapping::Mapping;
use homi_spec::status::Status;

use crate::content;
use crate::geometry::{NamespaceGeometry, RANGE_SIZE, Span, Work};

/// From this length on, giving memory back is cheaper than filling it with zeroes.
const RELEASE_FROM: usize = 2 << 20;
/// The most ranges of a Dataset Management command.
const MAX_RANGES: usize = 256;

/// The memory of a namespace could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {bytes} bytes of memory for a namespace ({source}): make it smaller")]
pub struct RamError {
    /// Bytes asked for.
    pub bytes: u64,
    /// What the system said.
    pub source: io::Error,
}

/// A namespace in memory, shared by the queues on it. It costs nothing until it is written; unwritten blocks read as zeroes.
#[derive(Debug, Clone)]
pub struct Ram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    geometry: NamespaceGeometry,
    mapping: Mapping,
}

impl Ram {
    /// A namespace of zeroes.
    ///
    /// # Errors
    /// [`RamError`] if the address space has no room for it.
    pub fn new(geometry: NamespaceGeometry) -> Result<Self, RamError> {
        let bytes = geometry.bytes();
        let failed = |source| RamError { bytes, source };
        let len = usize::try_from(bytes).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let mapping = Mapping::new(len).map_err(failed)?;
        Ok(Self(Arc::new(Inner { geometry, mapping })))
    }

    /// Asks for huge pages: fewer address translations under random access, but memory is used in steps of 2 MiB.
    ///
    /// # Errors
    /// [`RamError`] with what the system said.
    pub fn prefer_huge_pages(&self) -> Result<(), RamError> {
        let bytes = self.0.geometry.bytes();
        self.0
            .mapping
            .prefer_huge_pages()
            .map_err(|source| RamError { bytes, source })
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        &self.0.geometry
    }

    /// A queue on it for up to `depth` commands in flight.
    #[must_use]
    pub fn open_queue(&self, depth: u16) -> RamQueue {
        let slots = Slots::new(depth);
        let ready = VecDeque::with_capacity(usize::from(slots.depth()));
        RamQueue {
            region: self.0.mapping.region().handle(),
            ram: self.0.clone(),
            slots,
            ready,
        }
    }
}

/// Executes commands in memory, in the order of submission and inside `submit`; `poll` only hands the completions over.
///
/// A read with [`Data::Anywhere`] is lent the namespace's own memory: no byte is copied, and later writes show
/// through, as they may on any drive while a read is under way.
#[derive(Debug)]
pub struct RamQueue {
    ram: Arc<Inner>,
    /// The namespace's memory, under a reference count that only this queue's lent segments touch.
    region: Region,
    slots: Slots<()>,
    ready: VecDeque<Completed>,
}

impl RamQueue {
    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        &self.ram.geometry
    }

    fn execute(&self, command: &Command, data: &mut Data) -> Result<Status, MemoryError> {
        let work = match self.ram.geometry.check(command, data) {
            Ok(work) => work,
            Err(status) => return Ok(status),
        };
        match work {
            Work::Read { span, .. } => {
                let (at, len) = ends(span)?;
                if matches!(data, Data::Anywhere { .. }) {
                    *data = Data::One(self.region.segment(at..at + len)?);
                } else {
                    content::copy_in(data, 0, &self.region, at, len)?;
                }
            }
            Work::Write { span, .. } => {
                let (at, len) = ends(span)?;
                content::copy_out(data, 0, &self.region, at, len)?;
            }
            Work::Compare { span, .. } => {
                let (at, len) = ends(span)?;
                if !content::equal(data, 0, &self.region, at, len)? {
                    return Ok(Status::COMPARE_FAILURE.with_dnr());
                }
            }
            Work::WriteZeroes { span, deallocate, .. } => self.zero(span, deallocate)?,
            Work::Deallocate { ranges } => return self.deallocate(ranges as usize, data),
            Work::Verify { .. } | Work::Flush | Work::Nothing => {}
        }
        Ok(Status::SUCCESS)
    }

    fn deallocate(&self, ranges: usize, data: &Data) -> Result<Status, MemoryError> {
        // Read once: the issuer's memory may change between a check and a use.
        let mut bytes = [0; MAX_RANGES * RANGE_SIZE];
        let bytes = bytes.get_mut(..ranges * RANGE_SIZE).unwrap_or(&mut []);
        data.read(0, bytes)?;
        let (ranges, _) = bytes.as_chunks::<RANGE_SIZE>();
        for range in ranges {
            if let Err(status) = self.ram.geometry.range(*range) {
                return Ok(status);
            }
        }
        for range in ranges {
            if let Ok(span) = self.ram.geometry.range(*range) {
                self.zero(span, true)?;
            }
        }
        Ok(Status::SUCCESS)
    }

    fn zero(&self, span: Span, release: bool) -> Result<(), MemoryError> {
        let (at, len) = ends(span)?;
        let end = at + len;
        let mut released = at..at;
        if release || len >= RELEASE_FROM {
            // Memory that cannot be given back, because it is locked, is filled like the rest.
            released = self.ram.mapping.release(at..end).unwrap_or(at..at);
        }
        self.region.fill(at, released.start - at, 0)?;
        self.region.fill(released.end, end - released.end, 0)
    }
}

/// A span as offset and length in memory; it lies in the mapping, so both fit.
fn ends(span: Span) -> Result<(usize, usize), MemoryError> {
    match (usize::try_from(span.offset), usize::try_from(span.len)) {
        (Ok(at), Ok(len)) => Ok((at, len)),
        _ => Err(MemoryError::OutOfBounds {
            start: usize::MAX,
            end: usize::MAX,
            len: 0,
        }),
    }
}

impl Queue for RamQueue {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    fn submit(&mut self, slot: Slot, command: Command, mut data: Data) -> CommandId {
        let id = self.slots.occupy(slot, ());
        // Every range was checked, so memory errors mean that a check is missing.
        let status = self
            .execute(&command, &mut data)
            .unwrap_or(Status::INTERNAL_ERROR);
        self.ready.push_back(Completed {
            id,
            completion: Completion::from(status),
            data,
        });
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        Ok(())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        let count = self.ready.len();
        let slots = &mut self.slots;
        completed.extend(self.ready.drain(..).inspect(|done| {
            let taken = slots.take(done.id);
            debug_assert!(taken.is_ok(), "a command completes once");
        }));
        Ok(count)
    }
}

impl Wait for RamQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
