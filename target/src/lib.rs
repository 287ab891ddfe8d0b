//! `homi-target`: exports files, block devices and RAM over NVMe-oF.
//!
//! ```text
//!  listeners ─► control thread ─► shards (one thread per core)
//!                                   Reactor ─ sockets in and out
//!                                   Engine  ─ sessions ─► executors (a Queue per namespace)
//! ```
//!
//! - [`config`] — what is served: one TOML file, flags over it.
//! - [`memory`] — a whole target without sockets, for tests.
//! - [`Service`] — starts, reloads and stops a target inside any process.

mod arena;
mod catalogue;
mod clock;
mod cmb;
pub mod config;
mod engine;
mod executors;
mod lanes;
pub mod memory;
mod pool;
#[cfg(feature = "rdma")]
mod rdma;
#[cfg(not(feature = "rdma"))]
#[path = "rdma/absent.rs"]
mod rdma;
mod service;
mod session;
mod shard;
mod slab;

pub use config::Config;
pub use service::{Service, ServiceError, drive_options};
pub use shard::ShardCounters;
