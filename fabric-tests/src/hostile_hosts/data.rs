//! H2CData units that nobody asked for, or not so, and digests that do not match.

use homi_queue::Command;
use homi_spec::tcp::{FatalError, PduType};
use homi_spec::{Sgl, Sqe, Status};

use super::{Field, INVALID, terminated, waiting_write};
use crate::bodies::{read, write, write_and_read};
use crate::harness::Harness;
use crate::random::contents;
use crate::settings::ram;
use crate::units::Units;

/// Data for the slot of a read, while it may still be executing and after (CVE-2026-22998).
pub fn data_for_the_slot_of_a_read<H: Harness>() {
    let mut field = Field::<H>::new();
    for together in [true, false] {
        let (_admin, mut io) = field.connected(Units::PLAIN);
        let cid = io.next_cid();
        let mut sqe = Command::read(2, 0, 1).0;
        sqe.cid = cid.into();
        sqe.set_sgl(Sgl::transport(4096));
        let capsule = io.units().capsule(sqe, &[]);
        let data = io.units().h2c(cid, 0, 0, &[1; 4096], true);
        if together {
            io.send(&[capsule, data].concat());
        } else {
            io.send(&capsule);
            io.expect(PduType::C2H_DATA);
            io.send(&data);
        }
        assert_eq!(io.end(), terminated(INVALID, 10));
    }
    field.survives();
}

/// Data for slots that nobody uses (CVE-2026-22998), and under tags that were never given (CVE-2023-6536).
pub fn data_for_an_unused_slot<H: Harness>() {
    let mut field = Field::<H>::new();
    for flip in [1, 2, 7, 0x400, 0x8000, u16::MAX] {
        let (_admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
        let unit = io.units().h2c(cid, ttag ^ flip, 0, &[1; 4096], false);
        io.send(&unit);
        assert_eq!(io.end(), terminated(INVALID, 10), "{ttag:#x} ^ {flip:#x}");
    }
    field.survives();
}

/// Data with the id of another command.
pub fn data_with_the_id_of_another_command<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
    let unit = io.units().h2c(cid ^ 1, ttag, 0, &[1; 4096], false);
    io.send(&unit);
    field.queue_ends(admin, io, terminated(INVALID, 8));
}

/// Data at another offset than the next one (CVE-2023-6535).
pub fn data_at_a_bad_offset<H: Harness>() {
    let mut field = Field::<H>::new();
    for offset in [1, 4096, 60 << 10, 64 << 10, 0x7fff_f000, 0xffff_f000] {
        let (_admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
        let unit = io.units().h2c(cid, ttag, offset, &[1; 4096], false);
        io.send(&unit);
        assert_eq!(
            io.end(),
            terminated(FatalError::DATA_TRANSFER_OUT_OF_RANGE, 0),
            "{offset:#x}"
        );
    }
    field.survives();
}

/// Data that is longer than asked for, or says another length than it has (CVE-2023-6356).
pub fn data_of_a_bad_length<H: Harness>() {
    let mut field = Field::<H>::new();
    for (datal, plen, expected) in [
        // The lengths contradict each other.
        (0, 24 + 4096, terminated(INVALID, 4)),
        (4095, 24 + 4096, terminated(INVALID, 4)),
        (u32::MAX, 24 + 4096, terminated(INVALID, 4)),
        (4096, 24, terminated(INVALID, 4)),
        (4096, 23, terminated(INVALID, 4)),
        (4096, 0, terminated(INVALID, 4)),
        // They agree, on too much.
        (
            (64 << 10) + 4,
            24 + (64 << 10) + 4,
            terminated(FatalError::DATA_TRANSFER_OUT_OF_RANGE, 0),
        ),
        (
            (1 << 20) + 4,
            24 + (1 << 20) + 4,
            terminated(FatalError::LIMIT_EXCEEDED, 0),
        ),
        (0xffff_ffe7, u32::MAX, terminated(FatalError::LIMIT_EXCEEDED, 0)),
    ] {
        let (_admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
        let mut unit = io.units().h2c(cid, ttag, 0, &[1; 8], false);
        unit[16..20].copy_from_slice(&u32::to_le_bytes(datal));
        unit[4..8].copy_from_slice(&u32::to_le_bytes(plen));
        io.send(&unit);
        assert_eq!(io.end(), expected, "{datal} {plen}");
    }
    field.survives();
}

/// The last flag too early, and missing at the end.
pub fn a_last_flag_in_the_wrong_place<H: Harness>() {
    let mut field = Field::<H>::new();
    for (len, last) in [(4096_usize, true), (64 << 10, false)] {
        let (_admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
        let unit = io.units().h2c(cid, ttag, 0, &vec![1; len], last);
        // Nothing may be left unread, or the reason is lost with the connection.
        io.send(&unit[..24]);
        assert_eq!(io.end(), terminated(INVALID, 1));
    }
    field.survives();
}

/// The same data twice: the second time the tag means nothing.
pub fn data_twice<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
    let unit = io.units().h2c(cid, ttag, 0, &vec![1; 64 << 10], true);
    io.send(&unit);
    assert_eq!(io.response(cid).status(), Status::SUCCESS);
    io.send(&unit[..24]);
    field.queue_ends(admin, io, terminated(INVALID, 10));
}

/// A data digest that does not match in the middle of a transfer (CVE-2026-64535): one completion, after the rest, and the
/// queue goes on.
pub fn a_wrong_data_digest_before_the_last_unit<H: Harness>() {
    let mut field = Field::<H>::new();
    let before = contents(9, 64 << 10);
    write(&mut field.survivor, (2, 4096), 0, &before);
    let (admin, mut io, cid, ttag) = waiting_write(&mut field, Units::DIGESTS);
    let mut first = io.units().h2c(cid, ttag, 0, &vec![1; 32 << 10], false);
    *first.last_mut().unwrap() ^= 1;
    io.send(&first);
    io.expect_silence();
    let second = io.units().h2c(cid, ttag, 32 << 10, &vec![1; 32 << 10], true);
    io.send(&second);
    assert_eq!(io.response(cid).status(), Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(read(&mut field.survivor, (2, 4096), 0, 16), before);
    // The same again, right this time.
    let cid = io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    let (_, ttag, ..) = io.expect(PduType::R2T).r2t();
    let unit = io.units().h2c(cid, ttag, 0, &vec![1; 64 << 10], true);
    io.send(&unit);
    assert_eq!(io.response(cid).status(), Status::SUCCESS);
    assert_eq!(read(&mut field.survivor, (2, 4096), 0, 16), vec![1; 64 << 10]);
    drop((admin, io));
    field.survives();
}

/// A wrong data digest with a command that had failed already (CVE-2026-64534), and with one that would not have.
pub fn a_wrong_data_digest_of_a_command_that_failed<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io) = field.connected(Units::DIGESTS);
    for (command, expected) in [
        (
            Command::write(1, u64::MAX, 8),
            Status::LBA_OUT_OF_RANGE.with_dnr(),
        ),
        (Command::write(77, 0, 8), Status::INVALID_NAMESPACE.with_dnr()),
        (Command(Sqe::new(0x7d, 1)), Status::INVALID_OPCODE.with_dnr()),
        (Command::write(1, 0, 8), Status::TRANSIENT_TRANSPORT_ERROR),
    ] {
        for _ in 0..10 {
            let cid = io.next_cid();
            let mut sqe = command.0;
            sqe.cid = cid.into();
            sqe.set_sgl(Sgl::in_capsule(0, 4096));
            let mut unit = io.units().capsule(sqe, &[3; 4096]);
            *unit.last_mut().unwrap() ^= 0x80;
            io.send(&unit);
            assert_eq!(io.response(cid).status(), expected, "{command:?}");
        }
    }
    let cqe = io.execute(Command::write(1, 0, 8).0, &[3; 4096]);
    assert_eq!(cqe.status(), Status::SUCCESS);
    drop((admin, io));
    field.survives();
}

/// The namespace goes while a write to it waits for its data (CVE-2025-21850, CVE-2022-48697).
pub fn a_namespace_that_goes_while_its_write_waits<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
    let half = io.units().h2c(cid, ttag, 0, &vec![1; 32 << 10], false);
    io.send(&half);
    let mut config = ram();
    config.subsystem[0].namespace.pop();
    field.target.apply(&config).unwrap();
    let rest = io.units().h2c(cid, ttag, 32 << 10, &vec![1; 32 << 10], true);
    io.send(&rest);
    let status = io.response(cid).status();
    // Whether the write came before the namespace went is not defined; that it ends is.
    assert!(
        status.is_success() || status.is(Status::NAMESPACE_NOT_READY) || status.is(Status::INVALID_NAMESPACE),
        "{status}"
    );
    let mut flush = Command::flush(2).0;
    flush.cid = 0.into();
    assert_eq!(
        io.execute(flush, &[]).status(),
        Status::INVALID_NAMESPACE.with_dnr()
    );
    write_and_read(&mut field.survivor, (1, 512), 0, 9);
    drop((admin, io));
    field.target.wait_for_connections(2);
}
