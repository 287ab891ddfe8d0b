//! [`Test`]: what a file in `fabric-tests/lab/` exports.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::context::Lab;
use super::guest::Guest;
use super::requirement::Requirement;

/// A test of the lab. Write one as `Test { name: …, run: …, ..Test::DEFAULT }`.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name within its file; the row says `file::name`.
    pub name: &'static str,
    /// What must be there; the test is skipped with the reason otherwise.
    pub needs: &'static [Requirement],
    /// The kernels that its guests boot, one row for each.
    pub kernels: Kernels,
    /// What carries the commands.
    pub transport: Transport,
    /// What stands at the other end.
    pub peer: Peer,
    /// What is shown to work, in the words of the compatibility table; empty for a test that has no place there.
    pub feature: &'static str,
    /// Its guests, which are running when it starts. Without any it runs once, on this machine's kernel.
    pub guests: &'static [Guest],
    /// How long it may take, boots not counted. Everything it has is killed then. Emulation is 5 to 20 times slower than a machine, and the
    /// machine may be busy: be generous.
    pub limit: Duration,
    /// Parts of kernel log lines that are no failure in this test, though they look like one.
    pub tolerates: &'static [&'static str],
    /// Its guests must have been booted for it.
    pub fresh: bool,
    /// It measures instead of judging: `scripts/lab measure` runs it, `scripts/lab run` does not.
    pub measures: bool,
    /// What it does.
    pub run: fn(&Lab) -> Result<(), Failure>,
}

impl Test {
    /// A test over TCP on every kernel that needs nothing and does nothing.
    pub const DEFAULT: Self = Self {
        name: "unnamed",
        needs: &[],
        kernels: Kernels::Every,
        transport: Transport::Tcp,
        peer: Peer::LinuxHost,
        feature: "",
        guests: &[Guest::SMALL],
        limit: Duration::from_secs(120),
        tolerates: &[],
        fresh: false,
        measures: false,
        run: |_| Err(Failure::new("this test has no body")),
    };
}

/// The kernels that a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Each that is there.
    Every,
    /// The distribution's own.
    Default,
    /// The newest.
    Newest,
}

/// What carries the commands of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
    /// A drive at the bus.
    Pcie,
    /// Inside one machine.
    Local,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
            Self::Pcie => "pcie",
            Self::Local => "local",
        })
    }
}

/// What stands at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Linux's host (`nvme connect`), against our target.
    LinuxHost,
    /// Linux's target (nvmet), against our initiator.
    LinuxTarget,
    /// Our own other end, in another guest or on this machine.
    Own,
    /// An emulated or real drive.
    Drive,
    /// Nothing: the test is about the lab or the kernel itself.
    Kernel,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LinuxHost => "Linux host",
            Self::LinuxTarget => "Linux target",
            Self::Own => "own",
            Self::Drive => "drive",
            Self::Kernel => "kernel",
        })
    }
}

/// Why a test failed: a sentence. Every error becomes one with `?`, and a panic is one too.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure with this sentence.
    #[must_use]
    pub fn new(sentence: impl fmt::Display) -> Self {
        Self(sentence.to_string())
    }

    /// The same with what was being done before it.
    #[must_use]
    pub fn while_doing(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut sentence = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !sentence.contains(&more) {
                sentence += ": ";
                sentence += &more;
            }
            source = error.source();
        }
        Self(sentence)
    }
}

/// Ends a test with a sentence unless something holds: `ensure!(blocks == 512, "{blocks} blocks instead of 512")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return ::core::result::Result::Err($crate::lab::Failure::new(::std::format!($($sentence)+)));
        }
    };
}
