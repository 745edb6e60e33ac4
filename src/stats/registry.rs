//! Where all numbers are found: one [`Registry`] per process, shared by `Arc`.
//!
//! A shard asks once per pool for its [`PoolStats`] and keeps the `Arc`; the mutex guards only the
//! list of them and is never taken on the data path. Readers hold it while they copy that list.
//!
//! Invariant: what a pool has counted stays in its database's totals until the database itself is
//! removed. Stats of a removed pool that a shard still writes to are kept until it lets go of them,
//! then folded into one sum. How many pools there may be is bounded by who makes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::histogram::Histogram;
use super::percentiles::Merged;
use super::pool_stats::PoolStats;
use super::shard_stats::ShardStats;
use super::snapshot::{PoolGauges, Totals};
use super::steps::Steps;
use crate::base::{Moment, ShardId};

/// All pools' and shards' numbers.
#[derive(Debug)]
pub struct Registry {
    shards: Box<[Arc<ShardStats>]>,
    databases: Mutex<BTreeMap<Arc<str>, Database>>,
}

impl Registry {
    /// A registry for shards 0 to `shard_count` - 1, without pools.
    pub fn new(shard_count: usize) -> Registry {
        let shards = (0..shard_count).map(|_| Arc::default()).collect();
        Registry {
            shards,
            databases: Mutex::default(),
        }
    }

    /// The numbers of shard `shard`, which alone may write to them.
    ///
    /// # Panics
    /// If there is no such shard: shards are fixed at start.
    pub fn shard(&self, shard: ShardId) -> &Arc<ShardStats> {
        &self.shards[shard.index()]
    }

    /// All shards' numbers, by shard id.
    pub fn shards(&self) -> &[Arc<ShardStats>] {
        &self.shards
    }

    /// The numbers of the pool (`database`, `user`) on `shard`, which alone may write to them; made
    /// at the first call. Takes a mutex: ask once, keep the `Arc`.
    pub fn pool(&self, shard: ShardId, database: &str, user: &str) -> Arc<PoolStats> {
        let mut databases = self.lock();
        let database = entry(&mut databases, database);
        Arc::clone(entry(&mut database.pools, user).on(shard))
    }

    /// Takes a pool off the list, on all shards. Its counters stay in its database's totals, also
    /// those that shards still write; its gauges and latencies are gone.
    pub fn remove_pool(&self, database: &str, user: &str) {
        if let Some(database) = self.lock().get_mut(database) {
            database.remove_pool(user);
        }
    }

    /// Takes a database and all its pools off the list, totals included.
    pub fn remove_database(&self, database: &str) {
        self.lock().remove(database);
    }

    /// All pools, by database, then user.
    pub fn pools(&self) -> Vec<PoolEntry> {
        let databases = self.lock();
        let all = databases
            .iter()
            .flat_map(|(name, database)| database.entries(name));
        all.collect()
    }

    /// Calls `visit` for every pool, by database, then user, without holding the mutex.
    pub fn for_each_pool(&self, visit: impl FnMut(&PoolEntry)) {
        self.pools().iter().for_each(visit);
    }

    /// The counters of every database that has or had a pool, removed pools included.
    pub fn totals_by_database(&self) -> BTreeMap<Arc<str>, Totals> {
        let copied: Vec<_> = {
            let mut databases = self.lock();
            let all = databases.iter_mut();
            all.map(|(name, database)| (Arc::clone(name), database.counted()))
                .collect()
        };
        copied
            .into_iter()
            .map(|(name, counted)| (name, counted.sum()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Database>> {
        // Nothing in here is left half done by a panic, and release builds abort anyway.
        self.databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pool on all shards that have used it.
#[derive(Clone, Debug)]
pub struct PoolEntry {
    /// Name of the pool's database, as clients give it.
    pub database: Arc<str>,
    /// The pool's user.
    pub user: Arc<str>,
    /// The pool's numbers on each shard that has used it, in the order of first use.
    pub shards: Vec<(ShardId, Arc<PoolStats>)>,
}

impl PoolEntry {
    /// The counters, summed over shards.
    pub fn totals(&self) -> Totals {
        self.stats().map(Totals::from).sum()
    }

    /// The gauges, summed over shards.
    pub fn gauges(&self) -> PoolGauges {
        self.stats().map(PoolGauges::from).sum()
    }

    /// Since when the first client in line waits, over all shards; [`Moment::NEVER`] if nobody
    /// does.
    pub fn oldest_wait(&self) -> Moment {
        self.stats()
            .map(|stats| stats.oldest_wait.load())
            .min()
            .unwrap_or(Moment::NEVER)
    }

    /// One kind of latency over all shards, as in `entry.merged(|stats| &stats.query)`.
    pub fn merged(&self, kind: impl Fn(&PoolStats) -> &Histogram) -> Merged {
        let mut all = Merged::new();
        self.stats().for_each(|stats| all.add(kind(stats)));
        all
    }

    /// The same counted below fixed bounds.
    pub fn steps(&self, kind: impl Fn(&PoolStats) -> &Histogram) -> Steps {
        let mut all = Steps::default();
        self.stats().for_each(|stats| all.add(kind(stats)));
        all
    }

    fn stats(&self) -> impl Iterator<Item = &PoolStats> {
        self.shards.iter().map(|(_, stats)| &**stats)
    }
}

/// One pool's numbers by shard: a short list, as small pools live on few shards.
#[derive(Debug, Default)]
struct Slices(Vec<(ShardId, Arc<PoolStats>)>);

impl Slices {
    fn on(&mut self, shard: ShardId) -> &Arc<PoolStats> {
        let found = self.0.iter().position(|(id, _)| *id == shard);
        let index = found.unwrap_or(self.0.len());
        if found.is_none() {
            self.0.push((shard, Arc::default()));
        }
        &self.0[index].1
    }
}

#[derive(Debug, Default)]
struct Database {
    pools: BTreeMap<Arc<str>, Slices>,
    /// Of removed pools; a shard may still write to them.
    retired: Vec<Arc<PoolStats>>,
    /// Counters of removed pools that nobody writes to any more.
    folded: Totals,
}

impl Database {
    fn remove_pool(&mut self, user: &str) {
        let slices = self.pools.remove(user).unwrap_or_default();
        self.retired
            .extend(slices.0.into_iter().map(|(_, stats)| stats));
        self.fold_retired();
    }

    fn fold_retired(&mut self) {
        for stats in std::mem::take(&mut self.retired) {
            // Unique means that the writer has let go, and all it wrote is visible here.
            match Arc::try_unwrap(stats) {
                Ok(last) => self.folded = self.folded + Totals::from(&last),
                Err(shared) => self.retired.push(shared),
            }
        }
    }

    fn entries(&self, name: &Arc<str>) -> impl Iterator<Item = PoolEntry> {
        self.pools.iter().map(|(user, slices)| PoolEntry {
            database: Arc::clone(name),
            user: Arc::clone(user),
            shards: slices.0.clone(),
        })
    }

    fn counted(&mut self) -> Counted {
        self.fold_retired();
        let live = self
            .pools
            .values()
            .flat_map(|slices| &slices.0)
            .map(|(_, stats)| stats);
        Counted {
            folded: self.folded,
            stats: live.chain(&self.retired).map(Arc::clone).collect(),
        }
    }
}

/// What one database's totals consist of, copied out of the mutex.
struct Counted {
    folded: Totals,
    stats: Vec<Arc<PoolStats>>,
}

impl Counted {
    fn sum(self) -> Totals {
        self.folded + self.stats.iter().map(|stats| Totals::from(&**stats)).sum()
    }
}

/// The entry for `name`, made if it is missing; the name is copied only then.
fn entry<'a, T: Default>(map: &'a mut BTreeMap<Arc<str>, T>, name: &str) -> &'a mut T {
    if !map.contains_key(name) {
        map.insert(Arc::from(name), T::default());
    }
    map.get_mut(name).expect("was just inserted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const ZERO: ShardId = ShardId(0);
    const ONE: ShardId = ShardId(1);

    fn queries_of(registry: &Registry, database: &str) -> Option<u64> {
        registry
            .totals_by_database()
            .get(database)
            .map(|totals| totals.query_count)
    }

    #[test]
    fn shard_gets_the_same_stats_again_and_no_other_shard_gets_them() {
        let registry = Registry::new(2);
        let first = registry.pool(ZERO, "shop", "ann");
        assert!(Arc::ptr_eq(&first, &registry.pool(ZERO, "shop", "ann")));
        let others = [
            (ONE, "shop", "ann"),
            (ZERO, "shop", "bob"),
            (ZERO, "mail", "ann"),
        ];
        for (shard, database, user) in others {
            assert!(!Arc::ptr_eq(&first, &registry.pool(shard, database, user)));
        }
        assert!(!Arc::ptr_eq(registry.shard(ZERO), registry.shard(ONE)));
    }

    #[test]
    fn pools_are_listed_in_order_and_summed_over_shards() {
        let registry = Registry::new(2);
        for (shard, user, count) in [(ONE, "bob", 1), (ZERO, "ann", 2), (ONE, "ann", 3)] {
            let stats = registry.pool(shard, "shop", user);
            stats.query_count.add(count);
            stats.sv_idle.set(count);
            stats.query_ended(count * 1_000_000);
            stats.oldest_wait.set(Moment::from_nanos(count));
        }
        registry.pool(ZERO, "mail", "zoe");
        let mut seen = Vec::new();
        registry.for_each_pool(|pool| {
            let percentiles = pool.merged(|stats| &stats.query).percentiles();
            let numbers = (
                pool.totals().query_count,
                pool.gauges().sv_idle,
                percentiles.count,
            );
            seen.push((
                format!("{}/{}", pool.database, pool.user),
                numbers,
                pool.oldest_wait(),
            ));
        });
        let expected = [
            ("mail/zoe".to_owned(), (0, 0, 0), Moment::NEVER),
            ("shop/ann".to_owned(), (5, 5, 2), Moment::from_nanos(2)),
            ("shop/bob".to_owned(), (1, 1, 1), Moment::from_nanos(1)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(
            (queries_of(&registry, "shop"), queries_of(&registry, "mail")),
            (Some(6), Some(0))
        );
    }

    #[test]
    fn counters_of_a_removed_pool_stay_in_its_database() {
        let registry = Registry::new(1);
        registry.pool(ZERO, "shop", "ann").query_count.add(7);
        registry.pool(ZERO, "shop", "bob").query_count.add(1);
        registry.remove_pool("shop", "ann");
        assert_eq!(registry.pools().len(), 1);
        assert_eq!(queries_of(&registry, "shop"), Some(8));
        registry.pool(ZERO, "shop", "ann").query_count.add(10);
        assert_eq!(queries_of(&registry, "shop"), Some(18));
    }

    #[test]
    fn what_a_shard_writes_after_the_removal_counts_and_is_folded_once_it_lets_go() {
        let registry = Registry::new(1);
        let held = registry.pool(ZERO, "shop", "ann");
        held.query_count.add(7);
        registry.remove_pool("shop", "ann");
        held.query_count.add(2);
        assert_eq!(queries_of(&registry, "shop"), Some(9));
        let watch = Arc::downgrade(&held);
        drop(held);
        assert_eq!(queries_of(&registry, "shop"), Some(9));
        assert!(
            watch.upgrade().is_none(),
            "the removed pool's memory is given back"
        );
        assert_eq!(queries_of(&registry, "shop"), Some(9));
    }

    #[test]
    fn removed_database_takes_its_totals_along() {
        let registry = Registry::new(1);
        registry.pool(ZERO, "shop", "ann").query_count.add(7);
        registry.remove_database("shop");
        assert_eq!(queries_of(&registry, "shop"), None);
        registry.pool(ZERO, "shop", "ann");
        assert_eq!(queries_of(&registry, "shop"), Some(0));
    }

    #[test]
    fn removing_what_is_not_there_changes_nothing() {
        let registry = Registry::new(1);
        registry.remove_pool("shop", "ann");
        registry.remove_database("shop");
        assert!(registry.totals_by_database().is_empty());
    }

    #[test]
    fn totals_never_decrease_while_pools_come_and_go() {
        const ROUNDS: u64 = 2_000;
        let registry = Registry::new(1);
        registry.pool(ZERO, "shop", "ann");
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let stats = registry.pool(ZERO, "shop", "ann");
                    registry.remove_pool("shop", "ann");
                    stats.query_count.inc();
                }
            });
            let mut last = 0;
            while last < ROUNDS {
                let now = queries_of(&registry, "shop").unwrap();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        assert_eq!(queries_of(&registry, "shop"), Some(ROUNDS));
    }
}
