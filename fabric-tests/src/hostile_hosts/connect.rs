//! Everything around Connect that cannot be.

use homi_queue::Command;
use homi_spec::fabrics::{Authentication, CNTLID_DYNAMIC, ConnectCommand, ConnectData};
use homi_spec::identify::Identify;
use homi_spec::{Sgl, Sqe, Status};

use super::{Field, INVALID, SEQUENCE, terminated};
use crate::harness::Harness;
use crate::peer::{RawHost, connect_data};
use crate::units::Units;

/// Data before Connect (CVE-2026-22998).
pub fn data_before_connect<H: Harness>() {
    let mut field = Field::<H>::new();
    for ttag in [0, 1, 0x1000, u16::MAX] {
        let mut raw = field.initialized(Units::PLAIN);
        raw.send(&Units::PLAIN.h2c(0, ttag, 0, &[1; 512], true));
        assert_eq!(raw.end(), terminated(INVALID, 10));
    }
    field.survives();
}

/// Any command before Connect is out of sequence, and Connect still works.
pub fn commands_before_connect<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.initialized(Units::PLAIN);
    for sqe in [
        Command::read(1, 0, 1).0,
        Command::flush(1).0,
        Identify::controller().to_sqe(0),
        Sqe::new(0x7f, 4),
    ] {
        let cqe = raw.execute(sqe, &[]);
        assert_eq!(cqe.status(), Status::COMMAND_SEQUENCE_ERROR.with_dnr(), "{sqe:?}");
    }
    let cqe = raw.execute(Command::write(1, 0, 8).0, &[0; 4096]);
    assert_eq!(cqe.status(), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    raw.connect_admin(0);
    drop(raw);
    field.survives();
}

/// Two commands at once before Connect, which allows one.
pub fn more_than_one_command_before_connect<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.initialized(Units::PLAIN);
    let mut connect = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    }
    .to_sqe(1, Sgl::transport(1024));
    let first = Units::PLAIN.capsule(connect, &[]);
    connect.cid = 2.into();
    let second = Units::PLAIN.capsule(connect, &[]);
    raw.send(&[first, second].concat());
    field.ends(raw, terminated(SEQUENCE, 0));
}

/// The parameters of Connect that cannot be: each is answered with where it is, and releases everything
/// (CVE-2024-46737 was a Connect that failed half-way).
pub fn connect_that_is_refused<H: Harness>() {
    let mut field = Field::<H>::new();
    let admin = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    let good = connect_data(CNTLID_DYNAMIC);
    let data = |alter: &dyn Fn(&mut ConnectData)| {
        let mut data = good;
        alter(&mut data);
        data
    };
    let parameter = |ipo: u32, in_data: bool| {
        (
            Status::CONNECT_INVALID_PARAMETERS.with_dnr(),
            ipo | u32::from(in_data) << 16,
        )
    };
    let cases = [
        (
            ConnectCommand { recfmt: 1, ..admin },
            good,
            (Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(), 0),
        ),
        (
            ConnectCommand { sqsize_z: 0, ..admin },
            good,
            parameter(44, false),
        ),
        (
            ConnectCommand {
                sqsize_z: 30,
                ..admin
            },
            good,
            parameter(44, false),
        ),
        (
            ConnectCommand {
                sqsize_z: u16::MAX,
                ..admin
            },
            good,
            parameter(44, false),
        ),
        (admin, data(&|data| data.cntlid = 0.into()), parameter(16, true)),
        (
            admin,
            data(&|data| data.cntlid = 0xfffe.into()),
            parameter(16, true),
        ),
        (
            admin,
            data(&|data| data.subnqn = [b'a'; 256]),
            parameter(256, true),
        ),
        (
            admin,
            data(&|data| data.subnqn = [0xff; 256]),
            parameter(256, true),
        ),
        (admin, data(&|data| data.subnqn = [0; 256]), parameter(256, true)),
        (
            admin,
            data(&|data| data.hostnqn = [b'a'; 256]),
            parameter(512, true),
        ),
        (
            admin,
            data(&|data| data.hostnqn = [0xc3; 256]),
            parameter(512, true),
        ),
        // I/O queues of controllers that do not exist, or are somebody else's to enable.
        (
            ConnectCommand { qid: 1, ..admin },
            data(&|data| data.cntlid = 0xffee.into()),
            parameter(16, true),
        ),
        (ConnectCommand { qid: 1, ..admin }, good, parameter(16, true)),
    ];
    let mut raw = field.initialized(Units::PLAIN);
    for (command, data, (status, dw0)) in cases {
        let cqe = raw.connect(command, &data);
        assert_eq!(
            (cqe.status(), cqe.dw0.get(), cqe.dw1.get()),
            (status, dw0, 0),
            "{command:?} {data:?}"
        );
    }
    // The connection is as good as new.
    raw.connect_admin(0);
    drop(raw);
    field.survives();
}

/// Somebody else's controller, queue and host identifier.
pub fn connect_to_what_is_somebody_elses<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut admin = field.initialized(Units::PLAIN);
    let controller = admin.connect_admin(0);
    let command = ConnectCommand {
        qid: 1,
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    let mut raw = field.initialized(Units::PLAIN);
    // Not enabled yet.
    let good = connect_data(controller);
    let cqe = raw.connect(command, &good);
    assert!(
        cqe.status().is(Status::COMMAND_SEQUENCE_ERROR),
        "{}",
        cqe.status()
    );
    admin.enable();
    let mut other = good;
    other.hostid[3] ^= 1;
    let cqe = raw.connect(command, &other);
    assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS));
    assert_eq!(cqe.dw0.get(), 1 << 16);
    let mut other = good;
    other.hostnqn[27] ^= 1;
    let cqe = raw.connect(command, &other);
    assert!(
        cqe.status().is(Status::CONNECT_INVALID_PARAMETERS),
        "{}",
        cqe.status()
    );
    assert_eq!(cqe.dw0.get(), 1 << 16 | 512);
    let cqe = raw.connect(ConnectCommand { qid: 1000, ..command }, &good);
    assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS));
    assert_eq!(cqe.dw0.get(), 42);
    raw.connect_io(controller, 1, 32);
    // The same queue twice, on a new connection and on its own.
    let mut again = field.initialized(Units::PLAIN);
    let cqe = again.connect(command, &good);
    assert!(!cqe.status().is_success());
    let cqe = raw.connect(command, &good);
    assert_eq!(cqe.status(), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    let cqe = raw.execute(Command::flush(1).0, &[]);
    assert_eq!(cqe.status(), Status::SUCCESS);
    drop((admin, raw, again));
    field.survives();
}

/// Connect with data of another length than its own, in and outside of the capsule.
pub fn connect_with_data_of_a_bad_length<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.initialized(Units::PLAIN);
    let command = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    for len in [0, 4, 1020, 1028, 8192] {
        let mut sqe = command.to_sqe(0, Sgl::in_capsule(0, u32::try_from(len).unwrap()));
        sqe.set_psdt(homi_spec::command::Psdt::SGL);
        let cqe = raw.execute(sqe, &vec![0; len]);
        assert_eq!(cqe.status(), Status::SGL_DATA_LENGTH_INVALID.with_dnr(), "{len}");
    }
    for len in [0, 1, 1023, 1025, 1 << 20, u32::MAX] {
        let cid = raw.submit_for(command.to_sqe(0, Sgl::default()), len);
        let cqe = raw.response(cid);
        assert_eq!(cqe.status(), Status::SGL_DATA_LENGTH_INVALID.with_dnr(), "{len}");
    }
    raw.connect_admin(0);
    drop(raw);
    field.survives();
}

/// Authentication messages of any length, before and after Connect (CVE-2026-90230, CVE-2026-64319): there is no
/// authentication here, and no byte of them is looked at.
pub fn authentication_that_nobody_asked_for<H: Harness>() {
    let mut field = Field::<H>::new();
    let mut raw = field.initialized(Units::PLAIN);
    let messages = |raw: &mut RawHost, expected: Status| {
        for length in [0, 1, 8, 16, 0xffff, u32::MAX] {
            for message in [Authentication::send(length), Authentication::receive(length)] {
                let cid = raw.submit_for(message.to_sqe(0, Sgl::default()), length);
                assert!(raw.response(cid).status().is(expected));
            }
        }
        let cqe = raw.execute(Authentication::send(64).to_sqe(0, Sgl::default()), &[0xff; 64]);
        assert!(cqe.status().is(expected));
    };
    messages(&mut raw, Status::COMMAND_SEQUENCE_ERROR);
    raw.connect_admin(0);
    messages(&mut raw, Status::INVALID_OPCODE);
    raw.enable();
    drop(raw);
    field.survives();
}
