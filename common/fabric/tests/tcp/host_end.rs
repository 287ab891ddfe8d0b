//! The host end against controllers that break the protocol. Where a test repeats what broke another implementation,
//! its name says what that was.

use crate::pair::contents;
use crate::wire::{Attacked, DIGESTS, PLAIN, Wire, ic_resp};
use homi_fabric::tcp::{End, HostConnection, HostEvent, HostParams, TransportError};
use homi_queue::{Command, CommandId, Data, GatherList, Region};
use homi_spec::Cqe;
use homi_spec::Status;
use homi_spec::tcp::{FatalError, PduType, flags};

const LAST: u8 = flags::LAST_PDU;
pub(crate) const SUCCESS: u8 = flags::LAST_PDU | flags::SUCCESS;

pub(crate) fn params(wire: Wire) -> HostParams {
    HostParams {
        header_digest: wire.header_digest,
        data_digest: wire.data_digest,
        depth: 8,
        in_capsule: 512,
        ..HostParams::default()
    }
}

pub(crate) fn started(params: HostParams) -> HostConnection {
    let mut host = HostConnection::new(params).unwrap();
    host.start();
    assert_eq!(host.sent().len(), 128);
    host.start();
    assert!(host.sent().is_empty());
    host
}

pub(crate) fn connected(wire: Wire) -> HostConnection {
    with(params(wire))
}

fn with(params: HostParams) -> HostConnection {
    let mut host = started(params);
    let wire = Wire {
        header_digest: params.header_digest,
        data_digest: params.data_digest,
    };
    assert!(matches!(
        host.takes(&ic_resp(0, wire.dgst(), 8192))[..],
        [HostEvent::Ready]
    ));
    host
}

fn submit(host: &mut HostConnection, command: Command, len: usize) -> u16 {
    let slot = host.reserve().unwrap();
    let data = if len == 0 {
        Data::None
    } else {
        Data::whole(Region::from_vec(vec![0xaa; len]))
    };
    let CommandId(cid) = host.submit(slot, command, data);
    let sent = host.sent();
    assert_eq!(sent[0], 4);
    assert_eq!(sent[10..12], cid.to_le_bytes());
    cid
}

pub(crate) fn read(host: &mut HostConnection, len: usize) -> u16 {
    submit(host, Command::read(1, 0, 8), len)
}

pub(crate) fn write(host: &mut HostConnection, len: usize) -> u16 {
    submit(host, Command::write(1, 0, 8), len)
}

pub(crate) struct Completion {
    pub(crate) id: u16,
    pub(crate) cqe: Cqe,
    pub(crate) data: Data,
    pub(crate) received: u32,
}

/// The one completion among the events.
pub(crate) fn completion(events: Vec<HostEvent>) -> Completion {
    let mut events = events.into_iter();
    match (events.next(), events.next()) {
        (
            Some(HostEvent::Completed {
                id,
                cqe,
                data,
                received,
            }),
            None,
        ) => Completion {
            id: id.0,
            cqe,
            data,
            received,
        },
        other => panic!("{other:?}"),
    }
}

// ---- C2HData ----

#[test]
fn data_shorter_than_asked_does_not_pass_for_a_read() {
    // Short, then a response that says success.
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 4096);
    assert!(host.takes(&PLAIN.c2h(cid, 0, &[1; 512], LAST)).is_empty());
    let error = host.breaks(&PLAIN.response(cid, Status::SUCCESS));
    assert_eq!(
        error,
        TransportError::ShortTransfer {
            id: CommandId(cid),
            expected: 4096,
            moved: 512
        }
    );
    // Short, with the flag that replaces the response.
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 4096);
    let error = host.breaks(&PLAIN.c2h(cid, 0, &[1; 512], SUCCESS));
    assert!(matches!(error, TransportError::ShortTransfer { moved: 512, .. }));
    // None at all.
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 4096);
    assert!(matches!(
        host.breaks(&PLAIN.response(cid, Status::SUCCESS)),
        TransportError::ShortTransfer { moved: 0, .. }
    ));
    // Nothing was completed: the command is given back, with its memory.
    let undelivered = host.drain();
    assert_eq!(
        (undelivered.len(), undelivered[0].id.0, undelivered[0].data.len()),
        (1, cid, 4096)
    );
}

#[test]
fn a_failed_read_may_be_short() {
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 4096);
    host.takes(&PLAIN.c2h(cid, 0, &[1; 512], LAST));
    let done = completion(host.takes(&PLAIN.response(cid, Status::UNRECOVERED_READ_ERROR)));
    assert_eq!(
        (done.id, done.cqe.status(), done.received),
        (cid, Status::UNRECOVERED_READ_ERROR, 512)
    );
    assert_eq!(done.data.len(), 4096);
}

#[test]
fn data_for_a_write_zeroes() {
    let mut host = connected(PLAIN);
    let cid = submit(&mut host, Command::write_zeroes(1, 0, 8, true), 0);
    let error = host.breaks(&PLAIN.c2h(cid, 0, &[1; 4096], LAST));
    assert_eq!(
        error,
        TransportError::WrongDirection {
            pdu: PduType::C2H_DATA,
            id: CommandId(cid)
        }
    );
}

#[test]
fn data_for_commands_that_read_nothing() {
    for (command, len) in [
        (Command::write(1, 0, 1), 512),
        (Command::write(1, 0, 8), 4096),
        (Command::flush(1), 0),
        (Command::read(1, 0, 1), 0),
    ] {
        let mut host = connected(PLAIN);
        let cid = submit(&mut host, command, len);
        assert!(matches!(
            host.breaks(&PLAIN.c2h(cid, 0, &[1; 512], LAST)),
            TransportError::WrongDirection { .. }
        ));
    }
}

#[test]
fn data_beyond_the_memory_or_out_of_order() {
    for (before, offset, len) in [
        (0, 0, 4100),
        (0, 4, 4092),
        (0, 4096, 4),
        (0, u32::MAX, 4),
        (2048, 0, 2048),
        (2048, 2044, 4),
        (2048, 2048, 2052),
    ] {
        let mut host = connected(PLAIN);
        let cid = read(&mut host, 4096);
        if before > 0 {
            host.takes(&PLAIN.c2h(cid, 0, &vec![1; usize::try_from(before).unwrap()], 0));
        }
        let error = host.breaks(&PLAIN.c2h(cid, offset, &vec![1; len], LAST));
        assert!(
            matches!(error, TransportError::DataRange { expected, .. } if expected == before),
            "{error}"
        );
        assert_eq!(error.fatal_error().0, FatalError::DATA_TRANSFER_OUT_OF_RANGE);
    }
}

#[test]
fn data_of_a_length_that_lies() {
    for datal in [0, 511, 513, u32::MAX] {
        let mut host = connected(PLAIN);
        let cid = read(&mut host, 4096);
        let unit = PLAIN.altered(PLAIN.c2h(cid, 0, &[1; 512], LAST), |unit| {
            unit[16..20].copy_from_slice(&u32::to_le_bytes(datal));
        });
        assert!(matches!(host.breaks(&unit), TransportError::PduLength { .. }));
    }
    for plen in [0, 24, 27] {
        let mut host = connected(PLAIN);
        let cid = read(&mut host, 4096);
        let unit = PLAIN.altered(PLAIN.c2h(cid, 0, &[1; 512], LAST), |unit| {
            unit[4..8].copy_from_slice(&u32::to_le_bytes(plen));
        });
        assert!(matches!(host.breaks(&unit), TransportError::PduLength { .. }));
    }
}

#[test]
fn success_before_the_last_data() {
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 512);
    let error = host.breaks(&PLAIN.c2h(cid, 0, &[1; 512], flags::SUCCESS));
    assert_eq!(error, TransportError::SuccessWithoutLast { cid });
}

#[test]
fn data_in_several_units() {
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 1024);
    assert!(host.takes(&PLAIN.c2h(cid, 0, &[1; 512], 0)).is_empty());
    let done = completion(host.takes(&PLAIN.c2h(cid, 512, &[2; 512], SUCCESS)));
    assert_eq!(
        (done.id, done.received, done.cqe.status()),
        (cid, 1024, Status::SUCCESS)
    );
    assert_eq!(contents(&done.data), [[1; 512], [2; 512]].concat());
}

// ---- completions ----

#[test]
fn completed_twice() {
    let mut host = connected(PLAIN);
    let cid = submit(&mut host, Command::flush(1), 0);
    let unit = PLAIN.response(cid, Status::SUCCESS);
    assert_eq!(completion(host.takes(&unit)).id, cid);
    let error = host.breaks(&unit);
    assert_eq!(
        error,
        TransportError::UnknownCommand {
            pdu: PduType::CAPSULE_RESP,
            id: CommandId(cid)
        }
    );
    assert_eq!(error.fatal_error(), (FatalError::INVALID_HEADER_FIELD, 20));
}

#[test]
fn completed_twice_by_flag_and_by_response() {
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 512);
    assert_eq!(
        completion(host.takes(&PLAIN.c2h(cid, 0, &[1; 512], SUCCESS))).id,
        cid
    );
    assert!(matches!(
        host.breaks(&PLAIN.response(cid, Status::SUCCESS)),
        TransportError::UnknownCommand { .. }
    ));
}

#[test]
fn a_late_completion_does_not_finish_the_slots_next_command() {
    let mut host = connected(PLAIN);
    let old = submit(&mut host, Command::flush(1), 0);
    host.takes(&PLAIN.response(old, Status::SUCCESS));
    let new = submit(&mut host, Command::flush(1), 0);
    assert_eq!(old & 7, new & 7, "the slot is the same");
    assert!(matches!(
        host.breaks(&PLAIN.response(old, Status::SUCCESS)),
        TransportError::UnknownCommand { .. }
    ));
    assert_eq!(host.drain().len(), 1);
}

#[test]
fn ids_that_were_never_given() {
    for cid in [0, 1, 7, 8, u16::MAX] {
        let units = [
            PLAIN.response(cid, Status::SUCCESS),
            PLAIN.c2h(cid, 0, &[1; 512], LAST),
            PLAIN.r2t(cid, 0, 0, 512),
        ];
        for unit in units {
            assert!(matches!(
                connected(PLAIN).breaks(&unit),
                TransportError::UnknownCommand { .. }
            ));
        }
    }
}

#[test]
fn a_write_that_succeeds_without_its_data() {
    let mut host = connected(PLAIN);
    let cid = write(&mut host, 4096);
    host.takes(&PLAIN.r2t(cid, 1, 0, 2048));
    let error = host.breaks(&PLAIN.response(cid, Status::SUCCESS));
    assert_eq!(
        error,
        TransportError::ShortTransfer {
            id: CommandId(cid),
            expected: 4096,
            moved: 2048
        }
    );
    // A failure may come at any time.
    let mut host = connected(PLAIN);
    let cid = write(&mut host, 4096);
    let done = completion(host.takes(&PLAIN.response(cid, Status::INVALID_FIELD)));
    assert_eq!((done.cqe.status(), done.received), (Status::INVALID_FIELD, 0));
}

// ---- R2T ----

#[test]
fn r2ts_are_answered_in_units_that_the_controller_takes() {
    let mut host = with(HostParams {
        max_r2t: 3,
        ..params(PLAIN)
    });
    let slot = host.reserve().unwrap();
    let bytes: Vec<u8> = (0..20_000_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let id = host.submit(
        slot,
        Command::write(1, 0, 40),
        Data::whole(Region::from_vec(bytes.clone())),
    );
    let _ = host.sent();
    host.takes(&[PLAIN.r2t(id.0, 5, 0, 10_000), PLAIN.r2t(id.0, 6, 10_000, 10_000)].concat());
    let expected = [
        PLAIN.h2c(id.0, 5, 0, &bytes[..8192], false),
        PLAIN.h2c(id.0, 5, 8192, &bytes[8192..10_000], true),
        PLAIN.h2c(id.0, 6, 10_000, &bytes[10_000..18_192], false),
        PLAIN.h2c(id.0, 6, 18_192, &bytes[18_192..], true),
    ];
    assert_eq!(host.sent(), expected.concat());
    let done = completion(host.takes(&PLAIN.response(id.0, Status::SUCCESS)));
    assert_eq!((done.id, done.received), (id.0, 0));
}

#[test]
fn r2ts_for_commands_that_send_nothing_more() {
    for (command, len) in [
        (Command::read(1, 0, 8), 4096),
        (Command::flush(1), 0),
        (Command::write_zeroes(1, 0, 8, false), 0),
        // Its data went in the capsule.
        (Command::write(1, 0, 1), 512),
    ] {
        let mut host = connected(PLAIN);
        let cid = submit(&mut host, command, len);
        let error = host.breaks(&PLAIN.r2t(cid, 0, 0, 512));
        assert_eq!(
            error,
            TransportError::WrongDirection {
                pdu: PduType::R2T,
                id: CommandId(cid)
            }
        );
    }
}

#[test]
fn r2ts_beyond_the_length_overlapping_or_empty() {
    for (before, offset, len) in [
        (0, 0, 0),
        (0, 0, 4097),
        (0, 0, u32::MAX),
        (0, 4096, 1),
        (0, 1, 4095),
        (0, u32::MAX, 1),
        (2048, 0, 2048),
        (2048, 2047, 1),
        (2048, 2048, 2049),
        (2048, 2048, 0),
        (4096, 4096, 1),
        (4096, 0, 4096),
    ] {
        let mut host = connected(PLAIN);
        let cid = write(&mut host, 4096);
        if before > 0 {
            host.takes(&PLAIN.r2t(cid, 0, 0, before));
            assert_eq!(host.sent().len(), 24 + usize::try_from(before).unwrap());
        }
        let error = host.breaks(&PLAIN.r2t(cid, 0, offset, len));
        assert!(
            matches!(error, TransportError::DataRange { expected, .. } if expected == before),
            "{error}"
        );
    }
}

#[test]
fn more_r2ts_than_may_be_outstanding() {
    for max_r2t in 1..4 {
        let mut host = with(HostParams {
            max_r2t,
            ..params(PLAIN)
        });
        let cid = write(&mut host, 4096);
        for index in 0..u32::from(max_r2t) {
            host.takes(&PLAIN.r2t(cid, 0, index * 512, 512));
        }
        let next = u32::from(max_r2t) * 512;
        let error = host.breaks(&PLAIN.r2t(cid, 0, next, 512));
        assert_eq!(
            error,
            TransportError::R2tLimit {
                id: CommandId(cid),
                limit: max_r2t
            }
        );
    }
}

#[test]
fn an_r2t_may_follow_one_whose_data_is_sent() {
    for swap in [false, true] {
        let mut host = connected(PLAIN);
        let first = write(&mut host, 2048);
        let second = write(&mut host, 2048);
        for index in 0..4 {
            host.takes(&PLAIN.r2t(first, 0, index * 512, 512));
            // What is left of the second's previous answer leaves before its next R2T can come.
            let left = host.output().remaining() - 536;
            host.output().advance(left);
            host.takes(&PLAIN.r2t(second, 1, index * 512, 512));
            if swap {
                let taken = host.take_output(GatherList::new());
                assert_eq!(taken.remaining(), 2 * 536);
            } else {
                // The first's answer leaves, and a part of the second's.
                host.output().advance(600);
            }
        }
        assert_eq!(
            completion(host.takes(&PLAIN.response(first, Status::SUCCESS))).id,
            first
        );
        assert_eq!(
            completion(host.takes(&PLAIN.response(second, Status::SUCCESS))).id,
            second
        );
    }
}

#[test]
fn an_r2t_after_the_answer() {
    let mut host = connected(PLAIN);
    let cid = write(&mut host, 4096);
    host.takes(&PLAIN.response(cid, Status::INTERNAL_ERROR));
    assert!(matches!(
        host.breaks(&PLAIN.r2t(cid, 0, 0, 4096)),
        TransportError::UnknownCommand { .. }
    ));
}

// ---- digests ----

#[test]
fn a_bad_data_digest_fails_the_read_once() {
    for (first, success_flag) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut host = connected(DIGESTS);
        let cid = read(&mut host, 1024);
        let mut units = [
            DIGESTS.c2h(cid, 0, &[1; 512], 0),
            DIGESTS.c2h(cid, 512, &[2; 512], if success_flag { SUCCESS } else { LAST }),
        ];
        *units[usize::from(!first)].last_mut().unwrap() ^= 4;
        let mut bytes = units.concat();
        if !success_flag {
            bytes.extend(DIGESTS.response(cid, Status::SUCCESS));
        }
        let done = completion(host.takes(&bytes));
        assert_eq!(
            (done.id, done.cqe.status()),
            (cid, Status::TRANSIENT_TRANSPORT_ERROR)
        );
        // The queue goes on, and the next command starts clean.
        let cid = read(&mut host, 512);
        let done = completion(host.takes(&DIGESTS.c2h(cid, 0, &[3; 512], SUCCESS)));
        assert_eq!(
            (done.cqe.status(), contents(&done.data)),
            (Status::SUCCESS, vec![3; 512])
        );
    }
}

#[test]
fn a_bad_data_digest_does_not_hide_the_controllers_own_status() {
    let mut host = connected(DIGESTS);
    let cid = read(&mut host, 512);
    let mut unit = DIGESTS.c2h(cid, 0, &[1; 512], LAST);
    unit[28] ^= 1;
    host.takes(&unit);
    let done = completion(host.takes(&DIGESTS.response(cid, Status::UNRECOVERED_READ_ERROR)));
    assert_eq!(done.cqe.status(), Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn a_bad_header_digest() {
    for kind in 0..3 {
        for at in [9, 20, 24, 27] {
            let mut host = connected(DIGESTS);
            let read = read(&mut host, 512);
            let write = write(&mut host, 4096);
            let mut unit = match kind {
                0 => DIGESTS.c2h(read, 0, &[1; 512], LAST),
                1 => DIGESTS.response(read, Status::INVALID_FIELD),
                _ => DIGESTS.r2t(write, 0, 0, 4096),
            };
            unit[at] ^= 0x10;
            let received = u32::from_le_bytes([unit[24], unit[25], unit[26], unit[27]]);
            assert_eq!(
                host.breaks(&unit).fatal_error(),
                (FatalError::HEADER_DIGEST_ERROR, received)
            );
            assert_eq!(host.drain().len(), 2);
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
        let mut host = connected(negotiated);
        let cid = read(&mut host, 512);
        let error = host.breaks(&spoken.c2h(cid, 0, &[1; 512], LAST));
        assert!(matches!(error, TransportError::DigestFlag { .. }), "{error}");
    }
}

// ---- headers ----

#[test]
fn a_header_length_of_255_and_every_other_wrong_one() {
    for wire in [PLAIN, DIGESTS] {
        for pdu in [5, 7, 9, 3] {
            for hlen in (0..=255).filter(|hlen| *hlen != 24) {
                let flags = if pdu == 3 { 0 } else { u8::from(wire.header_digest) };
                let mut unit = vec![pdu, flags, hlen, 24, 0, 1, 0, 0];
                unit.resize(300, 0x5a);
                let error = connected(wire).breaks(&unit);
                let expected = TransportError::HeaderLength {
                    pdu: PduType(pdu),
                    expected: 24,
                    found: hlen,
                };
                assert_eq!(error, expected);
            }
        }
        for hlen in (0..=255).filter(|hlen| *hlen != 128) {
            let error = started(params(wire)).breaks(&[1, 0, hlen, 0, 128, 0, 0, 0]);
            assert_eq!(error.fatal_error(), (FatalError::INVALID_HEADER_FIELD, 2));
        }
    }
}

#[test]
fn every_type_that_a_host_does_not_take() {
    for pdu in 0..=255_u8 {
        let unit = [pdu, 0, 24, 0, 24, 0, 0, 0];
        let known = PduType(pdu).hlen().is_some();
        if pdu != 3 {
            if pdu != 1 {
                let error = started(params(PLAIN)).breaks(&unit);
                assert_eq!(
                    matches!(error, TransportError::UnexpectedPdu { end: End::Host, .. }),
                    known
                );
            }
            let mut new = HostConnection::new(params(PLAIN)).unwrap();
            assert_eq!(
                matches!(new.breaks(&unit), TransportError::UnexpectedPdu { .. }),
                known
            );
        }
        if ![3, 5, 7, 9].contains(&pdu) {
            let error = connected(PLAIN).breaks(&unit);
            assert_eq!(matches!(error, TransportError::UnexpectedPdu { .. }), known);
        }
    }
}

#[test]
fn units_without_data_of_the_wrong_length() {
    for plen in [0, 8, 23, 25, 28, u32::MAX] {
        for kind in 0..2 {
            let mut host = connected(PLAIN);
            let cid = write(&mut host, 4096);
            let unit = if kind == 0 {
                PLAIN.response(cid, Status::INVALID_FIELD)
            } else {
                PLAIN.r2t(cid, 0, 0, 4096)
            };
            let unit = PLAIN.altered(unit, |unit| unit[4..8].copy_from_slice(&u32::to_le_bytes(plen)));
            assert!(matches!(host.breaks(&unit), TransportError::PduLength { .. }));
        }
    }
}

#[test]
fn data_that_is_not_aligned_as_agreed() {
    let mut host = with(HostParams {
        hpda_z: 31,
        ..params(PLAIN)
    });
    let cid = read(&mut host, 512);
    let error = host.breaks(&PLAIN.c2h(cid, 0, &[1; 512], LAST));
    assert!(matches!(
        error,
        TransportError::DataOffset {
            found: 24,
            minimum: 24,
            alignment: 128,
            ..
        }
    ));
    for pdo in [0, 8, 23, 25, 26, 27] {
        let mut host = connected(PLAIN);
        let cid = read(&mut host, 512);
        let unit = PLAIN.altered(PLAIN.c2h(cid, 0, &[1; 512], LAST), |unit| unit[3] = pdo);
        assert_eq!(
            host.breaks(&unit).fatal_error(),
            (FatalError::INVALID_HEADER_FIELD, 3)
        );
    }
}
