//! What is measured: [`Latency`] histograms, [`Tally`]s by direction, [`Sample`]s over time, and the [`Outcome`].

use std::time::Duration;

use hdrhistogram::Histogram;

use super::workload::Workload;
use crate::counters::Counters;

/// Latencies from this on count as this one, in nanoseconds: about 137 s.
const LONGEST: u64 = 1 << 37;
/// Significant decimal digits that are kept.
const DIGITS: u8 = 3;

/// A histogram of latencies in nanoseconds, three significant digits exact.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty histogram.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "the bounds are constants that the histogram accepts, as every test shows"
    )]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("constant bounds are valid"))
    }

    /// Counts one latency.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Counts everything that another histogram has counted.
    pub fn add(&mut self, other: &Self) {
        // All histograms of this type have the same bounds, which is the only thing that can be wrong.
        let _ = self.0.add(&other.0);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many latencies were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share (0 to 1) of all I/Os did not exceed, in nanoseconds; 0 if there are none.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile).min(self.0.max())
    }

    /// The shortest, in nanoseconds; 0 if there are none.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.0.min()
    }

    /// The longest, in nanoseconds; 0 if there are none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// The mean in nanoseconds; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.0.mean()
    }

    /// The standard deviation in nanoseconds; 0 if there are none.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        self.0.stdev()
    }

    /// Every distinct latency counted, rising, with how often it was.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0
            .iter_recorded()
            .map(|value| (value.value_iterated_to(), value.count_at_value()))
    }
}

/// What was done in one direction.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// I/Os completed.
    pub ios: u64,
    /// Bytes transferred by them.
    pub bytes: u64,
    /// Their latencies.
    pub latency: Latency,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.latency.add(&other.latency);
    }

    pub(super) fn clear(&mut self) {
        self.ios = 0;
        self.bytes = 0;
        self.latency.clear();
    }
}

/// What the threads are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// I/O that is not counted yet.
    WarmUp,
    /// The measurement.
    Measure,
    /// Reading back what was written.
    ReadBack,
}

/// What happened in one interval of the measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// End of the interval, from the start of the measurement.
    pub at: Duration,
    /// Length of the interval.
    pub length: Duration,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Median latency of both in nanoseconds.
    pub p50: u64,
    /// 99th percentile of the latency of both in nanoseconds.
    pub p99: u64,
    /// Longest latency in nanoseconds.
    pub max: u64,
}

/// What the observer of a running benchmark sees.
#[derive(Debug)]
#[non_exhaustive]
pub struct Interval<'a> {
    /// What the threads are doing.
    pub phase: Phase,
    /// What happened. Outside [`Phase::Measure`] the time counts from the start of the phase.
    pub sample: Sample,
    /// The latencies of the interval.
    pub latency: &'a Latency,
}

/// What came of a benchmark.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// What was asked for.
    pub workload: Workload,
    /// Commands in flight on each queue: what was asked for, or less if a queue has less.
    pub depth: u16,
    /// From the first command to the last completion.
    pub elapsed: Duration,
    /// Reads of all threads.
    pub reads: Tally,
    /// Writes of all threads.
    pub writes: Tally,
    /// What happened when.
    pub series: Vec<Sample>,
    /// CPU time of the whole process outside the kernel during the measurement.
    pub user_time: Duration,
    /// CPU time of the whole process in the kernel during the measurement.
    pub system_time: Duration,
    /// Heap allocations of the benchmark's threads, if the process counts them.
    pub allocations: Option<u64>,
    /// What the queues did, if they count.
    pub counters: Option<Counters>,
    /// System calls that the queues made for I/O, if they count.
    pub queue_system_calls: Option<u64>,
    /// How often threads went to sleep because there was nothing to do: one system call each.
    pub sleeps: u64,
    /// Whether the observer ended the run before its limit.
    pub stopped_early: bool,
    /// Logical blocks whose stamp was checked, those read back included.
    pub blocks_verified: u64,
    /// Logical blocks that were read but not checked, because this run had not written them.
    pub blocks_unchecked: u64,
}

impl Outcome {
    /// I/Os of both directions.
    #[must_use]
    pub fn ios(&self) -> u64 {
        self.reads.ios + self.writes.ios
    }

    /// Bytes of both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.reads.bytes + self.writes.bytes
    }

    /// I/Os per second of both directions.
    #[must_use]
    pub fn iops(&self) -> f64 {
        per_second(self.ios(), self.elapsed)
    }

    /// Bytes per second of both directions.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes(), self.elapsed)
    }

    /// Something counted, by I/O; 0 if there were none.
    #[must_use]
    pub fn per_io(&self, count: u64) -> f64 {
        match self.ios() {
            0 => 0.0,
            ios => to_float(count) / to_float(ios),
        }
    }

    /// System calls for data and sleep, if the queues count.
    #[must_use]
    pub fn system_calls(&self) -> Option<u64> {
        self.queue_system_calls.map(|calls| calls + self.sleeps)
    }

    /// Latencies of both directions.
    #[must_use]
    pub fn latency(&self) -> Latency {
        let mut both = self.reads.latency.clone();
        both.add(&self.writes.latency);
        both
    }

    /// Adds another run of the same workload, as if both had been one with a pause in between.
    pub fn add(&mut self, other: &Self) {
        fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
            a.zip(b).map(|(a, b)| a + b)
        }
        let before = self.elapsed;
        self.depth = self.depth.min(other.depth);
        self.elapsed += other.elapsed;
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.series.extend(other.series.iter().map(|sample| Sample {
            at: before + sample.at,
            ..*sample
        }));
        self.user_time += other.user_time;
        self.system_time += other.system_time;
        self.allocations = sum(self.allocations, other.allocations);
        self.counters = self.counters.zip(other.counters).map(|(a, b)| a.plus(&b));
        self.queue_system_calls = sum(self.queue_system_calls, other.queue_system_calls);
        self.sleeps += other.sleeps;
        self.stopped_early |= other.stopped_early;
        self.blocks_verified += other.blocks_verified;
        self.blocks_unchecked += other.blocks_unchecked;
    }
}

/// A count by second; 0 for no time.
pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        to_float(count) / time.as_secs_f64()
    }
}

/// The nearest floating-point number: counts above 2^53 lose their last digits, which nobody prints.
#[expect(clippy::cast_precision_loss, reason = "rounding to 53 bits is what is wanted")]
pub(super) fn to_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_have_three_digits() {
        let mut latency = Latency::new();
        for micros in 1..=10_000 {
            latency.record(micros * 1000);
        }
        for (quantile, expected) in [
            (0.5, 5_000_000),
            (0.9, 9_000_000),
            (0.99, 9_900_000),
            (0.9999, 9_999_000),
        ] {
            let found = latency.quantile(quantile);
            assert!(
                found.abs_diff(expected) * 1000 <= expected,
                "{quantile}: {found}, not {expected}"
            );
        }
        assert_eq!(latency.count(), 10_000);
        assert_eq!(latency.counts().map(|(_, count)| count).sum::<u64>(), 10_000);
        assert!((latency.mean() - 5_000_500.0).abs() < 5_000.0);
        assert!((latency.deviation() - 2_886_751.0).abs() < 5_000.0);
    }

    #[test]
    fn merged_histograms_are_as_one() {
        let (mut even, mut odd, mut all) = (Latency::new(), Latency::new(), Latency::new());
        for value in 0..5000_u64 {
            if value % 2 == 0 { &mut even } else { &mut odd }.record(value * 37);
            all.record(value * 37);
        }
        let mut merged = Latency::new();
        merged.add(&even);
        merged.add(&odd);
        for quantile in [0.0, 0.25, 0.5, 0.999, 1.0] {
            assert_eq!(merged.quantile(quantile), all.quantile(quantile));
        }
        assert_eq!((merged.min(), merged.max()), (all.min(), all.max()));
        merged.clear();
        assert_eq!((merged.count(), merged.quantile(0.5), merged.max()), (0, 0, 0));
    }

    #[test]
    fn a_latency_beyond_all_bounds_is_the_longest() {
        let mut latency = Latency::new();
        latency.record(u64::MAX);
        latency.record(0);
        assert_eq!(latency.count(), 2);
        assert!(latency.max() >= LONGEST - 1);
    }
}
