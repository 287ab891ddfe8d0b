//! Verbs over soft-RoCE: everything that `homi-verbs` does, with both ends in one guest, and a device that is taken away under them.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Peer, Requirement, Test, Transport, VERBS_PROGRAM};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "both_ends",
        feature: "connect, reject, SEND, READ, WRITE, invalidate, shared receives, sleep, failures",
        limit: Duration::from_secs(240),
        run: both_ends,
        ..TEST
    },
    Test {
        name: "the_device_is_removed",
        feature: "removal of the device under a connection",
        run: removal,
        ..TEST
    },
];

const TEST: Test = Test {
    needs: &[Requirement::SoftRoce, Requirement::Verbs],
    kernels: Kernels::Every,
    transport: Transport::Rdma,
    peer: Peer::Own,
    ..Test::DEFAULT
};

fn both_ends(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let program = lab.program(VERBS_PROGRAM);
    let program = program.display();
    // Without a device it says so, and what to do.
    let nothing = guest.sh_fails(&format!("{program} 10.77.0.1"))?;
    ensure!(
        nothing.stderr.contains("no RDMA device"),
        "without a device it says: {}",
        nothing.stderr
    );
    let output = guest.sh_within(
        Duration::from_secs(200),
        &format!("soft_roce; {program} 10.77.0.1 fd77::1"),
    )?;
    for line in output.stdout.lines() {
        lab.note(line);
    }
    ensure!(
        output.stdout.lines().last() == Some("all ok"),
        "it ended early: {}",
        output.stdout
    );
    // Over IPv4 and over IPv6.
    for check in [
        "send and receive",
        "windows",
        "shared receives",
        "kill",
        "reject",
        "steady",
    ] {
        let passed = output
            .stdout
            .lines()
            .filter(|line| *line == format!("ok {check}"))
            .count();
        ensure!(passed == 2, "{check} passed {passed} times instead of 2");
    }
    Ok(())
}

fn removal(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let program = lab.program(VERBS_PROGRAM);
    let output = guest.sh_within(
        Duration::from_secs(100),
        &format!(
            "soft_roce
             {} --until-removed 10.77.0.1 >said 2>&1 & ends=$!
             until_true 200 grep -q connected said
             rdma link delete rxe0
             wait $ends || {{ cat said; fail 'it did not end well'; }}
             cat said",
            program.display()
        ),
    )?;
    ensure!(
        output.stdout.contains("ok removed"),
        "the ends say: {}",
        output.stdout
    );
    Ok(())
}
