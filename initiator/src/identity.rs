//! Who this host is: an NQN and a host identifier that stay the same between runs without anybody configuring them.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};

use homi_spec::Nqn;
use homi_spec::nqn::UUID_PREFIX;

/// Mixed into the machine id, which its documentation asks not to show to the network as it is.
const SALT: u64 = 0x686f_6d69_2068_6f73;

/// The host NQN of this machine: made from its machine id if it has one, from random numbers otherwise.
pub(crate) fn default_host_nqn() -> Nqn {
    let uuid = match machine_id() {
        Some(id) => uuid_from(mix(id.as_bytes(), SALT), mix(id.as_bytes(), !SALT)),
        None => uuid_from(random(), random()),
    };
    Nqn::new(&format!("{UUID_PREFIX}{}", format_uuid(&uuid))).unwrap_or_else(|_| Nqn::discovery())
}

/// The host identifier that goes with a host NQN: its UUID, or a hash of a name without one. Every connection of a
/// host must carry the same one, so it may depend on nothing else.
pub(crate) fn host_id_of(nqn: &Nqn) -> [u8; 16] {
    nqn.as_str()
        .strip_prefix(UUID_PREFIX)
        .and_then(parse_uuid)
        .unwrap_or_else(|| uuid_from(mix(nqn.as_bytes(), SALT), mix(nqn.as_bytes(), !SALT)))
}

fn machine_id() -> Option<String> {
    ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .into_iter()
        .find_map(|path| {
            let id = fs::read_to_string(path).ok()?;
            let id = id.trim();
            (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .then(|| id.to_ascii_lowercase())
        })
}

/// FNV-1a with a final avalanche: stable between releases and machines, which the standard library's hasher is not.
fn mix(bytes: &[u8], seed: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Random bits from the standard library's per-process seed: unique is enough, they guard no secret.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A UUID of version 8 (custom) and the usual variant (RFC 9562).
fn uuid_from(high: u64, low: u64) -> [u8; 16] {
    let bits = (u128::from(high) << 64) | u128::from(low);
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    bits.to_be_bytes()
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub(crate) fn format_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    (digits.len() == 32)
        .then(|| u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_well_formed_and_its_id_is_its_uuid() {
        let nqn = default_host_nqn();
        assert!(nqn.is_well_formed(), "{nqn}");
        assert!(nqn.as_str().ends_with(&format_uuid(&host_id_of(&nqn))));
    }

    #[test]
    fn ids_of_names_are_stable_and_differ() {
        let a = Nqn::new("nqn.2024-01.org.example:a").unwrap();
        let b = Nqn::new("nqn.2024-01.org.example:b").unwrap();
        assert_eq!(host_id_of(&a), host_id_of(&a));
        assert_ne!(host_id_of(&a), host_id_of(&b));
        // Pinned: an id that changed between releases would look like another host to reservations.
        assert_eq!(
            format_uuid(&host_id_of(&a)),
            "4769c969-653c-8cce-92a4-782f8eb1d442"
        );
    }
}
