//! Sizes as people write them.

/// A number of bytes with an optional suffix `K`, `M`, `G` or `T` (powers of 1024; `KiB` and `KB` mean the same), or `None`
/// if the text is none or the size does not fit.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("16KiB", Some(16 << 10)),
            ("3MB", Some(3 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("99999999999T", None),
            ("1X", None),
            ("-1", None),
            ("K", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
