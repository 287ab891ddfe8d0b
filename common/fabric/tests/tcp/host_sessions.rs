//! How the host end begins, what it submits, and how it ends.

use crate::host_end::{SUCCESS, completion, connected, params, read, started, write};
use crate::wire::{Attacked, DIGESTS, PLAIN, ic_resp, terminate};
use homi_fabric::tcp::{HostConnection, HostEvent, HostParams, ParameterError, TransportError};
use homi_queue::{Command, Data, Region};
use homi_spec::command::FabricsOpcode;
use homi_spec::tcp::{FatalError, PduType};
use homi_spec::{Sqe, Status};

// ---- initialisation ----

#[test]
fn an_answer_to_the_initialisation_that_a_host_cannot_follow() {
    let alter = |at: usize, value: u8| {
        let mut unit = ic_resp(0, 0, 8192);
        unit[at] = value;
        unit
    };
    let fresh = || started(params(PLAIN));
    assert_eq!(
        fresh().breaks(&alter(8, 1)).fatal_error(),
        (FatalError::UNSUPPORTED_PARAMETER, 8)
    );
    assert_eq!(
        fresh().breaks(&alter(10, 32)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 10)
    );
    assert_eq!(
        fresh().breaks(&alter(4, 0)).fatal_error(),
        (FatalError::INVALID_HEADER_FIELD, 4)
    );
    for limit in [0, 4, 4092, 4095, 4098, u32::MAX] {
        assert_eq!(
            fresh().breaks(&ic_resp(0, 0, limit)),
            TransportError::PeerMaxH2cData(limit)
        );
    }
    // Digests that were not asked for, or asked for and denied.
    for (wire, granted) in [
        (PLAIN, 1),
        (PLAIN, 2),
        (PLAIN, 0x80),
        (DIGESTS, 0),
        (DIGESTS, 1),
        (DIGESTS, 7),
    ] {
        let error = started(params(wire)).breaks(&ic_resp(0, granted, 8192));
        assert_eq!(
            error,
            TransportError::DigestNegotiation {
                wanted: wire.dgst(),
                granted
            }
        );
    }
    // Twice.
    assert!(matches!(
        connected(PLAIN).breaks(&ic_resp(0, 0, 8192)),
        TransportError::UnexpectedPdu { .. }
    ));
}

#[test]
fn a_largest_unit_of_four_gigabytes_is_taken_at_its_word_only_as_far_as_it_makes_sense() {
    let mut host = started(params(PLAIN));
    host.takes(&ic_resp(0, 0, u32::MAX - 3));
    let cid = write(&mut host, 100_000);
    host.takes(&PLAIN.r2t(cid, 0, 0, 100_000));
    assert_eq!(host.sent().len(), 24 + 100_000);
}

#[test]
fn parameters_out_of_range() {
    let error = |params| HostConnection::new(params).unwrap_err();
    let defaults = HostParams::default();
    assert_eq!(
        error(HostParams {
            hpda_z: 32,
            ..defaults
        }),
        ParameterError::Alignment(32)
    );
    assert_eq!(
        error(HostParams {
            max_r2t: 0,
            ..defaults
        }),
        ParameterError::MaxR2t
    );
    for depth in [0, 4097] {
        assert!(matches!(
            error(HostParams { depth, ..defaults }),
            ParameterError::Depth { .. }
        ));
    }
}

// ---- submitting ----

#[test]
fn capsules_have_the_layout_of_the_specification() {
    let mut host = connected(PLAIN);
    let slot = host.reserve().unwrap();
    let data = Data::whole(Region::allocate(4096, 8).unwrap());
    let id = host.submit(slot, Command::read(3, 0x0102_0304, 8), data);
    let [low, high] = id.0.to_le_bytes();
    let mut expected = vec![4, 0, 72, 0, 72, 0, 0, 0, 2, 0x40, low, high, 3, 0, 0, 0];
    expected.extend([0; 16]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0x5a]);
    expected.extend([4, 3, 2, 1, 0, 0, 0, 0, 7, 0, 0, 0]);
    expected.extend([0; 12]);
    assert_eq!(host.sent(), expected);
    // In the capsule: offset 0, type 01h.
    let slot = host.reserve().unwrap();
    host.submit(
        slot,
        Command::write(1, 0, 1),
        Data::whole(Region::from_vec(vec![9; 512])),
    );
    let sent = host.sent();
    assert_eq!(
        (sent[3], sent[4..8].to_vec(), sent.len()),
        (72, 584_u32.to_le_bytes().to_vec(), 584)
    );
    assert_eq!(sent[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1]);
    assert_eq!(sent[72..], [9; 512]);
    // One byte more than the limit is left for R2T.
    let slot = host.reserve().unwrap();
    host.submit(
        slot,
        Command::write(1, 0, 1),
        Data::whole(Region::from_vec(vec![9; 513])),
    );
    let sent = host.sent();
    assert_eq!((sent.len(), sent[47]), (72, 0x5a));
    // Fabrics commands use 8192 bytes on any queue.
    let mut connect = Sqe::new(FabricsOpcode::FABRICS, 1);
    connect.cdw2 = 5.into();
    let slot = host.reserve().unwrap();
    host.submit(
        slot,
        Command(connect),
        Data::whole(Region::from_vec(vec![9; 1024])),
    );
    assert_eq!(host.sent().len(), 72 + 1024);
}

#[test]
fn payload_is_referred_to() {
    let mut host = connected(PLAIN);
    let region = Region::allocate(512, 8).unwrap();
    let slot = host.reserve().unwrap();
    host.submit(slot, Command::write(1, 0, 1), Data::whole(region));
    assert_eq!(host.output().pieces_left(), 2);
}

#[test]
fn commands_whose_memory_does_not_go_with_them_are_refused_not_sent() {
    let mut host = connected(PLAIN);
    let memory = || Data::whole(Region::allocate(512, 8).unwrap());
    let cases = [
        (Command::flush(1), memory(), Status::INVALID_FIELD),
        (
            Command::write(1, 0, 1),
            Data::Anywhere { len: 512 },
            Status::INVALID_FIELD,
        ),
        (Command(Sqe::new(0x83, 1)), memory(), Status::INVALID_FIELD),
        (
            Command::read(1, 0, 1),
            Data::Anywhere { len: usize::MAX },
            Status::HOST_PATH_ERROR,
        ),
    ];
    for (command, data, status) in cases {
        let slot = host.reserve().unwrap();
        let id = host.submit(slot, command, data);
        assert!(host.sent().is_empty());
        let done = completion(host.poll_refused().into_iter().collect());
        assert_eq!((done.id, done.cqe.status(), done.received), (id.0, status, 0));
        assert!(host.poll_refused().is_none());
        assert_eq!(host.in_flight(), 0);
    }
}

#[test]
fn submitted_before_it_is_ready_or_after_it_is_over() {
    let mut host = HostConnection::new(params(PLAIN)).unwrap();
    let slot = host.reserve().unwrap();
    let id = host.submit(slot, Command::flush(1), Data::None);
    assert!(host.sent().is_empty() && host.command(id).is_ok());
    host.start();
    host.takes(&ic_resp(0, 0, 8192));
    host.breaks(&[0xff; 8]);
    let slot = host.reserve().unwrap();
    host.submit(
        slot,
        Command::read(1, 0, 1),
        Data::whole(Region::allocate(512, 8).unwrap()),
    );
    assert!(host.sent().is_empty());
    assert_eq!(host.drain().len(), 2);
    host.start();
    assert!(host.sent().is_empty());
}

// ---- the end ----

#[test]
fn the_controller_says_why_it_goes() {
    let echo = PLAIN.h2c(1, 2, 3, &[4; 4], true);
    let unit = terminate(
        PduType::C2H_TERM_REQ,
        FatalError::DATA_TRANSFER_OUT_OF_RANGE,
        0,
        &echo[..24],
    );
    for cut in [1, 5, unit.len()] {
        let mut host = connected(DIGESTS);
        read(&mut host, 512);
        let events: Vec<_> = unit.chunks(cut).flat_map(|part| host.takes(part)).collect();
        let [HostEvent::PeerTerminated(reason)] = &events[..] else {
            panic!("{events:?}")
        };
        let text = reason.to_string();
        assert!(
            text.contains("controller") && text.contains("range") && text.contains("H2C_DATA"),
            "{text}"
        );
        assert!(host.failed() && host.sent().is_empty());
        assert_eq!(host.drain().len(), 1);
    }
    // In answer to the initialisation.
    let unit = terminate(PduType::C2H_TERM_REQ, FatalError::UNSUPPORTED_PARAMETER, 8, &[]);
    assert!(matches!(
        started(params(PLAIN)).takes(&unit)[..],
        [HostEvent::PeerTerminated(_)]
    ));
}

#[test]
fn terminate_requests_of_impossible_length() {
    for plen in [0, 23, 153, u32::MAX] {
        let mut unit = terminate(PduType::C2H_TERM_REQ, FatalError::SEQUENCE_ERROR, 0, &[]);
        unit[4..8].copy_from_slice(&plen.to_le_bytes());
        assert!(matches!(
            connected(PLAIN).breaks(&unit),
            TransportError::PduLength { .. }
        ));
    }
}

#[test]
fn drained_commands_come_back_once_and_nothing_completes_them_later() {
    let mut host = connected(PLAIN);
    let cid = read(&mut host, 4096);
    let unit = PLAIN.c2h(cid, 0, &[1; 4096], SUCCESS);
    host.takes(&unit[..1000]);
    assert!(host.landing(3000).is_some());
    let drained = host.drain();
    assert_eq!(
        (drained.len(), drained[0].id.0, drained[0].command),
        (1, cid, Command::read(1, 0, 8))
    );
    assert!(host.landing(1).is_none());
    assert!(matches!(host.landed(3000), Ok(None)));
    assert!(host.takes(&unit[1000..]).is_empty());
    assert!(host.drain().is_empty() && host.sent().is_empty());
}

#[test]
fn an_idle_connection_is_small() {
    let host = connected(DIGESTS);
    assert!(size_of_val(&host) <= 576, "{} bytes", size_of_val(&host));
}
