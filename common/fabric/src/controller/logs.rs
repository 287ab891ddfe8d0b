//! Log pages other than discovery. Base 2.0 §5.16.
//!
//! Each page is made whole, since none is larger than 4 KiB, and a read gets its window of it.

use super::features::Features;
use super::refusal::Refusal;
use super::view::{ERROR_LOG_ENTRIES, ErrorLog, Totals};
use homi_spec::command::{AdminOpcode, FabricsOpcode, NSID_BROADCAST, NvmOpcode};
use homi_spec::feature::capability;
use homi_spec::log::{
    ChangedNamespaces, CommandEffectsLog, ErrorLogEntry, FirmwareSlotLog, GetLogPage, LogId, SmartLog,
    SupportedLogPages, TransportType, effects,
};
use homi_spec::{Status, U16, U32, U64, text};
use std::collections::BTreeSet;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U128;

/// Most identifiers in the changed namespace list; more are one entry that says so.
const CHANGED_LIMIT: usize = 1024;
/// Scopes of commands and features: bits 31:20 of their effects entries. Base 2.0 §5.16.1.6 and §5.16.1.18.
const SCOPE_NAMESPACE: u32 = 1 << 20;
const SCOPE_CONTROLLER: u32 = 1 << 21;

/// Bytes of the fields of Get Log Page, for the error log.
pub(super) const NSID_BYTE: u8 = 4;
pub(super) const LID_BYTE: u8 = 40;
pub(super) const NUMD_BYTE: u8 = 42;
pub(super) const LPO_BYTE: u8 = 48;
const OT_BYTE: u8 = 58;
const CSI_BYTE: u8 = 59;

const IO_PAGES: &[LogId] = &[
    LogId::SUPPORTED_LOG_PAGES,
    LogId::ERROR,
    LogId::SMART,
    LogId::FIRMWARE_SLOT,
    LogId::CHANGED_NAMESPACES,
    LogId::COMMAND_EFFECTS,
    LogId::FEATURE_EFFECTS,
    LogId::MI_COMMAND_EFFECTS,
];
const DISCOVERY_PAGES: &[LogId] = &[
    LogId::SUPPORTED_LOG_PAGES,
    LogId::ERROR,
    LogId::COMMAND_EFFECTS,
    LogId::FEATURE_EFFECTS,
    LogId::DISCOVERY,
];

/// Namespaces that changed since the list was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Changed {
    nsids: BTreeSet<u32>,
    overflow: bool,
}

impl Changed {
    pub(super) fn add(&mut self, nsid: u32) {
        if self.nsids.len() < CHANGED_LIMIT || self.nsids.contains(&nsid) {
            self.nsids.insert(nsid);
        } else {
            self.overflow = true;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn page(&self) -> Vec<u8> {
        let page = if self.overflow {
            ChangedNamespaces::new([NSID_BROADCAST])
        } else {
            ChangedNamespaces::new(self.nsids.iter().copied())
        };
        page.as_bytes().to_vec()
    }

    /// Bytes of the page that say something.
    pub(super) fn used(&self) -> u64 {
        let entries = if self.overflow { 1 } else { self.nsids.len() };
        u64::try_from(entries).unwrap_or(u64::MAX).saturating_mul(4)
    }
}

/// What log pages are made from.
pub(super) struct Sources<'a> {
    pub(super) discovery: bool,
    pub(super) write_cache: bool,
    pub(super) transport: TransportType,
    pub(super) firmware: &'a str,
    pub(super) errors: &'a ErrorLog,
    pub(super) changed: &'a Changed,
    /// What all queues of the subsystem did.
    pub(super) totals: Totals,
    pub(super) uptime_hours: u64,
}

/// Base 2.0 §5.16: checks that hold for every page. Returns how many bytes are read.
pub(super) fn check(command: &GetLogPage, max_transfer: u32) -> Result<usize, Refusal> {
    if command.index_offset {
        return Err(Refusal::at(Status::INVALID_FIELD, OT_BYTE));
    }
    if !command.lpo.is_multiple_of(4) {
        return Err(Refusal::at(Status::INVALID_FIELD, LPO_BYTE));
    }
    let len = command.length();
    if len > u64::from(max_transfer) {
        return Err(Refusal::at(Status::INVALID_FIELD, NUMD_BYTE));
    }
    usize::try_from(len).map_err(|_| Refusal::at(Status::INVALID_FIELD, NUMD_BYTE))
}

/// The window of a page from `offset` on; zeroes past the page's end.
pub(super) fn window(page: &[u8], offset: u64, len: usize) -> Result<Vec<u8>, Refusal> {
    let past_the_end = Refusal::at(Status::INVALID_FIELD, LPO_BYTE);
    let offset = usize::try_from(offset).map_err(|_| past_the_end)?;
    let rest = page.get(offset..).ok_or(past_the_end)?;
    let mut bytes: Vec<u8> = rest.iter().copied().take(len).collect();
    bytes.resize(len, 0);
    Ok(bytes)
}

impl Sources<'_> {
    /// A whole page.
    pub(super) fn page(&self, command: &GetLogPage) -> Result<Vec<u8>, Refusal> {
        let supported = if self.discovery { DISCOVERY_PAGES } else { IO_PAGES };
        if !supported.contains(&command.lid) {
            return Err(Refusal::at(Status::INVALID_LOG_PAGE, LID_BYTE));
        }
        Ok(match command.lid {
            LogId::SUPPORTED_LOG_PAGES => SupportedLogPages::new(supported).as_bytes().to_vec(),
            LogId::ERROR => self.errors(),
            LogId::SMART => {
                // Per-namespace pages do not exist (LPA bit 0 is 0).
                if command.nsid != 0 && command.nsid != NSID_BROADCAST {
                    return Err(Refusal::at(Status::INVALID_FIELD, NSID_BYTE));
                }
                self.smart().as_bytes().to_vec()
            }
            LogId::FIRMWARE_SLOT => {
                let mut revision = [0; 8];
                // Checked when it was configured.
                let _ = text::set_ascii(&mut revision, self.firmware);
                FirmwareSlotLog::single(revision).as_bytes().to_vec()
            }
            LogId::CHANGED_NAMESPACES => self.changed.page(),
            LogId::COMMAND_EFFECTS => {
                if command.csi != 0 {
                    return Err(Refusal::at(Status::INVALID_FIELD, CSI_BYTE));
                }
                self.command_effects().as_bytes().to_vec()
            }
            LogId::FEATURE_EFFECTS => self.feature_effects(),
            // There is no management interface, so none of its commands is supported.
            LogId::MI_COMMAND_EFFECTS => vec![0; 4096],
            _ => return Err(Refusal::at(Status::INVALID_LOG_PAGE, LID_BYTE)),
        })
    }

    fn errors(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(ERROR_LOG_ENTRIES * size_of::<ErrorLogEntry>());
        for (number, record) in self.errors.entries() {
            let entry = ErrorLogEntry {
                error_count: U64::new(*number),
                sqid: U16::new(record.qid),
                cid: U16::new(record.cid),
                status: U16::new(record.status.to_wire(false)),
                parameter_location: U16::new(record.location),
                lba: U64::new(record.lba),
                nsid: U32::new(record.nsid),
                trtype: self.transport.raw(),
                ..ErrorLogEntry::default()
            };
            page.extend_from_slice(entry.as_bytes());
        }
        page.resize(ERROR_LOG_ENTRIES * size_of::<ErrorLogEntry>(), 0);
        page
    }

    /// There is no sensor, no wear and no spare area: what says nothing is 0, and the spare is all there.
    fn smart(&self) -> SmartLog {
        // Thousands of 512-byte units, rounded up.
        let units = |bytes: u64| U128::new(u128::from(bytes.div_ceil(512_000)));
        SmartLog {
            available_spare: 100,
            data_units_read: units(self.totals.bytes_read),
            data_units_written: units(self.totals.bytes_written),
            host_reads: U128::new(self.totals.reads.into()),
            host_writes: U128::new(self.totals.writes.into()),
            power_cycles: U128::new(1),
            power_on_hours: U128::new(self.uptime_hours.into()),
            media_errors: U128::new(self.errors.media().into()),
            error_entries: U128::new(self.errors.count().into()),
            ..SmartLog::default()
        }
    }

    fn command_effects(&self) -> CommandEffectsLog {
        let mut log = CommandEffectsLog::default();
        for opcode in [
            AdminOpcode::GET_LOG_PAGE,
            AdminOpcode::IDENTIFY,
            AdminOpcode::ABORT,
            AdminOpcode::SET_FEATURES,
            AdminOpcode::GET_FEATURES,
            AdminOpcode::ASYNC_EVENT_REQUEST,
            AdminOpcode::KEEP_ALIVE,
            AdminOpcode(FabricsOpcode::FABRICS),
        ] {
            log.set_admin(opcode.raw(), effects::SUPPORTED | SCOPE_CONTROLLER);
        }
        if !self.discovery {
            for (opcode, changes) in [
                (NvmOpcode::FLUSH, 0),
                (NvmOpcode::WRITE, effects::CONTENT_CHANGE),
                (NvmOpcode::READ, 0),
                (NvmOpcode::COMPARE, 0),
                (NvmOpcode::WRITE_ZEROES, effects::CONTENT_CHANGE),
                (NvmOpcode::DATASET_MANAGEMENT, effects::CONTENT_CHANGE),
                (NvmOpcode::VERIFY, 0),
            ] {
                log.set_io(opcode.raw(), effects::SUPPORTED | changes | SCOPE_NAMESPACE);
            }
            log.set_io(FabricsOpcode::FABRICS, effects::SUPPORTED | SCOPE_CONTROLLER);
        }
        log
    }

    /// Base 2.0 §5.16.1.18: 256 entries of 4 bytes, bit 0 of which says that the feature is supported.
    fn feature_effects(&self) -> Vec<u8> {
        let mut page = [U32::ZERO; 256];
        for (fid, capabilities) in Features::supported(self.write_cache, self.discovery) {
            let scope = if capabilities & capability::NAMESPACE_SPECIFIC != 0 {
                SCOPE_NAMESPACE
            } else {
                SCOPE_CONTROLLER
            };
            if let Some(entry) = page.get_mut(usize::from(fid.raw())) {
                *entry = U32::new(effects::SUPPORTED | scope);
            }
        }
        page.as_bytes().to_vec()
    }
}
