//! Identify: the structures that say what the model is. Base 2.0 §5.17, NVM Command Set 1.0 §4.1.5.

use homi_spec::command::{NSID_BROADCAST, Sqe};
use homi_spec::identify::{
    Cns, ControllerList, ControllerType, Csi, Identify, IdentifyController, IdentifyNamespace,
    IndependentNamespace, IoCommandSets, LbaFormat, NamespaceId, NamespaceList, NvmIdentifyController,
    NvmIdentifyNamespace, cmic, dlfeat, lpa, nmic, oacs, oaes, oncs, sgls, vwc,
};
use homi_spec::{Status, U16, U32, U64, U128, text};
use zerocopy::IntoBytes;

use crate::config::{SglSupport, SoftConfig};
use crate::controller::Controller;
use crate::media::Namespace;
use crate::shared::Shared;

/// Block sizes that namespaces can be formatted with, as powers of two. The index is the format's.
pub(crate) const FORMATS: [u8; 5] = [9, 12, 13, 14, 16];

impl Controller {
    pub(crate) fn cntlid(function: u16) -> u16 {
        function
    }

    pub(crate) fn identify(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = Identify::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let function = self.function;
        let bad_field = Status::INVALID_FIELD.with_dnr();
        let active = |from: u32| {
            let above = shared.namespaces.range(from.saturating_add(1)..);
            NamespaceList::new(
                above
                    .filter(|(_, namespace)| namespace.attached.contains(&function))
                    .map(|(nsid, _)| *nsid),
            )
        };
        let managed = function == 0;
        let data: Vec<u8> = match command.cns {
            Cns::NAMESPACE if command.nsid == NSID_BROADCAST => {
                common_namespace(&shared.config).as_bytes().to_vec()
            }
            Cns::NAMESPACE => {
                shared.check_nsid(command.nsid)?;
                match shared.attached(function, command.nsid) {
                    Ok(namespace) => identify_namespace(namespace).as_bytes().to_vec(),
                    // Inactive: zeroes.
                    Err(_) => IdentifyNamespace::default().as_bytes().to_vec(),
                }
            }
            Cns::CONTROLLER => self.identify_controller(shared)?.as_bytes().to_vec(),
            Cns::ACTIVE_NAMESPACES if command.nsid < 0xffff_fffe => active(command.nsid).as_bytes().to_vec(),
            Cns::NAMESPACE_DESCRIPTORS => {
                shared.check_nsid(command.nsid)?;
                descriptors(shared.attached(function, command.nsid)?)
            }
            Cns::IO_NAMESPACE if command.csi == Csi::NVM => {
                shared.check_nsid(command.nsid)?;
                NvmIdentifyNamespace::default().as_bytes().to_vec()
            }
            Cns::IO_CONTROLLER if command.csi == Csi::NVM => {
                NvmIdentifyController::default().as_bytes().to_vec()
            }
            Cns::IO_ACTIVE_NAMESPACES if command.csi == Csi::NVM && command.nsid < 0xffff_fffe => {
                active(command.nsid).as_bytes().to_vec()
            }
            Cns::INDEPENDENT_NAMESPACE => {
                shared.check_nsid(command.nsid)?;
                let mut page = IndependentNamespace::default();
                if let Ok(namespace) = shared.attached(function, command.nsid) {
                    page.nmic = if namespace.shared { nmic::SHARED } else { 0 };
                    page.nsattr = u8::from(namespace.write_protected);
                    page.nstat = IndependentNamespace::READY;
                }
                page.as_bytes().to_vec()
            }
            Cns::ALLOCATED_NAMESPACES if managed && command.nsid < 0xffff_fffe => {
                let above = shared.namespaces.range(command.nsid.saturating_add(1)..);
                NamespaceList::new(above.map(|(nsid, _)| *nsid))
                    .as_bytes()
                    .to_vec()
            }
            Cns::ALLOCATED_NAMESPACE if managed => {
                shared.check_nsid(command.nsid)?;
                let found = shared.namespaces.get(&command.nsid);
                found
                    .map_or_else(IdentifyNamespace::default, identify_namespace)
                    .as_bytes()
                    .to_vec()
            }
            Cns::NAMESPACE_CONTROLLERS if managed => {
                shared.check_nsid(command.nsid)?;
                let found = shared.namespaces.get(&command.nsid);
                let attached = found.into_iter().flat_map(|namespace| &namespace.attached);
                let cntlids = attached
                    .map(|function| Self::cntlid(*function))
                    .filter(|cntlid| *cntlid >= command.cntid);
                ControllerList::new(cntlids).as_bytes().to_vec()
            }
            Cns::CONTROLLERS if managed => {
                let functions = 0..=shared.sriov.enabled;
                let cntlids = functions
                    .map(Self::cntlid)
                    .filter(|cntlid| *cntlid >= command.cntid);
                ControllerList::new(cntlids).as_bytes().to_vec()
            }
            Cns::PRIMARY_CAPABILITIES if managed && shared.sriov.config.is_some() => {
                shared.sriov.capabilities(&shared.config)
            }
            Cns::SECONDARY_CONTROLLERS if managed && shared.sriov.config.is_some() => {
                shared.sriov.list(command.cntid)
            }
            Cns::IO_COMMAND_SETS => IoCommandSets::nvm_only().as_bytes().to_vec(),
            _ => return Err(bad_field),
        };
        self.give(shared, sqe, &data)?;
        Ok(0)
    }

    fn identify_controller(&self, shared: &Shared) -> Result<IdentifyController, Status> {
        let config = &shared.config;
        let mut page = IdentifyController::default();
        let broken = |_| Status::INTERNAL_ERROR;
        page.vid = U16::new(config.identity.vendor);
        page.ssvid = U16::new(config.identity.subsystem_vendor);
        page.set_serial(&config.serial).map_err(broken)?;
        page.set_model(&config.model).map_err(broken)?;
        page.set_firmware(&config.firmware).map_err(broken)?;
        text::set_nul_padded(&mut page.subnqn, &config.subnqn).map_err(broken)?;
        page.rab = 2;
        page.ieee = [0x00, 0x54, 0x52];
        if config.sriov.is_some() {
            page.cmic = cmic::MULTI_CONTROLLER;
            if self.function != 0 {
                page.cmic |= cmic::VIRTUAL_FUNCTION;
            }
        }
        page.mdts = config.mdts;
        page.cntlid = U16::new(Self::cntlid(self.function));
        page.ver = U32::new(config.version.0);
        page.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE);
        page.cntrltype = ControllerType::IO;
        let mut admin = 0;
        if self.function == 0 {
            admin |= oacs::FORMAT | oacs::NAMESPACE_MANAGEMENT;
            if config.sriov.is_some() {
                admin |= oacs::VIRTUALIZATION;
            }
        }
        if config.doorbell_buffer {
            admin |= oacs::DOORBELL_BUFFER;
        }
        page.oacs = U16::new(admin);
        page.acl_z = config.acl_z;
        page.aerl_z = config.aerl_z;
        page.frmw = 0b0011;
        page.lpa = lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::MISCELLANEOUS;
        // One below the number of entries, which is 64.
        page.elpe_z = 63;
        page.wctemp = U16::new(343);
        page.cctemp = U16::new(373);
        page.tnvmcap = U128::new(u128::from(config.capacity));
        page.unvmcap = U128::new(u128::from(shared.free_capacity()));
        page.sqes = 0x66;
        page.cqes = 0x44;
        page.nn = U32::new(config.max_namespaces);
        page.mnan = U32::new(config.max_namespaces);
        page.oncs = U16::new(
            oncs::COMPARE
                | oncs::WRITE_UNCORRECTABLE
                | oncs::DATASET_MANAGEMENT
                | oncs::WRITE_ZEROES
                | oncs::SAVE_SELECT
                | oncs::VERIFY,
        );
        page.nwpc = 1;
        page.vwc = vwc::FLUSH_ALL_SUPPORTED | if config.volatile_cache { vwc::PRESENT } else { 0 };
        page.sgls = U32::new(match config.sgl {
            SglSupport::None => 0,
            SglSupport::Bytes => sgls::SUPPORTED | bucket(config),
            SglSupport::Dwords => sgls::SUPPORTED_DWORD | bucket(config),
        });
        if let Some(power) = page.psd.first_mut() {
            power.max_power = U16::new(900);
        }
        Ok(page)
    }
}

fn bucket(config: &SoftConfig) -> u32 {
    if config.bit_buckets { sgls::BIT_BUCKET } else { 0 }
}

/// What all namespaces have in common.
fn common_namespace(_: &SoftConfig) -> IdentifyNamespace {
    let mut page = IdentifyNamespace::default();
    for (format, lbads) in page.lbaf.iter_mut().zip(FORMATS) {
        *format = LbaFormat::plain(lbads);
    }
    // Few.
    page.nlbaf_z = u8::try_from(FORMATS.len() - 1).unwrap_or(0);
    page.dlfeat = dlfeat::READ_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATES;
    page
}

pub(crate) fn identify_namespace(namespace: &Namespace) -> IdentifyNamespace {
    let mut page = IdentifyNamespace::default();
    for (format, lbads) in page.lbaf.iter_mut().zip(FORMATS) {
        *format = LbaFormat::plain(lbads);
    }
    page.nlbaf_z = u8::try_from(FORMATS.len() - 1).unwrap_or(0);
    let index = match FORMATS.iter().position(|lbads| *lbads == namespace.lbads) {
        Some(index) => index,
        None => {
            // A size that is none of the usual ones: a format of its own.
            page.nlbaf_z += 1;
            if let Some(format) = page.lbaf.get_mut(FORMATS.len()) {
                *format = LbaFormat::plain(namespace.lbads);
            }
            FORMATS.len()
        }
    };
    page.flbas = u8::try_from(index).unwrap_or(0);
    page.nsze = U64::new(namespace.blocks);
    page.ncap = U64::new(namespace.blocks);
    page.nuse = U64::new(namespace.blocks.min(namespace.media.used() >> namespace.lbads));
    page.nmic = if namespace.shared { nmic::SHARED } else { 0 };
    page.dlfeat = dlfeat::READ_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATES;
    page.nvmcap = U128::new(u128::from(namespace.size()));
    page.nsattr = u8::from(namespace.write_protected);
    page.nguid = nguid(namespace);
    page
}

/// Unique over the subsystem's life.
fn nguid(namespace: &Namespace) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = namespace.generation.to_be_bytes();
    let [i, j, k, l] = namespace.nsid.to_be_bytes();
    [0x53, 0x6f, 0x66, 0x74, a, b, c, d, e, f, g, h, i, j, k, l]
}

fn descriptors(namespace: &Namespace) -> Vec<u8> {
    let mut list = vec![0; homi_spec::identify::DATA_SIZE];
    let mut at = 0;
    for id in [NamespaceId::Nguid(nguid(namespace)), NamespaceId::Csi(Csi::NVM)] {
        if let Some(written) = list.get_mut(at..).and_then(|rest| id.write(rest)) {
            at += written;
        }
    }
    list
}
