//! What a host learns about a controller and its namespaces while it brings them up, as plain values.
//!
//! The wire pages are parsed once, here; a page that no controller can mean (a block size of three bytes, a
//! namespace larger than 2⁶⁴ bytes) is an [`InfoError`] instead of a value that somebody would later divide by.

use homi_spec::Nqn;
use homi_spec::controller::{Cap, Cc, Version};
use homi_spec::identify::{
    ControllerType, DATA_SIZE, IdentifyController, IdentifyNamespace, NamespaceDescriptors, NamespaceId,
    NamespaceList, nmic, oaes, oncs, sgls, vwc,
};
use zerocopy::FromBytes;

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
    /// Configuration property that it was enabled with.
    pub configuration: Cc,
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
    /// Largest queue in entries, one more than the commands in flight: CAP.MQES + 1, or MAXCMD + 1 where that is smaller.
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
    /// Bytes between the entry and the data of an I/O command capsule (ICDOFF).
    pub in_capsule_offset: u32,
    /// Descriptors that a command may have (MSDBD): at least 1.
    pub max_descriptors: u16,
    /// Asynchronous Event Requests that the controller holds at once (AERL + 1).
    pub event_requests: u16,
    /// Abort commands that the controller executes at once (ACL + 1).
    pub abort_limit: u16,
    /// Optional asynchronous events that the controller can report (OAES).
    pub optional_events: u32,
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

impl ControllerInfo {
    /// Parses an Identify Controller page (CNS 01h). `controller_id` is what Connect answered and `asked` the subsystem that was
    /// asked for, which stands in where the page names none. What later commands negotiate (queues, keep alive) is left at zero.
    ///
    /// # Errors
    /// [`InfoError`] for a page that no controller over fabrics can mean.
    pub fn from_page(
        page: &[u8],
        capabilities: Cap,
        version: Version,
        controller_id: u16,
        asked: &Nqn,
    ) -> Result<Self, InfoError> {
        const PAGE: &str = "identify controller";
        let id = parse::<IdentifyController>(page, PAGE)?;
        let field = |field, came, expected| InfoError::Field {
            page: PAGE,
            field,
            came,
            expected,
        };
        if id.cntlid.get() != controller_id {
            return Err(field(
                "CNTLID",
                id.cntlid.get().into(),
                "the id that connect answered",
            ));
        }
        let kind = match id.cntrltype {
            ControllerType::DISCOVERY => ControllerKind::Discovery,
            // Controllers from before 1.4 do not say; the name that was asked for does.
            ControllerType::NOT_REPORTED if asked.is_discovery() => ControllerKind::Discovery,
            ControllerType::NOT_REPORTED | ControllerType::IO => ControllerKind::Io,
            ControllerType::ADMINISTRATIVE => ControllerKind::Administrative,
            ControllerType(other) => ControllerKind::Other(other),
        };
        let in_capsule = if kind == ControllerKind::Io {
            if id.sgls.get() & sgls::SUPPORT_MASK == 0 {
                return Err(field(
                    "SGLS",
                    id.sgls.get().into(),
                    "sgl support, which fabrics require",
                ));
            }
            if id.iorcsz.get() < 1 {
                return Err(field(
                    "IORCSZ",
                    id.iorcsz.get().into(),
                    "at least 1, for a completion",
                ));
            }
            id.in_capsule_data().ok_or_else(|| {
                field(
                    "IOCCSZ",
                    id.ioccsz.get().into(),
                    "at least 4 and ICDOFF, for a command",
                )
            })?
        } else {
            0
        };
        let entries = capabilities.max_queue_entries();
        let max_queue_entries = match id.maxcmd.get() {
            0 => entries,
            commands => entries.min(u32::from(commands) + 1),
        };
        if max_queue_entries < 2 {
            return Err(field(
                "CAP.MQES",
                capabilities.mqes_z().into(),
                "at least 1, for two entries",
            ));
        }
        let oncs = id.oncs.get();
        Ok(Self {
            controller_id,
            kind,
            subsystem_nqn: id.subsystem_nqn().unwrap_or_else(|_| asked.clone()),
            version,
            capabilities,
            configuration: Cc::default(),
            vendor_id: id.vid.get(),
            serial: text(id.serial()),
            model: text(id.model()),
            firmware: text(id.firmware()),
            max_transfer: id
                .max_transfer(capabilities.mpsmin())
                .and_then(|bytes| u32::try_from(bytes).ok()),
            max_queue_entries,
            io_queues: 0,
            max_nsid: id.nn.get(),
            keep_alive_granularity_ms: u32::from(id.kas.get()) * 100,
            keep_alive_ms: 0,
            in_capsule: u32::try_from(in_capsule).unwrap_or(u32::MAX),
            in_capsule_offset: u32::from(id.icdoff.get()) * 16,
            max_descriptors: u16::from(id.msdbd).max(1),
            event_requests: u16::from(id.aerl_z) + 1,
            abort_limit: u16::from(id.acl_z) + 1,
            optional_events: id.oaes.get(),
            compare: oncs & oncs::COMPARE != 0,
            deallocate: oncs & oncs::DATASET_MANAGEMENT != 0,
            write_zeroes: oncs & oncs::WRITE_ZEROES != 0,
            verify: oncs & oncs::VERIFY != 0,
            volatile_write_cache: id.vwc & vwc::PRESENT != 0,
        })
    }

    /// Whether the controller reports changes of the discovery log.
    #[must_use]
    pub fn reports_discovery_changes(&self) -> bool {
        self.optional_events & oaes::DISCOVERY_LOG != 0
    }
}

impl NamespaceInfo {
    /// Parses an Identify Namespace page (CNS 00h), or says that the namespace is inactive with `None`.
    ///
    /// # Errors
    /// [`InfoError`] for a page that cannot be meant.
    pub fn from_page(nsid: u32, page: &[u8]) -> Result<Option<Self>, InfoError> {
        const PAGE: &str = "identify namespace";
        let id = parse::<IdentifyNamespace>(page, PAGE)?;
        let field = |field, came, expected| InfoError::Field {
            page: PAGE,
            field,
            came,
            expected,
        };
        if !id.is_active() {
            return Ok(None);
        }
        let Some(format) = id.format() else {
            return Err(field(
                "FLBAS",
                id.flbas.into(),
                "the index of a format that the page lists",
            ));
        };
        if !(BLOCK_SHIFTS).contains(&format.lbads) {
            return Err(field(
                "LBADS",
                format.lbads.into(),
                "9 to 16, for blocks of 512 to 65536 bytes",
            ));
        }
        let block_size = 1_u32 << format.lbads;
        let blocks = id.nsze.get();
        if blocks.checked_mul(u64::from(block_size)).is_none() {
            return Err(field("NSZE", blocks, "a size below 2^64 bytes"));
        }
        if format.ms.get() != 0 && id.metadata_extended() {
            return Err(field(
                "FLBAS",
                id.flbas.into(),
                "blocks without metadata inside the data",
            ));
        }
        let known = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        Ok(Some(Self {
            nsid,
            block_size,
            metadata_size: format.ms.get(),
            blocks,
            nguid: known(&id.nguid).then_some(id.nguid),
            eui64: known(&id.eui64).then_some(id.eui64),
            uuid: None,
            read_only: id.nsattr & 1 != 0,
            shared: id.nmic & nmic::SHARED != 0,
        }))
    }

    /// Adds the identifiers of a descriptor list (CNS 03h). What cannot be read ends the list and is left out: the list
    /// names the namespace, it does not size it.
    pub fn add_descriptors(&mut self, list: &[u8]) {
        for descriptor in NamespaceDescriptors::new(list).map_while(Result::ok) {
            match descriptor {
                NamespaceId::Eui64(id) => self.eui64 = Some(id),
                NamespaceId::Nguid(id) => self.nguid = Some(id),
                NamespaceId::Uuid(id) => self.uuid = Some(id),
                NamespaceId::Csi(_) | NamespaceId::Unknown { .. } => {}
            }
        }
    }
}

/// Powers of two that a block size may be.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u8> = 9..=16;

/// Parses an active namespace list (CNS 02h) that was asked for above `after`: ascending ids, ended by a zero or by the page.
///
/// # Errors
/// [`InfoError::Field`] for ids that do not ascend, on which reading the next page would never end.
pub fn parse_namespace_list(page: &[u8], after: u32) -> Result<Vec<u32>, InfoError> {
    const PAGE: &str = "active namespace list";
    let list = parse::<NamespaceList>(page, PAGE)?;
    let mut ids = Vec::new();
    let mut last = after;
    for nsid in list.iter() {
        if nsid <= last || nsid == u32::MAX {
            return Err(InfoError::Field {
                page: PAGE,
                field: "an id",
                came: nsid.into(),
                expected: "ascending ids below ffffffffh",
            });
        }
        last = nsid;
        ids.push(nsid);
    }
    Ok(ids)
}

fn parse<T: FromBytes>(page: &[u8], name: &'static str) -> Result<T, InfoError> {
    T::read_from_prefix(page)
        .map(|(value, _)| value)
        .map_err(|_| InfoError::Short {
            page: name,
            expected: DATA_SIZE,
            came: page.len(),
        })
}

/// Text of an ASCII field; a controller that put something else there is shown as such, not refused.
fn text(field: Option<&str>) -> String {
    field.unwrap_or("(not ascii)").to_owned()
}
