//! Where functions are and who uses them, read from sysfs.
//!
//! [`Sysfs`] reads it; what it returns is a picture of one moment: devices come and go. Nothing here opens a device or changes anything. The
//! root of the file system can be another folder, so that decisions made from topology can be tested on any machine.
//!
//! Not here: switches' bandwidth, NUMA distances between nodes (the kernel's `node*/distance`), and links that are not PCIe.

mod acs;
mod disks;
mod distance;
mod sysfs;

pub use acs::Acs;
pub use disks::{Disk, DiskUse, Usage};
pub use distance::{Distance, Meeting};
pub use sysfs::{Bridge, Function, IommuGroup, Link, Sriov, Sysfs, TopologyError};

#[cfg(test)]
mod tests;
