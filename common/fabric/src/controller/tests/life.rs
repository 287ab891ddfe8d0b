//! Enabling, resetting, shutting down, failing and dying: what becomes of an association.

use super::*;
use homi_spec::admin::Abort;
use homi_spec::controller::{ShutdownNotification, ShutdownStatus};
use homi_spec::fabrics::Disconnect;

#[test]
fn only_fabrics_commands_before_the_controller_is_enabled() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &nqn("a"), &host(1));
    assert_eq!(bench.identify(admin, Identify::controller()), Err(SEQUENCE));
    assert_eq!(bench.keep_alive(admin), Err(SEQUENCE));
    assert!(!bench.csts(admin).ready());
    bench.set_cc(admin, ENABLE).unwrap();
    assert!(bench.csts(admin).ready());
    assert!(bench.identify(admin, Identify::controller()).is_ok());
}

#[test]
fn a_reset_closes_io_queues_and_is_over_when_they_are_gone() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, grant) = bench.io(admin, 1);
    let (two, _) = bench.io(admin, 2);
    assert!(grant.view.enabled());
    let waiting = bench.await_event(admin);
    bench.set_feature(admin, FeatureId::ARBITRATION, 5).unwrap();
    bench
        .set_feature(admin, FeatureId::VOLATILE_WRITE_CACHE, 0)
        .unwrap();
    assert!(grant.view.limits().write_through);

    bench.set_cc(admin, ENABLE.with_enabled(false)).unwrap();
    assert!(!grant.view.enabled());
    let aborted = Effect::Respond {
        connection: admin.id,
        key: waiting,
        status: Status::ABORTED_SQ_DELETION,
        dw0: 0,
        dw1: 0,
    };
    let expected = [
        aborted,
        close(one, CloseReason::Reset),
        close(two, CloseReason::Reset),
    ];
    assert_eq!(bench.effects(), expected);
    assert!(bench.csts(admin).ready());
    assert_eq!(bench.set_cc(admin, ENABLE), Err(SEQUENCE));
    bench.node.closed(one, bench.now);
    assert!(bench.csts(admin).ready());
    bench.node.closed(two, bench.now);
    assert!(!bench.csts(admin).ready());
    // The controller begins anew, with its defaults.
    bench.set_cc(admin, ENABLE).unwrap();
    assert_eq!(bench.get_feature(admin, FeatureId::ARBITRATION), Ok(0));
    let (_, grant) = bench.io(admin, 1);
    assert!(grant.view.enabled() && !grant.view.limits().write_through);
    assert_eq!(bench.effects(), []);
}

#[test]
fn a_shutdown_is_complete_when_io_queues_are_gone() {
    for how in [ShutdownNotification::Normal, ShutdownNotification::Abrupt] {
        let mut bench = Bench::standard();
        let admin = bench.enabled();
        let (one, grant) = bench.io(admin, 1);
        bench.set_cc(admin, ENABLE.with_shutdown(how)).unwrap();
        assert!(!grant.view.enabled());
        assert_eq!(bench.csts(admin).shutdown(), ShutdownStatus::Occurring);
        assert_eq!(bench.identify(admin, Identify::controller()), Err(SEQUENCE));
        assert_eq!(bench.settle(), [(one, CloseReason::Shutdown)]);
        assert_eq!(bench.csts(admin).shutdown(), ShutdownStatus::Complete);
        let (_, late) = bench.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, 1);
        assert_eq!(late.map_err(|rejected| rejected.status).err(), Some(SEQUENCE));
    }
    // Without I/O queues nothing has to be waited for.
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    bench
        .set_cc(admin, ENABLE.with_shutdown(ShutdownNotification::Normal))
        .unwrap();
    assert_eq!(bench.csts(admin).shutdown(), ShutdownStatus::Complete);
}

#[test]
fn a_failed_controller_tells_and_recovers_by_reset() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, grant) = bench.io(admin, 1);
    let waiting = bench.await_event(admin);
    bench.node.fail_controller(one);
    let expected = [
        event(admin, waiting, 0x0001_0300),
        close(one, CloseReason::ControllerFailed),
    ];
    assert_eq!(bench.effects(), expected);
    let csts = bench.csts(admin);
    assert!(csts.fatal() && csts.ready() && !grant.view.enabled());
    assert_eq!(bench.log_page(admin, LogId::ERROR, 64).len(), 64);
    bench.node.closed(one, bench.now);
    bench.set_cc(admin, ENABLE.with_enabled(false)).unwrap();
    assert_eq!(bench.csts(admin), Csts(0));
    bench.set_cc(admin, ENABLE).unwrap();
    bench.io(admin, 1);
}

#[test]
fn a_silent_host_is_dropped_when_its_timeout_is_over() {
    let mut bench = Bench::standard();
    let silent = bench.admin_with_kato(PORT_1, &nqn("a"), &host(1), 1050);
    bench.set_cc(silent, ENABLE).unwrap();
    let (one, grant) = bench.io(silent, 1);
    let other = bench.admin_with_kato(PORT_2, &nqn("b"), &host(2), 0);
    // Rounded up to the granularity of 100 ms.
    assert_eq!(bench.get_feature(silent, FeatureId::KEEP_ALIVE_TIMER), Ok(1100));
    assert_eq!(
        bench.node.next_deadline(),
        Some(bench.now + Duration::from_millis(1100))
    );
    bench.wait(1000);
    bench.keep_alive(silent).unwrap();
    bench.wait(1099);
    assert_eq!(bench.effects(), []);
    // I/O counts as a sign of life, but only once.
    grant.view.counters().read(512);
    bench.wait(1);
    assert_eq!(bench.effects(), []);
    bench.wait(1099);
    assert_eq!(bench.effects(), []);
    bench.wait(1);
    let reason = CloseReason::KeepAliveExpired;
    assert_eq!(bench.effects(), [close(one, reason), close(silent.id, reason)]);
    let csts = bench.csts(silent);
    assert!(csts.fatal() && !grant.view.enabled());
    assert!(bench.identify(silent, Identify::controller()).is_err());
    assert_eq!(
        bench.set_cc(silent, ENABLE.with_enabled(false)),
        Err(Status::ABORTED_SQ_DELETION)
    );
    let report = bench.node.report();
    assert_eq!(report.associations[0].ending, Some(reason));
    assert_eq!(bench.node.next_deadline(), None);
    bench.node.closed(silent.id, bench.now);
    assert_eq!(bench.node.counts(), (2, 2));
    bench.node.closed(one, bench.now);
    assert_eq!(bench.node.counts(), (1, 1));
    assert_eq!(bench.effects(), []);
    assert!(!bench.csts(other).fatal());
}

#[test]
fn the_timeout_can_be_changed_and_switched_off() {
    let mut bench = Bench::standard();
    let admin = bench.admin_with_kato(PORT_1, &nqn("a"), &host(1), 1000);
    bench.set_cc(admin, ENABLE).unwrap();
    assert_eq!(bench.set_feature(admin, FeatureId::KEEP_ALIVE_TIMER, 2001), Ok(0));
    assert_eq!(bench.get_feature(admin, FeatureId::KEEP_ALIVE_TIMER), Ok(2100));
    bench.wait(2099);
    assert_eq!(bench.effects(), []);
    assert_eq!(bench.set_feature(admin, FeatureId::KEEP_ALIVE_TIMER, 0), Ok(0));
    assert_eq!(bench.node.next_deadline(), None);
    bench.wait(1_000_000);
    assert_eq!(bench.effects(), []);
    let too_long = bench.set_feature(admin, FeatureId::KEEP_ALIVE_TIMER, u32::MAX);
    assert_eq!(too_long, Err(Status::KEEP_ALIVE_INVALID.with_dnr()));
    let default = GetFeatures {
        select: homi_spec::feature::Select::DEFAULT,
        ..GetFeatures::new(FeatureId::KEEP_ALIVE_TIMER)
    };
    assert_eq!(bench.dwords(admin.id, default.to_sqe(1)), Ok((1000, 0)));
}

#[test]
fn an_idle_discovery_host_is_dropped_after_two_minutes() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &Nqn::discovery(), &host(1));
    bench.set_cc(admin, ENABLE).unwrap();
    bench.wait(119_999);
    assert_eq!(bench.effects(), []);
    bench.wait(1);
    assert_eq!(bench.settle(), [(admin.id, CloseReason::KeepAliveExpired)]);
}

#[test]
fn with_the_admin_connection_everything_ends() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, grant) = bench.io(admin, 1);
    let (two, _) = bench.io(admin, 2);
    grant.view.counters().write(4096);
    bench.await_event(admin);
    bench.node.closed(admin.id, bench.now);
    let reason = CloseReason::AdminQueueClosed;
    assert_eq!(bench.effects(), [close(one, reason), close(two, reason)]);
    assert_eq!(bench.node.counts(), (2, 1));
    let (_, late) = bench.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, 3);
    assert!(late.is_err());
    bench.node.closed(two, bench.now);
    bench.node.closed(one, bench.now);
    bench.node.closed(one, bench.now);
    assert_eq!(bench.node.counts(), (0, 0));
    // What the queues did is not forgotten.
    let totals = bench.node.report().subsystems[0].totals;
    assert_eq!((totals.writes, totals.bytes_written), (1, 4096));
}

#[test]
fn disconnect_deletes_one_io_queue() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, _) = bench.io(admin, 1);
    let wrong = Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr();
    assert_eq!(
        bench.dwords(admin.id, Disconnect::default().to_sqe(1)),
        Err(wrong)
    );
    let format = Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr();
    assert_eq!(bench.dwords(one, Disconnect { recfmt: 1 }.to_sqe(1)), Err(format));
    let outcome = bench.send(one, Disconnect::default().to_sqe(1), &[]);
    assert_eq!(
        outcome,
        AdminOutcome::Disconnect {
            status: Status::SUCCESS
        }
    );
    bench.node.closed(one, bench.now);
    assert_eq!(bench.effects(), []);
    assert!(bench.csts(admin).ready());
    bench.io(admin, 1);
}

#[test]
fn io_queues_carry_no_admin_commands() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, _) = bench.io(admin, 1);
    let get = PropertyGet {
        size: PropertySize::Four,
        property: Property::CSTS,
    };
    assert_eq!(
        bench.dwords(one, get.to_sqe(1)),
        Err(Status::INVALID_OPCODE.with_dnr())
    );
    assert_eq!(bench.dwords(one, homi_spec::admin::keep_alive(1)), Err(SEQUENCE));
    let stranger = bench.connection();
    assert_eq!(
        bench.dwords(stranger, homi_spec::admin::keep_alive(1)),
        Err(SEQUENCE)
    );
    assert_eq!(
        bench.dwords(admin.id, Sqe::new(UNKNOWN_OPCODE.0, 0)),
        Err(Status::INVALID_OPCODE.with_dnr())
    );
    let mut unknown = Sqe::new(AdminOpcode::FABRICS.0, 0x77);
    unknown.set_sgl(Sgl::transport(0));
    assert_eq!(
        bench.dwords(admin.id, unknown),
        Err(Status::INVALID_OPCODE.with_dnr())
    );
    let connect = ConnectCommand::default().to_sqe(1, Sgl::in_capsule(0, 1024));
    assert_eq!(bench.dwords(admin.id, connect), Err(SEQUENCE));
    let mut prp = homi_spec::admin::keep_alive(1);
    prp.set_prp(0, 0);
    let outcome = bench.node.admin(admin.id, 1, &prp, &[], bench.now);
    assert!(matches!(outcome, AdminOutcome::Complete { status: INVALID, .. }));
}

#[test]
fn aborts_go_to_the_queue_that_has_the_command() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, _) = bench.io(admin, 1);
    let abort = |bench: &mut Bench, sqid, cid| {
        let key = bench.cid();
        (key, bench.send(admin.id, Abort { sqid, cid }.to_sqe(key), &[]))
    };
    let done = |dw0| AdminOutcome::Complete {
        status: Status::SUCCESS,
        dw0,
        dw1: 0,
        payload: Vec::new(),
    };
    assert_eq!(abort(&mut bench, 3, 7).1, done(1), "no such queue");
    assert_eq!(abort(&mut bench, 0, 7).1, done(1), "no such admin command");
    let (key, outcome) = abort(&mut bench, 1, 7);
    assert_eq!(outcome, AdminOutcome::Held);
    assert_eq!(
        bench.effects(),
        [Effect::Abort {
            connection: one,
            cid: 7,
            admin: admin.id,
            key
        }]
    );
    bench.node.abort_finished(admin.id, key, true);
    assert_eq!(bench.effects(), [event(admin, key, 0)]);
    bench.node.abort_finished(admin.id, key, true);
    assert_eq!(bench.effects(), [], "answered once");
    // Four at once, and what the queue's end does to them.
    let keys: Vec<u16> = (0..4).map(|cid| abort(&mut bench, 1, cid).0).collect();
    assert_eq!(
        abort(&mut bench, 1, 9).1,
        AdminOutcome::Complete {
            status: Status::ABORT_LIMIT_EXCEEDED,
            dw0: 0,
            dw1: 0,
            payload: Vec::new()
        }
    );
    bench.effects();
    bench.node.abort_finished(admin.id, keys[2], false);
    assert_eq!(bench.effects(), [event(admin, keys[2], 1)]);
    bench.node.closed(one, bench.now);
    assert_eq!(
        bench.effects(),
        [keys[0], keys[1], keys[3]].map(|key| event(admin, key, 1))
    );
}

#[test]
fn an_event_request_can_be_aborted() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let waiting = bench.await_event(admin);
    let sqe = Abort {
        sqid: 0,
        cid: waiting,
    }
    .to_sqe(900);
    assert_eq!(bench.dwords(admin.id, sqe), Ok((0, 0)));
    let aborted = Effect::Respond {
        connection: admin.id,
        key: waiting,
        status: Status::ABORT_REQUESTED,
        dw0: 0,
        dw1: 0,
    };
    assert_eq!(bench.effects(), [aborted]);
    assert_eq!(bench.dwords(admin.id, sqe), Ok((1, 0)));
}

#[test]
fn a_node_that_goes_down_ends_every_association() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, _) = bench.io(admin, 1);
    let discovery = bench.admin(PORT_1, &Nqn::discovery(), &host(1));
    bench.node.shut_down();
    let reason = CloseReason::NodeShutdown;
    assert_eq!(
        bench.settle(),
        [(one, reason), (admin.id, reason), (discovery.id, reason)]
    );
    assert_eq!(bench.node.counts(), (0, 0));
    let data = ConnectData::new(HOST_ID, DYNAMIC, &nqn("a"), &host(1));
    let command = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    assert!(bench.try_connect(PORT_1, command, &data).1.is_err());
}
