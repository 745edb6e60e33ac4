//! Single numbers with one writer: [`Counter`], [`Gauge`], [`Peak`].
//!
//! Invariant, kept by the caller: **one thread writes** a given number, ever; any thread reads.
//! So a write is a relaxed load and a relaxed store, an `inc` without a lock prefix; that would
//! cost some 20 cycles even on a line that nobody else touches. A second writer would lose updates
//! (but break no memory). They are not padded; what holds them is.
//!
//! Every number sits in its own atomic, so a reader never sees one run backwards, but two
//! numbers read one after the other may stem from two moments.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts events, bytes or microseconds since the process started. Never decreases; wraps at 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the one writer may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.load().wrapping_add(n), Relaxed);
    }

    /// Adds one. Only the one writer may call this.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count so far.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Makes it `value`. Only the one writer may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`. Only the one writer may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.load().wrapping_add(n));
    }

    /// Takes `n` away. Taking more than there is would be a bug of the caller: debug builds panic,
    /// release builds stay at zero. Only the one writer may call this.
    #[inline]
    pub fn sub(&self, n: u64) {
        let before = self.load();
        debug_assert!(before >= n, "gauge at {before} cannot lose {n}");
        self.set(before.saturating_sub(n));
    }

    /// The value now.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The largest value seen since the process started. Over shards, take the maximum, not the sum.
#[derive(Debug, Default)]
pub struct Peak(AtomicU64);

impl Peak {
    /// Remembers `value` if it is the largest so far. Only the one writer may call this.
    #[inline]
    pub fn raise(&self, value: u64) {
        self.0.store(self.load().max(value), Relaxed);
    }

    /// The largest value so far; 0 if there was none.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn counter_adds_and_wraps() {
        let counter = Counter::default();
        counter.inc();
        counter.add(41);
        assert_eq!(counter.load(), 42);
        counter.add(u64::MAX);
        assert_eq!(counter.load(), 41);
    }

    #[test]
    fn gauge_follows_set_add_and_sub() {
        let gauge = Gauge::default();
        gauge.set(5);
        gauge.add(3);
        gauge.sub(8);
        assert_eq!(gauge.load(), 0);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "gauge at 1 cannot lose 2")]
    fn gauge_below_zero_is_caught_in_debug_builds() {
        let gauge = Gauge::default();
        gauge.set(1);
        gauge.sub(2);
    }

    #[test]
    fn peak_keeps_the_largest() {
        let peak = Peak::default();
        for value in [3, 9, 4] {
            peak.raise(value);
        }
        assert_eq!(peak.load(), 9);
    }

    #[test]
    fn reader_on_another_thread_never_sees_a_decreasing_count() {
        const ADDS: u64 = 300_000;
        let counter = Counter::default();
        thread::scope(|scope| {
            scope.spawn(|| (0..ADDS).for_each(|_| counter.inc()));
            let mut last = 0;
            while last < ADDS {
                let now = counter.load();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        assert_eq!(counter.load(), ADDS);
    }
}
