//! Both ends together: every command ends once and with the right data, in whatever order things happen and whenever the
//! connection dies.

use crate::world::{Setup, World};
use homi_fabric::rdma::{ControllerParams, HostParams};
use homi_spec::command::NvmOpcode;
use proptest::prelude::*;

#[test]
fn a_read_is_one_write_and_one_send_in_one_list() {
    let mut world = World::connected(Setup::default());
    for _ in 0..16 {
        assert!(world.submit(NvmOpcode::READ, 8, 1));
    }
    assert!(!world.submit(NvmOpcode::READ, 8, 1), "the queue is full");
    world.run_down();
    world.check_idle();
    assert_eq!(
        world.tally.succeeded + world.tally.failed,
        16,
        "{:?}",
        world.tally
    );
    // Capsules without data are unsignaled but for one in a while; so are data writes.
    assert_eq!(world.channel.host.posted, 16);
    assert_eq!(world.channel.host.signaled, 4);
}

#[test]
fn data_waits_for_read_depth_and_for_room() {
    let mut setup = Setup::default();
    setup.controller.read_depth = 2;
    setup.controller.send_queue = 3;
    setup.host.in_capsule = 0;
    setup.host.max_descriptors = 1;
    let mut world = World::connected(setup);
    for _ in 0..16 {
        assert!(world.submit(NvmOpcode::WRITE, 64, 1));
    }
    world.run_down();
    world.check_idle();
    assert_eq!(world.tally.most_reads, 2);
}

#[test]
fn keys_end_with_their_commands() {
    for invalidate in [true, false] {
        let mut setup = Setup {
            windows: true,
            ..Setup::default()
        };
        setup.controller.invalidate = invalidate;
        let mut world = World::connected(setup);
        for round in 0..10 {
            for _ in 0..8 {
                assert!(world.submit(NvmOpcode::READ, 8, 1));
                assert!(world.submit(NvmOpcode::WRITE, 64, 1 + round % 4));
            }
            world.run_down();
        }
        world.check_idle();
        let expected = if invalidate { 160 } else { 0 };
        assert_eq!(world.tally.invalidated, expected);
    }
}

#[test]
fn a_command_that_came_before_the_connection_was_established_waits_for_it() {
    let mut world = World::new(Setup::default());
    world.host.established();
    assert!(world.submit(NvmOpcode::WRITE, 8, 1));
    world.post_host(1);
    assert!(world.channel.move_host());
    assert!(world.complete_controller());
    assert!(world.controller.poll_event().is_none());
    assert!(world.controller.poll_work().is_none());
    world.controller.established().unwrap();
    world.run_down();
    world.check_idle();
    assert_eq!(world.tally.submitted, 1);
}

#[test]
fn commands_wait_for_the_connection_at_the_host() {
    let mut world = World::new(Setup::default());
    assert!(world.submit(NvmOpcode::READ, 8, 1));
    assert!(world.host.poll_work().is_none());
    world.controller.established().unwrap();
    world.host.established();
    world.run_down();
    world.check_idle();
}

fn setups() -> impl Strategy<Value = Setup> {
    let host = (1_u16..40, 0_u32..3, 1_u16..6, 2_u16..20, 2_u16..5);
    let controller = (2_u16..40, 1_u8..6, 2_u16..5, 1_u16..4, any::<bool>());
    (host, controller, any::<bool>(), any::<u64>()).prop_map(|(host, controller, windows, seed)| {
        let (depth, in_capsule, max_descriptors, send_queue, max_pieces) = host;
        let in_capsule = [0, 512, 4096][in_capsule as usize];
        let (controller_queue, read_depth, write_pieces, max_read_pieces, invalidate) = controller;
        Setup {
            host: HostParams {
                depth,
                in_capsule,
                max_descriptors,
                send_queue,
                max_pieces,
            },
            controller: ControllerParams {
                max_in_capsule: in_capsule,
                max_descriptors,
                max_depth: depth,
                send_queue: controller_queue,
                read_depth,
                max_pieces: write_pieces,
                max_read_pieces,
                invalidate,
                signal_data: !invalidate,
            },
            windows,
            seed,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_command_completes_once_with_its_data(setup in setups(), steps in 1_usize..1500) {
        let mut world = World::connected(setup);
        for _ in 0..steps {
            world.step();
        }
        world.run_down();
        world.check_idle();
    }

    #[test]
    fn a_connection_that_dies_gives_everything_back_once(setup in setups(), steps in 0_usize..600) {
        let mut world = World::connected(setup);
        for _ in 0..steps {
            world.step();
        }
        world.kill();
    }
}

#[test]
fn the_schedules_reach_what_they_are_for() {
    let mut total = crate::world::Tally::default();
    for seed in 1..60 {
        let mut world = World::connected(Setup {
            seed: seed * 77,
            windows: seed % 2 == 0,
            ..Setup::default()
        });
        for _ in 0..800 {
            world.step();
        }
        world.kill();
        let tally = world.tally;
        total.succeeded += tally.succeeded;
        total.failed += tally.failed;
        total.refused += tally.refused;
        total.undelivered += tally.undelivered;
        total.invalidated += tally.invalidated;
        total.in_capsule += tally.in_capsule;
        total.cancelled += tally.cancelled;
        total.most_reads = total.most_reads.max(tally.most_reads);
    }
    assert!(total.succeeded > 1000, "{total:?}");
    for (count, least) in [
        (total.failed, 50),
        (total.refused, 50),
        (total.undelivered, 50),
        (total.invalidated, 100),
        (total.in_capsule, 100),
        (total.cancelled, 5),
        (total.most_reads, 4),
    ] {
        assert!(count >= least, "{total:?}");
    }
}
