//! What a model is made of: [`SoftConfig`] and its parts, all plain data.

use homi_pci::PciIdentity;
use homi_spec::controller::Version;

use crate::dma::CmbUse;
use crate::faults::FaultRule;
use crate::iommu::SoftSpace;

/// When the model works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Only in [`step`](crate::SoftController::step) and what calls it.
    #[default]
    Stepped,
    /// Inside register writes: when a doorbell's write returns, what it offered is completed, as far as nothing is due later. I/O queues
    /// are answered by the shortest way there is, for counting a driver's instructions: their commands succeed without a look at them,
    /// move no data, and faults do not apply. Raises no interrupts for I/O queues. Pairs of different numbers, completion queues that serve
    /// several submission queues or are smaller than theirs, and queues with shadow doorbells go the long way.
    Instant,
}

/// What becomes of the commands of a submission queue that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deletion {
    /// They complete with "aborted by submission queue deletion" before the deletion does.
    #[default]
    Aborts,
    /// Nothing more is heard of them.
    Silent,
}

/// How SGLs are supported for I/O commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SglSupport {
    /// Not at all.
    #[default]
    None,
    /// Any alignment and length.
    Bytes,
    /// Dword alignment and granularity.
    Dwords,
}

/// A namespace that exists from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Size in logical blocks.
    pub blocks: u64,
    /// Block size as a power of two: 9 to 16.
    pub lbads: u8,
    /// Attached to the physical function's controller.
    pub attached: bool,
    /// Several controllers may attach it (NMIC).
    pub shared: bool,
    /// Written blocks only read back; writes are refused.
    pub write_protected: bool,
}

impl Default for NamespaceConfig {
    /// 64 MiB in blocks of 512 bytes, attached and shared.
    fn default() -> Self {
        Self {
            blocks: 131_072,
            lbads: 9,
            attached: true,
            shared: true,
            write_protected: false,
        }
    }
}

impl NamespaceConfig {
    /// An attached, shared namespace of this size.
    #[must_use]
    pub fn new(blocks: u64, lbads: u8) -> Self {
        Self {
            blocks,
            lbads,
            ..Self::default()
        }
    }
}

/// A controller memory buffer in BAR 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmbConfig {
    /// Bytes: a multiple of 4096.
    pub size: u64,
    /// Offset in the BAR: a multiple of 4096.
    pub offset: u64,
    /// Submission queues may lie there (SQS).
    pub submission_queues: bool,
    /// Completion queues may lie there (CQS).
    pub completion_queues: bool,
    /// PRP lists and SGL segments may lie there (LISTS).
    pub lists: bool,
    /// Data to the host may go there (RDS).
    pub read_data: bool,
    /// Data from the host may come from there (WDS).
    pub write_data: bool,
}

impl CmbConfig {
    /// A buffer of this size for everything.
    #[must_use]
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            offset: 0,
            submission_queues: true,
            completion_queues: true,
            lists: true,
            read_data: true,
            write_data: true,
        }
    }

    pub(crate) const fn allows(&self, usage: CmbUse) -> bool {
        match usage {
            CmbUse::SubmissionQueue => self.submission_queues,
            CmbUse::CompletionQueue => self.completion_queues,
            CmbUse::Lists => self.lists,
            CmbUse::ReadData => self.read_data,
            CmbUse::WriteData => self.write_data,
        }
    }
}

/// Virtual functions and the resources that they can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SriovConfig {
    /// How many virtual functions there may be.
    pub functions: u16,
    /// Flexible queue resources (VQ). The physical function's private queues are [`SoftConfig::io_queues`] and the admin queue.
    pub flexible_queues: u16,
    /// Flexible interrupt resources (VI).
    pub flexible_vectors: u16,
    /// Most flexible queue resources of one secondary controller.
    pub queues_each: u16,
    /// Most flexible interrupt resources of one secondary controller.
    pub vectors_each: u16,
}

/// What a model is made of. Start from the default.
#[derive(Debug, Clone)]
pub struct SoftConfig {
    /// What messages call it.
    pub name: String,
    /// Its configuration space.
    pub identity: PciIdentity,
    /// Serial number: at most 20 printable characters.
    pub serial: String,
    /// Model number: at most 40 printable characters.
    pub model: String,
    /// Firmware revision: at most 8 printable characters.
    pub firmware: String,
    /// Name of the subsystem.
    pub subnqn: String,
    /// VS.
    pub version: Version,
    /// Largest queue, in entries: 2 to 65536.
    pub max_queue_entries: u32,
    /// I/O queue pairs of the physical function.
    pub io_queues: u16,
    /// Interrupt vectors of the physical function.
    pub vectors: u16,
    /// CAP.DSTRD: doorbells are 4 << this bytes apart; up to 4.
    pub dstrd: u8,
    /// CAP.MPSMIN.
    pub mpsmin: u8,
    /// CAP.MPSMAX, up to 9.
    pub mpsmax: u8,
    /// CAP.CSS: b0 NVM, b6 by command set vector.
    pub command_sets: u8,
    /// MDTS: 2^this units of the smallest page; 0 is no limit.
    pub mdts: u8,
    /// SGLs in I/O commands.
    pub sgl: SglSupport,
    /// Bit bucket descriptors, where SGLs are supported.
    pub bit_buckets: bool,
    /// CAP.TO in units of 500 ms.
    pub timeout_500ms: u8,
    /// Steps from CC.EN to CSTS.RDY.
    pub ready_steps: u32,
    /// Steps from CC.EN cleared to CSTS.RDY cleared.
    pub disable_steps: u32,
    /// Steps that a shutdown takes.
    pub shutdown_steps: u32,
    /// While it is being disabled, a controller still moves the data of reads that it had fetched, at the last moment it may.
    pub late_dma: bool,
    /// Most commands fetched per queue and turn.
    pub burst: u32,
    /// Most commands fetched per step and controller.
    pub fetches: u32,
    /// Most commands of a controller that are under way.
    pub in_flight: u32,
    /// Completes commands in an order drawn from this seed; in the order of submission otherwise.
    pub shuffle: Option<u64>,
    /// What becomes of commands whose queue is deleted.
    pub deletion: Deletion,
    /// Namespaces 1, 2, ...
    pub namespaces: Vec<NamespaceConfig>,
    /// Largest namespace identifier (NN).
    pub max_namespaces: u32,
    /// Bytes of all namespaces together: what Namespace Management may use.
    pub capacity: u64,
    /// The memory buffer.
    pub cmb: Option<CmbConfig>,
    /// Doorbell Buffer Config.
    pub doorbell_buffer: bool,
    /// Weighted round robin with urgent class.
    pub weighted_arbitration: bool,
    /// NSSR.
    pub subsystem_reset: bool,
    /// Function-level reset.
    pub function_reset: bool,
    /// A volatile write cache is reported.
    pub volatile_cache: bool,
    /// Asynchronous Event Requests at once, zero-based.
    pub aerl_z: u8,
    /// Aborts at once, zero-based.
    pub acl_z: u8,
    /// Virtual functions.
    pub sriov: Option<SriovConfig>,
    /// The address space that all functions use; `None` gives each one of its own.
    pub space: Option<SoftSpace>,
    /// When it works.
    pub mode: Mode,
    /// What goes wrong.
    pub faults: Vec<FaultRule>,
}

impl Default for SoftConfig {
    /// One namespace of 64 MiB in blocks of 512 bytes, 8 I/O queues of up to 1024 entries, 9 vectors, transfers of up to 512 KiB,
    /// everything optional but SGLs, memory buffer and virtual functions; ready after two steps.
    fn default() -> Self {
        Self {
            name: "soft:0000:01:00.0".into(),
            identity: PciIdentity {
                vendor: 0x1b36,
                device: 0x0010,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
                class: PciIdentity::NVME_CLASS,
                revision: 1,
            },
            serial: "SOFT0001".into(),
            model: "Homi soft controller".into(),
            firmware: "1.0".into(),
            subnqn: "nqn.2025-01.io.homi:soft:SOFT0001".into(),
            version: Version::V2_0,
            max_queue_entries: 1024,
            io_queues: 8,
            vectors: 9,
            dstrd: 0,
            mpsmin: 0,
            mpsmax: 4,
            command_sets: 0x41,
            mdts: 7,
            sgl: SglSupport::None,
            bit_buckets: true,
            timeout_500ms: 4,
            ready_steps: 2,
            disable_steps: 2,
            shutdown_steps: 2,
            late_dma: true,
            burst: 4,
            fetches: 64,
            in_flight: 4096,
            shuffle: None,
            deletion: Deletion::Aborts,
            namespaces: vec![NamespaceConfig::default()],
            max_namespaces: 16,
            capacity: 1 << 30,
            cmb: None,
            doorbell_buffer: true,
            weighted_arbitration: true,
            subsystem_reset: true,
            function_reset: true,
            volatile_cache: true,
            aerl_z: 3,
            acl_z: 3,
            sriov: None,
            space: None,
            mode: Mode::Stepped,
            faults: Vec::new(),
        }
    }
}

/// A configuration that no controller can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model cannot be made: {what}")]
pub struct ConfigError {
    /// What is wrong, and what to change.
    pub what: String,
}

impl SoftConfig {
    /// Checks what the model relies on.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |what: &str| Err(ConfigError { what: what.into() });
        if !(2..=65536).contains(&self.max_queue_entries) {
            return wrong("max_queue_entries is not 2 to 65536");
        }
        if self.io_queues == 0 || self.io_queues > 1024 || self.vectors == 0 || self.vectors > 2048 {
            return wrong("io_queues is not 1 to 1024 or vectors not 1 to 2048");
        }
        if self.dstrd > 4 || self.mpsmin > self.mpsmax || self.mpsmax > 9 || self.mdts > 14 {
            return wrong("dstrd is above 4, mpsmin above mpsmax, mpsmax above 9 or mdts above 14");
        }
        if self.burst == 0 || self.fetches == 0 || self.in_flight == 0 {
            return wrong("burst, fetches and in_flight are at least 1");
        }
        if self.max_namespaces == 0 || self.max_namespaces > 1024 {
            return wrong("max_namespaces is not 1 to 1024");
        }
        if self.namespaces.len() > usize::try_from(self.max_namespaces).unwrap_or(usize::MAX) {
            return wrong("there are more namespaces than max_namespaces");
        }
        let mut used = 0_u64;
        for namespace in &self.namespaces {
            let size = namespace.blocks.saturating_mul(1 << namespace.lbads.min(16));
            if !(9..=16).contains(&namespace.lbads) || size == 0 {
                return wrong("a namespace is empty, or its lbads is not 9 to 16");
            }
            used = used.saturating_add(size);
        }
        if used > self.capacity {
            return wrong("the namespaces need more than capacity");
        }
        if let Some(cmb) = self.cmb
            && (cmb.size == 0
                || cmb.size > 1 << 30
                || cmb.offset > 1 << 30
                || !cmb.size.is_multiple_of(4096)
                || !cmb.offset.is_multiple_of(4096))
        {
            return wrong("cmb.size and cmb.offset are multiples of 4096 up to 1 GiB");
        }
        if let Some(sriov) = self.sriov
            && (sriov.functions == 0
                || sriov.functions > 127
                || sriov.queues_each > 1024
                || sriov.vectors_each > 1024)
        {
            return wrong("sriov.functions is not 1 to 127, or queues_each or vectors_each above 1024");
        }
        Ok(())
    }
}
