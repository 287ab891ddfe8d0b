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
use homi_local::{CopyRange, Drive, Drives, Holder, PeerBuffer};
use homi_nvme::State;
use homi_queue::Command;
use homi_soft_controller::{
    CmbConfig, CommandMatch, Fault, FaultRule, NamespaceConfig, SoftConfig, SoftController, Trigger,
};
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
        Self::serving(&config(shards), soft).unwrap()
    }

    fn serving(config: &Config, soft: SoftConfig) -> Result<Self, String> {
        let soft = SoftController::new(SoftConfig {
            namespaces: vec![NamespaceConfig::new(16384, 9), NamespaceConfig::new(4096, 12)],
            ..soft
        })
        .unwrap();
        let clockwork = Clockwork::start(soft.clone());
        let drives = Drives::new(drive_options(config));
        drives.provide(ADDRESS.parse().unwrap(), soft.physical());
        let network = Network::start_with(config, drives.clone()).map_err(|error| error.to_string())?;
        Ok(Self {
            network,
            soft,
            drives,
            clockwork,
        })
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

/// A target whose second namespace has its data pass through the drive's memory buffer.
fn cmb_config(rest: &str) -> Config {
    parse(&format!(
        "[node]\nshards = 1\npoll_us = 0\nmax_transfer = \"128K\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n{rest}\
         [[subsystem]]\nnqn = \"{DATA}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\ndrive = \"{ADDRESS}/1\"\n\
         [[subsystem.namespace]]\nnsid = 2\ndrive = \"{ADDRESS}/2\"\nplacement = \"cmb\"\n\
         [[subsystem.namespace]]\nnsid = {RAM}\nram = \"4M\"\nblock_size = 4096\n"
    ))
}

fn with_cmb(cmb: Option<CmbConfig>) -> SoftConfig {
    SoftConfig {
        cmb,
        ..SoftConfig::default()
    }
}

#[test]
fn data_of_a_namespace_placed_in_the_drives_memory_buffer_touches_no_host_memory() {
    let config = cmb_config("");
    let mut bed = Bed::serving(&config, with_cmb(Some(CmbConfig::new(1 << 20)))).unwrap();
    let mut host = bed.host();
    let (mut one, mut other) = (host.queue(16), host.queue(16));
    for round in 0..8 {
        verify(&mut one, 0, round);
        verify(&mut other, 1000, 50 + round);
    }
    let data = 2 * 8 * 2 * (4096 + 16384 + 4096 + 131_072);
    let traffic = bed.soft.traffic(0);
    assert!(
        traffic.cmb_read >= data / 2 && traffic.cmb_written >= data / 2,
        "{traffic:?}"
    );
    // Entries and lists, for commands of 4 KiB and more.
    assert!(
        traffic.read + traffic.written < 64 << 10,
        "the drive read or wrote data elsewhere: {traffic:?}"
    );
    let status = bed.network.service().drives().remove(0);
    let sum = |count: fn(&homi_nvme::QueueCounters) -> u64| -> u64 {
        status.queues.iter().map(|queue| count(&queue.counters)).sum()
    };
    assert_eq!((sum(|c| c.mapped), sum(|c| c.bounced)), (0, 0));
    until("the shard tells", || {
        bed.network.service().counters()[0].bytes_cmb == data
    });
    // The other namespace's data goes through host memory.
    assert!(
        one.execute(Command::write(1, 0, 8), memory(&contents(3, 4096)))
            .0
            .is_success()
    );
    assert!(other.bytes(Command::read(1, 0, 8), blank(4096)) == contents(3, 4096));
    assert_eq!(bed.network.service().counters()[0].bytes_cmb, data);
    bed.end();
}

#[test]
fn commands_wait_while_the_drives_memory_buffer_is_full() {
    let config = cmb_config("");
    let mut bed = Bed::serving(&config, with_cmb(Some(CmbConfig::new(256 << 10)))).unwrap();
    let mut host = bed.host();
    let mut queues: Vec<_> = (0..3).map(|_| host.queue(32)).collect();
    for round in 0..4_u64 {
        for write in [true, false] {
            let ids: Vec<Vec<_>> = queues
                .iter_mut()
                .zip(0_u64..)
                .map(|(queue, number)| {
                    let ids = (0..32_u64)
                        .map(|index| {
                            let len = if index % 3 == 0 { 131_072 } else { 8192 };
                            let (lba, blocks) =
                                (number * 1100 + index * 32, u32::try_from(len / 4096).unwrap());
                            if write {
                                let bytes = contents(round << 16 | number << 8 | index, len);
                                queue.submit(Command::write(2, lba, blocks), memory(&bytes))
                            } else {
                                queue.submit(Command::read(2, lba, blocks), blank(len))
                            }
                        })
                        .collect();
                    queue.commit().unwrap();
                    ids
                })
                .collect();
            for ((queue, ids), number) in queues.iter_mut().zip(ids).zip(0_u64..) {
                for (id, index) in ids.into_iter().zip(0_u64..) {
                    let done = queue.completion_of(id).unwrap();
                    assert_eq!(done.completion.status, Status::SUCCESS);
                    if !write {
                        let len = done.data.len();
                        assert!(
                            bytes_of(&done.data) == contents(round << 16 | number << 8 | index, len),
                            "{round} {number} {index}"
                        );
                    }
                }
            }
        }
    }
    drop(queues);
    bed.end();
}

#[test]
fn a_drive_whose_memory_buffer_holds_data_is_reset_and_goes_on() {
    let config = cmb_config("");
    let mut bed = Bed::serving(&config, with_cmb(Some(CmbConfig::new(1 << 20)))).unwrap();
    let mut host = bed.host();
    let mut queue = host.queue(16);
    verify(&mut queue, 0, 1);
    let drive = bed.drive();
    for round in 0..5 {
        drive.controller().reset().unwrap();
        until("it works again", || {
            queue
                .try_execute(Command::read(2, 0, 1), blank(4096))
                .unwrap()
                .0
                .is_success()
        });
        verify(&mut queue, 0, 10 + round);
    }
    drop(drive);
    bed.end();
}

#[test]
fn what_cannot_have_data_in_the_drives_memory_buffer_is_refused_and_says_what_is_missing() {
    let rdma = "[[listener]]\ntransport = \"rdma\"\naddress = \"127.0.0.1:0\"\n";
    let little = CmbConfig::new(64 << 10);
    let no_reads = CmbConfig {
        read_data: false,
        ..CmbConfig::new(1 << 20)
    };
    for (rest, cmb, expected) in [
        ("", None, "CAP.CMBS"),
        ("", Some(little), "lower node.max_transfer"),
        ("", Some(no_reads), "CMBSZ.RDS"),
        (rdma, Some(CmbConfig::new(1 << 20)), "as a dma-buf"),
    ] {
        let error = Bed::serving(&cmb_config(rest), with_cmb(cmb)).err().unwrap();
        assert!(
            error.contains(expected) && error.contains("namespace 2"),
            "{error}"
        );
    }
}

fn whole_drive(name: &str, cmb: Option<CmbConfig>) -> (SoftController, Clockwork, Drive) {
    let soft = SoftController::new(SoftConfig {
        name: name.to_owned(),
        namespaces: vec![NamespaceConfig::new(8192, 9)],
        cmb,
        ..SoftConfig::default()
    })
    .unwrap();
    let clockwork = Clockwork::start(soft.clone());
    let drive = Drive::take_over(soft.physical(), None, homi_nvme::Options::new()).unwrap();
    (soft, clockwork, drive)
}

#[test]
fn a_drive_is_copied_to_another_through_the_memory_buffer_of_either() {
    let size = 512 << 10;
    for (of_source, of_destination, expected) in [
        (None, Some(CmbConfig::new(size)), Holder::Destination),
        (Some(CmbConfig::new(size)), None, Holder::Source),
        (
            Some(CmbConfig::new(size)),
            Some(CmbConfig::new(size)),
            Holder::Destination,
        ),
        (
            Some(CmbConfig::new(size)),
            Some(CmbConfig {
                write_data: false,
                ..CmbConfig::new(size)
            }),
            Holder::Source,
        ),
    ] {
        let (a, _a_work, from) = whole_drive("soft:a", of_source);
        let (b, _b_work, to) = whole_drive("soft:b", of_destination);
        let bytes = contents(42, 3 << 20);
        assert!(a.write_media(1, 4096, &bytes));
        let (buffer, instead) = PeerBuffer::choose(&from, &to, 128 << 10, 8).unwrap();
        assert_eq!(buffer.holder(), expected);
        assert_eq!(instead.is_some(), expected == Holder::Source);
        assert_eq!(
            buffer.window(),
            (128 << 10, 4),
            "as many transfers as the buffer holds"
        );
        let maps = |soft: &SoftController| soft.space(0).unwrap().mappings();
        let before = (a.traffic(0), b.traffic(0), maps(&a), maps(&b));
        let range = CopyRange {
            from: 4096,
            to: 1 << 20,
            count: 3 << 20,
        };
        let (mut told, mut last) = (0, 0);
        let report = buffer
            .copy(range, true, |written| {
                assert!(written > last);
                last = written;
                told += 1;
            })
            .unwrap();
        assert_eq!((report.reads, report.writes), (24, 24));
        assert_eq!((report.mapped, report.bounced), (0, 0));
        assert_eq!((told > 0, last), (true, 3 << 20));
        let mut copied = vec![0; bytes.len()];
        assert!(b.read_media(1, 1 << 20, &mut copied));
        assert!(copied == bytes);
        assert!(b.flushes(1) > 0);
        // The holder moved everything inside, the other over the bus, to or from the buffer and nowhere else.
        let (own, other, was) = match expected {
            Holder::Destination => (b.traffic(0), a.traffic(0), before.1),
            Holder::Source => (a.traffic(0), b.traffic(0), before.0),
        };
        let inside = own.cmb_read + own.cmb_written;
        assert_eq!(inside, 3 << 20, "{own:?}");
        let entries = own.read + own.written - was.read - was.written;
        assert!(entries < 128 << 10, "{own:?}");
        assert!(other.read + other.written >= 3 << 20, "{other:?}");
        let error = buffer
            .copy(CopyRange { from: 100, ..range }, true, |_| {})
            .unwrap_err();
        assert!(error.to_string().contains("multiples of 512"), "{error}");
        let error = buffer
            .copy(CopyRange { to: 2 << 20, ..range }, true, |_| {})
            .unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
        drop((buffer, from, to));
        for soft in [a, b] {
            assert_eq!(soft.misuse(), []);
            let space = soft.space(0).unwrap();
            assert_eq!((space.faults(), space.early_unmaps()), (Vec::new(), Vec::new()));
        }
    }
}

#[test]
fn drives_without_memory_buffers_say_so_and_one_that_fails_ends_the_copy() {
    let (_a, _a_work, from) = whole_drive("soft:a", None);
    let (b, _b_work, to) = whole_drive("soft:b", None);
    let [first, second] = PeerBuffer::choose(&from, &to, 4096, 1).err().unwrap();
    assert!(
        first
            .to_string()
            .contains("of the destination cannot be used: soft:b"),
        "{first}"
    );
    assert!(
        second
            .to_string()
            .contains("of the source cannot be used: soft:a"),
        "{second}"
    );
    drop((b, to));
    let (b, _b_work, to) = whole_drive("soft:b", Some(CmbConfig::new(64 << 10)));
    let buffer = PeerBuffer::of(Holder::Destination, &from, &to, 32 << 10, 8).unwrap();
    b.add_fault(FaultRule {
        function: None,
        trigger: Trigger::Command(CommandMatch::io_opcode(1)),
        skip: 3,
        times: 1,
        fault: Fault::Refuse(Status::WRITE_FAULT),
    });
    let range = CopyRange {
        from: 0,
        to: 0,
        count: 1 << 20,
    };
    let error = buffer.copy(range, false, |_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a write of soft:b at byte 98304 failed"),
        "{error}"
    );
    // The next one goes well.
    assert_eq!(buffer.copy(range, false, |_| {}).unwrap().writes, 32);
}

#[test]
fn transfers_longer_than_the_drive_takes_at_once_go_through_short_queues() {
    let mut bed = Bed::new(2, SoftConfig::default());
    let mut host = bed.host();
    let mut queues = [host.queue(4), host.queue(4)];
    let len = 1 << 20;
    for round in 0..40_u64 {
        for write in [true, false] {
            let mut ids = Vec::new();
            for (queue, number) in queues.iter_mut().zip(0_u64..) {
                for index in 0..4_u64 {
                    let lba = (number * 4 + index) * 256;
                    let bytes = contents(round << 8 | number << 4 | index, len);
                    ids.push(if write {
                        queue.submit(Command::write(2, lba, 256), memory(&bytes))
                    } else {
                        queue.submit(Command::read(2, lba, 256), blank(len))
                    });
                }
                queue.commit().unwrap();
            }
            for (at, id) in ids.into_iter().enumerate() {
                let done = queues[at / 4].completion_of(id).unwrap();
                assert_eq!(done.completion.status, Status::SUCCESS);
                let seed = round << 8 | (at as u64 / 4) << 4 | (at as u64 % 4);
                assert!(write || bytes_of(&done.data) == contents(seed, len));
            }
        }
    }
    drop(queues);
    bed.end();
}
