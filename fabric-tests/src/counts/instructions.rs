//! Instructions of an I/O at either end, counted by callgrind.
//!
//! One end runs under valgrind with few I/Os and with many; the difference, divided by the I/Os that make it, is what one costs: whatever
//! happens once (start, connecting, tables that grow) cancels out. The end that is watched runs fifty times slower than the other,
//! so it is the one that is waited for, as a saturated end is; neither polls, because polling would count too. The target runs on
//! readiness events, because valgrind (3.19 at least) stops all threads while one of them waits for io_uring.

use std::process::{Command, Stdio};

use super::fraction::{TargetProcess, program};
use super::{End, Failure};

/// I/Os in flight.
pub const DEPTH: u16 = 32;

/// What an I/O costs one end, in instructions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instructions {
    /// A 4 KiB read.
    pub read: f64,
    /// A 4 KiB write.
    pub write: f64,
}

/// Why instructions cannot be counted here, if so.
#[must_use]
pub fn missing() -> Option<String> {
    let found = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("valgrind does not run ({status})")),
        Err(_) => Some("valgrind is not installed (Debian and Ubuntu: apt-get install valgrind)".to_owned()),
    }
}

/// Counts what 4 KiB reads and writes cost one end, by the slope from `few` to `many` I/Os.
///
/// # Errors
/// Whatever keeps an end from running, and output of valgrind without a count.
pub fn measure(end: End, few: u64, many: u64) -> Result<Instructions, Failure> {
    let slope = |write| -> Result<f64, Failure> {
        let (low, high) = (count(end, write, few)?, count(end, write, many)?);
        Ok(super::ratio(high.saturating_sub(low), many - few))
    };
    Ok(Instructions {
        read: slope(false)?,
        write: slope(true)?,
    })
}

/// All instructions of one end over a run of so many I/Os.
fn count(end: End, write: bool, ios: u64) -> Result<u64, Failure> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("valgrind");
    let watched = |name: &str| -> Result<Command, Failure> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command
            .arg(format!("--log-file={}", log.display()))
            .arg(program(name)?);
        Ok(command)
    };
    let (target, initiator) = match end {
        End::Target => (watched("homi-target")?, Command::new(program("homi")?)),
        End::Initiator => (Command::new(program("homi-target")?), watched("homi")?),
    };
    let target = TargetProcess::start(target, None, &["--poll-us", "0", "--events", "readiness"])?;
    let mut bench = initiator;
    bench.arg("bench").arg(target.uri.to_string());
    bench.args([
        "--rw",
        if write { "randwrite" } else { "randread" },
        "--bs",
        "4k",
        "--iodepth",
    ]);
    bench.arg(DEPTH.to_string()).arg("--ios").arg(ios.to_string());
    bench.args(["--spin", "0us", "--interval", "0s", "--quiet", "--json"]);
    let output = bench.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!(
            "the benchmark failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    target.stop()?;
    let text = std::fs::read_to_string(&log)?;
    collected(&text).ok_or_else(|| format!("valgrind counted nothing: {text}").into())
}

/// The number in callgrind's line `==1== Collected : 12345`.
fn collected(log: &str) -> Option<u64> {
    let (_, after) = log.split_once("Collected : ")?;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_the_log() {
        let log = "==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n==7== I   refs:      1,234,567\n";
        assert_eq!(collected(log), Some(1_234_567));
        assert_eq!(collected("==7== nothing"), None);
    }
}
