//! [`Requirement`]: what a test needs, as data, and [`Machine`]: what is there.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::kernel::{ADVICE, Kernel};
use super::vm::QEMU;

/// The oldest QEMU that has everything (SR-IOV and flexible queues in its drives).
const QEMU_WANTED: u32 = 8;

/// The program that shows RDMA at work, in the folder of the others ([`Lab::program`](super::Lab::program)).
pub const VERBS_PROGRAM: &str = "examples/pingpong";

/// Something that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// The loopback interface; it is everywhere.
    Loopback,
    /// Linux's NVMe/TCP host in a guest, with nvme-cli.
    LinuxHost,
    /// Linux's NVMe/TCP target in a guest.
    LinuxTarget,
    /// RDMA over Ethernet in software (rxe) in a guest.
    SoftRoce,
    /// Programs of this checkout that were built with RDMA.
    Verbs,
    /// Drives and their interrupts in user space (vfio-pci) in a guest with an IOMMU.
    Vfio,
    /// An emulated drive with a controller memory buffer.
    NvmeCmb,
    /// An emulated drive with virtual functions.
    SriovNvme,
    /// Block devices served from user space (ublk) in a guest.
    Ublk,
    /// An accelerator in this machine.
    Gpu,
    /// An RDMA network card in this machine.
    RdmaNic,
    /// A module of the guest's kernel.
    Module(&'static str),
    /// A program of this machine, which is the guests' too.
    Tool(&'static str),
    /// Something that the guest's kernel was built with (`HOTPLUG_PCI_ACPI`) and that is no module.
    Config(&'static str),
}

impl Requirement {
    const NAMES: [(Self, &'static str); 11] = [
        (Self::Loopback, "Loopback"),
        (Self::LinuxHost, "LinuxHost"),
        (Self::LinuxTarget, "LinuxTarget"),
        (Self::SoftRoce, "SoftRoce"),
        (Self::Verbs, "Verbs"),
        (Self::Vfio, "Vfio"),
        (Self::NvmeCmb, "NvmeCmb"),
        (Self::SriovNvme, "SriovNvme"),
        (Self::Ublk, "Ublk"),
        (Self::Gpu, "Gpu"),
        (Self::RdmaNic, "RdmaNic"),
    ];

    /// Whether a name, as it is displayed, is that of a requirement: `Gpu`, `Module(siw)`, `Tool(fio)`,
    /// `Config(HOTPLUG_PCI_ACPI)`.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let of = |kind: &str| {
            name.strip_prefix(kind)
                .and_then(|rest| rest.strip_prefix('(')?.strip_suffix(')'))
                .is_some_and(|inner| !inner.is_empty())
        };
        Self::NAMES.iter().any(|(_, known)| *known == name)
            || ["Module", "Tool", "Config"].into_iter().any(of)
    }

    /// Why it is not there, or `None` if it is. Without a kernel, what a guest would need counts as there: the test has none.
    #[must_use]
    pub fn missing(self, machine: &Machine, kernel: Option<&Kernel>) -> Option<String> {
        let module = |name: &str| {
            let kernel = kernel?;
            (!kernel.has_module(name)).then(|| format!("Linux {} has no module {name}", kernel.release))
        };
        let tool = |name: &str| (!machine.has_tool(name)).then(|| format!("{name} is missing: {ADVICE}"));
        let property = |name: &str| {
            (!machine.drive_properties.contains(name))
                .then(|| format!("QEMU's drive has no {name}: {ADVICE}"))
        };
        match self {
            Self::Loopback => None,
            Self::LinuxHost => module("nvme-tcp").or_else(|| tool("nvme")),
            Self::LinuxTarget => module("nvmet-tcp"),
            Self::SoftRoce => module("rdma_rxe").or_else(|| tool("rdma")),
            Self::Verbs => (!machine.verbs).then(|| {
                format!("the programs were built without RDMA, which needs cmake and libclang: {ADVICE}")
            }),
            Self::Vfio => module("vfio-pci"),
            Self::NvmeCmb => property("cmb_size_mb"),
            Self::SriovNvme => property("sriov_max_vfs"),
            Self::Ublk => module("ublk_drv"),
            Self::Gpu => (!machine.gpu).then(|| "this machine has no accelerator with a driver".to_owned()),
            Self::RdmaNic => (!machine.rdma_nic).then(|| "this machine has no RDMA network card".to_owned()),
            Self::Module(name) => module(name),
            Self::Tool(name) => tool(name),
            Self::Config(option) => {
                let kernel = kernel?;
                (!kernel.is_built_with(option))
                    .then(|| format!("Linux {} was built without {option}", kernel.release))
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module(name) => write!(f, "Module({name})"),
            Self::Tool(name) => write!(f, "Tool({name})"),
            Self::Config(option) => write!(f, "Config({option})"),
            other => {
                let known = Self::NAMES.iter().find(|(requirement, _)| requirement == other);
                f.pad(known.map_or("", |(_, name)| name))
            }
        }
    }
}

/// What this machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Version of QEMU.
    pub qemu: Option<String>,
    /// What QEMU says about its emulated drive.
    pub drive_properties: String,
    /// Folders with programs.
    pub path: Vec<String>,
    /// Whether there is an accelerator.
    pub gpu: bool,
    /// Whether there is an RDMA network card.
    pub rdma_nic: bool,
    /// Whether this checkout was built with RDMA.
    pub verbs: bool,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let said = |arguments: &[&str]| {
            Command::new(QEMU)
                .args(arguments)
                .output()
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default()
        };
        let path = env::var("PATH").unwrap_or_default();
        let mut path: Vec<String> = path.split(':').map(str::to_owned).collect();
        path.extend(["/usr/sbin".to_owned(), "/sbin".to_owned()]);
        Self {
            qemu: qemu_version(&said(&["--version"])),
            drive_properties: said(&["-device", "nvme,help"]),
            path,
            gpu: Path::new("/dev/nvidiactl").exists() || Path::new("/dev/kfd").exists(),
            rdma_nic: fs::read_dir("/sys/class/infiniband")
                .into_iter()
                .flatten()
                .flatten()
                // Software's have no device behind them.
                .any(|entry| entry.path().join("device").exists()),
            // Only a build with RDMA has this beside the program that runs the lab.
            verbs: env::current_exe()
                .ok()
                .and_then(|program| Some(program.parent()?.join(VERBS_PROGRAM).exists()))
                .unwrap_or_default(),
        }
    }

    /// Why no guest can run, or `None`.
    #[must_use]
    pub fn lacks_guests(&self, kernels: &[Kernel]) -> Option<String> {
        let Some(version) = &self.qemu else {
            return Some(format!("QEMU is missing: {ADVICE}"));
        };
        let major = version
            .split('.')
            .next()
            .and_then(|number| number.parse::<u32>().ok());
        if major.is_none_or(|major| major < QEMU_WANTED) {
            return Some(format!(
                "QEMU {version} is too old, {QEMU_WANTED} or later is needed: {ADVICE}"
            ));
        }
        kernels
            .is_empty()
            .then(|| format!("no kernel is prepared: {ADVICE}"))
    }

    fn has_tool(&self, name: &str) -> bool {
        self.path
            .iter()
            .any(|folder| Path::new(folder).join(name).exists())
    }
}

fn qemu_version(said: &str) -> Option<String> {
    let version = said.lines().next()?.split("version ").nth(1)?;
    Some(version.split(' ').next().unwrap_or(version).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one() {
        for (requirement, name) in Requirement::NAMES {
            assert_eq!(requirement.to_string(), name);
            assert!(Requirement::is_name(name));
        }
        assert!(Requirement::is_name(&Requirement::Module("siw").to_string()));
        assert!(Requirement::is_name("Tool(fio)"));
        assert!(Requirement::is_name(
            &Requirement::Config("HOTPLUG_PCI_ACPI").to_string()
        ));
        for wrong in ["", "gpu", "Module", "Module()", "Tool(fio", "LinuxHosts"] {
            assert!(!Requirement::is_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let nothing = Machine::default();
        let kernel = Kernel::named_for_tests("debian-6.12", "6.12.1-amd64");
        let reason = |requirement: Requirement| requirement.missing(&nothing, Some(&kernel)).unwrap();
        assert_eq!(
            reason(Requirement::LinuxTarget),
            "Linux 6.12.1-amd64 has no module nvmet-tcp"
        );
        assert_eq!(
            reason(Requirement::Tool("fio")),
            "fio is missing: run scripts/lab setup"
        );
        assert!(reason(Requirement::NvmeCmb).contains("cmb_size_mb"));
        assert!(reason(Requirement::Verbs).contains("built without RDMA"));
        assert_eq!(Requirement::Loopback.missing(&nothing, Some(&kernel)), None);
        assert_eq!(Requirement::LinuxTarget.missing(&nothing, None), None);
    }

    #[test]
    fn guests_need_a_recent_qemu_and_a_kernel() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(qemu_version(said).as_deref(), Some("10.0.2"));
        assert_eq!(
            qemu_version("QEMU emulator version 9.1.0\n").as_deref(),
            Some("9.1.0")
        );
        assert_eq!(qemu_version(""), None);
        let kernels = [Kernel::named_for_tests("debian-6.12", "6.12.1-amd64")];
        let machine = |version: &str| Machine {
            qemu: Some(version.to_owned()),
            ..Machine::default()
        };
        assert!(
            Machine::default()
                .lacks_guests(&kernels)
                .unwrap()
                .contains("QEMU is missing: run scripts/lab setup")
        );
        assert!(
            machine("7.2.0")
                .lacks_guests(&kernels)
                .unwrap()
                .contains("too old")
        );
        assert!(machine("10.0.2").lacks_guests(&[]).unwrap().contains("no kernel"));
        assert_eq!(machine("10.0.2").lacks_guests(&kernels), None);
    }
}
