//! A guest to try things in, with our target connected.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::guest::{Accelerator, Guest};
use super::kernel::Kernel;
use super::target::HostTarget;
use super::test::Failure;
use super::vm::{Setting, Vm};

/// Subsystem that the target serves.
const NQN: &str = "nqn.2026-01.io.homi-fabrics:shell";
/// As long as anybody may want a shell.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Boots a guest, connects it to a target of ours on this machine, and gives it the terminal until its shell ends.
///
/// # Errors
/// The target does not start, the guest does not boot or is not let in.
pub fn shell(kernel: &Kernel, accelerator: Accelerator, programs: &Path) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("homi-lab.").tempdir()?;
    let target = HostTarget::start(
        &programs.join("homi-target"),
        folder.path(),
        "target",
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:{{port}}\"\nadvertise = \"{}\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\nnsid = 1\nram = \"256M\"\n",
            HostTarget::GUESTS_SEE
        ),
    )?;
    let mut err = io::stderr();
    // Whoever does not read this can use the shell all the same.
    let _ = writeln!(
        err,
        "booting Linux {}; the shell ends with exit or Ctrl-D",
        kernel.release
    );
    let setting = Setting {
        kernel,
        accelerator,
        programs,
        folder: folder.path(),
    };
    let vm = Vm::boot_with_console(&Guest::SMALL, 0, setting)?;
    let outcome = connect_and_wait(&vm, &target);
    vm.quit();
    outcome
}

fn connect_and_wait(vm: &Vm, target: &HostTarget) -> Result<(), Failure> {
    vm.connect(HostTarget::GUESTS_SEE, target.port(), NQN, "")?;
    let device = vm.namespace(NQN, 1)?;
    let script = format!(
        "export TERM='{}' NQN='{NQN}' ADDRESS={} PORT={}\nexec 0<>/dev/hvc0 1>&0 2>&1\n{}\
         printf '\\r\\n{device} is namespace 1 of our target at %s port %s ($ADDRESS, $PORT, $NQN).\\r\\n\
         homi-target and homi are in the PATH; what you write here is lost.\\r\\n\\r\\n' \"$ADDRESS\" \"$PORT\"\n\
         nvme list\ncd /root\nexport PS1='guest \\w # '\nexec setsid --ctty bash --norc -i",
        std::env::var("TERM")
            .unwrap_or_else(|_| "linux".to_owned())
            .replace('\'', ""),
        HostTarget::GUESTS_SEE,
        target.port(),
        terminal_size(),
    );
    vm.spawn(LIMIT, &script)?.try_wait(LIMIT).map(drop)
}

/// A command that gives the guest's terminal the size of this one, which no device does.
fn terminal_size() -> String {
    if !io::stdin().is_terminal() {
        return String::new();
    }
    let size = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let size = size
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    match size
        .split_whitespace()
        .map(str::parse::<u16>)
        .collect::<Result<Vec<_>, _>>()
        .as_deref()
    {
        Ok([rows, columns]) => format!("stty rows {rows} cols {columns}\n"),
        _ => String::new(),
    }
}
