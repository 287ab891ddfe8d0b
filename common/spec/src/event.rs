//! Asynchronous events: what dword 0 of an Asynchronous Event Request's completion says. Base 2.0 §5.2.

use crate::log::LogId;
use crate::macros::open_enum;

open_enum! {
    /// Event type, 3 bits. Base 2.0 §5.2.1.
    pub struct EventType(u8) {
        /// Error status.
        ERROR = 0x00;
        /// SMART / health status.
        SMART = 0x01;
        /// Notice.
        NOTICE = 0x02;
        /// Immediate (2.1).
        IMMEDIATE = 0x03;
        /// I/O command set specific.
        IO_COMMAND_SET = 0x06;
        /// Vendor specific.
        VENDOR = 0x07;
    }
}

/// An asynchronous event. Base 2.0 §5.2.1.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct AsyncEvent {
    /// Type.
    pub event_type: EventType,
    /// Information, whose meaning the type gives.
    pub info: u8,
    /// Log page to read; reading it re-arms the event.
    pub log: LogId,
}

impl AsyncEvent {
    /// Error status: an invalid doorbell was written.
    pub const INVALID_DOORBELL: Self = Self::new(EventType::ERROR, 0x00, LogId::ERROR);
    /// Error status: an invalid value was written to a doorbell.
    pub const INVALID_DOORBELL_VALUE: Self = Self::new(EventType::ERROR, 0x01, LogId::ERROR);
    /// Error status: diagnostics failed.
    pub const DIAGNOSTIC_FAILURE: Self = Self::new(EventType::ERROR, 0x02, LogId::ERROR);
    /// Error status: a persistent internal error.
    pub const PERSISTENT_INTERNAL_ERROR: Self = Self::new(EventType::ERROR, 0x03, LogId::ERROR);
    /// Error status: a transient internal error.
    pub const TRANSIENT_INTERNAL_ERROR: Self = Self::new(EventType::ERROR, 0x04, LogId::ERROR);
    /// SMART: reliability is degraded.
    pub const RELIABILITY: Self = Self::new(EventType::SMART, 0x00, LogId::SMART);
    /// SMART: a temperature threshold was crossed.
    pub const TEMPERATURE: Self = Self::new(EventType::SMART, 0x01, LogId::SMART);
    /// SMART: spare capacity is below its threshold.
    pub const SPARE: Self = Self::new(EventType::SMART, 0x02, LogId::SMART);
    /// Notice: a namespace appeared, went or changed.
    pub const NAMESPACE_ATTRIBUTE: Self = Self::new(EventType::NOTICE, 0x00, LogId::CHANGED_NAMESPACES);
    /// Notice: firmware activation starts.
    pub const FIRMWARE_ACTIVATION: Self = Self::new(EventType::NOTICE, 0x01, LogId::FIRMWARE_SLOT);
    /// Notice: the telemetry log changed.
    pub const TELEMETRY: Self = Self::new(EventType::NOTICE, 0x02, LogId::TELEMETRY_CONTROLLER);
    /// Notice: the state of an ANA group changed.
    pub const ANA_CHANGE: Self = Self::new(EventType::NOTICE, 0x03, LogId::ANA);
    /// Notice: the discovery log changed.
    pub const DISCOVERY_LOG: Self = Self::new(EventType::NOTICE, 0xf0, LogId::DISCOVERY);
    /// I/O command set: the reservation log has an entry.
    pub const RESERVATION: Self = Self::new(EventType::IO_COMMAND_SET, 0x00, LogId::RESERVATION);
    /// I/O command set: a sanitize operation completed.
    pub const SANITIZE: Self = Self::new(EventType::IO_COMMAND_SET, 0x01, LogId::SANITIZE);

    /// An event of this type, information and log page.
    pub const fn new(event_type: EventType, info: u8, log: LogId) -> Self {
        Self {
            event_type,
            info,
            log,
        }
    }

    /// The event that dword 0 states.
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            event_type: EventType((dword & 0x7) as u8),
            info: ((dword >> 8) & 0xff) as u8,
            log: LogId(((dword >> 16) & 0xff) as u8),
        }
    }

    /// Dword 0.
    pub const fn to_dword(self) -> u32 {
        (self.event_type.0 as u32 & 0x7) | ((self.info as u32) << 8) | ((self.log.0 as u32) << 16)
    }
}
