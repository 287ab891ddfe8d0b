//! Our initiator against Linux's target (nvmet): it is found, connected to, and reads back what was written, whatever the size, the way in
//! which data goes, the digests, the number of queues and their depth.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Peer, Requirement, Test, Vm};
use fabric_tests::meddler::{Act, Side};
use fabric_tests::random::{Random, contents};
use fabric_tests::relay::Relay;
use homi_initiator::bench::{Hooks, Limit, Outcome, Range, Workload};
use homi_initiator::{
    AnyQueue, Blocking, Buffer, Command, Data, Device, Disk, Error, Initiator, InitiatorBuilder, LostReason,
    QueueOptions, Region, Uri, UriError,
};
use homi_spec::Status;

/// The subsystem that these tests serve.
pub const NQN: &str = "nqn.2026-01.org.example:linux";

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discover_write_read",
        feature: "discover, connect, read and write",
        run: discover_write_read,
        ..TEST
    },
    Test {
        name: "sizes_in_capsules_and_by_r2t",
        feature: "in-capsule and R2T writes, one block to 6 MiB, blocks of 512 B and 4 KiB",
        limit: Duration::from_secs(180),
        run: sizes,
        ..TEST
    },
    Test {
        name: "a_largest_transfer_is_kept_to",
        kernels: Kernels::Newest,
        feature: "MDTS",
        run: largest_transfer,
        ..TEST
    },
    Test {
        name: "digests",
        feature: "header and data digests, also wrong ones",
        limit: Duration::from_secs(180),
        run: digests,
        ..TEST
    },
    Test {
        name: "queues_and_depths",
        kernels: Kernels::Default,
        feature: "several queues, depth 1 to 128",
        limit: Duration::from_secs(240),
        run: queues_and_depths,
        ..TEST
    },
    Test {
        name: "flush_zeroes_discard_compare",
        feature: "flush, FUA, write zeroes, discard",
        run: other_commands,
        ..TEST
    },
];

/// What the tests of Linux's target have in common.
pub const TEST: Test = Test {
    needs: &[Requirement::LinuxTarget],
    peer: Peer::LinuxTarget,
    limit: Duration::from_secs(120),
    ..Test::DEFAULT
};

/// Options for guests that are slow.
pub fn patient() -> InitiatorBuilder {
    Initiator::builder()
        .connect_timeout(Duration::from_secs(30))
        .command_timeout(Duration::from_secs(60))
        .keep_alive(Duration::from_secs(30))
}

/// A namespace of [`NQN`] at an address.
///
/// # Errors
/// Never: the parts are constants.
pub fn namespace_uri(address: SocketAddr, nsid: u32) -> Result<Uri, UriError> {
    format!("nvme+tcp://{address}/{NQN}?nsid={nsid}").parse()
}

/// Stamped writes and checked reads by the engine of `homi bench`; every block written is read back in the end.
///
/// # Errors
/// Anything but success, and blocks that were not checked.
pub fn verified(device: &Device, change: impl FnOnce(&mut Workload)) -> Result<Outcome, Failure> {
    let mut workload = Workload::new(Range {
        nsid: device.nsid(),
        block_size: device.block_size(),
        first: 0,
        blocks: device.blocks(),
    });
    workload.verify = true;
    workload.read_percent = 40;
    workload.limit = Limit::Ios(500);
    workload.interval = None;
    change(&mut workload);
    let depth = workload.depth;
    let outcome = homi_initiator::bench::run(
        &workload,
        |_| device.queue(QueueOptions::depth(depth)),
        Hooks::default(),
    )?;
    let written = outcome.writes.ios;
    ensure!(
        written > 0 && outcome.blocks_verified > 0,
        "nothing was verified: {written} writes, {} blocks checked",
        outcome.blocks_verified
    );
    if let Limit::Ios(ios) = workload.limit {
        ensure!(outcome.ios() == ios, "{} I/Os instead of {ios}", outcome.ios());
    }
    Ok(outcome)
}

/// Compares a disk in a guest with bytes, past the guest's cache.
///
/// # Errors
/// They differ.
pub fn compare_disk(lab: &Lab, guest: &Vm, disk: &str, name: &str, expected: &[u8]) -> Result<(), Failure> {
    let file = lab.scratch().join(name);
    std::fs::write(&file, expected)?;
    guest
        .sh(&format!(
            "dd if={disk} bs=1M count={} iflag=direct,count_bytes status=none | cmp - {}",
            expected.len(),
            file.display()
        ))
        .map(drop)
        .map_err(|failure| failure.while_doing("what Linux has on its disk is not what was written"))
}

fn discover_write_read(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "disk=$(ram_disk 64)
         nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $disk
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let address = guest.forward(4420)?;
    let initiator = patient().build()?;
    let records = initiator.discover(&format!("nvme+tcp://{address}").parse::<Uri>()?)?;
    ensure!(
        records.iter().any(|record| record.subsystem.to_string() == NQN),
        "the discovery log does not have {NQN}: {records:?}"
    );
    let mut disk = Disk::open(&initiator, &namespace_uri(address, 1)?)?;
    ensure!(
        disk.len() == 64 << 20,
        "the namespace has {} bytes instead of 64 MiB",
        disk.len()
    );
    // Sizes on both sides of what goes in one capsule and of one transfer.
    for (seed, len) in [512, 4096, 8192, 128 << 10, 1 << 20, 3 << 20]
        .into_iter()
        .enumerate()
    {
        let offset = 8 << 20;
        let bytes = contents(u64::try_from(seed)?, len);
        disk.write_at(offset, &bytes)?;
        let mut back = vec![0; len];
        disk.read_at(offset, &mut back)?;
        ensure!(back == bytes, "{len} bytes come back changed");
    }
    disk.flush()?;
    // What Linux has on its disk is what was sent.
    let mut expected = vec![0; 8 << 20];
    expected.extend(contents(5, 3 << 20));
    compare_disk(lab, guest, "/dev/ram0", "expected", &expected)
}

// --- what goes over the connection ----------------------------------------------------------------------------------------------------

/// Types of protocol data units.
const CAPSULE_COMMAND: u8 = 0x04;
const DATA_TO_TARGET: u8 = 0x06;
const DATA_TO_HOST: u8 = 0x07;
const READY_TO_TRANSFER: u8 = 0x09;
/// Their flags.
const HEADER_DIGEST: u8 = 1;
const DATA_DIGEST: u8 = 2;

/// Units seen on the way, by type: how many, and how many without a header digest and data without a data digest.
#[derive(Debug, Clone, Default)]
struct Seen {
    units: BTreeMap<u8, u64>,
    capsules_with_data: u64,
    largest_data_to_target: usize,
    headers_without_digest: u64,
    data_without_digest: u64,
    damaged: u64,
}

impl Seen {
    fn count(&self, kind: u8) -> u64 {
        self.units.get(&kind).copied().unwrap_or(0)
    }

    /// The unit's type, and where its data begins if it has some.
    fn look(&mut self, unit: &[u8]) -> Option<(u8, Option<usize>)> {
        let &[kind, flags, header, offset, ..] = unit else {
            return None;
        };
        *self.units.entry(kind).or_default() += 1;
        // Initialisation has no digests.
        if kind < CAPSULE_COMMAND {
            return Some((kind, None));
        }
        let digest = if flags & HEADER_DIGEST == 0 { 0 } else { 4 };
        let data = unit.len() > usize::from(header) + digest;
        self.headers_without_digest += u64::from(digest == 0);
        self.data_without_digest += u64::from(data && flags & DATA_DIGEST == 0);
        self.capsules_with_data += u64::from(data && kind == CAPSULE_COMMAND);
        if kind == DATA_TO_TARGET {
            self.largest_data_to_target = self.largest_data_to_target.max(unit.len());
        }
        Some((kind, data.then_some(usize::from(offset))))
    }
}

/// Stands between initiator and target and looks at every unit; damages data of one type of unit when it is told to.
struct Tap {
    relay: Relay,
    shared: Arc<Mutex<(Seen, Option<u8>)>>,
}

impl Tap {
    fn start(target: SocketAddr) -> Self {
        let shared = Arc::new(Mutex::new((Seen::default(), None)));
        let ours = Arc::clone(&shared);
        let meddlers = Box::new(move |_| {
            let ours = Arc::clone(&ours);
            let meddler: fabric_tests::meddler::Meddler = Box::new(move |side: Side, unit: &[u8]| {
                let mut guard = ours.lock().unwrap_or_else(PoisonError::into_inner);
                let (seen, damage) = &mut *guard;
                if let Some((kind, Some(data))) = seen.look(unit)
                    && *damage == Some(kind)
                    && let Some(byte) = unit.get(data)
                {
                    let mut unit = unit.to_vec();
                    let changed = *byte ^ 0x40;
                    if let Some(byte) = unit.get_mut(data) {
                        *byte = changed;
                    }
                    *damage = None;
                    seen.damaged += 1;
                    return vec![match side {
                        Side::Host => Act::ToTarget(unit),
                        Side::Target => Act::ToHost(unit),
                    }];
                }
                vec![Act::Forward]
            });
            Some(meddler)
        });
        Self {
            relay: Relay::start(target, meddlers),
            shared,
        }
    }

    fn address(&self) -> SocketAddr {
        self.relay.address()
    }

    /// What was seen since the last call.
    fn take(&self) -> Seen {
        std::mem::take(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Changes one bit of the data of the next unit of this type.
    fn damage(&self, kind: u8) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(kind);
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// What Linux takes at once, in bytes.
const LINUX_LARGEST: usize = 4 << 20;
/// Bytes of each disk of [`sizes`].
const SMALL_DISK: usize = 16 << 20;

fn sizes(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 16 512)
         nvmet_namespace {NQN} 2 $(null_disk 16 4096)
         for port in 1 2 3; do nvmet_port $port tcp 0.0.0.0 442$port; done
         echo 1024 >$NVMET/ports/2/param_inline_data_size
         echo 8192 >$NVMET/ports/3/param_inline_data_size
         for port in 1 2 3; do nvmet_offer $port {NQN}; done"
    ))?;
    let initiator = patient().build()?;
    let mut models = [vec![0; SMALL_DISK], vec![0; SMALL_DISK]];
    let mut random = Random::new(11);
    // Linux accepts fewer than the 1024 bytes of Connect's own data and then refuses every Connect, its own host's too.
    for (service, in_capsule) in [(4421, 16384), (4422, 1024), (4423, 8192)] {
        let tap = Tap::start(guest.forward(service)?);
        for (nsid, model) in (1..).zip(&mut models) {
            let device = initiator.open(&namespace_uri(tap.address(), nsid)?)?;
            let info = device.controller().map(|controller| controller.info().in_capsule);
            ensure!(
                info == Some(in_capsule),
                "the controller takes {info:?} bytes in a capsule, and the port says {in_capsule}"
            );
            let block = usize::try_from(device.block_size())?;
            let expected = if nsid == 1 { 512 } else { 4096 };
            ensure!(block == expected, "blocks of {block} bytes instead of {expected}");
            let mut queue = Blocking::open(&device)?;
            tap.take();
            // Whole commands, the largest of which is more than one H2CData may carry; once is enough for those that take long.
            let lengths: Vec<usize> = [
                block,
                2 * block,
                8192,
                8192 + block,
                16384 - block,
                16384,
                16384 + block,
                65536,
                (128 << 10) + block,
                (1 << 20) - block,
                2 << 20,
                (6 << 20) + block,
            ]
            .into_iter()
            .filter(|len| service == 4421 || *len <= 1 << 20)
            .collect();
            let count = u64::try_from(lengths.len())?;
            let (mut in_capsules, mut refused) = (0, 0);
            for len in lengths {
                let lba = random.below((SMALL_DISK - len) / block + 1);
                let bytes = contents(random.next_number(), len);
                let (at, lba) = (lba * block, u64::try_from(lba)?);
                match queue.write(lba, Buffer::from_vec(bytes.clone())) {
                    Ok(_) => {}
                    // Later kernels say that they have no limit and have this one.
                    Err(Error::Command { status, .. })
                        if len > LINUX_LARGEST && status.is(Status::SGL_DATA_LENGTH_INVALID) =>
                    {
                        refused += 1;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
                model
                    .get_mut(at..at + len)
                    .ok_or_else(|| Failure::new("a write outside of the disk"))?
                    .copy_from_slice(&bytes);
                let back = queue.read(lba, Buffer::from_vec(vec![0xee; len]))?;
                ensure!(
                    back.into_vec() == bytes,
                    "{len} bytes at block {lba} of namespace {nsid} come back changed, {in_capsule} in a capsule"
                );
                in_capsules += u64::from(len <= usize::try_from(in_capsule)?);
            }
            let seen = tap.take();
            let by_request = count - in_capsules - refused;
            ensure!(
                seen.capsules_with_data == in_capsules && seen.count(READY_TO_TRANSFER) >= by_request,
                "{in_capsules} writes should go in capsules and {by_request} on request: {seen:?}"
            );
            ensure!(
                seen.count(DATA_TO_TARGET) > by_request || refused > 0 || service != 4421,
                "6 MiB went to a target that takes 4 MiB at once in one unit: {seen:?}"
            );
            drop(queue);
            if service == 4421 {
                unaligned(&device, model, &mut random)?;
            }
        }
    }
    for (number, model) in models.iter().enumerate() {
        let disk = guest.sh(&format!(
            "cat $NVMET/subsystems/{NQN}/namespaces/{}/device_path",
            number + 1
        ))?;
        compare_disk(lab, guest, disk.stdout.trim(), &format!("model{number}"), model)?;
    }
    Ok(())
}

/// Reads and writes at any byte, which the disk turns into blocks and transfers.
fn unaligned(device: &Device, model: &mut [u8], random: &mut Random) -> Result<(), Failure> {
    let mut disk = Disk::on(device, 8)?;
    for most in [1, 700, 5000, 70_000, 600_000] {
        let len = random.below(most) + 1;
        let offset = random.below(model.len() - len);
        let bytes = contents(random.next_number(), len);
        let range = offset..offset + len;
        disk.write_at(u64::try_from(offset)?, &bytes)?;
        model
            .get_mut(range)
            .ok_or_else(|| Failure::new("a write outside of the disk"))?
            .copy_from_slice(&bytes);
        // With a margin, in which nothing may have changed.
        let (from, to) = (
            offset.saturating_sub(9000),
            (offset + len + 9000).min(model.len()),
        );
        let mut back = vec![0; to - from];
        disk.read_at(u64::try_from(from)?, &mut back)?;
        ensure!(
            model.get(from..to) == Some(back.as_slice()),
            "{len} bytes at byte {offset} and what is around them come back changed"
        );
    }
    Ok(())
}

fn largest_transfer(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let said = guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 16 512)
         nvmet_port 1 tcp 0.0.0.0 4420
         if [ -e $NVMET/ports/1/param_mdts ]; then echo 4 >$NVMET/ports/1/param_mdts; echo limited; fi
         nvmet_offer 1 {NQN}"
    ))?;
    // A kernel that cannot be told has no limit.
    let limit: Option<u32> = (said.stdout.trim() == "limited").then_some(64 << 10);
    let tap = Tap::start(guest.forward(4420)?);
    let uri = namespace_uri(tap.address(), 1)?;
    let device = patient().build()?.open(&uri)?;
    let told = device
        .controller()
        .and_then(|controller| controller.info().max_transfer);
    ensure!(
        told == limit,
        "the largest transfer is {told:?} instead of {limit:?}"
    );
    tap.take();
    let mut model = vec![0; SMALL_DISK];
    let mut random = Random::new(3);
    let mut disk = Disk::on(&device, 4)?;
    for (offset, len) in [
        (0, 65536),
        (511, 65538),
        (65536, 300_000),
        (1 << 20, (2 << 20) + 513),
    ] {
        let bytes = contents(random.next_number(), len);
        disk.write_at(u64::try_from(offset)?, &bytes)?;
        model
            .get_mut(offset..offset + len)
            .ok_or_else(|| Failure::new("a write outside of the disk"))?
            .copy_from_slice(&bytes);
    }
    let mut back = vec![0; 4 << 20];
    disk.read_at(0, &mut back)?;
    ensure!(
        model.get(..back.len()) == Some(back.as_slice()),
        "what was written in parts comes back changed"
    );
    let seen = tap.take();
    if let Some(limit) = limit {
        let parts = u64::from((4 << 20) / limit);
        ensure!(
            seen.largest_data_to_target <= usize::try_from(limit)? + 64 && seen.count(DATA_TO_HOST) >= parts,
            "transfers of more than {limit} bytes: {seen:?}"
        );
        let bench = lab.homi(&[
            "bench",
            &uri.to_string(),
            "--rw",
            "write",
            "--bs",
            "128k",
            "--ios",
            "4",
            "-q",
        ])?;
        let sentence = fabric_tests::lab::check_refusal(&bench, 2)?;
        ensure!(
            sentence.contains("65536"),
            "the limit is not in the sentence: {sentence}"
        );
    }
    Ok(())
}

fn digests(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 16 512)
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    for (header, data) in [(true, true), (true, false), (false, true), (false, false)] {
        let tap = Tap::start(guest.forward(4420)?);
        let initiator = patient().header_digest(header).data_digest(data).build()?;
        let device = initiator.open(&namespace_uri(tap.address(), 1)?)?;
        // 4 KiB goes in capsules, 32 KiB on request.
        for blocks in [8, 64] {
            verified(&device, |workload| {
                workload.blocks_per_io = blocks;
                workload.depth = 8;
                workload.jobs = 2;
                workload.limit = Limit::Ios(80);
            })?;
        }
        let seen = tap.take();
        ensure!(
            (seen.headers_without_digest == 0) == header && (seen.data_without_digest == 0) == data,
            "header digests {header}, data digests {data}: {seen:?}"
        );
        ensure!(
            seen.count(DATA_TO_TARGET) > 0 && seen.count(DATA_TO_HOST) > 0 && seen.capsules_with_data > 0,
            "not every way was taken: {seen:?}"
        );
        if data {
            damaged_read(&device, &tap)?;
            damaged_write(&device, &tap)?;
        }
    }
    Ok(())
}

/// A read whose data was changed on the way fails, and the next one does not.
fn damaged_read(device: &Device, tap: &Tap) -> Result<(), Failure> {
    let mut queue = Blocking::open(device)?;
    let bytes = contents(77, 16384);
    queue.write(64, Buffer::from_vec(bytes.clone()))?;
    tap.damage(DATA_TO_HOST);
    let read = queue.read(64, Buffer::from_vec(vec![0; 16384]));
    ensure!(tap.take().damaged == 1, "nothing was damaged");
    match read {
        Err(Error::Command { status, .. }) if status.is(Status::TRANSIENT_TRANSPORT_ERROR) => {}
        Err(error) => return Err(Failure::new(format!("a damaged read says: {error}"))),
        Ok(_) => return Err(Failure::new("a damaged read succeeds")),
    }
    let again = queue.read(64, Buffer::from_vec(vec![0; 16384]))?;
    ensure!(again.into_vec() == bytes, "the read after a damaged one is wrong");
    Ok(())
}

/// A write whose data was changed on the way is not executed, and the queue is lost with the command.
fn damaged_write(device: &Device, tap: &Tap) -> Result<(), Failure> {
    let mut queue = Blocking::open(device)?;
    let before = contents(78, 65536);
    queue.write(128, Buffer::from_vec(before.clone()))?;
    tap.damage(DATA_TO_TARGET);
    let data = Data::whole(Region::from_vec(contents(79, 65536)));
    let outcome = queue.execute(Command::write(device.nsid(), 128, 128), data);
    ensure!(tap.take().damaged == 1, "nothing was damaged");
    match outcome {
        // Linux ends the connection; whether its end comes before the reset that follows is chance.
        Err(lost) => {
            ensure!(
                matches!(
                    lost.reason(),
                    LostReason::Closed
                        | LostReason::Io(_)
                        | LostReason::Terminated(_)
                        | LostReason::Association(_)
                ) && lost.undelivered().len() == 1,
                "a damaged write ends with {lost}"
            );
        }
        Ok((completion, _)) => ensure!(!completion.is_success(), "a damaged write succeeds"),
    }
    drop(queue);
    // Linux takes the whole association down.
    let uri = device.uri().clone();
    let device = patient().build()?.open(&uri)?;
    let mut queue = Blocking::open(&device)?;
    let now = queue.read(128, Buffer::from_vec(vec![0; 65536]))?;
    ensure!(now.into_vec() == before, "a damaged write has changed blocks");
    Ok(())
}

fn queues_and_depths(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 32 512)
         nvmet_namespace {NQN} 2 $(null_disk 32 4096)
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}
         nvmet_port 2 tcp 0.0.0.0 4421
         echo 64 >$NVMET/ports/2/param_max_queue_size
         nvmet_offer 2 {NQN}"
    ))?;
    let address = guest.forward(4420)?;
    let initiator = patient().build()?;
    let mut seed = 0;
    for nsid in [1, 2] {
        let device = initiator.open(&namespace_uri(address, nsid)?)?;
        let per_4k = 4096 / device.block_size();
        for (jobs, depth, blocks, ios) in [
            (1, 1, 1, 60),
            (2, 8, per_4k, 400),
            (4, 32, 2 * per_4k, 400),
            (8, 128, per_4k, 600),
            (2, 128, 5 * per_4k, 400),
            (3, 16, 32 * per_4k, 150),
        ] {
            seed += 1;
            let outcome = verified(&device, |workload| {
                workload.jobs = jobs;
                workload.depth = depth;
                workload.blocks_per_io = blocks;
                workload.limit = Limit::Ios(ios);
                workload.batch = (depth / 8).max(1);
                workload.seed = seed;
            })
            .map_err(|failure| {
                failure.while_doing(format!("{jobs} queues of depth {depth} with {blocks} blocks"))
            })?;
            ensure!(
                outcome.depth == depth,
                "a queue of depth {} where {depth} was asked for",
                outcome.depth
            );
            let aborts = outcome.counters.map(|counters| counters.aborts);
            ensure!(aborts == Some(0), "{aborts:?} commands were aborted");
        }
    }
    // Of the entries that a port gives, one stays free.
    let device = initiator.open(&namespace_uri(guest.forward(4421)?, 1)?)?;
    let outcome = verified(&device, |workload| workload.depth = 128)?;
    ensure!(
        outcome.depth == 63,
        "a queue of depth {} where the port gives 64 entries",
        outcome.depth
    );
    Ok(())
}

fn other_commands(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 16 512)
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let device = patient()
        .build()?
        .open(&namespace_uri(guest.forward(4420)?, 1)?)?;
    let info = device
        .controller()
        .map(|controller| controller.info().clone())
        .ok_or_else(|| Failure::new("the device has no controller"))?;
    ensure!(
        info.write_zeroes && info.deallocate && !info.verify,
        "Linux has write zeroes and discard, and no verify: {info:?}"
    );
    let mut queue = Blocking::open(&device)?;
    let mut model = contents(1, 1 << 20);
    queue.write(0, Buffer::from_vec(model.clone()))?;
    queue.flush()?;
    let fua = contents(2, 4096);
    let data = Data::whole(Region::from_vec(fua.clone()));
    let (completion, _) = queue.execute(Command::write(1, 16, 8).with_fua(), data)?;
    ensure!(completion.is_success(), "a write with FUA: {}", completion.status);
    splice(&mut model, 16, &fua)?;
    for (lba, blocks, deallocate) in [(0, 1, false), (100, 33, false), (1001, 512, true)] {
        queue.write_zeroes(lba, blocks, deallocate)?;
        splice(&mut model, lba, &vec![0; usize::try_from(blocks)? * 512])?;
    }
    // The kernel's disk forgets what is discarded, in whole sectors of its own page or all of it.
    queue.deallocate(&[(1600, 16), (1800, 64), (1704, 8)])?;
    for (lba, blocks) in [(1600, 16), (1800, 64), (1704, 8)] {
        splice(&mut model, lba, &vec![0; blocks * 512])?;
    }
    queue.flush()?;
    let back = queue
        .read(0, Buffer::from_vec(vec![0xee; model.len()]))?
        .into_vec();
    if let Some(at) = back
        .iter()
        .zip(&model)
        .position(|(found, expected)| found != expected)
    {
        return Err(Failure::new(format!(
            "block {} is not what it should be",
            at / 512
        )));
    }
    compare(&mut queue, info.compare, &model)?;
    // What does not exist is said, and the queue goes on.
    for (command, len, expected) in [
        // Linux leaves ranges to its disks, whose failures have no status of their own.
        (
            Command::read(1, 16 << 11, 1),
            512,
            &[Status::LBA_OUT_OF_RANGE, Status::INTERNAL_ERROR][..],
        ),
        (Command::read(2, 0, 1), 512, &[Status::INVALID_NAMESPACE]),
        (Command::verify(1, 0, 1), 0, &[Status::INVALID_OPCODE]),
    ] {
        let data = if len == 0 {
            Data::None
        } else {
            Data::whole(Region::from_vec(vec![0; len]))
        };
        let (completion, _) = queue.execute(command, data)?;
        ensure!(
            expected.iter().any(|expected| completion.status.is(*expected)),
            "{command:?} ends with \"{}\" instead of {expected:?}",
            completion.status
        );
    }
    queue.flush()?;
    Ok(())
}

/// Compare succeeds and finds a difference where the controller has it; otherwise it is refused.
fn compare(queue: &mut Blocking<AnyQueue>, supported: bool, model: &[u8]) -> Result<(), Failure> {
    let same = model.get(8192..12288).unwrap_or_default().to_vec();
    let equal = queue.compare(16, Buffer::from_vec(same.clone()));
    if supported {
        equal?;
        let mut other = same;
        if let Some(last) = other.last_mut() {
            *last ^= 1;
        }
        let different = queue.compare(16, Buffer::from_vec(other));
        ensure!(
            matches!(different, Err(Error::Miscompare { lba: 16 })),
            "other data compares with {different:?}"
        );
    } else {
        let status = equal.as_ref().err().and_then(Error::status);
        ensure!(
            status.is_some_and(|status| status.is(Status::INVALID_OPCODE)),
            "compare, which Linux does not have, ends with {equal:?}"
        );
    }
    Ok(())
}

/// Puts bytes where blocks of 512 bytes begin.
fn splice(model: &mut [u8], lba: u64, bytes: &[u8]) -> Result<(), Failure> {
    let at = usize::try_from(lba)? * 512;
    model
        .get_mut(at..at + bytes.len())
        .ok_or_else(|| Failure::new("a block outside of the model"))?
        .copy_from_slice(bytes);
    Ok(())
}
