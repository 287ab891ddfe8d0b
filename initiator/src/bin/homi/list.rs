//! `homi list`: controllers and their namespaces; of a discovery service, those of every subsystem that it knows.

use clap::Args;
use homi_initiator::{Initiator, SubsystemKind, Uri};
use serde_json::{Value, json};

use crate::arguments;
use crate::connection::Connection;
use crate::discover::uri_of;
use crate::failure::Failure;
use crate::identify::{controller_json, device_json, namespace_json};
use crate::output;

/// List controllers and their namespaces
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Subsystem, discovery service, file or memory
    #[arg(value_parser = arguments::uri)]
    uri: Uri,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is printed, in both forms.
#[derive(Default)]
struct Listing {
    controllers: Vec<Value>,
    text: String,
}

impl List {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let initiator = self.connection.initiator()?;
        let mut listing = Listing::default();
        if self.uri.is_discovery() {
            let records = initiator.discover(&self.uri)?;
            let mut places: Vec<Uri> = records
                .iter()
                .filter(|record| record.kind == SubsystemKind::Nvm)
                .filter_map(uri_of)
                .collect();
            places.dedup();
            let mut failed = None;
            for uri in &places {
                // One that cannot be reached must not hide the others.
                if let Err(Failure::Failed(reason)) = listing.add_controller(&initiator, uri) {
                    listing.text.push_str(&format!("{uri}\n  {reason}\n"));
                    listing
                        .controllers
                        .push(json!({ "uri": uri.to_string(), "error": reason }));
                    failed = Some(reason);
                }
            }
            if let (Some(reason), true) = (
                failed,
                listing.controllers.iter().all(|one| one.get("error").is_some()),
            ) {
                return Err(Failure::Failed(reason));
            }
            if places.is_empty() {
                listing.text.push_str(&format!(
                    "{} knows no subsystem that this host may use\n",
                    self.uri
                ));
            }
        } else if self.uri.is_local() {
            listing.add_local(&initiator, &self.uri)?;
        } else {
            listing.add_controller(&initiator, &self.uri)?;
        }
        if self.json {
            output::json(&json!({ "uri": self.uri.to_string(), "controllers": listing.controllers }))
        } else {
            output::text(&listing.text)
        }
    }
}

const HEADER: [&str; 7] = ["NSID", "SIZE", "BLOCK SIZE", "BLOCKS", "ACCESS", "ID", "URI"];

impl Listing {
    fn add_controller(&mut self, initiator: &Initiator, uri: &Uri) -> Result<(), Failure> {
        let controller = initiator.connect(uri)?;
        let info = controller.info();
        let only = match uri {
            Uri::Fabric(fabric) => fabric.nsid,
            _ => None,
        };
        let namespaces = match only {
            Some(nsid) => vec![controller.namespace(nsid)?],
            None => controller.namespaces()?,
        };
        self.text.push_str(&format!(
            "{}: {} {}, controller {:#06x} at {}\n",
            info.subsystem_nqn,
            info.model,
            info.serial,
            info.controller_id,
            controller.address()
        ));
        let rows: Vec<Vec<String>> = namespaces
            .iter()
            .map(|namespace| {
                let id = namespace.uuid.map(|id| output::uuid(&id));
                let id = id.or_else(|| namespace.nguid.map(|id| output::hex(&id)));
                let id = id.or_else(|| namespace.eui64.map(|id| output::hex(&id)));
                vec![
                    namespace.nsid.to_string(),
                    output::size(namespace.bytes()),
                    output::size(namespace.block_size.into()),
                    namespace.blocks.to_string(),
                    access(namespace.read_only),
                    id.unwrap_or_else(|| "-".to_owned()),
                    uri.clone().with_nsid(namespace.nsid).to_string(),
                ]
            })
            .collect();
        self.push_table(&rows);
        let mut object = controller_json(info);
        if let Some(object) = object.as_object_mut() {
            object.insert("uri".to_owned(), json!(uri.to_string()));
            object.insert("address".to_owned(), json!(controller.address()));
            let list: Vec<Value> = namespaces.iter().map(namespace_json).collect();
            object.insert("namespaces".to_owned(), json!(list));
        }
        self.controllers.push(object);
        Ok(())
    }

    fn add_local(&mut self, initiator: &Initiator, uri: &Uri) -> Result<(), Failure> {
        let device = initiator.open(uri)?;
        self.text.push_str("this machine\n");
        self.push_table(&[vec![
            device.nsid().to_string(),
            output::size(device.bytes()),
            output::size(device.block_size().into()),
            device.blocks().to_string(),
            access(device.read_only()),
            "-".to_owned(),
            uri.to_string(),
        ]]);
        self.controllers
            .push(json!({ "uri": uri.to_string(), "namespaces": [device_json(&device)] }));
        Ok(())
    }

    fn push_table(&mut self, rows: &[Vec<String>]) {
        if rows.is_empty() {
            self.text.push_str("  no namespace that this host may see\n");
            return;
        }
        for line in output::table(&HEADER, &[0, 1, 2, 3], rows).lines() {
            self.text.push_str(&format!("  {line}\n"));
        }
    }
}

fn access(read_only: bool) -> String {
    if read_only { "read" } else { "read/write" }.to_owned()
}
