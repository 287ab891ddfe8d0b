//! `scripts/verify-rdma`, which people with RDMA network cards run between two machines, between two guests.

use std::path::Path;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Peer, Test};

use crate::rdma_pairs::{ROCE, devices};

/// The tests of this file.
pub const TESTS: &[Test] = &[Test {
    name: "the_script_for_hardware",
    peer: Peer::Own,
    kernels: Kernels::Default,
    feature: "scripts/verify-rdma",
    limit: Duration::from_secs(200),
    run: script,
    ..ROCE
}];

fn script(lab: &Lab) -> Result<(), Failure> {
    devices(lab, "rxe")?;
    let (serving, checking) = (lab.guest(0)?, lab.guest(1)?);
    let address = serving.link_address(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/verify-rdma");
    let programs = lab.program("");
    let (script, programs) = (script.display(), programs.display());
    let serve = serving.spawn(
        Duration::from_secs(600),
        &format!("exec {script} serve {address} --ram 64M --programs {programs}"),
    )?;
    serve.wait_for_output("serving nvme+rdma", Duration::from_secs(60))?;
    let output = checking.sh_within(
        Duration::from_secs(150),
        &format!(
            "{script} check {address} --programs {programs} --seconds 0 --linux --result result; cat result"
        ),
    )?;
    let result: serde_json::Value = serde_json::from_str(
        output
            .stdout
            .get(output.stdout.find("{\n").unwrap_or(0)..)
            .unwrap_or_default(),
    )?;
    let checks = result["checks"].as_array().map_or(0, Vec::len);
    ensure!(
        result["ok"] == true && checks >= 9 && result["devices"][0]["name"] == "rxe0",
        "the result is {result}"
    );
    serve.signal(nix::sys::signal::Signal::SIGTERM)?;
    serve.wait(Duration::from_secs(60))?;
    // A machine that nobody serves on.
    let refused = checking.try_sh(&format!(
        "{script} check {address} --port 4444 --programs {programs} --seconds 0 --result other || cat other"
    ))?;
    ensure!(
        refused.stdout.contains("FAILED") && refused.stdout.contains("\"ok\": false"),
        "without a target it says {}",
        refused.stdout
    );
    Ok(())
}
