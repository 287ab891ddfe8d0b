//! A target's connections over RDMA without any device: the test is the queue pair and the host's memory.
#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use std::collections::VecDeque;

use homi_fabric::rdma::{ControllerParams, Operation, ReceiveBuffer, Span, WorkId};
use homi_queue::Region;
use homi_spec::command::{Psdt, SQE_SIZE, Sqe};
use homi_spec::controller::Cc;
use homi_spec::fabrics::{ConnectCommand, ConnectData, Property, PropertySet, PropertySize};
use homi_spec::identify::{Identify, IdentifyController};
use homi_spec::nvm::BlockCommand;
use homi_spec::status::Status;
use homi_spec::{Cqe, Nqn, Sgl};
use homi_target::Config;
use homi_target::memory::{Connection, MemoryTarget};
use zerocopy::{FromBytes, IntoBytes};

const NQN: &str = "nqn.2026-01.org.example:data";
const BLOCK: usize = 512;
const IN_CAPSULE: usize = 8192;
/// Where the host's memory is, and its key.
const BASE: u64 = 0x7000_0000;
const KEY: u32 = 0x77;
const MEMORY: usize = 8 << 20;
const DEPTH: u16 = 64;

fn config() -> Config {
    toml::from_str(&format!(
        "[node]\nbuffers = \"1M\"\nmax_transfer = \"1M\"\n\
         [[listener]]\ntransport = \"rdma\"\naddress = \"127.0.0.1:4420\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"8M\"\nblock_size = {BLOCK}\n"
    ))
    .unwrap()
}

/// The host's end of a queue pair.
struct Pair {
    connection: Connection,
    /// Receives that are posted.
    posted: VecDeque<ReceiveBuffer>,
    /// Signaled work that was carried out and whose completions the target has not seen.
    done: VecDeque<WorkId>,
    responses: Vec<Cqe>,
    /// Receives that the target has.
    taken: usize,
}

struct Host {
    target: MemoryTarget,
    memory: Region,
    controller: u16,
}

impl Host {
    fn new() -> Self {
        Self {
            target: MemoryTarget::new(&config()).unwrap(),
            memory: Region::allocate(MEMORY, 4096).unwrap(),
            controller: 0xffff,
        }
    }

    fn pair(&mut self) -> Pair {
        let connection = self
            .target
            .connect_rdma(ControllerParams {
                max_in_capsule: u32::try_from(IN_CAPSULE).unwrap(),
                max_depth: DEPTH,
                send_queue: 2 * DEPTH,
                ..ControllerParams::default()
            })
            .unwrap();
        let posted = (0..u32::from(DEPTH))
            .map(|id| {
                let region = Region::allocate(SQE_SIZE + IN_CAPSULE, 64).unwrap();
                ReceiveBuffer {
                    id,
                    entry: region.segment(0..SQE_SIZE).unwrap(),
                    data: Some(region.segment(SQE_SIZE..region.len()).unwrap()),
                }
            })
            .collect();
        let established = self.target.queue_pair(connection, |link| link.established());
        established.unwrap().unwrap();
        Pair {
            connection,
            posted,
            done: VecDeque::new(),
            responses: Vec::new(),
            taken: 0,
        }
    }

    /// Sends a capsule.
    fn send(&mut self, pair: &mut Pair, sqe: &Sqe, data: &[u8]) {
        let buffer = pair.posted.pop_front().expect("a receive is posted");
        pair.taken += 1;
        buffer
            .entry
            .region()
            .write(buffer.entry.start(), sqe.as_bytes())
            .unwrap();
        if let Some(place) = &buffer.data {
            place.region().write(place.start(), data).unwrap();
        }
        let len = SQE_SIZE + data.len();
        let received = self
            .target
            .queue_pair(pair.connection, |link| link.received(buffer, len));
        received.unwrap().unwrap();
    }

    /// Carries out the work of the target; its completions are kept back.
    fn work(&mut self, pair: &mut Pair) -> bool {
        let memory = self.memory.clone();
        let receives = self.target.returned_receives(pair.connection);
        pair.taken -= receives.len();
        pair.posted.extend(receives);
        let (done, responses) = (&mut pair.done, &mut pair.responses);
        let mut any = false;
        self.target.queue_pair(pair.connection, |link| {
            while let Some(work) = link.poll_work() {
                any = true;
                match &work.operation {
                    Operation::Send(capsule) => {
                        responses.push(Cqe::read_from_bytes(capsule.entry).unwrap());
                    }
                    Operation::Write { remote, local } => {
                        let to = place(remote.address.0, remote.key.0, remote.len);
                        each(local, to, |region, at, to, len| {
                            region.copy_to(at, &memory, to, len).unwrap();
                        });
                    }
                    Operation::Read { remote, local } => {
                        let from = place(remote.address.0, remote.key.0, remote.len);
                        each(local, from, |region, at, from, len| {
                            memory.copy_to(from, region, at, len).unwrap();
                        });
                    }
                }
                if work.signaled {
                    done.push_back(work.id);
                }
            }
        });
        any
    }

    fn complete(&mut self, pair: &mut Pair) -> bool {
        let Some(id) = pair.done.pop_front() else {
            return false;
        };
        let completed = self.target.queue_pair(pair.connection, |link| link.completed(id));
        completed.unwrap().unwrap();
        true
    }

    /// Lets everything happen.
    fn run(&mut self, pair: &mut Pair) {
        while self.work(pair) | self.complete(pair) {}
    }

    fn call(&mut self, pair: &mut Pair, sqe: &Sqe, data: &[u8]) -> Cqe {
        self.send(pair, sqe, data);
        self.run(pair);
        let cqe = pair.responses.pop().expect("a response");
        assert!(pair.responses.is_empty());
        assert_eq!(cqe.cid, sqe.cid);
        cqe
    }

    fn connect(&mut self, qid: u16, in_capsule: bool) -> Pair {
        let mut pair = self.pair();
        let name = |name: &str| Nqn::new(name).unwrap();
        let data = ConnectData::new(
            [7; 16],
            self.controller,
            &name(NQN),
            &name("nqn.2026-01.org.example:host"),
        );
        let command = ConnectCommand {
            qid,
            sqsize_z: DEPTH - 1,
            ..ConnectCommand::default()
        };
        let cqe = if in_capsule {
            let sqe = command.to_sqe(1, Sgl::in_capsule(0, 1024));
            self.call(&mut pair, &sqe, data.as_bytes())
        } else {
            self.memory.write(0, data.as_bytes()).unwrap();
            let sqe = command.to_sqe(1, keyed(0, 1024));
            self.call(&mut pair, &sqe, &[])
        };
        assert_eq!(cqe.status(), Status::SUCCESS);
        if qid == 0 {
            self.controller = u16::try_from(cqe.dw0.get()).unwrap();
        }
        pair
    }

    /// An admin queue of an enabled controller, and an I/O queue.
    fn association(&mut self) -> (Pair, Pair) {
        self.controller = 0xffff;
        let mut admin = self.connect(0, false);
        let enable = PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: Cc(0x0046_0001).0.into(),
        };
        let cqe = self.call(&mut admin, &enable.to_sqe(2), &[]);
        assert_eq!(cqe.status(), Status::SUCCESS);
        let io = self.connect(1, true);
        (admin, io)
    }

    fn close(&mut self, pair: Pair) {
        let receives = self
            .target
            .close_rdma(pair.connection)
            .expect("memory executes at once");
        assert_eq!(receives.len(), pair.taken, "every receive comes back");
    }
}

fn keyed(at: usize, len: usize) -> Sgl {
    Sgl::keyed(BASE + at as u64, u32::try_from(len).unwrap(), KEY, false).unwrap()
}

/// Where an access to the host's memory goes; it must not be one that no command named.
fn place(address: u64, key: u32, len: u32) -> usize {
    assert_eq!(key, KEY);
    let at = usize::try_from(address.checked_sub(BASE).unwrap()).unwrap();
    assert!(at + len as usize <= MEMORY);
    at
}

fn each(local: &Span<'_>, mut remote: usize, mut f: impl FnMut(&Region, usize, usize, usize)) {
    for piece in local.pieces() {
        f(piece.segment.region(), piece.start, remote, piece.len);
        remote += piece.len;
    }
}

fn io(command: BlockCommand, cid: u16, sgl: Sgl) -> Sqe {
    let mut sqe = command.to_sqe(cid);
    sqe.set_psdt(Psdt::SGL);
    sqe.set_sgl(sgl);
    sqe
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 31 + at / 256 + seed * 97) % 251).unwrap())
        .collect()
}

fn blocks(len: usize) -> u32 {
    u32::try_from(len / BLOCK).unwrap()
}

#[test]
fn what_is_written_in_capsules_and_fetched_is_read_back() {
    let mut host = Host::new();
    let (mut admin, mut queue) = host.association();
    let mut identify = Identify::controller().to_sqe(3);
    identify.set_psdt(Psdt::SGL);
    identify.set_sgl(keyed(0, 4096));
    assert_eq!(host.call(&mut admin, &identify, &[]).status(), Status::SUCCESS);
    let mut page = [0; 4096];
    host.memory.read(0, &mut page).unwrap();
    let page = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!(
        (page.ioccsz.get(), page.iorcsz.get(), page.icdoff.get()),
        ((64 + 8192) / 16, 1, 0)
    );
    assert_eq!((page.sgls.get(), page.msdbd), (0x10_0005, 1));

    for (round, len) in [512, 4096, 8192, 8704, 65536, 1 << 20].into_iter().enumerate() {
        let bytes = pattern(round, len);
        let write = BlockCommand::write(1, 16, blocks(len)).unwrap();
        let cqe = if len <= IN_CAPSULE {
            let sqe = io(write, 7, Sgl::in_capsule(0, u32::try_from(len).unwrap()));
            host.call(&mut queue, &sqe, &bytes)
        } else {
            host.memory.write(4096, &bytes).unwrap();
            host.call(&mut queue, &io(write, 7, keyed(4096, len)), &[])
        };
        assert_eq!(cqe.status(), Status::SUCCESS, "{len} bytes are written");
        host.memory.fill(0, 4 << 20, 0xee).unwrap();
        let read = BlockCommand::read(1, 16, blocks(len)).unwrap();
        let cqe = host.call(&mut queue, &io(read, 8, keyed(8192, len)), &[]);
        assert_eq!(cqe.status(), Status::SUCCESS, "{len} bytes are read");
        let mut back = vec![0; len];
        host.memory.read(8192, &mut back).unwrap();
        assert_eq!(back, bytes);
        let mut around = [0; 2];
        host.memory.read(8191, &mut around[..1]).unwrap();
        host.memory.read(8192 + len, &mut around[1..]).unwrap();
        assert_eq!(around, [0xee; 2], "nothing else is written");
    }
    assert_eq!(queue.taken, 0);
    host.close(queue);
    host.close(admin);
    assert_eq!(host.target.connections(), 0);
}

#[test]
fn commands_wait_for_buffers_and_none_is_lost() {
    let mut host = Host::new();
    let (_admin, mut queue) = host.association();
    // Eight times what the target has buffers for, again and again: all are answered, and no buffer gets lost.
    for round in 0..20 {
        for number in 0..DEPTH - 1 {
            let len = 128 << 10;
            let at = usize::from(number) * BLOCK;
            let command = if (usize::from(number) + round) % 2 == 0 {
                BlockCommand::read(1, 0, blocks(len)).unwrap()
            } else {
                BlockCommand::write(1, 1000, blocks(len)).unwrap()
            };
            host.send(&mut queue, &io(command, number, keyed(at, len)), &[]);
        }
        host.run(&mut queue);
        let mut answered: Vec<u16> = queue.responses.drain(..).map(|cqe| cqe.cid.get()).collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..DEPTH - 1).collect::<Vec<u16>>(), "round {round}");
    }
}

#[test]
fn a_large_command_is_not_kept_waiting_by_small_ones() {
    let mut host = Host::new();
    let (_admin, mut queue) = host.association();
    let small = |cid: u16| {
        let read = BlockCommand::read(1, 0, blocks(64 << 10)).unwrap();
        io(read, cid, keyed(0, 64 << 10))
    };
    for cid in 0..20 {
        host.send(&mut queue, &small(cid), &[]);
    }
    let large = BlockCommand::read(1, 0, blocks(1 << 20)).unwrap();
    host.send(&mut queue, &io(large, 50, keyed(0, 1 << 20)), &[]);
    // For each small one whose buffer is free again there is another small one at once.
    let mut again = VecDeque::new();
    for _ in 0..1000 {
        host.work(&mut queue);
        again.extend(queue.responses.drain(..).map(|cqe| cqe.cid.get()));
        if again.contains(&50) {
            return;
        }
        host.complete(&mut queue);
        if let Some(cid) = again.pop_front() {
            host.send(&mut queue, &small(cid), &[]);
        }
    }
    panic!("the large command is never answered");
}

#[test]
fn connections_that_break_in_the_middle_of_data_leave_nothing_behind() {
    let mut host = Host::new();
    for round in 0..30 {
        let (mut admin, mut queue) = host.association();
        host.send(&mut admin, &homi_spec::admin::async_event_request(9), &[]);
        for number in 0..20 {
            let len = 64 << 10;
            let command = if number % 2 == 0 {
                BlockCommand::read(1, 0, blocks(len)).unwrap()
            } else {
                BlockCommand::write(1, 0, blocks(len)).unwrap()
            };
            host.send(&mut queue, &io(command, number, keyed(0, len)), &[]);
            if number == 10 {
                let sqe = io(
                    BlockCommand::write(1, 0, 1).unwrap(),
                    100,
                    Sgl::in_capsule(0, 512),
                );
                host.send(&mut queue, &sqe, &[1; 512]);
            }
        }
        if round % 3 > 0 {
            host.work(&mut queue);
        }
        if round % 3 > 1 {
            host.complete(&mut queue);
            host.work(&mut queue);
        }
        // The queue first, or the other way round.
        let both = if round % 2 == 0 {
            [queue, admin]
        } else {
            [admin, queue]
        };
        for pair in both {
            host.close(pair);
        }
        assert_eq!(host.target.connections(), 0);
    }
    // All of the buffers are there for somebody else.
    let (_admin, mut queue) = host.association();
    for number in 0..40 {
        let len = 256 << 10;
        let read = BlockCommand::read(1, 0, blocks(len)).unwrap();
        host.send(&mut queue, &io(read, number, keyed(0, len)), &[]);
    }
    host.run(&mut queue);
    assert_eq!(queue.responses.len(), 40);
}

#[test]
fn what_a_host_may_not_do_is_answered_and_touches_nothing() {
    let mut host = Host::new();
    let (_admin, mut queue) = host.association();
    host.memory.fill(0, MEMORY, 0xaa).unwrap();
    let read = BlockCommand::read(1, 0, 8).unwrap();
    let write = BlockCommand::write(1, 0, 8).unwrap();
    let past_end = BlockCommand::read(1, (8 << 20) / BLOCK as u64 - 1, 8).unwrap();
    let cases = [
        // The descriptor covers fewer or more bytes than the command moves.
        (io(read, 1, keyed(0, 4095)), Status::SGL_DATA_LENGTH_INVALID),
        (io(write, 2, keyed(0, 8192)), Status::SGL_DATA_LENGTH_INVALID),
        // Data in the capsule that is not there, or goes the wrong way.
        (io(write, 3, Sgl::in_capsule(0, 4096)), Status::SGL_OFFSET_INVALID),
        (io(read, 4, Sgl::in_capsule(0, 4096)), Status::SGL_TYPE_INVALID),
        (io(past_end, 5, keyed(0, 4096)), Status::LBA_OUT_OF_RANGE),
        (
            io(BlockCommand::read(9, 0, 8).unwrap(), 6, keyed(0, 4096)),
            Status::INVALID_NAMESPACE,
        ),
        // Memory at the end of all addresses.
        (
            io(read, 7, Sgl::keyed(u64::MAX - 100, 4096, KEY, false).unwrap()),
            Status::DATA_TRANSFER_ERROR,
        ),
    ];
    for (sqe, status) in cases {
        let cqe = host.call(&mut queue, &sqe, &[]);
        assert!(
            cqe.status().is(status),
            "{:?} instead of {status:?}",
            cqe.status()
        );
    }
    let mut memory = vec![0; MEMORY];
    host.memory.read(0, &mut memory).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0xaa));
    // The queue goes on.
    let cqe = host.call(&mut queue, &io(read, 8, keyed(0, 4096)), &[]);
    assert_eq!(cqe.status(), Status::SUCCESS);
}
