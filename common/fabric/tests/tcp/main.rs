//! The NVMe/TCP transport, both ends joined and each end alone against a peer that breaks the protocol.
#![cfg_attr(test, expect(unsafe_code, reason = "the counting allocator of `allocations`"))]

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod controller_answers;
#[cfg(test)]
mod controller_end;
#[cfg(test)]
mod host_end;
#[cfg(test)]
mod host_sessions;
#[cfg(test)]
mod joined;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod wire;
