//! Latencies of many shards counted below fixed bounds, as Prometheus wants them.

use super::histogram::Histogram;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// The bounds, in nanoseconds: 50 us to 10 s.
const BOUNDS: [u64; 17] = [
    50 * US,
    100 * US,
    200 * US,
    500 * US,
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    50 * MS,
    100 * MS,
    200 * MS,
    500 * MS,
    S,
    2 * S,
    5 * S,
    10 * S,
];

/// Any number of [`Histogram`]s added up. A duration counts as the middle of its bucket there, so one
/// within 1.6% of a bound may be counted on its other side; count and sum are exact.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    /// Durations above the bound before and not above this one.
    counts: [u64; BOUNDS.len()],
    above: u64,
    sum_nanos: u64,
}

impl Steps {
    /// Adds all that `histogram` holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        // Buckets first: whatever they count is then in the sum, too.
        for (nanos, count) in histogram.recorded() {
            let step = BOUNDS.partition_point(|bound| *bound < nanos);
            *self.counts.get_mut(step).unwrap_or(&mut self.above) += count;
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(histogram.sum_nanos());
    }

    /// Each bound in seconds, and how many durations do not exceed it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut below = 0;
        BOUNDS.iter().zip(self.counts).map(move |(bound, count)| {
            below += count;
            (seconds(*bound), below)
        })
    }

    /// How many durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.above
    }

    /// Their sum in seconds.
    pub fn sum_seconds(&self) -> f64 {
        seconds(self.sum_nanos)
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / S as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_count_below_every_bound_that_they_do_not_exceed() {
        let (one, other) = (Histogram::default(), Histogram::default());
        one.record(0);
        one.record(3 * MS);
        other.record(3 * MS);
        other.record(60 * S);
        let mut steps = Steps::default();
        steps.add(&one);
        steps.add(&other);
        let cumulative: Vec<_> = steps.cumulative().collect();
        assert!(cumulative.is_sorted());
        for (bound, count) in cumulative {
            assert_eq!(count, if bound < 0.005 { 1 } else { 3 }, "{bound}");
        }
        assert_eq!((steps.count(), steps.sum_seconds()), (4, 60.006));
    }

    #[test]
    fn bounds_rise_and_are_short_decimals() {
        assert!(BOUNDS.is_sorted());
        let written = BOUNDS.map(|bound| seconds(bound).to_string());
        assert_eq!(written[..4], ["0.00005", "0.0001", "0.0002", "0.0005"]);
        assert_eq!(written[16], "10");
    }
}
