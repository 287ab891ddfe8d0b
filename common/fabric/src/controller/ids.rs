//! Identifiers of namespaces that were given none: derived from the subsystem's name and the namespace's
//! identifier, so that they are the same after every restart and differ between subsystems.
//!
//! The hash is FNV-1a of 128 bits: no protection against names that were built to collide, which only the
//! administrator of the node could choose. Changing it would change the identity of disks that hosts know.

use homi_spec::Nqn;

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// Sixteen bytes that belong to the namespace `nsid` of the subsystem (0: to the subsystem itself).
pub(super) fn derived(subsystem: &Nqn, nsid: u32) -> [u8; 16] {
    let bytes = subsystem
        .as_bytes()
        .iter()
        .copied()
        .chain([0])
        .chain(nsid.to_be_bytes());
    // A few rounds more than the input has, since FNV mixes its last bytes into few bits only.
    let padded = bytes.chain([0; 8]);
    let hash = padded.fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    hash.to_be_bytes()
}

/// The namespace's UUID: version 8 (custom) of RFC 9562.
pub(super) fn uuid(subsystem: &Nqn, nsid: u32) -> [u8; 16] {
    let mut bytes = derived(subsystem, nsid);
    if let Some(version) = bytes.get_mut(6) {
        *version = 0x80 | (*version & 0x0f);
    }
    if let Some(variant) = bytes.get_mut(8) {
        *variant = 0x80 | (*variant & 0x3f);
    }
    bytes
}

/// The namespace's EUI64, marked as locally administered: it holds no assigned OUI.
pub(super) fn eui64(subsystem: &Nqn, nsid: u32) -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = derived(subsystem, nsid);
    [(a & !0x01) | 0x02, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_identifiers_never_change() {
        let nqn = Nqn::new("nqn.2024-01.org.example:disk1").unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&uuid(&nqn, 1)), "7e21c2bb6dc7838785c01b5d9b0f66cd");
        assert_eq!(hex(&eui64(&nqn, 1)), "46c01b5d9b0f66cd");
        assert_ne!(uuid(&nqn, 1), uuid(&nqn, 2));
        assert_ne!(eui64(&nqn, 1), eui64(&nqn, 2));
        assert_ne!(
            derived(&nqn, 1),
            derived(&Nqn::new("nqn.2024-01.org.example:disk2").unwrap(), 1)
        );
    }
}
