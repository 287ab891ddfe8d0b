//! [`Queue`] and [`Association`]: just enough of a host to be well-behaved, over a [`Link`].

use std::time::{Duration, Instant};

use homi_fabric::host::{
    Answer, BringUp, BringUpParams, ControllerInfo, IoConnect, IoConnectParams, Step, StepData,
};
use homi_fabric::rdma::cm::{Accepted, ConnectRequest};
use homi_fabric::time;
use homi_queue::{Command, Completion};
use homi_spec::identify::{Cns, Identify, IdentifyNamespace};
use homi_spec::{Cqe, Nqn, Sgl, Sqe};
use zerocopy::{FromBytes, IntoBytes};

use crate::net::{Guarded, Hello, LIMIT, Link, Net, Outcome, Refusal, ensure};

/// RDMA READs that a well-behaved host answers at a time.
pub(crate) const READS: u8 = 4;
/// Entries of I/O queues.
pub(crate) const ENTRIES: u16 = 32;

/// What came of a command.
pub(crate) type Answered = Result<Cqe, String>;

/// A queue: a connection, and ids for its commands.
pub(crate) struct Queue {
    pub(crate) link: Link,
    cid: u16,
}

impl Queue {
    /// Asks for a queue as hosts do.
    pub(crate) fn open(
        net: &mut Net,
        qid: u16,
        entries: u16,
        controller: u16,
    ) -> Outcome<Result<Self, Refusal>> {
        let request = ConnectRequest::new(qid, entries, controller).to_private_data();
        let hello = Hello {
            private: request.as_bytes(),
            reads: READS,
            listens: true,
        };
        let link = match net.connect(&hello)? {
            Ok(link) => link,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let accepted = Accepted::parse(&link.accepted, entries)?;
        ensure!(
            accepted.entries == entries,
            "{} entries were granted instead of {entries}",
            accepted.entries
        );
        Ok(Ok(Self { link, cid: 0 }))
    }

    /// The same for one that must be accepted.
    pub(crate) fn open_well(net: &mut Net, qid: u16, entries: u16, controller: u16) -> Outcome<Self> {
        Self::open(net, qid, entries, controller)?
            .map_err(|refusal| format!("queue {qid} was refused: {refusal:?}").into())
    }

    /// Sends a command with an id of its own, followed by these bytes; false if the queue pair takes none.
    pub(crate) fn send(&mut self, mut sqe: Sqe, sgl: Sgl, after: &[u8]) -> Outcome<Option<u16>> {
        self.cid = (self.cid + 1) % 1000;
        sqe.cid = self.cid.into();
        sqe.set_sgl(sgl);
        let sent = self.link.send(&[sqe.as_bytes(), after].concat(), None)?;
        Ok(sent.then_some(self.cid))
    }

    /// Waits for the answer to a command, or for the end of the connection, which is told as a sentence.
    pub(crate) fn answer(&mut self, net: &mut Net, cid: u16) -> Outcome<Answered> {
        let start = Instant::now();
        loop {
            net.look(&mut self.link)?;
            while let Some((bytes, invalidated)) = self.link.received.pop_front() {
                let cqe = Cqe::read_from_bytes(&bytes)
                    .map_err(|_| format!("a response of {} bytes came", bytes.len()))?;
                ensure!(
                    invalidated.is_none(),
                    "a response invalidated a key that it may not"
                );
                if cqe.cid.get() == cid {
                    return Ok(Ok(cqe));
                }
            }
            if let Some(why) = &self.link.over {
                return Ok(Err(why.clone()));
            }
            ensure!(start.elapsed() < LIMIT, "a command was not answered");
            std::thread::yield_now();
        }
    }

    pub(crate) fn execute(&mut self, net: &mut Net, sqe: Sqe, sgl: Sgl, after: &[u8]) -> Outcome<Answered> {
        match self.send(sqe, sgl, after)? {
            Some(cid) => self.answer(net, cid),
            None => Ok(Err("the queue pair takes no more".to_owned())),
        }
    }

    /// The same for a command that must succeed.
    pub(crate) fn succeed(&mut self, net: &mut Net, sqe: Sqe, sgl: Sgl, after: &[u8]) -> Outcome<Cqe> {
        let cqe = self.execute(net, sqe, sgl, after)??;
        ensure!(
            cqe.status().is_success(),
            "a right command failed: {}",
            cqe.status()
        );
        Ok(cqe)
    }
}

/// A controller that was brought up, with one I/O queue.
pub(crate) struct Association {
    pub(crate) admin: Queue,
    pub(crate) io: Queue,
    pub(crate) info: ControllerInfo,
    pub(crate) block: u32,
}

/// Who the host says that it is.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) subsystem: Nqn,
    pub(crate) host: Nqn,
}

impl Names {
    pub(crate) const HOST_ID: [u8; 16] = *b"a hostile host!!";
}

/// Sends what a sequence says, with its data at the beginning of guarded memory.
fn submit(
    net: &mut Net,
    queue: &mut Queue,
    memory: &Guarded,
    command: &Command,
    data: &StepData,
) -> Outcome<(Completion, Vec<u8>)> {
    let (len, sgl) = match data {
        StepData::None => (0, memory.named(Guarded::START, 0)?),
        StepData::Out(bytes) => {
            memory.put(Guarded::START, bytes)?;
            let len = u32::try_from(bytes.len())?;
            (0, memory.named(Guarded::START, len)?)
        }
        StepData::In(len) => (*len, memory.named(Guarded::START, u32::try_from(*len)?)?),
    };
    let cqe = queue.execute(net, command.0, sgl, &[])??;
    Ok((Completion::from(&cqe), memory.get(Guarded::START, len)?))
}

/// Runs a sequence to its end.
fn run<T>(
    net: &mut Net,
    queue: &mut Queue,
    memory: &Guarded,
    mut next: impl FnMut(Option<&Answer<'_>>, time::Instant) -> Step<T>,
) -> Outcome<T> {
    let start = Instant::now();
    let now = || time::Instant::ZERO + start.elapsed();
    let mut step = next(None, now());
    loop {
        step = match step {
            Step::Submit { command, data } => {
                let (completion, data) = submit(net, queue, memory, &command, &data)?;
                let answer = Answer {
                    completion,
                    data: &data,
                };
                next(Some(&answer), now())
            }
            Step::WaitUntil(when) => {
                while now() < when {
                    std::thread::sleep(Duration::from_millis(1));
                }
                next(None, now())
            }
            Step::Ready(result) => return Ok(result),
            Step::Failed(error) => return Err(error.into()),
        };
        ensure!(start.elapsed() < 2 * LIMIT, "a sequence does not end");
    }
}

impl Association {
    pub(crate) fn open(net: &mut Net, names: &Names, memory: &Guarded) -> Outcome<Self> {
        let mut admin = Queue::open_well(net, 0, 32, 0)?;
        let mut sequence = BringUp::new(BringUpParams {
            host_nqn: names.host.clone(),
            host_id: Names::HOST_ID,
            subsystem: names.subsystem.clone(),
            keep_alive: Duration::from_secs(60),
            admin_entries: 32,
            sq_flow_control: true,
            io_queues: 2,
        });
        let info = run(net, &mut admin, memory, |answer, now| sequence.next(answer, now))?;
        let io = Self::queue(net, names, memory, info.controller_id, 1)?;
        let identify = Command(Identify::namespace(Cns(0), 1).to_sqe(0));
        let (completion, page) = submit(net, &mut admin, memory, &identify, &StepData::In(4096))?;
        ensure!(completion.is_success(), "Identify failed: {}", completion.status);
        let (page, _) = IdentifyNamespace::ref_from_prefix(&page).map_err(|_| "a short page")?;
        let format = page.format().ok_or("the namespace has no format")?;
        let block = format.block_size().ok_or("the namespace has no block size")?;
        memory.check(&[(Guarded::START, 4096)])?;
        Ok(Self {
            admin,
            io,
            info,
            block,
        })
    }

    /// An I/O queue.
    pub(crate) fn queue(
        net: &mut Net,
        names: &Names,
        memory: &Guarded,
        controller: u16,
        qid: u16,
    ) -> Outcome<Queue> {
        let mut io = Queue::open_well(net, qid, ENTRIES, controller)?;
        let mut connect = IoConnect::new(IoConnectParams {
            host_nqn: names.host.clone(),
            host_id: Names::HOST_ID,
            subsystem: names.subsystem.clone(),
            controller_id: controller,
            qid,
            entries: ENTRIES,
            sq_flow_control: true,
        });
        run(net, &mut io, memory, |answer, _| connect.next(answer))?;
        Ok(io)
    }

    pub(crate) fn close(self, net: &mut Net) -> Outcome {
        net.close(self.io.link)?;
        net.close(self.admin.link)
    }

    /// Writes and reads back, in several sizes and with data in the capsule; nothing else of the memory may be touched.
    pub(crate) fn verify(&mut self, net: &mut Net, memory: &Guarded, seed: u8) -> Outcome {
        let block = self.block as usize;
        for (number, blocks) in [1_usize, 8, 3, 128, 33].into_iter().enumerate() {
            let len = blocks * block;
            if len > 256 << 10 {
                continue;
            }
            let (lba, count) = (number as u64 * 500, u32::try_from(blocks)?);
            let bytes: Vec<u8> = (0..len).map(|at| pattern(seed, number, at)).collect();
            let size = u32::try_from(len)?;
            let (from, to) = (Guarded::START, Guarded::START + (512 << 10));
            let write = Command::write(1, lba, count).0;
            if size <= self.info.in_capsule && number == 0 {
                self.io.succeed(net, write, Sgl::in_capsule(0, size), &bytes)?;
            } else {
                memory.put(from, &bytes)?;
                let sgl = memory.named(from, size)?;
                self.io.succeed(net, write, sgl, &[])?;
            }
            let sgl = memory.named(to, size)?;
            self.io.succeed(net, Command::read(1, lba, count).0, sgl, &[])?;
            ensure!(
                memory.get(to, len)? == bytes,
                "{blocks} blocks are not what was written"
            );
            memory.check(&[(from, size.into()), (to, size.into())])?;
        }
        Ok(())
    }
}

fn pattern(seed: u8, number: usize, at: usize) -> u8 {
    let mixed = (at ^ number << 7).wrapping_mul(0x9e37_79b9).wrapping_add(at >> 9);
    let [byte, ..] = (mixed >> 5).to_le_bytes();
    byte ^ seed
}

/// A whole well-behaved host: connects, verifies, disconnects.
pub(crate) fn well_behaved(net: &mut Net, names: &Names, memory: &Guarded, seed: u8) -> Outcome {
    let mut association = Association::open(net, names, memory)?;
    association.verify(net, memory, seed)?;
    association.close(net)
}
