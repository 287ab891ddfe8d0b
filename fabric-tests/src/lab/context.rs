//! [`Lab`]: what a test's body works with.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::agent::Output;
use super::guest::Accelerator;
use super::kernel::Kernel;
use super::link::Link;
use super::program::HostProgram;
use super::target::HostTarget;
use super::test::Failure;
use super::transcript::Transcript;
use super::vm::Vm;

/// How long a program may take that does not say otherwise.
const PROGRAM: Duration = Duration::from_secs(120);

/// The factor on every limit: `HOMI_LAB_PATIENCE`, 1 where it is not set, for machines that are slower or busier than usual.
#[must_use]
pub fn patience() -> f64 {
    env::var("HOMI_LAB_PATIENCE")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|factor| (0.1..=100.0).contains(factor))
        .unwrap_or(1.0)
}

/// The guests, links and programs of a test.
#[derive(Debug)]
pub struct Lab {
    pub(crate) guests: Vec<Arc<Vm>>,
    pub(crate) links: Vec<Arc<Link>>,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) accelerator: Accelerator,
    pub(crate) programs: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) transcript: Arc<Transcript>,
    pub(crate) targets: AtomicUsize,
}

impl Lab {
    /// A guest, by its index in [`Test::guests`](super::Test::guests).
    ///
    /// # Errors
    /// The test has not so many.
    pub fn guest(&self, index: usize) -> Result<&Vm, Failure> {
        self.guests.get(index).map(AsRef::as_ref).ok_or_else(|| {
            Failure::new(format!(
                "the test has {} guests: there is none with index {index}",
                self.guests.len()
            ))
        })
    }

    /// A link between two guests, by its number. It is clean when the test begins.
    ///
    /// # Errors
    /// No two guests are at it.
    pub fn link(&self, number: usize) -> Result<&Link, Failure> {
        self.links
            .get(number)
            .map(AsRef::as_ref)
            .ok_or_else(|| Failure::new(format!("no two guests of the test are at link {number}")))
    }

    /// Starts our target as a process of this machine, from a configuration in TOML. Listen on `127.0.0.1:{port}` (the port is chosen, see
    /// [`HostTarget::port`]) and `advertise = "10.0.2.2"`, where guests reach it.
    ///
    /// # Errors
    /// It does not start.
    pub fn target(&self, config: &str) -> Result<HostTarget, Failure> {
        let name = format!("target{}", self.targets.fetch_add(1, Ordering::Relaxed));
        let transcript = Some(Arc::clone(&self.transcript));
        HostTarget::start(
            &self.program("homi-target"),
            &self.scratch,
            &name,
            config,
            transcript,
        )
    }

    /// Starts a program of this checkout on this machine, in [`Lab::scratch`].
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Result<HostProgram, Failure> {
        HostProgram::start(&self.program(program), arguments, &self.scratch, &self.transcript)
    }

    /// Runs `homi` on this machine and waits for it, two minutes at most. It may fail.
    ///
    /// # Errors
    /// It does not start or does not end.
    pub fn homi(&self, arguments: &[&str]) -> Result<Output, Failure> {
        self.spawn("homi", arguments)?.wait(PROGRAM.mul_f64(patience()))
    }

    /// A program of this checkout: `homi`, `homi-target`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// An empty folder of this machine for the test; guests see it under the same name, but may keep what they saw in it once.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The kernel of its guests; absent without guests.
    #[must_use]
    pub fn kernel(&self) -> Option<&Kernel> {
        self.kernel.as_ref()
    }

    /// Whether instructions of guests are emulated, which makes everything in them 5 to 20 times slower.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.accelerator == Accelerator::Tcg
    }

    /// Writes a line of a measurement to standard output, and into the transcript.
    pub fn tell(&self, line: &str) {
        self.note(line);
        // Whoever was to read it may be gone.
        let _ = writeln!(io::stdout(), "{line}");
    }

    /// Writes a line into the transcript, which is shown when the test fails.
    pub fn note(&self, line: &str) {
        self.transcript.line(line);
    }
}
