//! The executors under test, and how to run commands on them.
#![expect(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use homi_local::{Backing, DirectIo, File, FileBackend, FileOptions, LocalQueue, NamespaceGeometry, Ram};
use homi_queue::{Command, Completed, Data, Queue, Region, Wait};
use homi_spec::status::Status;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A file that goes away with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn in_folder(folder: &Path, bytes: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "homi-local-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = folder.join(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        Self(path)
    }

    pub(crate) fn new(bytes: u64) -> Self {
        Self::in_folder(Path::new(env!("CARGO_TARGET_TMPDIR")), bytes)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One executor with a queue on it.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) backing: Backing,
    pub(crate) backend: FileBackend,
    pub(crate) queue: LocalQueue,
    pub(crate) scratch: Option<Scratch>,
}

pub(crate) const DEPTH: u16 = 16;

impl Subject {
    pub(crate) fn ram(geometry: NamespaceGeometry) -> Self {
        let backing = Backing::from(Ram::new(geometry).unwrap());
        let queue = backing.open_queue(DEPTH, FileBackend::Auto).unwrap();
        Self {
            name: "ram".into(),
            backing,
            backend: FileBackend::Auto,
            queue,
            scratch: None,
        }
    }

    /// A file in a folder, or `None` with the reason printed where the machine cannot have it.
    pub(crate) fn file(
        folder: &Path,
        geometry: NamespaceGeometry,
        direct: DirectIo,
        backend: FileBackend,
    ) -> Option<Self> {
        static IO_URING: Once = Once::new();
        let name = format!("file in {}, direct I/O {direct:?}, {backend:?}", folder.display());
        let scratch = Scratch::in_folder(folder, geometry.bytes());
        let options = FileOptions::new(scratch.path())
            .block_size(geometry.block_size())
            .read_only(geometry.read_only())
            .direct(direct);
        let file = match File::open(&options) {
            Ok(file) => file,
            Err(error) if direct == DirectIo::Require => {
                eprintln!("skipped: {name}: {error}");
                return None;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        assert_eq!(file.is_direct(), direct == DirectIo::Require);
        assert_eq!(file.is_direct(), file.buffered_reason().is_none());
        let backing = Backing::from(file);
        match backing.open_queue(DEPTH, backend) {
            Ok(queue) => Some(Self {
                name,
                backing,
                backend,
                queue,
                scratch: Some(scratch),
            }),
            Err(error) => {
                assert_eq!(
                    backend,
                    FileBackend::IoUring,
                    "threads are always available: {error}"
                );
                IO_URING.call_once(|| eprintln!("skipped: io_uring: {error}"));
                None
            }
        }
    }

    /// Another queue on the same backing.
    pub(crate) fn another_queue(&self) -> LocalQueue {
        self.backing.open_queue(DEPTH, self.backend).unwrap()
    }

    pub(crate) fn run(&mut self, command: Command, data: Data) -> (Status, Data) {
        run(&mut self.queue, command, data)
    }

    pub(crate) fn write(&mut self, lba: u64, bytes: &[u8]) {
        let blocks = self.blocks(bytes.len());
        let data = Data::whole(Region::from_vec(bytes.to_vec()));
        let (status, _) = self.run(Command::write(1, lba, blocks), data);
        assert_success(&self.name, status);
    }

    pub(crate) fn read(&mut self, lba: u64, len: usize) -> Vec<u8> {
        let blocks = self.blocks(len);
        let (status, data) = self.run(Command::read(1, lba, blocks), Data::Anywhere { len });
        assert_success(&self.name, status);
        bytes(&data)
    }

    pub(crate) fn blocks(&self, len: usize) -> u32 {
        u32::try_from(len).unwrap() / self.backing.geometry().block_size()
    }
}

#[track_caller]
pub(crate) fn assert_success(name: &str, status: Status) {
    assert!(status.is_success(), "{name}: {status}");
}

pub(crate) fn bytes(data: &Data) -> Vec<u8> {
    let mut bytes = vec![0; data.len()];
    data.read(0, &mut bytes).unwrap();
    bytes
}

/// Runs the body on every executor that the machine can have.
pub(crate) fn each_subject(geometry: NamespaceGeometry, mut body: impl FnMut(Subject)) {
    if !geometry.read_only() {
        body(Subject::ram(geometry));
    }
    let mut folders = vec![PathBuf::from(env!("CARGO_TARGET_TMPDIR"))];
    // Memory file systems differ: other alignment rules, and no zeroing of ranges.
    folders.extend(Some(PathBuf::from("/dev/shm")).filter(|folder| folder.is_dir()));
    for folder in folders {
        for direct in [DirectIo::Never, DirectIo::Require] {
            for backend in [FileBackend::IoUring, FileBackend::Threads] {
                if let Some(subject) = Subject::file(&folder, geometry, direct, backend) {
                    body(subject);
                }
            }
        }
    }
}

/// Sleeps on the wait descriptor until `count` commands are over.
pub(crate) fn wait(queue: &mut LocalQueue, count: usize) -> Vec<Completed> {
    let mut completed = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        queue.poll(&mut completed).unwrap();
        if completed.len() >= count {
            return completed;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {count} commands are over",
            completed.len()
        );
        let descriptor = queue
            .wait_descriptor()
            .expect("what finishes inside poll was found by poll");
        let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
        let _ = poll(&mut descriptors, PollTimeout::from(10_000_u16));
    }
}

pub(crate) fn run(queue: &mut LocalQueue, command: Command, data: Data) -> (Status, Data) {
    let slot = queue.reserve().unwrap();
    let id = queue.submit(slot, command, data);
    queue.commit().unwrap();
    let mut completed = wait(queue, 1);
    assert_eq!(completed.len(), 1);
    let done = completed.remove(0);
    assert_eq!(done.id, id);
    (done.completion.status, done.data)
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// The data of a Dataset Management command.
pub(crate) fn ranges(ranges: &[(u64, u32)]) -> Data {
    let bytes = ranges
        .iter()
        .flat_map(|(lba, blocks)| {
            [[0; 4], blocks.to_le_bytes()]
                .into_iter()
                .flatten()
                .chain(lba.to_le_bytes())
        })
        .collect();
    Data::whole(Region::from_vec(bytes))
}
