//! [`Agent`]: the runner's end of what [`protocol`](super::protocol) says, and [`Job`]: a step that runs in a guest.

use std::collections::HashMap;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::protocol::{Ended, Frame, Kind, Ready, Start};
use super::test::Failure;
use super::transcript::Transcript;

/// Bytes of each output of one step that are kept.
const KEPT: usize = 64 << 20;
/// How much longer than a step's own limit the runner waits for its end: the agent kills it first.
const GRACE: Duration = Duration::from_secs(20);

/// What a step wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
    /// Its exit status; 128 and the signal where one ended it, as shells count.
    pub code: i32,
}

impl Output {
    /// Whether its exit status is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Its standard output as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<serde_json::Value, Failure> {
        serde_json::from_str(&self.stdout).map_err(|error| {
            let beginning: String = self.stdout.chars().take(200).collect();
            Failure::new(format!("not JSON ({error}): {beginning}"))
        })
    }
}

#[derive(Debug, Default)]
struct Step {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: Option<Result<Ended, String>>,
}

impl Step {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` has a value, at most until the deadline.
    fn wait<T>(&self, deadline: Instant, mut done: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(value) = done(&state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[derive(Debug)]
struct Shared {
    to: Mutex<UnixStream>,
    steps: Mutex<Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    running: HashMap<u32, Arc<Step>>,
    /// Why no step can run any more.
    lost: Option<String>,
}

impl Shared {
    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> Result<(), Failure> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        frame
            .write(&mut *to)
            .map_err(|error| Failure::new(format!("the guest takes no steps: {error}")))
    }

    /// Ends every step with this reason.
    fn lose(&self, reason: &str) {
        let mut steps = self.steps();
        steps.lost = Some(reason.to_owned());
        for (_, step) in steps.running.drain() {
            step.state().ended = Some(Err(reason.to_owned()));
            step.changed.notify_all();
        }
    }

    fn take(&self, frame: Frame) {
        let step = self.steps().running.get(&frame.step).cloned();
        // Output of a step that has ended.
        let Some(step) = step else { return };
        let mut state = step.state();
        match frame.kind {
            Kind::Output | Kind::Error => {
                let kept = if frame.kind == Kind::Output {
                    &mut state.stdout
                } else {
                    &mut state.stderr
                };
                let room = KEPT.saturating_sub(kept.len()).min(frame.payload.len());
                kept.extend_from_slice(frame.payload.get(..room).unwrap_or_default());
            }
            Kind::Ended => {
                state.ended = Some(frame.parse().map_err(|error| error.to_string()));
                self.steps().running.remove(&frame.step);
            }
            Kind::Start | Kind::Signal | Kind::Ready => {}
        }
        drop(state);
        step.changed.notify_all();
    }
}

/// The agent of a running guest.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    next: AtomicU32,
}

impl Agent {
    /// Waits for the agent behind a fresh connection.
    ///
    /// # Errors
    /// It does not report by then.
    pub fn greet(stream: UnixStream, limit: Duration) -> Result<(Self, Ready), Failure> {
        stream.set_read_timeout(Some(limit))?;
        let mut from = BufReader::new(stream.try_clone()?);
        let frame = Frame::read(&mut from)?.ok_or_else(|| Failure::new("QEMU has ended"))?;
        if frame.kind != Kind::Ready {
            return Err(Failure::new("the agent does not report that it is ready"));
        }
        let ready = frame.parse()?;
        stream.set_read_timeout(None)?;
        let shared = Arc::new(Shared {
            to: Mutex::new(stream),
            steps: Mutex::default(),
        });
        let reader = Arc::clone(&shared);
        thread::spawn(move || {
            let reason = loop {
                match Frame::read(&mut from) {
                    Ok(Some(frame)) => reader.take(frame),
                    Ok(None) => break "the guest has ended".to_owned(),
                    Err(error) => break format!("the guest is lost: {error}"),
                }
            };
            reader.lose(&reason);
        });
        Ok((
            Self {
                shared,
                next: AtomicU32::new(1),
            },
            ready,
        ))
    }

    /// Starts a step.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn start(
        &self,
        script: &str,
        limit: Duration,
        name: String,
        transcript: Option<Arc<Transcript>>,
    ) -> Result<Job, Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let step = Arc::new(Step::default());
        {
            let mut steps = self.shared.steps();
            if let Some(reason) = &steps.lost {
                return Err(Failure::new(reason));
            }
            steps.running.insert(number, Arc::clone(&step));
        }
        if let Some(transcript) = &transcript {
            transcript.line(&format!(
                "{name} $ {}",
                script.trim().replace('\n', "\n             ")
            ));
        }
        let start = Start {
            script: script.to_owned(),
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        let frame = Frame::json(number, Kind::Start, &start)?;
        if let Err(failure) = self.shared.send(&frame) {
            self.shared.steps().running.remove(&number);
            return Err(failure);
        }
        Ok(Job {
            shared: Arc::clone(&self.shared),
            step,
            number,
            deadline: Instant::now() + limit + GRACE,
            name,
            transcript,
            script: script.to_owned(),
        })
    }

    /// Kills every step that is running.
    pub fn kill_steps(&self) {
        let numbers: Vec<u32> = self.shared.steps().running.keys().copied().collect();
        for number in numbers {
            // A guest that is gone has no steps.
            let _ = self.shared.send(&Frame::new(number, Kind::Signal, vec![9]));
        }
    }
}

/// A step that runs in a guest. Dropping it leaves it running until its limit or the end of the test.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    step: Arc<Step>,
    number: u32,
    deadline: Instant,
    name: String,
    transcript: Option<Arc<Transcript>>,
    script: String,
}

impl Job {
    /// Waits for its end; an exit status other than 0 is a failure.
    ///
    /// # Errors
    /// It failed (with its last lines), it took too long, or the guest is gone.
    pub fn wait(&self, limit: Duration) -> Result<Output, Failure> {
        let output = self.try_wait(limit)?;
        if output.success() {
            return Ok(output);
        }
        let said = if output.stderr.trim().is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        let mut lines: Vec<&str> = said.trim().lines().rev().take(6).collect();
        lines.reverse();
        Err(Failure::new(format!(
            "{} fails with {}: {}",
            self.title(),
            output.code,
            lines.join(" / ")
        )))
    }

    /// Waits for its end, whatever its exit status.
    ///
    /// # Errors
    /// It took too long, or the guest is gone.
    pub fn try_wait(&self, limit: Duration) -> Result<Output, Failure> {
        let deadline = self.until(limit);
        let ended = self
            .step
            .wait(deadline, |state| state.ended.clone())
            .ok_or_else(|| Failure::new(format!("{} has not ended in time", self.title())))?
            .map_err(|reason| Failure::new(reason).while_doing(self.title()))?;
        let (stdout, stderr) = self.so_far();
        if let Some(transcript) = &self.transcript {
            let end = match (&ended.refused, ended.timed_out, ended.code, ended.signal) {
                (Some(reason), ..) => reason.clone(),
                (None, true, ..) => "killed at its limit".to_owned(),
                (None, false, Some(code), _) => format!("exit {code}"),
                (None, false, None, signal) => format!("signal {}", signal.unwrap_or_default()),
            };
            transcript.line(&format!("{} -> {end}", self.title()));
            transcript.output("out", stdout.as_bytes());
            transcript.output("err", stderr.as_bytes());
        }
        if let Some(reason) = ended.refused {
            return Err(Failure::new(reason));
        }
        if ended.timed_out {
            return Err(Failure::new(format!("{} was killed at its limit", self.title())));
        }
        let code = ended
            .code
            .unwrap_or_else(|| 128 + ended.signal.unwrap_or_default());
        Ok(Output { stdout, stderr, code })
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.step.state().ended.is_none()
    }

    /// What it has written so far: standard output and standard error.
    #[must_use]
    pub fn so_far(&self) -> (String, String) {
        let state = self.step.state();
        (
            String::from_utf8_lossy(&state.stdout).into_owned(),
            String::from_utf8_lossy(&state.stderr).into_owned(),
        )
    }

    /// Waits until a part of its standard output or standard error is there, and returns the line with it.
    ///
    /// # Errors
    /// It ended before, or it took too long.
    pub fn wait_for_output(&self, part: &str, limit: Duration) -> Result<String, Failure> {
        let line_with = |bytes: &[u8]| {
            // A line is there when its end is.
            let text = String::from_utf8_lossy(bytes);
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole.lines().find(|line| line.contains(part)).map(str::to_owned)
        };
        let found = self.step.wait(self.until(limit), |state| {
            let line = line_with(&state.stdout).or_else(|| line_with(&state.stderr));
            line.map(Some).or_else(|| state.ended.is_some().then_some(None))
        });
        match found {
            Some(Some(line)) => Ok(line),
            Some(None) => Err(Failure::new(format!(
                "{} ended before it wrote {part:?}: {}",
                self.title(),
                self.so_far().1.trim()
            ))),
            None => Err(Failure::new(format!("{} does not write {part:?}", self.title()))),
        }
    }

    /// Sends a signal to its processes.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let number = u8::try_from(signal as i32)?;
        self.shared
            .send(&Frame::new(self.number, Kind::Signal, vec![number]))
    }

    /// When a wait ends: never after the step must have ended.
    fn until(&self, limit: Duration) -> Instant {
        let until = Instant::now().checked_add(limit);
        until.map_or(self.deadline, |until| until.min(self.deadline))
    }

    fn title(&self) -> String {
        let mut lines = self.script.trim().lines();
        let first: String = lines.next().unwrap_or_default().chars().take(100).collect();
        let more = if lines.next().is_some() { " …" } else { "" };
        format!("{}: `{first}{more}`", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent whose other end the test moves.
    fn pair() -> (Agent, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ready = Ready {
            release: "6.12".to_owned(),
            uptime: 1.5,
        };
        Frame::json(0, Kind::Ready, &ready)
            .unwrap()
            .write(&mut theirs)
            .unwrap();
        let (agent, seen) = Agent::greet(ours, Duration::from_secs(5)).unwrap();
        assert_eq!(seen, ready);
        (agent, theirs)
    }

    fn ended(code: i32) -> Ended {
        Ended {
            code: Some(code),
            signal: None,
            timed_out: false,
            refused: None,
        }
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn steps_that_run_at_once_get_their_own_output() {
        let (agent, mut guest) = pair();
        let first = agent.start("one", SOON, "guest".to_owned(), None).unwrap();
        let second = agent.start("two", SOON, "guest".to_owned(), None).unwrap();
        for script in ["one", "two"] {
            let frame = Frame::read(&mut guest).unwrap().unwrap();
            assert_eq!(frame.parse::<Start>().unwrap().script, script);
        }
        for frame in [
            Frame::new(2, Kind::Output, "second\npart"),
            Frame::new(1, Kind::Error, "wrong\n"),
            Frame::json(1, Kind::Ended, &ended(3)).unwrap(),
        ] {
            frame.write(&mut guest).unwrap();
        }
        let failure = first.wait(SOON).unwrap_err();
        assert!(
            failure.to_string().contains("`one` fails with 3: wrong"),
            "{failure}"
        );
        assert_eq!(second.wait_for_output("sec", SOON).unwrap(), "second");
        assert!(second.is_running());
        assert!(
            second.wait_for_output("part", Duration::from_millis(20)).is_err(),
            "its line has no end yet"
        );
        Frame::json(2, Kind::Ended, &ended(0))
            .unwrap()
            .write(&mut guest)
            .unwrap();
        assert_eq!(second.wait(SOON).unwrap().stdout, "second\npart");
    }

    #[test]
    fn a_guest_that_dies_ends_its_steps() {
        let (agent, guest) = pair();
        let job = agent.start("sleep", SOON, "guest".to_owned(), None).unwrap();
        drop(guest);
        let failure = job.wait(SOON).unwrap_err();
        assert!(failure.to_string().contains("the guest"), "{failure}");
        assert!(agent.start("more", SOON, "guest".to_owned(), None).is_err());
    }
}
