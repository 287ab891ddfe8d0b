//! [`HostTarget`]: our target as a process of this machine.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::process::{self, Process};
use super::test::Failure;
use super::transcript::Transcript;

/// How long a target may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);
/// What stands for the port that a target gets.
pub const PORT: &str = "{port}";

/// Our target, serving on this machine's 127.0.0.1; guests reach it at [`HostTarget::GUESTS_SEE`]. Killed when dropped.
#[derive(Debug)]
pub struct HostTarget {
    program: PathBuf,
    config: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
    /// Lines of all its runs: standard output and log.
    lines: Arc<Mutex<Vec<String>>>,
    name: String,
    transcript: Option<Arc<Transcript>>,
}

impl HostTarget {
    /// This machine's 127.0.0.1 as guests see it.
    pub const GUESTS_SEE: &str = "10.0.2.2";

    /// Starts a target. Each `{port}` in its configuration becomes a port that is free and stays the same over restarts.
    ///
    /// # Errors
    /// It does not start; with its last lines.
    pub fn start(
        program: &Path,
        folder: &Path,
        name: &str,
        config: &str,
        transcript: Option<Arc<Transcript>>,
    ) -> Result<Self, Failure> {
        let target = Self {
            program: program.to_owned(),
            config: folder.join(format!("{name}.toml")),
            port: free_port()?,
            process: Mutex::new(None),
            lines: Arc::default(),
            name: name.to_owned(),
            transcript,
        };
        target.configure(config)?;
        target.restart()?;
        Ok(target)
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address on this machine.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process
            .as_ref()
            .is_some_and(|process| matches!(process.ended(), Ok(None)))
    }

    fn configure(&self, config: &str) -> Result<(), Failure> {
        Ok(fs::write(
            &self.config,
            config.replace(PORT, &self.port.to_string()),
        )?)
    }

    /// Makes it serve something else while it runs (SIGHUP), and waits until it does. `{port}` is the port it has.
    ///
    /// # Errors
    /// It does not run or refuses; with its last lines.
    pub fn reload(&self, config: &str) -> Result<(), Failure> {
        self.configure(config)?;
        let seen = self.line_count();
        {
            let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            let process = process
                .as_ref()
                .ok_or_else(|| Failure::new("the target is not running"))?;
            process.signal(Signal::SIGHUP)?;
        }
        self.wait_for_serving(seen)
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It does not, or ends with an error.
    pub fn stop(&self) -> Result<(), Failure> {
        let Some(process) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        process.signal(Signal::SIGTERM)?;
        match process.wait(LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Failure::new(format!(
                "the target ends with {status}: {}",
                self.last_lines()
            ))),
            None => Err(Failure::new("the target does not stop")),
        }
    }

    /// Kills it (SIGKILL): nothing is flushed or said goodbye to.
    pub fn kill(&self) {
        drop(self.process.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Stops it without an answer to anyone (SIGSTOP) until [`HostTarget::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<(), Failure> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> Result<(), Failure> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let process = process
            .as_ref()
            .ok_or_else(|| Failure::new("the target is not running"))?;
        Ok(process.signal(signal)?)
    }

    /// Starts it again with the configuration it has, on the same port; one that runs is killed first.
    ///
    /// # Errors
    /// It does not start; with its last lines.
    pub fn restart(&self) -> Result<(), Failure> {
        self.kill();
        let seen = self.line_count();
        let mut command = process::command(&self.program);
        command
            .args(["serve", "--config"])
            .arg(&self.config)
            .env("HOMI_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = Process::start(command)?;
        if let Some(pipe) = process.take_stdout() {
            collect(pipe, &self.lines);
        }
        if let Some(pipe) = process.take_stderr() {
            collect(pipe, &self.lines);
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        self.wait_for_serving(seen)
    }

    fn wait_for_serving(&self, seen: usize) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let new = lines.get(seen..).unwrap_or_default();
            if new.iter().any(|line| line.starts_with("serving ")) {
                return Ok(());
            }
            drop(lines);
            if !self.is_running() || start.elapsed() > LIMIT {
                return Err(Failure::new(format!(
                    "the target does not serve: {}",
                    self.last_lines()
                )));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn line_count(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Everything that it has written.
    #[must_use]
    pub fn log(&self) -> String {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n")
    }

    fn last_lines(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .get(lines.len().saturating_sub(5)..)
            .unwrap_or_default()
            .join(" / ")
    }
}

impl Drop for HostTarget {
    fn drop(&mut self) {
        self.kill();
        if let Some(transcript) = &self.transcript {
            transcript.line(&format!("{} said in all:", self.name));
            transcript.output(&self.name, self.log().as_bytes());
        }
    }
}

/// A port of 127.0.0.1 that nobody has. Somebody may take it before it is used; a target that finds it taken says so.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn collect(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}
