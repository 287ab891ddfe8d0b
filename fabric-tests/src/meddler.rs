//! A meddler stands between a host and an honest target and says something else instead: that is a hostile target with
//! everything that a host needs to get as far as the attack, or a hostile host likewise.

/// Who sent a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host.
    Host,
    /// The target.
    Target,
}

/// What becomes of a unit. No act at all means that it disappears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It goes on as it is.
    Forward,
    /// These bytes go to the host.
    ToHost(Vec<u8>),
    /// These bytes go to the target.
    ToTarget(Vec<u8>),
    /// Both ends see the connection closed.
    HangUp,
}

/// Sees every unit of one connection, in order.
pub type Meddler = Box<dyn FnMut(Side, &[u8]) -> Vec<Act> + Send>;
