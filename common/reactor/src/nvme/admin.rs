//! Admin commands and questions by ioctl: one at a time, blocking.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use homi_queue::Command;

use super::wire;

/// Why an admin command was not answered with success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The controller's status: the 15 bits above the phase tag.
    #[error("the controller answers with status {0:#06x}")]
    Status(u16),
    /// The kernel did not pass it.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Executes an admin command on the controller of a device of the kernel's NVMe driver, with `data` as its memory: filled in or
/// handed over as the opcode says. Returns dword 0 of the completion. Blocks for `limit` at most; the kernel resets the
/// controller then. As many bytes move as the command says: only commands whose length is known to be `data`'s may be given,
/// which is why the page-sized ones are the only ones that are taken.
///
/// # Errors
/// [`AdminError`]; `InvalidInput` for a command other than Identify, or memory of another length than 4096 bytes.
pub fn admin(
    device: BorrowedFd<'_>,
    command: &Command,
    data: &mut [u8; 4096],
    limit: Duration,
) -> Result<u32, AdminError> {
    const IDENTIFY: u8 = 0x06;
    if command.0.opcode != IDENTIFY {
        return Err(AdminError::System(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only Identify is passed, whose data has 4096 bytes",
        )));
    }
    let address = data.as_mut_ptr().addr() as u64;
    let mut bytes = wire::command(command, command.nsid(), address, 4096);
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    if let Some(to) = bytes.get_mut(wire::TIMEOUT_AT..wire::RESULT_AT) {
        to.copy_from_slice(&millis.to_ne_bytes());
    }
    const { assert!(wire::COMMAND_SIZE <= 80) };
    // SAFETY: the request reads and writes 72 bytes, of which there are 80, and moves 4096 bytes of data into `data`, which is
    // borrowed exclusively and has as many.
    let answer = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            libc::Ioctl::from(wire::ADMIN_CMD),
            bytes.as_mut_ptr(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error().into());
    }
    match u16::try_from(answer) {
        Ok(0) => {}
        Ok(status) => return Err(AdminError::Status(status)),
        Err(_) => return Err(AdminError::System(io::ErrorKind::InvalidData.into())),
    }
    let mut result = [0; 4];
    if let Some(from) = bytes.get(wire::RESULT_AT..wire::COMMAND_SIZE) {
        result.copy_from_slice(from);
    }
    Ok(u32::from_ne_bytes(result))
}

/// The identifier of the namespace that a device of the kernel's NVMe driver stands for.
///
/// # Errors
/// What the system said; `ENOTTY` if it is no such device.
pub fn namespace_id(device: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), libc::Ioctl::from(wire::ID)) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel returns the 32 bits of the identifier as an int.
    Ok(answer.cast_unsigned())
}
