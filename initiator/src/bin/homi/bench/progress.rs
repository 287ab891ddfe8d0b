//! The line on the terminal that says once a second how a benchmark is doing.

use std::io::{self, Write};
use std::time::Duration;

use homi_initiator::bench::{Interval, Latency, Limit, Phase, Workload};

use crate::output;

/// How often the line is drawn.
const PACE: Duration = Duration::from_millis(950);

/// Collects intervals until a second is full.
pub(super) struct Progress {
    on: bool,
    drawn: bool,
    io_bytes: u64,
    limit: Limit,
    collected: Duration,
    reads: u64,
    writes: u64,
    done: u64,
    latency: Latency,
}

impl Progress {
    pub(super) fn new(on: bool, workload: &Workload) -> Self {
        Self {
            on,
            drawn: false,
            io_bytes: workload.io_bytes(),
            limit: workload.limit,
            collected: Duration::ZERO,
            reads: 0,
            writes: 0,
            done: 0,
            latency: Latency::new(),
        }
    }

    /// Takes one interval, and draws the line when a second is full.
    pub(super) fn observe(&mut self, interval: &Interval<'_>) {
        if !self.on {
            return;
        }
        let sample = interval.sample;
        self.collected += sample.length;
        self.reads += sample.reads;
        self.writes += sample.writes;
        self.latency.add(interval.latency);
        if interval.phase == Phase::Measure {
            self.done += sample.reads + sample.writes;
        }
        if self.collected < PACE {
            return;
        }
        let line = self.line(interval.phase, sample.at);
        // Progress is a courtesy: a terminal that went away is no failure.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
        self.drawn = true;
        self.collected = Duration::ZERO;
        (self.reads, self.writes) = (0, 0);
        self.latency.clear();
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.drawn {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, phase: Phase, at: Duration) -> String {
        let seconds = self.collected.as_secs_f64();
        let rate = |ios: u64| output::count(output::float(ios) / seconds);
        let what = match (phase, self.limit) {
            (Phase::WarmUp, _) => "warming up".to_owned(),
            (Phase::ReadBack, _) => "reading back".to_owned(),
            (Phase::Measure, Limit::Time(time)) => {
                format!("{:.0} of {:.0} s", at.as_secs_f64(), time.as_secs_f64())
            }
            (Phase::Measure, Limit::Ios(ios)) => {
                format!(
                    "{:.0} %",
                    output::float(self.done) * 100.0 / output::float(ios.max(1))
                )
            }
        };
        let mib = output::mib_per_second((self.reads + self.writes) * self.io_bytes, seconds);
        let mut line = format!("{what:>12}  ");
        if self.reads > 0 && self.writes > 0 {
            line.push_str(&format!(
                "read {}  write {} IOPS",
                rate(self.reads),
                rate(self.writes)
            ));
        } else {
            line.push_str(&format!("{} IOPS", rate(self.reads + self.writes)));
        }
        line.push_str(&format!("  {mib:.1} MiB/s"));
        if self.latency.count() > 0 {
            let p99 = output::nanoseconds(output::float(self.latency.quantile(0.99)));
            line.push_str(&format!("  p99 {p99}"));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_initiator::bench::Range;

    #[test]
    fn the_line_says_how_fast_and_how_far() {
        let mut workload = Workload::new(Range {
            nsid: 1,
            block_size: 4096,
            first: 0,
            blocks: 1000,
        });
        workload.limit = Limit::Time(Duration::from_secs(10));
        let mut progress = Progress::new(true, &workload);
        progress.collected = Duration::from_secs(1);
        progress.reads = 70_000;
        progress.writes = 30_000;
        progress.latency.record(60_000);
        assert_eq!(
            progress.line(Phase::Measure, Duration::from_secs(3)),
            "   3 of 10 s  read 70.0 k  write 30.0 k IOPS  390.6 MiB/s  p99 60.0 µs"
        );
        progress.writes = 0;
        progress.latency.clear();
        assert_eq!(
            progress.line(Phase::ReadBack, Duration::from_secs(3)),
            "reading back  70.0 k IOPS  273.4 MiB/s"
        );
    }
}
