//! NVMe/RDMA in one guest over soft-RoCE: our target beside Linux's with the same host, our initiator beside Linux's host with the same target,
//! in turns. Emulation's absolute numbers mean nothing; the ratios and the processor time per I/O do. `scripts/lab measure rdma_ratios`

use std::time::Duration;

use fabric_tests::lab::{Failure, Guest, Kernels, Lab, Peer, Requirement, Test, Transport, Vm};
use serde_json::Value;

const OURS: &str = "nqn.2026-01.org.example:ours";
const LINUX: &str = "nqn.2026-01.org.example:linux";

/// The measurements of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "targets",
        peer: Peer::LinuxHost,
        run: targets,
        ..TEST
    },
    Test {
        name: "hosts",
        peer: Peer::LinuxTarget,
        run: hosts,
        ..TEST
    },
];

const TEST: Test = Test {
    needs: &[
        Requirement::SoftRoce,
        Requirement::Verbs,
        Requirement::Module("nvme-rdma"),
        Requirement::Module("nvmet-rdma"),
        Requirement::Tool("fio"),
    ],
    kernels: Kernels::Default,
    transport: Transport::Rdma,
    guests: &[Guest::SMALL],
    limit: Duration::from_secs(1500),
    fresh: true,
    measures: true,
    ..Test::DEFAULT
};

/// Rounds, of which the median counts.
const ROUNDS: usize = 5;
/// Seconds of one run.
const SECONDS: u64 = 4;
const DEPTHS: [u32; 3] = [1, 16, 64];

/// One run: I/Os per second, and processor time of the whole guest per I/O in microseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    iops: f64,
    cpu: f64,
}

/// A command of the guest, which prints a report in JSON, with the guest's processor time around it.
fn sample(guest: &Vm, command: &str) -> Result<Sample, Failure> {
    let output = guest.sh_within(
        Duration::from_secs(60),
        &format!(
            "busy() {{ read -r _ user nice system idle wait irq soft _ </proc/stat; echo $((user + nice + system + irq + soft)); }}
             before=$(busy)
             {command}
             echo $(($(busy) - before)) $(getconf CLK_TCK)"
        ),
    )?;
    // fio says on its first lines what it thinks of its options.
    let text = output.stdout.get(output.stdout.find('{').unwrap_or(0)..);
    let mut values = serde_json::Deserializer::from_str(text.unwrap_or_default()).into_iter::<Value>();
    let mut next = || {
        values
            .next()
            .and_then(Result::ok)
            .ok_or_else(|| Failure::new(format!("no figures: {}", output.stdout)))
    };
    let (report, ticks, per_second) = (next()?, next()?, next()?);
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let job = &report["jobs"][0];
    let iops = number(&report["iops"]) + number(&job["read"]["iops"]) + number(&job["write"]["iops"]);
    let seconds = f64::from(u32::try_from(SECONDS)?);
    Ok(Sample {
        iops,
        cpu: number(&ticks) / number(&per_second) / (iops * seconds) * 1e6,
    })
}

fn fio(disk: &str, pattern: &str, depth: u32) -> String {
    format!(
        "fio --name=load --filename={disk} --direct=1 --ioengine=io_uring --iodepth={depth} --rw={pattern} --bs=4k \
         --time_based --runtime={SECONDS} --output-format=json"
    )
}

fn homi(uri: &str, pattern: &str, depth: u32) -> String {
    format!("homi bench {uri} --rw {pattern} --bs 4k --depth {depth} --time {SECONDS}s --quiet --json")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs both in turns at each pattern and depth, and tells medians and ratios.
fn compare(
    lab: &Lab,
    guest: &Vm,
    names: [&str; 2],
    command: impl Fn(usize, &str, u32) -> String,
) -> Result<(), Failure> {
    lab.tell(&format!(
        "| 4 KiB | depth | {0}, IOPS | {1}, IOPS | ratio | {0}, CPU µs/IO | {1}, CPU µs/IO | ratio |\n|---|---|---|---|---|---|---|---|",
        names[0], names[1]
    ));
    for pattern in ["randread", "randwrite"] {
        for depth in DEPTHS {
            let mut samples = [Vec::new(), Vec::new()];
            for round in 0..ROUNDS {
                // Neither is always the first.
                for turn in 0..2 {
                    let which = (round + turn) % 2;
                    samples[which].push(sample(guest, &command(which, pattern, depth))?);
                }
            }
            let ratios = samples[0]
                .iter()
                .zip(&samples[1])
                .map(|(ours, theirs)| ours.iops / theirs.iops);
            let ratio = median(ratios.collect());
            let cpu_ratios = samples[0]
                .iter()
                .zip(&samples[1])
                .map(|(ours, theirs)| ours.cpu / theirs.cpu);
            let cpu_ratio = median(cpu_ratios.collect());
            let [ours, theirs] = samples.map(|samples| {
                let iops = median(samples.iter().map(|sample| sample.iops).collect());
                let cpu = median(samples.iter().map(|sample| sample.cpu).collect());
                (iops, cpu)
            });
            lab.tell(&format!(
                "| {pattern} | {depth} | {:.0} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {cpu_ratio:.2} |",
                ours.0, theirs.0, ours.1, theirs.1
            ));
        }
    }
    Ok(())
}

/// The kernel's target on port 4420, with a disk in memory.
fn serve_linux(guest: &Vm) -> Result<(), Failure> {
    guest
        .sh(&format!(
            "soft_roce
             nvmet_subsystem {LINUX}
             nvmet_namespace {LINUX} 1 $(ram_disk 64)
             nvmet_port 1 rdma 10.77.0.1 4420 {LINUX}"
        ))
        .map(drop)
}

fn targets(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve_linux(guest)?;
    let target = guest.target(&format!(
        "[node]\nshards = 1\n[[listener]]\ntransport = \"rdma\"\naddress = \"10.77.0.1:4421\"\n[[subsystem]]\nnqn = \"{OURS}\"\n\
         allow_any_host = true\n[[subsystem.namespace]]\nnsid = 1\nram = \"64M\"\nblock_size = 512\n"
    ))?;
    guest.connect_over("rdma", "10.77.0.1", 4421, OURS, "--nr-io-queues=1")?;
    guest.connect_over("rdma", "10.77.0.1", 4420, LINUX, "--nr-io-queues=1")?;
    let disks = [guest.namespace(OURS, 1)?, guest.namespace(LINUX, 1)?];
    compare(
        lab,
        guest,
        ["our target", "nvmet-rdma"],
        |which, pattern, depth| fio(disks.get(which).map_or("", String::as_str), pattern, depth),
    )?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

fn hosts(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve_linux(guest)?;
    guest.connect_over("rdma", "10.77.0.1", 4420, LINUX, "--nr-io-queues=1")?;
    let disk = guest.namespace(LINUX, 1)?;
    let places = [
        format!("'nvme+rdma://10.77.0.1:4420/{LINUX}?nsid=1'"),
        format!("file://{disk}"),
    ];
    lab.tell("with homi bench on both:");
    compare(
        lab,
        guest,
        ["our initiator", "nvme-rdma"],
        |which, pattern, depth| homi(places.get(which).map_or("", String::as_str), pattern, depth),
    )?;
    lab.tell("with fio on Linux's disk:");
    compare(
        lab,
        guest,
        ["our initiator", "nvme-rdma"],
        |which, pattern, depth| match which {
            0 => homi(places.first().map_or("", String::as_str), pattern, depth),
            _ => fio(&disk, pattern, depth),
        },
    )?;
    guest.sh("nvme disconnect-all").map(drop)
}
