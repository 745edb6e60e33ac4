//! What one pool did and has on one shard: PgBouncer's counters (SHOW STATS), the numbers of SHOW
//! POOLS, and the latencies.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use super::counter::{Counter, Gauge};
use super::histogram::Histogram;
use crate::base::Moment;

/// The numbers of one pool (database, user) on one shard. **Only that shard writes.**
///
/// Aligned to whole cache lines (by `oldest_wait`), so that two shards never share one.
#[derive(Debug, Default)]
pub struct PoolStats {
    /// Times a client was linked to a server.
    pub server_assignment_count: Counter,
    /// Transactions begun: the first query after idle.
    pub xact_count: Counter,
    /// Queries begun: any message of a client with no query in flight; a pipeline is one.
    pub query_count: Counter,
    /// Bytes of whole protocol messages read from clients after login.
    pub bytes_received: Counter,
    /// Bytes of whole protocol messages read from servers after login.
    pub bytes_sent: Counter,
    /// Time spent in transactions, in microseconds.
    pub xact_time_us: Counter,
    /// Time spent in queries, in microseconds.
    pub query_time_us: Counter,
    /// Time that clients waited for a server, in microseconds; added when they get one.
    pub wait_time_us: Counter,
    /// Named statements prepared by clients.
    pub client_parse_count: Counter,
    /// Named statements prepared on servers.
    pub server_parse_count: Counter,
    /// Named statements bound by clients.
    pub bind_count: Counter,
    /// Clients that completed authentication.
    pub client_login_count: Counter,

    /// Clients linked to a server, and idle ones.
    pub cl_active: Gauge,
    /// Clients that wait for a server.
    pub cl_waiting: Gauge,
    /// Cancel requests passed on, answer awaited.
    pub cl_active_cancel_req: Gauge,
    /// Cancel requests not passed on yet.
    pub cl_waiting_cancel_req: Gauge,
    /// Servers linked to a client.
    pub sv_active: Gauge,
    /// Server connections that carry a cancel request.
    pub sv_active_cancel: Gauge,
    /// Servers kept back because a cancel request may still hit them.
    pub sv_being_canceled: Gauge,
    /// Servers ready for use.
    pub sv_idle: Gauge,
    /// Servers idle for longer than server_check_delay: to be checked before use.
    pub sv_used: Gauge,
    /// Servers that run the reset or check query.
    pub sv_tested: Gauge,
    /// Servers that are connecting or logging in.
    pub sv_login: Gauge,

    /// How long queries took.
    pub query: Histogram,
    /// How long transactions took.
    pub transaction: Histogram,
    /// How long clients waited for a server.
    pub wait: Histogram,
    /// How long servers handed over by another shard were on their way.
    pub handoff: Histogram,

    /// Since when this shard's first client in line waits.
    pub oldest_wait: CachePadded<OldestWait>,
}

impl PoolStats {
    /// A query that took `nanos` has ended: its time and histogram.
    #[inline]
    pub fn query_ended(&self, nanos: u64) {
        self.query_time_us.add(nanos / 1000);
        self.query.record(nanos);
    }

    /// A transaction that took `nanos` has ended: its time and histogram.
    #[inline]
    pub fn transaction_ended(&self, nanos: u64) {
        self.xact_time_us.add(nanos / 1000);
        self.transaction.record(nanos);
    }

    /// A client that was logging in had to wait for the pool's first server, which it was not given: as in PgBouncer, a wait
    /// without an assignment.
    pub fn waited_for_welcome(&self, span: Duration) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.wait_time_us.add(micros);
    }

    /// A client got a server after `nanos` in line: the assignment, its wait and histogram. Call it
    /// with 0 for a client that did not wait, as every assignment counts.
    #[inline]
    pub fn server_assigned(&self, nanos: u64) {
        self.server_assignment_count.inc();
        self.wait_time_us.add(nanos / 1000);
        self.wait.record(nanos);
    }
}

/// Since when the first client in line waits, for SHOW POOLS (`maxwait`). One writer; relaxed, so
/// nobody may base a "nobody waits, so I go idle" on it: the pool's published heads are for that.
#[derive(Debug)]
pub struct OldestWait(AtomicU64);

impl OldestWait {
    /// The first in line waits since `moment`; [`Moment::NEVER`] if nobody waits.
    #[inline]
    pub fn set(&self, moment: Moment) {
        self.0.store(moment.nanos(), Relaxed);
    }

    /// Since when the first in line waits; [`Moment::NEVER`] if nobody does.
    #[inline]
    pub fn load(&self) -> Moment {
        Moment::from_nanos(self.0.load(Relaxed))
    }

    /// How long the first in line has waited by `now`; zero if nobody waits.
    pub fn waited(&self, now: Moment) -> Duration {
        now.since(self.load())
    }
}

impl Default for OldestWait {
    fn default() -> OldestWait {
        OldestWait(AtomicU64::new(Moment::NEVER.nanos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_never_share_a_cache_line() {
        assert!(align_of::<PoolStats>() >= 64);
        assert_eq!(size_of::<PoolStats>() % align_of::<PoolStats>(), 0);
        assert!(
            size_of::<PoolStats>() <= 512,
            "without histograms a pool stays small"
        );
    }

    #[test]
    fn time_and_histogram_agree() {
        let stats = PoolStats::default();
        stats.query_ended(1_500_000);
        stats.transaction_ended(2_500_999);
        stats.server_assigned(0);
        stats.server_assigned(3_000_000);
        assert_eq!(
            (stats.query_time_us.load(), stats.query.sum_nanos()),
            (1_500, 1_500_000)
        );
        assert_eq!(
            (stats.xact_time_us.load(), stats.transaction.count()),
            (2_500, 1)
        );
        assert_eq!((stats.wait_time_us.load(), stats.wait.count()), (3_000, 2));
        assert_eq!(stats.server_assignment_count.load(), 2);
    }

    #[test]
    fn nobody_waiting_has_waited_for_no_time() {
        let stats = PoolStats::default();
        let now = Moment::from_nanos(9_000);
        assert_eq!(stats.oldest_wait.waited(now), Duration::ZERO);
        stats.oldest_wait.set(Moment::from_nanos(2_000));
        assert_eq!(stats.oldest_wait.waited(now), Duration::from_nanos(7_000));
        stats.oldest_wait.set(Moment::NEVER);
        assert_eq!(stats.oldest_wait.waited(now), Duration::ZERO);
    }
}
