//! `homi write`: a file's bytes, or a pipe's, to blocks.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use homi_initiator::{Disk, Uri};
use serde_json::json;

use crate::arguments;
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::output;
use crate::read::{PIECE, check_range, first_byte};
use crate::{mounted, pipeline};

/// Write a file's bytes to a namespace or a device
#[derive(Debug, Args)]
pub(crate) struct Write {
    /// Namespace, file or memory
    #[arg(value_parser = arguments::uri)]
    uri: Uri,
    /// File with the bytes; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// First logical block
    #[arg(long, value_name = "BLOCK", conflicts_with = "offset")]
    lba: Option<u64>,
    /// First byte
    #[arg(long, value_name = "SIZE", value_parser = arguments::size)]
    offset: Option<u64>,
    /// Bytes to write [default: the whole file]
    #[arg(long, value_name = "SIZE", value_parser = arguments::size)]
    count: Option<u64>,
    /// Return without making the bytes durable
    #[arg(long)]
    no_flush: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Write {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let uri = connection::blocks(&self.uri)?;
        let from_stdin = self.input == Path::new("-");
        let (mut input, len): (Box<dyn io::Read>, Option<u64>) = if from_stdin {
            (Box::new(io::stdin().lock()), self.count)
        } else {
            let (file, len) = pipeline::open_source(&self.input)?;
            if let (Some(count), Some(len)) = (self.count, len)
                && count > len
            {
                return Err(Failure::Failed(format!(
                    "{} has {len} bytes, not {count}: use a smaller count",
                    self.input.display()
                )));
            }
            // Files that the kernel makes up as they are read say that they are empty.
            (Box::new(file), self.count.or(len.filter(|len| *len > 0)))
        };
        if let Some(path) = arguments::uri_device(uri) {
            mounted::refuse_if_in_use(&path)?;
        }
        let mut disk = Disk::open(&self.connection.initiator()?, uri)?;
        let offset = first_byte(self.lba, self.offset, disk.block_size())?;
        if let Some(len) = len {
            check_range(uri, offset, len, disk.len())?;
        }
        let mut piece = Vec::with_capacity(usize::try_from(len.unwrap_or(PIECE).min(PIECE)).unwrap_or(0));
        let mut done = 0;
        while len.is_none_or(|len| done < len) {
            piece.clear();
            let wanted = len.map_or(PIECE, |len| (len - done).min(PIECE));
            input
                .by_ref()
                .take(wanted)
                .read_to_end(&mut piece)
                .map_err(|error| Failure::file("read", &self.input, &error))?;
            if piece.is_empty() {
                break;
            }
            check_range(uri, offset, done + piece.len() as u64, disk.len())?;
            disk.write_at(offset + done, &piece)?;
            done += piece.len() as u64;
        }
        if let Some(len) = len.filter(|len| *len > done) {
            return Err(Failure::Failed(format!(
                "the input ended after {done} of {len} bytes, which were written: use a smaller count"
            )));
        }
        if !self.no_flush {
            disk.flush()?;
        }
        if self.json {
            return output::json(&json!({
                "uri": uri.to_string(),
                "offset": offset,
                "bytes_written": done,
                "flushed": !self.no_flush,
            }));
        }
        let _ = writeln!(io::stderr(), "wrote {} to {uri}", output::size(done));
        Ok(())
    }
}
