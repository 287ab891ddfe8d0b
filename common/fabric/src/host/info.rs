//! What a host learns about a controller and its namespaces while it brings them up, as plain values.
//!
//! The wire pages are parsed once, here; a page that no controller can mean (a block size of three bytes, a
//! namespace larger than 2⁶⁴ bytes) is an [`InfoError`] instead of a value that somebody would later divide by.

use homi_spec::Nqn;
use homi_spec::controller::{Cap, Version};

/// What a controller is for (Identify Controller CNTRLTYPE, Base 2.0 §5.17.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControllerKind {
    /// Has namespaces and I/O queues. Also what controllers older than 1.4 mean, which do not say.
    Io,
    /// Serves the discovery log.
    Discovery,
    /// Has an admin queue only.
    Administrative,
    /// A value that this crate does not know.
    Other(u8),
}

/// A controller after its bring-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Identifier that the subsystem gave this controller (CNTLID).
    pub controller_id: u16,
    /// What it is for.
    pub kind: ControllerKind,
    /// Name of its subsystem.
    pub subsystem_nqn: Nqn,
    /// Version that the controller claims.
    pub version: Version,
    /// Capabilities property, whole.
    pub capabilities: Cap,
    /// PCI vendor id (VID); 0 where the subsystem has none.
    pub vendor_id: u16,
    /// Serial number, without padding.
    pub serial: String,
    /// Model number, without padding.
    pub model: String,
    /// Firmware revision, without padding.
    pub firmware: String,
    /// Largest transfer of one command in bytes (MDTS), or `None` if there is no limit.
    pub max_transfer: Option<u32>,
    /// Largest queue in entries (CAP.MQES + 1, or MAXCMD where that is smaller).
    pub max_queue_entries: u32,
    /// I/O queues that the controller granted; 0 for controllers without I/O queues.
    pub io_queues: u16,
    /// Largest namespace id (NN).
    pub max_nsid: u32,
    /// Granularity of the keep-alive timer in milliseconds (KAS); 0 if keep alive is not supported.
    pub keep_alive_granularity_ms: u32,
    /// The keep-alive timeout in force in milliseconds; 0 if it is off.
    pub keep_alive_ms: u32,
    /// Bytes of data that an I/O command capsule may carry (IOCCSZ less the entry).
    pub in_capsule: u32,
    /// Asynchronous Event Requests that the controller holds at once (AERL + 1).
    pub event_requests: u16,
    /// Abort commands that the controller executes at once (ACL + 1).
    pub abort_limit: u16,
    /// Whether Compare is supported (ONCS).
    pub compare: bool,
    /// Whether Dataset Management is supported (ONCS).
    pub deallocate: bool,
    /// Whether Write Zeroes is supported (ONCS).
    pub write_zeroes: bool,
    /// Whether Verify is supported (ONCS).
    pub verify: bool,
    /// Whether writes may stay in a volatile cache until a Flush (VWC).
    pub volatile_write_cache: bool,
}

/// A namespace as its controller describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its identifier on this controller.
    pub nsid: u32,
    /// Bytes of data in a logical block.
    pub block_size: u32,
    /// Bytes of metadata that go with a block; 0 is the usual case.
    pub metadata_size: u16,
    /// Number of logical blocks (NSZE).
    pub blocks: u64,
    /// Namespace globally unique identifier, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// IEEE extended unique identifier, if it has one.
    pub eui64: Option<[u8; 8]>,
    /// UUID from the descriptor list, if it has one.
    pub uuid: Option<[u8; 16]>,
    /// Whether writes are refused at present (NSATTR).
    pub read_only: bool,
    /// Whether several controllers may reach it (NMIC).
    pub shared: bool,
}

impl NamespaceInfo {
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Checked when the page was parsed.
        self.blocks.saturating_mul(u64::from(self.block_size))
    }
}

/// A page from the controller that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError {
    /// The page is shorter than its fixed part.
    #[error("the {page} page has {came} bytes, expected {expected}")]
    Short {
        /// Which page.
        page: &'static str,
        /// Bytes expected.
        expected: usize,
        /// Bytes that came.
        came: usize,
    },
    /// A field holds a value that cannot be meant.
    #[error("the {page} page says {field} is {came}, expected {expected}")]
    Field {
        /// Which page.
        page: &'static str,
        /// Which field.
        field: &'static str,
        /// What came.
        came: u64,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// A name in the page is not a valid NQN.
    #[error("the {page} page names a subsystem that is no nqn: {source}")]
    Name {
        /// Which page.
        page: &'static str,
        /// Why not.
        source: homi_spec::nqn::NqnError,
    },
}
