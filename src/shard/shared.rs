//! What all shards share, for the life of the process.

use super::doors::Door;
use super::message::{Mail, PoolKey};
use super::orders::{Board, Notes};
use super::promise::Promise;
use crate::admin::{ClientCounts, SetOutcome};
use crate::auth::hba::{Hba, LdapSettings};
use crate::auth::{Answers, FailureLimit, LoginFailures, Lookup, ServerCredentials, Users};
use crate::base::limit::OPENINGS_THERE_MAX;
use crate::base::memory;
use crate::base::{ClientId, Moment, ServerId, ShardId};
use crate::client::Farewell;
use crate::config::{Config, Database, General};
use crate::judge::Workers;
use crate::mesh::Mesh;
use crate::net::TlsSetup;
use crate::pool::{PERMITS_MAX, Permits, SharedPool};
use crate::session::{Budget, Generation, ServerParams};
use crate::stats::{PeriodHistory, Registry};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was read from files: replaced as a whole by a reload.
#[derive(Clone)]
pub struct Snapshot {
    /// The settings.
    pub config: Arc<Config>,
    /// Who may log in.
    pub users: Arc<Users>,
    /// Certificates and keys.
    pub tls: Arc<TlsSetup>,
    /// Who has to prove what, for `auth_type` hba.
    pub hba: Arc<Hba>,
    /// Whom to ask, for `auth_type` ldap.
    pub ldap: Option<Arc<LdapSettings>>,
    /// What is odd about the files, for the log.
    pub remarks: Arc<[String]>,
}

/// What auth_query said about a user, or what a client is told instead.
pub(super) type LookedUp = Result<Arc<Lookup>, Farewell>;

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
    /// Change one setting until the next reload; the answer says what came of it.
    Set {
        /// Which.
        name: String,
        /// Its value, in the notation of SHOW CONFIG.
        value: String,
        /// To be called with what came of it.
        answer: Box<dyn FnOnce(SetOutcome) + Send>,
    },
    /// Do what this signal stands for.
    Signal(i32),
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
    /// What its clients' prepared statements know of its tables.
    pub generation: Arc<Generation>,
    /// What to log in to servers with.
    pub credentials: ArcSwap<ServerCredentials>,
    /// How often a host was left for the next of its list, without load_balance_hosts.
    pub hosts_left: AtomicUsize,
    /// Attempts that were made.
    pub attempts: AtomicUsize,
    /// Servers that are being closed for another pool's sake and still have their permits.
    pub(super) evictions: AtomicUsize,
    /// Before when the shard that has been asked to close one has it in its mailbox, as far as others know.
    eviction_due: AtomicU64,
    /// Why the last attempt to open a server failed, until one succeeds.
    pub last_failure: ArcSwapOption<Farewell>,
    /// Words of a server that refused a login, which those who wait are told as soon as no other server is left for them.
    pub refusal: ArcSwapOption<Farewell>,
    /// When a server was last closed for its age.
    aged_out: AtomicU64,
}

/// A shard that has been asked for the place of an idle server and has not turned since gives it up no more, and
/// another one may be asked.
const EVICTION_SPAN: Duration = Duration::from_millis(50);

impl CommonPool {
    /// Whether one of its servers makes room for another pool already.
    pub(super) fn is_making_room(&self, now: Moment) -> bool {
        // Relaxed, here and below: whoever errs asks for one too many, or again at the next tick.
        self.evictions.load(Ordering::Relaxed) > 0
            || self.eviction_due.load(Ordering::Relaxed) > now.nanos()
    }

    /// Notes that a shard is being asked for a place, and before when it has to have heard of it.
    pub(super) fn ask_for_room(&self, now: Moment) -> Moment {
        let due = now.after(EVICTION_SPAN);
        self.eviction_due.store(due.nanos(), Ordering::Relaxed);
        due
    }

    /// That shard has heard of it, or will not.
    pub(super) fn has_been_asked(&self) {
        self.eviction_due.store(0, Ordering::Relaxed);
    }

    /// Whether a server may be closed for its age now, which is one if so: between two of them lies `gap`,
    /// as servers that were opened together would else be closed together.
    pub fn ages_out(&self, now: Moment, gap: Duration) -> bool {
        let next = |last| (now >= Moment::from_nanos(last).after(gap)).then_some(now.nanos());
        // Relaxed: nothing else depends on it.
        let turn = self
            .aged_out
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        turn.is_ok()
    }
}

/// Who is to close an idle server for another pool's sake.
pub(super) struct Victim {
    pub(super) pool: Arc<CommonPool>,
    pub(super) shard: ShardId,
    /// See [`CommonPool::ask_for_room`].
    pub(super) due: Moment,
    /// What is logged of it.
    pub(super) why: &'static str,
}

/// Every pool, and the limits that span pools.
#[derive(Default)]
struct Directory {
    pools: HashMap<PoolKey, Arc<CommonPool>>,
    scopes: HashMap<Scope, Arc<Permits>>,
}

/// What a limit spans that is not one pool's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// All pools of a database (`max_db_connections`).
    Database(Arc<str>),
    /// All pools whose servers are logged in as this user (`max_user_connections`).
    User(Arc<str>),
    /// Clients of a database (`max_db_client_connections`).
    ClientsOfDatabase(Arc<str>),
    /// Clients logged in as this user (`max_user_client_connections`).
    ClientsOfUser(Arc<str>),
    /// Cancel requests on their way to this peer (its `pool_size`).
    Peer(u16),
    /// Those in line for that, which have no limit.
    PeerQueue(u16),
    /// Servers being opened on one machine: the hosts of a database and its port.
    Openings(Box<str>, u16),
}

impl Directory {
    /// A limit of the configuration in force; of the one that the caller `knows` if what it spans is gone there.
    fn permits(&mut self, scope: Scope, in_force: &Config, knows: &Config) -> Arc<Permits> {
        let limit = scope.limit(in_force).or_else(|| scope.limit(knows));
        let limit = limit.unwrap_or(PERMITS_MAX);
        let permits = self.scopes.entry(scope);
        permits
            .or_insert_with(|| Arc::new(Permits::new(limit)))
            .clone()
    }
}

impl Scope {
    /// None of a database that is gone. What belongs to it closes in any case, but until every shard has heard of that, the
    /// old limit holds. A user without an entry has the general limit.
    fn limit(&self, config: &Config) -> Option<u32> {
        let of_database = |name: &str, limit: fn(&Config, &Database) -> u32| {
            let database = config.database(name)?;
            Some(limit(config, &database))
        };
        let limit = match self {
            Scope::Database(name) => of_database(name, Config::db_connections_max)?,
            Scope::User(name) => config.user_connections_max(name),
            Scope::ClientsOfDatabase(name) => of_database(name, Config::db_clients_max)?,
            Scope::ClientsOfUser(name) => config.user_clients_max(name),
            Scope::Peer(id) => config.peer_pool_size(*id),
            Scope::PeerQueue(_) => 0,
            Scope::Openings(..) => OPENINGS_THERE_MAX,
        };
        Some(unlimited_if_zero(limit))
    }
}

/// Of settings whose 0 is no limit.
pub(super) fn unlimited_if_zero(limit: u32) -> u32 {
    if limit == 0 { PERMITS_MAX } else { limit }
}

/// Leaves the pool of a database that is gone as it is.
fn set_limits_of(pool: &SharedPool, key: &PoolKey, config: &Config) {
    let Some(database) = config.database(&key.database) else {
        return;
    };
    let limit = unlimited_if_zero(config.pool_size(&database, &key.user));
    let after = config.general.reserve_pool_timeout;
    let reserve = if after.is_zero() {
        0
    } else {
        config.reserve_pool_size(&database, &key.user)
    };
    pool.set_limits(limit, reserve, after);
}

/// Memory for prepared statements: what is set, but never more than half of `memory_max`.
fn statements_bytes_max(general: &General) -> u64 {
    let bytes = general.prepared_statements_bytes_max as u64;
    match general.memory_max {
        0 => bytes,
        max => bytes.min(max as u64 / 2),
    }
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
    pub clients: Arc<Permits>,
    /// Which configuration each shard has in force.
    pub reloaded: Notes,
    /// Pauses and other orders.
    pub board: Board,
    /// TCP listeners that are open, of all shards.
    pub listening: AtomicUsize,
    /// The Unix socket of the process whose place this one has taken; it may be gone by now.
    pub predecessor: ArcSwapOption<PathBuf>,
    /// Another process has our Unix socket's place: whoever is still here by it has come before that.
    pub is_relieved: AtomicBool,
    /// The sockets that shards listen at.
    pub(super) doors: Mutex<Vec<Door>>,
    /// Memory for prepared statements (`prepared_statements_bytes_max`).
    pub statements_budget: Arc<Budget>,
    /// What auth_query said about users.
    pub(super) answers: Mutex<Answers<Promise<LookedUp>>>,
    /// Failed logins by address.
    failures: Mutex<LoginFailures>,
    /// Threads for questions to LDAP, PAM and the system.
    pub judges: Workers,
    /// Threads that ask who the user at the other end of a Unix socket is.
    pub namers: Workers,
    /// Threads for key stretching.
    pub stretchers: Workers,
    /// The same for clients of the console.
    pub console_stretchers: Workers,
    /// Random bytes, drawn once.
    pub process_secret: [u8; 32],
    /// When the process began to serve.
    pub started: Moment,
    ids: AtomicU64,
    directory: Mutex<Directory>,
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
        memory::set_max(snapshot.config.general.memory_max as u64);
        let statements_bytes = statements_bytes_max(&snapshot.config.general);
        Ok(Common {
            mesh: Mesh::new(shards)?,
            registry: Registry::new(shards),
            history: Mutex::new(PeriodHistory::new(period, now)),
            snapshot: ArcSwap::from_pointee(snapshot),
            addresses: ArcSwap::default(),
            clients: Arc::new(Permits::new(clients)),
            reloaded: Notes::new(shards),
            board: Board::new(shards),
            listening: AtomicUsize::new(0),
            predecessor: ArcSwapOption::empty(),
            is_relieved: AtomicBool::new(false),
            doors: Mutex::default(),
            statements_budget: Arc::new(Budget::new(statements_bytes)),
            answers: Mutex::default(),
            failures: Mutex::default(),
            judges: Workers::judging(),
            namers: Workers::naming(),
            stretchers: Workers::computing(),
            console_stretchers: Workers::computing_for_console(),
            process_secret,
            started: now,
            ids: AtomicU64::new(1),
            directory: Mutex::default(),
            control,
        })
    }

    /// A fresh client id.
    pub fn client_id(&self) -> ClientId {
        ClientId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The id that the next client or server will have.
    pub fn next_id(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
    }

    /// A fresh server id, from the same counter.
    pub fn server_id(&self) -> ServerId {
        ServerId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// What all shards share of pool `key`, made if it is new: with the permits of the configuration
    /// in force, which may be newer than the one that the caller `knows`, or of the latter, and `limit`, if that has no
    /// such database.
    pub fn pool(&self, key: &PoolKey, limit: u32, knows: &Config) -> Arc<CommonPool> {
        let mut directory = self.directory();
        if let Some(pool) = directory.pools.get(key) {
            return pool.clone();
        }
        let config = self.snapshot.load().config.clone();
        let outer = [
            Scope::Database(key.database.clone()),
            Scope::User(key.user.clone()),
        ];
        let outer = outer.map(|scope| directory.permits(scope, &config, knows));
        let outer = outer.into();
        let shared = SharedPool::new(self.mesh.shards(), limit, outer);
        set_limits_of(&shared, key, &config);
        let pool = Arc::new(CommonPool {
            key: key.clone(),
            shared: Arc::new(shared),
            welcome: ArcSwapOption::empty(),
            generation: Arc::default(),
            credentials: ArcSwap::from_pointee(ServerCredentials::Nothing),
            hosts_left: AtomicUsize::new(0),
            attempts: AtomicUsize::new(0),
            evictions: AtomicUsize::new(0),
            eviction_due: AtomicU64::new(0),
            last_failure: ArcSwapOption::empty(),
            refusal: ArcSwapOption::empty(),
            aged_out: AtomicU64::new(0),
        });
        directory.pools.insert(key.clone(), pool.clone());
        pool
    }

    /// The permits that a client of `database`, logged in as `user`, takes of each; see [`Common::pool`].
    pub fn client_permits(
        &self,
        database: &Arc<str>,
        user: &str,
        knows: &Config,
    ) -> [Arc<Permits>; 2] {
        let scopes = [
            Scope::ClientsOfDatabase(database.clone()),
            Scope::ClientsOfUser(user.into()),
        ];
        // The lock first: limits that change meanwhile find these scopes, or these find the new limits.
        let mut directory = self.directory();
        let config = self.snapshot.load().config.clone();
        scopes.map(|scope| directory.permits(scope, &config, knows))
    }

    /// The permits for cancel requests to peer `id`.
    pub fn peer_permits(&self, id: u16) -> Arc<Permits> {
        self.permits(Scope::Peer(id))
    }

    /// The places in line for them.
    pub fn peer_queue(&self, id: u16) -> Arc<Permits> {
        self.permits(Scope::PeerQueue(id))
    }

    /// The places for servers that are being opened at the machine of `database`.
    pub(super) fn openings_at(&self, database: &Database) -> Arc<Permits> {
        let hosts: Vec<&str> = database.hosts().collect();
        self.permits(Scope::Openings(hosts.join(",").into(), database.port))
    }

    fn permits(&self, scope: Scope) -> Arc<Permits> {
        let mut directory = self.directory();
        let config = self.snapshot.load().config.clone();
        directory.permits(scope, &config, &config)
    }

    /// Takes pools and limits off the list that are in nobody's hands; `gone` hears of each pool.
    pub(super) fn forget_unused(&self, gone: impl Fn(&PoolKey)) {
        let mut directory = self.directory();
        directory.pools.retain(|key, pool| {
            let is_used = Arc::strong_count(pool) > 1 || pool.shared.open() > 0;
            if !is_used {
                gone(key);
            }
            is_used
        });
        let is_used = |permits: &Arc<Permits>| Arc::strong_count(permits) > 1 || permits.open() > 0;
        directory.scopes.retain(|_, permits| is_used(permits));
    }

    /// How many clients have places under the limits on clients.
    pub(super) fn limited_clients(&self) -> ClientCounts {
        let mut counts = ClientCounts::default();
        for (scope, permits) in &self.directory().scopes {
            let (name, counts) = match scope {
                Scope::ClientsOfDatabase(name) => (name, &mut counts.by_database),
                Scope::ClientsOfUser(name) => (name, &mut counts.by_user),
                _ => continue,
            };
            counts.insert(name.clone(), permits.open());
        }
        counts
    }

    /// What auth_query said, under its lock.
    pub(super) fn answers(&self) -> MutexGuard<'_, Answers<Promise<LookedUp>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failed logins by address, under their lock.
    pub(super) fn failures(&self) -> MutexGuard<'_, LoginFailures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many logins of an address may fail.
    pub(super) fn failure_limit(&self) -> FailureLimit {
        let general = &self.snapshot.load().config.general;
        FailureLimit {
            max: general.login_failures_max,
            window: general.login_failures_window,
        }
    }

    /// Forgets what auth_query said: a reload asks again.
    pub fn forget_answers(&self) {
        self.answers().clear();
    }

    /// Puts every limit of the configuration in force. Done once per reload, not by each shard: a
    /// slow one would bring back the limit of an older configuration.
    pub fn set_limits(&self) {
        let config = self.snapshot.load().config.clone();
        let clients = config.general.max_client_conn;
        self.clients
            .set_limit(u32::try_from(clients).unwrap_or(u32::MAX));
        self.statements_budget
            .set_max(statements_bytes_max(&config.general));
        memory::set_max(config.general.memory_max as u64);
        // Under the lock, so that a pool being made is either seen here or sees the new limit.
        let directory = self.directory();
        for (scope, permits) in &directory.scopes {
            if let Some(limit) = scope.limit(&config) {
                permits.set_limit(limit);
            }
        }
        for pool in directory.pools.values() {
            set_limits_of(&pool.shared, &pool.key, &config);
        }
    }

    /// The pool, and the shard, with the longest idle server among those that share a limit with `pool`
    /// which keeps it from opening one: that shard is to be asked for it. None while one of them makes room already. Takes a mutex and looks at every pool: for a client that waits
    /// while the limit is used up, at most once in 10 ms and shard.
    pub(super) fn victim(&self, pool: &CommonPool, now: Moment) -> Option<Victim> {
        let directory = self.directory();
        let is_full = |scope: Scope| {
            let permits = directory.scopes.get(&scope);
            permits.is_some_and(|permits| !permits.has_free())
        };
        let key = &pool.key;
        let database_is_full = is_full(Scope::Database(key.database.clone()));
        let user_is_full = is_full(Scope::User(key.user.clone()));
        let shares = |other: &&Arc<CommonPool>| {
            other.key != *key
                && (database_is_full && other.key.database == key.database
                    || user_is_full && other.key.user == key.user)
        };
        let mut others = directory.pools.values().filter(shares);
        if others.any(|other| other.is_making_room(now)) {
            return None;
        }
        let victim = self.longest_idle(directory.pools.values().filter(shares), now)?;
        let why = match database_is_full && victim.pool.key.database == key.database {
            true => "evicted for max_db_connections",
            false => "evicted for max_user_connections",
        };
        Some(Victim { why, ..victim })
    }

    /// The longest idle server of `pools`; one of a stalled shard only if the others have none.
    pub(super) fn longest_idle<'a>(
        &self,
        pools: impl Iterator<Item = &'a Arc<CommonPool>> + Clone,
        now: Moment,
    ) -> Option<Victim> {
        let turns = |shard| !self.registry.shard(shard).beat.is_stalled(now);
        let among = |is_meant: &dyn Fn(ShardId) -> bool| {
            let idle =
                |pool: &'a Arc<CommonPool>| Some((pool.shared.longest_idle(is_meant)?, pool));
            let idle = pools.clone().filter_map(idle);
            idle.min_by_key(|((since, _), _)| *since)
        };
        let ((_, shard), pool) = among(&turns).or_else(|| among(&|_| true))?;
        Some(Victim {
            pool: pool.clone(),
            shard,
            due: pool.ask_for_room(now),
            why: "evicted for pool_size",
        })
    }

    /// Every pool of the process.
    pub fn pools(&self) -> Vec<Arc<CommonPool>> {
        let mut all: Vec<_> = self.directory().pools.values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to the control thread.
    pub fn request(&self, request: Request) {
        // The control thread outlives every shard.
        let _ = self.control.send(request);
    }
}

#[cfg(test)]
mod tests;
