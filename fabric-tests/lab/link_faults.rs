//! Two guests with a cable between them that delays, loses, duplicates and reorders frames: verified I/O completes correctly, between our
//! ends and Linux's in every combination that has one of ours.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Counts, Failure, Guest, GuestTarget, Kernels, Lab, Peer, Plan, Requirement, Test, Vm,
};

/// The subsystem that the first guest serves.
pub const NQN: &str = "nqn.2026-01.org.example:cable";

/// The first guest serves, the second one does I/O.
pub const PAIR: &[Guest] = &[
    Guest {
        links: &[0],
        ..Guest::SMALL
    },
    Guest {
        links: &[0],
        user_network: false,
        ..Guest::SMALL
    },
];

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "linux_host_and_our_target",
        needs: &[Requirement::LinuxHost, Requirement::Tool("fio")],
        peer: Peer::LinuxHost,
        run: linux_host,
        ..TEST
    },
    Test {
        name: "our_host_and_linux_target",
        needs: &[Requirement::LinuxTarget],
        peer: Peer::LinuxTarget,
        kernels: Kernels::Newest,
        run: |lab| our_host(lab, serve_linux(lab)?),
        ..TEST
    },
    Test {
        name: "our_host_and_our_target",
        peer: Peer::Own,
        kernels: Kernels::Default,
        run: |lab| our_host(lab, serve_ours(lab)?),
        ..TEST
    },
];

const TEST: Test = Test {
    guests: PAIR,
    feature: "verified I/O over delay, loss, duplication, reordering",
    limit: Duration::from_secs(300),
    ..Test::DEFAULT
};

/// What the cable does, its name, and whether that was done.
type Fault = (&'static str, Plan, fn(&Counts) -> bool);

const ROUND_TRIP: Duration = Duration::from_millis(30);

const FAULTS: &[Fault] = &[
    ("no fault", Plan::CLEAN, |counts| {
        counts.lost == 0 && counts.delivered > 0
    }),
    (
        "delay",
        Plan {
            delay: Duration::from_millis(15),
            jitter: Duration::from_millis(5),
            ..Plan::CLEAN
        },
        |counts| counts.lost == 0 && counts.delivered > 0,
    ),
    (
        "loss",
        Plan {
            loss: 0.02,
            seed: 2,
            ..Plan::CLEAN
        },
        |counts| counts.lost > 3,
    ),
    (
        "duplication",
        Plan {
            duplicate: 0.1,
            seed: 3,
            ..Plan::CLEAN
        },
        |counts| counts.duplicated > 10 && counts.delivered > counts.sent,
    ),
    (
        "reordering",
        Plan {
            reorder: 0.1,
            seed: 4,
            ..Plan::CLEAN
        },
        |counts| counts.reordered > 10,
    ),
    (
        "everything",
        Plan {
            loss: 0.01,
            duplicate: 0.05,
            reorder: 0.05,
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(2),
            seed: 5,
            ..Plan::CLEAN
        },
        |counts| counts.lost > 1 && counts.duplicated > 5 && counts.reordered > 5,
    ),
];

/// What serves in the first guest, for as long as it is kept.
#[derive(Debug)]
pub enum Served<'a> {
    /// Our target.
    Ours(GuestTarget<'a>),
    /// The kernel's.
    Linux,
}

/// Our target in the first guest, with a namespace of 32 MiB in blocks of 4 KiB.
///
/// # Errors
/// It does not start.
pub fn serve_ours(lab: &Lab) -> Result<Served<'_>, Failure> {
    let guest = lab.guest(0)?;
    let target = guest.target(&format!(
        "[[listener]]\naddress = \"{}:4420\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"32M\"\n",
        guest.link_address(0)
    ))?;
    Ok(Served::Ours(target))
}

/// Linux's target in the first guest, with a namespace of 32 MiB in blocks of 512 bytes.
///
/// # Errors
/// It cannot be configured.
pub fn serve_linux(lab: &Lab) -> Result<Served<'_>, Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 32 512)
         nvmet_port 1 tcp {} 4420 {NQN}",
        guest.link_address(0)
    ))?;
    Ok(Served::Linux)
}

/// The namespace, from the second guest.
///
/// # Errors
/// There is no first guest.
pub fn place(lab: &Lab) -> Result<String, Failure> {
    Ok(format!(
        "'nvme+tcp://{}:4420/{NQN}?nsid=1'",
        lab.guest(0)?.link_address(0)
    ))
}

/// Does something under each fault, and sees to it that the fault has happened.
fn under_each_fault(
    lab: &Lab,
    mut act: impl FnMut(&Vm, &str, u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (guest, link) = (lab.guest(1)?, lab.link(0)?);
    for (number, (name, plan, happened)) in (1..).zip(FAULTS) {
        link.set(*plan);
        let outcome = act(guest, name, number);
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

fn linux_host(lab: &Lab) -> Result<(), Failure> {
    let target = serve_ours(lab)?;
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    host.connect(&serving.link_address(0), 4420, NQN, "--nr-io-queues=2")?;
    let disk = host.namespace(NQN, 1)?;
    under_each_fault(lab, |guest, name, number| {
        guest
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "fio --name=verified --filename={disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw \
                     --bssplit=4k/60:16k/30:64k/10 --size=1M --offset={}M --verify=crc32c --verify_fatal=1 \
                     --randseed={number} --output-format=json --output=result
                     cat result",
                    number
                ),
            )
            .and_then(|output| {
                let jobs = output.json()?;
                let job = &jobs["jobs"][0];
                ensure!(
                    job["error"] == 0
                        && job["read"]["total_ios"].as_u64() > Some(20)
                        && job["write"]["total_ios"].as_u64() > Some(20),
                    "fio says {job}"
                );
                if name == "delay" {
                    let mean = job["read"]["clat_ns"]["mean"].as_f64().unwrap_or(0.0);
                    ensure!(
                        mean >= ROUND_TRIP.as_secs_f64() * 1e9,
                        "reads take {mean} ns over a link with a delay of {ROUND_TRIP:?}"
                    );
                }
                Ok(())
            })
    })?;
    let log = host.kernel_log()?;
    ensure!(
        !log.contains("reconnect") && !log.contains("starting error recovery"),
        "Linux lost its connection: {log}"
    );
    host.sh(&format!("nvme disconnect -n {NQN}"))?;
    match target {
        Served::Ours(target) => target.stop(),
        Served::Linux => Ok(()),
    }
}

fn our_host(lab: &Lab, target: Served<'_>) -> Result<(), Failure> {
    let place = place(lab)?;
    under_each_fault(lab, |guest, name, number| {
        let digests = if number % 2 == 0 {
            "--header-digest --data-digest"
        } else {
            ""
        };
        let told = guest
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "homi bench {place} --rw randrw --mix 40 --verify --bs 16k --ios 120 --depth 8 --queues 2 --seed {number} \
                     --size 8M --quiet --json --connect-timeout 30s {digests}"
                ),
            )?
            .json()?;
        ensure!(
            told["verified"] == true
                && told["ios"] == 120
                && told["blocks_verified"].as_u64() > Some(120)
                && told["counters"]["aborts"] == 0,
            "homi bench says {told}"
        );
        if name == "delay" {
            let least = told["read"]["latency_ns"]["min"].as_u64().unwrap_or(0);
            ensure!(
                u128::from(least) >= ROUND_TRIP.as_nanos(),
                "a read takes {least} ns over a link with a delay of {ROUND_TRIP:?}"
            );
        }
        // Reads back what it has written and compares checksums.
        let told = guest
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "head -c 500000 /dev/urandom >a
                     homi copy a {place} --to 16M --checksum crc32c --verify --json --connect-timeout 30s --chunk 64k {digests}"
                ),
            )?
            .json()?;
        ensure!(
            told["verified"] == true && told["bytes_copied"] == 500_000,
            "homi copy says {told}"
        );
        Ok(())
    })?;
    match target {
        Served::Ours(target) => target.stop(),
        Served::Linux => Ok(()),
    }
}
