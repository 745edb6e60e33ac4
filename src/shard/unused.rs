//! Pools that nobody uses go after a while, so that names which the database entry `*` answers for cannot add up.
//!
//! Each shard gives its part up by itself: only what has no client, no server and nothing under way, and is in nobody's
//! hands. What all shards share of the pool goes once no shard has a part of it; whoever comes later makes both anew.

use super::pools::Pool;
use super::root::Shard;
use super::shared::Common;
use crate::base::Moment;
use crate::config::{Config, Dialect};
use std::rc::Rc;
use std::time::Duration;

impl Shard {
    /// Gives up this shard's parts of pools that have been unused for long.
    pub(super) fn drop_unused_pools(&self, config: &Config) {
        let now = self.net.now();
        let (of_any, of_entry) = (
            config.general.autodb_idle_timeout,
            config.general.pool_idle_timeout,
        );
        let mut pools = self.pools.borrow_mut();
        let before = pools.len();
        pools.retain(|key, pool| {
            let is_own = config.databases.contains_key(&*key.database);
            !pool.is_unused_for(if is_own { of_entry } else { of_any }, now)
        });
        let is_fewer = pools.len() < before;
        drop(pools);
        if is_fewer {
            self.common.drop_unused_pools();
        }
    }
}

impl Pool {
    /// Whether this part has been of no use to anybody for that long; never, if that is 0.
    fn is_unused_for(self: &Rc<Self>, timeout: Duration, now: Moment) -> bool {
        let is_used = || {
            let local = self.local.borrow();
            let entries = self.entries.borrow();
            local.waiting() > 0
                || local.opening() > 0
                || local.idle().len() > 0
                || entries.iter().any(|entry| entry.strong_count() > 0)
        };
        if timeout.is_zero() || Rc::strong_count(self) > 1 || is_used() {
            self.unused_since.set(None);
            return false;
        }
        let since = self.unused_since.get().unwrap_or(now);
        self.unused_since.set(Some(since));
        now.since(since) >= timeout
    }
}

/// In PgBouncer's words: a database goes that is no longer configured, or that `*` stood for.
pub fn log_dropped(name: &str) {
    tracing::warn!(
        "dropping database '{name}' as it does not exist anymore or inactive auto-database"
    );
}

impl Common {
    /// Forgets what is shared of pools that no shard has a part of, and limits that nobody is under. Whoever has
    /// either got it under the same lock.
    fn drop_unused_pools(&self) {
        let config = self.snapshot.load().config.clone();
        self.forget_unused(|key| {
            self.registry.remove_pool(&key.database, &key.user);
            let is_last = || {
                let mut pools = self.registry.pools().into_iter();
                pools.all(|pool| pool.database != key.database)
            };
            let name = &*key.database;
            let is_auto = config.database(name).is_some() && !config.databases.contains_key(name);
            if config.dialect == Dialect::Ini && is_auto && is_last() {
                log_dropped(&key.database);
            }
        });
    }
}
