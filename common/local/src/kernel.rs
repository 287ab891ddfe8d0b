//! The namespaces that the kernel's own NVMe driver has, as sysfs tells, and how to find the one behind a path.
//!
//! A namespace has a block device (`/dev/nvme0n1`) and, from Linux 5.13 on, a generic character device (`/dev/ng0n1`) with the
//! same numbers. Two of them are one namespace if they have an identifier of the world in common (UUID, NGUID, EUI64), or, where
//! they have none, the same serial number and namespace identifier.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// How many devices one may be stacked on another when looking for the namespace below a file system.
const MOST_LAYERS: usize = 8;

/// What a namespace can be known by, whatever the path to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceIds {
    /// Its identifier on its controller.
    pub nsid: u32,
    /// The serial number of the controller or subsystem.
    pub serial: String,
    /// UUID, if it has one.
    pub uuid: Option<[u8; 16]>,
    /// Namespace globally unique identifier, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// IEEE extended unique identifier, if it has one.
    pub eui64: Option<[u8; 8]>,
}

impl NamespaceIds {
    /// Whether both are the same namespace.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        fn both<T: PartialEq>(a: Option<T>, b: Option<T>) -> Option<bool> {
            a.zip(b).map(|(a, b)| a == b)
        }
        let global = [
            both(self.uuid, other.uuid),
            both(self.nguid, other.nguid),
            both(self.eui64, other.eui64),
        ];
        if global.contains(&Some(true)) {
            return true;
        }
        if global.contains(&Some(false)) {
            return false;
        }
        !self.serial.is_empty() && self.serial == other.serial && self.nsid == other.nsid
    }
}

/// The longest transfer that the kernel passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// In bytes.
    pub max_bytes: u32,
    /// In pieces of memory.
    pub max_segments: u32,
}

/// A namespace that the kernel's driver has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KernelNamespace {
    /// Its block device.
    pub block: PathBuf,
    /// Its generic character device, if the kernel makes such.
    pub generic: Option<PathBuf>,
    /// What it is known by.
    pub ids: NamespaceIds,
    /// The controller's or subsystem's model.
    pub model: String,
    /// What its transfers are limited to.
    pub limits: Option<TransferLimits>,
    /// Where its file systems, and those on its partitions, are mounted.
    pub mounts: Vec<PathBuf>,
}

/// Every namespace that the kernel's driver has, in the order of their names.
#[must_use]
pub fn kernel_namespaces() -> Vec<KernelNamespace> {
    Sysfs::system().namespaces()
}

/// The namespace behind a path: its block device or a partition of it, its generic character device, a device that is stacked on it alone, or
/// a file in a file system on any of them.
#[must_use]
pub fn namespace_at(path: &Path) -> Option<KernelNamespace> {
    let metadata = fs::metadata(path).ok()?;
    let sysfs = Sysfs::system();
    if metadata.file_type().is_char_device() {
        let folder = sysfs.device("char", metadata.rdev())?;
        let name = folder.file_name()?.to_str()?.strip_prefix("ng")?;
        return sysfs.namespace(&format!("nvme{name}"));
    }
    let device = if metadata.file_type().is_block_device() {
        metadata.rdev()
    } else {
        metadata.dev()
    };
    sysfs.below(sysfs.device("block", device)?)
}

/// The trees of the kernel.
struct Sysfs<'a> {
    sys: &'a Path,
    dev: &'a Path,
    mounts: &'a Path,
}

impl Sysfs<'static> {
    /// Those of this machine.
    fn system() -> Self {
        Self {
            sys: Path::new("/sys"),
            dev: Path::new("/dev"),
            mounts: Path::new("/proc/self/mountinfo"),
        }
    }
}

impl Sysfs<'_> {
    fn namespaces(&self) -> Vec<KernelNamespace> {
        let entries = fs::read_dir(self.sys.join("class/block"));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| numbers(name).is_some())
            .collect();
        names.sort_by_key(|name| numbers(name));
        names.iter().filter_map(|name| self.namespace(name)).collect()
    }

    fn device(&self, kind: &str, number: u64) -> Option<PathBuf> {
        let name = format!("dev/{kind}/{}:{}", major(number), minor(number));
        fs::canonicalize(self.sys.join(name)).ok()
    }

    /// The namespace that this block device is, lies on, or is stacked on alone.
    fn below(&self, folder: PathBuf) -> Option<KernelNamespace> {
        let mut folder = folder;
        for _ in 0..MOST_LAYERS {
            let name = folder.file_name()?.to_str()?;
            if numbers(name).is_some() {
                return self.namespace(name);
            }
            if folder.join("partition").exists() {
                folder = folder.parent()?.to_owned();
                continue;
            }
            let mut slaves = fs::read_dir(folder.join("slaves")).ok()?.flatten();
            let only = slaves.next()?;
            if slaves.next().is_some() {
                return None;
            }
            folder = fs::canonicalize(only.path()).ok()?;
        }
        None
    }

    /// The namespace whose block device has this name.
    fn namespace(&self, name: &str) -> Option<KernelNamespace> {
        let suffix = name.strip_prefix("nvme")?;
        numbers(name)?;
        let folder = self.sys.join("class/block").join(name);
        let read = |file: &str| -> Option<String> {
            let text = fs::read_to_string(folder.join(file)).ok()?;
            Some(text.trim().to_owned())
        };
        let number = |file: &str| read(file).and_then(|text| text.parse::<u32>().ok());
        let generic = format!("ng{suffix}");
        let has_generic = self.sys.join("class/nvme-generic").join(&generic).exists();
        let limits = number("queue/max_hw_sectors_kb").zip(number("queue/max_segments"));
        let mut devices = vec![read("dev")?];
        let parts = fs::read_dir(&folder).into_iter().flatten().flatten();
        devices.extend(
            parts
                .filter(|part| part.path().join("partition").exists())
                .filter_map(|part| fs::read_to_string(part.path().join("dev")).ok())
                .map(|text| text.trim().to_owned()),
        );
        Some(KernelNamespace {
            block: self.dev.join(name),
            generic: has_generic.then(|| self.dev.join(&generic)),
            ids: NamespaceIds {
                nsid: number("nsid")?,
                serial: read("device/serial").unwrap_or_default(),
                uuid: read("uuid").and_then(|text| hex(&text)).and_then(known),
                nguid: read("nguid").and_then(|text| hex(&text)).and_then(known),
                eui64: read("eui").and_then(|text| hex(&text)).and_then(known),
            },
            model: read("device/model").unwrap_or_default(),
            limits: limits.map(|(kib, max_segments)| TransferLimits {
                max_bytes: kib.saturating_mul(1024),
                max_segments,
            }),
            mounts: mounts_of(self.mounts, &devices).unwrap_or_default(),
        })
    }
}

/// Where devices with these numbers (`259:0`) are mounted: proc_pid_mountinfo(5), the third field and the fifth.
fn mounts_of(table: &Path, devices: &[String]) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string(table)?;
    let place = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let device = fields.next()?;
        let place = fields.nth(1)?;
        devices
            .iter()
            .any(|one| one == device)
            .then(|| PathBuf::from(place.replace("\\040", " ")))
    };
    Ok(text.lines().filter_map(place).collect())
}

/// The numbers in the name of a namespace's block device (`nvme1n2`); partitions and hidden paths of several have other names.
fn numbers(name: &str) -> Option<(u32, u32)> {
    let (controller, namespace) = name.strip_prefix("nvme")?.split_once('n')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(controller) || !digits(namespace) {
        return None;
    }
    Some((controller.parse().ok()?, namespace.parse().ok()?))
}

/// The bytes of hexadecimal digits, whatever stands between them.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut digits = text.chars().filter(|c| !matches!(c, '-' | ' ' | ':'));
    let mut bytes = [0; N];
    for byte in &mut bytes {
        let high = digits.next()?.to_digit(16)?;
        let low = digits.next()?.to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    digits.next().is_none().then_some(bytes)
}

/// An identifier, unless it is all zeroes, which stands for none.
pub(crate) fn known<const N: usize>(id: [u8; N]) -> Option<[u8; N]> {
    id.iter().any(|byte| *byte != 0).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_of_namespaces_are_told_from_others() {
        assert_eq!(numbers("nvme0n1"), Some((0, 1)));
        assert_eq!(numbers("nvme12n34"), Some((12, 34)));
        for name in [
            "nvme0",
            "nvme0n1p1",
            "nvme0c0n1",
            "sda",
            "nvmen1",
            "ng0n1",
            "nvme0n",
        ] {
            assert_eq!(numbers(name), None, "{name}");
        }
    }

    #[test]
    fn identifiers_are_read_in_every_form_that_sysfs_has() {
        let digits: Option<[u8; 4]> = hex("01 23-45:67");
        assert_eq!(digits, Some([0x01, 0x23, 0x45, 0x67]));
        assert_eq!(hex::<4>("0123456"), None);
        assert_eq!(hex::<4>("012345678"), None);
        assert_eq!(hex::<2>("xyz1"), None);
        assert_eq!(known([0; 8]), None);
    }

    #[test]
    fn the_same_namespace_is_known_by_what_both_have() {
        let plain = NamespaceIds {
            nsid: 1,
            serial: "A".to_owned(),
            ..NamespaceIds::default()
        };
        let with = |uuid: u8, eui64: Option<u8>| NamespaceIds {
            uuid: Some([uuid; 16]),
            eui64: eui64.map(|id| [id; 8]),
            ..plain.clone()
        };
        assert!(plain.same(&plain));
        assert!(!plain.same(&NamespaceIds {
            nsid: 2,
            ..plain.clone()
        }));
        assert!(!NamespaceIds::default().same(&NamespaceIds::default()));
        let elsewhere = NamespaceIds {
            serial: "B".to_owned(),
            nsid: 9,
            ..with(7, None)
        };
        assert!(elsewhere.same(&with(7, Some(1))));
        // The same place, but another namespace: it was replaced.
        assert!(!with(7, None).same(&with(8, None)));
        assert!(with(7, Some(1)).same(&with(8, Some(1))));
        assert!(with(7, None).same(&plain));
    }

    #[test]
    fn a_tree_is_read() {
        let root = std::env::temp_dir().join(format!("homi-sysfs-{}", std::process::id()));
        let disk = root.join("sys/devices/pci/nvme/nvme3/nvme3n2");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("nvme3n2p1")).unwrap();
        fs::create_dir_all(root.join("sys/class/block")).unwrap();
        fs::create_dir_all(root.join("sys/class/nvme-generic/ng3n2")).unwrap();
        symlink(&disk, root.join("sys/class/block/nvme3n2")).unwrap();
        symlink(disk.join(".."), disk.join("device")).unwrap();
        for (file, text) in [
            ("dev", "259:4\n"),
            ("nsid", "5\n"),
            ("uuid", "01234567-89ab-cdef-0123-456789abcdef\n"),
            ("nguid", "00000000-0000-0000-0000-000000000000\n"),
            ("eui", "00 11 22 33 44 55 66 77\n"),
            ("queue/max_hw_sectors_kb", "512\n"),
            ("queue/max_segments", "127\n"),
            ("nvme3n2p1/partition", "1\n"),
            ("nvme3n2p1/dev", "259:5\n"),
            ("../serial", "S1  \n"),
            ("../model", "QEMU NVMe Ctrl                          \n"),
        ] {
            fs::write(disk.join(file), text).unwrap();
        }
        let mounts = root.join("mountinfo");
        fs::write(
            &mounts,
            "22 1 259:5 / /mnt/my\\040data rw - ext4 /dev/nvme3n2p1 rw\n23 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
        )
        .unwrap();
        let (sys, dev) = (root.join("sys"), root.join("dev"));
        let sysfs = Sysfs {
            sys: &sys,
            dev: &dev,
            mounts: &mounts,
        };
        let all = sysfs.namespaces();
        let partition = sysfs.below(disk.join("nvme3n2p1"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(partition.as_ref(), all.first());
        let [one] = all.as_slice() else {
            panic!("one namespace: {all:?}")
        };
        assert_eq!(one.block, dev.join("nvme3n2"));
        assert_eq!(one.generic, Some(dev.join("ng3n2")));
        assert_eq!((one.ids.nsid, one.ids.serial.as_str()), (5, "S1"));
        assert_eq!(
            one.ids.eui64,
            Some([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77])
        );
        assert_eq!(one.ids.nguid, None);
        assert_eq!(
            one.ids.uuid.map(|uuid| uuid[..4].to_vec()),
            Some(vec![1, 0x23, 0x45, 0x67])
        );
        assert_eq!(
            one.limits,
            Some(TransferLimits {
                max_bytes: 512 << 10,
                max_segments: 127
            })
        );
        assert_eq!(one.mounts, [PathBuf::from("/mnt/my data")]);
        assert_eq!(one.model, "QEMU NVMe Ctrl");
    }
}
