//! [`Net`] and [`Link`]: verbs as a hostile peer uses them. Everything that a link sees is kept, nothing is taken amiss.

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use homi_queue::{Region, RemoteAddress, RemoteKey};
use homi_spec::Sgl;
use homi_verbs::{
    Accepting, Access, CmEvent, CmEventKind, Completion, CompletionQueue, CompletionQueueOptions,
    Completions, ConnectOptions, ConnectRequest, Connecting, Device, EventChannel, IdKey, Listener,
    MemoryRegion, Pd, PrivateData, Qp, QpOptions, Remote, Signal, WorkStatus,
};

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Ends what is being done with a sentence unless something holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+).into());
        }
    };
}
pub(crate) use ensure;

/// How long anything may take; emulated machines are slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Capsules that can be on their way at a time, and bytes of each.
const SLOTS: u64 = 128;
const SLOT: u64 = 16 << 10;
/// Receives of a link, and bytes of each.
pub(crate) const RECEIVES: u64 = 128;
const RECEIVE: u64 = 16 << 10;

/// What a connection is asked for with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hello<'a> {
    pub(crate) private: &'a [u8],
    /// RDMA READs that this end answers at a time.
    pub(crate) reads: u8,
    /// Whether receives are posted.
    pub(crate) listens: bool,
}

/// A connection was refused.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The connection manager's reason; 28 is the peer's own.
    pub(crate) reason: i32,
    pub(crate) private: PrivateData,
}

impl Refusal {
    /// The status of an NVMe/RDMA rejection (RDMA Transport 1.0, figure 7).
    pub(crate) fn status(&self) -> Option<u16> {
        let status = self.private.get(2..4)?;
        (self.reason == 28).then(|| u16::from_le_bytes([status[0], status[1]]))
    }
}

/// A device, and what happens on it.
pub(crate) struct Net {
    pub(crate) channel: EventChannel,
    pub(crate) pd: Pd,
    cq: CompletionQueue,
    batch: Completions<32>,
    /// Completions that nobody asked for yet.
    early: Vec<Completion>,
    /// Events that nobody asked for yet.
    events: VecDeque<CmEvent>,
    pub(crate) address: SocketAddr,
}

/// One end of a connection.
pub(crate) struct Link {
    pub(crate) qp: Qp,
    /// What the peer said when it accepted.
    pub(crate) accepted: PrivateData,
    staging: MemoryRegion,
    inbox: MemoryRegion,
    next: u64,
    sending: u64,
    /// What came: the bytes, and a key that was invalidated.
    pub(crate) received: VecDeque<(Vec<u8>, Option<RemoteKey>)>,
    /// How work requests ended, by token, in order; sends that went well are not mentioned.
    pub(crate) done: VecDeque<(u64, WorkStatus)>,
    /// The queue pair or the connection is over, and why.
    pub(crate) over: Option<String>,
}

/// Tokens of sends.
const SEND: u64 = 1 << 32;
/// Tokens of receives.
const RECV: u64 = 2 << 32;

impl Net {
    /// The device that reaches an address.
    pub(crate) fn towards(address: SocketAddr) -> Outcome<Self> {
        let mut channel = EventChannel::new()?;
        let outgoing = channel.resolve(address, None, LIMIT)?;
        let start = Instant::now();
        loop {
            match channel.next_event()?.map(|event| event.kind) {
                Some(CmEventKind::AddressResolved) => break,
                Some(other) => return Err(format!("no way to {address}: {other:?}").into()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            ensure!(start.elapsed() < LIMIT, "no way to {address}");
        }
        let device = outgoing.device()?;
        drop(outgoing);
        Self::on(channel, &device, address)
    }

    fn on(channel: EventChannel, device: &Device, address: SocketAddr) -> Outcome<Self> {
        Ok(Self {
            channel,
            pd: Pd::new(device)?,
            cq: CompletionQueue::new(
                device,
                CompletionQueueOptions {
                    entries: 30_000.min(device.limits().completions),
                    sleep: false,
                    vector: 0,
                },
            )?,
            batch: Completions::new(),
            early: Vec::new(),
            events: VecDeque::new(),
            address,
        })
    }

    fn options() -> QpOptions {
        QpOptions {
            sends: 256,
            send_pieces: 1,
            inline: 0,
            receives: u32::try_from(RECEIVES).unwrap_or(1),
            receive_pieces: 1,
        }
    }

    /// Memory of this end that the peer may reach.
    pub(crate) fn memory(&self, len: usize, access: Access) -> Outcome<MemoryRegion> {
        Ok(self.pd.register(&Region::allocate(len, 4096)?, access)?)
    }

    /// Reads events and completions of everybody.
    pub(crate) fn pump(&mut self) -> Outcome {
        while let Some(event) = self.channel.next_event()? {
            self.events.push_back(event);
        }
        while self.cq.poll(&mut self.batch)? > 0 {
            self.early.extend(&mut self.batch);
        }
        Ok(())
    }

    /// The next event of an id, without waiting.
    fn take_event(&mut self, key: IdKey) -> Option<CmEventKind> {
        let at = self.events.iter().position(|event| event.id == key)?;
        self.events.remove(at).map(|event| event.kind)
    }

    /// The next event of an id.
    fn event(&mut self, key: IdKey) -> Outcome<CmEventKind> {
        let start = Instant::now();
        loop {
            if let Some(event) = self.take_event(key) {
                return Ok(event);
            }
            ensure!(
                start.elapsed() < LIMIT,
                "the connection manager says nothing of a connection"
            );
            self.pump()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn connecting(&mut self) -> Outcome<Connecting> {
        let mut outgoing = self.channel.resolve(self.address, None, LIMIT)?;
        let key = outgoing.key();
        // Of an earlier id at the same place.
        self.events.retain(|event| event.id != key);
        match self.event(key)? {
            CmEventKind::AddressResolved => {}
            other => return Err(format!("no way to {}: {other:?}", self.address).into()),
        }
        outgoing.resolve_route(LIMIT)?;
        match self.event(key)? {
            CmEventKind::RouteResolved => {}
            other => return Err(format!("no route to {}: {other:?}", self.address).into()),
        }
        Ok(outgoing.create_qp(&self.pd, &self.cq, None, &Self::options())?)
    }

    /// Asks for a connection, and returns at once.
    pub(crate) fn ask(&mut self, hello: &Hello<'_>) -> Outcome<Link> {
        let mut connecting = self.connecting()?;
        let (staging, inbox) = self.buffers()?;
        if hello.listens {
            let mut receives = connecting.receives();
            for slot in 0..RECEIVES {
                receives.push([inbox.piece(slot * RECEIVE..(slot + 1) * RECEIVE)?], RECV | slot)?;
            }
            receives.commit()?;
        }
        let qp = connecting.connect(&ConnectOptions {
            private_data: hello.private,
            responder_resources: hello.reads,
            initiator_depth: 0,
            // Each takes seconds where the peer is dead.
            retries: 2,
            receiver_not_ready_retries: 3,
        })?;
        Ok(Link::new(qp, staging, inbox))
    }

    fn buffers(&self) -> Outcome<(MemoryRegion, MemoryRegion)> {
        let staging = self.memory(usize::try_from(SLOTS * SLOT)?, Access::READ)?;
        let inbox = self.memory(usize::try_from(RECEIVES * RECEIVE)?, Access::WRITE)?;
        Ok((staging, inbox))
    }

    /// Asks for a connection: it is accepted or refused.
    pub(crate) fn connect(&mut self, hello: &Hello<'_>) -> Outcome<Result<Link, Refusal>> {
        let mut link = self.ask(hello)?;
        match self.event(link.qp.key())? {
            CmEventKind::Established(peer) => {
                link.accepted = peer.private_data.clone();
                Ok(Ok(link))
            }
            CmEventKind::Rejected { reason, private_data } => Ok(Err(Refusal {
                reason,
                private: *private_data,
            })),
            other => Err(format!("connecting to {}: {other:?}", self.address).into()),
        }
    }

    /// The next connection that a peer asks for, if one does within a time.
    pub(crate) fn request(
        &mut self,
        listener: &Listener,
        limit: Duration,
    ) -> Outcome<Option<ConnectRequest>> {
        let start = Instant::now();
        loop {
            while let Some(event) = self.take_event(listener.key()) {
                if let CmEventKind::ConnectRequest(request) = event {
                    return Ok(Some(request));
                }
            }
            if start.elapsed() >= limit {
                return Ok(None);
            }
            self.pump()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Accepts a connection.
    pub(crate) fn accept(&mut self, request: ConnectRequest, private: &[u8]) -> Outcome<Link> {
        let (staging, inbox) = self.buffers()?;
        let reads = request.peer().initiator_depth;
        let mut accepting: Accepting = request.create_qp(&self.pd, &self.cq, None, &Self::options())?;
        let key = accepting.key();
        self.events.retain(|event| event.id != key);
        let mut receives = accepting.receives();
        for slot in 0..RECEIVES {
            receives.push([inbox.piece(slot * RECEIVE..(slot + 1) * RECEIVE)?], RECV | slot)?;
        }
        receives.commit()?;
        let qp = accepting.accept(&ConnectOptions {
            private_data: private,
            responder_resources: 0,
            initiator_depth: reads,
            retries: 2,
            receiver_not_ready_retries: 3,
        })?;
        Ok(Link::new(qp, staging, inbox))
    }

    /// Sorts what happened to a link.
    pub(crate) fn look(&mut self, link: &mut Link) -> Outcome {
        self.pump()?;
        let number = link.qp.number();
        let mut index = 0;
        while let Some(completion) = self.early.get(index) {
            if completion.qp() == number {
                let completion = self.early.remove(index);
                link.take(completion)?;
            } else {
                index += 1;
            }
        }
        while let Some(event) = self.take_event(link.qp.key()) {
            match event {
                CmEventKind::Established(_) | CmEventKind::TimewaitExit => {}
                CmEventKind::Disconnected => link.end("the peer disconnected"),
                other => link.end(&format!("{other:?}")),
            }
        }
        Ok(())
    }

    /// Waits until something holds of a link; false if the connection ends before, or the time is up.
    pub(crate) fn until(
        &mut self,
        link: &mut Link,
        limit: Duration,
        mut holds: impl FnMut(&mut Link) -> bool,
    ) -> Outcome<bool> {
        let start = Instant::now();
        loop {
            self.look(link)?;
            if holds(link) {
                return Ok(true);
            }
            if link.over.is_some() || start.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Waits for the end of a connection, which the peer has to bring about.
    pub(crate) fn until_over(&mut self, link: &mut Link) -> Outcome {
        self.until(link, LIMIT, |link| link.over.is_some())?;
        ensure!(link.over.is_some(), "the peer keeps the connection");
        Ok(())
    }

    /// Ends a connection in good order.
    pub(crate) fn close(&mut self, link: Link) -> Outcome {
        let key = link.qp.key();
        // It may be over.
        let _ = link.qp.disconnect();
        drop(link);
        self.pump()?;
        self.events.retain(|event| event.id != key);
        self.early.clear();
        Ok(())
    }
}

impl Link {
    fn new(qp: Qp, staging: MemoryRegion, inbox: MemoryRegion) -> Self {
        Self {
            qp,
            accepted: PrivateData::default(),
            staging,
            inbox,
            next: 0,
            sending: 0,
            received: VecDeque::new(),
            done: VecDeque::new(),
            over: None,
        }
    }

    fn end(&mut self, why: &str) {
        self.over.get_or_insert_with(|| why.to_owned());
    }

    fn take(&mut self, completion: Completion) -> Outcome {
        let status = completion.status();
        if completion.is_receive() {
            let received = self.qp.received(completion)?;
            let slot = received.token & 0xffff_ffff;
            if !status.is_success() {
                self.end(&format!("a receive ended with: {status}"));
                return Ok(());
            }
            let mut bytes = vec![0; usize::try_from(received.bytes)?];
            let region = self.inbox.region().ok_or("memory without a region")?;
            region.read(usize::try_from(slot * RECEIVE)?, &mut bytes)?;
            self.received.push_back((bytes, received.invalidated));
            let mut receives = self.qp.receives();
            receives.push(
                [self.inbox.piece(slot * RECEIVE..(slot + 1) * RECEIVE)?],
                RECV | slot,
            )?;
            // A queue pair in the error state may refuse it.
            let _ = receives.commit();
            return Ok(());
        }
        let mut tokens = Vec::new();
        self.qp.complete(completion, |one| tokens.push(one.token))?;
        for token in tokens {
            if token & SEND == 0 {
                self.done.push_back((token, status));
            } else {
                self.sending -= 1;
            }
        }
        if !status.is_success() {
            self.end(&format!("work ended with: {status}"));
        }
        Ok(())
    }

    /// Sends bytes, with a key of the peer to invalidate; false if there is no room or the queue pair does not take it.
    pub(crate) fn send(&mut self, bytes: &[u8], invalidate: Option<RemoteKey>) -> Outcome<bool> {
        if self.sending >= SLOTS || self.qp.send_room() == 0 {
            return Ok(false);
        }
        let (at, len) = (self.next * SLOT, bytes.len() as u64);
        ensure!(len <= SLOT, "a capsule of {len} bytes");
        let region = self.staging.region().ok_or("memory without a region")?;
        region.write(usize::try_from(at)?, bytes)?;
        let piece = self.staging.piece(at..at + len.max(1))?;
        let pieces = if len == 0 { None } else { Some(piece) };
        let mut batch = self.qp.sends();
        batch.send(pieces, invalidate, Signal::Completion, SEND | self.next)?;
        if batch.commit().is_err() {
            return Ok(false);
        }
        self.sending += 1;
        self.next = (self.next + 1) % SLOTS;
        Ok(true)
    }

    /// RDMA READ of the peer's memory.
    pub(crate) fn read(
        &mut self,
        into: &MemoryRegion,
        at: u64,
        len: u64,
        from: Remote,
        token: u64,
    ) -> Outcome {
        let mut batch = self.qp.sends();
        batch.read([into.piece(at..at + len)?], from, Signal::Completion, token)?;
        batch.commit()?;
        Ok(())
    }

    /// RDMA WRITE to the peer's memory.
    pub(crate) fn write(
        &mut self,
        from: &MemoryRegion,
        at: u64,
        len: u64,
        to: Remote,
        token: u64,
    ) -> Outcome {
        let mut batch = self.qp.sends();
        batch.write([from.piece(at..at + len)?], to, Signal::Completion, token)?;
        batch.commit()?;
        Ok(())
    }
}

/// Memory of a host in the middle of which commands have their data: everything around it must stay as it is.
pub(crate) struct Guarded {
    pub(crate) memory: MemoryRegion,
}

impl Guarded {
    pub(crate) const LEN: usize = 2 << 20;
    /// Where data begins.
    pub(crate) const START: u64 = 256 << 10;
    const CANARY: u8 = 0xc7;

    pub(crate) fn new(net: &Net) -> Outcome<Self> {
        let memory = net.memory(Self::LEN, Access::REMOTE_READ | Access::REMOTE_WRITE)?;
        let guarded = Self { memory };
        guarded.fill(0, Self::LEN, Self::CANARY)?;
        Ok(guarded)
    }

    fn region(&self) -> Outcome<&Region> {
        Ok(self.memory.region().ok_or("memory without a region")?)
    }

    pub(crate) fn fill(&self, at: usize, len: usize, value: u8) -> Outcome {
        Ok(self.region()?.fill(at, len, value)?)
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) -> Outcome {
        Ok(self.region()?.write(usize::try_from(at)?, bytes)?)
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.region()?.read(usize::try_from(at)?, &mut bytes)?;
        Ok(bytes)
    }

    /// A keyed descriptor of `len` bytes from `at` on, which need not lie in it.
    pub(crate) fn named(&self, at: u64, len: u32) -> Outcome<Sgl> {
        let start = self.memory.remote_address(0)?;
        Ok(Sgl::keyed(
            start.0.wrapping_add(at),
            len,
            self.memory.remote_key()?.0,
            false,
        )?)
    }

    /// Whether nothing but these bytes was touched; makes everything as it was.
    pub(crate) fn check(&self, named: &[(u64, u64)]) -> Outcome {
        let bytes = self.get(0, Self::LEN)?;
        let canaries = vec![Self::CANARY; Self::LEN];
        let mut named = named.to_vec();
        named.sort_unstable();
        let mut from = 0;
        // Each stretch between what was named.
        for (start, len) in named.into_iter().chain([(Self::LEN as u64, 0)]) {
            let (start, len) = (usize::try_from(start)?.min(Self::LEN), usize::try_from(len)?);
            if from < start && bytes.get(from..start) != canaries.get(from..start) {
                let touched = bytes.iter().skip(from).position(|byte| *byte != Self::CANARY);
                let at = from + touched.unwrap_or(0);
                return Err(format!("byte {at} was written, which no command named").into());
            }
            from = from.max(start + len);
        }
        self.fill(0, Self::LEN, Self::CANARY)
    }
}

/// The peer's memory as its descriptor names it.
pub(crate) fn remote(address: u64, key: u32) -> Remote {
    Remote {
        address: RemoteAddress(address),
        key: RemoteKey(key),
    }
}
