//! [`Disk`]: the kernel's block devices of a drive, and who uses them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A block device of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name: `nvme0n1`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Who uses it or one of its partitions. Empty if nobody was found to.
    pub uses: Vec<DiskUse>,
}

/// A use of a block device or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUse {
    /// The device or partition: `nvme0n1p2`.
    pub device: String,
    /// What for.
    pub usage: Usage,
}

/// What a block device is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Usage {
    /// A file system in it is mounted here.
    Mounted(String),
    /// The kernel swaps to it.
    Swap,
    /// Another block device is built on it: `dm-0 (vg-home)`, `md0`.
    Under(String),
    /// It carries the mark of a member of something that need not be running: `LVM2_member`, `linux_raid_member`, `zfs_member`.
    Member(String),
}

impl fmt::Display for DiskUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        match &self.usage {
            Usage::Mounted(at) => write!(f, "{device} is mounted at {at}"),
            Usage::Swap => write!(f, "{device} holds swap"),
            Usage::Under(other) => write!(f, "{device} is part of {other}"),
            Usage::Member(kind) => write!(f, "{device} is marked as {kind}"),
        }
    }
}

/// Reads the block devices of a drive's controllers (`nvme0`).
pub(super) fn of_controllers(root: &Path, controllers: &[String]) -> Vec<Disk> {
    let mut names: Vec<String> = Vec::new();
    for controller in controllers {
        names.extend(names_in(
            &root.join("sys/class/nvme").join(controller),
            is_namespace,
        ));
        // Where a namespace may have several paths, its device belongs to the subsystem.
        let subsystems = root.join("sys/class/nvme-subsystem");
        for subsystem in names_in(&subsystems, |_| true) {
            let folder = subsystems.join(subsystem);
            if folder.join(controller).exists() {
                names.extend(names_in(&folder, is_namespace));
            }
        }
    }
    names.sort();
    names.dedup();
    names.into_iter().map(|name| disk(root, name)).collect()
}

/// `nvme0n1`, but not a path of it (`nvme0c0n1`).
fn is_namespace(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(controller, namespace)| digits(controller) && digits(namespace))
}

fn names_in(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| wanted(name))
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn disk(root: &Path, name: String) -> Disk {
    let folder = root.join("sys/class/block").join(&name);
    // The kernel counts in 512 bytes whatever the block size.
    let size = text(&folder.join("size"))
        .and_then(|sectors| sectors.parse::<u64>().ok())
        .map_or(0, |sectors| sectors.saturating_mul(512));
    let mut uses = uses(root, &name, &folder);
    for part in names_in(&folder, |entry| folder.join(entry).join("partition").exists()) {
        uses.extend(self::uses(root, &part, &folder.join(&part)));
    }
    Disk { name, size, uses }
}

fn uses(root: &Path, device: &str, folder: &Path) -> Vec<DiskUse> {
    let mut found: Vec<Usage> = Vec::new();
    let number = text(&folder.join("dev")).unwrap_or_default();
    let node = format!("/dev/{device}");
    for line in fs::read_to_string(root.join("proc/self/mountinfo"))
        .unwrap_or_default()
        .lines()
    {
        let mut fields = line.split(' ');
        let major_minor = fields.nth(2).unwrap_or_default();
        let at = fields.nth(1).unwrap_or_default();
        // Some file systems have a number of their own; their source is named behind the dash.
        let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
        if (!number.is_empty() && major_minor == number) || source == Some(node.as_str()) {
            found.push(Usage::Mounted(at.to_owned()));
        }
    }
    let swaps = fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    if swaps
        .lines()
        .any(|line| line.split_whitespace().next() == Some(&node))
    {
        found.push(Usage::Swap);
    }
    for holder in names_in(&folder.join("holders"), |_| true) {
        let mapped: PathBuf = root.join("sys/class/block").join(&holder).join("dm/name");
        found.push(Usage::Under(match text(&mapped) {
            Some(mapped) => format!("{holder} ({mapped})"),
            None => holder,
        }));
    }
    let marks = fs::read_to_string(root.join("run/udev/data").join(format!("b{number}"))).unwrap_or_default();
    let kind = marks
        .lines()
        .find_map(|line| line.strip_prefix("E:ID_FS_TYPE="))
        .filter(|kind| kind.ends_with("_member"));
    if let Some(kind) = kind {
        found.push(Usage::Member(kind.to_owned()));
    }
    found
        .into_iter()
        .map(|usage| DiskUse {
            device: device.to_owned(),
            usage,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_no_namespaces() {
        for (name, is) in [
            ("nvme0n1", true),
            ("nvme12n345", true),
            ("nvme0c0n1", false),
            ("nvme0", false),
            ("ng0n1", false),
            ("nvme0n1p1", false),
            ("nvmen1", false),
        ] {
            assert_eq!(is_namespace(name), is, "{name}");
        }
    }
}
