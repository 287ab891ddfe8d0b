//! Controllers that lie about themselves: registers and identify pages of every kind of nonsense give typed errors.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "tests fail by panics, and draw small numbers from large ones"
)]

mod support;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use homi_nvme::{Clock, Controller, NvmeError, QueueOptions};
use homi_pci::{
    Access, BarMemory, DmaBackend, DmaError, DmaSpace, PciError, PciFunction, PciIdentity, Registers,
    Unsupported, Vector,
};
use homi_queue::{Command, Data, Iova, IovaRange, Queue, Region};
use homi_soft_controller::{SoftConfig, SoftController};
use homi_spec::registers::offset;
use support::{Random, SoftClock, options};

/// Registers of a model, some of which are answered by somebody else.
#[derive(Debug)]
struct Lying {
    below: Arc<dyn Registers>,
    lies: Vec<(usize, u32)>,
}

impl Registers for Lying {
    fn len(&self) -> u64 {
        self.below.len()
    }
    fn read32(&self, at: u64) -> u32 {
        let lie = self.lies.iter().find(|(offset, _)| *offset as u64 == at);
        lie.map_or_else(|| self.below.read32(at), |(_, value)| *value)
    }
    fn write32(&self, at: u64, value: u32) {
        self.below.write32(at, value);
    }
}

#[derive(Debug)]
struct LyingFunction {
    below: Arc<dyn PciFunction>,
    lies: Vec<(usize, u32)>,
}

impl PciFunction for LyingFunction {
    fn name(&self) -> &str {
        self.below.name()
    }
    fn identity(&self) -> PciIdentity {
        self.below.identity()
    }
    fn registers(&self, bar: u8) -> Result<Arc<dyn Registers>, PciError> {
        Ok(Arc::new(Lying {
            below: self.below.registers(bar)?,
            lies: self.lies.clone(),
        }))
    }
    fn bar_memory(&self, bar: u8, offset: u64, len: u64) -> Result<BarMemory, PciError> {
        self.below.bar_memory(bar, offset, len)
    }
    fn export_bar(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, PciError> {
        self.below.export_bar(bar, offset, len)
    }
    fn dma(&self) -> &DmaSpace {
        self.below.dma()
    }
    fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        self.below.set_bus_master(enabled)
    }
    fn vectors(&self) -> u16 {
        self.below.vectors()
    }
    fn enable_vectors(&self, count: u16) -> Result<Vec<Vector>, PciError> {
        self.below.enable_vectors(count)
    }
    fn reset(&self) -> Result<(), PciError> {
        self.below.reset()
    }
    fn removal(&self) -> Option<BorrowedFd<'_>> {
        self.below.removal()
    }
}

fn open(lies: Vec<(usize, u32)>) -> Result<Controller, NvmeError> {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let function = LyingFunction {
        below: model.physical(),
        lies,
    };
    let clock = SoftClock::new(&model);
    let opened = Controller::open(Arc::new(function), clock, options());
    if opened.is_err() {
        assert_eq!(
            model.space(0).unwrap().mappings(),
            0,
            "a controller that did not open left something"
        );
    }
    opened
}

#[test]
fn registers_that_make_no_sense_are_errors() {
    let ones = u32::MAX;
    assert!(matches!(
        open(vec![(offset::CAP, ones), (offset::CAP + 4, ones)]),
        Err(NvmeError::Removed)
    ));
    assert!(matches!(
        open(vec![(offset::CSTS, ones)]),
        Err(NvmeError::Removed)
    ));
    // Never ready; never stopping; always failing.
    assert!(matches!(
        open(vec![(offset::CSTS, 0)]),
        Err(NvmeError::Timeout { .. })
    ));
    assert!(open(vec![(offset::CSTS, 1)]).is_err());
    assert!(open(vec![(offset::CSTS, 2)]).is_err());
    // Queues of one entry; pages of 128 MiB; no command set.
    assert!(matches!(
        open(vec![(offset::CAP, 0)]),
        Err(NvmeError::Incompatible { .. })
    ));
    assert!(matches!(
        open(vec![(offset::CAP + 4, 0x00ff_0020)]),
        Err(NvmeError::Incompatible { .. })
    ));
    assert!(matches!(
        open(vec![(offset::CAP + 4, 0)]),
        Err(NvmeError::Incompatible { .. })
    ));
}

#[test]
fn random_registers_never_panic() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let places = [
            offset::CAP,
            offset::CAP + 4,
            offset::VS,
            offset::CC,
            offset::CSTS,
            offset::CMBLOC,
            offset::CMBSZ,
            offset::CRTO,
        ];
        let lies = (0..1 + random.below(3))
            .map(|_| {
                let place = places[random.below(places.len() as u64) as usize];
                (place, random.next() as u32)
            })
            .collect();
        if let Ok(controller) = open(lies) {
            let _ = controller.cmb();
            let _ = controller.open_queue(QueueOptions::new(4));
            controller.service();
        }
    }
}

/// A controller that becomes ready at once and answers every admin command with whatever a generator says.
#[derive(Debug)]
struct Noise {
    state: std::sync::Mutex<NoiseState>,
    space: DmaSpace,
}

#[derive(Debug)]
struct NoiseState {
    random: Random,
    enabled: bool,
    asq: u64,
    acq: u64,
    entries: u64,
    seen: u64,
    done: u64,
    memory: Memory,
    sane: u64,
}

/// What is mapped, by address.
type Memory = Arc<std::sync::Mutex<Vec<(IovaRange, Region)>>>;

#[derive(Debug)]
struct NoiseSpace(Memory);

impl DmaBackend for NoiseSpace {
    fn map(&self, at: IovaRange, memory: &Region, _: Access) -> Result<(), DmaError> {
        self.0.lock().unwrap().push((at, memory.clone()));
        Ok(())
    }
    fn unmap(&self, at: IovaRange) -> Result<(), DmaError> {
        self.0.lock().unwrap().retain(|(range, _)| *range != at);
        Ok(())
    }
    fn usable(&self) -> Vec<IovaRange> {
        vec![IovaRange::new(Iova(0), 1 << 40).unwrap()]
    }
    fn page(&self) -> u64 {
        4096
    }
}

fn access(memory: &Memory, at: u64, f: impl FnOnce(&Region, usize)) {
    let memory = memory.lock().unwrap();
    let found = memory
        .iter()
        .find(|(range, _)| range.locate(Iova(at), 1).is_some());
    if let Some((range, region)) = found {
        f(region, usize::try_from(at - range.start().0).unwrap());
    }
}

impl NoiseState {
    /// Answers a command that was offered.
    fn answer(&mut self) {
        let mut sqe = [0; 64];
        access(
            &self.memory,
            self.asq + (self.seen % self.entries) * 64,
            |region, at| {
                let _ = region.read(at, &mut sqe);
            },
        );
        self.seen += 1;
        let mut page = vec![0; 4096];
        for byte in page.chunks_mut(8) {
            byte.copy_from_slice(&self.random.next().to_le_bytes());
        }
        if self.random.below(100) < self.sane {
            // Sane enough for the driver to go on: entry sizes, a list that ascends, a format that exists.
            match sqe[40] {
                1 => (page[512], page[513]) = (0x66, 0x44),
                2 => {
                    page.fill(0);
                    let first = 1 + self.random.below(9) as u8;
                    (page[0], page[4]) = (first, first + 1);
                }
                _ => {
                    (page[25], page[26]) = (0, 0);
                    page[128..132].copy_from_slice(&[0, 0, 9, 0]);
                    if self.random.chance(80) {
                        page[4..8].fill(0);
                    }
                }
            }
        }
        let prp = u64::from_le_bytes(sqe[24..32].try_into().unwrap());
        access(&self.memory, prp, |region, at| {
            let _ = region.write(at, &page);
        });
        let phase = (self.done / self.entries).is_multiple_of(2);
        let mut cqe = [0; 16];
        cqe[..8].copy_from_slice(&self.random.next().to_le_bytes());
        let head = u16::try_from(self.seen % self.entries).unwrap();
        cqe[8..10].copy_from_slice(&head.to_le_bytes());
        cqe[12..14].copy_from_slice(&sqe[2..4]);
        cqe[14] = u8::from(phase);
        if self.random.below(100) >= 97 {
            let at = 8 + self.random.below(8) as usize;
            cqe[at] ^= self.random.next() as u8;
        }
        let at = self.acq + (self.done % self.entries) * 16;
        access(&self.memory, at, |region, at| {
            let _ = region.write(at, &cqe);
        });
        self.done += 1;
    }
}

#[derive(Debug)]
struct NoiseRegisters(Arc<Noise>);

impl Registers for NoiseRegisters {
    fn len(&self) -> u64 {
        0x2000
    }
    fn read32(&self, at: u64) -> u32 {
        let mut state = self.0.state.lock().unwrap();
        match usize::try_from(at).unwrap() {
            0 => 0x0101_00ff,
            4 => 0x20,
            offset::VS => 0x0002_0000,
            offset::CC => u32::from(state.enabled),
            offset::CSTS => u32::from(state.enabled),
            _ => state.random.next() as u32,
        }
    }
    fn write32(&self, at: u64, value: u32) {
        let mut state = self.0.state.lock().unwrap();
        match usize::try_from(at).unwrap() {
            offset::CC => {
                state.enabled = value & 1 != 0;
                (state.seen, state.done) = (0, 0);
            }
            offset::AQA => state.entries = u64::from(value & 0xfff) + 1,
            offset::ASQ => state.asq = u64::from(value),
            offset::ACQ => state.acq = u64::from(value),
            offset::DOORBELLS => {
                while state.seen % state.entries != u64::from(value) % state.entries {
                    state.answer();
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug)]
struct NoiseFunction(Arc<Noise>);

impl PciFunction for NoiseFunction {
    fn name(&self) -> &str {
        "noise"
    }
    fn identity(&self) -> PciIdentity {
        PciIdentity::default()
    }
    fn registers(&self, _: u8) -> Result<Arc<dyn Registers>, PciError> {
        Ok(Arc::new(NoiseRegisters(Arc::clone(&self.0))))
    }
    fn bar_memory(&self, bar: u8, start: u64, len: u64) -> Result<BarMemory, PciError> {
        Err(PciError::Bar {
            function: "noise".into(),
            bar,
            start,
            end: start.saturating_add(len),
        })
    }
    fn export_bar(&self, _: u8, _: u64, _: u64) -> Result<OwnedFd, PciError> {
        Err(Unsupported {
            what: "a bar as a dma-buf",
            missing: "a device".into(),
        }
        .into())
    }
    fn dma(&self) -> &DmaSpace {
        &self.0.space
    }
    fn set_bus_master(&self, _: bool) -> Result<(), PciError> {
        Ok(())
    }
    fn vectors(&self) -> u16 {
        0
    }
    fn enable_vectors(&self, _: u16) -> Result<Vec<Vector>, PciError> {
        Ok(Vec::new())
    }
    fn reset(&self) -> Result<(), PciError> {
        self.0.state.lock().unwrap().enabled = false;
        Ok(())
    }
    fn removal(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Time that passes by itself.
#[derive(Debug, Default)]
struct Fast(std::sync::atomic::AtomicU64);

impl Clock for Fast {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
    fn pause(&self, at_most: Duration, _: &[BorrowedFd<'_>]) {
        let micros = u64::try_from(at_most.as_micros()).unwrap();
        self.0.fetch_add(micros, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn identify_pages_of_noise_never_panic_and_leave_nothing() {
    let (mut opened, mut queues) = (0, 0);
    for seed in 0..400 {
        let memory = Memory::default();
        let space = DmaSpace::new(Box::new(NoiseSpace(Arc::clone(&memory))));
        let noise = Arc::new(Noise {
            state: std::sync::Mutex::new(NoiseState {
                random: Random::new(seed),
                enabled: false,
                asq: 0,
                acq: 0,
                entries: 1,
                seen: 0,
                done: 0,
                memory: Arc::clone(&memory),
                sane: 90,
            }),
            space: space.clone(),
        });
        let controller = Controller::open(
            Arc::new(NoiseFunction(noise)),
            Arc::new(Fast::default()),
            options(),
        );
        if let Ok(controller) = controller {
            opened += 1;
            let nsid = controller
                .namespaces()
                .first()
                .map_or(1, |namespace| namespace.nsid());
            if let Ok(mut queue) = controller.open_queue(QueueOptions::new(8)) {
                queues += 1;
                for len in [512, 4096, 1 << 20] {
                    if let Ok(slot) = queue.reserve() {
                        queue.submit(slot, Command::read(nsid, u64::MAX, 1), Data::Anywhere { len });
                    }
                }
                let _ = queue.commit();
                let _ = queue.poll(&mut Vec::new());
            }
            for _ in 0..20 {
                controller.service();
                let _ = controller.take_event();
            }
            let _ = controller.rescan();
            let _ = controller.secondary_controllers();
        }
        let usage = space.usage();
        assert_eq!((usage.mapped, usage.stuck), (usage.unmapped, 0), "seed {seed}");
    }
    assert!(
        opened > 20 && queues > 0,
        "{opened} opened, {queues} queues: the noise is too loud"
    );
}
