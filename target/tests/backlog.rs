//! A host that sends commands and never takes the answers is held back by its own connection.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use homi_spec::command::Psdt;
use homi_spec::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, Property, PropertySet, PropertySize};
use homi_spec::identify::Identify;
use homi_spec::tcp::{CapsuleCmd, IcReq, PduHeader, PduType};
use homi_spec::{Nqn, Sgl, Sqe};
use homi_target::{Config, Service};
use zerocopy::{FromBytes, IntoBytes};

const NQN: &str = "nqn.2026-01.org.example:a";
/// More than the system's socket buffers hold of commands, whose answers are fifty times as long.
const FLOOD: usize = 64 << 20;
const PAGE: usize = 4096;
/// Header of C2HData, and a response capsule.
const ANSWER: usize = 24 + PAGE + 24;

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let pdo = if data.is_empty() { 0 } else { 72 };
    let plen = u32::try_from(72 + data.len()).unwrap();
    let header = PduHeader::new(PduType::CAPSULE_CMD, 0, pdo, plen);
    let mut bytes = CapsuleCmd { header, sqe }.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

/// Reads one unit and returns its length.
fn unit(stream: &mut TcpStream) -> usize {
    let mut header = [0; 8];
    stream.read_exact(&mut header).unwrap();
    let header = PduHeader::read_from_bytes(&header).unwrap();
    let len = usize::try_from(header.plen.get()).unwrap();
    stream.read_exact(&mut vec![0; len - 8]).unwrap();
    len
}

fn held_back(events: &str) {
    let config = format!(
        "[node]\nshards = 1\nevents = \"{events}\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\nnamespace = [{{ nsid = 1, ram = \"1M\" }}]\n"
    );
    let config: Config = toml::from_str(&config).unwrap();
    let service = Service::start(&config).unwrap();
    let mut stream = TcpStream::connect(service.addresses()[0]).unwrap();
    stream.write_all(IcReq::new(0, 0, 0).as_bytes()).unwrap();
    assert_eq!(unit(&mut stream), 128);
    let connect = ConnectCommand {
        sqsize_z: 31,
        ..ConnectCommand::default()
    };
    let name = |name: &str| Nqn::new(name).unwrap();
    let host = name("nqn.2026-01.org.example:host");
    let data = ConnectData::new([7; 16], CNTLID_DYNAMIC, &name(NQN), &host);
    let sqe = connect.to_sqe(0, Sgl::in_capsule(0, 1024));
    stream.write_all(&capsule(sqe, data.as_bytes())).unwrap();
    unit(&mut stream);
    let enable = PropertySet {
        size: PropertySize::Four,
        property: Property::CC,
        value: 0x0046_0001,
    };
    stream.write_all(&capsule(enable.to_sqe(1), &[])).unwrap();
    unit(&mut stream);

    let mut sqe = Identify::controller().to_sqe(2);
    sqe.set_psdt(Psdt::SGL);
    sqe.set_sgl(Sgl::transport(4096));
    let batch = capsule(sqe, &[]).repeat(512);
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut progress = Instant::now();
    while sent < FLOOD && progress.elapsed() < Duration::from_millis(700) {
        match stream.write(&batch[sent % batch.len()..]) {
            Ok(count) => {
                sent += count;
                progress = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        sent < FLOOD,
        "the target took {sent} bytes of commands whose answers nobody took"
    );

    // Whoever takes the answers after all gets each of them.
    let commands = sent / 72;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut left = commands * ANSWER;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let room = left.min(buffer.len());
        let count = stream.read(&mut buffer[..room]).unwrap();
        assert!(count > 0, "the target closed the connection");
        left -= count;
    }
    assert_eq!(service.connections(), 1);
}

#[test]
fn a_host_that_takes_no_answers_is_held_back_with_io_uring_or_what_there_is() {
    held_back("auto");
}

#[test]
fn a_host_that_takes_no_answers_is_held_back_with_readiness_events() {
    held_back("readiness");
}
