//! Linux's host against our target: file systems on its namespaces. A tree is unpacked, copied, checked, and compared byte for byte after
//! everything that could have kept it in a cache is gone.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Kernels, Lab, Peer, Requirement, Test};
use fabric_tests::random::contents;

const NQN: &str = "nqn.2026-01.org.example:files";
/// XFS wants 300 MiB at least.
const SIZE: &str = "352M";
const FOLDERS: u64 = 24;
const FILES: u64 = 480;

const OF_LINUX: Test = Test {
    needs: &[
        Requirement::LinuxHost,
        Requirement::Tool("mkfs.ext4"),
        Requirement::Tool("mkfs.xfs"),
    ],
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(240),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "ext4_on_a_file_of_4_kib_blocks",
        feature: "ext4 (file, 4 KiB blocks)",
        run: |lab| tree(lab, Kind::Ext4, Store::File, 4096),
        ..OF_LINUX
    },
    Test {
        name: "ext4_on_memory_of_512_byte_blocks",
        feature: "ext4 (memory, 512-byte blocks)",
        kernels: Kernels::Default,
        run: |lab| tree(lab, Kind::Ext4, Store::Memory, 512),
        ..OF_LINUX
    },
    Test {
        name: "xfs_on_a_file_of_512_byte_blocks",
        feature: "XFS (file, 512-byte blocks)",
        run: |lab| tree(lab, Kind::Xfs, Store::File, 512),
        kernels: Kernels::Default,
        ..OF_LINUX
    },
    Test {
        name: "xfs_on_memory_of_4_kib_blocks",
        feature: "XFS (memory, 4 KiB blocks)",
        kernels: Kernels::Default,
        run: |lab| tree(lab, Kind::Xfs, Store::Memory, 4096),
        ..OF_LINUX
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    fn make(self) -> &'static str {
        match self {
            // What is otherwise done in the background, later: it is a great deal of zeroes.
            Self::Ext4 => "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0",
            Self::Xfs => "mkfs.xfs -q",
        }
    }

    fn check(self) -> &'static str {
        match self {
            Self::Ext4 => "fsck.ext4 -fn",
            Self::Xfs => "xfs_repair -n",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    File,
    Memory,
}

/// An archive of a tree: empty, small and large files, links of both kinds, deep folders.
fn archive(folder: &Path) -> Result<PathBuf, Failure> {
    let root = folder.join("tree");
    for number in 0..FILES {
        let place = number % FOLDERS;
        let mut path = root.join(format!("folder{place}"));
        for level in 0..place % 5 {
            path = path.join(format!("level{level}"));
        }
        fs::create_dir_all(&path)?;
        let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let size = match number % 20 {
            0 => 0,
            1..=11 => random % 4096,
            12..=17 => random % (48 << 10),
            18 => random % (200 << 10),
            _ => 4096 * (random % 16),
        };
        let file = path.join(format!("file{number}"));
        fs::write(&file, contents(number, usize::try_from(size)?))?;
        if number % 30 == 7 {
            fs::hard_link(&file, path.join(format!("same{number}")))?;
            symlink(&file, path.join(format!("link{number}")))?;
        }
    }
    fs::write(root.join("large"), contents(FILES, (3 << 20) + 12345))?;
    let archive = folder.join("tree.tar");
    let done = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .arg("-cf")
        .arg(&archive)
        .arg("tree")
        .output()?;
    ensure!(
        done.status.success(),
        "tar fails: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(archive)
}

fn tree(lab: &Lab, kind: Kind, store: Store, block_size: u32) -> Result<(), Failure> {
    let archive = archive(lab.scratch())?;
    let archive = archive.display();
    let backing = lab.scratch().join("backing");
    let source = match store {
        Store::File => format!("path = \"{}\"\ncreate = \"{SIZE}\"", backing.display()),
        Store::Memory => format!("ram = \"{SIZE}\""),
    };
    let target = lab.target(&format!(
        r#"
[[listener]]
address = "127.0.0.1:{{port}}"
advertise = "{}"
[[subsystem]]
nqn = "{NQN}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
block_size = {block_size}
{source}
"#,
        HostTarget::GUESTS_SEE
    ))?;
    let guest = lab.guest(0)?;
    let long = Duration::from_secs(120);
    guest.connect("10.0.2.2", target.port(), NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    let (make, check) = (kind.make(), kind.check());
    let seen = guest
        .sh(&format!(
            "cat /sys/block/{}/queue/logical_block_size",
            disk.trim_start_matches("/dev/")
        ))?
        .stdout;
    ensure!(
        seen.trim() == block_size.to_string(),
        "Linux sees blocks of {seen} bytes"
    );
    guest.sh_within(
        long,
        &format!(
            "{make} {disk}
             mount {disk} /mnt
             tar -C /mnt -xf {archive}
             cp -a --reflink=never /mnt/tree /mnt/copy
             sync
             umount /mnt
             {check} {disk}"
        ),
    )?;
    let compare = format!(
        "compare() {{
             tar -C /mnt -df {archive}
             [ \"$(find /mnt/tree | wc -l)\" = \"$(tar -tf {archive} | wc -l)\" ]
         }}"
    );
    guest.sh_within(
        long,
        &format!(
            "{compare}
             mount {disk} /mnt
             compare
             diff -r --no-dereference /mnt/tree /mnt/copy"
        ),
    )?;
    // The comparison finds a byte that is another one: otherwise it would say nothing.
    guest.sh_fails(&format!(
        "{compare}
         printf x | dd of=/mnt/tree/large bs=1 seek=2000000 conv=notrunc status=none
         compare"
    ))?;

    // What the file system frees goes back to the store. It may free it only when it is unmounted.
    let allocated = |path: &Path| -> Result<u64, Failure> { Ok(fs::metadata(path)?.blocks() * 512) };
    let before = if store == Store::File {
        allocated(&backing)?
    } else {
        0
    };
    guest.sh_within(
        long,
        &format!(
            "rm -r /mnt/copy
             tar -C /mnt -xf {archive} tree/large
             umount /mnt
             mount {disk} /mnt
             fstrim /mnt
             umount /mnt
             {check} {disk}"
        ),
    )?;
    if store == Store::File {
        let after = allocated(&backing)?;
        ensure!(
            after + (4 << 20) < before,
            "after fstrim the file has {after} bytes allocated of {before}, though a copy of more than 4 MiB was removed"
        );
        // It is all in the file: another process of the target has it too.
        guest.sh("nvme disconnect-all")?;
        target.stop()?;
        target.restart()?;
        guest.connect("10.0.2.2", target.port(), NQN, "")?;
    }
    let disk = guest.namespace(NQN, 1)?;
    guest.sh_within(
        long,
        &format!(
            "{compare}
             mount -o ro {disk} /mnt
             compare
             umount /mnt
             nvme disconnect-all"
        ),
    )?;
    target.stop()
}
