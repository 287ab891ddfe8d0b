//! Seeds of [`driver`](super::driver): short lives of a drive, right ones and wrong ones.

use super::driver::Event as E;

/// Decisions in the order in which they are read.
#[derive(Debug, Clone)]
struct Script(Vec<u8>);

impl Script {
    /// A controller and options by three bytes, with faults before it is opened, and a queue of `1 + how % 9` commands.
    fn new(bits: [u8; 3], faults: &[&[u8]], how: u8) -> Self {
        let mut bytes = bits.to_vec();
        bytes.push(u8::try_from(faults.len()).unwrap_or(0));
        for fault in faults {
            bytes.extend_from_slice(fault);
        }
        bytes.push(how);
        Self(bytes)
    }

    fn event(mut self, event: E, details: &[u8]) -> Self {
        self.0.push(event as u8);
        self.0.extend_from_slice(details);
        self
    }

    /// A command of the first queue: kind, first block, blocks, memory, detail.
    fn submit(self, details: [u8; 5]) -> Self {
        let [kind, lba, blocks, how, detail] = details;
        self.event(E::Submit, &[0, kind, lba, blocks, how, detail])
    }

    /// The commands so far are rung for, carried out and collected.
    fn round(self) -> Self {
        self.event(E::Commit, &[0])
            .event(E::Step, &[15])
            .event(E::Step, &[15])
            .event(E::Poll, &[0])
    }
}

const READ: u8 = 0;
const WRITE: u8 = 5;

/// A fault: what, which commands, how many before, a number, and a value.
fn fault(what: u8, which: u8, skip: u8, number: u8, value: u32) -> Vec<u8> {
    let mut bytes = vec![what, which, skip, number];
    bytes.extend_from_slice(&value.to_le_bytes());
    bytes
}

/// All of them, by name.
pub(super) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let plain = || Script::new([0, 0, 0], &[], 8);
    let mut io = plain();
    for kind in 0..16 {
        io = io.submit([kind, 3, 7, 0, 1]).round();
    }
    // Every kind of memory, with and without SGLs.
    let mut memory = plain();
    let mut sgls = Script::new([1 << 2, 0, 1], &[], 8);
    for how in 0..32 {
        memory = memory
            .submit([WRITE, 0, 17, how, 9])
            .submit([READ, 0, 17, how, 9])
            .round();
        sgls = sgls.submit([READ, 0, 17, how, 9]).round();
    }
    let split = Script::new([0, 0, 0x20], &[], 4)
        .submit([WRITE, 0, 0xff, 0, 0])
        .submit([READ, 128, 0xbf, 3, 99])
        .round()
        .round()
        .round()
        .round();
    // Lost commands are aborted, then the controller is reset; the queue is opened again.
    let lost = plain()
        .event(E::Fault, &fault(0, 0x80, 1, 7, 0))
        .submit([READ, 0, 0, 0, 0])
        .submit([READ, 8, 0, 0, 0])
        .submit([WRITE, 16, 0, 0, 0])
        .round()
        .event(E::Time, &[120])
        .event(E::Poll, &[0])
        .event(E::Time, &[120])
        .event(E::Poll, &[0])
        .event(E::Open, &[3])
        .submit([READ, 0, 0, 0, 0])
        .round();
    let reset = plain()
        .event(E::Open, &[0x42])
        .submit([READ, 0, 31, 0, 0])
        .event(E::Submit, &[1, WRITE, 0, 3, 0, 0])
        .event(E::Commit, &[0])
        .event(E::Commit, &[1])
        .event(E::Sleep, &[1])
        .event(E::Step, &[0])
        .event(E::Reset, &[])
        .event(E::Poll, &[1])
        .event(E::Commit, &[0])
        .event(E::Open, &[1])
        .submit([READ, 0, 31, 0, 0])
        .round();
    let removed = plain()
        .submit([READ, 0, 31, 0, 0])
        .submit([WRITE, 0, 31, 3, 5])
        .event(E::Commit, &[0])
        .event(E::Remove, &[])
        .event(E::Poll, &[0])
        .event(E::Time, &[1])
        .event(E::Poll, &[0]);
    let dropped = plain()
        .submit([READ, 0, 31, 0, 0])
        .submit([READ, 0, 31, 4, 0])
        .event(E::Hold, &[0])
        .event(E::Hold, &[0])
        .event(E::Release, &[0])
        .event(E::Reject, &[0])
        .event(E::Commit, &[0])
        .event(E::Drop, &[0])
        .event(E::Open, &[2])
        .event(E::TakeBack, &[0]);
    // Memory that is pinned, borrowed and mapped again; maps that fail.
    let mapped = Script::new([0, 0, 2 << 2], &[], 8)
        .submit([READ, 0, 7, 0, 0])
        .round()
        .event(E::Pin, &[])
        .submit([READ, 0, 7, 0, 0])
        .round()
        .event(E::TakeBack, &[0])
        .event(E::Unpin, &[])
        .event(E::RefuseMaps, &[2])
        .submit([READ, 0, 7, 0, 0])
        .submit([READ, 0, 7, 0, 0])
        .round()
        .event(E::TakeBack, &[0])
        .event(E::TakeBack, &[0]);
    let buffer = Script::new([0, 1 << 5, 0], &[], 0x85)
        .event(E::Admin, &[4])
        .submit([READ, 0, 7, 0, 0])
        .round()
        .event(E::Subsystem, &[])
        .event(E::Poll, &[0])
        .event(E::Time, &[9])
        .event(E::Open, &[0x85])
        .submit([READ, 0, 7, 0, 0])
        .round();
    let events = plain()
        .event(E::Announce, &[])
        .event(E::Step, &[9])
        .event(E::Time, &[1])
        .event(E::Admin, &[3])
        .event(E::Admin, &[2])
        .event(E::Admin, &[1])
        .event(E::Admin, &[0])
        .event(E::Fail, &[])
        .event(E::Time, &[1])
        .event(E::Shutdown, &[]);
    let wrong = |what, value| {
        plain()
            .event(E::Fault, &fault(what, 0, 1, 3, value))
            .submit([READ, 0, 7, 0, 0])
            .submit([READ, 8, 7, 0, 0])
            .submit([WRITE, 16, 7, 0, 0])
            .round()
            .round()
            .event(E::Time, &[1])
            .event(E::Poll, &[0])
            .event(E::Open, &[3])
            .submit([READ, 0, 7, 0, 0])
            .round()
    };
    // The second completion comes when another command has the slot.
    // Memory that was used before makes them plain.
    let mut late = plain().event(E::Fault, &fault(4, 0, 3, 40, 0));
    for _ in 0..3 {
        late = late.submit([READ, 0, 7, 0x20, 0]).round();
    }
    let late = late
        .submit([READ, 0, 7, 0x20, 0])
        .event(E::Commit, &[0])
        .event(E::Step, &[15])
        .event(E::Poll, &[0])
        .submit([READ, 8, 7, 0x20, 0])
        .event(E::Step, &[15])
        .event(E::Step, &[15])
        .event(E::Poll, &[0]);
    // A queue of one command, whose controller does not say that it fetched anything.
    let behind = Script::new([0, 0, 0], &[&fault(7, 0x80, 0, 7, 0)], 0)
        .submit([READ, 0, 7, 0, 0])
        .round()
        .submit([READ, 8, 7, 0, 0])
        .round();
    // The same memory again and again, in one page, in two, and unaligned.
    let mut again = plain();
    for kind in [READ, WRITE, READ] {
        for (blocks, how) in [
            (7, 0x20),
            (0, 0x30),
            (15, 0x20),
            (7, 0x28),
            (15, 0x28),
            (7, 0x2c),
            (3, 0x21),
        ] {
            again = again
                .submit([kind, 0, blocks, how, 0])
                .round()
                .submit([kind, 0, blocks, how, 0])
                .round();
        }
    }
    let mut raw = fault(15, 0, 0, 0, 1 << 16);
    raw.extend_from_slice(&[0; 4]);
    raw.extend_from_slice(&[1, 0, 1, 0]);
    let register = |at: u8, value| {
        let value = fault(28, 0x80, 0, at / 4, value);
        Script::new([0, 0, 0], &[&value], 3)
            .submit([READ, 0, 7, 0, 0])
            .round()
            .event(E::Reset, &[])
            .event(E::Poll, &[0])
    };
    let garbage = |opcode: u8, skip| {
        let value = fault(13, 5, skip, opcode, 77);
        Script::new([0, 0, 0], &[&value], 3)
            .submit([READ, 0, 7, 0, 0])
            .round()
            .event(E::Admin, &[1])
    };
    vec![
        ("io", io.0),
        ("memory", memory.0),
        ("memory-with-sgls", sgls.0),
        ("split", split.0),
        ("lost", lost.0),
        ("reset", reset.0),
        ("removed", removed.0),
        ("dropped", dropped.0),
        ("mapped", mapped.0),
        ("controller-memory", buffer.0),
        ("events", events.0),
        ("memory-again", again.0),
        ("head-behind", behind.0),
        ("duplicate", wrong(4, 0).0),
        ("late-duplicate", late.0),
        ("wrong-phase", wrong(5, 0).0),
        ("wrong-identifier", wrong(6, 0x2000).0),
        ("wrong-head", wrong(7, 500).0),
        ("wrong-queue", wrong(8, 9).0),
        ("unsolicited", wrong(23, 1).0),
        ("fatal", wrong(20, 0).0),
        (
            "raw",
            Script::new([0, 0, 0], &[&raw], 3)
                .submit([READ, 0, 0, 0, 0])
                .round()
                .0,
        ),
        ("register-cap", register(0, 0x0f00_03ff).0),
        ("register-cap-high", register(4, 0x0010_0020).0),
        ("register-cc", register(0x14, 0).0),
        ("register-csts", register(0x1c, u32::MAX).0),
        ("register-crto", register(0x68, u32::MAX).0),
        ("garbage-controller", garbage(6, 0).0),
        ("garbage-namespace", garbage(6, 2).0),
    ]
}
