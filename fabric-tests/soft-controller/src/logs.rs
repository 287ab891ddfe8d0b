//! Get Log Page. Base 2.0 §5.16.

use std::collections::VecDeque;

use homi_spec::command::{AdminOpcode, NSID_BROADCAST, NvmOpcode, Sqe};
use homi_spec::log::{
    CommandEffectsLog, ErrorLogEntry, FirmwareSlotLog, GetLogPage, LogId, SmartLog, SupportedLogPages,
    effects,
};
use homi_spec::{Status, U16, U32, U64, U128};
use zerocopy::{FromZeros, IntoBytes};

use crate::controller::Controller;
use crate::shared::Shared;

/// Entries of the error log.
pub(crate) const ERRORS: usize = 64;

/// The newest errors, newest first, and how many there were.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    entries: VecDeque<ErrorLogEntry>,
    count: u64,
}

impl ErrorLog {
    pub(crate) fn add(&mut self, sqid: u16, sqe: &Sqe, status: Status) {
        self.count += 1;
        let entry = ErrorLogEntry {
            error_count: U64::new(self.count),
            sqid: U16::new(sqid),
            cid: sqe.cid,
            status: U16::new(status.to_wire(false)),
            parameter_location: U16::new(0xffff),
            lba: U64::new(if sqid == 0 { 0 } else { sqe.lba() }),
            nsid: sqe.nsid,
            ..ErrorLogEntry::default()
        };
        self.entries.push_front(entry);
        self.entries.truncate(ERRORS);
    }
}

const LOGS: [LogId; 6] = [
    LogId::SUPPORTED_LOG_PAGES,
    LogId::ERROR,
    LogId::SMART,
    LogId::FIRMWARE_SLOT,
    LogId::CHANGED_NAMESPACES,
    LogId::COMMAND_EFFECTS,
];

impl Controller {
    pub(crate) fn get_log(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let get = GetLogPage::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        if get.lpo % 4 != 0 || get.index_offset {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let global = get.nsid == 0 || get.nsid == NSID_BROADCAST;
        let page: Vec<u8> = match get.lid {
            LogId::SUPPORTED_LOG_PAGES => SupportedLogPages::new(&LOGS).as_bytes().to_vec(),
            LogId::ERROR => {
                let mut bytes = vec![0; ERRORS * size_of::<ErrorLogEntry>()];
                for (to, entry) in bytes
                    .chunks_exact_mut(size_of::<ErrorLogEntry>())
                    .zip(&self.errors.entries)
                {
                    to.copy_from_slice(entry.as_bytes());
                }
                bytes
            }
            // SMART is kept for the whole controller only.
            LogId::SMART if !global => return Err(Status::INVALID_FIELD.with_dnr()),
            LogId::SMART => self.smart().as_bytes().to_vec(),
            LogId::FIRMWARE_SLOT => {
                let mut revision = [b' '; 8];
                for (to, from) in revision.iter_mut().zip(shared.config.firmware.bytes()) {
                    *to = from;
                }
                FirmwareSlotLog::single(revision).as_bytes().to_vec()
            }
            LogId::CHANGED_NAMESPACES => self.changed_namespaces(get.rae),
            LogId::COMMAND_EFFECTS => effects_log(shared).as_bytes().to_vec(),
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
        };
        let start = usize::try_from(get.lpo)
            .ok()
            .filter(|start| *start <= page.len())
            .ok_or(Status::INVALID_FIELD.with_dnr())?;
        // What is asked for beyond the page's end is zeroes; as much as a command may move.
        let rules = self.rules(&shared.config, false);
        if get.length() > rules.max_len.min(16 << 20) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let len = usize::try_from(get.length()).map_err(|_| Status::INVALID_FIELD)?;
        let mut bytes = vec![0; len];
        for (to, from) in bytes.iter_mut().zip(page.iter().skip(start)) {
            *to = *from;
        }
        self.give(shared, sqe, &bytes)?;
        if !get.rae {
            self.events.clear(get.lid);
        }
        Ok(0)
    }

    fn smart(&self) -> SmartLog {
        SmartLog {
            temperature: U16::new(300),
            available_spare: 100,
            available_spare_threshold: 10,
            host_reads: U128::new(u128::from(self.counts.reads)),
            host_writes: U128::new(u128::from(self.counts.writes)),
            data_units_read: U128::new(u128::from(self.counts.bytes_read.div_ceil(512_000))),
            data_units_written: U128::new(u128::from(self.counts.bytes_written.div_ceil(512_000))),
            error_entries: U128::new(u128::from(self.errors.count)),
            ..SmartLog::new_zeroed()
        }
    }

    /// Identifiers in ascending order; reading them without retaining forgets them.
    fn changed_namespaces(&mut self, retain: bool) -> Vec<u8> {
        let mut list = vec![U32::ZERO; 1024];
        for (to, nsid) in list.iter_mut().zip(&self.changed) {
            *to = U32::new(*nsid);
        }
        if !retain {
            self.changed.clear();
        }
        list.as_bytes().to_vec()
    }
}

fn effects_log(shared: &Shared) -> CommandEffectsLog {
    let mut log = CommandEffectsLog::default();
    for opcode in crate::admin::supported(&shared.config) {
        let more = match opcode {
            AdminOpcode::FORMAT_NVM => effects::CONTENT_CHANGE | effects::EXCLUSIVE_NAMESPACE,
            AdminOpcode::NAMESPACE_MANAGEMENT | AdminOpcode::NAMESPACE_ATTACHMENT => {
                effects::NAMESPACE_INVENTORY_CHANGE
            }
            _ => 0,
        };
        log.set_admin(opcode.0, effects::SUPPORTED | more);
    }
    for opcode in crate::nvm::SUPPORTED {
        let changes = matches!(
            opcode,
            NvmOpcode::WRITE
                | NvmOpcode::WRITE_ZEROES
                | NvmOpcode::DATASET_MANAGEMENT
                | NvmOpcode::WRITE_UNCORRECTABLE
        );
        let more = if changes { effects::CONTENT_CHANGE } else { 0 };
        log.set_io(opcode.0, effects::SUPPORTED | more);
    }
    log
}
