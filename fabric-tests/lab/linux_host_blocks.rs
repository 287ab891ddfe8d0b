//! Linux's host against our target: block devices at the edges. Sizes, alignments, zeroes and holes, and commands one by one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Kernels, Lab, Peer, Requirement, Test, Vm};

const NQN: &str = "nqn.2026-01.org.example:blocks";
const MIB: u64 = 1 << 20;

const OF_LINUX: Test = Test {
    needs: &[Requirement::LinuxHost],
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(150),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discarded_blocks_are_given_back",
        feature: "discard",
        run: discard,
        kernels: Kernels::Default,
        ..OF_LINUX
    },
    Test {
        name: "zeroes_are_written_without_data",
        feature: "write zeroes",
        run: zeroes,
        ..OF_LINUX
    },
    Test {
        name: "odd_sizes_and_offsets",
        feature: "unaligned and odd sizes, buffered and direct",
        run: odd_sizes,
        kernels: Kernels::Default,
        ..OF_LINUX
    },
    Test {
        name: "the_largest_transfers",
        feature: "transfers of the maximum size and beyond",
        run: largest,
        ..OF_LINUX
    },
    Test {
        name: "commands_one_by_one",
        feature: "write, read, compare, verify, write zeroes, deallocate, flush by pass-through",
        run: one_by_one,
        ..OF_LINUX
    },
];

/// The namespaces: a file and memory, of both block sizes.
const NAMESPACES: [(u32, u64); 4] = [(1, 512), (2, 4096), (3, 512), (4, 4096)];

fn config(lab: &Lab, node: &str, size: &str) -> String {
    let mut text = format!(
        "{node}\n[[listener]]\naddress = \"127.0.0.1:{{port}}\"\nadvertise = \"{}\"\n[[subsystem]]\nnqn = \"{NQN}\"\n\
         allow_any_host = true\n",
        HostTarget::GUESTS_SEE
    );
    for (nsid, block_size) in NAMESPACES {
        let source = if is_file(nsid) {
            let path = lab.scratch().join(format!("backing{nsid}"));
            format!("path = \"{}\"\ncreate = \"{size}\"", path.display())
        } else {
            format!("ram = \"{size}\"")
        };
        text += &format!("[[subsystem.namespace]]\nnsid = {nsid}\nblock_size = {block_size}\n{source}\n");
    }
    text
}

fn is_file(nsid: u32) -> bool {
    nsid <= 2
}

fn allocated(path: &Path) -> Result<u64, Failure> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// The devices of the namespaces, with their block sizes.
fn connect(guest: &Vm, target: &HostTarget) -> Result<Vec<(u32, u64, String)>, Failure> {
    guest.connect("10.0.2.2", target.port(), NQN, "")?;
    NAMESPACES
        .into_iter()
        .map(|(nsid, block_size)| Ok((nsid, block_size, guest.namespace(NQN, nsid)?)))
        .collect()
}

fn discard(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, "", "6M"))?;
    let guest = lab.guest(0)?;
    let disks = connect(guest, &target)?;
    guest.sh("head -c 6M /dev/urandom >pattern; head -c 6M /dev/zero >zeroes")?;
    for (nsid, block_size, disk) in &disks {
        let path = lab.scratch().join(format!("backing{nsid}"));
        guest.sh(&format!("dd if=pattern of={disk} bs=1M oflag=direct status=none"))?;
        let before = if is_file(*nsid) { allocated(&path)? } else { 0 };
        // From 1 MiB and a block on, for 3 MiB but a block.
        let (offset, len) = (MIB + block_size, 3 * MIB - block_size);
        guest.sh(&format!(
            "blkdiscard -o {offset} -l {len} {disk}
             dd if={disk} of=back bs=1M iflag=direct status=none
             cmp -n {offset} pattern back
             cmp -n {len} -i 0:{offset} zeroes back
             cmp -i {end} pattern back",
            end = offset + len
        ))?;
        if is_file(*nsid) {
            let after = allocated(&path)?;
            // Holes are as large as the blocks of the file system that the file is on allow.
            ensure!(
                before >= 6 * MIB && after + 3 * MIB <= before + 512 * 1024,
                "the file of namespace {nsid} has {after} bytes allocated after 3 of 6 MiB were discarded, and had {before}"
            );
            ensure!(
                fs::metadata(&path)?.len() == 6 * MIB,
                "the file of namespace {nsid} has another length"
            );
        }
        // Several ranges in one command.
        guest.sh(&format!(
            "nvme dsm {disk} -n {nsid} -d -s 0,{second} -b 1,2 >&2
             dd if={disk} of=back bs={block_size} count={count} iflag=direct status=none
             cmp -n {block_size} zeroes back
             cmp -n {block_size} -i {block_size} pattern back
             cmp -n {two} -i 0:{at} zeroes back
             cmp -n {block_size} -i {end} pattern back",
            second = 10,
            count = 16,
            two = 2 * block_size,
            at = 10 * block_size,
            end = 12 * block_size
        ))?;
    }
    // All of it.
    let (_, _, disk) = &disks[1];
    guest.sh(&format!("blkdiscard {disk}; cmp zeroes {disk}"))?;
    let left = allocated(&lab.scratch().join("backing2"))?;
    ensure!(
        left < MIB,
        "the file has {left} bytes allocated after everything was discarded"
    );
    target.stop()
}

fn zeroes(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, "", "5M"))?;
    let guest = lab.guest(0)?;
    let disks = connect(guest, &target)?;
    guest.sh("head -c 5M /dev/urandom >pattern; head -c 5M /dev/zero >zeroes")?;
    for (nsid, block_size, disk) in &disks {
        // Longer than one command may be, and with odd ends.
        let (offset, len) = (MIB + 3 * block_size, 2 * MIB + 5 * block_size);
        let (before, _) = commands(guest)?;
        guest.sh(&format!(
            "dd if=pattern of={disk} bs=1M oflag=direct status=none
             blkdiscard -z -o {offset} -l {len} {disk}
             dd if={disk} of=back bs=1M iflag=direct status=none
             cmp -n {offset} pattern back
             cmp -n {len} -i 0:{offset} zeroes back
             cmp -i {end} pattern back",
            end = offset + len
        ))?;
        // Zeroes that travel as data would be more writes.
        let writes = commands(guest)?.0 - before;
        ensure!(
            writes == 5,
            "5 writes of 1 MiB, and zeroes, are {writes} writes on namespace {nsid}"
        );
    }
    target.stop()
}

fn odd_sizes(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, "", "2M"))?;
    let guest = lab.guest(0)?;
    let disks = connect(guest, &target)?;
    // Every write goes to a plain file too, which says what must be there in the end.
    let mut script = "head -c 2M /dev/urandom >source
         put() {
             dd if=source of=$1 bs=$3 seek=$2 iflag=fullblock oflag=seek_bytes$4 conv=notrunc count=1 status=none
         }
         both() { put \"$disk\" $1 $2 $3; put mirror $1 $2; }
         same() { dd if=$disk of=back bs=1M iflag=direct status=none; cmp mirror back; }
        "
    .to_owned();
    // Byte offsets and lengths through the page cache: within a block, over its ends, over pages, ends of the namespace.
    let buffered: [(u64, u64); 10] = [
        (0, 1),
        (511, 2),
        (4095, 2),
        (5000, 1),
        (12_345, 67_891),
        (MIB - 1, 300_002),
        (MIB + 400_077, 4097),
        (MIB + 500_000, 513),
        (2 * MIB - 1, 1),
        (2 * MIB - 70_001, 35_001),
    ];
    for (_, block_size, disk) in &disks {
        script += &format!(
            "disk={disk}\nhead -c 2M /dev/urandom >mirror\ndd if=mirror of=$disk bs=1M oflag=direct status=none\n"
        );
        for (offset, len) in buffered {
            script += &format!("both {offset} {len}\n");
        }
        script += "sync $disk\nblockdev --flushbufs $disk\nsame\n";
        // Numbers of blocks that are not powers of two, from odd blocks on, past the page cache.
        for (first, count) in [(1, 1), (3, 3), (7, 5), (101, 7), (1, 33), (255, 127)] {
            let (offset, len) = (first * block_size, count * block_size);
            script += &format!("both {offset} {len} ,direct\n");
        }
        script += "same\n";
        // And read in odd pieces.
        script += &format!(
            "dd if=$disk of=back bs={} iflag=direct status=none; cmp mirror back\n\
             dd if=$disk of=back bs=65537 status=none; cmp mirror back\n",
            21 * block_size
        );
    }
    guest.sh_within(Duration::from_secs(120), &script)?;
    // A comparison that could not fail would prove nothing.
    guest.sh_fails(&format!(
        "head -c 2M {disk} >mirror; printf x | dd of={disk} bs=1 seek=4097 conv=notrunc,fsync status=none
         dd if={disk} of=back bs=1M iflag=direct status=none; cmp mirror back",
        disk = disks[0].2
    ))?;
    target.stop()
}

fn largest(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    for (transfer, kib, index) in [("1M", 1024, 1), ("128K", 128, 2), ("4M", 4096, 0)] {
        let target = lab.target(&config(
            lab,
            &format!("[node]\nmax_transfer = \"{transfer}\""),
            "8M",
        ))?;
        let disks = connect(guest, &target)?;
        let Some((nsid, _, disk)) = disks.get(index) else {
            return Err(Failure::new("a namespace is missing"));
        };
        let queue = format!("/sys/block/{}/queue", disk.trim_start_matches("/dev/"));
        let limit = guest
            .sh(&format!(
                "echo {kib} >{queue}/max_sectors_kb; cat {queue}/max_hw_sectors_kb"
            ))?
            .stdout;
        ensure!(
            limit.trim() == kib.to_string(),
            "the target takes transfers of {kib} KiB and Linux does {limit} KiB"
        );
        let (writes, reads) = commands(guest)?;
        guest.sh(&format!(
            "head -c 8M /dev/urandom >pattern
             dd if=pattern of={disk} bs=8M oflag=direct iflag=fullblock status=none
             dd if={disk} of=back bs=8M iflag=direct status=none
             cmp pattern back"
        ))?;
        let (later_writes, later_reads) = commands(guest)?;
        let (writes, reads) = (later_writes - writes, later_reads - reads);
        // Linux cuts 8 MiB into as few commands as the limit allows, and into a few more where its own limits are lower.
        let fewest = 8 * 1024 / kib;
        let counts = fewest..=fewest.max(8) + 1;
        ensure!(
            counts.contains(&writes) && counts.contains(&reads),
            "with transfers of {kib} KiB, 8 MiB are {writes} writes to namespace {nsid} and {reads} reads"
        );
        guest.sh("nvme disconnect-all")?;
        target.stop()?;
    }
    Ok(())
}

/// Writes and reads that the target has executed so far, by its own count: what carried data.
fn commands(guest: &Vm) -> Result<(u64, u64), Failure> {
    let log = guest
        .sh(&format!("nvme smart-log /dev/$(controllers {NQN}) -o json"))?
        .json()?;
    // Some versions of the tool write numbers as text.
    let number = |field: &str| {
        let value = &log[field];
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    number("host_write_commands")
        .zip(number("host_read_commands"))
        .ok_or_else(|| Failure::new(format!("the log does not count commands: {log}")))
}

fn one_by_one(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, "", "4M"))?;
    let guest = lab.guest(0)?;
    for (nsid, block_size, disk) in connect(guest, &target)? {
        // NLB is zero-based.
        guest.sh(&format!(
            "rm -f a b c; head -c {len} /dev/urandom >a; head -c {len} /dev/zero >zeroes
             nvme write {disk} -s 5 -c 2 -z {len} -d a >&2
             nvme flush {disk} -n {nsid} >&2
             nvme read {disk} -s 5 -c 2 -z {len} -d b >&2; cmp a b
             nvme compare {disk} -s 5 -c 2 -z {len} -d a >&2
             nvme verify {disk} -n {nsid} -s 5 -c 2 >&2
             printf x | dd of=a bs=1 seek={last} conv=notrunc status=none",
            len = 3 * block_size,
            last = 3 * block_size - 1,
        ))?;
        let said = guest
            .sh_fails(&format!(
                "nvme compare {disk} -s 5 -c 2 -z {} -d a",
                3 * block_size
            ))?
            .stderr;
        ensure!(
            said.contains("Compare Failure") || said.to_lowercase().contains("miscompare"),
            "on namespace {nsid}, a comparison with another last byte fails otherwise: {said}"
        );
        guest.sh(&format!(
            "nvme write {disk} -s 5 -c 2 -z {len} -d b --force-unit-access >&2
             nvme write-zeroes {disk} -n {nsid} -s 6 -c 0 >&2
             nvme read {disk} -s 5 -c 2 -z {len} -d c >&2
             cmp -n {block_size} b c; cmp -n {block_size} -i 0:{block_size} zeroes c; cmp -i {two} b c
             nvme write-zeroes {disk} -n {nsid} -s 5 -c 2 --deac >&2
             nvme read {disk} -s 5 -c 2 -z {len} -d c >&2; cmp zeroes c",
            len = 3 * block_size,
            two = 2 * block_size,
        ))?;
        let blocks = 4 * MIB / block_size;
        for (what, command) in [
            (
                "write",
                format!(
                    "nvme write {disk} -s {} -c 1 -z {} -d b",
                    blocks - 1,
                    2 * block_size
                ),
            ),
            (
                "write zeroes",
                format!("nvme write-zeroes {disk} -n {nsid} -s {blocks} -c 0"),
            ),
            ("verify", format!("nvme verify {disk} -n {nsid} -s {blocks} -c 0")),
        ] {
            let said = guest.sh_fails(&command)?.stderr;
            ensure!(
                said.contains("LBA Out of Range") || said.contains("logical block range"),
                "on namespace {nsid}, {what} past the end fails otherwise: {said}"
            );
        }
    }
    target.stop()
}
