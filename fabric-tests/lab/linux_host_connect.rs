//! Linux's host against our target: it finds us, connects, and what it writes is what it reads.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Lab, Peer, Requirement, Test};

const NQN: &str = "nqn.2026-01.org.example:data";

/// The tests of this file.
pub const TESTS: &[Test] = &[Test {
    name: "discover_write_compare_disconnect",
    needs: &[Requirement::LinuxHost],
    peer: Peer::LinuxHost,
    feature: "discover, connect, read and write",
    limit: Duration::from_secs(120),
    run: discover_write_compare_disconnect,
    ..Test::DEFAULT
}];

fn discover_write_compare_disconnect(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&format!(
        r#"
[[listener]]
address = "127.0.0.1:{{port}}"
advertise = "{}"
[[subsystem]]
nqn = "{NQN}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
ram = "64M"
"#,
        HostTarget::GUESTS_SEE
    ))?;
    let guest = lab.guest(0)?;
    let port = target.port();
    let log = guest
        .sh(&format!(
            "modprobe nvme-tcp; nvme discover -t tcp -a 10.0.2.2 -s {port} -o json"
        ))?
        .json()?;
    let records = log
        .get("records")
        .and_then(|records| records.as_array())
        .cloned()
        .unwrap_or_default();
    let ours = records.iter().find(|record| record["subnqn"] == NQN);
    ensure!(
        ours.is_some_and(
            |record| record["traddr"] == "10.0.2.2" && record["trsvcid"].as_str() == Some(&port.to_string())
        ),
        "the discovery log has no record of {NQN} at port {port}: {log}"
    );

    let controller = guest.connect("10.0.2.2", port, NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    let size = guest.sh(&format!("blockdev --getsize64 {disk}"))?.stdout;
    ensure!(
        size.trim() == (64 << 20).to_string(),
        "the namespace has {size} bytes instead of 64 MiB"
    );
    guest.sh(&format!(
        "head -c 8M /dev/urandom >a
         dd if=a of={disk} bs=128k oflag=direct status=none
         dd if={disk} of=b bs=512k count=16 iflag=direct status=none
         cmp a b"
    ))?;
    guest.sh(&format!("nvme disconnect -d {controller}"))?;
    let left = guest.sh(&format!("controllers {NQN}"))?.stdout;
    ensure!(left.is_empty(), "still connected after the disconnect: {left}");
    target.stop()
}
