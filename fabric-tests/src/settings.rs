//! Configurations of targets, as an operator would write them.

use std::path::Path;

use homi_target::config::Config;

/// The subsystem that bodies use unless they say otherwise.
pub const DATA: &str = "nqn.2026-01.org.example:data";
/// Another one.
pub const OTHER: &str = "nqn.2026-01.org.example:other";
/// The host that bodies use unless they say otherwise.
pub const HOST: &str = "nqn.2026-01.org.example:host";
/// Another one.
pub const STRANGER: &str = "nqn.2026-01.org.example:stranger";

/// Bytes of each namespace of [`ram`] and [`everything`].
pub const NAMESPACE_BYTES: u64 = 16 << 20;

/// A listener on a port that the system chooses, on a node with two shards.
const NODE: &str = r#"
[node]
shards = 2
poll_us = 0
[[listener]]
address = "127.0.0.1:0"
"#;

/// Reads a configuration. Tests write correct ones.
#[must_use]
pub fn parse(text: &str) -> Config {
    let config: Config = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    config.check().unwrap_or_else(|error| panic!("{error}\n{text}"));
    config
}

/// The standard node with these subsystems (and whatever other tables).
#[must_use]
pub fn node(rest: &str) -> Config {
    parse(&format!("{NODE}{rest}"))
}

/// One subsystem for every host, with one namespace in memory of 512-byte blocks and one of 4096-byte blocks.
#[must_use]
pub fn ram() -> Config {
    node(&format!(
        r#"
[[subsystem]]
nqn = "{DATA}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 1
ram = "16M"
block_size = 512
[[subsystem.namespace]]
nsid = 2
ram = "16M"
block_size = 4096
"#
    ))
}

/// As [`ram`], and the same two as files in a directory, as namespaces 3 and 4.
#[must_use]
pub fn everything(directory: &Path) -> Config {
    let directory = directory.display();
    let files = node(&format!(
        r#"
[[subsystem]]
nqn = "{DATA}"
allow_any_host = true
[[subsystem.namespace]]
nsid = 3
path = "{directory}/blocks-512"
create = "16M"
block_size = 512
[[subsystem.namespace]]
nsid = 4
path = "{directory}/blocks-4096"
create = "16M"
block_size = 4096
"#
    ));
    let mut config = ram();
    config.subsystem[0]
        .namespace
        .extend(files.subsystem[0].namespace.clone());
    config
}

/// The namespaces of [`everything`]: identifier and block size.
pub const NAMESPACES: [(u32, u32); 4] = [(1, 512), (2, 4096), (3, 512), (4, 4096)];
