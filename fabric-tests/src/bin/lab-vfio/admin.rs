//! An NVMe admin queue driven by hand: one command at a time.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::Failure;
use homi_pci::{Access, Mapping, PciFunction, Registers, Vector};
use homi_queue::{Iova, Region};
use homi_spec::command::{AdminOpcode, CQE_SIZE, Cqe, SQE_SIZE, Sqe};
use homi_spec::controller::{Cap, Cc, Csts};
use homi_spec::registers::{Aqa, completion_doorbell, offset, submission_doorbell};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use zerocopy::{FromZeros, IntoBytes};

/// Entries of both queues.
const ENTRIES: u16 = 8;
/// Guests are emulated, and busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of what Identify returns. Base 2.0 §5.17.2.
pub(crate) const IDENTIFY_BYTES: usize = 4096;
/// Identify's CNS of the controller. Base 2.0 §5.17.1.
const CNS_CONTROLLER: u32 = 0x01;

/// A controller that is ready, with one interrupt vector.
pub(crate) struct Admin {
    registers: Arc<dyn Registers>,
    stride: u32,
    submission: Mapping,
    completion: Mapping,
    vector: Vector,
    tail: u16,
    head: u16,
    phase: bool,
    cid: u16,
    /// Interrupts taken.
    pub(crate) interrupts: u64,
}

/// Whether the controller becomes ready or ceases to be.
fn wait_ready(registers: &dyn Registers, ready: bool) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let csts = Csts(registers.read32(offset::CSTS as u64));
        ensure!(csts.0 != u32::MAX, "the controller does not answer");
        ensure!(!csts.fatal(), "the controller has failed: {csts:?}");
        if csts.ready() == ready {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "after {PATIENCE:?} CSTS.RDY is still not {ready}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

impl Admin {
    /// Brings the controller up. Base 2.0 §3.5.1.
    pub(crate) fn start(function: &dyn PciFunction) -> Result<Self, Failure> {
        let registers = function.registers(0)?;
        registers.write32(offset::CC as u64, 0);
        wait_ready(&*registers, false)?;
        let ring = |bytes: usize, access| -> Result<Mapping, Failure> {
            let region = Region::allocate(bytes.next_multiple_of(4096), 4096)?;
            Ok(function.dma().map(&region, access)?)
        };
        let submission = ring(usize::from(ENTRIES) * SQE_SIZE, Access::Read)?;
        let completion = ring(usize::from(ENTRIES) * CQE_SIZE, Access::Write)?;
        let vector = function
            .enable_vectors(1)?
            .pop()
            .ok_or_else(|| Failure::new("one vector was enabled and none came"))?;
        function.set_bus_master(true)?;
        registers.write32(offset::AQA as u64, Aqa::new(ENTRIES - 1, ENTRIES - 1).0);
        registers.write64(offset::ASQ as u64, submission.range().start().0);
        registers.write64(offset::ACQ as u64, completion.range().start().0);
        let cc = Cc::default().with_standard_entry_sizes().with_enabled(true);
        registers.write32(offset::CC as u64, cc.0);
        wait_ready(&*registers, true)?;
        Ok(Self {
            stride: Cap(registers.read64(offset::CAP as u64)).doorbell_stride(),
            registers,
            submission,
            completion,
            vector,
            tail: 0,
            head: 0,
            phase: true,
            cid: 0,
            interrupts: 0,
        })
    }

    /// Has the controller write its Identify data there.
    pub(crate) fn identify(&mut self, to: Iova) -> Result<Cqe, Failure> {
        let mut sqe = Sqe::new(AdminOpcode::IDENTIFY.0, 0);
        sqe.cdw10 = CNS_CONTROLLER.into();
        sqe.set_prp(to.0, 0);
        self.execute(sqe)
    }

    /// Executes a command and sleeps until its interrupt.
    pub(crate) fn execute(&mut self, sqe: Sqe) -> Result<Cqe, Failure> {
        self.submit(sqe)?;
        self.complete()
    }

    pub(crate) fn submit(&mut self, mut sqe: Sqe) -> Result<(), Failure> {
        self.cid = self.cid.wrapping_add(1);
        sqe.cid = self.cid.into();
        let at = usize::from(self.tail) * SQE_SIZE;
        self.submission.memory().write(at, sqe.as_bytes())?;
        self.tail = (self.tail + 1) % ENTRIES;
        self.registers
            .write32(submission_doorbell(0, self.stride) as u64, u32::from(self.tail));
        Ok(())
    }

    pub(crate) fn complete(&mut self) -> Result<Cqe, Failure> {
        let start = Instant::now();
        loop {
            let mut cqe = Cqe::new_zeroed();
            let at = usize::from(self.head) * CQE_SIZE;
            self.completion.memory().read(at, cqe.as_mut_bytes())?;
            if cqe.phase() == self.phase {
                self.head = (self.head + 1) % ENTRIES;
                self.phase ^= self.head == 0;
                self.registers
                    .write32(completion_doorbell(0, self.stride) as u64, u32::from(self.head));
                self.interrupts += self.vector.take()?;
                ensure!(
                    cqe.cid.get() == self.cid,
                    "command {} completes instead of {}",
                    cqe.cid,
                    self.cid
                );
                return Ok(cqe);
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "after {PATIENCE:?} command {} has not completed",
                self.cid
            );
            let mut wait = [PollFd::new(self.vector.as_fd(), PollFlags::POLLIN)];
            let left = PATIENCE
                .saturating_sub(start.elapsed())
                .min(Duration::from_secs(5));
            poll(&mut wait, PollTimeout::try_from(left)?)?;
            self.interrupts += self.vector.take()?;
        }
    }

    /// Turns the controller off in good order.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.registers.write32(offset::CC as u64, 0);
        wait_ready(&*self.registers, false)
    }
}

/// Serial number in a controller's Identify data: bytes 4 to 23. Base 2.0 §5.17.2.1.
pub(crate) fn serial(data: &[u8]) -> String {
    String::from_utf8_lossy(data.get(4..24).unwrap_or_default())
        .trim()
        .to_owned()
}
