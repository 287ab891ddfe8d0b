//! The checks.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::Failure;
use homi_pci::topology::Sysfs;
use homi_pci::{Access, PciAddress, PciError, PciFunction, PciIdentity};
use homi_queue::Region;
use homi_spec::controller::{Cap, Csts, Version};
use homi_spec::registers::{CmbLoc, CmbMsc, CmbSz, offset};
use homi_vfio::{Container, ImportError, VfioFunction, Way};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::admin::{Admin, IDENTIFY_BYTES, serial};

/// Bytes of a mapping that large pages can be used for.
const LARGE: usize = 4 << 20;

fn open(container: &Container, address: PciAddress) -> Result<VfioFunction, Failure> {
    let function = container.open(address)?;
    ensure!(
        function.identity().class == PciIdentity::NVME_CLASS,
        "{address} is {:?}",
        function.identity()
    );
    Ok(function)
}

fn identified(admin: &mut Admin, space: &homi_pci::DmaSpace) -> Result<String, Failure> {
    let region = Region::allocate(IDENTIFY_BYTES, 4096)?;
    let mapping = space.map(&region, Access::Write)?;
    let cqe = admin.identify(mapping.range().start())?;
    ensure!(cqe.status().is_success(), "Identify ends with {}", cqe.status());
    let mut data = vec![0; IDENTIFY_BYTES];
    region.read(0, &mut data)?;
    Ok(serial(&data))
}

pub(crate) fn seam(way: Way, address: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let function = open(&container, address)?;
    ensure!(
        container.way_taken() == way,
        "{} was taken",
        container.way_taken()
    );
    let topology = Sysfs::of_this_machine().function(address)?;
    println!(
        "topology: root port {:?} group {:?} vectors {}",
        topology.root_port(),
        topology.iommu_group.map(|group| group.number),
        function.vectors()
    );
    let registers = function.registers(0)?;
    let cap = Cap(registers.read64(offset::CAP as u64));
    let version = Version(registers.read32(offset::VS as u64));
    ensure!(
        version.major() >= 1 && cap.max_queue_entries() >= 2 && cap.doorbell_stride() >= 4,
        "the registers are {cap:?} {version:?}"
    );
    println!("registers: {} bytes, version {version}, {cap:?}", registers.len());
    ensure!(
        registers.read32(registers.len()) == u32::MAX && registers.read32(2) == u32::MAX,
        "there are registers where none can be"
    );

    // Descriptors, not names, decide who owns it.
    let again = Container::new(way).open(address);
    ensure!(
        matches!(again, Err(PciError::Unsupported(_))),
        "it can be opened twice: {again:?}"
    );
    println!(
        "opened once: {}",
        again.err().map(|error| error.to_string()).unwrap_or_default()
    );

    let space = function.dma().clone();
    let large = Region::allocate(LARGE, 4096)?;
    let mapping = space.map(&large, Access::ReadWrite)?;
    println!("mapped: {} bytes at {}", large.len(), mapping.range().start());
    let mut admin = Admin::start(&function)?;
    let drive = identified(&mut admin, &space)?;
    // Into the last page of the large mapping, to see that all of it is there.
    let last = LARGE - IDENTIFY_BYTES;
    let at = mapping
        .translate(large.host_address() as usize + last, IDENTIFY_BYTES)
        .ok_or_else(|| Failure::new("the mapping does not translate its last page"))?;
    let cqe = admin.identify(at.start())?;
    ensure!(cqe.status().is_success(), "Identify ends with {}", cqe.status());
    let mut data = vec![0; IDENTIFY_BYTES];
    large.read(last, &mut data)?;
    ensure!(serial(&data) == drive, "the last page holds {:?}", serial(&data));
    ensure!(
        admin.interrupts >= 2,
        "{} interrupts for 2 commands",
        admin.interrupts
    );
    println!("identified: {drive}, {} interrupts", admin.interrupts);

    // What is not mapped cannot be written: the drive says so or falls silent, and the memory stays as it is.
    large.fill(last, IDENTIFY_BYTES, 0x5a)?;
    let gone = at.start();
    drop(mapping);
    ensure!(space.usage().stuck == 0, "an unmap failed: {:?}", space.usage());
    let outcome = admin.identify(gone);
    large.read(last, &mut data)?;
    ensure!(
        data.iter().all(|byte| *byte == 0x5a),
        "the drive wrote to memory that is not mapped"
    );
    println!(
        "unmapped: {}",
        match outcome {
            Ok(cqe) => format!("the drive says {}", cqe.status()),
            Err(failure) => failure.to_string(),
        }
    );

    function.reset()?;
    let cc = registers.read32(offset::CC as u64);
    let csts = Csts(registers.read32(offset::CSTS as u64));
    // The admin queue's registers may keep what they held: emulated drives do not clear them.
    ensure!(
        cc == 0 && !csts.ready(),
        "after the reset CC is {cc:#x}, {csts:?}"
    );
    println!("reset: CC {cc:#x}, {csts:?}");
    drop(admin);
    let mut admin = Admin::start(&function)?;
    ensure!(
        identified(&mut admin, &space)? == drive,
        "another drive answers after the reset"
    );
    println!("after the reset: {} interrupts", admin.interrupts);
    admin.stop()?;
    ensure!(function.enable_vectors(0)?.is_empty(), "vectors that are off");
    ensure!(
        function.enable_vectors(function.vectors() + 1).is_err(),
        "there are more vectors than there are"
    );
    match function.export_bar(0, 0, 4096) {
        Ok(_) => println!("export: a dma-buf"),
        Err(PciError::Unsupported(reason)) => println!("export: {}", reason.missing),
        Err(error) => return Err(error.into()),
    }
    import(&container, &function)?;
    println!("space: {:?}", space.usage());
    Ok(())
}

/// The ladder, with a file of memory (whose pages can be pinned) and with a BAR of the drive itself.
fn import(container: &Container, function: &VfioFunction) -> Result<(), Failure> {
    let file = memfd_create("lab", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&file, 65536)?;
    let imported = container.import(file.as_fd(), 65536, Access::ReadWrite)?;
    for failure in imported.failed() {
        println!("import: {failure}");
    }
    println!("import: {} holds", imported.rung());
    ensure!(
        imported.range().len() == 65536,
        "{} were imported",
        imported.range()
    );
    drop(imported);
    if let Ok(buffer) = function.export_bar(0, 0, 4096) {
        match container.import(buffer.as_fd(), 4096, Access::ReadWrite) {
            Ok(imported) => println!("import of a bar: {} holds", imported.rung()),
            Err(ImportError::NoRung(failures)) => {
                for failure in failures {
                    println!("import of a bar: {failure}");
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(crate) fn peers(way: Way, reader: PciAddress, memory: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let (reader, memory) = (open(&container, reader)?, open(&container, memory)?);
    ensure!(
        reader.dma().is(memory.dma()),
        "two functions of one container have two spaces"
    );
    let distance = Sysfs::of_this_machine().distance(reader.name().parse()?, memory.name().parse()?)?;
    println!("distance: {distance:?}");
    let space = reader.dma().clone();
    let registers = memory.registers(0)?;
    registers.write64(offset::CMBMSC as u64, CmbMsc::CRE);
    let size = CmbSz(registers.read32(offset::CMBSZ as u64));
    let place = CmbLoc(registers.read32(offset::CMBLOC as u64));
    let (Some(bytes), Some(start)) = (size.size(), place.offset(size)) else {
        return Err(Failure::new(format!("the buffer is {size:?} {place:?}")));
    };
    let buffer = memory.bar_memory(place.bar(), start, bytes)?;
    println!("buffer: {bytes} bytes in bar {} at {start}", place.bar());
    buffer.region.fill(0, bytes.try_into()?, 0xa5)?;
    let mapping = match space.map(&buffer.region, Access::ReadWrite) {
        Ok(mapping) => mapping,
        Err(homi_pci::DmaError::Unsupported(reason)) => {
            println!("peer: {}", reason.missing);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let mut admin = Admin::start(&reader)?;
    let to = mapping
        .range()
        .part(8192, IDENTIFY_BYTES as u64)
        .ok_or_else(|| Failure::new("the buffer is too small"))?;
    let before = space.usage();
    let cqe = admin.identify(to.start())?;
    ensure!(cqe.status().is_success(), "Identify ends with {}", cqe.status());
    let mut data = vec![0; IDENTIFY_BYTES + 2];
    buffer.region.read(8191, &mut data)?;
    let (Some(&first), Some(&last)) = (data.first(), data.last()) else {
        return Err(Failure::new("nothing was read"));
    };
    ensure!(
        first == 0xa5 && last == 0xa5,
        "bytes around what was read have changed: {first:#x} {last:#x}"
    );
    // No memory of this machine was mapped for it: nothing but the buffer could have been written.
    ensure!(space.usage() == before, "{:?} became {:?}", before, space.usage());
    println!("peer: {}", serial(data.get(1..).unwrap_or_default()));
    admin.stop()
}

pub(crate) fn both(way: Way, first: PciAddress, second: PciAddress) -> Result<(), Failure> {
    let container = Container::new(way);
    let (first, second) = (open(&container, first)?, open(&container, second)?);
    let space = first.dma().clone();
    let region = Region::allocate(2 * IDENTIFY_BYTES, 4096)?;
    let mapping = space.map(&region, Access::Write)?;
    let (mut one, mut two) = (Admin::start(&first)?, Admin::start(&second)?);
    for round in 0..50 {
        region.fill(0, 2 * IDENTIFY_BYTES, 0)?;
        for (half, admin) in [(0, &mut one), (1, &mut two)] {
            let to = mapping
                .range()
                .part(half * IDENTIFY_BYTES as u64, IDENTIFY_BYTES as u64)
                .ok_or_else(|| Failure::new("the region is too small"))?;
            let mut sqe = homi_spec::command::Sqe::new(homi_spec::command::AdminOpcode::IDENTIFY.0, 0);
            sqe.cdw10 = 1.into();
            sqe.set_prp(to.start().0, 0);
            admin.submit(sqe)?;
        }
        for admin in [&mut two, &mut one] {
            let cqe = admin.complete()?;
            ensure!(cqe.status().is_success(), "round {round}: {}", cqe.status());
        }
        let mut data = vec![0; 2 * IDENTIFY_BYTES];
        region.read(0, &mut data)?;
        let (a, b) = data.split_at(IDENTIFY_BYTES);
        ensure!(
            !serial(a).is_empty() && !serial(b).is_empty(),
            "round {round}: {:?} and {:?}",
            serial(a),
            serial(b)
        );
    }
    println!(
        "both: 50 rounds, {} and {} interrupts",
        one.interrupts, two.interrupts
    );
    // One goes, the other stays as it is.
    one.stop()?;
    drop(first);
    let name = identified(&mut two, &space)?;
    println!("one: {name}");
    two.stop()
}

pub(crate) fn removal(way: Way, address: PciAddress, limit: Duration) -> Result<(), Failure> {
    let container = Container::new(way);
    let function = open(&container, address)?;
    let mut admin = Admin::start(&function)?;
    let name = identified(&mut admin, &function.dma().clone())?;
    println!("holding: {name}");
    let start = Instant::now();
    let descriptor = function
        .removal()
        .ok_or_else(|| Failure::new("nobody tells when it is to go"))?;
    loop {
        let mut wait = [PollFd::new(descriptor, PollFlags::POLLIN)];
        // Commands go on until then.
        if poll(&mut wait, PollTimeout::from(50_u16))? > 0 {
            break;
        }
        identified(&mut admin, &function.dma().clone())?;
        ensure!(start.elapsed() < limit, "after {limit:?} nobody wants it back");
    }
    println!("removal: after {} ms", start.elapsed().as_millis());
    drop(admin);
    drop(function);
    drop(container);
    println!("given up");
    Ok(())
}

pub(crate) fn refused(way: Way, address: PciAddress) -> Result<(), Failure> {
    match Container::new(way).open(address) {
        Err(PciError::Unsupported(reason)) => {
            println!("refused: {}", reason.missing);
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(function) => Err(Failure::new(format!("{} can be had", function.name()))),
    }
}
