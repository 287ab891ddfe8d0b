//! Linux's NVMe/RDMA host against our target, in one guest over RoCE in software: it finds us, connects, what it writes is what it reads,
//! whatever the size and the depth, and connections come and go.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Peer, Requirement, Test, Transport, Vm};

const NQN: &str = "nqn.2026-01.org.example:rdma";

const TEST: Test = Test {
    needs: &[
        Requirement::SoftRoce,
        Requirement::Verbs,
        Requirement::Module("nvme-rdma"),
        Requirement::Tool("nvme"),
        Requirement::Tool("fio"),
    ],
    kernels: Kernels::Every,
    transport: Transport::Rdma,
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(180),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discover_identify_connect",
        feature: "discover, identify, connect, read and write",
        run: discover_identify_connect,
        ..TEST
    },
    Test {
        name: "sizes_and_depths",
        feature: "verified I/O, 512 B to 1 MiB, depth 1 to 128, several queues",
        run: sizes_and_depths,
        ..TEST
    },
    Test {
        name: "ext4",
        needs: &[
            Requirement::SoftRoce,
            Requirement::Verbs,
            Requirement::Module("nvme-rdma"),
            Requirement::Tool("mkfs.ext4"),
        ],
        feature: "ext4 with fsck",
        run: ext4,
        kernels: Kernels::Default,
        ..TEST
    },
    Test {
        name: "connections_come_and_go",
        feature: "connections that come and go",
        run: connections_come_and_go,
        kernels: Kernels::Default,
        ..TEST
    },
    Test {
        name: "scarce_memory_delays_and_what_cannot_be_promised_is_refused",
        kernels: Kernels::Default,
        feature: "back-pressure, refusal of queues beyond what was set aside",
        run: scarce_memory,
        ..TEST
    },
    Test {
        name: "idle_and_connected_costs_nothing",
        kernels: Kernels::Default,
        feature: "an idle target sleeps",
        run: idle,
        ..TEST
    },
    Test {
        name: "the_device_is_removed",
        feature: "removal of the device under I/O; others go on",
        run: removal,
        ..TEST
    },
    Test {
        name: "ipv6_and_two_transports",
        feature: "IPv6, one subsystem over TCP and RDMA at once, discovery and referrals of both",
        run: ipv6_and_two_transports,
        ..TEST
    },
];

/// A listener and a subsystem with a namespace of memory in blocks of 512 bytes.
fn config(listener: &str, more: &str) -> String {
    format!(
        "{more}\n{listener}\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"128M\"\nblock_size = 512\n"
    )
}

fn listener(transport: &str, address: &str) -> String {
    format!("[[listener]]\ntransport = \"{transport}\"\naddress = \"{address}\"\n")
}

fn soft_roce(lab: &Lab) -> Result<&Vm, Failure> {
    let guest = lab.guest(0)?;
    guest.sh("soft_roce; modprobe -a nvme-rdma nvme-tcp")?;
    Ok(guest)
}

/// Nothing is connected any more, and the target knows of nothing that went wrong.
fn is_quiet(guest: &Vm, log: &str) -> Result<(), Failure> {
    let left = guest.sh(&format!("controllers {NQN}"))?.stdout;
    ensure!(left.is_empty(), "still connected after the disconnect: {left}");
    for word in ["WARN", "ERROR", "panicked"] {
        ensure!(!log.contains(word), "the target says: {log}");
    }
    Ok(())
}

fn discover_identify_connect(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), ""))?;
    let log = guest
        .sh("nvme discover -t rdma -a 10.77.0.1 -s 4420 -o json")?
        .json()?;
    let records = log["records"].as_array().cloned().unwrap_or_default();
    let ours = records.iter().find(|record| record["subnqn"] == NQN);
    ensure!(
        ours.is_some_and(|record| record["trtype"] == "rdma"
            && record["traddr"] == "10.77.0.1"
            && record["trsvcid"] == "4420"
            && record["adrfam"] == "ipv4"
            && record["rdma_qptype"] == "connected"
            && record["rdma_cms"] == "rdma-cm"),
        "the discovery log has no such record of {NQN}: {log}"
    );
    let controller = guest.connect_over("rdma", "10.77.0.1", 4420, NQN, "--nr-io-queues=2")?;
    let identify = guest
        .sh(&format!("nvme id-ctrl /dev/{controller} -o json"))?
        .json()?;
    for (field, wanted) in [
        ("ioccsz", (64 + 8192) / 16),
        ("iorcsz", 1),
        ("icdoff", 0),
        ("msdbd", 1),
        ("sgls", 1 | 1 << 2 | 1 << 20),
    ] {
        ensure!(
            identify[field] == wanted,
            "{field} is {} instead of {wanted}",
            identify[field]
        );
    }
    let disk = guest.namespace(NQN, 1)?;
    let script = format!(
        "head -c 4M /dev/urandom >a
         for step in '512 256k' '4k 1M' '8k 1M' '12k 1M' '128k 4M' '1M 4M'; do
             read -r size bytes <<<$step
             head -c $bytes a >part
             dd if=part of={disk} bs=$size oflag=direct status=none
             dd if={disk} of=b bs=1M count=4 iflag=direct status=none
             cmp part <(head -c $bytes b)
             dd if=/dev/zero of={disk} bs=1M count=4 oflag=direct status=none
         done
         dd if=a of={disk} bs=512k oflag=direct status=none
         for step in '512 256k' '4k 1M' '12k 1M' '1M 4M'; do
             read -r size bytes <<<$step
             dd if={disk} of=b bs=$size count=$bytes iflag=count_bytes,direct status=none
             cmp b <(head -c $bytes a)
         done"
    );
    guest.sh_within(Duration::from_secs(150), &script)?;
    guest.sh(&format!("nvme disconnect -d {controller}"))?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

fn sizes_and_depths(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), ""))?;
    guest.connect_over(
        "rdma",
        "10.77.0.1",
        4420,
        NQN,
        "--nr-io-queues=4 --queue-size=128",
    )?;
    let disk = guest.namespace(NQN, 1)?;
    let jobs = [
        ("single", 1, "psync", "randwrite", "512/30:4k/40:64k/30", 0, 1),
        ("deep", 128, "libaio", "randrw", "512/20:4k/50:8k/10:16k/20", 8, 4),
        // Around the boundary of capsules, and large ones.
        (
            "edges",
            8,
            "libaio",
            "write",
            "7680/25:8k/25:8704/25:1m/25",
            24,
            8,
        ),
        ("stream", 32, "libaio", "rw", "128k/50:1m/50", 48, 16),
    ];
    let mut script =
        "fio --direct=1 --verify=crc32c --verify_fatal=1 --output-format=terse --output=report".to_owned();
    for (name, depth, engine, pattern, sizes, offset, size) in jobs {
        script += &format!(
            " --name={name} --filename={disk} --ioengine={engine} --iodepth={depth} --rw={pattern} --bssplit={sizes} \
             --blockalign=512 --offset={offset}M --size={size}M"
        );
    }
    guest.sh_within(Duration::from_secs(150), &script)?;
    guest.sh("nvme disconnect-all")?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

fn ext4(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), ""))?;
    guest.connect_over("rdma", "10.77.0.1", 4420, NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh_within(
        Duration::from_secs(150),
        &format!(
            "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {disk}
             mkdir -p /mnt/rdma
             mount {disk} /mnt/rdma
             cp -a /usr/share/perl5 /mnt/rdma/ 2>/dev/null || cp -a /etc /mnt/rdma/perl5
             head -c 20M /dev/urandom >large
             cp large /mnt/rdma/
             umount /mnt/rdma
             echo 3 >/proc/sys/vm/drop_caches
             fsck.ext4 -fn {disk}
             mount -o ro {disk} /mnt/rdma
             cmp large /mnt/rdma/large
             if [ -d /usr/share/perl5 ]; then diff -r --no-dereference /usr/share/perl5 /mnt/rdma/perl5; fi
             umount /mnt/rdma"
        ),
    )?;
    guest.sh("nvme disconnect-all")?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

fn connections_come_and_go(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), ""))?;
    guest.sh_within(
        Duration::from_secs(150),
        &format!(
            "head -c 64k /dev/urandom >a
             for round in $(seq 20); do
                 nvme connect -t rdma -a 10.77.0.1 -s 4420 -n {NQN} --nr-io-queues=2
                 disk=$(namespace {NQN} 1)
                 dd if=a of=$disk bs=4k seek=$round oflag=direct status=none
                 dd if=$disk of=b bs=4k skip=$round count=16 iflag=direct status=none
                 cmp a b
                 nvme disconnect -n {NQN}
             done"
        ),
    )?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

fn ipv6_and_two_transports(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let listeners = [
        listener("rdma", "10.77.0.1:4420"),
        listener("rdma", "[fd77::1]:4420"),
        listener("tcp", "10.77.0.1:4420"),
    ];
    let referral = "[[discovery.referral]]\ntransport = \"rdma\"\naddress = \"10.77.0.9:4420\"\n";
    let target = guest.target(&config(&listeners.concat(), referral))?;
    for way in ["rdma -a fd77::1", "rdma -a 10.77.0.1", "tcp -a 10.77.0.1"] {
        let log = guest
            .sh(&format!("nvme discover -t {way} -s 4420 -o json"))?
            .json()?;
        let records = log["records"].as_array().cloned().unwrap_or_default();
        let mut seen: Vec<String> = records
            .iter()
            .map(|record| {
                format!(
                    "{} {} {}",
                    record["trtype"].as_str().unwrap_or_default(),
                    record["traddr"].as_str().unwrap_or_default(),
                    record["subtype"].as_str().unwrap_or_default()
                )
            })
            .collect();
        seen.sort();
        let wanted = [
            "rdma 10.77.0.1 nvme subsystem",
            "rdma 10.77.0.9 discovery subsystem referral",
            "rdma fd77::1 nvme subsystem",
            "tcp 10.77.0.1 nvme subsystem",
        ];
        ensure!(seen == wanted, "over {way} the log says: {seen:?}");
    }
    // What is written over one way is read over the other.
    guest.sh("head -c 4M /dev/urandom >a")?;
    guest.connect_over("rdma", "fd77::1", 4420, NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh(&format!(
        "dd if=a of={disk} bs=64k oflag=direct status=none; nvme disconnect -n {NQN}"
    ))?;
    guest.connect_over("tcp", "10.77.0.1", 4420, NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh(&format!(
        "dd if={disk} of=b bs=128k count=32 iflag=direct status=none; cmp a b; nvme disconnect -n {NQN}"
    ))?;
    // A listener less, and the rest goes on.
    target.reload(&config(&listeners[..1].concat(), ""))?;
    guest.sh_fails("nvme discover -t tcp -a 10.77.0.1 -s 4420")?;
    guest.sh_fails("nvme discover -t rdma -a fd77::1 -s 4420")?;
    guest.sh("nvme discover -t rdma -a 10.77.0.1 -s 4420")?;
    target.reload(&config(&listeners.concat(), referral))?;
    guest.sh("nvme discover -t rdma -a fd77::1 -s 4420")?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

/// Buffers for one large command at a time delay everything and break nothing; receives that are not there are refused, in words.
fn scarce_memory(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let scarce = "[node]\nshards = 1\nbuffers = \"1M\"\n[rdma]\nreceives = 200\nin_capsule = 0\n";
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), scarce))?;
    guest.connect_over(
        "rdma",
        "10.77.0.1",
        4420,
        NQN,
        "--nr-io-queues=1 --queue-size=128",
    )?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh_within(
        Duration::from_secs(120),
        &format!(
            "fio --direct=1 --verify=crc32c --verify_fatal=1 --output-format=terse --output=report --ioengine=libaio \
             --name=large --filename={disk} --iodepth=16 --rw=write --bs=1m --size=16M \
             --name=small --filename={disk} --iodepth=64 --rw=randrw --bssplit=4k/50:64k/50 --offset=32M --size=4M"
        ),
    )?;
    // 32 and 128 of 200 are taken: another host's admin queue still fits, its I/O queue does not.
    let refused = guest.sh_fails(&format!(
        "homi bench 'nvme+rdma://10.77.0.1:4420/{NQN}?nsid=1' --depth 127 --ios 1 --quiet --connect-timeout 20s"
    ))?;
    ensure!(
        refused.stderr.contains("resources"),
        "the refused host is told {}",
        refused.stderr
    );
    ensure!(
        target.log().contains("rdma.receives"),
        "the target does not say what it lacks: {}",
        target.log()
    );
    // Whoever is connected did not notice.
    guest.sh(&format!(
        "dd if={disk} of=/dev/null bs=1M count=4 iflag=direct status=none; nvme disconnect -n {NQN}"
    ))?;
    // What was promised is there again.
    guest.connect_over(
        "rdma",
        "10.77.0.1",
        4420,
        NQN,
        "--nr-io-queues=1 --queue-size=128",
    )?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

fn idle(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let target = guest.target(&config(&listener("rdma", "10.77.0.1:4420"), ""))?;
    guest.connect_over("rdma", "10.77.0.1", 4420, NQN, "--nr-io-queues=2")?;
    guest.namespace(NQN, 1)?;
    let ticks = guest
        .sh_within(
            Duration::from_secs(60),
            "sleep 3
             target=$(pgrep -x homi-target)
             busy() { read -r -a all </proc/$target/stat; echo $((all[13] + all[14])); }
             before=$(busy); sleep 12; echo $(($(busy) - before))",
        )?
        .stdout;
    // Of 1200. Keep-alives are among them, and whatever the machine does beside: an emulated processor that waits for a real one counts as
    // busy, ten times over where others are at work. A thread that polls would show as 1200.
    let ticks: u32 = ticks
        .trim()
        .parse()
        .map_err(|_| Failure::new(format!("no number of ticks: {ticks}")))?;
    lab.note(&format!("{ticks} of 1200 ticks of processor time while idle"));
    ensure!(ticks < 400, "the idle target used {ticks} of 1200 ticks");
    guest.sh("nvme disconnect-all")?;
    is_quiet(guest, &target.log())?;
    target.stop()
}

fn removal(lab: &Lab) -> Result<(), Failure> {
    let guest = soft_roce(lab)?;
    let listeners = [
        listener("rdma", "10.77.0.1:4420"),
        listener("tcp", "127.0.0.1:4420"),
    ];
    let target = guest.target(&config(&listeners.concat(), ""))?;
    guest.connect_over(
        "rdma",
        "10.77.0.1",
        4420,
        NQN,
        "--nr-io-queues=2 --ctrl-loss-tmo=1 --reconnect-delay=1",
    )?;
    let disk = guest.namespace(NQN, 1)?;
    // The kernel takes the device away at once, and waits for the end of every process that has it open where its driver cannot do
    // without (rxe): our target's connections end with the device, the command with our target.
    let removal = guest.spawn(
        Duration::from_secs(170),
        &format!(
            "dd if=/dev/zero of={disk} bs=64k count=100000 oflag=direct status=none 2>/dev/null & writer=$!
             sleep 2
             rdma link delete rxe0
             wait $writer || true"
        ),
    )?;
    guest.sh(&format!(
        "until_true 50 bash -c \"! grep -qs {NQN} /sys/class/nvme/nvme*/subsysnqn\""
    ))?;
    guest.connect_over("tcp", "127.0.0.1", 4420, NQN, "")?;
    guest.sh(&format!(
        "disk=$(namespace {NQN} 1); dd if=$disk of=/dev/null bs=1M count=4 iflag=direct status=none; nvme disconnect-all"
    ))?;
    let log = target.log();
    ensure!(
        log.matches("its RDMA device was removed").count() == 1 && !log.contains("panicked"),
        "the target says: {log}"
    );
    target.stop()?;
    removal.wait(Duration::from_secs(60)).map(drop)
}
