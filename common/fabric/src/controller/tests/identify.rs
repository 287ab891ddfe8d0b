//! What controllers and namespaces say about themselves, field by field.

use super::*;
use homi_spec::controller::Version;
use homi_spec::identify::{
    Cns, ControllerList, ControllerType, Csi, IdentifyController, IdentifyNamespace, IndependentNamespace,
    IoCommandSets, NamespaceDescriptors, NamespaceId, NamespaceList,
};
use zerocopy::FromBytes;

const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE.with_dnr();

fn page<T: FromBytes>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), 4096);
    T::read_from_bytes(bytes).unwrap_or_else(|_| panic!("the page has the type's size"))
}

fn namespace(bench: &mut Bench, admin: Admin, cns: Cns, nsid: u32) -> Result<Vec<u8>, Status> {
    bench.identify(admin, Identify::namespace(cns, nsid))
}

#[test]
fn an_io_controller() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let page: IdentifyController = page(&bench.identify(admin, Identify::controller()).unwrap());
    assert_eq!((page.serial(), page.model()), (Some("SERIAL-A"), Some("Model A")));
    assert_eq!(page.firmware(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(page.subsystem_nqn(), Ok(nqn("a")));
    assert_eq!(
        (page.cntlid.get(), page.version()),
        (admin.controller, Version::V2_0)
    );
    assert_eq!(page.cntrltype, ControllerType::IO);
    // Multiple ports and controllers, no ANA.
    assert_eq!(page.cmic, 0b0011);
    assert_eq!(page.max_transfer(0), Some(1 << 20));
    assert_eq!((page.oaes.get(), page.ctratt.get()), (0x100, 0x41));
    assert_eq!(
        (page.oacs.get(), page.acl_z, page.aerl_z, page.elpe_z),
        (0, 3, 3, 63)
    );
    assert_eq!((page.frmw, page.lpa, page.npss_z), (3, 0x26, 0));
    // Keep alive in units of 100 ms.
    assert_eq!(page.kas.get(), 1);
    assert_eq!((page.sqes, page.cqes, page.maxcmd.get()), (0x66, 0x44, 1024));
    assert_eq!((page.nn.get(), page.mnan.get()), (1024, 1024));
    // Compare, Dataset Management, Write Zeroes, Save and Select, Verify.
    assert_eq!((page.oncs.get(), page.fuses.get()), (0x9d, 0));
    // A volatile cache, and Flush to all namespaces.
    assert_eq!((page.vwc, page.fna), (7, 0));
    // Unaligned SGLs, offsets in the capsule, transport descriptors.
    assert_eq!(page.sgls.get(), 0x30_0001);
    assert_eq!(
        (page.ioccsz.get(), page.iorcsz.get(), page.icdoff.get()),
        (4 + 8192 / 16, 1, 0)
    );
    assert_eq!(page.in_capsule_data(), Some(8192));
    assert_eq!((page.fcatt, page.msdbd, page.ofcs.get()), (0, 1, 1));
    assert_eq!(
        (page.vid.get(), page.ieee, page.sanicap.get(), page.anacap),
        (0, [0; 3], 0, 0)
    );
}

#[test]
fn ports_and_configuration_show_in_the_page() {
    let mut config = standard();
    config.subsystems[1].volatile_write_cache = false;
    config.subsystems[1].max_nsid = 7;
    let rdma = TransportAddress {
        transport: TransportKind::Rdma(RdmaProvider::RoceV2),
        ..tcp("192.0.2.1", 4420)
    };
    config.ports[0].address = rdma;
    config.subsystems[1].exposure = Exposure::Everywhere;
    let mut bench = Bench::new(config);
    let mut identify = |port| {
        let admin = bench.admin(port, &nqn("b"), &host(5));
        bench.set_cc(admin, ENABLE).unwrap();
        page::<IdentifyController>(&bench.identify(admin, Identify::controller()).unwrap())
    };
    let page = identify(PORT_2);
    assert_eq!((page.vwc, page.nn.get(), page.ioccsz.get()), (6, 7, 4));
    // RDMA: keyed descriptors instead of the transport's own.
    assert_eq!(identify(PORT_1).sgls.get(), 0x10_0005);
}

#[test]
fn a_discovery_controller() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &Nqn::discovery(), &host(1));
    bench.set_cc(admin, ENABLE).unwrap();
    let page: IdentifyController = page(&bench.identify(admin, Identify::controller()).unwrap());
    assert_eq!(page.cntrltype, ControllerType::DISCOVERY);
    assert_eq!(page.subsystem_nqn(), Ok(Nqn::discovery()));
    assert_eq!((page.cntlid.get(), page.oaes.get()), (admin.controller, 1 << 31));
    assert_eq!(
        (page.nn.get(), page.oncs.get(), page.sqes, page.cqes),
        (0, 0, 0, 0)
    );
    assert_eq!((page.lpa & 4, page.kas.get(), page.aerl_z), (4, 1, 3));
    for cns in [
        Cns::NAMESPACE,
        Cns::ACTIVE_NAMESPACES,
        Cns::IO_CONTROLLER,
        Cns::IO_COMMAND_SETS,
    ] {
        assert_eq!(namespace(&mut bench, admin, cns, 1), Err(INVALID), "{cns:?}");
    }
}

#[test]
fn a_namespace() {
    let mut config = standard();
    config.subsystems[0].namespaces[0].deallocated_reads_zeroes = false;
    config.subsystems[0].namespaces[1] = NamespaceConfig {
        uuid: Some([0xaa; 16]),
        nguid: Some([0xbb; 16]),
        eui64: Some([0xcc; 8]),
        hints: IoHints {
            boundary: 256,
            write_granularity: 8,
            write_size: 65536,
            ..IoHints::default()
        },
        ..NamespaceConfig::new(1, 512, 1000, 10)
    };
    let mut bench = Bench::new(config);
    let admin = bench.enabled();
    let one: IdentifyNamespace = page(&namespace(&mut bench, admin, Cns::NAMESPACE, 1).unwrap());
    assert_eq!(
        (one.nsze.get(), one.ncap.get(), one.nuse.get()),
        (1000, 1000, 1000)
    );
    assert_eq!(
        one.format().and_then(homi_spec::identify::LbaFormat::block_size),
        Some(512)
    );
    assert_eq!(
        (one.nlbaf_z, one.flbas, one.mc, one.dpc, one.dps),
        (0, 0, 0, 0, 0)
    );
    // Shared; deallocated blocks read as zeroes, and Write Zeroes may deallocate.
    assert_eq!(
        (one.nmic, one.dlfeat, one.nsattr, one.nsfeat),
        (1, 0b1001, 0, 1 << 4)
    );
    assert_eq!(
        (
            one.noiob.get(),
            one.npwg_z.get(),
            one.npwa_z.get(),
            one.nows_z.get()
        ),
        (256, 7, 0, 65535)
    );
    assert_eq!(
        (one.nguid, one.eui64, one.nvmcap.get()),
        ([0xbb; 16], [0xcc; 8], 512_000)
    );
    let three: IdentifyNamespace = page(&namespace(&mut bench, admin, Cns::NAMESPACE, 3).unwrap());
    assert_eq!(
        (three.nsattr, three.nsfeat, three.noiob.get(), three.dlfeat),
        (1, 0, 0, 0b1000)
    );
    assert_eq!(
        three
            .format()
            .and_then(homi_spec::identify::LbaFormat::block_size),
        Some(4096)
    );

    let list = namespace(&mut bench, admin, Cns::NAMESPACE_DESCRIPTORS, 1).unwrap();
    let ids: Vec<NamespaceId<'_>> = NamespaceDescriptors::new(&list).map(Result::unwrap).collect();
    let expected = [
        NamespaceId::Eui64([0xcc; 8]),
        NamespaceId::Nguid([0xbb; 16]),
        NamespaceId::Uuid([0xaa; 16]),
        NamespaceId::Csi(Csi::NVM),
    ];
    assert_eq!(ids, expected);
    let independent: IndependentNamespace =
        page(&namespace(&mut bench, admin, Cns::INDEPENDENT_NAMESPACE, 3).unwrap());
    assert_eq!(
        (independent.nmic, independent.nsattr, independent.nstat),
        (1, 1, 1)
    );
}

#[test]
fn identifiers_are_unique_and_stay() {
    let ids = |bench: &mut Bench, admin| -> Vec<Vec<u8>> {
        [1, 3]
            .map(|nsid| namespace(bench, admin, Cns::NAMESPACE_DESCRIPTORS, nsid).unwrap())
            .to_vec()
    };
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let first = ids(&mut bench, admin);
    assert_ne!(first[0], first[1]);
    let mut again = Bench::standard();
    let admin = again.enabled();
    assert_eq!(ids(&mut again, admin), first);
    let other = again.admin(PORT_2, &nqn("b"), &host(1));
    again.set_cc(other, ENABLE).unwrap();
    assert_ne!(
        namespace(&mut again, other, Cns::NAMESPACE_DESCRIPTORS, 1).unwrap(),
        first[0]
    );
}

#[test]
fn namespaces_that_are_not_there() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    for cns in [
        Cns::NAMESPACE,
        Cns::ALLOCATED_NAMESPACE,
        Cns::IO_NAMESPACE,
        Cns::INDEPENDENT_NAMESPACE,
    ] {
        assert_eq!(namespace(&mut bench, admin, cns, 2), Ok(vec![0; 4096]), "{cns:?}");
        for nsid in [0, 1025, u32::MAX] {
            assert_eq!(
                namespace(&mut bench, admin, cns, nsid),
                Err(NO_NAMESPACE),
                "{cns:?} {nsid}"
            );
        }
    }
    for nsid in [0, 2, 1025, u32::MAX] {
        for cns in [Cns::NAMESPACE_DESCRIPTORS, Cns::NAMESPACE_CONTROLLERS] {
            assert_eq!(
                namespace(&mut bench, admin, cns, nsid),
                Err(NO_NAMESPACE),
                "{cns:?} {nsid}"
            );
        }
    }
}

#[test]
fn lists() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let second = bench.enabled();
    let cnss = [
        Cns::ACTIVE_NAMESPACES,
        Cns::ALLOCATED_NAMESPACES,
        Cns::IO_ACTIVE_NAMESPACES,
        Cns::IO_ALLOCATED_NAMESPACES,
    ];
    for cns in cnss {
        let after = |bench: &mut Bench, nsid| -> Result<Vec<u32>, Status> {
            let list: NamespaceList = page(&namespace(bench, admin, cns, nsid)?);
            Ok(list.iter().collect())
        };
        assert_eq!(after(&mut bench, 0), Ok(vec![1, 3]), "{cns:?}");
        assert_eq!(after(&mut bench, 1), Ok(vec![3]));
        assert_eq!(after(&mut bench, 3), Ok(vec![]));
        assert_eq!(after(&mut bench, u32::MAX - 2), Ok(vec![]));
        assert_eq!(after(&mut bench, u32::MAX - 1), Err(NO_NAMESPACE));
        assert_eq!(after(&mut bench, u32::MAX), Err(NO_NAMESPACE));
    }
    let controllers = |bench: &mut Bench, cns, cntid| -> Vec<u16> {
        let command = Identify {
            cntid,
            ..Identify::namespace(cns, 1)
        };
        page::<ControllerList>(&bench.identify(admin, command).unwrap())
            .iter()
            .collect()
    };
    for cns in [Cns::CONTROLLERS, Cns::NAMESPACE_CONTROLLERS] {
        assert_eq!(
            controllers(&mut bench, cns, 0),
            [admin.controller, second.controller]
        );
        assert_eq!(
            controllers(&mut bench, cns, second.controller),
            [second.controller]
        );
        assert_eq!(controllers(&mut bench, cns, 0xffff), [0; 0]);
    }
}

#[test]
fn command_sets() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    for cntid in [0xffff, admin.controller] {
        let command = Identify {
            cntid,
            ..Identify::namespace(Cns::IO_COMMAND_SETS, 0)
        };
        let sets: IoCommandSets = page(&bench.identify(admin, command).unwrap());
        assert_eq!(sets, IoCommandSets::nvm_only());
    }
    let command = Identify {
        cntid: 77,
        ..Identify::namespace(Cns::IO_COMMAND_SETS, 0)
    };
    assert_eq!(bench.identify(admin, command), Err(INVALID));
    let cnss = [Cns::IO_NAMESPACE, Cns::IO_CONTROLLER, Cns::IO_ACTIVE_NAMESPACES];
    for cns in cnss {
        assert!(namespace(&mut bench, admin, cns, 1).is_ok(), "{cns:?}");
        let zoned = Identify {
            csi: Csi::ZONED,
            ..Identify::namespace(cns, 1)
        };
        assert_eq!(bench.identify(admin, zoned), Err(INVALID), "{cns:?}");
    }
    for cns in (0..=u8::MAX).map(Cns).filter(|cns| cns.name().is_none()) {
        assert_eq!(namespace(&mut bench, admin, cns, 1), Err(INVALID), "{cns:?}");
    }
    for cns in [
        Cns::NVM_SETS,
        Cns::UUIDS,
        Cns::DOMAINS,
        Cns::SECONDARY_CONTROLLERS,
    ] {
        assert_eq!(namespace(&mut bench, admin, cns, 1), Err(INVALID), "{cns:?}");
    }
}

#[test]
fn the_descriptor_has_to_fit_the_page() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let sqe = Identify::controller().to_sqe(1);
    let length = Status::SGL_DATA_LENGTH_INVALID.with_dnr();
    assert_eq!(bench.read(admin.id, sqe, 4095), Err(length));
    assert_eq!(bench.read(admin.id, sqe, 8192), Err(length));
    assert_eq!(bench.read(admin.id, sqe, 0), Err(length));
    let mut in_capsule = sqe;
    in_capsule.set_sgl(Sgl::in_capsule(0, 4096));
    let outcome = bench.send(admin.id, in_capsule, &[]);
    let status = Status::SGL_TYPE_INVALID.with_dnr();
    let expected = AdminOutcome::Complete {
        status,
        dw0: 0,
        dw1: 0,
        payload: Vec::new(),
    };
    assert_eq!(outcome, expected);
}
