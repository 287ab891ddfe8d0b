//! Primary and secondary controllers: who has which flexible resources, and who is online. Base 2.0 §8.26.

use homi_spec::command::Sqe;
use homi_spec::manage::{
    PrimaryCapabilities, ResourceType, SecondaryController, SecondaryControllers, VirtualizationAction,
    VirtualizationManagement,
};
use homi_spec::{Status, U16, U32};
use zerocopy::IntoBytes;

use crate::config::{SoftConfig, SriovConfig};
use crate::controller::Controller;
use crate::shared::{Effect, Shared};

/// Resources and state of one secondary controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Secondary {
    pub(crate) online: bool,
    pub(crate) queues: u16,
    pub(crate) vectors: u16,
}

#[derive(Debug)]
pub(crate) struct Sriov {
    pub(crate) config: Option<SriovConfig>,
    /// How many virtual functions are enabled.
    pub(crate) enabled: u16,
    /// By function, less one.
    secondaries: Vec<Secondary>,
}

impl Sriov {
    pub(crate) fn new(config: Option<SriovConfig>) -> Self {
        let count = config.map_or(0, |config| usize::from(config.functions));
        Self {
            config,
            enabled: 0,
            secondaries: vec![Secondary::default(); count],
        }
    }

    pub(crate) fn secondary(&self, function: u16) -> Option<&Secondary> {
        self.secondaries.get(usize::from(function).checked_sub(1)?)
    }

    pub(crate) fn secondary_mut(&mut self, function: u16) -> Option<&mut Secondary> {
        self.secondaries.get_mut(usize::from(function).checked_sub(1)?)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (u16, &Secondary)> {
        (1..).zip(&self.secondaries)
    }

    /// Takes all offline, with their resources; those that were online.
    pub(crate) fn all_offline(&mut self) -> Vec<u16> {
        let mut were = Vec::new();
        for (function, secondary) in (1..).zip(&mut self.secondaries) {
            if std::mem::take(secondary).online {
                were.push(function);
            }
        }
        were
    }

    pub(crate) fn is_online(&self, function: u16) -> bool {
        function <= self.enabled && self.secondary(function).is_some_and(|secondary| secondary.online)
    }

    /// I/O queues and vectors of a secondary controller: one of its queue resources is the admin queue.
    pub(crate) fn resources(&self, function: u16) -> (u16, u16) {
        self.secondary(function).map_or((0, 0), |secondary| {
            (secondary.queues.saturating_sub(1), secondary.vectors)
        })
    }
}

impl Sriov {
    /// Flexible queues and vectors that are assigned.
    fn assigned(&self) -> (u32, u32) {
        self.secondaries
            .iter()
            .fold((0, 0), |(queues, vectors), secondary| {
                (
                    queues + u32::from(secondary.queues),
                    vectors + u32::from(secondary.vectors),
                )
            })
    }

    /// Primary controller capabilities.
    pub(crate) fn capabilities(&self, config: &SoftConfig) -> Vec<u8> {
        let mut page = PrimaryCapabilities::default();
        if let Some(sriov) = self.config {
            let (queues, vectors) = self.assigned();
            page.crt = 0b11;
            page.vqfrt = U32::new(u32::from(sriov.flexible_queues));
            page.vqrfa = U32::new(queues);
            page.vqprt = U16::new(config.io_queues + 1);
            page.vqfrsm = U16::new(sriov.queues_each);
            page.vqgran = U16::new(1);
            page.vifrt = U32::new(u32::from(sriov.flexible_vectors));
            page.virfa = U32::new(vectors);
            page.viprt = U16::new(config.vectors);
            page.vifrsm = U16::new(sriov.vectors_each);
            page.vigran = U16::new(1);
        }
        page.as_bytes().to_vec()
    }

    /// Secondary controllers from this identifier on.
    pub(crate) fn list(&self, from: u16) -> Vec<u8> {
        let entries = self.all().filter(|(function, _)| *function >= from);
        let entries = entries.map(|(function, secondary)| SecondaryController {
            scid: U16::new(function),
            vfn: U16::new(function),
            scs: u8::from(secondary.online),
            nvq: U16::new(secondary.queues),
            nvi: U16::new(secondary.vectors),
            ..SecondaryController::default()
        });
        SecondaryControllers::new(entries).as_bytes().to_vec()
    }
}

impl Controller {
    pub(crate) fn virtualize(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let command = VirtualizationManagement::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let config = shared.sriov.config.ok_or(Status::INVALID_OPCODE)?;
        let (queues, vectors) = shared.sriov.assigned();
        let enabled = shared.sriov.enabled;
        if command.action == VirtualizationAction::PRIMARY_ALLOCATION {
            // The primary controller keeps to its private resources.
            return if command.cntlid != 0 {
                Err(Status::INVALID_CONTROLLER_ID.with_dnr())
            } else if command.resource.0 > 1 {
                Err(Status::INVALID_RESOURCE_ID.with_dnr())
            } else if command.count != 0 {
                Err(Status::INVALID_RESOURCE_COUNT.with_dnr())
            } else {
                Ok(0)
            };
        }
        let secondary = shared
            .sriov
            .secondary_mut(command.cntlid)
            .ok_or(Status::INVALID_CONTROLLER_ID.with_dnr())?;
        match command.action {
            VirtualizationAction::SECONDARY_OFFLINE => {
                secondary.online = false;
                secondary.queues = 0;
                secondary.vectors = 0;
                shared.effects.push(Effect::Secondary(command.cntlid));
                Ok(0)
            }
            VirtualizationAction::SECONDARY_ASSIGN => {
                if secondary.online {
                    return Err(Status::INVALID_SECONDARY_STATE.with_dnr());
                }
                let (current, used, all, each) = match command.resource {
                    ResourceType::QUEUES => (
                        &mut secondary.queues,
                        queues,
                        config.flexible_queues,
                        config.queues_each,
                    ),
                    ResourceType::INTERRUPTS => (
                        &mut secondary.vectors,
                        vectors,
                        config.flexible_vectors,
                        config.vectors_each,
                    ),
                    _ => return Err(Status::INVALID_RESOURCE_ID.with_dnr()),
                };
                let others = used.saturating_sub(u32::from(*current));
                if command.count > each || others + u32::from(command.count) > u32::from(all) {
                    return Err(Status::INVALID_RESOURCE_COUNT.with_dnr());
                }
                *current = command.count;
                Ok(u64::from(command.count))
            }
            VirtualizationAction::SECONDARY_ONLINE => {
                // An admin queue, an I/O queue and an interrupt are the least that work, and the function has to be there.
                if secondary.queues < 2 || secondary.vectors < 1 || command.cntlid > enabled {
                    return Err(Status::INVALID_SECONDARY_STATE.with_dnr());
                }
                if !secondary.online {
                    secondary.online = true;
                    shared.effects.push(Effect::Secondary(command.cntlid));
                }
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }
}
