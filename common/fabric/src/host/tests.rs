//! Whole sequences against a scripted controller, in virtual time.
#![expect(
    clippy::field_reassign_with_default,
    reason = "pages have a hundred fields, and a few lines name those that matter"
)]

use std::time::Duration;

use homi_queue::{Command, Completion};
use homi_spec::command::AdminOpcode;
use homi_spec::controller::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Version};
use homi_spec::fabrics::{ConnectCommand, Property, PropertyGet, PropertySet};
use homi_spec::feature::{FeatureId, GetFeatures, SetFeatures};
use homi_spec::identify::{
    ControllerType, Identify, IdentifyController, IdentifyNamespace, LbaFormat, NamespaceList, oaes, oncs,
    sgls,
};
use homi_spec::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, SubsystemType, TransportType};
use homi_spec::{Nqn, Status, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::time::Instant;

const SUBSYSTEM: &str = "nqn.2024-01.org.example:disk";
const HOST: &str = "nqn.2024-01.org.example:host";

/// A controller that answers the admin commands of a bring-up, with knobs for what to get wrong.
struct Controller {
    connect: Completion,
    capabilities: Cap,
    version: Version,
    /// Looks at CSTS before it is ready; `None` never is.
    ready_after: Option<u32>,
    status_bits: Csts,
    page: IdentifyController,
    page_len: usize,
    queues: Completion,
    events: Completion,
    keep_alive: Completion,
    configuration: Cc,
    looks: u32,
    asked_queues: u32,
    asked_events: u32,
    commands: u32,
}

impl Controller {
    fn new() -> Self {
        let mut page = IdentifyController::default();
        page.cntlid = U16::new(7);
        page.cntrltype = ControllerType::IO;
        page.sgls = U32::new(sgls::SUPPORTED | sgls::OFFSET_ADDRESS | sgls::TRANSPORT);
        page.ioccsz = U32::new(4 + 512);
        page.iorcsz = U32::new(1);
        page.maxcmd = U16::new(256);
        page.mdts = 5;
        page.nn = U32::new(1024);
        page.kas = U16::new(10);
        page.aerl_z = 3;
        page.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE | oaes::ANA_CHANGE);
        page.oncs = U16::new(oncs::COMPARE | oncs::WRITE_ZEROES);
        page.subnqn = Nqn::new(SUBSYSTEM).unwrap().to_field();
        page.set_serial("S1").unwrap();
        page.set_model("Model").unwrap();
        page.set_firmware("1.0").unwrap();
        Self {
            connect: Completion {
                status: Status::SUCCESS,
                result: 7,
            },
            capabilities: Cap::default()
                .with_mqes_z(1023)
                .with_timeout_500ms(4)
                .with_command_sets(1),
            version: Version::V2_0,
            ready_after: Some(3),
            status_bits: Csts::default(),
            page,
            page_len: 4096,
            queues: Completion {
                status: Status::SUCCESS,
                result: 0x0007_000b,
            },
            events: Completion::SUCCESS,
            keep_alive: Completion {
                status: Status::SUCCESS,
                result: 6000,
            },
            configuration: Cc::default(),
            looks: 0,
            asked_queues: 0,
            asked_events: 0,
            commands: 0,
        }
    }

    fn execute(&mut self, command: &Command, data: &StepData) -> (Completion, Vec<u8>) {
        let sqe = &command.0;
        self.commands += 1;
        let value = |result: u64| {
            (
                Completion {
                    status: Status::SUCCESS,
                    result,
                },
                Vec::new(),
            )
        };
        if ConnectCommand::from_sqe(sqe).is_some() {
            assert!(matches!(data, StepData::Out(bytes) if bytes.len() == 1024));
            return (self.connect, Vec::new());
        }
        if let Some(get) = PropertyGet::from_sqe(sqe) {
            return match get.property {
                Property::CAP => value(self.capabilities.0),
                Property::VS => value(self.version.0.into()),
                Property::CSTS => {
                    self.looks += 1;
                    let ready = self.ready_after.is_some_and(|after| self.looks > after);
                    let mut status = self.status_bits.with_ready(ready);
                    if self.configuration.shutdown() == ShutdownNotification::Normal && ready {
                        status = status.with_shutdown(ShutdownStatus::Complete);
                    }
                    value(status.0.into())
                }
                other => panic!("{other:?}"),
            };
        }
        if let Some(set) = PropertySet::from_sqe(sqe) {
            assert_eq!(set.property, Property::CC);
            self.configuration = Cc(u32::try_from(set.value).unwrap());
            return value(0);
        }
        if Identify::from_sqe(sqe).is_some() {
            assert_eq!(*data, StepData::In(4096));
            return (
                Completion::SUCCESS,
                self.page.as_bytes()[..self.page_len].to_vec(),
            );
        }
        if let Some(set) = SetFeatures::from_sqe(sqe) {
            return match set.fid {
                FeatureId::NUMBER_OF_QUEUES => {
                    self.asked_queues = set.cdw11;
                    (self.queues, Vec::new())
                }
                FeatureId::ASYNC_EVENT => {
                    self.asked_events = set.cdw11;
                    (self.events, Vec::new())
                }
                other => panic!("{other:?}"),
            };
        }
        if let Some(get) = GetFeatures::from_sqe(sqe) {
            assert_eq!(get.fid, FeatureId::KEEP_ALIVE_TIMER);
            return (self.keep_alive, Vec::new());
        }
        panic!("{:?}", AdminOpcode(sqe.opcode));
    }
}

fn params() -> BringUpParams {
    BringUpParams {
        host_nqn: Nqn::new(HOST).unwrap(),
        host_id: [3; 16],
        subsystem: Nqn::new(SUBSYSTEM).unwrap(),
        keep_alive: Duration::from_secs(5),
        admin_entries: 32,
        sq_flow_control: false,
        io_queues: 16,
    }
}

/// Runs a bring-up to its end; every command takes 100 µs. Returns the time it took.
fn bring_up(
    controller: &mut Controller,
    params: BringUpParams,
) -> (Result<ControllerInfo, ConnectError>, Duration) {
    let mut bring_up = BringUp::new(params);
    let mut now = Instant::ZERO;
    let mut step = bring_up.next(None, now);
    for _ in 0..10_000 {
        step = match step {
            Step::Submit { command, data } => {
                let (completion, data) = controller.execute(&command, &data);
                now += Duration::from_micros(100);
                bring_up.next(
                    Some(&Answer {
                        completion,
                        data: &data,
                    }),
                    now,
                )
            }
            Step::WaitUntil(time) => {
                assert!(time > now, "a wait must move time");
                now = time;
                bring_up.next(None, now)
            }
            Step::Ready(info) => return (Ok(info), now.saturating_since(Instant::ZERO)),
            Step::Failed(error) => return (Err(error), now.saturating_since(Instant::ZERO)),
        };
    }
    panic!("the bring-up does not end");
}

#[test]
fn a_controller_is_brought_up() {
    let mut controller = Controller::new();
    let info = bring_up(&mut controller, params()).0.unwrap();
    assert_eq!((info.controller_id, info.kind), (7, ControllerKind::Io));
    assert_eq!(
        (info.serial.as_str(), info.model.as_str(), info.firmware.as_str()),
        ("S1", "Model", "1.0")
    );
    assert_eq!(info.max_transfer, Some(128 << 10));
    assert_eq!((info.max_queue_entries, info.io_queues), (257, 8));
    assert_eq!(
        (info.in_capsule, info.keep_alive_ms, info.event_requests),
        (8192, 6000, 4)
    );
    assert!(info.compare && info.write_zeroes && !info.verify && !info.deallocate);
    assert_eq!(controller.asked_queues, 0x000f_000f);
    assert_eq!(controller.asked_events, oaes::NAMESPACE_ATTRIBUTE);
    assert!(controller.configuration.enabled());
    assert_eq!(
        (
            controller.configuration.iosqes(),
            controller.configuration.iocqes()
        ),
        (6, 4)
    );
    assert_eq!(info.configuration, controller.configuration);
}

#[test]
fn a_discovery_controller_gets_no_queues() {
    let mut controller = Controller::new();
    controller.page.cntrltype = ControllerType::NOT_REPORTED;
    controller.page.ioccsz = U32::ZERO;
    controller.page.oaes = U32::new(oaes::DISCOVERY_LOG);
    let mut params = params();
    params.subsystem = Nqn::discovery();
    params.keep_alive = Duration::ZERO;
    let info = bring_up(&mut controller, params).0.unwrap();
    assert_eq!(
        (info.kind, info.io_queues, info.keep_alive_ms),
        (ControllerKind::Discovery, 0, 0)
    );
    assert_eq!(controller.asked_queues, 0);
    assert_eq!(controller.asked_events, oaes::DISCOVERY_LOG);
}

#[test]
fn readiness_is_waited_for_as_long_as_the_controller_states_and_no_longer() {
    let mut controller = Controller::new();
    controller.ready_after = None;
    let (result, took) = bring_up(&mut controller, params());
    assert_eq!(
        result,
        Err(ConnectError::NotReady {
            waited: Duration::from_secs(2)
        })
    );
    assert!(
        (Duration::from_secs(2)..Duration::from_millis(2200)).contains(&took),
        "{took:?}"
    );
    // The looks get rarer: a slow controller is not hammered.
    assert!(controller.looks < 40, "{}", controller.looks);

    controller = Controller::new();
    controller.capabilities = controller.capabilities.with_timeout_500ms(0);
    controller.ready_after = None;
    let (result, took) = bring_up(&mut controller, params());
    assert_eq!(
        result,
        Err(ConnectError::NotReady {
            waited: Duration::from_millis(500)
        })
    );
    assert!(took < Duration::from_millis(700));
}

#[test]
fn a_fatal_controller_is_not_waited_for() {
    let mut controller = Controller::new();
    controller.status_bits = Csts::default().with_fatal(true);
    assert_eq!(bring_up(&mut controller, params()).0, Err(ConnectError::Fatal));
}

#[test]
fn what_connect_refuses_becomes_a_sentence() {
    for (status, dw0, says) in [
        (
            Status::CONNECT_INVALID_PARAMETERS.with_dnr(),
            1_u32 << 16 | 256,
            "no subsystem nqn.2024-01.org.example:disk",
        ),
        (
            Status::CONNECT_INVALID_PARAMETERS,
            1 << 16 | 512,
            "add nqn.2024-01.org.example:host",
        ),
        (Status::CONNECT_INVALID_PARAMETERS, 44, "queue size"),
        (Status::CONNECT_INVALID_PARAMETERS, 1 << 16, "host id"),
        (Status::CONNECT_INVALID_PARAMETERS, 50, "keep-alive"),
        (
            Status::CONNECT_INVALID_PARAMETERS,
            1 << 16 | 900,
            "a parameter (byte 900 of the connect data)",
        ),
        (
            Status::CONNECT_INVALID_HOST,
            0,
            "add nqn.2024-01.org.example:host",
        ),
        (Status::CONNECT_CONTROLLER_BUSY, 0, "no free controller"),
        (Status::CONNECT_INCOMPATIBLE_FORMAT, 0, "record format"),
        (Status::CONNECT_RESTART_DISCOVERY, 0, "discover again"),
        (Status::AUTHENTICATION_REQUIRED, 0, "authentication"),
        (Status::KEEP_ALIVE_INVALID, 0, "5s"),
        (Status::INTERNAL_ERROR, 0, "internal error"),
    ] {
        let mut controller = Controller::new();
        controller.connect = Completion {
            status,
            result: dw0.into(),
        };
        let error = bring_up(&mut controller, params()).0.unwrap_err();
        assert!(error.to_string().contains(says), "{status}: {error}");
        assert_eq!(controller.commands, 1, "nothing follows a refused connect");
    }
}

#[test]
fn demands_that_cannot_be_met_are_errors() {
    let mut controller = Controller::new();
    controller.connect.result |= 1 << 17;
    assert_eq!(
        bring_up(&mut controller, params()).0,
        Err(ConnectError::AuthenticationRequired)
    );
    controller = Controller::new();
    controller.connect.result = 0xfff0;
    assert!(matches!(
        bring_up(&mut controller, params()).0,
        Err(ConnectError::Unusable(_))
    ));
    controller = Controller::new();
    controller.version = Version::V1_0;
    let error = bring_up(&mut controller, params()).0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the controller claims nvme 1.0, expected 1.2.1 or later"
    );
    controller = Controller::new();
    controller.capabilities = controller.capabilities.with_command_sets(0);
    assert!(matches!(
        bring_up(&mut controller, params()).0,
        Err(ConnectError::Unusable(_))
    ));
}

#[test]
fn identify_pages_that_cannot_be_meant_are_refused() {
    fn spoil(change: impl Fn(&mut Controller)) -> String {
        let mut controller = Controller::new();
        change(&mut controller);
        bring_up(&mut controller, params()).0.unwrap_err().to_string()
    }
    assert!(spoil(|c| c.page.cntlid = U16::new(8)).contains("CNTLID is 8"));
    assert!(spoil(|c| c.page.sgls = U32::ZERO).contains("SGLS"));
    assert!(spoil(|c| c.page.ioccsz = U32::new(3)).contains("IOCCSZ is 3"));
    assert!(spoil(|c| c.page.icdoff = U16::new(u16::MAX)).contains("IOCCSZ"));
    assert!(spoil(|c| c.page.iorcsz = U32::ZERO).contains("IORCSZ"));
    assert!(spoil(|c| c.page_len = 4095).contains("4095 bytes, expected 4096"));
    assert!(spoil(|c| c.page_len = 0).contains("0 bytes"));
    assert!(spoil(|c| c.capabilities = c.capabilities.with_mqes_z(0)).contains("MQES"));
}

#[test]
fn odd_but_possible_pages_are_taken_as_they_are() {
    let mut controller = Controller::new();
    controller.page.mdts = 255;
    controller.page.maxcmd = U16::ZERO;
    controller.page.ioccsz = U32::new(u32::MAX);
    controller.page.subnqn = [0xff; 256];
    controller.page.sn = [0xff; 20];
    controller.queues = Completion {
        status: Status::SUCCESS,
        result: 0xffff_ffff,
    };
    controller.events = Completion::failed(Status::INVALID_FIELD);
    controller.keep_alive = Completion::failed(Status::INVALID_FIELD);
    let info = bring_up(&mut controller, params()).0.unwrap();
    assert_eq!(
        (info.max_transfer, info.max_queue_entries, info.in_capsule),
        (None, 1024, u32::MAX)
    );
    assert_eq!(
        (info.subsystem_nqn.as_str(), info.serial.as_str()),
        (SUBSYSTEM, "(not ascii)")
    );
    // More queues than asked for is not a gift that anybody can use; no events is not a reason to give up.
    assert_eq!(
        (info.io_queues, info.optional_events, info.keep_alive_ms),
        (16, 0, 5000)
    );
}

#[test]
fn an_io_queue_must_be_the_same_controllers() {
    let params = IoConnectParams {
        host_nqn: Nqn::new(HOST).unwrap(),
        host_id: [3; 16],
        subsystem: Nqn::new(SUBSYSTEM).unwrap(),
        controller_id: 7,
        qid: 2,
        entries: 129,
        sq_flow_control: false,
    };
    let answer = |completion| {
        let mut connect = IoConnect::new(params.clone());
        let Step::Submit { command, .. } = connect.next(None) else {
            panic!("no connect")
        };
        let fields = ConnectCommand::from_sqe(&command.0).unwrap();
        assert_eq!((fields.qid, fields.sqsize_z, fields.kato_ms), (2, 128, 0));
        assert!(fields.disables_sq_flow_control());
        connect.next(Some(&Answer {
            completion,
            data: &[],
        }))
    };
    assert!(matches!(
        answer(Completion {
            status: Status::SUCCESS,
            result: 7
        }),
        Step::Ready(())
    ));
    assert!(matches!(
        answer(Completion {
            status: Status::SUCCESS,
            result: 8
        }),
        Step::Failed(ConnectError::Unusable(_))
    ));
    let refused = Completion {
        status: Status::CONNECT_INVALID_PARAMETERS,
        result: 42,
    };
    let Step::Failed(error) = answer(refused) else {
        panic!("accepted")
    };
    assert!(error.to_string().contains("queue id"), "{error}");
}

#[test]
fn a_shutdown_is_waited_for_and_given_up() {
    let run = |ready_after| {
        let mut controller = Controller::new();
        controller.ready_after = ready_after;
        let configuration = Cc::default().with_enabled(true).with_standard_entry_sizes();
        let mut now = Instant::ZERO;
        let mut shutdown = Shutdown::new(configuration, now + Duration::from_secs(1));
        let mut step = shutdown.next(None, now);
        loop {
            step = match step {
                Step::Submit { command, data } => {
                    let (completion, data) = controller.execute(&command, &data);
                    shutdown.next(
                        Some(&Answer {
                            completion,
                            data: &data,
                        }),
                        now,
                    )
                }
                Step::WaitUntil(time) => {
                    now = time;
                    shutdown.next(None, now)
                }
                Step::Ready(confirmed) => {
                    assert!(controller.configuration.enabled());
                    return (confirmed, now.saturating_since(Instant::ZERO));
                }
                Step::Failed(error) => panic!("{error}"),
            };
        }
    };
    assert!(run(Some(2)).0);
    assert_eq!(run(None), (false, Duration::from_secs(1)));
}

fn namespace_page(lbads: u8, blocks: u64) -> IdentifyNamespace {
    let mut page = IdentifyNamespace::default();
    page.nsze = U64::new(blocks);
    page.lbaf[0] = LbaFormat {
        lbads,
        ..LbaFormat::default()
    };
    page
}

#[test]
fn namespaces_that_cannot_be_meant_are_refused() {
    let parse = |page: &IdentifyNamespace| NamespaceInfo::from_page(1, page.as_bytes());
    let good = parse(&namespace_page(12, 100)).unwrap().unwrap();
    assert_eq!((good.block_size, good.blocks, good.bytes()), (4096, 100, 409_600));
    assert_eq!(parse(&IdentifyNamespace::new_zeroed()), Ok(None));
    for lbads in [0, 1, 8, 17, 31, 32, 63, 255] {
        assert!(parse(&namespace_page(lbads, 100)).is_err(), "{lbads}");
    }
    assert!(parse(&namespace_page(12, u64::MAX)).is_err());
    let mut page = namespace_page(12, 100);
    page.flbas = 1;
    assert!(parse(&page).is_err(), "a format beyond those listed");
    page.nlbaf_z = 255;
    page.flbas = 0x6f;
    assert!(parse(&page).is_err(), "a format of no size");
    assert!(NamespaceInfo::from_page(1, &[1; 100]).is_err());
    let mut info = good;
    info.add_descriptors(&[3, 16, 0, 0]);
    assert_eq!(
        info.uuid, None,
        "a descriptor past the end of the list is left out"
    );
}

#[test]
fn namespace_lists_must_ascend() {
    let parse =
        |ids: &[u32], after| parse_namespace_list(NamespaceList::new(ids.iter().copied()).as_bytes(), after);
    assert_eq!(parse(&[1, 2, 9], 0), Ok(vec![1, 2, 9]));
    assert_eq!(parse(&[], 5), Ok(vec![]));
    assert!(parse(&[1, 1], 0).is_err());
    assert!(parse(&[5, 6], 5).is_err());
    assert!(parse(&[2, 1], 0).is_err());
    assert!(parse(&[u32::MAX], 0).is_err());
    assert!(parse_namespace_list(&[1, 0, 0, 0], 0).is_err());
    assert_eq!(parse(&(1..=1024).collect::<Vec<_>>(), 0).unwrap().len(), 1024);
}

/// Usable entries, and why others are not.
type Discovered = (Vec<DiscoveryRecord>, Vec<String>);

/// A discovery log that can change while it is read.
struct Log {
    entries: Vec<DiscoveryEntry>,
    generation: u64,
    /// Reads of entries after which the generation moves, so many times.
    changes: u32,
    claimed: Option<u64>,
    short: usize,
    status: Status,
}

impl Log {
    fn new(count: usize) -> Self {
        let entries = (0..count)
            .map(|index| {
                let mut entry = DiscoveryEntry::default();
                entry.trtype = TransportType::TCP;
                entry.subtype = SubsystemType::NVM;
                entry.subnqn = Nqn::new(&format!("nqn.2024-01.org.example:disk{index}"))
                    .unwrap()
                    .to_field();
                entry.set_address("192.0.2.1").unwrap();
                entry.set_service("4420").unwrap();
                entry
            })
            .collect();
        Self {
            entries,
            generation: 5,
            changes: 0,
            claimed: None,
            short: 0,
            status: Status::SUCCESS,
        }
    }

    fn read(&mut self, command: &Command) -> (Completion, Vec<u8>) {
        let page = GetLogPage::from_sqe(&command.0).unwrap();
        let mut whole =
            DiscoveryHeader::new(self.generation, self.claimed.unwrap_or(self.entries.len() as u64))
                .as_bytes()
                .to_vec();
        for entry in &self.entries {
            whole.extend_from_slice(entry.as_bytes());
        }
        if page.lpo > 0 && self.changes > 0 {
            self.changes -= 1;
            self.generation += 1;
        }
        let start = usize::try_from(page.lpo).unwrap().min(whole.len());
        let mut part = whole[start..].to_vec();
        part.resize(usize::try_from(page.length()).unwrap() - self.short, 0);
        (Completion::from(self.status), part)
    }

    fn discover(&mut self) -> (Result<Discovered, DiscoveryError>, u32) {
        let mut discovery = Discovery::new(Some(4096));
        let mut step = discovery.next(None);
        let mut reads = 0;
        loop {
            step = match step {
                DiscoveryStep::Submit { command, data } => {
                    reads += 1;
                    let (completion, bytes) = self.read(&command);
                    assert!(matches!(data, StepData::In(len) if len <= 4096));
                    discovery.next(Some(&Answer {
                        completion,
                        data: &bytes,
                    }))
                }
                DiscoveryStep::Ready { records, skipped } => return (Ok((records, skipped)), reads),
                DiscoveryStep::Failed(error) => return (Err(error), reads),
            };
        }
    }
}

#[test]
fn a_log_is_read_in_parts() {
    let (result, reads) = Log::new(9).discover();
    let (records, skipped) = result.unwrap();
    assert_eq!((records.len(), skipped.len(), reads), (9, 0, 1 + 3 + 1));
    assert_eq!(records[8].subsystem.as_str(), "nqn.2024-01.org.example:disk8");
    assert_eq!(
        (records[0].address.as_str(), records[0].service.as_str()),
        ("192.0.2.1", "4420")
    );
    assert_eq!(Log::new(0).discover().0, Ok((vec![], vec![])));
}

#[test]
fn a_log_that_changes_is_read_again_but_not_forever() {
    let mut log = Log::new(3);
    log.changes = 2;
    let (result, reads) = log.discover();
    assert_eq!(result.unwrap().0.len(), 3);
    assert_eq!(reads, 9);
    log.changes = u32::MAX;
    let (result, reads) = log.discover();
    assert_eq!(result, Err(DiscoveryError::Unsettled));
    assert!(reads < 40);
    log.status = Status::DISCOVER_RESTART;
    assert_eq!(log.discover().0, Err(DiscoveryError::Unsettled));
}

#[test]
fn logs_that_cannot_be_meant_are_refused() {
    let mut log = Log::new(1);
    log.claimed = Some(u64::MAX);
    let (result, reads) = log.discover();
    assert_eq!(
        (result, reads),
        (Err(DiscoveryError::TooLong { came: u64::MAX }), 1)
    );
    log.claimed = None;
    log.short = 1;
    assert!(matches!(log.discover().0, Err(DiscoveryError::Short { .. })));
    log.short = 0;
    log.status = Status::INVALID_LOG_PAGE;
    assert_eq!(
        log.discover().0,
        Err(DiscoveryError::Command(Status::INVALID_LOG_PAGE))
    );
}

#[test]
fn entries_that_cannot_be_used_are_named_and_left_out() {
    let mut log = Log::new(3);
    log.entries[1].subnqn = [0xff; 256];
    log.entries[2].traddr[0] = 0xff;
    let (records, skipped) = log.discover().0.unwrap();
    assert_eq!((records.len(), skipped.len()), (1, 2));
    assert!(
        skipped[0].starts_with("entry 1: ") && skipped[1].contains("address"),
        "{skipped:?}"
    );
}
