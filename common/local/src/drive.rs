//! [`Drive`]: a namespace of an NVMe drive that this process drives itself.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use homi_nvme::{Cmb, Controller, Interrupts, NvmeError, Options, QueueOptions, State};
use homi_pci::{PciAddress, PciError, PciFunction};
use homi_queue::Region;
use homi_spec::identify::{Cns, DATA_SIZE, Identify};

use crate::describe::{Description, Unfit};
use crate::drive_queue::DriveQueue;
use crate::drives::{Attached, Home, attach};
use crate::geometry::{GeometryError, NamespaceGeometry};
use crate::kernel::NamespaceIds;

/// Bytes of one device command at most, where the controller has no limit.
const MAX_TRANSFER: u64 = 4 << 20;

/// Why a namespace of a drive cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The function cannot be had: not bound to VFIO, no permission, no IOMMU, gone.
    #[error("{address}: {source}")]
    Function {
        /// Where it is.
        address: PciAddress,
        /// What is missing, and what to do about it.
        source: PciError,
    },
    /// The function is no NVMe controller.
    #[error("{name} is no nvme drive: its class is {class:06x}, that of drives 010802")]
    NotDrive {
        /// The function.
        name: String,
        /// Its class code.
        class: u32,
    },
    /// The controller does not work.
    #[error("{name}: {source}")]
    Controller {
        /// The function.
        name: String,
        /// What it did not do.
        source: NvmeError,
    },
    /// It has no such namespace.
    #[error("{name} has no namespace {nsid}; it has {}", list(.available))]
    NoNamespace {
        /// The function.
        name: String,
        /// What was asked for.
        nsid: u32,
        /// What there is.
        available: Vec<u32>,
    },
    /// It has several namespaces, and none was chosen.
    #[error("{name} has the namespaces {}: choose one", list(.available))]
    Ambiguous {
        /// The function.
        name: String,
        /// What there is.
        available: Vec<u32>,
    },
    /// The namespace cannot be used.
    #[error("namespace {nsid} of {name} {reason}")]
    Unfit {
        /// The function.
        name: String,
        /// Which namespace.
        nsid: u32,
        /// Why not, and what to do.
        reason: String,
    },
    /// The namespace's blocks are not of a size that is served.
    #[error("namespace {nsid} of {name}: {source}")]
    Geometry {
        /// The function.
        name: String,
        /// Which namespace.
        nsid: u32,
        /// What is wrong.
        source: GeometryError,
    },
}

fn list(nsids: &[u32]) -> String {
    if nsids.is_empty() {
        return "none".to_owned();
    }
    let nsids: Vec<String> = nsids.iter().map(u32::to_string).collect();
    nsids.join(", ")
}

/// A namespace of a drive that this process drives itself. Cloning shares it.
#[derive(Clone)]
pub struct Drive {
    attached: Arc<Attached>,
    description: Arc<Description>,
    nsid: u32,
    geometry: NamespaceGeometry,
}

impl Drive {
    /// A namespace of any function's controller, which is taken over.
    ///
    /// # Errors
    /// As [`Drives::open`](crate::Drives::open).
    pub fn take_over(
        function: Arc<dyn PciFunction>,
        nsid: Option<u32>,
        options: Options,
    ) -> Result<Self, DriveError> {
        Self::of(attach(function, options, &Home::default())?, nsid)
    }

    /// Another namespace of the same controller.
    ///
    /// # Errors
    /// As [`Drives::open`](crate::Drives::open).
    pub fn sibling(&self, nsid: u32) -> Result<Self, DriveError> {
        Self::of(Arc::clone(&self.attached), Some(nsid))
    }

    pub(crate) fn of(attached: Arc<Attached>, nsid: Option<u32>) -> Result<Self, DriveError> {
        let (controller, name) = (&attached.controller, attached.name.clone());
        let failed = |source| DriveError::Controller {
            name: name.clone(),
            source,
        };
        let namespaces = controller.namespaces();
        let available = namespaces.iter().map(homi_nvme::Namespace::nsid).collect();
        let namespace = match (nsid, namespaces.as_slice()) {
            (None, [only]) => only,
            (None, []) => {
                return Err(DriveError::NoNamespace {
                    name,
                    nsid: 1,
                    available,
                });
            }
            (None, _) => return Err(DriveError::Ambiguous { name, available }),
            (Some(nsid), all) => match all.iter().find(|namespace| namespace.nsid() == nsid) {
                Some(namespace) => namespace,
                None => {
                    return Err(DriveError::NoNamespace {
                        name,
                        nsid,
                        available,
                    });
                }
            },
        };
        let nsid = namespace.nsid();
        let info = controller.info().map_err(failed)?;
        // Controllers from before 1.3 have no such list.
        let asked = Identify::namespace(Cns::NAMESPACE_DESCRIPTORS, nsid);
        let descriptors: Option<[u8; DATA_SIZE]> = controller.identify(asked).ok();
        let descriptors = descriptors.as_ref().map(<[u8; DATA_SIZE]>::as_slice);
        let unfit = |reason| DriveError::Unfit {
            name: name.clone(),
            nsid,
            reason,
        };
        let description = Description::new(nsid, info.identify(), namespace.identify(), descriptors)
            .map_err(|error| match error {
                Unfit::Page(reason) => unfit(format!("is described in a way that cannot be meant: {reason}")),
                Unfit::Metadata(bytes) => unfit(format!(
                    "has {bytes} bytes of metadata with each block, which is not supported: format it without"
                )),
                Unfit::CommandSet(set) => {
                    unfit(format!("has the command set {set}, not the one of blocks (NVM)"))
                }
                Unfit::Geometry(source) => DriveError::Geometry {
                    name: name.clone(),
                    nsid,
                    source,
                },
            })?;
        let geometry = description.geometry;
        Ok(Self {
            attached,
            description: Arc::new(description),
            nsid,
            geometry,
        })
    }

    /// The same namespace, in which commands that change it are refused here if `read_only`.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Self {
        self.geometry = self
            .geometry
            .with_read_only(read_only || self.description.geometry.read_only());
        self
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        &self.geometry
    }

    /// The namespace's identifier on its controller, which every command gets.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// The function: its PCI address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.attached.name
    }

    /// Largest transfer of one device command in bytes. Reads, writes and compares that are longer are executed in parts.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        let info = self.attached.controller.info();
        let limit = info.map_or(MAX_TRANSFER, |info| info.max_transfer());
        u32::try_from(limit.min(MAX_TRANSFER)).unwrap_or(u32::MAX)
    }

    /// What it can be known by.
    #[must_use]
    pub fn ids(&self) -> &NamespaceIds {
        &self.description.ids
    }

    /// Whether several controllers may reach it.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.description.shared
    }

    /// The controller's model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.description.model
    }

    /// The controller's firmware.
    #[must_use]
    pub fn firmware(&self) -> &str {
        &self.description.firmware
    }

    /// Whether what was written may be lost with power before a Flush.
    #[must_use]
    pub fn volatile_write_cache(&self) -> bool {
        let info = self.attached.controller.info();
        // One that cannot be asked now is taken for the careful case.
        info.map_or(true, |info| info.identify().vwc & 1 != 0)
    }

    /// The page that Identify Controller (CNS 01h) returns.
    ///
    /// # Errors
    /// [`DriveError::Controller`].
    pub fn identify_controller(&self) -> Result<[u8; DATA_SIZE], DriveError> {
        self.identify(Identify::controller())
    }

    /// The page that Identify Namespace (CNS 00h) returns.
    ///
    /// # Errors
    /// [`DriveError::Controller`].
    pub fn identify_namespace(&self) -> Result<[u8; DATA_SIZE], DriveError> {
        self.identify(Identify::namespace(Cns::NAMESPACE, self.nsid))
    }

    fn identify(&self, asked: Identify) -> Result<[u8; DATA_SIZE], DriveError> {
        let page = self.attached.controller.identify(asked);
        page.map_err(|source| DriveError::Controller {
            name: self.attached.name.clone(),
            source,
        })
    }

    /// The controller, for what goes beyond one namespace.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.attached.controller
    }

    /// The controller's memory buffer, which is turned on by the first call.
    ///
    /// # Errors
    /// [`DriveError::Controller`] with what it lacks.
    pub fn cmb(&self) -> Result<Cmb, DriveError> {
        let failed = |source| DriveError::Controller {
            name: self.attached.name.clone(),
            source,
        };
        self.attached.controller.cmb().map_err(failed)
    }

    /// The controller's memory buffer as a dma-buf, for other drivers to import.
    ///
    /// # Errors
    /// [`DriveError::Controller`] with what it, the kernel or the function lacks.
    pub fn export_cmb(&self) -> Result<OwnedFd, DriveError> {
        let failed = |source| DriveError::Controller {
            name: self.attached.name.clone(),
            source,
        };
        self.attached.controller.export_cmb().map_err(failed)
    }

    /// Makes a region reachable for the controller and all its queues, until the result is dropped.
    ///
    /// # Errors
    /// [`DriveError::Controller`].
    pub fn map(&self, region: &Region) -> Result<homi_nvme::Mapped, DriveError> {
        let failed = |source| DriveError::Controller {
            name: self.attached.name.clone(),
            source,
        };
        self.attached.controller.map(region).map_err(failed)
    }

    pub(crate) fn attached(&self) -> &Arc<Attached> {
        &self.attached
    }

    /// Whether both are namespaces of one controller, so that one queue serves both.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.attached, &other.attached)
    }

    /// Whether a queue can be opened without waiting for more than the controller's answers: it works, and is not being reset.
    pub(crate) fn is_ready(&self) -> bool {
        // The thread that looks after it has it for a moment now and then.
        (0..20).any(|_| {
            let state = self.attached.controller.try_state();
            if state.is_none() {
                thread::sleep(Duration::from_micros(100));
            }
            matches!(state, Some(State::Ready))
        })
    }

    /// The same as [`Drive::open_queue`] for threads that have other work: a controller that is being reset is not waited for.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] then, else as [`Drive::open_queue`].
    pub fn open_queue_now(&self, depth: u16) -> io::Result<DriveQueue> {
        if !self.is_ready() {
            let text = format!("{} is being reset, or failed", self.attached.name);
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        self.open_queue(depth)
    }

    /// A queue pair of the drive for up to `depth` commands in flight: with an interrupt to sleep on where one is left, polled otherwise.
    ///
    /// # Errors
    /// Why the controller has none left, as an error of the system.
    pub fn open_queue(&self, depth: u16) -> io::Result<DriveQueue> {
        self.open_pair(depth)
            .map_err(|error| io::Error::other(format!("{}: {error}", self.attached.name)))
    }

    pub(crate) fn open_pair(&self, depth: u16) -> Result<DriveQueue, NvmeError> {
        let controller = &self.attached.controller;
        let wanted = QueueOptions::new(depth);
        let queue = match controller.open_queue(wanted.interrupts(Interrupts::On)) {
            Err(NvmeError::NoVectors { .. }) => controller.open_queue(wanted)?,
            opened => opened?,
        };
        Ok(DriveQueue::new(self.clone(), queue))
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("name", &self.attached.name)
            .field("nsid", &self.nsid)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}
