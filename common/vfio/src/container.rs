//! [`Container`]: an address space that functions are opened into.

use std::ffi::CString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homi_pci::topology::{Function, IommuGroup, Sysfs, TopologyError};
use homi_pci::{DmaSpace, PciAddress, PciError, Unsupported};

use crate::device::{Device, system};
use crate::domain::{Backend, Domain, Membership};
use crate::function::VfioFunction;
use crate::uapi::{self, AttachIommufd, BindIommufd, GroupSetContainer, GroupStatus, IoasAlloc, call, size};

/// How the kernel is asked for functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Way {
    /// Groups where the kernel has them, as every kernel before 6.19 takes mapped BARs for peer-to-peer only there; character devices
    /// otherwise.
    #[default]
    Any,
    /// Groups in a type-1 container (`/dev/vfio/vfio`, `/dev/vfio/7`).
    Groups,
    /// Character devices in an address space of an iommufd (`/dev/iommu`, `/dev/vfio/devices/vfio0`): kernels from 6.6 on, if built so.
    Devices,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Any => "any",
            Self::Groups => "groups",
            Self::Devices => "devices",
        })
    }
}

/// Text that names no [`Way`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to vfio: any, groups and devices are")]
pub struct WayError(pub String);

impl FromStr for Way {
    type Err = WayError;

    fn from_str(text: &str) -> Result<Self, WayError> {
        [Self::Any, Self::Groups, Self::Devices]
            .into_iter()
            .find(|way| way.to_string() == text)
            .ok_or_else(|| WayError(text.to_owned()))
    }
}

/// A secret that the owner of a physical function sets and the users of its virtual functions know: a UUID.
///
/// VFIO wants it where it looks after the physical function as well, so that nobody drives a virtual function of a stranger unknowingly.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken(pub [u8; 16]);

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

/// What a container is made with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How the kernel is asked.
    pub way: Way,
    /// The folder that `dev`, `sys` and `proc` are in.
    pub root: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            way: Way::Any,
            root: PathBuf::from("/"),
        }
    }
}

/// An address space of the IOMMU. Cloning shares it. It exists in the kernel from the first function on, and as long as a clone, one of its
/// functions or one of its mappings exists; the kernel's drivers can have the last function of a container with groups back only then.
#[derive(Debug, Clone)]
pub struct Container(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    joined: Mutex<Option<Joined>>,
}

#[derive(Debug, Clone)]
struct Joined {
    domain: Arc<Domain>,
    space: DmaSpace,
}

impl Container {
    /// A container of this machine. Nothing is opened yet.
    #[must_use]
    pub fn new(way: Way) -> Self {
        Self::with(Options {
            way,
            ..Options::default()
        })
    }

    /// A container with more options.
    #[must_use]
    pub fn with(options: Options) -> Self {
        Self(Arc::new(Inner {
            options,
            joined: Mutex::default(),
        }))
    }

    /// Opens a function that is bound to VFIO (`scripts/bind-vfio` binds it) and puts it into this address space. Its bus mastering is as the
    /// kernel left it; its memory BARs can be accessed.
    ///
    /// # Errors
    /// [`PciError::Unsupported`] for whatever is missing, with what to change; [`PciError::Removed`] if there is no such function;
    /// [`PciError::System`].
    pub fn open(&self, address: PciAddress) -> Result<VfioFunction, PciError> {
        self.open_with_token(address, None)
    }

    /// The same for a virtual function whose physical function is VFIO's, too: its owner has set a token.
    ///
    /// # Errors
    /// As [`Container::open`].
    pub fn open_with_token(
        &self,
        address: PciAddress,
        token: Option<VfToken>,
    ) -> Result<VfioFunction, PciError> {
        let root = &self.0.options.root;
        let sysfs = Sysfs::at(root);
        let function = sysfs.function(address).map_err(|error| match error {
            TopologyError::Absent { address } => PciError::Removed {
                function: address.to_string(),
            },
            other => system(
                &address.to_string(),
                "reading its topology",
                io::Error::other(other),
            ),
        })?;
        let group = check(&function)?;
        let mut joined = self.joined();
        let (fd, membership) = match self.way(joined.as_ref()) {
            Way::Devices => open_device(root, &function, joined.as_ref(), token)?,
            Way::Any | Way::Groups => open_in_group(root, &sysfs, &function, group, joined.as_ref(), token)?,
        };
        let space = match &*joined {
            Some(joined) => {
                // The newcomer may have taken addresses away.
                joined.space.refresh_usable();
                joined.space.clone()
            }
            None => {
                let domain = Arc::clone(membership.domain());
                let space = DmaSpace::new(Box::new(Backend(Arc::clone(&domain))));
                *joined = Some(Joined {
                    domain,
                    space: space.clone(),
                });
                space
            }
        };
        drop(joined);
        VfioFunction::new(Device::new(address.to_string(), fd, membership)?, space)
    }

    /// The address space of all its functions; `None` before the first is opened.
    #[must_use]
    pub fn space(&self) -> Option<DmaSpace> {
        self.joined().as_ref().map(|joined| joined.space.clone())
    }

    /// The way that is gone; [`Way::Any`] before the first function is opened, if no other was chosen.
    #[must_use]
    pub fn way_taken(&self) -> Way {
        let joined = self.joined();
        match &*joined {
            Some(_) => self.way(joined.as_ref()),
            None => self.0.options.way,
        }
    }

    pub(crate) fn domain(&self) -> Option<(Arc<Domain>, DmaSpace)> {
        self.joined()
            .as_ref()
            .map(|joined| (Arc::clone(&joined.domain), joined.space.clone()))
    }

    fn joined(&self) -> MutexGuard<'_, Option<Joined>> {
        // Set in one statement.
        self.0.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self, joined: Option<&Joined>) -> Way {
        if let Some(joined) = joined {
            return if joined.domain.iommufd().is_some() {
                Way::Devices
            } else {
                Way::Groups
            };
        }
        let dev = self.0.options.root.join("dev");
        match self.0.options.way {
            Way::Any if !dev.join("vfio/vfio").exists() && dev.join("iommu").exists() => Way::Devices,
            Way::Any => Way::Groups,
            way => way,
        }
    }
}

fn unsupported(what: &'static str, missing: String) -> PciError {
    Unsupported { what, missing }.into()
}

const A_FUNCTION: &str = "a pci function in user space";

/// Whether a function can be had at all, whatever the way; returns its group.
fn check(function: &Function) -> Result<IommuGroup, PciError> {
    let address = function.address;
    let Some(group) = &function.iommu_group else {
        return Err(unsupported(
            A_FUNCTION,
            format!(
                "no iommu is in front of {address}: turn on VT-d or AMD-Vi in the firmware, and start the kernel with \
                 intel_iommu=on (Intel); vfio's mode without an iommu is not used, because the device could write anywhere"
            ),
        ));
    };
    if group.is_fake {
        return Err(unsupported(
            A_FUNCTION,
            format!(
                "{address} is in vfio's mode without an iommu, which is refused, because the device could write anywhere: turn the \
                 iommu on, and vfio's enable_unsafe_noiommu_mode off"
            ),
        ));
    }
    match function.driver.as_deref() {
        // Variants for one vendor are called after it: nvgrace-gpu-vfio-pci.
        Some(driver) if driver.replace('_', "-").ends_with("vfio-pci") => Ok(group.clone()),
        Some(driver) => Err(unsupported(
            A_FUNCTION,
            format!(
                "{address} is bound to the driver {driver}: scripts/bind-vfio {address} binds it to vfio-pci"
            ),
        )),
        None => Err(unsupported(
            A_FUNCTION,
            format!("{address} is bound to no driver: scripts/bind-vfio {address} binds it to vfio-pci"),
        )),
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    Ok(file.into())
}

/// Opens one of VFIO's files; `absent` says why it may not be there.
fn open_node(path: &Path, address: PciAddress, absent: &str) -> Result<OwnedFd, PciError> {
    open(path).map_err(|error| {
        let path = path.display();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
                unsupported(A_FUNCTION, format!("{path} is not there: {absent}"))
            }
            Some(libc::EACCES | libc::EPERM) => unsupported(
                A_FUNCTION,
                format!(
                    "this user may not open {path}: run as root, or give it with scripts/bind-vfio {address} --user NAME"
                ),
            ),
            Some(libc::EBUSY) => unsupported(
                A_FUNCTION,
                format!("{path} is in use by another process or container: `fuser -v {path}` shows which"),
            ),
            _ => system(&address.to_string(), "opening vfio", error),
        }
    })
}

type Opened = (OwnedFd, Membership);

fn open_in_group(
    root: &Path,
    sysfs: &Sysfs,
    function: &Function,
    group: IommuGroup,
    joined: Option<&Joined>,
    token: Option<VfToken>,
) -> Result<Opened, PciError> {
    let address = function.address;
    let name = address.to_string();
    let join = |container: BorrowedFd<'_>| -> Result<OwnedFd, PciError> {
        let path = root.join(format!("dev/vfio/{}", group.number));
        let fd = open_node(
            &path,
            address,
            "the kernel has no groups for vfio (VFIO_GROUP), or the function has just been unbound",
        )?;
        viable(fd.as_fd(), sysfs, &group, &name)?;
        let mut message = GroupSetContainer {
            container: container.as_raw_fd(),
        };
        call(fd.as_fd(), &mut message)
            .map_err(|error| system(&name, "putting its group into the container", error))?;
        Ok(fd)
    };
    let device = |group: BorrowedFd<'_>| device_of_group(group, function, token);
    if let Some(joined) = joined {
        return joined.domain.join(group.number, join, device)?.ok_or_else(|| {
            system(
                &name,
                "opening its group",
                io::Error::other("the container has no groups"),
            )
        });
    }
    let container = open_node(
        &root.join("dev/vfio/vfio"),
        address,
        "load the module vfio-pci; the kernel may be built without containers (VFIO_CONTAINER)",
    )?;
    match uapi::api_version(container.as_fd()) {
        Ok(uapi::API_VERSION) => {}
        Ok(version) => {
            return Err(unsupported(
                A_FUNCTION,
                format!("the kernel speaks version {version} of vfio, version 0 was expected"),
            ));
        }
        Err(error) => return Err(system(&name, "asking for the version of vfio", error)),
    }
    // Asked before a group is in, this tells what the kernel can do at all, and has the module loaded.
    if !uapi::has_extension(container.as_fd(), uapi::TYPE1V2) {
        return Err(unsupported(
            A_FUNCTION,
            if uapi::has_extension(container.as_fd(), uapi::NO_IOMMU) {
                "vfio has no iommu of type 1 here, only its mode without an iommu, which is refused"
                    .to_owned()
            } else {
                "vfio has no iommu of type 1 here: load the module vfio_iommu_type1".to_owned()
            },
        ));
    }
    let fd = join(container.as_fd())?;
    uapi::set_iommu(container.as_fd(), uapi::TYPE1V2).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => unsupported(
            A_FUNCTION,
            "the iommu does not remap interrupts, so that the device could raise any: turn interrupt remapping on in the firmware"
                .to_owned(),
        ),
        _ => system(&name, "giving the container its iommu", error),
    })?;
    let domain = Domain::of_container(container, group.number, fd)
        .map_err(|error| system(&name, "asking what the iommu can do", error))?;
    Arc::new(domain).join(group.number, join, device)?.ok_or_else(|| {
        system(
            &name,
            "opening its group",
            io::Error::other("the container has no groups"),
        )
    })
}

/// Whether all of a group is in our hands.
fn viable(fd: BorrowedFd<'_>, sysfs: &Sysfs, group: &IommuGroup, name: &str) -> Result<(), PciError> {
    let mut status = GroupStatus {
        argsz: size::<GroupStatus>(),
        flags: 0,
    };
    call(fd, &mut status).map_err(|error| system(name, "asking for the state of its group", error))?;
    if status.flags & GroupStatus::VIABLE != 0 {
        return Ok(());
    }
    let others: Vec<String> = group
        .members
        .iter()
        .filter_map(|member| match sysfs.driver(*member)?.as_str() {
            "vfio-pci" | "pci-stub" | "pcieport" => None,
            driver => Some(format!("{member} ({driver})")),
        })
        .collect();
    Err(unsupported(
        A_FUNCTION,
        format!(
            "the iommu cannot keep {name} apart from others in its group {}, which drivers of the kernel use: {}; bind those to vfio-pci \
             as well, or put the drive into another slot",
            group.number,
            others.join(", ")
        ),
    ))
}

fn device_of_group(
    group: BorrowedFd<'_>,
    function: &Function,
    token: Option<VfToken>,
) -> Result<OwnedFd, PciError> {
    let name = function.address.to_string();
    let wanted = match token {
        Some(token) => format!("{name} vf_token={token}"),
        None => name.clone(),
    };
    let wanted =
        CString::new(wanted).map_err(|error| system(&name, "naming the device", io::Error::other(error)))?;
    uapi::device_fd(group, &wanted).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EINVAL) if function.physical.is_some() => wrong_token(function, token),
        Some(libc::EBUSY) => unsupported(A_FUNCTION, format!("{name} is in use by another process")),
        _ => system(&name, "opening the device", error),
    })
}

fn wrong_token(function: &Function, token: Option<VfToken>) -> PciError {
    unsupported(
        "a virtual function",
        format!(
            "{} belongs to a physical function that vfio looks after, and {}: open it with the token that the physical function's \
             owner has set",
            function.address,
            if token.is_some() {
                "the token is wrong, or none is wanted"
            } else {
                "a token is wanted"
            }
        ),
    )
}

fn open_device(
    root: &Path,
    function: &Function,
    joined: Option<&Joined>,
    token: Option<VfToken>,
) -> Result<Opened, PciError> {
    let address = function.address;
    let name = address.to_string();
    let no_devices = "the kernel has no character devices for vfio: it takes 6.6 or later, built with VFIO_DEVICE_CDEV and IOMMUFD; \
                      groups do without";
    let Some(device) = &function.vfio_device else {
        return Err(unsupported(A_FUNCTION, no_devices.to_owned()));
    };
    let domain = match joined {
        Some(joined) => Arc::clone(&joined.domain),
        None => {
            let iommufd = open_node(&root.join("dev/iommu"), address, "load the module iommufd")?;
            let mut message = IoasAlloc {
                size: size::<IoasAlloc>(),
                flags: 0,
                out_ioas_id: 0,
            };
            call(iommufd.as_fd(), &mut message)
                .map_err(|error| system(&name, "making an address space", error))?;
            let domain = Domain::of_iommufd(iommufd, message.out_ioas_id)
                .map_err(|error| system(&name, "asking for usable addresses", error))?;
            Arc::new(domain)
        }
    };
    let Some((iommufd, ioas)) = domain.iommufd() else {
        return Err(system(
            &name,
            "opening the device",
            io::Error::other("the container has groups"),
        ));
    };
    let fd = open_node(&root.join("dev/vfio/devices").join(device), address, no_devices)?;
    let mut message = BindIommufd {
        argsz: size::<BindIommufd>(),
        flags: if token.is_some() { BindIommufd::TOKEN } else { 0 },
        iommufd: iommufd.as_raw_fd(),
        out_devid: 0,
        token_pointer: token.as_ref().map_or(0, |token| token.0.as_ptr() as u64),
    };
    call(fd.as_fd(), &mut message).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EINVAL) if function.physical.is_some() => wrong_token(function, token),
        Some(libc::EPERM | libc::EBUSY | libc::EINVAL) => unsupported(
            A_FUNCTION,
            format!("the kernel does not give {name} away ({error}): another process has it, or a driver of the kernel uses one of its group"),
        ),
        _ => system(&name, "binding the device to an iommufd", error),
    })?;
    let mut message = AttachIommufd {
        argsz: size::<AttachIommufd>(),
        flags: 0,
        pt_id: ioas,
    };
    call(fd.as_fd(), &mut message)
        .map_err(|error| system(&name, "putting the device into the address space", error))?;
    let member = domain.member();
    Ok((fd, member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn ways_and_tokens_are_text() {
        for way in [Way::Any, Way::Groups, Way::Devices] {
            assert_eq!(way.to_string().parse(), Ok(way));
        }
        assert!("group".parse::<Way>().unwrap_err().to_string().contains("groups"));
        let token = VfToken(*b"0123456789abcdef");
        assert_eq!(token.to_string(), "30313233-3435-3637-3839-616263646566");
        assert!(!format!("{token:?}").contains("30"));
    }

    const DRIVE: &str = "0000:01:00.0";

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            let folder = machine.path("sys/devices/pci0000:00/0000:00:01.0").join(DRIVE);
            fs::create_dir_all(&folder).unwrap();
            fs::create_dir_all(machine.path("sys/bus/pci/devices")).unwrap();
            fs::create_dir_all(machine.path("dev/vfio")).unwrap();
            symlink(&folder, machine.drive()).unwrap();
            for name in [
                "vendor",
                "device",
                "subsystem_vendor",
                "subsystem_device",
                "revision",
            ] {
                fs::write(folder.join(name), "0x01\n").unwrap();
            }
            fs::write(folder.join("class"), "0x010802\n").unwrap();
            machine
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn drive(&self) -> PathBuf {
            self.path("sys/bus/pci/devices").join(DRIVE)
        }

        fn group(&self, name: &str) {
            let group = self.path("sys/kernel/iommu_groups/7");
            fs::create_dir_all(group.join("devices").join(DRIVE)).unwrap();
            fs::write(group.join("name"), name).unwrap();
            symlink(group, self.drive().join("iommu_group")).unwrap();
        }

        fn driver(&self, name: &str) {
            let link = self.drive().join("driver");
            let _ = fs::remove_file(&link);
            symlink(self.path("sys/bus/pci/drivers").join(name), link).unwrap();
        }

        fn missing(&self, way: Way) -> String {
            let container = Container::with(Options {
                way,
                root: self.0.path().to_owned(),
            });
            match container.open(DRIVE.parse().unwrap()) {
                Err(PciError::Unsupported(unsupported)) => unsupported.missing,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_change() {
        let machine = Machine::new();
        assert!(machine.missing(Way::Any).contains("intel_iommu=on"));
        machine.group("dma");
        assert!(
            machine
                .missing(Way::Any)
                .contains("scripts/bind-vfio 0000:01:00.0")
        );
        machine.driver("nvme");
        let said = machine.missing(Way::Any);
        assert!(
            said.contains("driver nvme") && said.contains("bind-vfio"),
            "{said}"
        );
        machine.driver("vfio-pci");
        assert!(machine.missing(Way::Any).contains("vfio-pci"));
        assert!(machine.missing(Way::Devices).contains("VFIO_DEVICE_CDEV"));
        fs::create_dir_all(machine.drive().join("vfio-dev/vfio3")).unwrap();
        assert!(machine.missing(Way::Devices).contains("module iommufd"));
        let container = Container::with(Options {
            root: machine.0.path().to_owned(),
            ..Options::default()
        });
        let absent = container.open("0000:02:00.0".parse().unwrap());
        assert!(matches!(absent, Err(PciError::Removed { .. })));
    }

    #[test]
    fn there_is_no_mode_without_an_iommu() {
        let machine = Machine::new();
        machine.group("vfio-noiommu");
        machine.driver("vfio-pci");
        let said = machine.missing(Way::Groups);
        assert!(
            said.contains("refused") && said.contains("write anywhere"),
            "{said}"
        );
    }

    #[test]
    fn a_file_that_is_no_vfio_is_an_error() {
        let machine = Machine::new();
        machine.group("dma");
        machine.driver("vfio-pci");
        fs::write(machine.path("dev/vfio/vfio"), "").unwrap();
        let container = Container::with(Options {
            way: Way::Groups,
            root: machine.0.path().to_owned(),
        });
        let error = container.open(DRIVE.parse().unwrap()).unwrap_err();
        assert!(matches!(error, PciError::System { .. }), "{error}");
        assert!(container.space().is_none());
    }
}
