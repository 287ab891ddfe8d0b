//! What command lines are made of: sizes, times, places and lists of cores. Each parser's error says what to write instead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use homi_initiator::Uri;
use homi_initiator::uri::parse_size;

/// A number of bytes: `4096`, `4k`, `128KiB`, `1G`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| {
        format!("\"{text}\" is not a size: write a number of bytes, or one with k, M, G or T, as in 4k, 128KiB or 1G")
    })
}

/// A size that is not zero.
pub(crate) fn some_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("a size of 0 is not possible here: use 1 or more".to_owned()),
        size => Ok(size),
    }
}

/// A span of time: `10`, `10s`, `500ms`, `2m`, `1h`; without a unit, seconds.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("\"{text}\" is not a time: write seconds, or a number with ms, s, m or h, as in 500ms or 2m")
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit.to_ascii_lowercase().as_str() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" | "sec" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    // Limited to ten years, so that no sum of times overflows.
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| time.as_secs() <= 10 * 366 * 86400)
        .ok_or_else(wrong)
}

/// Cores: `0`, `0,2`, `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) Vec<usize>);

/// Parses [`Cores`].
pub(crate) fn cores(text: &str) -> Result<Cores, String> {
    let wrong = || format!("\"{text}\" is not a list of cores: write numbers and ranges, as in 0,2 or 0-3");
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last >= 4096 {
            return Err(wrong());
        }
        list.extend(first..=last);
    }
    Ok(Cores(list))
}

/// A URI.
pub(crate) fn uri(text: &str) -> Result<Uri, String> {
    text.parse::<Uri>().map_err(|error| error.to_string())
}

/// One side of a copy: blocks that a URI names, or a plain file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Blocks.
    Uri(Box<Uri>),
    /// A file by its path.
    File(PathBuf),
}

impl Place {
    /// The file of this machine that it is, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Uri(uri) => uri_path(uri),
        }
    }

    /// The device or file of this machine that it leads to.
    pub(crate) fn device(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::Uri(uri) => uri_device(uri),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uri(uri) => uri.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The file of this machine that a URI names, if it does.
pub(crate) fn uri_path(uri: &Uri) -> Option<&Path> {
    match uri {
        Uri::File { path, .. } => Some(path),
        _ => None,
    }
}

/// The device or file of this machine that a URI leads to: the block device where commands are passed to its namespace.
pub(crate) fn uri_device(uri: &Uri) -> Option<PathBuf> {
    match uri {
        Uri::Kernel { path } => homi_initiator::namespace_at(path).map(|namespace| namespace.block),
        _ => uri_path(uri).map(Path::to_path_buf),
    }
}

/// Parses a [`Place`]: whatever has a scheme is a URI.
pub(crate) fn place(text: &str) -> Result<Place, String> {
    if text.is_empty() {
        return Err("an empty place is not possible: write a URI or the path of a file".to_owned());
    }
    if text.contains("://") {
        uri(text).map(|uri| Place::Uri(Box::new(uri)))
    } else {
        Ok(Place::File(PathBuf::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("128KiB", 131_072),
            ("1G", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "k",
            "4x",
            "-1",
            "1.5k",
            "4 k",
            "99999999999999999999",
            "99999999T",
        ] {
            assert!(size(text).unwrap_err().contains("is not a size"), "{text}");
        }
        assert!(some_size("0").is_err());
    }

    #[test]
    fn times() {
        for (text, millis) in [
            ("10", 10_000),
            ("10s", 10_000),
            ("500ms", 500),
            ("0.5", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "10x", "-1", "1e9", "1.2.3", "999999h"] {
            assert!(time(text).unwrap_err().contains("is not a time"), "{text}");
        }
    }

    #[test]
    fn core_lists() {
        assert_eq!(cores("0-2,8"), Ok(Cores(vec![0, 1, 2, 8])));
        for text in ["", "a", "3-1", "0,", "0-99999999"] {
            assert!(
                cores(text).unwrap_err().contains("is not a list of cores"),
                "{text}"
            );
        }
    }

    #[test]
    fn places() {
        assert_eq!(place("a/b.bin"), Ok(Place::File("a/b.bin".into())));
        let Ok(Place::Uri(uri)) = place("ram://1M") else {
            panic!("a URI")
        };
        assert!(matches!(*uri, Uri::Ram { size: 1_048_576, .. }));
        assert!(place("ftp://x").unwrap_err().contains("unknown scheme"));
        assert_eq!(place("file:///x").unwrap().path(), Some(Path::new("/x")));
    }
}
