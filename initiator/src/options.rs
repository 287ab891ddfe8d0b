//! [`InitiatorBuilder`] and [`QueueOptions`]: what can be chosen, and what is chosen if nobody does.

use std::time::Duration;

use homi_reactor::socket::Congestion;
use homi_spec::Nqn;

use crate::error::Error;
use crate::identity;
use crate::initiator::Initiator;

/// Everything that an [`Initiator`] is made with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) host_nqn: Nqn,
    pub(crate) host_id: [u8; 16],
    pub(crate) keep_alive: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) command_timeout: Duration,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) sq_flow_control: bool,
    pub(crate) io_queues: u16,
    pub(crate) congestion: Congestion,
    #[cfg_attr(not(feature = "rdma"), expect(dead_code, reason = "for RDMA"))]
    pub(crate) memory_windows: bool,
}

/// Builds an [`Initiator`]. Every choice has a default, so `Initiator::builder().build()` works.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct InitiatorBuilder {
    host_nqn: Option<String>,
    host_id: Option<[u8; 16]>,
    keep_alive: Duration,
    connect_timeout: Duration,
    command_timeout: Duration,
    header_digest: bool,
    data_digest: bool,
    sq_flow_control: bool,
    io_queues: u16,
    congestion: Congestion,
    memory_windows: bool,
}

impl Default for InitiatorBuilder {
    fn default() -> Self {
        Self {
            host_nqn: None,
            host_id: None,
            keep_alive: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
            header_digest: false,
            data_digest: false,
            sq_flow_control: false,
            io_queues: 64,
            congestion: Congestion::Auto,
            memory_windows: false,
        }
    }
}

impl InitiatorBuilder {
    /// The name this host goes by, which allow lists name. Default: made from the machine's id, so it stays the same.
    pub fn host_nqn(mut self, nqn: impl Into<String>) -> Self {
        self.host_nqn = Some(nqn.into());
        self
    }

    /// The host identifier that goes with the name. Default: the name's UUID, or a stable hash of the name.
    pub fn host_id(mut self, id: [u8; 16]) -> Self {
        self.host_id = Some(id);
        self
    }

    /// How long a controller may go without a sign of life from this host before it ends the association; zero
    /// turns keep alive off. Default: 5 s.
    pub fn keep_alive(mut self, timeout: Duration) -> Self {
        self.keep_alive = timeout;
        self
    }

    /// How long a connection, its handshake and each command of a bring-up may take. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a command may take before it is aborted, and then its Abort before the queue is given up.
    /// Zero waits forever. Default: 30 s.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Asks for a CRC32C over every PDU header. Default: off.
    pub fn header_digest(mut self, on: bool) -> Self {
        self.header_digest = on;
        self
    }

    /// Asks for a CRC32C over every PDU's data. Default: off.
    pub fn data_digest(mut self, on: bool) -> Self {
        self.data_digest = on;
        self
    }

    /// Keeps submission queue flow control on, which costs a response capsule per read. Default: off.
    pub fn sq_flow_control(mut self, on: bool) -> Self {
        self.sq_flow_control = on;
        self
    }

    /// How many I/O queues to ask a controller for; it may grant fewer. Default: 64.
    pub fn io_queues(mut self, queues: u16) -> Self {
        self.io_queues = queues;
        self
    }

    /// Which congestion control bounds what a TCP connection sends. Default: [`Congestion::Auto`].
    pub fn congestion(mut self, choice: Congestion) -> Self {
        self.congestion = choice;
        self
    }

    /// Over RDMA: lets a controller reach the memory of commands through memory windows (type 2), each open for one command. Without them a
    /// controller can reach all of every region that is registered, for as long as it is: by
    /// [`Controller::register`](crate::Controller::register), or because a command used it. Costs up to two work requests per command, and a device
    /// that has no such windows refuses to connect. Default: off.
    pub fn memory_windows(mut self, on: bool) -> Self {
        self.memory_windows = on;
        self
    }

    /// Makes the initiator. No connection is opened and no thread is started yet.
    ///
    /// # Errors
    /// [`Error::Option`] if a choice cannot be meant: a host name that is no NQN, a keep-alive timeout that does not fit its
    /// field, a timeout of zero where there must be one.
    pub fn build(self) -> Result<Initiator, Error> {
        let host_nqn = match self.host_nqn {
            Some(name) => {
                Nqn::new(&name).map_err(|error| Error::Option(format!("host nqn \"{name}\": {error}")))?
            }
            None => identity::default_host_nqn(),
        };
        if self.connect_timeout.is_zero() {
            return Err(Error::Option(
                "the connect timeout is zero: use at least a millisecond".to_owned(),
            ));
        }
        if u32::try_from(self.keep_alive.as_millis()).is_err() {
            return Err(Error::Option(format!(
                "the keep-alive timeout {:?} does not fit 32 bits of milliseconds: use a shorter one",
                self.keep_alive
            )));
        }
        if self.io_queues == 0 {
            return Err(Error::Option(
                "at least one i/o queue must be asked for".to_owned(),
            ));
        }
        let host_id = self.host_id.unwrap_or_else(|| identity::host_id_of(&host_nqn));
        Initiator::with_options(Options {
            host_nqn,
            host_id,
            keep_alive: self.keep_alive,
            connect_timeout: self.connect_timeout,
            command_timeout: self.command_timeout,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            sq_flow_control: self.sq_flow_control,
            io_queues: self.io_queues,
            congestion: self.congestion,
            memory_windows: self.memory_windows,
        })
    }
}

/// How a queue is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Commands in flight at most, 1 to 4095. A controller with smaller queues gives less: ask the queue for its depth.
    pub depth: u16,
    /// Another command timeout than the initiator's; zero waits forever.
    pub command_timeout: Option<Duration>,
}

impl QueueOptions {
    /// A queue for up to `depth` commands in flight.
    #[must_use]
    pub const fn depth(depth: u16) -> Self {
        Self {
            depth,
            command_timeout: None,
        }
    }

    /// The same with a command timeout of its own; zero waits forever.
    #[must_use]
    pub const fn with_command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = Some(timeout);
        self
    }
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self::depth(128)
    }
}
