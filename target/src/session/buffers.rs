//! Buffers for the data of a session's commands, and the commands that wait for one.

use homi_fabric::controller::io::Transfer;
use homi_fabric::tcp::CommandKey;
use homi_fabric::time::Instant;
use homi_queue::Data;

use super::{Buffered, Kind, Memory, Session, Stage, Stalled};
use crate::engine::Core;

impl Session {
    /// Gets a buffer for a command and goes on with it; false if there is none yet.
    pub(super) fn take_buffer(&mut self, core: &mut Core, key: CommandKey, mut command: Buffered) -> bool {
        let memory = command.memory;
        let len = command.transfer.len() as usize;
        let unsent = if self.sends_buffers {
            self.link.output_len()
        } else {
            0
        };
        let held = self.lent + unsent;
        let data = if command.in_capsule || core.may_lend(memory, held, len) {
            core.take(memory, len)
        } else {
            None
        };
        let Some(data) = data else {
            self.set_stage(key, Stage::Buffer(command));
            return false;
        };
        if !command.in_capsule {
            command.lent = self.lend(core, memory, len);
        }
        let cid = command.cid;
        if let Transfer::ToHost(to_host) = command.transfer {
            let kind = Kind::Read {
                to_host,
                lent: command.lent,
                memory,
            };
            self.start(core, key, cid, kind, command.handle, command.command, data);
        } else {
            self.set_stage(key, Stage::Data(command));
            self.accept(core, key, cid, data);
        }
        true
    }

    /// Whether a new command may have a buffer before those that wait: only one whose data has come. Otherwise small ones, of which there
    /// is always another, would keep a large one waiting for good.
    #[inline]
    pub(super) fn is_next(&self, in_capsule: bool) -> bool {
        in_capsule || self.waiting.is_empty()
    }

    #[cold]
    pub(super) fn wait_for_buffer(&mut self, core: &mut Core, key: CommandKey, in_capsule: bool) {
        if in_capsule {
            self.stalled = Some(Stalled {
                command: key.0,
                bytes: Vec::new(),
                now: Instant::ZERO,
            });
        } else {
            self.waiting.push_back(key.0);
        }
        core.wait_for_buffer(self.key, &mut self.queued);
    }

    /// Tries again to get the buffers that its commands wait for; says whether it got any.
    pub(crate) fn retry_buffers(&mut self, core: &mut Core) -> bool {
        let mut progress = false;
        // What comes after it may be the data that other buffers wait for.
        while let Some(command) = self.stalled.as_ref().map(|stalled| stalled.command) {
            if !self.retry_buffer(core, command) {
                return progress;
            }
            progress = true;
            self.resume(core);
        }
        while let Some(command) = self.waiting.front().copied() {
            if !self.retry_buffer(core, command) {
                return progress;
            }
            progress = true;
            self.waiting.pop_front();
        }
        progress
    }

    /// Whether commands wait for buffers.
    pub(crate) fn waits_for_buffers(&self) -> bool {
        self.stalled.is_some() || !self.waiting.is_empty()
    }

    /// False if the command still waits.
    fn retry_buffer(&mut self, core: &mut Core, command: u16) -> bool {
        let key = CommandKey(command);
        match self.take_stage(key) {
            Stage::Buffer(command) => self.take_buffer(core, key, command),
            // It was aborted.
            other => {
                self.set_stage(key, other);
                true
            }
        }
    }

    /// Goes on with what came after a command that waited for a buffer.
    pub(super) fn resume(&mut self, core: &mut Core) {
        if let Some(stalled) = self.stalled.take() {
            self.receive(core, &stalled.bytes, stalled.now);
            // The shard may receive again.
            core.list(self.key, &mut self.listed);
        }
    }

    /// Takes memory back that the connection is done with. What it counted no longer waits for the host.
    pub(crate) fn give_back(&mut self, core: &mut Core, data: &Data) {
        if let Some(size) = core.arena.put(data) {
            let counted = size.min(self.lent);
            self.lent -= counted;
            core.freed = true;
            core.settle(Memory::Registered, counted);
        }
    }
}
