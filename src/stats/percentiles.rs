//! Histograms of many shards merged into one, and the percentiles of that one. Percentiles are
//! never averaged.

use super::histogram::Histogram;

/// The widest value kept: what the last bucket of a [`Histogram`] stands for fits.
const NANOS_MAX: u64 = 1 << 42;

/// Any number of [`Histogram`]s added up, in nanoseconds, at 3 significant digits: about 260 KiB,
/// so make one, read it, drop it.
#[derive(Debug)]
pub struct Merged {
    values: hdrhistogram::Histogram<u64>,
    sum_nanos: u64,
    max_nanos: u64,
}

impl Merged {
    /// Nothing yet.
    pub fn new() -> Merged {
        let values = hdrhistogram::Histogram::new_with_bounds(1, NANOS_MAX, 3)
            .expect("constant bounds are valid");
        Merged {
            values,
            sum_nanos: 0,
            max_nanos: 0,
        }
    }

    /// Adds all that `histogram` holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        // Buckets first: whatever they count is then in the sum and maximum, too.
        histogram.merge_into(&mut self.values);
        self.sum_nanos = self.sum_nanos.wrapping_add(histogram.sum_nanos());
        self.max_nanos = self.max_nanos.max(histogram.max_nanos());
    }

    /// The durations in nanoseconds, for whoever wants counts below a bound or other quantiles.
    pub fn values(&self) -> &hdrhistogram::Histogram<u64> {
        &self.values
    }

    /// Sum of all durations, exact; wraps at 2^64 ns.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos
    }

    /// The percentiles of all that was added.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.values.len(),
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p99_9_us: self.quantile_us(0.999),
            max_us: micros(self.max_nanos),
        }
    }

    /// The smallest duration that the fraction `quantile` (0 to 1) of all durations does not
    /// exceed, in microseconds; 0 if there are none.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        // The middle of the topmost bucket may lie above the true maximum.
        micros(self.values.value_at_quantile(quantile).min(self.max_nanos))
    }
}

impl Default for Merged {
    fn default() -> Merged {
        Merged::new()
    }
}

/// What a person asks of a latency. Microseconds, as everywhere in PgBouncer's console, but with
/// fractions, because a hand-off takes only a few of them.
///
/// The percentiles are off by at most 1.7% from 2.048 us up to 73 minutes and by at most 36 ns
/// below; `count` and `max_us` are exact. All are 0 when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// How many durations.
    pub count: u64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: f64,
    /// Nine in ten took no longer, in microseconds.
    pub p90_us: f64,
    /// 99 in 100 took no longer, in microseconds.
    pub p99_us: f64,
    /// 999 in 1,000 took no longer, in microseconds.
    pub p99_9_us: f64,
    /// The longest, in microseconds.
    pub max_us: f64,
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::seeded::Seeded;

    fn merged(histograms: &[&Histogram]) -> Merged {
        let mut all = Merged::new();
        histograms.iter().for_each(|histogram| all.add(histogram));
        all
    }

    fn recorded(values: &[u64]) -> Histogram {
        let histogram = Histogram::default();
        values.iter().for_each(|nanos| histogram.record(*nanos));
        histogram
    }

    fn assert_close_to_sorting(name: &str, mut values: Vec<u64>) {
        let all = merged(&[&recorded(&values)]);
        values.sort_unstable();
        for quantile in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = (quantile * values.len() as f64).ceil() as usize;
            let exact = values[rank - 1] as f64;
            let off = (all.quantile_us(quantile) * 1000.0 - exact).abs();
            let bound = if exact < 2048.0 { 36.0 } else { exact * 0.017 };
            assert!(
                off <= bound,
                "{name}, quantile {quantile}: {off} ns off {exact} ns"
            );
        }
    }

    #[test]
    fn percentiles_are_within_their_error_of_exact_sorting() {
        let mut random = Seeded::new(2);
        let mut draw = |count: usize, one: &mut dyn FnMut(&mut Seeded) -> u64| -> Vec<u64> {
            (0..count).map(|_| one(&mut random)).collect()
        };
        assert_close_to_sorting("one value", vec![123_457]);
        assert_close_to_sorting("constant", vec![5_000_000; 1000]);
        assert_close_to_sorting("uniform", draw(20_000, &mut |r| r.below(10_000_000)));
        assert_close_to_sorting("short", draw(20_000, &mut |r| r.below(3_000)));
        assert_close_to_sorting("log-uniform", draw(20_000, &mut |r| r.log_uniform(42)));
        let exponential = &mut |r: &mut Seeded| (-r.unit().ln() * 200_000.0) as u64;
        assert_close_to_sorting("exponential", draw(20_000, exponential));
        let pareto = &mut |r: &mut Seeded| (50_000.0 / r.unit().powf(0.7)) as u64;
        assert_close_to_sorting("pareto", draw(20_000, pareto));
        let two_humps = &mut |r: &mut Seeded| {
            [200_000, 900_000_000][(r.below(50) == 0) as usize] + r.below(50_000)
        };
        assert_close_to_sorting("two humps", draw(20_000, two_humps));
    }

    #[test]
    fn merging_shards_equals_recording_everything_on_one() {
        let mut random = Seeded::new(3);
        let values: Vec<u64> = (0..9_000).map(|_| random.log_uniform(40)).collect();
        let parts: Vec<Histogram> = values.chunks(1_300).map(recorded).collect();
        let split = merged(&parts.iter().collect::<Vec<_>>());
        let whole = merged(&[&recorded(&values)]);
        assert_eq!(split.values(), whole.values());
        assert_eq!(split.sum_nanos(), values.iter().sum::<u64>());
        assert_eq!(split.percentiles(), whole.percentiles());
        assert_eq!(split.percentiles().count, 9_000);
    }

    #[test]
    fn maximum_is_exact_even_beyond_the_last_bucket() {
        let two_hours = 7_200_000_000_000;
        let percentiles = merged(&[&recorded(&[1_000, two_hours + 1])]).percentiles();
        assert_eq!(percentiles.max_us, 7_200_000_000.001);
        // Only the range up to 73 minutes is told apart.
        assert!(percentiles.p99_us >= 4_300_000_000.0 && percentiles.p99_us <= percentiles.max_us);
    }

    #[test]
    fn percentile_never_exceeds_the_maximum() {
        let percentiles = merged(&[&recorded(&[1_000_001])]).percentiles();
        assert_eq!(percentiles.max_us, 1_000.001);
        assert!(percentiles.p50_us <= percentiles.max_us);
    }

    #[test]
    fn nothing_recorded_reads_as_zero() {
        assert_eq!(
            merged(&[&Histogram::default()]).percentiles(),
            Percentiles::default()
        );
    }
}
