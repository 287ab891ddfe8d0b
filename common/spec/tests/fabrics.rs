//! Fabrics commands, names, and what a Connect completion says.

use homi_spec::auth::{
    AuthHeader, AuthId, AuthType, Challenge, DhGroupId, Failure, FailureExplanation, HashId, Negotiate,
    ProtocolDescriptor, Reply, Success1, Success2,
};
use homi_spec::command::FabricsType;
use homi_spec::fabrics::{
    Authentication, CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectResponse, Disconnect, Property,
    PropertyGet, PropertySet, PropertySize,
};
use homi_spec::nqn::{DISCOVERY_NQN, Nqn, NqnError};
use homi_spec::{Cqe, Sgl, Sqe, Status};
use proptest::prelude::*;
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
fn connect() {
    let command = ConnectCommand {
        recfmt: 0,
        qid: 3,
        sqsize_z: 127,
        cattr: ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL,
        kato_ms: 0x0001_86a0,
    };
    let sqe = command.to_sqe(0x0102, Sgl::in_capsule(0, 1024));
    let expected = golden(&[
        (0, &[0x7f, 0x40, 0x02, 0x01, 0x01]),
        (33, &[0x04]),
        (39, &[0x01]),
        (40, &[0, 0, 3, 0, 127, 0, 0x04, 0, 0xa0, 0x86, 0x01, 0x00]),
    ]);
    assert_eq!(sqe.as_bytes(), expected);
    assert_eq!(sqe.fabrics_type(), Some(FabricsType::CONNECT));
    let read = ConnectCommand::from_sqe(&sqe).unwrap();
    assert_eq!(read, command);
    assert_eq!(read.sqsize(), 128);
    assert!(read.disables_sq_flow_control());
}

#[test]
fn connect_data() {
    let subnqn = Nqn::new("nqn.2024-01.org.example:disk1").unwrap();
    let hostnqn = Nqn::new("nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6").unwrap();
    let data = ConnectData::new([0xab; 16], CNTLID_DYNAMIC, &subnqn, &hostnqn);
    let bytes = data.as_bytes();
    assert_eq!(bytes.len(), 1024);
    assert_eq!(bytes[..18], [[0xab; 16].as_slice(), &[0xff, 0xff]].concat());
    assert_eq!(&bytes[256..256 + 30], b"nqn.2024-01.org.example:disk1\0");
    assert_eq!(&bytes[512..520], b"nqn.2014");
    assert!(bytes[18..256].iter().chain(&bytes[768..]).all(|&byte| byte == 0));
    let read = ConnectData::ref_from_bytes(bytes).unwrap();
    assert_eq!(Nqn::from_field(&read.subnqn).unwrap(), subnqn);
    assert_eq!(Nqn::from_field(&read.hostnqn).unwrap(), hostnqn);
}

#[test]
fn connect_responses() {
    let response = ConnectResponse::Success {
        cntlid: 0x1234,
        auth_transaction_required: true,
        auth_secure_channel_required: false,
    };
    let mut cqe = Cqe::new(1);
    response.apply(&mut cqe);
    assert_eq!((cqe.dw0.get(), cqe.status.get()), (0x0002_1234, 0));
    assert_eq!(ConnectResponse::from_cqe(&cqe), response);

    // SUBNQN is not known: byte 256 of the data.
    ConnectResponse::invalid_data_field(256).apply(&mut cqe);
    assert_eq!(cqe.dw0.get(), 0x0001_0100);
    assert_eq!(cqe.status(), Status::CONNECT_INVALID_PARAMETERS.with_dnr());
    assert_eq!(
        ConnectResponse::from_cqe(&cqe),
        ConnectResponse::invalid_data_field(256)
    );

    ConnectResponse::invalid_command_field(44).apply(&mut cqe);
    assert_eq!(cqe.dw0.get(), 44);
    assert_eq!(
        ConnectResponse::from_cqe(&cqe),
        ConnectResponse::invalid_command_field(44)
    );

    ConnectResponse::Failed(Status::CONNECT_INVALID_HOST).apply(&mut cqe);
    assert_eq!(cqe.dw0.get(), 0);
    assert_eq!(
        ConnectResponse::from_cqe(&cqe),
        ConnectResponse::Failed(Status::CONNECT_INVALID_HOST)
    );
}

#[test]
fn properties() {
    let get = PropertyGet {
        size: PropertySize::Eight,
        property: Property::CAP,
    };
    assert_eq!(
        get.to_sqe(5).as_bytes(),
        golden(&[(0, &[0x7f, 0x40, 5, 0, 0x04]), (40, &[1])])
    );
    assert_eq!(PropertyGet::from_sqe(&get.to_sqe(5)), Some(get));

    let set = PropertySet {
        size: PropertySize::Four,
        property: Property::CC,
        value: 0x0046_0001,
    };
    assert_eq!(
        set.to_sqe(5).as_bytes(),
        golden(&[
            (0, &[0x7f, 0x40, 5, 0, 0x00]),
            (44, &[0x14, 0, 0, 0, 0x01, 0x00, 0x46, 0x00])
        ])
    );
    assert_eq!(PropertySet::from_sqe(&set.to_sqe(5)), Some(set));
    assert_eq!(PropertyGet::from_sqe(&set.to_sqe(5)), None);

    assert_eq!(Property::CAP.size(), Some(PropertySize::Eight));
    assert_eq!(Property::CSTS.size(), Some(PropertySize::Four));
    assert_eq!(Property(0x28).size(), None);
    assert_eq!(PropertySize::from_bits(0xfd), PropertySize::Unknown(5));
    assert_eq!(PropertySize::Unknown(5).bits(), 5);
}

#[test]
fn disconnect_and_authentication() {
    let disconnect = Disconnect::default();
    assert_eq!(
        disconnect.to_sqe(6).as_bytes(),
        golden(&[(0, &[0x7f, 0x40, 6, 0, 0x08])])
    );
    assert_eq!(Disconnect::from_sqe(&disconnect.to_sqe(6)), Some(disconnect));

    let send = Authentication::send(72);
    let sqe = send.to_sqe(7, Sgl::in_capsule(0, 72));
    assert_eq!(
        sqe.as_bytes(),
        golden(&[
            (0, &[0x7f, 0x40, 7, 0, 0x05]),
            (32, &[72]),
            (39, &[0x01]),
            (40, &[0, 1, 1, 0xe9, 72])
        ])
    );
    assert_eq!(Authentication::from_sqe(&sqe), Some(send));
    let receive = Authentication::receive(4096);
    let sqe = receive.to_sqe(7, Sgl::transport(4096));
    assert_eq!(sqe.as_bytes()[4], 0x06);
    assert_eq!(Authentication::from_sqe(&sqe), Some(receive));
}

#[test]
fn authentication_messages() {
    let offer = ProtocolDescriptor::new(&[HashId::SHA_256, HashId::SHA_384], &[DhGroupId::NULL]);
    let negotiate = Negotiate {
        header: AuthHeader::new(AuthType::COMMON, AuthId::NEGOTIATE, 0x0102),
        sc_c: 0,
        napd: 1,
    };
    let payload = [negotiate.as_bytes(), offer.as_bytes()].concat();
    assert_eq!(payload[..14], [0, 0, 0, 0, 2, 1, 0, 1, 1, 0, 2, 1, 1, 2]);
    let (read, offers) = Negotiate::parse(&payload).unwrap();
    assert_eq!((read, offers), (&negotiate, [offer].as_slice()));
    assert_eq!(offers[0].hashes(), [HashId::SHA_256, HashId::SHA_384]);
    assert_eq!(offers[0].groups(), [DhGroupId::NULL]);
    assert_eq!(Negotiate::parse(&payload[..71]).unwrap_err().need, 72);

    let challenge = Challenge {
        header: AuthHeader::new(AuthType::DH_HMAC_CHAP, AuthId::CHALLENGE, 1),
        hl: 32,
        hash_id: HashId::SHA_256,
        dh_id: DhGroupId::FFDHE_2048,
        dhvlen: 256.into(),
        seqnum: 9.into(),
        ..Challenge::default()
    };
    let payload = [challenge.as_bytes(), &[0x11; 32], &[0x22; 256]].concat();
    assert_eq!(payload[..16], [1, 1, 0, 0, 1, 0, 32, 0, 1, 1, 0, 1, 9, 0, 0, 0]);
    let (_, value, public) = Challenge::parse(&payload).unwrap();
    assert_eq!((value, public), ([0x11; 32].as_slice(), [0x22; 256].as_slice()));
    let error = Challenge::parse(&payload[..300]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the authentication message needs 304 bytes, 300 came"
    );

    let reply = Reply {
        header: AuthHeader::new(AuthType::DH_HMAC_CHAP, AuthId::REPLY, 1),
        hl: 32,
        cvalid: 1,
        ..Reply::default()
    };
    let payload = [reply.as_bytes(), &[0x33; 32], &[0x44; 32]].concat();
    let (_, values) = Reply::parse(&payload).unwrap();
    assert_eq!(
        (values.response, values.challenge),
        ([0x33; 32].as_slice(), [0x44; 32].as_slice())
    );
    assert!(values.dh_value.is_empty());

    let mut success = Success1 {
        header: AuthHeader::new(AuthType::DH_HMAC_CHAP, AuthId::SUCCESS1, 1),
        hl: 32,
        ..Success1::default()
    };
    assert_eq!(Success1::parse(success.as_bytes()).unwrap().1, b"");
    success.rvalid = 1;
    assert_eq!(Success1::parse(success.as_bytes()).unwrap_err().need, 48);

    assert_eq!(Success2::default().as_bytes().len(), 16);
    let failure = Failure {
        header: AuthHeader::new(AuthType::COMMON, AuthId::FAILURE1, 1),
        reason: Failure::REASON_FAILED,
        explanation: FailureExplanation::HASH_UNUSABLE,
    };
    assert_eq!(failure.as_bytes(), [0, 0xf1, 0, 0, 1, 0, 1, 4]);
    assert_eq!(Failure::parse(failure.as_bytes()).unwrap(), &failure);
    assert_eq!(
        AuthHeader::parse(failure.as_bytes()).unwrap().auth_id,
        AuthId::FAILURE1
    );
    assert!(Failure::parse(&[0; 7]).is_err());
}

#[test]
fn names() {
    for good in [
        DISCOVERY_NQN,
        "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "nqn.2014-08.com.example:nvme.host.sys.xyz",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2014-08.org.nvmexpress:NVMf:uuid:not-the-uuid-form",
        "nqn.2024-12.x",
        "nqn.2024-01.org.example:plätte",
    ] {
        let nqn = Nqn::new(good).unwrap();
        assert_eq!(nqn.as_str(), good);
        assert_eq!(nqn.to_string(), good);
        assert!(nqn.is_well_formed());
        assert_eq!(Nqn::from_field(&nqn.to_field()).unwrap(), nqn);
    }
    for (bad, error) in [
        ("", NqnError::Empty),
        ("iqn.2024-01.org.example", NqnError::Prefix),
        ("blktests-subsystem-1", NqnError::Prefix),
        ("nqn.2024-1.org.example", NqnError::Date),
        ("nqn.2024-13.org.example", NqnError::Date),
        ("nqn.2024-00.org.example", NqnError::Date),
        ("nqn.2014.08.org.nvmexpress:8086", NqnError::Date),
        ("nqn.", NqnError::Date),
        ("nqn.2024-01.", NqnError::Domain),
        ("nqn.2024-01.:x", NqnError::Domain),
        ("nqn.2024-01.org..example", NqnError::Domain),
        ("nqn.2024-01.-org:x", NqnError::Domain),
        (
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765",
            NqnError::Uuid,
        ),
        (
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bfz",
            NqnError::Uuid,
        ),
        (
            "nqn.2024-01.org.example:a\nb",
            NqnError::ControlCharacter { offset: 25 },
        ),
    ] {
        assert_eq!(bad.parse::<Nqn>().unwrap_err(), error, "{bad:?}");
    }
    let longest = format!("nqn.2024-01.org.example:{}", "x".repeat(223 - 24));
    assert_eq!(Nqn::new(&longest).unwrap().as_bytes().len(), 223);
    assert_eq!(
        Nqn::from_field(&Nqn::new(&longest).unwrap().to_field())
            .unwrap()
            .as_str(),
        longest
    );
    assert_eq!(
        Nqn::new(&format!("{longest}x")),
        Err(NqnError::TooLong { len: 224 })
    );

    assert!(Nqn::discovery().is_discovery());
    assert_eq!(Nqn::discovery().as_str(), DISCOVERY_NQN);
    let odd = Nqn::lenient("blktests-subsystem-1").unwrap();
    assert!(!odd.is_well_formed());
    assert!(Nqn::lenient("").is_err());
    assert!(Nqn::lenient("a\u{7f}").is_err());
}

#[test]
fn name_fields() {
    let mut field = [0; 256];
    field[..3].copy_from_slice(b"abc");
    assert_eq!(Nqn::from_field(&field), Err(NqnError::Prefix));
    assert_eq!(Nqn::from_field_lenient(&field).unwrap().as_str(), "abc");
    field[200] = 1;
    assert_eq!(
        Nqn::from_field_lenient(&field),
        Err(NqnError::Padding { offset: 200 })
    );
    assert_eq!(
        Nqn::from_field_lenient(&[b'a'; 256]),
        Err(NqnError::NotTerminated)
    );
    let mut late = [0; 256];
    late[..224].fill(b'a');
    assert_eq!(Nqn::from_field_lenient(&late), Err(NqnError::NotTerminated));
    let mut not_utf8 = [0; 256];
    not_utf8[..2].copy_from_slice(&[b'a', 0xff]);
    assert_eq!(
        Nqn::from_field_lenient(&not_utf8),
        Err(NqnError::NotUtf8 { offset: 1 })
    );
    assert_eq!(Nqn::from_field_lenient(&[0; 256]), Err(NqnError::Empty));
}

fn any_field() -> impl Strategy<Value = [u8; 256]> {
    proptest::collection::vec(any::<u8>(), 256).prop_map(|bytes| {
        let mut field = [0; 256];
        field.copy_from_slice(&bytes);
        field
    })
}

proptest! {
    #[test]
    fn connect_round_trip(recfmt: u16, qid: u16, sqsize_z: u16, cattr: u8, kato_ms: u32, cid: u16) {
        let command = ConnectCommand { recfmt, qid, sqsize_z, cattr, kato_ms };
        prop_assert_eq!(ConnectCommand::from_sqe(&command.to_sqe(cid, Sgl::default())), Some(command));
    }

    #[test]
    fn no_entry_panics(bytes in proptest::collection::vec(any::<u8>(), 64)) {
        let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
        for fctype in 0..=9 {
            sqe.opcode = 0x7f;
            sqe.nsid.as_mut_bytes()[0] = fctype;
            let _ = (ConnectCommand::from_sqe(&sqe), Disconnect::from_sqe(&sqe), PropertyGet::from_sqe(&sqe));
            let _ = (PropertySet::from_sqe(&sqe), Authentication::from_sqe(&sqe));
        }
    }

    #[test]
    fn no_name_field_panics(field in any_field(), end in 0_usize..256) {
        let mut field = field;
        field[end..].fill(0);
        if let Ok(nqn) = Nqn::from_field_lenient(&field) {
            prop_assert_eq!(nqn.to_field(), field);
        }
        let _ = Nqn::from_field(&field);
    }

    #[test]
    fn names_of_the_format_are_accepted(
        name in "nqn\\.20[0-9]{2}-0[1-9]\\.[a-z]{2,5}\\.[a-z0-9]{1,20}(:[ -~]{0,60})?"
    ) {
        prop_assume!(!name.starts_with(homi_spec::nqn::UUID_PREFIX));
        let nqn = Nqn::new(&name).unwrap();
        prop_assert_eq!(nqn.as_str(), name);
    }

    #[test]
    fn no_authentication_payload_panics(payload in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = (AuthHeader::parse(&payload), Negotiate::parse(&payload), Failure::parse(&payload));
        if let Ok((message, challenge, value)) = Challenge::parse(&payload) {
            prop_assert_eq!(challenge.len(), usize::from(message.hl));
            prop_assert_eq!(value.len(), usize::from(message.dhvlen.get()));
        }
        if let Ok((message, values)) = Reply::parse(&payload) {
            prop_assert_eq!(values.response.len(), usize::from(message.hl));
            prop_assert_eq!(values.challenge.len(), usize::from(message.hl));
        }
        let _ = Success1::parse(&payload);
    }
}
