//! What a new configuration does, and to whom it does nothing.

use super::*;

/// Two hosts of subsystem `a` and one of `b`, each with an I/O queue.
struct Scene {
    bench: Bench,
    a1: Admin,
    a1_io: (ConnectionId, Grant),
    a2: Admin,
    a2_io: ConnectionId,
    b3: Admin,
    b3_io: (ConnectionId, Grant),
}

fn config() -> NodeConfig {
    let mut config = standard();
    config.subsystems[0].allow = hosts(&[1, 2]);
    config
}

fn scene() -> Scene {
    let mut bench = Bench::new(config());
    let mut open = |port, subsystem: &str, number| {
        let admin = bench.admin(port, &nqn(subsystem), &host(number));
        bench.set_cc(admin, ENABLE).unwrap();
        let (id, grant) = bench.try_io(port, &nqn(subsystem), &host(number), admin.controller, 1);
        (admin, (id, grant.unwrap()))
    };
    let (a1, a1_io) = open(PORT_1, "a", 1);
    let (a2, (a2_io, _)) = open(PORT_2, "a", 2);
    let (b3, b3_io) = open(PORT_2, "b", 3);
    Scene {
        bench,
        a1,
        a1_io,
        a2,
        a2_io,
        b3,
        b3_io,
    }
}

#[test]
fn the_same_configuration_changes_nothing() {
    let mut scene = scene();
    let generation = scene.bench.node.report().discovery_generation;
    let tables = scene.a1_io.1.view.namespaces().generation();
    scene.bench.apply(config());
    assert_eq!(scene.bench.effects(), []);
    assert_eq!(scene.bench.node.report().discovery_generation, generation);
    assert_eq!(scene.a1_io.1.view.namespaces().generation(), tables);
}

#[test]
fn namespaces_appear_change_and_vanish_in_the_tables() {
    let mut scene = scene();
    let mut table = Cached::new(Arc::clone(scene.a1_io.1.view.namespaces()));
    let nsids = |table: &NamespaceTable| -> Vec<(u32, u64)> {
        table
            .entries()
            .iter()
            .map(|entry| (entry.nsid, entry.blocks))
            .collect()
    };
    assert_eq!(nsids(&table), [(1, 1000), (3, 500)]);
    let expected = NamespaceEntry {
        nsid: 3,
        block_size: 4096,
        blocks: 500,
        read_only: true,
        handle: 30,
    };
    assert_eq!(table.get(1), Some(&expected));
    let mut config = config();
    config.subsystems[0].namespaces = vec![
        NamespaceConfig::new(2, 4096, 9, 0),
        NamespaceConfig::new(1, 512, 77, 0),
    ];
    let event_key = scene.bench.await_event(scene.a1);
    scene.bench.apply(config.clone());
    assert!(table.refresh());
    assert_eq!(nsids(&table), [(1, 77), (2, 9)]);
    assert_eq!(scene.bench.effects(), [event(scene.a1, event_key, 0x0004_0002)]);
    // Only who executes commands changes: the queues have to know, hosts do not.
    scene.bench.log_page(scene.a1, LogId::CHANGED_NAMESPACES, 4096);
    scene.bench.await_event(scene.a1);
    config.subsystems[0].namespaces[1].handle = 5;
    scene.bench.apply(config);
    assert!(table.refresh());
    assert_eq!(table.get(0).unwrap().handle, 5);
    assert_eq!(scene.bench.effects(), []);
    let untouched = Cached::new(Arc::clone(scene.b3_io.1.view.namespaces()));
    assert_eq!(nsids(&untouched), [(1, 2000)]);
}

#[test]
fn a_host_that_is_no_longer_allowed_is_closed_and_nobody_else() {
    let mut scene = scene();
    let mut config = config();
    config.subsystems[0].allow = hosts(&[1]);
    scene.bench.apply(config);
    let reason = CloseReason::HostDisallowed;
    assert_eq!(
        scene.bench.settle(),
        [(scene.a2_io, reason), (scene.a2.id, reason)]
    );
    assert_eq!(scene.bench.node.counts(), (4, 2));
    assert!(scene.a1_io.1.view.enabled() && scene.b3_io.1.view.enabled());
    let (_, again) = scene
        .bench
        .try_io(PORT_2, &nqn("a"), &host(2), scene.a2.controller, 1);
    assert!(again.is_err());
}

#[test]
fn a_removed_subsystem_takes_its_associations_along() {
    let mut scene = scene();
    let table = Arc::clone(scene.a1_io.1.view.namespaces());
    let mut without = config();
    without.subsystems.remove(0);
    scene.bench.apply(without);
    assert_eq!(table.load().entries(), []);
    assert!(!scene.a1_io.1.view.enabled());
    let reason = CloseReason::SubsystemRemoved;
    let expected = [
        (scene.a1_io.0, reason),
        (scene.a1.id, reason),
        (scene.a2_io, reason),
        (scene.a2.id, reason),
    ];
    assert_eq!(scene.bench.settle(), expected);
    assert!(scene.b3_io.1.view.enabled());
    assert!(scene.bench.identify(scene.b3, Identify::controller()).is_ok());
    // It may come back.
    scene.bench.apply(config());
    assert_eq!(scene.bench.effects(), []);
    scene.bench.enabled();
}

#[test]
fn a_removed_port_takes_what_came_through_it() {
    let mut scene = scene();
    // Host 1 has a second queue through port 2.
    let (second, grant) = scene
        .bench
        .try_io(PORT_2, &nqn("a"), &host(1), scene.a1.controller, 2);
    grant.unwrap();
    let mut config = config();
    config.ports.pop();
    config.subsystems[1].exposure = Exposure::Everywhere;
    scene.bench.apply(config);
    let reason = CloseReason::PortRemoved;
    let closed = scene.bench.settle();
    let expected = BTreeSet::from([second, scene.a2_io, scene.a2.id, scene.b3_io.0, scene.b3.id]);
    assert_eq!(
        closed.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(),
        expected
    );
    assert!(closed.iter().all(|(_, why)| *why == reason));
    assert!(scene.a1_io.1.view.enabled());
    assert!(scene.bench.csts(scene.a1).ready());
}

#[test]
fn a_port_that_moves_and_an_exposure_that_ends() {
    let mut moved = scene();
    let mut config_moved = config();
    config_moved.ports[0].address = tcp("192.0.2.1", 4422);
    moved.bench.apply(config_moved);
    let reason = CloseReason::PortRemoved;
    assert_eq!(
        moved.bench.settle(),
        [(moved.a1_io.0, reason), (moved.a1.id, reason)]
    );

    let mut hidden = scene();
    let mut config_hidden = config();
    config_hidden.subsystems[0].exposure = Exposure::Ports(BTreeSet::from([PORT_2]));
    hidden.bench.apply(config_hidden);
    assert_eq!(
        hidden.bench.settle(),
        [(hidden.a1_io.0, reason), (hidden.a1.id, reason)]
    );

    // Changing what a port offers concerns only who comes next.
    let mut offer = scene();
    let mut config_offer = config();
    config_offer.ports[0].in_capsule = 4096;
    offer.bench.apply(config_offer);
    assert_eq!(offer.bench.effects(), []);
}

#[test]
fn discovery_hosts_may_lose_access_too() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &Nqn::discovery(), &host(1));
    bench.apply(NodeConfig {
        discovery_allow: hosts(&[2]),
        ..standard()
    });
    assert_eq!(bench.settle(), [(admin.id, CloseReason::HostDisallowed)]);
}

#[test]
fn a_configuration_that_cannot_be_changes_nothing() {
    let mut scene = scene();
    let mut bad = config();
    bad.subsystems.remove(0);
    bad.subsystems[0].namespaces[0].block_size = 1000;
    assert!(scene.bench.node.apply(bad, scene.bench.now).is_err());
    assert_eq!(scene.bench.effects(), []);
    assert_eq!(scene.bench.node.report().subsystems.len(), 2);
    assert!(scene.a1_io.1.view.enabled());
}
