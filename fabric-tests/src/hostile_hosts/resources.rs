//! Hosts that want more than there is.

use homi_queue::Command;
use homi_spec::Status;
use homi_spec::tcp::PduType;

use crate::bodies::{read, write, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::random::contents;
use crate::settings::ram;
use crate::units::Units;

/// Hosts that hold all the memory for data in transit by never sending theirs: others still write.
pub fn writes_whose_data_never_comes<H: Harness>() {
    let mut config = ram();
    config.node.shards = Some(1);
    config.node.buffers = "4M".parse().unwrap();
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(8);
    let mut hostile = Vec::new();
    for _ in 0..4 {
        let mut admin = target.raw();
        admin.initialize(Units::PLAIN);
        let controller = admin.connect_admin(0);
        admin.enable();
        let mut io = target.raw();
        io.initialize(Units::PLAIN);
        io.connect_io(controller, 1, 128);
        for _ in 0..100 {
            io.submit_for(Command::write(2, 0, 256).0, 1 << 20);
        }
        // The answer to a command that came after them: they have all been seen to.
        io.submit(Command::flush(2).0, &[]);
        while io.unit().pdu != PduType::CAPSULE_RESP {}
        hostile.push((admin, io));
    }
    for round in 0..4 {
        write_and_read(&mut queue, (1, 512), 0, round);
        let bytes = contents(round, 128 << 10);
        write(&mut queue, (2, 4096), 0, &bytes);
        assert_eq!(read(&mut queue, (2, 4096), 0, 32), bytes);
    }
    drop(hostile);
    target.wait_for_connections(2);
    let bytes = contents(77, 1 << 20);
    write(&mut queue, (2, 4096), 0, &bytes);
    assert_eq!(read(&mut queue, (2, 4096), 0, 256), bytes);
}

/// More data in capsules at once than the target has buffers: it is written all the same, none of it fails.
pub fn more_data_in_capsules_than_there_are_buffers<H: Harness>() {
    let mut config = ram();
    config.node.shards = Some(1);
    config.node.max_transfer = "64K".parse().unwrap();
    config.node.buffers = "64K".parse().unwrap();
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(127);
    for round in 0..4_u64 {
        let ids: Vec<_> = (0..127_u64)
            .map(|index| {
                let bytes = contents(round << 8 | index, 8192);
                queue.submit(Command::write(2, 2 * index, 2), crate::issuer::memory(&bytes))
            })
            .collect();
        queue.commit().unwrap();
        for id in ids {
            let completed = queue.completion_of(id).unwrap();
            assert_eq!(completed.completion.status, Status::SUCCESS);
        }
        for index in 0..127_u64 {
            let bytes = contents(round << 8 | index, 8192);
            assert_eq!(read(&mut queue, (2, 4096), 2 * index, 2), bytes);
        }
    }
}

/// More data at once than there are buffers for what a data digest has to stay right for.
pub fn more_reads_with_digests_than_there_are_buffers<H: Harness>() {
    let mut config = ram();
    config.node.shards = Some(1);
    config.node.max_transfer = "64K".parse().unwrap();
    config.node.buffers = "64K".parse().unwrap();
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions {
        data_digest: true,
        ..HostOptions::default()
    });
    let mut queue = host.queue(64);
    let bytes = contents(1, 64 << 10);
    for index in 0..8 {
        write(&mut queue, (2, 4096), 16 * index, &bytes);
    }
    let ids: Vec<_> = (0..64_u64)
        .map(|index| {
            let read = Command::read(2, 16 * (index % 8), 16);
            queue.submit(read, crate::issuer::blank(64 << 10))
        })
        .collect();
    queue.commit().unwrap();
    for id in ids {
        let completed = queue.completion_of(id).unwrap();
        assert_eq!(completed.completion.status, Status::SUCCESS);
        assert!(crate::issuer::bytes_of(&completed.data) == bytes);
    }
}
