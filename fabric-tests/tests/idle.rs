//! What a target with many idle connections does: nothing. Alone in its process, since it counts what the target's threads do.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::bodies::write_and_read;
use fabric_tests::harness::{Harness, Host, HostOptions};
use fabric_tests::network::{Network, NetworkHost, initiator};
use fabric_tests::settings::{DATA, ram};

/// For each thread of the target: how often it was scheduled because it had slept, and the time it used in clock ticks.
fn threads() -> HashMap<String, (u64, u64)> {
    let mut threads = HashMap::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let path = entry.unwrap().path();
        // Threads come and go.
        let Ok(name) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let name = name.trim().to_owned();
        if !name.starts_with("shard-") && name != "control" {
            continue;
        }
        let status = fs::read_to_string(path.join("status")).unwrap();
        let switches = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .unwrap();
        let stat = fs::read_to_string(path.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        threads.insert(name, (switches.trim().parse().unwrap(), ticks));
    }
    threads
}

/// A target with a hundred idle connections sleeps: its shards are not woken at all but for the ends of handshake timeouts, its
/// control thread a few times a second.
#[test]
fn a_hundred_idle_connections_wake_nobody() {
    let mut config = ram();
    // Long enough that none ends while the others are counted.
    config.limits.handshake_s = 3600;
    let target = Network::start(&config);
    let host = initiator(&HostOptions {
        keep_alive: Duration::from_secs(600),
        ..HostOptions::default()
    });
    let mut hosts: Vec<NetworkHost> = (0..10)
        .map(|_| NetworkHost::of(&host, target.address(), DATA).unwrap())
        .collect();
    let mut queues: Vec<_> = hosts
        .iter_mut()
        .flat_map(|host| (0..9).map(|_| host.queue(4)).collect::<Vec<_>>())
        .collect();
    for (index, queue) in (0_u64..).zip(&mut queues) {
        write_and_read(queue, (1, 512), 8 * index, index);
    }
    target.wait_for_connections(100);
    // The last answers are out when the threads have been seen asleep, which a moment makes sure of.
    thread::sleep(Duration::from_millis(200));
    let (start, before) = (Instant::now(), threads());
    let counted = target.service().counters();
    thread::sleep(Duration::from_secs(2));
    let (elapsed, after) = (start.elapsed(), threads());
    let counters = target.service().counters();
    for (name, (switches, ticks)) in &after {
        let (switches_before, ticks_before) = before[name];
        let (switches, ticks) = (switches - switches_before, ticks - ticks_before);
        println!(
            "{name}: woken {switches} times in {elapsed:.1?}, {:.2} % of a core",
            100.0 * ticks as f64 / 100.0 / elapsed.as_secs_f64()
        );
        let allowed = if name == "control" { 40 } else { 4 };
        assert!(switches <= allowed, "{name} was woken {switches} times");
    }
    for (before, after) in counted.iter().zip(&counters) {
        assert!(
            after.turns - before.turns <= 8 && after.syscalls - before.syscalls <= 16,
            "{before:?}\n{after:?}"
        );
    }
    for (index, queue) in (0_u64..).zip(&mut queues) {
        write_and_read(queue, (1, 512), 8 * index, index + 1);
    }
}
