//! What a waiting client can be told: its place in the line of all shards, and how long that line
//! will take at the rate that was measured. Owns the measurement of one shard; an estimate, and the
//! only part of the pool that nothing depends on.

use crate::base::Moment;
use std::time::Duration;

/// Intervals that the mean forgets its past in.
const MEMORY: u32 = 16;
/// Intervals that must have been measured before anything is said about them.
const MEASURED_MIN: u32 = 4;

/// Where a client in line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Clients that came before it, on all shards.
    pub ahead: u64,
    /// Clients in line, it included.
    pub waiting: u64,
    /// How long it will still wait if servers come back at the measured rate; `None` while too little
    /// has been measured, or as long as more servers may be opened.
    pub expected: Option<Duration>,
}

/// How fast one shard's line moves: the mean interval between two grants while somebody waits.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last grant, or the moment at which somebody began to wait if that was later.
    since: Moment,
    mean_ns: u64,
    measured: u32,
}

impl Pace {
    /// Somebody waits, and nobody did before.
    pub(super) fn line_forms(&mut self, now: Moment) {
        self.since = self.since.max(now);
    }

    /// The head of the line has been served.
    pub(super) fn served(&mut self, now: Moment) {
        let interval = now.since(self.since).as_nanos() as u64;
        self.since = self.since.max(now);
        self.measured = (self.measured + 1).min(MEMORY);
        let weight = u64::from(self.measured);
        self.mean_ns = (self.mean_ns * (weight - 1)).saturating_add(interval) / weight;
    }

    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// The mean interval in nanoseconds; 0 while too few were measured.
    pub(super) fn mean_ns(&self) -> u64 {
        if self.measured < MEASURED_MIN {
            return 0;
        }
        self.mean_ns.max(1)
    }
}

/// Grants per nanosecond of a line that was last served at `since`: if it has not moved for longer than its mean interval, what
/// it would be if it moved now. Servers that come back many at a time make such pauses.
pub(super) fn rate(mean_ns: u64, since: Moment, now: Moment) -> f64 {
    if mean_ns == 0 {
        return 0.0;
    }
    let quiet_ns = now.since(since).as_nanos() as u64;
    let late_ns = quiet_ns.saturating_sub(mean_ns);
    1.0 / (mean_ns + late_ns / u64::from(MEMORY)) as f64
}

/// How many of `count` clients came before `mine`, of whom the first came at `first`, the last at
/// `last` and the others evenly between.
pub(super) fn older(count: u64, first: Moment, last: Moment, mine: Moment) -> u64 {
    if mine <= first || count == 0 {
        return 0;
    }
    if mine > last {
        return count;
    }
    let share = mine.since(first).as_secs_f64() / last.since(first).as_secs_f64();
    1 + (count.saturating_sub(2) as f64 * share).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Moment {
        Moment::from_nanos(micros * 1000)
    }

    #[test]
    fn a_steady_line_has_the_rate_of_its_grants() {
        let mut pace = Pace::default();
        pace.line_forms(at(1000));
        (1..=100).for_each(|n| pace.served(at(1000 + n * 50)));
        assert_eq!(pace.mean_ns(), 50_000);
        assert_eq!(rate(pace.mean_ns(), pace.since(), at(6000)), 1.0 / 50_000.0);
    }

    #[test]
    fn several_grants_at_one_moment_count_with_the_pause_before_them() {
        let mut pace = Pace::default();
        pace.line_forms(at(0));
        for n in 1..=50 {
            (0..4).for_each(|_| pace.served(at(n * 400)));
        }
        assert!((90_000..120_000).contains(&pace.mean_ns()), "{pace:?}");
    }

    #[test]
    fn a_line_that_stands_still_gets_slower() {
        assert_eq!(rate(1000, at(0), at(1)), 1.0 / 1000.0);
        assert_eq!(rate(1000, at(0), at(17)), 1.0 / 2000.0);
    }

    #[test]
    fn a_pause_between_bursts_is_no_standstill() {
        let mut pace = Pace::default();
        pace.line_forms(at(0));
        for burst in 1..=10 {
            (0..20).for_each(|_| pace.served(at(burst * 2000)));
        }
        let interval = |now| 1.0 / rate(pace.mean_ns(), pace.since(), at(now));
        for now in [20_000, 20_500, 21_000, 22_000] {
            let (told, is) = (interval(now), 100_000.0);
            assert!(
                (0.4 * is..2.0 * is).contains(&told),
                "{told} ns at {now} us"
            );
        }
    }

    #[test]
    fn time_without_a_line_is_not_measured() {
        let mut pace = Pace::default();
        for n in 0..4 {
            pace.line_forms(at(n * 1_000_000));
            pace.served(at(n * 1_000_000 + 10));
        }
        assert_eq!(pace.mean_ns(), 10_000);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        let mut pace = Pace::default();
        (0..3).for_each(|n| pace.served(at(n)));
        assert_eq!(pace.mean_ns(), 0);
        assert_eq!(rate(0, at(0), at(9)), 0.0);
    }

    #[test]
    fn those_who_came_evenly_are_counted_by_time() {
        let before = |mine| older(10, at(100), at(200), at(mine));
        assert_eq!((before(90), before(100), before(101)), (0, 0, 1));
        assert_eq!((before(150), before(200), before(201)), (5, 9, 10));
        assert_eq!(older(1, at(100), at(100), at(101)), 1);
    }
}
