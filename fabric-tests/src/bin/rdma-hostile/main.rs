//! Hostile NVMe/RDMA peers over a real or soft RDMA device, for the lab.
//!
//! ```text
//! rdma-hostile host ADDRESS:PORT SUBSYSTEM [--ours] [--exact] [--only NAME]     attacks a target
//! rdma-hostile controller ADDRESS:PORT ATTACK SECONDS                           attacks hosts that connect
//! ```
//!
//! `host` attacks a target in every way that it knows, and after each attack expects that whoever behaves well is served, and that no memory
//! was touched that no command named. `--ours` expects exactly what our target has to do; without it the target has to survive. `--exact` says
//! that private data arrives unpadded, as over iWARP.
//!
//! `controller` serves `nqn.2026-01.org.example:data` as a target should and makes one mistake, always the same: before there is a connection,
//! when it accepts, or after a few reads and writes of a queue.

mod controller;
mod host;
mod net;
mod nvme;

use std::process::ExitCode;
use std::time::Duration;

use homi_spec::Nqn;

use crate::host::Ground;
use crate::net::{Guarded, Net, Outcome};
use crate::nvme::Names;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdma-hostile: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| arguments.iter().any(|argument| argument == name);
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(String::as_str)
    };
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["host", address, subsystem, ..] => {
            let net = Net::towards(address.parse()?)?;
            let memory = Guarded::new(&net)?;
            let mut ground = Ground {
                net,
                names: Names {
                    subsystem: Nqn::new(subsystem)?,
                    host: Nqn::new("nqn.2026-01.org.example:hostile")?,
                },
                memory,
                ours: option("--ours"),
                exact: option("--exact"),
            };
            host::run(&mut ground, value("--only").unwrap_or(""))
        }
        ["controller", address, attack, seconds] => {
            let time = Duration::from_secs(seconds.parse()?);
            controller::run(address.parse()?, attack, time)
        }
        _ => Err("use: rdma-hostile host ADDRESS:PORT SUBSYSTEM [--ours] [--exact] [--only NAME]\n     rdma-hostile controller ADDRESS:PORT ATTACK SECONDS".into()),
    }
}
