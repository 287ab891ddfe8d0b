//! Golden bytes of commands and completions. Every byte is written out, so an encoding cannot drift unseen.

use homi_spec::admin::{self, Abort, CreateIoCq, CreateIoSq, DeleteIoQueue, QueueKind};
use homi_spec::command::{AdminOpcode, FabricsType, Fuse, NvmOpcode, Psdt, TransferDirection};
use homi_spec::event::{AsyncEvent, EventType};
use homi_spec::feature::{FeatureId, GetFeatures, NumberOfQueues, Select, SetFeatures};
use homi_spec::identify::{Cns, Csi, Identify};
use homi_spec::log::{GetLogPage, LogId};
use homi_spec::nvm::{self, BlockCommand, DatasetManagement, DsmRange, control};
use homi_spec::{Cqe, Sgl, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

/// An entry of zeroes but for these (offset, bytes) pairs.
fn golden(parts: &[(usize, &[u8])]) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (offset, part) in parts {
        for (to, from) in bytes.iter_mut().skip(*offset).zip(*part) {
            *to = *from;
        }
    }
    bytes
}

#[test]
fn read() {
    let mut sqe = BlockCommand::read(7, 0x1122_3344_5566_7788, 8)
        .unwrap()
        .with(control::FUA)
        .to_sqe(0xbeef);
    sqe.set_sgl(Sgl::transport(4096));
    let expected = golden(&[
        (0, &[0x02, 0x40, 0xef, 0xbe, 7, 0, 0, 0]),
        (32, &[0x00, 0x10, 0x00, 0x00]),
        (39, &[0x5a]),
        (40, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
        (48, &[0x07, 0x00, 0x00, 0x40]),
    ]);
    assert_eq!(sqe.as_bytes(), expected);
    assert!(sqe.fua());
    assert!(!sqe.limited_retry());
    assert_eq!(sqe.blocks(), 8);
    assert_eq!(sqe.lba(), 0x1122_3344_5566_7788);
}

#[test]
fn write_with_every_field() {
    let command = BlockCommand {
        dsm: 0x5f,
        dspec: 0x1234,
        reference_tag: 0xa1b2_c3d4,
        application_tag: 0x0506,
        application_tag_mask: 0x0708,
        reference_tag_high: 0x1112_1314_1516_1718,
        ..BlockCommand::write(1, 1, 65_536)
            .unwrap()
            .with(control::PRACT | control::LIMITED_RETRY)
    };
    let expected = golden(&[
        (
            0,
            &[
                0x01, 0, 1, 0, 1, 0, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
            ],
        ),
        (40, &[1]),
        (
            48,
            &[
                0xff, 0xff, 0x00, 0xa0, 0x5f, 0x00, 0x34, 0x12, 0xd4, 0xc3, 0xb2, 0xa1, 0x06, 0x05, 0x08,
                0x07,
            ],
        ),
    ]);
    assert_eq!(command.to_sqe(1).as_bytes(), expected);
    assert_eq!(
        BlockCommand::from_sqe(&Sqe::read_from_bytes(&expected).unwrap()),
        Some(command)
    );
}

#[test]
fn write_zeroes_compare_verify_flush() {
    let zeroes = BlockCommand::write_zeroes(2, 16, 4, true).unwrap().to_sqe(3);
    assert_eq!(
        zeroes.as_bytes(),
        golden(&[(0, &[0x08, 0, 3, 0, 2]), (40, &[16]), (48, &[3, 0, 0x00, 0x02])])
    );
    let compare = BlockCommand::compare(2, 16, 4).unwrap().to_sqe(3);
    assert_eq!(
        compare.as_bytes(),
        golden(&[(0, &[0x05, 0, 3, 0, 2]), (40, &[16]), (48, &[3])])
    );
    let verify = BlockCommand::verify(2, 16, 4).unwrap().to_sqe(3);
    assert_eq!(
        verify.as_bytes(),
        golden(&[(0, &[0x0c, 0, 3, 0, 2]), (40, &[16]), (48, &[3])])
    );
    assert_eq!(
        nvm::flush(0xffff_ffff, 9).as_bytes(),
        golden(&[(0, &[0x00, 0, 9, 0, 0xff, 0xff, 0xff, 0xff])])
    );
}

#[test]
fn block_counts_outside_the_field_are_refused() {
    assert_eq!(BlockCommand::read(1, 0, 0).unwrap_err().blocks, 0);
    let error = BlockCommand::read(1, 0, 65_537).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a command transfers 1 to 65536 logical blocks, 65537 were asked for; split it"
    );
    let last = BlockCommand::read(1, u64::MAX - 7, 8).unwrap();
    assert_eq!(last.end(), None);
    let mut sqe = last.to_sqe(0);
    sqe.set_blocks(2).unwrap();
    assert_eq!(sqe.blocks(), 2);
    assert!(sqe.set_blocks(0).is_err());
    assert!(sqe.set_blocks(65_537).is_err());
    assert_eq!(sqe.blocks(), 2);
}

#[test]
fn dataset_management() {
    let command = DatasetManagement::deallocate(5, 256).unwrap();
    assert_eq!(
        command.to_sqe(0x10).as_bytes(),
        golden(&[(0, &[0x09, 0, 0x10, 0, 5]), (40, &[0xff, 0, 0, 0, 4])])
    );
    assert_eq!((command.ranges(), command.data_length()), (256, 4096));
    assert_eq!(DatasetManagement::from_sqe(&command.to_sqe(0x10)), Some(command));
    assert_eq!(DatasetManagement::deallocate(5, 0), None);
    assert_eq!(DatasetManagement::deallocate(5, 257), None);
    assert_eq!(
        DsmRange::new(0x0102_0304, 0x10).as_bytes(),
        [0, 0, 0, 0, 0x10, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]
    );
}

#[test]
fn identify() {
    let command = Identify {
        nsid: 3,
        cns: Cns::IO_NAMESPACE,
        cntid: 0x1234,
        cnssid: 0x5678,
        csi: Csi::ZONED,
        uuid_index: 5,
    };
    let expected = golden(&[
        (0, &[0x06, 0, 2, 0, 3]),
        (40, &[0x05, 0x00, 0x34, 0x12, 0x78, 0x56, 0x00, 0x02]),
        (56, &[5]),
    ]);
    assert_eq!(command.to_sqe(2).as_bytes(), expected);
    assert_eq!(Identify::from_sqe(&command.to_sqe(2)), Some(command));
    assert_eq!(
        Identify::controller().to_sqe(0).as_bytes(),
        golden(&[(0, &[0x06]), (40, &[1])])
    );
}

#[test]
fn get_log_page() {
    let command = GetLogPage {
        nsid: 0xffff_ffff,
        lid: LogId::DISCOVERY,
        lsp: 0x7f,
        rae: true,
        numd_z: 0x0002_0003,
        lsi: 0x0405,
        lpo: 0x1112_1314_1516_1718,
        index_offset: true,
        uuid_index: 0x7e,
        csi: 0x02,
    };
    let expected = golden(&[
        (0, &[0x02, 0, 1, 0, 0xff, 0xff, 0xff, 0xff]),
        (40, &[0x70, 0xff, 0x03, 0x00, 0x02, 0x00, 0x05, 0x04]),
        (
            48,
            &[
                0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x7e, 0x00, 0x80, 0x02,
            ],
        ),
    ]);
    assert_eq!(command.to_sqe(1).as_bytes(), expected);
    assert_eq!(GetLogPage::from_sqe(&command.to_sqe(1)), Some(command));
    assert_eq!(command.length(), 0x0002_0004 * 4);

    assert_eq!(GetLogPage::new(LogId::ERROR, 64).unwrap().numd_z, 15);
    assert_eq!(GetLogPage::new(LogId::ERROR, 1 << 34).unwrap().length(), 1 << 34);
    for length in [0, 2, 66, (1 << 34) + 4] {
        assert_eq!(GetLogPage::new(LogId::ERROR, length).unwrap_err().length, length);
    }
}

#[test]
fn features() {
    let get = GetFeatures {
        nsid: 1,
        fid: FeatureId::HOST_IDENTIFIER,
        select: Select::SAVED,
        cdw11: 1,
    };
    assert_eq!(
        get.to_sqe(4).as_bytes(),
        golden(&[(0, &[0x0a, 0, 4, 0, 1]), (40, &[0x81, 0x02, 0, 0, 1])])
    );
    assert_eq!(GetFeatures::from_sqe(&get.to_sqe(4)), Some(get));

    let queues = NumberOfQueues::pairs(16).unwrap();
    let set = SetFeatures {
        save: true,
        ..SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, queues.to_dword())
    };
    assert_eq!(
        set.to_sqe(4).as_bytes(),
        golden(&[(0, &[0x09, 0, 4]), (40, &[0x07, 0, 0, 0x80, 15, 0, 15, 0])])
    );
    assert_eq!(SetFeatures::from_sqe(&set.to_sqe(4)), Some(set));

    assert_eq!(NumberOfQueues::pairs(0), None);
    assert_eq!(NumberOfQueues::pairs(65_536), None);
    assert_eq!(
        NumberOfQueues::pairs(65_535).map(NumberOfQueues::queue_pairs),
        Some(65_535)
    );
    assert_eq!(NumberOfQueues::from_dword(0x0003_0007).queue_pairs(), 4);
}

#[test]
fn queue_commands() {
    let cq = CreateIoCq {
        qid: 1,
        size_z: 0x3ff,
        contiguous: true,
        interrupts: true,
        vector: 2,
        address: 0x1000,
    };
    assert_eq!(
        cq.to_sqe(8).as_bytes(),
        golden(&[
            (0, &[0x05, 0, 8]),
            (25, &[0x10]),
            (40, &[1, 0, 0xff, 0x03, 3, 0, 2])
        ])
    );
    assert_eq!(CreateIoCq::from_sqe(&cq.to_sqe(8)), Some(cq));

    let sq = CreateIoSq {
        qid: 1,
        size_z: 0x3ff,
        contiguous: true,
        priority: 2,
        cqid: 1,
        address: 0x2000,
    };
    assert_eq!(
        sq.to_sqe(8).as_bytes(),
        golden(&[
            (0, &[0x01, 0, 8]),
            (25, &[0x20]),
            (40, &[1, 0, 0xff, 0x03, 5, 0, 1])
        ])
    );
    assert_eq!(CreateIoSq::from_sqe(&sq.to_sqe(8)), Some(sq));

    for (kind, opcode) in [(QueueKind::Submission, 0x00), (QueueKind::Completion, 0x04)] {
        let delete = DeleteIoQueue { kind, qid: 0x0102 };
        assert_eq!(
            delete.to_sqe(8).as_bytes(),
            golden(&[(0, &[opcode, 0, 8]), (40, &[2, 1])])
        );
        assert_eq!(DeleteIoQueue::from_sqe(&delete.to_sqe(8)), Some(delete));
    }

    let abort = Abort { sqid: 3, cid: 0x0a0b };
    assert_eq!(
        abort.to_sqe(8).as_bytes(),
        golden(&[(0, &[0x08, 0, 8]), (40, &[3, 0, 0x0b, 0x0a])])
    );
    assert_eq!(Abort::from_sqe(&abort.to_sqe(8)), Some(abort));

    assert_eq!(admin::keep_alive(1).as_bytes(), golden(&[(0, &[0x18, 0, 1])]));
    assert_eq!(
        admin::async_event_request(1).as_bytes(),
        golden(&[(0, &[0x0c, 0, 1])])
    );
}

#[test]
fn a_view_of_another_command_is_none() {
    let sqe = Sqe::new(0xc5, 1);
    assert_eq!(BlockCommand::from_sqe(&sqe), None);
    assert_eq!(DatasetManagement::from_sqe(&sqe), None);
    assert_eq!(Identify::from_sqe(&sqe), None);
    assert_eq!(GetLogPage::from_sqe(&sqe), None);
    assert_eq!(GetFeatures::from_sqe(&sqe), None);
    assert_eq!(SetFeatures::from_sqe(&sqe), None);
    assert_eq!(Abort::from_sqe(&sqe), None);
    assert_eq!(sqe.fabrics_type(), None);
}

#[test]
fn data_pointers() {
    let mut sqe = Sqe {
        flags: 0x01,
        ..Sqe::default()
    };
    sqe.set_prp(0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
    assert_eq!(
        sqe.dptr,
        [
            8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11
        ]
    );
    assert_eq!(
        (sqe.prp1(), sqe.prp2()),
        (0x0102_0304_0506_0708, 0x1112_1314_1516_1718)
    );
    assert_eq!((sqe.psdt(), sqe.fuse()), (Psdt::PRP, Fuse::FIRST));
    sqe.set_sgl(Sgl::in_capsule(0, 512));
    assert_eq!((sqe.psdt(), sqe.fuse()), (Psdt::SGL, Fuse::FIRST));
    sqe.set_psdt(Psdt::SGL_METADATA_SEGMENT);
    sqe.set_fuse(Fuse::SECOND);
    assert_eq!(sqe.flags, 0x82);
}

#[test]
fn completion() {
    let mut cqe = Cqe::new(0x1234)
        .with_result64(0x1112_1314_1516_1718)
        .with_phase(true);
    cqe.sq_head = 5.into();
    cqe.sq_id = 6.into();
    cqe.set_status(Status::LBA_OUT_OF_RANGE.with_dnr());
    // Status Field: DNR, SCT 0, SC 80h, phase 1: 1000 0001 0000 0001b.
    let expected = [
        0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 5, 0, 6, 0, 0x34, 0x12, 0x01, 0x81,
    ];
    assert_eq!(cqe.as_bytes(), expected);
    let read = Cqe::read_from_bytes(&expected).unwrap();
    assert!(read.phase());
    assert_eq!(read.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
    assert_eq!(read.result64(), 0x1112_1314_1516_1718);
    assert!(!read.with_phase(false).phase());
    assert_eq!(read.with_phase(false).status(), read.status());
}

#[test]
fn events() {
    assert_eq!(AsyncEvent::DISCOVERY_LOG.to_dword(), 0x0070_f002);
    assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword(), 0x0004_0002);
    assert_eq!(AsyncEvent::ANA_CHANGE.to_dword(), 0x000c_0302);
    assert_eq!(AsyncEvent::from_dword(0x0002_0101), AsyncEvent::TEMPERATURE);
    let unknown = AsyncEvent::from_dword(0x00ee_dd05);
    assert_eq!(
        (unknown.event_type, unknown.info, unknown.log),
        (EventType(5), 0xdd, LogId(0xee))
    );
    assert_eq!(unknown.to_dword(), 0x00ee_dd05);
}

#[test]
fn directions_follow_the_opcode() {
    for (opcode, direction) in [
        (NvmOpcode::WRITE.0, TransferDirection::HostToController),
        (NvmOpcode::READ.0, TransferDirection::ControllerToHost),
        (NvmOpcode::COMPARE.0, TransferDirection::HostToController),
        (NvmOpcode::WRITE_ZEROES.0, TransferDirection::None),
        (
            NvmOpcode::DATASET_MANAGEMENT.0,
            TransferDirection::HostToController,
        ),
        (AdminOpcode::IDENTIFY.0, TransferDirection::ControllerToHost),
        (AdminOpcode::GET_LOG_PAGE.0, TransferDirection::ControllerToHost),
        (AdminOpcode::SET_FEATURES.0, TransferDirection::HostToController),
        (FabricsType::CONNECT.0, TransferDirection::HostToController),
        (FabricsType::PROPERTY_GET.0, TransferDirection::None),
        (
            FabricsType::AUTHENTICATION_RECEIVE.0,
            TransferDirection::ControllerToHost,
        ),
        (FabricsType::DISCONNECT.0, TransferDirection::None),
    ] {
        assert_eq!(TransferDirection::of(opcode), direction, "opcode {opcode:#x}");
    }
}

#[test]
fn unknown_values_keep_their_number_and_print_it() {
    assert_eq!(NvmOpcode(0xc5).name(), None);
    assert_eq!(NvmOpcode(0xc5).to_string(), "UNKNOWN(0xc5)");
    assert_eq!(NvmOpcode::READ.to_string(), "READ(0x02)");
    assert_eq!(u8::from(AdminOpcode::from(0xd1)), 0xd1);
}
