//! A hostile controller: it serves as a target should until its attack begins. Everything but reads and writes is answered by our target,
//! which runs in this program and is spoken to over connections in memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fabric_tests::peer::{RawHost, memory_wire};
use fabric_tests::pipe::World;
use fabric_tests::settings::{self, DATA};
use fabric_tests::units::Units;
use homi_queue::RemoteKey;
use homi_spec::command::TransferDirection;
use homi_spec::rdma::{CmAccept, CmReject, RejectStatus};
use homi_spec::tcp::{PduType, flags};
use homi_spec::{Cqe, Sgl, Sqe, Status};
use homi_verbs::{Access, ConnectRequest, EventChannel, Listener, MemoryRegion, WorkStatus};
use zerocopy::{FromBytes, IntoBytes};

use crate::net::{LIMIT, Link, Net, Outcome, ensure, remote};

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Refuses every connection with this status.
    Rejects(u16),
    /// Refuses without a word.
    RejectsBarely,
    /// Accepts with these bytes.
    Accepts(&'static [u8]),
    /// Does not answer requests.
    Ignores,
    /// Accepts and says nothing to commands.
    Mute,
    /// Does this to reads and writes.
    Io(Io),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Io {
    Silence,
    UnknownId,
    Doubled,
    Empty,
    Short,
    Long,
    Head,
    /// Invalidates a key that does not exist.
    ForeignKey,
    /// Invalidates the command's key, which it may not.
    OwnKey,
    /// Writes behind the end of the registered memory.
    WritesOutside,
    /// Writes with a key that was not given.
    WritesByWrongKey,
    /// Reads with a key that was not given.
    ReadsByWrongKey,
    /// Answers what was not asked, many times.
    Flood,
    Disconnects,
    Dies,
    /// Half of the data, and an end.
    DiesWithData,
    Fails,
}

const ATTACKS: &[(&str, Wrong)] = &[
    ("none", Wrong::Nothing),
    ("reject-1", Wrong::Rejects(1)),
    ("reject-2", Wrong::Rejects(2)),
    ("reject-3", Wrong::Rejects(3)),
    ("reject-4", Wrong::Rejects(4)),
    ("reject-5", Wrong::Rejects(5)),
    ("reject-6", Wrong::Rejects(6)),
    ("reject-7", Wrong::Rejects(7)),
    ("reject-8", Wrong::Rejects(8)),
    ("reject-9", Wrong::Rejects(9)),
    ("reject-65535", Wrong::Rejects(65535)),
    ("reject-nothing", Wrong::RejectsBarely),
    ("accept-nothing", Wrong::Accepts(&[])),
    ("accept-format", Wrong::Accepts(&[7, 0, 32, 0])),
    ("accept-one-entry", Wrong::Accepts(&[0, 0, 1, 0])),
    ("ignore", Wrong::Ignores),
    ("mute", Wrong::Mute),
    ("silence", Wrong::Io(Io::Silence)),
    ("unknown-id", Wrong::Io(Io::UnknownId)),
    ("doubled", Wrong::Io(Io::Doubled)),
    ("empty", Wrong::Io(Io::Empty)),
    ("short", Wrong::Io(Io::Short)),
    ("long", Wrong::Io(Io::Long)),
    ("head", Wrong::Io(Io::Head)),
    ("foreign-key", Wrong::Io(Io::ForeignKey)),
    ("own-key", Wrong::Io(Io::OwnKey)),
    ("writes-outside", Wrong::Io(Io::WritesOutside)),
    ("writes-by-wrong-key", Wrong::Io(Io::WritesByWrongKey)),
    ("reads-by-wrong-key", Wrong::Io(Io::ReadsByWrongKey)),
    ("flood", Wrong::Io(Io::Flood)),
    ("disconnects", Wrong::Io(Io::Disconnects)),
    ("dies", Wrong::Io(Io::Dies)),
    ("dies-with-data", Wrong::Io(Io::DiesWithData)),
    ("fails", Wrong::Io(Io::Fails)),
];

/// Reads and writes of a queue that are answered well before the attack begins.
const PATIENCE: usize = 5;
const BLOCK: usize = 512;
const DISK: usize = 8 << 20;

/// A queue of a host.
struct Session {
    link: Link,
    /// The same queue at our target.
    behind: RawHost,
    admin: bool,
    served: usize,
    /// Ids of commands that were answered, for those who answer twice.
    last: Option<u16>,
}

struct Serving {
    net: Net,
    wrong: Wrong,
    world: World,
    sessions: Vec<Session>,
    /// Requests that nobody answers.
    ignored: Vec<ConnectRequest>,
    buffer: MemoryRegion,
    disk: Vec<u8>,
    token: u64,
}

/// Where a command's data is.
struct Place {
    address: u64,
    key: u32,
    len: usize,
}

impl Place {
    fn of(sqe: &Sqe) -> Self {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, k0, k1, k2, k3, _] = sqe.sgl().0;
        let len = u32::from_le_bytes([l0, l1, l2, 0]);
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            key: u32::from_le_bytes([k0, k1, k2, k3]),
            len: usize::try_from(len).unwrap_or(0),
        }
    }
}

/// Serves for a time. Prints `listening` first, and what became of what it did to its hosts.
pub(crate) fn run(address: SocketAddr, name: &str, time: Duration) -> Outcome {
    let known = ATTACKS.iter().find(|(known, _)| *known == name);
    let Some((_, wrong)) = known else {
        let names: Vec<&str> = ATTACKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no attack {name}: use one of {}", names.join(" ")).into());
    };
    let net = Net::towards(address)?;
    let listening = EventChannel::listen(&net.channel, address, 64)?;
    let buffer = net.memory(1 << 20, Access::WRITE | Access::REMOTE_WRITE)?;
    let config = settings::node(&format!(
        "[[subsystem]]\nnqn = \"{DATA}\"\nallow_any_host = true\n[[subsystem.namespace]]\nnsid = 1\nram = \"8M\"\nblock_size = {BLOCK}\n"
    ));
    let mut serving = Serving {
        net,
        wrong: *wrong,
        world: World::new(&config)?,
        sessions: Vec::new(),
        ignored: Vec::new(),
        buffer,
        disk: vec![0; DISK],
        token: 0,
    };
    println!("listening");
    let start = Instant::now();
    while start.elapsed() < time {
        serving.turn(&listening)?;
    }
    Ok(())
}

impl Serving {
    fn turn(&mut self, listener: &Listener) -> Outcome {
        if let Some(request) = self.net.request(listener, Duration::from_millis(1))? {
            self.request(request)?;
        }
        let mut sessions = std::mem::take(&mut self.sessions);
        for session in &mut sessions {
            self.net.look(&mut session.link)?;
            while session.link.over.is_none()
                && let Some((capsule, _)) = session.link.received.pop_front()
            {
                self.capsule(session, &capsule)?;
            }
        }
        let (kept, over): (Vec<_>, Vec<_>) = sessions
            .into_iter()
            .partition(|session| session.link.over.is_none());
        for Session { link, behind, .. } in over {
            println!("a queue is over: {}", link.over.as_deref().unwrap_or(""));
            behind.close();
            self.net.close(link)?;
        }
        self.sessions = kept;
        Ok(())
    }

    fn request(&mut self, request: ConnectRequest) -> Outcome {
        let private = &request.peer().private_data;
        let field = |at: usize| -> u16 {
            let bytes = private.get(at..at + 2).unwrap_or(&[0, 0]);
            u16::from_le_bytes([bytes[0], bytes[1]])
        };
        let (qid, entries) = (field(2), field(6).saturating_add(1));
        println!("queue {qid} of {entries} entries is asked for");
        let accepted = CmAccept::new(entries.min(128));
        let private = match self.wrong {
            Wrong::Rejects(status) => {
                let _ = request.reject(CmReject::new(RejectStatus(status)).as_bytes());
                return Ok(());
            }
            Wrong::RejectsBarely => {
                let _ = request.reject(&[]);
                return Ok(());
            }
            Wrong::Ignores => {
                self.ignored.push(request);
                return Ok(());
            }
            Wrong::Accepts(private) => private,
            Wrong::Nothing | Wrong::Mute | Wrong::Io(_) => accepted.as_bytes(),
        };
        let link = match self.net.accept(request, private) {
            Ok(link) => link,
            Err(error) => {
                // A host that has given up may ask again.
                println!("queue {qid}: {error}");
                return Ok(());
            }
        };
        let mut behind = RawHost::new(memory_wire(self.world.connect(Default::default())));
        behind.initialize(Units::default());
        self.sessions.push(Session {
            link,
            behind,
            admin: qid == 0,
            served: 0,
            last: None,
        });
        Ok(())
    }

    /// Waits for the last work request that was posted.
    fn wait(&mut self, link: &mut Link) -> Outcome<WorkStatus> {
        let token = self.token;
        self.net.until(link, LIMIT, |link| {
            link.done.iter().any(|(done, _)| *done == token)
        })?;
        let found = link
            .done
            .iter()
            .find(|(done, _)| *done == token)
            .map(|(_, status)| *status);
        link.done.clear();
        match found {
            Some(status) => Ok(status),
            // The host went before it could be executed.
            None if link.over.is_some() => Ok(WorkStatus::Flushed),
            None => Err("a work request does not end".into()),
        }
    }

    /// Bytes of the host's memory.
    fn fetch(&mut self, link: &mut Link, place: &Place) -> Outcome<Result<Vec<u8>, WorkStatus>> {
        ensure!(place.len <= 1 << 20, "a transfer of {} bytes", place.len);
        self.token = (self.token + 1) % 1_000_000;
        if place.len > 0 {
            let from = remote(place.address, place.key);
            link.read(&self.buffer, 0, place.len as u64, from, self.token)?;
            let status = self.wait(link)?;
            if !status.is_success() {
                return Ok(Err(status));
            }
        }
        let mut bytes = vec![0; place.len];
        let region = self.buffer.region().ok_or("memory without a region")?;
        region.read(0, &mut bytes)?;
        Ok(Ok(bytes))
    }

    fn give(&mut self, link: &mut Link, place: &Place, bytes: &[u8]) -> Outcome<WorkStatus> {
        let bytes = bytes.get(..place.len.min(bytes.len())).unwrap_or(&[]);
        if bytes.is_empty() {
            return Ok(WorkStatus::Success);
        }
        self.token = (self.token + 1) % 1_000_000;
        let region = self.buffer.region().ok_or("memory without a region")?;
        region.write(0, bytes)?;
        let to = remote(place.address, place.key);
        link.write(&self.buffer, 0, bytes.len() as u64, to, self.token)?;
        self.wait(link)
    }

    fn capsule(&mut self, session: &mut Session, capsule: &[u8]) -> Outcome {
        let Some((entry, after)) = capsule.split_at_checked(64) else {
            return Err(format!("a capsule of {} bytes", capsule.len()).into());
        };
        let sqe = Sqe::read_from_bytes(entry).map_err(|_| "not a command")?;
        if self.wrong == Wrong::Mute {
            return Ok(());
        }
        let place = Place::of(&sqe);
        let link = &mut session.link;
        let direction = match sqe.fabrics_type() {
            Some(kind) => TransferDirection::of(kind.raw()),
            None => TransferDirection::of(sqe.opcode),
        };
        let in_capsule = sqe.sgl().0[15] == 0x01;
        if !session.admin && matches!(sqe.opcode, 1 | 2) {
            return self.io(session, &sqe, &place);
        }
        let mut data = Vec::new();
        if direction == TransferDirection::HostToController && place.len > 0 {
            data = if in_capsule {
                after.to_vec()
            } else {
                match self.fetch(link, &place)? {
                    Ok(bytes) => bytes,
                    // The host is gone.
                    Err(_) => return Ok(()),
                }
            };
        }
        // Asynchronous Event Requests wait forever.
        if session.admin && sqe.opcode == 0x0c {
            return Ok(());
        }
        let gives = direction == TransferDirection::ControllerToHost && place.len > 0;
        if gives {
            session.behind.submit_for(sqe, u32::try_from(place.len)?);
        } else {
            let mut plain = sqe;
            plain.set_sgl(Sgl::transport(0));
            session.behind.submit(plain, &data);
        }
        let mut bytes = Vec::new();
        let mut cqe = loop {
            let unit = session.behind.next_unit().ok_or("our target has had enough")?;
            if unit.pdu == PduType::C2H_DATA {
                bytes.extend_from_slice(&unit.data);
                if unit.has(flags::SUCCESS) {
                    break Cqe::default();
                }
            } else {
                break unit.cqe();
            }
        };
        if session.admin && sqe.opcode == 0x06 && sqe.cdw10.get() & 0xff == 1 {
            over_rdma(&mut bytes);
        }
        if self.give(link, &place, &bytes)?.is_success() {
            cqe.cid = sqe.cid;
            link.send(cqe.as_bytes(), None)?;
        }
        Ok(())
    }

    /// A read or a write: done as it should be, or attacked.
    fn io(&mut self, session: &mut Session, sqe: &Sqe, place: &Place) -> Outcome {
        let start = usize::try_from(sqe.lba())? * BLOCK;
        let len = usize::try_from(sqe.blocks())? * BLOCK;
        let known = start + len <= DISK && len <= place.len;
        let attack = match self.wrong {
            Wrong::Io(attack) if session.served >= PATIENCE => Some(attack),
            _ => None,
        };
        session.served += 1;
        let link = &mut session.link;
        let cid = sqe.cid.get();
        let mut cqe = Cqe::new(cid);
        if attack == Some(Io::Silence) {
            return Ok(());
        }
        if attack == Some(Io::Dies) {
            link.qp.kill()?;
            return Ok(());
        }
        if attack == Some(Io::Disconnects) {
            // It may be under way.
            let _ = link.qp.disconnect();
            return Ok(());
        }
        let wrong = match attack {
            // Regions are not so long.
            Some(Io::WritesOutside) => Some((true, place.address.wrapping_add(1 << 32), place.key)),
            Some(Io::WritesByWrongKey) => Some((true, place.address, place.key ^ 0x00ff_ff00)),
            Some(Io::ReadsByWrongKey) => Some((false, place.address, place.key ^ 0x00ff_ff00)),
            _ => None,
        };
        if let Some((write, address, key)) = wrong {
            let place = Place {
                address,
                key,
                len: 512,
            };
            let status = if write {
                self.give(link, &place, &[0xba; 512])?
            } else {
                self.fetch(link, &place)?.err().unwrap_or(WorkStatus::Success)
            };
            ensure!(!status.is_success(), "memory that was not named could be reached");
            if status == WorkStatus::RemoteAccess {
                println!("refused by key");
            }
            return Ok(());
        }
        if known {
            let status = if sqe.opcode == 2 {
                let bytes = self.disk.get(start..start + len).unwrap_or(&[]).to_vec();
                let given = if attack == Some(Io::DiesWithData) {
                    len / 2
                } else {
                    len
                };
                self.give(link, place, bytes.get(..given).unwrap_or(&[]))?
            } else {
                match self.fetch(link, place)? {
                    Ok(bytes) => {
                        if let (Some(to), Some(from)) =
                            (self.disk.get_mut(start..start + len), bytes.get(..len))
                        {
                            to.copy_from_slice(from);
                        }
                        WorkStatus::Success
                    }
                    Err(status) => status,
                }
            };
            if !status.is_success() {
                // The host is gone.
                return Ok(());
            }
        } else {
            cqe.set_status(Status::LBA_OUT_OF_RANGE);
        }
        let last = session.last.replace(cid).unwrap_or(cid);
        let bytes = cqe.as_bytes();
        match attack {
            Some(Io::UnknownId) => {
                cqe.cid = (cid ^ 0x8000).into();
                link.send(cqe.as_bytes(), None)?;
            }
            Some(Io::Doubled) => {
                link.send(Cqe::new(last).as_bytes(), None)?;
                link.send(bytes, None)?;
                link.send(bytes, None)?;
            }
            Some(Io::Empty) => drop(link.send(&[], None)?),
            Some(Io::Short) => drop(link.send(bytes.get(..15).unwrap_or(bytes), None)?),
            Some(Io::Long) => drop(link.send(&[bytes, &[0; 48]].concat(), None)?),
            Some(Io::Head) => {
                cqe.sq_head = 0xffff.into();
                link.send(cqe.as_bytes(), None)?;
            }
            Some(Io::ForeignKey) => drop(link.send(bytes, Some(RemoteKey(place.key ^ 0x0055_5500)))?),
            Some(Io::OwnKey) => drop(link.send(bytes, Some(RemoteKey(place.key)))?),
            Some(Io::Flood) => {
                for number in 0..100 {
                    link.send(Cqe::new(number).as_bytes(), None)?;
                }
            }
            Some(Io::DiesWithData) => link.qp.kill()?,
            Some(Io::Fails) => {
                cqe.set_status(Status::INTERNAL_ERROR.with_dnr());
                link.send(cqe.as_bytes(), None)?;
            }
            _ => drop(link.send(bytes, None)?),
        }
        Ok(())
    }
}

/// Makes a page of Identify Controller one of a controller over RDMA: keyed descriptors, no data in capsules, one descriptor.
fn over_rdma(page: &mut [u8]) {
    for (at, byte) in page.iter_mut().enumerate() {
        match at {
            536 => *byte |= 1 << 2,
            538 => *byte |= 1 << 4,
            1792 => *byte = 4,
            1793..=1795 | 1800 | 1801 => *byte = 0,
            1803 => *byte = 1,
            _ => {}
        }
    }
}
