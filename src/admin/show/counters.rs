//! SHOW STATS and its relatives, SHOW TOTALS, SHOW LATENCY.

use crate::admin::table::{Column, Row, Rows, Value};
use crate::stats::{Averages, Histogram, PoolEntry, PoolStats, Totals};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(in crate::admin) const STATS: &[Column] = &[
    Column::text("database"),
    Column::numeric("total_server_assignment_count"),
    Column::numeric("total_xact_count"),
    Column::numeric("total_query_count"),
    Column::numeric("total_received"),
    Column::numeric("total_sent"),
    Column::numeric("total_xact_time"),
    Column::numeric("total_query_time"),
    Column::numeric("total_wait_time"),
    Column::numeric("total_client_parse_count"),
    Column::numeric("total_server_parse_count"),
    Column::numeric("total_bind_count"),
    Column::numeric("total_client_login_count"),
    Column::numeric("avg_server_assignment_count"),
    Column::numeric("avg_xact_count"),
    Column::numeric("avg_query_count"),
    Column::numeric("avg_recv"),
    Column::numeric("avg_sent"),
    Column::numeric("avg_xact_time"),
    Column::numeric("avg_query_time"),
    Column::numeric("avg_wait_time"),
    Column::numeric("avg_client_parse_count"),
    Column::numeric("avg_server_parse_count"),
    Column::numeric("avg_bind_count"),
    Column::numeric("avg_client_login_count"),
];

pub(in crate::admin) const STATS_TOTALS: &[Column] = &[
    Column::text("database"),
    Column::numeric("server_assignment_count"),
    Column::numeric("xact_count"),
    Column::numeric("query_count"),
    Column::numeric("bytes_received"),
    Column::numeric("bytes_sent"),
    Column::numeric("xact_time"),
    Column::numeric("query_time"),
    Column::numeric("wait_time"),
    Column::numeric("client_parse_count"),
    Column::numeric("server_parse_count"),
    Column::numeric("bind_count"),
    Column::numeric("client_login_count"),
];

pub(in crate::admin) const STATS_AVERAGES: &[Column] = &[
    Column::text("database"),
    Column::numeric("server_assignment_count"),
    Column::numeric("xact_count"),
    Column::numeric("query_count"),
    Column::numeric("bytes_received"),
    Column::numeric("bytes_sent"),
    Column::numeric("xact_time"),
    Column::numeric("query_time"),
    Column::numeric("wait_time"),
    Column::numeric("avg_client_parse_count"),
    Column::numeric("avg_server_parse_count"),
    Column::numeric("avg_bind_count"),
    Column::numeric("avg_client_login_count"),
];

pub(in crate::admin) const TOTALS: &[Column] = &[Column::text("name"), Column::numeric("value")];

/// Names of the rows of SHOW TOTALS, each with `total_` or `avg_` in front.
const TOTALS_NAMES: [&str; COUNTERS] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

pub(in crate::admin) const LATENCY: &[Column] = &[
    Column::text("database"),
    Column::text("user"),
    Column::text("kind"),
    Column::int8("count"),
    Column::numeric("p50_us"),
    Column::numeric("p90_us"),
    Column::numeric("p99_us"),
    Column::numeric("p99_9_us"),
    Column::numeric("max_us"),
];

const COUNTERS: usize = 12;

type ByDatabase = BTreeMap<Arc<str>, Totals>;

/// Rows of SHOW STATS.
pub(super) fn stats(totals: &ByDatabase, averages: impl Fn(&str, &Totals) -> Averages) -> Vec<Row> {
    let numbers = |name: &str, totals: &Totals| {
        let both = [
            total_values(totals),
            average_values(&averages(name, totals)),
        ];
        both.concat()
    };
    by_database(totals, numbers)
}

/// Rows of SHOW STATS_TOTALS.
pub(super) fn stats_totals(totals: &ByDatabase) -> Vec<Row> {
    by_database(totals, |_, totals| total_values(totals).to_vec())
}

/// Rows of SHOW STATS_AVERAGES.
pub(super) fn stats_averages(
    totals: &ByDatabase,
    averages: impl Fn(&str, &Totals) -> Averages,
) -> Vec<Row> {
    by_database(totals, |name, totals| {
        average_values(&averages(name, totals)).to_vec()
    })
}

fn by_database(totals: &ByDatabase, numbers: impl Fn(&str, &Totals) -> Vec<u64>) -> Vec<Row> {
    let rows = totals.iter().map(|(name, totals)| {
        let numbers = numbers(name, totals);
        let values = numbers.into_iter().map(Value::numeric);
        std::iter::once(Value::Shared(name.clone()))
            .chain(values)
            .collect()
    });
    rows.collect()
}

/// Rows of SHOW TOTALS.
pub(super) fn totals(totals: &ByDatabase, averages: &Averages) -> Vec<Row> {
    let together: Totals = totals.values().copied().sum();
    let halves = [
        ("total", total_values(&together)),
        ("avg", average_values(averages)),
    ];
    let rows = halves.into_iter().flat_map(|(prefix, numbers)| {
        let named = TOTALS_NAMES.iter().zip(numbers);
        named.map(move |(name, number)| {
            vec![
                Value::text(format!("{prefix}_{name}")),
                Value::numeric(number),
            ]
        })
    });
    rows.collect()
}

/// In the order of all these tables.
fn total_values(totals: &Totals) -> [u64; COUNTERS] {
    [
        totals.server_assignment_count,
        totals.xact_count,
        totals.query_count,
        totals.bytes_received,
        totals.bytes_sent,
        totals.xact_time_us,
        totals.query_time_us,
        totals.wait_time_us,
        totals.client_parse_count,
        totals.server_parse_count,
        totals.bind_count,
        totals.client_login_count,
    ]
}

/// In the order of all these tables.
fn average_values(averages: &Averages) -> [u64; COUNTERS] {
    [
        averages.server_assignment_count,
        averages.xact_count,
        averages.query_count,
        averages.bytes_received,
        averages.bytes_sent,
        averages.xact_time_us,
        averages.query_time_us,
        averages.wait_time_us,
        averages.client_parse_count,
        averages.server_parse_count,
        averages.bind_count,
        averages.client_login_count,
    ]
}

type Kind = (&'static str, fn(&PoolStats) -> &Histogram);

/// The kinds of latency, and where each is counted.
pub(in crate::admin) const KINDS: [Kind; 4] = [
    ("query", |stats| &stats.query),
    ("transaction", |stats| &stats.transaction),
    ("wait", |stats| &stats.wait),
    ("handoff", |stats| &stats.handoff),
];

/// Rows of SHOW LATENCY: four for each pool, each merged over shards only when it is asked for.
pub(super) fn latency(pools: Vec<PoolEntry>) -> Rows {
    let rows = pools.into_iter().flat_map(|pool| {
        KINDS.into_iter().map(move |(kind, histogram)| {
            let percentiles = pool.merged(histogram).percentiles();
            vec![
                Value::Shared(pool.database.clone()),
                Value::Shared(pool.user.clone()),
                Value::text(kind),
                Value::int8(percentiles.count),
                micros(percentiles.p50_us),
                micros(percentiles.p90_us),
                micros(percentiles.p99_us),
                micros(percentiles.p99_9_us),
                micros(percentiles.max_us),
            ]
        })
    });
    Box::new(rows)
}

fn micros(micros: f64) -> Value {
    // A cast from a float saturates; these are never negative.
    Value::thousandths((micros * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, assert_fits, printed};
    use crate::base::ShardId;
    use crate::stats::Registry;

    fn sample() -> (ByDatabase, Averages) {
        let totals = Totals {
            server_assignment_count: 1,
            xact_count: 2,
            query_count: 3,
            bytes_received: 4,
            bytes_sent: 5,
            xact_time_us: 6,
            query_time_us: 7,
            wait_time_us: 8,
            client_parse_count: 9,
            server_parse_count: 10,
            bind_count: 11,
            client_login_count: 12,
        };
        let averages = Averages {
            server_assignment_count: 21,
            xact_count: 22,
            query_count: 23,
            bytes_received: 24,
            bytes_sent: 25,
            xact_time_us: 26,
            query_time_us: 27,
            wait_time_us: 28,
            client_parse_count: 29,
            server_parse_count: 30,
            bind_count: 31,
            client_login_count: 32,
        };
        let names = ["shop", "pgbouncer"].map(Arc::from);
        (
            names.into_iter().map(|name| (name, totals)).collect(),
            averages,
        )
    }

    #[test]
    fn columns_are_pgbouncers() {
        assert_columns(
            STATS,
            "database t, total_server_assignment_count n, total_xact_count n, total_query_count n, \
             total_received n, total_sent n, total_xact_time n, total_query_time n, total_wait_time n, \
             total_client_parse_count n, total_server_parse_count n, total_bind_count n, \
             total_client_login_count n, \
             avg_server_assignment_count n, avg_xact_count n, avg_query_count n, avg_recv n, avg_sent n, \
             avg_xact_time n, avg_query_time n, avg_wait_time n, avg_client_parse_count n, \
             avg_server_parse_count n, avg_bind_count n, avg_client_login_count n",
        );
        assert_columns(
            STATS_TOTALS,
            "database t, server_assignment_count n, xact_count n, query_count n, bytes_received n, \
             bytes_sent n, xact_time n, query_time n, wait_time n, client_parse_count n, \
             server_parse_count n, bind_count n, client_login_count n",
        );
        assert_columns(
            STATS_AVERAGES,
            "database t, server_assignment_count n, xact_count n, query_count n, bytes_received n, \
             bytes_sent n, xact_time n, query_time n, wait_time n, avg_client_parse_count n, \
             avg_server_parse_count n, avg_bind_count n, avg_client_login_count n",
        );
        assert_columns(TOTALS, "name t, value n");
        assert_columns(
            LATENCY,
            "database t, user t, kind t, count q, p50_us n, p90_us n, p99_us n, p99_9_us n, max_us n",
        );
    }

    #[test]
    fn every_counter_stands_in_its_column() {
        let (all, averages) = sample();
        let text = |columns, rows: Vec<Row>| printed(columns, &rows[1]);
        let row = text(STATS, stats(&all, |_, _| averages));
        assert!(
            row.starts_with("database=shop total_server_assignment_count=1 "),
            "{row}"
        );
        for pair in [
            "total_received=4 total_sent=5 total_xact_time=6 total_query_time=7 total_wait_time=8",
            "total_bind_count=11 total_client_login_count=12 avg_server_assignment_count=21",
            "avg_recv=24 avg_sent=25 avg_xact_time=26 avg_query_time=27 avg_wait_time=28",
        ] {
            assert!(row.contains(pair), "{row}");
        }
        let row = text(STATS_TOTALS, stats_totals(&all));
        assert!(
            row.contains("bytes_received=4 bytes_sent=5 xact_time=6"),
            "{row}"
        );
        let row = text(STATS_AVERAGES, stats_averages(&all, |_, _| averages));
        assert!(
            row.ends_with("avg_bind_count=31 avg_client_login_count=32"),
            "{row}"
        );
    }

    #[test]
    fn totals_sum_all_databases_under_their_own_names() {
        let (all, averages) = sample();
        let rows = totals(&all, &averages);
        assert_fits(TOTALS, &rows);
        let lines: Vec<_> = rows.iter().map(|row| printed(TOTALS, row)).collect();
        assert_eq!(lines.len(), 24);
        for (index, line) in [
            (0, "name=total_server_assignment_count value=2"),
            (3, "name=total_client_bytes value=8"),
            (4, "name=total_server_bytes value=10"),
            (8, "name=total_ps_client_parse_count value=18"),
            (10, "name=total_ps_bind_count value=22"),
            (12, "name=avg_server_assignment_count value=21"),
            (15, "name=avg_client_bytes value=24"),
            (23, "name=avg_client_login_count value=32"),
        ] {
            assert_eq!(lines[index], line);
        }
    }

    #[test]
    fn latencies_are_merged_over_shards_and_have_three_decimals() {
        let registry = Registry::new(2);
        for shard in [0, 1] {
            let stats = registry.pool(ShardId(shard), "shop", "ann");
            stats.query_ended(1_234_567);
            stats.wait.record(0);
        }
        let rows: Vec<Row> = latency(registry.pools()).collect();
        let lines: Vec<_> = rows.iter().map(|row| printed(LATENCY, row)).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("database=shop user=ann kind=query count=2 p50_us=12"));
        assert!(lines[0].ends_with(" max_us=1234.567"), "{}", lines[0]);
        assert!(lines[2].starts_with("database=shop user=ann kind=wait count=2 p50_us=0.0"));
        let nothing = "count=0 p50_us=0.000 p90_us=0.000 p99_us=0.000 p99_9_us=0.000 max_us=0.000";
        assert_eq!(
            lines[3],
            format!("database=shop user=ann kind=handoff {nothing}")
        );
    }
}
