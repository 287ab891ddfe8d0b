//! [`Report`]: what a run found, for people line by line and for programs as JSON.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::test::{Peer, Transport};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, or could not be started.
    Failed,
    /// Something that it needs is missing.
    Skipped,
}

/// A test on a kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name, `file::name`.
    pub test: String,
    /// Name of the kernel of its guests; `host` for a test without guests.
    pub kernel: String,
    /// What `uname -r` says there.
    pub release: String,
    /// What carries the commands.
    pub transport: Transport,
    /// What stands at the other end.
    pub peer: Peer,
    /// What is shown to work, for the compatibility table.
    pub feature: String,
    /// How it ended.
    pub result: Outcome,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// The requirement for want of which it was skipped.
    pub missing: Option<String>,
    /// Seconds that it took, without boots.
    pub seconds: f64,
}

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was run of all that there is; everything where it is absent.
    pub filter: Option<String>,
    /// The one kernel that it ran on; every kernel where it is absent.
    pub only_kernel: Option<String>,
    /// Version of QEMU.
    pub qemu: String,
    /// What executed the guests' instructions: `kvm` or `tcg`.
    pub accelerator: String,
    /// The tests.
    pub rows: Vec<Row>,
    /// How many guests were booted.
    pub boots: usize,
    /// Seconds that all of it took.
    pub seconds: f64,
}

impl Report {
    /// How many tests ended so.
    #[must_use]
    pub fn count(&self, result: Outcome) -> usize {
        self.rows.iter().filter(|row| row.result == result).count()
    }

    /// Whether it was a run of every test on every kernel.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.filter.is_none() && self.only_kernel.is_none()
    }

    /// The last line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped; {} guests booted; {:.0} s",
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::Skipped),
            self.boots,
            self.seconds
        )
    }
}

/// Widths of the columns of a run, known before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Widths {
    test: usize,
    kernel: usize,
}

impl Widths {
    /// Widths for tests and kernels with these names.
    pub fn of<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        rows.into_iter()
            .fold(Self::default(), |widths, (test, kernel)| Self {
                test: widths.test.max(test.len()),
                kernel: widths.kernel.max(kernel.len()),
            })
    }
}

/// Colours of a terminal, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colours(pub bool);

impl Row {
    /// The line of a test.
    #[must_use]
    pub fn line(&self, widths: Widths, colours: Colours) -> String {
        let (word, colour) = match self.result {
            Outcome::Passed => ("pass", "32"),
            Outcome::Failed => ("FAIL", "31;1"),
            Outcome::Skipped => ("skip", "33"),
        };
        let word = if colours.0 {
            format!("\x1b[{colour}m{word}\x1b[0m")
        } else {
            word.to_owned()
        };
        let mut line = format!(
            "{word}  {:test$}  {:kernel$}  {:5}  {:12}  {:6.1} s",
            self.test,
            self.kernel,
            self.transport,
            self.peer,
            self.seconds,
            test = widths.test,
            kernel = widths.kernel,
        );
        if let Some(reason) = &self.reason {
            // Writing to a string cannot fail.
            let _ = write!(line, "  {reason}");
        }
        line
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(test: &str, release: &str, peer: Peer, feature: &str, result: Outcome) -> Row {
        Row {
            test: test.to_owned(),
            kernel: "debian".to_owned(),
            release: release.to_owned(),
            transport: Transport::Tcp,
            peer,
            feature: feature.to_owned(),
            result,
            reason: (result != Outcome::Passed).then(|| "because".to_owned()),
            missing: (result == Outcome::Skipped).then(|| "Gpu".to_owned()),
            seconds: 1.25,
        }
    }

    #[test]
    fn lines_are_columns() {
        let rows = [
            row("a::short", "6", Peer::LinuxHost, "x", Outcome::Passed),
            row("a::longer_name", "6", Peer::LinuxTarget, "x", Outcome::Failed),
        ];
        let widths = Widths::of(rows.iter().map(|row| (row.test.as_str(), row.kernel.as_str())));
        assert_eq!(
            rows[0].line(widths, Colours(false)),
            "pass  a::short        debian  tcp    Linux host       1.2 s"
        );
        assert_eq!(
            rows[1].line(widths, Colours(false)),
            "FAIL  a::longer_name  debian  tcp    Linux target     1.2 s  because"
        );
        assert!(
            rows[0]
                .line(widths, Colours(true))
                .starts_with("\x1b[32mpass\x1b[0m")
        );
    }

    #[test]
    fn a_report_survives_its_json_and_counts() {
        let report = Report {
            rows: vec![
                row("a::b", "6", Peer::LinuxHost, "x", Outcome::Passed),
                row("a::c", "6", Peer::Own, "x", Outcome::Skipped),
            ],
            boots: 1,
            seconds: 7.4,
            ..Report::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(
            text.contains(r#""peer":"linux-host""#) && text.contains(r#""result":"skipped""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert_eq!(
            report.summary(),
            "1 passed, 0 failed, 1 skipped; 1 guests booted; 7 s"
        );
        assert!(report.is_whole());
        assert!(
            !Report {
                filter: Some("a".to_owned()),
                ..report
            }
            .is_whole()
        );
    }
}
