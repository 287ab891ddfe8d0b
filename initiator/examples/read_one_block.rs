//! Reads the first block of whatever a URI names and prints its first bytes:
//! `cargo run --example read_one_block -- nvme+tcp://127.0.0.1:4420/nqn.2024-01.org.example:disk1`

use homi_initiator::{Blocking, Buffer, Error, Initiator, Uri};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let line = std::env::args()
        .nth(1)
        .ok_or("give a URI, for example ram://1M")?;
    println!("{}", read_one_block(&line.parse::<Uri>()?)?);
    Ok(())
}

fn read_one_block(uri: &Uri) -> Result<String, Error> {
    let device = Initiator::new()?.open(uri)?;
    let mut disk = Blocking::open(&device)?;
    let block = disk.read(0, Buffer::allocate(device.block_size() as usize)?)?;
    Ok(format!(
        "{} blocks; block 0 begins with {:02x?}",
        device.blocks(),
        &block[..16]
    ))
}
