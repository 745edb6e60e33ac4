//! The table behind each SHOW: its columns, and its rows from what the office knows. Columns and
//! values are PgBouncer's; a value that we do not have is its neutral one (0, null, empty).

mod answer;
mod certificates;
mod connections;
mod counters;
mod date;
mod failures;
mod internals;
mod pools;
mod settings;
mod shards;
mod statements;
#[cfg(test)]
mod testing;

pub(super) use answer::{database_rows, help, list_rows, pool_rows, rows, shard_rows, total_rows};
pub(super) use certificates::TLS;
pub(super) use connections::{CONNECTIONS, SOCKETS};
pub(super) use counters::{KINDS, LATENCY, STATS, STATS_AVERAGES, STATS_TOTALS, TOTALS};
pub(super) use failures::LOGIN_FAILURES;
pub(super) use internals::{DNS_HOSTS, DNS_ZONES, FDS, MEM, PEER_POOLS, PEERS, STATE};
pub use pools::balance;
pub(super) use pools::{DATABASES, LISTS, POOLS, USERS};
pub(super) use settings::{CONFIG, NONE, PROGRAM, VERSION};
pub(super) use shards::SHARDS;
pub(super) use statements::PREPARED_STATEMENTS;
