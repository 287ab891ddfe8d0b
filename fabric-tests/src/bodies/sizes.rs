//! Transfers of every size, below, at and above every limit.

use homi_queue::{Command, Data};
use homi_spec::Status;
use homi_target::config::Size;

use super::{read, write};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::{blank, memory};
use crate::random::contents;
use crate::settings::{NAMESPACES, everything};

/// From one block to the largest transfer: in the capsule, just above it, in one piece and in several.
pub fn from_one_block_to_the_largest_transfer<H: Harness>() {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = H::start(&everything(scratch.path()));
    let mut host = target.host(&HostOptions::default());
    let capsule = usize::try_from(host.info().in_capsule).unwrap();
    let most = usize::try_from(host.info().max_transfer.unwrap()).unwrap();
    assert_eq!((capsule, most), (16 << 10, 1 << 20));
    for namespace in NAMESPACES {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        let mut queue = host.queue(4);
        let lengths = [
            size,
            2 * size,
            capsule - size,
            capsule,
            capsule + size,
            (32 << 10) - size,
            32 << 10,
            (128 << 10) + size,
            (512 << 10) - size,
            most - size,
            most,
        ];
        for (index, len) in (0_u64..).zip(lengths) {
            let lba = 3 * index;
            let bytes = contents(index, len);
            write(&mut queue, namespace, lba, &bytes);
            assert_eq!(
                read(&mut queue, namespace, lba, u32::try_from(len / size).unwrap()),
                bytes,
                "{len} bytes of namespace {nsid}"
            );
        }
        // One block more than a transfer may have.
        let blocks = u32::try_from(most / size).unwrap() + 1;
        let len = most + size;
        for command in [
            Command::read(nsid, 0, blocks),
            Command::write(nsid, 0, blocks),
            Command::compare(nsid, 0, blocks),
        ] {
            let status = queue.status(command, blank(len));
            assert_eq!(status, Status::INVALID_FIELD.with_dnr(), "{command:?}");
        }
    }
}

/// What a target offers changes what goes in capsules, and the largest transfer.
pub fn small_limits_of_the_target<H: Harness>() {
    for (in_capsule, max_transfer) in [(0, 8 << 10), (4096, 16 << 10), (64 << 10, 32 << 10)] {
        let mut config = crate::settings::ram();
        config.node.in_capsule = Size(in_capsule);
        config.node.max_transfer = Size(max_transfer);
        let mut target = H::start(&config);
        let mut host = target.host(&HostOptions::default());
        assert_eq!(u64::from(host.info().in_capsule), in_capsule);
        assert_eq!(host.info().max_transfer.map(u64::from), Some(max_transfer));
        let mut queue = host.queue(4);
        let most = u32::try_from(max_transfer).unwrap() / 512;
        for blocks in [1, 7, 8, 9, most - 1, most] {
            let bytes = contents(blocks.into(), usize::try_from(blocks).unwrap() * 512);
            write(&mut queue, (1, 512), 5, &bytes);
            assert_eq!(read(&mut queue, (1, 512), 5, blocks), bytes);
            let status = queue.status(Command::compare(1, 5, blocks), memory(&bytes));
            assert_eq!(status, Status::SUCCESS);
        }
        let len = usize::try_from(most + 1).unwrap() * 512;
        let status = queue.status(Command::read(1, 0, most + 1), Data::Anywhere { len });
        assert_eq!(status, Status::INVALID_FIELD.with_dnr());
    }
}

/// A whole namespace, written with the largest transfers and read with others.
pub fn a_whole_namespace<H: Harness>() {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = H::start(&everything(scratch.path()));
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(8);
    for nsid in [2, 4] {
        let namespace = (nsid, 4096);
        for part in 0..16_u64 {
            write(&mut queue, namespace, part * 256, &contents(part, 1 << 20));
        }
        for part in 0..64_u64 {
            let whole = contents(part / 4, 1 << 20);
            let at = usize::try_from(part % 4).unwrap() * (256 << 10);
            assert_eq!(
                read(&mut queue, namespace, part * 64, 64),
                whole[at..at + (256 << 10)]
            );
        }
    }
}
