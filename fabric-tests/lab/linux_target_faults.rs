//! Linux's target (nvmet) is taken away, changed, stopped and killed under our initiator's I/O: every command has one outcome, what was
//! acknowledged is there afterwards, and nothing hangs.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostProgram, Kernels, Lab, Test, Vm, check_refusal};
use fabric_tests::random::{Random, contents};
use homi_initiator::{
    AnyQueue, Blocking, Buffer, Command, CommandId, Completed, ControllerEvent, ControllerStatus, Data,
    Device, Error, LostReason, Queue, QueueLost, QueueOptions, Region, Uri, wait_for_completions,
};
use homi_spec::Status;
use homi_spec::command::NvmOpcode;
use nix::sys::signal::Signal;

use crate::linux_target_io::{NQN, TEST, namespace_uri, patient, verified};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "a_subsystem_and_a_port_vanish_under_io",
        feature: "subsystem and port disabled and enabled under I/O",
        limit: Duration::from_secs(240),
        run: vanish,
        ..TEST
    },
    Test {
        name: "a_namespace_is_disabled_under_io",
        feature: "namespace disabled and enabled under I/O, changed-namespace event",
        limit: Duration::from_secs(180),
        // Linux 6.12 loses count of a namespace that is enabled again under commands to it, and says so when its subsystem is removed.
        tolerates: &["nvmet_subsys_free+"],
        run: namespace_disabled,
        ..TEST
    },
    Test {
        name: "keep_alive",
        kernels: Kernels::Default,
        feature: "keep alive while idle, and its expiry",
        limit: Duration::from_secs(180),
        run: keep_alive,
        ..TEST
    },
    Test {
        name: "a_paused_target",
        feature: "target stopped: timeouts, Abort, reconnect",
        limit: Duration::from_secs(180),
        run: paused,
        kernels: Kernels::Default,
        ..TEST
    },
    Test {
        name: "a_killed_target",
        kernels: Kernels::Default,
        feature: "target killed under I/O",
        fresh: true,
        run: killed,
        ..TEST
    },
];

/// Bytes of a unit that is written at once.
const UNIT: usize = 4096;
/// Commands in flight.
const DEPTH: u16 = 16;
/// How long anything may take that should take moments.
const SOON: Duration = Duration::from_secs(60);

/// What a part of the disk may hold: the contents of these generations, 0 for zeroes.
#[derive(Debug, Clone)]
struct Unit {
    /// The last acknowledged write, then those whose outcome is not known.
    candidates: Vec<u64>,
    next: u64,
    busy: bool,
}

/// The contents of a generation of a unit.
fn contents_of(unit: usize, generation: u64) -> Vec<u8> {
    if generation == 0 {
        return vec![0; UNIT];
    }
    contents(generation << 20 | u64::try_from(unit).unwrap_or(0), UNIT)
}

/// A thread that keeps commands in flight, checks what it reads, and accounts for every command.
struct Churn {
    thread: JoinHandle<Result<Report, Failure>>,
    completed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// What became of the commands.
#[derive(Debug)]
struct Report {
    units: Vec<Unit>,
    /// The statuses of those that failed.
    failed: Vec<Status>,
    /// Why the queue was lost, and how many commands it handed back.
    lost: Option<(LostReason, usize)>,
    aborts: u64,
}

impl Churn {
    /// Starts with a queue of its own to a device, whose units hold what `units` says.
    fn start(device: &Device, units: Vec<Unit>) -> Result<Self, Failure> {
        let queue = device.queue(QueueOptions::depth(DEPTH))?;
        let (completed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut work = Work {
            queue,
            nsid: device.nsid(),
            blocks: u32::try_from(UNIT)? / device.block_size(),
            in_flight: HashMap::new(),
            random: Random::new(5),
            report: Report {
                units,
                failed: Vec::new(),
                lost: None,
                aborts: 0,
            },
            completed: Arc::clone(&completed),
        };
        let stopping = Arc::clone(&stop);
        let thread = thread::Builder::new().name("churn".to_owned()).spawn(move || {
            let outcome = work.run(&stopping);
            work.report.aborts = work.queue.counters().map_or(0, |counters| counters.aborts);
            outcome.map(|()| work.report)
        })?;
        Ok(Self {
            thread,
            completed,
            stop,
        })
    }

    /// On zeroes.
    fn fresh(device: &Device) -> Result<Self, Failure> {
        let unit = Unit {
            candidates: vec![0],
            next: 1,
            busy: false,
        };
        Self::start(device, vec![unit; 200])
    }

    /// Waits until so many more commands have succeeded.
    fn go_on(&self, count: u64) -> Result<(), Failure> {
        let goal = self.completed.load(Ordering::Relaxed) + count;
        let start = Instant::now();
        while self.completed.load(Ordering::Relaxed) < goal {
            ensure!(
                start.elapsed() < SOON && !self.thread.is_finished(),
                "the I/O does not go on: {} of {goal} commands, ended: {}",
                self.completed.load(Ordering::Relaxed),
                self.thread.is_finished()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until the queue is lost.
    fn until_lost(self, limit: Duration) -> Result<Report, Failure> {
        let start = Instant::now();
        while !self.thread.is_finished() {
            ensure!(start.elapsed() < limit, "the queue is not lost after {limit:?}");
            thread::sleep(Duration::from_millis(5));
        }
        let report = self.join()?;
        ensure!(report.lost.is_some(), "the I/O ended and the queue was not lost");
        Ok(report)
    }

    /// Lets what is in flight complete.
    fn stop(self) -> Result<Report, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.thread.is_finished() {
            ensure!(start.elapsed() < SOON, "what is in flight does not complete");
            thread::sleep(Duration::from_millis(5));
        }
        self.join()
    }

    fn join(self) -> Result<Report, Failure> {
        self.thread
            .join()
            .map_err(|_| Failure::new("the thread with the I/O panicked"))?
    }
}

impl fmt::Debug for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Churn")
            .field("completed", &self.completed)
            .finish_non_exhaustive()
    }
}

struct Work {
    queue: AnyQueue,
    nsid: u32,
    /// Blocks of a unit.
    blocks: u32,
    /// The unit of each command, and the generation that it writes.
    in_flight: HashMap<CommandId, (usize, Option<u64>)>,
    random: Random,
    report: Report,
    completed: Arc<AtomicU64>,
}

impl Work {
    fn run(&mut self, stop: &AtomicBool) -> Result<(), Failure> {
        let mut completed = Vec::new();
        loop {
            if stop.load(Ordering::Relaxed) {
                if self.in_flight.is_empty() {
                    return Ok(());
                }
            } else {
                self.submit()?;
            }
            let polled = self.queue.commit().and_then(|()| {
                wait_for_completions(&mut self.queue, &mut completed, Some(Duration::from_millis(100)))
            });
            for completed in completed.drain(..) {
                self.complete(completed)?;
            }
            if let Err(lost) = polled {
                return self.lose(lost);
            }
        }
    }

    fn submit(&mut self) -> Result<(), Failure> {
        while let Ok(slot) = self.queue.reserve() {
            let index = self.random.below(self.report.units.len());
            let write = self.random.below(10) < 6;
            let lba = u64::try_from(index)? * u64::from(self.blocks);
            let unit = self.report.units.get_mut(index).filter(|unit| !unit.busy);
            let Some(unit) = unit else {
                self.queue.release(slot);
                continue;
            };
            unit.busy = true;
            let (command, data, generation) = if write {
                let generation = unit.next;
                unit.next += 1;
                (
                    Command::write(self.nsid, lba, self.blocks),
                    Data::whole(Region::from_vec(contents_of(index, generation))),
                    Some(generation),
                )
            } else {
                (
                    Command::read(self.nsid, lba, self.blocks),
                    Data::whole(Region::from_vec(vec![0xee; UNIT])),
                    None,
                )
            };
            let id = self.queue.submit(slot, command, data);
            ensure!(
                self.in_flight.insert(id, (index, generation)).is_none(),
                "two commands in flight have the id {id}"
            );
        }
        Ok(())
    }

    fn complete(&mut self, completed: Completed) -> Result<(), Failure> {
        let Completed { id, completion, data } = completed;
        let (index, generation) = self
            .in_flight
            .remove(&id)
            .ok_or_else(|| Failure::new(format!("command {id} completes and is not in flight")))?;
        let Some(unit) = self.report.units.get_mut(index) else {
            return Err(Failure::new("a unit outside of the disk"));
        };
        unit.busy = false;
        if !completion.is_success() {
            self.report.failed.push(completion.status);
            // A failed write may have been carried out in part of its blocks, but Linux executes these as one.
            unit.candidates.extend(generation);
            // Failures come back at once; without a pause they would be all that the machine does.
            thread::sleep(Duration::from_millis(1));
            return Ok(());
        }
        self.completed.fetch_add(1, Ordering::Relaxed);
        match generation {
            Some(generation) => unit.candidates = vec![generation],
            None => {
                let mut bytes = vec![0; UNIT];
                data.read(0, &mut bytes)?;
                check_unit(index, unit, &bytes)?;
            }
        }
        Ok(())
    }

    fn lose(&mut self, lost: QueueLost) -> Result<(), Failure> {
        let (reason, undelivered) = lost.into_parts();
        let count = undelivered.len();
        for undelivered in undelivered {
            let (index, generation) = self.in_flight.remove(&undelivered.id).ok_or_else(|| {
                Failure::new(format!(
                    "command {} is undelivered and not in flight",
                    undelivered.id
                ))
            })?;
            let write = undelivered.command.opcode() == NvmOpcode::WRITE;
            ensure!(
                write == generation.is_some()
                    && undelivered.command.lba() == u64::try_from(index)? * u64::from(self.blocks)
                    && undelivered.data.len() == UNIT,
                "command {} is handed back as {:?}",
                undelivered.id,
                undelivered.command
            );
            if let Some(unit) = self.report.units.get_mut(index) {
                unit.busy = false;
                unit.candidates.extend(generation);
            }
        }
        ensure!(
            self.in_flight.is_empty(),
            "{} commands have neither a completion nor were they handed back: {reason}",
            self.in_flight.len()
        );
        // Only the first loss carries commands.
        if let Err(again) = self.queue.commit() {
            ensure!(again.undelivered().is_empty(), "commands are handed back twice");
        } else {
            return Err(Failure::new("a lost queue takes commands"));
        }
        self.report.lost = Some((reason, count));
        Ok(())
    }
}

fn check_unit(index: usize, unit: &Unit, bytes: &[u8]) -> Result<(), Failure> {
    let fits = unit
        .candidates
        .iter()
        .any(|generation| contents_of(index, *generation) == bytes);
    ensure!(
        fits,
        "unit {index} holds something else than what was written last: {:?} would be right",
        unit.candidates
    );
    Ok(())
}

/// Reads everything; what was acknowledged must be there. Returns what there is.
fn verify(device: &Device, mut units: Vec<Unit>) -> Result<Vec<Unit>, Failure> {
    let mut queue = Blocking::open(device)?;
    for (index, unit) in units.iter_mut().enumerate() {
        let lba = u64::try_from(index * UNIT)? / u64::from(device.block_size());
        let bytes = queue.read(lba, Buffer::from_vec(vec![0xee; UNIT]))?.into_vec();
        check_unit(index, unit, &bytes)?;
        unit.candidates
            .retain(|generation| contents_of(index, *generation) == bytes);
    }
    Ok(units)
}

/// Opens a namespace, trying for as long as the target may take to be back.
fn open_again(uri: &Uri) -> Result<Device, Failure> {
    let initiator = patient().connect_timeout(Duration::from_secs(10)).build()?;
    let start = Instant::now();
    loop {
        match initiator.open(uri) {
            Ok(device) => return Ok(device),
            Err(error) if start.elapsed() > SOON => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A bench of ours as a process, which would run for an hour.
fn endless_bench(lab: &Lab, uri: &Uri) -> Result<HostProgram, Failure> {
    let place = uri.to_string();
    lab.spawn(
        "homi",
        &[
            "bench",
            &place,
            "--rw",
            "randrw",
            "--verify",
            "--queues",
            "2",
            "--depth",
            "8",
            "--offset",
            "8M",
            "--size",
            "4M",
            "--time",
            "1h",
            "--quiet",
            "--connect-timeout",
            "30s",
        ],
    )
}

/// Waits until a benchmark that was started does I/O: namespace 1 is written from 8 MiB on.
fn wait_for_bench(guest: &Vm, disk: &str) -> Result<(), Failure> {
    guest
        .sh(&format!(
            "written() {{ [ \"$(dd if={disk} bs=1M skip=8 count=4 iflag=direct status=none | tr -d '\\0' | head -c 8)\" = HOMISTMP ]; }}
             until_true 60 written"
        ))
        .map(drop)
}

fn serve(guest: &Vm) -> Result<String, Failure> {
    let output = guest.sh(&format!(
        "nvmet_subsystem {NQN}
         first=$(null_disk 16 512)
         nvmet_namespace {NQN} 1 $first
         nvmet_namespace {NQN} 2 $(null_disk 16 4096)
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}
         echo $first"
    ))?;
    Ok(output.stdout.trim().to_owned())
}

fn vanish(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let disk = serve(guest)?;
    let uri = namespace_uri(guest.forward(4420)?, 1)?;
    let device = patient().build()?.open(&uri)?;
    let mut churn = Churn::fresh(&device)?;
    let mut current = device;
    for (away, back) in [
        (
            format!("rm $NVMET/ports/1/subsystems/{NQN}"),
            format!("nvmet_offer 1 {NQN}"),
        ),
        (
            format!("rm $NVMET/ports/1/subsystems/{NQN}; rmdir $NVMET/ports/1"),
            format!("nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"),
        ),
    ] {
        let controller = current
            .controller()
            .cloned()
            .ok_or_else(|| Failure::new("the device has no controller"))?;
        let events = controller.events();
        let bench = endless_bench(lab, &uri)?;
        churn.go_on(100)?;
        wait_for_bench(guest, &disk)?;
        guest.sh(&away)?;
        let report = churn.until_lost(SOON)?;
        let (reason, undelivered) = report.lost.clone().ok_or_else(|| Failure::new("not lost"))?;
        ensure!(
            matches!(
                reason,
                LostReason::Closed
                    | LostReason::Io(_)
                    | LostReason::Terminated(_)
                    | LostReason::Association(_)
            ),
            "the queue is lost because {reason}"
        );
        ensure!(
            (1..=usize::from(DEPTH)).contains(&undelivered),
            "{undelivered} commands handed back of {DEPTH}"
        );
        wait_for_event(&events, "lost", |event| matches!(event, ControllerEvent::Lost(_)))?;
        ensure!(
            matches!(controller.status(), ControllerStatus::Lost(_)),
            "the association is {:?}",
            controller.status()
        );
        let said = check_refusal(&bench.wait(SOON)?, 1)?.to_owned();
        ensure!(said.contains("lost"), "homi bench says: {said}");
        let start = Instant::now();
        let refused = patient()
            .connect_timeout(Duration::from_secs(10))
            .build()?
            .open(&uri);
        ensure!(refused.is_err(), "what is gone can be connected to");
        ensure!(start.elapsed() < SOON, "the refusal takes {:?}", start.elapsed());
        drop(controller);
        guest.sh(&back)?;
        current = open_again(&uri)?;
        let units = verify(&current, report.units)?;
        churn = Churn::start(&current, units)?;
    }
    churn.go_on(100)?;
    let report = churn.stop()?;
    ensure!(report.failed.is_empty(), "commands fail: {:?}", report.failed);
    verify(&current, report.units).map(drop)
}

fn wait_for_event(
    events: &Receiver<ControllerEvent>,
    what: &str,
    wanted: impl Fn(&ControllerEvent) -> bool,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut others = Vec::new();
    while let Ok(event) = events.recv_timeout(SOON.saturating_sub(start.elapsed())) {
        if wanted(&event) {
            return Ok(());
        }
        others.push(event);
    }
    Err(Failure::new(format!("no event: {what}; these came: {others:?}")))
}

fn namespace_disabled(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    let address = guest.forward(4420)?;
    let initiator = patient().build()?;
    let first = initiator.open(&namespace_uri(address, 1)?)?;
    let second = initiator.open(&namespace_uri(address, 2)?)?;
    let controller = first
        .controller()
        .cloned()
        .ok_or_else(|| Failure::new("the device has no controller"))?;
    let events = controller.events();
    let (disabled, other) = (Churn::fresh(&first)?, Churn::fresh(&second)?);
    disabled.go_on(100)?;
    let enable = format!("$NVMET/subsystems/{NQN}/namespaces/1/enable");
    let changed = |event: &ControllerEvent| matches!(event, ControllerEvent::NamespacesChanged(ids) if ids.contains(&1));
    guest.sh(&format!("echo 0 >{enable}"))?;
    wait_for_event(&events, "namespace 1 changed", changed)?;
    let ids = controller.namespace_ids()?;
    ensure!(ids == [2], "namespaces {ids:?} while 1 is disabled");
    other.go_on(50)?;
    let missing = initiator.open(&namespace_uri(address, 1)?);
    ensure!(
        matches!(&missing, Err(Error::NoNamespace { available, .. }) if available == &[2]),
        "a disabled namespace opens as {missing:?}"
    );
    guest.sh(&format!("echo 1 >{enable}"))?;
    wait_for_event(&events, "namespace 1 changed again", changed)?;
    let ids = controller.namespace_ids()?;
    ensure!(ids == [1, 2], "namespaces {ids:?} when 1 is enabled again");
    // The queue that it was used through is as good as before.
    disabled.go_on(100)?;
    other.go_on(50)?;
    let report = disabled.stop()?;
    ensure!(
        !report.failed.is_empty()
            && report.failed.iter().all(|status| {
                status.is(Status::INVALID_NAMESPACE) || status.is(Status::INTERNAL_PATH_ERROR)
            }),
        "commands to a disabled namespace end with {:?}",
        report.failed
    );
    verify(&first, report.units)?;
    let report = other.stop()?;
    ensure!(
        report.failed.is_empty() && report.lost.is_none(),
        "the other namespace suffers: {:?} {:?}",
        report.failed,
        report.lost
    );
    verify(&second, report.units)?;
    ensure!(
        controller.status() == ControllerStatus::Live,
        "the association is {:?}",
        controller.status()
    );
    Ok(())
}

/// What Linux writes into its log when it has heard nothing for too long.
const EXPIRED: &str = "keep-alive timer";

fn keep_alive(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    let uri = namespace_uri(guest.forward(4420)?, 1)?;
    let device = patient().keep_alive(Duration::from_secs(2)).build()?.open(&uri)?;
    let controller = device
        .controller()
        .cloned()
        .ok_or_else(|| Failure::new("the device has no controller"))?;
    let negotiated = controller.info().keep_alive_ms;
    ensure!(
        negotiated == 2000,
        "a keep-alive timeout of {negotiated} ms instead of 2 s"
    );
    let mut queue = Blocking::open(&device)?;
    queue.write(0, Buffer::from_vec(contents(1, UNIT)))?;
    thread::sleep(Duration::from_secs(6));
    ensure!(
        controller.status() == ControllerStatus::Live,
        "idle for 6 s: {:?}",
        controller.status()
    );
    let back = queue.read(0, Buffer::from_vec(vec![0; UNIT]))?;
    ensure!(
        back.into_vec() == contents(1, UNIT),
        "the queue brings other bytes after a rest"
    );
    ensure!(
        !guest.kernel_log()?.contains(EXPIRED),
        "the target has not seen our keep-alives"
    );
    drop(queue);
    drop(device);
    controller.disconnect(SOON)?;

    // A host that is stopped sends none: the target ends the association, and the host says so when it goes on.
    let place = uri.to_string();
    let bench = lab.spawn(
        "homi",
        &[
            "bench",
            &place,
            "--rate",
            "50",
            "--time",
            "1h",
            "--quiet",
            "--connect-timeout",
            "30s",
        ],
    )?;
    guest.sh(
        "connected() { ss -tnH state established sport = :4420 | grep -q .; }; until_true 40 connected",
    )?;
    thread::sleep(Duration::from_secs(1));
    bench.signal(Signal::SIGSTOP)?;
    guest.sh_within(
        SOON,
        &format!("expired() {{ dmesg | tail -n 20 | grep -q '{EXPIRED}'; }}; until_true 50 expired"),
    )?;
    bench.signal(Signal::SIGCONT)?;
    let output = bench.wait(SOON)?;
    let said = check_refusal(&output, 1)?;
    ensure!(said.contains("lost"), "homi bench says: {said}");
    let device = open_again(&uri)?;
    verified(&device, |_| ()).map(drop)
}

fn paused(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    let uri = namespace_uri(guest.forward(4420)?, 1)?;
    // Commands time out.
    let timeout = Duration::from_secs(3);
    let device = patient()
        .command_timeout(timeout)
        .keep_alive(Duration::ZERO)
        .build()?
        .open(&uri)?;
    let churn = Churn::fresh(&device)?;
    churn.go_on(50)?;
    // Shorter than the timeout: nothing but a delay.
    guest.pause()?;
    thread::sleep(Duration::from_secs(1));
    guest.resume()?;
    churn.go_on(50)?;
    guest.pause()?;
    let start = Instant::now();
    let outcome = churn.until_lost(timeout * 5);
    let took = start.elapsed();
    guest.resume()?;
    let report = outcome?;
    let (reason, undelivered) = report.lost.ok_or_else(|| Failure::new("not lost"))?;
    // The Abort goes through the admin queue, which is as dead: whichever notices first ends both.
    let in_time = match &reason {
        LostReason::Timeout(after) => *after == timeout,
        LostReason::Association(why) => why.contains("not answered within 3s"),
        _ => false,
    };
    ensure!(
        in_time && undelivered == usize::from(DEPTH) && report.aborts > 0,
        "a stopped target: {reason}, {undelivered} of {DEPTH} commands handed back, {} aborted",
        report.aborts
    );
    ensure!(
        took >= 2 * timeout - timeout / 4,
        "the queue was given up after {took:?}, before an Abort had its time"
    );
    drop(device);
    let device = open_again(&uri)?;
    let units = verify(&device, report.units)?;
    drop(device);

    // Keep alive is not answered.
    let keep_alive = Duration::from_secs(2);
    let device = patient().keep_alive(keep_alive).build()?.open(&uri)?;
    let churn = Churn::start(&device, units)?;
    churn.go_on(50)?;
    guest.pause()?;
    let outcome = churn.until_lost(keep_alive * 5);
    let place = uri.to_string();
    let start = Instant::now();
    let program = lab.homi(&["read", &place, "--connect-timeout", "2s"])?;
    let took = start.elapsed();
    guest.resume()?;
    let report = outcome?;
    ensure!(
        matches!(&report.lost, Some((LostReason::Association(why), count)) if why.contains("keep alive") && *count > 0),
        "a target that does not answer keep alive: {:?}",
        report.lost
    );
    let said = check_refusal(&program, 1)?;
    ensure!(
        said.contains("2s") && took < Duration::from_secs(20),
        "connecting to a stopped target says after {took:?}: {said}"
    );
    drop(device);
    let device = open_again(&uri)?;
    verify(&device, report.units).map(drop)
}

fn killed(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let disk = serve(guest)?;
    let uri = namespace_uri(guest.forward(4420)?, 1)?;
    let device = patient().build()?.open(&uri)?;
    let churn = Churn::fresh(&device)?;
    let bench = endless_bench(lab, &uri)?;
    churn.go_on(100)?;
    wait_for_bench(guest, &disk)?;
    guest.kill();
    let start = Instant::now();
    let report = churn.until_lost(SOON)?;
    ensure!(
        matches!(&report.lost, Some((_, count)) if *count > 0),
        "a killed target: {:?}",
        report.lost
    );
    check_refusal(&bench.wait(SOON)?, 1)?;
    drop(device);
    let refused = patient().build()?.open(&uri);
    ensure!(
        matches!(refused, Err(Error::Refused { .. })),
        "nobody is there and connecting says {refused:?}"
    );
    ensure!(start.elapsed() < SOON, "all of it takes {:?}", start.elapsed());
    Ok(())
}
