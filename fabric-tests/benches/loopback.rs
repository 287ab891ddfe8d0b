//! `cargo bench -p fabric-tests`: raw loopback pairs and our pair in turn, the part of `scripts/counts` that is about time.
//!
//! A program of its own rather than a harness's: what is compared are two processes and two threads on two cores, in rounds.

use std::process::{Command, ExitCode};
use std::time::Duration;

use fabric_tests::counts::Failure;
use fabric_tests::counts::fraction::{self, CASES, TargetProcess};

const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("loopback: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<(), Failure> {
    let cores = fraction::cores()?;
    let program = Command::new(fraction::program("homi-target")?);
    let target = TargetProcess::start(program, cores.map(|(core, _)| core), &[])?;
    println!(
        "{:<26} {:>12} {:>12} {:>10}",
        "I/Os per second", "raw", "pair", "fraction"
    );
    for case in CASES {
        let one = fraction::measure(&target, case, cores, ROUNDS, TIME)?;
        let ratio = one.ratio();
        println!(
            "{:<26} {:>12.0} {:>12.0} {ratio:>10.2}",
            case.to_string(),
            one.raw,
            one.pair
        );
    }
    target.stop()
}
