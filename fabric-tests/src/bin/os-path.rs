//! Commands to a namespace behind the kernel's NVMe driver, one by one, with their statuses: for the lab.
//!
//! ```text
//! os-path commands URI     everything that a drive executes, and what it refuses; destroys what is there
//! os-path dma-buf URI      what becomes of data in a dma-buf
//! ```
//!
//! Prints a line for each thing that holds, and ends with the first that does not.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;

use homi_initiator::{Blocking, Buffer, Command, Data, Device, Initiator, Region, Uri};
use homi_spec::Status;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["commands", uri] => open(uri).and_then(|device| commands(&device)),
        ["dma-buf", uri] => open(uri).and_then(|device| dma_buf(&device)),
        _ => Err("usage: os-path commands|dma-buf URI".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("os-path: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(uri: &str) -> Result<Device, Box<dyn Error>> {
    let uri: Uri = uri.parse()?;
    Ok(Initiator::new()?.open(&uri)?)
}

/// Something that must hold.
fn holds(what: &str, so: bool) -> Outcome {
    if so {
        println!("{what}");
        Ok(())
    } else {
        Err(format!("this does not hold: {what}").into())
    }
}

fn memory(len: usize) -> Result<Data, Box<dyn Error>> {
    Ok(Data::whole(Region::allocate(len, 4096)?))
}

/// Bytes that tell where they belong.
fn stamped(lba: u64, len: usize, salt: u8) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at / 512 + at % 251) % 256).unwrap_or(0);
    let low = u8::try_from(lba % 256).unwrap_or(0);
    (0..len).map(|at| byte(at) ^ low ^ salt).collect()
}

fn commands(device: &Device) -> Outcome {
    let mut queue = Blocking::open(device)?;
    let block = device.block_size() as usize;
    let (nsid, end) = (device.nsid(), device.blocks());
    let most = device.max_transfer() as usize;

    for (index, len) in [block, 3 * block, 65536, most, most + 3 * block, 4 * most]
        .into_iter()
        .enumerate()
    {
        let lba = index as u64 * 17;
        let bytes = stamped(lba, len, 1);
        queue.write(lba, Buffer::from_vec(bytes.clone()))?;
        let read = queue.read(lba, Buffer::allocate(len)?)?;
        holds(&format!("{len} bytes come back"), *read == *bytes)?;
        let same = queue.compare(lba, Buffer::from_vec(bytes.clone())).is_ok();
        holds(&format!("{len} bytes compare as equal"), same)?;
    }

    // The same memory in pieces that no drive describes by itself.
    let region = Region::from_vec(stamped(5, 4 * 4096 + 8, 2));
    let blocks = u32::try_from(4 * 4096 / block)?;
    let list = |at: usize| -> Result<Data, Box<dyn Error>> {
        Ok(Data::List(vec![
            region.segment(at..at + 1000)?,
            region.segment(at + 1000..at + 9000)?,
            region.segment(at + 9000..at + 4 * 4096)?,
        ]))
    };
    let (completion, _) = queue.execute(Command::write(nsid, 100, blocks), list(4)?)?;
    holds("scattered memory is written", completion.is_success())?;
    let (completion, data) =
        queue.execute(Command::read(nsid, 100, blocks), Data::Anywhere { len: 4 * 4096 })?;
    let mut bytes = vec![0; 4 * 4096];
    data.read(0, &mut bytes)?;
    let expected = stamped(5, 4 * 4096 + 8, 2);
    let same = completion.is_success() && Some(bytes.as_slice()) == expected.get(4..4 + 4 * 4096);
    holds("it is read into memory of the executor's choice", same)?;
    let pieces = Data::List(
        (0..4096)
            .map(|n| region.segment(n * 4..n * 4 + 4))
            .collect::<Result<_, _>>()?,
    );
    let (completion, pieces) = queue.execute(Command::read(nsid, 100, blocks), pieces)?;
    pieces.read(0, &mut bytes)?;
    let same = completion.is_success() && Some(bytes.as_slice()) == expected.get(4..4 + 4 * 4096);
    holds("it is read into 4096 pieces", same)?;

    queue.flush()?;
    holds("flush succeeds", true)?;
    let (completion, _) = queue.execute(Command::write(nsid, 0, 1).with_fua(), memory(block)?)?;
    holds("a write with force unit access succeeds", completion.is_success())?;
    for deallocate in [false, true] {
        queue.write(8, Buffer::from_vec(stamped(8, 8 * block, 3)))?;
        queue.write_zeroes(9, 4, deallocate)?;
        let read = queue.read(8, Buffer::allocate(8 * block)?)?;
        let expected: Vec<u8> = stamped(8, 8 * block, 3)
            .into_iter()
            .enumerate()
            .map(|(at, byte)| if (block..5 * block).contains(&at) { 0 } else { byte })
            .collect();
        holds("write zeroes makes zeroes of what it names", *read == *expected)?;
    }
    queue.deallocate(&[(0, 8), (64, 16)])?;
    holds("deallocate succeeds", true)?;
    let (completion, _) = queue.execute(Command::verify(nsid, 0, 8), Data::None)?;
    holds("verify succeeds", completion.is_success())?;

    let different = queue.compare(8, Buffer::from_vec(stamped(8, block, 77)));
    holds("a difference is the drive's compare failure", different.is_err())?;
    let status = |queue: &mut Blocking<_>, command, data| -> Result<Status, Box<dyn Error>> {
        Ok(queue.execute(command, data)?.0.status)
    };
    let beyond = status(&mut queue, Command::read(nsid, end, 1), memory(block)?)?;
    println!("the drive says: {beyond}");
    holds(
        "a read past the end is the drive's lba out of range",
        beyond.is(Status::LBA_OUT_OF_RANGE),
    )?;
    let across = status(&mut queue, Command::write(nsid, end - 1, 2), memory(2 * block)?)?;
    holds("so is a write across it", across.is(Status::LBA_OUT_OF_RANGE))?;
    let far = status(
        &mut queue,
        Command::write_zeroes(nsid, u64::MAX - 9, 4, false),
        Data::None,
    )?;
    holds("and write zeroes far behind it", far.is(Status::LBA_OUT_OF_RANGE))?;
    let parts = u32::try_from(4 * most / block)?;
    let long = status(&mut queue, Command::read(nsid, end - 8, parts), memory(4 * most)?)?;
    holds(
        "a long one fails in its first part",
        long.is(Status::LBA_OUT_OF_RANGE),
    )?;
    let short = status(&mut queue, Command::read(nsid, 0, 2), memory(block)?)?;
    holds(
        "memory that is too short does not reach the drive",
        short.is(Status::SGL_DATA_LENGTH_INVALID),
    )?;
    let mut vendor = Command::flush(nsid);
    vendor.0.opcode = 0xc0;
    let vendor = status(&mut queue, vendor, Data::None)?;
    holds(
        "nor do commands of unknown length",
        vendor.is(Status::INVALID_OPCODE),
    )?;
    // The namespace in a command is the device's, whatever it says.
    let other = status(&mut queue, Command::read(nsid + 7, 0, 1), memory(block)?)?;
    holds("the namespace is the device's", other.is_success())?;
    Ok(())
}

fn dma_buf(device: &Device) -> Outcome {
    let buffer = homi_reactor::dma_buf::of_memory(1 << 20)?;
    match device.request_dma_buf(buffer.as_fd()) {
        Ok(()) => Err("data in a dma-buf is promised without a way to it".into()),
        Err(error) => {
            println!("{error}");
            Ok(())
        }
    }
}
