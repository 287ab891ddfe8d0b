//! Our initiator against Linux's target over RDMA (nvmet-rdma on soft-RoCE), both in one guest: it is found, connected to, and reads back
//! what was written, whatever the size, the depth, the number of queues and the protection of memory; and what fails is said in one
//! clear sentence.

use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Kernels, Lab, Output, Peer, Requirement, Test, Transport, Vm, check_refusal,
};
use serde_json::Value;

/// The subsystem that these tests serve.
const NQN: &str = "nqn.2026-01.org.example:rdma";

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discover_identify_list_copy",
        feature: "discover, identify, list, read, write, copy; IPv4 and IPv6",
        run: first,
        ..TEST
    },
    Test {
        name: "sizes_depths_and_queues",
        feature: "verified I/O of 512 B to 1 MiB, depth 1 to 128, several queues",
        limit: Duration::from_secs(400),
        run: |lab| sizes(lab, ""),
        ..TEST
    },
    Test {
        name: "with_memory_windows",
        feature: "the same with a memory window for each command",
        limit: Duration::from_secs(400),
        run: |lab| sizes(lab, "--memory-windows"),
        kernels: Kernels::Default,
        ..TEST
    },
    Test {
        name: "steady_state",
        feature: "no allocation, copy or registration per I/O",
        run: steady,
        kernels: Kernels::Default,
        ..TEST
    },
    Test {
        name: "what_fails_is_said",
        feature: "errors: no device, nobody listening, unknown subsystem, host not allowed",
        run: refusals,
        ..TEST
    },
    Test {
        name: "the_target_goes_under_io",
        feature: "subsystem disabled and device removed under I/O",
        run: losses,
        // Soft-RoCE of 6.12 can dereference a null pointer when a target goes under it.
        kernels: Kernels::Newest,
        ..TEST
    },
];

const TEST: Test = Test {
    needs: &[
        Requirement::SoftRoce,
        Requirement::LinuxTarget,
        Requirement::Verbs,
    ],
    kernels: Kernels::Every,
    transport: Transport::Rdma,
    peer: Peer::LinuxTarget,
    limit: Duration::from_secs(240),
    ..Test::DEFAULT
};

/// Options for guests that are slow.
const PATIENT: &str = "--connect-timeout 30s --command-timeout 60s";

const HOSTS: [&str; 2] = ["10.77.0.1", "[fd77::1]"];

/// Serves a disk of 64 MiB at both addresses.
fn serve(guest: &Vm) -> Result<(), Failure> {
    guest
        .sh(&format!(
            "soft_roce
             disk=$(ram_disk 64)
             nvmet_subsystem {NQN}
             nvmet_namespace {NQN} 1 $disk
             nvmet_port 1 rdma 10.77.0.1 4420 {NQN}
             nvmet_port 2 rdma fd77::1 4420 {NQN}"
        ))
        .map(drop)
}

fn uri(host: &str) -> String {
    format!("'nvme+rdma://{host}/{NQN}'")
}

/// The command line of `homi` with these arguments.
fn homi(lab: &Lab, arguments: &str) -> String {
    format!("{} {arguments} {PATIENT}", lab.program("homi").display())
}

fn run(lab: &Lab, guest: &Vm, arguments: &str) -> Result<String, Failure> {
    let output = guest.sh_within(Duration::from_secs(200), &homi(lab, arguments))?;
    Ok(output.stdout)
}

/// A benchmark that stamps and checks; what it says in JSON.
fn bench(lab: &Lab, guest: &Vm, arguments: &str) -> Result<Value, Failure> {
    let output = run(
        lab,
        guest,
        &format!("bench {arguments} --rw randrw --verify --interval 0 --json"),
    )?;
    let said: Value = serde_json::from_str(&output)?;
    let number = |name: &str| said.get(name).and_then(Value::as_u64).unwrap_or(0);
    ensure!(
        number("blocks_verified") > 0 && said.get("verified") == Some(&Value::Bool(true)),
        "nothing was verified: {output}"
    );
    Ok(said)
}

fn counter(said: &Value, name: &str) -> Result<u64, Failure> {
    said.get("counters")
        .and_then(|counters| counters.get(name))
        .and_then(Value::as_u64)
        .ok_or_else(|| Failure::new(format!("there is no counter {name}: {said}")))
}

fn first(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    for host in HOSTS {
        let found = run(lab, guest, &format!("discover 'nvme+rdma://{host}'"))?;
        ensure!(
            found.contains(NQN) && found.contains("nvme+rdma://"),
            "the discovery log does not lead to {NQN}: {found}"
        );
        let uri = uri(host);
        let page = run(lab, guest, &format!("identify {uri}"))?;
        ensure!(page.contains("1 MiB"), "the controller says: {page}");
        let by_discovery = run(lab, guest, &format!("list 'nvme+rdma://{host}'"))?;
        let by_name = run(lab, guest, &format!("list {uri}"))?;
        for list in [by_discovery, by_name] {
            ensure!(
                list.contains("64 MiB") && list.contains("?nsid=1"),
                "the list says: {list}"
            );
        }
        // A file of odd length, in and out; Linux's own disk has the same bytes.
        let homi = |arguments: &str| homi(lab, arguments);
        guest.sh_within(
            Duration::from_secs(120),
            &format!(
                "head -c 3000001 /dev/urandom >in
                 {}
                 {}
                 cmp in out
                 dd if=/dev/ram0 of=disk bs=1M count=3 iflag=direct status=none
                 cmp -n 3000001 disk in
                 {} | head -c 3000001 | cmp - in
                 head -c 8192 /dev/urandom >some
                 {}
                 {} >back
                 cmp some back",
                homi(&format!("copy in {uri} --verify")),
                homi(&format!("copy {uri} out --count 3000001")),
                homi(&format!("read {uri} --count 3000064")),
                homi(&format!("write {uri} --input some --offset 4096")),
                homi(&format!("read {uri} --offset 4096 --count 8192")),
            ),
        )?;
    }
    Ok(())
}

/// Bytes of each I/O, commands in flight, queues, and I/Os.
const MIXES: [(&str, u16, u16, u32); 11] = [
    ("512", 1, 1, 200),
    ("512", 128, 1, 400),
    ("4k", 1, 1, 200),
    ("4k", 16, 4, 400),
    ("4k", 127, 2, 600),
    ("8k", 32, 1, 300),
    ("16k", 8, 2, 200),
    ("64k", 8, 1, 80),
    ("128k", 16, 1, 60),
    ("256k", 3, 1, 24),
    ("1m", 4, 2, 16),
];

fn sizes(lab: &Lab, option: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    for (index, (size, depth, queues, ios)) in MIXES.into_iter().enumerate() {
        let host = HOSTS.get(index % 2).copied().unwrap_or("10.77.0.1");
        let said = bench(
            lab,
            guest,
            &format!(
                "{} {option} --bs {size} --iodepth {depth} --queues {queues} --ios {ios}",
                uri(host)
            ),
        )?;
        let (copies, work) = (counter(&said, "copies")?, counter(&said, "work_requests")?);
        let commands = counter(&said, "commands")?;
        lab.note(&format!(
            "{size} x {depth} x {queues}: {commands} commands, {work} work requests, {} doorbells, {} completions, {} registrations",
            counter(&said, "doorbells")?,
            counter(&said, "completions")?,
            counter(&said, "registrations")?,
        ));
        ensure!(copies == 0, "{copies} copies");
        ensure!(
            counter(&said, "aborts")? == 0 && work >= commands,
            "{commands} commands, {work} work requests"
        );
    }
    Ok(())
}

fn steady(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    for option in ["", "--memory-windows"] {
        for (size, depth, ios) in [("4k", 16, 400), ("64k", 4, 60)] {
            let said = bench(
                lab,
                guest,
                &format!(
                    "{} {option} --bs {size} --iodepth {depth} --warmup 4s --ios {ios}",
                    uri("10.77.0.1")
                ),
            )?;
            for name in ["registrations", "copies"] {
                let count = counter(&said, name)?;
                ensure!(count == 0, "{count} {name} in steady state, {size} {option}");
            }
            let per_io = |name: &str| {
                said.get("per_io")
                    .and_then(|all| all.get(name))
                    .and_then(Value::as_f64)
            };
            let allocations = per_io("allocations");
            ensure!(
                allocations == Some(0.0),
                "{allocations:?} allocations per I/O in steady state, {size} {option}"
            );
            lab.note(&format!(
                "{size} x {depth} {option}: {}",
                said.get("counters").unwrap_or(&said)
            ));
        }
    }
    Ok(())
}

/// Runs a command that must fail, and checks what it says.
fn fails(lab: &Lab, guest: &Vm, arguments: &str, says: &[&str]) -> Result<(), Failure> {
    let output = guest.try_sh(&homi(lab, arguments))?;
    said(lab, &output, says)
}

fn said(lab: &Lab, output: &Output, says: &[&str]) -> Result<(), Failure> {
    let sentence = check_refusal(output, 1)?;
    lab.note(sentence);
    for part in says {
        ensure!(
            sentence.contains(part),
            "homi does not say \"{part}\" but: {sentence}"
        );
    }
    Ok(())
}

fn refusals(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    fails(
        lab,
        guest,
        &format!("identify {}", uri("10.77.0.1")),
        &["no RDMA device"],
    )?;
    serve(guest)?;
    // A way out of this machine that no RDMA device is on.
    fails(
        lab,
        guest,
        &format!("identify {}", uri("127.0.0.1")),
        &["127.0.0.1:4420", "RDMA device"],
    )?;
    fails(
        lab,
        guest,
        &format!("identify 'nvme+rdma://10.77.0.1:4421/{NQN}'"),
        &["10.77.0.1:4421 refused the connection"],
    )?;
    fails(
        lab,
        guest,
        "identify 'nvme+rdma://10.77.0.1/nqn.2026-01.org.example:nothing'",
        &[
            "no subsystem nqn.2026-01.org.example:nothing",
            "homi discover nvme+rdma://10.77.0.1",
        ],
    )?;
    fails(
        lab,
        guest,
        &format!("bench {} --data-digest --ios 1", uri("10.77.0.1")),
        &["nvme/rdma has no digests"],
    )?;
    guest.sh(&format!("echo 0 >$NVMET/subsystems/{NQN}/attr_allow_any_host"))?;
    fails(
        lab,
        guest,
        &format!(
            "identify {} --host-nqn nqn.2026-01.org.example:stranger",
            uri("[fd77::1]")
        ),
        &["does not let this host use", "nqn.2026-01.org.example:stranger"],
    )?;
    Ok(())
}

fn losses(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    serve(guest)?;
    let endless = |options: &str| {
        homi(
            lab,
            &format!(
                "bench {} --rw randrw --bs 4k --iodepth 16 --runtime 100s --interval 0 {options}",
                uri("10.77.0.1")
            ),
        )
    };
    for options in ["", "--spin 100s", "--memory-windows"] {
        let job = guest.spawn(Duration::from_secs(120), &endless(options))?;
        guest.sh("sleep 6")?;
        guest.sh(&format!("rm $NVMET/ports/1/subsystems/{NQN}"))?;
        let output = job.try_wait(Duration::from_secs(60))?;
        said(lab, &output, &["lost"])?;
        guest.sh(&format!("nvmet_offer 1 {NQN}"))?;
    }
    // Afterwards the target serves as before.
    bench(lab, guest, &format!("{} --bs 4k --ios 200", uri("10.77.0.1")))?;
    let job = guest.spawn(Duration::from_secs(120), &endless(""))?;
    guest.sh("sleep 6; rdma link delete rxe0")?;
    let output = job.try_wait(Duration::from_secs(60))?;
    said(lab, &output, &["lost"])
}
