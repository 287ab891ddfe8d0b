//! The NVMe/TCP transport, both ends, over any stream of bytes (TCP Transport 1.0).
//!
//! [`HostConnection`] and [`ControllerConnection`] turn received bytes into events and commands, responses and payload
//! into bytes. One connection is one queue. Neither knows a socket: the runtime hands bytes to `advance`, may receive
//! straight into an operation's memory (`landing`, `landed`), and sends what `take_output` gives.
//!
//! - receiving: whole protocol data units are judged where they lie in the input; only a header that was cut
//!   in two is copied, and payload is copied once, from the input to its [`Data`](homi_queue::Data), or never, through
//!   `landing`.
//! - sending: headers are bytes of a [`GatherList`](homi_queue::GatherList), payload is referred to.
//! - every field of every unit is checked before it is used; what breaks the protocol becomes a [`TransportError`] that knows
//!   the terminate request to send, which is queued before the error is returned.
//!
//! Not implemented here: TLS, authentication, timeouts (the runtime closes a connection that is not ready in time) and
//! everything that a command means.

mod controller;
mod digest;
mod error;
mod framing;
mod host;
mod receive;
mod table;

pub use controller::{
    AcceptError, Cancel, ControllerConnection, ControllerEvent, ControllerParams, RespondError,
};
pub use error::{End, ParameterError, Termination, TransportError};
pub use host::{HostConnection, HostEvent, HostParams};
pub use table::CommandKey;
