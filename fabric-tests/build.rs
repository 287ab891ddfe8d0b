//! Finds the tests of the lab: every `lab/*.rs` becomes a module of the program `lab`, so that a new file is all that a new test needs.

use std::env;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let variable =
        |name: &str| env::var_os(name).ok_or_else(|| io::Error::other(format!("cargo did not set {name}")));
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("lab");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            names.push(
                name.ok_or_else(|| {
                    io::Error::other(format!("{} has a name that is not UTF-8", path.display()))
                })?
                .to_owned(),
            );
        }
    }
    names.sort();
    let mut text = String::new();
    for name in &names {
        let path = folder.join(format!("{name}.rs"));
        writeln!(text, "#[path = {path:?}]\npub mod {name};").map_err(io::Error::other)?;
    }
    text += "/// Every file of tests and what is in it.\npub const FILES: &[(&str, &[fabric_tests::lab::Test])] = &[\n";
    for name in &names {
        writeln!(text, "    ({name:?}, {name}::TESTS),").map_err(io::Error::other)?;
    }
    text += "];\n";
    fs::write(PathBuf::from(variable("OUT_DIR")?).join("lab_tests.rs"), text)
}
