//! Headers that cannot be.

use homi_queue::Command;
use homi_spec::Sgl;
use homi_spec::tcp::FatalError;

use super::{Field, INVALID, terminated};
use crate::harness::Harness;
use crate::peer::End;
use crate::units::Units;

/// Header fields of capsules and data that cannot be.
pub fn headers_that_cannot_be<H: Harness>() {
    let mut field = Field::<H>::new();
    let units = Units::PLAIN;
    let capsule = units.capsule(Command::flush(1).0, &[]);
    let mut write = Command::write(1, 0, 8).0;
    write.set_sgl(Sgl::in_capsule(0, 4096));
    let with_data = units.capsule(write, &[1; 4096]);
    let with = |unit: &[u8], at: usize, bytes: &[u8]| {
        let mut unit = unit.to_vec();
        unit[at..at + bytes.len()].copy_from_slice(bytes);
        unit
    };
    let length = |unit: &[u8], length: u32| with(unit, 4, &length.to_le_bytes());
    for (unit, expected) in [
        // HLEN.
        (with(&capsule, 2, &[0]), terminated(INVALID, 2)),
        (with(&capsule, 2, &[71]), terminated(INVALID, 2)),
        (with(&capsule, 2, &[255]), terminated(INVALID, 2)),
        // Digests that were not negotiated.
        (with(&capsule, 1, &[1]), terminated(INVALID, 1)),
        (with(&with_data, 1, &[2]), terminated(INVALID, 1)),
        // PLEN: too short, just too long, far too long.
        (length(&capsule, 0), terminated(INVALID, 3)),
        (length(&capsule, 71), terminated(INVALID, 3)),
        (
            length(&with_data, u32::MAX),
            terminated(FatalError::LIMIT_EXCEEDED, 0),
        ),
        (
            length(&with_data, 72 + (16 << 10) + 4),
            terminated(FatalError::LIMIT_EXCEEDED, 0),
        ),
        // PDO: inside the header, beyond the unit, not aligned.
        (with(&with_data, 3, &[0]), terminated(INVALID, 3)),
        (with(&with_data, 3, &[8]), terminated(INVALID, 3)),
        (with(&with_data, 3, &[73]), terminated(INVALID, 3)),
    ] {
        let (_admin, mut io) = field.connected(units);
        io.send(&unit[..72]);
        assert_eq!(io.end(), expected, "{:02x?}", &unit[..8]);
    }
    field.survives();
}

/// HLEN of 255 with header digests, which is where others wrote past a buffer (CVE-2025-21927, at the other end).
pub fn a_long_header_with_a_digest<H: Harness>() {
    let mut field = Field::<H>::new();
    for hlen in [73, 128, 255] {
        let (_admin, mut io) = field.connected(Units::DIGESTS);
        let mut unit = Units::DIGESTS.capsule(Command::flush(1).0, &[]);
        unit[2] = hlen;
        unit.resize(512, 0xaa);
        io.send(&unit);
        assert_eq!(io.end(), terminated(INVALID, 2));
    }
    field.survives();
}

/// A header that does not match its digest.
pub fn a_wrong_header_digest<H: Harness>() {
    let mut field = Field::<H>::new();
    for at in [4, 30, 71, 72, 75] {
        let (_admin, mut io) = field.connected(Units::DIGESTS);
        let mut unit = Units::DIGESTS.capsule(Command::flush(1).0, &[]);
        unit[at] ^= 0x40;
        // A length that is wrong is noticed before the digest is.
        let digest = u32::from_le_bytes([unit[72], unit[73], unit[74], unit[75]]);
        io.send(&unit);
        let end = io.end();
        if at == 4 {
            assert!(matches!(end, End::Terminated(..)), "{end:?}");
        } else {
            assert_eq!(
                end,
                terminated(FatalError::HEADER_DIGEST_ERROR, digest),
                "byte {at}"
            );
        }
    }
    field.survives();
}
