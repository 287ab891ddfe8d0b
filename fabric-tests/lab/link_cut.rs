//! Two guests whose cable is cut: for less than any timeout, for longer, and for good. I/O goes on as if nothing had happened, or fails with
//! a sentence in bounded time, and what was acknowledged is there when the cable is whole again.

use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Job, Kernels, Lab, Output, Peer, Plan, Requirement, Test, check_refusal};

use crate::link_faults::{NQN, PAIR, Served, place, serve_linux, serve_ours};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "linux_host_and_our_target",
        needs: &[Requirement::LinuxHost, Requirement::Tool("fio")],
        peer: Peer::LinuxHost,
        kernels: Kernels::Default,
        feature: "cable cut under verified I/O: short, long, for good",
        run: linux_host,
        ..TEST
    },
    Test {
        name: "our_host_and_linux_target",
        needs: &[Requirement::LinuxTarget],
        peer: Peer::LinuxTarget,
        kernels: Kernels::Newest,
        run: |lab| our_host(lab, serve_linux(lab)?),
        ..TEST
    },
    Test {
        name: "our_host_and_our_target",
        peer: Peer::Own,
        kernels: Kernels::Default,
        run: |lab| our_host(lab, serve_ours(lab)?),
        ..TEST
    },
];

const TEST: Test = Test {
    guests: PAIR,
    feature: "cable cut under verified I/O: short, long, for good",
    limit: Duration::from_secs(300),
    ..Test::DEFAULT
};

/// A cut that no timeout notices: retransmission needs a while, too.
const SHORT: Duration = Duration::from_secs(1);
/// How long something may take that ends by itself.
const BOUND: Duration = Duration::from_secs(60);

/// Waits until so many more frames went over the cable: I/O is under way.
fn wait_for_frames(lab: &Lab, count: u64, job: &Job) -> Result<(), Failure> {
    let link = lab.link(0)?;
    let goal = link.counts().sent + count;
    let start = Instant::now();
    while link.counts().sent < goal {
        ensure!(
            start.elapsed() < BOUND && job.is_running(),
            "no I/O: {:?}, {:?}",
            link.counts(),
            job.so_far()
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Cuts the cable while something happens, or for a time; something must have been sent into the void.
fn while_cut<T>(lab: &Lab, act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let link = lab.link(0)?;
    link.set(Plan::CUT);
    let outcome = act();
    let counts = link.counts();
    link.set(Plan::CLEAN);
    let outcome = outcome?;
    ensure!(
        counts.lost > 0 && counts.delivered == 0,
        "the cable was not cut: {counts:?}"
    );
    Ok(outcome)
}

fn rest(time: Duration) -> Result<(), Failure> {
    thread::sleep(time);
    Ok(())
}

fn linux_host(lab: &Lab) -> Result<(), Failure> {
    let target = serve_ours(lab)?;
    let (serving, host) = (lab.guest(0)?, lab.guest(1)?);
    let address = serving.link_address(0);
    let connect = |options: &str| -> Result<String, Failure> {
        host.connect(
            &address,
            4420,
            NQN,
            &format!("--nr-io-queues=2 --keep-alive-tmo=3 {options}"),
        )?;
        host.namespace(NQN, 1)
    };
    let fio = |disk: &str, seconds: u64, offset: &str| {
        host.spawn(
            Duration::from_secs(120),
            &format!(
                "fio --name=verified --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k \
                 --size=1M --offset={offset} --verify=crc32c --verify_fatal=1 --time_based --runtime={seconds}"
            ),
        )
    };
    let disk = connect("--reconnect-delay=1 --ctrl-loss-tmo=120")?;
    let job = fio(&disk, 4, "0")?;
    wait_for_frames(lab, 300, &job)?;
    while_cut(lab, || rest(SHORT))?;
    job.wait(BOUND)
        .map_err(|failure| failure.while_doing("a short cut"))?;
    let log = host.kernel_log()?;
    ensure!(
        !log.contains("error recovery") && !log.contains("Reconnecting"),
        "a short cut made Linux reconnect: {log}"
    );

    let job = fio(&disk, 8, "1M")?;
    wait_for_frames(lab, 300, &job)?;
    // Until Linux gives its keep-alive up and begins to try again.
    while_cut(lab, || {
        host.sh("noticed() { dmesg | grep -q 'nvme.*econnecting in'; }; until_true 40 noticed")
    })
    .map_err(|failure| failure.while_doing("a long cut"))?;
    job.wait(BOUND)
        .map_err(|failure| failure.while_doing("a long cut"))?;
    host.sh("connected() { dmesg | grep -q 'nvme.*uccessfully reconnected'; }; until_true 5 connected")?;
    host.sh(&format!("nvme disconnect -n {NQN}"))?;

    let disk = connect("--reconnect-delay=1 --ctrl-loss-tmo=4")?;
    host.sh(&format!(
        "head -c 1M /dev/urandom >a; dd if=a of={disk} bs=64k seek=128 oflag=direct status=none"
    ))?;
    let job = fio(&disk, 100, "0")?;
    wait_for_frames(lab, 300, &job)?;
    let start = Instant::now();
    let output = while_cut(lab, || job.try_wait(BOUND))?;
    ensure!(
        !output.success() && start.elapsed() < BOUND,
        "fio ends with {} after {:?} though its disk was cut off for good",
        output.code,
        start.elapsed()
    );
    let gone = format!("gone() {{ [ -z \"$(controllers {NQN})\" ]; }}; until_true 40 gone");
    host.sh(&gone)?;
    let disk = connect("")?;
    host.sh(&format!(
        "dd if={disk} bs=64k skip=128 count=16 iflag=direct status=none | cmp - a"
    ))?;
    host.sh(&format!("nvme disconnect -n {NQN}"))?;
    match target {
        Served::Ours(target) => target.stop(),
        Served::Linux => Ok(()),
    }
}

/// A failure of `homi`: status 1, one sentence, and not later than it may.
fn clean_failure(output: &Output, took: Duration, limit: Duration) -> Result<&str, Failure> {
    let sentence = check_refusal(output, 1)?;
    ensure!(
        took < limit,
        "it took {took:.1?} instead of {limit:?} at most to say: {sentence}"
    );
    Ok(sentence)
}

fn our_host(lab: &Lab, target: Served<'_>) -> Result<(), Failure> {
    let place = place(lab)?;
    let host = lab.guest(1)?;
    let bench = |options: &str| {
        host.spawn(
            Duration::from_secs(120),
            &format!(
                "homi bench {place} --verify --seed 7 --bs 4k --size 1M --quiet --json --connect-timeout 30s {options}"
            ),
        )
    };
    // Every block is stamped, so that every block can be judged after each cut.
    bench("--rw write --depth 16 --ios 256")?.wait(BOUND)?;
    let judge = |when: &str| -> Result<(), Failure> {
        let told = bench("--rw read --depth 16 --ios 256")?
            .wait(BOUND)
            .and_then(|output| output.json())
            .map_err(|failure| failure.while_doing(format!("reading everything back after {when}")))?;
        ensure!(
            told["verified"] == true && told["blocks_unchecked"] == 0 && told["ios"] == 256,
            "after {when}: {told}"
        );
        Ok(())
    };

    let job = bench("--rw randrw --depth 8 --queues 2 --time 4s")?;
    wait_for_frames(lab, 300, &job)?;
    while_cut(lab, || rest(SHORT))?;
    let told = job
        .wait(BOUND)
        .and_then(|output| output.json())
        .map_err(|failure| failure.while_doing("a short cut"))?;
    ensure!(
        told["verified"] == true && told["counters"]["aborts"] == 0,
        "a short cut: {told}"
    );
    judge("a short cut")?;

    // Longer than the timeout of commands and its Abort's.
    let job = bench("--rw randrw --depth 8 --queues 2 --time 1h --command-timeout 2s")?;
    wait_for_frames(lab, 300, &job)?;
    let start = Instant::now();
    let output = while_cut(lab, || job.try_wait(BOUND))?;
    let sentence = clean_failure(&output, start.elapsed(), Duration::from_secs(20))?;
    ensure!(
        sentence.contains("the queue was lost") && sentence.contains("not answered"),
        "a long cut: {sentence}"
    );
    judge("a long cut")?;

    // Commands may take long: keep alive notices.
    host.sh("head -c 12M /dev/urandom >a")?;
    let copy = host.spawn(
        Duration::from_secs(120),
        &format!("homi copy a {place} --to 8M --verify --quiet --connect-timeout 30s"),
    )?;
    wait_for_frames(lab, 300, &copy)?;
    let start = Instant::now();
    let (output, refused, took) = while_cut(lab, || {
        let output = copy.try_wait(BOUND)?;
        let elapsed = start.elapsed();
        let start = Instant::now();
        let refused = host.try_sh(&format!("homi read {place} --connect-timeout 3s"))?;
        clean_failure(&refused, start.elapsed(), Duration::from_secs(20))?;
        Ok((output, refused, elapsed))
    })?;
    let sentence = clean_failure(&output, took, Duration::from_secs(30))?;
    ensure!(
        sentence.contains("lost") && sentence.contains("keep alive"),
        "a copy that was cut off: {sentence}"
    );
    let sentence = check_refusal(&refused, 1)?;
    ensure!(
        sentence.contains("3s") || sentence.contains("cannot reach"),
        "connecting without a cable: {sentence}"
    );
    judge("a cut for good")?;
    // What failed can be done again, and is whole then.
    let told = host
        .sh(&format!(
            "homi copy a {place} --count 2M --to 8M --checksum crc32c --verify --json --connect-timeout 30s"
        ))?
        .json()?;
    ensure!(
        told["verified"] == true && told["bytes_copied"] == 2 << 20,
        "a copy after the cut: {told}"
    );
    match target {
        Served::Ours(target) => target.stop(),
        Served::Linux => Ok(()),
    }
}
