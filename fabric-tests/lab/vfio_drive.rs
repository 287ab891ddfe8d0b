//! Drives in user space by VFIO: `scripts/bind-vfio`, registers, DMA, interrupts and resets, by groups and by character devices.

use std::path::Path;
use std::time::Duration;

use fabric_tests::ensure;
use fabric_tests::lab::{
    Failure, Guest, Kernels, Lab, NvmeDrive, Output, Peer, Requirement, Sriov, Test, Transport, Vm,
};

const DRIVES: Guest = Guest {
    iommu: true,
    drives: &[
        NvmeDrive {
            serial: "plain",
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "memory",
            cmb_mib: 16,
            queues: 4,
            ..NvmeDrive::PLAIN
        },
        NvmeDrive {
            serial: "functions",
            sriov: Some(Sriov::FOUR),
            ..NvmeDrive::PLAIN
        },
    ],
    user_network: false,
    ..Guest::SMALL
};

const NO_IOMMU: Guest = Guest {
    iommu: false,
    drives: &[NvmeDrive::PLAIN],
    user_network: false,
    ..Guest::SMALL
};

const VFIO: Test = Test {
    transport: Transport::Pcie,
    peer: Peer::Drive,
    kernels: Kernels::Default,
    needs: &[Requirement::Vfio],
    guests: &[DRIVES],
    limit: Duration::from_secs(240),
    // One check has a drive write to memory that was taken from it, which the IOMMU reports.
    tolerates: &["DMAR: DRHD: handling fault"],
    ..Test::DEFAULT
};

const DEVICES: &[Requirement] = &[Requirement::Vfio, Requirement::Module("iommufd")];

/// QEMU asks guests for their devices by ACPI.
pub(crate) const UNPLUG: &[Requirement] = &[Requirement::Vfio, Requirement::Config("HOTPLUG_PCI_ACPI")];

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "groups",
        kernels: Kernels::Every,
        feature: "VFIO groups: registers, DMA, MSI-X, reset",
        run: |lab| seam(lab, "groups"),
        ..VFIO
    },
    Test {
        name: "devices",
        needs: DEVICES,
        feature: "VFIO devices and iommufd: registers, DMA, MSI-X, reset",
        run: |lab| seam(lab, "devices"),
        ..VFIO
    },
    Test {
        name: "peers_by_groups",
        kernels: Kernels::Every,
        needs: &[Requirement::Vfio, Requirement::NvmeCmb],
        feature: "one drive reads into another's memory buffer",
        run: |lab| peers(lab, "groups"),
        ..VFIO
    },
    Test {
        name: "peers_by_devices",
        needs: &[
            Requirement::Vfio,
            Requirement::NvmeCmb,
            Requirement::Module("iommufd"),
        ],
        run: |lab| peers(lab, "devices"),
        ..VFIO
    },
    Test {
        name: "two_functions_by_groups",
        needs: &[Requirement::Vfio, Requirement::SriovNvme],
        feature: "two virtual functions at once",
        run: |lab| functions(lab, "groups"),
        ..VFIO
    },
    Test {
        name: "two_functions_by_devices",
        needs: &[
            Requirement::Vfio,
            Requirement::SriovNvme,
            Requirement::Module("iommufd"),
        ],
        run: |lab| functions(lab, "devices"),
        ..VFIO
    },
    Test {
        name: "removal_under_use",
        needs: UNPLUG,
        feature: "a drive is unplugged while it is used",
        run: removal,
        ..VFIO
    },
    Test {
        name: "bind_and_return",
        feature: "scripts/bind-vfio",
        run: bind_and_return,
        ..VFIO
    },
    Test {
        name: "users_without_privileges",
        run: user,
        ..VFIO
    },
    Test {
        name: "nothing_without_an_iommu",
        guests: &[NO_IOMMU],
        run: no_iommu,
        ..VFIO
    },
];

/// Runs `scripts/bind-vfio` in the guest.
fn bind(guest: &Vm, arguments: &str) -> Result<Output, Failure> {
    guest.try_sh(&bind_step(arguments))
}

/// `scripts/bind-vfio` as a step of a guest.
pub(crate) fn bind_step(arguments: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bind-vfio");
    format!("{} {arguments}", script.display())
}

/// The PCI address of a drive that the kernel has.
pub(crate) fn address(guest: &Vm, serial: &str) -> Result<String, Failure> {
    Ok(guest
        .sh(&format!("pci_address {serial}"))?
        .stdout
        .trim()
        .to_owned())
}

/// Binds a drive, and returns its PCI address.
pub(crate) fn taken(guest: &Vm, serial: &str) -> Result<String, Failure> {
    let address = address(guest, serial)?;
    guest.sh(&bind_step(&address))?;
    Ok(address)
}

/// Gives a drive back and waits until the kernel has its first namespace.
pub(crate) fn returned(guest: &Vm, serial: &str, address: &str) -> Result<(), Failure> {
    guest
        .sh(&format!(
            "{}; until_true 30 drive_block {serial} 1",
            bind_step(&format!("{address} --return"))
        ))
        .map(drop)
}

fn line<'a>(output: &'a Output, start: &str) -> Result<&'a str, Failure> {
    output
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(start))
        .ok_or_else(|| Failure::new(format!("nothing was said of {start:?}: {}", output.stdout)))
}

/// Whether a kernel exports BARs as dma-bufs.
fn exports(lab: &Lab) -> bool {
    lab.kernel()
        .is_some_and(|kernel| kernel.is_built_with("VFIO_PCI_DMABUF"))
}

fn seam(lab: &Lab, way: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "plain")?;
    let said = guest.sh_within(
        Duration::from_secs(150),
        &format!("lab-vfio seam --way {way} {drive}"),
    )?;
    lab.note(&said.stdout);
    ensure!(
        line(&said, "identified: ")?.starts_with("plain, "),
        "{}",
        said.stdout
    );
    for part in [
        "registers: ",
        "opened once: ",
        "unmapped: ",
        "reset: ",
        "after the reset: ",
    ] {
        line(&said, part)?;
    }
    let export = line(&said, "export: ")?;
    if exports(lab) {
        ensure!(export == "a dma-buf", "a BAR is not exported: {export}");
    } else {
        ensure!(export.contains("6.19"), "the reason of no export is {export}");
    }
    ensure!(
        said.stdout.contains("import: pinning its pages holds")
            || said.stdout.contains("import: iommufd's mapping of files holds"),
        "no rung holds: {}",
        said.stdout
    );
    returned(guest, "plain", &drive)
}

fn peers(lab: &Lab, way: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let (drive, memory) = (taken(guest, "plain")?, taken(guest, "memory")?);
    let said = guest.sh_within(
        Duration::from_secs(120),
        &format!("lab-vfio peers --way {way} {drive} {memory}"),
    )?;
    lab.note(&said.stdout);
    let peer = line(&said, "peer: ")?;
    if way == "groups" || exports(lab) {
        ensure!(peer == "plain", "the buffer holds {peer:?}");
    } else {
        ensure!(peer.contains("6.19"), "the reason of no peer is {peer}");
    }
    ensure!(
        line(&said, "distance: ")?.contains("HostBridge"),
        "the distance is {}",
        said.stdout
    );
    returned(guest, "memory", &memory)?;
    returned(guest, "plain", &drive)
}

fn functions(lab: &Lab, way: &str) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    // Resources go to a function while it is offline, and only its physical function can give them: two queues and two interrupts each.
    let said = guest.sh(&format!(
        "physical=$(pci_address functions); name=$(pci_nvme functions); cd /sys/bus/pci/devices/$physical
         echo 0 >sriov_drivers_autoprobe; echo 2 >sriov_numvfs
         for id in 1 2; do
             nvme virt-mgmt /dev/$name -c $id -r 0 -a 8 -n 2 >&2; nvme virt-mgmt /dev/$name -c $id -r 1 -a 8 -n 2 >&2
             nvme virt-mgmt /dev/$name -c $id -a 9 >&2
         done
         {refused} && exit 1
         for id in 0 1; do
             function=$(basename $(readlink virtfn$id)); {bind} >&2; echo $function
         done",
        refused = bind_step("$physical --check"),
        bind = bind_step("$function"),
    ))?;
    ensure!(
        said.stderr.contains("2 virtual functions"),
        "a drive with virtual functions is not refused: {}",
        said.stderr
    );
    let names: Vec<&str> = said.stdout.split_whitespace().collect();
    ensure!(names.len() == 2, "the functions are {names:?}");
    let said = guest.sh_within(
        Duration::from_secs(120),
        &format!("lab-vfio both --way {way} {}", names.join(" ")),
    )?;
    lab.note(&said.stdout);
    line(&said, "both: 50 rounds")?;
    line(&said, "one: functions")?;
    guest
        .sh("echo 0 >/sys/bus/pci/devices/$(pci_address functions)/sriov_numvfs &
             writer=$!; ended() { ! kill -0 $writer; }
             (until_true 40 ended) || { cat /proc/$writer/stack >&2; grep -l '^State:.D' /proc/[0-9]*/status | while read -r f; do cat ${f%status}{comm,stack}; done >&2; exit 1; }")
        .map(drop)
}

fn removal(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "plain")?;
    let job = guest.spawn(
        Duration::from_secs(120),
        &format!("exec lab-vfio removal --way groups {drive}"),
    )?;
    job.wait_for_output("holding: plain", Duration::from_secs(60))?;
    guest.unplug_drive(0)?;
    let output = job.wait(Duration::from_secs(60))?;
    line(&output, "removal: ")?;
    line(&output, "given up")?;
    // Others are as they were.
    guest.sh("until_true 20 drive_block memory 1").map(drop)
}

fn bind_and_return(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = address(guest, "plain")?;
    guest.sh(
        "disk=$(drive_block plain 1); mkfs.ext4 -q $disk; mkdir -p /mnt/drive; mount $disk /mnt/drive
         head -c 8M /dev/urandom >/mnt/drive/file; sha256sum /mnt/drive/file | cut -d' ' -f1 >/run/lab/share/sum",
    )?;
    let mounted = bind(guest, &drive)?;
    ensure!(
        !mounted.success() && mounted.stderr.contains("mounted at /mnt/drive: unmount it first"),
        "a mounted drive is not refused: {}{}",
        mounted.stdout,
        mounted.stderr
    );
    guest.sh("umount /mnt/drive")?;
    let open = guest.spawn(Duration::from_secs(60), "exec sleep 50 <$(drive_block plain 1)")?;
    guest.sh("reading() { ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q \"$(drive_block plain 1)\"; }; until_true 20 reading")?;
    let held = bind(guest, &drive)?;
    ensure!(
        !held.success() && held.stderr.contains("is open in process") && held.stderr.contains("(sleep)"),
        "a drive that is open is not refused: {}",
        held.stderr
    );
    open.signal(nix::sys::signal::Signal::SIGTERM)?;
    open.try_wait(Duration::from_secs(20))?;
    guest.sh("mkswap $(drive_block functions 1); swapon $(drive_block functions 1)")?;
    let swap = bind(guest, &address(guest, "functions")?)?;
    ensure!(
        !swap.success() && swap.stderr.contains("holds swap"),
        "a drive with swap is not refused: {}",
        swap.stderr
    );
    guest.sh("swapoff $(drive_block functions 1)")?;

    guest.sh(&bind_step(&format!("{drive} --check")))?;
    let said = guest.sh(&format!("{}; {}", bind_step(&drive), bind_step("--show")))?;
    ensure!(
        said.stdout.contains(&format!("{drive}: /dev/vfio/"))
            && said.stdout.contains(&format!("{drive}  driver vfio-pci")),
        "bind-vfio says {}",
        said.stdout
    );
    // Twice is as good as once.
    guest.sh(&bind_step(&drive))?;
    let said = guest.sh_within(
        Duration::from_secs(150),
        &format!("lab-vfio seam --way groups {drive}"),
    )?;
    line(&said, "identified: plain")?;
    // Not while somebody has it.
    let job = guest.spawn(
        Duration::from_secs(60),
        &format!("exec lab-vfio removal --way groups --limit 40 {drive}"),
    )?;
    job.wait_for_output("holding: plain", Duration::from_secs(30))?;
    let held = bind(guest, &format!("{drive} --return"))?;
    ensure!(
        !held.success() && held.stderr.contains("(lab-vfio): end it first"),
        "a drive in use is given back: {}",
        held.stderr
    );
    job.signal(nix::sys::signal::Signal::SIGKILL)?;
    job.try_wait(Duration::from_secs(20))?;
    returned(guest, "plain", &drive)?;
    let again = guest.sh(&bind_step(&format!("{drive} --return")))?;
    ensure!(
        again.stdout.contains("with the driver nvme already"),
        "twice: {}",
        again.stdout
    );
    guest
        .sh(
            "disk=$(drive_block plain 1); fsck.ext4 -fn $disk >&2; mount -o ro $disk /mnt/drive
             [ $(sha256sum /mnt/drive/file | cut -d' ' -f1) = $(cat /run/lab/share/sum) ]; umount /mnt/drive",
        )
        .map(drop)
}

fn user(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = taken(guest, "plain")?;
    let as_nobody = |limit: &str, command: &str| {
        guest.try_sh(&format!(
            "cp $(command -v lab-vfio) .; chmod 755 lab-vfio
             prlimit --memlock={limit} setpriv --reuid 65534 --regid 65534 --clear-groups ./lab-vfio {command} --way groups {drive}"
        ))
    };
    let refused = as_nobody("unlimited", "refused")?;
    ensure!(
        refused.stdout.contains("may not open") && refused.stdout.contains("--user NAME"),
        "without permission it says {}{}",
        refused.stdout,
        refused.stderr
    );
    let said = guest.sh(&bind_step(&format!("{drive} --user nobody")))?;
    ensure!(
        said.stdout.contains("which nobody may open") && said.stdout.contains("ulimit -l"),
        "bind-vfio says {}",
        said.stdout
    );
    let little = as_nobody("65536", "seam")?;
    ensure!(
        !little.success() && little.stderr.contains("RLIMIT_MEMLOCK"),
        "without memory to lock it says {}{}",
        little.stdout,
        little.stderr
    );
    let enough = as_nobody("unlimited", "seam")?;
    ensure!(
        enough.success() && enough.stdout.contains("identified: plain"),
        "with permission it says {}{}",
        enough.stdout,
        enough.stderr
    );
    returned(guest, "plain", &drive)
}

fn no_iommu(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let drive = address(guest, "plain")?;
    let refused = bind(guest, &drive)?;
    ensure!(
        !refused.success() && refused.stderr.contains("no IOMMU in front of it"),
        "bind-vfio says {}",
        refused.stderr
    );
    let said = guest.sh(&format!("lab-vfio refused --way any {drive}"))?;
    ensure!(
        line(&said, "refused: ")?.contains("intel_iommu=on"),
        "it says {}",
        said.stdout
    );
    // VFIO's mode without an IOMMU, where the kernel has it: bound by hand, and refused all the same.
    let said = guest.sh(&format!(
        "modprobe vfio; mode=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
         [ -e $mode ] || {{ echo no such mode; exit 0; }}
         echo Y >$mode; modprobe vfio-pci; cd /sys/bus/pci/devices/{drive}; echo vfio-pci >driver_override; echo {drive} >driver/unbind
         echo {drive} >/sys/bus/pci/drivers_probe; lab-vfio refused --way any {drive}
         echo >driver_override; echo {drive} >driver/unbind; echo {drive} >/sys/bus/pci/drivers_probe; until_true 30 drive_block plain 1"
    ))?;
    lab.note(&said.stdout);
    ensure!(
        said.stdout.contains("no such mode") || line(&said, "refused: ")?.contains("mode without an iommu"),
        "it says {}",
        said.stdout
    );
    Ok(())
}
