//! Data through queues, against a scripted target: every size, both ways of answering, nothing lost and nothing copied that need not be.
#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers, and patterns that are meant to wrap"
)]
#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

mod fake;

use std::io::Read;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use fake::{BLOCK, BLOCKS, Behaviour, Fake, Verdict};
use homi_initiator::{
    Blocking, Counters, Disk, Error, FabricQueue, Initiator, QueueOptions, wait_for_completions,
};
use homi_queue::{Buffer, Command, Completed, Data, Queue, Region, Wait};
use homi_spec::Status;
use homi_spec::command::NvmOpcode;

fn queue(fake: &Fake, depth: u16) -> FabricQueue {
    let initiator = Initiator::new().unwrap();
    let controller = initiator.connect(&fake.uri().parse().unwrap()).unwrap();
    controller.queue(QueueOptions::depth(depth)).unwrap()
}

fn run(queue: &mut FabricQueue, commands: Vec<(Command, Data)>) -> Vec<Completed> {
    let count = commands.len();
    let mut completed = Vec::new();
    for (command, data) in commands {
        let slot = loop {
            match queue.reserve() {
                Ok(slot) => break slot,
                Err(_) => {
                    queue.commit().unwrap();
                    wait_for_completions(queue, &mut completed, None).unwrap();
                }
            }
        };
        queue.submit(slot, command, data);
    }
    queue.commit().unwrap();
    while completed.len() < count {
        wait_for_completions(queue, &mut completed, None).unwrap();
    }
    completed
}

fn bytes(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_size_arrives_in_both_directions() {
    for success_flag in [true, false] {
        let fake = Fake::serve(Behaviour {
            success_flag,
            ..Behaviour::default()
        });
        let mut queue = queue(&fake, 8);
        for blocks in [1_u32, 7, 8, 9, 63, 64, 65, 127, 128, 256, 2048] {
            let len = blocks as usize * BLOCK;
            let expected = fake.world.memory.lock().unwrap()[BLOCK..BLOCK + len].to_vec();
            let region = Region::allocate(len, 4096).unwrap();
            // In three pieces, out of order in memory.
            let (a, b) = (len / 3, len / 2);
            let pieces = vec![
                region.segment(b..len).unwrap(),
                region.segment(0..a).unwrap(),
                region.segment(a..b).unwrap(),
            ];
            let completed = run(
                &mut queue,
                vec![
                    (Command::read(1, 1, blocks), Data::Anywhere { len }),
                    (Command::read(1, 1, blocks), Data::List(pieces)),
                ],
            );
            for read in completed {
                assert!(read.completion.is_success());
                assert_eq!(bytes(&read.data), expected, "{blocks} blocks");
            }
            let new: Vec<u8> = (0..len)
                .map(|at| (at as u8).wrapping_mul(31) ^ blocks as u8)
                .collect();
            let data = Data::whole(Region::from_vec(new.clone()));
            assert!(
                run(&mut queue, vec![(Command::write(1, 1, blocks), data)])[0]
                    .completion
                    .is_success()
            );
            assert!(
                fake.world.memory.lock().unwrap()[BLOCK..BLOCK + len] == new,
                "{blocks} blocks"
            );
        }
    }
}

#[test]
fn large_payloads_are_not_copied_and_small_ones_share_receives() {
    let fake = Fake::good();
    let mut queue = queue(&fake, 32);
    let spent = |queue: &mut FabricQueue, blocks: u32, count: u64| {
        let before = queue.counters();
        let commands = (0..count)
            .map(|_| {
                (
                    Command::read(1, 0, blocks),
                    Data::Anywhere {
                        len: blocks as usize * BLOCK,
                    },
                )
            })
            .collect();
        run(queue, commands);
        let after = queue.counters();
        Counters {
            copies: after.copies - before.copies,
            bytes_copied: after.bytes_copied - before.bytes_copied,
            bytes_landed: after.bytes_landed - before.bytes_landed,
            sends: after.sends - before.sends,
            ..Counters::default()
        }
    };
    // From 32 KiB up nothing is copied.
    for blocks in [64, 256, 2048] {
        let large = spent(&mut queue, blocks, 40);
        assert_eq!((large.copies, large.bytes_copied), (0, 0), "{blocks} blocks");
        assert_eq!(large.bytes_landed, 40 * u64::from(blocks) * BLOCK as u64);
    }
    // Below, everything is, and a batch is one send.
    let small = spent(&mut queue, 8, 32);
    assert_eq!((small.copies, small.bytes_landed, small.sends), (32, 0, 1));
    // Writes are never copied in user space.
    let before = queue.counters();
    let commands = (0..32).map(|_| {
        (
            Command::write(1, 0, 64),
            Data::whole(Region::from_vec(vec![3; 64 * BLOCK])),
        )
    });
    run(&mut queue, commands.collect());
    assert_eq!(queue.counters().bytes_copied, before.bytes_copied);
}

#[test]
fn mixed_sizes_keep_their_data_apart() {
    let fake = Fake::good();
    let mut queue = queue(&fake, 16);
    let memory = fake.world.memory.lock().unwrap().clone();
    let mut commands = Vec::new();
    let mut expected = std::collections::HashMap::new();
    let mut at = 0;
    for round in 0..300_usize {
        let blocks = [1, 8, 64, 3, 200, 16, 512, 2][round % 8];
        let lba = at % (BLOCKS - blocks);
        at += 37;
        let region = Region::allocate(blocks * BLOCK, 8).unwrap();
        expected.insert(region.host_address() as usize, (lba, blocks));
        commands.push((Command::read(1, lba as u64, blocks as u32), Data::whole(region)));
    }
    for read in run(&mut queue, commands) {
        let (lba, blocks) = expected
            .remove(&(read.data.segments()[0].host_address() as usize))
            .unwrap();
        assert!(
            bytes(&read.data) == memory[lba * BLOCK..(lba + blocks) * BLOCK],
            "{blocks} blocks at {lba}"
        );
    }
    assert!(expected.is_empty());
}

#[test]
fn writes_larger_than_the_socket_takes_go_on_while_the_queue_is_polled() {
    // The target reads nothing for a while, so that sends are cut short.
    let fake = Fake::script(|connection, sqe| {
        if connection.qid > 0 && sqe.nvm_opcode() == NvmOpcode::FLUSH {
            thread::sleep(Duration::from_millis(200));
        }
        Verdict::Default
    });
    let mut queue = queue(&fake, 64);
    let mut blocked = false;
    // In-capsule data, so that everything is sent at once.
    for round in 0..3 {
        let slot = queue.reserve().unwrap();
        queue.submit(slot, Command::flush(1), Data::None);
        for index in 0..63_u64 {
            let slot = queue.reserve().unwrap();
            let data = Data::whole(Region::from_vec(vec![round * 64 + index as u8; 8 * BLOCK]));
            queue.submit(slot, Command::write(1, index * 8, 8), data);
        }
        queue.commit().unwrap();
        blocked |= queue.waits_for_room();
        let mut completed = Vec::new();
        while completed.len() < 64 {
            wait_for_completions(&mut queue, &mut completed, None).unwrap();
            blocked |= queue.waits_for_room();
        }
        assert!(
            completed
                .iter()
                .all(|completed| completed.completion.is_success())
        );
        let memory = fake.world.memory.lock().unwrap();
        for index in 0..63 {
            assert!(
                memory[index * 4096..][..4096]
                    .iter()
                    .all(|byte| *byte == round * 64 + index as u8)
            );
        }
    }
    // Whether the kernel's buffers were too small depends on the machine; the data is right either way.
    println!("sends were cut short: {blocked}");
}

#[test]
fn a_queue_is_full_at_its_depth_and_refuses_nonsense_itself() {
    let fake = Fake::good();
    let mut queue = queue(&fake, 4);
    let slots: Vec<_> = (0..4).map(|_| queue.reserve().unwrap()).collect();
    assert!(queue.reserve().is_err());
    for slot in slots {
        queue.release(slot);
    }
    // A write cannot come from anywhere, and a flush moves nothing.
    let completed = run(
        &mut queue,
        vec![
            (Command::write(1, 0, 1), Data::Anywhere { len: BLOCK }),
            (Command::flush(1), Data::whole(Region::from_vec(vec![0; 16]))),
            (Command::flush(1), Data::None),
        ],
    );
    let succeeded = completed
        .iter()
        .filter(|completed| completed.completion.is_success())
        .count();
    assert_eq!((completed.len(), succeeded), (3, 1));
    assert_eq!(
        fake.world.seen(1, NvmOpcode::FLUSH.raw()),
        1,
        "what cannot be meant is not sent"
    );
}

#[test]
fn one_command_at_a_time() {
    let fake = Fake::good();
    let device = Initiator::new()
        .unwrap()
        .open(&fake.uri().parse().unwrap())
        .unwrap();
    assert_eq!(
        (device.blocks(), device.block_size(), device.max_transfer()),
        (4096, 512, 1 << 20)
    );
    let mut disk = Blocking::open(&device).unwrap();
    let mut buffer = Buffer::allocate(4096).unwrap();
    buffer.fill(0x5a);
    let address = buffer.as_ptr();
    let buffer = disk.write(16, buffer).unwrap();
    let mut buffer = disk.compare(16, buffer).unwrap();
    assert_eq!(buffer.as_ptr(), address, "the same memory comes back");
    buffer[100] = 0;
    assert!(matches!(
        disk.compare(16, buffer),
        Err(Error::Miscompare { lba: 16 })
    ));
    disk.write_zeroes(17, 2, true).unwrap();
    let buffer = disk.read(16, Buffer::allocate(4096).unwrap()).unwrap();
    assert!(
        buffer[..512].iter().all(|byte| *byte == 0x5a) && buffer[512..1536].iter().all(|byte| *byte == 0)
    );
    disk.deallocate(&[(0, 8), (100, 4)]).unwrap();
    disk.flush().unwrap();
    assert!(matches!(
        disk.read(0, Buffer::allocate(100).unwrap()),
        Err(Error::Range(_))
    ));
    let error = disk.read(4095, Buffer::allocate(1024).unwrap()).unwrap_err();
    assert_eq!(error.status(), Some(Status::LBA_OUT_OF_RANGE));
    assert!(matches!(disk.deallocate(&[]), Err(Error::Range(_))));
}

#[test]
fn a_disk_copies_a_file_there_and_back() {
    let fake = Fake::good();
    let initiator = Initiator::new().unwrap();
    let mut disk = Disk::open(&initiator, &fake.uri().parse().unwrap()).unwrap();
    let file: Vec<u8> = (0..1_234_567_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    assert_eq!(
        disk.copy_in(&mut file.as_slice(), 512).unwrap(),
        file.len() as u64
    );
    disk.flush().unwrap();
    let mut back = Vec::new();
    disk.copy_out(512, file.len() as u64, &mut back).unwrap();
    assert!(back == file);
    let mut part = [0; 1000];
    disk.read_at(512 + 99_999, &mut part).unwrap();
    assert_eq!(part, file[99_999..100_999]);
    disk.write_at(700, b"between the blocks").unwrap();
    let mut text = [0; 18];
    disk.read_at(700, &mut text).unwrap();
    assert_eq!(&text, b"between the blocks");
    assert!(disk.read_at(disk.len() - 1, &mut [0; 2]).is_err());
}

#[test]
fn a_source_that_fails_leaves_the_disk_usable() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("the source broke"));
            }
            let count = to.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }
    }
    let fake = Fake::good();
    let mut disk = Disk::open(&Initiator::new().unwrap(), &fake.uri().parse().unwrap()).unwrap();
    let error = disk.copy_in(&mut Failing(1 << 20), 0).unwrap_err();
    assert!(error.to_string().contains("the source broke"), "{error}");
    disk.read_at(0, &mut [0; 5000]).unwrap();
}

#[test]
fn local_executors_are_the_same_to_the_layers_above() {
    let initiator = Initiator::new().unwrap();
    let path = std::env::temp_dir().join(format!("homi-initiator-{}", std::process::id()));
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    for uri in [
        "ram://1M".to_owned(),
        "ram://1M?block=512".to_owned(),
        format!("file://{}", path.display()),
    ] {
        let device = initiator.open(&uri.parse().unwrap()).unwrap();
        assert_eq!(device.bytes(), 1 << 20, "{uri}");
        assert!(device.controller().is_none());
        let mut disk = Disk::on(&device, 4).unwrap();
        disk.write_at(1000, &[7; 70_000]).unwrap();
        disk.flush().unwrap();
        let mut back = vec![0; 70_002];
        disk.read_at(999, &mut back).unwrap();
        assert!(
            back[0] == 0 && back[70_001] == 0 && back[1..70_001].iter().all(|byte| *byte == 7),
            "{uri}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    let missing = initiator
        .open(&format!("file://{}", path.display()).parse().unwrap())
        .unwrap_err();
    assert!(missing.to_string().contains("homi-initiator-"), "{missing}");
    let local = initiator.connect(&"ram://1M".parse().unwrap()).unwrap_err();
    assert!(local.to_string().contains("open a local device"), "{local}");
}

#[test]
fn a_killed_connection_gives_every_command_back_once() {
    let fake = Fake::good();
    for round in 0..10_u64 {
        let mut queue = queue(&fake, 32);
        let mut completed = Vec::new();
        let mut submitted = 0;
        let killer = thread::spawn({
            let world = std::sync::Arc::clone(&fake.world);
            move || {
                thread::sleep(Duration::from_millis(round * 3));
                Fake {
                    address: "127.0.0.1:1".parse().unwrap(),
                    world,
                }
                .drop_all();
            }
        });
        let undelivered = loop {
            while let Ok(slot) = queue.reserve() {
                let data = Data::Anywhere { len: 65536 };
                queue.submit(slot, Command::read(1, 0, 128), data);
                submitted += 1;
            }
            let result = queue.commit().and_then(|()| {
                wait_for_completions(&mut queue, &mut completed, Some(Duration::from_secs(5)))
            });
            if let Err(lost) = result {
                break lost.into_parts().1;
            }
        };
        assert_eq!(completed.len() + undelivered.len(), submitted);
        let again = queue.poll(&mut completed).unwrap_err();
        assert!(again.undelivered().is_empty());
        // What is submitted to a lost queue comes back too.
        let slot = queue.reserve().unwrap();
        queue.submit(slot, Command::flush(1), Data::None);
        assert_eq!(queue.commit().unwrap_err().undelivered().len(), 1);
        killer.join().unwrap();
    }
    assert!(fake.world.connections.load(Ordering::SeqCst) >= 20);
}

#[test]
fn an_idle_initiator_sleeps() {
    let fake = Fake::good();
    let initiator = Initiator::new().unwrap();
    let controllers: Vec<_> = (0..10)
        .map(|_| initiator.connect(&fake.uri().parse().unwrap()).unwrap())
        .collect();
    let _queues: Vec<_> = controllers
        .iter()
        .map(|controller| controller.queue(QueueOptions::default()).unwrap())
        .collect();
    // The keeper's own time: it is the only thread of that name.
    let spent = || {
        let mut ticks = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            if let Some((name, rest)) = stat.split_once(") ")
                && name.ends_with("homi-keeper")
            {
                let fields: Vec<&str> = rest.split(' ').collect();
                ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            }
        }
        ticks
    };
    let (before, start) = (spent(), Instant::now());
    thread::sleep(Duration::from_millis(1500));
    let busy = (spent() - before) as f64 / 100.0;
    assert!(
        busy < start.elapsed().as_secs_f64() * 0.05,
        "the keeper was busy for {busy} s"
    );
}
