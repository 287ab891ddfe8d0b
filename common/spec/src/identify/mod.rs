//! The Identify command and its data structures. Base 2.0 §5.17, NVM Command Set 1.0 §4.1.5.
//!
//! Not implemented: domain, endurance group and UUID lists, and the structures of command sets other than NVM. Primary and
//! secondary controllers are in [`crate::manage`].

mod controller;
mod namespace;

pub use controller::{
    ControllerType, IdentifyController, PowerState, anacap, cmic, ctratt, lpa, oacs, oaes, oncs, sgls, vwc,
};
pub use namespace::{
    DescriptorError, IdentifyNamespace, IndependentNamespace, LbaFormat, NamespaceDescriptors, NamespaceId,
    NvmIdentifyController, NvmIdentifyNamespace, dlfeat, nmic, nsfeat,
};

use crate::command::{AdminOpcode, Sqe};
use crate::macros::open_enum;
use core::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes that every Identify returns.
pub const DATA_SIZE: usize = 4096;

open_enum! {
    /// Which structure Identify returns (CNS): Base 2.0 §5.17.1, figure "Identify – CNS Values".
    pub struct Cns(u8) {
        /// Namespace, NVM command set.
        NAMESPACE = 0x00;
        /// Controller.
        CONTROLLER = 0x01;
        /// Active namespaces with identifiers above NSID.
        ACTIVE_NAMESPACES = 0x02;
        /// Namespace identification descriptors.
        NAMESPACE_DESCRIPTORS = 0x03;
        /// NVM sets.
        NVM_SETS = 0x04;
        /// Namespace, specific to the I/O command set in CSI.
        IO_NAMESPACE = 0x05;
        /// Controller, specific to the I/O command set in CSI.
        IO_CONTROLLER = 0x06;
        /// Active namespaces of the I/O command set in CSI.
        IO_ACTIVE_NAMESPACES = 0x07;
        /// Namespace, whatever its I/O command set.
        INDEPENDENT_NAMESPACE = 0x08;
        /// Allocated namespaces with identifiers above NSID.
        ALLOCATED_NAMESPACES = 0x10;
        /// An allocated namespace, NVM command set.
        ALLOCATED_NAMESPACE = 0x11;
        /// Controllers that the namespace is attached to.
        NAMESPACE_CONTROLLERS = 0x12;
        /// Controllers of the subsystem.
        CONTROLLERS = 0x13;
        /// Primary controller capabilities.
        PRIMARY_CAPABILITIES = 0x14;
        /// Secondary controllers.
        SECONDARY_CONTROLLERS = 0x15;
        /// Namespace granularity list.
        NAMESPACE_GRANULARITY = 0x16;
        /// UUID list.
        UUIDS = 0x17;
        /// Domains.
        DOMAINS = 0x18;
        /// Endurance groups.
        ENDURANCE_GROUPS = 0x19;
        /// Allocated namespaces of the I/O command set in CSI.
        IO_ALLOCATED_NAMESPACES = 0x1a;
        /// An allocated namespace, specific to the I/O command set in CSI.
        IO_ALLOCATED_NAMESPACE = 0x1b;
        /// I/O command set combinations.
        IO_COMMAND_SETS = 0x1c;
    }
}

open_enum! {
    /// I/O command set identifier (CSI): Base 2.0 §3.1.2, figure "Command Set Identifiers".
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct Csi(u8) {
        /// NVM command set.
        NVM = 0x00;
        /// Key value command set.
        KEY_VALUE = 0x01;
        /// Zoned namespace command set.
        ZONED = 0x02;
    }
}
const _: () = assert!(size_of::<Csi>() == 1);

/// The Identify command. Base 2.0 §5.17.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct Identify {
    /// Namespace, where the structure is about one; for lists, identifiers above this one are returned.
    pub nsid: u32,
    /// Which structure.
    pub cns: Cns,
    /// Controller identifier, for structures that ask for one (CNTID).
    pub cntid: u16,
    /// CNS specific identifier.
    pub cnssid: u16,
    /// I/O command set, for structures that ask for one.
    pub csi: Csi,
    /// UUID index, 7 bits; 0 for none.
    pub uuid_index: u8,
}

impl Identify {
    /// Asks for the controller's own structure.
    pub fn controller() -> Self {
        Self {
            cns: Cns::CONTROLLER,
            ..Self::default()
        }
    }

    /// Asks for a structure about a namespace.
    pub fn namespace(cns: Cns, nsid: u32) -> Self {
        Self {
            cns,
            nsid,
            ..Self::default()
        }
    }

    /// The fields of an Identify; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.admin_opcode() != AdminOpcode::IDENTIFY {
            return None;
        }
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Some(Self {
            nsid: sqe.nsid.get(),
            cns: Cns((cdw10 & 0xff) as u8),
            cntid: (cdw10 >> 16) as u16,
            cnssid: (cdw11 & 0xffff) as u16,
            csi: Csi((cdw11 >> 24) as u8),
            uuid_index: (sqe.cdw14.get() & 0x7f) as u8,
        })
    }

    /// The entry of this Identify; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::IDENTIFY.0, self.nsid);
        sqe.cid = U16::new(cid);
        sqe.cdw10 = U32::new(u32::from(self.cns.0) | (u32::from(self.cntid) << 16));
        sqe.cdw11 = U32::new(u32::from(self.cnssid) | (u32::from(self.csi.0) << 24));
        sqe.cdw14 = U32::new(u32::from(self.uuid_index & 0x7f));
        sqe
    }
}

/// A namespace list: up to 1024 identifiers, ascending, ended by a zero. Base 2.0 §4.3.2.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceList {
    /// Identifiers; the first zero ends the list.
    pub nsids: [U32; 1024],
}
const _: () = assert!(size_of::<NamespaceList>() == DATA_SIZE);

impl NamespaceList {
    /// A list of the first 1024 identifiers given. The caller gives them ascending and without zero.
    pub fn new(nsids: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self::new_zeroed();
        for (place, nsid) in list.nsids.iter_mut().zip(nsids) {
            *place = U32::new(nsid);
        }
        list
    }

    /// The identifiers up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids
            .iter()
            .map(|nsid| nsid.get())
            .take_while(|&nsid| nsid != 0)
    }
}

impl fmt::Debug for NamespaceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A controller list: up to 2047 identifiers, ascending. Base 2.0 §4.3.1.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControllerList {
    /// How many identifiers follow.
    pub count: U16,
    /// Identifiers.
    pub cntlids: [U16; 2047],
}
const _: () = assert!(size_of::<ControllerList>() == DATA_SIZE);

impl ControllerList {
    /// A list of the first 2047 identifiers given. The caller gives them ascending.
    pub fn new(cntlids: impl IntoIterator<Item = u16>) -> Self {
        let mut list = Self::new_zeroed();
        let mut count = 0;
        for (place, cntlid) in list.cntlids.iter_mut().zip(cntlids) {
            *place = U16::new(cntlid);
            count += 1;
        }
        list.count = U16::new(count);
        list
    }

    /// The identifiers; a count beyond the list's end is cut.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.cntlids
            .iter()
            .map(|cntlid| cntlid.get())
            .take(usize::from(self.count.get()))
    }
}

impl fmt::Debug for ControllerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// I/O command set combinations (CNS 1Ch): up to 512 vectors, each a set of command sets that may be enabled
/// together. Base 2.0 §5.17.2.21.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IoCommandSets {
    /// Vectors: bit n stands for the command set whose CSI is n.
    pub vectors: [U64; 512],
}
const _: () = assert!(size_of::<IoCommandSets>() == DATA_SIZE);

impl IoCommandSets {
    /// One combination: the NVM command set alone.
    pub fn nvm_only() -> Self {
        let mut sets = Self::new_zeroed();
        sets.vectors[0] = U64::new(1 << Csi::NVM.0);
        sets
    }

    /// The index of a vector that includes every one of these command sets, or `None`. Feature 19h selects by it.
    pub fn find(&self, sets: &[Csi]) -> Option<usize> {
        let wanted = sets
            .iter()
            .try_fold(0_u64, |bits, csi| Some(bits | 1_u64.checked_shl(csi.0.into())?))?;
        self.vectors
            .iter()
            .position(|vector| vector.get() != 0 && vector.get() & wanted == wanted)
    }
}

impl fmt::Debug for IoCommandSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self
            .vectors
            .iter()
            .map(|vector| vector.get())
            .filter(|&vector| vector != 0);
        f.debug_list().entries(used).finish()
    }
}
