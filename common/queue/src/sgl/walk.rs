//! Following descriptors through segments that may hold anything.

use homi_spec::command::TransferDirection;
use homi_spec::{Sgl, SglDescriptor};

use super::{BATCH, DESCRIPTOR, SglPart, SglRules, SglWalkError, are_dwords};
use crate::address::{Iova, IovaRange, RemoteAddress, RemoteKey, Unmapped};

/// One walk: what it is held to, and how far it got.
pub(super) struct Walker<'a, R, V> {
    rules: &'a SglRules,
    sent_by_host: bool,
    len: u64,
    /// Bytes described so far.
    described: u64,
    /// Data blocks so far.
    blocks: u32,
    /// Descriptors so far, those of segments named but not read yet included.
    descriptors: u32,
    read: R,
    visit: V,
}

impl<'a, R, V> Walker<'a, R, V>
where
    R: FnMut(Iova, &mut [u8]) -> Result<(), Unmapped>,
    V: FnMut(SglPart),
{
    pub(super) fn new(
        rules: &'a SglRules,
        len: u64,
        direction: TransferDirection,
        read: R,
        visit: V,
    ) -> Self {
        Self {
            rules,
            sent_by_host: direction == TransferDirection::HostToController,
            len,
            described: 0,
            blocks: 0,
            descriptors: 0,
            read,
            visit,
        }
    }

    pub(super) fn run(mut self, root: Sgl) -> Result<(), SglWalkError> {
        self.count(1)?;
        let mut next = match root.parse() {
            descriptor @ (SglDescriptor::Segment { .. } | SglDescriptor::LastSegment { .. }) => {
                Some(descriptor)
            }
            descriptor => {
                self.data(descriptor)?;
                None
            }
        };
        // Every turn counts at least one descriptor.
        while let Some(segment) = next {
            next = self.segment(segment)?;
        }
        if self.described < self.len {
            return Err(SglWalkError::TooShort {
                described: self.described,
                len: self.len,
            });
        }
        Ok(())
    }

    /// Reads a segment and returns the descriptor of the next one.
    fn segment(&mut self, named: SglDescriptor) -> Result<Option<SglDescriptor>, SglWalkError> {
        let (address, length, is_last) = match named {
            SglDescriptor::Segment { address, length } => (Iova(address), length, false),
            SglDescriptor::LastSegment { address, length } => (Iova(address), length, true),
            descriptor => return Err(SglWalkError::Unsupported { descriptor }),
        };
        if length == 0 || !length.is_multiple_of(16) {
            return Err(SglWalkError::SegmentLength { length });
        }
        if !address.is_aligned(8) {
            return Err(SglWalkError::SegmentMisaligned { address });
        }
        IovaRange::new(address, length.into())?;
        self.count(length / 16)?;

        let mut done = 0_u32;
        while done < length {
            let mut bytes = [0; BATCH * DESCRIPTOR];
            let wanted = usize::try_from(length - done).map_or(bytes.len(), |left| left.min(bytes.len()));
            let bytes = bytes.get_mut(..wanted).unwrap_or(&mut []);
            // Inside the segment, so inside the address space.
            (self.read)(Iova(address.0.wrapping_add(done.into())), bytes)?;
            let (descriptors, _) = bytes.as_chunks::<DESCRIPTOR>();
            for bytes in descriptors {
                done += 16;
                let descriptor = Sgl(*bytes).parse();
                let names_segment = matches!(
                    descriptor,
                    SglDescriptor::Segment { .. } | SglDescriptor::LastSegment { .. }
                );
                match (names_segment, done == length) {
                    (true, _) if is_last => return Err(SglWalkError::BeyondLast),
                    (true, true) => return Ok(Some(descriptor)),
                    (true, false) => return Err(SglWalkError::Misplaced),
                    (false, true) if !is_last => return Err(SglWalkError::MissingSegment { descriptor }),
                    (false, _) => self.data(descriptor)?,
                }
            }
        }
        Ok(None)
    }

    fn data(&mut self, descriptor: SglDescriptor) -> Result<(), SglWalkError> {
        let part = match descriptor {
            SglDescriptor::DataBlock { address, length } => {
                self.block(address, length)?;
                SglPart::Data(IovaRange::new(Iova(address), length.into())?)
            }
            SglDescriptor::Keyed {
                address,
                length,
                key,
                invalidate,
            } if self.rules.keyed => {
                self.block(address, length)?;
                let address = RemoteAddress(address);
                if address.checked_add(u64::from(length).saturating_sub(1)).is_none() {
                    return Err(SglWalkError::RemoteOverflow { address, length });
                }
                SglPart::Keyed {
                    address,
                    len: length,
                    key: RemoteKey(key),
                    invalidate,
                }
            }
            SglDescriptor::BitBucket { length } if self.rules.bit_buckets => {
                let len = if self.sent_by_host { 0 } else { length.into() };
                SglPart::Discard { len }
            }
            descriptor => return Err(SglWalkError::Unsupported { descriptor }),
        };
        let wanted = self.len.saturating_sub(self.described);
        // No overflow: fewer than 2^32 descriptors of fewer than 2^32 bytes.
        self.described = self.described.saturating_add(part.len());
        if self.described > self.len && !self.rules.oversized {
            return Err(SglWalkError::TooLong {
                described: self.described,
                len: self.len,
            });
        }
        let part = if part.len() > wanted {
            part.first(wanted)
        } else {
            part
        };
        if !part.is_empty() {
            (self.visit)(part);
        }
        Ok(())
    }

    fn block(&mut self, address: u64, length: u32) -> Result<(), SglWalkError> {
        self.blocks = self.blocks.saturating_add(1);
        self.rules
            .check_blocks(self.blocks)
            .map_err(|max| SglWalkError::TooManyBlocks { max })?;
        if self.rules.dwords && !are_dwords(address, length.into()) {
            return Err(SglWalkError::NotDwords { address, length });
        }
        Ok(())
    }

    fn count(&mut self, descriptors: u32) -> Result<(), SglWalkError> {
        self.descriptors = self.descriptors.saturating_add(descriptors);
        if self.descriptors > self.rules.max_descriptors {
            return Err(SglWalkError::TooManyDescriptors {
                max: self.rules.max_descriptors,
            });
        }
        Ok(())
    }
}
