//! Brings its own memory: eight reads in flight land in one region that the program owns, without a copy in user space.
//! `cargo run --example own_buffer -- URI`

use homi_initiator::{Command, Data, Initiator, Queue, QueueOptions, Region, Uri, wait_for_completions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let line = std::env::args()
        .nth(1)
        .ok_or("give a URI, for example ram://1M")?;
    let device = Initiator::new()?.open(&line.parse::<Uri>()?)?;
    let mut queue = device.queue(QueueOptions::depth(8))?;

    // Any memory will do: this, a vector (`Region::from_vec`), or a mapping (`Region::from_foreign`).
    let block = device.block_size() as usize;
    let region = Region::allocate(8 * block, 4096)?;
    for lba in 0..8 {
        let slot = queue.reserve()?;
        let place = region.segment(lba * block..(lba + 1) * block)?;
        queue.submit(
            slot,
            Command::read(device.nsid(), lba as u64, 1),
            Data::One(place),
        );
    }
    queue.commit()?;

    let mut completed = Vec::new();
    while completed.len() < 8 {
        wait_for_completions(&mut queue, &mut completed, None)?;
    }
    for read in &completed {
        println!("{:?}: {}", read.id, read.completion.status);
    }
    Ok(())
}
