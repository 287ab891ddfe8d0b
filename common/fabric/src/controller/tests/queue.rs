//! A connection as a queue: where commands go and what completions look like.

use super::*;
use homi_spec::command::{FabricsType, NvmOpcode};
use homi_spec::fabrics::Disconnect;

fn sqe(opcode: u8) -> Sqe {
    Sqe::new(opcode, 1)
}

fn connect() -> Sqe {
    ConnectCommand::default().to_sqe(1, Sgl::in_capsule(0, 1024))
}

fn grants(bench: &mut Bench) -> (Grant, Grant) {
    let cattr = ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL;
    let data = ConnectData::new(HOST_ID, DYNAMIC, &nqn("a"), &host(1));
    let (id, admin) = bench.try_connect(
        PORT_1,
        ConnectCommand {
            sqsize_z: 31,
            ..Default::default()
        },
        &data,
    );
    let admin = admin.unwrap();
    bench
        .set_cc(
            Admin {
                id,
                controller: admin.controller_id,
            },
            ENABLE,
        )
        .unwrap();
    let data = ConnectData::new(HOST_ID, admin.controller_id, &nqn("a"), &host(1));
    let command = ConnectCommand {
        qid: 1,
        sqsize_z: 3,
        cattr,
        ..ConnectCommand::default()
    };
    let (_, io) = bench.try_connect(PORT_1, command, &data);
    (admin, io.unwrap())
}

#[test]
fn commands_go_where_they_belong() {
    let (admin, io) = grants(&mut Bench::standard());
    let mut queue = QueueState::new();
    assert_eq!(queue.route(&connect()), Ok(Route::Connect));
    for opcode in 0..=u8::MAX {
        assert_eq!(queue.route(&sqe(opcode)).is_ok(), opcode == 0x7f, "{opcode}");
    }
    assert!(!queue.is_connected());
    queue.accept(&admin, 1);
    assert!(queue.is_connected() && !queue.is_io());
    assert_eq!(queue.route(&connect()), Err(SEQUENCE));
    assert_eq!(
        queue.route(&Sqe::new(0x7f, FabricsType::PROPERTY_GET.0.into())),
        Ok(Route::Node)
    );
    assert_eq!(queue.route(&sqe(AdminOpcode::IDENTIFY.0)), Ok(Route::Node));
    let mut queue = QueueState::new();
    queue.accept(&io, 1);
    assert!(queue.is_io());
    assert_eq!(queue.route(&connect()), Err(SEQUENCE));
    assert_eq!(queue.route(&Disconnect::default().to_sqe(1)), Ok(Route::Node));
    for opcode in [NvmOpcode::READ.0, NvmOpcode::FLUSH.0, 0xff] {
        assert_eq!(queue.route(&sqe(opcode)), Ok(Route::Io));
    }
}

#[test]
fn the_head_goes_round_as_commands_complete() {
    let (mut admin, mut io) = grants(&mut Bench::standard());
    let mut queue = QueueState::new();
    admin.depth = 3;
    let cqe = queue.accept(&admin, 7);
    assert_eq!(
        (cqe.cid.get(), cqe.dw0.get(), cqe.status()),
        (7, 1, Status::SUCCESS)
    );
    let heads: Vec<u16> = (0..4)
        .map(|cid| queue.complete(Status::SUCCESS, 0, 0, cid).sq_head.get())
        .collect();
    assert_eq!((cqe.sq_head.get(), heads), (1, vec![2, 0, 1, 2]));
    // Without flow control the head says so once, and nothing after.
    let mut queue = QueueState::new();
    assert_eq!(queue.accept(&io, 1).sq_head.get(), 0xffff);
    assert_eq!(queue.complete(Status::SUCCESS, 0, 0, 2).sq_head.get(), 0);
    assert!(!queue.flow_control());
    // The largest queue there is.
    io.sq_flow_control = true;
    io.depth = 65536;
    let mut queue = QueueState::new();
    queue.accept(&io, 1);
    let last = (0..65535)
        .map(|_| queue.complete(Status::SUCCESS, 0, 0, 2).sq_head.get())
        .last();
    assert_eq!(last, Some(0));
}

#[test]
fn completions_carry_what_they_are_given_and_zeroes() {
    let mut queue = QueueState::new();
    let status = Status::LBA_OUT_OF_RANGE.with_dnr();
    let cqe = queue.complete(status, 0x1122_3344, 0x5566_7788, 9);
    assert_eq!(
        (cqe.status(), cqe.dw0.get(), cqe.dw1.get()),
        (status, 0x1122_3344, 0x5566_7788)
    );
    assert_eq!((cqe.sq_head.get(), cqe.sq_id.get(), cqe.phase()), (0, 0, false));
    let rejected = Rejected {
        status: Status::CONNECT_CONTROLLER_BUSY,
        dw0: 5,
        reason: String::new(),
    };
    let cqe = queue.reject(&rejected, 3);
    assert_eq!(
        (cqe.status(), cqe.dw0.get(), cqe.cid.get()),
        (rejected.status, 5, 3)
    );
}
