//! Which memory an I/O touches: distinct cache lines of 64 bytes that submit, commit and poll read or write, per I/O.
//!
//! The program runs itself under valgrind's lackey, which lists every access to memory, and looks at what lies between marks around the
//! calls; what happens below a register write (the model of a controller) does not count, nor does what the issuer does by itself. All data
//! counts, the stack as well; the caller's list of memory is touched while completions are taken, and counts then. A line that several
//! I/Os of a batch use counts once, so at batch 1 it is the most. Data itself is not touched: that is the drive's.
//!
//! `cargo bench -p homi-nvme --bench cache_lines`

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use homi_queue::{Command, Completed, Queue};

mod support;

use support::{CASES, Case, Failure, Setup};

/// Batches before the first that counts: enough for the rings to wrap.
const WARM: u32 = 150;
const BATCHES: u32 = 64;

/// Stores to these are seen in the list of accesses.
static MARKS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// What a store to each says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// The queue is called, or the call is over.
    Call,
    /// A register is reached, or that is over.
    Below,
    /// Batches begin to count.
    Begin,
    /// A batch is over.
    Batch,
}

fn mark(mark: Mark) {
    compiler_fence(Ordering::SeqCst);
    if let Some(cell) = MARKS.get(mark as usize) {
        cell.store(1, Ordering::Relaxed);
    }
    compiler_fence(Ordering::SeqCst);
}

fn border(_: bool) {
    mark(Mark::Below);
}

/// What runs under lackey: says where the marks are, then does the I/Os.
fn run(case: Case) -> Result<(), Failure> {
    println!("{:x}", MARKS.as_ptr().addr());
    let Setup {
        mut queue,
        mut free,
        blocks,
        ..
    } = Setup::new(case, border)?;
    let mut done: Vec<Completed> = Vec::with_capacity(free.len());
    let mut lba = 0;
    for batch in 0..WARM + BATCHES {
        if batch == WARM {
            mark(Mark::Begin);
        }
        while let Some(data) = free.pop() {
            let mut command = Command::read(1, lba, blocks);
            command.0.opcode = case.opcode();
            lba += 8;
            mark(Mark::Call);
            let slot = queue.reserve()?;
            queue.submit(slot, command, data);
            mark(Mark::Call);
        }
        mark(Mark::Call);
        queue.commit()?;
        mark(Mark::Call);
        while done.len() < usize::from(case.batch) {
            mark(Mark::Call);
            queue.poll(&mut done)?;
            mark(Mark::Call);
        }
        for done in done.drain(..) {
            if !done.completion.is_success() {
                return Err("an i/o failed".into());
            }
            free.push(done.data);
        }
        mark(Mark::Batch);
    }
    Ok(())
}

/// Distinct lines that each batch touched, together.
fn count(trace: impl BufRead, marks: u64) -> Result<(u64, u32), Failure> {
    let mut lines = HashSet::new();
    let (mut counting, mut call, mut below) = (false, false, false);
    let (mut sum, mut batches) = (0, 0);
    for line in trace.lines() {
        let line = line?;
        // Loads, stores, and both: ` L 1ffeffe7e0,8`.
        let Some(access) = ["  L ", "  S ", "  M ", " L ", " S ", " M "]
            .iter()
            .find_map(|kind| line.strip_prefix(kind))
        else {
            continue;
        };
        let (at, len) = access.split_once(',').ok_or("lackey says something else")?;
        let (at, len) = (u64::from_str_radix(at, 16)?, len.trim().parse::<u64>()?);
        match at.checked_sub(marks).map(|offset| offset / 8) {
            Some(0) => call = !call,
            Some(1) => below = !below,
            Some(2) => counting = true,
            Some(3) => {
                if counting {
                    sum += lines.len() as u64;
                    batches += 1;
                }
                lines.clear();
            }
            _ if counting && call && !below => lines.extend(at / 64..=(at + len - 1) / 64),
            _ => {}
        }
    }
    Ok((sum, batches))
}

fn traced(folder: &Path, index: usize) -> Result<f64, Failure> {
    let log = folder.join("lackey.log");
    let output = Process::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--basic-counts=no"])
        .arg(format!("--log-file={}", log.display()))
        .arg(std::env::current_exe()?)
        .args(["--case", &index.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the run under valgrind failed: {}", output.status).into());
    }
    let marks = String::from_utf8(output.stdout)?;
    let marks = u64::from_str_radix(marks.trim(), 16)?;
    let (sum, batches) = count(BufReader::new(File::open(&log)?), marks)?;
    if batches != BATCHES {
        return Err(format!("{batches} batches were seen, not {BATCHES}").into());
    }
    let case = CASES.get(index).ok_or("no such case")?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    Ok(sum as f64 / f64::from(batches) / f64::from(case.batch))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, index] = arguments.as_slice()
        && flag == "--case"
    {
        let index: usize = index.parse()?;
        return run(*CASES.get(index).ok_or("no such case")?);
    }
    if !support::has_valgrind() {
        println!("cache lines are not counted: valgrind is missing, install it");
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("homi-nvme-lines-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    println!("per i/o                  cache lines");
    for (index, case) in CASES.iter().enumerate() {
        println!("{:24} {:>11.2}", case.name, traced(&folder, index)?);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
