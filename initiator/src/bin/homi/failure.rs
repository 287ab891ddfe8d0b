//! [`Failure`]: why a command did not do what it was asked for, and how the process says so.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use homi_initiator::Error;
use homi_initiator::bench::{BenchError, WorkloadError};
use serde_json::json;

/// Exit code for a command that failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code for a command line that cannot be meant.
pub(crate) const USAGE: u8 = 2;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line cannot be meant.
    Usage(String),
    /// Something went wrong.
    Failed(String),
    /// Data is not what it should be: what was found, and what `--json` says about it.
    Wrong(String, serde_json::Value),
    /// Whoever reads standard output has seen enough.
    BrokenPipe,
}

impl Failure {
    /// A failure of the file system, with the file's name and what to look at.
    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
            io::ErrorKind::StorageFull => "make room or choose another file system",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "check the file and the device that it is on",
        };
        Self::Failed(format!(
            "cannot {what} {}: {}; {hint}",
            path.display(),
            plain(error)
        ))
    }

    /// A failure of standard output.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::Failed(format!("cannot write to standard output: {}", plain(error)))
        }
    }

    /// Says what went wrong, and returns the exit code.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let (code, text, object) = match self {
            Self::BrokenPipe => return ExitCode::SUCCESS,
            Self::Usage(text) => (USAGE, text, None),
            Self::Failed(text) => (FAILED, text, None),
            Self::Wrong(text, object) => (FAILED, text, Some(object)),
        };
        if json {
            let object = object.unwrap_or_else(|| json!({ "error": text }));
            // The exit code says it too, should nobody read this.
            let _ = writeln!(io::stdout(), "{object}");
        }
        // Where standard error is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "homi: {text}");
        ExitCode::from(code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<homi_queue::MemoryError> for Failure {
    fn from(error: homi_queue::MemoryError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<WorkloadError> for Failure {
    fn from(error: WorkloadError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Workload(error) => error.into(),
            BenchError::Mismatch(mismatch) => {
                let object = json!({
                    "verified": false,
                    "error": mismatch.to_string(),
                    "lba": mismatch.expected.lba(),
                    "expected": mismatch.expected.to_string(),
                    "found": mismatch.found.to_string(),
                });
                Self::Wrong(mismatch.to_string(), object)
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The error without the number that the standard library adds.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_lowercase(),
        None => text,
    }
}

/// What the argument parser says in several lines, in one: without its usage and its pointer to the help.
pub(crate) fn sentence(message: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for line in message.lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        if !line.is_empty() {
            parts.push(line.trim_start_matches("error: "));
        }
    }
    parts
        .join(" ")
        .replace(" tip: ", "; ")
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_sentence() {
        let message = "error: unexpected argument '--depht' found\n\n  tip: a similar argument exists: '--depth'\n\n\
                       Usage: homi bench <URI>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            sentence(message),
            "unexpected argument '--depht' found; a similar argument exists: '--depth'"
        );
    }

    #[test]
    fn system_errors_lose_their_number() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(plain(&error), "no such file or directory");
        assert_eq!(plain(&io::Error::other("odd")), "odd");
    }
}
