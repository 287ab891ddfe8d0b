//! [`Node::apply`]: from the configuration that is to the one that should be, concerning nobody whom no change concerns.

use super::association::Association;
use super::config::{ConfigError, NamespaceConfig, NodeConfig, PortConfig, PortId, SubsystemConfig};
use super::discovery::{self, Record};
use super::events::Event;
use super::node::{AssociationId, Directory, Node, Subsystem};
use super::view::{NamespaceEntry, NamespaceTable, Published, Totals};
use super::{AllowList, CloseReason, identify};
use crate::time::Instant;
use homi_spec::Nqn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Node {
    /// Makes the node what `config` says. Subsystems, namespaces, ports and referrals appear, change and vanish; who lost
    /// access is closed; whose namespaces or discovery log changed is told, if asked for; everybody else notices
    /// nothing.
    ///
    /// # Errors
    /// The first value that cannot be. Nothing has changed then.
    pub fn apply(&mut self, config: NodeConfig, now: Instant) -> Result<(), ConfigError> {
        config.validate()?;
        self.started.get_or_insert(now);
        let NodeConfig {
            subsystems,
            ports,
            referrals,
            discovery_allow,
            limits,
        } = config;
        let seen: Vec<(AssociationId, Vec<Record>)> = self
            .associations
            .iter()
            .filter(|(_, association)| association.is_discovery())
            .map(|(id, association)| (*id, self.visible_to(association)))
            .collect();
        let before = self.fingerprint();

        let new_ports: BTreeMap<PortId, PortConfig> = ports.into_iter().map(|port| (port.id, port)).collect();
        let gone = |port: PortId| {
            let address = |ports: &BTreeMap<PortId, PortConfig>| ports.get(&port).map(|port| port.address);
            // A port that listens elsewhere is another port: its connections came to an address that is no more.
            address(&new_ports).is_none() || address(&new_ports) != address(&self.directory.ports)
        };
        let gone: BTreeSet<PortId> = self
            .directory
            .ports
            .keys()
            .copied()
            .filter(|port| gone(*port))
            .collect();
        self.directory.ports = new_ports;
        self.directory.referrals = referrals;
        self.discovery_allow = discovery_allow;
        self.limits = limits;
        let changed = self.apply_subsystems(subsystems);

        for association in self.associations.values_mut() {
            if let Some(reason) = lost(association, &self.directory, &self.discovery_allow, &gone) {
                association.end(reason, &mut self.effects);
                continue;
            }
            let Some(nqn) = &association.subsystem else {
                continue;
            };
            if let Some(subsystem) = self.directory.subsystems.get(nqn) {
                let exposure = &subsystem.config.exposure;
                let unreachable = |port: PortId| gone.contains(&port) || !exposure.includes(port);
                association.close_queues_through(unreachable, &mut self.effects);
            }
        }
        for (nqn, nsids) in &changed {
            self.tell_of_namespaces(nqn, nsids);
        }
        if before != self.fingerprint() {
            self.generation += 1;
            self.tell_of_discovery(&seen);
        }
        Ok(())
    }

    /// Returns the namespaces of each subsystem that appeared, changed or vanished.
    fn apply_subsystems(&mut self, configs: Vec<SubsystemConfig>) -> BTreeMap<Nqn, BTreeSet<u32>> {
        let mut old = std::mem::take(&mut self.directory.subsystems);
        let mut changed = BTreeMap::new();
        for mut config in configs {
            config.namespaces.sort_by_key(|namespace| namespace.nsid);
            let nqn = config.nqn.clone();
            let table = table(&config.namespaces);
            let subsystem = match old.remove(&nqn) {
                Some(mut subsystem) => {
                    let differing = differing(&subsystem.config, &config);
                    if !differing.is_empty() {
                        changed.insert(nqn.clone(), differing);
                    }
                    if *subsystem.namespaces.load() != table {
                        subsystem.namespaces.publish(table);
                    }
                    subsystem.config = config;
                    subsystem
                }
                None => Subsystem {
                    next_controller_id: *config.controller_ids.start(),
                    config,
                    namespaces: Arc::new(Published::new(table)),
                    retired: Totals::default(),
                },
            };
            self.directory.subsystems.insert(nqn, subsystem);
        }
        for subsystem in old.values() {
            // Its queues are being closed; until then they find nothing.
            subsystem.namespaces.publish(NamespaceTable::default());
        }
        changed
    }

    fn tell_of_namespaces(&mut self, nqn: &Nqn, nsids: &BTreeSet<u32>) {
        let concerned = self.associations.values_mut();
        for association in concerned.filter(|association| association.subsystem.as_ref() == Some(nqn)) {
            if !association.properties.cc().enabled() {
                // It learns what there is when it identifies.
                continue;
            }
            for nsid in nsids {
                association.changed.add(*nsid);
            }
            association.raise(Event::NamespaceAttribute, &mut self.effects);
        }
    }

    fn tell_of_discovery(&mut self, seen: &[(AssociationId, Vec<Record>)]) {
        for (id, before) in seen {
            let Some(association) = self.associations.get(id) else {
                continue;
            };
            if self.visible_to(association) == *before {
                continue;
            }
            if let Some(association) = self.associations.get_mut(id) {
                association.raise(Event::DiscoveryLog, &mut self.effects);
            }
        }
    }

    /// What the host of a discovery controller sees.
    pub(super) fn visible_to(&self, association: &Association) -> Vec<Record> {
        discovery::records(&self.directory, &association.host, association.local)
    }

    /// Everything that some host's discovery log depends on.
    fn fingerprint(&self) -> Fingerprint {
        let subsystems = self.directory.subsystems.values();
        let exposed = subsystems.map(|subsystem| {
            let SubsystemConfig {
                nqn, exposure, allow, ..
            } = &subsystem.config;
            (nqn.clone(), exposure.clone(), allow.clone())
        });
        let ports = self
            .directory
            .ports
            .values()
            .map(|port| (port.id, port.address, port.secure_channel));
        (
            exposed.collect(),
            ports.collect(),
            self.directory.referrals.clone(),
        )
    }
}

type Fingerprint = (
    Vec<(Nqn, super::Exposure, AllowList)>,
    Vec<(PortId, super::TransportAddress, super::SecureChannel)>,
    Vec<super::ReferralConfig>,
);

fn table(namespaces: &[NamespaceConfig]) -> NamespaceTable {
    let entries = namespaces.iter().map(|namespace| NamespaceEntry {
        nsid: namespace.nsid,
        block_size: namespace.block_size,
        blocks: namespace.blocks,
        read_only: namespace.read_only,
        handle: namespace.handle,
    });
    NamespaceTable::new(entries.collect())
}

/// The namespaces that hosts see differently. Who executes their commands is not one of the things they see.
fn differing(old: &SubsystemConfig, new: &SubsystemConfig) -> BTreeSet<u32> {
    let all = old
        .namespaces
        .iter()
        .chain(&new.namespaces)
        .map(|namespace| namespace.nsid);
    let attributes = |config: &SubsystemConfig, nsid| {
        identify::find(config, nsid).map(|namespace| NamespaceConfig {
            handle: 0,
            ..namespace.clone()
        })
    };
    all.filter(|nsid| attributes(old, *nsid) != attributes(new, *nsid))
        .collect()
}

/// Why the association may not go on, if so.
fn lost(
    association: &Association,
    directory: &Directory,
    discovery_allow: &AllowList,
    gone: &BTreeSet<PortId>,
) -> Option<CloseReason> {
    let allow = match &association.subsystem {
        None => discovery_allow,
        Some(nqn) => {
            let Some(subsystem) = directory.subsystems.get(nqn) else {
                return Some(CloseReason::SubsystemRemoved);
            };
            if !subsystem.config.exposure.includes(association.port) {
                return Some(CloseReason::PortRemoved);
            }
            &subsystem.config.allow
        }
    };
    if gone.contains(&association.port) {
        return Some(CloseReason::PortRemoved);
    }
    (!allow.allows(&association.host)).then_some(CloseReason::HostDisallowed)
}
