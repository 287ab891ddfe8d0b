//! Both ends of an NVMe over Fabrics association as state machines: bytes and messages in, bytes and
//! events out. There is no I/O here, no clock and no unsafe code; the current time is an argument
//! ([`time::Instant`]), so whole associations run in a test without a socket and without waiting.
//!
//! - [`time`] — the points in time that deadlines are made of.
//! - [`controller`] — what a controller is: Connect, admin commands, namespaces, whatever the transport.
//! - [`host`] — what a host sends to bring a controller up, keep it and discover others.
//! - [`tcp`] — the NVMe/TCP transport: framing, digests, flow of data, both ends.
//! - [`rdma`] — the NVMe/RDMA transport without verbs: private data, capsules, descriptors, flow of data, both ends.
#![forbid(unsafe_code)]

pub mod controller;
pub mod host;
pub mod rdma;
pub mod tcp;
pub mod time;
