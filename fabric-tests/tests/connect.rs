//! Begin here: a target, a host, one block. The first test is what a program that uses the project looks like; the second is the
//! same association with no socket, no thread and no clock, which is how most tests run; the third goes wrong.

use std::error::Error;

use fabric_tests::harness::{Harness, Host, HostOptions};
use fabric_tests::issuer::memory;
use fabric_tests::pair::Pair;
use homi_initiator::{Blocking, Initiator};
use homi_queue::{Buffer, Command};
use homi_target::{Config, Service};

/// What an operator writes: one subsystem, open to every host, with 64 MiB of memory in blocks of 4096 bytes. Port 0 lets
/// the system choose a free one.
const CONFIGURATION: &str = r#"
[[listener]]
address = "127.0.0.1:0"

[[subsystem]]
nqn = "nqn.2026-01.org.example:scratch"
allow_any_host = true

[[subsystem.namespace]]
nsid = 1
ram = "64M"
"#;

#[test]
fn a_block_is_written_and_read_back_over_tcp() -> Result<(), Box<dyn Error>> {
    // The storage node. It serves until it is dropped.
    let config: Config = toml::from_str(CONFIGURATION)?;
    let target = Service::start(&config)?;
    let address = target.addresses()[0];

    // Another node, which finds the subsystem by name and its one namespace by looking.
    let initiator = Initiator::new()?;
    let device = initiator.open(&format!("nvme+tcp://{address}/nqn.2026-01.org.example:scratch").parse()?)?;
    assert_eq!((device.block_size(), device.blocks()), (4096, (64 << 20) / 4096));

    // Memory goes into an operation and comes back from it; nothing in between copies it.
    let mut queue = Blocking::open(&device)?;
    let mut block = Buffer::allocate(4096)?;
    block.copy_from_slice(&[0x5a; 4096]);
    queue.write(7, block)?;
    queue.flush()?;
    let block = queue.read(7, Buffer::allocate(4096)?)?;
    assert_eq!(block[..], [0x5a; 4096]);
    Ok(())
}

#[test]
fn the_same_in_memory() -> Result<(), Box<dyn Error>> {
    // Both ends in one thread: bytes move when the host receives, time passes when a test says so.
    let mut target = Pair::start(&toml::from_str(CONFIGURATION)?);
    let mut host = target.host(&HostOptions::at("nqn.2026-01.org.example:scratch"));
    assert_eq!(host.info().max_transfer, Some(1 << 20));

    // The queue is the initiator's own. Everything that executes commands is one, so what follows is also how a drive or a
    // file is used.
    let mut queue = host.queue(2);
    let write = queue.submit(Command::write(1, 7, 1), memory(&[0x5a; 4096]));
    let flush = queue.submit(Command::flush(1), memory(&[]));
    queue.commit().map_err(|lost| lost.reason().clone())?;
    for id in [write, flush] {
        let completed = queue.completion_of(id).map_err(|lost| lost.reason().clone())?;
        assert!(
            completed.completion.is_success(),
            "{}",
            completed.completion.status
        );
    }
    assert_eq!(
        queue.bytes(Command::read(1, 7, 1), memory(&[0; 4096])),
        [0x5a; 4096]
    );

    assert!(host.disconnect());
    drop(queue);
    assert_eq!(target.connections(), 0);
    Ok(())
}

#[test]
fn a_host_that_nobody_named_is_told_what_to_change() -> Result<(), Box<dyn Error>> {
    let mut config: Config = toml::from_str(CONFIGURATION)?;
    config.subsystem[0].allow_any_host = false;
    let target = Service::start(&config)?;
    let initiator = Initiator::builder()
        .host_nqn("nqn.2026-01.org.example:newcomer")
        .build()?;
    let uri = format!(
        "nvme+tcp://{}/nqn.2026-01.org.example:scratch",
        target.addresses()[0]
    );
    let error = initiator.open(&uri.parse()?).err().ok_or("it was let in")?;
    assert!(
        error.to_string().ends_with(
            "does not let this host use nqn.2026-01.org.example:scratch: add the host nqn \
             nqn.2026-01.org.example:newcomer to the subsystem's allow list"
        ),
        "{error}"
    );
    Ok(())
}
