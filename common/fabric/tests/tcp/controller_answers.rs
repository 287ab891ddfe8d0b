//! What the controller end answers, and how it ends.

use crate::controller_end::{connected, fault_of, fresh, key_of, memory, read, waiting, write_in_capsule};
use crate::wire::{Attacked, DIGESTS, PLAIN, ic_req, terminate};
use homi_fabric::tcp::{
    Cancel, ControllerConnection, ControllerEvent, ControllerParams, ParameterError, RespondError,
    TransportError,
};
use homi_queue::{Data, Region};
use homi_spec::tcp::{FatalError, PduType, flags};
use homi_spec::{Cqe, Status};

// ---- answers ----

#[test]
fn an_answer_in_the_middle_of_a_capsule_discards_the_rest() {
    let mut controller = connected(PLAIN);
    let unit = PLAIN.capsule(write_in_capsule(7, 512), &[4; 512]);
    let key = key_of(&controller.takes(&unit[..100]));
    controller
        .respond(key, Cqe::default().with_status(Status::INVALID_FIELD))
        .unwrap();
    // The bytes to come look like commands; they are not.
    assert!(controller.takes(&unit[100..]).is_empty());
    assert_eq!(
        fault_of(&controller.takes(&PLAIN.capsule(read(7, 512), &[]))),
        None
    );
}

#[test]
fn answered_twice() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(7, 512), &[])));
    controller
        .respond_with_data(key, memory(512), 512, Cqe::default(), true)
        .unwrap();
    let sent = controller.sent();
    assert_eq!(
        controller.respond(key, Cqe::default()),
        Err(RespondError::Unknown(key))
    );
    let again = controller.respond_with_data(key, memory(512), 512, Cqe::default(), true);
    assert_eq!(again, Err(RespondError::Unknown(key)));
    assert!(controller.sent().is_empty());
    assert_eq!(sent.len(), 24 + 512);
}

#[test]
fn responses_carry_what_they_were_given_and_zeroes() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(0x0102, 512), &[])));
    controller
        .respond(key, Cqe::new(9).with_status(Status::INVALID_FIELD))
        .unwrap();
    let expected = [
        5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 4, 0,
    ];
    assert_eq!(controller.sent(), expected);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(0x0102, 4), &[])));
    let region = Region::from_vec(vec![1, 2, 3, 4, 5, 6]);
    controller
        .respond_with_data(key, Data::whole(region), 4, Cqe::default(), false)
        .unwrap();
    let data = [
        7, 4, 24, 24, 28, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4,
    ];
    let response = [
        5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0,
    ];
    assert_eq!(controller.sent(), [&data[..], &response[..]].concat());
}

#[test]
fn padding_towards_the_host_is_zero() {
    let mut controller = fresh();
    controller.takes(&ic_req(31, 3, 0));
    let _ = controller.sent();
    let key = key_of(&controller.takes(&DIGESTS.capsule(read(1, 4), &[])));
    controller
        .respond_with_data(key, memory(4), 4, Cqe::default(), true)
        .unwrap();
    let sent = controller.sent();
    assert_eq!((sent[3], sent.len()), (128, 128 + 4 + 4));
    assert_eq!(sent[28..132], [0; 104]);
}

#[test]
fn success_travels_as_a_flag_only_if_nothing_is_lost() {
    let with_result = Cqe {
        dw0: 1.into(),
        ..Cqe::default()
    };
    let failed = Cqe::default().with_status(Status::UNRECOVERED_READ_ERROR);
    let cases = [
        (Cqe::default(), true, true),
        (Cqe::default(), false, false),
        (with_result, true, false),
        (failed, true, false),
    ];
    for (cqe, allowed, expected) in cases {
        let mut controller = connected(PLAIN);
        let key = key_of(&controller.takes(&PLAIN.capsule(read(1, 512), &[])));
        controller
            .respond_with_data(key, memory(512), 512, cqe, allowed)
            .unwrap();
        let sent = controller.sent();
        assert_eq!(
            sent[1],
            flags::LAST_PDU | if expected { flags::SUCCESS } else { 0 }
        );
        assert_eq!(sent.len(), 24 + 512 + if expected { 0 } else { 24 });
    }
}

#[test]
fn a_response_longer_than_its_memory_is_refused_and_the_command_stays() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(1, 512), &[])));
    for data in [memory(511), Data::None, Data::Anywhere { len: 512 }] {
        let refused = controller.respond_with_data(key, data, 512, Cqe::default(), true);
        assert!(matches!(refused, Err(RespondError::Length { len: 512, .. })));
    }
    assert!(controller.sent().is_empty());
    controller
        .respond_with_data(key, Data::None, 0, Cqe::default(), true)
        .unwrap();
    assert_eq!(controller.sent().len(), 24);
}

#[test]
fn payload_is_referred_to_and_released_when_it_is_sent() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(1, 4096), &[])));
    let region = Region::allocate(4096, 8).unwrap();
    controller
        .respond_with_data(key, Data::whole(region.clone()), 4096, Cqe::default(), true)
        .unwrap();
    assert_eq!(controller.output().pieces_left(), 2);
    assert!(!region.is_unique());
    let _ = controller.sent();
    assert!(region.is_unique());
}

#[test]
fn a_cancelled_write_ends_when_its_data_has_passed() {
    let mut controller = connected(PLAIN);
    let (key, ttag) = waiting(&mut controller, PLAIN, 7, 1024);
    controller.takes(&PLAIN.h2c(7, ttag, 0, &[1; 512], false));
    assert_eq!(controller.cancel(key), Ok(Cancel::Later));
    assert_eq!(controller.cancel(key), Ok(Cancel::Later));
    assert_eq!(
        controller.respond(key, Cqe::default()),
        Err(RespondError::DataComing)
    );
    assert_eq!(controller.take_data(key).len(), 0);
    let events = controller.takes(&PLAIN.h2c(7, ttag, 512, &[1; 512], true));
    assert_eq!(
        events,
        [ControllerEvent::DataFailed {
            key,
            status: Status::ABORT_REQUESTED
        }]
    );
    assert_eq!(controller.take_data(key).len(), 1024);
    assert_eq!(controller.cancel(key), Ok(Cancel::Now));
    controller
        .respond(key, Cqe::default().with_status(Status::ABORT_REQUESTED))
        .unwrap();
    assert_eq!(controller.cancel(key), Err(RespondError::Unknown(key)));
}

#[test]
fn cancelled_while_bytes_are_landing() {
    let mut controller = connected(PLAIN);
    let (key, ttag) = waiting(&mut controller, PLAIN, 7, 4096);
    controller.takes(&PLAIN.h2c(7, ttag, 0, &[1; 4096], true)[..24]);
    let segment = controller.landing(4096).unwrap();
    assert!(controller.landing(4097).is_none());
    assert_eq!(controller.cancel(key), Ok(Cancel::Later));
    assert!(controller.landing(1).is_none());
    assert!(
        !segment.region().is_unique(),
        "the memory stays with the connection"
    );
    assert_eq!(controller.landed(4000), Ok(None));
    assert_eq!(
        controller.landed(96),
        Ok(Some(ControllerEvent::DataFailed {
            key,
            status: Status::ABORT_REQUESTED
        }))
    );
}

#[test]
fn dropped_while_bytes_are_landing() {
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 4096);
    controller.takes(&PLAIN.h2c(7, ttag, 0, &[1; 4096], true)[..24]);
    let segment = controller.landing(4096).unwrap();
    drop(controller);
    segment.region().write(segment.start(), &[1; 4096]).unwrap();
    assert!(segment.region().is_unique());
}

// ---- the end ----

#[test]
fn the_host_says_why_it_goes() {
    let echo = PLAIN.r2t(1, 2, 3, 4);
    let unit = terminate(PduType::H2C_TERM_REQ, FatalError::INVALID_HEADER_FIELD, 12, &echo);
    for cut in [1, 7, unit.len()] {
        let mut controller = connected(DIGESTS);
        let events: Vec<_> = unit.chunks(cut).flat_map(|part| controller.takes(part)).collect();
        let [ControllerEvent::PeerTerminated(reason)] = &events[..] else {
            panic!("{events:?}")
        };
        let text = reason.to_string();
        assert!(
            text.contains("host") && text.contains("byte 12") && text.contains("R2T"),
            "{text}"
        );
        assert!(controller.failed() && controller.sent().is_empty());
        assert!(controller.takes(&PLAIN.capsule(read(1, 512), &[])).is_empty());
    }
    // Before anything else, and of an unknown kind.
    let unit = terminate(PduType::H2C_TERM_REQ, FatalError(99), 0xabc, &[]);
    let events = fresh().takes(&unit);
    assert!(
        matches!(&events[..], [ControllerEvent::PeerTerminated(reason)] if reason.to_string().contains("0xabc"))
    );
}

#[test]
fn terminate_requests_of_impossible_length() {
    for plen in [0, 23, 153, u32::MAX] {
        let mut unit = terminate(PduType::H2C_TERM_REQ, FatalError::SEQUENCE_ERROR, 0, &[]);
        unit[4..8].copy_from_slice(&plen.to_le_bytes());
        assert!(matches!(
            connected(PLAIN).breaks(&unit),
            TransportError::PduLength { .. }
        ));
    }
}

#[test]
fn parameters_out_of_range() {
    let defaults = ControllerParams::default();
    let error = |params| ControllerConnection::new(params).unwrap_err();
    assert_eq!(
        error(ControllerParams {
            cpda_z: 32,
            ..defaults
        }),
        ParameterError::Alignment(32)
    );
    for max_h2c_data in [0, 4092, 4097, u32::MAX] {
        let found = error(ControllerParams {
            max_h2c_data,
            ..defaults
        });
        assert_eq!(found, ParameterError::MaxH2cData(max_h2c_data));
    }
    assert_eq!(
        error(ControllerParams {
            max_in_capsule_io: 8,
            ..defaults
        }),
        ParameterError::InCapsule(8)
    );
    for max_depth in [0, 4097] {
        assert!(matches!(
            error(ControllerParams {
                max_depth,
                ..defaults
            }),
            ParameterError::Depth { .. }
        ));
    }
}

#[test]
fn an_idle_connection_is_small() {
    let controller = connected(DIGESTS);
    assert!(
        size_of_val(&controller) <= 512,
        "{} bytes",
        size_of_val(&controller)
    );
}
