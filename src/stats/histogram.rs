//! A latency histogram of fixed log-linear buckets: one writer, any number of readers, no lock.
//!
//! Buckets: 64 ns wide up to 4.096 us, then 32 to each doubling, up to 2^42 ns (73 minutes); the
//! last one also takes everything above. A value is read back as the middle of its bucket, so it is
//! off by at most 32 ns below 2.048 us (3.1% at 1.024 us) and by at most 1/64 (1.6%) above.
//! Sum and maximum are exact; the count is the sum of all buckets, hence exact, too.
//!
//! Memory: 1,024 buckets of 8 bytes, 8 KiB, taken at the first value; a histogram that was never
//! written to is 32 bytes. 100 pools, all used on each of 32 shards, with 4 histograms each, come
//! to 105 MB. Buckets are 64 bits wide because 32 would overflow within 12 hours at 100,000
//! equal latencies per second.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counter::{Counter, Peak};

/// The narrowest bucket is 2^6 = 64 ns wide.
const UNIT_BITS: u32 = 6;
/// Each doubling has 2^5 = 32 buckets.
const SPLIT_BITS: u32 = 5;
const SPLIT: u64 = 1 << SPLIT_BITS;
/// Largest value told apart from larger ones.
const NANOS_MAX: u64 = (1 << 42) - 1;
const BUCKETS: usize = 1024;

const _: () = assert!(bucket_of(u64::MAX) == BUCKETS - 1);
const _: () = assert!(size_of::<Buckets>() == 8192 && size_of::<Histogram>() == 32);

type Buckets = [AtomicU64; BUCKETS];

/// Durations of one kind, on one shard. **One thread records**, as with [`Counter`]; see the
/// file's head for range, precision and memory.
#[derive(Debug, Default)]
pub struct Histogram {
    // Outside the box, so that the box is exactly one 8 KiB size class of the allocator.
    sum_nanos: Counter,
    max_nanos: Peak,
    buckets: OnceLock<Box<Buckets>>,
}

impl Histogram {
    /// Counts one duration. Only the one writer may call this. The first call reserves 8 KiB.
    #[inline]
    pub fn record(&self, nanos: u64) {
        let buckets = self.buckets.get_or_init(empty_buckets);
        self.sum_nanos.add(nanos);
        self.max_nanos.raise(nanos);
        // The mask spares the bounds check; `bucket_of` stays below it anyway.
        let bucket = &buckets[bucket_of(nanos) & (BUCKETS - 1)];
        let count = bucket.load(Ordering::Relaxed).wrapping_add(1);
        // Release, a plain store on x86-64: who sees the count also sees the sum and maximum it
        // belongs to, and no percentile exceeds the maximum shown beside it.
        bucket.store(count, Ordering::Release);
    }

    /// How many durations were recorded. Reads all buckets: not for the data path.
    pub fn count(&self) -> u64 {
        self.counts().map(|(_, count)| count).sum()
    }

    /// Sum of all durations, exact; wraps at 2^64 ns (584 years of latency).
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos.load()
    }

    /// The longest duration, exact; 0 if there was none.
    pub fn max_nanos(&self) -> u64 {
        self.max_nanos.load()
    }

    /// Adds every duration, as the middle of its bucket in nanoseconds, to `merged`. What lies
    /// outside `merged`'s range is clamped to it. To get percentiles, use
    /// [`Merged`](super::Merged), which has the right range.
    pub fn merge_into(&self, merged: &mut hdrhistogram::Histogram<u64>) {
        for (nanos, count) in self.recorded() {
            merged.saturating_record_n(nanos, count);
        }
    }

    /// The middle of each bucket that is not empty, in nanoseconds, and its count.
    pub(super) fn recorded(&self) -> impl Iterator<Item = (u64, u64)> {
        let filled = self.counts().filter(|(_, count)| *count > 0);
        filled.map(|(index, count)| (bucket_middle(index), count))
    }

    fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        let buckets = self.buckets.get().into_iter().flat_map(|all| all.iter());
        buckets
            .map(|bucket| bucket.load(Ordering::Acquire))
            .enumerate()
    }
}

fn empty_buckets() -> Box<Buckets> {
    Box::new([const { AtomicU64::new(0) }; BUCKETS])
}

/// The bucket that `nanos` belongs to, without a branch: the doubling from the leading zeros, the
/// place in it from the next five bits.
#[inline]
const fn bucket_of(nanos: u64) -> usize {
    // Written out because `Ord::min` is not const.
    let clamped = if nanos < NANOS_MAX { nanos } else { NANOS_MAX };
    let units = clamped >> UNIT_BITS;
    // Setting bit 5 makes the first 64 units one linear run.
    let shift = (units | SPLIT).ilog2() - SPLIT_BITS;
    ((shift as u64) * SPLIT + (units >> shift)) as usize
}

/// First nanosecond of bucket `index`, and the bucket's width in nanoseconds.
fn bucket_span(index: usize) -> (u64, u64) {
    let index = index as u64;
    let shift = (index / SPLIT).saturating_sub(1);
    let first_unit = (index - shift * SPLIT) << shift;
    (first_unit << UNIT_BITS, 1 << (shift + u64::from(UNIT_BITS)))
}

fn bucket_middle(index: usize) -> u64 {
    let (first, width) = bucket_span(index);
    first + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::seeded::Seeded;
    use std::thread;

    fn assert_bucket_contains(nanos: u64) {
        let index = bucket_of(nanos);
        let (first, width) = bucket_span(index);
        let last_bucket = index == BUCKETS - 1;
        assert!(
            first <= nanos,
            "{nanos} lies before bucket {index} at {first}"
        );
        assert!(
            nanos - first < width || last_bucket,
            "{nanos} lies behind bucket {index} at {first}"
        );
    }

    #[test]
    fn every_value_lands_in_a_bucket_that_contains_it() {
        for bit in 0..64 {
            let power = 1u64 << bit;
            [power - 1, power, power + 1]
                .into_iter()
                .for_each(assert_bucket_contains);
        }
        let ends = [NANOS_MAX - 1, NANOS_MAX, NANOS_MAX + 1, u64::MAX];
        ends.into_iter().for_each(assert_bucket_contains);
        let mut random = Seeded::new(1);
        (0..200_000).for_each(|_| assert_bucket_contains(random.log_uniform(64)));
    }

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            let (first, width) = bucket_span(index);
            assert_eq!(first, next, "bucket {index}");
            assert_eq!(
                (bucket_of(first), bucket_of(first + width - 1)),
                (index, index)
            );
            next = first + width;
        }
        assert_eq!(next, NANOS_MAX + 1);
    }

    #[test]
    fn middle_of_a_bucket_is_within_the_promised_error() {
        for index in 0..BUCKETS {
            let (first, width) = bucket_span(index);
            let off_most = width / 2;
            assert!(off_most == 32 || off_most * 64 <= first, "bucket {index}");
            assert!(first >= 2048 || off_most == 32, "bucket {index}");
        }
    }

    #[test]
    fn count_sum_and_maximum_are_exact() {
        let histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.max_nanos()), (0, 0));
        for nanos in [0, 1, 777, 123_456_789, NANOS_MAX + 5] {
            histogram.record(nanos);
        }
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.sum_nanos(), 778 + 123_456_789 + NANOS_MAX + 5);
        assert_eq!(histogram.max_nanos(), NANOS_MAX + 5);
    }

    #[test]
    fn histogram_never_written_to_reserves_nothing() {
        let histogram = Histogram::default();
        histogram.merge_into(&mut hdrhistogram::Histogram::new(3).unwrap());
        assert_eq!(histogram.count(), 0);
        assert!(histogram.buckets.get().is_none());
    }

    #[test]
    fn reader_on_another_thread_never_sees_a_decreasing_count_nor_more_than_the_sum() {
        const RECORDS: u64 = 30_000;
        let histogram = Histogram::default();
        thread::scope(|scope| {
            scope.spawn(|| (1..=RECORDS).for_each(|i| histogram.record(i * 50)));
            let mut last = 0;
            while last < RECORDS {
                let now = histogram.count();
                assert!(now >= last, "{now} after {last}");
                // The i-th value is 50 i: a count is never visible before its sum and maximum.
                assert!(histogram.sum_nanos() >= 50 * now * (now + 1) / 2);
                assert!(histogram.max_nanos() >= 50 * now);
                last = now;
            }
        });
        assert_eq!(histogram.count(), RECORDS);
    }
}
