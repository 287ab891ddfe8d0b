//! [`Distance`]: how far two functions are from each other.

use super::sysfs::Function;
use crate::PciAddress;

/// Where the ways of two functions to the root meet, from near to far.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meeting {
    /// In one device: they are the same function, functions of one slot, or a virtual function and its physical one.
    Device,
    /// At a switch (or bridge); this is its port towards the root.
    Switch(PciAddress),
    /// At one host bridge: whether data pass between its root ports is up to the processor.
    HostBridge(String),
    /// In one NUMA node, at different host bridges.
    Node(u32),
    /// Nowhere before the link between processors.
    Processors,
}

/// How far two functions are from each other. Nearer is less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance {
    /// Where their ways meet.
    pub meeting: Meeting,
    /// Links on the way from one to the meeting and on to the other.
    pub hops: usize,
    /// Whether access control sends their requests from the switch up to the root and down again, which is slower than the distance looks.
    /// `None` if that cannot be read (it takes privileges) or does not matter.
    pub redirected: Option<bool>,
}

impl Distance {
    /// The distance between two functions.
    #[must_use]
    pub fn between(a: &Function, b: &Function) -> Self {
        if same_device(a, b) {
            return Self {
                meeting: Meeting::Device,
                hops: 0,
                redirected: None,
            };
        }
        let common = a
            .bridges
            .iter()
            .zip(&b.bridges)
            .take_while(|(x, y)| x.address == y.address)
            .count();
        let links = |function: &Function| function.bridges.len() - common + 1;
        let hops = links(a) + links(b);
        if a.host_bridge == b.host_bridge
            && let Some(switch) = common.checked_sub(1).and_then(|last| a.bridges.get(last))
        {
            // The ports right below the meeting decide.
            let ports = [a, b].map(|function| function.bridges.get(common).and_then(|port| port.acs));
            let redirected = match ports {
                [Some(x), _] | [_, Some(x)] if x.redirects_requests() => Some(true),
                [Some(_), Some(_)] => Some(false),
                _ => None,
            };
            return Self {
                meeting: Meeting::Switch(switch.address),
                hops,
                redirected,
            };
        }
        let meeting = if a.host_bridge == b.host_bridge {
            Meeting::HostBridge(a.host_bridge.clone())
        } else {
            match (a.numa_node, b.numa_node) {
                (Some(x), Some(y)) if x == y => Meeting::Node(x),
                _ => Meeting::Processors,
            }
        };
        Self {
            meeting,
            hops,
            redirected: None,
        }
    }
}

fn same_device(a: &Function, b: &Function) -> bool {
    let slot = |address: PciAddress| (address.domain(), address.bus(), address.device());
    let physical = |function: &Function| slot(function.physical.unwrap_or(function.address));
    physical(a) == physical(b) || slot(a.address) == slot(b.address)
}
