//! The `homi` command line.
fn main() {}
