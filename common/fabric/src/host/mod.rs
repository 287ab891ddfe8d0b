//! The host end of an association: what to send next and what the answers mean, without a transport.
//!
//! - [`bring_up`] — from a new connection to a controller that executes commands, and back: [`BringUp`], [`IoConnect`], [`Shutdown`].
//! - [`connect`] — why a connection or bring-up failed, in a sentence.
//! - [`discovery`] — reading the discovery log.
//! - [`events`], [`keep_alive`] — what goes on beside the commands of users while an association lives.
//! - [`info`] — what a host learns about controllers and namespaces.
//!
//! Not implemented: authentication, and controllers without a command set that this project knows.

pub mod bring_up;
pub mod connect;
pub mod discovery;
pub mod events;
pub mod info;
pub mod keep_alive;
#[cfg(test)]
mod tests;

pub use bring_up::{Answer, BringUp, BringUpParams, IoConnect, IoConnectParams, Shutdown, Step, StepData};
pub use connect::ConnectError;
pub use discovery::{
    AddressFamily, Discovery, DiscoveryError, DiscoveryRecord, DiscoveryStep, SubsystemKind, TransportKind,
};
pub use events::{EventOutcome, Events};
pub use info::{ControllerInfo, ControllerKind, InfoError, NamespaceInfo, parse_namespace_list};
pub use keep_alive::{KeepAlive, KeepAliveStep};
