//! What is shared, as the console and the metrics show it.

use super::shared::Common;
use crate::admin::{
    ClientCounts, DatabaseFlags, FailureRow, Hold, PeerLoad, PoolRow, Records, UserRow, balance,
};
use crate::base::{Moment, ShardId};
use crate::config::{CONSOLE, Config};
use crate::net::CertificateFile;
use crate::stats::{PeriodHistory, Registry};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

impl Records for Common {
    fn client_counts(&self) -> ClientCounts {
        let mut counts = self.limited_clients();
        for pool in self.registry.pools() {
            if &*pool.database == CONSOLE {
                let gauges = pool.gauges();
                let inside = u32::try_from(gauges.cl_active + gauges.cl_waiting);
                let sum = counts.by_database.entry(pool.database.clone()).or_default();
                *sum += inside.unwrap_or(u32::MAX);
            }
        }
        counts
    }

    fn peer_load(&self, id: u16) -> PeerLoad {
        PeerLoad {
            active: self.peer_permits(id).open(),
            waiting: self.peer_queue(id).open(),
        }
    }

    fn pools(&self) -> Vec<PoolRow> {
        let config = self.config();
        let rows = self.pools().into_iter().filter_map(|pool| {
            let database = config.database(&pool.key.database)?;
            Some(PoolRow {
                mode: config.pool_mode(&database, &pool.key.user),
                open: pool.shared.open(),
                limit: pool.shared.limit(),
                balance: balance(&database),
                database: pool.key.database.clone(),
                user: pool.key.user.clone(),
            })
        });
        rows.collect()
    }

    fn users(&self) -> Vec<UserRow> {
        let mut open = HashMap::<Arc<str>, u32>::new();
        for pool in self.pools() {
            *open.entry(pool.key.user.clone()).or_default() += pool.shared.open();
        }
        let snapshot = self.snapshot.load();
        let names = snapshot.users.names().map(str::to_owned);
        let rows = names.map(|name| UserRow {
            current_connections: open.get(&*name).copied().unwrap_or_default(),
            name,
        });
        rows.collect()
    }

    fn login_failures(&self, now: Moment) -> Vec<FailureRow> {
        let rows = self.failures().rows(now, self.failure_limit());
        let row = |(address, failures, is_blocked)| FailureRow {
            address,
            failures,
            is_blocked,
        };
        rows.into_iter().map(row).collect()
    }

    fn config(&self) -> Arc<Config> {
        self.snapshot.load().config.clone()
    }

    fn certificates(&self) -> Vec<CertificateFile> {
        self.snapshot.load().tls.certificates().cloned().collect()
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn history(&self) -> &Mutex<PeriodHistory> {
        &self.history
    }

    fn mailbox_depth(&self, shard: ShardId) -> usize {
        self.mesh.depth(shard)
    }

    fn flags(&self, database: &str) -> DatabaseFlags {
        let own = self.board.newest().own(database);
        DatabaseFlags {
            is_paused: own.is_paused,
            is_disabled: own.is_disabled,
        }
    }

    fn hold(&self) -> Hold {
        self.board.newest().hold()
    }

    fn hosts(&self) -> Vec<(String, Vec<IpAddr>)> {
        let addresses = self.addresses.load();
        let hosts = addresses
            .iter()
            .map(|(name, all)| (name.clone(), all.clone()));
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort();
        hosts
    }
}
