//! What the data path reads of a controller without asking the node: [`QueueView`], [`Published`] and
//! [`NamespaceTable`]; and what it reports back: [`QueueCounters`] and [`ErrorRecord`].
//!
//! A queue looks here once per batch: whether its controller is enabled (one relaxed load) and whether the
//! namespaces changed ([`Cached::refresh`], one more). Its counters have one writer and no locked instruction.

use super::io::IoLimits;
use homi_spec::Status;
use homi_spec::status::sct;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Entries of the error information log: ELPE + 1.
pub(super) const ERROR_LOG_ENTRIES: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values behind these locks are replaced whole or counted up, so a panic elsewhere cannot have left one
    // half-written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that one side replaces now and then and many read all the time.
#[derive(Debug)]
pub struct Published<T> {
    generation: AtomicU64,
    current: Mutex<Arc<T>>,
}

impl<T> Published<T> {
    /// Publishes the first value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            current: Mutex::new(Arc::new(value)),
        }
    }

    /// Replaces the value.
    pub fn publish(&self, value: T) {
        let mut current = lock(&self.current);
        *current = Arc::new(value);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The current value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&lock(&self.current))
    }

    /// How often the value was replaced.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// A reader's copy of a [`Published`] value.
#[derive(Debug)]
pub struct Cached<T> {
    source: Arc<Published<T>>,
    generation: u64,
    value: Arc<T>,
}

impl<T> Cached<T> {
    /// A copy of what is published now.
    #[must_use]
    pub fn new(source: Arc<Published<T>>) -> Self {
        let (generation, value) = Self::fetch(&source);
        Self {
            source,
            generation,
            value,
        }
    }

    /// Takes over a newer value if there is one, and says whether there was.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.source.generation.load(Ordering::Relaxed) == self.generation {
            return false;
        }
        (self.generation, self.value) = Self::fetch(&self.source);
        true
    }

    fn fetch(source: &Published<T>) -> (u64, Arc<T>) {
        let current = lock(&source.current);
        // Under the lock, the generation belongs to the value.
        (source.generation.load(Ordering::Relaxed), Arc::clone(&current))
    }
}

impl<T> Deref for Cached<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A namespace as the data path sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceEntry {
    /// Its identifier.
    pub nsid: u32,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What executes its commands: the configuration's opaque value.
    pub handle: u64,
}

/// The namespaces of a subsystem, in the order of their identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceTable {
    entries: Vec<NamespaceEntry>,
}

impl NamespaceTable {
    /// A table of these namespaces. Of entries with one identifier the last stays.
    #[must_use]
    pub fn new(mut entries: Vec<NamespaceEntry>) -> Self {
        entries.reverse();
        entries.sort_by_key(|entry| entry.nsid);
        entries.dedup_by_key(|entry| entry.nsid);
        Self { entries }
    }

    /// The namespaces.
    #[must_use]
    pub fn entries(&self) -> &[NamespaceEntry] {
        &self.entries
    }

    /// The namespace at an index that [`NamespaceTable::find`] gave.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<&NamespaceEntry> {
        self.entries.get(index)
    }

    /// The index of a namespace. Takes one look where identifiers count up from 1, as they mostly do.
    #[must_use]
    #[inline]
    pub fn find(&self, nsid: u32) -> Option<usize> {
        let guess = usize::try_from(nsid.wrapping_sub(1)).unwrap_or(usize::MAX);
        if self.entries.get(guess).is_some_and(|entry| entry.nsid == nsid) {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&nsid, |entry| entry.nsid).ok()
    }
}

/// What a queue did since it was connected. Only the queue's own thread may count; anyone may read.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct QueueCounters {
    reads: AtomicU64,
    writes: AtomicU64,
    others: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// A reading of [`QueueCounters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Read, Compare and Verify commands: what the health log counts as reads.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Commands of other kinds, and commands that failed.
    pub others: u64,
    /// Bytes that those reads covered.
    pub bytes_read: u64,
    /// Bytes that those writes covered.
    pub bytes_written: u64,
}

impl Totals {
    /// Commands of every kind.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.reads.wrapping_add(self.writes).wrapping_add(self.others)
    }

    /// Adds another reading to this one.
    pub fn add(&mut self, other: &Self) {
        self.reads = self.reads.wrapping_add(other.reads);
        self.writes = self.writes.wrapping_add(other.writes);
        self.others = self.others.wrapping_add(other.others);
        self.bytes_read = self.bytes_read.wrapping_add(other.bytes_read);
        self.bytes_written = self.bytes_written.wrapping_add(other.bytes_written);
    }
}

impl QueueCounters {
    /// Counts a Read, Compare or Verify of this many bytes that succeeded.
    #[inline]
    pub fn read(&self, bytes: u64) {
        Self::add(&self.reads, 1);
        Self::add(&self.bytes_read, bytes);
    }

    /// Counts a Write of this many bytes that succeeded.
    #[inline]
    pub fn write(&self, bytes: u64) {
        Self::add(&self.writes, 1);
        Self::add(&self.bytes_written, bytes);
    }

    /// Counts any other command, and every command that failed.
    #[inline]
    pub fn other(&self) {
        Self::add(&self.others, 1);
    }

    /// What was counted so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            others: self.others.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }

    // One writer: a load and a store do what a locked addition would do, for less.
    fn add(counter: &AtomicU64, amount: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }
}

/// A command that failed, for the error information log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Queue that the command came from.
    pub qid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// What came of it.
    pub status: Status,
    /// Where the entry is at fault: the byte in bits 7:0, the bit in bits 10:8; FFFFh for nowhere in particular.
    pub location: u16,
    /// First logical block, 0 where the command has none.
    pub lba: u64,
    /// Namespace, 0 where the command has none.
    pub nsid: u32,
}

/// The newest errors of a controller.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// Newest first, each with its number.
    entries: VecDeque<(u64, ErrorRecord)>,
    count: u64,
    media: u64,
}

impl ErrorLog {
    fn record(&mut self, record: ErrorRecord) {
        self.count = self.count.wrapping_add(1);
        if record.status.sct() == sct::MEDIA && !record.status.is(Status::COMPARE_FAILURE) {
            self.media = self.media.wrapping_add(1);
        }
        self.entries.truncate(ERROR_LOG_ENTRIES - 1);
        self.entries.push_front((self.count, record));
    }

    /// The errors, newest first, each with its number (1 for the first ever).
    pub(super) fn entries(&self) -> impl Iterator<Item = &(u64, ErrorRecord)> {
        self.entries.iter()
    }

    /// Errors ever recorded.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Those of them that lost data.
    pub(super) fn media(&self) -> u64 {
        self.media
    }
}

/// What all queues of a controller share.
#[derive(Debug)]
pub(super) struct Shared {
    enabled: AtomicBool,
    write_through: AtomicBool,
    errors: Mutex<ErrorLog>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            enabled: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            errors: Mutex::default(),
        }
    }

    pub(super) fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
    }

    pub(super) fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    pub(super) fn record(&self, record: ErrorRecord) {
        lock(&self.errors).record(record);
    }

    pub(super) fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        lock(&self.errors)
    }
}

/// What a connected queue needs of its controller.
#[derive(Debug)]
pub struct QueueView {
    shared: Arc<Shared>,
    qid: u16,
    max_transfer: u32,
    namespaces: Arc<Published<NamespaceTable>>,
    counters: QueueCounters,
}

impl QueueView {
    pub(super) fn new(
        shared: Arc<Shared>,
        qid: u16,
        max_transfer: u32,
        namespaces: Arc<Published<NamespaceTable>>,
    ) -> Self {
        Self {
            shared,
            qid,
            max_transfer,
            namespaces,
            counters: QueueCounters::default(),
        }
    }

    /// Whether the controller executes commands of the NVM command set: it is enabled, not shutting down and not
    /// failed. Where not, an I/O command gets [`Status::COMMAND_SEQUENCE_ERROR`].
    #[must_use]
    #[inline]
    pub fn enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// What [`super::io::parse`] holds commands to, as it stands now.
    #[must_use]
    #[inline]
    pub fn limits(&self) -> IoLimits {
        IoLimits {
            max_transfer: self.max_transfer,
            write_through: self.shared.write_through.load(Ordering::Relaxed),
        }
    }

    /// The queue's identifier.
    #[must_use]
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// The subsystem's namespaces: read them through a [`Cached`].
    #[must_use]
    pub fn namespaces(&self) -> &Arc<Published<NamespaceTable>> {
        &self.namespaces
    }

    /// What the queue did: feeds the health log and the keep-alive timer.
    #[must_use]
    #[inline]
    pub fn counters(&self) -> &QueueCounters {
        &self.counters
    }

    /// Puts a failed command of this queue into the controller's error information log. Takes a lock that only
    /// failing commands of the same controller take.
    pub fn record_error(&self, cid: u16, status: Status, nsid: u32, lba: u64) {
        self.shared.record(ErrorRecord {
            qid: self.qid,
            cid,
            status,
            location: 0xffff,
            lba,
            nsid,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nsid: u32, blocks: u64) -> NamespaceEntry {
        NamespaceEntry {
            nsid,
            block_size: 512,
            blocks,
            read_only: false,
            handle: 0,
        }
    }

    #[test]
    fn namespaces_are_found_wherever_their_numbers_are() {
        let dense = NamespaceTable::new((1..=5).rev().map(|nsid| entry(nsid, 1)).collect());
        let sparse = NamespaceTable::new(vec![entry(7, 1), entry(3, 1), entry(u32::MAX - 1, 1)]);
        for table in [&dense, &sparse] {
            for nsid in (0..20).chain([u32::MAX - 1, u32::MAX]) {
                let expected = table.entries().iter().position(|entry| entry.nsid == nsid);
                assert_eq!(table.find(nsid), expected, "nsid {nsid}");
            }
        }
        let doubled = NamespaceTable::new(vec![entry(1, 1), entry(1, 2)]);
        assert_eq!(doubled.entries(), [entry(1, 2)]);
    }

    #[test]
    fn readers_see_a_new_value_once() {
        let source = Arc::new(Published::new(1));
        let mut cached = Cached::new(Arc::clone(&source));
        assert!(!cached.refresh());
        source.publish(2);
        source.publish(3);
        assert_eq!(*cached, 1);
        assert!(cached.refresh());
        assert_eq!(*cached, 3);
        assert!(!cached.refresh());
        assert_eq!((*source.load(), source.generation()), (3, 2));
    }

    #[test]
    fn the_error_log_keeps_the_newest() {
        let mut log = ErrorLog::default();
        for cid in 0..100 {
            let status = if cid % 2 == 0 {
                Status::UNRECOVERED_READ_ERROR
            } else {
                Status::COMPARE_FAILURE
            };
            log.record(ErrorRecord {
                qid: 1,
                cid,
                status,
                location: 0xffff,
                lba: 0,
                nsid: 1,
            });
        }
        let kept: Vec<(u64, u16)> = log
            .entries()
            .map(|(number, record)| (*number, record.cid))
            .collect();
        assert_eq!(kept.len(), ERROR_LOG_ENTRIES);
        assert_eq!((kept[0], kept[63]), ((100, 99), (37, 36)));
        assert_eq!((log.count(), log.media()), (100, 50));
    }
}
