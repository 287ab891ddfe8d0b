//! Get Features and Set Features. Base 2.0 §5.15 and §5.27.
//!
//! Not implemented: the data structures of power, thermal, host memory buffer and predictable latency features.

use crate::command::{AdminOpcode, Sqe};
use crate::macros::open_enum;
use core::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Feature identifier (FID): Base 2.0 §5.27.1, figure "Feature Identifiers".
    pub struct FeatureId(u8) {
        /// Arbitration.
        ARBITRATION = 0x01;
        /// Power management.
        POWER_MANAGEMENT = 0x02;
        /// LBA range type.
        LBA_RANGE_TYPE = 0x03;
        /// Temperature threshold.
        TEMPERATURE_THRESHOLD = 0x04;
        /// Error recovery.
        ERROR_RECOVERY = 0x05;
        /// Volatile write cache.
        VOLATILE_WRITE_CACHE = 0x06;
        /// Number of queues.
        NUMBER_OF_QUEUES = 0x07;
        /// Interrupt coalescing (PCIe).
        INTERRUPT_COALESCING = 0x08;
        /// Interrupt vector configuration (PCIe).
        INTERRUPT_VECTOR = 0x09;
        /// Write atomicity normal.
        WRITE_ATOMICITY = 0x0a;
        /// Asynchronous event configuration.
        ASYNC_EVENT = 0x0b;
        /// Autonomous power state transition.
        AUTONOMOUS_POWER = 0x0c;
        /// Host memory buffer (PCIe).
        HOST_MEMORY_BUFFER = 0x0d;
        /// Timestamp.
        TIMESTAMP = 0x0e;
        /// Keep alive timer.
        KEEP_ALIVE_TIMER = 0x0f;
        /// Host controlled thermal management.
        THERMAL_MANAGEMENT = 0x10;
        /// Non-operational power state configuration.
        NON_OPERATIONAL_POWER = 0x11;
        /// Read recovery level.
        READ_RECOVERY_LEVEL = 0x12;
        /// Predictable latency mode configuration.
        PREDICTABLE_LATENCY_CONFIG = 0x13;
        /// Predictable latency mode window.
        PREDICTABLE_LATENCY_WINDOW = 0x14;
        /// LBA status information report interval.
        LBA_STATUS_INTERVAL = 0x15;
        /// Host behavior support.
        HOST_BEHAVIOR = 0x16;
        /// Sanitize configuration.
        SANITIZE = 0x17;
        /// Endurance group event configuration.
        ENDURANCE_GROUP_EVENT = 0x18;
        /// I/O command set profile.
        IO_COMMAND_SET_PROFILE = 0x19;
        /// Spinup control.
        SPINUP = 0x1a;
        /// Software progress marker.
        SOFTWARE_PROGRESS = 0x80;
        /// Host identifier.
        HOST_IDENTIFIER = 0x81;
        /// Reservation notification mask.
        RESERVATION_MASK = 0x82;
        /// Reservation persistence.
        RESERVATION_PERSISTENCE = 0x83;
        /// Namespace write protection.
        WRITE_PROTECTION = 0x84;
    }
}

open_enum! {
    /// Which value Get Features returns (SEL), 3 bits. Base 2.0 §5.15.
    pub struct Select(u8) {
        /// The current value.
        CURRENT = 0x00;
        /// The default value.
        DEFAULT = 0x01;
        /// The saved value.
        SAVED = 0x02;
        /// What the feature can do, as the [`capability`] bits in dword 0.
        SUPPORTED_CAPABILITIES = 0x03;
    }
}

/// Dword 0 of Get Features with [`Select::SUPPORTED_CAPABILITIES`]. Base 2.0 §5.15.
pub mod capability {
    /// The value can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// The feature belongs to a namespace.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// The value can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// The Get Features command. Base 2.0 §5.15.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct GetFeatures {
    /// Namespace, for features that belong to one.
    pub nsid: u32,
    /// Which feature.
    pub fid: FeatureId,
    /// Which value.
    pub select: Select,
    /// Command dword 11, whose meaning the feature gives.
    pub cdw11: u32,
}

impl GetFeatures {
    /// Asks for the current value of a feature.
    pub fn new(fid: FeatureId) -> Self {
        Self {
            fid,
            ..Self::default()
        }
    }

    /// The fields of a Get Features; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.admin_opcode() != AdminOpcode::GET_FEATURES {
            return None;
        }
        let cdw10 = sqe.cdw10.get();
        Some(Self {
            nsid: sqe.nsid.get(),
            fid: FeatureId((cdw10 & 0xff) as u8),
            select: Select(((cdw10 >> 8) & 0x7) as u8),
            cdw11: sqe.cdw11.get(),
        })
    }

    /// The entry of this Get Features; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::GET_FEATURES.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw10 = U32::new(u32::from(self.fid.0) | (u32::from(self.select.0 & 0x7) << 8));
        sqe.cdw11 = U32::new(self.cdw11);
        sqe
    }
}

/// The Set Features command. Base 2.0 §5.27.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct SetFeatures {
    /// Namespace, for features that belong to one.
    pub nsid: u32,
    /// Which feature.
    pub fid: FeatureId,
    /// Keep the value over resets and power loss (SV).
    pub save: bool,
    /// Command dword 11, whose meaning the feature gives.
    pub cdw11: u32,
    /// Command dword 12, whose meaning the feature gives.
    pub cdw12: u32,
}

impl SetFeatures {
    /// Sets the current value of a feature that dword 11 holds whole.
    pub fn new(fid: FeatureId, cdw11: u32) -> Self {
        Self {
            fid,
            cdw11,
            ..Self::default()
        }
    }

    /// The fields of a Set Features; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.admin_opcode() != AdminOpcode::SET_FEATURES {
            return None;
        }
        let cdw10 = sqe.cdw10.get();
        Some(Self {
            nsid: sqe.nsid.get(),
            fid: FeatureId((cdw10 & 0xff) as u8),
            save: cdw10 & (1 << 31) != 0,
            cdw11: sqe.cdw11.get(),
            cdw12: sqe.cdw12.get(),
        })
    }

    /// The entry of this Set Features; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::SET_FEATURES.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw10 = U32::new(u32::from(self.fid.0) | (u32::from(self.save) << 31));
        sqe.cdw11 = U32::new(self.cdw11);
        sqe.cdw12 = U32::new(self.cdw12);
        sqe
    }
}

/// Number of Queues (FID 07h): dword 11 asks, dword 0 of the completion grants. Base 2.0 §5.27.1.5.
///
/// Over fabrics, completion queues are paired with submission queues, and both numbers count I/O queues without the
/// admin queue. Neither field may be FFFFh (65536 queues).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct NumberOfQueues {
    /// I/O submission queues, zero-based.
    pub submission_z: u16,
    /// I/O completion queues, zero-based.
    pub completion_z: u16,
}

impl NumberOfQueues {
    /// The same number of both, or `None` unless it is 1 to 65535.
    pub fn pairs(queues: u32) -> Option<Self> {
        let queues_z = queues
            .checked_sub(1)
            .and_then(|queues_z| u16::try_from(queues_z).ok())?;
        (queues_z != u16::MAX).then_some(Self {
            submission_z: queues_z,
            completion_z: queues_z,
        })
    }

    /// The fields of dword 11 or of dword 0.
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            submission_z: (dword & 0xffff) as u16,
            completion_z: (dword >> 16) as u16,
        }
    }

    /// Dword 11 or dword 0.
    pub const fn to_dword(self) -> u32 {
        self.submission_z as u32 | ((self.completion_z as u32) << 16)
    }

    /// Queue pairs: the smaller number, 1 to 65536.
    pub const fn queue_pairs(self) -> u32 {
        let smaller_z = if self.submission_z < self.completion_z {
            self.submission_z
        } else {
            self.completion_z
        };
        smaller_z as u32 + 1
    }
}

/// Asynchronous Event Configuration (FID 0Bh), dword 11: the events to be told of. Bits from 8 up are those of
/// [`crate::identify::oaes`]. Base 2.0 §5.27.1.8.
pub mod async_event {
    /// b7:0: SMART warnings, mask; the bits are those of the log's critical warning byte.
    pub const SMART_MASK: u32 = 0xff;
    /// Namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Telemetry log notices.
    pub const TELEMETRY: u32 = 1 << 10;
    /// Asymmetric namespace access change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Discovery log page change notices.
    pub const DISCOVERY_LOG: u32 = 1 << 31;
}

/// Volatile Write Cache (FID 06h), dword 11 and dword 0, b0: the cache is enabled (WCE). Base 2.0 §5.27.1.4.
pub const WRITE_CACHE_ENABLED: u32 = 1 << 0;

/// Host Identifier (FID 81h), dword 11 b0: the identifier has 16 bytes rather than 8 (EXHID). Mandatory over fabrics.
/// Base 2.0 §5.27.1.25.
pub const HOST_IDENTIFIER_EXTENDED: u32 = 1 << 0;

open_enum! {
    /// Namespace Write Protection (FID 84h), dword 11 and dword 0, b2:0. Base 2.0 §5.27.1.28.
    pub struct WriteProtection(u8) {
        /// Not protected.
        NONE = 0x00;
        /// Protected.
        PROTECTED = 0x01;
        /// Protected until the next power cycle.
        UNTIL_POWER_CYCLE = 0x02;
        /// Protected for good.
        PERMANENT = 0x03;
    }
}

/// Host Behavior Support (FID 16h): 512 bytes. Base 2.0 §5.27.1.18.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HostBehavior {
    /// 1 where the host handles Command Interrupted and retry delays (ACRE).
    pub acre: u8,
    /// 1 where the host takes extended telemetry data area 4 (ETDAS).
    pub etdas: u8,
    /// 1 where the host handles extended LBA formats (LBAFEE).
    pub lbafee: u8,
    /// Reserved.
    pub reserved3: [u8; 509],
}
const _: () = assert!(size_of::<HostBehavior>() == 512);

impl Default for HostBehavior {
    /// Zeroes.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for HostBehavior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBehavior")
            .field("acre", &self.acre)
            .field("etdas", &self.etdas)
            .field("lbafee", &self.lbafee)
            .finish_non_exhaustive()
    }
}
