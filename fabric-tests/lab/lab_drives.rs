//! The lab itself: emulated drives with several namespaces, a controller memory buffer, virtual functions, and an IOMMU in front of them.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, Namespace, NvmeDrive, Peer, Requirement, Sriov, Test, Transport,
};

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
            queues: 4,
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "functions",
            sriov: Some(Sriov::FOUR),
            ..NvmeDrive::PLAIN
        },
    ],
    ..Guest::SMALL
};

const OF_THE_LAB: Test = Test {
    transport: Transport::Pcie,
    peer: Peer::Kernel,
    kernels: Kernels::Every,
    guests: &[DRIVES],
    limit: Duration::from_secs(120),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "drives_have_their_namespaces",
        run: namespaces,
        ..OF_THE_LAB
    },
    Test {
        name: "a_drive_has_a_controller_memory_buffer",
        needs: &[Requirement::NvmeCmb],
        run: memory_buffer,
        ..OF_THE_LAB
    },
    Test {
        name: "a_drive_has_virtual_functions",
        needs: &[Requirement::SriovNvme],
        run: virtual_functions,
        ..OF_THE_LAB
    },
    Test {
        name: "each_drive_is_alone_in_its_iommu_group",
        needs: &[Requirement::Vfio],
        run: iommu_groups,
        ..OF_THE_LAB
    },
    Test {
        name: "a_drive_is_unplugged",
        kernels: Kernels::Default,
        run: unplug,
        ..OF_THE_LAB
    },
];

fn namespaces(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    for (nsid, bytes, block) in [(1, 64 << 20, 512), (5, 16 << 20, 4096)] {
        let said = guest.sh(&format!(
            "disk=$(drive_block several {nsid}); blockdev --getsize64 --getss $disk
             head -c 1M /dev/urandom >a; dd if=a of=$disk bs=64k oflag=direct status=none
             dd if=$disk of=b bs=32k count=32 iflag=direct status=none; cmp a b"
        ))?;
        ensure!(
            said.stdout == format!("{bytes}\n{block}\n"),
            "namespace {nsid}: {}",
            said.stdout
        );
    }
    let listed = guest.sh("nvme list -o json")?.stdout;
    for serial in ["several", "memory", "functions"] {
        ensure!(
            listed.contains(serial),
            "nvme list does not have the drive {serial}: {listed}"
        );
    }
    let drives = guest.sh("lspci -n -d ::0108 | wc -l")?.stdout;
    ensure!(drives.trim() == "3", "lspci has {drives} drives instead of 3");
    Ok(())
}

fn memory_buffer(lab: &Lab) -> Result<(), Failure> {
    // A kernel without peer-to-peer DMA sees the buffer, says that it cannot publish it, and shows no attribute.
    let said = lab.guest(0)?.sh(
        "read -r first last _ < <(sed -n 3p /sys/bus/pci/devices/$(pci_address memory)/resource)
         echo $((last - first + 1))
         name=$(pci_nvme memory)
         cat /sys/class/nvme/$name/cmbsz 2>/dev/null || dmesg | grep \"$name: failed to register the CMB\"",
    )?;
    let (size, seen) = said.stdout.split_once('\n').unwrap_or_default();
    ensure!(
        size == "16777216",
        "the buffer's BAR has {size} bytes instead of 16 MiB"
    );
    ensure!(!seen.trim_end().ends_with("00000000"), "CMBSZ is 0: {seen}");
    Ok(())
}

fn virtual_functions(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let said = guest.sh(
        "cd /sys/bus/pci/devices/$(pci_address functions); cat sriov_totalvfs; echo 0 >sriov_drivers_autoprobe; echo 2 >sriov_numvfs
         ls -d virtfn* | wc -l; readlink virtfn0/iommu_group | wc -l; nvme list-secondary /dev/$(pci_nvme functions) | grep -c SCID
         echo 0 >sriov_numvfs",
    )?;
    ensure!(
        said.stdout == "4\n2\n1\n4\n",
        "functions, enabled ones, IOMMU group, secondary controllers: {}",
        said.stdout
    );
    Ok(())
}

fn iommu_groups(lab: &Lab) -> Result<(), Failure> {
    let said = lab.guest(0)?.sh("for serial in several memory functions; do
             ls /sys/bus/pci/devices/$(pci_address $serial)/iommu_group/devices | wc -l
         done")?;
    ensure!(
        said.stdout == "1\n1\n1\n",
        "devices in the drives' groups: {}",
        said.stdout
    );
    Ok(())
}

fn unplug(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.unplug_drive(1)?;
    guest
        .sh("gone() { ! (pci_nvme memory); }; until_true 30 gone; drive_block several 5")
        .map(drop)
}
