//! Commands that change what a controller has: namespaces and their formats, and the resources of virtual functions.

use homi_queue::Command;
use homi_queue::Completion;
use homi_spec::command::AdminOpcode;
use homi_spec::feature::{FeatureId, SetFeatures};
use homi_spec::identify::{Cns, ControllerList, Identify, IdentifyNamespace, NamespaceList, nmic};
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::manage::{
    FormatNvm, NamespaceAttachment, NamespaceManagement, PrimaryCapabilities, ResourceType,
    SecondaryController, SecondaryControllers, VirtualizationAction, VirtualizationManagement,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::controller::Controller;
use crate::error::NvmeError;
use crate::transact::{AdminData, Via};

/// A namespace to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespace {
    /// Size in logical blocks.
    pub blocks: u64,
    /// Capacity in logical blocks: the size, unless the namespace is thin.
    pub capacity: u64,
    /// Index of the LBA format.
    pub format: u8,
    /// Several controllers may attach it at the same time.
    pub shared: bool,
}

/// Whether a command destroys data or changes what others see.
fn is_destructive(command: &Command) -> bool {
    matches!(
        AdminOpcode(command.0.opcode),
        AdminOpcode::NAMESPACE_MANAGEMENT
            | AdminOpcode::NAMESPACE_ATTACHMENT
            | AdminOpcode::FORMAT_NVM
            | AdminOpcode::SANITIZE
            | AdminOpcode::FIRMWARE_COMMIT
            | AdminOpcode::FIRMWARE_IMAGE_DOWNLOAD
            | AdminOpcode::SECURITY_SEND
            | AdminOpcode::CAPACITY_MANAGEMENT
            | AdminOpcode::LOCKDOWN
    )
}

/// What the driver does itself, and what does it.
fn is_reserved(command: &Command) -> Option<&'static str> {
    match AdminOpcode(command.0.opcode) {
        AdminOpcode::CREATE_IO_CQ | AdminOpcode::CREATE_IO_SQ => Some("Controller::open_queue"),
        AdminOpcode::DELETE_IO_CQ | AdminOpcode::DELETE_IO_SQ => Some("the queue's drop"),
        AdminOpcode::ASYNC_EVENT_REQUEST => Some("Controller::take_event"),
        AdminOpcode::ABORT => Some("Options::command_timeout"),
        AdminOpcode::DOORBELL_BUFFER_CONFIG => Some("Options::shadow_doorbells"),
        AdminOpcode::SET_FEATURES => {
            let set = SetFeatures::from_sqe(&command.0)?;
            match set.fid {
                FeatureId::NUMBER_OF_QUEUES => Some("Options::queues"),
                FeatureId::ASYNC_EVENT => Some("Controller::take_event"),
                FeatureId::ARBITRATION => Some("Options::arbitration"),
                // Its data would be given to the controller for good.
                FeatureId::HOST_MEMORY_BUFFER => Some("nothing: a host memory buffer is not supported"),
                _ => None,
            }
        }
        _ => None,
    }
}

impl Controller {
    /// Executes an admin command and returns its completion, whatever its status. The command's identifier, data pointer and metadata pointer
    /// are ignored. Waits for the controller; several threads may do so at the same time.
    ///
    /// # Errors
    /// [`NvmeError::Reserved`] for commands that the driver issues itself, [`NvmeError::Destructive`] for those that were not allowed,
    /// [`NvmeError::TooLong`] for data beyond the controller's limit, and whatever becomes of the controller meanwhile.
    pub fn admin(&self, command: Command, data: AdminData<'_>) -> Result<Completion, NvmeError> {
        let opcode = AdminOpcode(command.0.opcode);
        if let Some(instead) = is_reserved(&command) {
            return Err(NvmeError::Reserved {
                command: opcode,
                instead,
            });
        }
        if is_destructive(&command) {
            self.allow(opcode)?;
        }
        let max = self.info()?.mdts;
        let len = match &data {
            AdminData::None => 0,
            AdminData::ToController(bytes) => bytes.len(),
            AdminData::FromController(bytes) => bytes.len(),
        } as u64;
        if let Some(max) = max
            && len > max
        {
            return Err(NvmeError::TooLong { len, max });
        }
        let mut sqe = command.0;
        sqe.mptr = 0.into();
        sqe.set_prp(0, 0);
        self.inner().transact(&mut Via::Unlocked, sqe, data)
    }

    fn allow(&self, command: AdminOpcode) -> Result<(), NvmeError> {
        if self.inner().options.destructive {
            Ok(())
        } else {
            Err(NvmeError::Destructive { command })
        }
    }

    fn run(&self, sqe: homi_spec::Sqe, data: AdminData<'_>) -> Result<Completion, NvmeError> {
        self.inner().command(&mut Via::Unlocked, sqe, data)
    }

    /// A structure of Identify, of up to 4096 bytes.
    ///
    /// # Errors
    /// [`NvmeError::Status`] if the controller refuses, and whatever becomes of the controller meanwhile.
    pub fn identify<T: FromBytes>(&self, request: Identify) -> Result<T, NvmeError> {
        self.inner().identify_page(&mut Via::Unlocked, request)
    }

    /// The start of a log page. Reading a page without `retain` re-arms the events that announce it.
    ///
    /// # Errors
    /// [`NvmeError::Status`] if the controller refuses, [`NvmeError::TooLong`] for a length that no log page has.
    pub fn log_page(&self, log: LogId, nsid: u32, retain: bool, to: &mut [u8]) -> Result<(), NvmeError> {
        let len = to.len() as u64;
        let mut get = GetLogPage::new(log, len).map_err(|_| NvmeError::TooLong { len, max: 1 << 34 })?;
        get.nsid = nsid;
        get.rae = retain;
        let command = Command(get.to_sqe(0));
        let completion = self.admin(command, AdminData::FromController(to))?;
        if completion.is_success() {
            Ok(())
        } else {
            Err(NvmeError::Status {
                command: AdminOpcode::GET_LOG_PAGE,
                status: completion.status,
            })
        }
    }

    /// Looks for namespaces again, after an event or a change. Queues notice with their next commit.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn rescan(&self) -> Result<(), NvmeError> {
        let namespaces = self.inner().scan(&mut Via::Unlocked)?;
        self.inner().set_namespaces(namespaces);
        Ok(())
    }

    /// The namespaces that changed since this was asked last (log page 04h), `None` for too many to list; re-arms the event.
    ///
    /// # Errors
    /// As for [`log_page`](Self::log_page).
    pub fn changed_namespaces(&self) -> Result<Option<Vec<u32>>, NvmeError> {
        let mut list = NamespaceList::new([]);
        self.log_page(LogId::CHANGED_NAMESPACES, 0, false, list.as_mut_bytes())?;
        let changed: Vec<u32> = list.iter().collect();
        Ok((changed.first() != Some(&u32::MAX)).then_some(changed))
    }

    /// Creates a namespace, attached to no controller, and returns its identifier.
    ///
    /// # Errors
    /// [`NvmeError::Destructive`] without [`Options::destructive`](crate::Options::destructive), [`NvmeError::Status`].
    pub fn create_namespace(&self, new: &NewNamespace) -> Result<u32, NvmeError> {
        self.allow(AdminOpcode::NAMESPACE_MANAGEMENT)?;
        let page = IdentifyNamespace {
            nsze: new.blocks.into(),
            ncap: new.capacity.into(),
            flbas: new.format & 0xf,
            nmic: if new.shared { nmic::SHARED } else { 0 },
            ..IdentifyNamespace::default()
        };
        let create = NamespaceManagement::Create { csi: 0 }.to_sqe(0);
        let completion = self.run(create, AdminData::ToController(page.as_bytes()))?;
        Ok(completion.dw0())
    }

    /// Deletes a namespace.
    ///
    /// # Errors
    /// As for [`create_namespace`](Self::create_namespace).
    pub fn delete_namespace(&self, nsid: u32) -> Result<(), NvmeError> {
        self.allow(AdminOpcode::NAMESPACE_MANAGEMENT)?;
        self.run(NamespaceManagement::Delete { nsid }.to_sqe(0), AdminData::None)?;
        self.rescan()
    }

    /// Attaches a namespace to controllers of the subsystem.
    ///
    /// # Errors
    /// As for [`create_namespace`](Self::create_namespace).
    pub fn attach_namespace(&self, nsid: u32, controllers: &[u16]) -> Result<(), NvmeError> {
        self.attachment(nsid, NamespaceAttachment::ATTACH, controllers)
    }

    /// Detaches a namespace from controllers of the subsystem.
    ///
    /// # Errors
    /// As for [`create_namespace`](Self::create_namespace).
    pub fn detach_namespace(&self, nsid: u32, controllers: &[u16]) -> Result<(), NvmeError> {
        self.attachment(nsid, NamespaceAttachment::DETACH, controllers)
    }

    fn attachment(&self, nsid: u32, sel: u8, controllers: &[u16]) -> Result<(), NvmeError> {
        self.allow(AdminOpcode::NAMESPACE_ATTACHMENT)?;
        let list = ControllerList::new(controllers.iter().copied());
        let command = NamespaceAttachment { nsid, sel }.to_sqe(0);
        self.run(command, AdminData::ToController(list.as_bytes()))?;
        self.rescan()
    }

    /// Formats a namespace, which destroys its data. Waits as long as [`Options::admin_timeout`](crate::Options::admin_timeout) says, which
    /// may have to be longer for this.
    ///
    /// # Errors
    /// As for [`create_namespace`](Self::create_namespace).
    pub fn format(&self, format: FormatNvm) -> Result<(), NvmeError> {
        self.allow(AdminOpcode::FORMAT_NVM)?;
        self.run(format.to_sqe(0), AdminData::None)?;
        self.rescan()
    }

    /// The controllers of the subsystem.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn controllers(&self) -> Result<Vec<u16>, NvmeError> {
        let request = Identify {
            cns: Cns::CONTROLLERS,
            ..Identify::default()
        };
        let list: ControllerList = self.identify(request)?;
        Ok(list.iter().collect())
    }

    /// What a primary controller has for its virtual functions.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn primary_capabilities(&self) -> Result<PrimaryCapabilities, NvmeError> {
        self.identify(Identify {
            cns: Cns::PRIMARY_CAPABILITIES,
            ..Identify::default()
        })
    }

    /// The secondary controllers of this primary controller: one per virtual function.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn secondary_controllers(&self) -> Result<Vec<SecondaryController>, NvmeError> {
        let list: SecondaryControllers = self.identify(Identify {
            cns: Cns::SECONDARY_CONTROLLERS,
            ..Identify::default()
        })?;
        Ok(list.iter().copied().collect())
    }

    /// Assigns flexible resources to a secondary controller that is offline; returns how many it got.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn assign_resources(
        &self,
        cntlid: u16,
        resource: ResourceType,
        count: u16,
    ) -> Result<u32, NvmeError> {
        self.virtualization(VirtualizationAction::SECONDARY_ASSIGN, resource, cntlid, count)
    }

    /// Allots flexible resources to this primary controller itself, from its next reset on; returns how many.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn allot_resources(&self, resource: ResourceType, count: u16) -> Result<u32, NvmeError> {
        let own = self.info()?.identify.cntlid.get();
        self.virtualization(VirtualizationAction::PRIMARY_ALLOCATION, resource, own, count)
    }

    /// Brings a secondary controller online: its virtual function can be driven then. It needs queues and interrupts.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn bring_online(&self, cntlid: u16) -> Result<(), NvmeError> {
        self.virtualization(
            VirtualizationAction::SECONDARY_ONLINE,
            ResourceType::default(),
            cntlid,
            0,
        )?;
        Ok(())
    }

    /// Takes a secondary controller offline. Its resources stay assigned.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub fn take_offline(&self, cntlid: u16) -> Result<(), NvmeError> {
        self.virtualization(
            VirtualizationAction::SECONDARY_OFFLINE,
            ResourceType::default(),
            cntlid,
            0,
        )?;
        Ok(())
    }

    fn virtualization(
        &self,
        action: VirtualizationAction,
        resource: ResourceType,
        cntlid: u16,
        count: u16,
    ) -> Result<u32, NvmeError> {
        let command = VirtualizationManagement {
            action,
            resource,
            cntlid,
            count,
        };
        Ok(self.run(command.to_sqe(0), AdminData::None)?.dw0())
    }
}
