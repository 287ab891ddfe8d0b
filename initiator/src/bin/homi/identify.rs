//! `homi identify`: what a controller or a namespace says about itself.

use clap::Args;
use homi_initiator::{
    Controller, ControllerInfo, ControllerKind, Device, Drive, NamespaceInfo, Passthrough, Uri,
};
use homi_spec::identify::DATA_SIZE;
use serde_json::{Value, json};

use crate::arguments;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output;

/// Describe a controller or a namespace
#[derive(Debug, Args)]
pub(crate) struct Identify {
    /// Controller or namespace, as in nvme+tcp://storage/nqn.2024-01.org.example:disk1
    #[arg(value_parser = arguments::uri)]
    uri: Uri,
    /// Describe the controller (what happens anyway if the URI names no namespace)
    #[arg(long, conflicts_with = "namespace")]
    controller: bool,
    /// Describe this namespace
    #[arg(long, value_name = "NSID", value_parser = clap::value_parser!(u32).range(1..=0xffff_fffe))]
    namespace: Option<u32>,
    /// Give the 4096 bytes of the identify page: as they are, to a terminal as a hexadecimal dump, in JSON as digits
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Identify {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let initiator = self.connection.initiator()?;
        let in_uri = match &self.uri {
            Uri::Fabric(fabric) => fabric.nsid,
            _ => {
                let device = initiator.open(&self.uri)?;
                return self.local(&device);
            }
        };
        let controller = initiator.connect(&self.uri)?;
        let nsid = if self.controller {
            None
        } else {
            self.namespace.or(in_uri)
        };
        match nsid {
            Some(nsid) => self.of_namespace(&controller, nsid),
            None => self.of_controller(&controller),
        }
    }

    fn of_controller(&self, controller: &Controller) -> Result<(), Failure> {
        if self.raw {
            return self.page("controller", &controller.identify_controller()?);
        }
        let info = controller.info();
        if self.json {
            return output::json(
                &json!({ "uri": self.uri.to_string(), "controller": controller_json(info) }),
            );
        }
        output::text(&output::fields(&controller_fields(info)))
    }

    fn of_namespace(&self, controller: &Controller, nsid: u32) -> Result<(), Failure> {
        let info = controller.namespace(nsid)?;
        if self.raw {
            return self.page("namespace", &controller.identify_namespace(nsid)?);
        }
        if self.json {
            return output::json(&json!({ "uri": self.uri.to_string(), "namespace": namespace_json(&info) }));
        }
        output::text(&output::fields(&namespace_fields(&info)))
    }

    fn local(&self, device: &Device) -> Result<(), Failure> {
        if self.raw || self.controller {
            if let Some(namespace) = device.passthrough() {
                return self.of_drive(namespace);
            }
            if let Some(drive) = device.drive() {
                return self.of_drive(drive);
            }
        }
        if self.raw || self.controller {
            return Err(Failure::Usage(format!(
                "{} has no controller and no identify pages: leave --raw and --controller out",
                self.uri
            )));
        }
        if self.namespace.is_some_and(|nsid| nsid != device.nsid()) {
            return Err(Failure::Usage(format!(
                "{} has namespace {} only",
                self.uri,
                device.nsid()
            )));
        }
        if self.json {
            return output::json(&json!({ "uri": self.uri.to_string(), "namespace": device_json(device) }));
        }
        let mut fields = vec![
            ("namespace", device.nsid().to_string()),
            ("size", sizes(device.bytes())),
            ("blocks", device.blocks().to_string()),
            ("block size", output::size(device.block_size().into())),
            ("largest transfer", output::size(device.max_transfer().into())),
            ("read only", yes(device.read_only())),
        ];
        if let Some(namespace) = device.passthrough() {
            fields.extend(namespace_ids(device.namespace()));
            fields.extend(namespace.fields());
        }
        if let Some(drive) = device.drive() {
            fields.extend(namespace_ids(device.namespace()));
            fields.extend(drive.fields());
        }
        output::text(&output::fields(&fields))
    }

    /// What a drive of this machine says.
    fn of_drive(&self, drive: &impl Identified) -> Result<(), Failure> {
        match (self.raw, self.controller) {
            (true, true) => self.page("controller", &drive.controller_page()?),
            (true, false) => self.page("namespace", &drive.namespace_page()?),
            (false, _) if self.json => {
                let fields = drive.fields().into_iter();
                let fields: serde_json::Map<String, Value> = fields
                    .map(|(name, value)| (name.replace(' ', "_"), json!(value)))
                    .collect();
                output::json(&json!({ "uri": self.uri.to_string(), "controller": fields }))
            }
            (false, _) => output::text(&output::fields(&drive.fields())),
        }
    }

    fn page(&self, name: &str, page: &[u8]) -> Result<(), Failure> {
        if self.json {
            output::json(&json!({ "uri": self.uri.to_string(), "page": name, "bytes": output::hex(page) }))
        } else if output::is_terminal() {
            output::text(&output::dump(page, 0))
        } else {
            output::bytes(page)
        }
    }
}

fn kind(kind: ControllerKind) -> &'static str {
    match kind {
        ControllerKind::Io => "i/o",
        ControllerKind::Discovery => "discovery",
        ControllerKind::Administrative => "administrative",
        _ => "unknown",
    }
}

fn sizes(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", output::size(bytes))
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn controller_fields(info: &ControllerInfo) -> Vec<(&'static str, String)> {
    let optional = [
        (info.compare, "compare"),
        (info.write_zeroes, "write zeroes"),
        (info.deallocate, "deallocate"),
        (info.verify, "verify"),
    ];
    let optional: Vec<&str> = optional
        .iter()
        .filter(|(has, _)| *has)
        .map(|(_, name)| *name)
        .collect();
    vec![
        ("subsystem", info.subsystem_nqn.to_string()),
        (
            "controller",
            format!("{:#06x}, {}", info.controller_id, kind(info.kind)),
        ),
        ("model", info.model.clone()),
        ("serial", info.serial.clone()),
        ("firmware", info.firmware.clone()),
        ("version", info.version.to_string()),
        (
            "i/o queues",
            format!("{} of up to {} entries", info.io_queues, info.max_queue_entries),
        ),
        (
            "largest transfer",
            info.max_transfer
                .map_or("unlimited".to_owned(), |bytes| output::size(bytes.into())),
        ),
        ("in-capsule data", output::size(info.in_capsule.into())),
        (
            "keep alive",
            match info.keep_alive_ms {
                0 => "off".to_owned(),
                millis => format!("{millis} ms"),
            },
        ),
        (
            "commands",
            if optional.is_empty() {
                "none optional".to_owned()
            } else {
                optional.join(", ")
            },
        ),
        ("volatile cache", yes(info.volatile_write_cache)),
    ]
}

/// A controller as JSON.
pub(crate) fn controller_json(info: &ControllerInfo) -> Value {
    json!({
        "subsystem": info.subsystem_nqn.as_str(),
        "controller_id": info.controller_id,
        "kind": kind(info.kind),
        "model": info.model,
        "serial": info.serial,
        "firmware": info.firmware,
        "version": info.version.to_string(),
        "vendor_id": info.vendor_id,
        "io_queues": info.io_queues,
        "max_queue_entries": info.max_queue_entries,
        "max_transfer": info.max_transfer,
        "max_nsid": info.max_nsid,
        "in_capsule": info.in_capsule,
        "keep_alive_ms": info.keep_alive_ms,
        "keep_alive_granularity_ms": info.keep_alive_granularity_ms,
        "event_requests": info.event_requests,
        "abort_limit": info.abort_limit,
        "compare": info.compare,
        "write_zeroes": info.write_zeroes,
        "deallocate": info.deallocate,
        "verify": info.verify,
        "volatile_write_cache": info.volatile_write_cache,
    })
}

fn namespace_fields(info: &NamespaceInfo) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("namespace", info.nsid.to_string()),
        ("size", sizes(info.bytes())),
        ("blocks", info.blocks.to_string()),
        ("block size", output::size(info.block_size.into())),
        ("metadata", output::size(info.metadata_size.into())),
    ];
    fields.extend(namespace_ids(info));
    fields.push(("read only", yes(info.read_only)));
    fields.push(("shared", yes(info.shared)));
    fields
}

fn namespace_ids(info: &NamespaceInfo) -> [(&'static str, String); 3] {
    let or_none = |id: Option<String>| id.unwrap_or_else(|| "none".to_owned());
    [
        ("uuid", or_none(info.uuid.map(|id| output::uuid(&id)))),
        ("nguid", or_none(info.nguid.map(|id| output::hex(&id)))),
        ("eui64", or_none(info.eui64.map(|id| output::hex(&id)))),
    ]
}

/// A namespace of a drive of this machine, behind the kernel's driver or this process's own.
trait Identified {
    fn fields(&self) -> Vec<(&'static str, String)>;
    fn controller_page(&self) -> Result<[u8; DATA_SIZE], Failure>;
    fn namespace_page(&self) -> Result<[u8; DATA_SIZE], Failure>;
}

impl Identified for Passthrough {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("model", self.model().to_owned()),
            ("serial", self.ids().serial.clone()),
            ("firmware", self.firmware().to_owned()),
        ];
        if let Some(kernel) = self.kernel() {
            fields.push(("block device", kernel.block.display().to_string()));
        }
        fields
    }

    fn controller_page(&self) -> Result<[u8; DATA_SIZE], Failure> {
        self.identify_controller()
            .map_err(|error| Failure::Failed(error.to_string()))
    }

    fn namespace_page(&self) -> Result<[u8; DATA_SIZE], Failure> {
        self.identify_namespace()
            .map_err(|error| Failure::Failed(error.to_string()))
    }
}

impl Identified for Drive {
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("model", self.model().to_owned()),
            ("serial", self.ids().serial.clone()),
            ("firmware", self.firmware().to_owned()),
            ("pci address", self.name().to_owned()),
        ]
    }

    fn controller_page(&self) -> Result<[u8; DATA_SIZE], Failure> {
        self.identify_controller()
            .map_err(|error| Failure::Failed(error.to_string()))
    }

    fn namespace_page(&self) -> Result<[u8; DATA_SIZE], Failure> {
        self.identify_namespace()
            .map_err(|error| Failure::Failed(error.to_string()))
    }
}

/// A namespace as JSON.
pub(crate) fn namespace_json(info: &NamespaceInfo) -> Value {
    json!({
        "nsid": info.nsid,
        "bytes": info.bytes(),
        "blocks": info.blocks,
        "block_size": info.block_size,
        "metadata_size": info.metadata_size,
        "uuid": info.uuid.map(|id| output::uuid(&id)),
        "nguid": info.nguid.map(|id| output::hex(&id)),
        "eui64": info.eui64.map(|id| output::hex(&id)),
        "read_only": info.read_only,
        "shared": info.shared,
    })
}

/// A local device as JSON.
pub(crate) fn device_json(device: &Device) -> Value {
    let mut object = json!({
        "nsid": device.nsid(),
        "bytes": device.bytes(),
        "blocks": device.blocks(),
        "block_size": device.block_size(),
        "max_transfer": device.max_transfer(),
        "read_only": device.read_only(),
    });
    if let (Some(namespace), Some(object)) = (device.passthrough(), object.as_object_mut()) {
        let ids = namespace.ids();
        object.insert("uuid".to_owned(), json!(ids.uuid.map(|id| output::uuid(&id))));
        object.insert("nguid".to_owned(), json!(ids.nguid.map(|id| output::hex(&id))));
        object.insert("eui64".to_owned(), json!(ids.eui64.map(|id| output::hex(&id))));
        object.insert("model".to_owned(), json!(namespace.model()));
        object.insert("serial".to_owned(), json!(ids.serial));
        object.insert("firmware".to_owned(), json!(namespace.firmware()));
        let block = namespace
            .kernel()
            .map(|kernel| kernel.block.display().to_string());
        object.insert("block_device".to_owned(), json!(block));
    }
    if let (Some(drive), Some(object)) = (device.drive(), object.as_object_mut()) {
        let ids = drive.ids();
        object.insert("uuid".to_owned(), json!(ids.uuid.map(|id| output::uuid(&id))));
        object.insert("nguid".to_owned(), json!(ids.nguid.map(|id| output::hex(&id))));
        object.insert("eui64".to_owned(), json!(ids.eui64.map(|id| output::hex(&id))));
        object.insert("model".to_owned(), json!(drive.model()));
        object.insert("serial".to_owned(), json!(ids.serial));
        object.insert("firmware".to_owned(), json!(drive.firmware()));
        object.insert("pci_address".to_owned(), json!(drive.name()));
    }
    object
}
