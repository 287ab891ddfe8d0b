//! The user-space NVMe driver over VFIO, on emulated drives behind a virtual IOMMU.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, Namespace, NvmeDrive, Output, Peer, Requirement, Sriov, Test, Transport, Vm,
};

use crate::vfio_drive::{UNPLUG, address, bind_step, returned, taken};

const DRIVES: Guest = Guest {
    iommu: true,
    drives: &[
        NvmeDrive {
            serial: "several",
            namespaces: &[
                Namespace::PLAIN,
                Namespace {
                    nsid: 5,
                    size_mib: 16,
                    block_size: 4096,
                },
            ],
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "memory",
            cmb_mib: 16,
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "functions",
            sriov: Some(Sriov::FOUR),
            ..NvmeDrive::PLAIN
        },
    ],
    user_network: false,
    ..Guest::SMALL
};

const NVME: Test = Test {
    transport: Transport::Pcie,
    peer: Peer::Drive,
    kernels: Kernels::Default,
    needs: &[Requirement::Vfio],
    guests: &[DRIVES],
    limit: Duration::from_secs(300),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "verified_io",
        kernels: Kernels::Every,
        feature: "user-space driver: verified I/O on several namespaces",
        run: |lab| io(lab, "several", "--way groups"),
        ..NVME
    },
    Test {
        name: "verified_io_by_devices",
        needs: &[Requirement::Vfio, Requirement::Module("iommufd")],
        run: |lab| io(lab, "several", "--way devices"),
        ..NVME
    },
    Test {
        name: "queues_in_a_memory_buffer",
        needs: &[Requirement::Vfio, Requirement::NvmeCmb],
        feature: "user-space driver: submission queues in the drive's memory buffer",
        run: |lab| io(lab, "memory", "--way groups --buffer"),
        ..NVME
    },
    Test {
        name: "drive_to_drive",
        needs: &[Requirement::Vfio, Requirement::NvmeCmb],
        feature: "user-space driver: drive to drive through a memory buffer",
        run: copy,
        ..NVME
    },
    Test {
        name: "virtual_functions",
        needs: &[Requirement::Vfio, Requirement::SriovNvme],
        feature: "user-space driver: two virtual functions at once",
        run: functions,
        ..NVME
    },
    Test {
        name: "reset_under_io",
        feature: "user-space driver: resets under I/O",
        run: resets,
        ..NVME
    },
    Test {
        name: "removal_under_io",
        needs: UNPLUG,
        feature: "user-space driver: a drive is unplugged under I/O",
        run: removal,
        ..NVME
    },
    Test {
        name: "the_kernel_and_back",
        feature: "user-space driver: the kernel's data, and back",
        run: kernel_and_back,
        ..NVME
    },
];

fn has(output: &Output, parts: &[&str]) -> Result<(), Failure> {
    for part in parts {
        ensure!(
            output.stdout.contains(part),
            "nothing was said of {part:?}: {}{}",
            output.stdout,
            output.stderr
        );
    }
    Ok(())
}

fn run(lab: &Lab, guest: &Vm, arguments: &str) -> Result<Output, Failure> {
    let said = guest.sh_within(Duration::from_secs(200), &format!("lab-vfio {arguments}"))?;
    lab.note(&said.stdout);
    Ok(said)
}

fn io(lab: &Lab, serial: &str, options: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, serial)?;
    let said = run(lab, guest, &format!("io {options} {drive}"))?;
    has(&said, &["verified: namespace 1", "interrupts true", "threads: "])?;
    if serial == "several" {
        has(&said, &["verified: namespace 5 of 4096 blocks of 4096 bytes"])?;
    } else {
        has(&said, &["buffer: 16777216 bytes"])?;
    }
    returned(guest, serial, &drive)
}

fn copy(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let (from, to) = (taken(guest, "several")?, taken(guest, "memory")?);
    let said = run(lab, guest, &format!("copy --way groups {from} {to}"))?;
    has(&said, &["copied: ", "8388608 bytes", "compared: "])?;
    returned(guest, "memory", &to)?;
    returned(guest, "several", &from)
}

fn functions(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh("modprobe vfio-pci enable_sriov=1; echo Y >/sys/module/vfio_pci/parameters/enable_sriov 2>/dev/null || true
              [ $(cat /sys/module/vfio_pci/parameters/enable_sriov) = Y ]")?;
    let drive = taken(guest, "functions")?;
    let said = run(lab, guest, &format!("functions --way groups {drive}"))?;
    has(
        &said,
        &[
            "without the token: ",
            "a token is wanted",
            "primary: sees what both wrote",
            "returned: 0",
        ],
    )?;
    returned(guest, "functions", &drive)
}

fn resets(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "several")?;
    let said = run(
        lab,
        guest,
        &format!("churn --way groups --seconds 15 --resets {drive}"),
    )?;
    has(&said, &["outcomes: ", "state: Ready", "verified: "])?;
    ensure!(
        !said.stdout.contains("resets: 0\n") && !said.stdout.contains(", 0 losses"),
        "nothing was reset under I/O: {}",
        said.stdout
    );
    returned(guest, "several", &drive)
}

fn removal(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "several")?;
    let job = guest.spawn(
        Duration::from_secs(150),
        &format!("exec lab-vfio churn --way groups --seconds 100 {drive}"),
    )?;
    job.wait_for_output("working", Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(2));
    guest.qmp("device_del", &serde_json::json!({ "id": "drive0" }))?;
    let said = job.wait(Duration::from_secs(90))?;
    lab.note(&said.stdout);
    has(&said, &["outcomes: ", "state: Removed"])?;
    // QEMU 10.0 does not always survive that an emulated drive goes while it has commands, and may never say that it is gone: what is shown
    // here is over, and the guest serves nobody else.
    guest.kill();
    Ok(())
}

/// What the kernel has written is what the driver reads, and the other way round: the driver copies blocks from one drive to another, and
/// the kernel checks the file system there.
fn kernel_and_back(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(
        "disk=$(drive_block several 1); mkfs.ext4 -q $disk 8M; mkdir -p /mnt/drive; mount $disk /mnt/drive
         head -c 3M /dev/urandom >/mnt/drive/file; sha256sum /mnt/drive/file | cut -d' ' -f1 >/run/lab/share/sum; umount /mnt/drive",
    )?;
    let (from, to) = (address(guest, "several")?, address(guest, "memory")?);
    guest.sh(&format!("{}; {}", bind_step(&from), bind_step(&to)))?;
    let said = run(lab, guest, &format!("clone --way groups {from} {to}"))?;
    has(&said, &["cloned: 8388608 bytes"])?;
    returned(guest, "memory", &to)?;
    returned(guest, "several", &from)?;
    guest
        .sh("for serial in several memory; do
                 disk=$(drive_block $serial 1); fsck.ext4 -fn $disk >&2; mount -o ro $disk /mnt/drive
                 [ $(sha256sum /mnt/drive/file | cut -d' ' -f1) = $(cat /run/lab/share/sum) ]; umount /mnt/drive
             done")
        .map(drop)
}
