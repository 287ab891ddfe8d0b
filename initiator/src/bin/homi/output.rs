//! Standard output: tables, JSON, bytes, and what happens when nobody reads them.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::failure::Failure;

/// Writes a text.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes bytes.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// Writes the one JSON object of a command.
pub(crate) fn json(value: &Value) -> Result<(), Failure> {
    text(&format!("{value:#}\n"))
}

/// Whether a person reads standard output.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns as wide as they must be, the header in front. Cells of columns in `right` are aligned to the right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(header.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut lines = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for ((column, cell), width) in row.iter().enumerate().zip(&widths) {
            if column > 0 {
                line.push_str("  ");
            }
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if right.contains(&column) {
                line.push_str(&pad);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&pad);
            }
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// Names and values below each other.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:width$}  {value}\n");
    fields.iter().map(line).collect()
}

/// A number of bytes for people: `4 KiB`, `1.5 GiB`, `1000 B`.
pub(crate) fn size(bytes: u64) -> String {
    let (mut unit, mut shift) = ("B", 0);
    for (name, bits) in [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)] {
        if bytes >= 1 << bits {
            (unit, shift) = (name, bits);
        }
    }
    if shift == 0 || bytes.trailing_zeros() >= shift {
        format!("{} {unit}", bytes >> shift)
    } else {
        format!("{:.1} {unit}", float(bytes) / float(1 << shift))
    }
}

/// A rate for people: three to four digits and a unit of a thousand.
pub(crate) fn count(value: f64) -> String {
    if value >= 9_999_500.0 {
        format!("{:.1} M", value / 1e6)
    } else if value >= 999_500.0 {
        format!("{:.2} M", value / 1e6)
    } else if value >= 9_999.5 {
        format!("{:.1} k", value / 1e3)
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// A time in nanoseconds for people: `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`.
pub(crate) fn nanoseconds(value: f64) -> String {
    let (number, unit) = match value {
        v if v < 999.5 => return format!("{v:.0} ns"),
        v if v < 999_500.0 => (v / 1e3, "µs"),
        v if v < 999_500_000.0 => (v / 1e6, "ms"),
        v => (v / 1e9, "s"),
    };
    if number < 9.995 {
        format!("{number:.2} {unit}")
    } else if number < 99.95 {
        format!("{number:.1} {unit}")
    } else {
        format!("{number:.0} {unit}")
    }
}

/// The nearest floating-point number.
#[expect(clippy::cast_precision_loss, reason = "what is printed has four digits")]
pub(crate) fn float(value: u64) -> f64 {
    value as f64
}

/// Bytes per second as MiB/s; 0 for no time.
pub(crate) fn mib_per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        float(bytes) / seconds / 1_048_576.0
    } else {
        0.0
    }
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Sixteen bytes a line, as numbers and as text, with their offsets.
pub(crate) fn dump(bytes: &[u8], first: u64) -> String {
    let mut lines = String::new();
    for (number, line) in (0_u64..).zip(bytes.chunks(16)) {
        let digits: Vec<String> = line.iter().map(|byte| hex(&[*byte])).collect();
        let text: String = line
            .iter()
            .map(|byte| {
                if (0x20..0x7f).contains(byte) {
                    char::from(*byte)
                } else {
                    '.'
                }
            })
            .collect();
        lines.push_str(&format!(
            "{:08x}  {:47}  {text}\n",
            first + number * 16,
            digits.join(" ")
        ));
    }
    lines
}

/// A UUID or another identifier in its usual form.
pub(crate) fn uuid(bytes: &[u8; 16]) -> String {
    let digits = hex(bytes);
    let parts: Vec<&str> = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)]
        .iter()
        .filter_map(|(a, b)| digits.get(*a..*b))
        .collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(size(1000), "1000 B");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(count(12.34), "12.3");
        assert_eq!(count(4321.0), "4321");
        assert_eq!(count(43210.0), "43.2 k");
        assert_eq!(count(1_234_567.0), "1.23 M");
        assert_eq!(nanoseconds(850.0), "850 ns");
        assert_eq!(nanoseconds(12_340.0), "12.3 µs");
        assert_eq!(nanoseconds(999_900.0), "1.00 ms");
        assert_eq!(nanoseconds(1.2e9), "1.20 s");
    }

    #[test]
    fn tables_align() {
        let rows = vec![
            vec!["1".to_owned(), "µs".to_owned(), "x".to_owned()],
            vec!["200".to_owned(), "ms".to_owned()],
        ];
        assert_eq!(
            table(&["N", "UNIT", "REST"], &[0], &rows),
            "  N  UNIT  REST\n  1  µs    x\n200  ms\n"
        );
    }

    #[test]
    fn dumps_and_ids() {
        let lines = dump(b"HOMI\x00\xff 0123456789abc", 0x200);
        assert_eq!(
            lines,
            "00000200  48 4f 4d 49 00 ff 20 30 31 32 33 34 35 36 37 38  HOMI.. 012345678\n\
             00000210  39 61 62 63                                      9abc\n"
        );
        assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
    }
}
