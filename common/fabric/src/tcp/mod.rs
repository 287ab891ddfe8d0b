//! The NVMe/TCP transport, both ends.
