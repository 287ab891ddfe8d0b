//! What the benches have in common: ways to use a queue, and a function that counts what reaches its registers.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each bench uses a part of this"
)]

use std::error::Error;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use homi_nvme::{Controller, IoQueue, Mapped, Options, QueueOptions, SystemClock};
use homi_pci::{BarMemory, DmaSpace, PciError, PciFunction, PciIdentity, Registers, Vector};
use homi_queue::{Data, Region};
use homi_soft_controller::{Mode, SoftConfig, SoftController};

pub(crate) type Failure = Box<dyn Error>;

pub(crate) const BLOCK: usize = 4096;
/// I/Os in flight in the largest batch.
pub(crate) const DEPTH: u16 = 64;

/// One way to use a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    pub(crate) batch: u16,
    /// Bytes of an I/O.
    pub(crate) len: usize,
}

pub(crate) const CASES: [Case; 6] = [
    case("read 4 KiB, batch 1", false, 1, BLOCK),
    case("read 4 KiB, batch 8", false, 8, BLOCK),
    case("read 4 KiB, batch 32", false, 32, BLOCK),
    case("write 4 KiB, batch 32", true, 32, BLOCK),
    case("read 512 B, batch 32", false, 32, 512),
    case("read 128 KiB, batch 8", false, 8, 128 << 10),
];

const fn case(name: &'static str, write: bool, batch: u16, len: usize) -> Case {
    Case {
        name,
        write,
        batch,
        len,
    }
}

impl Case {
    pub(crate) const fn opcode(&self) -> u8 {
        if self.write { 1 } else { 2 }
    }
}

/// Registers that count, and say where below begins and ends.
#[derive(Debug)]
pub(crate) struct Counted {
    inner: Arc<dyn Registers>,
    counts: Arc<Counts>,
    /// Called with `true` before a register is reached, and with `false` after.
    border: fn(bool),
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
}

impl Registers for Counted {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read32(&self, at: u64) -> u32 {
        (self.border)(true);
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let value = self.inner.read32(at);
        (self.border)(false);
        value
    }

    fn write32(&self, at: u64, value: u32) {
        (self.border)(true);
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write32(at, value);
        (self.border)(false);
    }
}

/// A function whose registers count.
#[derive(Debug)]
struct Function {
    inner: Arc<dyn PciFunction>,
    counts: Arc<Counts>,
    border: fn(bool),
}

impl PciFunction for Function {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> PciIdentity {
        self.inner.identity()
    }

    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError> {
        Ok(Arc::new(Counted {
            inner: self.inner.registers(bar)?,
            counts: Arc::clone(&self.counts),
            border: self.border,
        }))
    }

    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError> {
        self.inner.bar_memory(bar, offset, len)
    }

    fn export_bar(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, PciError> {
        self.inner.export_bar(bar, offset, len)
    }

    fn dma(&self) -> &DmaSpace {
        self.inner.dma()
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        self.inner.set_bus_master(enabled)
    }

    fn vectors(&self) -> u16 {
        self.inner.vectors()
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError> {
        self.inner.enable_vectors(count)
    }

    fn reset(&self) -> Result<(), PciError> {
        self.inner.reset()
    }

    fn removal(&self) -> Option<BorrowedFd<'_>> {
        self.inner.removal()
    }

    fn give_up(&self) {
        self.inner.give_up();
    }
}

/// A queue of a controller that answers inside the doorbell, and memory for one batch.
pub(crate) struct Setup {
    pub(crate) counts: Arc<Counts>,
    pub(crate) queue: IoQueue,
    pub(crate) free: Vec<Data>,
    pub(crate) blocks: u32,
    _mapped: Mapped,
}

impl Setup {
    pub(crate) fn new(case: Case, border: fn(bool)) -> Result<Self, Failure> {
        let model = SoftController::new(SoftConfig {
            mode: Mode::Instant,
            ..SoftConfig::default()
        })?;
        let counts = Arc::new(Counts::default());
        let function = Arc::new(Function {
            inner: model.physical(),
            counts: Arc::clone(&counts),
            border,
        });
        let options = Options::new().shadow_doorbells(false);
        let controller = Controller::open(function, Arc::new(SystemClock::new()), options)?;
        let queue = controller.open_queue(QueueOptions::new(DEPTH))?;
        let memory = Region::allocate(usize::from(case.batch) * case.len, BLOCK)?;
        let mapped = controller.map(&memory)?;
        Ok(Self {
            counts,
            queue,
            free: parts(&memory, case)?,
            blocks: u32::try_from(case.len / 512)?,
            _mapped: mapped,
        })
    }
}

/// Memory for the I/Os of a batch.
pub(crate) fn parts(memory: &Region, case: Case) -> Result<Vec<Data>, Failure> {
    let part = |n: usize| memory.segment(n * case.len..(n + 1) * case.len).map(Data::One);
    Ok((0..usize::from(case.batch)).map(part).collect::<Result<_, _>>()?)
}

/// Whether there is a valgrind to run under.
pub(crate) fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}
