//! The lab's command line; `scripts/lab` builds and starts it. The tests are the files of `fabric-tests/lab/`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fabric_tests::lab::report::{Outcome, Report};
use fabric_tests::lab::run::{Options, Runner};
use fabric_tests::lab::skips::AllowedSkips;
use fabric_tests::lab::{Failure, shell, table};

include!(concat!(env!("OUT_DIR"), "/lab_tests.rs"));

/// Real kernels in QEMU guests as peers. `scripts/lab setup` installs what it needs.
#[derive(Debug, Parser)]
#[command(name = "scripts/lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests, a row for each.
    Run(Run),
    /// Measure, and print what was found: ratios between peers in one guest, which mean something where absolute numbers of emulated
    /// machines mean nothing.
    Measure {
        /// Only measurements with this in their name, file::name.
        filter: Option<String>,
        /// Only this kernel, by name or release.
        #[arg(long)]
        kernel: Option<String>,
    },
    /// Name the tests, what they need, and the kernels.
    List,
    /// Boot a guest with our target connected and give it this terminal; or run the script that standard input is.
    Shell {
        /// Name or release of the kernel [default: the first of `list`].
        #[arg(long)]
        kernel: Option<String>,
    },
    /// Write the compatibility table into the README, from the last run of everything.
    Table {
        /// Another run's JSON.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Write the table to standard output instead.
        #[arg(long)]
        print: bool,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Only tests with this in their name, file::name.
    filter: Option<String>,
    /// Write the report to standard output as JSON.
    #[arg(long)]
    json: bool,
    /// Fail on any skip that fabric-tests/lab/allowed-skips.toml does not allow.
    #[arg(long)]
    ci: bool,
    /// Only this kernel, by name or release.
    #[arg(long)]
    kernel: Option<String>,
    /// Tests at a time [default: one for every six cores].
    #[arg(long)]
    jobs: Option<usize>,
    /// Run so many tests that fail once more; their rows say so.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    repeats: usize,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Measure { filter, kernel } => measure(filter, kernel),
        Command::List => list(),
        Command::Shell { kernel } => open_shell(kernel.as_deref()),
        Command::Table { from, print } => write_table(from, print),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            say(&mut io::stderr(), &format!("lab: {failure}"));
            ExitCode::from(2)
        }
    }
}

/// Writes a line; whoever was to read it may be gone.
fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Run {
    fn run(self) -> Result<bool, Failure> {
        let allowed = folder().join("lab/allowed-skips.toml");
        let options = Options {
            filter: self.filter,
            kernel: self.kernel,
            jobs: self.jobs,
            repeats: self.repeats,
            allowed_skips: self.ci.then(|| AllowedSkips::read(&allowed)).transpose()?,
            measure: false,
        };
        let runner = Runner::new(FILES)?;
        let report = runner.run(&options)?;
        say(&mut io::stderr(), &report.summary());
        if self.json {
            say(&mut io::stdout(), &serde_json::to_string_pretty(&report)?);
        }
        Ok(report.count(Outcome::Failed) == 0)
    }
}

fn measure(filter: Option<String>, kernel: Option<String>) -> Result<bool, Failure> {
    let report = Runner::new(FILES)?.run(&Options {
        filter,
        kernel,
        measure: true,
        ..Options::default()
    })?;
    Ok(report.count(Outcome::Failed) == 0)
}

fn list() -> Result<bool, Failure> {
    let runner = Runner::new(FILES)?;
    let mut out = io::stdout();
    for (name, test) in runner.tests() {
        let needs: Vec<String> = test.needs.iter().map(ToString::to_string).collect();
        say(
            &mut out,
            &format!(
                "{name:58} {:5} {:12} {} guests  needs {}",
                test.transport,
                test.peer,
                test.guests.len(),
                if needs.is_empty() {
                    "nothing".to_owned()
                } else {
                    needs.join(", ")
                }
            ),
        );
    }
    for kernel in runner.kernels() {
        say(
            &mut out,
            &format!(
                "kernel {}: Linux {} ({})",
                kernel.name, kernel.release, kernel.origin
            ),
        );
    }
    if let Err(reason) = runner.can_boot() {
        say(&mut out, &reason.to_string());
    }
    Ok(true)
}

fn open_shell(kernel: Option<&str>) -> Result<bool, Failure> {
    let runner = Runner::new(FILES)?;
    runner.can_boot()?;
    let kernel = runner.kernel(kernel)?;
    let code = shell::shell(kernel, runner.accelerator(kernel), runner.programs())?;
    Ok(code == 0)
}

fn write_table(from: Option<PathBuf>, print: bool) -> Result<bool, Failure> {
    let from = match from {
        Some(file) => file,
        None => Runner::new(FILES)?.logs().join("whole.json"),
    };
    let text = fs::read_to_string(&from).map_err(|error| {
        Failure::new(format!(
            "cannot read {}: {error}; run scripts/lab run without a filter first",
            from.display()
        ))
    })?;
    let report: Report = serde_json::from_str(&text)?;
    let table = table::render(&report);
    if print {
        say(&mut io::stdout(), table.trim_end());
        return Ok(true);
    }
    let readme = folder().join("../README.md");
    let before = fs::read_to_string(&readme)?;
    let after = table::replace(&before, &table).map_err(|failure| failure.while_doing("README.md"))?;
    fs::write(&readme, &after)?;
    say(
        &mut io::stdout(),
        if before == after {
            "README.md has this table"
        } else {
            "README.md is up to date"
        },
    );
    Ok(true)
}
