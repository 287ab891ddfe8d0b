//! Values that a configuration may not have, and the sentences that say so.

use super::*;

fn refused(change: impl FnOnce(&mut NodeConfig)) -> String {
    let mut config = standard();
    config.validate().unwrap();
    change(&mut config);
    let error = config.validate().unwrap_err().to_string();
    assert!(
        error.len() < 200 && !error.ends_with('.') && !error.contains('\n'),
        "{error}"
    );
    error
}

#[test]
fn every_value_is_held_to_what_the_wire_can_carry() {
    type Change = fn(&mut NodeConfig);
    let cases: &[(Change, &str)] = &[
        (
            |c| c.subsystems[0].serial = "x".repeat(21),
            "serial number must have 1 to 20",
        ),
        (
            |c| c.subsystems[0].serial.clear(),
            "serial number must have 1 to 20",
        ),
        (
            |c| c.subsystems[0].model = "m\u{e9}".to_owned(),
            "model number must have 1 to 40",
        ),
        (
            |c| c.subsystems[0].model = "x".repeat(41),
            "model number must have 1 to 40",
        ),
        (|c| c.subsystems[1].nqn = nqn("a"), "configured twice"),
        (
            |c| c.subsystems[1].nqn = Nqn::discovery(),
            "discovery service's nqn",
        ),
        (|c| c.subsystems[0].namespaces[0].nsid = 1, "namespace 1 twice"),
        (|c| c.subsystems[0].namespaces[0].nsid = 0, "use 1 to 1024"),
        (|c| c.subsystems[0].namespaces[0].nsid = 1025, "use 1 to 1024"),
        (|c| c.subsystems[0].max_nsid = 2, "use 1 to 2"),
        (|c| c.subsystems[0].max_nsid = 0, "max_nsid must be 1"),
        (|c| c.subsystems[0].max_nsid = u32::MAX, "max_nsid must be 1"),
        (
            |c| c.subsystems[0].max_io_queues = 0,
            "max_io_queues must be 1 to 65534",
        ),
        (
            |c| c.subsystems[0].max_io_queues = 65535,
            "max_io_queues must be 1 to 65534",
        ),
        (
            |c| c.subsystems[0].max_controllers_per_host = 0,
            "max_controllers_per_host must be 1",
        ),
        (
            |c| c.subsystems[0].controller_ids = 0..=5,
            "controller ids 0 to 5",
        ),
        (
            |c| c.subsystems[0].controller_ids = 1..=0xfff0,
            "controller ids 1 to 65520",
        ),
        (
            |c| c.subsystems[0].controller_ids = std::ops::RangeInclusive::new(5, 4),
            "controller ids 5 to 4",
        ),
        (
            |c| c.subsystems[0].namespaces[0].block_size = 256,
            "power of two from 512 to 65536",
        ),
        (
            |c| c.subsystems[0].namespaces[0].block_size = 520,
            "power of two from 512 to 65536",
        ),
        (
            |c| c.subsystems[0].namespaces[0].block_size = 0,
            "power of two from 512 to 65536",
        ),
        (
            |c| c.subsystems[0].namespaces[0].block_size = 131_072,
            "power of two from 512 to 65536",
        ),
        (
            |c| c.subsystems[0].namespaces[0].blocks = 0,
            "at least 1 and less than 2^64 bytes",
        ),
        (
            |c| c.subsystems[0].namespaces[0].blocks = 1 << 60,
            "at least 1 and less than 2^64 bytes",
        ),
        (
            |c| c.subsystems[0].namespaces[0].hints.write_size = 65537,
            "write_size of 65537 blocks",
        ),
        (
            |c| {
                c.subsystems[0]
                    .namespaces
                    .iter_mut()
                    .for_each(|ns| ns.uuid = Some([1; 16]))
            },
            "same uuid",
        ),
        (
            |c| {
                c.subsystems[0]
                    .namespaces
                    .iter_mut()
                    .for_each(|ns| ns.nguid = Some([1; 16]))
            },
            "same nguid",
        ),
        (
            |c| {
                c.subsystems[0]
                    .namespaces
                    .iter_mut()
                    .for_each(|ns| ns.eui64 = Some([1; 8]))
            },
            "same eui64",
        ),
        (|c| c.ports[1].id = PORT_1, "port 1 is configured twice"),
        (
            |c| c.ports[1].address = c.ports[0].address,
            "both listen at tcp://192.0.2.1:4420",
        ),
        (|c| c.ports[0].in_capsule = 8, "multiple of 16"),
        (
            |c| c.ports[0].in_capsule = (1 << 20) + 16,
            "at most 1048576 bytes",
        ),
        (|c| c.ports.truncate(1), "exposed on port 2"),
        (
            |c| c.referrals.push(ReferralConfig::new(tcp("::", 8009))),
            "tcp://[::]:8009 names no host",
        ),
        (|c| c.limits.max_connections = 0, "max_connections is 0"),
        (
            |c| c.limits.max_connections_per_host = 0,
            "max_connections_per_host is 0",
        ),
        (|c| c.limits.max_associations = 0, "max_associations is 0"),
    ];
    for (change, expected) in cases {
        let error = refused(change);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn the_identity_is_checked_too() {
    let refused = |identity: NodeIdentity| Node::new(identity).map(|_| ()).unwrap_err().to_string();
    let base = NodeIdentity::default;
    assert!(
        refused(NodeIdentity {
            firmware: String::new(),
            ..base()
        })
        .contains("firmware")
    );
    assert!(
        refused(NodeIdentity {
            firmware: "123456789".to_owned(),
            ..base()
        })
        .contains("1 to 8")
    );
    assert!(
        refused(NodeIdentity {
            max_queue_entries: 1,
            ..base()
        })
        .contains("2 to 65536")
    );
    assert!(
        refused(NodeIdentity {
            max_queue_entries: 65537,
            ..base()
        })
        .contains("2 to 65536")
    );
    assert!(
        refused(NodeIdentity {
            max_transfer: 4096,
            ..base()
        })
        .contains("8192")
    );
    assert!(
        refused(NodeIdentity {
            max_transfer: 12288,
            ..base()
        })
        .contains("power of two")
    );
}

#[test]
fn nobody_may_connect_by_default() {
    let subsystem = SubsystemConfig::new(nqn("c"));
    assert!(!subsystem.allow.allows(&host(1)));
    assert!(AllowList::Any.allows(&host(1)));
    assert_eq!(subsystem.serial.len(), 16);
    assert_ne!(subsystem.serial, SubsystemConfig::new(nqn("d")).serial);
    let config = NodeConfig {
        subsystems: vec![subsystem],
        ..NodeConfig::default()
    };
    config.validate().unwrap();
}
