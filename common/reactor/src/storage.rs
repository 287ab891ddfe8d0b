//! What the system tells about a file or block device: the questions that the standard library does not ask.
#![expect(unsafe_code, reason = "asks with system calls that fill memory in")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `STATX_DIOALIGN` of Linux 6.1.
const STATX_DIOALIGN: u32 = 0x2000;

/// What direct I/O on a file requires, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Alignment of the memory's addresses.
    pub memory: u32,
    /// Alignment of offsets and lengths.
    pub offset: u32,
}

/// What direct I/O on this file requires; `None` if the system does not tell (Linux before 6.1, and file systems
/// without an answer). Both values are 0 if the file does not support direct I/O.
///
/// # Errors
/// What the system said when the file cannot be asked at all.
pub fn direct_alignment(file: BorrowedFd<'_>) -> io::Result<Option<DirectAlignment>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is empty and terminated, and the answer is writable memory of the right type.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if asked != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: a structure of numbers, zeroed before the system filled it in.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    Ok(Some(DirectAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    }))
}

/// Size of a block device in bytes.
///
/// # Errors
/// What the system said; `ENOTTY` if it is not a block device.
pub fn block_device_size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0_u64;
    let request = nix::request_code_read!(0x12, 114, size_of::<usize>());
    // SAFETY: the request writes one 64-bit number to the address.
    let asked = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut size) };
    if asked < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(size)
    }
}

/// Bytes per logical block of a block device: the smallest unit that it reads and writes.
///
/// # Errors
/// What the system said; `ENOTTY` if it is not a block device.
pub fn logical_block_size(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the request writes one int to the address.
    let asked = unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKSSZGET, &raw mut size) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_regular_file_is_no_block_device() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(
            block_device_size(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            logical_block_size(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }

    #[test]
    fn alignments_are_powers_of_two_where_they_are_told() {
        let file = File::open("/proc/self/exe").unwrap();
        match direct_alignment(file.as_fd()).unwrap() {
            None => eprintln!("this file system does not tell what direct I/O requires"),
            Some(DirectAlignment { memory: 0, offset: 0 }) => eprintln!("no direct I/O here"),
            Some(alignment) => {
                assert!(alignment.memory.is_power_of_two());
                assert!(alignment.offset.is_power_of_two());
            }
        }
    }
}
