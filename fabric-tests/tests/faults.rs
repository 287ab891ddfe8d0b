//! Faults of the stream between the two ends of the pair: pieces of every size, delays, and bytes that change, vanish or never
//! come. What must hold: with digests no wrong byte is ever taken for a right one; every command has exactly one
//! outcome; both ends find out, and nothing is left behind.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use std::time::Duration;

use fabric_tests::bodies::{read, write, write_and_read};
use fabric_tests::faults::{Fault, Faults, Fragments, Plan};
use fabric_tests::harness::{Harness, Host, HostOptions};
use fabric_tests::issuer::{Issuer, blank, bytes_of, memory};
use fabric_tests::meddler::{Act, Side};
use fabric_tests::pair::{Pair, PairHost, PipeQueue};
use fabric_tests::random::{Random, contents};
use fabric_tests::settings::ram;
use fabric_tests::units::{Units, ic_resp};
use homi_queue::{Command, Data};
use homi_spec::Status;
use homi_spec::tcp::{PduType, flags};

fn with_digests() -> HostOptions {
    HostOptions {
        header_digest: true,
        data_digest: true,
        ..HostOptions::default()
    }
}

/// Commands of every kind of transfer.
fn exercise(queue: &mut Issuer<PipeQueue>) {
    for (lba, len) in [(0, 4096), (10, 16 << 10), (20, 64 << 10), (50, 256 << 10)] {
        let bytes = contents(lba, len);
        write(queue, (2, 4096), lba, &bytes);
        let blocks = u32::try_from(len / 4096).unwrap();
        assert!(read(queue, (2, 4096), lba, blocks) == bytes);
    }
    let status = queue.status(Command::read(2, u64::MAX, 1), blank(4096));
    assert!(status.is(Status::LBA_OUT_OF_RANGE));
    write_and_read(queue, (1, 512), 8, 1);
}

#[test]
fn pieces_of_every_size() {
    let sizes = [
        Fragments::Fixed(1),
        Fragments::Fixed(7),
        Fragments::Fixed(23),
        Fragments::Fixed(4099),
        Fragments::Random { seed: 1, most: 100 },
        Fragments::Random {
            seed: 2,
            most: 100_000,
        },
    ];
    for options in [HostOptions::default(), with_digests()] {
        for fragments in &sizes {
            let plan = Plan {
                fragments: fragments.clone(),
                ..Plan::default()
            };
            let faults = Faults {
                to_target: plan.clone(),
                to_host: plan,
            };
            let mut target = Pair::start(&ram());
            let mut host = target.host_with(&options, faults.clone(), faults).unwrap();
            exercise(&mut host.queue(8));
            assert!(host.disconnect());
        }
    }
}

#[test]
fn sends_that_take_only_part() {
    for room in [1000, 4096, 40_000] {
        let faults = Faults {
            to_target: Plan {
                room: Some(room),
                ..Plan::default()
            },
            ..Faults::default()
        };
        let mut target = Pair::start(&ram());
        let mut host = target.host_with(&with_digests(), faults.clone(), faults).unwrap();
        exercise(&mut host.queue(8));
    }
}

/// A connection with a long way costs time, virtual time, and nothing else.
#[test]
fn a_long_way() {
    let plan = Plan {
        delay: Duration::from_millis(200),
        ..Plan::default()
    };
    let faults = Faults {
        to_target: plan.clone(),
        to_host: plan,
    };
    let mut target = Pair::start(&ram());
    let mut host = target
        .host_with(&HostOptions::default(), faults.clone(), faults)
        .unwrap();
    let mut queue = host.queue(32);
    let before = target.world().now();
    // One round trip for all of them, since a queue does not wait for one to send the next.
    let ids: Vec<_> = (0..32)
        .map(|lba| queue.submit(Command::write(2, lba, 1), memory(&contents(lba, 4096))))
        .collect();
    queue.commit().unwrap();
    for id in ids {
        assert!(queue.completion_of(id).unwrap().completion.is_success());
    }
    let elapsed = target.world().now().saturating_since(before);
    assert_eq!(elapsed, Duration::from_millis(400));
    // Data that has to be asked for takes one more.
    let before = target.world().now();
    write(&mut queue, (2, 4096), 100, &contents(1, 64 << 10));
    let elapsed = target.world().now().saturating_since(before);
    assert_eq!(elapsed, Duration::from_millis(800));
}

/// A host with one I/O queue whose connection has these faults.
fn faulty(options: &HostOptions, faults: Faults) -> (Pair, PairHost, Result<Issuer<PipeQueue>, String>) {
    let mut target = Pair::start(&ram());
    let mut host = target.host_with(options, Faults::default(), faults).unwrap();
    let queue = host.try_queue(8);
    (target, host, queue)
}

/// What became of a round of commands: those that completed, and those that were handed back.
struct Outcome {
    completed: usize,
    undelivered: usize,
    lost: bool,
}

/// Submits writes and reads, and follows each to its end. With `strict`, what a read brings must be right.
fn round(queue: &mut Issuer<PipeQueue>, known: &[u8], strict: bool) -> Outcome {
    let mut outcome = Outcome {
        completed: 0,
        undelivered: 0,
        lost: false,
    };
    let commands = [
        (Command::write(2, 200, 1), memory(&known[..4096])),
        (Command::read(2, 0, 16), blank(64 << 10)),
        (Command::write(2, 300, 16), memory(known)),
        (Command::read(2, 0, 1), blank(4096)),
    ];
    let mut ids: Vec<_> = commands
        .map(|(command, data)| queue.submit(command, data))
        .to_vec();
    let mut lost = queue.commit().err();
    // Everything moves at once, so what has not come after so many looks never will.
    for _ in 0..2000 {
        if lost.is_some() || ids.is_empty() {
            break;
        }
        lost = queue.poll().err();
        ids.retain(|id| {
            let Some(completed) = queue.take(*id) else {
                return true;
            };
            outcome.completed += 1;
            let data = bytes_of(&completed.data);
            if strict && completed.completion.is_success() {
                assert!(known.starts_with(&data), "bytes that nobody wrote");
            }
            false
        });
    }
    if let Some(lost) = lost {
        outcome.lost = true;
        outcome.undelivered = lost.into_parts().1.len();
        assert!(
            queue.poll().unwrap_err().into_parts().1.is_empty(),
            "handed back once"
        );
    }
    outcome
}

/// Bytes that each direction of an I/O connection carries in a test without faults.
fn lengths(options: &HostOptions, known: &[u8]) -> [u64; 2] {
    // A flip far behind the end never happens, but the position is known by where a cut still has an effect.
    let mut lengths = [0, 0];
    for (index, length) in lengths.iter_mut().enumerate() {
        let (mut low, mut high) = (0_u64, 1 << 22);
        while low < high {
            let middle = low.midpoint(high);
            let plan = Plan::fault(middle, Fault::Cut);
            let mut faults = Faults::default();
            if index == 0 {
                faults.to_target = plan;
            } else {
                faults.to_host = plan;
            }
            let (_target, _host, queue) = faulty(options, faults);
            let whole = queue.is_ok_and(|mut queue| round(&mut queue, known, false).completed == 4);
            if whole { high = middle } else { low = middle + 1 }
        }
        *length = low;
    }
    lengths
}

/// Every fault, at bytes all over both directions, from the first of the connection to the last.
fn sweep(options: &HostOptions, fault: &Fault, strict: bool) {
    let known = contents(5, 64 << 10);
    let lengths = lengths(options, &known);
    let mut random = Random::new(11);
    for (index, length) in lengths.into_iter().enumerate() {
        let mut positions: Vec<u64> = (0..300).step_by(7).collect();
        positions.extend((0..30).map(|_| random.next_number() % length));
        positions.extend(length.saturating_sub(12)..length);
        for at in positions {
            let plan = Plan::fault(at, fault.clone());
            let mut faults = Faults::default();
            if index == 0 {
                faults.to_target = plan;
            } else {
                faults.to_host = plan;
            }
            let (target, mut host, queue) = faulty(options, faults);
            // What the reads find, written over a connection that is whole.
            host.io_faults = Faults::default();
            let mut other = host.queue(4);
            write(&mut other, (2, 4096), 0, &known);
            if let Ok(mut queue) = queue {
                let outcome = round(&mut queue, &known, strict);
                let ended = outcome.completed + outcome.undelivered;
                if outcome.lost {
                    assert_eq!(ended, 4, "{fault:?} at {at} of direction {index}");
                } else {
                    // A stream that lost bytes may wait for them for ever; the commands are given back with the queue.
                    assert!(ended <= 4);
                    let left = queue.queue().in_flight();
                    assert_eq!(ended + left, 4);
                }
                drop(queue);
            }
            write_and_read(&mut other, (1, 512), 0, at);
            // The queue that failed is gone at the other end too.
            assert_eq!(target.connections(), 2, "{fault:?} at {at} of direction {index}");
        }
    }
}

#[test]
fn flipped_bits_with_digests() {
    sweep(&with_digests(), &Fault::Flip(0x10), true);
}

#[test]
fn flipped_bits_without_digests() {
    sweep(&HostOptions::default(), &Fault::Flip(0x80), false);
}

#[test]
fn missing_bytes_with_digests() {
    sweep(&with_digests(), &Fault::Remove(3), true);
}

#[test]
fn inserted_bytes_with_digests() {
    sweep(&with_digests(), &Fault::Insert(vec![0; 5]), true);
}

#[test]
fn a_connection_that_breaks() {
    sweep(&HostOptions::default(), &Fault::Cut, true);
}

/// Bytes that never come, in either direction: the commands stay in flight until the target gives the silent host up, and are handed
/// back then.
#[test]
fn a_connection_that_hangs() {
    let options = HostOptions {
        keep_alive: Duration::from_secs(5),
        ..HostOptions::default()
    };
    // The first bytes after Connect and its answer.
    let to_target = Plan::fault(128 + 72 + 1024, Fault::Stall);
    let to_host = Plan::fault(128 + 24, Fault::Stall);
    for faults in [
        Faults {
            to_target,
            ..Faults::default()
        },
        Faults {
            to_host,
            ..Faults::default()
        },
    ] {
        let (target, mut host, queue) = faulty(&options, faults);
        let mut queue = queue.unwrap();
        let start = target.world().now();
        queue.submit(Command::write(2, 0, 1), memory(&[1; 4096]));
        queue.submit(Command::read(2, 0, 16), blank(64 << 10));
        queue.commit().unwrap();
        for _ in 0..100 {
            assert_eq!(queue.poll().unwrap(), 0);
        }
        host.wait_for_the_end();
        let waited = target.world().now().saturating_since(start);
        assert!(
            (Duration::from_secs(5)..Duration::from_secs(12)).contains(&waited),
            "{waited:?}"
        );
        let (_, undelivered) = queue.wait_for_the_end().into_parts();
        assert_eq!(undelivered.len(), 2);
        assert_eq!(target.connections(), 0);
    }
}

/// A flipped bit in the data of a read is noticed by its digest: the read fails, may be repeated, and the queue goes on.
#[test]
fn a_read_with_a_flipped_bit_is_repeated() {
    let (_target, mut host, _) = faulty(&with_digests(), Faults::default());
    let mut writer = host.queue(4);
    let bytes = contents(3, 64 << 10);
    write(&mut writer, (2, 4096), 0, &bytes);
    let mut flip = true;
    let meddler = move |side: Side, unit: &[u8]| {
        if side == Side::Target && unit[0] == PduType::C2H_DATA.raw() && std::mem::take(&mut flip) {
            let mut unit = unit.to_vec();
            unit[1000] ^= 4;
            return vec![Act::ToHost(unit)];
        }
        vec![Act::Forward]
    };
    let mut queue = host.queue_through(4, Some(Box::new(meddler))).unwrap();
    let command = Command::read(2, 0, 16);
    let status = queue.status(command, blank(64 << 10));
    assert_eq!(status, Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(queue.bytes(command, blank(64 << 10)), bytes);
}

/// A flipped bit in the data of a write is noticed likewise, in the capsule and outside, and nothing is written.
#[test]
fn a_write_with_a_flipped_bit_is_repeated() {
    for len in [4096, 64 << 10] {
        let (_target, mut host, _) = faulty(&with_digests(), Faults::default());
        let mut armed = false;
        let meddler = move |side: Side, unit: &[u8]| {
            let carries = unit[0] == PduType::H2C_DATA.raw() || unit[0] == PduType::CAPSULE_CMD.raw();
            if side == Side::Host && carries && unit.len() > 2000 && !std::mem::replace(&mut armed, true) {
                let mut unit = unit.to_vec();
                unit[1500] ^= 4;
                return vec![Act::ToTarget(unit)];
            }
            vec![Act::Forward]
        };
        let mut queue = host.queue_through(4, Some(Box::new(meddler))).unwrap();
        let bytes = contents(3, len);
        let blocks = u32::try_from(len / 4096).unwrap();
        let command = Command::write(2, 0, blocks);
        let status = queue.status(command, memory(&bytes));
        assert_eq!(status, Status::TRANSIENT_TRANSPORT_ERROR);
        assert_eq!(read(&mut queue, (2, 4096), 0, blocks), vec![0; len]);
        assert_eq!(queue.status(command, memory(&bytes)), Status::SUCCESS);
        assert_eq!(read(&mut queue, (2, 4096), 0, blocks), bytes);
    }
}

/// A controller that takes little data per unit gets no more: below, at and above the limit.
#[test]
fn max_h2c_data_is_kept() {
    let (_target, mut host, _) = faulty(&HostOptions::default(), Faults::default());
    let (sizes, seen) = std::sync::mpsc::channel();
    let meddler = move |side: Side, unit: &[u8]| match (side, PduType(unit[0])) {
        (Side::Target, PduType::IC_RESP) => vec![Act::ToHost(ic_resp(0, 0, 8192))],
        (Side::Host, PduType::H2C_DATA) => {
            let unit = Units::PLAIN.read(unit).unwrap();
            sizes.send((unit.data.len(), unit.has(flags::LAST_PDU))).unwrap();
            vec![Act::Forward]
        }
        _ => vec![Act::Forward],
    };
    let mut queue = host.queue_through(4, Some(Box::new(meddler))).unwrap();
    for len in [20_480, 24 << 10, 8192 * 4 + 4096] {
        let bytes = contents(1, len);
        write(&mut queue, (2, 4096), 0, &bytes);
        let units: Vec<_> = seen.try_iter().collect();
        let mut expected = vec![(8192, false); len / 8192];
        if len % 8192 > 0 {
            expected.push((len % 8192, false));
        }
        expected.last_mut().unwrap().1 = true;
        assert_eq!(units, expected, "{len}");
        let blocks = u32::try_from(len / 4096).unwrap();
        assert_eq!(read(&mut queue, (2, 4096), 0, blocks), bytes);
    }
}

/// A queue that is dropped with commands in flight takes nothing else with it.
#[test]
fn a_queue_dropped_with_commands_in_flight() {
    let (target, mut host, queue) = faulty(&HostOptions::default(), Faults::default());
    let mut other = host.queue(4);
    let mut queue = queue.unwrap();
    for lba in 0..8 {
        queue.submit(Command::write(2, 16 * lba, 16), memory(&contents(lba, 64 << 10)));
    }
    queue.commit().unwrap();
    drop(queue);
    write_and_read(&mut other, (2, 4096), 1000, 4);
    assert_eq!(target.connections(), 2);
    let last = other.bytes(Command::read(2, 1000, 8), Data::Anywhere { len: 32 << 10 });
    assert_eq!(last, contents(4, 32 << 10));
}
