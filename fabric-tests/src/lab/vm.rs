//! [`Vm`]: a guest that runs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::agent::{Agent, Job, Output};
use super::context::patience;
use super::guest::{
    Accelerator, Boot, Guest, LINK_MTU, backing_file, link_hardware_address, user_hardware_address,
};
use super::kernel::Kernel;
use super::kernel_log;
use super::process::{self, Process};
use super::protocol::{host_id, host_nqn};
use super::qmp::Qmp;
use super::target::free_port;
use super::test::Failure;
use super::transcript::Transcript;

/// The program that runs guests.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long a boot may take: 5 s on an idle machine, but machines are busy.
const BOOT: Duration = Duration::from_secs(150);
/// How long a step may take that does not say otherwise.
const STEP: Duration = Duration::from_secs(60);
/// How long a guest may take to let go of a drive: what uses it there has to, first.
const UNPLUG: Duration = Duration::from_secs(120);
/// How long a shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(60);

/// What a guest is booted with.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// What executes its instructions.
    pub accelerator: Accelerator,
    /// Folder with the programs of this checkout.
    pub programs: &'a Path,
    /// Folder of all guests of a test: each gets one in it, and sockets of links lie in it.
    pub folder: &'a Path,
}

/// A running guest. Every method can be called from several threads. QEMU is killed when it is dropped.
#[derive(Debug)]
pub struct Vm {
    index: usize,
    guest: Guest,
    release: String,
    boot_seconds: f64,
    /// Seconds from the start of its kernel until the agent ran.
    kernel_seconds: f64,
    /// Bytes that the console had when the test began.
    console_begin: AtomicUsize,
    folder: PathBuf,
    process: Process,
    qmp: Mutex<Qmp>,
    agent: Agent,
    forwards: Mutex<HashMap<u16, SocketAddr>>,
    transcript: Mutex<Option<Arc<Transcript>>>,
}

impl Vm {
    /// Boots a guest and waits until it takes steps.
    ///
    /// # Errors
    /// It does not boot: with the last lines of QEMU and its console.
    pub fn boot(guest: &Guest, index: usize, setting: Setting<'_>) -> Result<Self, Failure> {
        Self::boot_within(guest, index, setting, false, BOOT.mul_f64(patience()))
    }

    /// Boots a guest with a console on this program's standard input and output.
    ///
    /// # Errors
    /// As for [`Vm::boot`].
    pub fn boot_with_console(guest: &Guest, index: usize, setting: Setting<'_>) -> Result<Self, Failure> {
        Self::boot_within(guest, index, setting, true, BOOT.mul_f64(patience()))
    }

    pub(crate) fn boot_within(
        guest: &Guest,
        index: usize,
        setting: Setting<'_>,
        console: bool,
        limit: Duration,
    ) -> Result<Self, Failure> {
        guest.check()?;
        let start = Instant::now();
        let folder = setting.folder.join(format!("guest{index}"));
        fs::create_dir_all(folder.join("share"))?;
        for (number, drive) in guest.drives.iter().enumerate() {
            for namespace in drive.namespaces {
                let file = File::create(folder.join(backing_file(number, namespace.nsid)))?;
                file.set_len(u64::from(namespace.size_mib) << 20)?;
            }
        }
        let agent = UnixListener::bind(folder.join("agent"))?;
        let qmp = UnixListener::bind(folder.join("qmp"))?;
        let mut command = process::command(QEMU);
        let program = setting.programs.join("lab-agent");
        command
            .args(guest.arguments(&Boot {
                kernel: setting.kernel,
                index,
                folder: &folder,
                links: setting.folder,
                agent: &program,
                accelerator: setting.accelerator,
                console,
            }))
            .stderr(File::create(folder.join("qemu"))?);
        if !console {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        let process =
            Process::start(command).map_err(|error| Failure::new(format!("cannot start QEMU: {error}")))?;
        let explain = |failure: Failure| {
            Failure::new(format!(
                "guest {index} does not boot: {failure}{}",
                last_words(&folder)
            ))
        };
        let deadline = start + limit;
        let connected = || -> Result<_, Failure> {
            let qmp = Qmp::greet(accept(&qmp, &process, deadline)?)?;
            let agent = accept(&agent, &process, deadline)?;
            let (agent, ready) = Agent::greet(agent, deadline.saturating_duration_since(Instant::now()))?;
            Ok((qmp, agent, ready))
        };
        let (qmp, agent, ready) = connected().map_err(explain)?;
        let vm = Self {
            index,
            guest: *guest,
            release: ready.release,
            boot_seconds: 0.0,
            kernel_seconds: ready.uptime,
            console_begin: AtomicUsize::new(0),
            folder: folder.clone(),
            process,
            qmp: Mutex::new(qmp),
            agent,
            forwards: Mutex::default(),
            transcript: Mutex::default(),
        };
        vm.sh(&vm.preparation()).map_err(explain)?;
        Ok(Self {
            boot_seconds: start.elapsed().as_secs_f64(),
            ..vm
        })
    }

    /// What is still missing when the agent runs: interfaces and drives.
    fn preparation(&self) -> String {
        let mut script =
            "named() { local f; for f in /sys/class/net/*; do [ \"$(<$f/address)\" != $1 ] || [ ${f##*/} = $2 ] || \
             ip link set ${f##*/} name $2; done; }\n"
                .to_owned();
        let mut addresses = "link set lo up\n".to_owned();
        // Writing to a string cannot fail.
        for link in self.guest.links {
            let _ = writeln!(
                script,
                "named {} link{link}",
                link_hardware_address(*link, self.index)
            );
            let _ = writeln!(
                addresses,
                "link set link{link} mtu {LINK_MTU} up\naddr add {}/24 dev link{link}",
                self.link_address(*link)
            );
        }
        if self.guest.user_network {
            let _ = writeln!(script, "named {} eth0", user_hardware_address(self.index));
            addresses += "link set eth0 up\naddr add 10.0.2.15/24 dev eth0\nroute add default via 10.0.2.2\n";
        }
        let _ = write!(script, "ip -batch - <<'END'\n{addresses}END\n");
        if !self.guest.drives.is_empty() {
            let _ = writeln!(
                script,
                "modprobe nvme; live() {{ [ $(grep -lsx live /sys/class/nvme/*/state | wc -l) = {} ]; }}; until_true 40 live",
                self.guest.drives.len()
            );
            for drive in self.guest.drives {
                for namespace in drive.namespaces {
                    let _ = writeln!(
                        script,
                        "until_true 15 drive_block {} {}",
                        drive.serial, namespace.nsid
                    );
                }
            }
        }
        script += "lab_state >/run/lab/baseline\n";
        script
    }

    /// Its index among the guests of the test.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it is.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What `uname -r` says in it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How long it took until it took steps, in seconds.
    #[must_use]
    pub fn boot_seconds(&self) -> f64 {
        self.boot_seconds
    }

    /// The name that its host connects with.
    #[must_use]
    pub fn host_nqn(&self) -> String {
        host_nqn(self.index)
    }

    /// The identifier that its host connects with.
    #[must_use]
    pub fn host_id(&self) -> String {
        host_id(self.index)
    }

    /// Its address at a link.
    #[must_use]
    pub fn link_address(&self, link: usize) -> String {
        format!("10.10.{link}.{}", self.index + 1)
    }

    /// A folder of this machine that the guest sees, and may write to, as `/run/lab/share`.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.folder.join("share")
    }

    /// Runs a bash script in the guest, as root, in an empty folder of memory, and waits for it, a minute at most. It ends at the first command
    /// that fails (`set -eo pipefail`). `src/lab/prelude.sh` has functions for it.
    ///
    /// # Errors
    /// It fails (with its last lines), takes too long, or the guest is gone.
    pub fn sh(&self, script: &str) -> Result<Output, Failure> {
        self.sh_within(STEP, script)
    }

    /// The same with another limit; what runs then is killed.
    ///
    /// # Errors
    /// As for [`Vm::sh`].
    pub fn sh_within(&self, limit: Duration, script: &str) -> Result<Output, Failure> {
        self.spawn(limit, script)?.wait(Duration::MAX)
    }

    /// Runs a script that may fail.
    ///
    /// # Errors
    /// It takes too long, or the guest is gone.
    pub fn try_sh(&self, script: &str) -> Result<Output, Failure> {
        self.spawn(STEP, script)?.try_wait(Duration::MAX)
    }

    /// Runs a script that is to fail, and returns what it wrote.
    ///
    /// # Errors
    /// It succeeds, takes too long, or the guest is gone.
    pub fn sh_fails(&self, script: &str) -> Result<Output, Failure> {
        let output = self.try_sh(script)?;
        if output.success() {
            return Err(Failure::new(format!("`{}` succeeds and must not", script.trim())));
        }
        Ok(output)
    }

    /// Starts a script in the background; what runs at its limit is killed.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn spawn(&self, limit: Duration, script: &str) -> Result<Job, Failure> {
        let transcript = self
            .transcript
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.agent.start(
            script,
            limit.mul_f64(patience()),
            format!("guest {}", self.index),
            transcript,
        )
    }

    /// Connects the guest's host over TCP and returns the controller's name (`nvme0`). `options` are more options for `nvme connect`.
    ///
    /// # Errors
    /// The connection is refused.
    pub fn connect(&self, address: &str, port: u16, nqn: &str, options: &str) -> Result<String, Failure> {
        self.connect_over("tcp", address, port, nqn, options)
    }

    /// Connects the guest's host over a transport (`tcp`, `rdma`) and returns the controller's name, as [`Vm::connect`] does.
    ///
    /// # Errors
    /// The connection is refused.
    pub fn connect_over(
        &self,
        transport: &str,
        address: &str,
        port: u16,
        nqn: &str,
        options: &str,
    ) -> Result<String, Failure> {
        let output = self.sh(&format!(
            "modprobe nvme-{transport}
             nvme connect -t {transport} -a {address} -s {port} -n {nqn} {options} >&2
             controllers {nqn} | tail -n 1"
        ))?;
        let name = output.stdout.trim().to_owned();
        if name.is_empty() {
            return Err(Failure::new(format!(
                "connected to {nqn} but there is no controller"
            )));
        }
        Ok(name)
    }

    /// Waits for a namespace of a subsystem that the guest is connected to, and returns its block device (`/dev/nvme0n1`).
    ///
    /// # Errors
    /// It does not appear.
    pub fn namespace(&self, nqn: &str, nsid: u32) -> Result<String, Failure> {
        Ok(self
            .sh(&format!("namespace {nqn} {nsid}"))?
            .stdout
            .trim()
            .to_owned())
    }

    /// Starts our target in the guest, from a configuration, and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn target(&self, config: &str) -> Result<GuestTarget<'_>, Failure> {
        let file = self.sh(&format!(
            "file=$(mktemp ./target.XXXXXX); cat >$file <<'END'\n{config}\nEND\nrealpath $file"
        ))?;
        let file = file.stdout.trim().to_owned();
        let script = format!("HOMI_LOG=info exec homi-target serve --config {file}");
        let job = self.spawn(Duration::from_secs(3600), &script)?;
        job.wait_for_output("serving ", STEP.mul_f64(patience()))?;
        Ok(GuestTarget { vm: self, job, file })
    }

    /// Stops its processors; nothing in it notices.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn pause(&self) -> Result<(), Failure> {
        self.qmp("stop", &Value::Null).map(drop)
    }

    /// Lets its processors go on.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn resume(&self) -> Result<(), Failure> {
        self.qmp("cont", &Value::Null).map(drop)
    }

    /// Plugs the cable of a device in or out: `net-user`, `net-link0`.
    ///
    /// # Errors
    /// There is no such device.
    pub fn set_cable(&self, device: &str, plugged: bool) -> Result<(), Failure> {
        self.qmp("set_link", &json!({ "name": device, "up": plugged }))
            .map(drop)
    }

    /// Takes a drive out of its slot (hot unplug) and waits until the guest has let go of it. Drives are numbered from 0.
    ///
    /// # Errors
    /// There is no such drive, or the guest does not let go.
    pub fn unplug_drive(&self, drive: usize) -> Result<(), Failure> {
        let id = format!("drive{drive}");
        self.qmp("device_del", &json!({ "id": id }))?;
        self.monitor()
            .event("DEVICE_DELETED", UNPLUG.mul_f64(patience()))
            .map(drop)
    }

    /// Executes a QEMU command; `Null` for no arguments.
    ///
    /// # Errors
    /// QEMU's reason.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        if let Some(transcript) = &*self.transcript.lock().unwrap_or_else(PoisonError::into_inner) {
            transcript.line(&format!("guest {}: QEMU {command} {arguments}", self.index));
        }
        self.monitor().execute(command, arguments)
    }

    fn monitor(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address of this machine at which a TCP port of the guest is reached.
    ///
    /// # Errors
    /// The guest has no interface to this machine.
    pub fn forward(&self, port: u16) -> Result<SocketAddr, Failure> {
        let mut forwards = self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = forwards.get(&port) {
            return Ok(*address);
        }
        let mut refused = String::new();
        // Somebody may take the free port in between.
        for _ in 0..5 {
            let here = free_port()?;
            let line = format!("hostfwd_add user tcp:127.0.0.1:{here}-:{port}");
            let answer = self.qmp("human-monitor-command", &json!({ "command-line": line }))?;
            answer
                .as_str()
                .unwrap_or_default()
                .trim()
                .clone_into(&mut refused);
            if refused.is_empty() {
                let address = (Ipv4Addr::LOCALHOST, here).into();
                forwards.insert(port, address);
                return Ok(address);
            }
        }
        Err(Failure::new(format!(
            "QEMU does not forward port {port}: {refused}"
        )))
    }

    /// Its kernel log since the test began.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn kernel_log(&self) -> Result<String, Failure> {
        let output = self.spawn(STEP, "dmesg")?.wait(Duration::MAX)?;
        Ok(kernel_log::of_this_test(&output.stdout).to_owned())
    }

    /// What the kernel has written on its console since the test began: warnings and worse, also after its death.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.join("console")).unwrap_or_default();
        let begin = self.console_begin.load(Ordering::Relaxed);
        String::from_utf8_lossy(bytes.get(begin..).unwrap_or_default()).into_owned()
    }

    /// Powers it off in good order and waits until QEMU has ended. The guest takes no steps any more.
    ///
    /// # Errors
    /// It does not.
    pub fn power_off(&self) -> Result<(), Failure> {
        self.spawn(STEP, "sync; echo o >/proc/sysrq-trigger; sleep 60")?;
        match self.process.wait(SHUTDOWN.mul_f64(patience()))? {
            Some(_) => Ok(()),
            None => Err(Failure::new(format!("guest {} does not power off", self.index))),
        }
    }

    /// Whether QEMU runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.process.ended(), Ok(None))
    }

    /// Ends QEMU as if the machine lost its power.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Ends QEMU in the way that gives the terminal back.
    pub(crate) fn quit(&self) {
        // It may be gone.
        let _ = self.qmp("quit", &Value::Null);
        let _ = self.process.wait(Duration::from_secs(5));
    }

    /// A test begins: its steps go into this transcript, its kernel log begins here.
    pub(crate) fn begin(&self, name: &str, transcript: &Arc<Transcript>) -> Result<(), Failure> {
        self.spawn(STEP, &format!("echo '{} {name}' >/dev/kmsg", kernel_log::MARK))?
            .wait(Duration::MAX)?;
        let console = fs::metadata(self.folder.join("console"))?.len();
        self.console_begin
            .store(usize::try_from(console)?, Ordering::Relaxed);
        transcript.line(&format!(
            "guest {}: Linux {}, booted in {:.1} s ({:.1} s until its agent ran)",
            self.index, self.release, self.boot_seconds, self.kernel_seconds
        ));
        *self.transcript.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(transcript));
        Ok(())
    }

    /// A test ends: what it left is taken away if `clean`. Returns its kernel log, and what is still there that was not before.
    pub(crate) fn end(&self, clean: bool) -> (String, Result<(), Failure>) {
        *self.transcript.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Whether it is paused is not known; a guest that runs goes on.
        let _ = self.resume();
        self.agent.kill_steps();
        let limit = if clean { STEP } else { STEP / 3 };
        let cleaning = if clean {
            "left=$(lab_clean)"
        } else {
            "left=skipped"
        };
        let script = format!("set +e; {cleaning}; result=$?; dmesg; printf '%s' \"$left\" >&2; exit $result");
        let ended = self
            .spawn(limit, &script)
            .and_then(|job| job.try_wait(Duration::MAX));
        match ended {
            Ok(output) => {
                let log = kernel_log::of_this_test(&output.stdout).to_owned();
                let left = output.stderr.trim().replace('\n', "; ");
                (
                    log,
                    if output.success() {
                        Ok(())
                    } else {
                        Err(Failure::new(left))
                    },
                )
            }
            Err(failure) => (self.console(), Err(failure)),
        }
    }
}

/// Our target in a guest. It ends with the test.
#[derive(Debug)]
pub struct GuestTarget<'a> {
    vm: &'a Vm,
    job: Job,
    file: String,
}

impl GuestTarget<'_> {
    /// Makes it serve something else while it runs.
    ///
    /// # Errors
    /// It does not run or refuses.
    pub fn reload(&self, config: &str) -> Result<(), Failure> {
        self.vm
            .sh(&format!("cat >{} <<'END'\n{config}\nEND", self.file))?;
        let served = |text: &str| text.lines().filter(|line| line.starts_with("serving ")).count();
        let before = served(&self.job.so_far().0);
        self.job.signal(Signal::SIGHUP)?;
        let start = Instant::now();
        while served(&self.job.so_far().0) == before {
            if start.elapsed() > STEP || !self.job.is_running() {
                return Err(Failure::new(format!(
                    "the target does not take the configuration: {}",
                    self.log()
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// It does not, or ends with an error.
    pub fn stop(&self) -> Result<(), Failure> {
        self.job.signal(Signal::SIGTERM)?;
        self.job.wait(STEP).map(drop)
    }

    /// Kills it.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn kill(&self) -> Result<(), Failure> {
        self.job.signal(Signal::SIGKILL)?;
        self.job.try_wait(STEP).map(drop)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.job.so_far().1
    }
}

/// Waits for QEMU's connection.
fn accept(listener: &UnixListener, process: &Process, deadline: Instant) -> Result<UnixStream, Failure> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = process.ended()? {
            return Err(Failure::new(format!("QEMU ends with {status}")));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new("QEMU does not start"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The last lines of QEMU and of the console of a guest that did not boot.
fn last_words(folder: &Path) -> String {
    let mut words = String::new();
    for name in ["qemu", "console"] {
        let bytes = fs::read(folder.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        for line in lines.get(lines.len().saturating_sub(8)..).unwrap_or_default() {
            let _ = write!(words, "\n  {name}: {line}");
        }
    }
    words
}
