//! Admin commands that change what a controller has: namespaces, formats, doorbell buffers, and the resources of virtual functions.
//! Base 2.0 §5.8, §5.14, §5.20, §5.21, §5.30, §8.26.
//!
//! Not implemented: the fields of protection information and zones, and secure erase beyond its value.

use crate::command::{AdminOpcode, Sqe};
use crate::macros::open_enum;
use core::fmt;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

fn sqe(opcode: AdminOpcode, nsid: u32, cid: u16) -> Sqe {
    let mut sqe = Sqe::new(opcode.0, nsid);
    sqe.cid = U16::new(cid);
    sqe
}

/// Namespace Management. Base 2.0 §5.20.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum NamespaceManagement {
    /// Create (SEL 0): the data is an [`IdentifyNamespace`](crate::identify::IdentifyNamespace) of which NSZE, NCAP, FLBAS, DPS and NMIC
    /// count; dword 0 of the completion is the new identifier.
    Create {
        /// I/O command set (CSI).
        csi: u8,
    },
    /// Delete (SEL 1) the namespace, or all with [`NSID_BROADCAST`](crate::command::NSID_BROADCAST).
    Delete {
        /// Namespace.
        nsid: u32,
    },
    /// A value of SEL that this crate does not know.
    Unknown {
        /// SEL, 4 bits.
        sel: u8,
    },
}

impl NamespaceManagement {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        if sqe.admin_opcode() != AdminOpcode::NAMESPACE_MANAGEMENT {
            return None;
        }
        Some(match (sqe.cdw10.get() & 0xf) as u8 {
            0 => Self::Create {
                csi: (sqe.cdw11.get() >> 24) as u8,
            },
            1 => Self::Delete { nsid: sqe.nsid.get() },
            sel => Self::Unknown { sel },
        })
    }

    /// The entry of this command; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let (nsid, sel, csi) = match self {
            Self::Create { csi } => (0, 0, csi),
            Self::Delete { nsid } => (nsid, 1, 0),
            Self::Unknown { sel } => (0, sel & 0xf, 0),
        };
        let mut sqe = sqe(AdminOpcode::NAMESPACE_MANAGEMENT, nsid, cid);
        sqe.cdw10 = U32::new(u32::from(sel));
        sqe.cdw11 = U32::new(u32::from(csi) << 24);
        sqe
    }
}

/// Namespace Attachment; its data is a [`ControllerList`](crate::identify::ControllerList). Base 2.0 §5.21.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct NamespaceAttachment {
    /// Namespace.
    pub nsid: u32,
    /// 0 attaches, 1 detaches (SEL, 4 bits).
    pub sel: u8,
}

impl NamespaceAttachment {
    /// SEL: attach to the controllers.
    pub const ATTACH: u8 = 0;
    /// SEL: detach from the controllers.
    pub const DETACH: u8 = 1;

    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        (sqe.admin_opcode() == AdminOpcode::NAMESPACE_ATTACHMENT).then(|| Self {
            nsid: sqe.nsid.get(),
            sel: (sqe.cdw10.get() & 0xf) as u8,
        })
    }

    /// The entry of this command; its data pointer is left to the caller.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = sqe(AdminOpcode::NAMESPACE_ATTACHMENT, self.nsid, cid);
        sqe.cdw10 = U32::new(u32::from(self.sel & 0xf));
        sqe
    }
}

/// Format NVM. Base 2.0 §5.14, NVM Command Set 1.0 §4.1.3.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct FormatNvm {
    /// Namespace, or [`NSID_BROADCAST`](crate::command::NSID_BROADCAST) for all that are attached.
    pub nsid: u32,
    /// Index of the format (LBAF): bits 3:0 and, from LBAFU, 5:4.
    pub format: u8,
    /// Metadata is part of the data (MSET).
    pub metadata_extended: bool,
    /// Protection information (PI), 3 bits.
    pub protection: u8,
    /// Protection information at the start of metadata (PIL).
    pub protection_first: bool,
    /// Secure erase (SES), 3 bits: 0 none, 1 user data, 2 cryptographic.
    pub secure_erase: u8,
}

impl FormatNvm {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let cdw10 = sqe.cdw10.get();
        (sqe.admin_opcode() == AdminOpcode::FORMAT_NVM).then(|| Self {
            nsid: sqe.nsid.get(),
            format: (cdw10 & 0xf) as u8 | ((cdw10 >> 8) & 0x30) as u8,
            metadata_extended: cdw10 & (1 << 4) != 0,
            protection: ((cdw10 >> 5) & 0x7) as u8,
            protection_first: cdw10 & (1 << 8) != 0,
            secure_erase: ((cdw10 >> 9) & 0x7) as u8,
        })
    }

    /// The entry of this command.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = sqe(AdminOpcode::FORMAT_NVM, self.nsid, cid);
        sqe.cdw10 = U32::new(
            u32::from(self.format & 0xf)
                | (u32::from(self.metadata_extended) << 4)
                | (u32::from(self.protection & 0x7) << 5)
                | (u32::from(self.protection_first) << 8)
                | (u32::from(self.secure_erase & 0x7) << 9)
                | ((u32::from(self.format) & 0x30) << 8),
        );
        sqe
    }
}

/// The Doorbell Buffer Config command: a page of shadow doorbells and one of event indices, laid out as the doorbell registers are.
/// Base 2.0 §5.8.
pub fn doorbell_buffer_config(doorbells: u64, events: u64, cid: u16) -> Sqe {
    let mut sqe = sqe(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0, cid);
    sqe.set_prp(doorbells, events);
    sqe
}

open_enum! {
    /// What Virtualization Management does (ACT), 4 bits. Base 2.0 §5.30.
    pub struct VirtualizationAction(u8) {
        /// Allots flexible resources to the primary controller, after its next reset.
        PRIMARY_ALLOCATION = 0x01;
        /// Takes a secondary controller offline.
        SECONDARY_OFFLINE = 0x07;
        /// Assigns flexible resources to a secondary controller that is offline.
        SECONDARY_ASSIGN = 0x08;
        /// Brings a secondary controller online.
        SECONDARY_ONLINE = 0x09;
    }
}

open_enum! {
    /// Which resources Virtualization Management is about (RT), 3 bits. Base 2.0 §5.30.
    pub struct ResourceType(u8) {
        /// Queues (VQ): a submission and a completion queue each.
        QUEUES = 0x00;
        /// Interrupt vectors (VI).
        INTERRUPTS = 0x01;
    }
}

/// Virtualization Management; dword 0 of the completion is the number of resources modified. Base 2.0 §5.30.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Default)]
pub struct VirtualizationManagement {
    /// What is done.
    pub action: VirtualizationAction,
    /// With which resources.
    pub resource: ResourceType,
    /// To which controller (CNTLID).
    pub cntlid: u16,
    /// How many resources (NR).
    pub count: u16,
}

impl VirtualizationManagement {
    /// The fields of this command; `None` when the opcode is another. Do not use on I/O queues.
    pub fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        (sqe.admin_opcode() == AdminOpcode::VIRTUALIZATION_MANAGEMENT).then_some(Self {
            action: VirtualizationAction((cdw10 & 0xf) as u8),
            resource: ResourceType(((cdw10 >> 8) & 0x7) as u8),
            cntlid: (cdw10 >> 16) as u16,
            count: (cdw11 & 0xffff) as u16,
        })
    }

    /// The entry of this command.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let mut sqe = sqe(AdminOpcode::VIRTUALIZATION_MANAGEMENT, 0, cid);
        sqe.cdw10 = U32::new(
            u32::from(self.action.0 & 0xf)
                | (u32::from(self.resource.0 & 0x7) << 8)
                | (u32::from(self.cntlid) << 16),
        );
        sqe.cdw11 = U32::new(u32::from(self.count));
        sqe
    }
}

/// Primary controller capabilities (CNS 14h): 4096 bytes. Base 2.0 §5.17.2.13.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PrimaryCapabilities {
    /// Controller identifier.
    pub cntlid: U16,
    /// Port identifier.
    pub portid: U16,
    /// Controller resource types: b0 queues, b1 interrupts.
    pub crt: u8,
    /// Reserved.
    pub reserved5: [u8; 27],
    /// Flexible queues in all (VQFRT).
    pub vqfrt: U32,
    /// Flexible queues assigned to secondary controllers (VQRFA).
    pub vqrfa: U32,
    /// Flexible queues allotted to the primary controller (VQRFAP).
    pub vqrfap: U16,
    /// Private queues of the primary controller (VQPRT).
    pub vqprt: U16,
    /// Most flexible queues of a secondary controller (VQFRSM).
    pub vqfrsm: U16,
    /// Preferred granularity of queues (VQGRAN).
    pub vqgran: U16,
    /// Reserved.
    pub reserved48: [u8; 16],
    /// Flexible interrupts in all (VIFRT).
    pub vifrt: U32,
    /// Flexible interrupts assigned to secondary controllers (VIRFA).
    pub virfa: U32,
    /// Flexible interrupts allotted to the primary controller (VIRFAP).
    pub virfap: U16,
    /// Private interrupts of the primary controller (VIPRT).
    pub viprt: U16,
    /// Most flexible interrupts of a secondary controller (VIFRSM).
    pub vifrsm: U16,
    /// Preferred granularity of interrupts (VIGRAN).
    pub vigran: U16,
    /// Reserved.
    pub reserved80: [u8; 4016],
}
const _: () = assert!(size_of::<PrimaryCapabilities>() == 4096);
const _: () = {
    assert!(offset_of!(PrimaryCapabilities, vqfrt) == 32);
    assert!(offset_of!(PrimaryCapabilities, vqgran) == 46);
    assert!(offset_of!(PrimaryCapabilities, vifrt) == 64);
    assert!(offset_of!(PrimaryCapabilities, vigran) == 78);
};

impl Default for PrimaryCapabilities {
    /// Zeroes.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl fmt::Debug for PrimaryCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimaryCapabilities")
            .field("cntlid", &self.cntlid.get())
            .field("crt", &self.crt)
            .field("vqfrt", &self.vqfrt.get())
            .field("vqrfa", &self.vqrfa.get())
            .field("vifrt", &self.vifrt.get())
            .field("virfa", &self.virfa.get())
            .finish_non_exhaustive()
    }
}

/// One secondary controller: 32 bytes. Base 2.0 §5.17.2.14, figure "Secondary Controller Entry".
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SecondaryController {
    /// Its identifier (SCID).
    pub scid: U16,
    /// Identifier of its primary controller (PCID).
    pub pcid: U16,
    /// State (SCS): b0 online.
    pub scs: u8,
    /// Reserved.
    pub reserved5: [u8; 3],
    /// Number of its virtual function, from 1 (VFN); 0 if it is none.
    pub vfn: U16,
    /// Flexible queues assigned (NVQ).
    pub nvq: U16,
    /// Flexible interrupts assigned (NVI).
    pub nvi: U16,
    /// Reserved.
    pub reserved14: [u8; 18],
}
const _: () = assert!(size_of::<SecondaryController>() == 32);
const _: () = assert!(offset_of!(SecondaryController, nvi) == 12);

impl SecondaryController {
    /// Whether it is online.
    pub const fn online(&self) -> bool {
        self.scs & 1 != 0
    }
}

/// Secondary controllers (CNS 15h): up to 127, ascending by identifier. Base 2.0 §5.17.2.14.
#[derive(Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SecondaryControllers {
    /// How many entries follow.
    pub count: u8,
    /// Reserved.
    pub reserved1: [u8; 31],
    /// Entries.
    pub entries: [SecondaryController; 127],
}
const _: () = assert!(size_of::<SecondaryControllers>() == 4096);

impl SecondaryControllers {
    /// A list of the first 127 entries given. The caller gives them ascending.
    pub fn new(entries: impl IntoIterator<Item = SecondaryController>) -> Self {
        let mut list = Self::new_zeroed();
        for (place, entry) in list.entries.iter_mut().zip(entries) {
            *place = entry;
            list.count += 1;
        }
        list
    }

    /// The entries; a count beyond the list's end is cut.
    pub fn iter(&self) -> impl Iterator<Item = &SecondaryController> + '_ {
        self.entries.iter().take(usize::from(self.count))
    }
}

impl fmt::Debug for SecondaryControllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn commands_are_read_as_they_are_written() {
        for command in [
            NamespaceManagement::Create { csi: 2 },
            NamespaceManagement::Delete { nsid: 7 },
            NamespaceManagement::Unknown { sel: 9 },
        ] {
            assert_eq!(NamespaceManagement::from_sqe(&command.to_sqe(3)), Some(command));
        }
        let attach = NamespaceAttachment {
            nsid: 5,
            sel: NamespaceAttachment::DETACH,
        };
        assert_eq!(NamespaceAttachment::from_sqe(&attach.to_sqe(3)), Some(attach));
        let format = FormatNvm {
            nsid: 1,
            format: 0x2a,
            metadata_extended: true,
            protection: 5,
            protection_first: true,
            secure_erase: 2,
        };
        let sqe = format.to_sqe(9);
        assert_eq!(FormatNvm::from_sqe(&sqe), Some(format));
        // LBAFL 3:0, MSET 4, PI 7:5, PIL 8, SES 11:9, LBAFU 13:12.
        assert_eq!(sqe.cdw10.get(), 0xa | 1 << 4 | 5 << 5 | 1 << 8 | 2 << 9 | 2 << 12);
        let manage = VirtualizationManagement {
            action: VirtualizationAction::SECONDARY_ASSIGN,
            resource: ResourceType::INTERRUPTS,
            cntlid: 0x1234,
            count: 7,
        };
        let sqe = manage.to_sqe(9);
        assert_eq!(VirtualizationManagement::from_sqe(&sqe), Some(manage));
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0x1234_0108, 7));
        assert_eq!(FormatNvm::from_sqe(&sqe), None);
        assert_eq!(NamespaceManagement::from_sqe(&sqe), None);
        assert_eq!(NamespaceAttachment::from_sqe(&sqe), None);
        let config = doorbell_buffer_config(0x1000, 0x2000, 1);
        assert_eq!((config.prp1(), config.prp2()), (0x1000, 0x2000));
        assert_eq!(VirtualizationManagement::from_sqe(&config), None);
    }

    #[test]
    fn a_count_beyond_the_list_is_cut() {
        let entry = SecondaryController {
            scs: 1,
            ..SecondaryController::default()
        };
        let mut list = SecondaryControllers::new([entry; 200]);
        assert_eq!(list.count, 127);
        list.count = 255;
        assert_eq!(list.iter().filter(|entry| entry.online()).count(), 127);
    }
}
