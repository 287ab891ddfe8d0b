//! [`Controller`]: an association with a controller, as a handle that any thread may use.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use homi_fabric::host::{
    ConnectError, ControllerInfo, ControllerKind, InfoError, IoConnect, IoConnectParams, NamespaceInfo,
    parse_namespace_list,
};
use homi_fabric::rdma::cm::Rejected;
use homi_queue::{Command, CommandId, Completion, Data, LostReason, Region};
use homi_spec::Status;
use homi_spec::identify::{Cns, DATA_SIZE, Identify};
use homi_spec::log::{GetLogPage, LogId};

use crate::blocking::check;
use crate::dial::{self, Peer, Route};
use crate::error::Error;
use crate::fabric::FabricQueue;
use crate::keeper::{AssociationShared, Keeper, Message};
use crate::link::{LinkState, QueueLink};
use crate::options::{Options, QueueOptions};
use crate::rdma::{Registration, Shape};
use crate::sequence::{SequenceError, bytes_of};

/// Most commands in flight of one queue: the id's sequence needs some of its 16 bits.
const MAX_DEPTH: u32 = 4095;

/// In-capsule data that is made use of at most, in bytes, whatever a controller offers.
const MAX_IN_CAPSULE: u32 = 1 << 20;

/// Bytes per read of a log page at most.
const LOG_CHUNK: usize = 128 << 10;

/// Longest log page that can be asked for, in bytes.
const MAX_LOG: usize = 16 << 20;

/// Most namespaces of a controller: far more than any has, few enough to list.
const MAX_NAMESPACES: usize = 65_536;

/// How long to go on trying a queue id that the controller still holds from a connection that was closed.
const QUEUE_RETRY: Duration = Duration::from_secs(1);

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
    inner: Arc<ControllerInner>,
}

/// What all handles of an association share.
#[derive(Debug)]
pub(crate) struct ControllerInner {
    pub(crate) association: u64,
    pub(crate) peer: Peer,
    pub(crate) route: Route,
    pub(crate) info: ControllerInfo,
    pub(crate) options: Arc<Options>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) shared: Arc<AssociationShared>,
    pub(crate) queue_ids: Mutex<QueueIds>,
}

/// Ids of I/O queues in use, given out in turn so that one that was just given back rests the longest.
#[derive(Debug, Default)]
pub(crate) struct QueueIds {
    used: BTreeSet<u16>,
    last: u16,
}

impl QueueIds {
    fn take(&mut self, count: u16) -> Option<u16> {
        let after = (self.last..count).map(|id| id + 1);
        let id = after
            .chain(1..=self.last.min(count))
            .find(|id| !self.used.contains(id))?;
        self.used.insert(id);
        self.last = id;
        Some(id)
    }
}

impl Controller {
    pub(crate) fn new(inner: ControllerInner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What the controller said about itself when it was brought up.
    #[must_use]
    pub fn info(&self) -> &ControllerInfo {
        &self.inner.info
    }

    /// `host:port` of its admin queue.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.peer.address
    }

    /// How the association is doing.
    #[must_use]
    pub fn status(&self) -> ControllerStatus {
        self.inner
            .shared
            .lost()
            .map_or(ControllerStatus::Live, ControllerStatus::Lost)
    }

    /// The namespaces that this host may see, in the order of their ids.
    ///
    /// # Errors
    /// [`Error`] if the association is lost, a command fails or the answer cannot be meant.
    pub fn namespaces(&self) -> Result<Vec<NamespaceInfo>, Error> {
        let mut namespaces = Vec::new();
        for nsid in self.namespace_ids()? {
            // One that went away meanwhile is left out.
            namespaces.extend(self.find_namespace(nsid)?);
        }
        Ok(namespaces)
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`] with those that exist; otherwise as [`Controller::namespaces`].
    pub fn namespace(&self, nsid: u32) -> Result<NamespaceInfo, Error> {
        match self.find_namespace(nsid)? {
            Some(namespace) => Ok(namespace),
            None => Err(Error::NoNamespace {
                nsid,
                controller: self.inner.peer.name(),
                available: self.namespace_ids()?,
            }),
        }
    }

    /// Ids of the namespaces that this host may see, ascending.
    ///
    /// # Errors
    /// As [`Controller::namespaces`].
    pub fn namespace_ids(&self) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = Vec::new();
        loop {
            let after = ids.last().copied().unwrap_or(0);
            let page = self.identify(Cns::ACTIVE_NAMESPACES.raw(), after)?;
            let more = parse_namespace_list(&page, after).map_err(|source| self.bad_page(source))?;
            let whole = more.len() == DATA_SIZE / size_of::<u32>();
            ids.extend(more);
            if !whole {
                return Ok(ids);
            }
            if ids.len() >= MAX_NAMESPACES {
                return Err(Error::Unsupported(format!(
                    "{} lists more than {MAX_NAMESPACES} namespaces",
                    self.inner.peer.name()
                )));
            }
        }
    }

    fn find_namespace(&self, nsid: u32) -> Result<Option<NamespaceInfo>, Error> {
        let page = match self.identify_namespace(nsid) {
            Ok(page) => page,
            Err(Error::Command { status, .. }) if status.is(Status::INVALID_NAMESPACE) => return Ok(None),
            Err(error) => return Err(error),
        };
        let namespace = NamespaceInfo::from_page(nsid, &page).map_err(|source| self.bad_page(source))?;
        let Some(mut namespace) = namespace else {
            return Ok(None);
        };
        match self.identify(Cns::NAMESPACE_DESCRIPTORS.raw(), nsid) {
            Ok(list) => namespace.add_descriptors(&list),
            // Optional before 1.3, and only names.
            Err(Error::Command { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Some(namespace))
    }

    fn bad_page(&self, source: InfoError) -> Error {
        Error::BadPage {
            controller: self.inner.peer.name(),
            source,
        }
    }

    /// The Identify Controller page: 4096 bytes.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify_controller(&self) -> Result<Vec<u8>, Error> {
        self.identify(Cns::CONTROLLER.raw(), 0)
    }

    /// The Identify Namespace page of a namespace: 4096 bytes, all zero for an inactive namespace.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify_namespace(&self, nsid: u32) -> Result<Vec<u8>, Error> {
        self.identify(Cns::NAMESPACE.raw(), nsid)
    }

    /// Any Identify page (Base 2.0 §5.17) by its CNS: 4096 bytes.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails.
    pub fn identify(&self, cns: u8, nsid: u32) -> Result<Vec<u8>, Error> {
        let command = Command(Identify::namespace(Cns(cns), nsid).to_sqe(0));
        self.read("identify", command, DATA_SIZE)
    }

    /// The first `len` bytes (a multiple of 4, at most 16 MiB) of a log page (Base 2.0 §5.16), read in parts where the controller asks for it.
    ///
    /// # Errors
    /// [`Error`] if the association is lost or the command fails; [`Error::Range`] for a length that cannot be asked for.
    pub fn log_page(&self, page: u8, nsid: u32, len: usize) -> Result<Vec<u8>, Error> {
        if len == 0 || !len.is_multiple_of(4) || len > MAX_LOG {
            return Err(Error::Range(format!(
                "{len} bytes of a log page: use a multiple of 4 up to {MAX_LOG}"
            )));
        }
        let limit = self
            .inner
            .info
            .max_transfer
            .map_or(LOG_CHUNK, |bytes| bytes as usize);
        let chunk = limit.clamp(4096, LOG_CHUNK);
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let part = (len - bytes.len()).min(chunk);
            let mut get = GetLogPage::new(LogId(page), part as u64)
                .map_err(|error| Error::Range(error.to_string()))?
                .at(bytes.len() as u64);
            get.nsid = nsid;
            // The event that announced the page is cleared with its last part.
            get.rae = bytes.len() + part < len;
            bytes.extend(self.read("get log page", Command(get.to_sqe(0)), part)?);
        }
        Ok(bytes)
    }

    /// Any admin command. A status other than success is not an error here: it is in the reply.
    ///
    /// # Errors
    /// [`Error::Lost`] if the association ends before the answer.
    pub fn admin(&self, command: Command, data: Data) -> Result<AdminReply, Error> {
        let (reply, answer) = mpsc::channel();
        let association = self.inner.association;
        self.inner.keeper.send(Message::Admin {
            association,
            command,
            data,
            reply,
        });
        match answer.recv() {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(reason)) => Err(self.inner.lost(reason)),
            // The message reached nobody.
            Err(_) => Err(self
                .inner
                .lost(self.inner.shared.lost().unwrap_or(LostReason::Closed))),
        }
    }

    fn read(&self, what: &str, command: Command, len: usize) -> Result<Vec<u8>, Error> {
        let reply = self.admin(command, Data::whole(Region::from_vec(vec![0; len])))?;
        check(what, &reply.completion)?;
        Ok(bytes_of(reply.data))
    }

    /// Opens an I/O queue: a connection of its own, run by the thread that uses it. Any thread may ask, at any time.
    ///
    /// # Errors
    /// [`Error`], as for a connection; [`Error::Unsupported`] if the controller has no I/O queues.
    pub fn queue(&self, options: QueueOptions) -> Result<FabricQueue, Error> {
        let inner = &self.inner;
        if inner.info.kind != ControllerKind::Io {
            return Err(Error::Unsupported(format!(
                "{} has no i/o queues",
                inner.peer.name()
            )));
        }
        if let Some(reason) = inner.shared.lost() {
            return Err(inner.lost(reason));
        }
        let qid = {
            let mut ids = inner.queue_ids.lock().unwrap_or_else(PoisonError::into_inner);
            ids.take(inner.info.io_queues)
        };
        let qid = qid.ok_or_else(|| {
            Error::Unsupported(format!(
                "all {} i/o queues of {} are in use: close some, or raise the target's limit",
                inner.info.io_queues,
                inner.peer.name()
            ))
        })?;
        let queue = self.connect_queue(qid, options);
        if queue.is_err() {
            inner.free_queue_id(qid);
        }
        queue
    }

    fn connect_queue(&self, qid: u16, options: QueueOptions) -> Result<FabricQueue, Error> {
        let inner = &self.inner;
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        let mut queue = loop {
            match self.try_queue(qid, options.depth) {
                Ok(queue) => break queue,
                // The controller has not noticed yet that the queue's last connection was closed.
                Err(refusal) if refusal.may_pass() && start.elapsed() < QUEUE_RETRY => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                Err(SequenceOrOther::Sequence(error)) => {
                    return Err(inner
                        .peer
                        .error(&inner.options, &format!("connecting queue {qid}"), error));
                }
                Err(SequenceOrOther::Other(error)) => return Err(error),
            }
        };
        queue.set_timeout(options.command_timeout.unwrap_or(inner.options.command_timeout));
        queue.set_max_transfer(inner.info.max_transfer);
        let state = Arc::new(LinkState::new(qid, queue.hang_up()));
        inner
            .shared
            .add_queue(Arc::clone(&state))
            .map_err(|reason| inner.lost(reason))?;
        queue.set_link(QueueLink::new(state, Arc::clone(inner)));
        Ok(queue)
    }

    fn try_queue(&self, qid: u16, depth: u16) -> Result<FabricQueue, SequenceOrOther> {
        let inner = &self.inner;
        let options = &inner.options;
        // One entry of a queue stays free, so that full and empty differ.
        let most = (inner.info.max_queue_entries - 1).min(MAX_DEPTH);
        let depth = u16::try_from(u32::from(depth.max(1)).min(most)).unwrap_or(depth);
        let entries = match inner.route {
            Route::Tcp(_) => depth + 1,
            Route::Rdma(_) => crate::rdma::entries(depth, most),
        };
        let in_capsule = match (&inner.route, inner.info.in_capsule_offset) {
            (Route::Tcp(_), _) | (Route::Rdma(_), 0) => inner.info.in_capsule.min(MAX_IN_CAPSULE),
            // Nobody puts a gap there, and capsules here have none.
            (Route::Rdma(_), _) => 0,
        };
        let shape = Shape {
            qid,
            controller_id: inner.info.controller_id,
            depth,
            entries,
            in_capsule,
            max_descriptors: inner.info.max_descriptors,
        };
        let mut queue = dial::connect_io(&inner.peer, &inner.route, options, shape)?;
        let mut connect = IoConnect::new(IoConnectParams {
            host_nqn: options.host_nqn.clone(),
            host_id: options.host_id,
            subsystem: inner.peer.subsystem.clone(),
            controller_id: inner.info.controller_id,
            qid,
            entries: queue.entries(),
            sq_flow_control: options.sq_flow_control,
        });
        dial::runner(&mut queue, options.connect_timeout)
            .run(|answer, _| connect.next(answer))
            .map_err(SequenceOrOther::Sequence)?;
        Ok(queue)
    }

    /// Registers a region for as long as the result is kept, so that no command has to: over RDMA, where the controller reaches the memory of
    /// commands by itself. Over TCP there is nothing to do.
    ///
    /// While a region is registered the controller may read and write all of it, whether or not a command uses it, unless the initiator was
    /// made with [`memory_windows`](crate::InitiatorBuilder::memory_windows). Commands register regions by themselves
    /// when they first use them; those registrations are kept while there is room and the region is in use.
    ///
    /// # Errors
    /// [`Error::Registration`] if the system refuses: mostly because too much memory would be locked.
    pub fn register(&self, region: &Region) -> Result<Registration, Error> {
        let pinned = match &self.inner.route {
            Route::Tcp(_) => None,
            Route::Rdma(route) => Some(route.pin(region)?),
        };
        Ok(Registration::new(region, pinned))
    }

    /// What the controller reports from now on. Each call gives a receiver of its own, which sees every event.
    #[must_use]
    pub fn events(&self) -> Receiver<ControllerEvent> {
        let (sender, receiver) = mpsc::channel();
        self.inner.shared.subscribe(sender);
        receiver
    }

    /// Ends the association now: shutdown notification, at most `limit` for the answer, then the connections are closed. Queues made from it are
    /// lost with [`LostReason::Local`].
    ///
    /// # Errors
    /// [`Error::Timeout`] if the controller did not confirm in time; the connections are closed all the same.
    pub fn disconnect(self, limit: Duration) -> Result<(), Error> {
        if self.inner.disconnect(limit) {
            Ok(())
        } else {
            Err(Error::Timeout {
                what: format!("shutting down {}", self.inner.peer.name()),
                after: limit,
            })
        }
    }
}

/// Why a queue was not connected.
enum SequenceOrOther {
    Sequence(SequenceError),
    Other(Error),
}

impl SequenceOrOther {
    /// Whether the same attempt may succeed in a moment.
    fn may_pass(&self) -> bool {
        match self {
            Self::Sequence(SequenceError::Refused(refusal)) => may_be_held(refusal),
            Self::Other(Error::Rejected {
                source: Rejected::Resources,
                ..
            }) => true,
            _ => false,
        }
    }
}

impl From<Error> for SequenceOrOther {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Whether a refusal may mean that the controller still holds the queue id.
fn may_be_held(refusal: &ConnectError) -> bool {
    match refusal {
        ConnectError::Busy => true,
        ConnectError::InvalidParameter { offset, in_data, .. } => !in_data && *offset == 42,
        ConnectError::Refused(status) => {
            status.is(Status::COMMAND_SEQUENCE_ERROR) || status.is(Status::INVALID_QUEUE_IDENTIFIER)
        }
        _ => false,
    }
}

impl ControllerInner {
    fn lost(&self, reason: LostReason) -> Error {
        Error::Lost {
            controller: self.peer.name(),
            reason,
        }
    }

    /// Asks for a command of an I/O queue to be aborted.
    pub(crate) fn abort(&self, qid: u16, id: CommandId) {
        self.keeper.send(Message::Abort {
            association: self.association,
            qid,
            cid: id.0,
        });
    }

    /// A queue was closed.
    pub(crate) fn forget_queue(&self, queue: &Arc<LinkState>) {
        self.shared.remove_queue(queue);
        self.free_queue_id(queue.qid);
    }

    fn free_queue_id(&self, qid: u16) {
        self.queue_ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .used
            .remove(&qid);
    }

    /// Shuts down and disconnects; whether the controller confirmed (or is gone already).
    fn disconnect(&self, limit: Duration) -> bool {
        if self.shared.lost().is_some() {
            return true;
        }
        let (reply, answer) = mpsc::channel();
        self.keeper.send(Message::Disconnect {
            association: self.association,
            limit,
            reply,
        });
        // The keeper answers when the time is up; the rest is for a machine that is very busy.
        answer
            .recv_timeout(limit + Duration::from_secs(1))
            .unwrap_or(false)
    }
}

impl Drop for ControllerInner {
    fn drop(&mut self) {
        if !self.disconnect(self.options.connect_timeout) {
            tracing::debug!(controller = %self.peer.name(), "the controller did not confirm its shutdown");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_ids_are_given_out_in_turn() {
        let mut ids = QueueIds::default();
        assert_eq!([ids.take(3), ids.take(3)], [Some(1), Some(2)]);
        ids.used.remove(&1);
        assert_eq!(ids.take(3), Some(3), "one that was just given back rests");
        assert_eq!(ids.take(3), Some(1));
        assert_eq!(ids.take(3), None);
        assert_eq!(QueueIds::default().take(0), None);
    }
}
