//! The whole chain: a host, a fabric, our target, the user-space driver, an emulated drive behind a virtual IOMMU; and the same drive by URI,
//! without a target.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, Namespace, NvmeDrive, Peer, Requirement, Test, Transport, Vm,
};

use crate::vfio_drive::{returned, taken};

const NQN: &str = "nqn.2026-01.org.example:drive";

const DRIVES: Guest = Guest {
    iommu: true,
    drives: &[NvmeDrive {
        serial: "chain",
        namespaces: &[
            Namespace {
                nsid: 1,
                size_mib: 128,
                block_size: 512,
            },
            Namespace {
                nsid: 2,
                size_mib: 32,
                block_size: 4096,
            },
        ],
        ..NvmeDrive::PLAIN
    }],
    user_network: false,
    memory_mib: 1024,
    ..Guest::SMALL
};

const BUFFERS: Guest = Guest {
    iommu: true,
    drives: &[
        NvmeDrive {
            serial: "one",
            cmb_mib: 16,
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "two",
            cmb_mib: 16,
            ..NvmeDrive::PLAIN
        },
    ],
    user_network: false,
    memory_mib: 1024,
    ..Guest::SMALL
};

const CHAIN: Test = Test {
    peer: Peer::LinuxHost,
    kernels: Kernels::Default,
    guests: &[DRIVES],
    limit: Duration::from_secs(400),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "linux_host_over_rdma",
        feature: "a drive of the target's own: ext4 over RDMA, and the kernel's driver finds it again",
        transport: Transport::Rdma,
        needs: &[
            Requirement::Vfio,
            Requirement::SoftRoce,
            Requirement::Verbs,
            Requirement::Module("nvme-rdma"),
        ],
        run: |lab| file_system(lab, "rdma"),
        ..CHAIN
    },
    Test {
        name: "linux_host_over_tcp",
        feature: "a drive of the target's own: ext4 over TCP, and the kernel's driver finds it again",
        transport: Transport::Tcp,
        needs: &[Requirement::Vfio, Requirement::LinuxHost],
        run: |lab| file_system(lab, "tcp"),
        ..CHAIN
    },
    Test {
        name: "verified_io_over_tcp",
        feature: "a drive of the target's own: verified I/O of all sizes, several queues, both namespaces",
        transport: Transport::Tcp,
        peer: Peer::Own,
        needs: &[Requirement::Vfio],
        run: verified,
        ..CHAIN
    },
    Test {
        name: "drive_removed_under_the_target",
        feature: "a drive of the target's own is taken away under I/O, others go on",
        transport: Transport::Tcp,
        peer: Peer::Own,
        needs: &[Requirement::Vfio],
        run: removed,
        ..CHAIN
    },
    Test {
        name: "staged_in_the_drive",
        feature: "a drive of the target's own with data placed in its memory buffer: ext4 over TCP, read back by the kernel's driver",
        transport: Transport::Tcp,
        needs: &[Requirement::Vfio, Requirement::LinuxHost],
        guests: &[BUFFERS],
        run: staged,
        ..CHAIN
    },
    Test {
        name: "copied_inside",
        feature: "homi copy between drives through the memory buffer of one of them; homi list of drives",
        transport: Transport::Pcie,
        peer: Peer::Drive,
        needs: &[Requirement::Vfio],
        guests: &[BUFFERS],
        run: copied_inside,
        ..CHAIN
    },
    Test {
        name: "by_uri",
        feature: "nvme+pci: identify, verified I/O, copy",
        transport: Transport::Pcie,
        peer: Peer::Drive,
        needs: &[Requirement::Vfio],
        run: by_uri,
        ..CHAIN
    },
];

fn config(listener: &str, drive: &str) -> String {
    format!(
        "[node]\nshards = 2\n{listener}[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\ndrive = \"{drive}/1\"\n[[subsystem.namespace]]\nnsid = 2\ndrive = \"{drive}/2\"\n\
         [[subsystem.namespace]]\nnsid = 3\nram = \"16M\"\n"
    )
}

fn listener(transport: &str, address: &str) -> String {
    format!("[[listener]]\ntransport = \"{transport}\"\naddress = \"{address}\"\n")
}

fn file_system(lab: &Lab, transport: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let host = match transport {
        "rdma" => {
            guest.sh("soft_roce")?;
            "10.77.0.1"
        }
        _ => "127.0.0.1",
    };
    let drive = taken(guest, "chain")?;
    let target = guest.target(&config(&listener(transport, &format!("{host}:4420")), &drive))?;
    guest.connect_over(transport, host, 4420, NQN, "--nr-io-queues=2")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh_within(
        Duration::from_secs(250),
        &format!(
            "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {disk}
             mkdir -p /mnt/chain
             mount {disk} /mnt/chain
             cp -a /etc /mnt/chain/ 2>/dev/null || true
             head -c 20M /dev/urandom >large
             cp large /mnt/chain/
             umount /mnt/chain
             echo 3 >/proc/sys/vm/drop_caches
             fsck.ext4 -fn {disk}
             mount -o ro {disk} /mnt/chain
             cmp large /mnt/chain/large
             umount /mnt/chain
             nvme disconnect-all"
        ),
    )?;
    target.stop()?;
    // What is on the drive is what was written, whoever looks.
    returned(guest, "chain", &drive)?;
    guest
        .sh_within(
            Duration::from_secs(60),
            "disk=$(drive_block chain 1)
             fsck.ext4 -fn $disk
             mount -o ro $disk /mnt/chain
             cmp large /mnt/chain/large
             umount /mnt/chain",
        )
        .map(drop)
}

fn bench(guest: &Vm, place: &str, options: &str) -> Result<serde_json::Value, Failure> {
    let told = guest
        .sh_within(
            Duration::from_secs(120),
            &format!(
                "homi bench '{place}' --verify --quiet --json --connect-timeout 30s --command-timeout 60s {options}"
            ),
        )?
        .json()?;
    ensure!(told["verified"] == true, "homi bench says {told}");
    Ok(told)
}

fn verified(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "chain")?;
    let target = guest.target(&config(&listener("tcp", "127.0.0.1:4420"), &drive))?;
    for (nsid, sizes) in [(1, ["512", "4k", "1m"]), (2, ["4k", "20k", "256k"])] {
        for (size, depth) in sizes.into_iter().zip([1, 32, 4]) {
            bench(
                guest,
                &format!("nvme+tcp://127.0.0.1:4420/{NQN}?nsid={nsid}"),
                &format!("--rw randrw --bs {size} --iodepth {depth} --queues 2 --ios 120 --size 16M"),
            )?;
        }
    }
    ensure!(
        !target.log().contains(" ERROR "),
        "the target says: {}",
        target.log()
    );
    target.stop()?;
    returned(guest, "chain", &drive)
}

fn removed(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "chain")?;
    let target = guest.target(&config(&listener("tcp", "127.0.0.1:4420"), &drive))?;
    let place = |nsid| format!("nvme+tcp://127.0.0.1:4420/{NQN}?nsid={nsid}");
    let job = guest.spawn(
        Duration::from_secs(100),
        &format!(
            "exec homi bench '{}' --rw randrw --bs 4k --iodepth 8 --size 16M --time 60s --quiet",
            place(1)
        ),
    )?;
    bench(guest, &place(2), "--rw randrw --bs 4k --ios 50 --size 16M")?;
    // The target gives it up by itself: as long as it does not, the kernel waits with the removal.
    guest.sh(&format!(
        "timeout 30 sh -c 'echo 1 >/sys/bus/pci/devices/{drive}/remove'"
    ))?;
    guest.sh(&format!("[ ! -e /sys/bus/pci/devices/{drive} ]"))?;
    let output = job.try_wait(Duration::from_secs(90))?;
    ensure!(
        output.code != 0,
        "the benchmark says that all went well: {}",
        output.stdout
    );
    // Its neighbour in memory is there.
    bench(guest, &place(3), "--rw randrw --bs 4k --ios 50 --size 8M")?;
    ensure!(
        !target.log().contains("panicked"),
        "the target says: {}",
        target.log()
    );
    target.stop()?;
    // It comes back for the kernel.
    guest
        .sh("echo 1 >/sys/bus/pci/rescan; until_true 30 drive_block chain 1")
        .map(drop)
}

fn staged(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "one")?;
    let config = |transport: &str, placement: &str| {
        format!(
            "[node]\nshards = 2\n{}[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
             [[subsystem.namespace]]\nnsid = 1\ndrive = \"{drive}\"\nplacement = \"{placement}\"\n",
            listener(transport, "127.0.0.1:4420")
        )
    };
    let target = guest.target(&config("tcp", "cmb"))?;
    guest.connect_over("tcp", "127.0.0.1", 4420, NQN, "--nr-io-queues=2")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh_within(
        Duration::from_secs(250),
        &format!(
            "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {disk}
             mkdir -p /mnt/chain
             mount {disk} /mnt/chain
             head -c 24M /dev/urandom >large
             cp large /mnt/chain/
             umount /mnt/chain
             echo 3 >/proc/sys/vm/drop_caches
             fsck.ext4 -fn {disk}
             mount -o ro {disk} /mnt/chain
             cmp large /mnt/chain/large
             umount /mnt/chain
             nvme disconnect-all"
        ),
    )?;
    target.stop()?;
    let log = target.log();
    let through = log
        .lines()
        .find_map(|line| line.split_once(" bytes of data went through memory buffers of drives"))
        .and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok());
    // The file went there and came back.
    ensure!(
        through.is_some_and(|bytes| bytes >= 48 << 20),
        "the target says: {log}"
    );
    lab.note(&format!("bytes through the drive's memory buffer: {through:?}"));
    returned(guest, "one", &drive)?;
    guest
        .sh_within(
            Duration::from_secs(60),
            "disk=$(drive_block one 1)
             fsck.ext4 -fn $disk
             mount -o ro $disk /mnt/chain
             cmp large /mnt/chain/large
             umount /mnt/chain",
        )
        .map(drop)
}

fn copied_inside(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(
        "head -c 16M /dev/urandom >image; dd if=image of=$(drive_block one 1) bs=1M oflag=direct status=none",
    )?;
    let before = guest.sh("homi list nvme+pci:// --json")?.json()?;
    let drives = before["drives"].as_array().map_or(0, Vec::len);
    ensure!(
        drives == 2 && before["drives"][0]["usable"] == false && before["drives"][0]["driver"] == "nvme",
        "homi list says {before}"
    );
    let (one, two) = (taken(guest, "one")?, taken(guest, "two")?);
    let after = guest.sh("homi list nvme+pci://")?;
    ensure!(
        after.stdout.matches("bound to VFIO").count() == 2,
        "homi list says {}",
        after.stdout
    );
    let told = guest.sh(&format!("homi list nvme+pci://{one} --json"))?.json()?;
    let namespaces = &told["controllers"][0]["namespaces"];
    ensure!(
        namespaces[0]["nsid"] == 1 && namespaces[0]["serial"] == "one",
        "homi list says {told}"
    );
    // The destination's own buffer first; both ways, so that each drive is once the one that reaches over.
    for (from, to, at) in [(&one, &two, "0"), (&two, &one, "32M")] {
        let told = guest
            .sh_within(
                Duration::from_secs(100),
                &format!(
                    "homi copy nvme+pci://{from}/1 nvme+pci://{to}/1 --via auto --count 16M --to {at} --verify --json"
                ),
            )?
            .json()?;
        lab.note(&told.to_string());
        let via = &told["via"];
        ensure!(
            told["verified"] == true
                && via["memory"] == "cmb"
                && via["holder"] == "destination"
                && via["drive"] == to.as_str()
                && via["bounced"] == 0
                && via["mapped"] == 0,
            "homi copy says {told}"
        );
    }
    let said = guest.sh_fails(&format!("homi copy nvme+pci://{one}/1 image2 --via cmb"))?;
    ensure!(
        said.stderr.contains("is no drive of this process's"),
        "homi says {}",
        said.stderr
    );
    returned(guest, "one", &one)?;
    returned(guest, "two", &two)?;
    guest
        .sh(
            "dd if=$(drive_block two 1) bs=1M count=16 iflag=direct status=none | cmp - image
             dd if=$(drive_block one 1) bs=1M skip=32 count=16 iflag=direct status=none | cmp - image",
        )
        .map(drop)
}

fn by_uri(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "chain")?;
    let place = |nsid: u32| format!("nvme+pci://{drive}/{nsid}");
    let told = guest.sh(&format!("homi identify {} --json", place(1)))?.json()?;
    let namespace = &told["namespace"];
    ensure!(
        namespace["serial"] == "chain" && namespace["block_size"] == 512 && namespace["bytes"] == 128 << 20,
        "homi identify says {told}"
    );
    let several = guest.sh_fails(&format!("homi identify nvme+pci://{drive}"))?;
    ensure!(
        several.stderr.contains("choose one"),
        "homi says {}",
        several.stderr
    );
    for (nsid, size, depth) in [
        (1, "512", 1),
        (1, "4k", 64),
        (1, "512k", 4),
        (2, "4k", 16),
        (2, "128k", 8),
    ] {
        bench(
            guest,
            &place(nsid),
            &format!("--rw randrw --bs {size} --iodepth {depth} --ios 200 --size 16M"),
        )?;
    }
    guest.sh_within(
        Duration::from_secs(100),
        &format!(
            "head -c 8M /dev/urandom >image
             homi copy image {one} --verify --quiet
             homi copy {one} {two} --count 8M --quiet
             homi read {two} --count 8M >back
             cmp image back",
            one = place(1),
            two = place(2)
        ),
    )?;
    returned(guest, "chain", &drive)?;
    guest
        .sh("dd if=$(drive_block chain 1) bs=1M count=8 iflag=direct status=none | cmp - image")
        .map(drop)
}
