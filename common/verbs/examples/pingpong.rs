//! Two ends of connections in one process, over a real or soft RDMA device: everything that this crate does, checked step by step.
//!
//! ```text
//! cargo run -p homi-verbs --features rdma --example pingpong -- ADDRESS [ADDRESS ...]
//! cargo run -p homi-verbs --features rdma --example pingpong -- --until-removed ADDRESS
//! ```
//!
//! `ADDRESS` is one of this machine's on an RDMA device, IPv4 or IPv6. Each check prints `ok` and its name; the first that fails ends the
//! program. With `--until-removed` it connects, prints `connected`, and waits until the device is taken away.
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use homi_queue::{Region, RemoteKey};
use homi_verbs::{
    Accepting, Access, CmEvent, CmEventKind, Completion, CompletionQueue, CompletionQueueOptions,
    Completions, ConnectOptions, ConnectRequest, Connecting, Device, EventChannel, Listener, MemoryRegion,
    MemoryWindow, Pd, PostError, PrivateData, Qp, QpOptions, Received, Remote, SharedReceives, Signal,
    Unsupported, VerbsError, Windows, WorkStatus,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is forwarded to the system's allocator; the counter is a plain thread-local value.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// How long anything may take; emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(20);
const BLOCK: u64 = 4096;
/// Bytes of each end's memory.
const MEMORY: u64 = 64 * BLOCK;

/// Ends the check with a sentence unless something holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+).into());
        }
    };
}

/// What both ends share: in one process, everything.
struct Bench {
    channel: EventChannel,
    listener: Listener,
    address: SocketAddr,
    pd: Pd,
    cq: CompletionQueue,
    /// Memory of the end that connects and of the end that accepts.
    near: MemoryRegion,
    far: MemoryRegion,
    /// Completions that came while others were waited for.
    early: Vec<Completion>,
    batch: Completions<16>,
}

/// Both ends of a connection.
struct Pair {
    near: Qp,
    far: Qp,
}

impl Bench {
    fn new(ip: IpAddr) -> Outcome<Self> {
        let mut channel = EventChannel::new()?;
        let listener = channel.listen(SocketAddr::new(ip, 0), 16)?;
        let address = listener.local_address().ok_or("the listener has no address")?;
        // The device is known once a route is.
        let outgoing = channel.resolve(address, None, LIMIT)?;
        wait(&mut channel, |kind| matches!(kind, CmEventKind::AddressResolved))?;
        let device = outgoing.device()?;
        drop(outgoing);
        let pd = Pd::new(&device)?;
        let cq = CompletionQueue::new(
            &device,
            CompletionQueueOptions {
                entries: 1024,
                sleep: true,
                vector: 0,
            },
        )?;
        let all = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::BIND | Access::RELAXED;
        let memory = |access| -> Outcome<MemoryRegion> {
            let len = usize::try_from(MEMORY)?;
            Ok(pd.register(&Region::allocate(len, 4096)?, access)?)
        };
        let all = if device.limits().windows == Windows::None {
            Access::REMOTE_WRITE | Access::REMOTE_READ | Access::RELAXED
        } else {
            all
        };
        Ok(Self {
            near: memory(all)?,
            far: memory(all)?,
            channel,
            listener,
            address,
            pd,
            cq,
            early: Vec::with_capacity(64),
            batch: Completions::new(),
        })
    }

    fn device(&self) -> &Device {
        self.pd.device()
    }

    fn outgoing(&mut self, options: &QpOptions, shared: Option<&SharedReceives>) -> Outcome<Connecting> {
        let mut outgoing = self.channel.resolve(self.address, None, LIMIT)?;
        wait(&mut self.channel, |kind| {
            matches!(kind, CmEventKind::AddressResolved)
        })?;
        outgoing.resolve_route(LIMIT)?;
        wait(&mut self.channel, |kind| {
            matches!(kind, CmEventKind::RouteResolved)
        })?;
        ensure!(
            outgoing.is_on(self.device()),
            "the id is on another device than before"
        );
        Ok(outgoing.create_qp(&self.pd, &self.cq, shared, options)?)
    }

    fn request(&mut self) -> Outcome<ConnectRequest> {
        let event = wait(&mut self.channel, |kind| {
            matches!(kind, CmEventKind::ConnectRequest(_))
        })?;
        ensure!(
            event.id == self.listener.key(),
            "the request came to another listener"
        );
        match event.kind {
            CmEventKind::ConnectRequest(request) => Ok(request),
            other => Err(format!("{other:?} is no request").into()),
        }
    }

    /// Connects, with `prepare` posting receives at the far end before anything can come.
    fn pair_with(
        &mut self,
        shared: Option<&SharedReceives>,
        prepare: impl FnOnce(&mut Accepting) -> Outcome,
    ) -> Outcome<Pair> {
        let options = QpOptions {
            sends: 16,
            receives: 16,
            inline: 64,
            ..QpOptions::default()
        };
        let near = self.outgoing(&options, None)?;
        let near = near.connect(&ConnectOptions {
            private_data: b"hello",
            responder_resources: 4,
            initiator_depth: 4,
            // Each takes seconds when the peer's queue pair is dead.
            retries: 1,
            ..ConnectOptions::default()
        })?;
        let request = self.request()?;
        ensure!(
            request.peer().private_data.starts_with(b"hello\0"),
            "the request carries {:?}",
            request.peer().private_data
        );
        ensure!(
            (request.peer().initiator_depth, request.peer().responder_resources) == (4, 4),
            "the request asks for {:?}",
            request.peer()
        );
        let mut accepting = request.create_qp(&self.pd, &self.cq, shared, &options)?;
        prepare(&mut accepting)?;
        let far_key = accepting.key();
        let far = accepting.accept(&ConnectOptions {
            private_data: b"welcome",
            responder_resources: 4,
            initiator_depth: 4,
            ..ConnectOptions::default()
        })?;
        let mut established = 0;
        while established < 2 {
            let event = wait(&mut self.channel, |kind| {
                matches!(kind, CmEventKind::Established(_))
            })?;
            if let CmEventKind::Established(peer) = event.kind
                && event.id == near.key()
            {
                ensure!(
                    peer.private_data.starts_with(b"welcome\0"),
                    "the accept carries {:?}",
                    peer.private_data
                );
            } else {
                ensure!(event.id == far_key, "an id that is no end of the connection");
            }
            established += 1;
        }
        Ok(Pair { near, far })
    }

    fn pair(&mut self) -> Outcome<Pair> {
        let far = self.far.clone();
        self.pair_with(None, |accepting| {
            let mut batch = accepting.receives();
            for token in 0..8 {
                batch.push([block(&far, 32 + token)?], token)?;
            }
            batch.commit()?;
            Ok(())
        })
    }

    /// The next completion of a queue pair.
    fn next(&mut self, qp: &Qp) -> Outcome<Completion> {
        let start = Instant::now();
        loop {
            if let Some(index) = self.early.iter().position(|one| one.qp() == qp.number()) {
                return Ok(self.early.remove(index));
            }
            self.cq.poll(&mut self.batch)?;
            self.early.extend(&mut self.batch);
            ensure!(start.elapsed() < LIMIT, "no completion of {qp:?}");
            std::thread::yield_now();
        }
    }

    /// The next completion of a queue pair, which is of a send: its status and what it released.
    fn sent(&mut self, qp: &mut Qp) -> Outcome<(WorkStatus, Vec<u64>)> {
        let completion = self.next(qp)?;
        ensure!(!completion.is_receive(), "{completion:?} is of a receive");
        let status = completion.status();
        let mut tokens = Vec::new();
        qp.complete(completion, |one| tokens.push(one.token))?;
        Ok((status, tokens))
    }

    fn received(&mut self, qp: &mut Qp) -> Outcome<Received> {
        let completion = self.next(qp)?;
        ensure!(completion.is_receive(), "{completion:?} is of a send");
        Ok(qp.received(completion)?)
    }
}

/// The next event of a kind. Those that end connections of earlier checks are passed over, as are established ends of others.
fn wait(channel: &mut EventChannel, wanted: impl Fn(&CmEventKind) -> bool) -> Outcome<CmEvent> {
    let start = Instant::now();
    loop {
        match channel.next_event()? {
            Some(event) if wanted(&event.kind) => return Ok(event),
            Some(CmEvent {
                kind: CmEventKind::Disconnected | CmEventKind::TimewaitExit,
                ..
            }) => {}
            Some(event) => return Err(format!("an unexpected event: {event:?}").into()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
        ensure!(start.elapsed() < LIMIT, "the connection manager says nothing");
    }
}

fn block(memory: &MemoryRegion, number: u64) -> Result<homi_verbs::Piece, VerbsError> {
    memory.piece(number * BLOCK..(number + 1) * BLOCK)
}

fn fill(memory: &MemoryRegion, number: u64, value: u8) -> Outcome {
    let region = memory.region().ok_or("memory without a region")?;
    region.fill(usize::try_from(number * BLOCK)?, usize::try_from(BLOCK)?, value)?;
    Ok(())
}

fn holds(memory: &MemoryRegion, number: u64, value: u8) -> Outcome<bool> {
    let region = memory.region().ok_or("memory without a region")?;
    let mut bytes = vec![0; usize::try_from(BLOCK)?];
    region.read(usize::try_from(number * BLOCK)?, &mut bytes)?;
    Ok(bytes.iter().all(|byte| *byte == value))
}

fn remote(memory: &MemoryRegion, number: u64) -> Result<Remote, VerbsError> {
    Ok(Remote {
        address: memory.remote_address(number * BLOCK)?,
        key: memory.remote_key()?,
    })
}

/// Messages both ways: from registered memory, and inline.
fn send_and_receive(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    fill(&bench.near, 0, 0x5a)?;
    let mut batch = pair.near.sends();
    batch.send([block(&bench.near, 0)?], None, Signal::Completion, 7)?;
    batch.send_inline(b"short", None, Signal::Completion, 8)?;
    ensure!(batch.commit()? == 2, "not all was posted");
    let first = bench.received(&mut pair.far)?;
    let second = bench.received(&mut pair.far)?;
    ensure!(
        (first.token, first.bytes, second.token, second.bytes) == (0, BLOCK, 1, 5),
        "{first:?} {second:?}"
    );
    ensure!(holds(&bench.far, 32, 0x5a)?, "the message is not what was sent");
    for token in [7, 8] {
        ensure!(
            bench.sent(&mut pair.near)? == (WorkStatus::Success, vec![token]),
            "the sends did not complete in order"
        );
    }
    let mut receives = pair.near.receives();
    receives.push([block(&bench.near, 1)?], 70)?;
    receives.commit()?;
    let mut batch = pair.far.sends();
    batch.send_inline(b"back", None, Signal::Completion, 1)?;
    batch.commit()?;
    let back = bench.received(&mut pair.near)?;
    ensure!((back.token, back.bytes) == (70, 4), "{back:?}");
    ensure!(pair.near.is_idle(), "sends are left");
    Ok(())
}

/// Data WRITE and response SEND in one list: one doorbell, one completion. Then a READ.
fn remote_memory(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    let mut receives = pair.near.receives();
    receives.push([block(&bench.near, 40)?], 1)?;
    receives.commit()?;
    fill(&bench.far, 0, 0x11)?;
    fill(&bench.far, 1, 0x22)?;
    fill(&bench.near, 9, 0)?;
    fill(&bench.near, 10, 0)?;
    let before = pair.far.counters();
    let mut batch = pair.far.sends();
    batch.write(
        [block(&bench.far, 0)?, block(&bench.far, 1)?],
        remote(&bench.near, 9)?,
        Signal::Silent,
        5,
    )?;
    batch.send_inline(&[0; 16], None, Signal::Completion, 6)?;
    batch.commit()?;
    bench.received(&mut pair.near)?;
    ensure!(
        holds(&bench.near, 9, 0x11)? && holds(&bench.near, 10, 0x22)?,
        "the response came before the data"
    );
    ensure!(
        bench.sent(&mut pair.far)? == (WorkStatus::Success, vec![5, 6]),
        "the completion does not release both"
    );
    let after = pair.far.counters();
    let done = (
        after.work_requests - before.work_requests,
        after.doorbells - before.doorbells,
        after.completions - before.completions,
    );
    ensure!(
        done == (2, 1, 1),
        "{done:?} work requests, doorbells and completions"
    );
    fill(&bench.near, 20, 0x33)?;
    let mut batch = pair.far.sends();
    batch.read(
        [block(&bench.far, 3)?],
        remote(&bench.near, 20)?,
        Signal::Completion,
        9,
    )?;
    batch.commit()?;
    ensure!(
        bench.sent(&mut pair.far)? == (WorkStatus::Success, vec![9]),
        "the READ failed"
    );
    ensure!(holds(&bench.far, 3, 0x33)?, "the READ brought something else");
    Ok(())
}

/// A key that the peer invalidates with its message: it works before and not after.
fn windows(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    let mut receives = pair.near.receives();
    for token in 0..4 {
        receives.push([block(&bench.near, 40 + token)?], token)?;
    }
    receives.commit()?;
    let mut window = MemoryWindow::new(&bench.pd)?;
    let mut last = RemoteKey(0);
    for round in 0..2_u8 {
        let mut batch = pair.near.sends();
        let piece = block(&bench.near, 4)?;
        let key = batch.bind(
            &mut window,
            &piece,
            Access::REMOTE_READ | Access::REMOTE_WRITE,
            Signal::Silent,
            1,
        )?;
        batch.send_inline(&key.0.to_le_bytes(), None, Signal::Completion, 2)?;
        batch.commit()?;
        ensure!(key != last, "a binding has the key of the one before");
        ensure!(
            bench.sent(&mut pair.near)? == (WorkStatus::Success, vec![1, 2]),
            "the binding failed"
        );
        bench.received(&mut pair.far)?;
        fill(&bench.near, 4, 0x40 + round)?;
        let at = Remote {
            address: piece.address(),
            key,
        };
        let mut batch = pair.far.sends();
        batch.read([block(&bench.far, 5)?], at, Signal::Completion, 3)?;
        batch.commit()?;
        let read = bench.sent(&mut pair.far)?;
        ensure!(
            read == (WorkStatus::Success, vec![3]),
            "the READ through the window: {read:?}"
        );
        ensure!(
            holds(&bench.far, 5, 0x40 + round)?,
            "the window shows something else"
        );
        let mut batch = pair.far.sends();
        batch.send_inline(b"done", Some(key), Signal::Completion, 4)?;
        batch.commit()?;
        let done = bench.received(&mut pair.near)?;
        ensure!(
            done.invalidated == Some(key),
            "the message invalidates {:?}",
            done.invalidated
        );
        bench.sent(&mut pair.far)?;
        last = key;
    }
    let mut batch = pair.far.sends();
    let at = Remote {
        address: block(&bench.near, 4)?.address(),
        key: last,
    };
    batch.read([block(&bench.far, 5)?], at, Signal::Completion, 5)?;
    batch.commit()?;
    let (status, _) = bench.sent(&mut pair.far)?;
    ensure!(
        status == WorkStatus::RemoteAccess,
        "a READ with a key that was invalidated: {status}"
    );
    Ok(())
}

/// A window that its own host takes back.
fn local_invalidate(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    let mut window = MemoryWindow::new(&bench.pd)?;
    for _ in 0..2 {
        let mut batch = pair.near.sends();
        let key = batch.bind(
            &mut window,
            &block(&bench.near, 4)?,
            Access::REMOTE_READ,
            Signal::Silent,
            1,
        )?;
        batch.invalidate(key, Signal::Completion, 2)?;
        batch.commit()?;
        let done = bench.sent(&mut pair.near)?;
        ensure!(
            done == (WorkStatus::Success, vec![1, 2]),
            "bind and invalidate: {done:?}"
        );
    }
    Ok(())
}

/// Two connections that receive from one queue.
fn shared_receives(bench: &mut Bench) -> Outcome {
    let mut shared = SharedReceives::new(&bench.pd, &bench.cq, 8, 1)?;
    let mut batch = shared.receives();
    for token in 0..8 {
        batch.push([block(&bench.far, 48 + token)?], token)?;
    }
    ensure!(
        batch.push([block(&bench.far, 0)?], 99) == Err(PostError::Full { depth: 8 }),
        "a ninth"
    );
    batch.commit()?;
    let mut pairs = Vec::new();
    for _ in 0..2 {
        pairs.push(bench.pair_with(Some(&shared), |_| Ok(()))?);
    }
    let mut tokens = Vec::new();
    for round in 0..3 {
        for pair in &mut pairs {
            let mut batch = pair.near.sends();
            batch.send_inline(&[round], None, Signal::Completion, 1)?;
            batch.commit()?;
            bench.sent(&mut pair.near)?;
            let completion = bench.next(&pair.far)?;
            let got = shared.received(completion)?;
            ensure!((got.status, got.bytes) == (WorkStatus::Success, 1), "{got:?}");
            tokens.push(got.token);
        }
    }
    tokens.sort_unstable();
    tokens.dedup();
    ensure!(tokens.len() == 6, "receives came twice: {tokens:?}");
    // The handle goes first: what is posted stays until the last queue pair is gone.
    drop(shared);
    let pair = pairs.last_mut().ok_or("no pair")?;
    let mut batch = pair.near.sends();
    batch.send_inline(b"late", None, Signal::Completion, 1)?;
    batch.commit()?;
    let (status, _) = bench.sent(&mut pair.near)?;
    ensure!(
        status == WorkStatus::Success,
        "a message to memory whose queue was dropped: {status}"
    );
    drop(bench.next(&pair.far)?);
    Ok(())
}

fn wake(qp: &mut Qp) -> bool {
    let mut batch = qp.sends();
    batch.send_inline(b"wake", None, Signal::Silent, 1).is_ok() && batch.commit().is_ok()
}

/// The channel's descriptor wakes a sleeper, and only when it was asked to.
fn sleep(bench: &mut Bench) -> Outcome {
    use std::os::fd::AsRawFd;

    let mut pair = bench.pair()?;
    let descriptor = bench.cq.descriptor().ok_or("no descriptor")?.as_raw_fd();
    let readable = |timeout: i32| -> bool {
        let mut poll = libc::pollfd {
            fd: descriptor,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, as said.
        unsafe { libc::poll(&raw mut poll, 1, timeout) == 1 }
    };
    bench.cq.disarm()?;
    bench.cq.arm()?;
    ensure!(
        bench.cq.poll(&mut bench.batch)? == 0,
        "something completed by itself"
    );
    ensure!(!readable(50), "woken for nothing");
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let sent = wake(&mut pair.near);
        (pair, sent)
    });
    ensure!(readable(20_000), "not woken");
    let slept = start.elapsed();
    let (mut pair, sent) = sender.join().map_err(|_| "the sender panicked")?;
    ensure!(
        sent && slept >= Duration::from_millis(50),
        "woken after {slept:?}"
    );
    ensure!(bench.cq.disarm()? >= 1, "no event");
    let got = bench.received(&mut pair.far)?;
    ensure!(got.bytes == 4, "{got:?}");
    ensure!(!readable(0), "the event is still there");
    Ok(())
}

/// A queue pair dies: everything posted to it comes back, and another connection does not notice.
fn kill(bench: &mut Bench) -> Outcome {
    let mut other = bench.pair()?;
    let mut pair = bench.pair()?;
    pair.far.kill()?;
    let mut flushed = Vec::new();
    for _ in 0..8 {
        let got = bench.received(&mut pair.far)?;
        ensure!(got.status == WorkStatus::Flushed && got.bytes == 0, "{got:?}");
        flushed.push(got.token);
    }
    ensure!(flushed == [0, 1, 2, 3, 4, 5, 6, 7], "flushed {flushed:?}");
    let mut batch = pair.near.sends();
    batch.send_inline(b"anyone?", None, Signal::Silent, 1)?;
    batch.send_inline(b"anyone?", None, Signal::Completion, 2)?;
    batch.commit()?;
    let (status, tokens) = bench.sent(&mut pair.near)?;
    ensure!(
        !status.is_success() && tokens == [1],
        "to a dead queue pair: {status} {tokens:?}"
    );
    let second = bench.sent(&mut pair.near)?;
    ensure!(second == (WorkStatus::Flushed, vec![2]), "behind it: {second:?}");
    let mut batch = other.near.sends();
    batch.send_inline(b"fine", None, Signal::Completion, 3)?;
    batch.commit()?;
    ensure!(
        bench.sent(&mut other.near)? == (WorkStatus::Success, vec![3]),
        "another connection is hurt"
    );
    bench.received(&mut other.far)?;
    Ok(())
}

/// What is still posted when a queue pair is closed is given back once.
fn close(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    let mut receives = pair.near.receives();
    receives.push([block(&bench.near, 1)?], 11)?;
    receives.commit()?;
    // Withdrawn, because it is never committed.
    pair.near.receives().push([block(&bench.near, 1)?], 12)?;
    pair.near.disconnect()?;
    let mut sent = Vec::new();
    let mut received = Vec::new();
    pair.near
        .close(|one| sent.push(one.token), |token| received.push(token));
    ensure!(sent.is_empty() && received == [11], "{sent:?} {received:?}");
    wait(&mut bench.channel, |kind| {
        matches!(kind, CmEventKind::Disconnected)
    })?;
    // Completions of a queue pair that is gone release nothing of one that may have its number.
    bench.cq.poll(&mut bench.batch)?;
    bench.early.extend(&mut bench.batch);
    for stale in bench.early.drain(..) {
        let of_far = stale.qp() == pair.far.number();
        ensure!(
            pair.far.received(stale).is_ok() == of_far,
            "a stale completion was taken"
        );
    }
    Ok(())
}

/// A wrong key, and bytes past the end of the right one, fail the queue pair that used them.
fn wrong_keys(bench: &mut Bench) -> Outcome {
    let past = Remote {
        address: bench.near.remote_address(MEMORY - 1)?,
        key: bench.near.remote_key()?,
    };
    let wrong = Remote {
        key: RemoteKey(bench.near.remote_key()?.0 ^ 0x00ff_ff00),
        ..remote(&bench.near, 0)?
    };
    fill(&bench.near, 0, 0x77)?;
    for at in [wrong, past] {
        let mut pair = bench.pair()?;
        let mut batch = pair.far.sends();
        batch.write([block(&bench.far, 0)?], at, Signal::Completion, 1)?;
        batch.commit()?;
        let (status, _) = bench.sent(&mut pair.far)?;
        ensure!(status == WorkStatus::RemoteAccess, "{at:?} gives {status}");
    }
    ensure!(holds(&bench.near, 0, 0x77)?, "a refused WRITE wrote");
    Ok(())
}

/// A rejection with a reason, and one because nobody listens.
fn reject(bench: &mut Bench) -> Outcome {
    let options = QpOptions::default();
    let connecting = bench.outgoing(&options, None)?;
    let qp = connecting.connect(&ConnectOptions::default())?;
    bench.request()?.reject(b"no room")?;
    let event = wait(&mut bench.channel, |kind| {
        matches!(kind, CmEventKind::Rejected { .. })
    })?;
    let CmEventKind::Rejected { reason, private_data } = event.kind else {
        return Err("no rejection".into());
    };
    ensure!(
        event.id == qp.key() && reason == 28 && private_data.starts_with(b"no room\0"),
        "reason {reason}, {private_data:?}"
    );
    drop(qp);
    // One whose queue pair was made already.
    let connecting = bench.outgoing(&options, None)?;
    let qp = connecting.connect(&ConnectOptions::default())?;
    let accepting = bench.request()?.create_qp(&bench.pd, &bench.cq, None, &options)?;
    accepting.reject(&[1, 2, 3])?;
    wait(
        &mut bench.channel,
        |kind| matches!(kind, CmEventKind::Rejected { private_data, .. } if private_data.starts_with(&[1, 2, 3])),
    )?;
    drop(qp);
    let listening = bench.address;
    bench.address.set_port(if listening.port() == 9 { 10 } else { 9 });
    let connecting = bench.outgoing(&options, None);
    bench.address = listening;
    let qp = connecting?.connect(&ConnectOptions::default())?;
    wait(&mut bench.channel, |kind| {
        matches!(kind, CmEventKind::Rejected { reason: 8, .. })
    })?;
    drop(qp);
    Ok(())
}

/// What can be refused before the device sees it.
fn refusals(bench: &mut Bench) -> Outcome {
    let too_long = [0; PrivateData::CONNECT + 1];
    let connecting = bench.outgoing(&QpOptions::default(), None)?;
    let refused = connecting.connect(&ConnectOptions {
        private_data: &too_long,
        ..ConnectOptions::default()
    });
    ensure!(
        matches!(
            refused,
            Err(homi_verbs::Refused {
                error: VerbsError::PrivateDataTooLong { len: 57, max: 56, .. },
                ..
            })
        ),
        "57 bytes of private data: {refused:?}"
    );
    drop(refused);
    let small = CompletionQueue::new(
        bench.device(),
        CompletionQueueOptions {
            entries: 4,
            sleep: false,
            vector: 0,
        },
    )?;
    let shared = SharedReceives::new(&bench.pd, &small, small.entries() + 1, 1);
    ensure!(
        matches!(shared, Err(VerbsError::CompletionQueueFull { .. })),
        "a completion queue that can be overrun: {shared:?}"
    );
    let mut pair = bench.pair()?;
    let other = Pd::new(bench.device())?;
    let foreign = other.register(&Region::allocate(4096, 4096)?, Access::WRITE)?;
    let mut batch = pair.near.sends();
    let wrong = batch.send([foreign.piece(0..16)?], None, Signal::Completion, 1);
    ensure!(
        wrong == Err(PostError::WrongDomain),
        "memory of another domain: {wrong:?}"
    );
    let read_only = bench.pd.register(&Region::allocate(4096, 4096)?, Access::READ)?;
    let wrong = batch.read(
        [read_only.piece(0..16)?],
        remote(&bench.far, 0)?,
        Signal::Completion,
        1,
    );
    ensure!(
        matches!(wrong, Err(PostError::AccessDenied { .. })),
        "a READ into memory that may not be written: {wrong:?}"
    );
    let three = [0, 1, 2].map(|number| block(&bench.near, number));
    let three: Vec<_> = three.into_iter().collect::<Result<_, _>>()?;
    let wrong = batch.send(three, None, Signal::Completion, 1);
    ensure!(
        wrong == Err(PostError::TooManyPieces { max: 2 }),
        "three pieces: {wrong:?}"
    );
    ensure!(read_only.remote_key().is_err(), "a key without rights");
    ensure!(
        batch.room() == 16 && batch.commit()? == 0,
        "refused work was posted"
    );
    ensure!(
        bench.near.piece(MEMORY..MEMORY + 1).is_err(),
        "a piece past the end"
    );
    let null = File::open("/dev/null")?;
    match bench.pd.register_dma_buf(null.as_fd(), 0, 4096, Access::WRITE) {
        Err(VerbsError::Unsupported(Unsupported::Capability { what, .. })) => println!("   no {what}"),
        // A device that has them says that this is none.
        Err(VerbsError::System { .. }) => {}
        other => return Err(format!("/dev/null as a dma-buf: {other:?}").into()),
    }
    Ok(())
}

/// Requests and answers, many times: nothing is allocated.
fn steady(bench: &mut Bench) -> Outcome {
    let mut pair = bench.pair()?;
    let mut receives = pair.near.receives();
    for token in 0..8 {
        receives.push([block(&bench.near, 40 + token)?], token)?;
    }
    receives.commit()?;
    let from = block(&bench.far, 0)?;
    let to = remote(&bench.near, 1)?;
    let mut completions = Completions::<16>::new();
    let mut counted = 0;
    let rounds = 600;
    let mut start = Instant::now();
    for round in 0..rounds {
        if round == 100 {
            counted = ALLOCATIONS.with(Cell::get);
            start = Instant::now();
        }
        let mut batch = pair.near.sends();
        batch.send_inline(&[1; 64], None, Signal::Silent, 1)?;
        batch.commit()?;
        let mut answered = false;
        let begun = Instant::now();
        while !answered {
            if bench.cq.poll(&mut completions)? == 0 {
                // The workers of a device in software may need this processor.
                std::thread::yield_now();
            }
            for completion in &mut completions {
                let near = completion.qp() == pair.near.number();
                if !near && completion.qp() != pair.far.number() {
                    // What an earlier check's queue pair left behind: its receives are flushed in the device's own time.
                    continue;
                }
                ensure!(completion.status().is_success(), "{completion:?}");
                let (own, memory, base) = if near {
                    (&mut pair.near, &bench.near, 40)
                } else {
                    (&mut pair.far, &bench.far, 32)
                };
                if !completion.is_receive() {
                    own.complete(completion, |_| {})?;
                    continue;
                }
                let got = own.received(completion)?;
                let mut receives = own.receives();
                receives.push([block(memory, base + got.token)?], got.token)?;
                receives.commit()?;
                if near {
                    answered = true;
                } else {
                    let mut batch = own.sends();
                    batch.write([from.clone()], to, Signal::Silent, 2)?;
                    batch.send_inline(&[2; 16], None, Signal::Completion, 3)?;
                    batch.commit()?;
                }
            }
            ensure!(begun.elapsed() < LIMIT, "no answer in round {round}");
        }
    }
    let each = start.elapsed() / (rounds - 100);
    let allocated = ALLOCATIONS.with(Cell::get) - counted;
    ensure!(allocated == 0, "{allocated} allocations in {rounds} rounds");
    println!(
        "   {each:?} for a request, 4 KiB of data and an answer; {:?}",
        pair.far.counters()
    );
    Ok(())
}

fn check(name: &str, bench: &mut Bench, body: fn(&mut Bench) -> Outcome) -> Outcome {
    bench.early.clear();
    body(bench).map_err(|error| format!("{name}: {error}"))?;
    println!("ok {name}");
    Ok(())
}

fn until_removed(ip: IpAddr) -> Outcome {
    let mut bench = Bench::new(ip)?;
    let pair = bench.pair()?;
    println!("connected");
    let mut removed = Vec::new();
    let ids = [pair.near.key(), pair.far.key(), bench.listener.key()];
    let start = Instant::now();
    while removed.len() < 2 {
        ensure!(start.elapsed() < 3 * LIMIT, "the device is still there");
        match bench.channel.next_event()? {
            Some(CmEvent {
                id,
                kind: CmEventKind::DeviceRemoval,
            }) => {
                ensure!(ids.contains(&id), "the device of an unknown id is gone");
                if id != bench.listener.key() {
                    removed.push(id);
                }
            }
            Some(_) => {}
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    drop(pair);
    drop(bench);
    println!("ok removed");
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pingpong: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "--until-removed").is_some() {
        let ip = arguments
            .next()
            .ok_or("an address of an RDMA device is missing")?;
        return until_removed(ip.parse()?);
    }
    ensure!(
        arguments.peek().is_some(),
        "an address of an RDMA device is missing"
    );
    for device in Device::list()? {
        println!("{device:?} {:?}", device.limits());
    }
    for argument in arguments {
        let mut bench = Bench::new(argument.parse()?)?;
        println!("{} over {}", bench.address, bench.device().name());
        check("send and receive", &mut bench, send_and_receive)?;
        check("remote memory", &mut bench, remote_memory)?;
        if bench.device().limits().windows == Windows::None {
            println!("skipped windows: the device has none");
        } else {
            check("windows", &mut bench, windows)?;
            check("local invalidate", &mut bench, local_invalidate)?;
        }
        check("shared receives", &mut bench, shared_receives)?;
        check("sleep", &mut bench, sleep)?;
        check("kill", &mut bench, kill)?;
        check("close", &mut bench, close)?;
        check("wrong keys", &mut bench, wrong_keys)?;
        check("reject", &mut bench, reject)?;
        check("refusals", &mut bench, refusals)?;
        check("steady", &mut bench, steady)?;
    }
    println!("all ok");
    Ok(())
}
