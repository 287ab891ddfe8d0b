//! Copies a file to the beginning of a device and back into another file:
//! `cargo run --example copy_a_file -- FILE URI COPY`

use std::fs::File;
use std::io::{BufWriter, Write as _};

use homi_initiator::{Disk, Initiator, Uri};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, uri, to] = arguments.as_slice() else {
        return Err("usage: copy_a_file FILE URI COPY".into());
    };
    let device = Initiator::new()?.open(&uri.parse::<Uri>()?)?;
    let mut disk = Disk::on(&device, 16)?;
    let bytes = disk.copy_in(&mut File::open(from)?, 0)?;
    disk.flush()?;
    let mut copy = BufWriter::new(File::create(to)?);
    disk.copy_out(0, bytes, &mut copy)?;
    copy.flush()?;
    println!("{bytes} bytes there and back");
    Ok(())
}
