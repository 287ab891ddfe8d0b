//! The bound that a transport over TCP has: two threads that exchange the same bytes through a loopback connection without any
//! protocol, as fast as a simple program can.
//!
//! A read is 72 bytes one way and 24 and the data the other, a write is 72 and the data one way and 24 the other: command capsule,
//! header of C2HData (or a response), data. Nothing is looked at but the number of bytes. Both ends poll with non-blocking calls;
//! one call receives up to [`ROOM`] bytes, one vectored call sends a batch. How many requests the client collects before it sends them
//! makes much of the difference, so [`exchange`] is told, and who wants the bound tries several ([`BATCHES`]).
//!
//! Not here: latency, several connections, and what a payload costs whoever uses it.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use homi_reactor::socket::{self, Congestion};

/// Bytes that one call receives at most.
pub const ROOM: usize = 256 << 10;
/// Bytes of a command capsule without data.
const COMMAND: usize = 72;
/// Bytes of a header before data, or of a response.
const ANSWER: usize = 24;
/// The kernel's limit of vectors in one call.
const VECTORS: usize = 1024;
/// Exchanges between two looks at the clock.
const EXCHANGES_PER_LOOK: u32 = 16;

/// Parts of the depth that a client collects before it sends, to be tried: 1 of so many.
pub const BATCHES: [usize; 4] = [1, 2, 4, 16];

/// What is exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Whether the data goes with the request.
    pub write: bool,
    /// Bytes of data of one exchange.
    pub io_bytes: usize,
    /// Exchanges under way.
    pub depth: usize,
}

impl Shape {
    fn request(&self) -> usize {
        COMMAND + if self.write { self.io_bytes } else { 0 }
    }

    fn reply(&self) -> usize {
        ANSWER + if self.write { 0 } else { self.io_bytes }
    }
}

/// What came of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Exchanges completed.
    pub ios: u64,
    /// In which time.
    pub elapsed: Duration,
}

impl Rate {
    /// Exchanges per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let ios = self.ios as f64;
        ios / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Messages of one length, ready to be sent in batches: a header and the same data again and again.
struct Messages {
    header: Vec<u8>,
    data: Vec<u8>,
    /// Bytes of the batch under way that are not sent.
    left: usize,
}

impl Messages {
    fn new(header: usize, data: usize) -> Self {
        Self {
            header: vec![0x11; header],
            data: vec![0x22; data],
            left: 0,
        }
    }

    fn len(&self) -> usize {
        self.header.len() + self.data.len()
    }

    fn push(&mut self, count: usize) {
        self.left += count * self.len();
    }

    /// Sends what can be sent.
    fn send(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        while self.left > 0 {
            let mut vectors = [IoSlice::new(&[]); VECTORS];
            let mut used = 0;
            // A batch that was cut goes on in the middle of a message.
            let mut skip = (self.len() - self.left % self.len()) % self.len();
            let mut room = self.left;
            for (place, number) in vectors.iter_mut().zip(0..) {
                if room == 0 {
                    break;
                }
                let part = if number % 2 == 0 { &self.header } else { &self.data };
                let part = part.get(skip.min(part.len())..).unwrap_or(&[]);
                let whole = if number % 2 == 0 {
                    self.header.len()
                } else {
                    self.data.len()
                };
                skip = skip.saturating_sub(whole);
                *place = IoSlice::new(part);
                room -= part.len();
                used += 1;
            }
            match stream.write_vectored(vectors.get(..used).unwrap_or(&[])) {
                Ok(sent) => self.left -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Counts whole messages in a stream of bytes.
struct Counter {
    len: usize,
    partial: usize,
    room: Vec<u8>,
}

impl Counter {
    fn new(len: usize) -> Self {
        Self {
            len,
            partial: 0,
            room: vec![0; ROOM],
        }
    }

    /// Messages that came whole with one receive; `None` at the end of the stream.
    fn receive(&mut self, mut stream: &TcpStream) -> io::Result<Option<usize>> {
        match stream.read(&mut self.room) {
            Ok(0) => Ok(None),
            Ok(count) => {
                let bytes = self.partial + count;
                self.partial = bytes % self.len;
                Ok(Some(bytes / self.len))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                Ok(Some(0))
            }
            Err(error) => Err(error),
        }
    }
}

fn serve(stream: &TcpStream, shape: Shape) -> io::Result<()> {
    let mut requests = Counter::new(shape.request());
    let mut replies = Messages::new(ANSWER, shape.reply() - ANSWER);
    while let Some(count) = requests.receive(stream)? {
        replies.push(count);
        replies.send(stream)?;
    }
    Ok(())
}

fn ask(
    stream: &TcpStream,
    shape: Shape,
    batch: usize,
    warm_up: Duration,
    time: Duration,
) -> io::Result<Rate> {
    let mut replies = Counter::new(shape.reply());
    let mut requests = Messages::new(COMMAND, shape.request() - COMMAND);
    let mut free = shape.depth;
    let mut done = 0_u64;
    let mut turns = 0_u32;
    let mut started = None;
    let begin = Instant::now();
    loop {
        if free >= batch {
            requests.push(free);
            free = 0;
        }
        requests.send(stream)?;
        let Some(count) = replies.receive(stream)? else {
            return Err(ErrorKind::UnexpectedEof.into());
        };
        free += count;
        done += count as u64;
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(EXCHANGES_PER_LOOK) {
            let now = Instant::now();
            match started {
                None if now - begin >= warm_up => started = Some((now, done)),
                Some((start, before)) if now - start >= time => {
                    return Ok(Rate {
                        ios: done - before,
                        elapsed: now - start,
                    });
                }
                _ => {}
            }
        }
    }
}

/// Exchanges messages between two threads for a time, warm-up not counted. `cores` are those of the server and of the client.
/// The client sends when it can send `batch` requests.
///
/// # Errors
/// What the system says about the connection, or about a core.
pub fn exchange(
    shape: Shape,
    batch: usize,
    cores: Option<(usize, usize)>,
    warm_up: Duration,
    time: Duration,
) -> io::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        socket::set_congestion(stream.as_fd(), &Congestion::Auto)?;
    }
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            if let Some((core, _)) = cores {
                socket::pin_current_thread(core)?;
            }
            serve(&server, shape)
        });
        let asking = scope.spawn(move || {
            if let Some((_, core)) = cores {
                socket::pin_current_thread(core)?;
            }
            // Dropping the stream at the end stops the server.
            ask(&client, shape, batch.clamp(1, shape.depth), warm_up, time)
        });
        let rate = asking
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the client panicked")));
        let served = serving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the server panicked")));
        match served {
            // The client leaves with answers on their way.
            Err(error) if !matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                Err(error)
            }
            _ => rate,
        }
    })
}

/// The best of several ways to batch, at most as long as each takes.
///
/// # Errors
/// As [`exchange`].
pub fn best_batch(shape: Shape, cores: Option<(usize, usize)>, time: Duration) -> io::Result<usize> {
    let mut best = (1, 0.0);
    for part in BATCHES {
        let batch = (shape.depth / part).max(1);
        let rate = exchange(shape, batch, cores, time / 4, time)?.per_second();
        if rate > best.1 {
            best = (batch, rate);
        }
    }
    Ok(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_exchanged() {
        for (write, io_bytes, depth) in [
            (false, 4096, 1),
            (true, 4096, 128),
            (false, 131_072, 8),
            (true, 131_072, 600),
        ] {
            let shape = Shape {
                write,
                io_bytes,
                depth,
            };
            for batch in [1, depth] {
                // On a busy machine a thread may not run at all for so short a time: then it gets more.
                let mut time = Duration::from_millis(30);
                let rate = loop {
                    let rate = exchange(shape, batch, None, Duration::ZERO, time).unwrap();
                    if rate.ios > 0 || time > Duration::from_secs(5) {
                        break rate;
                    }
                    time *= 4;
                };
                assert!(rate.ios > 0, "{shape:?}");
                assert!(rate.per_second() > 0.0);
            }
        }
    }
}
