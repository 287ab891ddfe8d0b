//! [`Guest`]: a guest as data, and the QEMU command line that it becomes.

use std::path::Path;

use super::kernel::Kernel;
use super::protocol::PORT;
use super::test::Failure;

/// Queue pairs of an emulated drive that does not say otherwise.
const DRIVE_QUEUES: u16 = 8;
/// Largest frame on a link between guests, in bytes.
pub const LINK_MTU: u16 = 4200;

/// A guest. Two tests with equal guests may share booted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Processors.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Emulated NVMe drives, each behind a root port of its own.
    pub drives: &'static [NvmeDrive],
    /// Whether there is an IOMMU (Intel's) in front of its devices.
    pub iommu: bool,
    /// The links that it is at, by number; each link joins two guests of the test. The guest with index *g* has the interface `link<n>` with the
    /// address `10.10.<n>.<g+1>/24` ([`Vm::link_address`](super::Vm::link_address)).
    pub links: &'static [usize],
    /// Whether it has an interface to this machine: `eth0`, where `10.0.2.2` is this machine's 127.0.0.1.
    pub user_network: bool,
    /// More arguments for its kernel.
    pub kernel_arguments: &'static str,
}

impl Guest {
    /// Two processors, 1 GiB, an interface to this machine, nothing else.
    pub const SMALL: Self = Self {
        cpus: 2,
        memory_mib: 1024,
        drives: &[],
        iommu: false,
        links: &[],
        user_network: true,
        kernel_arguments: "",
    };
}

/// An emulated NVMe drive. Its blocks are zero when the guest boots and gone when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmeDrive {
    /// Serial number, by which steps find it (`pci_address SERIAL` in a step).
    pub serial: &'static str,
    /// Its namespaces.
    pub namespaces: &'static [Namespace],
    /// Size of a controller memory buffer in MiB; 0 for none. Not together with `sriov`.
    pub cmb_mib: u16,
    /// Virtual functions.
    pub sriov: Option<Sriov>,
    /// Queue pairs.
    pub queues: u16,
}

impl NvmeDrive {
    /// One namespace of 64 MiB with blocks of 512 bytes, 8 queue pairs.
    pub const PLAIN: Self = Self {
        serial: "plain",
        namespaces: &[Namespace::PLAIN],
        cmb_mib: 0,
        sriov: None,
        queues: DRIVE_QUEUES,
    };
}

/// A namespace of an emulated drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Its id, from 1.
    pub nsid: u32,
    /// Size in MiB.
    pub size_mib: u32,
    /// Logical block size in bytes.
    pub block_size: u32,
}

impl Namespace {
    /// 64 MiB in blocks of 512 bytes, as namespace 1.
    pub const PLAIN: Self = Self {
        nsid: 1,
        size_mib: 64,
        block_size: 512,
    };
}

/// Virtual functions of an emulated drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sriov {
    /// Most virtual functions.
    pub functions: u16,
    /// Queue resources that can be given to them.
    pub queues: u16,
    /// Interrupt resources that can be given to them.
    pub interrupts: u16,
}

impl Sriov {
    /// Four functions that share 12 queues and 8 interrupts.
    pub const FOUR: Self = Self {
        functions: 4,
        queues: 12,
        interrupts: 8,
    };
}

/// What a guest is booted with, apart from what it is.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its index among the guests of the test.
    pub index: usize,
    /// The folder of this guest: sockets, console, drives, share.
    pub folder: &'a Path,
    /// The folder with the sockets of links.
    pub links: &'a Path,
    /// The agent's program.
    pub agent: &'a Path,
    /// `kvm` or `tcg`.
    pub accelerator: Accelerator,
    /// Whether there is a console (hvc0) on QEMU's standard input and output.
    pub console: bool,
}

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// Socket on which a guest sends its frames of a link, in the folder of links; the relay listens there.
#[must_use]
pub fn link_out(link: usize, guest: usize) -> String {
    format!("{link}-{guest}-out")
}

/// Socket on which a guest receives frames of a link.
#[must_use]
pub fn link_in(link: usize, guest: usize) -> String {
    format!("{link}-{guest}-in")
}

/// Hardware address of a guest's interface at a link.
#[must_use]
pub fn link_hardware_address(link: usize, guest: usize) -> String {
    format!("52:54:00:6c:{link:02x}:{guest:02x}")
}

/// Hardware address of a guest's interface to this machine.
#[must_use]
pub fn user_hardware_address(guest: usize) -> String {
    format!("52:54:00:75:00:{guest:02x}")
}

/// File that backs a namespace, in the folder of the guest.
#[must_use]
pub fn backing_file(drive: usize, nsid: u32) -> String {
    format!("drive{drive}-{nsid}")
}

impl Guest {
    /// Whether QEMU can make it.
    ///
    /// # Errors
    /// What contradicts itself or cannot be had.
    pub fn check(&self) -> Result<(), Failure> {
        let problem = |sentence: String| Err(Failure::new(sentence));
        if self.cpus == 0 || self.memory_mib < 256 {
            return problem(format!(
                "a guest has {} processors and {} MiB: it needs one and 256 MiB at least",
                self.cpus, self.memory_mib
            ));
        }
        for drive in self.drives {
            if drive.cmb_mib != 0 && drive.sriov.is_some() {
                return problem(format!(
                    "drive {} has a CMB and virtual functions: QEMU has either",
                    drive.serial
                ));
            }
            if self
                .drives
                .iter()
                .filter(|other| other.serial == drive.serial)
                .count()
                > 1
            {
                return problem(format!("two drives have the serial number {}", drive.serial));
            }
            for namespace in drive.namespaces {
                if !namespace.block_size.is_power_of_two() || !(512..=65536).contains(&namespace.block_size) {
                    return problem(format!("{} is no block size", namespace.block_size));
                }
            }
        }
        Ok(())
    }

    /// Arguments for QEMU.
    #[must_use]
    pub fn arguments(&self, boot: &Boot<'_>) -> Vec<String> {
        let mut list = Arguments(Vec::new());
        let file = |name: &str| boot.folder.join(name).display().to_string();
        list.words("-nodefaults -no-user-config -no-reboot -display none");
        let machine = match (boot.accelerator, self.iommu) {
            (Accelerator::Kvm, true) => "q35,kernel-irqchip=split",
            _ => "q35",
        };
        list.pair("-M", machine);
        match boot.accelerator {
            Accelerator::Kvm => list.words("-accel kvm -cpu host"),
            // Five levels of page tables cost 15 % under emulation.
            Accelerator::Tcg => list.words("-accel tcg,thread=multi -cpu max,-la57"),
        }
        list.pair("-m", format!("{}M", self.memory_mib));
        list.pair("-smp", self.cpus.to_string());
        list.pair("-kernel", boot.kernel.vmlinux.display().to_string());
        list.pair("-initrd", boot.kernel.initramfs.display().to_string());
        list.pair("-append", self.command_line(boot));
        list.pair("-serial", format!("file:{}", file("console")));
        // The runner listens on these sockets before QEMU starts.
        list.pair("-chardev", format!("socket,id=qmp,path={}", file("qmp")));
        list.pair("-mon", "chardev=qmp,mode=control");
        list.pair("-device", "virtio-serial-pci,id=ports");
        list.pair("-chardev", format!("socket,id=agent,path={}", file("agent")));
        list.pair(
            "-device",
            format!("virtserialport,bus=ports.0,nr=1,chardev=agent,name={PORT}"),
        );
        if boot.console {
            list.pair("-chardev", "stdio,id=console,signal=off");
            list.pair("-device", "virtconsole,bus=ports.0,nr=2,chardev=console");
        }
        list.pair(
            "-fsdev",
            "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        );
        list.pair("-device", "virtio-9p-pci,fsdev=root,mount_tag=root");
        list.pair(
            "-fsdev",
            format!("local,id=share,path={},security_model=none", file("share")),
        );
        list.pair("-device", "virtio-9p-pci,fsdev=share,mount_tag=share");
        list.pair("-device", "virtio-rng-pci");
        if self.iommu {
            list.pair("-device", "intel-iommu,intremap=on,caching-mode=on,eim=off");
        }
        if self.user_network {
            list.pair("-netdev", "user,id=user");
            let address = user_hardware_address(boot.index);
            list.pair(
                "-device",
                format!("virtio-net-pci,id=net-user,netdev=user,mac={address},romfile="),
            );
        }
        for link in self.links {
            let path = |name: String| boot.links.join(name).display().to_string();
            list.pair(
                "-netdev",
                format!(
                    "dgram,id=link{link},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    path(link_in(*link, boot.index)),
                    path(link_out(*link, boot.index)),
                ),
            );
            let address = link_hardware_address(*link, boot.index);
            list.pair(
                "-device",
                format!(
                    "virtio-net-pci,id=net-link{link},netdev=link{link},mac={address},host_mtu=9000,romfile="
                ),
            );
        }
        for (number, drive) in self.drives.iter().enumerate() {
            drive.arguments(number, boot.folder, &mut list);
        }
        list.0
    }

    fn command_line(&self, boot: &Boot<'_>) -> String {
        // preempt=full: otherwise a process that polls starves the kernel's workers. loglevel=5: warnings reach the console, which is all
        // that is left of a guest that has died.
        let mut line = "console=ttyS0 panic=-1 quiet loglevel=5 mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests \
                        nowatchdog preempt=full log_buf_len=1M rcupdate.rcu_cpu_stall_timeout=120"
            .to_owned();
        if boot.accelerator == Accelerator::Tcg {
            line += " tsc=reliable no_timer_check lpj=2600000";
        }
        if self.iommu {
            line += " intel_iommu=on iommu=pt";
        }
        line += &format!(
            " lab.index={} lab.agent={} lab.modules={}",
            boot.index,
            boot.agent.display(),
            boot.kernel.modules.display()
        );
        if !self.kernel_arguments.is_empty() {
            line += " ";
            line += self.kernel_arguments;
        }
        line
    }
}

/// A command line under construction.
struct Arguments(Vec<String>);

impl Arguments {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(str::to_owned));
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

impl NvmeDrive {
    fn arguments(&self, number: usize, folder: &Path, list: &mut Arguments) {
        list.pair(
            "-device",
            format!(
                "pcie-root-port,id=port{number},chassis={},slot={}",
                number + 1,
                number + 1
            ),
        );
        let mut device = format!(
            "nvme,id=drive{number},bus=port{number},serial={},max_ioqpairs={},msix_qsize={}",
            self.serial,
            self.queues,
            self.queues + 1
        );
        if self.cmb_mib != 0 {
            device += &format!(",cmb_size_mb={}", self.cmb_mib);
        }
        if let Some(sriov) = self.sriov {
            list.pair(
                "-device",
                format!("nvme-subsys,id=subsystem{number},nqn={}", self.serial),
            );
            device = format!(
                "nvme,id=drive{number},bus=port{number},serial={},subsys=subsystem{number},sriov_max_vfs={},sriov_vq_flexible={},\
                 sriov_vi_flexible={},max_ioqpairs={queues},msix_qsize={queues}",
                self.serial,
                sriov.functions,
                sriov.queues,
                sriov.interrupts,
                // The flexible resources come out of these, and the primary function keeps two of its own at least.
                queues = self.queues.max(sriov.queues.max(sriov.interrupts) + 4),
            );
        }
        list.pair("-device", device);
        for namespace in self.namespaces {
            let name = backing_file(number, namespace.nsid);
            list.pair(
                "-drive",
                format!(
                    "if=none,id={name},file={},format=raw,cache=unsafe",
                    folder.join(&name).display()
                ),
            );
            let shared = if self.sriov.is_some() { ",shared=on" } else { "" };
            list.pair(
                "-device",
                format!(
                    "nvme-ns,drive={name},bus=drive{number},nsid={},logical_block_size={size},physical_block_size={size}{shared}",
                    namespace.nsid,
                    size = namespace.block_size,
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(guest: &Guest, accelerator: Accelerator) -> String {
        let kernel = Kernel::named_for_tests("debian-6.12", "6.12.1-amd64");
        guest
            .arguments(&Boot {
                kernel: &kernel,
                index: 1,
                folder: Path::new("/f"),
                links: Path::new("/l"),
                agent: Path::new("/bin/lab-agent"),
                accelerator,
                console: false,
            })
            .join(" ")
    }

    #[test]
    fn a_small_guest_has_no_devices_that_it_did_not_ask_for() {
        let line = arguments(&Guest::SMALL, Accelerator::Tcg);
        assert!(line.contains("-accel tcg,thread=multi"), "{line}");
        assert!(line.contains("-netdev user,id=user"), "{line}");
        assert!(line.contains("lab.agent=/bin/lab-agent"), "{line}");
        for absent in ["nvme", "iommu", "dgram", "virtconsole"] {
            assert!(!line.contains(absent), "{absent}: {line}");
        }
        let line = arguments(
            &Guest {
                user_network: false,
                iommu: true,
                ..Guest::SMALL
            },
            Accelerator::Kvm,
        );
        assert!(
            line.contains("-accel kvm") && !line.contains("tsc=reliable"),
            "{line}"
        );
        assert!(
            line.contains("kernel-irqchip=split") && line.contains("intel_iommu=on"),
            "{line}"
        );
        assert!(!line.contains("user,id=user"), "{line}");
    }

    #[test]
    fn drives_and_links_become_devices() {
        const GUEST: Guest = Guest {
            links: &[0, 3],
            drives: &[
                NvmeDrive {
                    serial: "memory",
                    cmb_mib: 16,
                    ..NvmeDrive::PLAIN
                },
                NvmeDrive {
                    serial: "functions",
                    sriov: Some(Sriov::FOUR),
                    namespaces: &[
                        Namespace::PLAIN,
                        Namespace {
                            nsid: 7,
                            size_mib: 8,
                            block_size: 4096,
                        },
                    ],
                    ..NvmeDrive::PLAIN
                },
            ],
            ..Guest::SMALL
        };
        GUEST.check().unwrap();
        let line = arguments(&GUEST, Accelerator::Tcg);
        for part in [
            "nvme,id=drive0,bus=port0,serial=memory,max_ioqpairs=8,msix_qsize=9,cmb_size_mb=16",
            "nvme-subsys,id=subsystem1",
            "sriov_max_vfs=4,sriov_vq_flexible=12,sriov_vi_flexible=8,max_ioqpairs=16,msix_qsize=16",
            "file=/f/drive1-7,format=raw",
            "bus=drive1,nsid=7,logical_block_size=4096",
            "local.path=/l/3-1-in,remote.type=unix,remote.path=/l/3-1-out",
            "mac=52:54:00:6c:03:01",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        const BOTH: NvmeDrive = NvmeDrive {
            cmb_mib: 16,
            sriov: Some(Sriov::FOUR),
            ..NvmeDrive::PLAIN
        };
        let refused: [Guest; 4] = [
            Guest {
                cpus: 0,
                ..Guest::SMALL
            },
            Guest {
                drives: &[BOTH],
                ..Guest::SMALL
            },
            Guest {
                drives: &[NvmeDrive::PLAIN, NvmeDrive::PLAIN],
                ..Guest::SMALL
            },
            Guest {
                drives: &[NvmeDrive {
                    namespaces: &[Namespace {
                        block_size: 520,
                        ..Namespace::PLAIN
                    }],
                    ..NvmeDrive::PLAIN
                }],
                ..Guest::SMALL
            },
        ];
        for guest in refused {
            assert!(guest.check().is_err(), "{guest:?}");
        }
    }
}
