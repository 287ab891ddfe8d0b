//! [`Device`]: blocks on any path, and [`AnyQueue`]: a queue to them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use homi_fabric::host::NamespaceInfo;
use homi_local::{
    Backing, Drive, Drives, File, FileBackend, FileOptions, LocalQueue, NamespaceGeometry, NamespaceIds,
    OpenError, Passthrough, PassthroughError, PassthroughOptions, Ram, Registration,
};
use homi_queue::{Buffer, Command, CommandId, Completed, Data, Queue, QueueFull, QueueLost, Slot, Wait};

use crate::controller::Controller;
use crate::counters::Counters;
use crate::error::Error;
use crate::fabric::FabricQueue;
use crate::options::QueueOptions;
use crate::uri::Uri;

/// Blocks that one command covers at most (NLB is 16 bits, zero-based).
const MAX_BLOCKS: u32 = 65_536;

/// Bytes of one command at most, where nothing else limits it.
const MAX_TRANSFER: u32 = 32 << 20;

/// Blocks on any path: a namespace behind a fabric, a file, a device of this machine, or memory. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    uri: Uri,
    namespace: NamespaceInfo,
    path: Path,
}

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading and, where that is allowed, writing.
    Everything,
    /// Reading, beside others.
    Reading,
}

#[derive(Debug)]
enum Path {
    Fabric(Controller),
    Local(Backing),
}

impl Device {
    pub(crate) fn fabric(uri: Uri, controller: Controller, nsid: Option<u32>) -> Result<Self, Error> {
        let namespace = match nsid {
            Some(nsid) => controller.namespace(nsid)?,
            None => {
                let available = controller.namespace_ids()?;
                match available.as_slice() {
                    [only] => controller.namespace(*only)?,
                    [] => {
                        let controller =
                            format!("{} at {}", controller.info().subsystem_nqn, controller.address());
                        return Err(Error::NoNamespace {
                            nsid: 1,
                            controller,
                            available,
                        });
                    }
                    _ => {
                        let controller =
                            format!("{} at {}", controller.info().subsystem_nqn, controller.address());
                        return Err(Error::AmbiguousNamespace {
                            controller,
                            available,
                        });
                    }
                }
            }
        };
        if namespace.metadata_size != 0 {
            tracing::debug!(nsid = namespace.nsid, "metadata is left alone");
        }
        let uri = uri.with_nsid(namespace.nsid);
        Ok(Self {
            inner: Arc::new(Inner {
                uri,
                namespace,
                path: Path::Fabric(controller),
            }),
        })
    }

    pub(crate) fn local(mut uri: Uri, purpose: Purpose, drives: &Drives) -> Result<Self, Error> {
        let backing = open_backing(&uri, purpose, drives)?;
        let geometry = backing.geometry();
        let mut namespace = NamespaceInfo {
            nsid: 1,
            block_size: geometry.block_size(),
            metadata_size: 0,
            blocks: geometry.blocks(),
            nguid: None,
            eui64: None,
            uuid: None,
            read_only: geometry.read_only(),
            shared: false,
        };
        if let Backing::Passthrough(device) = &backing {
            let ids = device.ids();
            namespace.nsid = device.nsid();
            namespace.shared = device.shared();
            (namespace.nguid, namespace.eui64, namespace.uuid) = (ids.nguid, ids.eui64, ids.uuid);
        }
        if let Backing::Drive(drive) = &backing {
            let ids = drive.ids();
            namespace.nsid = drive.nsid();
            namespace.shared = drive.shared();
            (namespace.nguid, namespace.eui64, namespace.uuid) = (ids.nguid, ids.eui64, ids.uuid);
            uri = uri.with_nsid(drive.nsid());
        }
        Ok(Self {
            inner: Arc::new(Inner {
                uri,
                namespace,
                path: Path::Local(backing),
            }),
        })
    }

    /// Where it is, with its namespace id where it has one.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.inner.uri
    }

    /// The namespace as it was when the device was opened.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceInfo {
        &self.inner.namespace
    }

    /// Namespace id to put into commands; 1 on files and memory.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.inner.namespace.nsid
    }

    /// Bytes of a logical block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.inner.namespace.block_size
    }

    /// Number of logical blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.inner.namespace.blocks
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.namespace.bytes()
    }

    /// Largest transfer of one command in bytes: a whole number of blocks, at most 65536 of them.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        let limit = match &self.inner.path {
            Path::Fabric(controller) => controller.info().max_transfer.unwrap_or(MAX_TRANSFER),
            Path::Local(Backing::Passthrough(device)) => device.max_transfer(),
            Path::Local(Backing::Drive(drive)) => drive.max_transfer(),
            Path::Local(_) => MAX_TRANSFER,
        };
        let block = self.block_size();
        let most = limit.min(MAX_TRANSFER).min(block.saturating_mul(MAX_BLOCKS));
        (most / block).max(1) * block
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.inner.namespace.read_only
    }

    /// The association behind it; `None` for local executors.
    #[must_use]
    pub fn controller(&self) -> Option<&Controller> {
        match &self.inner.path {
            Path::Fabric(controller) => Some(controller),
            Path::Local(_) => None,
        }
    }

    /// The namespace behind the kernel's driver, if that is what it is.
    #[must_use]
    pub fn passthrough(&self) -> Option<&Passthrough> {
        match &self.inner.path {
            Path::Local(Backing::Passthrough(device)) => Some(device),
            Path::Fabric(_) | Path::Local(_) => None,
        }
    }

    /// The drive's namespace, if this process drives it itself.
    #[must_use]
    pub fn drive(&self) -> Option<&Drive> {
        match &self.inner.path {
            Path::Local(Backing::Drive(drive)) => Some(drive),
            Path::Fabric(_) | Path::Local(_) => None,
        }
    }

    /// What the namespace is known by, whatever the path to it; `None` for memory, and for files that are on no NVMe drive of this machine's.
    #[must_use]
    pub fn ids(&self) -> Option<NamespaceIds> {
        match &self.inner.path {
            Path::Fabric(controller) => Some(NamespaceIds {
                nsid: self.inner.namespace.nsid,
                serial: controller.info().serial.trim().to_owned(),
                uuid: self.inner.namespace.uuid,
                nguid: self.inner.namespace.nguid,
                eui64: self.inner.namespace.eui64,
            }),
            Path::Local(Backing::Passthrough(device)) => Some(device.ids().clone()),
            Path::Local(Backing::Drive(drive)) => Some(drive.ids().clone()),
            Path::Local(Backing::File(file)) => {
                homi_local::namespace_at(file.path()).map(|namespace| namespace.ids)
            }
            Path::Local(Backing::Ram(_)) => None,
        }
    }

    /// Asks for data in memory of a device (a dma-buf) without a copy in host memory. There is no path yet on which a [`Region`](homi_queue::Region) of such
    /// memory can be had from here; the answer says what the kernel or this path lacks, and nothing is copied instead.
    ///
    /// # Errors
    /// [`Error::DmaBuf`] with what is missing, or [`Error::Unsupported`] over fabrics.
    pub fn request_dma_buf(&self, buffer: BorrowedFd<'_>) -> Result<(), Error> {
        match &self.inner.path {
            Path::Fabric(_) => Err(Error::Unsupported(format!(
                "{}: data in a dma-buf is not supported over fabrics yet: use memory of this process",
                self.inner.uri
            ))),
            Path::Local(backing) => Ok(backing.request_dma_buf(buffer)?),
        }
    }

    /// A queue to it, for the calling thread or one that it is given to.
    ///
    /// # Errors
    /// [`Error`], as for a connection.
    pub fn queue(&self, options: QueueOptions) -> Result<AnyQueue, Error> {
        match &self.inner.path {
            Path::Fabric(controller) => controller
                .queue(options)
                .map(|queue| AnyQueue::Fabric(Box::new(queue))),
            Path::Local(backing) => backing
                .open_queue_with(options.depth.max(1), FileBackend::Auto, Registration::Automatic)
                .map(AnyQueue::Local)
                .map_err(|error| Error::io(format!("cannot open a queue to {}", self.inner.uri), error)),
        }
    }
}

fn open_backing(uri: &Uri, purpose: Purpose, drives: &Drives) -> Result<Backing, Error> {
    let read_only = purpose == Purpose::Reading;
    match uri {
        Uri::Kernel { path } => {
            let options = PassthroughOptions::new(path).read_only(read_only);
            match Passthrough::open(&options) {
                // What may only be read can still be read.
                Err(PassthroughError::PermissionDenied { .. }) if !read_only => {
                    Ok(Passthrough::open(&options.read_only(true))?.into())
                }
                opened => Ok(opened?.into()),
            }
        }
        Uri::Pci { address, nsid } => Ok(drives.open(*address, *nsid)?.with_read_only(read_only).into()),
        Uri::File { path, block_size } => {
            let options = FileOptions::new(path)
                .block_size(*block_size)
                .read_only(read_only);
            match File::open(&options) {
                Ok(file) => Ok(file.into()),
                Err(OpenError::PermissionDenied { .. } | OpenError::ReadOnlyFileSystem { .. })
                    if !read_only =>
                {
                    Ok(File::open(&options.read_only(true))?.into())
                }
                Err(OpenError::NotStorage { path, .. }) if is_generic(&path) => {
                    let path = path.display();
                    Err(Error::Unsupported(format!(
                        "{path} takes NVMe commands, not reads and writes: use nvme+kernel://{path}"
                    )))
                }
                Err(error) => Err(error.into()),
            }
        }
        Uri::Ram { size, block_size } => {
            let geometry = NamespaceGeometry::from_bytes(*block_size, *size)?;
            Ok(Ram::new(geometry.with_read_only(read_only))?.into())
        }
        Uri::Fabric(_) => Err(Error::Unsupported(format!("{uri} is not local"))),
    }
}

/// Whether the path is that of a namespace's generic character device.
fn is_generic(path: &std::path::Path) -> bool {
    homi_local::namespace_at(path).is_some_and(|namespace| namespace.block != path)
}

/// A queue of any executor.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyQueue {
    /// A connection to a controller.
    Fabric(Box<FabricQueue>),
    /// A file, a device of this machine, or memory.
    Local(LocalQueue),
}

macro_rules! either {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            Self::Fabric($queue) => $call,
            Self::Local($queue) => $call,
        }
    };
}

impl AnyQueue {
    /// What the queue has done so far, where it counts (fabric queues do).
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        match self {
            Self::Fabric(queue) => Some(queue.counters()),
            Self::Local(_) => None,
        }
    }

    /// How many system calls the queue has made for I/O so far.
    #[must_use]
    pub fn system_calls(&self) -> u64 {
        match self {
            Self::Fabric(queue) => queue.counters().system_calls(),
            Self::Local(queue) => queue.counters().system_calls,
        }
    }

    /// How long a caller may sleep on [`Wait::wait_descriptor`] before it must poll again, so that a command that takes too long is
    /// noticed; `None` while that does not matter.
    #[must_use]
    pub fn wait_limit(&self) -> Option<Duration> {
        match self {
            Self::Fabric(queue) => queue.wait_limit(),
            Self::Local(_) => None,
        }
    }
}

impl Queue for AnyQueue {
    fn depth(&self) -> u16 {
        either!(self, queue => queue.depth())
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        either!(self, queue => queue.reserve())
    }

    fn release(&mut self, slot: Slot) {
        either!(self, queue => queue.release(slot));
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        either!(self, queue => queue.submit(slot, command, data))
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        either!(self, queue => queue.commit())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        either!(self, queue => queue.poll(completed))
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        either!(self, queue => queue.take_back(data))
    }
}

impl Wait for AnyQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        either!(self, queue => queue.wait_descriptor())
    }

    fn waits_for_room(&self) -> bool {
        either!(self, queue => queue.waits_for_room())
    }
}
