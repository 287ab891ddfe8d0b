//! Every way that Connect can go.

use super::*;
use homi_spec::fabrics::ConnectResponse;

fn command() -> ConnectCommand {
    ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    }
}

fn data(subsystem: &str, number: u32) -> ConnectData {
    ConnectData::new(HOST_ID, DYNAMIC, &nqn(subsystem), &host(number))
}

/// How a Connect was answered, as the host reads it.
fn answer(result: Result<Grant, Rejected>) -> ConnectResponse {
    let mut queue = QueueState::new();
    let cqe = match result {
        Ok(grant) => queue.accept(&grant, 1),
        Err(rejected) => {
            assert!(
                !rejected.reason.is_empty() && !rejected.reason.ends_with('.'),
                "{rejected}"
            );
            queue.reject(&rejected, 1)
        }
    };
    ConnectResponse::from_cqe(&cqe)
}

fn failed(status: Status) -> ConnectResponse {
    ConnectResponse::Failed(status)
}

fn in_command(offset: u16) -> ConnectResponse {
    ConnectResponse::invalid_command_field(offset)
}

fn in_data(offset: u16) -> ConnectResponse {
    ConnectResponse::invalid_data_field(offset)
}

#[test]
fn every_answer_to_an_admin_connect() {
    let invalid_host = failed(Status::CONNECT_INVALID_HOST.with_dnr());
    let format = failed(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr());
    let unnamed = |field: fn(&mut ConnectData) -> &mut [u8; 256], bytes: &[u8]| {
        let mut data = data("a", 1);
        let field = field(&mut data);
        *field = [0; 256];
        field[..bytes.len()].copy_from_slice(bytes);
        data
    };
    let host_field: fn(&mut ConnectData) -> &mut [u8; 256] = |data| &mut data.hostnqn;
    let subsystem_field: fn(&mut ConnectData) -> &mut [u8; 256] = |data| &mut data.subnqn;
    let controller = |cntlid| ConnectData::new(HOST_ID, cntlid, &nqn("a"), &host(1));
    let cases: Vec<(&str, PortId, ConnectCommand, ConnectData, ConnectResponse)> = vec![
        (
            "allowed",
            PORT_1,
            command(),
            data("a", 1),
            ConnectResponse::success(1),
        ),
        (
            "largest queue",
            PORT_1,
            ConnectCommand {
                sqsize_z: 1023,
                ..command()
            },
            data("a", 1),
            ConnectResponse::success(2),
        ),
        (
            "record format",
            PORT_1,
            ConnectCommand {
                recfmt: 1,
                ..command()
            },
            data("a", 1),
            format,
        ),
        (
            "queue too small",
            PORT_1,
            ConnectCommand {
                sqsize_z: 30,
                ..command()
            },
            data("a", 1),
            in_command(44),
        ),
        (
            "queue of one",
            PORT_1,
            ConnectCommand {
                sqsize_z: 0,
                ..command()
            },
            data("a", 1),
            in_command(44),
        ),
        (
            "queue too large",
            PORT_1,
            ConnectCommand {
                sqsize_z: 1024,
                ..command()
            },
            data("a", 1),
            in_command(44),
        ),
        (
            "static controller",
            PORT_1,
            command(),
            controller(0xfffe),
            in_data(16),
        ),
        ("chosen controller", PORT_1, command(), controller(5), in_data(16)),
        ("unknown subsystem", PORT_1, command(), data("c", 1), in_data(256)),
        ("not at this port", PORT_1, command(), data("b", 1), in_data(256)),
        ("unknown port", PortId(9), command(), data("a", 1), in_data(256)),
        ("host not allowed", PORT_1, command(), data("a", 2), invalid_host),
        (
            "no host name",
            PORT_1,
            command(),
            unnamed(host_field, b""),
            invalid_host,
        ),
        (
            "host name of 224 bytes",
            PORT_1,
            command(),
            unnamed(host_field, &[b'n'; 224]),
            in_data(512),
        ),
        (
            "unterminated host name",
            PORT_1,
            command(),
            unnamed(host_field, &[b'n'; 256]),
            in_data(512),
        ),
        (
            "host name not utf-8",
            PORT_1,
            command(),
            unnamed(host_field, b"nqn.\xff\xfe"),
            in_data(512),
        ),
        (
            "host name with a bell",
            PORT_1,
            command(),
            unnamed(host_field, b"nqn.2024-01.org\x07"),
            in_data(512),
        ),
        (
            "unterminated subsystem",
            PORT_1,
            command(),
            unnamed(subsystem_field, &[b'n'; 256]),
            in_data(256),
        ),
    ];
    let mut bench = Bench::standard();
    for (what, port, command, data, expected) in cases {
        let (_, result) = bench.try_connect(port, command, &data);
        let reason = result.as_ref().map_err(ToString::to_string).err();
        assert_eq!(answer(result), expected, "{what}: {reason:?}");
    }
}

#[test]
fn a_host_without_a_name_gets_in_where_everyone_does() {
    let mut data = data("b", 1);
    data.hostnqn = [0; 256];
    let mut bench = Bench::standard();
    let (_, result) = bench.try_connect(PORT_2, command(), &data);
    assert_eq!(answer(result), ConnectResponse::success(1));
    assert_eq!(bench.node.report().associations[0].host.as_str(), "anonymous");
    data.subnqn = [0; 256];
    assert_eq!(
        answer(bench.try_connect(PORT_2, command(), &data).1),
        in_data(256),
        "but subsystems have one"
    );
}

#[test]
fn bytes_after_a_names_end_do_not_matter() {
    let mut data = data("a", 1);
    data.hostnqn[255] = 7;
    data.subnqn[200] = 7;
    let (_, result) = Bench::standard().try_connect(PORT_1, command(), &data);
    assert_eq!(answer(result), ConnectResponse::success(1));
}

#[test]
fn a_connect_of_the_wrong_form_is_refused() {
    let mut bench = Bench::standard();
    let sqe = command().to_sqe(1, Sgl::in_capsule(0, 1024));
    let data = data("a", 1);
    let mut connect = |sqe: &Sqe, data: &[u8]| {
        let id = bench.connection();
        bench
            .node
            .connect(id, PORT_1, sqe, data, bench.now)
            .map_err(|rejected| rejected.status)
    };
    let length = Some(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    assert_eq!(connect(&sqe, &data.as_bytes()[..1023]).err(), length);
    assert_eq!(connect(&sqe, &[0; 1025]).err(), length);
    assert_eq!(connect(&sqe, &[]).err(), length);
    let other = homi_spec::admin::keep_alive(1);
    assert_eq!(connect(&other, data.as_bytes()).err(), Some(SEQUENCE));
    let mut prp = sqe;
    prp.set_psdt(homi_spec::command::Psdt::PRP);
    assert_eq!(connect(&prp, data.as_bytes()).err(), Some(INVALID));
    let mut fused = sqe;
    fused.set_fuse(homi_spec::command::Fuse::FIRST);
    assert_eq!(connect(&fused, data.as_bytes()).err(), Some(INVALID));
    assert!(connect(&sqe, data.as_bytes()).is_ok());
}

#[test]
fn the_data_of_connect_is_announced_by_its_descriptor() {
    let connect = |sgl| Node::admin_data_from_host(&command().to_sqe(1, sgl));
    assert_eq!(connect(Sgl::in_capsule(0, 1024)), Ok(1024));
    assert_eq!(connect(Sgl::transport(1024)), Ok(1024));
    assert_eq!(
        connect(Sgl::transport(1023)),
        Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
    );
    assert_eq!(
        connect(Sgl::transport(u32::MAX)),
        Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr())
    );
    assert_eq!(
        connect(Sgl::data_block(0, 1024)),
        Err(Status::SGL_TYPE_INVALID.with_dnr())
    );
    assert_eq!(
        Node::admin_data_from_host(&homi_spec::admin::keep_alive(1)),
        Ok(0)
    );
    let mut behavior = SetFeatures::new(FeatureId::HOST_BEHAVIOR, 0).to_sqe(1);
    behavior.set_sgl(Sgl::in_capsule(0, 512));
    assert_eq!(Node::admin_data_from_host(&behavior), Ok(512));
}

#[test]
fn every_answer_to_an_io_connect() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &nqn("a"), &host(1));
    let (a, one, id) = (nqn("a"), host(1), admin.controller);
    let mut io = |port, subsystem: &Nqn, host: &Nqn, controller, qid| {
        answer(bench.try_io(port, subsystem, host, controller, qid).1)
    };
    assert_eq!(io(PORT_1, &a, &one, id, 1), failed(SEQUENCE), "not enabled");
    bench.set_cc(admin, ENABLE).unwrap();
    let mut io = |port, subsystem: &Nqn, host: &Nqn, controller, qid| {
        answer(bench.try_io(port, subsystem, host, controller, qid).1)
    };
    assert_eq!(io(PORT_1, &a, &one, id, 1), ConnectResponse::success(id));
    assert_eq!(
        io(PORT_2, &a, &one, id, 4),
        ConnectResponse::success(id),
        "through another port"
    );
    assert_eq!(
        io(PORT_1, &a, &one, id, 5),
        in_command(42),
        "queue beyond the limit"
    );
    assert_eq!(io(PORT_1, &a, &one, id, 0xffff), in_command(42));
    assert_eq!(io(PORT_1, &a, &one, id + 1, 2), in_data(16), "no such controller");
    assert_eq!(io(PORT_1, &a, &one, DYNAMIC, 2), in_data(16));
    assert_eq!(
        io(PORT_2, &nqn("b"), &one, id, 2),
        in_data(16),
        "another subsystem"
    );
    assert_eq!(
        io(PORT_1, &nqn("c"), &one, id, 2),
        in_data(256),
        "no such subsystem"
    );
    assert_eq!(io(PORT_1, &a, &host(2), id, 2), in_data(512), "another host");
    assert_eq!(
        io(PORT_1, &Nqn::discovery(), &one, id, 2),
        in_command(42),
        "discovery"
    );
    let other_id = ConnectData::new([0x22; 16], id, &a, &one);
    let command = ConnectCommand {
        qid: 2,
        sqsize_z: 127,
        ..ConnectCommand::default()
    };
    assert_eq!(
        answer(bench.try_connect(PORT_1, command, &other_id).1),
        in_data(0),
        "another host id"
    );
    let data = ConnectData::new(HOST_ID, id, &a, &one);
    for (sqsize_z, expected) in [
        (0, in_command(44)),
        (1024, in_command(44)),
        (0xffff, in_command(44)),
        (1023, ConnectResponse::success(id)),
    ] {
        let command = ConnectCommand { sqsize_z, ..command };
        assert_eq!(
            answer(bench.try_connect(PORT_1, command, &data).1),
            expected,
            "{sqsize_z}"
        );
    }
    // A queue that exists may be on its way out, so trying again can help.
    let (_, twice) = bench.try_io(PORT_1, &a, &one, id, 1);
    assert_eq!(
        twice.as_ref().map_err(|rejected| rejected.status).err(),
        Some(Status::CONNECT_INVALID_PARAMETERS)
    );
    assert_eq!(answer(twice), in_command(42));
}

#[test]
fn an_io_queue_needs_entry_sizes_in_cc() {
    let mut bench = Bench::standard();
    let admin = bench.admin(PORT_1, &nqn("a"), &host(1));
    bench.set_cc(admin, Cc(1)).unwrap();
    let (_, result) = bench.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, 1);
    assert_eq!(answer(result), in_command(42));
    bench.set_cc(admin, ENABLE).unwrap();
    bench.io(admin, 1);
}

#[test]
fn a_connection_becomes_a_queue_once() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let sqe = command().to_sqe(1, Sgl::in_capsule(0, 1024));
    let again = bench
        .node
        .connect(admin.id, PORT_1, &sqe, data("a", 1).as_bytes(), bench.now);
    assert_eq!(again.map_err(|rejected| rejected.status).err(), Some(SEQUENCE));
    // A connection that was refused may try again.
    let id = bench.connection();
    let refused = bench
        .node
        .connect(id, PORT_1, &sqe, data("a", 2).as_bytes(), bench.now);
    assert!(refused.is_err());
    assert!(
        bench
            .node
            .connect(id, PORT_1, &sqe, data("a", 1).as_bytes(), bench.now)
            .is_ok()
    );
}

#[test]
fn granted_queues_are_what_number_of_queues_said() {
    let mut bench = Bench::standard();
    let admin = bench.enabled();
    let two = homi_spec::feature::NumberOfQueues::pairs(2).unwrap().to_dword();
    assert_eq!(
        bench.set_feature(admin, FeatureId::NUMBER_OF_QUEUES, two),
        Ok(two)
    );
    bench.io(admin, 2);
    let (_, third) = bench.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, 3);
    assert_eq!(answer(third), in_command(42));
    assert_eq!(
        bench.set_feature(admin, FeatureId::NUMBER_OF_QUEUES, 0),
        Err(SEQUENCE)
    );
}

#[test]
fn flow_control_is_off_where_the_host_wants_it() {
    let mut bench = Bench::standard();
    let cattr = ConnectCommand::CATTR_DISABLE_SQ_FLOW_CONTROL;
    let (_, grant) = bench.try_connect(PORT_1, ConnectCommand { cattr, ..command() }, &data("a", 1));
    let grant = grant.unwrap();
    assert!(!grant.sq_flow_control);
    assert_eq!(grant.depth, 32);
    let (_, grant) = bench.try_connect(PORT_1, command(), &data("a", 1));
    assert!(grant.unwrap().sq_flow_control);
}

#[test]
fn nobody_gets_more_than_the_limits() {
    let busy = failed(Status::CONNECT_CONTROLLER_BUSY);
    let mut config = standard();
    config.subsystems[0].max_controllers_per_host = 2;
    let mut bench = Bench::new(config.clone());
    bench.enabled();
    let admin = bench.enabled();
    assert_eq!(
        answer(bench.try_connect(PORT_1, command(), &data("a", 1)).1),
        busy
    );
    // Another subsystem does not mind, and a controller that went makes room.
    bench.admin(PORT_2, &nqn("b"), &host(1));
    bench.node.closed(admin.id, bench.now);
    bench.settle();
    bench.enabled();

    config.limits = NodeLimits {
        max_connections: 3,
        max_connections_per_host: 2,
        max_associations: 2,
    };
    let mut bench = Bench::new(config.clone());
    let admin = bench.enabled();
    bench.io(admin, 1);
    assert_eq!(
        answer(bench.try_io(PORT_1, &nqn("a"), &host(1), admin.controller, 2).1),
        busy
    );
    assert_eq!(
        answer(bench.try_connect(PORT_2, command(), &data("b", 1)).1),
        busy
    );
    let other = bench.admin(PORT_2, &nqn("b"), &host(2));
    assert_eq!(
        answer(bench.try_connect(PORT_2, command(), &data("b", 3)).1),
        busy
    );
    bench.set_cc(other, ENABLE).unwrap();
    assert_eq!(
        answer(bench.try_io(PORT_2, &nqn("b"), &host(2), other.controller, 1).1),
        busy
    );

    config.limits = NodeLimits::default();
    config.subsystems[0].max_controllers_per_host = 9;
    config.subsystems[0].controller_ids = 7..=8;
    let mut bench = Bench::new(config);
    assert_eq!(bench.enabled().controller, 7);
    let eight = bench.enabled();
    assert_eq!(eight.controller, 8);
    assert_eq!(
        answer(bench.try_connect(PORT_1, command(), &data("a", 1)).1),
        busy
    );
    bench.node.closed(eight.id, bench.now);
    bench.settle();
    assert_eq!(bench.enabled().controller, 8);
}

#[test]
fn the_discovery_service_is_for_those_it_allows() {
    let mut bench = Bench::standard();
    let discovery = ConnectData::new(HOST_ID, DYNAMIC, &Nqn::discovery(), &host(9));
    assert_eq!(
        answer(bench.try_connect(PORT_1, command(), &discovery).1),
        ConnectResponse::success(1)
    );
    assert_eq!(
        answer(bench.try_connect(PORT_2, command(), &discovery).1),
        ConnectResponse::success(2)
    );
    let mut bench = Bench::new(NodeConfig {
        discovery_allow: hosts(&[1]),
        ..standard()
    });
    let expected = failed(Status::CONNECT_INVALID_HOST.with_dnr());
    assert_eq!(
        answer(bench.try_connect(PORT_1, command(), &discovery).1),
        expected
    );
}
