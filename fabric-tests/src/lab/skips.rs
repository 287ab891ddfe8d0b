//! Which tests may be skipped where nothing else is to be: the list that continuous integration holds.

use std::path::Path;

use serde::Deserialize;

use super::requirement::Requirement;
use super::test::Failure;

/// The list (`fabric-tests/lab/allowed-skips.toml`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedSkips {
    /// Its entries.
    #[serde(default)]
    pub skip: Vec<AllowedSkip>,
}

/// An entry: what may be skipped, and why that is right.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedSkip {
    /// The requirement that may be missing, as `Gpu` or `Module(siw)`.
    pub requirement: String,
    /// The tests, as `file::name` or `file::*`; every test where it is absent.
    #[serde(default)]
    pub test: Option<String>,
    /// The kernel; every kernel where it is absent.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Why.
    pub reason: String,
}

impl AllowedSkips {
    /// Reads the list.
    ///
    /// # Errors
    /// It cannot be read, or an entry names no requirement or gives no reason.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|failure| failure.while_doing(path.display()))
    }

    /// Parses the list.
    ///
    /// # Errors
    /// As for [`AllowedSkips::read`].
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let skips: Self = toml::from_str(text)?;
        for skip in &skips.skip {
            if !Requirement::is_name(&skip.requirement) {
                return Err(Failure::new(format!("{:?} is no requirement", skip.requirement)));
            }
            if skip.reason.trim().is_empty() {
                return Err(Failure::new(format!(
                    "the skip of {} has no reason",
                    skip.requirement
                )));
            }
        }
        Ok(skips)
    }

    /// Whether this test may be skipped on this kernel for want of this.
    #[must_use]
    pub fn allow(&self, test: &str, kernel: &str, requirement: &str) -> bool {
        self.skip.iter().any(|skip| {
            let named = |pattern: &String| match pattern.strip_suffix('*') {
                Some(beginning) => test.starts_with(beginning),
                None => test == pattern,
            };
            skip.requirement == requirement
                && skip.test.as_ref().is_none_or(named)
                && skip.kernel.as_ref().is_none_or(|name| name == kernel)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_allow_what_they_name() {
        let skips = AllowedSkips::parse(
            r#"
[[skip]]
requirement = "Gpu"
reason = "the machines of CI have none"
[[skip]]
requirement = "Module(siw)"
test = "rdma::*"
kernel = "debian-6.12"
reason = "Debian does not build it"
"#,
        )
        .unwrap();
        assert!(skips.allow("any::test", "debian-newer", "Gpu"));
        assert!(skips.allow("rdma::connect", "debian-6.12", "Module(siw)"));
        assert!(!skips.allow("rdma::connect", "debian-newer", "Module(siw)"));
        assert!(!skips.allow("tcp::connect", "debian-6.12", "Module(siw)"));
        assert!(!skips.allow("any::test", "debian-6.12", "RdmaNic"));
        assert_eq!(AllowedSkips::parse("").unwrap(), AllowedSkips::default());
    }

    #[test]
    fn entries_without_a_known_requirement_or_a_reason_are_refused() {
        for wrong in [
            "[[skip]]\nrequirement = \"Gpus\"\nreason = \"x\"",
            "[[skip]]\nrequirement = \"Gpu\"\nreason = \" \"",
            "[[skip]]\nrequirement = \"Gpu\"",
            "[[skip]]\nrequirement = \"Gpu\"\nreason = \"x\"\ntests = \"y\"",
        ] {
            assert!(AllowedSkips::parse(wrong).is_err(), "{wrong}");
        }
    }
}
