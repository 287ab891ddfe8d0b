//! [`Kernel`]: a kernel that `scripts/lab setup` has prepared.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// What to do where something is missing.
pub const ADVICE: &str = "run scripts/lab setup";

/// A kernel that guests can boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name here: `debian-6.12`, `debian-newer`, `own`.
    pub name: String,
    /// What `uname -r` says in it.
    pub release: String,
    /// Package, version and suite that it came from.
    pub origin: String,
    /// The uncompressed image.
    pub vmlinux: PathBuf,
    /// What mounts the machine's root.
    pub initramfs: PathBuf,
    /// Its modules (`lib/modules/<release>`).
    pub modules: PathBuf,
}

/// Where `scripts/lab setup` puts everything.
#[must_use]
pub fn cache() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("HOMI_LAB").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .unwrap_or_else(|| {
                set("HOME")
                    .unwrap_or_else(|| PathBuf::from("/root"))
                    .join(".cache")
            })
            .join("homi-lab")
    })
}

/// The prepared kernels in a cache, the default one first; `own` only where `own` is set.
#[must_use]
pub fn find(cache: &Path, own: bool) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = fs::read_dir(cache.join("kernels"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Kernel::read(&entry.path()))
        .filter(|kernel| own || kernel.name != "own")
        .collect();
    kernels.sort_by_key(|kernel| (kernel.name == "own", kernel.version(), kernel.name.clone()));
    kernels
}

/// Whether the user names a kernel of theirs.
#[must_use]
pub fn own_is_named() -> bool {
    env::var_os("HOMI_LAB_KERNEL").is_some_and(|value| !value.is_empty())
}

impl Kernel {
    fn read(folder: &Path) -> Option<Self> {
        let name = folder.file_name()?.to_str()?.to_owned();
        let text = |file: &str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
        if name.starts_with('.') || name.ends_with(".old") || !folder.join("complete").exists() {
            return None;
        }
        let release = text("release")?;
        Some(Self {
            modules: folder.join("lib/modules").join(&release),
            vmlinux: folder.join("vmlinux"),
            initramfs: folder.join("initramfs"),
            origin: text("origin")?,
            name,
            release,
        })
    }

    /// The numbers that its release begins with, to compare.
    #[must_use]
    pub fn version(&self) -> Vec<u32> {
        self.release
            .split(|character: char| !character.is_ascii_digit())
            .map_while(|number| number.parse().ok())
            .collect()
    }

    /// Whether it has a module (by the name of its file, with `-` and `_` alike), loadable or built in.
    #[must_use]
    pub fn has_module(&self, module: &str) -> bool {
        let same = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            let name = file.split(".ko").next().unwrap_or(file);
            name.replace('-', "_") == module.replace('-', "_")
        };
        ["modules.dep", "modules.builtin"].iter().any(|list| {
            fs::read_to_string(self.modules.join(list)).is_ok_and(|text| {
                text.lines()
                    .any(|line| same(line.split(':').next().unwrap_or_default()))
            })
        })
    }

    /// Whether it was built with an option (`HOTPLUG_PCI_ACPI`), into itself or as a module. A kernel that came without its configuration
    /// counts as built with everything.
    #[must_use]
    pub fn is_built_with(&self, option: &str) -> bool {
        let config = self.vmlinux.with_file_name("config");
        fs::read_to_string(config).map_or(true, |text| {
            text.lines().any(|line| {
                line.strip_prefix("CONFIG_")
                    .and_then(|line| line.strip_prefix(option))
                    .is_some_and(|value| value == "=y" || value == "=m")
            })
        })
    }

    /// A kernel without files.
    #[cfg(test)]
    pub(crate) fn named_for_tests(name: &str, release: &str) -> Self {
        Self {
            name: name.to_owned(),
            release: release.to_owned(),
            origin: String::new(),
            vmlinux: PathBuf::from("/k/vmlinux"),
            initramfs: PathBuf::from("/k/initramfs"),
            modules: PathBuf::from("/k/modules"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(cache: &Path, name: &str, release: &str) {
        let modules = cache.join("kernels").join(name).join("lib/modules").join(release);
        fs::create_dir_all(&modules).unwrap();
        let folder = cache.join("kernels").join(name);
        for (file, text) in [
            ("release", release),
            ("origin", "package 1 suite"),
            ("complete", "1"),
        ] {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
        fs::write(
            modules.join("modules.dep"),
            "kernel/drivers/nvme/host/nvme-tcp.ko: kernel/lib/crc.ko\n",
        )
        .unwrap();
        fs::write(
            modules.join("modules.builtin"),
            "kernel/drivers/virtio/virtio_pci.ko\n",
        )
        .unwrap();
    }

    #[test]
    fn complete_kernels_are_found_oldest_first() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(find(cache.path(), true), []);
        prepare(cache.path(), "debian-newer", "7.3.4+deb13-amd64");
        prepare(cache.path(), "own", "6.1.0-mine");
        prepare(cache.path(), "debian-6.12", "6.12.95+deb12-amd64");
        prepare(cache.path(), "broken", "5.0");
        fs::remove_file(cache.path().join("kernels/broken/complete")).unwrap();
        let names = |own| -> Vec<String> {
            find(cache.path(), own)
                .into_iter()
                .map(|kernel| kernel.name)
                .collect()
        };
        assert_eq!(names(false), ["debian-6.12", "debian-newer"]);
        assert_eq!(names(true), ["debian-6.12", "debian-newer", "own"]);
    }

    #[test]
    fn versions_compare_as_numbers_and_modules_by_name() {
        let cache = tempfile::tempdir().unwrap();
        prepare(cache.path(), "debian-6.12", "6.12.95+deb12-amd64");
        let kernel = find(cache.path(), false).remove(0);
        assert_eq!(kernel.version(), [6, 12, 95]);
        assert!(Kernel::named_for_tests("a", "6.9.1").version() < kernel.version());
        assert!(
            kernel.has_module("nvme_tcp") && kernel.has_module("nvme-tcp") && kernel.has_module("virtio_pci")
        );
        assert!(!kernel.has_module("crc") && !kernel.has_module("nvme"));
        assert!(kernel.is_built_with("SMP"));
        let config = cache.path().join("kernels/debian-6.12/config");
        fs::write(
            config,
            "CONFIG_SMP=y\nCONFIG_SMP_SIZE=4\n# CONFIG_NUMA is not set\nCONFIG_NVME=m\n",
        )
        .unwrap();
        assert!(kernel.is_built_with("SMP") && kernel.is_built_with("NVME"));
        assert!(
            !kernel.is_built_with("NUMA") && !kernel.is_built_with("SM") && !kernel.is_built_with("SMP_SIZE")
        );
    }
}
