//! Commands that cannot be executed: each has its exact status, and the queue goes on.

use homi_queue::{Command, Data};
use homi_spec::command::{Fuse, NSID_BROADCAST};
use homi_spec::log::{ErrorLogEntry, GetLogPage, LogId};
use homi_spec::nvm::DsmRange;
use homi_spec::{Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::{NOTHING, ram_and_queue, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::{blank, memory};
use crate::settings::{DATA, NAMESPACE_BYTES, node};

const DNR_RANGE: Status = Status::LBA_OUT_OF_RANGE.with_dnr();

/// Blocks beyond the end of the namespace, the last of them at the end of the number range too.
pub fn blocks_out_of_range<H: Harness>() {
    let (_target, _host, mut queue) = ram_and_queue::<H>(8);
    for (nsid, size) in [(1, 512), (2, 4096)] {
        let blocks = NAMESPACE_BYTES / size;
        let len = usize::try_from(size).unwrap();
        for (lba, count, within) in [
            (blocks - 1, 1, true),
            (blocks - 2, 2, true),
            (blocks, 1, false),
            (blocks - 1, 2, false),
            (u64::MAX, 1, false),
            (u64::MAX - 1, 2, false),
            (1 << 32, 1, false),
        ] {
            let expected = if within { Status::SUCCESS } else { DNR_RANGE };
            let bytes = usize::try_from(count).unwrap() * len;
            for (command, data) in [
                (Command::write(nsid, lba, count), blank(bytes)),
                (Command::read(nsid, lba, count), blank(bytes)),
                (Command::compare(nsid, lba, count), blank(bytes)),
                (Command::verify(nsid, lba, count), NOTHING),
                (Command::write_zeroes(nsid, lba, count, false), NOTHING),
                (
                    Command::deallocate(nsid, 1),
                    memory(DsmRange::new(lba, count).as_bytes()),
                ),
            ] {
                assert_eq!(queue.status(command, data), expected, "{command:?}");
            }
        }
        write_and_read(&mut queue, (nsid, u32::try_from(size).unwrap()), 5, size);
    }
}

/// Nothing of a deallocation happens if one of its ranges cannot.
pub fn one_bad_range_of_many<H: Harness>() {
    let (_target, _host, mut queue) = ram_and_queue::<H>(8);
    write_and_read(&mut queue, (1, 512), 0, 1);
    let before = super::read(&mut queue, (1, 512), 0, 8);
    let ranges = [DsmRange::new(0, 8), DsmRange::new(NAMESPACE_BYTES / 512, 1)];
    let status = queue.status(Command::deallocate(1, 2), memory(ranges.as_bytes()));
    assert_eq!(status, DNR_RANGE);
    assert_eq!(super::read(&mut queue, (1, 512), 0, 8), before);
}

/// Namespaces that do not exist.
pub fn namespaces_that_do_not_exist<H: Harness>() {
    let (_target, _host, mut queue) = ram_and_queue::<H>(8);
    for nsid in [0, 3, 1024, 1025, NSID_BROADCAST - 1, NSID_BROADCAST] {
        for (command, data) in [
            (Command::read(nsid, 0, 1), blank(512)),
            (Command::write(nsid, 0, 1), blank(512)),
            (Command::write(nsid, 0, 128), blank(64 << 10)),
            (Command::write_zeroes(nsid, 0, 1, false), NOTHING),
            (Command::verify(nsid, 0, 1), NOTHING),
        ] {
            assert_eq!(
                queue.status(command, data),
                Status::INVALID_NAMESPACE.with_dnr(),
                "{command:?}"
            );
        }
    }
    assert_eq!(
        queue.status(Command::flush(3), NOTHING),
        Status::INVALID_NAMESPACE.with_dnr()
    );
    write_and_read(&mut queue, (2, 4096), 0, 1);
}

/// Opcodes that do not exist, commands that are fused, and data of another length than the blocks.
pub fn commands_that_cannot_be<H: Harness>() {
    let (_target, _host, mut queue) = ram_and_queue::<H>(8);
    for opcode in [0x04, 0x0d, 0x10, 0x7c, 0x80, 0xfc] {
        let status = queue.status(Command(Sqe::new(opcode, 1)), NOTHING);
        assert_eq!(status, Status::INVALID_OPCODE.with_dnr(), "{opcode:#x}");
    }
    // An opcode that says that data comes with it.
    let status = queue.status(Command(Sqe::new(0x7d, 1)), blank(512));
    assert_eq!(status, Status::INVALID_OPCODE.with_dnr());
    for fuse in [Fuse::FIRST, Fuse::SECOND] {
        let mut fused = Command::write(1, 0, 1);
        fused.0.set_fuse(fuse);
        assert_eq!(queue.status(fused, blank(512)), Status::INVALID_FIELD.with_dnr());
    }
    for len in [512, 1536, 64 << 10] {
        for command in [Command::read(1, 0, 2), Command::write(1, 0, 2)] {
            let status = queue.status(command, blank(len));
            assert_eq!(
                status,
                Status::SGL_DATA_LENGTH_INVALID.with_dnr(),
                "{command:?} {len}"
            );
        }
    }
    let status = queue.status(Command::read(1, 0, 2), NOTHING);
    assert_eq!(status, Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    write_and_read(&mut queue, (1, 512), 0, 1);
}

/// Namespaces that may only be read.
pub fn a_namespace_that_may_only_be_read<H: Harness>() {
    let config = node(&format!(
        r#"
[[subsystem]]
nqn = "{DATA}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
ram = "1M"
read_only = true
"#
    ));
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(8);
    assert_eq!(queue.bytes(Command::read(1, 0, 1), blank(4096)), vec![0; 4096]);
    for (command, data) in [
        (Command::write(1, 0, 1), blank(4096)),
        (Command::write(1, 0, 64), blank(256 << 10)),
        (Command::write_zeroes(1, 0, 1, true), NOTHING),
        (Command::deallocate(1, 1), memory(DsmRange::new(0, 1).as_bytes())),
    ] {
        assert_eq!(
            queue.status(command, data),
            Status::NAMESPACE_WRITE_PROTECTED.with_dnr(),
            "{command:?}"
        );
    }
    assert_eq!(
        queue.status(Command::compare(1, 0, 1), memory(&[0; 4096])),
        Status::SUCCESS
    );
    assert_eq!(queue.status(Command::flush(1), NOTHING), Status::SUCCESS);
}

/// Failures are in the error log, the newest first, with what they were about.
pub fn failures_are_in_the_error_log<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(8);
    let end = NAMESPACE_BYTES / 512;
    for lba in [end, end + 7] {
        let command = Command::read(1, lba, 1);
        assert_eq!(queue.status(command, Data::Anywhere { len: 512 }), DNR_RANGE);
    }
    let page = GetLogPage::new(LogId::ERROR, 128).unwrap();
    let bytes = host.read_page(Command(page.to_sqe(0)), 128).unwrap();
    let (newest, rest) = ErrorLogEntry::read_from_prefix(&bytes).unwrap();
    let (second, _) = ErrorLogEntry::read_from_prefix(rest).unwrap();
    for (entry, lba) in [(newest, end + 7), (second, end)] {
        assert_eq!(
            (entry.status(), entry.lba.get(), entry.nsid.get()),
            (DNR_RANGE, lba, 1)
        );
        assert_ne!(entry.sqid.get(), 0);
    }
    assert_eq!(newest.error_count.get(), second.error_count.get() + 1);
}
