//! What a Flush or Force Unit Access acknowledged is there after the target was killed in the middle of writes.
//!
//! The target is the real program on a file. Killing a process does not empty the page cache, so this finds what the target itself
//! holds back or acknowledges too early, not what a power failure would.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what failed by panicking"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use homi_initiator::{Blocking, Buffer, Command, Device, Initiator, QueueOptions, Uri};

const BLOCK: usize = 4096;
/// Blocks that each writer has for itself.
const BLOCKS: u64 = 512;
const ROUNDS: u64 = 3;
/// Acknowledged writes after which the target is killed.
const ENOUGH: u64 = 400;
/// Writes between two Flushes.
const BATCH: u64 = 16;
const LIMIT: Duration = Duration::from_secs(60);

struct Target {
    process: Child,
    uri: Uri,
}

impl Target {
    fn start(file: &Path) -> Self {
        let mut process = Process::new(env!("CARGO_BIN_EXE_homi-target-under-test"))
            .args(["serve", "--listen", "127.0.0.1:0", "--create", "8M", "--file"])
            .arg(file)
            .env("HOMI_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let uri = line
            .split_whitespace()
            .nth(1)
            .unwrap_or_else(|| panic!("the target said {line:?}"));
        Self {
            uri: uri.parse().unwrap(),
            process,
        }
    }

    fn open(&self) -> Device {
        Initiator::builder().build().unwrap().open(&self.uri).unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A block that says where it belongs and which write it is of, in every 16 bytes, so that a torn one is noticed.
fn stamped(lba: u64, write: u64) -> Buffer {
    let mut buffer = Buffer::allocate(BLOCK).unwrap();
    for chunk in buffer.chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&lba.to_le_bytes());
        chunk[8..].copy_from_slice(&write.to_le_bytes());
    }
    buffer
}

/// The write that a block is of; 0 for a block that was never written.
fn write_of(lba: u64, block: &[u8]) -> u64 {
    let write = u64::from_le_bytes(block[8..16].try_into().unwrap());
    let expected = if write == 0 {
        Buffer::allocate(BLOCK).unwrap()
    } else {
        stamped(lba, write)
    };
    assert!(*block == *expected, "block {lba} is torn or belongs elsewhere");
    write
}

/// Writes until the target is gone; returns the last acknowledged and durable write of each block.
fn write_until_killed(
    device: &Device,
    first: u64,
    fua: bool,
    count: &AtomicU64,
    seed: u64,
) -> HashMap<u64, u64> {
    let queue = device.queue(QueueOptions::depth(8)).unwrap();
    let mut queue = Blocking::new(queue, device.nsid(), device.block_size());
    let (mut durable, mut unflushed) = (HashMap::new(), Vec::new());
    let mut random = seed;
    let started = Instant::now();
    for write in 1_u64.. {
        assert!(started.elapsed() < LIMIT, "the target was not killed");
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let lba = first + (random >> 33) % BLOCKS;
        let stamp = seed << 32 | write;
        let command = Command::write(device.nsid(), lba, 1);
        let command = if fua { command.with_fua() } else { command };
        let Ok((completion, _)) = queue.execute(command, stamped(lba, stamp).into_data()) else {
            return durable;
        };
        assert!(completion.is_success(), "{}", completion.status);
        if fua {
            durable.insert(lba, stamp);
            count.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        unflushed.push((lba, stamp));
        if write % BATCH == 0 {
            if queue.flush().is_err() {
                return durable;
            }
            count.fetch_add(unflushed.len() as u64, Ordering::Relaxed);
            durable.extend(unflushed.drain(..));
        }
    }
    durable
}

#[test]
fn what_was_acknowledged_as_durable_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk.img");
    let mut expected: HashMap<u64, u64> = HashMap::new();
    for round in 1..=ROUNDS {
        let mut target = Target::start(&file);
        let device = target.open();
        let count = AtomicU64::new(0);
        let durable = thread::scope(|scope| {
            let fua = scope.spawn(|| write_until_killed(&device, 0, true, &count, 2 * round));
            let flushed = scope.spawn(|| write_until_killed(&device, BLOCKS, false, &count, 2 * round + 1));
            let started = Instant::now();
            while count.load(Ordering::Relaxed) < ENOUGH {
                assert!(started.elapsed() < LIMIT, "the writers do not get on");
                thread::sleep(Duration::from_millis(1));
            }
            target.process.kill().unwrap();
            [fua.join().unwrap(), flushed.join().unwrap()]
        });
        assert!(durable.iter().all(|writes| !writes.is_empty()));
        target.process.wait().unwrap();
        expected.extend(durable.into_iter().flatten());

        let target = Target::start(&file);
        let device = target.open();
        let mut disk = Blocking::open(&device).unwrap();
        for (&lba, &acknowledged) in &expected {
            let block = disk.read(lba, Buffer::allocate(BLOCK).unwrap()).unwrap();
            let found = write_of(lba, &block);
            // A write that was not acknowledged any more may have come after it: stamps only grow on a block.
            assert!(
                found >= acknowledged,
                "round {round}: block {lba} is of write {found:#x}, not {acknowledged:#x}"
            );
        }
    }
}
