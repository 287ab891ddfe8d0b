//! [`Controller`]: an association with a controller, as a handle that any thread may use.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use homi_fabric::host::{ControllerInfo, NamespaceInfo};
use homi_queue::{Command, Completion, Data, LostReason};

use crate::error::Error;
use crate::options::QueueOptions;
use crate::queue::FabricQueue;

/// Something that a controller reported without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControllerEvent {
    /// Namespaces appeared, vanished or changed: these ids, or any if the list is empty (it overflowed).
    NamespacesChanged(Vec<u32>),
    /// The discovery log changed: read it again.
    DiscoveryChanged,
    /// Another asynchronous event (Base 2.0 §5.2), as it came.
    Other {
        /// Event type (dword 0 bits 2:0).
        kind: u8,
        /// Event information (dword 0 bits 15:8).
        information: u8,
        /// Log page to read (dword 0 bits 23:16).
        log_page: u8,
    },
    /// The association ended; nothing comes after this.
    Lost(LostReason),
}

/// How an association is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControllerStatus {
    /// Commands are executed.
    Live,
    /// It ended.
    Lost(LostReason),
}

/// The answer to an admin command.
#[derive(Debug)]
pub struct AdminReply {
    /// Status and result.
    pub completion: Completion,
    /// The command's memory, handed back.
    pub data: Data,
}

/// An association with a controller. Clones are the same association; it ends (with a shutdown notification, waiting no longer
/// than the connect timeout) when the last clone and the last queue made from it are dropped.
#[derive(Clone, Debug)]
pub struct Controller {
    info: ControllerInfo,
}

impl Controller {
    /// What the controller said about itself when it was brought up.
    #[must_use]
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// `host:port` of its admin queue.
    #[must_use]
    pub fn address(&self) -> &str {
        self.missing_str()
    }

    /// How the association is doing.
    #[must_use]
    pub fn status(&self) -> ControllerStatus {
        ControllerStatus::Lost(LostReason::Local)
    }

    /// The namespaces that this host may see, in the order of their ids.
    ///
    /// # Errors
    /// [`Error`] if the association is lost, a command fails or the answer cannot be meant.
    pub fn namespaces(&self) -> Result<Vec<NamespaceInfo>, Error> {
        Err(self.missing())
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`] with those that exist; otherwise as [`Controller::namespaces`].
    pub fn namespace(&self, nsid: u32) -> Result<NamespaceInfo, Error> {
        let _ = nsid;
        Err(self.missing())
    }

    /// The Identify Controller page: 4096 bytes.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify_controller(&self) -> Result<Vec<u8>, Error> {
        self.identify(0x01, 0)
    }

    /// The Identify Namespace page of a namespace: 4096 bytes, all zero for an inactive namespace.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify_namespace(&self, nsid: u32) -> Result<Vec<u8>, Error> {
        self.identify(0x00, nsid)
    }

    /// Any Identify page (Base 2.0 §5.17) by its CNS: 4096 bytes.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify(&self, cns: u8, nsid: u32) -> Result<Vec<u8>, Error> {
        let _ = (cns, nsid);
        Err(self.missing())
    }

    /// The first `len` bytes (a multiple of 4, at most 16 MiB) of a log page (Base 2.0 §5.16), read in parts where the controller asks for it.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails; [`Error::Range`] for a length that cannot be asked for.
    pub fn log_page(&self, page: u8, nsid: u32, len: usize) -> Result<Vec<u8>, Error> {
        let _ = (page, nsid, len);
        Err(self.missing())
    }

    /// Any admin command. A status other than success is not an error here: it is in the reply.
    ///
    /// # Errors
    /// [`Error::Lost`] if the association ends before the answer.
    pub fn admin(&self, command: Command, data: Data) -> Result<AdminReply, Error> {
        let _ = (command, data);
        Err(self.missing())
    }

    /// Opens an I/O queue: a connection of its own, run by the thread that uses it. Any thread may ask, at any time.
    ///
    /// # Errors
    /// [`Error`], as for a connection; [`Error::Unsupported`] if the controller has no I/O queues.
    pub fn queue(&self, options: QueueOptions) -> Result<FabricQueue, Error> {
        let _ = options;
        Err(self.missing())
    }

    /// What the controller reports from now on. Each call gives a receiver of its own, which sees every event.
    #[must_use]
    pub fn events(&self) -> Receiver<ControllerEvent> {
        std::sync::mpsc::channel().1
    }

    /// Ends the association now: shutdown notification, at most `limit` for the answer, then the connections are closed. Queues made from it are
    /// lost with [`LostReason::Local`].
    ///
    /// # Errors
    /// [`Error::Timeout`] if the controller did not confirm in time; the connections are closed all the same.
    pub fn disconnect(self, limit: Duration) -> Result<(), Error> {
        let _ = limit;
        Err(self.missing())
    }

    fn missing(&self) -> Error {
        Error::Unsupported("associations are not part of this build".to_owned())
    }

    fn missing_str(&self) -> &str {
        self.info.serial.as_str()
    }
}
