//! Counts what an I/O costs at both ends, and prints one table: see `fabric_tests::counts`.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fabric_tests::counts::allocations::Counting;
use fabric_tests::counts::fraction::{self, CASES, TargetProcess};
use fabric_tests::counts::steady::Carrier;
use fabric_tests::counts::table::{Setting, Table};
use fabric_tests::counts::{Case, End, Failure, LARGE, SMALL, instructions, steady};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts what an I/O costs at both ends: allocations, copies, system calls, instructions, and what fraction of a raw loopback
/// connection's rate the pair reaches.
#[derive(Debug, Parser)]
#[command(name = "counts")]
struct Counts {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// I/Os by which allocations, copies and system calls are counted, in each case.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..))]
    ios: u64,
    /// Rounds of the raw pair and our pair in turn; 0 leaves the comparison out.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How long each of them runs in a round, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.4)]
    seconds: f64,
    /// Count over RDMA instead, with both ends at this address of an RDMA device: allocations, copies, work requests, doorbells, completions
    /// and registrations, and nothing else.
    #[arg(long, value_name = "ADDRESS")]
    rdma: Option<IpAddr>,
    /// Leave out instructions, which take callgrind a minute.
    #[arg(long)]
    no_instructions: bool,
}

/// I/Os of the slope of instructions.
const SLOPE: (u64, u64) = (10_000, 110_000);

/// Allocations, copies and system calls: every direction and size, and the depths at which system calls are shown.
const STEADY: [Case; 6] = [
    Case::read(SMALL, 1),
    Case::read(SMALL, 32),
    Case::read(SMALL, 128),
    Case::write(SMALL, 32),
    Case::read(LARGE, 8),
    Case::write(LARGE, 8),
];

fn main() -> ExitCode {
    let counts = Counts::parse();
    match counts
        .run()
        .and_then(|text| Ok(io::stdout().write_all(text.as_bytes())?))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("counts: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Counts {
    fn run(&self) -> Result<String, Failure> {
        let mut table = Table {
            setting: self.setting()?,
            ..Table::default()
        };
        let cores = fraction::cores()?;
        let carrier = self.rdma.map_or(Carrier::Tcp, Carrier::Rdma);
        {
            let service = steady::target(carrier)?;
            table.setting.backend = format!("{:?}", service.backend());
            for case in STEADY {
                // A thirty-second of a large I/O takes as long as a small one.
                let ios = if case.io_bytes == SMALL {
                    self.ios
                } else {
                    self.ios / 10
                };
                note(&format!("allocations, copies and system calls: {case}"));
                table.costs.push(steady::measure(
                    &service,
                    carrier,
                    case,
                    ios,
                    cores.map(|(_, core)| core),
                )?);
            }
        }
        for end in End::BOTH {
            let count = match instructions::missing() {
                _ if self.rdma.is_some() => Err("they are counted over TCP alone".to_owned()),
                _ if self.no_instructions => Err("they were left out (--no-instructions)".to_owned()),
                Some(reason) => Err(reason),
                None => {
                    note(&format!("instructions of the {}", end.name()));
                    instructions::measure(end, SLOPE.0, SLOPE.1).map_err(|failure| failure.to_string())
                }
            };
            table.instructions.push((end, count));
        }
        if self.rounds > 0 && self.rdma.is_none() {
            table.fractions = Some(self.fractions(cores));
        }
        if self.json {
            Ok(format!("{:#}\n", table.json()))
        } else {
            Ok(table.to_string())
        }
    }

    fn fractions(&self, cores: Option<(usize, usize)>) -> Result<Vec<fraction::Fraction>, String> {
        if cores.is_none() {
            return Err("it takes two cores".to_owned());
        }
        let all = || -> Result<Vec<fraction::Fraction>, Failure> {
            let program = std::process::Command::new(fraction::program("homi-target")?);
            let target = TargetProcess::start(program, cores.map(|(core, _)| core), &[])?;
            let time = Duration::try_from_secs_f64(self.seconds)?;
            let mut fractions = Vec::new();
            for case in CASES {
                note(&format!("raw pair and our pair in turn: {case}"));
                fractions.push(fraction::measure(&target, case, cores, self.rounds, time)?);
            }
            target.stop()?;
            Ok(fractions)
        };
        all().map_err(|failure| failure.to_string())
    }

    fn setting(&self) -> Result<Setting, Failure> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model
            .and_then(|line| line.split_once(": "))
            .map_or("unknown processor", |(_, name)| name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Setting {
            processor: model.to_owned(),
            kernel: kernel.trim().to_owned(),
            cores: homi_reactor::socket::allowed_cores()?.len(),
            backend: String::new(),
            ios: self.ios,
            slope: SLOPE,
            rounds: self.rounds,
            seconds: self.seconds,
        })
    }
}

/// Says what is going on, to whoever watches.
fn note(what: &str) {
    use std::io::IsTerminal;
    if io::stderr().is_terminal() {
        eprintln!("counting {what}");
    }
}
