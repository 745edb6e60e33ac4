//! Plain numbers read from the atomics: sums over shards, and PgBouncer's averages.

use std::time::Duration;

use super::pool_stats::PoolStats;
use super::reading::reading;
use super::shard_stats::ShardStats;

reading! {
    summed
    /// The counters of one pool, or the sum over shards and pools of one database (SHOW STATS).
    struct Totals of PoolStats {
        server_assignment_count,
        xact_count,
        query_count,
        bytes_received,
        bytes_sent,
        xact_time_us,
        query_time_us,
        wait_time_us,
        client_parse_count,
        server_parse_count,
        bind_count,
        client_login_count,
    }
}

reading! {
    summed
    /// How many clients and servers a pool has in each state, summed over shards (SHOW POOLS). A
    /// server that just moves between shards may be counted twice or not at all.
    struct PoolGauges of PoolStats {
        cl_active,
        cl_waiting,
        cl_active_cancel_req,
        cl_waiting_cancel_req,
        sv_active,
        sv_active_cancel,
        sv_being_canceled,
        sv_idle,
        sv_used,
        sv_tested,
        sv_login,
    }
}

reading! {
    /// One shard's numbers. Not to be summed: peaks and times are per core.
    struct ShardReading of ShardStats {
        clients,
        servers,
        buffers_free,
        accepted,
        clients_in,
        clients_out,
        moves_in,
        moves_out,
        load,
        busy,
        logins,
        login_failures,
        memory_refusals,
        servers_opened,
        server_failures,
        handoffs_in,
        handoffs_out,
        mail_received,
        mailbox_full,
        mailbox_depth_max,
        ring_enters,
        completions,
        buffers_starved,
        heap_copies,
        heap_copy_bytes,
        busy_us,
        longest_turn_us,
        late_wakeups,
    }
}

/// PgBouncer's `avg_` columns: counts and bytes per second, times per item, all rounded down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Averages {
    /// Server assignments per second.
    pub server_assignment_count: u64,
    /// Transactions per second.
    pub xact_count: u64,
    /// Queries per second.
    pub query_count: u64,
    /// Bytes from clients per second.
    pub bytes_received: u64,
    /// Bytes from servers per second.
    pub bytes_sent: u64,
    /// Microseconds per transaction.
    pub xact_time_us: u64,
    /// Microseconds per query.
    pub query_time_us: u64,
    /// Microseconds of waiting per server assignment (PgBouncer from 1.23).
    pub wait_time_us: u64,
    /// Statements prepared by clients per second.
    pub client_parse_count: u64,
    /// Statements prepared on servers per second.
    pub server_parse_count: u64,
    /// Binds per second.
    pub bind_count: u64,
    /// Logins per second.
    pub client_login_count: u64,
}

impl Averages {
    /// The averages of what came on top of `earlier` in the `elapsed` time up to `now`. All zero if
    /// no time has passed. A total below its earlier value counts as no change.
    pub fn between(earlier: &Totals, now: &Totals, elapsed: Duration) -> Averages {
        if elapsed.is_zero() {
            return Averages::default();
        }
        let per_second = |field: fn(&Totals) -> u64| rate(grown(earlier, now, field), elapsed);
        let per_item = |time: fn(&Totals) -> u64, item: fn(&Totals) -> u64| {
            grown(earlier, now, time)
                .checked_div(grown(earlier, now, item))
                .unwrap_or(0)
        };
        Averages {
            server_assignment_count: per_second(|t| t.server_assignment_count),
            xact_count: per_second(|t| t.xact_count),
            query_count: per_second(|t| t.query_count),
            bytes_received: per_second(|t| t.bytes_received),
            bytes_sent: per_second(|t| t.bytes_sent),
            xact_time_us: per_item(|t| t.xact_time_us, |t| t.xact_count),
            query_time_us: per_item(|t| t.query_time_us, |t| t.query_count),
            wait_time_us: per_item(|t| t.wait_time_us, |t| t.server_assignment_count),
            client_parse_count: per_second(|t| t.client_parse_count),
            server_parse_count: per_second(|t| t.server_parse_count),
            bind_count: per_second(|t| t.bind_count),
            client_login_count: per_second(|t| t.client_login_count),
        }
    }
}

fn grown(earlier: &Totals, now: &Totals, field: fn(&Totals) -> u64) -> u64 {
    field(now).saturating_sub(field(earlier))
}

/// `count` per second; `elapsed` is not zero.
fn rate(count: u64, elapsed: Duration) -> u64 {
    // Wide, because bytes times 10^9 leave 64 bits behind at 18 GB.
    let per_second = u128::from(count) * 1_000_000_000 / elapsed.as_nanos();
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: fn(u64) -> Duration = Duration::from_secs;

    fn each_field_its_own_prime() -> Totals {
        Totals {
            server_assignment_count: 2,
            xact_count: 3,
            query_count: 5,
            bytes_received: 7,
            bytes_sent: 11,
            xact_time_us: 13,
            query_time_us: 17,
            wait_time_us: 19,
            client_parse_count: 23,
            server_parse_count: 29,
            bind_count: 31,
            client_login_count: 37,
        }
    }

    #[test]
    fn averages_follow_the_rule_in_every_column() {
        let now = each_field_its_own_prime();
        let averages = Averages::between(&Totals::default(), &now, Duration::from_millis(500));
        let expected = Averages {
            server_assignment_count: 4,
            xact_count: 6,
            query_count: 10,
            bytes_received: 14,
            bytes_sent: 22,
            xact_time_us: 13 / 3,
            query_time_us: 17 / 5,
            wait_time_us: 19 / 2,
            client_parse_count: 46,
            server_parse_count: 58,
            bind_count: 62,
            client_login_count: 74,
        };
        assert_eq!(averages, expected);
    }

    #[test]
    fn averages_rule_table() {
        // queries and their time earlier, the same now, elapsed; queries per second, us per query
        let table = [
            ((0, 0), (120, 6_000), SECONDS(60), (2, 50)),
            ((100, 9_000), (220, 15_000), SECONDS(60), (2, 50)),
            ((100, 9_000), (100, 9_000), SECONDS(60), (0, 0)),
            ((0, 0), (59, 59), SECONDS(60), (0, 1)),
            ((0, 0), (1, 5), Duration::ZERO, (0, 0)),
            ((0, 0), (0, 777), SECONDS(60), (0, 0)),
            ((500, 500), (3, 3), SECONDS(60), (0, 0)),
            ((0, 0), (u64::MAX, u64::MAX), SECONDS(1), (u64::MAX, 1)),
            (
                (0, 0),
                (u64::MAX, 0),
                Duration::from_nanos(1),
                (u64::MAX, 0),
            ),
        ];
        for ((count, time), (count_now, time_now), elapsed, expected) in table {
            let earlier = Totals {
                query_count: count,
                query_time_us: time,
                ..Totals::default()
            };
            let now = Totals {
                query_count: count_now,
                query_time_us: time_now,
                ..Totals::default()
            };
            let averages = Averages::between(&earlier, &now, elapsed);
            assert_eq!(
                (averages.query_count, averages.query_time_us),
                expected,
                "{now:?}"
            );
        }
    }

    #[test]
    fn totals_add_field_by_field() {
        let one = each_field_its_own_prime();
        let three: Totals = [one; 3].into_iter().sum();
        assert_eq!(three.server_assignment_count, 6);
        assert_eq!(three.client_login_count, 111);
        assert_eq!(three, one + one + one);
    }

    #[test]
    fn readings_take_each_number_from_its_own_source() {
        let pool = PoolStats::default();
        pool.xact_count.add(3);
        pool.bytes_sent.add(11);
        pool.sv_idle.set(4);
        assert_eq!(
            Totals::from(&pool),
            Totals {
                xact_count: 3,
                bytes_sent: 11,
                ..Totals::default()
            }
        );
        assert_eq!(
            PoolGauges::from(&pool),
            PoolGauges {
                sv_idle: 4,
                ..PoolGauges::default()
            }
        );
        let shard = ShardStats::default();
        shard.clients.set(8);
        shard.longest_turn_us.raise(900);
        let expected = ShardReading {
            clients: 8,
            longest_turn_us: 900,
            ..ShardReading::default()
        };
        assert_eq!(ShardReading::from(&shard), expected);
    }
}
