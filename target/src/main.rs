//! The `homi-target` command: `serve` and `check`.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use homi_target::config::{
    Config, ConfigError, DrivePlace, Events, Listener, Name, Namespace, Place, Size, Subsystem, Transport,
};
use homi_target::{Service, ServiceError};
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;

/// Name of the subsystem that `--ram`, `--drive` and `--file` make when `--nqn` gives none.
const DEFAULT_NQN: &str = "nqn.2026-01.io.homi-fabrics:default";
/// Port of NVMe/TCP (NVMe/TCP Transport 1.0 section 3.1), and of NVMe/RDMA.
const DEFAULT_PORT: u16 = 4420;

/// Exports files, block devices and RAM over NVMe-oF.
#[derive(Debug, Parser)]
#[command(name = "homi-target", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again.
    Serve(Box<Serve>),
    /// Check a configuration file and exit.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file; the flags below go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on instead of those of the file, over TCP, or over RDMA with rdma:// before it; repeat for more
    /// [default without a file: 127.0.0.1:4420].
    #[arg(long, value_name = "[TRANSPORT://]IP:PORT")]
    listen: Vec<Place>,
    /// Serve memory of this size, such as 1G; repeat for more namespaces.
    #[arg(long, value_name = "SIZE")]
    ram: Vec<Size>,
    /// Serve a file or block device; repeat for more namespaces, which come before those of --ram.
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Create the files of --file with this size where they do not exist.
    #[arg(long, value_name = "SIZE", requires = "file")]
    create: Option<Size>,
    /// Logical block size for --ram and --file: 512 or 4096 [default: 4096, or a block device's own].
    #[arg(long, value_name = "BYTES")]
    block_size: Option<Size>,
    /// Drive to drive by the target itself and serve as a namespace, as in 0000:01:00.0/1 (the namespace may be left out if there is only
    /// one); bound to VFIO by scripts/bind-vfio; repeat for more.
    #[arg(long, value_name = "PCI[/NSID]")]
    drive: Vec<DrivePlace>,
    /// Refuse writes to what --ram, --drive and --file serve.
    #[arg(long)]
    read_only: bool,
    /// Name of the subsystem that --ram, --drive and --file make.
    #[arg(long, value_name = "NQN", default_value = DEFAULT_NQN)]
    nqn: Name,
    /// Host that may connect to it; repeat for more.
    #[arg(long, value_name = "HOSTNQN", conflicts_with = "allow_any_host")]
    allow: Vec<Name>,
    /// Let every host connect to it (implied while listening on loopback addresses only).
    #[arg(long)]
    allow_any_host: bool,
    /// Threads that carry I/O [default: one per core].
    #[arg(long, value_name = "COUNT")]
    shards: Option<u16>,
    /// Keep each of these threads on a core of its own.
    #[arg(long)]
    pin: bool,
    /// Kernel interface to wait on: auto, io_uring or readiness.
    #[arg(long, value_name = "KIND")]
    events: Option<Events>,
    /// Microseconds to keep polling after the last event before sleeping.
    #[arg(long, value_name = "MICROSECONDS")]
    poll_us: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("{0}")]
    Usage(String),
    #[error("cannot wait for signals: {0}")]
    Signals(#[from] nix::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("HOMI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let outcome = match &cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Check { config } => check(config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&mut io::stderr(), &format!("homi-target: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line; whoever was to read it may be gone, which is no reason to stop serving.
fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

fn check(path: &std::path::Path) -> Result<(), Failure> {
    let config = Config::read(path)?;
    let namespaces: usize = config
        .subsystem
        .iter()
        .map(|subsystem| subsystem.namespace.len())
        .sum();
    let line = format!(
        "{} is valid: {} listeners, {} subsystems, {namespaces} namespaces",
        path.display(),
        config.listener.len(),
        config.subsystem.len()
    );
    say(&mut io::stdout(), &line);
    Ok(())
}

impl Serve {
    fn run(&self) -> Result<(), Failure> {
        // Blocked before any thread exists, so that all inherit it and only this one takes them.
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
            signals.add(signal);
        }
        signals.thread_block()?;
        if let Err(error) = homi_reactor::socket::raise_file_limit() {
            tracing::warn!("cannot raise the limit of open files, which limits connections: {error}");
        }
        let config = self.config()?;
        let mut service = Service::start(&config)?;
        announce(&config, &service);
        loop {
            match signals.wait()? {
                Signal::SIGHUP => match self.config().map_err(|error| error.to_string()) {
                    Ok(config) => match service.reload(&config) {
                        Ok(()) => announce(&config, &service),
                        Err(error) => tracing::error!("not reloaded, serving as before: {error}"),
                    },
                    Err(error) => tracing::error!("not reloaded, serving as before: {error}"),
                },
                signal => {
                    tracing::info!("{signal}: stopping");
                    service.stop();
                    return Ok(());
                }
            }
        }
    }

    fn config(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if !self.listen.is_empty() || (self.config.is_none() && config.listener.is_empty()) {
            let default = Place {
                transport: Transport::Tcp,
                address: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            };
            let places = if self.listen.is_empty() {
                &[default][..]
            } else {
                &self.listen
            };
            let listener = |place: &Place| Listener {
                transport: place.transport,
                address: place.address,
                advertise: None,
            };
            config.listener = places.iter().map(listener).collect();
        }
        if self.shards.is_some() {
            config.node.shards = self.shards;
        }
        config.node.pin |= self.pin;
        config.node.events = self.events.unwrap_or(config.node.events);
        config.node.poll_us = self.poll_us.unwrap_or(config.node.poll_us);
        if !self.ram.is_empty() || !self.file.is_empty() || !self.drive.is_empty() {
            let subsystem = self.subsystem(&config)?;
            config.subsystem.push(subsystem);
        }
        if config.subsystem.is_empty() {
            return Err(Failure::Usage(
                "there is nothing to serve: give --ram SIZE, --file PATH, or a --config with a [[subsystem]]"
                    .to_owned(),
            ));
        }
        config.check()?;
        Ok(config)
    }

    /// The subsystem that `--ram`, `--drive` and `--file` make.
    fn subsystem(&self, config: &Config) -> Result<Subsystem, Failure> {
        let loopback = config
            .listener
            .iter()
            .all(|listener| listener.address.ip().is_loopback());
        if self.allow.is_empty() && !self.allow_any_host && !loopback {
            return Err(Failure::Usage(
                "say who may connect from other machines: --allow HOSTNQN (see /etc/nvme/hostnqn there) or --allow-any-host"
                    .to_owned(),
            ));
        }
        let blank = Namespace {
            nsid: 0,
            path: None,
            drive: None,
            placement: None,
            ram: None,
            create: None,
            block_size: self.block_size,
            read_only: self.read_only,
            uuid: None,
        };
        let files = self.file.iter().map(|path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Namespace {
                path: Some(path),
                create: self.create,
                ..blank.clone()
            }
        });
        let memory = self.ram.iter().map(|size| Namespace {
            ram: Some(*size),
            ..blank.clone()
        });
        let drives = self.drive.iter().map(|place| Namespace {
            drive: Some(*place),
            ..blank.clone()
        });
        let numbered = files
            .chain(drives)
            .chain(memory)
            .zip(1..)
            .map(|(namespace, nsid)| Namespace { nsid, ..namespace });
        Ok(Subsystem {
            nqn: self.nqn.clone(),
            allow: self.allow.clone(),
            allow_any_host: self.allow.is_empty(),
            serial: None,
            model: None,
            namespace: numbered.collect(),
        })
    }
}

/// Prints what is served, one line per address and subsystem, in the form that `homi` takes.
fn announce(config: &Config, service: &Service) {
    let mut out = io::stdout();
    for place in service.places() {
        for subsystem in &config.subsystem {
            let namespaces = subsystem.namespace.len();
            let plural = if namespaces == 1 { "" } else { "s" };
            let who = match (subsystem.allow_any_host, subsystem.allow.len()) {
                (true, _) => "any host".to_owned(),
                (false, 0) => "no host yet".to_owned(),
                (false, hosts) => format!("{hosts} allowed host{}", if hosts == 1 { "" } else { "s" }),
            };
            let line = format!(
                "serving nvme+{place}/{} ({namespaces} namespace{plural}) to {who}",
                subsystem.nqn
            );
            say(&mut out, &line);
        }
    }
}
