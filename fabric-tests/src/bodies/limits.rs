//! Limits: a host that asks for more than it may have is told so, and what it has goes on.

use homi_queue::Queue;

use super::write_and_read;
use crate::harness::{Harness, Host, HostOptions};
use crate::settings::{STRANGER, ram};

/// One controller more than a host may have is refused as busy; another host is not concerned, and a place that is given
/// back is free.
pub fn controllers_of_one_host<H: Harness>() {
    let mut config = ram();
    config.limits.controllers_per_host = 2;
    let mut target = H::start(&config);
    let mut first = target.host(&HostOptions::default());
    let second = target.host(&HostOptions::default());
    let refusal = target.try_host(&HostOptions::default()).err().unwrap();
    assert!(refusal.contains("no free controller"), "{refusal}");
    let mut stranger = target.host(&HostOptions::named(STRANGER));
    write_and_read(&mut stranger.queue(2), (1, 512), 0, 1);
    assert!(second.disconnect());
    target.wait_for_connections(2);
    let mut third = target.host(&HostOptions::default());
    write_and_read(&mut third.queue(2), (1, 512), 0, 2);
    write_and_read(&mut first.queue(2), (1, 512), 0, 3);
}

/// One I/O queue more than a controller has, and one deeper than it can be.
pub fn queues_of_one_controller<H: Harness>() {
    let mut config = ram();
    config.limits.io_queues = 2;
    config.limits.queue_entries = 64;
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    assert_eq!(host.info().io_queues, 2);
    let mut first = host.queue(1000);
    assert_eq!(first.queue().depth(), 63);
    let mut second = host.queue(1);
    assert!(host.try_queue(1).is_err());
    write_and_read(&mut first, (1, 512), 0, 1);
    write_and_read(&mut second, (1, 512), 0, 2);
    drop(first);
    target.wait_for_connections(2);
}

/// The last connection that the node has room for, and one more.
pub fn connections_of_the_node<H: Harness>() {
    let mut config = ram();
    config.limits.connections = 4;
    let mut target = H::start(&config);
    let mut first = target.host(&HostOptions::default());
    let mut queue = first.queue(4);
    let second = target.host(&HostOptions::named(STRANGER));
    let mut third = target.host(&HostOptions::default());
    let refusal = target.try_host(&HostOptions::default()).err().unwrap();
    assert!(refusal.contains("no free controller"), "{refusal}");
    let refusal = third.try_queue(1).err().unwrap();
    assert!(refusal.contains("no free controller"), "{refusal}");
    write_and_read(&mut queue, (1, 512), 0, 1);
    assert!(second.disconnect());
    target.wait_for_connections(3);
    write_and_read(&mut third.queue(1), (1, 512), 0, 2);
    write_and_read(&mut queue, (1, 512), 0, 3);
}

/// Connections of one host: it is told that there is no more room, and another host has room all the same.
pub fn connections_of_one_host<H: Harness>() {
    let mut config = ram();
    config.limits.connections_per_host = 3;
    let mut target = H::start(&config);
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(4);
    let mut other = target.host(&HostOptions::default());
    let refusal = other.try_queue(1).err().unwrap();
    assert!(refusal.contains("no free controller or queue"), "{refusal}");
    let mut stranger = target.host(&HostOptions::named(STRANGER));
    write_and_read(&mut stranger.queue(2), (1, 512), 0, 1);
    write_and_read(&mut queue, (1, 512), 0, 2);
}
