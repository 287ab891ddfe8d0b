//! Asynchronous events: hosts are told of namespaces and subsystems that come and go.

use homi_fabric::host::StepData;
use homi_initiator::ControllerEvent;
use homi_queue::Command;
use homi_spec::feature::{FeatureId, SetFeatures};
use homi_spec::identify::{Cns, Identify, NamespaceList};
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::{Nqn, Status};
use zerocopy::FromBytes;

use super::{NOTHING, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::blank;
use crate::settings::{DATA, OTHER, node, ram};

fn active<T: Host>(host: &mut T) -> Vec<u32> {
    let identify = Identify::namespace(Cns::ACTIVE_NAMESPACES, 0);
    let page = host.read_page(Command(identify.to_sqe(0)), 4096).unwrap();
    NamespaceList::read_from_bytes(&page).unwrap().iter().collect()
}

/// A namespace that appears, changes and goes is reported, and used meanwhile; the other one is never interrupted.
pub fn namespaces_come_and_go<H: Harness>() {
    let mut config = ram();
    let late = config.subsystem[0].namespace.pop().unwrap();
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(4);
    write_and_read(&mut queue, (1, 512), 0, 1);
    let missing = queue.status(Command::read(2, 0, 1), blank(4096));
    assert_eq!(missing, Status::INVALID_NAMESPACE.with_dnr());

    config.subsystem[0].namespace.push(late);
    target.apply(&config).unwrap();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(vec![2]));
    assert_eq!(active(&mut host), [1, 2]);
    write_and_read(&mut queue, (2, 4096), 0, 2);
    write_and_read(&mut queue, (1, 512), 0, 3);

    // The same identifier with other blocks is another namespace.
    config.subsystem[0].namespace[1].block_size = Some("512".parse().unwrap());
    target.apply(&config).unwrap();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(vec![2]));
    assert_eq!(queue.bytes(Command::read(2, 0, 8), blank(4096)), vec![0; 4096]);
    write_and_read(&mut queue, (2, 512), 0, 4);

    config.subsystem[0].namespace.pop();
    target.apply(&config).unwrap();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(vec![2]));
    assert_eq!(active(&mut host), [1]);
    let gone = queue.status(Command::write_zeroes(2, 0, 1, false), NOTHING);
    assert_eq!(gone, Status::INVALID_NAMESPACE.with_dnr());
    write_and_read(&mut queue, (1, 512), 0, 5);
}

/// Several changes before the host reads the list are in one list.
pub fn many_changes_at_once<H: Harness>() {
    let mut config = ram();
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let template = config.subsystem[0].namespace[1].clone();
    for nsid in 3..=40 {
        let mut namespace = template.clone();
        namespace.nsid = nsid;
        namespace.ram = Some("64K".parse().unwrap());
        config.subsystem[0].namespace.push(namespace);
    }
    target.apply(&config).unwrap();
    let all = (3..=40).collect();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(all));
    assert_eq!(active(&mut host), (1..=40).collect::<Vec<u32>>());
}

/// A host that asked not to be told is not, and another one is.
pub fn events_that_are_switched_off<H: Harness>() {
    let mut config = ram();
    let mut target = H::start(&config);
    let mut deaf = target.host(&HostOptions::default());
    let mut host = target.host(&HostOptions::default());
    let off = SetFeatures::new(FeatureId::ASYNC_EVENT, 0);
    let (completion, _) = deaf.admin(Command(off.to_sqe(0)), StepData::None);
    assert_eq!(completion.status, Status::SUCCESS);
    config.subsystem[0].namespace.pop();
    target.apply(&config).unwrap();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(vec![2]));
    // Switched on again, the next change is the first that it is told of.
    let on = SetFeatures::new(FeatureId::ASYNC_EVENT, 1 << 8);
    deaf.admin(Command(on.to_sqe(0)), StepData::None);
    config.subsystem[0].namespace.pop();
    target.apply(&config).unwrap();
    assert_eq!(host.event(), ControllerEvent::NamespacesChanged(vec![1]));
    assert!(matches!(deaf.event(), ControllerEvent::NamespacesChanged(_)));
}

/// A host that stays with the discovery service is told when its log changes.
pub fn the_discovery_log_changes<H: Harness>() {
    let empty = node("");
    let mut target = H::start(&empty);
    let mut host = target.host(&HostOptions {
        subsystem: Nqn::discovery().to_string(),
        keep_alive: std::time::Duration::from_secs(60),
        ..HostOptions::default()
    });
    target.apply(&ram()).unwrap();
    assert_eq!(host.event(), ControllerEvent::DiscoveryChanged);
    // The next change is reported when the log was read.
    let page = GetLogPage::new(LogId::DISCOVERY, 1024).unwrap();
    host.read_page(Command(page.to_sqe(0)), 1024).unwrap();
    // What this host may not see does not concern it.
    let hidden = node(&format!("[[subsystem]]\nnqn = \"{OTHER}\"\n"));
    let mut both = ram();
    both.subsystem.extend(hidden.subsystem);
    target.apply(&both).unwrap();
    both.subsystem.remove(0);
    assert_ne!(both.subsystem[0].nqn.to_string(), DATA);
    target.apply(&both).unwrap();
    assert_eq!(host.event(), ControllerEvent::DiscoveryChanged);
}
