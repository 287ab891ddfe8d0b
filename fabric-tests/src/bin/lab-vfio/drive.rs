//! Checks of the driver over real PCI functions.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::Failure;
use homi_nvme::{
    Controller, Interrupts, IoQueue, Namespace, Options, Placement, QueueOptions, State, SystemClock,
};
use homi_pci::{PciAddress, PciFunction};
use homi_queue::Region;
use homi_spec::manage::ResourceType;
use homi_vfio::{Container, VfToken, VfioFunction, Way};

use crate::work::{self, Outcomes, Place, verify};

/// Memory for transfers in flight.
const MEMORY: usize = 1 << 20;
/// How much of a namespace is worked on.
const SPAN: u64 = 8 << 20;

fn controller(function: VfioFunction) -> Result<Controller, Failure> {
    let options = Options::new().queues(4).vectors(5);
    Ok(Controller::open(
        Arc::new(function),
        Arc::new(SystemClock::new()),
        options,
    )?)
}

fn first(controller: &Controller) -> Result<Namespace, Failure> {
    controller
        .namespaces()
        .first()
        .cloned()
        .ok_or_else(|| Failure::new("the drive has no namespace"))
}

fn queue(controller: &Controller, depth: u16, interrupts: bool) -> Result<IoQueue, Failure> {
    let interrupts = if interrupts {
        Interrupts::On
    } else {
        Interrupts::Off
    };
    Ok(controller.open_queue(QueueOptions::new(depth).interrupts(interrupts))?)
}

/// Verified I/O on all namespaces, by polling and by interrupts, from one queue and from several threads at once.
pub(crate) fn io(way: Way, address: PciAddress, in_buffer: bool) -> Result<(), Failure> {
    let container = Container::new(way);
    let controller = controller(container.open(address)?)?;
    let _watch = controller.watch()?;
    let info = controller.info()?;
    println!(
        "controller: {}, {} queues, {} vectors",
        info.version(),
        info.queues(),
        info.vectors()
    );
    if in_buffer {
        let cmb = controller.cmb()?;
        println!("buffer: {} bytes", cmb.memory().len());
    }
    for namespace in controller.namespaces().iter() {
        for interrupts in [false, true] {
            let placement = if in_buffer {
                Placement::ControllerMemory
            } else {
                Placement::Host
            };
            let kind = if interrupts {
                Interrupts::On
            } else {
                Interrupts::Off
            };
            let mut queue =
                controller.open_queue(QueueOptions::new(16).interrupts(kind).placement(placement))?;
            let memory = Region::allocate(MEMORY, 4096)?;
            let outcomes = verify(
                &mut queue,
                Place::of(namespace, 0, SPAN),
                &memory,
                u64::from(namespace.nsid()) << 8 | u64::from(interrupts),
            )?;
            let counters = queue.counters();
            ensure!(
                counters.interrupts > 0 || !interrupts,
                "no interrupt was taken: {counters:?}"
            );
            ensure!(counters.bounced == 0, "data was copied: {counters:?}");
            println!(
                "verified: namespace {} of {} blocks of {} bytes, {} commands, interrupts {interrupts}, {counters:?}",
                namespace.nsid(),
                namespace.blocks(),
                namespace.block_size(),
                outcomes.succeeded
            );
        }
    }
    let namespace = first(&controller)?;
    let sum = thread::scope(|scope| -> Result<u64, Failure> {
        let threads: Vec<_> = (0..3_u64)
            .map(|index| {
                let (controller, namespace) = (&controller, &namespace);
                scope.spawn(move || -> Result<u64, Failure> {
                    let mut queue = queue(controller, 8, index > 0)?;
                    let memory = Region::allocate(MEMORY, 4096)?;
                    let place = Place::of(namespace, index * (4 << 20), 4 << 20);
                    Ok(verify(&mut queue, place, &memory, 77 + index)?.succeeded)
                })
            })
            .collect();
        let mut sum = 0;
        for thread in threads {
            sum += thread.join().map_err(|_| Failure::new("a thread panics"))??;
        }
        Ok(sum)
    })?;
    println!("threads: {sum} commands of 3 queues at once");
    let space = controller.function().dma().clone();
    controller.shutdown();
    drop(controller);
    println!("space: {:?}", space.usage());
    ensure!(
        space.usage().stuck == 0,
        "mappings are stuck: {:?}",
        space.usage()
    );
    Ok(())
}

/// A drive's reads land in the memory buffer of another, and the other writes them to its blocks: no byte is in memory of this machine.
pub(crate) fn copy(way: Way, from: PciAddress, to: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let (a, b) = (
        controller(container.open(from)?)?,
        controller(container.open(to)?)?,
    );
    let _watches = (a.watch()?, b.watch()?);
    let (source, sink) = (first(&a)?, first(&b)?);
    let (mut reads, mut writes) = (queue(&a, 8, true)?, queue(&b, 8, true)?);
    let seed = 4711;
    let host = Region::allocate(MEMORY, 4096)?;
    let place = Place::of(&source, 0, SPAN);
    verify(&mut reads, place, &host, seed)?;
    // Both queues have their lists then, which are in memory of this machine.
    verify(&mut writes, Place::of(&sink, 0, SPAN), &host, !seed)?;

    let cmb = b.cmb()?;
    let buffer = cmb.allocate(MEMORY)?;
    let memory = buffer.region().clone();
    memory.fill(0, memory.len(), 0)?;
    // The whole buffer is mapped for the reading drive; for its own drive it is at its own address.
    let mapped = match a.map(cmb.memory()) {
        Ok(mapped) => mapped,
        Err(error) => {
            println!("copy: {error}");
            return Ok(());
        }
    };
    let space = a.function().dma().clone();
    let before = (space.usage(), reads.counters(), writes.counters());
    let target = Place::of(&sink, 0, place.len);
    let (mut out, mut back) = (Outcomes::default(), Outcomes::default());
    // As much as the buffer holds at a time.
    let step = MEMORY as u64;
    for start in (0..place.len).step_by(MEMORY) {
        let len = step.min(place.len - start);
        for (queue, place, write, outcomes) in [
            (&mut reads, Place { start, len, ..place }, false, &mut out),
            (&mut writes, Place { start, len, ..target }, true, &mut back),
        ] {
            let lost = move_all(queue, place, write, &memory, outcomes)?;
            ensure!(lost.is_none(), "a queue was lost: {lost:?}");
        }
        let mut seen = vec![0; 4096];
        let mut expected = vec![0; 4096];
        memory.read(0, &mut seen)?;
        work::pattern(seed, start, &mut expected);
        ensure!(
            seen == expected,
            "the buffer does not hold what was read at {start}"
        );
    }
    let after = (space.usage(), reads.counters(), writes.counters());
    ensure!(
        before.0 == after.0,
        "memory was mapped meanwhile: {:?} became {:?}",
        before.0,
        after.0
    );
    for (before, after) in [(before.1, after.1), (before.2, after.2)] {
        ensure!(
            before.bounced == after.bounced && before.mapped == after.mapped,
            "memory of this machine was used: {before:?} became {after:?}"
        );
    }
    drop(mapped);
    println!(
        "copied: {} reads, {} writes, {} bytes",
        out.succeeded, back.succeeded, place.len
    );

    // What the other drive has now, by way of memory.
    host.fill(0, host.len(), 0)?;
    let (mut expected, mut seen) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut outcomes = Outcomes::default();
    let lost = work::pass(
        &mut writes,
        target,
        false,
        &host,
        &mut outcomes,
        |offset, len, at| {
            let (Some(expected), Some(seen)) = (expected.get_mut(..len), seen.get_mut(..len)) else {
                return Err(Failure::new("a transfer is too long"));
            };
            work::pattern(seed, offset, expected);
            host.read(at, seen)?;
            ensure!(
                seen == expected,
                "{len} bytes at {offset} differ on the other drive"
            );
            Ok(())
        },
    )?;
    ensure!(lost.is_none(), "a queue was lost: {lost:?}");
    println!("compared: {} reads", outcomes.succeeded);
    Ok(())
}

/// What is on one drive goes to the other through memory of this machine.
pub(crate) fn clone(way: Way, from: PciAddress, to: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let (a, b) = (
        controller(container.open(from)?)?,
        controller(container.open(to)?)?,
    );
    let _watches = (a.watch()?, b.watch()?);
    let (mut reads, mut writes) = (queue(&a, 16, true)?, queue(&b, 16, false)?);
    let (source, sink) = (first(&a)?, first(&b)?);
    // One mapping serves both drives.
    let host = Region::allocate(MEMORY, 4096)?;
    let mapped = a.map(&host)?;
    let _adopted = b.adopt(mapped.mapping().clone())?;
    let mut outcomes = Outcomes::default();
    let mut moved = 0;
    for start in (0..SPAN).step_by(MEMORY) {
        let len = MEMORY as u64;
        for (queue, namespace, write) in [(&mut reads, &source, false), (&mut writes, &sink, true)] {
            let lost = move_all(
                queue,
                Place::of(namespace, start, len),
                write,
                &host,
                &mut outcomes,
            )?;
            ensure!(lost.is_none(), "a queue was lost: {lost:?}");
        }
        moved += len;
    }
    let mapped = (reads.counters().mapped, writes.counters().mapped);
    ensure!(mapped == (0, 0), "memory was mapped twice: {mapped:?}");
    println!("cloned: {moved} bytes by {} commands", outcomes.succeeded);
    Ok(())
}

/// Moves a place through memory whose byte *n* belongs to the place's byte *n*.
fn move_all(
    queue: &mut IoQueue,
    place: Place,
    write: bool,
    memory: &Region,
    outcomes: &mut Outcomes,
) -> Result<Option<homi_queue::QueueLost>, Failure> {
    // Transfers are laid out in the memory in their order, from its start: a place that fits is there as it is.
    work::pass(queue, place, write, memory, outcomes, |_, _, _| Ok(()))
}

/// Reads and writes until the drive goes (`removal`) or the time is up, with resets every so often. Each command has one outcome.
pub(crate) fn churn(way: Way, address: PciAddress, seconds: u64, resets: bool) -> Result<(), Failure> {
    let container = Container::new(way);
    let controller = controller(container.open(address)?)?;
    let _watch = controller.watch()?;
    let namespace = first(&controller)?;
    let memory = Region::allocate(MEMORY, 4096)?;
    let _mapped = controller.map(&memory)?;
    let start = Instant::now();
    let mut all = Outcomes::default();
    let (mut losses, mut last) = (0, String::new());
    let resetter = controller.clone();
    let outcome = thread::scope(|scope| -> Result<(), Failure> {
        let resetting = scope.spawn(move || {
            let mut done = 0_u32;
            while resets && start.elapsed() < Duration::from_secs(seconds) {
                thread::sleep(Duration::from_millis(700));
                if resetter.reset().is_err() {
                    break;
                }
                done += 1;
            }
            done
        });
        println!("working");
        'queues: while start.elapsed() < Duration::from_secs(seconds) {
            let mut queue = match queue(&controller, 16, losses % 2 == 0) {
                Ok(queue) => queue,
                Err(failure) => {
                    if controller.state() == State::Removed {
                        break;
                    }
                    last = failure.to_string();
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            while start.elapsed() < Duration::from_secs(seconds) {
                for write in [true, false] {
                    let place = Place::of(&namespace, 0, SPAN / 4);
                    let lost = work::pass(&mut queue, place, write, &memory, &mut all, |_, _, _| Ok(()))?;
                    if let Some(lost) = lost {
                        losses += 1;
                        last = lost.reason().to_string();
                        continue 'queues;
                    }
                }
            }
        }
        let resets = resetting.join().map_err(|_| Failure::new("a thread panics"))?;
        println!("resets: {resets}");
        Ok(())
    });
    outcome?;
    ensure!(
        all.submitted == all.succeeded + all.failed + all.undelivered && all.failed == 0,
        "outcomes do not add up: {all:?}"
    );
    println!("outcomes: {all:?}, {losses} losses, the last: {last}");
    println!("state: {:?}", controller.state());
    if controller.state() == State::Ready {
        let mut queue = queue(&controller, 16, true)?;
        let outcomes = verify(&mut queue, Place::of(&namespace, 0, SPAN), &memory, 9)?;
        println!("verified: {} commands afterwards", outcomes.succeeded);
    }
    Ok(())
}

/// Makes two virtual functions of a drive, gives each queues and interrupts, drives both at once, and takes them away again.
pub(crate) fn functions(way: Way, address: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let function = container.open(address)?;
    let token = VfToken(*b"lab of the drive");
    function.set_vf_token(token)?;
    let primary = controller(function)?;
    let _watch = primary.watch()?;
    let folder = format!("/sys/bus/pci/devices/{address}");
    fs::write(format!("{folder}/sriov_numvfs"), "2")?;
    let made = Made(folder.clone());
    let resources = primary.primary_capabilities()?;
    println!("primary: {resources:?}");
    let mut addresses = Vec::new();
    for secondary in primary.secondary_controllers()?.iter().take(2) {
        let id = secondary.scid.get();
        // One of each for the admin queue, one for I/O.
        for resource in [ResourceType::QUEUES, ResourceType::INTERRUPTS] {
            let got = primary.assign_resources(id, resource, 2)?;
            ensure!(got == 2, "{got} of 2 {resource:?} were assigned to {id}");
        }
        primary.bring_online(id)?;
        let link = fs::read_link(format!("{folder}/virtfn{}", secondary.vfn.get() - 1))?;
        let name = link
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        addresses.push((id, name.parse::<PciAddress>()?));
    }
    println!("online: {addresses:?}");
    let mut opened = Vec::new();
    for (_, address) in &addresses {
        let strange = container.open(*address);
        ensure!(strange.is_err(), "a virtual function is had without the token");
        println!(
            "without the token: {}",
            strange.err().map(|error| error.to_string()).unwrap_or_default()
        );
        let function = container.open_with_token(*address, Some(token))?;
        let options = Options::new().queues(1).vectors(2);
        opened.push(Controller::open(
            Arc::new(function) as Arc<dyn PciFunction>,
            Arc::new(SystemClock::new()),
            options,
        )?);
    }
    thread::scope(|scope| -> Result<(), Failure> {
        let threads: Vec<_> = opened
            .iter()
            .zip(0_u64..)
            .map(|(controller, index)| {
                scope.spawn(move || -> Result<(Outcomes, u64), Failure> {
                    let namespace = first(controller)?;
                    let mut queue = queue(controller, 16, true)?;
                    let memory = Region::allocate(MEMORY, 4096)?;
                    let place = Place::of(&namespace, index * SPAN, SPAN);
                    let outcomes = verify(&mut queue, place, &memory, 100 + index)?;
                    Ok((outcomes, queue.counters().interrupts))
                })
            })
            .collect();
        for thread in threads {
            let (outcomes, interrupts) = thread.join().map_err(|_| Failure::new("a thread panics"))??;
            println!(
                "function: {} commands, {interrupts} interrupts",
                outcomes.succeeded
            );
        }
        Ok(())
    })?;
    // The primary goes on beside them, and what they wrote is on the drive.
    let namespace = first(&primary)?;
    let mut own = queue(&primary, 8, true)?;
    let host = Region::allocate(MEMORY, 4096)?;
    for index in 0..2_u64 {
        let mut expected = vec![0; 256 << 10];
        let mut seen = vec![0; 256 << 10];
        let mut outcomes = Outcomes::default();
        let place = Place::of(&namespace, index * SPAN, SPAN);
        let lost = work::pass(&mut own, place, false, &host, &mut outcomes, |offset, len, at| {
            let (Some(expected), Some(seen)) = (expected.get_mut(..len), seen.get_mut(..len)) else {
                return Err(Failure::new("a transfer is too long"));
            };
            work::pattern(100 + index, offset, expected);
            host.read(at, seen)?;
            ensure!(
                seen == expected,
                "what function {index} wrote at {offset} is not on the drive"
            );
            Ok(())
        })?;
        ensure!(lost.is_none(), "the primary's queue was lost: {lost:?}");
    }
    println!("primary: sees what both wrote");
    drop(opened);
    for (id, _) in &addresses {
        primary.take_offline(*id)?;
        for resource in [ResourceType::QUEUES, ResourceType::INTERRUPTS] {
            primary.assign_resources(*id, resource, 0)?;
        }
    }
    drop(made);
    println!(
        "returned: {}",
        fs::read_to_string(format!("{folder}/sriov_numvfs"))?.trim()
    );
    Ok(())
}

/// Virtual functions that go when this is dropped.
struct Made(String);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = fs::write(format!("{}/sriov_numvfs", self.0), "0") {
            eprintln!("lab-vfio: virtual functions stay: {error}");
        }
    }
}
