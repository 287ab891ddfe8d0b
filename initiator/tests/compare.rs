//! `homi compare`, as a user runs it: over a connection, a file and memory at once, and what it refuses.
#![expect(
    clippy::unwrap_used,
    reason = "a failing step of a test has nothing better to say than where it failed"
)]

mod fake;

use std::fs;
use std::process::{Command, Output};

use fake::Fake as Target;
use serde_json::Value;

fn homi(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homi"))
        .args(arguments)
        .env_remove("HOMI_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A file of 2 MiB that goes away with the test.
struct Scratch(String);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("homi-compare-{name}-{}", std::process::id()));
        fs::File::create(&path).unwrap().set_len(2 << 20).unwrap();
        Self(path.to_str().unwrap().to_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn one_workload_runs_over_every_kind_of_path() {
    let target = Target::good();
    let file = Scratch::new("kinds");
    let (tcp, file) = (target.uri(), format!("file://{}?block=512", file.0));
    let output = homi(&[
        "compare",
        &tcp,
        &file,
        "ram://4M",
        "nvme+kernel:///dev/null",
        "--find",
        "--rw",
        "randrw",
        "--bs",
        "4k",
        "--ios",
        "60",
        "--rounds",
        "3",
        "--depth",
        "4",
        "--verify",
        "--json",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths = object["paths"].as_array().unwrap();
    let kinds: Vec<&str> = paths.iter().filter_map(|path| path["kind"].as_str()).collect();
    assert_eq!(kinds, ["tcp", "file", "memory", "kernel commands"]);
    for path in paths.iter().take(3) {
        assert_eq!(path["usable"], true, "{path}");
        assert_eq!(path["ios"], 60, "{path}");
        assert_eq!(path["iops_by_round"].as_array().unwrap().len(), 3);
        assert!(path["blocks_verified"].as_u64().unwrap() > 0, "{path}");
        assert!(path["latency_ns"]["p99_9"].as_u64().unwrap() > 0, "{path}");
        assert!(path["ratio"].as_f64().unwrap() > 0.0, "{path}");
        assert!(path["per_io"]["system_calls"].is_number(), "{path}");
    }
    assert_eq!(paths[0]["ratio"], 1.0);
    assert_eq!(paths[3]["usable"], false);
    let reason = paths[3]["reason"].as_str().unwrap();
    assert!(
        reason.contains("/dev/null is no generic character device"),
        "{reason}"
    );
    // All within what the smallest path has.
    assert_eq!(object["workload"]["bytes"], 2 << 20);
}

#[test]
fn the_table_is_for_people() {
    let file = Scratch::new("table");
    let file = format!("file://{}", file.0);
    let output = homi(&["compare", "ram://1M", &file, "--ios", "50", "--rounds", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("4 KiB random reads within 1 MiB, depth 32, 1 queue, 2 rounds"),
        "{table}"
    );
    assert!(lines[2].contains("SYSTEM/IO"), "{table}");
    assert!(
        lines[3].starts_with("ram://1048576") && lines[3].ends_with("1.00"),
        "{table}"
    );
    assert!(lines[4].starts_with(&file), "{table}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn paths_that_cannot_take_the_workload_say_why() {
    let file = Scratch::new("why");
    let file = format!("file://{}", file.0);
    // The first has blocks of 4096 bytes.
    let output = homi(&[
        "compare",
        &file,
        "ram://1M?block=512",
        "--bs",
        "512",
        "--ios",
        "20",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(
        table.contains("    not used: --block-size 512 is not a multiple of the 4096-byte blocks"),
        "{table}"
    );
    for (arguments, code, says) in [
        (&["compare"][..], 2, "<URI>"),
        (
            &["compare", "ram://1M", "--rounds", "0"],
            2,
            "0 is not in 1..=1000",
        ),
        (&["compare", "file:///does/not/exist"], 1, "no path can be used"),
        (
            &["compare", "ram://1M", "--bs", "3000"],
            1,
            "is not a multiple of the 4096-byte blocks",
        ),
        (
            &["compare", "nvme+tcp://localhost"],
            2,
            "names a discovery service",
        ),
        (
            &["bench", "nvme+kernel:///dev/does-not-exist", "--ios", "1"],
            1,
            "ls /dev/ng*",
        ),
        (
            &["identify", "nvme+kernel:///etc/passwd"],
            1,
            "no generic character device",
        ),
    ] {
        let output = homi(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(says), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_path_that_fails_while_it_is_measured_is_told_by_the_exit_code() {
    use fake::Verdict;
    use homi_spec::command::NvmOpcode;

    // Every read fails.
    let target = Target::script(|connection, sqe| {
        if connection.qid != 0 && sqe.opcode == NvmOpcode::READ.raw() {
            let _ = connection.respond(sqe.cid.get(), homi_spec::Status::UNRECOVERED_READ_ERROR, 0, 0);
            return Verdict::Done;
        }
        Verdict::Default
    });
    let output = homi(&[
        "compare",
        "ram://1M",
        &target.uri(),
        "--ios",
        "20",
        "--rounds",
        "2",
    ]);
    let (table, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{table}{error}");
    assert!(table.contains("    failed: the read of"), "{table}");
    assert!(error.contains("failed while it was measured"), "{error}");
}
