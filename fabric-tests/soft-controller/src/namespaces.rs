//! Namespaces created, deleted, attached, detached and formatted. Base 2.0 §5.14, §5.20, §5.21, §8.11.

use std::collections::BTreeSet;

use homi_spec::Status;
use homi_spec::command::{NSID_BROADCAST, Sqe};
use homi_spec::event::AsyncEvent;
use homi_spec::feature::async_event;
use homi_spec::identify::{ControllerList, Csi, IdentifyNamespace, nmic};
use homi_spec::manage::{FormatNvm, NamespaceAttachment, NamespaceManagement};
use zerocopy::FromBytes;

use crate::config::NamespaceConfig;
use crate::controller::Controller;
use crate::identify::FORMATS;
use crate::media::Media;
use crate::shared::{Effect, Shared};

impl Controller {
    pub(crate) fn manage_namespace(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        match NamespaceManagement::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)? {
            NamespaceManagement::Create { csi } => self.create_namespace(shared, sqe, csi),
            NamespaceManagement::Delete { nsid } => {
                let nsids: Vec<u32> = if nsid == NSID_BROADCAST {
                    shared.namespaces.keys().copied().collect()
                } else {
                    shared.check_nsid(nsid)?;
                    if !shared.namespaces.contains_key(&nsid) {
                        return Err(Status::INVALID_FIELD.with_dnr());
                    }
                    vec![nsid]
                };
                for nsid in nsids {
                    if let Some(gone) = shared.namespaces.remove(&nsid) {
                        self.announce(shared, nsid, gone.attached);
                    }
                }
                Ok(0)
            }
            NamespaceManagement::Unknown { .. } => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    fn create_namespace(&mut self, shared: &mut Shared, sqe: &Sqe, csi: u8) -> Result<u64, Status> {
        if csi != Csi::NVM.0 || sqe.nsid.get() != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let mut data = vec![0; size_of::<IdentifyNamespace>()];
        self.take(shared, sqe, &mut data)?;
        let wanted = IdentifyNamespace::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        let format = wanted.flbas & 0xf;
        let lbads = FORMATS
            .get(usize::from(format))
            .filter(|_| wanted.flbas & !0xf == 0 && wanted.dps == 0)
            .copied()
            .ok_or(Status::INVALID_FORMAT.with_dnr())?;
        let (size, capacity) = (wanted.nsze.get(), wanted.ncap.get());
        if size == 0 || wanted.nmic & !nmic::SHARED != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if size != capacity {
            return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED.with_dnr());
        }
        let bytes = size.checked_mul(1 << lbads);
        if bytes.is_none_or(|bytes| bytes > shared.free_capacity()) {
            return Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY.with_dnr());
        }
        let nsid = (1..=shared.config.max_namespaces)
            .find(|nsid| !shared.namespaces.contains_key(nsid))
            .ok_or(Status::NAMESPACE_ID_UNAVAILABLE.with_dnr())?;
        let config = NamespaceConfig {
            blocks: size,
            lbads,
            attached: false,
            shared: wanted.nmic & nmic::SHARED != 0,
            write_protected: false,
        };
        shared.add_namespace(nsid, &config);
        Ok(u64::from(nsid))
    }

    pub(crate) fn attach_namespace(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = NamespaceAttachment::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        shared.check_nsid(command.nsid)?;
        if command.sel > NamespaceAttachment::DETACH || !shared.namespaces.contains_key(&command.nsid) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let mut data = vec![0; size_of::<ControllerList>()];
        self.take(shared, sqe, &mut data)?;
        let list = ControllerList::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        let cntlids: Vec<u16> = list.iter().collect();
        let ascending = cntlids
            .iter()
            .zip(cntlids.iter().skip(1))
            .all(|(low, high)| low < high);
        let last = shared.sriov.config.map_or(0, |config| config.functions);
        if cntlids.is_empty() || !ascending || cntlids.iter().any(|cntlid| *cntlid > last) {
            return Err(Status::CONTROLLER_LIST_INVALID.with_dnr());
        }
        let namespace = shared
            .namespaces
            .get_mut(&command.nsid)
            .ok_or(Status::INVALID_FIELD)?;
        // Controller identifiers are numbers of functions.
        if command.sel == NamespaceAttachment::ATTACH {
            if cntlids
                .iter()
                .any(|function| namespace.attached.contains(function))
            {
                return Err(Status::NAMESPACE_ALREADY_ATTACHED.with_dnr());
            }
            if !namespace.shared && namespace.attached.len() + cntlids.len() > 1 {
                return Err(Status::NAMESPACE_IS_PRIVATE.with_dnr());
            }
            namespace.attached.extend(&cntlids);
        } else {
            if cntlids
                .iter()
                .any(|function| !namespace.attached.contains(function))
            {
                return Err(Status::NAMESPACE_NOT_ATTACHED.with_dnr());
            }
            namespace.attached.retain(|function| !cntlids.contains(function));
        }
        self.announce(shared, command.nsid, cntlids.into_iter().collect());
        Ok(0)
    }

    pub(crate) fn format(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = FormatNvm::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let lbads = FORMATS
            .get(usize::from(command.format))
            .filter(|_| !command.metadata_extended && command.protection == 0)
            .copied()
            .ok_or(Status::INVALID_FORMAT.with_dnr())?;
        if command.secure_erase > 1 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let nsids: Vec<u32> = if command.nsid == NSID_BROADCAST {
            let attached = shared.namespaces.iter();
            attached
                .filter(|(_, namespace)| namespace.attached.contains(&self.function))
                .map(|(nsid, _)| *nsid)
                .collect()
        } else {
            shared.attached(self.function, command.nsid)?;
            vec![command.nsid]
        };
        for nsid in &nsids {
            if shared.attached(self.function, *nsid)?.write_protected {
                return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
            }
        }
        for nsid in nsids {
            let namespace = shared.attached_mut(self.function, nsid)?;
            let bytes = namespace.size();
            namespace.lbads = lbads;
            namespace.blocks = (bytes >> lbads).max(1);
            namespace.media = Media::default();
            namespace.bad.clear();
            let attached = namespace.attached.clone();
            self.announce(shared, nsid, attached);
        }
        Ok(0)
    }

    /// Has the other controllers of a namespace told that it changed.
    fn announce(&self, shared: &mut Shared, nsid: u32, functions: BTreeSet<u16>) {
        let functions = functions
            .into_iter()
            .filter(|function| *function != self.function)
            .collect();
        shared.effects.push(Effect::NamespaceChanged { nsid, functions });
    }

    /// A namespace changed without this controller's doing.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        if self.changed.len() < 1024 {
            self.changed.insert(nsid);
        }
        if self.features.wants(async_event::NAMESPACE_ATTRIBUTE) {
            self.event(AsyncEvent::NAMESPACE_ATTRIBUTE);
        }
    }
}
