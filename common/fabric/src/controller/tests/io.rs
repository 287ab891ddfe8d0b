//! I/O commands, good and bad.

use super::*;
use crate::controller::io::{IoLimits, IoRequest, Scope, Transfer, parse};
use homi_queue::Command;
use homi_spec::command::{Fuse, NvmOpcode, Psdt};

const LIMITS: IoLimits = IoLimits {
    max_transfer: 1 << 20,
    write_through: false,
};

fn table() -> NamespaceTable {
    let entry = |nsid, block_size, blocks, read_only| NamespaceEntry {
        nsid,
        block_size,
        blocks,
        read_only,
        handle: nsid.into(),
    };
    NamespaceTable::new(vec![
        entry(1, 512, 1000, false),
        entry(2, 4096, 100_000, true),
        entry(9, 65536, u64::MAX >> 16, false),
    ])
}

fn with_sgl(command: Command, sgl: Sgl) -> Sqe {
    let mut sqe = command.0;
    sqe.set_sgl(sgl);
    sqe
}

/// The command with a descriptor of so many bytes.
fn moving(command: Command, bytes: u32) -> Sqe {
    with_sgl(command, Sgl::transport(bytes))
}

fn check(sqe: &Sqe) -> Result<IoRequest, Status> {
    parse(sqe, &table(), &LIMITS)
}

#[test]
fn every_command_that_can_be_executed() {
    let cases = [
        (moving(Command::read(1, 992, 8), 4096), 0, Transfer::ToHost(4096)),
        (
            moving(Command::read(2, 0, 1).with_fua(), 4096),
            1,
            Transfer::ToHost(4096),
        ),
        (moving(Command::read(1, 999, 1), 512), 0, Transfer::ToHost(512)),
        (
            moving(Command::write(1, 0, 1000), 512_000),
            0,
            Transfer::FromHost(512_000),
        ),
        (
            with_sgl(Command::write(1, 0, 2), Sgl::in_capsule(0, 1024)),
            0,
            Transfer::FromHost(1024),
        ),
        (
            with_sgl(Command::read(1, 0, 1), Sgl::keyed(7, 512, 1, true).unwrap()),
            0,
            Transfer::ToHost(512),
        ),
        (moving(Command::compare(1, 5, 1), 512), 0, Transfer::FromHost(512)),
        (
            moving(Command::write_zeroes(1, 0, 1000, true), 0),
            0,
            Transfer::None,
        ),
        // No transfer, so no limit but the field's own.
        (
            moving(Command::write_zeroes(9, 0, 65536, false), 0),
            2,
            Transfer::None,
        ),
        (moving(Command::verify(2, 34_464, 65536), 0), 1, Transfer::None),
        (moving(Command::flush(1), 0), 0, Transfer::None),
        (moving(Command::flush(2), 0), 1, Transfer::None),
        (
            moving(Command::deallocate(1, 256), 4096),
            0,
            Transfer::FromHost(4096),
        ),
        (moving(Command::deallocate(1, 1), 16), 0, Transfer::FromHost(16)),
        // Linux always describes room for 256 ranges.
        (
            moving(Command::deallocate(1, 2), 4096),
            0,
            Transfer::FromHost(4096),
        ),
    ];
    for (sqe, index, transfer) in cases {
        let expected = IoRequest {
            scope: Scope::Namespace(index),
            command: Command(sqe),
            transfer,
        };
        assert_eq!(check(&sqe), Ok(expected), "{sqe:?}");
    }
    let all = moving(Command::flush(u32::MAX), 0);
    let expected = IoRequest {
        scope: Scope::All,
        command: Command(all),
        transfer: Transfer::None,
    };
    assert_eq!(check(&all), Ok(expected));
}

#[test]
fn every_command_that_cannot() {
    let flags = |change: fn(&mut Sqe)| {
        let mut sqe = moving(Command::read(1, 0, 1), 512);
        change(&mut sqe);
        sqe
    };
    let opcode = |opcode: NvmOpcode| moving(Command(Sqe::new(opcode.raw(), 1)), 0);
    let directive = {
        let mut sqe = moving(Command::write(1, 0, 1), 512);
        sqe.cdw12 = (1 << 20).into();
        sqe
    };
    let cases = [
        (opcode(NvmOpcode::WRITE_UNCORRECTABLE), Status::INVALID_OPCODE),
        (opcode(NvmOpcode::COPY), Status::INVALID_OPCODE),
        (opcode(NvmOpcode::RESERVATION_REGISTER), Status::INVALID_OPCODE),
        (opcode(NvmOpcode::ZONE_APPEND), Status::INVALID_OPCODE),
        (opcode(NvmOpcode(0xff)), Status::INVALID_OPCODE),
        (flags(|sqe| sqe.set_fuse(Fuse::FIRST)), Status::INVALID_FIELD),
        (flags(|sqe| sqe.set_fuse(Fuse::SECOND)), Status::INVALID_FIELD),
        (flags(|sqe| sqe.set_psdt(Psdt::PRP)), Status::INVALID_FIELD),
        (
            flags(|sqe| sqe.set_psdt(Psdt::SGL_METADATA_SEGMENT)),
            Status::INVALID_FIELD,
        ),
        (flags(|sqe| sqe.set_psdt(Psdt(3))), Status::INVALID_FIELD),
        (directive, Status::INVALID_FIELD),
        (moving(Command::read(0, 0, 1), 512), Status::INVALID_NAMESPACE),
        (moving(Command::read(3, 0, 1), 512), Status::INVALID_NAMESPACE),
        (
            moving(Command::read(u32::MAX, 0, 1), 512),
            Status::INVALID_NAMESPACE,
        ),
        (moving(Command::flush(3), 0), Status::INVALID_NAMESPACE),
        (
            moving(Command::write(2, 0, 1), 4096),
            Status::NAMESPACE_WRITE_PROTECTED,
        ),
        (
            moving(Command::write_zeroes(2, 0, 1, false), 0),
            Status::NAMESPACE_WRITE_PROTECTED,
        ),
        (
            moving(Command::deallocate(2, 1), 16),
            Status::NAMESPACE_WRITE_PROTECTED,
        ),
        (moving(Command::read(1, 1000, 1), 512), Status::LBA_OUT_OF_RANGE),
        (moving(Command::read(1, 999, 2), 1024), Status::LBA_OUT_OF_RANGE),
        (
            moving(Command::write(1, u64::MAX, 1), 512),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            moving(Command::compare(1, u64::MAX - 1, 8), 4096),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            moving(Command::write_zeroes(1, 1, 1000, false), 0),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            moving(Command::verify(1, u64::MAX, 65536), 0),
            Status::LBA_OUT_OF_RANGE,
        ),
        // Beyond MDTS, up to the one size that 32 bits do not hold.
        (
            moving(Command::read(2, 0, 257), 257 * 4096),
            Status::INVALID_FIELD,
        ),
        (moving(Command::write(9, 0, 17), 17 << 16), Status::INVALID_FIELD),
        (moving(Command::read(9, 0, 65536), 0), Status::INVALID_FIELD),
        (
            moving(Command::read(1, 0, 2), 512),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            moving(Command::read(1, 0, 1), 1024),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            moving(Command::write(1, 0, 1), u32::MAX),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            moving(Command::write(1, 0, 1), 0),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            moving(Command::deallocate(1, 2), 16),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            moving(Command::deallocate(1, 256), 4112),
            Status::SGL_DATA_LENGTH_INVALID,
        ),
        (
            with_sgl(Command::deallocate(1, 1), Sgl::data_block(0, 16)),
            Status::SGL_TYPE_INVALID,
        ),
        (
            with_sgl(Command::read(1, 0, 1), Sgl::in_capsule(0, 512)),
            Status::SGL_TYPE_INVALID,
        ),
        (
            with_sgl(Command::write(1, 0, 1), Sgl::data_block(0, 512)),
            Status::SGL_TYPE_INVALID,
        ),
        (
            with_sgl(Command::write(1, 0, 1), Sgl([0xff; 16])),
            Status::SGL_TYPE_INVALID,
        ),
        (
            with_sgl(Command::write(1, 0, 1), Sgl([0x20; 16])),
            Status::SGL_TYPE_INVALID,
        ),
    ];
    for (sqe, status) in cases {
        assert_eq!(check(&sqe), Err(status.with_dnr()), "{sqe:?}");
    }
}

#[test]
fn a_switched_off_cache_makes_writes_durable() {
    let limits = IoLimits {
        write_through: true,
        ..LIMITS
    };
    for (sqe, durable) in [
        (moving(Command::write(1, 0, 1), 512), true),
        (moving(Command::write_zeroes(1, 0, 1, false), 0), true),
        (moving(Command::read(1, 0, 1), 512), false),
        (moving(Command::compare(1, 0, 1), 512), false),
    ] {
        assert_eq!(
            parse(&sqe, &table(), &limits).unwrap().command.fua(),
            durable,
            "{sqe:?}"
        );
        assert!(!parse(&sqe, &table(), &LIMITS).unwrap().command.fua());
    }
}
