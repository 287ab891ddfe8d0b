//! `homi-target` as an operator meets it: what it prints, signals, and one sentence for whatever is wrong.
#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(30);

fn homi_target(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homi-target"));
    command
        .args(arguments)
        .env("HOMI_LOG", "info")
        .stdin(Stdio::null());
    command
}

/// Runs it to its end, which has to come by itself.
fn run(arguments: &[&str]) -> (Output, String) {
    let output = homi_target(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

struct Running {
    process: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut process = homi_target(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        Self { process, out }
    }

    /// The next line it prints: what it serves.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for its end, which has to be a good one.
    fn succeeds(mut self) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "it ended with {status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a failed test leaves it running.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn address(line: &str) -> SocketAddr {
    let rest = line.split_once("nvme+tcp://").unwrap().1;
    rest.split_once('/').unwrap().0.parse().unwrap()
}

#[test]
fn memory_is_served_without_any_file_until_sigterm() {
    let mut target = Running::start(&["serve", "--ram", "1G", "--listen", "127.0.0.1:0"]);
    let line = target.line();
    assert!(line.starts_with("serving nvme+tcp://127.0.0.1:"), "{line}");
    drop(TcpStream::connect(address(&line)).unwrap());
    target.signal(Signal::SIGTERM);
    target.succeeds();

    let mut target = Running::start(&["serve", "--ram", "1M", "--listen", "127.0.0.1:0"]);
    target.line();
    target.signal(Signal::SIGINT);
    target.succeeds();
}

fn config(path: &Path, addresses: &[SocketAddr], ram: &str) {
    use std::fmt::Write as _;
    let mut text = String::from("[node]\nshards = 1\n");
    for address in addresses {
        writeln!(text, "[[listener]]\naddress = \"{address}\"").unwrap();
    }
    write!(
        text,
        "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:a\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"{ram}\"\n"
    )
    .unwrap();
    // Replaced as a whole, as an operator's editor does.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn sighup_brings_listeners_and_keeps_serving_when_the_file_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target.toml");
    let (first, second) = (free_address(), free_address());
    config(&path, &[first], "1M");
    let mut target = Running::start(&["serve", "--config", path.to_str().unwrap()]);
    assert_eq!(address(&target.line()), first);
    let kept = TcpStream::connect(first).unwrap();

    config(&path, &[first, second], "1M");
    target.signal(Signal::SIGHUP);
    assert_eq!(
        [address(&target.line()), address(&target.line())],
        [first, second]
    );
    drop(TcpStream::connect(second).unwrap());

    config(&path, &[first], "12 parsecs");
    target.signal(Signal::SIGHUP);
    // Signals of one kind merge: wait until this one was dealt with.
    let mut log = BufReader::new(target.process.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("12 parsecs") {
        assert_ne!(log.read_line(&mut seen).unwrap(), 0, "the log ended: {seen}");
    }
    assert!(seen.contains("not reloaded"), "{seen}");
    config(&path, &[second], "1M");
    drop(TcpStream::connect(first).unwrap());
    target.signal(Signal::SIGHUP);
    assert_eq!(address(&target.line()), second);
    drop(TcpStream::connect(second).unwrap());
    drop(kept);
    target.signal(Signal::SIGTERM);
    target.succeeds();
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken
        .local_addr()
        .map(|address| (taken, address.to_string()))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd.img");
    fs::write(&odd, [0; 1000]).unwrap();
    let odd = odd.to_str().unwrap();
    let absent = folder.path().join("absent");
    let absent = absent.to_str().unwrap();
    for (arguments, expected) in [
        (&["serve"][..], "nothing to serve"),
        (&["serve", "--ram", "1M", "--listen", &taken.1], "in use"),
        (&["serve", "--ram", "1M", "--listen", "0.0.0.0:0"], "--allow"),
        (&["serve", "--ram", "lots"], "not a size"),
        (&["serve", "--ram", "1000"], "multiple of the block size"),
        (&["serve", "--ram", "1M", "--nqn", "disk"], "not an NQN"),
        (
            &["serve", "--ram", "1M", "--events", "select"],
            "io_uring or readiness",
        ),
        (&["serve", "--ram", "1M", "--listen", "localhost"], "--listen"),
        (
            &["serve", "--file", absent, "--listen", "127.0.0.1:0"],
            "does not exist",
        ),
        (
            &["serve", "--file", odd, "--listen", "127.0.0.1:0"],
            "whole number",
        ),
        (
            &["serve", "--file", "/dev/null", "--listen", "127.0.0.1:0"],
            "no generic character device of an NVMe namespace",
        ),
        (&["serve", "--drive", "nvme0"], "0000:01:00.0"),
        (&["serve", "--drive", "01:00.0/0"], "a number from 1"),
        (
            &["serve", "--ram", "1M", "--listen", "fc://127.0.0.1:4420"],
            "use tcp or rdma",
        ),
        // No RDMA device has such an address, wherever this runs.
        (
            &["serve", "--ram", "1M", "--listen", "rdma://127.255.3.1:4420"],
            "cannot listen on rdma://127.255.3.1:4420: ",
        ),
        (&["serve", "--config", absent], "cannot read"),
        (&["check", "--config", odd], "wrong"),
        (&["explode"], "explode"),
    ] {
        let (output, text) = run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(text.contains(expected), "{arguments:?} said: {text}");
        assert!(!text.contains("panicked"), "{arguments:?} said: {text}");
    }
}

#[test]
fn a_configuration_can_be_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target.toml");
    config(&path, &[free_address()], "1M");
    let (output, text) = run(&["check", "--config", path.to_str().unwrap()]);
    assert!(output.status.success(), "{text}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 listeners, 1 subsystems, 1 namespaces"));
}
