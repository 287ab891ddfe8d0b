//! [`Disk`] on an executor in memory.
#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers, and patterns that are meant to wrap"
)]

use std::os::fd::BorrowedFd;

use homi_queue::{CommandId, Completion, QueueFull, QueueLost, Region, Slot, Slots};
use homi_spec::Status;
use homi_spec::command::NvmOpcode;
use proptest::prelude::*;

use super::*;

/// An executor in memory that completes in reverse order, a few at a time, to show that order does not matter.
struct Reversed {
    memory: Vec<u8>,
    slots: Slots<(Command, Data)>,
    pending: Vec<CommandId>,
    fail_lba: Option<u64>,
    largest: usize,
}

const BLOCK: usize = 512;

impl Reversed {
    fn new(blocks: usize, depth: u16) -> Self {
        let memory = (0..blocks * BLOCK).map(|at| (at * 7 % 251) as u8).collect();
        Self {
            memory,
            slots: Slots::new(depth),
            pending: Vec::new(),
            fail_lba: None,
            largest: 0,
        }
    }

    fn execute(&mut self, command: &Command, data: Data) -> (Completion, Data) {
        if self.fail_lba == Some(command.lba()) && command.opcode() != NvmOpcode::FLUSH {
            return (Completion::failed(Status::UNRECOVERED_READ_ERROR), data);
        }
        let at = command.lba() as usize * BLOCK;
        self.largest = self.largest.max(data.len());
        match command.opcode() {
            NvmOpcode::READ => {
                assert_eq!(data.len(), command.blocks() as usize * BLOCK);
                let data = match data {
                    Data::Anywhere { len } => Data::whole(Region::allocate(len, 8).unwrap()),
                    data => data,
                };
                data.write(0, &self.memory[at..at + data.len()]).unwrap();
                (Completion::SUCCESS, data)
            }
            NvmOpcode::WRITE => {
                assert_eq!(data.len(), command.blocks() as usize * BLOCK);
                let len = data.len();
                data.read(0, &mut self.memory[at..at + len]).unwrap();
                (Completion::SUCCESS, data)
            }
            _ => (Completion::SUCCESS, data),
        }
    }
}

impl Queue for Reversed {
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
        let id = self.slots.occupy(slot, (command, data));
        self.pending.push(id);
        id
    }

    fn commit(&mut self) -> Result<(), QueueLost> {
        Ok(())
    }

    fn poll(&mut self, completed: &mut impl Extend<Completed>) -> Result<usize, QueueLost> {
        let mut count = 0;
        for _ in 0..3 {
            let Some(id) = self.pending.pop() else { break };
            let (command, data) = self.slots.take(id).unwrap();
            let (completion, data) = self.execute(&command, data);
            completed.extend([Completed { id, completion, data }]);
            count += 1;
        }
        Ok(count)
    }
}

impl Wait for Reversed {
    fn wait_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn disk(blocks: usize, depth: u16, max_transfer: u32) -> Disk<Reversed> {
    Disk::new(
        Reversed::new(blocks, depth),
        1,
        BLOCK as u32,
        blocks as u64,
        max_transfer,
    )
}

proptest! {
    #[test]
    fn any_range_is_read_and_written_exactly(
        offset in 0_usize..20_000,
        len in 0_usize..20_000,
        depth in 1_u16..9,
        chunk_blocks in 1_u32..9,
    ) {
        let mut disk = disk(80, depth, chunk_blocks * BLOCK as u32);
        let before = disk.queue.memory.clone();
        let mut bytes = vec![0; len];
        disk.read_at(offset as u64, &mut bytes).unwrap();
        prop_assert_eq!(&bytes[..], &before[offset..offset + len]);
        let new: Vec<u8> = (0..len).map(|at| (at % 253) as u8 ^ 0xa5).collect();
        disk.write_at(offset as u64, &new).unwrap();
        let mut expected = before;
        expected[offset..offset + len].copy_from_slice(&new);
        prop_assert_eq!(&disk.queue.memory, &expected);
        prop_assert!(disk.queue.largest <= chunk_blocks as usize * BLOCK);
    }

    #[test]
    fn copies_are_exact(len in 0_usize..30_000, start in 0_usize..16, depth in 1_u16..9, step in 1_usize..5000) {
        let mut disk = disk(80, depth, 2048);
        let bytes: Vec<u8> = (0..len).map(|at| (at % 247) as u8).collect();
        let mut expected = disk.queue.memory.clone();
        let at = start * BLOCK;
        expected[at..at + len].copy_from_slice(&bytes);
        let mut reader = Dribble(&bytes, step);
        prop_assert_eq!(disk.copy_in(&mut reader, at as u64).unwrap(), len as u64);
        prop_assert_eq!(&disk.queue.memory, &expected);
        let mut back = Vec::new();
        disk.copy_out(at as u64, len as u64, &mut back).unwrap();
        prop_assert_eq!(back, bytes);
    }
}

/// A reader that gives at most `.1` bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = to.len().min(self.1).min(self.0.len());
        let (now, later) = self.0.split_at(count);
        to[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

#[test]
fn buffers_move_without_a_copy_and_come_back() {
    let mut disk = disk(64, 4, 1024);
    let buffer = Buffer::from_vec(vec![9; 8192]);
    let address = buffer.as_ptr();
    let buffer = disk.write_buffer(512, buffer).unwrap();
    assert_eq!(buffer.as_ptr(), address);
    let buffer = disk.read_buffer(0, buffer).unwrap();
    assert_eq!(buffer[..512], disk.queue.memory[..512]);
    assert_eq!(buffer[512..], [9; 7680]);
    assert!(disk.read_buffer(100, buffer).is_err());
}

#[test]
fn a_failed_command_leaves_nothing_in_flight() {
    let mut disk = disk(64, 8, 512);
    disk.queue.fail_lba = Some(5);
    let mut bytes = vec![0; 64 * BLOCK];
    let error = disk.read_at(0, &mut bytes).unwrap_err();
    assert_eq!(error.status(), Some(Status::UNRECOVERED_READ_ERROR));
    assert_eq!(disk.queue.slots.in_flight(), 0);
    disk.queue.fail_lba = None;
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, disk.queue.memory);
    disk.flush().unwrap();
}

#[test]
fn the_end_of_the_device_is_the_end() {
    let mut disk = disk(4, 2, 512);
    assert!(matches!(disk.read_at(2000, &mut [0; 49]), Err(Error::Range(_))));
    assert!(matches!(disk.write_at(u64::MAX, &[0; 2]), Err(Error::Range(_))));
    assert!(matches!(
        disk.copy_in(&mut &[0_u8; 2049][..], 0),
        Err(Error::Range(_))
    ));
    assert!(matches!(
        disk.copy_out(512, 2048, &mut Vec::new()),
        Err(Error::Range(_))
    ));
    assert_eq!(disk.queue.slots.in_flight(), 0);
}

#[test]
fn a_queue_without_a_free_slot_is_an_error_not_a_success() {
    let mut disk = disk(4, 2, 512);
    let held = [disk.queue.reserve().unwrap(), disk.queue.reserve().unwrap()];
    assert!(matches!(disk.flush(), Err(Error::Unsupported(_))));
    for slot in held {
        disk.queue.release(slot);
    }
    disk.flush().unwrap();
}
