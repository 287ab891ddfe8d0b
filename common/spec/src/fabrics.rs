//! Fabrics commands: Connect, Disconnect, properties and authentication. Base 2.0 §6.
//!
//! Each command has a plain struct with `from_sqe` and `to_sqe`. `from_sqe` reads fields and judges nothing but
//! that the entry is that command; whether the values are acceptable is the controller's decision.
//!
//! The messages inside authentication payloads are in [`crate::auth`].

use crate::command::{Cqe, FabricsOpcode, FabricsType, Psdt, Sqe};
use crate::sgl::Sgl;
use crate::status::Status;
use core::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use crate::nqn::{DISCOVERY_NQN, Nqn, NqnError};

/// Controller identifier in Connect that lets a dynamic controller be allocated. Base 2.0 §6.3.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// Controller identifier in Connect that accepts any static controller.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;
/// Largest identifier that a controller may have.
pub const CNTLID_MAX: u16 = 0xffef;
/// Smallest admin queue size over fabrics, in entries. Base 2.0 §6.3.
pub const ADMIN_SQSIZE_MIN: u16 = 32;

/// An entry for a fabrics command of this type: opcode 7Fh, PSDT as fabrics require.
fn fabrics_sqe(fctype: FabricsType, cid: u16) -> Sqe {
    let mut sqe = Sqe::new(FabricsOpcode::FABRICS, u32::from(fctype.0));
    sqe.cid = U16::new(cid);
    sqe.set_psdt(Psdt::SGL);
    sqe
}

/// The Connect command. Base 2.0 §6.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct ConnectCommand {
    /// Record format: 0 is the only one defined.
    pub recfmt: u16,
    /// Queue to create: 0 is the admin queue, and creates the association.
    pub qid: u16,
    /// Submission queue size, zero-based.
    pub sqsize_z: u16,
    /// Connect attributes: the `CATTR_*` constants.
    pub cattr: u8,
    /// Keep alive timeout in milliseconds; 0 disables it. Admin queue only.
    pub kato_ms: u32,
}

impl ConnectCommand {
    /// CATTR b1:0: priority class mask.
    pub const CATTR_PRIORITY_MASK: u8 = 0x3;
    /// CATTR b2: submission queue flow control is disabled.
    pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
    /// CATTR b3: the host may delete individual I/O queues with Disconnect.
    pub const CATTR_INDIVIDUAL_QUEUE_DELETION: u8 = 1 << 3;
    /// CATTR b4: the host is a connection entity.
    pub const CATTR_CONNECTION_ENTITY: u8 = 1 << 4;

    /// The fields of a Connect; `None` when the entry is another command.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.fabrics_type() != Some(FabricsType::CONNECT) {
            return None;
        }
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Some(Self {
            recfmt: (cdw10 & 0xffff) as u16,
            qid: (cdw10 >> 16) as u16,
            sqsize_z: (cdw11 & 0xffff) as u16,
            cattr: ((cdw11 >> 16) & 0xff) as u8,
            kato_ms: sqe.cdw12.get(),
        })
    }

    /// The entry of this Connect, whose [`ConnectData`] lies where `data` says.
    pub fn to_sqe(self, cid: u16, data: Sgl) -> Sqe {
        let mut sqe = fabrics_sqe(FabricsType::CONNECT, cid);
        sqe.set_sgl(data);
        sqe.cdw10 = U32::new(u32::from(self.recfmt) | (u32::from(self.qid) << 16));
        sqe.cdw11 = U32::new(u32::from(self.sqsize_z) | (u32::from(self.cattr) << 16));
        sqe.cdw12 = U32::new(self.kato_ms);
        sqe
    }

    /// Submission queue size in entries: 1 to 65536.
    pub const fn sqsize(&self) -> u32 {
        self.sqsize_z as u32 + 1
    }

    /// Whether the host asks for no submission queue flow control.
    pub const fn disables_sq_flow_control(&self) -> bool {
        self.cattr & Self::CATTR_DISABLE_SQ_FLOW_CONTROL != 0
    }
}

/// The data of Connect: 1024 bytes. Base 2.0 §6.3, figure "Connect Command – Data".
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller asked for: [`CNTLID_DYNAMIC`], [`CNTLID_STATIC_ANY`], or on I/O queues the association's.
    pub cntlid: U16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// Subsystem NQN, NUL-padded.
    pub subnqn: [u8; 256],
    /// Host NQN, NUL-padded.
    pub hostnqn: [u8; 256],
    /// Reserved.
    pub reserved768: [u8; 256],
}
const _: () = assert!(size_of::<ConnectData>() == 1024);

impl ConnectData {
    /// The data of a host that asks for this subsystem.
    pub fn new(hostid: [u8; 16], cntlid: u16, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid,
            cntlid: U16::new(cntlid),
            reserved18: [0; 238],
            subnqn: subnqn.to_field(),
            hostnqn: hostnqn.to_field(),
            reserved768: [0; 256],
        }
    }
}

impl fmt::Debug for ConnectData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectData")
            .field("hostid", &format_args!("{:02x?}", self.hostid))
            .field("cntlid", &format_args!("{:#06x}", self.cntlid.get()))
            .field("subnqn", &Nqn::from_field_lenient(&self.subnqn))
            .field("hostnqn", &Nqn::from_field_lenient(&self.hostnqn))
            .finish()
    }
}

/// What dword 0 of a Connect completion says. Base 2.0 §6.3, figures of the Connect response.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum ConnectResponse {
    /// The queue exists.
    Success {
        /// The controller's identifier.
        cntlid: u16,
        /// Authentication is required (AUTHREQ.ATR, dword 0 bit 17).
        auth_transaction_required: bool,
        /// Authentication over a secure channel is required (AUTHREQ.ASCR, dword 0 bit 18).
        auth_secure_channel_required: bool,
    },
    /// A parameter is invalid ([`Status::CONNECT_INVALID_PARAMETERS`]).
    InvalidParameter {
        /// Offset of the parameter in bytes (IPO).
        offset: u16,
        /// The offset counts in [`ConnectData`] rather than in the entry (IATTR b0).
        in_data: bool,
    },
    /// Another failure: dword 0 says nothing.
    Failed(Status),
}

impl ConnectResponse {
    /// The controller's identifier, without demands for authentication.
    pub const fn success(cntlid: u16) -> Self {
        Self::Success {
            cntlid,
            auth_transaction_required: false,
            auth_secure_channel_required: false,
        }
    }

    /// An invalid parameter in the submission queue entry, at this byte.
    pub const fn invalid_command_field(offset: u16) -> Self {
        Self::InvalidParameter {
            offset,
            in_data: false,
        }
    }

    /// An invalid parameter in the connect data, at this byte.
    pub const fn invalid_data_field(offset: u16) -> Self {
        Self::InvalidParameter {
            offset,
            in_data: true,
        }
    }

    /// What a completion says.
    pub fn from_cqe(cqe: &Cqe) -> Self {
        let (dw0, status) = (cqe.dw0.get(), cqe.status());
        if status.is_success() {
            Self::Success {
                cntlid: (dw0 & 0xffff) as u16,
                auth_transaction_required: dw0 & (1 << 17) != 0,
                auth_secure_channel_required: dw0 & (1 << 18) != 0,
            }
        } else if status.is(Status::CONNECT_INVALID_PARAMETERS) {
            Self::InvalidParameter {
                offset: (dw0 & 0xffff) as u16,
                in_data: dw0 & (1 << 16) != 0,
            }
        } else {
            Self::Failed(status)
        }
    }

    /// Writes dword 0 and the status. An invalid parameter is marked Do Not Retry.
    pub fn apply(self, cqe: &mut Cqe) {
        let (dw0, status) = match self {
            Self::Success {
                cntlid,
                auth_transaction_required,
                auth_secure_channel_required,
            } => (
                u32::from(cntlid)
                    | (u32::from(auth_transaction_required) << 17)
                    | (u32::from(auth_secure_channel_required) << 18),
                Status::SUCCESS,
            ),
            Self::InvalidParameter { offset, in_data } => (
                u32::from(offset) | (u32::from(in_data) << 16),
                Status::CONNECT_INVALID_PARAMETERS.with_dnr(),
            ),
            Self::Failed(status) => (0, status),
        };
        cqe.dw0 = U32::new(dw0);
        cqe.set_status(status);
    }
}

/// The Disconnect command: deletes one I/O queue. Base 2.0 §6.4.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct Disconnect {
    /// Record format: 0 is the only one defined.
    pub recfmt: u16,
}

impl Disconnect {
    /// The fields of a Disconnect; `None` when the entry is another command.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        (sqe.fabrics_type() == Some(FabricsType::DISCONNECT)).then(|| Self {
            recfmt: (sqe.cdw10.get() & 0xffff) as u16,
        })
    }

    /// The entry of this Disconnect.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = fabrics_sqe(FabricsType::DISCONNECT, cid);
        sqe.cdw10 = U32::new(u32::from(self.recfmt));
        sqe
    }
}

/// Offset of a property: the controller register's offset. Base 2.0 §3.1.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Property(pub u32);

impl Property {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: Self = Self(0x00);
    /// Version, 4 bytes.
    pub const VS: Self = Self(0x08);
    /// Controller Configuration, 4 bytes.
    pub const CC: Self = Self(0x14);
    /// Controller Status, 4 bytes.
    pub const CSTS: Self = Self(0x1c);
    /// NVM Subsystem Reset, 4 bytes: writing 4E564D65h ("NVMe") resets.
    pub const NSSR: Self = Self(0x20);
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: Self = Self(0x64);
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: Self = Self(0x68);

    /// How many bytes the property has, or `None` for an offset that fabrics do not define.
    pub const fn size(self) -> Option<PropertySize> {
        match self {
            Self::CAP => Some(PropertySize::Eight),
            Self::VS | Self::CC | Self::CSTS | Self::NSSR | Self::NSSD | Self::CRTO => {
                Some(PropertySize::Four)
            }
            _ => None,
        }
    }
}

/// Size of a property access (ATTRIB b2:0). Base 2.0 §6.5.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum PropertySize {
    /// 000b: 4 bytes.
    Four,
    /// 001b: 8 bytes.
    Eight,
    /// Reserved: the three bits.
    Unknown(u8),
}

impl PropertySize {
    /// The size that these bits state; bits above the third are ignored.
    pub const fn from_bits(attrib: u8) -> Self {
        match attrib & 0x7 {
            0 => Self::Four,
            1 => Self::Eight,
            other => Self::Unknown(other),
        }
    }

    /// The three bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Four => 0,
            Self::Eight => 1,
            Self::Unknown(bits) => bits & 0x7,
        }
    }
}

/// The Property Get command; the value is the completion's 64-bit result. Base 2.0 §6.5.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct PropertyGet {
    /// Size of the access.
    pub size: PropertySize,
    /// Which property.
    pub property: Property,
}

impl PropertyGet {
    /// The fields of a Property Get; `None` when the entry is another command.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        (sqe.fabrics_type() == Some(FabricsType::PROPERTY_GET)).then(|| Self {
            size: PropertySize::from_bits((sqe.cdw10.get() & 0xff) as u8),
            property: Property(sqe.cdw11.get()),
        })
    }

    /// The entry of this Property Get.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = fabrics_sqe(FabricsType::PROPERTY_GET, cid);
        sqe.cdw10 = U32::new(u32::from(self.size.bits()));
        sqe.cdw11 = U32::new(self.property.0);
        sqe
    }
}

/// The Property Set command. Base 2.0 §6.6.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct PropertySet {
    /// Size of the access.
    pub size: PropertySize,
    /// Which property.
    pub property: Property,
    /// The value; a 4-byte access uses its lower half.
    pub value: u64,
}

impl PropertySet {
    /// The fields of a Property Set; `None` when the entry is another command.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        (sqe.fabrics_type() == Some(FabricsType::PROPERTY_SET)).then(|| Self {
            size: PropertySize::from_bits((sqe.cdw10.get() & 0xff) as u8),
            property: Property(sqe.cdw11.get()),
            value: u64::from(sqe.cdw12.get()) | (u64::from(sqe.cdw13.get()) << 32),
        })
    }

    /// The entry of this Property Set.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = fabrics_sqe(FabricsType::PROPERTY_SET, cid);
        sqe.cdw10 = U32::new(u32::from(self.size.bits()));
        sqe.cdw11 = U32::new(self.property.0);
        sqe.cdw12 = U32::new((self.value & 0xffff_ffff) as u32);
        sqe.cdw13 = U32::new((self.value >> 32) as u32);
        sqe
    }
}

/// Security protocol that NVMe in-band authentication uses (SECP). Base 2.0 §6.1.
pub const SECP_NVME: u8 = 0xe9;

/// Authentication Send or Authentication Receive. Base 2.0 §6.2 and §6.1.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Authentication {
    /// Whether the host sends (§6.2) or asks to receive (§6.1).
    pub send: bool,
    /// Security protocol: [`SECP_NVME`].
    pub secp: u8,
    /// Security protocol specific field 0: 01h.
    pub spsp0: u8,
    /// Security protocol specific field 1: 01h.
    pub spsp1: u8,
    /// Bytes sent (transfer length, TL) or room for the answer (allocation length, AL).
    pub length: u32,
}

impl Authentication {
    /// A send of `length` bytes of in-band authentication.
    pub const fn send(length: u32) -> Self {
        Self {
            send: true,
            secp: SECP_NVME,
            spsp0: 1,
            spsp1: 1,
            length,
        }
    }

    /// A receive of at most `length` bytes of in-band authentication.
    pub const fn receive(length: u32) -> Self {
        Self {
            send: false,
            secp: SECP_NVME,
            spsp0: 1,
            spsp1: 1,
            length,
        }
    }

    /// The fields of an authentication command; `None` when the entry is another command.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let send = match sqe.fabrics_type()? {
            FabricsType::AUTHENTICATION_SEND => true,
            FabricsType::AUTHENTICATION_RECEIVE => false,
            _ => return None,
        };
        let [_, spsp0, spsp1, secp] = sqe.cdw10.to_bytes();
        Some(Self {
            send,
            secp,
            spsp0,
            spsp1,
            length: sqe.cdw11.get(),
        })
    }

    /// The entry of this command, whose payload lies where `data` says.
    pub fn to_sqe(self, cid: u16, data: Sgl) -> Sqe {
        let fctype = if self.send {
            FabricsType::AUTHENTICATION_SEND
        } else {
            FabricsType::AUTHENTICATION_RECEIVE
        };
        let mut sqe = fabrics_sqe(fctype, cid);
        sqe.set_sgl(data);
        sqe.cdw10 = U32::from_bytes([0, self.spsp0, self.spsp1, self.secp]);
        sqe.cdw11 = U32::new(self.length);
        sqe
    }
}
