//! Counters, gauges and latency histograms: each written by one shard without a lock prefix and
//! read by anybody without stopping that shard; summed, averaged, merged and written out when somebody asks.
//!
//! Who writes: the shard named at [`Registry::pool`] or [`Registry::shard`], on its own thread.
//! Who reads: the console, the scrape endpoint and the log line, from any thread.
//! A counter is written before the reply that it counts is sent.

mod beat;
mod counter;
mod export;
mod histogram;
mod history;
mod percentiles;
mod pool_stats;
mod reading;
mod registry;
#[cfg(test)]
mod seeded;
mod shard_stats;
mod snapshot;
mod steps;

pub use beat::Beat;
pub use counter::{Counter, Gauge, Peak};
pub use export::{Exposition, Kind, Label};
pub use histogram::Histogram;
pub use history::PeriodHistory;
pub use percentiles::{Merged, Percentiles};
pub use pool_stats::{OldestWait, PoolStats};
pub use registry::{PoolEntry, Registry};
pub use shard_stats::ShardStats;
pub use snapshot::{Averages, PoolGauges, ShardReading, Totals};
pub use steps::Steps;
