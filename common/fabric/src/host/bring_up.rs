//! [`BringUp`], [`IoConnect`] and [`Shutdown`]: the fixed sequences of commands at the beginning and end of an association.
//!
//! Each says what to send next, is given the answer, and says the next: the caller owns queues, clocks and timeouts of single
//! commands.

use std::time::Duration;

use homi_queue::{Command, Completion};
use homi_spec::controller::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Version};
use homi_spec::fabrics::{
    CNTLID_DYNAMIC, CNTLID_MAX, ConnectCommand, ConnectData, ConnectResponse, Property, PropertyGet,
    PropertySet, PropertySize,
};
use homi_spec::feature::{FeatureId, GetFeatures, NumberOfQueues, SetFeatures, async_event};
use homi_spec::identify::{DATA_SIZE, Identify};
use homi_spec::{Nqn, Sgl};
use zerocopy::IntoBytes;

use super::connect::{ConnectError, response};
use super::info::{ControllerInfo, ControllerKind};
use crate::time::Instant;

/// The answer to the last command.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Status and result.
    pub completion: Completion,
    /// What a command with [`StepData::In`] brought; empty otherwise.
    pub data: &'a [u8],
}

/// The data of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepData {
    /// None.
    None,
    /// These bytes to the controller.
    Out(Vec<u8>),
    /// So many bytes from the controller.
    In(usize),
}

/// What to do next.
#[derive(Debug)]
pub enum Step<T> {
    /// Send this command and call `next` with its answer.
    Submit {
        /// The command.
        command: Command,
        /// Its data.
        data: StepData,
    },
    /// Call `next` without an answer at this time.
    WaitUntil(Instant),
    /// Done.
    Ready(T),
    /// It cannot be done.
    Failed(ConnectError),
}

/// Oldest version over fabrics: 1.2.1 brought NVMe over Fabrics.
pub const OLDEST_VERSION: Version = Version::new(1, 2, 1);

/// How long to wait for CSTS.RDY at least: controllers that state no time (CAP.TO = 0) take some all the same.
const READY_AT_LEAST: Duration = Duration::from_millis(500);
/// First and longest time between two looks at CSTS.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_LONGEST: Duration = Duration::from_millis(100);

/// What a bring-up is told.
#[derive(Debug, Clone)]
pub struct BringUpParams {
    /// Name of this host.
    pub host_nqn: Nqn,
    /// Identifier of this host.
    pub host_id: [u8; 16],
    /// Subsystem to connect to; the well-known discovery name for a discovery service.
    pub subsystem: Nqn,
    /// Keep-alive timeout to ask for; zero for none.
    pub keep_alive: Duration,
    /// Entries of the admin queue: at least 32.
    pub admin_entries: u16,
    /// Whether to keep submission queue flow control.
    pub sq_flow_control: bool,
    /// I/O queues to ask for: 1 to 65535.
    pub io_queues: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Connect,
    Capabilities,
    Version,
    Enable,
    Ready,
    Identify,
    Queues,
    Events,
    KeepAlive,
    Done,
}

/// Brings a controller up on a new admin connection (Base 2.0 §3.5.2).
#[derive(Debug)]
pub struct BringUp {
    params: BringUpParams,
    phase: Phase,
    controller_id: u16,
    capabilities: Cap,
    version: Version,
    configuration: Cc,
    info: Option<ControllerInfo>,
    ready_by: Instant,
    ready_limit: Duration,
    look: Duration,
}

impl BringUp {
    /// A bring-up that has not begun.
    #[must_use]
    pub fn new(params: BringUpParams) -> Self {
        Self {
            params,
            phase: Phase::Start,
            controller_id: 0,
            capabilities: Cap::default(),
            version: Version::default(),
            configuration: Cc::default(),
            info: None,
            ready_by: Instant::FAR_FUTURE,
            ready_limit: READY_AT_LEAST,
            look: LOOK_FIRST,
        }
    }

    /// Says what to do next, given the answer to the last command (`None` at first and after a wait).
    pub fn next(&mut self, answer: Option<&Answer<'_>>, now: Instant) -> Step<ControllerInfo> {
        match self.step(answer, now) {
            Ok(step) => step,
            Err(error) => {
                self.phase = Phase::Done;
                Step::Failed(error)
            }
        }
    }

    fn step(
        &mut self,
        answer: Option<&Answer<'_>>,
        now: Instant,
    ) -> Result<Step<ControllerInfo>, ConnectError> {
        let Some(answer) = answer else {
            return match self.phase {
                Phase::Start => Ok(self.connect()),
                Phase::Ready => Ok(property_get(Property::CSTS, PropertySize::Four)),
                _ => Err(ConnectError::Unusable(
                    "bring-up went on without an answer".to_owned(),
                )),
            };
        };
        let completion = &answer.completion;
        match self.phase {
            Phase::Connect => {
                self.controller_id = self.accepted(completion)?;
                self.phase = Phase::Capabilities;
                Ok(property_get(Property::CAP, PropertySize::Eight))
            }
            Phase::Capabilities => {
                succeeded("reading the capabilities", completion)?;
                self.capabilities = Cap(completion.result);
                self.phase = Phase::Version;
                Ok(property_get(Property::VS, PropertySize::Four))
            }
            Phase::Version => {
                succeeded("reading the version", completion)?;
                self.version = Version(completion.dw0());
                if self.version < OLDEST_VERSION {
                    return Err(ConnectError::TooOld {
                        came: self.version,
                        oldest: OLDEST_VERSION,
                    });
                }
                self.phase = Phase::Enable;
                self.configuration = self.configure()?;
                Ok(property_set(Property::CC, self.configuration.0))
            }
            Phase::Enable => {
                succeeded("enabling the controller", completion)?;
                self.phase = Phase::Ready;
                let stated = Duration::from_millis(self.capabilities.timeout_ms().into());
                self.ready_limit = stated.max(READY_AT_LEAST);
                self.ready_by = now + self.ready_limit;
                Ok(property_get(Property::CSTS, PropertySize::Four))
            }
            Phase::Ready => {
                succeeded("reading the status", completion)?;
                let status = Csts(completion.dw0());
                if status.fatal() {
                    return Err(ConnectError::Fatal);
                }
                if status.ready() {
                    self.phase = Phase::Identify;
                    let command = Command(Identify::controller().to_sqe(0));
                    return Ok(Step::Submit {
                        command,
                        data: StepData::In(DATA_SIZE),
                    });
                }
                if now >= self.ready_by {
                    return Err(ConnectError::NotReady {
                        waited: self.ready_limit,
                    });
                }
                let again = (now + self.look).min(self.ready_by);
                self.look = (self.look * 2).min(LOOK_LONGEST);
                Ok(Step::WaitUntil(again))
            }
            Phase::Identify => {
                succeeded("identify controller", completion)?;
                let asked = &self.params.subsystem;
                let info = ControllerInfo::from_page(
                    answer.data,
                    self.capabilities,
                    self.version,
                    self.controller_id,
                    asked,
                )?;
                let kind = info.kind;
                self.info = Some(info);
                if kind == ControllerKind::Io {
                    self.phase = Phase::Queues;
                    let pairs = NumberOfQueues::pairs(self.params.io_queues.into());
                    let queues = pairs.unwrap_or(NumberOfQueues {
                        submission_z: 0,
                        completion_z: 0,
                    });
                    Ok(set_feature(FeatureId::NUMBER_OF_QUEUES, queues.to_dword()))
                } else {
                    Ok(self.events())
                }
            }
            Phase::Queues => {
                succeeded("asking for i/o queues", completion)?;
                let granted = NumberOfQueues::from_dword(completion.dw0()).queue_pairs();
                if let Some(info) = &mut self.info {
                    let granted = u16::try_from(granted).unwrap_or(u16::MAX);
                    info.io_queues = granted.min(self.params.io_queues);
                }
                Ok(self.events())
            }
            Phase::Events => {
                // A controller without configurable events is usable without them.
                Ok(self.keep_alive(completion.is_success()))
            }
            Phase::KeepAlive => {
                let asked = millis(self.params.keep_alive);
                // A controller that has no such feature, or hides it, keeps the time that Connect asked for.
                let in_force = if completion.is_success() && completion.dw0() > 0 {
                    completion.dw0()
                } else {
                    asked
                };
                self.finish(in_force)
            }
            Phase::Start | Phase::Done => Err(ConnectError::Unusable("bring-up is not under way".to_owned())),
        }
    }

    fn connect(&mut self) -> Step<ControllerInfo> {
        self.phase = Phase::Connect;
        let command = ConnectCommand {
            recfmt: 0,
            qid: 0,
            sqsize_z: self.params.admin_entries.max(32) - 1,
            cattr: attributes(self.params.sq_flow_control),
            kato_ms: millis(self.params.keep_alive),
        };
        let data = ConnectData::new(
            self.params.host_id,
            CNTLID_DYNAMIC,
            &self.params.subsystem,
            &self.params.host_nqn,
        );
        submit_connect(command, &data)
    }

    fn accepted(&self, completion: &Completion) -> Result<u16, ConnectError> {
        let params = &self.params;
        match response(completion.status, completion.dw0()) {
            ConnectResponse::Success {
                auth_transaction_required: true,
                ..
            }
            | ConnectResponse::Success {
                auth_secure_channel_required: true,
                ..
            } => Err(ConnectError::AuthenticationRequired),
            ConnectResponse::Success { cntlid, .. } if cntlid > CNTLID_MAX => {
                Err(ConnectError::Unusable(format!(
                    "answered connect with controller id {cntlid:#06x}, expected at most {CNTLID_MAX:#06x}"
                )))
            }
            ConnectResponse::Success { cntlid, .. } => Ok(cntlid),
            _ => Err(ConnectError::from_response(
                completion.status,
                completion.dw0(),
                params.subsystem.as_str(),
                params.host_nqn.as_str(),
                params.keep_alive,
            )),
        }
    }

    /// CC for the command sets and page sizes that the controller states.
    fn configure(&self) -> Result<Cc, ConnectError> {
        let sets = self.capabilities.command_sets();
        // CAP.CSS: b0 NVM, b6 several by vector, b7 none (Base 2.0 §3.1.3.1).
        let css = if sets & 1 != 0 {
            Cc::CSS_NVM
        } else if sets & (1 << 6) != 0 {
            Cc::CSS_ALL
        } else if sets & (1 << 7) != 0 || self.params.subsystem.is_discovery() {
            Cc::CSS_ADMIN_ONLY
        } else {
            return Err(ConnectError::Unusable(format!(
                "has no command set that this host knows (CAP.CSS is {sets:#04x})"
            )));
        };
        Ok(Cc::default()
            .with_css(css)
            .with_mps(self.capabilities.mpsmin())
            .with_standard_entry_sizes()
            .with_enabled(true))
    }

    fn events(&mut self) -> Step<ControllerInfo> {
        let wanted = async_event::NAMESPACE_ATTRIBUTE | async_event::DISCOVERY_LOG;
        let possible = self.info.as_ref().map_or(0, |info| info.optional_events) & wanted;
        if possible == 0 {
            return self.keep_alive(true);
        }
        self.phase = Phase::Events;
        set_feature(FeatureId::ASYNC_EVENT, possible)
    }

    fn keep_alive(&mut self, events_configured: bool) -> Step<ControllerInfo> {
        if !events_configured && let Some(info) = &mut self.info {
            info.optional_events = 0;
        }
        if self.params.keep_alive.is_zero() {
            return match self.finish(0) {
                Ok(step) => step,
                Err(error) => Step::Failed(error),
            };
        }
        self.phase = Phase::KeepAlive;
        let command = Command(GetFeatures::new(FeatureId::KEEP_ALIVE_TIMER).to_sqe(0));
        Step::Submit {
            command,
            data: StepData::None,
        }
    }

    fn finish(&mut self, keep_alive_ms: u32) -> Result<Step<ControllerInfo>, ConnectError> {
        self.phase = Phase::Done;
        let Some(mut info) = self.info.take() else {
            return Err(ConnectError::Unusable("was not identified".to_owned()));
        };
        info.keep_alive_ms = keep_alive_ms;
        info.configuration = self.configuration;
        Ok(Step::Ready(info))
    }
}

/// Connects one I/O queue to an association.
#[derive(Debug)]
pub struct IoConnect {
    params: IoConnectParams,
    sent: bool,
}

/// What an I/O queue's connection is told.
#[derive(Debug, Clone)]
pub struct IoConnectParams {
    /// Name of this host.
    pub host_nqn: Nqn,
    /// Identifier of this host.
    pub host_id: [u8; 16],
    /// Subsystem of the association.
    pub subsystem: Nqn,
    /// Controller of the association.
    pub controller_id: u16,
    /// Queue id, from 1.
    pub qid: u16,
    /// Entries: one more than the commands in flight, at least 2.
    pub entries: u16,
    /// Whether to keep submission queue flow control.
    pub sq_flow_control: bool,
}

impl IoConnect {
    /// A connection that has not begun.
    #[must_use]
    pub fn new(params: IoConnectParams) -> Self {
        Self { params, sent: false }
    }

    /// Says what to do next, given the answer to the last command (`None` at first).
    pub fn next(&mut self, answer: Option<&Answer<'_>>) -> Step<()> {
        let params = &self.params;
        let Some(answer) = answer.filter(|_| self.sent) else {
            self.sent = true;
            let command = ConnectCommand {
                recfmt: 0,
                qid: params.qid,
                sqsize_z: params.entries.max(2) - 1,
                cattr: attributes(params.sq_flow_control),
                kato_ms: 0,
            };
            let data = ConnectData::new(
                params.host_id,
                params.controller_id,
                &params.subsystem,
                &params.host_nqn,
            );
            return submit_connect(command, &data);
        };
        let completion = &answer.completion;
        match response(completion.status, completion.dw0()) {
            ConnectResponse::Success {
                auth_transaction_required: true,
                ..
            }
            | ConnectResponse::Success {
                auth_secure_channel_required: true,
                ..
            } => Step::Failed(ConnectError::AuthenticationRequired),
            ConnectResponse::Success { cntlid, .. } if cntlid != params.controller_id => {
                Step::Failed(ConnectError::Unusable(format!(
                    "answered the connect of queue {} as controller {cntlid}, expected {}",
                    params.qid, params.controller_id
                )))
            }
            ConnectResponse::Success { .. } => Step::Ready(()),
            _ => Step::Failed(ConnectError::from_response(
                completion.status,
                completion.dw0(),
                params.subsystem.as_str(),
                params.host_nqn.as_str(),
                Duration::ZERO,
            )),
        }
    }
}

/// Shuts a controller down (CC.SHN normal) and waits for it, a limited time.
#[derive(Debug)]
pub struct Shutdown {
    configuration: Cc,
    until: Instant,
    look: Duration,
    phase: ShutdownPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShutdownPhase {
    Start,
    Notified,
    Looking,
}

impl Shutdown {
    /// A shutdown of a controller that was enabled with this configuration; it gives up at `until`.
    #[must_use]
    pub fn new(configuration: Cc, until: Instant) -> Self {
        Self {
            configuration,
            until,
            look: LOOK_FIRST,
            phase: ShutdownPhase::Start,
        }
    }

    /// Says what to do next, given the answer to the last command (`None` at first and after a wait). [`Step::Ready`] says whether the
    /// controller confirmed: `false` when the time was up.
    pub fn next(&mut self, answer: Option<&Answer<'_>>, now: Instant) -> Step<bool> {
        match (self.phase, answer) {
            (ShutdownPhase::Start, _) => {
                self.phase = ShutdownPhase::Notified;
                let configuration = self.configuration.with_shutdown(ShutdownNotification::Normal);
                property_set(Property::CC, configuration.0)
            }
            (ShutdownPhase::Notified, Some(answer)) => {
                if let Err(error) = succeeded("the shutdown notification", &answer.completion) {
                    return Step::Failed(error);
                }
                self.phase = ShutdownPhase::Looking;
                property_get(Property::CSTS, PropertySize::Four)
            }
            (ShutdownPhase::Looking, Some(answer)) => {
                if let Err(error) = succeeded("reading the status", &answer.completion) {
                    return Step::Failed(error);
                }
                let status = Csts(answer.completion.dw0());
                if status.shutdown() == ShutdownStatus::Complete {
                    return Step::Ready(true);
                }
                if status.fatal() {
                    return Step::Failed(ConnectError::Fatal);
                }
                if now >= self.until {
                    return Step::Ready(false);
                }
                let again = (now + self.look).min(self.until);
                self.look = (self.look * 2).min(LOOK_LONGEST);
                Step::WaitUntil(again)
            }
            (ShutdownPhase::Notified | ShutdownPhase::Looking, None) => {
                property_get(Property::CSTS, PropertySize::Four)
            }
        }
    }
}

/// Milliseconds for a 32-bit field, rounded up so that a timeout is never shorter than asked for.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn attributes(sq_flow_control: bool) -> u8 {
    if sq_flow_control {
        0
    } else {
        ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL
    }
}

fn submit_connect<T>(command: ConnectCommand, data: &ConnectData) -> Step<T> {
    Step::Submit {
        // The queue sets the descriptor when it places the data.
        command: Command(command.to_sqe(0, Sgl::default())),
        data: StepData::Out(data.as_bytes().to_vec()),
    }
}

fn property_get<T>(property: Property, size: PropertySize) -> Step<T> {
    Step::Submit {
        command: Command(PropertyGet { size, property }.to_sqe(0)),
        data: StepData::None,
    }
}

fn property_set<T>(property: Property, value: u32) -> Step<T> {
    let set = PropertySet {
        size: PropertySize::Four,
        property,
        value: value.into(),
    };
    Step::Submit {
        command: Command(set.to_sqe(0)),
        data: StepData::None,
    }
}

fn set_feature<T>(feature: FeatureId, value: u32) -> Step<T> {
    Step::Submit {
        command: Command(SetFeatures::new(feature, value).to_sqe(0)),
        data: StepData::None,
    }
}

fn succeeded(step: &'static str, completion: &Completion) -> Result<(), ConnectError> {
    if completion.is_success() {
        Ok(())
    } else {
        Err(ConnectError::Step {
            step,
            status: completion.status,
        })
    }
}
