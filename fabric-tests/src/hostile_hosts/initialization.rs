//! Connections that end before they are queues, or never were meant to be.

use homi_queue::Command;
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand};
use homi_spec::tcp::{FatalError, PduType};
use homi_spec::{Sgl, Status};
use zerocopy::IntoBytes;

use super::{Field, INVALID, SEQUENCE, terminated};
use crate::harness::Harness;
use crate::peer::{End, connect_data};
use crate::random::Random;
use crate::units::{Units, ic_req, terminate};

/// The answer to the initialisation request finds nobody (CVE-2023-5178, CVE-2026-46135).
pub fn initialization_and_gone<H: Harness>() {
    let mut field = Field::<H>::new();
    for round in 0..40 {
        let mut raw = field.stranger();
        raw.send(&ic_req(0, 3, 0));
        if round % 2 == 0 { raw.reset() } else { raw.close() }
    }
    field.survives();
}

/// Gone before the first byte (CVE-2025-38035).
pub fn connected_and_gone<H: Harness>() {
    let mut field = Field::<H>::new();
    for round in 0..40 {
        let raw = field.stranger();
        if round % 2 == 0 { raw.reset() } else { raw.close() }
    }
    field.survives();
}

/// Half an initialisation request, of every length, and gone.
pub fn half_an_initialization<H: Harness>() {
    let mut field = Field::<H>::new();
    for len in (1..128).step_by(7) {
        let mut raw = field.stranger();
        raw.send(&ic_req(0, 0, 0)[..len]);
        raw.close();
    }
    field.survives();
}

/// Something that is not NVMe/TCP at all.
pub fn another_protocol<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut noise = Random::new(5);
    let random: Vec<u8> = (0..4096)
        .map(|_| noise.next_number().to_le_bytes()[3] | 0x80)
        .collect();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        random,
    ] {
        let mut raw = field.stranger();
        raw.send(&bytes);
        assert!(
            matches!(raw.end(), End::Terminated(INVALID, _)),
            "{:02x?}",
            &bytes[..8]
        );
    }
    field.survives();
}

/// Initialisation requests with values that cannot be.
pub fn initialization_that_cannot_be<H: Harness>() {
    let mut field = Field::<H>::new();
    let with = |at: usize, value: u8| {
        let mut unit = ic_req(0, 0, 0);
        unit[at] = value;
        unit
    };
    for (unit, expected) in [
        (with(8, 1), terminated(FatalError::UNSUPPORTED_PARAMETER, 8)),
        (with(9, 0x80), terminated(FatalError::UNSUPPORTED_PARAMETER, 8)),
        (ic_req(32, 0, 0), terminated(INVALID, 10)),
        (ic_req(255, 0, 0), terminated(INVALID, 10)),
        (with(2, 24), terminated(INVALID, 2)),
        (with(4, 127), terminated(INVALID, 4)),
        (with(5, 1), terminated(INVALID, 4)),
        (with(1, 1), terminated(INVALID, 1)),
    ] {
        let mut raw = field.stranger();
        raw.send(&unit);
        assert_eq!(raw.end(), expected, "{:02x?}", &unit[..16]);
    }
    field.survives();
}

/// Initialised twice.
pub fn initialization_twice<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.initialized(Units::PLAIN);
    raw.send(&ic_req(0, 0, 0));
    field.ends(raw, terminated(SEQUENCE, 0));
}

/// Commands and data before initialisation.
pub fn units_before_initialization<H: Harness>() {
    let mut field = Field::<H>::new();
    for unit in [
        Units::PLAIN.capsule(Command::read(1, 0, 1).0, &[]),
        Units::PLAIN.h2c(0, 0, 0, &[1; 512], true),
    ] {
        let mut raw = field.stranger();
        raw.send(&unit);
        assert_eq!(raw.end(), terminated(SEQUENCE, 0));
    }
    field.survives();
}

/// Every type of unit that only a controller sends, and types that nobody does.
pub fn units_of_the_other_side<H: Harness>() {
    let mut field = Field::<H>::new();
    let units = Units::PLAIN;
    for (unit, expected) in [
        (units.response(0, Status::SUCCESS), terminated(SEQUENCE, 0)),
        (units.c2h(0, 0, &[0; 16], 0), terminated(SEQUENCE, 0)),
        (units.r2t(0, 0, 0, 512), terminated(SEQUENCE, 0)),
        (crate::units::ic_resp(0, 0, 4096), terminated(SEQUENCE, 0)),
        (
            terminate(PduType::C2H_TERM_REQ, INVALID, 0, &[0; 24]),
            terminated(SEQUENCE, 0),
        ),
        (terminate(PduType(0x08), INVALID, 0, &[]), terminated(INVALID, 0)),
        (terminate(PduType(0xff), INVALID, 0, &[]), terminated(INVALID, 0)),
    ] {
        let (_admin, mut io) = field.connected(units);
        io.send(&unit);
        assert_eq!(io.end(), expected, "{:02x?}", &unit[..8]);
    }
    field.survives();
}

/// A host that ends the connection is not argued with.
pub fn terminate_request_of_the_host<H: Harness>() {
    let mut field = Field::<H>::new();
    for echo in [0, 24, 128] {
        let (_admin, mut io) = field.connected(Units::PLAIN);
        let unit = terminate(
            PduType::H2C_TERM_REQ,
            FatalError::HEADER_DIGEST_ERROR,
            7,
            &vec![1; echo],
        );
        io.send(&unit);
        assert_eq!(io.end(), End::Closed);
    }
    // One that is longer than any may be.
    let (admin, mut io) = field.connected(Units::PLAIN);
    let mut unit = terminate(PduType::H2C_TERM_REQ, INVALID, 0, &[]);
    unit[4..8].copy_from_slice(&u32::to_le_bytes(1 << 30));
    io.send(&unit);
    assert_eq!(io.end(), terminated(INVALID, 4));
    drop((admin, io));
    field.survives();
}

/// Every byte on its own: slow, but not wrong.
pub fn one_byte_at_a_time<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.stranger();
    for byte in ic_req(0, 3, 0) {
        raw.send(&[byte]);
    }
    raw.expect(PduType::IC_RESP);
    let connect = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    let data = connect_data(CNTLID_DYNAMIC);
    let sqe = connect.to_sqe(7, Sgl::in_capsule(0, 1024));
    for byte in Units::DIGESTS.capsule(sqe, data.as_bytes()) {
        raw.send(&[byte]);
    }
    raw.set_units(Units::DIGESTS);
    let cqe = raw.expect(PduType::CAPSULE_RESP).cqe();
    assert_eq!((cqe.cid.get(), cqe.status()), (7, Status::SUCCESS));
    drop(raw);
    field.survives();
}
