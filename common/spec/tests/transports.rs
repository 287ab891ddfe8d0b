//! TCP units, RDMA private data and controller registers.

use homi_spec::controller::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Version};
use homi_spec::rdma::{CmAccept, CmReject, CmRequest, RejectStatus};
use homi_spec::registers::{Aqa, CmbLoc, CmbMsc, CmbSz, Crto, completion_doorbell, submission_doorbell};
use homi_spec::tcp::{
    C2HData, CapsuleCmd, CapsuleResp, FatalError, H2CData, IcReq, IcResp, PduHeader, PduType, R2t, TermReq,
    alignment, dgst, flags,
};
use homi_spec::{Cqe, Sgl, Status, nvm::BlockCommand};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn initialize() {
    let request = IcReq::new(31, dgst::HEADER | dgst::DATA, 15);
    let mut expected = [0; 128];
    expected[..16].copy_from_slice(&[0x00, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 3, 15, 0, 0, 0]);
    assert_eq!(request.as_bytes(), expected);

    let response = IcResp::new(7, dgst::DATA, 0x0002_0000);
    let mut expected = [0; 128];
    expected[..16].copy_from_slice(&[0x01, 0, 128, 0, 128, 0, 0, 0, 0, 0, 7, 2, 0, 0, 2, 0]);
    assert_eq!(response.as_bytes(), expected);
}

#[test]
fn terminate() {
    let request = TermReq::new(
        PduType::C2H_TERM_REQ,
        FatalError::INVALID_HEADER_FIELD,
        0x0a0b_0c0d,
        72,
    );
    // The information lies at offset 10, not 12.
    let expected = [
        0x03, 0, 24, 0, 96, 0, 0, 0, 1, 0, 0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(request.as_bytes(), expected);
    assert_eq!(
        TermReq::ref_from_bytes(&expected).unwrap().fatal_error(),
        FatalError::INVALID_HEADER_FIELD
    );
    let longest = TermReq::new(PduType::H2C_TERM_REQ, FatalError(0xbeef), 0, 255);
    assert_eq!(longest.header.plen.get(), 152);
    assert_eq!(longest.fatal_error().to_string(), "UNKNOWN(0xbeef)");
}

#[test]
fn capsules() {
    let mut sqe = BlockCommand::write(1, 0, 1).unwrap().to_sqe(2);
    sqe.set_sgl(Sgl::in_capsule(0, 512));
    let command = CapsuleCmd {
        header: PduHeader::new(PduType::CAPSULE_CMD, flags::HDGST, 76, 588),
        sqe,
    };
    assert_eq!(
        command.as_bytes()[..12],
        [0x04, 1, 72, 76, 0x4c, 0x02, 0, 0, 0x01, 0x40, 2, 0]
    );

    let response = CapsuleResp {
        header: PduHeader::new(PduType::CAPSULE_RESP, 0, 0, 24),
        cqe: Cqe::new(2).with_status(Status::WRITE_FAULT),
    };
    assert_eq!(
        response.as_bytes(),
        [
            0x05, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x00, 0x05
        ]
    );
}

#[test]
fn data_units() {
    let r2t = R2t {
        header: PduHeader::new(PduType::R2T, 0, 0, 24),
        cccid: 0x0102.into(),
        ttag: 0x0304.into(),
        r2to: 0x0506_0708.into(),
        r2tl: 0x090a_0b0c.into(),
        ..R2t::default()
    };
    assert_eq!(
        r2t.as_bytes(),
        [
            0x09, 0, 24, 0, 24, 0, 0, 0, 2, 1, 4, 3, 8, 7, 6, 5, 12, 11, 10, 9, 0, 0, 0, 0
        ]
    );
    let h2c = H2CData {
        header: PduHeader::new(PduType::H2C_DATA, flags::LAST_PDU, 24, 24 + 4096),
        cccid: 0x0102.into(),
        ttag: 0x0304.into(),
        datao: 4096.into(),
        datal: 4096.into(),
        ..H2CData::default()
    };
    assert_eq!(
        h2c.as_bytes(),
        [
            0x06, 4, 24, 24, 0x18, 0x10, 0, 0, 2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0
        ]
    );
    let c2h = C2HData {
        header: PduHeader::new(PduType::C2H_DATA, flags::LAST_PDU | flags::SUCCESS, 24, 24 + 512),
        cccid: 0x0102.into(),
        datal: 512.into(),
        ..C2HData::default()
    };
    assert_eq!(
        c2h.as_bytes(),
        [
            0x07, 0x0c, 24, 24, 0x18, 0x02, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0
        ]
    );
    assert!(c2h.header.has(flags::SUCCESS) && !c2h.header.has(flags::DDGST));
}

#[test]
fn header_lengths_and_alignments() {
    for (pdu_type, size) in [
        (PduType::IC_REQ, size_of::<IcReq>()),
        (PduType::IC_RESP, size_of::<IcResp>()),
        (PduType::H2C_TERM_REQ, size_of::<TermReq>()),
        (PduType::C2H_TERM_REQ, size_of::<TermReq>()),
        (PduType::CAPSULE_CMD, size_of::<CapsuleCmd>()),
        (PduType::CAPSULE_RESP, size_of::<CapsuleResp>()),
        (PduType::H2C_DATA, size_of::<H2CData>()),
        (PduType::C2H_DATA, size_of::<C2HData>()),
        (PduType::R2T, size_of::<R2t>()),
    ] {
        assert_eq!(pdu_type.hlen().map(usize::from), Some(size), "{pdu_type}");
        assert_eq!(usize::from(PduHeader::new(pdu_type, 0, 0, 0).hlen), size);
    }
    assert_eq!(PduType(0x08).hlen(), None);
    assert_eq!((alignment(0), alignment(1), alignment(31)), (4, 8, 128));
}

#[test]
fn rdma_private_data() {
    let mut expected = [0; 32];
    expected[..10].copy_from_slice(&[0, 0, 1, 0, 128, 0, 127, 0, 5, 0]);
    assert_eq!(CmRequest::new(1, 128, 127, 5).as_bytes(), expected);
    let mut expected = [0; 32];
    expected[..4].copy_from_slice(&[0, 0, 0, 1]);
    assert_eq!(CmAccept::new(256).as_bytes(), expected);
    assert_eq!(CmReject::new(RejectStatus::NO_RESOURCES).as_bytes(), [0, 0, 6, 0]);
    // A connection manager pads: only the prefix counts.
    let mut padded = [0xee; 56];
    padded[..4].copy_from_slice(&[0, 0, 0x63, 0]);
    let (reject, _) = CmReject::ref_from_prefix(&padded).unwrap();
    assert_eq!(reject.status(), RejectStatus(0x63));
    assert_eq!(reject.status().to_string(), "UNKNOWN(0x63)");
}

#[test]
fn properties() {
    let cap = Cap::default()
        .with_mqes_z(127)
        .with_contiguous_queues(true)
        .with_timeout_500ms(30)
        .with_command_sets(0x01)
        .with_page_sizes(0, 4);
    assert_eq!(cap.0, 0x0040_0020_1e01_007f);
    assert_eq!(
        (cap.max_queue_entries(), cap.timeout_ms(), cap.doorbell_stride()),
        (128, 15_000, 4)
    );
    assert_eq!((cap.mpsmin(), cap.mpsmax(), cap.command_sets()), (0, 4, 1));
    assert!(cap.contiguous_queues() && !cap.cmb() && !cap.subsystem_reset());
    let all = Cap::default()
        .with_dstrd(2)
        .with_subsystem_reset(true)
        .with_cmb(true)
        .with_ready_with_media(true);
    assert_eq!(all.0, 0x0a00_0012_0000_0000);
    assert_eq!(all.doorbell_stride(), 16);

    let cc = Cc::default()
        .with_enabled(true)
        .with_standard_entry_sizes()
        .with_css(Cc::CSS_ALL);
    assert_eq!(cc.0, 0x0046_0061);
    assert_eq!((cc.iosqes(), cc.iocqes(), cc.css(), cc.mps()), (6, 4, 6, 0));
    let stopping = cc.with_shutdown(ShutdownNotification::Normal);
    assert_eq!(
        (stopping.0, stopping.shutdown()),
        (0x0046_4061, ShutdownNotification::Normal)
    );

    let csts = Csts::default()
        .with_ready(true)
        .with_fatal(true)
        .with_shutdown(ShutdownStatus::Complete);
    assert_eq!(csts.0, 0x0b);
    assert!(csts.ready() && csts.fatal());
    assert_eq!(csts.shutdown(), ShutdownStatus::Complete);

    assert_eq!(Version::new(1, 2, 1).0, 0x0001_0201);
    assert_eq!(Version::new(1, 2, 1).to_string(), "1.2.1");
    assert_eq!(Version::V2_0.to_string(), "2.0");
    assert!(Version::V1_4 < Version::V2_1);
}

#[test]
fn registers() {
    assert_eq!(Aqa::new(31, 63).0, 0x003f_001f);
    assert_eq!((Aqa(0x003f_001f).asqs_z(), Aqa(0x003f_001f).acqs_z()), (31, 63));
    // 64 units of 1 MiB (SZU 2), read and write data, at unit 16 of BAR 4.
    let size = CmbSz(0x0004_0218);
    let place = CmbLoc(0x0001_0004);
    assert_eq!((size.unit(), size.size()), (Some(1 << 20), Some(64 << 20)));
    assert!(size.read_data() && size.write_data() && !size.submission_queues());
    assert_eq!((place.bar(), place.offset(size)), (4, Some(16 << 20)));
    assert_eq!(CmbSz(0x0004_0700).size(), None);
    assert_eq!(CmbMsc::enabled_at(0x1_2345_6789).0, 0x1_2345_6003);
    assert_eq!(Crto(0x0002_001e).with_media_500ms(), 30);
    assert_eq!(
        (submission_doorbell(0, 4), completion_doorbell(0, 4)),
        (0x1000, 0x1004)
    );
    assert_eq!(
        (submission_doorbell(3, 8), completion_doorbell(3, 8)),
        (0x1030, 0x1038)
    );
}

proptest! {
    #[test]
    fn any_header_is_readable(bytes in any::<[u8; 24]>()) {
        let unit = H2CData::ref_from_bytes(&bytes).unwrap();
        prop_assert_eq!(unit.as_bytes(), bytes);
        prop_assert_eq!(unit.header.pdu_type.raw(), bytes[0]);
        let request = TermReq::ref_from_bytes(&bytes).unwrap();
        prop_assert_eq!(request.fei.get(), u32::from_le_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]));
    }

    #[test]
    fn setters_touch_their_own_bits(raw: u64, entries_z: u16, low in 0_u8..16, high in 0_u8..16) {
        let cap = Cap(raw).with_mqes_z(entries_z).with_page_sizes(low, high);
        prop_assert_eq!((cap.mqes_z(), cap.mpsmin(), cap.mpsmax()), (entries_z, low, high));
        let others = !(0xffff | (0xff << 48));
        prop_assert_eq!(cap.0 & others, raw & others);
    }

    #[test]
    fn no_memory_buffer_register_panics(size: u32, place: u32) {
        let _ = (CmbSz(size).size(), CmbLoc(place).offset(CmbSz(size)));
    }
}
