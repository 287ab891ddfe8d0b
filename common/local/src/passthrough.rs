//! [`Passthrough`]: a namespace behind the kernel's own NVMe driver, opened by its generic character device.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use homi_queue::{Command, Data, MemoryError, Region};
use homi_reactor::nvme::{self, AdminError, NvmeOperation, NvmeRing, NvmeRingError, Registration};
use homi_spec::identify::{Cns, DATA_SIZE, Identify, IdentifyController, IdentifyNamespace};
use homi_spec::status::Status;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::FromBytes;

use crate::bounce::ALIGNMENT;
use crate::describe::{Description, Unfit};
use crate::geometry::{GeometryError, NamespaceGeometry};
use crate::kernel::{self, KernelNamespace, NamespaceIds};
use crate::passthrough_queue::PassthroughQueue;

/// How long an Identify may take.
const IDENTIFY_LIMIT: Duration = Duration::from_secs(10);
/// How long the trial read may take: as long as the driver's own limit for a command.
const TRIAL_LIMIT: Duration = Duration::from_secs(30);
/// Memory page of the host, in which the driver describes memory.
const PAGE: u32 = 4096;
/// Largest transfer where neither the kernel nor the controller says one.
const USUAL_TRANSFER: u32 = 128 << 10;

/// What is to be opened, and how.
#[derive(Debug, Clone)]
pub struct PassthroughOptions {
    path: PathBuf,
    read_only: bool,
    unchecked: bool,
    exclusive: bool,
}

impl PassthroughOptions {
    /// The namespace behind this generic character device (`/dev/ng0n1`): writable, shared with whoever else uses it, for the
    /// commands whose length can be checked.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            unchecked: false,
            exclusive: false,
        }
    }

    /// Whether commands that change the namespace are refused here.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether commands go through whose transfer length this executor does not know (vendor specific ones, and those of other
    /// command sets). The controller moves what the command says, also past the end of the memory given with it: whoever
    /// submits such commands answers for their length. Others always complete with Invalid Command Opcode.
    #[must_use]
    pub fn unchecked_commands(mut self, unchecked: bool) -> Self {
        self.unchecked = unchecked;
        self
    }

    /// Whether the namespace's block device is claimed meanwhile, so that nobody mounts it; opening fails where
    /// somebody has.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }
}

/// Why a namespace cannot be reached through the kernel's driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassthroughError {
    /// Nothing there.
    #[error("{path} does not exist: `ls /dev/ng*` shows the namespaces that the kernel's driver has")]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The process may not open it, or may not pass commands on it.
    #[error("{path} does not let this process pass commands: run as root, or open the device's permissions")]
    PermissionDenied {
        /// The path.
        path: PathBuf,
    },
    /// It is a block device.
    #[error("{path} is a block device, which takes no commands: use {}", instead(.generic))]
    BlockDevice {
        /// The path.
        path: PathBuf,
        /// The generic character device of the same namespace.
        generic: Option<PathBuf>,
    },
    /// It is something else.
    #[error("{path} is no generic character device of an NVMe namespace: name one such as /dev/ng0n1")]
    NotNamespace {
        /// The path.
        path: PathBuf,
    },
    /// Its block device is mounted or claimed.
    #[error("{block}, the same namespace as {path}, is in use: unmount it or stop what uses it")]
    InUse {
        /// The path.
        path: PathBuf,
        /// The block device.
        block: PathBuf,
    },
    /// The kernel or its io_uring lacks something.
    #[error("{path}: {source}")]
    Ring {
        /// The path.
        path: PathBuf,
        /// What is missing.
        source: NvmeRingError,
    },
    /// The kernel's driver takes no commands through io_uring.
    #[error(
        "the kernel's driver of {path} takes no commands through io_uring ({source}), which Linux 5.19 does: use a newer kernel, or the block device"
    )]
    NoCommands {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Blocks carry metadata, which the executor has no place for.
    #[error(
        "the blocks of {path} have {bytes} bytes of metadata each, which is not supported: format it without (`nvme format --lbaf`)"
    )]
    Metadata {
        /// The path.
        path: PathBuf,
        /// Bytes per block.
        bytes: u16,
    },
    /// The namespace is not one of blocks.
    #[error("{path} has the command set {set}, not the one of blocks (NVM)")]
    CommandSet {
        /// The path.
        path: PathBuf,
        /// Its command set identifier.
        set: u8,
    },
    /// Its blocks are not of a size that is served.
    #[error("{path}: {source}")]
    Geometry {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: GeometryError,
    },
    /// The controller did not describe the namespace.
    #[error("cannot identify the {what} of {path}: {source}")]
    Identify {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: AdminError,
    },
    /// The page that describes it cannot be meant.
    #[error("the {what} of {path} is described in a way that cannot be meant: {reason}")]
    Page {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// No memory for asking.
    #[error(transparent)]
    Memory(#[from] MemoryError),
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

fn instead(generic: &Option<PathBuf>) -> String {
    match generic {
        Some(path) => format!("{}, the character device of the same namespace", path.display()),
        None => "the namespace's character device (/dev/ng…)".to_owned(),
    }
}

/// A namespace behind the kernel's NVMe driver, shared by the queues on it.
#[derive(Clone)]
pub struct Passthrough(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) descriptor: Arc<OwnedFd>,
    pub(crate) geometry: NamespaceGeometry,
    pub(crate) nsid: u32,
    pub(crate) max_transfer: u32,
    pub(crate) unchecked: bool,
    pub(crate) path: PathBuf,
    ids: NamespaceIds,
    shared: bool,
    model: String,
    firmware: String,
    kernel: Option<KernelNamespace>,
    /// Keeps the block device claimed.
    _claim: Option<fs::File>,
}

impl Passthrough {
    /// Opens a namespace: asks the controller what it looks like, and tries a read of its first block through io_uring, so that
    /// whatever is missing is told now.
    ///
    /// # Errors
    /// [`PassthroughError`], which names what is missing.
    pub fn open(options: &PassthroughOptions) -> Result<Self, PassthroughError> {
        let path = &options.path;
        let failed = |action| {
            move |source| PassthroughError::Io {
                path: path.clone(),
                action,
                source,
            }
        };
        // Looked at before it is opened, because opening some devices has effects.
        let metadata = fs::metadata(path).map_err(|error| refused(path, error))?;
        if metadata.file_type().is_block_device() {
            return Err(PassthroughError::BlockDevice {
                path: path.clone(),
                generic: kernel::namespace_at(path).and_then(|namespace| namespace.generic),
            });
        }
        if !metadata.file_type().is_char_device() {
            return Err(PassthroughError::NotNamespace { path: path.clone() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| refused(path, error))?;
        if file.metadata().map_err(failed("examine"))?.rdev() != metadata.rdev() {
            return Err(failed("open")(io::Error::from(
                io::ErrorKind::StaleNetworkFileHandle,
            )));
        }
        let descriptor = OwnedFd::from(file);
        let nsid = match nvme::namespace_id(descriptor.as_fd()) {
            // Controllers' own devices answer with an error as well.
            Ok(nsid) if nsid != 0 && nsid != u32::MAX => nsid,
            Ok(_) => return Err(PassthroughError::NotNamespace { path: path.clone() }),
            Err(error) => {
                return Err(match error.raw_os_error() {
                    Some(libc::ENOTTY | libc::EINVAL) => {
                        PassthroughError::NotNamespace { path: path.clone() }
                    }
                    _ => failed("ask for the namespace of")(error),
                });
            }
        };
        let kernel = kernel::namespace_at(path);
        let claim = match (&kernel, options.exclusive) {
            (Some(namespace), true) => Some(claim(path, &namespace.block)?),
            _ => None,
        };
        let described = describe(path, &descriptor, nsid)?;
        let geometry = described
            .geometry
            .with_read_only(options.read_only || described.geometry.read_only());
        let max_transfer = max_transfer(&geometry, described.max_transfer, kernel.as_ref());
        let inner = Inner {
            descriptor: Arc::new(descriptor),
            geometry,
            nsid,
            max_transfer,
            unchecked: options.unchecked,
            path: path.clone(),
            ids: described.ids,
            shared: described.shared,
            model: described.model,
            firmware: described.firmware,
            kernel,
            _claim: claim,
        };
        inner.try_read()?;
        Ok(Self(Arc::new(inner)))
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

    /// The namespace's identifier on its controller, which every command gets.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.0.nsid
    }

    /// Largest transfer of one command in bytes, by the controller's and the kernel's limits. Reads, writes and compares that are longer
    /// are executed in parts.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        self.0.max_transfer
    }

    /// What it can be known by.
    #[must_use]
    pub fn ids(&self) -> &NamespaceIds {
        &self.0.ids
    }

    /// Whether several controllers may reach it.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.0.shared
    }

    /// The controller's model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.0.model
    }

    /// The controller's firmware.
    #[must_use]
    pub fn firmware(&self) -> &str {
        &self.0.firmware
    }

    /// What the kernel knows it as, with its block device.
    #[must_use]
    pub fn kernel(&self) -> Option<&KernelNamespace> {
        self.0.kernel.as_ref()
    }

    /// The page that Identify Controller (CNS 01h) returns.
    ///
    /// # Errors
    /// [`PassthroughError::Identify`].
    pub fn identify_controller(&self) -> Result<[u8; DATA_SIZE], PassthroughError> {
        identify(
            &self.0.path,
            &self.0.descriptor,
            Identify::controller(),
            "controller",
        )
    }

    /// The page that Identify Namespace (CNS 00h) returns.
    ///
    /// # Errors
    /// [`PassthroughError::Identify`].
    pub fn identify_namespace(&self) -> Result<[u8; DATA_SIZE], PassthroughError> {
        let asked = Identify::namespace(Cns::NAMESPACE, self.0.nsid);
        identify(&self.0.path, &self.0.descriptor, asked, "namespace")
    }

    /// A namespace whose every command succeeds without effect.
    #[cfg(test)]
    pub(crate) fn null(geometry: NamespaceGeometry, max_transfer: u32, unchecked: bool) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        Self(Arc::new(Inner {
            descriptor: Arc::new(file.into()),
            geometry,
            nsid: 7,
            max_transfer,
            unchecked,
            path: PathBuf::from("/dev/null"),
            ids: NamespaceIds::default(),
            shared: false,
            model: String::new(),
            firmware: String::new(),
            kernel: None,
            _claim: None,
        }))
    }

    /// A queue on it for up to `depth` commands in flight.
    ///
    /// # Errors
    /// What is missing, as an error of the system.
    pub fn open_queue(&self, depth: u16, registration: Registration) -> io::Result<PassthroughQueue> {
        PassthroughQueue::new(self.clone(), depth, registration)
    }
}

impl fmt::Debug for Passthrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passthrough")
            .field("path", &self.0.path)
            .field("nsid", &self.0.nsid)
            .field("geometry", &self.0.geometry)
            .field("max_transfer", &self.0.max_transfer)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Reads the first block: whether commands pass is not told in any other way. What the controller makes of it does not matter.
    fn try_read(&self) -> Result<(), PassthroughError> {
        let path = || self.path.clone();
        let io = |source| PassthroughError::Io {
            path: path(),
            action: "read the first block of",
            source,
        };
        let mut ring = NvmeRing::new(1, self.descriptor.clone(), self.nsid, Registration::Explicit)
            .map_err(|source| PassthroughError::Ring { path: path(), source })?;
        let len = self.geometry.block_size() as usize;
        let data = Data::whole(Region::allocate(len, ALIGNMENT)?);
        let read = NvmeOperation {
            token: 0,
            command: Command::read(self.nsid, 0, 1),
            data,
            part: 0..len,
            lasting: false,
        };
        ring.push(read)
            .map_err(|refused| io(io::Error::other(refused.reason)))?;
        ring.submit().map_err(io)?;
        let deadline = Instant::now() + TRIAL_LIMIT;
        let mut answer = None;
        while answer.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io(io::ErrorKind::TimedOut.into()));
            }
            ring.poll(&mut |_, outcome, _| answer = Some(outcome))
                .map_err(io)?;
            if answer.is_none() {
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                // Woken or not, the next look decides.
                let _ = poll(
                    &mut [PollFd::new(ring.wait_descriptor(), PollFlags::POLLIN)],
                    timeout,
                );
            }
        }
        match answer {
            Some(Err(source)) => Err(match source.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY) => {
                    PassthroughError::NoCommands { path: path(), source }
                }
                Some(libc::EACCES | libc::EPERM) => PassthroughError::PermissionDenied { path: path() },
                _ => io(source),
            }),
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

/// What the controller says.
/// Asks the controller what the namespace looks like.
fn describe(path: &Path, device: &OwnedFd, nsid: u32) -> Result<Description, PassthroughError> {
    let page = identify(path, device, Identify::controller(), "controller")?;
    let controller = parse::<IdentifyController>(path, &page, "controller")?;
    let page = identify(
        path,
        device,
        Identify::namespace(Cns::NAMESPACE, nsid),
        "namespace",
    )?;
    let namespace = parse::<IdentifyNamespace>(path, &page, "namespace")?;
    // Controllers from before 1.3 have no such list.
    let asked = Identify::namespace(Cns::NAMESPACE_DESCRIPTORS, nsid);
    let descriptors = identify(path, device, asked, "descriptors").ok();
    let descriptors = descriptors.as_ref().map(<[u8; DATA_SIZE]>::as_slice);
    let path = path.to_owned();
    Description::new(nsid, &controller, &namespace, descriptors).map_err(|unfit| match unfit {
        Unfit::Page(reason) => PassthroughError::Page {
            path,
            what: "namespace",
            reason,
        },
        Unfit::Metadata(bytes) => PassthroughError::Metadata { path, bytes },
        Unfit::CommandSet(set) => PassthroughError::CommandSet { path, set },
        Unfit::Geometry(source) => PassthroughError::Geometry { path, source },
    })
}

/// The largest transfer: the controller's limit, or the kernel's, which may be smaller because the driver describes so many pages of memory at
/// most, in whole blocks.
fn max_transfer(
    geometry: &NamespaceGeometry,
    controller: Option<u32>,
    kernel: Option<&KernelNamespace>,
) -> u32 {
    let block = geometry.block_size();
    let mut limit = controller.unwrap_or(u32::MAX);
    match kernel.and_then(|namespace| namespace.limits) {
        Some(limits) => {
            // Memory that does not begin with a page takes one more.
            let pages = limits.max_segments.saturating_sub(1).max(1);
            limit = limit.min(limits.max_bytes).min(pages.saturating_mul(PAGE));
        }
        None => limit = limit.min(USUAL_TRANSFER),
    }
    // NLB is 16 bits, zero-based.
    let limit = limit.min(block.saturating_mul(65536));
    (limit / block).max(1) * block
}

fn identify(
    path: &Path,
    device: &OwnedFd,
    asked: Identify,
    what: &'static str,
) -> Result<[u8; DATA_SIZE], PassthroughError> {
    let mut page = [0; DATA_SIZE];
    let command = Command(asked.to_sqe(0));
    match nvme::admin(device.as_fd(), &command, &mut page, IDENTIFY_LIMIT) {
        Ok(_) => Ok(page),
        Err(AdminError::System(error))
            if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) =>
        {
            Err(PassthroughError::PermissionDenied {
                path: path.to_owned(),
            })
        }
        Err(source) => Err(PassthroughError::Identify {
            path: path.to_owned(),
            what,
            source,
        }),
    }
}

fn parse<T: FromBytes>(path: &Path, page: &[u8], what: &'static str) -> Result<T, PassthroughError> {
    T::read_from_prefix(page)
        .map(|(value, _)| value)
        .map_err(|_| PassthroughError::Page {
            path: path.to_owned(),
            what,
            reason: "the page is too short",
        })
}

/// Claims the block device of the same namespace.
fn claim(path: &Path, block: &Path) -> Result<fs::File, PassthroughError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(block)
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY) => PassthroughError::InUse {
                path: path.to_owned(),
                block: block.to_owned(),
            },
            _ => refused(block, error),
        })
}

/// What opening said, as an error that says what to change.
fn refused(path: &Path, source: io::Error) -> PassthroughError {
    let path = path.to_owned();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR) => PassthroughError::NotFound { path },
        Some(Errno::EACCES | Errno::EPERM) => PassthroughError::PermissionDenied { path },
        _ => PassthroughError::Io {
            path,
            action: "open",
            source,
        },
    }
}

/// What the kernel said instead of passing a command, as a status of the command.
pub(crate) fn status_of(error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Status::OPERATION_DENIED.with_dnr(),
        // The kernel does not describe the memory, or does not know the command.
        Some(libc::EINVAL | libc::EMSGSIZE | libc::E2BIG) => Status::INVALID_FIELD.with_dnr(),
        Some(libc::EOPNOTSUPP | libc::ENOTTY) => Status::INVALID_OPCODE.with_dnr(),
        Some(libc::EFAULT) => Status::DATA_TRANSFER_ERROR,
        // The driver gave up on it: a time-out, a reset, a removal.
        Some(libc::EINTR | libc::ECANCELED) => Status::HOST_ABORTED,
        Some(libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ENOLINK | libc::EIO) => {
            Status::HOST_PATH_ERROR
        }
        _ => Status::INTERNAL_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::TransferLimits;

    fn error_of(path: &str) -> PassthroughError {
        Passthrough::open(&PassthroughOptions::new(path)).unwrap_err()
    }

    #[test]
    fn what_is_no_namespace_is_refused_with_what_to_use() {
        assert!(matches!(
            error_of("/does/not/exist"),
            PassthroughError::NotFound { .. }
        ));
        for path in ["/dev/null", "/dev/zero", "/proc/self/exe", "/tmp"] {
            let error = error_of(path);
            assert!(
                matches!(error, PassthroughError::NotNamespace { .. }),
                "{path}: {error}"
            );
            assert!(error.to_string().contains("/dev/ng0n1"), "{error}");
        }
    }

    #[test]
    fn transfers_are_as_long_as_controller_and_kernel_allow() {
        let geometry = NamespaceGeometry::new(4096, 100).unwrap();
        let kernel = |max_bytes, max_segments| KernelNamespace {
            limits: Some(TransferLimits {
                max_bytes,
                max_segments,
            }),
            ..KernelNamespace::default()
        };
        assert_eq!(max_transfer(&geometry, Some(64 << 10), None), 64 << 10);
        assert_eq!(max_transfer(&geometry, None, None), USUAL_TRANSFER);
        let wide = kernel(512 << 10, 1000);
        assert_eq!(max_transfer(&geometry, Some(1 << 20), Some(&wide)), 512 << 10);
        assert_eq!(max_transfer(&geometry, Some(64 << 10), Some(&wide)), 64 << 10);
        let few = kernel(512 << 10, 127);
        assert_eq!(max_transfer(&geometry, None, Some(&few)), 126 * 4096);
        let one = kernel(512, 1);
        assert_eq!(max_transfer(&geometry, None, Some(&one)), 4096);
    }

    #[test]
    fn errors_of_the_system_are_statuses_of_their_kind() {
        let of = |number| status_of(&io::Error::from_raw_os_error(number));
        assert!(of(libc::EACCES).is(Status::OPERATION_DENIED));
        assert!(of(libc::EINVAL).is(Status::INVALID_FIELD));
        assert!(of(libc::EINTR).is(Status::HOST_ABORTED));
        assert!(of(libc::ENODEV).is(Status::HOST_PATH_ERROR));
        assert!(of(libc::ENOMEM).is(Status::INTERNAL_ERROR));
    }
}
