//! Admin and fabrics commands other than Connect. Base 2.0 §5 and §6.

use super::association::PendingAbort;
use super::events::{Event, Request};
use super::features::{Circumstances, Features, SetEffect};
use super::identify::{ABORT_LIMIT, Identified};
use super::io::{Transfer, check_sgl};
use super::logs::{self, Sources};
use super::node::{AssociationId, Connection, Node};
use super::refusal::Refusal;
use super::view::{ErrorRecord, Totals};
use super::{AdminOutcome, ConnectionId, Effect, TransportKind, discovery, identify};
use crate::time::Instant;
use homi_spec::admin::Abort;
use homi_spec::command::{AdminOpcode, FabricsType, Fuse, Psdt};
use homi_spec::fabrics::{Disconnect, PropertyGet, PropertySet};
use homi_spec::feature::{GetFeatures, SetFeatures};
use homi_spec::identify::Identify;
use homi_spec::log::{GetLogPage, LogId, TransportType};
use homi_spec::{Sqe, Status};

/// Bytes of a command's common fields, for the error log.
const OPCODE_BYTE: u8 = 0;
const FLAGS_BYTE: u8 = 1;
const FCTYPE_BYTE: u8 = 4;
const SGL_BYTE: u8 = 24;
const PARAMETER_BYTE: u8 = 40;

/// Bytes of the data of Connect.
const CONNECT_DATA: u32 = 1024;

/// A command that succeeded, or waits.
#[derive(Debug)]
enum Answer {
    Done { dw0: u32, dw1: u32, payload: Vec<u8> },
    Held,
    Disconnect,
}

impl Answer {
    const SUCCESS: Self = Self::dword(0);

    const fn dword(dw0: u32) -> Self {
        Self::Done {
            dw0,
            dw1: 0,
            payload: Vec::new(),
        }
    }

    const fn data(payload: Vec<u8>) -> Self {
        Self::Done {
            dw0: 0,
            dw1: 0,
            payload,
        }
    }

    fn qword(value: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        Self::Done {
            dw0: u32::from_le_bytes([a, b, c, d]),
            dw1: u32::from_le_bytes([e, f, g, h]),
            payload: Vec::new(),
        }
    }
}

impl Node {
    /// How many bytes of data the host sends with an admin or fabrics command; ask before [`Node::connect`] and
    /// [`Node::admin`], which want them all at once.
    ///
    /// # Errors
    /// The status of a command whose SGL descriptor does not describe that data.
    pub fn admin_data_from_host(sqe: &Sqe) -> Result<u32, Status> {
        let len = match sqe.fabrics_type() {
            Some(FabricsType::CONNECT) => CONNECT_DATA,
            Some(_) => 0,
            None => SetFeatures::from_sqe(sqe).map_or(0, |command| Features::set_data_length(command.fid)),
        };
        if len != 0 {
            check_sgl(sqe, Transfer::FromHost(len))?;
        }
        Ok(len)
    }

    /// Executes a command of the admin queue, or a fabrics command of an I/O queue; not Connect. `key` is how the runtime
    /// will know the command in an [`Effect`]; `data` is as long as [`Node::admin_data_from_host`] said.
    pub fn admin(
        &mut self,
        id: ConnectionId,
        key: u16,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> AdminOutcome {
        let result = self.execute(id, key, sqe, data, now);
        match result {
            Ok(Answer::Done { dw0, dw1, payload }) => AdminOutcome::Complete {
                status: Status::SUCCESS,
                dw0,
                dw1,
                payload,
            },
            Ok(Answer::Held) => AdminOutcome::Held,
            Ok(Answer::Disconnect) => AdminOutcome::Disconnect {
                status: Status::SUCCESS,
            },
            Err(refusal) => {
                self.record(id, sqe, refusal);
                AdminOutcome::Complete {
                    status: refusal.status,
                    dw0: 0,
                    dw1: 0,
                    payload: Vec::new(),
                }
            }
        }
    }

    fn record(&self, id: ConnectionId, sqe: &Sqe, refusal: Refusal) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let Some(association) = self.associations.get(&connection.association) else {
            return;
        };
        association.shared.record(ErrorRecord {
            qid: connection.qid,
            cid: sqe.cid.get(),
            status: refusal.status,
            location: refusal.location,
            lba: 0,
            // In a fabrics command the field means something else.
            nsid: if sqe.fabrics_type().is_some() {
                0
            } else {
                sqe.nsid.get()
            },
        });
    }

    fn execute(
        &mut self,
        id: ConnectionId,
        key: u16,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let Connection {
            association: aid,
            qid,
        } = *self.connections.get(&id).ok_or(sequence)?;
        let association = self.associations.get_mut(&aid).ok_or(sequence)?;
        association.keep_alive.heard(now);
        // Base 2.0 §3.3.3.1: every command over fabrics uses SGLs, and none of these can be fused.
        if sqe.psdt() != Psdt::SGL || sqe.fuse() != Fuse::NORMAL {
            return Err(Refusal::at(Status::INVALID_FIELD, FLAGS_BYTE));
        }
        if let Some(fabrics_type) = sqe.fabrics_type() {
            return self.fabrics(aid, qid, fabrics_type, sqe);
        }
        if qid != 0 || !association.properties.accepts_admin() {
            return Err(sequence);
        }
        if association.ending().is_some() {
            return Err(Status::ABORTED_SQ_DELETION.into());
        }
        match sqe.admin_opcode() {
            AdminOpcode::IDENTIFY => self.identify(aid, sqe),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(aid, sqe, now),
            AdminOpcode::GET_FEATURES => self.get_features(aid, sqe),
            AdminOpcode::SET_FEATURES => self.set_features(aid, sqe, data, now),
            AdminOpcode::KEEP_ALIVE => Ok(Answer::SUCCESS),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if !association.events.request(Request {
                    key,
                    cid: sqe.cid.get(),
                }) {
                    return Err(Status::AER_LIMIT_EXCEEDED.with_dnr().into());
                }
                association.deliver(&mut self.effects);
                Ok(Answer::Held)
            }
            AdminOpcode::ABORT => self.abort(aid, key, sqe),
            _ => Err(Refusal::at(Status::INVALID_OPCODE, OPCODE_BYTE)),
        }
    }

    fn fabrics(
        &mut self,
        aid: AssociationId,
        qid: u16,
        fabrics_type: FabricsType,
        sqe: &Sqe,
    ) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let association = self.associations.get_mut(&aid).ok_or(sequence)?;
        if let Some(command) = Disconnect::from_sqe(sqe) {
            if qid == 0 {
                // Base 2.0 §6.4: the admin queue goes with its connection only.
                return Err(Refusal::at(Status::DISCONNECT_INVALID_QUEUE_TYPE, FCTYPE_BYTE));
            }
            if command.recfmt != 0 {
                return Err(Refusal::at(Status::CONNECT_INCOMPATIBLE_FORMAT, PARAMETER_BYTE));
            }
            return Ok(Answer::Disconnect);
        }
        if fabrics_type == FabricsType::CONNECT {
            return Err(sequence);
        }
        if qid == 0 {
            if let Some(command) = PropertyGet::from_sqe(sqe) {
                return association.properties.get(command).map(Answer::qword);
            }
            if let Some(command) = PropertySet::from_sqe(sqe) {
                if association.ending().is_some() {
                    return Err(Status::ABORTED_SQ_DELETION.into());
                }
                let change = association.properties.set(command)?;
                association.change(change, &mut self.effects);
                return Ok(Answer::SUCCESS);
            }
        }
        Err(Refusal::at(Status::INVALID_OPCODE, FCTYPE_BYTE))
    }

    fn identify(&mut self, aid: AssociationId, sqe: &Sqe) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let association = self.associations.get(&aid).ok_or(sequence)?;
        let command = Identify::from_sqe(sqe).ok_or(sequence)?;
        let siblings = self
            .associations
            .values()
            .filter(|sibling| sibling.subsystem == association.subsystem);
        let mut controllers: Vec<u16> = siblings.map(|sibling| sibling.controller_id).collect();
        controllers.sort_unstable();
        let subsystem = association
            .subsystem
            .as_ref()
            .and_then(|nqn| self.directory.subsystems.get(nqn));
        let identified = Identified {
            node: &self.identity,
            subsystem: subsystem.map(|subsystem| &subsystem.config),
            controller_id: association.controller_id,
            transport: association.transport,
            in_capsule: association.in_capsule,
            controllers: &controllers,
        };
        to_host(sqe, identified.page(&command)?)
    }

    fn get_log_page(&mut self, aid: AssociationId, sqe: &Sqe, now: Instant) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let command = GetLogPage::from_sqe(sqe).ok_or(sequence)?;
        let len = logs::check(&command, self.identity.max_transfer)?;
        check_read(sqe, len)?;
        let association = self.associations.get(&aid).ok_or(sequence)?;
        let bytes = if command.lid == LogId::DISCOVERY && association.is_discovery() {
            let records = self.visible_to(association);
            // 4096 at most.
            let entries = u16::try_from(self.max_admin_entries()).unwrap_or(u16::MAX);
            discovery::window(&records, self.generation, entries, command.lpo, len)
                .ok_or(Refusal::at(Status::INVALID_FIELD, logs::LPO_BYTE))?
        } else {
            let subsystem = association
                .subsystem
                .as_ref()
                .and_then(|nqn| self.directory.subsystems.get(nqn));
            let mut totals = Totals::default();
            if let Some(subsystem) = subsystem.filter(|_| command.lid == LogId::SMART) {
                totals = subsystem.retired;
                let siblings = self
                    .associations
                    .values()
                    .filter(|sibling| sibling.subsystem == association.subsystem);
                siblings.for_each(|sibling| totals.add(&sibling.totals()));
            }
            let uptime = self
                .started
                .map_or(0, |started| now.saturating_since(started).as_secs());
            let sources = Sources {
                discovery: association.is_discovery(),
                write_cache: subsystem.is_some_and(|subsystem| subsystem.config.volatile_write_cache),
                transport: match association.transport {
                    TransportKind::Tcp => TransportType::TCP,
                    TransportKind::Rdma(_) => TransportType::RDMA,
                },
                firmware: &self.identity.firmware,
                errors: &association.shared.errors(),
                changed: &association.changed,
                totals,
                uptime_hours: uptime / 3600,
            };
            logs::window(&sources.page(&command)?, command.lpo, len)?
        };
        if !command.rae {
            self.log_was_read(aid, &command);
        }
        Ok(Answer::data(bytes))
    }

    /// Base 2.0 §5.2: reading the log page that an event points to arms the event again.
    fn log_was_read(&mut self, aid: AssociationId, command: &GetLogPage) {
        let Some(association) = self.associations.get_mut(&aid) else {
            return;
        };
        let from_the_start = command.lpo == 0;
        match command.lid {
            LogId::ERROR => association.events.clear(Event::InternalError, true),
            LogId::CHANGED_NAMESPACES => {
                let complete = from_the_start && command.length() >= association.changed.used();
                if complete {
                    association.changed.clear();
                }
                association.events.clear(Event::NamespaceAttribute, complete);
            }
            // The header has the generation: a host that read it knows whether what it has is current.
            LogId::DISCOVERY => association.events.clear(Event::DiscoveryLog, from_the_start),
            _ => {}
        }
        association.deliver(&mut self.effects);
    }

    fn get_features(&mut self, aid: AssociationId, sqe: &Sqe) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let command = GetFeatures::from_sqe(sqe).ok_or(sequence)?;
        let association = self.associations.get(&aid).ok_or(sequence)?;
        let circumstances = self.circumstances(aid, command.nsid).ok_or(sequence)?;
        let value = association.features.get(command, &circumstances)?;
        if value.data.is_empty() {
            return Ok(Answer::dword(value.dword));
        }
        to_host(sqe, value.data)
    }

    fn set_features(
        &mut self,
        aid: AssociationId,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let command = SetFeatures::from_sqe(sqe).ok_or(sequence)?;
        // Taken out and put back, since what they depend on is the rest of the node.
        let mut features = self.associations.get(&aid).ok_or(sequence)?.features.clone();
        let circumstances = self.circumstances(aid, command.nsid).ok_or(sequence)?;
        let effect = features.set(command, data, &circumstances)?;
        let association = self.associations.get_mut(&aid).ok_or(sequence)?;
        association.features = features;
        match effect {
            SetEffect::None(dword) => return Ok(Answer::dword(dword)),
            SetEffect::WriteThrough(on) => association.shared.set_write_through(on),
            SetEffect::KeepAlive(timeout_ms) => {
                let set = association.keep_alive.set(timeout_ms, now);
                set.ok_or(Refusal::at(Status::KEEP_ALIVE_INVALID, PARAMETER_BYTE + 4))?;
            }
        }
        Ok(Answer::SUCCESS)
    }

    fn circumstances(&self, aid: AssociationId, nsid: u32) -> Option<Circumstances<'_>> {
        let association = self.associations.get(&aid)?;
        let subsystem = association
            .subsystem
            .as_ref()
            .and_then(|nqn| self.directory.subsystems.get(nqn));
        let config = subsystem.map(|subsystem| &subsystem.config);
        Some(Circumstances {
            discovery: association.is_discovery(),
            write_cache: config.is_some_and(|config| config.volatile_write_cache),
            max_io_queues: config.map_or(0, |config| config.max_io_queues),
            io_queues: association.queues.len(),
            keep_alive_ms: association.keep_alive.timeout_ms(),
            keep_alive_default_ms: association.keep_alive_default_ms,
            host_id: &association.host_id,
            namespace: config.is_some_and(|config| identify::find(config, nsid).is_some()),
        })
    }

    /// Base 2.0 §5.1. Of the admin queue only event requests are ever outstanding; commands of I/O queues are asked for.
    fn abort(&mut self, aid: AssociationId, key: u16, sqe: &Sqe) -> Result<Answer, Refusal> {
        let sequence = Refusal::from(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        let command = Abort::from_sqe(sqe).ok_or(sequence)?;
        let association = self.associations.get_mut(&aid).ok_or(sequence)?;
        if association.aborts.len() >= ABORT_LIMIT {
            return Err(Status::ABORT_LIMIT_EXCEEDED.into());
        }
        if command.sqid == 0 {
            let Some(request) = association.events.abort(command.cid) else {
                return Ok(Answer::dword(Abort::NOT_ABORTED));
            };
            let effect = association.respond(request.key, Status::ABORT_REQUESTED, 0);
            self.effects.push_back(effect);
            return Ok(Answer::SUCCESS);
        }
        let Some(queue) = association.queues.get(&command.sqid) else {
            return Ok(Answer::dword(Abort::NOT_ABORTED));
        };
        let connection = queue.connection;
        association.aborts.push(PendingAbort { key, connection });
        let admin = association.admin;
        self.effects.push_back(Effect::Abort {
            connection,
            cid: command.cid,
            admin,
            key,
        });
        Ok(Answer::Held)
    }
}

/// Whether the command's SGL descriptor has room for just so many bytes.
fn check_read(sqe: &Sqe, len: usize) -> Result<(), Refusal> {
    let len = u32::try_from(len).map_err(|_| Refusal::at(Status::INVALID_FIELD, SGL_BYTE))?;
    check_sgl(sqe, Transfer::ToHost(len)).map_err(|status| Refusal::at(status, SGL_BYTE))
}

/// Data for the host, if the command's SGL descriptor has room for just that.
fn to_host(sqe: &Sqe, payload: Vec<u8>) -> Result<Answer, Refusal> {
    check_read(sqe, payload.len())?;
    Ok(Answer::data(payload))
}
