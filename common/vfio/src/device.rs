//! [`Device`]: an open VFIO device and what the kernel does for it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use homi_pci::{PciError, PciIdentity, Unsupported};
use nix::sys::uio::{pread, pwrite};

use crate::bar;
use crate::domain::Membership;
use crate::uapi::{
    self, DeviceInfo, FeatureDmaBuf, FeatureVfToken, IrqInfo, IrqSet, MOST_VECTORS, RegionInfo, call, own,
    pairs, size,
};

/// Offset of the command register in configuration space (PCIe Base 6.0 §7.5.1.1.3).
const COMMAND: u64 = 0x04;
/// Memory space enable.
const MEMORY_SPACE: u16 = 1 << 1;
/// Bus master enable.
const BUS_MASTER: u16 = 1 << 2;
/// Offset of the first base address register.
const BARS: u64 = 0x10;

/// An open device. The kernel ends its DMA and resets it, if it can, when the last of these is dropped.
#[derive(Debug)]
pub(crate) struct Device {
    name: String,
    flags: u32,
    /// Offset of configuration space in the descriptor.
    config: u64,
    /// Held between reading and writing the command register.
    command: Mutex<()>,
    /// Nothing is left of it here but its name.
    given_up: AtomicBool,
    /// Mapped parts of its BARs: address and length.
    pub(crate) maps: Mutex<BTreeMap<usize, usize>>,
    // Closed before the device leaves its group, which is what fields are dropped in order for.
    fd: OwnedFd,
    member: Membership,
}

/// A memory BAR in the device's descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BarPlace {
    pub(crate) index: u8,
    pub(crate) len: u64,
    /// Offset in the descriptor.
    pub(crate) offset: u64,
    /// Parts that can be mapped: offset in the BAR and length.
    pub(crate) windows: Vec<(u64, u64)>,
}

impl Device {
    pub(crate) fn new(name: String, fd: OwnedFd, member: Membership) -> Result<Self, PciError> {
        let failed = |source| system(&name, "asking what the device has", source);
        let mut info = DeviceInfo {
            argsz: size::<DeviceInfo>(),
            flags: 0,
            num_regions: 0,
            num_irqs: 0,
            cap_offset: 0,
            pad: 0,
        };
        call(fd.as_fd(), &mut info).map_err(failed)?;
        if info.flags & DeviceInfo::PCI == 0 {
            return Err(failed(io::Error::other("vfio says that it is no pci device")));
        }
        let config = region(fd.as_fd(), RegionInfo::CONFIG).map_err(failed)?;
        let device = Self {
            flags: info.flags,
            config: config.offset,
            command: Mutex::default(),
            given_up: AtomicBool::new(false),
            maps: Mutex::default(),
            name,
            fd,
            member,
        };
        // Without it, reading a mapped BAR kills the process.
        device.command(MEMORY_SPACE, 0)?;
        Ok(device)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn member(&self) -> &Membership {
        &self.member
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What failed, as an error of this device.
    pub(crate) fn error(&self, doing: &'static str, source: io::Error) -> PciError {
        system(&self.name, doing, source)
    }

    /// An error if it was given up.
    fn here(&self) -> io::Result<()> {
        if self.given_up.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(())
    }

    /// Closes the device, although there are handles of it and mappings of its BARs: their descriptor leads nowhere afterwards, and the mappings
    /// are replaced by memory of the same length, all ones where they are as short as registers are.
    pub(crate) fn give_up(&self) -> io::Result<()> {
        if self.given_up.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // Held until all is done: what is unmapped meanwhile may be mapped by somebody else.
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        for (base, len) in &*maps {
            bar::replace(*base, *len)?;
        }
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // SAFETY: the descriptor's number stays open and this value's own; what it refers to is exchanged at once.
        let code = unsafe { libc::dup3(nothing.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) };
        if code < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub(crate) fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.here()?;
        let at = i64::try_from(at).map_err(io::Error::other)?;
        match pread(&self.fd, to, at)? {
            read if read == to.len() => Ok(()),
            read => Err(io::Error::other(format!(
                "{read} of {} bytes were read",
                to.len()
            ))),
        }
    }

    pub(crate) fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.here()?;
        let at = i64::try_from(at).map_err(io::Error::other)?;
        match pwrite(&self.fd, from, at)? {
            written if written == from.len() => Ok(()),
            written => Err(io::Error::other(format!(
                "{written} of {} bytes were written",
                from.len()
            ))),
        }
    }

    fn command(&self, set: u16, clear: u16) -> Result<(), PciError> {
        let doing = "changing the command register";
        let _held = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 2];
        self.read(self.config + COMMAND, &mut bytes)
            .map_err(|error| self.error(doing, error))?;
        let before = u16::from_le_bytes(bytes);
        if before == u16::MAX {
            return Err(PciError::Removed {
                function: self.name.clone(),
            });
        }
        let after = (before | set) & !clear;
        if after != before {
            self.write(self.config + COMMAND, &after.to_le_bytes())
                .map_err(|error| self.error(doing, error))?;
        }
        Ok(())
    }

    pub(crate) fn set_bus_master(&self, enabled: bool) -> Result<(), PciError> {
        if enabled {
            self.command(BUS_MASTER | MEMORY_SPACE, 0)
        } else {
            self.command(0, BUS_MASTER)
        }
    }

    pub(crate) fn identity(&self) -> Result<PciIdentity, PciError> {
        let mut head = [0; 64];
        self.read(self.config, &mut head)
            .map_err(|error| self.error("reading configuration space", error))?;
        Ok(identity(&head))
    }

    /// Where a memory BAR is, or `None` if there is none.
    pub(crate) fn bar(&self, bar: u8) -> Result<Option<BarPlace>, PciError> {
        let doing = "asking for a bar";
        if bar > 5 {
            return Ok(None);
        }
        let mut low = [0; 4];
        self.read(self.config + BARS + 4 * u64::from(bar), &mut low)
            .map_err(|error| self.error(doing, error))?;
        // Bit 0 is set in a BAR of I/O space.
        if u32::from_le_bytes(low) & 1 != 0 {
            return Ok(None);
        }
        let info = region(self.fd(), u32::from(bar)).map_err(|error| self.error(doing, error))?;
        let wanted = RegionInfo::READ | RegionInfo::WRITE;
        if info.size == 0 || info.flags & wanted != wanted {
            return Ok(None);
        }
        let windows = if info.flags & RegionInfo::MMAP == 0 {
            Vec::new()
        } else {
            match info.capability(RegionInfo::CAP_SPARSE_MMAP) {
                Some(body) => pairs(&body).ok_or_else(|| {
                    self.error(
                        doing,
                        io::Error::other("the list of parts that can be mapped is cut off"),
                    )
                })?,
                None => vec![(0, info.size)],
            }
        };
        Ok(Some(BarPlace {
            index: bar,
            len: info.size,
            offset: info.offset,
            windows: windows
                .into_iter()
                .filter(|(start, len)| {
                    *len > 0 && start.checked_add(*len).is_some_and(|end| end <= info.size)
                })
                .collect(),
        }))
    }

    /// How many interrupts there are of a kind that can be tied to descriptors.
    pub(crate) fn interrupts(&self, index: u32) -> u16 {
        let mut info = IrqInfo {
            argsz: size::<IrqInfo>(),
            flags: 0,
            index,
            count: 0,
        };
        match call(self.fd(), &mut info) {
            Ok(_) if info.flags & IrqInfo::EVENTFD != 0 => {
                u16::try_from((info.count as usize).min(MOST_VECTORS)).unwrap_or_default()
            }
            _ => 0,
        }
    }

    /// Ties the first interrupts of a kind to event descriptors; none unties all.
    pub(crate) fn tie(&self, index: u32, events: &[RawFd]) -> io::Result<()> {
        self.here()?;
        let mut message = IrqSet {
            argsz: IrqSet::HEAD,
            flags: IrqSet::TRIGGER | IrqSet::DATA_NONE,
            index,
            start: 0,
            count: 0,
            fds: [-1; MOST_VECTORS],
        };
        if !events.is_empty() {
            let places = message
                .fds
                .get_mut(..events.len())
                .ok_or_else(|| io::Error::other("more interrupts than there can be"))?;
            places.copy_from_slice(events);
            message.count = u32::try_from(events.len()).map_err(io::Error::other)?;
            message.argsz += message.count * 4;
            message.flags = IrqSet::TRIGGER | IrqSet::DATA_EVENTFD;
        }
        call(self.fd(), &mut message).map(drop)
    }

    pub(crate) fn reset(&self) -> Result<(), PciError> {
        if self.flags & DeviceInfo::RESET == 0 {
            return Err(Unsupported {
                what: "a reset of one function",
                missing: format!(
                    "{} says that it cannot be reset alone: it has neither function-level reset nor a bus of its own",
                    self.name
                ),
            }
            .into());
        }
        self.here()
            .map_err(|error| self.error("resetting the function", error))?;
        uapi::reset(self.fd()).map_err(|error| self.error("resetting the function", error))
    }

    pub(crate) fn export(&self, bar: u8, offset: u64, len: u64) -> Result<OwnedFd, Unsupported> {
        let mut message = FeatureDmaBuf {
            argsz: size::<FeatureDmaBuf>(),
            flags: FeatureDmaBuf::FLAGS,
            region_index: u32::from(bar),
            open_flags: (libc::O_RDWR | libc::O_CLOEXEC).unsigned_abs(),
            buffer_flags: 0,
            nr_ranges: 1,
            offset,
            length: len,
        };
        call(self.fd(), &mut message).map(own).map_err(|error| Unsupported {
            what: "a bar as a dma-buf",
            missing: match error.raw_os_error() {
                Some(libc::ENOTTY | libc::EINVAL) => format!(
                    "the kernel does not export bars of vfio devices ({error}): 6.19 and later do, built with VFIO_PCI_DMABUF and PCI_P2PDMA"
                ),
                Some(libc::EOPNOTSUPP) => {
                    format!("{} cannot take part in peer-to-peer dma here ({error})", self.name)
                }
                _ => format!("the kernel refuses it for {}: {error}", self.name),
            },
        })
    }

    pub(crate) fn set_vf_token(&self, uuid: [u8; 16]) -> Result<(), PciError> {
        let mut message = FeatureVfToken {
            argsz: size::<FeatureVfToken>(),
            flags: FeatureVfToken::FLAGS,
            uuid,
        };
        call(self.fd(), &mut message)
            .map(drop)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOTTY) => Unsupported {
                    what: "a token for virtual functions",
                    missing: format!("{} has no virtual functions that vfio looks after", self.name),
                }
                .into(),
                _ => self.error("setting the token for virtual functions", error),
            })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The kernel does this too when the descriptor is closed; but somebody may have inherited it.
        if let Err(error) = self.set_bus_master(false)
            && !matches!(error, PciError::Removed { .. })
        {
            tracing::warn!(%error, "bus mastering was not ended");
        }
    }
}

pub(crate) fn system(name: &str, doing: &'static str, source: io::Error) -> PciError {
    let function = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENODEV) => PciError::Removed { function },
        _ => PciError::System {
            function,
            doing,
            source,
        },
    }
}

fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<RegionInfo> {
    let mut info = RegionInfo {
        argsz: size::<RegionInfo>(),
        flags: 0,
        index,
        cap_offset: 0,
        size: 0,
        offset: 0,
        caps: [0; 124],
    };
    call(device, &mut info)?;
    if info.argsz > size::<RegionInfo>() {
        return Err(io::Error::other(format!(
            "the kernel has {} bytes to tell about region {index}",
            info.argsz
        )));
    }
    Ok(info)
}

/// Header of configuration space (PCIe Base 6.0 §7.5.1).
fn identity(head: &[u8; 64]) -> PciIdentity {
    let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    PciIdentity {
        vendor: short(0x00),
        device: short(0x02),
        revision: head[0x08],
        class: u32::from_le_bytes([head[0x09], head[0x0a], head[0x0b], 0]),
        subsystem_vendor: short(0x2c),
        subsystem: short(0x2e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_it_is() {
        let mut head = [0; 64];
        head[..12].copy_from_slice(&[0x36, 0x1b, 0x10, 0, 0, 0, 0, 0, 2, 2, 8, 1]);
        head[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0, 0x11]);
        assert_eq!(
            identity(&head),
            PciIdentity {
                vendor: 0x1b36,
                device: 0x10,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
                class: PciIdentity::NVME_CLASS,
                revision: 2,
            }
        );
    }

    #[test]
    fn a_device_that_is_gone_was_removed() {
        let error = |errno| system("x", "y", io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::ENODEV), PciError::Removed { .. }));
        assert!(matches!(error(libc::EINVAL), PciError::System { .. }));
    }
}
