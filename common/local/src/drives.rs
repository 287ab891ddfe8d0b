//! [`Drives`]: the controllers that a process has taken over.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use homi_nvme::{Controller, Options, QueueStatus, State, SystemClock, Watch};
use homi_pci::{PciAddress, PciFunction, PciIdentity};
use homi_vfio::{Container, Way};

use crate::drive::{Drive, DriveError};
use crate::keeper::Keeper;
use crate::reachable::{Reached, Shared};

/// How drives are taken over.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DriveOptions {
    /// How the kernel is asked for functions.
    pub way: Way,
    /// How their controllers are opened.
    pub controller: Options,
    /// Queue pairs of each drive that are kept for queues which several issuers share ([`QueueUse::Shared`](crate::QueueUse::Shared)), so
    /// that these are never the ones that find none left.
    pub shared_queues: u16,
}

/// The drives that a process has: one controller for each function, in one address space of the IOMMU, so that memory mapped for one can be
/// mapped for all. Cloning shares them. A controller is shut down, and its function given back, when the last [`Drive`] of it is dropped.
#[derive(Clone)]
pub struct Drives(Arc<Inner>);

struct Inner {
    container: Container,
    options: DriveOptions,
    provided: Mutex<HashMap<PciAddress, Arc<dyn PciFunction>>>,
    open: Mutex<HashMap<PciAddress, Weak<Attached>>>,
    home: Home,
}

/// What the controllers of one [`Drives`] have in common.
#[derive(Clone, Default)]
pub(crate) struct Home {
    pub(crate) memory: Arc<Shared>,
    pub(crate) threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    pub(crate) shared_queues: u16,
}

/// A controller, and the thread that looks after it.
pub(crate) struct Attached {
    // Before the controller: they end first.
    _watch: Watch,
    pub(crate) keeper: Keeper,
    pub(crate) controller: Controller,
    pub(crate) name: String,
    pub(crate) reached: Arc<Reached>,
}

/// A drive as it is now.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DriveStatus {
    /// The function: its PCI address.
    pub name: String,
    /// What its controller is at the moment.
    pub state: State,
    /// Queue pairs that the controller granted.
    pub granted: u16,
    /// Those that are open, with what they have done.
    pub queues: Vec<QueueStatus>,
    /// How often the controller was reset.
    pub resets: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drives {
    /// No drives yet.
    #[must_use]
    pub fn new(options: DriveOptions) -> Self {
        let home = Home {
            shared_queues: options.shared_queues,
            ..Home::default()
        };
        Self(Arc::new(Inner {
            container: Container::new(options.way),
            options,
            provided: Mutex::default(),
            open: Mutex::default(),
            home,
        }))
    }

    /// Has the drive at this address be this function instead of one of VFIO's: for whoever has functions of its own.
    pub fn provide(&self, address: PciAddress, function: Arc<dyn PciFunction>) {
        lock(&self.0.provided).insert(address, function);
    }

    /// A namespace of the drive at this address, which has to be bound to VFIO (`scripts/bind-vfio`). Without a choice it is the only one that
    /// there is. The drive is taken over when its first namespace is opened.
    ///
    /// # Errors
    /// [`DriveError`] with what is missing or wrong.
    pub fn open(&self, address: PciAddress, nsid: Option<u32>) -> Result<Drive, DriveError> {
        Drive::of(self.attached(address)?, nsid)
    }

    /// All namespaces of the drive at this address that can be used, and why others cannot.
    ///
    /// # Errors
    /// [`DriveError`] if the drive cannot be had.
    pub fn open_all(&self, address: PciAddress) -> Result<Vec<Result<Drive, DriveError>>, DriveError> {
        let attached = self.attached(address)?;
        let namespaces = attached.controller.namespaces();
        let nsids = namespaces.iter().map(homi_nvme::Namespace::nsid);
        Ok(nsids
            .map(|nsid| Drive::of(Arc::clone(&attached), Some(nsid)))
            .collect())
    }

    fn attached(&self, address: PciAddress) -> Result<Arc<Attached>, DriveError> {
        // Held while a controller comes up, so that nobody else tries the same.
        let mut open = lock(&self.0.open);
        if let Some(attached) = open.get(&address).and_then(Weak::upgrade) {
            return Ok(attached);
        }
        let provided = lock(&self.0.provided).get(&address).cloned();
        let function = match provided {
            Some(function) => function,
            None => {
                let function = self.0.container.open(address);
                Arc::new(function.map_err(|source| DriveError::Function { address, source })?)
            }
        };
        let attached = attach(function, self.0.options.controller.clone(), &self.0.home)?;
        open.insert(address, Arc::downgrade(&attached));
        Ok(attached)
    }

    pub(crate) fn memory(&self) -> &Arc<Shared> {
        &self.0.home.memory
    }

    /// The drives that are open. Waits for those that are being reset.
    #[must_use]
    pub fn status(&self) -> Vec<DriveStatus> {
        let open: Vec<Arc<Attached>> = lock(&self.0.open).values().filter_map(Weak::upgrade).collect();
        let mut status: Vec<DriveStatus> = open
            .iter()
            .map(|attached| {
                let controller = &attached.controller;
                DriveStatus {
                    name: attached.name.clone(),
                    state: controller.state(),
                    granted: controller.info().map_or(0, |info| info.queues()),
                    queues: controller.queues(),
                    resets: controller.resets(),
                }
            })
            .collect();
        status.sort_by(|one, other| one.name.cmp(&other.name));
        status
    }

    /// Waits until drives that nobody holds any more are shut down and their queues deleted, as far as threads of this crate do that. Says
    /// whether that was done within `limit`: it is not while somebody holds a [`Drive`] whose queues were opened by
    /// [`Drive::request_queue`].
    #[must_use]
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            let mut threads = lock(&self.0.home.threads);
            let (ended, running): (Vec<_>, Vec<_>) = threads.drain(..).partition(JoinHandle::is_finished);
            *threads = running;
            let done = threads.is_empty();
            drop(threads);
            for thread in ended {
                if thread.join().is_err() {
                    tracing::error!("a thread that opens and deletes queues panicked");
                }
            }
            if done || start.elapsed() > limit {
                return done;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Default for Drives {
    fn default() -> Self {
        Self::new(DriveOptions::default())
    }
}

impl fmt::Debug for Drives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.0.open).keys()).finish()
    }
}

pub(crate) fn attach(
    function: Arc<dyn PciFunction>,
    options: Options,
    home: &Home,
) -> Result<Arc<Attached>, DriveError> {
    let (name, class) = (function.name().to_owned(), function.identity().class);
    if class != PciIdentity::NVME_CLASS {
        return Err(DriveError::NotDrive { name, class });
    }
    let failed = |source| DriveError::Controller {
        name: name.clone(),
        source,
    };
    let space = function.dma().clone();
    let clock = Arc::new(SystemClock::new());
    let controller = Controller::open(function, clock, options).map_err(failed)?;
    let watch = controller.watch().map_err(failed)?;
    Ok(Arc::new(Attached {
        _watch: watch,
        keeper: Keeper::new(&name, home),
        controller,
        name,
        reached: home.memory.enter(space),
    }))
}
