//! Random commands at every depth against a model of what the namespace must hold.

use std::collections::HashMap;

use homi_queue::{Command, CommandId, Data, Queue, Region, Wait};
use homi_spec::Status;
use homi_spec::nvm::DsmRange;
use zerocopy::IntoBytes;

use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::{Issuer, blank, bytes_of, memory};
use crate::random::{Random, contents};
use crate::settings::everything;

/// Bytes that one command of a mix covers at most.
const LARGEST: usize = 96 << 10;

/// Some blocks of a namespace that only one queue touches, and what they must hold.
#[derive(Debug)]
struct Model {
    nsid: u32,
    size: usize,
    first: u64,
    /// What each block was written from; 0 is a block of zeroes.
    seeds: Vec<u64>,
    /// Blocks of commands in flight, which no other command may touch: their order is not defined.
    busy: Vec<bool>,
}

/// What a command in flight must bring about.
#[derive(Debug)]
enum Expected {
    Bytes(Vec<u8>),
    Status(Status),
}

#[derive(Debug)]
struct Flight {
    start: usize,
    blocks: usize,
    /// The seeds of its blocks once it has completed, if it changes them.
    after: Option<Vec<u64>>,
    expected: Expected,
}

impl Model {
    fn new((nsid, size): (u32, u32), first: u64, blocks: usize) -> Self {
        Self {
            nsid,
            size: usize::try_from(size).unwrap(),
            first,
            seeds: vec![0; blocks],
            busy: vec![false; blocks],
        }
    }

    fn block(&self, seed: u64) -> Vec<u8> {
        if seed == 0 {
            vec![0; self.size]
        } else {
            contents(seed, self.size)
        }
    }

    fn bytes(&self, seeds: &[u64]) -> Vec<u8> {
        seeds.iter().flat_map(|seed| self.block(*seed)).collect()
    }

    /// A range of blocks that no command in flight touches.
    fn pick(&self, random: &mut Random) -> Option<(usize, usize)> {
        let most = (LARGEST / self.size).min(self.seeds.len());
        // Small ones are as likely as all others together.
        let blocks = if random.below(2) == 0 {
            1 + random.below(8.min(most))
        } else {
            1 + random.below(most)
        };
        let start = random.below(self.seeds.len() - blocks + 1);
        let free = self.busy[start..start + blocks].iter().all(|busy| !busy);
        free.then_some((start, blocks))
    }

    /// The next random command.
    fn command(&self, random: &mut Random) -> Option<(Command, Data, Flight)> {
        let (start, blocks) = self.pick(random)?;
        let (nsid, lba) = (self.nsid, self.first + u64::try_from(start).unwrap());
        let count = u32::try_from(blocks).unwrap();
        let now = &self.seeds[start..start + blocks];
        let len = blocks * self.size;
        let (command, data, after, expected) = match random.below(16) {
            0..=6 => {
                let seeds: Vec<u64> = (0..blocks).map(|_| random.next_number() | 1).collect();
                let mut command = Command::write(nsid, lba, count);
                if random.below(16) == 0 {
                    command = command.with_fua();
                }
                let data = scatter(&self.bytes(&seeds), random);
                (command, data, Some(seeds), Expected::Status(Status::SUCCESS))
            }
            7..=11 => {
                let data = if random.below(2) == 0 {
                    blank(len)
                } else {
                    Data::Anywhere { len }
                };
                (
                    Command::read(nsid, lba, count),
                    data,
                    None,
                    Expected::Bytes(self.bytes(now)),
                )
            }
            12 => {
                let zeroes = Command::write_zeroes(nsid, lba, count, random.below(2) == 0);
                (
                    zeroes,
                    Data::None,
                    Some(vec![0; blocks]),
                    Expected::Status(Status::SUCCESS),
                )
            }
            13 => {
                let range = DsmRange::new(lba, count);
                let command = Command::deallocate(nsid, 1);
                let data = memory(range.as_bytes());
                (
                    command,
                    data,
                    Some(vec![0; blocks]),
                    Expected::Status(Status::SUCCESS),
                )
            }
            14 => {
                let mut bytes = self.bytes(now);
                let status = if random.below(2) == 0 {
                    Status::SUCCESS
                } else {
                    let at = random.below(len);
                    bytes[at] ^= 0x10;
                    Status::COMPARE_FAILURE
                };
                let data = scatter(&bytes, random);
                (
                    Command::compare(nsid, lba, count),
                    data,
                    None,
                    Expected::Status(status),
                )
            }
            _ => (
                Command::flush(nsid),
                Data::None,
                None,
                Expected::Status(Status::SUCCESS),
            ),
        };
        let flight = Flight {
            start,
            blocks,
            after,
            expected,
        };
        Some((command, data, flight))
    }
}

/// The bytes in one piece or in several.
fn scatter(bytes: &[u8], random: &mut Random) -> Data {
    if random.below(4) > 0 {
        return memory(bytes);
    }
    let cut = random.below(bytes.len());
    let region = Region::from_vec(bytes.to_vec());
    Data::List(vec![
        region.segment(0..cut).unwrap(),
        region.segment(cut..bytes.len()).unwrap(),
    ])
}

/// A queue at work on its own blocks.
struct Worker<Q> {
    queue: Issuer<Q>,
    model: Model,
    flights: HashMap<CommandId, Flight>,
    random: Random,
    left: usize,
}

impl<Q: Queue + Wait> Worker<Q> {
    /// Fills the queue, and takes what is done.
    fn turn(&mut self) {
        while self.left > 0 && self.flights.len() < usize::from(self.queue.queue().depth()) {
            let Some((command, data, flight)) = self.model.command(&mut self.random) else {
                break;
            };
            let range = flight.start..flight.start + flight.blocks;
            self.model.busy[range].fill(true);
            let id = self.queue.submit(command, data);
            assert!(self.flights.insert(id, flight).is_none(), "an id is used twice");
            self.left -= 1;
        }
        self.queue.commit().unwrap();
        if self.flights.is_empty() {
            return;
        }
        let done = self.queue.any().unwrap();
        let flight = self
            .flights
            .remove(&done.id)
            .expect("a completion for a command in flight");
        match flight.expected {
            Expected::Bytes(bytes) => {
                assert!(done.completion.is_success(), "{}", done.completion.status);
                assert!(bytes_of(&done.data) == bytes, "a read brings something else");
            }
            Expected::Status(status) => {
                assert!(done.completion.status.is(status), "{}", done.completion.status);
            }
        }
        let range = flight.start..flight.start + flight.blocks;
        if let Some(after) = flight.after {
            self.model.seeds[range.clone()].copy_from_slice(&after);
        }
        self.model.busy[range].fill(false);
    }

    fn is_done(&self) -> bool {
        self.left == 0 && self.flights.is_empty()
    }

    /// Everything that the model knows, as one reads it.
    fn verify(&mut self) {
        let model = &self.model;
        let step = LARGEST / model.size;
        for start in (0..model.seeds.len()).step_by(step) {
            let seeds = &model.seeds[start..model.seeds.len().min(start + step)];
            let lba = model.first + u64::try_from(start).unwrap();
            let read = Command::read(model.nsid, lba, u32::try_from(seeds.len()).unwrap());
            let bytes = self.queue.bytes(read, blank(seeds.len() * model.size));
            assert!(
                bytes == model.bytes(seeds),
                "blocks from {lba} on hold something else"
            );
        }
    }
}

/// Runs `commands` random commands on each of several queues at once, every namespace in turn.
fn mix<H: Harness>(options: &HostOptions, depth: u16, queues: usize, commands: usize) {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = H::start(&everything(scratch.path()));
    let mut host = target.host(options);
    for namespace in crate::settings::NAMESPACES {
        let mut workers: Vec<_> = (0..queues)
            .map(|index| {
                let blocks = 512;
                let first = u64::try_from(index * blocks + 64).unwrap();
                Worker {
                    queue: host.queue(depth),
                    model: Model::new(namespace, first, blocks),
                    flights: HashMap::new(),
                    random: Random::new(u64::from(depth) << 8 | u64::try_from(index).unwrap()),
                    left: commands,
                }
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_done()) {
            workers.iter_mut().for_each(Worker::turn);
        }
        workers.iter_mut().for_each(Worker::verify);
    }
}

/// One command at a time.
pub fn depth_1<H: Harness>() {
    mix::<H>(&HostOptions::default(), 1, 1, 100);
}

/// A few at a time on several queues.
pub fn depth_4_on_three_queues<H: Harness>() {
    mix::<H>(&HostOptions::default(), 4, 3, 60);
}

/// The usual depth.
pub fn depth_32<H: Harness>() {
    mix::<H>(&HostOptions::default(), 32, 1, 250);
}

/// Deep, on several queues.
pub fn depth_128_on_two_queues<H: Harness>() {
    mix::<H>(&HostOptions::default(), 128, 2, 250);
}

/// With everything that can be negotiated.
pub fn depth_32_with_digests_and_flow_control<H: Harness>() {
    let options = HostOptions {
        header_digest: true,
        data_digest: true,
        sq_flow_control: true,
        ..HostOptions::default()
    };
    mix::<H>(&options, 32, 2, 120);
}
