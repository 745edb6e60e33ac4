//! SHOW SHARDS: how each core fares. Not in PgBouncer, which has one.

use crate::admin::table::{Column, Row, Value};
use crate::base::ShardId;
use crate::stats::{ShardReading, ShardStats};
use std::sync::Arc;

pub(in crate::admin) const SHARDS: &[Column] = &[
    Column::int4("shard"),
    Column::int4("clients"),
    Column::int4("servers"),
    Column::int4("load"),
    Column::int4("busy"),
    Column::int8("accepted"),
    Column::int8("clients_in"),
    Column::int8("clients_out"),
    Column::int8("moves_in"),
    Column::int8("moves_out"),
    Column::int8("logins"),
    Column::int8("login_failures"),
    Column::int8("servers_opened"),
    Column::int8("server_failures"),
    Column::int8("handoffs_in"),
    Column::int8("handoffs_out"),
    Column::int4("mailbox_depth"),
    Column::int4("mailbox_depth_max"),
    Column::int8("mailbox_full"),
    Column::int8("ring_enters"),
    Column::int8("completions"),
    Column::int4("buffers_free"),
    Column::int8("buffers_starved"),
    Column::int8("heap_copies"),
    Column::int8("busy_us"),
    Column::int8("longest_turn_us"),
    Column::int8("late_wakeups"),
    Column::int8("memory_refusals"),
];

/// Rows of SHOW SHARDS; `depth` tells how many messages wait for a shard.
pub(super) fn shards(shards: &[Arc<ShardStats>], depth: impl Fn(ShardId) -> usize) -> Vec<Row> {
    let ids = (0..=u16::MAX).map(ShardId);
    let numbered = ids.zip(shards);
    numbered
        .map(|(id, stats)| shard(id, &ShardReading::from(&**stats), depth(id)))
        .collect()
}

fn shard(id: ShardId, reading: &ShardReading, depth: usize) -> Row {
    vec![
        Value::int4(id.0),
        Value::int4(reading.clients),
        Value::int4(reading.servers),
        Value::int4(percent(reading.load)),
        Value::int4(percent(reading.busy)),
        Value::int8(reading.accepted),
        Value::int8(reading.clients_in),
        Value::int8(reading.clients_out),
        Value::int8(reading.moves_in),
        Value::int8(reading.moves_out),
        Value::int8(reading.logins),
        Value::int8(reading.login_failures),
        Value::int8(reading.servers_opened),
        Value::int8(reading.server_failures),
        Value::int8(reading.handoffs_in),
        Value::int8(reading.handoffs_out),
        Value::int4(depth),
        Value::int4(reading.mailbox_depth_max),
        Value::int8(reading.mailbox_full),
        Value::int8(reading.ring_enters),
        Value::int8(reading.completions),
        Value::int4(reading.buffers_free),
        Value::int8(reading.buffers_starved),
        Value::int8(reading.heap_copies),
        Value::int8(reading.busy_us),
        Value::int8(reading.longest_turn_us),
        Value::int8(reading.late_wakeups),
        Value::int8(reading.memory_refusals),
    ]
}

/// Thousandths as a rounded percentage.
fn percent(thousandths: u64) -> u64 {
    (thousandths + 5) / 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, printed};
    use crate::stats::Registry;

    #[test]
    fn columns_are_the_documented_ones() {
        assert_columns(
            SHARDS,
            "shard i, clients i, servers i, load i, busy i, accepted q, clients_in q, \
             clients_out q, moves_in q, moves_out q, logins q, login_failures q, servers_opened q, server_failures q, handoffs_in q, handoffs_out q, \
             mailbox_depth i, mailbox_depth_max i, mailbox_full q, ring_enters q, completions q, \
             buffers_free i, buffers_starved q, heap_copies q, busy_us q, longest_turn_us q, \
             late_wakeups q, memory_refusals q",
        );
    }

    #[test]
    fn every_shard_has_a_row_of_its_own_numbers() {
        let registry = Registry::new(2);
        let stats = registry.shard(ShardId(1));
        stats.clients.set(1);
        stats.servers.set(2);
        stats.load.set(123);
        stats.busy.set(25);
        stats.mailbox_depth_max.raise(3);
        stats.longest_turn_us.raise(4);
        stats.late_wakeups.add(5);
        stats.memory_refusals.add(6);
        let rows = shards(registry.shards(), |id| usize::from(id.0) * 7);
        assert_eq!(rows.len(), 2);
        let line = printed(SHARDS, &rows[1]);
        assert!(
            line.starts_with("shard=1 clients=1 servers=2 load=12 busy=3 accepted=0 "),
            "{line}"
        );
        assert!(
            line.contains(" mailbox_depth=7 mailbox_depth_max=3 mailbox_full=0 "),
            "{line}"
        );
        assert!(
            line.ends_with(" longest_turn_us=4 late_wakeups=5 memory_refusals=6"),
            "{line}"
        );
    }
}
