//! `homi read`: bytes from blocks, to a file, a pipe or the screen.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use homi_initiator::{Disk, Uri};
use serde_json::json;

use crate::arguments;
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::output;

/// Bytes that are read before they are written out.
pub(crate) const PIECE: u64 = 4 << 20;
/// The most bytes that `--json` prints as digits.
const MOST_DIGITS: u64 = 1 << 20;

/// Read bytes from a namespace, a file or memory
#[derive(Debug, Args)]
pub(crate) struct Read {
    /// Namespace, file or memory
    #[arg(value_parser = arguments::uri)]
    uri: Uri,
    /// First logical block
    #[arg(long, value_name = "BLOCK", conflicts_with = "offset")]
    lba: Option<u64>,
    /// First byte
    #[arg(long, value_name = "SIZE", value_parser = arguments::size)]
    offset: Option<u64>,
    /// Bytes to read [default: one block]
    #[arg(long, value_name = "SIZE", value_parser = arguments::some_size)]
    count: Option<u64>,
    /// File to write to [default: standard output; to a terminal, as a hexadecimal dump]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object; without --output it contains the bytes as digits
    #[arg(long)]
    pub(crate) json: bool,
}

impl Read {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let uri = connection::blocks(&self.uri)?;
        let initiator = self.connection.initiator()?;
        let mut disk = Disk::open(&initiator, uri)?;
        let offset = first_byte(self.lba, self.offset, disk.block_size())?;
        let count = self.count.unwrap_or(disk.block_size() as u64);
        check_range(uri, offset, count, disk.len())?;
        if self.json && self.output.is_none() && count > MOST_DIGITS {
            return Err(Failure::Usage(format!(
                "{count} bytes are too many to print as digits: add --output FILE, or read {MOST_DIGITS} at most"
            )));
        }
        let dump = self.output.is_none() && !self.json && output::is_terminal();
        let mut file = match &self.output {
            Some(path) => {
                let file = File::create(path).map_err(|error| Failure::file("create", path, &error))?;
                Some((file, path))
            }
            None => None,
        };
        let mut digits = String::new();
        let mut piece = vec![0; usize::try_from(count.min(PIECE)).unwrap_or(0)];
        let mut done = 0;
        while done < count {
            piece.truncate(usize::try_from(count - done).unwrap_or(usize::MAX));
            disk.read_at(offset + done, &mut piece)?;
            match &mut file {
                Some((file, path)) => {
                    file.write_all(&piece)
                        .map_err(|error| Failure::file("write to", path, &error))?;
                }
                None if self.json => digits.push_str(&output::hex(&piece)),
                None if dump => output::text(&output::dump(&piece, offset + done))?,
                None => output::bytes(&piece)?,
            }
            done += piece.len() as u64;
        }
        if self.json {
            let mut object = json!({ "uri": uri.to_string(), "offset": offset, "bytes_read": count });
            match (&self.output, object.as_object_mut()) {
                (Some(path), Some(object)) => object.insert("output".to_owned(), json!(path)),
                (None, Some(object)) => object.insert("data".to_owned(), json!(digits)),
                (_, None) => None,
            };
            return output::json(&object);
        }
        if let Some((_, path)) = file {
            let _ = writeln!(
                io::stderr(),
                "read {} from {uri} to {}",
                output::size(count),
                path.display()
            );
        }
        Ok(())
    }
}

/// The byte at which to start.
pub(crate) fn first_byte(lba: Option<u64>, offset: Option<u64>, block_size: usize) -> Result<u64, Failure> {
    match lba {
        None => Ok(offset.unwrap_or(0)),
        Some(lba) => lba.checked_mul(block_size as u64).ok_or_else(|| {
            Failure::Failed(format!(
                "block {lba} lies beyond any device: use a smaller number"
            ))
        }),
    }
}

/// Checks that the bytes exist.
pub(crate) fn check_range(uri: &Uri, offset: u64, count: u64, len: u64) -> Result<(), Failure> {
    match offset.checked_add(count) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Failure::Failed(format!(
            "{count} bytes from byte {offset} on do not lie in {uri}, which has {len}: use a smaller offset or count"
        ))),
    }
}
