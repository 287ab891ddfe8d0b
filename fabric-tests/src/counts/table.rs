//! The numbers as one table of text, and as JSON.

use std::fmt::{self, Display};

use serde_json::{Map, Value, json};

use super::fraction::Fraction;
use super::instructions::{self, Instructions};
use super::steady::{Costs, Verbs};
use super::{Case, End, SMALL};

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Table {
    /// Allocations, copies and system calls by case.
    pub costs: Vec<Costs>,
    /// Instructions of the target and of the initiator, or why there are none.
    pub instructions: Vec<(End, Result<Instructions, String>)>,
    /// Fractions of the bound by case, or why there are none.
    pub fractions: Option<Result<Vec<Fraction>, String>>,
    /// What this was measured on and with.
    pub setting: Setting,
}

/// What the numbers were measured on and with.
#[derive(Debug, Default, Clone)]
pub struct Setting {
    /// The processor.
    pub processor: String,
    /// The kernel.
    pub kernel: String,
    /// Cores that the process may use.
    pub cores: usize,
    /// What the target's shard waits on.
    pub backend: String,
    /// I/Os by which allocations, copies and system calls were counted.
    pub ios: u64,
    /// I/Os of the two ends of the slope of instructions.
    pub slope: (u64, u64),
    /// Rounds of a raw pair and our pair each.
    pub rounds: usize,
    /// Seconds of each in a round.
    pub seconds: f64,
}

impl Table {
    /// The object that `counts --json` prints.
    #[must_use]
    pub fn json(&self) -> Value {
        let fractions = self.fractions_json();
        let mut object = Map::new();
        for end in End::BOTH {
            let mut of_end = self.end_json(end);
            // A property of the pair, shown at each of its ends.
            of_end.insert("fraction_of_raw_loopback".to_owned(), fractions.clone());
            object.insert(end.name().to_owned(), of_end.into());
        }
        object.insert("fraction_of_raw_loopback".to_owned(), fractions);
        if let Some(Ok(all)) = &self.fractions {
            let rates = all.iter().map(|one| {
                let rates = json!({ "raw_iops": round(one.raw, 0), "pair_iops": round(one.pair, 0), "raw_batch": one.batch });
                (one.case.to_string(), rates)
            });
            object.insert("rates".to_owned(), Value::Object(rates.collect()));
        }
        object.insert("measured".to_owned(), self.setting_json());
        Value::Object(object)
    }

    fn end_json(&self, end: End) -> Map<String, Value> {
        let of_size = |value: &dyn Fn(&Costs) -> Value| -> Value {
            let costs = self.costs.iter().filter(|costs| is_copied(&costs.case));
            Value::Object(costs.map(|costs| (costs.case.size(), value(costs))).collect())
        };
        let of_depth = |value: &dyn Fn(&Costs) -> f64| -> Value {
            let costs = self.costs.iter().filter(|costs| is_called(&costs.case));
            let entries = costs.map(|costs| (costs.case.depth.to_string(), json!(round(value(costs), 4))));
            Value::Object(entries.collect())
        };
        let mut object = Map::new();
        object.insert(
            "allocations_per_io".to_owned(),
            json!(self.allocations(end).map(|most| round(most, 6))),
        );
        let by_case = self.costs.iter().map(|costs| {
            let count = costs.of(end).allocations.map(|count| round(count, 6));
            (costs.case.to_string(), json!(count))
        });
        object.insert(
            "allocations_per_io_by_case".to_owned(),
            Value::Object(by_case.collect()),
        );
        let copies = of_size(&|costs| json!(round(costs.of(end).copies, 4)));
        object.insert("copies_per_io".to_owned(), copies);
        object.insert(
            "syscalls_per_io".to_owned(),
            of_depth(&|costs| costs.of(end).syscalls),
        );
        if end == End::Initiator {
            let empty = of_depth(&|costs| costs.of(end).empty_syscalls);
            object.insert("syscalls_per_io_that_found_nothing".to_owned(), empty);
        }
        let verbs = self.costs.iter().filter_map(|costs| {
            let verbs = costs.of(end).verbs?;
            let of = VERBS.map(|(name, of)| (name.replace(' ', "_"), json!(round(of(&verbs), 4))));
            Some((costs.case.to_string(), Value::Object(of.into_iter().collect())))
        });
        let verbs: Map<String, Value> = verbs.collect();
        if !verbs.is_empty() {
            object.insert("verbs_per_io".to_owned(), verbs.into());
        }
        let instructions = match self.instructions(end) {
            Some(Ok(count)) => json!({ "read": round(count.read, 0), "write": round(count.write, 0) }),
            _ => json!({ "read": null, "write": null }),
        };
        object.insert("instructions_per_io".to_owned(), instructions);
        if let Some(Err(reason)) = self.instructions(end) {
            object.insert("instructions_missing".to_owned(), json!(reason));
        }
        object
    }

    fn fractions_json(&self) -> Value {
        match &self.fractions {
            Some(Ok(all)) => {
                let entries = all
                    .iter()
                    .map(|one| (one.case.to_string(), json!(round(one.ratio(), 3))));
                Value::Object(entries.collect())
            }
            Some(Err(reason)) => json!({ "missing": reason }),
            None => Value::Null,
        }
    }

    fn setting_json(&self) -> Value {
        let setting = &self.setting;
        json!({
            "processor": setting.processor,
            "kernel": setting.kernel,
            "cores": setting.cores,
            "events": setting.backend,
            "io_bytes": { "syscalls_per_io": SMALL, "instructions_per_io": SMALL },
            "how": {
                "allocations_per_io": format!("most of any case, by a counting allocator, over {} I/Os in steady state", setting.ios),
                "copies_per_io": "bytes copied in user space between socket and buffer, in payloads; \
                                  the namespace's own copy of a write is its medium and not counted",
                "syscalls_per_io": "by both ends' own counters, 4 KiB reads, by depth; receives that found nothing included",
                "instructions_per_io": format!(
                    "callgrind, 4 KiB at depth {}, slope from {} to {} I/Os; neither end polls, the target on readiness events",
                    instructions::DEPTH, setting.slope.0, setting.slope.1
                ),
                "fraction_of_raw_loopback": format!(
                    "ratio of medians of {} interleaved rounds of {} s: target process on one core, initiator on another; \
                     raw: the same bytes without protocol between two threads on the same cores",
                    setting.rounds, setting.seconds
                ),
            },
        })
    }

    /// The most of any case.
    fn allocations(&self, end: End) -> Option<f64> {
        let counted = self.costs.iter().map(|costs| costs.of(end).allocations);
        counted
            .collect::<Option<Vec<f64>>>()?
            .into_iter()
            .reduce(f64::max)
    }

    fn instructions(&self, end: End) -> Option<&Result<Instructions, String>> {
        self.instructions
            .iter()
            .find(|(of, _)| *of == end)
            .map(|(_, result)| result)
    }
}

/// Cases that copies are shown for: one of each direction and size.
fn is_copied(case: &Case) -> bool {
    case.depth == if case.io_bytes == SMALL { 32 } else { 8 }
}

/// Cases that system calls are shown for.
fn is_called(case: &Case) -> bool {
    !case.write && case.io_bytes == SMALL
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        writeln!(
            f,
            "{}, {} cores, Linux {}, {}",
            setting.processor, setting.cores, setting.kernel, setting.backend
        )?;
        writeln!(f, "\n{:<44} {:>12} {:>12}", "per I/O", "target", "initiator")?;
        let mut row = |name: &str, of: &dyn Fn(End) -> String| {
            writeln!(f, "{name:<44} {:>12} {:>12}", of(End::Target), of(End::Initiator))
        };
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        row("heap allocations (most of any case)", &|end| {
            shown(self.allocations(end), 4)
        })?;
        for costs in self.costs.iter().filter(|costs| is_copied(&costs.case)) {
            row(&format!("payload copies, {}", spoken(&costs.case)), &|end| {
                shown(Some(costs.of(end).copies), 2)
            })?;
        }
        for costs in self.costs.iter().filter(|costs| is_called(&costs.case)) {
            let name = format!(
                "system calls, {}, depth {}",
                spoken(&costs.case),
                costs.case.depth
            );
            row(&name, &|end| shown(Some(costs.of(end).syscalls), 3))?;
            if [costs.target, costs.initiator]
                .iter()
                .any(|cost| cost.empty_syscalls >= 0.001)
            {
                row("  of these found nothing (polling)", &|end| {
                    shown(Some(costs.of(end).empty_syscalls), 3)
                })?;
            }
        }
        for costs in &self.costs {
            for (name, of) in VERBS {
                if costs.target.verbs.is_none() {
                    continue;
                }
                let name = format!("{name}, {}, depth {}", spoken(&costs.case), costs.case.depth);
                row(&name, &|end| shown(costs.of(end).verbs.as_ref().map(of), 3))?;
            }
        }
        for (name, of) in [
            (
                "instructions, 4 KiB read",
                (|count| count.read) as fn(&Instructions) -> f64,
            ),
            ("instructions, 4 KiB write", |count| count.write),
        ] {
            row(name, &|end| match self.instructions(end) {
                Some(Ok(count)) => format!("{:.0}", of(count)),
                _ => "-".to_owned(),
            })?;
        }
        if let Some((_, Err(reason))) = self.instructions.first() {
            writeln!(f, "instructions were not counted: {reason}")?;
        }
        match &self.fractions {
            Some(Ok(all)) => {
                writeln!(
                    f,
                    "\n{:<30} {:>12} {:>12} {:>12}",
                    "I/Os per second", "raw loopback", "our pair", "fraction"
                )?;
                for one in all {
                    let name = format!("{}, depth {}", spoken(&one.case), one.case.depth);
                    writeln!(
                        f,
                        "{name:<30} {:>12.0} {:>12.0} {:>12.2}",
                        one.raw,
                        one.pair,
                        one.ratio()
                    )?;
                }
                writeln!(
                    f,
                    "\nMedians of {} interleaved rounds of {} s. The rates are of this machine at this time; the fractions travel better.",
                    setting.rounds, setting.seconds
                )
            }
            Some(Err(reason)) => writeln!(f, "\nThe fraction of the raw loopback was not measured: {reason}"),
            None => Ok(()),
        }
    }
}

/// A number of an RDMA device's work.
type OfVerbs = fn(&Verbs) -> f64;

/// What is shown of an RDMA device's work.
const VERBS: [(&str, OfVerbs); 4] = [
    ("work requests", |verbs| verbs.work_requests),
    ("doorbells", |verbs| verbs.doorbells),
    ("completions", |verbs| verbs.completions),
    ("registrations", |verbs| verbs.registrations),
];

/// As in `4 KiB read`.
fn spoken(case: &Case) -> String {
    format!(
        "{} KiB {}",
        case.io_bytes >> 10,
        if case.write { "write" } else { "read" }
    )
}

#[cfg(test)]
mod tests {
    use super::super::steady::Cost;
    use super::*;

    #[test]
    fn the_object_has_what_readers_look_for() {
        let cost = Cost {
            allocations: Some(0.0),
            copies: 1.0,
            syscalls: 0.25,
            empty_syscalls: 0.5,
            verbs: None,
        };
        let cases = [
            Case::read(SMALL, 1),
            Case::read(SMALL, 32),
            Case::write(SMALL, 32),
        ];
        let table = Table {
            costs: cases
                .map(|case| super::super::steady::Costs {
                    case,
                    ios: 10,
                    target: cost,
                    initiator: cost,
                })
                .to_vec(),
            instructions: vec![
                (
                    End::Target,
                    Ok(Instructions {
                        read: 1.4,
                        write: 2.6,
                    }),
                ),
                (End::Initiator, Err("no valgrind".to_owned())),
            ],
            fractions: Some(Ok(vec![Fraction {
                case: Case::read(SMALL, 32),
                raw: 2000.0,
                batch: 2,
                pair: 1000.0,
            }])),
            setting: Setting::default(),
        };
        let json = table.json();
        assert_eq!(json["target"]["allocations_per_io"], 0.0);
        assert_eq!(json["target"]["syscalls_per_io"]["32"], 0.25);
        assert_eq!(json["initiator"]["copies_per_io"]["read_4096"], 1.0);
        assert_eq!(json["target"]["instructions_per_io"]["write"], 3.0);
        assert!(json["initiator"]["instructions_per_io"]["read"].is_null());
        assert_eq!(json["initiator"]["instructions_missing"], "no valgrind");
        assert_eq!(json["fraction_of_raw_loopback"]["read_4096_depth_32"], 0.5);
        let text = table.to_string();
        assert!(
            text.contains("4 KiB read, depth 32") && text.contains("0.50"),
            "{text}"
        );
    }
}
