//! What came of a benchmark, as text and as JSON.

use std::path::{Path, PathBuf};

use homi_initiator::bench::{Latency, Limit, Order, Outcome, Tally};
use homi_initiator::{Device, Uri};
use serde_json::{Value, json};

use crate::output;

/// The percentiles that are told, with their names in text and JSON.
pub(super) const PERCENTILES: [(f64, &str, &str); 5] = [
    (0.5, "p50", "p50"),
    (0.9, "p90", "p90"),
    (0.99, "p99", "p99"),
    (0.999, "p99.9", "p99_9"),
    (0.9999, "p99.99", "p99_99"),
];

/// An outcome with what it was measured on.
pub(super) struct Summary<'a> {
    pub(super) uri: String,
    pub(super) device: String,
    outcome: &'a Outcome,
    report: Option<PathBuf>,
}

impl<'a> Summary<'a> {
    pub(super) fn new(uri: &Uri, device: &Device, outcome: &'a Outcome, report: Option<&Path>) -> Self {
        let device = match device.controller().map(|controller| controller.info()) {
            Some(info) => format!("{} {}, firmware {}", info.model, info.serial, info.firmware),
            None => "this machine".to_owned(),
        };
        Self {
            uri: uri.to_string(),
            device,
            outcome,
            report: report.map(Path::to_path_buf),
        }
    }

    /// One line that says what was done.
    pub(super) fn workload(&self) -> String {
        let workload = &self.outcome.workload;
        let order = match workload.order {
            Order::Sequential => "sequential",
            Order::Random => "random",
        };
        let what = match workload.read_percent {
            100 => "reads".to_owned(),
            0 => "writes".to_owned(),
            percent => format!("{percent} % reads, {} % writes", 100 - percent),
        };
        let queues = match workload.jobs {
            1 => "1 queue".to_owned(),
            jobs => format!("{jobs} queues"),
        };
        format!(
            "{} {order} {what}, depth {}, {queues}",
            output::size(workload.io_bytes()),
            self.outcome.depth
        )
    }

    /// Names and values of everything that was chosen.
    pub(super) fn configuration(&self) -> Vec<(&'static str, String)> {
        let workload = &self.outcome.workload;
        let range = workload.range;
        let mut fields = vec![
            ("Namespace", self.uri.clone()),
            ("Device", self.device.clone()),
            ("Logical block", output::size(range.block_size.into())),
            (
                "Range",
                format!(
                    "{} from byte {} on",
                    output::size(range.blocks * u64::from(range.block_size)),
                    range.first * u64::from(range.block_size)
                ),
            ),
            ("Workload", self.workload()),
            (
                "Limit",
                match workload.limit {
                    Limit::Time(time) => format!("{} s", time.as_secs_f64()),
                    Limit::Ios(ios) => format!("{ios} I/Os"),
                },
            ),
            ("Warm-up", format!("{} s", workload.warmup.as_secs_f64())),
            ("Seed", workload.seed.to_string()),
            (
                "Verified",
                if workload.verify {
                    "every stamped block"
                } else {
                    "no"
                }
                .to_owned(),
            ),
        ];
        if workload.fua {
            fields.push(("Writes", "Force Unit Access".to_owned()));
        }
        if let Some(rate) = workload.rate {
            fields.push(("Rate limit", format!("{rate} IOPS")));
        }
        if !workload.pin.is_empty() {
            let cores: Vec<String> = workload.pin.iter().map(usize::to_string).collect();
            fields.push(("Pinned to cores", cores.join(", ")));
        }
        fields
    }

    /// Names and values of what an I/O costs this machine.
    pub(super) fn costs(&self) -> Vec<(&'static str, String)> {
        let outcome = self.outcome;
        let (user, system) = (outcome.user_time.as_secs_f64(), outcome.system_time.as_secs_f64());
        let mut costs = vec![(
            "CPU time per I/O",
            format!(
                "{} ({} in the kernel)",
                output::nanoseconds(per_io(outcome, (user + system) * 1e9)),
                output::nanoseconds(per_io(outcome, system * 1e9))
            ),
        )];
        let elapsed = outcome.elapsed.as_secs_f64();
        if elapsed > 0.0 {
            costs.push(("cores busy", format!("{:.2}", (user + system) / elapsed)));
        }
        if let Some(calls) = outcome.system_calls() {
            costs.push(("system calls per I/O", format!("{:.3}", outcome.per_io(calls))));
        }
        if let Some(counters) = outcome.counters {
            costs.push((
                "payload copies per I/O",
                format!("{:.3}", outcome.per_io(counters.copies)),
            ));
        }
        if let Some(allocations) = outcome.allocations {
            costs.push((
                "heap allocations per I/O",
                format!("{:.3}", outcome.per_io(allocations)),
            ));
        }
        costs
    }

    /// The directions that had I/O, with their names.
    pub(super) fn directions(&self) -> Vec<(&'static str, &'a Tally)> {
        let outcome = self.outcome;
        let all = [("read", &outcome.reads), ("write", &outcome.writes)];
        all.into_iter().filter(|(_, tally)| tally.ios > 0).collect()
    }

    /// What is printed for people.
    pub(super) fn text(&self) -> String {
        let outcome = self.outcome;
        let seconds = outcome.elapsed.as_secs_f64();
        let early = if outcome.stopped_early {
            ", interrupted"
        } else {
            ""
        };
        let mut text = format!("{}\n{}, {seconds:.2} s{early}\n\n", self.uri, self.workload());
        let mut header = vec!["", "IOPS", "MiB/s", "mean", "stddev"];
        header.extend(PERCENTILES.map(|(_, name, _)| name));
        header.push("max");
        let rows: Vec<Vec<String>> = self
            .directions()
            .into_iter()
            .map(|(name, tally)| {
                let mut row = vec![
                    name.to_owned(),
                    output::count(rate(tally.ios, seconds)),
                    format!("{:.1}", output::mib_per_second(tally.bytes, seconds)),
                    output::nanoseconds(tally.latency.mean()),
                    output::nanoseconds(tally.latency.deviation()),
                ];
                let quantile = |(quantile, ..): (f64, &str, &str)| {
                    output::nanoseconds(output::float(tally.latency.quantile(quantile)))
                };
                row.extend(PERCENTILES.map(quantile));
                row.push(output::nanoseconds(output::float(tally.latency.max())));
                row
            })
            .collect();
        let right: Vec<usize> = (1..header.len()).collect();
        text.push_str(&output::table(&header, &right, &rows));
        if rows.is_empty() {
            text.push_str("no I/O completed in the time given: use a longer --time\n");
        }
        let costs: Vec<String> = self
            .costs()
            .into_iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        text.push_str(&format!("\n{}\n", costs.join(", ")));
        if outcome.workload.verify {
            text.push_str(&format!("verified {} blocks", outcome.blocks_verified));
            if outcome.blocks_unchecked > 0 {
                text.push_str(&format!(
                    "; {} were read before this run wrote them",
                    outcome.blocks_unchecked
                ));
            }
            text.push('\n');
        }
        if let Some(report) = &self.report {
            text.push_str(&format!("report: {}\n", report.display()));
        }
        text
    }

    /// What `--json` prints.
    pub(super) fn json(&self) -> Value {
        let outcome = self.outcome;
        let workload = &outcome.workload;
        let seconds = outcome.elapsed.as_secs_f64();
        let (limit_seconds, limit_ios) = match workload.limit {
            Limit::Time(time) => (Some(time.as_secs_f64()), None),
            Limit::Ios(ios) => (None, Some(ios)),
        };
        let series: Vec<Value> = outcome
            .series
            .iter()
            .map(|sample| {
                json!({
                    "at": sample.at.as_secs_f64(),
                    "length": sample.length.as_secs_f64(),
                    "reads": sample.reads,
                    "writes": sample.writes,
                    "p50_ns": sample.p50,
                    "p99_ns": sample.p99,
                    "max_ns": sample.max,
                })
            })
            .collect();
        json!({
            "uri": self.uri,
            "device": self.device,
            "workload": {
                "block_size": workload.io_bytes(),
                "logical_block_size": workload.range.block_size,
                "first_lba": workload.range.first,
                "blocks": workload.range.blocks,
                "order": match workload.order { Order::Sequential => "sequential", Order::Random => "random" },
                "read_percent": workload.read_percent,
                "depth": outcome.depth,
                "queues": workload.jobs,
                "seconds": limit_seconds,
                "ios": limit_ios,
                "warmup_seconds": workload.warmup.as_secs_f64(),
                "rate": workload.rate,
                "fua": workload.fua,
                "verify": workload.verify,
                "seed": workload.seed,
                "pin": workload.pin,
            },
            "seconds": seconds,
            "ios": outcome.ios(),
            "bytes": outcome.bytes(),
            "iops": outcome.iops(),
            "mib_per_second": output::mib_per_second(outcome.bytes(), seconds),
            "read": direction(&outcome.reads, seconds),
            "write": direction(&outcome.writes, seconds),
            "cpu": {
                "user_seconds": outcome.user_time.as_secs_f64(),
                "system_seconds": outcome.system_time.as_secs_f64(),
            },
            "per_io": {
                "cpu_ns": per_io(outcome, (outcome.user_time + outcome.system_time).as_secs_f64() * 1e9),
                "system_calls": outcome.system_calls().map(|calls| outcome.per_io(calls)),
                "copies": outcome.counters.map(|counters| outcome.per_io(counters.copies)),
                "bytes_copied": outcome.counters.map(|counters| outcome.per_io(counters.bytes_copied)),
                "allocations": outcome.allocations.map(|allocations| outcome.per_io(allocations)),
            },
            "counters": outcome.counters.map(|counters| json!({
                "commands": counters.commands,
                "sends": counters.sends,
                "receives": counters.receives,
                "empty_receives": counters.empty_receives,
                "copies": counters.copies,
                "bytes_copied": counters.bytes_copied,
                "bytes_landed": counters.bytes_landed,
                "aborts": counters.aborts,
                "work_requests": counters.work_requests,
                "doorbells": counters.doorbells,
                "completions": counters.completions,
                "registrations": counters.registrations,
                "arms": counters.arms,
                "sleeps": outcome.sleeps,
            })),
            "verified": workload.verify.then_some(true),
            "stopped_early": outcome.stopped_early,
            "blocks_verified": outcome.blocks_verified,
            "blocks_unchecked": outcome.blocks_unchecked,
            "series": series,
            "report": self.report,
        })
    }
}

fn direction(tally: &Tally, seconds: f64) -> Value {
    json!({
        "ios": tally.ios,
        "bytes": tally.bytes,
        "iops": rate(tally.ios, seconds),
        "mib_per_second": output::mib_per_second(tally.bytes, seconds),
        "latency_ns": latency(&tally.latency),
    })
}

fn latency(latency: &Latency) -> Value {
    if latency.count() == 0 {
        return Value::Null;
    }
    let mut object = serde_json::Map::new();
    object.insert("min".to_owned(), json!(latency.min()));
    object.insert("mean".to_owned(), json!(latency.mean()));
    object.insert("stddev".to_owned(), json!(latency.deviation()));
    for (quantile, _, name) in PERCENTILES {
        object.insert(name.to_owned(), json!(latency.quantile(quantile)));
    }
    object.insert("max".to_owned(), json!(latency.max()));
    Value::Object(object)
}

pub(super) fn rate(ios: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        output::float(ios) / seconds
    } else {
        0.0
    }
}

fn per_io(outcome: &Outcome, value: f64) -> f64 {
    match outcome.ios() {
        0 => 0.0,
        ios => value / output::float(ios),
    }
}
