//! Header and data digests: CRC-32/ISCSI ("CRC32C"), four bytes, least significant first (TCP Transport 1.0 §3.3.1.1).

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use homi_queue::{Data, MemoryError};

/// What the checksum is combined with at its start and end.
const INVERT: u32 = u32::MAX;

/// Bytes copied at a time out of memory that cannot be borrowed. The copy's buffer is cleared each time, hence the small one.
const CHUNK: usize = 2048;
const SMALL_CHUNK: usize = 256;

/// The digest of these bytes.
#[inline]
pub(crate) fn of(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// The digest of a part of an operation's memory.
pub(crate) fn of_data(data: &Data, at: usize, len: usize) -> Result<u32, MemoryError> {
    let mut running = Running::new();
    running.update_from(data, at, len)?;
    Ok(running.finish())
}

/// A digest over bytes that come in pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running(u32);

impl Running {
    pub(crate) const fn new() -> Self {
        Self(INVERT)
    }

    #[inline]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = if self.0 == INVERT {
            // The usual case, one piece, needs none of the streaming interface's setup.
            crc32_iscsi(bytes) ^ INVERT
        } else {
            let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(self.0));
            digest.update(bytes);
            let [a, b, c, d, ..] = digest.get_state().to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        };
    }

    /// Takes the bytes from an operation's memory, through a small copy because it may be shared with a device.
    pub(crate) fn update_from(&mut self, data: &Data, at: usize, len: usize) -> Result<(), MemoryError> {
        if len <= SMALL_CHUNK {
            self.update_through::<SMALL_CHUNK>(data, at, len)
        } else {
            self.update_through::<CHUNK>(data, at, len)
        }
    }

    fn update_through<const CHUNK: usize>(
        &mut self,
        data: &Data,
        at: usize,
        len: usize,
    ) -> Result<(), MemoryError> {
        let mut chunk = [0; CHUNK];
        data.for_each_part(at, len, |segment, start, len| {
            let mut done = 0;
            while done < len {
                let part = chunk.get_mut(..CHUNK.min(len - done)).unwrap_or(&mut []);
                segment.region().read(start + done, part)?;
                self.update(part);
                done += part.len();
            }
            Ok(())
        })
    }

    pub(crate) const fn finish(self) -> u32 {
        self.0 ^ INVERT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_queue::Region;
    use proptest::prelude::*;

    #[test]
    fn known_answers() {
        // RFC 3720 appendix B.4.
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..9_000), cuts in proptest::collection::vec(any::<usize>(), 0..8)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut running = Running::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                running.update(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(running.finish(), of(&bytes));
            let data = Data::whole(Region::from_vec(bytes.clone()));
            prop_assert_eq!(of_data(&data, 0, bytes.len()).unwrap(), of(&bytes));
        }
    }
}
