//! [`Sysfs`]: reads functions from the kernel's files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::acs::Acs;
use super::disks::{self, Disk};
use super::distance::Distance;
use crate::{PciAddress, PciIdentity};

/// Why topology could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The kernel has no such function.
    #[error("there is no pci function {address} here: `lspci -D` lists those there are")]
    Absent {
        /// Which.
        address: PciAddress,
    },
    /// A file of the kernel cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file of the kernel says something unexpected.
    #[error("{} says {text:?}, a number was expected", path.display())]
    NoNumber {
        /// Which.
        path: PathBuf,
        /// What it says.
        text: String,
    },
}

/// The kernel's view of PCI.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

/// A port on the way from the root to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Where it is.
    pub address: PciAddress,
    /// Its access control services; `None` if it has none or they cannot be read (which takes privileges).
    pub acs: Option<Acs>,
}

/// Functions that the IOMMU cannot keep apart: they are owned together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number.
    pub number: u32,
    /// All its functions.
    pub members: Vec<PciAddress>,
    /// Whether it is one that the kernel made up where there is no IOMMU.
    pub is_fake: bool,
}

/// A function that can have virtual functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sriov {
    /// Most virtual functions.
    pub total: u16,
    /// The virtual functions that are there, in their order.
    pub functions: Vec<PciAddress>,
}

/// A function's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its speed now, in the kernel's words: `16.0 GT/s PCIe`.
    pub speed: String,
    /// Lanes in use.
    pub width: u8,
}

/// A PCI function as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub identity: PciIdentity,
    /// Its NUMA node, if the machine has several.
    pub numa_node: Option<u32>,
    /// The host bridge: `pci0000:00`.
    pub host_bridge: String,
    /// The ports on the way to it: the root port first, then those of switches. Empty for a function of the root itself.
    pub bridges: Vec<Bridge>,
    /// Its IOMMU group; `None` if no IOMMU is in front of it.
    pub iommu_group: Option<IommuGroup>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Virtual functions, if it can have any.
    pub sriov: Option<Sriov>,
    /// The physical function, if it is a virtual one.
    pub physical: Option<PciAddress>,
    /// Its link, if it has one.
    pub link: Option<Link>,
    /// Name of its VFIO character device (`vfio0`), if it is bound to VFIO and the kernel has those.
    pub vfio_device: Option<String>,
    /// Names of the kernel's NVMe controllers on it: `nvme0`.
    pub controllers: Vec<String>,
    /// Their block devices.
    pub disks: Vec<Disk>,
}

impl Function {
    /// The root port that it is behind.
    #[must_use]
    pub fn root_port(&self) -> Option<PciAddress> {
        self.bridges.first().map(|bridge| bridge.address)
    }

    /// The ports of switches between its root port and it.
    #[must_use]
    pub fn switch_ports(&self) -> &[Bridge] {
        self.bridges.get(1..).unwrap_or_default()
    }
}

impl Sysfs {
    /// That of this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::at("/")
    }

    /// That of another root folder, which has `sys`, `proc` and `run` in it.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All functions, in the order of their addresses.
    ///
    /// # Errors
    /// [`TopologyError::Unreadable`] if the kernel has no PCI.
    pub fn functions(&self) -> Result<Vec<PciAddress>, TopologyError> {
        let path = self.root.join("sys/bus/pci/devices");
        let entries = fs::read_dir(&path).map_err(|source| TopologyError::Unreadable { path, source })?;
        let mut all: Vec<PciAddress> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        all.sort();
        Ok(all)
    }

    /// All NVM Express I/O controllers, in the order of their addresses. Functions that go meanwhile are left out.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn nvme_functions(&self) -> Result<Vec<Function>, TopologyError> {
        let mut found = Vec::new();
        for address in self.functions()? {
            match self.number(&self.folder(address).join("class")) {
                Ok(class) if class == PciIdentity::NVME_CLASS => match self.function(address) {
                    Ok(function) => found.push(function),
                    Err(TopologyError::Absent { .. }) => {}
                    Err(error) => return Err(error),
                },
                _ => {}
            }
        }
        Ok(found)
    }

    /// One function.
    ///
    /// # Errors
    /// [`TopologyError::Absent`] if it is not there, others if it cannot be read.
    pub fn function(&self, address: PciAddress) -> Result<Function, TopologyError> {
        let folder = self.folder(address);
        let place = match fs::canonicalize(&folder) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TopologyError::Absent { address });
            }
            Err(source) => {
                return Err(TopologyError::Unreadable { path: folder, source });
            }
        };
        let (host_bridge, bridges) = self.way(&place, address);
        let controllers = names(&folder.join("nvme"));
        Ok(Function {
            address,
            identity: self.identity(&folder)?,
            numa_node: text(&folder.join("numa_node")).and_then(|node| node.parse().ok()),
            host_bridge,
            bridges,
            iommu_group: iommu_group(&folder),
            driver: link_name(&folder.join("driver")),
            sriov: sriov(&folder),
            physical: link_name(&folder.join("physfn")).and_then(|name| name.parse().ok()),
            link: link(&folder),
            vfio_device: names(&folder.join("vfio-dev")).into_iter().next(),
            disks: disks::of_controllers(&self.root, &controllers),
            controllers,
        })
    }

    /// The driver that a function is bound to; `None` for none, and for a function that is not there.
    #[must_use]
    pub fn driver(&self, address: PciAddress) -> Option<String> {
        link_name(&self.folder(address).join("driver"))
    }

    /// How far two functions are from each other.
    ///
    /// # Errors
    /// As [`Sysfs::function`].
    pub fn distance(&self, a: PciAddress, b: PciAddress) -> Result<Distance, TopologyError> {
        Ok(Distance::between(&self.function(a)?, &self.function(b)?))
    }

    fn folder(&self, address: PciAddress) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address.to_string())
    }

    /// The host bridge and the ports above a function, out of its place among the devices.
    fn way(&self, place: &Path, address: PciAddress) -> (String, Vec<Bridge>) {
        let mut host_bridge = String::new();
        let mut bridges = Vec::new();
        for part in place.iter().filter_map(|part| part.to_str()) {
            if let Ok(port) = part.parse::<PciAddress>() {
                if port != address {
                    let config = fs::read(self.folder(port).join("config")).unwrap_or_default();
                    bridges.push(Bridge {
                        address: port,
                        acs: Acs::find(&config),
                    });
                }
            } else if part.starts_with("pci") && part.contains(':') {
                part.clone_into(&mut host_bridge);
            }
        }
        (host_bridge, bridges)
    }

    fn identity(&self, folder: &Path) -> Result<PciIdentity, TopologyError> {
        let short = |name: &str| -> Result<u16, TopologyError> {
            let path = folder.join(name);
            let value = self.number(&path)?;
            u16::try_from(value).map_err(|_| TopologyError::NoNumber {
                path,
                text: format!("{value:#x}"),
            })
        };
        Ok(PciIdentity {
            vendor: short("vendor")?,
            device: short("device")?,
            subsystem_vendor: short("subsystem_vendor")?,
            subsystem: short("subsystem_device")?,
            class: self.number(&folder.join("class"))?,
            revision: u8::try_from(short("revision")?).unwrap_or_default(),
        })
    }

    #[expect(clippy::unused_self, reason = "reads on behalf of this view")]
    fn number(&self, path: &Path) -> Result<u32, TopologyError> {
        let read = fs::read_to_string(path).map_err(|source| TopologyError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let trimmed = read.trim();
        let digits = trimmed.strip_prefix("0x").unwrap_or(trimmed);
        u32::from_str_radix(digits, 16).map_err(|_| TopologyError::NoNumber {
            path: path.to_owned(),
            text: trimmed.to_owned(),
        })
    }
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

fn iommu_group(folder: &Path) -> Option<IommuGroup> {
    let group = folder.join("iommu_group");
    let mut members: Vec<PciAddress> = names(&group.join("devices"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    members.sort();
    Some(IommuGroup {
        number: link_name(&group)?.parse().ok()?,
        members,
        is_fake: text(&group.join("name")).as_deref() == Some("vfio-noiommu"),
    })
}

fn sriov(folder: &Path) -> Option<Sriov> {
    let total = text(&folder.join("sriov_totalvfs"))?.parse().ok()?;
    let functions = (0..total)
        .map_while(|index: u16| link_name(&folder.join(format!("virtfn{index}")))?.parse().ok())
        .collect();
    (total > 0).then_some(Sriov { total, functions })
}

fn link(folder: &Path) -> Option<Link> {
    let width = text(&folder.join("current_link_width"))?.parse().ok()?;
    let speed = text(&folder.join("current_link_speed"))?;
    // The kernel says 0 and 63 lanes where there is no link.
    (1..=32).contains(&width).then_some(Link { speed, width })
}
