//! [`PciAddress`]: domain, bus, device and function.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `0000:01:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no pci address: write domain:bus:device.function in hexadecimal, as 0000:01:00.0 or 01:00.0"
)]
pub struct PciAddressError {
    /// What was given.
    pub text: String,
}

impl PciAddress {
    /// A function's address, or `None` if the device is above 31 or the function above 7.
    #[must_use]
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self {
            domain,
            bus,
            device,
            function,
        })
    }

    /// The PCI domain (segment).
    #[must_use]
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function of its device, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }
}

fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    // `from_str_radix` takes a sign, which is none of a number's digits here.
    let valid = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    /// Reads `DDDD:BB:DD.F`, or `BB:DD.F` for domain 0. A domain may have up to eight digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (front, function) = text.rsplit_once('.')?;
            let mut parts = front.rsplit(':');
            let device = hex(parts.next()?, 2..=2)?;
            let bus = hex(parts.next()?, 2..=2)?;
            let domain = match parts.next() {
                Some(domain) => hex(domain, 4..=8)?,
                None => 0,
            };
            if parts.next().is_some() {
                return None;
            }
            let function = hex(function, 1..=1)?;
            Self::new(
                domain,
                u8::try_from(bus).ok()?,
                u8::try_from(device).ok()?,
                u8::try_from(function).ok()?,
            )
        };
        parse().ok_or_else(|| PciAddressError { text: text.into() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_lspci_writes_them() {
        let address: PciAddress = "0000:01:1f.7".parse().unwrap();
        assert_eq!(
            (
                address.domain(),
                address.bus(),
                address.device(),
                address.function()
            ),
            (0, 1, 31, 7)
        );
        assert_eq!("01:1f.7".parse(), Ok(address));
        let far: PciAddress = "10000:e1:00.0".parse().unwrap();
        assert_eq!(far.to_string(), "10000:e1:00.0");
        for bad in [
            "",
            "01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0:0:01:00.0",
            "0000:01:00.0 ",
            "0000:+1:00.0",
            "zzzz:01:00.0",
            "123456789:01:00.0",
        ] {
            let error = bad.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("0000:01:00.0"), "{error}");
        }
    }
}
