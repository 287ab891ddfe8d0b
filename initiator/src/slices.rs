//! [`fill`] and [`look`]: the bytes of a region as a slice, for readers, writers and hashers that want one.
//!
//! A region that nobody else refers to is borrowed. One that somebody keeps, such as a queue that has it registered so that a peer may
//! reach it, is not: its bytes are copied between it and a scratch buffer.

use std::ops::Range;

use homi_queue::{Buffer, Data, MemoryError, Region};

/// Has `f` write to the first `len` bytes of a region; bytes that it leaves alone are undefined. Returns the region, and what `f` returns.
///
/// # Errors
/// [`MemoryError::OutOfBounds`] if the region has fewer bytes.
pub fn fill<R>(
    region: Region,
    len: usize,
    scratch: &mut Vec<u8>,
    f: impl FnOnce(&mut [u8]) -> R,
) -> Result<(Region, R), MemoryError> {
    let bounds = region.segment(0..len)?;
    drop(bounds);
    match Buffer::try_from_data(Data::whole(region)) {
        Ok(mut buffer) => {
            let result = f(buffer.get_mut(..len).unwrap_or(&mut []));
            Ok((buffer.into_region(), result))
        }
        Err(data) => {
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            let bytes = scratch.get_mut(..len).unwrap_or(&mut []);
            let result = f(bytes);
            data.write(0, bytes)?;
            Ok((region_of(data)?, result))
        }
    }
}

/// Has `f` look at bytes of a region. Returns the region, and what `f` returns.
///
/// # Errors
/// [`MemoryError::OutOfBounds`] if the region does not have them all.
pub fn look<R>(
    region: Region,
    range: Range<usize>,
    scratch: &mut Vec<u8>,
    f: impl FnOnce(&[u8]) -> R,
) -> Result<(Region, R), MemoryError> {
    let len = region.segment(range.clone())?.len();
    match Buffer::try_from_data(Data::whole(region)) {
        Ok(buffer) => {
            let result = f(buffer.get(range).unwrap_or(&[]));
            Ok((buffer.into_region(), result))
        }
        Err(data) => {
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            let bytes = scratch.get_mut(..len).unwrap_or(&mut []);
            data.read(range.start, bytes)?;
            let result = f(bytes);
            Ok((region_of(data)?, result))
        }
    }
}

/// The region that was made data whole.
fn region_of(data: Data) -> Result<Region, MemoryError> {
    match data {
        Data::One(segment) => Ok(segment.region().clone()),
        // It was one segment before.
        _ => Err(MemoryError::Shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_whether_the_region_is_kept_or_not() {
        for kept in [false, true] {
            let region = Region::allocate(100, 8).unwrap();
            let keeper = kept.then(|| region.clone());
            let mut scratch = Vec::new();
            let (region, sum) = fill(region, 10, &mut scratch, |bytes| {
                bytes.fill(7);
                bytes.len()
            })
            .unwrap();
            assert_eq!(sum, 10);
            let (region, seen) = look(region, 8..12, &mut scratch, <[u8]>::to_vec).unwrap();
            assert_eq!(seen, [7, 7, 0, 0]);
            assert_eq!(scratch.is_empty(), !kept, "copied only if it is kept");
            assert!(fill(region.clone(), 101, &mut scratch, |_| ()).is_err());
            assert!(look(region, 99..101, &mut scratch, |_| ()).is_err());
            drop(keeper);
        }
    }
}
