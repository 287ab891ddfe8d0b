//! Every I/O command, on memory and files, with blocks of 512 and 4096 bytes.

use homi_queue::{Command, Completion, Data, Queue, Wait};
use homi_spec::Status;
use homi_spec::command::NSID_BROADCAST;
use homi_spec::nvm::DsmRange;
use zerocopy::IntoBytes;

use super::{NOTHING, read, write, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::{Issuer, memory};
use crate::random::contents;
use crate::settings::{NAMESPACES, everything};

/// Runs `f` for each namespace, each with a queue of its own.
fn for_each_namespace<H: Harness>(
    options: &HostOptions,
    mut f: impl FnMut(&mut Issuer<<H::Host as Host>::Queue>, (u32, u32)),
) {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = H::start(&everything(scratch.path()));
    let mut host = target.host(options);
    for namespace in NAMESPACES {
        let mut queue = host.queue(16);
        f(&mut queue, namespace);
    }
}

/// What is written is read, and nothing beside it changes.
pub fn reads_return_what_was_written<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let size = usize::try_from(namespace.1).unwrap();
        let around = contents(1, 16 * size);
        write(queue, namespace, 100, &around);
        let inner = contents(2, 4 * size);
        write(queue, namespace, 106, &inner);
        let mut expected = around;
        expected[6 * size..10 * size].copy_from_slice(&inner);
        assert_eq!(read(queue, namespace, 100, 16), expected);
        // What nobody wrote is zero.
        assert_eq!(read(queue, namespace, 50, 2), vec![0; 2 * size]);
    });
}

/// Memory in pieces, memory in the middle of a region, and memory that the executor chooses.
pub fn memory_of_any_shape<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        let bytes = contents(3, 8 * size);
        let region = homi_queue::Region::allocate(20 * size, 4096).unwrap();
        region.write(size + 12, &bytes[..3 * size + 4]).unwrap();
        region.write(11 * size + 5, &bytes[3 * size + 4..]).unwrap();
        let pieces = |region: &homi_queue::Region| {
            Data::List(vec![
                region.segment(size + 12..4 * size + 16).unwrap(),
                region.segment(11 * size + 5..16 * size + 1).unwrap(),
            ])
        };
        let status = queue.status(Command::write(nsid, 40, 8), pieces(&region));
        assert_eq!(status, Status::SUCCESS);
        region.fill(0, 20 * size, 0xee).unwrap();
        assert_eq!(queue.bytes(Command::read(nsid, 40, 8), pieces(&region)), bytes);
        let anywhere = Data::Anywhere { len: 8 * size };
        assert_eq!(queue.bytes(Command::read(nsid, 40, 8), anywhere), bytes);
    });
}

/// Compare says whether blocks are equal, and changes nothing.
pub fn compare_tells_equal_from_different<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        for blocks in [1_u32, 8, 64] {
            let mut bytes = contents(4, usize::try_from(blocks).unwrap() * size);
            write(queue, namespace, 7, &bytes);
            let compare = Command::compare(nsid, 7, blocks);
            assert_eq!(queue.status(compare, memory(&bytes)), Status::SUCCESS);
            *bytes.last_mut().unwrap() ^= 1;
            let status = queue.status(compare, memory(&bytes));
            assert!(status.is(Status::COMPARE_FAILURE), "{status}");
            *bytes.last_mut().unwrap() ^= 1;
            assert_eq!(read(queue, namespace, 7, blocks), bytes);
        }
    });
}

/// Write Zeroes zeroes its blocks and no other, whether it may deallocate them or not.
pub fn write_zeroes_with_and_without_deallocation<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        for deallocate in [false, true] {
            // From one block to more than a page and more than any transfer.
            for (lba, blocks) in [(3_u64, 1_u32), (5, 17), (64, 1024)] {
                let count = usize::try_from(blocks).unwrap();
                let bytes = contents(5, (count + 2) * size);
                for (at, part) in (0_u64..).zip(bytes.chunks(64 * size)) {
                    write(queue, namespace, lba - 1 + 64 * at, part);
                }
                let command = Command::write_zeroes(nsid, lba, blocks, deallocate);
                assert_eq!(queue.status(command, NOTHING), Status::SUCCESS);
                let end = lba + u64::from(blocks);
                assert_eq!(read(queue, namespace, lba - 1, 1), bytes[..size]);
                assert_eq!(read(queue, namespace, end, 1), bytes[(count + 1) * size..]);
                assert_eq!(read(queue, namespace, lba, 1), vec![0; size]);
                assert_eq!(read(queue, namespace, end - 1, 1), vec![0; size]);
                assert_eq!(
                    read(queue, namespace, lba + u64::from(blocks) / 2, 1),
                    vec![0; size]
                );
            }
        }
    });
}

/// Deallocated blocks read as zeroes, which is what the namespaces promise, and their neighbours stay.
pub fn deallocate_many_ranges<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        let bytes = contents(6, 128 * size);
        write(queue, namespace, 0, &bytes);
        let ranges = [DsmRange::new(1, 1), DsmRange::new(16, 32), DsmRange::new(120, 8)];
        let status = queue.status(Command::deallocate(nsid, 3), memory(ranges.as_bytes()));
        assert_eq!(status, Status::SUCCESS);
        let mut expected = bytes;
        for range in [1..2, 16..48, 120..128] {
            expected[range.start * size..range.end * size].fill(0);
        }
        assert_eq!(read(queue, namespace, 0, 128), expected);
        // As many ranges as one command can name.
        let many: Vec<DsmRange> = (0..256).map(|index| DsmRange::new(2 * index, 1)).collect();
        let status = queue.status(Command::deallocate(nsid, 256), memory(many.as_bytes()));
        assert_eq!(status, Status::SUCCESS);
        for block in (0..128).step_by(2) {
            expected[block * size..(block + 1) * size].fill(0);
        }
        assert_eq!(read(queue, namespace, 0, 128), expected);
    });
}

/// Flush of one namespace and of all, Verify, and Force Unit Access on both ways.
pub fn flush_verify_and_force_unit_access<H: Harness>() {
    for_each_namespace::<H>(&HostOptions::default(), |queue, namespace| {
        let (nsid, size) = (namespace.0, usize::try_from(namespace.1).unwrap());
        let bytes = contents(7, 8 * size);
        let fua = Command::write(nsid, 9, 8).with_fua();
        assert_eq!(queue.status(fua, memory(&bytes)), Status::SUCCESS);
        for nsid in [nsid, NSID_BROADCAST] {
            assert_eq!(queue.status(Command::flush(nsid), NOTHING), Status::SUCCESS);
        }
        let (completion, _) = queue.execute(Command::verify(nsid, 9, 8), NOTHING);
        assert_eq!(completion, Completion::SUCCESS);
        let read = Command::read(nsid, 9, 8).with_fua();
        assert_eq!(queue.bytes(read, Data::Anywhere { len: 8 * size }), bytes);
        let zeroes = Command::write_zeroes(nsid, 9, 8, false).with_fua();
        assert_eq!(queue.status(zeroes, NOTHING), Status::SUCCESS);
        assert_eq!(queue.status(Command::flush(nsid), NOTHING), Status::SUCCESS);
    });
}

/// Both digests, each alone, and flow control on and off: commands of every kind of transfer.
pub fn every_negotiation<H: Harness>() {
    for combination in 0..8_u8 {
        let options = HostOptions {
            header_digest: combination & 1 != 0,
            data_digest: combination & 2 != 0,
            sq_flow_control: combination & 4 != 0,
            ..HostOptions::default()
        };
        for_each_namespace::<H>(&options, |queue, namespace| {
            mixed_transfers(queue, namespace, combination.into());
        });
    }
}

/// Writes in and outside of capsules, reads of the same, a status, and more commands than the queue is deep.
fn mixed_transfers<Q: Queue + Wait>(queue: &mut Issuer<Q>, namespace: (u32, u32), seed: u64) {
    let size = usize::try_from(namespace.1).unwrap();
    for (lba, len) in [(0, size), (1, 4096), (100, 64 << 10), (1000, 256 << 10)] {
        let bytes = contents(seed + lba, len);
        write(queue, namespace, lba, &bytes);
        let blocks = u32::try_from(len / size).unwrap();
        assert_eq!(read(queue, namespace, lba, blocks), bytes);
    }
    let status = queue.status(
        Command::read(namespace.0, u64::MAX, 1),
        Data::Anywhere { len: size },
    );
    assert!(status.is(Status::LBA_OUT_OF_RANGE), "{status}");
    for round in 0..40 {
        write_and_read(queue, namespace, 8 * round, seed + round);
    }
}
