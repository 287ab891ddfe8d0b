//! The kernel's interface to its NVMe driver: `linux/nvme_ioctl.h`, as numbers and bytes.

use homi_queue::Command;

/// Bytes of `struct nvme_uring_cmd` and of `struct nvme_passthru_cmd`, which differ in their last 8 bytes only.
pub(super) const COMMAND_SIZE: usize = 72;

/// `_IOWR('N', number, struct of 72 bytes)`.
const fn read_write(number: u32) -> u32 {
    3 << 30 | 72 << 16 | 0x4e << 8 | number
}

/// An I/O command whose data is one range.
pub(super) const URING_CMD_IO: u32 = read_write(0x80);
/// An I/O command whose data is a list of ranges.
pub(super) const URING_CMD_IO_VEC: u32 = read_write(0x81);
/// An admin command, as an ioctl.
pub(super) const ADMIN_CMD: u32 = read_write(0x41);
/// The namespace's identifier, as an ioctl: `_IO('N', 0x40)`.
pub(super) const ID: u32 = 0x4e << 8 | 0x40;

/// Where the time limit of an admin command is, in milliseconds.
pub(super) const TIMEOUT_AT: usize = 64;
/// Where the result of an admin command is.
pub(super) const RESULT_AT: usize = 68;

/// The command as the kernel wants it, in the last 80 bytes of a submission entry: all fields but the identifier, which is
/// the driver's, and the flags and metadata, which are not used.
pub(super) fn command(command: &Command, nsid: u32, address: u64, len: u32) -> [u8; 80] {
    let sqe = &command.0;
    let mut bytes = [0; 80];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(to) = bytes.get_mut(at..at + value.len()) {
            to.copy_from_slice(value);
        }
    };
    put(0, &[sqe.opcode]);
    put(4, &nsid.to_ne_bytes());
    put(8, &sqe.cdw2.get().to_ne_bytes());
    put(12, &sqe.cdw3.get().to_ne_bytes());
    put(24, &address.to_ne_bytes());
    put(36, &len.to_ne_bytes());
    let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15];
    for (index, dword) in dwords.iter().enumerate() {
        put(40 + index * 4, &dword.get().to_ne_bytes());
    }
    bytes
}
