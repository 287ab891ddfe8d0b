//! NVMe/RDMA between two guests whose cable delays, loses and duplicates packets, or is cut: verified I/O completes correctly, or fails
//! with a sentence in bounded time. And connections that come and go in numbers.
//!
//! Packets are not reordered: soft-RoCE gives up on that by itself. With Linux at both ends, verified I/O over a cable that reorders one packet in
//! twenty does not end within a minute and a half, its connections failing and coming back.

use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Counts, Failure, Job, Kernels, Lab, Peer, Plan, Test, check_refusal};

use crate::rdma_pairs::{NQN, ROCE, Served, devices, place, serve_linux, serve_ours};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "linux_host_and_our_target",
        peer: Peer::LinuxHost,
        run: |lab| {
            devices(lab, "rxe")?;
            linux_host(lab, serve_ours(lab)?)
        },
        ..FAULTY
    },
    Test {
        name: "our_host_and_linux_target",
        peer: Peer::LinuxTarget,
        kernels: Kernels::Newest,
        run: |lab| {
            devices(lab, "rxe")?;
            our_host(lab, serve_linux(lab)?)
        },
        ..FAULTY
    },
    Test {
        name: "our_host_and_our_target",
        peer: Peer::Own,
        run: |lab| {
            devices(lab, "rxe")?;
            our_host(lab, serve_ours(lab)?)
        },
        ..FAULTY
    },
    Test {
        name: "cut_linux_host_and_our_target",
        peer: Peer::LinuxHost,
        run: cut_linux_host,
        ..CUT
    },
    Test {
        name: "cut_our_host_and_our_target",
        peer: Peer::Own,
        run: |lab| {
            devices(lab, "rxe")?;
            cut_our_host(lab, serve_ours(lab)?)
        },
        ..CUT
    },
    Test {
        name: "cut_our_host_and_linux_target",
        peer: Peer::LinuxTarget,
        kernels: Kernels::Newest,
        run: |lab| {
            devices(lab, "rxe")?;
            cut_our_host(lab, serve_linux(lab)?)
        },
        ..CUT
    },
    Test {
        name: "storm_of_linux_hosts",
        peer: Peer::LinuxHost,
        run: storm_of_linux_hosts,
        ..STORM
    },
    Test {
        name: "storm_of_our_hosts",
        peer: Peer::LinuxTarget,
        run: storm_of_our_hosts,
        ..STORM
    },
];

const FAULTY: Test = Test {
    kernels: Kernels::Default,
    feature: "verified I/O over delay, loss, duplication",
    limit: Duration::from_secs(300),
    ..ROCE
};

const CUT: Test = Test {
    feature: "cable cut under verified I/O: short, for good",
    ..FAULTY
};

const STORM: Test = Test {
    feature: "connections that come and go in numbers",
    ..FAULTY
};

/// What the cable does, its name, and whether that was done.
type Fault = (&'static str, Plan, fn(&Counts) -> bool);

const FAULTS: &[Fault] = &[
    (
        "delay",
        Plan {
            delay: Duration::from_millis(5),
            ..Plan::CLEAN
        },
        |counts| counts.lost == 0 && counts.delivered > 0,
    ),
    (
        "loss",
        Plan {
            loss: 0.01,
            seed: 2,
            ..Plan::CLEAN
        },
        |counts| counts.lost > 1,
    ),
    (
        "duplication",
        Plan {
            duplicate: 0.1,
            seed: 3,
            ..Plan::CLEAN
        },
        |counts| counts.duplicated > 10,
    ),
];

/// How long something may take that ends by itself.
const BOUND: Duration = Duration::from_secs(90);

/// Does something under each fault, and sees to it that the fault has happened.
fn under_each_fault(
    lab: &Lab,
    mut act: impl FnMut(&str, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let link = lab.link(0)?;
    for (number, (name, plan, happened)) in (1..).zip(FAULTS) {
        link.set(*plan);
        let outcome = act(name, number);
        let counts = link.counts();
        link.set(Plan::CLEAN);
        lab.note(&format!("{name}: {counts:?}"));
        outcome.map_err(|failure| failure.while_doing(name))?;
        ensure!(
            happened(&counts),
            "the link did not do what it was told, {name}: {counts:?}"
        );
    }
    Ok(())
}

fn linux_host(lab: &Lab, served: Served<'_>) -> Result<(), Failure> {
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    host.connect_over(
        "rdma",
        &serving.link_address(0),
        4420,
        NQN,
        "--nr-io-queues=2 --keep-alive-tmo=30",
    )?;
    let disk = host.namespace(NQN, 1)?;
    under_each_fault(lab, |_, number| {
        let report = host
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "fio --name=verified --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw \
                     --bssplit=4k/60:16k/30:64k/10 --size=1M --offset={number}M --verify=crc32c --verify_fatal=1 \
                     --randseed={number} --output-format=json --output=result
                     cat result"
                ),
            )?
            .json()?;
        let job = &report["jobs"][0];
        ensure!(
            job["error"] == 0 && job["write"]["total_ios"].as_u64() > Some(10),
            "fio says {job}"
        );
        Ok(())
    })?;
    host.sh(&format!("nvme disconnect -n {NQN}"))?;
    served.stop()
}

fn our_host(lab: &Lab, served: Served<'_>) -> Result<(), Failure> {
    let (place, host) = (place(lab)?, lab.guest(1)?);
    under_each_fault(lab, |_, number| {
        let told = host
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "homi bench {place} --rw randrw --mix 40 --verify --bs 16k --ios 120 --depth 8 --queues 2 --seed {number} \
                     --size 8M --quiet --json --connect-timeout 60s"
                ),
            )?
            .json()?;
        ensure!(
            told["verified"] == true && told["ios"] == 120 && told["counters"]["aborts"] == 0,
            "homi bench says {told}"
        );
        Ok(())
    })?;
    served.stop()
}

/// Waits until so many more frames went over the cable: I/O is under way.
fn wait_for_frames(lab: &Lab, count: u64, job: &Job) -> Result<(), Failure> {
    let link = lab.link(0)?;
    let goal = link.counts().sent + count;
    let start = Instant::now();
    while link.counts().sent < goal {
        ensure!(
            start.elapsed() < BOUND && job.is_running(),
            "no I/O: {:?}, {:?}",
            link.counts(),
            job.so_far()
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn cut_linux_host(lab: &Lab) -> Result<(), Failure> {
    devices(lab, "rxe")?;
    let served = serve_ours(lab)?;
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    host.connect_over(
        "rdma",
        &serving.link_address(0),
        4420,
        NQN,
        "--nr-io-queues=2 --keep-alive-tmo=3 --reconnect-delay=1 --ctrl-loss-tmo=120",
    )?;
    let disk = host.namespace(NQN, 1)?;
    let link = lab.link(0)?;
    let job = host.spawn(
        Duration::from_secs(200),
        &format!(
            "fio --name=verified --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k \
             --size=1M --verify=crc32c --verify_fatal=1 --time_based --runtime=6"
        ),
    )?;
    wait_for_frames(lab, 200, &job)?;
    // Long enough for the keep-alive or the network to give up, so that the host begins to reconnect.
    link.set(Plan::CUT);
    let noticed = host.sh("noticed() { dmesg | grep -q 'nvme.*econnecting in'; }; until_true 50 noticed");
    link.set(Plan::CLEAN);
    noticed?;
    job.wait(BOUND + BOUND)
        .map_err(|failure| failure.while_doing("a cut that the host noticed"))?;
    host.sh("connected() { dmesg | grep -q 'nvme.*uccessfully reconnected'; }; until_true 20 connected")?;
    host.sh(&format!("nvme disconnect -n {NQN}"))?;
    served.stop()
}

fn cut_our_host(lab: &Lab, served: Served<'_>) -> Result<(), Failure> {
    let (place, host, link) = (place(lab)?, lab.guest(1)?, lab.link(0)?);
    let bench = |more: &str| {
        format!(
            "homi bench {place} --rw randrw --mix 40 --verify --bs 4k --depth 8 --queues 2 --size 4M --quiet \
             --connect-timeout 30s {more}"
        )
    };
    // A cut that retransmission bridges.
    let job = host.spawn(Duration::from_secs(150), &bench("--ios 2000 --json"))?;
    wait_for_frames(lab, 300, &job)?;
    link.set(Plan::CUT);
    thread::sleep(Duration::from_millis(300));
    link.set(Plan::CLEAN);
    let told = job
        .wait(BOUND)
        .map_err(|failure| failure.while_doing("a short cut"))?
        .json()?;
    ensure!(
        told["verified"] == true && told["ios"] == 2000,
        "homi bench says {told}"
    );
    // One that nothing bridges.
    let job = host.spawn(
        Duration::from_secs(150),
        &bench("--time 100s --command-timeout 4s"),
    )?;
    wait_for_frames(lab, 300, &job)?;
    link.set(Plan::CUT);
    let start = Instant::now();
    let output = job.try_wait(BOUND);
    link.set(Plan::CLEAN);
    let output = output?;
    ensure!(
        start.elapsed() < BOUND,
        "it took {:?} to notice that the cable is cut",
        start.elapsed()
    );
    check_refusal(&output, 1)?;
    // Whoever comes next is served.
    let told = host.sh(&bench("--ios 100 --json"))?.json()?;
    ensure!(told["verified"] == true, "homi bench says {told}");
    served.stop()
}

fn storm_of_linux_hosts(lab: &Lab) -> Result<(), Failure> {
    devices(lab, "rxe")?;
    let served = serve_ours(lab)?;
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    host.sh_within(
        Duration::from_secs(200),
        &format!(
            "modprobe nvme-rdma
             for round in $(seq 12); do
                 nvme connect -t rdma -a {address} -s 4420 -n {NQN} --nr-io-queues=$((round % 3 + 1)) >&2
                 disk=$(namespace {NQN} 1)
                 dd if=/dev/urandom of=a bs=4k count=4 status=none
                 dd if=a of=$disk bs=4k seek=$round oflag=direct status=none
                 dd if=$disk bs=4k skip=$round count=4 iflag=direct status=none | cmp - a
                 nvme disconnect -n {NQN} >&2
             done",
            address = serving.link_address(0)
        ),
    )?;
    served.stop()
}

fn storm_of_our_hosts(lab: &Lab) -> Result<(), Failure> {
    devices(lab, "rxe")?;
    let served = serve_linux(lab)?;
    let (place, host) = (place(lab)?, lab.guest(1)?);
    host.sh_within(
        Duration::from_secs(200),
        &format!(
            "for round in $(seq 8); do
                 for one in 1 2 3; do
                     homi bench {place} --rw randrw --verify --bs 4k --ios 30 --depth 4 --queues 2 --offset ${{one}}M --size 1M \
                         --quiet --connect-timeout 60s >/dev/null & jobs[one]=$!
                 done
                 for one in 1 2 3; do wait ${{jobs[one]}}; done
             done"
        ),
    )?;
    served.stop()
}
