//! What the runner and the agent in a guest say to each other over a serial port of the guest: frames of a length, a step, a kind and a payload.
//!
//! Several steps run at once; a frame says to which one it belongs. The bytes of steps are raw, requests and ends are JSON. Both ends come out
//! of one build, so there is no version.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Name of the serial port in the guest.
pub const PORT: &str = "io.homi-fabrics.lab";
/// Folder of the agent in the guest: the memory file system that steps work in, the prelude of steps, shares.
pub const FOLDER: &str = "/run/lab";
/// Largest payload of a frame, in bytes.
pub const LARGEST: usize = 1 << 20;

const HEADER: usize = 9;

/// The identifier that the host of a guest connects with.
#[must_use]
pub fn host_id(guest: usize) -> String {
    format!("6c616200-0000-4000-8000-{:012x}", guest + 1)
}

/// The name that the host of a guest connects with.
#[must_use]
pub fn host_nqn(guest: usize) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", host_id(guest))
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the agent: start a step ([`Start`]).
    Start,
    /// To the agent: send a signal (its number, one byte) to the processes of a step.
    Signal,
    /// From the agent: it is there ([`Ready`]).
    Ready,
    /// From the agent: bytes of the step's standard output.
    Output,
    /// From the agent: bytes of the step's standard error.
    Error,
    /// From the agent: the step has ended ([`Ended`]), and nothing more comes of it.
    Ended,
}

impl Kind {
    const ALL: [(Self, u8); 6] = [
        (Self::Start, 1),
        (Self::Signal, 2),
        (Self::Ready, 16),
        (Self::Output, 17),
        (Self::Error, 18),
        (Self::Ended, 19),
    ];

    fn code(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or(0, |(_, code)| *code)
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == code)
            .map(|(kind, _)| *kind)
    }
}

/// A step to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Script for bash; the prelude comes before it.
    pub script: String,
    /// Milliseconds after which its processes are killed.
    pub limit_ms: u64,
}

/// The agent is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// What `uname -r` says.
    pub release: String,
    /// Seconds since the kernel started.
    pub uptime: f64,
}

/// A step is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit status; absent if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its time was up.
    pub timed_out: bool,
    /// Why it never started.
    pub refused: Option<String>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The step that it belongs to.
    pub step: u32,
    /// What it is.
    pub kind: Kind,
    /// Its payload, at most [`LARGEST`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame with bytes.
    #[must_use]
    pub fn new(step: u32, kind: Kind, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            step,
            kind,
            payload: payload.into(),
        }
    }

    /// A frame with JSON.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    pub fn json(step: u32, kind: Kind, payload: &impl Serialize) -> io::Result<Self> {
        Ok(Self::new(step, kind, serde_json::to_vec(payload)?))
    }

    /// The payload as what it was made from.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }

    /// Writes it whole.
    ///
    /// # Errors
    /// A payload that is too large, and what the stream says.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let len = u32::try_from(self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= LARGEST)
            .ok_or_else(|| {
                io::Error::other(format!(
                    "a payload has {} bytes: at most {LARGEST} are possible",
                    self.payload.len()
                ))
            })?;
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.step.to_le_bytes());
        bytes.push(self.kind.code());
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next one; `None` when the stream has ended between frames.
    ///
    /// # Errors
    /// A header that cannot be one, and what the stream says.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        let mut have = 0;
        while have < HEADER {
            match from.read(header.get_mut(have..).unwrap_or_default()) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => have += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let [l0, l1, l2, l3, s0, s1, s2, s3, code] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = Kind::of(code).filter(|_| usize::try_from(len).is_ok_and(|len| len <= LARGEST));
        let Some(kind) = kind else {
            return Err(io::Error::other(format!(
                "a frame of {len} bytes and kind {code} is none of ours"
            )));
        };
        let mut payload = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        from.read_exact(&mut payload)?;
        Ok(Some(Self {
            step: u32::from_le_bytes([s0, s1, s2, s3]),
            kind,
            payload,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written() {
        let start = Start {
            script: "true".to_owned(),
            limit_ms: 1000,
        };
        let frames = [
            Frame::json(1, Kind::Start, &start).unwrap(),
            Frame::new(u32::MAX, Kind::Output, vec![0xff; LARGEST]),
            Frame::new(7, Kind::Signal, vec![15]),
            Frame::new(0, Kind::Error, vec![]),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut from).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
        assert_eq!(frames[0].parse::<Start>().unwrap(), start);
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_taken() {
        let mut huge = Vec::new();
        huge.extend_from_slice(&u32::MAX.to_le_bytes());
        huge.extend_from_slice(&[0, 0, 0, 0, 17]);
        assert!(Frame::read(&mut huge.as_slice()).is_err());
        assert!(Frame::read(&mut [0, 0, 0, 0, 0, 0, 0, 0, 99].as_slice()).is_err());
        assert!(Frame::read(&mut [1, 0, 0].as_slice()).is_err());
        assert!(
            Frame::new(0, Kind::Output, vec![0; LARGEST + 1])
                .write(&mut Vec::new())
                .is_err()
        );
    }
}
