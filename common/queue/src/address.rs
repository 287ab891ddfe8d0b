//! Addresses as devices and peers see them: [`Iova`], [`BusAddress`], [`RemoteAddress`] and [`RemoteKey`], and
//! [`IovaRange`], a stretch of device-visible memory that is known not to wrap.
//!
//! One byte has a different address in every domain that can reach it. Each domain has its own type, so an address
//! of one cannot be given to another by mistake; arithmetic on them is checked, because lengths come from peers.
//! Where a [`Region`](crate::Region) lies in which domain is the business of whoever mapped or registered it.

use std::fmt;

macro_rules! address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, or `None` past the end of the address space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `bytes` before, or `None` before the start of the address space.
            #[must_use]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(difference) => Some(Self(difference)),
                    None => None,
                }
            }

            /// How many bytes this address lies after `base`, or `None` if it lies before.
            #[must_use]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// Bytes from the last multiple of `unit`. A `unit` of 0 has none, so the answer is the address.
            #[must_use]
            pub const fn offset_in(self, unit: u64) -> u64 {
                match self.0.checked_rem(unit) {
                    Some(rest) => rest,
                    None => self.0,
                }
            }

            /// Whether the address is a multiple of `unit`.
            #[must_use]
            pub const fn is_aligned(self, unit: u64) -> bool {
                self.offset_in(unit) == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// An address that a device uses: what PRP entries and SGL descriptors hold. An IOMMU translates it, if there is one.
    Iova
}
address! {
    /// An address on the bus: of host memory or of a device's BAR, after any translation.
    BusAddress
}
address! {
    /// A virtual address in a remote host's registered memory; it means something only with its [`RemoteKey`].
    RemoteAddress
}

impl BusAddress {
    /// The address by which a device reaches this place when no IOMMU stands between it and the bus.
    #[must_use]
    pub const fn untranslated(self) -> Iova {
        Iova(self.0)
    }
}

/// A key that lets a remote peer reach registered memory (an RDMA rkey).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct RemoteKey(pub u32);

impl fmt::Display for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteKey({:#x})", self.0)
    }
}

/// A range goes past the end of its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {start} go past the end of the address space")]
pub struct AddressOverflow {
    /// First byte.
    pub start: Iova,
    /// Length in bytes.
    pub len: u64,
}

/// Device-visible memory that a device or its model asked for is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no {len} bytes are mapped at {start}")]
pub struct Unmapped {
    /// First byte asked for.
    pub start: Iova,
    /// Length in bytes.
    pub len: u64,
}

/// Bytes that lie side by side for a device. The last byte is inside the address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IovaRange {
    start: Iova,
    len: u64,
}

impl IovaRange {
    /// `len` bytes from `start` on.
    ///
    /// # Errors
    /// [`AddressOverflow`] if the last byte would lie past the end of the address space.
    pub const fn new(start: Iova, len: u64) -> Result<Self, AddressOverflow> {
        match len.checked_sub(1) {
            Some(last) if start.checked_add(last).is_none() => Err(AddressOverflow { start, len }),
            _ => Ok(Self { start, len }),
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(&self) -> Iova {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One past the last byte, or `None` if that is the end of the address space.
    #[must_use]
    pub const fn end(&self) -> Option<Iova> {
        self.start.checked_add(self.len)
    }

    /// The part that starts `at` bytes in and is `len` bytes long, or `None` if that is not inside.
    #[must_use]
    pub fn part(&self, at: u64, len: u64) -> Option<Self> {
        let end = at.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // `at == len` with the range at the very end of the address space has no address.
        let start = self.start.checked_add(at)?;
        Some(Self { start, len })
    }

    /// Where in this range `len` bytes from `start` on lie, or `None` if they are not all inside.
    #[must_use]
    pub fn locate(&self, start: Iova, len: u64) -> Option<u64> {
        let at = start.offset_from(self.start)?;
        (at.checked_add(len)? <= self.len).then_some(at)
    }

    /// This range and the one that begins where it ends as one, or `None` if they do not touch in that order.
    #[must_use]
    pub fn joined(&self, next: &Self) -> Option<Self> {
        if self.end() != Some(next.start) {
            return None;
        }
        let len = self.len.checked_add(next.len)?;
        Self::new(self.start, len).ok()
    }

    /// Appends this range to a list, as part of the list's last one if it continues that. Empty ranges vanish.
    pub fn append_to(self, list: &mut Vec<Self>) {
        if self.is_empty() {
            return;
        }
        if let Some(last) = list.last_mut()
            && let Some(joined) = last.joined(&self)
        {
            *last = joined;
        } else {
            list.push(self);
        }
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IovaRange({} + {:#x})", self.start, self.len)
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.len, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> IovaRange {
        IovaRange::new(Iova(start), len).unwrap()
    }

    #[test]
    fn arithmetic_is_checked() {
        assert_eq!(Iova(u64::MAX).checked_add(1), None);
        assert_eq!(Iova(8).checked_add(8), Some(Iova(16)));
        assert_eq!(BusAddress(1).checked_sub(2), None);
        assert_eq!(RemoteAddress(9).offset_from(RemoteAddress(4)), Some(5));
        assert_eq!(RemoteAddress(4).offset_from(RemoteAddress(9)), None);
        assert!(Iova(0x3000).is_aligned(0x1000) && !Iova(0x3004).is_aligned(0x1000));
        assert!(!Iova(1).is_aligned(0));
        assert_eq!(BusAddress(7).untranslated(), Iova(7));
        assert_eq!(
            format!("{} {:?} {:?}", Iova(0x10), BusAddress(0x20), RemoteKey(0x30)),
            "0x10 BusAddress(0x20) RemoteKey(0x30)"
        );
    }

    #[test]
    fn ranges_may_end_at_the_end_of_the_address_space_but_not_pass_it() {
        assert_eq!(range(u64::MAX, 1).end(), None);
        assert_eq!(range(0, u64::MAX).end(), Some(Iova(u64::MAX)));
        assert_eq!(range(u64::MAX, 0).end(), Some(Iova(u64::MAX)));
        let wrapping = IovaRange::new(Iova(u64::MAX), 2);
        assert_eq!(
            wrapping,
            Err(AddressOverflow {
                start: Iova(u64::MAX),
                len: 2
            })
        );
        assert_eq!(range(u64::MAX - 3, 4).part(2, 2), Some(range(u64::MAX - 1, 2)));
    }

    #[test]
    fn parts_and_places_are_inside() {
        let whole = range(0x1000, 0x100);
        assert_eq!(whole.part(0x80, 0x80), Some(range(0x1080, 0x80)));
        assert_eq!(whole.part(0x80, 0x81), None);
        assert_eq!(whole.part(u64::MAX, 2), None);
        assert_eq!(whole.locate(Iova(0x1010), 0xf0), Some(0x10));
        assert_eq!(whole.locate(Iova(0x1010), 0xf1), None);
        assert_eq!(whole.locate(Iova(0xfff), 1), None);
        assert_eq!(whole.locate(Iova(0x1000), u64::MAX), None);
    }

    #[test]
    fn neighbours_become_one_range() {
        let mut list = Vec::new();
        for piece in [
            range(0, 0),
            range(0x10, 0x10),
            range(0x20, 0x10),
            range(0x40, 0x10),
            range(0x30, 0x10),
        ] {
            piece.append_to(&mut list);
        }
        assert_eq!(list, [range(0x10, 0x20), range(0x40, 0x10), range(0x30, 0x10)]);
        assert_eq!(range(u64::MAX, 1).joined(&range(0, 1)), None);
    }
}
