//! Both ends in one process, in steady state: what their own counters say about many I/Os after many others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use homi_initiator::{FabricQueue, Initiator, QueueOptions, Uri};
use homi_queue::{Command, Completed, Data, Queue, Region};
use homi_reactor::socket;
use homi_target::{Config, Service, ShardCounters};

use super::allocations::Watch;
use super::{Case, End, Failure, ratio};

/// The name of the thread that submits.
pub const THREAD: &str = "initiator";
/// Bytes of a logical block.
const BLOCK: usize = 4096;
/// Bytes of the namespace.
const NAMESPACE: usize = 64 << 20;
const NQN: &str = "nqn.2026-01.io.homi-fabrics:counts";

/// What an I/O costs one end.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Heap allocations, if the process counts them.
    pub allocations: Option<f64>,
    /// Payload copies in user space between socket and buffer: bytes copied, in payloads.
    pub copies: f64,
    /// System calls.
    pub syscalls: f64,
    /// Those among them that found nothing to do: the price of polling a socket.
    pub empty_syscalls: f64,
    /// What it asked of an RDMA device, over RDMA.
    pub verbs: Option<Verbs>,
}

/// What an I/O asks of an RDMA device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Verbs {
    /// Work requests, receives included.
    pub work_requests: f64,
    /// Lists of them.
    pub doorbells: f64,
    /// Completions of work requests.
    pub completions: f64,
    /// Registrations of memory.
    pub registrations: f64,
}

/// What carries the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// TCP over loopback.
    Tcp,
    /// RDMA between this address and itself; it has to be an RDMA device's.
    Rdma(IpAddr),
}

impl Carrier {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma(_) => "rdma",
        }
    }

    /// Where a target of its own listens. RDMA's ports are chosen by whoever listens.
    fn address(self) -> SocketAddr {
        match self {
            Self::Tcp => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            Self::Rdma(address) => SocketAddr::new(address, 4420),
        }
    }
}

/// What one case costs both ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// What was done.
    pub case: Case,
    /// How many I/Os were counted.
    pub ios: u64,
    /// The target.
    pub target: Cost,
    /// The initiator.
    pub initiator: Cost,
}

impl Costs {
    /// Of one end.
    #[must_use]
    pub fn of(&self, end: End) -> &Cost {
        match end {
            End::Target => &self.target,
            End::Initiator => &self.initiator,
        }
    }
}

/// A target with one shard and a namespace in memory, in this process. The shard stays on the first of the process's cores, since
/// that is what `pin` does.
///
/// # Errors
/// Whatever the service says.
pub fn target(carrier: Carrier) -> Result<Service, Failure> {
    let text = format!(
        "[node]\nshards = 1\npin = true\n[[listener]]\ntransport = \"{}\"\naddress = \"{}\"\n[[subsystem]]\nnqn = \"{NQN}\"\n\
         allow_any_host = true\nnamespace = [{{ nsid = 1, ram = {NAMESPACE} }}]\n",
        carrier.name(),
        carrier.address()
    );
    let config: Config = toml::from_str(&text)?;
    Ok(Service::start(&config)?)
}

/// A closed loop of I/Os on one queue.
struct Loop {
    queue: FabricQueue,
    case: Case,
    /// Memory that no command uses.
    free: Vec<Data>,
    completed: Vec<Completed>,
    random: u64,
}

impl Loop {
    fn new(queue: FabricQueue, case: Case) -> Result<Self, Failure> {
        let depth = usize::from(case.depth);
        let region = Region::allocate(case.io_bytes * depth, BLOCK)?;
        let mut free = Vec::with_capacity(depth);
        for number in 0..depth {
            let start = number * case.io_bytes;
            free.push(Data::One(region.segment(start..start + case.io_bytes)?));
        }
        Ok(Self {
            queue,
            case,
            free,
            completed: Vec::with_capacity(depth),
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    fn command(&mut self) -> Command {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let blocks = u32::try_from(self.case.io_bytes / BLOCK).unwrap_or(1);
        let units = (NAMESPACE / self.case.io_bytes) as u64;
        let lba = self.random % units * u64::from(blocks);
        if self.case.write {
            Command::write(1, lba, blocks)
        } else {
            Command::read(1, lba, blocks)
        }
    }

    /// Completes so many I/Os, with as many in flight as the case says, and leaves the queue as full as it is.
    fn run(&mut self, ios: u64) -> Result<(), Failure> {
        let mut done = 0;
        while done < ios {
            while let Some(data) = self.free.pop() {
                let slot = self.queue.reserve()?;
                let command = self.command();
                self.queue.submit(slot, command, data);
            }
            self.queue.commit()?;
            self.queue.poll(&mut self.completed)?;
            for Completed { completion, data, .. } in self.completed.drain(..) {
                if !completion.is_success() {
                    return Err(format!("an I/O failed: {:?}", completion.status).into());
                }
                done += 1;
                self.free.push(data);
            }
        }
        Ok(())
    }
}

fn shard(service: &Service) -> Result<ShardCounters, Failure> {
    let counters = service.counters().into_iter().next();
    counters.ok_or_else(|| "the target has no shard".into())
}

/// Measures one case after a warm-up of half as many I/Os. The initiator stays on `core`, if one is given.
///
/// # Errors
/// Whatever either end says.
pub fn measure(
    service: &Service,
    carrier: Carrier,
    case: Case,
    ios: u64,
    core: Option<usize>,
) -> Result<Costs, Failure> {
    let address = match carrier {
        Carrier::Tcp => *service.addresses().first().ok_or("the target does not listen")?,
        Carrier::Rdma(_) => carrier.address(),
    };
    let uri: Uri = format!("nvme+{}://{address}/{NQN}", carrier.name()).parse()?;
    let work = || -> Result<Costs, Failure> {
        if let Some(core) = core {
            socket::pin_current_thread(core)?;
        }
        // What speaks RDMA may be an emulated machine.
        let controller = Initiator::builder()
            .connect_timeout(Duration::from_secs(30))
            .build()?
            .connect(&uri)?;
        let queue = controller.queue(QueueOptions::depth(case.depth))?;
        let mut io = Loop::new(queue, case)?;
        io.run(ios / 2)?;
        let (target, initiator) = (Watch::new(End::Target), Watch::new(End::Initiator));
        let before = (shard(service)?, io.queue.counters());
        let allocated = (target.count(), initiator.count());
        io.run(ios)?;
        let allocations = (target.count() - allocated.0, initiator.count() - allocated.1);
        let after = (shard(service)?, io.queue.counters());
        let per = |after: u64, before: u64| ratio(after - before, ios);
        let payloads = |bytes: u64| ratio(bytes, ios * case.io_bytes as u64);
        let verbs = |all: [(u64, u64); 4]| {
            let [work_requests, doorbells, completions, registrations] =
                all.map(|(after, before)| per(after, before));
            (carrier != Carrier::Tcp).then_some(Verbs {
                work_requests,
                doorbells,
                completions,
                registrations,
            })
        };
        let counted = |watch: &Watch, count: u64| (watch.threads() > 0).then(|| ratio(count, ios));
        Ok(Costs {
            case,
            ios,
            target: Cost {
                allocations: counted(&target, allocations.0),
                copies: payloads(after.0.bytes_copied - before.0.bytes_copied),
                syscalls: per(after.0.syscalls, before.0.syscalls),
                empty_syscalls: per(after.0.empty_receives, before.0.empty_receives),
                verbs: verbs([
                    (after.0.work_requests, before.0.work_requests),
                    (after.0.doorbells, before.0.doorbells),
                    (after.0.completions, before.0.completions),
                    (after.0.registrations, before.0.registrations),
                ]),
            },
            initiator: Cost {
                allocations: counted(&initiator, allocations.1),
                copies: payloads(after.1.bytes_copied - before.1.bytes_copied),
                syscalls: per(after.1.system_calls(), before.1.system_calls()),
                empty_syscalls: per(after.1.empty_receives, before.1.empty_receives),
                verbs: verbs([
                    (after.1.work_requests, before.1.work_requests),
                    (after.1.doorbells, before.1.doorbells),
                    (after.1.completions, before.1.completions),
                    (after.1.registrations, before.1.registrations),
                ]),
            },
        })
    };
    thread::scope(|scope| {
        let submitting = thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn_scoped(scope, work)?;
        submitting
            .join()
            .unwrap_or_else(|_| Err("the submitting thread panicked".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{LARGE, SMALL};
    use super::*;

    #[test]
    fn small_payload_is_copied_once_and_large_payload_is_not() {
        let service = target(Carrier::Tcp).unwrap();
        for (case, at_target, at_initiator) in [
            (Case::read(SMALL, 32), 0.0..=0.0, 0.9..=1.1),
            (Case::write(SMALL, 32), 0.9..=1.1, 0.0..=0.0),
            (Case::read(LARGE, 8), 0.0..=0.0, 0.0..=0.02),
            // What came with a header.
            (Case::write(LARGE, 8), 0.0..=0.02, 0.0..=0.0),
        ] {
            let costs = measure(&service, Carrier::Tcp, case, 400, None).unwrap();
            assert!(at_target.contains(&costs.target.copies), "{costs:?}");
            assert!(at_initiator.contains(&costs.initiator.copies), "{costs:?}");
            assert!(
                costs.target.syscalls > 0.0 && costs.initiator.syscalls > 0.0,
                "{costs:?}"
            );
            assert_eq!(costs.target.allocations, None, "this program counts none");
        }
    }
}
