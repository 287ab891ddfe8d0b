//! The OS path: a drive behind the kernel's own driver, reached by command passthrough, as a block device and by files on it, and what our target
//! makes of it.

use std::fmt::Write as _;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, Namespace, NvmeDrive, Output, Peer, Test, Transport, Vm,
};
use serde_json::Value;

const DRIVE: Guest = Guest {
    drives: &[NvmeDrive {
        serial: "os",
        namespaces: &[
            Namespace::PLAIN,
            Namespace {
                nsid: 2,
                size_mib: 32,
                block_size: 4096,
            },
        ],
        ..NvmeDrive::PLAIN
    }],
    ..Guest::SMALL
};

const OF_THE_DRIVE: Test = Test {
    transport: Transport::Pcie,
    peer: Peer::Drive,
    kernels: Kernels::Default,
    guests: &[DRIVE],
    limit: Duration::from_secs(240),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "commands_pass_through_the_kernels_driver",
        kernels: Kernels::Every,
        feature: "passthrough: every command and status of a drive behind the kernel's driver",
        run: commands,
        ..OF_THE_DRIVE
    },
    Test {
        name: "verified_io_of_all_sizes_and_depths",
        feature: "passthrough: verified I/O, one block to the largest transfer, depth 1 to 64",
        run: verified,
        ..OF_THE_DRIVE
    },
    Test {
        name: "homi_works_on_the_character_device",
        feature: "passthrough: homi identify, list, read, write",
        run: cli,
        ..OF_THE_DRIVE
    },
    Test {
        name: "paths_to_one_namespace_are_compared",
        feature: "homi compare: kernel block, kernel passthrough, file, fabric",
        run: compare,
        ..OF_THE_DRIVE
    },
    Test {
        name: "data_in_a_dma_buf_is_refused_by_name",
        kernels: Kernels::Every,
        run: dma_buf,
        ..OF_THE_DRIVE
    },
];

/// Shell functions of these tests.
const FUNCTIONS: &str = "generic() { local d; d=$(drive_block os $1); echo /dev/ng${d#/dev/nvme}; }\n";

/// Runs a script in the guest with `homi`, `target` and `os_path` as programs of this checkout.
fn sh(lab: &Lab, guest: &Vm, script: &str) -> Result<Output, Failure> {
    guest.sh_within(Duration::from_secs(120), &format!("{}{script}", prelude(lab)))
}

fn prelude(lab: &Lab) -> String {
    let mut text = FUNCTIONS.to_owned();
    for (name, program) in [
        ("homi", "homi"),
        ("target", "homi-target"),
        ("os_path", "os-path"),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}() {{ {} \"$@\"; }}", lab.program(program).display());
    }
    text
}

fn json(output: &Output) -> Result<Value, Failure> {
    serde_json::from_str(&output.stdout)
        .map_err(|error| Failure::new(format!("this is no JSON ({error}): {}", output.stdout)))
}

fn commands(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    for nsid in [1, 2] {
        let said = sh(
            lab,
            guest,
            &format!("os_path commands nvme+kernel://$(generic {nsid})"),
        )?;
        ensure!(
            said.stdout.lines().count() > 25,
            "namespace {nsid}: too little holds: {}",
            said.stdout
        );
    }
    Ok(())
}

fn verified(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    for (nsid, sizes) in [
        (1, ["512", "4k", "64k", "252k"]),
        (2, ["4k", "12k", "128k", "256k"]),
    ] {
        for (size, depth) in sizes.into_iter().zip([64, 32, 8, 1]) {
            let said = sh(
                lab,
                guest,
                &format!(
                    "homi bench nvme+kernel://$(generic {nsid}) --rw randrw --verify --bs {size} --depth {depth} --ios 400 --json"
                ),
            )?;
            let object = json(&said)?;
            let checked = object["blocks_verified"].as_u64().unwrap_or(0);
            ensure!(
                object["verified"] == true && checked > 0,
                "namespace {nsid}, {size}: {object}"
            );
        }
    }
    // In steady state nothing is allocated, and a batch is one system call, which also collects what is done.
    let said = sh(
        lab,
        guest,
        "homi compare nvme+kernel://$(generic 2) --depth 32 --batch 8 --time 2s --warmup 1s --rounds 1 --json",
    )?;
    let object = json(&said)?;
    let per_io = &object["paths"][0]["per_io"];
    lab.note(&format!("per I/O at depth 32: {per_io}"));
    ensure!(per_io["allocations"] == 0.0, "allocations per I/O: {per_io}");
    let calls = per_io["queue_system_calls"].as_f64().unwrap_or(f64::MAX);
    ensure!(calls < 0.3, "system calls per I/O in batches of 8: {per_io}");
    Ok(())
}

fn cli(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let said = sh(lab, guest, "homi identify nvme+kernel://$(generic 2) --json")?;
    let namespace = &json(&said)?["namespace"];
    ensure!(
        namespace["nsid"] == 2
            && namespace["blocks"] == (32 << 20) / 4096
            && namespace["block_size"] == 4096
            && namespace["serial"] == "os",
        "{namespace}"
    );
    lab.note(&format!("{namespace}"));
    sh(
        lab,
        guest,
        "for nsid in 1 2; do
             uri=nvme+kernel://$(generic $nsid) disk=$(drive_block os $nsid)
             head -c 3M /dev/urandom >a
             homi write $uri --input a --offset 1M
             dd if=$disk of=b bs=1M skip=1 count=3 iflag=direct status=none; cmp a b
             head -c 2M /dev/urandom >c
             dd if=c of=$disk bs=1M seek=8 oflag=direct conv=fsync status=none
             homi read $uri --offset 8M --count 2M --output d; cmp c d
             homi list $uri
             [ $(homi identify $uri --raw | wc -c) = 4096 ]
             [ $(homi identify $uri --raw --controller | wc -c) = 4096 ]
         done
         homi identify nvme+kernel://$(generic 1) --controller | grep -q QEMU",
    )?;
    // What cannot be used says what is missing.
    for (uri, text) in [
        (
            "nvme+kernel://$(drive_block os 1)",
            "the character device of the same namespace",
        ),
        ("file://$(generic 1)", "use nvme+kernel:///dev/ng"),
        ("nvme+kernel:///dev/$(pci_nvme os)", "no generic character device"),
        ("nvme+kernel:///dev/ng99n1", "does not exist"),
    ] {
        let said = guest.sh_fails(&format!("{}homi identify {uri}", prelude(lab)))?;
        ensure!(said.stderr.contains(text), "{uri}: {}", said.stderr);
    }
    let said = guest.sh_fails(&format!(
        "{}io=$(cat /proc/sys/kernel/io_uring_disabled); trap \"echo $io >/proc/sys/kernel/io_uring_disabled\" EXIT
         echo 2 >/proc/sys/kernel/io_uring_disabled; homi identify nvme+kernel://$(generic 1)",
        prelude(lab)
    ))?;
    ensure!(
        said.stderr.contains("io_uring is not available") && said.stderr.contains("io_uring_disabled"),
        "{}",
        said.stderr
    );
    Ok(())
}

/// Every path of a comparison, by its kind.
fn paths(said: &Output) -> Result<Vec<(String, Value)>, Failure> {
    let object = json(said)?;
    let paths = object["paths"].as_array().cloned().unwrap_or_default();
    Ok(paths
        .into_iter()
        .map(|path| (path["kind"].as_str().unwrap_or("?").to_owned(), path))
        .collect())
}

fn compare(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    // Writes, each path checking its own: found by what was given.
    let said = sh(
        lab,
        guest,
        "homi compare nvme+kernel://$(generic 2) --find --rw randrw --verify --depth 8 --ios 600 --rounds 3 --json",
    )?;
    let all = paths(&said)?;
    let kinds: Vec<&str> = all.iter().map(|(kind, _)| kind.as_str()).collect();
    ensure!(
        kinds == ["kernel commands", "kernel block"],
        "the paths of namespace 2 are {kinds:?}"
    );
    for (kind, path) in &all {
        ensure!(
            path["usable"] == true && path["ios"] == 600 && path["blocks_verified"].as_u64() > Some(0),
            "{kind}: {path}"
        );
    }

    // A mounted namespace, a file on it, and our target over it: reads beside each other; writes are refused with the reason.
    let said = sh(
        lab,
        guest,
        "disk=$(drive_block os 1); mkfs.ext4 -q $disk; mkdir -p /mnt/os; mount $disk /mnt/os
         trap 'kill $server || true; wait $server || true; umount /mnt/os' EXIT
         dd if=/dev/urandom of=/mnt/os/file bs=1M count=8 conv=fsync status=none
         cat >target.toml <<END
[[listener]]
address = \"127.0.0.1:4420\"
[[subsystem]]
nqn = \"nqn.2026-01.org.example:os\"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
path = \"$(generic 1)\"
read_only = true
END
         target serve --config target.toml >target.log 2>&1 & server=$!
         until_true 30 grep -q serving target.log
         homi compare nvme+kernel://$(generic 1) file:///mnt/os/file \
             nvme+tcp://127.0.0.1:4420/nqn.2026-01.org.example:os --find --time 1s --rounds 2 >table
         cat table >&2
         homi compare nvme+kernel://$(generic 1) file:///mnt/os/file \
             nvme+tcp://127.0.0.1:4420/nqn.2026-01.org.example:os --find --time 2s --rounds 2 --json
         ! homi compare nvme+kernel://$(generic 1) --find --rw randwrite --ios 10 2>refused
         grep -q 'mounted at /mnt/os' refused",
    )?;
    lab.note(&said.stderr);
    let all = paths(&said)?;
    let kinds: Vec<&str> = all.iter().map(|(kind, _)| kind.as_str()).collect();
    ensure!(
        kinds == ["kernel commands", "file", "tcp", "kernel block"],
        "the paths of namespace 1 are {kinds:?}"
    );
    for (kind, path) in &all {
        let measured = path["usable"] == true
            && path["iops"].as_f64() > Some(0.0)
            && path["latency_ns"]["p99_9"].as_u64() > Some(0)
            && path["per_io"]["system_ns"].is_number();
        ensure!(measured, "{kind}: {path}");
    }

    // Our target over a namespace that it has to itself: verified writes through it, seen by the drive.
    sh(
        lab,
        guest,
        "trap 'kill $server || true; wait $server || true' EXIT
         cat >target.toml <<END
[[listener]]
address = \"127.0.0.1:4421\"
[[subsystem]]
nqn = \"nqn.2026-01.org.example:own\"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
path = \"$(generic 2)\"
END
         target serve --config target.toml >target.log 2>&1 & server=$!
         until_true 30 grep -q serving target.log
         uri=nvme+tcp://127.0.0.1:4421/nqn.2026-01.org.example:own
         homi bench $uri --rw randrw --verify --bs 64k --depth 16 --ios 300 --quiet
         head -c 4M /dev/urandom >a
         homi write $uri --input a --offset 4M
         dd if=$(drive_block os 2) of=b bs=1M skip=4 count=4 iflag=direct status=none; cmp a b
         mkdir -p /mnt/claimed
         if mount $(drive_block os 2) /mnt/claimed 2>mounted; then umount /mnt/claimed; exit 1; fi
         grep -qi busy mounted",
    )?;
    Ok(())
}

fn dma_buf(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let said = sh(
        lab,
        guest,
        "modprobe udmabuf 2>/dev/null || true; [ -e /dev/udmabuf ] || fail 'this kernel has no udmabuf'
         for uri in nvme+kernel://$(generic 1) file://$(drive_block os 1); do os_path dma-buf $uri; done
         os_path dma-buf ram://1M",
    )?;
    let lines: Vec<&str> = said.stdout.lines().collect();
    lab.note(&said.stdout);
    ensure!(lines.len() == 3, "{}", said.stdout);
    for line in lines.iter().take(2) {
        ensure!(
            line.contains("lacks io_uring's registered buffers of kind dma-buf")
                || line.contains("this build does not use"),
            "{line}"
        );
    }
    ensure!(
        lines
            .last()
            .is_some_and(|line| line.contains("memory of this process")),
        "{}",
        said.stdout
    );
    Ok(())
}
