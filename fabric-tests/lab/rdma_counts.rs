//! What an I/O over RDMA costs both ends, counted with both in one process over soft-RoCE: work requests, doorbells, completions,
//! registrations, copies and allocations. `scripts/lab measure rdma_counts` prints the table of a release build.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Guest, Kernels, Lab, Peer, Requirement, Test, Transport};
use serde_json::Value;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "per_io",
        feature: "counts per I/O: no allocation, no registration, one doorbell for a batch",
        run: |lab| count(lab).map(drop),
        ..TEST
    },
    Test {
        name: "table",
        run: |lab| {
            let said = count(lab)?;
            lab.tell(&said);
            Ok(())
        },
        measures: true,
        ..TEST
    },
];

const TEST: Test = Test {
    needs: &[Requirement::SoftRoce, Requirement::Verbs],
    kernels: Kernels::Default,
    transport: Transport::Rdma,
    peer: Peer::Own,
    guests: &[Guest::SMALL],
    limit: Duration::from_secs(300),
    ..Test::DEFAULT
};

/// Most of each that an I/O may take at the target and at the initiator, by the case's name. A read is a command received, a response sent and
/// the data's WRITE at the target; a write that does not fit the capsule has a READ instead; each end posts its receive again.
const MOST: [(&str, [f64; 2], [f64; 2]); 5] = [
    ("read_4096_depth_1", [3.0, 2.0], [2.0, 2.0]),
    ("read_4096_depth_32", [3.0, 2.0], [2.0, 2.0]),
    ("write_4096_depth_32", [2.0, 2.0], [2.0, 2.0]),
    ("read_131072_depth_8", [3.0, 2.0], [2.0, 2.0]),
    ("write_131072_depth_8", [3.0, 3.0], [2.0, 2.0]),
];

/// Counts, and returns the table.
fn count(lab: &Lab) -> Result<String, Failure> {
    let guest = lab.guest(0)?;
    guest.sh("soft_roce")?;
    let program = lab.program("counts");
    let output = guest.sh_within(
        Duration::from_secs(240),
        &format!("{} --rdma 10.77.0.1 --ios 1000 --json", program.display()),
    )?;
    let said: Value = serde_json::from_str(&output.stdout)?;
    lab.note(&said.to_string());
    let mut table = String::from(
        "| per I/O | work requests | doorbells | completions | registrations |\n|---|---|---|---|---|\n",
    );
    for (case, target, initiator) in MOST {
        for (end, [requests, completions]) in [("target", target), ("initiator", initiator)] {
            let of = |name: &str| {
                said[end]["verbs_per_io"][case][name]
                    .as_f64()
                    .ok_or_else(|| Failure::new(format!("no {name} of the {end} for {case}: {said}")))
            };
            let row = [
                of("work_requests")?,
                of("doorbells")?,
                of("completions")?,
                of("registrations")?,
            ];
            // Eight of a hundred may be in flight when counting begins or ends.
            let slack = 0.25;
            ensure!(
                row[0] <= requests + slack,
                "{} work requests of the {end} for {case}",
                row[0]
            );
            ensure!(
                row[2] <= completions + slack,
                "{} completions of the {end} for {case}",
                row[2]
            );
            // One for receives and one for the rest; fewer in batches.
            ensure!(
                row[1] <= 2.0 + slack,
                "{} doorbells of the {end} for {case}",
                row[1]
            );
            ensure!(row[3] == 0.0, "{} registrations of the {end} for {case}", row[3]);
            table += &format!(
                "| {end}, {case} | {:.2} | {:.2} | {:.2} | {:.2} |\n",
                row[0], row[1], row[2], row[3]
            );
        }
    }
    for end in ["target", "initiator"] {
        for (case, ..) in MOST {
            // What another thread of that end allocates once a second is not the I/Os'.
            let count = said[end]["allocations_per_io_by_case"][case].as_f64();
            ensure!(
                count.is_some_and(|count| count < 0.05),
                "{count:?} allocations of the {end} for {case}"
            );
        }
        table += &format!("| {end}, copies | {} |\n", said[end]["copies_per_io"]);
    }
    Ok(table)
}
