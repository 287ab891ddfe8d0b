//! What every command that connects can be told about this host.

use std::time::Duration;

use clap::Args;
use homi_initiator::{Initiator, Uri};

use crate::arguments;
use crate::failure::Failure;

/// Options of the host's side of a connection.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Name of this host, which allow lists name [default: made from the machine's id]
    #[arg(long, value_name = "NQN")]
    host_nqn: Option<String>,
    /// How long connecting may take
    #[arg(long, value_name = "TIME", value_parser = arguments::time, default_value = "5s")]
    connect_timeout: Duration,
    /// How long a command may take before it is aborted; 0 waits forever
    #[arg(long, value_name = "TIME", value_parser = arguments::time, default_value = "30s")]
    command_timeout: Duration,
    /// Protect the headers of all PDUs with a CRC
    #[arg(long)]
    header_digest: bool,
    /// Protect the data of all PDUs with a CRC
    #[arg(long)]
    data_digest: bool,
    /// Over RDMA: let the controller reach the memory of each command through a window that closes with it
    #[arg(long)]
    memory_windows: bool,
}

impl Connection {
    /// The host that these options describe.
    pub(crate) fn initiator(&self) -> Result<Initiator, Failure> {
        let mut builder = Initiator::builder()
            .connect_timeout(self.connect_timeout)
            .command_timeout(self.command_timeout)
            .header_digest(self.header_digest)
            .data_digest(self.data_digest)
            .memory_windows(self.memory_windows);
        if let Some(nqn) = &self.host_nqn {
            builder = builder.host_nqn(nqn);
        }
        builder.build().map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// A URI that names blocks, not a directory of them.
pub(crate) fn blocks(uri: &Uri) -> Result<&Uri, Failure> {
    if uri.is_discovery() {
        return Err(Failure::Usage(format!(
            "{uri} names a discovery service, not blocks: choose a subsystem that `homi discover {uri}` lists"
        )));
    }
    Ok(uri)
}
