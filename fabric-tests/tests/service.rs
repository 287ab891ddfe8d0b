//! The service as a whole: what changes while it runs concerns nobody else, and many connections cost little.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use fabric_tests::bodies::{read, write, write_and_read};
use fabric_tests::harness::{DEADLINE, Harness, Host, HostOptions};
use fabric_tests::issuer::{Issuer, blank, bytes_of, memory};
use fabric_tests::network::{Network, NetworkHost, assert_nothing_panicked, initiator};
use fabric_tests::peer::{End, RawHost, connect_data, socket_wire};
use fabric_tests::random::contents;
use fabric_tests::settings::{DATA, NAMESPACES, OTHER, STRANGER, everything, node, ram};
use fabric_tests::units::{Units, ic_req};
use homi_initiator::{FabricQueue, SubsystemKind};
use homi_queue::Command;
use homi_spec::Status;
use homi_spec::fabrics::ConnectCommand;
use homi_spec::tcp::PduType;
use homi_target::Service;
use homi_target::config::Config;

/// Verified commands on a thread of its own, for as long as it is not dropped.
struct Load {
    rounds: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (rounds, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (rounds, ended) = (Arc::clone(&rounds), Arc::clone(&ended));
            thread::spawn(move || {
                let mut host = NetworkHost::connect(address, &HostOptions::default()).unwrap();
                let mut queue = host.queue(16);
                while !ended.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed);
                    batch(&mut queue, round);
                    rounds.store(round + 1, Ordering::Relaxed);
                }
                assert!(host.disconnect());
            })
        };
        Self {
            rounds,
            ended,
            thread: Some(thread),
        }
    }

    /// Waits until it has done so many more rounds, all of them after this call began.
    fn goes_on(&self, more: u64) {
        let (start, first) = (Instant::now(), self.rounds.load(Ordering::Relaxed));
        while self.rounds.load(Ordering::Relaxed) < first + more + 1 {
            assert!(
                !self.thread.as_ref().unwrap().is_finished(),
                "the load ended: see its panic"
            );
            assert!(start.elapsed() < DEADLINE);
            thread::yield_now();
        }
    }

    fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Eight writes and eight reads at once, small and large, all of them checked.
fn batch(queue: &mut Issuer<FabricQueue>, round: u64) {
    let lengths = [4096, 64 << 10];
    let writes: Vec<_> = (0..8_u64)
        .map(|index| {
            let len = lengths[usize::try_from(index % 2).unwrap()];
            let blocks = u32::try_from(len / 4096).unwrap();
            let command = Command::write(2, index * 16, blocks);
            queue.submit(command, memory(&contents(round << 8 | index, len)))
        })
        .collect();
    queue.commit().unwrap();
    for id in writes {
        assert_eq!(
            queue.completion_of(id).unwrap().completion.status,
            Status::SUCCESS
        );
    }
    let reads: Vec<_> = (0..8_u64)
        .map(|index| {
            let len = lengths[usize::try_from(index % 2).unwrap()];
            let blocks = u32::try_from(len / 4096).unwrap();
            let command = Command::read(2, index * 16, blocks);
            (
                queue.submit(command, blank(len)),
                contents(round << 8 | index, len),
            )
        })
        .collect();
    queue.commit().unwrap();
    for (id, expected) in reads {
        let completed = queue.completion_of(id).unwrap();
        assert_eq!(completed.completion.status, Status::SUCCESS);
        assert!(bytes_of(&completed.data) == expected, "round {round}");
    }
}

/// The standard subsystem and another one with so many namespaces.
fn with_other(namespaces: u32) -> Config {
    let mut text = format!("[[subsystem]]\nnqn = \"{OTHER}\"\nallow_any_host = true\n");
    for nsid in 1..=namespaces {
        text += &format!("[[subsystem.namespace]]\nnsid = {nsid}\nram = \"1M\"\n");
    }
    let mut config = ram();
    config.subsystem.extend(node(&text).subsystem);
    config
}

#[test]
fn reloads_do_not_concern_who_they_do_not_name() {
    let mut target = Network::start(&with_other(1));
    let load = Load::start(target.address());
    load.goes_on(1);
    for round in 0..6_u32 {
        // Namespaces come and go, a whole subsystem does, another listener does, an allow list closes.
        for config in [
            with_other(3),
            with_other(round % 3),
            ram(),
            {
                let mut config = with_other(2);
                config.subsystem[1].allow_any_host = false;
                config.listener.push(config.listener[0].clone());
                config.listener[1].address = "[::1]:0".parse().unwrap();
                config
            },
            with_other(1),
        ] {
            if let Err(error) = target.apply(&config) {
                // A machine without IPv6 cannot have that listener.
                assert!(error.to_string().contains("::1"), "{error}");
            }
            load.goes_on(1);
        }
        let mut other = target.host(&HostOptions::at(OTHER));
        write_and_read(&mut other.queue(2), (1, 4096), 0, round.into());
        assert!(other.disconnect());
    }
    load.end();
}

#[test]
fn a_reload_that_cannot_be_changes_nothing() {
    let mut target = Network::start(&with_other(1));
    let load = Load::start(target.address());
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut missing = with_other(3);
    missing.subsystem[1].namespace[2].ram = None;
    missing.subsystem[1].namespace[2].path = Some("/does/not/exist".into());
    let mut taken = with_other(3);
    taken.listener.push(taken.listener[0].clone());
    taken.listener[1].address = occupied.local_addr().unwrap();
    let mut restart = with_other(3);
    restart.node.shards = Some(5);
    let mut twice = with_other(3);
    twice.subsystem.push(twice.subsystem[1].clone());
    for (config, says) in [
        (missing, "/does/not/exist"),
        (taken, &*occupied.local_addr().unwrap().to_string()),
        (restart, "restart"),
        (twice, "two subsystems"),
    ] {
        let error = target.apply(&config).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
        load.goes_on(1);
        // Not even the part of it that could have been.
        let mut other = target.host(&HostOptions::at(OTHER));
        let mut queue = other.queue(1);
        let status = queue.status(Command::read(3, 0, 1), blank(4096));
        assert_eq!(status, Status::INVALID_NAMESPACE.with_dnr());
    }
    load.end();
}

#[test]
fn a_listener_comes_and_goes() {
    let mut target = Network::start(&ram());
    let load = Load::start(target.address());
    let mut two = ram();
    two.listener.push(two.listener[0].clone());
    // Loopback has a whole network of addresses.
    two.listener[1].address = "127.0.0.2:0".parse().unwrap();
    target.apply(&two).unwrap();
    let addresses = target.service().addresses();
    assert_eq!(addresses.len(), 2);
    let mut host = NetworkHost::connect(addresses[1], &HostOptions::named(STRANGER)).unwrap();
    let mut queue = host.queue(2);
    write_and_read(&mut queue, (1, 512), 0, 1);
    load.goes_on(1);

    target.apply(&ram()).unwrap();
    assert_eq!(target.service().addresses(), addresses[..1]);
    queue.wait_for_the_end();
    host.wait_for_the_end();
    // The system may take a moment to close it, in which connections are made and reset.
    let start = Instant::now();
    loop {
        let refusal = NetworkHost::connect(addresses[1], &HostOptions::default())
            .err()
            .unwrap();
        if refusal.contains("refused the connection") {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "{refusal}");
    }
    load.goes_on(1);
    load.end();
}

#[test]
fn a_port_in_use_is_one_sentence() {
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    let mut config = ram();
    config.listener[0].address = address;
    let error = Service::start(&config).unwrap_err().to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("in use") && !error.contains('\n'),
        "{error}"
    );
    drop(occupied);
    // Nothing of the failed start is left: the same configuration starts now.
    Service::start(&config).unwrap().stop();
}

#[test]
fn a_target_that_stops_lets_everybody_go() {
    let mut target = Network::start(&ram());
    let mut hosts: Vec<_> = (0..5)
        .map(|index| {
            let mut host = target.host(&HostOptions::named(&format!("nqn.2026-01.org.example:h{index}")));
            let mut queue = host.queue(4);
            write_and_read(&mut queue, (1, 512), 64 * index, index);
            (host, queue)
        })
        .collect();
    // One of them has data to send that it never sends.
    let mut raw = target.raw();
    raw.initialize(Units::PLAIN);
    let controller = raw.connect_admin(0);
    raw.enable();
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, 32);
    io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    io.expect(PduType::R2T);
    let address = target.address();
    target.service_mut().stop();
    for (host, queue) in &mut hosts {
        host.wait_for_the_end();
        queue.wait_for_the_end();
    }
    assert_eq!(io.end(), End::Closed);
    assert!(NetworkHost::connect(address, &HostOptions::default()).is_err());
    // The port is free.
    let mut config = ram();
    config.listener[0].address = address;
    let again = Network::start(&config);
    let mut host = NetworkHost::connect(again.address(), &HostOptions::default()).unwrap();
    write_and_read(&mut host.queue(1), (1, 512), 0, 9);
}

#[test]
fn files_keep_their_blocks_over_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let config = everything(scratch.path());
    for round in 0..3_u64 {
        let mut target = Network::start(&config);
        let mut host = target.host(&HostOptions::default());
        let mut queue = host.queue(4);
        for namespace in [(3, 512), (4, 4096)] {
            for earlier in 0..round {
                assert_eq!(
                    read(&mut queue, namespace, 100 * earlier, 32),
                    contents(earlier, 32 * usize::try_from(namespace.1).unwrap())
                );
            }
            let bytes = contents(round, 32 * usize::try_from(namespace.1).unwrap());
            write(&mut queue, namespace, 100 * round, &bytes);
            assert_eq!(
                queue.status(Command::flush(namespace.0), homi_queue::Data::None),
                Status::SUCCESS
            );
        }
    }
}

/// A shutdown is complete when every namespace is flushed.
#[test]
fn a_shutdown_flushes_what_the_host_could_write_to() {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = Network::start(&everything(scratch.path()));
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(4);
    write_and_read(&mut queue, (4, 4096), 0, 1);
    let flushed = |target: &Network| -> u64 {
        let counters = target.service().counters();
        counters.iter().map(|shard| shard.flushed).sum()
    };
    assert_eq!(flushed(&target), 0);
    assert!(host.disconnect());
    // The counters of a shard are published at the end of its turn, which may be after the host has its answer.
    let start = Instant::now();
    while flushed(&target) < NAMESPACES.len() as u64 {
        assert!(start.elapsed() < DEADLINE);
        thread::yield_now();
    }
    assert_eq!(flushed(&target), NAMESPACES.len() as u64);
}

/// A referral is followed to another node, and what both know is listed once.
#[test]
fn discovery_follows_referrals_to_another_node() {
    let second = Network::start(&with_other(1));
    let mut config = ram();
    config.discovery.referral = node(&format!(
        "[[discovery.referral]]\naddress = \"{}\"\n",
        second.address()
    ))
    .discovery
    .referral;
    let mut first = Network::start(&config);
    let records = first.discover(STRANGER).unwrap();
    let mut found: Vec<(String, String)> = records
        .iter()
        .filter(|record| record.kind == SubsystemKind::Nvm)
        .map(|record| (record.subsystem.to_string(), record.service.clone()))
        .collect();
    found.sort();
    let port = |target: &Network| target.address().port().to_string();
    let mut expected = [
        (DATA.to_owned(), port(&first)),
        (DATA.to_owned(), port(&second)),
        (OTHER.to_owned(), port(&second)),
    ];
    expected.sort();
    assert_eq!(found, expected);
    // What was found can be used as it is.
    let other = records
        .iter()
        .find(|record| record.subsystem.as_str() == OTHER)
        .unwrap();
    let address = format!("{}:{}", other.address, other.service).parse().unwrap();
    let mut host = NetworkHost::connect(address, &HostOptions::at(OTHER)).unwrap();
    write_and_read(&mut host.queue(1), (1, 4096), 0, 1);
}

/// A connection that is not connected to a subsystem in time is closed, whatever it says meanwhile.
#[test]
fn silence_after_accept_is_closed_by_the_handshake_timeout() {
    let mut config = ram();
    config.limits.handshake_s = 1;
    let target = Network::start(&config);
    let load = Load::start(target.address());
    let new = || RawHost::new(socket_wire(target.address()));
    let silent = new();
    let mut half = new();
    half.send(&ic_req(0, 0, 0)[..50]);
    let mut initialized = new();
    initialized.initialize(Units::PLAIN);
    let mut refused = new();
    refused.initialize(Units::PLAIN);
    let command = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    let mut data = connect_data(0xffff);
    data.subnqn[10] ^= 1;
    assert!(!refused.connect(command, &data).status().is_success());
    let mut half_a_connect = new();
    half_a_connect.initialize(Units::PLAIN);
    let sqe = command.to_sqe(1, homi_spec::Sgl::in_capsule(0, 1024));
    half_a_connect.send(&Units::PLAIN.capsule(sqe, &[0; 1024])[..500]);
    // One that is connected may be silent for as long as it likes, without a keep-alive timeout.
    let mut connected = new();
    connected.initialize(Units::PLAIN);
    connected.connect_admin(0);
    for mut raw in [silent, half, initialized, refused, half_a_connect] {
        assert_eq!(raw.end(), End::Closed);
    }
    connected.enable();
    load.goes_on(1);
    load.end();
    drop(connected);
    target.wait_for_connections(0);
}

/// A thousand connections of one process, all of them used, and again after the first thousand went.
#[test]
fn a_thousand_connections() {
    let limit = homi_reactor::socket::raise_file_limit().unwrap();
    if limit < 3000 {
        println!("skipped: this process may have {limit} open files only");
        return;
    }
    let mut config = ram();
    config.limits.controllers_per_host = 100;
    let target = Network::start(&config);
    let host = initiator(&HostOptions::default());
    let before = resident();
    for generation in 0..2_u64 {
        let mut hosts: Vec<NetworkHost> = (0..16)
            .map(|_| NetworkHost::of(&host, target.address(), DATA).unwrap())
            .collect();
        let mut queues: Vec<_> = hosts
            .iter_mut()
            .flat_map(|host| (0..62).map(|_| host.queue(4)).collect::<Vec<_>>())
            .collect();
        target.wait_for_connections(16 + 16 * 62);
        println!(
            "{} connections: {} KiB more resident, both ends and all threads",
            16 + 16 * 62,
            (resident() - before) / 1024
        );
        // All at once.
        let ids: Vec<_> = (0_u64..)
            .zip(&mut queues)
            .map(|(index, queue)| {
                let bytes = contents(generation << 16 | index, 4096);
                let id = queue.submit(Command::write(2, index, 1), memory(&bytes));
                queue.commit().unwrap();
                id
            })
            .collect();
        for (id, queue) in ids.into_iter().zip(&mut queues) {
            assert_eq!(
                queue.completion_of(id).unwrap().completion.status,
                Status::SUCCESS
            );
        }
        for (index, queue) in (0_u64..).zip(&mut queues) {
            let expected = contents(generation << 16 | index, 4096);
            assert!(read(queue, (2, 4096), index, 1) == expected);
        }
        drop(queues);
        for host in hosts {
            assert!(host.disconnect());
        }
        target.wait_for_connections(0);
    }
    assert_nothing_panicked();
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
