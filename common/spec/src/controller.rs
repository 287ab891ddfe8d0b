//! Controller properties (registers, on PCIe) as values with named fields. Base 2.0 §3.1.3.
//!
//! Each type wraps the raw value: every bit survives, accessors read the named ones, `with_*` set them.

use core::fmt;

/// Controller Capabilities (CAP, offset 00h, 8 bytes). Base 2.0 §3.1.3.1.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Cap(pub u64);

impl Cap {
    /// Replaces `width` bits at `shift`; bits of `value` beyond `width` are dropped.
    const fn with(self, shift: u32, width: u32, value: u64) -> Self {
        let mask = ((1 << width) - 1) << shift;
        Self((self.0 & !mask) | ((value << shift) & mask))
    }

    /// Maximum queue entries supported, zero-based (MQES).
    pub const fn mqes_z(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The largest queue, in entries: 2 to 65536 on a conforming controller.
    pub const fn max_queue_entries(self) -> u32 {
        self.mqes_z() as u32 + 1
    }

    /// Contiguous queues required (CQR).
    pub const fn contiguous_queues(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    /// Arbitration mechanisms beyond round robin (AMS): b0 weighted round robin, b1 vendor.
    pub const fn arbitration(self) -> u8 {
        ((self.0 >> 17) & 0x3) as u8
    }

    /// Longest time to become ready (TO), in units of 500 ms.
    pub const fn timeout_500ms(self) -> u8 {
        ((self.0 >> 24) & 0xff) as u8
    }

    /// Longest time to become ready, in milliseconds.
    pub const fn timeout_ms(self) -> u32 {
        self.timeout_500ms() as u32 * 500
    }

    /// Distance between doorbells, in bytes: 4 << DSTRD.
    pub const fn doorbell_stride(self) -> u32 {
        4 << ((self.0 >> 32) & 0xf)
    }

    /// NVM subsystem reset supported (NSSRS).
    pub const fn subsystem_reset(self) -> bool {
        self.0 & (1 << 36) != 0
    }

    /// Command sets supported (CSS): b0 NVM, b6 one or more by the I/O Command Set vector, b7 none (admin only).
    pub const fn command_sets(self) -> u8 {
        ((self.0 >> 37) & 0xff) as u8
    }

    /// Boot partitions supported (BPS).
    pub const fn boot_partitions(self) -> bool {
        self.0 & (1 << 45) != 0
    }

    /// Controller power scope (CPS): 0 not reported, 1 controller, 2 domain, 3 subsystem.
    pub const fn power_scope(self) -> u8 {
        ((self.0 >> 46) & 0x3) as u8
    }

    /// Smallest memory page (MPSMIN): the page has 2^(12 + this) bytes.
    pub const fn mpsmin(self) -> u8 {
        ((self.0 >> 48) & 0xf) as u8
    }

    /// Largest memory page (MPSMAX): the page has 2^(12 + this) bytes.
    pub const fn mpsmax(self) -> u8 {
        ((self.0 >> 52) & 0xf) as u8
    }

    /// Persistent memory region supported (PMRS).
    pub const fn pmr(self) -> bool {
        self.0 & (1 << 56) != 0
    }

    /// Controller memory buffer supported (CMBS).
    pub const fn cmb(self) -> bool {
        self.0 & (1 << 57) != 0
    }

    /// NVM subsystem shutdown supported (NSSS).
    pub const fn subsystem_shutdown(self) -> bool {
        self.0 & (1 << 58) != 0
    }

    /// Controller ready with media supported (CRMS bit 0).
    pub const fn ready_with_media(self) -> bool {
        self.0 & (1 << 59) != 0
    }

    /// Controller ready independent of media supported (CRMS bit 1).
    pub const fn ready_independent_of_media(self) -> bool {
        self.0 & (1 << 60) != 0
    }

    /// With this MQES, zero-based.
    #[must_use]
    pub const fn with_mqes_z(self, entries_z: u16) -> Self {
        self.with(0, 16, entries_z as u64)
    }

    /// With or without CQR.
    #[must_use]
    pub const fn with_contiguous_queues(self, on: bool) -> Self {
        self.with(16, 1, on as u64)
    }

    /// With this ready timeout, in units of 500 ms.
    #[must_use]
    pub const fn with_timeout_500ms(self, units: u8) -> Self {
        self.with(24, 8, units as u64)
    }

    /// With this DSTRD, 0 to 15.
    #[must_use]
    pub const fn with_dstrd(self, dstrd: u8) -> Self {
        self.with(32, 4, dstrd as u64)
    }

    /// With or without NSSRS.
    #[must_use]
    pub const fn with_subsystem_reset(self, on: bool) -> Self {
        self.with(36, 1, on as u64)
    }

    /// With these command sets.
    #[must_use]
    pub const fn with_command_sets(self, css: u8) -> Self {
        self.with(37, 8, css as u64)
    }

    /// With these page size limits, 0 to 15 each.
    #[must_use]
    pub const fn with_page_sizes(self, mpsmin: u8, mpsmax: u8) -> Self {
        self.with(48, 4, mpsmin as u64).with(52, 4, mpsmax as u64)
    }

    /// With or without CMBS.
    #[must_use]
    pub const fn with_cmb(self, on: bool) -> Self {
        self.with(57, 1, on as u64)
    }

    /// With or without readiness that includes media (CRMS bit 0).
    #[must_use]
    pub const fn with_ready_with_media(self, on: bool) -> Self {
        self.with(59, 1, on as u64)
    }
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cap")
            .field("raw", &format_args!("{:#018x}", self.0))
            .field("max_queue_entries", &self.max_queue_entries())
            .field("timeout_ms", &self.timeout_ms())
            .field("command_sets", &format_args!("{:#04x}", self.command_sets()))
            .field("mpsmin", &self.mpsmin())
            .field("mpsmax", &self.mpsmax())
            .finish()
    }
}

/// Version (VS, offset 08h, 4 bytes; also bytes 80 to 83 of identify controller). Base 2.0 §3.1.3.2.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default)]
pub struct Version(pub u32);

impl Version {
    /// NVMe 1.0.
    pub const V1_0: Self = Self::new(1, 0, 0);
    /// NVMe 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// NVMe 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// NVMe base 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// NVMe base 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// Major, minor, tertiary.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self(((major as u32) << 16) | ((minor as u32) << 8) | tertiary as u32)
    }

    /// Major version (MJR).
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Minor version (MNR).
    pub const fn minor(self) -> u8 {
        ((self.0 >> 8) & 0xff) as u8
    }

    /// Tertiary version (TER).
    pub const fn tertiary(self) -> u8 {
        (self.0 & 0xff) as u8
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())?;
        if self.tertiary() != 0 {
            write!(f, ".{}", self.tertiary())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

/// Shutdown notification (CC.SHN). Base 2.0 §3.1.3.5.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum ShutdownNotification {
    /// 00b: none.
    None,
    /// 01b: normal shutdown.
    Normal,
    /// 10b: abrupt shutdown.
    Abrupt,
    /// 11b.
    Reserved,
}

/// Controller Configuration (CC, offset 14h, 4 bytes). Base 2.0 §3.1.3.5.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Cc(pub u32);

impl Cc {
    /// CSS value: the NVM command set.
    pub const CSS_NVM: u8 = 0b000;
    /// CSS value: all supported I/O command sets.
    pub const CSS_ALL: u8 = 0b110;
    /// CSS value: the admin command set only.
    pub const CSS_ADMIN_ONLY: u8 = 0b111;

    const fn with(self, shift: u32, width: u32, value: u32) -> Self {
        let mask = ((1 << width) - 1) << shift;
        Self((self.0 & !mask) | ((value << shift) & mask))
    }

    /// Enable (EN).
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// I/O command set selected (CSS), 3 bits.
    pub const fn css(self) -> u8 {
        ((self.0 >> 4) & 0x7) as u8
    }

    /// Memory page size (MPS): the page has 2^(12 + this) bytes.
    pub const fn mps(self) -> u8 {
        ((self.0 >> 7) & 0xf) as u8
    }

    /// Arbitration mechanism selected (AMS), 3 bits.
    pub const fn ams(self) -> u8 {
        ((self.0 >> 11) & 0x7) as u8
    }

    /// Shutdown notification (SHN).
    pub const fn shutdown(self) -> ShutdownNotification {
        match (self.0 >> 14) & 0x3 {
            0 => ShutdownNotification::None,
            1 => ShutdownNotification::Normal,
            2 => ShutdownNotification::Abrupt,
            _ => ShutdownNotification::Reserved,
        }
    }

    /// I/O submission queue entry size as a power of two (IOSQES): 6 for 64 bytes.
    pub const fn iosqes(self) -> u8 {
        ((self.0 >> 16) & 0xf) as u8
    }

    /// I/O completion queue entry size as a power of two (IOCQES): 4 for 16 bytes.
    pub const fn iocqes(self) -> u8 {
        ((self.0 >> 20) & 0xf) as u8
    }

    /// Controller ready independent of media enable (CRIME).
    pub const fn ready_independent_of_media(self) -> bool {
        self.0 & (1 << 24) != 0
    }

    /// With or without EN.
    #[must_use]
    pub const fn with_enabled(self, on: bool) -> Self {
        self.with(0, 1, on as u32)
    }

    /// With this CSS, 3 bits.
    #[must_use]
    pub const fn with_css(self, css: u8) -> Self {
        self.with(4, 3, css as u32)
    }

    /// With this MPS, 4 bits.
    #[must_use]
    pub const fn with_mps(self, mps: u8) -> Self {
        self.with(7, 4, mps as u32)
    }

    /// With this shutdown notification.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: ShutdownNotification) -> Self {
        let value = match shutdown {
            ShutdownNotification::None => 0,
            ShutdownNotification::Normal => 1,
            ShutdownNotification::Abrupt => 2,
            ShutdownNotification::Reserved => 3,
        };
        self.with(14, 2, value)
    }

    /// With the entry sizes that every queue of this project uses: 64 and 16 bytes.
    #[must_use]
    pub const fn with_standard_entry_sizes(self) -> Self {
        self.with(16, 4, 6).with(20, 4, 4)
    }
}

impl fmt::Debug for Cc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cc")
            .field("raw", &format_args!("{:#010x}", self.0))
            .field("enabled", &self.enabled())
            .field("css", &self.css())
            .field("mps", &self.mps())
            .field("shutdown", &self.shutdown())
            .field("iosqes", &self.iosqes())
            .field("iocqes", &self.iocqes())
            .finish()
    }
}

/// Shutdown status (CSTS.SHST). Base 2.0 §3.1.3.6.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum ShutdownStatus {
    /// 00b: normal operation.
    Normal,
    /// 01b: shutting down.
    Occurring,
    /// 10b: shut down.
    Complete,
    /// 11b.
    Reserved,
}

/// Controller Status (CSTS, offset 1Ch, 4 bytes). Base 2.0 §3.1.3.6.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Csts(pub u32);

impl Csts {
    const fn with(self, shift: u32, width: u32, value: u32) -> Self {
        let mask = ((1 << width) - 1) << shift;
        Self((self.0 & !mask) | ((value << shift) & mask))
    }

    /// Ready (RDY).
    pub const fn ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// Controller fatal status (CFS).
    pub const fn fatal(self) -> bool {
        self.0 & (1 << 1) != 0
    }

    /// Shutdown status (SHST).
    pub const fn shutdown(self) -> ShutdownStatus {
        match (self.0 >> 2) & 0x3 {
            0 => ShutdownStatus::Normal,
            1 => ShutdownStatus::Occurring,
            2 => ShutdownStatus::Complete,
            _ => ShutdownStatus::Reserved,
        }
    }

    /// NVM subsystem reset occurred (NSSRO).
    pub const fn subsystem_reset_occurred(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Processing paused (PP).
    pub const fn processing_paused(self) -> bool {
        self.0 & (1 << 5) != 0
    }

    /// Shutdown type (ST): set for an NVM subsystem shutdown, clear for a controller shutdown.
    pub const fn subsystem_shutdown(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    /// With or without RDY.
    #[must_use]
    pub const fn with_ready(self, on: bool) -> Self {
        self.with(0, 1, on as u32)
    }

    /// With or without CFS.
    #[must_use]
    pub const fn with_fatal(self, on: bool) -> Self {
        self.with(1, 1, on as u32)
    }

    /// With this shutdown status.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: ShutdownStatus) -> Self {
        let value = match shutdown {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
            ShutdownStatus::Reserved => 3,
        };
        self.with(2, 2, value)
    }
}

impl fmt::Debug for Csts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csts")
            .field("raw", &format_args!("{:#010x}", self.0))
            .field("ready", &self.ready())
            .field("fatal", &self.fatal())
            .field("shutdown", &self.shutdown())
            .finish()
    }
}
