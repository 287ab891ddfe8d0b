//! A machine in a folder: two sockets, a switch, a drive with virtual functions, a drive with a mounted partition.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::{PciAddress, PciIdentity};

struct Machine {
    root: tempfile::TempDir,
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in [
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers/nvme",
            "sys/class/block",
            "proc/self",
        ] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    /// `place` is below `sys/devices` and ends with the address.
    fn function(&self, place: &str, class: u32, group: Option<u32>) {
        let address = place.rsplit('/').next().unwrap();
        let folder = self.path().join("sys/devices").join(place);
        fs::create_dir_all(&folder).unwrap();
        symlink(&folder, self.path().join("sys/bus/pci/devices").join(address)).unwrap();
        for (name, value) in [
            ("vendor", "0x1b36".to_owned()),
            ("device", "0x0010".to_owned()),
            ("subsystem_vendor", "0x1af4".to_owned()),
            ("subsystem_device", "0x1100".to_owned()),
            ("revision", "0x02".to_owned()),
            ("class", format!("{class:#08x}")),
            (
                "numa_node",
                if place.starts_with("pci0000:80") { "1" } else { "0" }.to_owned(),
            ),
        ] {
            fs::write(folder.join(name), value + "\n").unwrap();
        }
        if let Some(group) = group {
            let members = self
                .path()
                .join(format!("sys/kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&members).unwrap();
            symlink(&folder, members.join(address)).unwrap();
            symlink(members.parent().unwrap(), folder.join("iommu_group")).unwrap();
        }
    }

    fn acs(&self, place: &str, control: u16) {
        let mut config = vec![0_u8; 4096];
        config[0x100..0x104].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
        config[0x106..0x108].copy_from_slice(&control.to_le_bytes());
        fs::write(self.path().join("sys/devices").join(place).join("config"), config).unwrap();
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.path())
    }
}

const PORT: u32 = 0x06_04_00;

fn machine() -> Machine {
    let machine = Machine::new();
    let switch = "pci0000:00/0000:00:01.0/0000:01:00.0";
    machine.function("pci0000:00/0000:00:01.0", PORT, None);
    machine.function(switch, PORT, None);
    for (port, bus) in [("0000:02:00.0", 3), ("0000:02:01.0", 4)] {
        machine.function(&format!("{switch}/{port}"), PORT, None);
        machine.acs(&format!("{switch}/{port}"), 0);
        machine.function(
            &format!("{switch}/{port}/0000:0{bus}:00.0"),
            PciIdentity::NVME_CLASS,
            Some(bus),
        );
    }
    machine.function("pci0000:00/0000:00:02.0", PORT, None);
    machine.function(
        "pci0000:00/0000:00:02.0/0000:05:00.0",
        PciIdentity::NVME_CLASS,
        Some(7),
    );
    machine.function("pci0000:00/0000:00:02.0/0000:05:00.1", 0x01_06_01, Some(7));
    machine.function("pci0000:80/0000:80:01.0", PORT, None);
    machine.function(
        "pci0000:80/0000:80:01.0/0000:81:00.0",
        PciIdentity::NVME_CLASS,
        None,
    );
    machine
}

#[test]
fn functions_are_found_where_they_are() {
    let machine = machine();
    let sysfs = machine.sysfs();
    let all: Vec<String> = sysfs
        .nvme_functions()
        .unwrap()
        .iter()
        .map(|function| function.address.to_string())
        .collect();
    assert_eq!(
        all,
        ["0000:03:00.0", "0000:04:00.0", "0000:05:00.0", "0000:81:00.0"]
    );
    let drive = sysfs.function(address("0000:03:00.0")).unwrap();
    assert_eq!(drive.identity.class, PciIdentity::NVME_CLASS);
    assert_eq!((drive.identity.vendor, drive.identity.revision), (0x1b36, 2));
    assert_eq!(drive.root_port(), Some(address("0000:00:01.0")));
    let ports: Vec<String> = drive
        .switch_ports()
        .iter()
        .map(|port| port.address.to_string())
        .collect();
    assert_eq!(ports, ["0000:01:00.0", "0000:02:00.0"]);
    assert_eq!(drive.host_bridge, "pci0000:00");
    assert_eq!(
        (drive.numa_node, &drive.driver, &drive.link),
        (Some(0), &None, &None)
    );
    let shared = sysfs
        .function(address("0000:05:00.0"))
        .unwrap()
        .iommu_group
        .unwrap();
    assert_eq!(shared.number, 7);
    assert_eq!(shared.members, [address("0000:05:00.0"), address("0000:05:00.1")]);
    assert!(!shared.is_fake);
    assert_eq!(sysfs.function(address("0000:81:00.0")).unwrap().iommu_group, None);
    assert!(matches!(
        sysfs.function(address("0000:99:00.0")),
        Err(TopologyError::Absent { .. })
    ));
    assert!(matches!(
        Sysfs::at(machine.path().join("proc")).functions(),
        Err(TopologyError::Unreadable { .. })
    ));
}

#[test]
fn near_is_less_than_far() {
    let machine = machine();
    let sysfs = machine.sysfs();
    let distance = |a: &str, b: &str| sysfs.distance(address(a), address(b)).unwrap();
    let same = distance("0000:05:00.0", "0000:05:00.1");
    let switch = distance("0000:03:00.0", "0000:04:00.0");
    let bridge = distance("0000:03:00.0", "0000:05:00.0");
    let far = distance("0000:03:00.0", "0000:81:00.0");
    assert_eq!(same.meeting, Meeting::Device);
    assert_eq!(switch.meeting, Meeting::Switch(address("0000:01:00.0")));
    assert_eq!((switch.hops, switch.redirected), (4, Some(false)));
    assert_eq!(bridge.meeting, Meeting::HostBridge("pci0000:00".into()));
    assert_eq!((bridge.hops, bridge.redirected), (6, None));
    assert_eq!(far.meeting, Meeting::Processors);
    assert!(same < switch && switch < bridge && bridge < far);
    machine.acs("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0", 0x1d);
    assert_eq!(distance("0000:03:00.0", "0000:04:00.0").redirected, Some(true));
}

#[test]
fn virtual_functions_belong_to_their_physical_one() {
    let machine = machine();
    let port = "pci0000:00/0000:00:02.0";
    machine.function(&format!("{port}/0000:05:02.1"), PciIdentity::NVME_CLASS, Some(9));
    let at = |name: &str| machine.path().join("sys/bus/pci/devices").join(name);
    fs::write(at("0000:05:00.0").join("sriov_totalvfs"), "4\n").unwrap();
    symlink(at("0000:05:02.1"), at("0000:05:00.0").join("virtfn0")).unwrap();
    symlink(at("0000:05:00.0"), at("0000:05:02.1").join("physfn")).unwrap();
    let sysfs = machine.sysfs();
    let sriov = sysfs.function(address("0000:05:00.0")).unwrap().sriov.unwrap();
    assert_eq!((sriov.total, sriov.functions), (4, vec![address("0000:05:02.1")]));
    let function = sysfs.function(address("0000:05:02.1")).unwrap();
    assert_eq!(function.physical, Some(address("0000:05:00.0")));
    assert_eq!(
        sysfs
            .distance(address("0000:05:02.1"), address("0000:05:00.0"))
            .unwrap()
            .meeting,
        Meeting::Device
    );
}

#[test]
fn uses_of_disks_are_found() {
    let machine = machine();
    let drive = machine.path().join("sys/bus/pci/devices/0000:03:00.0");
    let controller = drive.join("nvme/nvme0");
    let disk = controller.join("nvme0n1");
    for (part, number) in [
        ("nvme0n1p1", "259:1"),
        ("nvme0n1p2", "259:2"),
        ("nvme0n1p3", "259:3"),
    ] {
        fs::create_dir_all(disk.join(part).join("holders")).unwrap();
        fs::write(disk.join(part).join("partition"), "1\n").unwrap();
        fs::write(disk.join(part).join("dev"), format!("{number}\n")).unwrap();
    }
    fs::write(disk.join("dev"), "259:0\n").unwrap();
    fs::write(disk.join("size"), "131072\n").unwrap();
    fs::create_dir_all(machine.path().join("sys/class/nvme")).unwrap();
    symlink(&controller, machine.path().join("sys/class/nvme/nvme0")).unwrap();
    symlink(&disk, machine.path().join("sys/class/block/nvme0n1")).unwrap();
    let mapper = machine.path().join("sys/class/block/dm-0/dm");
    fs::create_dir_all(&mapper).unwrap();
    fs::write(mapper.join("name"), "group-home\n").unwrap();
    symlink(
        machine.path().join("sys/class/block/dm-0"),
        disk.join("nvme0n1p2/holders/dm-0"),
    )
    .unwrap();
    symlink(
        machine.path().join("sys/bus/pci/drivers/nvme"),
        drive.join("driver"),
    )
    .unwrap();
    let look = || machine.sysfs().function(address("0000:03:00.0")).unwrap();
    fs::write(
        machine.path().join("proc/swaps"),
        "Filename Type\n/dev/nvme0n1p3 partition 1 0 -2\n",
    )
    .unwrap();
    fs::write(
        machine.path().join("proc/self/mountinfo"),
        "22 1 0:20 / /proc rw - proc proc rw\n30 1 259:1 / /data rw,noatime shared:1 - ext4 /dev/nvme0n1p1 rw\n\
         31 1 0:44 / /other rw - btrfs /dev/nvme0n1 rw\n",
    )
    .unwrap();
    fs::create_dir_all(machine.path().join("run/udev/data")).unwrap();
    fs::write(
        machine.path().join("run/udev/data/b259:2"),
        "S:x\nE:ID_FS_TYPE=LVM2_member\n",
    )
    .unwrap();
    fs::write(machine.path().join("run/udev/data/b259:1"), "E:ID_FS_TYPE=ext4\n").unwrap();
    let function = look();
    assert_eq!(function.driver.as_deref(), Some("nvme"));
    assert_eq!(function.controllers, ["nvme0"]);
    assert_eq!(function.disks.len(), 1);
    assert_eq!(function.disks[0].size, 64 << 20);
    let uses: Vec<String> = function.disks[0].uses.iter().map(ToString::to_string).collect();
    assert_eq!(
        uses,
        [
            "nvme0n1 is mounted at /other",
            "nvme0n1p1 is mounted at /data",
            "nvme0n1p2 is part of dm-0 (group-home)",
            "nvme0n1p2 is marked as LVM2_member",
            "nvme0n1p3 holds swap",
        ]
    );
}

#[test]
fn a_group_that_the_kernel_made_up_is_seen() {
    let machine = machine();
    machine.function("pci0000:00/0000:00:03.0", PciIdentity::NVME_CLASS, Some(3));
    // Another group with this number exists; what counts is its name.
    fs::write(
        machine.path().join("sys/kernel/iommu_groups/3/name"),
        "vfio-noiommu\n",
    )
    .unwrap();
    let group = machine
        .sysfs()
        .function(address("0000:00:03.0"))
        .unwrap()
        .iommu_group
        .unwrap();
    assert!(group.is_fake);
}
