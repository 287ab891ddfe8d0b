//! The status field: bit positions, names, and that nothing a peer sends is lost.

use homi_spec::Status;
use homi_spec::status::sct;
use proptest::prelude::*;

#[test]
fn bits() {
    let status = Status::new(sct::PATH, 0x02).with_crd(2).with_more().with_dnr();
    assert_eq!(status.raw(), 0b111_0011_0000_0010);
    assert_eq!(status.to_wire(true), 0b1110_0110_0000_0101);
    assert_eq!((status.sct(), status.sc(), status.crd()), (3, 2, 2));
    assert!(status.more() && status.dnr() && status.is_path() && status.is_ana());
    assert!(status.is(Status::ANA_INACCESSIBLE));
    assert_ne!(status, Status::ANA_INACCESSIBLE);
    assert_eq!(status.code(), Status::ANA_INACCESSIBLE);
}

#[test]
fn codes() {
    // (constant, status code type, status code): Base 2.0 figures "Generic Command Status Values" and following.
    for (status, sct, sc) in [
        (Status::SUCCESS, 0, 0x00),
        (Status::INVALID_OPCODE, 0, 0x01),
        (Status::INVALID_FIELD, 0, 0x02),
        (Status::CID_CONFLICT, 0, 0x03),
        (Status::DATA_TRANSFER_ERROR, 0, 0x04),
        (Status::INTERNAL_ERROR, 0, 0x06),
        (Status::ABORT_REQUESTED, 0, 0x07),
        (Status::INVALID_NAMESPACE, 0, 0x0b),
        (Status::COMMAND_SEQUENCE_ERROR, 0, 0x0c),
        (Status::SGL_INVALID_SEGMENT, 0, 0x0d),
        (Status::SGL_INVALID_COUNT, 0, 0x0e),
        (Status::SGL_DATA_LENGTH_INVALID, 0, 0x0f),
        (Status::SGL_TYPE_INVALID, 0, 0x11),
        (Status::SGL_OFFSET_INVALID, 0, 0x16),
        (Status::HOST_ID_INCONSISTENT, 0, 0x18),
        (Status::KEEP_ALIVE_EXPIRED, 0, 0x19),
        (Status::KEEP_ALIVE_INVALID, 0, 0x1a),
        (Status::COMMAND_INTERRUPTED, 0, 0x21),
        (Status::TRANSIENT_TRANSPORT_ERROR, 0, 0x22),
        (Status::LBA_OUT_OF_RANGE, 0, 0x80),
        (Status::CAPACITY_EXCEEDED, 0, 0x81),
        (Status::NAMESPACE_NOT_READY, 0, 0x82),
        (Status::RESERVATION_CONFLICT, 0, 0x83),
        (Status::INVALID_QUEUE_IDENTIFIER, 1, 0x01),
        (Status::ABORT_LIMIT_EXCEEDED, 1, 0x03),
        (Status::AER_LIMIT_EXCEEDED, 1, 0x05),
        (Status::INVALID_LOG_PAGE, 1, 0x09),
        (Status::FEATURE_NOT_SAVEABLE, 1, 0x0d),
        (Status::FEATURE_NOT_CHANGEABLE, 1, 0x0e),
        (Status::CONNECT_INCOMPATIBLE_FORMAT, 1, 0x80),
        (Status::CONNECT_CONTROLLER_BUSY, 1, 0x81),
        (Status::CONNECT_INVALID_PARAMETERS, 1, 0x82),
        (Status::CONNECT_RESTART_DISCOVERY, 1, 0x83),
        (Status::CONNECT_INVALID_HOST, 1, 0x84),
        (Status::DISCOVER_RESTART, 1, 0x90),
        (Status::AUTHENTICATION_REQUIRED, 1, 0x91),
        (Status::WRITE_FAULT, 2, 0x80),
        (Status::UNRECOVERED_READ_ERROR, 2, 0x81),
        (Status::COMPARE_FAILURE, 2, 0x85),
        (Status::INTERNAL_PATH_ERROR, 3, 0x00),
        (Status::ANA_PERSISTENT_LOSS, 3, 0x01),
        (Status::ANA_TRANSITION, 3, 0x03),
        (Status::HOST_PATH_ERROR, 3, 0x70),
        (Status::HOST_ABORTED, 3, 0x71),
    ] {
        assert_eq!((status.sct(), status.sc()), (sct, sc), "{status}");
        assert!(status.name().is_some(), "{status}");
    }
}

#[test]
fn words() {
    assert_eq!(
        Status::LBA_OUT_OF_RANGE.with_dnr().to_string(),
        "lba out of range (sct 0 sc 80h, do not retry)"
    );
    assert_eq!(format!("{:?}", Status::SUCCESS), "success (sct 0 sc 00h)");
    assert_eq!(
        Status::COMMAND_INTERRUPTED.with_crd(1).with_more().to_string(),
        "command interrupted (sct 0 sc 21h, retry delay 1, more in error log)"
    );
    assert_eq!(
        Status::new(7, 0xc1).to_string(),
        "vendor specific status (sct 7 sc c1h)"
    );
    assert_eq!(
        Status::new(5, 0x01).to_string(),
        "status of reserved type (sct 5 sc 01h)"
    );
    // One code, two meanings by command: both are named.
    assert_eq!(
        Status::CONFLICTING_ATTRIBUTES.to_string(),
        "connect: incompatible format; nvm: conflicting attributes (sct 1 sc 80h)"
    );
}

#[test]
fn matches_by_code() {
    let word = |status: Status| match status.code() {
        Status::SUCCESS => "done",
        Status::NAMESPACE_NOT_READY | Status::COMMAND_INTERRUPTED => "again",
        _ => "failed",
    };
    assert_eq!(word(Status::NAMESPACE_NOT_READY.with_more()), "again");
    assert_eq!(word(Status::WRITE_FAULT.with_dnr()), "failed");
    assert_eq!(word(Status::SUCCESS), "done");
}

proptest! {
    #[test]
    fn every_word_survives(word in any::<u16>()) {
        let status = Status::from_wire(word);
        prop_assert_eq!(status.to_wire(word & 1 != 0), word);
        prop_assert_eq!(Status::from_raw(status.raw()), status);
        let rebuilt = Status::new(status.sct(), status.sc()).with_crd(status.crd());
        let rebuilt = if status.more() { rebuilt.with_more() } else { rebuilt };
        let rebuilt = if status.dnr() { rebuilt.with_dnr() } else { rebuilt };
        prop_assert_eq!(rebuilt, status);
        prop_assert!(status.to_string().contains("sct"));
    }
}
