//! Which unit is next, and whether it is read or written: a few nanoseconds per I/O, the same for the same seed.

use super::workload::Order;

/// Marsaglia's xorshift64* generator: three shifts and a multiplication.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// A sequence that differs for every seed and every stream of it.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        // One round of splitmix64, so that neighbouring seeds start far apart.
        let mut state = seed.wrapping_add((stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
        Self(if state == 0 { 1 } else { state })
    }

    /// The next 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 if that is 0. The bias is below `bound` / 2^64.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        // The high half of a product of two 64-bit numbers.
        u64::try_from(wide >> 64).unwrap_or(0)
    }
}

/// The sequence of units and directions of one thread.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    random: Random,
    order: Order,
    units: u64,
    read_percent: u64,
    next_read: u64,
    next_write: u64,
}

impl Pattern {
    /// A sequence over `units` units.
    pub(super) fn new(seed: u64, job: usize, order: Order, units: u64, read_percent: u8) -> Self {
        Self {
            random: Random::new(seed, job as u64),
            order,
            units,
            read_percent: read_percent.into(),
            next_read: 0,
            next_write: 0,
        }
    }

    /// The next unit and whether it is written.
    #[inline]
    pub(super) fn next(&mut self) -> (u64, bool) {
        let write = match self.read_percent {
            100 => false,
            0 => true,
            percent => self.random.below(100) >= percent,
        };
        let unit = match self.order {
            Order::Random => self.random.below(self.units),
            Order::Sequential => {
                let next = if write {
                    &mut self.next_write
                } else {
                    &mut self.next_read
                };
                let unit = *next;
                *next = if unit + 1 < self.units { unit + 1 } else { 0 };
                unit
            }
        };
        (unit, write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_what_was_asked_for_and_all_units_are_visited() {
        let mut pattern = Pattern::new(1, 0, Order::Random, 50, 70);
        let mut seen = [0_u32; 50];
        let mut writes = 0;
        for _ in 0..100_000 {
            let (unit, write) = pattern.next();
            seen[usize::try_from(unit).unwrap()] += 1;
            writes += u32::from(write);
        }
        assert!((29_000..31_000).contains(&writes), "{writes}");
        assert!(
            seen.iter().all(|count| (1_700..2_300).contains(count)),
            "{seen:?}"
        );
    }

    #[test]
    fn sequential_reads_and_writes_each_wrap() {
        let mut pattern = Pattern::new(1, 0, Order::Sequential, 3, 0);
        let units: Vec<u64> = (0..7).map(|_| pattern.next().0).collect();
        assert_eq!(units, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn the_seed_decides_and_threads_differ() {
        let take = |seed, job| {
            let mut pattern = Pattern::new(seed, job, Order::Random, 1 << 40, 50);
            (0..8).map(|_| pattern.next()).collect::<Vec<_>>()
        };
        assert_eq!(take(3, 1), take(3, 1));
        assert_ne!(take(3, 1), take(3, 2));
        assert_ne!(take(3, 1), take(4, 1));
    }
}
