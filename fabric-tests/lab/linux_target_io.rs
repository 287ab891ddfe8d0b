//! Our initiator against Linux's target (nvmet): it is found, connected to, and reads back what was written.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Lab, Peer, Requirement, Test};
use fabric_tests::random::contents;
use homi_initiator::{Disk, Initiator, Uri};

const NQN: &str = "nqn.2026-01.org.example:linux";

/// The tests of this file.
pub const TESTS: &[Test] = &[Test {
    name: "discover_write_read",
    needs: &[Requirement::LinuxTarget],
    peer: Peer::LinuxTarget,
    feature: "discover, connect, read and write",
    limit: Duration::from_secs(120),
    run: discover_write_read,
    ..Test::DEFAULT
}];

fn discover_write_read(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "disk=$(ram_disk 64)
         nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $disk
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let address = guest.forward(4420)?;
    let initiator = Initiator::builder()
        .connect_timeout(Duration::from_secs(20))
        .command_timeout(Duration::from_secs(30))
        .build()?;
    let records = initiator.discover(&format!("nvme+tcp://{address}").parse::<Uri>()?)?;
    ensure!(
        records.iter().any(|record| record.subsystem.to_string() == NQN),
        "the discovery log does not have {NQN}: {records:?}"
    );
    let mut disk = Disk::open(&initiator, &format!("nvme+tcp://{address}/{NQN}?nsid=1").parse()?)?;
    ensure!(
        disk.len() == 64 << 20,
        "the namespace has {} bytes instead of 64 MiB",
        disk.len()
    );
    // Sizes on both sides of what goes in one capsule and of one transfer.
    for (seed, len) in [512, 4096, 8192, 128 << 10, 1 << 20, 3 << 20]
        .into_iter()
        .enumerate()
    {
        let offset = 8 << 20;
        let bytes = contents(u64::try_from(seed)?, len);
        disk.write_at(offset, &bytes)?;
        let mut back = vec![0; len];
        disk.read_at(offset, &mut back)?;
        ensure!(back == bytes, "{len} bytes come back changed");
    }
    disk.flush()?;
    // What Linux has on its disk is what was sent.
    let sum = guest
        .sh("dd if=/dev/ram0 bs=1M skip=8 count=3 status=none | cksum")?
        .stdout;
    let file = lab.scratch().join("expected");
    std::fs::write(&file, contents(5, 3 << 20))?;
    let expected = guest.sh(&format!("cksum <{}", file.display()))?.stdout;
    ensure!(
        sum == expected,
        "the disk of the target has the sum {sum} instead of {expected}"
    );
    Ok(())
}
