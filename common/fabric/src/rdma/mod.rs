//! The NVMe/RDMA transport, both ends, without verbs (RDMA Transport 1.0).
//!
//! One reliable connected queue pair is one queue. [`HostConnection`] and [`ControllerConnection`] take what a runtime
//! saw on it (a receive completed, a work request completed or failed, the queue pair died) and say what to post: a list of
//! [`Work`] for one doorbell, and receives. [`cm`] is what the connection manager carries before that.
//!
//! ```text
//!  receive completed ──► received ──┐                       ┌──► poll_event     commands, completions
//!  work completed ─────► completed ─┼─► one connection ─────┼──► poll_work      post as one list
//!  work failed ────────► work_failed┤                       └──► poll_returned  buffers that are free again
//!  connection lost ────► lost, then stopped
//! ```
//!
//! - data moves by RDMA only where a command's descriptors said, and only within the memory that the session gave; of either
//!   range the shorter one counts.
//! - a controller writes the data of a read unsignaled, then sends the response, in this order and mostly in one list; a
//!   reliable connection delivers both in order.
//! - RDMA READs are posted up to the depth that was negotiated and wait here beyond it, so that the send queue never stalls
//!   behind them; everything waits here while the send queue is full.
//! - memory that a work request names stays with the connection until that request is over. After the end of a connection
//!   everything comes back once the queue pair is known to be still: see `stopped`.
//!
//! Not implemented here: verbs, registration and memory windows (the runtime's), shared receive queues (which need nothing
//! here), timeouts, metadata, and everything that a command means. The in-capsule data offset (ICDOFF) is 0.

pub mod cm;

mod controller;
mod error;
mod host;
mod sgl;
mod table;
mod work;

pub use crate::tcp::CommandKey;
pub use controller::{
    AcceptError, Cancel, ControllerConnection, ControllerEvent, ControllerParams, ReceiveBuffer,
    RespondError, Returned,
};
pub use error::{ParameterError, TransportError};
pub use host::{HostConnection, HostEvent, HostParams, RemoteKeys, RemoteMemory, StillRunning, SubmitError};
pub use work::{Capsule, Operation, Piece, Remote, Span, Work, WorkId};
