use super::*;
use crate::list::{NoLists, SegmentLists};
use crate::memory::{Region, Segment};
use proptest::prelude::*;

const LISTS: Iova = Iova(0x7000_0000_0000);

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova(start), len).unwrap()
}

fn rules(mps: u8) -> PrpRules {
    PrpRules {
        page: PageSize::from_mps(mps).unwrap(),
        max_len: 1 << 30,
    }
}

/// Memory for `count` lists.
fn memory(page: PageSize, count: usize) -> Segment {
    let len = count * page.0 as usize;
    Region::allocate(len, 8).unwrap().segment(0..len).unwrap()
}

fn lists(memory: &Segment, page: PageSize) -> SegmentLists<'_> {
    SegmentLists::new(memory, LISTS, page.0 as usize).unwrap()
}

/// Reads list memory as a device does.
fn reader(memory: &Segment) -> impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped> {
    move |at, to| {
        let mapped = range(LISTS.0, memory.len() as u64);
        let len = to.len() as u64;
        let offset = mapped.locate(at, len).ok_or(Unmapped { start: at, len })?;
        memory
            .region()
            .read(memory.start() + usize::try_from(offset).unwrap(), to)
            .unwrap();
        Ok(())
    }
}

fn merged(ranges: &[IovaRange]) -> Vec<IovaRange> {
    let mut list = Vec::new();
    ranges.iter().for_each(|range| range.append_to(&mut list));
    list
}

#[test]
fn page_sizes_are_those_of_the_controller() {
    assert_eq!(PageSize::from_mps(0), Ok(PageSize::SMALLEST));
    assert_eq!(PageSize::from_mps(9).unwrap().bytes(), 2 << 20);
    assert_eq!(PageSize::from_mps(10), Err(PageSizeError { mps: 10 }));
    let page = PageSize::SMALLEST;
    assert_eq!(page.entries(), 512);
    // Two pages and what a bad start adds still need a list only from the third page on.
    assert_eq!(
        (page.lists_for(0), page.lists_for(4100), page.lists_for(4101)),
        (0, 0, 1)
    );
    assert_eq!(page.lists_for(4 + 512 * 4096), 1);
    assert_eq!(page.lists_for(4 + 512 * 4096 + 1), 2);
    assert_eq!(page.lists_for(u64::MAX), (1_u64 << 52).div_ceil(511));
}

#[test]
fn one_and_two_pages_need_no_list() {
    let rules = rules(0);
    let build = |ranges: &[IovaRange]| rules.build(ranges.iter().copied(), &mut NoLists);
    let prp = |first, second| {
        Ok(Prp {
            first: Iova(first),
            second: Iova(second),
        })
    };
    assert_eq!(build(&[range(0x1ffc, 4)]), prp(0x1ffc, 0));
    assert_eq!(build(&[range(0x1000, 4096)]), prp(0x1000, 0));
    assert_eq!(build(&[range(0x1000, 4097)]), prp(0x1000, 0x2000));
    assert_eq!(
        build(&[range(0x1800, 0x800), range(0x9000, 100)]),
        prp(0x1800, 0x9000)
    );
    // Ranges that touch are one, wherever the seam is.
    assert_eq!(
        build(&[range(0x1800, 3), range(0x1803, 0x1000)]),
        prp(0x1800, 0x2000)
    );
    assert_eq!(build(&[range(u64::MAX - 4095, 4096)]), prp(u64::MAX - 4095, 0));
    assert_eq!(
        build(&[range(u64::MAX - 4095, 4096), range(0, 4)]),
        prp(u64::MAX - 4095, 0)
    );
    assert_eq!(
        build(&[range(0x1000, 8193)]),
        Err(PrpBuildError::OutOfLists { lists: 0 })
    );
}

#[test]
fn broken_rules_are_named() {
    let rules = PrpRules {
        max_len: 1 << 20,
        ..rules(1)
    };
    let memory = memory(rules.page, 1);
    let build = |ranges: &[IovaRange]| {
        rules
            .build(ranges.iter().copied(), &mut lists(&memory, rules.page))
            .unwrap_err()
    };
    let page = 8192;
    assert_eq!(build(&[]), PrpBuildError::Empty);
    assert_eq!(build(&[range(0x1000, 0)]), PrpBuildError::Empty);
    assert_eq!(
        build(&[range(0x1002, 8)]),
        PrpBuildError::FirstMisaligned { start: Iova(0x1002) }
    );
    assert_eq!(
        build(&[range(0x2000, 0x2000), range(0x9000, 8)]),
        PrpBuildError::StartsInsidePage {
            start: Iova(0x9000),
            page
        }
    );
    let first = range(0x2000, 0x1000);
    assert_eq!(
        build(&[first, range(0x8000, 8)]),
        PrpBuildError::EndsInsidePage { range: first, page }
    );
    assert_eq!(
        build(&[range(0, 1 << 20), range(1 << 20, 1)]),
        PrpBuildError::TooLong {
            len: (1 << 20) + 1,
            max: 1 << 20
        }
    );
    let three_pages = [range(0x2000, 0x2000 * 3)];
    let mut shifted = SegmentLists::new(&memory, Iova(0x1000), 8192).unwrap();
    assert_eq!(
        rules.build(three_pages, &mut shifted),
        Err(PrpBuildError::BadList {
            block: range(0x1000, page),
            page
        })
    );
    let mut short = SegmentLists::new(&memory, Iova(0x2000), 4096).unwrap();
    assert_eq!(
        rules.build(three_pages, &mut short),
        Err(PrpBuildError::BadList {
            block: range(0x2000, 4096),
            page
        })
    );
}

/// The last place of a list holds an entry if it is the last, and names the next list otherwise.
#[test]
fn lists_chain_in_their_last_entry_and_only_if_needed() {
    let rules = rules(0);
    let memory = memory(rules.page, 3);
    let base = 0x10_0000_0000;
    let entry = |list: usize, slot: usize| {
        let mut bytes = [0; 8];
        memory.region().read(list * 4096 + slot * 8, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    for (pages, lists_used) in [(513, 1), (514, 2), (1 + 511 + 512, 2), (1 + 511 + 513, 3)] {
        memory.region().fill(0, memory.len(), 0).unwrap();
        let transfer = range(base, pages * 4096);
        let prp = rules.build([transfer], &mut lists(&memory, rules.page)).unwrap();
        assert_eq!((prp.first, prp.second), (Iova(base), LISTS));
        assert_eq!(rules.page.lists_for(pages * 4096 - 4092), lists_used);
        let chained = entry(0, 511);
        if lists_used == 1 {
            assert_eq!(chained, base + 512 * 4096);
        } else {
            assert_eq!(chained, LISTS.0 + 4096);
            assert_eq!(entry(1, 0), base + 512 * 4096);
        }
        if lists_used == 3 {
            assert_eq!(entry(1, 511), LISTS.0 + 8192);
            assert_eq!((entry(2, 1), entry(2, 2)), (base + (pages - 1) * 4096, 0));
        }
        assert_eq!(
            rules.decode(prp, pages * 4096, reader(&memory)),
            Ok(vec![transfer])
        );
    }
}

#[test]
fn a_list_may_start_inside_a_page() {
    let rules = rules(0);
    let memory = memory(rules.page, 2);
    let write = |at: usize, entry: u64| memory.region().write(at, &entry.to_le_bytes()).unwrap();
    // One place is left in the first page, and it names the second list.
    write(4088, LISTS.0 + 4096);
    write(4096, 0x5000);
    write(4104, 0x6000);
    let prp = Prp {
        first: Iova(0x1000),
        second: Iova(LISTS.0 + 4088),
    };
    assert_eq!(
        rules.decode(prp, 4096 * 2 + 1, reader(&memory)),
        Ok(vec![range(0x1000, 4096), range(0x5000, 4097)])
    );
    // With two places, both hold pages.
    write(4080, 0x5000);
    write(4088, 0x6000);
    let prp = Prp {
        second: Iova(LISTS.0 + 4080),
        ..prp
    };
    assert_eq!(
        rules.decode(prp, 4096 * 2 + 1, reader(&memory)),
        Ok(vec![range(0x1000, 4096), range(0x5000, 4097)])
    );
}

#[test]
fn entries_with_offsets_are_refused_where_they_are_not_allowed() {
    let rules = rules(0);
    let memory = memory(rules.page, 1);
    let decode = |first, second, len| {
        let prp = Prp {
            first: Iova(first),
            second: Iova(second),
        };
        let error = rules.decode(prp, len, reader(&memory)).unwrap_err();
        (error.status(), error)
    };
    let misaligned = |entry, align| {
        (
            Status::PRP_OFFSET_INVALID,
            PrpWalkError::Misaligned {
                entry: Iova(entry),
                align,
            },
        )
    };
    assert_eq!(decode(0x1001, 0, 4), misaligned(0x1001, 4));
    assert_eq!(decode(0x1000, 0x2004, 4100), misaligned(0x2004, 4096));
    assert_eq!(decode(0x1000, LISTS.0 + 4, 8193), misaligned(LISTS.0 + 4, 8));
    memory.region().write(8, &0x3008_u64.to_le_bytes()).unwrap();
    assert_eq!(decode(0x1000, LISTS.0, 4096 * 3), misaligned(0x3008, 4096));
    memory.region().write(4088, &(LISTS.0 + 8).to_le_bytes()).unwrap();
    assert_eq!(
        decode(0x1000, LISTS.0 + 4088, 4096 * 3),
        misaligned(LISTS.0 + 8, 4096)
    );
    let (status, error) = decode(0x1000, 0x8000, 4096 * 3);
    assert_eq!(status, Status::DATA_TRANSFER_ERROR);
    assert_eq!(
        error,
        PrpWalkError::Unmapped(Unmapped {
            start: Iova(0x8000),
            len: 16
        })
    );
    let (status, error) = decode(0x1000, 0x2000, (1 << 30) + 1);
    assert_eq!(status, Status::INVALID_FIELD);
    assert!(matches!(error, PrpWalkError::TooLong { .. }));
}

/// A list that names itself as the next one is followed only as far as the transfer goes.
#[test]
fn a_list_that_names_itself_ends_with_the_transfer() {
    let rules = rules(0);
    let memory = memory(rules.page, 1);
    memory.region().write(4088, &LISTS.0.to_le_bytes()).unwrap();
    let prp = Prp {
        first: Iova(0),
        second: LISTS,
    };
    let (mut reads, mut pages) = (0_u64, 0_u64);
    let mut read = reader(&memory);
    let counting = |at, to: &mut [u8]| {
        reads += 1;
        read(at, to)
    };
    rules.walk(prp, rules.max_len, counting, |_| pages += 1).unwrap();
    assert_eq!(pages, rules.max_len / 4096);
    assert!(reads <= pages / 511 * 8 + 8);
}

fn transfer() -> impl Strategy<Value = (u8, Vec<IovaRange>)> {
    let piece = (1_u64..120, 0_u64..40, any::<bool>());
    let pieces = proptest::collection::vec(piece, 1..12);
    (0_u8..5, pieces, 0_u64..1024, 1_u64..=4096).prop_map(|(mps, pieces, offset, tail)| {
        let page = 4096_u64 << mps;
        let (mut at, mut ranges) = (page, Vec::new());
        let last = pieces.len() - 1;
        for (index, (pages, gap, split)) in pieces.into_iter().enumerate() {
            let start = if index == 0 { at + offset * 4 % page } else { at };
            let whole = at + pages * page;
            let end = if index == last {
                (start + 1).max(whole - tail)
            } else {
                whole
            };
            let middle = start + (end - start) / 2;
            if split {
                // A seam anywhere, as between two registrations of one buffer.
                ranges.extend([range(start, middle - start), range(middle, end - middle)]);
            } else {
                ranges.push(range(start, end - start));
            }
            at = whole + gap * page;
        }
        (mps, ranges)
    })
}

proptest! {
    #[test]
    fn what_was_built_is_walked((mps, ranges) in transfer()) {
        let rules = rules(mps);
        let len: u64 = ranges.iter().map(IovaRange::len).sum();
        let needed = usize::try_from(rules.page.lists_for(len)).unwrap();
        let memory = memory(rules.page, needed);
        let prp = rules.build(ranges.iter().copied(), &mut lists(&memory, rules.page)).unwrap();
        prop_assert_eq!(rules.decode(prp, len, reader(&memory)), Ok(merged(&ranges)));
        let mut sqe = Sqe::new(1, 1);
        prp.apply(&mut sqe);
        prop_assert_eq!(Prp::of(&sqe), prp);
    }

    /// Whatever the ranges are: either a rule is named, or the walk gives them back.
    #[test]
    fn any_ranges_are_built_right_or_refused(
        ranges in proptest::collection::vec(
            (0_u64..20, prop_oneof![3 => Just(0_u64), 1 => 0_u64..0x1000], prop_oneof![3 => Just(0x1000_u64), 1 => 0_u64..0x3000]),
            0..6,
        )
    ) {
        let rules = rules(0);
        let memory = memory(rules.page, 1);
        let ranges: Vec<_> = ranges.iter().map(|(page, at, len)| range(page * 0x1000 + at, *len)).collect();
        let len: u64 = ranges.iter().map(IovaRange::len).sum();
        if let Ok(prp) = rules.build(ranges.iter().copied(), &mut lists(&memory, rules.page)) {
            prop_assert_eq!(rules.decode(prp, len, reader(&memory)), Ok(merged(&ranges)));
        }
    }

    /// Memory in which every aligned word is a hash of its address, rounded so that it may pass as an entry.
    #[test]
    fn the_walk_of_any_memory_ends(
        first in any::<u64>(), second in any::<u64>(), len in 0_u64..1 << 26, seed in any::<u64>(),
        mps in 0_u8..=9, holes in any::<bool>(),
    ) {
        let rules = rules(mps);
        let page = rules.page.bytes();
        let (mut reads, mut bytes) = (0_u64, 0_u64);
        let read = |at: Iova, to: &mut [u8]| {
            reads += 1;
            for (index, word) in to.chunks_mut(8).enumerate() {
                let value = (at.0.wrapping_add(index as u64 * 8) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(&(value / page * page).to_le_bytes());
            }
            if holes && (at.0 >> 32).is_multiple_of(4) { Err(Unmapped { start: at, len: to.len() as u64 }) } else { Ok(()) }
        };
        let prp = Prp { first: Iova(first & !3), second: Iova(second & !7) };
        let outcome = rules.walk(prp, len, read, |range| bytes += range.len());
        prop_assert!(reads <= len / page / 32 + 8);
        prop_assert!(bytes <= len);
        if outcome.is_ok() {
            prop_assert_eq!(bytes, len);
        }
    }
}
