//! Linux's host against our target: verified load of many sizes and depths, by several jobs at once.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Kernels, Lab, Peer, Requirement, Test};

const NQN: &str = "nqn.2026-01.org.example:load";

const OF_LINUX: Test = Test {
    needs: &[Requirement::LinuxHost, Requirement::Tool("fio")],
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(200),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "mixed_sizes_and_depths",
        feature: "fio with verification, mixed sizes and depths",
        kernels: Kernels::Default,
        run: |lab| mixed(lab, ""),
        ..OF_LINUX
    },
    Test {
        name: "mixed_sizes_and_depths_with_digests",
        feature: "fio with verification, mixed sizes and depths, digests",
        run: |lab| mixed(lab, "-g -G"),
        ..OF_LINUX
    },
    Test {
        name: "damage_is_found",
        kernels: Kernels::Default,
        run: damage_is_found,
        ..OF_LINUX
    },
];

fn config(lab: &Lab) -> String {
    let path = |name: &str| lab.scratch().join(name).display().to_string();
    format!(
        r#"
[[listener]]
address = "127.0.0.1:{{port}}"
advertise = "{}"
[[subsystem]]
nqn = "{NQN}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
path = "{}"
create = "24M"
block_size = 4096
[[subsystem.namespace]]
nsid = 2
path = "{}"
create = "24M"
block_size = 512
[[subsystem.namespace]]
nsid = 3
ram = "24M"
block_size = 512
"#,
        HostTarget::GUESTS_SEE,
        path("backing1"),
        path("backing2"),
    )
}

fn mixed(lab: &Lab, options: &str) -> Result<(), Failure> {
    let target = lab.target(&config(lab))?;
    let guest = lab.guest(0)?;
    guest.connect("10.0.2.2", target.port(), NQN, options)?;
    let [first, second, third] = [
        guest.namespace(NQN, 1)?,
        guest.namespace(NQN, 2)?,
        guest.namespace(NQN, 3)?,
    ];
    let jobs = [
        // Deep, small and medium.
        (
            "deep",
            &first,
            "libaio",
            32,
            "randrw",
            "4k/70:16k/20:128k/10",
            0,
            5,
        ),
        // One at a time.
        ("single", &first, "psync", 1, "randwrite", "4k/50:64k/50", 8, 2),
        // Around the boundaries of capsules (16 KiB) and transfers (1 MiB).
        (
            "edges",
            &first,
            "io_uring",
            4,
            "write",
            "16k/40:20k/30:1020k/15:1m/15",
            12,
            6,
        ),
        // Blocks of 512 bytes, odd numbers of them.
        (
            "odd",
            &second,
            "libaio",
            16,
            "randrw",
            "512/30:1536/30:7680/20:33280/20",
            0,
            2,
        ),
        ("runs", &second, "libaio", 8, "rw", "8k/50:100k/50", 8, 3),
        (
            "memory",
            &third,
            "io_uring",
            64,
            "randrw",
            "512/20:4k/50:64k/30",
            0,
            3,
        ),
        ("stream", &third, "libaio", 2, "write", "1m/60:4m/40", 8, 8),
    ];
    let mut script = "fio --direct=1 --verify=crc32c --verify_fatal=1 --group_reporting=0 --output-format=json --output=report"
        .to_owned();
    for (name, disk, engine, depth, pattern, sizes, offset, size) in &jobs {
        script += &format!(
            " --name={name} --filename={disk} --ioengine={engine} --iodepth={depth} --rw={pattern} --bssplit={sizes} \
             --offset={offset}M --size={size}M"
        );
    }
    script += "\ncat report";
    let output = guest.sh_within(Duration::from_secs(150), &script)?;
    // fio says on its first lines what it thinks of its options.
    let start = output.stdout.find('{').unwrap_or(0);
    let report: serde_json::Value = serde_json::from_str(&output.stdout[start..])?;
    for (name, .., size) in &jobs {
        let job = report["jobs"]
            .as_array()
            .and_then(|list| list.iter().find(|job| job["jobname"] == *name));
        let job = job.ok_or_else(|| Failure::new(format!("fio does not report on {name}: {report}")))?;
        let bytes = |direction: &str| job[direction]["io_bytes"].as_u64().unwrap_or(0);
        let written = bytes("write");
        ensure!(job["error"] == 0, "fio has the error {} in {name}", job["error"]);
        // What was written is read again; of mixed jobs, a part is reads from the beginning.
        ensure!(
            written > size << 18 && bytes("read") >= written,
            "{name} wrote {written} bytes and read {} of {size} MiB",
            bytes("read")
        );
    }
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

/// What fio says of right data is worth something only if it says otherwise of wrong data.
fn damage_is_found(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab))?;
    let guest = lab.guest(0)?;
    guest.connect("10.0.2.2", target.port(), NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    let fio = format!(
        "fio --name=load --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=write --bs=64k --size=4M \
         --verify=crc32c --verify_fatal=1 --output=report"
    );
    guest.sh(&format!("{fio} --do_verify=0"))?;
    guest.sh(&format!("{fio} --verify_only"))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(lab.scratch().join("backing1"))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_234_567)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, 1_234_567)?;
    file.sync_all()?;
    guest.sh_fails(&format!("{fio} --verify_only"))?;
    target.stop()
}
