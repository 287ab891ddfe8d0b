//! [`Relay`]: stands between hosts and a real target, over TCP, and lets a meddler see every unit. A host that connects to it talks
//! to a hostile target.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use homi_reactor::socket::wait_readable;

use crate::meddler::{Act, Meddler, Side};
use crate::units::Splitter;

/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Makes the meddler of each connection, numbered from 0 in the order in which hosts connect; `None` passes everything on.
pub type Meddlers = Box<dyn FnMut(usize) -> Option<Meddler> + Send>;

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Relays connections to the target at this address.
    #[must_use]
    pub fn start(target: SocketAddr, mut meddlers: Meddlers) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || {
                let mut threads = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    wait_readable(&[listener.as_fd()], Some(LOOK)).unwrap();
                    let Ok((host, _)) = listener.accept() else {
                        continue;
                    };
                    let meddler = meddlers(threads.len());
                    let ended = Arc::clone(&ended);
                    threads.push(thread::spawn(move || {
                        let target = TcpStream::connect(target).unwrap();
                        Connection::new(host, target, meddler).run(&ended);
                    }));
                }
                for thread in threads {
                    thread.join().unwrap();
                }
            })
        };
        Self {
            address,
            ended,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("a relay panicked");
        }
    }
}

struct Connection {
    host: TcpStream,
    target: TcpStream,
    from_host: Splitter,
    from_target: Splitter,
    meddler: Option<Meddler>,
}

impl Connection {
    fn new(host: TcpStream, target: TcpStream, meddler: Option<Meddler>) -> Self {
        for stream in [&host, &target] {
            stream.set_nodelay(true).unwrap();
        }
        host.set_nonblocking(false).unwrap();
        Self {
            host,
            target,
            from_host: Splitter::default(),
            from_target: Splitter::default(),
            meddler,
        }
    }

    fn run(mut self, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            wait_readable(&[self.host.as_fd(), self.target.as_fd()], Some(LOOK)).unwrap();
            for side in [Side::Host, Side::Target] {
                if !self.relay(side) {
                    // The other end sees what this one did.
                    let _ = self.host.shutdown(Shutdown::Both);
                    let _ = self.target.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }

    /// Passes on what one side has sent; false when the connection is over.
    fn relay(&mut self, side: Side) -> bool {
        let (from, splitter) = match side {
            Side::Host => (&mut self.host, &mut self.from_host),
            Side::Target => (&mut self.target, &mut self.from_target),
        };
        let mut bytes = vec![0; 256 << 10];
        from.set_nonblocking(true).unwrap();
        let read = from.read(&mut bytes);
        from.set_nonblocking(false).unwrap();
        match read {
            Ok(0) => return false,
            Ok(len) => splitter.push(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        loop {
            let splitter = match side {
                Side::Host => &mut self.from_host,
                Side::Target => &mut self.from_target,
            };
            let Some(unit) = splitter.next_unit() else {
                return true;
            };
            let acts = match &mut self.meddler {
                Some(meddler) => meddler(side, &unit),
                None => vec![Act::Forward],
            };
            for act in acts {
                let sent = match (act, side) {
                    (Act::Forward, Side::Host) => self.target.write_all(&unit),
                    (Act::Forward, Side::Target) => self.host.write_all(&unit),
                    (Act::ToHost(bytes), _) => self.host.write_all(&bytes),
                    (Act::ToTarget(bytes), _) => self.target.write_all(&bytes),
                    (Act::HangUp, _) => return false,
                };
                if sent.is_err() {
                    return false;
                }
            }
        }
    }
}
