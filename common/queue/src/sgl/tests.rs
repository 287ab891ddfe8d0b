use super::build::LONGEST;
use super::*;
use crate::list::{NoLists, SegmentLists};
use crate::memory::{Region, Segment};
use proptest::prelude::*;

const LISTS: Iova = Iova(0x7000_0000_0010);
const READ: TransferDirection = TransferDirection::ControllerToHost;
const WRITE: TransferDirection = TransferDirection::HostToController;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova(start), len).unwrap()
}

fn data(start: u64, len: u64) -> SglPart {
    SglPart::Data(range(start, len))
}

fn keyed(address: u64, len: u32, key: u32) -> SglPart {
    SglPart::Keyed {
        address: RemoteAddress(address),
        len,
        key: RemoteKey(key),
        invalidate: false,
    }
}

fn everything() -> SglRules {
    SglRules {
        keyed: true,
        ..SglRules::default()
    }
}

fn memory(len: usize) -> Segment {
    Region::allocate(len, 8).unwrap().segment(0..len).unwrap()
}

/// Reads list memory as a device does.
fn reader(memory: &Segment) -> impl FnMut(Iova, &mut [u8]) -> Result<(), Unmapped> {
    move |at, to| {
        let mapped = range(LISTS.0, memory.len() as u64);
        let len = to.len() as u64;
        let offset = mapped.locate(at, len).ok_or(Unmapped { start: at, len })?;
        memory
            .region()
            .read(usize::try_from(offset).unwrap(), to)
            .unwrap();
        Ok(())
    }
}

fn merged(parts: &[SglPart]) -> Vec<SglPart> {
    let mut list = Vec::new();
    parts.iter().for_each(|part| part.append_to(&mut list));
    list
}

fn total(parts: &[SglPart]) -> u64 {
    parts.iter().map(SglPart::len).sum()
}

fn descriptor_at(memory: &Segment, index: usize) -> SglDescriptor {
    let mut sgl = Sgl::default();
    memory.region().read(index * 16, &mut sgl.0).unwrap();
    sgl.parse()
}

fn put(memory: &Segment, index: usize, descriptor: SglDescriptor) {
    memory
        .region()
        .write(index * 16, &descriptor.encode().unwrap().0)
        .unwrap();
}

fn at(index: usize) -> u64 {
    LISTS.0 + index as u64 * 16
}

fn block(address: u64, length: u32) -> SglDescriptor {
    SglDescriptor::DataBlock { address, length }
}

fn segment(index: usize, length: u32) -> SglDescriptor {
    SglDescriptor::Segment {
        address: at(index),
        length,
    }
}

fn last_segment(index: usize, length: u32) -> SglDescriptor {
    SglDescriptor::LastSegment {
        address: at(index),
        length,
    }
}

#[test]
fn one_part_goes_into_the_command() {
    let rules = everything();
    let build = |parts: &[SglPart]| {
        let built = rules.build(parts.iter().copied(), &mut NoLists);
        built.map(|sgl| sgl.parse())
    };
    assert_eq!(build(&[data(0x1001, 77)]), Ok(block(0x1001, 77)));
    assert_eq!(
        build(&[data(0x10, 1), data(9, 0), data(0x11, 2)]),
        Ok(block(0x10, 3))
    );
    assert_eq!(
        build(&[keyed(0x10, 4, 7)]),
        Ok(SglDescriptor::Keyed {
            address: 0x10,
            length: 4,
            key: 7,
            invalidate: false
        })
    );
    assert_eq!(
        build(&[SglPart::Discard { len: 3 }, SglPart::Discard { len: 4 }]),
        Ok(SglDescriptor::BitBucket { length: 7 })
    );
    assert_eq!(
        build(&[data(0x10, 1), data(0x20, 1)]),
        Err(SglBuildError::OutOfSegments { segments: 0 })
    );
    assert_eq!(
        rules.build([range(5, 5)], &mut NoLists).unwrap().parse(),
        block(5, 5)
    );
}

/// The last place of a segment holds a data block if it is the last, and names the next segment otherwise.
#[test]
fn segments_chain_in_their_last_descriptor_and_only_if_needed() {
    let rules = everything();
    let parts: Vec<_> = (1..=9).map(|n| data(n * 0x1000, n)).collect();
    let build = |count: usize| {
        let memory = memory(3 * 64);
        let mut lists = SegmentLists::new(&memory, LISTS, 64).unwrap();
        let root = rules.build(parts[..count].iter().copied(), &mut lists).unwrap();
        let len = total(&parts[..count]);
        assert_eq!(
            rules.decode(root, len, READ, reader(&memory)),
            Ok(parts[..count].to_vec())
        );
        (root.parse(), memory)
    };
    let (root, memory) = build(4);
    assert_eq!(root, last_segment(0, 64));
    assert_eq!(descriptor_at(&memory, 3), block(0x4000, 4));
    let (root, memory) = build(5);
    assert_eq!(root, segment(0, 64));
    assert_eq!(descriptor_at(&memory, 3), last_segment(4, 32));
    assert_eq!(descriptor_at(&memory, 4), block(0x4000, 4));
    assert_eq!(descriptor_at(&memory, 5), block(0x5000, 5));
    let (root, memory) = build(8);
    assert_eq!(root, segment(0, 64));
    assert_eq!(descriptor_at(&memory, 3), segment(4, 64));
    assert_eq!(descriptor_at(&memory, 7), last_segment(8, 32));
}

#[test]
fn long_parts_get_several_descriptors() {
    let memory = memory(64);
    let mut lists = SegmentLists::new(&memory, LISTS, 64).unwrap();
    let parts = [data(0x1000, 1 << 33), SglPart::Discard { len: u32::MAX.into() }];
    let root = everything().build(parts, &mut lists).unwrap();
    assert_eq!(root.parse(), last_segment(0, 64));
    assert_eq!(
        descriptor_at(&memory, 1),
        block(0x1000 + u64::from(LONGEST), LONGEST)
    );
    assert_eq!(
        descriptor_at(&memory, 3),
        SglDescriptor::BitBucket { length: u32::MAX }
    );
    assert_eq!(
        everything().decode(root, total(&parts), READ, reader(&memory)),
        Ok(parts.to_vec())
    );
}

#[test]
fn what_a_controller_cannot_do_is_not_built() {
    let memory = memory(256);
    let strict = SglRules {
        max_len: 1000,
        max_blocks: NonZeroU32::new(2),
        max_descriptors: 4,
        dwords: true,
        bit_buckets: false,
        ..SglRules::default()
    };
    let build = |rules: &SglRules, parts: &[SglPart]| {
        let mut lists = SegmentLists::new(&memory, LISTS, 256).unwrap();
        rules.build(parts.iter().copied(), &mut lists).unwrap_err()
    };
    assert_eq!(build(&strict, &[]), SglBuildError::Empty);
    assert_eq!(build(&strict, &[data(4, 0)]), SglBuildError::Empty);
    let not_dwords = |address, len| SglBuildError::NotDwords { address, len };
    assert_eq!(build(&strict, &[data(2, 4)]), not_dwords(2, 4));
    assert_eq!(build(&strict, &[data(4, 6)]), not_dwords(4, 6));
    let discard = SglPart::Discard { len: 4 };
    assert_eq!(build(&strict, &[discard]), SglBuildError::NoBitBuckets);
    assert_eq!(build(&strict, &[keyed(0, 4, 1)]), SglBuildError::NoKeys);
    assert_eq!(
        build(&strict, &[data(0, 600), data(800, 404)]),
        SglBuildError::TooLong { len: 1004, max: 1000 }
    );
    let three = [data(0, 4), data(8, 4), data(16, 4)];
    assert_eq!(build(&strict, &three), SglBuildError::TooManyBlocks { max: 2 });
    let few = SglRules {
        max_descriptors: 3,
        max_blocks: NonZeroU32::new(1),
        ..everything()
    };
    // Bit buckets are no data blocks, but descriptors; the segment's own counts, too.
    assert_eq!(
        build(&few, &[data(0, 4), discard, data(8, 4)]),
        SglBuildError::TooManyBlocks { max: 1 }
    );
    let few = SglRules {
        max_blocks: None,
        ..few
    };
    assert_eq!(
        build(&few, &[data(0, 4), discard, data(8, 4)]),
        SglBuildError::TooManyDescriptors { max: 3 }
    );
    let mut lists = SegmentLists::new(&memory, LISTS, 256).unwrap();
    assert!(few.build([data(0, 4), discard], &mut lists).is_ok());
    assert_eq!(
        build(&everything(), &[keyed(0, 1 << 24, 1)]),
        SglBuildError::KeyedTooLong { len: 1 << 24 }
    );
    let two = [data(0, 4), data(8, 4)];
    for (start, len) in [(LISTS.0 + 4, 256), (LISTS.0, 31)] {
        let mut lists = SegmentLists::new(&memory, Iova(start), len).unwrap();
        let refused = everything().build(two, &mut lists);
        assert!(
            matches!(refused, Err(SglBuildError::BadSegment { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn the_controller_states_its_rules() {
    let mut identify = IdentifyController::default();
    assert_eq!(SglRules::of(&identify, 0), Err(NoSgls { sgls: 0 }));
    identify.sgls = (sgls::SUPPORTED_DWORD | sgls::BIT_BUCKET).into();
    identify.msdbd = 16;
    let rules = SglRules::of(&identify, 1 << 20).unwrap();
    assert_eq!(
        rules,
        SglRules {
            max_len: 1 << 20,
            max_blocks: NonZeroU32::new(16),
            dwords: true,
            ..SglRules::default()
        }
    );
    identify.sgls = (sgls::SUPPORTED | sgls::KEYED | sgls::OVERSIZED).into();
    identify.msdbd = 0;
    let rules = SglRules::of(&identify, 1).unwrap();
    assert!(rules.keyed && rules.oversized && !rules.dwords && !rules.bit_buckets);
    assert_eq!(rules.max_blocks, None);
}

#[test]
fn bit_buckets_are_empty_when_the_host_sends() {
    let memory = memory(64);
    put(&memory, 0, block(0x1000, 8));
    put(&memory, 1, SglDescriptor::BitBucket { length: 100 });
    put(&memory, 2, block(0x2000, 8));
    let root = last_segment(0, 48).encode().unwrap();
    let decode = |len, direction| SglRules::default().decode(root, len, direction, reader(&memory));
    let (first, last) = (data(0x1000, 8), data(0x2000, 8));
    assert_eq!(
        decode(116, READ),
        Ok(vec![first, SglPart::Discard { len: 100 }, last])
    );
    assert_eq!(decode(16, WRITE), Ok(vec![first, last]));
    assert!(decode(116, WRITE).is_err());
}

#[test]
fn lists_longer_than_the_transfer_are_cut_where_that_is_allowed() {
    let memory = memory(64);
    put(&memory, 0, block(0x1000, 8));
    put(&memory, 1, block(0, 0));
    put(
        &memory,
        2,
        SglDescriptor::Keyed {
            address: 0,
            length: 8,
            key: 9,
            invalidate: false,
        },
    );
    put(&memory, 3, block(0x3000, 8));
    let root = last_segment(0, 64).encode().unwrap();
    let exact = everything();
    let loose = SglRules {
        oversized: true,
        ..exact
    };
    let all = vec![data(0x1000, 8), keyed(0, 8, 9), data(0x3000, 8)];
    assert_eq!(exact.decode(root, 24, READ, reader(&memory)), Ok(all));
    let error = exact.decode(root, 12, READ, reader(&memory)).unwrap_err();
    assert_eq!(
        error,
        SglWalkError::TooLong {
            described: 16,
            len: 12
        }
    );
    assert_eq!(error.status(), Status::SGL_DATA_LENGTH_INVALID);
    assert_eq!(
        loose.decode(root, 12, READ, reader(&memory)),
        Ok(vec![data(0x1000, 8), keyed(0, 4, 9)])
    );
    let error = loose.decode(root, 25, READ, reader(&memory)).unwrap_err();
    assert_eq!(
        error,
        SglWalkError::TooShort {
            described: 24,
            len: 25
        }
    );
    assert_eq!(loose.decode(root, 0, READ, reader(&memory)), Ok(vec![]));
}

#[test]
fn malformed_lists_are_refused_with_their_status() {
    let memory = memory(256);
    let rules = SglRules {
        max_descriptors: 64,
        dwords: true,
        max_len: 1 << 20,
        max_blocks: NonZeroU32::new(3),
        ..SglRules::default()
    };
    let check = |root: SglDescriptor, expected: SglWalkError, status: Status| {
        let error = rules
            .decode(root.encode().unwrap(), 4, READ, reader(&memory))
            .unwrap_err();
        assert_eq!(error, expected);
        assert_eq!(error.status(), status);
    };
    for length in [0, 1, 15, 17, u32::MAX] {
        check(
            last_segment(0, length),
            SglWalkError::SegmentLength { length },
            Status::SGL_INVALID_SEGMENT,
        );
    }
    let address = LISTS.0 + 4;
    check(
        SglDescriptor::Segment { address, length: 16 },
        SglWalkError::SegmentMisaligned {
            address: Iova(address),
        },
        Status::SGL_INVALID_SEGMENT,
    );
    check(
        last_segment(0, u32::MAX - 15),
        SglWalkError::TooManyDescriptors { max: 64 },
        Status::SGL_INVALID_COUNT,
    );
    check(
        SglDescriptor::LastSegment {
            address: u64::MAX - 7,
            length: 16,
        },
        SglWalkError::Overflow(AddressOverflow {
            start: Iova(u64::MAX - 7),
            len: 16,
        }),
        Status::DATA_TRANSFER_ERROR,
    );
    check(
        last_segment(16, 16),
        SglWalkError::Unmapped(Unmapped {
            start: Iova(at(16)),
            len: 16,
        }),
        Status::DATA_TRANSFER_ERROR,
    );
    put(&memory, 0, segment(1, 16));
    put(&memory, 1, block(0x1000, 4));
    check(
        last_segment(0, 16),
        SglWalkError::BeyondLast,
        Status::SGL_INVALID_SEGMENT,
    );
    check(segment(0, 32), SglWalkError::Misplaced, Status::SGL_INVALID_COUNT);
    check(
        segment(0, 16),
        SglWalkError::MissingSegment {
            descriptor: block(0x1000, 4),
        },
        Status::SGL_INVALID_COUNT,
    );
    (2..6).for_each(|index| put(&memory, index, block(0x1000, 0)));
    check(
        last_segment(2, 64),
        SglWalkError::TooManyBlocks { max: 3 },
        Status::SGL_INVALID_COUNT,
    );
    check(
        block(0x1001, 4),
        SglWalkError::NotDwords {
            address: 0x1001,
            length: 4,
        },
        Status::SGL_GRANULARITY_INVALID,
    );
    check(
        block(u64::MAX - 3, 8),
        SglWalkError::Overflow(AddressOverflow {
            start: Iova(u64::MAX - 3),
            len: 8,
        }),
        Status::DATA_TRANSFER_ERROR,
    );
    for descriptor in [
        SglDescriptor::Transport { length: 4 },
        SglDescriptor::InCapsule { offset: 0, length: 4 },
        SglDescriptor::Keyed {
            address: 0,
            length: 4,
            key: 1,
            invalidate: true,
        },
        Sgl([0x21; 16]).parse(),
    ] {
        check(
            descriptor,
            SglWalkError::Unsupported { descriptor },
            Status::SGL_TYPE_INVALID,
        );
    }
    let remote = SglDescriptor::Keyed {
        address: u64::MAX,
        length: 2,
        key: 1,
        invalidate: false,
    };
    let error = everything()
        .decode(remote.encode().unwrap(), 2, READ, reader(&memory))
        .unwrap_err();
    assert!(matches!(error, SglWalkError::RemoteOverflow { .. }));
    let error = rules.decode(Sgl::default(), (1 << 20) + 1, READ, reader(&memory));
    assert_eq!(error.unwrap_err().status(), Status::INVALID_FIELD);
}

/// Segments that name each other carry no data, so only the number of descriptors can end this.
#[test]
fn segments_that_name_each_other_end_at_the_limit() {
    let memory = memory(64);
    put(&memory, 0, segment(1, 16));
    put(&memory, 1, segment(0, 16));
    let mut reads = 0;
    let mut read = reader(&memory);
    let counting = |at, to: &mut [u8]| {
        reads += 1;
        read(at, to)
    };
    let rules = SglRules::default();
    let error = rules.decode(segment(0, 16).encode().unwrap(), 4096, READ, counting);
    assert_eq!(error, Err(SglWalkError::TooManyDescriptors { max: 65536 }));
    assert_eq!(reads, 65535);
}

fn parts() -> impl Strategy<Value = Vec<SglPart>> {
    let part = prop_oneof![
        6 => (0_u64..64, 0_u64..5).prop_map(|(page, pages)| data(page << 12, pages << 12)),
        3 => (any::<u32>(), 0_u64..10_000).prop_map(|(start, len)| data(start.into(), len)),
        1 => (any::<u32>(), 0_u32..10_000, any::<u32>()).prop_map(|(start, len, key)| keyed(start.into(), len, key)),
        1 => (0_u64..10_000).prop_map(|len| SglPart::Discard { len }),
        1 => (any::<u32>(), 0_u64..1 << 34).prop_map(|(start, len)| data(start.into(), len)),
    ];
    proptest::collection::vec(part, 0..80)
}

/// Descriptors that look right more often than not, in a memory of 32 places.
fn descriptors() -> impl Strategy<Value = Sgl> {
    let place = || (0_u64..34, 0_u32..10).prop_map(|(index, count)| (LISTS.0 + index * 16, count * 16));
    prop_oneof![
        3 => (any::<u64>(), 0_u32..64).prop_map(|(address, length)| block(address, length)),
        1 => (0_u32..64).prop_map(|length| SglDescriptor::BitBucket { length }),
        3 => place().prop_map(|(address, length)| SglDescriptor::Segment { address, length }),
        2 => place().prop_map(|(address, length)| SglDescriptor::LastSegment { address, length }),
    ]
    .prop_map(|descriptor| descriptor.encode().unwrap())
    .boxed()
    .prop_union(any::<[u8; 16]>().prop_map(Sgl).boxed())
}

proptest! {
    #[test]
    fn what_was_built_is_walked(parts in parts(), per_segment in 2_usize..100) {
        let rules = everything();
        let block_len = per_segment * 16;
        let memory = memory(400 * block_len);
        let mut lists = SegmentLists::new(&memory, LISTS, block_len).unwrap();
        let expected = merged(&parts);
        match rules.build(parts.iter().copied(), &mut lists) {
            Ok(root) => prop_assert_eq!(rules.decode(root, total(&parts), READ, reader(&memory)), Ok(expected)),
            Err(error) => {
                prop_assert_eq!(error, SglBuildError::Empty);
                prop_assert!(expected.is_empty());
            }
        }
    }

    #[test]
    fn the_walk_of_any_memory_ends(
        root in descriptors(),
        content in proptest::collection::vec(descriptors(), 32),
        len in 0_u64..256,
        oversized in any::<bool>(),
        max_descriptors in 1_u32..2000,
    ) {
        let rules = SglRules { oversized, max_descriptors, ..everything() };
        let memory = memory(32 * 16);
        for (index, sgl) in content.iter().enumerate() {
            memory.region().write(index * 16, &sgl.0).unwrap();
        }
        let (mut bytes, mut described) = (0, 0);
        let mut read = reader(&memory);
        let counting = |at: Iova, to: &mut [u8]| {
            bytes += to.len();
            read(at, to)
        };
        let outcome = rules.walk(root, len, READ, counting, |part| described += part.len());
        prop_assert!(bytes / 16 < max_descriptors as usize);
        prop_assert!(described <= len);
        if outcome.is_ok() {
            prop_assert_eq!(described, len);
        }
    }
}
