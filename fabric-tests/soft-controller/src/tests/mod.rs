//! The model driven by hand: a few raw queues and registers, no driver.

mod admin;
mod bring_up;
mod faults;
mod hostile;
mod io;
mod memory;
mod virtual_functions;

use std::sync::Arc;

use homi_pci::{Access, Mapping, PciFunction, Registers, Vector};
use homi_queue::Region;
use homi_spec::admin::{CreateIoCq, CreateIoSq};
use homi_spec::controller::{Cc, Csts};
use homi_spec::feature::{FeatureId, NumberOfQueues, SetFeatures};
use homi_spec::registers::{Aqa, completion_doorbell, offset, submission_doorbell};
use homi_spec::{Cqe, Sqe, Status, U16};
use zerocopy::{FromBytes, IntoBytes};

use crate::{SoftConfig, SoftController};

/// A queue pair in memory.
pub(crate) struct Pair {
    pub(crate) qid: u16,
    pub(crate) size: u16,
    pub(crate) sq: Region,
    pub(crate) cq: Region,
    pub(crate) sq_at: u64,
    pub(crate) cq_at: u64,
    /// Taken out by tests that unmap too early.
    pub(crate) maps: Vec<Mapping>,
    pub(crate) tail: u16,
    pub(crate) head: u16,
    pub(crate) phase: bool,
    next_cid: u16,
}

/// A function driven by hand.
pub(crate) struct Raw {
    pub(crate) model: SoftController,
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) registers: Arc<dyn Registers>,
    pub(crate) admin: Pair,
    pub(crate) vectors: Vec<Vector>,
    /// One page for admin data.
    pub(crate) page: Memory,
}

/// Memory that is mapped.
pub(crate) struct Memory {
    pub(crate) region: Region,
    pub(crate) mapping: Mapping,
}

impl Memory {
    pub(crate) fn new(function: &Arc<dyn PciFunction>, len: usize) -> Self {
        Self::with(function, len, Access::ReadWrite)
    }

    pub(crate) fn with(function: &Arc<dyn PciFunction>, len: usize, access: Access) -> Self {
        let region = Region::allocate(len, 4096).unwrap();
        let mapping = function.dma().map(&region, access).unwrap();
        Self { region, mapping }
    }

    pub(crate) fn at(&self) -> u64 {
        self.mapping.range().start().0
    }

    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.region.read(at, &mut bytes).unwrap();
        bytes
    }
}

impl Pair {
    pub(crate) fn new(function: &Arc<dyn PciFunction>, qid: u16, size: u16) -> Self {
        let sq = Memory::new(function, usize::from(size) * 64);
        let cq = Memory::new(function, usize::from(size) * 16);
        Self {
            qid,
            size,
            sq_at: sq.at(),
            cq_at: cq.at(),
            sq: sq.region,
            cq: cq.region,
            maps: vec![sq.mapping, cq.mapping],
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 0,
        }
    }

    /// Writes an entry; no doorbell.
    pub(crate) fn put(&mut self, mut sqe: Sqe) -> u16 {
        let cid = self.next_cid;
        self.next_cid += 1;
        sqe.cid = U16::new(cid);
        self.put_as_is(&sqe);
        cid
    }

    pub(crate) fn put_as_is(&mut self, sqe: &Sqe) {
        self.sq
            .write(usize::from(self.tail) * 64, sqe.as_bytes())
            .unwrap();
        self.tail = (self.tail + 1) % self.size;
    }

    /// The entry at the head, if it is new.
    pub(crate) fn peek(&self) -> Option<Cqe> {
        let mut bytes = [0; 16];
        self.cq.read(usize::from(self.head) * 16, &mut bytes).unwrap();
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        (cqe.phase() == self.phase).then_some(cqe)
    }

    /// Takes the entry at the head; no doorbell.
    pub(crate) fn pop(&mut self) -> Option<Cqe> {
        let cqe = self.peek()?;
        self.head += 1;
        if self.head == self.size {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(cqe)
    }
}

/// CC with everything that enabling needs.
pub(crate) fn enabled() -> Cc {
    Cc::default().with_standard_entry_sizes().with_enabled(true)
}

impl Raw {
    /// A function with bus mastering and vectors on, not enabled.
    pub(crate) fn cold(model: &SoftController, index: u16) -> Self {
        let function = model.function(index).unwrap();
        let registers = function.registers(0).unwrap();
        function.set_bus_master(true).unwrap();
        let vectors = function.enable_vectors(function.vectors()).unwrap();
        let admin = Pair::new(&function, 0, 16);
        let page = Memory::new(&function, 4096);
        Self {
            model: model.clone(),
            function,
            registers,
            admin,
            vectors,
            page,
        }
    }

    pub(crate) fn program(&self) {
        self.write(offset::AQA, Aqa::new(self.admin.size - 1, self.admin.size - 1).0);
        self.registers.write64(offset::ASQ as u64, self.admin.sq_at);
        self.registers.write64(offset::ACQ as u64, self.admin.cq_at);
    }

    pub(crate) fn warm(model: &SoftController, index: u16) -> Self {
        let raw = Self::cold(model, index);
        raw.program();
        raw.write(offset::CC, enabled().0);
        model.run_until_idle();
        assert!(raw.csts().ready(), "{:?} {:?}", raw.csts(), model.misuse());
        raw
    }

    /// The physical function of a new model, enabled.
    pub(crate) fn new(config: SoftConfig) -> Self {
        Self::warm(&SoftController::new(config).unwrap(), 0)
    }

    pub(crate) fn write(&self, at: usize, value: u32) {
        self.registers.write32(at as u64, value);
    }

    pub(crate) fn read(&self, at: usize) -> u32 {
        self.registers.read32(at as u64)
    }

    pub(crate) fn csts(&self) -> Csts {
        Csts(self.read(offset::CSTS))
    }

    pub(crate) fn ring(&self, pair: &Pair) {
        self.write(submission_doorbell(pair.qid, 4), u32::from(pair.tail));
    }

    pub(crate) fn ring_head(&self, pair: &Pair) {
        self.write(completion_doorbell(pair.qid, 4), u32::from(pair.head));
    }

    /// Carries out an admin command.
    pub(crate) fn admin(&mut self, sqe: Sqe) -> Cqe {
        let mut pair = std::mem::replace(&mut self.admin, Pair::new(&self.function, 0, 2));
        let cqe = self.run(&mut pair, sqe);
        self.admin = pair;
        cqe
    }

    /// Carries out an admin command with the page as its data.
    pub(crate) fn admin_page(&mut self, mut sqe: Sqe) -> Cqe {
        sqe.set_prp(self.page.at(), 0);
        self.admin(sqe)
    }

    /// Carries out a command.
    pub(crate) fn run(&self, pair: &mut Pair, sqe: Sqe) -> Cqe {
        let cid = pair.put(sqe);
        self.ring(pair);
        self.model.run_until_idle();
        let cqe = pair.pop().unwrap_or_else(|| {
            panic!(
                "no completion: {:?} {:?} {:?}",
                self.csts(),
                self.model.misuse(),
                self.model.space(0).unwrap().faults()
            )
        });
        self.ring_head(pair);
        assert_eq!(cqe.cid.get(), cid);
        cqe
    }

    pub(crate) fn set_queues(&mut self, count: u32) {
        let dword = NumberOfQueues::pairs(count).unwrap().to_dword();
        let cqe = self.admin(SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, dword).to_sqe(0));
        assert!(cqe.status().is_success());
    }

    /// Creates a queue pair, its interrupts on the vector of its number.
    pub(crate) fn pair(&mut self, qid: u16, size: u16) -> Pair {
        let pair = Pair::new(&self.function, qid, size);
        assert_eq!(
            self.create(&pair, pair.sq_at, pair.cq_at),
            (Status::SUCCESS, Status::SUCCESS)
        );
        pair
    }

    pub(crate) fn create(&mut self, pair: &Pair, sq_at: u64, cq_at: u64) -> (Status, Status) {
        let cq = CreateIoCq {
            qid: pair.qid,
            size_z: pair.size - 1,
            contiguous: true,
            interrupts: true,
            vector: pair.qid,
            address: cq_at,
        };
        let sq = CreateIoSq {
            qid: pair.qid,
            size_z: pair.size - 1,
            contiguous: true,
            priority: 0,
            cqid: pair.qid,
            address: sq_at,
        };
        let first = self.admin(cq.to_sqe(0)).status().code();
        (first, self.admin(sq.to_sqe(0)).status().code())
    }

    /// Nothing was done that may not be done.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.model.misuse(), []);
        assert_eq!(self.model.refusals(), []);
        assert_eq!(self.model.space(0).unwrap().faults(), []);
        assert_eq!(self.model.space(0).unwrap().early_unmaps(), []);
    }
}
