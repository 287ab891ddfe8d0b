//! Reading the discovery log (Base 2.0 §5.16.1.23): header, entries, header again, and from the start if the generation
//! moved meanwhile.
//!
//! Not implemented: extended entries, and pull model requests to the discovery service.

use homi_queue::Command;
use homi_spec::log::{
    self, DiscoveryEntry, DiscoveryHeader, GetLogPage, LogId, SubsystemType, TransportType, eflags,
};
use homi_spec::{Nqn, Status};
use zerocopy::FromBytes;

use super::bring_up::{Answer, StepData};

/// What a discovery record leads to (SUBTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubsystemKind {
    /// Another discovery service, whose log should be read too.
    Referral,
    /// A subsystem with namespaces.
    Nvm,
    /// The discovery subsystem that serves this log.
    CurrentDiscovery,
    /// A value that this crate does not know.
    Other(u8),
}

/// The transport of a discovery record (TRTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// RDMA.
    Rdma,
    /// Fibre Channel.
    FibreChannel,
    /// TCP.
    Tcp,
    /// Loopback inside a host.
    Loop,
    /// A value that this crate does not know.
    Other(u8),
}

/// The form of a discovery record's address (ADRFAM).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// InfiniBand.
    InfiniBand,
    /// Fibre Channel.
    FibreChannel,
    /// Loopback inside a host.
    Loop,
    /// A value that this crate does not know.
    Other(u8),
}

/// One entry of a discovery log: a way to a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// Over which transport.
    pub transport: TransportKind,
    /// Form of the address.
    pub family: AddressFamily,
    /// What it leads to.
    pub kind: SubsystemKind,
    /// The subsystem.
    pub subsystem: Nqn,
    /// Address of the host.
    pub address: String,
    /// Service at that address: the port.
    pub service: String,
    /// Port of the subsystem (PORTID), for telling paths apart.
    pub port_id: u16,
    /// Controller that a Connect would reach; FFFFh means a new one.
    pub controller_id: u16,
    /// Largest admin queue in entries (ASQSZ).
    pub admin_queue_entries: u16,
    /// Whether the transport must be secure (TREQ 01b).
    pub secure_required: bool,
    /// Whether the entry leads to the same information as the discovery service that returned it (EFLAGS b0).
    pub duplicate: bool,
}

impl DiscoveryRecord {
    /// Reads an entry.
    ///
    /// # Errors
    /// What about the entry cannot be used, in words.
    pub fn from_entry(entry: &DiscoveryEntry) -> Result<Self, String> {
        let subsystem = entry.subsystem_nqn().map_err(|error| error.to_string())?;
        let address = entry.address().ok_or("its address is not text")?.to_owned();
        let service = entry.service().ok_or("its service id is not text")?.to_owned();
        Ok(Self {
            transport: match entry.trtype {
                TransportType::RDMA => TransportKind::Rdma,
                TransportType::FIBRE_CHANNEL => TransportKind::FibreChannel,
                TransportType::TCP => TransportKind::Tcp,
                TransportType::LOOP => TransportKind::Loop,
                TransportType(other) => TransportKind::Other(other),
            },
            family: match entry.adrfam {
                log::AddressFamily::IPV4 => AddressFamily::Ipv4,
                log::AddressFamily::IPV6 => AddressFamily::Ipv6,
                log::AddressFamily::INFINIBAND => AddressFamily::InfiniBand,
                log::AddressFamily::FIBRE_CHANNEL => AddressFamily::FibreChannel,
                log::AddressFamily::LOOP => AddressFamily::Loop,
                log::AddressFamily(other) => AddressFamily::Other(other),
            },
            kind: match entry.subtype {
                SubsystemType::DISCOVERY_REFERRAL => SubsystemKind::Referral,
                SubsystemType::NVM => SubsystemKind::Nvm,
                SubsystemType::CURRENT_DISCOVERY => SubsystemKind::CurrentDiscovery,
                SubsystemType(other) => SubsystemKind::Other(other),
            },
            subsystem,
            address,
            service,
            port_id: entry.portid.get(),
            controller_id: entry.cntlid.get(),
            admin_queue_entries: entry.asqsz.get(),
            secure_required: entry.secure_channel() == log::SecureChannel::REQUIRED,
            duplicate: entry.eflags.get() & eflags::DUPLICATE != 0,
        })
    }
}

/// Most entries that a log may have: far more than any fabric, little enough to hold.
pub const MAX_RECORDS: u64 = 16_384;

/// How often the log is read again because it changed meanwhile.
pub const MAX_RESTARTS: u32 = 8;

/// Entries per read: what every controller transfers at once, and few enough round trips.
const ENTRIES_PER_READ: u64 = 16;

const HEADER: usize = size_of::<DiscoveryHeader>();
const ENTRY: usize = size_of::<DiscoveryEntry>();

/// Why a discovery log could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// A command failed.
    #[error("reading the discovery log failed: {0}")]
    Command(Status),
    /// The log kept changing.
    #[error(
        "the discovery log changed {MAX_RESTARTS} times while it was read: try again when the target has settled"
    )]
    Unsettled,
    /// The header claims more than can be meant.
    #[error("the discovery log claims {came} entries, expected at most {MAX_RECORDS}")]
    TooLong {
        /// Entries claimed.
        came: u64,
    },
    /// The record format is unknown.
    #[error("the discovery log has record format {came}, expected 0")]
    Format {
        /// Format that came.
        came: u16,
    },
    /// An answer was shorter than asked for.
    #[error("a read of the discovery log gave {came} bytes, expected {expected}")]
    Short {
        /// Bytes asked for.
        expected: usize,
        /// Bytes that came.
        came: usize,
    },
}

/// What to do next.
#[derive(Debug)]
pub enum DiscoveryStep {
    /// Send this command and call [`Discovery::next`] with its answer.
    Submit {
        /// The command.
        command: Command,
        /// Its data.
        data: StepData,
    },
    /// The log is read.
    Ready {
        /// Entries that can be used.
        records: Vec<DiscoveryRecord>,
        /// Why others cannot, one sentence each.
        skipped: Vec<String>,
    },
    /// It could not be read.
    Failed(DiscoveryError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Header,
    Entries,
    Recheck,
}

/// Reads a discovery log over a controller that is up.
#[derive(Debug)]
pub struct Discovery {
    phase: Phase,
    generation: u64,
    expected: u64,
    asked: usize,
    read: u64,
    records: Vec<DiscoveryRecord>,
    skipped: Vec<String>,
    restarts: u32,
    entries_per_read: u64,
}

impl Discovery {
    /// A reader for a controller whose transfers are limited to `max_transfer` bytes, if they are.
    #[must_use]
    pub fn new(max_transfer: Option<u32>) -> Self {
        let most = max_transfer.map_or(ENTRIES_PER_READ, |bytes| u64::from(bytes) / ENTRY as u64);
        Self {
            phase: Phase::Start,
            generation: 0,
            expected: 0,
            asked: 0,
            read: 0,
            records: Vec::new(),
            skipped: Vec::new(),
            restarts: 0,
            entries_per_read: most.clamp(1, ENTRIES_PER_READ),
        }
    }

    /// Says what to do next, given the answer to the last command (`None` at first).
    pub fn next(&mut self, answer: Option<&Answer<'_>>) -> DiscoveryStep {
        match self.step(answer) {
            Ok(step) => step,
            Err(error) => DiscoveryStep::Failed(error),
        }
    }

    fn step(&mut self, answer: Option<&Answer<'_>>) -> Result<DiscoveryStep, DiscoveryError> {
        let (Some(answer), true) = (answer, self.phase != Phase::Start) else {
            return Ok(self.read_header(Phase::Header));
        };
        let status = answer.completion.status;
        if status.is(Status::DISCOVER_RESTART) {
            return self.restart();
        }
        if !status.is_success() {
            return Err(DiscoveryError::Command(status));
        }
        if answer.data.len() < self.asked {
            return Err(DiscoveryError::Short {
                expected: self.asked,
                came: answer.data.len(),
            });
        }
        match self.phase {
            Phase::Start | Phase::Header => {
                let header = header(answer.data)?;
                self.generation = header.generation.get();
                self.expected = header.records.get();
                if header.recfmt.get() != 0 {
                    return Err(DiscoveryError::Format {
                        came: header.recfmt.get(),
                    });
                }
                if self.expected > MAX_RECORDS {
                    return Err(DiscoveryError::TooLong { came: self.expected });
                }
                Ok(self.read_on())
            }
            Phase::Entries => {
                for bytes in answer.data.chunks_exact(ENTRY).take(self.asked / ENTRY) {
                    if let Ok(entry) = DiscoveryEntry::read_from_bytes(bytes) {
                        match DiscoveryRecord::from_entry(&entry) {
                            Ok(record) => self.records.push(record),
                            Err(reason) => self.skipped.push(format!("entry {}: {reason}", self.read)),
                        }
                    }
                    self.read += 1;
                }
                Ok(self.read_on())
            }
            Phase::Recheck => {
                if header(answer.data)?.generation.get() != self.generation {
                    return self.restart();
                }
                Ok(DiscoveryStep::Ready {
                    records: std::mem::take(&mut self.records),
                    skipped: std::mem::take(&mut self.skipped),
                })
            }
        }
    }

    fn restart(&mut self) -> Result<DiscoveryStep, DiscoveryError> {
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
            return Err(DiscoveryError::Unsettled);
        }
        self.read = 0;
        self.records.clear();
        self.skipped.clear();
        Ok(self.read_header(Phase::Header))
    }

    fn read_header(&mut self, phase: Phase) -> DiscoveryStep {
        self.phase = phase;
        self.submit(0, HEADER)
    }

    fn read_on(&mut self) -> DiscoveryStep {
        let left = self.expected - self.read;
        if left == 0 {
            return self.read_header(Phase::Recheck);
        }
        self.phase = Phase::Entries;
        // At most `ENTRIES_PER_READ`, so it fits.
        let entries = usize::try_from(left.min(self.entries_per_read)).unwrap_or(1);
        let offset = HEADER as u64 + self.read * ENTRY as u64;
        self.submit(offset, entries * ENTRY)
    }

    fn submit(&mut self, offset: u64, len: usize) -> DiscoveryStep {
        self.asked = len;
        // A multiple of 4 above zero, so it is always a valid length.
        let page = GetLogPage::new(LogId::DISCOVERY, len as u64)
            .unwrap_or_default()
            .at(offset);
        DiscoveryStep::Submit {
            command: Command(page.to_sqe(0)),
            data: StepData::In(len),
        }
    }
}

fn header(data: &[u8]) -> Result<DiscoveryHeader, DiscoveryError> {
    DiscoveryHeader::read_from_prefix(data)
        .map(|(header, _)| header)
        .map_err(|_| DiscoveryError::Short {
            expected: HEADER,
            came: data.len(),
        })
}
