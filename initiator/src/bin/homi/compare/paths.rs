//! The paths that are compared, and the kernel's other paths to the same namespaces.

use std::fs;
use std::path::PathBuf;

use homi_initiator::bench::{Outcome, Workload};
use homi_initiator::{Device, Initiator, KernelNamespace, NamespaceIds, Transport, Uri};

use crate::failure::Failure;
use crate::workload::{Accesses, WorkloadOptions};

/// A path, and what came of it.
pub(super) struct Path {
    pub(super) uri: Uri,
    /// What it is, in a word or two.
    pub(super) kind: &'static str,
    /// It was not given but found.
    pub(super) found: bool,
    pub(super) device: Option<Device>,
    /// What the namespace is known by.
    pub(super) ids: Option<NamespaceIds>,
    /// Bytes of its blocks.
    pub(super) block_size: Option<u32>,
    /// One round's share.
    pub(super) workload: Option<Workload>,
    pub(super) outcome: Option<Outcome>,
    /// I/Os per second by round, where there are any.
    pub(super) rates: Vec<Option<f64>>,
    /// Why it cannot be used.
    pub(super) reason: Option<String>,
    /// It could be used at first.
    pub(super) failed: bool,
}

impl Path {
    /// Opens a path, to read only if that is all that is done to it.
    pub(super) fn open(initiator: &Initiator, uri: &Uri, accesses: Accesses, found: bool) -> Self {
        let opened = WorkloadOptions::refuse_if_in_use(uri, accesses).and_then(|()| {
            let opened = if accesses.writes() {
                initiator.open(uri)
            } else {
                initiator.open_to_read(uri)
            };
            opened.map_err(Failure::from)
        });
        let (device, reason) = match opened {
            Ok(device) => (Some(device), None),
            Err(Failure::Usage(reason) | Failure::Failed(reason) | Failure::Wrong(reason, _)) => {
                (None, Some(reason))
            }
            Err(Failure::BrokenPipe) => (None, Some("nobody reads the output".to_owned())),
        };
        let ids = match &device {
            Some(device) => device.ids(),
            // What cannot be opened can still be found in sysfs.
            None => local_path(uri).and_then(|path| Some(homi_initiator::namespace_at(&path)?.ids)),
        };
        Self {
            uri: device
                .as_ref()
                .map_or_else(|| uri.clone(), |device| device.uri().clone()),
            kind: kind(uri),
            found,
            ids,
            block_size: device.as_ref().map(Device::block_size),
            device,
            workload: None,
            outcome: None,
            rates: Vec::new(),
            reason,
            failed: false,
        }
    }
}

/// What a URI leads through.
pub(super) fn kind(uri: &Uri) -> &'static str {
    match uri {
        Uri::Fabric(fabric) => match fabric.transport {
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
            _ => "fabric",
        },
        Uri::Kernel { .. } => "kernel commands",
        Uri::Pci { .. } => "user-space driver",
        Uri::File { path, .. } => {
            use std::os::unix::fs::FileTypeExt;
            match fs::metadata(path) {
                Ok(metadata) if metadata.file_type().is_block_device() => "kernel block",
                _ => "file",
            }
        }
        Uri::Ram { .. } => "memory",
        _ => "other",
    }
}

fn local_path(uri: &Uri) -> Option<PathBuf> {
    match uri {
        Uri::Kernel { path } | Uri::File { path, .. } => Some(path.clone()),
        _ => None,
    }
}

/// The kernel's paths to the namespaces of these paths that are not among them.
pub(super) fn others(paths: &[Path]) -> Vec<Uri> {
    others_of(paths, &homi_initiator::kernel_namespaces())
}

fn others_of(paths: &[Path], namespaces: &[KernelNamespace]) -> Vec<Uri> {
    let real = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
    let mut known: Vec<PathBuf> = paths
        .iter()
        .filter_map(|path| local_path(&path.uri))
        .map(real)
        .collect();
    let mut found = Vec::new();
    for namespace in namespaces {
        let reached: Vec<&Path> = paths
            .iter()
            .filter(|path| path.ids.as_ref().is_some_and(|ids| ids.same(&namespace.ids)))
            .collect();
        if reached.is_empty() {
            continue;
        }
        // Blocks as the others see them, so that a small I/O is possible on all.
        let block_size = reached
            .iter()
            .filter_map(|path| path.block_size)
            .min()
            .filter(|size| matches!(size, 512 | 4096))
            .unwrap_or(homi_initiator::uri::LOCAL_BLOCK);
        let block = Uri::File {
            path: namespace.block.clone(),
            block_size,
        };
        let generic = namespace
            .generic
            .as_ref()
            .map(|path| Uri::Kernel { path: path.clone() });
        for uri in [Some(block), generic].into_iter().flatten() {
            if let Some(path) = local_path(&uri).map(real)
                && !known.contains(&path)
            {
                known.push(path);
                found.push(uri);
            }
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A path that was not opened.
    pub(in crate::compare) fn path(uri: &str) -> Path {
        let uri: Uri = uri.parse().unwrap();
        Path {
            kind: kind(&uri),
            uri,
            found: false,
            device: None,
            ids: None,
            block_size: None,
            workload: None,
            outcome: None,
            rates: Vec::new(),
            reason: None,
            failed: false,
        }
    }

    #[test]
    fn paths_say_what_they_are() {
        for (uri, expected) in [
            ("nvme+tcp://h/nqn.2026-01.org.example:a", "tcp"),
            ("nvme+rdma://h/nqn.2026-01.org.example:a", "rdma"),
            ("nvme+kernel:///dev/ng0n1", "kernel commands"),
            ("file:///etc/passwd", "file"),
            ("ram://1M", "memory"),
        ] {
            assert_eq!(path(uri).kind, expected);
        }
    }

    #[test]
    fn the_kernels_paths_to_the_same_namespace_are_found_once() {
        let ids = |serial: &str, nsid| NamespaceIds {
            nsid,
            serial: serial.to_owned(),
            ..NamespaceIds::default()
        };
        let namespace = |number: u32, generic: bool, ids| {
            let mut namespace = KernelNamespace::default();
            namespace.block = PathBuf::from(format!("/dev/nvme7n{number}"));
            namespace.generic = generic.then(|| PathBuf::from(format!("/dev/ng7n{number}")));
            namespace.ids = ids;
            namespace
        };
        let namespaces = [
            namespace(1, true, ids("A", 1)),
            namespace(2, true, ids("A", 2)),
            namespace(3, false, ids("B", 1)),
        ];
        let mut first = path("nvme+kernel:///dev/ng7n1");
        (first.ids, first.block_size) = (Some(ids("A", 1)), Some(512));
        let mut second = path("nvme+tcp://h/nqn.2026-01.org.example:a");
        second.ids = Some(ids("B", 1));
        let mut elsewhere = path("ram://1M");
        elsewhere.ids = None;
        let found = others_of(&[first, second, elsewhere], &namespaces);
        let found: Vec<String> = found.iter().map(Uri::to_string).collect();
        assert_eq!(found, ["file:///dev/nvme7n1?block=512", "file:///dev/nvme7n3"]);
    }
}
