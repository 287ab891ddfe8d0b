//! What came of a comparison, as text and as JSON, and its progress.

use std::io::{self, IsTerminal, Write};

use homi_initiator::Uri;
use homi_initiator::bench::{Order, Outcome};
use serde_json::{Value, json};

use super::paths::Path;
use crate::output;
use crate::workload::Accesses;

/// What was done.
pub(super) struct Described {
    pub(super) accesses: Accesses,
    pub(super) io_bytes: u64,
    pub(super) bytes: u64,
    pub(super) depth: u16,
    pub(super) queues: usize,
    pub(super) verify: bool,
}

/// What came of it.
pub(super) struct Table<'a> {
    pub(super) workload: Described,
    pub(super) rounds: u32,
    pub(super) stopped: bool,
    pub(super) paths: &'a [Path],
}

const HEADER: [&str; 11] = [
    "PATH",
    "KIND",
    "IOPS",
    "MiB/s",
    "p50",
    "p99",
    "p99.9",
    "USER/IO",
    "SYSTEM/IO",
    "CALLS/IO",
    "RATIO",
];

impl Described {
    fn words(&self) -> String {
        let order = match self.accesses.order {
            Order::Sequential => "sequential",
            Order::Random => "random",
        };
        let what = match self.accesses.read_percent {
            100 => "reads".to_owned(),
            0 => "writes".to_owned(),
            percent => format!("{percent} % reads, {} % writes", 100 - percent),
        };
        let queues = match self.queues {
            1 => "1 queue".to_owned(),
            queues => format!("{queues} queues"),
        };
        format!(
            "{} {order} {what} within {}, depth {}, {queues}{}",
            output::size(self.io_bytes),
            output::size(self.bytes),
            self.depth,
            if self.verify { ", verified" } else { "" }
        )
    }
}

impl Table<'_> {
    /// Each path's I/Os per second relative to the first path's that could be used: the median of the rounds.
    fn ratio(&self, path: &Path) -> Option<f64> {
        let base = self.paths.iter().find(|path| path.outcome.is_some())?;
        let pairs = path.rates.iter().zip(&base.rates);
        let ratios = pairs.filter_map(|(own, base)| match (own, base) {
            (Some(own), Some(base)) if *base > 0.0 => Some(own / base),
            _ => None,
        });
        median(ratios.collect())
    }

    pub(super) fn text(&self) -> String {
        let rounds = match self.rounds {
            1 => "1 round".to_owned(),
            rounds => format!("{rounds} rounds"),
        };
        let early = if self.stopped { ", interrupted" } else { "" };
        let mut text = format!("{}, {rounds}{early}\n\n", self.workload.words());
        let rows: Vec<Vec<String>> = self.paths.iter().map(|path| self.row(path)).collect();
        let right: Vec<usize> = (2..HEADER.len()).collect();
        let table = output::table(&HEADER, &right, &rows);
        let mut lines = table.lines();
        for line in lines.by_ref().take(1) {
            text.push_str(line);
            text.push('\n');
        }
        for (line, path) in lines.zip(self.paths) {
            text.push_str(line);
            text.push('\n');
            if let Some(reason) = &path.reason {
                let what = if path.failed { "failed" } else { "not used" };
                text.push_str(&format!("    {what}: {reason}\n"));
            }
        }
        let hints = self.hints();
        if !hints.is_empty() {
            text.push('\n');
            text.push_str(&hints);
        }
        text
    }

    fn row(&self, path: &Path) -> Vec<String> {
        let mut row = vec![path.uri.to_string(), path.kind.to_owned()];
        let Some(outcome) = &path.outcome else {
            row.resize(HEADER.len(), "-".to_owned());
            return row;
        };
        let latency = outcome.latency();
        let quantile = |quantile| output::nanoseconds(output::float(latency.quantile(quantile)));
        row.push(output::count(outcome.iops()));
        row.push(format!("{:.1}", outcome.bytes_per_second() / 1_048_576.0));
        row.extend([0.5, 0.99, 0.999].map(quantile));
        row.push(output::nanoseconds(cpu(outcome, outcome.user_time)));
        row.push(output::nanoseconds(cpu(outcome, outcome.system_time)));
        row.push(
            outcome
                .system_calls()
                .map_or("-".to_owned(), |calls| format!("{:.3}", outcome.per_io(calls))),
        );
        row.push(
            self.ratio(path)
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        );
        row
    }

    /// Where a file could be named to compare it too.
    fn hints(&self) -> String {
        let mut hints = Vec::new();
        for namespace in homi_initiator::kernel_namespaces() {
            let reached = |path: &Path| path.ids.as_ref().is_some_and(|ids| ids.same(&namespace.ids));
            let has_file = self.paths.iter().any(|path| path.kind == "file" && reached(path));
            if has_file || !self.paths.iter().any(reached) {
                continue;
            }
            for place in &namespace.mounts {
                hints.push(format!(
                    "{} is mounted at {}: name a file there (file://{}/…) to compare it too\n",
                    namespace.block.display(),
                    place.display(),
                    place.display()
                ));
            }
        }
        hints.concat()
    }

    pub(super) fn json(&self) -> Value {
        let workload = &self.workload;
        let paths: Vec<Value> = self
            .paths
            .iter()
            .map(|path| {
                let mut object = json!({
                    "uri": path.uri.to_string(),
                    "kind": path.kind,
                    "found": path.found,
                    "usable": path.reason.is_none(),
                    "reason": path.reason,
                });
                if let (Some(outcome), Some(object)) = (&path.outcome, object.as_object_mut()) {
                    object.extend(self.measured(path, outcome));
                }
                object
            })
            .collect();
        json!({
            "workload": {
                "block_size": workload.io_bytes,
                "bytes": workload.bytes,
                "order": match workload.accesses.order {
                    Order::Sequential => "sequential",
                    Order::Random => "random",
                },
                "read_percent": workload.accesses.read_percent,
                "depth": workload.depth,
                "queues": workload.queues,
                "verify": workload.verify,
            },
            "rounds": self.rounds,
            "stopped_early": self.stopped,
            "paths": paths,
        })
    }

    fn measured(&self, path: &Path, outcome: &Outcome) -> serde_json::Map<String, Value> {
        let latency = outcome.latency();
        let values = json!({
            "ios": outcome.ios(),
            "bytes": outcome.bytes(),
            "seconds": outcome.elapsed.as_secs_f64(),
            "depth": outcome.depth,
            "iops": outcome.iops(),
            "mib_per_second": outcome.bytes_per_second() / 1_048_576.0,
            "latency_ns": {
                "min": latency.min(),
                "mean": latency.mean(),
                "p50": latency.quantile(0.5),
                "p99": latency.quantile(0.99),
                "p99_9": latency.quantile(0.999),
                "max": latency.max(),
            },
            "per_io": {
                "user_ns": cpu(outcome, outcome.user_time),
                "system_ns": cpu(outcome, outcome.system_time),
                "system_calls": outcome.system_calls().map(|calls| outcome.per_io(calls)),
                "queue_system_calls": outcome.queue_system_calls.map(|calls| outcome.per_io(calls)),
                "allocations": outcome.allocations.map(|count| outcome.per_io(count)),
            },
            "ratio": self.ratio(path),
            "iops_by_round": path.rates,
            "blocks_verified": outcome.blocks_verified,
        });
        match values {
            Value::Object(map) => map,
            _ => serde_json::Map::new(),
        }
    }
}

/// Nanoseconds per I/O.
fn cpu(outcome: &Outcome, time: std::time::Duration) -> f64 {
    match outcome.ios() {
        0 => 0.0,
        ios => time.as_secs_f64() * 1e9 / output::float(ios),
    }
}

/// The one in the middle, or the mean of the two that are.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get(middle.checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

/// One line that is overwritten.
pub(super) struct Progress {
    shown: bool,
    rounds: u32,
}

impl Progress {
    pub(super) fn new(quiet: bool, rounds: u32) -> Self {
        Self {
            shown: !quiet && io::stderr().is_terminal(),
            rounds,
        }
    }

    pub(super) fn show(&mut self, round: u32, uri: &Uri) {
        if self.shown {
            // A line that nobody sees is no loss.
            let _ = write!(
                io::stderr(),
                "\r\x1b[Kround {} of {}: {uri}",
                round + 1,
                self.rounds
            );
        }
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            // As above.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use homi_initiator::bench::{Hooks, Limit, Range, Workload};
    use homi_initiator::{Initiator, QueueOptions};

    use super::super::paths::tests::path;
    use super::*;

    fn described() -> Described {
        Described {
            accesses: Accesses {
                order: Order::Random,
                read_percent: 70,
            },
            io_bytes: 4096,
            bytes: 1 << 20,
            depth: 8,
            queues: 1,
            verify: true,
        }
    }

    fn outcome() -> Outcome {
        let device = Initiator::new()
            .unwrap()
            .open(&"ram://1M".parse().unwrap())
            .unwrap();
        let mut workload = Workload::new(Range {
            nsid: 1,
            block_size: 4096,
            first: 0,
            blocks: 256,
        });
        workload.limit = Limit::Ios(100);
        let queue = |_| Ok::<_, Infallible>(device.queue(QueueOptions::depth(8)).unwrap());
        homi_initiator::bench::run(&workload, queue, Hooks::default()).unwrap()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_table_has_every_path_and_the_reasons_of_those_that_are_not_used() {
        let mut broken = path("nvme+kernel:///dev/ng9n9");
        broken.reason = Some("/dev/ng9n9 does not exist".to_owned());
        broken.rates = vec![None; 3];
        let mut first = path("ram://1M");
        (first.outcome, first.rates) = (Some(outcome()), vec![Some(100.0), Some(200.0), Some(100.0)]);
        let mut second = path("file:///tmp/x");
        (second.outcome, second.rates) = (Some(outcome()), vec![Some(50.0), Some(50.0), Some(80.0)]);
        let paths = [broken, first, second];
        let table = Table {
            workload: described(),
            rounds: 3,
            stopped: false,
            paths: &paths,
        };
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "4 KiB random 70 % reads, 30 % writes within 1 MiB, depth 8, 1 queue, verified, 3 rounds"
        );
        assert!(
            lines[2].starts_with("PATH") && lines[2].ends_with("RATIO"),
            "{text}"
        );
        assert!(
            lines[3].starts_with("nvme+kernel:///dev/ng9n9  kernel commands"),
            "{text}"
        );
        assert!(lines[3].ends_with('-'), "{text}");
        assert_eq!(lines[4], "    not used: /dev/ng9n9 does not exist");
        assert!(
            lines[5].starts_with("ram://1048576") && lines[5].ends_with(" 1.00"),
            "{text}"
        );
        assert!(
            lines[6].starts_with("file:///tmp/x") && lines[6].ends_with(" 0.50"),
            "{text}"
        );
        let object = table.json();
        assert_eq!(object["paths"][0]["usable"], false);
        assert!(object["paths"][0].get("iops").is_none());
        assert_eq!(object["paths"][1]["ios"], 100);
        assert_eq!(object["paths"][1]["per_io"]["system_calls"], 0.0);
        assert_eq!(object["paths"][2]["ratio"], 0.5);
        assert_eq!(object["paths"][2]["iops_by_round"][2], 80.0);
        assert_eq!(object["workload"]["read_percent"], 70);
    }

    #[test]
    fn rounds_of_one_path_are_added_up() {
        let mut total = outcome();
        total.add(&outcome());
        assert_eq!((total.ios(), total.latency().count()), (200, 200));
        assert_eq!(total.system_calls(), Some(total.sleeps));
    }
}
