//! The loopback pair: a target in memory and the initiator's queues over pipes, on one thread, in virtual time.
//!
//! [`PairHost`] does what the initiator's background thread does for associations over TCP, with the same state machines,
//! but as its test says: it sends no keep-alives of its own accord.

use std::time::Duration;

use homi_fabric::host::{
    Answer, BringUp, BringUpParams, ControllerInfo, Discovery, DiscoveryRecord, DiscoveryStep, EventOutcome,
    Events, IoConnect, IoConnectParams, Shutdown, Step, StepData,
};
use homi_fabric::tcp::HostParams;
use homi_fabric::time::Instant;
use homi_initiator::{ControllerEvent, StreamParams, StreamQueue};
use homi_queue::{Command, CommandId, Completion, Data, LostReason, Queue, QueueLost, Region};
use homi_spec::Nqn;
use homi_spec::admin;
use homi_spec::command::NSID_BROADCAST;
use homi_spec::event::AsyncEvent;
use homi_spec::log::{ChangedNamespaces, GetLogPage, LogId};
use homi_spec::tcp::ADMIN_IN_CAPSULE;
use homi_target::ServiceError;
use homi_target::config::Config;
use zerocopy::FromBytes;

use crate::faults::Faults;
use crate::harness::{DEADLINE, Harness, Host, HostOptions};
use crate::issuer::{Issuer, bytes_of};
use crate::meddler::Meddler;
use crate::peer::{RawHost, memory_wire};
use crate::pipe::{Pipe, World};

/// Entries of an admin queue.
const ADMIN_ENTRIES: u16 = 32;
/// Bytes of a changed namespace list.
const CHANGED_LIST: usize = 4096;

/// A queue over a pipe.
pub type PipeQueue = StreamQueue<Pipe>;

/// A target in memory.
#[derive(Debug)]
pub struct Pair {
    world: World,
}

impl Pair {
    /// The world of the pair.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Connects a host whose connections have these faults, the first for its admin queue.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    pub fn host_with(
        &mut self,
        options: &HostOptions,
        admin: Faults,
        io: Faults,
    ) -> Result<PairHost, String> {
        let mut host = PairHost::connect(&self.world, options, admin, None)?;
        host.io_faults = io;
        Ok(host)
    }

    /// Connects a host, with a meddler on its admin connection.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    pub fn host_through(&mut self, options: &HostOptions, meddler: Meddler) -> Result<PairHost, String> {
        PairHost::connect(&self.world, options, Faults::default(), Some(meddler))
    }
}

impl Harness for Pair {
    type Host = PairHost;

    fn try_start(config: &Config) -> Result<Self, ServiceError> {
        World::new(config).map(|world| Self { world })
    }

    fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        self.world.apply(config)
    }

    fn try_host(&mut self, options: &HostOptions) -> Result<PairHost, String> {
        PairHost::connect(&self.world, options, Faults::default(), None)
    }

    fn discover(&mut self, host_nqn: &str) -> Result<Vec<DiscoveryRecord>, String> {
        let options = HostOptions {
            host_nqn: host_nqn.to_owned(),
            subsystem: Nqn::discovery().to_string(),
            ..HostOptions::default()
        };
        self.try_host(&options)?.discover()
    }

    fn raw(&mut self) -> RawHost {
        RawHost::new(memory_wire(self.world.connect(Faults::default())))
    }

    fn connections(&self) -> usize {
        self.world.pump();
        self.world.connections()
    }

    fn wait_for_connections(&self, count: usize) {
        assert_eq!(self.connections(), count);
    }
}

/// Parameters of the connections of a host.
fn params(options: &HostOptions, depth: u16, in_capsule: u32) -> StreamParams {
    StreamParams::new(HostParams {
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        depth,
        in_capsule,
        ..HostParams::default()
    })
}

/// A queue over a new connection, initialised.
///
/// # Errors
/// Why the connection ended instead.
pub fn initialize(pipe: Pipe, params: StreamParams) -> Result<PipeQueue, String> {
    let mut queue = StreamQueue::new(pipe, params).map_err(|error| error.to_string())?;
    let text = |lost: QueueLost| lost.reason().to_string();
    queue.commit().map_err(text)?;
    let mut completed = Vec::new();
    // Everything moves when it is asked for, so one look after everything moved is enough. Pieces come one by one.
    for _ in 0..1000 {
        if queue.is_ready() {
            return Ok(queue);
        }
        queue.poll(&mut completed).map_err(text)?;
    }
    Err("no answer to the initialisation request".to_owned())
}

/// A host over pipes.
#[derive(Debug)]
pub struct PairHost {
    world: World,
    options: HostOptions,
    admin: Issuer<PipeQueue>,
    info: ControllerInfo,
    events: Events,
    /// Event requests in flight.
    requests: Vec<CommandId>,
    next_qid: u16,
    /// The faults of I/O connections made from now on.
    pub io_faults: Faults,
}

/// Runs a sequence on a queue, in the world's time.
fn run<T>(
    world: &World,
    queue: &mut Issuer<PipeQueue>,
    mut next: impl FnMut(Option<&Answer<'_>>, Instant) -> Step<T>,
) -> Result<T, String> {
    let mut step = next(None, world.now());
    loop {
        step = match step {
            Step::Submit { command, data } => {
                let (completion, data) =
                    execute(world, queue, command, data).map_err(|reason| reason.to_string())?;
                let answer = Answer {
                    completion,
                    data: &data,
                };
                next(Some(&answer), world.now())
            }
            Step::WaitUntil(time) => {
                world.pass(time.saturating_since(world.now()));
                next(None, world.now())
            }
            Step::Ready(result) => return Ok(result),
            Step::Failed(error) => return Err(error.to_string()),
        };
    }
}

fn execute(
    world: &World,
    queue: &mut Issuer<PipeQueue>,
    command: Command,
    data: StepData,
) -> Result<(Completion, Vec<u8>), LostReason> {
    let incoming = matches!(data, StepData::In(_));
    let data = match data {
        StepData::None => Data::None,
        StepData::Out(bytes) => Data::whole(Region::from_vec(bytes)),
        StepData::In(len) => Data::whole(Region::from_vec(vec![0; len])),
    };
    let reason = |lost: QueueLost| lost.reason().clone();
    let id = queue.submit(command, data);
    queue.commit().map_err(reason)?;
    let completed = loop {
        // Asked first: what comes of the poll is found below.
        let idle = world.is_idle();
        queue.poll().map_err(reason)?;
        if let Some(completed) = queue.take(id) {
            break completed;
        }
        if idle {
            return Err(LostReason::Io("no answer, and nothing is under way".to_owned()));
        }
    };
    let bytes = if incoming {
        bytes_of(&completed.data)
    } else {
        Vec::new()
    };
    Ok((completed.completion, bytes))
}

fn nqn(name: &str) -> Nqn {
    Nqn::new(name).unwrap()
}

/// The identifier that goes with a host's name.
#[must_use]
pub fn host_id(name: &str) -> [u8; 16] {
    let mut id = [0; 16];
    for (index, byte) in name.bytes().enumerate() {
        id[index % 16] ^= byte.rotate_left(u32::try_from(index / 16).unwrap());
    }
    id
}

impl PairHost {
    fn connect(
        world: &World,
        options: &HostOptions,
        faults: Faults,
        meddler: Option<Meddler>,
    ) -> Result<Self, String> {
        let pipe = world.connect_through(faults, meddler);
        let mut admin = Issuer::new(initialize(
            pipe,
            params(options, ADMIN_ENTRIES - 1, ADMIN_IN_CAPSULE),
        )?);
        let mut bring_up = BringUp::new(BringUpParams {
            host_nqn: nqn(&options.host_nqn),
            host_id: host_id(&options.host_nqn),
            subsystem: nqn(&options.subsystem),
            keep_alive: options.keep_alive,
            admin_entries: ADMIN_ENTRIES,
            sq_flow_control: options.sq_flow_control,
            io_queues: options.io_queues,
        });
        let info = run(world, &mut admin, |answer, now| bring_up.next(answer, now))?;
        let mut host = Self {
            world: world.clone(),
            options: options.clone(),
            admin,
            events: Events::new(info.event_requests, world.now()),
            info,
            requests: Vec::new(),
            next_qid: 1,
            io_faults: Faults::default(),
        };
        host.request_events();
        Ok(host)
    }

    /// Its admin queue.
    pub fn admin_queue(&mut self) -> &mut Issuer<PipeQueue> {
        &mut self.admin
    }

    /// A queue whose units a meddler sees first.
    ///
    /// # Errors
    /// The sentence that the initiator's user would see.
    pub fn queue_through(
        &mut self,
        depth: u16,
        meddler: Option<Meddler>,
    ) -> Result<Issuer<PipeQueue>, String> {
        let pipe = self.world.connect_through(self.io_faults.clone(), meddler);
        let most = u16::try_from(self.info.max_queue_entries - 1).unwrap_or(u16::MAX);
        let depth = depth.min(most);
        let params = params(&self.options, depth, self.info.in_capsule);
        let mut queue = Issuer::new(initialize(pipe, params)?);
        let mut connect = IoConnect::new(IoConnectParams {
            host_nqn: nqn(&self.options.host_nqn),
            host_id: host_id(&self.options.host_nqn),
            subsystem: nqn(&self.options.subsystem),
            controller_id: self.info.controller_id,
            qid: self.next_qid,
            entries: depth + 1,
            sq_flow_control: self.options.sq_flow_control,
        });
        run(&self.world, &mut queue, |answer, _| connect.next(answer))?;
        self.next_qid += 1;
        Ok(queue)
    }

    fn request_events(&mut self) {
        let (wanted, _) = self.events.wanted(self.world.now());
        for _ in 0..wanted {
            let id = self
                .admin
                .submit(Command(admin::async_event_request(0)), Data::None);
            self.requests.push(id);
            self.events.sent();
        }
        if self.admin.commit().is_ok() {
            self.world.pump();
        }
    }

    fn discover(&mut self) -> Result<Vec<DiscoveryRecord>, String> {
        let mut discovery = Discovery::new(self.info.max_transfer);
        let mut step = discovery.next(None);
        loop {
            step = match step {
                DiscoveryStep::Submit { command, data } => {
                    let (completion, data) = execute(&self.world, &mut self.admin, command, data)
                        .map_err(|reason| reason.to_string())?;
                    discovery.next(Some(&Answer {
                        completion,
                        data: &data,
                    }))
                }
                DiscoveryStep::Ready { records, .. } => return Ok(records),
                DiscoveryStep::Failed(error) => return Err(error.to_string()),
            };
        }
    }

    /// What an event that completed means, as the initiator's keeper reports it.
    fn report(&mut self, completion: &Completion) -> Option<ControllerEvent> {
        Some(match self.events.completed(completion) {
            EventOutcome::Refused(_) => return None,
            EventOutcome::Event(AsyncEvent::NAMESPACE_ATTRIBUTE) => {
                let mut page = GetLogPage::new(LogId::CHANGED_NAMESPACES, CHANGED_LIST as u64).unwrap();
                page.nsid = NSID_BROADCAST;
                let bytes = self.read_page(Command(page.to_sqe(0)), CHANGED_LIST).unwrap();
                let list = ChangedNamespaces::read_from_bytes(&bytes).unwrap();
                ControllerEvent::NamespacesChanged(list.iter().collect())
            }
            EventOutcome::Event(AsyncEvent::DISCOVERY_LOG) => ControllerEvent::DiscoveryChanged,
            EventOutcome::Event(event) => ControllerEvent::Other {
                kind: event.event_type.raw(),
                information: event.info,
                log_page: event.log.raw(),
            },
        })
    }
}

impl Host for PairHost {
    type Queue = PipeQueue;

    fn info(&self) -> &ControllerInfo {
        &self.info
    }

    fn try_admin(&mut self, command: Command, data: StepData) -> Result<(Completion, Vec<u8>), String> {
        execute(&self.world, &mut self.admin, command, data).map_err(|reason| reason.to_string())
    }

    fn try_queue(&mut self, depth: u16) -> Result<Issuer<PipeQueue>, String> {
        self.queue_through(depth, None)
    }

    fn event(&mut self) -> ControllerEvent {
        loop {
            self.admin
                .poll()
                .unwrap_or_else(|lost| panic!("the association ended: {}", lost.reason()));
            let known = self.requests.clone();
            let found = known.into_iter().find_map(|id| self.admin.take(id));
            let Some(completed) = found else {
                panic!("no event, and nothing is under way");
            };
            self.requests.retain(|id| *id != completed.id);
            let event = self.report(&completed.completion);
            self.request_events();
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn wait_for_the_end(&mut self) -> String {
        // Whatever ends an association that nobody uses, time does.
        let step = Duration::from_secs(1);
        for _ in 0..3600 {
            if let Err(lost) = self.admin.poll() {
                let reason = self.admin.queue().stream().closing_reason();
                return reason.unwrap_or_else(|| lost.reason().to_string());
            }
            self.world.pass(step);
        }
        panic!("the association does not end");
    }

    fn disconnect(mut self) -> bool {
        let mut shutdown = Shutdown::new(self.info.configuration, self.world.now() + DEADLINE);
        run(&self.world, &mut self.admin, |answer, now| {
            shutdown.next(answer, now)
        })
        .unwrap_or(false)
    }
}
