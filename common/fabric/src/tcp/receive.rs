//! [`Inbound`]: how far the received stream is into the current unit. Both ends share it.
//!
//! A header that lies whole in the input is read there. One that was cut is gathered in a small array; payload is never
//! held back, it goes to its memory as it comes.

use homi_queue::{Data, MemoryError, Segment};
use homi_spec::tcp::{PduHeader, TERM_REQ_MAX};
use zerocopy::FromBytes;

use super::digest::Running;
use super::error::TransportError;
use super::framing::{DIGEST, Payload};

/// The longest header: a terminate request with all that it may repeat.
const HELD: usize = TERM_REQ_MAX as usize;
const COMMON: usize = size_of::<PduHeader>();

/// A header that was gathered from pieces.
pub(crate) struct Held {
    bytes: [u8; HELD],
    len: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Which part of a unit comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Header,
    Padding,
    Payload,
    DataDigest,
    /// The connection has failed or the peer ended it: everything is ignored.
    Closed,
}

/// What became of a data digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Match,
    Mismatch,
}

#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) phase: Phase,
    /// Bytes in `held`.
    filled: u8,
    padding: u8,
    /// LAST and SUCCESS of the unit whose payload is coming.
    pub(crate) flags: u8,
    /// The command that the payload belongs to: a key or a command id, by end.
    pub(crate) target: u16,
    /// Where the next payload byte belongs in the command's data.
    pub(crate) at: u32,
    /// Payload bytes to come in this unit.
    pub(crate) left: u32,
    running: Running,
    held: [u8; HELD],
}

impl Inbound {
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Header,
            filled: 0,
            padding: 0,
            flags: 0,
            target: 0,
            at: 0,
            left: 0,
            running: Running::new(),
            held: [0; HELD],
        }
    }

    /// The next header, if it lies whole in the input, where it lies. `judge` tells its length from its first eight bytes.
    #[inline]
    pub(crate) fn header_in_place<'a>(
        &self,
        input: &mut &'a [u8],
        judge: impl FnOnce(&PduHeader) -> Result<usize, TransportError>,
    ) -> Result<Option<&'a [u8]>, TransportError> {
        if self.filled != 0 {
            return Ok(None);
        }
        let Ok((common, _)) = PduHeader::ref_from_prefix(input) else {
            return Ok(None);
        };
        let len = judge(common)?;
        Ok(input.split_off(..len))
    }

    /// Gathers the next header from pieces. Takes from the input what belongs to it; `None` if that was not all of it.
    #[cold]
    pub(crate) fn gather_header(
        &mut self,
        input: &mut &[u8],
        judge: impl Fn(&PduHeader) -> Result<usize, TransportError>,
    ) -> Result<Option<Held>, TransportError> {
        let mut wanted = COMMON;
        loop {
            if !self.hold(input, wanted) {
                return Ok(None);
            }
            let common = PduHeader::ref_from_prefix(&self.held).map(|(common, _)| judge(common));
            let len = match common {
                // `judge` never asks for more than fits; if it did, the header could not be completed.
                Ok(len) => len?.clamp(COMMON, HELD),
                Err(_) => HELD,
            };
            if usize::from(self.filled) >= len {
                self.filled = 0;
                return Ok(Some(Held {
                    bytes: self.held,
                    len,
                }));
            }
            wanted = len;
        }
    }

    /// The bytes held of a header that cannot be completed, for the terminate request.
    pub(crate) fn held(&self) -> &[u8] {
        self.held.get(..usize::from(self.filled)).unwrap_or(&[])
    }

    /// Moves bytes from the input to `held` until it has `wanted`, and tells whether it has.
    fn hold(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let filled = usize::from(self.filled);
        let missing = wanted.saturating_sub(filled).min(input.len());
        if let (Some(taken), Some(to)) = (
            input.split_off(..missing),
            self.held.get_mut(filled..filled + missing),
        ) {
            to.copy_from_slice(taken);
        }
        let filled = filled + missing;
        self.filled = u8::try_from(filled).unwrap_or(u8::MAX);
        filled >= wanted
    }

    /// Starts on a unit's data, which belongs at byte `at` of the target's.
    #[inline]
    pub(crate) fn begin(&mut self, payload: Payload, target: u16, at: u32, flags: u8) {
        self.phase = if payload.padding == 0 {
            Phase::Payload
        } else {
            Phase::Padding
        };
        self.padding = payload.padding;
        self.left = payload.len;
        self.target = target;
        self.at = at;
        self.flags = flags;
        self.running = Running::new();
    }

    /// Skips padding, and tells whether there is no more.
    pub(crate) fn skip_padding(&mut self, input: &mut &[u8]) -> bool {
        let skipped = usize::from(self.padding).min(input.len());
        *input = input.get(skipped..).unwrap_or(&[]);
        self.padding -= u8::try_from(skipped).unwrap_or(self.padding);
        if self.padding > 0 {
            return false;
        }
        self.phase = Phase::Payload;
        true
    }

    /// Takes as much payload as there is from the input.
    #[inline]
    pub(crate) fn take_payload<'a>(&self, input: &mut &'a [u8]) -> &'a [u8] {
        let len = input.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        input.split_off(..len).unwrap_or(&[])
    }

    /// Copies payload bytes that came to where they belong.
    #[inline]
    pub(crate) fn place(&mut self, data: &Data, bytes: &[u8], digest: bool) -> Result<(), MemoryError> {
        let at = usize::try_from(self.at).unwrap_or(usize::MAX);
        match data {
            Data::One(segment) if at.saturating_add(bytes.len()) <= segment.len() => {
                segment.region().write(segment.start() + at, bytes)?;
            }
            other => other.write(at, bytes)?,
        }
        if digest {
            self.running.update(bytes);
        }
        Ok(())
    }

    /// Takes note of payload bytes that were received straight to where they belong.
    pub(crate) fn placed(&mut self, data: &Data, len: usize, digest: bool) -> Result<(), MemoryError> {
        if digest {
            self.running
                .update_from(data, usize::try_from(self.at).unwrap_or(usize::MAX), len)?;
        }
        Ok(())
    }

    /// Counts payload bytes, and tells whether they were the unit's last.
    #[inline]
    pub(crate) fn advance(&mut self, len: usize) -> bool {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(self.left);
        self.left -= len;
        self.at += len;
        self.left == 0
    }

    /// Compares the digest at the end of a unit's data with the data; `None` if it has not all come.
    pub(crate) fn data_digest(&mut self, input: &mut &[u8]) -> Option<Verdict> {
        let received = match input.split_first_chunk::<DIGEST>() {
            Some((received, rest)) if self.filled == 0 => {
                *input = rest;
                *received
            }
            _ => {
                if !self.hold(input, DIGEST) {
                    return None;
                }
                self.filled = 0;
                *self.held.first_chunk()?
            }
        };
        let matches = u32::from_le_bytes(received) == self.running.finish();
        Some(if matches {
            Verdict::Match
        } else {
            Verdict::Mismatch
        })
    }

    /// Where the next payload bytes go, if at least `minimum` are to come that lie side by side in the memory.
    pub(crate) fn landing(&self, data: &Data, minimum: usize) -> Option<Segment> {
        let left = usize::try_from(self.left).ok()?;
        let mut skip = usize::try_from(self.at).ok()?;
        for segment in data.segments() {
            if skip < segment.len() {
                let len = left.min(segment.len() - skip);
                return if len >= minimum.max(1) {
                    segment.part(skip, len).ok()
                } else {
                    None
                };
            }
            skip -= segment.len();
        }
        None
    }
}
