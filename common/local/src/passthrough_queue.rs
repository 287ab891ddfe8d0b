//! [`PassthroughQueue`]: hands commands to the kernel's NVMe driver as they are.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::thread;

use homi_queue::{
    Buffer, Command, CommandId, Completed, Completion, Data, DataDirection, LostReason, MemoryError, Queue,
    QueueFull, QueueLost, Region, Slot, Slots, Undelivered, Wait,
};
use homi_reactor::nvme::{MAX_RANGES, NvmeOperation, NvmeOutcome, NvmeRing, NvmeRingCounters, Registration};
use homi_spec::command::NvmOpcode;
use homi_spec::status::Status;

use crate::bounce::Bounce;
use crate::check::check;
use crate::content;
use crate::geometry::NamespaceGeometry;
use crate::passthrough::{Passthrough, status_of};

/// How often starting a batch is tried again when the system is short of memory for the moment.
const SUBMIT_TRIES: u32 = 100;

/// What a queue through the kernel's driver has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassthroughCounters {
    /// Commands to the driver, system calls, registered memory.
    pub ring: NvmeRingCounters,
    /// Commands that were executed in several parts.
    pub split: u64,
    /// Commands whose memory had to be copied because it has more ranges than the kernel takes.
    pub copied: u64,
    /// Commands that the kernel did not pass on.
    pub failures: u64,
}

/// Why a command was not passed on: what the system said, which a status cannot carry.
#[derive(Debug)]
pub struct PassthroughFailure {
    /// The command.
    pub opcode: NvmOpcode,
    /// What came of it.
    pub error: io::Error,
}

impl fmt::Display for PassthroughFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was not passed on: {}", self.opcode, self.error)
    }
}

/// A command in flight.
struct Task {
    command: Command,
    /// Memory of the command while it is not in the ring: the issuer's while a copy of it is.
    data: Data,
    /// Bytes that are done.
    at: usize,
    /// Bytes of a part; all of them if the command is executed whole.
    part: usize,
    len: usize,
    /// The ring works on a copy of the issuer's memory.
    copied: bool,
    /// The memory is this queue's own.
    own: bool,
    /// What came of it without the drive.
    settled: Option<Status>,
}

/// Executes commands through the kernel's driver: one command of the drive for each, and several, one after the other, for reads, writes
/// and compares that are longer than a transfer may be.
///
/// Commands go through with all their fields but the namespace, which is the device's, and the data pointer; the status and result that come
/// back are the controller's. Checked here is what the drive cannot: that the memory is as long as the transfer. Ranges of blocks are the
/// drive's to refuse.
pub struct PassthroughQueue {
    device: Passthrough,
    ring: NvmeRing,
    slots: Slots<Task>,
    bounce: Bounce,
    outcomes: Vec<(u64, io::Result<NvmeOutcome>, Data)>,
    /// Commands that ended without the drive; they are still in their slots.
    settled: Vec<CommandId>,
    failure: Option<PassthroughFailure>,
    counters: PassthroughCounters,
    lost: Option<LostReason>,
}

impl PassthroughQueue {
    pub(crate) fn new(device: Passthrough, depth: u16, registration: Registration) -> io::Result<Self> {
        let slots = Slots::new(depth);
        let inner = &device.0;
        let ring = NvmeRing::new(slots.depth(), inner.descriptor.clone(), inner.nsid, registration)
            .map_err(io::Error::other)?;
        Ok(Self {
            settled: Vec::with_capacity(usize::from(slots.depth())),
            outcomes: Vec::with_capacity(usize::from(slots.depth())),
            device,
            ring,
            slots,
            bounce: Bounce::new(),
            failure: None,
            counters: PassthroughCounters::default(),
            lost: None,
        })
    }

    /// What the namespace looks like.
    #[must_use]
    pub fn geometry(&self) -> &NamespaceGeometry {
        self.device.geometry()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> PassthroughCounters {
        PassthroughCounters {
            ring: self.ring.counters(),
            ..self.counters
        }
    }

    /// The last command that the kernel did not pass on, once: for logs.
    pub fn take_failure(&mut self) -> Option<PassthroughFailure> {
        self.failure.take()
    }

    /// Keeps a region registered with the kernel, so that commands on it cost less; see [`NvmeRing::register`].
    pub fn register(&mut self, region: &Region) -> bool {
        self.ring.register(region)
    }

    /// Decides what is to be done with a command.
    fn plan(&mut self, command: Command, data: Data) -> Task {
        let len = data.len();
        let mut task = Task {
            command,
            data,
            at: 0,
            part: len,
            len,
            copied: false,
            own: false,
            settled: None,
        };
        let (geometry, unchecked) = (self.device.geometry(), self.device.0.unchecked);
        task.settled = check(geometry, unchecked, &task.command, &task.data).err();
        if task.settled.is_some() {
            return task;
        }
        let limit = self.device.max_transfer() as usize;
        if len > limit {
            match task.command.opcode() {
                NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                    let parts = len.div_ceil(limit);
                    let block = self.device.geometry().block_size() as usize;
                    task.part = len.div_ceil(parts).next_multiple_of(block);
                    self.counters.split += 1;
                }
                // As a controller does with transfers beyond MDTS (Base 2.0, Identify Controller, MDTS).
                _ => task.settled = Some(Status::INVALID_FIELD.with_dnr()),
            }
        }
        task
    }

    /// The memory that the ring works on.
    fn memory(&mut self, task: &mut Task) -> Result<Data, MemoryError> {
        let data = mem::take(&mut task.data);
        match data {
            Data::Anywhere { len } => {
                task.own = true;
                Ok(Data::One(self.bounce.take(len)?))
            }
            Data::List(list) if list.len() > MAX_RANGES => {
                let copy = self.bounce.take(task.len)?;
                let data = Data::List(list);
                if task.command.direction() != DataDirection::ControllerToHost {
                    let at = copy.start();
                    content::copy_out(&data, 0, copy.region(), at, task.len)?;
                }
                (task.copied, task.own) = (true, true);
                task.data = data;
                self.counters.copied += 1;
                Ok(Data::One(copy))
            }
            other => Ok(other),
        }
    }

    /// Gives the ring a task's next part. The ring has a place for every slot.
    fn push(&mut self, id: CommandId, memory: Data) {
        let Ok(task) = self.slots.get_mut(id) else { return };
        let part: Range<usize> = task.at..(task.at + task.part).min(task.len);
        let mut command = task.command;
        if task.part < task.len {
            let block = u64::from(self.device.geometry().block_size());
            command
                .0
                .set_lba(task.command.lba().wrapping_add(part.start as u64 / block));
            let blocks = u32::try_from(part.len() as u64 / block).unwrap_or(u32::MAX);
            let rest = command.0.cdw12.get() & !0xffff;
            command.0.cdw12 = (rest | (blocks.wrapping_sub(1) & 0xffff)).into();
        }
        let operation = NvmeOperation {
            token: u64::from(id.0),
            command,
            data: memory,
            part,
            lasting: !task.own,
        };
        if let Err(refused) = self.ring.push(operation) {
            if !task.copied {
                task.data = refused.data;
            }
            task.settled = Some(Status::INTERNAL_ERROR);
            self.settle(id);
        }
    }

    /// Has the next poll complete a command that ended without the drive, and wakes who sleeps until then.
    fn settle(&mut self, id: CommandId) {
        self.settled.push(id);
        self.ring.wake();
    }

    /// Ends a command: its memory is the issuer's again.
    fn finish(&mut self, id: CommandId, completion: Completion, memory: Data) -> Option<Completed> {
        let mut task = self.slots.take(id).ok()?;
        let mut completion = completion;
        if task.copied {
            if task.command.direction() == DataDirection::ControllerToHost
                && let Data::One(copy) = &memory
                && content::copy_in(&task.data, 0, copy.region(), copy.start(), task.len).is_err()
            {
                completion = Status::DATA_TRANSFER_ERROR.into();
            }
        } else {
            task.data = memory;
        }
        Some(Completed {
            id,
            completion,
            data: task.data,
        })
    }

    fn resume(&mut self, id: CommandId, outcome: io::Result<NvmeOutcome>, memory: Data) -> Option<Completed> {
        let Ok(task) = self.slots.get_mut(id) else {
            debug_assert!(false, "the ring hands a command back once");
            return None;
        };
        let completion = match outcome {
            Ok(outcome) => Completion {
                status: Status::from_raw(outcome.status),
                result: outcome.result,
            },
            Err(error) => {
                let status = status_of(&error);
                self.failure = Some(PassthroughFailure {
                    opcode: task.command.opcode(),
                    error,
                });
                self.counters.failures += 1;
                status.into()
            }
        };
        task.at = (task.at + task.part).min(task.len);
        if completion.status.is_success() && task.at < task.len {
            self.push(id, memory);
            return None;
        }
        self.finish(id, completion, memory)
    }

    /// Starts what was pushed. Being short of memory passes; anything else ends the queue.
    fn start(&mut self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.ring.submit() {
                Err(error)
                    if tries < SUBMIT_TRIES
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                        ) =>
                {
                    tries += 1;
                    thread::yield_now();
                }
                done => return done,
            }
        }
    }

    /// Ends the queue: every command without a completion is handed back, with its memory where the kernel let go of it.
    fn lose(&mut self, error: &io::Error) -> QueueLost {
        let path = self.device.path().display();
        let reason = LostReason::Io(format!("the ring of {path} failed: {error}"));
        self.lost = Some(reason);
        let slots = &mut self.slots;
        self.ring.close(&mut |token, memory| {
            let task = u16::try_from(token)
                .ok()
                .and_then(|id| slots.get_mut(CommandId(id)).ok());
            if let Some(task) = task.filter(|task| !task.copied) {
                task.data = memory;
            }
        });
        self.still_lost()
            .err()
            .unwrap_or_else(|| QueueLost::new(LostReason::Local, Vec::new()))
    }

    /// An error if the queue was lost, with the commands submitted since the last one.
    fn still_lost(&mut self) -> Result<(), QueueLost> {
        let Some(reason) = &self.lost else { return Ok(()) };
        let undelivered = self.slots.drain().into_iter();
        let undelivered = undelivered
            .map(|(id, task)| Undelivered {
                id,
                command: task.command,
                data: task.data,
            })
            .collect();
        self.settled.clear();
        Err(QueueLost::new(reason.clone(), undelivered))
    }
}

impl Queue for PassthroughQueue {
    fn depth(&self) -> u16 {
        self.slots.depth()
    }

    fn reserve(&mut self) -> Result<Slot, QueueFull> {
        self.slots.reserve().ok_or(QueueFull)
    }

    fn release(&mut self, slot: Slot) {
        self.slots.release(slot);
    }

    fn submit(&mut self, slot: Slot, command: Command, data: Data) -> CommandId {
        let mut task = self.plan(command, data);
        if self.lost.is_some() {
            return self.slots.occupy(slot, task);
        }
        let memory = match task.settled {
            None => self.memory(&mut task),
            Some(_) => Ok(Data::None),
        };
        if memory.is_err() {
            task.settled = Some(Status::INTERNAL_ERROR);
        }
        let is_settled = task.settled.is_some();
        let id = self.slots.occupy(slot, task);
        match memory {
            Ok(memory) if !is_settled => self.push(id, memory),
            _ => self.settle(id),
        }
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        self.still_lost()?;
        self.start().map_err(|error| self.lose(&error))
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        self.still_lost()?;
        let mut outcomes = mem::take(&mut self.outcomes);
        let polled = self
            .ring
            .poll(&mut |token, outcome, data| outcomes.push((token, outcome, data)));
        let mut count = 0;
        let slots = &mut self.slots;
        completed.extend(self.settled.drain(..).filter_map(|id| {
            let task = slots.take(id).ok()?;
            count += 1;
            Some(Completed {
                id,
                completion: task.settled.unwrap_or(Status::INTERNAL_ERROR).into(),
                data: task.data,
            })
        }));
        for (token, outcome, memory) in outcomes.drain(..) {
            let Ok(id) = u16::try_from(token) else { continue };
            if let Some(done) = self.resume(CommandId(id), outcome, memory) {
                completed.extend(Some(done));
                count += 1;
            }
        }
        self.outcomes = outcomes;
        // Whatever was started above is part of commands that the caller committed before.
        match polled.and_then(|_| self.start()) {
            Ok(()) => Ok(count),
            Err(error) => Err(self.lose(&error)),
        }
    }

    fn take_back(&mut self, data: Data) -> Result<Buffer, Data> {
        if let Data::One(segment) = &data {
            self.ring.forget(segment.host_address());
        }
        Buffer::try_from_data(data)
    }
}

impl Wait for PassthroughQueue {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wait_descriptor())
    }
}

impl fmt::Debug for PassthroughQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassthroughQueue")
            .field("device", &self.device)
            .field("ring", &self.ring)
            .field("in_flight", &self.slots.in_flight())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use homi_spec::command::Fuse;

    use super::*;
    use crate::passthrough::Passthrough;

    const LIMIT: u32 = 64 << 10;

    fn queue(
        change: impl FnOnce(NamespaceGeometry) -> NamespaceGeometry,
        unchecked: bool,
    ) -> Option<PassthroughQueue> {
        let geometry = change(NamespaceGeometry::new(512, 4096).unwrap());
        match Passthrough::null(geometry, LIMIT, unchecked).open_queue(8, Registration::Automatic) {
            Ok(queue) => Some(queue),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn run(queue: &mut PassthroughQueue, command: Command, data: Data) -> Completed {
        let slot = queue.reserve().unwrap();
        let id = queue.submit(slot, command, data);
        queue.commit().unwrap();
        let mut completed = Vec::new();
        while queue.poll(&mut completed).unwrap() == 0 {
            thread::yield_now();
        }
        let done = completed.remove(0);
        assert_eq!(done.id, id);
        done
    }

    fn memory(len: usize) -> Data {
        Data::whole(Region::allocate(len, 4096).unwrap())
    }

    fn status(queue: &mut PassthroughQueue, command: Command, data: Data) -> Status {
        run(queue, command, data).completion.status
    }

    #[test]
    fn long_transfers_go_in_parts_and_others_whole() {
        let Some(mut queue) = queue(|geometry| geometry, false) else {
            return;
        };
        for (blocks, parts) in [(1, 1), (128, 1), (129, 2), (256, 2), (257, 3), (4096, 32)] {
            let before = queue.counters().ring.operations;
            let len = blocks as usize * 512;
            let done = run(&mut queue, Command::write(1, 0, blocks), memory(len));
            assert!(done.completion.is_success());
            assert_eq!(done.data.len(), len);
            assert_eq!(
                queue.counters().ring.operations - before,
                parts,
                "{blocks} blocks"
            );
        }
        assert_eq!(queue.counters().split, 4);
    }

    #[test]
    fn memory_must_be_as_long_as_the_transfer() {
        let Some(mut queue) = queue(|geometry| geometry, false) else {
            return;
        };
        let length = Status::SGL_DATA_LENGTH_INVALID;
        let before = queue.counters().ring.operations;
        for (command, data) in [
            (Command::read(1, 0, 8), memory(512)),
            (Command::write(1, 0, 8), Data::Anywhere { len: 4096 }),
            (Command::flush(1), memory(512)),
            (Command::write_zeroes(1, 0, 8, true), memory(4096)),
            (Command::deallocate(1, 3), memory(32)),
        ] {
            assert!(status(&mut queue, command, data).is(length), "{command:?}");
        }
        let mut vendor = Command::read(1, 0, 1);
        vendor.0.opcode = 0xc2;
        assert!(status(&mut queue, vendor, memory(512)).is(Status::INVALID_OPCODE));
        let mut fused = Command::read(1, 0, 1);
        fused.0.set_fuse(Fuse::FIRST);
        assert!(status(&mut queue, fused, memory(512)).is(Status::INVALID_FIELD));
        assert_eq!(queue.counters().ring.operations, before);
        assert!(status(&mut queue, Command::deallocate(1, 3), memory(4096)).is_success());
        assert!(status(&mut queue, Command::verify(1, 0, 65536), Data::None).is_success());
    }

    #[test]
    fn other_commands_pass_where_somebody_answers_for_them() {
        let Some(mut queue) = queue(|geometry| geometry, true) else {
            return;
        };
        let mut vendor = Command::read(1, 0, 1);
        vendor.0.opcode = 0xc2;
        assert!(status(&mut queue, vendor, memory(4096)).is_success());
        assert!(status(&mut queue, vendor, memory(LIMIT as usize + 512)).is(Status::INVALID_FIELD));
    }

    #[test]
    fn a_write_protected_namespace_is_only_read() {
        let Some(mut queue) = queue(|geometry| geometry.with_read_only(true), true) else {
            return;
        };
        let protected = Status::NAMESPACE_WRITE_PROTECTED;
        assert!(status(&mut queue, Command::write(1, 0, 1), memory(512)).is(protected));
        assert!(status(&mut queue, Command::deallocate(1, 1), memory(16)).is(protected));
        let mut vendor = Command::read(1, 0, 1);
        vendor.0.opcode = 0xc1;
        assert!(status(&mut queue, vendor, memory(512)).is(protected));
        assert!(status(&mut queue, Command::read(1, 0, 1), memory(512)).is_success());
        assert!(status(&mut queue, Command::flush(1), Data::None).is_success());
    }

    #[test]
    fn lists_longer_than_the_kernel_takes_are_copied() {
        let Some(mut queue) = queue(|geometry| geometry, false) else {
            return;
        };
        let region = Region::from_vec(vec![9; 16384]);
        let list = || {
            Data::List(
                (0..2048)
                    .map(|n| region.segment(n * 8..n * 8 + 8).unwrap())
                    .collect(),
            )
        };
        let done = run(&mut queue, Command::write(1, 0, 32), list());
        assert!(done.completion.is_success());
        assert_eq!(done.data.segments().len(), 2048);
        assert_eq!(queue.counters().copied, 1);
        drop(done);
        // The null device moves nothing, so the read copies what the write left in the queue's memory.
        region.fill(0, 16384, 0).unwrap();
        let done = run(&mut queue, Command::read(1, 0, 32), list());
        assert!(done.completion.is_success());
        let mut bytes = [0; 16];
        done.data.read(100, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 16]);
        drop(done);
        assert!(region.is_unique());
    }

    #[test]
    fn memory_that_is_kept_registered_can_be_taken_back() {
        let Some(mut queue) = queue(|geometry| geometry, false) else {
            return;
        };
        let mut data = memory(4096);
        for _ in 0..4 {
            data = run(&mut queue, Command::read(1, 0, 8), data).data;
        }
        let buffer = queue.take_back(data).unwrap();
        assert_eq!(buffer.len(), 4096);
        // The queue's own memory is used again, so it is not kept.
        let anywhere = || Data::Anywhere { len: 4096 };
        let first = run(&mut queue, Command::read(1, 0, 8), anywhere()).data;
        let address = first.segments()[0].host_address();
        drop(first);
        for _ in 0..4 {
            let again = run(&mut queue, Command::read(1, 0, 8), anywhere()).data;
            assert_eq!(again.segments()[0].host_address(), address);
        }
    }

    #[test]
    fn a_lost_queue_hands_every_command_back_once() {
        let Some(mut queue) = queue(|geometry| geometry, false) else {
            return;
        };
        let mut ids = Vec::new();
        for (lba, len) in [(0, 4096), (8, 512), (16, 4096)] {
            let slot = queue.reserve().unwrap();
            ids.push(queue.submit(slot, Command::write(1, lba, 8), memory(len)));
        }
        let lost = queue.lose(&io::Error::from_raw_os_error(libc::EBADF));
        let undelivered = lost.undelivered();
        assert_eq!(undelivered.iter().map(|lost| lost.id).collect::<Vec<_>>(), ids);
        assert_eq!(
            undelivered.iter().map(|lost| lost.data.len()).collect::<Vec<_>>(),
            [4096, 512, 4096]
        );
        assert!(queue.poll(&mut Vec::new()).unwrap_err().undelivered().is_empty());
    }
}
