//! The Status field of a completion: what happened, and whether trying again can help.
//!
//! Base 2.0 §3.3.3.2.1. Values are kept as the 15 bits above the phase tag, so that any combination a peer
//! sends survives a round trip. Constants carry no modifier (Do Not Retry, More, Command Retry Delay); compare
//! with [`Status::is`], which ignores them.

use core::fmt;

/// Status code types: Base 2.0 figure "Status Code – Status Code Type Values".
pub mod sct {
    /// Generic command status: applies across command sets.
    pub const GENERIC: u8 = 0x0;
    /// Command specific status: the meaning depends on the opcode.
    pub const COMMAND_SPECIFIC: u8 = 0x1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 0x2;
    /// Path related status: another path may succeed.
    pub const PATH: u8 = 0x3;
    /// Vendor specific status.
    pub const VENDOR: u8 = 0x7;
}

/// A completion's status: Status Code (SC), Status Code Type (SCT), Command Retry Delay (CRD), More (M) and
/// Do Not Retry (DNR). Base 2.0 §3.3.3.2.1.
///
/// Equality compares every bit, modifiers included; [`Status::is`] and [`Status::code`] leave modifiers out.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Status(u16);

const SC_BITS: u16 = 0x00ff;
const CODE_BITS: u16 = 0x07ff;
const ALL_BITS: u16 = 0x7fff;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

impl Status {
    /// A status of this type and code, without modifiers. Only the low three bits of `sct` exist.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16 & 0x7) << 8) | sc as u16)
    }

    /// The status in a completion's last word, whose bit 0 is the phase tag.
    pub const fn from_wire(word: u16) -> Self {
        Self(word >> 1)
    }

    /// The completion's last word with this phase tag. Over fabrics the phase tag is always clear.
    pub const fn to_wire(self, phase: bool) -> u16 {
        (self.0 << 1) | phase as u16
    }

    /// The 15 bits of the status, as the error log and the kernel's interfaces show them.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// A status from its 15 bits; the top bit is dropped.
    pub const fn from_raw(bits: u16) -> Self {
        Self(bits & ALL_BITS)
    }

    /// Status code type: one of the constants of [`sct`](mod@sct), or a reserved value.
    pub const fn sct(self) -> u8 {
        ((self.0 >> 8) & 0x7) as u8
    }

    /// Status code within its type.
    pub const fn sc(self) -> u8 {
        (self.0 & SC_BITS) as u8
    }

    /// Command retry delay: 0 is none, 1 to 3 select CRDT1 to CRDT3 of the identify controller page.
    pub const fn crd(self) -> u8 {
        ((self.0 >> 11) & 0x3) as u8
    }

    /// More: the error information log has an entry about this completion.
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Do not retry: the same command to the same controller is expected to fail again.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status with Do Not Retry set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same status with More set.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The same status with this command retry delay selector; only the low two bits exist.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self((self.0 & !(0x3 << 11)) | ((crd as u16 & 0x3) << 11))
    }

    /// Type and code alone, fit for a `match` against the constants.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE_BITS)
    }

    /// Whether type and code are `other`'s, whatever the modifiers.
    pub const fn is(self, other: Self) -> bool {
        self.0 & CODE_BITS == other.0 & CODE_BITS
    }

    /// Whether the command completed without error.
    pub const fn is_success(self) -> bool {
        self.0 & CODE_BITS == 0
    }

    /// Whether the status says that the path failed rather than the command, so another path may succeed.
    pub const fn is_path(self) -> bool {
        self.sct() == sct::PATH
    }

    /// Whether the status is one of the asymmetric namespace access states: Base 2.0 §8.1.
    pub const fn is_ana(self) -> bool {
        self.is(Self::ANA_PERSISTENT_LOSS) || self.is(Self::ANA_INACCESSIBLE) || self.is(Self::ANA_TRANSITION)
    }
}

macro_rules! statuses {
    ( $( $(#[$meta:meta])* $name:ident = $sct:ident, $sc:literal, $text:literal; )* ) => {
        impl Status {
            $( $(#[$meta])* pub const $name: Self = Self::new(sct::$sct, $sc); )*
        }
        const NAMED: &[(Status, &str)] = &[ $( (Status::$name, $text), )* ];
    };
}

statuses! {
    /// The command completed successfully.
    SUCCESS = GENERIC, 0x00, "success";
    /// The opcode is reserved or not supported.
    INVALID_OPCODE = GENERIC, 0x01, "invalid opcode";
    /// A field holds a reserved or unsupported value.
    INVALID_FIELD = GENERIC, 0x02, "invalid field in command";
    /// The command identifier is already in use.
    CID_CONFLICT = GENERIC, 0x03, "command id conflict";
    /// Data or metadata could not be transferred.
    DATA_TRANSFER_ERROR = GENERIC, 0x04, "data transfer error";
    /// Aborted because power is about to be lost.
    ABORTED_POWER_LOSS = GENERIC, 0x05, "aborted by power loss notification";
    /// The controller failed internally.
    INTERNAL_ERROR = GENERIC, 0x06, "internal error";
    /// An Abort command asked for it.
    ABORT_REQUESTED = GENERIC, 0x07, "abort requested";
    /// The submission queue was deleted under the command.
    ABORTED_SQ_DELETION = GENERIC, 0x08, "aborted by submission queue deletion";
    /// The other command of a fused pair failed.
    ABORTED_FAILED_FUSED = GENERIC, 0x09, "aborted by failed fused command";
    /// The other command of a fused pair is missing.
    ABORTED_MISSING_FUSED = GENERIC, 0x0a, "aborted by missing fused command";
    /// The namespace does not exist, is not attached, or its format is invalid.
    INVALID_NAMESPACE = GENERIC, 0x0b, "invalid namespace or format";
    /// A protocol violation in a sequence of commands.
    COMMAND_SEQUENCE_ERROR = GENERIC, 0x0c, "command sequence error";
    /// A segment descriptor is malformed or misplaced.
    SGL_INVALID_SEGMENT = GENERIC, 0x0d, "invalid sgl segment descriptor";
    /// Too many or too few descriptors.
    SGL_INVALID_COUNT = GENERIC, 0x0e, "invalid number of sgl descriptors";
    /// The SGL describes less (or unacceptably more) data than the command transfers.
    SGL_DATA_LENGTH_INVALID = GENERIC, 0x0f, "data sgl length invalid";
    /// The same for metadata.
    SGL_METADATA_LENGTH_INVALID = GENERIC, 0x10, "metadata sgl length invalid";
    /// The descriptor type or subtype is not supported here.
    SGL_TYPE_INVALID = GENERIC, 0x11, "sgl descriptor type invalid";
    /// A controller memory buffer was used in a way that is not supported.
    INVALID_CMB_USE = GENERIC, 0x12, "invalid use of controller memory buffer";
    /// A PRP entry's offset is invalid.
    PRP_OFFSET_INVALID = GENERIC, 0x13, "prp offset invalid";
    /// The write is longer than the atomic write unit allows.
    ATOMIC_WRITE_UNIT_EXCEEDED = GENERIC, 0x14, "atomic write unit exceeded";
    /// Access rights forbid the command.
    OPERATION_DENIED = GENERIC, 0x15, "operation denied";
    /// The offset of an in-capsule descriptor is outside the capsule's data or not allowed.
    SGL_OFFSET_INVALID = GENERIC, 0x16, "sgl offset invalid";
    /// Hosts used identifiers of different sizes.
    HOST_ID_INCONSISTENT = GENERIC, 0x18, "host identifier inconsistent format";
    /// The keep alive timer ran out.
    KEEP_ALIVE_EXPIRED = GENERIC, 0x19, "keep alive timer expired";
    /// The keep alive timeout is not acceptable.
    KEEP_ALIVE_INVALID = GENERIC, 0x1a, "keep alive timeout invalid";
    /// A reservation was preempted with abort.
    ABORTED_PREEMPT = GENERIC, 0x1b, "aborted by preempt and abort";
    /// The last sanitize operation failed.
    SANITIZE_FAILED = GENERIC, 0x1c, "sanitize failed";
    /// A sanitize operation is running.
    SANITIZE_IN_PROGRESS = GENERIC, 0x1d, "sanitize in progress";
    /// A data block does not keep the required granularity.
    SGL_GRANULARITY_INVALID = GENERIC, 0x1e, "sgl data block granularity invalid";
    /// The command cannot be placed in a queue in the controller memory buffer.
    NOT_SUPPORTED_IN_CMB_QUEUE = GENERIC, 0x1f, "command not supported for queue in cmb";
    /// The namespace is write protected.
    NAMESPACE_WRITE_PROTECTED = GENERIC, 0x20, "namespace is write protected";
    /// The controller interrupted the command; the host should try again.
    COMMAND_INTERRUPTED = GENERIC, 0x21, "command interrupted";
    /// The transport failed in passing; retransmission may help.
    TRANSIENT_TRANSPORT_ERROR = GENERIC, 0x22, "transient transport error";
    /// Command and feature lockdown forbids it.
    PROHIBITED_BY_LOCKDOWN = GENERIC, 0x23, "command prohibited by command and feature lockdown";
    /// The admin command needs media that is not ready.
    ADMIN_MEDIA_NOT_READY = GENERIC, 0x24, "admin command media not ready";
    /// The key tag of key per I/O is invalid.
    INVALID_KEY_TAG = GENERIC, 0x25, "invalid key tag";
    /// Host support for dispersed namespaces is not enabled.
    HOST_DISPERSED_NS_NOT_ENABLED = GENERIC, 0x26, "host dispersed namespace support not enabled";
    /// The host identifier was not set.
    HOST_ID_NOT_INITIALIZED = GENERIC, 0x27, "host identifier not initialized";
    /// The key for the range is wrong.
    INCORRECT_KEY = GENERIC, 0x28, "incorrect key";
    /// Flexible data placement is disabled.
    FDP_DISABLED = GENERIC, 0x29, "flexible data placement disabled";
    /// The placement handle list is invalid.
    INVALID_PLACEMENT_HANDLE_LIST = GENERIC, 0x2a, "invalid placement handle list";
    /// A block address lies beyond the namespace.
    LBA_OUT_OF_RANGE = GENERIC, 0x80, "lba out of range";
    /// The write would exceed the namespace's capacity.
    CAPACITY_EXCEEDED = GENERIC, 0x81, "capacity exceeded";
    /// The namespace is not ready for access.
    NAMESPACE_NOT_READY = GENERIC, 0x82, "namespace not ready";
    /// A reservation held by another host forbids it.
    RESERVATION_CONFLICT = GENERIC, 0x83, "reservation conflict";
    /// A format is in progress.
    FORMAT_IN_PROGRESS = GENERIC, 0x84, "format in progress";

    /// Key value: the value's size is invalid.
    KV_INVALID_VALUE_SIZE = GENERIC, 0x85, "invalid value size";
    /// Key value: the key's size is invalid.
    KV_INVALID_KEY_SIZE = GENERIC, 0x86, "invalid key size";
    /// Key value: there is no such key.
    KV_KEY_DOES_NOT_EXIST = GENERIC, 0x87, "key does not exist";
    /// Key value: an unrecovered error.
    KV_UNRECOVERED_ERROR = GENERIC, 0x88, "unrecovered error";
    /// Key value: the key exists already.
    KV_KEY_EXISTS = GENERIC, 0x89, "key exists";

    /// The completion queue named in Create I/O Submission Queue does not exist.
    CQ_INVALID = COMMAND_SPECIFIC, 0x00, "completion queue invalid";
    /// The queue identifier is out of range or in use.
    INVALID_QUEUE_IDENTIFIER = COMMAND_SPECIFIC, 0x01, "invalid queue identifier";
    /// The queue size is zero or too large.
    INVALID_QUEUE_SIZE = COMMAND_SPECIFIC, 0x02, "invalid queue size";
    /// Too many Abort commands are outstanding.
    ABORT_LIMIT_EXCEEDED = COMMAND_SPECIFIC, 0x03, "abort command limit exceeded";
    /// Too many Asynchronous Event Requests are outstanding.
    AER_LIMIT_EXCEEDED = COMMAND_SPECIFIC, 0x05, "asynchronous event request limit exceeded";
    /// The firmware slot is invalid or read-only.
    INVALID_FIRMWARE_SLOT = COMMAND_SPECIFIC, 0x06, "invalid firmware slot";
    /// The firmware image is invalid.
    INVALID_FIRMWARE_IMAGE = COMMAND_SPECIFIC, 0x07, "invalid firmware image";
    /// The interrupt vector is invalid.
    INVALID_INTERRUPT_VECTOR = COMMAND_SPECIFIC, 0x08, "invalid interrupt vector";
    /// The log page is invalid or not supported.
    INVALID_LOG_PAGE = COMMAND_SPECIFIC, 0x09, "invalid log page";
    /// The format is not supported.
    INVALID_FORMAT = COMMAND_SPECIFIC, 0x0a, "invalid format";
    /// Firmware activation needs a conventional reset.
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = COMMAND_SPECIFIC, 0x0b, "firmware activation requires conventional reset";
    /// A completion queue still has submission queues.
    INVALID_QUEUE_DELETION = COMMAND_SPECIFIC, 0x0c, "invalid queue deletion";
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = COMMAND_SPECIFIC, 0x0d, "feature identifier not saveable";
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = COMMAND_SPECIFIC, 0x0e, "feature not changeable";
    /// The feature does not belong to a namespace.
    FEATURE_NOT_NAMESPACE_SPECIFIC = COMMAND_SPECIFIC, 0x0f, "feature not namespace specific";
    /// Firmware activation needs an NVM subsystem reset.
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = COMMAND_SPECIFIC, 0x10, "firmware activation requires nvm subsystem reset";
    /// Firmware activation needs a controller level reset.
    FIRMWARE_NEEDS_RESET = COMMAND_SPECIFIC, 0x11, "firmware activation requires controller level reset";
    /// Firmware activation would take longer than allowed.
    FIRMWARE_MAX_TIME_VIOLATION = COMMAND_SPECIFIC, 0x12, "firmware activation requires maximum time violation";
    /// Firmware activation is prohibited.
    FIRMWARE_ACTIVATION_PROHIBITED = COMMAND_SPECIFIC, 0x13, "firmware activation prohibited";
    /// Ranges overlap.
    OVERLAPPING_RANGE = COMMAND_SPECIFIC, 0x14, "overlapping range";
    /// Not enough capacity for the namespace.
    NAMESPACE_INSUFFICIENT_CAPACITY = COMMAND_SPECIFIC, 0x15, "namespace insufficient capacity";
    /// No namespace identifier is left.
    NAMESPACE_ID_UNAVAILABLE = COMMAND_SPECIFIC, 0x16, "namespace identifier unavailable";
    /// The namespace is already attached.
    NAMESPACE_ALREADY_ATTACHED = COMMAND_SPECIFIC, 0x18, "namespace already attached";
    /// The namespace is private to another controller.
    NAMESPACE_IS_PRIVATE = COMMAND_SPECIFIC, 0x19, "namespace is private";
    /// The namespace is not attached.
    NAMESPACE_NOT_ATTACHED = COMMAND_SPECIFIC, 0x1a, "namespace not attached";
    /// Thin provisioning is not supported.
    THIN_PROVISIONING_NOT_SUPPORTED = COMMAND_SPECIFIC, 0x1b, "thin provisioning not supported";
    /// The controller list is invalid.
    CONTROLLER_LIST_INVALID = COMMAND_SPECIFIC, 0x1c, "controller list invalid";
    /// A device self-test is running.
    SELF_TEST_IN_PROGRESS = COMMAND_SPECIFIC, 0x1d, "device self-test in progress";
    /// The boot partition may not be written.
    BOOT_PARTITION_WRITE_PROHIBITED = COMMAND_SPECIFIC, 0x1e, "boot partition write prohibited";
    /// The controller identifier is invalid.
    INVALID_CONTROLLER_ID = COMMAND_SPECIFIC, 0x1f, "invalid controller identifier";
    /// The secondary controller is in the wrong state.
    INVALID_SECONDARY_STATE = COMMAND_SPECIFIC, 0x20, "invalid secondary controller state";
    /// The number of controller resources is invalid.
    INVALID_RESOURCE_COUNT = COMMAND_SPECIFIC, 0x21, "invalid number of controller resources";
    /// The resource identifier is invalid.
    INVALID_RESOURCE_ID = COMMAND_SPECIFIC, 0x22, "invalid resource identifier";
    /// Sanitize is prohibited while the persistent memory region is enabled.
    SANITIZE_PROHIBITED_PMR = COMMAND_SPECIFIC, 0x23, "sanitize prohibited while pmr is enabled";
    /// The ANA group identifier is invalid.
    ANA_GROUP_ID_INVALID = COMMAND_SPECIFIC, 0x24, "ana group identifier invalid";
    /// The namespace could not be attached because of its ANA state.
    ANA_ATTACH_FAILED = COMMAND_SPECIFIC, 0x25, "ana attach failed";
    /// Not enough capacity in the domain or endurance group.
    INSUFFICIENT_CAPACITY = COMMAND_SPECIFIC, 0x26, "insufficient capacity";
    /// Too many namespaces are attached.
    NAMESPACE_ATTACHMENT_LIMIT = COMMAND_SPECIFIC, 0x27, "namespace attachment limit exceeded";
    /// Lockdown of that command is not supported.
    LOCKDOWN_NOT_SUPPORTED = COMMAND_SPECIFIC, 0x28, "prohibition of command execution not supported";
    /// The I/O command set is not supported.
    IO_COMMAND_SET_NOT_SUPPORTED = COMMAND_SPECIFIC, 0x29, "i/o command set not supported";
    /// The I/O command set is not enabled.
    IO_COMMAND_SET_NOT_ENABLED = COMMAND_SPECIFIC, 0x2a, "i/o command set not enabled";
    /// The combination of I/O command sets was rejected.
    IO_COMMAND_SET_COMBINATION_REJECTED = COMMAND_SPECIFIC, 0x2b, "i/o command set combination rejected";
    /// The I/O command set is invalid.
    INVALID_IO_COMMAND_SET = COMMAND_SPECIFIC, 0x2c, "invalid i/o command set";
    /// The identifier is not available.
    IDENTIFIER_UNAVAILABLE = COMMAND_SPECIFIC, 0x2d, "identifier unavailable";

    /// No stream resources are left.
    STREAM_RESOURCE_ALLOCATION_FAILED = COMMAND_SPECIFIC, 0x7f, "stream resource allocation failed";

    /// Connect: the record format is not supported. Base 2.0 §6.3.
    CONNECT_INCOMPATIBLE_FORMAT = COMMAND_SPECIFIC, 0x80, "connect: incompatible format; nvm: conflicting attributes";
    /// Connect: the controller is in use or has no room.
    CONNECT_CONTROLLER_BUSY = COMMAND_SPECIFIC, 0x81, "connect: controller busy; nvm: invalid protection information";
    /// Connect: a parameter is invalid; dword 0 says which (see [`crate::fabrics::ConnectResponse`]).
    CONNECT_INVALID_PARAMETERS = COMMAND_SPECIFIC, 0x82, "connect: invalid parameters; nvm: write to read-only range";
    /// Connect: the discovery information is stale.
    CONNECT_RESTART_DISCOVERY = COMMAND_SPECIFIC, 0x83, "connect: restart discovery; nvm: command size limit exceeded";
    /// Connect: this host may not connect to this subsystem.
    CONNECT_INVALID_HOST = COMMAND_SPECIFIC, 0x84, "connect: invalid host";
    /// Disconnect: the queue's type does not allow it. Base 2.0 §6.4.
    DISCONNECT_INVALID_QUEUE_TYPE = COMMAND_SPECIFIC, 0x85, "disconnect: invalid queue type";
    /// The discovery log changed while it was read.
    DISCOVER_RESTART = COMMAND_SPECIFIC, 0x90, "discover restart";
    /// Authentication is required before this command.
    AUTHENTICATION_REQUIRED = COMMAND_SPECIFIC, 0x91, "authentication required";

    /// Zoned: the command crosses a zone's boundary.
    ZONE_BOUNDARY_ERROR = COMMAND_SPECIFIC, 0xb8, "zoned boundary error";
    /// Zoned: the zone is full.
    ZONE_IS_FULL = COMMAND_SPECIFIC, 0xb9, "zone is full";
    /// Zoned: the zone is read-only.
    ZONE_IS_READ_ONLY = COMMAND_SPECIFIC, 0xba, "zone is read only";
    /// Zoned: the zone is offline.
    ZONE_IS_OFFLINE = COMMAND_SPECIFIC, 0xbb, "zone is offline";
    /// Zoned: the write is not at the write pointer.
    ZONE_INVALID_WRITE = COMMAND_SPECIFIC, 0xbc, "zone invalid write";
    /// Zoned: too many zones are active.
    TOO_MANY_ACTIVE_ZONES = COMMAND_SPECIFIC, 0xbd, "too many active zones";
    /// Zoned: too many zones are open.
    TOO_MANY_OPEN_ZONES = COMMAND_SPECIFIC, 0xbe, "too many open zones";
    /// Zoned: the zone cannot go to that state.
    INVALID_ZONE_STATE_TRANSITION = COMMAND_SPECIFIC, 0xbf, "invalid zone state transition";

    /// The media could not be written.
    WRITE_FAULT = MEDIA, 0x80, "write fault";
    /// The media could not be read.
    UNRECOVERED_READ_ERROR = MEDIA, 0x81, "unrecovered read error";
    /// The guard of the protection information does not match.
    GUARD_CHECK_ERROR = MEDIA, 0x82, "end-to-end guard check error";
    /// The application tag does not match.
    APPLICATION_TAG_CHECK_ERROR = MEDIA, 0x83, "end-to-end application tag check error";
    /// The reference tag does not match.
    REFERENCE_TAG_CHECK_ERROR = MEDIA, 0x84, "end-to-end reference tag check error";
    /// The data compared differs.
    COMPARE_FAILURE = MEDIA, 0x85, "compare failure";
    /// Access to the range is denied.
    ACCESS_DENIED = MEDIA, 0x86, "access denied";
    /// The block is deallocated or was never written.
    DEALLOCATED_BLOCK = MEDIA, 0x87, "deallocated or unwritten logical block";
    /// The storage tag does not match.
    STORAGE_TAG_CHECK_ERROR = MEDIA, 0x88, "end-to-end storage tag check error";

    /// The path failed inside the subsystem.
    INTERNAL_PATH_ERROR = PATH, 0x00, "internal path error";
    /// The ANA group is lost for good on this controller.
    ANA_PERSISTENT_LOSS = PATH, 0x01, "asymmetric access persistent loss";
    /// The ANA group is inaccessible on this controller.
    ANA_INACCESSIBLE = PATH, 0x02, "asymmetric access inaccessible";
    /// The ANA group is changing state.
    ANA_TRANSITION = PATH, 0x03, "asymmetric access transition";
    /// The controller detected a pathing error.
    CONTROLLER_PATH_ERROR = PATH, 0x60, "controller pathing error";
    /// The host detected a pathing error; never on the wire.
    HOST_PATH_ERROR = PATH, 0x70, "host pathing error";
    /// The host aborted the command, as on a lost connection; never on the wire.
    HOST_ABORTED = PATH, 0x71, "command aborted by host";
}

impl Status {
    /// NVM command set: attributes of the command conflict. Shares its code with
    /// [`Status::CONNECT_INCOMPATIBLE_FORMAT`]; the opcode tells them apart.
    pub const CONFLICTING_ATTRIBUTES: Self = Self::new(sct::COMMAND_SPECIFIC, 0x80);
    /// NVM command set: the protection information settings are invalid.
    pub const INVALID_PROTECTION_INFORMATION: Self = Self::new(sct::COMMAND_SPECIFIC, 0x81);
    /// NVM command set: the range is read-only.
    pub const WRITE_TO_READ_ONLY_RANGE: Self = Self::new(sct::COMMAND_SPECIFIC, 0x82);
    /// NVM command set: a Copy or Dataset Management command exceeds a size limit.
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self::new(sct::COMMAND_SPECIFIC, 0x83);

    /// The status in words, or `None` where this crate has none. Codes that several command sets use for
    /// different things name each.
    pub fn name(self) -> Option<&'static str> {
        NAMED
            .iter()
            .find(|(status, _)| self.is(*status))
            .map(|(_, text)| *text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or(match self.sct() {
            sct::GENERIC => "unknown generic status",
            sct::COMMAND_SPECIFIC => "unknown command specific status",
            sct::MEDIA => "unknown media error",
            sct::PATH => "unknown path error",
            sct::VENDOR => "vendor specific status",
            _ => "status of reserved type",
        });
        write!(f, "{name} (sct {:x} sc {:02x}h", self.sct(), self.sc())?;
        if self.crd() != 0 {
            write!(f, ", retry delay {}", self.crd())?;
        }
        if self.more() {
            f.write_str(", more in error log")?;
        }
        if self.dnr() {
            f.write_str(", do not retry")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
