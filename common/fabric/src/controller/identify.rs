//! Identify: what controllers and namespaces say about themselves. Base 2.0 §5.17, NVM Command Set 1.0 §4.1.5.
//!
//! Not implemented, and refused as invalid fields: NVM sets, primary and secondary controllers, UUID lists, domains,
//! endurance groups, and structures of command sets other than NVM.

use super::config::{NamespaceConfig, NodeIdentity, SubsystemConfig, TransportKind};
use super::keep_alive::GRANULARITY_MS;
use super::properties::VERSION;
use super::refusal::Refusal;
use super::view::ERROR_LOG_ENTRIES;
use super::{events, ids};
use homi_spec::Status;
use homi_spec::command::NSID_BROADCAST;
use homi_spec::identify::{
    Cns, ControllerList, ControllerType, Csi, Identify, IdentifyController, IdentifyNamespace,
    IndependentNamespace, IoCommandSets, LbaFormat, NamespaceId, NamespaceList, NvmIdentifyController,
    NvmIdentifyNamespace, cmic, ctratt, dlfeat, lpa, nmic, nsfeat, oaes, oncs, sgls, vwc,
};
use homi_spec::{Nqn, U16, U32, U64};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U128;

/// Abort commands that a controller executes at once: ACL + 1.
pub(super) const ABORT_LIMIT: usize = 4;

/// Bytes of the fields of Identify, for the error log.
const NSID_BYTE: u8 = 4;
const CNS_BYTE: u8 = 40;
const CSI_BYTE: u8 = 47;

/// What an Identify is answered from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identified<'a> {
    pub(super) node: &'a NodeIdentity,
    /// `None`: a discovery controller.
    pub(super) subsystem: Option<&'a SubsystemConfig>,
    pub(super) controller_id: u16,
    /// Transport of the port that the host came through.
    pub(super) transport: TransportKind,
    /// In-capsule data of that port in bytes.
    pub(super) in_capsule: u32,
    /// Identifiers of the subsystem's controllers, ascending.
    pub(super) controllers: &'a [u16],
}

impl Identified<'_> {
    /// The 4096 bytes that the command asks for.
    pub(super) fn page(&self, command: &Identify) -> Result<Vec<u8>, Refusal> {
        if command.cns == Cns::CONTROLLER {
            return Ok(self.controller().as_bytes().to_vec());
        }
        // Base 2.0 §3.1.2.3: a discovery controller has no namespaces and no command set.
        let subsystem = self
            .subsystem
            .ok_or(Refusal::at(Status::INVALID_FIELD, CNS_BYTE))?;
        let active =
            || find(subsystem, command.nsid).ok_or(Refusal::at(Status::INVALID_NAMESPACE, NSID_BYTE));
        Ok(match command.cns {
            Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE => {
                check_range(subsystem, command.nsid)?;
                let page =
                    find(subsystem, command.nsid).map(|namespace| namespace_page(subsystem, namespace));
                page.unwrap_or_default().as_bytes().to_vec()
            }
            Cns::ACTIVE_NAMESPACES | Cns::ALLOCATED_NAMESPACES => namespaces_after(subsystem, command.nsid)?,
            Cns::IO_ACTIVE_NAMESPACES | Cns::IO_ALLOCATED_NAMESPACES => {
                check_command_set(command.csi)?;
                namespaces_after(subsystem, command.nsid)?
            }
            Cns::NAMESPACE_DESCRIPTORS => descriptors(subsystem, active()?),
            Cns::IO_NAMESPACE | Cns::IO_ALLOCATED_NAMESPACE => {
                check_command_set(command.csi)?;
                check_range(subsystem, command.nsid)?;
                // No protection information: all zeroes, as for an inactive namespace.
                NvmIdentifyNamespace::default().as_bytes().to_vec()
            }
            Cns::IO_CONTROLLER => {
                check_command_set(command.csi)?;
                // No limits below those of the fields themselves.
                NvmIdentifyController::default().as_bytes().to_vec()
            }
            Cns::INDEPENDENT_NAMESPACE => {
                check_range(subsystem, command.nsid)?;
                let page = find(subsystem, command.nsid).map(|namespace| independent(subsystem, namespace));
                page.unwrap_or_default().as_bytes().to_vec()
            }
            Cns::NAMESPACE_CONTROLLERS => {
                active()?;
                self.controllers_from(command.cntid)
            }
            Cns::CONTROLLERS => self.controllers_from(command.cntid),
            Cns::IO_COMMAND_SETS => {
                // FFFFh asks about the controller that processes the command.
                if command.cntid != 0xffff && command.cntid != self.controller_id {
                    return Err(Refusal::at(Status::INVALID_FIELD, CNS_BYTE + 2));
                }
                IoCommandSets::nvm_only().as_bytes().to_vec()
            }
            _ => return Err(Refusal::at(Status::INVALID_FIELD, CNS_BYTE)),
        })
    }

    fn controllers_from(&self, first: u16) -> Vec<u8> {
        let controllers = self.controllers.iter().copied().filter(|id| *id >= first);
        ControllerList::new(controllers).as_bytes().to_vec()
    }

    fn controller(&self) -> IdentifyController {
        let mut page = self.common();
        match self.subsystem {
            Some(subsystem) => self.io_controller(&mut page, subsystem),
            None => {
                page.cntrltype = ControllerType::DISCOVERY;
                page.oaes = U32::new(oaes::DISCOVERY_LOG);
                page.lpa = lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::MISCELLANEOUS;
                page.subnqn = Nqn::discovery().to_field();
            }
        }
        page
    }

    /// What controllers of both kinds say.
    fn common(&self) -> IdentifyController {
        let mut page = IdentifyController::default();
        // The text was checked when it was configured, so it fits and is ASCII.
        let _ = page.set_firmware(&self.node.firmware);
        page.cntlid = U16::new(self.controller_id);
        page.ver = U32::new(VERSION.0);
        page.ctratt = U32::new(ctratt::HOST_ID_128 | ctratt::TRAFFIC_BASED_KEEP_ALIVE);
        page.mdts = u8::try_from(self.node.max_transfer.ilog2().saturating_sub(12)).unwrap_or(0);
        page.acl_z = zero_based(ABORT_LIMIT);
        page.aerl_z = zero_based(events::REQUEST_LIMIT);
        page.elpe_z = zero_based(ERROR_LOG_ENTRIES);
        // One slot, read-only.
        page.frmw = 1 << 1 | 1;
        page.kas = U16::new(u16::try_from(GRANULARITY_MS / 100).unwrap_or(1));
        page.maxcmd = U16::new(u16::try_from(self.node.max_queue_entries).unwrap_or(u16::MAX));
        page.sgls = U32::new(
            sgls::SUPPORTED
                | sgls::OFFSET_ADDRESS
                | match self.transport {
                    TransportKind::Tcp => sgls::TRANSPORT,
                    TransportKind::Rdma(_) => sgls::KEYED,
                },
        );
        // Capsules in units of 16 bytes: 64 of the entry, then in-capsule data at once.
        page.ioccsz = U32::new((64 + self.in_capsule) / 16);
        page.iorcsz = U32::new(1);
        page.msdbd = 1;
        page
    }

    fn io_controller(&self, page: &mut IdentifyController, subsystem: &SubsystemConfig) {
        page.vid = U16::new(self.node.vendor_id);
        page.ssvid = U16::new(self.node.subsystem_vendor_id);
        page.ieee = self.node.ieee_oui;
        // Checked when they were configured.
        let _ = page.set_serial(&subsystem.serial);
        let _ = page.set_model(&subsystem.model);
        page.rab = 6;
        page.cmic = cmic::MULTI_PORT | cmic::MULTI_CONTROLLER;
        page.cntrltype = ControllerType::IO;
        page.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE);
        page.lpa = lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::MISCELLANEOUS;
        page.sqes = 0x66;
        page.cqes = 0x44;
        page.nn = U32::new(subsystem.max_nsid);
        page.mnan = U32::new(subsystem.max_nsid);
        page.oncs = U16::new(
            oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES | oncs::SAVE_SELECT | oncs::VERIFY,
        );
        page.vwc = vwc::FLUSH_ALL_SUPPORTED
            | if subsystem.volatile_write_cache {
                vwc::PRESENT
            } else {
                0
            };
        page.subnqn = subsystem.nqn.to_field();
        // Disconnect of single I/O queues.
        page.ofcs = U16::new(1);
    }
}

/// The namespaces of a configuration are sorted when it is applied.
pub(super) fn find(subsystem: &SubsystemConfig, nsid: u32) -> Option<&NamespaceConfig> {
    let index = subsystem
        .namespaces
        .binary_search_by_key(&nsid, |namespace| namespace.nsid)
        .ok()?;
    subsystem.namespaces.get(index)
}

fn check_range(subsystem: &SubsystemConfig, nsid: u32) -> Result<(), Refusal> {
    // The broadcast identifier stands for properties common to all namespaces, which only namespace management needs.
    if (1..=subsystem.max_nsid).contains(&nsid) {
        return Ok(());
    }
    Err(Refusal::at(Status::INVALID_NAMESPACE, NSID_BYTE))
}

fn check_command_set(csi: Csi) -> Result<(), Refusal> {
    if csi == Csi::NVM {
        return Ok(());
    }
    Err(Refusal::at(Status::INVALID_FIELD, CSI_BYTE))
}

fn namespaces_after(subsystem: &SubsystemConfig, nsid: u32) -> Result<Vec<u8>, Refusal> {
    // Base 2.0 §5.17.2.2: these two have no successor.
    if nsid >= NSID_BROADCAST - 1 {
        return Err(Refusal::at(Status::INVALID_NAMESPACE, NSID_BYTE));
    }
    let nsids = subsystem
        .namespaces
        .iter()
        .map(|namespace| namespace.nsid)
        .filter(|id| *id > nsid);
    Ok(NamespaceList::new(nsids).as_bytes().to_vec())
}

fn namespace_page(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> IdentifyNamespace {
    let hints = &namespace.hints;
    let mut page = IdentifyNamespace::default();
    page.nsze = U64::new(namespace.blocks);
    page.ncap = page.nsze;
    page.nuse = page.nsze;
    page.nmic = nmic::SHARED;
    page.dlfeat = dlfeat::WRITE_ZEROES_DEALLOCATES;
    if namespace.deallocated_reads_zeroes {
        page.dlfeat |= dlfeat::READ_ZEROES;
    }
    page.noiob = U16::new(hints.boundary);
    page.nvmcap = U128::new(u128::from(namespace.blocks) * u128::from(namespace.block_size));
    let optimal = [
        (&mut page.npwg_z, hints.write_granularity),
        (&mut page.npwa_z, hints.write_alignment),
        (&mut page.npdg_z, hints.deallocate_granularity),
        (&mut page.npda_z, hints.deallocate_alignment),
        (&mut page.nows_z, hints.write_size),
    ];
    for (field_z, blocks) in optimal {
        if blocks != 0 {
            // At most 65536, which the configuration was held to.
            *field_z = U16::new(u16::try_from(blocks - 1).unwrap_or(u16::MAX));
            page.nsfeat = nsfeat::OPTIMAL_IO;
        }
    }
    page.nsattr = u8::from(namespace.read_only);
    page.nguid = nguid(subsystem, namespace);
    page.eui64 = eui64(subsystem, namespace);
    if let Some(format) = page.lbaf.first_mut() {
        *format = LbaFormat::plain(u8::try_from(namespace.block_size.trailing_zeros()).unwrap_or(9));
    }
    page
}

fn independent(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> IndependentNamespace {
    IndependentNamespace {
        nsfeat: if subsystem.volatile_write_cache {
            0
        } else {
            IndependentNamespace::NO_VOLATILE_CACHE
        },
        nmic: nmic::SHARED,
        nsattr: u8::from(namespace.read_only),
        nstat: IndependentNamespace::READY,
        ..IndependentNamespace::default()
    }
}

fn descriptors(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> Vec<u8> {
    let mut page = vec![0; homi_spec::identify::DATA_SIZE];
    let ids = [
        NamespaceId::Eui64(eui64(subsystem, namespace)),
        NamespaceId::Nguid(nguid(subsystem, namespace)),
        NamespaceId::Uuid(uuid(subsystem, namespace)),
        NamespaceId::Csi(Csi::NVM),
    ];
    let mut at = 0;
    for id in ids {
        at += page.get_mut(at..).and_then(|rest| id.write(rest)).unwrap_or(0);
    }
    page
}

pub(super) fn uuid(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> [u8; 16] {
    namespace
        .uuid
        .unwrap_or_else(|| ids::uuid(&subsystem.nqn, namespace.nsid))
}

pub(super) fn nguid(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> [u8; 16] {
    namespace
        .nguid
        .unwrap_or_else(|| ids::uuid(&subsystem.nqn, namespace.nsid))
}

pub(super) fn eui64(subsystem: &SubsystemConfig, namespace: &NamespaceConfig) -> [u8; 8] {
    namespace
        .eui64
        .unwrap_or_else(|| ids::eui64(&subsystem.nqn, namespace.nsid))
}

fn zero_based(count: usize) -> u8 {
    u8::try_from(count.saturating_sub(1)).unwrap_or(u8::MAX)
}
