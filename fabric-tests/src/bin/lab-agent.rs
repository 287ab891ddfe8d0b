//! The lab's agent: the first process of a guest, and the one that runs steps there for the runner.
//!
//! `lab-agent init` is process 1: it mounts what is missing, starts `lab-agent serve` and reaps whatever is left to it; when that ends, the
//! guest powers off. `lab-agent serve` runs steps, each a bash of its own in its own process group, as frames on the serial port ask for.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::lab::protocol::{Ended, FOLDER, Frame, Kind, PORT, Ready, Start, host_id, host_nqn};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::wait;
use nix::unistd::Pid;

/// How long a step's output is waited for once it has ended: what it left in the background may hold the pipes for ever.
const AFTERMATH: Duration = Duration::from_millis(300);
/// Bytes of one frame of output: what the port takes at once.
const PIECE: usize = 32 << 10;
/// How often a step that has not ended is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let outcome = match env::args().nth(1).as_deref() {
        Some("init") => init(),
        Some("serve") => serve(),
        _ => {
            eprintln!("lab-agent: the guests of scripts/lab start this; it takes 'init' or 'serve'");
            return ExitCode::FAILURE;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A value of the kernel's command line.
fn argument(name: &str) -> io::Result<String> {
    let line = fs::read_to_string("/proc/cmdline")?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("the kernel's command line has no {name}")))
}

fn release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

fn init() -> io::Result<()> {
    let outcome = prepare().and_then(|()| {
        let mut server = Command::new(env::current_exe()?).arg("serve").spawn()?;
        let id = Pid::from_raw(i32::try_from(server.id()).map_err(io::Error::other)?);
        // Everything that lost its parent is this process's child now.
        while let Ok(status) = wait() {
            if status.pid() == Some(id) {
                break;
            }
        }
        // It was reaped above; this only tells the handle.
        let _ = server.try_wait();
        Ok(())
    });
    if let Err(error) = outcome {
        eprintln!("lab-agent: {error}");
    }
    fs::write("/proc/sysrq-trigger", "o")?;
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// Mounts a file system without a device; the folder is made.
fn mount_at(kind: &str, at: &str, options: &str) -> io::Result<()> {
    mount_from(kind, kind, at, options)
}

/// Mounts what `from` names; the folder is made.
fn mount_from(from: &str, kind: &str, at: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(from), at, Some(kind), MsFlags::empty(), Some(options))
        .map_err(|error| io::Error::other(format!("cannot mount {kind} at {at}: {error}")))
}

fn prepare() -> io::Result<()> {
    mount_at("tmpfs", "/run", "size=50%,mode=755")?;
    mount_at("tmpfs", "/dev/shm", "mode=1777")?;
    mount_at("devpts", "/dev/pts", "mode=620,ptmxmode=666")?;
    mount_at("configfs", "/sys/kernel/config", "")?;
    fs::create_dir_all("/run/lock")?;
    // Where udev would make them.
    for (name, to) in [
        ("fd", "fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(format!("/proc/self/{to}"), format!("/dev/{name}"))?;
    }
    fs::create_dir_all(format!("{FOLDER}/work"))?;
    fs::write(format!("{FOLDER}/prelude.sh"), include_str!("../lab/prelude.sh"))?;
    mount_from(
        "share",
        "9p",
        &format!("{FOLDER}/share"),
        "trans=virtio,version=9p2000.L,msize=512000",
    )?;
    let index = argument("lab.index")?.parse().map_err(io::Error::other)?;
    fs::write("/proc/sys/kernel/hostname", format!("lab{index}"))?;
    fs::create_dir_all("/etc/nvme")?;
    fs::write("/etc/nvme/hostnqn", format!("{}\n", host_nqn(index)))?;
    fs::write("/etc/nvme/hostid", format!("{}\n", host_id(index)))?;
    let modules = PathBuf::from(format!("/lib/modules/{}", release()?));
    let ours = PathBuf::from(argument("lab.modules")?);
    if modules != ours {
        if modules.symlink_metadata().is_ok() {
            fs::rename(&modules, modules.with_extension("of-the-machine"))?;
        }
        fs::create_dir_all("/lib/modules")?;
        symlink(&ours, &modules)?;
    }
    Ok(())
}

/// The device of our serial port; it appears a moment after its driver.
fn port() -> io::Result<PathBuf> {
    let start = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let folder = entry?.path();
            if fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim() == PORT) {
                let device = folder.file_name().unwrap_or_default();
                return Ok(Path::new("/dev").join(device));
            }
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(io::Error::other(format!("no serial port is named {PORT}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the steps' threads share.
#[derive(Clone)]
struct Agent {
    port: Arc<Mutex<File>>,
    /// Process groups of running steps.
    running: Arc<Mutex<HashMap<u32, Pid>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve() -> io::Result<()> {
    let path = port()?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut from = file.try_clone()?;
    let agent = Agent {
        port: Arc::new(Mutex::new(file)),
        running: Arc::default(),
    };
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_default();
    agent.send(&Frame::json(
        0,
        Kind::Ready,
        &Ready {
            release: release()?,
            uptime,
        },
    )?)?;
    while let Some(frame) = Frame::read(&mut from)? {
        match frame.kind {
            Kind::Start => {
                let start = frame.parse()?;
                let agent = agent.clone();
                thread::spawn(move || {
                    if let Err(error) = agent.step(frame.step, &start) {
                        eprintln!("lab-agent: step {}: {error}", frame.step);
                    }
                });
            }
            Kind::Signal => {
                let number = i32::from(frame.payload.first().copied().unwrap_or_default());
                // A step that has just ended needs no signal.
                if let (Some(group), Ok(signal)) =
                    (lock(&agent.running).get(&frame.step), Signal::try_from(number))
                {
                    let _ = killpg(*group, signal);
                }
            }
            Kind::Ready | Kind::Output | Kind::Error | Kind::Ended => {
                return Err(io::Error::other("the runner sent what only the agent sends"));
            }
        }
    }
    Ok(())
}

impl Agent {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *lock(&self.port))
    }

    fn step(&self, step: u32, start: &Start) -> io::Result<()> {
        let script = format!("set -eo pipefail; . {FOLDER}/prelude.sh\n{}", start.script);
        let spawned = Command::new("bash")
            .args(["-c", &script])
            .current_dir(format!("{FOLDER}/work"))
            .env_clear()
            .env("PATH", path())
            .env("HOME", "/root")
            .env("LC_ALL", "C")
            .env("TERM", "dumb")
            .env("TMPDIR", format!("{FOLDER}/work"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                let ended = Ended {
                    code: None,
                    signal: None,
                    timed_out: false,
                    refused: Some(format!("cannot start bash: {error}")),
                };
                return self.send(&Frame::json(step, Kind::Ended, &ended)?);
            }
        };
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        lock(&self.running).insert(step, group);
        let over = Arc::new(AtomicBool::new(false));
        let (sender, readers) = mpsc::channel();
        self.forward(child.stdout.take(), (step, Kind::Output), &over, &sender);
        self.forward(child.stderr.take(), (step, Kind::Error), &over, &sender);
        drop(sender);
        let ended = wait_for(&mut child, group, start.limit_ms)?;
        lock(&self.running).remove(&step);
        wait_for_readers(&readers);
        // What comes later belongs to nobody.
        over.store(true, Ordering::SeqCst);
        self.send(&Frame::json(step, Kind::Ended, &ended)?)
    }

    /// Sends what comes through a pipe; the channel closes when it ends.
    fn forward(
        &self,
        pipe: Option<impl Read + Send + 'static>,
        (step, kind): (u32, Kind),
        over: &Arc<AtomicBool>,
        open: &Sender<()>,
    ) {
        let Some(mut pipe) = pipe else { return };
        let (agent, over, open) = (self.clone(), Arc::clone(over), open.clone());
        thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            while let Ok(len) = pipe.read(&mut piece) {
                let bytes = piece.get(..len).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                // Between this look and the end of the step is a moment in which a piece may still be sent; the runner drops it.
                if !over.load(Ordering::SeqCst) && agent.send(&Frame::new(step, kind, bytes)).is_err() {
                    break;
                }
            }
            drop(open);
        });
    }
}

fn path() -> String {
    let ours = env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.display().to_string()));
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ours.unwrap_or_else(|| "/usr/local/bin".to_owned())
    )
}

fn wait_for(child: &mut Child, group: Pid, limit_ms: u64) -> io::Result<Ended> {
    let start = Instant::now();
    let limit = Duration::from_millis(limit_ms);
    let mut timed_out = false;
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if !timed_out && start.elapsed() >= limit {
            timed_out = true;
            // It may be gone by now.
            let _ = killpg(group, Signal::SIGKILL);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
    };
    Ok(Ended {
        code: status.code(),
        signal: status.signal(),
        timed_out,
        refused: None,
    })
}

fn wait_for_readers(readers: &Receiver<()>) {
    // Nothing is ever sent: the channel closes when the last reader has ended.
    match readers.recv_timeout(AFTERMATH) {
        Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
    }
}
