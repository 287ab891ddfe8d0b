//! Runs in a guest of the lab, over drives that are bound to vfio-pci: what VFIO gives a driver ([`seam`]), and the driver on it ([`drive`]).
//!
//! Each check writes a line `name: what was seen`; the first that fails ends the program with a sentence. Registers, DMA, interrupts and
//! reset are shown to work by an admin queue of a few entries that is
//! driven by hand ([`admin`]).

mod admin;
mod drive;
mod seam;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use homi_pci::PciAddress;
use homi_vfio::Way;

#[derive(Parser)]
#[command(about = "Drives that are bound to vfio-pci: checks for guests of the lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Registers, DMA, an interrupt, a reset, and a BAR as a dma-buf.
    Seam {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive.
        drive: PciAddress,
    },
    /// One drive reads into the controller memory buffer of another.
    Peers {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive that reads.
        drive: PciAddress,
        /// The drive with the buffer.
        memory: PciAddress,
    },
    /// Two functions in one address space, each with its own queues, at the same time.
    Both {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// One.
        first: PciAddress,
        /// The other.
        second: PciAddress,
    },
    /// Waits until a drive is to be given up, gives it up, and says so.
    Removal {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive.
        drive: PciAddress,
        /// Seconds.
        #[arg(long, default_value_t = 60)]
        limit: u64,
    },
    /// Verified I/O on all namespaces.
    Io {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The submission queues lie in the drive's memory buffer.
        #[arg(long)]
        buffer: bool,
        /// The drive.
        drive: PciAddress,
    },
    /// One drive's blocks go to another through the memory buffer of the other.
    Copy {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive that is read.
        from: PciAddress,
        /// The drive that is written, with the buffer.
        to: PciAddress,
    },
    /// What is on one drive goes to another through memory of this machine.
    Clone {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive that is read.
        from: PciAddress,
        /// The drive that is written.
        to: PciAddress,
    },
    /// I/O until the drive goes, or the time is up, with resets if wanted.
    Churn {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// Seconds.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Resets the controller all the while.
        #[arg(long)]
        resets: bool,
        /// The drive.
        drive: PciAddress,
    },
    /// Two virtual functions: made, given resources, driven at once, returned.
    Functions {
        /// groups or devices.
        #[arg(long)]
        way: Way,
        /// The physical function.
        drive: PciAddress,
    },
    /// Opens a drive, and writes why it cannot be had.
    Refused {
        /// any, groups or devices.
        #[arg(long)]
        way: Way,
        /// The drive.
        drive: PciAddress,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .init();
    let outcome = match Arguments::parse().command {
        Command::Seam { way, drive } => seam::seam(way, drive),
        Command::Peers { way, drive, memory } => seam::peers(way, drive, memory),
        Command::Both { way, first, second } => seam::both(way, first, second),
        Command::Removal { way, drive, limit } => seam::removal(way, drive, Duration::from_secs(limit)),
        Command::Io { way, buffer, drive } => drive::io(way, drive, buffer),
        Command::Copy { way, from, to } => drive::copy(way, from, to),
        Command::Clone { way, from, to } => drive::clone(way, from, to),
        Command::Churn {
            way,
            seconds,
            resets,
            drive,
        } => drive::churn(way, drive, seconds, resets),
        Command::Functions { way, drive } => drive::functions(way, drive),
        Command::Refused { way, drive } => seam::refused(way, drive),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("lab-vfio: {failure}");
            ExitCode::FAILURE
        }
    }
}
