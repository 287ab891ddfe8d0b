//! Asynchronous events from the change that causes them to the log page that clears them.

use super::*;
use homi_spec::log::ChangedNamespaces;
use zerocopy::FromBytes;

const NAMESPACE_CHANGED: u32 = 0x0004_0002;
const DISCOVERY_CHANGED: u32 = 0x0070_f002;

fn resized(blocks: u64) -> NodeConfig {
    let mut config = standard();
    config.subsystems[0].namespaces[1].blocks = blocks;
    config
}

fn changed(page: &[u8]) -> Vec<u32> {
    ChangedNamespaces::read_from_bytes(page).unwrap().iter().collect()
}

#[test]
fn a_changed_namespace_is_told_once_per_reading() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let first = bench.await_event(admin);
    let second = bench.await_event(admin);
    bench.apply(resized(1001));
    assert_eq!(bench.effects(), [event(admin, first, NAMESPACE_CHANGED)]);
    bench.apply(resized(1002));
    let mut removed = resized(1002);
    removed.subsystems[0].namespaces.remove(0);
    bench.apply(removed);
    assert_eq!(bench.effects(), []);
    // A reading that retains the event shows the list and changes nothing.
    let command = GetLogPage::new(LogId::CHANGED_NAMESPACES, 4096).unwrap();
    let page = bench.log(admin, GetLogPage { rae: true, ..command }).unwrap();
    assert_eq!(changed(&page), [1, 3]);
    assert_eq!(changed(&bench.log(admin, command).unwrap()), [1, 3]);
    assert_eq!(changed(&bench.log(admin, command).unwrap()), [0; 0]);
    assert_eq!(bench.effects(), []);
    bench.apply(standard());
    assert_eq!(bench.effects(), [event(admin, second, NAMESPACE_CHANGED)]);
    // An event waits for a request.
    bench.log(admin, command).unwrap();
    bench.apply(resized(7));
    assert_eq!(bench.effects(), []);
    let third = bench.await_event(admin);
    assert_eq!(bench.effects(), [event(admin, third, NAMESPACE_CHANGED)]);
}

#[test]
fn a_list_that_was_read_in_part_stays() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let mut config = standard();
    config.subsystems[0].namespaces.clear();
    bench.apply(config);
    let part = GetLogPage::new(LogId::CHANGED_NAMESPACES, 4).unwrap();
    assert_eq!(bench.log(admin, part).unwrap(), 1_u32.to_le_bytes());
    assert_eq!(bench.log(admin, part.at(4)).unwrap(), 3_u32.to_le_bytes());
    let whole = GetLogPage::new(LogId::CHANGED_NAMESPACES, 8).unwrap();
    assert_eq!(bench.log(admin, whole).unwrap(), [1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(bench.log(admin, whole).unwrap(), [0; 8]);
}

#[test]
fn more_changes_than_fit_are_one_entry() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let mut config = standard();
    config.subsystems[0].max_nsid = 2000;
    config.subsystems[0].namespaces = (1..=1500)
        .map(|nsid| NamespaceConfig::new(nsid, 512, 8, 0))
        .collect();
    bench.apply(config);
    assert_eq!(
        changed(&bench.log_page(admin, LogId::CHANGED_NAMESPACES, 4096)),
        [0xffff_ffff]
    );
    assert_eq!(
        changed(&bench.log_page(admin, LogId::CHANGED_NAMESPACES, 4096)),
        [0; 0]
    );
}

#[test]
fn hosts_hear_of_what_they_asked_for_only() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let other = bench.admin(PORT_2, &nqn("b"), &host(2));
    bench.set_cc(other, ENABLE).unwrap();
    bench.await_event(admin);
    bench.await_event(other);
    assert_eq!(bench.set_feature(admin, FeatureId::ASYNC_EVENT, 0x1f), Ok(0));
    bench.apply(resized(5));
    assert_eq!(bench.effects(), []);
    // The list is kept all the same.
    assert_eq!(
        changed(&bench.log_page(admin, LogId::CHANGED_NAMESPACES, 4096)),
        [1]
    );
}

#[test]
fn four_requests_may_wait() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    for _ in 0..4 {
        bench.await_event(admin);
    }
    let fifth = homi_spec::admin::async_event_request(99);
    assert_eq!(
        bench.dwords(admin.id, fifth),
        Err(Status::AER_LIMIT_EXCEEDED.with_dnr())
    );
    bench.apply(resized(5));
    assert_eq!(bench.effects().len(), 1);
    bench.await_event(admin);
}

#[test]
fn discovery_hosts_hear_of_changes_that_concern_them() {
    let mut bench = Bench::standard();
    let discovery = Nqn::discovery();
    let one = bench.admin_with_kato(PORT_1, &discovery, &host(1), 30_000);
    let two = bench.admin_with_kato(PORT_1, &discovery, &host(2), 30_000);
    let brief = bench.admin(PORT_1, &discovery, &host(1));
    for admin in [one, two, brief] {
        bench.set_cc(admin, ENABLE).unwrap();
    }
    let (first, second, _) = (
        bench.await_event(one),
        bench.await_event(two),
        bench.await_event(brief),
    );
    // Host 2 never saw subsystem a.
    let mut config = standard();
    config.subsystems.remove(0);
    bench.apply(config.clone());
    assert_eq!(bench.effects(), [event(one, first, DISCOVERY_CHANGED)]);
    bench.apply(config.clone());
    assert_eq!(bench.effects(), []);
    config
        .referrals
        .push(ReferralConfig::new(tcp("198.51.100.7", 8009)));
    bench.apply(config);
    assert_eq!(bench.effects(), [event(two, second, DISCOVERY_CHANGED)]);
    // The change after the reported one is told again unless the header was read since.
    let third = bench.await_event(one);
    assert_eq!(bench.effects(), []);
    let header = GetLogPage::new(LogId::DISCOVERY, 1024).unwrap();
    bench.log(one, header.at(1024)).unwrap();
    assert_eq!(bench.effects(), [event(one, third, DISCOVERY_CHANGED)]);
    bench.log(one, header).unwrap();
    bench.await_event(one);
    assert_eq!(bench.effects(), []);
}
