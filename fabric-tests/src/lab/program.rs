//! [`HostProgram`]: a program of this checkout as a process of this machine, and [`check_refusal`]: how such a program says that it failed.

use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::agent::Output;
use super::process::{self, Process};
use super::test::Failure;
use super::transcript::Transcript;

/// A program that runs on this machine, with both its outputs kept. Killed when dropped.
#[derive(Debug)]
pub struct HostProgram {
    process: Process,
    stdout: JoinHandle<io::Result<Vec<u8>>>,
    stderr: JoinHandle<io::Result<Vec<u8>>>,
    title: String,
    transcript: Arc<Transcript>,
    start: Instant,
}

impl HostProgram {
    /// Starts it with these arguments, in this folder.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        folder: &Path,
        transcript: &Arc<Transcript>,
    ) -> Result<Self, Failure> {
        let name = program
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let title = format!("{name} {}", arguments.join(" "));
        transcript.line(&format!("machine $ {title}"));
        let mut command = process::command(program);
        command
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = Process::start(command).map_err(|error| Failure::from(error).while_doing(&title))?;
        let gone = || Failure::new(format!("{title}: its output cannot be read"));
        Ok(Self {
            stdout: collect(process.take_stdout().ok_or_else(gone)?),
            stderr: collect(process.take_stderr().ok_or_else(gone)?),
            process,
            title,
            transcript: Arc::clone(transcript),
            start: Instant::now(),
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// What the system says.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.transcript
            .line(&format!("machine: {signal} to {}", self.title));
        Ok(self.process.signal(signal)?)
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.process.ended(), Ok(None))
    }

    /// Waits for its end, whatever its exit status; it is killed when its time is up.
    ///
    /// # Errors
    /// It has not ended by then.
    pub fn wait(self, limit: Duration) -> Result<Output, Failure> {
        let Self {
            process,
            stdout,
            stderr,
            title,
            transcript,
            start,
        } = self;
        let status = process.wait(limit)?;
        if status.is_none() {
            process.kill();
        }
        let text = |thread: JoinHandle<io::Result<Vec<u8>>>| -> Result<String, Failure> {
            let bytes = thread.join().map_err(|_| Failure::new("a reader panicked"))??;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (stdout, stderr) = (text(stdout)?, text(stderr)?);
        let end = match status {
            Some(status) => status.to_string(),
            None => format!("killed after {limit:?}"),
        };
        transcript.line(&format!(
            "{title} -> {end}, {:.1} s",
            start.elapsed().as_secs_f64()
        ));
        transcript.output("out", stdout.as_bytes());
        transcript.output("err", stderr.as_bytes());
        let status =
            status.ok_or_else(|| Failure::new(format!("`{title}` has not ended after {limit:.0?}")))?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Ok(Output {
            stdout,
            stderr,
            code: status.code().unwrap_or_else(|| 128 + signal.unwrap_or_default()),
        })
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// Whether `homi` failed as it should: exit status 1 (or 2 where the command line is wrong), and one sentence on standard error. Returns the
/// sentence.
///
/// # Errors
/// It succeeded, was killed, or said something else.
pub fn check_refusal(output: &Output, code: i32) -> Result<&str, Failure> {
    if output.code != code {
        return Err(Failure::new(format!(
            "homi ends with {} instead of {code}: {} {}",
            output.code,
            output.stdout.trim(),
            output.stderr.trim()
        )));
    }
    let mut sentences = output
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("homi: "));
    match (sentences.next(), sentences.next(), output.stderr.lines().count()) {
        (Some(sentence), None, 1) if !sentence.is_empty() => Ok(sentence),
        _ => Err(Failure::new(format!(
            "homi says {:?} instead of one sentence",
            output.stderr
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> HostProgram {
        let transcript = Arc::new(Transcript::default());
        HostProgram::start(
            Path::new("/bin/sh"),
            &["-c", script],
            Path::new("/tmp"),
            &transcript,
        )
        .unwrap()
    }

    #[test]
    fn outputs_and_exit_status_are_kept() {
        let output = start("echo out; echo err >&2; exit 3")
            .wait(Duration::from_secs(20))
            .unwrap();
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(output.code, 3);
        let output = start("kill -TERM $$").wait(Duration::from_secs(20)).unwrap();
        assert_eq!(output.code, 128 + 15);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let program = start("exec sleep 1000");
        assert!(program.is_running());
        let failure = program.wait(Duration::from_millis(50)).unwrap_err();
        assert!(failure.to_string().contains("has not ended"), "{failure}");
    }

    #[test]
    fn a_refusal_is_one_sentence_and_a_status() {
        let output = |stderr: &str, code| Output {
            stdout: String::new(),
            stderr: stderr.to_owned(),
            code,
        };
        assert_eq!(check_refusal(&output("homi: no\n", 1), 1).unwrap(), "no");
        for (stderr, code) in [
            ("homi: no\n", 0),
            ("homi: no\n", 101),
            ("", 1),
            ("homi: \n", 1),
            ("homi: no\nhomi: no\n", 1),
            ("thread panicked\nhomi: no\n", 1),
        ] {
            assert!(
                check_refusal(&output(stderr, code), 1).is_err(),
                "{stderr:?} {code}"
            );
        }
    }
}
