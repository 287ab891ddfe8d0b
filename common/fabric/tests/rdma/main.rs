//! The NVMe/RDMA transport: both ends joined by a simulated reliable connection, and each end alone against a peer that breaks
//! the protocol.
#![cfg_attr(test, expect(unsafe_code, reason = "the counting allocator of `allocations`"))]

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod channel;
#[cfg(test)]
mod hostile_controller;
#[cfg(test)]
mod hostile_host;
#[cfg(test)]
mod joined;
#[cfg(test)]
mod world;
