//! `homi copy`: bytes from anywhere to anywhere, with checksums of what was read and, if asked for, of what arrived.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use homi_initiator::{CopyRange, CopyReport, Device, Initiator, PeerBuffer, Unusable, Uri};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::json;

use crate::arguments::{self, Place};
use crate::checksum::{Algorithm, Hasher};
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::pipeline::{self, End, Sink, Window};
use crate::{mounted, output};

/// Copy between namespaces, devices and files, with checksums
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Where the bytes are: a URI or the path of a file
    #[arg(value_parser = arguments::place)]
    source: Place,
    /// Where they should go: a URI or the path of a file
    #[arg(value_parser = arguments::place)]
    destination: Place,
    /// Bytes to copy [default: everything from --from on]
    #[arg(long, value_name = "SIZE", value_parser = arguments::size)]
    count: Option<u64>,
    /// First byte to read
    #[arg(long, value_name = "SIZE", value_parser = arguments::size, default_value = "0")]
    from: u64,
    /// First byte to write; a file is kept as it is before that, and shortened only if this is 0
    #[arg(long, value_name = "SIZE", value_parser = arguments::size, default_value = "0")]
    to: u64,
    /// Read the destination back and compare checksums
    #[arg(long)]
    verify: bool,
    /// How to compute checksums
    #[arg(long, value_name = "HOW", value_enum, default_value = "sha256")]
    checksum: Algorithm,
    /// Bytes per transfer, limited to what both ends can do
    #[arg(long, value_name = "SIZE", value_parser = arguments::some_size, default_value = "256k")]
    chunk: u64,
    /// Transfers in flight
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Memory that the bytes of a copy between two nvme+pci:// drives pass through: the controller memory buffer of one of them, or this
    /// machine's; auto takes the destination's buffer, else the source's, else this machine's memory, and says why. Through a buffer
    /// nothing is looked at on the way: checksums need --verify, which reads both ends afterwards
    #[arg(long, value_name = "MEMORY", value_enum)]
    via: Option<Via>,
    /// Return without making the bytes durable
    #[arg(long)]
    no_flush: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What bytes pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    /// A drive's controller memory buffer
    Cmb,
    /// Memory of this machine
    Dram,
    /// The first of these that can be had
    Auto,
}

/// What bytes passed through, and why.
#[derive(Default)]
struct Passed {
    /// Absent if nobody asked.
    object: Option<serde_json::Value>,
    text: String,
}

impl Passed {
    fn dram(via: Via, why: &str) -> Self {
        let because = if via == Via::Dram {
            "as asked for".to_owned()
        } else {
            why.to_owned()
        };
        Self {
            text: format!("through memory of this machine: {because}\n"),
            object: Some(json!({ "memory": "dram", "why": because })),
        }
    }

    fn buffer(buffer: &PeerBuffer, instead: Option<&Unusable>, report: CopyReport) -> Self {
        let (holder, name) = (buffer.holder(), buffer.drive().name());
        let because = instead.map_or_else(|| "it is the first choice".to_owned(), ToString::to_string);
        Self {
            text: format!(
                "through the controller memory buffer of the {holder}, {name}: {because}\n{} reads and {} writes, {} of which passed through memory \
                 of this machine; {} regions of that were mapped\n",
                report.reads, report.writes, report.bounced, report.mapped
            ),
            object: Some(json!({
                "memory": "cmb",
                "holder": holder.to_string(),
                "drive": name,
                "why": because,
                "reads": report.reads,
                "writes": report.writes,
                "bounced": report.bounced,
                "mapped": report.mapped,
            })),
        }
    }
}

impl Copy {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.verify && self.checksum == Algorithm::None {
            return Err(Failure::Usage(
                "--verify compares checksums: use --checksum crc32c or sha256".to_owned(),
            ));
        }
        let initiator = self.connection.initiator()?;
        let (mut source, available) = self.open_source(&initiator)?;
        let count = match (self.count, available.checked_sub(self.from)) {
            (None, Some(rest)) => rest,
            (Some(count), Some(rest)) if count <= rest => count,
            (count, _) => {
                return Err(Failure::Failed(format!(
                    "{} has {available} bytes, not {} from byte {} on: use a smaller --count or --from",
                    self.source,
                    count.map_or("any".to_owned(), |count| count.to_string()),
                    self.from
                )));
            }
        };
        self.refuse_overlap(count)?;
        let mut destination = self.open_destination(&initiator, &source, count)?;
        let window = self.window(&source, &destination)?;
        let mut passed = Passed::default();
        if let Some(via) = self.via {
            match self.buffer(via, &source, &destination)? {
                Ok((buffer, instead)) => {
                    return self.copy_inside(&buffer, instead.as_ref(), (source, destination), count, window);
                }
                Err(dram) => passed = dram,
            }
        }
        let start = Instant::now();
        let mut hasher = Hasher::new(self.checksum);
        let mut progress = Progress::new(count, !self.quiet && !self.json);
        let sink = Sink {
            end: &mut destination,
            at: self.to,
        };
        let tail = pipeline::run(
            &mut source,
            self.from,
            Some(sink),
            count,
            window,
            &mut hasher,
            &mut |moved| {
                progress.show("copied", moved);
            },
        )?;
        drop(source);
        let device = destination.device();
        destination.finish(self.to + count - tail.len() as u64, &tail, !self.no_flush)?;
        let elapsed = start.elapsed();
        let copied = hasher.finish();
        let arrived = if self.verify {
            self.read_back(device, count, window, &mut progress)?
        } else {
            None
        };
        progress.clear();
        self.tell(count, elapsed, copied, arrived, passed)
    }

    /// The memory buffer to copy through, or why it is memory of this machine.
    fn buffer(
        &self,
        via: Via,
        source: &End,
        destination: &End,
    ) -> Result<Result<(PeerBuffer, Option<Unusable>), Passed>, Failure> {
        if via == Via::Dram {
            return Ok(Err(Passed::dram(via, "")));
        }
        let refuse = |why: String| match via {
            Via::Cmb => Err(Failure::Failed(format!("--via cmb: {why}"))),
            Via::Auto | Via::Dram => Ok(Err(Passed::dram(via, &why))),
        };
        let (from, to) = (source.device(), destination.device());
        let (from, to) = match (
            from.as_ref().and_then(Device::drive),
            to.as_ref().and_then(Device::drive),
        ) {
            (Some(from), Some(to)) => (from, to),
            (None, _) => {
                return refuse(format!(
                    "{} is no drive of this process's: use nvme+pci://",
                    self.source
                ));
            }
            (_, None) => {
                return refuse(format!(
                    "{} is no drive of this process's: use nvme+pci://",
                    self.destination
                ));
            }
        };
        match PeerBuffer::choose(from, to, self.chunk, self.depth) {
            Ok(chosen) => Ok(Ok(chosen)),
            Err([first, second]) => refuse(format!("{first}; {second}")),
        }
    }

    /// Copies through a memory buffer. What was copied is looked at afterwards, if at all.
    fn copy_inside(
        &self,
        buffer: &PeerBuffer,
        instead: Option<&Unusable>,
        (source, destination): (End, End),
        count: u64,
        window: Window,
    ) -> Result<(), Failure> {
        let (from, to) = (source.device(), destination.device());
        // Drives may have few queue pairs.
        drop((source, destination));
        let mut progress = Progress::new(count, !self.quiet && !self.json);
        let range = CopyRange {
            from: self.from,
            to: self.to,
            count,
        };
        let start = Instant::now();
        let report = buffer
            .copy(range, !self.no_flush, |moved| progress.show("copied", moved))
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let elapsed = start.elapsed();
        let (mut copied, mut arrived) = (None, None);
        if self.verify {
            copied = self.hash(from, self.from, count, window, &mut progress)?;
            arrived = self.hash(to, self.to, count, window, &mut progress)?;
        }
        progress.clear();
        let passed = Passed::buffer(buffer, instead, report);
        self.tell(count, elapsed, copied, arrived, passed)
    }

    /// The checksum of what a device has.
    fn hash(
        &self,
        device: Option<Device>,
        at: u64,
        count: u64,
        window: Window,
        progress: &mut Progress,
    ) -> Result<Option<String>, Failure> {
        let Some(device) = device else { return Ok(None) };
        let mut end = End::blocks(device, self.depth)?;
        let mut hasher = Hasher::new(self.checksum);
        let show = &mut |moved| progress.show("verified", moved);
        pipeline::run(&mut end, at, None, count, window, &mut hasher, show)?;
        Ok(hasher.finish())
    }

    fn open_source(&self, initiator: &Initiator) -> Result<(End, u64), Failure> {
        match &self.source {
            Place::Uri(uri) => {
                let device = initiator.open(connection::blocks(uri)?)?;
                check_alignment("--from", self.from, uri, device.block_size())?;
                let bytes = device.bytes();
                Ok((End::blocks(device, self.depth)?, bytes))
            }
            Place::File(path) => {
                let (file, len) = pipeline::open_source(path)?;
                let len = len.ok_or_else(|| {
                    Failure::Failed(format!(
                        "{} is neither a file nor a block device: `homi write --input` reads pipes",
                        path.display()
                    ))
                })?;
                Ok((End::File(file, path.clone()), len))
            }
        }
    }

    fn open_destination(&self, initiator: &Initiator, source: &End, count: u64) -> Result<End, Failure> {
        if let Some(path) = self.destination.device() {
            mounted::refuse_if_in_use(&path)?;
        }
        match &self.destination {
            Place::Uri(uri) => {
                // A file serves one device at a time, so both ends of a copy within it share that.
                let shared = source
                    .device()
                    .filter(|device| device.uri() == &**uri && !matches!(**uri, Uri::Ram { .. }));
                let device = match shared {
                    Some(device) => device,
                    None => initiator.open(connection::blocks(uri)?)?,
                };
                check_alignment("--to", self.to, uri, device.block_size())?;
                if device.read_only() {
                    return Err(Failure::Failed(format!(
                        "{uri} is read-only: choose another destination"
                    )));
                }
                if self.to.checked_add(count).is_none_or(|end| end > device.bytes()) {
                    return Err(Failure::Failed(format!(
                        "{count} bytes from byte {} on do not fit {uri}, which has {}: use a smaller --count or --to",
                        self.to,
                        device.bytes()
                    )));
                }
                End::blocks(device, self.depth)
            }
            Place::File(path) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                let fail = |error: io::Error| Failure::file("write to", path, &error);
                let mut file = options.open(path).map_err(fail)?;
                let metadata = file.metadata().map_err(fail)?;
                if metadata.is_file() {
                    if self.to == 0 {
                        file.set_len(0).map_err(fail)?;
                    }
                } else {
                    match pipeline::length(&mut file, &metadata).map_err(fail)? {
                        Some(len) if self.to.checked_add(count).is_some_and(|end| end <= len) => {}
                        Some(len) => {
                            return Err(Failure::Failed(format!(
                                "{count} bytes from byte {} on do not fit {}, which has {len}: use a smaller --count",
                                self.to,
                                path.display()
                            )));
                        }
                        None => {
                            return Err(Failure::Failed(format!(
                                "{} is neither a file nor a block device: `homi read` writes to pipes",
                                path.display()
                            )));
                        }
                    }
                }
                Ok(End::File(file, path.clone()))
            }
        }
    }

    /// The largest transfers that both ends can do.
    fn window(&self, source: &End, destination: &End) -> Result<Window, Failure> {
        let ends = [source.geometry(), destination.geometry()];
        let ends = ends.iter().flatten();
        let most = ends
            .clone()
            .map(|(_, most)| u64::from(*most))
            .min()
            .unwrap_or(u64::MAX);
        let block = ends.map(|(block, _)| u64::from(*block)).max().unwrap_or(1);
        // No more than is useful: beyond this the window is all latency.
        let most = most.min(self.chunk).min(64 << 20);
        let chunk = usize::try_from(most / block * block).unwrap_or(0);
        if chunk == 0 {
            return Err(Failure::Failed(format!(
                "transfers of at most {most} bytes cannot carry blocks of {block}: use a larger --chunk"
            )));
        }
        Ok(Window {
            chunk,
            chunks: self.depth,
        })
    }

    /// Copying a range onto itself would destroy it.
    fn refuse_overlap(&self, count: u64) -> Result<(), Failure> {
        let same = match (self.source.path(), self.destination.path()) {
            (Some(a), Some(b)) => same_file(a, b),
            // Two memories with the same URI are two memories.
            _ => match (&self.source, &self.destination) {
                (Place::Uri(a), Place::Uri(b)) => a == b && !matches!(**a, Uri::Ram { .. }),
                _ => false,
            },
        };
        let apart = self.from.saturating_add(count) <= self.to || self.to.saturating_add(count) <= self.from;
        // A file that is the destination from its start on is shortened first.
        let shortened = self.to == 0 && matches!(self.destination, Place::File(_));
        if same && (!apart || shortened) {
            return Err(Failure::Failed(format!(
                "{} and {} are the same bytes: choose another destination, --from or --to",
                self.source, self.destination
            )));
        }
        Ok(())
    }

    /// The checksum of what arrived.
    fn read_back(
        &self,
        device: Option<Device>,
        count: u64,
        window: Window,
        progress: &mut Progress,
    ) -> Result<Option<String>, Failure> {
        let mut end = match (device, &self.destination) {
            (Some(device), _) => End::blocks(device, self.depth)?,
            // There is a device for every URI.
            (None, Place::Uri(_)) => return Ok(None),
            (None, Place::File(path)) => {
                let file = File::open(path).map_err(|error| Failure::file("open", path, &error))?;
                // So that the bytes come from the medium where that is possible; where not, the cache is as good as it gets.
                let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                End::File(file, path.clone())
            }
        };
        let mut hasher = Hasher::new(self.checksum);
        pipeline::run(
            &mut end,
            self.to,
            None,
            count,
            window,
            &mut hasher,
            &mut |moved| {
                progress.show("verified", moved);
            },
        )?;
        Ok(hasher.finish())
    }

    fn tell(
        &self,
        count: u64,
        elapsed: Duration,
        copied: Option<String>,
        arrived: Option<String>,
        passed: Passed,
    ) -> Result<(), Failure> {
        let seconds = elapsed.as_secs_f64();
        let rate = output::mib_per_second(count, seconds);
        let verified = arrived.is_some().then(|| arrived == copied);
        let mut object = json!({
            "source": self.source.to_string(),
            "destination": self.destination.to_string(),
            "bytes_copied": count,
            "seconds": seconds,
            "mib_per_second": rate,
            "checksum": copied,
            "checksum_algorithm": self.checksum.name(),
            "checksum_read_back": arrived,
            "verified": verified,
        });
        if let (Some(via), Some(object)) = (passed.object, object.as_object_mut()) {
            object.insert("via".to_owned(), via);
        }
        if verified == Some(false) {
            let text = format!(
                "what arrived at {} differs from what was read from {}: {} is {}, expected {}; check both ends and copy again",
                self.destination,
                self.source,
                self.checksum.name(),
                arrived.unwrap_or_default(),
                copied.unwrap_or_default()
            );
            return Err(Failure::Wrong(text, object));
        }
        if self.json {
            return output::json(&object);
        }
        if self.quiet {
            return Ok(());
        }
        let mut text = format!(
            "copied {} in {seconds:.3} s, {rate:.1} MiB/s\n",
            output::size(count)
        );
        text.push_str(&passed.text);
        if let Some(checksum) = copied {
            text.push_str(&format!("{} {checksum}", self.checksum.name()));
            text.push_str(if verified == Some(true) {
                ", the same read back\n"
            } else {
                "\n"
            });
        }
        output::text(&text)
    }
}

fn check_alignment(option: &str, at: u64, uri: &Uri, block_size: u32) -> Result<(), Failure> {
    let block = u64::from(block_size.max(1));
    if at.is_multiple_of(block) {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{option} {at} is not at the start of a block of {uri}: use a multiple of {block}, such as {}",
        at / block * block
    )))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// A line on the terminal that says how far the copy is.
struct Progress {
    total: u64,
    shown: Option<Instant>,
    start: Instant,
    on: bool,
    drawn: bool,
}

impl Progress {
    fn new(total: u64, wanted: bool) -> Self {
        Self {
            total,
            shown: None,
            start: Instant::now(),
            on: wanted && io::stderr().is_terminal(),
            drawn: false,
        }
    }

    fn show(&mut self, what: &str, moved: u64) {
        if !self.on {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.shown.unwrap_or(self.start)) < Duration::from_millis(500) {
            return;
        }
        self.shown = Some(now);
        self.drawn = true;
        let percent = output::float(moved) * 100.0 / output::float(self.total.max(1));
        // Progress is a courtesy: a terminal that went away is no failure.
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{what} {} of {} ({percent:.0} %)",
            output::size(moved),
            output::size(self.total)
        );
    }

    fn clear(&mut self) {
        if self.drawn {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
