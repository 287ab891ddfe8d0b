//! [`Device`]: blocks on any path, and [`AnyQueue`]: a queue to them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use homi_fabric::host::NamespaceInfo;
use homi_local::{Backing, File, FileBackend, FileOptions, LocalQueue, NamespaceGeometry, OpenError, Ram};
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

    pub(crate) fn local(uri: Uri) -> Result<Self, Error> {
        let backing: Backing = match &uri {
            Uri::File { path, block_size } => {
                let options = FileOptions::new(path).block_size(*block_size);
                match File::open(&options) {
                    Ok(file) => file.into(),
                    // What may only be read can still be read.
                    Err(OpenError::PermissionDenied { .. } | OpenError::ReadOnlyFileSystem { .. }) => {
                        File::open(&options.read_only(true))?.into()
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Uri::Ram { size, block_size } => {
                Ram::new(NamespaceGeometry::from_bytes(*block_size, *size)?)?.into()
            }
            Uri::Fabric(_) => return Err(Error::Unsupported(format!("{uri} is not local"))),
        };
        let geometry = backing.geometry();
        let namespace = NamespaceInfo {
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

    /// Namespace id to put into commands; 1 on local executors.
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
                .open_queue(options.depth.max(1), FileBackend::Auto)
                .map(AnyQueue::Local)
                .map_err(|error| Error::io(format!("cannot open a queue to {}", self.inner.uri), error)),
        }
    }
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
