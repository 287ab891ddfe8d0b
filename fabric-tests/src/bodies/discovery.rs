//! The discovery service: who sees what, referrals, and who is let in.

use homi_fabric::host::{DiscoveryRecord, SubsystemKind};

use super::write_and_read;
use crate::harness::{Harness, Host, HostOptions};
use crate::settings::{DATA, HOST, OTHER, STRANGER, node};

/// One subsystem for everybody and one for the standard host, and a referral to where nobody listens.
fn config() -> homi_target::config::Config {
    node(&format!(
        r#"
[[discovery.referral]]
address = "127.0.0.1:1"
[[subsystem]]
nqn = "{DATA}"
allow = ["{HOST}"]
[[subsystem.namespace]]
nsid = 1
ram = "1M"
[[subsystem]]
nqn = "{OTHER}"
allow_any_host = true
"#
    ))
}

fn subsystems(records: &[DiscoveryRecord]) -> Vec<&str> {
    let found = records.iter().filter(|record| record.kind == SubsystemKind::Nvm);
    found.map(|record| record.subsystem.as_str()).collect()
}

/// Each host sees the subsystems that it may connect to.
pub fn each_host_sees_what_it_may_use<H: Harness>() {
    let mut target = H::start(&config());
    assert_eq!(subsystems(&target.discover(HOST).unwrap()), [DATA, OTHER]);
    assert_eq!(subsystems(&target.discover(STRANGER).unwrap()), [OTHER]);
}

/// Referrals lead on, to where nobody has to be.
pub fn referrals_are_listed<H: Harness>() {
    let mut target = H::start(&config());
    let records = target.discover(HOST).unwrap();
    let referrals: Vec<_> = records
        .iter()
        .filter(|record| record.kind == SubsystemKind::Referral)
        .collect();
    assert_eq!(referrals.len(), 1);
    assert_eq!(
        (referrals[0].address.as_str(), referrals[0].service.as_str()),
        ("127.0.0.1", "1")
    );
}

/// The log follows the configuration.
pub fn the_log_follows_the_configuration<H: Harness>() {
    let mut target = H::start(&config());
    assert_eq!(subsystems(&target.discover(STRANGER).unwrap()), [OTHER]);
    let mut changed = config();
    changed.subsystem.remove(1);
    changed.subsystem[0].allow.push(STRANGER.parse().unwrap());
    target.apply(&changed).unwrap();
    assert_eq!(subsystems(&target.discover(STRANGER).unwrap()), [DATA]);
    changed.subsystem.clear();
    target.apply(&changed).unwrap();
    assert!(subsystems(&target.discover(HOST).unwrap()).is_empty());
}

/// A host that is not on the list is told so, with what to change; one that is on it is served.
pub fn an_allow_list_keeps_strangers_out<H: Harness>() {
    let mut target = H::start(&config());
    let refusal = target.try_host(&HostOptions::named(STRANGER)).err().unwrap();
    assert!(
        refusal.contains("allow list") && refusal.contains(STRANGER) && refusal.contains(DATA),
        "{refusal}"
    );
    let mut host = target.host(&HostOptions::default());
    write_and_read(&mut host.queue(2), (1, 4096), 0, 1);
    // A subsystem that nobody named anyone for lets nobody in.
    let mut closed = config();
    closed.subsystem[1].allow_any_host = false;
    target.apply(&closed).unwrap();
    let refusal = target.try_host(&HostOptions::at(OTHER)).err().unwrap();
    assert!(refusal.contains("allow list"), "{refusal}");
}

/// A subsystem that does not exist is said not to.
pub fn a_subsystem_that_does_not_exist<H: Harness>() {
    let mut target = H::start(&config());
    let missing = "nqn.2026-01.org.example:missing";
    let refusal = target.try_host(&HostOptions::at(missing)).err().unwrap();
    assert!(
        refusal.contains("no subsystem") && refusal.contains(missing),
        "{refusal}"
    );
}

/// A host that is taken off the list is disconnected; the others notice nothing.
pub fn a_host_that_is_no_longer_allowed<H: Harness>() {
    let mut open = config();
    open.subsystem[0].allow.push(STRANGER.parse().unwrap());
    let mut target = H::start(&open);
    let mut stranger = target.host(&HostOptions::named(STRANGER));
    let mut strangers = stranger.queue(2);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(2);
    write_and_read(&mut strangers, (1, 4096), 0, 1);
    target.apply(&config()).unwrap();
    let reason = stranger.wait_for_the_end();
    assert!(!reason.is_empty());
    strangers.wait_for_the_end();
    write_and_read(&mut queue, (1, 4096), 0, 2);
    target.wait_for_connections(2);
}
