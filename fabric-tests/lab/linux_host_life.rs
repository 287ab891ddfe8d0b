//! Linux's host against our target: what happens to data under load while the target is restarted or killed, namespaces come and go, the
//! controller is reset, and the host is silent for too long.

use std::fs::File;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Job, Kernels, Lab, Peer, Requirement, Test, Vm};

const NQN: &str = "nqn.2026-01.org.example:life";
/// Options of connections that are to come back soon.
const IMPATIENT: &str = "--reconnect-delay=1 --ctrl-loss-tmo=100";
const SIZE: u64 = 8 << 20;

const OF_LINUX: Test = Test {
    needs: &[Requirement::LinuxHost, Requirement::Tool("fio")],
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(200),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "the_target_is_restarted_under_load",
        feature: "target stopped and restarted under load",
        run: |lab| restart(lab, HostTarget::stop),
        ..OF_LINUX
    },
    Test {
        name: "the_target_is_killed_under_load",
        feature: "target killed and restarted under load",
        kernels: Kernels::Default,
        run: |lab| {
            restart(lab, |target| {
                target.kill();
                Ok(())
            })
        },
        ..OF_LINUX
    },
    Test {
        name: "namespaces_come_and_go_under_load",
        feature: "namespaces added and removed under load, changed-namespace event",
        run: namespaces_come_and_go,
        ..OF_LINUX
    },
    Test {
        name: "a_paused_host_is_given_up",
        feature: "keep-alive expiry, reconnection",
        kernels: Kernels::Default,
        run: a_paused_host_is_given_up,
        ..OF_LINUX
    },
    Test {
        name: "the_controller_is_reset_under_load",
        feature: "reset under load",
        run: reset,
        ..OF_LINUX
    },
];

/// A target with a file as namespace 1, and more namespaces.
fn config(lab: &Lab, more: &str) -> String {
    format!(
        r#"
[[listener]]
address = "127.0.0.1:{{port}}"
advertise = "{}"
[[subsystem]]
nqn = "{NQN}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
path = "{}"
create = "{SIZE}"
{more}"#,
        HostTarget::GUESTS_SEE,
        lab.scratch().join("backing").display(),
    )
}

/// Rounds of verified writes until it is finished. In each, 4 MB of blocks in random order are written once, at a rate that makes it last some
/// seconds, and read back: soon after they were written and again in the end.
struct Load {
    job: Job,
    disk: String,
}

impl Load {
    const ROUND_KIB: u64 = 4000;

    fn start(guest: &Vm, disk: &str) -> Result<Self, Failure> {
        let script = format!(
            "rm -f enough
             while [ ! -e enough ]; do
                 fio --name=load --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --randrepeat=0 \
                     --bssplit=4k/70:32k/20:80k/10 --size={}k --rate=,800k --verify=crc32c --verify_backlog=64 --verify_fatal=1 \
                     --output-format=json --output=load.json
                 echo round >&2
             done
             cat load.json",
            Self::ROUND_KIB
        );
        let job = guest.spawn(Duration::from_secs(180), &script)?;
        let load = Self {
            job,
            disk: disk.trim_start_matches("/dev/").to_owned(),
        };
        load.goes_on(guest)?;
        Ok(load)
    }

    /// Waits until 40 more of its writes are done.
    fn goes_on(&self, guest: &Vm) -> Result<(), Failure> {
        guest.sh(&format!(
            "writes() {{ read -r _ _ _ _ count _ </sys/block/{}/stat; }}
             writes; start=$count
             more() {{ writes; [ $count -ge $((start + 40)) ]; }}
             until_true 40 more",
            self.disk
        ))?;
        ensure!(
            self.job.is_running(),
            "the load has failed: {}",
            self.job.so_far().1.trim()
        );
        Ok(())
    }

    /// Waits for the end of its last round and sees that nothing was lost in any.
    fn finish(self, guest: &Vm) -> Result<(), Failure> {
        guest.sh("touch enough")?;
        let output = self.job.wait(Duration::from_secs(60))?;
        let start = output.stdout.find('{').unwrap_or(0);
        let report: serde_json::Value = serde_json::from_str(output.stdout.get(start..).unwrap_or_default())?;
        let job = &report["jobs"][0];
        let (written, read) = (&job["write"]["io_bytes"], &job["read"]["io_bytes"]);
        ensure!(
            job["error"] == 0
                && written.as_u64() == Some(Self::ROUND_KIB << 10)
                && read.as_u64() >= written.as_u64(),
            "the last round of the load has error {}, wrote {written} bytes and read {read}",
            job["error"]
        );
        Ok(())
    }
}

/// Waits until there is a controller that works.
fn live(guest: &Vm, seconds: u64) -> Result<(), Failure> {
    guest
        .sh(&format!(
            "works() {{ [ \"$(cat /sys/class/nvme/$(controllers {NQN})/state)\" = live ]; }}; until_true {seconds} works"
        ))
        .map(drop)
}

fn count(log: &str, part: &str) -> usize {
    log.matches(part).count()
}

/// Whether the file has what the host reads.
fn compare_with_file(lab: &Lab, guest: &Vm, disk: &str) -> Result<(), Failure> {
    let here = Command::new("cksum")
        .stdin(File::open(lab.scratch().join("backing"))?)
        .output()?;
    let here = String::from_utf8_lossy(&here.stdout).trim().to_owned();
    let there = guest
        .sh(&format!("dd if={disk} bs=1M iflag=direct status=none | cksum"))?
        .stdout;
    ensure!(
        here.ends_with(&SIZE.to_string()) && here == there.trim(),
        "the file has the sum and length {here}, and what the host reads has {there}"
    );
    Ok(())
}

fn restart(lab: &Lab, end: fn(&HostTarget) -> Result<(), Failure>) -> Result<(), Failure> {
    let target = lab.target(&config(lab, ""))?;
    let guest = lab.guest(0)?;
    guest.connect("10.0.2.2", target.port(), NQN, IMPATIENT)?;
    let disk = guest.namespace(NQN, 1)?;
    let load = Load::start(guest, &disk)?;
    for round in 1..=2 {
        end(&target)?;
        // The host notices and tries in vain.
        guest.sh(&format!(
            "lost() {{ [ \"$(cat /sys/class/nvme/$(controllers {NQN})/state)\" = connecting ]; }}; until_true 30 lost"
        ))?;
        thread::sleep(Duration::from_secs(2));
        target.restart()?;
        live(guest, 30)?;
        load.goes_on(guest)?;
        let log = guest.kernel_log()?;
        ensure!(
            count(&log, "Successfully reconnected") == round,
            "after {round} restarts the kernel has reconnected otherwise: {log}"
        );
    }
    load.finish(guest)?;
    compare_with_file(lab, guest, &disk)?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

fn namespaces_come_and_go(lab: &Lab) -> Result<(), Failure> {
    let memory =
        |nsid: u32, size: &str| format!("[[subsystem.namespace]]\nnsid = {nsid}\nram = \"{size}\"\n");
    let target = lab.target(&config(lab, ""))?;
    let guest = lab.guest(0)?;
    guest.connect("10.0.2.2", target.port(), NQN, IMPATIENT)?;
    let disk = guest.namespace(NQN, 1)?;
    let events = || Ok::<_, Failure>(count(&guest.kernel_log()?, "rescanning namespaces"));
    ensure!(events()? == 0, "the kernel scans before anything has changed");
    let load = Load::start(guest, &disk)?;

    // Nobody asks the host to scan: the event does.
    target.reload(&config(lab, &(memory(2, "4M") + &memory(7, "8M"))))?;
    let second = guest.namespace(NQN, 2)?;
    let seventh = guest.namespace(NQN, 7)?;
    ensure!(
        events()? >= 1,
        "namespaces have appeared and the kernel was not told"
    );
    guest.sh(&format!(
        "[ $(blockdev --getsize64 {second}) = 4194304 ]; [ $(blockdev --getsize64 {seventh}) = 8388608 ]
         head -c 8M /dev/urandom >a; dd if=a of={seventh} bs=256k oflag=direct status=none
         dd if={seventh} of=b bs=1M iflag=direct status=none; cmp a b"
    ))?;

    // One goes away while it is being written to, the others stay.
    let seen = events()?;
    let writer = guest.spawn(
        Duration::from_secs(60),
        &format!("while dd if=/dev/zero of={seventh} bs=64k count=64 oflag=direct conv=nocreat status=none; do echo round; done; echo refused"),
    )?;
    writer.wait_for_output("round", Duration::from_secs(30))?;
    target.reload(&config(lab, &memory(2, "4M")))?;
    guest.sh(&format!(
        "gone() {{ ! namespace_now {NQN} 7 && [ ! -b {seventh} ]; }}; until_true 30 gone"
    ))?;
    writer.wait_for_output("refused", Duration::from_secs(30))?;
    writer.wait(Duration::from_secs(10))?;
    ensure!(
        events()? > seen,
        "a namespace has vanished and the kernel was not told"
    );
    guest.sh(&format!(
        "[ \"$(namespace_now {NQN} 2)\" = {second} ]; dd if={second} of=/dev/null bs=1M iflag=direct status=none"
    ))?;
    load.goes_on(guest)?;

    // Another one with its identifier is another one.
    target.reload(&config(lab, &(memory(2, "4M") + &memory(7, "12M"))))?;
    let again = guest.namespace(NQN, 7)?;
    guest.sh(&format!(
        "[ $(blockdev --getsize64 {again}) = 12582912 ]; head -c 12M /dev/zero >zeroes; cmp zeroes {again}"
    ))?;
    load.finish(guest)?;
    ensure!(
        count(&guest.kernel_log()?, "reconnect") == 0,
        "the connection did not survive the changes"
    );
    compare_with_file(lab, guest, &disk)?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

fn a_paused_host_is_given_up(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, ""))?;
    let guest = lab.guest(0)?;
    guest.connect(
        "10.0.2.2",
        target.port(),
        NQN,
        &format!("{IMPATIENT} --keep-alive-tmo=4"),
    )?;
    let disk = guest.namespace(NQN, 1)?;
    // For longer than the timeout, with nothing to do: the host keeps itself alive.
    thread::sleep(Duration::from_secs(9));
    ensure!(
        !target.log().contains("keep-alive"),
        "an idle host was given up: {}",
        target.log()
    );
    let load = Load::start(guest, &disk)?;
    guest.pause()?;
    let start = Instant::now();
    while !target
        .log()
        .contains("silent for longer than its keep-alive timeout")
    {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "the target has not given up a host that is silent for half a minute: {}",
            target.log()
        );
        thread::sleep(Duration::from_millis(100));
    }
    let silent = start.elapsed();
    ensure!(
        silent > Duration::from_secs(2),
        "the target gives a host up after {silent:?}"
    );
    thread::sleep(Duration::from_secs(1));
    guest.resume()?;
    live(guest, 40)?;
    load.goes_on(guest)?;
    load.finish(guest)?;
    ensure!(
        count(&guest.kernel_log()?, "Successfully reconnected") == 1,
        "the kernel does not say that it reconnected"
    );
    compare_with_file(lab, guest, &disk)?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}

fn reset(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&config(lab, ""))?;
    let guest = lab.guest(0)?;
    let controller = guest.connect("10.0.2.2", target.port(), NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    let load = Load::start(guest, &disk)?;
    for _ in 0..4 {
        guest.sh(&format!("nvme reset /dev/{controller}"))?;
        live(guest, 30)?;
        load.goes_on(guest)?;
    }
    load.finish(guest)?;
    let log = guest.kernel_log()?;
    ensure!(
        count(&log, "resetting controller") == 4 && count(&log, "creating 2 I/O queues") == 5,
        "four resets are something else to the kernel: {log}"
    );
    compare_with_file(lab, guest, &disk)?;
    guest.sh("nvme disconnect-all")?;
    target.stop()
}
