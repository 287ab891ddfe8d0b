//! [`Vector`]: an interrupt as an event descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// One interrupt vector: a descriptor that becomes readable when the function raised it, and stays so until [`Vector::take`].
#[derive(Debug)]
pub struct Vector(EventFd);

impl Vector {
    /// A vector that nobody raises yet: who provides the function gives its descriptor to the kernel, or raises it itself.
    ///
    /// # Errors
    /// The system's, when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    /// Takes the interrupts raised since the last call, and returns how many there were. Never blocks.
    ///
    /// # Errors
    /// The system's.
    pub fn take(&self) -> io::Result<u64> {
        match self.0.read() {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Raises the interrupt, as the function does. One that nobody took yet stays raised.
    ///
    /// # Errors
    /// The system's.
    pub fn raise(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: it is readable all the same.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Vector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_interrupts_are_taken_once() {
        let vector = Vector::new().unwrap();
        assert_eq!(vector.take().unwrap(), 0);
        vector.raise().unwrap();
        vector.raise().unwrap();
        assert_eq!(vector.take().unwrap(), 2);
        assert_eq!(vector.take().unwrap(), 0);
    }
}
