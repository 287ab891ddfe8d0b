//! `homi`: the command line of Homi Fabrics. It finds, describes, reads, writes, copies and measures blocks, wherever a
//! URI says they are.
//!
//! One file per command; what several of them need is in `arguments` (sizes, times, URIs), `connection` (host options),
//! `workload` (what a benchmark does), `output` (tables, JSON, broken pipes) and `mounted` (what must not be overwritten). The measuring itself is
//! `homi_initiator::bench`, which other programs can use.
//!
//! Every failure is one sentence on standard error. The exit code is 0 for success, 1 for a failure and 2 for a
//! command line that cannot be meant. With `--json`, standard output carries one JSON object and nothing else; for a
//! failure it is `{"error": "…"}`.

mod allocations;
mod arguments;
mod bench;
mod checksum;
mod compare;
mod connection;
mod copy;
mod discover;
mod failure;
mod identify;
mod interrupt;
mod list;
mod mounted;
mod output;
mod pipeline;
mod read;
mod workload;
mod write;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use failure::Failure;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Finds, reads, writes, copies and measures NVMe namespaces over fabrics, and files and memory the same way.
#[derive(Debug, Parser)]
#[command(
    name = "homi",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Verb,

    /// Say more about what happens, on standard error; twice for everything (HOMI_LOG sets a filter)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the subsystems that a discovery service knows
    Discover(discover::Discover),
    /// Describe a controller or a namespace
    Identify(identify::Identify),
    /// List controllers and their namespaces
    List(list::List),
    /// Read bytes from a namespace, a file or memory
    Read(read::Read),
    /// Write a file's bytes to a namespace or a device
    Write(write::Write),
    /// Copy between namespaces, devices and files, with checksums
    Copy(Box<copy::Copy>),
    /// Measure I/Os per second, throughput and latency
    Bench(Box<bench::Bench>),
    /// Run one workload over several paths in turn, and print one table
    Compare(Box<compare::Compare>),
}

impl Verb {
    fn json(&self) -> bool {
        match self {
            Self::Discover(command) => command.json,
            Self::Identify(command) => command.json,
            Self::List(command) => command.json,
            Self::Read(command) => command.json,
            Self::Write(command) => command.json,
            Self::Copy(command) => command.json,
            Self::Bench(command) => command.json,
            Self::Compare(command) => command.json,
        }
    }

    fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Discover(command) => command.run(),
            Self::Identify(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Read(command) => command.run(),
            Self::Write(command) => command.run(),
            Self::Copy(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Compare(command) => command.run(),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let level = match cli.verbose {
        // A lost association is what the command fails with, in its own sentence.
        0 => "warn,homi_initiator::keeper=error",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("HOMI_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .init();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.command.json()),
    }
}

/// Prints help where it was asked for, and otherwise what is wrong with the command line, in one sentence.
fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let code = if error.use_stderr() { failure::USAGE } else { 0 };
            // Nobody reads the help: nothing is lost.
            let _ = error.print();
            ExitCode::from(code)
        }
        kind => {
            let mut text = failure::sentence(&error.render().to_string());
            // These parsers say what to write instead.
            if !matches!(kind, ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
                text.push_str("; --help lists what there is");
            }
            // The command line could not be parsed, but whoever wants JSON has said so.
            let json = std::env::args_os().any(|argument| argument == "--json");
            Failure::Usage(text).report(json)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
