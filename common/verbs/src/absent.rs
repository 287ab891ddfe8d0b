//! What is left of this crate without the feature `rdma`: what would be opened first, and why it cannot be.

use crate::error::{Unsupported, VerbsError};

enum Never {}

/// An RDMA device. In this build there is none.
pub struct Device(Never);

impl Device {
    /// The RDMA devices of this machine.
    ///
    /// # Errors
    /// [`Unsupported::NotBuilt`].
    pub fn list() -> Result<Vec<Self>, VerbsError> {
        Err(Unsupported::NotBuilt.into())
    }

    /// The device of this name.
    ///
    /// # Errors
    /// [`Unsupported::NotBuilt`].
    pub fn open(_name: &str) -> Result<Self, VerbsError> {
        Err(Unsupported::NotBuilt.into())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.0 {}
    }
}

/// Events of the connection manager. In this build there are none.
pub struct EventChannel(Never);

impl EventChannel {
    /// A channel without ids.
    ///
    /// # Errors
    /// [`Unsupported::NotBuilt`].
    pub fn new() -> Result<Self, VerbsError> {
        Err(Unsupported::NotBuilt.into())
    }

    /// What can be polled for new events.
    #[must_use]
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        match self.0 {}
    }
}
