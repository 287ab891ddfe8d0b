//! Get Log Page and the log pages. Base 2.0 §5.16.
//!
//! Not implemented: the contents of self-test, telemetry, endurance group, predictable latency, persistent event,
//! reservation and sanitize logs; their identifiers are named.

mod ana;
mod discovery;

pub use ana::{AnaError, AnaGroup, AnaGroupDescriptor, AnaGroups, AnaHeader, AnaState};
pub use discovery::{
    AddressFamily, DiscoveryEntry, DiscoveryHeader, RdmaCms, RdmaProvider, RdmaQpType, RdmaTsas,
    SecureChannel, SecurityType, SubsystemType, TransportType, discovery_lsp, eflags, treq,
};

use crate::command::{AdminOpcode, Sqe};
use crate::macros::open_enum;
use crate::status::Status;
use core::fmt;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Log page identifier (LID): Base 2.0 §5.16.1, figure "Get Log Page – Log Page Identifiers".
    pub struct LogId(u8) {
        /// Supported log pages.
        SUPPORTED_LOG_PAGES = 0x00;
        /// Error information.
        ERROR = 0x01;
        /// SMART / health information.
        SMART = 0x02;
        /// Firmware slot information.
        FIRMWARE_SLOT = 0x03;
        /// Changed namespace list.
        CHANGED_NAMESPACES = 0x04;
        /// Commands supported and effects.
        COMMAND_EFFECTS = 0x05;
        /// Device self-test.
        SELF_TEST = 0x06;
        /// Telemetry, host-initiated.
        TELEMETRY_HOST = 0x07;
        /// Telemetry, controller-initiated.
        TELEMETRY_CONTROLLER = 0x08;
        /// Endurance group information.
        ENDURANCE_GROUP = 0x09;
        /// Predictable latency per NVM set.
        PREDICTABLE_LATENCY = 0x0a;
        /// Predictable latency event aggregate.
        PREDICTABLE_LATENCY_EVENTS = 0x0b;
        /// Asymmetric namespace access.
        ANA = 0x0c;
        /// Persistent event log.
        PERSISTENT_EVENTS = 0x0d;
        /// LBA status information.
        LBA_STATUS = 0x0e;
        /// Endurance group event aggregate.
        ENDURANCE_GROUP_EVENTS = 0x0f;
        /// Media unit status.
        MEDIA_UNIT_STATUS = 0x10;
        /// Supported capacity configuration list.
        CAPACITY_CONFIGURATIONS = 0x11;
        /// Feature identifiers supported and effects.
        FEATURE_EFFECTS = 0x12;
        /// NVMe-MI commands supported and effects.
        MI_COMMAND_EFFECTS = 0x13;
        /// Command and feature lockdown.
        LOCKDOWN = 0x14;
        /// Boot partition.
        BOOT_PARTITION = 0x15;
        /// Rotational media information.
        ROTATIONAL_MEDIA = 0x16;
        /// Discovery.
        DISCOVERY = 0x70;
        /// Reservation notification.
        RESERVATION = 0x80;
        /// Sanitize status.
        SANITIZE = 0x81;
        /// Changed zone list.
        CHANGED_ZONES = 0xbf;
    }
}

/// The Get Log Page command. Base 2.0 §5.16.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct GetLogPage {
    /// Namespace, or [`crate::command::NSID_BROADCAST`] or 0 for the controller's page.
    pub nsid: u32,
    /// Which page.
    pub lid: LogId,
    /// Log specific parameter (LSP), 7 bits.
    pub lsp: u8,
    /// Retain the asynchronous event that announced the page (RAE): it is not cleared by this read.
    pub rae: bool,
    /// Number of dwords (NUMD), zero-based.
    pub numd_z: u32,
    /// Log specific identifier (LSI).
    pub lsi: u16,
    /// Offset into the page (LPO): bytes, a multiple of 4, or an index where `index_offset` is set.
    pub lpo: u64,
    /// The offset is an index into a list (OT).
    pub index_offset: bool,
    /// UUID index, 7 bits; 0 for none.
    pub uuid_index: u8,
    /// Command set, for pages that ask for one (CSI).
    pub csi: u8,
}

/// A length that no Get Log Page can ask for.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a log page is read in 4 to 17179869184 bytes, a multiple of 4; {length} were asked for")]
pub struct LogLengthError {
    /// The length, in bytes.
    pub length: u64,
}

impl GetLogPage {
    /// The offset bit of command dword 14 (OT).
    const INDEX_OFFSET: u32 = 1 << 23;

    /// Asks for `length` bytes of a page from its start.
    ///
    /// # Errors
    /// A length that is 0, not a multiple of 4, or above 16 GiB.
    pub fn new(lid: LogId, length: u64) -> Result<Self, LogLengthError> {
        let numd_z = length
            .is_multiple_of(4)
            .then(|| (length / 4).checked_sub(1))
            .flatten()
            .and_then(|numd_z| u32::try_from(numd_z).ok())
            .ok_or(LogLengthError { length })?;
        Ok(Self {
            lid,
            numd_z,
            ..Self::default()
        })
    }

    /// The same read from this offset in bytes.
    #[must_use]
    pub const fn at(mut self, offset: u64) -> Self {
        self.lpo = offset;
        self
    }

    /// Bytes asked for: 4 to 2³⁴.
    pub const fn length(&self) -> u64 {
        (self.numd_z as u64 + 1) * 4
    }

    /// The fields of a Get Log Page; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.admin_opcode() != AdminOpcode::GET_LOG_PAGE {
            return None;
        }
        let (cdw10, cdw11, cdw14) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw14.get());
        Some(Self {
            nsid: sqe.nsid.get(),
            lid: LogId((cdw10 & 0xff) as u8),
            lsp: ((cdw10 >> 8) & 0x7f) as u8,
            rae: cdw10 & (1 << 15) != 0,
            numd_z: (cdw10 >> 16) | ((cdw11 & 0xffff) << 16),
            lsi: (cdw11 >> 16) as u16,
            lpo: u64::from(sqe.cdw12.get()) | (u64::from(sqe.cdw13.get()) << 32),
            index_offset: cdw14 & Self::INDEX_OFFSET != 0,
            uuid_index: (cdw14 & 0x7f) as u8,
            csi: (cdw14 >> 24) as u8,
        })
    }

    /// The entry of this Get Log Page; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::GET_LOG_PAGE.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw10 = U32::new(
            u32::from(self.lid.0)
                | (u32::from(self.lsp & 0x7f) << 8)
                | (u32::from(self.rae) << 15)
                | ((self.numd_z & 0xffff) << 16),
        );
        sqe.cdw11 = U32::new((self.numd_z >> 16) | (u32::from(self.lsi) << 16));
        sqe.cdw12 = U32::new((self.lpo & 0xffff_ffff) as u32);
        sqe.cdw13 = U32::new((self.lpo >> 32) as u32);
        sqe.cdw14 = U32::new(
            u32::from(self.uuid_index & 0x7f)
                | if self.index_offset { Self::INDEX_OFFSET } else { 0 }
                | (u32::from(self.csi) << 24),
        );
        sqe
    }
}

/// Supported log pages (LID 00h): 1024 bytes. Base 2.0 §5.16.1.1.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SupportedLogPages {
    /// One entry per identifier: b0 supported, b1 index offsets supported, b31:16 specific to the page.
    pub pages: [U32; 256],
}
const _: () = assert!(size_of::<SupportedLogPages>() == 1024);

impl SupportedLogPages {
    /// A page that lists exactly these identifiers.
    pub fn new(supported: &[LogId]) -> Self {
        let mut log = Self::new_zeroed();
        for lid in supported {
            if let Some(entry) = log.pages.get_mut(usize::from(lid.0)) {
                *entry = U32::new(1);
            }
        }
        log
    }

    /// Whether a page is supported.
    pub fn supports(&self, lid: LogId) -> bool {
        self.pages
            .get(usize::from(lid.0))
            .is_some_and(|entry| entry.get() & 1 != 0)
    }
}

impl fmt::Debug for SupportedLogPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries((0..=u8::MAX).map(LogId).filter(|&lid| self.supports(lid)))
            .finish()
    }
}

/// An error information entry (LID 01h): 64 bytes, newest first. Base 2.0 §5.16.1.2.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Which error of the controller's life this is; 0 for an entry that is not valid.
    pub error_count: U64,
    /// Queue of the command, or FFFFh.
    pub sqid: U16,
    /// Command, or FFFFh.
    pub cid: U16,
    /// Phase tag (b0) and status (b15:1) of the completion.
    pub status: U16,
    /// Where in the entry the error is: byte (b7:0) and bit (b10:8), or FFFFh.
    pub parameter_location: U16,
    /// First logical block with the error.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Log page with vendor specific information, or 0.
    pub vendor_log: u8,
    /// Transport type ([`TransportType`]).
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command specific information.
    pub command_specific: U64,
    /// Transport type specific information.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved42: [u8; 22],
}
const _: () = assert!(size_of::<ErrorLogEntry>() == 64);
const _: () = assert!(offset_of!(ErrorLogEntry, command_specific) == 32);

impl ErrorLogEntry {
    /// The completion's status.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }
}

/// SMART / health information (LID 02h): 512 bytes. Base 2.0 §5.16.1.3.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Warnings: the `CRITICAL_*` constants.
    pub critical_warning: u8,
    /// Composite temperature in kelvin.
    pub temperature: U16,
    /// Spare capacity, in percent.
    pub available_spare: u8,
    /// Spare capacity below which an event is raised, in percent.
    pub available_spare_threshold: u8,
    /// Life used, in percent; may exceed 100.
    pub percentage_used: u8,
    /// Endurance group critical warning summary.
    pub endurance_group_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data read by hosts, in units of 1000 × 512 bytes.
    pub data_units_read: U128,
    /// Data written by hosts, in units of 1000 × 512 bytes.
    pub data_units_written: U128,
    /// Read commands completed.
    pub host_reads: U128,
    /// Write commands completed.
    pub host_writes: U128,
    /// Time busy with I/O, in minutes.
    pub busy_time: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Power-on time, in hours.
    pub power_on_hours: U128,
    /// Shutdowns without notification.
    pub unsafe_shutdowns: U128,
    /// Unrecovered data integrity errors.
    pub media_errors: U128,
    /// Error information entries over the controller's life.
    pub error_entries: U128,
    /// Time above the warning temperature, in minutes.
    pub warning_temperature_time: U32,
    /// Time above the critical temperature, in minutes.
    pub critical_temperature_time: U32,
    /// Temperature sensors in kelvin; 0 where absent.
    pub temperature_sensors: [U16; 8],
    /// Thermal management temperature 1: transitions.
    pub thermal1_transitions: U32,
    /// Thermal management temperature 2: transitions.
    pub thermal2_transitions: U32,
    /// Thermal management temperature 1: time in seconds.
    pub thermal1_time: U32,
    /// Thermal management temperature 2: time in seconds.
    pub thermal2_time: U32,
    /// Reserved.
    pub reserved232: [u8; 280],
}
const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = {
    assert!(offset_of!(SmartLog, data_units_read) == 32);
    assert!(offset_of!(SmartLog, error_entries) == 176);
    assert!(offset_of!(SmartLog, warning_temperature_time) == 192);
    assert!(offset_of!(SmartLog, temperature_sensors) == 200);
    assert!(offset_of!(SmartLog, thermal1_transitions) == 216);
};

impl SmartLog {
    /// Spare capacity is below its threshold.
    pub const CRITICAL_SPARE: u8 = 1 << 0;
    /// A temperature is beyond its threshold.
    pub const CRITICAL_TEMPERATURE: u8 = 1 << 1;
    /// Reliability is degraded.
    pub const CRITICAL_RELIABILITY: u8 = 1 << 2;
    /// The media is read-only.
    pub const CRITICAL_READ_ONLY: u8 = 1 << 3;
    /// The backup of volatile memory failed.
    pub const CRITICAL_VOLATILE_BACKUP: u8 = 1 << 4;
    /// The persistent memory region is read-only or unreliable.
    pub const CRITICAL_PMR: u8 = 1 << 5;
}

impl Default for SmartLog {
    /// Zeroes.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for SmartLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmartLog")
            .field(
                "critical_warning",
                &format_args!("{:#04x}", self.critical_warning),
            )
            .field("temperature", &self.temperature.get())
            .field("available_spare", &self.available_spare)
            .field("percentage_used", &self.percentage_used)
            .field("data_units_read", &self.data_units_read.get())
            .field("data_units_written", &self.data_units_written.get())
            .field("host_reads", &self.host_reads.get())
            .field("host_writes", &self.host_writes.get())
            .field("power_on_hours", &self.power_on_hours.get())
            .field("media_errors", &self.media_errors.get())
            .finish_non_exhaustive()
    }
}

/// Firmware slot information (LID 03h): 512 bytes. Base 2.0 §5.16.1.4.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active firmware: b2:0 slot in use, b6:4 slot at the next reset.
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Revisions in slots 1 to 7, space-padded ASCII, or zeroes.
    pub revisions: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

impl FirmwareSlotLog {
    /// One slot, in use, with this revision.
    pub fn single(revision: [u8; 8]) -> Self {
        let mut log = Self::new_zeroed();
        log.afi = 1;
        log.revisions[0] = revision;
        log
    }
}

impl fmt::Debug for FirmwareSlotLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirmwareSlotLog")
            .field("afi", &self.afi)
            .field("revisions", &self.revisions)
            .finish_non_exhaustive()
    }
}

/// Changed namespace list (LID 04h): like a namespace list, but a first entry of FFFFFFFFh says that more than 1024
/// changed. Base 2.0 §5.16.1.5.
pub type ChangedNamespaces = crate::identify::NamespaceList;

/// What a command does besides its work: one entry of [`CommandEffectsLog`]. Base 2.0 §5.16.1.6.
pub mod effects {
    /// The command is supported.
    pub const SUPPORTED: u32 = 1 << 0;
    /// It may change the content of logical blocks.
    pub const CONTENT_CHANGE: u32 = 1 << 1;
    /// It may change a namespace's capabilities.
    pub const NAMESPACE_CAPABILITY_CHANGE: u32 = 1 << 2;
    /// It may change which namespaces there are.
    pub const NAMESPACE_INVENTORY_CHANGE: u32 = 1 << 3;
    /// It may change the controller's capabilities.
    pub const CONTROLLER_CAPABILITY_CHANGE: u32 = 1 << 4;
    /// b18:16: restrictions on submission, mask.
    pub const SUBMISSION_MASK: u32 = 0x7 << 16;
    /// b18:16 = 001b: no other command to the same namespace.
    pub const EXCLUSIVE_NAMESPACE: u32 = 1 << 16;
    /// b18:16 = 010b: no other command to any namespace.
    pub const EXCLUSIVE_ALL: u32 = 2 << 16;
    /// The UUID index is honoured.
    pub const UUID_SELECTION: u32 = 1 << 19;
    /// b31:20: scope, mask.
    pub const SCOPE_MASK: u32 = 0xfff << 20;
}

/// Commands supported and effects (LID 05h): 4096 bytes, entries of [`effects`]. Base 2.0 §5.16.1.6.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandEffectsLog {
    /// Admin commands, by opcode.
    pub admin: [U32; 256],
    /// I/O commands, by opcode.
    pub io: [U32; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}
const _: () = assert!(size_of::<CommandEffectsLog>() == 4096);

impl Default for CommandEffectsLog {
    /// Zeroes: no command is supported.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl CommandEffectsLog {
    /// Sets the entry of an admin command.
    pub fn set_admin(&mut self, opcode: u8, effects: u32) {
        if let Some(entry) = self.admin.get_mut(usize::from(opcode)) {
            *entry = U32::new(effects);
        }
    }

    /// Sets the entry of an I/O command.
    pub fn set_io(&mut self, opcode: u8, effects: u32) {
        if let Some(entry) = self.io.get_mut(usize::from(opcode)) {
            *entry = U32::new(effects);
        }
    }
}

impl fmt::Debug for CommandEffectsLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let supported = |entries: &[U32; 256]| {
            entries
                .iter()
                .filter(|entry| entry.get() & effects::SUPPORTED != 0)
                .count()
        };
        f.debug_struct("CommandEffectsLog")
            .field("admin_supported", &supported(&self.admin))
            .field("io_supported", &supported(&self.io))
            .finish_non_exhaustive()
    }
}
