//! What all shards share, for the life of the process.

use super::message::{Mail, PoolKey};
use crate::auth::{ServerCredentials, Users};
use crate::base::{ClientId, Moment, ServerId};
use crate::client::Farewell;
use crate::config::Config;
use crate::mesh::Mesh;
use crate::pool::{Permits, SharedPool};
use crate::session::ServerParams;
use crate::stats::{PeriodHistory, Registry};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// What was read from files: replaced as a whole by a reload.
pub struct Snapshot {
    /// The settings.
    pub config: Arc<Config>,
    /// Who may log in.
    pub users: Arc<Users>,
}

/// What clients may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything.
    Serving,
    /// Those who are here go on; nobody else comes in (SHUTDOWN WAIT_FOR_CLIENTS).
    WaitForClients,
    /// Transactions under way are finished, no others begin (SHUTDOWN WAIT_FOR_SERVERS).
    WaitForServers,
}

/// What a shard asks of the control thread.
pub enum Request {
    /// Read the configuration again; the answer says what was wrong with it.
    Reload(Box<dyn FnOnce(Result<(), String>) + Send>),
    /// Shut down.
    Shutdown(Option<Phase>),
}

/// What all shards share of one pool.
pub struct CommonPool {
    /// Which.
    pub key: PoolKey,
    /// Its permits, and who waits where.
    pub shared: Arc<SharedPool>,
    /// What a server of this pool reported when it was opened: the base of every client's welcome.
    pub welcome: ArcSwapOption<ServerParams>,
    /// What to log in to servers with.
    pub credentials: ArcSwap<ServerCredentials>,
    /// Attempts that failed.
    pub failures: AtomicUsize,
    /// Why the last attempt to open a server failed, until one succeeds.
    pub last_failure: ArcSwapOption<Farewell>,
}

/// Everything that all shards share.
pub struct Common {
    /// The mailboxes.
    pub mesh: Mesh<Mail>,
    /// The counters.
    pub registry: Registry,
    /// Counter readings at period boundaries, for the averages.
    pub history: Mutex<PeriodHistory>,
    /// The configuration now in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Addresses of the configured host names, kept fresh by the resolver thread. A name that is not
    /// there has not been looked up yet; one without addresses was, in vain.
    pub addresses: ArcSwap<HashMap<String, Vec<IpAddr>>>,
    /// Client connections of the process (`max_client_conn`).
    pub clients: Permits,
    /// Random bytes, drawn once.
    pub process_secret: [u8; 32],
    /// When the process began to serve.
    pub started: Moment,
    ids: AtomicU64,
    pools: Mutex<HashMap<PoolKey, Arc<CommonPool>>>,
    control: Sender<Request>,
}

impl Common {
    /// For `shards` shards under `snapshot`; requests go to `control`.
    ///
    /// # Errors
    /// If the mailboxes cannot be made.
    pub fn new(
        shards: usize,
        snapshot: Snapshot,
        process_secret: [u8; 32],
        control: Sender<Request>,
        now: Moment,
    ) -> std::io::Result<Common> {
        let period = snapshot.config.general.stats_period;
        let clients = u32::try_from(snapshot.config.general.max_client_conn).unwrap_or(u32::MAX);
        Ok(Common {
            mesh: Mesh::new(shards)?,
            registry: Registry::new(shards),
            history: Mutex::new(PeriodHistory::new(period, now)),
            snapshot: ArcSwap::from_pointee(snapshot),
            addresses: ArcSwap::default(),
            clients: Permits::new(clients),
            process_secret,
            started: now,
            ids: AtomicU64::new(1),
            pools: Mutex::default(),
            control,
        })
    }

    /// A fresh client id.
    pub fn client_id(&self) -> ClientId {
        ClientId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// A fresh server id, from the same counter.
    pub fn server_id(&self) -> ServerId {
        ServerId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// What all shards share of pool `key`, made if it is new: with the permits of the configuration
    /// in force, which may be newer than the caller's, or `limit` if that has no such database.
    pub fn pool(&self, key: &PoolKey, limit: u32) -> Arc<CommonPool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(key) {
            return pool.clone();
        }
        let limit = self.limit_of(key).unwrap_or(limit);
        let pool = Arc::new(CommonPool {
            key: key.clone(),
            shared: Arc::new(SharedPool::new(self.mesh.shards(), limit, Vec::new())),
            welcome: ArcSwapOption::empty(),
            credentials: ArcSwap::from_pointee(ServerCredentials::Nothing),
            failures: AtomicUsize::new(0),
            last_failure: ArcSwapOption::empty(),
        });
        pools.insert(key.clone(), pool.clone());
        pool
    }

    /// Gives every pool the permits of the configuration in force. Done once per reload, not by each
    /// shard: a slow one would bring back the limit of an older configuration.
    pub fn set_pool_limits(&self) {
        // Under the lock, so that a pool being made is either seen here or sees the new limit.
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        for pool in pools.values() {
            if let Some(limit) = self.limit_of(&pool.key) {
                pool.shared.set_limit(limit);
            }
        }
    }

    fn limit_of(&self, key: &PoolKey) -> Option<u32> {
        let config = self.snapshot.load().config.clone();
        let database = config.database(&key.database)?;
        Some(config.pool_size(&database, &key.user))
    }

    /// Every pool of the process.
    pub fn pools(&self) -> Vec<Arc<CommonPool>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = pools.values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// Sends a request to the control thread.
    pub fn request(&self, request: Request) {
        // The control thread outlives every shard.
        let _ = self.control.send(request);
    }
}
