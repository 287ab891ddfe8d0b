//! `homi discover`: what a discovery service knows.

use clap::Args;
use homi_initiator::{AddressFamily, DiscoveryRecord, SubsystemKind, Transport, TransportKind, Uri};
use serde_json::{Value, json};

use crate::arguments;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output;

/// List the subsystems that a discovery service knows
#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// Discovery service, as in nvme+tcp://storage:8009 or nvme+rdma://storage
    #[arg(value_parser = arguments::uri)]
    uri: Uri,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Discover {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let records = self.connection.initiator()?.discover(&self.uri)?;
        if self.json {
            let records: Vec<Value> = records.iter().map(describe).collect();
            return output::json(&json!({ "uri": self.uri.to_string(), "records": records }));
        }
        if records.is_empty() {
            return output::text(&format!(
                "{} knows no subsystem that this host may use\n",
                self.uri
            ));
        }
        let rows: Vec<Vec<String>> = records
            .iter()
            .map(|record| {
                vec![
                    kind(record.kind).to_owned(),
                    transport(record.transport).to_owned(),
                    record.address.clone(),
                    record.service.clone(),
                    record.subsystem.to_string(),
                ]
            })
            .collect();
        let mut text = output::table(
            &["KIND", "TRANSPORT", "ADDRESS", "PORT", "SUBSYSTEM"],
            &[3],
            &rows,
        );
        if let Some(uri) = records
            .iter()
            .find(|record| record.kind == SubsystemKind::Nvm)
            .and_then(uri_of)
        {
            text.push_str(&format!("\nlook inside with: homi list '{uri}'\n"));
        }
        output::text(&text)
    }
}

/// The URI that a record leads to, if this program can go there.
pub(crate) fn uri_of(record: &DiscoveryRecord) -> Option<Uri> {
    let transport = Transport::of_record(record.transport)?;
    let port = record.service.parse().ok()?;
    let subsystem = record.subsystem.clone();
    Some(Uri::subsystem_over(transport, &record.address, port, subsystem))
}

fn describe(record: &DiscoveryRecord) -> Value {
    json!({
        "kind": kind(record.kind),
        "transport": transport(record.transport),
        "family": family(record.family),
        "address": record.address,
        "port": record.service,
        "subsystem": record.subsystem.as_str(),
        "port_id": record.port_id,
        "controller_id": record.controller_id,
        "admin_queue_entries": record.admin_queue_entries,
        "secure_required": record.secure_required,
        "duplicate": record.duplicate,
        "uri": uri_of(record).map(|uri| uri.to_string()),
    })
}

fn kind(kind: SubsystemKind) -> &'static str {
    match kind {
        SubsystemKind::Referral => "referral",
        SubsystemKind::Nvm => "nvm",
        SubsystemKind::CurrentDiscovery => "discovery",
        _ => "unknown",
    }
}

fn transport(transport: TransportKind) -> &'static str {
    match transport {
        TransportKind::Rdma => "rdma",
        TransportKind::FibreChannel => "fc",
        TransportKind::Tcp => "tcp",
        TransportKind::Loop => "loop",
        _ => "unknown",
    }
}

fn family(family: AddressFamily) -> &'static str {
    match family {
        AddressFamily::Ipv4 => "ipv4",
        AddressFamily::Ipv6 => "ipv6",
        AddressFamily::InfiniBand => "ib",
        AddressFamily::FibreChannel => "fc",
        AddressFamily::Loop => "loop",
        _ => "unknown",
    }
}
