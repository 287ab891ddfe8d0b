//! Every command of `homi`, as a user runs it, on files and memory: what it prints, what it refuses and with which exit code.
#![expect(
    clippy::unwrap_used,
    reason = "a failing step of a test has nothing better to say than where it failed"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder of its own for each test, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("homi-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file of this many bytes that do not repeat.
    fn bytes(&self, name: &str, len: u64) -> String {
        let bytes: Vec<u8> = (0..len)
            .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
            .collect();
        fs::write(
            self.path(name),
            bytes.get(..usize::try_from(len).unwrap()).unwrap(),
        )
        .unwrap();
        self.path(name)
    }

    /// A device: a file of zeroes.
    fn device(&self, name: &str, len: u64) -> String {
        fs::File::create(self.path(name)).unwrap().set_len(len).unwrap();
        format!("file://{}", self.path(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn homi(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homi"))
        .args(arguments)
        .env_remove("HOMI_LOG")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Runs a command that must succeed, and returns what it prints.
fn run(arguments: &[&str]) -> String {
    let output = homi(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output).to_owned()
}

/// Runs a command with `--json` that must succeed: one object, and nothing on standard error.
fn json(arguments: &[&str]) -> Value {
    let output = homi(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "", "{arguments:?}");
    serde_json::from_str(stdout(&output)).unwrap()
}

/// Runs a command that must fail with this code and one sentence that contains all of `texts`, with and without `--json`.
fn refused(arguments: &[&str], code: i32, texts: &[&str]) {
    for json in [false, true] {
        let extra: &[&str] = if json { &["--json"] } else { &[] };
        let output = homi(&[arguments, extra].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(
            text.starts_with("homi: ") && text.lines().count() == 1,
            "{arguments:?} says {text:?}"
        );
        assert!(!text.contains("os error"), "{text}");
        for part in texts {
            assert!(
                text.contains(part),
                "{arguments:?} says {text:?}, which lacks {part:?}"
            );
        }
        if json {
            let object: Value = serde_json::from_str(stdout(&output)).unwrap();
            assert_eq!(format!("homi: {}\n", object["error"].as_str().unwrap()), text);
        } else {
            assert_eq!(stdout(&output), "", "{arguments:?}");
        }
    }
}

#[test]
fn devices_are_listed_and_described() {
    let folder = Folder::new("list");
    let device = folder.device("disk", 1 << 20);
    let text = run(&["list", &device]);
    assert!(
        text.contains("NSID") && text.contains("1 MiB") && text.contains("4 KiB") && text.contains("256"),
        "{text}"
    );
    let object = json(&["list", "ram://2M?block=512"]);
    let namespace = &object["controllers"][0]["namespaces"][0];
    assert_eq!(
        (namespace["bytes"].as_u64(), namespace["block_size"].as_u64()),
        (Some(2 << 20), Some(512))
    );
    assert_eq!(json(&["identify", &device])["namespace"]["blocks"], 256);
    assert!(run(&["identify", "ram://1M"]).contains("1 MiB (1048576 bytes)"));
    refused(
        &["identify", "ram://1M", "--raw"],
        2,
        &["no identify pages", "leave --raw"],
    );
    refused(
        &["identify", "ram://1M", "--namespace", "7"],
        2,
        &["namespace 1 only"],
    );
    refused(
        &["identify", "ram://1M", "--namespace", "0"],
        2,
        &["0 is not in 1..=4294967294"],
    );
    refused(&["discover", "ram://1M"], 1, &["nvme+tcp://HOST"]);
}

#[test]
fn bytes_are_written_and_read_wherever_they_begin_and_end() {
    let folder = Folder::new("bytes");
    let device = folder.device("disk", 1 << 20);
    let input = folder.bytes("input", 10_001);
    run(&["write", &device, "--input", &input, "--offset", "777"]);
    let output = folder.path("output");
    run(&[
        "read", &device, "--offset", "777", "--count", "10001", "--output", &output,
    ]);
    assert_eq!(fs::read(&output).unwrap(), fs::read(&input).unwrap());
    // On standard output, by block, and what is around it.
    let all = homi(&["read", &device, "--lba", "0", "--count", "16k"]).stdout;
    assert_eq!(all.len(), 16384);
    assert_eq!(all.get(777..10_778).unwrap(), fs::read(&input).unwrap());
    assert!(
        all.iter()
            .take(777)
            .chain(all.iter().skip(10_778))
            .all(|byte| *byte == 0)
    );
    let object = json(&["read", &device, "--offset", "777", "--count", "16"]);
    let digits = object["data"].as_str().unwrap();
    assert_eq!((object["bytes_read"].as_u64(), digits.len()), (Some(16), 32));
    assert!(digits.starts_with("0000000000000000"), "{digits}");
    let object = json(&["write", &device, "--input", &input, "--lba", "3", "--count", "4k"]);
    assert_eq!(
        (object["offset"].as_u64(), object["bytes_written"].as_u64()),
        (Some(12_288), Some(4096))
    );
}

#[test]
fn standard_input_is_written() {
    let folder = Folder::new("stdin");
    let device = folder.device("disk", 64 << 10);
    let write = |bytes: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_homi"))
            .args(["write", &device, "--input", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(write(b"hello fabrics").status.success());
    assert_eq!(homi(&["read", &device, "--count", "13"]).stdout, b"hello fabrics");
    let output = write(&vec![1; (64 << 10) + 1]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("do not lie in"), "{}", stderr(&output));
}

#[test]
fn a_file_that_does_not_know_its_length_is_written_whole() {
    let folder = Folder::new("unknown-length");
    let device = folder.device("disk", 1 << 20);
    let version = fs::read("/proc/version").unwrap();
    assert_eq!(fs::metadata("/proc/version").unwrap().len(), 0);
    let told = json(&["write", &device, "--input", "/proc/version"]);
    assert_eq!(told["bytes_written"], version.len());
    assert!(fs::read(folder.path("disk")).unwrap().starts_with(&version));
    fs::write(folder.path("empty"), "").unwrap();
    let told = json(&["write", &device, "--input", &folder.path("empty")]);
    assert_eq!(told["bytes_written"], 0);
}

#[test]
fn files_are_copied_in_and_out() {
    let folder = Folder::new("copy");
    let device = folder.device("disk", 4 << 20);
    // Not a whole number of chunks, nor of blocks.
    let input = folder.bytes("input", 1_234_567);
    let output = folder.path("output");
    let copied = json(&[
        "copy", &input, &device, "--to", "8k", "--verify", "--chunk", "100k",
    ]);
    assert_eq!(copied["bytes_copied"], 1_234_567);
    assert_eq!(copied["verified"], true);
    let text = run(&[
        "copy", &device, &output, "--from", "8192", "--count", "1234567", "--verify", "--depth", "3",
    ]);
    assert_eq!(fs::read(&output).unwrap(), fs::read(&input).unwrap());
    assert!(
        text.contains(copied["checksum"].as_str().unwrap()) && text.contains("the same read back"),
        "{text}"
    );
    // Device to device, file to file, one byte, nothing.
    let second = folder.device("second", 4 << 20);
    for checksum in ["crc32c", "sha256"] {
        assert_eq!(
            json(&["copy", &device, &second, "--verify", "--checksum", checksum])["verified"],
            true
        );
    }
    assert_eq!(
        fs::read(folder.path("disk")).unwrap(),
        fs::read(folder.path("second")).unwrap()
    );
    run(&["copy", &input, &folder.path("third"), "--verify", "--quiet"]);
    assert_eq!(fs::read(folder.path("third")).unwrap(), fs::read(&input).unwrap());
    let memory = json(&["copy", &input, "ram://2M?block=512", "--verify"]);
    assert_eq!(
        (memory["verified"].as_bool(), &memory["checksum"]),
        (Some(true), &copied["checksum"])
    );
    for count in ["1", "0"] {
        let object = json(&["copy", &input, &output, "--count", count, "--verify"]);
        assert_eq!(object["verified"], true);
        assert_eq!(fs::metadata(&output).unwrap().len().to_string(), count);
    }
}

#[test]
fn what_is_around_a_copy_stays() {
    let folder = Folder::new("around");
    let device = folder.path("disk");
    fs::write(&device, vec![0xaa; 64 << 10]).unwrap();
    let input = folder.bytes("input", 5000);
    run(&["copy", &input, &format!("file://{device}"), "--to", "4k"]);
    let bytes = fs::read(&device).unwrap();
    assert_eq!(bytes.get(4096..9096).unwrap(), fs::read(&input).unwrap());
    assert!(
        bytes
            .iter()
            .take(4096)
            .chain(bytes.iter().skip(9096))
            .all(|byte| *byte == 0xaa)
    );
    // A file keeps what is behind only if it is not written from its start.
    run(&["copy", &input, &device, "--to", "60k"]);
    assert_eq!(fs::metadata(&device).unwrap().len(), (60 << 10) + 5000);
    assert_eq!(fs::read(&device).unwrap().first(), Some(&0xaa));
}

#[test]
fn copies_that_cannot_be_are_refused() {
    let folder = Folder::new("refuse");
    let device = folder.device("disk", 1 << 20);
    let input = folder.bytes("input", 5000);
    let missing = folder.path("missing");
    refused(
        &["copy", &missing, &device],
        1,
        &["cannot open", "no such file", "check the path"],
    );
    refused(
        &["copy", &input, &format!("{missing}/x")],
        1,
        &["cannot write to", "check the path"],
    );
    refused(&["copy", &input, &input], 1, &["are the same bytes"]);
    refused(
        &["copy", &input, &format!("file://{input}")],
        1,
        &["are the same bytes"],
    );
    refused(
        &["copy", &device, &device, "--to", "4k"],
        1,
        &["are the same bytes"],
    );
    refused(
        &["copy", &input, &device, "--to", "1M"],
        1,
        &["do not fit", "smaller --count or --to"],
    );
    refused(
        &["copy", &input, &device, "--to", "5"],
        2,
        &["not at the start of a block", "multiple of 4096"],
    );
    refused(
        &["copy", &input, &device, "--from", "5001"],
        1,
        &["has 5000 bytes"],
    );
    refused(
        &["copy", &input, &device, "--count", "5001"],
        1,
        &["has 5000 bytes, not 5001"],
    );
    refused(
        &["copy", &input, &device, "--verify", "--checksum", "none"],
        2,
        &["--checksum crc32c or sha256"],
    );
    refused(
        &["copy", &input, &device, "--checksum", "md5"],
        2,
        &["sha256, crc32c, none"],
    );
    refused(&["copy", "ftp://x/y", &device], 2, &["unknown scheme"]);
    refused(
        &["copy", folder.0.to_str().unwrap(), &device],
        1,
        &["is a directory"],
    );
    assert_eq!(
        fs::read(&input).unwrap().len(),
        5000,
        "a refused copy leaves its source alone"
    );
    // Copying within a device is fine where the ranges are apart.
    run(&[
        "copy", &device, &device, "--to", "512k", "--count", "512k", "--verify",
    ]);
}

#[test]
fn reads_and_writes_that_cannot_be_are_refused() {
    let folder = Folder::new("ranges");
    let input = folder.bytes("input", 5000);
    refused(
        &["read", "ram://1M", "--count", "2M"],
        1,
        &["do not lie in", "smaller offset or count"],
    );
    refused(&["read", "ram://1M", "--lba", "256"], 1, &["do not lie in"]);
    refused(
        &["read", "ram://1M", "--lba", "18446744073709551615"],
        1,
        &["beyond any device"],
    );
    refused(
        &["read", "ram://1M", "--count", "1x"],
        2,
        &["\"1x\" is not a size", "128KiB"],
    );
    refused(&["read", "ram://1M", "--count", "0"], 2, &["a size of 0"]);
    refused(
        &["read", "ram://1M", "--lba", "1", "--offset", "1"],
        2,
        &["cannot be used with"],
    );
    refused(
        &["read", "ram://1M", "--output", &folder.path("a/b")],
        1,
        &["cannot create"],
    );
    refused(&["read", "ram://1"], 2, &["whole number of 4096-byte blocks"]);
    refused(&["write", "ram://4k", "--input", &input], 1, &["do not lie in"]);
    refused(
        &["write", "ram://1M", "--input", &input, "--count", "6k"],
        1,
        &["has 5000 bytes, not 6144"],
    );
    refused(
        &["write", "ram://1M", "--input", &folder.path("nothing")],
        1,
        &["cannot open", "check the path"],
    );
    refused(&["write", "ram://1M"], 2, &["--input <FILE>"]);
    refused(&["read", "file:///nothing/here"], 1, &["/nothing/here"]);
    refused(
        &["read", "nvme+tcp://localhost"],
        2,
        &["discovery service", "homi discover"],
    );
}

#[test]
fn hosts_that_cannot_be_reached_are_named() {
    // Port 1 is not in use on any machine that runs tests.
    let uri = "nvme+tcp://127.0.0.1:1/nqn.2024-01.org.example:disk";
    refused(&["bench", uri], 1, &["127.0.0.1:1 refused the connection"]);
    refused(
        &["list", "nvme+tcp://127.0.0.1:1"],
        1,
        &["127.0.0.1:1 refused the connection"],
    );
    refused(
        &["discover", "nvme+tcp://127.0.0.1:1"],
        1,
        &["127.0.0.1:1 refused the connection"],
    );
    refused(&["identify", uri], 1, &["check that the target runs"]);
    refused(&["read", "nvme+tcp://[::1"], 2, &["not a host"]);
    refused(&["read", uri, "--host-nqn", "me"], 2, &["host nqn \"me\""]);
    refused(&["read", uri, "--connect-timeout", "soon"], 2, &["is not a time"]);
    refused(&["read", uri, "--connect-timeout", "0"], 2, &["timeout"]);
}

#[test]
fn command_lines_that_cannot_be_meant_are_one_sentence() {
    refused(
        &["bench", "ram://1M", "--depht", "3"],
        2,
        &["'--depht'", "'--depth'", "--help"],
    );
    refused(&["bench"], 2, &["<URI>", "--help"]);
    refused(&["fly"], 2, &["'fly'"]);
    refused(&["bench", "nothing"], 2, &["has no scheme"]);
    let output = homi(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: homi"));
    let help = run(&["bench", "--help"]);
    for option in [
        "--block-size",
        "--depth",
        "--queues",
        "--mix",
        "--verify",
        "--report",
        "[alias: --bs]",
    ] {
        assert!(help.contains(option), "{option} is not in the help");
    }
    assert!(run(&["--version"]).starts_with("homi "));
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_homi"))
        .args(["read", "ram://64M", "--count", "64M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

#[test]
fn benchmarks_count_what_they_are_told_to_do() {
    let object = json(&[
        "bench", "ram://8M", "--ios", "5000", "--mix", "70", "--depth", "16", "--queues", "2", "--bs", "8k",
    ]);
    assert_eq!(object["ios"], 5000);
    assert_eq!(object["bytes"], 5000 * 8192);
    let (reads, writes) = (
        object["read"]["ios"].as_u64().unwrap(),
        object["write"]["ios"].as_u64().unwrap(),
    );
    assert_eq!(reads + writes, 5000);
    assert!((3200..3800).contains(&reads), "{reads}");
    for direction in ["read", "write"] {
        let latency = &object[direction]["latency_ns"];
        let value = |name: &str| latency[name].as_f64().unwrap();
        let rising = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(value);
        assert!(rising.is_sorted(), "{rising:?}");
        assert!(value("mean") > 0.0);
    }
    assert!(object["iops"].as_f64().unwrap() > 0.0 && object["mib_per_second"].as_f64().unwrap() > 0.0);
    assert!(object["per_io"]["cpu_ns"].as_f64().unwrap() > 0.0);
    // The queue's own table grows at first; after that nothing is allocated.
    assert!(
        object["per_io"]["allocations"].as_f64().unwrap() < 0.02,
        "{}",
        object["per_io"]
    );
    assert_eq!(
        json(&["bench", "ram://8M", "--size", "1M", "--rw", "write"])["ios"],
        256
    );
}

#[test]
fn benchmarks_end_in_time_and_say_what_came_of_it() {
    let text = run(&[
        "bench", "ram://8M", "--time", "300ms", "--warmup", "50ms", "--rw", "rw", "--fua", "--seed", "3",
    ]);
    for part in [
        "4 KiB sequential 50 % reads, 50 % writes, depth 32, 1 queue",
        "IOPS",
        "p99.99",
        "\nread ",
        "\nwrite ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let object = json(&["bench", "ram://8M", "--time", "300ms", "--rate", "1000"]);
    let (ios, seconds) = (
        object["ios"].as_f64().unwrap(),
        object["seconds"].as_f64().unwrap(),
    );
    assert!(
        ios >= 20.0 && ios <= seconds * 1000.0 + 2.0,
        "{ios} in {seconds} s"
    );
}

#[test]
fn an_interrupted_benchmark_says_what_came_of_it() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let child = Command::new(env!("CARGO_BIN_EXE_homi"))
        .args([
            "bench",
            "ram://8M",
            "--time",
            "1h",
            "--interval",
            "20ms",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Long enough to have started on a busy machine; before that the signal would end the process, and the test would say so.
    std::thread::sleep(std::time::Duration::from_secs(2));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, stderr(&output));
    let object: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(object["stopped_early"], true);
    assert!(object["ios"].as_u64().unwrap() > 0);
}

#[test]
fn benchmarks_verify_what_they_write_and_find_what_changed() {
    let folder = Folder::new("verify");
    let device = folder.device("disk", 1 << 20);
    let object = json(&[
        "bench", &device, "--rw", "write", "--size", "1M", "--verify", "--seed", "9",
    ]);
    assert_eq!(
        (object["verified"].as_bool(), object["blocks_verified"].as_u64()),
        (Some(true), Some(256))
    );
    let mixed = json(&[
        "bench",
        "ram://256k",
        "--mix",
        "50",
        "--ios",
        "4000",
        "--verify",
        "--bs",
        "16k",
    ]);
    assert!(mixed["blocks_verified"].as_u64().unwrap() > 4000, "{mixed}");
    let check = [
        "bench", &device, "--rw", "read", "--size", "1M", "--verify", "--seed", "9",
    ];
    assert_eq!(json(&check)["blocks_verified"], 256);
    let mut bytes = fs::read(folder.path("disk")).unwrap();
    bytes[5 * 4096 + 1000] ^= 1;
    fs::write(folder.path("disk"), bytes).unwrap();
    refused(
        &check,
        1,
        &[
            "wrong data at LBA 5: expected a block stamped for LBA 5 with seed 9",
            "found a damaged block",
        ],
    );
    let output = homi(&[&check[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        (object["verified"].as_bool(), object["lba"].as_u64()),
        (Some(false), Some(5))
    );
}

#[test]
fn benchmarks_that_cannot_be_are_refused() {
    let wrong: [(&[&str], &[&str]); 14] = [
        (
            &["--bs", "1000"],
            &[
                "--block-size 1000 is not a multiple of the 4096-byte blocks",
                "use 4096",
            ],
        ),
        (&["--bs", "1000x"], &["\"1000x\" is not a size"]),
        (&["--bs", "256M"], &["at once", "at most"]),
        (&["--depth", "0"], &["0 is not in 1..=4095"]),
        (&["--rw", "sideways"], &["randread, randwrite"]),
        (&["--rw", "read", "--mix", "3"], &["--rw randrw"]),
        (&["--mix", "101"], &["101 is not in 0..=100"]),
        (&["--ios", "5", "--time", "3"], &["cannot be used with"]),
        (&["--offset", "1M"], &["is behind the end"]),
        (&["--size", "2M"], &["use 1048576 at most"]),
        (&["--queues", "300"], &["too few for 300 threads"]),
        (&["--batch", "64"], &["a batch of 64 does not fit a depth of 32"]),
        (&["--pin", "x"], &["is not a list of cores"]),
        (&["--time", "0"], &["would end before it starts"]),
    ];
    for (options, texts) in wrong {
        refused(&[&["bench", "ram://1M"], options].concat(), 2, texts);
    }
    refused(
        &["bench", "ram://1M", "--pin", "999", "--ios", "9"],
        1,
        &["cannot pin a thread to core 999"],
    );
    refused(
        &["bench", "ram://1M", "--report", "/nothing/here.html"],
        1,
        &["cannot write the report to"],
    );
}

#[test]
fn the_report_is_one_well_formed_page() {
    let folder = Folder::new("report");
    let path = folder.path("report.html");
    let object = json(&[
        "bench",
        "ram://8M?block=512",
        "--time",
        "500ms",
        "--mix",
        "60",
        "--verify",
        "--report",
        &path,
    ]);
    assert_eq!(object["report"], path.as_str());
    let page = fs::read_to_string(&path).unwrap();
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(
            !page.contains(reference),
            "{reference} would need something else than the page"
        );
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("ram://8388608?block=512"), "the URI is in it");
    for title in [
        "over time",
        "Latency over time",
        "Latency by percentile",
        "Distribution of latency",
        "Configuration",
    ] {
        assert!(page.contains(title), "{title} is missing");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(!page.contains("NaN") && !page.contains("inf"));
    well_formed(&page);
}

#[test]
fn a_failed_benchmark_leaves_no_report() {
    let folder = Folder::new("noreport");
    let path = folder.path("report.html");
    let output = homi(&[
        "bench", "ram://1M", "--rw", "read", "--verify", "--ios", "9", "--report", &path,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!Path::new(&path).exists());
}

/// Checks that every element is closed in the right order and every attribute is quoted.
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(
            !text.contains('>') || open.last() == Some(&"style"),
            "a stray > in {text:?}"
        );
        let end = start + rest[start..].find('>').unwrap();
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        assert!(tag.matches('"').count().is_multiple_of(2), "<{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes something else");
        } else if !tag.ends_with('/') {
            let name = tag.split_whitespace().next().unwrap();
            if !["meta", "br"].contains(&name) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
}
