//! A scripted target over loopback TCP: enough of a controller to connect to, with a script that may answer any command differently.
//!
//! It uses blocking sockets and a thread per connection, and shares no code with the real target: what it gets wrong, it gets
//! wrong on purpose.
#![allow(
    clippy::unwrap_used,
    dead_code,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    reason = "every test file uses a part of it; registers fit their fields"
)]

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use homi_spec::command::{AdminOpcode, NvmOpcode, TransferDirection};
use homi_spec::controller::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Version};
use homi_spec::fabrics::{ConnectCommand, Property, PropertyGet, PropertySet};
use homi_spec::feature::{FeatureId, GetFeatures, SetFeatures};
use homi_spec::identify::{
    Cns, ControllerType, Identify, IdentifyController, IdentifyNamespace, LbaFormat, NamespaceList, oaes,
    oncs, sgls,
};
use homi_spec::log::GetLogPage;
use homi_spec::tcp::{C2HData, CapsuleCmd, CapsuleResp, H2CData, IcResp, PduHeader, PduType, R2t, flags};
use homi_spec::{Cqe, Nqn, Sqe, Status, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const SUBSYSTEM: &str = "nqn.2024-01.org.example:fake";
pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: usize = 4096;

/// What a script does with a command.
pub(crate) enum Verdict {
    /// Answer it as a good controller would.
    Default,
    /// It was dealt with (or is to be ignored).
    Done,
    /// Close the connection.
    Close,
}

type Script = dyn Fn(&mut Connection, &Sqe) -> Verdict + Send + Sync;
type Greeting = dyn Fn(&mut Connection) -> Verdict + Send + Sync;

/// What a target does; change before serving.
pub(crate) struct Behaviour {
    pub(crate) script: Box<Script>,
    /// Runs instead of answering the initialisation request, which was read.
    pub(crate) greeting: Box<Greeting>,
    pub(crate) page: IdentifyController,
    pub(crate) namespaces: Vec<u32>,
    pub(crate) block_shift: u8,
    pub(crate) discovery_log: Vec<u8>,
    /// Send data of reads with the success flag.
    pub(crate) success_flag: bool,
    pub max_h2c_data: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        let mut page = IdentifyController {
            cntlid: U16::new(1),
            ..IdentifyController::default()
        };
        page.cntrltype = ControllerType::IO;
        page.ver = U32::new(Version::V2_0.0);
        page.sgls = U32::new(sgls::SUPPORTED | sgls::OFFSET_ADDRESS | sgls::TRANSPORT);
        page.ioccsz = U32::new(4 + 4096 / 16);
        page.iorcsz = U32::new(1);
        page.maxcmd = U16::new(256);
        page.mdts = 8;
        page.nn = U32::new(16);
        page.kas = U16::new(1);
        page.aerl_z = 1;
        page.acl_z = 3;
        page.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE);
        page.oncs = U16::new(oncs::COMPARE | oncs::WRITE_ZEROES | oncs::DATASET_MANAGEMENT);
        page.subnqn = Nqn::new(SUBSYSTEM).unwrap().to_field();
        Self {
            script: Box::new(|_, _| Verdict::Default),
            greeting: Box::new(|_| Verdict::Default),
            page,
            namespaces: vec![1],
            block_shift: 9,
            discovery_log: Vec::new(),
            success_flag: true,
            max_h2c_data: 65536,
        }
    }
}

/// What all connections of a target share.
pub(crate) struct World {
    pub(crate) behaviour: Behaviour,
    pub(crate) memory: Mutex<Vec<u8>>,
    pub(crate) configuration: AtomicU32,
    pub(crate) shut_down: AtomicBool,
    pub(crate) connections: AtomicU32,
    /// Commands seen, by queue and opcode.
    pub(crate) seen: Mutex<HashMap<(u16, u8), u32>>,
    pub(crate) host_nqns: Mutex<Vec<String>>,
    pub(crate) streams: Mutex<Vec<TcpStream>>,
}

impl World {
    pub(crate) fn seen(&self, qid: u16, opcode: u8) -> u32 {
        self.seen
            .lock()
            .unwrap()
            .get(&(qid, opcode))
            .copied()
            .unwrap_or(0)
    }
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) world: Arc<World>,
}

impl Fake {
    pub(crate) fn serve(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let memory = (0..BLOCKS * BLOCK)
            .map(|at| (at / BLOCK % 251) as u8 ^ (at % 13) as u8)
            .collect();
        let world = Arc::new(World {
            behaviour,
            memory: Mutex::new(memory),
            configuration: AtomicU32::new(0),
            shut_down: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            seen: Mutex::default(),
            host_nqns: Mutex::default(),
            streams: Mutex::default(),
        });
        let shared = Arc::clone(&world);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let world = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut connection = Connection {
                        stream,
                        world,
                        qid: 0,
                        pending_events: Vec::new(),
                        held_back: false,
                        backlog: VecDeque::new(),
                    };
                    // Ends with the host closing, or with what a script does to the stream.
                    let _ = connection.run();
                    let _ = connection.stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, world }
    }

    pub(crate) fn good() -> Self {
        Self::serve(Behaviour::default())
    }

    pub(crate) fn script(script: impl Fn(&mut Connection, &Sqe) -> Verdict + Send + Sync + 'static) -> Self {
        Self::serve(Behaviour {
            script: Box::new(script),
            ..Behaviour::default()
        })
    }

    pub(crate) fn uri(&self) -> String {
        format!("nvme+tcp://{}/{SUBSYSTEM}", self.address)
    }

    /// Ends every connection as a dying machine does.
    pub(crate) fn drop_all(&self) {
        for stream in self.world.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) world: Arc<World>,
    pub(crate) qid: u16,
    /// Ids of Asynchronous Event Requests held.
    pub(crate) pending_events: Vec<u16>,
    /// For scripts.
    pub(crate) held_back: bool,
    /// Capsules that came while the data of an earlier one was waited for.
    backlog: VecDeque<(PduHeader, Vec<u8>)>,
}

impl Connection {
    fn run(&mut self) -> io::Result<()> {
        let mut request = [0; 128];
        self.stream.read_exact(&mut request)?;
        let world = Arc::clone(&self.world);
        match (world.behaviour.greeting)(self) {
            Verdict::Default => {
                self.stream
                    .write_all(IcResp::new(0, 0, world.behaviour.max_h2c_data).as_bytes())?;
            }
            Verdict::Done => {}
            Verdict::Close => return Ok(()),
        }
        loop {
            let (header, rest) = match self.backlog.pop_front() {
                Some(capsule) => capsule,
                None => self.read_pdu()?,
            };
            if header.pdu_type != PduType::CAPSULE_CMD {
                return Ok(());
            }
            let (sqe, _) = Sqe::read_from_prefix(&rest).unwrap();
            let data = if header.pdo == 0 {
                &[][..]
            } else {
                &rest[usize::from(header.pdo) - 8..]
            };
            *world
                .seen
                .lock()
                .unwrap()
                .entry((self.qid, sqe.opcode))
                .or_default() += 1;
            match (world.behaviour.script)(self, &sqe) {
                Verdict::Default => self.execute(&sqe, data)?,
                Verdict::Done => {}
                Verdict::Close => return Ok(()),
            }
        }
    }

    /// One unit: its common header, and the rest of it.
    pub(crate) fn read_pdu(&mut self) -> io::Result<(PduHeader, Vec<u8>)> {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header)?;
        let header = PduHeader::read_from_bytes(&header).unwrap();
        let mut rest = vec![0; header.plen.get() as usize - 8];
        self.stream.read_exact(&mut rest)?;
        Ok((header, rest))
    }

    /// A response with this status and these result dwords.
    pub(crate) fn respond(&mut self, cid: u16, status: Status, dw0: u32, dw1: u32) -> io::Result<()> {
        let mut cqe = Cqe::new(cid);
        cqe.dw0 = U32::new(dw0);
        cqe.dw1 = U32::new(dw1);
        cqe.set_status(status);
        let unit = CapsuleResp {
            header: PduHeader::new(PduType::CAPSULE_RESP, 0, 0, 24),
            cqe,
        };
        self.stream.write_all(unit.as_bytes())
    }

    /// A data unit with any offset and flags.
    pub(crate) fn send_data(&mut self, cid: u16, offset: u32, data: &[u8], flags: u8) -> io::Result<()> {
        let len = u32::try_from(data.len()).unwrap();
        let unit = C2HData {
            header: PduHeader::new(PduType::C2H_DATA, flags, 24, 24 + len),
            cccid: U16::new(cid),
            datao: U32::new(offset),
            datal: U32::new(len),
            ..C2HData::default()
        };
        let mut bytes = unit.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes)
    }

    /// Asks for data.
    pub(crate) fn send_r2t(&mut self, cid: u16, tag: u16, offset: u32, len: u32) -> io::Result<()> {
        let unit = R2t {
            header: PduHeader::new(PduType::R2T, 0, 0, 24),
            cccid: U16::new(cid),
            ttag: U16::new(tag),
            r2to: U32::new(offset),
            r2tl: U32::new(len),
            ..R2t::default()
        };
        self.stream.write_all(unit.as_bytes())
    }

    /// The whole of a read.
    pub(crate) fn give(&mut self, cid: u16, data: &[u8]) -> io::Result<()> {
        if self.world.behaviour.success_flag {
            self.send_data(cid, 0, data, flags::LAST_PDU | flags::SUCCESS)
        } else {
            self.send_data(cid, 0, data, flags::LAST_PDU)?;
            self.respond(cid, Status::SUCCESS, 0, 0)
        }
    }

    /// The data of a write: from the capsule, or asked for.
    pub(crate) fn take(&mut self, sqe: &Sqe, in_capsule: &[u8], len: usize) -> io::Result<Vec<u8>> {
        if in_capsule.len() == len {
            return Ok(in_capsule.to_vec());
        }
        self.send_r2t(sqe.cid.get(), 7, 0, u32::try_from(len).unwrap())?;
        let mut data = Vec::new();
        while data.len() < len {
            let (header, rest) = self.read_pdu()?;
            if header.pdu_type == PduType::CAPSULE_CMD {
                // One that was on its way already.
                self.backlog.push_back((header, rest));
                continue;
            }
            assert_eq!(header.pdu_type, PduType::H2C_DATA);
            assert!(header.plen.get() - 24 <= self.world.behaviour.max_h2c_data);
            let mut whole = header.as_bytes().to_vec();
            whole.extend_from_slice(&rest);
            let (unit, _) = H2CData::read_from_prefix(&whole).unwrap();
            assert_eq!((unit.cccid, unit.ttag.get()), (sqe.cid, 7));
            assert_eq!(unit.datao.get() as usize, data.len());
            data.extend_from_slice(&rest[16..]);
            assert_eq!(header.has(flags::LAST_PDU), data.len() == len);
        }
        Ok(data)
    }

    /// Answers as a good controller.
    pub(crate) fn execute(&mut self, sqe: &Sqe, data: &[u8]) -> io::Result<()> {
        let cid = sqe.cid.get();
        if let Some(connect) = ConnectCommand::from_sqe(sqe) {
            self.qid = connect.qid;
            let name = Nqn::from_field_lenient(data[512..768].try_into().unwrap()).unwrap();
            self.world.host_nqns.lock().unwrap().push(name.to_string());
            return self.respond(cid, Status::SUCCESS, 1, 0);
        }
        if self.qid == 0 {
            self.execute_admin(sqe)
        } else {
            self.execute_io(sqe, data)
        }
    }

    fn execute_admin(&mut self, sqe: &Sqe) -> io::Result<()> {
        let cid = sqe.cid.get();
        let world = Arc::clone(&self.world);
        let behaviour = &world.behaviour;
        if let Some(get) = PropertyGet::from_sqe(sqe) {
            let configuration = Cc(world.configuration.load(Ordering::SeqCst));
            let value = match get.property {
                Property::CAP => {
                    Cap::default()
                        .with_mqes_z(511)
                        .with_timeout_500ms(2)
                        .with_command_sets(1)
                        .0
                }
                Property::VS => Version::V2_0.0.into(),
                Property::CSTS => {
                    let done = configuration.shutdown() == ShutdownNotification::Normal;
                    let state = if done {
                        ShutdownStatus::Complete
                    } else {
                        ShutdownStatus::Normal
                    };
                    Csts::default()
                        .with_ready(configuration.enabled())
                        .with_shutdown(state)
                        .0
                        .into()
                }
                _ => configuration.0.into(),
            };
            return self.respond(cid, Status::SUCCESS, value as u32, (value >> 32) as u32);
        }
        if let Some(set) = PropertySet::from_sqe(sqe) {
            world.configuration.store(set.value as u32, Ordering::SeqCst);
            if Cc(set.value as u32).shutdown() == ShutdownNotification::Normal {
                world.shut_down.store(true, Ordering::SeqCst);
            }
            return self.respond(cid, Status::SUCCESS, 0, 0);
        }
        if let Some(identify) = Identify::from_sqe(sqe) {
            return match identify.cns {
                Cns::CONTROLLER => self.give(cid, behaviour.page.as_bytes()),
                Cns::ACTIVE_NAMESPACES => {
                    let list = behaviour
                        .namespaces
                        .iter()
                        .copied()
                        .filter(|nsid| *nsid > identify.nsid);
                    self.give(cid, NamespaceList::new(list).as_bytes())
                }
                Cns::NAMESPACE => {
                    let mut page = IdentifyNamespace::default();
                    if behaviour.namespaces.contains(&identify.nsid) {
                        page.nsze = U64::new(BLOCKS as u64);
                        page.lbaf[0] = LbaFormat {
                            lbads: behaviour.block_shift,
                            ..LbaFormat::default()
                        };
                    }
                    self.give(cid, page.as_bytes())
                }
                _ => self.respond(cid, Status::INVALID_FIELD, 0, 0),
            };
        }
        if let Some(set) = SetFeatures::from_sqe(sqe) {
            let dw0 = if set.fid == FeatureId::NUMBER_OF_QUEUES {
                0x0003_0003
            } else {
                0
            };
            return self.respond(cid, Status::SUCCESS, dw0, 0);
        }
        if GetFeatures::from_sqe(sqe).is_some() {
            return self.respond(cid, Status::INVALID_FIELD, 0, 0);
        }
        if let Some(page) = GetLogPage::from_sqe(sqe) {
            let mut bytes = behaviour.discovery_log.clone();
            let start = (page.lpo as usize).min(bytes.len());
            bytes.drain(..start);
            bytes.resize(page.length() as usize, 0);
            return self.give(cid, &bytes);
        }
        match sqe.admin_opcode() {
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                self.pending_events.push(cid);
                Ok(())
            }
            AdminOpcode::KEEP_ALIVE => self.respond(cid, Status::SUCCESS, 0, 0),
            AdminOpcode::ABORT => self.respond(cid, Status::SUCCESS, 1, 0),
            _ => self.respond(cid, Status::INVALID_OPCODE, 0, 0),
        }
    }

    fn execute_io(&mut self, sqe: &Sqe, data: &[u8]) -> io::Result<()> {
        let cid = sqe.cid.get();
        let start = sqe.lba() as usize * BLOCK;
        let len = sqe.blocks() as usize * BLOCK;
        let transfers = matches!(
            sqe.nvm_opcode(),
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE
        );
        if transfers && start + len > BLOCKS * BLOCK {
            return self.respond(cid, Status::LBA_OUT_OF_RANGE, 0, 0);
        }
        match sqe.nvm_opcode() {
            NvmOpcode::READ => {
                let bytes = self.world.memory.lock().unwrap()[start..start + len].to_vec();
                self.give(cid, &bytes)
            }
            NvmOpcode::WRITE => {
                let bytes = self.take(sqe, data, len)?;
                self.world.memory.lock().unwrap()[start..start + len].copy_from_slice(&bytes);
                self.respond(cid, Status::SUCCESS, 0, 0)
            }
            NvmOpcode::COMPARE => {
                let bytes = self.take(sqe, data, len)?;
                let same = self.world.memory.lock().unwrap()[start..start + len] == bytes;
                self.respond(
                    cid,
                    if same {
                        Status::SUCCESS
                    } else {
                        Status::COMPARE_FAILURE
                    },
                    0,
                    0,
                )
            }
            NvmOpcode::WRITE_ZEROES => {
                self.world.memory.lock().unwrap()[start..start + len].fill(0);
                self.respond(cid, Status::SUCCESS, 0, 0)
            }
            NvmOpcode::FLUSH | NvmOpcode::DATASET_MANAGEMENT => self.respond(cid, Status::SUCCESS, 0, 0),
            _ => self.respond(cid, Status::INVALID_OPCODE, 0, 0),
        }
    }
}

/// Which way a command moves data, for scripts.
pub(crate) fn is_read(sqe: &Sqe) -> bool {
    TransferDirection::of(sqe.opcode) == TransferDirection::ControllerToHost
}

/// A capsule's bytes, for scripts that send what only hosts may.
pub(crate) fn capsule(sqe: &Sqe) -> Vec<u8> {
    CapsuleCmd {
        header: PduHeader::new(PduType::CAPSULE_CMD, 0, 0, 72),
        sqe: *sqe,
    }
    .as_bytes()
    .to_vec()
}

/// Waits until something is so, at most five seconds.
pub(crate) fn eventually(mut so: impl FnMut() -> bool) -> bool {
    for _ in 0..500 {
        if so() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}
