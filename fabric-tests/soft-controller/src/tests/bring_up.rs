use homi_spec::controller::{Cap, Cc, ShutdownNotification, ShutdownStatus};
use homi_spec::identify::{Identify, IdentifyController};
use homi_spec::registers::{SUBSYSTEM_RESET, offset};
use zerocopy::FromBytes;

use super::{Raw, enabled};
use crate::{Fault, FaultRule, MisuseKind, NEVER, SoftConfig, SoftController, Trigger};

#[test]
fn a_controller_becomes_ready_and_says_what_it_is() {
    let mut raw = Raw::new(SoftConfig::default());
    let cap = Cap(raw.registers.read64(0));
    assert_eq!((cap.max_queue_entries(), cap.timeout_ms()), (1024, 2000));
    assert!(cap.subsystem_reset() && cap.contiguous_queues() && !cap.cmb());
    assert_eq!(raw.read(offset::VS), 0x0002_0000);
    let cqe = raw.admin_page(Identify::controller().to_sqe(0));
    assert!(cqe.status().is_success());
    let page = IdentifyController::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
    assert_eq!(page.serial(), Some("SOFT0001"));
    assert!(raw.vectors[0].take().unwrap() > 0);
    raw.assert_clean();
}

#[test]
fn readiness_takes_the_steps_that_were_configured() {
    let model = SoftController::new(SoftConfig {
        ready_steps: 5,
        ..SoftConfig::default()
    })
    .unwrap();
    let raw = Raw::cold(&model, 0);
    raw.program();
    raw.write(offset::CC, enabled().0);
    for _ in 0..4 {
        assert!(model.step());
        assert!(!raw.csts().ready());
    }
    model.step();
    assert!(raw.csts().ready());
    // Fixed while enabled.
    raw.write(offset::AQA, 0);
    raw.write(offset::CC, enabled().with_mps(1).0);
    let kinds: Vec<_> = model.misuse().into_iter().map(|misuse| misuse.kind).collect();
    assert_eq!(
        kinds,
        [
            MisuseKind::FixedWhileEnabled { at: 0x24 },
            MisuseKind::FixedWhileEnabled { at: 0x14 }
        ]
    );
}

#[test]
fn what_a_controller_cannot_work_with_is_fatal() {
    for break_it in [
        |raw: &Raw| raw.write(offset::AQA, 0),
        |raw: &Raw| raw.write(offset::CC, enabled().with_mps(9).0),
        |raw: &Raw| raw.write(offset::CC, enabled().with_css(3).0),
        |raw: &Raw| raw.write(offset::CC, Cc(enabled().0 | 7 << 11).0),
    ] {
        let model = SoftController::new(SoftConfig::default()).unwrap();
        let raw = Raw::cold(&model, 0);
        raw.program();
        break_it(&raw);
        raw.write(offset::CC, enabled().0 | raw.read(offset::CC));
        model.run_until_idle();
        assert!(raw.csts().fatal() && !raw.csts().ready());
        assert!(!model.misuse().is_empty());
        // A reset makes it usable again.
        raw.write(offset::CC, 0);
        model.run_until_idle();
        assert_eq!(raw.csts().0, 0);
        raw.program();
        raw.write(offset::CC, enabled().0);
        model.run_until_idle();
        assert!(raw.csts().ready());
    }
}

#[test]
fn enabling_and_disabling_too_early_is_noticed() {
    let model = SoftController::new(SoftConfig::default()).unwrap();
    let raw = Raw::cold(&model, 0);
    raw.program();
    raw.write(offset::CC, enabled().0);
    raw.write(offset::CC, 0);
    raw.write(offset::CC, enabled().0);
    let kinds: Vec<_> = model.misuse().into_iter().map(|misuse| misuse.kind).collect();
    assert_eq!(kinds, [MisuseKind::DisabledTooEarly, MisuseKind::EnabledTooEarly]);
}

#[test]
fn shutdown_completes_and_needs_a_reset_after() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.write(
        offset::CC,
        enabled().with_shutdown(ShutdownNotification::Normal).0,
    );
    assert_eq!(raw.csts().shutdown(), ShutdownStatus::Occurring);
    raw.model.run_until_idle();
    assert_eq!(raw.csts().shutdown(), ShutdownStatus::Complete);
    raw.assert_clean();
    raw.admin.put(Identify::controller().to_sqe(0));
    raw.ring(&raw.admin);
    assert_eq!(raw.model.misuse()[0].kind, MisuseKind::SubmittedAfterShutdown);
    raw.write(offset::CC, 0);
    raw.model.run_until_idle();
    raw.write(offset::CC, enabled().0);
    raw.model.run_until_idle();
    assert!(raw.csts().ready());
    assert_eq!(raw.csts().shutdown(), ShutdownStatus::Normal);
}

#[test]
fn a_subsystem_reset_is_remembered_until_it_is_cleared() {
    let raw = Raw::new(SoftConfig::default());
    raw.write(offset::NSSR, 0x1234);
    assert!(raw.csts().ready());
    raw.write(offset::NSSR, SUBSYSTEM_RESET);
    assert!(!raw.csts().ready() && raw.csts().subsystem_reset_occurred());
    assert_eq!((raw.read(offset::CC), raw.read(offset::AQA)), (0, 0));
    raw.write(offset::CSTS, 1 << 4);
    assert_eq!(raw.csts().0, 0);
}

#[test]
fn a_reset_of_the_function_turns_vectors_and_bus_mastering_off() {
    let raw = Raw::new(SoftConfig::default());
    raw.function.reset().unwrap();
    assert_eq!((raw.csts().0, raw.read(offset::CC)), (0, 0));
    raw.program();
    raw.write(offset::CC, enabled().0);
    raw.model.run_until_idle();
    assert!(raw.csts().ready());
    raw.write(offset::DOORBELLS, 1);
    raw.model.run_until_idle();
    // The entry cannot be fetched.
    assert!(raw.csts().fatal());
    let faults = raw.model.space(0).unwrap().faults();
    assert_eq!(faults[0].reason, crate::FaultReason::BusMasterOff);
}

#[test]
fn a_removed_function_reads_as_ones() {
    let raw = Raw::new(SoftConfig::default());
    raw.model.remove(0);
    assert_eq!(raw.csts().0, u32::MAX);
    raw.write(offset::CC, 0);
    assert!(raw.function.registers(0).is_err());
    assert!(raw.function.removal().is_some());
    assert!(!raw.model.step());
}

#[test]
fn becoming_ready_can_fail_in_every_way() {
    for (fault, ready, fatal) in [
        (Fault::Ignore, false, false),
        (Fault::Slow(NEVER), false, false),
        (Fault::Slow(10), true, false),
        (Fault::Fatal, false, true),
    ] {
        let model = SoftController::new(SoftConfig {
            faults: vec![FaultRule::on(Trigger::Enable, fault)],
            ..SoftConfig::default()
        })
        .unwrap();
        let raw = Raw::cold(&model, 0);
        raw.program();
        raw.write(offset::CC, enabled().0);
        model.run_until_idle();
        assert_eq!((raw.csts().ready(), raw.csts().fatal()), (ready, fatal));
        // Giving up on it is no misuse.
        raw.write(offset::CC, 0);
        model.run_until_idle();
        assert_eq!(raw.csts().0, 0);
        raw.assert_clean();
    }
}
