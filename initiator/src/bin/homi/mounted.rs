//! Refuses to overwrite a device that the system itself uses: one that is mounted, swapped to, or part of another device.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::failure::Failure;

/// Checks that writing to the path overwrites nothing in use. Files that are not block devices, and paths that do not exist, pass.
///
/// # Errors
/// A sentence that says what uses the device.
pub(crate) fn refuse_if_in_use(path: &Path) -> Result<(), Failure> {
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_block_device() {
        return Ok(());
    }
    let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swap_numbers: Vec<String> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| fs::metadata(line.split_whitespace().next()?).ok())
        .filter(|metadata| metadata.file_type().is_block_device())
        .map(|metadata| format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev())))
        .collect();
    let family = family(&number);
    match user(&family, &mounts, &swap_numbers) {
        None => Ok(()),
        Some(user) => Err(Failure::Failed(format!(
            "{} is in use ({user}): writing would destroy it, so unmount it first or name another device",
            path.display()
        ))),
    }
}

/// The device, its partitions, and everything that is stacked on any of them, by device number.
fn family(number: &str) -> BTreeSet<String> {
    let mut family = BTreeSet::new();
    let mut open = vec![number.to_owned()];
    while let Some(number) = open.pop() {
        let folder = PathBuf::from("/sys/dev/block").join(&number);
        if !family.insert(number) {
            continue;
        }
        let mut look = |folder: &Path| {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                // Partitions and holders are folders with a device number in them.
                if let Ok(number) = fs::read_to_string(entry.path().join("dev")) {
                    open.push(number.trim().to_owned());
                }
            }
        };
        look(&folder);
        look(&folder.join("holders"));
    }
    family
}

/// What uses one of the devices.
fn user(family: &BTreeSet<String>, mounts: &str, swaps: &[String]) -> Option<String> {
    if swaps.iter().any(|number| family.contains(number)) {
        return Some("swap space".to_owned());
    }
    // proc_pid_mountinfo(5): the third field is the device number, the fifth the mount point.
    mounts.lines().find_map(|line| {
        let mut parts = line.split_whitespace().skip(2);
        let number = parts.next()?;
        let place = parts.nth(1)?;
        family
            .contains(number)
            .then(|| format!("mounted at {}", place.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n\
                          31 22 0:27 / /proc rw - proc proc rw\n\
                          40 22 259:7 / /my\\040data rw - xfs /dev/nvme1n1 rw\n";

    #[test]
    fn mounted_devices_are_found_by_number() {
        let family = |numbers: &[&str]| {
            numbers
                .iter()
                .map(|number| (*number).to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(
            user(&family(&["259:0", "259:2"]), MOUNTS, &[]),
            Some("mounted at /".to_owned())
        );
        assert_eq!(
            user(&family(&["259:7"]), MOUNTS, &[]),
            Some("mounted at /my data".to_owned())
        );
        assert_eq!(user(&family(&["259:0"]), MOUNTS, &[]), None);
        assert_eq!(
            user(&family(&["8:3"]), MOUNTS, &["8:3".to_owned()]),
            Some("swap space".to_owned())
        );
    }

    #[test]
    fn plain_files_and_missing_paths_pass() {
        refuse_if_in_use(Path::new("/etc/passwd")).unwrap();
        refuse_if_in_use(Path::new("/does/not/exist")).unwrap();
        refuse_if_in_use(Path::new("/dev/null")).unwrap();
    }
}
