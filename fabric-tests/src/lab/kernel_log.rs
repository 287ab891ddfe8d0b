//! The kernel log of a guest, judged: what a kernel says when it caught itself at a mistake fails the test.

/// Line that the runner writes into a guest's kernel log when a test begins.
pub const MARK: &str = "lab: test begins";

/// Beginnings of messages that report a mistake of the kernel, or of what was done to it.
const BEGINNINGS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "INFO: task ",
    "INFO: rcu",
    "INFO: lockdep",
    "INFO: trying to register",
    "Oops",
    "kernel BUG at",
    "Kernel panic",
    "general protection fault",
    "refcount_t:",
    "UBSAN:",
    "KASAN:",
    "KCSAN:",
    "KFENCE:",
    "list_add corruption",
    "list_del corruption",
    "watchdog: BUG",
    "rcu: INFO:",
    "DMAR: DRHD: handling fault",
    "workqueue: Failed",
];

/// Parts of messages that do so wherever they stand.
const PARTS: &[&str] = &[
    "possible recursive locking detected",
    "possible circular locking dependency detected",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called from invalid context",
    "scheduling while atomic",
    "soft lockup",
    "detected stalls on CPUs",
    "blocked for more than",
    "segfault at",
    "Out of memory: Killed",
    "unable to handle page fault",
    "NULL pointer dereference",
    "invalid opcode:",
];

/// The lines after the last [`MARK`]; all of them where there is none.
#[must_use]
pub fn of_this_test(log: &str) -> &str {
    let after = log
        .rfind(MARK)
        .and_then(|at| log.get(at..))
        .and_then(|rest| rest.split_once('\n'));
    match after {
        Some((_, rest)) => rest,
        None => log,
    }
}

/// The lines that report a mistake and are not tolerated.
#[must_use]
pub fn mistakes<'a>(log: &'a str, tolerated: &[&str]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| is_mistake(message(line)) && !tolerated.iter().any(|part| line.contains(part)))
        .collect()
}

/// A line without its time.
fn message(line: &str) -> &str {
    match line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((time, message)) if time.trim().parse::<f64>().is_ok() => message,
        _ => line,
    }
}

fn is_mistake(message: &str) -> bool {
    BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        || PARTS.iter().any(|part| message.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found_and_ordinary_lines_are_not() {
        let log = "\
[    0.000000] Linux version 6.12
[    1.204411] nvme nvme0: creating 2 I/O queues.
[    2.100000] nvme nvme0: WARNING: this is only said by a driver
[    3.000000] WARNING: CPU: 1 PID: 77 at drivers/nvme/host/tcp.c:1 nvme_tcp+0x1/0x2
[  130.000000] INFO: task fio:99 blocked for more than 120 seconds.
[  131.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000
[  132.000000] fio[99]: segfault at 0 ip 0 sp 0 error 4 in fio
[  133.000000] INFO: lab is happy
";
        let found = mistakes(log, &[]);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(mistakes(log, &["nvme_tcp+", "fio"]).len(), 1);
    }

    #[test]
    fn a_console_without_times_is_judged_too() {
        assert_eq!(
            mistakes("Kernel panic - not syncing: Attempted to kill init!\n", &[]).len(),
            1
        );
    }

    #[test]
    fn only_lines_of_the_last_test_count() {
        let log =
            "[1.0] WARNING: old\n[2.0] lab: test begins a\n[3.0] x\n[4.0] lab: test begins b\n[5.0] new\n";
        assert_eq!(of_this_test(log), "[5.0] new\n");
        assert_eq!(of_this_test("[5.0] new\n"), "[5.0] new\n");
        assert_eq!(of_this_test("[4.0] lab: test begins b\n"), "");
    }
}
