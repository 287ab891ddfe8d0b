//! Processes of this machine that never outlive the runner.
//!
//! Each is started by `setpriv --pdeathsig KILL`, which makes the kernel kill it when the thread that started it ends, however it ends; so one
//! thread, which lives as long as the runner, starts all of them.

use std::ffi::OsStr;
use std::io;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Order = (Command, Sender<io::Result<Child>>);

/// A command that will run under `setpriv`.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts processes has ended");
    let orders = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                // Who asked may have given up.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, child) = mpsc::channel();
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    id: Pid,
}

impl Process {
    /// Starts what [`command`] has made.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(command: Command) -> io::Result<Self> {
        let child = spawn(command)?;
        let id = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Self {
            child: Mutex::new(child),
            id,
        })
    }

    /// Its standard output, once, if it is piped.
    #[must_use]
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.child().stdout.take()
    }

    /// Its standard error, once, if it is piped.
    #[must_use]
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.child().stderr.take()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// What the system says.
    pub fn ended(&self) -> io::Result<Option<ExitStatus>> {
        self.child().try_wait()
    }

    /// Waits for its end; `None` when it has not ended by then.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if start.elapsed() >= limit {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal. The end of a process that has ended is not an error.
    ///
    /// # Errors
    /// What the system says.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let mut child = self.child();
        // While the child is not waited for, its number is no other process's.
        if child.try_wait()?.is_none() {
            kill(self.id, signal)?;
        }
        Ok(())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_with_its_handle_and_reports_its_end() {
        let mut sleep = command("sleep");
        sleep.arg("1000");
        let process = Process::start(sleep).unwrap();
        assert_eq!(process.wait(Duration::from_millis(20)).unwrap(), None);
        process.signal(Signal::SIGTERM).unwrap();
        assert!(process.wait(Duration::from_secs(20)).unwrap().is_some());
        process.signal(Signal::SIGTERM).unwrap();
    }
}
