//! Whether io_uring moves data between a file and a dma-buf: memory of a device that has no address in this process.
//!
//! A dma-buf reaches a drive without passing through host memory only if the kernel maps it for the drive itself. For
//! io_uring that is proposed as a kind of registered buffer, bound to a file whose driver maps it (NVMe block devices): the
//! kernel is asked by registering the buffer. Released kernels refuse. What works everywhere, mapping the dma-buf into this
//! process and copying, is a bounce through host memory under another name and is never done here.
#![expect(
    unsafe_code,
    reason = "registers a buffer by a system call that has no wrapper"
)]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::IoUring;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What is missing for data in a dma-buf.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaBufUnsupported {
    /// The descriptor is something else.
    #[error("descriptor {descriptor} is no dma-buf: export one from the device that owns the memory")]
    NotDmaBuf {
        /// Its number.
        descriptor: i32,
    },
    /// The executor does not go through io_uring, or not in a way that takes other memory than this process's.
    #[error("{executor} cannot use a dma-buf: {reason}")]
    Executor {
        /// What executes the commands.
        executor: &'static str,
        /// Why it cannot.
        reason: &'static str,
    },
    /// The kernel's io_uring has no buffers of that kind.
    #[error(
        "Linux {release} lacks {feature} ({source}): use a kernel that has it, a user-space driver (nvme+pci://), or memory of this process"
    )]
    Kernel {
        /// `uname -r`.
        release: String,
        /// What is missing.
        feature: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has them, and this program does not use them yet.
    #[error(
        "Linux {release} registers dma-bufs with io_uring, and this build does not use that yet: use a user-space driver (nvme+pci://), or memory of this process"
    )]
    NotUsed {
        /// `uname -r`.
        release: String,
    },
}

/// What the kernel must have, in words.
pub const FEATURE: &str = "io_uring's registered buffers of kind dma-buf (IORING_REGISTER_BUFFERS_UPDATE with IO_REGBUF_TYPE_DMABUF)";

/// `IORING_REGISTER_BUFFERS_UPDATE`.
const BUFFERS_UPDATE: libc::c_uint = 16;
/// The update's descriptor has the extended form.
const EXTENDED: u32 = 1 << 1;
/// The buffer is a dma-buf.
const DMA_BUF: u32 = 2;

/// `struct io_uring_rsrc_update2`, whose second field holds flags where the kernel has any; elsewhere it must be zero.
#[repr(C)]
struct Update {
    offset: u32,
    flags: u32,
    data: u64,
    tags: u64,
    count: u32,
    reserved: u32,
}

/// The proposed descriptor of a buffer.
#[repr(C)]
#[derive(Default)]
struct Descriptor {
    kind: u32,
    flags: u32,
    size: u64,
    address: u64,
    dma_buf: i32,
    target: i32,
    reserved: [u64; 6],
}

/// Asks whether data of `dma_buf` can go to and from `file` by itself. It never can without an answer that names what is missing, so the
/// answer is an error until a kernel's feature is used by this crate; see [`DmaBufUnsupported::NotUsed`].
///
/// # Errors
/// [`DmaBufUnsupported`], always: which one is the answer.
pub fn probe(dma_buf: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<(), DmaBufUnsupported> {
    if !is_dma_buf(dma_buf) {
        return Err(DmaBufUnsupported::NotDmaBuf {
            descriptor: dma_buf.as_raw_fd(),
        });
    }
    match register(dma_buf, file) {
        Ok(()) => Err(DmaBufUnsupported::NotUsed { release: release() }),
        Err(source) => Err(DmaBufUnsupported::Kernel {
            release: release(),
            feature: FEATURE,
            source,
        }),
    }
}

/// Whether a descriptor is a dma-buf: the kernel tells the name of its exporter then.
#[must_use]
pub fn is_dma_buf(descriptor: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.starts_with("exp_name:")))
}

/// Registers the dma-buf with a ring that goes away again.
fn register(dma_buf: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let ring = IoUring::new(1)?;
    ring.submitter().register_buffers_sparse(1)?;
    let descriptor = Descriptor {
        kind: DMA_BUF,
        dma_buf: dma_buf.as_raw_fd(),
        target: file.as_raw_fd(),
        ..Descriptor::default()
    };
    let update = Update {
        offset: 0,
        flags: EXTENDED,
        data: (&raw const descriptor).addr() as u64,
        tags: 0,
        count: 1,
        reserved: 0,
    };
    // SAFETY: the update and the descriptor that it refers to are alive during the call, which reads them only. Kernels that do not know
    // the flag refuse the whole update, because the field must be zero there.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            BUFFERS_UPDATE,
            &raw const update,
            size_of::<Update>(),
        )
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `_IOW('u', 0x42, struct udmabuf_create)`.
const UDMABUF_CREATE: libc::Ioctl = 0x4018_7542;
/// The descriptor does not survive an exec.
const UDMABUF_CLOEXEC: u32 = 1;

/// `struct udmabuf_create`.
#[repr(C)]
struct OfMemory {
    memory: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// Makes a dma-buf of `len` bytes (a multiple of the page size) of the system's memory, as a device would export one: for trying out what
/// takes such buffers on machines without a device that has any.
///
/// # Errors
/// What the system said: there is no `/dev/udmabuf` (load the module of that name), or this process may not use it.
pub fn of_memory(len: u64) -> io::Result<OwnedFd> {
    const NAME: &CStr = c"homi-dma-buf";
    let device = File::options().read(true).write(true).open("/dev/udmabuf")?;
    let memory = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let memory = File::from(memory);
    memory.set_len(len)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let request = OfMemory {
        memory: u32::try_from(memory.as_raw_fd()).unwrap_or(u32::MAX),
        flags: UDMABUF_CLOEXEC,
        offset: 0,
        size: len,
    };
    // SAFETY: the request reads one structure of this layout, which is alive during the call.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE, &raw const request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for this process, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or("of an unknown release".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_no_dma_buf() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = probe(file.as_fd(), file.as_fd()).unwrap_err();
        assert!(matches!(error, DmaBufUnsupported::NotDmaBuf { .. }), "{error}");
    }

    #[test]
    fn a_kernel_without_it_is_told_by_what_it_lacks() {
        let file = File::open("/dev/null").unwrap();
        // Any descriptor will do to see what the kernel makes of the request.
        let said = register(file.as_fd(), file.as_fd()).unwrap_err();
        assert!(said.raw_os_error().is_some(), "{said}");
        match of_memory(65536) {
            Ok(buffer) => {
                assert!(is_dma_buf(buffer.as_fd()));
                let error = probe(buffer.as_fd(), file.as_fd()).unwrap_err();
                assert!(error.to_string().contains(FEATURE), "{error}");
            }
            Err(error) => eprintln!("skipped: there are no dma-bufs here: {error}"),
        }
    }
}
