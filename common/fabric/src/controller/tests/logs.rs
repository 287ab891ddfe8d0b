//! Log pages: what they say, and how any window of them is read.

use super::*;
use homi_spec::log::{
    self, CommandEffectsLog, DiscoveryEntry, DiscoveryHeader, ErrorLogEntry, FirmwareSlotLog, RdmaCms,
    RdmaQpType, SmartLog, SubsystemType, SupportedLogPages, TransportType, effects,
};
use zerocopy::FromBytes;

fn page<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).unwrap_or_else(|_| panic!("the page has the type's size"))
}

fn discovery(bench: &mut Bench, number: u32) -> Admin {
    let admin = bench.admin(PORT_1, &Nqn::discovery(), &host(number));
    bench.set_cc(admin, ENABLE).unwrap();
    admin
}

/// The log as a host reads it: the header, then all at once.
fn discovered(bench: &mut Bench, admin: Admin) -> (u64, Vec<DiscoveryEntry>) {
    let header: DiscoveryHeader = page(&bench.log_page(admin, LogId::DISCOVERY, 1024));
    assert_eq!(header.recfmt.get(), 0);
    let records = header.records.get();
    let log = bench.log_page(admin, LogId::DISCOVERY, 1024 * (1 + records));
    let entries = log
        .chunks_exact(1024)
        .skip(1)
        .map(page::<DiscoveryEntry>)
        .collect();
    (header.generation.get(), entries)
}

/// What an entry leads to, in short.
fn summary(entry: &DiscoveryEntry) -> (String, String, u16, String) {
    let text = |text: Option<&str>| text.unwrap().to_owned();
    let nqn = entry.subsystem_nqn().unwrap().to_string();
    (
        text(entry.address()),
        text(entry.service()),
        entry.portid.get(),
        nqn,
    )
}

fn expect(address: &str, service: &str, port: u16, nqn: &Nqn) -> (String, String, u16, String) {
    (address.to_owned(), service.to_owned(), port, nqn.to_string())
}

#[test]
fn supported_pages_are_those_that_can_be_read() {
    let mut bench = Bench::standard();
    let io = bench.enabled();
    let discovery = discovery(&mut bench, 1);
    for admin in [io, discovery] {
        let supported: SupportedLogPages = page(&bench.log_page(admin, LogId::SUPPORTED_LOG_PAGES, 1024));
        for lid in (0..=u8::MAX).map(LogId) {
            let result = bench.log(admin, GetLogPage::new(lid, 64).unwrap());
            if supported.supports(lid) {
                assert_eq!(result.map(|page| page.len()), Ok(64), "{lid:?}");
            } else {
                assert_eq!(result, Err(Status::INVALID_LOG_PAGE.with_dnr()), "{lid:?}");
            }
        }
        assert_eq!(supported.supports(LogId::DISCOVERY), admin.id == discovery.id);
        assert_eq!(supported.supports(LogId::SMART), admin.id == io.id);
        assert!(!supported.supports(LogId::ANA));
    }
}

#[test]
fn any_window_of_a_page_is_the_pages_bytes_then_zeroes() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let discovery = discovery(&mut bench, 1);
    let cases = [
        (admin, LogId::SUPPORTED_LOG_PAGES, 1024),
        (admin, LogId::COMMAND_EFFECTS, 4096),
        (admin, LogId::FEATURE_EFFECTS, 1024),
        (admin, LogId::SMART, 512),
        (discovery, LogId::DISCOVERY, 4 * 1024),
    ];
    for (admin, lid, size) in cases {
        let whole = bench.log_page(admin, lid, size);
        assert!(whole.iter().any(|byte| *byte != 0));
        for offset in [0, 4, 508, 512, 1020, 1024, 1028, 2044, 3000, 4092, 4096] {
            for len in [4, 8, 512, 1024, 2052, 5000] {
                let result = bench.log(admin, GetLogPage::new(lid, len).unwrap().at(offset));
                if offset > size {
                    assert_eq!(result, Err(INVALID), "{lid:?} at {offset}");
                    continue;
                }
                let mut expected = whole[usize::try_from(offset).unwrap()..].to_vec();
                expected.resize(usize::try_from(len).unwrap(), 0);
                // The health page counts nothing here, so it does not change between readings.
                assert_eq!(result, Ok(expected), "{lid:?} {len} bytes at {offset}");
            }
        }
        let command = GetLogPage::new(lid, 4).unwrap();
        assert_eq!(bench.log(admin, command.at(u64::MAX - 3)), Err(INVALID));
        assert_eq!(bench.log(admin, command.at(2)), Err(INVALID));
        assert_eq!(
            bench.log(
                admin,
                GetLogPage {
                    index_offset: true,
                    ..command
                }
            ),
            Err(INVALID)
        );
    }
}

#[test]
fn a_length_is_checked_before_anything_is_made() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let largest = GetLogPage {
        numd_z: u32::MAX,
        ..GetLogPage::new(LogId::ERROR, 4).unwrap()
    };
    assert_eq!(bench.read(admin.id, largest.to_sqe(1), u32::MAX), Err(INVALID));
    let limit = GetLogPage::new(LogId::ERROR, 1 << 20).unwrap();
    assert_eq!(bench.log(admin, limit).map(|page| page.len()), Ok(1 << 20));
    let beyond = GetLogPage::new(LogId::ERROR, (1 << 20) + 4).unwrap();
    assert_eq!(bench.log(admin, beyond), Err(INVALID));
    let other = GetLogPage::new(LogId::ERROR, 64).unwrap().to_sqe(1);
    assert_eq!(
        bench.read(admin.id, other, 128),
        Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
    );
}

#[test]
fn failed_commands_are_in_the_error_log_newest_first() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (_, grant) = bench.io(admin, 2);
    let unknown = GetLogPage {
        nsid: 3,
        ..GetLogPage::new(LogId::ANA, 4).unwrap()
    }
    .to_sqe(0x123);
    assert!(bench.read(admin.id, unknown, 4).is_err());
    grant
        .view
        .record_error(0x55, Status::UNRECOVERED_READ_ERROR, 1, 99);
    let log = bench.log_page(admin, LogId::ERROR, 4096);
    let entries: Vec<ErrorLogEntry> = log.chunks_exact(64).map(page).collect();
    let newest = &entries[0];
    assert_eq!(
        (newest.error_count.get(), newest.sqid.get(), newest.cid.get()),
        (2, 2, 0x55)
    );
    assert_eq!(newest.status(), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(
        (
            newest.lba.get(),
            newest.nsid.get(),
            newest.parameter_location.get()
        ),
        (99, 1, 0xffff)
    );
    assert_eq!(newest.trtype, TransportType::TCP.raw());
    let older = &entries[1];
    assert_eq!(
        (older.error_count.get(), older.sqid.get(), older.cid.get()),
        (1, 0, 0x123)
    );
    // The page's identifier is byte 40 of the entry.
    assert_eq!(
        (older.status(), older.parameter_location.get()),
        (Status::INVALID_LOG_PAGE.with_dnr(), 40)
    );
    assert_eq!(older.nsid.get(), 3);
    assert!(
        entries[2..]
            .iter()
            .all(|entry| *entry == ErrorLogEntry::default())
    );
    // 64 are kept; their numbers go on.
    for _ in 0..100 {
        assert!(bench.read(admin.id, unknown, 4).is_err());
    }
    let log = bench.log_page(admin, LogId::ERROR, 4096);
    let numbers: Vec<u64> = log
        .chunks_exact(64)
        .map(|e| page::<ErrorLogEntry>(e).error_count.get())
        .collect();
    assert_eq!(numbers, (39..=102).rev().collect::<Vec<u64>>());
    let smart: SmartLog = page(&bench.log_page(admin, LogId::SMART, 512));
    assert_eq!((smart.error_entries.get(), smart.media_errors.get()), (102, 1));
}

#[test]
fn the_health_page_counts_what_queues_do() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let (one, first) = bench.io(admin, 1);
    let (_, second) = bench.io(admin, 2);
    for _ in 0..3 {
        first.view.counters().read(512_000);
    }
    first.view.counters().other();
    second.view.counters().write(1);
    bench.node.closed(one, bench.now);
    bench.now += Duration::from_secs(2 * 3600 + 5);
    let command = GetLogPage {
        nsid: u32::MAX,
        ..GetLogPage::new(LogId::SMART, 512).unwrap()
    };
    let smart: SmartLog = page(&bench.log(admin, command).unwrap());
    assert_eq!((smart.host_reads.get(), smart.data_units_read.get()), (3, 3));
    assert_eq!((smart.host_writes.get(), smart.data_units_written.get()), (1, 1));
    assert_eq!(
        (
            smart.power_on_hours.get(),
            smart.available_spare,
            smart.critical_warning
        ),
        (2, 100, 0)
    );
    // There are no pages per namespace.
    assert_eq!(bench.log(admin, GetLogPage { nsid: 1, ..command }), Err(INVALID));
}

#[test]
fn firmware_and_effects() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let firmware: FirmwareSlotLog = page(&bench.log_page(admin, LogId::FIRMWARE_SLOT, 512));
    assert_eq!(firmware.afi, 1);
    assert_eq!(
        homi_spec::text::ascii(&firmware.revisions[0]),
        Some(env!("CARGO_PKG_VERSION"))
    );
    let log: CommandEffectsLog = page(&bench.log_page(admin, LogId::COMMAND_EFFECTS, 4096));
    let supported = |entries: &[homi_spec::U32; 256], mask: u32| -> Vec<usize> {
        (0..256)
            .filter(|opcode| entries[*opcode].get() & mask == mask)
            .collect()
    };
    assert_eq!(
        supported(&log.admin, effects::SUPPORTED),
        [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f]
    );
    assert_eq!(
        supported(&log.io, effects::SUPPORTED),
        [0, 1, 2, 5, 8, 9, 0x0c, 0x7f]
    );
    assert_eq!(supported(&log.io, effects::CONTENT_CHANGE), [1, 8, 9]);
    let zoned = GetLogPage {
        csi: 2,
        ..GetLogPage::new(LogId::COMMAND_EFFECTS, 4096).unwrap()
    };
    assert_eq!(bench.log(admin, zoned), Err(INVALID));
    // The features that are listed are those that can be got.
    let features = bench.log_page(admin, LogId::FEATURE_EFFECTS, 1024);
    for (fid, entry) in (0..=u8::MAX).map(FeatureId).zip(features.chunks_exact(4)) {
        let command = GetFeatures {
            select: homi_spec::feature::Select::SUPPORTED_CAPABILITIES,
            ..GetFeatures::new(fid)
        };
        assert_eq!(
            bench.dwords(admin.id, command.to_sqe(1)).is_ok(),
            entry[0] & 1 != 0,
            "{fid:?}"
        );
    }
}

#[test]
fn a_host_discovers_what_it_may_connect_to() {
    let mut config = standard();
    config
        .referrals
        .push(ReferralConfig::new(tcp("198.51.100.7", 8009)));
    let mut bench = Bench::new(config);
    let admin = discovery(&mut bench, 1);
    bench.node.reached_at(admin.id, "192.0.2.1".parse().unwrap());
    let (_, entries) = discovered(&mut bench, admin);
    let summaries: Vec<_> = entries.iter().map(summary).collect();
    let expected = [
        expect("192.0.2.1", "4420", 1, &nqn("a")),
        // Port 2 listens at every address, of which the host knows this one.
        expect("192.0.2.1", "4421", 2, &nqn("a")),
        expect("192.0.2.1", "4421", 2, &nqn("b")),
        expect("198.51.100.7", "8009", 0, &Nqn::discovery()),
    ];
    assert_eq!(summaries, expected);
    let first = &entries[0];
    assert_eq!(
        (first.trtype, first.adrfam.raw(), first.subtype),
        (TransportType::TCP, 1, SubsystemType::NVM)
    );
    // There is nothing to say about secure channels, and flow control may be off.
    assert_eq!(
        (first.treq, first.cntlid.get(), first.asqsz.get()),
        (0b100, 0xffff, 1024)
    );
    assert_eq!((first.eflags.get(), first.tsas), (0, [0; 256]));
    assert_eq!(entries[3].subtype, SubsystemType::DISCOVERY_REFERRAL);
    // Another host sees less, and an address that nobody reported stays as it is configured.
    let other = discovery(&mut bench, 2);
    let (_, entries) = discovered(&mut bench, other);
    let summaries: Vec<_> = entries.iter().map(summary).collect();
    let expected = [
        expect("::", "4421", 2, &nqn("b")),
        expect("198.51.100.7", "8009", 0, &Nqn::discovery()),
    ];
    assert_eq!(summaries, expected);
}

#[test]
fn a_port_for_ipv4_alone_is_not_shown_at_an_ipv6_address() {
    let mut config = standard();
    config.ports[0].address = tcp("0.0.0.0", 4420);
    config.ports[1].address = tcp("2001:db8::1", 4420);
    let mut bench = Bench::new(config);
    let admin = discovery(&mut bench, 1);
    bench.node.reached_at(admin.id, "2001:db8::1".parse().unwrap());
    let (_, entries) = discovered(&mut bench, admin);
    assert!(
        entries
            .iter()
            .all(|entry| entry.portid.get() == 2 && entry.adrfam.raw() == 2)
    );
    bench
        .node
        .reached_at(admin.id, "::ffff:192.0.2.9".parse().unwrap());
    let (_, entries) = discovered(&mut bench, admin);
    assert_eq!(summary(&entries[0]), expect("192.0.2.9", "4420", 1, &nqn("a")));
}

#[test]
fn ports_of_both_transports_are_in_one_log() {
    let rdma = |address, service, provider| TransportAddress {
        transport: TransportKind::Rdma(provider),
        ..tcp(address, service)
    };
    let mut config = standard();
    config.subsystems[1].exposure = Exposure::Everywhere;
    config.ports[0].address = rdma("::", 4420, RdmaProvider::Unspecified);
    config.ports[1].address = tcp("::", 4421);
    config.referrals = vec![ReferralConfig::new(rdma(
        "198.51.100.7",
        4420,
        RdmaProvider::RoceV2,
    ))];
    let mut bench = Bench::new(config);
    let admin = discovery(&mut bench, 2);
    bench.node.reached_at(admin.id, "2001:db8::1".parse().unwrap());
    let (_, entries) = discovered(&mut bench, admin);
    let summaries: Vec<_> = entries.iter().map(summary).collect();
    let expected = [
        expect("2001:db8::1", "4420", 1, &nqn("b")),
        expect("2001:db8::1", "4421", 2, &nqn("b")),
        expect("198.51.100.7", "4420", 0, &Nqn::discovery()),
    ];
    assert_eq!(summaries, expected);
    let kinds = entries.iter().map(|entry| entry.trtype);
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [TransportType::RDMA, TransportType::TCP, TransportType::RDMA]
    );
    let providers = [&entries[0], &entries[2]].map(|entry| {
        let tsas = entry.rdma();
        assert_eq!(
            (tsas.qp_type, tsas.cms, tsas.pkey),
            (RdmaQpType::CONNECTED, RdmaCms::RDMA_CM, 0)
        );
        tsas.provider
    });
    assert_eq!(providers, [log::RdmaProvider::NONE, log::RdmaProvider::ROCE_V2]);
    // What listens at `::` takes IPv4 over TCP, but not over RDMA.
    bench.node.reached_at(admin.id, "192.0.2.9".parse().unwrap());
    let (_, entries) = discovered(&mut bench, admin);
    assert_eq!(summary(&entries[0]), expect("192.0.2.9", "4421", 2, &nqn("b")));
    assert_eq!(entries.len(), 2);
}

#[test]
fn the_generation_moves_with_the_log_and_only_with_it() {
    let mut bench = Bench::standard();
    let admin = discovery(&mut bench, 1);
    let (first, entries) = discovered(&mut bench, admin);
    assert_eq!(entries.len(), 3);
    // What does not show: namespaces, limits, what a port offers.
    let mut config = standard();
    config.subsystems[0].namespaces.clear();
    config.ports[0].in_capsule = 4096;
    config.limits.max_connections = 7;
    bench.apply(config);
    assert_eq!(discovered(&mut bench, admin).0, first);
    type Change = fn(&mut NodeConfig);
    let changes: [Change; 5] = [
        |config| config.subsystems.truncate(1),
        |config| config.subsystems[0].allow = AllowList::Any,
        |config| config.subsystems[0].exposure = Exposure::Ports(BTreeSet::from([PORT_1])),
        |config| {
            config
                .referrals
                .push(ReferralConfig::new(tcp("198.51.100.7", 8009)))
        },
        |config| config.ports[1].secure_channel = SecureChannel::Required,
    ];
    let mut last = first;
    for change in changes {
        let mut config = standard();
        change(&mut config);
        bench.apply(config);
        let (generation, _) = discovered(&mut bench, admin);
        assert!(generation > last);
        last = generation;
    }
}
