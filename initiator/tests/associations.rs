//! Connecting, keeping and ending associations, against a scripted target.
#![expect(clippy::cast_possible_truncation, reason = "registers fit their field")]
#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

mod fake;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Behaviour, Fake, SUBSYSTEM, Verdict, eventually};
use homi_initiator::{
    ControllerEvent, ControllerKind, ControllerStatus, Error, Initiator, QueueOptions, Uri,
};
use homi_queue::{Command, Data, LostReason, Queue};
use homi_spec::command::{AdminOpcode, NvmOpcode};
use homi_spec::controller::Cc;
use homi_spec::event::AsyncEvent;
use homi_spec::fabrics::{ConnectCommand, PropertySet};
use homi_spec::log::{DiscoveryEntry, DiscoveryHeader, SubsystemType, TransportType};
use homi_spec::{Nqn, Sqe, Status, U32};
use zerocopy::IntoBytes;

fn initiator() -> Initiator {
    Initiator::builder()
        .host_nqn("nqn.2024-01.org.example:host")
        .build()
        .unwrap()
}

fn uri(fake: &Fake) -> Uri {
    fake.uri().parse().unwrap()
}

fn says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn a_controller_is_connected_used_and_shut_down() {
    let fake = Fake::good();
    let controller = initiator().connect(&uri(&fake)).unwrap();
    let info = controller.info();
    assert_eq!(
        (info.controller_id, info.kind, info.io_queues),
        (1, ControllerKind::Io, 4)
    );
    assert_eq!(info.max_transfer, Some(1 << 20));
    assert_eq!(controller.status(), ControllerStatus::Live);
    let namespaces = controller.namespaces().unwrap();
    assert_eq!(
        (namespaces.len(), namespaces[0].block_size, namespaces[0].blocks),
        (1, 512, 4096)
    );
    assert_eq!(controller.identify_controller().unwrap().len(), 4096);
    assert_eq!(controller.log_page(0x02, u32::MAX, 512).unwrap(), vec![0; 512]);
    assert!(matches!(controller.log_page(0x02, 0, 3), Err(Error::Range(_))));
    let reply = controller.admin(Command(Sqe::new(0xc1, 0)), Data::None).unwrap();
    assert_eq!(reply.completion.status, Status::INVALID_OPCODE);
    assert_eq!(
        fake.world.host_nqns.lock().unwrap().as_slice(),
        ["nqn.2024-01.org.example:host"]
    );

    let queue = controller.queue(QueueOptions::depth(8)).unwrap();
    drop(controller);
    assert!(
        !fake.world.shut_down.load(Ordering::SeqCst),
        "the queue keeps the association alive"
    );
    drop(queue);
    assert!(
        fake.world.shut_down.load(Ordering::SeqCst),
        "dropping the last handle waits for the shutdown"
    );
}

#[test]
fn admin_commands_from_many_threads_all_get_their_own_answers() {
    let fake = Fake::serve(Behaviour {
        namespaces: (1..=9).collect(),
        ..Behaviour::default()
    });
    let controller = initiator().connect(&uri(&fake)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                assert_eq!(controller.namespace_ids().unwrap(), (1..=9).collect::<Vec<_>>());
                assert_eq!(controller.log_page(1, 0, 64).unwrap().len(), 64);
            });
        }
    });
}

#[test]
fn queues_are_given_out_up_to_the_controllers_number() {
    let fake = Fake::good();
    let controller = initiator().connect(&uri(&fake)).unwrap();
    let queues: Vec<_> = (0..4)
        .map(|_| controller.queue(QueueOptions::depth(4)).unwrap())
        .collect();
    says(
        &controller.queue(QueueOptions::depth(4)).unwrap_err(),
        &["all 4 i/o queues", "in use"],
    );
    drop(queues);
    // Depths beyond the controller's are cut to MAXCMD.
    assert_eq!(
        controller.queue(QueueOptions::depth(u16::MAX)).unwrap().depth(),
        256
    );
    assert_eq!(controller.queue(QueueOptions::depth(0)).unwrap().depth(), 1);
}

#[test]
fn a_queue_id_that_the_controller_still_holds_is_tried_again() {
    let refusals = std::sync::atomic::AtomicU32::new(3);
    let fake = Fake::script(move |connection, sqe| match ConnectCommand::from_sqe(sqe) {
        Some(connect) if connect.qid > 0 && refusals.load(Ordering::SeqCst) > 0 => {
            refusals.fetch_sub(1, Ordering::SeqCst);
            connection
                .respond(sqe.cid.get(), Status::CONNECT_INVALID_PARAMETERS, 42, 0)
                .unwrap();
            Verdict::Close
        }
        _ => Verdict::Default,
    });
    let controller = initiator().connect(&uri(&fake)).unwrap();
    controller.queue(QueueOptions::default()).unwrap();
    assert_eq!(fake.world.connections.load(Ordering::SeqCst), 5);
}

#[test]
fn keep_alives_are_sent_while_nobody_does_anything() {
    let fake = Fake::good();
    let initiator = Initiator::builder()
        .keep_alive(Duration::from_millis(400))
        .build()
        .unwrap();
    let controller = initiator.connect(&uri(&fake)).unwrap();
    let keep_alives = || fake.world.seen(0, AdminOpcode::KEEP_ALIVE.raw());
    assert!(eventually(|| keep_alives() >= 4));
    drop(controller);
    let after = keep_alives();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(keep_alives(), after);
}

#[test]
fn a_controller_that_ignores_keep_alives_is_lost_with_its_queues() {
    let fake = Fake::script(|_, sqe| match sqe.admin_opcode() {
        AdminOpcode::KEEP_ALIVE => Verdict::Done,
        _ => Verdict::Default,
    });
    let initiator = Initiator::builder()
        .keep_alive(Duration::from_secs(1))
        .build()
        .unwrap();
    let controller = initiator.connect(&uri(&fake)).unwrap();
    let events = controller.events();
    let mut queue = controller.queue(QueueOptions::depth(4)).unwrap();
    assert!(eventually(|| matches!(
        controller.status(),
        ControllerStatus::Lost(_)
    )));
    let Ok(ControllerEvent::Lost(reason)) = events.recv_timeout(Duration::from_secs(1)) else {
        panic!("no event")
    };
    assert!(reason.to_string().contains("keep alive"), "{reason}");
    // Without the queue's thread doing anything, its descriptor says that there is something to see.
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert!(matches!(lost.reason(), LostReason::Association(_)), "{lost}");
    says(&controller.namespaces().unwrap_err(), &["is lost", "keep alive"]);
    says(
        &controller.queue(QueueOptions::default()).unwrap_err(),
        &["is lost"],
    );
    // Somebody who subscribes too late is told at once.
    assert!(matches!(
        controller.events().try_recv(),
        Ok(ControllerEvent::Lost(_))
    ));
}

#[test]
fn a_target_that_dies_is_noticed() {
    let fake = Fake::good();
    let controller = initiator().connect(&uri(&fake)).unwrap();
    let mut queue = controller.queue(QueueOptions::depth(4)).unwrap();
    let slot = queue.reserve().unwrap();
    let id = queue.submit(slot, Command::flush(1), Data::None);
    fake.drop_all();
    assert!(eventually(|| matches!(
        controller.status(),
        ControllerStatus::Lost(_)
    )));
    let lost = queue.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(lost.undelivered().len(), 1);
    assert_eq!(lost.undelivered()[0].id, id);
    assert!(
        queue.poll(&mut Vec::new()).unwrap_err().undelivered().is_empty(),
        "each is handed back once"
    );
    let start = Instant::now();
    drop((queue, controller));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "a lost association is not waited for"
    );
}

#[test]
fn a_controller_that_does_not_shut_down_is_left_after_the_limit() {
    let fake = Fake::script(|_, sqe| match PropertySet::from_sqe(sqe) {
        Some(set) if Cc(set.value as u32).shutdown() != homi_spec::controller::ShutdownNotification::None => {
            Verdict::Done
        }
        _ => Verdict::Default,
    });
    let controller = initiator().connect(&uri(&fake)).unwrap();
    let mut queue = controller.queue(QueueOptions::depth(4)).unwrap();
    let start = Instant::now();
    let error = controller.disconnect(Duration::from_millis(200)).unwrap_err();
    says(&error, &["shutting down", "200ms"]);
    assert!((190..4000).contains(&start.elapsed().as_millis()));
    assert!(matches!(
        queue.poll(&mut Vec::new()).unwrap_err().reason(),
        LostReason::Local
    ));
}

#[test]
fn events_reach_every_subscriber() {
    let mut list = vec![0; 4096];
    list[0] = 3;
    list[4] = 9;
    let fake = Fake::serve(Behaviour {
        script: Box::new(|connection, sqe| {
            // An admin command of the test's makes the event.
            if sqe.opcode == 0xc0 {
                let cid = connection.pending_events.pop().unwrap();
                connection
                    .respond(
                        cid,
                        Status::SUCCESS,
                        AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword(),
                        0,
                    )
                    .unwrap();
            }
            Verdict::Default
        }),
        discovery_log: list,
        ..Behaviour::default()
    });
    let controller = initiator().connect(&uri(&fake)).unwrap();
    let (first, second) = (controller.events(), controller.events());
    controller.admin(Command(Sqe::new(0xc0, 0)), Data::None).unwrap();
    let expected = ControllerEvent::NamespacesChanged(vec![3, 9]);
    assert_eq!(first.recv_timeout(Duration::from_secs(2)), Ok(expected.clone()));
    assert_eq!(second.recv_timeout(Duration::from_secs(2)), Ok(expected));
}

#[test]
fn a_storm_of_events_does_not_drown_the_host() {
    let fake = Fake::script(|connection, sqe| match sqe.admin_opcode() {
        AdminOpcode::ASYNC_EVENT_REQUEST => {
            connection
                .respond(sqe.cid.get(), Status::SUCCESS, AsyncEvent::SPARE.to_dword(), 0)
                .unwrap();
            Verdict::Done
        }
        _ => Verdict::Default,
    });
    let controller = initiator().connect(&uri(&fake)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let requests = fake.world.seen(0, AdminOpcode::ASYNC_EVENT_REQUEST.raw());
    assert!((2..100).contains(&requests), "{requests}");
    controller.namespaces().unwrap();
}

#[test]
fn what_a_target_refuses_is_said_with_what_to_change() {
    let refuse = |status: Status, dw0: u32| {
        let fake = Fake::script(move |connection, sqe| match ConnectCommand::from_sqe(sqe) {
            Some(_) => {
                connection.respond(sqe.cid.get(), status, dw0, 0).unwrap();
                Verdict::Done
            }
            None => Verdict::Default,
        });
        initiator().connect(&uri(&fake)).unwrap_err()
    };
    let unknown = refuse(Status::CONNECT_INVALID_PARAMETERS, 1 << 16 | 256);
    says(&unknown, &[SUBSYSTEM, "homi discover nvme+tcp://127.0.0.1:8009"]);
    let host = refuse(Status::CONNECT_INVALID_HOST, 0);
    says(&host, &["nqn.2024-01.org.example:host", "allow list", SUBSYSTEM]);
    says(
        &refuse(Status::CONNECT_CONTROLLER_BUSY, 0),
        &["127.0.0.1", "limits"],
    );
}

#[test]
fn namespaces_that_do_not_exist_are_named_with_those_that_do() {
    let several = Fake::serve(Behaviour {
        namespaces: vec![2, 5],
        ..Behaviour::default()
    });
    let initiator = initiator();
    let open = |fake: &Fake, query: &str| initiator.open(&format!("{}{query}", fake.uri()).parse().unwrap());
    says(
        &open(&several, "?nsid=3").unwrap_err(),
        &["namespace 3", "namespaces 2, 5"],
    );
    says(&open(&several, "").unwrap_err(), &["2 namespaces", "?nsid=2"]);
    assert_eq!(open(&several, "?nsid=5").unwrap().nsid(), 5);
    let none = Fake::serve(Behaviour {
        namespaces: vec![],
        ..Behaviour::default()
    });
    says(&open(&none, "").unwrap_err(), &["none that this host may see"]);
}

fn log(entries: &[(&str, SubsystemType, u16)]) -> Vec<u8> {
    let mut log = DiscoveryHeader::new(1, entries.len() as u64).as_bytes().to_vec();
    for (name, subtype, port) in entries {
        let mut entry = DiscoveryEntry {
            trtype: TransportType::TCP,
            subtype: *subtype,
            subnqn: Nqn::new(name).unwrap().to_field(),
            ..DiscoveryEntry::default()
        };
        entry.set_address("127.0.0.1").unwrap();
        entry.set_service(&port.to_string()).unwrap();
        log.extend_from_slice(entry.as_bytes());
    }
    log
}

fn discovery(log: Vec<u8>) -> Fake {
    let mut behaviour = Behaviour {
        discovery_log: log,
        ..Behaviour::default()
    };
    behaviour.page.cntrltype = homi_spec::identify::ControllerType::DISCOVERY;
    behaviour.page.oaes = U32::ZERO;
    Fake::serve(behaviour)
}

#[test]
fn discovery_follows_referrals_once() {
    let second = discovery(log(&[("nqn.2024-01.org.example:two", SubsystemType::NVM, 4420)]));
    let first = discovery(log(&[
        ("nqn.2024-01.org.example:one", SubsystemType::NVM, 4420),
        (
            "nqn.2014-08.org.nvmexpress.discovery",
            SubsystemType::DISCOVERY_REFERRAL,
            second.address.port(),
        ),
        (
            "nqn.2014-08.org.nvmexpress.discovery",
            SubsystemType::DISCOVERY_REFERRAL,
            second.address.port(),
        ),
        // Nobody listens there: skipped.
        (
            "nqn.2014-08.org.nvmexpress.discovery",
            SubsystemType::DISCOVERY_REFERRAL,
            1,
        ),
    ]));
    let uri = format!("nvme+tcp://{}", first.address).parse().unwrap();
    let records = initiator().discover(&uri).unwrap();
    let names: Vec<&str> = records.iter().map(|record| record.subsystem.as_str()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(":one")).count(), 1);
    assert_eq!(names.iter().filter(|name| name.ends_with(":two")).count(), 1);
    assert_eq!(second.world.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_subsystem_is_no_discovery_service() {
    let fake = Fake::good();
    let error = initiator().discover(&uri(&fake)).unwrap_err();
    says(
        &error,
        &[
            "no discovery log",
            &format!("discover nvme+tcp://{}, without", fake.address),
        ],
    );
}

#[test]
fn only_so_many_referrals_are_followed() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let entries: Vec<_> = (0..200)
        .map(|index| {
            (
                "nqn.2014-08.org.nvmexpress.discovery",
                SubsystemType::DISCOVERY_REFERRAL,
                port.max(300) - index,
            )
        })
        .collect();
    let fake = discovery(log(&entries));
    let uri = format!("nvme+tcp://{}", fake.address).parse().unwrap();
    // 199 of them refuse at once; only so many are tried.
    assert!(!initiator().discover(&uri).unwrap().is_empty());
}

#[test]
fn a_log_that_claims_too_much_is_refused() {
    let mut bytes = log(&[("nqn.2024-01.org.example:one", SubsystemType::NVM, 4420)]);
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let fake = discovery(bytes);
    let uri = format!("nvme+tcp://{}", fake.address).parse().unwrap();
    says(
        &initiator().discover(&uri).unwrap_err(),
        &["18446744073709551615 entries", "at most"],
    );
}

#[test]
fn a_program_whose_target_vanishes_says_one_sentence() {
    let fake = Fake::good();
    let place = format!("{}?nsid=1", fake.uri());
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_homi"));
    program
        .args(["bench", &place, "--time", "1h", "--quiet"])
        .env_remove("HOMI_LOG")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let program = program.spawn().unwrap();
    assert!(eventually(|| fake.world.seen(1, NvmOpcode::READ.raw()) > 10));
    fake.drop_all();
    let output = program.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("homi: the queue was lost: ") && text.lines().count() == 1,
        "{text:?}"
    );
}

#[test]
fn a_queue_that_is_polled_while_its_association_ends_says_why() {
    let fake = Fake::good();
    for _ in 0..20 {
        let controller = initiator().connect(&uri(&fake)).unwrap();
        let mut queue = controller.queue(QueueOptions::depth(4)).unwrap();
        let polling = std::thread::spawn(move || {
            loop {
                if let Err(lost) = queue.poll(&mut Vec::new()) {
                    return lost.reason().clone();
                }
            }
        });
        controller.disconnect(Duration::from_secs(10)).unwrap();
        assert_eq!(polling.join().unwrap(), LostReason::Local);
    }
}
