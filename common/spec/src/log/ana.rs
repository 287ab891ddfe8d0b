//! The asymmetric namespace access log (LID 0Ch). Base 2.0 §5.16.1.13 and §8.1.

use crate::macros::open_enum;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// How a controller reaches the namespaces of a group, 4 bits. Base 2.0 §8.1.3.
    pub struct AnaState(u8) {
        /// Optimized: use this path.
        OPTIMIZED = 0x01;
        /// Non-optimized: use this path when no optimized one is left.
        NON_OPTIMIZED = 0x02;
        /// Inaccessible for now.
        INACCESSIBLE = 0x03;
        /// Inaccessible for good on this controller.
        PERSISTENT_LOSS = 0x04;
        /// Between states: wait up to ANATT.
        CHANGE = 0x0f;
    }
}

/// The header: 16 bytes. Base 2.0 §5.16.1.13.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AnaHeader {
    /// Changes since the last reset; 0 after a reset, and never 0 again.
    pub change_count: U64,
    /// Group descriptors that follow.
    pub groups: U16,
    /// Reserved.
    pub reserved10: [u8; 6],
}
const _: () = assert!(size_of::<AnaHeader>() == 16);

impl AnaHeader {
    /// LSP b0 of Get Log Page: return groups only, without namespaces.
    pub const LSP_GROUPS_ONLY: u8 = 1 << 0;
}

/// A group: 32 bytes, then its namespaces at 4 bytes each. Base 2.0 §5.16.1.13.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    /// Group identifier.
    pub group: U32,
    /// Namespace identifiers that follow this descriptor.
    pub nsid_count: U32,
    /// Changes to this group since the last reset.
    pub change_count: U64,
    /// State, b3:0: see [`AnaGroupDescriptor::state`].
    pub state: u8,
    /// Reserved.
    pub reserved17: [u8; 15],
}
const _: () = assert!(size_of::<AnaGroupDescriptor>() == 32);

impl AnaGroupDescriptor {
    /// The group's state; the reserved upper bits are dropped.
    pub const fn state(&self) -> AnaState {
        AnaState(self.state & 0xf)
    }
}

/// A group with its namespaces, borrowed from a log.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct AnaGroup<'a> {
    /// The descriptor.
    pub descriptor: &'a AnaGroupDescriptor,
    /// Its namespaces; empty when only groups were asked for.
    pub nsids: &'a [U32],
}

/// A log that is shorter than it says.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnaError {
    /// Not even the header.
    #[error("the ana log has {have} bytes, its header alone has 16")]
    Header {
        /// Bytes there are.
        have: usize,
    },
    /// A group is cut off.
    #[error("the ana log announces {groups} groups but ends inside group {index}, at offset {offset}")]
    Group {
        /// Groups announced.
        groups: u16,
        /// The group that is cut, from 0.
        index: u16,
        /// Where it begins.
        offset: usize,
    },
}

/// Reads the groups of an ANA log; the first error ends the iteration.
#[derive(Clone, Debug)]
pub struct AnaGroups<'a> {
    log: &'a [u8],
    offset: usize,
    groups: u16,
    index: u16,
}

impl<'a> AnaGroups<'a> {
    /// The header of a log, and a reader of its groups.
    ///
    /// # Errors
    /// A log shorter than its header.
    pub fn new(log: &'a [u8]) -> Result<(&'a AnaHeader, Self), AnaError> {
        let (header, _) =
            AnaHeader::ref_from_prefix(log).map_err(|_| AnaError::Header { have: log.len() })?;
        let groups = header.groups.get();
        Ok((
            header,
            Self {
                log,
                offset: size_of::<AnaHeader>(),
                groups,
                index: 0,
            },
        ))
    }

    fn read(&self) -> Option<AnaGroup<'a>> {
        let (descriptor, rest) = AnaGroupDescriptor::ref_from_prefix(self.log.get(self.offset..)?).ok()?;
        let count = usize::try_from(descriptor.nsid_count.get()).ok()?;
        let (nsids, _) = <[U32]>::ref_from_prefix_with_elems(rest, count).ok()?;
        Some(AnaGroup { descriptor, nsids })
    }
}

impl<'a> Iterator for AnaGroups<'a> {
    type Item = Result<AnaGroup<'a>, AnaError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.groups {
            return None;
        }
        let Some(group) = self.read() else {
            let error = AnaError::Group {
                groups: self.groups,
                index: self.index,
                offset: self.offset,
            };
            self.index = self.groups;
            return Some(Err(error));
        };
        self.index += 1;
        self.offset += size_of::<AnaGroupDescriptor>() + size_of_val(group.nsids);
        Some(Ok(group))
    }
}
