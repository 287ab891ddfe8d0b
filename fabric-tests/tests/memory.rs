//! How much memory hosts can make a target use: counted, on the one thread in which a whole target runs. What must hold: a
//! peer's number never sizes an allocation before it was found right, what waits is bounded, and what goes leaves nothing.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fabric_tests::bodies::write_and_read;
use fabric_tests::faults::{Faults, Plan};
use fabric_tests::harness::{Harness, Host, HostOptions};
use fabric_tests::pair::Pair;
use fabric_tests::peer::{RawHost, connect_data, memory_wire};
use fabric_tests::settings::{everything, ram};
use fabric_tests::units::{Units, ic_req};
use homi_queue::Command;
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand};
use homi_spec::feature::{FeatureId, SetFeatures};
use homi_spec::identify::Identify;
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::tcp::PduType;
use homi_spec::{Sgl, Status};

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    let live = LIVE.with(|live| {
        live.set(live.get() + i64::try_from(bytes).unwrap());
        live.get()
    });
    PEAK.with(|peak| peak.set(peak.get().max(live)));
}

fn shrink(bytes: usize) {
    LIVE.with(|live| live.set(live.get() - i64::try_from(bytes).unwrap()));
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches thread-local `Cell`s only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> i64 {
    LIVE.with(Cell::get)
}

/// The most that was allocated at once beyond what was before, while `f` ran.
fn peak_of<T>(f: impl FnOnce() -> T) -> (i64, T) {
    let before = live();
    PEAK.with(|peak| peak.set(before));
    let result = f();
    (PEAK.with(Cell::get) - before, result)
}

/// The queues of a controller of this target that is ready.
fn connected(target: &mut Pair, entries: u16) -> (RawHost, RawHost) {
    let mut admin = target.raw();
    admin.initialize(Units::PLAIN);
    let controller = admin.connect_admin(0);
    admin.enable();
    let mut io = target.raw();
    io.initialize(Units::PLAIN);
    io.connect_io(controller, 1, entries);
    (admin, io)
}

/// CVE-2026-80789: a descriptor of 4 GiB, with every command that takes or brings data.
#[test]
fn a_descriptor_of_4_gib_allocates_nothing() {
    let mut target = Pair::start(&ram());
    let (mut admin, mut io) = connected(&mut target, 128);
    let mut stranger = target.raw();
    stranger.initialize(Units::PLAIN);
    // Once, so that everything that grows with use has.
    let attack = |admin: &mut RawHost, io: &mut RawHost, stranger: &mut RawHost| {
        for command in [
            Command::write(2, 0, 1),
            Command::read(2, 0, 1),
            Command::compare(2, 0, 1),
            Command::deallocate(2, 1),
        ] {
            let cid = io.submit_for(command.0, u32::MAX);
            assert!(!io.response(cid).status().is_success());
        }
        for sqe in [
            Identify::controller().to_sqe(0),
            GetLogPage::new(LogId::ERROR, 1 << 34).unwrap().to_sqe(0),
            SetFeatures::new(FeatureId::HOST_BEHAVIOR, 0).to_sqe(0),
        ] {
            let cid = admin.submit_for(sqe, u32::MAX);
            assert!(!admin.response(cid).status().is_success());
        }
        let connect = ConnectCommand {
            sqsize_z: 31,
            ..ConnectCommand::default()
        };
        let cid = stranger.submit_for(connect.to_sqe(0, Sgl::default()), u32::MAX);
        assert!(!stranger.response(cid).status().is_success());
    };
    attack(&mut admin, &mut io, &mut stranger);
    let (peak, ()) = peak_of(|| attack(&mut admin, &mut io, &mut stranger));
    println!("{peak} bytes");
    assert!(peak < 32 << 10, "{peak} bytes");
}

/// Units that announce all that a connection takes, and come no further, on many connections.
#[test]
fn units_that_never_come_to_their_end_allocate_no_more_than_their_data() {
    let mut target = Pair::start(&ram());
    let (_admin, _io) = connected(&mut target, 128);
    let mut halves = Vec::new();
    for _ in 0..50 {
        let mut raw = target.raw();
        raw.initialize(Units::PLAIN);
        halves.push(raw);
    }
    let (peak, ()) = peak_of(|| {
        for raw in &mut halves {
            // The largest capsule before Connect is 8 KiB.
            let mut unit = Units::PLAIN.capsule(
                ConnectCommand::default().to_sqe(1, Sgl::in_capsule(0, 1024)),
                &[1; 1024],
            );
            unit.truncate(72 + 100);
            raw.send(&unit);
        }
    });
    println!("{} bytes for each", peak / 50);
    assert!(peak / 50 < 16 << 10);
}

/// A host that asks for data from a hundred writes at once and sends none of it holds half of the buffers and no more.
#[test]
fn writes_whose_data_never_comes_hold_half_of_the_buffers() {
    let mut config = ram();
    config.node.buffers = "8M".parse().unwrap();
    let mut target = Pair::start(&config);
    let (_admin, mut io) = connected(&mut target, 1024);
    let (peak, ()) = peak_of(|| {
        for _ in 0..500 {
            io.submit_for(Command::write(2, 0, 256).0, 1 << 20);
        }
    });
    println!("{peak} bytes");
    assert!(peak < 5 << 20, "{peak} bytes");
}

/// A host that reads 100 MiB from a file and takes none of it: what it holds comes out of the same buffers, of which it gets half.
#[test]
fn reads_that_nobody_takes_hold_half_of_the_buffers() {
    for digest in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = everything(scratch.path());
        config.node.buffers = "8M".parse().unwrap();
        let mut target = Pair::start(&config);
        let mut host = target.host(&HostOptions::default());
        let mut queue = host.queue(4);
        write_and_read(&mut queue, (4, 4096), 0, 1);
        let units = Units {
            header_digest: false,
            data_digest: digest,
        };
        let mut admin = target.raw();
        admin.initialize(units);
        let controller = admin.connect_admin(0);
        admin.enable();
        let narrow = Faults {
            to_host: Plan {
                window: Some(4096),
                ..Plan::default()
            },
            ..Faults::default()
        };
        let mut io = RawHost::new(memory_wire(target.world().connect(narrow)));
        io.initialize(units);
        io.connect_io(controller, 1, 1024);
        let (peak, ()) = peak_of(|| {
            for _ in 0..100 {
                io.submit_for(Command::read(4, 0, 256).0, 1 << 20);
            }
            // Everybody else is served meanwhile, which takes the executor through all that it has of the others.
            for round in 0..4 {
                write_and_read(&mut queue, (4, 4096), 600, round);
                write_and_read(&mut queue, (3, 512), 600, round);
            }
        });
        println!("{peak} bytes, data digest {digest}");
        assert!(peak < 12 << 20, "{peak} bytes");
        // All of it comes once it is taken.
        let mut bytes = 0;
        while bytes < 100 << 20 {
            let unit = io.unit();
            bytes += unit.data.len();
        }
    }
}

/// Connections that come and go in every way leave nothing behind.
#[test]
fn what_goes_leaves_nothing() {
    let mut target = Pair::start(&ram());
    let mut host = target.host(&HostOptions::default());
    let mut queue = host.queue(4);
    let mut round = |target: &mut Pair, round: u64| {
        // Refused, cut off in the middle, terminated, disconnected in order, and reset under a write.
        let mut refused = target.raw();
        refused.initialize(Units::DIGESTS);
        let connect = ConnectCommand {
            sqsize_z: 3,
            ..ConnectCommand::default()
        };
        let cqe = refused.connect(connect, &connect_data(CNTLID_DYNAMIC));
        assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS));
        let mut half = target.raw();
        half.send(&ic_req(0, 0, 0)[..77]);
        let mut broken = target.raw();
        broken.send(&[0xff; 64]);
        let (admin, mut io) = connected(target, 64);
        io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
        io.expect(PduType::R2T);
        drop(admin);
        let mut orderly = target.host(&HostOptions::default());
        write_and_read(&mut orderly.queue(4), (1, 512), 0, round);
        assert!(orderly.disconnect());
        write_and_read(&mut queue, (2, 4096), 0, round);
    };
    for index in 0..20 {
        round(&mut target, index);
    }
    target.wait_for_connections(2);
    let before = live();
    for index in 0..100 {
        round(&mut target, index);
    }
    target.wait_for_connections(2);
    // The test itself remembers a little of every connection that it ever made.
    let grown = live() - before;
    println!("{} bytes for each round of 6 connections", grown / 100);
    assert!(grown / 100 < 8 << 10, "{grown} bytes");
}

/// What an idle connection costs at the target: printed, and far below anything that would be noticed.
#[test]
fn an_idle_connection_is_small() {
    let mut target = Pair::start(&ram());
    let mut admin = target.raw();
    admin.initialize(Units::PLAIN);
    let controller = admin.connect_admin(0);
    admin.enable();
    let mut queues = Vec::with_capacity(64);
    let before = live();
    for qid in 1..=60 {
        let mut io = target.raw();
        io.initialize(Units::PLAIN);
        io.connect_io(controller, qid, 128);
        assert_eq!(io.execute(Command::flush(1).0, &[]).status(), Status::SUCCESS);
        queues.push(io);
    }
    let each = (live() - before) / 60;
    println!("{each} bytes, with the host and the pipe between");
    assert!(each < 32 << 10);
}
