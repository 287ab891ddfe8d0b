//! What an I/O costs the driver: instructions and allocations of submit and poll, against a controller that answers inside the doorbell.
//!
//! The program runs itself under callgrind with few I/Os and with many; the difference, divided by the I/Os that make it, is what one costs.
//! Instructions of the model (everything below a register write) and of the issuer's loop (taking memory from a list, looking at the status and
//! putting the memory back) are counted by themselves and taken off; making a command is the driver's. Allocations are what memcheck
//! counts, by the same difference. Reads and writes of registers are counted at the seam below the driver. Without valgrind it says so, and
//! runs the I/Os once. What memory an I/O touches is counted by `cache_lines`.
//!
//! `cargo bench -p homi-nvme`

use std::hint::black_box;
use std::path::Path;
use std::process::Command as Process;
use std::sync::atomic::Ordering;

use homi_queue::{Command, CommandId, Completed, Completion, Data, Queue, Region};

mod support;

use support::{BLOCK, CASES, Case, Failure, Setup};

const FEW: u64 = 64_000;
const MANY: u64 = 192_000;

/// What a run counted by itself.
struct Run {
    doorbells: u64,
    reads: u64,
    writes: u64,
    interrupts: u64,
}

/// The same loop without a queue: what the issuer's own work costs.
fn run_alone(case: Case, ios: u64) -> Result<(), Failure> {
    let memory = Region::allocate(usize::from(case.batch) * case.len, BLOCK)?;
    let mut free = support::parts(&memory, case)?;
    let mut held = Vec::with_capacity(free.len());
    let mut failures = 0;
    for _ in 0..ios / u64::from(case.batch) {
        let mut again = Again {
            free: &mut held,
            failures: &mut failures,
        };
        while let Some(data) = free.pop() {
            again.extend(Some(Completed {
                id: CommandId(0),
                completion: black_box(Completion::SUCCESS),
                data,
            }));
        }
        std::mem::swap(&mut free, &mut held);
    }
    if failures > 0 {
        return Err("what succeeded failed".into());
    }
    Ok(())
}

/// Takes completions, and has their memory used again.
struct Again<'a> {
    free: &'a mut Vec<Data>,
    failures: &'a mut u64,
}

impl Extend<Completed> for Again<'_> {
    #[inline]
    fn extend<T: IntoIterator<Item = Completed>>(&mut self, completed: T) {
        for done in completed {
            *self.failures += u64::from(!done.completion.is_success());
            self.free.push(done.data);
        }
    }
}

fn run(case: Case, ios: u64) -> Result<Run, Failure> {
    let Setup {
        counts,
        mut queue,
        mut free,
        blocks,
        ..
    } = Setup::new(case, |_| {})?;
    // What an issuer learns at run time.
    let (nsid, opcode, blocks) = (black_box(1), black_box(case.opcode()), black_box(blocks));
    let mut lba = 0;
    let registers = || {
        (
            counts.reads.load(Ordering::Relaxed),
            counts.writes.load(Ordering::Relaxed),
        )
    };
    let (reads, writes) = registers();
    let before = queue.counters();
    let mut failures = 0;
    for _ in 0..ios / u64::from(case.batch) {
        while let Some(data) = free.pop() {
            let slot = queue.reserve()?;
            let mut command = Command::read(nsid, lba, blocks);
            command.0.opcode = opcode;
            lba += 8;
            queue.submit(slot, command, data);
        }
        queue.commit()?;
        while free.len() < usize::from(case.batch) {
            let mut again = Again {
                free: &mut free,
                failures: &mut failures,
            };
            queue.poll(&mut again)?;
        }
    }
    if failures > 0 {
        return Err(format!("{failures} i/os failed").into());
    }
    let after = queue.counters();
    let (reads_after, writes_after) = registers();
    Ok(Run {
        reads: reads_after - reads,
        writes: writes_after - writes,
        doorbells: after.submission_doorbells + after.completion_doorbells
            - before.submission_doorbells
            - before.completion_doorbells,
        interrupts: after.interrupts,
    })
}

/// The number after a label in valgrind's log.
fn number(log: &str, label: &str) -> Option<u64> {
    let (_, after) = log.split_once(label)?;
    after.split_whitespace().next()?.replace(',', "").parse().ok()
}

/// What one run under a tool of valgrind counts.
fn count(folder: &Path, tool: &[&str], label: &str, index: usize, ios: u64) -> Result<u64, Failure> {
    let log = folder.join("valgrind.log");
    let status = Process::new("valgrind")
        .args(tool)
        .arg(format!("--log-file={}", log.display()))
        .arg(std::env::current_exe()?)
        .args(["--case", &index.to_string(), &ios.to_string()])
        .stdout(std::process::Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("the run under valgrind failed: {status}").into());
    }
    let text = std::fs::read_to_string(&log)?;
    number(&text, label).ok_or_else(|| format!("valgrind counted nothing: {text}").into())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn per_io(folder: &Path, tool: &[&str], label: &str, index: usize) -> Result<f64, Failure> {
    let few = count(folder, tool, label, index, FEW)?;
    let many = count(folder, tool, label, index, MANY)?;
    Ok(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, index, ios] = arguments.as_slice()
        && flag == "--case"
    {
        let (index, ios): (usize, u64) = (index.parse()?, ios.parse()?);
        // Past the cases come their loops alone.
        return match CASES.get(index) {
            Some(case) => run(*case, ios).map(drop),
            None => {
                let case = CASES.get(index - CASES.len()).ok_or("no such case")?;
                run_alone(*case, ios)
            }
        };
    }
    let valgrind = support::has_valgrind();
    if !valgrind {
        println!("instructions and allocations are not counted: valgrind is missing, install it");
    }
    let folder = std::env::temp_dir().join(format!("homi-nvme-counts-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let callgrind = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let model = [callgrind[0], callgrind[1], "--toggle-collect=*Counted*write32*"];
    let memcheck = ["--tool=memcheck", "--leak-check=no"];
    println!(
        "per i/o                  instructions  model below  issuer above  allocations  doorbells  registers read  written"
    );
    for (index, case) in CASES.iter().enumerate() {
        let counted = run(*case, MANY)?;
        if counted.interrupts > 0 {
            return Err("a polled queue took interrupts".into());
        }
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let [doorbells, reads, writes] =
            [counted.doorbells, counted.reads, counted.writes].map(|count| count as f64 / MANY as f64);
        let registers = format!("{doorbells:>10.3} {reads:>15.3} {writes:>8.3}");
        if !valgrind {
            println!("{:24} {:>53}{registers}", case.name, "");
            continue;
        }
        let all = per_io(&folder, &callgrind, "Collected : ", index)?;
        let above = per_io(&folder, &callgrind, "Collected : ", CASES.len() + index)?;
        let below = per_io(&folder, &model, "Collected : ", index)?;
        let allocations = per_io(&folder, &memcheck, "total heap usage: ", index)?;
        println!(
            "{:24} {:>12.1} {below:>12.1} {above:>13.1} {allocations:>12.3} {registers}",
            case.name,
            all - below - above
        );
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
