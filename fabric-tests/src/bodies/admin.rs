//! Admin commands: what the controller and its namespaces say about themselves, features and logs.

use homi_fabric::host::{ControllerKind, NamespaceInfo, StepData};
use homi_queue::Command;
use homi_spec::command::{AdminOpcode, NSID_BROADCAST, NvmOpcode};
use homi_spec::feature::{
    FeatureId, GetFeatures, HOST_IDENTIFIER_EXTENDED, NumberOfQueues, Select, SetFeatures,
};
use homi_spec::identify::{Cns, ControllerList, Identify, NamespaceList};
use homi_spec::log::{CommandEffectsLog, FirmwareSlotLog, GetLogPage, LogId, SmartLog, effects};
use homi_spec::{Sqe, Status};
use zerocopy::FromBytes;

use super::{ram_and_queue, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::pair::host_id;
use crate::settings::{DATA, HOST, NAMESPACE_BYTES, node, ram};

fn identify(cns: Cns, nsid: u32) -> Command {
    Command(Identify::namespace(cns, nsid).to_sqe(0))
}

fn log(page: LogId, len: usize) -> Command {
    let mut get = GetLogPage::new(page, u64::try_from(len).unwrap()).unwrap();
    get.nsid = NSID_BROADCAST;
    Command(get.to_sqe(0))
}

/// The controller says what it is, what it can do and how large.
pub fn the_controller_describes_itself<H: Harness>() {
    let config = node(&format!(
        r#"
[limits]
io_queues = 3
queue_entries = 64
[[subsystem]]
nqn = "{DATA}"
allow_any_host = true
serial = "S/N 0815"
model = "Model of a drive"
"#
    ));
    let mut target = H::start(&config);
    let host = target.host(&HostOptions::default());
    let info = host.info();
    assert_eq!(info.kind, ControllerKind::Io);
    assert_eq!(info.subsystem_nqn.as_str(), DATA);
    assert_eq!(
        (info.serial.as_str(), info.model.as_str()),
        ("S/N 0815", "Model of a drive")
    );
    assert_eq!((info.io_queues, info.max_queue_entries), (3, 64));
    assert_eq!(info.max_transfer, Some(1 << 20));
    assert_eq!(info.in_capsule, 16 << 10);
    assert_eq!(info.keep_alive_granularity_ms, 100);
    assert!(info.compare && info.deallocate && info.write_zeroes && info.verify);
    // Without files there is nothing that a Flush would have to write.
    assert!(!info.volatile_write_cache);
}

/// Namespaces are listed, sized and named, with names of their own that stay.
pub fn namespaces_describe_themselves<H: Harness>() {
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut target = H::start(&ram());
        let mut host = target.host(&HostOptions::default());
        let page = host.read_page(identify(Cns::ACTIVE_NAMESPACES, 0), 4096).unwrap();
        let list = NamespaceList::read_from_bytes(&page).unwrap();
        assert_eq!(list.iter().collect::<Vec<u32>>(), [1, 2]);
        let page = host.read_page(identify(Cns::ACTIVE_NAMESPACES, 1), 4096).unwrap();
        let list = NamespaceList::read_from_bytes(&page).unwrap();
        assert_eq!(list.iter().collect::<Vec<u32>>(), [2]);
        for (nsid, size) in [(1, 512), (2, 4096)] {
            let page = host.read_page(identify(Cns::NAMESPACE, nsid), 4096).unwrap();
            let mut info = NamespaceInfo::from_page(nsid, &page).unwrap().unwrap();
            assert_eq!((info.block_size, info.bytes()), (size, NAMESPACE_BYTES));
            assert!(!info.read_only && info.shared);
            let list = host
                .read_page(identify(Cns::NAMESPACE_DESCRIPTORS, nsid), 4096)
                .unwrap();
            info.add_descriptors(&list);
            assert!(info.uuid.is_some() && info.nguid.is_some());
            names.push((nsid, info.uuid, info.nguid, info.eui64));
        }
        // A namespace that is not there, and one that cannot be.
        let page = host.read_page(identify(Cns::NAMESPACE, 7), 4096).unwrap();
        assert_eq!(page, vec![0; 4096]);
        for nsid in [0, 1025, NSID_BROADCAST] {
            assert_eq!(
                host.read_page(identify(Cns::NAMESPACE, nsid), 4096),
                Err(Status::INVALID_NAMESPACE.with_dnr())
            );
        }
    }
    assert_eq!(names[..2], names[2..], "names are the same after a restart");
    assert_ne!(names[0].1, names[1].1);
}

/// The controllers of a subsystem are listed, each host's own.
pub fn controllers_are_listed<H: Harness>() {
    let mut target = H::start(&ram());
    let mut first = target.host(&HostOptions::default());
    let second = target.host(&HostOptions::default());
    let page = first.read_page(identify(Cns::CONTROLLERS, 0), 4096).unwrap();
    let list = ControllerList::read_from_bytes(&page).unwrap();
    let mut expected = [first.info().controller_id, second.info().controller_id];
    expected.sort_unstable();
    assert_eq!(list.iter().collect::<Vec<u16>>(), expected);
}

/// Identify of what does not exist.
pub fn structures_that_do_not_exist<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
    for cns in [0x04, 0x0a, 0x17, 0x19, 0xff] {
        assert_eq!(
            host.read_page(identify(Cns(cns), 1), 4096),
            Err(Status::INVALID_FIELD.with_dnr()),
            "{cns:#x}"
        );
    }
    for opcode in [0x00, 0x01, 0x04, 0x0d, 0x10, 0x80] {
        let (completion, _) = host.admin(Command(Sqe::new(opcode, 0)), StepData::None);
        assert_eq!(
            completion.status,
            Status::INVALID_OPCODE.with_dnr(),
            "{opcode:#x}"
        );
    }
    // A page of another length than 4096 bytes.
    assert_eq!(
        host.read_page(identify(Cns::CONTROLLER, 0), 512),
        Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
    );
    write_and_read(&mut queue, (1, 512), 0, 1);
}

/// Log pages: health counts what hosts did, the effects log names every command, the firmware log its one slot.
pub fn log_pages<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
    for round in 0..10 {
        write_and_read(&mut queue, (1, 512), 8 * round, round);
    }
    let page = host.read_page(log(LogId::SMART, 512), 512).unwrap();
    let smart = SmartLog::read_from_bytes(&page).unwrap();
    assert_eq!((smart.host_reads.get(), smart.host_writes.get()), (10, 10));
    assert_eq!((smart.critical_warning, smart.available_spare), (0, 100));
    let page = host.read_page(log(LogId::FIRMWARE_SLOT, 512), 512).unwrap();
    assert_eq!(FirmwareSlotLog::read_from_bytes(&page).unwrap().afi & 7, 1);
    let page = host.read_page(log(LogId::COMMAND_EFFECTS, 4096), 4096).unwrap();
    let log_page = CommandEffectsLog::read_from_bytes(&page).unwrap();
    for opcode in [
        NvmOpcode::READ,
        NvmOpcode::WRITE,
        NvmOpcode::FLUSH,
        NvmOpcode::VERIFY,
    ] {
        let entry = log_page.io[usize::from(opcode.raw())].get();
        assert_ne!(entry & effects::SUPPORTED, 0, "{opcode}");
    }
    let identify = usize::from(AdminOpcode::IDENTIFY.raw());
    assert_ne!(log_page.admin[identify].get() & effects::SUPPORTED, 0);
    // Pages that do not exist, and offsets beyond those that do.
    for page in [0x0c, 0x70, 0x80, 0xc0] {
        assert_eq!(
            host.read_page(log(LogId(page), 512), 512),
            Err(Status::INVALID_LOG_PAGE.with_dnr()),
            "{page:#x}"
        );
    }
    let beyond = GetLogPage::new(LogId::SMART, 512).unwrap().at(1024);
    assert_eq!(
        host.read_page(Command(beyond.to_sqe(0)), 512),
        Err(Status::INVALID_FIELD.with_dnr())
    );
    // What is past the end of a page is zero, never what was in memory.
    let tail = GetLogPage::new(LogId::SMART, 4096).unwrap();
    let bytes = host.read_page(Command(tail.to_sqe(0)), 4096).unwrap();
    assert_eq!(bytes[512..], [0; 4096 - 512]);
}

/// Features that can be set are read back, the others refused.
pub fn features<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
    fn get<T: Host>(host: &mut T, feature: GetFeatures) -> Result<u32, Status> {
        let (completion, _) = host.admin(Command(feature.to_sqe(0)), StepData::None);
        if completion.is_success() {
            Ok(completion.dw0())
        } else {
            Err(completion.status)
        }
    }
    fn set<T: Host>(host: &mut T, feature: SetFeatures) -> Status {
        host.admin(Command(feature.to_sqe(0)), StepData::None).0.status
    }
    for (feature, value) in [
        (FeatureId::ARBITRATION, 0x0102_0307),
        (FeatureId::WRITE_ATOMICITY, 1),
    ] {
        assert_eq!(set(&mut host, SetFeatures::new(feature, value)), Status::SUCCESS);
        assert_eq!(get(&mut host, GetFeatures::new(feature)), Ok(value));
        let default = GetFeatures {
            select: Select::DEFAULT,
            ..GetFeatures::new(feature)
        };
        assert_eq!(get(&mut host, default), Ok(0));
    }
    let queues = get(&mut host, GetFeatures::new(FeatureId::NUMBER_OF_QUEUES)).unwrap();
    assert_eq!(NumberOfQueues::from_dword(queues).queue_pairs(), 64);
    // Queues exist, so their number is fixed.
    let more = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, 0x0001_0001);
    assert_eq!(set(&mut host, more), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    // The host's identifier is the one of Connect, in its long form only.
    let long = GetFeatures {
        cdw11: HOST_IDENTIFIER_EXTENDED,
        ..GetFeatures::new(FeatureId::HOST_IDENTIFIER)
    };
    let bytes = host.read_page(Command(long.to_sqe(0)), 16).unwrap();
    assert_eq!(bytes, host_id(HOST));
    assert_eq!(
        set(&mut host, SetFeatures::new(FeatureId::HOST_IDENTIFIER, 1)),
        Status::COMMAND_SEQUENCE_ERROR.with_dnr()
    );
    // Nothing can be saved, and what does not exist cannot be had.
    let saved = SetFeatures {
        save: true,
        ..SetFeatures::new(FeatureId::ARBITRATION, 0)
    };
    assert_eq!(set(&mut host, saved), Status::FEATURE_NOT_SAVEABLE.with_dnr());
    for feature in [0x00, 0x03, 0x0d, 0x82, 0xc0] {
        assert_eq!(
            get(&mut host, GetFeatures::new(FeatureId(feature))),
            Err(Status::INVALID_FIELD.with_dnr()),
            "{feature:#x}"
        );
    }
    write_and_read(&mut queue, (1, 512), 0, 1);
}

/// Memory of commands that fail, or that bring less than there is room for, is left as it was.
pub fn what_fails_brings_nothing<H: Harness>() {
    let (_target, mut host, mut queue) = ram_and_queue::<H>(2);
    let (completion, bytes) = host.admin(identify(Cns(0xff), 0), StepData::In(4096));
    assert_eq!(completion.status, Status::INVALID_FIELD.with_dnr());
    assert_eq!((completion.result, bytes), (0, vec![0; 4096]));
    let (completion, data) = queue.execute(Command::read(1, u64::MAX, 1), crate::issuer::blank(512));
    assert_eq!(completion.status, Status::LBA_OUT_OF_RANGE.with_dnr());
    assert_eq!(completion.result, 0);
    assert_eq!(crate::issuer::bytes_of(&data), vec![0xee; 512]);
}
