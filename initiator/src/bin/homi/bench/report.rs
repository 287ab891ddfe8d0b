//! The report: one HTML page that needs nothing else, for a browser or a printer, in light and in dark.

use homi_initiator::bench::{Latency, Outcome, Sample};

use super::summary::{PERCENTILES, Summary, rate};
use super::svg::{Axis, Scale, Series, Style, escape, plot};
use crate::output;

/// Bars of the histogram per factor of ten.
const BARS_PER_DECADE: f64 = 24.0;
/// Points of the percentile curve per factor of ten.
const POINTS_PER_DECADE: u32 = 16;
/// Points over time.
const MOST_POINTS: usize = 600;

const STYLE: &str = include_str!("report.css");

/// The whole page.
pub(super) fn page(summary: &Summary<'_>, outcome: &Outcome) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str(&format!(
        "<title>homi bench: {}</title>\n",
        escape(&summary.workload())
    ));
    page.push_str(&format!("<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"));
    page.push_str(&format!(
        "<header>\n<p class=\"over\">Homi Fabrics benchmark</p>\n<h1>{}</h1>\n<p class=\"uri\">{}</p>\n</header>\n",
        escape(&summary.workload()),
        escape(&summary.uri)
    ));
    page.push_str(&tiles(outcome));
    page.push_str(&section("Results", "", &[], &results(summary, outcome)));
    let series = thinned(&outcome.series);
    page.push_str(&throughput(summary, outcome, &series));
    page.push_str(&latency_over_time(&series));
    page.push_str(&percentiles(summary));
    page.push_str(&histogram(summary));
    page.push_str("<div class=\"pair\">\n");
    page.push_str(&section(
        "Cost of an I/O on this machine",
        "",
        &[],
        &table_of(&summary.costs()),
    ));
    page.push_str(&section(
        "Configuration",
        "",
        &[],
        &table_of(&summary.configuration()),
    ));
    page.push_str("</div>\n");
    page.push_str(&format!(
        "<footer>homi {}. Latency counts from handing a command over to seeing its completion.</footer>\n",
        env!("CARGO_PKG_VERSION")
    ));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn tiles(outcome: &Outcome) -> String {
    let mut all = Latency::new();
    all.add(&outcome.reads.latency);
    all.add(&outcome.writes.latency);
    let seconds = outcome.elapsed.as_secs_f64();
    let time = |quantile: f64| output::nanoseconds(output::float(all.quantile(quantile)));
    let mut tiles = vec![
        ("I/Os per second", output::count(outcome.iops())),
        (
            "Throughput",
            format!("{:.0} MiB/s", output::mib_per_second(outcome.bytes(), seconds)),
        ),
        ("Median latency", time(0.5)),
        ("99th percentile", time(0.99)),
        ("99.99th percentile", time(0.9999)),
    ];
    if outcome.workload.verify {
        tiles.push((
            "Blocks verified",
            output::count(output::float(outcome.blocks_verified)),
        ));
    }
    let tiles: String = tiles
        .iter()
        .map(|(name, value)| format!("<div class=\"tile\"><span>{name}</span><b>{value}</b></div>\n"))
        .collect();
    format!("<div class=\"tiles\">\n{tiles}</div>\n")
}

/// A titled part of the page with a legend of (class, name).
fn section(title: &str, note: &str, legend: &[(&str, &str)], body: &str) -> String {
    let mut html = format!("<section>\n<h2>{title}</h2>\n");
    if !note.is_empty() {
        html.push_str(&format!("<p class=\"note\">{}</p>\n", escape(note)));
    }
    if legend.len() > 1 {
        let entries: String = legend
            .iter()
            .map(|(class, name)| format!("<span><i class=\"{class}\"></i>{name}</span>"))
            .collect();
        html.push_str(&format!("<p class=\"legend\">{entries}</p>\n"));
    }
    html.push_str(body);
    html.push_str("</section>\n");
    html
}

fn results(summary: &Summary<'_>, outcome: &Outcome) -> String {
    let seconds = outcome.elapsed.as_secs_f64();
    let mut header = vec!["I/Os", "IOPS", "MiB/s", "min", "mean", "std. dev."];
    header.extend(PERCENTILES.map(|(_, name, _)| name));
    header.push("max");
    let header: String = header.iter().map(|name| format!("<th>{name}</th>")).collect();
    let mut rows = String::new();
    for (name, tally) in summary.directions() {
        let latency = &tally.latency;
        let mut cells = vec![
            tally.ios.to_string(),
            output::count(rate(tally.ios, seconds)),
            format!("{:.1}", output::mib_per_second(tally.bytes, seconds)),
            output::nanoseconds(output::float(latency.min())),
            output::nanoseconds(latency.mean()),
            output::nanoseconds(latency.deviation()),
        ];
        cells.extend(
            PERCENTILES.map(|(quantile, ..)| output::nanoseconds(output::float(latency.quantile(quantile)))),
        );
        cells.push(output::nanoseconds(output::float(latency.max())));
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        rows.push_str(&format!(
            "<tr><th><i class=\"{name}\"></i>{name}</th>{cells}</tr>\n"
        ));
    }
    if rows.is_empty() {
        return "<p class=\"note\">No I/O completed in the time given.</p>\n".to_owned();
    }
    format!(
        "<div class=\"wide\"><table class=\"results\">\n<tr><th></th>{header}</tr>\n{rows}</table></div>\n"
    )
}

fn table_of(fields: &[(&'static str, String)]) -> String {
    let rows: String = fields
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><th><span class=\"capital\">{name}</span></th><td>{}</td></tr>\n",
                escape(value)
            )
        })
        .collect();
    format!("<table class=\"fields\">\n{rows}</table>\n")
}

/// No more points over time than a screen can show: neighbours are put together, and keep their worst latencies.
fn thinned(series: &[Sample]) -> Vec<Sample> {
    let group = series.len().div_ceil(MOST_POINTS).max(1);
    let join = |samples: &[Sample]| {
        let (first, rest) = samples.split_first()?;
        Some(rest.iter().fold(*first, |sum, sample| Sample {
            at: sample.at,
            length: sum.length + sample.length,
            reads: sum.reads + sample.reads,
            writes: sum.writes + sample.writes,
            p50: sum.p50.max(sample.p50),
            p99: sum.p99.max(sample.p99),
            max: sum.max.max(sample.max),
        }))
    };
    series.chunks(group).filter_map(join).collect()
}

fn time_axis(series: &[Sample]) -> Axis {
    let end = series.last().map_or(1.0, |sample| sample.at.as_secs_f64());
    Axis::new(Scale::Linear(0.0, end), "seconds", trimmed)
}

fn throughput(summary: &Summary<'_>, outcome: &Outcome, samples: &[Sample]) -> String {
    let io_bytes = output::float(outcome.workload.io_bytes());
    let title = "I/Os per second over time";
    if samples.len() < 2 {
        return section(
            title,
            "The run was too short, or took no samples, for a plot over time.",
            &[],
            "",
        );
    }
    let directions = summary.directions();
    let series: Vec<Series> = directions
        .iter()
        .map(|(name, _)| {
            let value = |sample: &Sample| {
                let ios = if *name == "read" {
                    sample.reads
                } else {
                    sample.writes
                };
                rate(ios, sample.length.as_secs_f64())
            };
            Series {
                class: name,
                style: Style::Line,
                points: samples
                    .iter()
                    .map(|sample| (sample.at.as_secs_f64(), value(sample)))
                    .collect(),
                notes: samples
                    .iter()
                    .map(|sample| {
                        let iops = value(sample);
                        format!(
                            "{:.1} s: {name} {} IOPS, {:.1} MiB/s",
                            sample.at.as_secs_f64(),
                            output::count(iops),
                            iops * io_bytes / 1_048_576.0
                        )
                    })
                    .collect(),
            }
        })
        .collect();
    let most = series
        .iter()
        .flat_map(|series| &series.points)
        .map(|(_, y)| *y)
        .fold(0.0, f64::max);
    let scale = Scale::from_zero(most);
    let iops = Axis::new(scale, "I/Os per second", short_count);
    // The same heights in another unit: every I/O has the same size.
    let factor = io_bytes / 1_048_576.0;
    let mib_scale = Scale::from_zero(most * factor);
    let mib = Axis {
        scale,
        ticks: mib_scale
            .ticks()
            .into_iter()
            .map(|tick| (tick / factor, short_count(tick)))
            .filter(|(tick, _)| matches!(scale, Scale::Linear(_, to) if *tick <= to))
            .collect(),
        title: "MiB per second",
    };
    let legend: Vec<(&str, &str)> = directions.iter().map(|(name, _)| (*name, *name)).collect();
    let body = plot(title, &time_axis(samples), &iops, Some(&mib), &series);
    section("I/Os and MiB per second over time", "", &legend, &body)
}

fn latency_over_time(series: &[Sample]) -> String {
    type Value = fn(&Sample) -> u64;
    let samples: Vec<Sample> = series.iter().filter(|sample| sample.max > 0).copied().collect();
    if samples.len() < 2 {
        return String::new();
    }
    let kinds: [(&'static str, &'static str, Value); 3] = [
        ("longest", "longest", |sample| sample.max),
        ("p99", "99th percentile", |sample| sample.p99),
        ("p50", "median", |sample| sample.p50),
    ];
    let series: Vec<Series> = kinds
        .iter()
        .map(|(class, name, value)| Series {
            class,
            style: Style::Line,
            points: samples
                .iter()
                .map(|sample| (sample.at.as_secs_f64(), output::float(value(sample))))
                .collect(),
            notes: samples
                .iter()
                .map(|sample| {
                    let latency = output::nanoseconds(output::float(value(sample)));
                    format!("{:.1} s: {name} {latency}", sample.at.as_secs_f64())
                })
                .collect(),
        })
        .collect();
    let values = || series.iter().flat_map(|series| &series.points).map(|(_, y)| *y);
    let scale = Scale::around(
        values().fold(f64::INFINITY, f64::min),
        values().fold(0.0, f64::max),
    );
    let axis = Axis::new(scale, "latency", tick_time);
    let legend: Vec<(&str, &str)> = kinds.iter().map(|(class, name, _)| (*class, *name)).collect();
    let body = plot("Latency over time", &time_axis(&samples), &axis, None, &series);
    section("Latency over time", "", &legend, &body)
}

fn percentiles(summary: &Summary<'_>) -> String {
    let directions = summary.directions();
    let most = directions
        .iter()
        .map(|(_, tally)| tally.latency.count())
        .max()
        .unwrap_or(0);
    if most < 10 {
        return String::new();
    }
    // As many nines as there are I/Os to show them.
    let decades = (1..=7)
        .take_while(|nines| 10_u64.pow(*nines) <= most)
        .last()
        .unwrap_or(1);
    let series: Vec<Series> = directions
        .iter()
        .map(|(name, tally)| {
            let place = |point: u32| f64::from(point) / f64::from(POINTS_PER_DECADE);
            let value = |point: u32| output::float(tally.latency.quantile(1.0 - 10_f64.powf(-place(point))));
            let points: Vec<u32> = (0..=decades * POINTS_PER_DECADE).collect();
            Series {
                class: name,
                style: Style::Line,
                points: points
                    .iter()
                    .map(|point| (place(*point), value(*point)))
                    .collect(),
                notes: points
                    .iter()
                    .map(|point| {
                        let percent = 100.0 - 100.0 * 10_f64.powf(-place(*point));
                        format!(
                            "{} % of {name}s within {}",
                            nines(percent),
                            output::nanoseconds(value(*point))
                        )
                    })
                    .collect(),
            }
        })
        .collect();
    let values = || series.iter().flat_map(|series| &series.points).map(|(_, y)| *y);
    let scale = Scale::around(
        values().fold(f64::INFINITY, f64::min).max(1.0),
        values().fold(0.0, f64::max),
    );
    let mut ticks = vec![
        (0.0, "0 %".to_owned()),
        (0.5_f64.recip().log10(), "50 %".to_owned()),
    ];
    for nines_shown in 1..=decades {
        ticks.push((
            f64::from(nines_shown),
            format!("{} %", nines(100.0 - 100.0 * 0.1_f64.powi(to_i32(nines_shown)))),
        ));
    }
    let x = Axis {
        scale: Scale::Linear(0.0, f64::from(decades)),
        ticks,
        title: "share of all I/Os",
    };
    let y = Axis::new(scale, "latency", tick_time);
    let legend: Vec<(&str, &str)> = directions.iter().map(|(name, _)| (*name, *name)).collect();
    section(
        "Latency by percentile",
        "So many of all I/Os took no longer than this; each mark to the right is ten times rarer.",
        &legend,
        &plot("Latency by percentile", &x, &y, None, &series),
    )
}

fn histogram(summary: &Summary<'_>) -> String {
    let directions = summary.directions();
    let least = directions
        .iter()
        .map(|(_, tally)| tally.latency.min())
        .min()
        .unwrap_or(0)
        .max(1);
    let most = directions
        .iter()
        .map(|(_, tally)| tally.latency.max())
        .max()
        .unwrap_or(0)
        .max(1);
    if directions.is_empty() {
        return String::new();
    }
    let scale = Scale::around(output::float(least), output::float(most));
    let Scale::Log(from, to) = scale else {
        return String::new();
    };
    let bars = ((to / from).log10() * BARS_PER_DECADE).ceil().max(1.0);
    let edge = |bar: f64| from * (to / from).powf(bar / bars);
    let edges: Vec<f64> = std::iter::successors(Some(0.0), |bar| Some(bar + 1.0))
        .take_while(|bar| *bar < bars)
        .map(edge)
        .collect();
    let series: Vec<Series> = directions
        .iter()
        .map(|(name, tally)| {
            let mut counts = vec![0_u64; edges.len()];
            for (value, count) in tally.latency.counts() {
                let bar = edges
                    .partition_point(|edge| *edge <= output::float(value))
                    .saturating_sub(1);
                if let Some(sum) = counts.get_mut(bar) {
                    *sum += count;
                }
            }
            let share =
                |count: u64| output::float(count) * 100.0 / output::float(tally.latency.count().max(1));
            // From the first bar that has anything to the end of the last one.
            let mut points: Vec<(f64, f64)> = edges
                .iter()
                .zip(&counts)
                .map(|(edge, count)| (*edge, share(*count)))
                .collect();
            let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
            let end = edges.get(last + 1).copied().unwrap_or(to);
            points.truncate(last + 1);
            points.push((end, 0.0));
            let first = counts.iter().position(|count| *count > 0).unwrap_or(0);
            points.drain(..first);
            Series {
                class: name,
                style: Style::Steps,
                points,
                notes: Vec::new(),
            }
        })
        .collect();
    let tallest = series
        .iter()
        .flat_map(|series| &series.points)
        .map(|(_, y)| *y)
        .fold(0.0, f64::max);
    let x = Axis::new(scale, "latency", tick_time);
    let y = Axis::new(Scale::from_zero(tallest), "share of I/Os", |value| {
        format!("{} %", trimmed(value))
    });
    let legend: Vec<(&str, &str)> = directions.iter().map(|(name, _)| (*name, *name)).collect();
    section(
        "Distribution of latency",
        "",
        &legend,
        &plot("Distribution of latency", &x, &y, None, &series),
    )
}

/// A percentage with as many nines as it has.
fn nines(percent: f64) -> String {
    let digits = if percent < 99.0 {
        0
    } else {
        to_usize((2.0 - (100.0 - percent).log10()).round()).saturating_sub(2)
    };
    format!("{percent:.digits$}")
}

/// A number without trailing zeroes.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A tick's count: `250`, `400k`, `1.2M`.
fn short_count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", trimmed(v / 1e6)),
        v if v >= 1e4 => format!("{}k", trimmed(v / 1e3)),
        v => trimmed(v),
    }
}

/// A tick's time in nanoseconds: `500 ns`, `20 µs`, `1 ms`.
fn tick_time(value: f64) -> String {
    match value {
        v if v < 999.5 => format!("{} ns", trimmed(v)),
        v if v < 999_500.0 => format!("{} µs", trimmed(v / 1e3)),
        v if v < 999_500_000.0 => format!("{} ms", trimmed(v / 1e6)),
        v => format!("{} s", trimmed(v / 1e9)),
    }
}

/// A small count; the callers' are below ten.
fn to_i32(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A small number of digits, from 0 to 9.
fn to_usize(value: f64) -> usize {
    (0_usize..10)
        .rev()
        .find(|digits| output::float(*digits as u64) <= value)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn long_series_are_thinned_without_losing_anything() {
        let sample = |at: u64| Sample {
            at: Duration::from_secs(at),
            length: Duration::from_secs(1),
            reads: 10,
            writes: at,
            p50: 5,
            p99: at,
            max: at * 2,
        };
        let series: Vec<Sample> = (1..=5000).map(sample).collect();
        let thin = thinned(&series);
        assert!(
            thin.len() <= MOST_POINTS && thin.len() > MOST_POINTS / 2,
            "{}",
            thin.len()
        );
        assert_eq!(thin.iter().map(|sample| sample.reads).sum::<u64>(), 50_000);
        assert_eq!(
            thin.iter().map(|sample| sample.length).sum::<Duration>(),
            Duration::from_secs(5000)
        );
        assert_eq!(
            thin.last().map(|sample| (sample.at.as_secs(), sample.max)),
            Some((5000, 10_000))
        );
        assert_eq!(thinned(&series[..600]), series[..600]);
        assert!(thinned(&[]).is_empty());
    }

    #[test]
    fn numbers_have_as_many_digits_as_they_need() {
        assert_eq!(nines(0.0), "0");
        assert_eq!(nines(90.0), "90");
        assert_eq!(nines(99.0), "99");
        assert_eq!(nines(99.9), "99.9");
        assert_eq!(nines(99.999), "99.999");
        assert_eq!(trimmed(2.50), "2.5");
        assert_eq!(short_count(400_000.0), "400k");
        assert_eq!(short_count(1_250_000.0), "1.25M");
        assert_eq!(tick_time(20_000.0), "20 µs");
        assert_eq!(tick_time(5e6), "5 ms");
    }
}
