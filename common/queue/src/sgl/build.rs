//! Placing descriptors in segments.

use homi_spec::{Sgl, SglDescriptor};

use super::{BATCH, DESCRIPTOR, SglBuildError, SglPart, SglRules, are_dwords};
use crate::address::Iova;
use crate::list::ListMemory;

/// The longest part of a range that one descriptor gets: the most that keeps the next part as aligned as a page.
pub(super) const LONGEST: u32 = u32::MAX - 4095;

/// A segment being written.
struct Open {
    index: usize,
    address: Iova,
    /// Descriptors that fit, at least 2.
    capacity: usize,
    /// Descriptors placed.
    used: usize,
    /// Where its own descriptor goes: segment and byte, or `None` for the command.
    owner: Option<(usize, usize)>,
}

/// Places descriptors one behind: only when the next one is known to exist can it be said whether the last place of a
/// segment holds a data block or names a further segment. A segment's own descriptor is written when the
/// segment is complete, since it states the length and whether it is the last.
pub(super) struct Writer<'a, L> {
    rules: &'a SglRules,
    lists: &'a mut L,
    held: Option<Sgl>,
    blocks: u32,
    descriptors: u32,
    /// The command's descriptor, once it is known.
    root: Option<Sgl>,
    open: Option<Open>,
    /// Descriptors placed last in the open segment and not written yet.
    batch: [[u8; DESCRIPTOR]; BATCH],
    batched: usize,
}

impl<'a, L: ListMemory> Writer<'a, L> {
    pub(super) fn new(rules: &'a SglRules, lists: &'a mut L) -> Self {
        Self {
            rules,
            lists,
            held: None,
            blocks: 0,
            descriptors: 0,
            root: None,
            open: None,
            batch: [[0; DESCRIPTOR]; BATCH],
            batched: 0,
        }
    }

    /// Places the descriptors of a part that is not empty.
    pub(super) fn part(&mut self, part: SglPart) -> Result<(), SglBuildError> {
        match part {
            SglPart::Data(range) => {
                let start = range.start().0;
                self.check_dwords(start, range.len())?;
                // What is added stays inside the range, so inside the address space.
                self.split(range.len(), |done, length| SglDescriptor::DataBlock {
                    address: start.wrapping_add(done),
                    length,
                })
            }
            SglPart::Discard { .. } if !self.rules.bit_buckets => Err(SglBuildError::NoBitBuckets),
            SglPart::Discard { len } => self.split(len, |_, length| SglDescriptor::BitBucket { length }),
            SglPart::Keyed { .. } if !self.rules.keyed => Err(SglBuildError::NoKeys),
            SglPart::Keyed {
                address,
                len,
                key,
                invalidate,
            } => {
                self.check_dwords(address.0, len.into())?;
                self.push(SglDescriptor::Keyed {
                    address: address.0,
                    length: len,
                    key: key.0,
                    invalidate,
                })
            }
        }
    }

    fn check_dwords(&self, address: u64, len: u64) -> Result<(), SglBuildError> {
        if self.rules.dwords && !are_dwords(address, len) {
            return Err(SglBuildError::NotDwords { address, len });
        }
        Ok(())
    }

    /// Places as many descriptors as a length needs; `make` gets the bytes before each and its own.
    fn split(&mut self, len: u64, make: impl Fn(u64, u32) -> SglDescriptor) -> Result<(), SglBuildError> {
        let mut done = 0;
        while done < len {
            let part = u32::try_from(len - done).unwrap_or(LONGEST);
            self.push(make(done, part))?;
            done += u64::from(part);
        }
        Ok(())
    }

    fn push(&mut self, descriptor: SglDescriptor) -> Result<(), SglBuildError> {
        if !matches!(descriptor, SglDescriptor::BitBucket { .. }) {
            self.blocks = self.blocks.saturating_add(1);
        }
        self.rules
            .check_blocks(self.blocks)
            .map_err(|max| SglBuildError::TooManyBlocks { max })?;
        let sgl = encode(descriptor)?;
        match self.held.replace(sgl) {
            Some(held) => self.place(held, true),
            None => Ok(()),
        }
    }

    pub(super) fn finish(mut self) -> Result<Sgl, SglBuildError> {
        if let Some(held) = self.held.take() {
            self.place(held, false)?;
        }
        if let Some(open) = self.open.take() {
            self.flush(&open)?;
            let descriptor = SglDescriptor::LastSegment {
                address: open.address.0,
                length: segment_length(open.used),
            };
            self.name(open.owner, encode(descriptor)?)?;
        }
        self.root.ok_or(SglBuildError::Empty)
    }

    fn place(&mut self, sgl: Sgl, more: bool) -> Result<(), SglBuildError> {
        let mut open = match self.open.take() {
            None if !more => {
                self.root = Some(sgl);
                return self.count();
            }
            None => self.segment(0, None)?,
            Some(open) if more && open.used + 1 == open.capacity => {
                let owner = (open.index, (open.capacity - 1) * DESCRIPTOR);
                let next = self.segment(open.index + 1, Some(owner))?;
                self.flush(&open)?;
                let descriptor = SglDescriptor::Segment {
                    address: open.address.0,
                    length: segment_length(open.capacity),
                };
                self.name(open.owner, encode(descriptor)?)?;
                next
            }
            Some(open) => open,
        };
        self.count()?;
        if self.batched == BATCH {
            self.flush(&open)?;
        }
        if let Some(to) = self.batch.get_mut(self.batched) {
            *to = sgl.0;
            self.batched += 1;
            open.used += 1;
        }
        self.open = Some(open);
        Ok(())
    }

    /// Writes a segment's descriptor to where it belongs.
    fn name(&mut self, owner: Option<(usize, usize)>, sgl: Sgl) -> Result<(), SglBuildError> {
        match owner {
            Some((index, at)) => self.lists.write(index, at, &sgl.0)?,
            None => self.root = Some(sgl),
        }
        Ok(())
    }

    fn flush(&mut self, open: &Open) -> Result<(), SglBuildError> {
        let bytes = self.batch.as_flattened();
        let bytes = bytes.get(..self.batched * DESCRIPTOR).unwrap_or(bytes);
        if !bytes.is_empty() {
            self.lists
                .write(open.index, (open.used - self.batched) * DESCRIPTOR, bytes)?;
        }
        self.batched = 0;
        Ok(())
    }

    fn count(&mut self) -> Result<(), SglBuildError> {
        self.descriptors = self.descriptors.saturating_add(1);
        if self.descriptors > self.rules.max_descriptors {
            return Err(SglBuildError::TooManyDescriptors {
                max: self.rules.max_descriptors,
            });
        }
        Ok(())
    }

    fn segment(&mut self, index: usize, owner: Option<(usize, usize)>) -> Result<Open, SglBuildError> {
        self.count()?;
        let block = self
            .lists
            .block(index)
            .ok_or(SglBuildError::OutOfSegments { segments: index })?;
        let most = u32::MAX as usize / DESCRIPTOR;
        let capacity = usize::try_from(block.len()).map_or(most, |len| most.min(len / DESCRIPTOR));
        if capacity < 2 || !block.start().is_aligned(8) {
            return Err(SglBuildError::BadSegment { block });
        }
        Ok(Open {
            index,
            address: block.start(),
            capacity,
            used: 0,
            owner,
        })
    }
}

fn encode(descriptor: SglDescriptor) -> Result<Sgl, SglBuildError> {
    descriptor
        .encode()
        .map_err(|error| SglBuildError::KeyedTooLong { len: error.length })
}

/// Bytes of a segment, whose descriptors were limited so that it fits.
fn segment_length(descriptors: usize) -> u32 {
    u32::try_from(descriptors * DESCRIPTOR).unwrap_or(u32::MAX)
}
