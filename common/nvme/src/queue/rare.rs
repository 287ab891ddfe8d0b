//! What a queue does besides plain commands: other data, parts of split commands, refusals, interrupts, and its end.

use std::mem;
use std::sync::Arc;

use homi_pci::Mapping;
use homi_queue::{
    Command, CommandId, Completed, Completion, Data, DataDirection, LostReason, QueueLost, Region, Slot,
    Undelivered,
};
use homi_spec::command::{Fuse, NvmOpcode, Sqe};
use homi_spec::status::Status;

use super::{IoQueue, NO_SHAPE, NOT_PLAIN, WRITE};
use crate::admin::fields;
use crate::error::Refusal;
use crate::flights::OWN_BITS;
use crate::info::Shape;
use crate::reach::{Pointer, Split};
use crate::shared::{LEAKED, LOST, Report, add};
use crate::table::Kept;

/// Dword 12 bit 29 of a read or write: protection information is inserted or stripped (PRACT).
const PRACT: u32 = 1 << 29;

impl IoQueue {
    /// Takes over mappings and namespaces that came or went.
    #[cold]
    pub(super) fn refresh(&mut self) {
        self.generation = self.reach.generation();
        self.reach.refresh();
        self.let_go();
        self.namespaces = self.controller.inner().namespaces();
        (self.shape, self.plain) = (NO_SHAPE, NOT_PLAIN);
    }

    /// Unmaps what no command in flight can use.
    #[cold]
    pub(super) fn let_go(&mut self) {
        self.reach.table.let_go(&self.flights);
    }

    fn shape_of(&mut self, nsid: u32) -> Result<Shape, Refusal> {
        if nsid == self.shape.nsid && !self.shape.separate {
            return Ok(self.shape);
        }
        if self.reach.generation() != self.generation {
            self.refresh();
        }
        let namespaces = Arc::clone(&self.namespaces);
        let found = namespaces
            .binary_search_by_key(&nsid, |namespace| namespace.nsid())
            .ok()
            .and_then(|at| namespaces.get(at))
            .ok_or(Refusal::Namespace { nsid })?;
        if found.shape.separate {
            return Err(Refusal::Metadata { nsid });
        }
        self.shape = found.shape;
        self.plain = (u64::from(nsid) << 32 | WRITE, found.shape.transfer.into());
        Ok(found.shape)
    }

    /// Bytes that the command in a slot transfers, if that is known, and bytes of a block if it is about blocks.
    fn transfer(&mut self, index: usize) -> Result<(Option<u64>, Option<u64>), Refusal> {
        let Some(unusual) = self.unusual.get(index) else {
            return Ok((None, None));
        };
        let command = unusual.command;
        match command.opcode() {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                let shape = self.shape_of(command.nsid())?;
                let mut block = u64::from(shape.transfer);
                if shape.metadata == 8 && command.0.cdw12.get() & PRACT != 0 {
                    // All metadata is protection information, which the controller adds and removes.
                    block -= 8;
                }
                Ok((Some(u64::from(command.blocks()) * block), Some(block)))
            }
            NvmOpcode::DATASET_MANAGEMENT => Ok((Some(u64::from(command.ranges()) * 16), None)),
            _ => Ok((None, None)),
        }
    }

    /// Submits a command, whatever it is.
    #[inline(never)]
    pub(super) fn submit_rare(&mut self, index: usize, id: CommandId, words: [u64; 5], data: Data) {
        let [a, b, f, g, h] = words;
        let sqe: Sqe = zerocopy::transmute!([a, b, 0, 0, 0, f, g, h].map(u64::to_le));
        self.settle_in(index, id, Command(sqe), data);
        if let Err(refusal) = self.begin(index, id) {
            self.refuse(index, id, refusal);
        }
    }

    /// Puts a command that is no plain one into its slot.
    fn settle_in(&mut self, index: usize, id: CommandId, command: Command, data: Data) {
        if let (Some(flight), Some(unusual)) = (self.flights.get_mut(index), self.unusual.get_mut(index)) {
            flight.occupy_rarely(id);
            unusual.command = command;
            unusual.data = data;
            unusual.user = id;
        }
    }

    fn begin(&mut self, index: usize, id: CommandId) -> Result<(), Refusal> {
        let (transfer, block) = self.transfer(index)?;
        let max = self.reach.max_len();
        let Some(unusual) = self.unusual.get_mut(index) else {
            return Ok(());
        };
        let direction = unusual.command.direction();
        let len = unusual.data.len() as u64;
        let wanted = transfer.unwrap_or(len);
        let enough = if block.is_some() {
            len == wanted
        } else {
            len >= wanted
        };
        if !enough {
            return Err(Refusal::Length {
                transfer: wanted,
                data: len,
            });
        }
        let fused = unusual.command.0.fuse() != Fuse::NORMAL;
        let mut split = None;
        if wanted > max {
            let too_long = Refusal::TooLong { len, max };
            let block = block
                .and_then(|block| usize::try_from(block).ok())
                .filter(|block| *block > 0 && !fused)
                .ok_or_else(|| too_long.clone())?;
            let most = usize::try_from(max).unwrap_or(usize::MAX) / block * block;
            if most == 0 {
                return Err(too_long);
            }
            split = Some(Split {
                at: 0,
                len: most,
                block,
                most,
            });
        }
        if let Data::Anywhere { len } = unusual.data {
            if direction != DataDirection::ControllerToHost {
                return Err(Refusal::Anywhere);
            }
            if len > 0 {
                self.reach
                    .lend(&mut unusual.data, &mut unusual.extra, &self.shared.counters)?;
            }
        }
        unusual.extra.split = split;
        if split.is_some() {
            add(&self.shared.counters.split, 1);
        }
        self.place_part(index, id)
    }

    /// Places the part of a command that is due: all of it, if it is not split.
    fn place_part(&mut self, index: usize, id: CommandId) -> Result<(), Refusal> {
        let Some(unusual) = self.unusual.get_mut(index) else {
            return Ok(());
        };
        let direction = unusual.command.direction();
        let mut command = unusual.command;
        let (at, len) = match unusual.extra.split {
            Some(split) => {
                let before = (split.at / split.block) as u64;
                command.0.set_lba(command.lba().wrapping_add(before));
                let blocks = u32::try_from(split.len / split.block).unwrap_or(u32::MAX);
                // Fewer than the whole command has.
                let _ = command.0.set_blocks(blocks);
                if self.shape.metadata > 0 {
                    // The expected reference tag follows the blocks.
                    let tag = command.0.cdw14.get();
                    let step = u32::try_from(before & 0xffff_ffff).unwrap_or(0);
                    command.0.cdw14 = tag.wrapping_add(step).into();
                }
                (split.at, split.len)
            }
            None => (0, unusual.data.len()),
        };
        let pointer = if direction == DataDirection::None {
            Pointer::default()
        } else {
            self.reach.point(
                &unusual.data,
                at,
                len,
                direction,
                &mut unusual.extra,
                &self.shared.counters,
            )?
        };
        let words: [u64; 8] = zerocopy::transmute!(command.0);
        let [first, second, _, _, _, sixth, seventh, eighth] = words.map(u64::from_le);
        let first = first & !OWN_BITS | u64::from(id.0) << 16 | pointer.psdt << 14;
        let words = [first, second, sixth, seventh, eighth];
        self.place(words, (pointer.first, pointer.second));
        if self.reach.table.has_gone() {
            self.let_go();
        }
        Ok(())
    }

    /// Keeps a mapping of the controller's address space for this queue alone, until [`forget`](Self::forget) or the queue's end. One of
    /// another space is dropped.
    pub fn keep(&mut self, mapping: Mapping) {
        if self.reach.is_of(&mapping) {
            self.reach.table.insert(mapping, Kept::Given);
        }
    }

    /// Lets go of the mapping of memory that nobody mapped with [`Controller::map`](crate::Controller::map). If commands in flight use it, it goes
    /// with the last of them.
    pub fn forget(&mut self, region: &Region) {
        self.reach
            .table
            .forget(region.host_address() as usize, region.len());
        self.let_go();
    }

    /// Takes a command that is not to be executed, for reasons of who issues on somebody's behalf: it completes with `status`, and the
    /// controller never sees it.
    pub fn reject(&mut self, slot: Slot, command: Command, data: Data, status: Status) -> CommandId {
        let (index, id) = (slot.index(), slot.id());
        self.settle_in(index, id, command, data);
        self.refuse(index, id, Refusal::Rejected(status));
        id
    }

    /// Ends a command that the controller never saw.
    fn refuse(&mut self, index: usize, id: CommandId, refusal: Refusal) {
        let status = refusal.status();
        add(&self.shared.counters.refused, 1);
        self.refusal = Some(refusal);
        self.flights.free(id);
        let command = self.unusual.get(index).map(|unusual| unusual.command);
        if let Some(done) = self.end(index, Completion::failed(status)) {
            self.ready.push((command.unwrap_or_default(), done));
            self.attention.set(true);
        }
    }

    /// Gives back what a command held and makes its outcome.
    fn end(&mut self, index: usize, completion: Completion) -> Option<Completed> {
        let unusual = self.unusual.get_mut(index)?;
        self.reach.finish(&mut unusual.extra);
        Some(Completed {
            id: unusual.user,
            completion,
            data: mem::take(&mut unusual.data),
        })
    }

    /// A device command completed that is no plain one: `None` if the rest of its command goes on.
    #[inline(never)]
    pub(super) fn rare_completed(&mut self, id: CommandId, completion: Completion) -> Option<Completed> {
        let index = id.slot_index(self.flights.depth());
        let unusual = self.unusual.get_mut(index)?;
        let (at, len) = match unusual.extra.split {
            Some(split) => (split.at, split.len),
            None => (0, unusual.data.len()),
        };
        let read = completion.is_success()
            && matches!(
                unusual.command.direction(),
                DataDirection::ControllerToHost | DataDirection::Bidirectional
            );
        let settled = self.reach.settle(
            &unusual.data,
            at,
            len,
            read,
            &mut unusual.extra,
            &self.shared.counters,
        );
        if settled.is_err() {
            // The ranges were checked when the command was submitted.
            return self.end(index, Completion::failed(Status::INTERNAL_ERROR));
        }
        if completion.is_success()
            && let Some(split) = &mut unusual.extra.split
        {
            split.at += split.len;
            split.len = split.most.min(unusual.data.len().saturating_sub(split.at));
            if split.len > 0 {
                return self.go_on(index);
            }
        }
        self.end(index, completion)
    }

    /// Submits the next part of a split command.
    fn go_on(&mut self, index: usize) -> Option<Completed> {
        // The slot that was given back last is the first to be taken again.
        let Some(slot) = self.flights.reserve() else {
            return self.end(index, Completion::failed(Status::INTERNAL_ERROR));
        };
        if slot.index() != index {
            self.flights.release(slot);
            return self.end(index, Completion::failed(Status::INTERNAL_ERROR));
        }
        let id = slot.id();
        self.flights.get_mut(index)?.occupy_rarely(id);
        if let Err(refusal) = self.place_part(index, id) {
            let status = refusal.status();
            add(&self.shared.counters.refused, 1);
            self.refusal = Some(refusal);
            self.flights.free(id);
            return self.end(index, Completion::failed(status));
        }
        self.parts = true;
        None
    }

    /// The controller answered nonsense: nothing more is collected, and it has to be reset.
    #[cold]
    pub(super) fn fail(&mut self, rest: u64) {
        let (head, qid, id, _) = fields(rest);
        let id = CommandId(id);
        let what = if qid != self.shared.qid {
            format!("a completion says that it is of queue {qid}")
        } else {
            let mut probe = self.rings.submission;
            match probe.advance_head(head) {
                Err(error) => error.to_string(),
                Ok(_) => format!("command id {id} names no command in flight (unknown, late or doubled)"),
            }
        };
        self.break_off(what);
    }

    /// There is no room for an entry: the controller completes commands without saying that it fetched them.
    #[cold]
    pub(super) fn stuck(&mut self) {
        let head = self.rings.submission.head();
        self.break_off(format!(
            "submission queue head {head} stays behind the commands that are completed"
        ));
    }

    fn break_off(&mut self, what: String) {
        self.broken = true;
        self.attention.set(true);
        self.shared.report_broken(what);
        self.controller.inner().ring_bell();
    }

    /// A poll that has more to do than to look.
    #[cold]
    pub(super) fn poll_rare(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.attention.set(self.broken);
        if self.shared.is_asked() {
            self.look();
        }
        let mut count = self.ready.len();
        completed.extend(self.ready.drain(..).map(|(_, done)| done));
        if self.armed.replace(false)
            && let Some(vector) = &self.shared.vector
        {
            match vector.take() {
                Ok(taken) => add(&self.shared.counters.interrupts, taken),
                Err(error) => tracing::warn!(qid = self.shared.qid, %error, "an interrupt cannot be taken"),
            }
        }
        // After the interrupt was taken: what raises it later is seen later.
        if !self.shared.is_running() || self.broken {
            self.still_lost()?;
            return Ok(count);
        }
        count += self.collect(completed);
        Ok(count)
    }

    /// Says which commands have been in flight for too long, as the controller's service asked.
    fn look(&mut self) {
        let inner = self.controller.inner();
        let Some(after) = inner.options.command_timeout else {
            return;
        };
        let now = inner.clock.now();
        let late = self.flights.look(now, after);
        self.shared.answer(Report { now, late });
    }

    /// An error if the queue is over, with the commands that have no outcome yet. While the controller is being stopped, nothing.
    #[cold]
    pub(super) fn still_lost(&mut self) -> Result<(), QueueLost> {
        let state = self.shared.state();
        if state != LOST && state != LEAKED {
            return Ok(());
        }
        // Nobody may poll a queue that is lost, so this is the last chance to account for what was refused.
        let refused = self.ready.drain(..).map(|(command, done)| Undelivered {
            id: done.id,
            command,
            data: done.data,
        });
        let mut undelivered: Vec<Undelivered> = refused.collect();
        let ids: Vec<CommandId> = self.flights.iter().collect();
        for id in ids {
            let index = id.slot_index(self.flights.depth());
            let (Some(flight), Some(unusual)) = (self.flights.get_mut(index), self.unusual.get_mut(index))
            else {
                continue;
            };
            let rare = flight.is_rare();
            let (id, command, mut data) = if rare {
                (unusual.user, unusual.command, mem::take(&mut unusual.data))
            } else {
                let data = flight.take_segment().map_or(Data::None, Data::One);
                (id, flight.command(), data)
            };
            let mut extra = mem::take(&mut unusual.extra);
            if state == LEAKED {
                // The controller may still write there, so nobody gets this back.
                mem::forget(mem::take(&mut data));
                mem::forget(extra);
            } else if rare {
                // Nothing is copied; what it held is given back.
                let _ = self
                    .reach
                    .settle(&data, 0, 0, false, &mut extra, &self.shared.counters);
                self.reach.finish(&mut extra);
            }
            undelivered.push(Undelivered { id, command, data });
        }
        for undelivered in self.flights.iter().collect::<Vec<_>>() {
            self.flights.free(undelivered);
        }
        let reason: LostReason = self.shared.reason();
        Err(QueueLost::new(reason, undelivered))
    }
}
