//! The host end of an association: what to send next and what the answers mean, without a transport.
//!
//! - [`connect`] — why a connection or bring-up failed, in a sentence.
//! - [`discovery`] — reading the discovery log.
//! - [`info`] — what a host learns about controllers and namespaces.
//!
//! Not implemented: authentication, and controllers without a command set that this project knows.

pub mod connect;
pub mod discovery;
pub mod info;

pub use connect::ConnectError;
pub use discovery::{AddressFamily, DiscoveryRecord, SubsystemKind, TransportKind};
pub use info::{ControllerInfo, ControllerKind, InfoError, NamespaceInfo};
