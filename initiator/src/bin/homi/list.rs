//! `homi list`: controllers and their namespaces; of a discovery service, those of every subsystem that it knows; the drives of this machine.

use clap::Args;
use homi_initiator::uri::PciAddress;
use homi_initiator::{Device, Initiator, SubsystemKind, Uri};
use homi_pci::topology::{Function, Sysfs};
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
    /// Subsystem, discovery service, drive, file or memory; nvme+pci:// alone lists the drives of this machine
    #[arg(value_name = "URI", value_parser = place)]
    place: Listed,
    #[command(flatten)]
    connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is listed.
#[derive(Debug, Clone)]
enum Listed {
    /// What is at a place.
    Uri(Box<Uri>),
    /// All NVMe functions of this machine.
    Functions,
}

/// The URI that leads to no drive in particular.
const FUNCTIONS: &str = "nvme+pci://";

fn place(text: &str) -> Result<Listed, String> {
    if text == FUNCTIONS {
        return Ok(Listed::Functions);
    }
    arguments::uri(text).map(|uri| Listed::Uri(Box::new(uri)))
}

/// What is printed, in both forms.
#[derive(Default)]
struct Listing {
    controllers: Vec<Value>,
    text: String,
}

impl List {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let uri = match &self.place {
            Listed::Uri(uri) => &**uri,
            Listed::Functions => return self.functions(),
        };
        let initiator = self.connection.initiator()?;
        let mut listing = Listing::default();
        if uri.is_discovery() {
            let records = initiator.discover(uri)?;
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
                listing
                    .text
                    .push_str(&format!("{uri} knows no subsystem that this host may use\n"));
            }
        } else if let Uri::Pci { address, nsid: None } = uri {
            listing.add_drive(&initiator, *address)?;
        } else if uri.is_local() {
            listing.add_local(&initiator, uri)?;
        } else {
            listing.add_controller(&initiator, uri)?;
        }
        if self.json {
            output::json(&json!({ "uri": uri.to_string(), "controllers": listing.controllers }))
        } else {
            output::text(&listing.text)
        }
    }
}

impl List {
    /// The drives of this machine, who has each, and whether it can be driven from here.
    fn functions(&self) -> Result<(), Failure> {
        let found = Sysfs::of_this_machine()
            .nvme_functions()
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let told: Vec<(String, String, bool, String)> = found
            .iter()
            .map(|function| {
                let (usable, why) = verdict(function);
                let driver = function.driver.clone().unwrap_or_else(|| "-".to_owned());
                (function.address.to_string(), driver, usable, why)
            })
            .collect();
        if self.json {
            let list: Vec<Value> = told
                .iter()
                .zip(&found)
                .map(|((address, _, usable, why), function)| {
                    json!({
                        "address": address,
                        "uri": format!("{FUNCTIONS}{address}"),
                        "driver": function.driver,
                        "numa_node": function.numa_node,
                        "iommu_group": function.iommu_group.as_ref().map(|group| group.number),
                        "disks": function.disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>(),
                        "usable": usable,
                        "why": why,
                    })
                })
                .collect();
            return output::json(&json!({ "uri": FUNCTIONS, "drives": list }));
        }
        if told.is_empty() {
            return output::text("this machine has no NVMe drive on PCI Express\n");
        }
        let rows: Vec<Vec<String>> = told
            .into_iter()
            .zip(&found)
            .map(|((address, driver, usable, why), function)| {
                let group = function.iommu_group.as_ref();
                vec![
                    format!("{FUNCTIONS}{address}"),
                    driver,
                    group.map_or_else(|| "-".to_owned(), |group| group.number.to_string()),
                    if usable { "yes" } else { "no" }.to_owned(),
                    why,
                ]
            })
            .collect();
        let header = ["URI", "DRIVER", "IOMMU GROUP", "USABLE", "WHY"];
        output::text(&output::table(&header, &[], &rows))
    }
}

/// Whether a function can be driven from here, and why or why not.
fn verdict(function: &Function) -> (bool, String) {
    let address = function.address;
    let uses: Vec<String> = function
        .disks
        .iter()
        .flat_map(|disk| disk.uses.iter().map(ToString::to_string))
        .collect();
    let group = function.iommu_group.as_ref();
    if !uses.is_empty() {
        return (false, format!("the kernel uses it: {}", uses.join(", ")));
    }
    let Some(group) = group.filter(|group| !group.is_fake) else {
        let why = "there is no IOMMU in front of it: turn it on in the firmware, and boot with intel_iommu=on or amd_iommu=on";
        return (false, why.to_owned());
    };
    match function.driver.as_deref() {
        Some("vfio-pci") => {
            let node = match &function.vfio_device {
                Some(device) => format!("/dev/vfio/{} or /dev/vfio/devices/{device}", group.number),
                None => format!("/dev/vfio/{}", group.number),
            };
            (true, format!("bound to VFIO: {node}"))
        }
        Some("nvme") => (
            false,
            format!("the kernel's driver has it: `scripts/bind-vfio {address}` takes it over"),
        ),
        Some(other) => (
            false,
            format!("the driver {other} has it: `scripts/bind-vfio {address}` takes it over"),
        ),
        None => (
            false,
            format!("no driver has it: `scripts/bind-vfio {address}` binds it to VFIO"),
        ),
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

    fn add_drive(&mut self, initiator: &Initiator, address: PciAddress) -> Result<(), Failure> {
        let namespaces = initiator.open_drive(address)?;
        let uri = Uri::Pci { address, nsid: None };
        let (mut rows, mut list, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
        let mut about = String::new();
        for namespace in &namespaces {
            match namespace {
                Ok(device) => {
                    if let Some(drive) = device.drive() {
                        about = format!(": {} {}", drive.model(), drive.ids().serial);
                    }
                    rows.push(row(device));
                    list.push(device_json(device));
                }
                Err(error) => {
                    unusable.push(error.to_string());
                    list.push(json!({ "error": error.to_string() }));
                }
            }
        }
        self.text
            .push_str(&format!("{uri}{about}, driven by this process\n"));
        if !rows.is_empty() || unusable.is_empty() {
            self.push_table(&rows);
        }
        for reason in unusable {
            self.text.push_str(&format!("  {reason}\n"));
        }
        self.controllers
            .push(json!({ "uri": uri.to_string(), "namespaces": list }));
        Ok(())
    }

    fn add_local(&mut self, initiator: &Initiator, uri: &Uri) -> Result<(), Failure> {
        let device = initiator.open(uri)?;
        self.text.push_str("this machine\n");
        self.push_table(&[row(&device)]);
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

fn row(device: &Device) -> Vec<String> {
    vec![
        device.nsid().to_string(),
        output::size(device.bytes()),
        output::size(device.block_size().into()),
        device.blocks().to_string(),
        access(device.read_only()),
        "-".to_owned(),
        device.uri().to_string(),
    ]
}

fn access(read_only: bool) -> String {
    if read_only { "read" } else { "read/write" }.to_owned()
}
