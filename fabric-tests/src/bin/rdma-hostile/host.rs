//! A hostile host: what it says and does to a target, and a well-behaved host after each.

use std::time::{Duration, Instant};

use homi_fabric::rdma::cm::ConnectRequest;
use homi_queue::Command;
use homi_spec::fabrics::{ConnectCommand, ConnectData, Property, PropertyGet, PropertySize};
use homi_spec::{Sgl, Sqe, Status};
use zerocopy::IntoBytes;

use crate::net::{Guarded, Hello, LIMIT, Link, Net, Outcome, RECEIVES, ensure};
use crate::nvme::{Association, ENTRIES, Names, Queue, READS, well_behaved};

/// Where attacks happen.
pub(crate) struct Ground {
    pub(crate) net: Net,
    pub(crate) names: Names,
    pub(crate) memory: Guarded,
    /// The target is ours: it must do exactly as it should. Any other has to survive.
    pub(crate) ours: bool,
    /// Bytes of private data arrive as many as were sent, without padding.
    pub(crate) exact: bool,
}

/// An attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// Linux's target is attacked so too.
    pub(crate) linux: bool,
    run: fn(&mut Ground) -> Outcome,
}

/// One that is not for other targets: Linux warns in its log about allocations of such sizes, and takes data of a capsule that did not come with it.
const fn only_ours(name: &'static str, run: fn(&mut Ground) -> Outcome) -> Attack {
    Attack {
        name,
        linux: false,
        run,
    }
}

const fn attack(name: &'static str, run: fn(&mut Ground) -> Outcome) -> Attack {
    Attack {
        name,
        linux: true,
        run,
    }
}

/// All of them.
pub(crate) const ATTACKS: &[Attack] = &[
    attack("private-data", private_data),
    only_ours("sizes", sizes),
    attack("unknown-controller", unknown_controller),
    attack("storm", storm),
    attack("hoard", hoard),
    attack("capsule-lengths", capsule_lengths),
    attack("before-connect", before_connect),
    attack("bad-connects", bad_connects),
    attack("descriptors", descriptors),
    attack("lengths", lengths),
    only_ours("in-capsule", in_capsule),
    attack("doubled-ids", doubled_ids),
    attack("unknown-keys", unknown_keys),
    attack("beyond-the-region", beyond_the_region),
    attack("invalidate", invalidate),
    attack("too-many-commands", too_many_commands),
    attack("no-receives", no_receives),
    attack("after-disconnect", after_disconnect),
    attack("killed-while-read", killed_while_read),
    attack("killed-while-written", killed_while_written),
];

/// Runs the attacks whose names have this in them.
pub(crate) fn run(ground: &mut Ground, filter: &str) -> Outcome {
    let check =
        |ground: &mut Ground, seed| well_behaved(&mut ground.net, &ground.names, &ground.memory, seed);
    check(ground, 0).map_err(|error| format!("before any attack: {error}"))?;
    println!("ok well-behaved");
    for (attack, seed) in ATTACKS.iter().zip(1..) {
        if !attack.name.contains(filter) || !(ground.ours || attack.linux) {
            continue;
        }
        let start = Instant::now();
        // Somebody whose connections are there all the time.
        let mut bystander = Association::open(&mut ground.net, &ground.names, &ground.memory)
            .map_err(|error| format!("before {}: {error}", attack.name))?;
        (attack.run)(ground).map_err(|error| format!("{}: {error}", attack.name))?;
        bystander
            .verify(&mut ground.net, &ground.memory, 128 ^ seed)
            .map_err(|error| format!("after {}, another host: {error}", attack.name))?;
        bystander.close(&mut ground.net)?;
        check(ground, seed).map_err(|error| format!("after {}: {error}", attack.name))?;
        println!("ok {} ({:.1} s)", attack.name, start.elapsed().as_secs_f64());
    }
    println!("all ok");
    Ok(())
}

impl Ground {
    /// Asks with this private data; what must come of it if the target is ours is a status, or `None` for acceptance.
    fn asks(&mut self, private: &[u8], reads: u8, expected: Option<u16>) -> Outcome {
        let hello = Hello {
            private,
            reads,
            listens: true,
        };
        let outcome = self.net.connect(&hello)?;
        let found = match outcome {
            Ok(link) => {
                self.net.close(link)?;
                None
            }
            Err(refusal) => Some(
                refusal
                    .status()
                    .ok_or_else(|| format!("refused without a status: {refusal:?}"))?,
            ),
        };
        ensure!(
            !self.ours || found == expected,
            "{private:02x?} with {reads} reads gives {found:?} instead of {expected:?}"
        );
        Ok(())
    }

    fn association(&mut self) -> Outcome<Association> {
        Association::open(&mut self.net, &self.names, &self.memory)
    }

    /// A connection for an admin queue on which nothing was said.
    fn silent(&mut self) -> Outcome<Queue> {
        Queue::open_well(&mut self.net, 0, 32, 0)
    }

    /// A command that must fail with this status if the target is ours, and fail somehow at any; its queue goes on.
    fn refused(&mut self, queue: &mut Queue, sqe: Sqe, sgl: Sgl, after: &[u8], expected: Status) -> Outcome {
        let answered = queue.execute(&mut self.net, sqe, sgl, after)?;
        match answered {
            Ok(cqe) => {
                ensure!(!cqe.status().is_success(), "{sgl:?} succeeds");
                ensure!(
                    !self.ours || cqe.status().code() == expected.code(),
                    "{sgl:?} fails with {} instead of {expected}",
                    cqe.status()
                );
                Ok(())
            }
            Err(why) => {
                ensure!(!self.ours, "{sgl:?} ends the connection: {why}");
                Ok(())
            }
        }
    }

    /// A queue that goes on, whatever was refused on it.
    fn goes_on(&mut self, association: &mut Association) -> Outcome {
        if association.io.link.over.is_some() {
            ensure!(!self.ours, "the queue is gone");
            return Ok(());
        }
        association.verify(&mut self.net, &self.memory, 7)
    }
}

/// Waits for the answer to a command or the end of the connection: both may be.
fn whatever(ground: &mut Ground, queue: &mut Queue, cid: Option<u16>) -> Outcome {
    if let Some(cid) = cid {
        // Its failure, or the connection's, is what is expected.
        let _ = queue.answer(&mut ground.net, cid)?;
    }
    Ok(())
}

// ---- before there is a connection ----

fn private_data(ground: &mut Ground) -> Outcome {
    let right = ConnectRequest::new(0, 32, 0).to_private_data();
    let right = right.as_bytes();
    let changed = |at: usize, bytes: [u8; 2]| {
        let mut private = right.to_vec();
        private.splice(at..at + 2, bytes);
        private
    };
    // Over InfiniBand and RoCE, what is too short arrives as zeroes: a queue of one entry.
    let short = if ground.exact { 1 } else { 4 };
    ground.asks(&[], READS, Some(short))?;
    ground.asks(&[0; 4], READS, Some(short))?;
    if ground.exact {
        ground.asks(right.get(..31).unwrap_or(right), READS, Some(1))?;
    }
    ground.asks(&[0xff; 56], READS, Some(2))?;
    ground.asks(&changed(0, [1, 0]), READS, Some(2))?;
    ground.asks(&changed(2, [0xff, 0xff]), READS, Some(3))?;
    // One entry; no room for a response.
    ground.asks(&changed(6, [0, 0]), READS, Some(4))?;
    ground.asks(&changed(4, [0, 0]), READS, Some(5))?;
    // No RDMA READ is answered.
    ground.asks(right, 0, Some(7))?;
    let mut padded = right.to_vec();
    padded.resize(56, 0xee);
    ground.asks(&padded, READS, None)
}

fn sizes(ground: &mut Ground) -> Outcome {
    for (qid, hrqsize, hsqsize_z) in [(0, 65535, 65535), (1, 65535, 65535), (1, 1, 1), (0, 1, 65535)] {
        let mut private = [0; 32];
        for (at, field) in [(2, qid), (4, hrqsize), (6, hsqsize_z)] {
            let [low, high] = u16::to_le_bytes(field);
            private[at] = low;
            private[at + 1] = high;
        }
        let hello = Hello {
            private: &private,
            reads: 255,
            listens: true,
        };
        match ground.net.connect(&hello)? {
            Ok(link) => {
                let entries = link
                    .accepted
                    .get(2..4)
                    .map(|field| u16::from_le_bytes([field[0], field[1]]));
                ensure!(
                    entries.is_some_and(|entries| (2..=4096).contains(&entries)),
                    "{entries:?} entries are granted"
                );
                ensure!(
                    !ground.ours || entries.map(u32::from) <= Some(u32::from(hsqsize_z) + 1),
                    "more entries than were asked for"
                );
                ground.net.close(link)?;
            }
            Err(refusal) => {
                // Linux wants an admin queue of at most 32 entries.
                ensure!(
                    !ground.ours,
                    "queue {qid} of {hsqsize_z} + 1 entries is refused: {refusal:?}"
                );
            }
        }
    }
    Ok(())
}

/// An I/O queue for a controller that does not exist: refused, or its Connect is.
fn unknown_controller(ground: &mut Ground) -> Outcome {
    let mut queue = match Queue::open(&mut ground.net, 1, ENTRIES, 0x7777)? {
        Err(refusal) => {
            ensure!(refusal.status() == Some(9), "refused with {refusal:?}");
            return Ok(());
        }
        Ok(queue) => queue,
    };
    let connect = ConnectCommand {
        recfmt: 0,
        qid: 1,
        sqsize_z: ENTRIES - 1,
        cattr: 0,
        kato_ms: 0,
    };
    let names = &ground.names;
    let data = ConnectData::new(Names::HOST_ID, 0x7777, &names.subsystem, &names.host);
    ground.memory.put(Guarded::START, data.as_bytes())?;
    let sgl = ground.memory.named(Guarded::START, 1024)?;
    let answered = queue.execute(&mut ground.net, connect.to_sqe(0, sgl), sgl, &[])?;
    ensure!(
        answered.as_ref().map_or(true, |cqe| !cqe.status().is_success()),
        "a controller that does not exist accepts a queue"
    );
    ground.net.close(queue.link)?;
    ground.memory.check(&[(Guarded::START, 1024)])
}

/// Connections on which nothing is ever said, and requests that are given up.
fn storm(ground: &mut Ground) -> Outcome {
    let right = ConnectRequest::new(0, 32, 0).to_private_data();
    let hello = Hello {
        private: right.as_bytes(),
        reads: READS,
        listens: false,
    };
    let mut silent = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        match ground.net.connect(&hello)? {
            Ok(link) => silent.push(link),
            Err(_) => refused += 1,
        }
    }
    println!(
        "   {} connections say nothing, {refused} were refused",
        silent.len()
    );
    for _ in 0..20 {
        // Dropped before the answer.
        drop(ground.net.ask(&hello)?);
    }
    well_behaved(&mut ground.net, &ground.names, &ground.memory, 99)?;
    for (number, link) in silent.into_iter().enumerate() {
        match number % 3 {
            0 => ground.net.close(link)?,
            1 => drop(link),
            _ => {
                link.qp.kill()?;
                drop(link);
            }
        }
    }
    Ok(())
}

/// Connections that ask for long queues and say nothing: somebody else may have to wait, until the target has had enough of them.
fn hoard(ground: &mut Ground) -> Outcome {
    let greedy = ConnectRequest::new(1, 1024, 0).to_private_data();
    let hello = Hello {
        private: greedy.as_bytes(),
        reads: READS,
        listens: false,
    };
    let mut hoarded = Vec::new();
    for _ in 0..12 {
        hoarded.extend(ground.net.connect(&hello)?);
    }
    let count = hoarded.len();
    let start = Instant::now();
    while let Err(error) = well_behaved(&mut ground.net, &ground.names, &ground.memory, 98) {
        ensure!(start.elapsed() < LIMIT, "nobody else is served: {error}");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!(
        "   {count} of 12 connections got a long queue; somebody else is served after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    for link in hoarded {
        ground.net.close(link)?;
    }
    Ok(())
}

// ---- capsules ----

/// Capsules of every wrong length end their queue.
fn capsule_lengths(ground: &mut Ground) -> Outcome {
    let association = ground.association()?;
    let too_long = 64 + usize::try_from(association.info.in_capsule)? + 1;
    association.close(&mut ground.net)?;
    for len in [0, 1, 63, too_long, 4000] {
        // The kernel's soft-RoCE itself falls over messages of several packets for which a receive is too short (Linux 6.12).
        if len > 63 && !(too_long..=4000).contains(&len) {
            println!("   {len} bytes are skipped");
            continue;
        }
        let mut queue = ground.silent()?;
        queue.link.send(&vec![0; len], None)?;
        ground
            .net
            .until_over(&mut queue.link)
            .map_err(|error| format!("a capsule of {len} bytes: {error}"))?;
        ground.net.close(queue.link)?;
        let mut association = ground.association()?;
        association.io.link.send(&vec![2; len], None)?;
        ground
            .net
            .until_over(&mut association.io.link)
            .map_err(|error| format!("a capsule of {len} bytes on an i/o queue: {error}"))?;
        // Its other queue is unharmed where the target does not end the association, which it may.
        association.close(&mut ground.net)?;
    }
    ground.memory.check(&[])
}

/// Commands before Connect are refused, whatever they are.
fn before_connect(ground: &mut Ground) -> Outcome {
    let sgl = ground.memory.named(Guarded::START, 4096)?;
    let property = PropertyGet {
        property: Property::CAP,
        size: PropertySize::Eight,
    };
    for sqe in [
        Command::read(1, 0, 8).0,
        Command::write(1, 0, 8).0,
        Command::flush(1).0,
        property.to_sqe(0),
        Sqe::new(0x06, 0),
        Sqe::new(0xff, 0xffff_ffff),
    ] {
        let mut queue = ground.silent()?;
        let answered = queue.execute(&mut ground.net, sqe, sgl, &[])?;
        ensure!(
            answered.as_ref().map_or(true, |cqe| !cqe.status().is_success()),
            "opcode {:#x} succeeds before Connect",
            sqe.opcode
        );
        // And one on top of it.
        let cid = queue.send(sqe, sgl, &[])?;
        whatever(ground, &mut queue, cid)?;
        ground.net.close(queue.link)?;
    }
    ground.memory.check(&[])
}

/// Connects whose data is too short, nowhere, or nonsense; commands after that.
fn bad_connects(ground: &mut Ground) -> Outcome {
    let connect = ConnectCommand {
        recfmt: 0,
        qid: 0,
        sqsize_z: 31,
        cattr: 0,
        kato_ms: 0,
    };
    let names = &ground.names;
    let data = ConnectData::new(Names::HOST_ID, 0xffff, &names.subsystem, &names.host);
    let right = data.as_bytes().to_vec();
    let nonsense = vec![0xff; 1024];
    for (data, named, sqsize_z) in [
        (&right, 0, 31),
        (&right, 16, 31),
        (&right, 1023, 31),
        (&nonsense, 1024, 31),
        (&right, 1024, 0),
        (&right, 1024, 65535),
    ] {
        ground.memory.put(Guarded::START, data)?;
        let sgl = ground.memory.named(Guarded::START, named)?;
        let command = ConnectCommand { sqsize_z, ..connect };
        let mut queue = ground.silent()?;
        let answered = queue.execute(&mut ground.net, command.to_sqe(0, sgl), sgl, &[])?;
        ensure!(
            // A target may have queues of any length.
            sqsize_z == 65535 || answered.as_ref().map_or(true, |cqe| !cqe.status().is_success()),
            "a Connect with {named} bytes of data and {sqsize_z} + 1 entries succeeds"
        );
        let cid = queue.send(Command::read(1, 0, 8).0, sgl, &[])?;
        whatever(ground, &mut queue, cid)?;
        ground.net.close(queue.link)?;
        ground.memory.check(&[(Guarded::START, 1024)])?;
    }
    Ok(())
}

/// Descriptors of types that NVMe/RDMA does not have, and lists that are too long.
fn descriptors(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    let right = ground.memory.named(Guarded::START, block)?;
    let typed = |id: u8| {
        let mut sgl = right;
        sgl.0[15] = id;
        sgl
    };
    // Unkeyed, bit bucket, segments, other subtypes, transport, vendor's.
    for id in [
        0x00, 0x10, 0x11, 0x20, 0x30, 0x41, 0x45, 0x4e, 0x50, 0x5a, 0xf0, 0xff,
    ] {
        for sqe in [Command::read(1, 0, 1).0, Command::write(1, 0, 1).0] {
            if association.io.link.over.is_some() {
                association.io = reopen(ground, &association)?;
            }
            let wrong = Status::SGL_TYPE_INVALID;
            ground.refused(&mut association.io, sqe, typed(id), &[], wrong)?;
        }
    }
    if ground.ours {
        // More descriptors than it takes, half a descriptor, and descriptors that did not come.
        let list = |offset: u64, len: usize| -> Outcome<Sgl> {
            let mut sgl = Sgl::in_capsule(offset, u32::try_from(len)?);
            sgl.0[15] = 0x31;
            Ok(sgl)
        };
        let many = right.0.repeat(usize::try_from(association.info.in_capsule)? / 16);
        let write = Command::write(1, 0, 1).0;
        for (sgl, after, expected) in [
            (list(0, many.len())?, many.as_slice(), Status::SGL_INVALID_COUNT),
            (list(0, 8)?, &many, Status::SGL_INVALID_SEGMENT),
            (list(u64::MAX, 16)?, &many, Status::SGL_OFFSET_INVALID),
            (list(many.len() as u64, 16)?, &many, Status::SGL_OFFSET_INVALID),
        ] {
            ground.refused(&mut association.io, write, sgl, after, expected)?;
        }
    }
    ground.memory.check(&[])?;
    ground.goes_on(&mut association)?;
    association.close(&mut ground.net)
}

/// Another I/O queue in place of one that is gone.
fn reopen(ground: &mut Ground, association: &Association) -> Outcome<Queue> {
    let controller = association.info.controller_id;
    let start = Instant::now();
    loop {
        // The target may not have heard yet that the old one is gone.
        let names = ground.names.clone();
        match Association::queue(&mut ground.net, &names, &ground.memory, controller, 1) {
            Ok(queue) => return Ok(queue),
            Err(error) if start.elapsed() > LIMIT => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Descriptors shorter and longer than the transfer: nothing is moved that was not named, or that was not asked for.
fn lengths(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    for (blocks, named) in [(8, block), (8, 1), (1, 0), (2, 2 * block - 1)] {
        for sqe in [Command::read(1, 0, blocks).0, Command::write(1, 0, blocks).0] {
            if association.io.link.over.is_some() {
                association.io = reopen(ground, &association)?;
            }
            let sgl = ground.memory.named(Guarded::START, named)?;
            ground.refused(
                &mut association.io,
                sqe,
                sgl,
                &[],
                Status::SGL_DATA_LENGTH_INVALID,
            )?;
            ground.memory.check(&[(Guarded::START, named.into())])?;
        }
    }
    // Longer: the rest stays as it is.
    if association.io.link.over.is_some() {
        association.io = reopen(ground, &association)?;
    }
    let sgl = ground.memory.named(Guarded::START, 4 * block)?;
    let _ = association
        .io
        .execute(&mut ground.net, Command::read(1, 0, 1).0, sgl, &[])?;
    ground.memory.check(&[(Guarded::START, block.into())])?;
    if association.io.link.over.is_some() {
        association.io = reopen(ground, &association)?;
    }
    // A transfer of 32 MiB into 24 bits of length, and one beyond the end of the address space.
    let sgl = ground.memory.named(Guarded::START, 0xff_ffff)?;
    let _ = association
        .io
        .execute(&mut ground.net, Command::read(1, 0, 65536).0, sgl, &[])?;
    ground.memory.check(&[(Guarded::START, Guarded::LEN as u64)])?;
    if association.io.link.over.is_some() {
        association.io = reopen(ground, &association)?;
    }
    let mut wraps = sgl;
    wraps.0[..8].fill(0xff);
    let answered = association
        .io
        .execute(&mut ground.net, Command::write(1, 0, 1).0, wraps, &[])?;
    ensure!(
        answered.as_ref().map_or(true, |cqe| !cqe.status().is_success()),
        "memory beyond the end of the address space can be read"
    );
    if association.io.link.over.is_none() {
        ground.goes_on(&mut association)?;
    }
    association.close(&mut ground.net)
}

/// Offsets and lengths of data in the capsule that are not in it.
fn in_capsule(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    let bytes = vec![0x33; block as usize];
    let write = Command::write(1, 0, 1).0;
    for (offset, len, sent) in [
        (0, block, 0),
        (0, block, bytes.len() - 1),
        (1, block, bytes.len()),
        (u64::from(block), block, bytes.len()),
        (u64::MAX, block, bytes.len()),
        (u64::MAX - u64::from(block) + 1, block, bytes.len()),
        (0, u32::MAX, bytes.len()),
    ] {
        if association.io.link.over.is_some() {
            association.io = reopen(ground, &association)?;
        }
        let sgl = Sgl::in_capsule(offset, len);
        let after = bytes.get(..sent).unwrap_or(&[]);
        ground.refused(&mut association.io, write, sgl, after, Status::SGL_OFFSET_INVALID)?;
    }
    if association.io.link.over.is_some() {
        association.io = reopen(ground, &association)?;
    }
    // Data in the capsule of a read.
    let sgl = Sgl::in_capsule(0, block);
    let read = Command::read(1, 0, 1).0;
    ground.refused(&mut association.io, read, sgl, &bytes, Status::SGL_TYPE_INVALID)?;
    ground.memory.check(&[])?;
    ground.goes_on(&mut association)?;
    association.close(&mut ground.net)
}

/// The same id many times at once.
fn doubled_ids(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    let sgl = ground.memory.named(Guarded::START, 64 * block)?;
    let mut sqe = Command::read(1, 0, 64).0;
    sqe.cid = 5.into();
    sqe.set_sgl(sgl);
    for _ in 0..16 {
        association.io.link.send(sqe.as_bytes(), None)?;
    }
    let all = ground
        .net
        .until(&mut association.io.link, LIMIT, |link| link.received.len() >= 16)?;
    ensure!(
        all || association.io.link.over.is_some(),
        "some of the commands were not answered"
    );
    ground.memory.check(&[(Guarded::START, u64::from(64 * block))])?;
    association.close(&mut ground.net)
}

// ---- memory ----

fn unknown_keys(ground: &mut Ground) -> Outcome {
    for write in [false, true] {
        for change in [1, 0xff00, 0xffff_ffff] {
            let mut association = ground.association()?;
            let block = association.block;
            let right = ground.memory.named(Guarded::START, 8 * block)?;
            let mut sgl = right;
            for (byte, with) in sgl.0[11..15].iter_mut().zip(u32::to_le_bytes(change)) {
                *byte ^= with;
            }
            refused_by_key(ground, &mut association, write, 8, sgl)?;
            association.close(&mut ground.net)?;
        }
    }
    ground.memory.check(&[])
}

/// A command whose memory the adapter refuses: it does not succeed.
fn refused_by_key(
    ground: &mut Ground,
    association: &mut Association,
    write: bool,
    blocks: u32,
    sgl: Sgl,
) -> Outcome {
    let sqe = if write {
        Command::write(1, 0, blocks).0
    } else {
        Command::read(1, 0, blocks).0
    };
    let answered = association.io.execute(&mut ground.net, sqe, sgl, &[])?;
    ensure!(
        answered.as_ref().map_or(true, |cqe| !cqe.status().is_success()),
        "{sgl:?} succeeds"
    );
    Ok(())
}

/// The right key, and bytes before and behind what it is for.
fn beyond_the_region(ground: &mut Ground) -> Outcome {
    for write in [false, true] {
        for at in [Guarded::LEN as u64 - 100, u64::MAX - 99, 1 << 40] {
            let mut association = ground.association()?;
            let block = association.block;
            let sgl = ground.memory.named(at, 8 * block)?;
            refused_by_key(ground, &mut association, write, 8, sgl)?;
            association.close(&mut ground.net)?;
        }
    }
    // What lies in the region up to its end was named.
    ground.memory.check(&[(Guarded::LEN as u64 - 100, 100)])
}

/// A registration is offered for invalidation that no message can invalidate.
fn invalidate(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    let mut sgl = ground.memory.named(Guarded::START, block)?;
    sgl.0[15] = 0x4f;
    let cid = association.io.send(Command::read(1, 0, 1).0, sgl, &[])?;
    let link = &mut association.io.link;
    ground.net.until(link, LIMIT, |link| !link.received.is_empty())?;
    ensure!(
        cid.is_some() && (!link.received.is_empty() || link.over.is_some()),
        "neither an answer nor an end"
    );
    association.close(&mut ground.net)?;
    ground.memory.check(&[(Guarded::START, block.into())])
}

// ---- too much, too late ----

fn too_many_commands(ground: &mut Ground) -> Outcome {
    let mut association = ground.association()?;
    let block = association.block;
    let sgl = ground.memory.named(Guarded::START, 64 * block)?;
    for round in 0..3 {
        if association.io.link.over.is_some() {
            association.io = reopen(ground, &association)?;
        }
        let mut sent = 0;
        for number in 0..u16::try_from(RECEIVES)? {
            let mut sqe = if round == 1 {
                Command::flush(1).0
            } else {
                Command::read(1, 0, 64).0
            };
            sqe.cid = number.into();
            sqe.set_sgl(if round == 1 {
                ground.memory.named(0, 0)?
            } else {
                sgl
            });
            if !association.io.link.send(sqe.as_bytes(), None)? {
                break;
            }
            sent += 1;
        }
        ensure!(sent > usize::from(ENTRIES), "only {sent} were sent");
        let link = &mut association.io.link;
        let all = ground
            .net
            .until(link, LIMIT, |link| link.received.len() >= sent)?;
        ensure!(
            all || link.over.is_some(),
            "{} of {sent} commands were answered and the connection goes on",
            link.received.len()
        );
        link.received.clear();
    }
    association.close(&mut ground.net)?;
    ground.memory.check(&[(Guarded::START, u64::from(64 * block))])
}

/// Commands whose answers nobody takes.
fn no_receives(ground: &mut Ground) -> Outcome {
    let right = ConnectRequest::new(0, 32, 0).to_private_data();
    let hello = Hello {
        private: right.as_bytes(),
        reads: READS,
        listens: false,
    };
    let mut deaf: Vec<Link> = Vec::new();
    for _ in 0..4 {
        let Ok(mut link) = ground.net.connect(&hello)? else {
            continue;
        };
        let property = PropertyGet {
            property: Property::CAP,
            size: PropertySize::Eight,
        };
        for cid in 0..8 {
            link.send(property.to_sqe(cid).as_bytes(), None)?;
        }
        deaf.push(link);
    }
    well_behaved(&mut ground.net, &ground.names, &ground.memory, 55)?;
    for link in deaf {
        ground.net.close(link)?;
    }
    Ok(())
}

/// Commands right before and after the end of the connection.
fn after_disconnect(ground: &mut Ground) -> Outcome {
    for round in 0..4 {
        let mut association = ground.association()?;
        let block = association.block;
        let sgl = ground.memory.named(Guarded::START, 8 * block)?;
        for number in 0..24 {
            if number == 12 {
                association.io.link.qp.disconnect()?;
            }
            let sqe = if round % 2 == 0 {
                Command::read(1, 0, 8).0
            } else {
                Command::write(1, 0, 8).0
            };
            // Refused or flushed here once the queue pair is in the error state.
            association.io.send(sqe, sgl, &[])?;
        }
        association.close(&mut ground.net)?;
        ground.memory.check(&[(Guarded::START, u64::from(8 * block))])?;
    }
    Ok(())
}

/// The queue pair dies while the target reads from or writes to this host.
fn killed(ground: &mut Ground, write: bool) -> Outcome {
    for round in 0..6_u64 {
        let mut association = ground.association()?;
        let block = association.block;
        let blocks = (128 << 10) / block;
        let named: Vec<(u64, u64)> = (0..8)
            .map(|number| (Guarded::START + number * (160 << 10), u64::from(blocks * block)))
            .collect();
        for (at, len) in &named {
            let sgl = ground.memory.named(*at, u32::try_from(*len)?)?;
            let sqe = if write {
                Command::write(1, 0, blocks).0
            } else {
                Command::read(1, 0, blocks).0
            };
            association.io.send(sqe, sgl, &[])?;
        }
        std::thread::sleep(Duration::from_micros(300 * round * round));
        if round % 2 == 0 {
            association.io.link.qp.kill()?;
        } else {
            association.io.link.qp.disconnect()?;
        }
        net_settles(ground, &mut association.io.link)?;
        // Once the queue pair is dead nothing comes any more.
        ground.memory.check(&named)?;
        std::thread::sleep(Duration::from_millis(50));
        ground.memory.check(&[])?;
        if round % 3 == 0 {
            association.close(&mut ground.net)?;
        }
    }
    Ok(())
}

fn net_settles(ground: &mut Ground, link: &mut Link) -> Outcome {
    let over = ground
        .net
        .until(link, Duration::from_millis(300), |link| link.over.is_some())?;
    // Killed queue pairs may say nothing.
    let _ = over;
    Ok(())
}

fn killed_while_read(ground: &mut Ground) -> Outcome {
    killed(ground, true)
}

fn killed_while_written(ground: &mut Ground) -> Outcome {
    killed(ground, false)
}
