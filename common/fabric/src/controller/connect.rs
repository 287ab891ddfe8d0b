//! Connect: who becomes which queue of which controller. Base 2.0 §6.3.
//!
//! A parameter that cannot be is answered with Connect Invalid Parameters and where it is (IATTR says entry or data, IPO
//! the byte); a host that may not connect with Connect Invalid Host; a lack of room with Controller Busy, which a
//! host may try again.

use super::association::{Association, Founding, IoQueue};
use super::config::{PortConfig, PortId};
use super::node::{AssociationId, Connection, Node, Subsystem};
use super::view::{NamespaceTable, Published, QueueView};
use super::{ConnectionId, Grant, Rejected};
use crate::time::Instant;
use homi_spec::command::{Fuse, Psdt};
use homi_spec::fabrics::{ADMIN_SQSIZE_MIN, CNTLID_DYNAMIC, CNTLID_MAX, ConnectCommand, ConnectData};
use homi_spec::{Nqn, Sqe, Status};
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::sync::Arc;
use zerocopy::FromBytes;

/// Bytes of Connect's parameters in the entry. Base 2.0 §6.3.
const QID: usize = 42;
const SQSIZE: usize = 44;

/// Dword 0 of a Connect completion with Connect Invalid Parameters: IATTR bit 0 says that IPO counts in the data.
const IN_DATA: u32 = 1 << 16;

fn rejected(status: Status, reason: impl Into<String>) -> Rejected {
    Rejected {
        status,
        dw0: 0,
        reason: reason.into(),
    }
}

fn invalid_command(byte: usize, reason: impl Into<String>) -> Rejected {
    let dw0 = u32::try_from(byte).unwrap_or(0);
    Rejected {
        status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(),
        dw0,
        reason: reason.into(),
    }
}

fn invalid_data(byte: usize, reason: impl Into<String>) -> Rejected {
    let dw0 = u32::try_from(byte).unwrap_or(0) | IN_DATA;
    Rejected {
        status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(),
        dw0,
        reason: reason.into(),
    }
}

fn busy(reason: impl Into<String>) -> Rejected {
    rejected(Status::CONNECT_CONTROLLER_BUSY, reason)
}

/// The name in a field of Connect data. What follows the terminating NUL is left alone, as deployed targets do.
fn name(field: &[u8; 256]) -> Result<Nqn, String> {
    let len = field
        .iter()
        .position(|byte| *byte == 0)
        .ok_or("is not terminated by a nul")?;
    let bytes = field.get(..len).unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|_| "is not utf-8")?;
    Nqn::lenient(text).map_err(|error| format!("is no name: {error}"))
}

/// What a host that gives no name is called. It is no well-formed name, so an allow list of well-formed names never
/// holds it: such a host gets in where every host does.
const ANONYMOUS: &str = "anonymous";

/// The host's name. Some hosts send none (SPDK's performance tool does), and other controllers let them in.
fn host_name(field: &[u8; 256]) -> Result<Nqn, String> {
    if field.first() == Some(&0) {
        return Nqn::lenient(ANONYMOUS).map_err(|error| error.to_string());
    }
    name(field)
}

/// A Connect whose form is right.
struct Request<'a> {
    id: ConnectionId,
    port: &'a PortConfig,
    command: ConnectCommand,
    host_id: [u8; 16],
    controller_id: u16,
    subsystem: Nqn,
    host: Nqn,
}

impl Node {
    /// A host asks that a connection become a queue. `data` is the 1024 bytes of the command.
    ///
    /// # Errors
    /// How to complete the command, and a sentence for the log.
    pub fn connect(
        &mut self,
        id: ConnectionId,
        port: PortId,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> Result<Grant, Rejected> {
        let sequence = |reason| rejected(Status::COMMAND_SEQUENCE_ERROR.with_dnr(), reason);
        let command =
            ConnectCommand::from_sqe(sqe).ok_or_else(|| sequence("the first command is not Connect"))?;
        if self.connections.contains_key(&id) {
            return Err(sequence("the connection is a queue already"));
        }
        if sqe.psdt() != Psdt::SGL || sqe.fuse() != Fuse::NORMAL {
            return Err(rejected(
                Status::INVALID_FIELD.with_dnr(),
                "Connect does not use an sgl, or is fused",
            ));
        }
        let data = ConnectData::read_from_bytes(data).map_err(|_| {
            let reason = format!("Connect comes with {} bytes of data instead of 1024", data.len());
            rejected(Status::SGL_DATA_LENGTH_INVALID.with_dnr(), reason)
        })?;
        if command.recfmt != 0 {
            let reason = format!(
                "the host connects with record format {}, which is not supported",
                command.recfmt
            );
            return Err(rejected(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(), reason));
        }
        let subsystem = name(&data.subnqn).map_err(|why| {
            invalid_data(
                offset_of!(ConnectData, subnqn),
                format!("the subsystem nqn {why}"),
            )
        })?;
        let host = host_name(&data.hostnqn)
            .map_err(|why| invalid_data(offset_of!(ConnectData, hostnqn), format!("the host nqn {why}")))?;
        // Cloned since making an association changes the node; a port is a few dozen bytes.
        let port = self.directory.ports.get(&port).cloned().ok_or_else(|| {
            let reason =
                format!("subsystem {subsystem} cannot be reached through port {port}, which was removed");
            invalid_data(offset_of!(ConnectData, subnqn), reason)
        })?;
        let request = Request {
            id,
            port: &port,
            command,
            host_id: data.hostid,
            controller_id: data.cntlid.get(),
            subsystem,
            host,
        };
        if command.qid == 0 {
            self.connect_admin(&request, now)
        } else {
            self.connect_io(&request)
        }
    }

    /// The admin queue: makes an association and its controller.
    fn connect_admin(&mut self, request: &Request<'_>, now: Instant) -> Result<Grant, Rejected> {
        let Request {
            id,
            port,
            command,
            host,
            ..
        } = request;
        if request.controller_id != CNTLID_DYNAMIC {
            let reason = format!(
                "host {host} asks for controller {:#06x}, but controllers are made on demand; ask for 0xffff",
                request.controller_id
            );
            return Err(invalid_data(offset_of!(ConnectData, cntlid), reason));
        }
        let entries = u32::from(ADMIN_SQSIZE_MIN)..=self.max_admin_entries();
        check_size(request, &entries)?;
        let subsystem = self.find_subsystem(request)?;
        let allow = subsystem.map_or(&self.discovery_allow, |subsystem| &subsystem.config.allow);
        if !allow.allows(host) {
            let reason = format!("host {host} is not allowed to connect to {}", request.subsystem);
            return Err(rejected(Status::CONNECT_INVALID_HOST.with_dnr(), reason));
        }
        let subsystem_nqn = subsystem.map(|subsystem| subsystem.config.nqn.clone());
        self.check_room(host)?;
        let controller_id = self.allocate_controller(subsystem_nqn.as_ref(), host)?;
        let namespaces = subsystem_nqn
            .as_ref()
            .and_then(|nqn| self.directory.subsystems.get(nqn))
            .map_or_else(
                || Arc::new(Published::new(NamespaceTable::default())),
                |subsystem| Arc::clone(&subsystem.namespaces),
            );
        let association = Association::new(Founding {
            subsystem: subsystem_nqn,
            controller_id,
            host: host.clone(),
            host_id: request.host_id,
            admin: *id,
            admin_depth: command.sqsize(),
            port: port.id,
            transport: port.address.transport,
            in_capsule: port.in_capsule,
            keep_alive_ms: command.kato_ms,
            max_queue_entries: self.identity.max_queue_entries,
            namespaces: Arc::clone(&namespaces),
            now,
        });
        let view = QueueView::new(
            Arc::clone(&association.shared),
            0,
            self.identity.max_transfer,
            namespaces,
        );
        let association_id = AssociationId(self.next_association);
        self.next_association += 1;
        self.associations.insert(association_id, association);
        self.connections.insert(
            *id,
            Connection {
                association: association_id,
                qid: 0,
            },
        );
        Ok(grant(request, controller_id, Arc::new(view)))
    }

    /// An I/O queue: joins the association that the host names.
    fn connect_io(&mut self, request: &Request<'_>) -> Result<Grant, Rejected> {
        let Request {
            id,
            port,
            command,
            host,
            ..
        } = request;
        let qid = command.qid;
        let Some(subsystem) = self.find_subsystem(request)? else {
            return Err(invalid_command(
                QID,
                format!("host {host} wants an i/o queue of a discovery controller"),
            ));
        };
        let max_io_queues = subsystem.config.max_io_queues;
        let nqn = &request.subsystem;
        let found = self.associations.iter().find(|(_, association)| {
            association.controller_id == request.controller_id && association.subsystem.as_ref() == Some(nqn)
        });
        let Some((&association_id, association)) = found.filter(|(_, found)| found.ending().is_none()) else {
            let reason = format!("subsystem {nqn} has no controller {:#06x}", request.controller_id);
            return Err(invalid_data(offset_of!(ConnectData, cntlid), reason));
        };
        if association.host != *host {
            let reason = format!(
                "host {host} wants a queue of controller {:#06x} of {nqn}, which is another host's",
                request.controller_id
            );
            return Err(invalid_data(offset_of!(ConnectData, hostnqn), reason));
        }
        if association.host_id != request.host_id {
            let reason =
                format!("host {host} connects queue {qid} with another host identifier than its admin queue");
            return Err(invalid_data(offset_of!(ConnectData, hostid), reason));
        }
        if !association.properties.is_ready() {
            let reason = format!("host {host} connects queue {qid} of a controller that it did not enable");
            return Err(rejected(Status::COMMAND_SEQUENCE_ERROR.with_dnr(), reason));
        }
        let queues = association.features.io_queues(max_io_queues);
        if qid > queues {
            let reason =
                format!("host {host} connects queue {qid} of {nqn}, but it was granted {queues} queues");
            return Err(invalid_command(QID, reason));
        }
        if association.queues.contains_key(&qid) {
            // Its old connection may be on its way out: worth another try.
            let reason = format!("host {host} connects queue {qid} of {nqn} a second time");
            return Err(Rejected {
                status: Status::CONNECT_INVALID_PARAMETERS,
                ..invalid_command(QID, reason)
            });
        }
        if !association.properties.has_entry_sizes() {
            let reason =
                format!("host {host} connects queue {qid} without queue entries of 64 and 16 bytes in CC");
            return Err(invalid_command(QID, reason));
        }
        check_size(request, &(2..=self.identity.max_queue_entries))?;
        self.check_connections(host)?;
        let view = Arc::new(QueueView::new(
            Arc::clone(&association.shared),
            qid,
            self.identity.max_transfer,
            Arc::clone(&association.namespaces),
        ));
        let controller_id = association.controller_id;
        if let Some(association) = self.associations.get_mut(&association_id) {
            association.queues.insert(
                qid,
                IoQueue::new(*id, port.id, command.sqsize(), Arc::clone(&view)),
            );
        }
        self.connections.insert(
            *id,
            Connection {
                association: association_id,
                qid,
            },
        );
        Ok(grant(request, controller_id, view))
    }

    /// The subsystem that the host asks for; `None` is the discovery subsystem.
    fn find_subsystem(&self, request: &Request<'_>) -> Result<Option<&Subsystem>, Rejected> {
        let Request {
            subsystem: nqn,
            port,
            host,
            ..
        } = request;
        if nqn.is_discovery() {
            return Ok(None);
        }
        let found = self.directory.subsystems.get(nqn);
        match found.filter(|subsystem| subsystem.config.exposure.includes(port.id)) {
            Some(subsystem) => Ok(Some(subsystem)),
            None => {
                let reason = format!(
                    "host {host} asks for subsystem {nqn}, which does not exist at port {}",
                    port.id
                );
                Err(invalid_data(offset_of!(ConnectData, subnqn), reason))
            }
        }
    }

    fn check_room(&self, host: &Nqn) -> Result<(), Rejected> {
        let limit = self.limits.max_associations;
        if self.associations.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(busy(format!(
                "host {host} is refused: {limit} associations exist, which is the limit"
            )));
        }
        self.check_connections(host)
    }

    fn check_connections(&self, host: &Nqn) -> Result<(), Rejected> {
        let limit = self.limits.max_connections;
        if self.connections.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(busy(format!(
                "host {host} is refused: {limit} queues are connected, which is the limit"
            )));
        }
        let limit = self.limits.max_connections_per_host;
        let own = self
            .associations
            .values()
            .filter(|association| association.host == *host);
        let connections: usize = own.map(Association::connections).sum();
        if connections >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(busy(format!(
                "host {host} is refused: it has {limit} queues, which is the limit for one host"
            )));
        }
        Ok(())
    }

    /// A controller identifier that no association of the subsystem has.
    fn allocate_controller(&mut self, subsystem: Option<&Nqn>, host: &Nqn) -> Result<u16, Rejected> {
        let siblings = || {
            self.associations
                .values()
                .filter(|sibling| sibling.subsystem.as_ref() == subsystem)
        };
        let (range, first, limit) = match subsystem.and_then(|nqn| self.directory.subsystems.get(nqn)) {
            Some(Subsystem {
                config,
                next_controller_id,
                ..
            }) => (
                config.controller_ids.clone(),
                *next_controller_id,
                config.max_controllers_per_host,
            ),
            None => (1..=CNTLID_MAX, self.next_discovery_id, u16::MAX),
        };
        let own = siblings().filter(|sibling| sibling.host == *host).count();
        if own >= usize::from(limit) {
            return Err(busy(format!(
                "host {host} is refused: it has {limit} controllers of this subsystem, the limit"
            )));
        }
        let mut used: Vec<u16> = siblings().map(|sibling| sibling.controller_id).collect();
        used.sort_unstable();
        let id = free_id(&range, first, &used).ok_or_else(|| {
            busy(format!(
                "host {host} is refused: every controller id of the subsystem is in use"
            ))
        })?;
        let next = id
            .checked_add(1)
            .filter(|next| range.contains(next))
            .unwrap_or(*range.start());
        match subsystem.and_then(|nqn| self.directory.subsystems.get_mut(nqn)) {
            Some(subsystem) => subsystem.next_controller_id = next,
            None => self.next_discovery_id = next,
        }
        Ok(id)
    }
}

/// The first identifier of the range from `first` on, around its end, that is not in the sorted list `used`.
fn free_id(range: &RangeInclusive<u16>, first: u16, used: &[u16]) -> Option<u16> {
    let first = if range.contains(&first) {
        first
    } else {
        *range.start()
    };
    let candidates = (first..=*range.end()).chain(*range.start()..first);
    candidates.into_iter().find(|id| used.binary_search(id).is_err())
}

fn check_size(request: &Request<'_>, entries: &RangeInclusive<u32>) -> Result<(), Rejected> {
    let Request { command, host, .. } = request;
    if entries.contains(&command.sqsize()) {
        return Ok(());
    }
    let reason = format!(
        "host {host} connects queue {} with {} entries; {} to {} are possible",
        command.qid,
        command.sqsize(),
        entries.start(),
        entries.end()
    );
    Err(invalid_command(SQSIZE, reason))
}

fn grant(request: &Request<'_>, controller_id: u16, view: Arc<QueueView>) -> Grant {
    Grant {
        controller_id,
        qid: request.command.qid,
        depth: request.command.sqsize(),
        sq_flow_control: !request.command.disables_sq_flow_control(),
        // No authentication is required: AUTHREQ is 0.
        dw0: controller_id.into(),
        view,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_go_round_and_skip_those_in_use() {
        assert_eq!(free_id(&(1..=4), 3, &[3]), Some(4));
        assert_eq!(free_id(&(1..=4), 4, &[1, 4]), Some(2));
        assert_eq!(free_id(&(1..=4), 9, &[]), Some(1));
        assert_eq!(free_id(&(1..=4), 2, &[1, 2, 3, 4]), None);
        assert_eq!(free_id(&(7..=7), 7, &[]), Some(7));
    }
}
