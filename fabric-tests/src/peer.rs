//! [`RawHost`]: a host moved by hand, which can say anything. It knows just enough to get a queue connected, and keeps nothing
//! of what it is told to keep.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use homi_spec::admin;
use homi_spec::command::{Cqe, Psdt};
use homi_spec::controller::Cc;
use homi_spec::fabrics::{
    CNTLID_DYNAMIC, ConnectCommand, ConnectData, Property, PropertyGet, PropertySet, PropertySize,
};
use homi_spec::tcp::{FatalError, IcResp, PduType};
use homi_spec::{Nqn, Sgl, Sqe, Status};
use zerocopy::IntoBytes;

use crate::harness::DEADLINE;
use crate::pair::host_id;
use crate::pipe::Pipe;
use crate::settings::{DATA, HOST};
use crate::units::{Splitter, Unit, Units, ic_req};

/// What carries the bytes of a [`RawHost`].
pub trait Wire: std::fmt::Debug {
    /// Sends bytes, or as many of them as the other end takes before it closes.
    fn send(&mut self, bytes: &[u8]);
    /// Waits for bytes; `None` when the other end closed.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// Whatever is there now, without waiting. Empty if nothing is.
    fn peek(&mut self) -> Vec<u8>;
    /// Closes after what was sent.
    fn close(&mut self);
    /// Breaks the connection so that the other end sees a reset where there is such a thing.
    fn reset(&mut self) {
        self.close();
    }
}

/// A connection in memory.
#[must_use]
pub fn memory_wire(pipe: Pipe) -> Box<dyn Wire> {
    Box::new(pipe)
}

impl Wire for Pipe {
    fn send(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        // Waiting is letting time pass.
        for _ in 0..36_000 {
            match self.read(usize::MAX) {
                Some(bytes) if bytes.is_empty() => self.world().pass(Duration::from_millis(100)),
                received => return received,
            }
        }
        panic!("nothing came within an hour of virtual time");
    }

    fn peek(&mut self) -> Vec<u8> {
        self.read(usize::MAX).unwrap_or_default()
    }

    fn close(&mut self) {
        self.hang_up();
    }
}

/// A connection to this address.
#[must_use]
pub fn socket_wire(address: SocketAddr) -> Box<dyn Wire> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    Box::new(stream)
}

impl Wire for TcpStream {
    fn send(&mut self, bytes: &[u8]) {
        match self.write_all(bytes) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => panic!("cannot send: {error}"),
        }
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 64 << 10];
        match self.read(&mut bytes) {
            Ok(0) => None,
            Ok(len) => {
                bytes.truncate(len);
                Some(bytes)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
                ) =>
            {
                None
            }
            Err(error) => panic!("nothing came within {DEADLINE:?}: {error}"),
        }
    }

    fn peek(&mut self) -> Vec<u8> {
        self.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; 64 << 10];
        let len = self.read(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        self.set_nonblocking(false).unwrap();
        bytes
    }

    fn close(&mut self) {
        // The other end may have been faster.
        let _ = self.shutdown(Shutdown::Both);
    }

    fn reset(&mut self) {
        // Closing with nothing to linger for sends a reset, but not before the last handle is dropped.
        let abrupt = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(self, nix::sys::socket::sockopt::Linger, &abrupt).unwrap();
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a terminate request.
    Terminated(FatalError, u32),
    /// Without a word.
    Closed,
}

/// A host moved by hand.
#[derive(Debug)]
pub struct RawHost {
    wire: Box<dyn Wire>,
    units: Units,
    splitter: Splitter,
    cid: u16,
}

impl RawHost {
    /// A host on a connection on which nothing has been said.
    #[must_use]
    pub fn new(wire: Box<dyn Wire>) -> Self {
        Self {
            wire,
            units: Units::PLAIN,
            splitter: Splitter::default(),
            cid: 0x100,
        }
    }

    /// The digests in use.
    #[must_use]
    pub fn units(&self) -> Units {
        self.units
    }

    /// Uses these digests from now on, after an initialisation by hand.
    pub fn set_units(&mut self, units: Units) {
        self.units = units;
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.wire.send(bytes);
    }

    /// Closes the connection.
    pub fn close(mut self) {
        self.wire.close();
    }

    /// Breaks the connection.
    pub fn reset(mut self) {
        self.wire.reset();
    }

    /// The next unit; `None` when the target closed.
    pub fn next_unit(&mut self) -> Option<Unit> {
        loop {
            if let Some(bytes) = self.splitter.next_unit() {
                let unit = self.units.read(&bytes);
                return Some(unit.unwrap_or_else(|problem| panic!("the target sent {problem}")));
            }
            let bytes = self.wire.receive()?;
            self.splitter.push(&bytes);
        }
    }

    /// The next unit, which must come.
    pub fn unit(&mut self) -> Unit {
        self.next_unit()
            .unwrap_or_else(|| panic!("the target closed the connection"))
    }

    /// The next unit, which must be of this type.
    pub fn expect(&mut self, pdu: PduType) -> Unit {
        let unit = self.unit();
        assert_eq!(unit.pdu, pdu, "{unit:?}");
        unit
    }

    /// Nothing has come that was not read yet.
    pub fn expect_silence(&mut self) {
        let bytes = self.wire.peek();
        assert!(bytes.is_empty(), "{bytes:02x?}");
        assert!(self.splitter.rest().is_empty());
    }

    /// Reads until the target closes, and tells how it did. Answers to earlier commands are passed over.
    pub fn end(&mut self) -> End {
        let mut end = End::Closed;
        while let Some(unit) = self.next_unit() {
            if unit.pdu == PduType::C2H_TERM_REQ {
                let (status, information) = unit.terminate();
                end = End::Terminated(status, information);
            }
        }
        end
    }

    /// Initialises the connection.
    pub fn initialize(&mut self, units: Units) -> IcResp {
        self.send(&ic_req(0, units.dgst(), 0));
        let response = self.expect(PduType::IC_RESP).ic_resp();
        assert_eq!(response.dgst, units.dgst());
        self.units = units;
        response
    }

    /// A command id that was not used for a while.
    pub fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// Sends a command with its data in the capsule, or without data. Sets the id, and the descriptor if there is data.
    pub fn submit(&mut self, mut sqe: Sqe, data: &[u8]) -> u16 {
        let cid = self.next_cid();
        sqe.cid = cid.into();
        sqe.set_psdt(Psdt::SGL);
        if !data.is_empty() {
            sqe.set_sgl(Sgl::in_capsule(0, u32::try_from(data.len()).unwrap()));
        }
        let unit = self.units.capsule(sqe, data);
        self.send(&unit);
        cid
    }

    /// Sends a command whose data goes outside the capsule.
    pub fn submit_for(&mut self, mut sqe: Sqe, len: u32) -> u16 {
        sqe.set_sgl(Sgl::transport(len));
        self.submit(sqe, &[])
    }

    /// Sends a command and returns the response capsule, which must be the next unit.
    pub fn execute(&mut self, sqe: Sqe, data: &[u8]) -> Cqe {
        let cid = self.submit(sqe, data);
        self.response(cid)
    }

    /// The response to a command, which must be the next unit.
    pub fn response(&mut self, cid: u16) -> Cqe {
        let cqe = self.expect(PduType::CAPSULE_RESP).cqe();
        assert_eq!(cqe.cid.get(), cid);
        cqe
    }

    /// Connects the admin queue as the standard host to the standard subsystem. Returns the controller's id.
    pub fn connect_admin(&mut self, kato_ms: u32) -> u16 {
        let command = ConnectCommand {
            sqsize_z: 31,
            kato_ms,
            ..ConnectCommand::default()
        };
        let cqe = self.connect(command, &connect_data(CNTLID_DYNAMIC));
        assert_eq!(cqe.status(), Status::SUCCESS);
        u16::try_from(cqe.dw0.get() & 0xffff).unwrap()
    }

    /// Connects an I/O queue of a controller, with so many entries.
    pub fn connect_io(&mut self, controller: u16, qid: u16, entries: u16) {
        let command = ConnectCommand {
            qid,
            sqsize_z: entries - 1,
            ..ConnectCommand::default()
        };
        let cqe = self.connect(command, &connect_data(controller));
        assert_eq!(cqe.status(), Status::SUCCESS);
    }

    /// Sends a Connect and returns its completion.
    pub fn connect(&mut self, command: ConnectCommand, data: &ConnectData) -> Cqe {
        self.execute(command.to_sqe(0, Sgl::default()), data.as_bytes())
    }

    /// Enables the controller.
    pub fn enable(&mut self) {
        let cc = Cc::default().with_standard_entry_sizes().with_enabled(true);
        assert_eq!(self.set_cc(cc), Status::SUCCESS);
    }

    /// Writes CC.
    pub fn set_cc(&mut self, cc: Cc) -> Status {
        let set = PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: cc.0.into(),
        };
        self.execute(set.to_sqe(0), &[]).status()
    }

    /// Reads CSTS.
    pub fn csts(&mut self) -> u32 {
        let get = PropertyGet {
            size: PropertySize::Four,
            property: Property::CSTS,
        };
        let cqe = self.execute(get.to_sqe(0), &[]);
        assert_eq!(cqe.status(), Status::SUCCESS);
        cqe.dw0.get()
    }

    /// Sends a Keep Alive.
    pub fn keep_alive(&mut self) -> Status {
        self.execute(admin::keep_alive(0), &[]).status()
    }
}

/// What the standard host sends with a Connect to the standard subsystem.
#[must_use]
pub fn connect_data(controller: u16) -> ConnectData {
    let name = |name: &str| Nqn::new(name).unwrap();
    ConnectData::new(host_id(HOST), controller, &name(DATA), &name(HOST))
}
