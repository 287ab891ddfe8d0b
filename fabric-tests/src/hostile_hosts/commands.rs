//! Commands and descriptors that cannot be, too many of them, and what completions may not say.

use homi_queue::Command;
use homi_spec::feature::{FeatureId, SetFeatures};
use homi_spec::identify::Identify;
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::sgl::SglDescriptor;
use homi_spec::tcp::PduType;
use homi_spec::{Cqe, Sgl, Sqe, Status};
use zerocopy::FromBytes;

use super::{Field, SEQUENCE, terminated, waiting_write};
use crate::bodies::write_and_read;
use crate::harness::Harness;
use crate::settings::ram;
use crate::units::Units;

/// A descriptor of 4 GiB with every command that takes data (CVE-2026-80789). What it allocates is in the test of memory.
pub fn a_descriptor_of_4_gib<H: Harness>() {
    let mut field = Field::<H>::new();
    let (mut admin, mut io) = field.connected(Units::PLAIN);
    let bad = Status::SGL_DATA_LENGTH_INVALID.with_dnr();
    for command in [
        Command::write(2, 0, 1),
        Command::read(2, 0, 1),
        Command::compare(2, 0, 1),
        Command::deallocate(2, 1),
    ] {
        for len in [u32::MAX, 1 << 31, (1 << 20) + 4096, 4097, 4, 0] {
            let cid = io.submit_for(command.0, len);
            assert_eq!(io.response(cid).status(), bad, "{command:?} {len}");
        }
    }
    for sqe in [
        Identify::controller().to_sqe(0),
        GetLogPage::new(LogId::SMART, 512).unwrap().to_sqe(0),
        SetFeatures::new(FeatureId::HOST_BEHAVIOR, 0).to_sqe(0),
    ] {
        let cid = admin.submit_for(sqe, u32::MAX);
        assert_eq!(admin.response(cid).status(), bad, "{sqe:?}");
    }
    drop((admin, io));
    field.survives();
}

/// A log page of 16 GiB.
pub fn a_log_page_of_16_gib<H: Harness>() {
    let mut field = Field::<H>::new();
    let (mut admin, io) = field.connected(Units::PLAIN);
    for len in [1_u64 << 34, 1 << 32, (1 << 20) + 4] {
        let sqe = GetLogPage::new(LogId::ERROR, len).unwrap().to_sqe(0);
        let cid = admin.submit_for(sqe, u32::try_from(len).unwrap_or(u32::MAX));
        assert_eq!(admin.response(cid).status(), Status::INVALID_FIELD.with_dnr());
    }
    drop((admin, io));
    field.survives();
}

/// Descriptors of types that TCP does not know, and offsets in the capsule.
pub fn descriptors_that_cannot_be<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io) = field.connected(Units::PLAIN);
    for descriptor in [
        SglDescriptor::DataBlock {
            address: 0,
            length: 4096,
        },
        SglDescriptor::DataBlock {
            address: u64::MAX,
            length: u32::MAX,
        },
        SglDescriptor::BitBucket { length: 4096 },
        SglDescriptor::Segment {
            address: 0x1000,
            length: 16,
        },
        SglDescriptor::LastSegment {
            address: 0x1000,
            length: 16,
        },
        SglDescriptor::Keyed {
            address: 0,
            length: 4096,
            key: 1,
            invalidate: true,
        },
    ] {
        for command in [Command::write(2, 0, 1), Command::read(2, 0, 1)] {
            let mut sqe = command.0;
            sqe.set_sgl(descriptor.encode().unwrap());
            let cqe = io.execute(sqe, &[]);
            assert_eq!(cqe.status().code(), Status::SGL_TYPE_INVALID, "{descriptor:?}");
        }
    }
    for raw in [[0x5b; 16], [0xff; 16], [0x02; 16]] {
        let mut sqe = Command::write(2, 0, 1).0;
        sqe.set_sgl(Sgl(raw));
        assert!(!io.execute(sqe, &[]).status().is_success());
    }
    for (offset, len, expected) in [
        (16, 4096, Status::SGL_OFFSET_INVALID),
        (u64::MAX, 4096, Status::SGL_OFFSET_INVALID),
        (0, 4095, Status::SGL_DATA_LENGTH_INVALID),
        (0, 4097, Status::SGL_DATA_LENGTH_INVALID),
        (0, u32::MAX, Status::SGL_DATA_LENGTH_INVALID),
    ] {
        let cid = io.next_cid();
        let mut sqe = Command::write(2, 0, 1).0;
        sqe.cid = cid.into();
        sqe.set_sgl(Sgl::in_capsule(offset, len));
        let unit = io.units().capsule(sqe, &[1; 4096]);
        io.send(&unit);
        assert_eq!(io.response(cid).status().code(), expected, "{offset} {len}");
    }
    // In the capsule by its descriptor, but not there.
    let mut sqe = Command::write(2, 0, 1).0;
    sqe.set_sgl(Sgl::in_capsule(0, 4096));
    assert!(!io.execute(sqe, &[]).status().is_success());
    // A read with data in its capsule.
    let cqe = io.execute(Command::read(2, 0, 1).0, &[1; 4096]);
    assert!(!cqe.status().is_success());
    drop((admin, io));
    field.survives();
}

/// More commands than the queue has entries.
pub fn more_commands_than_the_queue_holds<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io) = field.connected(Units::PLAIN);
    // Writes that wait for their data stay in flight.
    for _ in 0..8 {
        io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    }
    for _ in 0..8 {
        io.expect(PduType::R2T);
    }
    io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    field.queue_ends(admin, io, terminated(SEQUENCE, 0));
}

/// The id of a command that is in flight.
pub fn an_id_that_is_in_use<H: Harness>() {
    let mut field = Field::<H>::new();
    let (admin, mut io, cid, ttag) = waiting_write(&mut field, Units::PLAIN);
    let mut sqe = Command::flush(2).0;
    sqe.set_psdt(homi_spec::command::Psdt::SGL);
    sqe.cid = cid.into();
    let unit = io.units().capsule(sqe, &[]);
    io.send(&unit);
    assert!(io.response(cid).status().is(Status::CID_CONFLICT));
    let unit = io.units().h2c(cid, ttag, 0, &vec![1; 64 << 10], true);
    io.send(&unit);
    assert_eq!(io.response(cid).status(), Status::SUCCESS);
    drop((admin, io));
    field.survives();
}

/// Admin commands on an I/O queue, I/O commands on the admin queue, and fabrics commands on both.
pub fn commands_on_the_wrong_queue<H: Harness>() {
    let mut field = Field::<H>::new();
    let (mut admin, mut io) = field.connected(Units::PLAIN);
    // The opcode of Keep Alive is no I/O command.
    assert_eq!(io.keep_alive(), Status::INVALID_OPCODE.with_dnr());
    // The opcodes of Write and Compare create queues there, which fabrics do with Connect.
    for command in [Command::write(1, 0, 1), Command::compare(1, 0, 1)] {
        let status = admin.execute(command.0, &[]).status();
        assert_eq!(status, Status::INVALID_OPCODE.with_dnr(), "{command:?}");
    }
    let cc = homi_spec::controller::Cc::default();
    assert_eq!(io.set_cc(cc), Status::INVALID_OPCODE.with_dnr());
    for fctype in [2, 3, 7, 0x7f, 0xc0, 0xff] {
        let mut sqe = Sqe::new(0x7f, fctype);
        sqe.set_psdt(homi_spec::command::Psdt::SGL);
        assert_eq!(
            admin.execute(sqe, &[]).status(),
            Status::INVALID_OPCODE.with_dnr()
        );
    }
    drop((admin, io));
    field.survives();
}

/// Nothing of the target's memory is in completions (CVE-2024-41079), in pages or past their end.
pub fn nothing_leaks_in_completions<H: Harness>() {
    let mut field = Field::<H>::new();
    let (mut admin, mut io) = field.connected(Units::PLAIN);
    let clean = |cqe: Cqe| {
        assert_eq!(
            (cqe.dw0.get(), cqe.dw1.get(), cqe.sq_id.get()),
            (0, 0, 0),
            "{cqe:?}"
        );
    };
    clean(io.execute(Command::flush(1).0, &[]));
    clean(io.execute(Command::write(1, 0, 1).0, &[9; 512]));
    clean(io.execute(Command::write(1, u64::MAX, 1).0, &[9; 512]));
    clean(io.execute(Command::compare(1, 0, 1).0, &[9; 512]));
    clean(io.execute(Sqe::new(0x7c, 1), &[]));
    let cid = io.submit_for(Command::read(1, 0, 1).0, 512);
    let data = io.expect(PduType::C2H_DATA);
    assert_eq!(data.c2h(), (cid, 0, 512));
    assert_eq!(data.bytes[10..12], [0; 2]);
    assert_eq!(data.bytes[20..24], [0; 4]);
    clean(io.response(cid));
    clean(admin.execute(Sqe::new(0x03, 0), &[]));
    for lid in [LogId::ERROR, LogId::SMART, LogId::CHANGED_NAMESPACES] {
        let cid = admin.submit_for(GetLogPage::new(lid, 8192).unwrap().to_sqe(0), 8192);
        let data = admin.expect(PduType::C2H_DATA);
        assert_eq!(data.data[4096..], [0; 4096], "{lid:?}");
        clean(admin.response(cid));
    }
    let cid = admin.submit_for(Identify::controller().to_sqe(0), 4096);
    let page = admin.expect(PduType::C2H_DATA).data;
    let id = homi_spec::identify::IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!((id.reserved384, id.vs), ([0; 128], [0; 1024]));
    clean(admin.response(cid));
    drop((admin, io));
    field.survives();
}

/// More event requests than the controller holds, and gone with all of them.
pub fn too_many_event_requests<H: Harness>() {
    let mut field = Field::<H>::new();
    let (mut admin, io) = field.connected(Units::PLAIN);
    for _ in 0..4 {
        admin.submit(homi_spec::admin::async_event_request(0), &[]);
    }
    for _ in 0..20 {
        let cqe = admin.execute(homi_spec::admin::async_event_request(0), &[]);
        assert_eq!(cqe.status(), Status::AER_LIMIT_EXCEEDED.with_dnr());
    }
    assert_eq!(admin.keep_alive(), Status::SUCCESS);
    // Keep-alive and events end with the controller, in any order.
    let mut config = ram();
    config.subsystem[0].namespace.pop();
    field.target.apply(&config).unwrap();
    drop((admin, io));
    field.target.apply(&ram()).unwrap();
    write_and_read(&mut field.survivor, (1, 512), 0, 3);
    field.target.wait_for_connections(2);
}
