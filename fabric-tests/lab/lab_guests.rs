//! The lab itself: steps, limits, pauses, the kernel log, the link between two guests and what a plan does to it.

use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, Peer, Plan, Requirement, Test, Transport, Vm, kernel_log,
};

const PAIR: &[Guest] = &[
    Guest {
        links: &[0],
        ..Guest::SMALL
    },
    Guest {
        links: &[0],
        user_network: false,
        ..Guest::SMALL
    },
];

const OF_THE_LAB: Test = Test {
    transport: Transport::Local,
    peer: Peer::Kernel,
    kernels: Kernels::Default,
    needs: &[Requirement::Loopback],
    limit: Duration::from_secs(120),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "steps_run_at_once_and_end_at_their_limit",
        run: steps,
        ..OF_THE_LAB
    },
    Test {
        name: "files_and_ports_are_shared_with_the_machine",
        run: sharing,
        ..OF_THE_LAB
    },
    Test {
        name: "a_paused_guest_does_nothing",
        run: pause,
        ..OF_THE_LAB
    },
    Test {
        name: "the_kernel_log_begins_with_the_test",
        run: the_kernel_log_is_judged,
        tolerates: &["said by the test"],
        ..OF_THE_LAB
    },
    Test {
        name: "a_guest_powers_off",
        run: power_off,
        ..OF_THE_LAB
    },
    Test {
        name: "a_link_does_what_its_plan_says",
        guests: PAIR,
        run: link,
        ..OF_THE_LAB
    },
    Test {
        name: "our_target_serves_in_a_guest_and_linux_connects_over_a_link",
        guests: PAIR,
        needs: &[Requirement::LinuxHost],
        run: target_in_a_guest,
        ..OF_THE_LAB
    },
];

fn steps(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let slow = guest.spawn(
        Duration::from_secs(60),
        "echo begun; sleep 1; echo done; echo error >&2",
    )?;
    slow.wait_for_output("begun", Duration::from_secs(30))?;
    ensure!(
        guest.sh("echo quick")?.stdout == "quick\n",
        "a step in between says something else"
    );
    ensure!(slow.is_running(), "the slow step has ended before the quick one");
    let output = slow.wait(Duration::from_secs(30))?;
    ensure!(
        output.stdout == "begun\ndone\n" && output.stderr == "error\n",
        "{output:?}"
    );

    let failure = guest.sh("echo before; false; echo after").err();
    ensure!(failure.is_some(), "a step goes on after a command that fails");
    ensure!(guest.sh_fails("exit 7")?.code == 7, "another exit status");
    let start = Instant::now();
    let failure = guest
        .sh_within(Duration::from_secs(1), "sleep 1000 & sleep 1000")
        .err();
    let sentence = failure.map(|failure| failure.to_string()).unwrap_or_default();
    ensure!(
        sentence.contains("killed at its limit"),
        "{sentence:?} instead of the end of its time"
    );
    ensure!(
        start.elapsed() < Duration::from_secs(30),
        "the limit of a second took {:?}",
        start.elapsed()
    );
    ensure!(
        guest.sh_fails("pgrep -x sleep")?.stdout.is_empty(),
        "processes of the killed step are left"
    );
    Ok(())
}

fn sharing(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh("echo from the guest >/run/lab/share/file")?;
    let text = std::fs::read_to_string(guest.share().join("file"))?;
    ensure!(text == "from the guest\n", "the share has {text:?}");
    std::fs::write(lab.scratch().join("file"), "from the machine\n")?;
    let text = guest.sh(&format!("cat {}/file", lab.scratch().display()))?.stdout;
    ensure!(text == "from the machine\n", "the guest sees {text:?}");
    guest.sh(&format!("echo lost >{}/file", lab.scratch().display()))?;
    let text = std::fs::read_to_string(lab.scratch().join("file"))?;
    ensure!(
        text == "from the machine\n",
        "a guest has changed a file of the machine to {text:?}"
    );
    guest.sh("homi-target --version; homi --version").map(drop)
}

fn pause(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let count = guest.spawn(Duration::from_secs(60), "while echo tick; do sleep 0.05; done")?;
    count.wait_for_output("tick", Duration::from_secs(30))?;
    guest.pause()?;
    thread::sleep(Duration::from_millis(500));
    let before = count.so_far().0.len();
    thread::sleep(Duration::from_secs(1));
    let after = count.so_far().0.len();
    guest.resume()?;
    ensure!(before == after, "a paused guest wrote {} bytes", after - before);
    let start = Instant::now();
    while count.so_far().0.len() == after {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "the guest does not go on"
        );
        thread::sleep(Duration::from_millis(20));
    }
    count.signal(nix::sys::signal::Signal::SIGKILL)?;
    count.try_wait(Duration::from_secs(30)).map(drop)
}

fn the_kernel_log_is_judged(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh("echo '<4>WARNING: said by the test' >/dev/kmsg")?;
    let log = guest.kernel_log()?;
    ensure!(
        !log.contains("Linux version"),
        "the log begins with the boot: {log}"
    );
    let mistakes = kernel_log::mistakes(&log, &[]);
    ensure!(
        mistakes.len() == 1,
        "{mistakes:?} instead of the one line that the test has written"
    );
    Ok(())
}

fn power_off(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.power_off()?;
    ensure!(!guest.is_running(), "QEMU runs on");
    ensure!(guest.sh("true").is_err(), "a guest that is off takes steps");
    Ok(())
}

/// Frames that a guest has received over the link.
fn received(guest: &Vm) -> Result<u64, Failure> {
    Ok(guest
        .sh("cat /sys/class/net/link0/statistics/rx_packets")?
        .stdout
        .trim()
        .parse()?)
}

fn link(lab: &Lab) -> Result<(), Failure> {
    let (first, second) = (lab.guest(0)?, lab.guest(1)?);
    let link = lab.link(0)?;
    let there = second.link_address(0);
    first.sh(&format!("ping -q -c 3 -i 0.2 {there}"))?;

    // Datagrams to a port that nobody has, at a pace that no queue on the way is too short for; answers are limited by the kernel.
    let send =
        format!("for i in $(seq 100); do echo $i >/dev/udp/{there}/9 || true; sleep 0.01; done 2>/dev/null");
    link.set(Plan {
        duplicate: 1.0,
        ..Plan::CLEAN
    });
    let before = received(second)?;
    first.sh(&send)?;
    let twice = received(second)? - before;
    ensure!(twice >= 200, "{twice} frames received of 100 sent twice");
    link.set(Plan {
        loss: 0.5,
        ..Plan::CLEAN
    });
    let before = received(second)?;
    first.sh(&send)?;
    let half = received(second)? - before;
    let counts = link.counts();
    ensure!(
        (20..80).contains(&half),
        "{half} frames received of 100 of which half are lost"
    );
    ensure!(counts.lost >= 20 && counts.overrun == 0, "{counts:?}");

    link.set(Plan {
        delay: Duration::from_millis(100),
        ..Plan::CLEAN
    });
    let said = first
        .sh(&format!("ping -q -c 3 -i 0.2 {there} | tail -n 1"))?
        .stdout;
    let least = said
        .split(['=', '/'])
        .nth(4)
        .and_then(|number| number.trim().parse::<f64>().ok());
    ensure!(
        least.is_some_and(|least| least >= 200.0),
        "a round trip with 100 ms each way: {said}"
    );

    link.set(Plan::CUT);
    first.sh_fails(&format!("ping -q -c 2 -i 0.2 -W 1 {there}"))?;
    ensure!(link.counts().delivered == 0, "{:?}", link.counts());
    link.set(Plan::CLEAN);
    first.sh(&format!("ping -q -c 2 -i 0.2 -W 5 {there}")).map(drop)
}

fn target_in_a_guest(lab: &Lab) -> Result<(), Failure> {
    const NQN: &str = "nqn.2026-01.org.example:guest";
    let (serving, connecting) = (lab.guest(0)?, lab.guest(1)?);
    let config = |more: &str| {
        format!(
            "[[listener]]\naddress = \"{}:4420\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow = [\"{}\"]\n\
             [[subsystem.namespace]]\nnsid = 1\nram = \"32M\"\n{more}",
            serving.link_address(0),
            connecting.host_nqn(),
        )
    };
    let target = serving.target(&config(""))?;
    lab.link(0)?.set(Plan {
        delay: Duration::from_millis(2),
        ..Plan::CLEAN
    });
    connecting.connect(&serving.link_address(0), 4420, NQN, "")?;
    let disk = connecting.namespace(NQN, 1)?;
    connecting.sh(&format!(
        "head -c 2M /dev/urandom >a; dd if=a of={disk} bs=256k oflag=direct status=none
         dd if={disk} of=b bs=128k count=16 iflag=direct status=none; cmp a b"
    ))?;
    target.reload(&config("[[subsystem.namespace]]\nnsid = 2\nram = \"8M\"\n"))?;
    connecting.namespace(NQN, 2)?;
    connecting.sh(&format!("nvme disconnect -n {NQN}"))?;
    target.stop()
}
