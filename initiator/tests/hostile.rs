//! Targets that are broken or hostile: whatever they do, the host ends with one sentence, never with a panic, a hang or stale data.
#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers, and bits that are meant to be cut"
)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test needs and does not get fails it"
)]

mod fake;

use std::io::Write as _;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use fake::{BLOCK, Behaviour, Connection, Fake, SUBSYSTEM, Verdict};
use homi_initiator::{Blocking, Error, FabricQueue, Initiator, QueueOptions, Uri, wait_for_completions};
use homi_queue::{Buffer, Command, Completed, Data, LostReason, Queue, QueueLost, Region};
use homi_spec::command::{AdminOpcode, NvmOpcode};
use homi_spec::controller::Csts;
use homi_spec::fabrics::{ConnectCommand, Property, PropertyGet};
use homi_spec::identify::{Cns, Identify};
use homi_spec::tcp::{FatalError, IcResp, PduHeader, PduType, TermReq, flags};
use homi_spec::{Sqe, Status, U16};
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_millis(300);

/// For targets that connect as they should, on a machine that may be busy.
fn initiator() -> Initiator {
    Initiator::builder().command_timeout(LIMIT).build().unwrap()
}

/// For targets that do not.
fn impatient() -> Initiator {
    Initiator::builder().connect_timeout(LIMIT).build().unwrap()
}

fn connect_error(fake: &Fake) -> String {
    refused(&initiator(), fake)
}

fn refused(initiator: &Initiator, fake: &Fake) -> String {
    let start = Instant::now();
    let error = initiator.connect(&fake.uri().parse().unwrap()).unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{error} took {:?}",
        start.elapsed()
    );
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

fn greeting(greet: impl Fn(&mut Connection) -> Verdict + Send + Sync + 'static) -> Fake {
    Fake::serve(Behaviour {
        greeting: Box::new(greet),
        ..Behaviour::default()
    })
}

#[test]
fn peers_that_do_not_speak_nvme_are_told_from_dead_ones() {
    let silent = greeting(|_| {
        thread::sleep(Duration::from_secs(2));
        Verdict::Close
    });
    let text = refused(&impatient(), &silent);
    assert!(
        text.contains("does not speak nvme/tcp") && text.contains("300ms"),
        "{text}"
    );
    assert!(connect_error(&greeting(|_| Verdict::Close)).contains("closed the connection instead"));
    for banner in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &[0; 200],
        &[0xff; 200],
    ] {
        let banner = banner.to_vec();
        let text = connect_error(&greeting(move |connection| {
            connection.stream.write_all(&banner).unwrap();
            thread::sleep(Duration::from_millis(50));
            Verdict::Close
        }));
        assert!(text.contains("does not speak nvme/tcp"), "{text}");
    }
}

#[test]
fn refused_and_unresolvable_addresses_say_what_to_check() {
    let connect = |line: &str| {
        initiator()
            .connect(&line.parse::<Uri>().unwrap())
            .unwrap_err()
            .to_string()
    };
    assert!(connect(&format!("nvme+tcp://127.0.0.1:1/{SUBSYSTEM}")).contains("127.0.0.1:1 refused"));
    let text = connect(&format!("nvme+tcp://no-such-host.invalid/{SUBSYSTEM}"));
    assert!(
        text.contains("no-such-host.invalid") && text.contains("check the name"),
        "{text}"
    );
}

#[test]
fn initialisation_responses_that_cannot_be_meant_are_refused() {
    let respond = |change: fn(&mut IcResp)| {
        greeting(move |connection| {
            let mut response = IcResp::new(0, 0, 65536);
            change(&mut response);
            connection.stream.write_all(response.as_bytes()).unwrap();
            Verdict::Done
        })
    };
    for change in [
        (|response| response.pfv = U16::new(9)) as fn(&mut IcResp),
        |response| response.cpda_z = 32,
        |response| response.dgst = 3,
        |response| response.maxh2cdata = 0.into(),
        |response| response.maxh2cdata = 4098.into(),
        |response| response.header.hlen = 255,
        |response| response.header.plen = u32::MAX.into(),
        |response| response.header.plen = 8.into(),
        |response| response.header.pdu_type = PduType::CAPSULE_RESP,
        |response| response.header.pdu_type = PduType(0x77),
    ] {
        let text = connect_error(&respond(change));
        assert!(text.contains("does not speak nvme/tcp"), "{text}");
    }
}

#[test]
fn a_response_that_comes_byte_by_byte_is_understood() {
    let fake = greeting(|connection| {
        for byte in IcResp::new(0, 0, 65536).as_bytes() {
            connection.stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        Verdict::Done
    });
    initiator().connect(&fake.uri().parse().unwrap()).unwrap();
}

#[test]
fn a_bring_up_that_stops_anywhere_ends_in_time() {
    // The n-th command is never answered, or answered by closing.
    for (stop, close) in (0..7).flat_map(|stop| [(stop, false), (stop, true)]) {
        let count = Mutex::new(0);
        let fake = Fake::script(move |_, _| {
            let mut count = count.lock().unwrap();
            *count += 1;
            match (*count > stop, close) {
                (false, _) => Verdict::Default,
                (true, false) => Verdict::Done,
                (true, true) => Verdict::Close,
            }
        });
        let (text, expected) = if close {
            (connect_error(&fake), "closed the connection")
        } else {
            (refused(&impatient(), &fake), "did not finish within 300ms")
        };
        assert!(text.contains(expected), "after {stop}: {text}");
    }
}

#[test]
fn controllers_that_are_not_ready_or_fatal_are_told_apart() {
    let status = |value: Csts| {
        Fake::script(move |connection, sqe| match PropertyGet::from_sqe(sqe) {
            Some(get) if get.property == Property::CSTS => {
                connection
                    .respond(sqe.cid.get(), Status::SUCCESS, value.0, 0)
                    .unwrap();
                Verdict::Done
            }
            _ => Verdict::Default,
        })
    };
    assert!(connect_error(&status(Csts::default())).contains("not ready after 1s"));
    assert!(connect_error(&status(Csts::default().with_fatal(true))).contains("CSTS.CFS"));
}

#[test]
fn identify_pages_that_cannot_be_meant_are_refused() {
    let spoil = |change: fn(&mut Behaviour)| {
        let mut behaviour = Behaviour::default();
        change(&mut behaviour);
        Fake::serve(behaviour)
    };
    assert!(connect_error(&spoil(|b| b.page.cntlid = U16::new(2))).contains("CNTLID is 2"));
    assert!(connect_error(&spoil(|b| b.page.ioccsz = 0.into())).contains("IOCCSZ"));
    assert!(connect_error(&spoil(|b| b.page.sgls = 0.into())).contains("SGLS"));
    for shift in [0, 8, 17, 40, 255] {
        let behaviour = Behaviour {
            block_shift: shift,
            ..Behaviour::default()
        };
        let fake = Fake::serve(behaviour);
        let error = initiator().open(&fake.uri().parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::BadPage { .. }), "{shift}: {error}");
    }
    let fake = spoil(|b| b.namespaces = vec![3, 2, 1]);
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    assert!(
        controller
            .namespaces()
            .unwrap_err()
            .to_string()
            .contains("ascending")
    );
}

#[test]
fn a_page_of_the_wrong_length_loses_the_association_not_the_process() {
    for len in [0_usize, 1, 4095, 4097, 8192] {
        let fake = Fake::script(move |connection, sqe| match Identify::from_sqe(sqe) {
            Some(identify) if identify.cns == Cns::CONTROLLER => {
                connection.give(sqe.cid.get(), &vec![0; len]).unwrap();
                Verdict::Done
            }
            _ => Verdict::Default,
        });
        let text = connect_error(&fake);
        assert!(text.contains("broke the protocol"), "{len}: {text}");
    }
}

/// A queue to a target whose I/O queues follow a script.
fn queue(script: impl Fn(&mut Connection, &Sqe) -> Verdict + Send + Sync + 'static) -> (FabricQueue, Fake) {
    let fake = Fake::script(move |connection, sqe| {
        if connection.qid > 0 {
            script(connection, sqe)
        } else {
            Verdict::Default
        }
    });
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    (controller.queue(QueueOptions::depth(8)).unwrap(), fake)
}

fn memory(len: usize) -> Data {
    let region = Region::allocate(len, 8).unwrap();
    region.fill(0, len, 0xee).unwrap();
    Data::whole(region)
}

/// Submits commands and returns what became of them.
fn outcome(queue: &mut FabricQueue, commands: Vec<(Command, Data)>) -> (Vec<Completed>, Option<QueueLost>) {
    let count = commands.len();
    for (command, data) in commands {
        let slot = queue.reserve().unwrap();
        queue.submit(slot, command, data);
    }
    let mut completed = Vec::new();
    if let Err(lost) = queue.commit() {
        return (completed, Some(lost));
    }
    let limit = Instant::now() + Duration::from_secs(5);
    while completed.len() < count {
        assert!(Instant::now() < limit, "neither completed nor lost");
        match wait_for_completions(queue, &mut completed, Some(Duration::from_millis(50))) {
            Ok(_) => {}
            Err(lost) => return (completed, Some(lost)),
        }
    }
    (completed, None)
}

/// Submits a read and a write of 64 KiB; both must come back undelivered, for a reason that says this.
fn loses_both(says: &str, script: impl Fn(&mut Connection, &Sqe) -> Verdict + Send + Sync + 'static) {
    let (mut queue, _fake) = queue(script);
    let commands = vec![
        (Command::read(1, 0, 128), memory(128 * BLOCK)),
        (Command::write(1, 0, 128), memory(128 * BLOCK)),
    ];
    let (completed, lost) = outcome(&mut queue, commands);
    let lost = lost.expect("the queue must be lost");
    assert!(completed.is_empty(), "{completed:?}");
    assert!(lost.to_string().contains(says), "{lost}");
    let (_, undelivered) = lost.into_parts();
    assert_eq!(undelivered.len(), 2);
    for undelivered in undelivered {
        // The memory is back: nobody else refers to it.
        let Data::One(segment) = undelivered.data else {
            panic!("another kind of memory")
        };
        let region = segment.region().clone();
        drop(segment);
        assert!(region.is_unique());
    }
    assert!(queue.commit().unwrap_err().undelivered().is_empty());
}

fn is(sqe: &Sqe, opcode: NvmOpcode) -> bool {
    sqe.nvm_opcode() == opcode
}

#[test]
fn a_read_that_succeeds_with_less_data_is_not_stale_data() {
    // CVE-2026-89480: C2HData shorter than asked for, taken for a whole read.
    for success in [true, false] {
        loses_both("broke the protocol", move |connection, sqe| {
            if is(sqe, NvmOpcode::READ) {
                let last = flags::LAST_PDU | if success { flags::SUCCESS } else { 0 };
                connection.send_data(sqe.cid.get(), 0, &[1; 512], last).unwrap();
                connection.respond(sqe.cid.get(), Status::SUCCESS, 0, 0).unwrap();
            }
            Verdict::Done
        });
    }
    loses_both("broke the protocol", |connection, sqe| {
        if is(sqe, NvmOpcode::READ) {
            connection.respond(sqe.cid.get(), Status::SUCCESS, 0, 0).unwrap();
        }
        Verdict::Done
    });
}

#[test]
fn data_for_commands_that_have_none_is_refused() {
    // CVE-2026-89482: C2HData for a Write Zeroes.
    let (mut queue, _fake) = queue(|connection, sqe| {
        connection
            .send_data(sqe.cid.get(), 0, &[1; 512], flags::LAST_PDU | flags::SUCCESS)
            .unwrap();
        Verdict::Done
    });
    let (_, lost) = outcome(
        &mut queue,
        vec![(Command::write_zeroes(1, 0, 8, false), Data::None)],
    );
    assert!(lost.unwrap().to_string().contains("broke the protocol"));
    loses_both("broke the protocol", |connection, sqe| {
        if is(sqe, NvmOpcode::WRITE) {
            connection
                .send_data(sqe.cid.get(), 0, &[1; 512], flags::LAST_PDU)
                .unwrap();
        }
        Verdict::Done
    });
}

#[test]
fn data_outside_the_commands_memory_is_refused() {
    for (offset, len) in [
        (512_u32, 512_usize),
        (u32::MAX, 512),
        (0, 128 * BLOCK + 4),
        (u32::MAX - 3, 8),
    ] {
        loses_both("broke the protocol", move |connection, sqe| {
            if is(sqe, NvmOpcode::READ) {
                // The host may hang up while this is sent.
                let _ = connection.send_data(sqe.cid.get(), offset, &vec![1; len], flags::LAST_PDU);
            }
            Verdict::Done
        });
    }
}

#[test]
fn requests_for_data_that_was_not_offered_are_refused() {
    for (offset, len) in [(0_u32, 0_u32), (4, 4), (0, 65540), (u32::MAX, 1), (1, u32::MAX)] {
        loses_both("broke the protocol", move |connection, sqe| {
            if is(sqe, NvmOpcode::WRITE) {
                connection.send_r2t(sqe.cid.get(), 1, offset, len).unwrap();
            }
            Verdict::Done
        });
    }
    // For a read, for an unused id, and twice the same.
    loses_both("broke the protocol", |connection, sqe| {
        if is(sqe, NvmOpcode::READ) {
            connection.send_r2t(sqe.cid.get(), 1, 0, 512).unwrap();
        }
        Verdict::Done
    });
    loses_both("broke the protocol", |connection, sqe| {
        connection.send_r2t(sqe.cid.get() ^ 0x5555, 1, 0, 512).unwrap();
        Verdict::Done
    });
    loses_both("broke the protocol", |connection, sqe| {
        if is(sqe, NvmOpcode::WRITE) {
            for _ in 0..2 {
                connection.send_r2t(sqe.cid.get(), 1, 0, 65536).unwrap();
            }
        }
        Verdict::Done
    });
}

#[test]
fn answers_to_commands_that_nobody_sent_are_refused() {
    loses_both("broke the protocol", |connection, sqe| {
        connection
            .respond(sqe.cid.get() ^ 0x100, Status::SUCCESS, 0, 0)
            .unwrap();
        Verdict::Done
    });
}

#[test]
fn a_doubled_completion_does_not_finish_somebody_elses_command() {
    let (mut queue, _fake) = queue(|connection, sqe| {
        connection.respond(sqe.cid.get(), Status::SUCCESS, 0, 0).unwrap();
        connection.respond(sqe.cid.get(), Status::SUCCESS, 0, 0).unwrap();
        Verdict::Done
    });
    let (completed, lost) = outcome(&mut queue, vec![(Command::flush(1), Data::None)]);
    assert_eq!(
        (completed.len(), lost.is_none()),
        (1, true),
        "what completed is delivered first"
    );
    let (completed, lost) = outcome(&mut queue, vec![(Command::flush(1), Data::None)]);
    assert!(completed.is_empty());
    assert_eq!(lost.unwrap().undelivered().len(), 1);
}

#[test]
fn a_terminate_request_is_passed_on_as_the_reason() {
    loses_both("limit", |connection, sqe| {
        if is(sqe, NvmOpcode::WRITE) {
            let request = TermReq::new(PduType::C2H_TERM_REQ, FatalError::LIMIT_EXCEEDED, 0, 0);
            connection.stream.write_all(request.as_bytes()).unwrap();
        }
        Verdict::Done
    });
}

#[test]
fn units_that_only_hosts_may_send_or_that_nobody_knows_are_refused() {
    for header in [
        PduHeader::new(PduType::CAPSULE_CMD, 0, 0, 72),
        PduHeader::new(PduType::H2C_DATA, 0, 24, 4096),
        PduHeader::new(PduType::IC_RESP, 0, 0, 128),
        PduHeader::new(PduType(0x55), 0, 0, 24),
        PduHeader {
            hlen: 255,
            ..PduHeader::new(PduType::CAPSULE_RESP, 0, 0, 24)
        },
        PduHeader {
            plen: u32::MAX.into(),
            ..PduHeader::new(PduType::CAPSULE_RESP, 0, 0, 24)
        },
        PduHeader {
            plen: 7.into(),
            ..PduHeader::new(PduType::C2H_DATA, 0, 24, 24)
        },
        PduHeader::new(PduType::C2H_DATA, 0, 255, 24),
        PduHeader::new(PduType::CAPSULE_RESP, flags::HDGST | flags::DDGST, 0, 24),
    ] {
        loses_both("broke the protocol", move |connection, _| {
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(128, 0);
            // The host may hang up while this is sent.
            let _ = connection.stream.write_all(&bytes);
            Verdict::Done
        });
    }
}

#[test]
fn random_bytes_never_do_more_than_lose_the_queue() {
    let state = Mutex::new(0x9e37_79b9_7f4a_7c15_u64);
    let fake = Fake::script(move |connection, sqe| {
        if connection.qid == 0 || ConnectCommand::from_sqe(sqe).is_some() {
            return Verdict::Default;
        }
        let mut state = state.lock().unwrap();
        let mut bytes = vec![0; 300];
        for chunk in bytes.chunks_mut(8) {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let len = chunk.len();
            chunk.copy_from_slice(&state.to_le_bytes()[..len]);
        }
        // Half of them begin like a unit that is expected.
        if state.is_multiple_of(2) {
            let kind = [PduType::C2H_DATA, PduType::R2T, PduType::CAPSULE_RESP][(*state >> 8) as usize % 3];
            let header = PduHeader::new(kind, (*state >> 16) as u8 & 0xc, 0, 24);
            bytes[..8].copy_from_slice(header.as_bytes());
            bytes[8..10].copy_from_slice(&sqe.cid.get().to_le_bytes());
        }
        // The host may hang up while this is sent.
        let _ = connection.stream.write_all(&bytes);
        Verdict::Close
    });
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    for _ in 0..100 {
        let mut queue = controller.queue(QueueOptions::depth(8)).unwrap();
        let commands = vec![
            (Command::read(1, 0, 1), memory(BLOCK)),
            (Command::write(1, 0, 64), memory(64 * BLOCK)),
        ];
        let (completed, lost) = outcome(&mut queue, commands);
        assert_eq!(
            completed.len() + lost.map_or(0, |lost| lost.undelivered().len()),
            2
        );
    }
}

#[test]
fn a_command_that_takes_too_long_is_aborted() {
    // The controller answers the command when it is told to abort it.
    let held: &'static Mutex<Option<(std::net::TcpStream, u16)>> = Box::leak(Box::default());
    let fake = Fake::script(move |connection, sqe| {
        if connection.qid > 0 && is(sqe, NvmOpcode::READ) {
            *held.lock().unwrap() = Some((connection.stream.try_clone().unwrap(), sqe.cid.get()));
            return Verdict::Done;
        }
        if connection.qid == 0 && sqe.admin_opcode() == AdminOpcode::ABORT {
            let (mut stream, cid) = held.lock().unwrap().take().unwrap();
            assert_eq!(sqe.cdw10.get(), 1 | u32::from(cid) << 16);
            let mut cqe = homi_spec::Cqe::new(cid);
            cqe.set_status(Status::ABORT_REQUESTED);
            let header = PduHeader::new(PduType::CAPSULE_RESP, 0, 0, 24);
            let unit = homi_spec::tcp::CapsuleResp { header, cqe };
            stream.write_all(unit.as_bytes()).unwrap();
            connection.respond(sqe.cid.get(), Status::SUCCESS, 0, 0).unwrap();
            return Verdict::Done;
        }
        Verdict::Default
    });
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    let mut queue = controller.queue(QueueOptions::depth(4)).unwrap();
    let start = Instant::now();
    let (completed, lost) = outcome(&mut queue, vec![(Command::read(1, 0, 1), memory(BLOCK))]);
    assert!(lost.is_none(), "{lost:?}");
    assert!(completed[0].completion.status.is(Status::ABORT_REQUESTED));
    assert!(start.elapsed() >= LIMIT, "{:?}", start.elapsed());
    assert_eq!(queue.counters().aborts, 1);
    // The queue goes on.
    let mut disk = Blocking::new(queue, 1, BLOCK as u32);
    disk.write(0, Buffer::allocate(BLOCK).unwrap()).unwrap();
}

#[test]
fn a_command_whose_abort_does_not_help_loses_the_queue() {
    let (mut queue, _fake) = queue(|_, sqe| {
        if is(sqe, NvmOpcode::READ) {
            Verdict::Done
        } else {
            Verdict::Default
        }
    });
    let start = Instant::now();
    let (completed, lost) = outcome(
        &mut queue,
        vec![
            (Command::read(1, 0, 1), memory(BLOCK)),
            (Command::flush(1), Data::None),
        ],
    );
    assert_eq!(completed.len(), 1, "others are not held up");
    let lost = lost.unwrap();
    assert_eq!(lost.reason(), &LostReason::Timeout(LIMIT));
    assert_eq!(lost.undelivered().len(), 1);
    assert!(start.elapsed() >= 2 * LIMIT, "{:?}", start.elapsed());
}

#[test]
fn an_admin_command_that_is_never_answered_loses_the_association() {
    let fake = Fake::script(|_, sqe| match sqe.admin_opcode() {
        AdminOpcode::GET_LOG_PAGE => Verdict::Done,
        _ => Verdict::Default,
    });
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    let start = Instant::now();
    let error = controller.log_page(2, 0, 512).unwrap_err();
    assert!(error.to_string().contains("not answered"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_large_payload_that_stops_in_the_middle_is_not_waited_for_forever() {
    let (mut queue, _fake) = queue(|connection, sqe| {
        let mut bytes = PduHeader::new(
            PduType::C2H_DATA,
            flags::LAST_PDU | flags::SUCCESS,
            24,
            24 + 65536,
        )
        .as_bytes()
        .to_vec();
        bytes.extend_from_slice(&sqe.cid.get().to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&65536_u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.resize(24 + 40000, 7);
        connection.stream.write_all(&bytes).unwrap();
        Verdict::Done
    });
    let (_, lost) = outcome(&mut queue, vec![(Command::read(1, 0, 128), memory(128 * BLOCK))]);
    let lost = lost.unwrap();
    assert_eq!(lost.reason(), &LostReason::Timeout(LIMIT));
    assert_eq!(lost.undelivered().len(), 1);
    assert!(queue.counters().bytes_landed >= 39_000);
}

#[test]
fn a_wrong_controller_answering_a_queues_connect_is_refused() {
    let fake = Fake::script(|connection, sqe| match ConnectCommand::from_sqe(sqe) {
        Some(connect) if connect.qid > 0 => {
            connection.respond(sqe.cid.get(), Status::SUCCESS, 9, 0).unwrap();
            Verdict::Done
        }
        _ => Verdict::Default,
    });
    let controller = initiator().connect(&fake.uri().parse().unwrap()).unwrap();
    let error = controller.queue(QueueOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("as controller 9, expected 1"),
        "{error}"
    );
    // The id is free again.
    for _ in 0..8 {
        assert!(
            controller
                .queue(QueueOptions::default())
                .unwrap_err()
                .to_string()
                .contains("as controller 9")
        );
    }
}

#[test]
fn disconnecting_while_everything_goes_on_neither_hangs_nor_panics() {
    // CVE-2024-53169 and 2022-48788/9: keep-alive against shutdown, event requests against reset.
    let mut keep_alive = Duration::from_millis(4);
    let mut round = 0;
    while round < 20 {
        let fake = Fake::good();
        let initiator = Initiator::builder()
            .keep_alive(keep_alive)
            .connect_timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        let connected = initiator
            .connect(&fake.uri().parse().unwrap())
            .and_then(|controller| Ok((controller.queue(QueueOptions::depth(4))?, controller)));
        let (mut queue, controller) = match connected {
            Ok(connected) => connected,
            // A machine that is too busy for so short a time.
            Err(error @ Error::Lost { .. }) => {
                assert!(keep_alive < Duration::from_secs(5), "{error}");
                keep_alive *= 2;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let busy = controller.clone();
        let worker = thread::spawn(move || while busy.namespace_ids().is_ok() {});
        let io = thread::spawn(move || {
            loop {
                let Ok(slot) = queue.reserve() else { return };
                queue.submit(slot, Command::flush(1), Data::None);
                let mut completed = Vec::new();
                if queue.commit().is_err() || wait_for_completions(&mut queue, &mut completed, None).is_err()
                {
                    return;
                }
            }
        });
        thread::sleep(Duration::from_millis(round));
        if round % 2 == 0 {
            match controller.disconnect(Duration::from_secs(10)) {
                Ok(()) => {}
                // As above: it ended by itself before.
                Err(Error::Lost { .. }) => assert!(keep_alive < Duration::from_secs(5)),
                Err(error) => panic!("{error}"),
            }
        } else {
            fake.drop_all();
        }
        worker.join().unwrap();
        io.join().unwrap();
        round += 1;
    }
}
