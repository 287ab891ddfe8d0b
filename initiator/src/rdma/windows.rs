//! [`CommandWindows`]: memory windows that are open for one command each.
//!
//! A window is bound in front of its command, in the same list, and the command carries its key. The controller may close it with its
//! response (SEND with invalidate); what it leaves open is closed here before the response is looked at, so that no completed command's
//! memory can be reached.

use homi_queue::{RemoteKey, Segment};
use homi_verbs::{Access, MemoryRegion, MemoryWindow, Pd, Piece, PostError, SendBatch, Signal, VerbsError};

/// Windows of one command at most: one for each descriptor.
pub(super) const WINDOWS: u16 = 4;

/// The windows of one slot.
#[derive(Default)]
struct SlotWindows {
    windows: Vec<MemoryWindow>,
    /// What the command's windows are for.
    pieces: Vec<Piece>,
    access: Access,
    /// The windows are bound.
    bound: bool,
}

/// The windows of a queue, by slot.
pub(super) struct CommandWindows {
    pd: Pd,
    slots: Vec<SlotWindows>,
}

impl CommandWindows {
    pub(super) fn new(pd: &Pd, depth: u16) -> Self {
        Self {
            pd: pd.clone(),
            slots: (0..depth).map(|_| SlotWindows::default()).collect(),
        }
    }

    /// A new command in a slot, whose memory the controller reads, or else writes.
    pub(super) fn begin(&mut self, slot: usize, controller_reads: bool) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.pieces.clear();
            slot.bound = false;
            slot.access = if controller_reads {
                Access::REMOTE_READ
            } else {
                Access::REMOTE_WRITE
            };
        }
    }

    /// The window that a segment of the command's memory will be seen through: the key that it will have. A segment that continues the one
    /// before it is seen through the same.
    pub(super) fn add(
        &mut self,
        slot: usize,
        memory: &MemoryRegion,
        at: u64,
        segment: &Segment,
    ) -> Result<RemoteKey, VerbsError> {
        let end = at.saturating_add(segment.len() as u64);
        let new = memory.piece(at..end)?;
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(RemoteKey::default());
        };
        let continued = slot.pieces.last_mut().and_then(|last| {
            let last_end = last.address().0.checked_add(last.len())?;
            let same = last.memory().remote_address(0).ok() == memory.remote_address(0).ok();
            let start = at.checked_sub(last.len())?;
            (same && last_end == new.address().0).then(|| memory.piece(start..end).map(|piece| *last = piece))
        });
        match continued {
            Some(outcome) => outcome?,
            None => {
                if slot.windows.len() == slot.pieces.len() {
                    slot.windows.push(MemoryWindow::new(&self.pd)?);
                }
                slot.pieces.push(new);
            }
        }
        let window = slot.windows.get(slot.pieces.len() - 1);
        Ok(window.map(MemoryWindow::next_remote_key).unwrap_or_default())
    }

    /// The command carries its data itself.
    pub(super) fn not_needed(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.pieces.clear();
        }
    }

    /// Binds the windows of a slot, in front of its command.
    pub(super) fn bind(
        &mut self,
        slot: usize,
        batch: &mut SendBatch<'_>,
        token: u64,
    ) -> Result<(), PostError> {
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        for (window, piece) in slot.windows.iter_mut().zip(&slot.pieces) {
            batch.bind(window, piece, slot.access, Signal::Silent, token)?;
        }
        slot.bound = !slot.pieces.is_empty();
        Ok(())
    }

    /// Keys of a slot that are still open after a response that closed `closed`.
    pub(super) fn open(
        &self,
        slot: usize,
        closed: Option<RemoteKey>,
    ) -> impl Iterator<Item = RemoteKey> + '_ {
        self.slots
            .get(slot)
            .filter(|slot| slot.bound)
            .into_iter()
            .flat_map(|slot| slot.windows.iter().take(slot.pieces.len()))
            .map(MemoryWindow::remote_key)
            .filter(move |key| Some(*key) != closed)
    }

    /// The command of a slot is over and its windows are closed.
    pub(super) fn end(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.pieces.clear();
            slot.bound = false;
        }
    }
}
