//! Hosts that break the protocol, each named after what it broke elsewhere or after the rule that it breaks. What must hold
//! every time: the connection ends, or the command fails, with the reason; other connections notice nothing, and
//! nothing of the attack stays.

pub mod commands;
pub mod connect;
pub mod data;
pub mod endings;
pub mod headers;
pub mod initialization;
pub mod resources;

use homi_queue::Command;
use homi_spec::tcp::{FatalError, PduType};

use crate::bodies::{read, write, write_and_read};
use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::Issuer;
use crate::peer::{End, RawHost};
use crate::random::contents;
use crate::settings::ram;
use crate::units::Units;

const INVALID: FatalError = FatalError::INVALID_HEADER_FIELD;
const SEQUENCE: FatalError = FatalError::SEQUENCE_ERROR;

/// A target under attack, and a host that must not notice.
struct Field<H: Harness> {
    target: H,
    _host: H::Host,
    survivor: Issuer<<H::Host as Host>::Queue>,
    known: Vec<u8>,
    round: u64,
}

impl<H: Harness> Field<H> {
    fn new() -> Self {
        let mut target = H::start(&ram());
        let mut host = target.host(&HostOptions::default());
        let mut survivor = host.queue(8);
        let known = contents(42, 64 << 10);
        write(&mut survivor, (2, 4096), 1000, &known);
        Self {
            target,
            _host: host,
            survivor,
            known,
            round: 0,
        }
    }

    /// A connection on which nothing was said.
    fn stranger(&mut self) -> RawHost {
        self.target.raw()
    }

    /// An initialised connection.
    fn initialized(&mut self, units: Units) -> RawHost {
        let mut raw = self.target.raw();
        raw.initialize(units);
        raw
    }

    /// The admin queue of a controller that is enabled, and an I/O queue of 8 entries.
    fn connected(&mut self, units: Units) -> (RawHost, RawHost) {
        let mut admin = self.initialized(units);
        let controller = admin.connect_admin(0);
        admin.enable();
        let mut io = self.initialized(units);
        io.connect_io(controller, 1, 8);
        (admin, io)
    }

    /// The other connections work, what was written before is there, and no connection of the attacker is left.
    fn survives(&mut self) {
        self.round += 1;
        write_and_read(&mut self.survivor, (1, 512), 8, self.round);
        let large = contents(self.round, 256 << 10);
        write(&mut self.survivor, (2, 4096), 0, &large);
        assert_eq!(read(&mut self.survivor, (2, 4096), 0, 64), large);
        assert_eq!(read(&mut self.survivor, (2, 4096), 1000, 16), self.known);
        self.target.wait_for_connections(2);
    }

    /// The connection ends like this, and everybody else goes on.
    fn ends(&mut self, mut raw: RawHost, expected: End) {
        assert_eq!(raw.end(), expected);
        drop(raw);
        self.survives();
    }

    /// The same for an I/O queue: its admin queue goes after it, or the end would have two causes.
    fn queue_ends(&mut self, admin: RawHost, mut io: RawHost, expected: End) {
        assert_eq!(io.end(), expected);
        drop((admin, io));
        self.survives();
    }
}

fn terminated(status: FatalError, information: u32) -> End {
    End::Terminated(status, information)
}

/// A write of 64 KiB whose data is asked for: both queues, the command's id and its transfer tag.
fn waiting_write<H: Harness>(field: &mut Field<H>, units: Units) -> (RawHost, RawHost, u16, u16) {
    let (admin, mut io) = field.connected(units);
    // 64 KiB do not go in a capsule whatever the limit.
    let cid = io.submit_for(Command::write(2, 0, 16).0, 64 << 10);
    let (found, ttag, offset, len) = io.expect(PduType::R2T).r2t();
    assert_eq!((found, offset, len), (cid, 0, 64 << 10));
    (admin, io, cid, ttag)
}
