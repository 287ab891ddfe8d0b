//! [`File`]: a regular file or block device, opened to be served.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use homi_queue::{Buffer, Data};
use homi_reactor::file_ring::FileBackend;
use homi_reactor::storage::{self, DirectAlignment};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::bounce::ALIGNMENT;
use crate::file_queue::FileQueue;
use crate::geometry::{GeometryError, NamespaceGeometry};

/// Whether a file's page cache is passed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirectIo {
    /// Passed by where file system and alignment allow; [`File::buffered_reason`] says why not.
    #[default]
    Auto,
    /// Used.
    Never,
    /// Passed by, or the file is not opened.
    Require,
}

/// What is to be served, and how.
#[derive(Debug, Clone)]
pub struct FileOptions {
    path: PathBuf,
    block_size: Option<u32>,
    read_only: bool,
    direct: DirectIo,
}

impl FileOptions {
    /// The file or block device at `path`: writable, direct where possible, with the block size that fits it.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            block_size: None,
            read_only: false,
            direct: DirectIo::Auto,
        }
    }

    /// Bytes per logical block, 512 or 4096. Left out, it is 512, or 4096 where the storage has such blocks.
    #[must_use]
    pub fn block_size(mut self, block_size: u32) -> Self {
        self.block_size = Some(block_size);
        self
    }

    /// Whether the namespace is write protected; the file is then opened for reading only.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether the page cache is passed by.
    #[must_use]
    pub fn direct(mut self, direct: DirectIo) -> Self {
        self.direct = direct;
        self
    }
}

/// Why a file cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at the path.
    #[error(
        "{path} does not exist: create it first, for example with `truncate -s 1G {path}`, or correct the path"
    )]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The process may not open it.
    #[error(
        "no permission to open {path} for {purpose}: change its permissions, or serve it read-only if it is readable"
    )]
    PermissionDenied {
        /// The path.
        path: PathBuf,
        /// What it was opened for.
        purpose: &'static str,
    },
    /// The file system it is on is mounted read-only.
    #[error("{path} is on a read-only file system: serve it read-only")]
    ReadOnlyFileSystem {
        /// The path.
        path: PathBuf,
    },
    /// It is neither a regular file nor a block device.
    #[error("{path} is a {kind}: only regular files and block devices can be served")]
    NotStorage {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Somebody else serves or has mounted it.
    #[error(
        "{path} is in use: it is served already or mounted; stop that first, or serve it read-only everywhere"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Its size and block size do not make a namespace.
    #[error(
        "{path} cannot be a namespace: {source}; change the file's size (`truncate -s`) or the block size"
    )]
    Geometry {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: GeometryError,
    },
    /// The device's blocks are larger than those asked for.
    #[error(
        "{path} has logical blocks of {device} bytes, so blocks of {asked} bytes cannot be served: use {device}"
    )]
    BlockTooSmall {
        /// The path.
        path: PathBuf,
        /// Block size asked for, in bytes.
        asked: u32,
        /// The device's logical block size in bytes.
        device: u32,
    },
    /// Direct I/O was required and cannot be had.
    #[error("{path} cannot be served with direct I/O: {reason}; allow buffered I/O or move the file")]
    NoDirectIo {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system refused something else.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A regular file or block device that is being served, shared by the queues on it. It stays open and locked until the
/// last queue is gone.
#[derive(Debug, Clone)]
pub struct File(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) descriptor: Arc<OwnedFd>,
    pub(crate) geometry: NamespaceGeometry,
    /// What direct I/O requires; `None` if the file is buffered.
    pub(crate) direct: Option<DirectAlignment>,
    pub(crate) is_block_device: bool,
    /// Requests that the file was found not to support: they are not tried again.
    pub(crate) lacks: Lacks,
    buffered_reason: Option<String>,
    unlocked_reason: Option<String>,
    path: PathBuf,
}

/// What a file was found not to support.
#[derive(Debug, Default)]
pub(crate) struct Lacks {
    pub(crate) punch_hole: AtomicBool,
    pub(crate) zero_range: AtomicBool,
    pub(crate) zero_out: AtomicBool,
    pub(crate) discard: AtomicBool,
}

impl File {
    /// Opens and locks what the options name.
    ///
    /// # Errors
    /// [`OpenError`], which says what to change.
    pub fn open(options: &FileOptions) -> Result<Self, OpenError> {
        let path = &options.path;
        let failed = |action| {
            move |source| OpenError::Io {
                path: path.clone(),
                action,
                source,
            }
        };
        // Looked at before it is opened, because opening a pipe waits and opening a terminal has effects.
        let metadata = fs::metadata(path).map_err(|error| refused(options, error))?;
        let is_block_device = storage_kind(path, &metadata)?;

        let mut open = OpenOptions::new();
        open.read(true).write(!options.read_only);
        if is_block_device && !options.read_only {
            // On a block device this claims it, so that it cannot be mounted meanwhile.
            open.custom_flags(libc::O_EXCL);
        }
        let file = open.open(path).map_err(|error| refused(options, error))?;
        let metadata = file.metadata().map_err(failed("examine"))?;
        if storage_kind(path, &metadata)? != is_block_device {
            return Err(failed("open")(io::Error::from(
                io::ErrorKind::StaleNetworkFileHandle,
            )));
        }
        let descriptor = OwnedFd::from(file);
        let unlocked_reason = lock(options, &descriptor)?;

        let (bytes, smallest_block) = if is_block_device {
            let bytes = storage::block_device_size(descriptor.as_fd()).map_err(failed("find the size of"))?;
            let block =
                storage::logical_block_size(descriptor.as_fd()).map_err(failed("find the block size of"))?;
            (bytes, block)
        } else {
            (metadata.len(), 512)
        };
        let block_size = options.block_size.unwrap_or(smallest_block.max(512));
        let geometry =
            NamespaceGeometry::from_bytes(block_size, bytes).map_err(|source| OpenError::Geometry {
                path: path.clone(),
                source,
            })?;
        if block_size < smallest_block {
            let (asked, device) = (block_size, smallest_block);
            return Err(OpenError::BlockTooSmall {
                path: path.clone(),
                asked,
                device,
            });
        }
        let boundary = is_block_device
            .then(|| chunk_of(metadata.rdev(), block_size))
            .flatten();
        let geometry = geometry
            .with_read_only(options.read_only)
            .with_optimal_io_boundary(boundary)
            // A hole in a file reads as zeroes; what a discarded block reads as is up to the device.
            .with_deallocated_reads_zeroes(!is_block_device);

        let (direct, buffered_reason) = match options.direct {
            DirectIo::Never => (None, Some("direct I/O was switched off".to_owned())),
            DirectIo::Auto | DirectIo::Require => match try_direct(&descriptor, block_size, smallest_block) {
                Ok(alignment) => (Some(alignment), None),
                Err(reason) if options.direct == DirectIo::Require => {
                    return Err(OpenError::NoDirectIo {
                        path: path.clone(),
                        reason,
                    });
                }
                Err(reason) => (None, Some(reason)),
            },
        };
        Ok(Self(Arc::new(Inner {
            descriptor: Arc::new(descriptor),
            geometry,
            direct,
            is_block_device,
            lacks: Lacks::default(),
            buffered_reason,
            unlocked_reason,
            path: path.clone(),
        })))
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        &self.0.geometry
    }

    /// The path it was opened at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether the page cache is passed by.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.0.direct.is_some()
    }

    /// Whether it is a block device rather than a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.0.is_block_device
    }

    /// Why the page cache is used, in words, if it is.
    #[must_use]
    pub fn buffered_reason(&self) -> Option<&str> {
        self.0.buffered_reason.as_deref()
    }

    /// Why the file could not be locked against being served twice, in words, if it could not.
    #[must_use]
    pub fn unlocked_reason(&self) -> Option<&str> {
        self.0.unlocked_reason.as_deref()
    }

    /// A queue on it for up to `depth` commands in flight.
    ///
    /// # Errors
    /// What the system said when there are no descriptors or memory for it, or when io_uring was demanded and is refused.
    pub fn open_queue(&self, depth: u16, backend: FileBackend) -> io::Result<FileQueue> {
        FileQueue::new(self.clone(), depth, backend)
    }
}

impl Inner {
    /// Whether the memory can go to the file as it is.
    pub(crate) fn takes(&self, data: &Data) -> bool {
        let Some(direct) = self.direct else { return true };
        let (memory, offset) = (direct.memory as usize, direct.offset as usize);
        data.segments().iter().all(|segment| {
            (segment.host_address() as usize).is_multiple_of(memory) && segment.len().is_multiple_of(offset)
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The kernel may hold the file a little longer than the rings on it; the lock must not last as long.
        // Without a lock there is nothing to lose.
        let _ = fcntl(
            &*self.descriptor,
            FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)),
        );
    }
}

/// What opening said, as an error that says what to change.
fn refused(options: &FileOptions, source: io::Error) -> OpenError {
    let path = options.path.clone();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR) => OpenError::NotFound { path },
        Some(Errno::EACCES | Errno::EPERM) => {
            let purpose = if options.read_only {
                "reading"
            } else {
                "reading and writing"
            };
            OpenError::PermissionDenied { path, purpose }
        }
        Some(Errno::EROFS) => OpenError::ReadOnlyFileSystem { path },
        Some(Errno::EBUSY | Errno::ETXTBSY) => OpenError::InUse { path },
        _ => OpenError::Io {
            path,
            action: "open",
            source,
        },
    }
}

/// Whether it is a block device rather than a regular file; an error if it is neither.
fn storage_kind(path: &Path, metadata: &fs::Metadata) -> Result<bool, OpenError> {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "directory",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "special file",
    };
    Err(OpenError::NotStorage {
        path: path.to_owned(),
        kind,
    })
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or(0),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// How often a lock is tried for, and how long to wait in between: the kernel closes the files of a killed process's io_uring
/// a moment after the process is gone, and whoever restarts a service does not wait for that.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// Locks the file against being served twice: exclusively, or together with other readers if it is served
/// read-only. The lock belongs to this opening of the file, so it also keeps out a second opening in this process.
/// Returns why there is no lock if the file system has none.
fn lock(options: &FileOptions, descriptor: &OwnedFd) -> Result<Option<String>, OpenError> {
    let kind = if options.read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let path = || options.path.clone();
    let mut attempts = LOCK_ATTEMPTS;
    let outcome = loop {
        let outcome = fcntl(descriptor, FcntlArg::F_OFD_SETLK(&whole_file(kind)));
        attempts -= 1;
        if attempts == 0 || !matches!(outcome, Err(Errno::EAGAIN | Errno::EACCES)) {
            break outcome;
        }
        thread::sleep(LOCK_PAUSE);
    };
    match outcome {
        Ok(_) => Ok(None),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(OpenError::InUse { path: path() }),
        Err(errno @ (Errno::ENOLCK | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS)) => {
            Ok(Some(format!("the file system has no locks ({errno})")))
        }
        Err(errno) => Err(OpenError::Io {
            path: path(),
            action: "lock",
            source: errno.into(),
        }),
    }
}

/// Switches direct I/O on, or says why that is not possible; the file is buffered then.
fn try_direct(descriptor: &OwnedFd, block_size: u32, smallest_block: u32) -> Result<DirectAlignment, String> {
    let flags =
        fcntl(descriptor, FcntlArg::F_GETFL).map_err(|errno| format!("its flags are unknown ({errno})"))?;
    let flags = OFlag::from_bits_retain(flags);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))
        .map_err(|errno| format!("the file system refuses direct I/O ({errno})"))?;
    let usable = direct_alignment(descriptor, block_size, smallest_block);
    if usable.is_err() {
        fcntl(descriptor, FcntlArg::F_SETFL(flags))
            .map_err(|errno| format!("direct I/O cannot be switched off again ({errno})"))?;
    }
    usable
}

fn direct_alignment(
    descriptor: &OwnedFd,
    block_size: u32,
    smallest_block: u32,
) -> Result<DirectAlignment, String> {
    let told = storage::direct_alignment(descriptor.as_fd());
    let told = told.map_err(|error| format!("its alignment for direct I/O is unknown ({error})"))?;
    let candidates = match told {
        Some(DirectAlignment { memory: 0, .. } | DirectAlignment { offset: 0, .. }) => {
            return Err("the file system does not support direct I/O".to_owned());
        }
        Some(alignment) => [alignment; 2],
        // Not told: a trial decides.
        None => [smallest_block, 4096].map(|bytes| DirectAlignment {
            memory: bytes,
            offset: bytes,
        }),
    };
    let mut reason = String::new();
    for alignment in candidates {
        if !block_size.is_multiple_of(alignment.offset) {
            let needed = alignment.offset;
            reason = format!(
                "direct I/O here needs blocks of {needed} bytes, and the namespace's have {block_size}"
            );
            continue;
        }
        if alignment.memory as usize > ALIGNMENT {
            reason = format!(
                "direct I/O here needs memory aligned to {} bytes",
                alignment.memory
            );
            continue;
        }
        match trial_read(descriptor, block_size as usize, alignment.memory as usize) {
            Ok(()) => return Ok(alignment),
            Err(error) => reason = format!("a direct read of the first block failed ({error})"),
        }
    }
    Err(reason)
}

/// Reads the first block into memory that is aligned as told and no better.
fn trial_read(descriptor: &OwnedFd, block_size: usize, memory: usize) -> io::Result<()> {
    let mut buffer = Buffer::allocate(block_size + memory).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let block = buffer.get_mut(memory..memory + block_size).unwrap_or(&mut []);
    let read = nix::sys::uio::pread(descriptor, block, 0)?;
    if read == block_size {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Blocks between the boundaries of a device whose parts work separately (zones, stripes), if it tells.
fn chunk_of(device: u64, block_size: u32) -> Option<NonZeroU32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let base = Path::new("/sys/dev/block").join(OsString::from(format!("{major}:{minor}")));
    // A partition has no queue of its own; its disk, the folder above, has.
    let text = ["queue/chunk_sectors", "../queue/chunk_sectors"]
        .iter()
        .find_map(|name| fs::read_to_string(base.join(name)).ok())?;
    let sectors: u64 = text.trim().parse().ok()?;
    NonZeroU32::new(u32::try_from(sectors * 512 / u64::from(block_size)).ok()?)
}
