//! Targets that break the protocol, against the initiator's queue, in memory and over TCP. Each is an honest target with somebody
//! on the line who answers one command differently. What must hold: no read ever brings bytes that the target did not
//! send for it, every command has exactly one outcome, the reason says what was wrong, and the host's other
//! association goes on.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use fabric_tests::bodies::{write, write_and_read};
use fabric_tests::harness::{Harness, Host, HostOptions};
use fabric_tests::issuer::{Issuer, blank, bytes_of, memory};
use fabric_tests::meddler::{Act, Meddler, Side};
use fabric_tests::network::{Network, NetworkHost, initiator};
use fabric_tests::pair::Pair;
use fabric_tests::random::contents;
use fabric_tests::relay::Relay;
use fabric_tests::settings::{DATA, ram};
use fabric_tests::units::{Units, ic_resp, terminate};
use homi_queue::{Command, Data, LostReason, Queue, Wait};
use homi_spec::command::NvmOpcode;
use homi_spec::tcp::{FatalError, PduType, flags};
use homi_spec::{Cqe, Sqe, Status};

/// What a hostile target does with the first command of a kind.
struct Attack {
    /// What it breaks.
    name: &'static str,
    units: Units,
    opcode: NvmOpcode,
    answer: fn(Units, &Sqe) -> Vec<Act>,
    /// What the reason must say.
    says: &'static str,
}

/// Bytes of the commands that are attacked.
const LARGE: usize = 64 << 10;
const LARGE_BYTES: u32 = 64 << 10;

fn cid(sqe: &Sqe) -> u16 {
    sqe.cid.get()
}

fn to_host(units: &[Vec<u8>]) -> Vec<Act> {
    vec![Act::ToHost(units.concat())]
}

const fn plain(
    name: &'static str,
    opcode: NvmOpcode,
    says: &'static str,
    answer: fn(Units, &Sqe) -> Vec<Act>,
) -> Attack {
    Attack {
        name,
        units: Units::PLAIN,
        opcode,
        answer,
        says,
    }
}

const READ: NvmOpcode = NvmOpcode::READ;
const WRITE: NvmOpcode = NvmOpcode::WRITE;
const ZEROES: NvmOpcode = NvmOpcode::WRITE_ZEROES;

fn attacks() -> Vec<Attack> {
    vec![
        plain(
            "CVE-2026-89480: a read shorter than asked for",
            READ,
            "succeeded with",
            |units, sqe| {
                to_host(&[
                    units.c2h(cid(sqe), 0, &[1; 4096], flags::LAST_PDU),
                    units.response(cid(sqe), Status::SUCCESS),
                ])
            },
        ),
        plain(
            "a short read with the success flag",
            READ,
            "succeeded with",
            |units, sqe| to_host(&[units.c2h(cid(sqe), 0, &[1; 4096], flags::LAST_PDU | flags::SUCCESS)]),
        ),
        plain(
            "a read without any data",
            READ,
            "succeeded with 0",
            |units, sqe| to_host(&[units.response(cid(sqe), Status::SUCCESS)]),
        ),
        plain(
            "CVE-2026-89482: data for write zeroes",
            ZEROES,
            "does not move data that way",
            |units, sqe| to_host(&[units.c2h(cid(sqe), 0, &[1; 4096], flags::LAST_PDU)]),
        ),
        plain(
            "data for a write",
            WRITE,
            "does not move data that way",
            |units, sqe| to_host(&[units.c2h(cid(sqe), 0, &[1; 4096], flags::LAST_PDU)]),
        ),
        plain("data that was sent before", READ, "expected", |units, sqe| {
            let unit = units.c2h(cid(sqe), 0, &[1; 4096], 0);
            to_host(&[unit.clone(), unit])
        }),
        plain("data with a gap", READ, "expected", |units, sqe| {
            to_host(&[units.c2h(cid(sqe), 4096, &[1; 4096], 0)])
        }),
        plain("data beyond the end", READ, "expected", |units, sqe| {
            to_host(&[units.c2h(cid(sqe), 0, &[1; LARGE + 4], flags::LAST_PDU)])
        }),
        plain(
            "data at the end of the number range",
            READ,
            "expected",
            |units, sqe| to_host(&[units.c2h(cid(sqe), 0xffff_f000, &[1; 4096], 0)]),
        ),
        plain(
            "data of a length that contradicts the unit",
            READ,
            "bytes",
            |units, sqe| {
                let mut unit = units.c2h(cid(sqe), 0, &[1; 4096], 0);
                unit[16..20].copy_from_slice(&u32::to_le_bytes(LARGE_BYTES));
                to_host(&[unit])
            },
        ),
        plain("a unit of 4 GiB", READ, "bytes", |units, sqe| {
            let mut unit = units.c2h(cid(sqe), 0, &[1; 4096], 0);
            unit[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            to_host(&[unit])
        }),
        plain(
            "success before the last unit",
            READ,
            "not the last",
            |units, sqe| to_host(&[units.c2h(cid(sqe), 0, &[1; LARGE], flags::SUCCESS)]),
        ),
        plain(
            "a completion that comes twice",
            ZEROES,
            "not in flight",
            |units, sqe| {
                let unit = units.response(cid(sqe), Status::SUCCESS);
                to_host(&[unit.clone(), unit])
            },
        ),
        plain(
            "a completion for a command that nobody sent",
            ZEROES,
            "not in flight",
            |units, sqe| to_host(&[units.response(cid(sqe) ^ 0x4000, Status::SUCCESS)]),
        ),
        plain(
            "data for a command that nobody sent",
            READ,
            "not in flight",
            |units, sqe| to_host(&[units.c2h(cid(sqe) ^ 0x4000, 0, &[1; 4096], 0)]),
        ),
        plain(
            "data after the completion",
            READ,
            "not in flight",
            |units, sqe| {
                to_host(&[
                    units.c2h(cid(sqe), 0, &[1; LARGE], flags::LAST_PDU | flags::SUCCESS),
                    units.c2h(cid(sqe), 0, &[2; LARGE], flags::LAST_PDU | flags::SUCCESS),
                ])
            },
        ),
        plain(
            "a request for data of a read",
            READ,
            "does not move data that way",
            |units, sqe| to_host(&[units.r2t(cid(sqe), 1, 0, 4096)]),
        ),
        plain(
            "a request for more than there is",
            WRITE,
            "expected",
            |units, sqe| to_host(&[units.r2t(cid(sqe), 1, 0, LARGE_BYTES + 4)]),
        ),
        plain("a request for 4 GiB", WRITE, "expected", |units, sqe| {
            to_host(&[units.r2t(cid(sqe), 1, 0, u32::MAX)])
        }),
        plain("a request at a bad offset", WRITE, "expected", |units, sqe| {
            to_host(&[units.r2t(cid(sqe), 1, 4096, 4096)])
        }),
        plain("a request for nothing", WRITE, "expected", |units, sqe| {
            to_host(&[units.r2t(cid(sqe), 1, 0, 0)])
        }),
        plain("the same data requested twice", WRITE, "", |units, sqe| {
            let unit = units.r2t(cid(sqe), 1, 0, 4096);
            to_host(&[unit.clone(), unit])
        }),
        plain(
            "a request for data of a command that nobody sent",
            WRITE,
            "not in flight",
            |units, sqe| to_host(&[units.r2t(cid(sqe) ^ 0x4000, 1, 0, 4096)]),
        ),
        plain(
            "a write that succeeds before its data was asked for",
            WRITE,
            "succeeded with 0",
            |units, sqe| to_host(&[units.response(cid(sqe), Status::SUCCESS)]),
        ),
        plain("initialised twice", READ, "takes data and responses", |_, _| {
            to_host(&[ic_resp(0, 0, 8192)])
        }),
        plain(
            "a unit that only hosts send",
            READ,
            "takes data and responses",
            |units, sqe| to_host(&[units.capsule(*sqe, &[])]),
        ),
        plain(
            "a unit that nobody sends",
            READ,
            "does not define",
            |units, sqe| {
                let mut unit = units.response(cid(sqe), Status::SUCCESS);
                unit[0] = 0x55;
                to_host(&[unit])
            },
        ),
        plain("another protocol", READ, "", |_, _| {
            vec![Act::ToHost(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]
        }),
        plain("a terminate request", READ, "out of sequence", |_, sqe| {
            let error = FatalError::SEQUENCE_ERROR;
            to_host(&[terminate(PduType::C2H_TERM_REQ, error, 0, &sqe.dptr_bytes())])
        }),
        plain("a terminate request that is too long", READ, "bytes", |_, _| {
            let mut unit = terminate(PduType::C2H_TERM_REQ, FatalError::SEQUENCE_ERROR, 0, &[0; 128]);
            unit[4..8].copy_from_slice(&u32::to_le_bytes(153));
            to_host(&[unit])
        }),
        plain("gone instead of an answer", READ, "closed", |_, _| {
            vec![Act::HangUp]
        }),
        plain("gone in the middle of the data", READ, "closed", |units, sqe| {
            let unit = units.c2h(cid(sqe), 0, &[1; LARGE], flags::LAST_PDU);
            vec![Act::ToHost(unit[..5000].to_vec()), Act::HangUp]
        }),
        Attack {
            name: "CVE-2025-21927: a header of 255 bytes with a digest",
            units: Units::DIGESTS,
            opcode: READ,
            says: "header of 255 bytes",
            answer: |units, sqe| {
                let mut unit = units.response(cid(sqe), Status::SUCCESS);
                unit[2] = 255;
                unit[4..8].copy_from_slice(&u32::to_le_bytes(259));
                unit.resize(259, 0xaa);
                to_host(&[unit])
            },
        },
        Attack {
            name: "a header that does not match its digest",
            units: Units::DIGESTS,
            opcode: READ,
            says: "digest",
            answer: |units, sqe| {
                let mut unit = units.response(cid(sqe), Status::SUCCESS);
                unit[9] ^= 1;
                to_host(&[unit])
            },
        },
        Attack {
            name: "a unit without the digest that was agreed on",
            units: Units::DIGESTS,
            opcode: READ,
            says: "digest",
            answer: |_, sqe| to_host(&[Units::PLAIN.response(cid(sqe), Status::SUCCESS)]),
        },
    ]
}

trait DataPointer {
    fn dptr_bytes(&self) -> Vec<u8>;
}

impl DataPointer for Sqe {
    fn dptr_bytes(&self) -> Vec<u8> {
        self.sgl().0.to_vec()
    }
}

/// Answers the first command with this opcode and passes everything else on.
fn meddler(attack: &Attack) -> Meddler {
    let (units, opcode, answer) = (attack.units, attack.opcode, attack.answer);
    let mut done = false;
    Box::new(move |side, unit| {
        if done || side == Side::Target || unit[0] != PduType::CAPSULE_CMD.raw() {
            return vec![Act::Forward];
        }
        let sqe = units.read(unit).unwrap().sqe();
        if sqe.nvm_opcode() != opcode {
            return vec![Act::Forward];
        }
        done = true;
        answer(units, &sqe)
    })
}

fn options(attack: &Attack) -> HostOptions {
    HostOptions {
        header_digest: attack.units.header_digest,
        data_digest: attack.units.data_digest,
        ..HostOptions::default()
    }
}

/// Runs into the attack, and checks what comes of it.
fn suffer<Q: Queue + Wait>(attack: &Attack, queue: &mut Issuer<Q>, known: &[u8]) {
    let command = match attack.opcode {
        READ => (Command::read(2, 0, 16), blank(LARGE)),
        WRITE => (Command::write(2, 500, 16), memory(&contents(8, LARGE))),
        _ => (Command::write_zeroes(2, 700, 1, false), Data::None),
    };
    queue.submit(command.0, command.1);
    // Bystanders of the same queue: each has its outcome too.
    queue.submit(Command::read(2, 0, 1), blank(4096));
    queue.submit(Command::write(2, 600, 1), memory(&known[..4096]));
    let mut completed = 0;
    let committed = queue.commit();
    let lost = match committed {
        Err(lost) => lost,
        Ok(()) => loop {
            match queue.any() {
                Ok(done) => {
                    completed += 1;
                    let data = bytes_of(&done.data);
                    let answered_by_the_attacker = data.len() == LARGE && data == vec![1; LARGE];
                    assert!(
                        !done.completion.is_success()
                            || data.is_empty()
                            || known.starts_with(&data)
                            || data == contents(8, LARGE)
                            || answered_by_the_attacker,
                        "{}: bytes that nobody sent",
                        attack.name
                    );
                }
                Err(lost) => break lost,
            }
        },
    };
    let (reason, undelivered) = lost.into_parts();
    assert_eq!(completed + undelivered.len(), 3, "{}: {reason}", attack.name);
    let text = reason.to_string();
    assert!(text.contains(attack.says), "{}: {text}", attack.name);
    assert!(
        !matches!(reason, LostReason::Timeout(_) | LostReason::Association(_)),
        "{}: {text}",
        attack.name
    );
    // Whatever is asked of it afterwards, it is lost once.
    assert!(queue.poll().unwrap_err().into_parts().1.is_empty());
}

#[test]
fn in_memory() {
    for attack in attacks() {
        println!("{}", attack.name);
        let mut target = Pair::start(&ram());
        let mut host = target.host(&options(&attack));
        let mut survivor = host.queue(4);
        let known = contents(1, LARGE);
        write(&mut survivor, (2, 4096), 0, &known);
        let mut queue = host.queue_through(8, Some(meddler(&attack))).unwrap();
        suffer(&attack, &mut queue, &known);
        drop(queue);
        write_and_read(&mut survivor, (1, 512), 0, 7);
        assert_eq!(target.connections(), 2, "{}", attack.name);
    }
}

#[test]
fn over_tcp() {
    let honest = Network::start(&ram());
    for attack in attacks() {
        println!("{}", attack.name);
        // One initiator, connected to the honest target itself and to the same through the attacker.
        let host = initiator(&options(&attack));
        let mut good = NetworkHost::of(&host, honest.address(), DATA).unwrap();
        let mut survivor = good.queue(4);
        let known = contents(1, LARGE);
        write(&mut survivor, (2, 4096), 0, &known);
        let mut ambush = Some(meddler(&attack));
        let relay = Relay::start(
            honest.address(),
            Box::new(move |connection| if connection == 1 { ambush.take() } else { None }),
        );
        let mut bad = NetworkHost::of(&host, relay.address(), DATA).unwrap();
        let mut queue = bad.queue(8);
        suffer(&attack, &mut queue, &known);
        drop(queue);
        write_and_read(&mut survivor, (1, 512), 0, 7);
        // The association is not to blame for one of its queues.
        write_and_read(&mut bad.queue(4), (1, 512), 8, 8);
        drop((good, bad, survivor));
    }
    honest.wait_for_connections(0);
}

/// The bytes of a read whose digest does not match are not success, and the queue goes on.
#[test]
fn a_wrong_data_digest_fails_its_command_only() {
    let mut target = Pair::start(&ram());
    let options = HostOptions {
        header_digest: true,
        data_digest: true,
        ..HostOptions::default()
    };
    let mut host = target.host(&options);
    let mut done = false;
    let mut queue = host
        .queue_through(
            8,
            Some(Box::new(move |side, unit| {
                if side == Side::Target
                    && unit[0] == PduType::C2H_DATA.raw()
                    && !std::mem::replace(&mut done, true)
                {
                    let mut unit = unit.to_vec();
                    *unit.last_mut().unwrap() ^= 0x20;
                    return vec![Act::ToHost(unit)];
                }
                vec![Act::Forward]
            })),
        )
        .unwrap();
    let status = queue.status(Command::read(2, 0, 16), blank(LARGE));
    assert_eq!(status, Status::TRANSIENT_TRANSPORT_ERROR);
    write_and_read(&mut queue, (2, 4096), 0, 5);
}

/// Every status that a target can think of is passed on as it is, with its result.
#[test]
fn any_status_is_passed_on() {
    let mut target = Pair::start(&ram());
    let mut host = target.host(&HostOptions::default());
    let mut next = 0_u16;
    let mut queue = host
        .queue_through(
            8,
            Some(Box::new(move |side, unit| {
                let capsule = side == Side::Host && unit[0] == PduType::CAPSULE_CMD.raw();
                if !capsule || Units::PLAIN.read(unit).unwrap().sqe().nvm_opcode() != NvmOpcode::FLUSH {
                    return vec![Act::Forward];
                }
                next += 1;
                let sqe = Units::PLAIN.read(unit).unwrap().sqe();
                let cqe = Cqe::new(sqe.cid.get())
                    .with_status(Status::from_raw(next))
                    .with_result64(u64::from(next) << 20 | 1);
                vec![Act::ToHost(Units::PLAIN.response_with(cqe))]
            })),
        )
        .unwrap();
    for expected in 1..2000_u16 {
        let (completion, _) = queue.execute(Command::flush(1), Data::None);
        assert_eq!(completion.status, Status::from_raw(expected));
        assert_eq!(completion.result, u64::from(expected) << 20 | 1);
    }
    write_and_read(&mut queue, (1, 512), 0, 1);
}

fn assert_waits<Q: Queue + Wait>(_: &Issuer<Q>) {}

/// A queue that was lost to an attack can still be asked for its depth and dropped.
#[test]
fn a_lost_queue_is_harmless() {
    let mut target = Pair::start(&ram());
    let mut host = target.host(&HostOptions::default());
    let mut queue = host
        .queue_through(
            3,
            Some(Box::new(|side, unit| match side {
                Side::Host if unit[0] == PduType::CAPSULE_CMD.raw() && unit[8] == 0 => vec![Act::HangUp],
                _ => vec![Act::Forward],
            })),
        )
        .unwrap();
    assert_waits(&queue);
    for _ in 0..3 {
        queue.submit(Command::flush(1), Data::None);
    }
    let undelivered = match queue.commit() {
        Err(lost) => lost.into_parts().1,
        Ok(()) => queue.wait_for_the_end().into_parts().1,
    };
    assert_eq!(undelivered.len(), 3);
    assert_eq!(queue.queue().depth(), 3);
    // Commands that are submitted all the same come back too.
    if let Ok(id) = queue.try_submit(Command::flush(1), Data::None) {
        let lost = queue.commit().unwrap_err();
        let (_, undelivered) = lost.into_parts();
        assert_eq!(
            undelivered.iter().map(|command| command.id).collect::<Vec<_>>(),
            [id]
        );
    }
}
