//! The totals at the last two period boundaries, from which PgBouncer's averages are reckoned.
//! Owned by whoever keeps the `stats_period` timer; reads no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::{Averages, Totals};
use crate::base::Moment;

/// Averages are taken over the time since the last but one boundary: 1 to 2 periods, so that they
/// never rest on a window that has just begun. (In the process's first period: since its start.)
#[derive(Debug)]
pub struct PeriodHistory {
    period: Duration,
    older: Boundary,
    newer: Boundary,
}

#[derive(Debug)]
struct Boundary {
    at: Moment,
    totals: BTreeMap<Arc<str>, Totals>,
}

impl Boundary {
    fn before_anything(at: Moment) -> Boundary {
        Boundary {
            at,
            totals: BTreeMap::new(),
        }
    }
}

impl PeriodHistory {
    /// Starts at `now` with all totals at zero. `period` is the setting `stats_period`.
    pub fn new(period: Duration, now: Moment) -> PeriodHistory {
        let (older, newer) = (
            Boundary::before_anything(now),
            Boundary::before_anything(now),
        );
        PeriodHistory {
            period,
            older,
            newer,
        }
    }

    /// Changes the period, from the last boundary on. (In PgBouncer the change only shows.)
    pub fn set_period(&mut self, period: Duration) {
        self.period = period;
    }

    /// When the next boundary is due.
    pub fn due(&self) -> Moment {
        self.newer.at.after(self.period)
    }

    /// Puts a boundary at `now` if one is due; only then calls `read`, for the totals by database.
    /// Returns whether it did. A late call makes the window longer, not wrong.
    pub fn roll_if_due(
        &mut self,
        now: Moment,
        read: impl FnOnce() -> BTreeMap<Arc<str>, Totals>,
    ) -> bool {
        if now < self.due() {
            return false;
        }
        let newest = Boundary {
            at: now,
            totals: read(),
        };
        self.older = std::mem::replace(&mut self.newer, newest);
        true
    }

    /// The averages of one database, whose totals are `totals` at `now`.
    pub fn averages(&self, now: Moment, database: &str, totals: &Totals) -> Averages {
        Averages::between(&self.earlier(database), totals, now.since(self.older.at))
    }

    /// The averages of all databases in `totals` together (SHOW TOTALS, the log line).
    pub fn averages_of_all(&self, now: Moment, totals: &BTreeMap<Arc<str>, Totals>) -> Averages {
        let earlier: Totals = totals.keys().map(|database| self.earlier(database)).sum();
        let together: Totals = totals.values().copied().sum();
        Averages::between(&earlier, &together, now.since(self.older.at))
    }

    /// Forgets a removed database, so that a later one of the same name starts from zero.
    pub fn forget(&mut self, database: &str) {
        self.older.totals.remove(database);
        self.newer.totals.remove(database);
    }

    fn earlier(&self, database: &str) -> Totals {
        self.older.totals.get(database).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    fn queries(count: u64) -> Totals {
        Totals {
            query_count: count,
            ..Totals::default()
        }
    }

    fn only(database: &str, totals: Totals) -> BTreeMap<Arc<str>, Totals> {
        BTreeMap::from([(Arc::from(database), totals)])
    }

    fn history_of_a(boundaries: &[(u64, u64)]) -> PeriodHistory {
        let mut history = PeriodHistory::new(Duration::from_secs(60), second(100));
        for (at, count) in boundaries {
            assert!(history.roll_if_due(second(*at), || only("a", queries(*count))));
        }
        history
    }

    #[test]
    fn window_reaches_back_to_the_last_but_one_boundary() {
        // boundaries (second, queries so far); now, queries now; window start and its queries
        let table: [(&[(u64, u64)], _, _, _); 4] = [
            (&[], 130, 3_000, (100, 0)),
            (&[(160, 6_000)], 170, 7_000, (100, 0)),
            (&[(160, 6_000), (220, 6_600)], 220, 6_600, (160, 6_000)),
            (&[(160, 6_000), (220, 6_600)], 279, 9_000, (160, 6_000)),
        ];
        for (boundaries, now, count, (start, count_then)) in table {
            let averages = history_of_a(boundaries).averages(second(now), "a", &queries(count));
            assert_eq!(
                averages.query_count,
                (count - count_then) / (now - start),
                "at {now}"
            );
        }
    }

    #[test]
    fn boundary_is_put_only_when_due_and_a_late_one_counts_real_time() {
        let mut history = history_of_a(&[]);
        assert_eq!(history.due(), second(160));
        assert!(!history.roll_if_due(second(159), || unreachable!(
            "nothing is read before it is due"
        )));
        assert!(history.roll_if_due(second(300), || only("a", queries(400))));
        assert_eq!(history.due(), second(360));
        assert_eq!(
            history
                .averages(second(300), "a", &queries(400))
                .query_count,
            2
        );
    }

    #[test]
    fn changed_period_applies_from_the_last_boundary() {
        let mut history = history_of_a(&[(160, 0)]);
        history.set_period(Duration::from_secs(10));
        assert_eq!(history.due(), second(170));
    }

    #[test]
    fn new_database_counts_from_zero_and_others_are_unmoved() {
        let history = history_of_a(&[(160, 6_000), (220, 6_600)]);
        assert_eq!(
            history
                .averages(second(260), "new", &queries(200))
                .query_count,
            2
        );
        let both = [only("a", queries(6_700)), only("new", queries(200))]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(history.averages_of_all(second(260), &both).query_count, 9);
    }

    #[test]
    fn database_removed_and_made_again_starts_from_zero() {
        let mut history = history_of_a(&[(160, 6_000), (220, 6_600)]);
        history.forget("a");
        assert_eq!(
            history
                .averages(second(260), "a", &queries(500))
                .query_count,
            5
        );
    }
}
