//! The compatibility table of the README, made from a run.

use std::collections::BTreeMap;

use super::report::{Outcome, Report};
use super::test::Failure;

/// Line before the table.
pub const BEGIN: &str = "<!-- lab:begin -->";
/// Line after the table.
pub const END: &str = "<!-- lab:end -->";

/// The table: a row for each peer, version and transport, with what passed and what did not.
#[must_use]
pub fn render(report: &Report) -> String {
    /// Features in the order in which they were first seen, and whether all tests of each passed.
    type Features = Vec<(String, bool)>;
    let mut rows: BTreeMap<(String, Vec<u32>, String, String), Features> = BTreeMap::new();
    for row in &report.rows {
        if row.feature.is_empty() || row.result == Outcome::Skipped {
            continue;
        }
        let numbers = row
            .release
            .split(|character: char| !character.is_ascii_digit())
            .map_while(|number| number.parse().ok())
            .collect();
        let key = (
            row.peer.to_string(),
            numbers,
            row.release.clone(),
            row.transport.to_string(),
        );
        let features = rows.entry(key).or_default();
        let passed = row.result == Outcome::Passed;
        match features.iter_mut().find(|(feature, _)| *feature == row.feature) {
            Some((_, all)) => *all &= passed,
            None => features.push((row.feature.clone(), passed)),
        }
    }
    let mut text = "| peer | version | transport | passed | failed |\n|---|---|---|---|---|\n".to_owned();
    for ((peer, _, release, transport), features) in rows {
        let joined = |wanted: bool| {
            let some: Vec<&str> = features
                .iter()
                .filter(|(_, all)| *all == wanted)
                .map(|(feature, _)| feature.as_str())
                .collect();
            if some.is_empty() {
                "—".to_owned()
            } else {
                some.join("; ")
            }
        };
        text += &format!(
            "| {peer} | {release} | {transport} | {} | {} |\n",
            joined(true),
            joined(false)
        );
    }
    text
}

/// The text with the table between its markers.
///
/// # Errors
/// There are no markers.
pub fn replace(text: &str, table: &str) -> Result<String, Failure> {
    let missing = || Failure::new(format!("there is no {BEGIN} with {END} after it"));
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::row;
    use super::super::test::Peer;
    use super::*;

    #[test]
    fn a_feature_passes_when_all_its_tests_do() {
        let report = Report {
            rows: vec![
                row("a::a", "6.12.1", Peer::LinuxHost, "identify", Outcome::Passed),
                row("a::b", "6.12.1", Peer::LinuxHost, "digests", Outcome::Passed),
                row("a::c", "6.12.1", Peer::LinuxHost, "digests", Outcome::Failed),
                row("a::d", "6.12.1", Peer::LinuxHost, "identify", Outcome::Passed),
                row("a::e", "6.12.1", Peer::LinuxHost, "TLS", Outcome::Skipped),
                row("a::f", "6.12.1", Peer::LinuxHost, "", Outcome::Passed),
                row("a::a", "6.9.0", Peer::LinuxHost, "identify", Outcome::Passed),
            ],
            ..Report::default()
        };
        assert_eq!(
            render(&report),
            "| peer | version | transport | passed | failed |\n\
             |---|---|---|---|---|\n\
             | Linux host | 6.9.0 | tcp | identify | — |\n\
             | Linux host | 6.12.1 | tcp | identify | digests |\n"
        );
    }

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let text = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n");
        let new = replace(&text, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n\n{BEGIN}\nnew\n{END}\n\nrest\n"));
        assert_eq!(replace(&new, "new\n").unwrap(), new);
        assert!(replace("# Title\n", "new\n").is_err());
    }
}
