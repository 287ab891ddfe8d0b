//! What the fuzzers run, as ordinary functions: each takes any bytes and panics if something that must hold does not.
//!
//! `fuzz/` wraps each in a libFuzzer target; the tests here replay the seed corpora and thousands of mutations of them without it.
//! Beyond "nothing panics", every body has a model of what may happen, independent of the code under test:
//!
//! | body | end | what must hold |
//! |---|---|---|
//! | [`pdus_to_controller`] | controller's connection | what is sent is exactly what was answered, in valid units; keys, commands and limits agree |
//! | [`pdus_to_host`] | host's connection | each command has one outcome; success means all of the data; what is sent is a command's own, once |
//! | [`capsules`] | a whole target | each command gets one answer, and no more data than it offered |
//! | [`connect_data`] | a whole target | each Connect gets one answer, and a queue only for good reasons |
//! | [`controller_events`] | a whole target | many connections, time, changes of configuration: as above, and whoever keeps to the protocol is served whatever others do |
//! | [`host_events`] | host's connection | a right controller is never thrown out; as [`pdus_to_host`] |
//! | [`rdma_controller`] | controller's queue pair | only memory that a command in flight named is touched, in its direction and order; no more is posted than fits; every buffer comes back once, unused |
//! | [`rdma_host`] | host's queue pair | capsules name exactly their command's memory; each command has one outcome; as above |
//! | [`driver`] | the user-space driver on a model of a controller | each command has one outcome; only memory that commands named is touched, and none after it came back; nothing is left, and nothing waits for ever |
//! | [`host_answers`] | host's sequences | bring-up, discovery and shutdown end, whatever they are answered |
//! | [`spec`] | wire types | what was understood is written back as the same thing |
//! | [`uri_and_config`] | what people write | what was understood is written back as the same thing; errors fit a line |
//!
//! Not here: sockets and threads, which fuzzers cannot drive deterministically; authentication and TLS, which do not exist yet.

mod choices;
mod controller_end;
mod driver;
mod driver_seeds;
mod host_end;
mod host_events;
mod rdma_capsules;
mod rdma_controller;
mod rdma_host;
mod rdma_session;
mod rdma_wire;
pub mod seeds;
mod spec;
mod target_end;
mod target_events;
mod text;
mod wire;

/// What a run came to: by these, tests see that seeds get where they should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Connections that were initialised.
    pub(crate) ready: usize,
    /// Commands that came, or were sent.
    pub(crate) commands: usize,
    /// Commands that were answered.
    pub(crate) completions: usize,
    /// Transfers that ended well, or bytes, or values understood: whatever the body counts as success.
    pub(crate) transfers: usize,
    /// Commands that failed.
    pub(crate) failures: usize,
    /// Ends of a connection by an error here.
    pub(crate) errors: usize,
    /// Ends of a connection by the peer.
    pub(crate) terminations: usize,
}

/// A body: what a fuzz target of the same name runs.
#[derive(Clone, Copy)]
pub struct Body {
    /// The name of the target and of its seed corpus.
    pub name: &'static str,
    reach: fn(&[u8]) -> Reached,
}

impl Body {
    /// Runs the body on one input. It panics if an invariant does not hold.
    pub fn run(&self, data: &[u8]) {
        (self.reach)(data);
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Body").field(&self.name).finish()
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident => $run:path;)+) => {
        $(
            $(#[$doc])*
            pub fn $name(data: &[u8]) {
                $run(data);
            }
        )+

        /// All bodies.
        pub const BODIES: &[Body] = &[$(Body { name: stringify!($name), reach: $run }),+];
    };
}

bodies! {
    /// Any bytes to the controller's end of a connection, with a session that answers as commands ask or at random.
    pdus_to_controller => controller_end::run;
    /// Any bytes to the host's end of a connection with commands in flight.
    pdus_to_host => host_end::run;
    /// Any commands, well framed, to a target with an association.
    capsules => target_events::run_capsules;
    /// Any Connects to a target.
    connect_data => target_events::run_connect_data;
    /// Any sequence of events to a target: connections, commands, data, noise, time, configurations.
    controller_events => target_events::run_controller_events;
    /// Any sequence of submissions and of what a controller may and may not say to the host's end of a connection.
    host_events => host_events::run_events;
    /// Any answers to the sequences of a host, and any pages.
    host_answers => host_events::run_answers;
    /// Any capsules, completions and failures to the controller's end of an RDMA queue pair, with a session that does anything.
    rdma_controller => rdma_controller::run;
    /// Any responses, completions and failures to the host's end of an RDMA queue pair, with an application that submits anything.
    rdma_host => rdma_host::run;
    /// Any faults of a controller below the user-space driver, and any use of it above.
    driver => driver::run;
    /// Any bytes to the parsers of wire types.
    spec => spec::run;
    /// Any text to the parsers of what people write.
    uri_and_config => text::run;
}

#[cfg(test)]
mod tests;
