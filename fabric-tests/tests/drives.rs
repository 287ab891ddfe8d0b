//! Drives that the target drives itself, as the soft controller models them: each remote queue has a queue pair, buffers are mapped once, and what
//! happens to a drive happens to nobody else.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fabric_tests::harness::{DEADLINE, Harness, Host, HostOptions};
use fabric_tests::issuer::{Issuer, blank, bytes_of, memory};
use fabric_tests::network::{Network, NetworkHost};
use fabric_tests::random::contents;
use fabric_tests::settings::{DATA, parse};
use homi_initiator::FabricQueue;
use homi_local::{Drive, Drives};
use homi_nvme::State;
use homi_queue::Command;
use homi_soft_controller::{NamespaceConfig, SoftConfig, SoftController};
use homi_spec::Status;
use homi_target::config::Config;
use homi_target::drive_options;

const ADDRESS: &str = "0000:01:00.0";
/// Its namespace in memory.
const RAM: u32 = 9;

/// A thread that steps a model, but while it is held.
struct Clockwork {
    held: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clockwork {
    fn start(soft: SoftController) -> Self {
        let (held, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (held, ended) = (Arc::clone(&held), Arc::clone(&ended));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    if held.load(Ordering::Acquire) || !soft.step() {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            })
        };
        Self {
            held,
            ended,
            thread: Some(thread),
        }
    }

    fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }
}

impl Drop for Clockwork {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A target with a drive of two namespaces, one of 512-byte blocks and one of 4096-byte blocks, and a namespace in memory.
struct Bed {
    network: Network,
    soft: SoftController,
    drives: Drives,
    // The last: shutting a drive down takes its work.
    clockwork: Clockwork,
}

fn config(shards: u16) -> Config {
    parse(&format!(
        "[node]\nshards = {shards}\npoll_us = 0\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[subsystem]]\nnqn = \"{DATA}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\ndrive = \"{ADDRESS}/1\"\n\
         [[subsystem.namespace]]\nnsid = 2\ndrive = \"{ADDRESS}/2\"\n\
         [[subsystem.namespace]]\nnsid = {RAM}\nram = \"4M\"\nblock_size = 4096\n"
    ))
}

impl Bed {
    fn new(shards: u16, soft: SoftConfig) -> Self {
        let config = config(shards);
        let soft = SoftController::new(SoftConfig {
            namespaces: vec![NamespaceConfig::new(16384, 9), NamespaceConfig::new(4096, 12)],
            ..soft
        })
        .unwrap();
        let clockwork = Clockwork::start(soft.clone());
        let drives = Drives::new(drive_options(&config));
        drives.provide(ADDRESS.parse().unwrap(), soft.physical());
        Self {
            network: Network::start_with(&config, drives.clone()).unwrap(),
            soft,
            drives,
            clockwork,
        }
    }

    fn host(&mut self) -> NetworkHost {
        self.network.host(&HostOptions::default())
    }

    /// The drive, for as long as the result is kept.
    fn drive(&self) -> Drive {
        self.drives.open(ADDRESS.parse().unwrap(), Some(1)).unwrap()
    }

    /// Queue pairs that are open, and the memory that was mapped for commands.
    fn pairs(&self) -> (usize, u64) {
        let status = self.network.service().drives().remove(0);
        let mapped = status.queues.iter().map(|queue| queue.counters.mapped).sum();
        (status.queues.len(), mapped)
    }

    /// Remote queues with a pair of their own now, and those that had to share.
    fn counted(&self) -> (u64, u64) {
        let counters = self.network.service().counters();
        counters.iter().fold((0, 0), |(own, shared), shard| {
            (own + shard.drive_queues, shared + shard.drive_queues_shared)
        })
    }

    /// Stops the target, after which nothing of it is left at the drive.
    fn end(mut self) {
        self.network.service_mut().stop();
        assert_eq!(self.soft.misuse(), []);
        assert_eq!(self.soft.io_queues(0), (0, 0));
        let space = self.soft.space(0).unwrap();
        assert_eq!((space.faults(), space.early_unmaps()), (Vec::new(), Vec::new()));
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Writes and reads blocks of 4096 bytes on namespace 2, several at once.
fn verify(queue: &mut Issuer<FabricQueue>, first: u64, seed: u64) {
    let lengths = [4096_usize, 16384, 4096, 131_072];
    let place = |index: usize| (first + 64 * index as u64, lengths[index] / 4096);
    let writes: Vec<_> = (0..lengths.len())
        .map(|index| {
            let (lba, blocks) = place(index);
            let data = memory(&contents(seed + index as u64, lengths[index]));
            queue.submit(Command::write(2, lba, u32::try_from(blocks).unwrap()), data)
        })
        .collect();
    queue.commit().unwrap();
    for id in writes {
        assert_eq!(
            queue.completion_of(id).unwrap().completion.status,
            Status::SUCCESS
        );
    }
    for (index, len) in lengths.into_iter().enumerate() {
        let (lba, blocks) = place(index);
        let command = Command::read(2, lba, u32::try_from(blocks).unwrap());
        assert!(queue.bytes(command, blank(len)) == contents(seed + index as u64, len));
    }
}

#[test]
fn each_remote_queue_has_a_queue_pair_of_its_own() {
    let mut bed = Bed::new(2, SoftConfig::default());
    let mut host = bed.host();
    let (mut one, mut other) = (host.queue(16), host.queue(32));
    assert_eq!(bed.pairs().0, 0, "none is opened before it is needed");
    verify(&mut one, 0, 1);
    verify(&mut other, 1000, 2);
    // Another namespace of the same drive goes the same way.
    assert!(
        one.execute(Command::write(1, 0, 8), memory(&contents(3, 4096)))
            .0
            .is_success()
    );
    assert!(
        other.bytes(Command::read(1, 0, 8), blank(4096)) == contents(3, 4096),
        "what one wrote"
    );
    let queues = bed.network.service().drives().remove(0).queues;
    let mut depths: Vec<u16> = queues.iter().map(|queue| queue.depth).collect();
    depths.sort_unstable();
    assert_eq!(depths, [17, 33], "a pair takes what the remote queue may send");
    assert!(queues.iter().all(|queue| queue.counters.completed > 0));
    until("the shards tell", || bed.counted() == (2, 0));
    // Buffers were mapped when they came into being.
    assert_eq!(bed.pairs(), (2, 0));
    drop(one);
    until("a pair goes with its remote queue", || bed.pairs().0 == 1);
    verify(&mut other, 0, 4);
    drop(other);
    until("and the other", || bed.pairs().0 == 0);
    until("which is counted", || bed.counted() == (0, 0));
    // The next one takes the place.
    verify(&mut host.queue(8), 0, 5);
    bed.end();
}

#[test]
fn a_remote_queue_is_as_deep_as_the_drive_lets_it() {
    let mut bed = Bed::new(
        1,
        SoftConfig {
            max_queue_entries: 8,
            ..SoftConfig::default()
        },
    );
    let mut host = bed.host();
    let mut queue = host.queue(64);
    let ids: Vec<_> = (0..64_u64)
        .map(|lba| queue.submit(Command::write(2, lba, 1), memory(&contents(lba, 4096))))
        .collect();
    queue.commit().unwrap();
    for id in ids {
        assert!(queue.completion_of(id).unwrap().completion.is_success());
    }
    let queues = bed.network.service().drives().remove(0).queues;
    assert_eq!(queues.iter().map(|queue| queue.depth).collect::<Vec<_>>(), [7]);
    assert!(queue.bytes(Command::read(2, 63, 1), blank(4096)) == contents(63, 4096));
    bed.end();
}

#[test]
fn remote_queues_share_a_queue_pair_when_the_drive_has_none_left() {
    let mut bed = Bed::new(
        1,
        SoftConfig {
            io_queues: 3,
            ..SoftConfig::default()
        },
    );
    let mut host = bed.host();
    let mut queues: Vec<_> = (0..5).map(|_| host.queue(8)).collect();
    for round in 0..3 {
        for (queue, number) in queues.iter_mut().zip(0..) {
            verify(queue, number * 500, round * 10 + number);
        }
    }
    // One is kept for those that share.
    assert_eq!(bed.pairs(), (3, 0));
    until("the shard tells", || bed.counted() == (2, 3));
    // What is given back is for others.
    queues.remove(0);
    until("a pair is given back", || bed.pairs().0 == 2);
    queues.push(host.queue(8));
    for (queue, number) in queues.iter_mut().zip(0..) {
        verify(queue, number * 500, 90 + number);
    }
    until("it is taken", || bed.counted() == (2, 3));
    drop(queues);
    until("all are given back but the shared one", || bed.pairs().0 == 1);
    bed.end();
}

#[test]
fn a_reset_loses_no_command_of_any_remote_queue() {
    let mut bed = Bed::new(2, SoftConfig::default());
    let mut host = bed.host();
    let mut queues = [host.queue(16), host.queue(16), host.queue(16)];
    let drive = bed.drive();
    let resets = thread::scope(|scope| {
        let resetting = scope.spawn(|| {
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(30));
                drive.controller().reset().unwrap();
            }
        });
        let mut failed = 0;
        let mut round = 0_u64;
        // Blocks whose write was acknowledged have it; those of others have it or what was there before.
        let mut rounds = [[0_u64; 16]; 3];
        while !resetting.is_finished() || round < 20 {
            round += 1;
            for (queue, (number, known)) in queues.iter_mut().zip((0_u64..).zip(&mut rounds)) {
                let seed = |lba: u64, round: u64| round << 16 | number << 8 | lba;
                let ids: Vec<_> = (0..16_u64)
                    .map(|lba| {
                        let data = memory(&contents(seed(lba, round), 4096));
                        queue.submit(Command::write(2, number * 100 + lba, 1), data)
                    })
                    .collect();
                queue.commit().unwrap();
                let mut unsure = [false; 16];
                for (id, lba) in ids.into_iter().zip(0..) {
                    let status = queue.completion_of(id).unwrap().completion.status;
                    if status.is_success() {
                        known[lba] = round;
                    } else {
                        assert!(
                            status.is(Status::INTERNAL_PATH_ERROR) || status.is(Status::NAMESPACE_NOT_READY),
                            "{status}"
                        );
                        unsure[lba] = true;
                        failed += 1;
                    }
                }
                for (lba, (known, unsure)) in (0_u64..).zip(known.iter_mut().zip(unsure)) {
                    let id = queue.submit(Command::read(2, number * 100 + lba, 1), blank(4096));
                    queue.commit().unwrap();
                    let done = queue.completion_of(id).unwrap();
                    if !done.completion.is_success() {
                        failed += 1;
                        continue;
                    }
                    let bytes = bytes_of(&done.data);
                    if unsure && bytes == contents(seed(lba, round), 4096) {
                        *known = round;
                    } else if *known > 0 {
                        assert!(
                            bytes == contents(seed(lba, *known), 4096),
                            "block {lba}, round {round}"
                        );
                    }
                }
            }
        }
        resetting.join().unwrap();
        failed
    });
    for (queue, number) in queues.iter_mut().zip(0..) {
        until("it works again", || {
            queue
                .try_execute(Command::read(2, 0, 1), blank(4096))
                .unwrap()
                .0
                .is_success()
        });
        verify(queue, 1000 + 300 * number, 77 + number);
    }
    assert_eq!(drive.controller().resets(), 4);
    assert!(resets > 0, "no reset hit anything");
    until("lost pairs are given back", || bed.pairs() == (3, 0));
    drop(drive);
    bed.end();
}

#[test]
fn a_shard_does_not_stall_while_a_drive_is_being_reset() {
    let mut bed = Bed::new(
        1,
        SoftConfig {
            // 40 s: nothing below waits for that.
            timeout_500ms: 80,
            ..SoftConfig::default()
        },
    );
    let mut host = bed.host();
    let (mut used, mut fresh, mut ram) = (host.queue(8), host.queue(8), host.queue(8));
    verify(&mut used, 0, 1);
    let drive = bed.drive();
    thread::scope(|scope| {
        // The drive stops answering, and is reset, which cannot end before it answers again.
        bed.clockwork.hold(true);
        let stuck = used.submit(Command::read(2, 0, 1), blank(4096));
        used.commit().unwrap();
        let resetting = scope.spawn(|| drive.controller().reset());
        until("the reset begins", || drive.controller().try_state().is_none());
        for round in 0..50 {
            // One that has a pair which goes, one that wants one, one that goes itself.
            let data = memory(&contents(round, 4096));
            assert!(
                ram.execute(Command::write(RAM, round, 1), data).0.is_success(),
                "memory is not concerned"
            );
            let status = fresh.status(Command::read(2, 0, 1), blank(4096));
            assert!(status.is(Status::NAMESPACE_NOT_READY), "{status}");
        }
        drop(host.queue(8));
        assert!(drive.controller().try_state().is_none() && !resetting.is_finished());
        bed.clockwork.hold(false);
        resetting.join().unwrap().unwrap();
        let status = used.completion_of(stuck).unwrap().completion.status;
        assert!(status.is(Status::INTERNAL_PATH_ERROR), "{status}");
    });
    assert_eq!(drive.controller().state(), State::Ready);
    for queue in [&mut used, &mut fresh] {
        until("it works again", || {
            queue
                .try_execute(Command::read(2, 0, 1), blank(4096))
                .unwrap()
                .0
                .is_success()
        });
        verify(queue, 0, 5);
    }
    drop(drive);
    bed.end();
}

#[test]
fn a_namespace_that_is_no_longer_served_lets_the_drive_go() {
    let mut bed = Bed::new(2, SoftConfig::default());
    let mut host = bed.host();
    let (mut one, mut other) = (host.queue(16), host.queue(16));
    verify(&mut one, 0, 1);
    verify(&mut other, 1000, 2);
    let without = |nsids: &[u32]| {
        let mut config = config(2);
        config.subsystem[0]
            .namespace
            .retain(|namespace| nsids.contains(&namespace.nsid));
        config
    };
    bed.network.apply(&without(&[2, RAM])).unwrap();
    assert!(
        !one.status(Command::read(1, 0, 1), blank(512)).is_success(),
        "it is gone"
    );
    verify(&mut one, 0, 3);
    bed.network.apply(&without(&[RAM])).unwrap();
    until("the drive is given back", || {
        bed.network.service().drives().is_empty()
    });
    assert!(one.execute(Command::read(RAM, 0, 1), blank(4096)).0.is_success());
    // It is taken over again.
    bed.network.apply(&config(2)).unwrap();
    verify(&mut one, 0, 4);
    verify(&mut other, 1000, 5);
    assert_eq!(bed.pairs(), (2, 0));
    bed.end();
}

#[test]
fn a_drive_that_is_taken_away_takes_nothing_else_with_it() {
    let mut bed = Bed::new(1, SoftConfig::default());
    let mut host = bed.host();
    let mut queue = host.queue(8);
    verify(&mut queue, 0, 1);
    bed.soft.remove(0);
    until("it is gone", || {
        let status = queue.status(Command::read(2, 0, 1), blank(4096));
        status.is(Status::NAMESPACE_NOT_READY)
    });
    for round in 0..20 {
        assert!(
            queue
                .execute(Command::read(RAM, round, 1), blank(4096))
                .0
                .is_success()
        );
        let status = queue.status(Command::read(2, 0, 1), blank(4096));
        assert!(status.is(Status::NAMESPACE_NOT_READY), "{status}");
    }
    until("its pairs are gone", || bed.pairs().0 == 0);
    bed.network.service_mut().stop();
}
