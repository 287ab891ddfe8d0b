//! The lab: real kernels in QEMU guests as peers.
//!
//! ```text
//! scripts/lab run ─► Runner ─► Pool ─► Vm ══ QEMU: a distribution's kernel on this machine's own root, read-only
//!                      │                └ Agent ══ lab-agent in the guest: runs the steps of a test
//!                      └► body(&Lab): guests, targets of ours on this machine, links between guests and their faults
//! ```
//!
//! A test is data and a function ([`Test`]), in a file of its own in `fabric-tests/lab/`; a new file is all that a new test needs. It says
//! what it needs ([`Requirement`]) and is skipped with the reason where that is missing. Guests are data too ([`Guest`]): they boot the
//! kernels that `scripts/lab setup` has prepared ([`Kernel`]), see this machine's files under the same names and this checkout's programs
//! in their `PATH`, and lose everything that they write. Those that a test leaves as it found them serve the next test.
//!
//! Under software emulation a guest says nothing about speed: what is measured here is whether results are right.
//!
//! Not here: guests of other architectures, guests without Linux, kernels' crash dumps.

pub mod agent;
pub mod context;
pub mod guest;
pub mod kernel;
pub mod kernel_log;
pub mod link;
pub mod pool;
pub mod process;
pub mod program;
pub mod protocol;
pub mod qmp;
pub mod report;
pub mod requirement;
pub mod run;
pub mod shell;
pub mod skips;
pub mod table;
pub mod target;
pub mod test;
pub mod transcript;
pub mod vm;

pub use agent::{Job, Output};
pub use context::Lab;
pub use guest::{Guest, Namespace, NvmeDrive, Sriov};
pub use kernel::Kernel;
pub use link::{Counts, Link, Plan};
pub use program::{HostProgram, check_refusal};
pub use requirement::{Requirement, VERBS_PROGRAM};
pub use target::HostTarget;
pub use test::{Failure, Kernels, Peer, Test, Transport};
pub use vm::{GuestTarget, Vm};
