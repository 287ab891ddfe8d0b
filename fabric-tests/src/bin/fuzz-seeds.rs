//! Writes the seed corpora of the fuzz targets to `fuzz/corpus`, and removes files that are no longer made.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use fabric_tests::fuzz::seeds::{self, Seed};

fn main() -> ExitCode {
    let folder = seeds::folder();
    match write(&folder) {
        Ok(count) => {
            println!("{count} seeds are in {}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot write the seeds to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<usize> {
    let mut made = BTreeSet::new();
    for Seed { body, name, bytes } in seeds::all() {
        let place = folder.join(body);
        fs::create_dir_all(&place)?;
        let path = place.join(name);
        fs::write(&path, bytes)?;
        made.insert(path);
    }
    for corpus in fs::read_dir(folder)? {
        for file in fs::read_dir(corpus?.path())? {
            let path = file?.path();
            if !made.contains(&path) {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(made.len())
}
