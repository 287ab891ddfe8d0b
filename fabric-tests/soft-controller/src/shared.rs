//! What the controllers of a subsystem share.

use std::collections::{BTreeMap, BTreeSet};

use homi_spec::{Sqe, Status};

use crate::config::{NamespaceConfig, SoftConfig};
use crate::faults::Plan;
use crate::iommu::KEPT;
use crate::media::{Media, Namespace};
use crate::misuse::{Misuse, MisuseKind, Refusal};
use crate::sriov::Sriov;

/// What one controller does to others, done after its step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// NSSR, or a fault.
    SubsystemReset,
    /// A function is pulled out.
    Remove(u16),
    /// These functions' controllers are told that a namespace changed; one that made the change itself is left out.
    NamespaceChanged { nsid: u32, functions: Vec<u16> },
    /// A secondary controller went online or offline.
    Secondary(u16),
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: SoftConfig,
    /// Steps so far.
    pub(crate) now: u64,
    pub(crate) plan: Plan,
    pub(crate) misuse: Vec<Misuse>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    pub(crate) generations: u64,
    pub(crate) effects: Vec<Effect>,
    pub(crate) sriov: Sriov,
    random: u64,
}

impl Shared {
    pub(crate) fn new(config: SoftConfig) -> Self {
        let mut plan = Plan::default();
        for rule in &config.faults {
            plan.add(rule.clone());
        }
        let mut shared = Self {
            now: 0,
            plan,
            misuse: Vec::new(),
            refusals: Vec::new(),
            namespaces: BTreeMap::new(),
            generations: 0,
            effects: Vec::new(),
            sriov: Sriov::new(config.sriov),
            random: config.shuffle.unwrap_or(0) | 1,
            config,
        };
        for (nsid, namespace) in (1..).zip(shared.config.namespaces.clone()) {
            shared.add_namespace(nsid, &namespace);
        }
        shared
    }

    pub(crate) fn add_namespace(&mut self, nsid: u32, config: &NamespaceConfig) {
        self.generations += 1;
        let namespace = Namespace {
            nsid,
            blocks: config.blocks,
            lbads: config.lbads,
            shared: config.shared,
            write_protected: config.write_protected,
            attached: if config.attached {
                BTreeSet::from([0])
            } else {
                BTreeSet::new()
            },
            generation: self.generations,
            media: Media::default(),
            bad: BTreeSet::new(),
            flushes: 0,
        };
        self.namespaces.insert(nsid, namespace);
    }

    /// A reset of the primary controller takes its secondary controllers offline. Base 2.0 §8.26.
    pub(crate) fn take_offline(&mut self, function: u16) {
        if function != 0 {
            return;
        }
        for function in self.sriov.all_offline() {
            self.effects.push(Effect::Secondary(function));
        }
    }

    /// Bytes that no namespace uses.
    pub(crate) fn free_capacity(&self) -> u64 {
        let used = self
            .namespaces
            .values()
            .fold(0_u64, |sum, namespace| sum.saturating_add(namespace.size()));
        self.config.capacity.saturating_sub(used)
    }

    pub(crate) fn misuse(&mut self, function: u16, kind: MisuseKind) {
        if self.misuse.len() < KEPT {
            tracing::warn!(function, ?kind, step = self.now, "driver misuse");
            self.misuse.push(Misuse {
                function,
                step: self.now,
                kind,
            });
        }
    }

    pub(crate) fn refuse(&mut self, function: u16, queue: u16, sqe: &Sqe, status: Status) {
        if self.refusals.len() < KEPT {
            self.refusals.push(Refusal {
                function,
                queue,
                opcode: sqe.opcode,
                cdw10: sqe.cdw10.get(),
                status,
            });
        }
    }

    /// A number below `bound`, from the configured seed.
    pub(crate) fn random_below(&mut self, bound: usize) -> usize {
        // Marsaglia's xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap_or(0) % bound.max(1)
    }
}
