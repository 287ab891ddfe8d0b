//! [`Acs`]: access control services, which decide whether peers may talk without going through the root.

/// Offset of the first extended capability in configuration space (PCIe Base 6.0 §7.6.3).
const EXTENDED: usize = 0x100;
/// Bytes of extended configuration space.
const CONFIG: usize = 0x1000;
/// Extended capability ID of ACS (PCIe Base 6.0 §7.7.11).
const ACS: u32 = 0x000d;
/// Bit of P2P request redirect in both registers.
const REQUEST_REDIRECT: u16 = 1 << 2;
/// Bit of P2P completion redirect in both registers.
const COMPLETION_REDIRECT: u16 = 1 << 3;
/// Bit of upstream forwarding in both registers.
const UPSTREAM_FORWARDING: u16 = 1 << 4;
/// Bit of source validation in both registers.
const SOURCE_VALIDATION: u16 = 1 << 0;

/// Access control services of a port (PCIe Base 6.0 §7.7.11): what it can do, and what is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acs {
    /// The capability register.
    pub capabilities: u16,
    /// The control register.
    pub control: u16,
}

impl Acs {
    /// Finds it in a function's configuration space. `None` if the function has none, and if there are not enough bytes to tell: without
    /// privileges the kernel shows the first 64.
    #[must_use]
    pub fn find(config: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = config.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut at = EXTENDED;
        // A broken list may go in circles: there is room for no more capabilities than this.
        for _ in 0..(CONFIG - EXTENDED) / 8 {
            let header = word(at)?;
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header & 0xffff == ACS {
                let [a, b, c, d] = word(at + 4)?.to_le_bytes();
                return Some(Self {
                    capabilities: u16::from_le_bytes([a, b]),
                    control: u16::from_le_bytes([c, d]),
                });
            }
            at = usize::try_from(header >> 20).ok()?;
            if at < EXTENDED {
                return None;
            }
        }
        None
    }

    /// Whether requests between peers below the port's switch are sent up to the root, so that the IOMMU sees them.
    #[must_use]
    pub const fn redirects_requests(self) -> bool {
        self.control & REQUEST_REDIRECT != 0
    }

    /// Whether functions behind it are kept apart: what the kernel wants before it gives each an IOMMU group of its own.
    #[must_use]
    pub const fn isolates(self) -> bool {
        let wanted = SOURCE_VALIDATION | REQUEST_REDIRECT | COMPLETION_REDIRECT | UPSTREAM_FORWARDING;
        self.control & wanted == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_found_in_its_list() {
        let mut config = vec![0_u8; CONFIG];
        let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x100, 0x1481_0001);
        put(0x148, 0x1601_000d);
        put(0x14c, 0x001d_005f);
        let acs = Acs::find(&config).unwrap();
        assert_eq!((acs.capabilities, acs.control), (0x5f, 0x1d));
        assert!(acs.redirects_requests() && acs.isolates());
        assert_eq!(Acs::find(&config[..64]), None);
        assert_eq!(Acs::find(&config[..0x14a]), None);
    }

    #[test]
    fn a_list_in_circles_ends() {
        let mut config = vec![0_u8; CONFIG];
        config[0x100..0x104].copy_from_slice(&0x1001_0001_u32.to_le_bytes());
        assert_eq!(Acs::find(&config), None);
        config[0x100..0x104].copy_from_slice(&0x0101_0001_u32.to_le_bytes());
        assert_eq!(Acs::find(&config), None);
        assert_eq!(Acs::find(&[0xff; CONFIG]), None);
        assert_eq!(Acs::find(&[0; CONFIG]), None);
    }
}
