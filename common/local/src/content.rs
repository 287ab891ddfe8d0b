//! Copies and comparisons between an operation's memory and one region, without borrowing either.

use homi_queue::{Data, MemoryError, Region};

/// Bytes compared at a time; they are copied out first, because shared memory is never borrowed.
const STEP: usize = 4096;

/// Copies `len` bytes of the transfer, from its byte `at` on, into `region` at `to`.
pub(crate) fn copy_out(
    data: &Data,
    at: usize,
    region: &Region,
    to: usize,
    len: usize,
) -> Result<(), MemoryError> {
    let mut done = 0;
    data.for_each_part(at, len, |segment, start, part| {
        segment.region().copy_to(start, region, to + done, part)?;
        done += part;
        Ok(())
    })
}

/// Copies `len` bytes of `region`, from `from` on, into the transfer at its byte `at`.
pub(crate) fn copy_in(
    data: &Data,
    at: usize,
    region: &Region,
    from: usize,
    len: usize,
) -> Result<(), MemoryError> {
    let mut done = 0;
    data.for_each_part(at, len, |segment, start, part| {
        region.copy_to(from + done, segment.region(), start, part)?;
        done += part;
        Ok(())
    })
}

/// Whether `len` bytes of the transfer, from its byte `at` on, equal those of `region` from `from` on.
pub(crate) fn equal(
    data: &Data,
    at: usize,
    region: &Region,
    from: usize,
    len: usize,
) -> Result<bool, MemoryError> {
    let (mut ours, mut theirs) = ([0; STEP], [0; STEP]);
    let mut done = 0;
    while done < len {
        let part = STEP.min(len - done);
        let (Some(ours), Some(theirs)) = (ours.get_mut(..part), theirs.get_mut(..part)) else {
            break;
        };
        region.read(from + done, ours)?;
        data.read(at + done, theirs)?;
        if ours != theirs {
            return Ok(false);
        }
        done += part;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_copied_and_compared_as_one_transfer() {
        let list = Region::from_vec((0..=255).cycle().take(10_000).collect());
        let data = Data::List(vec![
            list.segment(5000..10_000).unwrap(),
            list.segment(0..5000).unwrap(),
        ]);
        let region = Region::allocate(12_000, 1).unwrap();
        copy_out(&data, 100, &region, 7, 9900).unwrap();
        assert!(equal(&data, 100, &region, 7, 9900).unwrap());
        assert!(!equal(&data, 0, &region, 7, 9900).unwrap());
        region.fill(7 + 9899, 1, 0).unwrap();
        assert!(!equal(&data, 100, &region, 7, 9900).unwrap());
        copy_in(&data, 100, &region, 7, 9900).unwrap();
        assert!(equal(&data, 100, &region, 7, 9900).unwrap());
        assert!(copy_in(&data, 101, &region, 7, 9900).is_err());
    }
}
