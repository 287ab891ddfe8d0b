//! What goes into a reactor and what comes out of it, the same for both backends.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use homi_queue::{GatherList, Segment};

/// Most bytes that [`Receive::Into`] may take from the stream beyond its segment.
pub const MAX_LOOKAHEAD: usize = 256;

/// How long a listener pauses after a failed accept, so that a lasting shortage does not become a busy loop.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// io_uring, or readiness where the system refuses io_uring.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll.
    Readiness,
}

/// The backend that a reactor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Operations are queued to the kernel and completed by it.
    IoUring,
    /// epoll says which sockets are ready, and non-blocking calls do the operations.
    Readiness,
}

/// How to set up a reactor.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which backend to use.
    pub backend: BackendChoice,
    /// Number of staging buffers, rounded up to a power of two; 1 to 4096. The readiness backend needs only one.
    pub staging_buffers: u16,
    /// Length of a staging buffer in bytes; 1 to 16 MiB. The most that one [`Receive::Staging`] brings.
    pub staging_len: u32,
    /// Operations that one system call submits; more are submitted over several turns. 8 to 16384.
    pub entries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            staging_buffers: 8,
            staging_len: 128 * 1024,
            entries: 512,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), ReactorError> {
        let ranges = [
            ("staging_buffers", u32::from(self.staging_buffers), 1, 4096),
            ("staging_len", self.staging_len, 1, 16 << 20),
            ("entries", self.entries, 8, 16384),
        ];
        for (option, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ReactorError::InvalidOption {
                    option,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

/// Where the next bytes of a stream go.
#[derive(Debug, Clone)]
pub enum Receive {
    /// Into a staging buffer, which the handler sees as a slice. An idle stream does not hold a buffer.
    Staging {
        /// Most bytes to take from the stream. At least one and at most [`Options::staging_len`] are taken.
        limit: usize,
    },
    /// Straight to where they belong. The receive ends with whatever has arrived, which can be less than the segment.
    Into {
        /// Where the bytes go.
        segment: Segment,
        /// Bytes to take from the stream beyond the segment when the segment is full, to learn about what follows
        /// without another receive. At most [`MAX_LOOKAHEAD`].
        lookahead: usize,
    },
}

/// How long a turn waits for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Poll,
    /// Until there is an event, or for the given time; less if the turn has events to report before it would sleep.
    Sleep(Option<Duration>),
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A listener accepted a stream, which is not part of the reactor yet.
    Accepted {
        /// The listener's token.
        listener_token: u64,
        /// The new stream.
        stream: OwnedFd,
        /// Who connected.
        peer: SocketAddr,
    },
    /// A listener could not accept; it goes on after a pause.
    AcceptFailed {
        /// The listener's token.
        listener_token: u64,
        /// The system's error.
        error: io::Error,
    },
    /// Bytes came in; there is at least one. No receive is in flight now.
    Received {
        /// The stream's token.
        token: u64,
        /// Bytes at the beginning of the segment that are filled now; zero for [`Receive::Staging`].
        direct: usize,
        /// Bytes that are not in the segment: all of them for [`Receive::Staging`], those that followed the full
        /// segment for [`Receive::Into`].
        bytes: &'a [u8],
    },
    /// Everything was sent. No send is in flight now.
    Sent {
        /// The stream's token.
        token: u64,
        /// The list that was sent, cleared, with its capacity.
        list: GatherList,
    },
    /// An operation failed and is no longer in flight; the stream is of no more use and is to be closed.
    Failed {
        /// The token of the stream or watched descriptor, or of a listener that cannot be watched.
        token: u64,
        /// The system's error.
        error: io::Error,
        /// For a send: the list, which still refers to what was not sent. `None` for everything else.
        list: Option<GatherList>,
    },
    /// The peer closed its sending side and everything it sent was received. No receive is in flight now.
    Closed {
        /// The stream's token.
        token: u64,
    },
    /// A watched descriptor is readable. It is no longer watched.
    Readable {
        /// The descriptor's token.
        token: u64,
    },
    /// Someone called [`Waker::wake`](crate::Waker::wake) since the last such event.
    Woken,
}

/// What a reactor has done since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// System calls, not counting those that add and close descriptors.
    pub syscalls: u64,
    /// Turns.
    pub turns: u64,
    /// Turns that went to sleep in the kernel.
    pub sleeps: u64,
    /// Receives that brought bytes.
    pub receives: u64,
    /// Receives that found nothing, while polling.
    pub empty_receives: u64,
    /// Lists that were sent completely.
    pub sends: u64,
    /// Times that a send went on after the kernel had taken only part of the list.
    pub short_sends: u64,
    /// Receives that had to wait because every staging buffer was in use.
    pub starved: u64,
    /// Streams accepted.
    pub accepted: u64,
}

/// Why a reactor does not work.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// An option is out of its range.
    #[error("option {option} is {value}: it must be {least} to {most}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// Its value.
        value: u32,
        /// Its smallest value.
        least: u32,
        /// Its largest value.
        most: u32,
    },
    /// The system does not offer io_uring with what the reactor needs.
    #[error(
        "io_uring cannot be used: to {action} failed ({source}); it takes Linux 5.19 or later, \
         /proc/sys/kernel/io_uring_disabled at 0, and a container profile that allows io_uring"
    )]
    IoUringRefused {
        /// What was attempted.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A system call failed.
    #[error("to {action} failed ({source})")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// An event that is known before the kernel is asked.
pub(crate) enum Deferred {
    Failed {
        token: u64,
        error: io::Error,
        list: Option<GatherList>,
    },
    Sent {
        token: u64,
        list: GatherList,
    },
}

impl Deferred {
    pub(crate) fn invalid(token: u64, reason: &'static str, list: Option<GatherList>) -> Self {
        Self::Failed {
            token,
            error: io::Error::new(io::ErrorKind::InvalidInput, reason),
            list,
        }
    }

    pub(crate) fn into_event(self) -> Event<'static> {
        match self {
            Self::Failed { token, error, list } => Event::Failed { token, error, list },
            Self::Sent { token, list } => Event::Sent { token, list },
        }
    }
}

impl Receive {
    /// Why the receive cannot be started, if so.
    pub(crate) fn objection(&self) -> Option<&'static str> {
        match self {
            Self::Into { lookahead, .. } if *lookahead > MAX_LOOKAHEAD => {
                Some("the lookahead is longer than 256 bytes")
            }
            Self::Into { segment, .. } if segment.is_empty() => {
                Some("the segment to receive into is empty: receive into staging instead")
            }
            Self::Into { .. } | Self::Staging { .. } => None,
        }
    }
}
