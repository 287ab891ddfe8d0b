//! The controller end against hosts that break the protocol. Where a test repeats what broke another implementation,
//! its name says what that was.

use crate::pair::contents;
use crate::wire::{Attacked, DIGESTS, PLAIN, Wire, ic_req};
use homi_fabric::tcp::{
    AcceptError, CommandKey, ControllerConnection, ControllerEvent, ControllerParams, End, RespondError,
    TransportError,
};
use homi_queue::{Command, Data, Region};
use homi_spec::command::FabricsOpcode;
use homi_spec::sgl::Sgl;
use homi_spec::tcp::{FatalError, PduType};
use homi_spec::{Cqe, Sqe, Status};

/// An I/O queue of 8 commands after Connect, which takes 4096 bytes in a capsule and in an H2CData unit.
pub(crate) fn connected(wire: Wire) -> ControllerConnection {
    let mut controller = fresh();
    assert_eq!(
        controller.takes(&ic_req(0, wire.dgst(), 0)),
        [ControllerEvent::Ready]
    );
    assert_eq!(
        (controller.header_digest(), controller.data_digest()),
        (wire.header_digest, wire.data_digest)
    );
    let _ = controller.sent();
    controller.set_queue(8, true);
    controller
}

pub(crate) fn fresh() -> ControllerConnection {
    let params = ControllerParams {
        max_in_capsule_io: 4096,
        max_h2c_data: 4096,
        ..ControllerParams::default()
    };
    ControllerConnection::new(params).unwrap()
}

fn write(cid: u16, len: u32) -> Sqe {
    let mut sqe = Command::write(1, 0, 1).0;
    sqe.cid = cid.into();
    sqe.set_sgl(Sgl::transport(len));
    sqe
}

pub(crate) fn write_in_capsule(cid: u16, len: u32) -> Sqe {
    let mut sqe = write(cid, 0);
    sqe.set_sgl(Sgl::in_capsule(0, len));
    sqe
}

pub(crate) fn read(cid: u16, len: u32) -> Sqe {
    let mut sqe = Command::read(1, 0, 1).0;
    sqe.cid = cid.into();
    sqe.set_sgl(Sgl::transport(len));
    sqe
}

pub(crate) fn memory(len: usize) -> Data {
    Data::whole(Region::allocate(len, 8).unwrap())
}

/// The key of the one command among the events.
pub(crate) fn key_of(events: &[ControllerEvent]) -> CommandKey {
    match events {
        [ControllerEvent::Command { key, .. }, ..] => *key,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn fault_of(events: &[ControllerEvent]) -> Option<Status> {
    match events {
        [ControllerEvent::Command { fault, .. }, ..] => *fault,
        other => panic!("{other:?}"),
    }
}

/// A write that waits for `len` bytes by R2T: its key and transfer tag.
pub(crate) fn waiting(
    controller: &mut ControllerConnection,
    wire: Wire,
    cid: u16,
    len: u32,
) -> (CommandKey, u16) {
    let key = key_of(&controller.takes(&wire.capsule(write(cid, len), &[])));
    let _ = controller.sent();
    controller
        .accept(key, memory(usize::try_from(len).unwrap()))
        .unwrap();
    let sent = controller.sent();
    assert_eq!((sent[0], sent[8..10].to_vec()), (9, cid.to_le_bytes().to_vec()));
    assert_eq!(sent[12..20], [[0; 4], len.to_le_bytes()].concat());
    (key, u16::from_le_bytes([sent[10], sent[11]]))
}

// ---- H2CData ----

#[test]
fn data_before_connect() {
    let mut controller = fresh();
    controller.takes(&ic_req(0, 0, 0));
    let error = controller.breaks(&PLAIN.h2c(0, 0, 0, &[1; 512], true));
    assert_eq!(error, TransportError::UnknownTransfer { ttag: 0 });
}

#[test]
fn data_before_the_connection_is_initialised() {
    let error = fresh().breaks(&PLAIN.h2c(0, 0, 0, &[1; 512], true));
    assert!(matches!(
        error,
        TransportError::UnexpectedPdu {
            end: End::Controller,
            ..
        }
    ));
    assert_eq!(error.fatal_error().0, FatalError::SEQUENCE_ERROR);
}

#[test]
fn data_for_the_slot_of_a_read() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(read(7, 512), &[])));
    let error = controller.breaks(&PLAIN.h2c(7, key.0, 0, &[1; 512], true));
    assert_eq!(error, TransportError::UnknownTransfer { ttag: key.0 });
}

#[test]
fn data_for_a_write_that_was_not_asked_for_it() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(write(7, 512), &[])));
    controller.breaks(&PLAIN.h2c(7, key.0, 0, &[1; 512], true));
}

#[test]
fn data_for_an_unused_slot() {
    for ttag in [1, 5, 7, 8, 100, 1023, 1024, u16::MAX] {
        let mut controller = connected(PLAIN);
        waiting(&mut controller, PLAIN, 7, 512);
        // Slot 0 waits, with another tag.
        let error = controller.breaks(&PLAIN.h2c(7, ttag ^ 0x8000, 0, &[1; 512], true));
        assert_eq!(error, TransportError::UnknownTransfer { ttag: ttag ^ 0x8000 });
    }
}

#[test]
fn data_under_the_tag_of_an_earlier_transfer() {
    let mut controller = connected(PLAIN);
    let (key, old) = waiting(&mut controller, PLAIN, 7, 512);
    controller.takes(&PLAIN.h2c(7, old, 0, &[1; 512], true));
    controller.respond(key, Cqe::default()).unwrap();
    let (again, new) = waiting(&mut controller, PLAIN, 7, 512);
    assert_eq!(key, again);
    assert_ne!(old, new);
    let error = controller.breaks(&PLAIN.h2c(7, old, 0, &[2; 512], true));
    assert_eq!(error, TransportError::UnknownTransfer { ttag: old });
}

#[test]
fn data_twice() {
    let mut controller = connected(PLAIN);
    let (key, ttag) = waiting(&mut controller, PLAIN, 7, 512);
    let unit = PLAIN.h2c(7, ttag, 0, &[1; 512], true);
    assert_eq!(controller.takes(&unit), [ControllerEvent::DataReceived { key }]);
    controller.breaks(&unit);
}

#[test]
fn data_with_the_id_of_another_command() {
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 512);
    waiting(&mut controller, PLAIN, 8, 512);
    let error = controller.breaks(&PLAIN.h2c(8, ttag, 0, &[1; 512], true));
    assert_eq!(
        error,
        TransportError::WrongCommand {
            ttag,
            expected: 7,
            found: 8
        }
    );
}

#[test]
fn data_of_a_bad_length() {
    // Longer than the transfer, which includes lengths that overflow together with the offset.
    for datal in [1025, 4096, 0x7fff_ffff, 0xffff_ff00] {
        let mut controller = connected(PLAIN);
        let (_, ttag) = waiting(&mut controller, PLAIN, 7, 1024);
        let unit = PLAIN.altered(PLAIN.h2c(7, ttag, 0, &[1; 8], true), |unit| {
            unit[16..20].copy_from_slice(&u32::to_le_bytes(datal));
            unit[4..8].copy_from_slice(&u32::to_le_bytes(datal + 24));
        });
        let error = controller.breaks(&unit);
        assert!(
            matches!(
                error,
                TransportError::DataRange { .. } | TransportError::H2cDataLimit { .. }
            ),
            "{error}"
        );
    }
    // Unlike the length of the unit.
    for datal in [0, 511, 513, u32::MAX] {
        let mut controller = connected(PLAIN);
        let (_, ttag) = waiting(&mut controller, PLAIN, 7, 512);
        let unit = PLAIN.altered(PLAIN.h2c(7, ttag, 0, &[1; 512], true), |unit| {
            unit[16..20].copy_from_slice(&u32::to_le_bytes(datal));
        });
        assert!(matches!(
            controller.breaks(&unit),
            TransportError::PduLength { found: 536, .. }
        ));
    }
    // None at all.
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 512);
    let unit = PLAIN.altered(PLAIN.h2c(7, ttag, 0, &[], true), |unit| unit[3] = 24);
    assert!(matches!(
        controller.breaks(&unit),
        TransportError::PduLength { .. }
    ));
}

#[test]
fn data_at_a_bad_offset() {
    for (before, offset) in [
        (0, 4),
        (0, 512),
        (0, u32::MAX),
        (512, 0),
        (512, 508),
        (512, 516),
        (512, 0xffff_fe00),
    ] {
        let mut controller = connected(PLAIN);
        let (_, ttag) = waiting(&mut controller, PLAIN, 7, 1024);
        if before > 0 {
            assert!(
                controller
                    .takes(&PLAIN.h2c(7, ttag, 0, &[1; 512], false))
                    .is_empty()
            );
        }
        let error = controller.breaks(&PLAIN.h2c(7, ttag, offset, &[1; 512], true));
        assert!(
            matches!(error, TransportError::DataRange { expected, .. } if expected == before),
            "{error}"
        );
        assert_eq!(error.fatal_error().0, FatalError::DATA_TRANSFER_OUT_OF_RANGE);
    }
}

#[test]
fn more_data_in_a_unit_than_was_announced() {
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 8192);
    let error = controller.breaks(&PLAIN.h2c(7, ttag, 0, &[1; 8192], true));
    assert_eq!(
        error,
        TransportError::H2cDataLimit {
            found: 8192,
            limit: 4096
        }
    );
    assert_eq!(error.fatal_error().0, FatalError::LIMIT_EXCEEDED);
}

#[test]
fn the_last_flag_in_the_wrong_place() {
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 1024);
    let error = controller.breaks(&PLAIN.h2c(7, ttag, 0, &[1; 512], true));
    assert!(matches!(
        error,
        TransportError::LastFlag {
            last: true,
            end: 512,
            total: 1024,
            ..
        }
    ));
    let mut controller = connected(PLAIN);
    let (_, ttag) = waiting(&mut controller, PLAIN, 7, 512);
    let error = controller.breaks(&PLAIN.h2c(7, ttag, 0, &[1; 512], false));
    assert!(matches!(error, TransportError::LastFlag { last: false, .. }));
}

// ---- digests ----

#[test]
fn a_bad_digest_on_a_unit_that_is_not_the_last_fails_the_command_once() {
    let mut controller = connected(DIGESTS);
    let (key, ttag) = waiting(&mut controller, DIGESTS, 7, 1024);
    let mut unit = DIGESTS.h2c(7, ttag, 0, &[1; 512], false);
    *unit.last_mut().unwrap() ^= 1;
    assert!(controller.takes(&unit).is_empty());
    assert_eq!(
        controller.respond(key, Cqe::default()),
        Err(RespondError::DataComing)
    );
    let events = controller.takes(&DIGESTS.h2c(7, ttag, 512, &[2; 512], true));
    assert_eq!(
        events,
        [ControllerEvent::DataFailed {
            key,
            status: Status::TRANSIENT_TRANSPORT_ERROR
        }]
    );
    assert_eq!(controller.take_data(key).len(), 1024);
    let status = Status::TRANSIENT_TRANSPORT_ERROR;
    controller
        .respond(key, Cqe::default().with_status(status))
        .unwrap();
    assert_eq!(
        controller.respond(key, Cqe::default()),
        Err(RespondError::Unknown(key))
    );
    // The queue goes on.
    let (key, ttag) = waiting(&mut controller, DIGESTS, 7, 512);
    let events = controller.takes(&DIGESTS.h2c(7, ttag, 0, &[1; 512], true));
    assert_eq!(events, [ControllerEvent::DataReceived { key }]);
}

#[test]
fn a_bad_digest_in_a_capsule() {
    let mut controller = connected(DIGESTS);
    let mut unit = DIGESTS.capsule(write_in_capsule(7, 512), &[1; 512]);
    *unit.last_mut().unwrap() ^= 0x80;
    let (header, payload) = unit.split_at(76);
    let key = key_of(&controller.takes(header));
    controller.accept(key, memory(512)).unwrap();
    let events = controller.takes(payload);
    assert_eq!(
        events,
        [ControllerEvent::DataFailed {
            key,
            status: Status::TRANSIENT_TRANSPORT_ERROR
        }]
    );
}

#[test]
fn a_bad_digest_on_data_of_a_command_that_was_refused_means_nothing() {
    for respond in [false, true] {
        let mut controller = connected(DIGESTS);
        let mut unit = DIGESTS.capsule(write_in_capsule(7, 512), &[1; 512]);
        *unit.last_mut().unwrap() ^= 0x80;
        let (header, payload) = unit.split_at(76);
        let key = key_of(&controller.takes(header));
        if respond {
            controller
                .respond(key, Cqe::default().with_status(Status::INVALID_OPCODE))
                .unwrap();
        }
        assert!(controller.takes(payload).is_empty());
        if !respond {
            assert_eq!(controller.accept(key, memory(512)), Err(AcceptError::TooLate));
            controller.respond(key, Cqe::default()).unwrap();
        }
        assert_eq!(controller.in_flight(), 0);
        assert_eq!(
            fault_of(&controller.takes(&DIGESTS.capsule(read(7, 512), &[]))),
            None
        );
    }
}

#[test]
fn a_bad_header_digest() {
    let units = [
        DIGESTS.capsule(read(7, 512), &[]),
        DIGESTS.capsule(write_in_capsule(7, 512), &[0; 512]),
    ];
    for unit in units {
        for bit in [8 * 20, 8 * 63, 8 * 72, 8 * 75 + 7] {
            let mut broken = unit.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let received = u32::from_le_bytes([broken[72], broken[73], broken[74], broken[75]]);
            let error = connected(DIGESTS).breaks(&broken);
            assert_eq!(error.fatal_error(), (FatalError::HEADER_DIGEST_ERROR, received));
        }
    }
}

#[test]
fn digest_flags_against_the_negotiation() {
    let header = Wire {
        header_digest: true,
        data_digest: false,
    };
    let data = Wire {
        header_digest: false,
        data_digest: true,
    };
    for (negotiated, spoken) in [(PLAIN, header), (PLAIN, data), (header, PLAIN), (data, PLAIN)] {
        let error = connected(negotiated).breaks(&spoken.capsule(write_in_capsule(1, 512), &[1; 512]));
        assert!(matches!(error, TransportError::DigestFlag { .. }), "{error}");
        assert_eq!(error.fatal_error(), (FatalError::INVALID_HEADER_FIELD, 1));
    }
}

// ---- headers ----

#[test]
fn every_wrong_header_length() {
    for wire in [PLAIN, DIGESTS] {
        for hlen in 0..=255 {
            if hlen != 72 {
                let unit = [4, u8::from(wire.header_digest), hlen, 0, 76, 0, 0, 0, 0];
                let error = connected(wire).breaks(&unit);
                assert_eq!(
                    error,
                    TransportError::HeaderLength {
                        pdu: PduType::CAPSULE_CMD,
                        expected: 72,
                        found: hlen
                    }
                );
            }
            if hlen != 128 {
                let error = fresh().breaks(&[0, 0, hlen, 0, 128, 0, 0, 0]);
                assert_eq!(error.fatal_error(), (FatalError::INVALID_HEADER_FIELD, 2));
            }
            if hlen != 24 {
                connected(wire).breaks(&[6, u8::from(wire.header_digest), hlen, 24, 76, 2, 0, 0]);
                connected(wire).breaks(&[2, 0, hlen, 0, 24, 0, 0, 0]);
            }
        }
    }
}

#[test]
fn every_type_that_a_controller_does_not_take() {
    for pdu in 0..=255 {
        if ![0, 2].contains(&pdu) {
            let error = fresh().breaks(&[pdu, 0, 24, 0, 24, 0, 0, 0]);
            assert!(matches!(
                error,
                TransportError::UnexpectedPdu { .. } | TransportError::UnknownPdu(_)
            ));
        }
        if ![2, 4, 6].contains(&pdu) {
            let known = [0, 1, 3, 5, 7, 9].contains(&pdu);
            let error = connected(PLAIN).breaks(&[pdu, 0, 24, 0, 24, 0, 0, 0]);
            assert_eq!(matches!(error, TransportError::UnexpectedPdu { .. }), known);
        }
    }
}

#[test]
fn initialised_twice() {
    let error = connected(PLAIN).breaks(&ic_req(0, 0, 0));
    assert_eq!(error.fatal_error(), (FatalError::SEQUENCE_ERROR, 0));
}

#[test]
fn lengths_and_offsets_that_lie() {
    let unit = PLAIN.capsule(write_in_capsule(7, 512), &[1; 512]);
    let lie = |at: usize, value: u8| PLAIN.altered(unit.clone(), |unit| unit[at] = value);
    // PDO inside the header, unaligned, and past the end.
    for pdo in [0, 1, 71, 73, 75, 255] {
        let error = connected(PLAIN).breaks(&lie(3, pdo));
        assert_eq!(
            error.fatal_error(),
            (FatalError::INVALID_HEADER_FIELD, 3),
            "{error}"
        );
    }
    // PLEN shorter than the header, and between header and data.
    for plen in [0, 8, 71, 73] {
        let error = connected(PLAIN).breaks(&PLAIN.altered(unit.clone(), |unit| {
            unit[4..8].copy_from_slice(&u32::to_le_bytes(plen));
            unit[3] = 76;
        }));
        assert_eq!(
            error.fatal_error(),
            (FatalError::INVALID_HEADER_FIELD, 4),
            "{error}"
        );
    }
    // A digest that does not fit.
    let data_only = Wire {
        header_digest: false,
        data_digest: true,
    };
    let unit = data_only.altered(data_only.capsule(write_in_capsule(7, 512), &[1; 512]), |unit| {
        unit[4..8].copy_from_slice(&u32::to_le_bytes(76));
    });
    assert!(matches!(
        connected(data_only).breaks(&unit),
        TransportError::PduLength { .. }
    ));
    // An alignment that was agreed and is not kept.
    let params = ControllerParams {
        cpda_z: 31,
        ..ControllerParams::default()
    };
    let mut controller = ControllerConnection::new(params).unwrap();
    controller.takes(&ic_req(0, 0, 0));
    let error = controller.breaks(&PLAIN.capsule(write_in_capsule(7, 512), &[1; 512]));
    assert!(matches!(
        error,
        TransportError::DataOffset {
            found: 72,
            alignment: 128,
            ..
        }
    ));
}

#[test]
fn initialisation_that_asks_for_what_does_not_exist() {
    let alter = |at: usize, value: u8| {
        let mut unit = ic_req(0, 0, 0);
        unit[at] = value;
        unit
    };
    assert_eq!(
        fresh().breaks(&alter(8, 1)).fatal_error(),
        (FatalError::UNSUPPORTED_PARAMETER, 8)
    );
    assert_eq!(fresh().breaks(&alter(9, 1)), TransportError::Version(256));
    assert_eq!(
        fresh().breaks(&alter(10, 32)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 10)
    );
    assert_eq!(
        fresh().breaks(&alter(4, 127)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 4)
    );
    assert_eq!(
        fresh().breaks(&alter(7, 1)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 4)
    );
    assert_eq!(
        fresh().breaks(&alter(1, 1)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 1)
    );
    // Reserved digest bits are not granted.
    let mut controller = fresh();
    controller.takes(&ic_req(0, 0xff, u32::MAX));
    let sent = controller.sent();
    assert_eq!((sent.len(), sent[0], sent[11]), (128, 1, 3));
    assert_eq!(sent[12..16], 4096_u32.to_le_bytes());
    assert_eq!(sent[16..], [0; 112]);
}

#[test]
fn digests_that_policy_denies_are_not_granted() {
    let params = ControllerParams {
        header_digest: false,
        data_digest: false,
        ..ControllerParams::default()
    };
    let mut controller = ControllerConnection::new(params).unwrap();
    controller.takes(&ic_req(0, 3, 0));
    assert_eq!(controller.sent()[11], 0);
}

// ---- commands ----

#[test]
fn a_four_gigabyte_sgl_allocates_nothing_and_asks_for_nothing() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(write(7, u32::MAX), &[])));
    assert!(controller.output().is_empty());
    assert_eq!(controller.take_data(key).len(), 0);
    controller
        .respond(key, Cqe::default().with_status(Status::SGL_DATA_LENGTH_INVALID))
        .unwrap();
    assert_eq!(controller.in_flight(), 0);
}

#[test]
fn more_in_a_capsule_than_the_queue_takes() {
    let error = connected(PLAIN).breaks(&PLAIN.capsule(write_in_capsule(7, 4112), &[0; 4112]));
    assert_eq!(
        error,
        TransportError::InCapsuleLimit {
            found: 4112,
            limit: 4096
        }
    );
    // A length that is claimed but never comes.
    let unit = PLAIN.altered(PLAIN.capsule(write_in_capsule(7, 512), &[1; 512]), |unit| {
        unit[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    });
    assert!(matches!(
        connected(PLAIN).breaks(&unit),
        TransportError::InCapsuleLimit { .. }
    ));
    // Fabrics commands may carry 8192 bytes on any queue, and so may every command before Connect.
    let mut fabrics = write_in_capsule(7, 8192);
    fabrics.opcode = FabricsOpcode::FABRICS;
    fabrics.nsid = 1.into();
    assert_eq!(
        fault_of(&connected(PLAIN).takes(&PLAIN.capsule(fabrics, &[0; 8192]))),
        None
    );
    let mut controller = fresh();
    controller.takes(&ic_req(0, 0, 0));
    assert_eq!(
        fault_of(&controller.takes(&PLAIN.capsule(fabrics, &[0; 8192]))),
        None
    );
}

#[test]
fn more_commands_than_the_queue_has_entries() {
    let mut controller = connected(PLAIN);
    for cid in 0..8 {
        controller.takes(&PLAIN.capsule(read(cid, 512), &[]));
    }
    assert_eq!(controller.in_flight(), 8);
    assert_eq!(
        controller.breaks(&PLAIN.capsule(read(8, 512), &[])),
        TransportError::CommandLimit { limit: 8 }
    );
}

#[test]
fn a_second_command_before_connect_is_answered() {
    let mut controller = fresh();
    controller.takes(&ic_req(0, 0, 0));
    controller.takes(&PLAIN.capsule(read(0, 512), &[]));
    let error = controller.breaks(&PLAIN.capsule(read(1, 512), &[]));
    assert_eq!(error, TransportError::CommandLimit { limit: 1 });
}

#[test]
fn a_command_id_in_flight_twice() {
    let mut controller = connected(PLAIN);
    let first = key_of(&controller.takes(&PLAIN.capsule(read(7, 512), &[])));
    let events = controller.takes(&PLAIN.capsule(read(7, 512), &[]));
    let second = key_of(&events);
    assert_eq!(fault_of(&events), Some(Status::CID_CONFLICT));
    assert_ne!(first, second);
    controller
        .respond(second, Cqe::default().with_status(Status::CID_CONFLICT))
        .unwrap();
    assert_eq!(controller.find(7), Some(first));
    controller.respond(first, Cqe::default()).unwrap();
    assert_eq!(controller.find(7), None);
    assert_eq!(
        fault_of(&controller.takes(&PLAIN.capsule(read(7, 512), &[]))),
        None
    );
}

#[test]
fn descriptors_that_tcp_cannot_follow() {
    let sgl = |mut sqe: Sqe, sgl: Sgl| {
        sqe.set_sgl(sgl);
        sqe
    };
    let bytes = [0; 512];
    let mut unknown = [0; 16];
    unknown[15] = 0xf3;
    let flush = Command::flush(1).0;
    let cases: [(Sqe, &[u8], Option<Status>); 15] = [
        (write(1, 512), &[], None),
        (read(1, 512), &[], None),
        (write_in_capsule(1, 512), &bytes, None),
        (write(1, 512), &bytes, Some(Status::SGL_TYPE_INVALID)),
        (
            sgl(write(1, 0), Sgl::in_capsule(4, 508)),
            &bytes,
            Some(Status::SGL_OFFSET_INVALID),
        ),
        (
            sgl(write(1, 0), Sgl::in_capsule(u64::MAX, 1)),
            &bytes,
            Some(Status::SGL_OFFSET_INVALID),
        ),
        (
            write_in_capsule(1, 508),
            &bytes,
            Some(Status::SGL_DATA_LENGTH_INVALID),
        ),
        (
            write_in_capsule(1, u32::MAX),
            &bytes,
            Some(Status::SGL_DATA_LENGTH_INVALID),
        ),
        (
            write_in_capsule(1, 512),
            &[],
            Some(Status::SGL_DATA_LENGTH_INVALID),
        ),
        (
            sgl(read(1, 0), Sgl::in_capsule(0, 512)),
            &bytes,
            Some(Status::SGL_TYPE_INVALID),
        ),
        (
            sgl(read(1, 0), Sgl::data_block(0x1000, 512)),
            &[],
            Some(Status::SGL_TYPE_INVALID),
        ),
        (
            sgl(write(1, 0), Sgl::keyed(0x1000, 512, 1, false).unwrap()),
            &[],
            Some(Status::SGL_TYPE_INVALID),
        ),
        (
            sgl(write(1, 0), Sgl(unknown)),
            &[],
            Some(Status::SGL_TYPE_INVALID),
        ),
        (sgl(write(1, 0), Sgl([0; 16])), &[], None),
        (flush, &[], None),
    ];
    for (sqe, data, expected) in cases {
        let mut controller = connected(PLAIN);
        let events = controller.takes(&PLAIN.capsule(sqe, data));
        assert_eq!(fault_of(&events), expected, "{sqe:?}");
        let key = key_of(&events);
        controller.respond(key, Cqe::default()).unwrap();
    }
}

#[test]
fn memory_that_does_not_fit_the_offer() {
    let mut controller = connected(PLAIN);
    let key = key_of(&controller.takes(&PLAIN.capsule(write(7, 512), &[])));
    for wrong in [0, 513, 4096] {
        let error = controller.accept(key, memory(wrong)).unwrap_err();
        assert_eq!(
            error,
            AcceptError::Length {
                wanted: wrong,
                offered: 512
            }
        );
        assert_eq!(error.status(), Status::SGL_DATA_LENGTH_INVALID);
    }
    assert!(controller.accept(key, Data::Anywhere { len: 512 }).is_err());
    assert!(controller.output().is_empty());
    controller.accept(key, memory(512)).unwrap();
    assert_eq!(controller.accept(key, memory(512)), Err(AcceptError::Again));
    assert_eq!(
        controller.accept(CommandKey(5), memory(512)),
        Err(AcceptError::Unknown(CommandKey(5)))
    );
    assert_eq!(
        controller
            .accept(CommandKey(u16::MAX), memory(1))
            .unwrap_err()
            .status(),
        Status::INTERNAL_ERROR
    );
    // A capsule is taken whole.
    let unit = PLAIN.capsule(write_in_capsule(8, 512), &[3; 512]);
    let (header, payload) = unit.split_at(72);
    let key = key_of(&controller.takes(header));
    assert!(controller.accept(key, memory(511)).is_err());
    controller.accept(key, memory(512)).unwrap();
    assert_eq!(controller.takes(payload), [ControllerEvent::DataReceived { key }]);
    assert_eq!(controller.accept(key, memory(512)), Err(AcceptError::Again));
    assert_eq!(contents(&controller.take_data(key)), [3; 512]);
    assert_eq!(controller.take_data(key).len(), 0);
}
