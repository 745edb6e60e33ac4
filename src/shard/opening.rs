//! Opening a server connection for a pool, and what a failure means for those who wait.

use super::message::Mail;
use super::pools::Pool;
use super::root::tcp_options;
use super::shared::Snapshot;
use crate::auth::{NONCE_RANDOM_BYTES, ServerCredentials};
use crate::base::{Moment, ServerId, ShardId};
use crate::client::Farewell;
use crate::config::{Database, Dialect, LoadBalanceHosts, socket_path};
use crate::net::{Endpoint, Socket, spawn};
use crate::pool::pause_after;
use crate::server::{DialError, Login, Server, ServerTls, Target, Wishes, dial, run_query};
use crate::wire::SqlState;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often a task that waits for the resolver looks.
const LOOKUP_LOOK: Duration = Duration::from_millis(10);

/// Begins to open a server connection; the permit is held.
pub(super) fn begin(pool: Rc<Pool>) {
    let net = pool.shard.net;
    let shared = &pool.common.shared;
    if shared.open() > shared.limit() {
        log_reserve(&pool);
    }
    spawn(net, async move {
        pool.stats.sv_login.add(1);
        let attempt = Attempt::new(&pool);
        let opening = async { Some(attempt.open(&pool, None).await) };
        let given_up = async {
            pool.out_of_patience().await;
            None
        };
        let opened = futures_lite::future::or(opening, given_up).await;
        let opened = match opened {
            Some(Ok(server)) => Some(attempt.prepare(&pool, server).await),
            other => other,
        };
        // What it means for others is known now, although its permit is held for a while.
        match &opened {
            None => pool.step(|local, now, actions| local.attempt_failed(None, now, actions)),
            Some(Err(error)) => failed(&pool, error),
            Some(Ok(_)) => {}
        }
        attempt.cleared_away(&pool).await;
        pool.stats.sv_login.sub(1);
        match opened {
            Some(Ok(server)) => succeeded(&pool, server),
            _ => cleared(&pool),
        }
    });
}

/// The pool is at its limit: as in PgBouncer, this is said of the client that has waited for too long.
fn log_reserve(pool: &Pool) {
    let clients = pool.shard.clients.borrow();
    let waiting = clients.iter().map(|(_, client)| client);
    let waiting = waiting.filter(|client| client.waits_in(&pool.stats));
    let first = waiting.min_by_key(|client| client.since.get());
    let who = first.and_then(|client| client.who());
    let key = &pool.common.key;
    let (database, user) = who.map_or((&key.database, &key.user), |who| (&who.database, &who.user));
    tracing::warn!(
        client = first.map(|client| tracing::field::display(client.id)),
        remote = first.map(|client| tracing::field::display(&client.remote)),
        database = &**database,
        user = &**user,
        "taking connection from reserve_pool"
    );
}

/// An attempt to open a server connection.
pub(super) struct Attempt {
    id: ServerId,
    begun: Moment,
    /// Where it goes; none before its host's name has an address.
    remote: RefCell<Option<Endpoint>>,
    /// Which host of several it goes to; none before that is known.
    turn: Cell<Option<usize>>,
    /// The connection, once it has come to nothing.
    left: Cell<Option<Socket>>,
}

impl Attempt {
    pub(super) fn new(pool: &Pool) -> Attempt {
        Attempt {
            id: pool.shard.common.server_id(),
            begun: pool.shard.net.now(),
            remote: RefCell::default(),
            turn: Cell::default(),
            left: Cell::default(),
        }
    }

    /// Opens a server connection: one of the pool, or with the `wishes` of a client that it is for alone. A failure
    /// is counted and logged. However it ends, [`Attempt::cleared_away`] comes next.
    pub(super) async fn open(
        &self,
        pool: &Pool,
        wishes: Option<Wishes>,
    ) -> Result<Server, DialError> {
        let opened = self.dial(pool, wishes).await;
        opened.inspect_err(|error| log_failure(pool, self, error))
    }

    async fn dial(&self, pool: &Pool, wishes: Option<Wishes>) -> Result<Server, DialError> {
        let shard = &pool.shard;
        let snapshot = shard.snapshot();
        let database = pool.database.borrow().clone();
        let timeout = snapshot.config.general.server_connect_timeout;
        let deadline = shard.net.now().deadline(timeout);
        shard.name_looked_up(&database, deadline).await;
        let turn = match database.load_balance_hosts {
            LoadBalanceHosts::RoundRobin => pool.common.attempts.fetch_add(1, Ordering::Relaxed),
            LoadBalanceHosts::Disable => pool.common.hosts_left.load(Ordering::Relaxed),
        };
        self.turn.set(Some(turn));
        let (host, endpoint) = shard
            .endpoint(&database, turn)
            .ok_or(DialError::NoAddress)?;
        self.remote.replace(Some(endpoint.clone()));
        let target = Target {
            endpoint,
            tcp: tcp_options(&snapshot.config.general),
            tls: shard.server_tls(host),
        };
        let login = Login {
            id: self.id,
            database: pool.common.key.database.clone(),
            user: pool.common.key.user.clone(),
            dialled: database.clone(),
            credentials: credentials(pool, &snapshot, &database),
            wishes,
            nonce: random(),
            kdf: &shard.kdf,
            stats: pool.stats.clone(),
        };
        let opened = shard
            .net
            .until(deadline, dial(shard.net, &target, login, &self.left))
            .await;
        opened.unwrap_or(Err(DialError::Timeout))
    }

    /// Returns when PostgreSQL has nothing left of an attempt that failed or was given up: until it has hung up, the
    /// permit is held.
    pub(super) async fn cleared_away(&self, pool: &Pool) {
        if let Some(socket) = self.left.take() {
            pool.hung_up(socket.hang_up(true)).await;
            socket.close().await;
        }
    }

    /// Makes a server of the pool ready for clients, or sees it off: until PostgreSQL has hung up its permit
    /// is held.
    async fn prepare(&self, pool: &Rc<Pool>, mut server: Server) -> Result<Server, DialError> {
        let prepared = match connect_query(pool, &mut server).await {
            // It would be opened again and again as long as anybody waits.
            Ok(()) if !pool.is_fit(&server) => Err(server
                .stray()
                .map_or(DialError::Unfit, DialError::Unexpected)),
            prepared => prepared,
        };
        if let Err(error) = prepared {
            log_failure(pool, self, &error);
            pool.see_off(server).await;
            return Err(error);
        }
        Ok(server)
    }
}

/// Runs the database's statements for new servers, if it has any; that they fail is only logged.
async fn connect_query(pool: &Pool, server: &mut Server) -> Result<(), DialError> {
    let query = pool.database.borrow().connect_query.clone();
    if query.is_empty() {
        return Ok(());
    }
    let net = pool.shard.net;
    let timeout = {
        let snapshot = pool.shard.snapshot.borrow();
        snapshot.config.general.server_connect_timeout
    };
    let running = net.until(net.now().deadline(timeout), run_query(server, &query));
    match running.await {
        Ok(Err(error @ DialError::OwnQuery(_))) if server.is_reusable() => {
            let (database, user) = (&server.entry.database, &server.entry.user);
            tracing::warn!(database = &**database, user = &**user, server = %server.entry.id, remote = %server.entry.remote, %error, "connect_query failed");
            Ok(())
        }
        outcome => outcome.unwrap_or(Err(DialError::Timeout)),
    }
}

/// What to log in with: the database's password, the forced user's secret, or what clients proved.
fn credentials(pool: &Pool, snapshot: &Snapshot, database: &Database) -> ServerCredentials {
    let is_its_user = database.user.as_deref() == Some(&*pool.common.key.user);
    if let Some(password) = database.password.as_ref().filter(|_| is_its_user) {
        return ServerCredentials::Password(password.clone());
    }
    let learned = pool.common.credentials.load();
    match &**learned {
        ServerCredentials::Nothing => {
            let found = snapshot.users.lookup(&pool.common.key.user);
            ServerCredentials::from_verifier(found.verifier())
        }
        learned => learned.clone(),
    }
}

fn succeeded(pool: &Rc<Pool>, server: Server) {
    pool.common.last_failure.store(None);
    pool.common.refusal.store(None);
    if pool.outdated(&server).is_none() {
        pool.common
            .welcome
            .store(Some(Arc::new(server.dialogue.params.clone())));
    }
    log_success(pool, &server);
    pool.know(&server);
    if let Some(why) = pool.reason_to_close(&server) {
        // The configuration changed, or the server hung up, while it was being opened.
        pool.step(|local, now, actions| local.opened_unfit(now, actions));
        return pool.close(server, why);
    }
    pool.watch(&server);
    pool.step(|local, now, actions| local.opened(server, now, actions));
}

/// Counts and logs a server that has been opened.
pub(super) fn log_success(pool: &Pool, server: &Server) {
    let shard = &pool.shard;
    shard.stats.servers_opened.inc();
    if shard.snapshot.borrow().config.general.log_connections {
        let (database, user) = (&pool.common.key.database, &pool.common.key.user);
        tracing::info!(database = &**database, user = &**user, server = %server.entry.id, remote = %server.entry.remote, pid = server.entry.process_id(), local = %server.entry.local, "new server connection");
    }
}

/// Counts and logs one that could not be.
fn log_failure(pool: &Pool, attempt: &Attempt, error: &DialError) {
    let shard = &pool.shard;
    shard.stats.server_failures.inc();
    if !is_final(error) && !matches!(error, DialError::OwnQuery(_)) {
        // Of those that fail together the first takes all of them to the next host.
        let (left, order) = (&pool.common.hosts_left, Ordering::Relaxed);
        let turn = attempt.turn.get().unwrap_or_else(|| left.load(order));
        let _ = left.compare_exchange(turn, turn.wrapping_add(1), order, order);
    }
    let (database, user) = (&pool.common.key.database, &pool.common.key.user);
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let (id, at) = (attempt.id, pool.database.borrow().clone());
    let remote = match &*attempt.remote.borrow() {
        Some(endpoint) => endpoint.to_string(),
        None => format!("{}:{}", at.host, at.port),
    };
    tracing::warn!(database = &**database, user = &**user, server = %id, %remote, %error, cause, "cannot open a server connection");
    let config = &shard.snapshot.borrow().config;
    if config.dialect == Dialect::Ini && config.general.log_disconnections {
        let age_s = shard.net.now().since(attempt.begun).as_secs();
        let why = error.reason();
        tracing::info!(database = &**database, user = &**user, server = %id, %remote, why = &*why, age_s, "closing server connection");
    }
}

/// An attempt has failed: what that means for others.
fn failed(pool: &Rc<Pool>, error: &DialError) {
    let (shard, shared) = (&pool.shard, &pool.common.shared);
    let farewell = Arc::new(farewell(error));
    // Attempts made together count as one.
    let is_first = matches!(shared.retry_at(), None | Some(Moment::NEVER));
    pool.common.last_failure.store(Some(farewell.clone()));
    if is_final(error) {
        pool.common.refusal.store(Some(farewell));
    } else if is_first {
        // Words of another time.
        pool.common.refusal.store(None);
    }
    let longest = shard.snapshot.borrow().config.general.server_login_retry;
    let failures = (shared.failures() + u32::from(is_first)).max(1);
    let retry = shard
        .net
        .now()
        .after(pause_after(failures, longest, random_bytes()[0]));
    pool.step(|local, now, actions| local.attempt_failed(Some(retry), now, actions));
    shard.tick_pools();
}

/// Nothing is left of an attempt that has failed.
fn cleared(pool: &Rc<Pool>) {
    pool.step(|local, now, actions| local.attempt_cleared(now, actions));
    // While other servers of the pool work, or are being opened, those who wait may yet be served.
    let is_last = pool.common.shared.open() == 0;
    let shard = &pool.shard;
    if is_last && let Some(farewell) = pool.common.refusal.swap(None) {
        for other in (0..shard.common.mesh.shards()).map(|id| ShardId(id as u16)) {
            if other == shard.id {
                pool.fail_waiters(&farewell);
            } else {
                let (pool, farewell) = (pool.common.key.clone(), (*farewell).clone());
                let _ = shard.post(other, Mail::LoginRefused { pool, farewell });
            }
        }
    }
    shard.tick_pools();
}

/// Whether waiting clients are told at once: the server refused the login. They go on waiting
/// while it starts up, or cannot be reached.
fn is_final(error: &DialError) -> bool {
    matches!(error, DialError::Refused { .. } | DialError::Login(_)) && !error.is_starting_up()
}

/// What clients are told: the server's own words, if it said anything.
pub(super) fn farewell(error: &DialError) -> Farewell {
    match error {
        DialError::Refused {
            sqlstate, message, ..
        } => Farewell::with(
            sqlstate.unwrap_or(SqlState::CONNECTION_EXCEPTION),
            message.clone(),
        ),
        DialError::Login(cause) => Farewell::because(format!("server login failed: {cause}")),
        other => Farewell::because(other.to_string()),
    }
}

/// Fresh random bytes for a nonce.
fn random() -> [u8; NONCE_RANDOM_BYTES] {
    let mut bytes = [0; NONCE_RANDOM_BYTES];
    fill_random(&mut bytes);
    bytes
}

/// A salt for md5 and a nonce for SCRAM, with one call of the kernel.
pub(super) fn salt_and_nonce() -> ([u8; 4], [u8; NONCE_RANDOM_BYTES]) {
    let mut bytes = [0; 4 + NONCE_RANDOM_BYTES];
    fill_random(&mut bytes);
    let (salt, nonce) = bytes.split_at(4);
    let cut = "the slices have these lengths";
    (salt.try_into().expect(cut), nonce.try_into().expect(cut))
}

/// Eight random bytes.
pub(super) fn random_bytes() -> [u8; 8] {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    bytes
}

/// Fills `bytes` with randomness of the kernel; without it nobody could be authenticated.
pub(super) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel's source of randomness works");
}

impl super::root::Shard {
    /// Waits for the first look-up of a host name that a reload has brought, but not beyond
    /// `deadline`.
    async fn name_looked_up(&self, database: &Database, deadline: Moment) {
        let is_known = || {
            let addresses = self.common.addresses.load();
            let mut names = database.hosts().filter(|host| is_name(host));
            names.all(|name| addresses.contains_key(name))
        };
        while !is_known() && self.net.now() < deadline {
            self.net.sleep(LOOKUP_LOOK).await;
        }
    }

    /// How a connection to `host` is encrypted.
    pub(super) fn server_tls(&self, host: &str) -> ServerTls {
        let snapshot = self.snapshot();
        ServerTls {
            mode: snapshot.tls.server_mode,
            connector: snapshot.tls.servers.clone(),
            host: host.to_owned(),
        }
    }

    /// Where a database's server is, and which of its hosts that is; none while the host's name has no
    /// address. Of several hosts, and of several addresses of a host, each `turn` goes to the next.
    pub(super) fn endpoint<'a>(
        &self,
        database: &'a Database,
        turn: usize,
    ) -> Option<(&'a str, Endpoint)> {
        let hosts = database.hosts().count().max(1);
        let host = database.hosts().nth(turn % hosts)?;
        Some((host, self.endpoint_at(host, database.port, turn / hosts)?))
    }

    /// Where `host` is; none while it has no address. Of several addresses each `turn` goes to the next.
    pub(super) fn endpoint_at(&self, host: &str, port: u16, turn: usize) -> Option<Endpoint> {
        if let Some(path) = socket_path(host, port) {
            return Some(Endpoint::Unix(path));
        }
        let address = match host.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => {
                let addresses = self.common.addresses.load();
                let addresses = addresses.get(host)?;
                *addresses.get(turn % addresses.len().max(1))?
            }
        };
        Some(Endpoint::Tcp(SocketAddr::new(address, port)))
    }

    /// Which of a database's hosts a server is at, as the configuration names it.
    pub(super) fn host_at<'a>(&self, database: &'a Database, server: &Endpoint) -> &'a str {
        let addresses = self.common.addresses.load();
        let is_there = |host: &&str| match server {
            Endpoint::Unix(path) => socket_path(host, database.port).as_ref() == Some(path),
            Endpoint::Tcp(server) => match (host.parse::<IpAddr>(), addresses.get(*host)) {
                (Ok(address), _) => address == server.ip(),
                (_, Some(addresses)) => addresses.contains(&server.ip()),
                (_, None) => false,
            },
            Endpoint::Process { .. } => false,
        };
        let host = database.hosts().find(is_there);
        host.or_else(|| database.hosts().next()).unwrap_or_default()
    }

    /// Names have been looked up: servers at addresses that are gone serve nobody else.
    pub(super) fn addresses_changed(self: &Rc<Self>) {
        let addresses = self.common.addresses.load_full();
        self.each_pool(|pool| pool.leave_lost_addresses(&addresses));
    }
}

impl Pool {
    fn leave_lost_addresses(self: &Rc<Self>, addresses: &HashMap<String, Vec<IpAddr>>) {
        let database = self.database.borrow().clone();
        let mut known = Vec::new();
        for host in database.hosts() {
            match (host.parse(), addresses.get(host)) {
                (Ok(address), _) => known.push(address),
                (_, Some(addresses)) => known.extend(addresses),
                (_, None) if is_name(host) => return,
                (_, None) => {}
            }
        }
        let is_lost = |remote: &Endpoint| match remote {
            Endpoint::Tcp(remote) => !known.contains(&remote.ip().to_canonical()),
            Endpoint::Unix(_) | Endpoint::Process { .. } => false,
        };
        let entries = self.entries.borrow();
        for entry in entries.iter().filter_map(std::rc::Weak::upgrade) {
            if is_lost(&entry.remote) && entry.close_needed.get().is_none() {
                entry.close_needed.set(Some("obsolete connection"));
            }
        }
        drop(entries);
        self.step(|local, _, actions| {
            local.expire_idle(|server, _| server.entry.close_needed.get(), actions);
        });
    }
}

/// Whether a host has to be looked up.
fn is_name(host: &str) -> bool {
    socket_path(host, 0).is_none() && host.parse::<IpAddr>().is_err()
}
