use homi_spec::admin::{Abort, CreateIoCq, CreateIoSq, DeleteIoQueue, QueueKind, async_event_request};
use homi_spec::command::NSID_BROADCAST;
use homi_spec::event::AsyncEvent;
use homi_spec::feature::{
    FeatureId, GetFeatures, NumberOfQueues, Select, SetFeatures, async_event, capability,
};
use homi_spec::identify::{
    Cns, ControllerList, Identify, IdentifyNamespace, NamespaceDescriptors, NamespaceId, NamespaceList, nmic,
};
use homi_spec::log::{CommandEffectsLog, ErrorLogEntry, GetLogPage, LogId};
use homi_spec::manage::{FormatNvm, NamespaceAttachment, NamespaceManagement};
use homi_spec::nvm::BlockCommand;
use homi_spec::{Sqe, Status, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Memory, Raw};
use crate::{CommandMatch, Fault, FaultRule, MisuseKind, NEVER, NamespaceConfig, SoftConfig};

fn delete(kind: QueueKind, qid: u16) -> Sqe {
    DeleteIoQueue { kind, qid }.to_sqe(0)
}

#[test]
fn queues_are_created_and_deleted_in_order() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(2);
    let at = raw.page.at();
    let cq = CreateIoCq {
        qid: 1,
        size_z: 15,
        contiguous: true,
        interrupts: true,
        vector: 1,
        address: at,
    };
    let sq = CreateIoSq {
        qid: 1,
        size_z: 15,
        contiguous: true,
        priority: 0,
        cqid: 1,
        address: at,
    };
    for (sqe, status) in [
        (sq.to_sqe(0), Status::CQ_INVALID),
        (
            CreateIoSq { cqid: 0, ..sq }.to_sqe(0),
            Status::INVALID_QUEUE_IDENTIFIER,
        ),
        (
            CreateIoCq { qid: 0, ..cq }.to_sqe(0),
            Status::INVALID_QUEUE_IDENTIFIER,
        ),
        (
            CreateIoCq { qid: 3, ..cq }.to_sqe(0),
            Status::INVALID_QUEUE_IDENTIFIER,
        ),
        (
            CreateIoCq { size_z: 0, ..cq }.to_sqe(0),
            Status::INVALID_QUEUE_SIZE,
        ),
        (
            CreateIoCq { size_z: 1024, ..cq }.to_sqe(0),
            Status::INVALID_QUEUE_SIZE,
        ),
        (
            CreateIoCq { vector: 9, ..cq }.to_sqe(0),
            Status::INVALID_INTERRUPT_VECTOR,
        ),
        (
            CreateIoCq {
                contiguous: false,
                ..cq
            }
            .to_sqe(0),
            Status::INVALID_FIELD,
        ),
        (
            CreateIoCq {
                address: at + 64,
                ..cq
            }
            .to_sqe(0),
            Status::PRP_OFFSET_INVALID,
        ),
        (cq.to_sqe(0), Status::SUCCESS),
        (cq.to_sqe(0), Status::INVALID_QUEUE_IDENTIFIER),
        (sq.to_sqe(0), Status::SUCCESS),
        (sq.to_sqe(0), Status::INVALID_QUEUE_IDENTIFIER),
        (delete(QueueKind::Completion, 1), Status::INVALID_QUEUE_DELETION),
        (delete(QueueKind::Submission, 0), Status::INVALID_QUEUE_IDENTIFIER),
        (delete(QueueKind::Submission, 1), Status::SUCCESS),
        (delete(QueueKind::Submission, 1), Status::INVALID_QUEUE_IDENTIFIER),
        (delete(QueueKind::Completion, 1), Status::SUCCESS),
    ] {
        let got = raw.admin(sqe).status();
        assert!(got.is(status), "{sqe:?}: {got}");
    }
    assert_eq!(raw.model.misuse(), []);
}

#[test]
fn the_number_of_queues_is_granted_before_there_are_any() {
    let mut raw = Raw::new(SoftConfig::default());
    let ask = |count: u32| {
        let dword = NumberOfQueues::pairs(count).unwrap().to_dword();
        SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, dword).to_sqe(0)
    };
    let granted = NumberOfQueues::from_dword(raw.admin(ask(100)).dw0.get());
    assert_eq!(granted.queue_pairs(), 8);
    let get = GetFeatures::new(FeatureId::NUMBER_OF_QUEUES);
    assert_eq!(raw.admin(get.to_sqe(0)).dw0.get(), granted.to_dword());
    let _pair = raw.pair(8, 4);
    assert!(raw.admin(ask(1)).status().is(Status::COMMAND_SEQUENCE_ERROR));
    let all = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, 0xffff);
    assert!(raw.admin(all.to_sqe(0)).status().is(Status::INVALID_FIELD));
}

#[test]
fn features_are_kept_until_a_reset() {
    let mut raw = Raw::new(SoftConfig::default());
    let id = FeatureId::ARBITRATION;
    assert!(
        raw.admin(SetFeatures::new(id, 0x0102_0304).to_sqe(0))
            .status()
            .is_success()
    );
    assert_eq!(raw.admin(GetFeatures::new(id).to_sqe(0)).dw0.get(), 0x0102_0304);
    let default = GetFeatures {
        select: Select::DEFAULT,
        ..GetFeatures::new(id)
    };
    assert_eq!(raw.admin(default.to_sqe(0)).dw0.get(), 7);
    let can = GetFeatures {
        select: Select::SUPPORTED_CAPABILITIES,
        ..default
    };
    assert_eq!(raw.admin(can.to_sqe(0)).dw0.get(), capability::CHANGEABLE);
    let save = SetFeatures {
        save: true,
        ..SetFeatures::new(id, 0)
    };
    assert!(
        raw.admin(save.to_sqe(0))
            .status()
            .is(Status::FEATURE_NOT_SAVEABLE)
    );
    let unknown = GetFeatures::new(FeatureId::SPINUP);
    assert!(raw.admin(unknown.to_sqe(0)).status().is(Status::INVALID_FIELD));

    raw.page.region.write(0, &[7; 16]).unwrap();
    let host = SetFeatures::new(FeatureId::HOST_IDENTIFIER, 1);
    assert!(raw.admin_page(host.to_sqe(0)).status().is_success());
    raw.page.region.write(0, &[0; 17]).unwrap();
    let host = GetFeatures {
        cdw11: 1,
        ..GetFeatures::new(FeatureId::HOST_IDENTIFIER)
    };
    assert!(raw.admin_page(host.to_sqe(0)).status().is_success());
    assert_eq!(raw.page.bytes(0, 17), [[7_u8; 16].as_slice(), &[0]].concat());
}

#[test]
fn events_are_told_once_until_their_log_is_read() {
    let mut raw = Raw::new(SoftConfig::default());
    let notices = SetFeatures::new(FeatureId::ASYNC_EVENT, async_event::NAMESPACE_ATTRIBUTE);
    assert!(raw.admin(notices.to_sqe(0)).status().is_success());
    for _ in 0..4 {
        raw.admin.put(async_event_request(0));
    }
    raw.ring(&raw.admin);
    raw.model.run_until_idle();
    assert!(raw.admin.pop().is_none());
    assert!(raw.model.change_namespace(1, Some(1000)));
    raw.model.run_until_idle();
    let told = raw.admin.pop().unwrap();
    assert_eq!(
        AsyncEvent::from_dword(told.dw0.get()),
        AsyncEvent::NAMESPACE_ATTRIBUTE
    );
    raw.ring_head(&raw.admin);
    // Masked now.
    assert!(raw.model.change_namespace(1, Some(2000)));
    raw.model.run_until_idle();
    assert!(raw.admin.pop().is_none());
    let read = GetLogPage::new(LogId::CHANGED_NAMESPACES, 4096).unwrap();
    assert!(raw.admin_page(read.to_sqe(0)).status().is_success());
    let list = NamespaceList::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
    assert_eq!(list.iter().collect::<Vec<_>>(), [1]);
    assert!(raw.model.change_namespace(1, None));
    raw.model.run_until_idle();
    assert!(raw.admin.pop().is_some());
    raw.ring_head(&raw.admin);
    // Two requests are left; three more are one too many.
    for _ in 0..3 {
        raw.admin.put(async_event_request(0));
    }
    raw.ring(&raw.admin);
    raw.model.run_until_idle();
    assert!(raw.admin.pop().unwrap().status().is(Status::AER_LIMIT_EXCEEDED));
    assert_eq!(raw.model.misuse()[0].kind, MisuseKind::TooManyEventRequests);
}

#[test]
fn a_wrong_doorbell_is_told_by_an_event() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.admin.put(async_event_request(0));
    raw.ring(&raw.admin);
    raw.write(0x1000 + 8, 1);
    raw.model.run_until_idle();
    let told = raw.admin.pop().unwrap();
    assert_eq!(
        AsyncEvent::from_dword(told.dw0.get()),
        AsyncEvent::INVALID_DOORBELL
    );
}

#[test]
fn what_is_not_carried_out_yet_can_be_aborted() {
    let mut raw = Raw::new(SoftConfig {
        faults: vec![
            FaultRule::once(CommandMatch::io(), Fault::Slow(NEVER)),
            FaultRule::nth(CommandMatch::io(), 1, Fault::Ignore),
        ],
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    let cids = [
        pair.put(homi_spec::nvm::flush(1, 0)),
        pair.put(homi_spec::nvm::flush(1, 0)),
    ];
    raw.ring(&pair);
    raw.model.run_until_idle();
    assert!(pair.pop().is_none());
    for cid in cids {
        let cqe = raw.admin(Abort { sqid: 1, cid }.to_sqe(0));
        assert_eq!(cqe.dw0.get(), 0);
        let aborted = pair.pop().unwrap();
        assert_eq!(
            (aborted.cid.get(), aborted.status()),
            (cid, Status::ABORT_REQUESTED)
        );
    }
    let cqe = raw.admin(Abort { sqid: 1, cid: 77 }.to_sqe(0));
    assert_eq!(cqe.dw0.get(), Abort::NOT_ABORTED);
    assert_eq!(raw.model.flushes(1), 0);
}

#[test]
fn a_deleted_queues_commands_are_aborted_before_the_deletion_completes() {
    let mut raw = Raw::new(SoftConfig {
        faults: vec![FaultRule::once(CommandMatch::io(), Fault::Slow(NEVER))],
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    pair.put(homi_spec::nvm::flush(1, 0));
    raw.ring(&pair);
    raw.model.run_until_idle();
    assert!(raw.admin(delete(QueueKind::Submission, 1)).status().is_success());
    assert_eq!(pair.pop().unwrap().status(), Status::ABORTED_SQ_DELETION);
    assert!(raw.admin(delete(QueueKind::Completion, 1)).status().is_success());
    pair.maps.clear();
    assert_eq!(raw.model.space(0).unwrap().early_unmaps(), []);
}

#[test]
fn a_command_identifier_in_use_is_refused() {
    let mut raw = Raw::new(SoftConfig {
        faults: vec![FaultRule::once(CommandMatch::io(), Fault::Slow(5))],
        ..SoftConfig::default()
    });
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    pair.put_as_is(&homi_spec::nvm::flush(1, 5));
    pair.put_as_is(&homi_spec::nvm::flush(1, 5));
    raw.ring(&pair);
    raw.model.run_until_idle();
    assert!(pair.pop().unwrap().status().is(Status::CID_CONFLICT));
    assert!(pair.pop().unwrap().status().is_success());
    assert_eq!(
        raw.model.misuse()[0].kind,
        MisuseKind::CidInUse { queue: 1, cid: 5 }
    );
}

#[test]
fn logs_say_what_went_wrong_and_what_is_supported() {
    let mut raw = Raw::new(SoftConfig::default());
    assert!(raw.admin(Sqe::new(0xc0, 0)).status().is(Status::INVALID_OPCODE));
    let errors = GetLogPage::new(LogId::ERROR, 64).unwrap();
    assert!(raw.admin_page(errors.to_sqe(0)).status().is_success());
    let entry = ErrorLogEntry::read_from_bytes(&raw.page.bytes(0, 64)).unwrap();
    assert!(entry.status().is(Status::INVALID_OPCODE));
    assert_eq!(entry.error_count.get(), 1);
    let effects = GetLogPage::new(LogId::COMMAND_EFFECTS, 4096).unwrap();
    assert!(raw.admin_page(effects.to_sqe(0)).status().is_success());
    let log = CommandEffectsLog::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
    assert!(log.admin[6].get() & 1 == 1 && log.io[2].get() & 1 == 1 && log.io[0x19].get() == 0);
    let unknown = GetLogPage::new(LogId::TELEMETRY_HOST, 64).unwrap();
    assert!(
        raw.admin_page(unknown.to_sqe(0))
            .status()
            .is(Status::INVALID_LOG_PAGE)
    );
    let past = GetLogPage::new(LogId::SMART, 4).unwrap().at(516);
    assert!(raw.admin_page(past.to_sqe(0)).status().is(Status::INVALID_FIELD));
    let mut sgl = errors.to_sqe(0);
    sgl.set_sgl(homi_spec::Sgl::data_block(raw.page.at(), 64));
    assert!(raw.admin(sgl).status().is(Status::INVALID_FIELD));
    assert_eq!(raw.model.misuse()[0].kind, MisuseKind::AdminSgl { opcode: 2 });
}

#[test]
fn namespaces_of_several_block_sizes_are_identified() {
    let mut raw = Raw::new(SoftConfig {
        namespaces: vec![
            NamespaceConfig::new(100, 9),
            NamespaceConfig::new(50, 12),
            NamespaceConfig {
                attached: false,
                ..NamespaceConfig::new(7, 16)
            },
            NamespaceConfig::new(9, 15),
        ],
        ..SoftConfig::default()
    });
    let list = |raw: &mut Raw, cns, nsid| {
        assert!(
            raw.admin_page(Identify::namespace(cns, nsid).to_sqe(0))
                .status()
                .is_success()
        );
        let list = NamespaceList::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
        list.iter().collect::<Vec<_>>()
    };
    assert_eq!(list(&mut raw, Cns::ACTIVE_NAMESPACES, 0), [1, 2, 4]);
    assert_eq!(list(&mut raw, Cns::ACTIVE_NAMESPACES, 2), [4]);
    assert_eq!(list(&mut raw, Cns::ALLOCATED_NAMESPACES, 0), [1, 2, 3, 4]);
    for (cns, nsid, blocks, size) in [
        (Cns::NAMESPACE, 1, 100, 512),
        (Cns::NAMESPACE, 2, 50, 4096),
        (Cns::ALLOCATED_NAMESPACE, 3, 7, 65536),
        (Cns::NAMESPACE, 4, 9, 32768),
    ] {
        assert!(
            raw.admin_page(Identify::namespace(cns, nsid).to_sqe(0))
                .status()
                .is_success()
        );
        let page = IdentifyNamespace::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
        assert_eq!(page.nsze.get(), blocks);
        assert_eq!(page.format().unwrap().block_size(), Some(size));
    }
    assert!(
        raw.admin_page(Identify::namespace(Cns::NAMESPACE, 3).to_sqe(0))
            .status()
            .is_success()
    );
    assert_eq!(raw.page.bytes(0, 4096), vec![0; 4096]);
    let ids = Identify::namespace(Cns::NAMESPACE_DESCRIPTORS, 2);
    assert!(raw.admin_page(ids.to_sqe(0)).status().is_success());
    let bytes = raw.page.bytes(0, 4096);
    let ids: Vec<_> = NamespaceDescriptors::new(&bytes).map(Result::unwrap).collect();
    assert!(matches!(ids[..], [NamespaceId::Nguid(_), NamespaceId::Csi(_)]));
    let bad = Identify::namespace(Cns::NAMESPACE, 99);
    assert!(
        raw.admin_page(bad.to_sqe(0))
            .status()
            .is(Status::INVALID_NAMESPACE)
    );
}

#[test]
fn namespaces_come_and_go() {
    let mut raw = Raw::new(SoftConfig::default());
    raw.set_queues(1);
    let mut pair = raw.pair(1, 8);
    let mut wanted = IdentifyNamespace::new_zeroed();
    wanted.nsze = U64::new(256);
    wanted.ncap = U64::new(256);
    wanted.flbas = 1;
    wanted.nmic = nmic::SHARED;
    raw.page.region.write(0, wanted.as_bytes()).unwrap();
    let created = raw.admin_page(NamespaceManagement::Create { csi: 0 }.to_sqe(0));
    assert_eq!((created.status(), created.dw0.get()), (Status::SUCCESS, 2));

    let data = Memory::new(&raw.function, 4096);
    let mut read = BlockCommand::read(2, 255, 1).unwrap().to_sqe(0);
    read.set_prp(data.at(), 0);
    assert!(raw.run(&mut pair, read).status().is(Status::INVALID_FIELD));
    raw.page
        .region
        .write(0, ControllerList::new([0]).as_bytes())
        .unwrap();
    let attach = NamespaceAttachment {
        nsid: 2,
        sel: NamespaceAttachment::ATTACH,
    };
    assert!(raw.admin_page(attach.to_sqe(0)).status().is_success());
    assert!(
        raw.admin_page(attach.to_sqe(0))
            .status()
            .is(Status::NAMESPACE_ALREADY_ATTACHED)
    );
    assert!(raw.run(&mut pair, read).status().is_success());

    assert!(raw.model.write_media(2, 0, &[9; 512]));
    let format = FormatNvm {
        nsid: 2,
        format: 0,
        ..FormatNvm::default()
    };
    assert!(raw.admin(format.to_sqe(0)).status().is_success());
    let mut media = [1; 512];
    assert!(raw.model.read_media(2, 0, &mut media) && media == [0; 512]);
    let mut read = BlockCommand::read(2, 2047, 1).unwrap().to_sqe(0);
    read.set_prp(data.at(), 0);
    assert!(raw.run(&mut pair, read).status().is_success());
    let bad = FormatNvm { format: 9, ..format };
    assert!(raw.admin(bad.to_sqe(0)).status().is(Status::INVALID_FORMAT));

    raw.page
        .region
        .write(0, ControllerList::new([0]).as_bytes())
        .unwrap();
    let detach = NamespaceAttachment {
        nsid: 2,
        sel: NamespaceAttachment::DETACH,
    };
    assert!(raw.admin_page(detach.to_sqe(0)).status().is_success());
    assert!(
        raw.admin_page(detach.to_sqe(0))
            .status()
            .is(Status::NAMESPACE_NOT_ATTACHED)
    );
    raw.page
        .region
        .write(0, ControllerList::new([5]).as_bytes())
        .unwrap();
    assert!(
        raw.admin_page(attach.to_sqe(0))
            .status()
            .is(Status::CONTROLLER_LIST_INVALID)
    );
    assert!(
        raw.admin(NamespaceManagement::Delete { nsid: 2 }.to_sqe(0))
            .status()
            .is_success()
    );
    assert_eq!(raw.model.namespaces(), [(1, vec![0])]);
    let all = NamespaceManagement::Delete { nsid: NSID_BROADCAST };
    assert!(raw.admin(all.to_sqe(0)).status().is_success());
    assert_eq!(raw.model.namespaces(), []);
    wanted.nsze = U64::new(1 << 40);
    wanted.ncap = wanted.nsze;
    raw.page.region.write(0, wanted.as_bytes()).unwrap();
    let created = raw.admin_page(NamespaceManagement::Create { csi: 0 }.to_sqe(0));
    assert!(created.status().is(Status::NAMESPACE_INSUFFICIENT_CAPACITY));
}
