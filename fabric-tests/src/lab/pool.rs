//! [`Pool`]: guests that serve one test after the other.
//!
//! A boot takes seconds and most tests need the same guest, so guests stay for the next test with equal ones unless a test failed in them
//! or left something behind. One set of guests stays at a time: tests are run in an order that has equal ones side by side.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;

use super::guest::Guest;
use super::link::{Link, Plan};
use super::test::Failure;
use super::vm::{Setting, Vm};

/// Guests and their links.
#[derive(Debug)]
pub struct Set {
    kernel: String,
    guests: &'static [Guest],
    pub(crate) vms: Vec<Arc<Vm>>,
    pub(crate) links: Vec<Arc<Link>>,
    /// Gone with the set.
    _folder: TempDir,
}

impl Set {
    /// Boots guests, all at once.
    ///
    /// # Errors
    /// One does not boot, or a link is not between two of them.
    pub fn boot(guests: &'static [Guest], setting: Setting<'_>) -> Result<Self, Failure> {
        // Paths of sockets are short (108 bytes), so this is not in the build folder.
        let folder = scratch_folder()?;
        let setting = Setting {
            folder: folder.path(),
            ..setting
        };
        let mut links = Vec::new();
        for (number, ends) in link_ends(guests)?.into_iter().enumerate() {
            links.push(Arc::new(Link::start(folder.path(), number, ends)?));
        }
        let vms = thread::scope(|scope| {
            let boots: Vec<_> = guests
                .iter()
                .enumerate()
                .map(|(index, guest)| scope.spawn(move || Vm::boot(guest, index, setting)))
                .collect();
            boots
                .into_iter()
                .map(|boot| {
                    boot.join()
                        .map_err(|_| Failure::new("a boot panicked"))?
                        .map(Arc::new)
                })
                .collect::<Result<Vec<_>, Failure>>()
        })?;
        Ok(Self {
            kernel: setting.kernel.name.clone(),
            guests,
            vms,
            links,
            _folder: folder,
        })
    }

    /// Whether these are the guests that a test wants.
    #[must_use]
    pub fn is(&self, kernel: &str, guests: &[Guest]) -> bool {
        self.kernel == kernel && self.guests == guests
    }

    /// Undoes what a test did to links.
    pub fn reset_links(&self) {
        for link in &self.links {
            link.set(Plan::CLEAN);
        }
    }

    /// Empties the folders that it shares with its guests.
    ///
    /// # Errors
    /// What the system says.
    pub fn empty_shares(&self) -> Result<(), Failure> {
        for vm in &self.vms {
            for entry in fs::read_dir(vm.share())? {
                let path = entry?.path();
                if path.is_dir() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}

/// Beginning of the names of folders that runs make; the number of the process follows.
const FOLDERS: &str = "homi-lab.";

/// A folder of this machine that is gone when it is dropped.
///
/// # Errors
/// What the system says.
pub fn scratch_folder() -> Result<TempDir, Failure> {
    let prefix = format!("{FOLDERS}{}.", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir()?)
}

/// Removes the folders of runs that were killed.
pub fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(FOLDERS).and_then(|rest| rest.split('.').next());
        if process
            .is_some_and(|number| number.parse::<u32>().is_ok() && !Path::new("/proc").join(number).exists())
        {
            // Another run may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The two guests at each link, by its number.
///
/// # Errors
/// A link that is not between two guests.
pub fn link_ends(guests: &[Guest]) -> Result<Vec<[usize; 2]>, Failure> {
    let count = guests
        .iter()
        .flat_map(|guest| guest.links)
        .map(|link| link + 1)
        .max()
        .unwrap_or(0);
    (0..count)
        .map(|link| {
            let at: Vec<usize> = (0..guests.len())
                .filter(|index| {
                    guests
                        .get(*index)
                        .is_some_and(|guest| guest.links.contains(&link))
                })
                .collect();
            <[usize; 2]>::try_from(at).map_err(|at| {
                Failure::new(format!(
                    "link {link} is at {} guests: it must be at two",
                    at.len()
                ))
            })
        })
        .collect()
}

/// The guests that one worker has.
#[derive(Debug, Default)]
pub struct Pool {
    kept: Option<Set>,
    /// How many guests were booted.
    pub boots: usize,
}

impl Pool {
    /// Guests for a test: kept ones if they are what it wants, otherwise booted.
    ///
    /// # Errors
    /// They do not boot.
    pub fn take(
        &mut self,
        guests: &'static [Guest],
        setting: Setting<'_>,
        fresh: bool,
    ) -> Result<Set, Failure> {
        if let Some(set) = self.kept.take()
            && !fresh
            && set.is(&setting.kernel.name, guests)
        {
            return Ok(set);
        }
        self.boots += guests.len();
        Set::boot(guests, setting)
    }

    /// Keeps guests for the next test.
    pub fn keep(&mut self, set: Set) {
        self.kept = Some(set);
    }

    /// Whether it has these guests.
    #[must_use]
    pub fn has(&self, kernel: &str, guests: &[Guest]) -> bool {
        self.kept.as_ref().is_some_and(|set| set.is(kernel, guests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_join_two_guests() {
        let at = |links| Guest {
            links,
            ..Guest::SMALL
        };
        assert_eq!(link_ends(&[Guest::SMALL]).unwrap(), Vec::<[usize; 2]>::new());
        assert_eq!(
            link_ends(&[at(&[0]), at(&[0, 1]), at(&[1])]).unwrap(),
            [[0, 1], [1, 2]]
        );
        assert!(link_ends(&[at(&[0])]).is_err());
        assert!(link_ends(&[at(&[1]), at(&[1])]).is_err());
    }
}
