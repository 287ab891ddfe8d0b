//! [`Domain`]: an address space of the IOMMU, as the backend of a [`DmaSpace`](homi_pci::DmaSpace).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use homi_pci::{Access, DmaBackend, DmaError, Unsupported};
use homi_queue::{Iova, IovaRange, Region};
use nix::unistd::{SysconfVar, sysconf};

use crate::bar::BarMap;
use crate::uapi::{
    self, IoasMap, IoasMapFile, IoasUnmap, Type1Info, Type1Map, Type1Unmap, call, ioas_ranges, pairs, size,
};

/// An address space, and what is in it.
pub(crate) struct Domain {
    kind: Kind,
    page: u64,
    /// Mapped BARs of its functions: an iommufd takes them as dma-bufs only.
    bars: Mutex<Vec<Weak<BarMap>>>,
}

enum Kind {
    Type1 {
        container: OwnedFd,
        groups: Mutex<BTreeMap<u32, Group>>,
    },
    Ioas {
        iommufd: OwnedFd,
        id: u32,
    },
}

/// A group in a container.
struct Group {
    fd: OwnedFd,
    users: usize,
}

/// A function's part in a domain; it leaves when this is dropped, which has to be after its descriptor is closed.
#[derive(Debug)]
pub(crate) struct Membership {
    domain: Arc<Domain>,
    group: Option<u32>,
}

impl Membership {
    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            self.domain.leave(group);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these protect is whole after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system_page() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|page| u64::try_from(page).ok())
        .unwrap_or(4096)
}

impl Domain {
    /// The domain of a container that has its first group and its IOMMU model. The group counts as used by nobody yet.
    pub(crate) fn of_container(container: OwnedFd, number: u32, group: OwnedFd) -> io::Result<Self> {
        let info = type1_info(container.as_fd())?;
        let smallest = if info.flags & Type1Info::PGSIZES != 0 {
            1_u64.checked_shl(info.pgsizes.trailing_zeros()).unwrap_or(4096)
        } else {
            4096
        };
        let groups = BTreeMap::from([(number, Group { fd: group, users: 0 })]);
        Ok(Self {
            page: smallest.max(system_page()),
            kind: Kind::Type1 {
                container,
                groups: Mutex::new(groups),
            },
            bars: Mutex::default(),
        })
    }

    /// The domain of an address space of an iommufd.
    pub(crate) fn of_iommufd(iommufd: OwnedFd, id: u32) -> io::Result<Self> {
        let (_, alignment) = ioas_ranges(iommufd.as_fd(), id)?;
        Ok(Self {
            page: alignment
                .max(1)
                .checked_next_power_of_two()
                .unwrap_or(4096)
                .max(system_page()),
            kind: Kind::Ioas { iommufd, id },
            bars: Mutex::default(),
        })
    }

    /// The iommufd and the number of the address space in it, if that is what this is.
    pub(crate) fn iommufd(&self) -> Option<(BorrowedFd<'_>, u32)> {
        match &self.kind {
            Kind::Ioas { iommufd, id } => Some((iommufd.as_fd(), *id)),
            Kind::Type1 { .. } => None,
        }
    }

    /// A part in it for a device that is in it by its own descriptor.
    pub(crate) fn member(self: &Arc<Self>) -> Membership {
        Membership {
            domain: Arc::clone(self),
            group: None,
        }
    }

    /// Puts a group into the container unless it is there; `open` opens it. Returns the group's descriptor and a part in it.
    pub(crate) fn join<E>(
        self: &Arc<Self>,
        number: u32,
        open: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd, E>,
        with: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd, E>,
    ) -> Result<Option<(OwnedFd, Membership)>, E> {
        let Kind::Type1 { container, groups } = &self.kind else {
            return Ok(None);
        };
        let mut groups = lock(groups);
        let group = match groups.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let fd = open(container.as_fd())?;
                entry.insert(Group { fd, users: 0 })
            }
        };
        let device = match with(group.fd.as_fd()) {
            Ok(device) => device,
            Err(error) => {
                drop(groups);
                self.sweep();
                return Err(error);
            }
        };
        group.users += 1;
        drop(groups);
        self.sweep();
        Ok(Some((
            device,
            Membership {
                domain: Arc::clone(self),
                group: Some(number),
            },
        )))
    }

    fn leave(&self, number: u32) {
        if let Kind::Type1 { groups, .. } = &self.kind
            && let Some(group) = lock(groups).get_mut(&number)
        {
            group.users = group.users.saturating_sub(1);
        }
        self.sweep();
    }

    /// Takes groups out that nobody uses, but not the last: with it the kernel would forget every mapping.
    fn sweep(&self) {
        let Kind::Type1 { groups, .. } = &self.kind else {
            return;
        };
        let mut groups = lock(groups);
        let unused: Vec<u32> = groups
            .iter()
            .filter(|(_, group)| group.users == 0)
            .map(|(number, _)| *number)
            .collect();
        for number in unused {
            if groups.len() > 1
                && let Some(group) = groups.remove(&number)
                && let Err(error) = uapi::unset_container(group.fd.as_fd())
            {
                // Closing its descriptor takes it out as well, only later.
                tracing::debug!(number, %error, "a vfio group did not leave its container");
            }
        }
    }

    /// Remembers a mapped BAR.
    pub(crate) fn remember(&self, bar: &Arc<BarMap>) {
        let mut bars = lock(&self.bars);
        bars.retain(|known| known.strong_count() > 0);
        bars.push(Arc::downgrade(bar));
    }

    fn bar_at(&self, host: u64, len: u64) -> Option<(Arc<BarMap>, u64)> {
        lock(&self.bars).iter().filter_map(Weak::upgrade).find_map(|bar| {
            let at = host.checked_sub(bar.address() as u64)?;
            (at.checked_add(len)? <= bar.len()).then_some((bar, at))
        })
    }

    /// Maps `len` bytes of a file at `start` into an iommufd.
    pub(crate) fn map_file(
        &self,
        at: IovaRange,
        file: BorrowedFd<'_>,
        start: u64,
        access: Access,
    ) -> io::Result<()> {
        let Some((iommufd, id)) = self.iommufd() else {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        };
        let mut message = IoasMapFile {
            size: size::<IoasMapFile>(),
            flags: ioas_flags(access),
            ioas_id: id,
            fd: file.as_raw_fd(),
            start,
            length: at.len(),
            iova: at.start().0,
        };
        call(iommufd, &mut message).map(drop)
    }

    fn map_here(&self, at: IovaRange, host: u64, access: Access) -> io::Result<()> {
        match &self.kind {
            Kind::Type1 { container, .. } => {
                let mut flags = 0;
                if access.reads() {
                    flags |= Type1Map::READ;
                }
                if access.writes() {
                    flags |= Type1Map::WRITE;
                }
                let mut message = Type1Map {
                    argsz: size::<Type1Map>(),
                    flags,
                    vaddr: host,
                    iova: at.start().0,
                    size: at.len(),
                };
                call(container.as_fd(), &mut message).map(drop)
            }
            Kind::Ioas { iommufd, id } => {
                let mut message = IoasMap {
                    size: size::<IoasMap>(),
                    flags: ioas_flags(access),
                    ioas_id: *id,
                    reserved: 0,
                    user_va: host,
                    length: at.len(),
                    iova: at.start().0,
                };
                call(iommufd.as_fd(), &mut message).map(drop)
            }
        }
    }
}

fn ioas_flags(access: Access) -> u32 {
    let mut flags = IoasMap::FIXED_IOVA;
    if access.reads() {
        flags |= IoasMap::READABLE;
    }
    if access.writes() {
        flags |= IoasMap::WRITEABLE;
    }
    flags
}

fn type1_info(container: BorrowedFd<'_>) -> io::Result<Type1Info> {
    let mut info = Type1Info {
        argsz: size::<Type1Info>(),
        flags: 0,
        pgsizes: 0,
        cap_offset: 0,
        pad: 0,
        caps: [0; 1021],
    };
    call(container, &mut info)?;
    Ok(info)
}

/// What to look at when the kernel refuses a mapping.
fn refused(len: u64, source: io::Error) -> DmaError {
    let hint = match source.raw_os_error() {
        Some(libc::ENOMEM) => {
            "pinned memory counts against RLIMIT_MEMLOCK: raise `ulimit -l`, or LimitMEMLOCK= of the service"
        }
        Some(libc::ENOSPC) => {
            "the container has no mapping left: map fewer, larger regions, or raise dma_entry_limit of vfio_iommu_type1"
        }
        Some(libc::EFAULT) => {
            "the kernel cannot pin this memory: a mapped file of some file systems, or another device's memory"
        }
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            "these device addresses are taken by a mapping made elsewhere"
        }
        Some(libc::EINVAL | libc::ENOENT) => "the iommu does not take these device addresses",
        Some(libc::EPERM) => "this process may not pin memory for devices",
        _ => "see the kernel's log",
    };
    DmaError::Refused { len, hint, source }
}

fn lost(len: u64, source: io::Error) -> DmaError {
    DmaError::Refused {
        len,
        hint: "taking a mapping back failed",
        source,
    }
}

/// A [`Domain`] as the backend of a space.
pub(crate) struct Backend(pub(crate) Arc<Domain>);

impl DmaBackend for Backend {
    fn map(&self, at: IovaRange, memory: &Region, access: Access) -> Result<(), DmaError> {
        let domain = &self.0;
        let host = memory.host_address() as u64;
        let host = host - host % domain.page;
        if domain.iommufd().is_some()
            && let Some((bar, start)) = domain.bar_at(host, at.len())
        {
            let buffer = bar.export(start, at.len())?;
            return domain
                .map_file(at, buffer.as_fd(), 0, access)
                .map_err(|error| {
                    DmaError::Unsupported(Unsupported {
                        what: "another device's bar as dma memory of an iommufd",
                        missing: format!(
                            "the kernel refuses it as a dma-buf ({error}); 6.19 and later take it, and so does a container \
                             with groups"
                        ),
                    })
                });
        }
        domain
            .map_here(at, host, access)
            .map_err(|error| refused(at.len(), error))
    }

    fn unmap(&self, at: IovaRange) -> Result<(), DmaError> {
        let result = match &self.0.kind {
            Kind::Type1 { container, .. } => {
                let mut message = Type1Unmap {
                    argsz: size::<Type1Unmap>(),
                    flags: 0,
                    iova: at.start().0,
                    size: at.len(),
                };
                call(container.as_fd(), &mut message).map(|_| message.size)
            }
            Kind::Ioas { iommufd, id } => {
                let mut message = IoasUnmap {
                    size: size::<IoasUnmap>(),
                    ioas_id: *id,
                    iova: at.start().0,
                    length: at.len(),
                };
                call(iommufd.as_fd(), &mut message).map(|_| message.length)
            }
        };
        match result {
            Ok(unmapped) if unmapped == at.len() => Ok(()),
            Ok(unmapped) => Err(lost(
                at.len(),
                io::Error::other(format!("the kernel unmapped {unmapped} bytes")),
            )),
            Err(error) => Err(lost(at.len(), error)),
        }
    }

    fn usable(&self) -> Vec<IovaRange> {
        let ranges = match &self.0.kind {
            Kind::Type1 { container, .. } => type1_info(container.as_fd()).map(|info| {
                info.capability(Type1Info::CAP_IOVA_RANGE)
                    .and_then(|body| pairs(&body))
                    .unwrap_or_default()
            }),
            Kind::Ioas { iommufd, id } => ioas_ranges(iommufd.as_fd(), *id).map(|(ranges, _)| ranges),
        };
        match ranges {
            Ok(ranges) => ranges
                .into_iter()
                .filter_map(|(first, last)| usable(first, last, self.0.page))
                .collect(),
            Err(error) => {
                // Nothing can be mapped then, which says `NoAddresses` with each attempt.
                tracing::error!(%error, "the kernel does not tell which device addresses can be used");
                Vec::new()
            }
        }
    }

    fn page(&self) -> u64 {
        self.0.page
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Type1 { groups, .. } => write!(f, "type-1 container of {} groups", lock(groups).len()),
            Kind::Ioas { id, .. } => write!(f, "address space {id} of an iommufd"),
        }
    }
}

/// The whole pages from a first to a last address. The very last page of the address space is left out where its end could not be said.
fn usable(first: u64, last: u64, page: u64) -> Option<IovaRange> {
    let first = first.checked_next_multiple_of(page)?;
    let len = last.checked_sub(first)?;
    let len = (len.saturating_add(1) / page) * page;
    (len > 0).then(|| IovaRange::new(Iova(first), len).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_addresses_are_whole_pages() {
        let range = |start, len| IovaRange::new(Iova(start), len).ok();
        assert_eq!(usable(0, 0xfedf_ffff, 4096), range(0, 0xfee0_0000));
        assert_eq!(usable(1, 0x2fff, 4096), range(0x1000, 0x2000));
        assert_eq!(usable(0x1000, 0x1ffe, 4096), None);
        assert_eq!(usable(0x2000, 0x1000, 4096), None);
        assert_eq!(usable(0, u64::MAX, 4096), range(0, u64::MAX - 0xfff));
        assert_eq!(usable(u64::MAX - 5, u64::MAX, 4096), None);
    }

    #[test]
    fn what_to_change_is_said() {
        let say = |errno| refused(4096, io::Error::from_raw_os_error(errno)).to_string();
        assert!(say(libc::ENOMEM).contains("RLIMIT_MEMLOCK"));
        assert!(say(libc::ENOSPC).contains("dma_entry_limit"));
        assert!(say(libc::EFAULT).contains("pin"));
    }
}
