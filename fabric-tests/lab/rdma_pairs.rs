//! NVMe/RDMA between two guests, over RoCE and iWARP in software: every pairing of our ends and Linux's, with packets of 1024 and of 4096 bytes.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, GuestTarget, Kernels, Lab, Peer, Requirement, Test, Transport, Vm};

use crate::link_faults::PAIR;

/// The subsystem that the first guest serves.
pub const NQN: &str = "nqn.2026-01.org.example:pairs";

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "linux_host_and_our_target",
        peer: Peer::LinuxHost,
        kernels: Kernels::Default,
        run: |lab| pairing(lab, "rxe", serve_ours, linux_host),
        ..ROCE
    },
    Test {
        name: "our_host_and_linux_target",
        peer: Peer::LinuxTarget,
        kernels: Kernels::Newest,
        run: |lab| pairing(lab, "rxe", serve_linux, our_host),
        ..ROCE
    },
    Test {
        name: "our_host_and_our_target",
        peer: Peer::Own,
        kernels: Kernels::Default,
        run: |lab| pairing(lab, "rxe", serve_ours, our_host),
        ..ROCE
    },
    Test {
        name: "linux_host_and_linux_target",
        peer: Peer::Kernel,
        kernels: Kernels::Default,
        feature: "",
        run: |lab| pairing(lab, "rxe", serve_linux, linux_host),
        ..ROCE
    },
    Test {
        name: "iwarp_linux_host_and_our_target",
        peer: Peer::LinuxHost,
        run: |lab| pairing(lab, "siw", serve_ours, linux_host),
        ..IWARP
    },
    Test {
        name: "iwarp_our_host_and_linux_target",
        peer: Peer::LinuxTarget,
        run: |lab| pairing(lab, "siw", serve_linux, our_host),
        ..IWARP
    },
    Test {
        name: "iwarp_our_host_and_our_target",
        peer: Peer::Own,
        run: |lab| pairing(lab, "siw", serve_ours, our_host),
        ..IWARP
    },
];

/// What tests over RoCE between two guests have in common.
pub const ROCE: Test = Test {
    needs: &[
        Requirement::SoftRoce,
        Requirement::Verbs,
        Requirement::Module("nvme-rdma"),
        Requirement::Module("nvmet-rdma"),
        Requirement::Tool("fio"),
    ],
    kernels: Kernels::Every,
    transport: Transport::Rdma,
    guests: PAIR,
    feature: "verified I/O between two machines, 512 B to 1 MiB, depth 1 to 128, several queues, MTU 1500 and 4200",
    limit: Duration::from_secs(240),
    ..Test::DEFAULT
};

const IWARP: Test = Test {
    needs: &[
        Requirement::Module("siw"),
        Requirement::Verbs,
        Requirement::Module("nvme-rdma"),
        Requirement::Module("nvmet-rdma"),
        Requirement::Tool("fio"),
    ],
    feature: "verified I/O over iWARP",
    ..ROCE
};

/// What serves in the first guest, for as long as it is kept.
#[derive(Debug)]
pub enum Served<'a> {
    /// Our target.
    Ours(GuestTarget<'a>),
    /// The kernel's.
    Linux,
}

impl Served<'_> {
    /// Stops what is ours.
    ///
    /// # Errors
    /// It does not end well.
    pub fn stop(self) -> Result<(), Failure> {
        match self {
            Self::Ours(target) => target.stop(),
            Self::Linux => Ok(()),
        }
    }
}

/// Our target in the first guest, over RDMA, with a namespace of 64 MiB in blocks of 512 bytes.
///
/// # Errors
/// It does not start.
pub fn serve_ours(lab: &Lab) -> Result<Served<'_>, Failure> {
    let guest = lab.guest(0)?;
    let target = guest.target(&format!(
        "[[listener]]\ntransport = \"rdma\"\naddress = \"{}:4420\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"64M\"\nblock_size = 512\n",
        guest.link_address(0)
    ))?;
    Ok(Served::Ours(target))
}

/// Linux's target in the first guest, over RDMA, with a namespace of 64 MiB in blocks of 512 bytes.
///
/// # Errors
/// It cannot be configured.
pub fn serve_linux(lab: &Lab) -> Result<Served<'_>, Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 64 512)
         nvmet_port 1 rdma {} 4420 {NQN}",
        guest.link_address(0)
    ))?;
    Ok(Served::Linux)
}

/// RDMA devices of a kind in both guests, at the link between them.
///
/// # Errors
/// They cannot be made.
pub fn devices(lab: &Lab, kind: &str) -> Result<(), Failure> {
    for guest in [lab.guest(0)?, lab.guest(1)?] {
        guest.sh(&format!("rdma_device {kind} link0 {}", guest.link_address(0)))?;
    }
    Ok(())
}

/// The size of packets at the link between the guests; RoCE takes the largest of 256, 512, 1024, 2048, 4096 that fits.
fn set_mtu(lab: &Lab, mtu: u16) -> Result<(), Failure> {
    for guest in [lab.guest(0)?, lab.guest(1)?] {
        guest.sh(&format!("ip link set link0 mtu {mtu}"))?;
    }
    Ok(())
}

/// The namespace, from the second guest.
///
/// # Errors
/// There is no first guest.
pub fn place(lab: &Lab) -> Result<String, Failure> {
    Ok(format!(
        "'nvme+rdma://{}:4420/{NQN}?nsid=1'",
        lab.guest(0)?.link_address(0)
    ))
}

fn pairing(
    lab: &Lab,
    kind: &str,
    serve: fn(&Lab) -> Result<Served<'_>, Failure>,
    load: fn(&Lab, u16) -> Result<(), Failure>,
) -> Result<(), Failure> {
    devices(lab, kind)?;
    for mtu in [4200, 1500] {
        set_mtu(lab, mtu)?;
        if mtu == 4200 {
            lab.note("packets of 4096 bytes");
        }
        let served = serve(lab)?;
        load(lab, mtu).map_err(|failure| failure.while_doing(format!("with an MTU of {mtu}")))?;
        served.stop()?;
        lab.guest(0)?.sh("nvmet_clear")?;
    }
    // What guests have when a test begins.
    set_mtu(lab, 4200)
}

fn linux_host(lab: &Lab, mtu: u16) -> Result<(), Failure> {
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    host.connect_over("rdma", &serving.link_address(0), 4420, NQN, "--nr-io-queues=2")?;
    let disk = host.namespace(NQN, 1)?;
    let jobs = [
        ("single", 1, "psync", "randwrite", "512/30:4k/40:64k/30", 0, 1),
        ("deep", 128, "libaio", "randrw", "512/20:4k/60:8k/10:16k/10", 4, 2),
        (
            "odd",
            16,
            "libaio",
            "randrw",
            "512/30:1536/30:7680/20:33280/20",
            8,
            1,
        ),
        ("large", 8, "libaio", "write", "128k/60:512k/20:1m/20", 12, 4),
    ];
    let mut script =
        "fio --direct=1 --verify=crc32c --verify_fatal=1 --group_reporting=0 --output-format=json --output=report".to_owned();
    for (name, depth, engine, pattern, sizes, offset, size) in &jobs {
        script += &format!(
            " --name={name} --filename={disk} --ioengine={engine} --iodepth={depth} --rw={pattern} --bssplit={sizes} \
             --offset={offset}M --size={size}M --randseed={mtu}"
        );
    }
    let report = report(host, &format!("{script}\ncat report"))?;
    for (name, .., size) in &jobs {
        let job = report["jobs"]
            .as_array()
            .and_then(|list| list.iter().find(|job| job["jobname"] == *name))
            .ok_or_else(|| Failure::new(format!("fio does not report on {name}: {report}")))?;
        let bytes = |direction: &str| job[direction]["io_bytes"].as_u64().unwrap_or(0);
        ensure!(
            job["error"] == 0 && bytes("write") > size << 18 && bytes("read") >= bytes("write"),
            "{name} of {size} MiB: {job}"
        );
    }
    host.sh(&format!("nvme disconnect -n {NQN}"))?;
    Ok(())
}

/// Runs fio and reads its report; it says on its first lines what it thinks of its options.
fn report(guest: &Vm, script: &str) -> Result<serde_json::Value, Failure> {
    let output = guest.sh_within(Duration::from_secs(150), script)?;
    let start = output.stdout.find('{').unwrap_or(0);
    Ok(serde_json::from_str(&output.stdout[start..])?)
}

fn our_host(lab: &Lab, mtu: u16) -> Result<(), Failure> {
    let (place, host) = (place(lab)?, lab.guest(1)?);
    for (queues, depth, size, ios) in [
        (1, 1, "512", 60),
        (2, 128, "4k", 600),
        (4, 16, "7680", 300),
        (2, 8, "64k", 120),
        (1, 4, "1m", 24),
    ] {
        let told = host
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "homi bench {place} --rw randrw --mix 40 --verify --bs {size} --ios {ios} --depth {depth} --queues {queues} --seed {mtu} \
                     --size 32M --quiet --json --connect-timeout 30s"
                ),
            )?
            .json()?;
        ensure!(
            told["verified"] == true && told["ios"] == ios && told["counters"]["aborts"] == 0,
            "{queues} queues of depth {depth} with {size}: homi bench says {told}"
        );
    }
    let told = host
        .sh_within(
            Duration::from_secs(100),
            &format!(
                "head -c 3000001 /dev/urandom >a
                 homi copy a {place} --to 40M --checksum crc32c --verify --json --connect-timeout 30s"
            ),
        )?
        .json()?;
    ensure!(
        told["verified"] == true && told["bytes_copied"] == 3_000_001,
        "homi copy says {told}"
    );
    Ok(())
}
