//! NVMe/RDMA against peers that break the protocol, over soft-RoCE in one guest: a hostile host against targets, and a hostile controller
//! against our initiator. Whoever keeps to the protocol is served all the while, and no memory is touched that no command named.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Peer, Requirement, Test, Transport, Vm, check_refusal};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "host_against_our_target",
        run: our_target,
        ..TEST
    },
    Test {
        name: "controller_against_our_host",
        run: our_host,
        ..TEST
    },
    Test {
        name: "host_against_linux_target",
        needs: &[
            Requirement::SoftRoce,
            Requirement::Verbs,
            Requirement::Module("nvmet-rdma"),
        ],
        peer: Peer::Kernel,
        feature: "",
        run: linux_target,
        ..TEST
    },
];

const TEST: Test = Test {
    needs: &[Requirement::SoftRoce, Requirement::Verbs],
    kernels: Kernels::Default,
    transport: Transport::Rdma,
    peer: Peer::Own,
    feature: "hostile peers",
    limit: Duration::from_secs(600),
    ..Test::DEFAULT
};

const NQN: &str = "nqn.2026-01.org.example:hostile";

/// Our target, for well-behaved and hostile hosts.
fn config(in_capsule: &str) -> String {
    format!(
        "[rdma]\nin_capsule = \"{in_capsule}\"\n[[listener]]\ntransport = \"rdma\"\naddress = \"10.77.0.1:4420\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"64M\"\nblock_size = 512\n"
    )
}

fn our_target(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh("soft_roce")?;
    let target = guest.target(&config("8K"))?;
    attack(lab, "--ours")?;
    target.stop()?;
    // Without data in capsules, one that is too long fits a packet.
    let target = guest.target(&config("0"))?;
    attack(lab, "--ours --only capsule-lengths")?;
    target.stop()
}

/// The hostile host against the kernel's target, which is to survive: this tests the attacks.
fn linux_target(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "soft_roce
         nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 64 512)
         nvmet_port 1 rdma 10.77.0.1 4420 {NQN}"
    ))?;
    attack(lab, "")?;
    guest.sh("nvmet_clear")?;
    Ok(())
}

/// Attacks what listens in the guest.
fn attack(lab: &Lab, options: &str) -> Result<(), Failure> {
    let program = lab.program("rdma-hostile");
    let output = lab.guest(0)?.sh_within(
        Duration::from_secs(550),
        &format!("{} host 10.77.0.1:4420 {NQN} {options}", program.display()),
    )?;
    for line in output.stdout.lines() {
        lab.note(line);
    }
    ensure!(
        output.stdout.lines().last() == Some("all ok"),
        "it ended early: {}",
        output.stdout
    );
    Ok(())
}

/// What a hostile controller does ("head", a submission queue head outside of the queue, is no mistake without flow control), what the sentence about it has in it, and what the controller says if it is to be told something by its
/// adapter.
const ATTACKS: &[(&str, &str, &str)] = &[
    ("reject-1", "private data of another length", ""),
    ("reject-2", "record format", ""),
    ("reject-3", "no such queue", ""),
    ("reject-4", "smaller queue size", ""),
    ("reject-5", "another queue size", ""),
    ("reject-6", "out of resources", ""),
    ("reject-7", "responder resource", ""),
    ("reject-8", "initiator depth", ""),
    ("reject-9", "association", ""),
    ("reject-65535", "status", ""),
    ("reject-nothing", "refused the connection", ""),
    ("accept-nothing", "0 commands", ""),
    ("accept-format", "record format 7", ""),
    ("accept-one-entry", "1 commands", ""),
    ("ignore", "", ""),
    ("mute", "", ""),
    ("silence", "", ""),
    ("unknown-id", "not in flight", ""),
    ("doubled", "not in flight", ""),
    ("empty", "response capsule of 0 bytes", ""),
    ("short", "response capsule of 15 bytes", ""),
    ("long", "", ""),
    ("foreign-key", "", ""),
    ("own-key", "", ""),
    ("writes-outside", "", "refused by key"),
    ("writes-by-wrong-key", "", "refused by key"),
    ("reads-by-wrong-key", "", "refused by key"),
    ("flood", "", ""),
    ("disconnects", "", ""),
    ("dies", "", ""),
    ("dies-with-data", "", ""),
    ("fails", "", ""),
];

/// Our host against a controller that makes every mistake, while another connection to a right one works all the time.
fn our_host(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh("soft_roce")?;
    let target = guest.target(&config("8K"))?;
    let beside = guest.spawn(
        Duration::from_secs(590),
        &format!(
            "while [ ! -e stop ]; do
                 homi bench 'nvme+rdma://10.77.0.1:4420/{NQN}?nsid=1' --rw randrw --verify --bs 4k --depth 2 --size 4M --time 5s --quiet \\
                     --connect-timeout 30s
             done"
        ),
    )?;
    // Behaves well: what is refused below is refused for what it does.
    let well = bench(lab, guest, 4421, "none")?;
    ensure!(
        well.code == 0,
        "a controller without fault: {} {}",
        well.code,
        well.stderr
    );
    let mut problems = Vec::new();
    for ((attack, sentence, told), port) in ATTACKS.iter().zip(4422..) {
        let output = bench(lab, guest, port, attack)?;
        let said = match check_refusal(&output, 1) {
            Ok(said) => said.to_owned(),
            Err(failure) => {
                problems.push(format!("{attack}: {failure}"));
                continue;
            }
        };
        lab.note(&format!("{attack}: {said}"));
        if !said.contains(sentence) {
            problems.push(format!("{attack}: homi says {said}"));
        }
        if !output.stdout.contains(told) {
            problems.push(format!("{attack}: the controller says {}", output.stdout));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    ensure!(beside.is_running(), "the connection beside has ended");
    guest.sh("touch stop")?;
    beside.wait(Duration::from_secs(60))?;
    target.stop()
}

/// Reads from and writes to a hostile controller. On standard output is what the controller said, on standard error what `homi` said, and the
/// exit status is `homi`'s.
fn bench(lab: &Lab, guest: &Vm, port: u16, attack: &str) -> Result<fabric_tests::lab::Output, Failure> {
    let program = lab.program("rdma-hostile");
    // Two never answer.
    let patience = if matches!(attack, "ignore" | "mute") {
        4
    } else {
        25
    };
    guest.try_sh(&format!(
        "{} controller 10.77.0.1:{port} {attack} 60 >said 2>&1 & controller=$!
         until_true 20 grep -q listening said
         code=0
         homi bench 'nvme+rdma://10.77.0.1:{port}/nqn.2026-01.org.example:data?nsid=1' --rw randrw --bs 4k --ios 40 --depth 4 --size 4M \
             --quiet --connect-timeout {patience}s --command-timeout 2s >/dev/null || code=$?
         if ! kill $controller; then echo 'the controller has ended' >&2; fi
         wait $controller || true
         cat said
         exit $code",
        program.display()
    ))
}
