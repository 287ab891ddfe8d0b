//! [`Initiator`]: one host, and everything that it is connected to.

use std::fmt;
use std::sync::Arc;

use homi_fabric::host::DiscoveryRecord;

use crate::controller::Controller;
use crate::device::Device;
use crate::error::Error;
use crate::options::{InitiatorBuilder, Options};
use crate::uri::Uri;

/// A host: a name, its options, and one background thread (started by the first connection, asleep while nothing
/// happens) that keeps its associations alive. Clones are the same host. Two initiators share nothing.
#[derive(Clone)]
pub struct Initiator {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
}

impl Initiator {
    /// An initiator with the default options.
    ///
    /// # Errors
    /// As [`InitiatorBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Chooses options.
    pub fn builder() -> InitiatorBuilder {
        InitiatorBuilder::default()
    }

    pub(crate) fn with_options(options: Options) -> Self {
        Self {
            shared: Arc::new(Shared { options }),
        }
    }

    /// The name this host goes by.
    #[must_use]
    pub fn host_nqn(&self) -> &str {
        self.shared.options.host_nqn.as_str()
    }

    /// The identifier that goes with the name.
    #[must_use]
    pub fn host_id(&self) -> [u8; 16] {
        self.shared.options.host_id
    }

    /// Reads the discovery log of a host and of everything that it refers to (each service once, eight levels and 64 services at
    /// most). A referral that cannot be reached is reported in the log (`tracing`) and skipped; the first service must answer.
    ///
    /// # Errors
    /// [`Error`], as for a connection; [`Error::Unsupported`] for a local URI.
    pub fn discover(&self, uri: &Uri) -> Result<Vec<DiscoveryRecord>, Error> {
        Err(Error::Unsupported(format!(
            "{uri}: discovery is not part of this build"
        )))
    }

    /// Connects to a controller and brings it up.
    ///
    /// # Errors
    /// [`Error`]: unreachable, refused, timed out, not NVMe/TCP, subsystem unknown, host not allowed, and what else the
    /// controller says; [`Error::Unsupported`] for a local URI, which [`Initiator::open`] takes.
    pub fn connect(&self, uri: &Uri) -> Result<Controller, Error> {
        Err(Error::Unsupported(format!(
            "{uri}: connecting is not part of this build"
        )))
    }

    /// Opens the blocks behind a URI, wherever they are: a namespace over a fabric, a file, a device, memory.
    ///
    /// # Errors
    /// As [`Initiator::connect`]; [`Error::NoNamespace`] and [`Error::AmbiguousNamespace`] where the URI's namespace does not exist,
    /// or names none of several; [`Error::Io`] for a file that cannot be opened.
    pub fn open(&self, uri: &Uri) -> Result<Device, Error> {
        Err(Error::Unsupported(format!(
            "{uri}: opening is not part of this build"
        )))
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}
