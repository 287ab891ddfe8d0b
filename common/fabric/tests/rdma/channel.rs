//! [`Channel`]: a simulated reliable connection between two queue pairs, with registered memory, and every check that an adapter
//! would make.

use homi_fabric::rdma::{Operation, ReceiveBuffer, Remote, RemoteMemory, Work, WorkId};
use homi_queue::{Region, RemoteAddress, RemoteKey, Segment};
use std::collections::VecDeque;

/// A small generator of numbers, so that a failing case repeats.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % limit.max(1)
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// What a peer may do with registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Write,
}

/// Memory of the host that the controller may reach.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) region: Region,
    pub(crate) memory: RemoteMemory,
    right: Right,
    pub(crate) valid: bool,
}

/// Everything that the host registered.
#[derive(Debug, Default)]
pub(crate) struct Registrations(pub(crate) Vec<Registered>);

impl Registrations {
    /// Registers a region under a key of its own.
    pub(crate) fn add(&mut self, region: &Region, right: Right, invalidate: bool) {
        let index = u32::try_from(self.0.len()).unwrap();
        self.0.push(Registered {
            region: region.clone(),
            memory: RemoteMemory {
                address: RemoteAddress(0x7000_0000_0000 + u64::from(index) * 0x100_0000),
                key: RemoteKey(0x8000 + index),
                invalidate,
            },
            right,
            valid: true,
        });
    }

    /// What a host knows about a segment.
    pub(crate) fn remote(&self, segment: &Segment) -> Option<RemoteMemory> {
        let found = self
            .0
            .iter()
            .find(|known| known.valid && known.region.host_address() == segment.region().host_address())?;
        let offset = u64::try_from(segment.start()).unwrap();
        Some(RemoteMemory {
            address: found.memory.address.checked_add(offset)?,
            ..found.memory
        })
    }

    pub(crate) fn invalidate(&mut self, key: RemoteKey) {
        let known = self.0.iter_mut().find(|known| known.memory.key == key);
        let known = known.expect("only known keys are invalidated");
        assert!(
            known.valid && known.memory.invalidate,
            "a key is invalidated once, if it may be"
        );
        known.valid = false;
    }

    /// The adapter's check of an access from the other end.
    fn access(&self, remote: Remote, right: Right) -> (&Region, usize) {
        let known = self.0.iter().find(|known| known.memory.key == remote.key);
        let known = known.expect("only known keys are used");
        assert!(known.valid, "no access after the key was invalidated");
        assert_eq!(
            known.right, right,
            "memory of a write is only read, that of a read only written"
        );
        let offset = remote
            .address
            .offset_from(known.memory.address)
            .expect("not before the memory");
        let offset = usize::try_from(offset).unwrap();
        assert!(remote.len > 0 && offset + remote.len as usize <= known.region.len());
        (&known.region, offset)
    }
}

#[derive(Debug)]
enum Owned {
    Send {
        copied: Vec<u8>,
        payload: Vec<Segment>,
        invalidate: Option<RemoteKey>,
    },
    Write(Remote, Vec<Segment>),
    Read(Remote, Vec<Segment>),
}

#[derive(Debug)]
struct PostedWork {
    id: WorkId,
    signaled: bool,
    operation: Owned,
}

/// What a completion queue holds.
#[derive(Debug)]
pub(crate) enum Completion {
    Done(WorkId),
    Failed(WorkId),
    /// A receive of the controller.
    Command(ReceiveBuffer, usize),
    /// A receive of the host.
    Response(Vec<u8>, Option<RemoteKey>),
}

/// One end's queue pair.
#[derive(Debug)]
pub(crate) struct QueuePair {
    sends: VecDeque<PostedWork>,
    pub(crate) completions: VecDeque<Completion>,
    /// Work requests whose completion, or that of a later one, was not seen: their ring index.
    unseen: VecDeque<(WorkId, u16)>,
    depth: u16,
    pub(crate) posted: usize,
    pub(crate) signaled: usize,
}

impl QueuePair {
    fn new(depth: u16) -> Self {
        Self {
            sends: VecDeque::new(),
            completions: VecDeque::new(),
            unseen: VecDeque::new(),
            depth,
            posted: 0,
            signaled: 0,
        }
    }

    /// Posts work, and checks what the adapter would.
    pub(crate) fn post(&mut self, work: &Work<'_>, max_pieces: u16, max_read_pieces: u16) {
        assert!(
            self.unseen.len() < usize::from(self.depth),
            "the send queue overflows"
        );
        assert!(work.ring < self.depth && self.unseen.iter().all(|(_, ring)| *ring != work.ring));
        self.unseen.push_back((work.id, work.ring));
        self.posted += 1;
        self.signaled += usize::from(work.signaled);
        let operation = match &work.operation {
            Operation::Send(send) => {
                assert!(send.payload.is_empty() || work.signaled);
                let payload = segments(send.payload.pieces());
                assert!(payload.len() < usize::from(max_pieces));
                Owned::Send {
                    copied: [send.entry, send.list].concat(),
                    payload,
                    invalidate: send.invalidate,
                }
            }
            Operation::Write { remote, local } => {
                let local = segments(local.pieces());
                assert!(local.len() <= usize::from(max_pieces));
                Owned::Write(*remote, local)
            }
            Operation::Read { remote, local } => {
                let local = segments(local.pieces());
                assert!(work.signaled && local.len() <= usize::from(max_read_pieces));
                Owned::Read(*remote, local)
            }
        };
        self.sends.push_back(PostedWork {
            id: work.id,
            signaled: work.signaled,
            operation,
        });
    }

    /// Takes note that the runtime saw a completion.
    pub(crate) fn seen(&mut self, id: WorkId) {
        while let Some((first, _)) = self.unseen.pop_front() {
            if first == id {
                return;
            }
        }
        panic!("{id} was not outstanding");
    }

    pub(crate) fn reads(&self) -> usize {
        self.sends
            .iter()
            .filter(|work| matches!(work.operation, Owned::Read(..)))
            .count()
    }

    /// Whether posted work names this memory.
    pub(crate) fn uses(&self, region: &Region) -> bool {
        let same = |segment: &Segment| segment.region().host_address() == region.host_address();
        self.sends.iter().any(|work| match &work.operation {
            Owned::Send { payload, .. } => payload.iter().any(same),
            Owned::Write(_, local) | Owned::Read(_, local) => local.iter().any(same),
        })
    }

    pub(crate) fn uses_any(&self, data: &homi_queue::Data) -> bool {
        data.segments().iter().any(|segment| self.uses(segment.region()))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.sends.is_empty() && self.completions.is_empty()
    }

    fn flush(&mut self, reported: bool) {
        for work in self.sends.drain(..) {
            if reported {
                self.completions.push_back(Completion::Failed(work.id));
            }
        }
    }
}

fn segments<'a>(pieces: impl Iterator<Item = homi_fabric::rdma::Piece<'a>>) -> Vec<Segment> {
    pieces
        .map(|piece| {
            let inside = piece.start - piece.segment.start();
            assert!(piece.len > 0);
            piece.segment.part(inside, piece.len).unwrap()
        })
        .collect()
}

fn gather(local: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in local {
        let at = bytes.len();
        bytes.resize(at + segment.len(), 0);
        segment.region().read(segment.start(), &mut bytes[at..]).unwrap();
    }
    bytes
}

fn scatter(local: &[Segment], mut bytes: &[u8]) {
    for segment in local {
        let (now, rest) = bytes.split_at(segment.len().min(bytes.len()));
        segment.region().write(segment.start(), now).unwrap();
        bytes = rest;
    }
    assert!(bytes.is_empty(), "more bytes than memory");
}

/// Two queue pairs and the host's memory.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) host: QueuePair,
    pub(crate) controller: QueuePair,
    pub(crate) registrations: Registrations,
    /// Receives posted at the host.
    pub(crate) host_receives: usize,
    /// Receives posted at the controller.
    pub(crate) controller_receives: VecDeque<ReceiveBuffer>,
    dead: bool,
}

impl Channel {
    pub(crate) fn new(host_depth: u16, controller_depth: u16) -> Self {
        Self {
            host: QueuePair::new(host_depth),
            controller: QueuePair::new(controller_depth),
            registrations: Registrations::default(),
            host_receives: 0,
            controller_receives: VecDeque::new(),
            dead: false,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Carries out the host's oldest work request.
    pub(crate) fn move_host(&mut self) -> bool {
        let Some(work) = self.host.sends.front() else {
            return false;
        };
        let Owned::Send {
            copied,
            payload,
            invalidate: None,
        } = &work.operation
        else {
            panic!("a host only sends");
        };
        // Receiver not ready: the adapter tries again.
        let Some(buffer) = self.controller_receives.pop_front() else {
            return false;
        };
        let mut bytes = copied.clone();
        bytes.extend(gather(payload));
        let (entry, data) = bytes.split_at(64);
        buffer.entry.region().write(buffer.entry.start(), entry).unwrap();
        if !data.is_empty() {
            let memory = buffer.data.as_ref().expect("room for data in capsules");
            assert!(data.len() <= memory.len());
            memory.region().write(memory.start(), data).unwrap();
        }
        let len = bytes.len();
        self.controller
            .completions
            .push_back(Completion::Command(buffer, len));
        finish(&mut self.host);
        true
    }

    /// Carries out the controller's oldest work request.
    pub(crate) fn move_controller(&mut self) -> bool {
        let Some(work) = self.controller.sends.front() else {
            return false;
        };
        match &work.operation {
            Owned::Write(remote, local) => {
                let (region, at) = self.registrations.access(*remote, Right::Write);
                let bytes = gather(local);
                assert_eq!(bytes.len(), remote.len as usize);
                region.write(at, &bytes).unwrap();
            }
            Owned::Read(remote, local) => {
                let (region, at) = self.registrations.access(*remote, Right::Read);
                let mut bytes = vec![0; remote.len as usize];
                region.read(at, &mut bytes).unwrap();
                assert_eq!(local.iter().map(Segment::len).sum::<usize>(), bytes.len());
                scatter(local, &bytes);
            }
            Owned::Send {
                copied,
                payload,
                invalidate,
            } => {
                assert!(payload.is_empty());
                if self.host_receives == 0 {
                    return false;
                }
                self.host_receives -= 1;
                if let Some(key) = invalidate {
                    self.registrations.invalidate(*key);
                }
                self.host
                    .completions
                    .push_back(Completion::Response(copied.clone(), *invalidate));
            }
        }
        finish(&mut self.controller);
        true
    }

    /// Both queue pairs go into the error state, perhaps in the middle of a transfer.
    pub(crate) fn kill(&mut self, numbers: &mut Numbers) {
        self.dead = true;
        if let Some(work) = self.controller.sends.front() {
            match &work.operation {
                Owned::Write(remote, local) => {
                    let (region, at) = self.registrations.access(*remote, Right::Write);
                    let bytes = gather(local);
                    let half = numbers.below(bytes.len());
                    region.write(at, &bytes[..half]).unwrap();
                }
                Owned::Read(_, local) => scatter(local, &[]),
                Owned::Send { .. } => {}
            }
        }
        self.host.flush(numbers.chance(2));
        self.controller.flush(numbers.chance(2));
    }
}

fn finish(queue_pair: &mut QueuePair) {
    if let Some(work) = queue_pair.sends.pop_front()
        && work.signaled
    {
        queue_pair.completions.push_back(Completion::Done(work.id));
    }
}
