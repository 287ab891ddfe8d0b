//! [`Runner`]: plans the rows of a run, runs their tests, and reports.

use std::any::Any;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::context::{Lab, patience};
use super::guest::{Accelerator, Guest};
use super::kernel::{self, ADVICE, Kernel};
use super::kernel_log;
use super::pool::{Pool, Set, scratch_folder, sweep};
use super::report::{Colours, Outcome, Report, Row, Widths};
use super::requirement::Machine;
use super::skips::AllowedSkips;
use super::test::{Failure, Kernels, Test};
use super::transcript::Transcript;
use super::vm::{Setting, Vm};

/// Lines of a failed test's transcript that are shown.
const SHOWN: usize = 40;
/// How long a test's thread may take to end once everything that it has is killed.
const AFTERMATH: Duration = Duration::from_secs(60);

/// How long a guest may take to boot on a processor that really runs it: several times what it takes.
const KVM_BOOT: Duration = Duration::from_secs(12);

/// A file of tests, by its name.
pub type File = (&'static str, &'static [Test]);

/// What is run and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only tests with this in their name (`file::name`).
    pub filter: Option<String>,
    /// Only this kernel, by name or release.
    pub kernel: Option<String>,
    /// Tests at a time; each has guests of its own.
    pub jobs: Option<usize>,
    /// What may be skipped, where nothing else may.
    pub allowed_skips: Option<AllowedSkips>,
    /// How many tests that fail are run once more, in guests of their own: emulated guests on a busy machine can miss any limit in
    /// time. A row that passed so says it.
    pub repeats: usize,
    /// Those that measure, instead of those that judge.
    pub measure: bool,
}

/// A test on a kernel that is to be run.
#[derive(Debug, Clone)]
struct Item {
    /// Its place among the rows.
    place: usize,
    name: String,
    test: Test,
    kernel: Option<Kernel>,
}

impl Item {
    fn kernel_name(&self) -> &str {
        self.kernel.as_ref().map_or("host", |kernel| &kernel.name)
    }

    fn row(&self, result: Outcome, reason: Option<String>, seconds: f64) -> Row {
        Row {
            test: self.name.clone(),
            kernel: self.kernel_name().to_owned(),
            release: self
                .kernel
                .as_ref()
                .map_or_else(host_release, |kernel| kernel.release.clone()),
            transport: self.test.transport,
            peer: self.test.peer,
            feature: self.test.feature.to_owned(),
            result,
            reason,
            missing: None,
            seconds,
        }
    }
}

fn host_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What the workers of a run share.
struct Progress {
    /// Tests that nobody has taken.
    queue: Vec<Item>,
    /// Rows of tests that have ended, by place.
    rows: Vec<Option<Row>>,
    /// Guests that were booted.
    boots: usize,
    /// Tests that may still be run once more.
    repeats: usize,
}

/// Runs tests.
#[derive(Debug)]
pub struct Runner {
    files: &'static [File],
    machine: Machine,
    kernels: Vec<Kernel>,
    programs: PathBuf,
    logs: PathBuf,
}

impl Runner {
    /// A runner of these tests on this machine.
    ///
    /// # Errors
    /// The folder of this program cannot be found or written.
    pub fn new(files: &'static [File]) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let programs = program.parent().unwrap_or_else(|| Path::new(".")).to_owned();
        let logs = programs.join("lab-runs");
        fs::create_dir_all(&logs)?;
        Ok(Self {
            files,
            machine: Machine::look(),
            kernels: kernel::find(&kernel::cache(), kernel::own_is_named()),
            programs,
            logs,
        })
    }

    /// Where runs leave the transcripts of their tests, `last.json` (the last run) and `whole.json` (the last run of everything).
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The prepared kernels, the default one first.
    #[must_use]
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Folder with the programs of this checkout.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Why guests cannot be booted, if they cannot.
    ///
    /// # Errors
    /// The sentence that says what to do.
    pub fn can_boot(&self) -> Result<(), Failure> {
        self.machine
            .lacks_guests(&self.kernels)
            .map_or(Ok(()), |reason| Err(Failure::new(reason)))
    }

    /// The kernel with this name or release, or the default one.
    ///
    /// # Errors
    /// There is no such kernel.
    pub fn kernel(&self, name: Option<&str>) -> Result<&Kernel, Failure> {
        let found = match name {
            Some(name) => self
                .kernels
                .iter()
                .find(|kernel| kernel.name == name || kernel.release == name),
            None => self.kernels.first(),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = self.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            Failure::new(format!(
                "no kernel {} is prepared, of {}: {ADVICE}",
                name.unwrap_or_default(),
                names.join(", ")
            ))
        })
    }

    /// Every test as `file::name`, with what it is.
    pub fn tests(&self) -> impl Iterator<Item = (String, &'static Test)> {
        self.files.iter().flat_map(|(file, tests)| {
            tests
                .iter()
                .map(move |test| (format!("{file}::{}", test.name), test))
        })
    }

    /// What executes guests' instructions: the processor if a guest boots with it, QEMU's translator otherwise. Whether one boots is found out
    /// once per boot of this machine: a device that is there may still not work.
    pub fn accelerator(&self, kernel: &Kernel) -> Accelerator {
        let usable = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        match std::env::var("HOMI_LAB_ACCELERATOR").as_deref() {
            Ok("kvm") => return Accelerator::Kvm,
            Ok("tcg") => return Accelerator::Tcg,
            _ if !usable => return Accelerator::Tcg,
            _ => {}
        }
        let verdict = kernel::cache().join("accelerator");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim();
        if let Ok(text) = fs::read_to_string(&verdict)
            && let Some(word) = text.strip_prefix(boot)
        {
            return if word.trim() == "kvm" {
                Accelerator::Kvm
            } else {
                Accelerator::Tcg
            };
        }
        let tried = scratch_folder().and_then(|folder| {
            let setting = Setting {
                kernel,
                accelerator: Accelerator::Kvm,
                programs: &self.programs,
                folder: folder.path(),
            };
            Vm::boot_within(&Guest::SMALL, 0, setting, false, KVM_BOOT)
        });
        let (accelerator, word) = match tried {
            Ok(_) => (Accelerator::Kvm, "kvm"),
            Err(_) => (Accelerator::Tcg, "tcg"),
        };
        // Without the note the next run tries again.
        let _ = fs::write(verdict, format!("{boot} {word}\n"));
        accelerator
    }

    fn plan(&self, options: &Options) -> Result<Vec<Item>, Failure> {
        let mut items = Vec::new();
        let only = options
            .kernel
            .as_deref()
            .map(|name| self.kernel(Some(name)))
            .transpose()?;
        for (name, test) in self.tests() {
            let other = options
                .filter
                .as_ref()
                .is_some_and(|filter| !name.contains(filter));
            if other || test.measures != options.measure {
                continue;
            }
            let of_debian = || self.kernels.iter().filter(|kernel| kernel.name != "own");
            let kernels: Vec<Option<Kernel>> = if test.guests.is_empty() {
                vec![None]
            } else if let Some(only) = only {
                vec![Some(only.clone())]
            } else {
                match test.kernels {
                    Kernels::Every => self.kernels.iter().cloned().map(Some).collect(),
                    Kernels::Default => self.kernels.first().cloned().map(Some).into_iter().collect(),
                    Kernels::Newest => of_debian()
                        .max_by_key(|kernel| kernel.version())
                        .cloned()
                        .map(Some)
                        .into_iter()
                        .collect(),
                }
            };
            for kernel in kernels {
                items.push(Item {
                    place: 0,
                    name: name.clone(),
                    test: *test,
                    kernel,
                });
            }
        }
        // Equal guests side by side, so that they are booted once; among them as they stand in the files.
        let mut kinds: Vec<&'static [Guest]> = Vec::new();
        for item in &items {
            if !kinds.contains(&item.test.guests) {
                kinds.push(item.test.guests);
            }
        }
        items.sort_by_key(|item| {
            let kernel = self
                .kernels
                .iter()
                .position(|kernel| item.kernel.as_ref() == Some(kernel));
            let kind = kinds.iter().position(|guests| *guests == item.test.guests);
            (kernel, item.test.guests.len() > 1, kind, item.test.fresh)
        });
        for (place, item) in items.iter_mut().enumerate() {
            item.place = place;
        }
        Ok(items)
    }

    /// Runs what the options say, with a line per test on standard error, and returns the report. It also lies in [`Runner::logs`].
    ///
    /// # Errors
    /// No guest can run on this machine, no test or kernel has the name, or the report cannot be written.
    pub fn run(&self, options: &Options) -> Result<Report, Failure> {
        let start = Instant::now();
        sweep();
        let items = self.plan(options)?;
        if items.is_empty() {
            self.can_boot()?;
            return Err(Failure::new(format!(
                "no test has {:?} in its name: scripts/lab list names them",
                options.filter.as_deref().unwrap_or_default()
            )));
        }
        let with_guests = items.iter().find_map(|item| item.kernel.as_ref());
        if with_guests.is_some() || items.iter().any(|item| !item.test.guests.is_empty()) {
            self.can_boot()?;
        }
        let accelerator = with_guests.map_or(Accelerator::Tcg, |kernel| self.accelerator(kernel));
        let printer = Printer {
            widths: Widths::of(items.iter().map(|item| (item.name.as_str(), item.kernel_name()))),
            colours: Colours(io::stderr().is_terminal()),
        };
        let mut rows: Vec<Option<Row>> = items.iter().map(|_| None).collect();
        let mut queue = Vec::new();
        for item in items {
            match self.skip(&item, options) {
                Some(row) => {
                    printer.print(&row);
                    if let Some(place) = rows.get_mut(item.place) {
                        *place = Some(row);
                    }
                }
                None => queue.push(item),
            }
        }
        let default_jobs = thread::available_parallelism().map_or(1, |cores| (cores.get() / 6).max(1));
        let jobs = options.jobs.unwrap_or(default_jobs).clamp(1, queue.len().max(1));
        let shared = Mutex::new(Progress {
            queue,
            rows,
            boots: 0,
            repeats: options.repeats,
        });
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| self.work(&shared, accelerator, &printer));
            }
        });
        let Progress { rows, boots, .. } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let report = Report {
            filter: options.filter.clone(),
            only_kernel: options.kernel.clone(),
            qemu: self.machine.qemu.clone().unwrap_or_default(),
            accelerator: match accelerator {
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg",
            }
            .to_owned(),
            rows: rows.into_iter().flatten().collect(),
            boots,
            seconds: start.elapsed().as_secs_f64(),
        };
        if options.measure {
            return Ok(report);
        }
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(self.logs.join("last.json"), &text)?;
        if report.is_whole() {
            fs::write(self.logs.join("whole.json"), &text)?;
        }
        Ok(report)
    }

    /// The row of a test that needs something which is missing.
    fn skip(&self, item: &Item, options: &Options) -> Option<Row> {
        let (requirement, reason) = item.test.needs.iter().find_map(|requirement| {
            let reason = requirement.missing(&self.machine, item.kernel.as_ref())?;
            Some((requirement.to_string(), reason))
        })?;
        let allowed = options
            .allowed_skips
            .as_ref()
            .is_none_or(|skips| skips.allow(&item.name, item.kernel_name(), &requirement));
        let mut row = if allowed {
            item.row(Outcome::Skipped, Some(reason), 0.0)
        } else {
            let reason = format!("{reason} ({requirement} is not among the skips that are allowed)");
            item.row(Outcome::Failed, Some(reason), 0.0)
        };
        row.missing = Some(requirement);
        Some(row)
    }

    /// Takes tests from the queue until it is empty, those first whose guests are at hand.
    fn work(&self, shared: &Mutex<Progress>, accelerator: Accelerator, printer: &Printer) {
        let lock = || -> MutexGuard<'_, _> { shared.lock().unwrap_or_else(PoisonError::into_inner) };
        let mut pool = Pool::default();
        loop {
            let item = {
                let mut state = lock();
                let at_hand = state
                    .queue
                    .iter()
                    .position(|item| pool.has(item.kernel_name(), item.test.guests));
                if state.queue.is_empty() {
                    break;
                }
                state.queue.remove(at_hand.unwrap_or(0))
            };
            let mut row = self.run_one(&item, &mut pool, accelerator, printer);
            if row.result == Outcome::Failed && take_repeat(&mut lock().repeats) {
                printer.say(&format!("once more: {}", item.name));
                let first = row.reason.take().unwrap_or_default();
                row = self.run_one(&item, &mut pool, accelerator, printer);
                if row.result == Outcome::Passed {
                    row.reason = Some(format!("the first time it failed: {first}"));
                }
            }
            printer.print(&row);
            if let Some(place) = lock().rows.get_mut(item.place) {
                *place = Some(row);
            }
        }
        lock().boots += pool.boots;
    }

    fn run_one(&self, item: &Item, pool: &mut Pool, accelerator: Accelerator, printer: &Printer) -> Row {
        let transcript = Arc::new(Transcript::default());
        printer.begin(item);
        let (outcome, seconds) = self.run_in_guests(item, pool, accelerator, &transcript);
        let log = self.logs.join(format!(
            "{}.{}.log",
            item.name.replace("::", "."),
            item.kernel_name()
        ));
        let text = transcript.text();
        let written = fs::write(&log, &text);
        match outcome {
            Ok(()) => item.row(Outcome::Passed, None, seconds),
            Err(failure) => {
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
                printer.failure(item, tail, written.is_ok().then_some(&log));
                let sentence = failure.to_string();
                let first = sentence.lines().next().unwrap_or_default().to_owned();
                item.row(Outcome::Failed, Some(first), seconds)
            }
        }
    }

    fn run_in_guests(
        &self,
        item: &Item,
        pool: &mut Pool,
        accelerator: Accelerator,
        transcript: &Arc<Transcript>,
    ) -> (Result<(), Failure>, f64) {
        let set = match &item.kernel {
            None => None,
            Some(kernel) => {
                let setting = Setting {
                    kernel,
                    accelerator,
                    programs: &self.programs,
                    folder: Path::new(""),
                };
                let taken = pool
                    .take(item.test.guests, setting, item.test.fresh)
                    .and_then(|set| {
                        for vm in &set.vms {
                            vm.begin(&item.name, transcript)?;
                        }
                        Ok(set)
                    });
                match taken {
                    Ok(set) => Some(set),
                    Err(failure) => {
                        transcript.line(&failure.to_string());
                        return (Err(failure), 0.0);
                    }
                }
            }
        };
        let start = Instant::now();
        let scratch = match scratch_folder() {
            Ok(scratch) => scratch,
            Err(failure) => return (Err(failure), 0.0),
        };
        let lab = Lab {
            guests: set.iter().flat_map(|set| set.vms.iter().cloned()).collect(),
            links: set.iter().flat_map(|set| set.links.iter().cloned()).collect(),
            kernel: item.kernel.clone(),
            accelerator,
            programs: self.programs.clone(),
            scratch: scratch.path().to_owned(),
            transcript: Arc::clone(transcript),
            targets: AtomicUsize::new(0),
        };
        let mut outcome = run_body(item, lab, set.as_ref());
        let seconds = start.elapsed().as_secs_f64();
        if let Err(failure) = &outcome {
            transcript.line(&format!("FAILED: {failure}"));
        }
        if let Some(set) = set {
            let clean = end(&set, item, transcript, &mut outcome);
            if clean && outcome.is_ok() {
                pool.keep(set);
            }
        }
        (outcome, seconds)
    }
}

/// Runs a body in a thread of its own; what it has is killed when its time is up.
/// Uses up one of so many.
fn take_repeat(left: &mut usize) -> bool {
    let any = *left > 0;
    *left -= usize::from(any);
    any
}

fn run_body(item: &Item, lab: Lab, set: Option<&Set>) -> Result<(), Failure> {
    let body = item.test.run;
    let limit = item.test.limit.mul_f64(patience());
    let (sender, result) = mpsc::channel();
    let thread = thread::Builder::new().name(item.name.clone()).spawn(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| body(&lab)));
        drop(lab);
        // Nobody waits any more for a test that was given up.
        let _ =
            sender.send(outcome.unwrap_or_else(|panic| Err(Failure::new(panic_sentence(panic.as_ref())))));
    })?;
    let outcome = match result.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new("the test's thread is gone")),
        Err(RecvTimeoutError::Timeout) => {
            for vm in set.iter().flat_map(|set| &set.vms) {
                vm.kill();
            }
            let late = match result.recv_timeout(AFTERMATH) {
                Ok(Err(failure)) => format!(", and says then: {failure}"),
                Ok(Ok(())) => String::new(),
                Err(_) => ", and hangs even without its guests".to_owned(),
            };
            return Err(Failure::new(format!("it has not ended after {limit:.0?}{late}")));
        }
    };
    // It has sent its last word.
    let _ = thread.join();
    outcome
}

fn panic_sentence(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("the test panicked")
        .to_owned()
}

/// Judges and cleans the guests of a test; whether they can serve another one.
fn end(set: &Set, item: &Item, transcript: &Transcript, outcome: &mut Result<(), Failure>) -> bool {
    set.reset_links();
    let mut clean = true;
    for vm in &set.vms {
        if !vm.is_running() && outcome.is_ok() {
            // It was powered off; what its console has is all there is.
            let console = vm.console();
            judge(vm, &console, item, transcript, outcome);
            clean = false;
            continue;
        }
        let (log, left) = vm.end(outcome.is_ok());
        if let Err(left) = left
            && outcome.is_ok()
        {
            transcript.line(&format!("guest {} will not be used again: {left}", vm.index()));
            clean = false;
        }
        transcript.line(&format!("kernel log of guest {}:", vm.index()));
        transcript.output("kernel", log.as_bytes());
        judge(vm, &log, item, transcript, outcome);
    }
    clean && set.empty_shares().is_ok()
}

fn judge(vm: &Vm, log: &str, item: &Item, transcript: &Transcript, outcome: &mut Result<(), Failure>) {
    let mistakes = kernel_log::mistakes(log, item.test.tolerates);
    let Some(first) = mistakes.first() else { return };
    let sentence = format!("the kernel of guest {} says: {first}", vm.index());
    transcript.line(&sentence);
    if outcome.is_ok() {
        *outcome = Err(Failure::new(sentence));
    }
}

/// Writes the lines of a run.
struct Printer {
    widths: Widths,
    colours: Colours,
}

impl Printer {
    fn say(&self, text: &str) {
        // Nobody may be reading; the report has it all.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// On a terminal, says what is running; the row overwrites it.
    fn begin(&self, item: &Item) {
        if self.colours.0 {
            let _ = write!(
                io::stderr(),
                "\r\x1b[K····  {}  {}",
                item.name,
                item.kernel_name()
            );
        }
    }

    fn print(&self, row: &Row) {
        let erase = if self.colours.0 { "\r\x1b[K" } else { "" };
        self.say(&format!("{erase}{}", row.line(self.widths, self.colours)));
    }

    fn failure(&self, item: &Item, tail: &[&str], log: Option<&PathBuf>) {
        let mut text = format!(
            "\n--- {} on {}\n{}\n",
            item.name,
            item.kernel_name(),
            tail.join("\n")
        );
        if let Some(log) = log {
            text += &format!("--- all of it: {}\n", log.display());
        }
        self.say(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::requirement::Requirement;
    use super::*;

    const TWO: &[Guest] = &[
        Guest {
            links: &[0],
            ..Guest::SMALL
        },
        Guest {
            links: &[0],
            ..Guest::SMALL
        },
    ];

    const FILES: &[File] = &[
        (
            "first",
            &[
                Test {
                    name: "every",
                    ..Test::DEFAULT
                },
                Test {
                    name: "pair",
                    guests: TWO,
                    kernels: Kernels::Default,
                    ..Test::DEFAULT
                },
                Test {
                    name: "newest",
                    kernels: Kernels::Newest,
                    needs: &[Requirement::Loopback, Requirement::Gpu],
                    ..Test::DEFAULT
                },
            ],
        ),
        (
            "second",
            &[
                Test {
                    name: "alone",
                    guests: &[],
                    run: |_| Ok(()),
                    ..Test::DEFAULT
                },
                Test {
                    name: "panics",
                    guests: &[],
                    run: |lab| {
                        assert!(lab.guest(0).is_ok(), "there is no guest");
                        Ok(())
                    },
                    ..Test::DEFAULT
                },
                Test {
                    name: "default",
                    kernels: Kernels::Default,
                    ..Test::DEFAULT
                },
            ],
        ),
    ];

    fn runner(logs: &Path) -> Runner {
        Runner {
            files: FILES,
            machine: Machine {
                qemu: Some("10.0.2".to_owned()),
                ..Machine::default()
            },
            kernels: vec![
                Kernel::named_for_tests("debian-6.12", "6.12.95+deb12-amd64"),
                Kernel::named_for_tests("debian-newer", "7.3.4+deb13-amd64"),
                Kernel::named_for_tests("own", "9.0.0-mine"),
            ],
            programs: PathBuf::from("/nowhere"),
            logs: logs.to_owned(),
        }
    }

    fn planned(options: &Options) -> Vec<String> {
        let items = runner(Path::new("/nowhere")).plan(options).unwrap();
        items
            .iter()
            .map(|item| format!("{} {}", item.name, item.kernel_name()))
            .collect()
    }

    #[test]
    fn tests_with_equal_guests_are_side_by_side() {
        assert_eq!(
            planned(&Options::default()),
            [
                "second::alone host",
                "second::panics host",
                "first::every debian-6.12",
                "second::default debian-6.12",
                "first::pair debian-6.12",
                "first::every debian-newer",
                "first::newest debian-newer",
                "first::every own",
            ]
        );
    }

    #[test]
    fn a_part_can_be_run_and_one_kernel() {
        let options = Options {
            filter: Some("first::".to_owned()),
            kernel: Some("7.3.4+deb13-amd64".to_owned()),
            ..Options::default()
        };
        assert_eq!(
            planned(&options),
            [
                "first::every debian-newer",
                "first::newest debian-newer",
                "first::pair debian-newer"
            ]
        );
        let options = Options {
            kernel: Some("debian".to_owned()),
            ..Options::default()
        };
        let failure = runner(Path::new("/nowhere")).plan(&options).unwrap_err();
        assert!(
            failure.to_string().contains("no kernel debian is prepared"),
            "{failure}"
        );
    }

    #[test]
    fn what_is_missing_skips_a_test_unless_that_is_not_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let run = |allowed: Option<&str>| {
            let options = Options {
                filter: Some("newest".to_owned()),
                allowed_skips: allowed.map(|text| AllowedSkips::parse(text).unwrap()),
                ..Options::default()
            };
            let runner = runner(folder.path());
            let items = runner.plan(&options).unwrap();
            runner.skip(&items[0], &options).unwrap()
        };
        let row = run(None);
        assert_eq!(
            (row.result, row.missing.as_deref()),
            (Outcome::Skipped, Some("Gpu"))
        );
        assert!(row.reason.unwrap().contains("accelerator"));
        let row = run(Some(""));
        assert_eq!(row.result, Outcome::Failed);
        assert!(
            row.reason
                .unwrap()
                .contains("not among the skips that are allowed")
        );
        let row = run(Some("[[skip]]\nrequirement = \"Gpu\"\nreason = \"none here\""));
        assert_eq!(row.result, Outcome::Skipped);
    }

    #[test]
    fn as_many_tests_are_run_once_more_as_was_said() {
        let mut left = 2;
        let taken: Vec<bool> = (0..4).map(|_| take_repeat(&mut left)).collect();
        assert_eq!(taken, [true, true, false, false]);
    }

    #[test]
    fn tests_without_guests_run_here_and_a_panic_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            filter: Some("second::".to_owned()),
            kernel: Some("own".to_owned()),
            ..Options::default()
        };
        let mut items = runner(folder.path()).plan(&options).unwrap();
        items.retain(|item| item.test.guests.is_empty());
        let runner = runner(folder.path());
        let printer = Printer {
            widths: Widths::default(),
            colours: Colours(false),
        };
        let mut pool = Pool::default();
        let rows: Vec<Row> = items
            .iter()
            .map(|item| runner.run_one(item, &mut pool, Accelerator::Tcg, &printer))
            .collect();
        assert_eq!(rows[0].result, Outcome::Passed);
        assert_eq!(rows[1].result, Outcome::Failed);
        assert_eq!(rows[1].reason.as_deref(), Some("there is no guest"));
        let log = fs::read_to_string(folder.path().join("second.panics.host.log")).unwrap();
        assert!(log.contains("FAILED: there is no guest"), "{log}");
    }
}
