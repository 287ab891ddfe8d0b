//! The program itself, as an operator runs it, with hosts connected: what signals do, and what is there after a restart.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here and says where"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use fabric_tests::bodies::{read, write, write_and_read};
use fabric_tests::harness::{DEADLINE, Host, HostOptions};
use fabric_tests::network::NetworkHost;
use fabric_tests::random::contents;
use fabric_tests::settings::{DATA, OTHER};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program and the lines that it prints.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_homi-target-under-test"))
            .args(arguments)
            .env("HOMI_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line, and the address in it.
    fn serving(&self) -> (SocketAddr, String) {
        let line = self.lines.recv_timeout(DEADLINE).unwrap();
        let uri = line
            .strip_prefix("serving nvme+tcp://")
            .unwrap_or_else(|| panic!("{line}"));
        let (address, rest) = uri.split_once('/').unwrap();
        (address.parse().unwrap(), rest.to_owned())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the program does not end");
            thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(directory: &Path, other: bool) -> String {
    let directory = directory.display();
    let mut text = format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
[[subsystem]]
nqn = "{DATA}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
path = "{directory}/disk"
create = "8M"
block_size = 4096
"#
    );
    if other {
        text += &format!(
            r#"
[[subsystem]]
nqn = "{OTHER}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
ram = "1M"
"#
        );
    }
    text
}

#[test]
fn sighup_reads_the_configuration_again_and_sigterm_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("target.toml");
    fs::write(&file, configuration(scratch.path(), false)).unwrap();
    let mut program = Program::start(&["serve", "--config", file.to_str().unwrap()]);
    let (address, rest) = program.serving();
    assert!(rest.starts_with(DATA), "{rest}");
    let mut host = NetworkHost::connect(address, &HostOptions::default()).unwrap();
    let mut queue = host.queue(4);
    let bytes = contents(1, 64 << 10);
    write(&mut queue, (1, 4096), 0, &bytes);
    let missing = NetworkHost::connect(address, &HostOptions::at(OTHER))
        .err()
        .unwrap();
    assert!(missing.contains("no subsystem"), "{missing}");

    // Another subsystem appears; who is connected goes on.
    fs::write(&file, configuration(scratch.path(), true)).unwrap();
    program.signal(Signal::SIGHUP);
    assert_eq!(program.serving().0, address);
    assert!(program.serving().1.starts_with(OTHER));
    let mut other = NetworkHost::connect(address, &HostOptions::at(OTHER)).unwrap();
    write_and_read(&mut other.queue(2), (1, 4096), 0, 2);
    assert_eq!(read(&mut queue, (1, 4096), 0, 16), bytes);

    // A mistake changes nothing, and the next correct file is taken again.
    fs::write(&file, "[[subsystem]]\nnqn = 7\n").unwrap();
    program.signal(Signal::SIGHUP);
    fs::write(&file, configuration(scratch.path(), false)).unwrap();
    program.signal(Signal::SIGHUP);
    assert!(program.serving().1.starts_with(DATA));
    let mut host_again = NetworkHost::connect(address, &HostOptions::default()).unwrap();
    write_and_read(&mut host_again.queue(2), (1, 4096), 100, 3);
    assert_eq!(read(&mut queue, (1, 4096), 0, 16), bytes);

    program.signal(Signal::SIGTERM);
    assert!(program.wait().success());
    queue.wait_for_the_end();
    host.wait_for_the_end();
    // The same file serves the same blocks.
    let program = Program::start(&["serve", "--config", file.to_str().unwrap()]);
    let mut host = NetworkHost::connect(program.serving().0, &HostOptions::default()).unwrap();
    assert_eq!(read(&mut host.queue(2), (1, 4096), 0, 16), bytes);
}
