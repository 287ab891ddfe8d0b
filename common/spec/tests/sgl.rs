//! SGL descriptors: golden bytes and round trips.

use homi_spec::{Sgl, SglDescriptor};
use proptest::prelude::*;

#[test]
fn golden() {
    for (descriptor, bytes) in [
        (
            SglDescriptor::DataBlock {
                address: 0x0102_0304_0506_0708,
                length: 0x1112_1314,
            },
            [8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0, 0, 0, 0x00],
        ),
        (
            SglDescriptor::InCapsule {
                offset: 0x10,
                length: 4096,
            },
            [0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x01],
        ),
        (
            SglDescriptor::BitBucket { length: 512 },
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x10],
        ),
        (
            SglDescriptor::Segment {
                address: 0x1000,
                length: 64,
            },
            [0, 0x10, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0x20],
        ),
        (
            SglDescriptor::LastSegment {
                address: 0x1000,
                length: 32,
            },
            [0, 0x10, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0x30],
        ),
        (
            SglDescriptor::Keyed {
                address: 0x0102_0304_0506_0708,
                length: 0x11_2233,
                key: 0xaabb_ccdd,
                invalidate: false,
            },
            [
                8, 7, 6, 5, 4, 3, 2, 1, 0x33, 0x22, 0x11, 0xdd, 0xcc, 0xbb, 0xaa, 0x40,
            ],
        ),
        (
            SglDescriptor::Keyed {
                address: 0,
                length: 0xff_ffff,
                key: 1,
                invalidate: true,
            },
            [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0x4f],
        ),
        (
            SglDescriptor::Transport { length: 0x8000_0000 },
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x5a],
        ),
    ] {
        assert_eq!(descriptor.encode().unwrap(), Sgl(bytes), "{descriptor:?}");
        assert_eq!(Sgl(bytes).parse(), descriptor);
    }
}

#[test]
fn a_keyed_length_beyond_24_bits_is_refused_not_cut() {
    let error = Sgl::keyed(0, 0x0100_0000, 1, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a keyed sgl descriptor carries at most 16777215 bytes, 16777216 were given; split the transfer"
    );
}

#[test]
fn lengths_of_data() {
    assert_eq!(Sgl::transport(77).parse().data_length(), 77);
    assert_eq!(
        SglDescriptor::Segment {
            address: 0,
            length: 64
        }
        .data_length(),
        0
    );
}

proptest! {
    #[test]
    fn any_bytes_parse_and_unknown_ones_survive(bytes in any::<[u8; 16]>()) {
        let parsed = Sgl(bytes).parse();
        let again = parsed.encode().unwrap().parse();
        prop_assert_eq!(again, parsed);
        if let SglDescriptor::Unknown { type_, subtype, .. } = parsed {
            prop_assert_eq!((type_ << 4) | subtype, bytes[15]);
            prop_assert_eq!(parsed.encode().unwrap(), Sgl(bytes));
        }
    }

    #[test]
    fn keyed(address: u64, length in 0_u32..0x0100_0000, key: u32, invalidate: bool) {
        let sgl = Sgl::keyed(address, length, key, invalidate).unwrap();
        prop_assert_eq!(sgl.parse(), SglDescriptor::Keyed { address, length, key, invalidate });
    }
}
