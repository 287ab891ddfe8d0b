//! Identify pages and log pages: contents, and what malformed ones do.

use homi_spec::command::AdminOpcode;
use homi_spec::identify::{
    ControllerList, Csi, DescriptorError, IdentifyController, IdentifyNamespace, IoCommandSets, LbaFormat,
    NamespaceDescriptors, NamespaceId, NamespaceList,
};
use homi_spec::log::{
    AddressFamily, AnaError, AnaGroupDescriptor, AnaGroups, AnaHeader, AnaState, CommandEffectsLog,
    DiscoveryEntry, DiscoveryHeader, ErrorLogEntry, FirmwareSlotLog, LogId, RdmaCms, RdmaProvider,
    RdmaQpType, RdmaTsas, SecureChannel, SecurityType, SubsystemType, SupportedLogPages, TransportType,
    effects, treq,
};
use homi_spec::nqn::Nqn;
use homi_spec::text::TextError;
use homi_spec::{Status, U32};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn controller_text() {
    let mut page = IdentifyController::default();
    page.set_serial("S123").unwrap();
    page.set_model("Homi disk").unwrap();
    page.set_firmware("0.1").unwrap();
    assert_eq!(&page.as_bytes()[4..24], b"S123                ");
    assert_eq!(&page.as_bytes()[64..72], b"0.1     ");
    assert_eq!(
        (page.serial(), page.model(), page.firmware()),
        (Some("S123"), Some("Homi disk"), Some("0.1"))
    );
    assert_eq!(
        page.set_firmware("123456789"),
        Err(TextError::TooLong { len: 9, room: 8 })
    );
    assert_eq!(page.set_serial("ü"), Err(TextError::NotAscii { offset: 0 }));
    assert_eq!(page.serial(), Some("S123"));
    page.sn[0] = 0x07;
    assert_eq!(page.serial(), None);
    let nqn = Nqn::new("nqn.2024-01.org.example:disk1").unwrap();
    page.subnqn = nqn.to_field();
    assert_eq!(page.subsystem_nqn(), Ok(nqn));
}

#[test]
fn controller_limits() {
    let mut page = IdentifyController::default();
    assert_eq!(page.max_transfer(0), None);
    page.mdts = 5;
    assert_eq!(page.max_transfer(0), Some(128 * 1024));
    page.mdts = 255;
    assert_eq!(page.max_transfer(15), None);

    assert_eq!(page.in_capsule_data(), None);
    page.ioccsz = 4.into();
    assert_eq!(page.in_capsule_data(), Some(0));
    page.ioccsz = (4 + 8192 / 16).into();
    assert_eq!(page.in_capsule_data(), Some(8192));
    page.icdoff = 2.into();
    assert_eq!(page.in_capsule_data(), Some(8192 - 32));
    page.icdoff = u16::MAX.into();
    assert_eq!(page.in_capsule_data(), None);
}

#[test]
fn namespace_formats() {
    let mut page = IdentifyNamespace::default();
    assert!(!page.is_active());
    page.lbaf[0] = LbaFormat::plain(9);
    assert_eq!(page.format().and_then(LbaFormat::block_size), Some(512));
    page.flbas = 0x21;
    // Bits 6:5 do not count with 16 formats or fewer.
    page.nlbaf_z = 1;
    page.lbaf[1] = LbaFormat::plain(12);
    assert_eq!(page.format_index(), 1);
    assert_eq!(page.format().and_then(LbaFormat::block_size), Some(4096));
    page.nlbaf_z = 63;
    assert_eq!(page.format_index(), 17);
    page.flbas = 2;
    page.nlbaf_z = 1;
    assert_eq!(page.format(), None);
    for lbads in [0, 8, 32, 255] {
        assert_eq!(LbaFormat::plain(lbads).block_size(), None);
    }
    assert_eq!(
        LbaFormat {
            ms: 8.into(),
            lbads: 9,
            rp: 1
        }
        .as_bytes(),
        [8, 0, 9, 1]
    );
}

#[test]
fn namespace_descriptors() {
    let mut page = [0; 4096];
    let mut at = 0;
    let ids = [
        NamespaceId::Eui64([1; 8]),
        NamespaceId::Nguid([2; 16]),
        NamespaceId::Uuid([3; 16]),
        NamespaceId::Csi(Csi::NVM),
        NamespaceId::Unknown {
            nidt: 0x77,
            bytes: &[9, 9, 9],
        },
    ];
    for id in ids {
        at += id.write(&mut page[at..]).unwrap();
    }
    assert_eq!(page[..5], [1, 8, 0, 0, 1]);
    assert_eq!(page[52..57], [4, 1, 0, 0, 0]);
    assert_eq!(page[57..64], [0x77, 3, 0, 0, 9, 9, 9]);
    let read: Result<Vec<_>, _> = NamespaceDescriptors::new(&page).collect();
    assert_eq!(read.unwrap(), ids);

    assert_eq!(NamespaceId::Uuid([3; 16]).write(&mut [0; 19]), None);
    let mut wrong = NamespaceDescriptors::new(&[1, 7, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(
        wrong.next(),
        Some(Err(DescriptorError::Length {
            offset: 0,
            nidt: 1,
            nidl: 7,
            expected: 8
        }))
    );
    assert_eq!(wrong.next(), None);
    let mut cut = NamespaceDescriptors::new(&[3, 16, 0, 0, 1]);
    assert_eq!(
        cut.next(),
        Some(Err(DescriptorError::Truncated {
            offset: 0,
            nidt: 3,
            nidl: 16
        }))
    );
    assert_eq!(cut.next(), None);
}

#[test]
fn lists() {
    let list = NamespaceList::new([1, 5, 0x0102_0304]);
    assert_eq!(
        list.as_bytes()[..16],
        [1, 0, 0, 0, 5, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]
    );
    assert_eq!(list.iter().collect::<Vec<_>>(), [1, 5, 0x0102_0304]);
    assert_eq!(NamespaceList::new(1..=2000).iter().count(), 1024);

    let mut controllers = ControllerList::new([1, 2]);
    assert_eq!(controllers.as_bytes()[..6], [2, 0, 1, 0, 2, 0]);
    assert_eq!(controllers.iter().collect::<Vec<_>>(), [1, 2]);
    controllers.count = u16::MAX.into();
    assert_eq!(controllers.iter().count(), 2047);

    let sets = IoCommandSets::nvm_only();
    assert_eq!(sets.find(&[Csi::NVM]), Some(0));
    assert_eq!(sets.find(&[Csi::NVM, Csi::ZONED]), None);
    assert_eq!(sets.find(&[Csi(200)]), None);
}

#[test]
fn small_logs() {
    let entry = ErrorLogEntry {
        error_count: 1.into(),
        sqid: 2.into(),
        cid: 3.into(),
        status: Status::INVALID_FIELD.to_wire(false).into(),
        lba: 5.into(),
        nsid: 6.into(),
        ..ErrorLogEntry::default()
    };
    let mut expected = [0; 64];
    expected[..28].copy_from_slice(&[
        1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0,
    ]);
    assert_eq!(entry.as_bytes(), expected);
    assert_eq!(entry.status(), Status::INVALID_FIELD);

    let slots = FirmwareSlotLog::single(*b"0.1     ");
    assert_eq!(&slots.as_bytes()[..16], b"\x01\0\0\0\0\0\0\x000.1     ");

    let mut log = CommandEffectsLog::default();
    log.set_admin(AdminOpcode::IDENTIFY.0, effects::SUPPORTED);
    log.set_io(0xff, effects::SUPPORTED | effects::CONTENT_CHANGE);
    assert_eq!(log.as_bytes()[24], 1);
    assert_eq!(log.as_bytes()[2044], 3);

    let pages = SupportedLogPages::new(&[LogId::ERROR, LogId::DISCOVERY]);
    assert!(pages.supports(LogId::DISCOVERY) && !pages.supports(LogId::ANA));
    assert_eq!(pages.as_bytes()[4], 1);
}

#[test]
fn ana() {
    let header = AnaHeader {
        change_count: 7.into(),
        groups: 2.into(),
        ..AnaHeader::default()
    };
    let group = |group: u32, count: u32, state: AnaState| AnaGroupDescriptor {
        group: group.into(),
        nsid_count: count.into(),
        change_count: 7.into(),
        state: state.0,
        ..AnaGroupDescriptor::default()
    };
    let first = group(1, 2, AnaState::OPTIMIZED);
    let second = group(2, 0, AnaState(0x0e));
    let nsids = [U32::new(1), U32::new(9)];
    let log = [
        header.as_bytes(),
        first.as_bytes(),
        nsids.as_bytes(),
        second.as_bytes(),
    ]
    .concat();
    assert_eq!(log[..10], [7, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(log[16..33], [1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(log.len(), 16 + 32 + 8 + 32);

    let (read, groups) = AnaGroups::new(&log).unwrap();
    assert_eq!(read, &header);
    let groups: Vec<_> = groups.collect::<Result<_, _>>().unwrap();
    assert_eq!(
        (groups[0].descriptor, groups[0].nsids),
        (&first, nsids.as_slice())
    );
    assert_eq!(groups[1].descriptor.state().to_string(), "UNKNOWN(0x0e)");

    let (_, mut cut) = AnaGroups::new(&log[..log.len() - 1]).unwrap();
    assert!(cut.next().unwrap().is_ok());
    assert_eq!(
        cut.next(),
        Some(Err(AnaError::Group {
            groups: 2,
            index: 1,
            offset: 56
        }))
    );
    assert_eq!(cut.next(), None);
    assert_eq!(
        AnaGroups::new(&log[..15]).unwrap_err(),
        AnaError::Header { have: 15 }
    );
    // A count that would overflow an address is a short log, not a panic.
    let huge = [header.as_bytes(), group(1, u32::MAX, AnaState::CHANGE).as_bytes()].concat();
    assert!(AnaGroups::new(&huge).unwrap().1.next().unwrap().is_err());
}

#[test]
fn discovery() {
    let header = DiscoveryHeader::new(3, 2);
    assert_eq!(
        header.as_bytes()[..18],
        [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );

    let nqn = Nqn::new("nqn.2024-01.org.example:disk1").unwrap();
    let mut entry = DiscoveryEntry {
        trtype: TransportType::TCP,
        adrfam: AddressFamily::IPV4,
        subtype: SubsystemType::NVM,
        treq: 0x02 | treq::DISABLE_SQ_FLOW_CONTROL,
        portid: 1.into(),
        cntlid: 0xffff.into(),
        asqsz: 32.into(),
        eflags: 2.into(),
        subnqn: nqn.to_field(),
        ..DiscoveryEntry::default()
    };
    entry.set_address("192.0.2.1").unwrap();
    entry.set_service("4420").unwrap();
    entry.set_tcp(SecurityType::TLS_1_3);
    let bytes = entry.as_bytes();
    assert_eq!(bytes[..12], [3, 1, 2, 6, 1, 0, 0xff, 0xff, 32, 0, 2, 0]);
    assert_eq!(&bytes[32..37], b"4420\0");
    assert_eq!(&bytes[256..268], b"nqn.2024-01.");
    assert_eq!(&bytes[512..522], b"192.0.2.1\0");
    assert_eq!(bytes[768..770], [2, 0]);
    let read = DiscoveryEntry::ref_from_bytes(bytes).unwrap();
    assert_eq!(
        (read.address(), read.service()),
        (Some("192.0.2.1"), Some("4420"))
    );
    assert_eq!(read.secure_channel(), SecureChannel::NOT_REQUIRED);
    assert_eq!(read.tcp_security(), SecurityType::TLS_1_3);
    assert_eq!(read.subsystem_nqn(), Ok(nqn));

    let rdma = RdmaTsas {
        qp_type: RdmaQpType::CONNECTED,
        provider: RdmaProvider::ROCE_V2,
        cms: RdmaCms::RDMA_CM,
        pkey: 0xffff,
    };
    entry.set_rdma(rdma);
    assert_eq!(entry.tsas[..11], [1, 4, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 0]);
    assert_eq!(entry.rdma(), rdma);
    // Some controllers pad with spaces, and nothing promises a terminator.
    entry.trsvcid = [b' '; 32];
    entry.trsvcid[..4].copy_from_slice(b"4420");
    assert_eq!(entry.service(), Some("4420"));
    entry.trsvcid[1] = 0x1b;
    assert_eq!(entry.service(), None);
    assert_eq!(
        entry.set_service(&"9".repeat(32)),
        Err(TextError::TooLong { len: 32, room: 31 })
    );
}

proptest! {
    #[test]
    fn no_descriptor_list_panics(list in proptest::collection::vec(any::<u8>(), 0..200)) {
        let read: Vec<_> = NamespaceDescriptors::new(&list).collect();
        prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
    }

    #[test]
    fn no_ana_log_panics(log in proptest::collection::vec(any::<u8>(), 0..400), groups in 0_u16..6) {
        let mut log = log;
        if log.len() >= 10 {
            log[8..10].copy_from_slice(&groups.to_le_bytes());
        }
        if let Ok((_, read)) = AnaGroups::new(&log) {
            prop_assert!(read.count() <= usize::from(groups));
        }
    }

    #[test]
    fn any_page_is_readable(fill: u8) {
        let bytes = [fill; 4096];
        let controller = IdentifyController::ref_from_bytes(&bytes).unwrap();
        let namespace = IdentifyNamespace::ref_from_bytes(&bytes).unwrap();
        let printed = format!("{controller:?} {namespace:?}");
        prop_assert!(printed.contains("IdentifyNamespace"));
        let _ = (controller.in_capsule_data(), controller.max_transfer(fill), namespace.format());
    }
}
