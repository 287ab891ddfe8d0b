//! Queues as futures, against a scripted target.
#![cfg(feature = "tokio")]
#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

mod fake;

use std::time::Duration;

use fake::{BLOCK, BLOCKS, Fake, Verdict};
use homi_initiator::{AsyncQueue, Device, Initiator, QueueOptions};
use homi_queue::{Buffer, Command, Data, Region};
use homi_spec::command::NvmOpcode;

fn device(fake: &Fake) -> Device {
    Initiator::new()
        .unwrap()
        .open(&fake.uri().parse().unwrap())
        .unwrap()
}

/// A runtime for one test.
fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn many_tasks_share_a_queue() {
    for uri in [Some("ram://2M?block=512"), None] {
        let fake = Fake::good();
        let device = match uri {
            Some(uri) => Initiator::new().unwrap().open(&uri.parse().unwrap()).unwrap(),
            None => device(&fake),
        };
        run(async {
            let queue = AsyncQueue::open(&device, QueueOptions::depth(8)).unwrap();
            let mut tasks = Vec::new();
            for task in 0..64_u8 {
                let queue = queue.clone();
                tasks.push(tokio::spawn(async move {
                    let blocks = [1, 8, 64][usize::from(task) % 3];
                    let len = blocks as usize * BLOCK;
                    let lba = u64::from(task) * 64;
                    assert!(lba + u64::from(blocks) <= BLOCKS as u64);
                    let mut buffer = Buffer::allocate(len).unwrap();
                    buffer.fill(task);
                    let mut buffer = queue.write(1, lba, blocks, buffer).await.unwrap();
                    buffer.fill(0xff);
                    let buffer = queue.read(1, lba, blocks, buffer).await.unwrap();
                    assert!(buffer.iter().all(|byte| *byte == task));
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            queue.flush(1).await.unwrap();
        });
    }
}

#[test]
fn dropping_a_future_leaves_its_memory_with_the_queue() {
    // Reads are held back until a flush comes.
    let fake = Fake::script(|connection, sqe| {
        if connection.qid > 0 && sqe.nvm_opcode() == NvmOpcode::READ && !connection.held_back {
            connection.held_back = true;
            std::thread::sleep(Duration::from_millis(150));
        }
        Verdict::Default
    });
    let device = device(&fake);
    run(async {
        let queue = AsyncQueue::open(&device, QueueOptions::depth(2)).unwrap();
        let region = Region::allocate(BLOCK, 8).unwrap();
        let data = Data::One(region.segment(0..BLOCK).unwrap());
        let read = queue.execute(Command::read(1, 3, 1), data);
        assert!(
            tokio::time::timeout(Duration::from_millis(30), read)
                .await
                .is_err()
        );
        assert!(!region.is_unique(), "the operation still owns the memory");
        queue.flush(1).await.unwrap();
        assert!(region.is_unique(), "its completion gave it back");
        let mut bytes = vec![0; BLOCK];
        region.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, fake.world.memory.lock().unwrap()[3 * BLOCK..4 * BLOCK]);
    });
}

#[test]
fn a_lost_queue_fails_every_operation_with_its_memory() {
    let fake = Fake::script(|connection, sqe| {
        if connection.qid > 0 && sqe.nvm_opcode() == NvmOpcode::READ {
            Verdict::Done
        } else {
            Verdict::Default
        }
    });
    let device = device(&fake);
    run(async {
        let queue = AsyncQueue::open(&device, QueueOptions::depth(4)).unwrap();
        // More than fit, so that some wait for a slot.
        let mut tasks = Vec::new();
        for _ in 0..12 {
            let queue = queue.clone();
            tasks.push(tokio::spawn(async move {
                let data = Data::whole(Region::allocate(BLOCK, 8).unwrap());
                queue.execute(Command::read(1, 0, 1), data).await
            }));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.drop_all();
        for task in tasks {
            let lost = task.await.unwrap().unwrap_err();
            assert_eq!(lost.data.len(), BLOCK);
        }
        queue.flush(1).await.unwrap_err();
    });
}
