//! A guest to try things in, with our target connected.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::guest::{Accelerator, Guest};
use super::kernel::Kernel;
use super::pool::scratch_folder;
use super::target::HostTarget;
use super::test::Failure;
use super::vm::{Setting, Vm};

/// Subsystem that the target serves.
const NQN: &str = "nqn.2026-01.io.homi-fabrics:shell";
/// As long as anybody may want a shell.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Boots a guest, connects it to a target of ours on this machine, and gives it the terminal until its shell ends. Where standard input is no
/// terminal, it is a script for the guest. Returns the shell's or the script's exit status.
///
/// # Errors
/// The target does not start, the guest does not boot or is not let in.
pub fn shell(kernel: &Kernel, accelerator: Accelerator, programs: &Path) -> Result<i32, Failure> {
    let folder = scratch_folder()?;
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:{{port}}\"\nadvertise = \"{}\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n[[subsystem.namespace]]\nnsid = 1\nram = \"256M\"\n",
        HostTarget::GUESTS_SEE
    );
    let target = HostTarget::start(
        &programs.join("homi-target"),
        folder.path(),
        "target",
        &config,
        None,
    )?;
    let setting = Setting {
        kernel,
        accelerator,
        programs,
        folder: folder.path(),
    };
    if io::stdin().is_terminal() {
        let end = "the shell ends with exit or Ctrl-D";
        // Whoever does not read this can use the shell all the same.
        let _ = writeln!(io::stderr(), "booting Linux {}; {end}", kernel.release);
        let vm = Vm::boot_with_console(&Guest::SMALL, 0, setting)?;
        let outcome = connect(&vm, &target).and_then(|device| on_terminal(&vm, &target, &device));
        vm.quit();
        outcome
    } else {
        let mut script = String::new();
        io::stdin().read_to_string(&mut script)?;
        let vm = Vm::boot(&Guest::SMALL, 0, setting)?;
        let device = connect(&vm, &target)?;
        let output = vm
            .spawn(LIMIT, &format!("{}{script}", variables(&target, &device)))?
            .try_wait(LIMIT)?;
        io::stdout().write_all(output.stdout.as_bytes())?;
        io::stderr().write_all(output.stderr.as_bytes())?;
        Ok(output.code)
    }
}

fn connect(vm: &Vm, target: &HostTarget) -> Result<String, Failure> {
    vm.connect(HostTarget::GUESTS_SEE, target.port(), NQN, "")?;
    vm.namespace(NQN, 1)
}

fn variables(target: &HostTarget, device: &str) -> String {
    format!(
        "export ADDRESS={} PORT={} NQN={NQN} DEVICE={device}\n",
        HostTarget::GUESTS_SEE,
        target.port()
    )
}

fn on_terminal(vm: &Vm, target: &HostTarget, device: &str) -> Result<i32, Failure> {
    let script = format!(
        "{}{}export TERM='{}'\n\
         exec 0<>/dev/hvc0 1>&0 2>&1\n\
         printf '\\r\\n%s is our target at %s port %s ($DEVICE, $ADDRESS, $PORT, $NQN).\\r\\n' \"$DEVICE\" \"$ADDRESS\" \"$PORT\"\n\
         printf 'homi-target and homi are in the PATH; what is written here is lost.\\r\\n\\r\\n'\n\
         nvme list\n\
         cd /root\n\
         export PS1='guest \\w # '\n\
         exec setsid --ctty --wait bash --norc -i",
        variables(target, device),
        terminal_size(),
        std::env::var("TERM")
            .unwrap_or_else(|_| "linux".to_owned())
            .replace('\'', ""),
    );
    Ok(vm.spawn(LIMIT, &script)?.try_wait(LIMIT)?.code)
}

/// A command that gives the guest's terminal the size of this one, which no device does.
fn terminal_size() -> String {
    let said = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let size = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let numbers: Vec<u16> = size
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers.as_slice() {
        [rows, columns] => format!("stty -F /dev/hvc0 rows {rows} cols {columns}\n"),
        _ => String::new(),
    }
}
