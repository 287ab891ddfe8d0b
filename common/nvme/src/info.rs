//! What a controller says about itself, checked once: [`ControllerInfo`], [`Namespace`] and the table of them.

use std::fmt;

use homi_queue::{PageSize, SglRules};
use homi_spec::controller::{Cap, Version};
use homi_spec::identify::{IdentifyController, IdentifyNamespace};

/// A controller as it was brought up.
#[derive(Clone)]
pub struct ControllerInfo {
    pub(crate) identify: Box<IdentifyController>,
    pub(crate) cap: Cap,
    pub(crate) version: Version,
    pub(crate) page: PageSize,
    pub(crate) max_transfer: u64,
    pub(crate) mdts: Option<u64>,
    pub(crate) queues: u16,
    pub(crate) vectors: u16,
    pub(crate) sgl: Option<SglRules>,
    pub(crate) weighted: bool,
    pub(crate) shadow: bool,
}

impl ControllerInfo {
    /// The Identify Controller page.
    #[must_use]
    pub fn identify(&self) -> &IdentifyController {
        &self.identify
    }

    /// The capabilities register.
    #[must_use]
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// The version of the specification that it implements.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes of a memory page (CC.MPS): the smallest that the controller takes.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page.bytes()
    }

    /// The longest transfer of one device command in bytes: what the controller allows or the options say, whichever is less. Queues split
    /// longer reads, writes and compares.
    #[must_use]
    pub fn max_transfer(&self) -> u64 {
        self.max_transfer
    }

    /// The controller's own limit of a transfer in bytes (MDTS), if it has one.
    #[must_use]
    pub fn mdts(&self) -> Option<u64> {
        self.mdts
    }

    /// I/O queues that the controller granted.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Interrupt vectors that are on; the first is the admin queue's.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether it takes SGLs on its I/O queues.
    #[must_use]
    pub fn has_sgls(&self) -> bool {
        self.sgl.is_some()
    }

    /// Whether queues have different priorities.
    #[must_use]
    pub fn weighted(&self) -> bool {
        self.weighted
    }

    /// Whether doorbells in memory are used.
    #[must_use]
    pub fn shadow_doorbells(&self) -> bool {
        self.shadow
    }
}

impl fmt::Debug for ControllerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerInfo")
            .field("identify", &self.identify)
            .field("cap", &self.cap)
            .field("max_transfer", &self.max_transfer)
            .field("queues", &self.queues)
            .field("vectors", &self.vectors)
            .field("sgls", &self.has_sgls())
            .field("shadow_doorbells", &self.shadow_doorbells())
            .finish_non_exhaustive()
    }
}

/// How a namespace transfers data, known to make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) nsid: u32,
    /// Bytes per block on the way, with metadata if that is part of the data.
    pub(crate) transfer: u32,
    /// Bytes of metadata that are part of the data.
    pub(crate) metadata: u32,
    /// Metadata travels separately.
    pub(crate) separate: bool,
}

/// A namespace that is attached to a controller.
#[derive(Clone)]
pub struct Namespace {
    pub(crate) identify: Box<IdentifyNamespace>,
    pub(crate) shape: Shape,
    block_size: u32,
    bytes: u64,
}

impl Namespace {
    /// The namespace that a page describes, or what is wrong with the page.
    pub(crate) fn new(nsid: u32, identify: Box<IdentifyNamespace>) -> Result<Self, String> {
        let format = identify
            .format()
            .ok_or_else(|| format!("its format {} is none of those it has", identify.format_index()))?;
        let block_size = format
            .block_size()
            .ok_or_else(|| format!("its blocks have 2^{} bytes", format.lbads))?;
        let blocks = identify.nsze.get();
        let bytes = blocks
            .checked_mul(block_size.into())
            .ok_or_else(|| format!("{blocks} blocks of {block_size} bytes are more than 64 bits can say"))?;
        let metadata = u32::from(format.ms.get());
        let extended = identify.metadata_extended();
        let part = if extended { metadata } else { 0 };
        let shape = Shape {
            nsid,
            transfer: block_size
                .checked_add(part)
                .ok_or_else(|| "its blocks are too long".to_owned())?,
            metadata: part,
            separate: metadata > 0 && !extended,
        };
        Ok(Self {
            identify,
            shape,
            block_size,
            bytes,
        })
    }

    /// Its identifier.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.shape.nsid
    }

    /// Bytes of a logical block, without metadata.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes that a logical block transfers: with metadata where that is part of the data.
    #[must_use]
    pub fn transfer_block(&self) -> u32 {
        self.shape.transfer
    }

    /// Logical blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.identify.nsze.get()
    }

    /// Bytes, without metadata.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The Identify Namespace page.
    #[must_use]
    pub fn identify(&self) -> &IdentifyNamespace {
        &self.identify
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("nsid", &self.nsid())
            .field("block_size", &self.block_size)
            .field("blocks", &self.blocks())
            .finish_non_exhaustive()
    }
}
