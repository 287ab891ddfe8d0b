//! The Identify Controller structure (CNS 01h). Base 2.0 §5.17.2.1.

use crate::controller::Version;
use crate::macros::open_enum;
use crate::nqn::{Nqn, NqnError};
use crate::text::{self, TextError};
use core::fmt;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Controller type (CNTRLTYPE), byte 111.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct ControllerType(u8) {
        /// Not reported: controllers before 1.4.
        NOT_REPORTED = 0x00;
        /// I/O controller.
        IO = 0x01;
        /// Discovery controller.
        DISCOVERY = 0x02;
        /// Administrative controller.
        ADMINISTRATIVE = 0x03;
    }
}
const _: () = assert!(size_of::<ControllerType>() == 1);

/// Controller multi-path and sharing capabilities (CMIC), byte 76.
pub mod cmic {
    /// The subsystem may have more than one port.
    pub const MULTI_PORT: u8 = 1 << 0;
    /// The subsystem may have more than one controller.
    pub const MULTI_CONTROLLER: u8 = 1 << 1;
    /// The controller is an SR-IOV virtual function.
    pub const VIRTUAL_FUNCTION: u8 = 1 << 2;
    /// The controller reports asymmetric namespace access.
    pub const ANA: u8 = 1 << 3;
}

/// Optional asynchronous events supported (OAES), bytes 92 to 95; the same bits enable them in feature 0Bh.
pub mod oaes {
    /// Namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Asymmetric namespace access change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Predictable latency event aggregate log change notices.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 12;
    /// LBA status information notices.
    pub const LBA_STATUS: u32 = 1 << 13;
    /// Endurance group event aggregate log change notices.
    pub const ENDURANCE_GROUP: u32 = 1 << 14;
    /// Normal NVM subsystem shutdown event.
    pub const NORMAL_SHUTDOWN: u32 = 1 << 15;
    /// Zone descriptor changed notices.
    pub const ZONE_DESCRIPTOR: u32 = 1 << 27;
    /// Discovery log page change notices.
    pub const DISCOVERY_LOG: u32 = 1 << 31;
}

/// Controller attributes (CTRATT), bytes 96 to 99.
pub mod ctratt {
    /// 128-bit host identifiers.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Non-operational power state permissive mode.
    pub const NON_OPERATIONAL_POWER: u32 = 1 << 1;
    /// NVM sets.
    pub const NVM_SETS: u32 = 1 << 2;
    /// Read recovery levels.
    pub const READ_RECOVERY_LEVELS: u32 = 1 << 3;
    /// Endurance groups.
    pub const ENDURANCE_GROUPS: u32 = 1 << 4;
    /// Predictable latency mode.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 5;
    /// Traffic based keep alive: any command restarts the timer.
    pub const TRAFFIC_BASED_KEEP_ALIVE: u32 = 1 << 6;
    /// Namespace granularity.
    pub const NAMESPACE_GRANULARITY: u32 = 1 << 7;
    /// Submission queue associations.
    pub const SQ_ASSOCIATIONS: u32 = 1 << 8;
    /// UUID list.
    pub const UUID_LIST: u32 = 1 << 9;
    /// Multi-domain subsystem.
    pub const MULTI_DOMAIN: u32 = 1 << 10;
    /// Fixed capacity management.
    pub const FIXED_CAPACITY: u32 = 1 << 11;
    /// Variable capacity management.
    pub const VARIABLE_CAPACITY: u32 = 1 << 12;
    /// Delete endurance group.
    pub const DELETE_ENDURANCE_GROUP: u32 = 1 << 13;
    /// Delete NVM set.
    pub const DELETE_NVM_SET: u32 = 1 << 14;
    /// Extended LBA formats.
    pub const EXTENDED_LBA_FORMATS: u32 = 1 << 15;
    /// MDTS and size limits exclude metadata (2.1).
    pub const MDTS_EXCLUDES_METADATA: u32 = 1 << 16;
    /// Flexible data placement (2.1).
    pub const FLEXIBLE_DATA_PLACEMENT: u32 = 1 << 19;
}

/// Optional admin command support (OACS), bytes 256 and 257.
pub mod oacs {
    /// Security Send and Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware commit and download.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace management and attachment.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// Device self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// Directives.
    pub const DIRECTIVES: u16 = 1 << 5;
    /// NVMe-MI Send and Receive.
    pub const MANAGEMENT_INTERFACE: u16 = 1 << 6;
    /// Virtualization management.
    pub const VIRTUALIZATION: u16 = 1 << 7;
    /// Doorbell buffer config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
    /// Get LBA status.
    pub const LBA_STATUS: u16 = 1 << 9;
    /// Command and feature lockdown.
    pub const LOCKDOWN: u16 = 1 << 10;
}

/// Log page attributes (LPA), byte 261.
pub mod lpa {
    /// SMART per namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// Commands supported and effects log.
    pub const COMMAND_EFFECTS: u8 = 1 << 1;
    /// Extended data in Get Log Page: 32-bit dword counts and offsets.
    pub const EXTENDED_DATA: u8 = 1 << 2;
    /// Telemetry logs.
    pub const TELEMETRY: u8 = 1 << 3;
    /// Persistent event log.
    pub const PERSISTENT_EVENTS: u8 = 1 << 4;
    /// Supported log pages log, effects logs and others of 2.0.
    pub const MISCELLANEOUS: u8 = 1 << 5;
    /// Telemetry data area 4.
    pub const DATA_AREA_4: u8 = 1 << 6;
}

/// Asymmetric namespace access capabilities (ANACAP), byte 343.
pub mod anacap {
    /// Reports the optimized state.
    pub const OPTIMIZED: u8 = 1 << 0;
    /// Reports the non-optimized state.
    pub const NON_OPTIMIZED: u8 = 1 << 1;
    /// Reports the inaccessible state.
    pub const INACCESSIBLE: u8 = 1 << 2;
    /// Reports the persistent loss state.
    pub const PERSISTENT_LOSS: u8 = 1 << 3;
    /// Reports the change state.
    pub const CHANGE: u8 = 1 << 4;
    /// A namespace's group does not change while it is attached.
    pub const GROUP_FIXED: u8 = 1 << 6;
    /// Namespace management takes a non-zero group.
    pub const GROUP_NON_ZERO: u8 = 1 << 7;
}

/// Optional NVM command support (ONCS), bytes 520 and 521.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save and Select fields in Set and Get Features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp feature.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

/// Volatile write cache (VWC), byte 525.
pub mod vwc {
    /// A volatile write cache is present.
    pub const PRESENT: u8 = 1 << 0;
    /// b2:1 = 10b: Flush to all namespaces is not supported.
    pub const FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
    /// b2:1 = 11b: Flush to all namespaces is supported.
    pub const FLUSH_ALL_SUPPORTED: u8 = 0b11 << 1;
}

/// SGL support (SGLS), bytes 536 to 539.
pub mod sgls {
    /// b1:0: mask of the support level.
    pub const SUPPORT_MASK: u32 = 0b11;
    /// b1:0 = 01b: supported, any alignment.
    pub const SUPPORTED: u32 = 0b01;
    /// b1:0 = 10b: supported, dword alignment and granularity.
    pub const SUPPORTED_DWORD: u32 = 0b10;
    /// Keyed data block descriptors.
    pub const KEYED: u32 = 1 << 2;
    /// Bit bucket descriptors.
    pub const BIT_BUCKET: u32 = 1 << 16;
    /// Byte-aligned contiguous metadata buffers.
    pub const METADATA_BYTE_ALIGNED: u32 = 1 << 17;
    /// SGLs longer than the data are allowed.
    pub const OVERSIZED: u32 = 1 << 18;
    /// The metadata pointer may address an SGL segment.
    pub const METADATA_SEGMENT: u32 = 1 << 19;
    /// Descriptors may give an offset (in-capsule data).
    pub const OFFSET_ADDRESS: u32 = 1 << 20;
    /// Transport data block descriptors.
    pub const TRANSPORT: u32 = 1 << 21;
}

/// A power state descriptor: 32 bytes. Base 2.0 §5.17.2.1, figure "Power State Descriptor Data Structure".
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PowerState {
    /// Maximum power (MP), in units that `flags` bit 0 selects: 10 mW, or 0.1 mW when set.
    pub max_power: U16,
    /// Reserved.
    pub reserved2: u8,
    /// b0 maximum power scale, b1 non-operational state.
    pub flags: u8,
    /// Entry latency in microseconds.
    pub entry_latency: U32,
    /// Exit latency in microseconds.
    pub exit_latency: U32,
    /// Relative read throughput, 5 bits.
    pub read_throughput: u8,
    /// Relative read latency, 5 bits.
    pub read_latency: u8,
    /// Relative write throughput, 5 bits.
    pub write_throughput: u8,
    /// Relative write latency, 5 bits.
    pub write_latency: u8,
    /// Idle power.
    pub idle_power: U16,
    /// Idle power scale, b7:6.
    pub idle_scale: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Active power.
    pub active_power: U16,
    /// Active power workload (b2:0) and scale (b7:6).
    pub active_work_scale: u8,
    /// Reserved.
    pub reserved23: [u8; 9],
}
const _: () = assert!(size_of::<PowerState>() == 32);

/// Identify Controller: 4096 bytes. Base 2.0 §5.17.2.1. Fields added later stay in the reserved ranges.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor.
    pub vid: U16,
    /// PCI subsystem vendor.
    pub ssvid: U16,
    /// Serial number, space-padded ASCII.
    pub sn: [u8; 20],
    /// Model number, space-padded ASCII.
    pub mn: [u8; 40],
    /// Firmware revision, space-padded ASCII.
    pub fr: [u8; 8],
    /// Recommended arbitration burst, as a power of two.
    pub rab: u8,
    /// IEEE OUI, least significant byte first.
    pub ieee: [u8; 3],
    /// Sharing capabilities: [`cmic`].
    pub cmic: u8,
    /// Largest transfer (MDTS): 2^this units of the smallest memory page, or 0 for no limit.
    pub mdts: u8,
    /// Controller identifier.
    pub cntlid: U16,
    /// Version: see [`IdentifyController::version`].
    pub ver: U32,
    /// Resume latency from runtime D3, in microseconds.
    pub rtd3r: U32,
    /// Entry latency to runtime D3, in microseconds.
    pub rtd3e: U32,
    /// Optional asynchronous events: [`oaes`].
    pub oaes: U32,
    /// Controller attributes: [`ctratt`].
    pub ctratt: U32,
    /// Read recovery levels supported.
    pub rrls: U16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller type.
    pub cntrltype: ControllerType,
    /// FRU globally unique identifier.
    pub fguid: [u8; 16],
    /// Command retry delay 1, in units of 100 ms.
    pub crdt1: U16,
    /// Command retry delay 2, in units of 100 ms.
    pub crdt2: U16,
    /// Command retry delay 3, in units of 100 ms.
    pub crdt3: U16,
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM subsystem report (NVMe-MI).
    pub nvmsr: u8,
    /// VPD write cycle information (NVMe-MI).
    pub vwci: u8,
    /// Management endpoint capabilities (NVMe-MI).
    pub mec: u8,
    /// Optional admin commands: [`oacs`].
    pub oacs: U16,
    /// Abort command limit, zero-based.
    pub acl_z: u8,
    /// Asynchronous event request limit, zero-based.
    pub aerl_z: u8,
    /// Firmware updates: b0 slot 1 is read-only, b3:1 number of slots, b4 activation without reset.
    pub frmw: u8,
    /// Log page attributes: [`lpa`].
    pub lpa: u8,
    /// Error log entries, zero-based.
    pub elpe_z: u8,
    /// Power states, zero-based.
    pub npss_z: u8,
    /// Admin vendor specific command configuration.
    pub avscc: u8,
    /// Autonomous power state transition attributes.
    pub apsta: u8,
    /// Warning composite temperature threshold, in kelvin.
    pub wctemp: U16,
    /// Critical composite temperature threshold, in kelvin.
    pub cctemp: U16,
    /// Longest firmware activation, in units of 100 ms.
    pub mtfa: U16,
    /// Host memory buffer preferred size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host memory buffer minimum size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total capacity of the subsystem, in bytes.
    pub tnvmcap: U128,
    /// Unallocated capacity, in bytes.
    pub unvmcap: U128,
    /// Replay protected memory block support.
    pub rpmbs: U32,
    /// Extended self-test time, in minutes.
    pub edstt: U16,
    /// Device self-test options.
    pub dsto: u8,
    /// Firmware update granularity, in units of 4 KiB.
    pub fwug: u8,
    /// Granularity of the keep alive timer, in units of 100 ms; 0 where keep alive is not supported.
    pub kas: U16,
    /// Host controlled thermal management attributes.
    pub hctma: U16,
    /// Minimum thermal management temperature, in kelvin.
    pub mntmt: U16,
    /// Maximum thermal management temperature, in kelvin.
    pub mxtmt: U16,
    /// Sanitize capabilities.
    pub sanicap: U32,
    /// Host memory buffer minimum descriptor entry size, in units of 4 KiB.
    pub hmminds: U32,
    /// Host memory maximum descriptor entries.
    pub hmmaxd: U16,
    /// Largest NVM set identifier.
    pub nsetidmax: U16,
    /// Largest endurance group identifier.
    pub endgidmax: U16,
    /// Longest ANA transition, in seconds.
    pub anatt: u8,
    /// ANA capabilities: [`anacap`].
    pub anacap: u8,
    /// Largest ANA group identifier.
    pub anagrpmax: U32,
    /// Number of ANA groups.
    pub nanagrpid: U32,
    /// Persistent event log size, in units of 64 KiB.
    pub pels: U32,
    /// Domain that holds this controller.
    pub domainid: U16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Largest endurance group capacity, in bytes.
    pub megcap: U128,
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission queue entry sizes as powers of two: b3:0 required, b7:4 largest.
    pub sqes: u8,
    /// Completion queue entry sizes as powers of two: b3:0 required, b7:4 largest.
    pub cqes: u8,
    /// Most commands that the controller processes at once on a queue; mandatory over fabrics.
    pub maxcmd: U16,
    /// Number of namespaces: the largest identifier.
    pub nn: U32,
    /// Optional NVM commands: [`oncs`].
    pub oncs: U16,
    /// Fused operations: b0 compare and write.
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache: [`vwc`].
    pub vwc: u8,
    /// Atomic write unit normal, zero-based logical blocks.
    pub awun_z: U16,
    /// Atomic write unit power fail, zero-based logical blocks.
    pub awupf_z: U16,
    /// I/O vendor specific command configuration.
    pub icsvscc: u8,
    /// Namespace write protection capabilities.
    pub nwpc: u8,
    /// Atomic compare and write unit, zero-based logical blocks.
    pub acwu_z: U16,
    /// Copy descriptor formats supported, one bit each.
    pub ocfs: U16,
    /// SGL support: [`sgls`].
    pub sgls: U32,
    /// Most namespaces that may exist, or 0 to go by NN.
    pub mnan: U32,
    /// Most namespace attachments in the domain.
    pub maxdna: U128,
    /// Most namespace attachments of an I/O controller.
    pub maxcna: U32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NQN of the subsystem, NUL-padded.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// I/O command capsule size (IOCCSZ), in units of 16 bytes, entry included. Fabrics.
    pub ioccsz: U32,
    /// I/O response capsule size (IORCSZ), in units of 16 bytes. Fabrics.
    pub iorcsz: U32,
    /// Where in-capsule data begins after the entry (ICDOFF), in units of 16 bytes. Fabrics.
    pub icdoff: U16,
    /// Fabrics controller attributes (FCATT): b0 set for the static controller model.
    pub fcatt: u8,
    /// Most SGL data block descriptors in a capsule (MSDBD), or 0 for no limit. Fabrics.
    pub msdbd: u8,
    /// Optional fabrics commands (OFCS): b0 Disconnect and individual I/O queue deletion.
    pub ofcs: U16,
    /// Discovery controller type: 0 not reported, 1 direct, 2 central.
    pub dctype: u8,
    /// Reserved.
    pub reserved1807: [u8; 241],
    /// Power state descriptors, of which `npss_z` + 1 are valid.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}
const _: () = assert!(size_of::<IdentifyController>() == 4096);
const _: () = {
    assert!(offset_of!(IdentifyController, cmic) == 76);
    assert!(offset_of!(IdentifyController, cntlid) == 78);
    assert!(offset_of!(IdentifyController, oaes) == 92);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, crdt1) == 128);
    assert!(offset_of!(IdentifyController, nvmsr) == 253);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, lpa) == 261);
    assert!(offset_of!(IdentifyController, tnvmcap) == 280);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, sanicap) == 328);
    assert!(offset_of!(IdentifyController, anatt) == 342);
    assert!(offset_of!(IdentifyController, pels) == 352);
    assert!(offset_of!(IdentifyController, megcap) == 368);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, maxcmd) == 514);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, maxcna) == 560);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, icdoff) == 1800);
    assert!(offset_of!(IdentifyController, msdbd) == 1803);
    assert!(offset_of!(IdentifyController, dctype) == 1806);
    assert!(offset_of!(IdentifyController, psd) == 2048);
    assert!(offset_of!(IdentifyController, vs) == 3072);
};

impl Default for IdentifyController {
    /// Zeroes, with spaces in the ASCII fields.
    fn default() -> Self {
        let mut page = Self::new_zeroed();
        page.sn = [b' '; 20];
        page.mn = [b' '; 40];
        page.fr = [b' '; 8];
        page
    }
}

impl IdentifyController {
    /// The version as a value.
    pub fn version(&self) -> Version {
        Version(self.ver.get())
    }

    /// Serial number without padding, or `None` when it is not printable ASCII.
    pub fn serial(&self) -> Option<&str> {
        text::ascii(&self.sn)
    }

    /// Model number without padding, or `None` when it is not printable ASCII.
    pub fn model(&self) -> Option<&str> {
        text::ascii(&self.mn)
    }

    /// Firmware revision without padding, or `None` when it is not printable ASCII.
    pub fn firmware(&self) -> Option<&str> {
        text::ascii(&self.fr)
    }

    /// Sets the serial number, at most 20 characters.
    ///
    /// # Errors
    /// Text that is too long or not printable ASCII.
    pub fn set_serial(&mut self, serial: &str) -> Result<(), TextError> {
        text::set_ascii(&mut self.sn, serial)
    }

    /// Sets the model number, at most 40 characters.
    ///
    /// # Errors
    /// Text that is too long or not printable ASCII.
    pub fn set_model(&mut self, model: &str) -> Result<(), TextError> {
        text::set_ascii(&mut self.mn, model)
    }

    /// Sets the firmware revision, at most 8 characters.
    ///
    /// # Errors
    /// Text that is too long or not printable ASCII.
    pub fn set_firmware(&mut self, firmware: &str) -> Result<(), TextError> {
        text::set_ascii(&mut self.fr, firmware)
    }

    /// The subsystem's name, of any form: drives from before NVMe 1.2.1 have none.
    ///
    /// # Errors
    /// A field that holds no usable name.
    pub fn subsystem_nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field_lenient(&self.subnqn)
    }

    /// Largest transfer in bytes for a controller with this CAP.MPSMIN, or `None` for no limit that 64 bits
    /// can say.
    pub fn max_transfer(&self, mpsmin: u8) -> Option<u64> {
        if self.mdts == 0 {
            return None;
        }
        let shift = 12_u32 + u32::from(mpsmin) + u32::from(self.mdts);
        (shift < 64).then(|| 1 << shift)
    }

    /// In-capsule data that an I/O queue accepts, in bytes: what IOCCSZ leaves beside the entry and ICDOFF.
    /// `None` when IOCCSZ is below its minimum of 4 or ICDOFF points beyond the capsule. The admin queue is
    /// governed by the transport.
    pub fn in_capsule_data(&self) -> Option<u64> {
        let units = u64::from(self.ioccsz.get())
            .checked_sub(4)?
            .checked_sub(u64::from(self.icdoff.get()))?;
        Some(units * 16)
    }
}

impl fmt::Debug for IdentifyController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentifyController")
            .field("serial", &self.serial())
            .field("model", &self.model())
            .field("firmware", &self.firmware())
            .field("subnqn", &self.subsystem_nqn())
            .field("cntlid", &self.cntlid.get())
            .field("version", &self.version())
            .field("cntrltype", &self.cntrltype)
            .field("mdts", &self.mdts)
            .field("nn", &self.nn.get())
            .field("ioccsz", &self.ioccsz.get())
            .field("sgls", &format_args!("{:#x}", self.sgls.get()))
            .finish_non_exhaustive()
    }
}
