//! Whole associations under test: the target and the initiator joined, and each against a peer that misbehaves.
//!
//! - [`harness`] — what a test body runs on. [`pair`] is both ends in one thread and in virtual time, [`network`] is the service
//!   and the initiator over TCP.
//! - [`bodies`], [`hostile_hosts`] — the tests that run over every path.
//! - [`pipe`], [`faults`] — connections in memory, and what happens to their bytes.
//! - [`peer`], [`units`] — a host moved by hand and what it says; [`meddler`], [`relay`] — a target that says something else.
//! - [`settings`], [`random`], [`issuer`] — configurations, contents, and a queue as tests use it.
//!
//! The tests themselves are in `tests/`; begin with `connect.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on ends here and says where"
)]

pub mod bodies;
pub mod counts;
pub mod faults;
pub mod fuzz;
pub mod harness;
pub mod hostile_hosts;
pub mod issuer;
pub mod lab;
pub mod meddler;
pub mod network;
pub mod pair;
pub mod peer;
pub mod pipe;
pub mod random;
pub mod raw;
pub mod relay;
pub mod settings;
pub mod units;
