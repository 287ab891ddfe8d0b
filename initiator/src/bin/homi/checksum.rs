//! Checksums of what is copied.

use clap::ValueEnum;
use crc_fast::CrcAlgorithm;
use sha2::{Digest as _, Sha256};

use crate::output;

/// How to compute a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    /// What `sha256sum` prints
    Sha256,
    /// CRC-32C: several times faster, finds accidents but not intent
    Crc32c,
    /// No checksum
    None,
}

impl Algorithm {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Crc32c => "crc32c",
            Self::None => "none",
        }
    }
}

/// A checksum in the making.
pub(crate) enum Hasher {
    Sha256(Box<Sha256>),
    Crc32c(Box<crc_fast::Digest>),
    None,
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Box::new(Sha256::new())),
            Algorithm::Crc32c => Self::Crc32c(Box::new(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi))),
            Algorithm::None => Self::None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Crc32c(hasher) => hasher.update(bytes),
            Self::None => {}
        }
    }

    /// The checksum in hexadecimal digits; `None` if there is none.
    pub(crate) fn finish(self) -> Option<String> {
        match self {
            Self::Sha256(hasher) => Some(output::hex(&hasher.finalize())),
            Self::Crc32c(hasher) => Some(format!("{:08x}", hasher.finalize())),
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_known_ones() {
        let of = |algorithm| {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"12345");
            hasher.update(b"6789");
            hasher.finish()
        };
        assert_eq!(of(Algorithm::Crc32c).unwrap(), "e3069283");
        assert_eq!(
            of(Algorithm::Sha256).unwrap(),
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"
        );
        assert_eq!(of(Algorithm::None), None);
    }
}
