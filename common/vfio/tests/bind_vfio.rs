//! What `scripts/bind-vfio` decides, on a machine that is a folder.
#![expect(clippy::unwrap_used, reason = "a test that cannot make its machine fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const DRIVE: &str = "0000:01:00.0";
const OTHER: &str = "0000:01:00.1";

/// A drive with the driver nvme, alone in IOMMU group 7, with a disk of two partitions that nobody uses.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.function(DRIVE, "0x010802", Some("nvme"));
        machine.group(7, &[DRIVE]);
        let disk = machine.device(DRIVE).join("nvme/nvme0/nvme0n1");
        for (name, number) in [("", "259:0"), ("nvme0n1p1", "259:1"), ("nvme0n1p2", "259:2")] {
            fs::create_dir_all(disk.join(name).join("holders")).unwrap();
            fs::write(disk.join(name).join("dev"), format!("{number}\n")).unwrap();
        }
        fs::write(disk.join("size"), "131072\n").unwrap();
        machine.link(machine.device(DRIVE).join("nvme/nvme0"), "sys/class/nvme/nvme0");
        machine.link(disk.clone(), "sys/class/block/nvme0n1");
        machine.write("proc/swaps", "Filename\tType\n");
        machine.write("proc/self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw\n");
        machine
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    fn device(&self, address: &str) -> PathBuf {
        self.path("sys/bus/pci/devices").join(address)
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, to: PathBuf, path: impl AsRef<Path>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn function(&self, address: &str, class: &str, driver: Option<&str>) {
        let folder = self.device(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("class"), format!("{class}\n")).unwrap();
        fs::write(folder.join("driver_override"), "(null)\n").unwrap();
        if let Some(driver) = driver {
            let drivers = self.path("sys/bus/pci/drivers").join(driver);
            fs::create_dir_all(&drivers).unwrap();
            symlink(drivers, folder.join("driver")).unwrap();
        }
    }

    fn group(&self, number: u32, members: &[&str]) {
        let group = self.path(format!("sys/kernel/iommu_groups/{number}"));
        let devices = group.join("devices");
        fs::create_dir_all(&devices).unwrap();
        for member in members {
            let _ = fs::remove_file(devices.join(member));
            symlink(self.device(member), devices.join(member)).unwrap();
            let _ = fs::remove_file(self.device(member).join("iommu_group"));
            symlink(&group, self.device(member).join("iommu_group")).unwrap();
        }
    }

    /// What the script writes to standard output, or to standard error if it fails.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/bind-vfio");
        let output = Command::new("bash")
            .arg(script)
            .args(arguments)
            .env("HOMI_BIND_ROOT", self.0.path())
            .env_remove("SUDO_USER")
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    fn refused(&self) -> String {
        self.run(&[DRIVE, "--check"]).unwrap_err()
    }
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_drive_that_nobody_uses_can_be_bound() {
    let machine = Machine::new();
    let said = machine.run(&[DRIVE, "--check"]).unwrap();
    assert_has(&said, &["0000:01:00.0 can be bound to vfio-pci"]);
    // As lspci writes it without -D.
    machine.run(&["01:00.0", "--check"]).unwrap();
    assert_eq!(
        fs::read_to_string(machine.device(DRIVE).join("driver_override")).unwrap(),
        "(null)\n"
    );
}

#[test]
fn what_is_used_is_refused_with_what_to_do() {
    let machine = Machine::new();
    machine.write(
        "proc/self/mountinfo",
        "30 1 259:1 / /data rw shared:1 - ext4 /dev/nvme0n1p1 rw\n31 1 0:44 / /pool rw - btrfs /dev/nvme0n1p2 rw\n",
    );
    assert_has(
        &machine.refused(),
        &[
            "stays with nvme",
            "nvme0n1p1 is mounted at /data: unmount it first (umount /data)",
            "nvme0n1p2 is mounted at /pool",
        ],
    );

    let machine = Machine::new();
    machine.write("proc/swaps", "Filename\n/dev/nvme0n1p2 partition 1 0 -2\n");
    assert_has(
        &machine.refused(),
        &["nvme0n1p2 holds swap", "swapoff /dev/nvme0n1p2"],
    );

    let machine = Machine::new();
    machine.write("sys/class/block/dm-3/dm/name", "group-home\n");
    let disk = machine.path("sys/class/block/nvme0n1");
    symlink(
        machine.path("sys/class/block/dm-3"),
        disk.join("nvme0n1p1/holders/dm-3"),
    )
    .unwrap();
    symlink(
        machine.path("sys/class/block/md0"),
        disk.join("nvme0n1p2/holders/md0"),
    )
    .unwrap();
    assert_has(
        &machine.refused(),
        &[
            "part of dm-3 (group-home)",
            "vgchange -an",
            "array md0",
            "mdadm --stop /dev/md0",
        ],
    );

    let machine = Machine::new();
    for (number, kind) in [
        ("259:0", "zfs_member"),
        ("259:1", "LVM2_member"),
        ("259:2", "ext4"),
    ] {
        machine.write(
            format!("run/udev/data/b{number}"),
            &format!("S:disk\nE:ID_FS_TYPE={kind}\n"),
        );
    }
    let said = machine.refused();
    assert_has(
        &said,
        &[
            "nvme0n1 is marked as a member",
            "(zfs_member)",
            "(LVM2_member)",
            "zpool labelclear",
        ],
    );
    assert!(!said.contains("nvme0n1p2"), "{said}");

    let machine = Machine::new();
    machine.write(
        "sys/kernel/config/nvmet/subsystems/sub/namespaces/1/device_path",
        "/dev/nvme0n1\n",
    );
    machine.write("sys/block/loop4/loop/backing_file", "/dev/nvme0n1p1\n");
    machine.write("proc/77/comm", "postgres\n");
    machine.link(PathBuf::from("/dev/ng0n1"), "proc/77/fd/3");
    assert_has(
        &machine.refused(),
        &[
            "exported by the kernel (nvmet)",
            "losetup -d /dev/loop4",
            "/dev/ng0n1 is open in process 77 (postgres)",
        ],
    );
}

#[test]
fn a_member_is_known_by_its_label_where_there_is_no_udev() {
    if Command::new("blkid").arg("--version").output().is_err() {
        // Where udev is not, blkid usually is; without either nothing can be known.
        return;
    }
    let machine = Machine::new();
    // Superblock of an array of version 1.2 (its magic number, version, and place: 4096 bytes in).
    let mut bytes = vec![0_u8; 1 << 20];
    let superblock = 4096;
    bytes[superblock..superblock + 8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
    bytes[superblock + 144..superblock + 152].copy_from_slice(&8_u64.to_le_bytes());
    // Its checksum: the sum of the words of 256 bytes, this one left out, folded.
    let sum: u64 = bytes[superblock..superblock + 256]
        .chunks(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    let folded = u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).unwrap();
    bytes[superblock + 216..superblock + 220].copy_from_slice(&folded.to_le_bytes());
    fs::create_dir_all(machine.path("dev")).unwrap();
    let partition = machine.path("dev/nvme0n1p1");
    fs::write(&partition, bytes).unwrap();
    // Smaller ones are taken for floppies, which are members of nothing.
    let file = fs::OpenOptions::new().write(true).open(&partition).unwrap();
    file.set_len(16 << 20).unwrap();
    assert_has(
        &machine.refused(),
        &[
            "nvme0n1p1 is marked as a member",
            "(linux_raid_member)",
            "--zero-superblock",
        ],
    );
}

#[test]
fn a_namespace_with_several_paths_is_found_in_its_subsystem() {
    let machine = Machine::new();
    let disk = machine.path("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n7");
    fs::create_dir_all(disk.join("holders/md127")).unwrap();
    fs::write(disk.join("dev"), "259:9\n").unwrap();
    machine.link(
        disk.parent().unwrap().to_owned(),
        "sys/class/nvme-subsystem/nvme-subsys0",
    );
    machine.link(
        machine.device(DRIVE).join("nvme/nvme0"),
        "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0",
    );
    machine.link(disk, "sys/class/block/nvme0n7");
    assert_has(&machine.refused(), &["nvme0n7 is part of the array md127"]);
}

#[test]
fn others_of_its_group_are_named() {
    let machine = Machine::new();
    machine.function(OTHER, "0x020000", Some("mlx5_core"));
    machine.function("0000:00:01.0", "0x060400", Some("pcieport"));
    machine.function("0000:01:00.2", "0x020000", None);
    machine.group(7, &[DRIVE, OTHER, "0000:00:01.0", "0000:01:00.2"]);
    let said = machine.refused();
    assert_has(&said, &["0000:01:00.1 (mlx5_core)", "group 7", "another slot"]);
    assert!(!said.contains("pcieport") && !said.contains("01:00.2"), "{said}");
}

#[test]
fn what_cannot_be_bound_is_said_so() {
    let machine = Machine::new();
    machine.write(format!("sys/bus/pci/devices/{DRIVE}/sriov_numvfs"), "3\n");
    assert_has(&machine.refused(), &["3 virtual functions", "sriov_numvfs"]);

    let machine = Machine::new();
    fs::remove_file(machine.device(DRIVE).join("iommu_group")).unwrap();
    assert_has(&machine.refused(), &["no IOMMU in front of it", "intel_iommu=on"]);

    let machine = Machine::new();
    machine.write("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
    assert_has(&machine.refused(), &["no IOMMU in front of it"]);

    let machine = Machine::new();
    machine.function(OTHER, "0x020000", Some("mlx5_core"));
    assert_has(
        &machine.run(&[OTHER]).unwrap_err(),
        &["is no NVMe drive", "0x020000"],
    );
    for (arguments, part) in [
        (&["0000:99:00.0"][..], "there is no PCI device 0000:99:00.0"),
        (&["nvme0"], "is no PCI address"),
        (&[DRIVE, OTHER], "one drive at a time"),
        (&[DRIVE, "--force"], "unknown option --force"),
        (&[], "Usage: scripts/bind-vfio"),
    ] {
        assert_has(&machine.run(arguments).unwrap_err(), &[part]);
    }
}

#[test]
fn a_drive_that_is_bound_is_shown_and_not_bound_again() {
    let machine = Machine::new();
    let driver = machine.device(DRIVE).join("driver");
    fs::remove_file(&driver).unwrap();
    fs::remove_dir_all(machine.device(DRIVE).join("nvme")).unwrap();
    symlink(machine.path("sys/bus/pci/drivers/vfio-pci"), driver).unwrap();
    machine.write("dev/vfio/7", "");
    machine.write("dev/vfio/devices/vfio2", "");
    fs::create_dir_all(machine.device(DRIVE).join("vfio-dev/vfio2")).unwrap();
    let said = machine.run(&[DRIVE]).unwrap();
    assert_has(&said, &["/dev/vfio/7", "/dev/vfio/devices/vfio2"]);
    let said = machine.run(&["--show"]).unwrap();
    assert_has(&said, &["0000:01:00.0  driver vfio-pci  group 7", "mode 6"]);
    // Somebody has it: the kernel would wait for them.
    machine.write("proc/91/comm", "homi-target\n");
    machine.link(PathBuf::from("/dev/vfio/7"), "proc/91/fd/12");
    let said = machine.run(&[DRIVE, "--return"]).unwrap_err();
    assert_has(
        &said,
        &["stays with vfio-pci", "process 91 (homi-target): end it first"],
    );
}

#[test]
fn drives_are_shown_with_their_uses() {
    let machine = Machine::new();
    machine.write("proc/swaps", "Filename\n/dev/nvme0n1p2 partition 1 0 -2\n");
    machine.function(OTHER, "0x020000", Some("mlx5_core"));
    let said = machine.run(&["--show"]).unwrap();
    assert_has(
        &said,
        &[
            "0000:01:00.0  driver nvme  group 7",
            "nvme0n1  64 MiB  in use",
            "holds swap",
        ],
    );
    assert!(!said.contains(OTHER), "{said}");
    let said = machine.run(&[DRIVE, "--return"]).unwrap();
    assert_has(&said, &["with the driver nvme already"]);
}
